//! The directory: every room of the process, with the shards that have members in it. The only state that shards share.
//!
//! Striped: a room's name decides which of 64 locks guards it. Joining, leaving and publishing each take one stripe for
//! some tens of nanoseconds.

use super::notices::Notices;
use super::outside::Outside;
use crate::message::{RoomId, ShardId, ShardSet};
use crate::rules::{Namespaces, Pattern};
use compact_str::CompactString;
use hashbrown::HashTable;
use slab::Slab;
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const STRIPES: usize = 64;
/// The low bits of a room's index are its stripe, the others its place there.
const STRIPE_BITS: u32 = STRIPES.trailing_zeros();

/// All rooms. Bounded by `rooms_max`: a join that would make one more is refused.
#[derive(Debug)]
pub struct Directory {
    stripes: Box<[Aligned]>,
    /// Names come from clients, so the hash is keyed: nobody can choose names that collide.
    hasher: RandomState,
    rooms: AtomicUsize,
    /// Rooms that stand for a namespace: their names end with [`NAMESPACE_END`].
    namespaces: AtomicUsize,
    /// Which of those there may be, and of each pattern, by its place, how many there are.
    allowed: Namespaces,
    by_pattern: Box<[AtomicUsize]>,
    rooms_max: usize,
    /// Where rooms that begin and end are told, when other processes are to know.
    outside: Option<Arc<Outside>>,
    /// Where rooms that are occupied and vacated are told, when the backend is to know.
    notices: Option<Arc<Notices>>,
}

/// The last letter of the name of a room that stands for a namespace; in names of its rooms it stands between the two.
pub const NAMESPACE_END: char = '\0';

/// There are as many as allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryFull {
    /// Of all rooms.
    Rooms,
    /// Of namespaces, in all or of one pattern.
    Namespaces,
}

/// Apart from its neighbours, so that two cores on two stripes do not share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Aligned(Mutex<Stripe>);

#[derive(Debug, Default)]
struct Stripe {
    /// Places in `rooms`, by the hash of their name: five bytes a room and no second copy of the name.
    index: HashTable<u32>,
    rooms: Slab<Room>,
    /// The stamp of the room made last.
    stamp: u32,
}

#[derive(Debug)]
struct Room {
    name: CompactString,
    /// True for a shard exactly when it has a member, or the ghost of one. A room without such a shard is forgotten.
    shards: ShardSet,
    /// Members on all shards, without ghosts.
    members: u32,
    stamp: NonZeroU32,
}

// The name, 16 bytes of shards, members and stamp: with its place in the index some 60 bytes a room.
const _: () = assert!(size_of::<Room>() == 48);

impl Directory {
    /// An empty directory.
    pub fn new(rooms_max: usize) -> Directory {
        Directory {
            stripes: (0..STRIPES).map(|_| Aligned::default()).collect(),
            hasher: RandomState::new(),
            rooms: AtomicUsize::new(0),
            namespaces: AtomicUsize::new(0),
            allowed: Namespaces::default(),
            by_pattern: Box::default(),
            rooms_max,
            outside: None,
            notices: None,
        }
    }

    /// See [`Bus::with_namespaces`](super::Bus::with_namespaces).
    pub fn with_namespaces(self, allowed: Namespaces) -> Directory {
        let by_pattern = allowed.iter().map(|_| AtomicUsize::new(0)).collect();
        Directory { allowed, by_pattern, ..self }
    }

    /// See [`Bus::with_outside`](super::Bus::with_outside).
    pub fn with_outside(self, outside: Arc<Outside>) -> Directory {
        Directory { outside: Some(outside), ..self }
    }

    /// See [`Bus::with_notices`](super::Bus::with_notices).
    pub fn with_notices(self, notices: Arc<Notices>) -> Directory {
        Directory { notices: Some(notices), ..self }
    }

