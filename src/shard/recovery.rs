//! Recovery of Socket.IO sessions: who drops out for a moment comes back as the same one, and is sent what it has missed.
//!
//! A shard keeps what it has delivered for a while, in the order in which it did: the history. The place of an event in it is the
//! offset that goes along with the event. Who drops out leaves a ghost behind, a connection without a socket that goes on being a member
//! of its rooms, so that what is published there goes on into the history, and that gets nothing itself. Who comes back takes over
//! the ghost's memberships, and is sent what the history has for them from the offset on.
//!
//! A client may come back on another shard. That one asks the ghost's shard for what was missed and which rooms it is in, joins
//! these, and asks for the rest: what was published in between and did not yet come to itself. What comes meanwhile is held back, so
//! that nothing is lost, doubled or out of order.

use super::conn::{Conn, Stage};
use super::session::Joined;
use super::socketio::Barred;
use super::{Encoding, Shard};
use crate::auth::User;
use crate::bus::directory::{namespace_of, room_key};
use crate::bus::mailbox::{Mail, Missed, Recovery};
use crate::dialect::socketio;
use crate::message::{
    ConnId, Publication, RoomId, ShardId, ShardSet, Slot, SocketId, read_socket_id, user_key, write_socket_id,
};
use crate::stats::Recovered;
use crate::time::Time;
use compact_str::CompactString;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;

/// What a shard has delivered, and who may come back. Bounded by time and by bytes: the oldest is forgotten first.
#[derive(Debug, Default)]
pub struct History {
    delivered: VecDeque<Delivered>,
    /// The offset of the oldest.
    start: u64,
    /// Bytes of all.
    bytes: usize,
    /// By the private id of a session in a namespace, the connection that it left behind. At most `ghosts_max`.
    ghosts: HashMap<SocketId, Ghost>,
    /// Connections that asked for a session elsewhere and then moved to a WebSocket, with their new place: the answer goes to the old one.
    /// At most one for each session on its way back.
    moved: Vec<(ConnId, ConnId)>,
    /// Namespaces that are to be joined, with what their clients say for themselves. At most as many as wait in the sessions.
    joins: VecDeque<(ConnId, String, Option<String>)>,
}

#[derive(Debug)]
struct Delivered {
    at: Time,
    publication: Arc<Publication>,
    /// When it was delivered to one session only, that session's private id.
    only: Option<SocketId>,
}

#[derive(Clone, Debug)]
struct Ghost {
    slot: Slot,
    /// What the session published was published by this connection.
    was: ConnId,
    /// Whose it is.
    user: Option<Arc<User>>,
}

impl Ghost {
    /// Who it was: the connection, and the user's name.
    fn was(&self) -> (ConnId, Option<&str>) {
        (self.was, self.user.as_ref().map(|user| user.name.as_str()))
    }
}

/// How a client comes back, from what it says for itself.
#[derive(Debug, Deserialize)]
pub(super) struct Claim<'a> {
    pid: Option<Cow<'a, str>>,
    offset: Option<Cow<'a, str>>,
}

/// A session on its way back from another shard.
#[derive(Debug)]
pub struct Recovering {
    /// The namespace.
    namespace: String,
    /// Its ids there.
    pid: SocketId,
    sid: SocketId,
    /// The place of the pattern that allows the namespace; 0 until that has been entered.
    pattern: u16,
    /// The connection that it was; `None` until that is known.
    was: Option<ConnId>,
    /// What it has missed so far.
    missed: Missed,
    /// What has been delivered to it since it has joined its rooms here.
    held: Missed,
    /// What it says for itself, in case that it cannot be recovered.
    auth: Option<String>,
    /// Namespaces that its client wants to be in besides, each with what it says for itself: they come after this one. At most
    /// `namespaces_per_connection_max`.
    waiting: Vec<(String, Option<String>)>,
}

impl History {
    /// The offset of what is delivered next.
    pub fn end(&self) -> u64 {
        self.start + self.delivered.len() as u64
    }

    /// Sessions that may be recovered, each counted in each of its namespaces.
    pub fn ghosts(&self) -> usize {
        self.ghosts.len()
    }

    /// Bytes of events that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds what is being delivered.
    fn push(&mut self, publication: Arc<Publication>, only: Option<SocketId>, now: Time) {
        self.bytes += publication.size();
        self.delivered.push_back(Delivered { at: now, publication, only });
    }

    /// Forgets what is older than `kept_ms` or more than `bytes_max`.
    fn forget(&mut self, now: Time, kept_ms: u64, bytes_max: usize) {
        while let Some(oldest) =
            self.delivered.pop_front_if(|oldest| self.bytes > bytes_max || oldest.at.plus_ms(kept_ms) < now)
        {
            self.bytes -= oldest.publication.size();
            self.start += 1;
        }
        if self.delivered.is_empty() {
            self.delivered.shrink_to(64);
        }
    }

