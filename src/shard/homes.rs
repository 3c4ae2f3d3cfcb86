//! Rooms with a policy: what the shard does for those that have their home here, and what it gives members of what leaves other homes.
//!
//! An event for such a room comes to its home by the mailbox, in the order in which all shards would have got it. What leaves goes to the
//! shards with members like any publication, several events as one [`Bundle`](crate::message::Bundle): it is made once for the process and encoded once for each
//! shard and encoding.

use super::conn::{Conn, Stage};
use super::outbox::Outbox;
use super::turn::Turn;
use super::{CLOSE_TIMEOUT_MS, Encoding, Shard};
use crate::bus::directory::namespace_of;
use crate::bus::mailbox::{Joined, Mail};
use crate::message::{Audience, ConnId, Publication, RoomId, Slot};
use crate::policy::Burst;
use crate::policy::homes::Counts;
use crate::stats::Ending;
use crate::time::Time;
use crate::wire::close::{self, CloseCode};
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

impl Shard {
    /// An event has come for a room that has its home here.
    pub(super) fn take_in(&mut self, publication: Arc<Publication>, policy: u16, now: Time) {
        // Who has joined before this is told what was known then, and not what may leave now once more.
        self.tell_states(now);
        let Some(homes) = &mut self.homes else { return };
        let mut out = Vec::new();
        homes.take(publication, policy, now, &mut out);
        self.let_out(out);
        self.work_done += 1;
    }

    /// An event that is the state of a room which has its home here has gone straight to the room's members.
    pub(super) fn note_passed(&mut self, room: &str, publication: &Publication) {
        if let Some(homes) = &mut self.homes {
            homes.note_passed(room, publication);
        }
    }

    /// Time has come this far: what has waited long enough leaves, and those who have joined are told the state of their rooms.
    pub(super) fn tend_homes(&mut self, now: Time) {
        self.tell_states(now);
        let Some(homes) = &mut self.homes else { return };
        let mut out = Vec::new();
        homes.flush_due(now, &mut out);
        let bus = &self.bus;
        homes.sweep(now, |room| bus.look_up(room).is_some_and(|(_, _, members)| members > 0));
        self.let_out(out);
    }

    /// When [`Shard::tend_homes`] has something to do next.
    pub(super) fn next_of_homes(&self) -> Option<Time> {
        self.homes.as_ref().and_then(|homes| homes.next_due())
    }

    /// All that waits leaves, and nothing waits any more: the server is about to end.
    pub(super) fn open_homes(&mut self, now: Time) {
        let Some(homes) = &mut self.homes else { return };
        let mut out = Vec::new();
        homes.open(now, &mut out);
        self.let_out(out);
        self.bus.note_open_homes();
    }

    /// True when what waited in all homes has been delivered here, so that connections may be closed.
    pub(super) fn has_all_that_waited(&mut self) -> bool {
        let Some(drain) = self.drain.as_mut().filter(|_| self.homes.is_some()) else { return true };
        if drain.mail_awaited.is_none() && self.bus.are_homes_open() {
            let mail = self.mail.len() + self.bus.mailbox(self.id).len();
            drain.mail_awaited = Some(self.mail_taken + mail as u64);
        }
        drain.mail_awaited.is_some_and(|awaited| self.mail_taken >= awaited)
    }

    /// A connection has joined a room: if its state is known, it is told by the room's home.
    pub(super) fn ask_for_state(&mut self, slot: Slot, room: &str, is_first: bool) {
        let id = || self.id_in(slot, namespace_of(room));
        let joined = || Joined { room: room.into(), shard: self.id, id: id(), at: self.turn.now(), is_first };
        if let Some(home) = self.bus.tell_home(joined, room)
            && home != self.id
        {
            self.bells.insert(home);
        }
    }

    /// Somebody has joined a room that has its home here.
    pub(super) fn note_joined_room(&mut self, joined: Joined) {
        if joined.is_first
            && self.bus.outside().is_some()
            && let Some(homes) = &mut self.homes
        {
            // While nobody was there, nothing was heard of what other processes published.
            homes.forget_before(&joined.room, joined.at);
        }
        self.joined.push(joined);
    }

