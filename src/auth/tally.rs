//! How many events clients have sent of what the limits on events allow.
//!
//! Events are counted in windows: one begins with a subject's first event and lasts as long as the limit says, and what comes after it
//! begins the next. So a subject has never more than `count` events in a window, and in any span of time as long as a window fewer than
//! twice as many. What is refused is not counted.

use super::{Ip, Subject, User};
use crate::rules::{EventLimit, EventLimits, Over, Per};
use crate::time::Time;
use arc_swap::{ArcSwap, Guard};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What the subjects of a process have used: its addresses and users; of what single connections may send, each shard keeps its own
/// [`Windows`]. Bounded as they are.
pub struct Tally {
    limits: ArcSwap<EventLimits>,
    windows_max: usize,
    hasher: RandomState,
    stripes: Box<[Mutex<Stripe>]>,
    /// Events refused, by the place of the limit.
    refused: Box<[AtomicU64]>,
    /// How the bridge is woken, when other processes count as well.
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// True when the bell has been rung and nobody has looked since.
    rung: AtomicBool,
    /// The stripe that is looked into first the next time.
    next_stripe: AtomicUsize,
}

/// A part of the subjects.
#[derive(Debug)]
struct Stripe {
    windows: Windows<Key>,
    /// Whose windows have changed and were not told to others. At most as many as there may be windows: another change of what found no
    /// place tells it as well.
    changed: HashSet<Key>,
}

/// A limit, by its place, and who has it.
pub type Key = (u16, Subject);

/// What a window has used in this process.
#[derive(Clone, Debug)]
pub struct Used {
    /// Which.
    pub key: Key,
    /// Events since it began, or bytes of them.
    pub used: u32,
    /// When it ends.
    pub until: Time,
}

