//! WebSocket frames (RFC 6455 section 5): the header in and out, the mask, and UTF-8 in pieces.

/// What a frame is (section 5.2). The numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of a message that has begun.
    Continuation = 0,
    /// A message of UTF-8 text, or its beginning.
    Text = 1,
    /// A message of bytes, or its beginning.
    Binary = 2,
    /// The end of the connection.
    Close = 8,
    /// To be answered with a pong of the same payload.
    Ping = 9,
    /// The answer to a ping, or a sign of life that nobody asked for.
    Pong = 10,
}

impl Opcode {
    /// True for close, ping and pong, which may stand between the frames of a message.
    pub fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// The header of a frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// True when the message ends with this frame.
    pub fin: bool,
    /// What it is.
    pub opcode: Opcode,
    /// The mask of its payload.
    pub mask: [u8; 4],
    /// Bytes of payload, at most 2^63 - 1. A claim of the peer: nothing is allocated for it.
    pub payload_bytes: u64,
    /// Bytes of the header itself, 6 to 14.
    pub header_bytes: usize,
}

/// What [`parse`] made of the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header.
    Header(Header),
    /// Not yet; the header has this many bytes at least, more than were given.
    Need(usize),
}

/// The longest header of a client's frame, in bytes.
pub const HEADER_BYTES_MAX: usize = 14;
/// The longest payload of a control frame, in bytes (section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Reads the header at the start of `bytes`. What can be judged from the first two bytes is judged at once.
///
/// # Errors
/// What is wrong with it, for the reason of a 1002.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Parsed, &'static str> {
    let [first, second, rest @ ..] = bytes else { return Ok(Parsed::Need(2)) };
    if first & 0x70 != 0 {
        return Err("a reserved bit is set");
    }
    let Some(opcode) = opcode(*first) else { return Err("the opcode is reserved") };
    if second & 0x80 == 0 {
        return Err("a frame from a client must be masked");
    }
    let fin = first & 0x80 != 0;
    let short = second & 0x7f;
    if opcode.is_control() && !(fin && usize::from(short) <= CONTROL_BYTES_MAX) {
        return Err(if fin {
            "a control frame has at most 125 bytes"
        } else {
            "a control frame must not be fragmented"
        });
    }
    let (payload_bytes, length_bytes) = match short {
        126 => match rest.first_chunk::<2>() {
            None => return Ok(Parsed::Need(8)),
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 2),
        },
        127 => match rest.first_chunk::<8>() {
            None => return Ok(Parsed::Need(14)),
            Some(length) => (u64::from_be_bytes(*length), 8),
        },
        _ => (u64::from(short), 0),
    };
    // Section 5.2: the shortest form must be used, and the highest bit of the longest must be 0.
    if (length_bytes == 2 && payload_bytes < 126) || (length_bytes == 8 && payload_bytes < 1 << 16) {
        return Err("the length is not in its shortest form");
    }
    if payload_bytes >> 63 != 0 {
        return Err("the length has its highest bit set");
    }
    let header_bytes = 6 + length_bytes;
    match rest.get(length_bytes..).and_then(|rest| rest.first_chunk::<4>()) {
        None => Ok(Parsed::Need(header_bytes)),
        Some(mask) => Ok(Parsed::Header(Header { fin, opcode, mask: *mask, payload_bytes, header_bytes })),
    }
}

/// The opcode in the first byte of a frame, if it is not one of the reserved.
pub fn opcode(first: u8) -> Option<Opcode> {
    Some(match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        _ => return None,
    })
}

/// Takes the mask off `payload` in place. `phase` is how many bytes of the frame's payload came before these.
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4], phase: usize) {
    let mask: [u8; 4] = std::array::from_fn(|i| mask[(phase + i) & 3]);
    let word = u32::from_ne_bytes(mask);
    let wide = u64::from(word) << 32 | u64::from(word);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Some(chunk) = chunk.first_chunk_mut::<8>() {
            *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
        }
    }
    for (i, byte) in chunks.into_remainder().iter_mut().enumerate() {
        *byte ^= mask[i & 3];
    }
}

/// The header of a whole message that the server sends, with how many of its bytes count: 2, 4 or 10.
#[inline]
pub fn header(opcode: Opcode, payload_bytes: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = 0x80 | opcode as u8;
    if payload_bytes < 126 {
        header[1] = payload_bytes as u8;
        (header, 2)
    } else if let Ok(short) = u16::try_from(payload_bytes) {
        header[1] = 126;
        header[2..4].copy_from_slice(&short.to_be_bytes());
        (header, 4)
    } else {
        header[1] = 127;
        header[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        (header, 10)
    }
}

/// The length of the whole frame at the start of `bytes`, which the server itself encoded. For walking over frames that
/// were encoded one behind the other; `bytes` begins with a whole header.
pub fn encoded_len(bytes: &[u8]) -> usize {
    match bytes[1] {
        126 => 4 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
        127 => bytes[2..10].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)) + 10,
        short => 2 + usize::from(short),
    }
}

