//! Close frames: why a WebSocket ends (RFC 6455 section 7.4), and the codes of throng's own.

use super::frame::{self, Opcode};
use tungstenite::protocol::frame::coding::CloseCode as Registered;

/// The codes throng closes with. `docs/protocol.md` says for each whether a client should come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    /// The client has said that it is done.
    Normal = 1000,
    /// The server is shutting down.
    GoingAway = 1001,
    /// A frame breaks RFC 6455.
    Protocol = 1002,
    /// A text message is not UTF-8.
    InvalidText = 1007,
    /// A limit that the operator set.
    Policy = 1008,
    /// A message is larger than allowed, or in more frames.
    TooBig = 1009,
    /// The server has no memory left for unfinished messages.
    TryAgainLater = 1013,
    /// No sign of life within the ping timeout.
    Silent = 4000,
    /// It read so slowly that its outbox was full.
    Slow = 4001,
    /// It brought no good token.
    Unauthorized = 4010,
    /// Its token has expired.
    TokenExpired = 4011,
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> u16 {
        code as u16
    }
}

/// The longest reason that fits a close frame, in bytes (RFC 6455 section 5.5: 125 with the code).
pub const REASON_BYTES_MAX: usize = 123;

/// A whole close frame of the server. `reason` has at most [`REASON_BYTES_MAX`] bytes.
pub fn frame(code: impl Into<u16>, reason: &str) -> Vec<u8> {
    let (header, used) = frame::header(Opcode::Close, 2 + reason.len());
    [&header[..used], &code.into().to_be_bytes(), reason.as_bytes()].concat()
}

/// Registered with IANA since RFC 6455, and taken by other servers; a client that is itself a gateway may send it.
const BAD_GATEWAY: u16 = 1014;

/// What a peer's close frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// No code: it is answered with none.
    Empty,
    /// This code: it is answered with the same.
    Code(u16),
}

/// Reads the payload of a close frame.
///
/// # Errors
/// The code to fail the connection with: 1002 for half a code or one that must not be on the wire (section 7.4.1 and 7.4.2),
/// 1007 for a reason that is not UTF-8.
pub fn parse(payload: &[u8]) -> Result<Close, CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(Close::Empty) } else { Err(CloseCode::Protocol) };
    };
    let code = u16::from_be_bytes(*code);
    if !Registered::from(code).is_allowed() && code != BAD_GATEWAY {
        return Err(CloseCode::Protocol);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(CloseCode::InvalidText);
    }
    Ok(Close::Code(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_payloads_are_judged_as_the_rfc_says() {
        let with = |code: u16, reason: &[u8]| [&code.to_be_bytes(), reason].concat();
        assert_eq!(parse(b""), Ok(Close::Empty));
        assert_eq!(parse(&[3]), Err(CloseCode::Protocol));
        for code in
            [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
        {
            assert_eq!(parse(&with(code, b"bye")), Ok(Close::Code(code)));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(parse(&with(code, b"")), Err(CloseCode::Protocol), "{code} must not be on the wire");
        }
        assert_eq!(parse(&with(1000, &[0xce, 0xba, 0xe1])), Err(CloseCode::InvalidText));
    }
}
