//! The model: what the shards must do and hold, worked out in the plainest way from what the clients said.

use super::Link;
use super::clients::{self, Client, Command, Effect, Event, Request};
use super::plan::{CLOSE_TIMEOUT_MS, Plan, SILENT, SLOW, TIMER_TICK_MS};
use super::said::{Packet, Said, plain_of};
use super::sessions::{Members, Session, counted, told_of};
use super::special::{Asks, Flight, Socket};
use super::talk::Word;
use crate::auth::Rules;
use crate::bus::outside::Deed;
use crate::dialect::Dialect;
use crate::message::{Reject, Slot};
use crate::shard::conn::Due;
use crate::shard::timers::Wheel;
use crate::shard::{OutboxPolicy, Settings};
use crate::stats::Ending;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

/// What the shards must do and hold, worked out in the plainest way from what the clients said.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) settings: Settings,
    pub(super) rules: Rules,
    pub(super) rooms_max: usize,
    pub(super) peers: Vec<Peer>,
    pub(super) rooms: BTreeMap<String, Room>,
    /// By shard, what is in its mailbox or collected from it.
    pub(super) mail: Vec<VecDeque<Letter>>,
    /// By shard, how many of those it has collected.
    pub(super) collected: Vec<usize>,
    /// By shard.
    pub(super) asks: Vec<Asks>,
    /// Those in a namespace whose clients have been told their ids, also when they are gone.
    pub(super) sockets_told: Vec<Socket>,
    /// Shards that have to be rung at the end of this turn.
    pub(super) bells: BTreeSet<usize>,
    /// By shard.
    pub(super) accepts: Vec<Tokens>,
    pub(super) drains: Vec<Option<Drain>>,
    /// By shard, when what lingers is due.
    linger_ends: Vec<Option<Time>>,
    /// True in a turn in which what lingered is due: then nothing begins to linger.
    linger_is_over: bool,
    /// By shard, one more than the highest slot that was ever used, and those below that are free, the next one last.
    slots: Vec<usize>,
    pub(super) free: Vec<Vec<Slot>>,
    pub(super) gate_draining: bool,
    /// Pieces of mail that the shard has taken, and the model has not followed yet.
    pub(super) takes: u64,
    /// Connections that the shard has just ended as too slow, and the model has not followed yet.
    pub(super) slow_endings: u64,
    /// True when one of several was ended as too slow, and the model took any of them for it.
    pub(super) is_unsure_who_was_slow: bool,
    pub(super) open: usize,
    pub(super) sockets: usize,
    /// Rooms made, and publications taken, so far: numbers that are used once.
    incarnations: u64,
    sequence: u64,
    pub(super) counts: Counts,
}

/// What the shards must have counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepts: u64,
    pub(super) upgrades: u64,
    pub(super) requests: u64,
    pub(super) rejects: [u64; Reject::LABELS.len()],
    pub(super) endings: [u64; Ending::LABELS.len()],
    pub(super) messages_in: u64,
    pub(super) publications: u64,
    pub(super) deliveries: u64,
    pub(super) cross_shard: u64,
    pub(super) errors: u64,
    pub(super) rate_limited: u64,
    pub(super) pings: u64,
    pub(super) lost: u64,
    pub(super) handshakes: u64,
    pub(super) moves: u64,
    pub(super) namespace_joins: u64,
    pub(super) namespace_refusals: u64,
    pub(super) volatile_drops: u64,
    /// Questions, answers to them, and those that were missing.
    pub(super) asks: u64,
    pub(super) answers: u64,
    pub(super) missing: u64,
    /// Orders that found their client, and POSTs of which a part was not carried out because the session was over.
    pub(super) orders: u64,
    pub(super) cut_posts: u64,
    /// Bytes that a shard was given together with a socket.
    pub(super) bytes_handed: u64,
}

#[derive(Debug)]
pub(super) struct Room {
    /// Tells rooms apart that had the same name at different times.
    pub(super) incarnation: u64,
    pub(super) members: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Letter {
    Event {
        origin: Origin,
        echo: bool,
        incarnation: u64,
    },
    Special(Box<Flight>),
    Asked {
        number: u64,
        sockets: u64,
    },
    Answer {
        number: u64,
        value: String,
    },
    Order {
        socket: usize,
        deed: Deed,
    },
    Drain {
        spread_ms: u32,
        timeout_ms: u32,
    },
    /// The settings that there are, again: nobody may notice.
    Settings,
}

/// Which publication an event comes from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) publisher: usize,
    sequence: u64,
    pub(super) event: Rc<Event>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    started: Time,
    pub(super) spread_ms: u32,
    pub(super) timeout_ms: u32,
    pub(super) told: usize,
}

