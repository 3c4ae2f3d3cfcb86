//! The homes of rooms on one shard: which events wait there, what is known of the rooms, and what leaves.
//!
//! An event goes through these stages: *dedupe* and *conflate* when it comes; when the room's window ends, or it cannot wait, *changes*, and then
//! *batch* or *merge*. What leaves is appended to `out`, the publications of one room one behind the other, in their order.

use super::{Batch, Changes, Policies, Policy, Settings, patch};
use crate::message::{Bundle, Draft, Publication, RoomId, Shape};
use crate::time::Time;
use compact_str::CompactString;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Events of one room that wait to leave as one message leave early when they have so many bytes.
pub const BUNDLE_BYTES_MAX: usize = 256 << 10;
/// What a room that has something waiting costs besides, in bytes, by and large.
const ROOM_BYTES: usize = 640;
/// What an event that waits costs besides, likewise.
const ITEM_BYTES: usize = 64;
/// How often values are looked for that have been known long enough, in milliseconds.
const SWEEP_MS: u64 = 10_000;
/// States that are looked at in one go for whether their rooms still have members.
const SWEPT_MAX: usize = 256;

/// What one shard keeps for the rooms that have their home there. Rooms of which nothing waits and nothing is known are not in it. Bounded by
/// the [`Settings`], of which it has a share.
#[derive(Debug)]
pub struct Homes {
    policies: Arc<Policies>,
    settings: Settings,
    rooms: HashMap<CompactString, Room>,
    /// When the window of a room ends, and which of those that end then it is.
    due: BTreeMap<(Time, u64), CompactString>,
    /// Rooms whose state is known, by when it has changed last.
    states: BTreeMap<(Time, u64), CompactString>,
    /// Bytes of what waits, and of the states.
    waiting_bytes: usize,
    states_bytes: usize,
    seen: Seen,
    /// What the values of fields are hashed with: they come from clients.
    keys: (RandomState, RandomState),
    /// Entries of `due` and `states` that there were.
    entries: u64,
    /// True when nothing waits any more.
    is_open: bool,
    counts: Counts,
}

/// What has happened. Counts up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events taken in.
    pub taken: u64,
    /// Of them, those that were left out because they had been there: *dedupe*.
    pub duplicates: u64,
    /// Those that were left out for a later one: *conflate*.
    pub conflated: u64,
    /// Those that were left out because nothing had changed: *changes*.
    pub unchanged: u64,
    /// Events that should have been the state of their room, and were no objects, or were too large.
    pub stateless: u64,
    /// Messages that have left, a batch counted as one.
    pub sent: u64,
    /// Of them, those that held several events.
    pub bundles: u64,
    /// Windows that ended early since too much waited in all.
    pub early: u64,
    /// Values and states that were forgotten early since there were too many.
    pub forgotten: u64,
}

#[derive(Debug)]
struct Room {
    /// The place of its policy.
    policy: u16,
    /// Events in their order; `None` for one that a later one has replaced.
    waiting: Vec<Option<Waiting>>,
    /// How many there are.
    live: usize,
    /// Their bytes.
    bytes: usize,
    /// Where in `waiting` the latest event of a key is.
    keys: HashMap<u128, usize>,
    /// Its entry in `due`; there is one exactly when something waits.
    due: Option<(Time, u64)>,
    state: Option<State>,
}

#[derive(Debug)]
struct Waiting {
    publication: Arc<Publication>,
    key: Option<u128>,
}

/// What the members of a room know by what has left.
#[derive(Debug)]
struct State {
    /// An object of JSON without members that are `null`, its names in order: the same state is the same text.
    text: Box<str>,
    /// Its entry in `states`.
    entry: (Time, u64),
    /// True when members have heard something that nobody knows what they make of.
    is_doubtful: bool,
}

impl State {
    /// The object.
    fn read(&self) -> patch::Object {
        patch::read(self.text.as_bytes()).unwrap_or_default()
    }
}

