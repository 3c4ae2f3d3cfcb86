//! The words that all layers share: what a connection, a room and a publication are called, and why someone is
//! turned away.

use crate::time::Time;
use compact_str::CompactString;
use data_encoding::BASE64URL_NOPAD;
use std::borrow::Cow;
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;

/// The number of a shard, `0 <= shard < SHARDS_MAX`.
pub type ShardId = u8;

/// The most shards one process can have: a set of shards is one 128-bit word.
pub const SHARDS_MAX: usize = 128;

/// What tells processes that share a port apart; 0 is a process that has its port for itself.
pub type ProcessTag = u16;

/// The place of a connection in its shard's slab.
pub type Slot = u32;

/// The name of a connection within the process. Slots are reused, stamps are not (until 2^32 later connections of the
/// same shard), so a stale name finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// The shard that owns the connection, for as long as it lives.
    pub shard: ShardId,
    /// Its place there.
    pub slot: Slot,
    /// Which of the connections that had this place.
    pub stamp: u32,
}

/// The name of a room within the process: where the directory keeps it, and which of the rooms that were kept there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoomId {
    /// Stripe and place in the stripe.
    pub index: u32,
    /// Counts up with every room that its stripe makes, so mail for a room that is gone finds nobody.
    pub stamp: NonZeroU32,
}

impl RoomId {
    /// A room that nobody is in.
    pub const NOWHERE: RoomId = RoomId { index: u32::MAX, stamp: NonZeroU32::MAX };
}

/// A set of shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet([u64; 2]);

impl ShardSet {
    /// Adds `shard`.
    pub fn insert(&mut self, shard: ShardId) {
        self.0[usize::from(shard >> 6)] |= 1 << (shard & 63);
    }

    /// Takes `shard` away.
    pub fn remove(&mut self, shard: ShardId) {
        self.0[usize::from(shard >> 6)] &= !(1 << (shard & 63));
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: ShardSet) {
        self.0[0] |= other.0[0];
        self.0[1] |= other.0[1];
    }

    /// True exactly when there is no shard in it.
    pub fn is_empty(self) -> bool {
        self.0 == [0, 0]
    }

    /// The shards in it, lowest first.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        let [mut low, mut high] = self.0;
        std::iter::from_fn(move || {
            let (word, base) = if low != 0 { (&mut low, 0) } else { (&mut high, 64) };
            if *word == 0 {
                return None;
            }
            let bit = word.trailing_zeros() as u8;
            *word &= *word - 1;
            Some(base + bit)
        })
    }
}

/// One event on its way to the members of a room. Made once, shared by every shard that has members.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The room it is for; of several, the first that has members.
    pub room: RoomId,
    /// The connection that must not get it: its sender, unless that asked for an echo.
    pub except: Option<ConnId>,
    /// When the server had read it.
    pub published_at: Time,
    /// True exactly when the payload is bytes; else it is JSON text.
    pub binary: bool,
    /// What sets it apart from most.
    pub special: Option<Box<Special>>,
    /// Room name, event name and payload, one behind the other: one allocation.
    bytes: Box<[u8]>,
    room_bytes: u16,
    event_bytes: u16,
}

impl Publication {
    /// The longest room or event name that fits, in bytes.
    pub const NAME_BYTES_MAX: usize = u16::MAX as usize;

    /// A publication of what `draft` says to `room`. Names longer than [`Self::NAME_BYTES_MAX`] are a fault of the caller: the
    /// dialects refuse them far earlier.
    pub fn new(room: RoomId, draft: &Draft<'_>) -> Publication {
        let (name, event) = (draft.room.as_bytes(), draft.event.as_bytes());
        let mut bytes = Vec::with_capacity(name.len() + event.len() + draft.payload.len());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(event);
        bytes.extend_from_slice(draft.payload);
        Publication {
            room,
            except: draft.except,
            published_at: draft.published_at,
            binary: draft.binary,
            special: draft.special().map(Box::new),
            bytes: bytes.into_boxed_slice(),
            room_bytes: u16::try_from(name.len()).expect("a room name is at most 64 KiB"),
            event_bytes: u16::try_from(event.len()).expect("an event name is at most 64 KiB"),
        }
    }

