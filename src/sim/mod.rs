//! The simulator: the third reactor, beside those that move real bytes.
//!
//! Several shards run on one thread, with a clock that is made up and peers that are made up, and everything that happens
//! is drawn from one number, the seed. The world calls the methods of [`Shard`] in the order that `reactor` asks for; its sockets are
//! pairs of byte queues that refuse bytes and tell of changes once, as the kernel does. Its clients cut their messages anywhere,
//! read slowly or never, break the rules, fall silent and vanish; shards get their turns late, and the clock jumps.
//!
//! A [`Model`] says what must come of it: it is told what the clients sent, at the moment when the bytes are handed to the
//! shard, and predicts each frame to each connection. What the shards write is decoded by others' code and compared, frame by
//! frame; what the shards count and hold is compared at the end of each turn.
//!
//! A seed that fails is printed. `THRONG_SIM_SEED=n cargo test --lib sim` runs only that one, and with `THRONG_SIM_LOG=1` it tells
//! what happens. Read in this order: `plan`, the world here, `clients`, `model`, `said`, `checks`; then
//! what speaks Socket.IO: `talk`, `sessions`, `pollers`; then what is not simply for one room: `special`; and what others want done to
//! clients: `orders`.

mod checks;
mod clients;
mod model;
mod orders;
mod plan;
#[cfg(test)]
mod policies;
mod pollers;
mod said;
mod sessions;
mod special;
mod stories;
mod talk;

use crate::auth::Gate;
use crate::bus::Bus;
use crate::bus::mailbox::Mail;
use crate::dialect::Dialect;
use crate::message::{ShardId, Slot};
use crate::shard::conn::Due;
use crate::shard::turn::Gathered;
use crate::shard::{Farewell, Owner, Shard};
use crate::stats::{Ending, Stats};
use crate::time::Time;
use clients::{Client, Effect, Temper};
use model::{Letter, Model, Peer, Stage, label_index};
use plan::{
    ACCEPT_REST_MS, CLOSE_TIMEOUT_MS, CONNECTIONS_MAX, CONNECTIONS_MAX_POLLED, Plan, ROUNDS_MAX, Random,
    SLEEPS_MAX, mix,
};
use pollers::Poller;
use said::{Packet, Said, decode, decode_next};
use sessions::Heading;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stories::Stories;

/// Lives through one seed, and answers what happened.
///
/// # Panics
/// When a shard breaks a rule or panics. The message begins with the seed.
pub fn run(seed: u64) -> Report {
    match std::panic::catch_unwind(|| World::new(seed).live()) {
        Ok(report) => report,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            panic!("seed {seed}: {text}\nTo run only this one: THRONG_SIM_SEED={seed} cargo test --lib sim");
        }
    }
}

/// How often things happened: a simulation that never sees a slow client proves nothing about slow clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A hash of every byte that the shards wrote, with when and to whom.
    pub trace: u64,
    /// Turns of all shards.
    pub turns: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Upgrades granted.
    pub upgrades: u64,
    /// Requests refused before an upgrade.
    pub rejects: u64,
    /// Reads that ended in the middle of a head or a message.
    pub cuts: u64,
    /// Publications taken.
    pub publications: u64,
    /// Events written to members on another shard than the publisher's.
    pub cross_shard: u64,
    /// Writes of which the socket took only a part.
    pub short_writes: u64,
    /// Writes of which the socket took nothing.
    pub refused_writes: u64,
    /// Writes that held several events which had waited for the end of a linger window.
    pub linger_batches: u64,
    /// Turns that ended before all had been written.
    pub short_flushes: u64,
    /// Turns that ended with mail or bytes left over because the arena was full.
    pub full_turns: u64,
    /// Messages refused because there were too many a second.
    pub rate_limited: u64,
    /// Frames lost under the policy `drop`.
    pub drops: u64,
    /// `dropped` messages.
    pub dropped_told: u64,
    /// Upgraded connections that ended, by [`Ending::index`].
    pub endings: [u64; Ending::LABELS.len()],
    /// Request heads that did not come in time.
    pub slow_heads: u64,
    /// Shards that were drained.
    pub drains: u64,
    /// Steps of the clock by a minute or more.
    pub jumps: u64,
    /// Mailboxes that held several publications when they were collected.
    pub late_mail: u64,
    /// Engine.IO sessions that began with a request.
    pub sessions: u64,
    /// GETs that were answered, and those of them that waited for something to be said.
    pub polls: u64,
    /// See above.
    pub waits: u64,
    /// Sessions that moved to a WebSocket.
    pub moves: u64,
    /// Sockets that were handed from one shard to another.
    pub hand_overs: u64,
    /// Requests that Engine.IO refused.
    pub faults: u64,
    /// Namespaces joined, and refused.
    pub namespaces: u64,
    /// See above.
    pub namespace_refusals: u64,
    /// Questions, answers to them, and those that were missing.
    pub asks: u64,
    /// See above.
    pub answers: u64,
    /// See above.
    pub missing: u64,
    /// Volatile events that somebody did not get.
    pub volatile_drops: u64,
    /// Orders that found their client.
    pub orders: u64,
    /// Sessions that ended in the middle of a POST, of which the rest was not carried out.
    pub cut_posts: u64,
}

impl Report {
    /// Adds what another run saw; the traces are mixed.
    pub fn merge(&mut self, other: &Report) {
        self.trace = self.trace.rotate_left(7) ^ other.trace;
        let pairs = [
            (&mut self.turns, other.turns),
            (&mut self.accepts, other.accepts),
            (&mut self.upgrades, other.upgrades),
            (&mut self.rejects, other.rejects),
            (&mut self.cuts, other.cuts),
            (&mut self.publications, other.publications),
            (&mut self.cross_shard, other.cross_shard),
            (&mut self.short_writes, other.short_writes),
            (&mut self.refused_writes, other.refused_writes),
            (&mut self.linger_batches, other.linger_batches),
            (&mut self.short_flushes, other.short_flushes),
            (&mut self.full_turns, other.full_turns),
            (&mut self.rate_limited, other.rate_limited),
            (&mut self.drops, other.drops),
            (&mut self.dropped_told, other.dropped_told),
            (&mut self.slow_heads, other.slow_heads),
            (&mut self.drains, other.drains),
            (&mut self.jumps, other.jumps),
            (&mut self.late_mail, other.late_mail),
            (&mut self.sessions, other.sessions),
            (&mut self.polls, other.polls),
            (&mut self.waits, other.waits),
            (&mut self.moves, other.moves),
            (&mut self.hand_overs, other.hand_overs),
            (&mut self.faults, other.faults),
            (&mut self.namespaces, other.namespaces),
            (&mut self.namespace_refusals, other.namespace_refusals),
            (&mut self.asks, other.asks),
            (&mut self.answers, other.answers),
            (&mut self.missing, other.missing),
            (&mut self.volatile_drops, other.volatile_drops),
            (&mut self.orders, other.orders),
            (&mut self.cut_posts, other.cut_posts),
        ];
        for (mine, theirs) in pairs {
            *mine += theirs;
        }
        for (mine, theirs) in self.endings.iter_mut().zip(other.endings) {
            *mine += theirs;
        }
    }
}

