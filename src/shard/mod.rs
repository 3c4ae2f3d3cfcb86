//! A shard: one core's world of connections, rooms and timers.
//!
//! A plain struct that makes no system call and reads no clock. A reactor owns the sockets and calls the methods of [`Shard`];
//! the shard never calls back. What it wants done it answers when asked.
//!
//! ```text
//! told    begin_turn · writable · receive · hang_up · deliver · advance · accept · introduce · adopt · sent · stay · release
//! asked   has_mail · may_accept · is_full · take_bells · next_dirty · gather · next_farewell · end_turn · is_drained
//! ```

pub mod asks;
pub mod callouts;
pub mod calls;
pub mod conn;
pub mod engineio;
pub mod outbox;
pub mod presence;
pub mod recovery;
pub mod rooms;
pub mod session;
pub mod timers;
pub mod turn;
pub mod users;

mod commands;
mod frames;
mod heads;
mod homes;
mod inquiries;
mod notices;
mod orders;
mod plain;
mod routes;
mod socketio;
mod special;

use crate::auth::tally::Windows;
use crate::auth::{Gate, Ip};
use crate::buf::Pool;
use crate::bus::Bus;
use crate::bus::directory::namespace_of;
use crate::bus::mailbox::{Joined, Mail};
use crate::dialect::{
    Dialect, Paths, attachments, bundle, coding, msgpack, native, plain as messages, socketio as packets,
};
use crate::message::{Bundle, ConnId, ProcessTag, Publication, Reject, Shape, ShardId, ShardSet, Slot};
use crate::policy::homes::Homes;
use crate::routes::Routes;
use crate::rules::{Coding, Namespaces, Over, Pattern};
use crate::stats::{Ending, ShardStats, Stats};
use crate::time::{Bucket, Meter, Time};
use crate::wire::close::{self, CloseCode};
use crate::wire::frame::{self, Opcode};
use asks::Asks;
use callouts::Waits;
use calls::Calls;
use conn::{Conn, Due, Stage};
use engineio::Cors;
use notices::Told;
use orders::UnderWay;
use presence::Waiting;
use recovery::History;
use rooms::Rooms;
use session::Sockets;
use slab::Slab;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::hash::RandomState;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use timers::Wheel;
use turn::{Gathered, Turn};
use users::{Access, Users};

/// How a shard treats its connections. All bounds are inclusive.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What tells this process apart from the others on its port; 0 when it has the port for itself.
    pub process: ProcessTag,
    /// When time began, in milliseconds since 1970.
    pub origin_unix_ms: u64,
    /// Connections that space is reserved for; untouched space costs nothing.
    pub connections_reserved: usize,
    /// Where clients find what.
    pub paths: Paths,
    /// How Socket.IO is spoken.
    pub socketio: Arc<SocketIo>,
    /// How clients show who they are, and what they may do.
    pub access: Arc<Access>,
    /// How long frames of events may wait to leave together, in milliseconds; 0 for not at all.
    pub linger_ms: u32,
    /// Sockets accepted per second by this shard; 0 for no limit.
    pub accepts_per_second_max: u32,
    /// Time for a request head to arrive, in milliseconds.
    pub handshake_timeout_ms: u32,
    /// Size of a request head.
    pub head_bytes_max: usize,
    /// True to upgrade a connection that is over a limit and close it with 1008, false to answer with a status.
    pub refuse_with_close: bool,
    /// Size of a message, whole.
    pub message_bytes_max: usize,
    /// Frames of one message.
    pub frames_per_message_max: u32,
    /// Time for a message to arrive once it has begun, in milliseconds; looked at when the connection's heartbeat is due.
    pub message_timeout_ms: u32,
    /// Messages in one array.
    pub messages_per_frame_max: usize,
    /// Messages per second of one connection; 0 for no limit.
    pub messages_per_second_max: u32,
    /// Messages that a connection may send at once after a rest.
    pub messages_burst_max: u32,
    /// Bytes of messages per second of one connection; 0 for no limit.
    pub bytes_per_second_max: u32,
    /// Bytes that a connection may send at once after a rest.
    pub bytes_burst_max: u32,
    /// What happens to a message over one of these limits.
    pub over: Over,
    /// Rooms of one connection.
    pub rooms_per_connection_max: usize,
    /// Length of a room's name.
    pub room_name_bytes_max: usize,
    /// Bytes of unfinished messages on this shard.
    pub receive_bytes_max: usize,
    /// Silence after which a ping is sent, in milliseconds.
    pub ping_interval_ms: u32,
    /// Silence after a ping that ends the connection, in milliseconds.
    pub ping_timeout_ms: u32,
    /// Bytes that may wait for one connection.
    pub outbox_bytes_max: usize,
    /// Bytes that may wait on this shard.
    pub outbox_total_bytes_max: usize,
    /// What happens to a connection whose outbox is full.
    pub outbox_policy: OutboxPolicy,
}

/// How Socket.IO and Engine.IO are spoken. All bounds are inclusive.
#[derive(Clone, Debug)]
pub struct SocketIo {
    /// Who may read answers in a browser.
    pub cors: Cors,
    /// Time for a client to join a namespace, in milliseconds.
    pub connect_timeout_ms: u32,
    /// Time for a WebSocket to take over a polling session, in milliseconds.
    pub upgrade_timeout_ms: u32,
    /// Answers to polls of this many bytes are compressed where they may be; 0 for never.
    pub compression_bytes_min: usize,
    /// Which namespaces there may be.
    pub namespaces: Namespaces,
    /// Namespaces of one connection.
    pub namespaces_per_connection_max: usize,
    /// Namespaces with a member in the process.
    pub namespaces_max: usize,
    /// Connections in one namespace, in the process; 0 for no limit.
    pub connections_per_namespace_max: usize,
    /// Attachments of one packet.
    pub attachments_max: usize,
    /// The event that tells a client what it said for itself when it joined a namespace; empty for none.
    pub connect_event: String,
    /// What the events of clients do.
    pub routes: Routes,
    /// How long a session that dropped out can be recovered, in milliseconds; 0 for not at all.
    pub recovery_ms: u32,
    /// Bytes of events that this shard keeps for that.
    pub recovery_bytes_max: usize,
    /// Bytes of events that one session is sent when it is recovered.
    pub recovery_session_bytes_max: usize,
    /// Sessions of this shard, counted in each namespace, that may have dropped out and be recovered.
    pub recovery_sessions_max: usize,
}

/// What happens when a frame does not fit an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxPolicy {
    /// The connection is closed as too slow: the close follows what fits.
    Disconnect,
    /// The frame is left out, and the connection is told how many were when it has caught up.
    Drop,
}

/// What a reactor has to do to a socket at the end of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Send the end of the stream; the connection goes on until the peer's end comes.
    EndStream(Slot),
    /// Close the socket, if there is one, then call [`Shard::release`].
    Close(Slot),
    /// Give the socket to another shard, then call [`Shard::release`]. The other one's reactor says [`Shard::adopt`] and
    /// [`Shard::receive`], after what had come to its own sockets by then. When another process does not take it, call [`Shard::stay`].
    HandOver {
        /// Whose socket it is.
        slot: Slot,
        /// Who gets it.
        owner: Owner,
        /// What was read and not used.
        bytes: Box<[u8]>,
    },
}

/// Who has the session that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Another shard of this process.
    Shard(ShardId),
    /// Another process on the same port.
    Process {
        /// Which. There may be none of that name.
        tag: ProcessTag,
        /// The shard there, if it has so many.
        shard: ShardId,
    },
}

