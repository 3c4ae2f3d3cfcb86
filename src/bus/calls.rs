//! What clients want of the backend: it waits here for the thread that asks it, and its answers come back as mail.

use crate::message::{ConnId, SocketId};
use crate::stats::Counter;
use compact_str::CompactString;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How much may wait. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Calls that have not been answered, in all. Of those that only tell that somebody has left, as many may wait besides.
    pub waiting_max: usize,
    /// Bytes of them.
    pub waiting_bytes_max: usize,
    /// Calls of one connection.
    pub waiting_per_connection_max: usize,
    /// Bytes that are kept of what a client said when it connected; 0 for nothing.
    pub handshake_bytes_max: usize,
    /// What a client of Socket.IO is told when there is no answer about its event.
    pub failure: Failure,
}

/// See [`Settings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// That there was none.
    Error,
    /// Nothing: it may try again when it has waited long enough.
    Silence,
}

/// Something that the backend is asked, or told.
#[derive(Debug)]
pub struct Call {
    /// Who it is about.
    pub client: Client,
    /// Of what the client said when it connected: the query of its request, as it was written.
    pub query: Option<Arc<str>>,
    /// What it said for itself when it joined the namespace: an object of JSON.
    pub auth: Option<Arc<str>>,
    /// What has happened.
    pub what: What,
}

/// Whom a call is about.
#[derive(Clone, Debug)]
pub struct Client {
    /// The connection, as it was placed then. Only its stamp stays for certain.
    pub conn: ConnId,
    /// Its id in the namespace.
    pub id: SocketId,
    /// The namespace.
    pub namespace: CompactString,
    /// Who it is, if that is known.
    pub user: Option<CompactString>,
    /// The address that limits count it for.
    pub address: CompactString,
    /// What the call counts for among those that wait: see [`Call::size`].
    pub bytes: usize,
}

/// See [`Call`].
#[derive(Debug)]
pub enum What {
    /// A client has sent an event.
    Event {
        /// Its name.
        event: CompactString,
        /// JSON values with commas between them.
        args: Box<str>,
        /// What the placeholders in them stand for.
        attachments: Vec<Vec<u8>>,
        /// The id by which the client wants it acknowledged, as its dialect writes that.
        ack: Option<CompactString>,
    },
    /// A client wants to be in a namespace.
    Connect,
    /// A client is in a namespace.
    Connected {
        /// True when it is in it again, after a brief drop, with its rooms and all.
        recovered: bool,
    },
    /// A client is no longer in a namespace.
    Disconnected {
        /// Why, in the words of Socket.IO.
        reason: &'static str,
    },
}

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`What::Event`].
    Event,
    /// See [`What::Connect`].
    Connect,
    /// See [`What::Connected`].
    Connected,
    /// See [`What::Disconnected`].
    Disconnected,
}

impl Kind {
    /// The labels of all kinds, in the order of the numbers.
    pub const LABELS: [&'static str; 4] = ["event", "connect", "connected", "disconnected"];

    /// Where the backend is asked, below its URL.
    pub fn path(self) -> String {
        format!("/{}", Kind::LABELS[self as usize])
    }
}

impl What {
    /// What this is about.
    pub fn kind(&self) -> Kind {
        match self {
            What::Event { .. } => Kind::Event,
            What::Connect => Kind::Connect,
            What::Connected { .. } => Kind::Connected,
            What::Disconnected { .. } => Kind::Disconnected,
        }
    }
}

impl Call {
    /// Bytes of memory behind it. What the client said when it connected counts in each of its calls, though they share that: the connection
    /// may be gone, and each is written out for the backend.
    pub fn size(&self) -> usize {
        let Client { namespace, user, address, .. } = &self.client;
        let names = namespace.len() + user.as_ref().map_or(0, CompactString::len) + address.len();
        let handshake = [&self.query, &self.auth].into_iter().flatten().map(|said| said.len()).sum::<usize>();
        let what = match &self.what {
            What::Event { event, args, attachments, ack } => {
                let attachments: usize =
                    attachments.iter().map(|bytes| size_of::<Vec<u8>>() + bytes.len()).sum();
                event.len() + args.len() + attachments + ack.as_ref().map_or(0, |ack| ack.len())
            }
            What::Connect | What::Connected { .. } | What::Disconnected { .. } => 0,
        };
        size_of::<Call>() + names + handshake + what
    }
}

/// What came of a call, for the shard of its connection.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Whom the call was about.
    pub client: Client,
    /// What it was.
    pub what: Asked,
    /// What the backend says; `None` when it could not be asked, or what it says means nothing.
    pub answer: Option<Answer>,
    /// True when all of it has been carried out but for the ack and the end.
    pub is_rest: bool,
}

