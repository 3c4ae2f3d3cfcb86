//! What is logged of the way to the backend: briefly, since others have a say in how long it is, and once in a while, since it comes in floods.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What is logged of a text, in bytes.
const BRIEF_BYTES_MAX: usize = 100;

/// The beginning of a text that others have a say in.
pub(super) fn brief(text: &str) -> Cow<'_, str> {
    if text.len() <= BRIEF_BYTES_MAX {
        return text.into();
    }
    let end = text.floor_char_boundary(BRIEF_BYTES_MAX);
    format!("{}…", &text[..end]).into()
}

/// A pause in the log after each line of a kind.
#[derive(Debug)]
pub(super) struct LogPause {
    pause: Duration,
    until: Mutex<Option<Instant>>,
}

impl LogPause {
    /// Nothing has been logged yet.
    pub(super) fn new(pause: Duration) -> LogPause {
        LogPause { pause, until: Mutex::default() }
    }

    /// True when something may be logged now. The pause begins with that.
    pub(super) fn is_over(&self) -> bool {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = until.is_none_or(|until| now >= until);
        if is_over {
            *until = Some(now + self.pause);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_others_is_cut_between_letters() {
        assert_eq!(brief(&"x".repeat(100)), "x".repeat(100));
        assert_eq!(brief(&"x".repeat(101)), format!("{}…", "x".repeat(100)));
        assert_eq!(brief(&"é".repeat(60_000)), format!("{}…", "é".repeat(50)));
        assert_eq!(brief(&format!("x{}", "é".repeat(60))), format!("x{}…", "é".repeat(49)));
    }

    #[test]
    fn a_line_is_followed_by_a_pause() {
        let long = LogPause::new(Duration::from_secs(3_600));
        assert_eq!((long.is_over(), long.is_over()), (true, false));
        let none = LogPause::new(Duration::ZERO);
        assert_eq!((none.is_over(), none.is_over()), (true, true));
    }
}
