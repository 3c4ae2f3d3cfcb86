//! Events from backends: one, or a list of them, as JSON; or bytes.

use super::keys::MayPublish;
use super::replays::{Known, Name};
use super::request::{Query, Text, check_namespace, check_type, object, present, whole};
use crate::backend::said::{NOBODY, Whom, check_event, keys};
use crate::bus::callouts::sha256;
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::dialect::native::{DEPTH_MAX, is_too_deep};
use crate::message::{Draft, ShardSet};
use crate::time::Time;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, PoisonError};

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
/// The answer to one publication.
const PUBLISHED: Bytes = Bytes::from_static(br#"{"published":1}"#);
/// The header with a request's name.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Tells that an answer is the one that the request with this name got before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The longest name of a request, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// `POST /v1/publish`.
pub(super) async fn publish(
    State(control): State<Arc<Control>>,
    MayPublish { key }: MayPublish,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    check_type(&headers, &[JSON])?;
    Query::read(&uri)?.end()?;
    once(&control, key, &uri, &headers, body, publish_json).await
}

/// `POST /v1/publish/bytes`.
pub(super) async fn publish_bytes(
    State(control): State<Arc<Control>>,
    MayPublish { key }: MayPublish,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    check_type(&headers, &[BYTES])?;
    let mut query = Query::read(&uri)?;
    let texts = |names: Vec<Cow<'_, str>>| -> Vec<Text<'static>> {
        names.into_iter().map(|name| Text(name.into_owned().into())).collect()
    };
    let said = Said {
        rooms: Some(texts(query.all("room"))),
        event: texts(query.one("event")?.into_iter().collect()).pop(),
        namespace: texts(query.one("namespace")?.into_iter().collect()).pop(),
        except: Some(texts(query.all("except"))),
        volatile: query.flag("volatile")?,
        ..Said::default()
    };
    query.end()?;
    once(&control, key, &uri, &headers, body, |control, body, now, bells| {
        counted(control, publish_payload(control, &said, (body, true), now, bells))?;
        Ok(Published { body: PUBLISHED, is_final: true })
    })
    .await
}

/// Reads a body, and has `carry_out` publish what it says, unless a request with this name has done so before.
async fn once(
    control: &Control,
    key: usize,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
    carry_out: impl FnOnce(&Control, &[u8], Time, &mut ShardSet) -> Result<Published, Refusal>,
) -> Result<Response, Refusal> {
    let name = request_name(headers, key)?;
    let (body, _share) = whole(control, body).await?;
    let now = control.clock.now();
    let api = &control.api;
    let replays = || api.replays.lock().unwrap_or_else(PoisonError::into_inner);
    let name = name.map(|name| {
        let place = uri.path_and_query().map_or("", |place| place.as_str());
        (name, sha256(&[place.as_bytes(), b"\n", &body]))
    });
    if let Some((name, digest)) = &name {
        match replays().find(name, *digest, now) {
            Known::New => {}
            Known::Answered(body) => {
                api.stats.replays.add(1);
                let mut response = answer(body);
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
            Known::Other => {
                let message = "another request had this Idempotency-Key";
                return Err(Refusal::new(StatusCode::CONFLICT, "idempotency_mismatch", message));
            }
        }
    }
    let mut bells = ShardSet::default();
    let published = carry_out(control, &body, now, &mut bells);
    control.bus.ring(bells);
    let Published { body, is_final } = published?;
    if let Some((name, digest)) = name.filter(|_| is_final) {
        replays().keep(name, digest, body.clone(), now);
    }
    Ok(answer(body))
}

/// What came of a request.
struct Published {
    /// The answer, as JSON.
    body: Bytes,
    /// False when a part of it might go better at another time.
    is_final: bool,
}

/// The name of a request, if it has one.
fn request_name(headers: &HeaderMap, key: usize) -> Result<Option<Name>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let is_name = |name: &&str| {
        (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let name = value.to_str().ok().filter(is_name);
    match (name, values.next()) {
        (Some(name), None) => Ok(Some((key, name.into()))),
        _ => {
            let message = format!(
                "Idempotency-Key is one text of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} letters without spaces"
            );
            Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message))
        }
    }
}

fn answer(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body).into_response()
}

/// All fields that a request may have: those of a publication, or a list of publications.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
pub(super) struct Said<'a> {
    #[serde(borrow, deserialize_with = "present")]
    room: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "present")]
    rooms: Option<Vec<Text<'a>>>,
    #[serde(borrow, deserialize_with = "present")]
    user: Option<Text<'a>>,
    #[serde(deserialize_with = "present")]
    all: Option<bool>,
    #[serde(borrow, deserialize_with = "present")]
    namespace: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "present")]
    event: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    except: Option<Vec<Text<'a>>>,
    volatile: bool,
    #[serde(borrow, deserialize_with = "present")]
    publications: Option<List<'a>>,
}

/// Publications, each still to be read. At most [`List::MOST`], so that small ones cannot take much more memory than the body.
struct List<'a>(Vec<&'a RawValue>);

impl List<'_> {
    const MOST: usize = 65_536;
}

