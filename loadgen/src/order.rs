//! What became of numbered messages: each stream's numbers go up by one from zero, so a number that is skipped,
//! repeated or late tells of a message that was lost, doubled or reordered.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The numbers seen on a fixed count of streams.
pub(crate) struct Order {
    /// The lowest number not yet seen or skipped, for each stream.
    next: Vec<u64>,
    /// Numbers below `next` that were skipped. Empty as long as all is well, so it may be slow.
    missing: HashMap<usize, Vec<Range<u64>>>,
    faults: Faults,
}

/// How often something went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
}

impl Order {
    pub(crate) fn new(streams: usize) -> Self {
        Self { next: vec![0; streams], missing: HashMap::new(), faults: Faults::default() }
    }

    /// Takes note of `number` on `stream`. True when it is beyond all that were seen there before.
    #[inline]
    pub(crate) fn note(&mut self, stream: usize, number: u64) -> bool {
        let next = &mut self.next[stream];
        if number == *next {
            *next += 1;
            return true;
        }
        self.note_fault(stream, number)
    }

    /// The lowest number not yet seen or skipped on `stream`.
    pub(crate) fn next(&self, stream: usize) -> u64 {
        self.next[stream]
    }

    /// The faults so far. A skipped number counts as lost until it comes after all.
    pub(crate) fn faults(&self) -> Faults {
        let skipped = self.missing.values().flatten().map(|range| range.end - range.start).sum::<u64>();
        Faults { lost: self.faults.lost + skipped, ..self.faults }
    }

    /// How many came more than once, so far.
    pub(crate) fn doubled(&self) -> u64 {
        self.faults.doubled
    }

    /// No more will come: what `stream` should have had up to `end` (exclusive) and has not is lost.
    pub(crate) fn end(&mut self, stream: usize, end: u64) {
        self.faults.lost += end.saturating_sub(self.next[stream]);
        self.next[stream] = self.next[stream].max(end);
    }

    #[cold]
    fn note_fault(&mut self, stream: usize, number: u64) -> bool {
        let next = self.next[stream];
        if number > next {
            self.missing.entry(stream).or_default().push(next..number);
            self.next[stream] = number + 1;
            return true;
        }
        let ranges = self.missing.entry(stream).or_default();
        match ranges.iter().position(|range| range.contains(&number)) {
            Some(index) => {
                let range = ranges.swap_remove(index);
                ranges.extend(
                    [range.start..number, number + 1..range.end].into_iter().filter(|r| !r.is_empty()),
                );
                self.faults.reordered += 1;
            }
            None => self.faults.doubled += 1,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(numbers: &[u64], end: u64, lost: u64, doubled: u64, reordered: u64) {
        let mut order = Order::new(2);
        for &number in numbers {
            order.note(1, number);
        }
        order.end(1, end);
        assert_eq!(order.faults(), Faults { lost, doubled, reordered }, "{numbers:?}");
    }

    #[test]
    fn faults_are_told_apart() {
        check(&[0, 1, 2, 3], 4, 0, 0, 0);
        check(&[0, 1, 3], 4, 1, 0, 0);
        check(&[0, 1, 2], 4, 1, 0, 0);
        check(&[0, 1, 1, 2, 3], 4, 0, 1, 0);
        check(&[0, 2, 1, 3], 4, 0, 0, 1);
        check(&[3, 1, 1, 2], 4, 1, 1, 2);
        check(&[], 4, 4, 0, 0);
        check(&[0, 100], 101, 99, 0, 0);
    }

    #[test]
    fn streams_do_not_mix() {
        let mut order = Order::new(2);
        assert!(order.note(0, 0) && order.note(1, 0) && order.note(0, 1));
        assert!(!order.note(1, 0));
        assert_eq!((order.next(0), order.next(1)), (2, 1));
        assert_eq!(order.faults(), Faults { lost: 0, doubled: 1, reordered: 0 });
    }
}
