//! The control port: what throng says about itself over HTTP, to people, probes and Prometheus, and does for backends.
//!
//! It runs beside the shards on a thread of its own. What it says by itself it reads from what they count, so a scrape costs them
//! nothing but the cache lines it looks at; backends with a key publish and ask by the [API](api). Everything a client of this port can
//! hold is bounded: how many connections there are, how long one may take over a request, and, without a key, how long it may live.

mod dump;
mod metrics;
mod process;
mod report;
mod rooms;
mod summary;

pub mod api;
mod refusal;
mod seat;

pub use dump::Dump;
pub use process::sample_memory;
pub use report::History;
pub use summary::summarize;

use crate::auth::Gate;
use crate::backend::Backend;
use crate::bridge::Bridge;
use crate::bus::Bus;
use crate::stats::Stats;
use crate::time::Clock;
use crate::token::Tokens;
use api::Api;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use refusal::Refusal;
use seat::{Seat, Seated};
use serde::Serialize;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

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
    /// What connects this process to others, if anything does.
    pub bridge: Option<Bridge>,
    /// The way to the backend, if there is one.
    pub backend: Option<Backend>,
    /// The HTTP API for backends.
    pub api: Api,
    /// What checks tokens, when there are keys.
    pub tokens: Option<Arc<Tokens>>,
    /// What is remembered of the last seconds; begins as `History::default()`, and [`serve`] fills it.
    pub history: History,
}

/// What a client of the control port may hold.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections served at once, besides those that have shown a key. Further ones wait in the kernel's queue.
    connections_max: usize,
    /// From the start of a connection, or the end of the last answer on it, to the end of the next request's head.
    head_timeout: Duration,
    /// The same for a connection that has shown a key.
    idle_timeout: Duration,
    /// The age from which on the next answer is a connection's last and says so, unless it has shown a key.
    age_max: Duration,
    /// How long an answer may take from then on, and when the port closes. A client that does not read is cut off here.
    last_answer_timeout: Duration,
}

impl Limits {
    const DEFAULT: Limits = Limits {
        connections_max: 64,
        head_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(75),
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
            accepted = listener.accept(),
                if connections.len() < limits.connections_max + control.api.seats.taken() => match accepted {
                Ok((stream, _)) => {
                    refused = false;
                    let seat = Arc::new(Seat::new(control.api.seats.clone()));
                    connections.spawn(attend(limits, stream, seat, router.clone(), stopping.clone()));
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
async fn attend(
    limits: Limits,
    stream: TcpStream,
    seat: Arc<Seat>,
    router: Router,
    mut stopping: watch::Receiver<()>,
) {
    // Answers leave at once. Without this they only leave a little later.
    stream.set_nodelay(true).ok();
    let router = TowerToHyperService::new(router);
    let serving = seat.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        serving.asked();
        request.extensions_mut().insert(serving.clone());
        let (answer, seat) = (router.call(request.map(Body::new)), serving.clone());
        async move {
            answer.await.map(|mut response| {
                seat.announce(&limits, response.headers_mut());
                response.map(|body| Seated { body, seat })
            })
        }
    });
    let mut http = http1::Builder::new();
    http.max_buf_size(Limits::BUFFER_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = loop {
        let at = seat.due(&limits).unwrap_or_else(|| Instant::now() + limits.idle_timeout);
        tokio::select! {
            ended = &mut connection => break Some(ended),
            // What was due may have changed meanwhile.
            () = sleep_until(at) => if seat.due(&limits).is_some_and(|due| due <= Instant::now()) {
                return;
            },
            // It is never sent to, so this is the sender's end.
            _ = stopping.changed() => break None,
        }
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

/// What is served at a path.
struct Route {
    /// `GET` stands for `HEAD` as well.
    method: &'static str,
    path: &'static str,
    handler: MethodRouter<Arc<Control>>,
}

impl Route {
    fn new(method: &'static str, path: &'static str, handler: MethodRouter<Arc<Control>>) -> Route {
        Route { method, path, handler }
    }
}

/// All that is served.
fn routes() -> Vec<Route> {
    let mut routes = vec![
        Route::new("GET", "/", get(index)),
        Route::new("GET", "/health", get(health)),
        Route::new("GET", "/ready", get(ready)),
        Route::new("GET", "/stats", get(stats)),
        Route::new("GET", "/metrics", get(metrics)),
        Route::new("GET", "/rooms/{room}", get(rooms::room)),
    ];
    routes.extend(api::routes());
    routes
}

/// The routes of the control port.
pub fn router(control: Arc<Control>) -> Router {
    let add = |router: Router<Arc<Control>>, route: Route| router.route(route.path, route.handler);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(control.clone(), api::count))
        .with_state(control)
}

async fn index() -> String {
    let about = concat!(
        "throng ",
        env!("CARGO_PKG_VERSION"),
        "\n\n\
         /health   is the process alive\n\
         /ready    may clients be sent here; 503 while it shuts down\n\
         /stats    all numbers, as JSON\n\
         /metrics  all numbers, for Prometheus\n\
         /rooms/a  how many are in the room a, as JSON; ?namespace=/b for another namespace\n\
         \n\
         For backends with a key:\n"
    );
    let api = api::routes().into_iter().map(|route| format!("{:4} {}\n", route.method, route.path));
    about.to_owned() + &api.collect::<String>()
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
            let message = "the metrics cannot be written as text";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message).into_response()
        }
    }
}

async fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "nothing is served at this path; / lists what is")
}

async fn method_not_allowed() -> Refusal {
    let message = "this path is served to other methods; the header Allow lists them";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

#[cfg(test)]
mod tests;
