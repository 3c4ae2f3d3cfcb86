//! Tokens: JSON Web Tokens (RFC 7519) that say who a client is, and the keys that vouch for them.
//!
//! The signature is checked by `ring`, which is here for TLS anyway, with keys that were set up when they were read: what is left for a
//! handshake is one hash, and the claims are parsed once. The `jsonwebtoken` crate, which reads the keys, would parse each token several
//! times, read the clock itself and bring a second cryptography library (`docs/decisions/0004-tokens.md`).

pub mod keys;
pub mod claims;
pub mod mint;
pub mod refresh;

use crate::auth::Vouched;
use crate::message::TokenFault;
use crate::stats::{Counter, Gauge};
use crate::time::Time;
use arc_swap::{ArcSwap, Guard};
use claims::{Claims, Said};
use data_encoding::BASE64URL_NOPAD;
use keys::{Algorithm, Key, KeySource};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::Notify;

/// How many keys are tried for one token at the most, when it does not name its own.
const TRIED_MAX: usize = 4;

/// What a token has to be like, and what its claims are called.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The longest token, in bytes.
    pub token_bytes_max: usize,
    /// Of these `iss` must be one; empty for any.
    pub issuers: Vec<String>,
    /// Of these `aud` must name one; when empty, a token that names an audience is refused (RFC 7519 section 4.1.3).
    pub audiences: Vec<String>,
    /// By how much clocks may differ, in milliseconds.
    pub leeway_ms: u32,
    /// True to refuse tokens that never expire.
    pub expiry_required: bool,
    /// How long after its expiry, and the leeway, a token is still good for a connection that is open, in milliseconds.
    pub grace_ms: u32,
    /// The claim with the user's name.
    pub user_claim: String,
    /// Rooms in one token, at the most.
    pub rooms_max: usize,
    /// The longest name of a room, in bytes.
    pub room_name_bytes_max: usize,
    /// Where keys come from.
    pub keys: Vec<KeySource>,
    /// A set of keys (RFC 7517): a path, or a URL of http or https.
    pub key_set: Option<String>,
    /// How often keys are read again, in milliseconds.
    pub refresh_ms: u32,
    /// How long after one reading the next may follow, when it failed or a token names a key that is not there, in milliseconds.
    pub retry_ms: u32,
}

#[cfg(test)]
impl Settings {
    /// No key vouches for anybody.
    pub(crate) fn without_keys() -> Settings {
        Settings {
            token_bytes_max: 1_000,
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway_ms: 0,
            expiry_required: false,
            grace_ms: 0,
            user_claim: String::new(),
            rooms_max: 10,
            room_name_bytes_max: 100,
            keys: Vec::new(),
            key_set: None,
            refresh_ms: 1_000,
            retry_ms: 1_000,
        }
    }
}

/// What checks tokens, shared by all shards.
#[derive(Debug)]
pub struct Tokens {
    settings: ArcSwap<Settings>,
    keys: RwLock<Keys>,
    /// Milliseconds from the origin of the shards' time to 1970, negated. Set anew every second, since a clock may be put right.
    wall: AtomicI64,
    /// Told when a token names a key that is not there.
    wanted: Notify,
    /// How often keys were read again. Written by who does that.
    pub refreshes: Counter,
    /// How often that failed, so that the last good ones were kept.
    pub refresh_failures: Counter,
    /// Keys now.
    pub key_count: Gauge,
}

/// Those that the configuration names, and those of the set.
#[derive(Clone, Debug, Default)]
struct Keys {
    named: Arc<[Key]>,
    of_set: Arc<[Key]>,
}

impl Tokens {
    /// Checks by these settings. There are no keys yet, and it is 1970.
    pub fn new(settings: Settings) -> Tokens {
        Tokens {
            settings: ArcSwap::from_pointee(settings),
            keys: RwLock::default(),
            wall: AtomicI64::new(0),
            wanted: Notify::new(),
            refreshes: Counter::default(),
            refresh_failures: Counter::default(),
            key_count: Gauge::default(),
        }
    }