    /// A publication to several rooms, or to sockets.
    pub fn for_several(audience: Audience, draft: &Draft<'_>) -> Publication {
        let room = audience.rooms.first().map_or(RoomId::NOWHERE, |(room, _)| *room);
        let mut publication = Publication::new(room, draft);
        publication.special.get_or_insert_default().audience = Some(audience);
        publication
    }

    /// Several publications of one room as one. There is at least one.
    pub fn bundle(event: &str, bundle: Bundle) -> Publication {
        let first = bundle.items.first();
        let room = first.map_or("", |item| item.room_name());
        let published_at = bundle.items.iter().map(|item| item.published_at).min().unwrap_or_default();
        let id = first.map_or(RoomId::NOWHERE, |item| item.room);
        let mut publication = Publication::new(id, &Draft::new(room, event, b"", published_at));
        publication.special.get_or_insert_default().bundle = Some(bundle);
        publication
    }

    /// The publications that this one is made of, if it is.
    pub fn as_bundle(&self) -> Option<&Bundle> {
        self.special.as_ref().and_then(|special| special.bundle.as_ref())
    }

    /// True when all of it comes from one connection that does not want it back: that one, by its shard and stamp.
    pub fn is_all_from(&self, was: ConnId) -> bool {
        match self.as_bundle() {
            Some(bundle) => bundle.items.iter().all(|item| item.is_from(was)),
            None => self.is_from(was),
        }
    }

    /// True when it comes from one connection that does not want it back: that one, by its shard and stamp. A session may have moved to another
    /// place since.
    pub fn is_from(&self, was: ConnId) -> bool {
        self.except.is_some_and(|except| (except.shard, except.stamp) == (was.shard, was.stamp))
    }

    /// True when it is for a member of `rooms` that is `socket` and, if that is known, `user`.
    pub fn is_for(&self, rooms: &HashSet<RoomId>, socket: SocketId, user: Option<&str>) -> bool {
        let Some(audience) = self.special.as_ref().and_then(|special| special.audience.as_ref()) else {
            return rooms.contains(&self.room);
        };
        let is_meant = audience.rooms.iter().any(|(room, _)| rooms.contains(room))
            || audience.sockets.contains(&socket)
            || user.is_some_and(|user| audience.users.iter().any(|meant| meant == user));
        let is_excepted = audience.except.iter().any(|room| rooms.contains(room))
            || audience.except_sockets.contains(&socket);
        is_meant && !is_excepted
    }

    /// The room's name.
    pub fn room_name(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.payload_start() - usize::from(self.event_bytes)])
            .unwrap_or_default()
    }

    /// The event's name.
    pub fn event(&self) -> &str {
        std::str::from_utf8(&self.bytes[usize::from(self.room_bytes)..self.payload_start()])
            .unwrap_or_default()
    }

    /// The payload, byte for byte as the publisher wrote it.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_start()..]
    }

    /// What the placeholders of the payload stand for, in their order.
    pub fn attachments(&self) -> &[Vec<u8>] {
        self.special.as_ref().map_or(&[], |special| &special.attachments)
    }

    /// Bytes of memory behind this publication, for the bounds of queues.
    pub fn size(&self) -> usize {
        size_of::<Publication>()
            + self.bytes.len()
            + self.special.as_ref().map_or(0, |special| special.size())
    }

    fn payload_start(&self) -> usize {
        usize::from(self.room_bytes) + usize::from(self.event_bytes)
    }
}

