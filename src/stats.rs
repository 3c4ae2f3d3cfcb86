//! What throng counts. Each shard writes its own numbers, without locked instructions; whoever wants to see them reads
//! them from outside while they change.

use crate::message::{Reject, TokenFault};
use crate::time::Time;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The numbers of the whole process.
#[derive(Debug)]
pub struct Stats {
    /// One for each shard, in order.
    pub shards: Box<[ShardStats]>,
    /// Resident memory of the process in bytes, sampled by the control thread once a second; 0 until then.
    pub memory_bytes: Gauge,
    /// How much was taken lately, by whomever, of the bound on its memory that is fullest: of the machine, or of a control group around it. 0 also
    /// where the system does not tell.
    pub memory_taken_permille: Gauge,
}

impl Stats {
    /// Zeroes for `shards` shards. What belongs to a pattern of namespaces is not kept apart.
    pub fn new(shards: usize) -> Stats {
        Stats::by_pattern(shards, 0)
    }

    /// Zeroes for `shards` shards and so many patterns of namespaces.
    pub fn by_pattern(shards: usize, patterns: usize) -> Stats {
        let shard = |_| ShardStats {
            patterns: (0..patterns).map(|_| NamespaceStats::default()).collect(),
            ..ShardStats::default()
        };
        Stats {
            shards: (0..shards).map(shard).collect(),
            memory_bytes: Gauge::default(),
            memory_taken_permille: Gauge::default(),
        }
    }

    /// The sum of one number over all shards.
    pub fn sum(&self, number: impl Fn(&ShardStats) -> u64) -> u64 {
        self.shards.iter().map(number).sum()
    }
}

