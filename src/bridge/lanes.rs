//! What is to go to each server and what is to be heard from it, whatever the connections do. A lane is one server: the one Redis, the
//! master behind Sentinels, or one master of a cluster.

use super::fault::{Fault, FaultKind};
use super::link::{Event, Line, Settings, Way};
use super::servers::{Places, Range, SLOTS, slot_of};
use super::stats::{Breaker, LinkStats, Loss};
use crate::time::{Clock, Time};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionAddr};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::iter::Sum;
use std::ops::{AddAssign, SubAssign};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// What the tasks of a link share with each other and with whoever uses it.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) places: Arc<Places>,
    pub(super) clock: Clock,
    pub(super) stats: Arc<LinkStats>,
    /// Never called inside the lock: it may publish.
    pub(super) tell: Box<dyn Fn(Event<'_>) + Send + Sync>,
    lanes: Mutex<Lanes>,
    /// Rung when the slots of the cluster may have moved.
    pub(super) moved: Notify,
    /// Counts how often the slots were read.
    pub(super) maps: watch::Sender<u64>,
}

/// All lanes. One lock for them all, so that what moves between them keeps its order.
pub(super) struct Lanes {
    /// The lane of each slot; empty when there is no cluster, and then all goes to the one lane.
    slots: Vec<u32>,
    lanes: BTreeMap<u32, Lane>,
    /// The number of the next lane. The first is that of the one server; in a cluster, it keeps what comes before the slots are known.
    next: u32,
}

/// One server. Waiting: at most `waiting_max` publications and `waiting_bytes_max` bytes, those under way included; what comes then is
/// lost and counted as [`Loss::Full`]. Subscriptions: as many as are wanted, each queued at most once.
pub(super) struct Lane {
    pub(super) ends: Arc<Ends>,
    /// The connection to publish and ask on, while there is one.
    pub(super) line: Option<Line>,
    pub(super) breaker: Breaker,
    waiting: VecDeque<Outgoing>,
    /// How many publications wait or are under way, and their bytes.
    held: Weight,
    subscriptions: [HashMap<Arc<[u8]>, Entry>; Way::COUNT],
    /// How many of `subscriptions` are wanted, and how many are made.
    wanted: usize,
    made: usize,
    /// What of `subscriptions` is to be said to Redis. Empty while nobody is there to hear it.
    changes: VecDeque<(Way, Arc<[u8]>)>,
    /// True exactly while there is a connection to hear on.
    listening: bool,
    /// True exactly while it has also confirmed all that was wanted when it was made.
    hearing: bool,
    /// Up to when everything was heard, while something may have been missed since.
    heard_until: Option<Time>,
    up: bool,
    /// Kinds of faults, as bits, that were told since it was up last.
    told: u16,
    /// Kinds of refusals, as bits, that were told since it was lost last.
    refusals_told: u16,
}

/// The ends of a lane's bells, apart from what the lock guards.
pub(super) struct Ends {
    pub(super) id: u32,
    /// Rung when a publication waits where none did before.
    pub(super) publish: Notify,
    /// Rung when a subscription changed where none had before.
    pub(super) subscribe: Notify,
    /// Where the server is. Changes when Sentinels say that the master is another, and ends the connections to the old one.
    pub(super) address: watch::Sender<Option<ConnectionAddr>>,
}

/// A message that waits.
pub(super) struct Outgoing {
    pub(super) cmd: Cmd,
    pub(super) weight: Weight,
    pub(super) slot: usize,
    /// How often it was answered that its slot is elsewhere.
    pub(super) moves: u8,
}

/// How much something counts for the bounds of what may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Publications; one message may hold several.
    pub(super) publications: usize,
    /// Bytes, with [`OVERHEAD_BYTES`] for each message.
    pub(super) bytes: usize,
}

impl AddAssign for Weight {
    fn add_assign(&mut self, more: Weight) {
        self.publications += more.publications;
        self.bytes += more.bytes;
    }
}

impl SubAssign for Weight {
    fn sub_assign(&mut self, less: Weight) {
        self.publications -= less.publications;
        self.bytes -= less.bytes;
    }
}