/// What few publications have.
#[derive(Clone, Debug, Default)]
pub struct Special {
    /// Whom it is for, when that is not the members of one room.
    pub audience: Option<Audience>,
    /// See [`Publication::attachments`].
    pub attachments: Vec<Vec<u8>>,
    /// See [`Draft::volatile`].
    pub volatile: bool,
    /// See [`Draft::ask`].
    pub ask: Option<Ask>,
    /// See [`Draft::is_list`].
    pub is_list: bool,
    /// The publications that it is made of; then it has no payload of its own.
    pub bundle: Option<Bundle>,
    /// True when whom it is for is told its room even though it is for somebody alone.
    pub of_room: bool,
}

/// Publications of one room that leave as one.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// What they become.
    pub shape: Shape,
    /// In their order. All are JSON, without attachments.
    pub items: Vec<Arc<Publication>>,
}

/// See [`Bundle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A list of them.
    Batch {
        /// True when clients of Socket.IO get the payloads alone, without the names of the events.
        data_only: bool,
        /// True when it is a list even of one.
        lone: bool,
    },
    /// One event with a field for each.
    Merge {
        /// What the fields are called.
        fields: Vec<CompactString>,
    },
}

impl Bundle {
    /// The items that a connection gets, with their places: all but its own. Without one, all of them.
    pub fn items_for(&self, member: Option<ConnId>) -> impl Iterator<Item = (usize, &Publication)> {
        let items = self.items.iter().map(|item| &**item).enumerate();
        items.filter(move |(_, item)| member.is_none_or(|member| !item.is_from(member)))
    }
}

impl Special {
    fn size(&self) -> usize {
        let attachments: usize =
            self.attachments.iter().map(|bytes| size_of::<Vec<u8>>() + bytes.len()).sum();
        let items = self.bundle.iter().flat_map(|bundle| &bundle.items);
        let items: usize = items.map(|item| size_of::<Arc<Publication>>() + item.size()).sum();
        size_of::<Special>() + attachments + items + self.audience.as_ref().map_or(0, Audience::size)
    }
}

/// The members of several rooms. Who is in more than one of them gets the event once.
#[derive(Clone, Debug, Default)]
pub struct Audience {
    /// The rooms with their names, in the order in which the publisher named them.
    pub rooms: Vec<(RoomId, CompactString)>,
    /// Sockets that were named by their ids.
    pub sockets: Vec<SocketId>,
    /// Users whose own rooms were named.
    pub users: Vec<CompactString>,
    /// True when all connections of the native dialect are meant, too.
    pub natives: bool,
    /// Rooms whose members do not get it.
    pub except: Vec<RoomId>,
    /// Sockets that do not get it.
    pub except_sockets: Vec<SocketId>,
}

impl Audience {
    /// Bytes of memory behind it.
    pub fn size(&self) -> usize {
        let names: usize =
            self.rooms.iter().map(|(_, name)| size_of::<(RoomId, CompactString)>() + name.len()).sum();
        let sockets = self.sockets.len() + self.except_sockets.len();
        let names = names + self.users.len() * size_of::<CompactString>();
        names + self.except.len() * size_of::<RoomId>() + sockets * size_of::<SocketId>()
    }
}

/// The id of a socket of Socket.IO, 120 bits: nobody can guess it. Its first byte is the shard that made it, and its last two are a sum by
/// which the process knows its own ([`Bus::is_own`](crate::bus::Bus::is_own)).
pub type SocketId = [u8; 15];

/// The characters of a socket's id, as clients write it.
pub const SOCKET_ID_CHARS: usize = 20;

/// Reads the id of a socket, as clients write it.
pub fn read_socket_id(text: &str) -> Option<SocketId> {
    if text.len() != SOCKET_ID_CHARS {
        return None;
    }
    BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// The id of a socket as clients know it.
pub fn write_socket_id(id: &SocketId) -> String {
    BASE64URL_NOPAD.encode(id)
}

/// A question to everybody who gets an event: what they answer is collected for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its number in the process, which the clients give back. [`Ask::number`] makes it.
    pub number: u64,
    /// Until when answers count.
    pub until: Time,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A client of this shard.
    Shard(ShardId),
    /// A client of another process.
    Outside,
}

