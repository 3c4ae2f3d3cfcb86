//! Time in the tests: bounds, and waiting for a condition. The only place that reads the clock or sleeps.

use super::WAIT;
use std::time::{Duration, Instant};

/// How long to wait between two looks at a condition.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A point in time up to which something may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Deadline {
        Deadline(now() + time)
    }

    /// What is left until then, zero when it has passed.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tests measure the program from outside, by the real clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Looks again and again until `look` finds something, and answers that.
///
/// # Panics
/// When `what` has not come true within [`WAIT`].
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(WAIT);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(!deadline.is_over(), "not within {WAIT:?}: {what}");
        rest(LOOK_AGAIN);
    }
}

/// Lets time pass, for what is about time itself: between two looks, or while somebody is meant to be idle.
#[expect(clippy::disallowed_methods, reason = "the one pause of the tests")]
pub(crate) fn rest(time: Duration) {
    std::thread::sleep(time);
}
