//! What backends say, checked: whom an event is for, what it may be called, how a connection is closed. One meaning, whether a backend
//! says it to the HTTP API or answers with it.

use crate::bus::directory::room_key;
use crate::bus::outside::REASON_BYTES_MAX;
use crate::dialect::native::{event_fault, name_fault};
use crate::message::user_key;
use crate::token::claims::NAME_BYTES_MAX;
use compact_str::CompactString;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;

/// What is wrong with an event that is for nobody in particular.
pub const NOBODY: &str = "say one of `room`, `rooms` with at least one name, `user`, and `all`: true";

/// The close code if nothing is said: all is well, and it is over.
const CLOSE_CODE: u16 = 1000;
/// The longest namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 1_024;

/// What is wrong with something that a backend has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For programs; stable.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Fault {
    /// A value that is not allowed.
    pub fn value(message: impl Into<String>) -> Fault {
        Fault { code: "bad_value", message: message.into() }
    }
}

/// How much a backend may say. Bounds are inclusive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Rooms that are named at a time.
    pub rooms_max: usize,
    /// Length of a room's name.
    pub room_name_bytes_max: usize,
}

/// Whom an event is for: one of these.
#[derive(Clone, Copy, Debug)]
pub struct Whom<'a> {
    /// A room, or the id of a connection.
    pub room: Option<&'a Text<'a>>,
    /// Several.
    pub rooms: Option<&'a [Text<'a>]>,
    /// All connections of a user.
    pub user: Option<&'a Text<'a>>,
    /// Everybody in the namespace.
    pub all: Option<bool>,
}

impl<'a> Whom<'a> {
    /// The rooms that are meant, by the names that the directory knows, at least one and each once; `None` when it says nobody.
    ///
    /// # Errors
    /// When a name is wrong, or it says several things.
    pub fn keys(&self, namespace: &str, bounds: &Bounds) -> Result<Option<Vec<Cow<'a, str>>>, Fault> {
        match *self {
            Whom { room: None, rooms: None, user: None, all: None } => Ok(None),
            Whom { room: Some(room), rooms: None, user: None, all: None } => {
                keys(namespace, std::slice::from_ref(room), bounds).map(Some)
            }
            Whom { room: None, rooms: Some(rooms), user: None, all: None } if !rooms.is_empty() => {
                keys(namespace, rooms, bounds).map(Some)
            }
            Whom { room: None, rooms: None, user: Some(Text(user)), all: None } => {
                check_user(user)?;
                Ok(Some(vec![room_key(namespace, &user_key(user)).into_owned().into()]))
            }
            Whom { room: None, rooms: None, user: None, all: Some(true) } => {
                Ok(Some(vec![room_key(namespace, "")]))
            }
            _ => Err(Fault::value(NOBODY)),
        }
    }
}

/// Rooms, or ids of connections, by the names that the directory knows, each once.
///
/// # Errors
/// When there are too many, or a name is wrong.
pub fn keys<'a>(namespace: &str, names: &'a [Text<'a>], bounds: &Bounds) -> Result<Vec<Cow<'a, str>>, Fault> {
    let Bounds { rooms_max, room_name_bytes_max } = *bounds;
    if names.len() > rooms_max {
        let message =
            format!("{} rooms; there may be {rooms_max} (limits.rooms_per_connection_max)", names.len());
        return Err(Fault { code: "too_many_rooms", message });
    }
    if let Some(fault) = names.iter().find_map(|Text(name)| name_fault(name, room_name_bytes_max)) {
        return Err(Fault { code: "bad_room", message: format!("a room name {fault}") });
    }
    let mut keys: Vec<Cow<'a, str>> = names.iter().map(|Text(name)| room_key(namespace, name)).collect();
    if keys.len() > 1 {
        keys.sort_unstable();
        keys.dedup();
    }
    Ok(keys)
}

/// Checks the name of a user.
///
/// # Errors
/// When nobody may be called so.
pub fn check_user(name: &str) -> Result<(), Fault> {
    match name_fault(name, NAME_BYTES_MAX) {
        None => Ok(()),
        Some(fault) => Err(Fault { code: "bad_user", message: format!("a user's name {fault}") }),
    }
}

/// Checks the name of an event.
///
/// # Errors
/// When it may not be called so.
pub fn check_event(event: &str) -> Result<(), Fault> {
    match event_fault(event) {
        None => Ok(()),
        Some(fault) => Err(Fault { code: "bad_event", message: format!("an event name {fault}") }),
    }
}

/// Checks the name of a namespace.
///
/// # Errors
/// When there can be none of that name.
pub fn check_namespace(namespace: &str) -> Result<(), Fault> {
    let is_right = namespace.starts_with('/')
        && namespace.len() <= NAMESPACE_BYTES_MAX
        && !namespace.contains(char::is_control);
    if is_right {
        Ok(())
    } else {
        Err(Fault::value(format!(
            "a namespace begins with a slash, has no control characters and at most {NAMESPACE_BYTES_MAX} bytes"
        )))
    }
}

/// The code and the reason with which a connection is to be closed.
///
/// # Errors
/// When the code is not one that a backend may choose, or the reason does not fit.
pub fn check_close(code: Option<f64>, reason: Option<&str>) -> Result<(u16, CompactString), Fault> {
    // To JSON 4000 and 4000.0 are one number.
    let whole = code.map_or(Some(CLOSE_CODE), |code| (code.fract() == 0.0).then_some(code as u16));
    let Some(code @ (1000 | 1008 | 4000..=4999)) = whole else {
        return Err(Fault::value("`code` is 1000, 1008 or one from 4000 to 4999"));
    };
    let reason = reason.unwrap_or_default();
    let letters = reason.chars().count();
    if letters > REASON_BYTES_MAX {
        return Err(Fault::value(format!("`reason` has {letters} letters; at most {REASON_BYTES_MAX} fit")));
    }
    // Letters may have several bytes.
    let fits = reason.floor_char_boundary(REASON_BYTES_MAX);
    Ok((code, reason[..fits].into()))
}

/// For a field that may be left out, but not be `null`.
///
/// # Errors
/// Those of the value.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A text that is borrowed where it has no escapes. (A plain `Cow` inside another type would always be copied.)
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);
