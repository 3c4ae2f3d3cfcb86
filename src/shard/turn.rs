//! The turn's arena: frames encoded once, and for each connection which of them it gets.
//!
//! A frame for a thousand connections stands here once. What a connection has pending is a chain of ranges; frames that were
//! encoded one behind the other for the same connection are one range, so that sixteen events to a room leave as one plain
//! `send` of one piece of memory. When all that is due has been flushed, the arena is empty again.
//!
//! With a linger, an event for a connection that was written to within the linger waits, and the arena lives on: what waits leaves
//! together, at the latest a linger after the first of it came. A connection that has been quiet gets its event at once.

use super::conn::{Conn, Due};
use crate::dialect::Dialect;
use crate::message::Slot;
use crate::time::Time;
use crate::wire::frame::{self, Opcode};
use smallvec::SmallVec;
use std::io::IoSlice;
use std::ops::Range;

/// Frames on their way out. Soft bound [`ARENA_BYTES_MAX`]: above it, [`Turn::is_full`] asks for a flush before more is put in.
#[derive(Debug)]
pub struct Turn {
    bytes: Vec<u8>,
    nodes: Vec<Node>,
    /// Connections to flush, in the order in which they came due, and how far the flush of this turn is.
    dirty: Vec<Slot>,
    flushed: usize,
    /// Connections that wait for the end of the linger. May name some that have been flushed or released since.
    lingering: Vec<Slot>,
    /// When they have waited long enough; `None` exactly when there are none.
    linger_end: Option<Time>,
    linger_ms: u32,
    /// When this turn began.
    now: Time,
    /// True in a turn in which what lingered is due: then nothing begins to linger, so that the arena is empty after it.
    linger_ends: bool,
    /// Turns since the arena was last shrunk, and the most bytes that one of them needed.
    turns: u32,
    bytes_peak: usize,
}

/// A range of the arena, and the next one for the same connection.
#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    end: u32,
    next: u32,
}

/// What a connection has in the arena: the first and the last of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    head: u32,
    tail: u32,
}

impl Pending {
    /// Nothing.
    pub const NONE: Pending = Pending { head: NONE, tail: NONE };

    /// True when there is nothing.
    pub fn is_none(self) -> bool {
        self.head == NONE
    }
}

const NONE: u32 = u32::MAX;

/// When the arena holds this many bytes, it is flushed before more mail is delivered.
pub const ARENA_BYTES_MAX: usize = 4 << 20;
/// When there are this many ranges, likewise: 12 MB of them. Rooms whose events alternate need one for each member and event.
const NODES_MAX: usize = 1 << 20;
/// Capacity that an empty arena keeps, in bytes. What a burst needed beyond that is given back after some turns that did not need it;
/// given back each time, the pages would have to be fetched anew by every turn of a busy server.
const KEPT_BYTES: usize = 256 << 10;
/// How many turns that is.
const SHRINK_TURNS: u32 = 64;
/// The most ranges one write hands to the kernel. `writev` takes 1,024.
const RANGES_MAX: usize = 64;