/// When events of this many bytes wait to be written, counting each member, the rest of the mail waits for a later turn, so that not all
/// that somebody publishes at once is on its way. One event more may be added to what is less.
const FANNED_BYTES_MAX: usize = 32 << 20;
/// How much is done for others in one turn before the rest of the mail waits for the next: each socket that an order is about counts, and
/// each room that it joins, leaves or is told to be in. Some milliseconds, so that clients are heard between two pieces of a long order.
const WORK_MAX: usize = 16_384;
/// Pieces of mail for which room is kept when there is none.
const MAIL_KEPT: usize = 1024;
/// How long a peer has to end its side once ours has ended, in milliseconds.
const CLOSE_TIMEOUT_MS: u32 = 5_000;
/// What is kept of each slot, used or not: the connection, its timer, and the reactor's side of the socket.
const SLOT_BYTES: usize = size_of::<Conn>() + Wheel::SLOT_BYTES + size_of::<usize>();
/// How often a drain goes on, in milliseconds.
const DRAIN_STEP_MS: u64 = 10;
/// What a publisher is told to wait when mailboxes are full, in milliseconds.
const OVERLOAD_RETRY_MS: u32 = 200;

/// One core's world.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    settings: Settings,
    /// What it goes by from the end of this turn on, so that nothing changes while a message is carried out.
    next_settings: Option<Arc<Settings>>,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    conns: Slab<Conn>,
    /// The highest slot that was ever used, plus one.
    slots: usize,
    /// The stamp of the last connection.
    stamp: u32,
    rooms: Rooms,
    wheel: Wheel,
    pool: Pool,
    turn: Turn,
    /// Connections whose sockets have to be seen off at the end of the turn.
    farewells: Vec<Farewell>,
    /// Bytes of events in this turn, each counted once for each member.
    fanned_bytes: usize,
    /// Shards that got mail in this turn and may have to be woken.
    bells: ShardSet,
    /// When the publications were made that wait in the arena.
    published: Vec<Time>,
    /// Mail that has been collected and not carried out.
    mail: VecDeque<Mail>,
    /// True while namespaces are joined that had to wait.
    rejoins: bool,
    /// Pieces of mail carried out so far.
    mail_taken: u64,
    /// What was done for others in this turn: see [`WORK_MAX`].
    work_done: usize,
    /// The order at the head of the mail, when it has been begun.
    under_way: Option<UnderWay>,
    /// The publications of one room being delivered, with their frames; empty between calls.
    run: Run,
    /// Where in the arena the ping of this turn stands.
    ping: Option<Range<u32>>,
    /// The same for Engine.IO's.
    engine_ping: Option<Range<u32>>,
    /// What the ids of sessions are made with, and how many there were.
    key: RandomState,
    ids: u64,
    /// What was delivered, and who may come back.
    history: History,
    /// Where the sockets of Socket.IO are.
    sockets: Sockets,
    /// Where the connections of users are.
    users: Users,
    asks: Asks,
    calls: Calls,
    /// What connections have used of the limits on events that each has for itself: by the limit's place and the connection's stamp.
    event_windows: Windows<(u16, u32)>,
    /// By slot, bytes that connections have sent, as far as there is a limit on them. Grows to the highest slot that ever had one.
    meters: Vec<Meter>,
    /// Who waits to hear who is in a room.
    waiting: Waiting,
    /// Clients that the backend was told of.
    told: Told,
    /// The code of the close frame that a connection has sent or was sent last in this turn, and which.
    close_code: Option<(Slot, u16)>,
    /// Who waits for the backend to say who they are.
    waits: Waits,
    /// The data of an event that a route publishes; empty between events.
    payload: Vec<u8>,
    accepts: Bucket,
    drain: Option<Drain>,
    /// The rooms with a policy that have their home here; `None` where there are no policies.
    homes: Option<Box<Homes>>,
    /// Who has joined one of them and is to be told its state. At most as many as there are connections, for each of their rooms.
    joined: Vec<Joined>,
}

/// Publications of one room that are delivered together.
#[derive(Debug, Default)]
struct Run {
    publications: Vec<Arc<Publication>>,
    /// For each, the offset that goes along with it; empty when nothing can be recovered.
    offsets: Vec<String>,
    /// How what they carry travels to clients of Socket.IO.
    coding: Coding,
    /// By encoding, where their frames stand in the arena, one behind the other; empty when nobody has asked for them.
    frames: [Vec<Range<u32>>; Encoding::COUNT],
}

/// In what form a member gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Native,
    SocketIo,
    Msgpack,
    Plain,
}

impl Run {
    /// Where all frames of the run stand in this encoding.
    fn whole(&mut self, encoding: Encoding, turn: &mut Turn) -> Range<u32> {
        let coding = self.coding;
        let frames = &mut self.frames[encoding as usize];
        if frames.is_empty() {
            let offsets =
                self.offsets.iter().map(|offset| Some(offset.as_str())).chain(std::iter::repeat(None));
            let pairs = self.publications.iter().zip(offsets);
            frames.extend(pairs.map(|(publication, offset)| {
                encoding.encode(turn, (publication, coding), publication.room_name(), None, offset)
            }));
        }
        match (frames.first(), frames.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }
}

impl Encoding {
    const COUNT: usize = 4;

    fn of(conn: &Conn) -> Encoding {
        match conn.stage {
            Stage::Open(Dialect::SocketIo) | Stage::Ghost if conn.speaks_msgpack => Encoding::Msgpack,
            Stage::Open(Dialect::SocketIo) | Stage::Ghost => Encoding::SocketIo,
            Stage::Open(Dialect::Plain) => Encoding::Plain,
            _ => Encoding::Native,
        }
    }

    /// Encodes an event for members of `room`, and answers where it stands: with attachments, for Socket.IO's JSON parser, several
    /// frames, and as the `coding` of its namespace wants it. With an `ask` who speaks Socket.IO is to answer under that number.
    fn encode(
        self,
        turn: &mut Turn,
        (publication, coding): (&Publication, Coding),
        room: &str,
        ask: Option<u64>,
        offset: Option<&str>,
    ) -> Range<u32> {
        if let Some(bundle) = publication.as_bundle() {
            return self.encode_bundle(turn, (publication, coding), bundle, None, offset).unwrap_or(0..0);
        }
        let payload = publication.payload();
        if self == Encoding::Native {
            let opcode = if publication.binary { Opcode::Binary } else { Opcode::Text };
            return turn.encode(opcode, |out| native::encode_event(out, room, publication));
        }
        if self == Encoding::Plain {
            return turn.encode(Opcode::Text, |out| messages::encode_event(out, publication));
        }
        let whole: [&[u8]; 1] = [payload];
        let mut parts: SmallVec<[&[u8]; 4]> = SmallVec::new();
        let (args, attachments): (&str, &[&[u8]]) = if publication.binary {
            (attachments::PLACEHOLDER, &whole)
        } else {
            parts.extend(publication.attachments().iter().map(Vec::as_slice));
            (std::str::from_utf8(payload).unwrap_or("null"), &parts)
        };
        self.encode_packet(turn, (publication, coding), (args, attachments), ask, offset)
    }

    /// Encodes events that leave as one for a `member`, or for all without one. Who has published all but one of them gets that one as it
    /// is, and who has published all gets none.
    fn encode_bundle(
        self,
        turn: &mut Turn,
        (publication, coding): (&Publication, Coding),
        bundle: &Bundle,
        member: Option<ConnId>,
        offset: Option<&str>,
    ) -> Option<Range<u32>> {
        let room = publication.room_name();
        let mut items = bundle.items_for(member);
        let (_, first) = items.next()?;
        if items.next().is_none() && !matches!(bundle.shape, Shape::Batch { lone: true, .. }) {
            return Some(self.encode(turn, (first, coding), room, None, offset));
        }
        let items = bundle.items_for(member).map(|(_, item)| item);
        Some(match (self, &bundle.shape) {
            (Encoding::Native, Shape::Batch { .. }) => {
                turn.encode(Opcode::Text, |out| native::encode_batch(out, room, items))
            }
            (Encoding::Plain, Shape::Batch { .. }) => {
                turn.encode(Opcode::Text, |out| messages::encode_batch(out, items))
            }
            (Encoding::Native, Shape::Merge { .. }) => {
                let data = bundle::payload(bundle, member);
                turn.encode(Opcode::Text, |out| {
                    native::encode_data(out, room, publication.event(), &data);
                })
            }
            (Encoding::Plain, Shape::Merge { .. }) => {
                let data = bundle::payload(bundle, member);
                turn.encode(Opcode::Text, |out| {
                    messages::encode_reply(out, publication.event(), &data, &[]);
                })
            }
            (Encoding::SocketIo | Encoding::Msgpack, _) => {
                let args = bundle::payload(bundle, member);
                self.encode_packet(turn, (publication, coding), (&args, &[]), None, offset)
            }
        })
    }

