//! What one server has asked another and is waited for: acks of clients, and which sockets there are. All of it ends in time.

use crate::bus::mailbox::{Answer, Mail};
use crate::bus::outside::{FOUND_BYTES_MAX, Found};
use crate::cluster::{Body, Message, Socket};
use crate::message::{Ask, Asker, ShardId};
use crate::time::Time;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

/// Questions of servers elsewhere to clients here that may be open at a time. Further ones are not put.
const ASKS_MAX: usize = 10_000;
/// Questions of servers elsewhere about sockets that may be open at a time, likewise, however many sockets each is about.
const FINDS_MAX: usize = 32;
/// The same while all together are about at most [`SOUGHT_MAX`] sockets: many ask for one user or a small room.
const SMALL_FINDS_MAX: usize = 1_024;
/// See [`SMALL_FINDS_MAX`]. Who is in two of the rooms that are asked for counts twice.
const SOUGHT_MAX: u64 = 50_000;
/// The most bytes of sockets that shards have told and that wait for other shards to tell. What is more is told to nobody.
const HELD_BYTES_MAX: usize = 2 * FOUND_BYTES_MAX;
/// How long shards may take to tell of sockets, in milliseconds. As long as Node waits for all.
const FIND_MS: u64 = 5_000;
/// Mail held back for one question until the servers are counted.
const HELD_MAX: usize = 10_000;

/// What is open.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Questions of clients here to those elsewhere, by what they are called on the way.
    own: HashMap<String, Own>,
    /// Questions from elsewhere to clients here, by their number here.
    asks: HashMap<u64, Asked>,
    /// Questions from elsewhere about sockets here, likewise.
    finds: HashMap<u64, Find>,
    count: u64,
}

/// More is asked than may be: a question is not carried out, or not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMuch;

#[derive(Debug)]
struct Own {
    ask: Ask,
    /// What came before it was known how many will answer; `None` once that is.
    held: Option<Vec<Mail>>,
}

/// Where an answer goes.
#[derive(Debug)]
struct Return {
    request_id: String,
    to: Option<String>,
    namespace: String,
}

#[derive(Debug)]
struct Asked {
    back: Return,
    until: Time,
    /// Shards that have not told how many they have asked; `None` until it is known how many shards there are.
    shards: Option<usize>,
    told: usize,
    sockets: u64,
}

#[derive(Debug)]
struct Find {
    back: Return,
    purpose: Purpose,
    until: Time,
    /// About so many sockets.
    sought: u64,
    shards: Option<usize>,
    told: usize,
    sockets: Vec<Found>,
    /// Of `sockets`, at most [`FOUND_BYTES_MAX`].
    bytes: usize,
}

/// What is to be known of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// All that there is to tell.
    Sockets,
    /// Their ids.
    Ids,
    /// The rooms that they are in.
    Rooms,
}

impl Asking {
    /// A client here asks clients elsewhere.
    pub(super) fn open(&mut self, request_id: String, ask: Ask) {
        self.own.insert(request_id, Own { ask, held: Some(Vec::new()) });
    }

    /// It is known how many servers will answer. Answers what they have said already.
    pub(super) fn counted(&mut self, request_id: &str) -> Vec<Mail> {
        self.own.get_mut(request_id).and_then(|own| own.held.take()).unwrap_or_default()
    }

    /// A server has told how many clients it has asked. Answers what a shard is to be told of it.
    pub(super) fn heard_count(&mut self, request_id: &str, sockets: u32) -> Option<(ShardId, Mail)> {
        let number = self.own.get(request_id)?.ask.number;
        self.pass_on(request_id, Mail::Asked { number, sockets })
    }

    /// A client elsewhere has answered.
    pub(super) fn heard_answer(
        &mut self,
        request_id: &str,
        value: String,
        attachments: Vec<Vec<u8>>,
    ) -> Option<(ShardId, Mail)> {
        let number = self.own.get(request_id)?.ask.number;
        self.pass_on(request_id, Mail::Answer(Box::new(Answer { number, value, attachments })))
    }

    fn pass_on(&mut self, request_id: &str, mail: Mail) -> Option<(ShardId, Mail)> {
        let own = self.own.get_mut(request_id)?;
        let Asker::Shard(shard) = Ask::asker(own.ask.number) else { return None };
        match &mut own.held {
            Some(held) if held.len() < HELD_MAX => held.push(mail),
            Some(_) => {}
            None => return Some((shard, mail)),
        }
        None
    }