/// Takes the first `count` bytes out.
fn take_front(queue: &mut VecDeque<u8>, count: usize) -> Vec<u8> {
    let (front, back) = queue.as_slices();
    let mut taken = front[..count.min(front.len())].to_vec();
    taken.extend_from_slice(&back[..count - taken.len()]);
    queue.drain(..count);
    taken
}

/// The beginning of how something looks.
fn brief(what: &impl std::fmt::Debug) -> String {
    format!("{what:?}").chars().take(160).collect()
}

/// Everything there is.
struct World {
    random: Random,
    plan: Plan,
    now: Time,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    seats: Vec<Seat>,
    /// By the number of the connection, as are `clients` and the model's peers.
    links: Vec<Link>,
    clients: Vec<Client>,
    pollers: Vec<Poller>,
    model: Model,
    /// Who is there by what the backend would hear.
    stories: Stories,
    /// Events composed so far; each has its number in its name.
    events: u64,
    report: Report,
    /// What orders are drawn with, where there are any.
    orders: Option<Random>,
    /// When settings are loaded anew is drawn with this, so that all else is as it would be without.
    reloads: Random,
    loud: bool,
}

/// A shard, and what its reactor keeps.
struct Seat {
    shard: Shard,
    /// By slot, the connection's number.
    sockets: Vec<Option<usize>>,
    /// Connections that wait to be accepted.
    backlog: VecDeque<usize>,
    /// Connections that other shards have given away, with what was read and not used.
    handed: Vec<(usize, Vec<u8>)>,
    /// When the shard wants its next turn.
    deadline: Option<Time>,
    asleep: bool,
    /// Turns in a row after which it wanted another one at once, without a reason.
    empty_turns: u32,
    /// When its timers were due after the last turn, all added up.
    timers: u64,
    rung: Arc<AtomicBool>,
    /// True when it has been drained: a reactor has stopped then.
    stopped: bool,
}

/// A connection's two byte queues and its two ends.
#[derive(Debug)]
struct Link {
    shard: usize,
    slot: Option<Slot>,
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// Bytes that `to_client` takes.
    capacity: usize,
    /// Edges that the reactor has not been told of.
    readable: bool,
    writable: bool,
    /// True when a write was short, so that an edge is due when there is space.
    wants_space: bool,
    /// True from the first short write on.
    writer_armed: bool,
    /// True from a short write until the shard has been told that there is space.
    is_blocked: bool,
    /// True when the last read may not have drained the socket.
    unread: bool,
    client_ended: bool,
    /// True when the client's side is gone without an end of the stream.
    reset: bool,
    server_ended: bool,
    closed: bool,
    /// Bytes handed to the shard, written by it, and read by the client.
    handed: u64,
    written: u64,
    read: u64,
    /// What the server wrote and is not decoded yet.
    tap: Vec<u8>,
    /// What the client will do when it has read this far.
    reactions: VecDeque<(u64, Reaction)>,
}

/// What the server says that makes a client do something.
#[derive(Debug)]
enum Reaction {
    Speak,
    Pong(Vec<u8>),
    Close(Option<u16>),
    Packet(Packet),
    Answer(Box<Said>),
}

impl Link {
    fn new(shard: usize, capacity: usize) -> Link {
        Link {
            shard,
            slot: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            capacity,
            readable: false,
            writable: false,
            wants_space: false,
            writer_armed: false,
            is_blocked: false,
            unread: false,
            client_ended: false,
            reset: false,
            server_ended: false,
            closed: false,
            handed: 0,
            written: 0,
            read: 0,
            tap: Vec::new(),
            reactions: VecDeque::new(),
        }
    }
}

impl World {
    fn new(seed: u64) -> World {
        // Mixed, so that neighbouring seeds have nothing in common.
        let mut random = Random(mix(seed ^ 0x7468_726f_6e67));
        let plan = Plan::draw(seed, &mut random);
        let bus = Arc::new(Bus::new(plan.shards, plan.rooms_max).with_notices(stories::notices(plan.shards)));
        let gate = Arc::new(Gate::new(plan.rules.clone()));
        let stats = Arc::new(Stats::new(plan.shards));
        let seats = (0..plan.shards)
            .map(|id| {
                let id = id as ShardId;
                let rung = Arc::new(AtomicBool::new(false));
                let bell = rung.clone();
                bus.mailbox(id).hang_bell(Box::new(move || bell.store(true, Ordering::Relaxed)));
                let settings = plan.settings.clone();
                Seat {
                    shard: Shard::new(id, settings, bus.clone(), gate.clone(), stats.clone(), plan.start),
                    sockets: Vec::new(),
                    backlog: VecDeque::new(),
                    handed: Vec::new(),
                    deadline: None,
                    asleep: false,
                    empty_turns: 0,
                    timers: 0,
                    rung,
                    stopped: false,
                }
            })
            .collect();
        let loud = std::env::var_os("THRONG_SIM_LOG").is_some();
        let orders = plan.orders.map(Random);
        let world = World {
            now: plan.start,
            model: Model::new(&plan),
            random,
            plan,
            bus,
            gate,
            stats,
            seats,
            links: Vec::new(),
            clients: Vec::new(),
            pollers: Vec::new(),
            stories: Stories::default(),
            events: 0,
            report: Report::default(),
            orders,
            reloads: Random(mix(seed ^ 0x7265_6c6f_6164)),
            loud,
        };
        world.note(|| format!("{:#?}", world.plan));
        world
    }