/// What to write to a connection.
#[derive(Debug)]
pub enum Gathered<'a> {
    /// Nothing now.
    Nothing,
    /// One piece of memory: a plain send.
    One(&'a [u8]),
    /// Several.
    Many(SmallVec<[IoSlice<'a>; 8]>),
}

impl Turn {
    /// An empty arena. `linger_ms` 0: everything is flushed at the end of its turn.
    pub fn new(linger_ms: u32) -> Turn {
        Turn {
            bytes: Vec::new(),
            nodes: Vec::new(),
            dirty: Vec::new(),
            flushed: 0,
            lingering: Vec::new(),
            linger_end: None,
            linger_ms,
            now: Time::default(),
            linger_ends: false,
            turns: 0,
            bytes_peak: 0,
        }
    }

    /// A turn begins. True when what lingers is due: see [`Turn::end_linger`].
    pub fn begin(&mut self, now: Time) -> bool {
        self.now = now;
        self.linger_ends = self.linger_end.is_some_and(|end| end <= now);
        self.linger_ends
    }

    /// Hands out the connections that linger, for the caller to [`Turn::hurry`] those that are still there.
    pub fn end_linger(&mut self) -> Vec<Slot> {
        self.linger_end = None;
        self.linger_ends = true;
        std::mem::take(&mut self.lingering)
    }

    /// When this turn began.
    pub fn now(&self) -> Time {
        self.now
    }

    /// When what lingers is due.
    pub fn linger_end(&self) -> Option<Time> {
        self.linger_end
    }

    /// True when the arena should be flushed before more is put in.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= ARENA_BYTES_MAX || self.nodes.len() >= NODES_MAX
    }

    /// True when it is half as full as that.
    pub fn is_half_full(&self) -> bool {
        self.bytes.len() >= ARENA_BYTES_MAX / 2 || self.nodes.len() >= NODES_MAX / 2
    }

    /// True when nothing is pending from an earlier turn.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True when connections are due that were not asked for.
    pub fn has_unflushed(&self) -> bool {
        self.flushed < self.dirty.len()
    }

    /// Encodes a frame whose payload `write` appends, and answers where it stands.
    pub fn encode(&mut self, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) -> Range<u32> {
        let start = self.bytes.len();
        // Most messages need a header of four bytes; when another is needed the payload is moved.
        self.bytes.extend_from_slice(&[0; 4]);
        write(&mut self.bytes);
        let payload_bytes = self.bytes.len() - start - 4;
        let (header, used) = frame::header(opcode, payload_bytes);
        match used {
            4 => self.bytes[start..start + 4].copy_from_slice(&header[..4]),
            _ => drop(self.bytes.splice(start..start + 4, header[..used].iter().copied())),
        }
        self.since(start)
    }

    /// Encodes a frame with this payload, and answers where it stands.
    #[inline]
    pub fn copy(&mut self, opcode: Opcode, payload: &[u8]) -> Range<u32> {
        let start = self.bytes.len();
        let (header, used) = frame::header(opcode, payload.len());
        self.bytes.extend_from_slice(&header[..used]);
        self.bytes.extend_from_slice(payload);
        self.since(start)
    }

    /// Puts in bytes that are no frame: an HTTP answer, which `write` appends.
    pub fn raw(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<u32> {
        let start = self.bytes.len();
        write(&mut self.bytes);
        self.since(start)
    }

    fn since(&self, start: usize) -> Range<u32> {
        start as u32..self.bytes.len() as u32
    }

    /// Gives `range` to a connection. It leaves at the end of the turn; with `may_linger` it waits when the connection was flushed
    /// less than a linger ago.
    #[inline]
    pub fn give(&mut self, conn: &mut Conn, slot: Slot, range: &Range<u32>, may_linger: bool) {
        match self.nodes.get_mut(conn.pending.tail as usize) {
            Some(tail) if tail.end == range.start => tail.end = range.end,
            _ => {
                let node = Node { start: range.start, end: range.end, next: NONE };
                let at = self.nodes.len() as u32;
                match self.nodes.get_mut(conn.pending.tail as usize) {
                    Some(tail) => tail.next = at,
                    None => conn.pending.head = at,
                }
                conn.pending.tail = at;
                self.nodes.push(node);
            }
        }
        if conn.due == Due::No && may_linger && self.lingers(conn) {
            conn.due = Due::Later;
            self.lingering.push(slot);
            self.linger_end.get_or_insert(self.now.plus_ms(self.linger_ms.into()));
        } else if conn.due == Due::No || !may_linger {
            self.hurry(conn, slot);
        }
    }

    /// True when an event for a connection to which nothing is due has to wait.
    fn lingers(&self, conn: &Conn) -> bool {
        !self.linger_ends && self.now.ms32().wrapping_sub(conn.flushed_ms) < self.linger_ms
    }

    /// Makes a connection due at the end of this turn.
    pub fn hurry(&mut self, conn: &mut Conn, slot: Slot) {
        if conn.due != Due::Now {
            conn.due = Due::Now;
            self.dirty.push(slot);
        }
    }

    /// The next connection to flush.
    #[inline]
    pub fn next_dirty(&mut self) -> Option<Slot> {
        let slot = self.dirty.get(self.flushed).copied();
        self.flushed += usize::from(slot.is_some());
        slot
    }

    /// What a connection has pending, for one write.
    #[inline]
    pub fn gather(&self, pending: Pending) -> Gathered<'_> {
        let Some(head) = self.nodes.get(pending.head as usize) else { return Gathered::Nothing };
        if head.next == NONE {
            return Gathered::One(self.range(*head));
        }
        Gathered::Many(self.ranges(pending).take(RANGES_MAX).map(IoSlice::new).collect())
    }

    /// The kernel took `count` bytes of what a connection has pending: what is left of it. With a `dialect`, the ranges hold whole
    /// messages of it; without, they hold something else (an HTTP answer), and all that is left counts as cut.
    pub fn after(&self, pending: Pending, count: usize, dialect: Option<Dialect>) -> Leftover<'_> {
        let mut taken = count;
        let mut leftover = Leftover::default();
        for range in self.ranges(pending) {
            if taken >= range.len() {
                taken -= range.len();
                continue;
            }
            let Some(dialect) = dialect else {
                leftover.cut.push(&range[std::mem::take(&mut taken)..]);
                continue;
            };
            // Walk to the message that the kernel stopped in.
            let mut frames = range;
            while taken > 0 {
                let length = dialect.message_len(frames).min(frames.len());
                if taken < length {
                    leftover.cut.push(&frames[taken..length]);
                }
                taken = taken.saturating_sub(length);
                frames = &frames[length..];
            }
            if !frames.is_empty() {
                leftover.frames.push(frames);
            }
        }
        leftover
    }

    /// The kernel took all that [`Turn::gather`] handed out: what is pending after that.
    #[inline]
    pub fn rest(&self, pending: Pending) -> Pending {
        let mut head = pending.head;
        for _ in 0..RANGES_MAX {
            let Some(node) = self.nodes.get(head as usize) else { return Pending::NONE };
            head = node.next;
        }
        Pending { head, tail: if head == NONE { NONE } else { pending.tail } }
    }

    /// A connection has been flushed, as far as it could be.
    #[inline]
    pub fn flushed(&self, conn: &mut Conn) {
        conn.pending = Pending::NONE;
        conn.due = Due::No;
        conn.flushed_ms = self.now.ms32();
    }

    /// Everything that was due has been flushed, or as much as one turn should.
    pub fn end(&mut self) {
        self.dirty.drain(..self.flushed);
        self.flushed = 0;
        if self.lingering.is_empty() && self.dirty.is_empty() {
            self.bytes_peak = self.bytes_peak.max(self.bytes.len());
            self.bytes.clear();
            self.nodes.clear();
            self.turns += 1;
            if self.turns == SHRINK_TURNS {
                self.bytes.shrink_to(self.bytes_peak.max(KEPT_BYTES));
                self.nodes.shrink_to(KEPT_BYTES / size_of::<Node>());
                self.dirty.shrink_to(KEPT_BYTES / size_of::<Slot>());
                (self.turns, self.bytes_peak) = (0, 0);
            }
        }
    }

    fn ranges(&self, pending: Pending) -> impl Iterator<Item = &[u8]> {
        let mut at = pending.head;
        std::iter::from_fn(move || {
            let node = self.nodes.get(at as usize)?;
            at = node.next;
            Some(self.range(*node))
        })
    }

    fn range(&self, node: Node) -> &[u8] {
        &self.bytes[node.start as usize..node.end as usize]
    }
}

