//! What is to be done to sockets on behalf of others: servers elsewhere that have them join, leave or go, or want to know of them.

use super::Shard;
use super::conn::Stage;
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::outside::{Deed, Found, Order, Outgoing};
use crate::dialect::socketio;
use crate::message::{Slot, write_socket_id};
use crate::stats::Ending;
use crate::time::Time;
use crate::wire::close::CloseCode;
use std::borrow::Cow;

impl Shard {
    /// Carries out an order, for those of the sockets that are here.
    pub(super) fn carry_out(&mut self, order: &Order, now: Time) {
        let Order { namespace, audience, deed } = order;
        let is_there = |shard: &Shard, slot: Slot| {
            let conn = shard.conns.get(slot as usize);
            let session = conn.filter(|conn| conn.is_open()).and_then(|conn| conn.session.as_ref());
            session.is_some_and(|session| session.joined(namespace).is_some())
                || (namespace == "/" && shard.is_native(slot))
        };
        let slots: Vec<Slot> =
            self.recipients(audience, namespace).into_iter().map(|(slot, _)| slot).collect();
        let mut found = Vec::new();
        for slot in slots {
            if !is_there(self, slot) {
                continue;
            }
            match deed {
                Deed::Join(rooms) => {
                    let rooms: Vec<Cow<'_, str>> = rooms.iter().map(|room| room.as_str().into()).collect();
                    // A socket that would be in too many rooms joins none of these.
                    self.join(slot, &rooms).ok();
                }
                Deed::Leave(rooms) => {
                    for room in rooms.iter().filter_map(|room| self.bus.find(room)).collect::<Vec<_>>() {
                        self.leave(slot, room);
                    }
                }
                // A client of the native dialect is in one namespace and nowhere else.
                Deed::Disconnect { .. } if self.is_native(slot) => {
                    self.close(slot, CloseCode::Normal, "", Ending::Server, now);
                }
                Deed::Disconnect { close } => {
                    self.say_packet(slot, &[], |out, _| socketio::encode_disconnect(out, namespace));
                    self.leave_namespace(slot, namespace);
                    if *close {
                        self.close(slot, CloseCode::Normal, "", Ending::Server, now);
                    }
                }
                Deed::Close { code, reason } => self.dismiss(slot, *code, reason, now),
                Deed::Find(_) => found.extend(self.tell_of(slot, namespace)),
            }
        }
        if let (Deed::Find(number), Some(outside)) = (deed, self.bus.outside()) {
            outside.push(Outgoing::Found { number: *number, sockets: found });
            outside.ring();
        }
    }

    fn tell_of(&self, slot: Slot, namespace: &str) -> Option<Found> {
        let conn = &self.conns[slot as usize];
        debug_assert!(conn.stage != Stage::Ghost);
        let sid = conn.session.as_ref()?.joined(namespace)?.sid;
        let id = write_socket_id(&sid);
        let names = self.rooms.of(&self.conns, slot).into_iter().filter_map(|room| self.bus.name(room));
        let here = room_key(namespace, "");
        let rooms = names.filter(|name| namespace_of(name) == namespace && *name != here.as_ref());
        let own = std::iter::once(id.as_str().into());
        let rooms = own.chain(rooms.map(|name| room_of(&name).into()));
        Some(Found { address: conn.ip.to_string(), rooms: rooms.collect(), id })
    }
}