/// The numbers of one shard. Only the shard's thread writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardStats {
    /// Open WebSocket connections.
    pub connections: Gauge,
    /// Sockets: open connections, and those that are not open yet or not closed yet.
    pub sockets: Gauge,
    /// Sockets accepted.
    pub accepts: Counter,
    /// Upgrades to WebSocket that succeeded.
    pub upgrades: Counter,
    /// Plain HTTP requests answered, `/health` and the like.
    pub requests: Counter,
    /// Refusals before the upgrade, by [`Reject::index`].
    pub rejects: [Counter; Reject::LABELS.len()],
    /// Tokens that were found to be good.
    pub tokens: Counter,
    /// Tokens that were refused, by [`TokenFault::index`].
    pub token_faults: [Counter; TokenFault::LABELS.len()],
    /// WebSocket connections that ended, by [`Ending::index`].
    pub endings: [Counter; Ending::LABELS.len()],
    /// WebSocket data messages received.
    pub messages_in: Counter,
    /// Bytes read from sockets.
    pub bytes_in: Counter,
    /// Frames handed to connections: events, answers, pings.
    pub frames_out: Counter,
    /// Bytes written to sockets.
    pub bytes_out: Counter,
    /// System calls that wrote.
    pub sends: Counter,
    /// Events that clients of this shard published.
    pub publications: Counter,
    /// Events handed to members: one for each member of each publication.
    pub deliveries: Counter,
    /// Events whose publishers wait for answers, counted also where they are answered.
    pub open_asks: Gauge,
    /// Sessions that have dropped out and may be recovered, counted in each of their namespaces.
    pub recoverable: Gauge,
    /// Bytes of events that are kept for them.
    pub recovery_bytes: Gauge,
    /// Frames dropped because an outbox was full and the policy is `drop`.
    pub drops: Counter,
    /// Volatile events that were not handed to a member because it could not take them at once.
    pub volatile_drops: Counter,
    /// Messages refused with an error.
    pub errors: Counter,
    /// Messages refused because a connection sent more a second than it may, or somebody more events of a kind.
    pub rate_limited: Counter,
    /// Publications refused because a mailbox was full.
    pub overloads: Counter,
    /// Memberships: connections in rooms.
    pub memberships: Gauge,
    /// Rooms with a member on this shard.
    pub rooms: Gauge,
    /// Bytes that wait in outboxes because the kernel refused them.
    pub outbox_bytes: Gauge,
    /// Bytes of messages that have not arrived whole.
    pub receive_bytes: Gauge,
    /// Pings sent for lack of a sign of life.
    pub pings: Counter,
    /// Engine.IO sessions whose clients poll.
    pub polling_sessions: Gauge,
    /// Engine.IO sessions that are WebSockets.
    pub websocket_sessions: Gauge,
    /// Polls of Engine.IO sessions that were answered.
    pub polls: Counter,
    /// Engine.IO sessions that have moved from polling to a WebSocket.
    pub session_upgrades: Counter,
    /// WebSockets to which an Engine.IO session might have moved, and did not.
    pub session_upgrades_failed: Counter,
    /// Sockets that this shard was given by others, because they asked for a session of its.
    pub handovers: Counter,
    /// Sockets that another process on the port did not take, because it is gone or too busy.
    pub handovers_refused: Counter,
    /// Socket.IO namespaces that clients joined.
    pub namespace_joins: Counter,
    /// Socket.IO namespaces that clients were refused.
    pub namespace_refusals: Counter,
    /// The same and more for the namespaces of each pattern, in the order of the configuration.
    pub patterns: Box<[NamespaceStats]>,
    /// The same for namespaces that no pattern allows.
    pub elsewhere: NamespaceStats,
    /// Sessions that wanted to be recovered, by [`Recovered`].
    pub recoveries: [Counter; Recovered::LABELS.len()],
    /// TLS handshakes that came to their end.
    pub tls_handshakes: Counter,
    /// How many of them a ticket has shortened.
    pub tls_resumptions: Counter,
    /// Connections that broke below HTTP, by [`TransportFault`].
    pub transport_faults: [Counter; TransportFault::LABELS.len()],
    /// Events for rooms with a policy that came to their home here.
    pub policy_events: Counter,
    /// Of them, those that were left out, by [`LEFT_OUT_LABELS`].
    pub policy_left_out: [Counter; LEFT_OUT_LABELS.len()],
    /// Those that should have been the state of a room, and were no objects, or were too large.
    pub policy_stateless: Counter,
    /// Messages that have left the homes here, one of several events counted once.
    pub policy_sent: Counter,
    /// Of them, those of several events.
    pub policy_bundles: Counter,
    /// Times that the events of a room left early because too much waited.
    pub policy_early: Counter,
    /// States and values that were forgotten early because there were too many.
    pub policy_forgotten: Counter,
    /// The most slots for connections, sessions and ghosts that were in use at once: what is kept for each stays.
    pub slots: Gauge,
    /// Bytes of that.
    pub slots_bytes: Gauge,
    /// Sockets with TLS, or whose PROXY header is awaited.
    pub layers: Gauge,
    /// Bytes of events that wait in the homes here.
    pub policy_waiting_bytes: Gauge,
    /// Rooms with their home here whose state is known.
    pub room_states: Gauge,
    /// Bytes of the states.
    pub room_states_bytes: Gauge,
    /// Values by which events that come again are known.
    pub dedupe_ids: Gauge,
    /// Turns of the reactor.
    pub turns: Counter,
    /// From the return of the wait to the end of the turn.
    pub turn_duration: Histogram,
    /// From the read of a publication to the end of the turn in which its frames were written.
    pub publish_latency: Histogram,
}

/// Why events for rooms with a policy are left out: they had been there, a later one has replaced them, or nothing was new in them.
pub const LEFT_OUT_LABELS: [&str; 3] = ["dedupe", "conflate", "unchanged"];

impl ShardStats {
    /// The numbers of the namespaces of the pattern in this place; without one, or where its numbers are not kept apart, those of all
    /// other namespaces.
    pub fn namespace(&self, pattern: Option<u16>) -> &NamespaceStats {
        pattern.and_then(|place| self.patterns.get(usize::from(place))).unwrap_or(&self.elsewhere)
    }
}

