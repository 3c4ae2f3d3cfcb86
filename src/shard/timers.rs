//! A timing wheel with one timer for each connection: handshake, heartbeat or close, whichever it is in.
//!
//! Three levels of 256 lists: milliseconds, quarter seconds, minutes. Setting, moving and taking away cost the same however
//! many there are. A timer never fires early and at most a millisecond late.

use crate::message::Slot;
use crate::time::Time;

/// One timer for each slot. Timers reach [`Wheel::AHEAD_MS_MAX`] into the future; what is set further fires then.
#[derive(Debug)]
pub struct Wheel {
    /// By slot: 12 bytes each. Grows to the highest slot that ever had a timer.
    links: Vec<Link>,
    levels: [Level; 3],
    /// Every timer due at or before this tick has fired.
    tick: u32,
    armed: usize,
}

/// A place in one of the lists. `list == NONE` exactly when the timer is not set.
#[derive(Clone, Copy, Debug)]
struct Link {
    next: Slot,
    /// The slot before, or the number of the list with `HEAD` set for the first in a list.
    before: u32,
    due: u32,
}

#[derive(Debug)]
struct Level {
    heads: [Slot; LISTS],
    /// Bit by bit, which lists are not empty.
    filled: [u64; LISTS / 64],
}

const LISTS: usize = 256;
const LIST_BITS: u32 = LISTS.trailing_zeros();
const NONE: Slot = Slot::MAX;
const HEAD: u32 = 1 << 31;

impl Wheel {
    /// How far ahead a timer can be set, in milliseconds: four and a half hours.
    pub const AHEAD_MS_MAX: u32 = (1 << (3 * LIST_BITS)) - (1 << (2 * LIST_BITS)) - 1;

    /// What a slot takes here, whether its timer is set or not.
    pub const SLOT_BYTES: usize = size_of::<Link>();

    /// A wheel that stands at `now`, with space reserved for this many slots.
    pub fn new(reserved: usize, now: Time) -> Wheel {
        let level = || Level { heads: [NONE; LISTS], filled: [0; LISTS / 64] };
        let links = Vec::with_capacity(reserved);
        Wheel { links, levels: [level(), level(), level()], tick: now.ms32(), armed: 0 }
    }

    /// Sets the timer of `slot` to fire `ahead_ms` after `now`, in place of what it was set to.
    pub fn arm(&mut self, slot: Slot, now: Time, ahead_ms: u32) {
        self.disarm(slot);
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, Link { next: NONE, before: NONE, due: 0 });
        }
        if self.armed == 0 {
            // Nothing moved the wheel while it was empty.
            self.tick = now.ms32();
        }
        // A tick more than asked for, since `now` may be anywhere within its millisecond.
        let due = now.ms32().wrapping_add(ahead_ms.min(Wheel::AHEAD_MS_MAX)).wrapping_add(1);
        self.armed += 1;
        self.link(slot, due);
    }

    /// Takes the timer of `slot` away, if it is set.
    pub fn disarm(&mut self, slot: Slot) {
        if let Some(link) = self.links.get(slot as usize)
            && link.before != NONE
        {
            self.unlink(slot);
            self.armed -= 1;
        }
    }

    /// The next slot whose timer is due at `now`; its timer is no longer set. To be called until it answers `None`.
    pub fn pop(&mut self, now: Time) -> Option<Slot> {
        loop {
            let slot = self.levels[0].heads[self.tick as usize % LISTS];
            if slot != NONE && self.links[slot as usize].due == self.tick {
                self.unlink(slot);
                self.armed -= 1;
                return Some(slot);
            }
            let ahead = self.next_event()?;
            if now.ms32().wrapping_sub(self.tick) < ahead || is_before(now.ms32(), self.tick) {
                return None;
            }
            self.tick = self.tick.wrapping_add(ahead);
            self.cascade();
        }
    }

    /// When `pop` may have something next, in milliseconds after `now`; `None` when no timer is set. It may turn out to have
    /// nothing yet: the timers of a coarser level are then sorted into a finer one.
    pub fn next_ms(&self, now: Time) -> Option<u32> {
        let due = self.tick.wrapping_add(self.next_event()?);
        Some(if is_before(due, now.ms32()) { 0 } else { due.wrapping_sub(now.ms32()) })
    }

    /// How many timers are set.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Ticks from `self.tick` to the next list that has something.
    fn next_event(&self) -> Option<u32> {
        let in_level = |level: usize| {
            let shift = LIST_BITS * level as u32;
            let at = (self.tick >> shift) as usize % LISTS;
            let lists_ahead = self.levels[level].next_filled(at)?;
            // The tick at which that list begins.
            Some((((self.tick >> shift).wrapping_add(lists_ahead as u32)) << shift).wrapping_sub(self.tick))
        };
        let soonest = (0..3).filter_map(in_level).min();
        debug_assert_eq!(soonest.is_some(), self.armed > 0);
        soonest
    }

    /// Sorts the lists that begin at `self.tick` into the finer levels.
    fn cascade(&mut self) {
        for level in [2, 1] {
            let shift = LIST_BITS * level as u32;
            if self.tick & ((1 << shift) - 1) == 0 {
                let list = (self.tick >> shift) as usize % LISTS;
                let mut slot = self.levels[level].heads[list];
                while slot != NONE {
                    let Link { next, due, .. } = self.links[slot as usize];
                    self.unlink(slot);
                    self.link(slot, due);
                    slot = next;
                }
            }
        }
    }

    fn link(&mut self, slot: Slot, due: u32) {
        // What is due already fires at this tick: when a list is sorted at the tick at which it begins, it may hold timers due then.
        let due = if is_before(due, self.tick) { self.tick } else { due };
        let ahead = due.wrapping_sub(self.tick);
        let level = match ahead {
            0..0x100 => 0,
            0x100..0x1_0000 => 1,
            _ => 2,
        };
        let list = (due >> (LIST_BITS * level as u32)) as usize % LISTS;
        let head = std::mem::replace(&mut self.levels[level].heads[list], slot);
        self.levels[level].filled[list / 64] |= 1 << (list % 64);
        if head != NONE {
            self.links[head as usize].before = slot;
        }
        self.links[slot as usize] = Link { next: head, before: HEAD | (level * LISTS + list) as u32, due };
    }

    fn unlink(&mut self, slot: Slot) {
        let Link { next, before, .. } = self.links[slot as usize];
        if next != NONE {
            self.links[next as usize].before = before;
        }
        if before & HEAD == 0 {
            self.links[before as usize].next = next;
        } else {
            let number = (before & !HEAD) as usize;
            let (level, list) = (&mut self.levels[number / LISTS], number % LISTS);
            level.heads[list] = next;
            if next == NONE {
                level.filled[list / 64] &= !(1 << (list % 64));
            }
        }
        self.links[slot as usize].before = NONE;
    }
}

