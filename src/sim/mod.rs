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
//! what happens. Read in this order: `plan`, the world here, `clients`, `model`, `said`, `checks`.

mod checks;
mod clients;
mod model;
mod plan;
mod said;

use crate::auth::Gate;
use crate::bus::Bus;
use crate::bus::mailbox::Mail;
use crate::message::{ShardId, Slot};
use crate::shard::turn::Gathered;
use crate::shard::{Farewell, Shard};
use crate::stats::{Ending, Stats};
use crate::time::Time;
use clients::{Client, Temper};
use model::{Letter, Model, Peer, Stage, label_index};
use plan::{ACCEPT_REST_MS, CONNECTIONS_MAX, Plan, ROUNDS_MAX, Random, SLEEPS_MAX, mix};
use said::{Said, decode, decode_next};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
        for number in 0..self.links.len() {
            if self.links[number].shard == shard {
                self.look_at_outbox(shard, number, false);
            }
        }
        self.see_off(shard);
        self.now = now.plus_ns(self.random.below(200_000));
        let seat = &mut self.seats[shard];
        let ahead_ms = seat.shard.end_turn(self.now);
        seat.deadline = ahead_ms.map(|ms| self.now.plus_ms(u64::from(ms)));
        seat.stopped = seat.shard.is_drained();
        seat.asleep = !seat.shard.has_mail() && self.bus.mailbox(id).fall_asleep();
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
            let Some(slot) = self.seats[shard].shard.next_dirty() else { break };
            let number = self.seats[shard].sockets[slot as usize].expect("a dirty slot has a socket");
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
                }
                if bytes.len() < offered {
                    self.links[number].is_blocked = true;
                    self.links[number].writer_armed = true;
                    self.links[number].wants_space = !is_refused;
                    self.links[number].writable |= is_refused;
                    self.model.peers[number].refused = true;
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
            (340, "who lost all that waited for it was not told before something else came for it"),
            (299, "the message that tells of losses was itself left out, and the losses never told"),
            (866, "who hung up as its head became late was counted as late"),
            (320, "a timer due at the tick at which its list is sorted fired one tick late"),
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