/// Checks that the text that arrived so far can still become UTF-8. `validated` says how much of it was found good
/// before; the answer is how much is now. The rest, at most three bytes, is a character cut short.
///
/// # Errors
/// When no further bytes can mend it: the connection fails at once, not at the message's end (section 8.1).
pub fn validate_text(text: &[u8], validated: usize) -> Result<usize, InvalidText> {
    match std::str::from_utf8(&text[validated..]) {
        Ok(_) => Ok(text.len()),
        Err(error) if error.error_len().is_none() => Ok(validated + error.valid_up_to()),
        Err(_) => Err(InvalidText),
    }
}

/// The text is not UTF-8 and cannot become it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidText;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tungstenite::protocol::frame::{FrameHeader, coding};

    /// The header as another implementation writes it.
    fn foreign(fin: bool, opcode: u8, mask: Option<[u8; 4]>, length: u64) -> Vec<u8> {
        let header = FrameHeader {
            is_final: fin,
            rsv1: false,
            rsv2: false,
            rsv3: false,
            opcode: coding::OpCode::from(opcode),
            mask,
        };
        let mut bytes = Vec::new();
        header.format(length, &mut bytes).expect("writing to memory");
        bytes
    }

    #[test]
    fn headers_of_all_sizes_are_read_at_every_cut() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 40, (1 << 63) - 1] {
            for opcode in [Opcode::Continuation, Opcode::Text, Opcode::Binary] {
                let bytes = foreign(false, opcode as u8, Some([1, 2, 3, 4]), length);
                for cut in 0..bytes.len() {
                    match parse(&bytes[..cut]) {
                        Ok(Parsed::Need(need)) => assert!(need > cut && need <= bytes.len()),
                        other => panic!("{cut} of {} bytes: {other:?}", bytes.len()),
                    }
                }
                let header = Header {
                    fin: false,
                    opcode,
                    mask: [1, 2, 3, 4],
                    payload_bytes: length,
                    header_bytes: bytes.len(),
                };
                assert_eq!(parse(&bytes), Ok(Parsed::Header(header)));
            }
        }
    }

    #[test]
    fn what_the_rfc_forbids_is_refused_from_the_first_bytes() {
        let check = |bytes: &[u8], reason: &str| {
            let error = parse(bytes).expect_err("must be refused");
            assert!(error.contains(reason), "{error}");
        };
        for rsv in [0x40, 0x20, 0x10] {
            check(&[0x80 | rsv | 1, 0x80], "reserved bit");
        }
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            check(&[0x80 | opcode, 0x80], "opcode");
        }
        check(&[0x81, 0x05], "masked");
        check(&[0x89, 0x80 | 126], "125");
        check(&[0x08, 0x80], "fragmented");
        check(&[0x81, 0x80 | 126, 0, 125], "shortest");
        check(&[0x82, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], "shortest");
        check(&[0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0], "highest");
    }

    #[test]
    fn unmasking_in_pieces_is_unmasking_at_once() {
        let plain: Vec<u8> = (0..100).collect();
        let mask = [0xa1, 0x02, 0xf3, 0x44];
        let masked: Vec<u8> = plain.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
        for cut in 0..masked.len() {
            let mut bytes = masked.clone();
            let (head, tail) = bytes.split_at_mut(cut);
            unmask(head, mask, 0);
            unmask(tail, mask, cut);
            assert_eq!(bytes, plain);
        }
    }

    #[test]
    fn our_headers_are_read_by_others() {
        for length in [0, 125, 126, 65_535, 65_536, 1_000_000] {
            let (bytes, used) = header(Opcode::Text, length);
            let mut cursor = Cursor::new(&bytes[..used]);
            let (header, parsed) = FrameHeader::parse(&mut cursor).expect("valid").expect("whole");
            assert!(header.is_final && header.mask.is_none());
            assert_eq!((parsed, u8::from(header.opcode)), (length as u64, 1));
            assert_eq!(encoded_len(&bytes), used + length);
        }
    }

    #[test]
    fn text_is_refused_at_the_first_byte_that_cannot_be_mended() {
        let text = "κόσμε\u{10ffff}".as_bytes();
        let mut validated = 0;
        for end in 1..=text.len() {
            validated = validate_text(&text[..end], validated).expect("a prefix of good text");
            assert!(end - validated <= 3);
        }
        assert_eq!(validated, text.len());
        assert_eq!(
            validate_text(&[0xf4, 0x90], 0),
            Err(InvalidText),
            "above U+10FFFF, seen at the second byte"
        );
        assert_eq!(validate_text(&[b'a', 0xed, 0xa0], 1), Err(InvalidText), "a surrogate");
        assert_eq!(validate_text(&[0xc0], 0), Err(InvalidText));
    }
}
