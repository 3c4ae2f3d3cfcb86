//! The native dialect: `docs/protocol.md` in code. JSON in, JSON out; the data of an event is never looked into beyond
//! checking that it is JSON and not too deep.

use super::attachments;
use crate::json;
use crate::message::{Publication, is_reserved_room};
use crate::rules::RESERVED_EVENTS;
use serde::Deserialize;
use serde::de::{Error as _, Unexpected};
use serde_json::error::Category;
use serde_json::value::RawValue;
use smallvec::{SmallVec, smallvec};
use std::borrow::Cow;
use std::io::Write;

/// The deepest nesting of arrays and objects that `data` may have. Other parsers stop at 127 (serde_json) to 1,000 (Python), and what
/// we pass on should not break whoever reads it, with the message around it and perhaps a batch around that.
pub const DEPTH_MAX: usize = 120;
/// The longest `id`, in bytes as it is written.
pub const ID_BYTES_MAX: usize = 64;
/// Where the message of an error is cut, in bytes.
const MESSAGE_BYTES_MAX: usize = 200;
/// The longest time for which answers to an event are collected, in milliseconds.
pub const ASK_MS_MAX: u32 = 60_000;
/// The longest event name, in bytes.
pub const EVENT_BYTES_MAX: usize = 200;

/// What a client wants.
#[derive(Debug)]
pub enum Command<'a> {
    /// To be a member of these rooms.
    Join {
        /// Names, checked; each once.
        rooms: Vec<Cow<'a, str>>,
        /// See [`Id`].
        id: Option<Id<'a>>,
    },
    /// To be a member of these rooms no longer.
    Leave {
        /// Names, checked.
        rooms: Vec<Cow<'a, str>>,
        /// See [`Id`].
        id: Option<Id<'a>>,
    },
    /// To send an event to the members of rooms.
    Publish(Publish<'a>),
    /// To send an event to the backend.
    Call {
        /// The event's name, checked.
        event: Cow<'a, str>,
        /// JSON text, or bytes when it came in a binary frame.
        payload: &'a [u8],
        /// See [`Id`].
        id: Option<Id<'a>>,
    },
    /// To know who is in a room.
    Presence {
        /// The room's name, checked.
        room: Cow<'a, str>,
        /// True when its members are wanted, and not only how many there are.
        who: bool,
        /// See [`Id`]. There is one in the native dialect.
        id: Option<Id<'a>>,
    },
    /// To know whether anybody is there.
    Ping {
        /// See [`Id`].
        id: Option<Id<'a>>,
    },
    /// To be known as the bearer of a token.
    Auth {
        /// The token, not checked.
        token: Cow<'a, str>,
        /// See [`Id`].
        id: Option<Id<'a>>,
    },
}

impl<'a> Command<'a> {
    /// See [`Id`].
    pub fn id(&self) -> Option<Id<'a>> {
        match self {
            Command::Join { id, .. }
            | Command::Leave { id, .. }
            | Command::Ping { id }
            | Command::Call { id, .. }
            | Command::Presence { id, .. }
            | Command::Auth { id, .. } => *id,
            Command::Publish(publish) => publish.id,
        }
    }
}

/// An event that a client wants to send.
#[derive(Clone, Debug)]
pub struct Publish<'a> {
    /// The rooms' names, checked; each once, and at least one.
    pub rooms: Names<'a>,
    /// Rooms whose members do not get it, likewise.
    pub except: Names<'a>,
    /// The event's name, checked.
    pub event: Cow<'a, str>,
    /// JSON text, or bytes when it came in a binary frame.
    pub payload: &'a [u8],
    /// True when the sender wants the event too.
    pub echo: bool,
    /// True when it is better lost than late.
    pub volatile: bool,
    /// How long answers to it are collected, in milliseconds, at most [`ASK_MS_MAX`]; `None` when none are wanted.
    pub ask_ms: Option<u32>,
    /// See [`Id`].
    pub id: Option<Id<'a>>,
}

/// Names of rooms.
pub type Names<'a> = SmallVec<[Cow<'a, str>; 1]>;

/// A message's `id`, as it is written: a JSON number or string of at most [`ID_BYTES_MAX`] bytes.
pub type Id<'a> = &'a str;

/// Why a message was not carried out.
#[derive(Debug)]
pub struct Refusal<'a> {
    /// The stable code.
    pub code: Code,
    /// For people.
    pub message: Cow<'static, str>,
    /// The `id` of the message, where it could be read.
    pub id: Option<Id<'a>>,
    /// Milliseconds after which trying again makes sense.
    pub retry_ms: Option<u32>,
}