/// A connection as the server must see it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) shard: usize,
    pub(super) slot: Option<Slot>,
    pub(super) ip: IpAddr,
    /// False for a session that is polled: the sockets of others serve it.
    pub(super) has_socket: bool,
    pub(super) stage: Stage,
    /// What Engine.IO keeps of it.
    pub(super) session: Option<Session>,
    /// True when its socket is to be closed at the end of this turn.
    pub(super) doomed: bool,
    pub(super) dialect: Option<Dialect>,
    /// True when the answer to the upgrade has been decoded: from there on, frames.
    pub(super) switched: bool,
    /// True from the upgrade until everything has been written for the first time.
    pub(super) switching: bool,
    /// True when the close frame has been decoded: from there on, nothing.
    said_close: bool,
    /// What it has to be told, in this order.
    pub(super) expected: VecDeque<Expected>,
    /// When that leaves, or may: an event for one who was written to lately waits, until something other than an event hurries it.
    pub(super) due: Due,
    /// The millisecond of the turn in which it was last written to.
    pub(super) flushed_ms: u64,
    /// True from a write that the socket did not take whole until everything has been written.
    pub(super) refused: bool,
    /// Whether it was refused, and how much waited for it at most, when this turn's writes began.
    pub(super) had_waiting: bool,
    pub(super) waiting_bytes: usize,
    /// True when frames may be dropped, as the policy is.
    pub(super) droppable: bool,
    /// Messages that were left out since it was last told. Pongs are not counted.
    pub(super) lost: u64,
    /// What was expected, and how many bytes waited, when they were last compared and were the same.
    pub(super) compared: Option<(usize, usize)>,
    /// Bytes that waited then, without the frame that was first.
    pub(super) kept_bytes: usize,
    /// True when what waited for it is gone: it is to be closed in this turn.
    pub(super) abandoned: bool,
    /// The millisecond at which its timer fires.
    pub(super) due_ms: u64,
    pub(super) heard_ms: u64,
    pub(super) pinged: bool,
    pub(super) tokens: Tokens,
    pub(super) rooms: BTreeSet<String>,
    /// Publications made while it was a member, by sequence, until it has got them or left.
    pub(super) owed: BTreeMap<u64, String>,
    /// By room, the last publication it got; and by room and publisher, the number of the last event.
    pub(super) last_sequence: BTreeMap<String, u64>,
    pub(super) last_number: BTreeMap<(String, usize), u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Backlog,
    Http,
    /// Its request is answered as soon as there is something to say to the session.
    Waiting {
        session: usize,
        keep_alive: bool,
    },
    /// A WebSocket to which the session may move.
    Probing(usize),
    /// Its socket is to go to another shard at the end of this turn.
    Leaving,
    /// Its socket is on the way there.
    Handed,
    Open,
    Closing(Ending),
    Finishing {
        at_once: bool,
    },
    Finished,
    Closed,
}

#[derive(Debug)]
pub(super) struct Expected {
    pub(super) said: Said,
    pub(super) given: Time,
    pub(super) origin: Option<Origin>,
    /// True when it lingers or has been left out, and which is not seen yet.
    pub(super) is_doubtful: bool,
}

/// So many things a second, and so many at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    thousandths: u64,
    filled_ms: u64,
}

impl Tokens {
    pub(super) fn full(burst: u32, now: Time) -> Tokens {
        Tokens { thousandths: u64::from(burst) * 1000, filled_ms: now.ms() }
    }

    /// Takes one, or answers in how many milliseconds there is one.
    pub(super) fn take(&mut self, rate: u32, burst: u32, now: Time) -> Result<(), u64> {
        let trickled = (now.ms() - self.filled_ms) * u64::from(rate);
        self.thousandths = (self.thousandths + trickled).min(u64::from(burst) * 1000);
        self.filled_ms = now.ms();
        match self.thousandths.checked_sub(1000) {
            Some(rest) => {
                self.thousandths = rest;
                Ok(())
            }
            None => Err((1000 - self.thousandths).div_ceil(u64::from(rate))),
        }
    }
}

impl Peer {
    pub(super) fn new(shard: usize, ip: IpAddr, policy: OutboxPolicy) -> Peer {
        Peer {
            shard,
            slot: None,
            ip,
            has_socket: true,
            stage: Stage::Backlog,
            session: None,
            doomed: false,
            dialect: None,
            switched: false,
            switching: false,
            said_close: false,
            expected: VecDeque::new(),
            due: Due::No,
            flushed_ms: 0,
            refused: false,
            had_waiting: false,
            waiting_bytes: 0,
            droppable: policy == OutboxPolicy::Drop,
            lost: 0,
            compared: None,
            kept_bytes: 0,
            abandoned: false,
            due_ms: 0,
            heard_ms: 0,
            pinged: false,
            tokens: Tokens { thousandths: 0, filled_ms: 0 },
            rooms: BTreeSet::new(),
            owed: BTreeMap::new(),
            last_sequence: BTreeMap::new(),
            last_number: BTreeMap::new(),
        }
    }

    /// True while it has a socket.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Backlog | Stage::Handed | Stage::Closed)
    }

    pub(super) fn is_upgraded(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Closing(_))
    }

    pub(super) fn is_finishing(&self) -> bool {
        matches!(self.stage, Stage::Finishing { .. })
    }

    /// True when all that it is to be told is frames.
    fn is_framed(&self) -> bool {
        self.dialect.is_some() && !self.switching
    }

    /// Only who is open, and speaks a dialect that has a word for it, is told of losses.
    pub(super) fn is_told_losses(&self) -> bool {
        self.stage == Stage::Open && matches!(self.dialect, Some(Dialect::Native | Dialect::Plain))
    }

    /// True when something waits for the end of a linger.
    pub(super) fn lingers(&self) -> bool {
        !self.refused && !self.expected.is_empty()
    }

    pub(super) fn arm(&mut self, now: Time, ahead_ms: u64) {
        self.due_ms = now.ms() + ahead_ms.min(Wheel::AHEAD_MS_MAX.into()) + TIMER_TICK_MS;
    }

    /// It is to be told at the end of this turn.
    pub(super) fn expect(&mut self, said: Said, now: Time) {
        self.due = Due::Now;
        self.expected.push_back(Expected { said, given: now, origin: None, is_doubtful: false });
    }

    /// More bytes than all that it has to be told takes.
    pub(super) fn expected_bytes(&self) -> usize {
        self.expected.iter().map(|expected| expected.said.bytes_max()).sum()
    }

    pub(super) fn expect_first(&mut self, said: Said, now: Time) {
        self.expected.push_front(Expected { said, given: now, origin: None, is_doubtful: false });
    }
}

impl Model {
    pub(super) fn new(plan: &Plan) -> Model {
        Model {
            settings: plan.settings.clone(),
            rules: plan.rules.clone(),
            rooms_max: plan.rooms_max,
            peers: Vec::new(),
            rooms: BTreeMap::new(),
            mail: vec![VecDeque::new(); plan.shards],
            collected: vec![0; plan.shards],
            asks: vec![Asks::default(); plan.shards],
            sockets_told: Vec::new(),
            bells: BTreeSet::new(),
            accepts: vec![Tokens::full(plan.settings.accepts_per_second_max, plan.start); plan.shards],
            drains: vec![None; plan.shards],
            linger_ends: vec![None; plan.shards],
            linger_is_over: false,
            slots: vec![0; plan.shards],
            free: vec![Vec::new(); plan.shards],
            gate_draining: false,
            takes: 0,
            slow_endings: 0,
            is_unsure_who_was_slow: false,
            open: 0,
            sockets: 0,
            incarnations: 0,
            sequence: 0,
            counts: Counts::default(),
        }
    }

