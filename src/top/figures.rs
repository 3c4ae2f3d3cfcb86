//! What two scrapes say of the time between them.

use super::scrape::Scrape;
use crate::message::SHARDS_MAX;

/// The server at the later one. Rates and shares are those of the time between, `None` when it has not been looked at before.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) version: String,
    pub(super) connections: f64,
    pub(super) connections_max: f64,
    pub(super) connections_peak: f64,
    pub(super) sockets: f64,
    pub(super) polling: f64,
    pub(super) rooms: f64,
    pub(super) memberships: f64,
    pub(super) memory_bytes: f64,
    pub(super) outbox_bytes: f64,
    pub(super) open_fds: f64,
    pub(super) max_fds: f64,
    /// Processors in use: 1.5 is one and a half.
    pub(super) cpu: Option<f64>,
    pub(super) rates: Option<Rates>,
    pub(super) turn: Quantiles,
    pub(super) publish: Quantiles,
    pub(super) shards: Vec<Shard>,
    pub(super) redis: Option<Redis>,
    /// The breaker of the backend, if there is one: 0 closed, 1 half open, 2 open. Then what waits for it.
    pub(super) backend: Option<(f64, f64)>,
    /// Notices that wait, how old the oldest is in seconds, and how many were lost in the time between.
    pub(super) webhooks: Option<(f64, f64, f64)>,
}

/// Per second.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    pub(super) messages: f64,
    pub(super) received_bytes: f64,
    pub(super) frames: f64,
    pub(super) sent_bytes: f64,
    pub(super) publications: f64,
    pub(super) deliveries: f64,
    pub(super) opened: f64,
    pub(super) ended: f64,
    pub(super) slow: f64,
    pub(super) rejected: f64,
    pub(super) dropped: f64,
    pub(super) limited: f64,
    pub(super) overloads: f64,
}

/// Durations in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quantiles {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) connections: f64,
    pub(super) rooms: f64,
    pub(super) mail: f64,
    pub(super) outbox_bytes: f64,
    pub(super) messages: Option<f64>,
    pub(super) frames: Option<f64>,
    pub(super) deliveries: Option<f64>,
    /// Share of a processor.
    pub(super) cpu: Option<f64>,
    pub(super) turn: Quantiles,
    pub(super) publish: Quantiles,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Redis {
    pub(super) waiting: f64,
    pub(super) published: Option<f64>,
    pub(super) received: Option<f64>,
    /// Since the start.
    pub(super) lost: f64,
    pub(super) gaps: f64,
}

