//! What the link to Redis counts. It is read from outside while it changes, like the numbers of the shards.

use super::channels::Dropped;
use super::fault::FaultKind;
use crate::stats::{Counter, Gauge};

/// The numbers of one link. Each is written by the thread of the link or inside the lock on its lanes, so there is one writer at
/// a time.
#[derive(Debug, Default)]
pub struct LinkStats {
    /// Publications that Redis has confirmed.
    pub published: Counter,
    /// Publications that were given up, by [`Loss::index`].
    pub lost: [Counter; Loss::LABELS.len()],
    /// Messages received, those of the watchdog not included.
    pub received: Counter,
    /// Connections that were made anew after one was lost or could not be made.
    pub reconnects: Counter,
    /// Faults, by [`FaultKind::index`]; of publications that Redis refuses, each.
    pub faults: [Counter; FaultKind::LABELS.len()],
    /// Publications that wait or are under way.
    pub waiting: Gauge,
    /// Their bytes, with what each costs beside its own.
    pub waiting_bytes: Gauge,
    /// Channels and patterns that Redis has confirmed subscriptions to.
    pub subscriptions: Gauge,
    /// Channels and patterns that somebody wants.
    pub subscriptions_wanted: Gauge,
    /// Servers that are published to: one, or the masters of a cluster.
    pub servers: Gauge,
    /// How many of them can be published to and heard.
    pub servers_up: Gauge,
    /// The breaker of the server that is worst off, by [`Breaker::index`].
    pub breaker: Gauge,
}

/// The numbers of the bridge above the link. Written by its thread.
#[derive(Debug, Default)]
pub struct BridgeStats {
    /// Events of other processes that were delivered here.
    pub events: Counter,
    /// Those that were not because a mailbox was full.
    pub overloads: Counter,
    /// What others wanted done to sockets here, or to know of them, and was not, because too much of that was under way.
    pub refused: Counter,
    /// Messages that could not be read.
    pub malformed: Counter,
    /// Entries of envelopes of a kind that is not known.
    pub unknown: Counter,
    /// Events of other throngs that are known not to have come, by their numbers. Those of a gap are among them.
    pub missed: Counter,
    /// Events of other throngs that came twice, and were delivered once.
    pub repeated: Counter,
    /// Times in which events of other processes may have been missed.
    pub gaps: Counter,
    /// Messages that came on channels of applications.
    pub channel_messages: Counter,
    /// What was to be made of them and was not, by [`Dropped::index`].
    pub channel_dropped: [Counter; Dropped::LABELS.len()],
    /// Calls that told Redis what was used of limits on events.
    pub limit_batches: Counter,
    /// Those of them that failed.
    pub limit_batches_failed: Counter,
}

/// Why a publication did not get to Redis, or may not have got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// As many publications or bytes as may wait were waiting.
    Full,
    /// The breaker is open, or opened while it waited.
    Down,
    /// It was under way when the connection ended or the answer took too long. It may have arrived, so it is not sent again.
    Unknown,
    /// Redis answered with an error.
    Refused,
}

impl Loss {
    /// The labels of all reasons, in the order of [`Loss::index`].
    pub const LABELS: [&'static str; 4] = ["full", "down", "unknown", "refused"];

    /// The place of this reason in [`Loss::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Whether publications are taken for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breaker {
    /// They are: the server answers, or has not failed often enough yet.
    Closed,
    /// They are not, and the server is being tried.
    HalfOpen,
    /// They are not, until the server is tried again.
    Open,
}

impl Breaker {
    /// The labels of all states, in the order of [`Breaker::index`].
    pub const LABELS: [&'static str; 3] = ["closed", "half_open", "open"];

    /// The place of this state in [`Breaker::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }
}