impl<'de: 'a, 'a> Deserialize<'de> for List<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<'a>, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {} publications", List::MOST)
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Vec<&'de RawValue>, S::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    if list.len() == List::MOST {
                        return Err(serde::de::Error::invalid_length(List::MOST + 1, &self));
                    }
                    list.push(item);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Items).map(List)
    }
}

fn publish_json(
    control: &Control,
    body: &[u8],
    now: Time,
    bells: &mut ShardSet,
) -> Result<Published, Refusal> {
    let said: Said<'_> = object(body)?;
    let Some(List(items)) = &said.publications else {
        counted(control, publish_one(control, &said, now, bells))?;
        return Ok(Published { body: PUBLISHED, is_final: true });
    };
    if said.has_publication() {
        return Err(Refusal::wrong("beside `publications` there is nothing else"));
    }
    let batch_max = control.api.settings().batch_max;
    if items.is_empty() || items.len() > batch_max {
        let message =
            format!("`publications` has {} entries; it takes 1 to {batch_max} (api.batch_max)", items.len());
        return Err(Refusal::wrong(message));
    }
    let mut results = Vec::with_capacity(items.len() * 16);
    let (mut published, mut is_final) = (0, true);
    for item in items {
        if !results.is_empty() {
            results.push(b',');
        }
        let result =
            object(item.get().as_bytes()).and_then(|said: Said<'_>| publish_one(control, &said, now, bells));
        match counted(control, result) {
            Ok(()) => {
                published += 1;
                results.extend_from_slice(br#"{"published":1}"#);
            }
            Err(refusal) => {
                is_final &= refusal.status != StatusCode::SERVICE_UNAVAILABLE;
                let result = serde_json::json!({ "error": refusal.error, "message": refusal.message });
                results.extend_from_slice(result.to_string().as_bytes());
            }
        }
    }
    let head = format!(r#"{{"published":{published},"results":["#);
    Ok(Published { body: [head.as_bytes(), &results, b"]}"].concat().into(), is_final })
}

impl Said<'_> {
    /// True when it says anything but a list.
    fn has_publication(&self) -> bool {
        let Said { room, rooms, user, all, namespace, event, data, except, volatile, publications: _ } = self;
        let names = [room, user, namespace, event];
        names.into_iter().any(Option::is_some)
            || rooms.is_some()
            || except.is_some()
            || all.is_some()
            || data.is_some()
            || *volatile
    }
}

/// Publishes what one object of JSON says. The shards that are to be woken are added to `bells`.
///
/// # Errors
/// Why it has not been published. Nobody gets it then.
pub(super) fn publish_one(
    control: &Control,
    said: &Said<'_>,
    now: Time,
    bells: &mut ShardSet,
) -> Result<(), Refusal> {
    if said.publications.is_some() {
        return Err(Refusal::wrong("there is no list within a list"));
    }
    let data = said.data.map_or("null", RawValue::get);
    publish_payload(control, said, (data.as_bytes(), false), now, bells)
}

/// Counts what came of a publication.
fn counted(control: &Control, result: Result<(), Refusal>) -> Result<(), Refusal> {
    let stats = &control.api.stats;
    let counter = if result.is_ok() { &stats.publications } else { &stats.publications_refused };
    counter.add(1);
    result
}

fn publish_payload(
    control: &Control,
    said: &Said<'_>,
    (payload, binary): (&[u8], bool),
    now: Time,
    bells: &mut ShardSet,
) -> Result<(), Refusal> {
    let api = &control.api;
    let namespace = said.namespace.as_ref().map_or("/", |Text(name)| name);
    check_namespace(namespace)?;
    let Some(Text(event)) = &said.event else { return Err(Refusal::wrong("`event` is missing")) };
    check_event(event)?;
    if !binary && std::str::from_utf8(payload).is_ok_and(is_too_deep) {
        return Err(Refusal::wrong(format!("`data` nests deeper than {DEPTH_MAX}")));
    }
    let bounds = api.bounds();
    let except = keys(namespace, said.except.as_deref().unwrap_or_default(), &bounds)?;
    let Said { room, rooms, user, all, .. } = said;
    let whom = Whom { room: room.as_ref(), rooms: rooms.as_deref(), user: user.as_ref(), all: *all };
    let rooms = whom.keys(namespace, &bounds)?.ok_or_else(|| Refusal::wrong(NOBODY))?;
    let Some((room, more_rooms)) = rooms.split_first() else { return Ok(()) };
    let bytes = room.len() + event.len() + payload.len();
    let bytes_max = api.settings().publication_bytes_max;
    if bytes > bytes_max {
        let message =
            format!("{bytes} bytes; there may be {bytes_max} (api.body_bytes_max, outbox.bytes_max)");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
    }
    let draft = Draft {
        more_rooms,
        except_rooms: &except,
        binary,
        volatile: said.volatile,
        natives: said.all.is_some() && namespace == "/",
        ..Draft::new(room, event, payload, now)
    };
    match control.bus.publish(&draft) {
        Ok(shards) => {
            bells.extend(shards);
            Ok(())
        }
        Err(crate::bus::Overloaded) => Err(Refusal::busy("too many events are on their way")),
    }
}