/// One event too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Milliseconds after which no limit is in its way, as far as is known; at least 1.
    pub retry_ms: u32,
    /// What happens to it: what the first of the limits says.
    pub over: Over,
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Tally {
    const STRIPES: usize = 64;

    /// Nothing is used yet. At most `windows_max` windows are counted at a time, and as many for connections.
    pub fn new(limits: EventLimits, windows_max: usize) -> Tally {
        let stripe = |_| {
            let windows = Windows::new(windows_max.div_ceil(Tally::STRIPES));
            Mutex::new(Stripe { windows, changed: HashSet::new() })
        };
        Tally {
            stripes: (0..Tally::STRIPES).map(stripe).collect(),
            refused: (0..EventLimits::PLACES).map(|_| AtomicU64::new(0)).collect(),
            limits: ArcSwap::from_pointee(limits),
            windows_max,
            hasher: RandomState::new(),
            bell: OnceLock::new(),
            rung: AtomicBool::new(false),
            next_stripe: AtomicUsize::new(0),
        }
    }

    /// From now on these are the limits. Of those that were there before, what is used stays used; what is known of the others is forgotten:
    /// that takes some milliseconds for a million windows, in which no more than a part of the subjects waits at a time.
    pub fn set_limits(&self, limits: EventLimits) {
        let limits = Arc::new(limits.after(&self.limits()));
        let earlier = self.limits.swap(limits.clone());
        for place in earlier.numbered().map(|(place, _)| place).filter(|place| !limits.has(*place)) {
            self.refused[usize::from(place)].store(0, Relaxed);
        }
        // What somebody counts in this moment by the earlier limits stands in a place that has none, and ends by itself.
        for at in 0..self.stripes.len() {
            let Stripe { windows, changed } = &mut *self.lock(at);
            windows.retain(|(place, _)| limits.has(*place));
            changed.retain(|(place, _)| limits.has(*place));
        }
    }

    /// The limits, to be looked at and let go of.
    pub fn limits(&self) -> Guard<Arc<EventLimits>> {
        self.limits.load()
    }

    /// True when there are none: no more than a look.
    pub fn is_unlimited(&self) -> bool {
        self.limits.load().is_empty()
    }

    /// Windows that may be counted at a time.
    pub fn windows_max(&self) -> usize {
        self.windows_max
    }

    /// Counts an event with so many `bytes` against `limits`, which are some of its own, for the connection with this `stamp` and whose
    /// address and user these are. Windows of connections are counted in `own`.
    ///
    /// # Errors
    /// When one of the limits is reached. Then it is counted against none.
    pub fn take<'l, I: Iterator<Item = (u16, &'l EventLimit)>>(
        &self,
        limits: impl Fn() -> I,
        own: &mut Windows<(u16, u32)>,
        (stamp, ip, user): (u32, Ip, Option<&Arc<User>>),
        bytes: usize,
        now: Time,
    ) -> Result<(), Excess> {
        let subject = |limit: &EventLimit| match (limit.per, user) {
            (Per::Connection, _) => None,
            (Per::User, Some(user)) => Some(Subject::User(user.clone())),
            (Per::Ip, _) | (Per::User, None) => Some(Subject::Ip(ip)),
        };
        let mut excess: Option<Excess> = None;
        let mut reached: SmallVec<[u16; 8]> = SmallVec::new();
        for (place, limit) in limits() {
            let taken = match subject(limit) {
                None => own.take((place, stamp), limit.into(), limit.unit.weight(bytes), now).map(|_| ()),
                Some(subject) => self.take_shared((place, subject), limit, bytes, now),
            };
            if let Err(retry_ms) = taken {
                reached.push(place);
                self.refused[usize::from(place)].fetch_add(1, Relaxed);
                let first = excess.get_or_insert(Excess { retry_ms, over: limit.over });
                first.retry_ms = first.retry_ms.max(retry_ms);
            }
        }
        let Some(excess) = excess else { return Ok(()) };
        for (place, limit) in limits().filter(|(place, _)| !reached.contains(place)) {
            match subject(limit) {
                None => own.give_back(&(place, stamp), limit.unit.weight(bytes)),
                Some(subject) => {
                    let key = (place, subject);
                    self.stripe(&key).windows.give_back(&key, limit.unit.weight(bytes));
                }
            }
        }
        Err(excess)
    }

    fn take_shared(&self, key: Key, limit: &EventLimit, bytes: usize, now: Time) -> Result<(), u32> {
        let (quota, weight) = (Quota::from(limit), limit.unit.weight(bytes));
        let mut stripe = self.stripe(&key);
        let Stripe { windows, changed } = &mut *stripe;
        let Some(bell) = self.bell.get() else {
            return windows.take(key, quota, weight, now).map(|_| ());
        };
        let window = windows.take(key.clone(), quota, weight, now)?;
        let is_pressing = u64::from(window.used) + u64::from(window.elsewhere) >= u64::from(quota.most / 2);
        if changed.len() < windows.most {
            changed.insert(key);
        }
        drop(stripe);
        // Others should know soon: they may be near the limit as well.
        if is_pressing && !self.rung.load(Relaxed) && !self.rung.swap(true, Relaxed) {
            bell();
        }
        Ok(())
    }

    /// From now on windows are counted over several processes. `bell` is called, from any thread, when what has changed should be told
    /// sooner than usual; not again before [`Tally::take_changed`].
    pub fn share(&self, bell: Box<dyn Fn() + Send + Sync>) {
        assert!(self.bell.set(bell).is_ok(), "there is one bridge");
    }

    /// Some windows that have changed, at most `most`, and whether others are left.
    pub fn take_changed(&self, most: usize, now: Time) -> (Vec<Used>, bool) {
        self.rung.store(false, Relaxed);
        let mut taken = Vec::new();
        let first = self.next_stripe.load(Relaxed);
        for at in 0..self.stripes.len() {
            let at = (first + at) % self.stripes.len();
            let mut stripe = self.lock(at);
            if taken.len() >= most && !stripe.changed.is_empty() {
                self.next_stripe.store(at, Relaxed);
                return (taken, true);
            }
            let Stripe { windows, changed } = &mut *stripe;
            let mut left = mem::take(changed).into_iter();
            for key in left.by_ref().take(most - taken.len()) {
                let window = windows.windows.get(&key).filter(|window| window.until > now);
                taken.extend(window.map(|window| Used { key, used: window.used, until: window.until }));
            }
            changed.extend(left);
        }
        (taken, false)
    }

    /// What was taken could not be told.
    pub fn note_again(&self, untold: impl IntoIterator<Item = Used>) {
        for Used { key, .. } in untold {
            let mut stripe = self.stripe(&key);
            if stripe.changed.len() < stripe.windows.most {
                stripe.changed.insert(key);
            }
        }
    }

    /// Other processes have used `elsewhere` in this window, and it ends `until` then for all of them.
    pub fn set_elsewhere(&self, told: &Used, elsewhere: u32, until: Time) {
        let mut stripe = self.stripe(&told.key);
        // Not if another has begun meanwhile.
        if let Some(window) = stripe.windows.windows.get_mut(&told.key)
            && window.until == told.until
        {
            window.elsewhere = elsewhere;
            window.until = until;
        }
    }

    /// Events refused so far, by the limit.
    pub fn refused(&self) -> Vec<(EventLimit, u64)> {
        let limits = self.limits();
        let count = |place: u16| self.refused[usize::from(place)].load(Relaxed);
        limits.numbered().map(|(place, limit)| (limit.clone(), count(place))).collect()
    }

    /// Windows that there is memory for now, and windows that had to go before their end.
    pub fn held(&self) -> (usize, u64) {
        (0..self.stripes.len()).fold((0, 0), |(held, crowded_out), at| {
            let windows = &self.lock(at).windows;
            (held + windows.windows.len(), crowded_out + windows.crowded_out)
        })
    }

    fn stripe(&self, key: &Key) -> MutexGuard<'_, Stripe> {
        self.lock(self.hasher.hash_one(key) as usize % Tally::STRIPES)
    }

    fn lock(&self, at: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Windows that are open, and some that have ended and were not looked at since. At most `most`: when there are as many and none has
/// ended, those of an eighth that end first are forgotten, so that their subjects begin anew. Nobody is refused because there are many.
#[derive(Debug)]
pub struct Windows<K> {
    windows: HashMap<K, Window>,
    most: usize,
    /// With so many, those that have ended are looked for. Twice as many as were left the last time, so that it costs little for each.
    sweep_at: usize,
    /// How many were forgotten before their end.
    crowded_out: u64,
}

/// How much there may be in a window, and how long that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// When so much is used up, nothing more may come. What comes last may go beyond it.
    pub most: u32,
    /// In milliseconds, from what comes first.
    pub window_ms: u32,
}

