//! `/metrics`: the numbers in OpenMetrics text, read from the shards at each scrape. There is no second set of them.

use super::api::{Api, Stranger};
use super::{Control, process};
use crate::backend::Backend;
use crate::backend::caller::Problem;
use crate::backend::stats::CallOutcome;
use crate::bridge::Bridge;
use crate::bus::callouts::{CalloutStats, Callouts};
use crate::bus::calls::{self, Calls};
use crate::bus::mailbox::Mailbox;
use crate::bus::notices::Notices;
use crate::bus::presence::PresenceStats;
use crate::machine;
use crate::message::{Reject, ShardId, TokenFault};
use crate::stats::{
    Counter, Ending, Histogram, LEFT_OUT_LABELS, NamespaceStats, Recovered, ShardStats, TransportFault,
};
use crate::time::Time;
use crate::token::Tokens;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What [`text`] is. Prometheus' older text format is close enough that its parser reads this too: the type `info`, which
/// it does not know, is not used, and `# EOF` is a comment to it.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One scrape.
///
/// # Errors
/// When a number cannot be written as text, which would be our mistake.
pub(super) fn text(control: Arc<Control>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Numbers(control)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// A number that each shard has: its name without the unit, what it means, its unit, and where it is.
type Number = (&'static str, &'static str, Option<Unit>, fn(&ShardStats) -> u64);

static GAUGES: [Number; 16] = [
    ("throng_connections", "Open WebSocket connections.", None, |shard| shard.connections.value()),
    (
        "throng_sockets",
        "Sockets: open connections, and those that are not open yet or not closed yet.",
        None,
        |shard| shard.sockets.value(),
    ),
    ("throng_memberships", "Memberships: connections in rooms.", None, |shard| shard.memberships.value()),
    ("throng_shard_rooms", "Rooms with a member on this shard.", None, |shard| shard.rooms.value()),
    (
        "throng_outbox",
        "Bytes that wait in outboxes because the kernel refused them.",
        Some(Unit::Bytes),
        |shard| shard.outbox_bytes.value(),
    ),
    (
        "throng_open_asks",
        "Events whose publishers wait for answers, counted also where they are answered.",
        None,
        |shard| shard.open_asks.value(),
    ),
    (
        "throng_recoverable_sessions",
        "Sessions that have dropped out and may be recovered, counted in each of their namespaces.",
        None,
        |shard| shard.recoverable.value(),
    ),
    ("throng_recovery", "Bytes of events kept for sessions that drop out.", Some(Unit::Bytes), |shard| {
        shard.recovery_bytes.value()
    }),
    ("throng_receive_buffer", "Bytes of messages that have not arrived whole.", Some(Unit::Bytes), |shard| {
        shard.receive_bytes.value()
    }),
    (
        "throng_slots",
        "The most slots for connections, sessions and ghosts in use at once so far: what is kept for each stays.",
        None,
        |shard| shard.slots.value(),
    ),
    ("throng_slots", "Bytes of what is kept for them.", Some(Unit::Bytes), |shard| shard.slots_bytes.value()),
    ("throng_layers", "Sockets with TLS, or whose PROXY header is awaited.", None, |shard| {
        shard.layers.value()
    }),
    (
        "throng_policy_waiting",
        "Bytes of events that wait because of the policies of their rooms.",
        Some(Unit::Bytes),
        |shard| shard.policy_waiting_bytes.value(),
    ),
    ("throng_room_states", "Rooms whose state is known.", None, |shard| shard.room_states.value()),
    ("throng_room_state", "Bytes of the states.", Some(Unit::Bytes), |shard| shard.room_states_bytes.value()),
    ("throng_dedupe_ids", "Values by which events that come again are known.", None, |shard| {
        shard.dedupe_ids.value()
    }),
];

static COUNTERS: [Number; 31] = [
    ("throng_accepts", "Sockets accepted.", None, |shard| shard.accepts.value()),
    ("throng_upgrades", "Upgrades to WebSocket that succeeded.", None, |shard| shard.upgrades.value()),
    ("throng_http_requests", "Plain HTTP requests answered.", None, |shard| shard.requests.value()),
    ("throng_messages_received", "WebSocket data messages received.", None, |shard| {
        shard.messages_in.value()
    }),
    ("throng_received", "Bytes read from sockets.", Some(Unit::Bytes), |shard| shard.bytes_in.value()),
    ("throng_frames_sent", "Frames handed to connections: events, answers, pings.", None, |shard| {
        shard.frames_out.value()
    }),
    ("throng_sent", "Bytes written to sockets.", Some(Unit::Bytes), |shard| shard.bytes_out.value()),
    ("throng_sends", "System calls that wrote.", None, |shard| shard.sends.value()),
    ("throng_publications", "Events that clients published.", None, |shard| shard.publications.value()),
    (
        "throng_deliveries",
        "Events handed to members: one for each member of each publication.",
        None,
        |shard| shard.deliveries.value(),
    ),
    ("throng_dropped", "Frames dropped because an outbox was full and the policy is drop.", None, |shard| {
        shard.drops.value()
    }),
    (
        "throng_volatile_dropped",
        "Volatile events not handed to a member that could not take them at once.",
        None,
        |shard| shard.volatile_drops.value(),
    ),
    ("throng_policy_events", "Events that came to rooms with a policy.", None, |shard| {
        shard.policy_events.value()
    }),
    (
        "throng_policy_stateless",
        "Events that should have been the state of a room, and were no objects, or were too large.",
        None,
        |shard| shard.policy_stateless.value(),
    ),
    (
        "throng_policy_sent",
        "Messages that left for the members of rooms with a policy, one of several events counted once.",
        None,
        |shard| shard.policy_sent.value(),
    ),
    ("throng_policy_bundles", "Of them, those of several events.", None, |shard| {
        shard.policy_bundles.value()
    }),
    (
        "throng_policy_early",
        "Times that the events of a room left early because too much waited in all.",
        None,
        |shard| shard.policy_early.value(),
    ),
    (
        "throng_policy_forgotten",
        "States of rooms and values that were forgotten early because there were too many.",
        None,
        |shard| shard.policy_forgotten.value(),
    ),
    ("throng_errors", "Messages refused with an error.", None, |shard| shard.errors.value()),
    (
        "throng_rate_limited",
        "Messages refused because there were more a second, or more events of a kind, than allowed.",
        None,
        |shard| shard.rate_limited.value(),
    ),
    ("throng_overloads", "Publications refused because a mailbox was full.", None, |shard| {
        shard.overloads.value()
    }),
    ("throng_pings_sent", "Pings sent for lack of a sign of life.", None, |shard| shard.pings.value()),
    ("throng_polls", "Polls of Engine.IO sessions that were answered.", None, |shard| shard.polls.value()),
    (
        "throng_session_upgrades",
        "Engine.IO sessions that have moved from polling to a WebSocket.",
        None,
        |shard| shard.session_upgrades.value(),
    ),
    (
        "throng_session_upgrades_failed",
        "WebSockets to which an Engine.IO session might have moved, and did not.",
        None,
        |shard| shard.session_upgrades_failed.value(),
    ),
    (
        "throng_handovers",
        "Sockets that this shard was given by others, because they asked for a session of its.",
        None,
        |shard| shard.handovers.value(),
    ),
    ("throng_tokens", "Tokens that were found to be good.", None, |shard| shard.tokens.value()),
    (
        "throng_handovers_refused",
        "Sockets that another process on the port did not take, because it is gone or too busy.",
        None,
        |shard| shard.handovers_refused.value(),
    ),
    ("throng_tls_handshakes", "TLS handshakes that came to their end.", None, |shard| {
        shard.tls_handshakes.value()
    }),
    ("throng_tls_resumptions", "How many of them a ticket has shortened.", None, |shard| {
        shard.tls_resumptions.value()
    }),
    ("throng_turns", "Turns of the reactor.", None, |shard| shard.turns.value()),
];

/// A number of each shard's mailbox, likewise.
type OfMailboxes = (&'static str, &'static str, Option<Unit>, fn(&Mailbox) -> usize);

static OF_MAILBOXES: [OfMailboxes; 2] = [
    ("throng_mailbox", "Pieces of mail that a shard has not collected.", None, Mailbox::len),
    ("throng_mailbox", "Bytes of them.", Some(Unit::Bytes), Mailbox::bytes),
];

/// Open Engine.IO sessions: the transport, and how many there are.
type Sessions = (&'static str, fn(&ShardStats) -> u64);

static SESSIONS: [Sessions; 2] = [
    ("polling", |shard| shard.polling_sessions.value()),
    ("websocket", |shard| shard.websocket_sessions.value()),
];

/// A number of the namespaces of one pattern: name, meaning and type, and where a shard has it.
type OfNamespaces = (&'static str, &'static str, MetricType, fn(&NamespaceStats) -> u64);

static OF_NAMESPACES: [OfNamespaces; 4] = [
    (
        "throng_namespace_connections",
        "Connections in Socket.IO namespaces: one in two of them counts twice.",
        MetricType::Gauge,
        |namespace| namespace.connections.value(),
    ),
    (
        "throng_namespace_joins",
        "Socket.IO namespaces that clients joined.",
        MetricType::Counter,
        |namespace| namespace.joins.value(),
    ),
    ("throng_namespace_events", "Events that Socket.IO clients sent.", MetricType::Counter, |namespace| {
        namespace.events.value()
    }),
    (
        "throng_namespace_publications",
        "Events that Socket.IO clients published.",
        MetricType::Counter,
        |namespace| namespace.publications.value(),
    ),
];

/// The label of refusals of namespaces that no pattern allows. No pattern is like it: it does not begin with a slash.
const NO_PATTERN: &str = "none";

/// Counters by reason: name, meaning, the reasons, and where the counters are, in the same order.
type ByReason = (&'static str, &'static str, &'static [&'static str], fn(&ShardStats) -> &[Counter]);

static BY_REASON: [ByReason; 6] = [
    ("throng_rejects", "Refusals before the upgrade.", &Reject::LABELS, |shard| &shard.rejects),
    (
        "throng_transport_faults",
        "Connections whose TLS or PROXY header did not come about or broke.",
        &TransportFault::LABELS,
        |shard| &shard.transport_faults,
    ),
    ("throng_token_refusals", "Tokens that were refused.", &TokenFault::LABELS, |shard| &shard.token_faults),
    ("throng_disconnects", "WebSocket connections that ended.", &Ending::LABELS, |shard| &shard.endings),
    ("throng_recoveries", "Socket.IO sessions that clients wanted back.", &Recovered::LABELS, |shard| {
        &shard.recoveries
    }),
    (
        "throng_policy_left_out",
        "Events for rooms with a policy that were left out.",
        &LEFT_OUT_LABELS,
        |shard| &shard.policy_left_out,
    ),
];

/// Durations: name, meaning, and where they are.
type Durations = (&'static str, &'static str, fn(&ShardStats) -> &Histogram);

static DURATIONS: [Durations; 2] = [
    ("throng_turn_duration", "From the return of the wait to the end of the turn.", |shard| {
        &shard.turn_duration
    }),
    (
        "throng_publish_latency",
        "From the read of a publication to the end of the turn in which its frames were written.",
        |shard| &shard.publish_latency,
    ),
];

/// A number of the way to other processes: name, meaning, unit and type, and where it is.
type OfRedis = (&'static str, &'static str, Option<Unit>, MetricType, fn(&Bridge) -> u64);

static OF_REDIS: [OfRedis; 21] = [
    (
        "throng_redis_servers",
        "Servers of Redis that are published to: one, or the masters of a cluster.",
        None,
        MetricType::Gauge,
        |bridge| bridge.link_stats.servers.value(),
    ),
    (
        "throng_redis_servers_up",
        "How many of them can be published to and heard.",
        None,
        MetricType::Gauge,
        |bridge| bridge.link_stats.servers_up.value(),
    ),
    (
        "throng_redis_breaker",
        "The breaker of the server that is worst off: 0 is closed, 1 half open, 2 open.",
        None,
        MetricType::Gauge,
        |bridge| bridge.link_stats.breaker.value(),
    ),
    (
        "throng_redis_waiting",
        "Publications that wait for Redis or are under way.",
        None,
        MetricType::Gauge,
        |bridge| bridge.link_stats.waiting.value(),
    ),
    ("throng_redis_waiting", "Bytes of them.", Some(Unit::Bytes), MetricType::Gauge, |bridge| {
        bridge.link_stats.waiting_bytes.value()
    }),
    (
        "throng_redis_subscriptions",
        "Channels and patterns that Redis has confirmed subscriptions to.",
        None,
        MetricType::Gauge,
        |bridge| bridge.link_stats.subscriptions.value(),
    ),
    (
        "throng_redis_subscriptions_wanted",
        "Channels and patterns that are to be heard.",
        None,
        MetricType::Gauge,
        |bridge| bridge.link_stats.subscriptions_wanted.value(),
    ),
    ("throng_redis_published", "Publications that Redis has taken.", None, MetricType::Counter, |bridge| {
        bridge.link_stats.published.value()
    }),
    ("throng_redis_received", "Messages that came from Redis.", None, MetricType::Counter, |bridge| {
        bridge.link_stats.received.value()
    }),
    (
        "throng_redis_reconnects",
        "Connections to Redis that were made anew.",
        None,
        MetricType::Counter,
        |bridge| bridge.link_stats.reconnects.value(),
    ),
    (
        "throng_redis_events",
        "Events of other processes that were delivered here.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.events.value(),
    ),
    (
        "throng_redis_channel_messages",
        "Messages that came on channels of applications.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.channel_messages.value(),
    ),
    (
        "throng_redis_overloads",
        "Events of other processes that were not delivered because a mailbox was full.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.overloads.value(),
    ),
    (
        "throng_redis_refused",
        "Orders and questions of other processes that were not carried out because there were too many.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.refused.value(),
    ),
    (
        "throng_redis_malformed",
        "Messages of others that could not be read.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.malformed.value(),
    ),
    (
        "throng_redis_unknown",
        "Things that other throngs said and this version does not know.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.unknown.value(),
    ),
    (
        "throng_redis_missed",
        "Events of other throngs that did not come.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.missed.value(),
    ),
    (
        "throng_redis_repeated",
        "Events of other throngs that came twice and were delivered once.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.repeated.value(),
    ),
    (
        "throng_redis_gaps",
        "Times in which events of other processes may have been missed.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.gaps.value(),
    ),
    (
        "throng_redis_limit_batches",
        "Calls that told Redis what was used of limits on events.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.limit_batches.value(),
    ),
    (
        "throng_redis_limit_batches_failed",
        "Calls that failed of those that told Redis what was used of limits on events.",
        None,
        MetricType::Counter,
        |bridge| bridge.stats.limit_batches_failed.value(),
    ),
];

/// A counter of questions about who is in a room: its name, what it means, and where it is.
type OfPresence = (&'static str, &'static str, fn(&PresenceStats) -> u64);

static OF_PRESENCE: [OfPresence; 5] = [
    ("throng_presence_questions", "Questions about who is in a room that were put.", |stats| {
        stats.questions.value()
    }),
    (
        "throng_presence_shared",
        "Answers about who is in a room that cost no question of their own.",
        |stats| stats.shared.value(),
    ),
    (
        "throng_presence_incomplete",
        "Answers about who is in a room that lack what some process might have told.",
        |stats| stats.incomplete.value(),
    ),
    ("throng_presence_elsewhere", "Questions of other processes about who is in a room here.", |stats| {
        stats.elsewhere.value()
    }),
    (
        "throng_presence_refusals",
        "Questions about who is in a room that were refused because too many were under way.",
        |stats| stats.refusals.value(),
    ),
];

#[derive(Debug)]
struct Numbers(Arc<Control>);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_shards(&mut encoder)?;
        self.encode_namespaces(&mut encoder)?;
        self.encode_event_limits(&mut encoder)?;
        self.encode_presence(&mut encoder)?;
        self.0.bridge.iter().try_for_each(|bridge| encode_redis(bridge, &mut encoder))?;
        self.0.backend.iter().try_for_each(|backend| encode_backend(backend, &mut encoder))?;
        self.0
            .bus
            .notices()
            .iter()
            .try_for_each(|notices| encode_webhooks(notices, self.0.clock.now(), &mut encoder))?;
        self.0.bus.callouts().iter().try_for_each(|callouts| encode_callouts(callouts, &mut encoder))?;
        self.0.bus.calls().into_iter().try_for_each(|calls| encode_calls(calls, &mut encoder))?;
        encode_api(&self.0.api, &mut encoder)?;
        self.0.tokens.iter().try_for_each(|tokens| encode_keys(tokens, &mut encoder))?;
        self.encode_process(&mut encoder)
    }
}

