//! Questions to the backend about who a client is. They wait here for the backend's thread, which answers into the mailboxes.

use super::mailbox::ORDERS_MAX;
use crate::auth::{Ip, Vouched};
use crate::message::ConnId;
use crate::stats::{Counter, Gauge};
use compact_str::CompactString;
use ring::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// The most bytes of questions that may wait for answers, whatever their number.
pub const WAITING_BYTES_MAX: usize = 64 << 20;
/// The most orders to forget that may wait for the backend's thread, which takes them at once. One more makes them one to forget all, but
/// for those that end connections.
const FORGETS_MAX: usize = 10_000;
/// The most orders that end connections and are not carried out. As many fit into the mailbox of a shard.
const DISMISSALS_MAX: usize = ORDERS_MAX;

/// What shards want to know of the backend. Bounded by the number it is made with and by [`WAITING_BYTES_MAX`], from the question to its
/// answer: further ones are refused, and counted in [`CalloutStats::full`].
pub struct Callouts {
    waiting_max: usize,
    queue: Mutex<Queue>,
    /// True when something waits and the bell has not been rung for it.
    has_news: AtomicBool,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// What is counted of them.
    pub stats: CalloutStats,
}

#[derive(Debug, Default)]
struct Queue {
    tasks: Tasks,
    /// Questions without an answer, those that have been taken included, and their bytes.
    waiting: usize,
    waiting_bytes: usize,
    /// Orders that end connections and are not carried out, likewise.
    dismissals: usize,
}

/// What the backend's thread has to do.
#[derive(Debug, Default)]
pub struct Tasks {
    /// What is to be forgotten, before a question is answered: what came with one of them may be that.
    pub forgets: Vec<Forget>,
    /// Of whom it is to be found out who they are.
    pub questions: Vec<Box<Question>>,
}

/// Who is this?
#[derive(Debug)]
pub struct Question {
    /// Who is told, by [`Mail::Callout`](super::mailbox::Mail::Callout).
    pub from: ConnId,
    /// The shard's number for it, which the answer has.
    pub number: u64,
    /// Until when it is known who that is, in seconds from 1970; 0 when it is not. An answer that is no news is not wanted.
    pub known_until_s: u64,
    /// Who waits has the other end.
    pub asker: Weak<()>,
    /// What the backend is told.
    pub about: About,
}

/// What the backend is told of a client, as JSON. What there is not is left out.
#[derive(Debug, Default, Serialize)]
pub struct About {
    /// A token: of the header, the query, a message, or the field `token` of `auth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Box<str>>,
    /// What a client of Socket.IO says for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Box<RawValue>>,
    /// Cookies, as in their header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Box<str>>,
    /// The client's address; of IPv6 the network.
    pub address: Address,
    /// What a browser says of the page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<str>>,
    /// The path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Box<str>>,
    /// Its query, without what is a token or belongs to Engine.IO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<Box<str>>,
}

/// An address that is written as people write it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address(pub Ip);

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Question {
    /// True while somebody waits for the answer.
    pub fn is_wanted(&self) -> bool {
        self.asker.strong_count() > 0
    }

    /// Bytes of memory behind it.
    pub fn size(&self) -> usize {
        let About { token, auth, cookie, origin, path, query, .. } = &self.about;
        let texts = [token, cookie, origin, path, query];
        let auth = auth.as_ref().map_or(0, |auth| auth.get().len());
        size_of::<Question>() + auth + texts.into_iter().flatten().map(|text| text.len()).sum::<usize>()
    }
}

/// What came of a question.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The backend vouches for a user.
    User(Arc<Vouched>),
    /// It lets the client in as nobody.
    Nobody,
    /// It does not let it in, and may say why.
    Refused(Option<CompactString>),
    /// It could not be found out.
    Unavailable,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// Who had asked.
    pub to: ConnId,
    /// See [`Question::number`].
    pub number: u64,
    /// What came of it.
    pub verdict: Verdict,
}

/// The SHA-256 of a credential.
pub type Digest = [u8; 32];