    /// From now on tokens are checked by these settings, by `named`, which are the keys that they name, and by the keys `of_set`. Without
    /// those, the last ones stay if they have come from the same place. Who is inside stays, until a token is over.
    pub fn replace(&self, settings: Settings, named: Vec<Key>, of_set: Option<Vec<Key>>) {
        let earlier = self.settings.swap(Arc::new(settings));
        let is_other_set = earlier.key_set != self.settings.load().key_set;
        self.set_keys(|all| {
            all.named = named.into();
            if let Some(of_set) = of_set {
                all.of_set = of_set.into();
            } else if is_other_set {
                all.of_set = Arc::default();
            }
        });
    }

    /// What tokens have to be like.
    pub(super) fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// True when keys may come from anywhere.
    pub fn has_sources(&self) -> bool {
        let settings = self.settings();
        !settings.keys.is_empty() || settings.key_set.is_some()
    }

    /// Notes that the time `now` is so many milliseconds after the beginning of 1970.
    pub fn set_wall_clock(&self, unix_ms: u64, now: Time) {
        self.wall.store(unix_ms as i64 - now.ms() as i64, Relaxed);
    }

    /// Milliseconds from 1970 to `now`.
    pub fn unix_ms(&self, now: Time) -> u64 {
        (self.wall.load(Relaxed) + now.ms() as i64).max(0) as u64
    }

    /// Until when a token that expires at `expires_s`, in seconds from 1970, is good for an open connection, in milliseconds from 1970.
    pub fn good_until_ms(&self, expires_s: u64) -> u64 {
        let settings = self.settings();
        let slack_ms = u64::from(settings.leeway_ms) + u64::from(settings.grace_ms);
        expires_s.saturating_mul(1_000).saturating_add(slack_ms)
    }

    /// Checks a token. With HS256 that takes about a microsecond, with public keys 20 to 60: their mathematics.
    ///
    /// # Errors
    /// What is wrong with it. When it names a key that is not there, keys are read again soon.
    pub fn check(&self, token: &str, now: Time) -> Result<Vouched, TokenFault> {
        let settings = self.settings();
        if token.len() > settings.token_bytes_max {
            return Err(TokenFault::TooLong);
        }
        let now_ms = self.unix_ms(now);
        let token = Parts::of(token)?;
        self.check_signature(&token, now_ms)?;
        let payload = decode(token.payload)?;
        let claims = Claims::read(&payload, &settings).ok_or(TokenFault::Claims)?;
        check_claims(&claims, &settings, now_ms)?;
        claims.vouch(&settings)
    }

    /// True when a text has the form of a token and there are keys for tokens: then nobody else is asked about it.
    pub fn judges(&self, text: &str) -> bool {
        let has_form = |text: &str| {
            let parts = Parts::of(text).ok()?;
            serde_json::from_slice::<Head<'_>>(&decode(parts.head).ok()?).ok().map(drop)
        };
        self.has_sources() && has_form(text).is_some()
    }

