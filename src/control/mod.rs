//! The control port: what throng says about itself over HTTP, to people, probes and Prometheus.
//!
//! It runs beside the shards on a thread of its own and only reads what they count, so a scrape costs them nothing but the cache
//! lines it looks at. Everything a client of this port can hold is bounded: how many connections there are, how long one
//! may take over a request, and how long it may live.

mod metrics;
mod process;
mod report;
mod rooms;

pub use process::sample_memory;
pub use report::History;

use crate::auth::Gate;
use crate::bridge::Bridge;
use crate::bus::Bus;
use crate::stats::Stats;
use crate::time::Clock;
use crate::token::Tokens;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// What the control port can see.
#[derive(Debug)]
pub struct Control {
    /// The numbers of the shards.
    pub stats: Arc<Stats>,
    /// Knows the rooms.
    pub bus: Arc<Bus>,
    /// Knows how many may come in, and whether anybody may.
    pub gate: Arc<Gate>,
    /// The clock of the process: its origin is when the process started.
    pub clock: Clock,
    /// When that was, in milliseconds since 1970 (UTC).
    pub started_unix_ms: u64,
    /// Sockets there may be in the process, open connections included.
    pub sockets_max: usize,
    /// What connects this process to others, if anything does.
    pub bridge: Option<Bridge>,
    /// What checks tokens, when there are keys.
    pub tokens: Option<Arc<Tokens>>,
    /// What is remembered of the last seconds; begins as `History::default()`, and [`serve`] fills it.
    pub history: History,
}

/// What a client of the control port may hold.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections served at once. Further ones wait in the kernel's queue.
    connections_max: usize,
    /// From the start of a connection, or the end of the last answer on it, to the end of the next request's head.
    head_timeout: Duration,
    /// The age from which a connection gets no further request.
    age_max: Duration,
    /// How long the answer under way may then still take. A client that does not read is cut off here.
    last_answer_timeout: Duration,
}

impl Limits {
    const DEFAULT: Limits = Limits {
        connections_max: 64,
        head_timeout: Duration::from_secs(5),
        age_max: Duration::from_secs(30),
        last_answer_timeout: Duration::from_secs(2),
    };
    /// The buffer of a connection in bytes, and so the longest request head.
    const BUFFER_BYTES_MAX: usize = 16 << 10;
    /// How long nothing is accepted after the kernel refused, for want of descriptors for example.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
}

/// Serves the control port on `listener` until `until` is ready, and takes the samples that rates are made of. Then it accepts
/// nothing more, and returns when the answers under way are done, at most two seconds later.
///
/// # Errors
/// None so far: a refused accept is logged and tried again.
pub async fn serve(
    listener: TcpListener,
    control: Arc<Control>,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_within(Limits::DEFAULT, listener, control, until).await
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    control: Arc<Control>,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    let router = router(control.clone());
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut until = pin!(until);
    let mut refused = false;
    loop {
        tokio::select! {
            () = &mut until => break,
            _ = seconds.tick() => control.history.sample(&control.stats, control.clock.now()),
            Some(ended) = connections.join_next() => report_panic(ended),
            accepted = listener.accept(), if connections.len() < limits.connections_max => match accepted {
                Ok((stream, _)) => {
                    refused = false;
                    connections.spawn(attend(limits, stream, router.clone(), stopping.clone()));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut refused, true) {
                        tracing::warn!(%error, "the control port cannot accept a connection");
                    }
                    sleep(Limits::ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    drop(stop);
    while let Some(ended) = connections.join_next().await {
        report_panic(ended);
    }
    Ok(())
}

/// Serves one connection to its end. `stopping` closes when the port does.
async fn attend(limits: Limits, stream: TcpStream, router: Router, mut stopping: watch::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(Limits::BUFFER_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = sleep(limits.age_max) => None,
        // It is never sent to, so this is the sender's end.
        _ = stopping.changed() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(limits.last_answer_timeout, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        // The peer's doing, whatever it is: slow, malformed, gone.
        tracing::debug!(%error, "a connection of the control port failed");
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an answer of the control port failed");
    }
}

/// The routes of the control port.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics))
        .route("/rooms/{room}", get(rooms::room))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(control)
}

async fn index() -> &'static str {
    concat!(
        "throng ",
        env!("CARGO_PKG_VERSION"),
        "\n\n\
         /health   is the process alive\n\
         /ready    may clients be sent here; 503 while it shuts down\n\
         /stats    all numbers, as JSON\n\
         /metrics  all numbers, for Prometheus\n\
         /rooms/a  how many are in the room a, as JSON; ?namespace=/b for another namespace\n"
    )
}

/// The answer to a probe.
#[derive(Debug, Serialize)]
struct Probe {
    status: &'static str,
    connections: u64,
    uptime_seconds: u64,
    memory_bytes: u64,
    /// Whether Redis can be reached. Without it there are still clients to serve, so it is no reason to send them elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

impl Probe {
    fn new(control: &Control, status: &'static str) -> Probe {
        Probe {
            status,
            connections: control.stats.sum(|shard| shard.connections.value()),
            uptime_seconds: control.clock.now().ms() / 1000,
            memory_bytes: control.stats.memory_bytes.value(),
            redis: control.bridge.as_ref().map(Bridge::status),
        }
    }
}

async fn health(State(control): State<Arc<Control>>) -> Json<Probe> {
    Json(Probe::new(&control, "ok"))
}

async fn ready(State(control): State<Arc<Control>>) -> (StatusCode, Json<Probe>) {
    if control.gate.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Probe::new(&control, "draining")))
    } else {
        (StatusCode::OK, Json(Probe::new(&control, "ready")))
    }
}

async fn stats(State(control): State<Arc<Control>>) -> Json<report::Report> {
    Json(report::Report::new(&control))
}

async fn metrics(State(control): State<Arc<Control>>) -> Response {
    match metrics::text(control) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(std::fmt::Error) => {
            failure(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the metrics cannot be written as text")
        }
    }
}

async fn not_found() -> Response {
    failure(StatusCode::NOT_FOUND, "not_found", "nothing is served at this path; / lists what is")
}

async fn method_not_allowed() -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path is served to GET and HEAD")
}

/// An answer that is none: a stable code, and a sentence for people.
fn failure(status: StatusCode, error: &'static str, message: &'static str) -> Response {
    #[derive(Serialize)]
    struct Failure {
        error: &'static str,
        message: &'static str,
    }
    (status, Json(Failure { error, message })).into_response()
}

#[cfg(test)]
mod tests;
