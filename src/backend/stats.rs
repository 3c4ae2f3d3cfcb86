//! What is counted of the way to the backend.

use crate::bus::calls::Kind;
use crate::stats::{Counter, Gauge};

/// The numbers of requests to the backend. Written by its thread.
#[derive(Debug, Default)]
pub struct BackendStats {
    /// Requests that were answered with a status of success.
    pub answered: Counter,
    /// Requests that were not, by [`Problem::index`](super::caller::Problem::index).
    pub problems: [Counter; super::caller::Problem::LABELS.len()],
    /// What came of calls for clients: by [`Kind`], and by [`CallOutcome`].
    pub calls: [[Counter; CallOutcome::LABELS.len()]; Kind::LABELS.len()],
    /// Requests under way.
    pub under_way: Gauge,
    /// The breaker: 0 is closed, 1 half open, 2 open.
    pub breaker: Gauge,
}

/// What came of a call for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// It was answered.
    Answered,
    /// There was no answer of success.
    Failed,
    /// The answer meant nothing.
    Bad,
}

impl CallOutcome {
    /// The labels of all outcomes, in their order.
    pub const LABELS: [&'static str; 3] = ["answered", "failed", "bad"];
}
