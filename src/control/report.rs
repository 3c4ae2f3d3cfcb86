//! `/stats`: the numbers as JSON, for people and scripts, with rates and percentiles worked out. `docs/metrics.md` says
//! what each field means; a test holds the two together.

use super::Control;
use crate::bridge::Bridge;
use crate::bridge::stats::Breaker;
use crate::bus::callouts::CalloutStats;
use crate::bus::presence::PresenceStats;
use crate::message::Reject;
use crate::rules::Pattern;
use crate::stats::{Counter, Ending, Histogram, NamespaceStats, ShardStats, Stats};
use crate::time::Time;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::slice;
use std::sync::{Mutex, PoisonError};

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    memory_bytes: u64,
    connections_max: usize,
    connections_peak: usize,
    sockets_max: usize,
    #[serde(flatten)]
    figures: Figures,
    namespaces: Vec<Namespaces>,
    presence: Presence,
    redis: Option<Redis>,
    callouts: Option<Callouts>,
    shards: Vec<ShardReport>,
}

#[derive(Debug, Serialize)]
struct ShardReport {
    shard: usize,
    #[serde(flatten)]
    figures: Figures,
}

/// The numbers of the namespaces of one pattern.
#[derive(Debug, Serialize)]
struct Namespaces {
    namespace: String,
    namespaces: usize,
    connections: u64,
    joins: u64,
    refusals: u64,
    events: u64,
    publications: u64,
}

/// The numbers of questions about who is in a room. Each has the name it has in `/metrics`.
#[derive(Debug, Serialize)]
struct Presence {
    questions: u64,
    shared: u64,
    incomplete: u64,
    elsewhere: u64,
    refusals: u64,
}

/// The numbers of the way to other processes. Each has the name it has in `/metrics`.
#[derive(Debug, Serialize)]
struct Redis {
    status: &'static str,
    servers: u64,
    servers_up: u64,
    breaker: &'static str,
    waiting: u64,
    waiting_bytes: u64,
    subscriptions: u64,
    subscriptions_wanted: u64,
    published: u64,
    received: u64,
    reconnects: u64,
    events: u64,
    overloads: u64,
    refused: u64,
    malformed: u64,
    unknown: u64,
    missed: u64,
    repeated: u64,
    gaps: u64,
    lost: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
}

/// The numbers of questions to the backend about who clients are. Each has the name it has in `/metrics`.
#[derive(Debug, Serialize)]
struct Callouts {
    waiting: u64,
    known: u64,
    by: BTreeMap<&'static str, u64>,
    answers: BTreeMap<&'static str, u64>,
    repeats: u64,
    forgotten: u64,
}

/// The numbers of one shard, or of all together.
#[derive(Debug, Serialize)]
struct Figures {
    connections: u64,
    sockets: u64,
    rooms: u64,
    memberships: u64,
    outbox_bytes: u64,
    receive_buffer_bytes: u64,
    sessions: Sessions,
    totals: Totals,
    per_second: Rates,
    turn_duration: Durations,
    publish_latency: Durations,
    rejects: BTreeMap<&'static str, u64>,
    disconnects: BTreeMap<&'static str, u64>,
}

/// Open Engine.IO sessions, by their transport.
#[derive(Debug, Serialize)]
struct Sessions {
    polling: u64,
    websocket: u64,
}

/// Counted since the start. Each has the name it has in `/metrics`.
#[derive(Debug, Serialize)]
struct Totals {
    accepts: u64,
    upgrades: u64,
    http_requests: u64,
    rejects: u64,
    disconnects: u64,
    messages_received: u64,
    received_bytes: u64,
    frames_sent: u64,
    sent_bytes: u64,
    sends: u64,
    publications: u64,
    deliveries: u64,
    dropped: u64,
    volatile_dropped: u64,
    errors: u64,
    rate_limited: u64,
    overloads: u64,
    pings_sent: u64,
    polls: u64,
    session_upgrades: u64,
    session_upgrades_failed: u64,
    handovers: u64,
    namespace_joins: u64,
    namespace_refusals: u64,
    turns: u64,
}

