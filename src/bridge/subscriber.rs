//! What is heard from one server: subscriptions are made in batches, made again on each new connection, and a watchdog notices when
//! nothing arrives any more.

use super::fault::{Fault, FaultKind};
use super::lanes::{Ends, Shared};
use super::link::{Backoff, Event, Way, wait_for_change};
use crate::time::Time;
use redis::aio::{MultiplexedConnection, SendError};
use redis::{Cmd, Pipeline, PushInfo, PushKind, Value, cmd};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

/// Subscriptions in one batch. One batch is under way at a time: Redis serves others between them.
const BATCH_MAX: usize = 1024;

/// What a connection hears.
struct Ear {
    shared: Arc<Shared>,
    lane: u32,
    /// The channel that only this connection publishes to and subscribes to.
    watch: Vec<u8>,
    /// When something was heard last, in nanoseconds of the clock.
    heard_ns: AtomicU64,
    /// Rung when the connection has ended.
    ended: Notify,
}

/// Hears what a lane wants to hear, on one connection after the other.
pub(super) async fn subscribe(shared: Arc<Shared>, lane: Arc<Ends>) {
    let mut backoff = Backoff::new(&shared.settings);
    loop {
        let number = RandomState::new().hash_one(lane.id);
        let ear = Arc::new(Ear {
            shared: shared.clone(),
            lane: lane.id,
            watch: format!("{}watch:{number:016x}", shared.settings.prefix).into_bytes(),
            heard_ns: AtomicU64::new(0),
            ended: Notify::new(),
        });
        let on_push = {
            let ear = ear.clone();
            move |push| {
                ear.hear(push);
                Ok::<(), SendError>(())
            }
        };
        let fault = match shared.connect(&lane, on_push).await {
            Ok((conn, address)) => {
                backoff.begin();
                tokio::select! {
                    biased;
                    fault = serve(&shared, &lane, conn, &ear, backoff.is_again()) => fault,
                    fault = wait_for_change(&lane, &address) => fault,
                }
            }
            Err(fault) => fault,
        };
        let heard_ns = ear.heard_ns.load(Relaxed);
        let heard_until = (heard_ns > 0).then(|| Time::from_ns(heard_ns));
        backoff.fail();
        shared.subscriber_is_down(lane.id, &fault, heard_until);
        backoff.wait().await;
    }
}

/// Serves one connection until it fails.
async fn serve(shared: &Shared, lane: &Ends, conn: MultiplexedConnection, ear: &Ear, again: bool) -> Fault {
    tokio::select! {
        biased;
        Err(fault) = follow(shared, lane, conn.clone(), ear, again) => fault,
        () = ear.ended.notified() => Fault::new(FaultKind::Closed, "the connection has ended"),
        fault = watch(shared, lane, conn, ear) => fault,
    }
}

/// Says to Redis what is wanted, and then whatever changes.
async fn follow(
    shared: &Shared,
    lane: &Ends,
    mut conn: MultiplexedConnection,
    ear: &Ear,
    again: bool,
) -> Result<Infallible, Fault> {
    let mut listen = cmd("SUBSCRIBE");
    listen.arg(&ear.watch);
    conn.send_packed_command(&listen).await?.extract_error()?;
    ear.heard_ns.store(shared.clock.now().ns(), Relaxed);
    shared.subscriber_is_up(lane.id, again);
    loop {
        while say_changes(shared, lane, &mut conn).await? {}
        lane.subscribe.notified().await;
    }
}

/// Says a batch of changes to Redis, and answers whether there was one.
async fn say_changes(shared: &Shared, lane: &Ends, conn: &mut MultiplexedConnection) -> Result<bool, Fault> {
    let changes = shared.take_changes(lane.id, BATCH_MAX);
    if changes.is_empty() {
        return Ok(false);
    }
    let mut batch = Pipeline::with_capacity(changes.len());
    for (way, name, wanted) in &changes {
        // One name in each, since names of several slots cannot stand in one SSUBSCRIBE.
        let mut change = Cmd::with_capacity(2, 16 + name.len());
        change.arg(way.command(*wanted)).arg(&name[..]);
        batch.add_command(change);
    }
    let answers = conn.send_packed_commands(&batch, 0, changes.len()).await?;
    let mut moved = false;
    let done = changes.into_iter().zip(answers).filter_map(|(change, answer)| {
        let Value::ServerError(error) = answer else { return Some(change) };
        let fault = Fault::from(redis::RedisError::from(error));
        moved |= fault.kind == FaultKind::Cluster;
        shared.refused(lane.id, &fault);
        None
    });
    let done: Vec<_> = done.collect();
    shared.changed(lane.id, done.into_iter());
    if moved {
        shared.moved.notify_one();
    }
    Ok(true)
}

/// Publishes to this very connection again and again, and ends when nothing arrives for longer than the settings have patience.
async fn watch(shared: &Shared, lane: &Ends, mut conn: MultiplexedConnection, ear: &Ear) -> Fault {
    let mut ticks = interval(shared.settings.watch_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut call = cmd("PUBLISH");
    call.arg(&ear.watch).arg("");
    let mut calls = Pipeline::new();
    calls.add_command(call).add_command(shared.places.probe());
    let patience = shared.settings.watch_patience;
    let began = shared.clock.now();
    loop {
        ticks.tick().await;
        // Refused subscriptions are tried again at this pace.
        shared.say_again(lane.id);
        let answer = tokio::time::timeout(patience, conn.send_packed_commands(&calls, 0, 2)).await;
        match answer {
            // Whether it takes an answer too long is seen below.
            Err(_) => {}
            Ok(Err(error)) => return error.into(),
            Ok(Ok(answers)) => {
                for answer in &answers {
                    if let Err(fault) = shared.places.check_probe(answer) {
                        return fault;
                    }
                }
            }
        }
        let heard = Time::from_ns(ear.heard_ns.load(Relaxed)).max(began);
        let silence = shared.clock.now().since(heard);
        if silence > patience {
            return Fault::new(FaultKind::Deaf, format!("nothing was heard for {} ms", silence.as_millis()));
        }
    }
}

impl Ear {
    /// Runs where the bytes are read, so nothing queues here: while it works, nothing more is read, and Redis ends the connection when that
    /// takes too long.
    fn hear(&self, push: PushInfo) {
        let way = match push.kind {
            PushKind::Message => Way::Plain,
            PushKind::PMessage => Way::Pattern,
            PushKind::SMessage => Way::Sharded,
            PushKind::Disconnection => return self.ended.notify_one(),
            PushKind::SUnsubscribe => {
                if let Some(Value::BulkString(channel)) = push.data.first() {
                    self.shared.ended(self.lane, channel);
                }
                return;
            }
            _ => return,
        };
        let mut data = push.data.into_iter().rev();
        let (Some(Value::BulkString(payload)), Some(Value::BulkString(channel))) = (data.next(), data.next())
        else {
            return;
        };
        let pattern = match data.next() {
            Some(Value::BulkString(pattern)) => Some(pattern),
            _ => None,
        };
        self.heard_ns.store(self.shared.clock.now().ns(), Relaxed);
        if channel != self.watch {
            self.shared.stats.received.add(1);
            let pattern = pattern.as_deref();
            (self.shared.tell)(Event::Message { way, pattern, channel: &channel, payload });
        }
    }
}
