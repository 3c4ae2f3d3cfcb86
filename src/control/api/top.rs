//! The biggest rooms and the slowest clients of this process: what `throng top` shows.
//!
//! Both are found by looking at all there are, in pieces that hold nobody up: a stripe of the directory for some microseconds, a shard for
//! one answer. So that asking often costs no more than asking now and then, what was found is told again for a while.

use super::keys::MayRead;
use super::look::{Person, Room};
use super::request::Query;
use super::{ANSWER_TIMEOUT, ask};
use crate::bus::directory::{namespace_of, room_of};
use crate::bus::inquiry::{Answer, Question, Slow};
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::message::ShardId;
use crate::time::Time;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use compact_str::CompactString;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::yield_now;
use tokio::time::Instant;

/// How many are found, and told at the most; and how many are told when nobody says.
const FOUND_MAX: usize = 100;
const TOLD: usize = 20;
/// Places of the directory that are looked at while a stripe is held.
const WALK: u64 = 256;
/// How long what was found is told again, in milliseconds: ten times as long as finding it took, within these bounds. So all who ask
/// together cost a tenth of the control thread at the most, or of a shard.
const TOLD_AGAIN_MS_MIN: u64 = 1_000;
const TOLD_AGAIN_MS_MAX: u64 = 10_000;

/// What was found last. Whoever asks while it is being found waits for it.
#[derive(Debug, Default)]
pub(super) struct Tops {
    rooms: Arc<Mutex<Found<Room>>>,
    connections: Arc<Mutex<Found<SlowPerson>>>,
}

/// The first of all, in their order.
#[derive(Debug)]
struct Found<T> {
    items: Vec<T>,
    /// When it was looked, and until when that is told again; `None` before the first time.
    at: Option<(Time, Time)>,
}

impl<T> Default for Found<T> {
    fn default() -> Found<T> {
        Found { items: Vec::new(), at: None }
    }
}

impl<T> Found<T> {
    /// True when it has to be looked again.
    fn is_old(&self, now: Time) -> bool {
        self.at.is_none_or(|(_, until)| until <= now)
    }

    /// Something was looked for from `start` to `now`, and this was found.
    fn find(&mut self, items: Vec<T>, start: Time, now: Time) {
        let again_ms = (10 * now.since_ns(start) / 1_000_000).clamp(TOLD_AGAIN_MS_MIN, TOLD_AGAIN_MS_MAX);
        *self = Found { items, at: Some((now, now.plus_ms(again_ms))) };
    }

    /// How old it is, in milliseconds.
    fn age_ms(&self, now: Time) -> u64 {
        self.at.map_or(0, |(at, _)| now.since_ns(at) / 1_000_000)
    }
}

#[derive(Serialize)]
struct Rooms<'a> {
    rooms: &'a [Room],
    age_ms: u64,
}

#[derive(Serialize)]
struct Connections<'a> {
    connections: &'a [SlowPerson],
    age_ms: u64,
}

/// A connection for which something waits.
#[derive(Debug, Serialize)]
struct SlowPerson {
    #[serde(flatten)]
    person: Person,
    shard: ShardId,
    waiting_bytes: usize,
    silent_ms: u32,
}

/// `GET /v1/top/rooms`.
pub(super) async fn rooms(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    let limit = limit(&uri)?;
    let mut found = control.api.tops.rooms.clone().lock_owned().await;
    if found.is_old(control.clock.now()) {
        let control = control.clone();
        found = to_the_end(async move {
            let start = control.clock.now();
            let rooms = biggest_rooms(&control).await;
            found.find(rooms, start, control.clock.now());
            Ok(found)
        })
        .await?;
    }
    let age_ms = found.age_ms(control.clock.now());
    let rooms = &found.items[..found.items.len().min(limit)];
    Ok(Json(Rooms { rooms, age_ms }).into_response())
}

