//! What a shard keeps of a connection that speaks Engine.IO: how it is reached, its heartbeat, and the namespaces it has joined.

use super::engineio::Answer;
use super::recovery::Recovering;
use crate::buf::Lease;
use crate::message::{Slot, SocketId};
use crate::time::Time;
use compact_str::CompactString;
use hashbrown::HashTable;
use smallvec::SmallVec;

/// An Engine.IO session. Boxed beside its connection, so that others do not pay for it.
#[derive(Debug)]
pub struct Session {
    /// How it is reached.
    pub transport: Transport,
    /// When the next ping is due; after a ping, when its answer must have come.
    pub beat: Time,
    /// How often its client has been told that a ping comes, in milliseconds: it goes when there is none.
    pub interval_ms: u32,
    /// When it must have joined a namespace; `None` once it has, and where there are none.
    pub connect_by: Option<Time>,
    /// The Socket.IO namespaces it is in. At most `namespaces_per_connection_max`.
    pub namespaces: SmallVec<[Joined; 1]>,
    /// Which parser its client has; `None` until the first packet has shown it.
    pub parser: Option<Parser>,
    /// How much of the history its client has received for certain, and how much it had been sent when it was last pinged.
    pub confirmed: u64,
    /// See above.
    pub asked: u64,
    /// What is being looked into, when it says that it was here before.
    pub recovering: Option<Box<Recovering>>,
    /// A packet whose attachments have not all come.
    pub incoming: Option<Box<Incoming>>,
}

// With the connection itself, its timer and a room, within the 384 bytes that an idle Socket.IO connection may take. With one byte more it
// would cost sixteen, since it fills what the allocator gives.
const _: () = assert!(size_of::<Session>() <= 168);

/// How the packets of Socket.IO are written, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parser {
    /// As text, with attachments behind it.
    Json,
    /// As one binary message.
    Msgpack,
}

/// How packets reach a session's peer.
#[derive(Debug)]
pub enum Transport {
    /// The connection is a WebSocket.
    WebSocket,
    /// The connection has no socket of its own: what is said to it waits in its outbox for requests, which come on others.
    Polling(Polling),
}

/// The requests of a polling session.
#[derive(Debug, Default)]
pub struct Polling {
    /// The GET that waits for something to say.
    pub get: Option<Box<Get>>,
    /// The connection whose POST has not arrived whole.
    pub post: Option<Slot>,
    /// The WebSocket to which the session may move.
    pub probe: Option<Slot>,
    /// True when that WebSocket has been told that it works: then requests are answered at once, since the client waits for that.
    pub is_pausing: bool,
}

/// A GET that waits.
#[derive(Debug)]
pub struct Get {
    /// The connection it came on.
    pub slot: Slot,
    /// How it wants to be answered.
    pub answer: Answer,
}

/// A namespace that a session has joined.
#[derive(Debug)]
pub struct Joined {
    /// Its name.
    pub name: CompactString,
    /// Who the session is there, for everybody.
    pub sid: SocketId,
    /// What its client can come back with; nobody else knows it.
    pub pid: SocketId,
    /// The offset in the shard's history from which on it is in the namespace.
    pub began: u64,
    /// Which pattern allows the namespace: its place in the configuration.
    pub pattern: u16,
}

// The pattern stands where there was padding.
const _: () = assert!(size_of::<Joined>() == 64);

/// Where the sockets of Socket.IO are, by their ids. Eight bytes for each in a table, so that everybody can be found and idle ones cost
/// little.
#[derive(Debug, Default)]
pub struct Sockets(HashTable<(u32, Slot)>);

impl Sockets {
    /// The socket `id` is at `slot`.
    pub fn insert(&mut self, id: &SocketId, slot: Slot) {
        let tag = tag(id);
        self.0.insert_unique(spread(tag), (tag, slot), |(tag, _)| spread(*tag));
    }

    /// It is not any more.
    pub fn remove(&mut self, id: &SocketId, slot: Slot) {
        let tag = tag(id);
        if let Ok(entry) = self.0.find_entry(spread(tag), |entry| *entry == (tag, slot)) {
            entry.remove();
            if self.0.is_empty() {
                self.0.shrink_to(0, |_| 0);
            }
        }
    }

    /// The places where it may be: the caller looks.
    pub fn find(&self, id: &SocketId) -> impl Iterator<Item = Slot> {
        let tag = tag(id);
        self.0.iter_hash(spread(tag)).filter(move |(other, _)| *other == tag).map(|(_, slot)| *slot)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A part of an id: ids are made by a keyed hash, so nobody chooses it.
fn tag(id: &SocketId) -> u32 {
    u32::from_be_bytes([id[1], id[2], id[3], id[4]])
}

fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A packet whose attachments come in frames of their own. It holds at most `message_bytes_max` bytes in all.
#[derive(Debug)]
pub struct Incoming {
    /// The packet's text, and behind it the attachments that have come.
    pub lease: Lease,
    /// Where in the lease the text ends, and each of these attachments. At most `expected`, since the last attachment is not kept.
    pub ends: SmallVec<[usize; 2]>,
    /// How many attachments there will be. At least 1.
    pub expected: usize,
    /// When its text came, as [`Time::ms32`].
    pub began_ms: u32,
    /// How long the packet may be: what was allowed when it began.
    pub bytes_max: usize,
}

impl Session {
    /// A session that has just begun.
    pub fn new(
        transport: Transport,
        (beat, interval_ms): (Time, u32),
        connect_by: Option<Time>,
    ) -> Box<Session> {
        Box::new(Session {
            transport,
            beat,
            interval_ms,
            connect_by,
            namespaces: SmallVec::new(),
            parser: None,
            confirmed: 0,
            asked: 0,
            recovering: None,
            incoming: None,
        })
    }

    /// Its requests, when it polls.
    pub fn polling(&mut self) -> Option<&mut Polling> {
        match &mut self.transport {
            Transport::Polling(polling) => Some(polling),
            Transport::WebSocket => None,
        }
    }

    /// When it next has to be looked at.
    pub fn due(&self) -> Time {
        self.connect_by.map_or(self.beat, |connect_by| connect_by.min(self.beat))
    }

    /// The namespace `name`, if it is in it.
    pub fn joined(&self, name: &str) -> Option<&Joined> {
        self.namespaces.iter().find(|joined| joined.name == name)
    }
}

impl Incoming {
    /// Nothing yet of a packet that will have `expected` attachments and `bytes_max` bytes in all at the most.
    pub fn new(lease: Lease, (expected, bytes_max): (usize, usize), now: Time) -> Box<Incoming> {
        Box::new(Incoming { lease, ends: SmallVec::new(), expected, began_ms: now.ms32(), bytes_max })
    }

    /// True when all have come but the last attachment.
    pub fn lacks_one(&self) -> bool {
        self.ends.len() == self.expected
    }

    /// The packet's text, and copies of the attachments that have come.
    pub fn parts(&self) -> (&str, Vec<Vec<u8>>) {
        let bytes = self.lease.bytes();
        let text = self.ends.first().map_or(bytes, |end| &bytes[..*end]);
        let attachments = self.ends.windows(2).map(|ends| bytes[ends[0]..ends[1]].to_vec()).collect();
        (str::from_utf8(text).unwrap_or_default(), attachments)
    }
}
