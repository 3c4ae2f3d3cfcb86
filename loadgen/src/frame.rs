//! The client's side of the WebSocket framing (RFC 6455): frames of a server are parsed in place, frames for it are
//! built with their mask in one buffer. Bytes in, bytes out; no socket here.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

/// One frame of the server. The payload is as it came: a server does not mask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) fin: bool,
    pub(crate) opcode: Opcode,
    pub(crate) payload: &'a [u8],
}

/// What stands at the start of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A whole frame and its length with the header, in bytes.
    Whole(Frame<'a>, usize),
    /// A frame cut short, which has this many bytes in all as far as can be told by now (at least one more than there are).
    Partial { frame_bytes: usize },
    /// No frame a server may send.
    Broken(&'static str),
}

pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let [first, second, ..] = *bytes else { return Parsed::Partial { frame_bytes: 2 } };
    let opcode = match first & 0x0F {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xA => Opcode::Pong,
        _ => return Parsed::Broken("unknown opcode"),
    };
    if first & 0x70 != 0 {
        return Parsed::Broken("reserved bit set, but no extension was agreed on");
    }
    if second & 0x80 != 0 {
        return Parsed::Broken("a server must not mask");
    }
    let fin = first & 0x80 != 0;
    if opcode as u8 >= Opcode::Close as u8 && (!fin || second > 125) {
        return Parsed::Broken("control frame in parts or longer than 125 bytes");
    }
    let (header_bytes, payload_bytes) = match second {
        126 => match bytes.get(2..4) {
            Some(length) => (4, u16::from_be_bytes([length[0], length[1]]) as usize),
            None => return Parsed::Partial { frame_bytes: 4 },
        },
        127 => match bytes.get(2..10).and_then(|length| <[u8; 8]>::try_from(length).ok()) {
            Some(length) => match usize::try_from(u64::from_be_bytes(length)) {
                Ok(length) if length < usize::MAX / 2 => (10, length),
                _ => return Parsed::Broken("a length with its highest bit set"),
            },
            None => return Parsed::Partial { frame_bytes: 10 },
        },
        short => (2, short as usize),
    };
    let frame_bytes = header_bytes + payload_bytes;
    match bytes.get(header_bytes..frame_bytes) {
        Some(payload) => Parsed::Whole(Frame { fin, opcode, payload }, frame_bytes),
        None => Parsed::Partial { frame_bytes },
    }
}

/// How a frame's mask key is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mask {
    /// A new key for each frame, as a browser does.
    #[default]
    Random,
    /// Always zero: nothing to compute here, but the server may take a shorter way too.
    Zero,
}

/// Builds a client's frames.
pub(crate) struct Masker {
    mask: Mask,
    random: fastrand::Rng,
}

impl Masker {
    pub(crate) fn new(mask: Mask, seed: u64) -> Self {
        Self { mask, random: fastrand::Rng::with_seed(seed) }
    }

    /// Appends one whole frame of `payload_bytes` to `out`. `fill` writes the payload, all of it, into zeroed bytes.
    pub(crate) fn append(
        &mut self,
        out: &mut Vec<u8>,
        opcode: Opcode,
        payload_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        out.push(0x80 | opcode as u8);
        match payload_bytes {
            0..126 => out.push(0x80 | payload_bytes as u8),
            126..0x1_0000 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
            }
            _ => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
            }
        }
        let key = match self.mask {
            Mask::Random => self.random.u32(..).to_ne_bytes(),
            Mask::Zero => [0; 4],
        };
        out.extend_from_slice(&key);
        let start = out.len();
        out.resize(start + payload_bytes, 0);
        let payload = &mut out[start..];
        fill(payload);
        if self.mask == Mask::Random {
            apply(payload, key);
        }
    }

    /// Appends one whole frame with this payload.
    pub(crate) fn append_copy(&mut self, out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
        self.append(out, opcode, payload.len(), |bytes| bytes.copy_from_slice(payload));
    }
}

/// Masks or unmasks in place.
fn apply(payload: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        *byte ^= key[index % 4];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's frame with a payload of this length.
    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            0..126 => bytes.push(payload.len() as u8),
            126..0x1_0000 => {
                bytes.push(126);
                bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            }
            _ => {
                bytes.push(127);
                bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_frame_split_at_every_byte_is_partial_until_it_is_whole() {
        for length in [0, 1, 5, 125, 126, 127, 300, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let bytes = server_frame(0x82, &payload);
            for cut in 0..bytes.len() {
                match parse(&bytes[..cut]) {
                    Parsed::Partial { frame_bytes } => {
                        assert!(frame_bytes > cut && frame_bytes <= bytes.len())
                    }
                    other => panic!("{length} bytes cut at {cut}: {other:?}"),
                }
            }
            let frame = Frame { fin: true, opcode: Opcode::Binary, payload: &payload };
            assert_eq!(parse(&bytes), Parsed::Whole(frame, bytes.len()));
        }
    }

    #[test]
    fn a_frame_ends_where_the_next_begins() {
        let mut bytes = server_frame(0x81, b"one");
        bytes.extend_from_slice(&server_frame(0x01, b"two"));
        bytes.extend_from_slice(&server_frame(0x89, b""));
        let mut at = 0;
        let mut seen = Vec::new();
        while let Parsed::Whole(frame, length) = parse(&bytes[at..]) {
            seen.push((frame.fin, frame.opcode, frame.payload));
            at += length;
        }
        assert_eq!(at, bytes.len());
        let expected: [(bool, Opcode, &[u8]); 3] =
            [(true, Opcode::Text, b"one"), (false, Opcode::Text, b"two"), (true, Opcode::Ping, b"")];
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_a_server_must_not_send_is_broken() {
        fn check(bytes: &[u8]) {
            assert!(matches!(parse(bytes), Parsed::Broken(_)), "{bytes:?}");
        }
        check(&[0x83, 0]); // an opcode nobody defined
        check(&[0xC1, 0]); // a reserved bit
        check(&[0x81, 0x80]); // masked
        check(&[0x09, 0]); // a ping in parts
        check(&[0x88, 126, 0, 126]); // a close of 126 bytes
        check(&[0x82, 127, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    }

    #[test]
    fn frames_for_the_server_are_masked_with_their_key() {
        for mask in [Mask::Random, Mask::Zero] {
            let mut masker = Masker::new(mask, 7);
            for (length, header_bytes) in [(0, 2), (13, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
                let payload: Vec<u8> = (0..length).map(|index| (index * 7) as u8).collect();
                let mut out = Vec::new();
                masker.append_copy(&mut out, Opcode::Text, &payload);
                assert_eq!(out[0], 0x81);
                assert_eq!(out[1] & 0x80, 0x80);
                assert_eq!(out.len(), header_bytes + 4 + length);
                let key =
                    [out[header_bytes], out[header_bytes + 1], out[header_bytes + 2], out[header_bytes + 3]];
                assert_eq!(key == [0; 4], mask == Mask::Zero);
                apply(&mut out[header_bytes + 4..], key);
                assert_eq!(&out[header_bytes + 4..], payload);
            }
        }
    }
}