/// The numbers of some Socket.IO namespaces on one shard. Apart from those of other shards: each event is counted here.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct NamespaceStats {
    /// Connections in them: one in two of them counts twice.
    pub connections: Gauge,
    /// Joins, and returns of clients that had dropped out.
    pub joins: Counter,
    /// Refusals.
    pub refusals: Counter,
    /// Events that clients sent there.
    pub events: Counter,
    /// Events that clients published there.
    pub publications: Counter,
}

/// What came of a Socket.IO session that its client wanted back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It has it.
    Yes,
    /// There is none: it was never here, it was gone too long, or it had ended in order.
    Unknown,
    /// What it has missed is no longer known.
    Forgotten,
    /// It has missed more than one session is sent.
    TooMuch,
    /// Its namespace has no place for it any more.
    Full,
}

impl Recovered {
    /// The labels of all results, in the order of the numbers.
    pub const LABELS: [&'static str; 5] = ["recovered", "unknown", "forgotten", "too_much", "full"];
}

/// How a WebSocket connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client sent a close frame.
    Client,
    /// The transport went away without one.
    Lost,
    /// The client broke the protocol: 1002, 1007 or 1009.
    Protocol,
    /// A limit: 1008 or 1013.
    Limit,
    /// Heartbeat: 4000.
    Silent,
    /// Its outbox was full.
    Slow,
    /// Shutdown: 1001.
    Shutdown,
    /// Somebody who may say so wanted it gone: 1000.
    Server,
    /// It had no good token, or none any more.
    Token,
}

impl Ending {
    /// The labels of all endings, in the order of [`Ending::index`].
    pub const LABELS: [&'static str; 9] =
        ["client", "lost", "protocol", "limit", "silent", "slow", "shutdown", "server", "token"];

    /// The place of this ending in [`Ending::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Why a connection was closed whose transport, that which lies below HTTP, did not come about or broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportFault {
    /// Something else than TLS, like plain HTTP.
    NotTls,
    /// A version of TLS that is not spoken.
    Version,
    /// No cipher, group, signature or protocol (ALPN) that both know.
    NothingInCommon,
    /// The client said that something is wrong: it does not like the certificate, for one.
    Alert,
    /// The client broke TLS, or somebody between us did.
    Malformed,
    /// The connection ended before its handshake was done.
    Unfinished,
    /// PROXY headers are expected, and it does not come from a proxy that is trusted.
    Untrusted,
    /// The header of the PROXY protocol is none.
    ProxyHeader,
}

impl TransportFault {
    /// The labels of all faults, in the order of the numbers.
    pub const LABELS: [&'static str; 8] = [
        "not_tls",
        "version",
        "nothing_in_common",
        "alert",
        "malformed",
        "unfinished",
        "untrusted",
        "proxy_header",
    ];
}

/// What the allocator holds for the process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// Given out to us and not given back, mapped blocks included.
    pub in_use_bytes: u64,
    /// Of them, blocks so large that each is mapped by itself, and returned to the kernel when it is freed.
    pub mapped_bytes: u64,
    /// Given back, and kept for the next request.
    pub free_bytes: u64,
}

/// A number that only grows. One thread writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. A load and a store, not a locked add: there is one writer.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down. One thread writes it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.set(self.value().wrapping_add(n));
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.set(self.value().wrapping_sub(n));
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Durations, in buckets a quarter of an octave wide from 256 ns to 17 s: a percentile is at most 25 % above the true one.
/// One thread writes it. It is our own because the writer must not wait and the reader must not ask: each record is
/// two plain stores.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; Histogram::BUCKETS],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [const { AtomicU64::new(0) }; Histogram::BUCKETS], sum_ns: Counter::default() }
    }
}

impl Histogram {
    const FIRST_OCTAVE: u32 = 8;
    const OCTAVES: usize = 26;
    /// One bucket for what is below the first octave, four for each octave; the last also takes all above.
    const BUCKETS: usize = 1 + 4 * Histogram::OCTAVES;

    /// Records the time from `start` to `end`.
    pub fn record(&self, start: Time, end: Time) {
        let ns = end.since_ns(start);
        let count = &self.counts[Histogram::bucket(ns)];
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        self.sum_ns.add(ns);
    }