    // ------------------------------------------------------------------------------------------- what the reactor does

    pub(super) fn may_accept(&self, shard: usize, now: Time) -> bool {
        let rate = self.settings.accepts_per_second_max;
        let mut accepts = self.accepts[shard];
        self.drains[shard].is_none()
            && self.sockets < self.rules.sockets_max
            && (rate == 0 || accepts.take(rate, rate, now).is_ok())
    }

    pub(super) fn accept(&mut self, shard: usize, number: usize, slot: Slot, now: Time) {
        let rate = self.settings.accepts_per_second_max;
        if rate > 0 {
            self.accepts[shard].take(rate, rate, now).expect("it was asked whether it may");
        }
        self.counts.accepts += 1;
        self.sockets += 1;
        assert_eq!(self.take_slot(shard), slot, "the slot of {number}");
        let peer = &mut self.peers[number];
        peer.slot = Some(slot);
        peer.stage = Stage::Http;
        peer.flushed_ms = now.ms();
        peer.arm(now, self.settings.handshake_timeout_ms.into());
        let ip = peer.ip;
        let of_this_ip =
            self.peers.iter().filter(|peer| peer.is_live() && peer.has_socket && peer.ip == ip).count();
        if self.rules.sockets_per_ip_max.is_some_and(|max| of_this_ip > max as usize) {
            self.refuse(number, 429, "per_ip", false, false, now);
            self.peers[number].stage = Stage::Finishing { at_once: true };
        }
    }

    /// The place that the next connection of a shard gets.
    pub(super) fn take_slot(&mut self, shard: usize) -> Slot {
        self.free[shard].pop().unwrap_or_else(|| {
            self.slots[shard] += 1;
            self.slots[shard] as Slot - 1
        })
    }

    /// Bytes have come, or the socket of one who was refused some has taken more.
    pub(super) fn heard(&mut self, number: usize, now: Time) {
        let peer = &mut self.peers[number];
        peer.heard_ms = now.ms();
        if std::mem::take(&mut peer.pinged) && peer.stage == Stage::Open {
            match peer.session {
                None => peer.arm(now, self.settings.ping_interval_ms.into()),
                Some(_) => self.session_heard(number, now),
            }
        }
    }

    pub(super) fn hang_up(&mut self, number: usize, now: Time) {
        self.end(number, Ending::Lost, now);
        self.peers[number].doomed = true;
    }

    /// The shard's turn begins.
    pub(super) fn begin_turn(&mut self, shard: usize, now: Time) {
        self.linger_is_over = self.linger_ends[shard].is_some_and(|end| end <= now);
        if self.linger_is_over {
            self.end_linger(shard);
        }
    }

    /// What lingers is due, all at once.
    pub(super) fn end_linger(&mut self, shard: usize) {
        self.linger_ends[shard] = None;
        let lingering = |peer: &&mut Peer| peer.shard == shard && peer.due == Due::Later;
        self.peers.iter_mut().filter(lingering).for_each(|peer| peer.due = Due::Now);
    }

    /// The shard takes its mail: all of it, or as much as its arena had room for.
    pub(super) fn deliver(&mut self, shard: usize, now: Time) {
        // What comes while the rest is carried out is collected the next time.
        let mut may_collect = true;
        while self.takes > 0 {
            if self.collected[shard] == 0 && std::mem::take(&mut may_collect) {
                self.collected[shard] = self.mail[shard].len();
            }
            let Some(left) = self.collected[shard].checked_sub(1) else { return };
            let Some(letter) = self.mail[shard].pop_front() else { return };
            self.collected[shard] = left;
            self.takes -= 1;
            match letter {
                Letter::Event { origin, echo, incarnation } => {
                    let event = &origin.event;
                    let room = self.rooms.get(&event.room).filter(|room| room.incarnation == incarnation);
                    let members: Vec<usize> = room.iter().flat_map(|room| &room.members).copied().collect();
                    for member in members {
                        if self.peers[member].shard == shard && (echo || member != origin.publisher) {
                            let said = match self.peers[member].dialect {
                                Some(Dialect::SocketIo) => Said::Packet(told_of(event)),
                                Some(Dialect::Plain) => plain_of(event),
                                _ => Said::Event(event.clone()),
                            };
                            self.give(member, said, origin.clone(), now);
                        }
                    }
                }
                Letter::Special(flight) => self.deliver_special(shard, *flight, now),
                Letter::Asked { number, sockets } => self.note_asked(number, sockets, now),
                Letter::Answer { number, value } => self.note_answer(number, value, now),
                Letter::Order { socket, deed } => self.carry_out(socket, &deed, now),
                Letter::Settings => {}
                Letter::Drain { spread_ms, timeout_ms } => {
                    self.drains[shard].get_or_insert(Drain { started: now, spread_ms, timeout_ms, told: 0 });
                }
            }
        }
    }

    /// A member is to be told of an event, at the end of this turn or of a linger.
    pub(super) fn give(&mut self, member: usize, said: Said, origin: Origin, now: Time) {
        let linger_ms = u64::from(self.settings.linger_ms);
        let publisher = origin.publisher;
        let peer = &mut self.peers[member];
        let shard = peer.shard;
        peer.expected.push_back(Expected { said, given: now, origin: Some(origin), is_doubtful: false });
        if peer.due == Due::No {
            let was_quiet = now.ms() - peer.flushed_ms >= linger_ms;
            peer.due = Due::Now;
            if !was_quiet && !self.linger_is_over {
                peer.due = Due::Later;
                self.linger_ends[shard].get_or_insert(now.plus_ms(linger_ms));
            }
        }
        self.counts.deliveries += 1;
        self.counts.cross_shard += u64::from(self.peers[publisher].shard != shard);
    }

