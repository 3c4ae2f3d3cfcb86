//! What the control port asks of a shard: lists of connections, piece by piece, one connection, and things to be done to one.

use super::Shard;
use super::conn::{Conn, Stage};
use super::session::Transport;
use crate::auth::Ip;
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::inquiry::{
    Answer, Connection, Inquiry, LISTED_MAX, LOOKED_AT_MAX, Listed, Namespace, Question, ROOMS_NAMED_MAX,
    Slow,
};
use crate::dialect::{Dialect, socketio};
use crate::message::{ConnId, RoomId, Slot, SocketId};
use crate::stats::Ending;
use crate::time::Time;
use compact_str::CompactString;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

impl Shard {
    /// Answers an inquiry.
    pub(super) fn inquire(&mut self, inquiry: Inquiry, now: Time) {
        let Inquiry { question, back } = inquiry;
        let answer = match question {
            Question::Connections { from, most, address } => {
                self.connections_from(from, most, address.map(Ip::from))
            }
            Question::Members { room, below, most } => self.members_below(room, below, most),
            Question::Users { from, most } => {
                let (names, next) = self.users_from(from, most.min(LISTED_MAX));
                Answer::Users { names, next }
            }
            Question::Counts(names) => {
                Answer::Counts(names.iter().map(|name| self.all_of(name).count() as u32).collect())
            }
            Question::User { name, most } => {
                let described = self.all_of(&name).take(most).map(|slot| {
                    let conn = &self.conns[slot as usize];
                    let own = ConnId { shard: self.id, slot, stamp: conn.stamp };
                    let listed = self.list(slot, conn, None);
                    self.describe(slot, listed.map_or_else(|| self.bus.id_of(own), |listed| listed.id))
                });
                let described = described.collect();
                Answer::User { connections: self.all_of(&name).count() as u32, described }
            }
            Question::Slowest { from, most } => self.slowest_from(from, most.min(LISTED_MAX), now),
            Question::Connection(id) => {
                let found = self.find_connection(&id);
                found.map_or(Answer::Unknown, |(slot, _)| {
                    Answer::Connection(Box::new(self.describe(slot, id)))
                })
            }
            Question::Join { id, rooms } => {
                self.with_rooms(&id, &rooms, |shard, slot, keys| match shard.join(slot, keys) {
                    Ok(_) => Answer::Done,
                    Err(refusal) => Answer::Refused(refusal.message.into_owned()),
                })
            }
            Question::Leave { id, rooms } => self.with_rooms(&id, &rooms, |shard, slot, keys| {
                for room in keys.iter().filter_map(|name| shard.bus.find(name)).collect::<Vec<_>>() {
                    shard.leave(slot, room);
                }
                Answer::Done
            }),
            Question::Close { id, code, reason } => match self.find_connection(&id) {
                Some((slot, _)) => {
                    self.dismiss(slot, code, &reason, now);
                    Answer::Done
                }
                None => Answer::Unknown,
            },
        };
        // Who has asked may no longer be waiting.
        back.try_send(answer).ok();
    }

    /// Ends a connection, all of its namespaces included: a client of Socket.IO is told in its words first.
    pub(super) fn dismiss(&mut self, slot: Slot, code: u16, reason: &str, now: Time) {
        let session = self.conns.get(slot as usize).and_then(|conn| conn.session.as_ref());
        let namespaces: Vec<CompactString> = session
            .map(|session| session.namespaces.iter().map(|joined| joined.name.clone()).collect())
            .unwrap_or_default();
        self.close_code = Some((slot, code));
        for namespace in namespaces {
            self.say_packet(slot, &[], |out, _| socketio::encode_disconnect(out, &namespace));
            self.leave_namespace(slot, &namespace, Ending::Server);
        }
        self.close(slot, code, reason, Ending::Server, now);
    }

    /// The open connection with this id, which is not that of a socket of Socket.IO, if it is here.
    pub(super) fn unnamed(&self, id: &SocketId) -> Option<Slot> {
        let conn = self.bus.conn_of(id).filter(|conn| conn.shard == self.id)?;
        let there = self.conns.get(conn.slot as usize)?;
        (there.stamp == conn.stamp && there.is_open()).then_some(conn.slot)
    }

    /// True for an open connection of the native dialect.
    pub(super) fn is_native(&self, slot: Slot) -> bool {
        self.conns.get(slot as usize).is_some_and(|conn| conn.stage == Stage::Open(Dialect::Native))
    }

    /// As [`Conn::is_direct`].
    pub(super) fn is_direct(&self, slot: Slot) -> bool {
        self.conns.get(slot as usize).is_some_and(Conn::is_direct)
    }

    fn connections_from(&self, from: Slot, most: usize, ip: Option<Ip>) -> Answer {
        let most = most.min(LISTED_MAX);
        let end = (self.slots as Slot).min(from.saturating_add(LOOKED_AT_MAX));
        let mut listed = Vec::new();
        let mut slot = from;
        while slot < end && listed.len() < most {
            let conn = self.conns.get(slot as usize).filter(|conn| ip.is_none_or(|ip| conn.ip == ip));
            listed.extend(conn.and_then(|conn| self.list(slot, conn, None)));
            slot += 1;
        }
        Answer::Page { listed, next: ((slot as usize) < self.slots).then_some(slot) }
    }