    /// Encodes an event with these arguments for who speaks Socket.IO, as the `coding` of its namespace wants them.
    fn encode_packet(
        self,
        turn: &mut Turn,
        (publication, coding): (&Publication, Coding),
        (mut args, mut attachments): (&str, &[&[u8]]),
        ask: Option<u64>,
        offset: Option<&str>,
    ) -> Range<u32> {
        let coded = coding::encode(coding, args, attachments);
        let coded_parts: SmallVec<[&[u8]; 4]>;
        if let Some((coded_args, coded)) = &coded {
            coded_parts = coded.iter().map(Vec::as_slice).collect();
            (args, attachments) = (coded_args, &coded_parts);
        }
        let write = |out: &mut Vec<u8>| {
            let namespace = namespace_of(publication.room_name());
            packets::encode_event(out, namespace, publication.event(), args, attachments.len(), ask, offset);
        };
        if self == Encoding::Msgpack {
            let mut text = Vec::new();
            write(&mut text);
            return turn.encode(Opcode::Binary, |out| msgpack::encode(out, &text, attachments));
        }
        let text = turn.encode(Opcode::Text, write);
        let end = attachments.iter().map(|bytes| turn.copy(Opcode::Binary, bytes).end).last();
        text.start..end.unwrap_or(text.end)
    }
}

/// What a shard holds, all 0 when everyone has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Connections.
    pub conns: usize,
    /// Rooms with a member.
    pub rooms: usize,
    /// Memberships.
    pub memberships: usize,
    /// Timers that are set.
    pub timers: usize,
    /// Messages that are not whole.
    pub leases: usize,
    /// Bytes held for them.
    pub leased_bytes: usize,
    /// Bytes that the kernel has refused.
    pub outbox_bytes: usize,
    /// Sockets that can be found by their ids.
    pub sockets: usize,
    /// Questions that wait for answers.
    pub asks: usize,
    /// Connections that have a user.
    pub users: usize,
    /// Connections that wait for the backend.
    pub waits: usize,
}

/// An orderly end.
#[derive(Debug)]
struct Drain {
    started: Time,
    spread_ms: u32,
    away_ms: u32,
    timeout_ms: u32,
    /// Slots below have been told.
    told: usize,
    /// How much mail has to be carried out before the first is told, so that nothing is lost that waited in the homes of rooms; `None` until
    /// that is known, and where there are none.
    mail_awaited: Option<u64>,
}

impl Default for SocketIo {
    /// What a server does that is told nothing: the main namespace, the built-in events, no CORS.
    fn default() -> SocketIo {
        SocketIo {
            cors: Cors::default(),
            connect_timeout_ms: 45_000,
            upgrade_timeout_ms: 10_000,
            compression_bytes_min: 1024,
            namespaces: Namespaces::new(Pattern::parse("/").into_iter().collect()),
            namespaces_per_connection_max: 16,
            namespaces_max: 100_000,
            connections_per_namespace_max: 0,
            attachments_max: 10,
            connect_event: String::new(),
            routes: Routes::default(),
            recovery_ms: 0,
            recovery_bytes_max: 64 << 20,
            recovery_session_bytes_max: 1 << 20,
            recovery_sessions_max: 100_000,
        }
    }
}

impl Settings {
    fn dialect(&self, path: &str) -> Option<Dialect> {
        self.paths.dialect(path)
    }
}

impl Shard {
    /// A shard without connections. `id` is its place in `bus` and `stats`.
    pub fn new(
        id: ShardId,
        settings: Settings,
        bus: Arc<Bus>,
        gate: Arc<Gate>,
        stats: Arc<Stats>,
        now: Time,
    ) -> Shard {
        Shard {
            id,
            conns: Slab::with_capacity(settings.connections_reserved),
            slots: 0,
            stamp: 0,
            rooms: Rooms::default(),
            wheel: Wheel::new(settings.connections_reserved, now),
            pool: Pool::new(settings.receive_bytes_max),
            turn: Turn::new(settings.linger_ms),
            farewells: Vec::new(),
            fanned_bytes: 0,
            bells: ShardSet::default(),
            published: Vec::new(),
            mail: VecDeque::new(),
            rejoins: false,
            mail_taken: 0,
            work_done: 0,
            under_way: None,
            run: Run::default(),
            ping: None,
            engine_ping: None,
            key: RandomState::new(),
            ids: 0,
            history: History::default(),
            sockets: Sockets::default(),
            users: Users::default(),
            asks: Asks::default(),
            calls: Calls::default(),
            event_windows: Windows::new(gate.tally().windows_max().div_ceil(bus.shards())),
            meters: Vec::new(),
            waiting: Waiting::default(),
            told: Told::default(),
            close_code: None,
            waits: Waits::default(),
            payload: Vec::new(),
            accepts: Bucket::full(settings.accepts_per_second_max, now),
            drain: None,
            homes: bus.policies().map(|policies| Box::new(Homes::new(policies.clone(), bus.shards()))),
            joined: Vec::new(),
            next_settings: None,
            settings,
            bus,
            gate,
            stats,
        }
    }

    /// Connections that space is reserved for: see [`Settings::connections_reserved`].
    pub fn connections_reserved(&self) -> usize {
        self.settings.connections_reserved
    }

    /// A turn begins at `now`. Before anything else in it.
    pub fn begin_turn(&mut self, now: Time) {
        self.work_done = 0;
        if self.turn.is_empty() {
            self.fanned_bytes = 0;
        }
        if self.turn.begin(now) {
            self.end_linger();
        }
    }