    /// The offset behind a publication that stands at `offset` or later.
    fn end_of(&self, publication: &Arc<Publication>, offset: u64) -> u64 {
        let skipped = offset.saturating_sub(self.start) as usize;
        let mut rest = self.delivered.iter().skip(skipped);
        let at = rest.position(|delivered| Arc::ptr_eq(&delivered.publication, publication));
        at.map_or(offset, |at| self.start + (skipped + at) as u64 + 1)
    }

    /// A session on its way back has moved from one connection to another.
    pub(super) fn note_move(&mut self, from: ConnId, to: ConnId) {
        self.moved.push((from, to));
    }

    /// Where a connection is by now that an answer is for. One answer is under way to each at a time.
    fn place_now(&mut self, asked: ConnId) -> ConnId {
        let at = self.moved.iter().position(|(from, _)| *from == asked);
        at.map_or(asked, |at| self.moved.swap_remove(at).1)
    }

    /// What a session has missed from `offset` on, if all of it is still there.
    fn missed(
        &self,
        offset: u64,
        namespace: &str,
        (sid, pid): (SocketId, SocketId),
        (was, user): (ConnId, Option<&str>),
        rooms: &HashSet<RoomId>,
        bytes_max: usize,
    ) -> Result<Missed, Recovered> {
        let Some(skipped) = offset.checked_sub(self.start) else { return Err(Recovered::Forgotten) };
        let mut bytes = 0;
        let mut missed = Missed::new();
        for delivered in self.delivered.iter().skip(skipped as usize) {
            let publication = &delivered.publication;
            let is_for = delivered.only.map_or_else(
                || {
                    // The id of a socket means nobody in another namespace.
                    let is_here =
                        publication.special.is_none() || namespace_of(publication.room_name()) == namespace;
                    is_here && publication.is_for(rooms, sid, user)
                },
                |only| only == pid,
            );
            if is_for && !publication.is_all_from(was) {
                bytes += publication.size();
                missed.push(publication.clone());
            }
        }
        if bytes > bytes_max { Err(Recovered::TooMuch) } else { Ok(missed) }
    }
}

impl Shard {
    /// True when sessions can be recovered.
    pub(super) fn recovers(&self) -> bool {
        self.settings.socketio.recovery_ms > 0
    }

    /// Notes that an event is being delivered.
    pub(super) fn remember(&mut self, publication: &Arc<Publication>) {
        if self.recovers() {
            let now = self.turn.now();
            self.history.push(publication.clone(), None, now);
        }
    }

    /// Forgets what is too old, once a turn.
    pub(super) fn forget(&mut self, now: Time) {
        let settings = &self.settings;
        // A ghost lives for `recovery_ms`, and before it came to be a heartbeat may have gone unanswered.
        let kept_ms = u64::from(settings.socketio.recovery_ms)
            + u64::from(settings.ping_interval_ms)
            + u64::from(settings.ping_timeout_ms);
        let bytes_max = settings.socketio.recovery_bytes_max;
        self.history.forget(now, kept_ms, bytes_max);
    }

    /// The offset that goes along with an event when everything before `end` has been sent; `None` where nobody can use it.
    pub(super) fn offset(&self, end: u64) -> Option<String> {
        self.recovers().then(|| format!("{:x}.{}.{end}", self.epoch(), self.id))
    }

    fn read_offset(&self, text: &str) -> Option<u64> {
        let rest = text.strip_prefix(&format!("{:x}.{}.", self.epoch(), self.id))?;
        rest.parse().ok().filter(|offset| *offset <= self.history.end())
    }

    /// Tells offsets of this life of the server from those of an earlier one.
    fn epoch(&self) -> u32 {
        self.key.hash_one("epoch") as u32
    }

    /// A new id: nobody else's, and nobody can guess it. Its first byte is the shard.
    pub(super) fn new_id(&mut self) -> SocketId {
        self.ids += 1;
        let half = |number: u8| self.key.hash_one((self.ids, number)).to_be_bytes();
        let mut id = [self.id; 15];
        id[1..9].copy_from_slice(&half(2));
        id[9..13].copy_from_slice(&half(3)[..4]);
        self.bus.sign(&mut id);
        id
    }