impl Ask {
    /// The number of the `count`th ask of `asker`. Below 2^53, so that it is exact in JavaScript, for 2^45 asks.
    pub fn number(count: u64, asker: Asker) -> u64 {
        let asker = match asker {
            Asker::Shard(shard) => u64::from(shard),
            Asker::Outside => 0xff,
        };
        count << 8 | asker
    }

    /// Whose ask has this number.
    pub fn asker(number: u64) -> Asker {
        match (number & 0xff) as u8 {
            0xff => Asker::Outside,
            shard => Asker::Shard(shard),
        }
    }
}

/// A publication that has not met the directory yet: borrowed from the bytes that a client sent.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The room's name, already checked against the limits on names. Of several, the first.
    pub room: &'a str,
    /// Further rooms, likewise.
    pub more_rooms: &'a [Cow<'a, str>],
    /// Rooms whose members do not get it.
    pub except_rooms: &'a [Cow<'a, str>],
    /// The event's name, likewise.
    pub event: &'a str,
    /// JSON text, or bytes when `binary`.
    pub payload: &'a [u8],
    /// See [`Publication::binary`].
    pub binary: bool,
    /// See [`Publication::attachments`]. None for bytes.
    pub attachments: &'a [Vec<u8>],
    /// True when it is better lost than late: who does not take it at once does not get it.
    pub volatile: bool,
    /// Whether those who get it are to answer.
    pub ask: Option<Ask>,
    /// True when all connections of the native dialect get it, besides the members of the rooms.
    pub natives: bool,
    /// True when the payload is JSON values with commas between them, the arguments of the event, and not one value.
    pub is_list: bool,
    /// See [`Publication::except`].
    pub except: Option<ConnId>,
    /// See [`Publication::published_at`].
    pub published_at: Time,
}

impl<'a> Draft<'a> {
    /// A draft of the most usual kind: JSON for the members of a room.
    pub fn new(room: &'a str, event: &'a str, payload: &'a [u8], published_at: Time) -> Draft<'a> {
        Draft {
            room,
            more_rooms: &[],
            except_rooms: &[],
            event,
            payload,
            binary: false,
            attachments: &[],
            volatile: false,
            ask: None,
            natives: false,
            is_list: false,
            except: None,
            published_at,
        }
    }

    /// True when it is for the members of its first room, and nobody else.
    pub fn is_for_one_room(&self) -> bool {
        self.more_rooms.is_empty() && self.except_rooms.is_empty() && !self.natives
    }

    fn special(&self) -> Option<Special> {
        let is_special = !self.attachments.is_empty() || self.volatile || self.ask.is_some() || self.is_list;
        is_special.then(|| Special {
            audience: None,
            attachments: self.attachments.to_vec(),
            volatile: self.volatile,
            ask: self.ask,
            is_list: self.is_list,
            bundle: None,
            of_room: false,
        })
    }
}

/// Why a connection was turned away before it was open. Each has an HTTP status, and a label in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The head is not HTTP/1.x, or lacks something that RFC 9112 or RFC 6455 section 4.2.1 asks for. Says what.
    Malformed(&'static str),
    /// Nothing is served at this path.
    NotFound,
    /// The path is served, but not by this method.
    Method,
    /// A WebSocket path without an upgrade.
    UpgradeRequired,
    /// An upgrade to a version of WebSocket other than 13.
    Version,
    /// The `Origin` is not on the allow list.
    Origin,
    /// The head was not complete in time.
    SlowHead,
    /// The head is larger than allowed, or has too many lines.
    LargeHead,
    /// The body of a request is larger than allowed.
    LargeBody,
    /// The body of a request does not say how long it is.
    LengthRequired,
    /// A request that Engine.IO does not allow: it is answered in that one's words.
    EngineIo,
    /// No token, or one that is not good.
    Unauthorized(TokenFault),
    /// Who this is could not be found out, since the backend has not said.
    AuthUnavailable,
    /// More connections from one address than allowed.
    PerIp,
    /// More connections of one user than allowed.
    PerUser,
    /// More new connections from one address than allowed in some time, of which so many seconds are left.
    IpRate(u32),
    /// More connections in all than allowed.
    Full,
    /// The server is shutting down.
    Draining,
}

impl Reject {
    /// The labels of all reasons, in the order of [`Reject::index`].
    pub const LABELS: [&'static str; 18] = [
        "malformed",
        "not_found",
        "method",
        "upgrade_required",
        "version",
        "origin",
        "slow_head",
        "large_head",
        "per_ip",
        "full",
        "draining",
        "large_body",
        "length_required",
        "engine_io",
        "per_user",
        "unauthorized",
        "ip_rate",
        "auth_unavailable",
    ];