impl Homes {
    /// The homes of a shard, of which there are `shards`.
    pub fn new(policies: Arc<Policies>, shards: usize) -> Homes {
        let oldest = policies.iter().map(|_| VecDeque::new()).collect();
        Homes {
            settings: policies.settings.share(shards),
            seen: Seen { known: HashSet::new(), oldest, sweep_at: None },
            policies,
            rooms: HashMap::new(),
            due: BTreeMap::new(),
            states: BTreeMap::new(),
            waiting_bytes: 0,
            states_bytes: 0,
            keys: (RandomState::new(), RandomState::new()),
            entries: 0,
            is_open: false,
            counts: Counts::default(),
        }
    }

    /// Takes an event for the members of a room whose policy is in this place, and puts what leaves behind `out`.
    pub fn take(
        &mut self,
        publication: Arc<Publication>,
        place: u16,
        now: Time,
        out: &mut Vec<Arc<Publication>>,
    ) {
        let policies = self.policies.clone();
        let policy = policies.at(place);
        self.counts.taken += 1;
        if let Some(dedupe) = &policy.dedupe
            && is_one_value(&publication)
            // Whoever asks waits for answers.
            && publication.special.as_ref().is_none_or(|special| special.ask.is_none())
            && let Some(value) = dedupe.field.find(publication.payload())
        {
            let mark = self.mark(&publication, value);
            let (is_new, forgotten) =
                self.seen.note(mark, place, now, dedupe.window_ms, self.settings.dedupe_ids_max);
            self.counts.forgotten += forgotten;
            if !is_new {
                self.counts.duplicates += 1;
                return;
            }
        }
        if !self.is_open && policy.lets_wait(&publication) {
            return self.keep(publication, place, policy, now, out);
        }
        if let Some((name, mut room)) = self.rooms.remove_entry(publication.room_name()) {
            self.empty(policy, &mut room, now, out);
            self.let_out(policy, &mut room, vec![publication], now, out);
            return self.settle(name, room);
        }
        let mut room = Room::new(place);
        let name = publication.room_name().into();
        self.let_out(policy, &mut room, vec![publication], now, out);
        self.settle(name, room);
    }

    /// Lets out what has waited long enough.
    pub fn flush_due(&mut self, now: Time, out: &mut Vec<Arc<Publication>>) {
        while self.due.first_key_value().is_some_and(|((end, _), _)| *end <= now) {
            self.flush_next(now, out);
        }
    }

    /// Lets out all that waits. From now on nothing waits: what comes leaves at once.
    pub fn open(&mut self, now: Time, out: &mut Vec<Arc<Publication>>) {
        self.is_open = true;
        while !self.due.is_empty() {
            self.flush_next(now, out);
        }
    }

    /// Forgets states that have not changed for long and whose rooms nobody is in any more, and values that have been known long enough.
    pub fn sweep(&mut self, now: Time, is_occupied: impl Fn(&str) -> bool) {
        let idle_ms = self.settings.state_idle_ms;
        for _ in 0..SWEPT_MAX {
            let Some(((changed, _), _)) = self.states.first_key_value() else { break };
            if changed.plus_ms(idle_ms.into()) > now {
                break;
            }
            let Some((_, name)) = self.states.pop_first() else { break };
            if is_occupied(&name) {
                let entry = self.new_entry(now);
                if let Some(state) = self.rooms.get_mut(&name).and_then(|room| room.state.as_mut()) {
                    state.entry = entry;
                    self.states.insert(entry, name);
                }
            } else {
                self.forget_state(name);
            }
        }
        if self.seen.sweep_at.is_some_and(|at| at <= now) {
            let windows =
                self.policies.iter().map(|policy| policy.dedupe.as_ref().map_or(0, |it| it.window_ms));
            self.seen.sweep(now, windows);
        }
    }

