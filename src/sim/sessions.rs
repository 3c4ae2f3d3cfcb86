//! The model's sessions of Engine.IO: the requests of those that poll, their move to a WebSocket, their heartbeat, and what Socket.IO
//! says in them.

use super::clients::{Asks, Event, Request, quoted};
use super::model::{Expected, Letter, Model, Peer, Stage, Tokens};
use super::plan::{CLOSE_TIMEOUT_MS, NAMESPACES};
use super::said::{Bytes, Lack, Packet, Said, Sid};
use super::talk::{Deed, PLACEHOLDER, Word};
use crate::dialect::Dialect;
use crate::message::Slot;
use crate::shard::conn::Due;
use crate::stats::Ending;
use crate::time::Time;
use std::collections::BTreeMap;
use std::rc::Rc;

/// More is not in one answer to a GET.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A ping that is less late than this, in milliseconds, does not delay the end.
const LATE_MS: u64 = 20;

/// A session as the server must see it.
#[derive(Debug)]
pub(super) struct Session {
    /// The requests of one that polls; `None` for one on a WebSocket.
    pub(super) polls: Option<Polls>,
    /// When it is pinged; after a ping, when it is given up.
    beat: Time,
    /// When it must have joined a namespace.
    connect_by: Option<Time>,
    pub(super) namespaces: Vec<String>,
    /// A packet whose attachments have not all come.
    incoming: Option<Incoming>,
}

#[derive(Debug, Default)]
pub(super) struct Polls {
    /// The connection whose GET waits.
    pub(super) get: Option<usize>,
    /// The slot of the connection whose POST is not whole.
    post: Option<Slot>,
    /// The WebSocket to which it may move.
    probe: Option<usize>,
    /// True when that one has been told that it works.
    is_pausing: bool,
}

#[derive(Debug)]
struct Incoming {
    namespace: String,
    id: Option<String>,
    deed: Deed,
    expected: usize,
    attachments: Vec<Bytes>,
    bytes: usize,
}

/// The session that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The one that began with this number, wherever it is now.
    Session(usize),
    /// None, whatever the id says; it may say a shard.
    Nobody(Option<usize>),
}

/// What the head of a request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heading {
    /// The request is for this shard, as far as its head tells.
    Stays,
    /// Another shard gets the socket.
    Leaves(usize),
    /// The request has been refused.
    Refused,
}

/// What a request of Engine.IO asks for.
#[derive(Clone, Debug)]
pub(super) enum Poll {
    Handshake {
        origin: Option<&'static str>,
    },
    Get(Target),
    Post {
        target: Target,
        words: Vec<Word>,
        octets: bool,
    },
    Probe {
        target: Target,
        subprotocol: bool,
    },
    /// Something that no session is asked.
    Odd {
        target: Target,
        is_upgrade: bool,
    },
    /// Something that is refused in any case.
    Wrong {
        code: u8,
        is_upgrade: bool,
    },
    Preflight {
        target: Option<Target>,
    },
}

impl Session {
    fn new(polls: Option<Polls>, now: Time, interval_ms: u32, connect_timeout_ms: u32) -> Session {
        Session {
            polls,
            beat: now.plus_ms(interval_ms.into()),
            connect_by: Some(now.plus_ms(connect_timeout_ms.into())),
            namespaces: Vec::new(),
            incoming: None,
        }
    }
}

impl Peer {
    /// The requests of a session that polls.
    pub(super) fn polls(&mut self) -> Option<&mut Polls> {
        self.session.as_mut().and_then(|session| session.polls.as_mut())
    }

    /// True when it is on its way from polling to a WebSocket.
    pub(super) fn is_moving(&self) -> bool {
        let polls = self.session.as_ref().and_then(|session| session.polls.as_ref());
        polls.is_some_and(|polls| polls.is_pausing)
    }

    /// Bytes that have come of a packet whose attachments have not all come, if there is one.
    pub(super) fn unfinished_bytes(&self) -> Option<usize> {
        let session = self.session.as_ref().filter(|_| self.is_upgraded())?;
        session.incoming.as_ref().map(|incoming| incoming.bytes)
    }

    /// True when its session has joined this namespace.
    pub(super) fn is_in(&self, namespace: &str) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.namespaces.iter().any(|joined| joined == namespace))
    }

    pub(super) fn is_polled(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.polls.is_some())
    }

    /// The connection whose GET waits for something to be said to this session.
    pub(super) fn waiting_get(&self) -> Option<usize> {
        self.session.as_ref()?.polls.as_ref()?.get
    }

    pub(super) fn arm_session(&mut self, now: Time) {
        if let Some(session) = &self.session {
            let due = session.connect_by.map_or(session.beat, |by| by.min(session.beat));
            self.arm(now, due.since_ns(now).div_ceil(1_000_000));
        }
    }
}