    /// What has been recorded so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            counts: std::array::from_fn(|i| self.counts[i].load(Relaxed)),
            sum_ns: self.sum_ns.value(),
        }
    }

    fn bucket(ns: u64) -> usize {
        if ns < 1 << Histogram::FIRST_OCTAVE {
            return 0;
        }
        let octave = ns.ilog2();
        let quarter = (ns >> (octave - 2)) & 3;
        (1 + (octave - Histogram::FIRST_OCTAVE) as usize * 4 + quarter as usize).min(Histogram::BUCKETS - 1)
    }

    /// The exclusive upper bound of a bucket in nanoseconds; of the last it is only where its octave ends.
    fn upper_ns(bucket: usize) -> u64 {
        if bucket == 0 {
            return 1 << Histogram::FIRST_OCTAVE;
        }
        let (octave, quarter) = ((bucket - 1) / 4, (bucket - 1) % 4);
        (5 + quarter as u64) << (octave as u32 + Histogram::FIRST_OCTAVE - 2)
    }
}

/// A histogram at one moment; several can be merged.
#[derive(Clone, Debug)]
pub struct Snapshot {
    counts: [u64; Histogram::BUCKETS],
    sum_ns: u64,
}

impl Snapshot {
    /// Adds what `other` saw.
    pub fn merge(&mut self, other: &Snapshot) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum_ns += other.sum_ns;
    }

    /// What has come since `earlier`, which is the same histogram at a moment before this one.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        Snapshot {
            counts: std::array::from_fn(|i| self.counts[i].saturating_sub(earlier.counts[i])),
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
        }
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The duration in nanoseconds that a share `quantile` (0 to 1) does not exceed, rounded up to its bucket's end; 0 when
    /// nothing was recorded.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let rank = (self.count() as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Histogram::upper_ns(bucket);
            }
        }
        0
    }

    /// For each octave its upper bound in nanoseconds and how many durations lie below that bound: the cumulative buckets of a
    /// Prometheus histogram. What lies above the last bound is only in [`Snapshot::count`].
    pub fn octaves(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut below = self.counts[0];
        std::iter::once((Histogram::upper_ns(0), below)).chain((0..Histogram::OCTAVES - 1).map(
            move |octave| {
                below += self.counts[1 + octave * 4..][..4].iter().sum::<u64>();
                (Histogram::upper_ns(4 + octave * 4), below)
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_their_bounds_say() {
        for ns in (0..100_000).chain([1 << 20, (1 << 30) + 12345, 16_000_000_000]) {
            let bucket = Histogram::bucket(ns);
            assert!(ns < Histogram::upper_ns(bucket), "{ns} is below the end of its bucket");
            assert!(bucket == 0 || ns >= Histogram::upper_ns(bucket - 1), "{ns} is not below its start");
        }
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_quarter_octave() {
        let histogram = Histogram::default();
        for us in 1..=1000 {
            histogram.record(Time::default(), Time::from_ns(us * 1000));
        }
        let snapshot = histogram.snapshot();
        histogram.record(Time::default(), Time::from_ms(5));
        let later = histogram.snapshot().since(&snapshot);
        assert_eq!((later.count(), later.sum_ns()), (1, 5_000_000), "what came after it");
        assert_eq!(snapshot.since(&snapshot).quantile_ns(0.5), 0, "nothing came after itself");
        assert_eq!(snapshot.count(), 1000);
        for (quantile, true_ns) in [(0.5, 500_000.0), (0.99, 990_000.0), (1.0, 1_000_000.0)] {
            let ns = snapshot.quantile_ns(quantile) as f64;
            assert!(ns >= true_ns && ns <= true_ns * 1.25 + 1.0, "{quantile}: {ns} for {true_ns}");
        }
        let (bound, below) =
            snapshot.octaves().find(|(bound, _)| *bound >= 512_000).expect("an octave ends there");
        assert_eq!((bound, below), (524_288, 524));
    }
}
