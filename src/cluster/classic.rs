//! How Node's `@socket.io/redis-adapter` 8 and `@socket.io/redis-emitter` 5 say a [`Message`]. Broadcasts, requests and answers have
//! channels of their own, which exist once for each namespace.

use super::{Body, Fields, Limits, Malformed, Message, Object, Opts, Packet, Target, Text};
use super::{broadcast, names, rooms_of, short, split_channel, to_msgpack, value};
use crate::dialect::engineio::Sid;
use crate::dialect::native::encode_str;
use crate::message::user_of;
use std::borrow::Cow;

/// The numbers of requests, and of the answers that say what they answer.
const SOCKETS: u64 = 0;
const ROOMS: u64 = 1;
const JOIN: u64 = 2;
const LEAVE: u64 = 3;
const DISCONNECT: u64 = 4;
const FETCH: u64 = 5;
const SERVER_SIDE_EMIT: u64 = 6;
const BROADCAST: u64 = 7;
const CLIENT_COUNT: u64 = 8;
const CLIENT_ACK: u64 = 9;

/// The channels below a prefix, and what is said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classic {
    /// The adapter's `key`; `socket.io` unless told otherwise.
    pub prefix: String,
}

impl Classic {
    /// Where broadcasts are published that are for all, or for several rooms.
    pub fn broadcasts(&self, namespace: &str) -> String {
        format!("{}#{namespace}#", self.prefix)
    }

    /// Where broadcasts for one room are published. Receivers go by the rooms in the message.
    pub fn broadcasts_to(&self, namespace: &str, room: &str) -> String {
        format!("{}#{namespace}#{room}#", self.prefix)
    }

    /// The pattern of the channels of all broadcasts, which is what Node subscribes to.
    pub fn broadcasts_pattern(&self, namespace: &str) -> String {
        format!("{}#{}#*", glob(&self.prefix), glob(namespace))
    }

    /// The pattern of the channels of broadcasts for one socket. Public rooms with names of 20 bytes match it, too.
    pub fn sockets_pattern(&self, namespace: &str) -> String {
        format!("{}#{}#{}#", glob(&self.prefix), glob(namespace), "?".repeat(Sid::TEXT_BYTES))
    }

    /// Where requests are published. Who asks waits for as many answers as this channel has other subscribers, so a server subscribes
    /// once and answers all.
    pub fn requests(&self, namespace: &str) -> String {
        format!("{}-request#{namespace}#", self.prefix)
    }

    /// Where answers are published.
    pub fn answers(&self, namespace: &str) -> String {
        format!("{}-response#{namespace}#", self.prefix)
    }

    /// Where answers for the server `uid` are published by servers that are told to. It subscribes to both.
    pub fn answers_to(&self, namespace: &str, uid: &str) -> String {
        format!("{}-response#{namespace}#{uid}#", self.prefix)
    }

    /// The channel and the payload of `message`; `None` when it cannot be said here, or is for nobody.
    pub fn encode(&self, message: &Message<'_>) -> Option<(String, Vec<u8>)> {
        let (uid, namespace, attachments) =
            (message.uid.as_deref(), &*message.namespace, &message.attachments[..]);
        if message.body.is_for_nobody() {
            return None;
        }
        let request = |kind: u64, id: Option<&str>| {
            Object::new().optional("uid", uid).optional("requestId", id).number("type", kind)
        };
        let answer = |id: &str| Object::new().string("requestId", id);
        let typed_answer = |kind: u64, id: &str| Object::new().number("type", kind).string("requestId", id);
        let object = match &message.body {
            Body::Broadcast { target, event, args, flags, request_id } => {
                let packet = |object: Object| {
                    object.number("type", 2).event("data", event, args).string("nsp", namespace).close()
                };
                let Some(id) = request_id else {
                    let mut json = b"[".to_vec();
                    match uid {
                        Some(uid) => encode_str(&mut json, uid),
                        None => json.extend_from_slice(b"null"),
                    }
                    let opts = Object::new().target(target).flags(*flags).close();
                    for part in [packet(Object::new()), opts] {
                        json.push(b',');
                        json.extend_from_slice(&part.0);
                    }
                    json.push(b']');
                    let channel = match target.rooms.as_deref() {
                        Some([room]) if user_of(room).is_none() => self.broadcasts_to(namespace, room),
                        _ => self.broadcasts(namespace),
                    };
                    return Some((channel, to_msgpack(&json, attachments)));
                };
                packet(request(BROADCAST, Some(id)).open("packet")).opts(target).flags(*flags).close()
            }
            Body::Join { target, rooms } => request(JOIN, None).opts(target).close().strings("rooms", rooms),
            Body::Leave { target, rooms } => {
                request(LEAVE, None).opts(target).close().strings("rooms", rooms)
            }
            Body::Disconnect { target, close, why } => {
                request(DISCONNECT, None).opts(target).close().boolean("close", *close).why(why.as_ref())
            }
            Body::Fetch { target, request_id } => request(FETCH, Some(request_id)).opts(target).close(),
            Body::Presence { room, of, who, request_id } => {
                let object = request(FETCH, Some(request_id)).opts(&Target::of(room)).close();
                object.presence(of.as_deref(), *who)
            }
            Body::Sockets { rooms, request_id } => {
                request(SOCKETS, Some(request_id)).strings("rooms", rooms.as_deref().unwrap_or_default())
            }
            Body::Rooms { request_id } => request(ROOMS, Some(request_id)),
            Body::ServerSideEmit { args, request_id } => {
                request(SERVER_SIDE_EMIT, request_id.as_deref()).json("data", &format!("[{args}]"))
            }
            Body::FetchAnswer { request_id, sockets } => answer(request_id).sockets("sockets", sockets),
            Body::PresenceAnswer { request_id, node, members, who } => {
                answer(request_id).present(node, *members, who)
            }
            Body::SocketsAnswer { request_id, ids } => answer(request_id).strings("sockets", ids),
            Body::RoomsAnswer { request_id, rooms } => answer(request_id).strings("rooms", rooms),
            Body::ServerSideEmitAnswer { request_id, value } => {
                typed_answer(SERVER_SIDE_EMIT, request_id).json("data", value)
            }
            Body::ClientCount { request_id, count } => {
                typed_answer(CLIENT_COUNT, request_id).number("clientCount", *count)
            }
            Body::ClientAck { request_id, value } => {
                typed_answer(CLIENT_ACK, request_id).json("packet", value)
            }
            Body::Heartbeat { .. } | Body::Close => return None,
        };
        let channel = match &message.to {
            _ if !message.body.is_answer() => self.requests(namespace),
            Some(uid) => self.answers_to(namespace, uid),
            None => self.answers(namespace),
        };
        // Node has these in msgpack even where there is nothing binary in them.
        let payload = match message.body {
            Body::Broadcast { .. } | Body::ClientAck { .. } => to_msgpack(&object.close().0, attachments),
            _ => object.payload(attachments),
        };
        Some((channel, payload))
    }

