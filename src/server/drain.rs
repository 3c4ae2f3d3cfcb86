//! The orderly end: balancers are waited for, then the shards, and the backend hears the last of it.

use super::{Failure, Outcome};
use crate::auth::Gate;
use crate::bus::Bus;
use crate::bus::calls::Calls;
use crate::bus::mailbox::Mail;
use crate::bus::notices::Notices;
use crate::config;
use crate::message::ShardId;
use crate::systemd;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, timeout};

/// How much longer than the shards the process waits for them, in milliseconds.
const DRAIN_MARGIN_MS: u64 = 2_000;
/// How long the last notices and calls have at least to go out, when the connections took all the time to drain; within the margin.
const LAST_WORDS: Duration = Duration::from_millis(1_000);
/// How often it is looked whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What comes to its end.
pub(super) struct Drain<'a> {
    pub(super) settings: &'a config::Drain,
    pub(super) gate: &'a Gate,
    pub(super) bus: &'a Bus,
    pub(super) notices: Option<&'a Notices>,
    /// What tells of each shard that has stopped.
    pub(super) stops: &'a mut UnboundedReceiver<Outcome>,
    /// The service manager keeps the listeners open.
    pub(super) are_kept: bool,
}

impl Drain<'_> {
    /// Goes on until all shards have stopped. It takes at most [`drain.notice_ms`](config::Drain), `drain.timeout_ms` and two seconds,
    /// which the service manager is told.
    ///
    /// # Errors
    /// [`Failure::Shard`] when a shard fails, [`Failure::Undrained`] when the time is over.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let config::Drain { notice_ms, timeout_ms, .. } = *self.settings;
        let shards_ms = u64::from(timeout_ms) + DRAIN_MARGIN_MS;
        systemd::notify_of_end(Duration::from_millis(u64::from(notice_ms) + shards_ms));
        self.gate.drain();
        if notice_ms > 0 {
            self.give_notice(notice_ms).await?;
        }
        let spread_ms = spread_ms(self.settings, self.gate.open());
        tracing::info!(connections = self.gate.open(), spread_ms, "draining");
        // Who comes back to listeners that are kept waits for the next process, and that for this one.
        let away_ms = if self.are_kept { spread_ms } else { 0 };
        for id in 0..self.bus.shards() {
            self.bus.post(id as ShardId, Mail::Drain { spread_ms, away_ms, timeout_ms });
        }
        let end = Instant::now() + Duration::from_millis(timeout_ms.into());
        let stopped = timeout(Duration::from_millis(shards_ms), self.await_all(end)).await;
        stopped.unwrap_or(Err(Failure::Undrained))
    }

    /// Waits until balancers have noticed. Everybody is served as before.
    async fn give_notice(&mut self, notice_ms: u32) -> Result<(), Failure> {
        tracing::info!(connections = self.gate.open(), notice_ms, "not ready any more");
        tokio::select! {
            () = sleep(Duration::from_millis(notice_ms.into())) => Ok(()),
            Some(outcome) = self.stops.recv() => Err(outcome.too_early()),
        }
    }

    async fn await_all(&mut self, end: Instant) -> Result<(), Failure> {
        while let Some(Outcome { id, result }) = self.stops.recv().await {
            result.map_err(|reason| Failure::Shard { id, reason })?;
        }
        send_last(self.notices, self.bus.calls().map(|calls| &**calls), end).await;
        Ok(())
    }
}

/// Over how many milliseconds so many connections are closed.
fn spread_ms(drain: &config::Drain, connections: usize) -> u32 {
    let pace = u64::from(drain.closes_per_second_max);
    let needed_ms = (connections as u64 * 1_000).checked_div(pace).unwrap_or(0);
    needed_ms.clamp(drain.spread_ms.into(), drain.timeout_ms.max(drain.spread_ms).into()) as u32
}

/// Nothing happens any more: waits until the backend has heard the last of it, or the time for that is over.
async fn send_last(notices: Option<&Notices>, calls: Option<&Calls>, end: Instant) {
    notices.inspect(|notices| notices.hurry());
    let waiting = || {
        let (waiting, _) = notices.map_or((0, 0), Notices::waiting);
        (waiting, calls.map_or(0, Calls::untold))
    };
    let end = end.max(Instant::now() + LAST_WORDS);
    while waiting() != (0, 0) && Instant::now() < end {
        sleep(LOOK_AGAIN).await;
    }
    let (waiting, untold) = waiting();
    if waiting > 0 {
        tracing::warn!(waiting, "notices are lost: they did not go out in the time to drain");
    }
    if untold > 0 {
        tracing::warn!(
            untold,
            "the backend has not heard of all who left: it did not answer in the time to drain"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_spread_as_said_and_by_their_pace_but_not_beyond_the_end() {
        let drain = |spread_ms, closes_per_second_max| config::Drain {
            notice_ms: 0,
            timeout_ms: 10_000,
            spread_ms,
            closes_per_second_max,
        };
        for (spread, pace, connections, expected_ms) in [
            (1_000, 10_000, 0, 1_000),
            (1_000, 10_000, 10_000, 1_000),
            (1_000, 10_000, 25_000, 2_500),
            (1_000, 10_000, 1_000_000, 10_000),
            (1_000, 0, 1_000_000, 1_000),
            (0, 0, 1_000_000, 0),
            (0, 1, 16_000_000, 10_000),
        ] {
            assert_eq!(spread_ms(&drain(spread, pace), connections), expected_ms, "{connections}");
        }
    }
}
