//! Who a connection is, once a token has shown that: where the connections of a user are, what they may do, and when it is over.

use super::callouts::{Callout, Checked, Denial, RETRY_MS, What, auth_of_application};
use super::conn::{Conn, Stage};
use super::{CloseCode, Ending, Shard};
use crate::auth::{User, Vouched};
use crate::bus::callouts::Verdict;
use crate::bus::directory::{namespace_of, room_of};
use crate::bus::outside::ANYWHERE;
use crate::dialect::Dialect;
use crate::dialect::native::{Code, Refusal};
use crate::message::{Slot, TokenFault};
use crate::permissions::{Act, Actor, Permissions};
use crate::time::{Bucket, Time};
use crate::token::Tokens;
use crate::wire::http::Request;
use hashbrown::HashTable;
use serde::Deserialize;
use slab::Slab;
use std::borrow::Cow;
use std::hash::BuildHasher;
use std::sync::Arc;

/// How clients show who they are, and what they may do.
#[derive(Debug, Default)]
pub struct Access {
    /// What checks tokens; `None` when there are no keys, and tokens are not looked at.
    pub tokens: Option<Arc<Tokens>>,
    /// True when whoever brings no token may do nothing.
    pub required: bool,
    /// Time for a native client to bring one as a message, in milliseconds, where one is required.
    pub timeout_ms: u32,
    /// The parameter of a query that may hold a token; empty for none.
    pub query_parameter: String,
    /// What may be done.
    pub permissions: Permissions,
    /// How the backend is asked about those whose token throng cannot check; `None` when it is not. Where it is, there are `tokens`, if
    /// without keys.
    pub callout: Option<Callout>,
}

/// Where the connections of users are. Some twenty bytes for each: an entry for each user, and a list through all of its connections,
/// so that coming and going cost the same however many one user has.
#[derive(Debug, Default)]
pub struct Users {
    /// A part of the name's hash, and the first connection of the list.
    heads: HashTable<(u32, Slot)>,
    /// By slot. Grows to the highest slot that ever had a user.
    links: Vec<Link>,
    connections: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: Slot,
    before: Slot,
}

const NONE: Slot = Slot::MAX;

impl Users {
    /// Adds a connection, which has a user. `tag` is a part of a keyed hash of the user's name.
    fn insert(&mut self, conns: &Slab<Conn>, tag: u32, slot: Slot) {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, Link { next: NONE, before: NONE });
        }
        self.connections += 1;
        let name = name_of(conns, slot);
        let Some(head) = self.head(conns, tag, name) else {
            self.links[slot as usize] = Link { next: NONE, before: NONE };
            self.heads.insert_unique(spread(tag), (tag, slot), |(tag, _)| spread(*tag));
            return;
        };
        // Behind the head, which stays.
        let next = std::mem::replace(&mut self.links[head as usize].next, slot);
        self.links[slot as usize] = Link { next, before: head };
        if next != NONE {
            self.links[next as usize].before = slot;
        }
    }

    /// Takes a connection away.
    fn remove(&mut self, tag: u32, slot: Slot) {
        let Link { next, before } = self.links[slot as usize];
        self.connections -= 1;
        if next != NONE {
            self.links[next as usize].before = before;
        }
        if before != NONE {
            self.links[before as usize].next = next;
            return;
        }
        if let Ok(mut entry) = self.heads.find_entry(spread(tag), |entry| *entry == (tag, slot)) {
            if next != NONE {
                entry.get_mut().1 = next;
                return;
            }
            entry.remove();
            if self.heads.is_empty() {
                self.heads.shrink_to(0, |_| 0);
                self.links = Vec::new();
            }
        }
    }

    /// How many connections have a user.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// One of the connections of the user called `name`.
    fn head(&self, conns: &Slab<Conn>, tag: u32, name: &str) -> Option<Slot> {
        let is_head = |entry: &(u32, Slot)| entry.0 == tag && name_of(conns, entry.1) == name;
        self.heads.find(spread(tag), is_head).map(|(_, slot)| *slot)
    }

    fn from(&self, head: Option<Slot>) -> impl Iterator<Item = Slot> {
        std::iter::successors(head, |slot| Some(self.links[*slot as usize].next).filter(|next| *next != NONE))
    }
}

