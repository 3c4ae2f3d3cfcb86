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
//! what happens. Read in this order: the world, the clients, the model.

use crate::auth::{Gate, Rules};
use crate::bus::Bus;
use crate::bus::mailbox::Mail;
use crate::dialect::Dialect;
use crate::message::{Reject, ShardId, Slot};
use crate::shard::turn::Gathered;
use crate::shard::{Farewell, Holdings, OutboxPolicy, Settings, Shard};
use crate::stats::{Ending, ShardStats, Stats};
use crate::time::Time;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tungstenite::protocol::frame::{FrameHeader, coding};

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
            (&mut self.full_turns, other.full_turns),
            (&mut self.rate_limited, other.rate_limited),
            (&mut self.drops, other.drops),
            (&mut self.dropped_told, other.dropped_told),
            (&mut self.slow_heads, other.slow_heads),
            (&mut self.drains, other.drains),
            (&mut self.jumps, other.jumps),
            (&mut self.late_mail, other.late_mail),
        ];
        for (mine, theirs) in pairs {
            *mine += theirs;
        }
        for (mine, theirs) in self.endings.iter_mut().zip(other.endings) {
            *mine += theirs;
        }
    }
}

/// A source of numbers (splitmix64). Its own, so that a seed means the same in every version of every crate.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Less than `bound`, which is at least 1.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn up_to(&mut self, most: usize) -> usize {
        self.below(most as u64 + 1) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }

    fn shuffle<T>(&mut self, among: &mut [T]) {
        for at in (1..among.len()).rev() {
            among.swap(at, self.up_to(at));
        }
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

// ------------------------------------------------------------------------------------------------------------ the plan

/// How long a peer has to end its side, in milliseconds.
const CLOSE_TIMEOUT_MS: u64 = 5_000;
/// A timer fires at most this much late, in milliseconds: the wheel counts whole ones.
const TIMER_TICK_MS: u64 = 1;
/// After how many milliseconds a reactor asks again whether it may accept.
const ACCEPT_REST_MS: u64 = 50;
/// The most connections of one run.
const CONNECTIONS_MAX: usize = 48;
/// Rounds within which everything must come to rest while time stands still.
const ROUNDS_MAX: usize = 30_000;
/// Sleeps within which everybody must be gone at the end.
const SLEEPS_MAX: usize = 20_000;

/// What a seed decides before anything happens.
#[derive(Clone, Debug)]
struct Plan {
    shards: usize,
    settings: Settings,
    rules: Rules,
    rooms_max: usize,
    /// Bytes of one read.
    scratch_bytes: usize,
    steps: u64,
    clients_max: usize,
    /// Large payloads, so that the arena fills.
    heavy: bool,
    /// The step at which the shards are told to drain, with the spread and the timeout.
    drain: Option<(u64, u32, u32)>,
    start: Time,
}

impl Plan {
    fn draw(random: &mut Random) -> Plan {
        let heavy = random.chance(5);
        let steps = if heavy { 350 } else { 500 + random.below(900) };
        let ping_interval_ms = *random.pick(&[200, 1_000, 5_000, 25_000]);
        let settings = Settings {
            connections_reserved: 8,
            echo: random.chance(70),
            linger_ms: if random.chance(50) { 0 } else { 1 + random.below(20) as u32 },
            accepts_per_second_max: *random.pick(&[0, 0, 0, 5, 100]),
            handshake_timeout_ms: *random.pick(&[500, 10_000]),
            head_bytes_max: *random.pick(&[600, 8192]),
            refuse_with_close: random.chance(30),
            message_bytes_max: if heavy { 1 << 20 } else { *random.pick(&[700, 4_000, 70_000]) },
            frames_per_message_max: *random.pick(&[3, 8, 4_096]),
            messages_per_frame_max: *random.pick(&[2, 1_024]),
            messages_per_second_max: *random.pick(&[0, 0, 0, 20, 200]),
            messages_burst_max: *random.pick(&[5, 40]),
            rooms_per_connection_max: *random.pick(&[2, 4, 1_024]),
            room_name_bytes_max: *random.pick(&[40, 200]),
            // Whom a full pool hits depends on how the pool grows; the fuzzer tries small ones.
            receive_bytes_max: 256 << 20,
            ping_interval_ms,
            ping_timeout_ms: *random.pick(&[150, 800, 20_000]),
            outbox_bytes_max: if heavy { 700_000 } else { *random.pick(&[150, 1_000, 20_000]) },
            outbox_policy: if random.chance(50) { OutboxPolicy::Disconnect } else { OutboxPolicy::Drop },
        };
        let connections_max = *random.pick(&[1_000, 1_000, 12]);
        let rules = Rules {
            connections_max,
            sockets_max: connections_max + 4,
            per_ip_max: random.chance(25).then(|| 2 + random.below(4) as u32),
            ..Rules::default()
        };
        let drain_step = steps * 3 / 4 + random.below(steps / 4);
        // Now and then a clock that is about to pass 2^32 ms, where the short forms of times wrap.
        let wrap = Time::from_ms((1 << 32) - random.below(20_000));
        let start = if random.chance(30) { wrap } else { Time::from_ns(random.below(1 << 50)) };
        Plan {
            shards: 1 + random.below(4) as usize,
            settings,
            rules,
            rooms_max: *random.pick(&[3, 100, 100]),
            scratch_bytes: if heavy { 65_536 } else { *random.pick(&[24, 200, 2_048, 65_536]) },
            steps,
            clients_max: if heavy { 6 } else { 2 + random.below(23) as usize },
            heavy,
            drain: random.chance(30).then(|| {
                let spread_ms = if random.chance(50) { 0 } else { random.below(2_000) as u32 };
                (drain_step, spread_ms, spread_ms + *random.pick(&[100, 8_000]))
            }),
            start,
        }
    }
}

/// Names that clients join. One needs escapes in JSON, one is not ASCII, one does not fit a short string.
const ROOMS: [&str; 5] = ["a", "auction:7", "q\"\\/q", "räume/漢字", "a-room-with-a-rather-long-name-0001"];

// ----------------------------------------------------------------------------------------------------------- the world

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
    model: Model,
    /// Events composed so far; each has its number in its name.
    events: u64,
    report: Report,
    loud: bool,
}

