//! The way to the backend: what throng tells it and asks it, over HTTP.
//!
//! It runs on a thread of its own, beside the data path, like the bridge: shards leave what they want in queues of the bus and never
//! wait; answers go to their mailboxes. Everything is a signed POST to a path below `backend.url`; [`caller`] sends it.

pub mod caller;
pub mod events;
pub mod said;
pub mod stats;

mod sign;

use crate::bus::Bus;
use caller::Caller;
use events::Asking;
use stats::BackendStats;
use std::sync::Arc;
use std::time::Duration;
use std::{future, io, thread};

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
    /// How much its answers may say.
    pub answers: events::Settings,
}

/// What others may know of the backend.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// What is counted of requests to it.
    pub stats: Arc<BackendStats>,
}

/// Starts the thread that speaks to the backend. It holds until the process ends.
///
/// # Errors
/// When there can be no thread. That the backend is away is none.
pub fn spawn(settings: Settings, bus: Arc<Bus>) -> io::Result<Backend> {
    let stats = Arc::new(BackendStats::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let backend = Backend { stats: stats.clone() };
    let work = move || {
        runtime.block_on(async move {
            let answers = settings.answers;
            let caller = Arc::new(Caller::new(settings, stats.clone()));
            if let Some(calls) = bus.calls().cloned() {
                tokio::spawn(Asking::new(answers, calls, caller, bus, stats).run());
            }
            future::pending::<()>().await;
        });
    };
    thread::Builder::new().name("backend".into()).spawn(work)?;
    Ok(backend)
}