    /// The session of a connection that drops out stays behind, if it may come back. False when it has not, and its rooms are still
    /// to be left.
    pub(super) fn leave_behind(&mut self, slot: Slot) -> bool {
        let now = self.turn.now();
        let (ghosts_max, recovery_ms) = {
            let settings = &self.settings.socketio;
            (settings.recovery_sessions_max, settings.recovery_ms)
        };
        let conn = &mut self.conns[slot as usize];
        let was = ConnId { shard: self.id, slot, stamp: conn.stamp };
        let has_joined = conn.session.as_ref().is_some_and(|session| !session.namespaces.is_empty());
        if recovery_ms == 0 || self.drain.is_some() || !has_joined || self.history.ghosts.len() >= ghosts_max
        {
            return false;
        }
        // What stays behind of an address is bounded as its connections are.
        if !self.gate.haunt(conn.ip) {
            return false;
        }
        self.stamp = self.stamp.wrapping_add(1);
        let mut ghost = Conn::new(self.stamp, conn.ip, now);
        ghost.stage = Stage::Ghost;
        ghost.has_socket = false;
        ghost.muted = true;
        ghost.speaks_msgpack = conn.speaks_msgpack;
        ghost.session = conn.session.take();
        let namespaces = || ghost.session.iter().flat_map(|session| &session.namespaces);
        namespaces().for_each(|joined| self.sockets.remove(&joined.sid, slot));
        let pids: Vec<SocketId> =
            ghost.session.iter().flat_map(|session| &session.namespaces).map(|joined| joined.pid).collect();
        let sids: Vec<SocketId> = namespaces().map(|joined| joined.sid).collect();
        let ghost = self.conns.insert(ghost);
        self.slots = self.slots.max(ghost + 1);
        let ghost = ghost as Slot;
        sids.iter().for_each(|sid| self.sockets.insert(sid, ghost));
        for room in self.rooms.of(&self.conns, slot) {
            self.bus.haunt(room);
        }
        self.rooms.rehome(&mut self.conns, slot, ghost);
        let user = self.users.of(slot);
        for pid in pids {
            self.history.ghosts.insert(pid, Ghost { slot: ghost, was, user: user.cloned() });
        }
        self.wheel.arm(ghost, now, recovery_ms);
        true
    }

    /// A ghost has waited long enough, or is wanted no more.
    pub(super) fn end_ghost(&mut self, slot: Slot) {
        if self.conns[slot as usize].doomed {
            return;
        }
        self.gate.exorcise(self.conns[slot as usize].ip);
        self.forget_sockets(slot);
        if let Some(session) = self.conns[slot as usize].session.take() {
            for joined in &session.namespaces {
                self.history.ghosts.remove(&joined.pid);
            }
        }
        while let Some(left) = self.rooms.leave_any(&mut self.conns, slot) {
            self.bus.exit_ghost(self.id, left.room, left.last_here);
        }
        self.doom(slot);
    }

    /// A client that wants to be in a namespace says that it was. True when that is being looked into, and it is answered later.
    pub(super) fn recover(&mut self, slot: Slot, namespace: &str, auth: Option<&str>, now: Time) -> bool {
        if !self.recovers() {
            return false;
        }
        let Some(Claim { pid: Some(pid), offset }) = auth.and_then(|auth| serde_json::from_str(auth).ok())
        else {
            return false;
        };
        // Others are not worth a question to anybody.
        let Some(pid) = read_socket_id(&pid).filter(|pid| self.bus.is_own(pid)) else {
            self.count_recovery(Recovered::Unknown);
            return false;
        };
        let user = self.users.of(slot).map(|user| user.name.clone());
        if !self.history.ghosts.contains_key(&pid) && self.bus.shards() > 1 {
            // What is in the mail may have been heard where it was before.
            if !self.catch_up(slot, now) {
                return true;
            }
            let recovering = Recovering {
                namespace: namespace.to_owned(),
                pid,
                sid: pid,
                pattern: 0,
                was: None,
                missed: Missed::new(),
                held: Missed::new(),
                auth: auth.map(str::to_owned),
                waiting: Vec::new(),
            };
            let from = ConnId { shard: self.id, slot, stamp: self.conns[slot as usize].stamp };
            if let Some(session) = &mut self.conns[slot as usize].session {
                session.recovering = Some(Box::new(recovering));
            }
            let mut left = ShardSet::default();
            (0..self.bus.shards() as ShardId).for_each(|shard| left.insert(shard));
            left.remove(self.id);
            // Most likely it is where its last event came from, or else where it began: no more than a hint, since it may have moved.
            let last = offset.as_deref().and_then(|offset| offset.split('.').nth(1)?.parse().ok());
            let hint = last.unwrap_or(pid[0]);
            let offset = offset.map(Cow::into_owned);
            self.ask(hint, Recovery::Ask { from, pid, namespace: namespace.to_owned(), user, offset, left });
            return true;
        }
        if !self.is_of(pid, user.as_deref()) {
            self.count_recovery(Recovered::Unknown);
            return false;
        }
        // Events that are on their way were missed as well.
        if !self.catch_up(slot, now) {
            return true;
        }
        let found = self.look_up(pid, namespace, offset.as_deref());
        let (ghost, from, missed) = match found {
            Ok(found) => found,
            Err(reason) => {
                self.give_up(pid);
                self.count_recovery(reason);
                return false;
            }
        };
        let pattern = match self.enter_namespace(slot, namespace) {
            Ok(pattern) => pattern,
            Err(barred) => {
                self.turn_back(slot, namespace, barred);
                return true;
            }
        };
        let rooms = self.rooms_of(ghost.slot, namespace);
        let names: Vec<CompactString> = rooms.into_iter().filter_map(|room| self.bus.name(room)).collect();
        self.enter_again(slot, &names);
        let sid = self.give_up(pid).unwrap_or(pid);
        let joined = Joined { name: namespace.into(), sid, pid, began: from, pattern };
        self.come_back(slot, joined, auth, (Some(ghost.was), &missed), from, now);
        true
    }

