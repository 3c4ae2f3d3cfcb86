//! What the server says, decoded by others' code.

use super::clients::{ACCEPT, Event};
use super::model::Peer;
use crate::dialect::Dialect;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::rc::Rc;
use tungstenite::protocol::frame::{FrameHeader, coding};

/// What the server says, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Answer { status: u16, closes: bool, head_only: bool },
    Switch { subprotocol: bool },
    Ack(String),
    Joined(String, BTreeMap<String, u64>),
    Pong(Option<String>),
    Error { code: String, id: Option<String>, retry_ms: Option<u64> },
    Event(Rc<Event>),
    Dropped(u64),
    Echo { binary: bool, payload: Vec<u8> },
    WebSocketPong(Vec<u8>),
    WebSocketPing,
    Close(Option<u16>),
}

impl Said {
    /// More bytes than it takes.
    pub(super) fn bytes_max(&self) -> usize {
        let id_bytes = |id: &Option<String>| id.as_ref().map_or(0, String::len);
        match self {
            Said::Answer { .. } | Said::Switch { .. } => 500,
            Said::Ack(id) => 60 + id.len(),
            Said::Joined(id, rooms) => {
                60 + id.len() + 3 * rooms.keys().map(|name| 60 + 2 * name.len()).sum::<usize>()
            }
            Said::Pong(id) => 60 + id_bytes(id),
            Said::Error { id, .. } => 500 + id_bytes(id),
            Said::Event(event) => 100 + 2 * event.room.len() + event.name.len() + event.payload.len(),
            Said::Echo { payload, .. } | Said::WebSocketPong(payload) => 10 + payload.len(),
            Said::WebSocketPing => 2,
            Said::Close(_) | Said::Dropped(_) => 127,
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
    let mut cursor = Cursor::new(bytes);
    let (header, length) = FrameHeader::parse(&mut cursor).expect("a frame")?;
    let start = cursor.position() as usize;
    let payload = bytes.get(start..start + length as usize)?;
    assert!(header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3, "a plain frame: {header:?}");
    assert!(header.mask.is_none() && start == header.len(length), "the shortest header: {header:?}");
    let said = match (header.opcode, peer.dialect) {
        (coding::OpCode::Control(control), _) => {
            assert!(length <= 125, "a control frame is short");
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
                Dialect::SocketIo | Dialect::EngineIo => unreachable!("no client speaks it"),
            }
        }
        (coding::OpCode::Data(_), None) => panic!("a message before the upgrade"),
    };
    Some((said, start + length as usize))
}

/// The fields of all that throng says in the native dialect, as docs/protocol.md has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    #[serde(borrow)]
    pub(super) id: Option<&'a RawValue>,
    pub(super) rooms: Option<BTreeMap<String, Members>>,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) retry_ms: Option<u64>,
    pub(super) room: Option<String>,
    pub(super) event: Option<String>,
    /// `null` is data, too.
    #[serde(borrow, default, deserialize_with = "whatever_is_there")]
    pub(super) data: Option<&'a RawValue>,
    pub(super) count: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    pub(super) members: u64,
}

fn whatever_is_there<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// A native message; with `attached`, the part of a binary frame before its payload.
fn decode_message(json: &[u8], attached: Option<&[u8]>) -> Said {
    let text = std::str::from_utf8(json).expect("text is UTF-8");
    let message =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is not a message: {error}"));
    let Message { kind, id, rooms, code, message, retry_ms, room, event, data, count } = message;
    let id = id.map(|id| id.get().to_owned());
    match (kind, id, rooms, code, message, retry_ms, room, event, data, count, attached) {
        ("ack", Some(id), None, None, None, None, None, None, None, None, None) => Said::Ack(id),
        ("ack", Some(id), Some(rooms), None, None, None, None, None, None, None, None) => {
            Said::Joined(id, rooms.into_iter().map(|(name, members)| (name, members.members)).collect())
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
    let head_only = matches!(expected, Some(Said::Answer { head_only: true, .. }));
    let length: usize = value("Content-Length").expect("a length").parse().expect("a number");
    let body = bytes.get(head_bytes..head_bytes + if head_only { 0 } else { length })?;
    if !head_only {
        serde_json::from_slice::<serde_json::Value>(body).expect("the body is JSON");
    }
    let closes = value("Connection").is_some_and(|value| value.contains("close"));
    Some((Said::Answer { status, closes, head_only }, head_bytes + body.len()))
}