    /// See [`Bus::enter`](super::Bus::enter) and [`Bus::enter_namespace`](super::Bus::enter_namespace).
    pub fn enter(
        &self,
        shard: ShardId,
        name: &str,
        namespaces_max: usize,
    ) -> Result<(RoomId, u32), DirectoryFull> {
        let (hash, number, mut stripe) = self.stripe(name);
        if let Some(at) = stripe.find(hash, name) {
            let room = &mut stripe.rooms[at as usize];
            let before = room.members;
            room.members += 1;
            room.shards.insert(shard);
            if before == 0 {
                self.tell(name, true);
            }
            return Ok((room_id(number, at, room.stamp), before));
        }
        // Counted before it is made, so that stripes racing for the last place cannot both have it.
        if self.rooms.fetch_add(1, Relaxed) >= self.rooms_max {
            self.rooms.fetch_sub(1, Relaxed);
            return Err(DirectoryFull::Rooms);
        }
        if let Err(full) = self.begin_namespace(name, namespaces_max) {
            self.rooms.fetch_sub(1, Relaxed);
            return Err(full);
        }
        let mut shards = ShardSet::default();
        shards.insert(shard);
        stripe.stamp = stripe.stamp.wrapping_add(1);
        let stamp = NonZeroU32::new(stripe.stamp).unwrap_or(NonZeroU32::MAX);
        let Stripe { index, rooms, .. } = &mut *stripe;
        let at = rooms.insert(Room { name: name.into(), shards, members: 1, stamp }) as u32;
        index.insert_unique(hash, at, |at| self.hasher.hash_one(rooms[*at as usize].name.as_str()));
        if let Some(outside) = &self.outside {
            // Inside the stripe, so that the last word is true.
            outside.note(name, true);
        }
        self.tell(name, true);
        Ok((room_id(number, at, stamp), 0))
    }

    /// See [`Bus::haunt`](super::Bus::haunt).
    pub fn haunt(&self, id: RoomId) {
        let mut stripe = self.lock(id.index as usize % STRIPES);
        if let Some(room) =
            stripe.rooms.get_mut((id.index >> STRIPE_BITS) as usize).filter(|it| it.stamp == id.stamp)
        {
            room.members -= 1;
            if room.members == 0 {
                self.tell(&room.name, false);
            }
        }
    }

    /// See [`Bus::exit`](super::Bus::exit); of a ghost when not `is_member`.
    pub fn exit(&self, shard: ShardId, id: RoomId, last_here: bool, is_member: bool) {
        let mut stripe = self.lock(id.index as usize % STRIPES);
        let at = id.index >> STRIPE_BITS;
        let Some(room) = stripe.rooms.get_mut(at as usize).filter(|room| room.stamp == id.stamp) else {
            debug_assert!(false, "a room is not forgotten while it has members");
            return;
        };
        room.members -= u32::from(is_member);
        if is_member && room.members == 0 {
            self.tell(&room.name, false);
        }
        if last_here {
            room.shards.remove(shard);
        }
        if room.shards.is_empty() {
            let hash = self.hasher.hash_one(room.name.as_str());
            let Stripe { index, rooms, .. } = &mut *stripe;
            if let Ok(entry) = index.find_entry(hash, |entry| *entry == at) {
                entry.remove();
            }
            let room = rooms.remove(at as usize);
            self.end_namespace(&room.name);
            self.rooms.fetch_sub(1, Relaxed);
            if let Some(outside) = &self.outside {
                outside.note(&room.name, false);
            }
            // A crowd that has left does not hold its memory for ever. Only an empty stripe shrinks, so a busy one never pays.
            if rooms.is_empty() {
                rooms.shrink_to_fit();
                index.shrink_to(0, |_| 0);
            }
        }
    }

    /// See [`Bus::name`](super::Bus::name).
    pub fn name(&self, id: RoomId) -> Option<CompactString> {
        let stripe = self.lock(id.index as usize % STRIPES);
        let room = stripe.rooms.get((id.index >> STRIPE_BITS) as usize).filter(|room| room.stamp == id.stamp);
        room.map(|room| room.name.clone())
    }

    /// See [`Bus::namespaces_by_pattern`](super::Bus::namespaces_by_pattern).
    pub fn namespaces_by_pattern(&self) -> impl Iterator<Item = (&Pattern, usize)> {
        let patterns = self.allowed.iter().map(|allowance| &allowance.pattern);
        patterns.zip(self.by_pattern.iter().map(|count| count.load(Relaxed)))
    }

