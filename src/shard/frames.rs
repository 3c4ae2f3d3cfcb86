//! The WebSocket part of a connection's life: frames in, whole messages and control frames out.
//!
//! A frame that is wholly in the scratch buffer is unmasked and handled there. What is cut short goes into a [`Partial`], and
//! is completed from the next bytes.

use super::Shard;
use super::conn::{Conn, Partial, Stage};
use crate::message::Slot;
use crate::stats::Ending;
use crate::time::Time;
use crate::wire::close::{self, Close, CloseCode};
use crate::wire::frame::{self, Header, Opcode, Parsed};

impl Shard {
    /// Bytes of a WebSocket have come.
    pub(super) fn receive_frames(&mut self, slot: Slot, mut bytes: &mut [u8], now: Time) {
        while !bytes.is_empty() {
            let conn = &self.conns[slot as usize];
            if conn.dialect().is_none() {
                return;
            }
            let used = match &conn.partial {
                Some(partial) if partial.remaining > 0 => self.continue_payload(slot, bytes, now),
                Some(partial) if !partial.stub.is_empty() => self.continue_stub(slot, bytes, now),
                _ => self.read_frame(slot, bytes, now),
            };
            // Every path uses at least a byte, or ends the WebSocket.
            bytes = &mut bytes[used..];
        }
    }

    /// Reads the frame that begins with `bytes`, and answers how many of them it used.
    #[inline]
    fn read_frame(&mut self, slot: Slot, bytes: &mut [u8], now: Time) -> usize {
        let header = match frame::parse(bytes) {
            Ok(Parsed::Header(header)) => header,
            Ok(Parsed::Need(_)) => {
                self.partial(slot).stub.extend_from_slice(bytes);
                return bytes.len();
            }
            Err(reason) => {
                self.fail(slot, CloseCode::Protocol, reason, Ending::Protocol, now);
                return bytes.len();
            }
        };
        let body = &mut bytes[header.header_bytes..];
        let whole = usize::try_from(header.payload_bytes).ok().filter(|length| *length <= body.len());
        match whole {
            Some(length) if header.opcode.is_control() => {
                let payload = &mut body[..length];
                frame::unmask(payload, header.mask, 0);
                self.control(slot, header.opcode, payload, now);
                header.header_bytes + length
            }
            None if header.opcode.is_control() => {
                self.partial(slot).stub.extend_from_slice(bytes);
                bytes.len()
            }
            Some(length)
                if header.fin
                    && header.opcode != Opcode::Continuation
                    && self.conns[slot as usize].partial.is_none()
                    && length <= self.settings.message_bytes_max =>
            {
                // The usual case: a message in one frame that is all here.
                let payload = &mut body[..length];
                frame::unmask(payload, header.mask, 0);
                match header.opcode {
                    Opcode::Text => match std::str::from_utf8(payload) {
                        Ok(text) => self.text(slot, text, now),
                        Err(_) => self.fail_text(slot, now),
                    },
                    _ => self.binary(slot, payload, now),
                }
                header.header_bytes + length
            }
            _ => {
                self.begin_frame(slot, &header, now);
                header.header_bytes
            }
        }
    }

    /// Completes a header, or a control frame, that was cut short.
    fn continue_stub(&mut self, slot: Slot, bytes: &mut [u8], now: Time) -> usize {
        let stub = &mut self.partial(slot).stub;
        let need = match frame::parse(stub) {
            Ok(Parsed::Need(need)) => need,
            // A stub with a whole header is that of a control frame.
            Ok(Parsed::Header(header)) => header.header_bytes + header.payload_bytes as usize,
            Err(reason) => {
                self.fail(slot, CloseCode::Protocol, reason, Ending::Protocol, now);
                return bytes.len();
            }
        };
        // `need` grows as more of the header is known, so this may be called again for the same frame.
        let used = bytes.len().min(need.saturating_sub(stub.len()));
        stub.extend_from_slice(&bytes[..used]);
        let header = match frame::parse(stub) {
            Ok(Parsed::Header(header)) => header,
            Ok(Parsed::Need(_)) => return used,
            Err(reason) => {
                self.fail(slot, CloseCode::Protocol, reason, Ending::Protocol, now);
                return bytes.len();
            }
        };
        if !header.opcode.is_control() {
            stub.clear();
            self.begin_frame(slot, &header, now);
        } else if stub.len() == header.header_bytes + header.payload_bytes as usize {
            let mut payload = std::mem::take(stub);
            let payload = &mut payload[header.header_bytes..];
            frame::unmask(payload, header.mask, 0);
            self.drop_empty_partial(slot);
            self.control(slot, header.opcode, payload, now);
        }
        used
    }