    /// Reads what the backend says at `unix_ms` of a client that it was asked about.
    ///
    /// # Errors
    /// What is wrong with it, in words for its makers.
    pub fn read_answer(&self, json: &[u8], unix_ms: u64) -> Result<Said, &'static str> {
        claims::read_answer(json, &self.settings(), unix_ms)
    }

    /// The longest token, and the longest credential of any other kind, in bytes.
    pub fn token_bytes_max(&self) -> usize {
        self.settings().token_bytes_max
    }

    /// Replaces the keys that the configuration names.
    pub fn set_named_keys(&self, keys: Vec<Key>) {
        self.set_keys(|all| all.named = keys.into());
    }

    /// Replaces the keys of the set.
    pub fn set_keys_of_set(&self, keys: Vec<Key>) {
        self.set_keys(|all| all.of_set = keys.into());
    }

    fn set_keys(&self, set: impl FnOnce(&mut Keys)) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        set(&mut keys);
        self.key_count.set((keys.named.len() + keys.of_set.len()) as u64);
    }

    fn check_signature(&self, token: &Parts<'_>, now_ms: u64) -> Result<(), TokenFault> {
        let head = decode(token.head)?;
        let head: Head<'_> = serde_json::from_slice(&head).map_err(|_| TokenFault::Malformed)?;
        // What must be understood and is not (RFC 7515 section 4.1.11).
        if head.crit.is_some() {
            return Err(TokenFault::Malformed);
        }
        let algorithm = Algorithm::parse(&head.alg.0).ok_or(TokenFault::Algorithm)?;
        let signature = decode(token.signature)?;
        // Held for the check: two counts, against a lock that a reader of new keys would wait for.
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let all = || keys.named.iter().chain(&*keys.of_set).filter(|key| key.is_good_at(now_ms));
        let kid = head.kid.as_ref().map(|kid| &*kid.0);
        // A key without a name is for tokens of any, as long as none has theirs.
        let named = || all().filter(|key| kid.is_some() && key.kid() == kid);
        let any = || all().filter(|key| kid.is_none() || key.kid().is_none());
        let is_named = named().next().is_some();
        let found: &mut dyn Iterator<Item = &Key> = if is_named { &mut named() } else { &mut any() };
        let mut fault = TokenFault::UnknownKey;
        let mut tried = 0;
        for key in found {
            // A key is good for one algorithm: the token does not choose what a key is taken for.
            if key.algorithm() != algorithm {
                fault = if tried == 0 { TokenFault::Algorithm } else { fault };
                continue;
            }
            if tried == TRIED_MAX {
                break;
            }
            tried += 1;
            fault = TokenFault::Signature;
            if key.verify(token.signed.as_bytes(), &signature) {
                return Ok(());
            }
        }
        if !is_named && kid.is_some() && self.settings().key_set.is_some() {
            self.wanted.notify_one();
            fault = TokenFault::UnknownKey;
        }
        Err(fault)
    }
}

fn check_claims(claims: &Claims<'_>, settings: &Settings, now_ms: u64) -> Result<(), TokenFault> {
    let Settings { issuers, audiences, leeway_ms, expiry_required, .. } = settings;
    let (now_s, leeway_s) = (now_ms as f64 / 1e3, f64::from(*leeway_ms) / 1e3);
    match claims.expires_s {
        None if *expiry_required => return Err(TokenFault::Claims),
        Some(expires_s) if now_s >= expires_s + leeway_s => return Err(TokenFault::Expired),
        _ => {}
    }
    if claims.begins_s.is_some_and(|begins_s| now_s < begins_s - leeway_s) {
        return Err(TokenFault::NotYet);
    }
    let is_issuer = |issuer: &Text<'_>| issuers.iter().any(|known| *known == issuer.0);
    if !issuers.is_empty() && !claims.issuer.as_ref().is_some_and(is_issuer) {
        return Err(TokenFault::Issuer);
    }
    match &claims.audience {
        None if audiences.is_empty() => Ok(()),
        Some(audience) if audience.names().iter().any(|one| audiences.contains(one)) => Ok(()),
        _ => Err(TokenFault::Audience),
    }
}

/// A token in its compact form (RFC 7515 section 7.1): three texts in base64, with dots between them.
struct Parts<'a> {
    head: &'a str,
    payload: &'a str,
    signature: &'a str,
    /// The first two with their dot.
    signed: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Parts<'a>, TokenFault> {
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (head, payload) = signed.split_once('.')?;
            Some(Parts { head, payload, signature, signed })
        });
        // With five parts it would be encrypted; the decoder finds the dots.
        parts.ok_or(TokenFault::Malformed)
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    alg: Text<'a>,
    #[serde(borrow)]
    kid: Option<Text<'a>>,
    crit: Option<IgnoredAny>,
}

/// A text that is borrowed where it has no escapes. (A plain `Cow` in an `Option` would always be copied.)
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn decode(text: &str) -> Result<Vec<u8>, TokenFault> {
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenFault::Malformed)
}

#[cfg(test)]
mod tests;
