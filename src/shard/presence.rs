//! Who is in a room, as clients ask for it: members are told, when the answer is there.

use super::asks::Asker;
use super::conn::Stage;
use super::{OVERLOAD_RETRY_MS, Shard};
use crate::bus::directory::namespace_of;
use crate::bus::presence::{self, Asked, Attendance, Question, Told};
use crate::dialect::native::{self, Code, Refusal};
use crate::message::{ConnId, RoomId, Slot, write_socket_id};
use crate::permissions::Act;
use crate::time::Time;
use crate::wire::frame::Opcode;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Clients of one shard that may wait for an answer at a time. Who asks beyond that is refused.
const WAITING_MAX: usize = 65_536;
/// How many answers one client may wait for, likewise.
const WAITING_PER_CONNECTION_MAX: usize = 64;

/// Who waits for an answer on one shard. Bounded by [`WAITING_MAX`]; each answer comes, since whoever has to tell has a time for it.
#[derive(Debug, Default)]
pub struct Waiting {
    /// By the number of the question. Who has left meanwhile is still in it.
    askers: HashMap<u64, Vec<Asker>>,
    /// How many answers each connection waits for, by its stamp; those that wait for none are not in it.
    of_connection: HashMap<u32, usize>,
    count: usize,
}

impl Waiting {
    fn has_place(&self, stamp: u32) -> bool {
        let own = self.of_connection.get(&stamp).copied().unwrap_or_default();
        self.count < WAITING_MAX && own < WAITING_PER_CONNECTION_MAX
    }

    fn add(&mut self, number: u64, asker: Asker) {
        self.count += 1;
        *self.of_connection.entry(asker.stamp).or_default() += 1;
        self.askers.entry(number).or_default().push(asker);
    }

    /// Takes one of those who wait for the answer with this number.
    fn take(&mut self, number: u64) -> Option<Asker> {
        let Entry::Occupied(mut askers) = self.askers.entry(number) else { return None };
        let Some(asker) = askers.get_mut().pop() else {
            askers.remove();
            return None;
        };
        self.count -= 1;
        if let Entry::Occupied(mut own) = self.of_connection.entry(asker.stamp) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
        Some(asker)
    }

    /// The connection with this stamp has moved.
    pub(super) fn moved(&mut self, stamp: u32, to: Slot) {
        if self.of_connection.contains_key(&stamp) {
            let own = self.askers.values_mut().flatten().filter(|asker| asker.stamp == stamp);
            own.for_each(|asker| asker.slot = to);
        }
    }
}

