//! The HTTP API for backends: `docs/backend.md` and `docs/openapi.json` in code.
//!
//! It knows rooms by the bus and connections by what shards answer. What it answers is about this process, where the documents do not say
//! otherwise; what it publishes and orders reaches the others as well.

mod keys;
mod replays;
pub(super) mod request;

mod publish;
mod stream;

mod act;
mod forget;
mod look;
mod top;
mod users;

pub use keys::{Key, Scope, Stranger};

use crate::backend::said::Bounds;
use crate::bus::callouts::Digest;
use crate::bus::inquiry::{Answer, Inquiry, Question};
use crate::bus::mailbox::Mail;
use crate::control::refusal::Refusal;
use crate::control::seat::Seats;
use crate::control::{Control, Route};
use crate::dialect::native::name_fault;
use crate::message::ShardId;
use crate::stats::Counter;
use crate::time::{Bucket, Time};
use arc_swap::{ArcSwap, Guard};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use replays::Replays;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use top::Tops;

/// How long a body may take, but for a stream's.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long shards have to answer all that one request asks of them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The memory that bodies may take in all, in bytes; more where one message may be as long.
const BODIES_BYTES_MAX: usize = 64 << 20;
/// The unit in which that is shared out, in bytes.
const UNIT_BYTES: usize = 1 << 10;

/// What the API goes by. All bounds are inclusive.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may use it. Without any nobody may.
    pub keys: Vec<Key>,
    /// Connections that have shown a key and may stay.
    pub connections_max: usize,
    /// Publications in one list.
    pub batch_max: usize,
    /// How long answers to requests with an `Idempotency-Key` are kept, in milliseconds.
    pub idempotency_window_ms: u64,
    /// How many of them.
    pub idempotency_keys_max: usize,
    /// Size of a body, and of a line of a stream.
    pub body_bytes_max: usize,
    /// Size of a publication with its names: what an outbox has room for.
    pub publication_bytes_max: usize,
    /// Rooms that one publication or command names.
    pub rooms_max: usize,
    /// Length of a room's name.
    pub room_name_bytes_max: usize,
    /// Requests a second with one key; 0 for no limit.
    pub requests_per_second_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            keys: Vec::new(),
            connections_max: 64,
            batch_max: 1_000,
            idempotency_window_ms: 300_000,
            idempotency_keys_max: 10_000,
            body_bytes_max: 1 << 20,
            publication_bytes_max: 1 << 20,
            rooms_max: 1_024,
            room_name_bytes_max: 200,
            requests_per_second_max: 0,
        }
    }
}

/// What the API keeps between requests.
pub struct Api {
    settings: ArcSwap<Settings>,
    /// What it counts.
    pub stats: ApiStats,
    /// Connections that have shown a key.
    pub(super) seats: Arc<Seats>,
    /// Memory for bodies, in units of [`UNIT_BYTES`].
    memory: Semaphore,
    replays: Mutex<Replays>,
    /// What each key may still ask, by its number.
    buckets: Mutex<HashMap<usize, Bucket>>,
    /// The keys that there were, in the order of their numbers.
    numbered: Mutex<Vec<Digest>>,
    /// The biggest and the slowest.
    tops: Tops,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("stats", &self.stats).field("seats", &self.seats).finish_non_exhaustive()
    }
}

impl Api {
    /// An API that nobody has used.
    pub fn new(settings: Settings) -> Api {
        let bodies = BODIES_BYTES_MAX.max(2 * settings.body_bytes_max);
        let api = Api {
            stats: ApiStats::default(),
            seats: Arc::new(Seats::new(settings.connections_max)),
            memory: Semaphore::new(bodies.div_ceil(UNIT_BYTES)),
            replays: Mutex::new(Replays::new(settings.idempotency_keys_max, settings.idempotency_window_ms)),
            buckets: Mutex::default(),
            numbered: Mutex::default(),
            tops: Tops::default(),
            settings: ArcSwap::from_pointee(Settings::default()),
        };
        api.set(settings);
        api
    }