/// The SHA-256 of some bytes, one piece behind the other.
pub fn sha256(pieces: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    pieces.iter().for_each(|piece| context.update(piece));
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// An order to forget what the backend has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    /// Of whom.
    pub whose: Whose,
    /// True when the connections of the user end as well.
    pub disconnect: bool,
}

/// See [`Forget`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of a user.
    User(CompactString),
    /// Of who brings this token, or these cookies.
    Credential(Digest),
    /// Of everybody.
    All,
}

/// The numbers of callouts. The backend's thread writes them, but for `full` and `waiting`, which are written under the queue's lock.
#[derive(Debug, Default)]
pub struct CalloutStats {
    /// Questions that were answered by what was known.
    pub hits: Counter,
    /// Questions that the same question for another client has answered.
    pub shared: Counter,
    /// Questions that the backend was asked.
    pub asked: Counter,
    /// Of these, those that it was asked once more, since the first answer did not come or was no longer to be trusted.
    pub repeated: Counter,
    /// Its answers, by [`CalloutStats::ANSWERS`].
    pub answers: [Counter; CalloutStats::ANSWERS.len()],
    /// Questions that were refused because too many waited.
    pub full: Counter,
    /// Questions that wait for an answer.
    pub waiting: Gauge,
    /// Answers that are known.
    pub known: Gauge,
    /// Answers that were forgotten by order.
    pub forgotten: Counter,
}

impl CalloutStats {
    /// The labels of answers, in the order of [`Verdict::index`].
    pub const ANSWERS: [&'static str; 4] = ["user", "nobody", "refused", "failed"];
}

impl Verdict {
    /// The place of this verdict in [`CalloutStats::ANSWERS`].
    pub fn index(&self) -> usize {
        match self {
            Verdict::User(_) => 0,
            Verdict::Nobody => 1,
            Verdict::Refused(_) => 2,
            Verdict::Unavailable => 3,
        }
    }
}

/// As many questions or orders wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWait;

impl fmt::Debug for Callouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callouts").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Callouts {
    /// No questions yet, and at most `waiting_max` at a time.
    pub fn new(waiting_max: usize) -> Callouts {
        Callouts {
            waiting_max,
            queue: Mutex::default(),
            has_news: AtomicBool::new(false),
            bell: OnceLock::new(),
            stats: CalloutStats::default(),
        }
    }

    /// Sets how the backend's thread is woken.
    pub fn hang_bell(&self, bell: Box<dyn Fn() + Send + Sync>) {
        assert!(self.bell.set(bell).is_ok(), "there is one thread for the backend");
    }

    /// Asks.
    ///
    /// # Errors
    /// [`TooManyWait`]; then nobody will answer.
    pub fn ask(&self, question: Box<Question>) -> Result<(), TooManyWait> {
        let bytes = question.size();
        self.change(|queue| {
            if queue.waiting >= self.waiting_max || queue.waiting_bytes + bytes > WAITING_BYTES_MAX {
                self.stats.full.add(1);
                return Err(TooManyWait);
            }
            queue.waiting += 1;
            queue.waiting_bytes += bytes;
            self.stats.waiting.set(queue.waiting as u64);
            queue.tasks.questions.push(question);
            Ok(())
        })?;
        self.ring();
        Ok(())
    }

    /// Has what the backend has said forgotten.
    ///
    /// # Errors
    /// [`TooManyWait`], of orders that end connections; then nothing is forgotten.
    pub fn forget(&self, forget: Forget) -> Result<(), TooManyWait> {
        self.change(|queue| {
            let forgets = &mut queue.tasks.forgets;
            if forget.disconnect {
                if queue.dismissals >= DISMISSALS_MAX {
                    return Err(TooManyWait);
                }
                queue.dismissals += 1;
            } else if forgets.len() >= FORGETS_MAX {
                // More is forgotten than was asked, and nothing is missed.
                forgets.retain(|forget| forget.disconnect);
                forgets.push(Forget { whose: Whose::All, disconnect: false });
                return Ok(());
            }
            forgets.push(forget);
            Ok(())
        })?;
        self.ring();
        Ok(())
    }

    /// Takes all that is to be done. For the backend's thread.
    pub fn take(&self) -> Tasks {
        self.change(|queue| mem::take(&mut queue.tasks))
    }