impl Model {
    // ------------------------------------------------------------------------------------------------ requests

    /// The head of a request has come. With a body, `length` bytes follow.
    pub(super) fn head(
        &mut self,
        number: usize,
        target: Option<Target>,
        length: Option<usize>,
        now: Time,
    ) -> Heading {
        let shard = match target {
            Some(Target::Session(session)) => Some(self.peers[session].shard),
            Some(Target::Nobody(shard)) => shard.filter(|shard| *shard < self.mail.len()),
            None => None,
        };
        let peer = &mut self.peers[number];
        if let Some(shard) = shard.filter(|shard| *shard != peer.shard) {
            peer.stage = Stage::Leaving;
            peer.due_ms = u64::MAX;
            return Heading::Leaves(shard);
        }
        if length.is_some_and(|length| length > self.settings.message_bytes_max) {
            self.refuse(number, 413, "large_body", false, false, now);
            return Heading::Refused;
        }
        Heading::Stays
    }

    /// The socket is on its way to another shard.
    pub(super) fn hand_over(&mut self, number: usize, to: usize) {
        let peer = &mut self.peers[number];
        assert_eq!(peer.stage, Stage::Leaving, "{number} is handed over");
        assert!(!peer.doomed && !peer.refused && peer.expected.is_empty(), "{number} has its answers");
        peer.stage = Stage::Handed;
        let slot = peer.slot.take().expect("it had a place");
        self.free[peer.shard].push(slot);
        peer.shard = to;
        self.sockets -= 1;
    }

    /// The other shard has it, in this slot.
    pub(super) fn adopt(&mut self, number: usize, slot: Slot, now: Time) {
        let shard = self.peers[number].shard;
        assert_eq!(self.take_slot(shard), slot, "the slot of {number}");
        self.sockets += 1;
        let handshake_timeout_ms = self.settings.handshake_timeout_ms;
        let peer = &mut self.peers[number];
        peer.slot = Some(slot);
        peer.stage = Stage::Http;
        peer.flushed_ms = now.ms();
        peer.arm(now, handshake_timeout_ms.into());
    }

    /// The body of a POST is on its way.
    pub(super) fn await_body(&mut self, number: usize, target: Option<Target>, now: Time) {
        let timeout_ms = self.settings.message_timeout_ms;
        self.peers[number].arm(now, timeout_ms.into());
        let slot = self.peers[number].slot.expect("it has a place");
        if let Some(session) = target.and_then(|target| self.find(target, now))
            && let Some(polls) = self.peers[session].polls()
            && *polls.post.get_or_insert(slot) != slot
        {
            self.end(session, Ending::Protocol, now);
        }
    }

    /// The session that a request is for, if it is open and its time has not come.
    fn find(&mut self, target: Target, now: Time) -> Option<usize> {
        let Target::Session(number) = target else { return None };
        let peer = &self.peers[number];
        let session = peer.session.as_ref().filter(|_| peer.stage == Stage::Open && !peer.doomed)?;
        if peer.pinged && now >= session.beat {
            self.end(number, Ending::Silent, now);
            return None;
        }
        Some(number)
    }

    /// A request of Engine.IO has come whole.
    pub(super) fn poll(&mut self, number: usize, request: &Request, poll: &Poll, now: Time) {
        // As it is before the request is carried out.
        let keep_alive = request.keep_alive && self.drains[self.peers[number].shard].is_none();
        let fault = |code: u8| Err((code, false));
        let upgrade_fault = |code: u8| Err((code, true));
        let result = match poll {
            Poll::Handshake { origin } => return self.shake_hands(number, keep_alive, *origin, now),
            Poll::Get(target) => match self.find(*target, now) {
                None => fault(1),
                Some(session) => self.get(number, session, keep_alive, now),
            },
            Poll::Post { target, words, octets } => match self.find(*target, now) {
                None => fault(1),
                Some(session) => self.post(number, session, (words, *octets), keep_alive, now),
            },
            Poll::Probe { target, subprotocol } => match self.find(*target, now) {
                None => upgrade_fault(1),
                Some(session) => self.probe(number, session, *subprotocol, now),
            },
            Poll::Odd { target, is_upgrade } => {
                let code = if self.find(*target, now).is_some() { 3 } else { 1 };
                Err((code, *is_upgrade))
            }
            Poll::Wrong { code, is_upgrade } => Err((*code, *is_upgrade)),
            Poll::Preflight { target } => {
                if !self.settings.socketio.cors.origins.is_empty() {
                    self.counts.requests += 1;
                    return self.answer(number, 204, keep_alive, false, now);
                }
                match target.map(|target| self.find(target, now)) {
                    None => fault(2),
                    Some(None) => fault(1),
                    Some(Some(_)) => fault(3),
                }
            }
        };
        if let Err((code, is_upgrade)) = result {
            self.fault(number, code, keep_alive && !is_upgrade, request.head_only, now);
        }
    }

