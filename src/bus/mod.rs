//! Between the cores: who has members in a room, and how a publication gets there.
//!
//! The bus is all that shards share. `publish` takes the room's stripe of the [`Directory`], and inside it pushes one
//! shared publication into the [`Mailbox`] of every shard that has members: so all shards see the events of one room in
//! one order.

pub mod callouts;
pub mod calls;
pub mod directory;
pub mod inquiry;
pub mod mailbox;
pub mod notices;
pub mod outside;
pub mod presence;

use crate::message::{
    Ask, Asker, Audience, ConnId, Draft, Publication, RoomId, SOCKET_ID_CHARS, ShardId, ShardSet, SocketId,
    read_socket_id, user_key, user_of,
};
use crate::policy::{Policies, Policy};
use crate::rules::{Namespaces, Pattern};
use crate::time::Time;
use crate::wire::close::CloseCode;
use callouts::{Callouts, Forget, TooManyWait, Whose};
use calls::Calls;
use compact_str::CompactString;
use directory::{Directory, DirectoryFull, NAMESPACE_END, namespace_of, room_of};
use mailbox::{Joined, Mail, Mailbox};
use notices::Notices;
use outside::{ANYWHERE, Deed, Names, Order, Outgoing, Outside};
use presence::{Answered, Asked, Call, Part, Presence, Put, Question, Told, TooManyQuestions};
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What connects the shards of one process.
#[derive(Debug)]
pub struct Bus {
    directory: Directory,
    mailboxes: Box<[Mailbox]>,
    /// What the ids of sockets are signed with, so that a room's name is not taken for one.
    key: RandomState,
    outside: Option<Arc<Outside>>,
    notices: Option<Arc<Notices>>,
    calls: Option<Arc<Calls>>,
    presence: Presence,
    callouts: Option<Arc<Callouts>>,
    /// What happens to events of some rooms, when there are any.
    policies: Option<Arc<Policies>>,
    /// Shards whose homes are open: nothing waits there any more.
    open_homes: AtomicUsize,
}

/// A mailbox on the way is full: nothing was published or ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

impl Bus {
    /// A bus for `shards` shards (at most [`SHARDS_MAX`](crate::message::SHARDS_MAX)) and at most `rooms_max` rooms.
    pub fn new(shards: usize, rooms_max: usize) -> Bus {
        assert!((1..=crate::message::SHARDS_MAX).contains(&shards), "a process has 1 to 128 shards");
        Bus {
            directory: Directory::new(rooms_max),
            mailboxes: (0..shards).map(|_| Mailbox::default()).collect(),
            key: RandomState::new(),
            outside: None,
            notices: None,
            calls: None,
            presence: Presence::default(),
            callouts: None,
            policies: None,
            open_homes: AtomicUsize::new(0),
        }
    }

    /// Signs an id that a shard has made: its last two bytes are overwritten.
    pub fn sign(&self, id: &mut SocketId) {
        let sum = self.sum(id);
        id[13..].copy_from_slice(&sum);
    }

    /// True for an id that was made in this process. One of 65,536 others is taken for such.
    pub fn is_own(&self, id: &SocketId) -> bool {
        id[13..] == self.sum(id) && usize::from(id[0]) < self.mailboxes.len()
    }

    /// The id by which others know a connection of the native dialect, for as long as it lives. Nothing is kept for that: it is made of
    /// where the connection is and signed, so no socket has it, and nobody can make one up.
    pub fn id_of(&self, conn: ConnId) -> SocketId {
        let ConnId { shard, slot, stamp } = conn;
        let mut id = SocketId::default();
        id[0] = shard;
        id[1..5].copy_from_slice(&slot.to_be_bytes());
        id[5..9].copy_from_slice(&stamp.to_be_bytes());
        let sum = self.key.hash_one((shard, slot, stamp)) as u32;
        id[9..13].copy_from_slice(&sum.to_be_bytes());
        self.sign(&mut id);
        id
    }

    /// The connection that [`Bus::id_of`] has given this id. It may have gone.
    pub fn conn_of(&self, id: &SocketId) -> Option<ConnId> {
        let word = |at: usize| u32::from_be_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
        let conn = ConnId { shard: id[0], slot: word(1), stamp: word(5) };
        (usize::from(conn.shard) < self.mailboxes.len() && self.id_of(conn) == *id).then_some(conn)
    }

    fn sum(&self, id: &SocketId) -> [u8; 2] {
        (self.key.hash_one(&id[..13]) as u16).to_be_bytes()
    }

