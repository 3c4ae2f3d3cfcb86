//! The rooms that have members on this shard, and who those are.
//!
//! A membership is two numbers on the room's side and two on the connection's, each pointing at the other, so that leaving
//! takes the same time in a room of two and in a room of a million.

use super::conn::Conn;
use crate::message::{RoomId, Slot};
use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

/// The rooms of one shard. As large as the memberships that its connections hold.
#[derive(Debug, Default)]
pub struct Rooms {
    /// Places in `rooms`, by the directory's index of the room.
    index: HashTable<u32>,
    rooms: Slab<Room>,
    memberships: usize,
}

/// A room as one shard sees it. A room of one or two needs no heap block.
#[derive(Debug)]
struct Room {
    id: RoomId,
    members: SmallVec<[Member; 2]>,
}

/// A room's side of a membership: `conns[slot].memberships[at]` is the other side.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The connection.
    pub slot: Slot,
    at: u32,
}

/// A connection's side of a membership: `rooms[room].members[at]` is the other side.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    room: u32,
    at: u32,
}

/// What leaving did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The room.
    pub room: RoomId,
    /// True when it has no member on this shard any more.
    pub last_here: bool,
}

// Both sides of a membership together: half of the 24 bytes that the design allows, the other half being room to grow.
const _: () = assert!(size_of::<Member>() + size_of::<Membership>() == 16);
// With the slab's own mark, which fits beside the room's stamp.
const _: () = assert!(size_of::<Option<Room>>() == 32);

impl Rooms {
    /// Makes `slot` a member of room `id`. False when it is one already.
    pub fn join(&mut self, conns: &mut Slab<Conn>, slot: Slot, id: RoomId) -> bool {
        let place = match self.place(id) {
            Some(place) if self.membership(conns, slot, place).is_some() => return false,
            Some(place) => place,
            None => {
                let place = self.rooms.insert(Room { id, members: SmallVec::new() }) as u32;
                let Rooms { index, rooms, .. } = self;
                index.insert_unique(hash(id), place, |place| hash(rooms[*place as usize].id));
                place
            }
        };
        let (room, conn) = (&mut self.rooms[place as usize], &mut conns[slot as usize]);
        let (member, membership) = (
            Member { slot, at: conn.memberships.len() as u32 },
            Membership { room: place, at: room.members.len() as u32 },
        );
        room.members.push(member);
        conn.memberships.push(membership);
        self.memberships += 1;
        true
    }

    /// Ends the membership of `slot` in room `id`, if there is one.
    pub fn leave(&mut self, conns: &mut Slab<Conn>, slot: Slot, id: RoomId) -> Option<Left> {
        let at = self.membership(conns, slot, self.place(id)?)?;
        Some(self.end(conns, slot, at))
    }

    /// Ends one of the memberships of `slot`, if it has any.
    pub fn leave_any(&mut self, conns: &mut Slab<Conn>, slot: Slot) -> Option<Left> {
        let at = conns[slot as usize].memberships.len().checked_sub(1)?;
        Some(self.end(conns, slot, at))
    }

    /// The rooms that `slot` is a member of.
    pub fn of(&self, conns: &Slab<Conn>, slot: Slot) -> Vec<RoomId> {
        let memberships = &conns[slot as usize].memberships;
        memberships.iter().map(|membership| self.rooms[membership.room as usize].id).collect()
    }

    /// Gives the memberships of one connection to another, which has none.
    pub fn rehome(&mut self, conns: &mut Slab<Conn>, from: Slot, to: Slot) {
        let memberships = std::mem::take(&mut conns[from as usize].memberships);
        for membership in &memberships {
            self.rooms[membership.room as usize].members[membership.at as usize].slot = to;
        }
        conns[to as usize].memberships = memberships;
    }

    /// True when `slot` is a member of room `id`.
    pub fn has(&self, conns: &Slab<Conn>, slot: Slot, id: RoomId) -> bool {
        self.place(id).is_some_and(|place| self.membership(conns, slot, place).is_some())
    }

    /// The members of room `id` on this shard.
    pub fn members(&self, id: RoomId) -> &[Member] {
        self.place(id).map_or(&[], |place| &self.rooms[place as usize].members)
    }

    /// Rooms with a member on this shard.
    pub fn count(&self) -> usize {
        self.rooms.len()
    }

    /// Memberships on this shard.
    pub fn memberships(&self) -> usize {
        self.memberships
    }