    /// Asks one of the shards that are left about a session, the one with the number `hint` if it is among them.
    fn ask(&self, hint: ShardId, mut ask: Recovery) {
        let Recovery::Ask { from, left, .. } = &mut ask else { return };
        match left.iter().find(|shard| *shard == hint).or_else(|| left.iter().next()) {
            Some(shard) => {
                left.remove(shard);
                self.bus.post(shard, Mail::Recovery(Box::new(ask)));
            }
            None => {
                let refused = Recovery::Refused { to: *from, reason: Recovered::Unknown };
                self.bus.post(from.shard, Mail::Recovery(Box::new(refused)));
            }
        }
    }

    /// What a session left behind, and what it has missed since.
    fn look_up(
        &mut self,
        pid: SocketId,
        namespace: &str,
        offset: Option<&str>,
    ) -> Result<(Ghost, u64, Missed), Recovered> {
        let ghost = self.history.ghosts.get(&pid).ok_or(Recovered::Unknown)?.clone();
        let session = self.conns[ghost.slot as usize].session.as_ref().ok_or(Recovered::Unknown)?;
        let joined =
            session.joined(namespace).filter(|joined| joined.pid == pid).ok_or(Recovered::Unknown)?;
        // Each tells of something that was received for certain.
        let received = offset.and_then(|text| self.read_offset(text)).unwrap_or(0);
        let from = received.max(session.confirmed).max(joined.began);
        let rooms: HashSet<RoomId> = self.rooms_of(ghost.slot, namespace).into_iter().collect();
        let bytes_max = self.settings.socketio.recovery_session_bytes_max;
        let sid = joined.sid;
        let missed = self.history.missed(from, namespace, (sid, pid), ghost.was(), &rooms, bytes_max)?;
        let from = if missed.is_empty() { self.history.end() } else { from };
        Ok((ghost, from, missed))
    }

    /// True unless what a session left behind is of another user: that stays for whose it is.
    fn is_of(&self, pid: SocketId, user: Option<&str>) -> bool {
        self.history.ghosts.get(&pid).is_none_or(|ghost| ghost.was().1 == user)
    }

    /// Of the rooms of a connection, those of a namespace.
    fn rooms_of(&self, slot: Slot, namespace: &str) -> Vec<RoomId> {
        let is_here =
            |room: &RoomId| self.bus.name(*room).is_some_and(|name| namespace_of(&name) == namespace);
        self.rooms.of(&self.conns, slot).into_iter().filter(is_here).collect()
    }

    /// What a session left behind in a namespace is gone. Answers its id there.
    fn give_up(&mut self, pid: SocketId) -> Option<SocketId> {
        let ghost = self.history.ghosts.remove(&pid)?;
        let session = self.conns[ghost.slot as usize].session.as_mut()?;
        // Which namespace that was is known here. A client may name another one.
        let at = session.namespaces.iter().position(|joined| joined.pid == pid)?;
        let joined = session.namespaces.swap_remove(at);
        let is_last = session.namespaces.is_empty();
        self.sockets.remove(&joined.sid, ghost.slot);
        for room in self.rooms_of(ghost.slot, &joined.name) {
            if let Some(left) = self.rooms.leave(&mut self.conns, ghost.slot, room) {
                self.bus.exit_ghost(self.id, left.room, left.last_here);
            }
        }
        if is_last {
            self.end_ghost(ghost.slot);
        }
        Some(joined.sid)
    }

    /// The rooms that a connection was in are its own again. That of the namespace it has entered already.
    fn enter_again(&mut self, slot: Slot, rooms: &[CompactString]) {
        for name in rooms {
            if let Ok((room, _)) = self.bus.enter(self.id, name)
                && !self.rooms.join(&mut self.conns, slot, room)
            {
                self.bus.exit(self.id, room, false);
            }
        }
    }

    /// The place of a session in its namespace has been taken meanwhile. What it left behind stays, so that it may try again.
    fn turn_back(&mut self, slot: Slot, namespace: &str, barred: Barred) {
        self.count_recovery(Recovered::Full);
        self.refuse_namespace(slot, namespace, barred);
    }

