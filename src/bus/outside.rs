//! What other processes have to do with this one: what goes out to them waits here for the bridge, and what they want of this process's
//! sockets goes to the shards from here.

use super::callouts::Forget;
use super::mailbox::Answer;
use super::presence::Question;
use crate::message::{Audience, Draft, Publication};
use crate::stats::Counter;
use compact_str::CompactString;
use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The most bytes of publications that may wait for the bridge. Further ones are delivered here and nowhere else, and counted in
/// [`Outside::lost`].
pub const OUT_BYTES_MAX: usize = 32 << 20;
/// The most bytes of sockets that one answer to [`Deed::Find`] lists: some 50,000 sockets in a few rooms each.
pub const FOUND_BYTES_MAX: usize = 16 << 20;
/// The longest reason that a close frame has room for, in bytes.
pub const REASON_BYTES_MAX: usize = 123;

/// In place of a namespace: all connections are meant, whatever namespaces they are in.
pub const ANYWHERE: &str = "";

/// Events for one room that follow each other go out together, up to so many bytes.
const ENVELOPE_BYTES_MAX: usize = 64 << 10;

/// Writes what a draft says behind what is there, so that others can read it; the first time, what comes before that. False, with nothing
/// written, when the draft needs more words.
pub type Pen = Box<dyn Fn(&Draft<'_>, &mut Vec<u8>) -> bool + Send + Sync>;

/// What the bridge takes out.
#[derive(Debug)]
pub enum Outgoing {
    /// Events for the members of one room in other processes, as the pen of the bridge has written them.
    Envelope {
        /// The room.
        room: CompactString,
        /// How many there are.
        entries: u64,
        /// What was written.
        bytes: Vec<u8>,
    },
    /// An event for members of rooms in other processes.
    Publication {
        /// The event. Where it is for several rooms, `names` has them: its audience lists those that have members here.
        publication: Arc<Publication>,
        /// Whom it is for, when that is not the members of one room.
        names: Option<Box<Names>>,
    },
    /// So many sockets of one shard were asked, for an ask of another process.
    Asked {
        /// The [`Ask::number`](crate::message::Ask::number).
        number: u64,
        /// How many answers may come.
        sockets: u32,
    },
    /// One of them has answered.
    Answer(Box<Answer>),
    /// Something is to be done to sockets of other processes.
    Order {
        /// The namespace, as in [`Order::namespace`].
        namespace: CompactString,
        /// Those in any of these rooms.
        rooms: Vec<CompactString>,
        /// What.
        deed: Deed,
    },
    /// The sockets of one shard that were asked for.
    Found {
        /// The number of the [`Deed::Find`].
        number: u64,
        /// The sockets; `None` when they are more than can be told.
        sockets: Option<Vec<Found>>,
    },
    /// All others are to be asked who is in a room. The bridge says it with
    /// [`Bus::tell_presence_elsewhere`](super::Bus::tell_presence_elsewhere).
    Presence {
        /// The number of the question.
        number: u64,
        /// What is asked.
        question: Question,
    },
    /// What the backend has said of clients is to be forgotten.
    Forget(Forget),
}

/// Whom a publication is for, by the names that the directory knows.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Rooms, or ids of sockets behind the name of their namespace.
    pub rooms: Vec<CompactString>,
    /// Those whose members do not get it.
    pub except: Vec<CompactString>,
}

/// What is to be done to sockets.
#[derive(Debug)]
pub struct Order {
    /// The namespace. Only sockets that are in it are meant; with [`ANYWHERE`], whatever they are in.
    pub namespace: CompactString,
    /// Which of them.
    pub audience: Audience,
    /// What.
    pub deed: Deed,
}

impl Order {
    /// Bytes of memory behind it.
    pub fn size(&self) -> usize {
        size_of::<Order>() + self.audience.size() + self.deed.size()
    }
}

/// See [`Order`].
#[derive(Clone, Debug)]
pub enum Deed {
    /// They join these rooms, by the names that the directory knows.
    Join(Vec<CompactString>),
    /// They leave these rooms.
    Leave(Vec<CompactString>),
    /// They leave the namespace.
    Disconnect {
        /// True when their connections end as well.
        close: bool,
    },
    /// Their connections end, whatever else they are in.
    Close {
        /// The close code, one that may be on the wire.
        code: u16,
        /// At most [`REASON_BYTES_MAX`] bytes.
        reason: CompactString,
    },
    /// They are told to the bridge, as [`Outgoing::Found`] with this number.
    Find(u64),
}

impl Deed {
    fn size(&self) -> usize {
        match self {
            Deed::Join(rooms) | Deed::Leave(rooms) => size_of_names(rooms),
            Deed::Close { reason, .. } => reason.len(),
            Deed::Disconnect { .. } | Deed::Find(_) => 0,
        }
    }
}

/// A socket that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// The address of its client.
    pub address: String,
    /// Its rooms, without its namespace.
    pub rooms: Vec<CompactString>,
}

impl Found {
    /// Bytes of memory behind it.
    pub fn size(&self) -> usize {
        size_of::<Found>() + self.id.len() + self.address.len() + size_of_names(&self.rooms)
    }
}