impl Level {
    /// How many lists after list `at` the next filled one is, 1 to 256: `at` itself comes last, a whole round later.
    fn next_filled(&self, at: usize) -> Option<usize> {
        let start = at + 1;
        for step in 0..=LISTS / 64 {
            let word = (start / 64 + step) % (LISTS / 64);
            let mut bits = self.filled[word];
            if step == 0 {
                bits &= !0 << (start % 64);
            } else if step == LISTS / 64 {
                bits &= !(!0 << (start % 64));
            }
            if bits != 0 {
                let list = word * 64 + bits.trailing_zeros() as usize;
                return Some((list + LISTS - at - 1) % LISTS + 1);
            }
        }
        None
    }
}

/// True when tick `a` comes before tick `b`; they are less than 2^31 apart.
fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_agrees_with_a_sorted_map() {
        // Once from an ordinary start and once so that the 32-bit tick wraps on the way.
        for start_ms in [1000, (1_u64 << 32) - 30_000] {
            let mut now = Time::from_ms(start_ms);
            let mut wheel = Wheel::new(0, now);
            let mut model: BTreeMap<Slot, u64> = BTreeMap::new();
            let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ start_ms;
            let mut next = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            for _ in 0..20_000 {
                let slot = next(40) as Slot;
                match next(4) {
                    0 | 1 => {
                        let span = [5, 300, 70_000, 20_000_000][next(4) as usize];
                        let ahead_ms = next(span).min(u64::from(Wheel::AHEAD_MS_MAX));
                        wheel.arm(slot, now, ahead_ms as u32);
                        model.insert(slot, now.ms() + ahead_ms + 1);
                    }
                    2 => {
                        wheel.disarm(slot);
                        model.remove(&slot);
                    }
                    _ => {
                        let span = [3, 300, 70_000, 10_000_000][next(4) as usize];
                        now = now.plus_ms(next(span));
                        while let Some(slot) = wheel.pop(now) {
                            let due = model.remove(&slot).expect("only what was set fires");
                            assert!(due <= now.ms(), "{slot} fired {} ms early", due - now.ms());
                        }
                        assert!(model.values().all(|due| *due > now.ms()), "what is due has fired");
                    }
                }
                assert_eq!(wheel.armed(), model.len());
                match (wheel.next_ms(now), model.values().min()) {
                    (None, None) => {}
                    (Some(ahead), Some(due)) => assert!(now.ms() + u64::from(ahead) <= *due, "woken in time"),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn sleeping_until_told_fires_everything_in_order() {
        let mut now = Time::from_ms(7);
        let mut wheel = Wheel::new(0, now);
        // Those with 504 and 65,528 are due at the tick at which a list of a coarser level is sorted.
        let spans =
            [0, 1, 255, 256, 257, 504, 511, 25_000, 65_528, 65_535, 65_536, 65_537, 3_600_000, 16_000_000];
        for (slot, ahead_ms) in spans.iter().enumerate() {
            wheel.arm(slot as Slot, now, *ahead_ms);
        }
        let (mut fired, mut wakes) = (Vec::new(), 0);
        while let Some(ahead) = wheel.next_ms(now) {
            now = now.plus_ms(u64::from(ahead));
            wakes += 1;
            while let Some(slot) = wheel.pop(now) {
                assert_eq!(now.ms(), 7 + u64::from(spans[slot as usize]) + 1, "on time to the millisecond");
                fired.push(slot);
            }
        }
        assert_eq!(fired, (0..spans.len() as Slot).collect::<Vec<_>>());
        assert!(wakes <= 3 * spans.len(), "{wakes} wakes: at most one a level for each timer");
    }
}
