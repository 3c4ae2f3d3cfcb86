//! What the tests stand on: the built program, clients that share no code with it, and the time.

pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod http;
pub(crate) mod manager;
pub(crate) mod numbers;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod schema;
pub(crate) mod secure;
pub(crate) mod server;

pub(crate) use client::{Client, Heard};
pub(crate) use clock::{Deadline, eventually};
pub(crate) use http::Response;
pub(crate) use manager::{Event, Manager};
pub(crate) use raw::{Raw, frame, frame_with};
pub(crate) use server::Server;

use std::time::Duration;

/// How long anything may take that is expected to happen at once. Generous, since the machine may be busy; a test that
/// passes never waits for it.
pub(crate) const WAIT: Duration = Duration::from_secs(20);