    /// The place of this reason in [`Reject::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Reject::Malformed(_) => 0,
            Reject::NotFound => 1,
            Reject::Method => 2,
            Reject::UpgradeRequired => 3,
            Reject::Version => 4,
            Reject::Origin => 5,
            Reject::SlowHead => 6,
            Reject::LargeHead => 7,
            Reject::PerIp => 8,
            Reject::Full => 9,
            Reject::Draining => 10,
            Reject::LargeBody => 11,
            Reject::LengthRequired => 12,
            Reject::EngineIo => 13,
            Reject::PerUser => 14,
            Reject::Unauthorized(_) => 15,
            Reject::IpRate(_) => 16,
            Reject::AuthUnavailable => 17,
        }
    }

    /// The HTTP status and its standard phrase (RFC 9110 section 15, RFC 6585).
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Reject::Malformed(_) | Reject::EngineIo => (400, "Bad Request"),
            Reject::LargeBody => (413, "Content Too Large"),
            Reject::LengthRequired => (411, "Length Required"),
            Reject::NotFound => (404, "Not Found"),
            Reject::Method => (405, "Method Not Allowed"),
            Reject::UpgradeRequired | Reject::Version => (426, "Upgrade Required"),
            Reject::Origin => (403, "Forbidden"),
            Reject::Unauthorized(_) => (401, "Unauthorized"),
            Reject::SlowHead => (408, "Request Timeout"),
            Reject::LargeHead => (431, "Request Header Fields Too Large"),
            Reject::PerIp | Reject::PerUser | Reject::IpRate(_) => (429, "Too Many Requests"),
            Reject::Full | Reject::Draining | Reject::AuthUnavailable => (503, "Service Unavailable"),
        }
    }

    /// One sentence for the person who reads the answer.
    pub fn reason(self) -> &'static str {
        match self {
            Reject::Malformed(what) => what,
            Reject::NotFound => "nothing is served at this path",
            Reject::Method => "this path is served to GET",
            Reject::UpgradeRequired => "this path speaks WebSocket; ask for an upgrade",
            Reject::Version => "only WebSocket version 13 is spoken here",
            Reject::Origin => "this origin is not allowed",
            Reject::SlowHead => "the request head did not come in time",
            Reject::LargeHead => "the request head is too large",
            Reject::LargeBody => "the body is too large",
            Reject::LengthRequired => "a body needs a Content-Length",
            Reject::EngineIo => "Engine.IO does not allow this",
            Reject::Unauthorized(fault) => fault.reason(),
            Reject::AuthUnavailable => TokenFault::Unavailable.reason(),
            Reject::PerIp => "Connection limit exceeded",
            Reject::PerUser => "Connection limit exceeded",
            Reject::IpRate(_) => "too many new connections from this address",
            Reject::Full => "the server takes no more connections at present",
            Reject::Draining => "the server is shutting down",
        }
    }
}

