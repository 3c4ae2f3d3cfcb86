//! What the server says, decoded by others' code.

use super::clients::{ACCEPT, Event, quoted};
use super::model::Peer;
use crate::dialect::Dialect;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Cursor, Read};
use std::rc::Rc;
use tungstenite::protocol::frame::{FrameHeader, coding};

/// What the server says, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Answer {
        status: u16,
        closes: bool,
        head_only: bool,
    },
    Switch {
        subprotocol: bool,
    },
    Ack(String),
    /// The ack of a publication that asked.
    Answers {
        id: String,
        answers: Vec<String>,
        missing: u64,
    },
    Joined(String, BTreeMap<String, u64>),
    /// How many members a room has.
    Present {
        id: String,
        room: String,
        members: u64,
    },
    Pong(Option<String>),
    /// The server shuts down: the client is to come back after so many milliseconds; where that is expected, so many at most.
    Disconnect {
        from_ms: u64,
        retry_ms: u64,
    },
    Error {
        code: String,
        id: Option<String>,
        retry_ms: Option<u64>,
    },
    Event(Rc<Event>),
    /// An event as a plain client gets it.
    Plain(String),
    Dropped(u64),
    Echo {
        binary: bool,
        payload: Vec<u8>,
    },
    WebSocketPong(Vec<u8>),
    WebSocketPing,
    Close(Option<u16>),
    /// A packet to a session.
    Packet(Packet),
    /// The answer to a GET of a session, or to the request that began it.
    Poll {
        packets: Vec<Packet>,
        closes: bool,
    },
    /// What is expected of the answer to a GET when the session ends: what was said to it, then the `mark`. Decoded, it is a `Poll`.
    Last {
        packets: Vec<Packet>,
        mark: Packet,
        lack: Lack,
        closes: bool,
    },
    /// The answer to a POST.
    Posted {
        closes: bool,
    },
    /// A request that is refused in the words of Engine.IO.
    Fault {
        code: u8,
        closes: bool,
        head_only: bool,
    },
}

/// A packet of Engine.IO, as the server says it. Of a message, what Socket.IO says with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Open {
        can_upgrade: bool,
        sid: Sid,
    },
    Close,
    Ping,
    Noop,
    /// The WebSocket works to which a session may move.
    Probed,
    Joined {
        namespace: String,
        sid: Sid,
    },
    Refused {
        namespace: String,
    },
    /// The client was put out of it.
    PutOut {
        namespace: String,
    },
    Event {
        namespace: String,
        name: String,
        args: String,
        attachments: Vec<Bytes>,
        /// The number of the question that it is.
        id: Option<String>,
    },
    Ack {
        namespace: String,
        id: String,
        args: String,
        attachments: Vec<Bytes>,
    },
    /// One that was cut off from its packet at the end of an answer.
    Attachment(Bytes),
    /// Why an event was not carried out: in its ack, or where none was asked for in an event.
    Error {
        namespace: String,
        id: Option<String>,
        code: String,
        retry_ms: Option<u64>,
    },
}

/// An attachment. There may be many, too long for a message that says what went wrong.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes {:?}", self.0.len(), &self.0[..self.0.len().min(8)])
    }
}

/// The id of a session, or of its socket in a namespace. Nobody can predict it: any is as good as any other.
#[derive(Clone, Default)]
pub(super) struct Sid(pub(super) String);

impl PartialEq for Sid {
    fn eq(&self, _: &Sid) -> bool {
        true
    }
}

impl Eq for Sid {}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What may be missing from the last words to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    /// Any of the packets: its outbox was full.
    Some,
    /// All from some packet on: it was full, and the session ended for that.
    Rest,
}