    fn slowest_from(&self, from: Slot, most: usize, now: Time) -> Answer {
        let end = (self.slots as Slot).min(from.saturating_add(LOOKED_AT_MAX));
        let mut slowest: BinaryHeap<Reverse<(usize, Slot)>> = BinaryHeap::new();
        for slot in from..end {
            let Some(conn) = self.conns.get(slot as usize) else { continue };
            let waiting = conn.outbox.as_ref().map_or(0, |outbox| outbox.len());
            if waiting > 0 && conn.is_open() {
                slowest.push(Reverse((waiting, slot)));
                if slowest.len() > most {
                    slowest.pop();
                }
            }
        }
        let slow = slowest.into_iter().filter_map(|Reverse((waiting_bytes, slot))| {
            let conn = &self.conns[slot as usize];
            let silent_ms = now.ms32().wrapping_sub(conn.heard_ms);
            Some(Slow { listed: self.list(slot, conn, None)?, waiting_bytes, silent_ms })
        });
        Answer::Slowest { slow: slow.collect(), next: ((end as usize) < self.slots).then_some(end) }
    }

    fn members_below(&self, room: RoomId, below: Option<u32>, most: usize) -> Answer {
        let members = self.rooms.members(room);
        // One who leaves is replaced by the last, who has been told: so nobody who stays is passed by.
        let end = below.map_or(members.len(), |below| members.len().min(below as usize));
        let namespace = self.bus.name(room).map(|name| CompactString::from(namespace_of(&name)));
        let mut listed = Vec::new();
        let mut at = end;
        while at > 0 && listed.len() < most.min(LISTED_MAX) && end - at < LOOKED_AT_MAX as usize {
            at -= 1;
            let slot = members[at].slot;
            let conn = self.conns.get(slot as usize);
            listed.extend(conn.and_then(|conn| self.list(slot, conn, namespace.as_deref())));
        }
        Answer::Page { listed, next: (at > 0).then_some(at as u32) }
    }

    /// A connection as lists have it, with its id in `namespace` where there is one. A session that has joined no namespace has no id
    /// that it would keep, and is nobody yet.
    fn list(&self, slot: Slot, conn: &Conn, namespace: Option<&str>) -> Option<Listed> {
        let Stage::Open(dialect) = conn.stage else { return None };
        let id = match &conn.session {
            Some(session) if dialect == Dialect::SocketIo => {
                let joined = namespace.and_then(|namespace| session.joined(namespace));
                joined.or_else(|| session.namespaces.first())?.sid
            }
            _ => self.bus.id_of(ConnId { shard: self.id, slot, stamp: conn.stamp }),
        };
        let user = self.users.of(slot).map(|user| user.name.as_str().into());
        Some(Listed { id, dialect: dialect.name(), address: conn.ip.to_string(), user })
    }

    /// The open connection with this id, and the namespace that the id is for.
    fn find_connection(&self, id: &SocketId) -> Option<(Slot, CompactString)> {
        let named = self.sockets.find(id).find_map(|slot| {
            let conn = self.conns.get(slot as usize).filter(|conn| conn.is_open())?;
            let joined = conn.session.as_ref()?.namespaces.iter().find(|joined| joined.sid == *id)?;
            Some((slot, joined.name.clone()))
        });
        named.or_else(|| Some((self.unnamed(id)?, "/".into())))
    }

    fn describe(&self, slot: Slot, id: SocketId) -> Connection {
        let conn = &self.conns[slot as usize];
        let listed = self.list(slot, conn, None);
        let mut namespaces: Vec<Namespace> = match &conn.session {
            Some(session) => session
                .namespaces
                .iter()
                .map(|joined| Namespace { name: joined.name.clone(), id: joined.sid, rooms: Vec::new() })
                .collect(),
            None => vec![Namespace { name: "/".into(), id, rooms: Vec::new() }],
        };
        let rooms = self.rooms.of(&self.conns, slot);
        // Those that stand for namespaces are not counted.
        let own = if conn.session.is_some() { namespaces.len() } else { 0 };
        let memberships = rooms.len().saturating_sub(own);
        for name in rooms.iter().take(ROOMS_NAMED_MAX + own).filter_map(|room| self.bus.name(*room)) {
            let of_name = namespaces.iter_mut().find(|namespace| namespace.name == namespace_of(&name));
            if let Some(namespace) = of_name.filter(|_| !room_of(&name).is_empty()) {
                namespace.rooms.push(room_of(&name).into());
            }
        }
        let is_polling =
            conn.session.as_ref().is_some_and(|session| matches!(session.transport, Transport::Polling(_)));
        Connection {
            listed: listed.unwrap_or(Listed {
                id,
                dialect: "socketio",
                address: conn.ip.to_string(),
                user: self.users.of(slot).map(|user| user.name.as_str().into()),
            }),
            transport: if is_polling { "polling" } else { "websocket" },
            namespaces,
            memberships,
            waiting_bytes: conn.outbox.as_ref().map_or(0, |outbox| outbox.len()),
        }
    }

    /// Does something to the connection with this id and rooms of its namespace, which `act` gets by the names that the directory knows.
    fn with_rooms(
        &mut self,
        id: &SocketId,
        rooms: &[CompactString],
        act: impl FnOnce(&mut Shard, Slot, &[Cow<'_, str>]) -> Answer,
    ) -> Answer {
        let Some((slot, namespace)) = self.find_connection(id) else { return Answer::Unknown };
        let keys: Vec<Cow<'_, str>> = rooms.iter().map(|room| room_key(&namespace, room)).collect();
        act(self, slot, &keys)
    }
}