    /// A data frame begins whose payload goes into the connection's partial message.
    fn begin_frame(&mut self, slot: Slot, header: &Header, now: Time) {
        let allowed = (self.settings.message_bytes_max, self.settings.frames_per_message_max);
        let partial = self.partial(slot);
        if partial.opcode.is_none() {
            (partial.bytes_max, partial.frames_max) = allowed;
        }
        let (bytes_max, frames_max) = (partial.bytes_max, partial.frames_max);
        let fault = match (header.opcode, partial.opcode) {
            (Opcode::Continuation, None) => Some((CloseCode::Protocol, "a continuation of no message")),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                Some((CloseCode::Protocol, "a new message before the last one has ended"))
            }
            _ if header.payload_bytes > (bytes_max - partial.lease.bytes().len().min(bytes_max)) as u64 => {
                Some((CloseCode::TooBig, "the message is larger than allowed"))
            }
            _ if partial.frames >= frames_max => Some((CloseCode::TooBig, "the message has too many frames")),
            _ => None,
        };
        if let Some((code, reason)) = fault {
            return self.fail(slot, code, reason, Ending::Protocol, now);
        }
        partial.opcode.get_or_insert(header.opcode);
        partial.fin = header.fin;
        partial.mask = header.mask;
        partial.remaining = header.payload_bytes;
        partial.frames += 1;
        if header.payload_bytes == 0 {
            self.end_frame(slot, now);
        }
    }

    /// More of the payload of a data frame has come.
    fn continue_payload(&mut self, slot: Slot, bytes: &mut [u8], now: Time) -> usize {
        let Shard { conns, pool, .. } = self;
        let Some(partial) = &mut conns[slot as usize].partial else { return bytes.len() };
        let used = bytes.len().min(usize::try_from(partial.remaining).unwrap_or(usize::MAX));
        let payload = &mut bytes[..used];
        frame::unmask(payload, partial.mask, 0);
        partial.mask.rotate_left(used % 4);
        partial.remaining -= used as u64;
        if pool.extend(&mut partial.lease, payload).is_err() {
            self.fail(slot, CloseCode::TryAgainLater, "too many unfinished messages", Ending::Limit, now);
            return used;
        }
        if partial.opcode == Some(Opcode::Text) {
            match frame::validate_text(partial.lease.bytes(), partial.validated) {
                Ok(validated) => partial.validated = validated,
                Err(frame::InvalidText) => {
                    self.fail_text(slot, now);
                    return used;
                }
            }
        }
        if partial.remaining == 0 {
            self.end_frame(slot, now);
        }
        used
    }

    /// The payload of a data frame is complete, and with it perhaps the message.
    fn end_frame(&mut self, slot: Slot, now: Time) {
        let conn = &mut self.conns[slot as usize];
        let Some(partial) = conn.partial.take_if(|partial| partial.fin) else { return };
        let message = self.pool.end(partial.lease);
        match partial.opcode {
            Some(Opcode::Text) => match std::str::from_utf8(&message) {
                Ok(text) => self.text(slot, text, now),
                Err(_) => self.fail_text(slot, now),
            },
            _ => self.binary(slot, &message, now),
        }
        self.pool.keep(message);
    }

    /// A control frame (RFC 6455 section 5.5).
    fn control(&mut self, slot: Slot, opcode: Opcode, payload: &[u8], now: Time) {
        let is_open = self.conns[slot as usize].is_open();
        match opcode {
            Opcode::Ping if is_open => self.reply(slot, Opcode::Pong, |out| out.extend_from_slice(payload)),
            Opcode::Close => match close::parse(payload) {
                Ok(close) => {
                    if is_open {
                        self.reply(slot, Opcode::Close, |out| match close {
                            Close::Empty => {}
                            Close::Code(code) => out.extend_from_slice(&code.to_be_bytes()),
                        });
                    }
                    if let Close::Code(code) = close {
                        self.close_code = Some((slot, code));
                    }
                    // The server closes the socket first (section 7.1.1); the peer has nothing more to say.
                    self.end(slot, Ending::Client);
                    let conn = &mut self.conns[slot as usize];
                    conn.stage = Stage::Finishing { at_once: true };
                    self.wheel.arm(slot, now, super::CLOSE_TIMEOUT_MS);
                    self.finish_unless_pending(slot);
                }
                Err(code) => {
                    let reason = "the close frame is not a proper one";
                    self.fail(slot, code, reason, Ending::Protocol, now);
                }
            },
            // A pong is a sign of life, and `receive` has noted that; while closing, a ping is no more than that.
            _ => {}
        }
    }

    fn fail_text(&mut self, slot: Slot, now: Time) {
        self.fail(slot, CloseCode::InvalidText, "the text is not UTF-8", Ending::Protocol, now);
    }

    /// The connection's partial message, an empty one if there is none.
    fn partial(&mut self, slot: Slot) -> &mut Partial {
        let Shard { conns, pool, turn, .. } = self;
        let Conn { partial, .. } = &mut conns[slot as usize];
        partial.get_or_insert_with(|| Partial::new(pool.lease(), turn.now()))
    }

    /// Gives back a partial that only served a control frame.
    fn drop_empty_partial(&mut self, slot: Slot) {
        let Some(partial) = self.conns[slot as usize].partial.take_if(|partial| partial.opcode.is_none())
        else {
            return;
        };
        self.pool.give_back(partial.lease);
    }
}
