//! What a connection of the control port may take of time: little, until it has shown a key.

use super::Limits;
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
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
    /// Since when the head of a request is waited for; `None` while one is being answered.
    waits: Mutex<Option<Instant>>,
    /// True exactly when it counts among `seats`.
    has_key: AtomicBool,
    seats: Arc<Seats>,
}

/// What is to happen to a connection, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It has said nothing for too long, or not all: it is cut.
    Cut(Instant),
    /// It gets no further request.
    LastAnswer(Instant),
    /// Nothing while it is being answered.
    Nothing,
}

impl Seat {
    /// A connection that has just been accepted.
    pub(super) fn new(seats: Arc<Seats>) -> Seat {
        let now = Instant::now();
        Seat { began: now, waits: Mutex::new(Some(now)), has_key: AtomicBool::new(false), seats }
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
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The answer has been handed to the kernel, but for what fits the connection's buffer.
    fn answered(&self) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What is due next.
    pub(super) fn due(&self, limits: &Limits) -> Due {
        let has_key = self.has_key.load(Relaxed);
        let patience = if has_key { limits.idle_timeout } else { limits.head_timeout };
        let waits = *self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = waits.map(|since| since + patience);
        let last = (!has_key).then(|| self.began + limits.age_max);
        match (cut, last) {
            (Some(cut), Some(last)) if last < cut => Due::LastAnswer(last),
            (Some(cut), _) => Due::Cut(cut),
            (None, Some(last)) => Due::LastAnswer(last),
            (None, None) => Due::Nothing,
        }
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
