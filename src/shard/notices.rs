//! What a shard tells the backend: clients that come and go, and events that it has chosen. Where nobody wants to know, each of these is
//! one branch.

use super::Shard;
use super::conn::Stage;
use crate::bus::directory::room_of;
use crate::bus::notices::{Kind, Notices, What, Who};
use crate::dialect::{Dialect, attachments};
use crate::message::{ConnId, Slot, SocketId};
use crate::stats::Ending;
use crate::time::Time;
use compact_str::{CompactString, ToCompactString as _};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Clients of which the backend was told, with the time since when they are there: some 40 bytes for each, where such notices are wanted.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<SocketId, Time>);

impl Shard {
    /// A connection that is no Socket.IO session is open, or has its first user: it is told once, and not before somebody knows who it is
    /// where that has to be known.
    pub(super) fn note_open(&mut self, slot: Slot) {
        if self.bus.notices().is_none() {
            return;
        }
        let Stage::Open(dialect) = self.conns[slot as usize].stage else { return };
        let is_awaited = dialect == Dialect::Native && self.lacks_user(slot);
        if dialect != Dialect::SocketIo && !is_awaited {
            let id = self.own_id(slot);
            self.note_connected(slot, id, None, false);
        }
    }

    /// A Socket.IO session is in a namespace, which it has joined last; `recovered` when it was there before and had dropped out.
    pub(super) fn note_joined(&mut self, slot: Slot, recovered: bool) {
        if self.bus.notices().is_none() {
            return;
        }
        let session = self.conns[slot as usize].session.as_ref();
        if let Some(joined) = session.and_then(|session| session.namespaces.last()) {
            let (sid, namespace) = (joined.sid, joined.name.clone());
            self.note_connected(slot, sid, Some(namespace), recovered);
        }
    }

    /// A Socket.IO session is about to leave a namespace.
    pub(super) fn note_left(&mut self, slot: Slot, namespace: &str, ending: Ending) {
        if self.told.0.is_empty() {
            return;
        }
        let session = self.conns[slot as usize].session.as_ref();
        if let Some(joined) = session.and_then(|session| session.joined(namespace)) {
            self.note_disconnected(slot, joined.sid, Some(joined.name.clone()), ending);
        }
    }

    /// An open connection is about to be no more, and with it its namespaces: the backend is told where it wants to know.
    pub(super) fn note_ended(&mut self, slot: Slot, ending: Ending) {
        self.tell_of_end(slot, ending);
        if self.told.0.is_empty() {
            return;
        }
        let namespaces = self.conns[slot as usize].session.iter().flat_map(|session| &session.namespaces);
        let sockets: Vec<_> = namespaces.map(|joined| (joined.sid, joined.name.clone())).collect();
        for (sid, namespace) in sockets {
            self.note_disconnected(slot, sid, Some(namespace), ending);
        }
        self.note_disconnected(slot, self.own_id(slot), None, ending);
    }

    /// A client of Socket.IO has sent an event, and it was carried out if it does something.
    pub(super) fn note_event(
        &mut self,
        slot: Slot,
        namespace: &str,
        (event, args): (&str, &str),
        attachments: &[Vec<u8>],
    ) {
        let Some(notices) = self.bus.notices().filter(|notices| notices.wants_event(Some(namespace), event))
        else {
            return;
        };
        let conn = &self.conns[slot as usize];
        let Some(joined) = conn.session.as_ref().and_then(|session| session.joined(namespace)) else {
            return;
        };
        let who = || self.who(slot, joined.sid, Some(joined.name.clone()));
        let bytes = args.len() + attachments.iter().map(Vec::len).sum::<usize>();
        self.leave_notice(notices, Kind::Event, namespace.len() + event.len() + bytes, || What::Event {
            who: who(),
            event: event.into(),
            rooms: Vec::new(),
            args: args.into(),
            attachments: attachments.to_vec(),
        });
    }

    /// A native client has published an event.
    pub(super) fn note_published(
        &mut self,
        slot: Slot,
        event: &str,
        rooms: &[Cow<'_, str>],
        (binary, payload): (bool, &[u8]),
    ) {
        let Some(notices) = self.bus.notices().filter(|notices| notices.wants_event(None, event)) else {
            return;
        };
        let bytes = event.len() + payload.len() + rooms.iter().map(|room| room.len()).sum::<usize>();
        self.leave_notice(notices, Kind::Event, bytes, || What::Event {
            who: self.who(slot, self.own_id(slot), None),
            event: event.into(),
            rooms: rooms.iter().map(|room| room_of(room).into()).collect(),
            args: match binary {
                true => attachments::PLACEHOLDER.into(),
                // It has been read as JSON.
                false => str::from_utf8(payload).unwrap_or("null").into(),
            },
            attachments: if binary { vec![payload.to_vec()] } else { Vec::new() },
        });
    }

    fn note_connected(
        &mut self,
        slot: Slot,
        id: SocketId,
        namespace: Option<CompactString>,
        recovered: bool,
    ) {
        let Some(notices) = self.bus.notices() else { return };
        let is_wanted = notices.wants(Kind::Connected);
        if !is_wanted && !notices.wants(Kind::Disconnected) {
            return;
        }
        let now = self.turn.now();
        let Entry::Vacant(place) = self.told.0.entry(id) else { return };
        place.insert(now);
        if !is_wanted {
            return;
        }
        let bytes = namespace.as_ref().map_or(0, CompactString::len);
        self.leave_notice(notices, Kind::Connected, bytes, || What::Connected {
            who: self.who(slot, id, namespace),
            address: self.conns[slot as usize].ip.to_compact_string(),
            recovered,
        });
    }

    fn note_disconnected(
        &mut self,
        slot: Slot,
        id: SocketId,
        namespace: Option<CompactString>,
        ending: Ending,
    ) {
        let Some(since) = self.told.0.remove(&id) else { return };
        if self.told.0.is_empty() {
            self.told.0.shrink_to_fit();
        }
        let Some(notices) = self.bus.notices().filter(|notices| notices.wants(Kind::Disconnected)) else {
            return;
        };
        let bytes = namespace.as_ref().map_or(0, CompactString::len);
        self.leave_notice(notices, Kind::Disconnected, bytes, || What::Disconnected {
            who: self.who(slot, id, namespace),
            reason: Ending::LABELS[ending.index()],
            code: self.close_code.filter(|(other, _)| *other == slot).map(|(_, code)| code),
            duration_ms: self.turn.now().since_ns(since) / 1_000_000,
        });
    }

    fn leave_notice(&self, notices: &Notices, kind: Kind, text_bytes: usize, make: impl FnOnce() -> What) {
        notices.leave(self.id, kind, text_bytes, self.turn.now(), make);
    }

    fn who(&self, slot: Slot, id: SocketId, namespace: Option<CompactString>) -> Who {
        let conn = &self.conns[slot as usize];
        // Of a connection that is over, the framing still says what it spoke.
        let dialect = conn.dialect().or(conn.framing).map_or("", Dialect::name);
        Who { id, dialect, namespace, user: self.users.of(slot).map(|user| user.name.as_str().into()) }
    }

    /// The id of a connection that is no Socket.IO session.
    fn own_id(&self, slot: Slot) -> SocketId {
        self.bus.id_of(ConnId { shard: self.id, slot, stamp: self.conns[slot as usize].stamp })
    }
}