    /// When [`Homes::flush_due`] and [`Homes::sweep`] have something to do next.
    pub fn next_due(&self) -> Option<Time> {
        let due = self.due.first_key_value().map(|((end, _), _)| *end);
        let idle_ms = u64::from(self.settings.state_idle_ms);
        let state = self.states.first_key_value().map(|((changed, _), _)| changed.plus_ms(idle_ms));
        [due, state, self.seen.sweep_at].into_iter().flatten().min()
    }

    /// The event that tells somebody who joins a room its state, if that is known: what all members know by what has left.
    pub fn whole(&self, room: &str, now: Time) -> Option<Publication> {
        let found = self.rooms.get(room)?;
        let changes = self.policies.at(found.policy).changes.as_ref()?;
        let text = &found.state.as_ref()?.text;
        Some(Publication::new(RoomId::NOWHERE, &Draft::new(room, &changes.event, text.as_bytes(), now)))
    }

    /// An event that is the state of a room has gone straight to the room's members, who merge it into what they know.
    pub fn note_passed(&mut self, room: &str, publication: &Publication) {
        if let Some((name, mut room)) = self.rooms.remove_entry(room) {
            self.learn(&mut room, publication);
            self.settle(name, room);
        }
    }

    /// Forgets the state of a room, which may not be what it was before `since`, unless it has changed after that.
    pub fn forget_before(&mut self, room: &str, since: Time) {
        let state = self.rooms.get(room).and_then(|room| room.state.as_ref());
        if let Some(state) = state.filter(|state| state.entry.0 <= since) {
            self.states.remove(&state.entry);
            self.forget_state(room.into());
        }
    }

    /// What has happened since this was asked last.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Rooms whose state is known.
    pub fn states(&self) -> usize {
        self.states.len()
    }

    /// Values of `dedupe` fields that are known.
    pub fn ids(&self) -> usize {
        self.seen.known.len()
    }

    /// Bytes of what waits.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Bytes of the states.
    pub fn states_bytes(&self) -> usize {
        self.states_bytes
    }

    /// Puts an event behind those of its room that wait.
    fn keep(
        &mut self,
        publication: Arc<Publication>,
        place: u16,
        policy: &Policy,
        now: Time,
        out: &mut Vec<Arc<Publication>>,
    ) {
        let key = policy.conflate_key(&publication).map(|value| self.mark(&publication, value));
        let name = publication.room_name();
        let is_there = |room: &Room| {
            let mut waiting = room.waiting.iter().flatten();
            waiting
                .any(|it| it.publication.event() == publication.event() && (key.is_none() || it.key != key))
        };
        if policy.merge.is_some() && self.rooms.get(name).is_some_and(is_there) {
            self.flush(name, now, out);
        }
        if !self.rooms.contains_key(name) {
            self.rooms.insert(name.into(), Room::new(place));
        }
        let due = (now.plus_ms(policy.window_ms.into()), self.entries + 1);
        let Some(room) = self.rooms.get_mut(name) else { return };
        if room.due.is_none() {
            self.entries += 1;
            room.due = Some(due);
            self.due.insert(due, name.into());
            self.waiting_bytes += ROOM_BYTES;
        }
        let before = room.bytes;
        self.counts.conflated += u64::from(room.push(publication.clone(), key));
        self.waiting_bytes = self.waiting_bytes + room.bytes - before;
        let is_full = policy.batch.as_ref().is_some_and(|batch| room.live >= batch.most)
            || ((policy.batch.is_some() || policy.merge.is_some()) && room.bytes >= BUNDLE_BYTES_MAX);
        if is_full {
            self.flush(name, now, out);
        }
        while self.waiting_bytes > self.settings.waiting_bytes_max && !self.due.is_empty() {
            self.counts.early += 1;
            self.flush_next(now, out);
        }
    }

