//! What the backend is told: connections that come and go, rooms that are occupied and vacated, events that it has chosen.
//!
//! Shards leave notices here and never wait; the thread that delivers them takes them. What does not fit is lost, counted, and told with
//! the next batch that goes out.

use super::directory::NAMESPACE_END;
use crate::message::{ShardId, SocketId};
use crate::rules::EventChoice;
use crate::stats::Counter;
use crate::time::Time;
use compact_str::CompactString;
use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

/// What a notice counts for besides the texts in it, in bytes.
const NOTICE_BYTES: usize = 256;

/// What is wanted, and how much of it may wait.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which kinds, by [`Kind::index`]. Of events, those that `events` has.
    pub kinds: [bool; Kind::LABELS.len()],
    /// Which events of clients.
    pub events: Vec<EventChoice>,
    /// Notices that may wait, those under way included.
    pub waiting_max: usize,
    /// Bytes of them.
    pub waiting_bytes_max: usize,
    /// How many batches may be under way at a time, at least 1: notices of one connection, and of one room, are always in the same lane.
    pub lanes: usize,
    /// Milliseconds from 1970 to the clock's origin.
    pub origin_unix_ms: u64,
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client is there: a connection, or of Socket.IO one in a namespace.
    Connected,
    /// It has gone.
    Disconnected,
    /// A room has its first member in this process.
    Occupied,
    /// It has none any more.
    Vacated,
    /// A client has sent an event that was chosen.
    Event,
}

impl Kind {
    /// The labels of all kinds, in the order of [`Kind::index`].
    pub const LABELS: [&'static str; 5] = ["connected", "disconnected", "occupied", "vacated", "event"];

    /// The place of this kind in [`Kind::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its label.
    pub fn label(self) -> &'static str {
        Kind::LABELS[self as usize]
    }
}

/// Why a notice was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// As many as may wait did.
    Full,
    /// The other side does not want it.
    Refused,
    /// It has waited for too long.
    Expired,
}

impl Lost {
    /// The labels of all reasons, in the order of the numbers.
    pub const LABELS: [&'static str; 3] = ["full", "refused", "expired"];
}

/// One thing that the backend is told.
#[derive(Debug)]
pub struct Notice {
    /// From 1, ascending in the process: of one connection, or of one room, in the order in which things happened.
    pub number: u64,
    /// When it happened, in milliseconds since 1970; `None` for just now.
    pub at_unix_ms: Option<u64>,
    /// What happened.
    pub what: What,
    /// What it counts for while it waits.
    pub bytes: usize,
}

/// See [`Notice`].
#[derive(Debug)]
pub enum What {
    /// See [`Kind::Connected`].
    Connected {
        /// Who.
        who: Who,
        /// The address that limits count it for.
        address: CompactString,
        /// True for a Socket.IO session that had dropped out and is back.
        recovered: bool,
    },
    /// See [`Kind::Disconnected`].
    Disconnected {
        /// Who.
        who: Who,
        /// The label of its [`Ending`](crate::stats::Ending).
        reason: &'static str,
        /// The code of the close frame that one side has sent, if one has.
        code: Option<u16>,
        /// For how long it was there, in milliseconds.
        duration_ms: u64,
    },
    /// See [`Kind::Occupied`] and [`Kind::Vacated`].
    Room {
        /// Its name, as the directory has it.
        name: CompactString,
        /// True for occupied.
        occupied: bool,
    },
    /// See [`Kind::Event`].
    Event {
        /// Who.
        who: Who,
        /// Its name.
        event: CompactString,
        /// The rooms that a native client has published it to.
        rooms: Vec<CompactString>,
        /// Its arguments in JSON, with commas between.
        args: Box<str>,
        /// What the placeholders in them stand for.
        attachments: Vec<Vec<u8>>,
    },
}

/// A client, as notices name it.
#[derive(Debug)]
pub struct Who {
    /// Its id, as the API has it.
    pub id: SocketId,
    /// What it speaks.
    pub dialect: &'static str,
    /// Of a client of Socket.IO, the namespace that the id is for.
    pub namespace: Option<CompactString>,
    /// Its user, if that is known.
    pub user: Option<CompactString>,
}

impl What {
    fn kind(&self) -> Kind {
        match self {
            What::Connected { .. } => Kind::Connected,
            What::Disconnected { .. } => Kind::Disconnected,
            What::Room { occupied: true, .. } => Kind::Occupied,
            What::Room { occupied: false, .. } => Kind::Vacated,
            What::Event { .. } => Kind::Event,
        }
    }
}

impl Notice {
    /// What it is about.
    pub fn kind(&self) -> Kind {
        self.what.kind()
    }

