//! Engine.IO, protocol revision 4: the packets that Socket.IO travels in, alone in a WebSocket frame or several to the body of a
//! polling request, and the words of its handshake.

use crate::message::{ProcessTag, ShardId, Slot};
use crate::wire::frame::{self, Opcode};
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD};
use std::fmt;
use std::io::Write;

/// A packet of text. Binary is always a message, and has no packet around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The handshake, as JSON. Only a server sends it.
    Open(&'a str),
    /// The end of the session.
    Close,
    /// The server's heartbeat; of a client, `probe` on the WebSocket that it wants to move to.
    Ping(&'a str),
    /// The answer to a ping, with what that said.
    Pong(&'a str),
    /// What Socket.IO says.
    Message(&'a str),
    /// The session is on this WebSocket from here on.
    Upgrade,
    /// Nothing: it ends a poll.
    Noop,
}

/// What a peer sent is not of the protocol: the session ends. It says what is wrong, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads the packet in a text frame or in a [`Piece::Text`]. What follows the type of a close, an upgrade or a noop is ignored, as
/// Node does.
///
/// # Errors
/// When it has no type, or one that there is not.
pub fn decode(text: &str) -> Result<Packet<'_>, Malformed> {
    let Some(kind) = text.bytes().next() else { return Err(Malformed("a packet is empty")) };
    let data = text.get(1..).unwrap_or_default();
    Ok(match kind {
        b'0' => Packet::Open(data),
        b'1' => Packet::Close,
        b'2' => Packet::Ping(data),
        b'3' => Packet::Pong(data),
        b'4' => Packet::Message(data),
        b'5' => Packet::Upgrade,
        b'6' => Packet::Noop,
        _ => return Err(Malformed("no Engine.IO packet has this type")),
    })
}

/// The server's ping, as a frame.
pub const PING_FRAME: &[u8] = b"\x81\x012";

/// What stands between the packets of a polling body. It cannot be inside one: JSON escapes it, and namespaces must not have it.
const SEPARATOR: char = '\x1e';

/// One packet of a polling body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text for [`decode`]; never empty.
    Text(&'a str),
    /// A message of bytes.
    Binary(Vec<u8>),
}

/// The packets in the body of a POST, or what is wrong with one; the session ends there, so nobody reads on. A body without a
/// packet is malformed too.
pub fn pieces(body: &str) -> impl Iterator<Item = Result<Piece<'_>, Malformed>> {
    body.split(SEPARATOR).map(|piece| match piece.strip_prefix('b') {
        None if piece.is_empty() => Err(Malformed("a packet is empty")),
        None => Ok(Piece::Text(piece)),
        // Node writes the padding and reads without it.
        Some(base64) => BASE64_NOPAD
            .decode(base64.trim_end_matches('=').as_bytes())
            .map(Piece::Binary)
            .map_err(|_| Malformed("binary that is not base64")),
    })
}

/// Adds the packets in `frames` to a polling body, and answers how many bytes of `frames` they were. These are whole frames that
/// the server itself encoded, one behind the other; pings, pongs and closes are of the WebSocket, and left out. `out` is the body
/// so far and nothing else. It does not grow beyond `bytes_max`, but for its first packet, which is taken whatever its size.
pub fn join(out: &mut Vec<u8>, frames: &[u8], bytes_max: usize) -> usize {
    let mut used = 0;
    while used < frames.len() {
        let frame_bytes = frame::encoded_len(&frames[used..]);
        let frame = &frames[used..used + frame_bytes];
        let payload = payload(frame);
        let binary = match frame::opcode(frame[0]) {
            Some(Opcode::Text) => false,
            Some(Opcode::Binary) => true,
            _ => {
                used += frame_bytes;
                continue;
            }
        };
        let packet_bytes = if binary { 1 + BASE64.encode_len(payload.len()) } else { payload.len() };
        if !out.is_empty() {
            if out.len() + SEPARATOR.len_utf8() + packet_bytes > bytes_max {
                break;
            }
            out.push(SEPARATOR as u8);
        }
        if binary {
            out.push(b'b');
            let start = out.len();
            out.resize(start + packet_bytes - 1, 0);
            BASE64.encode_mut(payload, &mut out[start..]);
        } else {
            out.extend_from_slice(payload);
        }
        used += frame_bytes;
    }
    used
}

/// What follows the header of an unmasked frame.
pub(super) fn payload(frame: &[u8]) -> &[u8] {
    match frame[1] {
        126 => &frame[4..],
        127 => &frame[10..],
        _ => &frame[2..],
    }
}

/// Writes the open packet. A client that polls is told that it `can_upgrade`; one that began on a WebSocket is there already.
pub fn encode_open(
    out: &mut Vec<u8>,
    sid: Sid,
    can_upgrade: bool,
    ping_interval_ms: u32,
    ping_timeout_ms: u32,
    payload_bytes_max: usize,
) {
    let upgrades = if can_upgrade { r#"["websocket"]"# } else { "[]" };
    write!(
        out,
        r#"0{{"sid":"{sid}","upgrades":{upgrades},"pingInterval":{ping_interval_ms},"pingTimeout":{ping_timeout_ms},"maxPayload":{payload_bytes_max}}}"#,
    )
    .expect("writing to memory does not fail");
}

/// The name of a session. It says where the session lives, so that any shard of any process on the port can pass a request on, and is
/// known only to its client: nothing in it is hidden, and the secret is what cannot be guessed. As text it is 20 characters of
/// base64url.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sid([u8; 15]);

impl Sid {
    /// Characters of its text.
    pub const TEXT_BYTES: usize = 20;

    /// The session in `slot` of `shard` of `process`; `secret` comes from a source of randomness fit for keys.
    pub fn new(process: ProcessTag, shard: ShardId, slot: Slot, secret: [u8; 8]) -> Sid {
        let mut bytes = [0; 15];
        bytes[0] = shard;
        bytes[1..5].copy_from_slice(&slot.to_be_bytes());
        bytes[5..7].copy_from_slice(&process.to_be_bytes());
        bytes[7..].copy_from_slice(&secret);
        Sid(bytes)
    }

    /// Reads what a client says. Process, shard and slot are its claim: there may be no such process or shard, and another session or
    /// none in the slot.
    pub fn parse(text: &str) -> Option<Sid> {
        let mut bytes = [0; 15];
        if text.len() != Sid::TEXT_BYTES {
            return None;
        }
        BASE64URL_NOPAD.decode_mut(text.as_bytes(), &mut bytes).ok()?;
        Some(Sid(bytes))
    }

    /// The process that has the session.
    pub fn process(self) -> ProcessTag {
        u16::from_be_bytes([self.0[5], self.0[6]])
    }

    /// The shard that has it there.
    pub fn shard(self) -> ShardId {
        self.0[0]
    }

    /// Its place there.
    pub fn slot(self) -> Slot {
        let [_, slot @ .., _, _, _, _, _, _, _, _, _, _] = self.0;
        Slot::from_be_bytes(slot)
    }

    /// What only the session's client can know.
    pub fn secret(self) -> [u8; 8] {
        let [_, _, _, _, _, _, _, secret @ ..] = self.0;
        secret
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        BASE64URL_NOPAD.encode_display(&self.0).fmt(out)
    }
}

/// What the query of a request says that matters here, as it is written: these values have nothing to be percent-decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query<'a> {
    /// `EIO`: the protocol's revision.
    pub eio: Option<&'a str>,
    /// `transport`: `polling` or `websocket`.
    pub transport: Option<&'a str>,
    /// `sid`: the session, unless this begins one.
    pub sid: Option<&'a str>,
    /// True exactly when there is a `j`: the client wants a script, not a body.
    pub jsonp: bool,
}

impl<'a> Query<'a> {
    /// Reads what follows the `?` of a target. Of a key that comes twice, the first value counts.
    pub fn parse(query: &'a str) -> Query<'a> {
        let mut known = Query::default();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match key {
                "EIO" => &mut known.eio,
                "transport" => &mut known.transport,
                "sid" => &mut known.sid,
                "j" => {
                    known.jsonp = true;
                    continue;
                }
                _ => continue,
            };
            field.get_or_insert(value);
        }
        known
    }
}

/// Why a request is not served. The numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// `transport` is none that is spoken.
    UnknownTransport = 0,
    /// There is no session of this `sid`, or no longer.
    UnknownSession = 1,
    /// A session begins with a GET.
    HandshakeMethod = 2,
    /// The request does not fit the transport or the session.
    BadRequest = 3,
    /// This client may not come in.
    Forbidden = 4,
    /// `EIO` is missing, or not 4.
    UnsupportedVersion = 5,
}

