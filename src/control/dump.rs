//! The dump: state, and memory by kind, written to the log when somebody asks with SIGUSR1.
//!
//! It reads what the shards count anyway, so it costs them nothing; only what the allocator says of itself may make one wait for a moment.
//! Each subject is one event of the log, whose fields are named as in `docs/metrics.md` where it has them.

use super::{Control, process};
use crate::bridge::stats::Breaker;
use crate::message::ShardId;
use crate::stats::{Counter, Ending, Heap, ShardStats, Snapshot};
use crate::time::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a room of the directory takes, in bytes: its entry, its place in the index, and what the shard with its members has of it. Longer
/// names than 24 bytes, and rooms on several shards, take more.
const ROOM_BYTES: u64 = 48 + 5 + 32 + 5;
/// Both sides of a membership, in bytes. The first two of a connection or of a room stand in what is counted for these.
const MEMBERSHIP_BYTES: u64 = 16;
/// What an idle session of TLS 1.3 takes, in bytes, as measured for `docs/tls.md`.
const LAYER_BYTES: u64 = 1 << 10;

/// What can write the state, and has seen what was there the last time: each dump says what has happened since the one before it, the
/// first since the start.
#[derive(Debug)]
pub struct Dump {
    control: Arc<Control>,
    last: Seen,
    /// Of the threads, by name.
    last_seconds: BTreeMap<String, f64>,
}

/// The numbers at one moment.
#[derive(Debug)]
pub(super) struct Seen {
    at: Time,
    shards: Vec<SeenOfShard>,
}

impl Seen {
    pub(super) fn new(control: &Control) -> Seen {
        let shards = control.stats.shards.iter().map(SeenOfShard::new).collect();
        Seen { at: control.clock.now(), shards }
    }
}

#[derive(Debug)]
pub(super) struct SeenOfShard {
    pub(super) turns: u64,
    pub(super) messages_received: u64,
    pub(super) received_bytes: u64,
    pub(super) frames_sent: u64,
    pub(super) sent_bytes: u64,
    pub(super) publications: u64,
    pub(super) deliveries: u64,
    pub(super) turn_duration: Snapshot,
    pub(super) publish_latency: Snapshot,
}

impl SeenOfShard {
    fn new(stats: &ShardStats) -> SeenOfShard {
        SeenOfShard {
            turns: stats.turns.value(),
            messages_received: stats.messages_in.value(),
            received_bytes: stats.bytes_in.value(),
            frames_sent: stats.frames_out.value(),
            sent_bytes: stats.bytes_out.value(),
            publications: stats.publications.value(),
            deliveries: stats.deliveries.value(),
            turn_duration: stats.turn_duration.snapshot(),
            publish_latency: stats.publish_latency.snapshot(),
        }
    }
}

impl Dump {
    /// What writes the state of the process behind `control`, and counts from the start.
    pub fn new(control: Arc<Control>) -> Dump {
        let nothing = ShardStats::default();
        let shards = control.stats.shards.iter().map(|_| SeenOfShard::new(&nothing)).collect();
        let last = Seen { at: Time::default(), shards };
        Dump { control, last, last_seconds: BTreeMap::new() }
    }

    /// Writes it, with what the allocator says, where it says something.
    pub fn write(&mut self, heap: Option<Heap>) {
        if !tracing::enabled!(tracing::Level::INFO) {
            tracing::warn!(
                "SIGUSR1 asks for the state, which is logged at the level info: log.level hides it"
            );
            return;
        }
        let control = self.control.clone();
        let now = Seen::new(&control);
        let thread_seconds = process::thread_seconds();
        let rates = Rates { last: &self.last, now: &now };
        let since_seconds = rates.seconds();
        write_process(&control, since_seconds);
        write_rates(&rates);
        for (id, stats) in (0..).zip(&control.stats.shards) {
            let (last, now) = (&self.last.shards[usize::from(id)], &now.shards[usize::from(id)]);
            write_shard(&control, id, stats, last, now);
        }
        for (thread, seconds) in &thread_seconds {
            let before = self.last_seconds.get(thread).copied().unwrap_or_default();
            let since_last = (seconds - before).max(0.0);
            tracing::info!(
                thread,
                cpu_seconds = round(*seconds),
                cpu_seconds_since_last = round(since_last),
                cpu_share = round(since_last / since_seconds.max(1e-3)),
                "state of a thread"
            );
        }
        write_ways_out(&control);
        write_memory(&control, heap);
        (self.last, self.last_seconds) = (now, thread_seconds);
    }
}

/// What happened between two moments.
pub(super) struct Rates<'a> {
    pub(super) last: &'a Seen,
    pub(super) now: &'a Seen,
}

