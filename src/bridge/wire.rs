//! Which channels a process listens to, and what it says there, by the kind of cluster it is in.

use super::link::Way;
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::outside::Pen;
use crate::cluster::{
    Body, Classic, Limits, Malformed, Message, Sharded, Target, Throng, is_told_to_all, throng,
};
use crate::message::{SOCKET_ID_CHARS, is_reserved_room};

/// Whom a process shares its rooms with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Other throngs.
    Throng,
    /// Throngs and Node's servers with `@socket.io/redis-adapter` in its usual mode, and `@socket.io/redis-emitter`.
    SocketIo,
    /// The same with its sharded adapter.
    SocketIoSharded,
}

/// What is said on Redis, and where.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    cluster: Cluster,
    throng: Throng,
    classic: Classic,
    sharded: Sharded,
    /// By which way envelopes for rooms go.
    envelopes: Way,
    /// The name of this process among the others.
    uid: String,
}

impl Wire {
    /// `on_cluster` when Redis is a cluster. Each room's channel then belongs to one of its servers.
    pub(super) fn new(cluster: Cluster, prefix: &str, uid: String, on_cluster: bool) -> Wire {
        let prefix = || prefix.to_owned();
        let (throng, classic) = (Throng { prefix: prefix() }, Classic { prefix: prefix() });
        let envelopes = if on_cluster { Way::Sharded } else { Way::Plain };
        Wire { cluster, throng, classic, sharded: Sharded { prefix: prefix() }, envelopes, uid }
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// True when what is for one room goes as an envelope: among throngs. What may be the id of a socket somewhere, or a
    /// user's own room, is told to all.
    pub(super) fn encloses(&self, room: &str) -> bool {
        self.cluster == Cluster::Throng && !is_told_to_all(room_of(room))
    }

    /// What writes events into envelopes. `origin_us` is the clock's origin, in microseconds since 1970.
    pub(super) fn pen(&self, origin_us: u64) -> Pen {
        let wire = self.clone();
        Box::new(move |draft, out| {
            let is_plain = draft.is_for_one_room()
                && draft.attachments.is_empty()
                && draft.ask.is_none()
                && !draft.is_list;
            if !is_plain || !wire.encloses(draft.room) {
                return false;
            }
            if out.is_empty() {
                throng::encode_head(out, throng::Head::default());
            }
            let publication = throng::Publication {
                room: draft.room,
                event: draft.event,
                payload: draft.payload,
                binary: draft.binary,
                volatile: draft.volatile,
                except: None,
                published_at_us: origin_us + draft.published_at.ns() / 1_000,
            };
            throng::encode_publication(out, &publication);
            true
        })
    }

    /// Where the envelopes for a room go.
    pub(super) fn room(&self, room: &str) -> (Way, String) {
        (self.envelopes, self.throng.room(room))
    }

    /// The room that envelopes on this channel are for.
    pub(super) fn room_of<'c>(&self, channel: &'c [u8]) -> Option<&'c str> {
        let room = channel.strip_prefix(self.throng.room("").as_bytes())?;
        (self.cluster == Cluster::Throng).then(|| str::from_utf8(room).ok())?
    }

    /// Among throngs, what is for the members of one room and needs no answer goes as an envelope, too: so only those hear it who have
    /// members there, and in its place among the publications to the room. Answers the room and what the envelope is to hold.
    pub(super) fn enclosed(&self, message: &Message<'_>) -> Option<(String, Vec<u8>)> {
        let Body::Broadcast { target: Target { rooms: Some(rooms), .. }, request_id: None, .. } =
            &message.body
        else {
            return None;
        };
        let [room] = rooms.as_slice() else { return None };
        let room = room_key(&message.namespace, room);
        let (_, payload) = self.encloses(&room).then(|| self.sharded.encode(message))??;
        Some((room.into_owned(), payload))
    }

    /// The message that an envelope for this room holds.
    pub(super) fn open(
        &self,
        room: &str,
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Option<Message<'static>>, Malformed> {
        self.sharded.decode(self.sharded.messages(namespace_of(room)).as_bytes(), payload, limits)
    }

    /// By which way messages are published.
    pub(super) fn way(&self) -> Way {
        match self.cluster {
            Cluster::Throng | Cluster::SocketIo => Way::Plain,
            Cluster::SocketIoSharded => Way::Sharded,
        }
    }

    /// The namespace in which it is asked who is in a room of `namespace`. Among throngs that is one where all listen.
    pub(super) fn asks_in<'n>(&self, namespace: &'n str) -> &'n str {
        if self.cluster == Cluster::Throng { "/" } else { namespace }
    }

    pub(super) fn encode(&self, message: &Message<'_>) -> Option<(String, Vec<u8>)> {
        match self.cluster {
            Cluster::SocketIo => self.classic.encode(message),
            Cluster::Throng | Cluster::SocketIoSharded => self.sharded.encode(message),
        }
    }

    pub(super) fn decode(
        &self,
        channel: &[u8],
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Option<Message<'static>>, Malformed> {
        match self.cluster {
            Cluster::SocketIo => self.classic.decode(channel, payload, limits),
            Cluster::Throng | Cluster::SocketIoSharded => self.sharded.decode(channel, payload, limits),
        }
    }

    /// What to listen to while somebody is in the room that the directory calls `name`.
    pub(super) fn channels_of(&self, name: &str) -> Vec<(Way, String)> {
        let namespace = namespace_of(name);
        let room = room_of(name);
        if room.is_empty() {
            // Everybody is in the main namespace from the start, clients of the native dialect too.
            return if namespace == "/" { Vec::new() } else { self.channels_of_namespace(namespace) };
        }
        // A socket is reached by its id without that, and nobody else publishes to the rooms of this process.
        let is_not_heard = match self.cluster {
            Cluster::SocketIo => room.len() == SOCKET_ID_CHARS,
            Cluster::Throng | Cluster::SocketIoSharded => is_told_to_all(room),
        };
        match self.cluster {
            _ if is_not_heard || is_reserved_room(room) => Vec::new(),
            Cluster::Throng => vec![self.room(name)],
            Cluster::SocketIo => vec![(Way::Plain, self.classic.broadcasts_to(namespace, room))],
            Cluster::SocketIoSharded => vec![(Way::Sharded, self.sharded.broadcasts_to(namespace, room))],
        }
    }

    /// What to listen to while somebody is in a namespace.
    pub(super) fn channels_of_namespace(&self, namespace: &str) -> Vec<(Way, String)> {
        let Wire { classic, sharded, uid, .. } = self;
        match self.cluster {
            Cluster::SocketIo => vec![
                (Way::Plain, classic.broadcasts(namespace)),
                (Way::Plain, classic.requests(namespace)),
                (Way::Plain, classic.answers(namespace)),
                (Way::Plain, classic.answers_to(namespace, uid)),
                (Way::Pattern, classic.sockets_pattern(namespace)),
            ],
            Cluster::Throng | Cluster::SocketIoSharded => vec![
                (self.way(), sharded.messages(namespace)),
                (self.way(), sharded.answers_to(namespace, uid)),
            ],
        }
    }

    /// What to ask Redis to learn how many processes listen for requests in a namespace, and the channel it is about.
    pub(super) fn count(&self, namespace: &str) -> (&'static str, String) {
        match self.cluster {
            Cluster::SocketIo => ("NUMSUB", self.classic.requests(namespace)),
            Cluster::Throng => ("NUMSUB", self.sharded.messages(namespace)),
            Cluster::SocketIoSharded => ("SHARDNUMSUB", self.sharded.messages(namespace)),
        }
    }
}