    /// A session is here again: first comes what it has missed, then that it is in the namespace.
    fn come_back(
        &mut self,
        slot: Slot,
        joined: Joined,
        auth: Option<&str>,
        (was, missed): (Option<ConnId>, &Missed),
        from: u64,
        now: Time,
    ) {
        let (namespace, sid, pid, pattern) = (joined.name.clone(), joined.sid, joined.pid, joined.pattern);
        if let Some(session) = &mut self.conns[slot as usize].session {
            self.sockets.insert(&sid, slot);
            session.connect_by = None;
            // A ping that is under way was sent before what comes now: its answer does not tell of that.
            session.asked = session.asked.min(from);
            session.namespaces.push(joined);
        }
        let coding = self.settings.socketio.namespaces.coding(&namespace);
        let mut end = from;
        for (at, publication) in missed.iter().enumerate() {
            // Where it stands in the history, in the same order, is where the next one is looked for. Behind the last nothing is for this
            // session, but what it published itself when it was another connection.
            end = match at + 1 == missed.len() {
                true => self.history.end(),
                false => self.history.end_of(publication, end),
            };
            let offset = self.offset(end);
            let encoding = Encoding::of(&self.conns[slot as usize]);
            let (turn, offset) = (&mut self.turn, offset.as_deref());
            let frame = match publication.as_bundle() {
                Some(bundle) => encoding.encode_bundle(turn, (publication, coding), bundle, was, offset),
                None => {
                    let room = publication.room_name();
                    Some(encoding.encode(turn, (publication, coding), room, None, offset))
                }
            };
            let Some(frame) = frame else { continue };
            self.turn.give(&mut self.conns[slot as usize], slot, &frame, false);
            self.stats().frames_out.add(1);
        }
        let (sid, pid) = (write_socket_id(&sid), write_socket_id(&pid));
        self.say_packet(slot, &[], |out, _| socketio::encode_connect(out, &namespace, &sid, Some(&pid)));
        self.count_joined(pattern);
        self.count_recovery(Recovered::Yes);
        self.note_joined(slot, true);
        self.join_rooms_of_token(slot);
        self.tell_of_join(slot, &namespace, auth, true);
        self.arm_session(slot, now);
    }

    /// Mail about a session that comes back on another shard than it left.
    pub(super) fn recovery(&mut self, recovery: Recovery, now: Time) {
        match recovery {
            Recovery::Ask { pid, .. } if !self.history.ghosts.contains_key(&pid) => {
                self.ask(pid[0], recovery)
            }
            Recovery::Ask { from, pid, ref user, .. } if !self.is_of(pid, user.as_deref()) => {
                let refused = Recovery::Refused { to: from, reason: Recovered::Unknown };
                self.bus.post(from.shard, Mail::Recovery(Box::new(refused)));
            }
            Recovery::Ask { from, pid, namespace, offset, .. } => {
                let answer = match self.look_up(pid, &namespace, offset.as_deref()) {
                    Ok((ghost, _, missed)) => {
                        let was = ghost.was;
                        let session = self.conns[ghost.slot as usize].session.as_ref();
                        let sid =
                            session.and_then(|session| session.joined(&namespace)).map_or(pid, |it| it.sid);
                        let rooms = self.rooms_of(ghost.slot, &namespace);
                        let rooms = rooms.into_iter().filter_map(|room| self.bus.name(room)).collect();
                        let end = self.history.end();
                        Recovery::Found { to: from, shard: self.id, sid, rooms, was, missed, end }
                    }
                    Err(reason) => {
                        self.give_up(pid);
                        Recovery::Refused { to: from, reason }
                    }
                };
                self.bus.post(from.shard, Mail::Recovery(Box::new(answer)));
            }
            Recovery::Refused { to, reason } => {
                let to = self.history.place_now(to);
                self.count_recovery(reason);
                if let Some(recovering) = self.take_recovering(to) {
                    let Recovering { namespace, auth, waiting, .. } = *recovering;
                    self.join_anew(to.slot, &namespace, auth.as_deref(), now);
                    self.join_waiting(to, waiting);
                }
            }
            Recovery::Found { to, shard, sid, rooms, was, missed, end } => {
                let to = self.history.place_now(to);
                let Some(recovering) = self.recovering(to) else { return };
                let (pid, namespace) = (recovering.pid, recovering.namespace.clone());
                let pattern = match self.enter_namespace(to.slot, &namespace) {
                    Ok(pattern) => pattern,
                    Err(barred) => {
                        let waiting = self.take_recovering(to).map(|recovering| recovering.waiting);
                        self.turn_back(to.slot, &namespace, barred);
                        return self.join_waiting(to, waiting.unwrap_or_default());
                    }
                };
                self.enter_again(to.slot, &rooms);
                if sid[0] != self.id {
                    // Who publishes to it by its id looks for it where that was made, or else for a room of that name.
                    let own = room_key(&namespace, &write_socket_id(&sid)).into_owned().into();
                    self.enter_again(to.slot, &[own]);
                }
                self.conns[to.slot as usize].muted = true;
                if let Some(recovering) = self.recovering(to) {
                    (recovering.sid, recovering.missed, recovering.pattern) = (sid, missed, pattern);
                    recovering.was = Some(was);
                }
                let fetch = Recovery::Fetch { from: to, pid, namespace, since: end };
                self.bus.post(shard, Mail::Recovery(Box::new(fetch)));
            }
            Recovery::Fetch { from, pid, namespace, since } => {
                let ghost = self.history.ghosts.get(&pid);
                let user = ghost.and_then(|ghost| ghost.user.clone());
                let missed = ghost.map_or_else(Missed::new, |ghost| {
                    let rooms = self.rooms_of(ghost.slot, &namespace).into_iter().collect();
                    let session = self.conns[ghost.slot as usize].session.as_ref();
                    let sid = session.and_then(|session| session.joined(&namespace)).map_or(pid, |it| it.sid);
                    let bytes_max = self.settings.socketio.recovery_session_bytes_max;
                    let missed =
                        self.history.missed(since, &namespace, (sid, pid), ghost.was(), &rooms, bytes_max);
                    missed.unwrap_or_default()
                });
                // Who publishes puts that into one mailbox after another, inside the stripes of the names that it is for. What has come here
                // and is in the rest is there, too, when these have been free once: it would be new to the session behind the rest. Those of
                // its rooms are taken as they are left; those of its id and its user are no rooms.
                if let Some(sid) = self.give_up(pid) {
                    self.bus.find(&room_key(&namespace, &write_socket_id(&sid)));
                }
                if let Some(user) = user {
                    self.bus.find(&room_key(&namespace, &user_key(&user.name)));
                }
                self.bus.post(from.shard, Mail::Recovery(Box::new(Recovery::Rest { to: from, missed })));
            }
            Recovery::Rest { to, missed } => {
                let to = self.history.place_now(to);
                let Some(recovering) = self.take_recovering(to) else { return };
                let Recovering { namespace, pid, sid, pattern, was, missed: mut all, held, auth, waiting } =
                    *recovering;
                all.extend(missed);
                // What came both ways is the same publication.
                let known: HashSet<*const Publication> = all.iter().map(Arc::as_ptr).collect();
                all.extend(held.into_iter().filter(|held| !known.contains(&Arc::as_ptr(held))));
                // In this shard's history, so that the offsets that go along with them are good here.
                let from = self.history.end();
                for publication in &all {
                    self.history.push(publication.clone(), Some(pid), now);
                }
                let joined = Joined { name: namespace.into(), sid, pid, began: from, pattern };
                self.come_back(to.slot, joined, auth.as_deref(), (was, &all), from, now);
                self.join_waiting(to, waiting);
            }
        }
    }

