//! What is published to one server: gathered into pipelines, several of them under way, in order, and never sent twice.

use super::fault::{Fault, FaultKind};
use super::lanes::{Ends, Outgoing, Shared, Weight};
use super::link::{Backoff, QUESTIONS_MAX, wait_for_change};
use super::stats::Loss;
use redis::aio::{MultiplexedConnection, SendError};
use redis::{Pipeline, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Publications in one pipeline, and about how many bytes. With 1024 publications at 100 B the rate was half of that with 256: what is
/// under way no longer fits the cache.
const PIPELINE_MAX: usize = 256;
const PIPELINE_BYTES_MAX: usize = 256 << 10;
/// Pipelines under way. While Redis works on one, the next is already there; more would only wait there instead of here.
const PIPELINES_MAX: usize = 4;
/// Places in the queue of a connection, which takes memory only as it is used. A question that was given up keeps its place until it is sent,
/// so there are places for several times those under way. There need not be more: where nothing is sent, a pipeline or a sign of life has
/// no answer either, and the connection ends within three times the patience for an answer.
pub(super) const QUEUE_MAX: usize = 2048;
const _: () = assert!(PIPELINES_MAX + 4 * QUESTIONS_MAX <= QUEUE_MAX);
/// How often a publication is sent to where its slot has moved before it is lost: with the pauses between, about 3 s, in which the
/// servers of a cluster have told each other.
const MOVES_MAX: u8 = 5;

/// What was asked, and what Redis says to it.
type Answer = (Pipeline, RedisResult<Vec<Value>>);

/// A pipeline under way.
struct Flight {
    /// Slot, moves and weight of each message; empty when it only asks for a sign of life.
    outgoing: Vec<(usize, u8, Weight)>,
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
}

/// Publishes what waits in a lane, on one connection after the other.
pub(super) async fn publish(shared: Arc<Shared>, lane: Arc<Ends>) {
    let mut backoff = Backoff::new(&shared.settings);
    loop {
        shared.publisher_tries(lane.id);
        let ended = Arc::new(Notify::new());
        let bell = ended.clone();
        let on_push = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                bell.notify_one();
            }
            Ok::<(), SendError>(())
        };
        let fault = match shared.connect(&lane, on_push).await {
            Ok((conn, address)) => {
                backoff.begin();
                shared.publisher_is_up(lane.id, conn.clone(), backoff.is_again());
                let (mut flights, mut moved) = (VecDeque::new(), Vec::new());
                let fault = tokio::select! {
                    biased;
                    fault = serve(&shared, &lane, conn, &mut flights, &mut moved, &ended) => fault,
                    fault = wait_for_change(&lane, &address) => fault,
                };
                for flight in flights {
                    let weight = flight.outgoing.iter().map(|(.., weight)| *weight).sum();
                    shared.settle(lane.id, weight, Some(Loss::Unknown));
                }
                shared.put_back(lane.id, moved);
                fault
            }
            Err(fault) => fault,
        };
        let too_often = backoff.fail();
        shared.publisher_is_down(lane.id, &fault, too_often);
        shared.moved.notify_one();
        backoff.wait().await;
    }
}

/// Serves one connection until it fails. What is then in `flights` has no answer; what is in `moved` was not taken.
async fn serve(
    shared: &Shared,
    lane: &Ends,
    conn: MultiplexedConnection,
    flights: &mut VecDeque<Flight>,
    moved: &mut Vec<Outgoing>,
    ended: &Notify,
) -> Fault {
    let mut signs = interval(shared.settings.watch_interval);
    signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while flights.len() < PIPELINES_MAX && moved.is_empty() {
            let outgoing = shared.take(lane.id, PIPELINE_MAX, PIPELINE_BYTES_MAX);
            if outgoing.is_empty() {
                break;
            }
            flights.push_back(depart(conn.clone(), outgoing).await);
        }
        if flights.is_empty() && !moved.is_empty() {
            // Now nothing is under way that could overtake, so that it can go to where its slot is now, before what came later.
            let moves = moved.iter().map(|outgoing| outgoing.moves).max().unwrap_or_default();
            if moves > 1 {
                sleep(shared.settings.backoff_min * (1 << moves)).await;
            }
            let mut maps = shared.maps.subscribe();
            shared.put_back(lane.id, std::mem::take(moved));
            shared.moved.notify_one();
            // When the slots cannot be read for so long, it goes to the same server again, which ends after a few times.
            timeout(shared.settings.command_timeout, maps.changed()).await.ok();
            continue;
        }
        tokio::select! {
            biased;
            answered = answer(flights), if !flights.is_empty() => {
                if let Err(fault) = land(shared, lane, flights, answered, moved) {
                    return fault;
                }
            }
            () = ended.notified() => return Fault::new(FaultKind::Closed, "the connection has ended"),
            () = lane.publish.notified(), if flights.len() < PIPELINES_MAX => {}
            _ = signs.tick(), if flights.is_empty() => {
                let probe = Outgoing { cmd: shared.places.probe(), weight: Weight::default(), slot: 0, moves: 0 };
                let mut flight = depart(conn.clone(), vec![probe]).await;
                flight.outgoing.clear();
                flights.push_back(flight);
            }
        }
    }
}