    /// A server elsewhere asks clients here. Answers what the question is called here.
    ///
    /// # Errors
    /// When as many as may be are open.
    pub(super) fn ask(
        &mut self,
        request_id: &str,
        from: Option<&str>,
        namespace: &str,
        until: Time,
    ) -> Result<Ask, TooMuch> {
        if self.asks.len() >= ASKS_MAX {
            return Err(TooMuch);
        }
        self.count += 1;
        let number = Ask::number(self.count, Asker::Outside);
        let back = Return::new(request_id, from, namespace);
        self.asks.insert(number, Asked { back, until, shards: None, told: 0, sockets: 0 });
        Ok(Ask { number, until })
    }

    /// The question has gone to so many shards.
    pub(super) fn ask_in(&mut self, number: u64, shards: usize) -> Option<Message<'static>> {
        self.asks.get_mut(&number)?.shards = Some(shards);
        self.count_of(number)
    }

    /// One of them has told how many it has asked.
    pub(super) fn asked(&mut self, number: u64, sockets: u32) -> Option<Message<'static>> {
        let asked = self.asks.get_mut(&number)?;
        asked.told += 1;
        asked.sockets += u64::from(sockets);
        self.count_of(number)
    }

    fn count_of(&self, number: u64) -> Option<Message<'static>> {
        let asked = self.asks.get(&number).filter(|asked| asked.shards == Some(asked.told))?;
        let request_id = asked.back.request_id.clone().into();
        Some(asked.back.message(Body::ClientCount { request_id, count: asked.sockets }, Vec::new()))
    }

    /// A client here has answered.
    pub(super) fn answered(&self, answer: Answer) -> Option<Message<'static>> {
        let back = &self.asks.get(&answer.number)?.back;
        let body = Body::ClientAck { request_id: back.request_id.clone().into(), value: answer.value.into() };
        Some(back.message(body, answer.attachments))
    }

    /// A server elsewhere wants to know of sockets here, about `sought` of them. Answers the number of that.
    ///
    /// # Errors
    /// When as many as may be are open.
    pub(super) fn find(
        &mut self,
        request_id: &str,
        from: Option<&str>,
        namespace: &str,
        purpose: Purpose,
        sought: u64,
        now: Time,
    ) -> Result<u64, TooMuch> {
        let open_sought: u64 = self.finds.values().map(|find| find.sought).sum();
        let open_max = if open_sought + sought <= SOUGHT_MAX { SMALL_FINDS_MAX } else { FINDS_MAX };
        if self.finds.len() >= open_max {
            return Err(TooMuch);
        }
        self.count += 1;
        let back = Return::new(request_id, from, namespace);
        let until = now.plus_ms(FIND_MS);
        let find =
            Find { back, purpose, until, sought, shards: None, told: 0, sockets: Vec::new(), bytes: 0 };
        self.finds.insert(self.count, find);
        Ok(self.count)
    }

    /// No shard was told to look for sockets.
    pub(super) fn give_up(&mut self, number: u64) {
        self.finds.remove(&number);
    }

    /// So many shards have been asked. Answers what to tell when it is all known.
    pub(super) fn find_in(&mut self, number: u64, shards: usize) -> Option<Message<'static>> {
        self.finds.get_mut(&number)?.shards = Some(shards);
        self.all_found(number)
    }

    /// One of them has told; `None` when it has more sockets than can be told.
    ///
    /// # Errors
    /// When the list is too long, or there are too many. It is given up then: nobody could tell a list that was cut from a whole one.
    pub(super) fn found(
        &mut self,
        number: u64,
        sockets: Option<Vec<Found>>,
    ) -> Result<Option<Message<'static>>, TooMuch> {
        let held: usize = self.finds.values().map(|find| find.bytes).sum();
        let Some(find) = self.finds.get_mut(&number) else { return Ok(None) };
        let more: usize = sockets.iter().flatten().map(Found::size).sum();
        match sockets {
            Some(sockets) if find.bytes + more <= FOUND_BYTES_MAX && held + more <= HELD_BYTES_MAX => {
                find.told += 1;
                find.bytes += more;
                find.sockets.extend(sockets);
                Ok(self.all_found(number))
            }
            _ => {
                self.finds.remove(&number);
                Err(TooMuch)
            }
        }
    }

    fn all_found(&mut self, number: u64) -> Option<Message<'static>> {
        self.finds.get(&number).filter(|find| find.shards == Some(find.told))?;
        let Find { back, purpose, sockets, .. } = self.finds.remove(&number)?;
        let request_id = back.request_id.clone().into();
        let body = match purpose {
            Purpose::Sockets => {
                Body::FetchAnswer { request_id, sockets: sockets.into_iter().map(tell).collect() }
            }
            Purpose::Ids => {
                let ids = sockets.into_iter().map(|socket| socket.id.into()).collect();
                Body::SocketsAnswer { request_id, ids }
            }
            Purpose::Rooms => {
                let rooms: BTreeSet<String> =
                    sockets.into_iter().flat_map(|socket| socket.rooms).map(String::from).collect();
                Body::RoomsAnswer { request_id, rooms: rooms.into_iter().map(Cow::from).collect() }
            }
        };
        Some(back.message(body, Vec::new()))
    }

    /// What has not been answered by now never will be.
    pub(super) fn forget(&mut self, now: Time) {
        self.own.retain(|_, own| own.ask.until > now);
        self.asks.retain(|_, asked| asked.until > now);
        self.finds.retain(|_, find| find.until > now);
    }
}