/// The codes of `docs/protocol.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Not JSON, or too deep.
    BadJson,
    /// A field is missing or wrong.
    BadMessage,
    /// No such `type`.
    UnknownType,
    /// Not the name of a room.
    BadRoom,
    /// Not the name of an event.
    BadEvent,
    /// Only for members of the room.
    NotMember,
    /// More rooms than the connection or the server may have.
    TooManyRooms,
    /// More messages in one frame than allowed.
    TooManyMessages,
    /// More messages a second than allowed.
    RateLimited,
    /// The server cannot take it now.
    Overloaded,
    /// This client may not do that.
    Forbidden,
    /// Only who brings a token may do anything.
    TokenMissing,
    /// The token has expired.
    TokenExpired,
    /// The token is not good.
    TokenRefused,
    /// Whose the token is could not be found out.
    AuthUnavailable,
    /// The backend did not answer.
    BackendFailed,
}

impl Code {
    /// As it stands in an error message.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadJson => "bad_json",
            Code::BadMessage => "bad_message",
            Code::UnknownType => "unknown_type",
            Code::BadRoom => "bad_room",
            Code::BadEvent => "bad_event",
            Code::NotMember => "not_member",
            Code::TooManyRooms => "too_many_rooms",
            Code::TooManyMessages => "too_many_messages",
            Code::RateLimited => "rate_limited",
            Code::Overloaded => "overloaded",
            Code::Forbidden => "forbidden",
            Code::TokenMissing => "token_missing",
            Code::TokenExpired => "token_expired",
            Code::TokenRefused => "token_refused",
            Code::AuthUnavailable => "auth_unavailable",
            Code::BackendFailed => "backend_failed",
        }
    }
}

impl<'a> Refusal<'a> {
    /// A refusal with nothing but a code and a message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Refusal<'a> {
        Refusal { code, message: message.into(), id: None, retry_ms: None }
    }

    /// The same, for the message with this `id`.
    #[must_use]
    pub fn with_id(self, id: Option<Id<'a>>) -> Refusal<'a> {
        Refusal { id, ..self }
    }

    /// The same, worth trying again after `retry_ms`.
    #[must_use]
    pub fn with_retry(self, retry_ms: u32) -> Refusal<'a> {
        Refusal { retry_ms: Some(retry_ms), ..self }
    }
}

/// The messages in a text frame: one, or those of an array, each still to be decoded.
pub type Messages<'a> = SmallVec<[&'a str; 1]>;

/// Splits a text frame into its messages.
///
/// # Errors
/// When it is an array that is not JSON, or that holds more than `messages_max`.
pub fn split(text: &str, messages_max: usize) -> Result<Messages<'_>, Refusal<'_>> {
    if !text.trim_ascii_start().starts_with('[') {
        return Ok(smallvec![text]);
    }
    let messages: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| refuse_json(&error))?;
    if messages.len() > messages_max {
        let message = format!("{} messages in one frame; at most {messages_max} are taken", messages.len());
        return Err(Refusal::new(Code::TooManyMessages, message));
    }
    Ok(messages.iter().map(|message| message.get()).collect())
}

/// All fields that any message of a client has.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    rooms: Option<Vec<Name<'a>>>,
    #[serde(borrow)]
    room: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    echo: Option<bool>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    except: Option<Vec<Name<'a>>>,
    volatile: Option<bool>,
    ask_ms: Option<u64>,
    #[serde(borrow)]
    token: Option<Name<'a>>,
    who: Option<bool>,
}

/// A string that is borrowed where it has no escapes. (A plain `Cow` inside a `Vec` would always be copied.)
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OnlyId<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// Reads one message of a text frame.
///
/// # Errors
/// What is wrong with it. Nothing has been done then.
pub fn decode(message: &str, room_name_bytes_max: usize) -> Result<Command<'_>, Refusal<'_>> {
    let fields: Fields<'_> = serde_json::from_str(message)
        .and_then(|fields| only_object(message.as_bytes(), fields))
        .map_err(|error| refuse_json(&error).with_id(id_of(message)))?;
    let payload = match fields.data {
        Some(data) if is_too_deep(data.get()) => {
            let refusal = Refusal::new(Code::BadJson, format!("`data` nests deeper than {DEPTH_MAX}"));
            return Err(refusal.with_id(read_id(fields.id)?));
        }
        Some(data) => data.get().as_bytes(),
        None => b"null",
    };
    interpret(fields, payload, room_name_bytes_max)
}

