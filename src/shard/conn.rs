//! What a shard keeps of a connection: 104 bytes, and nothing else while it is idle. Who it is, where that is known, is in `users`.

use super::outbox::Outbox;
use super::rooms::Membership;
use super::session::Session;
use super::turn::Pending;
use crate::auth::Ip;
use crate::buf::Lease;
use crate::dialect::Dialect;
use crate::message::Slot;
use crate::stats::Ending;
use crate::time::{Bucket, Time};
use crate::wire::frame::{self, Opcode};
use smallvec::SmallVec;

/// One connection, from accept to release.
#[derive(Debug)]
pub struct Conn {
    /// See [`ConnId::stamp`](crate::message::ConnId::stamp).
    pub stamp: u32,
    /// Frames of this turn, in the turn's arena.
    pub pending: Pending,
    /// When it was last written to, as [`Time::ms32`].
    pub flushed_ms: u32,
    /// When the last sign of life came, as [`Time::ms32`]: bytes, or that the kernel took more of an outbox.
    pub heard_ms: u32,
    /// Where it is in its life.
    pub stage: Stage,
    /// Whether and when it is flushed.
    pub due: Due,
    /// True while a publication of its own is being delivered, of a ghost, and while a session is being recovered: the walk over the
    /// members passes it by.
    pub muted: bool,
    /// True exactly when a ping was sent and no sign of life has come since.
    pub pinged: bool,
    /// True exactly when the kernel refused bytes and has not said since that it takes more.
    pub blocked: bool,
    /// True when the peer is a proxy whose word on the client's address is believed.
    pub from_proxy: bool,
    /// Once it is a WebSocket or a session that is polled, of which dialect: what is pending is frames of that from then on.
    pub framing: Option<Dialect>,
    /// True unless it is a session that is polled: then it is reached through the sockets of others.
    pub has_socket: bool,
    /// True exactly when its socket is to be closed at the end of this turn.
    pub doomed: bool,
    /// True from the upgrade until the answer to it has left.
    pub switching: bool,
    /// True when the client of its session has the msgpack parser.
    pub speaks_msgpack: bool,
    /// Messages a second it may still send. Full from the start; not looked at when there is no limit.
    pub bucket: Bucket,
    /// The address that counts against the limit per address.
    pub ip: Ip,
    /// What has arrived of a head, or of a message that is not whole.
    pub partial: Option<Box<Partial>>,
    /// What the kernel has refused.
    pub outbox: Option<Box<Outbox>>,
    /// What Engine.IO keeps of it, when it speaks that.
    pub session: Option<Box<Session>>,
    /// Its side of its memberships.
    pub memberships: SmallVec<[Membership; 2]>,
}

const _: () = assert!(size_of::<Conn>() <= 104);
// The slab's mark of a free place must fit beside what is there, or each connection would cost eight bytes more.
const _: () = assert!(size_of::<Option<Conn>>() == size_of::<Conn>());

/// A connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Sending request heads, which may or may not lead to a WebSocket.
    Http,
    /// Its request is answered as soon as there is something to say on the polling session in this slot.
    Waiting(Slot),
    /// A WebSocket to which the polling session in this slot may move.
    Probing(Slot),
    /// On its way to another shard.
    Leaving,
    /// What a session that dropped out left behind: a member of its rooms that gets nothing.
    Ghost,
    /// A WebSocket.
    Open(Dialect),
    /// A WebSocket that we closed: the peer's answer is awaited. Its messages are no longer carried out.
    Closing(Dialect, Ending),
    /// Nothing is read any more: what is queued will be written, then comes the end of the stream.
    Finishing {
        /// True when the peer has said its last word, so that the socket can be closed without waiting for its end.
        at_once: bool,
    },
    /// All is written and the end of the stream sent: the peer's is awaited, so that nothing written is lost to a reset.
    Finished,
}

/// Whether a connection has frames to flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing is pending.
    No,
    /// When what lingers is due.
    Later,
    /// At the end of the turn.
    Now,
}

