//! Looking at rooms and connections. All of it is about this process.

use super::keys::MayRead;
use super::request::{Page, Query, path, write_cursor};
use super::{ANSWER_TIMEOUT, ask};
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::inquiry::{Answer, Connection, Listed, Question};
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::message::{ShardId, SocketId, read_socket_id, write_socket_id};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use tokio::task::yield_now;
use tokio::time::Instant;

/// Places of the directory that are looked at while a stripe is held, and in all for one page: then it ends with less than it might have.
const WALK: u64 = 256;
const WALK_MAX: u64 = 65_536;
/// Questions to shards for one page, likewise.
const QUESTIONS_MAX: usize = 64;

/// One page of a list.
#[derive(Debug, Serialize)]
struct List<T> {
    #[serde(flatten)]
    items: T,
    /// Where it goes on, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Rooms {
    rooms: Vec<Room>,
}

#[derive(Debug, Serialize)]
pub(super) struct Room {
    pub(super) room: String,
    pub(super) namespace: String,
    pub(super) members: u32,
}

#[derive(Debug, Default, Serialize)]
struct Members {
    members: Vec<Person>,
}

#[derive(Debug, Default, Serialize)]
struct Connections {
    connections: Vec<Person>,
}

/// A connection in a list.
#[derive(Debug, Serialize)]
pub(super) struct Person {
    id: String,
    dialect: &'static str,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Box<str>>,
}

/// A connection by itself.
#[derive(Debug, Serialize)]
pub(super) struct Whole {
    #[serde(flatten)]
    person: Person,
    transport: &'static str,
    namespaces: Vec<Namespace>,
    memberships: usize,
    waiting_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Namespace {
    namespace: String,
    id: String,
    rooms: Vec<String>,
}

/// `GET /v1/rooms`.
pub(super) async fn rooms(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    let mut query = Query::read(&uri)?;
    let (namespace, prefix) = (query.namespace()?, query.one("prefix")?.unwrap_or_default());
    let page = query.page()?;
    query.end()?;
    let mut rooms = Vec::new();
    let mut place = page.from.or(Some(0));
    for _ in 0..WALK_MAX / WALK {
        let Some(from) = place.filter(|_| rooms.len() < page.limit) else { break };
        place = control.bus.walk(from, WALK, |key, members| {
            let room = room_of(key);
            // What has no name of its own stands for a namespace.
            if !room.is_empty() && namespace_of(key) == namespace && room.starts_with(&*prefix) {
                rooms.push(Room { room: room.into(), namespace: (&*namespace).into(), members });
            }
            rooms.len() < page.limit
        });
        // Others have something to ask, too.
        yield_now().await;
    }
    Ok(Json(List { items: Rooms { rooms }, next: place.map(write_cursor) }).into_response())
}

/// `GET /v1/rooms/{room}`.
pub(super) async fn room(
    State(control): State<Arc<Control>>,
    _: MayRead,
    room: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let room = path(room)?;
    let mut query = Query::read(&uri)?;
    let namespace = query.namespace()?;
    query.end()?;
    control.api.check_room(&room)?;
    let members = control.bus.look_up(&room_key(&namespace, &room)).map_or(0, |(_, _, members)| members);
    Ok(Json(Room { room, namespace: namespace.into_owned(), members }).into_response())
}

/// `GET /v1/rooms/{room}/members`.
pub(super) async fn members(
    State(control): State<Arc<Control>>,
    _: MayRead,
    room: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let name = path(room)?;
    let mut query = Query::read(&uri)?;
    let namespace = query.namespace()?;
    let page = query.page()?;
    query.end()?;
    control.api.check_room(&name)?;
    let key = room_key(&namespace, &name);
    let Some((room, shards, _)) = control.bus.look_up(&key) else {
        return Ok(Json(List { items: Members::default(), next: None }).into_response());
    };
    let shards: Vec<ShardId> = shards.iter().collect();
    let question = |place: Option<u32>, most| Question::Members { room, below: place, most };
    let (members, next) = gather_people(&control, &shards, page, question).await?;
    Ok(Json(List { items: Members { members }, next }).into_response())
}

/// `GET /v1/connections`.
pub(super) async fn connections(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    let mut query = Query::read(&uri)?;
    let address = query.one("address")?.map(|text| text.parse());
    let address =
        address.transpose().map_err(|_| Refusal::wrong("`address` is an IPv4 or an IPv6 address"))?;
    let page = query.page()?;
    query.end()?;
    let shards: Vec<ShardId> = (0..control.bus.shards()).map(|shard| shard as ShardId).collect();
    let question =
        |place: Option<u32>, most| Question::Connections { from: place.unwrap_or(0), most, address };
    let (connections, next) = gather_people(&control, &shards, page, question).await?;
    Ok(Json(List { items: Connections { connections }, next }).into_response())
}

/// `GET /v1/connections/count`.
pub(super) async fn count(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Count {
        connections: u64,
    }
    Query::read(&uri)?.end()?;
    let connections = control.stats.sum(|shard| shard.connections.value());
    Ok(Json(Count { connections }).into_response())
}

/// `GET /v1/connections/{id}`.
pub(super) async fn connection(
    State(control): State<Arc<Control>>,
    _: MayRead,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let id = connection_id(&control, &path(id)?)?;
    Query::read(&uri)?.end()?;
    match ask(&control, id[0], Question::Connection(id), Instant::now() + ANSWER_TIMEOUT).await? {
        Answer::Connection(connection) => Ok(Json(Whole::from(*connection)).into_response()),
        _ => Err(no_connection()),
    }
}

/// Reads the id of a connection. Its first byte is the shard that has it.
///
/// # Errors
/// When it is none that this process has given.
pub(super) fn connection_id(control: &Control, text: &str) -> Result<SocketId, Refusal> {
    read_socket_id(text).filter(|id| control.bus.is_own(id)).ok_or_else(no_connection)
}

pub(super) fn no_connection() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no_such_connection", "no connection of this process has this id")
}