/// The `id` of a message that is otherwise not looked at.
pub fn id_of(message: &str) -> Option<Id<'_>> {
    let OnlyId { id } =
        serde_json::from_str(message).and_then(|fields| only_object(message.as_bytes(), fields)).ok()?;
    read_id(id).ok()?
}

/// The `id` of the message in a binary frame that is otherwise not looked at.
pub fn id_of_binary(frame: &[u8]) -> Option<Id<'_>> {
    let head = frame.split(|byte| *byte == b'\n').next()?;
    id_of(std::str::from_utf8(head).ok()?)
}

/// Reads a binary frame: a publish as JSON, a newline, the payload.
///
/// # Errors
/// What is wrong with it. Nothing has been done then.
pub fn decode_binary(frame: &[u8], room_name_bytes_max: usize) -> Result<Command<'_>, Refusal<'_>> {
    let Some(newline) = frame.iter().position(|byte| *byte == b'\n') else {
        return Err(Refusal::new(
            Code::BadMessage,
            "a binary frame is a publish as JSON, a newline, and the payload",
        ));
    };
    let head = &frame[..newline];
    let fields: Fields<'_> = serde_json::from_slice(head)
        .and_then(|fields| only_object(head, fields))
        .map_err(|error| refuse_json(&error).with_id(id_of_binary(frame)))?;
    let id = read_id(fields.id)?;
    if !matches!(fields.kind.as_deref(), Some("publish" | "call")) {
        return Err(Refusal::new(Code::BadMessage, "a binary frame can only publish or call").with_id(id));
    }
    if fields.data.is_some() {
        return Err(Refusal::new(Code::BadMessage, "in a binary frame the data is what follows the newline")
            .with_id(id));
    }
    interpret(fields, &frame[newline + 1..], room_name_bytes_max)
}

fn interpret<'a>(
    fields: Fields<'a>,
    payload: &'a [u8],
    room_name_bytes_max: usize,
) -> Result<Command<'a>, Refusal<'a>> {
    let id = read_id(fields.id)?;
    let lacks = |field: &str| Refusal::new(Code::BadMessage, format!("`{field}` is missing")).with_id(id);
    let names = |names: Vec<Name<'a>>| {
        let mut names: Vec<_> = names.into_iter().map(|Name(name)| name).collect();
        sort_names(&mut names);
        check_names(&names, room_name_bytes_max).map_err(|refusal| refusal.with_id(id))?;
        Ok(names)
    };
    let event = |event: Option<Cow<'a, str>>| {
        let event = event.ok_or_else(|| lacks("event"))?;
        match event_fault(&event) {
            None => Ok(event),
            Some(fault) => Err(Refusal::new(Code::BadEvent, format!("an event name {fault}")).with_id(id)),
        }
    };
    let rooms = |rooms: Option<Vec<Name<'a>>>| names(rooms.ok_or_else(|| lacks("rooms"))?);
    match fields.kind.as_deref() {
        Some("join") => Ok(Command::Join { rooms: rooms(fields.rooms)?, id }),
        Some("leave") => Ok(Command::Leave { rooms: rooms(fields.rooms)?, id }),
        Some("publish") => {
            let rooms = match (fields.room, fields.rooms) {
                (Some(room), _) => {
                    check_names(std::slice::from_ref(&room), room_name_bytes_max)
                        .map_err(|refusal| refusal.with_id(id))?;
                    Names::from_iter([room])
                }
                (None, Some(rooms)) if !rooms.is_empty() => names(rooms)?.into(),
                (None, _) => return Err(lacks("room")),
            };
            check_targets(&rooms).map_err(|refusal| refusal.with_id(id))?;
            let event = event(fields.event)?;
            let publish = Publish {
                rooms,
                except: names(fields.except.unwrap_or_default())?.into(),
                event,
                payload,
                echo: fields.echo.unwrap_or(false),
                volatile: fields.volatile.unwrap_or(false),
                ask_ms: fields
                    .ask_ms
                    .map(|ask_ms| check_ask_ms(ask_ms).map_err(|refusal| refusal.with_id(id)))
                    .transpose()?,
                id,
            };
            Ok(Command::Publish(publish))
        }
        Some("call") => Ok(Command::Call { event: event(fields.event)?, payload, id }),
        Some("presence") => {
            let room = fields.room.ok_or_else(|| lacks("room"))?;
            check_names(std::slice::from_ref(&room), room_name_bytes_max)
                .map_err(|refusal| refusal.with_id(id))?;
            let id = Some(id.ok_or_else(|| lacks("id"))?);
            Ok(Command::Presence { room, who: fields.who.unwrap_or(false), id })
        }
        Some("ping") => Ok(Command::Ping { id }),
        Some("auth") => {
            let Name(token) = fields.token.ok_or_else(|| lacks("token"))?;
            Ok(Command::Auth { token, id })
        }
        Some(_) => {
            let known = "`type` is join, leave, publish, call, presence, ping or auth";
            Err(Refusal::new(Code::UnknownType, known).with_id(id))
        }
        None => Err(lacks("type")),
    }
}