    /// The session on its way back in this connection, if that is still open: what a closed one joins nobody would leave.
    fn recovering(&mut self, id: ConnId) -> Option<&mut Recovering> {
        let conn =
            self.conns.get_mut(id.slot as usize).filter(|conn| conn.stamp == id.stamp && conn.is_open())?;
        conn.session.as_mut()?.recovering.as_deref_mut()
    }

    /// The namespaces that had to wait for another one are joined when the mail has been carried out: who asks for them looks at the
    /// mail again. Of those, too, one may have to be asked for elsewhere, and the others wait again.
    fn join_waiting(&mut self, id: ConnId, waiting: Vec<(String, Option<String>)>) {
        self.history.joins.extend(waiting.into_iter().map(|(namespace, auth)| (id, namespace, auth)));
    }

    /// Joins those namespaces.
    pub(super) fn join_those_that_waited(&mut self, now: Time) {
        while let Some((id, namespace, auth)) = self.history.joins.pop_front() {
            let conn = self.conns.get(id.slot as usize);
            if conn.is_some_and(|conn| conn.stamp == id.stamp && conn.is_open()) {
                self.join_namespace(id.slot, &namespace, auth.as_deref(), now);
            }
        }
        self.history.joins.shrink_to(64);
    }

    fn take_recovering(&mut self, id: ConnId) -> Option<Box<Recovering>> {
        let conn =
            self.conns.get_mut(id.slot as usize).filter(|conn| conn.stamp == id.stamp && conn.is_open())?;
        conn.muted = false;
        conn.session.as_mut()?.recovering.take()
    }

    fn count_recovery(&mut self, what: Recovered) {
        self.stats().recoveries[what as usize].add(1);
    }
}

impl Recovering {
    /// Notes that its client wants to be in another namespace, too. False when it has said so already, or of too many.
    pub(super) fn wait(&mut self, namespace: &str, auth: Option<&str>, waiting_max: usize) -> bool {
        let is_known = self.namespace == namespace || self.waiting.iter().any(|(name, _)| name == namespace);
        if is_known || self.waiting.len() >= waiting_max {
            return false;
        }
        self.waiting.push((namespace.to_owned(), auth.map(str::to_owned)));
        true
    }

    /// True when it was in this namespace, and will be.
    pub(super) fn is_of(&self, namespace: &str) -> bool {
        self.namespace == namespace
    }