    /// Timers fire, and a drain goes on.
    pub(super) fn advance(&mut self, shard: usize, now: Time, clients: &[Client], links: &[Link]) {
        // When the clock has jumped, what was due first comes first: one of them may end another.
        let mut due: Vec<(u64, usize)> =
            (0..self.peers.len()).map(|number| (self.peers[number].due_ms, number)).collect();
        due.retain(|(due_ms, _)| *due_ms <= now.ms());
        due.sort_unstable();
        for (_, number) in due {
            let peer = &mut self.peers[number];
            if peer.shard != shard || !peer.is_live() || peer.doomed || peer.due_ms > now.ms() {
                continue;
            }
            match peer.stage {
                Stage::Http if links[number].handed > clients[number].carried_out => {
                    self.refuse(number, 408, "slow_head", false, false, now);
                }
                Stage::Open if peer.session.is_some() => self.fire_session(number, now),
                Stage::Open if peer.pinged => {
                    let silent_ms = now.ms() - peer.heard_ms;
                    let patience_ms = self.settings.ping_interval_ms + self.settings.ping_timeout_ms;
                    assert!(silent_ms >= patience_ms.into(), "the model would close {number} too early");
                    // It is told if the kernel takes it at once.
                    peer.expect(Said::Close(Some(SILENT)), now);
                    self.end(number, Ending::Silent, now);
                    self.peers[number].doomed = true;
                }
                Stage::Open => {
                    let silent_ms = now.ms() - peer.heard_ms;
                    let interval_ms = u64::from(self.settings.ping_interval_ms);
                    if silent_ms < interval_ms {
                        peer.arm(now, interval_ms - silent_ms);
                    } else {
                        peer.pinged = true;
                        peer.expect(Said::WebSocketPing, now);
                        peer.arm(now, self.settings.ping_timeout_ms.into());
                        self.counts.pings += 1;
                    }
                }
                _ => {
                    self.end(number, Ending::Lost, now);
                    self.peers[number].doomed = true;
                }
            }
        }
        self.end_asks(shard, now);
        let Some(drain) = &mut self.drains[shard] else { return };
        let slots = self.slots[shard] as u64;
        let elapsed_ms = now.since_ns(drain.started) / 1_000_000;
        let due =
            (slots * elapsed_ms).checked_div(drain.spread_ms.into()).unwrap_or(slots).min(slots) as usize;
        let told = drain.told;
        drain.told = due.max(told);
        let has_timed_out = elapsed_ms >= drain.timeout_ms.into();
        for number in 0..self.peers.len() {
            let probed = match self.peers[number].stage {
                Stage::Probing(session) => session,
                _ => number,
            };
            let is_moving = self.peers[probed].is_moving();
            let peer = &mut self.peers[number];
            if peer.shard != shard || !peer.is_live() || is_moving {
                continue;
            }
            let slot = peer.slot.expect("accepted") as usize;
            match peer.stage {
                Stage::Open if (told..due).contains(&slot) && peer.is_polled() => {
                    self.end(number, Ending::Shutdown, now);
                }
                Stage::Open if (told..due).contains(&slot) => {
                    self.shut_down(number, now);
                }
                Stage::Http | Stage::Probing(_) if (told..due).contains(&slot) => peer.doomed = true,
                _ => {}
            }
        }
        let is_left = |peer: &Peer| has_timed_out && peer.shard == shard && peer.is_live();
        for number in 0..self.peers.len() {
            if is_left(&self.peers[number]) {
                self.end(number, Ending::Shutdown, now);
                self.peers[number].doomed = true;
            }
        }
    }

    /// A WebSocket is told that the server shuts down.
    pub(super) fn shut_down(&mut self, number: usize, now: Time) {
        let peer = &mut self.peers[number];
        if peer.dialect == Some(Dialect::Native) {
            let (spread_ms, started) =
                self.drains[peer.shard].map_or((0, now), |drain| (u64::from(drain.spread_ms), drain.started));
            let left_ms = spread_ms.saturating_sub(now.since_ns(started) / 1_000_000);
            peer.expect(Said::Disconnect { from_ms: left_ms + 1, retry_ms: left_ms + spread_ms + 1 }, now);
        }
        self.close_socket(number, 1001, Ending::Shutdown, now);
    }

    /// A WebSocket is closed from the server's side.
    pub(super) fn close_socket(&mut self, number: usize, code: u16, ending: Ending, now: Time) {
        let peer = &mut self.peers[number];
        peer.expect(Said::Close(Some(code)), now);
        peer.stage = Stage::Closing(ending);
        peer.arm(now, CLOSE_TIMEOUT_MS);
        self.leave_all(number);
    }

    /// The slots below this one have been told of the drain.
    pub(super) fn told_of_drain(&self, shard: usize) -> usize {
        self.drains[shard].map_or(0, |drain| drain.told)
    }

    /// The shard begins to write.
    pub(super) fn begin_flush(&mut self, shard: usize) {
        for peer in self.peers.iter_mut().filter(|peer| peer.shard == shard) {
            peer.had_waiting = peer.refused;
            // What a session that has ended leaves is there until the end of the turn.
            if peer.has_socket || peer.stage == Stage::Open {
                peer.waiting_bytes = peer.expected_bytes();
            }
        }
    }

    /// Who was due has been written to, as far as possible.
    pub(super) fn end_flush(&mut self, shard: usize, now: Time, is_put_off: impl Fn(Slot) -> bool) {
        for peer in self.peers.iter_mut().filter(|peer| peer.shard == shard && peer.due == Due::Now) {
            if !peer.slot.is_some_and(&is_put_off) {
                (peer.due, peer.flushed_ms) = (Due::No, now.ms());
            }
        }
    }

