//! What servers tell each other through Redis, and how it is written: functions without a connection, so that whoever has one decides
//! what to do. [`Throng`] is what throngs say among themselves, `docs/cluster-wire.md` in code; [`Classic`] and [`Sharded`] are how
//! Node's adapters of Socket.IO say a [`Message`].

pub mod throng;
pub mod classic;
pub mod sharded;

pub use crate::dialect::engineio::Malformed;
pub use classic::Classic;
pub use sharded::Sharded;
pub use throng::Throng;

use crate::dialect::native::{encode_str, is_too_deep, name_fault};
use crate::dialect::{engineio, msgpack, socketio};
use crate::message::user_of;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The longest name of a room, a namespace, a server, a socket or a request that is taken from others, in bytes.
pub const NAME_BYTES_MAX: usize = 1_000;

/// What one server tells the others about a namespace of Socket.IO, whichever way it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The name of the server that says it. What is published comes back to its publisher, which knows it by this. There
    /// is none in classic answers, nor where an emitter leaves it out, which does not listen.
    pub uid: Option<Cow<'a, str>>,
    /// The server that an answer is for, by its `uid`; `None` where all get it and only the one that asked makes something of it.
    pub to: Option<Cow<'a, str>>,
    /// Begins with `/`, which alone is the main one. One with a `#` in its name cannot be told apart from a room.
    pub namespace: Cow<'a, str>,
    /// The binary values in the body's JSON, which names them as the packets of Socket.IO do.
    pub attachments: Vec<Cow<'a, [u8]>>,
    /// What it says.
    pub body: Body<'a>,
}

/// What a message says. An answer has the id of the request that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// An event for clients.
    Broadcast {
        /// Who gets it.
        target: Target<'a>,
        /// As in [`socketio::Body::Event`].
        event: Cow<'a, str>,
        /// As in [`socketio::Body::Event`].
        args: Cow<'a, str>,
        /// How it is delivered.
        flags: Flags,
        /// There where the clients are to answer: one [`Body::ClientCount`], even of 0, and a [`Body::ClientAck`] for each.
        request_id: Option<Cow<'a, str>>,
    },
    /// Sockets are to join rooms.
    Join {
        /// Which sockets.
        target: Target<'a>,
        /// Which rooms.
        rooms: Vec<Cow<'a, str>>,
    },
    /// Sockets are to leave rooms.
    Leave {
        /// Which sockets.
        target: Target<'a>,
        /// Which rooms.
        rooms: Vec<Cow<'a, str>>,
    },
    /// Sockets are to leave the namespace.
    Disconnect {
        /// Which sockets.
        target: Target<'a>,
        /// True when their connections are to end as well.
        close: bool,
        /// How they are to end, in words for throngs, which Node passes over.
        why: Option<Why<'a>>,
    },
    /// Asks which sockets there are.
    Fetch {
        /// Of these.
        target: Target<'a>,
        /// Comes back with the answer.
        request_id: Cow<'a, str>,
    },
    /// These are there.
    FetchAnswer {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// One for each.
        sockets: Vec<Socket<'a>>,
    },
    /// Asks who is in a room, in words that Node takes for a [`Body::Fetch`]: a throng answers in few words, which Node does not know.
    Presence {
        /// The room.
        room: Cow<'a, str>,
        /// The room's namespace, where that is not the one in which it is asked.
        of: Option<Cow<'a, str>>,
        /// True when its members are wanted, and not only how many there are.
        who: bool,
        /// Comes back with the answer.
        request_id: Cow<'a, str>,
    },
    /// So many are in the room.
    PresenceAnswer {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// What the process is called.
        node: Cow<'a, str>,
        /// How many.
        members: u64,
        /// Some of them or all, where that was asked.
        who: Vec<Member<'a>>,
    },
    /// Asks for no more than the ids of sockets, as old servers did.
    Sockets {
        /// Of those in any of these rooms; of all when there is none.
        rooms: Option<Vec<Cow<'a, str>>>,
        /// Comes back with the answer.
        request_id: Cow<'a, str>,
    },
    /// Their ids. Where there are none, this is read as a [`Body::FetchAnswer`].
    SocketsAnswer {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// One for each.
        ids: Vec<Cow<'a, str>>,
    },
    /// Asks which rooms have members.
    Rooms {
        /// Comes back with the answer.
        request_id: Cow<'a, str>,
    },
    /// These have.
    RoomsAnswer {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// One for each.
        rooms: Vec<Cow<'a, str>>,
    },
    /// An event for the servers themselves.
    ServerSideEmit {
        /// Its name, and arguments, if there are any: JSON values with commas between them.
        args: Cow<'a, str>,
        /// There where each server is to answer.
        request_id: Option<Cow<'a, str>>,
    },
    /// What a server answers.
    ServerSideEmitAnswer {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// One JSON value.
        value: Cow<'a, str>,
    },
    /// So many clients of a server got a broadcast that they are to answer.
    ClientCount {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// How many.
        count: u64,
    },
    /// What one of them answers.
    ClientAck {
        /// Of the request.
        request_id: Cow<'a, str>,
        /// One JSON value: of several, the first.
        value: Cow<'a, str>,
    },
    /// A server is there.
    Heartbeat {
        /// True exactly when it has just begun, so that the others answer with a heartbeat.
        first: bool,
    },
    /// A server ends.
    Close,
}

