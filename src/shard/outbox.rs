//! What the kernel has refused: a connection that reads too slowly has an outbox until it has caught up.

use super::OutboxPolicy;
use crate::dialect::{Dialect, engineio};
use crate::wire::frame::{self, Opcode};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bytes that wait for one connection. Bounded by `outbox_bytes_max`: what happens to a frame that does not fit is the
/// [`OutboxPolicy`]. Pings and closes are taken whatever the bound: there is one close, and a ping
/// only when the peer has read something since the last.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: VecDeque<u8>,
    /// Messages left out since the client was last told.
    pub dropped: u64,
}

/// A message did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    /// Takes the rest of a message that the kernel took the beginning of. It must follow, whatever the bound.
    pub fn push_rest(&mut self, rest: &[u8]) {
        self.bytes.extend(rest);
    }

    /// Takes of the whole messages in `frames` those that fit within `bytes_max`, or that must follow in any case. Others are counted
    /// as dropped, but for pongs, which a client does not miss.
    ///
    /// # Errors
    /// [`Full`] at the first message that does not fit when the policy is to disconnect. It and what comes after it is not taken: messages
    /// after one that was left out would look as if nothing was missing.
    pub fn push_frames(
        &mut self,
        mut frames: &[u8],
        bytes_max: usize,
        policy: OutboxPolicy,
        dialect: Dialect,
    ) -> Result<(), Full> {
        while !frames.is_empty() {
            let (message, rest) = frames.split_at(dialect.message_len(frames).min(frames.len()));
            let opcode = frame::opcode(message[0]);
            let must_follow = matches!(opcode, Some(Opcode::Ping | Opcode::Close))
                || (dialect.is_engine() && message == engineio::PING_FRAME);
            if self.bytes.len() + message.len() <= bytes_max || must_follow {
                self.bytes.extend(message);
            } else if policy == OutboxPolicy::Disconnect {
                return Err(Full);
            } else {
                self.dropped += u64::from(opcode != Some(Opcode::Pong));
            }
            frames = rest;
        }
        Ok(())
    }

    /// What waits, oldest first.
    pub fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.bytes.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// Takes all that waits in another, behind what waits here.
    pub fn append(&mut self, mut other: Outbox) {
        self.bytes.append(&mut other.bytes);
        self.dropped += other.dropped;
    }

    /// What waits, in one piece.
    pub fn contiguous(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    /// The kernel, or whoever else, took `count` bytes.
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
    use crate::wire::frame::header;

    fn frame(opcode: Opcode, payload: usize) -> Vec<u8> {
        let (header, used) = header(opcode, payload);
        [&header[..used], &vec![b'x'; payload]].concat()
    }

    fn text(payload: usize) -> Vec<u8> {
        frame(Opcode::Text, payload)
    }

    #[test]
    fn whole_frames_are_taken_or_left_out() {
        let mut outbox = Outbox::default();
        outbox.push_rest(b"tail");
        let frames = [text(10), text(200), text(20)].concat();
        assert_eq!(outbox.push_frames(&frames, 4 + 12 + 22, OutboxPolicy::Drop, Dialect::Native), Ok(()));
        assert_eq!((outbox.len(), outbox.dropped), (38, 1), "the large one is left out, the others fit");
        outbox.sent(4);
        let [front, back] = outbox.slices();
        assert_eq!([&*front, &*back].concat(), [text(10), text(20)].concat());
        outbox.sent(34);
        assert!(outbox.is_empty());
    }

    #[test]
    fn nothing_is_taken_after_the_first_that_does_not_fit() {
        let mut outbox = Outbox::default();
        let frames = [text(10), text(200), text(20)].concat();
        assert_eq!(outbox.push_frames(&frames, 100, OutboxPolicy::Disconnect, Dialect::Native), Err(Full));
        assert_eq!((outbox.len(), outbox.dropped), (12, 0));
    }

    #[test]
    fn pings_and_closes_are_taken_whatever_the_bound_and_pongs_not_missed() {
        let mut outbox = Outbox::default();
        let must = [frame(Opcode::Ping, 0), frame(Opcode::Close, 2)].concat();
        let frames = [must.clone(), frame(Opcode::Pong, 5), text(5)].concat();
        assert_eq!(outbox.push_frames(&frames, 0, OutboxPolicy::Drop, Dialect::Native), Ok(()));
        assert_eq!((outbox.len(), outbox.dropped), (must.len(), 1));
    }

    #[test]
    fn attachments_share_the_lot_of_their_packet_and_pings_of_engine_io_are_taken_too() {
        let text = |text: &str| {
            let (header, used) = header(Opcode::Text, text.len());
            [&header[..used], text.as_bytes()].concat()
        };
        let binary = |bytes| frame(Opcode::Binary, bytes);
        let large = [text("452-[]"), binary(20), binary(5)].concat();
        let small = [text("461-/a,7[]"), binary(3)].concat();
        let frames = [large, text("2"), small.clone(), text("42[1]")].concat();
        let mut outbox = Outbox::default();
        assert_eq!(outbox.push_frames(&frames, 20, OutboxPolicy::Drop, Dialect::SocketIo), Ok(()));
        assert_eq!(outbox.contiguous(), [text("2"), small].concat());
        assert_eq!(outbox.dropped, 2, "a packet with its attachments is one");
        let mut outbox = Outbox::default();
        assert_eq!(outbox.push_frames(&frames, 3, OutboxPolicy::Disconnect, Dialect::SocketIo), Err(Full));
        assert!(outbox.is_empty(), "not even the beginning of a packet");
    }
}