    /// The server ends its side.
    pub(super) fn end_stream(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        assert_eq!(peer.stage, Stage::Finishing { at_once: false }, "the stream to {number} ends");
        assert!(peer.expected.is_empty(), "{number} has not been told {:?}", peer.expected);
        peer.expected.clear();
        peer.stage = Stage::Finished;
    }

    /// The server closes the socket. Answers how the WebSocket ended, if that is the end of it.
    pub(super) fn close(&mut self, number: usize, now: Time) -> Option<Ending> {
        let peer = &self.peers[number];
        let is_told = peer.expected.is_empty();
        // One whose earlier answers have not all left is not handed over.
        let is_stuck = peer.stage == Stage::Leaving && peer.refused;
        let ending = if peer.doomed
            || is_stuck
            || (peer.stage == Stage::Finishing { at_once: true } && is_told)
        {
            None
        } else {
            // The only other reason there is: too much waits for it, or for all.
            let is_full = self.is_full(number);
            // Who is a WebSocket is closed in order, unless not even the rest of a frame has room among all.
            let may_be_closed = !peer.is_framed() || self.is_full_in_all(number);
            assert!(peer.refused && is_full && may_be_closed, "{number} is closed for no reason: {peer:#?}");
            Some(Ending::Slow)
        };
        self.end(number, Ending::Slow, now);
        let peer = &mut self.peers[number];
        peer.stage = Stage::Closed;
        peer.doomed = false;
        peer.expected.clear();
        self.free[peer.shard].push(peer.slot.expect("it had a place"));
        self.sockets -= usize::from(peer.has_socket);
        ending
    }

    // ----------------------------------------------------------------------------------------- what the clients bring about

    /// The shard has been handed the last byte that `effect` needs.
    pub(super) fn apply(&mut self, number: usize, effect: &Effect, now: Time) {
        let peer = &mut self.peers[number];
        match (peer.stage, effect) {
            (Stage::Http, Effect::Request(request)) => self.request(number, request, now),
            (Stage::Open | Stage::Closing(_) | Stage::Probing(_), Effect::Close(code)) => {
                if peer.stage == Stage::Open {
                    peer.expect(Said::Close(*code), now);
                }
                self.end(number, Ending::Client, now);
                self.peers[number].stage = Stage::Finishing { at_once: true };
                self.peers[number].arm(now, CLOSE_TIMEOUT_MS);
            }
            (Stage::Open | Stage::Closing(_) | Stage::Probing(_), Effect::Violation(code)) => {
                self.fail(number, *code, Ending::Protocol, now);
            }
            (Stage::Open, Effect::Ping(payload)) => peer.expect(Said::WebSocketPong(payload.clone()), now),
            (Stage::Open | Stage::Closing(_) | Stage::Probing(_), Effect::Ping(_) | Effect::Pong) => {}
            (Stage::Closing(_), _) => self.counts.messages_in += 1,
            (Stage::Probing(session), Effect::Probe) => self.probed(number, session, now),
            (Stage::Probing(session), Effect::Move) => self.move_session(session, number, now),
            (Stage::Probing(_), _) => self.fail(number, 1002, Ending::Protocol, now),
            (Stage::Open, Effect::Word(_) | Effect::Probe | Effect::Move) => {
                let word = match effect {
                    Effect::Word(word) => word,
                    Effect::Probe => &Word::Ping,
                    _ => &Word::Passed,
                };
                self.word(number, word, now);
            }
            (Stage::Open, _) => {
                self.counts.messages_in += 1;
                match effect {
                    Effect::Text(commands) if !commands.is_empty() => {
                        commands.iter().for_each(|command| self.command(number, command, now))
                    }
                    // What asks nothing, or cannot be taken apart, counts as one message.
                    Effect::Text(_) | Effect::Unsplit(_) => match (self.take_token(number, now), effect) {
                        (Err(retry_ms), _) => {
                            self.counts.rate_limited += 1;
                            self.error(number, "rate_limited", None, Some(retry_ms), now);
                        }
                        (Ok(()), Effect::Unsplit(code)) => self.error(number, code, None, None, now),
                        (Ok(()), _) => {}
                    },
                    Effect::Binary(command) => self.command(number, command, now),
                    Effect::Echo { binary, payload } => match self.take_token(number, now) {
                        Ok(()) => {
                            let said = Said::Echo { binary: *binary, payload: payload.clone() };
                            self.peers[number].expect(said, now);
                        }
                        Err(_) => {
                            self.counts.rate_limited += 1;
                            self.fail(number, 1008, Ending::Limit, now);
                        }
                    },
                    _ => panic!("{number} was to send a request, and is upgraded"),
                }
            }
            // What comes after the end is not for the server.
            (Stage::Finishing { .. } | Stage::Finished, _) => {}
            (stage, effect) => panic!("{number} is {stage:?}, and does {effect:?}"),
        }
    }

    pub(super) fn request(&mut self, number: usize, request: &Request, now: Time) {
        let shard = self.peers[number].shard;
        let keep_alive = request.keep_alive && self.drains[shard].is_none();
        match request.asks {
            clients::Asks::Ready if self.gate_draining => {
                self.answer(number, 503, keep_alive, request.head_only, now)
            }
            clients::Asks::Health | clients::Asks::Ready => {
                self.counts.requests += 1;
                self.answer(number, 200, keep_alive, request.head_only, now);
            }
            clients::Asks::Refused(status, label) => {
                self.refuse(number, status, label, keep_alive, request.head_only, now)
            }
            clients::Asks::Upgrade { origin, .. } if self.is_foreign(origin) => {
                self.refuse(number, 403, "origin", false, false, now);
            }
            clients::Asks::Upgrade { dialect, subprotocol, .. } => {
                self.upgrade(number, dialect, subprotocol, now)
            }
            clients::Asks::Poll(ref poll) => self.poll(number, request, poll, now),
        }
    }