/// `GET /v1/top/connections`.
pub(super) async fn connections(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    let limit = limit(&uri)?;
    let mut found = control.api.tops.connections.clone().lock_owned().await;
    if found.is_old(control.clock.now()) {
        let control = control.clone();
        found = to_the_end(async move {
            let start = control.clock.now();
            let slowest = slowest_connections(&control).await?;
            found.find(slowest, start, control.clock.now());
            Ok(found)
        })
        .await?;
    }
    let age_ms = found.age_ms(control.clock.now());
    let connections = &found.items[..found.items.len().min(limit)];
    Ok(Json(Connections { connections, age_ms }).into_response())
}

/// Looks for something, to the end also when whoever asked has gone meanwhile: else those who do not wait for their answers would have it
/// begun anew each time.
async fn to_the_end<T: Send + 'static>(
    look: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let found = tokio::spawn(look).await;
    found.unwrap_or_else(|_| Err(Refusal::busy("this process comes to its end")))
}

fn limit(uri: &Uri) -> Result<usize, Refusal> {
    let mut query = Query::read(uri)?;
    let limit = query.limit(FOUND_MAX)?.unwrap_or(TOLD);
    query.end()?;
    Ok(limit)
}

/// The rooms with the most members, the most first.
async fn biggest_rooms(control: &Control) -> Vec<Room> {
    let mut biggest: BinaryHeap<Reverse<(u32, CompactString)>> = BinaryHeap::with_capacity(FOUND_MAX + 1);
    let mut place = Some(0);
    while let Some(from) = place {
        place = control.bus.walk(from, WALK, |key, members| {
            let is_too_small = biggest.len() == FOUND_MAX
                && biggest.peek().is_some_and(|Reverse((smallest, _))| members <= *smallest);
            // What has no name of its own stands for a namespace.
            if !is_too_small && !room_of(key).is_empty() {
                biggest.push(Reverse((members, key.into())));
                if biggest.len() > FOUND_MAX {
                    biggest.pop();
                }
            }
            true
        });
        // Others have something to ask, too.
        yield_now().await;
    }
    let room = |Reverse((members, key)): Reverse<(u32, CompactString)>| Room {
        room: room_of(&key).into(),
        namespace: namespace_of(&key).into(),
        members,
    };
    biggest.into_sorted_vec().into_iter().map(room).collect()
}

/// The connections for which the most waits, the most first. A shard where nothing waits is not asked.
///
/// # Errors
/// When a shard does not answer in time.
async fn slowest_connections(control: &Control) -> Result<Vec<SlowPerson>, Refusal> {
    let mut slowest = Vec::new();
    for (shard, stats) in (0..).zip(&control.stats.shards) {
        let mut place = (stats.outbox_bytes.value() > 0).then_some(0);
        while let Some(from) = place {
            let question = Question::Slowest { from, most: FOUND_MAX };
            let until = Instant::now() + ANSWER_TIMEOUT;
            let Answer::Slowest { slow, next } = ask(control, shard, question, until).await? else {
                return Err(Refusal::busy(format!("shard {shard} has not answered")));
            };
            let person = |Slow { listed, waiting_bytes, silent_ms }| SlowPerson {
                person: Person::from(listed),
                shard,
                waiting_bytes,
                silent_ms,
            };
            slowest.extend(slow.into_iter().map(person));
            slowest.sort_by_key(|slow| Reverse(slow.waiting_bytes));
            slowest.truncate(FOUND_MAX);
            // Each answer goes further, to the last slot at the most.
            place = next.filter(|next| *next > from);
        }
    }
    Ok(slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_to_find_is_told_again_for_longer() {
        let mut found = Found::default();
        assert!(found.is_old(Time::default()), "nothing was found yet");
        for (took_ms, again_ms) in [(0, 1_000), (100, 1_000), (300, 3_000), (60_000, 10_000)] {
            let now = Time::from_ms(100_000 + took_ms);
            found.find(vec![1], Time::from_ms(100_000), now);
            assert!(!found.is_old(now.plus_ms(again_ms - 1)) && found.is_old(now.plus_ms(again_ms)));
            assert_eq!(found.age_ms(now.plus_ms(700)), 700);
        }
    }
}