impl Said {
    /// More bytes than it takes.
    pub(super) fn bytes_max(&self) -> usize {
        let id_bytes = |id: &Option<String>| id.as_ref().map_or(0, String::len);
        match self {
            Said::Answer { .. } | Said::Switch { .. } => 500,
            Said::Ack(id) => 60 + id.len(),
            Said::Answers { id, answers, .. } => {
                100 + id.len() + answers.iter().map(|answer| 1 + answer.len()).sum::<usize>()
            }
            Said::Joined(id, rooms) => {
                60 + id.len() + 3 * rooms.keys().map(|name| 60 + 2 * name.len()).sum::<usize>()
            }
            Said::Present { id, room, .. } => 150 + id.len() + 2 * room.len(),
            Said::Pong(id) => 60 + id_bytes(id),
            Said::Disconnect { .. } => 60,
            Said::Error { id, .. } => 500 + id_bytes(id),
            Said::Plain(text) => 10 + text.len(),
            Said::Event(event) => 100 + 2 * event.room.len() + event.name.len() + event.payload.len(),
            Said::Echo { payload, .. } | Said::WebSocketPong(payload) => 10 + payload.len(),
            Said::WebSocketPing => 2,
            Said::Close(_) | Said::Dropped(_) => 127,
            Said::Packet(packet) => packet.bytes_max(),
            Said::Poll { packets, .. } | Said::Last { packets, .. } => {
                500 + packets.iter().map(|packet| packet.bytes_max() * 4 / 3).sum::<usize>()
            }
            Said::Posted { .. } | Said::Fault { .. } => 500,
        }
    }

    /// True when this is expected and `said` is what came of it.
    pub(super) fn fits(&self, said: &Said) -> bool {
        if let (Said::Disconnect { from_ms, retry_ms: to_ms }, Said::Disconnect { retry_ms, .. }) =
            (self, said)
        {
            return (*from_ms..=*to_ms).contains(retry_ms);
        }
        let (Said::Last { packets, mark, lack, closes }, Said::Poll { packets: told, closes: closed }) =
            (self, said)
        else {
            return self == said;
        };
        let Some((last, told)) = told.split_last() else { return false };
        let ends_well = last == mark || (*lack == Lack::Rest && *last == Packet::Close);
        let mut left = packets.iter();
        let holds = |other: &Packet, packet: &Packet| other.lacking(packet).is_some();
        ends_well
            && closes == closed
            && match lack {
                Lack::Nothing => packets == told,
                Lack::Some => told.iter().all(|packet| left.any(|other| holds(other, packet))),
                Lack::Rest => told.iter().all(|packet| left.next().is_some_and(|other| holds(other, packet))),
            }
    }
}

impl Packet {
    fn bytes_max(&self) -> usize {
        let of = |attachments: &[Bytes]| attachments.iter().map(|bytes| 10 + bytes.0.len()).sum::<usize>();
        match self {
            Packet::Open { .. } => 300,
            Packet::Close | Packet::Ping | Packet::Noop | Packet::Probed => 10,
            Packet::Joined { namespace, .. }
            | Packet::Refused { namespace }
            | Packet::PutOut { namespace } => 150 + namespace.len(),
            Packet::Event { namespace, name, args, attachments, .. } => {
                60 + namespace.len() + name.len() + args.len() + of(attachments)
            }
            Packet::Ack { namespace, id, args, attachments } => {
                40 + namespace.len() + id.len() + args.len() + of(attachments)
            }
            Packet::Attachment(bytes) => 10 + bytes.0.len(),
            Packet::Error { .. } => 600,
        }
    }

    /// The attachments that `told` lacks, if it is this packet otherwise.
    pub(super) fn lacking(&self, told: &Packet) -> Option<Vec<Bytes>> {
        let (mut whole, mut part) = (self.clone(), told.clone());
        let mut lacking = Vec::new();
        if let (Some(all), Some(some)) = (whole.attachments(), part.attachments()) {
            lacking = all.split_off(some.len().min(all.len()));
        }
        (whole == part).then_some(lacking)
    }

    fn attachments(&mut self) -> Option<&mut Vec<Bytes>> {
        match self {
            Packet::Event { attachments, .. } | Packet::Ack { attachments, .. } => Some(attachments),
            _ => None,
        }
    }
}

/// Decodes what is at the start of `bytes`, if it is there whole, and answers how long it is.
pub(super) fn decode_next(bytes: &[u8], peer: &Peer) -> Option<(Said, usize)> {
    decode(bytes, peer, peer.switched, 0)
}

