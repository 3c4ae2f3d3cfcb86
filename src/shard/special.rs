//! Publications that are not simply for the members of one room: for several rooms, for one socket, with binary values in them, volatile
//! ones, and those that ask.

use super::conn::{Conn, Stage};
use super::homes::is_over;
use super::{Encoding, Shard};
use crate::bus::directory::namespace_of;
use crate::dialect::Dialect;
use crate::message::{Audience, ConnId, Publication, Slot, SocketId};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

impl Shard {
    /// Gives a publication to those of its recipients that are here.
    pub(super) fn fan_out_special(&mut self, publication: &Arc<Publication>) {
        let Some(special) = publication.special.as_deref() else { return };
        let now = self.turn.now();
        let ask = special.ask.filter(|ask| ask.until > now);
        // What is lost is lost, and an answer could only come too late.
        let is_kept = !special.volatile && special.ask.is_none();
        if is_kept {
            self.remember(publication);
        }
        // One that is not kept has one as well: clients take a text that an event ends with for its offset. Not where they end it with
        // the function that answers.
        let offset = if ask.is_none() { self.offset(self.history.end()) } else { None };
        let recipients = match &special.audience {
            None => self.rooms.members(publication.room).iter().map(|member| (member.slot, 0)).collect(),
            Some(audience) => self.recipients(audience, namespace_of(publication.room_name())),
        };
        let coding = self.coding_of(publication);
        self.fanned_bytes += publication.size() * recipients.len();
        self.published.push(publication.published_at);
        let burst = special.audience.is_none().then(|| self.burst_of(publication.room_name())).flatten();
        let mut slow = Vec::new();
        let mut frames: [Option<Range<u32>>; Encoding::COUNT] = Default::default();
        let mut native_room = None;
        let mut stamps = HashSet::new();
        let (mut deliveries, mut dropped) = (0, 0);
        for (slot, room) in recipients {
            let conn = &mut self.conns[slot as usize];
            let own = ConnId { shard: self.id, slot, stamp: conn.stamp };
            if publication.is_from(own) {
                continue;
            }
            if conn.stage == Stage::Ghost {
                continue;
            }
            if let Some(recovering) = conn.session.as_mut().and_then(|session| session.recovering.as_mut()) {
                let held = if is_kept { std::slice::from_ref(publication) } else { &[] };
                if recovering.hold(publication.room_name(), held) {
                    continue;
                }
            }
            if special.volatile && !takes_at_once(conn) {
                dropped += 1;
                continue;
            }
            if burst.is_some_and(|burst| is_over(conn, burst)) {
                slow.push(slot);
                continue;
            }
            let encoding = Encoding::of(conn);
            let frame = match &mut frames[encoding as usize] {
                // The native dialect says which room an event is for, and there may be several.
                Some(frame) if encoding != Encoding::Native || native_room == Some(room) => frame,
                unset => {
                    if encoding == Encoding::Native {
                        native_room = Some(room);
                    }
                    let name = special.audience.as_ref().map_or(publication.room_name(), |audience| {
                        let own = if special.of_room { publication.room_name() } else { "" };
                        audience.rooms.get(room).map_or(own, |(_, name)| name.as_str())
                    });
                    let ask = ask.map(|ask| ask.number);
                    unset.insert(encoding.encode(
                        &mut self.turn,
                        (publication, coding),
                        name,
                        ask,
                        offset.as_deref(),
                    ))
                }
            };
            self.turn.give(conn, slot, frame, true);
            deliveries += 1;
            if ask.is_some() && conn.session.is_some() {
                stamps.insert(conn.stamp);
            }
        }
        if let Some(ask) = ask {
            self.asked(ask, stamps);
        }
        let stats = self.stats();
        stats.deliveries.add(deliveries);
        stats.frames_out.add(deliveries);
        stats.volatile_drops.add(dropped);
        self.leave_out(&slow, 1, burst);
    }

    /// The connections here that are meant, each once, with the first of the rooms that they are in. Those that take nothing now are among
    /// them.
    pub(super) fn recipients(&self, audience: &Audience, namespace: &str) -> Vec<(Slot, usize)> {
        if audience.rooms.is_empty() && audience.except.is_empty() && !audience.natives {
            // Sockets alone, most often one.
            let except: Vec<Slot> =
                audience.except_sockets.iter().filter_map(|socket| self.socket(socket, namespace)).collect();
            let sockets = audience.sockets.iter().filter_map(|socket| self.socket(socket, namespace));
            let users = audience.users.iter().flat_map(|user| self.connections_of(user, namespace));
            let mut slots: Vec<Slot> = sockets.chain(users).filter(|slot| !except.contains(slot)).collect();
            slots.sort_unstable();
            slots.dedup();
            return slots.into_iter().map(|slot| (slot, usize::MAX)).collect();
        }
        // A bit for each slot: a room of a million is gone through once, whatever the others hold.
        let mut seen = vec![0_u64; self.slots.div_ceil(64)];
        let mut is_new = |slot: Slot| {
            let (word, bit) = (&mut seen[slot as usize / 64], 1 << (slot % 64));
            let is_new = *word & bit == 0;
            *word |= bit;
            is_new
        };
        for room in &audience.except {
            for member in self.rooms.members(*room) {
                is_new(member.slot);
            }
        }
        for socket in &audience.except_sockets {
            self.socket(socket, namespace).map(&mut is_new);
        }
        let mut recipients = Vec::new();
        for (at, (room, _)) in audience.rooms.iter().enumerate() {
            let members = self.rooms.members(*room).iter().map(|member| member.slot);
            recipients.extend(members.filter(|slot| is_new(*slot)).map(|slot| (slot, at)));
        }
        if audience.natives {
            let natives =
                self.conns.iter().filter(|(_, conn)| conn.is_direct()).map(|(slot, _)| slot as Slot);
            recipients.extend(natives.filter(|slot| is_new(*slot)).map(|slot| (slot, usize::MAX)));
        }
        let sockets = audience.sockets.iter().filter_map(|socket| self.socket(socket, namespace));
        let users = audience.users.iter().flat_map(|user| self.connections_of(user, namespace));
        recipients.extend(sockets.chain(users).filter(|slot| is_new(*slot)).map(|slot| (slot, usize::MAX)));
        recipients
    }

    /// The connection with this id in a namespace, if it is here.
    fn socket(&self, id: &SocketId, namespace: &str) -> Option<Slot> {
        let socket = self.sockets.find(id).find(|slot| {
            let session = self.conns.get(*slot as usize).and_then(|conn| conn.session.as_ref());
            session.and_then(|session| session.joined(namespace)).is_some_and(|joined| joined.sid == *id)
        });
        socket.or_else(|| self.unnamed(id).filter(|slot| namespace == "/" && self.is_direct(*slot)))
    }
}

/// True when what is said to a connection now leaves now, as far as can be known.
fn takes_at_once(conn: &mut Conn) -> bool {
    let is_engine = matches!(conn.stage, Stage::Open(Dialect::SocketIo));
    if is_engine && !conn.has_socket {
        return conn
            .session
            .as_mut()
            .and_then(|session| session.polling())
            .is_some_and(|polling| polling.get.is_some());
    }
    !conn.blocked && conn.outbox.is_none()
}
