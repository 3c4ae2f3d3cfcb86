//! Users: who is here, and what backends have all connections of one do.

use super::act::{Close, close, rooms};
use super::keys::{MayAdmin, MayRead};
use super::look::{Whole, gather};
use super::request::{Query, path, write_cursor};
use super::{ANSWER_TIMEOUT, ask, check_mailbox};
use crate::backend::said::check_user;
use crate::bus::directory::room_key;
use crate::bus::inquiry::{Answer, LISTED_MAX, Question};
use crate::bus::outside::{ANYWHERE, Deed};
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::message::{ShardId, user_key};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use compact_str::CompactString;
use serde::Serialize;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use tokio::time::Instant;

/// The most connections of one user that are described, so that a shard is not held up: each may be in a thousand rooms.
const DESCRIBED_MAX: usize = 20;

type RawPath = Result<Path<String>, PathRejection>;

/// `GET /v1/users`.
pub(super) async fn users(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Users {
        users: Vec<User>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    }
    #[derive(Serialize)]
    struct User {
        user: Box<str>,
        connections: u64,
    }
    let mut query = Query::read(&uri)?;
    let page = query.page()?;
    query.end()?;
    let until = Instant::now() + ANSWER_TIMEOUT;
    let question = |place: Option<u32>, most| Question::Users { from: place.unwrap_or(0), most };
    let read = |shard, answer| match answer {
        Answer::Users { names, next } => Some((names.into_iter().map(|name| (shard, name)).collect(), next)),
        _ => None,
    };
    let (found, next) = gather(&control, &all_shards(&control), page, until, question, read).await?;
    let names: Arc<[Box<str>]> = found.iter().map(|(_, name)| name.clone()).collect();
    let counts = count_connections(&control, &names, until).await?;
    // Who is on several shards is listed with the first of them.
    let is_first = |at: usize, shard: ShardId| counts[..usize::from(shard)].iter().all(|here| here[at] == 0);
    let firsts = found.into_iter().enumerate().filter(|(at, (shard, _))| is_first(*at, *shard));
    let users = firsts.map(|(at, (_, user))| User { user, connections: sum(&counts, at) });
    Ok(Json(Users { users: users.collect(), next: next.map(write_cursor) }).into_response())
}

/// `GET /v1/users/{user}`.
pub(super) async fn user(
    State(control): State<Arc<Control>>,
    _: MayRead,
    user: RawPath,
    uri: Uri,
) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct User {
        user: Box<str>,
        connections: u64,
        listed: Vec<Whole>,
    }
    let user = user_name(user)?;
    Query::read(&uri)?.end()?;
    let until = Instant::now() + ANSWER_TIMEOUT;
    let (mut connections, mut listed) = (0, Vec::new());
    for shard in all_shards(&control) {
        let question = Question::User { name: user.clone(), most: DESCRIBED_MAX - listed.len() };
        if let Answer::User { connections: here, described } = ask(&control, shard, question, until).await? {
            connections += u64::from(here);
            listed.extend(described.into_iter().map(Whole::from));
        }
    }
    Ok(Json(User { user, connections, listed }).into_response())
}

/// `GET /v1/count`.
pub(super) async fn count(
    State(control): State<Arc<Control>>,
    _: MayRead,
    uri: Uri,
) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Count {
        connections: u64,
        rooms: u64,
        users: u64,
    }
    Query::read(&uri)?.end()?;
    let until = Instant::now() + ANSWER_TIMEOUT;
    let key = RandomState::new();
    // Names would take several times the memory, and two of them have one hash as good as never.
    let mut users: HashSet<u64> = HashSet::new();
    for shard in all_shards(&control) {
        let mut place = Some(0);
        while let Some(from) = place {
            let question = Question::Users { from, most: LISTED_MAX };
            let Answer::Users { names, next } = ask(&control, shard, question, until).await? else { break };
            users.extend(names.iter().map(|name| key.hash_one(name)));
            place = next;
        }
    }
    let connections = control.stats.sum(|shard| shard.connections.value());
    let count = Count { connections, rooms: control.bus.rooms() as u64, users: users.len() as u64 };
    Ok(Json(count).into_response())
}