    fn place(&self, id: RoomId) -> Option<u32> {
        self.index.find(hash(id), |place| self.rooms[*place as usize].id == id).copied()
    }

    /// Which of the memberships of `slot` is that in the room at `place`. Looks along the shorter side.
    fn membership(&self, conns: &Slab<Conn>, slot: Slot, place: u32) -> Option<usize> {
        let memberships = &conns[slot as usize].memberships;
        let members = &self.rooms[place as usize].members;
        if memberships.len() <= members.len() {
            memberships.iter().position(|membership| membership.room == place)
        } else {
            members.iter().find(|member| member.slot == slot).map(|member| member.at as usize)
        }
    }

    fn end(&mut self, conns: &mut Slab<Conn>, slot: Slot, at: usize) -> Left {
        let conn = &mut conns[slot as usize];
        let ended = conn.memberships.swap_remove(at);
        // The membership that moved into its place is told to its room.
        if let Some(moved) = conn.memberships.get(at) {
            self.rooms[moved.room as usize].members[moved.at as usize].at = at as u32;
        }
        if conn.memberships.spilled() && conn.memberships.len() * 4 <= conn.memberships.capacity() {
            conn.memberships.shrink_to_fit();
        }
        let room = &mut self.rooms[ended.room as usize];
        room.members.swap_remove(ended.at as usize);
        // And the member that moved into its place to its connection.
        if let Some(moved) = room.members.get(ended.at as usize) {
            conns[moved.slot as usize].memberships[moved.at as usize].at = ended.at;
        }
        if room.members.spilled() && room.members.len() * 4 <= room.members.capacity() {
            // At a quarter, so that a crowd going in and out does not pay each time.
            room.members.shrink_to_fit();
        }
        self.memberships -= 1;
        let left = Left { room: room.id, last_here: room.members.is_empty() };
        if left.last_here {
            let Rooms { index, rooms, .. } = self;
            if let Ok(entry) = index.find_entry(hash(left.room), |place| *place == ended.room) {
                entry.remove();
            }
            rooms.remove(ended.room as usize);
            if rooms.is_empty() {
                rooms.shrink_to_fit();
                index.shrink_to(0, |_| 0);
            }
        }
        left
    }
}

/// The directory chooses the index, not a client: spreading its bits is all a hash has to do.
fn hash(id: RoomId) -> u64 {
    u64::from(id.index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;
    use std::collections::{BTreeMap, BTreeSet};
    use std::num::NonZeroU32;

    #[test]
    fn it_agrees_with_plain_sets() {
        let mut conns: Slab<Conn> = Slab::new();
        for stamp in 0..20 {
            conns.insert(Conn::new(stamp, Default::default(), Time::default()));
        }
        let mut rooms = Rooms::default();
        let mut model: BTreeMap<u32, BTreeSet<Slot>> = BTreeMap::new();
        let mut random = 0x0123_4567_89ab_cdef_u64;
        for step in 0..50_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (slot, room) = ((random % 20) as Slot, (random >> 8) as u32 % 15);
            let id = RoomId { index: room, stamp: NonZeroU32::MIN };
            let members = model.entry(room).or_default();
            match (random >> 32) % 5 {
                0 | 1 => assert_eq!(rooms.join(&mut conns, slot, id), members.insert(slot)),
                2 | 3 => {
                    let left = rooms.leave(&mut conns, slot, id);
                    assert_eq!(left.is_some(), members.remove(&slot));
                    assert!(left.is_none_or(|left| left.room == id && left.last_here == members.is_empty()));
                }
                _ if step % 50 == 0 => {
                    while let Some(left) = rooms.leave_any(&mut conns, slot) {
                        let members = model.get_mut(&left.room.index).expect("a room it was in");
                        assert!(members.remove(&slot));
                        assert_eq!(left.last_here, members.is_empty());
                    }
                    assert!(model.values().all(|members| !members.contains(&slot)));
                }
                _ => {}
            }
            let found: BTreeSet<Slot> = rooms.members(id).iter().map(|member| member.slot).collect();
            assert_eq!(&found, &model[&room]);
            assert_eq!(rooms.memberships(), model.values().map(BTreeSet::len).sum::<usize>());
            assert_eq!(rooms.count(), model.values().filter(|members| !members.is_empty()).count());
        }
        let stale = RoomId { index: 3, stamp: NonZeroU32::MAX };
        assert!(rooms.members(stale).is_empty(), "a room of another stamp is another room");
    }
}