/// One page of what shards list, one shard after the other, and where it goes on. A question is made with the place on the shard and how
/// many are wanted; `read` says what an answer lists, and its next place.
pub(super) async fn gather<T>(
    control: &Control,
    shards: &[ShardId],
    page: Page,
    until: Instant,
    question: impl Fn(Option<u32>, usize) -> Question,
    read: impl Fn(ShardId, Answer) -> Option<(Vec<T>, Option<u32>)>,
) -> Result<(Vec<T>, Option<u64>), Refusal> {
    let (mut shard, mut place) = page.from.map_or((0, None), read_place);
    let mut all = Vec::new();
    for _ in 0..QUESTIONS_MAX {
        if all.len() >= page.limit {
            break;
        }
        // A shard that has no members any more is passed by.
        let Some(at) = shards.iter().copied().find(|at| *at >= shard) else { return Ok((all, None)) };
        if at != shard {
            (shard, place) = (at, None);
        }
        let answer = ask(control, shard, question(place, page.limit - all.len()), until).await?;
        let Some((listed, next)) = read(shard, answer) else {
            return Err(Refusal::busy(format!("shard {shard} has not answered")));
        };
        all.extend(listed);
        if next.is_some() {
            place = next;
        } else {
            let Some(next) = shard.checked_add(1) else { return Ok((all, None)) };
            (shard, place) = (next, None);
        }
    }
    let goes_on = shards.iter().any(|at| *at >= shard);
    Ok((all, goes_on.then(|| write_place(shard, place))))
}

/// A page of connections.
async fn gather_people(
    control: &Control,
    shards: &[ShardId],
    page: Page,
    question: impl Fn(Option<u32>, usize) -> Question,
) -> Result<(Vec<Person>, Option<String>), Refusal> {
    let read = |_, answer| match answer {
        Answer::Page { listed, next } => Some((listed, next)),
        _ => None,
    };
    let until = Instant::now() + ANSWER_TIMEOUT;
    let (listed, next) = gather(control, shards, page, until, question, read).await?;
    Ok((listed.into_iter().map(Person::from).collect(), next.map(write_cursor)))
}

/// A place in a list over shards, as a number.
fn write_place(shard: ShardId, place: Option<u32>) -> u64 {
    u64::from(shard) << 40 | place.map_or(0, |place| u64::from(place) + 1)
}

fn read_place(number: u64) -> (ShardId, Option<u32>) {
    let place =
        (number & 0xff_ffff_ffff).checked_sub(1).map(|place| u32::try_from(place).unwrap_or(u32::MAX));
    (u8::try_from(number >> 40).unwrap_or(u8::MAX), place)
}

impl From<Listed> for Person {
    fn from(listed: Listed) -> Person {
        let Listed { id, dialect, address, user } = listed;
        Person { id: write_socket_id(&id), dialect, address, user }
    }
}

impl From<Connection> for Whole {
    fn from(connection: Connection) -> Whole {
        let Connection { listed, transport, namespaces, memberships, waiting_bytes } = connection;
        let namespace = |namespace: crate::bus::inquiry::Namespace| Namespace {
            namespace: namespace.name.into(),
            id: write_socket_id(&namespace.id),
            rooms: namespace.rooms.into_iter().map(String::from).collect(),
        };
        Whole {
            person: listed.into(),
            transport,
            namespaces: namespaces.into_iter().map(namespace).collect(),
            memberships,
            waiting_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_as_a_number() {
        for place in [(0, None), (0, Some(0)), (127, Some(u32::MAX)), (127, None)] {
            assert_eq!(read_place(write_place(place.0, place.1)), place);
        }
        assert_eq!(read_place(u64::MAX), (u8::MAX, Some(u32::MAX)), "one that was made up finds nobody");
    }
}