/// A shard, and what its reactor keeps.
struct Seat {
    shard: Shard,
    /// By slot, the connection's number.
    sockets: Vec<Option<usize>>,
    /// Connections that wait to be accepted.
    backlog: VecDeque<usize>,
    /// Mail that has been collected and not delivered.
    mail: VecDeque<Mail>,
    /// When the shard wants its next turn.
    deadline: Option<Time>,
    asleep: bool,
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

/// What a frame from the server makes a client do.
#[derive(Debug)]
enum Reaction {
    Speak,
    Pong(Vec<u8>),
    Close(Option<u16>),
}

impl World {
    fn new(seed: u64) -> World {
        // Mixed, so that neighbouring seeds have nothing in common.
        let mut random = Random(mix(seed ^ 0x7468_726f_6e67));
        let plan = Plan::draw(&mut random);
        let bus = Arc::new(Bus::new(plan.shards, plan.rooms_max));
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
                    mail: VecDeque::new(),
                    deadline: None,
                    asleep: false,
                    rung,
                    stopped: false,
                }
            })
            .collect();
        let loud = std::env::var_os("THRONG_SIM_LOG").is_some();
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
            events: 0,
            report: Report::default(),
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
        }
        self.settle();
        if self.plan.settings.linger_ms > 0 {
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
            rate_limited: counts.rate_limited,
            drops: counts.lost,
            endings: counts.endings,
            slow_heads: counts.rejects[label_index("slow_head")],
            drains: self.seats.iter().filter(|seat| seat.stopped).count() as u64,
            ..self.report
        }
    }

    /// One thing happens.
    fn step(&mut self) {
        let shard = self.random.up_to(self.plan.shards - 1);
        let client = self.any_client();
        match (self.random.below(100), client) {
            (0..30, _) => self.turn(shard),
            (30..33, _) => self.connect(),
            (33..44, _) => self.pass_some_time(),
            (44..64, Some(client)) => self.compose(client),
            (64..84, Some(client)) => self.transmit_some(client),
            (84..97, Some(client)) => self.read_some(client),
            (_, Some(client)) => self.upset(client),
            (_, None) => self.connect(),
        }
    }

    fn any_client(&mut self) -> Option<usize> {
        let there: Vec<usize> = (0..self.clients.len()).filter(|client| self.is_there(*client)).collect();
        (!there.is_empty()).then(|| *self.random.pick(&there))
    }

    /// True until the connection is over for its client.
    fn is_there(&self, client: usize) -> bool {
        !self.links[client].closed && !self.links[client].reset
    }

    fn connect(&mut self) {
        let there = (0..self.clients.len()).filter(|client| self.is_there(*client)).count();
        let is_over = self.model.drains.iter().any(Option::is_some) || self.gate.is_draining();
        if is_over || there >= self.plan.clients_max || self.clients.len() >= CONNECTIONS_MAX {
            return;
        }
        let number = self.clients.len();
        let shard = self.random.up_to(self.plan.shards - 1);
        let client = Client::draw(&mut self.random);
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + self.random.below(3) as u8));
        let capacity = match client.temper {
            Temper::Well => usize::MAX,
            _ if self.random.chance(40) => usize::MAX,
            _ if self.plan.heavy => *self.random.pick(&[8_192, 100_000]),
            _ => *self.random.pick(&[10, 120, 1_000, 10_000]),
        };
        self.note(|| format!("{number} connects to shard {shard}: {:?}, takes {capacity} bytes", client.temper));
        self.clients.push(client);
        self.links.push(Link {
            shard,
            slot: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            capacity,
            readable: false,
            writable: false,
            wants_space: false,
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
        });
        self.model.peers.push(Peer::new(shard, ip));
        self.seats[shard].backlog.push_back(number);
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
            || self.seats.iter().any(|seat| !seat.mail.is_empty());
        if is_busy {
            ahead_ns = ahead_ns.min(1_000_000);
        }
        // Those who behave are quick: they have read and answered before time passes.
        for client in 0..self.clients.len() {
            if self.clients[client].temper == Temper::Well && (ahead_ns > 5_000_000 || self.random.chance(30)) {
                self.read_up_to(client, usize::MAX);
                self.transmit_up_to(client, usize::MAX);
            }
        }
        self.report.jumps += u64::from(ahead_ns >= 60_000_000_000);
        self.now = self.now.plus_ns(ahead_ns);
        self.note(|| format!("it is {} ms", self.now.ms()));
    }

    fn begin_drain(&mut self, spread_ms: u32, timeout_ms: u32) {
        self.note(|| format!("drain within {spread_ms} ms, at most {timeout_ms}"));
        self.gate.drain();
        self.model.gate_draining = true;
        for shard in 0..self.plan.shards {
            self.bus.post(shard as ShardId, Mail::Drain { spread_ms, timeout_ms });
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
        self.seats[shard].shard.begin_turn(now);
        self.read_all(shard);
        self.deliver_all(shard);
        self.seats[shard].shard.advance(now);
        self.model.advance(shard, now, &self.clients, &self.links);
        self.accept_all(shard);
        let bells = self.seats[shard].shard.take_bells();
        let expected = std::mem::take(&mut self.model.bells);
        assert!(bells.iter().map(usize::from).eq(expected), "the bells of shard {shard} are not those due");
        self.bus.ring(bells);
        self.flush(shard);
        self.see_off(shard);
        self.now = now.plus_ns(self.random.below(200_000));
        let seat = &mut self.seats[shard];
        let ahead_ms = seat.shard.end_turn(self.now);
        seat.deadline = ahead_ms.map(|ms| self.now.plus_ms(u64::from(ms)));
        seat.stopped = seat.shard.is_drained();
        seat.asleep = seat.mail.is_empty() && self.bus.mailbox(id).fall_asleep();
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
            // The kernel reports both directions when one of them has news.
            if std::mem::take(&mut link.writable) || link.to_client.len() < link.capacity {
                self.seats[shard].shard.writable(slot);
            }
            if std::mem::take(&mut link.readable) || link.unread {
                self.read(shard, number);
            }
        }
    }

    /// One read, as long as the scratch buffer.
    fn read(&mut self, shard: usize, number: usize) {
        let (link, seat) = (&mut self.links[number], &mut self.seats[shard]);
        let slot = link.slot.expect("accepted");
        if seat.shard.is_full() {
            link.unread = true;
            self.report.full_turns += 1;
            return;
        }
        link.unread = false;
        let count = link.to_server.len().min(self.plan.scratch_bytes);
        if link.reset || (count == 0 && link.client_ended) {
            seat.shard.hang_up(slot);
            self.model.hang_up(number);
        } else if count > 0 {
            let mut scratch: Vec<u8> = link.to_server.drain(..count).collect();
            link.unread = count == self.plan.scratch_bytes || link.client_ended;
            link.handed += count as u64;
            let handed = link.handed;
            seat.shard.receive(slot, &mut scratch, self.now);
            self.model.heard(number, self.now);
            let client = &mut self.clients[number];
            while let Some(item) = client.items.pop_front_if(|item| item.trigger <= handed) {
                client.carried_out = item.trigger;
                self.model.apply(number, &item.effect, self.now);
            }
            self.report.cuts += u64::from(handed > client.carried_out && self.model.peers[number].is_live());
        }
    }

    fn deliver_all(&mut self, shard: usize) {
        let seat = &mut self.seats[shard];
        self.bus.mailbox(shard as ShardId).collect(&mut seat.mail);
        let waiting = seat.mail.len();
        assert_eq!(waiting, self.model.mail[shard].len(), "mail of shard {shard}");
        self.report.late_mail += u64::from(waiting > 1);
        seat.shard.deliver(&mut seat.mail, self.now);
        self.report.full_turns += u64::from(!seat.mail.is_empty());
        assert!(seat.mail.is_empty() || seat.shard.is_full(), "mail is left though there is room");
        self.report.cross_shard += self.model.deliver(shard, waiting - seat.mail.len(), self.now);
    }

    fn accept_all(&mut self, shard: usize) {
        let now = self.now;
        let seat = &mut self.seats[shard];
        if seat.shard.is_draining() {
            // The listener is closed: who was waiting is turned away by the kernel.
            for number in seat.backlog.drain(..) {
                self.links[number].reset = true;
                self.links[number].closed = true;
                self.model.peers[number].stage = Stage::Closed;
            }
            return;
        }
        while !seat.backlog.is_empty() {
            let may_accept = seat.shard.may_accept(now);
            assert_eq!(may_accept, self.model.may_accept(shard, now), "whether shard {shard} may accept");
            if !may_accept {
                return;
            }
            let number = seat.backlog.pop_front().expect("not empty");
            let slot = seat.shard.accept(self.model.peers[number].ip, now);
            let at = slot as usize;
            if seat.sockets.len() <= at {
                seat.sockets.resize(at + 1, None);
            }
            assert_eq!(seat.sockets[at].replace(number), None, "slot {slot} is taken");
            let link = &mut self.links[number];
            link.slot = Some(slot);
            // What epoll reports of a socket that is added to it.
            link.writable = true;
            link.readable = !link.to_server.is_empty() || link.client_ended || link.reset;
            self.model.accept(shard, number, slot, now);
        }
    }

    fn flush(&mut self, shard: usize) {
        for asked in 0.. {
            assert!(asked < 10_000, "the flush of shard {shard} does not end");
            let Some(slot) = self.seats[shard].shard.next_dirty() else { break };
            let number = self.seats[shard].sockets[slot as usize].expect("a dirty slot has a socket");
            loop {
                let link = &self.links[number];
                let free = link.capacity - link.to_client.len();
                let (offered, bytes) = match self.seats[shard].shard.gather(slot) {
                    Gathered::Nothing => break,
                    Gathered::One(bytes) => (bytes.len(), bytes[..bytes.len().min(free)].to_vec()),
                    Gathered::Many(slices) => {
                        let bytes = slices.iter().flat_map(|slice| slice.iter().copied()).take(free).collect();
                        (slices.iter().map(|slice| slice.len()).sum(), bytes)
                    }
                };
                assert!(offered > 0, "an empty write to {number}");
                if link.reset {
                    self.seats[shard].shard.hang_up(slot);
                    self.model.hang_up(number);
                    break;
                }
                assert!(!self.links[number].server_ended, "a write to {number} after the end of its stream");
                if bytes.len() < offered {
                    self.links[number].wants_space = true;
                    self.model.peers[number].refuse();
                    let count = if bytes.is_empty() { &mut self.report.refused_writes } else { &mut self.report.short_writes };
                    *count += 1;
                }
                self.write(number, &bytes);
                if !self.seats[shard].shard.sent(slot, offered, bytes.len()) {
                    break;
                }
            }
        }
    }

    /// The server's bytes enter the socket, where they are decoded at once, whenever the client will read them.
    fn write(&mut self, number: usize, bytes: &[u8]) {
        let link = &mut self.links[number];
        link.to_client.extend(bytes);
        link.written += bytes.len() as u64;
        link.tap.extend_from_slice(bytes);
        for chunk in [&number.to_le_bytes()[..], &self.now.ns().to_le_bytes(), bytes].concat().chunks(8) {
            let word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.report.trace = mix(self.report.trace ^ word);
        }
        let mut lingered = 0;
        let mut decoded = 0;
        while let Some((said, used)) = decode(&self.links[number].tap[decoded..], &self.model.peers[number]) {
            decoded += used;
            let link = &mut self.links[number];
            let end = link.written - (link.tap.len() - decoded) as u64;
            match &said {
                Said::Switch { .. } => link.reactions.push_back((end, Reaction::Speak)),
                Said::WebSocketPing => link.reactions.push_back((end, Reaction::Pong(Vec::new()))),
                Said::Close(code) => link.reactions.push_back((end, Reaction::Close(*code))),
                Said::Dropped(_) => self.report.dropped_told += 1,
                _ => {}
            }
            if self.loud {
                let text = format!("{said:?}");
                let cut = text.char_indices().nth(200).map_or(text.len(), |(at, _)| at);
                self.note(|| format!("    {number} is told {}", &text[..cut]));
            }
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
                    self.links[number].server_ended = true;
                    self.model.end_stream(number);
                    if self.links[number].reset {
                        self.seats[shard].shard.hang_up(slot);
                        self.model.hang_up(number);
                    }
                }
                Farewell::Close(slot) => {
                    let number = self.seats[shard].sockets[slot as usize].take().expect("a socket is closed once");
                    self.note(|| format!("{number} is closed"));
                    self.links[number].closed = true;
                    self.links[number].slot = None;
                    self.links[number].unread = false;
                    let well = self.clients[number].temper == Temper::Well;
                    let ending = self.model.close(number);
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
                || seat.deadline.is_some_and(|deadline| deadline <= self.now)
                || seat.sockets.iter().flatten().any(has_event)
                || (!seat.backlog.is_empty()
                    && (seat.shard.is_draining() || self.model.clone_may_accept(shard, self.now))))
    }

    /// Each client leaves in one way or another.
    fn leave(&mut self) {
        for client in 0..self.clients.len() {
            if !self.is_there(client) {
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