    pub(super) fn upgrade(&mut self, number: usize, dialect: Dialect, subprotocol: bool, now: Time) {
        let refusal = self.refusal(number);
        let peer = &mut self.peers[number];
        if let Some((status, label)) = refusal {
            if !self.settings.refuse_with_close || label == "draining" {
                return self.refuse(number, status, label, false, false, now);
            }
            peer.dialect = Some(dialect);
            peer.switching = true;
            peer.expect(Said::Switch { subprotocol }, now);
            peer.expect(Said::Close(Some(1008)), now);
            peer.stage = Stage::Finishing { at_once: false };
            peer.arm(now, CLOSE_TIMEOUT_MS);
            self.count_reject(label);
            return;
        }
        peer.dialect = Some(dialect);
        peer.expect(Said::Switch { subprotocol }, now);
        peer.stage = Stage::Open;
        peer.switching = true;
        peer.tokens = Tokens::full(self.settings.messages_burst_max, now);
        peer.arm(now, self.settings.ping_interval_ms.into());
        self.open += 1;
        self.counts.upgrades += 1;
        if dialect == Dialect::SocketIo {
            self.open_session(number, None, now);
        }
    }

    /// True when pages of this origin may not connect.
    pub(super) fn is_foreign(&self, origin: Option<&str>) -> bool {
        origin.is_some_and(|origin| !self.rules.origins.is_empty() && !origin.ends_with(".good.example"))
    }

    /// Why this one may not come in.
    pub(super) fn refusal(&self, number: usize) -> Option<(u16, &'static str)> {
        let Peer { ip, shard, .. } = self.peers[number];
        let of_this_ip = self.peers.iter().filter(|peer| peer.is_upgraded() && peer.ip == ip).count();
        if self.drains[shard].is_some() {
            Some((503, "draining"))
        } else if self.open >= self.rules.connections_max {
            Some((503, "full"))
        } else if self.rules.per_ip_max.is_some_and(|max| of_this_ip >= max as usize) {
            Some((429, "per_ip"))
        } else {
            None
        }
    }

    pub(super) fn count_reject(&mut self, label: &str) {
        self.counts.rejects[label_index(label)] += 1;
    }

    pub(super) fn refuse(
        &mut self,
        number: usize,
        status: u16,
        label: &str,
        keep_alive: bool,
        head_only: bool,
        now: Time,
    ) {
        self.count_reject(label);
        self.answer(number, status, keep_alive, head_only, now);
    }

    pub(super) fn answer(
        &mut self,
        number: usize,
        status: u16,
        keep_alive: bool,
        head_only: bool,
        now: Time,
    ) {
        let said = Said::Answer { status, closes: !keep_alive, head_only };
        self.respond(number, said, keep_alive, now);
    }

    pub(super) fn respond(&mut self, number: usize, said: Said, keep_alive: bool, now: Time) {
        let peer = &mut self.peers[number];
        peer.expect(said, now);
        if keep_alive {
            peer.arm(now, self.settings.handshake_timeout_ms.into());
        } else {
            peer.stage = Stage::Finishing { at_once: false };
            peer.arm(now, CLOSE_TIMEOUT_MS);
        }
    }

    pub(super) fn command(&mut self, number: usize, command: &Command, now: Time) {
        let (Command::Join { id, .. }
        | Command::Leave { id, .. }
        | Command::Publish { id, .. }
        | Command::Presence { id, .. }
        | Command::Ping { id }
        | Command::Nothing { id }
        | Command::Wrong { id, .. }) = command;
        if let Err(retry_ms) = self.take_token(number, now) {
            self.counts.rate_limited += 1;
            return self.error(number, "rate_limited", id.clone(), Some(retry_ms), now);
        }
        match command {
            Command::Join { rooms, .. } | Command::Leave { rooms, .. }
                if self.peers[number].dialect == Some(Dialect::Native)
                    && rooms.iter().collect::<BTreeSet<_>>().len()
                        > self.settings.rooms_per_connection_max =>
            {
                return self.error(number, "too_many_rooms", id.clone(), None, now);
            }
            // What was published before is for the members of then.
            Command::Join { rooms, .. } => {
                self.deliver(self.peers[number].shard, now);
                let Some(members) = self.join_all(number, rooms) else {
                    return self.error(number, "too_many_rooms", id.clone(), None, now);
                };
                if let Some(id) = id {
                    self.peers[number].expect(Said::Joined(id.clone(), members), now);
                }
                return;
            }
            Command::Leave { rooms, .. } => {
                self.deliver(self.peers[number].shard, now);
                rooms.iter().for_each(|name| self.leave(number, name));
            }
            Command::Publish { event, echo, special: None, .. } => self.publish(number, event, *echo),
            Command::Publish { event, echo, special: Some(special), .. } => {
                match self.publish_special(number, (event, *echo), special, (None, id.as_deref()), now) {
                    Ok(false) => {}
                    Ok(true) => return,
                    Err(code) => return self.error(number, code, id.clone(), None, now),
                }
            }
            Command::Presence { room, .. } => {
                let Some(id) = id else { return self.error(number, "bad_message", None, None, now) };
                if !self.peers[number].rooms.contains(room) {
                    return self.error(number, "not_member", Some(id.clone()), None, now);
                }
                let members = self.rooms[room].members.len() as u64;
                let said = Said::Present { id: id.clone(), room: room.clone(), members };
                return self.peers[number].expect(said, now);
            }
            Command::Nothing { .. } => return,
            Command::Ping { .. } => return self.peers[number].expect(Said::Pong(id.clone()), now),
            Command::Wrong { code, .. } => return self.error(number, code, id.clone(), None, now),
        }
        if let Some(id) = id {
            self.peers[number].expect(Said::Ack(id.clone()), now);
        }
    }

