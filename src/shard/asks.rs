//! Events that ask: whoever gets one is to answer within a time, and its publisher is told what was answered.
//!
//! The shard of the publisher collects the answers. Every shard that delivers the event tells it how many it has asked, notes which of
//! its connections those are, and passes on the first answer of each.

use super::Shard;
use crate::bus::mailbox::{Answer, Mail};
use crate::dialect::attachments;
use crate::dialect::native::{self, Code, Refusal};
use crate::json;
use crate::message::{self, Ask, Slot};
use crate::time::Time;
use crate::wire::frame::Opcode;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Questions of one shard's clients that may be open at a time; further ones are refused.
const OPEN_MAX: usize = 65_536;
/// Of those, how many one client may have.
const OPEN_PER_CONNECTION_MAX: usize = 64;
/// Connections whose answers one shard waits for, counted once for each question. Who is asked beyond that is not listened to, and its
/// answer is missing.
const ASKED_MAX: usize = 1 << 20;
/// Bytes of answers that one shard collects in all. Answers beyond that, or beyond what one message may have, count as missing.
const BYTES_MAX: usize = 16 << 20;

/// The questions that one shard has to do with. Each is forgotten when its time is over.
#[derive(Debug, Default)]
pub struct Asks {
    /// By number, those of its own clients. At most [`OPEN_MAX`].
    open: HashMap<u64, Open>,
    /// By number, those whose answers it passes on. At most [`ASKED_MAX`] connections in all.
    asked: HashMap<u64, Asked>,
    /// How many connections there are in `asked`.
    awaited: usize,
    /// When each of `open` and of `asked` is over.
    ends: BTreeSet<(Time, u64)>,
    /// How many of `open` each connection has, by its stamp; those that have none are not in it.
    of_connection: HashMap<u32, usize>,
    /// How many its clients have asked so far.
    count: u64,
    /// Bytes of the answers in `open`.
    bytes: usize,
}

/// Who asks, and where the answers go.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) slot: Slot,
    pub(super) stamp: u32,
    /// The namespace of Socket.IO, or none for the native dialect.
    pub(super) namespace: Option<String>,
    /// The id of the message that asks.
    pub(super) id: String,
}

/// Connections that have been asked and have not answered, by their stamps.
#[derive(Debug)]
struct Asked {
    stamps: HashSet<u32>,
    until: Time,
}

#[derive(Debug)]
struct Open {
    asker: Asker,
    until: Time,
    /// Shards that have not yet told how many they have asked.
    shards: usize,
    /// Answers that may still come.
    awaited: u32,
    /// Answers that were not kept.
    left_out: u32,
    answers: Vec<Answer>,
    bytes: usize,
}

impl Asks {
    /// When the next one is over.
    pub fn next_end(&self) -> Option<Time> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Who asks too much may try again after so many milliseconds: when the next one is over, or earlier, when it has been answered.
    fn retry_ms(&self, now: Time) -> u32 {
        let ahead_ms = self.next_end().map_or(0, |end| end.since_ns(now) / 1_000_000);
        (ahead_ms as u32).max(super::OVERLOAD_RETRY_MS)
    }

    /// One of `open` or of `asked` is gone: what had this number is over.
    fn settle(&mut self, number: u64, until: Time) {
        if !self.open.contains_key(&number) && !self.asked.contains_key(&number) {
            self.ends.remove(&(until, number));
        }
    }

    /// The connection with this stamp has moved.
    pub(super) fn moved(&mut self, stamp: u32, to: Slot) {
        if !self.of_connection.contains_key(&stamp) {
            return;
        }
        for open in self.open.values_mut().filter(|open| open.asker.stamp == stamp) {
            open.asker.slot = to;
        }
    }
}