    /// A number that is the same for all notices of one client, and of one room.
    pub fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match &self.what {
            What::Connected { who, .. } | What::Disconnected { who, .. } | What::Event { who, .. } => {
                who.id.hash(&mut hasher);
            }
            What::Room { name, .. } => name.hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// What waits to be told. Bounded by `waiting_max` and `waiting_bytes_max`, what is under way included: a notice beyond that is lost, and
/// those that wait stay.
pub struct Notices {
    settings: Settings,
    /// One for each shard, and one for rooms, which whoever holds a room's stripe writes.
    queues: Box<[Aligned]>,
    /// What tells the notices of this process from those of others and of its earlier lives.
    life: u64,
    /// The number of the last notice. Taken inside a queue's lock, so that what [`Notices::take`] takes has no gap.
    number: AtomicU64,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Notices that were lost and of which nobody was told.
    untold: AtomicU64,
    /// Notices by kind, those that were lost included.
    made: [AtomicU64; Kind::LABELS.len()],
    /// Those that were lost, by kind and reason.
    lost: [[AtomicU64; Lost::LABELS.len()]; Kind::LABELS.len()],
    /// Batches that were delivered. Written by the thread that delivers, like the next.
    pub batches: Counter,
    /// Attempts to deliver a batch that failed and were followed by another.
    pub retries: Counter,
    /// For each lane, when the oldest that waits there happened, in milliseconds since 1970; 0 when nothing does.
    oldest_unix_ms: Box<[AtomicU64]>,
    /// True when something waits and the bell has not been rung for it.
    has_news: AtomicBool,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// True once the process is about to end: nothing lingers any more.
    ending: watch::Sender<bool>,
}

/// Apart from its neighbours: each shard writes its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Aligned(Mutex<Vec<Notice>>);

impl Notices {
    /// Nothing yet, for a process with `shards` shards.
    pub fn new(shards: usize, settings: Settings) -> Notices {
        Notices {
            queues: (0..=shards).map(|_| Aligned::default()).collect(),
            life: RandomState::new().hash_one(settings.origin_unix_ms),
            number: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            untold: AtomicU64::new(0),
            made: Default::default(),
            lost: Default::default(),
            batches: Counter::default(),
            retries: Counter::default(),
            oldest_unix_ms: (0..settings.lanes).map(|_| AtomicU64::new(0)).collect(),
            has_news: AtomicBool::new(false),
            bell: OnceLock::new(),
            ending: watch::Sender::new(false),
            settings,
        }
    }

    /// True when notices of this kind are wanted.
    pub fn wants(&self, kind: Kind) -> bool {
        self.settings.kinds[kind.index()]
    }

    /// True when this event is wanted; clients of the native protocol have no `namespace`.
    pub fn wants_event(&self, namespace: Option<&str>, event: &str) -> bool {
        self.settings.events.iter().any(|choice| choice.is_for(namespace, event))
    }

    /// Leaves what a shard has to tell, which happened at `now`. The texts in it have `text_bytes` bytes. Where there is no room, it is not
    /// even made.
    pub fn leave(
        &self,
        shard: ShardId,
        kind: Kind,
        text_bytes: usize,
        now: Time,
        make: impl FnOnce() -> What,
    ) {
        let at_unix_ms = self.settings.origin_unix_ms + now.ms();
        self.put(usize::from(shard), kind, text_bytes, Some(at_unix_ms), make);
    }

    /// Leaves that a room is occupied or vacated. Inside its stripe, so that it is told in order.
    pub(super) fn leave_room(&self, name: &str, occupied: bool) {
        let kind = if occupied { Kind::Occupied } else { Kind::Vacated };
        // A namespace is no room for those outside.
        if self.wants(kind) && !name.ends_with(NAMESPACE_END) {
            let make = || What::Room { name: name.into(), occupied };
            self.put(self.queues.len() - 1, kind, name.len(), None, make);
        }
    }

    fn put(
        &self,
        queue: usize,
        kind: Kind,
        text_bytes: usize,
        at_unix_ms: Option<u64>,
        make: impl FnOnce() -> What,
    ) {
        let bytes = NOTICE_BYTES + text_bytes;
        self.made[kind.index()].fetch_add(1, Relaxed);
        // Counted before it is there, so that shards racing for the last place cannot both have it.
        let waiting = self.waiting.fetch_add(1, Relaxed) + 1;
        let waiting_bytes = self.waiting_bytes.fetch_add(bytes, Relaxed) + bytes;
        if waiting > self.settings.waiting_max || waiting_bytes > self.settings.waiting_bytes_max {
            self.release(1, bytes);
            return self.lose(kind, Lost::Full);
        }
        let what = make();
        let mut queue = self.lock(queue);
        let number = self.number.fetch_add(1, Relaxed) + 1;
        queue.push(Notice { number, at_unix_ms, what, bytes });
        drop(queue);
        self.has_news.store(true, Ordering::Release);
    }

    /// Wakes the thread that delivers if something waits for it.
    pub fn ring(&self) {
        if self.has_news.load(Relaxed)
            && self.has_news.swap(false, Ordering::AcqRel)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// Sets how the thread that delivers is woken.
    pub fn hang_bell(&self, bell: Box<dyn Fn() + Send + Sync>) {
        assert!(self.bell.set(bell).is_ok(), "one thread delivers");
    }

    /// Takes all that has come, in order. They count as waiting until [`Notices::release`].
    pub fn take(&self) -> Vec<Notice> {
        // All at one moment: a session that comes back on another shard has left the first one before.
        let mut queues: Vec<_> = (0..self.queues.len()).map(|queue| self.lock(queue)).collect();
        let taken: Vec<Vec<Notice>> = queues.iter_mut().map(|queue| mem::take(&mut **queue)).collect();
        drop(queues);
        let mut notices: Vec<Notice> = taken.into_iter().flatten().collect();
        notices.sort_unstable_by_key(|notice| notice.number);
        notices
    }

    /// So many that were taken, of so many bytes, wait no more.
    pub fn release(&self, count: usize, bytes: usize) {
        self.waiting.fetch_sub(count, Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Relaxed);
    }

    /// Counts a notice that is lost.
    pub fn lose(&self, kind: Kind, why: Lost) {
        self.lost[kind.index()][why as usize].fetch_add(1, Relaxed);
        self.untold.fetch_add(1, Relaxed);
    }

    /// How many were lost since this was asked last: whoever asks tells it.
    pub fn take_untold(&self) -> u64 {
        self.untold.swap(0, Relaxed)
    }

    /// That so many were lost could not be told.
    pub fn put_untold(&self, lost: u64) {
        self.untold.fetch_add(lost, Relaxed);
    }

    /// Notes when the oldest notice in a lane happened, in milliseconds since 1970; 0 when there is none.
    pub fn set_oldest(&self, lane: usize, unix_ms: u64) {
        self.oldest_unix_ms[lane].store(unix_ms, Relaxed);
    }

    /// The age of the oldest notice that waits, in milliseconds.
    pub fn oldest_age_ms(&self, now: Time) -> u64 {
        let oldest = self.oldest_unix_ms.iter().map(|oldest| oldest.load(Relaxed)).filter(|at| *at > 0).min();
        oldest.map_or(0, |oldest| self.unix_ms(now).saturating_sub(oldest))
    }

    /// Notices that wait, those under way included, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting.load(Relaxed), self.waiting_bytes.load(Relaxed))
    }

    /// How many there were of each kind, those that were lost included.
    pub fn made(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Kind::LABELS.into_iter().zip(self.made.iter().map(|count| count.load(Relaxed)))
    }

    /// How many were lost, by kind and reason.
    pub fn lost(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        Kind::LABELS.into_iter().zip(&self.lost).flat_map(|(kind, counts)| {
            Lost::LABELS.into_iter().zip(counts).map(move |(why, count)| (kind, why, count.load(Relaxed)))
        })
    }

    /// What tells the notices of this process from those of others and of its earlier lives.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.settings.lanes
    }

    /// `now` in milliseconds since 1970.
    pub fn unix_ms(&self, now: Time) -> u64 {
        self.settings.origin_unix_ms + now.ms()
    }

    /// The process is about to end: what waits is to go out at once.
    pub fn hurry(&self) {
        self.ending.send_replace(true);
    }

    /// Becomes true when the process is about to end.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    fn lock(&self, queue: usize) -> MutexGuard<'_, Vec<Notice>> {
        self.queues[queue].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notices(waiting_max: usize, waiting_bytes_max: usize) -> Notices {
        let settings = Settings {
            kinds: [true; 5],
            waiting_max,
            waiting_bytes_max,
            lanes: 2,
            origin_unix_ms: 1_000,
            ..Settings::default()
        };
        Notices::new(2, settings)
    }

    fn room(name: &str) -> What {
        What::Room { name: name.into(), occupied: true }
    }

    #[test]
    fn they_are_taken_in_the_order_in_which_they_were_left() {
        let notices = notices(100, 1 << 20);
        for (shard, name) in [(1, "a"), (0, "b"), (1, "c"), (0, "d")] {
            notices.leave(shard, Kind::Occupied, 1, Time::from_ms(7), || room(name));
        }
        notices.leave_room("e", false);
        notices.leave_room("/chat\0", false);
        let taken = notices.take();
        let names: Vec<&str> = taken
            .iter()
            .map(|notice| match &notice.what {
                What::Room { name, .. } => name.as_str(),
                _ => "",
            })
            .collect();
        assert_eq!(names, ["a", "b", "c", "d", "e"], "a namespace is no room");
        assert_eq!(taken.iter().map(|notice| notice.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!((taken[0].at_unix_ms, taken[4].at_unix_ms), (Some(1_007), None));
        assert_eq!((notices.waiting().0, notices.take().len()), (5, 0), "they wait until they are released");
        notices.release(5, taken.iter().map(|notice| notice.bytes).sum());
        assert_eq!(notices.waiting(), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_lost_and_counted_until_it_is_told() {
        let check = |notices: Notices, texts: usize| {
            for _ in 0..5 {
                notices.leave(0, Kind::Event, texts, Time::default(), || room("a"));
            }
            assert_eq!(notices.take().len(), 2);
            let lost: Vec<_> = notices.lost().filter(|(.., count)| *count > 0).collect();
            assert_eq!(lost, [("event", "full", 3)]);
            assert_eq!((notices.take_untold(), notices.take_untold()), (3, 0));
            notices.put_untold(3);
            assert_eq!(notices.take_untold(), 3);
            notices.release(2, 2 * (texts + NOTICE_BYTES));
            notices.leave(0, Kind::Event, texts, Time::default(), || room("a"));
            assert_eq!(notices.take().len(), 1, "there is room again");
        };
        check(notices(2, 1 << 20), 10);
        check(notices(100, 2_000), 700);
    }

    #[test]
    fn the_bell_rings_once_for_what_waits() {
        let notices = notices(10, 1 << 20);
        let rung = std::sync::Arc::new(AtomicUsize::new(0));
        let counted = rung.clone();
        notices.hang_bell(Box::new(move || {
            counted.fetch_add(1, Relaxed);
        }));
        notices.ring();
        notices.leave_room("a", true);
        notices.ring();
        notices.ring();
        assert_eq!(rung.load(Relaxed), 1);
    }
}