    /// What was said on `channel`. `None` when it is none of these channels, and for what is not known or is of another namespace than
    /// its channel: Node passes over that, too.
    ///
    /// # Errors
    /// What is wrong with the payload. Where that was a request, who asked waits in vain.
    pub fn decode(
        &self,
        channel: &[u8],
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Option<Message<'static>>, Malformed> {
        let Some(rest) = channel.strip_prefix(self.prefix.as_bytes()) else { return Ok(None) };
        let (read, rest): (Read, _) = match (rest.strip_prefix(b"-request"), rest.strip_prefix(b"-response"))
        {
            (Some(rest), _) => (read_request, rest),
            (_, Some(rest)) => (read_answer, rest),
            _ => (read_broadcast, rest),
        };
        let Some((namespace, name)) = split_channel(rest) else { return Ok(None) };
        let text = Text::read(payload, limits)?;
        let Some((uid, body)) = read(&text, namespace, limits)? else { return Ok(None) };
        let to = (body.is_answer() && !name.is_empty()).then(|| name.to_owned().into());
        let namespace = namespace.to_owned().into();
        Ok(Some(Message { uid, to, namespace, attachments: text.attachments, body }))
    }
}

/// Who says what, unless that is passed over.
type Said = Option<(Option<Cow<'static, str>>, Body<'static>)>;
type Read = fn(&Text<'_>, &str, &Limits) -> Result<Said, Malformed>;

fn read_broadcast(text: &Text<'_>, namespace: &str, limits: &Limits) -> Result<Said, Malformed> {
    let (uid, packet, opts): (Option<String>, Packet<'_>, Opts<'_>) = text.parse()?;
    if packet.nsp.as_deref().unwrap_or("/") != namespace {
        return Ok(None);
    }
    let body = broadcast(&packet, &opts, None, limits)?;
    Ok(Some((uid.map(short).transpose()?, body)))
}

fn read_request(text: &Text<'_>, _namespace: &str, limits: &Limits) -> Result<Said, Malformed> {
    let mut it: Fields<'_> = text.parse()?;
    let body = match it.r#type {
        Some(SOCKETS) => {
            let rooms = rooms_of(it.rooms.as_deref().unwrap_or_default(), limits)?;
            Body::Sockets { rooms, request_id: it.request_id()? }
        }
        Some(ROOMS) => Body::Rooms { request_id: it.request_id()? },
        Some(JOIN) => Body::Join { target: it.target(limits)?, rooms: it.rooms(limits)? },
        Some(LEAVE) => Body::Leave { target: it.target(limits)?, rooms: it.rooms(limits)? },
        Some(DISCONNECT) => it.disconnect(limits)?,
        Some(FETCH) => it.fetch(limits)?,
        Some(SERVER_SIDE_EMIT) => it.server_side_emit(it.data)?,
        Some(BROADCAST) => it.broadcast(limits)?,
        _ => return Ok(None),
    };
    Ok(Some((it.uid()?, body)))
}

/// Some answers say what they answer, others are told by what they have.
fn read_answer(text: &Text<'_>, _namespace: &str, limits: &Limits) -> Result<Said, Malformed> {
    let mut it: Fields<'_> = text.parse()?;
    let body = match it.r#type {
        Some(SERVER_SIDE_EMIT) => {
            Body::ServerSideEmitAnswer { request_id: it.request_id()?, value: value(it.data)? }
        }
        Some(CLIENT_COUNT) => it.client_count()?,
        Some(CLIENT_ACK) => Body::ClientAck { request_id: it.request_id()?, value: value(it.packet)? },
        _ if it.sockets.is_some() => it.fetched(limits)?,
        _ => match &it.rooms {
            Some(rooms) => {
                Body::RoomsAnswer { rooms: names(rooms, limits.answers_max)?, request_id: it.request_id()? }
            }
            None => return Ok(None),
        },
    };
    Ok(Some((it.uid()?, body)))
}

/// A pattern of Redis that matches `text` alone.
fn glob(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}