/// How connections are to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why<'a> {
    /// The close code: 1000, 1008, or one from 4000 to 4999.
    pub code: u16,
    /// At most [`Why::REASON_BYTES_MAX`] bytes.
    pub reason: Cow<'a, str>,
    /// True when connections are meant whatever namespaces they are in.
    pub anywhere: bool,
}

impl Why<'_> {
    /// The longest reason, in bytes: a close frame has room for no more.
    pub const REASON_BYTES_MAX: usize = 123;
}

/// Which sockets are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target<'a> {
    /// Those in any of these rooms, each socket once; `None` for all. A socket's id is a room, too. Among those of a decoded message is
    /// no name that no room here can have; so there may be none left, and then nobody is meant.
    pub rooms: Option<Vec<Cow<'a, str>>>,
    /// But not those in any of these.
    pub except: Vec<Cow<'a, str>>,
}

impl<'a> Target<'a> {
    /// Those in this room.
    fn of(room: &'a str) -> Target<'a> {
        Target { rooms: Some(vec![room.into()]), except: Vec::new() }
    }
}

/// How a broadcast is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// True when who is not ready to take it need not get it.
    pub volatile: bool,
    /// How long answers are waited for, in milliseconds.
    pub timeout_ms: Option<u32>,
}

/// A socket of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket<'a> {
    /// Its id.
    pub id: Cow<'a, str>,
    /// JSON: the head of its request, its address and so on.
    pub handshake: Cow<'a, str>,
    /// The rooms that it is in.
    pub rooms: Vec<Cow<'a, str>>,
    /// JSON: what an application keeps with it.
    pub data: Cow<'a, str>,
}

/// A member of a room in another throng.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its id.
    pub id: Cow<'a, str>,
    /// Who it is, if that is known.
    pub user: Option<Cow<'a, str>>,
}

/// What is taken from others. Reading a message takes at most some 20 times its size, and some 200 bytes for each item of its lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message.
    pub message_bytes_max: usize,
    /// Rooms in each of the lists of a request.
    pub rooms_max: usize,
    /// Rooms or sockets in an answer, and rooms of each socket.
    pub answers_max: usize,
    /// Binary values in a message.
    pub attachments_max: usize,
}

impl Body<'_> {
    /// True for what is for those in any of no rooms: nobody. It cannot be said, since an empty list means all.
    pub fn is_for_nobody(&self) -> bool {
        let rooms = match self {
            Body::Broadcast { target, .. }
            | Body::Join { target, .. }
            | Body::Leave { target, .. }
            | Body::Disconnect { target, .. }
            | Body::Fetch { target, .. } => &target.rooms,
            Body::Sockets { rooms, .. } => rooms,
            _ => return false,
        };
        rooms.as_ref().is_some_and(Vec::is_empty)
    }

    /// True for what answers a request.
    pub fn is_answer(&self) -> bool {
        matches!(
            self,
            Body::FetchAnswer { .. }
                | Body::PresenceAnswer { .. }
                | Body::SocketsAnswer { .. }
                | Body::RoomsAnswer { .. }
                | Body::ServerSideEmitAnswer { .. }
                | Body::ClientCount { .. }
                | Body::ClientAck { .. }
        )
    }
}

/// A message as JSON, with the binary values that it had in msgpack.
struct Text<'a> {
    json: Cow<'a, str>,
    attachments: Vec<Cow<'static, [u8]>>,
}