impl Fault {
    /// The code that clients know it by.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The message that goes with the code.
    pub fn message(self) -> &'static str {
        match self {
            Fault::UnknownTransport => "Transport unknown",
            Fault::UnknownSession => "Session ID unknown",
            Fault::HandshakeMethod => "Bad handshake method",
            Fault::BadRequest => "Bad request",
            Fault::Forbidden => "Forbidden",
            Fault::UnsupportedVersion => "Unsupported protocol version",
        }
    }

    /// The HTTP status and its standard phrase.
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Fault::Forbidden => (403, "Forbidden"),
            _ => (400, "Bad Request"),
        }
    }

    /// Writes the JSON that is the body of the answer.
    pub fn encode(self, out: &mut Vec<u8>) {
        write!(out, r#"{{"code":{},"message":"{}"}}"#, self.code(), self.message())
            .expect("writing to memory does not fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let (header, used) = frame::header(opcode, payload.len());
        [&header[..used], payload].concat()
    }

    #[test]
    fn packets_are_told_apart_by_their_first_character() {
        let check = |text: &str, packet: Packet<'_>| assert_eq!(decode(text), Ok(packet), "{text}");
        check(r#"0{"sid":""}"#, Packet::Open(r#"{"sid":""}"#));
        check("1", Packet::Close);
        check("2", Packet::Ping(""));
        check("2probe", Packet::Ping("probe"));
        check("3", Packet::Pong(""));
        check("3probe", Packet::Pong("probe"));
        check("4", Packet::Message(""));
        check("4€", Packet::Message("€"));
        check(r#"420["echo","x"]"#, Packet::Message(r#"20["echo","x"]"#));
        check("5", Packet::Upgrade);
        check("6", Packet::Noop);
        for ignored in ["1x", "5probe", "6\0"] {
            assert!(decode(ignored).is_ok(), "{ignored}");
        }
        for wrong in ["", "7", "9", "-", "b", "bAQ==", "x4", " 4", "é", "\u{1e}4"] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_polling_body_is_its_packets() {
        let check = |body: &str, expected: &[Piece<'_>]| {
            let pieces: Result<Vec<_>, _> = pieces(body).collect();
            assert_eq!(pieces.as_deref(), Ok(expected), "{body:?}");
        };
        check("40", &[Piece::Text("40")]);
        check(
            "420[\"echo\",\"a\"]\x1e421[\"echo\",\"€\"]",
            &[Piece::Text(r#"420["echo","a"]"#), Piece::Text(r#"421["echo","€"]"#)],
        );
        check(
            "451-[\"bin\",{\"_placeholder\":true,\"num\":0}]\x1ebAQIDBA==",
            &[Piece::Text(r#"451-["bin",{"_placeholder":true,"num":0}]"#), Piece::Binary(vec![1, 2, 3, 4])],
        );
        check("bAQID\x1ebeHl6", &[Piece::Binary(vec![1, 2, 3]), Piece::Binary(b"xyz".to_vec())]);
        check("b+/8=", &[Piece::Binary(vec![0xfb, 0xff])]);
        check("b", &[Piece::Binary(vec![])]);
        check("bAQ", &[Piece::Binary(vec![1])]);
        check("bAQI", &[Piece::Binary(vec![1, 2])]);
        // What is no packet is seen only when it is decoded.
        check("7", &[Piece::Text("7")]);
    }

    #[test]
    fn a_body_with_a_packet_that_is_none_is_malformed() {
        for body in
            ["", "\x1e", "40\x1e", "\x1e40", "40\x1e\x1e40", "b-_8=", "bA", "bAQ=I", "b====A", "bé", "b AQ=="]
        {
            assert!(pieces(body).any(|piece| piece.is_err()), "{body:?}");
        }
    }

    #[test]
    fn frames_become_a_body_and_those_of_the_websocket_are_left_out() {
        let frames = [
            frame(Opcode::Text, br#"451-["bin",{"_placeholder":true,"num":0},"Q7xb8TF"]"#),
            frame(Opcode::Binary, &[1, 2, 3, 4]),
            frame(Opcode::Ping, b""),
            frame(Opcode::Text, "431[\"€\"]".as_bytes()),
            frame(Opcode::Binary, b""),
            frame(Opcode::Close, &[3, 233]),
        ]
        .concat();
        let body = text(|out| assert_eq!(join(out, &frames, 1_000), frames.len()));
        assert_eq!(
            body,
            "451-[\"bin\",{\"_placeholder\":true,\"num\":0},\"Q7xb8TF\"]\x1ebAQIDBA==\x1e431[\"€\"]\x1eb"
        );
        assert_eq!(text(|out| assert_eq!(join(out, &frame(Opcode::Pong, b"x"), 9), 3)), "");
        assert_eq!(text(|out| assert_eq!(join(out, &[], 9), 0)), "");
    }

    #[test]
    fn payloads_behind_headers_of_all_sizes_are_found() {
        for length in [1, 125, 126, 65_535, 65_536, 100_000] {
            let payload = vec![b'4'; length];
            let frames = [frame(Opcode::Text, &payload), frame(Opcode::Binary, &payload)].concat();
            let body = text(|out| assert_eq!(join(out, &frames, usize::MAX), frames.len()));
            let expected =
                [Piece::Text(std::str::from_utf8(&payload).expect("digits")), Piece::Binary(payload.clone())];
            assert_eq!(pieces(&body).collect::<Result<Vec<_>, _>>().as_deref(), Ok(&expected[..]));
        }
    }

    #[test]
    fn a_body_stops_at_its_budget_but_takes_one_packet() {
        let (one, two) = (frame(Opcode::Text, b"4abc"), frame(Opcode::Binary, b"12345"));
        let frames = [&one[..], &two].concat();
        let check = |bytes_max: usize, expected: &str, used: usize| {
            assert_eq!(text(|out| assert_eq!(join(out, &frames, bytes_max), used)), expected, "{bytes_max}");
        };
        check(0, "4abc", one.len());
        check(4, "4abc", one.len());
        check(13, "4abc", one.len());
        check(14, "4abc\x1ebMTIzNDU=", frames.len());
        // A body may be joined from several runs.
        let mut body = Vec::new();
        assert_eq!(join(&mut body, &one, 14), one.len());
        assert_eq!(join(&mut body, &two, 14), two.len());
        assert_eq!(join(&mut body, &one, 14), 0);
        assert_eq!(body, b"4abc\x1ebMTIzNDU=");
    }

    #[test]
    fn the_open_packet_is_that_of_node() {
        let sid = Sid::parse("98PtAQsDJeJ0nYJWAAAA").expect("20 characters");
        assert_eq!(
            text(|out| encode_open(out, sid, true, 3_000, 2_000, 1_000_000)),
            r#"0{"sid":"98PtAQsDJeJ0nYJWAAAA","upgrades":["websocket"],"pingInterval":3000,"pingTimeout":2000,"maxPayload":1000000}"#
        );
        let sid = Sid::parse("_uVU-tavkSHXzxrTAAAE").expect("20 characters");
        assert_eq!(
            text(|out| encode_open(out, sid, false, 25_000, 20_000, 1_000_000)),
            r#"0{"sid":"_uVU-tavkSHXzxrTAAAE","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#
        );
    }

    #[test]
    fn a_session_id_says_where_the_session_is() {
        let secret = [0xff, 1, 2, 3, 4, 5, 6, 0xfe];
        for (process, shard, slot) in [(0, 0, 0), (0x0506, 1, 0x0102_0304), (u16::MAX, 127, u32::MAX)] {
            let sid = Sid::new(process, shard, slot, secret);
            let parts = (sid.process(), sid.shard(), sid.slot(), sid.secret());
            assert_eq!(parts, (process, shard, slot, secret));
            let text = sid.to_string();
            assert_eq!(text.len(), Sid::TEXT_BYTES);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            assert_eq!(Sid::parse(&text), Some(sid));
        }
        for wrong in [
            "",
            "nope",
            "98PtAQsDJeJ0nYJWAAA",
            "98PtAQsDJeJ0nYJWAAAAA",
            "98PtAQsDJeJ0nYJWAAA=",
            "98PtAQsDJeJ0nYJWAA+/",
            "98PtAQsDJeJ0nYJWAA%2",
            "éééééééééé",
        ] {
            assert_eq!(Sid::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_query_is_read_for_what_matters() {
        let query = |eio, transport, sid| Query { eio, transport, sid, jsonp: false };
        let check = |text: &str, expected: Query<'_>| assert_eq!(Query::parse(text), expected, "{text}");
        check("EIO=4&transport=polling&t=abc", query(Some("4"), Some("polling"), None));
        check("EIO=4&transport=websocket&sid=ZN_-", query(Some("4"), Some("websocket"), Some("ZN_-")));
        check("transport=polling", query(None, Some("polling"), None));
        check("", query(None, None, None));
        check("&&=&eio=4&EIO", query(Some(""), None, None));
        check("EIO=4&EIO=3&sid=a&sid=b", query(Some("4"), None, Some("a")));
        check("token=a=b&transport=a=b", query(None, Some("a=b"), None));
        assert!(Query::parse("EIO=4&j=0").jsonp && Query::parse("j").jsonp);
        assert!(!Query::parse("EIO=4&jx=0").jsonp);
    }

    #[test]
    fn faults_are_those_of_node() {
        let check = |fault: Fault, status: u16, json: &str| {
            assert_eq!((fault.status().0, text(|out| fault.encode(out))), (status, json.to_owned()));
        };
        check(Fault::UnknownTransport, 400, r#"{"code":0,"message":"Transport unknown"}"#);
        check(Fault::UnknownSession, 400, r#"{"code":1,"message":"Session ID unknown"}"#);
        check(Fault::HandshakeMethod, 400, r#"{"code":2,"message":"Bad handshake method"}"#);
        check(Fault::BadRequest, 400, r#"{"code":3,"message":"Bad request"}"#);
        check(Fault::Forbidden, 403, r#"{"code":4,"message":"Forbidden"}"#);
        check(Fault::UnsupportedVersion, 400, r#"{"code":5,"message":"Unsupported protocol version"}"#);
    }
}