    /// The id of the room `name`.
    pub fn find(&self, name: &str) -> Option<RoomId> {
        let (hash, number, stripe) = self.stripe(name);
        stripe.find(hash, name).map(|at| room_id(number, at, stripe.rooms[at as usize].stamp))
    }

    /// The id of the room `name`, its shards, and how many members it has.
    pub fn members(&self, name: &str) -> Option<(RoomId, ShardSet, u32)> {
        let (hash, number, stripe) = self.stripe(name);
        let at = stripe.find(hash, name)?;
        let room = &stripe.rooms[at as usize];
        Some((room_id(number, at, room.stamp), room.shards, room.members))
    }

    /// Calls `act` inside the stripe with the room's id and its shards, if there is such a room.
    pub fn with_room<R>(&self, name: &str, act: impl FnOnce(Option<(RoomId, ShardSet)>) -> R) -> R {
        let (hash, number, stripe) = self.stripe(name);
        act(stripe.find(hash, name).map(|at| {
            let room = &stripe.rooms[at as usize];
            (room_id(number, at, room.stamp), room.shards)
        }))
    }

    /// Calls `act` inside the stripes of all of `names`, with the id and the shards of each that is there.
    pub fn with_rooms<R>(&self, names: &[&str], act: impl FnOnce(&[Option<(RoomId, ShardSet)>]) -> R) -> R {
        let places: Vec<(u64, usize)> = names
            .iter()
            .map(|name| {
                let hash = self.hasher.hash_one(*name);
                (hash, stripe_of(hash))
            })
            .collect();
        // In ascending order, so that nobody waits for one who waits for him.
        let mut numbers: Vec<usize> = places.iter().map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let stripes: Vec<MutexGuard<'_, Stripe>> = numbers.iter().map(|number| self.lock(*number)).collect();
        let found: Vec<Option<(RoomId, ShardSet)>> = names
            .iter()
            .zip(places)
            .map(|(name, (hash, number))| {
                let stripe = &stripes[numbers.binary_search(&number).ok()?];
                let at = stripe.find(hash, name)?;
                let room = &stripe.rooms[at as usize];
                Some((room_id(number, at, room.stamp), room.shards))
            })
            .collect();
        act(&found)
    }

    /// Tells `each` the name and the members of rooms from a place on, as long as it answers true and at most `most` places have been
    /// looked at. Answers where to go on, or `None` at the end. Places begin at 0; a room keeps its own as long as it is there. Takes one
    /// stripe, for some nanoseconds a place.
    pub fn walk(&self, from: u64, most: u64, mut each: impl FnMut(&str, u32) -> bool) -> Option<u64> {
        let (number, start) = ((from >> 32) as usize, from & u64::from(u32::MAX));
        if number >= STRIPES {
            return None;
        }
        let stripe = self.lock(number);
        // A key is below the capacity, so beyond that is nobody.
        let end = (stripe.rooms.capacity() as u64).min(start + most);
        for at in start..end {
            let room = stripe.rooms.get(at as usize).filter(|room| room.members > 0);
            if room.is_some_and(|room| !each(&room.name, room.members)) {
                return Some((number as u64) << 32 | (at + 1));
            }
        }
        let is_stripe_done = end >= stripe.rooms.capacity() as u64;
        match (is_stripe_done, number + 1) {
            (false, _) => Some((number as u64) << 32 | end),
            (true, STRIPES) => None,
            (true, next) => Some((next as u64) << 32),
        }
    }

    /// Rooms now.
    pub fn rooms(&self) -> usize {
        self.rooms.load(Relaxed)
    }

    /// Tells that a room has its first member, or none any more: a ghost is none. Inside the stripe, like the above.
    fn tell(&self, name: &str, occupied: bool) {
        if let Some(notices) = &self.notices {
            notices.leave_room(name, occupied);
        }
    }