impl Rates<'_> {
    fn seconds(&self) -> f64 {
        self.now.at.since_ns(self.last.at) as f64 / 1e9
    }

    /// How much a number of all shards has grown, per second.
    pub(super) fn of(&self, number: fn(&SeenOfShard) -> u64) -> f64 {
        let sum = |seen: &Seen| seen.shards.iter().map(number).sum::<u64>();
        round(sum(self.now).saturating_sub(sum(self.last)) as f64 / self.seconds().max(1e-3))
    }

    pub(super) fn p99_us(&self, durations: fn(&SeenOfShard) -> &Snapshot) -> u64 {
        let between = self.now.shards.iter().zip(&self.last.shards);
        let between = between.map(|(now, last)| durations(now).since(durations(last)));
        let all = between.reduce(|mut all, one| {
            all.merge(&one);
            all
        });
        all.map_or(0, |all| all.quantile_ns(0.99) / 1_000)
    }
}

fn write_process(control: &Control, since_last_seconds: f64) {
    let stats = &control.stats;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        uptime_seconds = control.clock.now().ms() / 1000,
        since_last_seconds = round(since_last_seconds),
        draining = control.gate.is_draining(),
        connections = stats.sum(|shard| shard.connections.value()),
        connections_peak = control.gate.peak(),
        connections_max = control.gate.connections_max(),
        sessions_polling = stats.sum(|shard| shard.polling_sessions.value()),
        sessions_websocket = stats.sum(|shard| shard.websocket_sessions.value()),
        recoverable_sessions = stats.sum(|shard| shard.recoverable.value()),
        sockets = stats.sum(|shard| shard.sockets.value()),
        sockets_max = control.gate.sockets_max(),
        layers = stats.sum(|shard| shard.layers.value()),
        rooms = control.bus.rooms(),
        memberships = stats.sum(|shard| shard.memberships.value()),
        open_fds = process::open_fds().unwrap_or_default(),
        max_fds = process::max_fds().unwrap_or_default(),
        cpu_seconds = round(process::cpu_seconds()),
        "state of the process"
    );
    let ended = |ending: Ending| stats.sum(|shard| shard.endings[ending.index()].value());
    let all = |counters: fn(&ShardStats) -> &[Counter]| {
        stats.sum(|shard| counters(shard).iter().map(Counter::value).sum())
    };
    tracing::info!(
        accepts = stats.sum(|shard| shard.accepts.value()),
        upgrades = stats.sum(|shard| shard.upgrades.value()),
        rejects = all(|shard| &shard.rejects),
        disconnects = all(|shard| &shard.endings),
        disconnects_slow = ended(Ending::Slow),
        disconnects_silent = ended(Ending::Silent),
        disconnects_limit = ended(Ending::Limit),
        disconnects_protocol = ended(Ending::Protocol),
        transport_faults = all(|shard| &shard.transport_faults),
        dropped = stats.sum(|shard| shard.drops.value()),
        volatile_dropped = stats.sum(|shard| shard.volatile_drops.value()),
        errors = stats.sum(|shard| shard.errors.value()),
        rate_limited = stats.sum(|shard| shard.rate_limited.value()),
        overloads = stats.sum(|shard| shard.overloads.value()),
        "counted since the start"
    );
}

/// Means over the time since the last dump.
fn write_rates(rates: &Rates<'_>) {
    tracing::info!(
        messages_received = rates.of(|shard| shard.messages_received),
        received_bytes = rates.of(|shard| shard.received_bytes),
        frames_sent = rates.of(|shard| shard.frames_sent),
        sent_bytes = rates.of(|shard| shard.sent_bytes),
        publications = rates.of(|shard| shard.publications),
        deliveries = rates.of(|shard| shard.deliveries),
        turns = rates.of(|shard| shard.turns),
        "rates per second since the last dump"
    );
}

/// Latencies are those since the last dump.
fn write_shard(control: &Control, id: ShardId, stats: &ShardStats, last: &SeenOfShard, now: &SeenOfShard) {
    use crate::bus::mailbox::{MAIL_BYTES_MAX, MAIL_MAX};
    let turns = now.turn_duration.since(&last.turn_duration);
    let publishes = now.publish_latency.since(&last.publish_latency);
    let mean_us = |durations: &Snapshot| durations.sum_ns() / durations.count().max(1) / 1_000;
    let mailbox = control.bus.mailbox(id);
    tracing::info!(
        shard = id,
        connections = stats.connections.value(),
        sockets = stats.sockets.value(),
        slots = stats.slots.value(),
        rooms = stats.rooms.value(),
        memberships = stats.memberships.value(),
        turns = turns.count(),
        turn_mean_us = mean_us(&turns),
        turn_p99_us = turns.quantile_ns(0.99) / 1_000,
        publishes = publishes.count(),
        publish_mean_us = mean_us(&publishes),
        publish_p99_us = publishes.quantile_ns(0.99) / 1_000,
        mail = mailbox.len(),
        mail_max = MAIL_MAX,
        mail_bytes = mailbox.bytes(),
        mail_bytes_max = MAIL_BYTES_MAX,
        sockets_handed = mailbox.handed(),
        outbox_bytes = stats.outbox_bytes.value(),
        receive_buffer_bytes = stats.receive_bytes.value(),
        policy_waiting_bytes = stats.policy_waiting_bytes.value(),
        open_asks = stats.open_asks.value(),
        overloads = stats.overloads.value(),
        "state of a shard"
    );
}