impl Numbers {
    fn encode_shards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let shards = &self.0.stats.shards;
        for (name, help, unit, number) in &GAUGES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (shard, stats) in shards.iter().enumerate() {
                family.encode_family(&[("shard", shard)])?.encode_gauge(&number(stats))?;
            }
        }
        for (name, help, unit, number) in &OF_MAILBOXES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for shard in 0..shards.len() {
                let waiting = number(self.0.bus.mailbox(shard as ShardId)) as u64;
                family.encode_family(&[("shard", shard)])?.encode_gauge(&waiting)?;
            }
        }
        for (name, help, unit, number) in &COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (shard, stats) in shards.iter().enumerate() {
                family
                    .encode_family(&[("shard", shard)])?
                    .encode_counter::<NoLabelSet, _, f64>(&number(stats), None)?;
            }
        }
        for (name, help, reasons, counters) in &BY_REASON {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (shard, stats) in shards.iter().enumerate() {
                for (reason, counter) in reasons.iter().zip(counters(stats)) {
                    family
                        .encode_family(&([("shard", shard)], [("reason", *reason)]))?
                        .encode_counter::<NoLabelSet, _, f64>(&counter.value(), None)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "throng_sessions",
            "Open Engine.IO sessions.",
            None,
            MetricType::Gauge,
        )?;
        for (shard, stats) in shards.iter().enumerate() {
            for (transport, number) in &SESSIONS {
                let labels = ([("shard", shard)], [("transport", *transport)]);
                family.encode_family(&labels)?.encode_gauge(&number(stats))?;
            }
        }
        for (name, help, histogram) in &DURATIONS {
            let mut family =
                encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
            for (shard, stats) in shards.iter().enumerate() {
                let snapshot = histogram(stats).snapshot();
                let mut below = 0;
                // The encoder wants what is in each bucket and adds up again itself.
                let mut buckets: Vec<(f64, u64)> = snapshot
                    .octaves()
                    .map(|(bound_ns, count)| {
                        let inside = count - std::mem::replace(&mut below, count);
                        (bound_ns as f64 / 1e9, inside)
                    })
                    .collect();
                buckets.push((f64::INFINITY, snapshot.count() - below));
                family.encode_family(&[("shard", shard)])?.encode_histogram::<NoLabelSet>(
                    snapshot.sum_ns() as f64 / 1e9,
                    snapshot.count(),
                    &buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }

    /// Of the process, since there may be many patterns.
    /// Of the process, since the questions of all shards come together.
    fn encode_presence(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, number) in &OF_PRESENCE {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            encode(metric, MetricType::Counter, number(&self.0.bus.presence().stats))?;
        }
        Ok(())
    }

    fn encode_namespaces(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.0.stats;
        let patterns: Vec<(String, usize)> = (self.0.bus.namespaces_by_pattern())
            .map(|(pattern, count)| (pattern.to_string(), count))
            .collect();
        let mut family = encoder.encode_descriptor(
            "throng_namespaces",
            "Socket.IO namespaces with somebody in them.",
            None,
            MetricType::Gauge,
        )?;
        for (pattern, count) in &patterns {
            let labels = [("namespace", pattern.as_str())];
            family.encode_family(&labels)?.encode_gauge(&(*count as u64))?;
        }
        for (name, help, kind, number) in &OF_NAMESPACES {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (place, (pattern, _)) in (0..).zip(&patterns) {
                let sum = stats.sum(|shard| number(shard.namespace(Some(place))));
                encode(family.encode_family(&[("namespace", pattern.as_str())])?, *kind, sum)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "throng_namespace_refusals",
            "Socket.IO namespaces that clients were refused.",
            None,
            MetricType::Counter,
        )?;
        let places = (0..).map(Some).zip(patterns.iter().map(|(pattern, _)| pattern.as_str()));
        for (place, pattern) in places.chain([(None, NO_PATTERN)]) {
            let sum = stats.sum(|shard| shard.namespace(place).refusals.value());
            encode(family.encode_family(&[("namespace", pattern)])?, MetricType::Counter, sum)?;
        }
        Ok(())
    }

    /// Only where there are limits: without, there is nothing to tell apart.
    fn encode_event_limits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tally = self.0.gate.tally();
        if tally.is_unlimited() {
            return Ok(());
        }
        let mut refused: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let counted = tally.refused();
        for (limit, count) in &counted {
            *refused.entry((limit.event.as_deref().unwrap_or("*"), limit.per.word())).or_default() += count;
        }
        let help = "Times that a limit on events was in the way of one.";
        let mut family =
            encoder.encode_descriptor("throng_events_refused", help, None, MetricType::Counter)?;
        for ((event, per), count) in refused {
            let labels = ([("event", event)], [("per", per)]);
            encode(family.encode_family(&labels)?, MetricType::Counter, count)?;
        }
        let (held, forgotten) = tally.held();
        let help = "Windows of limits on events that are kept for addresses and users.";
        gauge(encoder, "throng_event_windows", help, None, held as u64)?;
        let help = "Windows that were forgotten before their end because there were too many.";
        let family =
            encoder.encode_descriptor("throng_event_windows_forgotten", help, None, MetricType::Counter)?;
        encode(family, MetricType::Counter, forgotten)
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let control = &self.0;
        let connections_max = control.gate.connections_max() as u64;
        gauge(
            encoder,
            "throng_connections_max",
            "WebSocket connections there may be.",
            None,
            connections_max,
        )?;
        let draining = u64::from(control.gate.is_draining());
        gauge(encoder, "throng_draining", "1 while the process drains, 0 before.", None, draining)?;
        let peak = control.gate.peak() as u64;
        gauge(encoder, "throng_connections_peak", "The most open connections at once so far.", None, peak)?;
        let sockets_max = control.gate.sockets_max() as u64;
        gauge(encoder, "throng_sockets_max", "Sockets there may be.", None, sockets_max)?;
        let rooms = control.bus.rooms() as u64;
        gauge(encoder, "throng_rooms", "Rooms with a member anywhere.", None, rooms)?;
        // From here on, the names that Prometheus' own clients use for any process.
        let memory = control.stats.memory_bytes.value();
        gauge(encoder, "process_resident_memory", "Resident memory.", Some(Unit::Bytes), memory)?;
        let max = machine::Memory::here().max_bytes();
        let help = "Memory that the process may have.";
        gauge(encoder, "throng_memory_max", help, Some(Unit::Bytes), max)?;
        let taken = control.stats.memory_taken_permille.value() as f64 / 1e3;
        let help = "Part of the memory that is taken, of the bound that is fullest.";
        gauge(encoder, "throng_memory_taken_ratio", help, None, taken)?;
        let is_short = u64::from(control.gate.is_short_of_memory());
        let help = "1 while there may be no more connections because memory is short, else 0.";
        gauge(encoder, "throng_memory_short", help, None, is_short)?;
        let started = control.started_unix_ms as f64 / 1e3;
        gauge(
            encoder,
            "process_start_time",
            "When the process started, since 1970 (UTC).",
            Some(Unit::Seconds),
            started,
        )?;
        if let Some(open) = process::open_fds() {
            gauge(encoder, "process_open_fds", "Open file descriptors.", None, open)?;
        }
        if let Some(max) = process::max_fds() {
            gauge(encoder, "process_max_fds", "File descriptors there may be.", None, max)?;
        }
        encoder
            .encode_descriptor(
                "process_cpu",
                "User and system time of all threads.",
                Some(&Unit::Seconds),
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, f64>(&process::cpu_seconds(), None)?;
        let help = "User and system time of the threads of this name.";
        let name = "throng_thread_cpu";
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        for (thread, seconds) in process::thread_seconds() {
            family
                .encode_family(&[("thread", thread.as_str())])?
                .encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
        }
        encoder
            .encode_descriptor(
                "throng_build_info",
                "Always 1; the version is a label.",
                None,
                MetricType::Gauge,
            )?
            .encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?
            .encode_gauge(&1u64)
    }
}

/// Of the process, since one thread counts all of it.
fn encode_redis(bridge: &Bridge, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, unit, kind, number) in &OF_REDIS {
        encode(encoder.encode_descriptor(name, help, unit.as_ref(), *kind)?, *kind, number(bridge))?;
    }
    let lost = "Publications that other processes did not get, or may not have got.";
    let mut family = encoder.encode_descriptor("throng_redis_lost", lost, None, MetricType::Counter)?;
    for (reason, count) in bridge.lost() {
        encode(family.encode_family(&[("reason", reason)])?, MetricType::Counter, count)?;
    }
    let faults = "What went wrong between throng and Redis.";
    let mut family = encoder.encode_descriptor("throng_redis_faults", faults, None, MetricType::Counter)?;
    for (kind, count) in bridge.faults() {
        encode(family.encode_family(&[("reason", kind)])?, MetricType::Counter, count)?;
    }
    let dropped = "What was to be made of messages on channels of applications, and was not.";
    let name = "throng_redis_channel_dropped";
    let mut family = encoder.encode_descriptor(name, dropped, None, MetricType::Counter)?;
    for (reason, count) in bridge.dropped() {
        encode(family.encode_family(&[("reason", reason)])?, MetricType::Counter, count)?;
    }
    Ok(())
}

/// Of the process, likewise.
fn encode_backend(backend: &Backend, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let stats = &backend.stats;
    let open = "The breaker of the backend: 0 is closed, 1 half open, 2 open.";
    gauge(encoder, "throng_backend_breaker", open, None, stats.breaker.value())?;
    let under_way = "Requests to the backend that are under way.";
    gauge(encoder, "throng_backend_under_way", under_way, None, stats.under_way.value())?;
    let answered = "Requests to the backend that went well.";
    let metric = encoder.encode_descriptor("throng_backend_answered", answered, None, MetricType::Counter)?;
    encode(metric, MetricType::Counter, stats.answered.value())?;
    let problems = "Requests to the backend that did not go well.";
    let mut family =
        encoder.encode_descriptor("throng_backend_problems", problems, None, MetricType::Counter)?;
    for (reason, count) in Problem::LABELS.iter().zip(&stats.problems) {
        encode(family.encode_family(&[("reason", *reason)])?, MetricType::Counter, count.value())?;
    }
    let calls = "What clients did that the backend was asked about or told of, by what came of that.";
    let mut family = encoder.encode_descriptor("throng_backend_calls", calls, None, MetricType::Counter)?;
    for (call, outcomes) in calls::Kind::LABELS.iter().zip(&stats.calls) {
        for (outcome, count) in CallOutcome::LABELS.iter().zip(outcomes) {
            let labels = ([("call", *call)], [("outcome", *outcome)]);
            encode(family.encode_family(&labels)?, MetricType::Counter, count.value())?;
        }
    }
    Ok(())
}

/// Of the process, where the backend is asked about clients.
fn encode_calls(calls: &Calls, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let waiting = "What clients did that waits for the backend.";
    gauge(encoder, "throng_backend_calls_waiting", waiting, None, calls.waiting() as u64)?;
    let refused = "What clients did that the backend was not asked about, since too much waited.";
    let metric =
        encoder.encode_descriptor("throng_backend_calls_refused", refused, None, MetricType::Counter)?;
    encode(metric, MetricType::Counter, calls.refused.value())
}

/// Of the process, likewise.
fn encode_webhooks(notices: &Notices, now: Time, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let made = "Notices for the backend, those that were lost included.";
    let mut family = encoder.encode_descriptor("throng_webhooks_notices", made, None, MetricType::Counter)?;
    for (kind, count) in notices.made() {
        encode(family.encode_family(&[("kind", kind)])?, MetricType::Counter, count)?;
    }
    let lost = "Notices that were lost.";
    let mut family = encoder.encode_descriptor("throng_webhooks_lost", lost, None, MetricType::Counter)?;
    for (kind, reason, count) in notices.lost() {
        let labels = ([("kind", kind)], [("reason", reason)]);
        encode(family.encode_family(&labels)?, MetricType::Counter, count)?;
    }
    for (name, help, counter) in [
        ("throng_webhooks_batches", "Batches of notices that were delivered.", &notices.batches),
        ("throng_webhooks_retries", "Attempts that failed and were followed by another.", &notices.retries),
    ] {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        encode(metric, MetricType::Counter, counter.value())?;
    }
    let (waiting, bytes) = notices.waiting();
    let help = "Notices that wait, those under way included.";
    gauge(encoder, "throng_webhooks_waiting", help, None, waiting as u64)?;
    gauge(encoder, "throng_webhooks_waiting", "What they count for.", Some(Unit::Bytes), bytes as u64)?;
    let help = "How old the oldest of them is.";
    let seconds = notices.oldest_age_ms(now) as f64 / 1_000.0;
    gauge(encoder, "throng_webhooks_oldest", help, Some(Unit::Seconds), seconds)
}

/// Of the process, likewise.
fn encode_callouts(callouts: &Callouts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let stats = &callouts.stats;
    let waiting = "Clients that wait for the backend to say who they are.";
    gauge(encoder, "throng_callouts_waiting", waiting, None, stats.waiting.value())?;
    let known = "What the backend has said of clients and is known.";
    gauge(encoder, "throng_callouts_known", known, None, stats.known.value())?;
    let by = "Clients of whom the backend was to say who they are, by how that was found out.";
    let mut family = encoder.encode_descriptor("throng_callouts", by, None, MetricType::Counter)?;
    for (by, counter) in
        [("known", &stats.hits), ("shared", &stats.shared), ("asked", &stats.asked), ("full", &stats.full)]
    {
        encode(family.encode_family(&[("by", by)])?, MetricType::Counter, counter.value())?;
    }
    let answers = "What the backend has said of clients when it was asked.";
    let mut family =
        encoder.encode_descriptor("throng_callout_answers", answers, None, MetricType::Counter)?;
    for (answer, counter) in CalloutStats::ANSWERS.iter().zip(&stats.answers) {
        encode(family.encode_family(&[("answer", *answer)])?, MetricType::Counter, counter.value())?;
    }
    for (name, help, counter) in [
        ("throng_callout_repeats", "How often the backend was asked once more.", &stats.repeated),
        (
            "throng_callouts_forgotten",
            "What the backend had said of clients and was forgotten by order.",
            &stats.forgotten,
        ),
    ] {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        encode(metric, MetricType::Counter, counter.value())?;
    }
    Ok(())
}

/// Of the process, likewise.
fn encode_api(api: &Api, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauge(
        encoder,
        "throng_api_connections",
        "Connections of the control port that have shown a key.",
        None,
        api.connections() as u64,
    )?;
    let stats = &api.stats;
    for (name, help, counter) in [
        ("throng_api_publications", "Events that backends published.", &stats.publications),
        (
            "throng_api_publications_refused",
            "Events of backends that were refused.",
            &stats.publications_refused,
        ),
        ("throng_api_replays", "Requests that came again and were answered as before.", &stats.replays),
    ] {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        encode(metric, MetricType::Counter, counter.value())?;
    }
    let help = "Requests of the API that were not let in.";
    let mut family = encoder.encode_descriptor("throng_api_strangers", help, None, MetricType::Counter)?;
    for (reason, counter) in Stranger::LABELS.iter().zip(&stats.strangers) {
        encode(family.encode_family(&[("reason", *reason)])?, MetricType::Counter, counter.value())?;
    }
    let help = "Requests of the API by what they were answered with.";
    let mut family = encoder.encode_descriptor("throng_api_requests", help, None, MetricType::Counter)?;
    for (route, status, count) in stats.requests() {
        let labels = ([("route", route)], [("status", status)]);
        encode(family.encode_family(&labels)?, MetricType::Counter, count)?;
    }
    Ok(())
}

/// Of the process, which reads keys for all shards.
fn encode_keys(tokens: &Tokens, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauge(encoder, "throng_keys", "Keys that vouch for tokens.", None, tokens.key_count.value())?;
    for (name, help, counter) in [
        ("throng_key_refreshes", "How often keys were read again.", &tokens.refreshes),
        ("throng_key_refresh_failures", "How often keys could not be read.", &tokens.refresh_failures),
    ] {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        encode(metric, MetricType::Counter, counter.value())?;
    }
    Ok(())
}

fn encode(mut metric: MetricEncoder<'_>, kind: MetricType, number: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&number, None),
        _ => metric.encode_gauge(&number),
    }
}

fn gauge<Value: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: Value,
) -> fmt::Result {
    encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
}