    fn flush_next(&mut self, now: Time, out: &mut Vec<Arc<Publication>>) {
        if let Some((_, name)) = self.due.pop_first() {
            self.flush(&name, now, out);
        }
    }

    /// Ends the window of a room.
    fn flush(&mut self, name: &str, now: Time, out: &mut Vec<Arc<Publication>>) {
        if let Some((name, mut room)) = self.rooms.remove_entry(name) {
            let policies = self.policies.clone();
            self.empty(policies.at(room.policy), &mut room, now, out);
            self.settle(name, room);
        }
    }

    /// The same for a room that has been taken out.
    fn empty(&mut self, policy: &Policy, room: &mut Room, now: Time, out: &mut Vec<Arc<Publication>>) {
        let Some(due) = room.due.take() else { return };
        self.due.remove(&due);
        self.waiting_bytes -= ROOM_BYTES + room.bytes;
        let waiting = std::mem::take(&mut room.waiting);
        (room.live, room.bytes, room.keys) = (0, 0, HashMap::new());
        let items = waiting.into_iter().flatten().map(|waiting| waiting.publication).collect();
        self.let_out(policy, room, items, now, out);
    }

    /// Puts a room back where something is known of it or waits.
    fn settle(&mut self, name: CompactString, room: Room) {
        if room.due.is_some() || room.state.is_some() {
            self.rooms.insert(name, room);
        }
        while self.states.len() > self.settings.states_max
            || self.states_bytes > self.settings.states_bytes_max
        {
            let Some((_, name)) = self.states.pop_first() else { return };
            self.counts.forgotten += 1;
            self.forget_state(name);
        }
    }

    /// The last stages, for events of one room.
    fn let_out(
        &mut self,
        policy: &Policy,
        room: &mut Room,
        items: Vec<Arc<Publication>>,
        now: Time,
        out: &mut Vec<Arc<Publication>>,
    ) {
        let mut items = match &policy.changes {
            None => items,
            Some(changes) => {
                items.into_iter().filter_map(|item| self.change(changes, room, item, now)).collect()
            }
        };
        let is_lone = |batch: &Batch| batch.lone && items.first().is_some_and(|item| is_bundled(item));
        let shape = match (&policy.batch, &policy.merge) {
            (Some(batch), _) if items.len() < 2 && !is_lone(batch) => None,
            (None, _) if items.len() < 2 => None,
            (Some(batch), _) => {
                Some((&batch.event, Shape::Batch { data_only: batch.data_only, lone: batch.lone }))
            }
            (None, Some(merge)) => {
                let field = |item: &Arc<Publication>| merge.field(item.event()).cloned().unwrap_or_default();
                Some((&merge.event, Shape::Merge { fields: items.iter().map(field).collect() }))
            }
            (None, None) => None,
        };
        if let Some((event, shape)) = shape {
            let bundle = Publication::bundle(event, Bundle { shape, items: std::mem::take(&mut items) });
            self.counts.bundles += 1;
            items.push(Arc::new(bundle));
        }
        self.counts.sent += items.len() as u64;
        out.append(&mut items);
    }

