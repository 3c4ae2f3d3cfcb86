//! A shard's mailbox: what other threads want of it.

use super::callouts;
use super::calls::Answered;
use super::inquiry::Inquiry;
use super::outside::Order;
use super::presence::Attendance;
use crate::message::{ConnId, Publication, RoomId, ShardId, ShardSet, SocketId};
use crate::stats::Recovered;
use crate::time::Time;
use compact_str::CompactString;
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The most pieces of mail that may wait before publications are refused.
pub const MAIL_MAX: usize = 65_536;
/// The most bytes of publications that may wait before further ones are refused.
pub const MAIL_BYTES_MAX: usize = 64 << 20;
/// The most orders that may wait before further ones are refused. Far below [`MAIL_MAX`], since events wait behind them: a flood of orders
/// must not stop clients from being read.
pub const ORDERS_MAX: usize = 4_096;
/// The most bytes of orders that may wait, likewise. An order that names many rooms is long, and takes long.
pub const ORDERS_BYTES_MAX: usize = 4 << 20;

/// What one thread can tell a shard.
#[derive(Clone, Debug)]
pub enum Mail {
    /// An event for members of a room.
    Publication(Arc<Publication>),
    /// An event for the members of a room whose home is here.
    Held {
        /// The event.
        publication: Arc<Publication>,
        /// The place of the room's policy.
        policy: u16,
    },
    /// An event that is the state of a room whose home is here has gone straight to the room's members.
    Passed {
        /// The room, by the name that the directory knows.
        room: CompactString,
        /// The event, which may be for others as well.
        publication: Arc<Publication>,
    },
    /// Somebody has joined a room whose home is here, and whose state may be known.
    Joined(Box<Joined>),
    /// Close all connections with 1001, spread over `spread_ms`; after `timeout_ms` end those that are left.
    Drain {
        /// Time over which the closes are spread, in milliseconds.
        spread_ms: u32,
        /// Time in which nobody can be served at this address: whoever comes back sooner has to wait, in milliseconds. 0 where others are there.
        away_ms: u32,
        /// Time after which the shard stops waiting for peers, in milliseconds.
        timeout_ms: u32,
    },
    /// What the shard goes by from the end of this turn on: its `Settings`, which stand above and are not known here.
    Settings(Arc<dyn Any + Send + Sync>),
    /// About a session that comes back on another shard than it left.
    Recovery(Box<Recovery>),
    /// So many sockets of one shard were asked.
    Asked {
        /// The [`Ask::number`](crate::message::Ask::number).
        number: u64,
        /// How many answers may come.
        sockets: u32,
    },
    /// One of them has answered.
    Answer(Box<Answer>),
    /// So many other processes were asked as well: each tells how many it has asked, as shards do.
    AskedOutside {
        /// The [`Ask::number`](crate::message::Ask::number).
        number: u64,
        /// How many processes.
        processes: usize,
    },
    /// Something is to be done to sockets.
    Order(Arc<Order>),
    /// Somebody wants to know of connections here, or something of one of them.
    Inquiry(Box<Inquiry>),
    /// Who is in this room? The shard says it with [`Bus::tell_presence`](super::Bus::tell_presence).
    Who {
        /// The number of the question.
        number: u64,
        /// The room.
        room: RoomId,
    },
    /// The backend has answered a call of a connection here.
    Answered(Box<Answered>),
    /// A question about who is in a room is answered.
    Presence {
        /// Its number.
        number: u64,
        /// The answer.
        attendance: Arc<Attendance>,
    },
    /// The backend has said who a client is, or has not.
    Callout(Box<callouts::Answer>),
}

/// Who has joined a room, and which.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The room, by the name that the directory knows.
    pub room: CompactString,
    /// Where the connection is.
    pub shard: ShardId,
    /// What it goes by there.
    pub id: SocketId,
    /// True when nobody was in the room before.
    pub is_first: bool,
    /// The time of the turn in which it has joined.
    pub at: Time,
}

/// What one socket has answered to an [`Ask`](crate::message::Ask).
#[derive(Clone, Debug)]
pub struct Answer {
    /// The [`Ask::number`](crate::message::Ask::number).
    pub number: u64,
    /// A JSON value.
    pub value: String,
    /// What the placeholders in it stand for.
    pub attachments: Vec<Vec<u8>>,
}