    /// So many orders that end connections are carried out. For the backend's thread.
    pub fn settle_dismissals(&self, count: usize) {
        self.change(|queue| queue.dismissals -= count);
    }

    /// A question of this size is answered. For the backend's thread.
    pub fn settle(&self, bytes: usize) {
        self.change(|queue| {
            queue.waiting -= 1;
            queue.waiting_bytes -= bytes;
            self.stats.waiting.set(queue.waiting as u64);
        });
    }

    fn ring(&self) {
        if !self.has_news.swap(true, Ordering::AcqRel)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// The backend's thread is about to look. Whatever comes from now on rings again.
    pub fn wake_up(&self) {
        self.has_news.store(false, Ordering::Release);
    }

    fn change<R>(&self, act: impl FnOnce(&mut Queue) -> R) -> R {
        act(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(token: &str) -> Box<Question> {
        let from = ConnId { shard: 0, slot: 1, stamp: 2 };
        let about = About { token: Some(token.into()), ..About::default() };
        Box::new(Question { from, number: 0, known_until_s: 0, asker: Weak::new(), about })
    }

    #[test]
    fn what_waits_is_bounded_from_the_question_to_its_answer() {
        let callouts = Callouts::new(2);
        let size = question("a").size();
        assert_eq!((callouts.ask(question("a")), callouts.ask(question("b"))), (Ok(()), Ok(())));
        assert_eq!(callouts.ask(question("c")), Err(TooManyWait));
        assert_eq!(callouts.take().questions.len(), 2);
        assert_eq!(callouts.ask(question("c")), Err(TooManyWait), "they are taken, not answered");
        callouts.settle(size);
        assert_eq!(callouts.ask(question("c")), Ok(()));
        assert_eq!((callouts.stats.full.value(), callouts.stats.waiting.value()), (2, 2));
        let long = question(&"x".repeat(WAITING_BYTES_MAX));
        assert_eq!(Callouts::new(10).ask(long), Err(TooManyWait));
    }

    #[test]
    fn a_flood_of_orders_to_forget_is_one_to_forget_all() {
        let callouts = Callouts::new(2);
        let user = |name: &str, disconnect| Forget { whose: Whose::User(name.into()), disconnect };
        callouts.forget(user("gone", true)).expect("there is room");
        callouts.ask(question("a")).expect("there is room");
        for number in 0..FORGETS_MAX {
            callouts.forget(user(&number.to_string(), false)).expect("they end no connections");
        }
        let Tasks { forgets, questions } = callouts.take();
        assert_eq!(forgets, [user("gone", true), Forget { whose: Whose::All, disconnect: false }]);
        assert_eq!(questions.len(), 1);
    }

    #[test]
    fn orders_that_end_connections_are_bounded_until_they_are_carried_out() {
        let callouts = Callouts::new(2);
        let forget = |disconnect| callouts.forget(Forget { whose: Whose::User("7".into()), disconnect });
        (0..DISMISSALS_MAX).for_each(|_| forget(true).expect("there is room"));
        assert_eq!((forget(true), forget(false)), (Err(TooManyWait), Ok(())));
        assert_eq!(callouts.take().forgets.len(), DISMISSALS_MAX + 1);
        assert_eq!(forget(true), Err(TooManyWait), "they are taken, not carried out");
        callouts.settle_dismissals(1);
        assert_eq!((forget(true), forget(true)), (Ok(()), Err(TooManyWait)));
    }

    #[test]
    fn the_backend_is_told_what_there_is() {
        let about = About {
            token: Some("abc".into()),
            auth: serde_json::from_str(r#"{"token":"abc","team":7}"#).ok(),
            path: Some("/ws".into()),
            address: Address("192.0.2.7".parse::<std::net::IpAddr>().expect("an address").into()),
            ..About::default()
        };
        let json = serde_json::to_string(&about).expect("JSON");
        assert_eq!(
            json,
            r#"{"token":"abc","auth":{"token":"abc","team":7},"address":"192.0.2.7","path":"/ws"}"#
        );
    }
}
