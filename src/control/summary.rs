//! A line now and then that says how the server is, for those who have nothing but the log.

use super::Control;
use super::dump::{Rates, Seen};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Logs such a line every so many milliseconds, which may change; 0 is never. Ends with the sender.
pub async fn summarize(control: Arc<Control>, mut every_ms: watch::Receiver<u32>) {
    let (mut said_at, mut last) = (Instant::now(), Seen::new(&control));
    loop {
        let pause_ms = *every_ms.borrow_and_update();
        let due = said_at + Duration::from_millis(pause_ms.into());
        tokio::select! {
            () = sleep_until(due), if pause_ms > 0 => {}
            changed = every_ms.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        let now = Seen::new(&control);
        let rates = Rates { last: &last, now: &now };
        let stats = &control.stats;
        tracing::info!(
            uptime_seconds = control.clock.now().ms() / 1000,
            connections = stats.sum(|shard| shard.connections.value()),
            connections_peak = control.gate.peak(),
            rooms = control.bus.rooms(),
            messages_received = rates.of(|shard| shard.messages_received),
            frames_sent = rates.of(|shard| shard.frames_sent),
            publications = rates.of(|shard| shard.publications),
            deliveries = rates.of(|shard| shard.deliveries),
            turn_p99_us = rates.p99_us(|shard| &shard.turn_duration),
            publish_p99_us = rates.p99_us(|shard| &shard.publish_latency),
            memory_bytes = stats.memory_bytes.value(),
            outbox_bytes = stats.sum(|shard| shard.outbox_bytes.value()),
            "running, with rates per second"
        );
        (said_at, last) = (Instant::now(), now);
    }
}
