//! The numbers of what is said on each channel: given to what goes out, and looked at in what comes in. They show what was lost on the
//! way, and keep out what comes twice.

use crate::cluster::throng::Head;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

/// Channels that are counted at a time, out and in each. When there are more outbound ones, this process takes another number and all begin
/// anew; when there are more inbound ones, nothing is noticed on the others.
const CHANNELS_MAX: usize = 1 << 16;
/// Bits of a process's number that change when it takes another. By the rest it knows itself.
const CHANGING_BITS: u32 = 16;
/// Processes that are counted on one channel. The one that was heard first goes when there is another.
const PROCESSES_MAX: usize = 64;

/// What goes out.
#[derive(Debug)]
pub(super) struct Outbound {
    /// The number that this process has in envelopes.
    process: u64,
    /// The number of the next entry, by the channel.
    next: HashMap<String, u64>,
    channels_max: usize,
}

/// What comes in.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// By the channel, for those that are listened to, the processes that were heard on it, and the number of the next entry of each.
    next: HashMap<Vec<u8>, VecDeque<(u64, u64)>>,
}

impl Outbound {
    pub(super) fn new() -> Outbound {
        Outbound { process: random(), next: HashMap::new(), channels_max: CHANNELS_MAX }
    }

    /// Counts an envelope of so many entries on a channel. Answers its head.
    pub(super) fn count(&mut self, channel: &str, entries: u64) -> Head {
        if !self.next.contains_key(channel) {
            if self.next.len() >= self.channels_max {
                self.next.clear();
                let changing = (1 << CHANGING_BITS) - 1;
                self.process = self.process & !changing | self.process.wrapping_add(1) & changing;
            }
            self.next.insert(channel.to_owned(), 0);
        }
        let sequence = self.next.get_mut(channel).map_or(0, |next| {
            *next += entries;
            *next - entries
        });
        Head { process: self.process, sequence }
    }

    /// True for what this process has published itself.
    pub(super) fn is_own(&self, head: Head) -> bool {
        head.process >> CHANGING_BITS == self.process >> CHANGING_BITS
    }
}

impl Inbound {
    /// The number of the next entry of a process on a channel. `None` when nothing has been heard of it: then any may be the next. What has
    /// a lower number has come already, or is behind others that were published after it.
    pub(super) fn expected(&self, channel: &[u8], process: u64) -> Option<u64> {
        let processes = self.next.get(channel)?;
        processes.iter().find(|(known, _)| *known == process).map(|(_, next)| *next)
    }

    /// An envelope has been read, up to before the entry of number `next`.
    pub(super) fn heard(&mut self, channel: &[u8], process: u64, next: u64) {
        let Some(processes) = self.next.get_mut(channel) else { return };
        match processes.iter_mut().find(|(known, _)| *known == process) {
            Some((_, expected)) => *expected = next.max(*expected),
            None => {
                if processes.len() >= PROCESSES_MAX {
                    processes.pop_front();
                }
                processes.push_back((process, next));
            }
        }
    }

    /// Somebody listens to this channel now, or nobody does any more: what is heard next is the first.
    pub(super) fn follow(&mut self, channel: &str, begun: bool) {
        if !begun {
            self.next.remove(channel.as_bytes());
        } else if self.next.len() < CHANNELS_MAX {
            self.next.insert(channel.into(), VecDeque::new());
        }
    }
}

/// A number that nobody else has, and nobody foresees.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_is_counted_by_itself() {
        let mut outbound = Outbound::new();
        let numbers = ["a", "b", "a", "a", "b"].map(|channel| outbound.count(channel, 1).sequence);
        assert_eq!(numbers, [0, 0, 1, 2, 1]);
        assert_eq!(outbound.count("b", 5).sequence, 2);
        assert_eq!(outbound.count("b", 1).sequence, 7);
    }

    #[test]
    fn too_many_channels_begin_anew_under_another_name() {
        let mut outbound = Outbound { channels_max: 2, ..Outbound::new() };
        let first = outbound.count("a", 1);
        outbound.count("a", 1);
        outbound.count("b", 1);
        let third = outbound.count("c", 1);
        assert_ne!(third.process, first.process);
        assert_eq!((third.sequence, outbound.count("a", 1).sequence), (0, 0));
        assert!(outbound.is_own(first) && outbound.is_own(third), "what is under way still comes back");
        assert!(!outbound.is_own(Head { process: first.process ^ 1 << CHANGING_BITS, sequence: 0 }));
        for channel in 0..100 {
            outbound.count(&channel.to_string(), 1);
        }
        assert!(outbound.is_own(first) && outbound.next.len() <= 2);
    }

    #[test]
    fn what_is_missing_and_what_comes_twice_is_noticed() {
        let mut inbound = Inbound::default();
        let hear = |inbound: &mut Inbound, channel: &str, process, next| {
            let expected = inbound.expected(channel.as_bytes(), process);
            inbound.heard(channel.as_bytes(), process, next);
            expected
        };
        assert_eq!(hear(&mut inbound, "a", 1, 41), None);
        assert_eq!(hear(&mut inbound, "a", 1, 41), None, "nobody listens there");
        inbound.follow("a", true);
        inbound.follow("b", true);
        assert_eq!(hear(&mut inbound, "a", 1, 41), None, "what is heard first sets the number");
        assert_eq!(hear(&mut inbound, "a", 1, 43), Some(41));
        assert_eq!(hear(&mut inbound, "a", 1, 42), Some(43));
        assert_eq!(hear(&mut inbound, "a", 1, 44), Some(43), "what comes again does not set it back");
        assert_eq!(hear(&mut inbound, "b", 1, 8), None, "others are others");
        assert_eq!(hear(&mut inbound, "a", 2, 1), None);
        inbound.follow("a", false);
        assert_eq!(inbound.expected(b"a", 1), None);
    }
}