/// What the kernel left of a write.
#[derive(Debug, Default)]
pub struct Leftover<'a> {
    /// What must follow in any case: the rest of a message whose beginning is gone.
    pub cut: SmallVec<[&'a [u8]; 1]>,
    /// Frames of whole messages.
    pub frames: SmallVec<[&'a [u8]; 4]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn() -> Conn {
        Conn::new(0, Default::default(), Time::default())
    }

    fn written(gathered: &Gathered<'_>) -> Vec<u8> {
        match gathered {
            Gathered::Nothing => Vec::new(),
            Gathered::One(bytes) => bytes.to_vec(),
            Gathered::Many(slices) => slices.iter().flat_map(|slice| slice.to_vec()).collect(),
        }
    }

    #[test]
    fn frames_encoded_one_behind_the_other_are_one_piece() {
        let mut turn = Turn::new(0);
        let (mut one, mut two) = (conn(), conn());
        let first = turn.copy(Opcode::Text, b"first");
        turn.give(&mut one, 1, &first, true);
        turn.give(&mut two, 2, &first, true);
        let second = turn.encode(Opcode::Text, |out| out.extend_from_slice(&[b'x'; 200]));
        turn.give(&mut one, 1, &second, true);
        let third = turn.encode(Opcode::Text, |out| out.extend_from_slice(b"third"));
        turn.give(&mut one, 1, &third, true);
        turn.give(&mut two, 2, &third, true);
        let expected =
            [&[0x81, 5][..], b"first", &[0x81, 126, 0, 200], &[b'x'; 200], &[0x81, 5], b"third"].concat();
        match turn.gather(one.pending) {
            Gathered::One(bytes) => assert_eq!(bytes, expected),
            other => panic!("{other:?}"),
        }
        match turn.gather(two.pending) {
            Gathered::Many(slices) => assert_eq!(slices.len(), 2),
            other => panic!("{other:?}"),
        }
        assert!(turn.rest(two.pending).is_none(), "all of it was handed out");
        assert_eq!((turn.next_dirty(), turn.next_dirty(), turn.next_dirty()), (Some(1), Some(2), None));
    }

    #[test]
    fn more_ranges_than_one_write_takes_are_written_in_turn() {
        let mut turn = Turn::new(0);
        let mut one = conn();
        let mut expected = Vec::new();
        for number in 0..150_u8 {
            let range = turn.copy(Opcode::Binary, &[number]);
            turn.give(&mut one, 1, &range, true);
            expected.extend_from_slice(&[0x82, 1, number]);
            turn.copy(Opcode::Binary, b"for another");
        }
        let (mut pending, mut bytes, mut writes) = (one.pending, Vec::new(), 0);
        while !pending.is_none() {
            bytes.extend(written(&turn.gather(pending)));
            pending = turn.rest(pending);
            writes += 1;
        }
        assert_eq!((bytes, writes), (expected, 3));
    }

    #[test]
    fn a_header_of_ten_bytes_moves_the_payload() {
        let mut turn = Turn::new(0);
        let mut one = conn();
        let range = turn.encode(Opcode::Binary, |out| out.resize(out.len() + 70_000, 7));
        turn.give(&mut one, 1, &range, true);
        let bytes = written(&turn.gather(one.pending));
        assert_eq!(&bytes[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        assert_eq!(&bytes[10..], vec![7; 70_000]);
    }

    #[test]
    fn leftovers_are_the_rest_of_a_frame_and_whole_frames() {
        let mut turn = Turn::new(0);
        let (mut one, mut other) = (conn(), conn());
        for payload in [b"aaa", b"bbb"] {
            let range = turn.copy(Opcode::Text, payload);
            turn.give(&mut one, 1, &range, true);
        }
        let gap = turn.copy(Opcode::Text, b"for another");
        turn.give(&mut other, 2, &gap, true);
        let range = turn.copy(Opcode::Text, b"ccc");
        turn.give(&mut one, 1, &range, true);
        let whole = written(&turn.gather(one.pending));
        assert_eq!(whole.len(), 15);
        for count in 0..=15 {
            let Leftover { cut, frames } = turn.after(one.pending, count, Some(Dialect::Native));
            assert_eq!([cut.concat(), frames.concat()].concat(), &whole[count..], "after {count}");
            assert_eq!(cut.concat().len(), (15 - count) % 5, "after {count}");
            let Leftover { cut, frames } = turn.after(one.pending, count, None);
            assert_eq!((cut.concat().as_slice(), frames.len()), (&whole[count..], 0));
        }
    }

    #[test]
    fn who_was_quiet_is_served_at_once_and_further_events_leave_together() {
        let mut turn = Turn::new(10);
        let mut one = conn();
        let at = Time::from_ms;
        assert!(!turn.begin(at(103)));
        let range = turn.copy(Opcode::Text, b"1");
        turn.give(&mut one, 1, &range, true);
        assert_eq!(turn.next_dirty(), Some(1), "nothing was flushed lately, so there is no wait");
        turn.flushed(&mut one);
        turn.end();
        for ms in [104, 112] {
            assert!(!turn.begin(at(ms)));
            let range = turn.copy(Opcode::Text, b"2");
            turn.give(&mut one, 1, &range, true);
            assert_eq!(turn.next_dirty(), None);
            assert_eq!(turn.linger_end(), Some(at(114)), "a linger after the first that waits");
            turn.end();
        }
        assert!(turn.begin(at(114)));
        for slot in turn.end_linger() {
            turn.hurry(&mut one, slot);
        }
        assert_eq!(turn.next_dirty(), Some(1));
        assert_eq!(written(&turn.gather(one.pending)), [0x81, 1, b'2', 0x81, 1, b'2']);
        turn.flushed(&mut one);
        turn.end();
        assert_eq!(turn.linger_end(), None);
        let range = turn.copy(Opcode::Text, b"3");
        turn.give(&mut one, 1, &range, false);
        assert_eq!(turn.next_dirty(), Some(1), "an answer does not linger");
    }
}