    /// From now on it goes by these. A request that is under way goes on. What is sized at the start stays: the connections that may stay,
    /// the memory for bodies, and how many answers are kept for how long.
    pub fn set(&self, mut settings: Settings) {
        let mut numbered = self.numbered.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &mut settings.keys {
            let known = numbered.iter().position(|digest| *digest == key.digest);
            key.number = known.unwrap_or(numbered.len());
            if known.is_none() {
                numbered.push(key.digest);
            }
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|number, _| settings.keys.iter().any(|key| key.number == *number));
        self.settings.store(Arc::new(settings));
    }

    fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// How many connections of the control port have shown a key and may stay.
    pub fn connections(&self) -> usize {
        self.seats.taken()
    }

    /// Counts a request with the key of this number. A second's worth may come at once.
    ///
    /// # Errors
    /// When it is one too many.
    fn take_request(&self, key: usize, now: Time) -> Result<(), Refusal> {
        let rate = self.settings().requests_per_second_max;
        if rate == 0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(key).or_insert_with(|| Bucket::full(rate, now));
        bucket.take(rate, rate, now).map_err(|retry_ms| {
            let message =
                format!("more than {rate} requests a second with this key (api.requests_per_second_max)");
            Refusal::too_many(message, retry_ms.div_ceil(1000))
        })
    }

    /// What the key of this number is called.
    fn key_name(&self, number: usize) -> String {
        let settings = self.settings();
        let key = settings.keys.iter().find(|key| key.number == number);
        key.map_or_else(String::new, |key| key.name.clone())
    }

    /// Checks the name of a room.
    fn check_room(&self, name: &str) -> Result<(), Refusal> {
        match name_fault(name, self.settings().room_name_bytes_max) {
            None => Ok(()),
            Some(fault) => Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad_room",
                format!("a room name {fault}"),
            )),
        }
    }

    /// How much may be said of rooms.
    fn bounds(&self) -> Bounds {
        let Settings { rooms_max, room_name_bytes_max, .. } = **self.settings();
        Bounds { rooms_max, room_name_bytes_max }
    }

    /// Checks how many rooms are named.
    fn check_count(&self, rooms: usize) -> Result<(), Refusal> {
        let rooms_max = self.settings().rooms_max;
        if rooms <= rooms_max {
            return Ok(());
        }
        let message = format!("{rooms} rooms; there may be {rooms_max} (limits.rooms_per_connection_max)");
        Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_rooms", message))
    }
}

/// What the API counts. The control thread alone writes it.
#[derive(Debug, Default)]
pub struct ApiStats {
    /// Requests by the place of their route in [`ROUTES`] and of their status in [`STATUSES`].
    requests: [[Counter; STATUSES.len()]; ROUTES.len()],
    /// Events published.
    pub publications: Counter,
    /// Events refused, for whatever reason.
    pub publications_refused: Counter,
    /// Requests answered with what was answered before, by their `Idempotency-Key`.
    pub replays: Counter,
    /// Requests that were not let in, by [`Stranger`].
    pub strangers: [Counter; Stranger::LABELS.len()],
}

/// The statuses that are counted apart. Any other counts as the last.
const STATUSES: [u16; 17] =
    [200, 202, 204, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 503, 500];

impl ApiStats {
    /// Requests by route and status, for those that there were.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u16, u64)> {
        ROUTES.iter().zip(&self.requests).flat_map(|(route, counters)| {
            let counts =
                STATUSES.iter().zip(counters).map(|(status, counter)| (*route, *status, counter.value()));
            // One is always there, so that a rate has a beginning.
            counts.filter(|(_, status, count)| *count > 0 || *status == 200)
        })
    }

    fn count(&self, route: &str, status: StatusCode) {
        let Some(place) = ROUTES.iter().position(|other| *other == route) else { return };
        let status =
            STATUSES.iter().position(|other| *other == status.as_u16()).unwrap_or(STATUSES.len() - 1);
        self.requests[place][status].add(1);
    }
}