    /// What is sent of an event that may be the state of its room: what has changed, or nothing.
    fn change(
        &mut self,
        changes: &Changes,
        room: &mut Room,
        item: Arc<Publication>,
        now: Time,
    ) -> Option<Arc<Publication>> {
        if item.event() != changes.event {
            return Some(item);
        }
        let is_asking = item.special.as_ref().is_some_and(|special| special.ask.is_some());
        let object = (is_one_value(&item) && !is_asking).then(|| patch::read(item.payload())).flatten();
        let Some(object) = object else {
            self.counts.stateless += 1;
            self.learn(room, &item);
            return Some(item);
        };
        let write = |object: &patch::Object| serde_json::to_string(object).unwrap_or_default();
        let text = write(&object);
        if text.len() > self.settings.state_bytes_max {
            self.counts.stateless += 1;
            self.drop_state(room);
            return Some(item);
        }
        let payload = match &room.state {
            None => text.clone(),
            Some(state) if state.is_doubtful => write(&patch::anew(&state.read(), &object)),
            Some(state) if *state.text == *text => String::new(),
            Some(state) => {
                let mut patch = patch::diff(&state.read(), &object);
                for name in &changes.always {
                    if let Some(value) = object.get(&**name) {
                        patch.entry(&**name).or_insert_with(|| value.clone());
                    }
                }
                write(&patch)
            }
        };
        if payload.is_empty() {
            self.counts.unchanged += 1;
            return None;
        }
        self.drop_state(room);
        let entry = self.new_entry(now);
        self.states.insert(entry, item.room_name().into());
        self.states_bytes += text.len();
        room.state = Some(State { text: text.into(), entry, is_doubtful: false });
        // For everybody: who does not get a patch could not make sense of the next one.
        let draft = Draft::new(item.room_name(), item.event(), payload.as_bytes(), item.published_at);
        Some(Arc::new(Publication::new(item.room, &draft)))
    }

    /// The state of a room becomes what its members make of an event that they are sent as it is.
    fn learn(&mut self, room: &mut Room, publication: &Publication) {
        let Some(state) = &mut room.state else { return };
        // A list of arguments may be one, too.
        let is_json = !publication.binary
            && publication.special.as_ref().is_none_or(|special| special.attachments.is_empty());
        let object = match serde_json::from_slice(publication.payload()) {
            Ok(Value::Object(patch)) if is_json => {
                let mut object = state.read();
                patch::apply(&mut object, &patch);
                serde_json::to_string(&object).ok()
            }
            _ => None,
        };
        match object.filter(|text| text.len() <= self.settings.state_bytes_max) {
            Some(text) => {
                self.states_bytes = self.states_bytes + text.len() - state.text.len();
                state.text = text.into();
            }
            None => state.is_doubtful = true,
        }
    }

    /// Forgets the state of a room that has been taken out.
    fn drop_state(&mut self, room: &mut Room) {
        if let Some(state) = room.state.take() {
            self.states.remove(&state.entry);
            self.states_bytes -= state.text.len();
        }
    }

    /// Forgets the state of a room whose entry in `states` is gone.
    fn forget_state(&mut self, name: CompactString) {
        let Some(room) = self.rooms.get_mut(&name) else { return };
        if let Some(state) = room.state.take() {
            self.states_bytes -= state.text.len();
        }
        if room.due.is_none() {
            self.rooms.remove(&name);
            if self.rooms.is_empty() {
                self.rooms.shrink_to(64);
            }
        }
    }

    fn new_entry(&mut self, at: Time) -> (Time, u64) {
        self.entries += 1;
        (at, self.entries)
    }

    /// What stands for a value of a field in a room's event: two that are different have the same as good as never.
    fn mark(&self, publication: &Publication, value: &str) -> u128 {
        let of = (publication.room_name(), publication.event(), value);
        u128::from(self.keys.0.hash_one(of)) << 64 | u128::from(self.keys.1.hash_one(of))
    }
}

impl Policy {
    /// True when an event may wait for others.
    fn lets_wait(&self, publication: &Publication) -> bool {
        let event = publication.event();
        let is_of_merge = |publication| {
            self.merge.as_ref().is_none_or(|it| it.field(event).is_some() && is_one_value(publication))
        };
        self.waits()
            && is_bundled(publication)
            && !self.urgent.iter().any(|urgent| urgent == event)
            && is_of_merge(publication)
    }

    /// The value of the field by which an event is conflated.
    fn conflate_key<'p>(&self, publication: &'p Publication) -> Option<&'p str> {
        let conflate = self.conflate.as_ref()?;
        let is_meant = conflate
            .events
            .as_ref()
            .is_none_or(|events| events.iter().any(|event| event == publication.event()));
        (is_meant && is_one_value(publication)).then(|| conflate.field.find(publication.payload())).flatten()
    }
}