/// Sorts names, and leaves each in once.
pub(super) fn sort_names(names: &mut Vec<Cow<'_, str>>) {
    if !names.is_sorted_by(|one, next| one < next) {
        names.sort_unstable();
        names.dedup();
    }
}

/// Checks the names of rooms.
pub(super) fn check_names<'a>(names: &[Cow<'_, str>], bytes_max: usize) -> Result<(), Refusal<'a>> {
    match names.iter().find_map(|name| name_fault(name, bytes_max)) {
        Some(fault) => Err(Refusal::new(Code::BadRoom, format!("a room name {fault}"))),
        None => Ok(()),
    }
}

/// Checks how long answers are to be collected.
pub(super) fn check_ask_ms<'a>(ask_ms: u64) -> Result<u32, Refusal<'a>> {
    let checked = u32::try_from(ask_ms).ok().filter(|ask_ms| (1..=ASK_MS_MAX).contains(ask_ms));
    checked.ok_or_else(|| {
        Refusal::new(Code::BadMessage, format!("`ask_ms` is a whole number from 1 to {ASK_MS_MAX}"))
    })
}

/// What is wrong with a name, if anything.
pub(crate) fn name_fault(name: &str, bytes_max: usize) -> Option<String> {
    if name.is_empty() {
        Some("must not be empty".to_owned())
    } else if name.len() > bytes_max {
        Some(format!("has {} bytes; at most {bytes_max} are allowed", name.len()))
    } else if name.chars().any(char::is_control) {
        Some("must not have control characters".to_owned())
    } else {
        None
    }
}

/// What is wrong with the name of an event that is to be published, if anything.
pub(crate) fn event_fault(name: &str) -> Option<String> {
    let is_reserved = RESERVED_EVENTS.contains(&name);
    is_reserved
        .then(|| format!("must not be {name}, which Socket.IO keeps for itself"))
        .or_else(|| name_fault(name, EVENT_BYTES_MAX))
}

/// What is wrong with the rooms that a client publishes to, if anything.
pub(crate) fn check_targets<'a>(rooms: &[Cow<'_, str>]) -> Result<(), Refusal<'a>> {
    match rooms.iter().find(|room| is_reserved_room(room)) {
        Some(room) => Err(Refusal::new(Code::BadRoom, format!("only the server publishes to {room}"))),
        None => Ok(()),
    }
}

/// What is wrong with how many rooms a message names, if anything: a connection is in at most `rooms_max`.
pub(crate) fn check_count(rooms: usize, rooms_max: usize) -> Result<(), Refusal<'static>> {
    let message = || format!("{rooms} rooms in one message; a connection is in at most {rooms_max}");
    if rooms > rooms_max { Err(Refusal::new(Code::TooManyRooms, message())) } else { Ok(()) }
}

pub(super) fn read_id(id: Option<&RawValue>) -> Result<Option<Id<'_>>, Refusal<'_>> {
    let Some(id) = id.map(RawValue::get) else { return Ok(None) };
    let is_scalar = id.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit());
    if is_scalar && id.len() <= ID_BYTES_MAX {
        Ok(Some(id))
    } else {
        let message = format!("`id` is a number or a string of at most {ID_BYTES_MAX} bytes");
        Err(Refusal::new(Code::BadMessage, message))
    }
}

/// Hands on the `fields` of an object. serde also takes an array of their values, in the order in which they are declared.
pub(super) fn only_object<T>(json: &[u8], fields: T) -> serde_json::Result<T> {
    if json.trim_ascii_start().starts_with(b"{") {
        Ok(fields)
    } else {
        Err(serde_json::Error::invalid_type(Unexpected::Seq, &"an object"))
    }
}