impl<'a> Text<'a> {
    /// Reads JSON or msgpack; the first byte says which.
    fn read(payload: &'a [u8], limits: &Limits) -> Result<Text<'a>, Malformed> {
        if payload.len() > limits.message_bytes_max {
            return Err(Malformed("a message is larger than is taken"));
        }
        if payload.starts_with(b"{") {
            let json = std::str::from_utf8(payload).map_err(|_| Malformed("a message is not UTF-8"))?;
            return Ok(Text { json: json.into(), attachments: Vec::new() });
        }
        let (json, attachments) = msgpack::decode_value(payload, limits.attachments_max)?;
        Ok(Text { json: json.into(), attachments: attachments.into_iter().map(Cow::Owned).collect() })
    }

    /// What it says. Where that is text, it is borrowed.
    fn parse<'t, T: Deserialize<'t>>(&'t self) -> Result<T, Malformed> {
        parse(&self.json)
    }
}

fn parse<'t, T: Deserialize<'t>>(json: &'t str) -> Result<T, Malformed> {
    serde_json::from_str(json).map_err(|_| LACKS)
}

const TOO_MANY: Malformed = Malformed("a message names more rooms or sockets than are taken");
const LACKS: Malformed = Malformed("a message is not JSON, or a field is missing or of the wrong kind");

/// The fields of all messages, whichever has them. What else there is, is passed over.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fields<'t> {
    r#type: Option<u64>,
    uid: Option<String>,
    nsp: Option<String>,
    request_id: Option<String>,
    #[serde(borrow)]
    opts: Option<Opts<'t>>,
    #[serde(borrow)]
    rooms: Option<Vec<&'t RawValue>>,
    close: Option<bool>,
    #[serde(borrow)]
    packet: Option<&'t RawValue>,
    #[serde(borrow)]
    data: Option<&'t RawValue>,
    #[serde(borrow)]
    sockets: Option<Vec<&'t RawValue>>,
    client_count: Option<u64>,
    #[serde(borrow)]
    presence: Option<RawPresence<'t>>,
    throng: Option<RawWhy>,
}

/// What throngs add to [`Body::Disconnect`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawWhy {
    code: u16,
    reason: String,
    anywhere: bool,
}

/// What throngs add to [`Body::Fetch`] and [`Body::FetchAnswer`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPresence<'t> {
    nsp: Option<String>,
    list: bool,
    node: Option<String>,
    members: Option<u64>,
    #[serde(borrow)]
    who: Option<Vec<&'t RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Opts<'t> {
    #[serde(borrow)]
    rooms: Option<Vec<&'t RawValue>>,
    #[serde(borrow)]
    except: Option<Vec<&'t RawValue>>,
    #[serde(borrow)]
    flags: Option<RawFlags<'t>>,
}

/// Whatever they are: JavaScript takes a value of any kind.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawFlags<'t> {
    #[serde(borrow)]
    volatile: Option<&'t RawValue>,
    #[serde(borrow)]
    timeout: Option<&'t RawValue>,
}

#[derive(Deserialize)]
struct Packet<'t> {
    r#type: u64,
    #[serde(borrow)]
    data: &'t RawValue,
    nsp: Option<String>,
}