/// The paths of the API.
const ROUTES: [&str; 25] = [
    "/v1/publish",
    "/v1/publish/bytes",
    "/v1/publish/stream",
    "/v1/rooms",
    "/v1/rooms/{room}",
    "/v1/rooms/{room}/members",
    "/v1/rooms/{room}/join",
    "/v1/rooms/{room}/leave",
    "/v1/rooms/{room}/disconnect",
    "/v1/connections",
    "/v1/connections/count",
    "/v1/connections/{id}",
    "/v1/connections/{id}/join",
    "/v1/connections/{id}/leave",
    "/v1/connections/{id}/disconnect",
    "/v1/users",
    "/v1/users/{user}",
    "/v1/users/{user}/join",
    "/v1/users/{user}/leave",
    "/v1/users/{user}/disconnect",
    "/v1/count",
    "/v1/top/rooms",
    "/v1/top/connections",
    "/v1/auth/forget",
    "/openapi.json",
];

/// The document that says all this to machines.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// What is served where.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("GET", "/openapi.json", get(openapi)),
        Route::new("POST", "/v1/publish", post(publish::publish)),
        Route::new("POST", "/v1/publish/bytes", post(publish::publish_bytes)),
        Route::new("POST", "/v1/publish/stream", post(stream::publish_stream)),
        Route::new("GET", "/v1/rooms", get(look::rooms)),
        Route::new("GET", "/v1/rooms/{room}", get(look::room)),
        Route::new("GET", "/v1/rooms/{room}/members", get(look::members)),
        Route::new("POST", "/v1/rooms/{room}/join", post(act::members_join)),
        Route::new("POST", "/v1/rooms/{room}/leave", post(act::members_leave)),
        Route::new("POST", "/v1/rooms/{room}/disconnect", post(act::disconnect_members)),
        Route::new("GET", "/v1/connections", get(look::connections)),
        Route::new("GET", "/v1/connections/count", get(look::count)),
        Route::new("GET", "/v1/connections/{id}", get(look::connection)),
        Route::new("POST", "/v1/connections/{id}/join", post(act::join)),
        Route::new("POST", "/v1/connections/{id}/leave", post(act::leave)),
        Route::new("POST", "/v1/connections/{id}/disconnect", post(act::disconnect)),
        Route::new("GET", "/v1/users", get(users::users)),
        Route::new("GET", "/v1/users/{user}", get(users::user)),
        Route::new("POST", "/v1/users/{user}/join", post(users::user_join)),
        Route::new("POST", "/v1/users/{user}/leave", post(users::user_leave)),
        Route::new("POST", "/v1/users/{user}/disconnect", post(users::disconnect_user)),
        Route::new("GET", "/v1/count", get(users::count)),
        Route::new("GET", "/v1/top/rooms", get(top::rooms)),
        Route::new("GET", "/v1/top/connections", get(top::connections)),
        Route::new("POST", "/v1/auth/forget", post(forget::forget)),
    ]
}

/// Counts what is answered to requests of the API.
pub(super) async fn count(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    if let Some(path) = path {
        control.api.stats.count(path.as_str(), response.status());
    }
    response
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// Asks one shard, and waits for its answer until `until`.
///
/// # Errors
/// When it does not come in time.
async fn ask(
    control: &Control,
    shard: ShardId,
    question: Question,
    until: Instant,
) -> Result<Answer, Refusal> {
    check_mailbox(control, shard)?;
    let (back, mut answers) = mpsc::channel(1);
    control.bus.post(shard, Mail::Inquiry(Box::new(Inquiry { question, back })));
    match timeout_at(until, answers.recv()).await {
        Ok(Some(answer)) => Ok(answer),
        // A shard that has stopped answers no more than one that is busy.
        Ok(None) | Err(_) => {
            let shards = control.bus.shards();
            Err(Refusal::busy(format!("shard {shard} of {shards} has not answered in time")))
        }
    }
}

/// Refuses what would go into a mailbox that is full: what is not a publication is taken there whatever the bound.
fn check_mailbox(control: &Control, shard: ShardId) -> Result<(), Refusal> {
    if control.bus.mailbox(shard).is_full() {
        return Err(Refusal::busy(format!("shard {shard} has all the mail that it can take")));
    }
    Ok(())
}

/// So many units of memory are `bytes`.
fn unit_permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}