impl Figures {
    /// What `now` says, and `earlier`, of the same process.
    pub(super) fn new(now: &Scrape, earlier: Option<&Scrape>) -> Figures {
        // A process that was started anew has begun to count anew.
        let start = "process_start_time_seconds";
        let earlier = earlier.filter(|earlier| earlier.sum(start) == now.sum(start));
        let seconds = earlier.map_or(0.0, |earlier| now.at.since_ns(earlier.at) as f64 / 1e9);
        let earlier = earlier.filter(|_| seconds > 0.0);
        let rate = |name: &str, label: &str| {
            let before = earlier?.of(name, label);
            Some(((now.of(name, label) - before) / seconds).max(0.0))
        };
        let total = |name: &str| rate(name, "").unwrap_or_default();
        let quantiles = |name: &str, label: &str| Quantiles {
            p50: earlier.and_then(|earlier| now.quantile(earlier, name, label, 0.5)),
            p99: earlier.and_then(|earlier| now.quantile(earlier, name, label, 0.99)),
        };
        let (turn, publish) = ("throng_turn_duration_seconds", "throng_publish_latency_seconds");
        let shard = |name: String| {
            let label = format!("shard=\"{name}\"");
            Shard {
                connections: now.of("throng_connections", &label),
                rooms: now.of("throng_shard_rooms", &label),
                mail: now.of("throng_mailbox", &label),
                outbox_bytes: now.of("throng_outbox_bytes", &label),
                messages: rate("throng_messages_received_total", &label),
                frames: rate("throng_frames_sent_total", &label),
                deliveries: rate("throng_deliveries_total", &label),
                cpu: rate("throng_thread_cpu_seconds_total", &format!("thread=\"shard-{name}\"")),
                turn: quantiles(turn, &label),
                publish: quantiles(publish, &label),
                name,
            }
        };
        Figures {
            version: now.values("throng_build_info", "version").pop().unwrap_or_default(),
            connections: now.sum("throng_connections"),
            connections_max: now.sum("throng_connections_max"),
            connections_peak: now.sum("throng_connections_peak"),
            sockets: now.sum("throng_sockets"),
            polling: now.of("throng_sessions", "transport=\"polling\""),
            rooms: now.sum("throng_rooms"),
            memberships: now.sum("throng_memberships"),
            memory_bytes: now.sum("process_resident_memory_bytes"),
            outbox_bytes: now.sum("throng_outbox_bytes"),
            open_fds: now.sum("process_open_fds"),
            max_fds: now.sum("process_max_fds"),
            cpu: rate("process_cpu_seconds_total", ""),
            rates: earlier.map(|_| Rates {
                messages: total("throng_messages_received_total"),
                received_bytes: total("throng_received_bytes_total"),
                frames: total("throng_frames_sent_total"),
                sent_bytes: total("throng_sent_bytes_total"),
                publications: total("throng_publications_total"),
                deliveries: total("throng_deliveries_total"),
                opened: total("throng_upgrades_total"),
                ended: total("throng_disconnects_total"),
                slow: rate("throng_disconnects_total", "reason=\"slow\"").unwrap_or_default(),
                rejected: total("throng_rejects_total"),
                dropped: total("throng_dropped_total"),
                limited: total("throng_rate_limited_total"),
                overloads: total("throng_overloads_total"),
            }),
            turn: quantiles(turn, ""),
            publish: quantiles(publish, ""),
            shards: now
                .values("throng_connections", "shard")
                .into_iter()
                // No throng has more, whatever this server says.
                .take(SHARDS_MAX)
                .map(shard)
                .collect(),
            redis: now.has("throng_redis_waiting").then(|| Redis {
                waiting: now.sum("throng_redis_waiting"),
                published: rate("throng_redis_published_total", ""),
                received: rate("throng_redis_received_total", ""),
                lost: now.sum("throng_redis_lost_total"),
                gaps: now.sum("throng_redis_gaps_total"),
            }),
            backend: now.has("throng_backend_breaker").then(|| {
                let waiting = ["throng_backend_calls_waiting", "throng_callouts_waiting"];
                (now.sum("throng_backend_breaker"), waiting.iter().map(|name| now.sum(name)).sum::<f64>())
            }),
            webhooks: now.has("throng_webhooks_waiting").then(|| {
                let lost = rate("throng_webhooks_lost_total", "").unwrap_or_default() * seconds;
                (now.sum("throng_webhooks_waiting"), now.sum("throng_webhooks_oldest_seconds"), lost)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    fn scrape(at_ms: u64, started: u64, messages: u64) -> Scrape {
        let text = format!(
            "process_start_time_seconds {started}\nthrong_connections{{shard=\"0\"}} 5\n\
             throng_messages_received_total{{shard=\"0\"}} {messages}\n"
        );
        Scrape::parse(&text, Time::from_ms(at_ms))
    }

    #[test]
    fn there_are_no_more_shards_than_a_process_can_have() {
        let text: String =
            (0..70_000).map(|id| format!("throng_connections{{shard=\"{id}\"}} 1\n")).collect();
        assert_eq!(Figures::new(&Scrape::parse(&text, Time::default()), None).shards.len(), SHARDS_MAX);
    }

    #[test]
    fn rates_are_those_of_one_process() {
        let rate = |earlier: Option<&Scrape>, now: &Scrape| Figures::new(now, earlier).shards[0].messages;
        let (one, two, anew) = (scrape(0, 7, 100), scrape(2_000, 7, 140), scrape(2_000, 8, 5));
        assert_eq!(rate(None, &two), None, "nothing is known of before");
        assert_eq!(rate(Some(&one), &two), Some(20.0));
        assert_eq!(rate(Some(&one), &anew), None, "it was started anew");
        assert_eq!(rate(Some(&two), &two), None, "no time has passed");
    }
}