/// What has arrived of something that is cut short.
#[derive(Debug)]
pub struct Partial {
    /// A request head so far, or the message so far, unmasked.
    pub lease: Lease,
    /// When the message began, as [`Time::ms32`]. Of a head, when the last piece came; its time is that of the connection's timer.
    pub began_ms: u32,
    /// How much of a text message is known to be UTF-8. `0 <= validated <= lease.len()`.
    pub validated: usize,
    /// Payload of the current frame that has not come. 0 between frames. Of a request, what its body lacks.
    pub remaining: u64,
    /// The mask of the current frame, turned so that the next byte is the first.
    pub mask: [u8; 4],
    /// The message's kind, when one has begun.
    pub opcode: Option<Opcode>,
    /// True when the message ends with the current frame.
    pub fin: bool,
    /// Frames of the message so far.
    pub frames: u32,
    /// How long the message may be, and in how many frames it may come: what was allowed when it began.
    pub bytes_max: usize,
    /// See above.
    pub frames_max: u32,
    /// The beginning of a frame whose header, or whose control payload, is cut short; as it came, still masked.
    pub stub: SmallVec<[u8; STUB_BYTES_MAX]>,
}

/// The longest stub: a control frame less its last byte, in bytes.
pub const STUB_BYTES_MAX: usize = frame::HEADER_BYTES_MAX + frame::CONTROL_BYTES_MAX;

impl Conn {
    /// A connection that has just been accepted.
    pub fn new(stamp: u32, ip: Ip, now: Time) -> Conn {
        Conn {
            stamp,
            pending: Pending::NONE,
            flushed_ms: now.ms32(),
            heard_ms: now.ms32(),
            stage: Stage::Http,
            due: Due::No,
            muted: false,
            pinged: false,
            blocked: false,
            from_proxy: false,
            framing: None,
            has_socket: true,
            doomed: false,
            switching: false,
            speaks_msgpack: false,
            bucket: Bucket::default(),
            ip,
            partial: None,
            outbox: None,
            session: None,
            memberships: SmallVec::new(),
        }
    }

    /// The dialect of a WebSocket or a polling session, open or closing.
    pub fn dialect(&self) -> Option<Dialect> {
        match self.stage {
            Stage::Open(dialect) | Stage::Closing(dialect, _) => Some(dialect),
            Stage::Probing(_) => Some(Dialect::EngineIo),
            Stage::Http
            | Stage::Waiting(_)
            | Stage::Leaving
            | Stage::Ghost
            | Stage::Finishing { .. }
            | Stage::Finished => None,
        }
    }

    /// True when it has sent a part of a message and not the rest of it for `timeout_ms`.
    pub fn is_late(&self, now: Time, timeout_ms: u32) -> bool {
        let partial = self.partial.iter().map(|partial| partial.began_ms);
        let incoming = self.session.iter().flat_map(|session| &session.incoming);
        partial
            .chain(incoming.map(|incoming| incoming.began_ms))
            .any(|began_ms| now.ms32().wrapping_sub(began_ms) >= timeout_ms)
    }

    /// True when events for it are held back or not for it at all.
    pub fn is_apart(&self) -> bool {
        self.stage == Stage::Ghost
            || self.session.as_ref().is_some_and(|session| session.recovering.is_some())
    }

    /// True when it is open, and one client by itself: see [`Dialect::is_direct`].
    pub fn is_direct(&self) -> bool {
        matches!(self.stage, Stage::Open(dialect) if dialect.is_direct())
    }

    /// True when it takes events and answers.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }
}

impl Partial {
    /// Nothing yet.
    pub fn new(lease: Lease, now: Time) -> Box<Partial> {
        Box::new(Partial {
            lease,
            began_ms: now.ms32(),
            validated: 0,
            remaining: 0,
            mask: [0; 4],
            opcode: None,
            fin: false,
            frames: 0,
            bytes_max: 0,
            frames_max: 0,
            stub: SmallVec::new(),
        })
    }
}