    /// All of the rooms or none. Answers how many members each had before.
    pub(super) fn join_all(&mut self, number: usize, names: &[String]) -> Option<Members> {
        let new: BTreeSet<&String> =
            names.iter().filter(|name| !self.peers[number].rooms.contains(*name)).collect();
        let made = new.iter().filter(|name| !self.rooms.contains_key(**name)).count();
        let would_be_in = counted(self.peers[number].rooms.iter()) + new.len();
        if (made > 0 && self.rooms.len() + made > self.rooms_max)
            || (!new.is_empty() && would_be_in > self.settings.rooms_per_connection_max)
        {
            return None;
        }
        Some(names.iter().map(|name| (name.clone(), self.enter(number, name))).collect())
    }

    /// Makes a connection a member, and answers how many others there are.
    pub(super) fn enter(&mut self, number: usize, name: &str) -> u64 {
        let room = self.rooms.entry(name.to_owned()).or_insert_with(|| {
            self.incarnations += 1;
            Room { incarnation: self.incarnations, members: BTreeSet::new() }
        });
        room.members.insert(number);
        self.peers[number].rooms.insert(name.to_owned());
        room.members.len() as u64 - 1
    }

    pub(super) fn leave(&mut self, number: usize, name: &str) {
        let peer = &mut self.peers[number];
        if !peer.rooms.remove(name) {
            return;
        }
        peer.owed.retain(|_, room| room != name);
        let room = self.rooms.get_mut(name).expect("it was a member");
        room.members.remove(&number);
        if room.members.is_empty() {
            self.rooms.remove(name);
        }
    }

    pub(super) fn publish(&mut self, number: usize, event: &Rc<Event>, echo: bool) {
        self.counts.publications += 1;
        let origin = self.new_origin(number, event.clone());
        let Some(Room { incarnation, members }) = self.rooms.get(&event.room) else { return };
        let letter = Letter::Event { origin, echo, incarnation: *incarnation };
        let shards: BTreeSet<usize> = members.iter().map(|member| self.peers[*member].shard).collect();
        for member in members.iter().filter(|member| echo || **member != number) {
            self.peers[*member].owed.insert(self.sequence, event.room.clone());
        }
        for shard in shards {
            self.mail[shard].push_back(letter.clone());
            if shard != self.peers[number].shard {
                self.bells.insert(shard);
            }
        }
    }

    pub(super) fn new_origin(&mut self, publisher: usize, event: Rc<Event>) -> Origin {
        self.sequence += 1;
        Origin { publisher, sequence: self.sequence, event }
    }

    fn error(&mut self, number: usize, code: &str, id: Option<String>, retry_ms: Option<u64>, now: Time) {
        self.counts.errors += 1;
        self.peers[number].expect(Said::Error { code: code.to_owned(), id, retry_ms }, now);
    }

    pub(super) fn take_token(&mut self, number: usize, now: Time) -> Result<(), u64> {
        match self.settings.messages_per_second_max {
            0 => Ok(()),
            rate => self.peers[number].tokens.take(rate, self.settings.messages_burst_max, now),
        }
    }

    /// A WebSocket whose client broke a rule is told so, and ended.
    pub(super) fn fail(&mut self, number: usize, code: u16, ending: Ending, now: Time) {
        let peer = &mut self.peers[number];
        if peer.stage == Stage::Open && peer.has_socket {
            peer.expect(Said::Close(Some(code)), now);
        }
        peer.arm(now, CLOSE_TIMEOUT_MS);
        self.end(number, ending, now);
    }

    /// A WebSocket or a session is over, if there is one.
    pub(super) fn end(&mut self, number: usize, ending: Ending, now: Time) {
        let is_slow = self.peers[number].is_polled() && self.is_slow_now(number);
        let stage = self.peers[number].stage;
        let ending = match stage {
            Stage::Open if is_slow => Ending::Slow,
            Stage::Open | Stage::Waiting { .. } | Stage::Probing(_) => ending,
            Stage::Closing(because) => because,
            _ => return,
        };
        self.peers[number].stage = Stage::Finishing { at_once: false };
        match stage {
            Stage::Waiting { session, .. } => return self.get_lost(session, number, now),
            Stage::Probing(session) => return self.probe_lost(session, number, now),
            _ => {}
        }
        self.leave_all(number);
        self.open -= 1;
        self.counts.endings[ending.index()] += 1;
        if self.peers[number].is_polled() {
            self.end_polling(number, ending, now);
        }
    }

    pub(super) fn leave_all(&mut self, number: usize) {
        for name in self.peers[number].rooms.clone() {
            self.leave(number, &name);
        }
    }

    // ------------------------------------------------------------------------------------------------ what comes of it

