//! What the kernel has refused: a connection that reads too slowly has an outbox until it has caught up.

use crate::wire::frame;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bytes that wait for one connection. Bounded by `outbox_bytes_max`: a frame that does not fit is left out, and the caller ends
/// the connection or says what was dropped, by policy.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: VecDeque<u8>,
    /// Frames left out since the client was last told.
    pub dropped: u64,
}

impl Outbox {
    /// Takes the rest of a frame that the kernel took the beginning of. It must follow, whatever the bound.
    pub fn push_rest(&mut self, rest: &[u8]) {
        self.bytes.extend(rest);
    }

    /// Takes as many of the whole frames in `frames` as fit within `bytes_max`, and answers how many were left out.
    pub fn push_frames(&mut self, mut frames: &[u8], bytes_max: usize) -> u64 {
        let mut dropped = 0;
        while !frames.is_empty() {
            let (frame, rest) = frames.split_at(frame::encoded_len(frames).min(frames.len()));
            if self.bytes.len() + frame.len() <= bytes_max {
                self.bytes.extend(frame);
            } else {
                dropped += 1;
            }
            frames = rest;
        }
        self.dropped += dropped;
        dropped
    }

    /// What waits, oldest first.
    pub fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.bytes.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// The kernel took `count` bytes.
    pub fn sent(&mut self, count: usize) {
        self.bytes.drain(..count);
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Opcode, header};

    fn frame(payload: usize) -> Vec<u8> {
        let (header, used) = header(Opcode::Text, payload);
        [&header[..used], &vec![b'x'; payload]].concat()
    }

    #[test]
    fn whole_frames_are_taken_or_left_out() {
        let mut outbox = Outbox::default();
        outbox.push_rest(b"tail");
        let frames = [frame(10), frame(200), frame(20)].concat();
        assert_eq!(outbox.push_frames(&frames, 4 + 12 + 22), 1, "the large one is left out, the others fit");
        assert_eq!((outbox.len(), outbox.dropped), (38, 1));
        outbox.sent(4);
        let [front, back] = outbox.slices();
        assert_eq!([&*front, &*back].concat(), [frame(10), frame(20)].concat());
        outbox.sent(34);
        assert!(outbox.is_empty());
    }
}