    /// Holds back events of a room that are delivered meanwhile. False when the room is of another namespace.
    pub(super) fn hold(&mut self, room: &str, publications: &[Arc<Publication>]) -> bool {
        let is_here = self.is_of(namespace_of(room));
        if is_here {
            self.held.extend_from_slice(publications);
        }
        is_here
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Gate, Rules, Vouched};
    use crate::bus::Bus;
    use crate::bus::directory::room_of;
    use crate::config::Config;
    use crate::message::{Audience, Draft};
    use crate::server;
    use crate::shard::{Farewell, Gathered, SocketIo};
    use crate::stats::Stats;
    use std::net::Ipv4Addr;
    use std::sync::mpsc;
    use std::time::Duration;

    const NOW: Time = Time::from_ms(1_000);

    /// Shards that recover sessions.
    struct World {
        bus: Arc<Bus>,
        shards: Vec<Shard>,
    }

    /// A client on a WebSocket: its shard and its slot.
    type Client = (usize, Slot);

    impl World {
        fn new(shards: usize) -> World {
            let bus = Arc::new(Bus::new(shards, 100));
            let mut settings = server::settings(&Config::default(), 1, 10);
            settings.paths.socketio = Some("/socket.io/".to_owned());
            settings.socketio = Arc::new(SocketIo { recovery_ms: 10_000, ..SocketIo::default() });
            let gate =
                Arc::new(Gate::new(Rules { connections_max: 10, sockets_max: 10, ..Rules::default() }));
            let stats = Arc::new(Stats::new(shards));
            let shards = (0..shards as ShardId)
                .map(|id| Shard::new(id, settings.clone(), bus.clone(), gate.clone(), stats.clone(), NOW))
                .collect();
            World { bus, shards }
        }

        fn connect(&mut self, shard: usize) -> Client {
            let slot = self.shards[shard].accept(Ipv4Addr::LOCALHOST.into(), NOW);
            let mut head =
                b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
                Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                    .to_vec();
            self.shards[shard].receive(slot, &mut head, NOW);
            (shard, slot)
        }

        /// A text of at most 125 bytes.
        fn say(&mut self, (shard, slot): Client, text: &str) {
            let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
            frame.extend_from_slice(text.as_bytes());
            self.shards[shard].receive(slot, &mut frame, NOW);
        }

        /// A turn of one shard. Answers all that it says.
        fn turn(&mut self, shard: usize) -> String {
            let shard = &mut self.shards[shard];
            shard.begin_turn(NOW);
            shard.deliver(NOW);
            shard.advance(NOW);
            let mut said = Vec::new();
            while let Some(slot) = shard.next_dirty() {
                let before = said.len();
                match shard.gather(slot) {
                    Gathered::Nothing => {}
                    Gathered::One(bytes) => said.extend_from_slice(bytes),
                    Gathered::Many(slices) => slices.iter().for_each(|slice| said.extend_from_slice(slice)),
                }
                let count = said.len() - before;
                shard.sent(slot, count, count);
            }
            while let Some(farewell) = shard.next_farewell() {
                if let Farewell::Close(slot) = farewell {
                    shard.release(slot);
                }
            }
            shard.end_turn(NOW);
            String::from_utf8_lossy(&said).into_owned()
        }

        fn drop_out(&mut self, (shard, slot): Client) {
            self.shards[shard].hang_up(slot);
            self.turn(shard);
        }
    }