    /// This bus, before it is used, with a way to other processes: what is published here goes there as well.
    pub fn with_outside(self, outside: Arc<Outside>) -> Bus {
        Bus { directory: self.directory.with_outside(outside.clone()), outside: Some(outside), ..self }
    }

    /// This bus, before it is used, with somebody who is told of connections and rooms.
    pub fn with_notices(self, notices: Arc<Notices>) -> Bus {
        Bus { directory: self.directory.with_notices(notices.clone()), notices: Some(notices), ..self }
    }

    /// This bus, before it is used, with a way to the backend.
    pub fn with_calls(self, calls: Arc<Calls>) -> Bus {
        Bus { calls: Some(calls), ..self }
    }

    /// This bus, before it is used, which counts namespaces by the patterns of `allowed` and keeps to their `namespaces_max`.
    pub fn with_namespaces(self, allowed: Namespaces) -> Bus {
        Bus { directory: self.directory.with_namespaces(allowed), ..self }
    }

    /// This bus, before it is used, which answers questions about who is in a room as `settings` say.
    pub fn with_presence(self, settings: presence::Settings) -> Bus {
        Bus { presence: Presence::new(settings), ..self }
    }

    /// This bus, before it is used, with a way to ask the backend who clients are.
    pub fn with_callouts(self, callouts: Arc<Callouts>) -> Bus {
        Bus { callouts: Some(callouts), ..self }
    }

    /// This bus, before it is used, with policies for rooms.
    pub fn with_policies(self, policies: Arc<Policies>) -> Bus {
        Bus { policies: Some(policies).filter(|policies| !policies.is_empty()), ..self }
    }

    /// Counts one more member of the room `name` on `shard`, making the room if there is none. Answers its id and how many
    /// members it had before.
    ///
    /// # Errors
    /// [`DirectoryFull`] when there would be more rooms than allowed.
    pub fn enter(&self, shard: ShardId, name: &str) -> Result<(RoomId, u32), DirectoryFull> {
        self.directory.enter(shard, name, usize::MAX)
    }

    /// The same for a room that stands for a namespace: its name ends with a NUL. A namespace begins when nobody is in it, and no
    /// ghost.
    ///
    /// # Errors
    /// [`DirectoryFull`] when there would be more rooms than allowed, or a namespace more than `namespaces_max` or than those of its
    /// pattern may be.
    pub fn enter_namespace(
        &self,
        shard: ShardId,
        name: &str,
        namespaces_max: usize,
    ) -> Result<(RoomId, u32), DirectoryFull> {
        self.directory.enter(shard, name, namespaces_max)
    }

    /// Counts one member less; `last_here` when it was the last one on `shard`. A room without members is forgotten.
    pub fn exit(&self, shard: ShardId, room: RoomId, last_here: bool) {
        self.directory.exit(shard, room, last_here, true);
    }

    /// Counts one member less, which stays on its shard as a ghost: what is published goes there as before.
    pub fn haunt(&self, room: RoomId) {
        self.directory.haunt(room);
    }

    /// A ghost is gone; `last_here` when it was the last one on `shard`, members included.
    pub fn exit_ghost(&self, shard: ShardId, room: RoomId, last_here: bool) {
        self.directory.exit(shard, room, last_here, false);
    }

    /// The id of the room `name`, if it has members anywhere.
    pub fn find(&self, name: &str) -> Option<RoomId> {
        self.directory.find(name)
    }

    /// The name of a room, if it has members anywhere.
    pub fn name(&self, room: RoomId) -> Option<CompactString> {
        self.directory.name(room)
    }

    /// The patterns of namespaces, and how many of each have a member anywhere or the ghost of one.
    pub fn namespaces_by_pattern(&self) -> impl Iterator<Item = (&Pattern, usize)> {
        self.directory.namespaces_by_pattern()
    }

    /// Rooms from a place on, as [`Directory::walk`].
    pub fn walk(&self, from: u64, most: u64, each: impl FnMut(&str, u32) -> bool) -> Option<u64> {
        self.directory.walk(from, most, each)
    }

    /// The id of the room `name`, the shards that have members of it, and how many those are.
    pub fn look_up(&self, name: &str) -> Option<(RoomId, ShardSet, u32)> {
        self.directory.members(name)
    }

    /// Rooms with a member anywhere.
    pub fn rooms(&self) -> usize {
        self.directory.rooms()
    }

    /// Puts a publication into the mailbox of every shard that has members of its room, and answers which those are. Other processes
    /// get it as well. The bells of the shards and of the bridge are not rung: the caller does that once a turn with [`Bus::ring`].
    ///
    /// # Errors
    /// [`Overloaded`] when one of the mailboxes is full; then nobody gets it.
    pub fn publish(&self, draft: &Draft<'_>) -> Result<ShardSet, Overloaded> {
        self.publish_with(draft, self.outside.as_deref())
    }