fn name_of(conns: &Slab<Conn>, slot: Slot) -> &str {
    conns.get(slot as usize).and_then(|conn| conn.user.as_ref()).map_or("", |user| &user.name)
}

fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Shard {
    /// Who sends a request that begins a connection of `dialect`, by the token in its head or its query, or by what the backend says.
    ///
    /// # Errors
    /// What is wrong with that token; that there is none, when there has to be one and it cannot come later.
    pub(super) fn check_request(
        &mut self,
        slot: Slot,
        request: &Request<'_>,
        dialect: Dialect,
        now: Time,
    ) -> Result<Checked<Option<Vouched>>, Denial> {
        let access = &self.settings.access;
        if access.tokens.is_none() {
            return Ok(Checked::Known(None));
        }
        let parameter = access.query_parameter.as_str();
        let in_query = |parameter: &str| {
            let mut pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, token)| *name == parameter && !token.is_empty()).map(|(_, token)| token)
        };
        let token = request.bearer.or_else(|| if parameter.is_empty() { None } else { in_query(parameter) });
        let comes_later = matches!(dialect, Dialect::Native | Dialect::SocketIo);
        let required = access.required;
        if access.callout.is_some()
            && let Some(checked) = self.call_out_for_request(slot, request, dialect, token, now)?
        {
            return match checked {
                Checked::Known(Verdict::User(vouched)) => Ok(Checked::Known(Some(vouched.as_ref().clone()))),
                Checked::Known(verdict) => match self.denial(&verdict) {
                    Some(denial) => Err(denial),
                    None => Ok(Checked::Known(None)),
                },
                Checked::Waits => Ok(Checked::Waits),
            };
        }
        match token {
            Some(token) => Ok(Checked::Known(Some(self.check_token(token, now)?))),
            None if required && !comes_later => Err(self.denied(TokenFault::Missing)),
            None => Ok(Checked::Known(None)),
        }
    }

    /// Checks what a client brings as it joins a namespace, and makes the connection its bearer's.
    ///
    /// # Errors
    /// What is wrong with it; that there is nothing, when nobody knows who this is and somebody has to.
    pub(super) fn check_connect(
        &mut self,
        slot: Slot,
        namespace: &str,
        auth: Option<&str>,
        now: Time,
    ) -> Result<Checked, Denial> {
        if self.settings.access.tokens.is_none() {
            return Ok(Checked::Known(()));
        }
        if let Some(verdict) = self.take_verdict() {
            return self.accept_verdict(slot, &verdict, now).map(Checked::Known);
        }
        let token = auth.and_then(token_in);
        // Of somebody who is known already, what is no token is the application's.
        let may_be_credential = token.is_some() || self.conns[slot as usize].user.is_none();
        if may_be_credential && auth.is_some() && self.is_for_backend(token.as_deref()) {
            let said = auth.and_then(auth_of_application);
            if token.is_some() || said.is_some() {
                let (namespace, auth) = (namespace.to_owned(), auth.map(str::to_owned));
                let what = What::Connect { namespace, auth };
                self.call_out_for_message(slot, what, (token.as_deref(), said), now)?;
                return Ok(Checked::Waits);
            }
        }
        match token {
            Some(token) => self.bring_token(slot, &token, now).map(Checked::Known),
            None if self.lacks_user(slot) => Err(self.denied(TokenFault::Missing)),
            None => Ok(Checked::Known(())),
        }
    }

    /// True when the backend, and not throng, is to judge what a client brings.
    pub(super) fn is_for_backend(&self, token: Option<&str>) -> bool {
        let Access { callout, tokens, .. } = &*self.settings.access;
        let judges = |token: &str| tokens.as_ref().is_some_and(|tokens| tokens.judges(token));
        callout.is_some() && !token.is_some_and(judges)
    }

    /// An open connection brings a token that throng checks: its first, or a later one of the same user.
    ///
    /// # Errors
    /// What is wrong with it. Nothing has changed then.
    pub(super) fn bring_token(&mut self, slot: Slot, token: &str, now: Time) -> Result<(), Denial> {
        let vouched = self.check_token(token, now)?;
        Ok(self.identify(slot, vouched, now)?)
    }

    fn check_token(&self, token: &str, now: Time) -> Result<Vouched, TokenFault> {
        // Where there are no keys, nobody vouches for anybody.
        let Some(tokens) = &self.settings.access.tokens else { return Err(TokenFault::UnknownKey) };
        let checked = tokens.check(token, now);
        match &checked {
            Ok(_) => self.stats().tokens.add(1),
            Err(fault) => self.stats().token_faults[fault.index()].add(1),
        }
        checked
    }

    /// Makes a connection that of a user. The one place where it gets its user, but for a session that moves with its own.
    ///
    /// # Errors
    /// When it is another user's already, or the user has as many connections as allowed.
    pub(super) fn identify(&mut self, slot: Slot, vouched: Vouched, now: Time) -> Result<(), TokenFault> {
        let Vouched { user, rooms } = vouched;
        let before = self.conns[slot as usize].user.as_ref();
        if before.is_some_and(|before| before.name != user.name) {
            self.stats().token_faults[TokenFault::OtherUser.index()].add(1);
            return Err(TokenFault::OtherUser);
        }
        let is_new = before.is_none();
        let tag = self.tag(&user.name);
        // Most connections of a user come with one token: they share what it said.
        let head = self.users.head(&self.conns, tag, &user.name);
        let shared =
            head.and_then(|head| self.conns[head as usize].user.clone()).filter(|other| **other == user);
        let user = shared.unwrap_or_else(|| Arc::new(user));
        if is_new && self.gate.admit_user(&user).is_err() {
            self.stats().token_faults[TokenFault::PerUser.index()].add(1);
            return Err(TokenFault::PerUser);
        }
        self.conns[slot as usize].user = Some(user);
        if is_new {
            self.users.insert(&self.conns, tag, slot);
            let (_, burst) = self.rate(slot);
            self.conns[slot as usize].bucket = Bucket::full(burst, now);
        }
        let conn = &mut self.conns[slot as usize];
        match &mut conn.session {
            Some(session) => {
                session.rooms = (!rooms.is_empty()).then(|| Box::new(rooms));
                self.join_rooms_of_token(slot);
                self.arm_session(slot, now);
            }
            None => {
                if conn.stage == Stage::Open(Dialect::Native) {
                    self.join_granted(slot, &rooms);
                }
                if !self.conns[slot as usize].pinged {
                    self.arm_open(slot, now, self.settings.ping_interval_ms);
                }
            }
        }
        Ok(())
    }

    /// A connection has no user any more: it is closed, or is about to be. The one place where it loses its user.
    pub(super) fn lose_user(&mut self, slot: Slot) {
        if let Some(user) = self.take_user(slot) {
            self.gate.dismiss_user(&user);
        }
    }

    /// A session has moved from one connection to another, and its user with it.
    pub(super) fn move_user(&mut self, from: Slot, to: Slot) {
        let Some(user) = self.take_user(from) else { return };
        let tag = self.tag(&user.name);
        self.conns[to as usize].user = Some(user);
        self.users.insert(&self.conns, tag, to);
    }

    fn take_user(&mut self, slot: Slot) -> Option<Arc<User>> {
        let user = self.conns[slot as usize].user.take()?;
        let tag = self.tag(&user.name);
        self.users.remove(tag, slot);
        Some(user)
    }

    /// The connections here of the user called `name` that are in a namespace.
    pub(super) fn connections_of(&self, name: &str, namespace: &str) -> impl Iterator<Item = Slot> {
        let head = self.users.head(&self.conns, self.tag(name), name);
        self.users.from(head).filter(move |slot| {
            let conn = &self.conns[*slot as usize];
            match &conn.session {
                _ if namespace == ANYWHERE => true,
                Some(session) => session.joined(namespace).is_some(),
                None => conn.stage == Stage::Open(Dialect::Native) && namespace == "/",
            }
        })
    }

    /// Makes a session a member of the rooms that its token names, once it is in the main namespace, whose they are.
    pub(super) fn join_rooms_of_token(&mut self, slot: Slot) {
        let Some(session) = &mut self.conns[slot as usize].session else { return };
        if session.joined("/").is_some()
            && let Some(rooms) = session.rooms.take()
        {
            self.join_granted(slot, &rooms);
        }
    }

    fn join_granted(&mut self, slot: Slot, rooms: &[compact_str::CompactString]) {
        let rooms: Vec<Cow<'_, str>> = rooms.iter().map(|room| room.as_str().into()).collect();
        // Nobody asked for them, so nobody is told when the connection or the server is in as many rooms as it may be: none is joined.
        if let Err(refusal) = self.join(slot, &rooms) {
            self.count_refusal(&refusal);
        }
    }

    /// True when a connection may do nothing because nobody knows who it is.
    pub(super) fn lacks_user(&self, slot: Slot) -> bool {
        self.settings.access.required && self.conns[slot as usize].user.is_none()
    }

    /// Why a connection may not `act` on one of these rooms, if so. Rooms go by their names in the directory.
    pub(super) fn forbid(&self, slot: Slot, rooms: &[Cow<'_, str>], act: Act) -> Option<Refusal<'static>> {
        let permissions = &self.settings.access.permissions;
        let user = self.conns[slot as usize].user.as_deref();
        if permissions.is_empty() && user.is_none_or(|user| user.granted.is_none()) {
            return None;
        }
        let actor = user.map_or_else(Actor::default, User::actor);
        let is_allowed = |key: &Cow<'_, str>| permissions.allow(&actor, namespace_of(key), room_of(key), act);
        let message = match act {
            Act::Join => "this client may not join this room",
            Act::Publish => "this client may not publish to this room",
            Act::Presence => "this client may not see who is in this room",
        };
        (!rooms.iter().all(is_allowed)).then(|| Refusal::new(Code::Forbidden, message))
    }

    /// Messages a second of a connection and how many at once, as its token or else the configuration says; 0 for no limit.
    pub(super) fn rate(&self, slot: Slot) -> (u32, u32) {
        let user = self.conns[slot as usize].user.as_ref();
        let granted = user.and_then(|user| user.granted.as_ref()?.messages_per_second_max);
        granted.map_or((self.settings.messages_per_second_max, self.settings.messages_burst_max), |rate| {
            (rate, rate)
        })
    }

    /// Sets the timer of an open connection that is not a session, which has no ping under way: no later than its token is over, or has to be there.
    pub(super) fn arm_open(&mut self, slot: Slot, now: Time, ahead_ms: u32) {
        let is_awaited =
            self.lacks_user(slot) && self.conns[slot as usize].stage == Stage::Open(Dialect::Native);
        let ahead_ms = if is_awaited {
            self.settings.access.timeout_ms
        } else {
            self.token_left_ms(slot, now).map_or(ahead_ms, |left_ms| ahead_ms.min(left_ms))
        };
        self.wheel.arm(slot, now, ahead_ms);
    }

    /// For how long the token of a connection is good, in milliseconds; `None` for ever, and where there is none.
    pub(super) fn token_left_ms(&self, slot: Slot, now: Time) -> Option<u32> {
        let user = self.conns[slot as usize].user.as_ref().filter(|user| user.expires_at_s < u64::MAX)?;
        let tokens = self.settings.access.tokens.as_ref()?;
        let left_ms = tokens.good_until_ms(user.expires_at_s).saturating_sub(tokens.unix_ms(now));
        Some(u32::try_from(left_ms).unwrap_or(u32::MAX))
    }

    /// Closes a connection whose token is over, or did not come in time. Looked at when its timer fires. True when it was closed.
    pub(super) fn end_without_token(&mut self, slot: Slot, now: Time) -> bool {
        let conn = &self.conns[slot as usize];
        // Who waits for the backend has a time of its own.
        if conn.stage == Stage::Open(Dialect::Native) && self.lacks_user(slot) && !self.awaits(slot) {
            self.close(slot, CloseCode::Unauthorized, "no token came in time", Ending::Token, now);
        } else if self.token_left_ms(slot, now) == Some(0) {
            self.close(slot, CloseCode::TokenExpired, "the token has expired", Ending::Token, now);
        } else {
            return false;
        }
        true
    }

    fn tag(&self, name: &str) -> u32 {
        self.key.hash_one(name) as u32
    }
}

/// The refusal that tells a client what is wrong with its token.
pub(super) fn refuse_token(fault: TokenFault) -> Refusal<'static> {
    let code = match fault {
        TokenFault::Missing => Code::TokenMissing,
        TokenFault::Expired => Code::TokenExpired,
        TokenFault::Unavailable => Code::AuthUnavailable,
        _ => Code::TokenRefused,
    };
    let refusal = Refusal::new(code, fault.reason());
    if fault == TokenFault::Unavailable { refusal.with_retry(RETRY_MS) } else { refusal }
}

