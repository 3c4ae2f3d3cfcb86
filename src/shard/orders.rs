//! What is to be done to sockets on behalf of others: servers elsewhere that have them join, leave or go, or want to know of them.

use super::conn::Stage;
use super::{Shard, WORK_MAX};
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::outside::{ANYWHERE, Deed, FOUND_BYTES_MAX, Found, Order, Outgoing};
use crate::dialect::socketio;
use crate::message::{Slot, write_socket_id};
use crate::stats::Ending;
use crate::time::Time;
use crate::wire::close::CloseCode;
use std::borrow::Cow;

/// An order that has been begun. It may take several turns.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// Who was meant when it began and has not been looked at, with their stamps. The last is the next.
    left: Vec<(Slot, u32)>,
    /// What is to be told, and its bytes; `None` when it is more than [`FOUND_BYTES_MAX`].
    found: Option<Vec<Found>>,
    found_bytes: usize,
}

impl UnderWay {
    /// The connection with this stamp has moved.
    pub(super) fn moved(&mut self, stamp: u32, to: Slot) {
        let own = self.left.iter_mut().filter(|(_, meant)| *meant == stamp);
        own.for_each(|(slot, _)| *slot = to);
    }
}

impl Shard {
    /// Carries out an order for those of the sockets that are here, or goes on with it when it is the one that is under way. True when that
    /// was all; otherwise enough was done in this turn.
    pub(super) fn carry_out(&mut self, order: &Order, now: Time) -> bool {
        let mut under_way = self.under_way.take().unwrap_or_else(|| self.begin(order));
        while let Some((slot, stamp)) = under_way.left.pop() {
            self.work_done += 1;
            if self.conns.get(slot as usize).is_some_and(|conn| conn.stamp == stamp)
                && self.is_in(slot, &order.namespace)
            {
                self.do_to(slot, order, &mut under_way, now);
            }
            if !under_way.left.is_empty() && (self.work_done >= WORK_MAX || self.is_spent()) {
                self.under_way = Some(under_way);
                return false;
            }
        }
        if let (Deed::Find(number), Some(outside)) = (&order.deed, self.bus.outside()) {
            outside.push(Outgoing::Found { number: *number, sockets: under_way.found });
            outside.ring();
        }
        true
    }

    fn begin(&mut self, order: &Order) -> UnderWay {
        self.revoke_verdicts(order);
        let Order { namespace, audience, .. } = order;
        let of_rooms = audience.rooms.iter().map(|(room, _)| room).chain(&audience.except);
        let looked_at: usize = of_rooms.map(|room| 1 + self.rooms.members(*room).len()).sum();
        // To find out who is meant takes little for each.
        self.work_done += 1 + looked_at / 16;
        let stamped = |(slot, _): (Slot, usize)| (slot, self.conns[slot as usize].stamp);
        let left = self.recipients(audience, namespace).into_iter().rev().map(stamped).collect();
        UnderWay { left, found: Some(Vec::new()), found_bytes: 0 }
    }

    /// True for an open connection in this namespace, or [anywhere](ANYWHERE).
    pub(super) fn is_in(&self, slot: Slot, namespace: &str) -> bool {
        let Some(conn) = self.conns.get(slot as usize).filter(|conn| conn.is_open()) else { return false };
        if namespace == ANYWHERE {
            return true;
        }
        let session = conn.session.as_ref();
        session.is_some_and(|session| session.joined(namespace).is_some())
            || (namespace == "/" && self.is_native(slot))
    }

