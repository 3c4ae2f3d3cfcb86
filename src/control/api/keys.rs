//! Who may use the API, and for what.

use crate::bus::callouts::{Digest, sha256};
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::control::seat::Seat;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use std::sync::Arc;
use subtle::{ConstantTimeEq, ConstantTimeLess};

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 256;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// Sending events.
    Publish = 1,
    /// Looking at rooms and connections.
    Read = 2,
    /// Having connections join, leave and go.
    Admin = 4,
}

/// A key, as little of it as is needed to know it again.
#[derive(Clone, Debug)]
pub struct Key {
    /// What it is called.
    pub name: String,
    /// What it is known by as long as the process lives, whatever keys there are beside it. [`Api`](super::Api) gives it.
    pub(super) number: usize,
    pub(super) digest: Digest,
    scopes: u8,
}

impl Key {
    /// A key by its SHA-256.
    pub fn new(name: String, digest: Digest, scopes: &[Scope]) -> Key {
        Key { name, number: 0, digest, scopes: scopes.iter().fold(0, |all, scope| all | *scope as u8) }
    }

    /// A key by itself.
    pub fn of(name: String, key: &str, scopes: &[Scope]) -> Key {
        Key::new(name, sha256(&[key.as_bytes()]), scopes)
    }
}

/// Why nobody was let in. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// No key was shown, or not as it should be.
    Missing,
    /// A key that nobody knows.
    Unknown,
    /// A key that is not for this.
    Scope,
}

impl Stranger {
    /// The labels of all reasons, in their order.
    pub const LABELS: [&'static str; 3] = ["missing", "unknown", "scope"];
}

/// The number of the key that a request has shown.
fn admit(control: &Control, parts: &Parts, scope: u8) -> Result<usize, Refusal> {
    let api = &control.api;
    let refused = |stranger: Stranger, message| {
        api.stats.strangers[stranger as usize].add(1);
        let (status, error) = match stranger {
            Stranger::Scope => (StatusCode::FORBIDDEN, "wrong_scope"),
            Stranger::Missing | Stranger::Unknown => (StatusCode::UNAUTHORIZED, "unauthorized"),
        };
        Refusal::new(status, error, message)
    };
    let keys = &api.settings().keys;
    if keys.is_empty() {
        let message = "there is no API without keys: set api.key or [[api.keys]] in the configuration";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "no_keys", message));
    }
    let mut headers = parts.headers.get_all(header::AUTHORIZATION).iter();
    let shown = headers.next().filter(|_| headers.next().is_none()).and_then(|value| value.to_str().ok());
    let bearer = shown.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let Some(bearer) = bearer.filter(|key| !key.is_empty()) else {
        return Err(refused(Stranger::Missing, "show a key: Authorization: Bearer KEY"));
    };
    let known = (bearer.len() <= KEY_BYTES_MAX).then(|| find(keys, bearer)).flatten();
    let Some(place) = known else { return Err(refused(Stranger::Unknown, "this key is not known")) };
    if let Some(seat) = parts.extensions.get::<Arc<Seat>>() {
        seat.show_key();
    }
    if keys[place].scopes & scope == 0 {
        return Err(refused(Stranger::Scope, "this key is not for this"));
    }
    api.take_request(keys[place].number, control.clock.now())?;
    Ok(keys[place].number)
}

/// The place of a key. Takes the same time whether one is known and which: digests are compared, all of them, each in constant time.
fn find(keys: &[Key], shown: &str) -> Option<usize> {
    let digest = sha256(&[shown.as_bytes()]);
    let mut place = u32::MAX;
    for (at, key) in (0..).zip(keys) {
        let is_it = key.digest.ct_eq(&digest) & at.ct_lt(&place);
        place = if bool::from(is_it) { at } else { place };
    }
    keys.get(place as usize).map(|_| place as usize)
}

/// Stands first among what a handler takes: the request has shown a key for this [`Scope`].
#[derive(Debug)]
pub(super) struct May<const SCOPE: u8> {
    /// The key's number.
    pub(super) key: usize,
}

/// It may send events.
pub(super) type MayPublish = May<{ Scope::Publish as u8 }>;
/// It may look at rooms and connections.
pub(super) type MayRead = May<{ Scope::Read as u8 }>;
/// It may have connections join, leave and go.
pub(super) type MayAdmin = May<{ Scope::Admin as u8 }>;

impl<const SCOPE: u8> FromRequestParts<Arc<Control>> for May<SCOPE> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Refusal> {
        Ok(May { key: admit(control, parts, SCOPE)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_itself_alone() {
        let key = |name: &str| Key::of(name.to_owned(), &format!("the key of {name}"), &[Scope::Read]);
        let keys = [key("a"), key("b"), key("b")];
        assert_eq!(find(&keys, "the key of a"), Some(0));
        assert_eq!(find(&keys, "the key of b"), Some(1), "of two that are the same, the first");
        for other in ["the key of c", "the key of ", "", "THE KEY OF A"] {
            assert_eq!(find(&keys, other), None, "{other}");
        }
        assert_eq!(find(&[], "the key of a"), None);
    }
}
