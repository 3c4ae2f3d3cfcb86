//! How the sharded adapter of Node's `@socket.io/redis-adapter` 8 says a [`Message`], by `SPUBLISH` of Redis 7. All messages have one
//! form; a server hears those for all, those for its public rooms, and the answers to what it has asked.

use super::{Body, Fields, LACKS, Limits, Malformed, Message, Object, Target, Text};
use super::{is_told_to_all, parse, split_channel, value};

/// The numbers of messages.
const FIRST_HEARTBEAT: u64 = 1;
const HEARTBEAT: u64 = 2;
const BROADCAST: u64 = 3;
const JOIN: u64 = 4;
const LEAVE: u64 = 5;
const DISCONNECT: u64 = 6;
const FETCH: u64 = 7;
const FETCH_ANSWER: u64 = 8;
const SERVER_SIDE_EMIT: u64 = 9;
const SERVER_SIDE_EMIT_ANSWER: u64 = 10;
const CLIENT_COUNT: u64 = 11;
const CLIENT_ACK: u64 = 12;
const CLOSE: u64 = 13;

/// The channels below a prefix, and what is said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharded {
    /// The adapter's `channelPrefix`; `socket.io` unless told otherwise.
    pub prefix: String,
}

impl Sharded {
    /// Where most messages are published. Who asks waits for as many answers as this channel has other subscribers.
    pub fn messages(&self, namespace: &str) -> String {
        format!("{}#{namespace}#", self.prefix)
    }

    /// Where broadcasts for one room are published, if it is not a socket's. A server subscribes while the room has members there.
    pub fn broadcasts_to(&self, namespace: &str, room: &str) -> String {
        format!("{}#{namespace}#{room}#", self.prefix)
    }

    /// Where answers for the server `uid` are published.
    pub fn answers_to(&self, namespace: &str, uid: &str) -> String {
        format!("{}#{namespace}#{uid}#", self.prefix)
    }

    /// The channel and the payload of `message`; `None` when it cannot be said here, or is for nobody. An answer that is not for one
    /// server cannot be said, either: Node looks for answers in its own channel alone.
    pub fn encode(&self, message: &Message<'_>) -> Option<(String, Vec<u8>)> {
        let namespace = &*message.namespace;
        if message.body.is_for_nobody() {
            return None;
        }
        let channel = match (&message.body, &message.to) {
            (body, Some(uid)) if body.is_answer() => self.answers_to(namespace, uid),
            (body, None) if body.is_answer() => return None,
            // Who is asked for answers must be all that are counted.
            (Body::Broadcast { target, request_id: None, .. }, _) => match target.rooms.as_deref() {
                Some([room]) if !is_told_to_all(room) => self.broadcasts_to(namespace, room),
                _ => self.messages(namespace),
            },
            _ => self.messages(namespace),
        };
        let begin = |kind: u64| Object::new().number("type", kind);
        let data = |kind: u64| begin(kind).open("data");
        let answer = |kind: u64, id: &str| data(kind).string("requestId", id);
        let no_flags = Default::default();
        let object = match &message.body {
            Body::Broadcast { target, event, args, flags, request_id } => {
                let packet = data(BROADCAST).open("packet").number("type", 2).event("data", event, args);
                let packet = packet.close().optional("requestId", request_id.as_deref());
                packet.opts(target).flags(*flags).close().close()
            }
            Body::Join { target, rooms } => {
                data(JOIN).opts(target).flags(no_flags).close().strings("rooms", rooms).close()
            }
            Body::Leave { target, rooms } => {
                data(LEAVE).opts(target).flags(no_flags).close().strings("rooms", rooms).close()
            }
            Body::Disconnect { target, close, why } => {
                let data = data(DISCONNECT).opts(target).flags(no_flags).close().boolean("close", *close);
                data.why(why.as_ref()).close()
            }
            Body::Fetch { target, request_id } => {
                data(FETCH).opts(target).flags(no_flags).close().string("requestId", request_id).close()
            }
            Body::Presence { room, of, who, request_id } => {
                let data = data(FETCH).opts(&Target::of(room)).flags(no_flags).close();
                data.string("requestId", request_id).presence(of.as_deref(), *who).close()
            }
            Body::PresenceAnswer { request_id, node, members, who } => {
                answer(FETCH_ANSWER, request_id).present(node, *members, who).close()
            }
            Body::FetchAnswer { request_id, sockets } => {
                answer(FETCH_ANSWER, request_id).sockets("sockets", sockets).close()
            }
            Body::ServerSideEmit { args, request_id } => {
                let data = data(SERVER_SIDE_EMIT).optional("requestId", request_id.as_deref());
                data.json("packet", &format!("[{args}]")).close()
            }
            Body::ServerSideEmitAnswer { request_id, value } => {
                answer(SERVER_SIDE_EMIT_ANSWER, request_id).json("packet", value).close()
            }
            Body::ClientCount { request_id, count } => {
                answer(CLIENT_COUNT, request_id).number("clientCount", *count).close()
            }
            Body::ClientAck { request_id, value } => {
                answer(CLIENT_ACK, request_id).json("packet", value).close()
            }
            Body::Heartbeat { first } => begin(if *first { FIRST_HEARTBEAT } else { HEARTBEAT }),
            Body::Close => begin(CLOSE),
            Body::Sockets { .. }
            | Body::SocketsAnswer { .. }
            | Body::Rooms { .. }
            | Body::RoomsAnswer { .. } => return None,
        };
        let object = object.optional("uid", message.uid.as_deref()).string("nsp", namespace);
        Some((channel, object.payload(&message.attachments)))
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
        let rest = channel.strip_prefix(self.prefix.as_bytes());
        let Some((namespace, name)) = rest.and_then(split_channel) else { return Ok(None) };
        let text = Text::read(payload, limits)?;
        let mut head: Fields<'_> = text.parse()?;
        if head.nsp.as_deref().is_some_and(|nsp| nsp != namespace) {
            return Ok(None);
        }
        let mut data: Fields<'_> = head.data.map(|data| parse(data.get())).transpose()?.unwrap_or_default();
        let body = match head.r#type.ok_or(LACKS)? {
            kind @ (FIRST_HEARTBEAT | HEARTBEAT) => Body::Heartbeat { first: kind == FIRST_HEARTBEAT },
            BROADCAST => data.broadcast(limits)?,
            JOIN => Body::Join { target: data.target(limits)?, rooms: data.rooms(limits)? },
            LEAVE => Body::Leave { target: data.target(limits)?, rooms: data.rooms(limits)? },
            DISCONNECT => data.disconnect(limits)?,
            FETCH => data.fetch(limits)?,
            FETCH_ANSWER => data.fetched(limits)?,
            SERVER_SIDE_EMIT => data.server_side_emit(data.packet)?,
            SERVER_SIDE_EMIT_ANSWER => {
                Body::ServerSideEmitAnswer { request_id: data.request_id()?, value: value(data.packet)? }
            }
            CLIENT_COUNT => data.client_count()?,
            CLIENT_ACK => Body::ClientAck { request_id: data.request_id()?, value: value(data.packet)? },
            CLOSE => Body::Close,
            _ => return Ok(None),
        };
        let uid = head.uid()?;
        let to = (body.is_answer() && !name.is_empty()).then(|| name.to_owned().into());
        let namespace = namespace.to_owned().into();
        Ok(Some(Message { uid, to, namespace, attachments: text.attachments, body }))
    }
}
