//! What the control port wants of one shard: to know of connections, or to have something done to one. The shard answers in its turn.

use crate::message::{RoomId, Slot, SocketId};
use compact_str::CompactString;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::mpsc::Sender;

/// The most connections that one answer lists. More are asked for again, so that a long list does not hold up the shard's clients.
pub const LISTED_MAX: usize = 1_000;
/// The most places that one answer looks at, whether somebody is there or not.
pub const LOOKED_AT_MAX: u32 = 16_384;
/// The most rooms of one connection that are named.
pub const ROOMS_NAMED_MAX: usize = 1_024;

/// A question with the way back. Whoever asks waits for one answer, and may have gone before it comes.
#[derive(Clone, Debug)]
pub struct Inquiry {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes. It has room for one, so the shard never waits.
    pub back: Sender<Answer>,
}

/// See [`Inquiry`].
#[derive(Clone, Debug)]
pub enum Question {
    /// Connections from a slot on, ascending. Answered with [`Answer::Page`].
    Connections {
        /// The first slot to look at.
        from: Slot,
        /// How many at the most, of which [`LISTED_MAX`] are given.
        most: usize,
        /// Only those of this address, or of its network where limits do not look further.
        address: Option<IpAddr>,
    },
    /// Members of a room, from the last to the first, so that whoever stays is not passed by when others go. Answered with
    /// [`Answer::Page`].
    Members {
        /// The room.
        room: RoomId,
        /// Members at this place and behind it have been told; `None` when nobody has.
        below: Option<u32>,
        /// As above.
        most: usize,
    },
    /// Users, each once, by slots of their connections from one on. Answered with [`Answer::Users`].
    Users {
        /// The first slot to look at.
        from: Slot,
        /// How many at the most, of which [`LISTED_MAX`] are given.
        most: usize,
    },
    /// How many connections these users have. Answered with [`Answer::Counts`].
    Counts(Arc<[Box<str>]>),
    /// One user. Answered with [`Answer::User`].
    User {
        /// The user's name.
        name: Box<str>,
        /// How many of the connections are described at the most.
        most: usize,
    },
    /// One connection. Answered with [`Answer::Connection`] or [`Answer::Unknown`].
    Connection(SocketId),
    /// Connections for which something waits, of the [`LOOKED_AT_MAX`] slots from one on: those for which the most does. Answered with
    /// [`Answer::Slowest`].
    Slowest {
        /// The first slot to look at.
        from: Slot,
        /// How many at the most, of which [`LISTED_MAX`] are given.
        most: usize,
    },
    /// One connection joins all of these rooms or none. Answered with [`Answer::Done`], [`Answer::Refused`] or [`Answer::Unknown`].
    Join {
        /// Which connection, and in which of its namespaces.
        id: SocketId,
        /// The rooms' names within the namespace, checked.
        rooms: Vec<CompactString>,
    },
    /// One connection leaves rooms. Answered likewise.
    Leave {
        /// As above.
        id: SocketId,
        /// As above.
        rooms: Vec<CompactString>,
    },
    /// One connection is closed. Answered likewise.
    Close {
        /// Which connection.
        id: SocketId,
        /// The close code, one that may be on the wire.
        code: u16,
        /// At most [`REASON_BYTES_MAX`](super::outside::REASON_BYTES_MAX) bytes.
        reason: CompactString,
    },
}

/// See [`Inquiry`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// Some of the connections.
    Page {
        /// Those that there are, at most as many as were asked for.
        listed: Vec<Listed>,
        /// Where to go on: a slot, or a place among the members. `None` at the end.
        next: Option<u32>,
    },
    /// Some of the users.
    Users {
        /// Their names, at most as many as were asked for.
        names: Vec<Box<str>>,
        /// The slot where to go on; `None` at the end.
        next: Option<u32>,
    },
    /// Those for which the most waits, of the slots looked at.
    Slowest {
        /// In no order, at most as many as were asked for.
        slow: Vec<Slow>,
        /// The slot where to go on; `None` at the end.
        next: Option<Slot>,
    },
    /// How many connections users have, in the order in which they were asked about.
    Counts(Vec<u32>),
    /// The user.
    User {
        /// How many connections there are.
        connections: u32,
        /// Some of them or all.
        described: Vec<Connection>,
    },
    /// The connection.
    Connection(Box<Connection>),
    /// It is as was wished.
    Done,
    /// It cannot be: why, for people.
    Refused(String),
    /// There is no such connection.
    Unknown,
}

/// A connection in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id: of a Socket.IO client that in the namespace that was asked about, or in the first that it joined.
    pub id: SocketId,
    /// What it speaks: `native`, `plain`, `socketio`, `echo` or `engineio`.
    pub dialect: &'static str,
    /// The address that limits count it for.
    pub address: String,
    /// Its user, if that is known.
    pub user: Option<Box<str>>,
}

/// A connection for which something waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slow {
    /// As in a list.
    pub listed: Listed,
    /// Bytes that wait for it because the kernel took no more, or because it has not polled.
    pub waiting_bytes: usize,
    /// How long it has given no sign of life, in milliseconds: neither sent anything nor taken any of these bytes.
    pub silent_ms: u32,
}

/// All that is known of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// As in a list.
    pub listed: Listed,
    /// `websocket` or `polling`.
    pub transport: &'static str,
    /// Its namespaces. A client of the native dialect is in `/`.
    pub namespaces: Vec<Namespace>,
    /// How many rooms it is in. At most [`ROOMS_NAMED_MAX`] of them are named.
    pub memberships: usize,
    /// Bytes that wait for it because the kernel took no more.
    pub waiting_bytes: usize,
}

/// A namespace that a connection is in.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: CompactString,
    /// The connection's id there.
    pub id: SocketId,
    /// Its rooms there.
    pub rooms: Vec<CompactString>,
}
