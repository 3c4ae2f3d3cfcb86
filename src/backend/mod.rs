//! The way to the backend: what throng tells it and asks it, over HTTP.
//!
//! It runs on a thread of its own, beside the data path, like the bridge: shards leave what they want in queues of the bus and never
//! wait; answers go to their mailboxes. Everything is a signed POST to a path below `backend.url`; [`caller`] sends it.

pub mod caller;
pub mod callout;
pub mod events;
pub mod said;
pub mod stats;
pub mod webhooks;

mod log;
mod sign;
mod stream;

use crate::bridge::Bridge;
use crate::bus::Bus;
use crate::bus::notices::Notices;
use crate::time::Clock;
use arc_swap::ArcSwap;
use caller::Caller;
use events::Asking;
use stats::BackendStats;
use std::sync::Arc;
use std::time::Duration;
use std::{future, io, thread};
use stream::Stream;
use webhooks::Way;

/// How the backend is reached.
#[derive(Clone)]
pub struct Settings {
    /// What all paths are below, without a slash at its end.
    pub url: String,
    /// What requests are signed with; empty for no signature.
    pub secret: String,
    /// From the request to the end of its answer.
    pub timeout: Duration,
    /// Requests under way at a time. Further ones wait, within their own time.
    pub requests_max: usize,
    /// The longest answer that is read, in bytes.
    pub answer_bytes_max: usize,
    /// Failures one after the other that open the breaker.
    pub failures_max: u32,
    /// How long nothing is tried then.
    pub rest: Duration,
    /// How much its answers may say. Looked at for each.
    pub answers: Arc<ArcSwap<events::Settings>>,
}

/// What others may know of the backend.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// What is counted of requests to it.
    pub stats: Arc<BackendStats>,
    /// How much its answers may say, which may be exchanged.
    pub answers: Arc<ArcSwap<events::Settings>>,
}

/// Notices that are to go out.
pub struct Webhooks {
    /// Where they wait.
    pub notices: Arc<Notices>,
    /// What knows the ids in them.
    pub bus: Arc<Bus>,
    /// The clock of the process.
    pub clock: Clock,
    /// How they go out.
    pub settings: webhooks::Settings,
}

/// Starts the thread that speaks to the backend, and posts `webhooks` to it. It holds until the process ends.
///
/// # Errors
/// When there can be no thread. That the backend is away is none.
pub fn spawn(
    settings: Settings,
    bus: Arc<Bus>,
    callouts: Option<callout::Parts>,
    webhooks: Option<Webhooks>,
) -> io::Result<Backend> {
    let stats = Arc::new(BackendStats::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let backend = Backend { stats: stats.clone(), answers: settings.answers.clone() };
    let work = move || {
        runtime.block_on(async move {
            let answers = settings.answers.clone();
            let caller = Arc::new(Caller::new(settings, callouts.is_some(), stats.clone()));
            webhooks.map(|webhooks| tokio::spawn(webhooks.deliver(Way::Post(caller.clone()))));
            callouts.map(|parts| tokio::spawn(callout::run(parts, caller.clone())));
            if let Some(calls) = bus.calls().cloned() {
                tokio::spawn(Asking::new(answers, calls, caller, bus, stats).run());
            }
            future::pending::<()>().await;
        });
    };
    thread::Builder::new().name("backend".into()).spawn(work)?;
    Ok(backend)
}

/// Has webhooks added to the stream `key` of the Redis that the bridge holds, on its thread. About `entries_max` entries are kept, 0 for
/// all.
pub fn add_to_stream(bridge: &Bridge, webhooks: Webhooks, key: String, entries_max: u32) {
    bridge.spawn(|link| webhooks.deliver(Way::Add(Stream::new(link, key, entries_max))));
}

impl Webhooks {
    async fn deliver(self, way: Way) {
        webhooks::deliver(way, self.notices, self.bus, self.clock, self.settings).await;
    }
}