impl Shard {
    /// A question that a client may put to others, for `ask_ms`.
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn new_ask(&mut self, slot: Slot, ask_ms: u32, now: Time) -> Result<Ask, Refusal<'static>> {
        let stamp = self.conns[slot as usize].stamp;
        let own = self.asks.of_connection.get(&stamp).copied().unwrap_or_default();
        if self.asks.open.len() >= OPEN_MAX || own >= OPEN_PER_CONNECTION_MAX {
            return Err(Refusal::new(Code::Overloaded, "too many questions wait for answers")
                .with_retry(self.asks.retry_ms(now)));
        }
        self.asks.count += 1;
        let number = Ask::number(self.asks.count, message::Asker::Shard(self.id));
        Ok(Ask { number, until: now.plus_ms(ask_ms.into()) })
    }

    /// The question has been published to so many shards.
    pub(super) fn open_ask(
        &mut self,
        ask: Ask,
        slot: Slot,
        namespace: Option<&str>,
        id: &str,
        shards: usize,
    ) {
        // The bridge is asked as well, and tells how many processes there are behind it.
        let shards = shards + usize::from(self.bus.outside().is_some());
        let stamp = self.conns[slot as usize].stamp;
        let asker = Asker { slot, stamp, namespace: namespace.map(str::to_owned), id: id.to_owned() };
        let open =
            Open { asker, until: ask.until, shards, awaited: 0, left_out: 0, answers: Vec::new(), bytes: 0 };
        self.asks.open.insert(ask.number, open);
        *self.asks.of_connection.entry(stamp).or_default() += 1;
        self.asks.ends.insert((ask.until, ask.number));
        self.close_ask_if_answered(ask.number);
    }

    /// An event that asks has been given to the connections with these stamps.
    pub(super) fn asked(&mut self, ask: Ask, stamps: HashSet<u32>) {
        let sockets = stamps.len() as u32;
        if sockets > 0 && self.asks.awaited + stamps.len() <= ASKED_MAX {
            self.asks.awaited += stamps.len();
            self.asks.asked.insert(ask.number, Asked { stamps, until: ask.until });
            self.asks.ends.insert((ask.until, ask.number));
        }
        self.bus.tell_asker(Ask::asker(ask.number), Mail::Asked { number: ask.number, sockets });
    }

    /// A client has answered an event.
    pub(super) fn answered(&mut self, slot: Slot, id: &str, args: &str, attachments: &[Vec<u8>]) {
        let Ok(number) = id.parse::<u64>() else { return };
        let stamp = self.conns[slot as usize].stamp;
        // Who was not asked, or answers again, is passed over, as by Node.
        let Some(asked) = self.asks.asked.get_mut(&number) else { return };
        if !asked.stamps.remove(&stamp) {
            return;
        }
        self.asks.awaited -= 1;
        if let (true, until) = (asked.stamps.is_empty(), asked.until) {
            self.asks.asked.remove(&number);
            self.asks.settle(number, until);
        }
        // As in Node, its first argument is the answer.
        let value = json::split(args).first().map_or("null", |value| value).to_owned();
        let answer = Answer { number, value, attachments: attachments.to_vec() };
        self.bus.tell_asker(Ask::asker(number), Mail::Answer(Box::new(answer)));
    }

    /// A shard has told how many it has asked.
    pub(super) fn note_asked(&mut self, number: u64, sockets: u32) {
        if let Some(open) = self.asks.open.get_mut(&number) {
            // Another process may say it twice.
            open.shards = open.shards.saturating_sub(1);
            open.awaited = open.awaited.saturating_add(sockets);
            self.close_ask_if_answered(number);
        }
    }

    /// The bridge has told how many processes it has asked.
    pub(super) fn note_asked_outside(&mut self, number: u64, processes: usize) {
        if let Some(open) = self.asks.open.get_mut(&number) {
            open.shards = (open.shards + processes).saturating_sub(1);
            self.close_ask_if_answered(number);
        }
    }

    /// A shard has passed on an answer.
    pub(super) fn note_answer(&mut self, answer: Answer) {
        let number = answer.number;
        let Some(open) = self.asks.open.get_mut(&number) else { return };
        open.awaited = open.awaited.saturating_sub(1);
        let bytes = answer.size();
        if open.bytes + bytes <= self.settings.message_bytes_max && self.asks.bytes + bytes <= BYTES_MAX {
            open.bytes += bytes;
            self.asks.bytes += bytes;
            open.answers.push(answer);
        } else {
            open.left_out += 1;
        }
        self.close_ask_if_answered(number);
    }

    /// Time has come this far.
    pub(super) fn end_asks(&mut self, now: Time) {
        while let Some((end, number)) = self.asks.ends.pop_first() {
            if end > now {
                self.asks.ends.insert((end, number));
                return;
            }
            self.asks.awaited -= self.asks.asked.remove(&number).map_or(0, |asked| asked.stamps.len());
            self.close_ask(number);
        }
    }

    fn close_ask_if_answered(&mut self, number: u64) {
        let open = self.asks.open.get(&number);
        if open.is_some_and(|open| open.shards == 0 && open.awaited == 0) {
            self.close_ask(number);
        }
    }

    /// Tells the publisher what has been answered.
    fn close_ask(&mut self, number: u64) {
        let Some(open) = self.asks.open.remove(&number) else { return };
        self.asks.bytes -= open.bytes;
        self.asks.settle(number, open.until);
        let Asker { slot, stamp, namespace, id } = open.asker;
        if let Entry::Occupied(mut own) = self.asks.of_connection.entry(stamp) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
        let missing = open.awaited.saturating_add(open.left_out);
        let is_there = |conn: &&super::Conn| conn.stamp == stamp && conn.is_open();
        let Some(conn) = self.conns.get(slot as usize).filter(is_there) else { return };
        let (mut values, mut all) = (Vec::new(), Vec::new());
        for Answer { value, attachments, .. } in open.answers {
            match (attachments.is_empty(), &namespace) {
                (true, _) => values.push(value),
                (false, None) => values.push(attachments::inline(&value, &attachments)),
                (false, Some(_)) => {
                    values.push(attachments::shift(&value, all.len()));
                    all.extend(attachments);
                }
            }
        }
        let values = values.join(",");
        let Some(namespace) = namespace else {
            return self.reply(slot, Opcode::Text, |out| native::encode_answers(out, &id, &values, missing));
        };
        // It may have left the namespace meanwhile.
        if conn.session.as_ref().is_some_and(|session| session.joined(&namespace).is_some()) {
            let args = format!(r#"{{"answers":[{values}],"missing":{missing}}}"#);
            self.say_ack(slot, &namespace, &id, &args, &all);
        }
    }
}
