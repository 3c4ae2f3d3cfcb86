//! Answers that are kept for a while, so that a request that comes twice is carried out once.

use crate::time::Time;
use axum::body::Bytes;
use std::collections::{HashMap, VecDeque};

/// The most bytes of answers that are kept; beyond, the oldest are forgotten.
const BYTES_MAX: usize = 16 << 20;

/// The answers. Bounded in number by `most` and in bytes by [`BYTES_MAX`].
#[derive(Debug)]
pub(super) struct Replays {
    kept: HashMap<Name, Kept>,
    /// The names in `kept`, the oldest first.
    order: VecDeque<Name>,
    bytes: usize,
    most: usize,
    window_ms: u64,
}

/// Whose request it was, by the place of the key, and what it was called.
pub(super) type Name = (usize, Box<str>);

#[derive(Debug)]
struct Kept {
    /// Of all that the request said.
    digest: [u8; 32],
    body: Bytes,
    until: Time,
}

/// What is known of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    New,
    /// It was answered so.
    Answered(Bytes),
    /// Another request had this name.
    Other,
}

impl Replays {
    pub(super) fn new(most: usize, window_ms: u64) -> Replays {
        Replays { kept: HashMap::new(), order: VecDeque::new(), bytes: 0, most, window_ms }
    }

    /// What is known of the request with this name and this digest.
    pub(super) fn find(&mut self, name: &Name, digest: [u8; 32], now: Time) -> Known {
        self.forget(now);
        match self.kept.get(name) {
            None => Known::New,
            Some(kept) if kept.digest == digest => Known::Answered(kept.body.clone()),
            Some(_) => Known::Other,
        }
    }

    /// Keeps an answer to a request of which nothing was known.
    pub(super) fn keep(&mut self, name: Name, digest: [u8; 32], body: Bytes, now: Time) {
        self.bytes += size(&name, &body);
        self.order.push_back(name.clone());
        self.kept.insert(name, Kept { digest, body, until: now.plus_ms(self.window_ms) });
        self.forget(now);
    }

    fn forget(&mut self, now: Time) {
        while let Some(oldest) = self.order.front() {
            let is_over = self.kept.get(oldest).is_none_or(|kept| kept.until <= now);
            if !is_over && self.order.len() <= self.most && self.bytes <= BYTES_MAX {
                break;
            }
            if let Some(kept) = self.kept.remove(oldest) {
                self.bytes -= size(oldest, &kept.body);
            }
            self.order.pop_front();
        }
    }
}

/// Bytes that an answer takes here, about: its name stands in two places.
fn size(name: &Name, body: &Bytes) -> usize {
    2 * (size_of::<Name>() + name.1.len()) + size_of::<Kept>() + body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        (0, text.into())
    }

    #[test]
    fn an_answer_is_kept_for_its_time_and_for_its_request() {
        let mut replays = Replays::new(10, 1000);
        let at = Time::from_ms;
        assert_eq!(replays.find(&name("a"), [1; 32], at(0)), Known::New);
        replays.keep(name("a"), [1; 32], Bytes::from_static(b"done"), at(0));
        assert_eq!(replays.find(&name("a"), [1; 32], at(999)), Known::Answered(Bytes::from_static(b"done")));
        assert_eq!(replays.find(&name("a"), [2; 32], at(999)), Known::Other);
        assert_eq!(replays.find(&(1, "a".into()), [1; 32], at(999)), Known::New, "of another key");
        assert_eq!(replays.find(&name("a"), [1; 32], at(1000)), Known::New, "its time is over");
        assert_eq!((replays.kept.len(), replays.order.len(), replays.bytes), (0, 0, 0));
    }

    #[test]
    fn there_are_no_more_than_there_may_be() {
        let mut replays = Replays::new(3, 1000);
        for number in 0..10 {
            replays.keep(name(&number.to_string()), [0; 32], Bytes::new(), Time::default());
        }
        assert_eq!(replays.find(&name("6"), [0; 32], Time::default()), Known::New);
        assert!((7..10).all(|number| {
            replays.find(&name(&number.to_string()), [0; 32], Time::default())
                == Known::Answered(Bytes::new())
        }));
        let large = Bytes::from(vec![0; BYTES_MAX / 2]);
        for number in 10..13 {
            replays.keep(name(&number.to_string()), [0; 32], large.clone(), Time::default());
        }
        assert_eq!(replays.kept.len(), 1, "there is no place for the bytes of two");
        assert!(replays.bytes <= BYTES_MAX);
    }
}