/// Means over the last seconds.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Rates {
    /// How many seconds that is; 0 when nothing is known yet, and then all rates are 0.
    window_seconds: f64,
    messages_received: f64,
    received_bytes: f64,
    frames_sent: f64,
    sent_bytes: f64,
    publications: f64,
    deliveries: f64,
}

/// Durations since the start. A percentile is at most 25 % above the true one.
#[derive(Debug, Serialize)]
struct Durations {
    count: u64,
    mean_us: f64,
    p50_us: f64,
    p95_us: f64,
    p99_us: f64,
}

impl Report {
    pub(super) fn new(control: &Control) -> Report {
        let stats = &control.stats;
        let all = 0..stats.shards.len();
        let mut figures = Figures::new(&stats.shards, control.history.rates(all.clone()));
        // A room with members on several shards is one room.
        figures.rooms = control.bus.rooms() as u64;
        Report {
            status: if control.gate.is_draining() { "draining" } else { "ok" },
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: control.clock.now().ms() / 1000,
            memory_bytes: stats.memory_bytes.value(),
            connections_max: control.gate.connections_max(),
            connections_peak: control.gate.peak(),
            sockets_max: control.gate.sockets_max(),
            figures,
            namespaces: Namespaces::of(control),
            presence: Presence::new(&control.bus.presence().stats),
            redis: control.bridge.as_ref().map(Redis::new),
            callouts: control.bus.callouts().map(|callouts| Callouts::new(&callouts.stats)),
            shards: all
                .map(|shard| ShardReport {
                    shard,
                    figures: Figures::new(
                        slice::from_ref(&stats.shards[shard]),
                        control.history.rates(shard..shard + 1),
                    ),
                })
                .collect(),
        }
    }
}

impl Presence {
    fn new(stats: &PresenceStats) -> Presence {
        Presence {
            questions: stats.questions.value(),
            shared: stats.shared.value(),
            incomplete: stats.incomplete.value(),
            elsewhere: stats.elsewhere.value(),
            refusals: stats.refusals.value(),
        }
    }
}

impl Redis {
    fn new(bridge: &Bridge) -> Redis {
        let (link, own) = (&bridge.link_stats, &bridge.stats);
        Redis {
            status: bridge.status(),
            servers: link.servers.value(),
            servers_up: link.servers_up.value(),
            breaker: Breaker::LABELS[link.breaker.value() as usize % Breaker::LABELS.len()],
            waiting: link.waiting.value(),
            waiting_bytes: link.waiting_bytes.value(),
            subscriptions: link.subscriptions.value(),
            subscriptions_wanted: link.subscriptions_wanted.value(),
            published: link.published.value(),
            received: link.received.value(),
            reconnects: link.reconnects.value(),
            events: own.events.value(),
            overloads: own.overloads.value(),
            refused: own.refused.value(),
            malformed: own.malformed.value(),
            unknown: own.unknown.value(),
            missed: own.missed.value(),
            repeated: own.repeated.value(),
            gaps: own.gaps.value(),
            lost: bridge.lost().collect(),
            faults: bridge.faults().collect(),
        }
    }
}

impl Callouts {
    fn new(stats: &CalloutStats) -> Callouts {
        let by = [
            ("known", &stats.hits),
            ("shared", &stats.shared),
            ("asked", &stats.asked),
            ("full", &stats.full),
        ];
        Callouts {
            waiting: stats.waiting.value(),
            known: stats.known.value(),
            by: by.into_iter().map(|(by, counter)| (by, counter.value())).collect(),
            answers: CalloutStats::ANSWERS
                .into_iter()
                .zip(stats.answers.iter().map(Counter::value))
                .collect(),
            repeats: stats.repeated.value(),
            forgotten: stats.forgotten.value(),
        }
    }
}