/// What is wrong with a token. Each has a label in the metrics and a code for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// There is none.
    Missing,
    /// It is longer than tokens may be.
    TooLong,
    /// It is no token.
    Malformed,
    /// It is signed in a way that is not known here, or that its key is not for.
    Algorithm,
    /// Nobody here knows the key that it names.
    UnknownKey,
    /// Its signature is not that of a key that is known here.
    Signature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// Somebody else has issued it.
    Issuer,
    /// It is for somebody else.
    Audience,
    /// A claim is missing or not what it has to be.
    Claims,
    /// It is another user's than the connection.
    OtherUser,
    /// It is good, and its user has as many connections as allowed.
    PerUser,
    /// The backend does not let in who brings it.
    Refused,
    /// The backend was to say whose it is, and has not.
    Unavailable,
}

impl TokenFault {
    /// The labels of all faults, in their order.
    pub const LABELS: [&'static str; 15] = [
        "missing",
        "too_long",
        "malformed",
        "algorithm",
        "unknown_key",
        "signature",
        "expired",
        "not_yet",
        "issuer",
        "audience",
        "claims",
        "other_user",
        "per_user",
        "refused",
        "unavailable",
    ];

    /// The place of this fault in [`TokenFault::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// What programs go by: whether to bring a token, a newer one, or to give up.
    pub fn code(self) -> &'static str {
        match self {
            TokenFault::Missing => "token_missing",
            TokenFault::Expired => "token_expired",
            TokenFault::Unavailable => "auth_unavailable",
            _ => "token_refused",
        }
    }

    /// One sentence for the person who reads the answer.
    pub fn reason(self) -> &'static str {
        match self {
            TokenFault::Missing => "a token is needed",
            TokenFault::TooLong => "the token is too long",
            TokenFault::Malformed => "this is no token",
            TokenFault::Algorithm => "tokens that are signed like this are not taken",
            TokenFault::UnknownKey => "the key of the token is not known here",
            TokenFault::Signature => "the signature of the token is wrong",
            TokenFault::Expired => "the token has expired",
            TokenFault::NotYet => "the token is not good yet",
            TokenFault::Issuer => "the token is of another issuer",
            TokenFault::Audience => "the token is for another audience",
            TokenFault::Claims => "a claim of the token is missing or wrong",
            TokenFault::OtherUser => "the token is another user's",
            TokenFault::PerUser => "Connection limit exceeded",
            TokenFault::Refused => "the backend refuses this client",
            TokenFault::Unavailable => "who this is could not be found out now",
        }
    }
}

/// True for a room that only the server publishes to. Clients may be in it.
pub fn is_reserved_room(name: &str) -> bool {
    name.starts_with("throng:")
}

/// What stands before a user's name in the key of the user's own room. No room of a client can be called so.
const USER_MARK: char = '\x01';

/// The name of the room that all connections of a user are in, and nobody can join: in the main namespace its key; in another one, that
/// stands before it as for every room.
pub fn user_key(name: &str) -> String {
    format!("{USER_MARK}{name}")
}

/// The user whose own room this is, by its name within its namespace.
pub fn user_of(room: &str) -> Option<&str> {
    room.strip_prefix(USER_MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_shards_lists_what_was_put_in() {
        let mut set = ShardSet::default();
        assert!(set.is_empty());
        for shard in [127, 0, 64, 63, 5] {
            set.insert(shard);
        }
        set.remove(5);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 127]);
    }

    #[test]
    fn a_publication_keeps_its_parts_apart() {
        let draft = Draft::new("auction:7", "bid", br#"{"amount": 120 }"#, Time::default());
        let publication = Publication::new(RoomId { index: 1, stamp: NonZeroU32::MIN }, &draft);
        assert_eq!(publication.room_name(), "auction:7");
        assert_eq!(publication.event(), "bid");
        assert_eq!(publication.payload(), br#"{"amount": 120 }"#);
    }
}