impl<'t> Fields<'t> {
    fn uid(&mut self) -> Result<Option<Cow<'static, str>>, Malformed> {
        self.uid.take().map(short).transpose()
    }

    fn request_id(&mut self) -> Result<Cow<'static, str>, Malformed> {
        self.optional_request_id()?.ok_or(LACKS)
    }

    fn optional_request_id(&mut self) -> Result<Option<Cow<'static, str>>, Malformed> {
        self.request_id.take().map(short).transpose()
    }

    fn target(&self, limits: &Limits) -> Result<Target<'static>, Malformed> {
        self.opts.as_ref().ok_or(LACKS)?.target(limits)
    }

    fn rooms(&self, limits: &Limits) -> Result<Vec<Cow<'static, str>>, Malformed> {
        names(self.rooms.as_deref().ok_or(LACKS)?, limits.rooms_max)
    }

    /// An event of clients, from the packet's fields and `opts`.
    fn broadcast(&mut self, limits: &Limits) -> Result<Body<'static>, Malformed> {
        let request_id = self.optional_request_id()?;
        let packet = parse(self.packet.ok_or(LACKS)?.get())?;
        broadcast(&packet, self.opts.as_ref().ok_or(LACKS)?, request_id, limits)
    }

    /// An event of servers, from a list.
    fn server_side_emit(&mut self, list: Option<&RawValue>) -> Result<Body<'static>, Malformed> {
        let args = value(Some(list.ok_or(LACKS)?))?;
        let args = socketio::elements(&args)?.to_owned().into();
        Ok(Body::ServerSideEmit { args, request_id: self.optional_request_id()? })
    }

    fn client_count(&mut self) -> Result<Body<'static>, Malformed> {
        let count = self.client_count.ok_or(LACKS)?;
        Ok(Body::ClientCount { request_id: self.request_id()?, count })
    }

    /// Sockets that are to go.
    fn disconnect(&mut self, limits: &Limits) -> Result<Body<'static>, Malformed> {
        let why = self.throng.take().map(|RawWhy { code, reason, anywhere }| {
            if !matches!(code, 1000 | 1008 | 4000..=4999) || reason.len() > Why::REASON_BYTES_MAX {
                return Err(Malformed("a close code or a reason that cannot be"));
            }
            Ok(Why { code, reason: reason.into(), anywhere })
        });
        let (target, close) = (self.target(limits)?, self.close.unwrap_or_default());
        Ok(Body::Disconnect { target, close, why: why.transpose()? })
    }

    /// A request for sockets, or for who is in a room.
    fn fetch(&mut self, limits: &Limits) -> Result<Body<'static>, Malformed> {
        let (target, request_id) = (self.target(limits)?, self.request_id()?);
        let Some(RawPresence { nsp, list, .. }) = self.presence.take() else {
            return Ok(Body::Fetch { target, request_id });
        };
        let room = target.rooms.into_iter().flatten().next().ok_or(LACKS)?;
        let of = nsp.map(short).transpose()?;
        Ok(Body::Presence { room, of, who: list, request_id })
    }

    /// Who is in a room, as a throng tells.
    fn present(&mut self, presence: RawPresence<'_>, limits: &Limits) -> Result<Body<'static>, Malformed> {
        #[derive(Deserialize)]
        struct Present {
            id: String,
            user: Option<String>,
        }
        let RawPresence { node, members, who, .. } = presence;
        let who = who.unwrap_or_default();
        if who.len() > limits.answers_max {
            return Err(TOO_MANY);
        }
        let member = |json: &&RawValue| {
            let Present { id, user } = parse(json.get())?;
            Ok(Member { id: short(id)?, user: user.map(short).transpose()? })
        };
        Ok(Body::PresenceAnswer {
            request_id: self.request_id()?,
            node: short(node.ok_or(LACKS)?)?,
            members: members.ok_or(LACKS)?,
            who: who.iter().map(member).collect::<Result<_, _>>()?,
        })
    }

    /// Sockets as they are, or no more than their ids.
    fn fetched(&mut self, limits: &Limits) -> Result<Body<'static>, Malformed> {
        #[derive(Deserialize)]
        struct Fetched<'t> {
            id: String,
            #[serde(borrow)]
            handshake: Option<&'t RawValue>,
            #[serde(borrow)]
            rooms: Option<Vec<&'t RawValue>>,
            #[serde(borrow)]
            data: Option<&'t RawValue>,
        }
        if let Some(presence) = self.presence.take() {
            return self.present(presence, limits);
        }
        let request_id = self.request_id()?;
        let list = self.sockets.as_deref().ok_or(LACKS)?;
        if list.first().is_some_and(|first| first.get().starts_with('"')) {
            return Ok(Body::SocketsAnswer { request_id, ids: names(list, limits.answers_max)? });
        }
        if list.len() > limits.answers_max {
            return Err(TOO_MANY);
        }
        let socket = |json: &&RawValue| {
            let it: Fetched<'_> = parse(json.get())?;
            let rooms = names(it.rooms.as_deref().unwrap_or_default(), limits.answers_max)?;
            Ok(Socket { id: short(it.id)?, handshake: value(it.handshake)?, rooms, data: value(it.data)? })
        };
        Ok(Body::FetchAnswer { request_id, sockets: list.iter().map(socket).collect::<Result<_, _>>()? })
    }
}