impl Room {
    fn new(policy: u16) -> Room {
        let keys = HashMap::new();
        Room { policy, waiting: Vec::new(), live: 0, bytes: 0, keys, due: None, state: None }
    }

    /// Adds an event at the end. True when it replaces an earlier one, as if that had never been there.
    fn push(&mut self, publication: Arc<Publication>, key: Option<u128>) -> bool {
        let size = |publication: &Publication| publication.size() + ITEM_BYTES;
        self.bytes += size(&publication);
        let replaced = key
            .and_then(|key| self.keys.insert(key, self.waiting.len()))
            .and_then(|at| self.waiting[at].take());
        self.waiting.push(Some(Waiting { publication, key }));
        match &replaced {
            Some(replaced) => self.bytes -= size(&replaced.publication),
            None => self.live += 1,
        }
        // Of a room in which few keys change very often, what is left is moved together.
        if self.waiting.len() > 2 * self.live + 16 {
            self.waiting.retain(Option::is_some);
            for (at, waiting) in self.waiting.iter().flatten().enumerate() {
                if let Some(key) = waiting.key {
                    self.keys.insert(key, at);
                }
            }
        }
        replaced.is_some()
    }
}

/// True when an event may be one of those of a message.
fn is_bundled(publication: &Publication) -> bool {
    !publication.binary
        && publication.special.as_ref().is_none_or(|special| {
            special.attachments.is_empty() && !special.volatile && special.ask.is_none()
        })
}

/// True when the payload is one value of JSON and nothing else.
fn is_one_value(publication: &Publication) -> bool {
    !publication.binary
        && publication
            .special
            .as_ref()
            .is_none_or(|special| !special.is_list && special.attachments.is_empty())
}

/// Values that have been there. Bounded: beyond, those that have been known longest are forgotten first.
#[derive(Debug)]
struct Seen {
    known: HashSet<u128>,
    /// By the place of the policy, since when each of `known` is: the oldest first.
    oldest: Vec<VecDeque<(Time, u128)>>,
    /// When to look for those that have been known long enough; `None` exactly when nothing is known.
    sweep_at: Option<Time>,
}

impl Seen {
    /// Notes a value. True when it is new, and how many others were forgotten for it before their time.
    fn note(&mut self, mark: u128, place: u16, now: Time, window_ms: u32, most: usize) -> (bool, u64) {
        self.expire(place, now, window_ms);
        if !self.known.insert(mark) {
            return (false, 0);
        }
        self.oldest[usize::from(place)].push_back((now, mark));
        self.sweep_at.get_or_insert(now.plus_ms(SWEEP_MS));
        let mut forgotten = 0;
        while self.known.len() > most {
            let oldest = self
                .oldest
                .iter_mut()
                .min_by_key(|marks| marks.front().map_or(Time::from_ns(u64::MAX), |it| it.0));
            let Some((_, mark)) = oldest.and_then(VecDeque::pop_front) else { break };
            self.known.remove(&mark);
            forgotten += 1;
        }
        (true, forgotten)
    }

    fn expire(&mut self, place: u16, now: Time, window_ms: u32) {
        let marks = &mut self.oldest[usize::from(place)];
        while let Some((_, mark)) = marks.pop_front_if(|(since, _)| since.plus_ms(window_ms.into()) <= now) {
            self.known.remove(&mark);
        }
    }

    fn sweep(&mut self, now: Time, windows: impl Iterator<Item = u32>) {
        for (place, window_ms) in windows.enumerate() {
            self.expire(place as u16, now, window_ms);
            let marks = &mut self.oldest[place];
            marks.shrink_to(2 * marks.len());
        }
        self.known.shrink_to(2 * self.known.len());
        self.sweep_at = (!self.known.is_empty()).then(|| now.plus_ms(SWEEP_MS));
    }
}