    fn do_to(&mut self, slot: Slot, order: &Order, under_way: &mut UnderWay, now: Time) {
        let namespace = &order.namespace;
        self.work_done += match &order.deed {
            Deed::Join(rooms) | Deed::Leave(rooms) => rooms.len(),
            Deed::Disconnect { .. } | Deed::Close { .. } | Deed::Find(_) => {
                self.conns[slot as usize].memberships.len()
            }
        };
        match &order.deed {
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
                self.leave_namespace(slot, namespace, Ending::Server);
                if *close {
                    self.close(slot, CloseCode::Normal, "", Ending::Server, now);
                }
            }
            Deed::Close { code, reason } => {
                self.dismiss(slot, *code, reason, now);
            }
            Deed::Find(_) => {
                let Some(found) = self.tell_of(slot, namespace) else { return };
                under_way.found_bytes += found.size();
                if under_way.found_bytes <= FOUND_BYTES_MAX {
                    under_way.found.get_or_insert_default().push(found);
                } else {
                    under_way.found = None;
                    under_way.left.clear();
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Gate, Rules};
    use crate::bus::Bus;
    use crate::config::Config;
    use crate::dialect::Dialect;
    use crate::message::Draft;
    use crate::server;
    use crate::shard::conn::Conn;
    use crate::stats::Stats;
    use std::sync::Arc;

    const MEMBERS: usize = 20_000;

    /// A shard with native clients in the room `all`.
    fn crowd() -> (Shard, Arc<Bus>) {
        let bus = Arc::new(Bus::new(1, 100));
        let settings = server::settings(&Config::default(), 1, MEMBERS);
        let gate = Arc::new(Gate::new(Rules::default()));
        let mut shard = Shard::new(0, settings, bus.clone(), gate, Arc::new(Stats::new(1)), Time::default());
        for stamp in 0..MEMBERS as u32 {
            let mut conn = Conn::new(stamp, Default::default(), Time::default());
            conn.stage = Stage::Open(Dialect::Native);
            let slot = shard.conns.insert(conn) as Slot;
            shard.join(slot, &["all".into()]).expect("there is room");
        }
        shard.slots = MEMBERS;
        (shard, bus)
    }

    fn members(shard: &Shard, room: &str) -> usize {
        shard.bus.find(room).map_or(0, |room| shard.rooms.members(room).len())
    }

    fn turn(shard: &mut Shard) {
        shard.begin_turn(Time::default());
        shard.deliver(Time::default());
    }

    #[test]
    fn a_long_order_takes_several_turns_and_what_came_later_waits() {
        let (mut shard, bus) = crowd();
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        bus.order("/", &["all"], &[], Deed::Join(names(&["a", "b"]))).expect("there is room");
        bus.order("/", &["all"], &[], Deed::Leave(names(&["all"]))).expect("there is room");
        bus.publish(&Draft::new("b", "e", b"1", Time::default())).expect("nobody hears it");
        turn(&mut shard);
        let joined = members(&shard, "a");
        // Each is looked at and joins two rooms; to find them has taken some of the turn.
        assert!((WORK_MAX / 3 - MEMBERS / 32..=WORK_MAX / 3 + 1).contains(&joined), "{joined}");
        assert_eq!((members(&shard, "b"), members(&shard, "all")), (joined, MEMBERS));
        turn(&mut shard);
        assert!(members(&shard, "a") > joined, "it goes on");

        // Another connection has the place of the next one.
        let next = shard.under_way.as_ref().and_then(|it| it.left.last()).expect("it takes longer").0;
        shard.conns[next as usize].stamp = u32::MAX;
        let turns = (0..100).take_while(|_| {
            let has_mail = shard.has_mail();
            turn(&mut shard);
            has_mail
        });
        assert!((4..8).contains(&turns.count()), "of {}", MEMBERS * 5 / WORK_MAX);
        assert!(shard.under_way.is_none() && !shard.has_mail());
        assert_eq!(members(&shard, "a"), MEMBERS - 1, "it was not meant");
        assert_eq!(members(&shard, "all"), 0, "by the second it was");
    }

    #[test]
    fn an_order_follows_who_moves() {
        let mut under_way = UnderWay { left: vec![(1, 10), (2, 20)], found: None, found_bytes: 0 };
        under_way.moved(20, 7);
        under_way.moved(30, 8);
        assert_eq!(under_way.left, [(1, 10), (7, 20)]);
    }
}
