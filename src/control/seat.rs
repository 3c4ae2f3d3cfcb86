//! What a connection of the control port may take of time: little, until it has shown a key.

use super::Limits;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The connections that have shown a key, of which there may be `most`. Further ones are treated as if they had none.
#[derive(Debug)]
pub(super) struct Seats {
    taken: AtomicUsize,
    most: usize,
}

impl Seats {
    /// None taken of `most`.
    pub(super) fn new(most: usize) -> Seats {
        Seats { taken: AtomicUsize::new(0), most }
    }

    /// How many there are.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }
}

/// One connection, from accept to its end.
#[derive(Debug)]
pub(super) struct Seat {
    began: Instant,
    phase: Mutex<Phase>,
    /// True exactly when it counts among `seats`.
    has_key: AtomicBool,
    seats: Arc<Seats>,
}

/// What a connection does, and since when.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The head of a request is waited for.
    Waits(Instant),
    /// One is being answered.
    Answers(Instant),
}

impl Seat {
    /// A connection that has just been accepted.
    pub(super) fn new(seats: Arc<Seats>) -> Seat {
        let now = Instant::now();
        Seat { began: now, phase: Mutex::new(Phase::Waits(now)), has_key: AtomicBool::new(false), seats }
    }

    /// It has shown a key, and may stay, if there is a place for it.
    pub(super) fn show_key(&self) {
        if self.has_key.load(Relaxed) {
            return;
        }
        let taken = |taken| (taken < self.seats.most).then_some(taken + 1);
        if self.seats.taken.fetch_update(Relaxed, Relaxed, taken).is_ok() {
            self.has_key.store(true, Relaxed);
        }
    }

    /// A head has come.
    pub(super) fn asked(&self) {
        *self.phase() = Phase::Answers(Instant::now());
    }

    /// Says in the head of an answer whether the connection stays, and for how long without a request. Who is not told would send the next
    /// request while the connection is being closed, and not know whether it was carried out.
    pub(super) fn announce(&self, limits: &Limits, headers: &mut HeaderMap) {
        if !self.has_key.load(Relaxed) && self.began.elapsed() >= limits.age_max {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            return;
        }
        // A second less than the truth: the answer takes time to arrive, and clients look at their clocks about once a second.
        let seconds = self.patience(limits).as_secs().saturating_sub(1);
        if let Ok(value) = HeaderValue::try_from(format!("timeout={seconds}")) {
            headers.insert(HeaderName::from_static("keep-alive"), value);
        }
    }

    /// The answer has been handed to the kernel, but for what fits the connection's buffer.
    fn answered(&self) {
        *self.phase() = Phase::Waits(Instant::now());
    }

    /// When it is to be cut; `None` while one who has shown a key is being answered.
    pub(super) fn due(&self, limits: &Limits) -> Option<Instant> {
        match *self.phase() {
            // An old one, too, waits in peace: if it is closed, a request may be under way.
            Phase::Waits(since) => Some(since + self.patience(limits)),
            Phase::Answers(_) if self.has_key.load(Relaxed) => None,
            Phase::Answers(since) => {
                Some(since.max(self.began + limits.age_max) + limits.last_answer_timeout)
            }
        }
    }

    /// How long the end of a head is waited for.
    fn patience(&self, limits: &Limits) -> Duration {
        if self.has_key.load(Relaxed) { limits.idle_timeout } else { limits.head_timeout }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if *self.has_key.get_mut() {
            self.seats.taken.fetch_sub(1, Relaxed);
        }
    }
}

/// The body of an answer, which tells its connection's seat when it has been taken.
#[derive(Debug)]
pub(super) struct Seated<B> {
    pub(super) body: B,
    pub(super) seat: Arc<Seat>,
}

impl<B: Body + Unpin> Body for Seated<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Seated<B> {
    fn drop(&mut self) {
        self.seat.answered();
    }
}