    /// Tells those who have joined since the last time, each room's state in one piece for each shard.
    fn tell_states(&mut self, now: Time) {
        let Some(homes) = self.homes.as_ref().filter(|_| !self.joined.is_empty()) else { return };
        let mut joined = std::mem::take(&mut self.joined);
        joined.sort_unstable_by(|a, b| (&a.room, a.shard).cmp(&(&b.room, b.shard)));
        for those in joined.chunk_by(|a, b| (&a.room, a.shard) == (&b.room, b.shard)) {
            let Some(Joined { room, shard, .. }) = those.first() else { continue };
            let Some(mut whole) = homes.whole(room, now) else { continue };
            let sockets = those.iter().map(|joined| joined.id).collect();
            let special = whole.special.get_or_insert_default();
            special.audience = Some(Audience { sockets, ..Audience::default() });
            special.of_room = true;
            // Whatever the bound of its mailbox: a shard whose mailbox is full reads no more joins.
            self.bus.post(*shard, Mail::Publication(Arc::new(whole)));
        }
    }

    fn let_out(&mut self, mut out: Vec<Arc<Publication>>) {
        for of_room in out.chunk_by_mut(|a, b| a.room_name() == b.room_name()) {
            self.bells.extend(self.bus.let_out(of_room));
        }
        self.bells.remove(self.id);
    }

    /// Counts what has happened in the homes, once a turn.
    pub(super) fn count_homes(&mut self) {
        let Some(homes) = &mut self.homes else { return };
        let Counts { taken, duplicates, conflated, unchanged, stateless, sent, bundles, early, forgotten } =
            homes.take_counts();
        let stats = &self.stats.shards[usize::from(self.id)];
        for (counter, count) in [
            (&stats.policy_events, taken),
            (&stats.policy_left_out[0], duplicates),
            (&stats.policy_left_out[1], conflated),
            (&stats.policy_left_out[2], unchanged),
            (&stats.policy_stateless, stateless),
            (&stats.policy_sent, sent),
            (&stats.policy_bundles, bundles),
            (&stats.policy_early, early),
            (&stats.policy_forgotten, forgotten),
        ] {
            counter.add(count);
        }
        stats.room_states.set(homes.states() as u64);
        stats.room_states_bytes.set(homes.states_bytes() as u64);
        stats.dedupe_ids.set(homes.ids() as u64);
        stats.policy_waiting_bytes.set(homes.waiting_bytes() as u64);
    }

    /// Gives several events that leave as one to the members of their room. Who has published some of them gets the others.
    pub(super) fn fan_out_bundle(&mut self, publication: &Arc<Publication>) {
        let Some(bundle) = publication.as_bundle() else { return };
        self.remember(publication);
        let offset = self.offset(self.history.end());
        self.published.push(publication.published_at);
        let burst = self.burst_of(publication.room_name());
        let coding = self.coding_of(publication);
        let Shard { id, rooms, conns, turn, .. } = self;
        let members = rooms.members(publication.room);
        let size = publication.size() * members.len();
        // A bit for each stamp that may be a publisher's: most members are told apart by it.
        let senders = bundle.items.iter().filter_map(|item| item.except.filter(|it| it.shard == *id));
        let mask = senders.fold(0_u64, |mask, sender| mask | 1 << (sender.stamp & 63));
        let mut frames: [Option<Range<u32>>; Encoding::COUNT] = Default::default();
        // Most members speak what the one before them does.
        let (mut encoding, mut whole) = (None, 0..0);
        let mut slow: SmallVec<[Slot; 8]> = SmallVec::new();
        let mut deliveries = 0;
        for member in members {
            let conn = &mut conns[member.slot as usize];
            if conn.muted {
                // A ghost, or somebody who is on the way back.
                let recovering = conn.session.as_mut().and_then(|session| session.recovering.as_mut());
                let is_held = recovering
                    .is_some_and(|it| it.hold(publication.room_name(), std::slice::from_ref(publication)));
                if conn.stage == Stage::Ghost || is_held {
                    continue;
                }
            }
            if burst.is_some_and(|burst| is_over(conn, burst)) {
                slow.push(member.slot);
                continue;
            }
            let encode = |encoding: Encoding, turn: &mut Turn, own| {
                encoding.encode_bundle(turn, (publication, coding), bundle, own, offset.as_deref())
            };
            let own = ConnId { shard: *id, slot: member.slot, stamp: conn.stamp };
            if mask >> (conn.stamp & 63) & 1 != 0 && bundle.items_for(Some(own)).count() < bundle.items.len()
            {
                if let Some(frame) = encode(Encoding::of(conn), turn, Some(own)) {
                    turn.give(conn, member.slot, &frame, true);
                    deliveries += 1;
                }
                continue;
            }
            if encoding != Some(Encoding::of(conn)) {
                let now = Encoding::of(conn);
                let frame = &mut frames[now as usize];
                if frame.is_none() {
                    *frame = encode(now, turn, None);
                }
                (encoding, whole) = (Some(now), frame.clone().unwrap_or_default());
            }
            turn.give(conn, member.slot, &whole, true);
            deliveries += 1;
        }
        self.fanned_bytes += size;
        let stats = self.stats();
        stats.deliveries.add(deliveries);
        stats.frames_out.add(deliveries);
        self.leave_out(&slow, 1, burst);
    }