pub(super) fn refuse_json<'a>(error: &serde_json::Error) -> Refusal<'a> {
    let code = match error.classify() {
        Category::Data => Code::BadMessage,
        Category::Syntax | Category::Eof | Category::Io => Code::BadJson,
    };
    // serde quotes what it found, which may be as long as the message.
    let mut message = error.to_string();
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    Refusal::new(code, message)
}

/// True when arrays and objects nest deeper than [`DEPTH_MAX`] in `json`, which is known to be well-formed.
pub(crate) fn is_too_deep(json: &str) -> bool {
    // Nesting takes two bytes a level, so most data cannot be too deep.
    if json.len() <= 2 * DEPTH_MAX {
        return false;
    }
    let (mut depth, mut in_string) = (0_usize, false);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                bytes.next();
            }
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    false
}

/// Writes a publication as the `event` message that the members of `room` get; of a binary one the part before the payload is the same
/// without `data`. Without a name there is no room: it is for that member alone.
pub fn encode_event(out: &mut Vec<u8>, room: &str, publication: &Publication) {
    out.extend_from_slice(br#"{"type":"event""#);
    if !room.is_empty() {
        out.extend_from_slice(br#","room":"#);
        encode_str(out, room);
    }
    out.extend_from_slice(br#","event":"#);
    encode_str(out, publication.event());
    if publication.binary {
        out.extend_from_slice(b"}\n");
        out.extend_from_slice(publication.payload());
        return;
    }
    out.extend_from_slice(br#","data":"#);
    let Some(special) = &publication.special else {
        out.extend_from_slice(publication.payload());
        return out.push(b'}');
    };
    let data = str::from_utf8(publication.payload()).unwrap_or("null");
    let data = attachments::inline(data, &special.attachments);
    // A server elsewhere may send several values, or none.
    encode_values(out, if special.is_list { json::split(&data).len() } else { 1 }, &data);
    out.push(b'}');
}

/// Writes several publications of a room as one `batch` message: in it stands for each the `event` message that it would be by itself.
pub fn encode_batch<'p>(out: &mut Vec<u8>, room: &str, items: impl Iterator<Item = &'p Publication>) {
    out.extend_from_slice(br#"{"type":"batch","messages":["#);
    for (place, item) in items.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        encode_event(out, room, item);
    }
    out.extend_from_slice(b"]}");
}

/// Writes the `event` message of an event that is not a publication's: `data` is JSON.
pub fn encode_data(out: &mut Vec<u8>, room: &str, event: &str, data: &str) {
    out.extend_from_slice(br#"{"type":"event","room":"#);
    encode_str(out, room);
    out.extend_from_slice(br#","event":"#);
    encode_str(out, event);
    write!(out, r#","data":{data}}}"#).expect("writing to memory does not fail");
}

/// Writes the `event` message of an event for one client, which is of no room: so many JSON `values` with commas between them, as `data`.
pub fn encode_reply(out: &mut Vec<u8>, event: &str, count: usize, values: &str) {
    out.extend_from_slice(br#"{"type":"event","event":"#);
    encode_str(out, event);
    out.extend_from_slice(br#","data":"#);
    encode_values(out, count, values);
    out.push(b'}');
}

/// Writes the `ack` of an event that asked: what those who got it have answered, JSON values with commas between them, and how many did
/// not answer in time.
pub fn encode_answers(out: &mut Vec<u8>, id: Id<'_>, answers: &str, missing: u32) {
    out.extend_from_slice(br#"{"type":"ack","id":"#);
    out.extend_from_slice(id.as_bytes());
    write!(out, r#","answers":[{answers}],"missing":{missing}}}"#).expect("writing to memory does not fail");
}

/// Writes an `ack` with nothing but its id.
pub fn encode_ack(out: &mut Vec<u8>, id: Id<'_>) {
    out.extend_from_slice(br#"{"type":"ack","id":"#);
    out.extend_from_slice(id.as_bytes());
    out.push(b'}');
}

/// Writes the `ack` of a call: so many JSON `values` with commas between them, as `data`.
pub fn encode_result(out: &mut Vec<u8>, id: Id<'_>, count: usize, values: &str) {
    write!(out, r#"{{"type":"ack","id":{id},"data":"#).expect("writing to memory does not fail");
    encode_values(out, count, values);
    out.push(b'}');
}

/// Writes several values as a list of them, one as it is, and none as `null`.
fn encode_values(out: &mut Vec<u8>, count: usize, values: &str) {
    match count {
        0 => out.extend_from_slice(b"null"),
        1 => out.extend_from_slice(values.as_bytes()),
        _ => write!(out, "[{values}]").expect("writing to memory does not fail"),
    }
}

/// Writes the `ack` of a join: for each room how many members it had before.
pub fn encode_joined<'n>(out: &mut Vec<u8>, id: Id<'_>, rooms: impl Iterator<Item = (&'n str, u32)>) {
    out.extend_from_slice(br#"{"type":"ack","id":"#);
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(br#","rooms":{"#);
    for (i, (name, members)) in rooms.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        encode_str(out, name);
        write!(out, r#":{{"members":{members}}}"#).expect("writing to memory does not fail");
    }
    out.extend_from_slice(b"}}");
}

/// Writes who is in a room: `fields` are those of the answer, JSON without braces around them.
pub fn encode_presence(out: &mut Vec<u8>, id: Id<'_>, fields: &str, age_ms: u64) {
    write!(out, r#"{{"type":"presence","id":{id},{fields},"age_ms":{age_ms}}}"#)
        .expect("writing to memory does not fail");
}

/// Writes a `pong`.
pub fn encode_pong(out: &mut Vec<u8>, id: Option<Id<'_>>) {
    out.extend_from_slice(br#"{"type":"pong""#);
    encode_id(out, id);
    out.push(b'}');
}

/// Writes an `error`.
pub fn encode_error(out: &mut Vec<u8>, refusal: &Refusal<'_>) {
    write!(out, r#"{{"type":"error","code":"{}""#, refusal.code.as_str())
        .expect("writing to memory does not fail");
    encode_id(out, refusal.id);
    out.extend_from_slice(br#","message":"#);
    encode_str(out, &refusal.message);
    if let Some(retry_ms) = refusal.retry_ms {
        write!(out, r#","retry_ms":{retry_ms}"#).expect("writing to memory does not fail");
    }
    out.push(b'}');
}

/// Writes the message that comes before the close of a server that shuts down: come back after so many milliseconds.
pub fn encode_disconnect(out: &mut Vec<u8>, retry_ms: u32) {
    write!(out, r#"{{"type":"disconnect","retry_ms":{retry_ms}}}"#).expect("writing to memory does not fail");
}

/// Writes the message that says how many were lost.
pub fn encode_dropped(out: &mut Vec<u8>, count: u64) {
    write!(out, r#"{{"type":"dropped","count":{count}}}"#).expect("writing to memory does not fail");
}

fn encode_id(out: &mut Vec<u8>, id: Option<Id<'_>>) {
    if let Some(id) = id {
        out.extend_from_slice(br#","id":"#);
        out.extend_from_slice(id.as_bytes());
    }
}

pub(crate) fn encode_str(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, RoomId};
    use crate::time::Time;
    use std::num::NonZeroU32;

    fn refused(message: &str) -> (Code, String, Option<&str>) {
        let refusal = decode(message, 20).expect_err("must be refused");
        (refusal.code, refusal.message.into_owned(), refusal.id)
    }

    #[test]
    fn the_messages_of_the_protocol_are_understood() {
        match decode(r#" {"type":"join","rooms":["a","b\u00e9"],"id":1} "#, 20).expect("a join") {
            Command::Join { rooms, id } => {
                assert_eq!((rooms.as_slice(), id), (["a".into(), "bé".into()].as_slice(), Some("1")));
                assert!(matches!(rooms[0], Cow::Borrowed(_)), "a plain name is not copied");
            }
            other => panic!("{other:?}"),
        }
        let publish =
            r#"{"type":"publish","room":"a","event":"bid","data": {"x" : [1, 2.50]} ,"id":"q\"1","more":[]}"#;
        match decode(publish, 20).expect("a publish") {
            Command::Publish(Publish { rooms, event, payload, echo, id, .. }) => {
                assert_eq!(rooms.as_slice(), ["a"]);
                assert_eq!((&*event, echo, id), ("bid", false, Some(r#""q\"1""#)));
                assert_eq!(payload, br#"{"x" : [1, 2.50]}"#, "byte for byte");
            }
            other => panic!("{other:?}"),
        }
        let Ok(Command::Publish(Publish { payload, echo: true, .. })) =
            decode(r#"{"type":"publish","room":"a","event":"e","echo":true}"#, 20)
        else {
            panic!("data is optional")
        };
        assert_eq!(payload, b"null");
        assert!(matches!(decode(r#"{"type":"leave","rooms":[]}"#, 20), Ok(Command::Leave { id: None, .. })));
        assert!(matches!(
            decode(r#"{"type":"ping","id":-1.5e3}"#, 20),
            Ok(Command::Ping { id: Some("-1.5e3") })
        ));
    }

    #[test]
    fn who_is_in_a_room_can_be_asked_and_told() {
        let check = |message: &str, who: bool| match decode(message, 20).expect("a question") {
            Command::Presence { room, who: asked, id } => {
                assert_eq!((&*room, asked, id), ("a", who, Some("1")));
            }
            other => panic!("{other:?}"),
        };
        check(r#"{"type":"presence","room":"a","id":1}"#, false);
        check(r#"{"type":"presence","room":"a","id":1,"who":true}"#, true);
        assert_eq!(refused(r#"{"type":"presence","room":"a"}"#).1, "`id` is missing");
        assert_eq!(refused(r#"{"type":"presence","room":"","id":1}"#).0, Code::BadRoom);
        let wrong = refused(r#"{"type":"presence","room":"a","id":1,"who":1}"#);
        assert_eq!((wrong.0, wrong.2), (Code::BadMessage, Some("1")));
        let mut out = Vec::new();
        encode_presence(&mut out, "1", r#""room":"a","members":2"#, 7);
        assert_eq!(out, br#"{"type":"presence","id":1,"room":"a","members":2,"age_ms":7}"#);
    }

    #[test]
    fn what_is_wrong_is_named_with_the_id_of_the_message() {
        let check = |message: &str, code: Code, says: &str, id: Option<&str>| {
            let (got, text, got_id) = refused(message);
            assert!(
                got == code && text.contains(says) && got_id == id,
                "{message}: {got:?} {text} {got_id:?}"
            );
        };
        check("", Code::BadJson, "EOF", None);
        check("{", Code::BadJson, "line 1 column 1", None);
        check(r#"{"type":"ping"} x"#, Code::BadJson, "trailing", None);
        check("7", Code::BadMessage, "expected", None);
        check("{}", Code::BadMessage, "`type` is missing", None);
        check(r#"{"type":7,"id":1}"#, Code::BadMessage, "invalid type", Some("1"));
        check(r#"{"type":"dance","id":1}"#, Code::UnknownType, "join", Some("1"));
        check(r#"{"type":"join","id":1}"#, Code::BadMessage, "`rooms` is missing", Some("1"));
        check(r#"{"type":"join","rooms":"a","id":1}"#, Code::BadMessage, "sequence", Some("1"));
        check(r#"{"type":"join","rooms":[""],"id":1}"#, Code::BadRoom, "empty", Some("1"));
        check(r#"{"type":"join","rooms":["a\nb"],"id":1}"#, Code::BadRoom, "control", Some("1"));
        check(r#"{"type":"join","rooms":["aaaaaaaaaaaaaaaaaaaaa"]}"#, Code::BadRoom, "21 bytes", None);
        check(r#"{"type":"publish","room":"a","id":1}"#, Code::BadMessage, "`event` is missing", Some("1"));
        check(r#"{"type":"publish","room":"a","event":"\u0000"}"#, Code::BadEvent, "control", None);
        check(r#"{"type":"publish","room":"a","event":"disconnect"}"#, Code::BadEvent, "itself", None);
        check(
            r#"{"type":"publish","rooms":["throng:gaps"],"event":"gap"}"#,
            Code::BadRoom,
            "only the server",
            None,
        );
        check(r#"{"type":"ping","id":{}}"#, Code::BadMessage, "`id` is", None);
        check(&format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(63)), Code::BadMessage, "64 bytes", None);
        let long = format!(r#"{{"type":"join","rooms":"{}","id":1}}"#, "ü".repeat(10_000));
        let (_, text, _) = refused(&long);
        assert!(text.len() <= MESSAGE_BYTES_MAX + 3, "what a client sent does not come back at length");
        check(r#"{"type":"ping","id":1,"id":2}"#, Code::BadMessage, "duplicate", None);
    }

    #[test]
    fn deep_data_is_refused_and_strings_do_not_count() {
        let nested = |depth: usize| {
            format!(
                r#"{{"type":"publish","room":"a","event":"e","data":{}{}}}"#,
                "[".repeat(depth),
                "]".repeat(depth)
            )
        };
        assert!(decode(&nested(DEPTH_MAX), 20).is_ok());
        assert_eq!(refused(&nested(DEPTH_MAX + 1)).0, Code::BadJson);
        assert_eq!(refused(&nested(100_000)).0, Code::BadJson);
        let text = format!(r#"{{"type":"publish","room":"a","event":"e","data":"\"{}"}}"#, "[".repeat(1000));
        assert!(decode(&text, 20).is_ok());
        // Depth outside of `data` is skipped without recursion, too.
        let elsewhere = format!(r#"{{"type":"ping","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(decode(&elsewhere, 20).is_ok());
    }

    #[test]
    fn an_array_is_its_messages_and_bounded() {
        let messages = split(r#" [ {"type":"ping"} , 7, {"a":[1,2]}]"#, 3).expect("three");
        assert_eq!(messages.as_slice(), [r#"{"type":"ping"}"#, "7", r#"{"a":[1,2]}"#]);
        assert_eq!(split("[1,2,3,4]", 3).expect_err("too many").code, Code::TooManyMessages);
        assert_eq!(split("[1,", 3).expect_err("cut short").code, Code::BadJson);
        assert_eq!(split("[]", 3).expect("none").len(), 0);
    }

    #[test]
    fn a_message_is_an_object_even_where_serde_takes_an_array() {
        let (code, message, id) = refused(r#"["ping",null,null,null,null,false,7]"#);
        assert_eq!((code, id), (Code::BadMessage, None));
        assert!(message.contains("object"), "{message}");
        let binary = decode_binary(b"[\"publish\",null,\"a\",\"e\",null,false,7]\nbytes", 20);
        assert_eq!(binary.expect_err("must be refused").code, Code::BadMessage);
    }

    #[test]
    fn binary_frames_publish_and_nothing_else() {
        let Ok(Command::Publish(Publish { payload, id: Some("4"), .. })) =
            decode_binary(b"{\"type\":\"publish\",\"room\":\"a\",\"event\":\"e\",\"id\":4}\n\x00\n\xff", 20)
        else {
            panic!("a binary publish")
        };
        assert_eq!(payload, b"\x00\n\xff");
        let code = |frame: &[u8]| decode_binary(frame, 20).expect_err("must be refused").code;
        assert_eq!(code(b"\x00\x01"), Code::BadMessage);
        assert_eq!(code(b"{\"type\":\"ping\"}\n"), Code::BadMessage);
        assert_eq!(
            code(b"{\"type\":\"publish\",\"room\":\"a\",\"event\":\"e\",\"data\":1}\n"),
            Code::BadMessage
        );
        assert_eq!(code(b"\xff\xfe\n"), Code::BadJson);
        let refusal =
            decode_binary(b"{\"type\":\"publish\",\"room\":7,\"id\":4}\n", 20).expect_err("must be refused");
        assert_eq!(refusal.id, Some("4"), "whatever is wrong, the id comes back");
    }

    #[test]
    fn what_the_server_says_is_json_of_the_protocol() {
        let text = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).expect("text")
        };
        let draft = Draft::new("a\"b", "é", b"[1, 2]", Time::default());
        let publication = Publication::new(RoomId { index: 0, stamp: NonZeroU32::MIN }, &draft);
        assert_eq!(
            text(&|out| encode_event(out, publication.room_name(), &publication)),
            r#"{"type":"event","room":"a\"b","event":"é","data":[1, 2]}"#
        );
        let publication = Publication::new(publication.room, &Draft { binary: true, ..draft });
        assert_eq!(
            text(&|out| encode_event(out, publication.room_name(), &publication)),
            "{\"type\":\"event\",\"room\":\"a\\\"b\",\"event\":\"é\"}\n[1, 2]"
        );
        assert_eq!(
            text(&|out| encode_joined(out, "1", [("a", 12), ("b", 0)].into_iter())),
            r#"{"type":"ack","id":1,"rooms":{"a":{"members":12},"b":{"members":0}}}"#
        );
        let refusal = Refusal::new(Code::RateLimited, "slow \"down\"").with_id(Some("2")).with_retry(800);
        assert_eq!(
            text(&|out| encode_error(out, &refusal)),
            r#"{"type":"error","code":"rate_limited","id":2,"message":"slow \"down\"","retry_ms":800}"#
        );
    }
}
