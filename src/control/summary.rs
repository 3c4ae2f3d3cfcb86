//! A line now and then that says how the server is, for those who have nothing but the log.

use super::Control;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Logs such a line every so many milliseconds, which may change; 0 is never. Ends with the sender.
pub async fn summarize(control: Arc<Control>, mut every_ms: watch::Receiver<u32>) {
    let counts = || {
        let sum = |number: fn(&crate::stats::ShardStats) -> u64| control.stats.sum(number);
        (sum(|shard| shard.messages_in.value()), sum(|shard| shard.frames_out.value()))
    };
    let (mut said_at, mut said) = (Instant::now(), counts());
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
        let (now, counted) = (Instant::now(), counts());
        let seconds = now.duration_since(said_at).as_secs_f64();
        // To one decimal: no more is known, and lines are read by people.
        let rate =
            |before: u64, after: u64| (after.wrapping_sub(before) as f64 / seconds * 10.0).round() / 10.0;
        tracing::info!(
            connections = control.gate.open(),
            peak = control.gate.peak(),
            rooms = control.bus.rooms(),
            received_per_second = rate(said.0, counted.0),
            sent_per_second = rate(said.1, counted.1),
            memory_bytes = control.stats.memory_bytes.value(),
            uptime_seconds = control.clock.now().ms() / 1000,
            "running"
        );
        (said_at, said) = (now, counted);
    }
}