impl Answer {
    /// Bytes of memory behind it.
    pub fn size(&self) -> usize {
        let attachments: usize =
            self.attachments.iter().map(|bytes| size_of::<Vec<u8>>() + bytes.len()).sum();
        size_of::<Answer>() + self.value.len() + attachments
    }
}

/// Publications that a session has missed, in the order in which it would have got them.
pub type Missed = Vec<Arc<Publication>>;

/// What two shards tell each other about a session, `from` or `to` the connection that wants to be it.
#[derive(Clone, Debug)]
pub enum Recovery {
    /// Who was this, and what has it missed since `offset`?
    Ask {
        /// Who asks.
        from: ConnId,
        /// The private id that its client came with.
        pid: SocketId,
        /// The namespace it is for.
        namespace: String,
        /// Whose it has to be.
        user: Option<CompactString>,
        /// The offset of the last event that its client has got.
        offset: Option<String>,
        /// The shards that were not asked yet. Who does not know it asks one of these.
        left: ShardSet,
    },
    /// Nobody that could be recovered.
    Refused {
        /// Who asked.
        to: ConnId,
        /// Why.
        reason: Recovered,
    },
    /// It was this one.
    Found {
        /// Who asked.
        to: ConnId,
        /// Where it was.
        shard: ShardId,
        /// The session's public id.
        sid: SocketId,
        /// The names of its rooms.
        rooms: Vec<CompactString>,
        /// The connection that it was.
        was: ConnId,
        /// What it has missed so far.
        missed: Missed,
        /// The offset up to which that goes.
        end: u64,
    },
    /// The rooms have been joined: what else has been published before that?
    Fetch {
        /// Who asks.
        from: ConnId,
        /// As before.
        pid: SocketId,
        /// As before.
        namespace: String,
        /// The offset from which on.
        since: u64,
    },
    /// This. The session is no longer here.
    Rest {
        /// Who asked.
        to: ConnId,
        /// What else it has missed.
        missed: Missed,
    },
}

impl Mail {
    fn size(&self) -> usize {
        match self {
            Mail::Publication(publication) | Mail::Held { publication, .. } => publication.size(),
            // Its bytes are those of another mail.
            Mail::Passed { room, .. } => size_of::<Mail>() + room.len(),
            Mail::Joined(joined) => size_of::<Joined>() + joined.room.len(),
            Mail::Answer(answer) => answer.size(),
            Mail::Order(order) => order.size(),
            Mail::Answered(answered) => answered.size(),
            Mail::Drain { .. }
            | Mail::Settings(_)
            | Mail::Recovery(_)
            | Mail::Asked { .. }
            | Mail::AskedOutside { .. }
            | Mail::Inquiry(_)
            | Mail::Who { .. }
            | Mail::Presence { .. }
            | Mail::Callout(_) => 0,
        }
    }
}

/// A socket on its way from one shard to another, or from another process.
#[derive(Debug)]
pub struct Handed {
    /// The socket.
    pub socket: OwnedFd,
    /// Whose it is, when its own address does not tell.
    pub client: Option<IpAddr>,
    /// What was read from it and not used.
    pub bytes: Vec<u8>,
    /// What the reactor keeps of it besides, like its TLS session: what that is, is the reactors' business.
    pub layer: Option<Box<dyn Any + Send>>,
    /// True when nothing has been done with it but to accept it.
    pub is_new: bool,
}

/// A queue with many writers and one reader. Bounded by [`MAIL_MAX`] and [`MAIL_BYTES_MAX`]: when it is full, publications are
/// refused to their publishers ([`Mailbox::is_full`]). Orders are refused before that ([`Mailbox::takes_orders`]); other mail is rare and
/// always taken.
#[derive(Default)]
pub struct Mailbox {
    queue: Mutex<VecDeque<Mail>>,
    /// Sockets that other shards have given away, and other processes. As many as there are sockets at the most, and some.
    handed: Mutex<Vec<Handed>>,
    /// How many there are, readable without its lock.
    handed_count: AtomicUsize,
    /// Pieces and bytes in `queue`, readable without its lock.
    pieces: AtomicUsize,
    bytes: AtomicUsize,
    /// How many of these are orders, and their bytes.
    orders: AtomicUsize,
    order_bytes: AtomicUsize,
    /// True while the owner waits, or is about to, and has to be woken.
    asleep: AtomicBool,
    bell: OnceLock<Bell>,
}

