//! The numbers of what is said on each channel: given to what goes out, and looked at in what comes in. They show what was lost on the
//! way, and keep out what comes twice.

use crate::cluster::throng::Head;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

/// Channels that are counted at a time, out and in each. When there are more outbound ones, this process takes another name and all begin
/// anew; when there are more inbound ones, nothing is noticed on the others.
const CHANNELS_MAX: usize = 1 << 16;
/// Names of this process that it still knows itself by. What it has published comes back within seconds.
const NAMES_MAX: usize = 8;
/// Processes that are counted on one channel. The one that was heard first goes when there is another.
const PROCESSES_MAX: usize = 64;

/// What goes out.
#[derive(Debug)]
pub(super) struct Outbound {
    /// The numbers that this process has in envelopes, the newest last. There is one at least.
    names: VecDeque<u64>,
    /// The number of the next entry, by the channel.
    next: HashMap<String, u64>,
    channels_max: usize,
}

/// What comes in.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// By the channel, the processes that were heard on it, and the number of the next entry of each.
    next: HashMap<Vec<u8>, VecDeque<(u64, u64)>>,
}

/// What the number of an entry says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the next, or the first that is heard of this process.
    Next,
    /// So many before it have not come.
    After(u64),
    /// It has come already, or others that were published after it.
    Again,
}

impl Outbound {
    pub(super) fn new() -> Outbound {
        Outbound { names: [random()].into(), next: HashMap::new(), channels_max: CHANNELS_MAX }
    }

    /// Counts the next entry on a channel. Answers the head of an envelope that begins with it.
    pub(super) fn count(&mut self, channel: &str) -> Head {
        if !self.next.contains_key(channel) {
            if self.next.len() >= self.channels_max {
                self.next.clear();
                self.names.push_back(random());
                if self.names.len() > NAMES_MAX {
                    self.names.pop_front();
                }
            }
            self.next.insert(channel.to_owned(), 0);
        }
        let process = self.names.back().copied().unwrap_or_default();
        let next = self.next.get_mut(channel).map_or(0, |next| {
            *next += 1;
            *next - 1
        });
        Head { process, sequence: next }
    }

    /// True for what this process has published itself.
    pub(super) fn is_own(&self, head: Head) -> bool {
        self.names.contains(&head.process)
    }
}

impl Inbound {
    /// Counts an entry of a process on a channel.
    pub(super) fn count(&mut self, channel: &[u8], process: u64, sequence: u64) -> Place {
        if !self.next.contains_key(channel) {
            if self.next.len() >= CHANNELS_MAX {
                return Place::Next;
            }
            self.next.insert(channel.to_vec(), VecDeque::new());
        }
        let Some(processes) = self.next.get_mut(channel) else { return Place::Next };
        let Some((_, next)) = processes.iter_mut().find(|(known, _)| *known == process) else {
            if processes.len() >= PROCESSES_MAX {
                processes.pop_front();
            }
            processes.push_back((process, sequence.wrapping_add(1)));
            return Place::Next;
        };
        let expected = *next;
        if sequence < expected {
            return Place::Again;
        }
        *next = sequence.wrapping_add(1);
        if sequence == expected { Place::Next } else { Place::After(sequence - expected) }
    }

    /// Nobody listens to this channel any more, or somebody does again: what is heard next is the first.
    pub(super) fn forget(&mut self, channel: &str) {
        self.next.remove(channel.as_bytes());
    }
}

/// A number that nobody else has.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_is_counted_by_itself() {
        let mut outbound = Outbound::new();
        let numbers = ["a", "b", "a", "a", "b"].map(|channel| outbound.count(channel).sequence);
        assert_eq!(numbers, [0, 0, 1, 2, 1]);
    }

    #[test]
    fn too_many_channels_begin_anew_under_another_name() {
        let mut outbound = Outbound { channels_max: 2, ..Outbound::new() };
        let first = outbound.count("a");
        outbound.count("a");
        outbound.count("b");
        let third = outbound.count("c");
        assert_ne!(third.process, first.process);
        assert_eq!((third.sequence, outbound.count("a").sequence), (0, 0));
        assert!(outbound.is_own(first) && outbound.is_own(third), "what is under way still comes back");
        assert!(!outbound.is_own(Head { process: first.process ^ 1, sequence: 0 }));
        for channel in 0..100 {
            outbound.count(&channel.to_string());
        }
        assert!(outbound.names.len() <= NAMES_MAX && outbound.next.len() <= 2);
    }

    #[test]
    fn what_is_missing_and_what_comes_twice_is_noticed() {
        let mut inbound = Inbound::default();
        let mut at = |channel: &str, process, sequence| inbound.count(channel.as_bytes(), process, sequence);
        assert_eq!(at("a", 1, 40), Place::Next, "what is heard first sets the number");
        assert_eq!(
            [at("a", 1, 41), at("a", 1, 41), at("a", 1, 40)],
            [Place::Next, Place::Again, Place::Again]
        );
        assert_eq!([at("a", 1, 45), at("a", 1, 46)], [Place::After(3), Place::Next]);
        assert_eq!([at("b", 1, 7), at("a", 2, 0), at("a", 2, 1)], [Place::Next; 3], "others are others");
        inbound.forget("a");
        assert_eq!(inbound.count(b"a", 1, 90), Place::Next);
    }
}