impl Opts<'_> {
    fn target(&self, limits: &Limits) -> Result<Target<'static>, Malformed> {
        let rooms = self.rooms.as_deref().unwrap_or_default();
        let except = names(self.except.as_deref().unwrap_or_default(), limits.rooms_max)?;
        Ok(Target { rooms: rooms_of(rooms, limits)?, except })
    }

    fn flags(&self) -> Flags {
        let Some(flags) = &self.flags else { return Flags::default() };
        let volatile = flags.volatile.is_some_and(|value| value.get() == "true");
        // A cast keeps what there is of a number that does not fit.
        let timeout_ms = flags.timeout.and_then(|value| value.get().parse::<f64>().ok()).map(|ms| ms as u32);
        Flags { volatile, timeout_ms }
    }
}

fn broadcast(
    packet: &Packet<'_>,
    opts: &Opts<'_>,
    request_id: Option<Cow<'static, str>>,
    limits: &Limits,
) -> Result<Body<'static>, Malformed> {
    let data = value(Some(packet.data))?;
    let (2, socketio::Body::Event { name, args }) =
        (packet.r#type, socketio::read_event(socketio::elements(&data)?)?)
    else {
        return Err(Malformed("only events are broadcast"));
    };
    let (event, args) = (name.into_owned().into(), args.to_owned().into());
    Ok(Body::Broadcast { target: opts.target(limits)?, event, args, flags: opts.flags(), request_id })
}

/// Rooms of which none at all means all sockets.
fn rooms_of(list: &[&RawValue], limits: &Limits) -> Result<Option<Vec<Cow<'static, str>>>, Malformed> {
    if list.is_empty() { Ok(None) } else { names(list, limits.rooms_max).map(Some) }
}

/// The names in a list. Numbers are names, too, since applications have such rooms. What cannot be a name here is left out: it stands
/// for nobody.
fn names(list: &[&RawValue], names_max: usize) -> Result<Vec<Cow<'static, str>>, Malformed> {
    if list.len() > names_max {
        return Err(TOO_MANY);
    }
    let name = |json: &&RawValue| match json.get().bytes().next()? {
        b'"' => serde_json::from_str::<String>(json.get()).ok(),
        b'-' | b'0'..=b'9' => Some(json.get().to_owned()),
        _ => None,
    };
    // That of a user's own room begins with a letter that no other may have.
    let is_good = |name: &String| name_fault(user_of(name).unwrap_or(name), NAME_BYTES_MAX).is_none();
    Ok(list.iter().filter_map(name).filter(is_good).map(Cow::Owned).collect())
}

fn short(name: String) -> Result<Cow<'static, str>, Malformed> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Malformed("a name is too long"));
    }
    Ok(name.into())
}

/// A value that an application said, or `null` for none.
fn value(json: Option<&RawValue>) -> Result<Cow<'static, str>, Malformed> {
    match json.map(RawValue::get) {
        None => Ok("null".into()),
        Some(json) if is_too_deep(json) => Err(Malformed("a value nests too deep")),
        Some(json) => Ok(json.to_owned().into()),
    }
}

/// Splits what follows a channel's prefix, `#namespace#` or `#namespace#name#`, into namespace and name. A channel of another form is
/// none of ours.
fn split_channel(rest: &[u8]) -> Option<(&str, &str)> {
    let (namespace, name) = std::str::from_utf8(rest).ok()?.strip_prefix('#')?.split_once('#')?;
    let name = if name.is_empty() { name } else { name.strip_suffix('#')? };
    (namespace.starts_with('/') && namespace.len() <= NAME_BYTES_MAX).then_some((namespace, name))
}

/// True for rooms that nobody listens for, so that all servers are told: those that Node takes for a socket of its own, by their length
/// alone, which it counts in UTF-16, and users' own rooms.
pub fn is_told_to_all(room: &str) -> bool {
    room.encode_utf16().count() == engineio::Sid::TEXT_BYTES || user_of(room).is_some()
}

/// A JSON object as far as it has been written.
struct Object(Vec<u8>);

impl Object {
    fn new() -> Object {
        Object(b"{".to_vec())
    }

    fn json(mut self, key: &str, json: &str) -> Object {
        self.key(key);
        self.0.extend_from_slice(json.as_bytes());
        self
    }

    fn number(self, key: &str, number: u64) -> Object {
        self.json(key, &number.to_string())
    }

    fn boolean(self, key: &str, value: bool) -> Object {
        self.json(key, if value { "true" } else { "false" })
    }