impl From<&EventLimit> for Quota {
    fn from(limit: &EventLimit) -> Quota {
        Quota { most: limit.most, window_ms: limit.window_ms }
    }
}

/// One window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// When it ends.
    until: Time,
    /// What this process has used of it: events, or bytes of them.
    used: u32,
    /// What other processes have, as far as is known.
    elsewhere: u32,
}

impl<K: Hash + Eq> Windows<K> {
    /// Below so many it does not matter how many of them have ended.
    const SWEEP_MIN: usize = 256;

    /// No windows, and never more than `most`, at least one.
    pub fn new(most: usize) -> Windows<K> {
        let most = most.max(1);
        Windows { windows: HashMap::new(), most, sweep_at: most.min(Self::SWEEP_MIN), crowded_out: 0 }
    }

    /// Counts something, by its `weight`.
    ///
    /// # Errors
    /// The milliseconds to the end of the window, when all of it is used up.
    pub(super) fn take(&mut self, key: K, quota: Quota, weight: u32, now: Time) -> Result<&Window, u32> {
        let fresh = Window { until: now.plus_ms(quota.window_ms.into()), used: 0, elsewhere: 0 };
        if self.windows.len() >= self.sweep_at && !self.windows.contains_key(&key) {
            self.make_room(now);
        }
        let window = self.windows.entry(key).or_insert(fresh);
        if window.until <= now {
            *window = fresh;
        }
        if window.used.saturating_add(window.elsewhere) >= quota.most {
            return Err(window.until.since_ns(now).div_ceil(1_000_000).max(1) as u32);
        }
        window.used = window.used.saturating_add(weight);
        Ok(window)
    }