/// The same in the backend's words, where it has some.
pub(super) fn refuse_denial(denial: &Denial) -> Refusal<'static> {
    Refusal { message: denial.reason().to_owned().into(), ..refuse_token(denial.fault) }
}

/// The code that closes a connection for its token.
pub(super) fn close_code(fault: TokenFault) -> CloseCode {
    match fault {
        TokenFault::Expired => CloseCode::TokenExpired,
        TokenFault::PerUser => CloseCode::Policy,
        TokenFault::Unavailable => CloseCode::TryAgainLater,
        _ => CloseCode::Unauthorized,
    }
}

/// The token in an object with a field `token`, or in a text alone, in JSON.
pub fn token_in(json: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        token: Text<'a>,
    }
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    let Text(token) = if json.trim_ascii_start().starts_with('"') {
        serde_json::from_str(json).ok()?
    } else {
        serde_json::from_str::<Object<'_>>(json).ok()?.token
    };
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn it_agrees_with_plain_sets() {
        const SLOTS: usize = 30;
        let mut conns: Slab<Conn> = Slab::new();
        for stamp in 0..SLOTS {
            conns.insert(Conn::new(stamp as u32, Default::default(), Time::default()));
        }
        let mut users = Users::default();
        let mut model: BTreeMap<String, BTreeSet<Slot>> = BTreeMap::new();
        let mut random = 0x0123_4567_89ab_cdef_u64;
        // Of two users each the tags are the same: the name tells.
        let tag = |name: &str| (name.len() as u32) / 2;
        for _ in 0..50_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let slot = (random % SLOTS as u64) as Slot;
            let name = "u".repeat((random >> 32) as usize % 5 + 1);
            match conns[slot as usize].user.take() {
                Some(user) => {
                    users.remove(tag(&user.name), slot);
                    assert!(model.get_mut(&*user.name).expect("a user").remove(&slot));
                }
                None => {
                    conns[slot as usize].user = Some(Arc::new(User::named(&name)));
                    users.insert(&conns, tag(&name), slot);
                    model.entry(name.clone()).or_default().insert(slot);
                }
            }
            let found: Vec<Slot> = users.from(users.head(&conns, tag(&name), &name)).collect();
            let expected = model.get(&name).cloned().unwrap_or_default();
            assert_eq!((found.len(), BTreeSet::from_iter(found)), (expected.len(), expected));
            assert_eq!(users.connections(), model.values().map(BTreeSet::len).sum::<usize>());
        }
    }
}