impl Shard {
    /// A client wants to know who is in a room, which is called as the directory calls it. The answer goes to its message `id`, now or
    /// later.
    ///
    /// # Errors
    /// When it is no member of the room, or too much is asked.
    pub(super) fn ask_presence(
        &mut self,
        slot: Slot,
        namespace: Option<&str>,
        question: &Question,
        id: &str,
        now: Time,
    ) -> Result<(), Refusal<'static>> {
        if let Some(refusal) = self.forbid(slot, &[question.room.as_str().into()], Act::Presence) {
            return Err(refusal);
        }
        let room = self.bus.find(&question.room);
        if !room.is_some_and(|room| self.rooms.has(&self.conns, slot, room)) {
            return Err(Refusal::new(Code::NotMember, "only its members may know who is in a room"));
        }
        let stamp = self.conns[slot as usize].stamp;
        // Such answers may be long, and many can be asked for in one frame.
        let may_be_long = question.who || self.bus.outside().is_some();
        if may_be_long && (self.turn.is_half_full() || !self.waiting.has_place(stamp)) {
            return Err(refuse_overload());
        }
        let asker = presence::Asker::Shard(self.id);
        let asked = self.bus.ask_presence(question, asker, now).map_err(|_| refuse_overload())?;
        match asked {
            Asked::Known(attendance) => self.say_presence(slot, namespace, id, &attendance, now),
            Asked::Waits(number) => {
                let namespace = namespace.map(str::to_owned);
                self.waiting.add(number, Asker { slot, stamp, namespace, id: id.to_owned() });
            }
        }
        Ok(())
    }

    /// Tells who of this shard is in a room, as many as an answer lists.
    pub(super) fn tell_who(&mut self, number: u64, room: RoomId) {
        let name = self.bus.name(room);
        let namespace = name.as_deref().map_or("/", namespace_of);
        let members = self.rooms.members(room).iter().filter_map(|member| {
            let conn = &self.conns[member.slot as usize];
            let id = match (conn.stage, &conn.session) {
                (Stage::Ghost, _) => return None,
                (_, Some(session)) => session.joined(namespace)?.sid,
                (_, None) => self.bus.id_of(ConnId { shard: self.id, slot: member.slot, stamp: conn.stamp }),
            };
            let user = self.users.of(member.slot).map(|user| user.name.as_str().into());
            Some(Told { id: write_socket_id(&id).into(), user })
        });
        let told: Vec<Told> = members.take(self.bus.presence().settings.listed_max).collect();
        self.work_done += told.len();
        self.bus.tell_presence(number, told);
    }

    /// The answer to a question has come. Tells those who wait for it, as many as there is room for in this turn; true when that was all.
    pub(super) fn note_presence(&mut self, number: u64, attendance: &Attendance, now: Time) -> bool {
        while !self.is_spent() {
            let Some(Asker { slot, stamp, namespace, id }) = self.waiting.take(number) else { return true };
            let is_there = |conn: &super::Conn| conn.stamp == stamp && conn.is_open();
            if self.conns.get(slot as usize).is_some_and(is_there) {
                self.say_presence(slot, namespace.as_deref(), &id, attendance, now);
            }
        }
        false
    }

    fn say_presence(
        &mut self,
        slot: Slot,
        namespace: Option<&str>,
        id: &str,
        attendance: &Attendance,
        now: Time,
    ) {
        let age_ms = attendance.age_ms(now);
        let fields = attendance.fields();
        let Some(namespace) = namespace else {
            debug_assert!(self.is_direct(slot));
            let write = |out: &mut Vec<u8>| native::encode_presence(out, id, fields, age_ms);
            return self.reply(slot, Opcode::Text, write);
        };
        // It may have left the namespace meanwhile.
        let session = self.conns[slot as usize].session.as_ref();
        if session.is_some_and(|session| session.joined(namespace).is_some()) {
            let args = format!(r#"{{{fields},"age_ms":{age_ms}}}"#);
            self.say_ack(slot, namespace, id, &args, &[]);
        }
    }
}

fn refuse_overload() -> Refusal<'static> {
    Refusal::new(Code::Overloaded, "too many questions wait for answers").with_retry(OVERLOAD_RETRY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(stamp: u32) -> Asker {
        Asker { slot: stamp, stamp, namespace: None, id: "1".to_owned() }
    }

    #[test]
    fn a_connection_waits_for_some_answers_and_is_told_where_it_has_moved() {
        let mut waiting = Waiting::default();
        for number in 0..WAITING_PER_CONNECTION_MAX as u64 {
            assert!(waiting.has_place(5));
            waiting.add(number, asker(5));
        }
        assert!(!waiting.has_place(5) && waiting.has_place(6));
        waiting.add(0, asker(6));
        waiting.moved(5, 70);
        let told: Vec<(u32, Slot)> =
            std::iter::from_fn(|| waiting.take(0)).map(|asker| (asker.stamp, asker.slot)).collect();
        assert_eq!(told, [(6, 6), (5, 70)]);
        assert!(waiting.has_place(5));
        (1..WAITING_PER_CONNECTION_MAX as u64).for_each(|number| drop(waiting.take(number)));
        assert!((1..WAITING_PER_CONNECTION_MAX as u64).all(|number| waiting.take(number).is_none()));
        assert!(waiting.askers.is_empty() && waiting.of_connection.is_empty() && waiting.count == 0);
    }

    #[test]
    fn a_shard_holds_no_more_than_it_says() {
        let mut waiting = Waiting::default();
        for stamp in 0..WAITING_MAX as u32 {
            waiting.add(1, asker(stamp));
        }
        assert!(!waiting.has_place(u32::MAX));
        waiting.take(1);
        assert!(waiting.has_place(u32::MAX));
    }
}