/// What leads to others: Redis, the backend, webhooks.
fn write_ways_out(control: &Control) {
    let breaker = |place: u64| Breaker::LABELS[place as usize % Breaker::LABELS.len()];
    if let Some(bridge) = &control.bridge {
        let (link, own) = (&bridge.link_stats, &bridge.stats);
        tracing::info!(
            status = bridge.status(),
            servers = link.servers.value(),
            servers_up = link.servers_up.value(),
            breaker = breaker(link.breaker.value()),
            waiting = link.waiting.value(),
            waiting_bytes = link.waiting_bytes.value(),
            subscriptions = link.subscriptions.value(),
            subscriptions_wanted = link.subscriptions_wanted.value(),
            published = link.published.value(),
            received = link.received.value(),
            reconnects = link.reconnects.value(),
            lost = bridge.lost().map(|(_, count)| count).sum::<u64>(),
            missed = own.missed.value(),
            gaps = own.gaps.value(),
            "state of the way to Redis"
        );
    }
    if let Some(backend) = &control.backend {
        tracing::info!(
            breaker = breaker(backend.stats.breaker.value()),
            under_way = backend.stats.under_way.value(),
            answered = backend.stats.answered.value(),
            problems = backend.stats.problems.iter().map(Counter::value).sum::<u64>(),
            calls_waiting = control.bus.calls().map_or(0, |calls| calls.waiting()),
            callouts_waiting = control.bus.callouts().map_or(0, |callouts| callouts.stats.waiting.value()),
            callouts_known = control.bus.callouts().map_or(0, |callouts| callouts.stats.known.value()),
            "state of the way to the backend"
        );
    }
    if let Some(notices) = control.bus.notices() {
        let (waiting, waiting_bytes) = notices.waiting();
        tracing::info!(
            waiting,
            waiting_bytes,
            oldest_ms = notices.oldest_age_ms(control.clock.now()),
            batches = notices.batches.value(),
            retries = notices.retries.value(),
            lost = notices.lost().map(|(_, _, count)| count).sum::<u64>(),
            "state of the webhooks"
        );
    }
}

/// Kinds whose size is known are added up; what is left of the memory that no file is behind is said as such.
fn write_memory(control: &Control, heap: Option<Heap>) {
    let stats = &control.stats;
    let bytes = |number: fn(&ShardStats) -> u64| stats.sum(number);
    let slots = bytes(|shard| shard.slots_bytes.value());
    let rooms = control.bus.rooms() as u64 * ROOM_BYTES;
    let memberships = bytes(|shard| shard.memberships.value()) * MEMBERSHIP_BYTES;
    let layers = bytes(|shard| shard.layers.value()) * LAYER_BYTES;
    let outboxes = bytes(|shard| shard.outbox_bytes.value());
    let receive_buffers = bytes(|shard| shard.receive_bytes.value());
    let mailboxes: u64 =
        (0..control.bus.shards() as ShardId).map(|shard| control.bus.mailbox(shard).bytes() as u64).sum();
    let recovery = bytes(|shard| shard.recovery_bytes.value());
    let policy_waiting = bytes(|shard| shard.policy_waiting_bytes.value());
    let room_states = bytes(|shard| shard.room_states_bytes.value());
    let redis = control.bridge.as_ref().map_or(0, |bridge| bridge.link_stats.waiting_bytes.value());
    let webhooks = control.bus.notices().map_or(0, |notices| notices.waiting().1 as u64);
    let accounted = slots
        + rooms
        + memberships
        + layers
        + outboxes
        + receive_buffers
        + mailboxes
        + recovery
        + policy_waiting
        + room_states
        + redis
        + webhooks;
    let (anonymous, files) = process::resident_by_kind().unwrap_or_default();
    tracing::info!(
        resident_bytes = anonymous + files,
        resident_anonymous_bytes = anonymous,
        resident_file_bytes = files,
        slots_bytes = slots,
        rooms_bytes = rooms,
        memberships_bytes = memberships,
        layers_bytes = layers,
        outbox_bytes = outboxes,
        receive_buffer_bytes = receive_buffers,
        mail_bytes = mailboxes,
        recovery_bytes = recovery,
        policy_waiting_bytes = policy_waiting,
        room_state_bytes = room_states,
        redis_waiting_bytes = redis,
        webhooks_waiting_bytes = webhooks,
        accounted_bytes = accounted,
        not_accounted_bytes = anonymous.saturating_sub(accounted),
        dedupe_ids = bytes(|shard| shard.dedupe_ids.value()),
        event_windows = control.gate.tally().held().0,
        callouts_waiting = control.bus.callouts().map_or(0, |callouts| callouts.stats.waiting.value()),
        "memory by kind"
    );
    if let Some(Heap { in_use_bytes, mapped_bytes, free_bytes }) = heap {
        tracing::info!(in_use_bytes, mapped_bytes, free_bytes, "memory by the allocator's account");
    }
}

/// To a thousandth, so that it can be read.
fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
