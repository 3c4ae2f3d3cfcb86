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
use crate::dialect::{Dialect, Paths};
use crate::message::{Reject, ShardId, Slot};
use crate::shard::conn::Due;
use crate::shard::turn::Gathered;
use crate::shard::{Farewell, Holdings, OutboxPolicy, Settings, Shard};
use crate::stats::{Ending, ShardStats, Stats};
use crate::time::Time;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
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

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

// ------------------------------------------------------------------------------------------------------------ the plan

/// How long a peer has to end its side, in milliseconds.
const CLOSE_TIMEOUT_MS: u64 = 5_000;
/// Pings, closes and words about losses may stand in an outbox beyond its bound, in bytes.
const MUST_FOLLOW_BYTES: usize = 200;
/// The close codes of throng's own.
const SILENT: u16 = 4000;
const SLOW: u16 = 4001;
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
    /// What rooms are called.
    rooms: &'static [&'static str],
    /// Bytes of one read.
    scratch_bytes: usize,
    steps: u64,
    /// Of a hundred steps, how many are turns of shards: the fewer, the more waits for each.
    turns_percent: u64,
    /// Of a hundred writes to a client that does not behave, how many the kernel refuses for a moment.
    refusals_percent: u64,
    clients_max: usize,
    /// Large payloads, so that the arena fills.
    heavy: bool,
    /// True when turns end before all has been written.
    stops_early: bool,
    /// The step at which the shards are told to drain, with the spread and the timeout.
    drain: Option<(u64, u32, u32)>,
    start: Time,
}

impl Plan {
    fn draw(seed: u64, random: &mut Random) -> Plan {
        let heavy = seed % 16 == 15;
        let steps = if heavy { 1_000 } else { 1_500 + random.below(2_500) };
        let ping_interval_ms = *random.pick(&[200, 1_000, 5_000, 25_000]);
        let outbox_bytes_max = if heavy { 2_000_000 } else { *random.pick(&[150, 600, 3_000, 20_000]) };
        let settings = Settings {
            connections_reserved: 8,
            paths: Paths { echo: random.chance(70), ..Paths::default() },
            socketio: Arc::default(),
            linger_ms: if random.chance(50) { 0 } else { 1 + random.below(20) as u32 },
            accepts_per_second_max: *random.pick(&[0, 0, 0, 5, 100]),
            handshake_timeout_ms: *random.pick(&[500, 10_000]),
            head_bytes_max: *random.pick(&[600, 8192]),
            refuse_with_close: random.chance(30),
            message_bytes_max: if heavy { 1 << 20 } else { *random.pick(&[700, 4_000, 70_000]) },
            frames_per_message_max: *random.pick(&[3, 8, 4_096]),
            // Clients leave messages unfinished when they fall silent, and then end for that.
            message_timeout_ms: 1 << 30,
            messages_per_frame_max: *random.pick(&[2, 1_024]),
            messages_per_second_max: *random.pick(&[0, 0, 0, 20, 200]),
            messages_burst_max: *random.pick(&[5, 40]),
            rooms_per_connection_max: *random.pick(&[2, 4, 1_024]),
            room_name_bytes_max: *random.pick(&[40, 200]),
            // Whom a full pool hits depends on how the pool grows; the fuzzer tries small ones.
            receive_bytes_max: 256 << 20,
            ping_interval_ms,
            ping_timeout_ms: *random.pick(&[150, 800, 20_000]),
            outbox_bytes_max,
            outbox_total_bytes_max: *random.pick(&[1 << 30, 1 << 30, 2 * outbox_bytes_max, outbox_bytes_max]),
            outbox_policy: if random.chance(50) { OutboxPolicy::Disconnect } else { OutboxPolicy::Drop },
        };
        let connections_max = *random.pick(&[1_000, 1_000, 12]);
        let per_ip_max = random.chance(25).then(|| 2 + random.below(4) as u32);
        let rules = Rules {
            connections_max,
            sockets_max: connections_max + 4,
            per_ip_max,
            sockets_per_ip_max: per_ip_max.map(|max| max + 1),
            origins: if random.chance(30) { vec!["https://*.good.example".to_owned()] } else { Vec::new() },
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
            rooms: if heavy { &ROOMS[..1] } else { &ROOMS },
            scratch_bytes: if heavy { 4 << 20 } else { *random.pick(&[24, 200, 2_048, 65_536]) },
            steps,
            turns_percent: if heavy { 5 } else { *random.pick(&[12, 25, 40]) },
            refusals_percent: *random.pick(&[0, 2, 10]),
            clients_max: if heavy { 6 } else { 2 + random.below(23) as usize },
            heavy,
            stops_early: seed % 8 == 5,
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
        let plan = Plan::draw(seed, &mut random);
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
            ..self.report
        }
    }