    /// Counts the namespace that a new room stands for, if it does, unless there are `namespaces_max` or as many as its pattern may
    /// have. Like rooms, they are counted first.
    fn begin_namespace(&self, room: &str, namespaces_max: usize) -> Result<(), DirectoryFull> {
        let Some(namespace) = room.strip_suffix(NAMESPACE_END) else { return Ok(()) };
        if self.namespaces.fetch_add(1, Relaxed) >= namespaces_max {
            self.namespaces.fetch_sub(1, Relaxed);
            return Err(DirectoryFull::Namespaces);
        }
        if let Some((place, allowance)) = self.allowed.find(namespace) {
            let count = &self.by_pattern[usize::from(place)];
            let most = allowance.namespaces_max.map_or(usize::MAX, |most| most as usize);
            if count.fetch_add(1, Relaxed) >= most {
                count.fetch_sub(1, Relaxed);
                self.namespaces.fetch_sub(1, Relaxed);
                return Err(DirectoryFull::Namespaces);
            }
        }
        Ok(())
    }

    fn end_namespace(&self, room: &str) {
        let Some(namespace) = room.strip_suffix(NAMESPACE_END) else { return };
        self.namespaces.fetch_sub(1, Relaxed);
        if let Some((place, _)) = self.allowed.find(namespace) {
            self.by_pattern[usize::from(place)].fetch_sub(1, Relaxed);
        }
    }

    fn stripe(&self, name: &str) -> (u64, usize, MutexGuard<'_, Stripe>) {
        let hash = self.hasher.hash_one(name);
        let number = stripe_of(hash);
        (hash, number, self.lock(number))
    }

    fn lock(&self, number: usize) -> MutexGuard<'_, Stripe> {
        // A panic inside a stripe ends the process, so a poisoned lock is only met on the way out.
        self.stripes[number].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stripe {
    fn find(&self, hash: u64, name: &str) -> Option<u32> {
        self.index.find(hash, |at| self.rooms[*at as usize].name == name).copied()
    }
}

/// The table uses the low bits and the top seven; the stripe takes some from between.
fn stripe_of(hash: u64) -> usize {
    (hash >> 40) as usize % STRIPES
}

fn room_id(stripe: usize, at: u32, stamp: NonZeroU32) -> RoomId {
    RoomId { index: at << STRIPE_BITS | stripe as u32, stamp }
}

/// What the directory calls a room of a namespace; with no `room`, all who are in the namespace.
pub fn room_key<'a>(namespace: &str, room: &'a str) -> Cow<'a, str> {
    if namespace == "/" && !room.is_empty() {
        room.into()
    } else {
        format!("{namespace}{NAMESPACE_END}{room}").into()
    }
}

/// The same for rooms with these names, which are not copied where that is their name in the directory.
pub fn room_keys<'a>(
    namespace: &str,
    rooms: impl IntoIterator<Item = Cow<'a, str>>,
) -> impl Iterator<Item = Cow<'a, str>> {
    rooms.into_iter().map(move |room| match room {
        Cow::Borrowed(room) => room_key(namespace, room),
        Cow::Owned(room) if namespace == "/" && !room.is_empty() => Cow::Owned(room),
        Cow::Owned(room) => Cow::Owned(room_key(namespace, &room).into_owned()),
    })
}

/// The name of a room within its namespace, by its name in the directory; empty for the room that stands for the namespace.
pub fn room_of(key: &str) -> &str {
    key.split_once(NAMESPACE_END).map_or(key, |(_, room)| room)
}