/// What waits for the bridge. Bounded by [`OUT_BYTES_MAX`], and by the rooms that there may be.
#[derive(Default)]
pub struct Outside {
    queue: Mutex<Vec<Outgoing>>,
    bytes: AtomicUsize,
    /// Rooms that have begun or ended since the bridge last looked, by their names: true for begun. Of one that did both, the last counts.
    changed: Mutex<HashMap<CompactString, bool>>,
    /// True when something waits and the bell has not been rung for it.
    has_news: AtomicBool,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pen: OnceLock<Pen>,
    /// Publications that found no room here.
    pub lost: Counter,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Outside {
    /// Sets how the bridge is woken.
    pub fn hang_bell(&self, bell: Box<dyn Fn() + Send + Sync>) {
        assert!(self.bell.set(bell).is_ok(), "there is one bridge");
    }

    /// Sets how events are written. Until then, and for those that the pen refuses, they go out as they are.
    pub fn set_pen(&self, pen: Pen) {
        assert!(self.pen.set(pen).is_ok(), "there is one bridge");
    }

    /// Wakes the bridge if something waits for it.
    pub fn ring(&self) {
        if self.has_news.load(Ordering::Relaxed)
            && self.has_news.swap(false, Ordering::AcqRel)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// Adds an event for the members of one room, written. False when it cannot be written; then nothing is done. When there is no room for
    /// it, it is lost.
    pub fn write(&self, draft: &Draft<'_>) -> bool {
        let Some(pen) = self.pen.get() else { return false };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so there is one writer.
        if self.bytes.load(Ordering::Relaxed) + draft.room.len() + draft.payload.len() > OUT_BYTES_MAX {
            self.lost.add(1);
            return true;
        }
        let written = match queue.last_mut() {
            Some(Outgoing::Envelope { room, entries, bytes })
                if room == draft.room && bytes.len() < ENVELOPE_BYTES_MAX =>
            {
                let before = bytes.len();
                let written = pen(draft, bytes).then(|| bytes.len() - before);
                *entries += u64::from(written.is_some());
                written
            }
            _ => {
                let mut bytes = Vec::new();
                let written = pen(draft, &mut bytes).then(|| size_of::<Outgoing>() + bytes.len());
                if written.is_some() {
                    queue.push(Outgoing::Envelope { room: draft.room.into(), entries: 1, bytes });
                }
                written
            }
        };
        let Some(written) = written else { return false };
        self.bytes.fetch_add(written, Ordering::Relaxed);
        drop(queue);
        self.has_news.store(true, Ordering::Release);
        true
    }

    /// Adds something that goes out. A publication or an order for which there is no room is lost. Sockets that were asked for and find none
    /// are more than can be told.
    pub fn push(&self, mut outgoing: Outgoing) {
        let mut bytes = outgoing.size();
        // What is ordered is lost like what is published; answers are waited for.
        let may_be_lost =
            matches!(outgoing, Outgoing::Publication { .. } | Outgoing::Order { .. } | Outgoing::Forget(_));
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so there is one writer.
        if may_be_lost && self.bytes.load(Ordering::Relaxed) + bytes > OUT_BYTES_MAX {
            self.lost.add(1);
            return;
        }
        if let Outgoing::Found { sockets, .. } = &mut outgoing
            && self.bytes.load(Ordering::Relaxed) + bytes > OUT_BYTES_MAX
        {
            *sockets = None;
            bytes = outgoing.size();
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        queue.push(outgoing);
        drop(queue);
        self.has_news.store(true, Ordering::Release);
    }

    /// Takes all that goes out, in order.
    pub fn take(&self) -> Vec<Outgoing> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // As long as the last one, so that it does not have to grow under the lock.
        let next = Vec::with_capacity(queue.len().min(4096));
        self.bytes.store(0, Ordering::Relaxed);
        mem::replace(&mut queue, next)
    }

    /// Takes the rooms that have begun or ended.
    pub fn take_changed(&self) -> HashMap<CompactString, bool> {
        mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A room has begun or ended.
    pub(super) fn note(&self, name: &str, begun: bool) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.insert(name.into(), begun);
        drop(changed);
        self.has_news.store(true, Ordering::Release);
    }
}

impl Outgoing {
    fn size(&self) -> usize {
        let rest = match self {
            Outgoing::Publication { publication, names } => {
                publication.size() + names.as_ref().map_or(0, |names| names.size())
            }
            Outgoing::Answer(answer) => answer.size(),
            Outgoing::Order { rooms, deed, .. } => size_of_names(rooms) + deed.size(),
            Outgoing::Envelope { bytes, .. } => bytes.len(),
            Outgoing::Found { sockets, .. } => sockets.iter().flatten().map(Found::size).sum(),
            Outgoing::Asked { .. } | Outgoing::Presence { .. } | Outgoing::Forget(_) => 0,
        };
        size_of::<Outgoing>() + rest
    }
}

impl Names {
    fn size(&self) -> usize {
        size_of_names(&self.rooms) + size_of_names(&self.except)
    }
}

fn size_of_names(names: &[CompactString]) -> usize {
    names.iter().map(|name| size_of::<CompactString>() + name.len()).sum()
}