impl Answered {
    /// Bytes of memory behind it that the backend has sent.
    pub fn size(&self) -> usize {
        let Some(Answer { emit, ack, attachments, .. }) = &self.answer else { return 0 };
        let size_of_all = |attachments: &[Vec<u8>]| attachments.iter().map(Vec::len).sum::<usize>();
        let emits = emit.iter().map(|emit| emit.payload.len() + size_of_all(&emit.attachments));
        emits.sum::<usize>() + ack.len() + size_of_all(attachments)
    }
}

/// What a call was, as far as that matters to its answer.
#[derive(Clone, Debug)]
pub enum Asked {
    /// An event, with the id by which it is to be acknowledged.
    Event {
        /// See [`What::Event`].
        ack: Option<CompactString>,
    },
    /// A client that wants to be in the namespace, with what it says for itself.
    Connect {
        /// See [`Call::auth`].
        auth: Option<Arc<str>>,
    },
    /// Nothing: the backend was told something.
    Nothing,
}

/// What the backend wants done, checked: in this order.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Why the client may not be in the namespace that it asks for, if so; nothing else is done then.
    pub refusal: Option<Refusal>,
    /// The client joins these rooms, by the names that the directory knows.
    pub join: Vec<CompactString>,
    /// It leaves these, likewise.
    pub leave: Vec<CompactString>,
    /// Events, for it and for others.
    pub emit: Vec<Emit>,
    /// What its event is acknowledged with: JSON values with commas between them.
    pub ack: Box<str>,
    /// What the placeholders in these stand for.
    pub attachments: Vec<Vec<u8>>,
    /// Whether it has to go.
    pub end: Option<End>,
}

/// Why a client may not be in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For people.
    pub message: Box<str>,
    /// JSON for its application, if there is any.
    pub data: Option<Box<str>>,
}

/// An event of the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emit {
    /// The rooms it is for, by the names that the directory knows; none for the client alone that the call was about.
    pub rooms: Vec<CompactString>,
    /// Rooms whose members do not get it, likewise.
    pub except: Vec<CompactString>,
    /// See [`Draft::natives`](crate::message::Draft::natives).
    pub natives: bool,
    /// Its name.
    pub event: CompactString,
    /// A JSON value, or several with commas between them when `is_list`, or bytes when `binary`.
    pub payload: Vec<u8>,
    /// See [`Publication::binary`](crate::message::Publication::binary).
    pub binary: bool,
    /// See [`Draft::is_list`](crate::message::Draft::is_list).
    pub is_list: bool,
    /// What the placeholders in the payload stand for.
    pub attachments: Vec<Vec<u8>>,
    /// See [`Draft::volatile`](crate::message::Draft::volatile).
    pub volatile: bool,
}

/// How a client has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It leaves the namespace; a native client is closed with 1000.
    Namespace,
    /// Its connection is closed, whatever else it is in.
    Connection {
        /// The close code, one that may be on the wire.
        code: u16,
        /// At most [`REASON_BYTES_MAX`](super::outside::REASON_BYTES_MAX) bytes.
        reason: CompactString,
    },
}