/// Hands a pipeline to the connection. When this returns, it is in its place there: what departs later stays behind it.
async fn depart(mut conn: MultiplexedConnection, outgoing: Vec<Outgoing>) -> Flight {
    let mut pipeline = Pipeline::with_capacity(outgoing.len());
    let mut notes = Vec::with_capacity(outgoing.len());
    for outgoing in outgoing {
        notes.push((outgoing.slot, outgoing.moves, outgoing.weight));
        pipeline.add_command(outgoing.cmd);
    }
    let count = notes.len();
    // Polled once, it is in the queue of the connection, where there is always a place for it: see `QUEUE_MAX`. Had it to wait for one, the
    // next could come before it. Unconstrained, because tokio would otherwise make it wait when this task has done much.
    let mut answer: Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(tokio::task::unconstrained(async move {
            let answer = conn.send_packed_commands(&pipeline, 0, count).await;
            (pipeline, answer)
        }));
    let mut early = None;
    poll_fn(|context| {
        if let Poll::Ready(answer) = answer.as_mut().poll(context) {
            early = Some(answer);
        }
        Poll::Ready(())
    })
    .await;
    if let Some(early) = early {
        answer = Box::pin(std::future::ready(early));
    }
    Flight { outgoing: notes, answer }
}

/// The answer to the flight that departed first, which is the one that Redis answers first.
async fn answer(flights: &mut VecDeque<Flight>) -> Answer {
    match flights.front_mut() {
        Some(flight) => flight.answer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Reckons up the first flight. What has to go elsewhere is added to `moved`.
///
/// # Errors
/// What makes this connection, or this server, useless.
fn land(
    shared: &Shared,
    lane: &Ends,
    flights: &mut VecDeque<Flight>,
    (pipeline, answer): Answer,
    moved: &mut Vec<Outgoing>,
) -> Result<(), Fault> {
    let answers = answer?;
    let Some(flight) = flights.pop_front() else { return Ok(()) };
    if flight.outgoing.is_empty() {
        return answers.iter().try_for_each(|answer| shared.places.check_probe(answer));
    }
    let mut useless = None;
    let mut arrived = Weight::default();
    let answered = flight.outgoing.iter().zip(pipeline.cmd_iter()).zip(&answers);
    for (((slot, moves, weight), cmd), answer) in answered {
        let (fault, is_moved) = match answer {
            Value::Int(_) => {
                arrived += *weight;
                continue;
            }
            Value::ServerError(error) => (
                Fault::from(RedisError::from(error.clone())),
                error.kind() == Some(ServerErrorKind::Moved) && shared.places.are_a_cluster(),
            ),
            other => {
                (Fault::new(FaultKind::Garbage, format!("a publication is answered by {other:?}")), false)
            }
        };
        shared.refused(lane.id, &fault);
        if is_moved && *moves < MOVES_MAX {
            moved.push(Outgoing { cmd: cmd.clone(), weight: *weight, slot: *slot, moves: moves + 1 });
            continue;
        }
        shared.settle(lane.id, *weight, Some(Loss::Refused));
        if fault.kind.is_of_the_server() {
            useless = Some(fault);
        }
    }
    shared.settle(lane.id, arrived, None);
    useless.map_or(Ok(()), Err)
}
