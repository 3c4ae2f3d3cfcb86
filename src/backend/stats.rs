//! What is counted of the way to the backend.

use crate::stats::{Counter, Gauge};

/// The numbers of requests to the backend. Written by its thread.
#[derive(Debug, Default)]
pub struct BackendStats {
    /// Requests that were answered with a status of success.
    pub answered: Counter,
    /// Requests that were not, by [`Problem::index`](super::caller::Problem::index).
    pub problems: [Counter; super::caller::Problem::LABELS.len()],
    /// Requests under way.
    pub under_way: Gauge,
    /// The breaker: 0 is closed, 1 half open, 2 open.
    pub breaker: Gauge,
}