    fn string(self, key: &str, text: &str) -> Object {
        self.optional(key, Some(text))
    }

    /// Nothing for `None`.
    fn optional(mut self, key: &str, text: Option<&str>) -> Object {
        if let Some(text) = text {
            self.key(key);
            encode_str(&mut self.0, text);
        }
        self
    }

    fn strings(mut self, key: &str, list: &[Cow<'_, str>]) -> Object {
        self.key(key);
        self.list(list, |out, text| encode_str(out, text));
        self
    }

    /// Begins the options, which others may follow.
    fn opts(self, target: &Target<'_>) -> Object {
        self.open("opts").target(target)
    }

    fn target(self, target: &Target<'_>) -> Object {
        let rooms = target.rooms.as_deref().unwrap_or_default();
        self.strings("rooms", rooms).strings("except", &target.except)
    }

    fn flags(self, flags: Flags) -> Object {
        let mut object = self.open("flags");
        if flags.volatile {
            object = object.boolean("volatile", true);
        }
        if let Some(ms) = flags.timeout_ms {
            object = object.number("timeout", ms.into());
        }
        object.close()
    }

    /// An event's name and arguments.
    fn event(mut self, key: &str, event: &str, args: &str) -> Object {
        self.key(key);
        self.0.push(b'[');
        encode_str(&mut self.0, event);
        if !args.is_empty() {
            self.0.push(b',');
            self.0.extend_from_slice(args.as_bytes());
        }
        self.0.push(b']');
        self
    }

    fn sockets(mut self, key: &str, sockets: &[Socket<'_>]) -> Object {
        self.key(key);
        self.list(sockets, |out, socket| {
            let object = Object::new().string("id", &socket.id).json("handshake", &socket.handshake);
            let object = object.strings("rooms", &socket.rooms).json("data", &socket.data).close();
            out.extend_from_slice(&object.0);
        });
        self
    }

    /// What throngs say of a [`Body::Disconnect`] besides.
    fn why(self, why: Option<&Why<'_>>) -> Object {
        let Some(Why { code, reason, anywhere }) = why else { return self };
        let object = self.open("throng").number("code", (*code).into()).string("reason", reason);
        object.boolean("anywhere", *anywhere).close()
    }

    /// What makes a [`Body::Fetch`] a [`Body::Presence`].
    fn presence(self, of: Option<&str>, who: bool) -> Object {
        self.open("presence").optional("nsp", of).boolean("list", who).close()
    }

    /// What makes a [`Body::FetchAnswer`] without sockets a [`Body::PresenceAnswer`].
    fn present(self, node: &str, members: u64, who: &[Member<'_>]) -> Object {
        let mut object = self.sockets("sockets", &[]).open("presence");
        object = object.string("node", node).number("members", members);
        object.key("who");
        object.list(who, |out, member| {
            let object = Object::new().string("id", &member.id).optional("user", member.user.as_deref());
            out.extend_from_slice(&object.close().0);
        });
        object.close()
    }

    /// Begins an object in this one.
    fn open(mut self, key: &str) -> Object {
        self.key(key);
        self.0.push(b'{');
        self
    }

    /// Ends the innermost object.
    fn close(mut self) -> Object {
        self.0.push(b'}');
        self
    }

    fn key(&mut self, key: &str) {
        // No value ends like this, so this is the first key.
        if !self.0.ends_with(b"{") {
            self.0.push(b',');
        }
        encode_str(&mut self.0, key);
        self.0.push(b':');
    }

    fn list<T>(&mut self, items: &[T], encode: impl Fn(&mut Vec<u8>, &T)) {
        self.0.push(b'[');
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.0.push(b',');
            }
            encode(&mut self.0, item);
        }
        self.0.push(b']');
    }

    /// The whole as a payload: JSON, unless that has no way to say it.
    fn payload(self, attachments: &[Cow<'_, [u8]>]) -> Vec<u8> {
        let json = self.close().0;
        if attachments.is_empty() { json } else { to_msgpack(&json, attachments) }
    }
}

fn to_msgpack(json: &[u8], attachments: &[Cow<'_, [u8]>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    // Made of text alone, so it is text.
    msgpack::encode_value(&mut out, std::str::from_utf8(json).unwrap_or_default(), attachments);
    out
}

#[cfg(test)]
mod tests;