    fn fault(&mut self, number: usize, code: u8, keep_alive: bool, head_only: bool, now: Time) {
        self.count_reject("engine_io");
        self.respond(number, Said::Fault { code, closes: !keep_alive, head_only }, keep_alive, now);
    }

    fn shake_hands(&mut self, number: usize, keep_alive: bool, origin: Option<&'static str>, now: Time) {
        if self.is_foreign(origin) {
            return self.fault(number, 4, keep_alive, false, now);
        }
        let (shard, ip) = (self.peers[number].shard, self.peers[number].ip);
        if let Some((status, label)) = self.refusal(number) {
            return self.refuse(number, status, label, false, false, now);
        }
        let slot = self.take_slot(shard);
        let session = self.peers.len();
        let mut peer = Peer::new(shard, ip, self.settings.outbox_policy);
        peer.slot = Some(slot);
        peer.stage = Stage::Open;
        peer.dialect = Some(Dialect::SocketIo);
        // Nothing is said to it but into its outbox, as frames.
        peer.switched = true;
        peer.refused = true;
        peer.has_socket = false;
        (peer.heard_ms, peer.flushed_ms) = (now.ms(), now.ms());
        peer.tokens = Tokens::full(self.settings.messages_burst_max, now);
        self.peers.push(peer);
        self.open_session(session, Some(Polls::default()), now);
        self.open += 1;
        self.counts.handshakes += 1;
        self.counts.requests += 1;
        let packets = vec![Packet::Open { can_upgrade: true, sid: Sid::default() }];
        self.respond(number, Said::Poll { packets, closes: !keep_alive }, keep_alive, now);
    }

    /// A connection has become a session.
    pub(super) fn open_session(&mut self, number: usize, polls: Option<Polls>, now: Time) {
        let connect_timeout_ms = self.settings.socketio.connect_timeout_ms;
        let is_socket = polls.is_none();
        let session = Session::new(polls, now, self.settings.ping_interval_ms, connect_timeout_ms);
        let peer = &mut self.peers[number];
        peer.session = Some(session);
        peer.arm_session(now);
        if is_socket {
            let open = Packet::Open { can_upgrade: false, sid: Sid::default() };
            peer.expect(Said::Packet(open), now);
        }
    }

    fn get(&mut self, number: usize, session: usize, keep_alive: bool, now: Time) -> Result<(), (u8, bool)> {
        let polls = self.peers[session].polls().ok_or((3, false))?;
        if polls.get.is_some() {
            self.end(session, Ending::Protocol, now);
            return Err((3, false));
        }
        polls.get = Some(number);
        self.peers[number].stage = Stage::Waiting { session, keep_alive };
        self.peers[number].due_ms = u64::MAX;
        Ok(())
    }

    /// The server has answered the GET that waits on `number`.
    pub(super) fn answered(&mut self, number: usize, packets: &[Packet], now: Time) {
        let Stage::Waiting { session, .. } = self.peers[number].stage else {
            panic!("{number} gets {packets:?} and has not asked")
        };
        let (is_full, is_full_in_all) = (self.is_full(session), self.is_full_in_all(session));
        let peer = &mut self.peers[session];
        let may_lose = peer.droppable && is_full;
        let polls = peer.polls().expect("it polls");
        assert_eq!(polls.get, Some(number), "the GET that waits for what is said to {session}");
        let is_pausing = polls.is_pausing;
        let mut told = packets;
        let is_slow = told.last() == Some(&Packet::Close);
        if is_slow {
            told = &told[..told.len() - 1];
            assert!(
                is_full && (!peer.droppable || is_full_in_all),
                "{session} is closed as too slow: {peer:?}"
            );
        } else if told == [Packet::Noop] && is_pausing {
            told = &[];
        } else {
            assert!(!told.is_empty(), "{number} is told nothing");
        }
        for packet in told {
            let expected = &self.peers[session].expected;
            let lacking = |expected: &Expected| match &expected.said {
                Said::Packet(other) => other.lacking(packet),
                _ => None,
            };
            let place =
                expected.iter().position(|expected| lacking(expected).is_some()).unwrap_or_else(|| {
                    panic!("{number} is told {packet:?} instead of {:?}", expected.front());
                });
            let (said, lacking) = (expected[place].said.clone(), lacking(&expected[place]));
            let lost: Vec<_> = self.peers[session].expected.drain(..place).collect();
            for lost in lost {
                assert!(may_lose || lost.is_doubtful, "{number} is told {packet:?} instead of {lost:?}");
                self.lose(session, &lost, is_full);
            }
            self.learn(session, packet);
            self.said(session, said, now);
            // Where an answer is full, what is left of a packet begins the next one.
            for attachment in lacking.into_iter().flatten().rev() {
                self.peers[session].expect_first(Said::Packet(Packet::Attachment(attachment)), now);
            }
        }
        if is_slow {
            self.peers[session].polls().expect("it polls").get = None;
            self.end(session, Ending::Slow, now);
        }
        self.release_get(number, Said::Poll { packets: packets.to_vec(), closes: false }, now);
    }