/// The namespace of a room, by its name in the directory.
pub fn namespace_of(key: &str) -> &str {
    key.split_once(NAMESPACE_END).map_or("/", |(namespace, _)| namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Allowance, Coding, Concerns};
    use std::collections::HashMap;

    #[test]
    fn it_agrees_with_a_plain_map() {
        let directory = Directory::new(1000);
        // For each room the members on each of three shards.
        let mut model: HashMap<String, [u32; 3]> = HashMap::new();
        let mut ids: HashMap<String, RoomId> = HashMap::new();
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let name = format!("room {}", random % 50);
            let shard = (random >> 16) as usize % 3;
            let members = model.entry(name.clone()).or_default();
            if (random >> 32) & 1 == 0 {
                let (id, before) = directory.enter(shard as u8, &name, usize::MAX).expect("there is room");
                assert_eq!(before, members.iter().sum::<u32>());
                assert_eq!(
                    *ids.entry(name.clone()).or_insert(id),
                    id,
                    "a room keeps its id while it has members"
                );
                members[shard] += 1;
            } else if members[shard] > 0 {
                members[shard] -= 1;
                directory.exit(shard as u8, ids[&name], members[shard] == 0, true);
                if members.iter().sum::<u32>() == 0 {
                    ids.remove(&name);
                }
            }
            assert_eq!(directory.find(&name), ids.get(&name).copied());
            let shards =
                directory.with_room(&name, |room| room.map_or(ShardSet::default(), |(_, shards)| shards));
            let expected: Vec<u8> = (0..3).filter(|shard| model[&name][usize::from(*shard)] > 0).collect();
            assert_eq!(shards.iter().collect::<Vec<_>>(), expected);
        }
        assert_eq!(directory.rooms(), ids.len());
    }

    #[test]
    fn a_walk_sees_every_room_that_stays() {
        let directory = Directory::new(1000);
        let enter = |name: &str| directory.enter(0, name, usize::MAX).expect("there is room").0;
        let ids: Vec<RoomId> = (0..500).map(|number| enter(&format!("room {number}"))).collect();
        let mut seen: HashMap<String, u32> = HashMap::new();
        let mut from = Some(0);
        let mut steps = 0;
        while let Some(place) = from {
            let mut left = 3;
            from = directory.walk(place, 5, |name, members| {
                seen.insert(name.to_owned(), members);
                left -= 1;
                left > 0
            });
            // Others come and go meanwhile.
            if steps < 100 {
                directory.exit(0, ids[steps], true, true);
            }
            steps += 1;
            assert!(steps < 10_000, "it goes on");
        }
        assert!((100..500).all(|number| seen.get(&format!("room {number}")) == Some(&1)));
        assert_eq!(directory.walk(u64::MAX, 5, |_, _| true), None);
    }

    #[test]
    fn the_bound_on_rooms_holds_and_frees() {
        let directory = Directory::new(2);
        let (one, _) = directory.enter(0, "one", usize::MAX).expect("there is room");
        directory.enter(0, "two", usize::MAX).expect("there is room");
        assert_eq!(directory.enter(0, "three", usize::MAX), Err(DirectoryFull::Rooms));
        directory.enter(1, "two", usize::MAX).expect("a room that is there takes more members");
        directory.exit(0, one, true, true);
        let (three, _) = directory.enter(0, "three", usize::MAX).expect("a place was freed");
        assert_ne!(three, one, "a new room is not taken for an old one");
    }

    #[test]
    fn namespaces_have_bounds_in_all_and_by_pattern() {
        let pattern = |text| Pattern::parse(text).expect("a pattern");
        let allowance = Allowance {
            pattern: pattern("/guild/*"),
            connections_max: None,
            namespaces_max: Some(2),
            backend: Concerns::default(),
            coding: Coding::default(),
        };
        let directory =
            Directory::new(10).with_namespaces(Namespaces::new(vec![pattern("/*")]).behind(vec![allowance]));
        let counts = || directory.namespaces_by_pattern().map(|(_, count)| count).collect::<Vec<_>>();
        let enter = |name| directory.enter(0, name, 4);
        let (one, _) = enter("/guild/1\0").expect("there is room");
        enter("/guild/2\0").expect("there is room");
        assert_eq!(enter("/guild/3\0"), Err(DirectoryFull::Namespaces), "of its pattern");
        assert_eq!(enter("/guild/2\0").map(|(_, before)| before), Ok(1), "one that is there takes more");
        enter("/guild/1\0hall").expect("its rooms are no namespaces");
        enter("/a\0").expect("there is room");
        enter("/b\0").expect("there is room");
        assert_eq!(enter("/c\0"), Err(DirectoryFull::Namespaces), "in all");
        assert_eq!((directory.rooms(), counts()), (5, vec![2, 2]));
        directory.haunt(one);
        assert_eq!(counts(), [2, 2], "it is kept for its ghost");
        directory.exit(0, one, true, false);
        assert_eq!(counts(), [1, 2]);
        enter("/guild/3\0").expect("a place was freed");
    }
}