    /// One thing happens.
    fn step(&mut self) {
        if self.random.chance(self.plan.turns_percent) {
            let shard = self.random.up_to(self.plan.shards - 1);
            return self.turn(shard);
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
        self.note(|| {
            format!("{number} connects to shard {shard}: {:?}, takes {capacity} bytes", client.temper)
        });
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
        });
        self.model.peers.push(Peer::new(shard, ip, self.plan.settings.outbox_policy));
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
            || self.seats.iter().any(|seat| seat.shard.has_mail());
        if is_busy {
            ahead_ns = ahead_ns.min(1_000_000);
        }
        // Those who behave are quick: they have read and answered before time passes.
        for client in 0..self.clients.len() {
            if self.clients[client].temper == Temper::Well && (ahead_ns > 5_000_000 || self.random.chance(30))
            {
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
        self.model.begin_turn(shard, now);
        self.read_all(shard);
        self.deliver_all(shard);
        self.seats[shard].shard.advance(now);
        self.model.advance(shard, now, &self.clients, &self.links);
        self.accept_all(shard);
        if self.seats[shard].shard.is_spent() {
            self.model.end_linger(shard);
        }
        let bells = self.seats[shard].shard.take_bells();
        let expected = std::mem::take(&mut self.model.bells);
        assert!(bells.iter().map(usize::from).eq(expected), "the bells of shard {shard} are not those due");
        self.bus.ring(bells);
        self.flush(shard);
        let seat = &self.seats[shard].shard;
        self.model.end_flush(shard, now, |slot| seat.is_due(slot));
        for number in 0..self.links.len() {
            // What has not been asked for is not in its outbox yet.
            if self.links[number].shard == shard && self.model.peers[number].due != Due::Now {
                self.look_at_outbox(shard, number, false);
            }
        }
        self.see_off(shard);
        self.now = now.plus_ns(self.random.below(200_000));
        let seat = &mut self.seats[shard];
        let ahead_ms = seat.shard.end_turn(self.now);
        seat.deadline = ahead_ms.map(|ms| self.now.plus_ms(u64::from(ms)));
        seat.stopped = seat.shard.is_drained();
        seat.asleep =
            !seat.shard.has_unflushed() && !seat.shard.has_mail() && self.bus.mailbox(id).fall_asleep();
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
        let (link, seat) = (&mut self.links[number], &mut self.seats[shard]);
        let slot = link.slot.expect("accepted");
        link.unread = false;
        let count = link.to_server.len().min(self.plan.scratch_bytes);
        if link.reset || (count == 0 && link.client_ended) {
            seat.shard.hang_up(slot);
            self.model.hang_up(number);
        } else if count > 0 {
            let mut scratch = take_front(&mut link.to_server, count);
            link.unread = count == self.plan.scratch_bytes || link.client_ended;
            link.handed += count as u64;
            let handed = link.handed;
            let before = seat.shard.mail_taken();
            seat.shard.receive(slot, &mut scratch, self.now);
            // Before somebody joins or leaves, the shard takes its mail.
            self.model.takes = seat.shard.mail_taken() - before;
            self.model.heard(number, self.now);
            let client = &mut self.clients[number];
            while let Some(item) = client.items.pop_front_if(|item| item.trigger <= handed) {
                client.carried_out = item.trigger;
                if self.loud {
                    eprintln!("    {number} has said {}", brief(&item.effect));
                }
                self.model.apply(number, &item.effect, self.now);
            }
            self.report.cuts += u64::from(handed > client.carried_out && self.model.peers[number].is_live());
        }
    }

    fn deliver_all(&mut self, shard: usize) {
        self.report.late_mail += u64::from(self.model.mail[shard].len() > 1);
        let seat = &mut self.seats[shard].shard;
        let before = seat.mail_taken();
        seat.deliver(self.now);
        assert!(!seat.has_mail() || seat.is_full(), "mail is left though there is room");
        self.report.full_turns += u64::from(seat.has_mail());
        self.model.takes += seat.mail_taken() - before;
        self.model.deliver(shard, self.now);
        assert_eq!(self.model.takes, 0, "shard {shard} has taken mail that there was not");
        assert_eq!(self.model.mail[shard].is_empty(), !seat.has_mail(), "mail of shard {shard}");
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
        while !self.seats[shard].backlog.is_empty() {
            let seat = &mut self.seats[shard];
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
            let peer = &self.model.peers[number];
            assert_eq!(peer.due, Due::Now, "{number} is written to too early: {:?}", peer.expected);
            loop {
                self.look_at_outbox(shard, number, true);
                let link = &self.links[number];
                // Now and then the kernel has no memory for a moment, whatever space there is.
                let is_refused = self.clients[number].temper != Temper::Well
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
                    self.seats[shard].shard.hang_up(slot);
                    self.model.hang_up(number);
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

    /// Decodes what waits for a connection that was refused something, and lets the model compare. With `is_due`, nothing of it
    /// lingers any more.
    fn look_at_outbox(&mut self, shard: usize, number: usize, is_due: bool) {
        let (peer, link) = (&self.model.peers[number], &self.links[number]);
        let Some(slot) = link.slot.filter(|_| peer.refused && !link.reset) else { return };
        let mut bytes = link.tap.clone();
        match self.seats[shard].shard.gather(slot) {
            Gathered::Nothing => {}
            Gathered::One(more) => bytes.extend_from_slice(more),
            Gathered::Many(slices) => slices.iter().for_each(|slice| bytes.extend_from_slice(slice)),
        }
        if bytes.is_empty() && peer.expected.is_empty() && !link.is_blocked && !peer.abandoned {
            // All that waited was left out, and it is not told of that.
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
        self.model.compare(number, waiting, is_whole, is_due, self.now);
        let peer = &mut self.model.peers[number];
        peer.kept_bytes = kept_bytes;
        let is_same = is_whole && peer.expected.len() == count;
        peer.compared = is_same.then_some((count, bytes.len()));
    }

    /// The server's bytes enter the socket, where they are decoded at once, whenever the client will read them.
    fn write(&mut self, number: usize, bytes: &[u8]) {
        let link = &mut self.links[number];
        link.to_client.extend(bytes);
        link.written += bytes.len() as u64;
        link.tap.extend_from_slice(bytes);
        let mut hasher = DefaultHasher::new();
        (self.report.trace, number, self.now.ns(), bytes).hash(&mut hasher);
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
                _ => {}
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
                    self.links[number].server_ended = true;
                    self.model.end_stream(number);
                    if self.links[number].reset {
                        self.seats[shard].shard.hang_up(slot);
                        self.model.hang_up(number);
                    }
                }
                Farewell::HandOver { .. } => unreachable!("no client asks for a session"),
                Farewell::Close(slot) => {
                    let number =
                        self.seats[shard].sockets[slot as usize].take().expect("a socket is closed once");
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
                    && (seat.shard.is_draining() || self.model.may_accept(shard, self.now))))
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

    // ---------------------------------------------------------------------------------------------- what must be true

    /// What must be true after a turn that began at `began`.
    fn check_turn(&mut self, shard: usize, began: Time) {
        let seat = &self.seats[shard];
        let peers = || live(&self.model.peers, shard);
        let linger_ns = u64::from(self.plan.settings.linger_ms) * 1_000_000;
        let mut timer_due = None;
        let mut is_due = false;
        let mut kept_bytes = 0;
        for (number, peer) in peers() {
            assert!(!peer.doomed && !peer.abandoned, "{number} was to be closed in this turn");
            assert!(
                !(peer.is_finishing() && peer.expected.is_empty()),
                "{number} has been told everything and was to be seen off"
            );
            timer_due = timer_due.into_iter().chain([peer.due_ms]).min();
            // What follows the end of a WebSocket is taken whatever the bound, as is the rest of a frame that was cut.
            if peer.refused && (peer.is_upgraded() || peer.stage == Stage::Http) {
                kept_bytes += peer.kept_bytes;
                assert!(
                    peer.kept_bytes <= self.plan.settings.outbox_bytes_max + MUST_FOLLOW_BYTES,
                    "{} bytes wait in the outbox of {number}",
                    peer.kept_bytes
                );
            }
            // Who was not asked in this turn is asked in the next.
            let is_put_off = peer.due == Due::Now && seat.shard.has_unflushed();
            if !peer.refused && !is_put_off {
                for expected in &peer.expected {
                    let linger_end = expected.given.plus_ns(linger_ns);
                    let lingers = peer.due == Due::Later && matches!(expected.said, Said::Event(_));
                    assert!(lingers && began < linger_end, "{number} was to be told by now: {expected:?}");
                    is_due |= linger_end <= self.now;
                    let wake = seat.deadline.expect("something waits for the end of a linger");
                    assert!(
                        wake <= linger_end.max(self.now).plus_ms(1),
                        "shard {shard} would sleep until {wake:?}, after {linger_end:?}"
                    );
                }
            }
        }
        let wake_ms = seat.deadline.map(Time::ms);
        assert!(
            timer_due.is_none_or(|due| wake_ms.is_some_and(|wake| wake <= due.max(self.now.ms()))),
            "shard {shard} would sleep until {wake_ms:?}, beyond its next timer at {timer_due:?}"
        );
        // Once is fine when timers were set: they may have to be sorted.
        let wants_more = seat.deadline == Some(self.now) && self.now.ms() == began.ms() && !is_due;
        let timers = peers().map(|(_, peer)| peer.due_ms).sum();
        let seat = &mut self.seats[shard];
        let is_idle = wants_more && std::mem::replace(&mut seat.timers, timers) == timers;
        seat.empty_turns = if is_idle { seat.empty_turns + 1 } else { 0 };
        assert!(seat.empty_turns < 3, "shard {shard} wants turn after turn for nothing");
        let seat = &self.seats[shard];
        let peers = || live(&self.model.peers, shard);

        let holdings = seat.shard.holdings();
        let numbers = &self.stats.shards[shard];
        let rooms: BTreeSet<&String> = peers().flat_map(|(_, peer)| &peer.rooms).collect();
        assert_eq!(holdings.conns, peers().count(), "connections of shard {shard}");
        assert_eq!(
            holdings.memberships,
            peers().map(|(_, peer)| peer.rooms.len()).sum::<usize>(),
            "memberships"
        );
        assert_eq!(holdings.rooms, rooms.len(), "rooms of shard {shard}");
        assert_eq!(holdings.timers, holdings.conns, "each connection of shard {shard} has a timer");
        assert!(holdings.leases <= holdings.conns, "leases of shard {shard}");
        assert!(
            kept_bytes <= self.plan.settings.outbox_total_bytes_max + MUST_FOLLOW_BYTES * holdings.conns,
            "{kept_bytes} bytes wait in the outboxes of shard {shard}"
        );
        assert_eq!(numbers.sockets.value(), holdings.conns as u64);
        assert_eq!(
            numbers.connections.value(),
            peers().filter(|(_, peer)| peer.is_upgraded()).count() as u64
        );
        assert_eq!(numbers.memberships.value(), holdings.memberships as u64);
        assert_eq!(numbers.rooms.value(), holdings.rooms as u64);
        assert_eq!(numbers.receive_bytes.value(), holdings.leased_bytes as u64);
        assert_eq!(self.bus.rooms(), self.model.rooms.len(), "rooms in the directory");
        assert_eq!(self.gate.open(), self.model.open, "open connections at the gate");
        for (other, seat) in self.seats.iter().enumerate() {
            let has_mail = !self.model.mail[other].is_empty();
            assert!(
                !(seat.asleep && has_mail) || seat.rung.load(Ordering::Relaxed),
                "shard {other} sleeps over its mail"
            );
        }
    }

    /// At rest, nobody who reads is owed anything.
    fn check_everybody_was_told(&self) {
        for (number, peer) in self.model.peers.iter().enumerate() {
            let client = &self.clients[number];
            if client.reads && peer.is_live() {
                assert!(peer.expected.is_empty(), "{number} has not been told {:?}", peer.expected);
                assert!(!peer.is_told_losses() || peer.lost == 0, "{number} has not been told of its losses");
                assert!(peer.owed.is_empty(), "{number} has not got the events {:?}", peer.owed);
            }
        }
    }

    /// When everybody has left, nothing is held and all has been counted.
    fn check_empty(&self) {
        for (number, link) in self.links.iter().enumerate() {
            assert!(link.closed, "{number} is still there");
        }
        for (shard, seat) in self.seats.iter().enumerate() {
            assert_eq!(seat.shard.holdings(), Holdings::default(), "shard {shard} holds something");
            let ShardStats { connections, sockets, memberships, rooms, outbox_bytes, receive_bytes, .. } =
                &self.stats.shards[shard];
            for gauge in [connections, sockets, memberships, rooms, outbox_bytes, receive_bytes] {
                assert_eq!(gauge.value(), 0, "a gauge of shard {shard}");
            }
            assert_eq!(seat.stopped, self.plan.drain.is_some(), "whether shard {shard} has been drained");
        }
        assert_eq!((self.bus.rooms(), self.gate.open()), (0, 0), "rooms and open connections");
        assert!(self.gate.has_place());
        let counts = &self.model.counts;
        let sum = |number: fn(&ShardStats) -> u64| self.stats.sum(number);
        assert_eq!(sum(|shard| shard.accepts.value()), counts.accepts, "accepts");
        assert_eq!(sum(|shard| shard.upgrades.value()), counts.upgrades, "upgrades");
        assert_eq!(sum(|shard| shard.requests.value()), counts.requests, "requests");
        assert_eq!(sum(|shard| shard.messages_in.value()), counts.messages_in, "messages in");
        assert_eq!(sum(|shard| shard.publications.value()), counts.publications, "publications");
        assert_eq!(sum(|shard| shard.deliveries.value()), counts.deliveries, "deliveries");
        assert_eq!(sum(|shard| shard.errors.value()), counts.errors, "errors");
        assert_eq!(sum(|shard| shard.rate_limited.value()), counts.rate_limited, "rate limited");
        assert_eq!(sum(|shard| shard.pings.value()), counts.pings, "pings");
        assert_eq!(
            sum(|shard| shard.bytes_in.value()),
            self.links.iter().map(|link| link.handed).sum::<u64>(),
            "bytes in"
        );
        assert_eq!(
            sum(|shard| shard.bytes_out.value()),
            self.links.iter().map(|link| link.written).sum::<u64>(),
            "bytes out"
        );
        assert!(sum(|shard| shard.drops.value()) >= counts.lost, "drops");
        for (index, label) in Ending::LABELS.iter().enumerate() {
            let ended = self.stats.sum(|shard| shard.endings[index].value());
            assert_eq!(ended, counts.endings[index], "connections that ended: {label}");
        }
        for (index, label) in Reject::LABELS.iter().enumerate() {
            let rejected = self.stats.sum(|shard| shard.rejects[index].value());
            assert_eq!(rejected, counts.rejects[index], "requests refused: {label}");
        }
        assert_eq!(counts.endings.iter().sum::<u64>(), counts.upgrades, "who came has left");
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.loud {
            eprintln!("{:>6} {}", self.report.turns, what());
        }
    }
}

// --------------------------------------------------------------------------------------------------------- the clients

/// What a client will do sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    /// Reads and answers, and takes as much as comes.
    Well,
    /// Stops reading for a while, and goes on.
    Slow,
    /// Stops reading for good.
    Stalled,
    /// Stops answering.
    Silent,
    /// Breaks the rules.
    Hostile,
    /// Leaves, with or without a word.
    Fickle,
}

/// One client, for one connection.
#[derive(Debug)]
struct Client {
    temper: Temper,
    reads: bool,
    answers: bool,
    /// True when it has said its last word.
    sealed: bool,
    /// True when its stream ends after what it has queued.
    ends: bool,
    /// True when it waits for the upgrade to be granted before it goes on.
    waits: bool,
    /// What it believes to speak.
    speaks: Option<Dialect>,
    /// What it has composed and not sent.
    outgoing: VecDeque<u8>,
    /// Bytes composed so far.
    composed: u64,
    items: VecDeque<Item>,
    /// The trigger of the last item that was handed to the shard.
    carried_out: u64,
    last_id: u64,
}

/// Something that a client says, and where in its stream the server must have understood it.
#[derive(Debug)]
struct Item {
    trigger: u64,
    effect: Effect,
}

/// What it means.
#[derive(Debug)]
enum Effect {
    Request(Request),
    /// A text frame of native messages.
    Text(Vec<Command>),
    /// A text frame that cannot be split into messages.
    Unsplit(&'static str),
    Binary(Command),
    /// A message on `/echo`.
    Echo {
        binary: bool,
        payload: Vec<u8>,
    },
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    /// What the protocol forbids, with the code it is answered with.
    Violation(u16),
}

/// A request head.
#[derive(Debug)]
struct Request {
    asks: Asks,
    keep_alive: bool,
    head_only: bool,
}

#[derive(Clone, Copy, Debug)]
enum Asks {
    Health,
    Ready,
    /// For something that is refused so, for this reason.
    Refused(u16, &'static str),
    Upgrade {
        dialect: Dialect,
        subprotocol: bool,
        origin: Option<&'static str>,
    },
}

/// A native message.
#[derive(Debug)]
enum Command {
    Join {
        rooms: Vec<String>,
        id: Option<String>,
    },
    Leave {
        rooms: Vec<String>,
        id: Option<String>,
    },
    Publish {
        event: Rc<Event>,
        echo: bool,
        id: Option<String>,
    },
    Ping {
        id: Option<String>,
    },
    /// One that is answered with this error.
    Wrong {
        code: &'static str,
        id: Option<String>,
    },
}

/// An event. Its name is used once.
#[derive(PartialEq, Eq)]
struct Event {
    room: String,
    name: String,
    payload: Vec<u8>,
    binary: bool,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {:?} with {} bytes", self.name, self.room, self.payload.len())
    }
}

/// The example of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

impl Client {
    fn draw(random: &mut Random) -> Client {
        let temper = match random.below(100) {
            0..45 => Temper::Well,
            45..60 => Temper::Slow,
            60..67 => Temper::Stalled,
            67..75 => Temper::Silent,
            75..88 => Temper::Hostile,
            _ => Temper::Fickle,
        };
        Client {
            temper,
            reads: true,
            answers: true,
            sealed: false,
            ends: false,
            waits: random.chance(50),
            speaks: None,
            outgoing: VecDeque::new(),
            composed: 0,
            items: VecDeque::new(),
            carried_out: 0,
            last_id: 0,
        }
    }

    /// Queues bytes that mean nothing yet.
    fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        self.composed += bytes.len() as u64;
    }

    /// Queues the bytes that complete something.
    fn say(&mut self, bytes: &[u8], effect: Effect) {
        self.queue(bytes);
        self.items.push_back(Item { trigger: self.composed, effect });
    }
}

impl World {
    /// Moves at most `count` bytes of what a client has composed into the socket. True when something moved.
    fn transmit_up_to(&mut self, number: usize, count: usize) -> bool {
        let (client, link) = (&mut self.clients[number], &mut self.links[number]);
        if link.closed || link.reset || link.client_ended {
            return false;
        }
        let count = client.outgoing.len().min(count);
        link.to_server.extend(&take_front(&mut client.outgoing, count));
        link.client_ended = client.ends && client.outgoing.is_empty();
        link.readable |= count > 0 || link.client_ended;
        count > 0 || link.client_ended
    }

    fn transmit_some(&mut self, number: usize) {
        let queued = self.clients[number].outgoing.len();
        let count = match self.random.below(4) {
            _ if self.plan.heavy => queued,
            0 | 1 => queued,
            2 => self.random.up_to(queued),
            _ => self.random.up_to(queued.min(12)),
        };
        self.transmit_up_to(number, count);
    }

    /// A client reads, and reacts to what it has read. True when it did either.
    fn read_up_to(&mut self, number: usize, count: usize) -> bool {
        let link = &mut self.links[number];
        if link.reset {
            return false;
        }
        let count = link.to_client.len().min(count);
        link.to_client.drain(..count);
        link.read += count as u64;
        if link.wants_space && count > 0 && link.capacity - link.to_client.len() > link.capacity / 3 {
            link.wants_space = false;
            link.writable = true;
        }
        let mut is_busy = count > 0;
        let read = link.read;
        while let Some((_, reaction)) = self.links[number].reactions.pop_front_if(|(end, _)| *end <= read) {
            is_busy = true;
            self.react(number, reaction);
        }
        let (client, link) = (&mut self.clients[number], &self.links[number]);
        if link.server_ended && link.to_client.is_empty() && client.answers && !client.ends {
            client.ends = true;
            client.sealed = true;
            is_busy = true;
        }
        is_busy
    }

    fn read_some(&mut self, number: usize) {
        if !self.clients[number].reads {
            return;
        }
        let there = self.links[number].to_client.len();
        let count = match self.clients[number].temper {
            Temper::Well => there,
            _ if self.random.chance(40) => there,
            _ => self.random.up_to(there),
        };
        self.read_up_to(number, count);
    }

    fn react(&mut self, number: usize, reaction: Reaction) {
        match reaction {
            Reaction::Speak => self.clients[number].waits = false,
            Reaction::Pong(payload) if self.clients[number].answers && !self.clients[number].ends => {
                let frame = self.frame(true, 10, &payload);
                if !self.clients[number].sealed {
                    self.clients[number].say(&frame, Effect::Pong);
                }
            }
            Reaction::Close(code) if self.clients[number].answers && !self.clients[number].sealed => {
                self.say_close_with(number, code);
            }
            _ => {}
        }
    }

    /// Something drastic, as the temper of the client has it.
    fn upset(&mut self, number: usize) {
        if self.clients[number].sealed {
            return;
        }
        self.note(|| format!("{number} does what its temper has it do"));
        match self.clients[number].temper {
            Temper::Well => {
                if self.random.chance(20) {
                    self.say_close(number);
                }
            }
            Temper::Slow => self.clients[number].reads ^= true,
            Temper::Stalled => self.clients[number].reads = false,
            Temper::Silent => {
                self.clients[number].answers = false;
                self.clients[number].sealed = true;
            }
            Temper::Hostile => self.break_a_rule(number),
            Temper::Fickle => match self.random.below(4) {
                0 => self.say_close(number),
                1 => self.end_stream(number),
                2 => {
                    // In the middle of something.
                    self.compose(number);
                    let count = self.random.up_to(self.clients[number].outgoing.len());
                    self.clients[number].outgoing.truncate(count);
                    self.end_stream(number);
                }
                _ => self.vanish(number),
            },
        }
    }

    fn say_close(&mut self, number: usize) {
        let code = *self.random.pick(&[None, Some(1000), Some(1001), Some(3000), Some(4999)]);
        self.say_close_with(number, code);
    }

    fn say_close_with(&mut self, number: usize, code: Option<u16>) {
        if self.clients[number].speaks.is_none() || self.clients[number].sealed {
            return self.end_stream(number);
        }
        let mut payload = code.map_or(Vec::new(), |code| code.to_be_bytes().to_vec());
        if code.is_some() && self.random.chance(50) {
            payload.extend_from_slice("tschüß".as_bytes());
        }
        let frame = self.frame(true, 8, &payload);
        self.clients[number].say(&frame, Effect::Close(code));
        self.clients[number].sealed = true;
    }

    fn end_stream(&mut self, number: usize) {
        self.clients[number].ends = true;
        self.clients[number].sealed = true;
    }

    fn vanish(&mut self, number: usize) {
        let link = &mut self.links[number];
        link.reset = true;
        (link.readable, link.writable) = (true, true);
        self.clients[number].sealed = true;
        self.note(|| format!("{number} vanishes"));
    }

    /// A frame of a client, by another implementation than ours.
    fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        // What is large is not masked, to save time.
        let mask = if payload.len() > 100_000 { [0; 4] } else { (self.random.next() as u32).to_le_bytes() };
        let mut bytes = header(fin, opcode, Some(mask), payload.len() as u64);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        if mask != [0; 4] {
            bytes[start..].iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
        }
        bytes
    }

    /// The client composes what comes next.
    fn compose(&mut self, number: usize) {
        let client = &self.clients[number];
        // One who is not heard does not talk for ever.
        if client.sealed || client.outgoing.len() > if self.plan.heavy { 4_000_000 } else { 100_000 } {
            return;
        }
        match client.speaks {
            None => self.compose_request(number),
            Some(_) if client.waits => {}
            Some(Dialect::Native) => self.compose_native(number),
            Some(Dialect::Echo) => self.compose_echo(number),
            Some(Dialect::SocketIo | Dialect::EngineIo) => unreachable!("no client speaks it"),
        }
    }

    fn compose_request(&mut self, number: usize) {
        let echo = self.plan.settings.paths.echo;
        let sep = *self.random.pick(&["", "X-Filler: \t some text \r\n", "User-Agent: \u{e9}\r\n"]);
        let upgrade =
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        if self.random.chance(80) {
            let (path, dialect) = match self.random.below(5) {
                0 if echo => ("/echo", Dialect::Echo),
                1 => ("/ws?token=x&y=/echo", Dialect::Native),
                _ => ("/ws", Dialect::Native),
            };
            let subprotocol = self.random.chance(30);
            let origin = *self.random.pick(&[
                None,
                None,
                Some("https://a.good.example"),
                Some("https://evil.example"),
            ]);
            let page = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
            let offer = if subprotocol { "Sec-WebSocket-Protocol: other, throng.v1\r\n" } else { "" };
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: sim\r\n{sep}{upgrade}{page}{offer}Sec-WebSocket-Key: {KEY}\r\n\r\n"
            );
            let asks = Asks::Upgrade { dialect, subprotocol, origin };
            let request = Request { asks, keep_alive: true, head_only: false };
            self.clients[number].say(head.as_bytes(), Effect::Request(request));
            self.clients[number].speaks = Some(dialect);
            return;
        }
        let wrong_version = upgrade.replace("13", "8");
        let (start, lines, asks, keep_alive) = match self.random.below(14) {
            0 | 1 => ("GET /health HTTP/1.1", "", Asks::Health, true),
            2 => ("HEAD /health HTTP/1.1", "", Asks::Health, true),
            3 => ("GET /ready HTTP/1.1", "", Asks::Ready, true),
            4 => ("GET /nothing HTTP/1.1", "", Asks::Refused(404, "not_found"), true),
            5 => ("GET /ws HTTP/1.1", "", Asks::Refused(426, "upgrade_required"), true),
            6 => ("HEAD /ws HTTP/1.1", upgrade, Asks::Refused(400, "malformed"), true),
            7 => ("GET /ws HTTP/1.1", wrong_version.as_str(), Asks::Refused(426, "version"), true),
            8 => ("DELETE /health HTTP/1.1", "", Asks::Refused(405, "method"), true),
            9 if !echo => ("GET /echo HTTP/1.1", upgrade, Asks::Refused(404, "not_found"), true),
            10 => ("GET /health HTTP/1.1", "Connection: close\r\n", Asks::Health, false),
            11 => ("POST /ws HTTP/1.1", "Content-Length: 3\r\n", Asks::Refused(405, "method"), false),
            12 => ("GET /health HTTP/1.1", "Host: two\r\n", Asks::Refused(400, "malformed"), false),
            _ => ("GET /health HTTP/1.0", "", Asks::Health, false),
        };
        let head_only = start.starts_with("HEAD");
        let head = format!("{start}\r\nHost: sim\r\n{sep}{lines}\r\n");
        let client = &mut self.clients[number];
        client.say(head.as_bytes(), Effect::Request(Request { asks, keep_alive, head_only }));
        if !keep_alive {
            client.queue(b"abc");
            client.sealed = true;
        }
    }

    fn compose_echo(&mut self, number: usize) {
        if self.random.chance(20) {
            return self.compose_control(number);
        }
        let binary = self.random.chance(50);
        let length = self.payload_length();
        let payload = if binary { self.bytes(length) } else { self.text(length.min(3_000)).into_bytes() };
        let effect = Effect::Echo { binary, payload: payload.clone() };
        self.say_message(number, if binary { 2 } else { 1 }, &payload, effect);
    }

    fn compose_control(&mut self, number: usize) {
        let length = *self.random.pick(&[0, 1, 125]);
        let payload = self.bytes(length);
        if self.random.chance(60) {
            let frame = self.frame(true, 9, &payload);
            self.clients[number].say(&frame, Effect::Ping(payload));
        } else {
            let frame = self.frame(true, 10, &payload);
            self.clients[number].say(&frame, Effect::Pong);
        }
    }

    fn compose_native(&mut self, number: usize) {
        // Most begin with a room or two.
        let kind = match self.clients[number].last_id {
            0 => 99,
            _ if self.plan.heavy => self.random.below(40),
            _ => self.random.below(100),
        };
        match kind {
            0..8 => self.compose_control(number),
            8..24 => self.compose_binary(number),
            24..34 => {
                let count = self.random.up_to(4);
                let (messages, commands): (Vec<String>, Vec<Command>) =
                    (0..count).map(|_| self.command(number)).unzip();
                let text = format!("[{}]", messages.join(" ,\n"));
                let effect = if count > self.plan.settings.messages_per_frame_max {
                    Effect::Unsplit("too_many_messages")
                } else {
                    Effect::Text(commands)
                };
                self.say_message(number, 1, text.as_bytes(), effect);
            }
            34 if self.plan.settings.message_bytes_max > 50_000 => self.compose_burst(number),
            34..36 => {
                let text = *self.random.pick(&[r#"[{"type":"ping","id":1},"#, "[}", "[1 2]"]);
                self.say_message(number, 1, text.as_bytes(), Effect::Unsplit("bad_json"));
            }
            36..38 => {
                let text = *self.random.pick(&["", "{", "{\"type\":\"ping\"} x", "ping", "{'a':1}"]);
                let command = Command::Wrong { code: "bad_json", id: None };
                self.say_message(number, 1, text.as_bytes(), Effect::Text(vec![command]));
            }
            _ => {
                let (text, command) = self.command(number);
                self.say_message(number, 1, text.as_bytes(), Effect::Text(vec![command]));
            }
        }
    }

    /// Many small events at once, to one room and another in turn.
    fn compose_burst(&mut self, number: usize) {
        let count = self.random.up_to(300);
        let (messages, commands): (Vec<String>, Vec<Command>) = (0..count)
            .map(|_| {
                let event = self.event(b"null".to_vec(), false);
                let fields = self.publish_fields(&event, false);
                (self.object(fields.into_iter()), Command::Publish { event, echo: false, id: None })
            })
            .unzip();
        let effect = if count > self.plan.settings.messages_per_frame_max {
            Effect::Unsplit("too_many_messages")
        } else {
            Effect::Text(commands)
        };
        self.say_message(number, 1, format!("[{}]", messages.join(",")).as_bytes(), effect);
    }

    /// A native message, as text and as what it means.
    fn command(&mut self, number: usize) -> (String, Command) {
        let id = self.id(number);
        let id_field = || id.iter().map(|id| format!(r#""id":{id}"#));
        let kind = if self.clients[number].last_id == 1 { 0 } else { self.random.below(100) };
        match kind {
            0..14 => {
                let rooms = self.rooms();
                let fields = [r#""type":"join""#.to_owned(), format!(r#""rooms":{}"#, quoted(&rooms))];
                (self.object(fields.into_iter().chain(id_field())), Command::Join { rooms, id })
            }
            14..20 => {
                let rooms = self.rooms();
                let fields = [r#""type":"leave""#.to_owned(), format!(r#""rooms":{}"#, quoted(&rooms))];
                (self.object(fields.into_iter().chain(id_field())), Command::Leave { rooms, id })
            }
            20..25 => {
                let fields = [r#""type":"ping""#.to_owned()];
                (self.object(fields.into_iter().chain(id_field())), Command::Ping { id })
            }
            25..31 => self.wrong_command(id),
            _ => {
                let (data, echo) = (self.data(), self.random.chance(30));
                let event = self.event(data.clone().unwrap_or("null".to_owned()).into_bytes(), false);
                let data = data.map(|data| format!(r#""data":{data}"#));
                let fields = self.publish_fields(&event, echo).into_iter().chain(data).chain(id_field());
                (self.object(fields), Command::Publish { event, echo, id })
            }
        }
    }

    fn wrong_command(&mut self, id: Option<String>) -> (String, Command) {
        let long_room = format!(r#""room":"{}""#, "x".repeat(self.plan.settings.room_name_bytes_max + 1));
        let deep_data = format!(r#""data":{}{}"#, "[".repeat(121), "]".repeat(121));
        let wrong: [(&'static str, &[&str]); 12] = [
            ("bad_message", &[r#""type":"join""#, r#""rooms":"a""#]),
            ("bad_message", &[r#""type":"leave""#]),
            ("bad_message", &[r#""type":"publish""#, r#""room":"a""#]),
            ("bad_message", &[r#""type":["join"]"#]),
            ("bad_message", &[r#""rooms":["a"]"#]),
            ("unknown_type", &[r#""type":"dance""#]),
            ("bad_room", &[r#""type":"join""#, r#""rooms":["a",""]"#]),
            ("bad_room", &[r#""type":"leave""#, r#""rooms":["\u0007"]"#]),
            ("bad_room", &[r#""type":"publish""#, &long_room, r#""event":"e""#]),
            ("bad_event", &[r#""type":"publish""#, r#""room":"a""#, r#""event":"""#]),
            ("bad_message", &[r#""type":"publish""#, r#""room":"a""#, r#""event":"e""#, r#""echo":1"#]),
            ("bad_json", &[r#""type":"publish""#, r#""room":"a""#, r#""event":"e""#, &deep_data]),
        ];
        let (code, fields) = *self.random.pick(&wrong);
        let id_field = id.iter().map(|id| format!(r#""id":{id}"#));
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).chain(id_field).collect();
        (self.object(fields.into_iter()), Command::Wrong { code, id })
    }

    fn compose_binary(&mut self, number: usize) {
        let id = self.id(number);
        let id_field = || id.iter().map(|id| format!(r#""id":{id}"#));
        let length = self.payload_length();
        let payload = self.bytes(length);
        let (mut frame, command) = if self.random.chance(80) {
            let echo = self.random.chance(30);
            let event = self.event(payload.clone(), true);
            let fields = self.publish_fields(&event, echo).into_iter().chain(id_field());
            (self.object(fields).into_bytes(), Command::Publish { event, echo, id })
        } else {
            let wrong: [&[&str]; 4] = [
                &[r#""type":"ping""#],
                &[r#""type":"publish""#, r#""room":"a""#, r#""event":"e""#, r#""data":1"#],
                &[r#""type":"publish""#, r#""room":7"#, r#""event":"e""#],
                &[r#""type":"publish""#, r#""event":"e""#],
            ];
            let fields = self.random.pick(&wrong).iter().map(|field| (*field).to_owned());
            let fields: Vec<String> = fields.chain(id_field()).collect();
            (self.object(fields.into_iter()).into_bytes(), Command::Wrong { code: "bad_message", id })
        };
        frame.push(b'\n');
        frame.extend_from_slice(&payload);
        self.say_message(number, 2, &frame, Effect::Binary(command));
    }

    /// Says a message in as many frames as it likes, with control frames between them. What is too large is not said.
    fn say_message(&mut self, number: usize, opcode: u8, payload: &[u8], effect: Effect) {
        if payload.len() > self.plan.settings.message_bytes_max {
            return;
        }
        let frames = if self.random.chance(70) {
            1
        } else {
            1 + self.random.up_to(3.min(self.plan.settings.frames_per_message_max as usize - 1))
        };
        let mut cuts: Vec<usize> = (1..frames).map(|_| self.random.up_to(payload.len())).collect();
        cuts.sort_unstable();
        let mut start = 0;
        for (at, cut) in cuts.into_iter().enumerate() {
            let frame = self.frame(false, if at == 0 { opcode } else { 0 }, &payload[start..cut]);
            self.clients[number].queue(&frame);
            start = cut;
            if self.random.chance(30) {
                self.compose_control(number);
            }
        }
        let frame = self.frame(true, if frames == 1 { opcode } else { 0 }, &payload[start..]);
        self.clients[number].say(&frame, effect);
    }

    fn break_a_rule(&mut self, number: usize) {
        if self.clients[number].speaks.is_none() {
            return self.break_a_rule_of_http(number);
        }
        let bytes_max = self.plan.settings.message_bytes_max as u64;
        let mask = Some([1, 2, 3, 4]);
        let close = |code: u16, reason: &[u8]| [&code.to_be_bytes(), reason].concat();
        let forbidden = *self.random.pick(&[999, 1005, 1006, 2999]);
        // First what the rule must be seen in, then what comes after.
        let (told, rest, code): (Vec<u8>, Vec<u8>, u16) = match self.random.below(17) {
            0 => (vec![0x80 | 0x40 | 1, 0x80], vec![0; 4], 1002),
            1 => (vec![0x83, 0x85], vec![0; 9], 1002),
            2 => (vec![0x81, 5], b"hello".to_vec(), 1002),
            3 => (vec![0x89, 0x80 | 126], vec![0; 6], 1002),
            4 => (vec![0x09, 0x80], vec![0; 4], 1002),
            5 => (header(true, 0, mask, 3), vec![0; 3], 1002),
            6 => {
                let begun = self.frame(false, 1, b"be");
                self.clients[number].queue(&begun);
                (header(true, 2, mask, 3), vec![0; 3], 1002)
            }
            7 => (vec![0x82, 0x80 | 126, 0, 125], vec![0; 4], 1002),
            8 => (vec![0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0], vec![0; 4], 1002),
            9 => (self.frame(true, 8, &[3]), Vec::new(), 1002),
            10 => (self.frame(true, 8, &close(forbidden, b"")), Vec::new(), 1002),
            11 => (self.frame(true, 8, &close(1000, &[0xff])), Vec::new(), 1007),
            12 => {
                // Seen at the byte, however much of the message is still to come.
                let mut frame = self.frame(true, 1, &[b"abc\xff", &[b'x'; 100][..]].concat());
                let rest = frame.split_off(frame.len() - 100);
                (frame, rest, 1007)
            }
            13 => (self.frame(true, 1, &"é".as_bytes()[..1]), Vec::new(), 1007),
            14 => (header(true, 2, mask, bytes_max + 1), vec![0; 40], 1009),
            15 => {
                let begun = self.frame(false, 2, &[7; 100]);
                self.clients[number].queue(&begun);
                (header(false, 0, mask, bytes_max - 99), vec![0; 40], 1009)
            }
            _ => {
                let frames_max = self.plan.settings.frames_per_message_max;
                if frames_max > 100 {
                    return;
                }
                for at in 0..frames_max {
                    let frame = self.frame(false, if at == 0 { 1 } else { 0 }, b"");
                    self.clients[number].queue(&frame);
                }
                (header(true, 0, mask, 0), Vec::new(), 1009)
            }
        };
        let client = &mut self.clients[number];
        client.say(&told, Effect::Violation(code));
        client.queue(&rest);
        client.sealed = true;
        let length = self.random.up_to(300);
        let garbage = self.bytes(length);
        self.clients[number].queue(&garbage);
    }

    fn break_a_rule_of_http(&mut self, number: usize) {
        let refused = |status, label| {
            Effect::Request(Request {
                asks: Asks::Refused(status, label),
                keep_alive: false,
                head_only: false,
            })
        };
        let client = &mut self.clients[number];
        match self.random.below(3) {
            0 => {
                client.say(b"\x16", refused(400, "malformed"));
                client.queue(b"\x03\x01\x02\x00\x01\x00\x01\xfc");
            }
            1 => client.say(b"GET /ws HTTP/1.1\r\nX: y\r\n\r\n", refused(400, "malformed")),
            _ => {
                let start = b"GET /ws HTTP/1.1\r\nHost: sim\r\nX: ";
                let filler = vec![b'x'; self.plan.settings.head_bytes_max - start.len()];
                client.say(&[&start[..], &filler].concat(), refused(431, "large_head"));
                client.queue(b"and so on");
            }
        }
        client.sealed = true;
    }

    // ------------------------------------------------------------------------------------------------- what they talk of

    fn id(&mut self, number: usize) -> Option<String> {
        let last = &mut self.clients[number].last_id;
        *last += 1;
        let id = *last;
        match self.random.below(10) {
            0..4 => None,
            4..8 => Some(id.to_string()),
            8 => Some(format!("{id}.50e1")),
            _ => Some(format!(r#""é\n {id}""#)),
        }
    }

    fn rooms(&mut self) -> Vec<String> {
        let count = *self.random.pick(&[1, 1, 1, 2, 3, 0]);
        (0..count).map(|_| (*self.random.pick(self.plan.rooms)).to_owned()).collect()
    }

    fn event(&mut self, payload: Vec<u8>, binary: bool) -> Rc<Event> {
        self.events += 1;
        let room = (*self.random.pick(self.plan.rooms)).to_owned();
        Rc::new(Event { room, name: format!("e{}", self.events), payload, binary })
    }

    fn publish_fields(&self, event: &Event, echo: bool) -> Vec<String> {
        let mut fields = vec![
            r#""type":"publish""#.to_owned(),
            format!(r#""room":{}"#, quoted(&event.room)),
            format!(r#""event":{}"#, quoted(&event.name)),
        ];
        if echo || event.payload.len().is_multiple_of(7) {
            fields.push(format!(r#""echo":{echo}"#));
        }
        fields
    }

    /// An object with these fields in any order, perhaps with one more that means nothing.
    fn object(&mut self, fields: impl Iterator<Item = String>) -> String {
        let mut fields: Vec<String> = fields.collect();
        if self.random.chance(20) {
            fields.push(r#""later":[{"type":"join"},null]"#.to_owned());
        }
        self.random.shuffle(&mut fields);
        let space = *self.random.pick(&["", "", " ", "\t "]);
        format!("{space}{{{space}{}{space}}}{space}", fields.join(&format!("{space},{space}")))
    }

    /// JSON that must come out as it went in.
    fn data(&mut self) -> Option<String> {
        match self.random.below(7) {
            0 => None,
            1 => Some("-12.50E+3".to_owned()),
            2 => Some(r#"{"a" : [1, 2.50 ,null],"é":"\u00e9\/"}"#.to_owned()),
            3 => Some(format!("{}{}", "[".repeat(120), "]".repeat(120))),
            _ => {
                let length = self.payload_length().min(3_000);
                Some(quoted(&self.text(length)))
            }
        }
    }

    fn payload_length(&mut self) -> usize {
        let bytes_max = self.plan.settings.message_bytes_max;
        if self.plan.heavy && self.random.chance(60) {
            return 500_000 + self.random.up_to(400_000);
        }
        match self.random.below(20) {
            0..12 => self.random.up_to(30),
            12..17 => self.random.up_to(300),
            _ => self.random.up_to((bytes_max / 2).min(3_000)),
        }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        if length > 100_000 {
            return vec![self.random.next() as u8; length];
        }
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.random.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Text of about `length` bytes.
    fn text(&mut self, length: usize) -> String {
        let mut text = String::new();
        while text.len() < length {
            text.push_str(self.random.pick::<&str>(&[
                "plain ",
                "é",
                "漢",
                "😀",
                "\"",
                "\\",
                "\n",
                "\u{7f}",
                "word word word ",
            ]));
        }
        text
    }
}

fn header(fin: bool, opcode: u8, mask: Option<[u8; 4]>, length: u64) -> Vec<u8> {
    let opcode = coding::OpCode::from(opcode);
    let header = FrameHeader { is_final: fin, rsv1: false, rsv2: false, rsv3: false, opcode, mask };
    let mut bytes = Vec::new();
    header.format(length, &mut bytes).expect("writing to memory does not fail");
    bytes
}

fn quoted(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("text can be written")
}

// ----------------------------------------------------------------------------------------------------------- the model

/// What the shards must do and hold, worked out in the plainest way from what the clients said.
#[derive(Debug)]
struct Model {
    settings: Settings,
    rules: Rules,
    rooms_max: usize,
    peers: Vec<Peer>,
    rooms: BTreeMap<String, Room>,
    /// By shard, what is in its mailbox or collected from it.
    mail: Vec<VecDeque<Letter>>,
    /// Shards that have to be rung at the end of this turn.
    bells: BTreeSet<usize>,
    /// By shard.
    accepts: Vec<Tokens>,
    drains: Vec<Option<Drain>>,
    /// By shard, when what lingers is due.
    linger_ends: Vec<Option<Time>>,
    /// True in a turn in which what lingered is due: then nothing begins to linger.
    linger_is_over: bool,
    /// By shard, one more than the highest slot that was ever used.
    slots: Vec<usize>,
    gate_draining: bool,
    /// Pieces of mail that the shard has taken, and the model has not followed yet.
    takes: u64,
    open: usize,
    sockets: usize,
    /// Rooms made, and publications taken, so far: numbers that are used once.
    incarnations: u64,
    sequence: u64,
    counts: Counts,
}

/// What the shards must have counted.
#[derive(Debug, Default)]
struct Counts {
    accepts: u64,
    upgrades: u64,
    requests: u64,
    rejects: [u64; Reject::LABELS.len()],
    endings: [u64; Ending::LABELS.len()],
    messages_in: u64,
    publications: u64,
    deliveries: u64,
    cross_shard: u64,
    errors: u64,
    rate_limited: u64,
    pings: u64,
    lost: u64,
}

#[derive(Debug)]
struct Room {
    /// Tells rooms apart that had the same name at different times.
    incarnation: u64,
    members: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Letter {
    Event { event: Rc<Event>, origin: Origin, echo: bool, incarnation: u64 },
    Drain { spread_ms: u32, timeout_ms: u32 },
}

/// Which publication an event comes from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    publisher: usize,
    sequence: u64,
}

#[derive(Clone, Copy, Debug)]
struct Drain {
    started: Time,
    spread_ms: u32,
    timeout_ms: u32,
    told: usize,
}

/// A connection as the server must see it.
#[derive(Debug)]
struct Peer {
    shard: usize,
    slot: Option<Slot>,
    ip: IpAddr,
    stage: Stage,
    /// True when its socket is to be closed at the end of this turn.
    doomed: bool,
    dialect: Option<Dialect>,
    /// True when the answer to the upgrade has been decoded: from there on, frames.
    switched: bool,
    /// True from the upgrade until everything has been written for the first time.
    switching: bool,
    /// True when the close frame has been decoded: from there on, nothing.
    said_close: bool,
    /// What it has to be told, in this order.
    expected: VecDeque<Expected>,
    /// When that leaves, or may: an event for one who was written to lately waits, until something other than an event hurries it.
    due: Due,
    /// The millisecond of the turn in which it was last written to.
    flushed_ms: u64,
    /// True from a write that the socket did not take whole until everything has been written.
    refused: bool,
    /// Whether it was refused, and how much waited for it at most, when this turn's writes began.
    had_waiting: bool,
    waiting_bytes: usize,
    /// True when frames may be dropped, as the policy is.
    droppable: bool,
    /// Messages that were left out since it was last told. Pongs are not counted.
    lost: u64,
    /// What was expected, and how many bytes waited, when they were last compared and were the same.
    compared: Option<(usize, usize)>,
    /// Bytes that waited then, without the frame that was first.
    kept_bytes: usize,
    /// True when what waited for it is gone: it is to be closed in this turn.
    abandoned: bool,
    /// The millisecond at which its timer fires.
    due_ms: u64,
    heard_ms: u64,
    pinged: bool,
    tokens: Tokens,
    rooms: BTreeSet<String>,
    /// Publications made while it was a member, by sequence, until it has got them or left.
    owed: BTreeMap<u64, String>,
    /// By room, the last publication it got; and by room and publisher, the number of the last event.
    last_sequence: BTreeMap<String, u64>,
    last_number: BTreeMap<(String, usize), u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Backlog,
    Http,
    Open,
    Closing(Ending),
    Finishing { at_once: bool },
    Finished,
    Closed,
}

#[derive(Debug)]
struct Expected {
    said: Said,
    given: Time,
    origin: Option<Origin>,
    /// True when it lingers or has been left out, and which is not seen yet.
    is_doubtful: bool,
}

/// What the server says, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Answer { status: u16, closes: bool, head_only: bool },
    Switch { subprotocol: bool },
    Ack(String),
    Joined(String, BTreeMap<String, u64>),
    Pong(Option<String>),
    Error { code: String, id: Option<String>, retry_ms: Option<u64> },
    Event(Rc<Event>),
    Dropped(u64),
    Echo { binary: bool, payload: Vec<u8> },
    WebSocketPong(Vec<u8>),
    WebSocketPing,
    Close(Option<u16>),
}

/// So many things a second, and so many at once.
#[derive(Clone, Copy, Debug)]
struct Tokens {
    thousandths: u64,
    filled_ms: u64,
}

impl Tokens {
    fn full(burst: u32, now: Time) -> Tokens {
        Tokens { thousandths: u64::from(burst) * 1000, filled_ms: now.ms() }
    }

    /// Takes one, or answers in how many milliseconds there is one.
    fn take(&mut self, rate: u32, burst: u32, now: Time) -> Result<(), u64> {
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
    fn new(shard: usize, ip: IpAddr, policy: OutboxPolicy) -> Peer {
        Peer {
            shard,
            slot: None,
            ip,
            stage: Stage::Backlog,
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
    fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Backlog | Stage::Closed)
    }

    fn is_upgraded(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Closing(_))
    }

    /// True when all that it is to be told is frames.
    fn is_framed(&self) -> bool {
        self.dialect.is_some() && !self.switching
    }

    fn is_finishing(&self) -> bool {
        matches!(self.stage, Stage::Finishing { .. })
    }

    /// Only who is open, and speaks a dialect that has a word for it, is told of losses.
    fn is_told_losses(&self) -> bool {
        self.stage == Stage::Open && self.dialect == Some(Dialect::Native)
    }

    /// True when something waits for the end of a linger.
    fn lingers(&self) -> bool {
        !self.refused && !self.expected.is_empty()
    }

    fn arm(&mut self, now: Time, ahead_ms: u64) {
        self.due_ms = now.ms() + ahead_ms + TIMER_TICK_MS;
    }

    /// It is to be told at the end of this turn.
    fn expect(&mut self, said: Said, now: Time) {
        self.due = Due::Now;
        self.expected.push_back(Expected { said, given: now, origin: None, is_doubtful: false });
    }
}

impl Said {
    /// More bytes than it takes.
    fn bytes_max(&self) -> usize {
        let id_bytes = |id: &Option<String>| id.as_ref().map_or(0, String::len);
        match self {
            Said::Answer { .. } | Said::Switch { .. } => 500,
            Said::Ack(id) => 60 + id.len(),
            Said::Joined(id, rooms) => {
                60 + id.len() + 3 * rooms.keys().map(|name| 60 + 2 * name.len()).sum::<usize>()
            }
            Said::Pong(id) => 60 + id_bytes(id),
            Said::Error { id, .. } => 500 + id_bytes(id),
            Said::Event(event) => 100 + 2 * event.room.len() + event.name.len() + event.payload.len(),
            Said::Echo { payload, .. } | Said::WebSocketPong(payload) => 10 + payload.len(),
            Said::WebSocketPing => 2,
            Said::Close(_) | Said::Dropped(_) => 127,
        }
    }
}

impl Model {
    fn new(plan: &Plan) -> Model {
        Model {
            settings: plan.settings.clone(),
            rules: plan.rules.clone(),
            rooms_max: plan.rooms_max,
            peers: Vec::new(),
            rooms: BTreeMap::new(),
            mail: vec![VecDeque::new(); plan.shards],
            bells: BTreeSet::new(),
            accepts: vec![Tokens::full(plan.settings.accepts_per_second_max, plan.start); plan.shards],
            drains: vec![None; plan.shards],
            linger_ends: vec![None; plan.shards],
            linger_is_over: false,
            slots: vec![0; plan.shards],
            gate_draining: false,
            takes: 0,
            open: 0,
            sockets: 0,
            incarnations: 0,
            sequence: 0,
            counts: Counts::default(),
        }
    }

    // ------------------------------------------------------------------------------------------- what the reactor does

    fn may_accept(&self, shard: usize, now: Time) -> bool {
        let rate = self.settings.accepts_per_second_max;
        let mut accepts = self.accepts[shard];
        self.drains[shard].is_none()
            && self.sockets < self.rules.sockets_max
            && (rate == 0 || accepts.take(rate, rate, now).is_ok())
    }

    fn accept(&mut self, shard: usize, number: usize, slot: Slot, now: Time) {
        let rate = self.settings.accepts_per_second_max;
        if rate > 0 {
            self.accepts[shard].take(rate, rate, now).expect("it was asked whether it may");
        }
        self.counts.accepts += 1;
        self.sockets += 1;
        self.slots[shard] = self.slots[shard].max(slot as usize + 1);
        let peer = &mut self.peers[number];
        peer.slot = Some(slot);
        peer.stage = Stage::Http;
        peer.flushed_ms = now.ms();
        peer.arm(now, self.settings.handshake_timeout_ms.into());
        let ip = peer.ip;
        let of_this_ip = self.peers.iter().filter(|peer| peer.is_live() && peer.ip == ip).count();
        if self.rules.sockets_per_ip_max.is_some_and(|max| of_this_ip > max as usize) {
            self.refuse(number, 429, "per_ip", false, false, now);
            self.peers[number].stage = Stage::Finishing { at_once: true };
        }
    }

    /// Bytes have come, or the socket of one who was refused some has taken more.
    fn heard(&mut self, number: usize, now: Time) {
        let peer = &mut self.peers[number];
        peer.heard_ms = now.ms();
        if std::mem::take(&mut peer.pinged) && peer.stage == Stage::Open {
            peer.arm(now, self.settings.ping_interval_ms.into());
        }
    }

    fn hang_up(&mut self, number: usize) {
        self.end(number, Ending::Lost);
        self.peers[number].doomed = true;
    }

    /// The shard's turn begins.
    fn begin_turn(&mut self, shard: usize, now: Time) {
        self.linger_is_over = self.linger_ends[shard].is_some_and(|end| end <= now);
        if self.linger_is_over {
            self.end_linger(shard);
        }
    }

    /// What lingers is due, all at once.
    fn end_linger(&mut self, shard: usize) {
        self.linger_ends[shard] = None;
        let lingering = |peer: &&mut Peer| peer.shard == shard && peer.due == Due::Later;
        self.peers.iter_mut().filter(lingering).for_each(|peer| peer.due = Due::Now);
    }

    /// The shard takes its mail: all of it, or as much as its arena had room for.
    fn deliver(&mut self, shard: usize, now: Time) {
        while self.takes > 0
            && let Some(letter) = self.mail[shard].pop_front()
        {
            self.takes -= 1;
            match letter {
                Letter::Event { event, origin, echo, incarnation } => {
                    let linger_ms = u64::from(self.settings.linger_ms);
                    let room = self.rooms.get(&event.room).filter(|room| room.incarnation == incarnation);
                    for member in room.iter().flat_map(|room| &room.members) {
                        if self.peers[*member].shard == shard && (echo || *member != origin.publisher) {
                            let said = Said::Event(event.clone());
                            let expected =
                                Expected { said, given: now, origin: Some(origin), is_doubtful: false };
                            let peer = &mut self.peers[*member];
                            peer.expected.push_back(expected);
                            if peer.due == Due::No {
                                let was_quiet = now.ms() - peer.flushed_ms >= linger_ms;
                                peer.due = Due::Now;
                                if !was_quiet && !self.linger_is_over {
                                    peer.due = Due::Later;
                                    self.linger_ends[shard].get_or_insert(now.plus_ms(linger_ms));
                                }
                            }
                            self.counts.deliveries += 1;
                            self.counts.cross_shard += u64::from(self.peers[origin.publisher].shard != shard);
                        }
                    }
                }
                Letter::Drain { spread_ms, timeout_ms } => {
                    self.drains[shard].get_or_insert(Drain { started: now, spread_ms, timeout_ms, told: 0 });
                }
            }
        }
    }

    /// Timers fire, and a drain goes on.
    fn advance(&mut self, shard: usize, now: Time, clients: &[Client], links: &[Link]) {
        for number in 0..self.peers.len() {
            let peer = &mut self.peers[number];
            if peer.shard != shard || !peer.is_live() || peer.doomed || peer.due_ms > now.ms() {
                continue;
            }
            match peer.stage {
                Stage::Http if links[number].handed > clients[number].carried_out => {
                    self.refuse(number, 408, "slow_head", false, false, now);
                }
                Stage::Open if peer.pinged => {
                    let silent_ms = now.ms() - peer.heard_ms;
                    let patience_ms = self.settings.ping_interval_ms + self.settings.ping_timeout_ms;
                    assert!(silent_ms >= patience_ms.into(), "the model would close {number} too early");
                    // It is told if the kernel takes it at once.
                    peer.expect(Said::Close(Some(SILENT)), now);
                    self.end(number, Ending::Silent);
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
                    self.end(number, Ending::Lost);
                    self.peers[number].doomed = true;
                }
            }
        }
        let Some(drain) = &mut self.drains[shard] else { return };
        let slots = self.slots[shard] as u64;
        let elapsed_ms = now.since_ns(drain.started) / 1_000_000;
        let due =
            (slots * elapsed_ms).checked_div(drain.spread_ms.into()).unwrap_or(slots).min(slots) as usize;
        let told = drain.told;
        drain.told = due.max(told);
        let has_timed_out = elapsed_ms >= drain.timeout_ms.into();
        for number in 0..self.peers.len() {
            let peer = &mut self.peers[number];
            if peer.shard != shard || !peer.is_live() {
                continue;
            }
            let slot = peer.slot.expect("accepted") as usize;
            match peer.stage {
                Stage::Open if (told..due).contains(&slot) => {
                    peer.expect(Said::Close(Some(1001)), now);
                    peer.stage = Stage::Closing(Ending::Shutdown);
                    peer.arm(now, CLOSE_TIMEOUT_MS);
                    self.leave_all(number);
                }
                Stage::Http if (told..due).contains(&slot) => peer.doomed = true,
                _ => {}
            }
            if has_timed_out {
                self.end(number, Ending::Shutdown);
                self.peers[number].doomed = true;
            }
        }
    }

    /// The shard begins to write.
    fn begin_flush(&mut self, shard: usize) {
        for peer in self.peers.iter_mut().filter(|peer| peer.shard == shard) {
            peer.had_waiting = peer.refused;
            peer.waiting_bytes = peer.expected.iter().map(|expected| expected.said.bytes_max()).sum();
        }
    }

    /// Who was due has been written to, as far as possible.
    fn end_flush(&mut self, shard: usize, now: Time, is_put_off: impl Fn(Slot) -> bool) {
        for peer in self.peers.iter_mut().filter(|peer| peer.shard == shard && peer.due == Due::Now) {
            if !peer.slot.is_some_and(&is_put_off) {
                (peer.due, peer.flushed_ms) = (Due::No, now.ms());
            }
        }
    }

    /// The server ends its side.
    fn end_stream(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        assert_eq!(peer.stage, Stage::Finishing { at_once: false }, "the stream to {number} ends");
        assert!(peer.expected.is_empty(), "{number} has not been told {:?}", peer.expected);
        peer.expected.clear();
        peer.stage = Stage::Finished;
    }

    /// The server closes the socket. Answers how the WebSocket ended, if that is the end of it.
    fn close(&mut self, number: usize) -> Option<Ending> {
        let peer = &self.peers[number];
        let is_told = peer.expected.is_empty();
        let ending = if peer.doomed || (peer.stage == Stage::Finishing { at_once: true } && is_told) {
            None
        } else {
            // The only other reason there is: too much waits for it, or for all.
            let is_full = self.is_full(number);
            // Who is a WebSocket is closed in order, unless not even the rest of a frame has room among all.
            let may_be_closed = !peer.is_framed() || self.is_full_in_all(number);
            assert!(peer.refused && is_full && may_be_closed, "{number} is closed for no reason: {peer:#?}");
            Some(Ending::Slow)
        };
        self.end(number, Ending::Slow);
        let peer = &mut self.peers[number];
        peer.stage = Stage::Closed;
        peer.doomed = false;
        peer.expected.clear();
        self.sockets -= 1;
        ending
    }

    // ----------------------------------------------------------------------------------------- what the clients bring about

    /// The shard has been handed the last byte that `effect` needs.
    fn apply(&mut self, number: usize, effect: &Effect, now: Time) {
        let peer = &mut self.peers[number];
        match (peer.stage, effect) {
            (Stage::Http, Effect::Request(request)) => self.request(number, request, now),
            (Stage::Open | Stage::Closing(_), Effect::Close(code)) => {
                if peer.stage == Stage::Open {
                    peer.expect(Said::Close(*code), now);
                }
                self.end(number, Ending::Client);
                self.peers[number].stage = Stage::Finishing { at_once: true };
                self.peers[number].arm(now, CLOSE_TIMEOUT_MS);
            }
            (Stage::Open | Stage::Closing(_), Effect::Violation(code)) => {
                self.fail(number, *code, Ending::Protocol, now);
            }
            (Stage::Open, Effect::Ping(payload)) => peer.expect(Said::WebSocketPong(payload.clone()), now),
            (Stage::Open | Stage::Closing(_), Effect::Ping(_) | Effect::Pong) => {}
            (Stage::Closing(_), _) => self.counts.messages_in += 1,
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

    fn request(&mut self, number: usize, request: &Request, now: Time) {
        let shard = self.peers[number].shard;
        let keep_alive = request.keep_alive && self.drains[shard].is_none();
        match request.asks {
            Asks::Ready if self.gate_draining => self.answer(number, 503, keep_alive, request.head_only, now),
            Asks::Health | Asks::Ready => {
                self.counts.requests += 1;
                self.answer(number, 200, keep_alive, request.head_only, now);
            }
            Asks::Refused(status, label) => {
                self.refuse(number, status, label, keep_alive, request.head_only, now)
            }
            Asks::Upgrade { origin: Some(origin), .. }
                if !self.rules.origins.is_empty() && !origin.ends_with(".good.example") =>
            {
                self.refuse(number, 403, "origin", false, false, now);
            }
            Asks::Upgrade { dialect, subprotocol, .. } => self.upgrade(number, dialect, subprotocol, now),
        }
    }

    fn upgrade(&mut self, number: usize, dialect: Dialect, subprotocol: bool, now: Time) {
        let ip = self.peers[number].ip;
        let of_this_ip = self.peers.iter().filter(|peer| peer.is_upgraded() && peer.ip == ip).count();
        let refusal = if self.gate_draining {
            return self.refuse(number, 503, "draining", false, false, now);
        } else if self.open >= self.rules.connections_max {
            Some((503, "full"))
        } else if self.rules.per_ip_max.is_some_and(|max| of_this_ip >= max as usize) {
            Some((429, "per_ip"))
        } else {
            None
        };
        let peer = &mut self.peers[number];
        if let Some((status, label)) = refusal {
            if !self.settings.refuse_with_close {
                return self.refuse(number, status, label, false, false, now);
            }
            peer.dialect = Some(dialect);
            peer.switching = true;
            peer.expect(Said::Switch { subprotocol }, now);
            peer.expect(Said::Close(Some(1008)), now);
            peer.stage = Stage::Finishing { at_once: false };
            peer.arm(now, CLOSE_TIMEOUT_MS);
            self.counts.rejects[label_index(label)] += 1;
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
    }

    fn refuse(
        &mut self,
        number: usize,
        status: u16,
        label: &str,
        keep_alive: bool,
        head_only: bool,
        now: Time,
    ) {
        self.counts.rejects[label_index(label)] += 1;
        self.answer(number, status, keep_alive, head_only, now);
    }

    fn answer(&mut self, number: usize, status: u16, keep_alive: bool, head_only: bool, now: Time) {
        let peer = &mut self.peers[number];
        peer.expect(Said::Answer { status, closes: !keep_alive, head_only }, now);
        if keep_alive {
            peer.arm(now, self.settings.handshake_timeout_ms.into());
        } else {
            peer.stage = Stage::Finishing { at_once: false };
            peer.arm(now, CLOSE_TIMEOUT_MS);
        }
    }

    fn command(&mut self, number: usize, command: &Command, now: Time) {
        let (Command::Join { id, .. }
        | Command::Leave { id, .. }
        | Command::Publish { id, .. }
        | Command::Ping { id }
        | Command::Wrong { id, .. }) = command;
        if let Err(retry_ms) = self.take_token(number, now) {
            self.counts.rate_limited += 1;
            return self.error(number, "rate_limited", id.clone(), Some(retry_ms), now);
        }
        match command {
            Command::Join { rooms, .. } | Command::Leave { rooms, .. }
                if rooms.iter().collect::<BTreeSet<_>>().len() > self.settings.rooms_per_connection_max =>
            {
                return self.error(number, "too_many_rooms", id.clone(), None, now);
            }
            // What was published before is for the members of then.
            Command::Join { rooms, .. } => {
                self.deliver(self.peers[number].shard, now);
                return self.join(number, rooms, id.clone(), now);
            }
            Command::Leave { rooms, .. } => {
                self.deliver(self.peers[number].shard, now);
                rooms.iter().for_each(|name| self.leave(number, name));
            }
            Command::Publish { event, echo, .. } => self.publish(number, event, *echo),
            Command::Ping { .. } => return self.peers[number].expect(Said::Pong(id.clone()), now),
            Command::Wrong { code, .. } => return self.error(number, code, id.clone(), None, now),
        }
        if let Some(id) = id {
            self.peers[number].expect(Said::Ack(id.clone()), now);
        }
    }

    /// All of the rooms or none.
    fn join(&mut self, number: usize, names: &[String], id: Option<String>, now: Time) {
        let new: BTreeSet<&String> =
            names.iter().filter(|name| !self.peers[number].rooms.contains(*name)).collect();
        let made = new.iter().filter(|name| !self.rooms.contains_key(**name)).count();
        let would_be_in = self.peers[number].rooms.len() + new.len();
        if (made > 0 && self.rooms.len() + made > self.rooms_max)
            || (!new.is_empty() && would_be_in > self.settings.rooms_per_connection_max)
        {
            return self.error(number, "too_many_rooms", id, None, now);
        }
        let mut members = BTreeMap::new();
        for name in names {
            let room = self.rooms.entry(name.clone()).or_insert_with(|| {
                self.incarnations += 1;
                Room { incarnation: self.incarnations, members: BTreeSet::new() }
            });
            room.members.insert(number);
            members.insert(name.clone(), room.members.len() as u64 - 1);
            self.peers[number].rooms.insert(name.clone());
        }
        if let Some(id) = id {
            self.peers[number].expect(Said::Joined(id, members), now);
        }
    }

    fn leave(&mut self, number: usize, name: &str) {
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

    fn publish(&mut self, number: usize, event: &Rc<Event>, echo: bool) {
        self.counts.publications += 1;
        self.sequence += 1;
        let Some(Room { incarnation, members }) = self.rooms.get(&event.room) else { return };
        let origin = Origin { publisher: number, sequence: self.sequence };
        let letter = Letter::Event { event: event.clone(), origin, echo, incarnation: *incarnation };
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

    fn error(&mut self, number: usize, code: &str, id: Option<String>, retry_ms: Option<u64>, now: Time) {
        self.counts.errors += 1;
        self.peers[number].expect(Said::Error { code: code.to_owned(), id, retry_ms }, now);
    }

    fn take_token(&mut self, number: usize, now: Time) -> Result<(), u64> {
        match self.settings.messages_per_second_max {
            0 => Ok(()),
            rate => self.peers[number].tokens.take(rate, self.settings.messages_burst_max, now),
        }
    }

    /// A WebSocket whose client broke a rule is told so, and ended.
    fn fail(&mut self, number: usize, code: u16, ending: Ending, now: Time) {
        let peer = &mut self.peers[number];
        if peer.stage == Stage::Open {
            peer.expect(Said::Close(Some(code)), now);
        }
        peer.arm(now, CLOSE_TIMEOUT_MS);
        self.end(number, ending);
    }

    /// A WebSocket is over, if there is one.
    fn end(&mut self, number: usize, ending: Ending) {
        let ending = match self.peers[number].stage {
            Stage::Open => ending,
            Stage::Closing(because) => because,
            _ => return,
        };
        self.peers[number].stage = Stage::Finishing { at_once: false };
        self.leave_all(number);
        self.open -= 1;
        self.counts.endings[ending.index()] += 1;
    }

    fn leave_all(&mut self, number: usize) {
        for name in self.peers[number].rooms.clone() {
            self.leave(number, &name);
        }
    }

    // ------------------------------------------------------------------------------------------------ what comes of it

    /// The shard has this waiting for a connection; `is_whole` when it does not end in the middle of something. What is expected
    /// and not among it has been left out.
    fn compare(&mut self, number: usize, mut waiting: Vec<Said>, is_whole: bool, is_due: bool, now: Time) {
        let is_full = self.is_full(number);
        let linger_ns = u64::from(self.settings.linger_ms) * 1_000_000;
        let lingers = |expected: &Expected| {
            !is_due && expected.origin.is_some() && now < expected.given.plus_ns(linger_ns)
        };
        let is_full_in_all = self.is_full_in_all(number);
        let peer = &mut self.peers[number];
        // What is never left out is gone: so is the connection.
        let must_follow = |expected: &Expected| matches!(expected.said, Said::Close(_) | Said::WebSocketPing);
        let is_gone = waiting.is_empty() && is_full_in_all && peer.expected.iter().any(must_follow);
        if !is_whole || is_gone {
            peer.abandoned = true;
            return;
        }
        // Only of a WebSocket something may be left out, and not before the answer to its upgrade has left. Of one that has ended, even
        // where that ends those that are open.
        let may_lose = peer.is_framed() && (peer.droppable || peer.stage != Stage::Open);
        let is_slow = !peer.droppable
            && peer.is_upgraded()
            && waiting.pop_if(|last| *last == Said::Close(Some(SLOW))).is_some();
        let mut expected = std::mem::take(&mut peer.expected);
        for said in waiting {
            let is_new = expected.front().is_none_or(|expected| expected.said != said);
            let place = match said {
                // It has caught up: what is not written by now never will be.
                Said::Dropped(_) if is_new => expected.len(),
                _ => expected.iter().position(|expected| expected.said == said).unwrap_or_else(|| {
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
            return self.end(number, Ending::Slow);
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
    fn lose(&mut self, number: usize, lost: &Expected, is_full: bool) {
        assert!(is_full || lost.is_doubtful, "{number} loses {lost:?} though there is room for it");
        let peer = &mut self.peers[number];
        match lost.said {
            Said::Answer { .. }
            | Said::Switch { .. }
            | Said::Dropped(_)
            | Said::WebSocketPing
            | Said::Close(_) => panic!("{number} loses {lost:?}"),
            Said::WebSocketPong(_) => {}
            _ => peer.lost += 1,
        }
        if let Some(origin) = lost.origin {
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
    fn is_full(&self, number: usize) -> bool {
        self.peers[number].waiting_bytes > self.settings.outbox_bytes_max || self.is_full_in_all(number)
    }

    fn is_full_in_all(&self, number: usize) -> bool {
        let peer = &self.peers[number];
        let others = self.peers.iter().filter(|other| other.shard == peer.shard);
        let waiting = others.filter(|other| other.had_waiting || other.refused);
        let total: usize = waiting.map(|other| other.waiting_bytes).sum();
        total > self.settings.outbox_total_bytes_max
    }

    /// The server has said this. True when it was an event that waited for others.
    fn said(&mut self, number: usize, said: Said, now: Time) -> bool {
        let peer = &mut self.peers[number];
        assert!(!peer.said_close, "{number} is told {said:?} after the close");
        if let Said::Dropped(count) = said
            && peer.expected.is_empty()
        {
            self.tell_losses(number, count, now);
        }
        let peer = &mut self.peers[number];
        let Some(expected) = peer.expected.pop_front_if(|expected| expected.said == said) else {
            panic!("{number} is told {said:?} instead of {:?}", peer.expected.front());
        };
        if let (Said::Event(event), Some(Origin { publisher, sequence })) = (&said, expected.origin) {
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
            peer.refused = peer.is_told_losses() && peer.lost > 0;
        }
        expected.origin.is_some() && expected.given < now
    }
}

/// The connections of a shard, with their numbers.
fn live(peers: &[Peer], shard: usize) -> impl Iterator<Item = (usize, &Peer)> {
    peers.iter().enumerate().filter(move |(_, peer)| peer.shard == shard && peer.is_live())
}

fn label_index(label: &str) -> usize {
    Reject::LABELS.iter().position(|other| *other == label).expect("a label")
}

// ------------------------------------------------------------------------------------------ what the server says, decoded

/// Decodes what is at the start of `bytes`, if it is there whole, and answers how long it is.
fn decode_next(bytes: &[u8], peer: &Peer) -> Option<(Said, usize)> {
    decode(bytes, peer, peer.switched, 0)
}

/// The same for what is at that `place` in what it is to be told; from `switched` on, it is frames.
fn decode(bytes: &[u8], peer: &Peer, switched: bool, place: usize) -> Option<(Said, usize)> {
    if !switched {
        return decode_answer(bytes, peer, place);
    }
    let mut cursor = Cursor::new(bytes);
    let (header, length) = FrameHeader::parse(&mut cursor).expect("a frame")?;
    let start = cursor.position() as usize;
    let payload = bytes.get(start..start + length as usize)?;
    assert!(header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3, "a plain frame: {header:?}");
    assert!(header.mask.is_none() && start == header.len(length), "the shortest header: {header:?}");
    let said = match (header.opcode, peer.dialect) {
        (coding::OpCode::Control(control), _) => {
            assert!(length <= 125, "a control frame is short");
            match control {
                coding::Control::Ping => {
                    assert!(payload.is_empty());
                    Said::WebSocketPing
                }
                coding::Control::Pong => Said::WebSocketPong(payload.to_vec()),
                coding::Control::Close => Said::Close(payload.split_first_chunk().map(|(code, reason)| {
                    std::str::from_utf8(reason).expect("a reason is text");
                    u16::from_be_bytes(*code)
                })),
                coding::Control::Reserved(_) => panic!("a reserved opcode: {header:?}"),
            }
        }
        (coding::OpCode::Data(data), Some(dialect)) => {
            let binary = data == coding::Data::Binary;
            assert!(binary || data == coding::Data::Text, "a whole message: {header:?}");
            match dialect {
                Dialect::Echo => Said::Echo { binary, payload: payload.to_vec() },
                Dialect::Native if binary => {
                    let newline = payload.iter().position(|byte| *byte == b'\n').expect("a newline");
                    decode_message(&payload[..newline], Some(&payload[newline + 1..]))
                }
                Dialect::Native => decode_message(payload, None),
                Dialect::SocketIo | Dialect::EngineIo => unreachable!("no client speaks it"),
            }
        }
        (coding::OpCode::Data(_), None) => panic!("a message before the upgrade"),
    };
    Some((said, start + length as usize))
}

/// The fields of all that throng says in the native dialect, as docs/protocol.md has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    rooms: Option<BTreeMap<String, Members>>,
    code: Option<String>,
    message: Option<String>,
    retry_ms: Option<u64>,
    room: Option<String>,
    event: Option<String>,
    /// `null` is data, too.
    #[serde(borrow, default, deserialize_with = "whatever_is_there")]
    data: Option<&'a RawValue>,
    count: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    members: u64,
}

fn whatever_is_there<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// A native message; with `attached`, the part of a binary frame before its payload.
fn decode_message(json: &[u8], attached: Option<&[u8]>) -> Said {
    let text = std::str::from_utf8(json).expect("text is UTF-8");
    let message =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is not a message: {error}"));
    let Message { kind, id, rooms, code, message, retry_ms, room, event, data, count } = message;
    let id = id.map(|id| id.get().to_owned());
    match (kind, id, rooms, code, message, retry_ms, room, event, data, count, attached) {
        ("ack", Some(id), None, None, None, None, None, None, None, None, None) => Said::Ack(id),
        ("ack", Some(id), Some(rooms), None, None, None, None, None, None, None, None) => {
            Said::Joined(id, rooms.into_iter().map(|(name, members)| (name, members.members)).collect())
        }
        ("pong", id, None, None, None, None, None, None, None, None, None) => Said::Pong(id),
        ("error", id, None, Some(code), Some(_), retry_ms, None, None, None, None, None) => {
            Said::Error { code, id, retry_ms }
        }
        ("event", None, None, None, None, None, Some(room), Some(name), Some(data), None, None) => {
            Said::Event(Rc::new(Event { room, name, payload: data.get().as_bytes().to_vec(), binary: false }))
        }
        ("event", None, None, None, None, None, Some(room), Some(name), None, None, Some(payload)) => {
            Said::Event(Rc::new(Event { room, name, payload: payload.to_vec(), binary: true }))
        }
        ("dropped", None, None, None, None, None, None, None, None, Some(count), None) => {
            Said::Dropped(count)
        }
        _ => panic!("{text} is no message of the protocol"),
    }
}

fn decode_answer(bytes: &[u8], peer: &Peer, place: usize) -> Option<(Said, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes).expect("an HTTP answer") else {
        return None;
    };
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| std::str::from_utf8(header.value).expect("a header is text"))
    };
    let status = response.code.expect("a whole head has a status");
    if status == 101 {
        assert_eq!((value("Upgrade"), value("Connection")), (Some("websocket"), Some("Upgrade")));
        assert_eq!(value("Sec-WebSocket-Accept"), Some(ACCEPT));
        let subprotocol = value("Sec-WebSocket-Protocol");
        assert!(subprotocol.is_none_or(|name| name == "throng.v1"));
        return Some((Said::Switch { subprotocol: subprotocol.is_some() }, head_bytes));
    }
    let expected = peer.expected.get(place).map(|expected| &expected.said);
    let head_only = matches!(expected, Some(Said::Answer { head_only: true, .. }));
    let length: usize = value("Content-Length").expect("a length").parse().expect("a number");
    let body = bytes.get(head_bytes..head_bytes + if head_only { 0 } else { length })?;
    if !head_only {
        serde_json::from_slice::<serde_json::Value>(body).expect("the body is JSON");
    }
    let closes = value("Connection").is_some_and(|value| value.contains("close"));
    Some((Said::Answer { status, closes, head_only }, head_bytes + body.len()))
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
            ] {
                assert!(happened >= 10, "{what} happened {happened} times: too seldom to prove anything");
            }
            for (label, happened) in Ending::LABELS.iter().zip(endings) {
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
            (362, "what came after the first frame that did not fit was kept for a connection closed for it"),
            (340, "who lost all that waited for it was not told before something else came for it"),
            (543, "the message that tells of losses was itself left out, and the losses never told"),
            (283, "a ping was left out of a full outbox, and the client closed for not answering it"),
            (298, "an answered ping did not set the timer anew, and the next ping came late"),
            (279, "what lingered left as soon as something else came that may linger, too"),
            (866, "who hung up as its head became late was counted as late"),
            (631, "a timer due at the tick at which its list is sorted fired one tick late"),
            (264, "the error for a binary frame over the rate did not have its id"),
            (256, "the error for a binary frame with a wrong field did not have its id"),
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