impl Return {
    fn new(request_id: &str, from: Option<&str>, namespace: &str) -> Return {
        let to = from.map(str::to_owned);
        Return { request_id: request_id.to_owned(), to, namespace: namespace.to_owned() }
    }

    fn message(&self, body: Body<'static>, attachments: Vec<Vec<u8>>) -> Message<'static> {
        Message {
            uid: None,
            to: self.to.clone().map(Cow::from),
            namespace: self.namespace.clone().into(),
            attachments: attachments.into_iter().map(Cow::from).collect(),
            body,
        }
    }
}

/// A socket as Node tells of one. What throng does not keep is left empty.
fn tell(socket: Found) -> Socket<'static> {
    let handshake = format!(
        r#"{{"headers":{{}},"time":"","address":"{}","xdomain":false,"secure":false,"issued":0,"url":"","query":{{}},"auth":{{}}}}"#,
        socket.address
    );
    Socket {
        id: socket.id.into(),
        handshake: handshake.into(),
        rooms: socket.rooms.into_iter().map(|room| String::from(room).into()).collect(),
        data: "{}".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(asking: &mut Asking, now: Time) -> Result<u64, TooMuch> {
        asking.find("q", Some("node"), "/", Purpose::Sockets, SOUGHT_MAX, now)
    }

    fn found(room_bytes: usize) -> Option<Vec<Found>> {
        let room = "r".repeat(room_bytes).into();
        Some(vec![Found { id: "id".to_owned(), address: "127.0.0.1".to_owned(), rooms: vec![room] }])
    }

    #[test]
    fn some_questions_about_sockets_may_be_open_and_no_more() {
        let mut asking = Asking::default();
        let now = Time::default();
        let open: Vec<u64> = (0..FINDS_MAX).map(|_| find(&mut asking, now).expect("there is room")).collect();
        assert_eq!(find(&mut asking, now), Err(TooMuch));
        assert_eq!(asking.find_in(open[0], 1), None);
        assert!(matches!(asking.found(open[0], found(10)), Ok(Some(_))), "it is answered");
        asking.give_up(open[1]);
        assert!((0..2).all(|_| find(&mut asking, now).is_ok()) && find(&mut asking, now).is_err());
        asking.forget(now.plus_ms(FIND_MS));
        assert!(find(&mut asking, now).is_ok(), "what was not answered in time is over");
    }

    #[test]
    fn many_small_questions_may_be_open() {
        let mut asking = Asking::default();
        let mut find = |sought| asking.find("q", None, "/", Purpose::Ids, sought, Time::default()).is_ok();
        assert!((0..SMALL_FINDS_MAX - 1).all(|_| find(1)));
        assert!(!find(SOUGHT_MAX), "a large one is one too many");
        assert!(find(1) && !find(1));
    }

    #[test]
    fn a_list_that_is_too_long_is_not_told() {
        let mut asking = Asking::default();
        let now = Time::default();
        let number = find(&mut asking, now).expect("there is room");
        asking.find_in(number, 2);
        assert_eq!(asking.found(number, found(10)), Ok(None), "another shard has to tell");
        assert_eq!(asking.found(number, None), Err(TooMuch));
        assert_eq!(asking.found(number, found(10)), Ok(None), "it is given up");

        let number = find(&mut asking, now).expect("there is room");
        assert_eq!(asking.found(number, found(FOUND_BYTES_MAX / 2)), Ok(None));
        assert_eq!(
            asking.found(number, found(FOUND_BYTES_MAX / 2)),
            Err(TooMuch),
            "both together are too long"
        );

        // Those that wait for other shards are bounded together.
        let held = FOUND_BYTES_MAX - 1_000;
        for _ in 0..2 {
            let number = find(&mut asking, now).expect("there is room");
            assert_eq!(asking.found(number, found(held)), Ok(None));
        }
        let number = find(&mut asking, now).expect("there is room");
        assert_eq!(asking.found(number, found(held)), Err(TooMuch));
    }

    #[test]
    fn clients_are_asked_as_often_as_may_be() {
        let mut asking = Asking::default();
        let until = Time::default().plus_ms(1);
        let mut ask = || asking.ask("q", None, "/", until);
        assert!((0..ASKS_MAX).all(|_| ask().is_ok()));
        assert_eq!(ask(), Err(TooMuch));
        asking.forget(until);
        assert!(asking.ask("q", None, "/", until).is_ok());
    }
}