    /// How much of what is published to a room may wait for a slow member, if that is bounded.
    #[inline]
    pub(super) fn burst_of(&self, room: &str) -> Option<Burst> {
        self.bus.policy(room).and_then(|(_, policy)| policy.burst)
    }

    /// So many messages are not given to these members, for which too much waits.
    pub(super) fn leave_out(&mut self, slow: &[Slot], messages: u64, burst: Option<Burst>) {
        for slot in slow {
            let Some(conn) = self.conns.get_mut(*slot as usize) else { continue };
            if burst.is_some_and(|burst| burst.disconnects) {
                self.end_slow(*slot);
            } else if let Some(outbox) = &mut conn.outbox {
                outbox.dropped += messages;
                self.stats().drops.add(messages);
            }
        }
    }

    /// Members of a room for which too much waits are set apart until [`Shard::unmute`].
    pub(super) fn mute_slow(&mut self, room: RoomId, burst: Burst) -> Vec<Slot> {
        let Shard { rooms, conns, .. } = self;
        let mut slow = Vec::new();
        for member in rooms.members(room) {
            let conn = &mut conns[member.slot as usize];
            if is_over(conn, burst) && !conn.muted {
                conn.muted = true;
                slow.push(member.slot);
            }
        }
        slow
    }

    /// See [`Shard::mute_slow`].
    pub(super) fn unmute(&mut self, slow: &[Slot]) {
        for slot in slow {
            if let Some(conn) = self.conns.get_mut(*slot as usize) {
                conn.muted = conn.is_apart();
            }
        }
    }

    /// Closes a connection that reads too slowly: the close follows what waits for it.
    fn end_slow(&mut self, slot: Slot) {
        let now = self.turn.now();
        // What it was given in this turn comes before the close.
        if self.conns.get(slot as usize).is_some_and(|conn| conn.is_open() && !conn.pending.is_none()) {
            self.absorb(slot, 0);
        }
        let Some(conn) = self.conns.get_mut(slot as usize).filter(|conn| conn.is_open()) else { return };
        if conn.has_socket {
            let frame = close::frame(CloseCode::Slow, "too much waits to be read");
            conn.outbox.get_or_insert_default().push_rest(&frame);
            self.stats().outbox_bytes.add(frame.len() as u64);
        }
        self.close_code = Some((slot, CloseCode::Slow.into()));
        self.end(slot, Ending::Slow);
        self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
    }
}

/// True when so much waits for a connection that an event is not put behind it.
pub(super) fn is_over(conn: &Conn, burst: Burst) -> bool {
    conn.outbox.as_deref().is_some_and(|outbox: &Outbox| outbox.len() >= burst.bytes)
}