impl Namespaces {
    /// Those of each pattern, in the order of the configuration.
    fn of(control: &Control) -> Vec<Namespaces> {
        let pattern = |(place, (pattern, namespaces)): (u16, (&Pattern, usize))| {
            let sum = |number: fn(&NamespaceStats) -> u64| {
                control.stats.sum(|shard| number(shard.namespace(Some(place))))
            };
            Namespaces {
                namespace: pattern.to_string(),
                namespaces,
                connections: sum(|namespace| namespace.connections.value()),
                joins: sum(|namespace| namespace.joins.value()),
                refusals: sum(|namespace| namespace.refusals.value()),
                events: sum(|namespace| namespace.events.value()),
                publications: sum(|namespace| namespace.publications.value()),
            }
        };
        (0..).zip(control.bus.namespaces_by_pattern()).map(pattern).collect()
    }
}

impl Figures {
    fn new(shards: &[ShardStats], per_second: Rates) -> Figures {
        let sum = |number: fn(&ShardStats) -> u64| shards.iter().map(number).sum();
        let by_reason = |labels: &[&'static str], counters: fn(&ShardStats) -> &[Counter]| {
            let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
            for shard in shards {
                for (label, counter) in labels.iter().zip(counters(shard)) {
                    *sums.entry(label).or_default() += counter.value();
                }
            }
            sums
        };
        let rejects = by_reason(&Reject::LABELS, |shard| &shard.rejects);
        let disconnects = by_reason(&Ending::LABELS, |shard| &shard.endings);
        Figures {
            connections: sum(|shard| shard.connections.value()),
            sockets: sum(|shard| shard.sockets.value()),
            rooms: sum(|shard| shard.rooms.value()),
            memberships: sum(|shard| shard.memberships.value()),
            outbox_bytes: sum(|shard| shard.outbox_bytes.value()),
            receive_buffer_bytes: sum(|shard| shard.receive_bytes.value()),
            sessions: Sessions {
                polling: sum(|shard| shard.polling_sessions.value()),
                websocket: sum(|shard| shard.websocket_sessions.value()),
            },
            totals: Totals {
                accepts: sum(|shard| shard.accepts.value()),
                upgrades: sum(|shard| shard.upgrades.value()),
                http_requests: sum(|shard| shard.requests.value()),
                rejects: rejects.values().sum(),
                disconnects: disconnects.values().sum(),
                messages_received: sum(|shard| shard.messages_in.value()),
                received_bytes: sum(|shard| shard.bytes_in.value()),
                frames_sent: sum(|shard| shard.frames_out.value()),
                sent_bytes: sum(|shard| shard.bytes_out.value()),
                sends: sum(|shard| shard.sends.value()),
                publications: sum(|shard| shard.publications.value()),
                deliveries: sum(|shard| shard.deliveries.value()),
                dropped: sum(|shard| shard.drops.value()),
                volatile_dropped: sum(|shard| shard.volatile_drops.value()),
                errors: sum(|shard| shard.errors.value()),
                rate_limited: sum(|shard| shard.rate_limited.value()),
                overloads: sum(|shard| shard.overloads.value()),
                pings_sent: sum(|shard| shard.pings.value()),
                polls: sum(|shard| shard.polls.value()),
                session_upgrades: sum(|shard| shard.session_upgrades.value()),
                session_upgrades_failed: sum(|shard| shard.session_upgrades_failed.value()),
                handovers: sum(|shard| shard.handovers.value()),
                namespace_joins: sum(|shard| shard.namespace_joins.value()),
                namespace_refusals: sum(|shard| shard.namespace_refusals.value()),
                turns: sum(|shard| shard.turns.value()),
            },
            per_second,
            turn_duration: Durations::new(shards, |shard| &shard.turn_duration),
            publish_latency: Durations::new(shards, |shard| &shard.publish_latency),
            rejects,
            disconnects,
        }
    }
}