    /// What stands behind `mark`, up to the next quote.
    fn after<'a>(mark: &str, said: &'a str) -> &'a str {
        said.rsplit_once(mark)
            .unwrap_or_else(|| panic!("{mark} in {said}"))
            .1
            .split('"')
            .next()
            .expect("split has a first part")
    }

    fn for_socket(sid: SocketId) -> Arc<Publication> {
        let audience = Audience { sockets: vec![sid], ..Audience::default() };
        Arc::new(Publication::for_several(audience, &Draft::new("x", "secret", b"1", NOW)))
    }

    #[test]
    fn what_is_for_an_id_comes_once_while_its_session_changes_shard() {
        let mut world = World::new(2);
        let client = world.connect(0);
        world.say(client, "40");
        let said = world.turn(0);
        let (pid, sid) = (after("\"pid\":\"", &said), after("\"sid\":\"", &said));
        world.drop_out(client);
        let client = world.connect(1);
        world.say(client, &format!(r#"40{{"pid":"{pid}"}}"#));
        world.turn(0);
        world.turn(1);
        // It has entered the room of its id, and asks for the rest. Before that, somebody has begun to publish.
        let mut mail = VecDeque::new();
        world.bus.mailbox(0).collect(&mut mail);
        assert!(matches!(mail.front(), Some(Mail::Recovery(_))), "{mail:?}");
        let publication = for_socket(read_socket_id(sid).expect("an id"));
        let (bus, (told, begins), (done, is_done)) = (world.bus.clone(), mpsc::channel(), mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (is_done, told) = (is_done, told);
                let mut place = Some(0);
                while let Some(from) = place {
                    // Inside the stripe, as `Bus::publish`.
                    place = bus.walk(from, 100, |name, _| {
                        if room_of(name) == sid {
                            bus.post(0, Mail::Publication(publication.clone()));
                            told.send(()).expect("somebody listens");
                            // For the other shard to be done, or to wait for this.
                            is_done.recv_timeout(Duration::from_millis(300)).ok();
                            bus.post(1, Mail::Publication(publication.clone()));
                        }
                        true
                    });
                }
            });
            begins.recv().expect("it has a room");
            mail.into_iter().for_each(|mail| world.bus.post(0, mail));
            world.turn(0);
            done.send(()).ok();
        });
        let said = world.turn(1) + &world.turn(1);
        assert!(said.contains(&format!("\"pid\":\"{pid}\"")), "it is recovered: {said}");
        assert_eq!(said.matches("secret").count(), 1, "{said}");
    }

    #[test]
    fn what_is_for_a_user_is_not_lost_while_its_session_changes_shard() {
        let mut world = World::new(2);
        let vouched = || {
            let user = User { name: "ann".into(), expires_at_s: u64::MAX, granted: None };
            Vouched { user, rooms: Vec::new() }
        };
        let client = world.connect(0);
        world.shards[0].identify(client.1, vouched(), NOW).expect("it is nobody yet");
        world.say(client, "40");
        let said = world.turn(0);
        let pid = after("\"pid\":\"", &said);
        world.drop_out(client);
        let client = world.connect(1);
        world.shards[1].identify(client.1, vouched(), NOW).expect("it is nobody yet");
        world.say(client, &format!(r#"40{{"pid":"{pid}"}}"#));
        world.turn(0);
        world.turn(1);
        // The other shard looks at this behind the question for the rest: there it is for nobody.
        world.bus.publish(&Draft::new(&user_key("ann"), "secret", b"1", NOW)).expect("there is room");
        world.turn(1);
        world.turn(0);
        let said = world.turn(1);
        assert!(said.contains(&format!("\"pid\":\"{pid}\"")), "it is recovered: {said}");
        assert_eq!(said.matches("secret").count(), 1, "{said}");
    }

    #[test]
    fn a_volatile_event_that_ends_with_a_text_has_an_offset_behind_it() {
        let mut world = World::new(1);
        let client = world.connect(0);
        world.say(client, "40");
        let said = world.turn(0);
        let (pid, room) = (after("\"pid\":\"", &said), "news");
        world.say(client, r#"42["join","news"]"#);
        world.turn(0);
        world.bus.publish(&Draft::new(room, "heard", b"1", NOW)).expect("there is room");
        world.turn(0);
        let volatile = Draft { volatile: true, ..Draft::new(room, "volatile", b"\"a text\"", NOW) };
        world.bus.publish(&volatile).expect("there is room");
        let said = world.turn(0);
        assert!(said.contains("volatile"), "{said}");
        // As the client does it: the last argument, if that is a text.
        let offset = said.trim_end_matches(['"', ']']).rsplit_once('"').expect("a text").1.to_owned();
        world.drop_out(client);
        let client = world.connect(0);
        world.say(client, &format!(r#"40{{"pid":"{pid}","offset":"{offset}"}}"#));
        let said = world.turn(0);
        assert!(said.contains(&format!("\"pid\":\"{pid}\"")), "it is recovered: {said}");
        assert!(!said.contains("heard"), "it has heard that: {said}");
    }

    #[test]
    fn what_a_user_has_heard_is_not_said_again() {
        let mut world = World::new(2);
        let vouched = || {
            let user = User { name: "ann".into(), expires_at_s: u64::MAX, granted: None };
            Vouched { user, rooms: Vec::new() }
        };
        let client = world.connect(0);
        world.shards[0].identify(client.1, vouched(), NOW).expect("it is nobody yet");
        world.say(client, "40");
        let said = world.turn(0);
        let pid = after("\"pid\":\"", &said).to_owned();
        // The client has connected anew already.
        let second = world.connect(1);
        world.shards[1].identify(second.1, vouched(), NOW).expect("it is nobody yet");
        world.turn(1);
        world.bus.publish(&Draft::new(&user_key("ann"), "secret", b"\"x\"", NOW)).expect("there is room");
        let heard = world.turn(0);
        assert!(heard.contains("secret"), "{heard}");
        let offset = heard.trim_end_matches(['"', ']']).rsplit_once('"').expect("a text").1.to_owned();
        world.drop_out(client);
        // Reads come before the mail of a turn.
        world.say(second, &format!(r#"40{{"pid":"{pid}","offset":"{offset}"}}"#));
        let mut said = world.turn(1);
        for _ in 0..3 {
            world.turn(0);
            said += &world.turn(1);
        }
        assert!(said.contains(&format!("\"pid\":\"{pid}\"")), "it is recovered: {said}");
        assert_eq!(said.matches("secret").count(), 0, "{said}");
    }
}