    /// The kernel takes bytes for this connection again.
    pub fn writable(&mut self, slot: Slot) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        conn.blocked = false;
        if conn.outbox.is_some() {
            self.turn.hurry(conn, slot);
        }
    }

    /// These bytes have come. They are used up: what must be kept is copied.
    pub fn receive(&mut self, slot: Slot, bytes: &mut [u8], now: Time) {
        self.heard(slot, now);
        let Some(conn) = self.conns.get(slot as usize) else { return };
        self.stats.shards[usize::from(self.id)].bytes_in.add(bytes.len() as u64);
        match conn.stage {
            Stage::Open(_) | Stage::Closing(..) | Stage::Probing(_) => self.receive_frames(slot, bytes, now),
            Stage::Http => self.receive_heads(slot, bytes, now),
            // A request behind one that waits: no client of Engine.IO does that, and its order could not be kept.
            Stage::Waiting(_) => self.hang_up(slot),
            // What a peer says after the end is not for us.
            Stage::Leaving | Stage::Ghost | Stage::Finishing { .. } | Stage::Finished => {}
        }
    }

    /// The peer has given a sign of life.
    fn heard(&mut self, slot: Slot, now: Time) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        conn.heard_ms = now.ms32();
        if std::mem::take(&mut conn.pinged) && conn.is_open() {
            let interval_ms = self.settings.ping_interval_ms;
            match &mut conn.session {
                None => self.arm_open(slot, now, interval_ms),
                Some(session) => {
                    session.beat = now.plus_ms(session.interval_ms.min(interval_ms).into());
                    self.arm_session(slot, now);
                }
            }
        }
    }

    /// The peer's end of the stream has come, or the transport has failed. What is queued is still written if it can be.
    pub fn hang_up(&mut self, slot: Slot) {
        self.end(slot, Ending::Lost);
        self.doom(slot);
    }

    /// Collects the shard's mail and carries it out, in order. Stops when the arena is full, or enough was done for others; [`Shard::has_mail`]
    /// tells whether some is left for the next turn.
    pub fn deliver(&mut self, now: Time) {
        // What others want is of now, whatever it is delivered for.
        let came = self.waits.put_came_aside();
        self.carry_out_mail(now);
        // Joining looks at the mail again, and that must not come back here.
        if !std::mem::replace(&mut self.rejoins, true) {
            self.join_those_that_waited(now);
            self.rejoins = false;
        }
        self.waits.put_came_back(came);
    }

    /// Before a connection joins something, or is somebody: what is on its way was published before, and is delivered first. False when
    /// the connection is over by that: then nothing more of what it says is carried out, neither the rest of this message nor what follows
    /// it in the same body or read. The one place where mail is carried out while a connection is heard.
    #[must_use]
    fn catch_up(&mut self, slot: Slot, now: Time) -> bool {
        self.deliver(now);
        self.conns[slot as usize].is_open()
    }

    fn carry_out_mail(&mut self, now: Time) {
        let mut mail = std::mem::take(&mut self.mail);
        let mut collected = false;
        while !self.is_spent() && self.work_done < WORK_MAX {
            if mail.is_empty() && !collected {
                // Only when nothing is left from before, so that what waits is counted in the mailbox, which is bounded.
                self.bus.mailbox(self.id).collect(&mut mail);
                collected = true;
            }
            let Some(next) = mail.front() else { break };
            let waiting = mail.len();
            match next {
                Mail::Publication(publication) if publication.special.is_some() => {
                    if let Some(Mail::Publication(publication)) = mail.pop_front() {
                        match publication.as_bundle() {
                            Some(_) => self.fan_out_bundle(&publication),
                            None => self.fan_out_special(&publication),
                        }
                    }
                }
                Mail::Publication(first) => {
                    // Publications of one room in a row are one walk over its members.
                    let room = first.room;
                    let members = self.rooms.members(room);
                    // Most rooms have members of one kind: that of the first is encoded while the arena is watched.
                    let encoding = members
                        .first()
                        .map_or(Encoding::Native, |first| Encoding::of(&self.conns[first.slot as usize]));
                    let members = members.len();
                    let mut run = std::mem::take(&mut self.run);
                    run.coding = self.coding_of(first);
                    while let Some(Mail::Publication(publication)) = mail.front()
                        && publication.room == room
                        && publication.special.is_none()
                        && !self.is_spent()
                    {
                        self.fanned_bytes += publication.size() * members;
                        self.remember(publication);
                        let offset = self.offset(self.history.end());
                        run.frames[encoding as usize].push(encoding.encode(
                            &mut self.turn,
                            (publication, run.coding),
                            publication.room_name(),
                            None,
                            offset.as_deref(),
                        ));
                        run.offsets.extend(offset);
                        self.published.push(publication.published_at);
                        run.publications.push(publication.clone());
                        mail.pop_front();
                    }
                    self.fan_out(&mut run);
                    run.publications.clear();
                    run.offsets.clear();
                    run.frames.iter_mut().for_each(Vec::clear);
                    self.run = run;
                }
                Mail::Recovery(_) => {
                    if let Some(Mail::Recovery(recovery)) = mail.pop_front() {
                        // It may deliver in its turn, in this order.
                        self.mail = mail;
                        self.mail_taken += 1;
                        self.recovery(*recovery, now);
                        mail = std::mem::take(&mut self.mail);
                        continue;
                    }
                }
                Mail::Asked { number, sockets } => {
                    let (number, sockets) = (*number, *sockets);
                    mail.pop_front();
                    self.note_asked(number, sockets);
                }
                Mail::AskedOutside { number, processes } => {
                    let (number, processes) = (*number, *processes);
                    mail.pop_front();
                    self.note_asked_outside(number, processes);
                }
                Mail::Order(order) => {
                    // A long one is carried on in later turns, before any mail that came after it.
                    if self.carry_out(order, now) {
                        mail.pop_front();
                    }
                }
                Mail::Inquiry(_) => {
                    if let Some(Mail::Inquiry(inquiry)) = mail.pop_front() {
                        self.inquire(*inquiry, now);
                    }
                }
                Mail::Who { number, room } => {
                    let (number, room) = (*number, *room);
                    mail.pop_front();
                    self.tell_who(number, room);
                }
                Mail::Presence { number, attendance } => {
                    let (number, attendance) = (*number, attendance.clone());
                    // Where many have asked for long lists, the rest are told in later turns.
                    if self.note_presence(number, &attendance, now) {
                        mail.pop_front();
                    }
                }
                Mail::Callout(_) => {
                    // Looked at when all mail has been: it may read requests, and whatever comes behind them.
                    if let Some(Mail::Callout(answer)) = mail.pop_front() {
                        self.note_verdict(*answer);
                    }
                }
                Mail::Answered(_) => {
                    if let Some(Mail::Answered(answered)) = mail.pop_front() {
                        self.note_answered(*answered, now);
                    }
                }
                Mail::Answer(_) => {
                    if let Some(Mail::Answer(answer)) = mail.pop_front() {
                        self.note_answer(*answer);
                    }
                }
                Mail::Held { .. } => {
                    if let Some(Mail::Held { publication, policy }) = mail.pop_front() {
                        self.take_in(publication, policy, now);
                    }
                }
                Mail::Passed { .. } => {
                    if let Some(Mail::Passed { room, publication }) = mail.pop_front() {
                        self.note_passed(&room, &publication);
                    }
                }
                Mail::Joined(_) => {
                    if let Some(Mail::Joined(joined)) = mail.pop_front() {
                        self.note_joined_room(*joined);
                    }
                }
                Mail::Settings(_) => {
                    if let Some(Mail::Settings(settings)) = mail.pop_front() {
                        self.next_settings = settings.downcast().ok();
                    }
                }
                Mail::Drain { spread_ms, away_ms, timeout_ms } => {
                    let (spread_ms, away_ms, timeout_ms) = (*spread_ms, *away_ms, *timeout_ms);
                    mail.pop_front();
                    if self.drain.is_none() {
                        let drain = Drain {
                            started: now,
                            spread_ms,
                            away_ms,
                            timeout_ms,
                            told: 0,
                            mail_awaited: None,
                        };
                        self.drain = Some(drain);
                        self.open_homes(now);
                    }
                }
            }
            self.mail_taken += (waiting - mail.len()) as u64;
        }
        self.mail = mail;
    }

    /// How many pieces of mail have been carried out so far: for the simulator, which keeps a copy of the mail.
    pub fn mail_taken(&self) -> u64 {
        self.mail_taken
    }

    /// True when this connection has something to write that was not asked for yet: for the simulator, likewise.
    pub fn is_due(&self, slot: Slot) -> bool {
        self.conns.get(slot as usize).is_some_and(|conn| conn.due == Due::Now)
    }

    /// True when mail waits to be carried out.
    pub fn has_mail(&self) -> bool {
        !self.mail.is_empty() || self.waits.has_answers() || !self.bus.mailbox(self.id).is_empty()
    }

    /// Time has come this far: timers fire, a drain goes on, and those do of whom the backend has said who they are.
    pub fn advance(&mut self, now: Time) {
        while let Some(slot) = self.wheel.pop(now) {
            self.fire(slot, now);
        }
        self.end_asks(now);
        if self.homes.is_some() {
            self.tend_homes(now);
        }
        if !self.waits.is_idle() {
            self.end_waits(now);
        }
        self.drain_on(now);
    }

    /// True when the reactor may accept a socket now. Otherwise it is to ask again in a later turn, at the latest after some tens of
    /// milliseconds: places are freed by other shards, too.
    pub fn may_accept(&self, now: Time) -> bool {
        let rate = self.settings.accepts_per_second_max;
        // A copy of the bucket is asked: the token is taken when there was a socket to accept.
        let mut accepts = self.accepts;
        self.drain.is_none() && self.gate.has_place() && (rate == 0 || accepts.take(rate, rate, now).is_ok())
    }

    /// A socket was accepted. Answers the slot that names it until [`Shard::release`].
    pub fn accept(&mut self, peer: IpAddr, now: Time) -> Slot {
        let (ip, from_proxy) = (Ip::from(peer), self.gate.trusts(peer));
        let entered = self.gate.enter_socket(ip, from_proxy);
        let rate = self.settings.accepts_per_second_max;
        // `may_accept` has looked; with no limit there is nothing to take.
        self.accepts.take(rate, rate, now).ok();
        self.stamp = self.stamp.wrapping_add(1);
        let mut conn = Conn::new(self.stamp, ip, now);
        conn.from_proxy = from_proxy;
        let slot = self.conns.insert(conn);
        self.slots = self.slots.max(slot + 1);
        let slot = slot as Slot;
        self.wheel.arm(slot, now, self.settings.handshake_timeout_ms);
        self.stats().accepts.add(1);
        self.stats().sockets.add(1);
        if let Err(reject) = entered {
            self.turn_away(slot, reject, now);
        }
        slot
    }

    /// A trusted proxy has said whose connection this is. Before any byte of it is received.
    pub fn introduce(&mut self, slot: Slot, client: IpAddr, now: Time) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let (ip, from_proxy) = (Ip::from(client), self.gate.trusts(client));
        self.gate.leave_socket(conn.ip, conn.from_proxy);
        (conn.ip, conn.from_proxy) = (ip, from_proxy);
        if let Err(reject) = self.gate.enter_socket(ip, from_proxy) {
            self.turn_away(slot, reject, now);
        }
    }

    /// True when this connection comes from a proxy whose word is believed.
    pub fn is_from_proxy(&self, slot: Slot) -> bool {
        self.conns.get(slot as usize).is_some_and(|conn| conn.from_proxy)
    }

    /// The address that counts for a connection; of IPv6 only the network is known.
    pub fn client_address(&self, slot: Slot) -> Option<IpAddr> {
        self.conns.get(slot as usize).map(|conn| conn.ip.into())
    }

    /// True when the reactor should read no more in this turn: the shard has done enough, or its mailbox takes no more publications.
    /// What clients send waits in their sockets.
    pub fn is_full(&self) -> bool {
        // Answers may take half of the arena, so that events have the other half.
        self.turn.is_half_full() || self.is_spent() || self.bus.mailbox(self.id).is_full()
    }

    /// True when there is enough to write in this turn: the arena is full, or what has been delivered will keep the kernel busy for
    /// a while. What lingers leaves then.
    pub fn is_spent(&self) -> bool {
        self.turn.is_full() || self.fanned_bytes >= FANNED_BYTES_MAX
    }

    /// The shards that got mail in this turn. The reactor rings for them before it writes, so that other cores start meanwhile.
    pub fn take_bells(&mut self) -> ShardSet {
        if self.is_spent() {
            // What lingers holds the arena, and it is much: it leaves now rather than later.
            self.end_linger();
        }
        std::mem::take(&mut self.bells)
    }

    /// True when connections that are due were not asked for in the last turn, because enough had been written.
    pub fn has_unflushed(&self) -> bool {
        self.turn.has_unflushed()
    }

    /// The next connection that has something to write. To be asked until it answers `None`, or until enough has been written in this
    /// turn: then the others come first in the next.
    #[inline]
    pub fn next_dirty(&mut self) -> Option<Slot> {
        while let Some(slot) = self.turn.next_dirty() {
            let Some(conn) = self.conns.get_mut(slot as usize) else { continue };
            if conn.due != Due::Now {
                // In an earlier turn somebody else had this place.
                continue;
            }
            if conn.outbox.is_none() && !conn.blocked {
                return Some(slot);
            }
            // What waited longer goes first.
            self.absorb(slot, 0);
            if self.conns.get(slot as usize).is_some_and(|conn| !conn.has_socket) {
                self.answer_get(slot);
                continue;
            }
            let Some(conn) = self.conns.get(slot as usize).filter(|conn| !conn.blocked) else { continue };
            if conn.outbox.as_ref().is_some_and(|outbox| outbox.is_empty()) && !self.caught_up(slot) {
                // All that waited was left out, so there is no write after which it would have caught up.
                self.finish(slot);
                continue;
            }
            return Some(slot);
        }
        None
    }

    /// What to write to this connection.
    #[inline]
    pub fn gather(&self, slot: Slot) -> Gathered<'_> {
        let Some(conn) = self.conns.get(slot as usize) else { return Gathered::Nothing };
        match &conn.outbox {
            None => self.turn.gather(conn.pending),
            Some(outbox) if outbox.is_empty() => Gathered::Nothing,
            Some(outbox) => Gathered::Many(outbox.slices().into_iter().collect()),
        }
    }

    /// Of the `offered` bytes that [`Shard::gather`] gave, the kernel took `count`. True when there is more to gather at once.
    #[inline]
    pub fn sent(&mut self, slot: Slot, offered: usize, count: usize) -> bool {
        let stats = &self.stats.shards[usize::from(self.id)];
        stats.sends.add(1);
        stats.bytes_out.add(count as u64);
        let Some(conn) = self.conns.get_mut(slot as usize) else { return false };
        if let Some(outbox) = &mut conn.outbox {
            outbox.sent(count);
            stats.outbox_bytes.sub(count as u64);
            let is_caught_up = outbox.is_empty();
            conn.blocked = !is_caught_up;
            if count > 0 {
                // The peer has made room for it. A ping that stands behind much else in the outbox is not answered in time, and a close
                // not read.
                let now = self.turn.now();
                if matches!(conn.stage, Stage::Finishing { .. }) {
                    self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
                }
                self.heard(slot, now);
            }
            if !is_caught_up {
                return false;
            }
            if self.caught_up(slot) {
                return true;
            }
        } else if count == offered {
            let rest = self.turn.rest(conn.pending);
            if !rest.is_none() {
                conn.pending = rest;
                return true;
            }
            self.turn.flushed(conn);
        } else {
            self.absorb(slot, count);
            if let Some(conn) = self.conns.get_mut(slot as usize) {
                conn.blocked = true;
            }
            return false;
        }
        self.finish(slot);
        false
    }

    /// The next socket to see off. After the flush, to be asked until it answers `None`.
    pub fn next_farewell(&mut self) -> Option<Farewell> {
        loop {
            let farewell = self.farewells.pop()?;
            let conn = |slot: &Slot| self.conns.get(*slot as usize);
            match &farewell {
                // It is closed as well, and that comes first.
                Farewell::EndStream(slot) if conn(slot).is_none_or(|conn| conn.doomed) => {}
                // Its answers to earlier requests have not all left: it asks without reading.
                Farewell::HandOver { slot, .. }
                    if conn(slot).is_none_or(|conn| conn.doomed || conn.outbox.is_some()) =>
                {
                    return Some(Farewell::Close(*slot));
                }
                _ => return Some(farewell),
            }
        }
    }

    /// Another process has not taken this socket, from which these bytes were read: its request is answered here, as one for a session
    /// that nobody knows, and it ends.
    pub fn stay(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        self.stats().handovers_refused.add(1);
        let Some(conn) = self.conns.get_mut(slot as usize).filter(|conn| conn.stage == Stage::Leaving) else {
            return;
        };
        conn.stage = Stage::Http;
        self.answer_unknown(slot, bytes, now);
    }

    /// A socket that another shard, or another process, has given away is here now. Answers its slot, as [`Shard::accept`].
    pub fn adopt(&mut self, peer: IpAddr, now: Time) -> Slot {
        self.stamp = self.stamp.wrapping_add(1);
        let (ip, from_proxy) = (Ip::from(peer), self.gate.trusts(peer));
        // It was let in once: a limit is not asked again.
        self.gate.enter_socket(ip, from_proxy).ok();
        let mut conn = Conn::new(self.stamp, ip, now);
        conn.from_proxy = from_proxy;
        let slot = self.conns.insert(conn);
        self.slots = self.slots.max(slot + 1);
        self.wheel.arm(slot as Slot, now, self.settings.handshake_timeout_ms);
        self.stats().sockets.add(1);
        self.stats().handovers.add(1);
        slot as Slot
    }

    /// The socket of this connection is closed; its slot may be used again.
    pub fn release(&mut self, slot: Slot) {
        if !self.conns.contains(slot as usize) {
            return;
        }
        self.end(slot, Ending::Lost);
        self.wheel.disarm(slot);
        debug_assert!(self.conns[slot as usize].memberships.is_empty(), "who has ended is in no room");
        let mut conn = self.conns.remove(slot as usize);
        self.forget_wait(slot, conn.stamp);
        self.calls.forget(conn.stamp, slot);
        let stats = &self.stats.shards[usize::from(self.id)];
        if let Some(outbox) = conn.outbox.take() {
            stats.outbox_bytes.sub(outbox.len() as u64);
        }
        if let Some(partial) = conn.partial.take() {
            self.pool.give_back(partial.lease);
        }
        if conn.has_socket {
            stats.sockets.sub(1);
            self.gate.leave_socket(conn.ip, conn.from_proxy);
        }
    }

    /// The turn ends at `now`. Answers after how many milliseconds the next one must begin, if nothing happens before.
    pub fn end_turn(&mut self, now: Time) -> Option<u32> {
        self.turn.end();
        (self.ping, self.engine_ping) = (None, None);
        self.close_code = None;
        if self.mail.is_empty() {
            self.mail.shrink_to(MAIL_KEPT);
        }
        if let Some(settings) = self.next_settings.take() {
            self.go_by(Settings::clone(&settings));
        }
        self.forget(now);
        if self.homes.is_some() {
            self.count_homes();
        }
        let stats = &self.stats.shards[usize::from(self.id)];
        let linger_end = self.turn.linger_end();
        if linger_end.is_none() && !self.turn.has_unflushed() {
            for published in self.published.drain(..) {
                stats.publish_latency.record(published, now);
            }
        }
        stats.rooms.set(self.rooms.count() as u64);
        stats.slots.set(self.slots as u64);
        stats.slots_bytes.set((self.slots * SLOT_BYTES) as u64);
        stats.memberships.set(self.rooms.memberships() as u64);
        stats.receive_bytes.set(self.pool.leased_bytes() as u64);
        stats.open_asks.set(self.asks.len() as u64);
        stats.recoverable.set(self.history.ghosts() as u64);
        stats.recovery_bytes.set(self.history.bytes() as u64);
        let ahead_ms = |time: Time| time.since_ns(now).div_ceil(1_000_000) as u32;
        let drain = self.drain.as_ref().map(|_| DRAIN_STEP_MS as u32);
        let asks = self.asks.next_end().map(ahead_ms);
        let waits = self.waits.next_end().map(ahead_ms);
        let homes = self.next_of_homes().map(ahead_ms);
        [self.wheel.next_ms(now), linger_end.map(ahead_ms), drain, asks, waits, homes]
            .into_iter()
            .flatten()
            .min()
    }

    /// True when the shard has been told to drain: nothing more is accepted.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// True when a drain has come to its end and the reactor may stop: nobody is there, and nobody is about to be let in by the backend, which
    /// would have to be told that it has gone.
    pub fn is_drained(&self) -> bool {
        // Where rooms have their homes here, clients of other shards may still publish to them.
        let is_home = || self.homes.is_some() && self.stats.sum(|shard| shard.connections.value()) > 0;
        self.drain.is_some() && self.conns.is_empty() && !self.calls.may_let_in() && !is_home()
    }

    /// What the shard holds now: for tests that look for leaks.
    pub fn holdings(&self) -> Holdings {
        Holdings {
            conns: self.conns.len(),
            rooms: self.rooms.count(),
            memberships: self.rooms.memberships(),
            timers: self.wheel.armed(),
            leases: self.pool.leases(),
            leased_bytes: self.pool.leased_bytes(),
            outbox_bytes: self.stats().outbox_bytes.value() as usize,
            sockets: self.sockets.len(),
            asks: self.asks.len(),
            users: self.users.connections(),
            waits: self.waits.len(),
        }
    }

    /// Goes by other settings from now on. What was made by the earlier ones at the start stays: the space that is reserved, what other
    /// processes know of this one, where clients find what. Nobody who is inside goes for that.
    fn go_by(&mut self, settings: Settings) {
        let Settings { process, origin_unix_ms, connections_reserved, linger_ms, .. } = self.settings;
        let paths = std::mem::take(&mut self.settings.paths);
        self.settings =
            Settings { process, origin_unix_ms, connections_reserved, linger_ms, paths, ..settings };
        self.pool.allow(self.settings.receive_bytes_max);
        let limits = self.gate.tally().limits();
        self.event_windows.retain(|(place, _)| limits.has(*place));
    }

    fn stats(&self) -> &ShardStats {
        &self.stats.shards[usize::from(self.id)]
    }

    /// What lingers is due now.
    fn end_linger(&mut self) {
        for slot in self.turn.end_linger() {
            if let Some(conn) = self.conns.get_mut(slot as usize)
                && conn.due == Due::Later
            {
                self.turn.hurry(conn, slot);
            }
        }
    }

    /// Gives every member of a room the frames of a run, but for those that the run came from.
    fn fan_out(&mut self, run: &mut Run) {
        let Some(first) = run.publications.first() else { return };
        let room = first.room;
        let mut muted = 0;
        for publication in &run.publications {
            if let Some(conn) = self.origin(publication) {
                muted += usize::from(!conn.muted);
                conn.muted = true;
            }
        }
        let burst = self.burst_of(first.room_name());
        let muted_slow = burst.map_or_else(Vec::new, |burst| self.mute_slow(room, burst));
        let mut slow = Vec::new();
        let Shard { id, rooms, conns, turn, .. } = self;
        let members = rooms.members(room);
        let mut set_aside: SmallVec<[Slot; 8]> = SmallVec::new();
        let mut encoding = None;
        let mut whole = 0..0;
        for member in members {
            let conn = &mut conns[member.slot as usize];
            if conn.muted {
                set_aside.push(member.slot);
                continue;
            }
            if encoding != Some(Encoding::of(conn)) {
                encoding = Some(Encoding::of(conn));
                whole = run.whole(Encoding::of(conn), turn);
            }
            turn.give(conn, member.slot, &whole, true);
        }
        let mut deliveries = (members.len() - set_aside.len()) * run.publications.len();
        // Those who published in this run get what the others published.
        for slot in set_aside {
            let conn = &mut conns[slot as usize];
            if conn.stage == Stage::Ghost {
                continue;
            }
            if let Some(recovering) = conn.session.as_mut().and_then(|session| session.recovering.as_mut())
                && recovering.hold(run.publications[0].room_name(), &run.publications)
            {
                continue;
            }
            if burst.is_some_and(|burst| homes::is_over(conn, burst)) {
                slow.push(slot);
                continue;
            }
            // With the shard: connections of other shards have the same slots and stamps.
            let own = ConnId { shard: *id, slot, stamp: conn.stamp };
            let encoding = Encoding::of(conn);
            run.whole(encoding, turn);
            for (publication, frame) in run.publications.iter().zip(&run.frames[encoding as usize]) {
                if !publication.is_from(own) {
                    turn.give(conn, slot, frame, true);
                    deliveries += 1;
                }
            }
        }
        if muted > 0 {
            for publication in &run.publications {
                if let Some(conn) = self.origin(publication) {
                    conn.muted = conn.is_apart();
                }
            }
        }
        let stats = self.stats();
        stats.deliveries.add(deliveries as u64);
        stats.frames_out.add(deliveries as u64);
        self.unmute(&muted_slow);
        self.leave_out(&slow, run.publications.len() as u64, burst);
    }

    /// How what a publication carries travels to clients of Socket.IO.
    fn coding_of(&self, publication: &Publication) -> Coding {
        self.settings.socketio.namespaces.coding(namespace_of(publication.room_name()))
    }

    /// The connection that must not get `publication`, if it is one of ours and still there.
    fn origin(&mut self, publication: &Publication) -> Option<&mut Conn> {
        let except = publication.except.filter(|except| except.shard == self.id)?;
        let is_it = |conns: &Slab<Conn>, slot: Slot| {
            conns.get(slot as usize).is_some_and(|conn| conn.stamp == except.stamp)
        };
        let mut slot = Some(except.slot).filter(|slot| is_it(&self.conns, *slot));
        if slot.is_none() && self.homes.is_some() {
            // While its event waited, it has gone, or its session has moved to another place.
            let mut members = self.rooms.members(publication.room).iter().map(|member| member.slot);
            slot = members.find(|slot| is_it(&self.conns, *slot));
        }
        self.conns.get_mut(slot? as usize)
    }

    /// Sends one frame to one connection, at the end of this turn.
    fn reply(&mut self, slot: Slot, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
        let range = self.turn.encode(opcode, write);
        if let Some(conn) = self.conns.get_mut(slot as usize) {
            self.turn.give(conn, slot, &range, false);
            self.stats().frames_out.add(1);
        }
    }

    /// Moves what a connection has pending, less the `sent` bytes that the kernel took, into its outbox.
    fn absorb(&mut self, slot: Slot, sent: usize) {
        let Shard { conns, turn, settings, stats, .. } = self;
        let stats = &stats.shards[usize::from(self.id)];
        let Some(conn) = conns.get_mut(slot as usize) else { return };
        // Until the answer to the upgrade has left, what is pending is not only frames.
        let framing = conn.framing.filter(|_| !conn.switching);
        // Who is on the way out is told why, whatever else does not fit.
        let policy = if conn.is_open() { settings.outbox_policy } else { OutboxPolicy::Drop };
        let leftover = turn.after(conn.pending, sent, framing);
        let outbox = conn.outbox.get_or_insert_default();
        let before = outbox.len();
        // What is left for all may be less than what this one may still take.
        let left = settings.outbox_total_bytes_max.saturating_sub(stats.outbox_bytes.value() as usize);
        let bytes_max = settings.outbox_bytes_max.min(before + left);
        for piece in &leftover.cut {
            outbox.push_rest(piece);
        }
        let dropped_before = outbox.dropped;
        let is_too_slow = framing.is_some_and(|dialect| {
            leftover
                .frames
                .iter()
                .any(|frames| outbox.push_frames(frames, bytes_max, policy, dialect).is_err())
        });
        if is_too_slow {
            // Whatever the bound: it says why nothing follows what it still reads.
            outbox.push_rest(&close::frame(CloseCode::Slow, "too much waits to be read"));
        }
        let dropped = outbox.dropped - dropped_before;
        let waiting = outbox.len();
        drop(leftover);
        turn.flushed(conn);
        stats.outbox_bytes.add((waiting - before) as u64);
        stats.drops.add(dropped);
        if is_too_slow {
            let now = self.turn.now();
            self.close_code = Some((slot, CloseCode::Slow.into()));
            self.end(slot, Ending::Slow);
            self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
        } else if waiting > before
            && (if framing.is_some() { waiting > before + left } else { waiting > bytes_max })
        {
            // A peer that asks and asks by HTTP and never reads has no frames that could be left out. Nor is there room for the rest of
            // a frame when all outboxes together are full.
            if let Some(outbox) = conn.outbox.take() {
                stats.outbox_bytes.sub(outbox.len() as u64);
            }
            self.end(slot, Ending::Slow);
            self.doom(slot);
        }
    }

    /// The outbox of a connection is empty again. True when it has to be told first what was left out.
    fn caught_up(&mut self, slot: Slot) -> bool {
        let Shard { conns, turn, stats, .. } = self;
        let Some(conn) = conns.get_mut(slot as usize) else { return false };
        turn.flushed(conn);
        let is_direct = conn.is_direct();
        if let Some(outbox) = &mut conn.outbox
            && outbox.dropped > 0
            && is_direct
        {
            // Into the outbox whatever the bounds: if this were left out in its turn, the client would never know of the others.
            let mut message = Vec::new();
            native::encode_dropped(&mut message, std::mem::take(&mut outbox.dropped));
            let (header, used) = frame::header(Opcode::Text, message.len());
            outbox.push_rest(&header[..used]);
            outbox.push_rest(&message);
            let stats = &stats.shards[usize::from(self.id)];
            stats.outbox_bytes.add(outbox.len() as u64);
            stats.frames_out.add(1);
            return true;
        }
        conn.outbox = None;
        false
    }

    /// Everything for a connection has been written: if it was to end after that, it ends.
    #[inline]
    fn finish(&mut self, slot: Slot) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        conn.switching = false;
        match conn.stage {
            Stage::Finishing { at_once: true } => self.doom(slot),
            Stage::Finishing { at_once: false } => {
                conn.stage = Stage::Finished;
                self.farewells.push(Farewell::EndStream(slot));
            }
            _ => {}
        }
    }

    /// The timer of a connection has fired.
    fn fire(&mut self, slot: Slot, now: Time) {
        // Who has hung up in this turn is not late as well.
        let Some(conn) = self.conns.get(slot as usize).filter(|conn| !conn.doomed) else { return };
        if conn.is_open() && self.end_without_token(slot, now) {
            return;
        }
        let conn = &mut self.conns[slot as usize];
        match conn.stage {
            Stage::Http => self.head_timed_out(slot, now),
            Stage::Open(_) if conn.session.is_none() && conn.pinged => self.end_silent(slot),
            Stage::Open(_) if conn.is_late(now, self.settings.message_timeout_ms) => {
                self.fail(slot, CloseCode::Policy, "the message did not come in time", Ending::Limit, now);
            }
            Stage::Open(_) if conn.session.is_some() => self.fire_session(slot, now),
            Stage::Open(_) => {
                let silent_ms = now.ms32().wrapping_sub(conn.heard_ms);
                let interval_ms = self.settings.ping_interval_ms;
                if silent_ms < interval_ms {
                    self.arm_open(slot, now, interval_ms - silent_ms);
                    return;
                }
                // One ping in the arena serves all that are due in this turn.
                let ping = self.ping.get_or_insert_with(|| self.turn.copy(Opcode::Ping, b""));
                conn.pinged = true;
                self.turn.give(conn, slot, ping, false);
                self.wheel.arm(slot, now, self.settings.ping_timeout_ms);
                self.stats().pings.add(1);
                self.stats().frames_out.add(1);
            }
            Stage::Closing(_, ending) => {
                self.end(slot, ending);
                self.doom(slot);
            }
            Stage::Probing(_) => self.hang_up(slot),
            Stage::Ghost => self.end_ghost(slot),
            Stage::Waiting(_) | Stage::Leaving | Stage::Finishing { .. } | Stage::Finished => self.doom(slot),
        }
    }

    /// Ends a connection that has given no sign of life. The peer is probably gone: it is told if the kernel takes the frame at once,
    /// and not waited for.
    fn end_silent(&mut self, slot: Slot) {
        self.send_close(slot, CloseCode::Silent, "no sign of life");
        self.end(slot, Ending::Silent);
        self.doom(slot);
    }

    /// Closes a WebSocket from our side: the peer is told why, and has a while to answer.
    fn close(&mut self, slot: Slot, code: impl Into<u16>, reason: &str, ending: Ending, now: Time) {
        let Some(conn) = self.conns.get(slot as usize) else { return };
        let Stage::Open(dialect) = conn.stage else { return };
        if !conn.has_socket {
            return self.end(slot, ending);
        }
        self.send_close(slot, code, reason);
        self.note_ended(slot, ending);
        self.forget_sockets(slot);
        self.lose_user(slot);
        self.leave_all(slot);
        self.conns[slot as usize].stage = Stage::Closing(dialect, ending);
        self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
    }

    /// Tells a connection that the server shuts down; a native one, when to come back: when somebody is there to serve it, and at a time of its own
    /// within another `spread_ms`, so that all come back as slowly as they were told to go.
    fn shut_down(&mut self, slot: Slot, now: Time) {
        if self.is_native(slot) {
            let (spread_ms, left_ms) = self.drain.as_ref().map_or((0, 0), |drain| {
                let elapsed_ms = now.since_ns(drain.started) / 1_000_000;
                (drain.spread_ms, u64::from(drain.away_ms).saturating_sub(elapsed_ms) as u32)
            });
            // Neighbouring slots get times far apart, and all of them together are even (Knuth's multiplicative hash).
            let share = u64::from(slot.wrapping_mul(0x9E37_79B1));
            let retry_ms = left_ms + 1 + ((share * u64::from(spread_ms)) >> 32) as u32;
            self.reply(slot, Opcode::Text, |out| native::encode_disconnect(out, retry_ms));
        }
        self.close(slot, CloseCode::GoingAway, "the server is shutting down", Ending::Shutdown, now);
    }

    /// Ends a WebSocket whose peer broke the rules: it is told why, and nothing more is read from it.
    fn fail(&mut self, slot: Slot, code: CloseCode, reason: &str, ending: Ending, now: Time) {
        if self.conns.get(slot as usize).is_some_and(Conn::is_open) {
            self.send_close(slot, code, reason);
        }
        self.end(slot, ending);
        self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
        self.finish_unless_pending(slot);
    }

    fn send_close(&mut self, slot: Slot, code: impl Into<u16>, reason: &str) {
        let code = code.into();
        // A session that polls is told in the words of Engine.IO: where all outboxes are full, there would be no room for a frame.
        if let Some(conn) = self.conns.get_mut(slot as usize).filter(|conn| conn.has_socket) {
            let range = self.turn.raw(|out| out.extend_from_slice(&close::frame(code, reason)));
            self.turn.give(conn, slot, &range, false);
            self.stats().frames_out.add(1);
            self.close_code = Some((slot, code));
        }
    }

    /// The WebSocket of this connection is over, if it is one: its rooms and its place are free. What is queued is still written.
    fn end(&mut self, slot: Slot, ending: Ending) {
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        if !conn.has_socket && conn.is_open() && !conn.pending.is_none() {
            // What was said to it in this turn is in the answer that ends it.
            self.absorb(slot, 0);
        }
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        let ending = match conn.stage {
            Stage::Open(_) => {
                self.note_ended(slot, ending);
                ending
            }
            Stage::Closing(_, because) => because,
            Stage::Waiting(session) => {
                conn.stage = Stage::Finishing { at_once: false };
                return self.get_lost(session, slot);
            }
            Stage::Probing(session) => {
                conn.stage = Stage::Finishing { at_once: false };
                return self.probe_lost(session, slot);
            }
            Stage::Http | Stage::Leaving | Stage::Ghost | Stage::Finishing { .. } | Stage::Finished => return,
        };
        let conn = &mut self.conns[slot as usize];
        conn.stage = Stage::Finishing { at_once: false };
        let is_polling = !conn.has_socket;
        let conn = &mut self.conns[slot as usize];
        if let Some(partial) = conn.partial.take() {
            self.pool.give_back(partial.lease);
        }
        if let Some(incoming) = conn.session.as_mut().and_then(|session| session.incoming.take()) {
            self.pool.give_back(incoming.lease);
        }
        self.gate.dismiss(conn.ip);
        self.discount_session(slot);
        // Who means to go leaves its namespaces first.
        let drops_out = matches!(ending, Ending::Client | Ending::Lost | Ending::Silent | Ending::Slow);
        if is_polling && drops_out {
            // Its requests go with the connection, its namespaces stay.
            self.end_polling(slot, ending);
        }
        if !(drops_out && self.leave_behind(slot)) {
            self.forget_sockets(slot);
            self.leave_all(slot);
        }
        self.lose_user(slot);
        self.stats().connections.sub(1);
        self.stats().endings[ending.index()].add(1);
        if is_polling && !drops_out {
            self.end_polling(slot, ending);
        }
    }

    /// The sockets of a connection are not to be found any more.
    fn forget_sockets(&mut self, slot: Slot) {
        let session = self.conns[slot as usize].session.as_ref();
        let namespaces = session.into_iter().flat_map(|session| &session.namespaces);
        namespaces.for_each(|joined| self.sockets.remove(&joined.sid, slot));
    }

    fn leave_all(&mut self, slot: Slot) {
        while let Some(left) = self.rooms.leave_any(&mut self.conns, slot) {
            self.bus.exit(self.id, left.room, left.last_here);
        }
    }

    /// When nothing is left to write, nobody will say that it was written.
    fn finish_unless_pending(&mut self, slot: Slot) {
        if let Some(conn) = self.conns.get(slot as usize)
            && conn.pending.is_none()
            && conn.outbox.is_none()
        {
            self.finish(slot);
        }
    }

    /// The socket is to be closed at the end of the turn.
    fn doom(&mut self, slot: Slot) {
        if let Some(conn) = self.conns.get_mut(slot as usize)
            && !conn.doomed
        {
            conn.doomed = true;
            self.farewells.push(Farewell::Close(slot));
        }
    }

    /// Tells as many connections of a drain as are due by now.
    fn drain_on(&mut self, now: Time) {
        let Some(drain) = &mut self.drain else { return };
        let elapsed_ms = now.since_ns(drain.started) / 1_000_000;
        if elapsed_ms < drain.timeout_ms.into() && !self.has_all_that_waited() {
            return;
        }
        let Some(drain) = &mut self.drain else { return };
        let due = match drain.spread_ms {
            0 => self.slots,
            spread_ms => {
                (self.slots as u64 * elapsed_ms / u64::from(spread_ms)).min(self.slots as u64) as usize
            }
        };
        let told = drain.told;
        drain.told = due.max(told);
        let timed_out = elapsed_ms >= u64::from(drain.timeout_ms);
        for slot in told..due {
            match self.conns.get(slot).map(|conn| conn.stage) {
                // Its client does not poll any more and would not hear of it: it is told when it has moved.
                Some(Stage::Open(_)) if self.is_moving(slot as Slot) => {}
                Some(Stage::Probing(session)) if self.is_moving(session) => {}
                Some(Stage::Open(_)) => self.shut_down(slot as Slot, now),
                Some(Stage::Ghost) => self.end_ghost(slot as Slot),
                // Its request has come whole, and is answered.
                Some(Stage::Http) if self.awaits(slot as Slot) => {
                    self.reject(slot as Slot, Reject::Draining, false, false, now);
                }
                Some(Stage::Http | Stage::Probing(_)) => self.doom(slot as Slot),
                _ => {}
            }
        }
        if timed_out {
            self.calls.give_up();
            for slot in 0..self.slots {
                if self.conns.get(slot).is_some_and(|conn| conn.stage == Stage::Ghost) {
                    self.end_ghost(slot as Slot);
                } else if self.conns.contains(slot) {
                    self.end(slot as Slot, Ending::Shutdown);
                    self.doom(slot as Slot);
                }
            }
        }
    }
}