impl Durations {
    fn new(shards: &[ShardStats], histogram: fn(&ShardStats) -> &Histogram) -> Durations {
        let merged = shards.iter().map(|shard| histogram(shard).snapshot()).reduce(|mut all, one| {
            all.merge(&one);
            all
        });
        let snapshot = merged.unwrap_or_else(|| Histogram::default().snapshot());
        let percentile_us = |quantile| snapshot.quantile_ns(quantile) as f64 / 1e3;
        Durations {
            count: snapshot.count(),
            mean_us: (snapshot.sum_ns() / snapshot.count().max(1)) as f64 / 1e3,
            p50_us: percentile_us(0.5),
            p95_us: percentile_us(0.95),
            p99_us: percentile_us(0.99),
        }
    }
}

/// What was counted at the last few seconds, so that there are rates. At most [`History::SAMPLES_MAX`] samples; the oldest goes
/// when a new one comes.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

#[derive(Debug)]
struct Sample {
    at: Time,
    /// For each shard, what [`FLOWS`] reads.
    shards: Box<[[u64; FLOWS.len()]]>,
}

/// The counters that have a rate, in the order of the fields of [`Rates`].
const FLOWS: [fn(&ShardStats) -> u64; 6] = [
    |shard| shard.messages_in.value(),
    |shard| shard.bytes_in.value(),
    |shard| shard.frames_out.value(),
    |shard| shard.bytes_out.value(),
    |shard| shard.publications.value(),
    |shard| shard.deliveries.value(),
];

impl History {
    /// Samples kept. One a second, so rates are means over five seconds.
    const SAMPLES_MAX: usize = 6;

    /// Takes a sample. `now` is not before the last one's.
    pub fn sample(&self, stats: &Stats, now: Time) {
        let shards = stats.shards.iter().map(|shard| FLOWS.map(|counter| counter(shard))).collect();
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == History::SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(Sample { at: now, shards });
    }

    /// What these shards did together, from the oldest sample to the newest.
    fn rates(&self, shards: Range<usize>) -> Rates {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else { return Rates::default() };
        let window_seconds = last.at.since_ns(first.at) as f64 / 1e9;
        if window_seconds == 0.0 {
            return Rates::default();
        }
        let rate = |flow: usize| {
            let counted: u64 = (shards.clone())
                .map(|shard| last.shards[shard][flow].wrapping_sub(first.shards[shard][flow]))
                .sum();
            counted as f64 / window_seconds
        };
        Rates {
            window_seconds,
            messages_received: rate(0),
            received_bytes: rate(1),
            frames_sent: rate(2),
            sent_bytes: rate(3),
            publications: rate(4),
            deliveries: rate(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_means_over_the_samples_kept() {
        let stats = Stats::new(2);
        let history = History::default();
        assert_eq!(history.rates(0..2), Rates::default(), "nothing is known without a sample");
        history.sample(&stats, Time::from_ms(500));
        assert_eq!(history.rates(0..2), Rates::default(), "nor with one");
        for second in 1..=20u64 {
            stats.shards[0].messages_in.add(10);
            stats.shards[1].messages_in.add(second);
            stats.shards[1].deliveries.add(1000);
            history.sample(&stats, Time::from_ms(500 + second * 1000));
        }
        let (one, other, both) = (history.rates(0..1), history.rates(1..2), history.rates(0..2));
        assert_eq!((one.window_seconds, one.messages_received, one.deliveries), (5.0, 10.0, 0.0));
        assert_eq!((other.messages_received, other.deliveries), (18.0, 1000.0), "the last five seconds only");
        assert_eq!((both.messages_received, both.deliveries), (28.0, 1000.0));
    }

    #[test]
    fn durations_without_any_are_zero() {
        let durations = Durations::new(&[], |shard| &shard.turn_duration);
        assert_eq!((durations.count, durations.mean_us, durations.p99_us), (0, 0.0, 0.0));
        let stats = Stats::new(1);
        let durations = Durations::new(&stats.shards, |shard| &shard.turn_duration);
        assert_eq!((durations.count, durations.mean_us, durations.p99_us), (0, 0.0, 0.0));
    }
}