type Bell = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("pieces", &self.pieces)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Mailbox {
    /// Sets how the owner is woken. Until then, and in the simulator, nobody is.
    pub fn hang_bell(&self, bell: Bell) {
        // A second bell would be a second reactor on one shard.
        assert!(self.bell.set(bell).is_ok(), "a mailbox has one owner");
    }

    /// Adds `mail` at the end.
    pub fn post(&self, mail: Mail) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = mail.size();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if matches!(mail, Mail::Order(_)) {
            self.orders.fetch_add(1, Ordering::Relaxed);
            self.order_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        queue.push_back(mail);
        self.pieces.store(queue.len(), Ordering::SeqCst);
    }

    /// Adds publications at the end.
    pub fn post_all(&self, publications: &[Arc<Publication>]) {
        let bytes = publications.iter().map(|publication| publication.size()).sum();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        queue.extend(publications.iter().map(|publication| Mail::Publication(publication.clone())));
        self.pieces.store(queue.len(), Ordering::SeqCst);
    }

    /// Gives a socket to the owner, and wakes it.
    pub fn hand(&self, handed: Handed) {
        let mut queue = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push(handed);
        self.handed_count.store(queue.len(), Ordering::SeqCst);
        drop(queue);
        self.ring();
    }

    /// Moves all sockets that were handed over to the end of `into`. For the owner.
    pub fn collect_handed(&self, into: &mut Vec<Handed>) {
        if self.handed() > 0 {
            let mut queue = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
            into.append(&mut queue);
            self.handed_count.store(0, Ordering::SeqCst);
        }
    }

    /// How many sockets wait for the owner.
    pub fn handed(&self) -> usize {
        self.handed_count.load(Ordering::SeqCst)
    }

    /// Pieces of mail to collect.
    pub fn len(&self) -> usize {
        self.pieces.load(Ordering::SeqCst)
    }

    /// Bytes of it, as far as they count: those of publications, orders and answers.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// True when there is nothing to collect.
    pub fn is_empty(&self) -> bool {
        self.pieces.load(Ordering::SeqCst) == 0
    }

    /// True when publications must be refused.
    pub fn is_full(&self) -> bool {
        self.pieces.load(Ordering::Relaxed) >= MAIL_MAX
            || self.bytes.load(Ordering::Relaxed) >= MAIL_BYTES_MAX
    }

    /// False when orders must be refused: as many as may wait do, or the mailbox is full.
    pub fn takes_orders(&self) -> bool {
        self.orders.load(Ordering::Relaxed) < ORDERS_MAX
            && self.order_bytes.load(Ordering::Relaxed) < ORDERS_BYTES_MAX
            && !self.is_full()
    }

    /// Wakes the owner if it waits.
    pub fn ring(&self) {
        // Paired with `fall_asleep`: either this sees the owner asleep, or the owner sees the mail.
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// Moves all mail to the end of `into`. For the owner.
    pub fn collect(&self, into: &mut VecDeque<Mail>) {
        if self.is_empty() {
            return;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if into.is_empty() {
            std::mem::swap(into, &mut queue);
        } else {
            into.append(&mut queue);
        }
        self.pieces.store(0, Ordering::SeqCst);
        for count in [&self.bytes, &self.orders, &self.order_bytes] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// The owner is about to wait. False when mail has come and it must not.
    pub fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.pieces.load(Ordering::SeqCst) == 0 {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// The owner has woken, whoever woke it.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_bell_rings_only_for_a_sleeper_and_only_once() {
        let mailbox = Mailbox::default();
        let rung = Arc::new(AtomicU32::new(0));
        let counted = rung.clone();
        mailbox.hang_bell(Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        }));
        let mail = Mail::Drain { spread_ms: 0, away_ms: 0, timeout_ms: 0 };
        mailbox.post(mail.clone());
        mailbox.ring();
        assert_eq!(rung.load(Ordering::SeqCst), 0, "an owner that is awake looks for itself");
        assert!(!mailbox.fall_asleep(), "there is mail");
        let mut mail_in = VecDeque::new();
        mailbox.collect(&mut mail_in);
        assert_eq!(mail_in.len(), 1);
        assert!(mailbox.fall_asleep());
        mailbox.post(mail);
        mailbox.ring();
        mailbox.ring();
        assert_eq!(rung.load(Ordering::SeqCst), 1);
    }
}