/// `POST /v1/users/{user}/join`.
pub(super) async fn user_join(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    user: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    order_rooms(&control, key, (user, uri), &headers, body, Deed::Join).await
}

/// `POST /v1/users/{user}/leave`.
pub(super) async fn user_leave(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    user: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    order_rooms(&control, key, (user, uri), &headers, body, Deed::Leave).await
}

/// `POST /v1/users/{user}/disconnect`.
pub(super) async fn disconnect_user(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    user: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let user = user_name(user)?;
    Query::read(&uri)?.end()?;
    let Close { code, reason } = close(&control, &headers, body).await?;
    order(&control, key, &user, ANYWHERE, Deed::Close { code, reason }).await
}

/// Has a user's connections do something with the rooms that the body names.
async fn order_rooms(
    control: &Control,
    key: usize,
    (user, uri): (RawPath, Uri),
    headers: &HeaderMap,
    body: Body,
    deed: fn(Vec<CompactString>) -> Deed,
) -> Result<Response, Refusal> {
    let (user, namespace) = (user_name(user)?, namespace_in(&uri)?);
    let rooms = rooms(control, headers, body).await?;
    let keys = rooms.iter().map(|room| room_key(&namespace, room).as_ref().into());
    order(control, key, &user, &namespace, deed(keys.collect())).await
}

/// Tells all shards, and other processes.
async fn order(
    control: &Control,
    key: usize,
    user: &str,
    namespace: &str,
    deed: Deed,
) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Ordered {
        /// How many the user has in this process.
        connections: u64,
    }
    let shards = all_shards(control);
    shards.iter().try_for_each(|shard| check_mailbox(control, *shard))?;
    let name: Arc<[Box<str>]> = [user.into()].into();
    let counts = count_connections(control, &name, Instant::now() + ANSWER_TIMEOUT).await?;
    tracing::debug!(key = control.api.key_name(key), user, ?deed, "ordered of a user");
    let of = if namespace == ANYWHERE { "/" } else { namespace };
    control
        .bus
        .order_everywhere(namespace, &[&room_key(of, &user_key(user))], deed)
        .map_err(|_| Refusal::busy("as many orders wait as may".to_owned()))?;
    Ok((StatusCode::ACCEPTED, Json(Ordered { connections: sum(&counts, 0) })).into_response())
}

/// How many connections each of these users has on each shard.
async fn count_connections(
    control: &Control,
    names: &Arc<[Box<str>]>,
    until: Instant,
) -> Result<Vec<Vec<u32>>, Refusal> {
    let mut counts = Vec::new();
    for shard in all_shards(control) {
        match ask(control, shard, Question::Counts(names.clone()), until).await? {
            Answer::Counts(here) if here.len() == names.len() => counts.push(here),
            _ => return Err(Refusal::busy(format!("shard {shard} has not answered"))),
        }
    }
    Ok(counts)
}

fn sum(counts: &[Vec<u32>], at: usize) -> u64 {
    counts.iter().map(|here| u64::from(here[at])).sum()
}

fn all_shards(control: &Control) -> Vec<ShardId> {
    (0..control.bus.shards()).map(|shard| shard as ShardId).collect()
}

/// The part of the path that a user's name is, checked.
fn user_name(user: RawPath) -> Result<Box<str>, Refusal> {
    let user = path(user)?;
    check_user(&user)?;
    Ok(user.into())
}

fn namespace_in(uri: &Uri) -> Result<String, Refusal> {
    let mut query = Query::read(uri)?;
    let namespace = query.namespace()?.into_owned();
    query.end()?;
    Ok(namespace)
}