    /// The GET on `number` does not wait any more: it is answered.
    fn release_get(&mut self, number: usize, mut said: Said, now: Time) {
        let Stage::Waiting { session, keep_alive } = self.peers[number].stage else {
            panic!("no GET waits on {number}")
        };
        if let Some(polls) = self.peers[session].polls() {
            polls.get = None;
        }
        let keep_alive = keep_alive && self.drains[self.peers[number].shard].is_none();
        match &mut said {
            Said::Poll { closes, .. } | Said::Last { closes, .. } => *closes = !keep_alive,
            other => panic!("{other:?} is no answer to a GET"),
        }
        self.counts.requests += 1;
        self.peers[number].stage = Stage::Http;
        self.peers[number].waiting_bytes += said.bytes_max();
        self.respond(number, said, keep_alive, now);
    }

    fn post(
        &mut self,
        number: usize,
        session: usize,
        (words, octets): (&[Word], bool),
        keep_alive: bool,
        now: Time,
    ) -> Result<(), (u8, bool)> {
        let slot = self.peers[number].slot;
        let polls = self.peers[session].polls().ok_or((3, false))?;
        if polls.post.is_some_and(|other| Some(other) != slot) {
            self.end(session, Ending::Protocol, now);
            return Err((3, false));
        }
        polls.post = None;
        if octets {
            return Err((3, false));
        }
        self.heard(session, now);
        for (at, word) in words.iter().enumerate() {
            if !self.word(session, word, now) {
                return Err((3, false));
            }
            if self.peers[session].stage != Stage::Open {
                self.counts.cut_posts += u64::from(at + 1 < words.len());
                break;
            }
        }
        self.counts.requests += 1;
        self.respond(number, Said::Posted { closes: !keep_alive }, keep_alive, now);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------ the move

    fn probe(
        &mut self,
        number: usize,
        session: usize,
        subprotocol: bool,
        now: Time,
    ) -> Result<(), (u8, bool)> {
        let polls = self.peers[session].polls().ok_or((3, true))?;
        if polls.probe.is_some() {
            return Err((3, true));
        }
        polls.probe = Some(number);
        let upgrade_timeout_ms = self.settings.socketio.upgrade_timeout_ms;
        let peer = &mut self.peers[number];
        peer.dialect = Some(Dialect::SocketIo);
        peer.expect(Said::Switch { subprotocol }, now);
        peer.switching = true;
        peer.stage = Stage::Probing(session);
        peer.arm(now, upgrade_timeout_ms.into());
        Ok(())
    }

    /// The client has said on a WebSocket that it may move there: it is told that it may.
    pub(super) fn probed(&mut self, number: usize, session: usize, now: Time) {
        self.peers[number].expect(Said::Packet(Packet::Probed), now);
        if let Some(polls) = self.peers[session].polls() {
            polls.is_pausing = true;
            if let Some(get) = polls.get {
                let packets = vec![Packet::Noop];
                self.release_get(get, Said::Poll { packets, closes: false }, now);
            }
        }
    }

    /// The session moves to the WebSocket `to`, and all that is to be said to it.
    pub(super) fn move_session(&mut self, from: usize, to: usize, now: Time) {
        let shard = self.peers[to].shard;
        self.deliver(shard, now);
        if self.is_slow_now(from) {
            self.end(from, Ending::Slow, now);
        }
        let Some(polls) = self.peers[from].polls() else { return };
        if let Some(get) = polls.get {
            let packets = vec![Packet::Noop];
            self.release_get(get, Said::Poll { packets, closes: false }, now);
        }
        if self.peers[from].stage != Stage::Open {
            return;
        }
        if std::mem::take(&mut self.peers[to].abandoned) {
            self.peers[to].refused = true;
            assert!(self.may_be_full(to), "there is room for the answers of {to}");
            self.peers[to].doomed = true;
            self.peers[to].expected.clear();
            return self.end(to, Ending::Lost, now);
        }
        // What was said to it in this turn went into its outbox, or was left out.
        let is_full = self.may_be_full(from);
        let [old, new] = self.peers.get_disjoint_mut([from, to]).expect("two peers");
        new.stage = Stage::Open;
        new.session = old.session.take();
        if let Some(session) = &mut new.session {
            session.polls = None;
        }
        new.tokens = old.tokens;
        new.pinged = old.pinged;
        new.heard_ms = old.heard_ms;
        new.rooms = std::mem::take(&mut old.rooms);
        new.owed = std::mem::take(&mut old.owed);
        new.last_sequence = std::mem::take(&mut old.last_sequence);
        new.last_number = std::mem::take(&mut old.last_number);
        let doubtful = old.droppable && is_full;
        new.expected.extend(
            old.expected
                .drain(..)
                .map(|expected| Expected { is_doubtful: expected.is_doubtful || doubtful, ..expected }),
        );
        // What the WebSocket was told itself comes first, from the same outbox.
        new.refused = !new.expected.is_empty();
        if new.refused {
            new.due = Due::Now;
        }
        old.stage = Stage::Finished;
        old.doomed = true;
        for name in &new.rooms {
            let members = &mut self.rooms.get_mut(name).expect("it was a member").members;
            members.remove(&from);
            members.insert(to);
        }
        // It is the same client: what it published does not come back to it.
        for letter in &mut self.mail[shard] {
            let origin = match letter {
                Letter::Event { origin, .. } => origin,
                Letter::Special(flight) => &mut flight.origin,
                Letter::Asked { .. }
                | Letter::Answer { .. }
                | Letter::Order { .. }
                | Letter::Drain { .. }
                | Letter::Settings => continue,
            };
            if origin.publisher == from {
                origin.publisher = to;
            }
        }
        self.move_asks(shard, from, to);
        self.counts.moves += 1;
        self.heard(to, now);
        self.peers[to].arm_session(now);
        if self.peers[to].slot.is_some_and(|slot| (slot as usize) < self.told_of_drain(shard)) {
            self.shut_down(to, now);
        }
    }

    // ------------------------------------------------------------------------------------------------ ends

    /// A session that polled is over: who waits for it is told.
    pub(super) fn end_polling(&mut self, session: usize, ending: Ending, now: Time) {
        let is_full = self.may_be_full(session);
        let peer = &mut self.peers[session];
        let bytes = peer.expected.iter().map(|expected| expected.said.bytes_max() * 4 / 3).sum::<usize>();
        let lack = match (is_full, peer.droppable) {
            (false, _) if bytes > ANSWER_BYTES_MAX => Lack::Rest,
            (false, _) => Lack::Nothing,
            (true, true) => Lack::Some,
            (true, false) => Lack::Rest,
        };
        peer.doomed = true;
        peer.waiting_bytes = peer.expected_bytes();
        let packets = peer.expected.drain(..).map(|expected| match expected.said {
            Said::Packet(packet) => packet,
            other => panic!("{other:?} is said to {session}"),
        });
        let packets = packets.collect();
        let Some(polls) = peer.polls() else { return };
        let (get, probe) = (polls.get, polls.probe.take());
        if let Some(probe) = probe {
            self.peers[probe].doomed = true;
        }
        if let Some(get) = get {
            let mark = if ending == Ending::Client { Packet::Noop } else { Packet::Close };
            self.release_get(get, Said::Last { packets, mark, lack, closes: false }, now);
        }
    }

    /// True when the shard has just ended a session since too much waits for it, and this can be the one.
    pub(super) fn is_slow_now(&mut self, session: usize) -> bool {
        let can_be = |session: usize| {
            let peer = &self.peers[session];
            !peer.droppable && peer.stage == Stage::Open && self.may_be_full(session)
        };
        let is_slow = self.slow_endings > 0 && can_be(session);
        if is_slow {
            let shard = self.peers[session].shard;
            let others = (0..self.peers.len()).filter(|other| *other != session);
            let mut polled =
                others.filter(|other| self.peers[*other].shard == shard && self.peers[*other].is_polled());
            // Then it was this one or another that ends in the same turn, for whatever reason.
            self.is_unsure_who_was_slow |= polled.any(can_be);
            self.slow_endings -= 1;
        }
        is_slow
    }

    /// True when so much may wait for a session, or for all of its shard, that its outbox is full.
    fn may_be_full(&self, session: usize) -> bool {
        let peer = &self.peers[session];
        let others = self.peers.iter().filter(|other| other.shard == peer.shard && other.refused);
        // Of those that end together, the shard may end another one first.
        let of = |other: &Peer| match other.stage {
            Stage::Finishing { .. } if !other.has_socket => other.waiting_bytes,
            _ => other.expected_bytes(),
        };
        peer.expected_bytes() > self.settings.outbox_bytes_max
            || others.map(of).sum::<usize>() > self.settings.outbox_total_bytes_max
    }

    /// The client has given up a request that waited.
    pub(super) fn get_lost(&mut self, session: usize, number: usize, now: Time) {
        if let Some(polls) = self.peers[session].polls()
            && polls.get.take_if(|get| *get == number).is_some()
        {
            self.end(session, Ending::Lost, now);
        }
    }

    /// The WebSocket is gone to which a session might have moved.
    pub(super) fn probe_lost(&mut self, session: usize, number: usize, now: Time) {
        if let Some(polls) = self.peers[session].polls()
            && polls.probe.take_if(|probe| *probe == number).is_some()
        {
            polls.is_pausing = false;
            let peer = &self.peers[session];
            let told = self.told_of_drain(peer.shard);
            if peer.slot.is_some_and(|slot| (slot as usize) < told) {
                // The drain has waited for the move.
                self.end(session, Ending::Shutdown, now);
            }
        }
    }

    /// The client has given a sign of life.
    pub(super) fn session_heard(&mut self, number: usize, now: Time) {
        let interval_ms = self.settings.ping_interval_ms;
        let peer = &mut self.peers[number];
        if let Some(session) = &mut peer.session {
            session.beat = now.plus_ms(interval_ms.into());
            peer.arm_session(now);
        }
    }

    /// The timer of a session fires.
    pub(super) fn fire_session(&mut self, number: usize, now: Time) {
        let timeout_ms = self.settings.ping_timeout_ms;
        let peer = &mut self.peers[number];
        let Some(session) = &mut peer.session else { return };
        if session.connect_by.is_some_and(|by| now >= by) {
            return self.fail(number, 1008, Ending::Limit, now);
        }
        if now >= session.beat {
            if peer.pinged {
                let silent_ms = now.ms() - peer.heard_ms;
                assert!(silent_ms + LATE_MS >= timeout_ms.into(), "the model would close {number} too early");
                if session.polls.is_none() {
                    peer.expect(Said::Close(Some(super::plan::SILENT)), now);
                }
                self.end(number, Ending::Silent, now);
                self.peers[number].doomed = true;
                return;
            }
            let late_ms = now.since_ns(session.beat) / 1_000_000;
            let asked = if late_ms < LATE_MS { session.beat } else { now };
            session.beat = asked.plus_ms(timeout_ms.into());
            peer.pinged = true;
            peer.expect(Said::Packet(Packet::Ping), now);
            self.counts.pings += 1;
        }
        self.peers[number].arm_session(now);
    }

    // ------------------------------------------------------------------------------------------------ packets

    /// A packet of a client. False when Engine.IO knows none like it.
    pub(super) fn word(&mut self, number: usize, word: &Word, now: Time) -> bool {
        match word {
            Word::Passed => {}
            Word::Close => {
                if self.peers[number].is_polled() {
                    self.end(number, Ending::Client, now);
                } else {
                    self.peers[number].expect(Said::Close(Some(1000)), now);
                    self.end(number, Ending::Client, now);
                    self.peers[number].arm(now, CLOSE_TIMEOUT_MS);
                }
            }
            Word::Malformed | Word::Ping => self.fail(number, 1002, Ending::Protocol, now),
            _ => {
                self.counts.messages_in += 1;
                self.message(number, word, now);
            }
        }
        !matches!(word, Word::Malformed)
    }

    /// A packet of Socket.IO, or one of its attachments.
    fn message(&mut self, number: usize, word: &Word, now: Time) {
        let session = self.peers[number].session.as_mut().expect("it is a session");
        match (word, session.incoming.take()) {
            (Word::Attachment(bytes), Some(mut incoming)) => {
                incoming.bytes += bytes.0.len();
                incoming.attachments.push(bytes.clone());
                if incoming.bytes > self.settings.message_bytes_max {
                    self.fail(number, 1009, Ending::Protocol, now);
                } else if incoming.attachments.len() < incoming.expected {
                    session.incoming = Some(incoming);
                } else {
                    let Incoming { namespace, id, deed, attachments, .. } = incoming;
                    self.event(number, &namespace, id.as_deref(), &deed, attachments, now);
                }
            }
            (Word::Event { namespace, id, deed, attachments: 0, .. }, None) => {
                self.event(number, namespace, id.as_deref(), deed, Vec::new(), now);
            }
            (Word::Event { namespace, id, deed, attachments, text_bytes }, None) => {
                session.incoming = Some(Incoming {
                    namespace: namespace.clone(),
                    id: id.clone(),
                    deed: deed.clone(),
                    expected: *attachments,
                    attachments: Vec::new(),
                    bytes: *text_bytes,
                });
            }
            (Word::Connect { namespace, auth }, None) => {
                self.connect(number, namespace, auth.as_deref(), now);
            }
            (Word::Disconnect { namespace }, None) if session.namespaces.contains(namespace) => {
                if self.has_token(number, now) {
                    self.leave_namespace(number, namespace);
                }
            }
            (Word::Ack { namespace, answer }, None) if session.namespaces.contains(namespace) => {
                match (self.take_token(number, now), answer) {
                    (Err(_), _) => self.counts.rate_limited += 1,
                    (Ok(()), Some((question, value))) => self.hear_answer(number, *question, value),
                    (Ok(()), None) => {}
                }
            }
            // Also what comes before the attachments that were promised, and an attachment that nobody promised.
            _ => self.break_off(number, now),
        }
    }

    pub(super) fn leave_namespace(&mut self, number: usize, namespace: &str) {
        self.forget_socket(number, namespace);
        let session = self.peers[number].session.as_mut().expect("it is a session");
        session.namespaces.retain(|joined| joined != namespace);
        let is_last = session.namespaces.is_empty();
        for key in self.peers[number].rooms.clone() {
            if is_last || namespace_of(&key) == namespace {
                self.leave(number, &key);
            }
        }
    }

    /// Takes a token for what cannot be refused with an error: who has none is closed.
    fn has_token(&mut self, number: usize, now: Time) -> bool {
        let has_token = self.take_token(number, now).is_ok();
        if !has_token {
            self.counts.rate_limited += 1;
            self.fail(number, 1008, Ending::Limit, now);
        }
        has_token
    }

    fn break_off(&mut self, number: usize, now: Time) {
        self.fail(number, 1002, Ending::Protocol, now);
    }

    fn connect(&mut self, number: usize, namespace: &str, auth: Option<&str>, now: Time) {
        let session = self.peers[number].session.as_ref().expect("it is a session");
        if session.namespaces.iter().any(|joined| joined == namespace) {
            return self.break_off(number, now);
        }
        let socketio = self.settings.socketio.clone();
        let key = format!("{namespace}\0");
        let there = self.rooms.get(&key).map_or(0, |room| room.members.len());
        let most = socketio.connections_per_namespace_max;
        if !NAMESPACES.contains(&namespace)
            || session.namespaces.len() >= socketio.namespaces_per_connection_max
            || (there == 0 && self.rooms.len() >= self.rooms_max)
            || (most > 0 && there >= most)
        {
            if !self.has_token(number, now) {
                return;
            }
            self.counts.namespace_refusals += 1;
            let refused = Packet::Refused { namespace: namespace.to_owned() };
            return self.peers[number].expect(Said::Packet(refused), now);
        }
        self.enter(number, &key);
        self.counts.namespace_joins += 1;
        let peer = &mut self.peers[number];
        let session = peer.session.as_mut().expect("it is a session");
        session.namespaces.push(namespace.to_owned());
        session.connect_by = None;
        let joined = Packet::Joined { namespace: namespace.to_owned(), sid: Sid::default() };
        peer.expect(Said::Packet(joined), now);
        if !socketio.connect_event.is_empty() {
            let packet = Packet::Event {
                namespace: namespace.to_owned(),
                name: socketio.connect_event.clone(),
                args: auth.unwrap_or("{}").to_owned(),
                attachments: Vec::new(),
                id: None,
            };
            peer.expect(Said::Packet(packet), now);
        }
        peer.arm_session(now);
    }

    /// The mail is carried out. False when the client is in the namespace no longer.
    fn catch_up(&mut self, number: usize, namespace: &str, now: Time) -> bool {
        self.deliver(self.peers[number].shard, now);
        let peer = &self.peers[number];
        peer.stage == Stage::Open && peer.is_in(namespace)
    }

    fn event(
        &mut self,
        number: usize,
        namespace: &str,
        id: Option<&str>,
        deed: &Deed,
        attachments: Vec<Bytes>,
        now: Time,
    ) {
        let session = self.peers[number].session.as_ref().expect("it is a session");
        if !session.namespaces.iter().any(|joined| joined == namespace) {
            return self.break_off(number, now);
        }
        let error = |model: &mut Model, code: &str, retry_ms: Option<u64>| {
            model.counts.errors += 1;
            let (namespace, id) = (namespace.to_owned(), id.map(str::to_owned));
            let packet = Packet::Error { namespace, id, code: code.to_owned(), retry_ms };
            model.peers[number].expect(Said::Packet(packet), now);
        };
        if let Err(retry_ms) = self.take_token(number, now) {
            self.counts.rate_limited += 1;
            return error(self, "rate_limited", Some(retry_ms));
        }
        let key = |room: &String| {
            if namespace == "/" { room.clone() } else { format!("{namespace}\0{room}") }
        };
        // What the arguments do not name stays behind. They name the first at the most.
        let named =
            |args: &str| attachments.iter().take(args.matches(PLACEHOLDER).count()).cloned().collect();
        let (args, attachments) = match deed {
            // What was published before is for the members of then.
            Deed::Join(rooms) => {
                if !self.catch_up(number, namespace, now) {
                    return;
                }
                let keys: Vec<String> = rooms.iter().map(key).collect();
                let Some(members) = self.join_all(number, &keys) else {
                    return error(self, "too_many_rooms", None);
                };
                let counts: Vec<String> = rooms
                    .iter()
                    .zip(&keys)
                    .map(|(room, key)| format!("{}:{{\"members\":{}}}", quoted(room), members[key]))
                    .collect();
                (format!("{{\"rooms\":{{{}}}}}", counts.join(",")), Vec::new())
            }
            Deed::Leave(rooms) => {
                if !self.catch_up(number, namespace, now) {
                    return;
                }
                rooms.iter().map(key).for_each(|key| self.leave(number, &key));
                ("{}".to_owned(), Vec::new())
            }
            Deed::Publish { event, echo, special } => {
                // What came as the attachment, whatever was meant to.
                let payload =
                    attachments.first().map_or_else(|| event.payload.clone(), |bytes| bytes.0.clone());
                let Event { room, name, binary, .. } = &**event;
                let event = Event { room: room.clone(), name: name.clone(), payload, binary: *binary };
                let event = Rc::new(event);
                match special {
                    None => self.publish(number, &event, *echo),
                    Some(special) => {
                        let from = (Some(namespace), id);
                        match self.publish_special(number, (&event, *echo), special, from, now) {
                            Ok(false) => {}
                            Ok(true) => return,
                            Err(code) => return error(self, code, None),
                        }
                    }
                }
                ("{}".to_owned(), Vec::new())
            }
            Deed::Echo(args) => {
                let (namespace, name) = (namespace.to_owned(), "echoed".to_owned());
                let packet =
                    Packet::Event { namespace, name, args: args.clone(), attachments: named(args), id: None };
                self.peers[number].expect(Said::Packet(packet), now);
                ("{}".to_owned(), Vec::new())
            }
            Deed::Ask(args) => (args.clone(), named(args)),
            Deed::Nothing => return,
            Deed::Wrong(code) => return error(self, code, None),
        };
        if let Some(id) = id {
            let packet =
                Packet::Ack { namespace: namespace.to_owned(), id: id.to_owned(), args, attachments };
            self.peers[number].expect(Said::Packet(packet), now);
        }
    }
}

/// What a member is told of an event, in Socket.IO.
pub(super) fn told_of(event: &Event) -> Packet {
    let (args, attachments) = if event.binary {
        (PLACEHOLDER.to_owned(), vec![Bytes(event.payload.clone())])
    } else {
        (String::from_utf8(event.payload.clone()).expect("JSON is text"), Vec::new())
    };
    let (namespace, name) = (namespace_of(&event.room).to_owned(), event.name.clone());
    Packet::Event { namespace, name, args, attachments, id: None }
}

/// The namespace of a room, by what the directory calls it.
pub(super) fn namespace_of(key: &str) -> &str {
    key.split_once('\0').map_or("/", |(namespace, _)| namespace)
}

/// How many of the `rooms` of a connection count: those that stand for its namespaces do not.
pub(super) fn counted<'a>(rooms: impl Iterator<Item = &'a String>) -> usize {
    rooms.filter(|name| !name.ends_with('\0')).count()
}

/// What a join answers, by what the directory calls the rooms.
pub(super) type Members = BTreeMap<String, u64>;

impl Asks {
    /// The session that a request names, if it is one of Engine.IO.
    pub(super) fn target(&self) -> Option<Target> {
        match self {
            Asks::Poll(
                Poll::Get(target)
                | Poll::Post { target, .. }
                | Poll::Probe { target, .. }
                | Poll::Odd { target, .. }
                | Poll::Preflight { target: Some(target) },
            ) => Some(*target),
            _ => None,
        }
    }
}