impl Sum for Weight {
    fn sum<I: Iterator<Item = Weight>>(weights: I) -> Weight {
        weights.fold(Weight::default(), |mut sum, weight| {
            sum += weight;
            sum
        })
    }
}

/// A subscription: what is wanted, what Redis has confirmed, and whether it is among the changes.
#[derive(Clone, Copy, Default)]
struct Entry {
    wanted: bool,
    made: bool,
    queued: bool,
}

/// What a publication costs beside its bytes: its command and its place.
const OVERHEAD_BYTES: usize = 200;

impl Shared {
    pub(super) fn new(
        settings: Settings,
        clock: Clock,
        tell: impl Fn(Event<'_>) + Send + Sync + 'static,
    ) -> Result<Shared, Fault> {
        let places = Arc::new(Places::new(&settings)?);
        let mut lanes = Lanes { slots: Vec::new(), lanes: BTreeMap::new(), next: 0 };
        lanes.add(None);
        let stats = Arc::new(LinkStats::default());
        stats.servers.set(1);
        Ok(Shared {
            settings,
            places,
            clock,
            stats,
            tell: Box::new(tell),
            lanes: Mutex::new(lanes),
            moved: Notify::new(),
            maps: watch::Sender::new(0),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to publish and ask on that `near` belongs to, if there is one.
    pub(super) fn line(&self, near: &[u8]) -> Option<Line> {
        self.lock().of_slot(self.slot(near)).line.clone()
    }

    /// The connections to all servers, in no order that means something; of a server that is down, none.
    pub(super) fn lines(&self) -> Vec<Option<Line>> {
        self.lock().lanes.values().map(|lane| lane.line.clone()).collect()
    }

    /// Where the servers are that are known.
    pub(super) fn addresses(&self) -> Vec<ConnectionAddr> {
        self.lock().lanes.values().filter_map(|lane| lane.ends.address.borrow().clone()).collect()
    }

    /// The first lane, which is there from the start.
    pub(super) fn first(&self) -> Option<Arc<Ends>> {
        self.lock().lanes.values().next().map(|lane| lane.ends.clone())
    }

    /// Counts a fault of something that is no connection of a lane.
    pub(super) fn count_fault(&self, fault: &Fault) {
        let _lanes = self.lock();
        self.stats.faults[fault.kind.index()].add(1);
    }

    /// Counts a fault that a server has answered to one publication or subscription. That the cluster has moved a slot is no news.
    pub(super) fn refused(&self, id: u32, fault: &Fault) {
        self.count_fault(fault);
        if fault.kind.is_of_the_server() || fault.kind == FaultKind::Cluster {
            return;
        }
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        let bit = 1 << fault.kind.index();
        let is_new = lane.refusals_told & bit == 0;
        lane.refusals_told |= bit;
        let server = lane.address();
        drop(lanes);
        if is_new {
            (self.tell)(Event::Refused { server: &server, fault });
        }
    }

    /// Puts a publication into the lane of its server.
    pub(super) fn publish(
        &self,
        way: Way,
        channel: &[u8],
        payload: &[u8],
        publications: usize,
    ) -> Result<(), Loss> {
        let mut cmd = Cmd::with_capacity(3, 10 + channel.len() + payload.len());
        cmd.arg(if way == Way::Sharded { "SPUBLISH" } else { "PUBLISH" }).arg(channel).arg(payload);
        let weight = Weight { publications, bytes: channel.len() + payload.len() + OVERHEAD_BYTES };
        let slot = self.slot(channel);
        let mut lanes = self.lock();
        let lane = lanes.of_slot(slot);
        let settings = &self.settings;
        // A message that is heavier than all that may wait can still go alone.
        let full = lane.held.publications > 0 && lane.held.publications + publications > settings.waiting_max
            || lane.held.bytes + weight.bytes > settings.waiting_bytes_max;
        if lane.breaker != Breaker::Closed || full {
            let loss = if lane.breaker != Breaker::Closed { Loss::Down } else { Loss::Full };
            self.stats.lost[loss.index()].add(publications as u64);
            return Err(loss);
        }
        lane.held += weight;
        lane.waiting.push_back(Outgoing { cmd, weight, slot, moves: 0 });
        self.stats.waiting.add(publications as u64);
        self.stats.waiting_bytes.add(weight.bytes as u64);
        if lane.waiting.len() == 1 {
            lane.ends.publish.notify_one();
        }
        Ok(())
    }

    /// Wants subscriptions, or wants them no longer.
    pub(super) fn want(&self, way: Way, names: impl Iterator<Item = impl AsRef<[u8]>>, wanted: bool) {
        let mut names = names.peekable();
        while names.peek().is_some() {
            let mut lanes = self.lock();
            // A million of them do not hold up who publishes.
            for name in names.by_ref().take(256) {
                let name = name.as_ref();
                lanes.of_slot(self.slot(name)).want(way, name, wanted);
            }
            self.count_subscriptions(&lanes);
        }
    }

    /// The next publications of a lane, at most `count` and about `bytes`.
    pub(super) fn take(&self, id: u32, count: usize, bytes: usize) -> Vec<Outgoing> {
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return Vec::new() };
        let mut left = bytes;
        let fits = |outgoing: &&Outgoing| {
            let before = left;
            left = left.saturating_sub(outgoing.weight.bytes);
            before > 0
        };
        let count = lane.waiting.iter().take(count).take_while(fits).count();
        lane.waiting.drain(..count).collect()
    }

    /// Puts publications that Redis has not taken back to where they were: before all others of their lane.
    pub(super) fn put_back(&self, id: u32, outgoing: Vec<Outgoing>) {
        let mut lanes = self.lock();
        if let Some(lane) = lanes.lanes.get_mut(&id) {
            for outgoing in outgoing.into_iter().rev() {
                lane.waiting.push_front(outgoing);
            }
        }
    }

    /// Publications are no longer held: they arrived, or are lost.
    pub(super) fn settle(&self, id: u32, weight: Weight, loss: Option<Loss>) {
        let mut lanes = self.lock();
        // A lane that is gone has counted them when it went.
        if let Some(lane) = lanes.lanes.get_mut(&id) {
            lane.held -= weight;
            self.count_settled(weight, loss);
        }
    }

    /// A connection to publish on is there.
    pub(super) fn publisher_is_up(&self, id: u32, conn: MultiplexedConnection, again: bool) {
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        lane.line = Some(Line::new(conn));
        lane.breaker = Breaker::Closed;
        self.stats.reconnects.add(u64::from(again));
        self.note(lanes, id, None);
    }

    /// The connection to publish on is gone, or could not be made. With `open`, that has happened too often: the breaker opens, and
    /// what waits is lost.
    pub(super) fn publisher_is_down(&self, id: u32, fault: &Fault, open: bool) {
        let mut lanes = self.lock();
        self.stats.faults[fault.kind.index()].add(1);
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        lane.line = None;
        let opens = open && lane.breaker == Breaker::Closed;
        if open {
            lane.breaker = Breaker::Open;
            let weight = lane.waiting.drain(..).map(|outgoing| outgoing.weight).sum();
            lane.held -= weight;
            self.count_settled(weight, Some(Loss::Down));
        }
        let server = self.note(lanes, id, Some(fault));
        if opens {
            (self.tell)(Event::GivenUp { server: &server, fault });
        }
    }

    /// An open breaker lets an attempt through.
    pub(super) fn publisher_tries(&self, id: u32) {
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        if lane.breaker == Breaker::Open {
            lane.breaker = Breaker::HalfOpen;
        }
        self.note(lanes, id, None);
    }

    /// A connection to hear on is there: all that is wanted is to be said to it.
    pub(super) fn subscriber_is_up(&self, id: u32, again: bool) {
        let mut lanes = self.lock();
        self.stats.reconnects.add(u64::from(again));
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        lane.listening = true;
        lane.say_all();
    }

    /// The connection to hear on is gone, or could not be made; it was heard until then.
    pub(super) fn subscriber_is_down(&self, id: u32, fault: &Fault, heard_until: Option<Time>) {
        let mut lanes = self.lock();
        self.stats.faults[fault.kind.index()].add(1);
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        (lane.listening, lane.hearing) = (false, false);
        lane.heard_until = lane.heard_until.or(heard_until);
        lane.forget_made();
        self.count_subscriptions(&lanes);
        self.note(lanes, id, Some(fault));
    }

    /// The next changes of subscriptions to say to Redis, at most `count`, with whether each is wanted. When there are none, all that was
    /// wanted has been said, and if something may have been missed, that is told.
    pub(super) fn take_changes(&self, id: u32, count: usize) -> Vec<(Way, Arc<[u8]>, bool)> {
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return Vec::new() };
        let mut changes = Vec::new();
        while let Some((way, name)) = lane.changes.pop_front() {
            // What has moved to another lane is said there.
            let Some(entry) = lane.subscriptions[way as usize].get_mut(&name) else { continue };
            entry.queued = false;
            changes.push((way, name, entry.wanted));
            if changes.len() == count {
                break;
            }
        }
        if !changes.is_empty() {
            return changes;
        }
        lane.changes.shrink_to(1024);
        lane.hearing = true;
        let gap = lane.heard_until.take();
        self.note(lanes, id, None);
        if let Some(from) = gap {
            (self.tell)(Event::Gap { from, to: self.clock.now() });
        }
        changes
    }

    /// Redis has done what a change asked for.
    pub(super) fn changed(&self, id: u32, done: impl Iterator<Item = (Way, Arc<[u8]>, bool)>) {
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        for (way, name, made) in done {
            let Some(entry) = lane.subscriptions[way as usize].get_mut(&name) else { continue };
            lane.made = lane.made + usize::from(made) - usize::from(entry.made);
            entry.made = made;
            if !entry.wanted && !entry.made && !entry.queued {
                lane.subscriptions[way as usize].remove(&name);
            }
        }
        self.count_subscriptions(&lanes);
    }

    /// Redis has ended a subscription to a sharded channel: its slot has moved, or we asked for it.
    pub(super) fn ended(&self, id: u32, channel: &[u8]) {
        let mut lanes = self.lock();
        let Some(lane) = lanes.lanes.get_mut(&id) else { return };
        let Some(entry) = lane.subscriptions[Way::Sharded as usize].get_mut(channel) else { return };
        if entry.wanted && entry.made {
            // Should the slots that are read now still say this server, it is said again there, and the answer tells where it is.
            entry.made = false;
            lane.made -= 1;
            lane.heard_until = lane.heard_until.or(Some(self.clock.now()));
            self.moved.notify_one();
        }
    }

    /// Says again what Redis has refused.
    pub(super) fn say_again(&self, id: u32) {
        let mut lanes = self.lock();
        // Looking through all of them is for when there is something to find.
        if let Some(lane) =
            lanes.lanes.get_mut(&id).filter(|lane| lane.changes.is_empty() && lane.wanted != lane.made)
        {
            lane.say_all();
        }
    }

    /// Puts the slots of a cluster to their servers. What waits and is wanted goes with its slot; a server without slots loses its
    /// lane. Answers the lanes that are new and those that are gone.
    pub(super) fn rewire(&self, ranges: &[Range]) -> (Vec<Arc<Ends>>, Vec<u32>) {
        let now = self.clock.now();
        let mut lanes = self.lock();
        let mut ids: HashMap<String, u32> = HashMap::new();
        for (id, lane) in &lanes.lanes {
            if let Some(address) = &*lane.ends.address.borrow() {
                ids.insert(address.to_string(), *id);
            }
        }
        let before: Vec<u32> = lanes.lanes.keys().copied().collect();
        let mut added = Vec::new();
        let mut slots = vec![u32::MAX; SLOTS];
        for range in ranges {
            let id = *ids.entry(range.address.to_string()).or_insert_with(|| {
                let ends = lanes.add(Some(range.address.clone()));
                let id = ends.id;
                added.push(ends);
                id
            });
            slots[usize::from(range.first)..=usize::from(range.last).max(range.first.into())].fill(id);
        }
        // What belongs to a slot that nobody serves goes to anybody, who refuses it.
        let anybody = slots.iter().copied().find(|id| *id != u32::MAX).unwrap_or_default();
        slots.iter_mut().filter(|id| **id == u32::MAX).for_each(|id| *id = anybody);
        let gone: Vec<u32> = before.into_iter().filter(|id| !slots.contains(id)).collect();
        lanes.slots = slots;
        self.move_slots(&mut lanes, &gone, now);
        self.stats.servers.set(lanes.lanes.len() as u64);
        self.count_subscriptions(&lanes);
        lanes.lanes.values().for_each(|lane| {
            lane.ends.publish.notify_one();
            lane.ends.subscribe.notify_one();
        });
        self.count_states(&lanes);
        drop(lanes);
        self.maps.send_modify(|maps| *maps += 1);
        (added, gone)
    }

    /// Moves what is in the wrong lane to the right one, and takes away those that are gone.
    fn move_slots(&self, lanes: &mut Lanes, gone: &[u32], now: Time) {
        let ids: Vec<u32> = lanes.lanes.keys().copied().collect();
        for id in ids {
            let Some(mut lane) = lanes.lanes.remove(&id) else { continue };
            let is_gone = gone.contains(&id);
            let heard_until = lane.heard_until.unwrap_or(now);
            let (stay, go): (VecDeque<Outgoing>, VecDeque<Outgoing>) = std::mem::take(&mut lane.waiting)
                .into_iter()
                .partition(|outgoing| lanes.slots[outgoing.slot] == id);
            lane.waiting = stay;
            // In reverse and to the front: what waits there already came later.
            for outgoing in go.into_iter().rev() {
                lane.held -= outgoing.weight;
                let Some(target) = lanes.lanes.get_mut(&lanes.slots[outgoing.slot]) else { continue };
                target.held += outgoing.weight;
                target.waiting.push_front(outgoing);
            }
            for way in Way::ALL {
                // A plain subscription or a pattern is as good on any server, so it stays while it can.
                if !is_gone && way != Way::Sharded {
                    continue;
                }
                let slots = &lanes.slots;
                let moving: Vec<Arc<[u8]>> = lane.subscriptions[way as usize]
                    .keys()
                    .filter(|name| is_gone || slots[slot_of(name)] != id)
                    .cloned()
                    .collect();
                for name in moving {
                    let Some(entry) = lane.remove(way, &name) else { continue };
                    let Some(target) = lanes.lanes.get_mut(&lanes.slots[slot_of(&name)]) else { continue };
                    if entry.wanted {
                        if entry.made || lane.heard_until.is_some() {
                            target.heard_until = target.heard_until.or(Some(heard_until));
                        }
                        target.want(way, &name, true);
                    }
                }
            }
            if is_gone {
                // What is left is under way, and who waits for its answer is ended.
                self.count_settled(lane.held, Some(Loss::Unknown));
            } else {
                lanes.lanes.insert(id, lane);
            }
        }
    }

    /// Counts and tells what has become of a lane, gives the lock back, and answers where the server is.
    fn note(&self, mut lanes: MutexGuard<'_, Lanes>, id: u32, fault: Option<&Fault>) -> String {
        let Some(lane) = lanes.lanes.get_mut(&id) else { return String::new() };
        let up = lane.line.is_some() && lane.hearing;
        let was_up = std::mem::replace(&mut lane.up, up);
        let server = lane.address();
        if was_up && !up {
            lane.refusals_told = 0;
        }
        // Each kind once, so that a server that is away for hours takes a few lines of the log.
        let bit = fault.map_or(0, |fault| 1 << fault.kind.index());
        let is_new = lane.told & bit != bit;
        lane.told = if up { 0 } else { lane.told | bit };
        self.count_states(&lanes);
        drop(lanes);
        match fault {
            _ if up && !was_up => (self.tell)(Event::Up { server: &server }),
            Some(fault) if was_up && !up => (self.tell)(Event::Down { server: &server, fault }),
            Some(fault) if !up && is_new => (self.tell)(Event::Away { server: &server, fault }),
            _ => {}
        }
        server
    }

    fn slot(&self, name: &[u8]) -> usize {
        if self.places.are_a_cluster() { slot_of(name) } else { 0 }
    }

    fn count_states(&self, lanes: &Lanes) {
        let worst = lanes.lanes.values().map(|lane| lane.breaker).max().unwrap_or(Breaker::Open);
        self.stats.breaker.set(worst.index() as u64);
        self.stats.servers_up.set(lanes.lanes.values().filter(|lane| lane.up).count() as u64);
    }

    fn count_subscriptions(&self, lanes: &Lanes) {
        let sum = |number: fn(&Lane) -> usize| lanes.lanes.values().map(number).sum::<usize>() as u64;
        self.stats.subscriptions.set(sum(|lane| lane.made));
        self.stats.subscriptions_wanted.set(sum(|lane| lane.wanted));
    }

    fn count_settled(&self, weight: Weight, loss: Option<Loss>) {
        let publications = weight.publications as u64;
        self.stats.waiting.sub(publications);
        self.stats.waiting_bytes.sub(weight.bytes as u64);
        match loss {
            None => self.stats.published.add(publications),
            Some(loss) => self.stats.lost[loss.index()].add(publications),
        }
    }
}

impl Lanes {
    fn of_slot(&mut self, slot: usize) -> &mut Lane {
        let id = self.slots.get(slot).copied().unwrap_or_default();
        self.lanes.get_mut(&id).expect("each slot's lane is there, and before there are slots, the first one")
    }

    fn add(&mut self, address: Option<ConnectionAddr>) -> Arc<Ends> {
        let ends = Arc::new(Ends {
            id: self.next,
            publish: Notify::new(),
            subscribe: Notify::new(),
            address: watch::Sender::new(address),
        });
        self.next += 1;
        let lane = Lane {
            ends: ends.clone(),
            line: None,
            breaker: Breaker::Closed,
            waiting: VecDeque::new(),
            held: Weight::default(),
            subscriptions: Default::default(),
            wanted: 0,
            made: 0,
            changes: VecDeque::new(),
            listening: false,
            hearing: false,
            heard_until: None,
            up: false,
            told: 0,
            refusals_told: 0,
        };
        self.lanes.insert(ends.id, lane);
        ends
    }
}

impl Lane {
    fn want(&mut self, way: Way, name: &[u8], wanted: bool) {
        let subscriptions = &mut self.subscriptions[way as usize];
        if wanted && !subscriptions.contains_key(name) {
            subscriptions.insert(name.into(), Entry::default());
        }
        let Some(entry) = subscriptions.get_mut(name).filter(|entry| entry.wanted != wanted) else { return };
        entry.wanted = wanted;
        self.wanted = self.wanted + usize::from(wanted) - usize::from(!wanted);
        if !self.listening {
            // Nobody has said anything about it to Redis, nor will.
            if !wanted {
                subscriptions.remove(name);
            }
        } else if !entry.queued {
            // Also when it seems to be as wanted: the opposite may be under way.
            entry.queued = true;
            let (name, _) = subscriptions.get_key_value(name).expect("it was there just now");
            self.changes.push_back((way, name.clone()));
            if self.changes.len() == 1 {
                self.ends.subscribe.notify_one();
            }
        }
    }

    fn remove(&mut self, way: Way, name: &[u8]) -> Option<Entry> {
        let entry = self.subscriptions[way as usize].remove(name)?;
        self.wanted -= usize::from(entry.wanted);
        self.made -= usize::from(entry.made);
        Some(entry)
    }

    /// Where the server is, or nothing when that is not known.
    fn address(&self) -> String {
        self.ends.address.borrow().as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Queues all that is not as it is wanted.
    fn say_all(&mut self) {
        for way in Way::ALL {
            for (name, entry) in &mut self.subscriptions[way as usize] {
                if entry.wanted != entry.made && !entry.queued {
                    entry.queued = true;
                    self.changes.push_back((way, name.clone()));
                }
            }
        }
        self.ends.subscribe.notify_one();
    }

    /// Nothing is made any more.
    fn forget_made(&mut self) {
        self.changes = VecDeque::new();
        self.made = 0;
        for subscriptions in &mut self.subscriptions {
            subscriptions.retain(|_, entry| entry.wanted);
            subscriptions.values_mut().for_each(|entry| (entry.made, entry.queued) = (false, false));
        }
    }
}