    /// From the first connection until the last one is gone.
    fn live(mut self) -> Report {
        for step in 0..self.plan.steps {
            if let Some((at, spread_ms, timeout_ms)) = self.plan.drain
                && step == at
            {
                self.begin_drain(spread_ms, timeout_ms);
            }
            self.step();
            self.give_orders();
            if self.reloads.chance(1) {
                self.reload();
            }
        }
        self.settle();
        for _ in 0..100 {
            if !self.model.peers.iter().any(Peer::lingers) {
                break;
            }
            self.now = self.now.plus_ms(u64::from(self.plan.settings.linger_ms) + 1);
            self.settle();
        }
        self.check_everybody_was_told();
        self.leave();
        self.wind_down();
        self.check_empty();
        let counts = &self.model.counts;
        Report {
            accepts: counts.accepts,
            upgrades: counts.upgrades,
            rejects: counts.rejects.iter().sum(),
            publications: counts.publications,
            cross_shard: counts.cross_shard,
            rate_limited: counts.rate_limited,
            drops: counts.lost,
            endings: counts.endings,
            slow_heads: counts.rejects[label_index("slow_head")],
            drains: self.seats.iter().filter(|seat| seat.stopped).count() as u64,
            sessions: counts.handshakes,
            moves: counts.moves,
            faults: counts.rejects[label_index("engine_io")],
            namespaces: counts.namespace_joins,
            namespace_refusals: counts.namespace_refusals,
            asks: counts.asks,
            answers: counts.answers,
            missing: counts.missing,
            volatile_drops: counts.volatile_drops,
            orders: counts.orders,
            cut_posts: counts.cut_posts,
            ..self.report
        }
    }

    /// One thing happens.
    fn step(&mut self) {
        if self.random.chance(self.plan.turns_percent) {
            let shard = self.random.up_to(self.plan.shards - 1);
            return self.turn(shard);
        }
        if !self.pollers.is_empty() && self.random.chance(20) {
            let at = self.random.up_to(self.pollers.len() - 1);
            self.poll(at);
            return;
        }
        let client = self.any_client();
        match (self.random.below(200), client) {
            (0..8, _) | (_, None) => self.connect(),
            (8..28, _) => self.pass_some_time(),
            (28..90, Some(client)) => self.compose(client),
            (90..150, Some(client)) => self.transmit_some(client),
            (150..198, Some(client)) => self.read_some(client),
            (_, Some(client)) => self.upset(client),
        }
    }

    fn any_client(&mut self) -> Option<usize> {
        let there: Vec<usize> = (0..self.clients.len()).filter(|client| self.is_there(*client)).collect();
        (!there.is_empty()).then(|| *self.random.pick(&there))
    }

    /// True until the connection is over for its client.
    fn is_there(&self, client: usize) -> bool {
        let link = &self.links[client];
        self.model.peers[client].has_socket && !link.closed && !link.reset
    }

    fn connect(&mut self) {
        if let Some(most) = self.plan.pollers_max
            && self.random.chance(40)
        {
            let there = self.pollers.iter().filter(|poller| !poller.is_over()).count();
            if there < most && !self.is_closed() {
                self.begin_polling();
            }
            return;
        }
        let is_single = |client: &usize| self.is_there(*client) && self.clients[*client].poller.is_none();
        let there = (0..self.clients.len()).filter(is_single).count();
        if there >= self.plan.clients_max || self.is_closed() {
            return;
        }
        let shard = self.random.up_to(self.plan.shards - 1);
        let mut client = Client::draw(&mut self.random);
        let ip = self.draw_ip();
        let capacity = match client.temper {
            Temper::Well => usize::MAX,
            _ if self.random.chance(40) => usize::MAX,
            _ if self.plan.heavy => *self.random.pick(&[8_192, 100_000]),
            _ => *self.random.pick(&[10, 120, 1_000, 10_000]),
        };
        client.is_socketio = self.plan.pollers_max.is_some() && self.random.chance(50);
        self.open_link(shard, client, ip, capacity);
    }

    /// A client connects. Answers the connection's number.
    fn open_link(&mut self, shard: usize, client: Client, ip: IpAddr, capacity: usize) -> usize {
        let number = self.clients.len();
        self.note(|| {
            format!("{number} connects to shard {shard}: {:?}, takes {capacity} bytes", client.temper)
        });
        self.clients.push(client);
        self.links.push(Link::new(shard, capacity));
        self.model.peers.push(Peer::new(shard, ip, self.plan.settings.outbox_policy));
        self.seats[shard].backlog.push_back(number);
        number
    }