    /// The shard has this waiting for a connection; `is_whole` when it does not end in the middle of something. What is expected
    /// and not among it has been left out.
    pub(super) fn compare(&mut self, number: usize, mut waiting: Vec<Said>, is_whole: bool, now: Time) {
        let is_full = self.is_full(number);
        let linger_ns = u64::from(self.settings.linger_ms) * 1_000_000;
        let may_linger = self.peers[number].due == Due::Later;
        let lingers = |expected: &Expected| {
            may_linger && expected.origin.is_some() && now < expected.given.plus_ns(linger_ns)
        };
        let is_full_in_all = self.is_full_in_all(number);
        let peer = &mut self.peers[number];
        // What is never left out is gone: so is the connection.
        let must_follow = |expected: &Expected| {
            matches!(expected.said, Said::Close(_) | Said::WebSocketPing | Said::Packet(Packet::Ping))
        };
        let is_gone = waiting.is_empty() && is_full_in_all && peer.expected.iter().any(must_follow);
        if !is_whole || is_gone {
            peer.abandoned = true;
            return;
        }
        // Only of a WebSocket or a session something may be left out, and not before the answer to its upgrade has left. Of one that has
        // ended, even where that ends those that are open.
        let may_lose = peer.is_framed() && (peer.droppable || peer.stage != Stage::Open);
        // Of a session that polls, whose last words are taken away: what does not fit one answer is still there.
        let is_taken = !peer.has_socket && waiting.is_empty() && !may_linger && !peer.expected.is_empty();
        let is_slow = !peer.droppable
            && peer.is_upgraded()
            && (waiting.pop_if(|last| *last == Said::Close(Some(SLOW))).is_some() || is_taken);
        if is_slow && !peer.has_socket {
            assert!(is_full, "{number} is closed as too slow for {} bytes", peer.waiting_bytes);
            return self.end(number, Ending::Slow, now);
        }
        let mut expected = std::mem::take(&mut peer.expected);
        for said in waiting {
            let is_new = expected.front().is_none_or(|expected| !expected.said.fits(&said));
            let place = match said {
                // It has caught up: what is not written by now never will be.
                Said::Dropped(_) if is_new => expected.len(),
                _ => expected.iter().position(|expected| expected.said.fits(&said)).unwrap_or_else(|| {
                    panic!("{said:?} waits for {number} instead of {expected:?}");
                }),
            };
            for lost in expected.drain(..place) {
                assert!(may_lose || lost.is_doubtful, "{said:?} waits for {number} instead of {lost:?}");
                self.lose(number, &lost, is_full);
            }
            match said {
                Said::Dropped(count) if is_new => self.tell_losses(number, count, now),
                _ => self.peers[number].expected.extend(expected.pop_front()),
            }
        }
        if is_slow {
            let peer = &mut self.peers[number];
            assert!(is_full, "{number} is closed as too slow for {} bytes", peer.waiting_bytes);
            peer.expect(Said::Close(Some(SLOW)), now);
            peer.arm(now, CLOSE_TIMEOUT_MS);
            return self.end(number, Ending::Slow, now);
        }
        for mut rest in expected {
            // It is gone unless it lingers, which the next time will show.
            if lingers(&rest) {
                rest.is_doubtful |= may_lose && is_full;
                self.peers[number].expected.push_back(rest);
            } else if may_lose || rest.is_doubtful {
                self.lose(number, &rest, is_full);
            } else {
                self.peers[number].abandoned = true;
            }
        }
    }

    /// A frame was left out.
    pub(super) fn lose(&mut self, number: usize, lost: &Expected, is_full: bool) {
        assert!(is_full || lost.is_doubtful, "{number} loses {lost:?} though there is room for it");
        let peer = &mut self.peers[number];
        match lost.said {
            Said::Answer { .. }
            | Said::Switch { .. }
            | Said::Dropped(_)
            | Said::WebSocketPing
            | Said::Close(_)
            | Said::Poll { .. }
            | Said::Last { .. }
            | Said::Posted { .. }
            | Said::Fault { .. }
            | Said::Packet(Packet::Ping | Packet::Close | Packet::Noop | Packet::Attachment(_)) => {
                panic!("{number} loses {lost:?}")
            }
            Said::WebSocketPong(_) => {}
            _ => peer.lost += 1,
        }
        if let Some(origin) = &lost.origin {
            peer.owed.remove(&origin.sequence);
        }
    }

    /// The shard is about to tell how much was left out.
    fn tell_losses(&mut self, number: usize, count: u64, now: Time) {
        let peer = &mut self.peers[number];
        let lost = std::mem::take(&mut peer.lost);
        assert!(count > 0 && count == lost, "{number} lost {lost} and is told of {count}");
        self.counts.lost += count;
        peer.expect(Said::Dropped(count), now);
    }

    /// True when too much waited for a connection, or for all of its shard, when this turn's writes began.
    pub(super) fn is_full(&self, number: usize) -> bool {
        self.peers[number].waiting_bytes > self.settings.outbox_bytes_max || self.is_full_in_all(number)
    }

    pub(super) fn is_full_in_all(&self, number: usize) -> bool {
        let peer = &self.peers[number];
        let others = self.peers.iter().filter(|other| other.shard == peer.shard);
        let waiting = others.filter(|other| other.had_waiting || other.refused);
        let total: usize = waiting.map(|other| other.waiting_bytes).sum();
        total > self.settings.outbox_total_bytes_max
    }

    /// The server has said this. True when it was an event that waited for others.
    pub(super) fn said(&mut self, number: usize, said: Said, now: Time) -> bool {
        // Of one that is polled it is what was expected, in which there is no id.
        if let Said::Packet(packet) = &said
            && self.peers[number].has_socket
        {
            self.learn(number, packet);
        }
        let peer = &mut self.peers[number];
        assert!(!peer.said_close, "{number} is told {said:?} after the close");
        if let Said::Dropped(count) = said
            && peer.expected.is_empty()
        {
            self.tell_losses(number, count, now);
        }
        let peer = &mut self.peers[number];
        let Some(expected) = peer.expected.pop_front_if(|expected| expected.said.fits(&said)) else {
            panic!("{number} is told {said:?} instead of {:?}", peer.expected.front());
        };
        if let Some(Origin { publisher, sequence, event }) = expected.origin.clone() {
            peer.owed.remove(&sequence);
            let before = peer.last_sequence.insert(event.room.clone(), sequence);
            assert!(before.is_none_or(|before| before < sequence), "{number} gets {event:?} out of order");
            let event_number = event.name[1..].parse().expect("e and a number");
            let before = peer.last_number.insert((event.room.clone(), publisher), event_number);
            assert!(
                before.is_none_or(|before| before < event_number),
                "{number} gets {event:?} out of order"
            );
        }
        peer.compared = None;
        peer.switched |= matches!(said, Said::Switch { .. });
        peer.said_close = matches!(said, Said::Close(_));
        peer.switching &= !peer.expected.is_empty();
        if peer.expected.is_empty() {
            peer.refused = peer.is_polled() || (peer.is_told_losses() && peer.lost > 0);
        }
        expected.origin.is_some() && expected.given < now
    }
}

/// The connections of a shard, with their numbers.
pub(super) fn live(peers: &[Peer], shard: usize) -> impl Iterator<Item = (usize, &Peer)> {
    peers.iter().enumerate().filter(move |(_, peer)| peer.shard == shard && peer.is_live())
}

pub(super) fn label_index(label: &str) -> usize {
    Reject::LABELS.iter().position(|other| *other == label).expect("a label")
}
