//! What backends have connections do: join rooms, leave them, and go.
//!
//! To one connection it is done before the answer. To the members of a room it is ordered, in other processes as well.

use super::keys::MayAdmin;
use super::look::{connection_id, no_connection};
use super::request::{Query, Text, check_type, object, path, present, whole};
use super::{ANSWER_TIMEOUT, ask, check_mailbox};
use crate::bus::directory::room_key;
use crate::bus::inquiry::{Answer, Question};
use crate::bus::outside::{Deed, REASON_BYTES_MAX};
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::message::ShardId;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use compact_str::CompactString;
use hyper::body::Body as _;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::time::Instant;

/// The close code if nothing is said: all is well, and it is over.
const CLOSE_CODE: u16 = 1000;

type RawPath = Result<Path<String>, PathRejection>;

/// `POST /v1/connections/{id}/join`.
pub(super) async fn join(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    id: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let id = connection_id(&control, &path(id)?)?;
    Query::read(&uri)?.end()?;
    let rooms = rooms(&control, &headers, body).await?;
    command(&control, key, "join", Question::Join { id, rooms }, id[0]).await
}

/// `POST /v1/connections/{id}/leave`.
pub(super) async fn leave(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    id: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let id = connection_id(&control, &path(id)?)?;
    Query::read(&uri)?.end()?;
    let rooms = rooms(&control, &headers, body).await?;
    command(&control, key, "leave", Question::Leave { id, rooms }, id[0]).await
}

/// `POST /v1/connections/{id}/disconnect`.
pub(super) async fn disconnect(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    id: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let id = connection_id(&control, &path(id)?)?;
    Query::read(&uri)?.end()?;
    let Close { code, reason } = close(&control, &headers, body).await?;
    command(&control, key, "disconnect", Question::Close { id, code, reason }, id[0]).await
}

/// `POST /v1/rooms/{room}/join`.
pub(super) async fn members_join(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    room: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let of = Members::read(&control, room, &uri)?;
    let rooms = rooms(&control, &headers, body).await?;
    of.order(&control, key, Deed::Join(of.keys(&rooms)))
}

/// `POST /v1/rooms/{room}/leave`.
pub(super) async fn members_leave(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    room: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let of = Members::read(&control, room, &uri)?;
    let rooms = rooms(&control, &headers, body).await?;
    of.order(&control, key, Deed::Leave(of.keys(&rooms)))
}

/// `POST /v1/rooms/{room}/disconnect`.
pub(super) async fn disconnect_members(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    room: RawPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let of = Members::read(&control, room, &uri)?;
    let Close { code, reason } = close(&control, &headers, body).await?;
    of.order(&control, key, Deed::Close { code, reason })
}

/// Whom an order is for.
struct Members {
    namespace: String,
    /// The room's name in the directory.
    key: String,
}

impl Members {
    fn read(control: &Control, room: RawPath, uri: &Uri) -> Result<Members, Refusal> {
        let room = path(room)?;
        let mut query = Query::read(uri)?;
        let namespace = query.namespace()?.into_owned();
        query.end()?;
        control.api.check_room(&room)?;
        Ok(Members { key: room_key(&namespace, &room).into_owned(), namespace })
    }

    /// Rooms of the same namespace, by the names that the directory knows.
    fn keys(&self, rooms: &[CompactString]) -> Vec<CompactString> {
        rooms.iter().map(|room| room_key(&self.namespace, room).as_ref().into()).collect()
    }

    /// Tells all shards that have members, and other processes.
    fn order(&self, control: &Control, key: usize, deed: Deed) -> Result<Response, Refusal> {
        #[derive(Serialize)]
        struct Ordered {
            /// How many there are in this process.
            members: u32,
        }
        (0..control.bus.shards()).try_for_each(|shard| check_mailbox(control, shard as ShardId))?;
        let members = control.bus.look_up(&self.key).map_or(0, |(_, _, members)| members);
        tracing::debug!(key = control.api.key_name(key), room = self.key, ?deed, "ordered of a room");
        control
            .bus
            .order_everywhere(&self.namespace, &[&self.key], deed)
            .map_err(|_| Refusal::busy("as many orders wait as may".to_owned()))?;
        Ok((StatusCode::ACCEPTED, Json(Ordered { members })).into_response())
    }
}

/// Has something done to one connection, and waits until it is done.
async fn command(
    control: &Control,
    key: usize,
    what: &str,
    question: Question,
    shard: u8,
) -> Result<Response, Refusal> {
    tracing::debug!(key = control.api.key_name(key), what, "ordered of a connection");
    match ask(control, shard, question, Instant::now() + ANSWER_TIMEOUT).await? {
        Answer::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        Answer::Refused(message) => Err(Refusal::new(StatusCode::CONFLICT, "refused", message)),
        _ => Err(no_connection()),
    }
}

/// The rooms that a body names, checked.
pub(super) async fn rooms(
    control: &Control,
    headers: &HeaderMap,
    body: Body,
) -> Result<Vec<CompactString>, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object")]
    struct Said<'a> {
        #[serde(borrow)]
        rooms: Vec<Text<'a>>,
    }
    check_type(headers, &["application/json"])?;
    let (body, _share) = whole(control, body).await?;
    let Said { rooms } = object(&body)?;
    if rooms.is_empty() {
        return Err(Refusal::wrong("`rooms` is to have at least one name"));
    }
    control.api.check_count(rooms.len())?;
    rooms
        .iter()
        .map(|Text(room)| control.api.check_room(room).map(|()| CompactString::from(&**room)))
        .collect()
}

/// Why connections are closed.
pub(super) struct Close {
    pub(super) code: u16,
    pub(super) reason: CompactString,
}

/// What a body says of that. It may be empty.
pub(super) async fn close(control: &Control, headers: &HeaderMap, body: Body) -> Result<Close, Refusal> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default, expecting = "an object")]
    struct Said<'a> {
        #[serde(deserialize_with = "present")]
        code: Option<f64>,
        #[serde(borrow, deserialize_with = "present")]
        reason: Option<Text<'a>>,
    }
    if body.size_hint().exact() == Some(0) {
        return Ok(Close { code: CLOSE_CODE, reason: CompactString::default() });
    }
    check_type(headers, &["application/json"])?;
    let (body, _share) = whole(control, body).await?;
    let Said { code, reason } = object(&body)?;
    // To JSON 4000 and 4000.0 are one number.
    let whole = code.map_or(Some(CLOSE_CODE), |code| (code.fract() == 0.0).then_some(code as u16));
    let Some(code @ (1000 | 1008 | 4000..=4999)) = whole else {
        return Err(Refusal::wrong("`code` is 1000, 1008 or one from 4000 to 4999"));
    };
    let reason = reason.map_or(CompactString::default(), |Text(reason)| CompactString::from(&*reason));
    let letters = reason.chars().count();
    if letters > REASON_BYTES_MAX {
        return Err(Refusal::wrong(format!(
            "`reason` has {letters} letters; at most {REASON_BYTES_MAX} fit"
        )));
    }
    // Letters may have several bytes.
    let fits = reason.floor_char_boundary(REASON_BYTES_MAX);
    Ok(Close { code, reason: reason[..fits].into() })
}