    fn draw_ip(&mut self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + self.random.below(3) as u8))
    }

    /// True when nobody can connect any more.
    fn is_closed(&self) -> bool {
        let most = if self.plan.pollers_max.is_some() { CONNECTIONS_MAX_POLLED } else { CONNECTIONS_MAX };
        self.model.drains.iter().any(Option::is_some) || self.gate.is_draining() || self.clients.len() >= most
    }

    fn pass_some_time(&mut self) {
        let mut ahead_ns = match self.random.below(100) {
            0..50 => self.random.below(2_000_000),
            50..75 => self.random.below(20_000_000),
            75..92 => {
                let deadline = self.seats.iter().filter_map(|seat| seat.deadline).min();
                deadline.map_or(0, |deadline| deadline.since_ns(self.now))
            }
            92..97 => self.random.below(2_000_000_000),
            97..99 => 60_000_000_000 + self.random.below(1_800_000_000_000),
            _ => self.random.below(6 * 3_600_000_000_000),
        };
        // A reactor that has something left over does not wait.
        let is_busy = self.links.iter().any(|link| link.unread && !link.closed)
            || self.seats.iter().any(|seat| seat.shard.has_mail() || !seat.handed.is_empty());
        if is_busy {
            ahead_ns = ahead_ns.min(1_000_000);
        }
        // Those who poll take several turns to answer a ping. Mostly they are given the time.
        if (0..self.pollers.len()).any(|at| self.is_at_risk(at)) && self.random.chance(90) {
            ahead_ns = ahead_ns.min(2_000_000);
        }
        // Those who behave are quick: they have read and answered before time passes.
        for client in 0..self.clients.len() {
            if self.clients[client].temper == Temper::Well && (ahead_ns > 5_000_000 || self.random.chance(30))
            {
                self.read_up_to(client, usize::MAX);
                self.transmit_up_to(client, usize::MAX);
            }
        }
        for at in 0..self.pollers.len() {
            if self.pollers[at].is_well() {
                self.poll(at);
            }
        }
        self.report.jumps += u64::from(ahead_ns >= 60_000_000_000);
        self.now = self.now.plus_ns(ahead_ns);
        self.note(|| format!("it is {} ms", self.now.ms()));
    }

    /// As on SIGHUP, with a configuration in which nothing has changed.
    fn reload(&mut self) {
        self.note(|| "all settings are loaded anew".to_owned());
        self.gate.set_rules(self.plan.rules.clone());
        let settings = Arc::new(self.plan.settings.clone());
        for shard in 0..self.plan.shards {
            self.bus.post(shard as ShardId, Mail::Settings(settings.clone()));
            self.model.mail[shard].push_back(Letter::Settings);
        }
    }

    fn begin_drain(&mut self, spread_ms: u32, timeout_ms: u32) {
        self.note(|| format!("drain within {spread_ms} ms, at most {timeout_ms}"));
        self.gate.drain();
        self.model.gate_draining = true;
        for shard in 0..self.plan.shards {
            let away_ms = spread_ms;
            self.bus.post(shard as ShardId, Mail::Drain { spread_ms, away_ms, timeout_ms });
            self.model.mail[shard].push_back(Letter::Drain { spread_ms, timeout_ms });
        }
    }

    // --------------------------------------------------------------------------------------------- a turn of a reactor

    /// One turn of one shard, in the order that `reactor` lays down.
    fn turn(&mut self, shard: usize) {
        if self.seats[shard].stopped {
            return;
        }
        let (id, now) = (shard as ShardId, self.now);
        self.note(|| format!("turn of shard {shard}"));
        self.report.turns += 1;
        self.bus.mailbox(id).wake_up();
        self.seats[shard].rung.store(false, Ordering::Relaxed);
        self.seats[shard].asleep = false;
        // What came before this turn's reads is among them; what is given away from now on waits.
        let handed = std::mem::take(&mut self.seats[shard].handed);
        self.seats[shard].shard.begin_turn(now);
        self.model.begin_turn(shard, now);
        self.read_all(shard);
        self.adopt_all(shard, handed);
        self.deliver_all(shard);
        let before = self.slow_endings(shard);
        self.seats[shard].shard.advance(now);
        self.model.slow_endings = self.slow_endings(shard) - before;
        self.model.advance(shard, now, &self.clients, &self.links);
        assert_eq!(self.model.slow_endings, 0, "shard {shard} has ended somebody as too slow");
        self.accept_all(shard);
        if self.seats[shard].shard.is_spent() {
            self.model.end_linger(shard);
        }
        let bells = self.seats[shard].shard.take_bells();
        let expected = std::mem::take(&mut self.model.bells);
        assert!(bells.iter().map(usize::from).eq(expected), "the bells of shard {shard} are not those due");
        self.bus.ring(bells);
        self.flush(shard);
        for number in 0..self.links.len() {
            if self.links[number].shard == shard {
                self.report.waits += u64::from(self.resolve(shard, number));
            }
        }
        let seat = &self.seats[shard].shard;
        self.model.end_flush(shard, now, |slot| seat.is_due(slot));
        for number in 0..self.links.len() {
            // What has not been asked for is not in its outbox yet.
            if self.links[number].shard == shard && self.model.peers[number].due != Due::Now {
                self.look_at_outbox(shard, number);
            }
        }
        self.see_off(shard);
        self.now = now.plus_ns(self.random.below(200_000));
        let seat = &mut self.seats[shard];
        let ahead_ms = seat.shard.end_turn(self.now);
        seat.deadline = ahead_ms.map(|ms| self.now.plus_ms(u64::from(ms)));
        seat.stopped = seat.shard.is_drained();
        seat.asleep = !seat.shard.has_unflushed()
            && !seat.shard.has_mail()
            && seat.handed.is_empty()
            && self.bus.mailbox(id).fall_asleep();
        if seat.stopped {
            // Who is on the way to it finds nobody.
            let handed = std::mem::take(&mut seat.handed);
            handed.into_iter().for_each(|(number, _)| self.lose_link(number));
        }
        self.check_turn(shard, now);
    }

    fn read_all(&mut self, shard: usize) {
        let mut ready: Vec<usize> = (0..self.links.len())
            .filter(|number| {
                let link = &self.links[*number];
                link.shard == shard && link.slot.is_some() && (link.readable || link.writable || link.unread)
            })
            .collect();
        self.random.shuffle(&mut ready);
        // Those who behave come first, so that no other keeps them from being heard in time.
        ready.sort_by_key(|number| self.clients[*number].temper != Temper::Well);
        for number in ready {
            let is_well = self.clients[number].temper == Temper::Well;
            // An edge that the kernel tells of in a later turn.
            if !is_well && self.random.chance(10) {
                continue;
            }
            let link = &mut self.links[number];
            let slot = link.slot.expect("accepted");
            // Once it watches for writing, the kernel reports both directions when one of them has news.
            let is_writable = link.writer_armed && link.to_client.len() < link.capacity;
            if std::mem::take(&mut link.writable) || is_writable {
                link.is_blocked = false;
                self.seats[shard].shard.writable(slot);
                let peer = &mut self.model.peers[number];
                if peer.refused {
                    peer.due = Due::Now;
                }
            }
            link.unread |= std::mem::take(&mut link.readable);
            if link.unread && !self.seats[shard].shard.is_full() {
                self.read(shard, number);
            }
        }
    }

    /// One read, as long as the scratch buffer.
    fn read(&mut self, shard: usize, number: usize) {
        let link = &mut self.links[number];
        let slot = link.slot.expect("accepted");
        link.unread = false;
        let count = link.to_server.len().min(self.plan.scratch_bytes);
        if link.reset || (count == 0 && link.client_ended) {
            self.hang_up(shard, number, slot);
        } else if count > 0 {
            let scratch = take_front(&mut link.to_server, count);
            link.unread = count == self.plan.scratch_bytes || link.client_ended;
            link.handed += count as u64;
            self.hand(shard, number, scratch);
            let handed = self.links[number].handed;
            let is_cut = handed > self.clients[number].carried_out;
            self.report.cuts += u64::from(is_cut && self.model.peers[number].is_live());
        }
    }

    fn hang_up(&mut self, shard: usize, number: usize, slot: Slot) {
        let before = self.slow_endings(shard);
        self.seats[shard].shard.hang_up(slot);
        self.model.slow_endings = self.slow_endings(shard) - before;
        self.model.hang_up(number, self.now);
        assert_eq!(self.model.slow_endings, 0, "shard {shard} has ended somebody as too slow");
    }

    fn slow_endings(&self, shard: usize) -> u64 {
        self.stats.shards[shard].endings[Ending::Slow.index()].value()
    }

    /// The shard is given what came on a connection, and the model what it means.
    fn hand(&mut self, shard: usize, number: usize, mut bytes: Vec<u8>) {
        let slot = self.links[number].slot.expect("it has a place");
        self.note(|| format!("{} bytes of {number}", bytes.len()));
        let before = (self.seats[shard].shard.mail_taken(), self.slow_endings(shard));
        self.seats[shard].shard.receive(slot, &mut bytes, self.now);
        // Before somebody joins or leaves, the shard takes its mail.
        self.model.takes = self.seats[shard].shard.mail_taken() - before.0;
        self.model.slow_endings = self.slow_endings(shard) - before.1;
        self.model.heard(number, self.now);
        if let Stage::Waiting { .. } = self.model.peers[number].stage {
            // Nobody asks again before there is an answer.
            self.model.hang_up(number, self.now);
        }
        self.carry_out(shard, number);
        assert_eq!(self.model.slow_endings, 0, "shard {shard} has ended somebody as too slow");
    }

    /// The model follows what the shard has been handed by now.
    fn carry_out(&mut self, shard: usize, number: usize) {
        let (now, handed) = (self.now, self.links[number].handed);
        // Its time begins with the head, and no piece of it gives it more.
        let mut has_new_body = false;
        while let Some(item) = self.clients[number].items.pop_front_if(|item| item.trigger <= handed) {
            // What came behind a request that waits: it has had its answer, or the connection is given up.
            self.resolve(shard, number);
            if let Stage::Waiting { .. } = self.model.peers[number].stage {
                self.model.hang_up(number, now);
            }
            let client = &mut self.clients[number];
            if let Effect::Head { target, length } = item.effect {
                if self.model.peers[number].stage != Stage::Http {
                    continue;
                }
                match self.model.head(number, target, length, now) {
                    Heading::Stays => {
                        client.in_body = length.map(|_| target);
                        has_new_body = length.is_some();
                    }
                    Heading::Refused => {}
                    Heading::Leaves(_) => {
                        client.items.push_front(item);
                        break;
                    }
                }
                continue;
            }
            client.in_body = None;
            client.carried_out = item.trigger;
            if self.loud {
                eprintln!("    {number} has said {}", brief(&item.effect));
            }
            if matches!(item.effect, Effect::Move) && self.is_refused_room(shard, number) {
                self.model.peers[number].abandoned = true;
            }
            self.model.apply(number, &item.effect, now);
            if self.model.peers.len() > self.links.len() {
                self.place_session(shard, number);
            }
        }
        self.resolve(shard, number);
        let client = &self.clients[number];
        match (self.model.peers[number].stage, client.in_body) {
            (Stage::Waiting { .. }, _) if handed > client.carried_out => self.model.hang_up(number, now),
            (Stage::Http, Some(target)) if has_new_body => self.model.await_body(number, target, now),
            _ => {}
        }
    }

    /// True when a WebSocket is to be closed to which a session was to move: its own answers, which had not left, had no room in an outbox.
    fn is_refused_room(&self, shard: usize, number: usize) -> bool {
        let (peer, slot) = (&self.model.peers[number], self.links[number].slot.expect("it has a place"));
        let is_gone = matches!(self.seats[shard].shard.gather(slot), Gathered::Nothing);
        matches!(peer.stage, Stage::Probing(_)) && peer.switching && is_gone
    }

    /// A request has begun a session: it has a place, and no socket.
    fn place_session(&mut self, shard: usize, asked_by: usize) {
        let number = self.links.len();
        let slot = self.model.peers[number].slot.expect("it has a place");
        let mut client = Client::new(Temper::Silent);
        client.reads = false;
        self.clients.push(client);
        let mut link = Link::new(shard, 0);
        link.slot = Some(slot);
        self.links.push(link);
        self.place(shard, slot, number);
        if let Some(at) = self.clients[asked_by].poller {
            self.pollers[at].session = Some(number);
        }
        self.note(|| format!("    {number} is a session, which {asked_by} has asked for"));
    }

    fn place(&mut self, shard: usize, slot: Slot, number: usize) {
        let sockets = &mut self.seats[shard].sockets;
        let at = slot as usize;
        if sockets.len() <= at {
            sockets.resize(at + 1, None);
        }
        assert_eq!(sockets[at].replace(number), None, "slot {slot} is taken");
    }

    /// Looks for the answer to a GET that waits: the model does not say how much of what is said to a session is in it. True when there is
    /// one.
    fn resolve(&mut self, shard: usize, number: usize) -> bool {
        let peer = &self.model.peers[number];
        let (Stage::Waiting { .. }, Some(slot)) = (peer.stage, self.links[number].slot) else { return false };
        let bytes = self.waiting_bytes(shard, number, slot);
        let (mut decoded, mut place) = (0, 0);
        while let Some((said, used)) = decode(&bytes[decoded..], peer, peer.switched, place) {
            if place == peer.expected.len() {
                let Said::Poll { packets, .. } = said else { panic!("{number} is told {said:?}") };
                self.report.polls += 1;
                self.model.answered(number, &packets, self.now);
                return true;
            }
            decoded += used;
            place += 1;
        }
        false
    }

    /// What was written to a connection and is not decoded yet, and what waits to be written.
    fn waiting_bytes(&self, shard: usize, number: usize, slot: Slot) -> Vec<u8> {
        let mut bytes = self.links[number].tap.clone();
        match self.seats[shard].shard.gather(slot) {
            Gathered::Nothing => {}
            Gathered::One(more) => bytes.extend_from_slice(more),
            Gathered::Many(slices) => slices.iter().for_each(|slice| bytes.extend_from_slice(slice)),
        }
        bytes
    }

    /// Takes the sockets that other shards have given away.
    fn adopt_all(&mut self, shard: usize, handed: Vec<(usize, Vec<u8>)>) {
        // Now and then there are more events than the kernel tells of at once.
        if handed.is_empty() || self.seats[shard].shard.is_full() || self.random.chance(10) {
            return self.seats[shard].handed.splice(0..0, handed).for_each(drop);
        }
        for (number, bytes) in handed {
            let slot = self.seats[shard].shard.adopt(self.model.peers[number].ip, self.now);
            self.note(|| format!("{number} is adopted in slot {slot}"));
            self.model.adopt(number, slot, self.now);
            self.model.counts.bytes_handed += bytes.len() as u64;
            self.place(shard, slot, number);
            self.links[number].slot = Some(slot);
            self.hand(shard, number, bytes);
            let link = &mut self.links[number];
            link.unread = false;
            link.writable = false;
            link.readable = !link.to_server.is_empty() || link.client_ended || link.reset;
        }
    }

    /// A connection ends with the reactor that had it.
    fn lose_link(&mut self, number: usize) {
        self.links[number].reset = true;
        self.links[number].closed = true;
        self.model.peers[number].stage = Stage::Closed;
    }

    fn deliver_all(&mut self, shard: usize) {
        self.report.late_mail += u64::from(self.model.mail[shard].len() > 1);
        let slow_endings = self.slow_endings(shard);
        let seat = &mut self.seats[shard].shard;
        let before = seat.mail_taken();
        seat.deliver(self.now);
        self.model.takes += seat.mail_taken() - before;
        self.model.slow_endings = self.slow_endings(shard) - slow_endings;
        self.model.deliver(shard, self.now);
        assert_eq!(self.model.slow_endings, 0, "shard {shard} has ended somebody as too slow");
        let seat = &self.seats[shard].shard;
        // What a shard posts to itself meanwhile is for the next turn.
        let is_left = self.model.collected[shard] > 0 || (seat.has_mail() && seat.is_spent());
        assert!(!is_left || seat.is_full(), "mail is left though there is room");
        self.report.full_turns += u64::from(is_left);
        assert_eq!(self.model.takes, 0, "shard {shard} has taken mail that there was not");
        assert_eq!(self.model.mail[shard].is_empty(), !seat.has_mail(), "mail of shard {shard}");
    }

    fn accept_all(&mut self, shard: usize) {
        let now = self.now;
        let seat = &mut self.seats[shard];
        if seat.shard.is_draining() {
            // The listener is closed: who was waiting is turned away by the kernel.
            let backlog = std::mem::take(&mut seat.backlog);
            return backlog.into_iter().for_each(|number| self.lose_link(number));
        }
        while !self.seats[shard].backlog.is_empty() {
            let seat = &mut self.seats[shard];
            let may_accept = seat.shard.may_accept(now);
            assert_eq!(may_accept, self.model.may_accept(shard, now), "whether shard {shard} may accept");
            if !may_accept {
                return;
            }
            let number = seat.backlog.pop_front().expect("not empty");
            let slot = seat.shard.accept(self.model.peers[number].ip, now);
            self.place(shard, slot, number);
            let link = &mut self.links[number];
            link.slot = Some(slot);
            self.model.accept(shard, number, slot, now);
            // Read at once, and watched after that: what is there then is reported.
            self.read(shard, number);
            let link = &mut self.links[number];
            link.readable = !link.to_server.is_empty() || link.client_ended || link.reset;
        }
    }

    fn flush(&mut self, shard: usize) {
        self.model.begin_flush(shard);
        for asked in 0.. {
            assert!(asked < 10_000, "the flush of shard {shard} does not end");
            if self.plan.stops_early && asked > 0 && mix(self.report.turns + asked).is_multiple_of(16) {
                // Enough has been written in this turn.
                self.report.short_flushes += u64::from(self.seats[shard].shard.has_unflushed());
                break;
            }
            let Some(slot) = self.seats[shard].shard.next_dirty() else { break };
            let number = self.seats[shard].sockets[slot as usize].expect("a dirty slot has a socket");
            self.report.waits += u64::from(self.resolve(shard, number));
            let peer = &self.model.peers[number];
            assert_eq!(peer.due, Due::Now, "{number} is written to too early: {:?}", peer.expected);
            loop {
                self.look_at_outbox(shard, number);
                let link = &self.links[number];
                // Now and then the kernel has no memory for a moment, whatever space there is.
                let is_refused = self.clients[number].temper != Temper::Well
                    && !self.clients[number].is_steady
                    && self.random.chance(self.plan.refusals_percent);
                let free = if is_refused { 0 } else { link.capacity - link.to_client.len() };
                let (offered, bytes) = match self.seats[shard].shard.gather(slot) {
                    Gathered::Nothing => break,
                    Gathered::One(bytes) => (bytes.len(), bytes[..bytes.len().min(free)].to_vec()),
                    Gathered::Many(slices) => {
                        let mut bytes = Vec::new();
                        for slice in &slices {
                            bytes.extend_from_slice(&slice[..slice.len().min(free - bytes.len())]);
                        }
                        (slices.iter().map(|slice| slice.len()).sum(), bytes)
                    }
                };
                assert!(offered > 0, "an empty write to {number}");
                if link.reset {
                    self.hang_up(shard, number, slot);
                    break;
                }
                assert!(
                    !self.links[number].is_blocked,
                    "{number} is written to before its socket takes more"
                );
                assert!(!self.links[number].server_ended, "a write to {number} after the end of its stream");
                if self.model.peers[number].refused && !bytes.is_empty() {
                    self.model.heard(number, self.now);
                    // Who reads on has time to read the close.
                    if self.model.peers[number].is_finishing() {
                        self.model.peers[number].arm(self.now, CLOSE_TIMEOUT_MS);
                    }
                }
                if bytes.len() < offered {
                    self.links[number].is_blocked = true;
                    self.links[number].writer_armed = true;
                    self.links[number].wants_space = !is_refused;
                    self.links[number].writable |= is_refused;
                    self.model.peers[number].refused = true;
                    self.model.peers[number].compared = None;
                    let count = if bytes.is_empty() {
                        &mut self.report.refused_writes
                    } else {
                        &mut self.report.short_writes
                    };
                    *count += 1;
                }
                self.note(|| format!("{} of {offered} bytes to {number}", bytes.len()));
                self.write(number, &bytes);
                if !self.seats[shard].shard.sent(slot, offered, bytes.len()) {
                    break;
                }
            }
        }
    }

    /// Decodes what waits for a connection that was refused something, and lets the model compare.
    fn look_at_outbox(&mut self, shard: usize, number: usize) {
        let (peer, link) = (&self.model.peers[number], &self.links[number]);
        // What a session that has ended leaves is for nobody.
        let is_left = !peer.has_socket && peer.doomed;
        let Some(slot) = link.slot.filter(|_| peer.refused && !link.reset && !is_left) else { return };
        let bytes = self.waiting_bytes(shard, number, slot);
        let (is_empty, is_blocked) = (bytes.is_empty(), link.is_blocked);
        // All that waited was left out, and it is not told of that.
        let is_over = |peer: &Peer| {
            is_empty && peer.expected.is_empty() && peer.has_socket && !is_blocked && !peer.abandoned
        };
        if is_over(peer) {
            self.model.peers[number].refused = false;
            return;
        }
        if peer.compared == Some((peer.expected.len(), bytes.len())) {
            return;
        }
        let (mut waiting, mut decoded, mut switched) = (Vec::new(), 0, peer.switched);
        let mut first_bytes = None;
        while let Some((said, used)) = decode(&bytes[decoded..], peer, switched, waiting.len()) {
            decoded += used;
            switched |= matches!(said, Said::Switch { .. });
            first_bytes.get_or_insert(used);
            waiting.push(said);
        }
        let (is_whole, count) = (decoded == bytes.len(), waiting.len());
        let kept_bytes = bytes.len() - first_bytes.unwrap_or(0);
        self.model.compare(number, waiting, is_whole, self.now);
        let peer = &mut self.model.peers[number];
        peer.kept_bytes = kept_bytes;
        let is_same = is_whole && peer.expected.len() == count;
        peer.compared = is_same.then_some((count, bytes.len()));
        // Just now, perhaps: who is told something in the next turn can take it.
        peer.refused &= !is_over(peer);
    }

    /// The server's bytes enter the socket, where they are decoded at once, whenever the client will read them.
    fn write(&mut self, number: usize, bytes: &[u8]) {
        let link = &mut self.links[number];
        link.to_client.extend(bytes);
        link.written += bytes.len() as u64;
        link.tap.extend_from_slice(bytes);
        let mut hasher = DefaultHasher::new();
        // What ids of sessions say, and how well that is compressed, is not for the seed to decide.
        let has_secrets = self.clients[number].poller.is_some()
            || self.model.peers[number].dialect == Some(Dialect::SocketIo);
        if has_secrets {
            (self.report.trace, number, self.now.ns()).hash(&mut hasher);
        } else {
            (self.report.trace, number, self.now.ns(), bytes).hash(&mut hasher);
        }
        self.report.trace = hasher.finish();
        let mut lingered = 0;
        let mut decoded = 0;
        while let Some((said, used)) =
            decode_next(&self.links[number].tap[decoded..], &self.model.peers[number])
        {
            decoded += used;
            let link = &mut self.links[number];
            let end = link.written - (link.tap.len() - decoded) as u64;
            match &said {
                Said::Switch { .. } => link.reactions.push_back((end, Reaction::Speak)),
                Said::WebSocketPing => link.reactions.push_back((end, Reaction::Pong(Vec::new()))),
                Said::Close(code) => link.reactions.push_back((end, Reaction::Close(*code))),
                Said::Dropped(_) => self.report.dropped_told += 1,
                Said::Packet(packet) => link.reactions.push_back((end, Reaction::Packet(packet.clone()))),
                Said::Poll { .. } | Said::Posted { .. } | Said::Fault { .. } | Said::Answer { .. }
                    if self.clients[number].poller.is_some() =>
                {
                    link.reactions.push_back((end, Reaction::Answer(Box::new(said.clone()))));
                }
                _ => {}
            }
            if has_secrets {
                let mut hasher = DefaultHasher::new();
                (self.report.trace, format!("{said:?}")).hash(&mut hasher);
                self.report.trace = hasher.finish();
            }
            self.note(|| format!("    {number} is told {}", brief(&said)));
            lingered += u64::from(self.model.said(number, said, self.now));
        }
        self.links[number].tap.drain(..decoded);
        self.report.linger_batches += u64::from(lingered > 1);
    }

    fn see_off(&mut self, shard: usize) {
        while let Some(farewell) = self.seats[shard].shard.next_farewell() {
            match farewell {
                Farewell::EndStream(slot) => {
                    let Some(number) = self.seats[shard].sockets[slot as usize] else { continue };
                    self.note(|| format!("the stream to {number} ends"));
                    if !self.model.peers[number].has_socket {
                        continue;
                    }
                    self.links[number].server_ended = true;
                    self.model.end_stream(number);
                    if self.links[number].reset {
                        self.hang_up(shard, number, slot);
                    }
                }
                Farewell::HandOver { slot, owner, bytes } => {
                    let Owner::Shard(to) = owner else { unreachable!("the process is alone on its port") };
                    let number = self.seats[shard].sockets[slot as usize].take().expect("there is a socket");
                    self.note(|| format!("{number} is handed to shard {to}"));
                    self.links[number].slot = None;
                    self.links[number].unread = false;
                    self.model.hand_over(number, to.into());
                    self.seats[shard].shard.release(slot);
                    self.links[number].shard = to.into();
                    self.report.hand_overs += 1;
                    let seat = &mut self.seats[usize::from(to)];
                    if seat.stopped {
                        self.lose_link(number);
                        continue;
                    }
                    seat.handed.push((number, bytes.into()));
                    self.bus.mailbox(to).ring();
                }
                Farewell::Close(slot) => {
                    let Some(number) = self.seats[shard].sockets[slot as usize].take() else {
                        // It was to be handed over, and then its client was gone.
                        self.seats[shard].shard.release(slot);
                        continue;
                    };
                    self.note(|| format!("{number} is closed"));
                    self.links[number].closed = true;
                    self.links[number].slot = None;
                    self.links[number].unread = false;
                    let client = &self.clients[number];
                    let well = client.temper == Temper::Well && !client.has_moved;
                    let ending = self.model.close(number, self.now);
                    assert!(
                        !(well && matches!(ending, Some(Ending::Slow | Ending::Silent))),
                        "{number} behaved and was closed as {ending:?}"
                    );
                    self.seats[shard].shard.release(slot);
                }
            }
        }
    }

    // --------------------------------------------------------------------------------------------------- coming to rest

    /// Everybody who does anything goes on until there is nothing to do, while time all but stands still.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut is_busy = false;
            for client in 0..self.clients.len() {
                is_busy |= self.transmit_up_to(client, usize::MAX);
                if self.clients[client].reads {
                    is_busy |= self.read_up_to(client, usize::MAX);
                }
            }
            for at in 0..self.pollers.len() {
                is_busy |= self.poll(at);
            }
            for shard in 0..self.plan.shards {
                if self.has_work(shard) {
                    self.turn(shard);
                    is_busy = true;
                }
            }
            if !is_busy {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn has_work(&self, shard: usize) -> bool {
        let seat = &self.seats[shard];
        let has_event = |number: &usize| {
            let link = &self.links[*number];
            link.readable || link.writable || link.unread
        };
        !seat.stopped
            && (!seat.asleep
                || seat.rung.load(Ordering::Relaxed)
                || !seat.handed.is_empty()
                || seat.deadline.is_some_and(|deadline| deadline <= self.now)
                || seat.sockets.iter().flatten().any(has_event)
                || (!seat.backlog.is_empty()
                    && (seat.shard.is_draining() || self.model.may_accept(shard, self.now))))
    }

    /// Each client leaves in one way or another.
    fn leave(&mut self) {
        for client in 0..self.clients.len() {
            if !self.is_there(client) || self.clients[client].poller.is_some() {
                continue;
            }
            match self.random.below(5) {
                0 | 1 => self.say_close(client),
                2 => self.end_stream(client),
                3 => self.vanish(client),
                _ => self.clients[client].answers = false,
            }
            self.clients[client].sealed = true;
        }
        (0..self.pollers.len()).for_each(|at| self.leave_polling(at));
    }

    /// Time passes from deadline to deadline, as in a reactor that sleeps, until the last socket is closed.
    fn wind_down(&mut self) {
        for _ in 0..SLEEPS_MAX {
            self.settle();
            let deadlines = self.seats.iter().filter(|seat| !seat.stopped).filter_map(|seat| seat.deadline);
            let waiting = self.seats.iter().any(|seat| !seat.stopped && !seat.backlog.is_empty());
            let rest = waiting.then(|| self.now.plus_ms(ACCEPT_REST_MS));
            match deadlines.chain(rest).min() {
                Some(wake) => self.now = wake.max(self.now),
                None => return,
            }
        }
        panic!("it never ends");
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.loud {
            eprintln!("{:>6} {}", self.report.turns, what());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `THRONG_SIM_SEED` for one seed, `THRONG_SIM_SEEDS` for how many; else 256.
    fn seeds() -> std::ops::Range<u64> {
        let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        match (number("THRONG_SIM_SEED"), number("THRONG_SIM_SEEDS")) {
            (Some(seed), _) => seed..seed + 1,
            (None, count) => 0..count.unwrap_or(256),
        }
    }

    #[test]
    fn seeds_break_no_rule() {
        let seeds = seeds();
        let is_whole = seeds.end - seeds.start >= 256;
        let mut total = Report::default();
        for seed in seeds {
            total.merge(&run(seed));
        }
        println!("{total:#?}");
        if is_whole {
            let Report {
                trace: _,
                turns,
                accepts,
                upgrades,
                rejects,
                cuts,
                publications,
                cross_shard,
                short_writes,
                refused_writes,
                linger_batches,
                short_flushes,
                full_turns,
                rate_limited,
                drops,
                dropped_told,
                endings,
                slow_heads,
                drains,
                jumps,
                late_mail,
                sessions,
                polls,
                waits,
                moves,
                hand_overs,
                faults,
                namespaces,
                namespace_refusals,
                asks,
                answers,
                missing,
                volatile_drops,
                orders,
                cut_posts,
            } = total;
            for (happened, what) in [
                (turns, "turns"),
                (accepts, "accepts"),
                (upgrades, "upgrades"),
                (rejects, "rejects"),
                (cuts, "cuts"),
                (publications, "publications"),
                (cross_shard, "deliveries on other shards"),
                (short_writes, "short writes"),
                (refused_writes, "refused writes"),
                (linger_batches, "linger batches"),
                (short_flushes, "flushes that ended early"),
                (full_turns, "full turns"),
                (rate_limited, "rate limits"),
                (drops, "drops"),
                (dropped_told, "dropped messages"),
                (slow_heads, "slow heads"),
                (drains, "drains"),
                (jumps, "jumps of the clock"),
                (late_mail, "late mail"),
                (sessions, "polling sessions"),
                (polls, "answers to polls"),
                (waits, "polls that waited"),
                (moves, "moves to a WebSocket"),
                (hand_overs, "hand-overs"),
                (faults, "faults of Engine.IO"),
                (namespaces, "joins of namespaces"),
                (namespace_refusals, "refusals of namespaces"),
                (asks, "questions"),
                (answers, "answers"),
                (missing, "missing answers"),
                (volatile_drops, "volatile events that were dropped"),
                (orders, "orders that found their client"),
                (cut_posts, "ends in the middle of a POST"),
            ] {
                assert!(happened >= 10, "{what} happened {happened} times: too seldom to prove anything");
            }
            // Tokens are not simulated: the fuzzer has them.
            let is_simulated = |label: &str| label != "token";
            let endings = Ending::LABELS.iter().zip(endings).filter(|(label, _)| is_simulated(label));
            for (label, happened) in endings {
                assert!(happened >= 10, "{happened} connections ended as {label}");
            }
        }
    }

    /// Each of these failed once, and fails when its cause is brought back. When more is drawn from a seed, seeds mean something else, and
    /// others have to be looked for.
    #[test]
    fn seeds_that_once_failed_are_kept() {
        for (seed, _cause) in [
            (
                271,
                "an event was kept from the connection with its publisher's slot and stamp on another shard",
            ),
            (266, "a slow connection was sent frames that came after one it had lost, and then closed"),
            (326, "what came after the first frame that did not fit was kept for a connection closed for it"),
            (340, "who lost all that waited for it was not told before something else came for it"),
            (806, "the message that tells of losses was itself left out, and the losses never told"),
            (305, "a ping was left out of a full outbox, and the client closed for not answering it"),
            (260, "an answered ping did not set the timer anew, and the next ping came late"),
            (279, "what lingered left as soon as something else came that may linger, too"),
            (866, "who hung up as its head became late was counted as late"),
            (631, "a timer due at the tick at which its list is sorted fired one tick late"),
            (264, "the error for a binary frame over the rate did not have its id"),
            (256, "the error for a binary frame with a wrong field did not have its id"),
            (262, "a HEAD of Engine.IO was answered with a body"),
            (318, "a GET that waited kept its connection in a drain"),
            (1082, "the clock jumped over the end of a move and that of the session"),
            (283, "a session was told things on its WebSocket before what that was told itself"),
            (367, "a packet was left out, and its attachments were not"),
            (327, "a ping of Engine.IO was left out, and the session ended as silent"),
            (1157, "what a session had lost before it moved to a WebSocket made it lose what came after"),
            (292, "what stood in the body of a request that has none was taken for the next request"),
            (347, "a session that polled was ended as too slow by the frame that was to say why it ends"),
            (468, "a stream was ended after its connection was closed"),
            (8, "who was put out in the middle of a POST joined a room all the same, and was in it for ever"),
            (23, "who was put out in the middle of what it said was told of the rest behind its close"),
            (2529, "who had been told that the server shuts down was sent events for its id behind that"),
        ] {
            run(seed);
        }
    }

    #[test]
    fn a_seed_is_a_whole_life() {
        for seed in [1, 2, 3] {
            assert_eq!(run(seed), run(seed), "the same seed, the same bytes at the same times");
        }
        assert_ne!(run(1).trace, run(2).trace);
    }
}