    /// Forgets the windows whose keys are not kept.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.windows.retain(|key, _| keep(key));
        self.windows.shrink_to(self.sweep_at);
    }

    /// What was counted was not carried out.
    fn give_back(&mut self, key: &K, weight: u32) {
        if let Some(window) = self.windows.get_mut(key) {
            window.used = window.used.saturating_sub(weight);
        }
    }

    /// Forgets what has ended, and if that is not enough, what ends first.
    fn make_room(&mut self, now: Time) {
        self.windows.retain(|_, window| window.until > now);
        if self.windows.len() >= self.most {
            let mut ends: Vec<Time> = self.windows.values().map(|window| window.until).collect();
            let (_, last, _) = ends.select_nth_unstable(self.most / 8);
            let (last, mut more) = (*last, self.most / 8 + 1);
            let before = self.windows.len();
            self.windows.retain(|_, window| {
                let goes = window.until <= last && more > 0;
                more -= usize::from(goes);
                !goes
            });
            self.crowded_out += (before - self.windows.len()) as u64;
        }
        self.sweep_at = (2 * self.windows.len()).max(Self::SWEEP_MIN).min(self.most);
        self.windows.shrink_to(self.sweep_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Unit;

    const START: Time = Time::from_ms(1 << 33);

    fn limit(event: &str, per: Per, count: u32, window_ms: u32) -> EventLimit {
        let event = (event != "*").then(|| event.to_owned());
        EventLimit {
            event,
            namespace: None,
            per,
            most: count,
            unit: Unit::Events,
            window_ms,
            over: Over::Error,
        }
    }

    fn tally(limits: &[EventLimit]) -> Tally {
        Tally::new(EventLimits::new(limits.to_vec()), 10_000)
    }

    fn user(name: &str) -> Arc<User> {
        Arc::new(User::named(name))
    }

    /// The event of connection 1, of an address and perhaps of a user: how long to wait, if it was one too many.
    fn send(tally: &Tally, event: &str, ip: u64, user: Option<&Arc<User>>, now: Time) -> Option<u32> {
        let who = (1, Ip(ip), user);
        let all = tally.limits();
        let limits = || all.find(None, event);
        tally.take(limits, &mut Windows::new(10), who, 100, now).err().map(|excess| excess.retry_ms)
    }

    #[test]
    fn a_window_begins_with_its_first_event_and_says_when_it_ends() {
        let tally = tally(&[limit("bid", Per::Ip, 3, 1000)]);
        for ms in [0, 400, 400] {
            assert_eq!(send(&tally, "bid", 1, None, START.plus_ms(ms)), None);
        }
        assert_eq!(send(&tally, "bid", 1, None, START.plus_ms(400)), Some(600));
        assert_eq!(send(&tally, "bid", 1, None, START.plus_ns(999_999_999)), Some(1), "never 0");
        assert_eq!(send(&tally, "bid", 2, None, START), None, "another address");
        assert_eq!(send(&tally, "chat", 1, None, START), None, "another event");
        for _ in 0..3 {
            assert_eq!(send(&tally, "bid", 1, None, START.plus_ms(1000)), None, "the next window");
        }
        assert_eq!(send(&tally, "bid", 1, None, START.plus_ms(1500)), Some(500));
        let refused: Vec<u64> = tally.refused().into_iter().map(|(_, count)| count).collect();
        assert_eq!(refused, [3]);
    }

    #[test]
    fn what_is_used_of_a_limit_stays_used_when_others_come_and_go() {
        let (bid, chat) = (limit("bid", Per::Ip, 2, 1000), limit("chat", Per::Ip, 1, 1000));
        let tally = tally(&[chat.clone(), bid.clone()]);
        for event in ["bid", "chat"] {
            assert_eq!(send(&tally, event, 1, None, START), None);
        }
        assert_eq!(send(&tally, "chat", 1, None, START), Some(1000));
        // The first goes, and the other takes its place in the list.
        tally.set_limits(EventLimits::new(vec![bid.clone(), limit("*", Per::Ip, 9, 1000)]));
        assert_eq!(tally.held().0, 1, "what was counted of the one that is gone is forgotten");
        assert_eq!(send(&tally, "bid", 1, None, START), None);
        assert_eq!(send(&tally, "bid", 1, None, START), Some(1000), "the third");
        // What comes back is new.
        tally.set_limits(EventLimits::new(vec![bid, chat]));
        assert_eq!(send(&tally, "chat", 1, None, START), None);
        let refused: Vec<u64> = tally.refused().into_iter().map(|(_, count)| count).collect();
        assert_eq!(refused, [1, 0]);
        // However often they change, places are enough.
        for most in 1..3000 {
            tally.set_limits(EventLimits::new(vec![limit("bid", Per::Ip, most, 1000); 500]));
        }
    }

    #[test]
    fn who_is_no_user_counts_by_its_address() {
        let tally = tally(&[limit("bid", Per::User, 1, 1000)]);
        let (anna, also_anna, bela) = (user("anna"), user("anna"), user("bela"));
        assert_eq!(send(&tally, "bid", 1, Some(&anna), START), None);
        assert_eq!(send(&tally, "bid", 2, Some(&also_anna), START), Some(1000), "wherever she is");
        assert_eq!(send(&tally, "bid", 1, Some(&bela), START), None);
        assert_eq!(send(&tally, "bid", 1, None, START), None);
        assert_eq!(send(&tally, "bid", 1, None, START), Some(1000));
    }

    #[test]
    fn bytes_are_used_up_by_what_goes_beyond_them() {
        let most = EventLimit { unit: Unit::Bytes, ..limit("bid", Per::Ip, 250, 1000) };
        let limits = [most, limit("bid", Per::Connection, 4, 500)];
        let tally = tally(&limits);
        let mut own = Windows::new(10);
        let mut send = |bytes: usize, stamp: u32| {
            let all = tally.limits();
            let limits = || all.find(None, "bid");
            let taken = tally.take(limits, &mut own, (stamp, Ip(1), None), bytes, START);
            taken.err().map(|excess| excess.retry_ms)
        };
        assert_eq!([0, 100, 100, 49].map(|bytes| send(bytes, 1)), [None; 4]);
        assert_eq!(send(1, 1), Some(500), "the other limit: these bytes are given back");
        assert_eq!(send(1_000_000, 2), None, "one is left");
        assert_eq!([0, 1].map(|bytes| send(bytes, 2)), [Some(1000); 2]);
    }

    #[test]
    fn what_one_limit_refuses_counts_against_none() {
        let limits = [
            limit("*", Per::Ip, 3, 1000),
            limit("bid", Per::Connection, 1, 5000),
            limit("bid", Per::Ip, 2, 500),
        ];
        let (tally, mut own) = (tally(&limits), Windows::new(10));
        let mut send = |event: &str, stamp: u32| {
            let all = tally.limits();
            let limits = || all.find(None, event);
            tally.take(limits, &mut own, (stamp, Ip(1), None), 100, START).err().map(|excess| excess.retry_ms)
        };
        assert_eq!(send("bid", 1), None);
        for _ in 0..10 {
            assert_eq!(send("bid", 1), Some(5000));
        }
        assert_eq!(send("bid", 2), None, "another connection");
        assert_eq!(send("bid", 2), Some(5000), "the longest of the waits");
        assert_eq!(send("chat", 1), None, "the third event of this address");
        assert_eq!(send("chat", 1), Some(1000));
    }

    #[test]
    fn what_others_have_used_counts() {
        let tally = tally(&[limit("bid", Per::Ip, 10, 1000)]);
        let rung = Arc::new(AtomicUsize::new(0));
        let ringing = rung.clone();
        tally.share(Box::new(move || {
            ringing.fetch_add(1, Relaxed);
        }));
        (0..4).for_each(|_| assert_eq!(send(&tally, "bid", 1, None, START), None));
        assert_eq!(rung.load(Relaxed), 0, "there is time");
        (0..4).for_each(|_| assert_eq!(send(&tally, "bid", 1, None, START), None));
        assert_eq!(rung.load(Relaxed), 1, "others should know, and are told once");
        let (changed, more) = tally.take_changed(100, START);
        let told = changed[0].clone();
        assert_eq!((changed.len(), more, told.used, told.until), (1, false, 8, START.plus_ms(1000)));
        assert!(tally.take_changed(100, START).0.is_empty());
        // It began elsewhere, and ends when it ends there.
        tally.set_elsewhere(&told, 1, START.plus_ms(300));
        assert_eq!(send(&tally, "bid", 1, None, START), None);
        assert_eq!(send(&tally, "bid", 1, None, START), Some(300));
        assert_eq!((rung.load(Relaxed), tally.take_changed(100, START).0[0].used), (2, 9));
        assert_eq!(send(&tally, "bid", 1, None, START.plus_ms(300)), None);
        tally.set_elsewhere(&told, 9, START.plus_ms(1000));
        assert_eq!(send(&tally, "bid", 1, None, START.plus_ms(300)), None, "that was about another window");
        tally.note_again([told]);
        assert_eq!(tally.take_changed(100, START.plus_ms(1300)).0.len(), 0, "it has ended");
    }

    #[test]
    fn changes_are_told_some_at_a_time() {
        let tally = tally(&[limit("bid", Per::Ip, 10, 1000)]);
        tally.share(Box::new(|| {}));
        (0..1000).for_each(|ip| assert_eq!(send(&tally, "bid", ip, None, START), None));
        let mut told = HashSet::new();
        for round in 1..=10 {
            let (changed, more) = tally.take_changed(100, START);
            assert_eq!((changed.len(), more), (100, round < 10));
            told.extend(changed.into_iter().map(|used| used.key));
        }
        assert_eq!(told.len(), 1000);
    }

    #[test]
    fn a_million_subjects_take_no_more_memory_than_they_may() {
        let tally = tally(&[limit("bid", Per::Ip, 1, 60_000)]);
        tally.share(Box::new(|| {}));
        for ip in 0..1_000_000 {
            let now = START.plus_ns(ip * 1000);
            assert_eq!(send(&tally, "bid", ip, None, now), None, "nobody suffers from others");
            assert!(ip % 16 != 0 || send(&tally, "bid", ip, None, now) == Some(60_000));
        }
        let (held, forgotten) = tally.held();
        let most = 10_000usize.div_ceil(Tally::STRIPES) * Tally::STRIPES;
        assert!(held <= most && held > most / 2, "{held}");
        assert_eq!(held as u64 + forgotten, 1_000_000);
        for stripe in &tally.stripes {
            let stripe = stripe.lock().expect("nobody panicked");
            assert!(stripe.windows.windows.capacity() <= 4 * stripe.windows.most);
            assert!(stripe.changed.len() <= stripe.windows.most);
        }
        assert_eq!(
            send(&tally, "bid", 999_999, None, START.plus_ms(2000)),
            Some(59_000),
            "the last are there"
        );
    }

    #[test]
    fn windows_that_have_ended_are_forgotten_first() {
        let mut windows = Windows::new(1_000);
        let (long, short) = (Quota { most: 1, window_ms: 60_000 }, Quota { most: 1, window_ms: 10 });
        assert!((0..500).all(|key| windows.take(key, long, 1, START).is_ok()));
        for key in 1_000..20_000_u64 {
            assert!(windows.take(key, short, 1, START.plus_ms(key / 10)).is_ok());
        }
        assert_eq!(windows.crowded_out, 0);
        assert!((0..500).all(|key| windows.take(key, long, 1, START.plus_ms(3_000)).is_err()), "these go on");
        assert!(windows.windows.len() <= 1_000);
    }
}