/// As many calls wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What waits for the backend. Bounded by [`Settings`]: a call beyond that is refused to who makes it, and counted.
pub struct Calls {
    settings: Settings,
    queue: Mutex<Vec<Call>>,
    /// Calls without an answer that was carried out, in the queue or taken from it, and their bytes.
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    /// Of these, how many tell that a client has gone, and were not answered.
    untold: AtomicUsize,
    /// True when something waits and the bell has not been rung for it.
    has_news: AtomicBool,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Calls that found no room.
    pub refused: Counter,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Calls {
    /// Nothing waits.
    pub fn new(settings: Settings) -> Calls {
        Calls {
            settings,
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            has_news: AtomicBool::new(false),
            bell: OnceLock::new(),
            refused: Counter::default(),
        }
    }

    /// Sets how the thread that asks is woken.
    pub fn hang_bell(&self, bell: Box<dyn Fn() + Send + Sync>) {
        assert!(self.bell.set(bell).is_ok(), "one thread asks the backend");
    }

    /// Wakes the thread that asks, if something waits for it. For the end of a turn.
    pub fn ring(&self) {
        if self.has_news.load(Ordering::Relaxed)
            && self.has_news.swap(false, Ordering::AcqRel)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// Adds a call. It counts until [`Calls::settle`].
    ///
    /// # Errors
    /// [`Busy`] when as many wait as may.
    pub fn push(&self, mut call: Call) -> Result<(), Busy> {
        let bytes = call.size();
        call.client.bytes = bytes;
        let Settings { waiting_max, waiting_bytes_max, .. } = self.settings;
        let is_told = matches!(call.what, What::Disconnected { .. });
        let waiting_max = if is_told { 2 * waiting_max } else { waiting_max };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = is_told || self.waiting_bytes.load(Ordering::Relaxed) + bytes <= waiting_bytes_max;
        if !fits || self.waiting.load(Ordering::Relaxed) >= waiting_max {
            // Under the lock, so there is one writer.
            self.refused.add(1);
            return Err(Busy);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.untold.fetch_add(usize::from(call.what.kind() == Kind::Disconnected), Ordering::Relaxed);
        queue.push(call);
        drop(queue);
        self.has_news.store(true, Ordering::Release);
        Ok(())
    }

    /// Counts a call that a bound on its connection has refused.
    pub fn count_refused(&self) {
        let _queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.refused.add(1);
    }

    /// The backend has answered a call of this kind, or will not.
    pub fn note_answer(&self, kind: Kind) {
        self.untold.fetch_sub(usize::from(kind == Kind::Disconnected), Ordering::Relaxed);
    }

    /// Clients that have gone and of whom the backend has not heard that.
    pub fn untold(&self) -> usize {
        self.untold.load(Ordering::Relaxed)
    }

    /// A call of so many bytes has been answered, and that is carried out.
    pub fn settle(&self, bytes: usize) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes all calls that nobody has taken, in order.
    pub fn take(&self) -> Vec<Call> {
        mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls that wait for their answers.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// See [`Settings`].
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        waiting_max: 2,
        waiting_bytes_max: 10_000,
        waiting_per_connection_max: 2,
        handshake_bytes_max: 0,
        failure: Failure::Error,
    };

    fn call(what: What) -> Call {
        let conn = ConnId { shard: 0, slot: 1, stamp: 2 };
        let client = Client {
            conn,
            id: SocketId::default(),
            namespace: "/".into(),
            user: None,
            address: "127.0.0.1".into(),
            bytes: 0,
        };
        Call { client, query: None, auth: None, what }
    }

    fn event(bytes: usize) -> Call {
        let args = "1".repeat(bytes).into();
        call(What::Event { event: "e".into(), args, attachments: Vec::new(), ack: None })
    }

    #[test]
    fn what_waits_is_bounded_until_it_has_been_answered() {
        let calls = Calls::new(SETTINGS);
        assert_eq!(calls.push(event(20_000)), Err(Busy), "too long");
        assert_eq!((calls.push(event(1)), calls.push(event(1))), (Ok(()), Ok(())));
        assert_eq!(calls.push(event(1)), Err(Busy), "too many");
        let taken = calls.take();
        assert_eq!((taken.len(), calls.take().len()), (2, 0));
        assert_eq!(calls.push(event(1)), Err(Busy), "they wait for their answers");
        calls.settle(taken[0].client.bytes);
        assert_eq!(calls.push(event(1)), Ok(()));
        assert_eq!((calls.waiting(), calls.refused.value()), (2, 3));
    }

    #[test]
    fn what_a_client_said_when_it_connected_counts_in_each_of_its_calls() {
        let calls = Calls::new(Settings { waiting_max: 100, ..SETTINGS });
        let (query, auth): (Arc<str>, Arc<str>) = ("q".repeat(3_000).into(), "a".repeat(1_000).into());
        let push = || {
            let (query, auth) = (Some(query.clone()), Some(auth.clone()));
            calls.push(Call { query, auth, ..call(What::Connected { recovered: false }) })
        };
        assert_eq!((push(), push(), push()), (Ok(()), Ok(()), Err(Busy)), "of 10,000 bytes");
        calls.take().iter().for_each(|call| calls.settle(call.client.bytes));
        assert_eq!(push(), Ok(()));
    }

    #[test]
    fn that_somebody_has_left_finds_room_where_questions_do_not() {
        let calls = Calls::new(SETTINGS);
        (0..2).for_each(|_| calls.push(event(1)).expect("there is room"));
        let left = || call(What::Disconnected { reason: "transport close" });
        assert_eq!((calls.push(left()), calls.push(left()), calls.push(left())), (Ok(()), Ok(()), Err(Busy)));
    }
}