    /// The same for what comes from another process, and stays here.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub fn publish_here(&self, draft: &Draft<'_>) -> Result<ShardSet, Overloaded> {
        self.publish_with(draft, None)
    }

    /// The same for several, all for the members of one room and nobody else.
    ///
    /// # Errors
    /// As [`Bus::publish`]; then none is delivered.
    pub fn publish_all_here(&self, drafts: &[Draft<'_>]) -> Result<ShardSet, Overloaded> {
        let Some(first) = drafts.first() else { return Ok(ShardSet::default()) };
        debug_assert!(drafts.iter().all(|draft| draft.is_for_one_room() && draft.room == first.room));
        if let Some((place, policy)) = self.home_policy(first.room) {
            return self.hold(drafts, place, policy, None);
        }
        self.directory.with_room(first.room, |found| {
            let Some((room, shards)) = found else { return Ok(ShardSet::default()) };
            if self.is_any_full(shards) {
                return Err(Overloaded);
            }
            let publications: Vec<Arc<Publication>> =
                drafts.iter().map(|draft| Arc::new(Publication::new(room, draft))).collect();
            shards.iter().for_each(|shard| self.mailboxes[usize::from(shard)].post_all(&publications));
            Ok(shards)
        })
    }

    fn publish_with(&self, draft: &Draft<'_>, outside: Option<&Outside>) -> Result<ShardSet, Overloaded> {
        let is_room = self.socket_of(draft.room).is_none() && user_of(room_of(draft.room)).is_none();
        if !draft.is_for_one_room() || !is_room {
            return self.publish_to_several(draft, outside);
        }
        if let Some((place, policy)) = self.home_policy(draft.room)
            // Who asks from another process waits to hear from as many shards as get it now.
            && draft.ask.is_none_or(|ask| Ask::asker(ask.number) != Asker::Outside)
        {
            return self.hold(std::slice::from_ref(draft), place, policy, outside);
        }
        self.directory.with_room(draft.room, |found| {
            let (room, shards) = found.unwrap_or((RoomId::NOWHERE, ShardSet::default()));
            // Checked and pushed inside the stripe. Another stripe may fill the mailbox in between, so the bound can be exceeded
            // by some publications for each stripe: it is a bound on memory, not an exact number.
            let shards = self.post_to(shards, None, || (Publication::new(room, draft), None))?;
            self.pass_outside(draft, room, outside);
            if draft.ask.is_some() {
                self.tell_of_passing(draft, &[draft.room]);
            }
            Ok(shards)
        })
    }

    fn pass_outside(&self, draft: &Draft<'_>, room: RoomId, outside: Option<&Outside>) {
        if let Some(outside) = outside
            && !outside.write(draft)
        {
            let publication = Arc::new(Publication::new(room, draft));
            outside.push(Outgoing::Publication { publication, names: None });
        }
    }

    /// Puts events for the members of one room into the mailbox of its home, which lets them out with [`Bus::let_out`]. Other processes get
    /// them as they are: each has homes for its own members.
    fn hold(
        &self,
        drafts: &[Draft<'_>],
        place: u16,
        policy: &Policy,
        outside: Option<&Outside>,
    ) -> Result<ShardSet, Overloaded> {
        let Some(first) = drafts.first() else { return Ok(ShardSet::default()) };
        self.directory.with_room(first.room, |found| {
            let (room, members) = found.unwrap_or((RoomId::NOWHERE, ShardSet::default()));
            let mut shards = ShardSet::default();
            if !members.is_empty() || policy.hears_the_empty_room() {
                let home = self.home_of(first.room);
                shards.insert(home);
                // Those that will get it count as well, since later nobody can be refused.
                if self.is_any_full(members) || self.is_any_full(shards) {
                    return Err(Overloaded);
                }
                for draft in drafts {
                    let publication = Arc::new(Publication::new(room, draft));
                    self.mailboxes[usize::from(home)].post(Mail::Held { publication, policy: place });
                }
            }
            drafts.iter().for_each(|draft| self.pass_outside(draft, room, outside));
            Ok(shards)
        })
    }

    /// Puts what leaves the home of a room into the mailboxes of the shards that have members now, and answers which those are. All is for one
    /// room.
    pub fn let_out(&self, publications: &mut [Arc<Publication>]) -> ShardSet {
        let Some(name) = publications.first().map(|first| CompactString::from(first.room_name())) else {
            return ShardSet::default();
        };
        self.directory.with_room(&name, |found| {
            let (room, shards) = found.unwrap_or((RoomId::NOWHERE, ShardSet::default()));
            for publication in publications.iter_mut() {
                if publication.room != room && !shards.is_empty() {
                    // The room that it was published to has ended, and this is another of the name.
                    Arc::make_mut(publication).room = room;
                }
                if let Some(ask) = publication.special.as_ref().and_then(|special| special.ask) {
                    // Whoever asks counts the home as one that tells how many it has asked: in its place so many do.
                    let mail = Mail::AskedOutside { number: ask.number, processes: shards.iter().count() };
                    self.tell_asker(Ask::asker(ask.number), mail);
                }
            }
            shards.iter().for_each(|shard| self.mailboxes[usize::from(shard)].post_all(publications));
            shards
        })
    }

    /// Tells the home of a room that somebody has joined it, if its state may be known there. Answers the home.
    pub fn tell_home(&self, joined: impl FnOnce() -> Joined, room: &str) -> Option<ShardId> {
        self.home_policy(room).filter(|(_, policy)| policy.changes.is_some())?;
        let home = self.home_of(room);
        self.mailboxes[usize::from(home)].post(Mail::Joined(Box::new(joined())));
        Some(home)
    }

    /// The policy for a room whose events go by way of its home, and its place.
    #[inline]
    fn home_policy(&self, room: &str) -> Option<(u16, &Policy)> {
        self.policy(room).filter(|(_, policy)| policy.has_home())
    }

    /// The policy for a room, and its place.
    #[inline]
    pub fn policy(&self, room: &str) -> Option<(u16, &Policy)> {
        self.policies.as_ref()?.find(namespace_of(room), room_of(room))
    }

    /// The policies for rooms, when there are any.
    pub fn policies(&self) -> Option<&Arc<Policies>> {
        self.policies.as_ref()
    }

    /// The home of a room: the same for as long as the process lives, and in the simulator every time.
    fn home_of(&self, room: &str) -> ShardId {
        let mut hasher = DefaultHasher::new();
        hasher.write(room.as_bytes());
        (hasher.finish() % self.mailboxes.len() as u64) as ShardId
    }

    /// The homes of one more shard have let out all that waited there.
    pub fn note_open_homes(&self) {
        self.open_homes.fetch_add(1, Ordering::Release);
    }

    /// True when those of all shards have, and what they let out is in the mailboxes.
    pub fn are_homes_open(&self) -> bool {
        self.open_homes.load(Ordering::Acquire) >= self.mailboxes.len()
    }

    fn publish_to_several(
        &self,
        draft: &Draft<'_>,
        outside: Option<&Outside>,
    ) -> Result<ShardSet, Overloaded> {
        let more = draft.more_rooms.iter().map(AsRef::as_ref);
        let names: Vec<&str> = std::iter::once(draft.room).chain(more).collect();
        let except: Vec<&str> = draft.except_rooms.iter().map(AsRef::as_ref).collect();
        let shards = self.with_audience(&names, &except, draft.natives, |audience, shards| {
            self.post_to(shards, outside, || {
                let owned = |names: &[&str]| names.iter().map(|name| CompactString::from(*name)).collect();
                let names = outside.map(|_| Box::new(Names { rooms: owned(&names), except: owned(&except) }));
                (Publication::for_several(audience, draft), names)
            })
        })?;
        self.tell_of_passing(draft, &names);
        Ok(shards)
    }

    /// Tells the homes of those rooms of which an event is the state that it has gone straight to their members, and wakes them: they are
    /// none of the shards that get the event.
    fn tell_of_passing(&self, draft: &Draft<'_>, rooms: &[&str]) {
        let (mut publication, mut homes) = (None, ShardSet::default());
        for room in rooms {
            let Some((_, Policy { changes: Some(changes), .. })) = self.home_policy(room) else { continue };
            if changes.event == draft.event {
                let publication = publication
                    .get_or_insert_with(|| Arc::new(Publication::new(RoomId::NOWHERE, draft)))
                    .clone();
                let home = self.home_of(room);
                self.mailboxes[usize::from(home)].post(Mail::Passed { room: (*room).into(), publication });
                homes.insert(home);
            }
        }
        if !homes.is_empty() {
            self.ring(homes);
        }
    }

    /// Has something done to sockets of a namespace, on whatever shards they are: those in any of the rooms `names`, but not in any of
    /// `except`. Answers which shards have been told.
    ///
    /// # Errors
    /// [`Overloaded`] when as many orders as may wait for one of the shards do; then none is told.
    pub fn order(
        &self,
        namespace: &str,
        names: &[&str],
        except: &[&str],
        deed: Deed,
    ) -> Result<ShardSet, Overloaded> {
        self.with_audience(names, except, false, |audience, shards| {
            if !shards.iter().all(|shard| self.mailboxes[usize::from(shard)].takes_orders()) {
                return Err(Overloaded);
            }
            let order = Arc::new(Order { namespace: namespace.into(), audience, deed });
            shards.iter().for_each(|shard| self.post(shard, Mail::Order(order.clone())));
            Ok(shards)
        })
    }

    /// The same in other processes as well, where there are some, and without exceptions.
    ///
    /// # Errors
    /// As [`Bus::order`]; then no other process is told either.
    pub fn order_everywhere(
        &self,
        namespace: &str,
        names: &[&str],
        deed: Deed,
    ) -> Result<ShardSet, Overloaded> {
        let shards = self.order(namespace, names, &[], deed.clone())?;
        if let Some(outside) = &self.outside {
            let rooms = names.iter().map(|name| CompactString::from(*name)).collect();
            outside.push(Outgoing::Order { namespace: namespace.into(), rooms, deed });
            outside.ring();
        }
        Ok(shards)
    }

    /// Asks who is in a room, here and in all other processes. The answer is known, or comes when everybody has told or has had the time
    /// for it.
    ///
    /// # Errors
    /// [`TooManyQuestions`] when as many as may be are under way.
    pub fn ask_presence(
        &self,
        question: &Question,
        asker: presence::Asker,
        now: Time,
    ) -> Result<Asked, TooManyQuestions> {
        let (room, shards, members) = self.audience_of(question);
        let to_come = shards.iter().count() + usize::from(self.outside.is_some());
        match self.presence.put(question, asker, members, to_come, now)? {
            Put::Known(attendance) => Ok(Asked::Known(attendance)),
            Put::Waits(number) => Ok(Asked::Waits(number)),
            Put::Begins(number) => {
                shards.iter().for_each(|shard| self.post(shard, Mail::Who { number, room }));
                if let Some(outside) = &self.outside {
                    outside.push(Outgoing::Presence { number, question: question.clone() });
                    outside.ring();
                }
                Ok(Asked::Waits(number))
            }
        }
    }

    /// Asks who is in a room here, for another process: `call` is called with the answer.
    ///
    /// # Errors
    /// As [`Bus::ask_presence`].
    pub fn ask_presence_here(
        &self,
        question: &Question,
        call: Call,
        now: Time,
    ) -> Result<(), TooManyQuestions> {
        let (room, shards, members) = self.audience_of(question);
        if let Put::Begins(number) =
            self.presence.put_here(question, call, members, shards.iter().count(), now)?
        {
            shards.iter().for_each(|shard| self.post(shard, Mail::Who { number, room }));
        }
        Ok(())
    }

    /// The room of a question, the shards that have to be asked for its members, and how many it has. To count them no shard is asked.
    fn audience_of(&self, question: &Question) -> (RoomId, ShardSet, u64) {
        let (room, shards, members) =
            self.directory.members(&question.room).unwrap_or((RoomId::NOWHERE, ShardSet::default(), 0));
        (room, if question.who { shards } else { ShardSet::default() }, members.into())
    }

    /// Takes what one shard tells of the members of a room, for the question with this number.
    pub fn tell_presence(&self, number: u64, who: Vec<Told>) {
        self.pass_on(number, self.presence.told_here(number, who));
    }

    /// Takes what other processes have told, likewise; not `complete` when some may not have.
    pub fn tell_presence_elsewhere(&self, number: u64, parts: Vec<Part>, complete: bool) {
        self.pass_on(number, self.presence.told_elsewhere(number, parts, complete));
    }

    fn pass_on(&self, number: u64, answered: Option<Answered>) {
        let Some(Answered { attendance, shards, calls }) = answered else { return };
        for shard in shards.iter() {
            self.post(shard, Mail::Presence { number, attendance: attendance.clone() });
        }
        calls.into_iter().for_each(|call| call(attendance.clone()));
    }

    /// Who is in rooms, for those who ask.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Calls `act` with the members of rooms, and the shards that have some, inside the stripes of all the rooms.
    fn with_audience<R>(
        &self,
        names: &[&str],
        except: &[&str],
        natives: bool,
        act: impl FnOnce(Audience, ShardSet) -> R,
    ) -> R {
        let sockets: Vec<SocketId> = names.iter().filter_map(|name| self.socket_of(name)).collect();
        let users: Vec<CompactString> =
            names.iter().filter_map(|name| user_of(room_of(name))).map(CompactString::from).collect();
        let except_sockets = except.iter().filter_map(|name| self.socket_of(name)).collect();
        self.directory.with_rooms(&[names, except].concat(), |found| {
            let (found, except) = found.split_at(names.len());
            let mut shards = ShardSet::default();
            found.iter().flatten().for_each(|(_, of_room)| shards.extend(*of_room));
            sockets.iter().for_each(|socket| shards.insert(socket[0]));
            // Which shards have connections of a user is not written down: it would be a room for each user.
            if natives || !users.is_empty() {
                (0..self.shards()).for_each(|shard| shards.insert(shard as ShardId));
            }
            let rooms: Vec<(RoomId, CompactString)> = found
                .iter()
                .zip(names)
                .filter_map(|(found, name)| found.map(|(room, _)| (room, CompactString::from(*name))))
                .collect();
            let except = except.iter().flatten().map(|(room, _)| *room).collect();
            act(Audience { rooms, sockets, users, natives, except, except_sockets }, shards)
        })
    }

    /// Puts a publication into the mailboxes of `shards`, or into none when one of them is full, and before the bridge.
    fn post_to(
        &self,
        shards: ShardSet,
        outside: Option<&Outside>,
        publication: impl FnOnce() -> (Publication, Option<Box<Names>>),
    ) -> Result<ShardSet, Overloaded> {
        if shards.is_empty() && outside.is_none() {
            return Ok(shards);
        }
        if self.is_any_full(shards) {
            return Err(Overloaded);
        }
        let (publication, names) = publication();
        let publication = Arc::new(publication);
        for shard in shards.iter() {
            self.mailboxes[usize::from(shard)].post(Mail::Publication(publication.clone()));
        }
        if let Some(outside) = outside {
            outside.push(Outgoing::Publication { publication, names });
        }
        Ok(shards)
    }

    fn is_any_full(&self, shards: ShardSet) -> bool {
        shards.iter().any(|shard| self.mailboxes[usize::from(shard)].is_full())
    }

    /// The socket that a room's name is the id of, behind the name of its namespace.
    pub fn socket_of(&self, name: &str) -> Option<SocketId> {
        // Most names are shorter, and nothing more is looked at.
        let id = name.get(name.len().checked_sub(SOCKET_ID_CHARS)?..)?;
        let is_whole = name.len() == id.len() || name[..name.len() - id.len()].ends_with(NAMESPACE_END);
        is_whole.then(|| read_socket_id(id))?.filter(|id| self.is_own(id))
    }

    /// Posts `mail` to one shard and wakes it.
    pub fn post(&self, shard: ShardId, mail: Mail) {
        self.mailboxes[usize::from(shard)].post(mail);
        self.mailboxes[usize::from(shard)].ring();
    }

    /// Wakes the shards that sleep, and the bridge, who delivers notices and who asks the backend if something waits for them.
    pub fn ring(&self, shards: ShardSet) {
        for shard in shards.iter() {
            self.mailboxes[usize::from(shard)].ring();
        }
        if let Some(outside) = &self.outside {
            outside.ring();
        }
        if let Some(notices) = &self.notices {
            notices.ring();
        }
        if let Some(calls) = &self.calls {
            calls.ring();
        }
    }

    /// Tells whoever asked what came of it: a shard, or the bridge for another process.
    pub fn tell_asker(&self, asker: Asker, mail: Mail) {
        match (asker, &self.outside, mail) {
            (Asker::Shard(shard), _, mail) => self.post(shard, mail),
            (Asker::Outside, Some(outside), Mail::Asked { number, sockets }) => {
                outside.push(Outgoing::Asked { number, sockets });
            }
            (Asker::Outside, Some(outside), Mail::Answer(answer)) => outside.push(Outgoing::Answer(answer)),
            (Asker::Outside, ..) => {}
        }
    }

    /// Questions to the backend about who clients are, when it is asked.
    pub fn callouts(&self) -> Option<&Callouts> {
        self.callouts.as_deref()
    }

    /// Has forgotten what the backend has said of clients, here.
    ///
    /// # Errors
    /// [`Overloaded`] when connections are to end, and as many such orders wait as may; then nothing is forgotten.
    pub fn forget_here(&self, forget: Forget) -> Result<(), Overloaded> {
        match &self.callouts {
            // By the backend's thread, so that no older answer comes after it.
            Some(callouts) => callouts.forget(forget).map_err(|TooManyWait| Overloaded),
            None => self.dismiss_forgotten(&forget),
        }
    }

    /// The same in other processes as well, where there are some.
    ///
    /// # Errors
    /// As [`Bus::forget_here`]; then no other process is told either.
    pub fn forget_everywhere(&self, forget: Forget) -> Result<(), Overloaded> {
        self.forget_here(forget.clone())?;
        if let Some(outside) = &self.outside {
            outside.push(Outgoing::Forget(forget));
            outside.ring();
        }
        Ok(())
    }

    /// Ends the connections here of a user of whom what the backend has said was forgotten, if that is wanted.
    ///
    /// # Errors
    /// As [`Bus::order`].
    pub fn dismiss_forgotten(&self, forget: &Forget) -> Result<(), Overloaded> {
        let Forget { whose: Whose::User(name), disconnect: true } = forget else { return Ok(()) };
        let deed = Deed::Close { code: CloseCode::Unauthorized.into(), reason: "signed out".into() };
        self.order(ANYWHERE, &[&user_key(name)], &[], deed).map(drop)
    }

    /// What goes to other processes, when there are any.
    pub fn outside(&self) -> Option<&Outside> {
        self.outside.as_deref()
    }

    /// What the backend is told, when it wants to be told anything.
    pub fn notices(&self) -> Option<&Notices> {
        self.notices.as_deref()
    }

    /// What waits for the backend, when it is asked.
    pub fn calls(&self) -> Option<&Arc<Calls>> {
        self.calls.as_ref()
    }

    /// The mailbox of `shard`.
    pub fn mailbox(&self, shard: ShardId) -> &Mailbox {
        &self.mailboxes[usize::from(shard)]
    }

    /// Sockets that wait for the shards they were given to.
    pub fn handed(&self) -> usize {
        self.mailboxes.iter().map(Mailbox::handed).sum()
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.mailboxes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    fn draft(room: &str) -> Draft<'_> {
        Draft::new(room, "e", b"1", Time::default())
    }

    #[test]
    fn who_cannot_be_signed_out_here_is_not_signed_out_elsewhere() {
        let check = |bus: Bus, most: usize| {
            let outside = Arc::new(Outside::default());
            let bus = bus.with_outside(outside.clone());
            let forget = Forget { whose: Whose::User("7".into()), disconnect: true };
            let taken = (0..=most).filter(|_| bus.forget_everywhere(forget.clone()).is_ok()).count();
            assert_eq!((taken, outside.take().len()), (most, most));
            assert_eq!(bus.forget_here(forget), Err(Overloaded));
        };
        check(Bus::new(1, 100), mailbox::ORDERS_MAX);
        check(Bus::new(1, 100).with_callouts(Arc::new(Callouts::new(1))), mailbox::ORDERS_MAX);
    }

    #[test]
    fn a_publication_reaches_the_shards_with_members_and_no_others() {
        let bus = Bus::new(3, 100);
        let (room, _) = bus.enter(0, "a").expect("there is room");
        bus.enter(2, "a").expect("there is room");
        let to = bus.publish(&draft("a")).expect("nothing is full");
        assert_eq!(to.iter().collect::<Vec<_>>(), [0, 2]);
        bus.exit(0, room, true);
        let to = bus.publish(&draft("a")).expect("nothing is full");
        assert_eq!(to.iter().collect::<Vec<_>>(), [2]);
        assert!(bus.publish(&draft("nobody is here")).expect("nothing is full").is_empty());
        let waiting = |shard| {
            let mut mail = Vec::new().into();
            bus.mailbox(shard).collect(&mut mail);
            mail.len()
        };
        assert_eq!((waiting(0), waiting(1), waiting(2)), (1, 0, 2));
    }

    #[test]
    fn an_id_names_its_connection_and_nobody_makes_one_up() {
        let bus = Bus::new(2, 100);
        let conn = ConnId { shard: 1, slot: 70_000, stamp: u32::MAX };
        let id = bus.id_of(conn);
        assert_eq!((bus.conn_of(&id), bus.is_own(&id)), (Some(conn), true));
        assert_eq!(bus.socket_of(&crate::message::write_socket_id(&id)), Some(id), "it can stand for a room");
        for at in 0..id.len() {
            let mut other = id;
            other[at] ^= 1;
            assert_eq!(bus.conn_of(&other), None, "byte {at}");
        }
        assert_eq!(Bus::new(2, 100).conn_of(&id), None, "of another process");
    }

    #[test]
    fn a_full_mailbox_refuses_the_whole_publication() {
        let bus = Bus::new(2, 100);
        bus.enter(0, "a").expect("there is room");
        bus.enter(1, "a").expect("there is room");
        let mut taken = 0;
        while bus.publish(&draft("a")).is_ok() {
            taken += 1;
            assert!(taken <= mailbox::MAIL_MAX, "the bound holds");
        }
        let mut mail = Vec::new().into();
        bus.mailbox(0).collect(&mut mail);
        assert_eq!(mail.len(), taken);
        assert_eq!(bus.publish(&draft("a")), Err(Overloaded), "shard 1 is still full");
    }

    #[test]
    fn orders_are_refused_long_before_publications() {
        let outside = Arc::new(Outside::default());
        let bus = Bus::new(2, 100).with_outside(outside.clone());
        bus.enter(0, "a").expect("there is room");
        bus.enter(1, "a").expect("there is room");
        bus.enter(1, "b").expect("there is room");
        let order = |room: &str, deed| bus.order("/", &[room], &[], deed);
        let fill =
            |deed: &Deed| (0..mailbox::MAIL_MAX).take_while(|_| order("a", deed.clone()).is_ok()).count();
        let collect = |shard| bus.mailbox(shard).collect(&mut Vec::new().into());
        assert_eq!(fill(&Deed::Find(1)), mailbox::ORDERS_MAX);
        assert!(bus.publish_here(&draft("a")).is_ok(), "events go on");
        collect(0);
        assert_eq!(order("a", Deed::Find(1)), Err(Overloaded), "the other shard takes none");
        assert!(bus.mailbox(0).is_empty(), "so none is told");
        assert_eq!(bus.order_everywhere("/", &["a"], Deed::Find(1)), Err(Overloaded));
        assert!(outside.take().is_empty(), "nor any other process");
        assert!(bus.order("/", &["nobody is here"], &[], Deed::Find(1)).is_ok());
        collect(1);
        // Long ones are fewer.
        let rooms: Vec<CompactString> = (0..100).map(|room| format!("{room:0100}").into()).collect();
        let taken = fill(&Deed::Join(rooms));
        assert!((300..400).contains(&taken), "{taken}");
    }

    #[test]
    fn a_question_about_a_room_goes_to_its_shards_and_to_other_processes() {
        let outside = Arc::new(Outside::default());
        let bus = Bus::new(3, 100).with_outside(outside.clone());
        for shard in [0, 0, 2] {
            bus.enter(shard, "a").expect("there is room");
        }
        let collect = |shard| {
            let mut mail = Vec::new().into();
            bus.mailbox(shard).collect(&mut mail);
            Vec::from(mail)
        };
        let question = |who| Question { room: "a".into(), who };
        let ask =
            |who, shard| bus.ask_presence(&question(who), presence::Asker::Shard(shard), Time::default());
        // To count them no shard is asked.
        let Ok(Asked::Waits(number)) = ask(false, 1) else { panic!("others are asked") };
        assert!((0..3).all(|shard| collect(shard).is_empty()));
        assert!(matches!(outside.take()[..], [Outgoing::Presence { number: one, .. }] if one == number));
        let other = Part { node: "other".to_owned(), members: 4, who: Vec::new() };
        bus.tell_presence_elsewhere(number, vec![other], true);
        match &collect(1)[..] {
            [Mail::Presence { number: one, attendance }] => {
                assert_eq!((*one, attendance.members, attendance.who.is_none()), (number, 7, true));
            }
            mail => panic!("{mail:?}"),
        }

        let Ok(Asked::Waits(number)) = ask(true, 1) else { panic!("others are asked") };
        assert!(collect(1).is_empty(), "it has no members");
        bus.tell_presence_elsewhere(number, Vec::new(), false);
        for shard in [0, 2] {
            assert!(matches!(collect(shard)[..], [Mail::Who { number: one, .. }] if one == number));
            assert!(collect(1).is_empty(), "it is not complete");
            bus.tell_presence(number, vec![Told { id: shard.to_string().into(), user: None }]);
        }
        match &collect(1)[..] {
            [Mail::Presence { attendance, .. }] => {
                let who = attendance.who.as_ref().expect("it was asked");
                assert_eq!((attendance.members, who.len(), attendance.cut), (3, 2, true));
                assert!(!attendance.complete);
            }
            mail => panic!("{mail:?}"),
        }
    }

    #[test]
    fn connections_have_ids_that_are_no_names_of_rooms() {
        let bus = Bus::new(2, 100);
        let conn = ConnId { shard: 1, slot: 7, stamp: 9 };
        let id = bus.id_of(conn);
        assert_eq!(id, bus.id_of(conn), "it stays the same");
        assert!(bus.is_own(&id) && id[0] == 1);
        for other in [ConnId { shard: 0, ..conn }, ConnId { slot: 8, ..conn }, ConnId { stamp: 8, ..conn }] {
            assert_ne!(bus.id_of(other), id);
        }
        assert_ne!(Bus::new(2, 100).id_of(conn), id, "of another process");
    }
}