/// The same for what is at that `place` in what it is to be told; from `switched` on, it is frames.
pub(super) fn decode(bytes: &[u8], peer: &Peer, switched: bool, place: usize) -> Option<(Said, usize)> {
    if !switched {
        return decode_answer(bytes, peer, place);
    }
    let (header, payload, mut used) = decode_frame(bytes)?;
    let said = match (header.opcode, peer.dialect) {
        (coding::OpCode::Control(control), _) => {
            assert!(payload.len() <= 125, "a control frame is short");
            match control {
                coding::Control::Ping => {
                    assert!(payload.is_empty());
                    Said::WebSocketPing
                }
                coding::Control::Pong => Said::WebSocketPong(payload.to_vec()),
                coding::Control::Close => Said::Close(payload.split_first_chunk().map(|(code, reason)| {
                    std::str::from_utf8(reason).expect("a reason is text");
                    u16::from_be_bytes(*code)
                })),
                coding::Control::Reserved(_) => panic!("a reserved opcode: {header:?}"),
            }
        }
        (coding::OpCode::Data(data), Some(dialect)) => {
            let binary = data == coding::Data::Binary;
            assert!(binary || data == coding::Data::Text, "a whole message: {header:?}");
            match dialect {
                Dialect::Echo => Said::Echo { binary, payload: payload.to_vec() },
                Dialect::Native if binary => {
                    let newline = payload.iter().position(|byte| *byte == b'\n').expect("a newline");
                    decode_message(&payload[..newline], Some(&payload[newline + 1..]))
                }
                Dialect::Native => decode_message(payload, None),
                Dialect::SocketIo if binary => Said::Packet(Packet::Attachment(Bytes(payload.to_vec()))),
                Dialect::SocketIo => {
                    let text = std::str::from_utf8(payload).expect("text is UTF-8");
                    let mut attachments = Vec::new();
                    for _ in 0..attachments_of(text) {
                        let (header, payload, more) = decode_frame(&bytes[used..])?;
                        assert_eq!(header.opcode, coding::OpCode::Data(coding::Data::Binary), "after {text}");
                        attachments.push(Bytes(payload.to_vec()));
                        used += more;
                    }
                    Said::Packet(decode_packet(text, attachments))
                }
                Dialect::Plain => decode_plain(payload),
                Dialect::EngineIo => unreachable!("no client speaks it"),
            }
        }
        (coding::OpCode::Data(_), None) => panic!("a message before the upgrade"),
    };
    Some((said, used))
}

/// The frame at the start of `bytes`, if it is there whole: its header, its payload, and how long it is.
fn decode_frame(bytes: &[u8]) -> Option<(FrameHeader, &[u8], usize)> {
    let mut cursor = Cursor::new(bytes);
    let (header, length) = FrameHeader::parse(&mut cursor).expect("a frame")?;
    let start = cursor.position() as usize;
    let payload = bytes.get(start..start + length as usize)?;
    assert!(header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3, "a plain frame: {header:?}");
    assert!(header.mask.is_none() && start == header.len(length), "the shortest header: {header:?}");
    Some((header, payload, start + length as usize))
}

/// The fields of all that throng says in the native dialect, as docs/protocol.md has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    rooms: Option<BTreeMap<String, Members>>,
    code: Option<String>,
    message: Option<String>,
    retry_ms: Option<u64>,
    room: Option<String>,
    event: Option<String>,
    /// `null` is data, too.
    #[serde(borrow, default, deserialize_with = "whatever_is_there")]
    data: Option<&'a RawValue>,
    count: Option<u64>,
    #[serde(borrow)]
    answers: Option<Vec<&'a RawValue>>,
    missing: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    members: u64,
}

/// Who is in a room, in a process that is alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Presence<'a> {
    #[serde(rename = "type")]
    _kind: &'a str,
    #[serde(borrow)]
    id: &'a RawValue,
    room: String,
    members: u64,
    nodes: Vec<Node>,
    complete: bool,
    age_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    #[serde(rename = "node")]
    _name: String,
    members: u64,
}

fn whatever_is_there<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// A plain message: an event, or what is said in the native dialect.
fn decode_plain(json: &[u8]) -> Said {
    let text = std::str::from_utf8(json).expect("text is UTF-8");
    serde_json::from_str::<&RawValue>(text).unwrap_or_else(|error| panic!("{text} is no JSON: {error}"));
    let is_ours = ["ack", "error", "presence", "dropped"]
        .iter()
        .any(|kind| text.starts_with(&format!(r#"{{"type":"{kind}","#)));
    if is_ours { decode_message(json, None) } else { Said::Plain(text.to_owned()) }
}

/// What a plain client is told of an event.
pub(super) fn plain_of(event: &Event) -> Said {
    let name = quoted(&event.name);
    let payload = String::from_utf8_lossy(&event.payload);
    Said::Plain(match payload.strip_prefix('{') {
        _ if event.binary => {
            format!(r#"{{"type":{name},"data":{{"base64":"{}"}}}}"#, BASE64.encode(&event.payload))
        }
        _ if payload == "null" => format!(r#"{{"type":{name}}}"#),
        Some(members) => format!(r#"{{"type":{name},{members}"#),
        None => format!(r#"{{"type":{name},"data":{payload}}}"#),
    })
}

/// A native message; with `attached`, the part of a binary frame before its payload.
fn decode_message(json: &[u8], attached: Option<&[u8]>) -> Said {
    let text = std::str::from_utf8(json).expect("text is UTF-8");
    if text.starts_with(r#"{"type":"presence""#) {
        let told: Presence<'_> =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is no presence: {error}"));
        let Presence { id, room, members, nodes, complete, age_ms, .. } = told;
        assert!(complete && age_ms == 0, "nobody else is asked: {text}");
        assert!(nodes.iter().map(|node| node.members).eq([members]), "all are here: {text}");
        return Said::Present { id: id.get().to_owned(), room, members };
    }
    let message =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is not a message: {error}"));
    let Message { kind, id, rooms, code, message, retry_ms, room, event, data, count, answers, missing } =
        message;
    let id = id.map(|id| id.get().to_owned());
    if let (Some(answers), Some(missing)) = (&answers, missing) {
        let others = (rooms, code, message, retry_ms, room, event, data, count, attached);
        assert!(matches!(others, (None, None, None, None, None, None, None, None, None)), "{text}");
        assert_eq!(kind, "ack");
        let answers = answers.iter().map(|answer| answer.get().to_owned()).collect();
        return Said::Answers { id: id.expect("who asks says an id"), answers, missing };
    }
    assert!(answers.is_none() && missing.is_none(), "{text} has one without the other");
    match (kind, id, rooms, code, message, retry_ms, room, event, data, count, attached) {
        ("ack", Some(id), None, None, None, None, None, None, None, None, None) => Said::Ack(id),
        ("ack", Some(id), Some(rooms), None, None, None, None, None, None, None, None) => {
            Said::Joined(id, rooms.into_iter().map(|(name, members)| (name, members.members)).collect())
        }
        ("disconnect", None, None, None, None, Some(retry_ms), None, None, None, None, None) => {
            Said::Disconnect { from_ms: retry_ms, retry_ms }
        }
        ("pong", id, None, None, None, None, None, None, None, None, None) => Said::Pong(id),
        ("error", id, None, Some(code), Some(_), retry_ms, None, None, None, None, None) => {
            Said::Error { code, id, retry_ms }
        }
        ("event", None, None, None, None, None, Some(room), Some(name), Some(data), None, None) => {
            Said::Event(Rc::new(Event { room, name, payload: data.get().as_bytes().to_vec(), binary: false }))
        }
        ("event", None, None, None, None, None, Some(room), Some(name), None, None, Some(payload)) => {
            Said::Event(Rc::new(Event { room, name, payload: payload.to_vec(), binary: true }))
        }
        ("dropped", None, None, None, None, None, None, None, None, Some(count), None) => {
            Said::Dropped(count)
        }
        _ => panic!("{text} is no message of the protocol"),
    }
}

fn decode_answer(bytes: &[u8], peer: &Peer, place: usize) -> Option<(Said, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes).expect("an HTTP answer") else {
        return None;
    };
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| std::str::from_utf8(header.value).expect("a header is text"))
    };
    let status = response.code.expect("a whole head has a status");
    if status == 101 {
        assert_eq!((value("Upgrade"), value("Connection")), (Some("websocket"), Some("Upgrade")));
        assert_eq!(value("Sec-WebSocket-Accept"), Some(ACCEPT));
        let subprotocol = value("Sec-WebSocket-Protocol");
        assert!(subprotocol.is_none_or(|name| name == "throng.v1"));
        return Some((Said::Switch { subprotocol: subprotocol.is_some() }, head_bytes));
    }
    let expected = peer.expected.get(place).map(|expected| &expected.said);
    let head_only =
        matches!(expected, Some(Said::Answer { head_only: true, .. } | Said::Fault { head_only: true, .. }));
    let length: usize = value("Content-Length").expect("a length").parse().expect("a number");
    let body = bytes.get(head_bytes..head_bytes + if head_only { 0 } else { length })?;
    let closes = value("Connection").is_some_and(|value| value.contains("close"));
    let used = head_bytes + body.len();
    if head_only || status == 204 {
        // What it would say is not there to be read.
        let said = match expected {
            Some(Said::Fault { code, .. }) => Said::Fault { code: *code, closes, head_only },
            _ => Said::Answer { status, closes, head_only },
        };
        return Some((said, used));
    }
    let unzipped = value("Content-Encoding").map(|coding| {
        assert_eq!(coding, "gzip");
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(body).read_to_end(&mut text).expect("gzip");
        text
    });
    let text = std::str::from_utf8(unzipped.as_deref().unwrap_or(body)).expect("a body is text");
    let said = match (value("Content-Type").expect("a type"), status) {
        ("application/json", _) => {
            let json: serde_json::Value = serde_json::from_str(text).expect("the body is JSON");
            match json.get("code") {
                Some(code) => {
                    let code = code.as_u64().expect("a number") as u8;
                    check_fault(code, json["message"].as_str().expect("text"), status);
                    Said::Fault { code, closes, head_only }
                }
                None => Said::Answer { status, closes, head_only },
            }
        }
        ("text/html", 200) => {
            assert_eq!(text, "ok");
            Said::Posted { closes }
        }
        ("text/html", _) => {
            let code = FAULTS.iter().position(|fault| *fault == text).expect("a fault") as u8;
            check_fault(code, text, status);
            assert!(closes, "there is no going on after an upgrade that was refused");
            Said::Fault { code, closes, head_only }
        }
        ("text/plain; charset=UTF-8", 200) => Said::Poll { packets: decode_body(text), closes },
        other => panic!("{other:?} is no answer of throng"),
    };
    Some((said, used))
}

/// Why Engine.IO refuses a request, by the number it has there.
const FAULTS: [&str; 6] = [
    "Transport unknown",
    "Session ID unknown",
    "Bad handshake method",
    "Bad request",
    "Forbidden",
    "Unsupported protocol version",
];

fn check_fault(code: u8, message: &str, status: u16) {
    assert_eq!((message, status), (FAULTS[usize::from(code)], if code == 4 { 403 } else { 400 }));
}

/// The packets in the answer to a GET.
fn decode_body(body: &str) -> Vec<Packet> {
    let mut pieces = body.split('\x1e').peekable();
    let mut packets = Vec::new();
    let bytes = |base64: &str| Bytes(BASE64.decode(base64.as_bytes()).expect("base64"));
    while let Some(text) = pieces.next() {
        if let Some(base64) = text.strip_prefix('b') {
            packets.push(Packet::Attachment(bytes(base64)));
            continue;
        }
        // In a full answer some may be missing.
        let attachments = (0..attachments_of(text))
            .map_while(|_| pieces.next_if(|piece| piece.starts_with('b')))
            .map(|base64| bytes(&base64[1..]));
        packets.push(decode_packet(text, attachments.collect()));
    }
    packets
}

/// How many attachments follow a packet.
fn attachments_of(text: &str) -> usize {
    match text.strip_prefix("45").or(text.strip_prefix("46")).and_then(|rest| rest.split_once('-')) {
        Some((count, _)) => count.parse().expect("a number"),
        None => 0,
    }
}

/// A packet of Engine.IO, and what Socket.IO says with it.
fn decode_packet(text: &str, attachments: Vec<Bytes>) -> Packet {
    let message = match text {
        "1" => return Packet::Close,
        "2" => return Packet::Ping,
        "3probe" => return Packet::Probed,
        "6" => return Packet::Noop,
        _ => match text.split_at(1) {
            ("0", json) => return decode_open(json),
            ("4", message) => message,
            _ => panic!("{text} is no packet of Engine.IO"),
        },
    };
    let (kind, rest) = message.split_at(1);
    let rest = if matches!(kind, "5" | "6") { rest.split_once('-').expect("a count").1 } else { rest };
    let (namespace, rest) = match rest.strip_prefix('/') {
        Some(rest) => rest.split_once(',').map(|(name, rest)| (format!("/{name}"), rest)).expect("a comma"),
        None => ("/".to_owned(), rest),
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (id, json) = rest.split_at(digits);
    if (kind, rest) == ("1", "") {
        return Packet::PutOut { namespace };
    }
    let array = || json.strip_prefix('[').and_then(|json| json.strip_suffix(']')).expect("an array");
    serde_json::from_str::<&RawValue>(json).unwrap_or_else(|error| panic!("{text} has no JSON: {error}"));
    let id = Some(id.to_owned()).filter(|id| !id.is_empty());
    match (kind, id) {
        ("0", None) => {
            let Connect { sid } = serde_json::from_str(json).expect("an id");
            assert_eq!(sid.len(), 20, "{text}");
            Packet::Joined { namespace, sid: Sid(sid) }
        }
        ("4", None) => {
            let Refusal { message } = serde_json::from_str(json).expect("a reason");
            assert!(!message.is_empty());
            Packet::Refused { namespace }
        }
        ("2" | "5", id) => {
            let mut values = serde_json::Deserializer::from_str(array()).into_iter::<String>();
            let name = values.next().expect("a name").expect("text");
            let args = &array()[values.byte_offset()..];
            let args = args.strip_prefix(',').unwrap_or(args).to_owned();
            match serde_json::from_str(&args) {
                Ok(Reason { code, message, retry_ms }) if name == "error" && id.is_none() => {
                    assert!(!message.is_empty());
                    Packet::Error { namespace, id: None, code, retry_ms }
                }
                _ => Packet::Event { namespace, name, args, attachments, id },
            }
        }
        ("3" | "6", Some(id)) => match serde_json::from_str(array()) {
            Ok(Failed { error: Reason { code, message, retry_ms } }) => {
                assert!(!message.is_empty());
                Packet::Error { namespace, id: Some(id), code, retry_ms }
            }
            Err(_) => Packet::Ack { namespace, id, args: array().to_owned(), attachments },
        },
        _ => panic!("{text} is no packet of a server"),
    }
}

fn decode_open(json: &str) -> Packet {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Open {
        sid: String,
        upgrades: Vec<String>,
        #[serde(rename = "pingInterval")]
        _ping_interval: u32,
        #[serde(rename = "pingTimeout")]
        _ping_timeout: u32,
        #[serde(rename = "maxPayload")]
        _max_payload: usize,
    }
    let Open { sid, upgrades, .. } = serde_json::from_str(json).expect("a handshake");
    assert_eq!(sid.len(), 20, "{json}");
    assert!(upgrades.is_empty() || upgrades == ["websocket"]);
    Packet::Open { can_upgrade: !upgrades.is_empty(), sid: Sid(sid) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Connect {
    sid: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    error: Reason,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    code: String,
    message: String,
    retry_ms: Option<u64>,
}
