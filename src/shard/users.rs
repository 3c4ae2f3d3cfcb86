//! Who a connection is, once a token has shown that: where the connections of a user are, what they may do, and when it is over.

use super::callouts::{Callout, Checked, Denial, RETRY_MS, What, auth_of_application};
use super::{CloseCode, Ending, Shard};
use crate::auth::{Ip, Room, User, Vouched};
use crate::bus::callouts::Verdict;
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::inquiry::LOOKED_AT_MAX;
use crate::bus::outside::ANYWHERE;
use crate::dialect::Dialect;
use crate::dialect::native::{Code, Refusal, name_fault};
use crate::message::{Reject, Slot, TokenFault, write_socket_id};
use crate::permissions::{Act, Actor, Permissions};
use crate::routes::arrival::Entrant;
use crate::routes::template::Fault;
use crate::time::{Bucket, Time};
use crate::token::Tokens;
use crate::wire::http::Request;
use compact_str::CompactString;
use hashbrown::HashTable;
use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::HashMap;
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

/// Whose a connection is to be, counted by the gate or about to be.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) user: Arc<User>,
    /// Rooms that it joins at once.
    rooms: Vec<Room>,
}

/// Who connections are, and where those of a user are. Some thirty bytes for each, and nothing for others while nobody is a user: an entry
/// for each user, and a list through all of its connections, so that coming and going cost the same however many one user has.
#[derive(Debug, Default)]
pub struct Users {
    /// A part of the name's hash, and the first connection of the list.
    heads: HashTable<(u32, Slot)>,
    /// By slot. Grows to the highest slot that has had a user, and is given back when nobody is one any more.
    links: Vec<Link>,
    connections: usize,
    /// Rooms that tokens name, until the sessions are in the namespace that the rooms are in.
    rooms: HashMap<Slot, Vec<CompactString>>,
}

/// A connection's place in the list of its user. The others are unset exactly when there is no user.
#[derive(Clone, Debug)]
struct Link {
    user: Option<Arc<User>>,
    next: Slot,
    before: Slot,
}

const NONE: Slot = Slot::MAX;

impl Link {
    const UNSET: Link = Link { user: None, next: NONE, before: NONE };
}

impl Users {
    /// Adds a connection of a user. `tag` is a part of a keyed hash of the user's name.
    fn insert(&mut self, tag: u32, slot: Slot, user: Arc<User>) {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, Link::UNSET);
        }
        self.connections += 1;
        let Some(head) = self.head(tag, &user.name) else {
            self.links[slot as usize].user = Some(user);
            self.heads.insert_unique(spread(tag), (tag, slot), |(tag, _)| spread(*tag));
            return;
        };
        // Behind the head, which stays.
        let next = std::mem::replace(&mut self.links[head as usize].next, slot);
        self.links[slot as usize] = Link { user: Some(user), next, before: head };
        if next != NONE {
            self.links[next as usize].before = slot;
        }
    }

    /// A connection of a user has brought another token of the same one.
    fn renew(&mut self, slot: Slot, user: Arc<User>) {
        self.links[slot as usize].user = Some(user);
    }

    /// Takes a connection away. Answers whose it was.
    fn remove(&mut self, tag: u32, slot: Slot) -> Option<Arc<User>> {
        let Link { user, next, before } = std::mem::replace(self.links.get_mut(slot as usize)?, Link::UNSET);
        self.connections -= 1;
        self.rooms.remove(&slot);
        if next != NONE {
            self.links[next as usize].before = before;
        }
        if before != NONE {
            self.links[before as usize].next = next;
        } else if let Ok(mut entry) = self.heads.find_entry(spread(tag), |entry| *entry == (tag, slot)) {
            if next != NONE {
                entry.get_mut().1 = next;
            } else {
                entry.remove();
            }
        }
        if self.connections == 0 {
            *self = Users::default();
        }
        user
    }

    /// Who a connection is, if that is known.
    pub fn of(&self, slot: Slot) -> Option<&Arc<User>> {
        self.links.get(slot as usize)?.user.as_ref()
    }

    /// How many connections have a user.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// One of the connections of the user called `name`.
    fn head(&self, tag: u32, name: &str) -> Option<Slot> {
        let is_head =
            |entry: &(u32, Slot)| entry.0 == tag && self.of(entry.1).is_some_and(|user| user.name == name);
        self.heads.find(spread(tag), is_head).map(|(_, slot)| *slot)
    }

    fn from(&self, head: Option<Slot>) -> impl Iterator<Item = Slot> {
        std::iter::successors(head, |slot| Some(self.links[*slot as usize].next).filter(|next| *next != NONE))
    }
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
        let comes_later = dialect.is_direct() || dialect == Dialect::SocketIo;
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
        let token = match auth.map_or(Ok(None), token_in) {
            Ok(token) => token,
            Err(fault) => return Err(self.denied(fault)),
        };
        // Of somebody who is known already, what is no token is the application's.
        let may_be_credential = token.is_some() || self.users.of(slot).is_none();
        if may_be_credential && auth.is_some() && self.is_for_backend(token.as_deref()) {
            let said = match auth.map_or(Ok(None), auth_of_application) {
                Ok(said) => said,
                Err(fault) => return Err(self.denied(fault)),
            };
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

    /// Lets a connection in from `ip`, and counts it as one of the user that was vouched for in its request.
    ///
    /// # Errors
    /// Which limit is in its way; then it is counted nowhere.
    pub(super) fn admit(&mut self, ip: Ip, vouched: Option<Vouched>) -> Result<Option<Identity>, Reject> {
        if self.drain.is_some() {
            return Err(Reject::Draining);
        }
        self.gate.admit(ip)?;
        let Some(vouched) = vouched else { return Ok(None) };
        let identity = self.identity(vouched);
        match self.gate.admit_user(&identity.user) {
            Ok(()) => Ok(Some(identity)),
            Err(reject) => {
                self.gate.dismiss(ip);
                Err(reject)
            }
        }
    }

    /// Makes an open connection that of a user.
    ///
    /// # Errors
    /// When it is another user's already, or the user has as many connections as allowed.
    pub(super) fn identify(&mut self, slot: Slot, vouched: Vouched, now: Time) -> Result<(), TokenFault> {
        let before = self.users.of(slot).cloned();
        if before.as_ref().is_some_and(|before| before.name != vouched.user.name) {
            self.stats().token_faults[TokenFault::OtherUser.index()].add(1);
            return Err(TokenFault::OtherUser);
        }
        let identity = self.identity(vouched);
        let is_new = before.is_none();
        match before {
            Some(before) => self.gate.renew_user(&before, &identity.user),
            None if self.gate.admit_user(&identity.user).is_err() => {
                self.stats().token_faults[TokenFault::PerUser.index()].add(1);
                return Err(TokenFault::PerUser);
            }
            None => {}
        }
        // Where nobody may do anything without a token, it has been nowhere until now.
        let is_first = is_new && self.lacks_user(slot);
        self.assume(slot, identity, now);
        if is_new {
            for namespace in self.namespaces_of(slot) {
                self.arrive(slot, &namespace, !is_first);
            }
        }
        Ok(())
    }

    /// The namespaces that an open connection is in.
    fn namespaces_of(&self, slot: Slot) -> SmallVec<[CompactString; 1]> {
        let conn = &self.conns[slot as usize];
        match &conn.session {
            Some(session) => session.namespaces.iter().map(|joined| joined.name.clone()).collect(),
            None => conn.is_direct().then(|| "/".into()).into_iter().collect(),
        }
    }

    /// Makes a connection that has entered a namespace a member of the rooms that the configuration names for that; `again` when it has been
    /// there, and is a user only now.
    pub(super) fn arrive(&mut self, slot: Slot, namespace: &str, again: bool) {
        let settings = self.settings.socketio.clone();
        let Some(arrival) = settings.routes.arrival(namespace).filter(|_| !self.lacks_user(slot)) else {
            return;
        };
        let user = self.users.of(slot).cloned();
        let actor = user.as_ref().map_or_else(Actor::default, |user| user.actor());
        let socket = write_socket_id(&self.id_in(slot, namespace));
        let entrant = Entrant { namespace, user: actor.name, roles: actor.roles, socket: &socket };
        let most = self.settings.rooms_per_connection_max;
        let rooms = match arrival.rooms(&entrant, again, most) {
            Ok(rooms) => rooms,
            Err(Fault(message)) => return self.count_refusal(&Refusal::new(Code::BadRoom, message)),
        };
        if let Some(fault) = rooms.iter().find_map(|name| name_fault(name, self.settings.room_name_bytes_max))
        {
            return self.count_refusal(&Refusal::new(Code::BadRoom, fault));
        }
        let keys: Vec<CompactString> =
            rooms.iter().map(|name| room_key(namespace, name).as_ref().into()).collect();
        self.join_granted(slot, &keys);
    }

    /// Most connections of a user come with one token: they share what it said.
    fn identity(&self, vouched: Vouched) -> Identity {
        let Vouched { user, rooms } = vouched;
        let head = self.users.head(self.tag(&user.name), &user.name);
        let shared = head.and_then(|head| self.users.of(head).cloned()).filter(|other| **other == user);
        Identity { user: shared.unwrap_or_else(|| Arc::new(user)), rooms }
    }

    /// A connection that the gate has counted for a user is that user's. The one place where it gets its user, but for a session that moves
    /// with its own.
    pub(super) fn assume(&mut self, slot: Slot, identity: Identity, now: Time) {
        let Identity { user, rooms } = identity;
        debug_assert!(self.conns[slot as usize].is_open(), "who is over has no user");
        let tag = self.tag(&user.name);
        let is_new = self.users.of(slot).is_none();
        if is_new {
            self.users.insert(tag, slot, user);
            let (_, burst) = self.rate(slot);
            self.conns[slot as usize].bucket = Bucket::full(burst, self.waits.came(now));
            self.note_open(slot);
        } else {
            self.users.renew(slot, user);
        }
        let rooms: Vec<CompactString> =
            rooms.iter().map(|room| room_key(&room.namespace, &room.name).as_ref().into()).collect();
        let conn = &self.conns[slot as usize];
        match &conn.session {
            Some(_) => {
                if rooms.is_empty() {
                    self.users.rooms.remove(&slot);
                } else {
                    self.users.rooms.insert(slot, rooms);
                }
                self.join_rooms_of_token(slot);
                self.arm_session(slot, now);
            }
            None => {
                if conn.is_direct() {
                    let here: Vec<CompactString> =
                        rooms.into_iter().filter(|room| namespace_of(room) == "/").collect();
                    self.join_granted(slot, &here);
                }
                if !self.conns[slot as usize].pinged {
                    self.arm_open(slot, now, self.settings.ping_interval_ms);
                }
            }
        }
    }

    /// A connection has no user any more: it is closed, or is about to be. The one place where it loses its user.
    pub(super) fn lose_user(&mut self, slot: Slot) {
        if let Some(user) = self.take_user(slot) {
            self.gate.dismiss_user(&user);
        }
    }

    /// A session has moved from one connection to another, and its user with it.
    pub(super) fn move_user(&mut self, from: Slot, to: Slot) {
        let rooms = self.users.rooms.remove(&from);
        let Some(user) = self.take_user(from) else { return };
        self.users.insert(self.tag(&user.name), to, user);
        self.users.rooms.extend(rooms.map(|rooms| (to, rooms)));
    }

    fn take_user(&mut self, slot: Slot) -> Option<Arc<User>> {
        let tag = self.tag(&self.users.of(slot)?.name);
        self.users.remove(tag, slot)
    }

    /// Users with connections here, each once: those whose first connection is in one of the slots from `from` on, of which at most
    /// [`LOOKED_AT_MAX`] are looked at. Answers where to go on, unless that was all.
    pub(super) fn users_from(&self, from: Slot, most: usize) -> (Vec<Box<str>>, Option<Slot>) {
        let slots = self.users.links.len() as Slot;
        let end = slots.min(from.saturating_add(LOOKED_AT_MAX));
        let mut names = Vec::new();
        let mut slot = from;
        while slot < end && names.len() < most {
            if let Some(user) = self.users.of(slot)
                && self.users.links[slot as usize].before == NONE
            {
                names.push(user.name.as_str().into());
            }
            slot += 1;
        }
        (names, (slot < slots).then_some(slot))
    }

    /// All connections here of the user called `name`.
    pub(super) fn all_of(&self, name: &str) -> impl Iterator<Item = Slot> {
        self.users.from(self.users.head(self.tag(name), name))
    }

    /// The connections here of the user called `name` that are in a namespace or on their way back into it, or [anywhere](ANYWHERE).
    pub(super) fn connections_of(&self, name: &str, namespace: &str) -> impl Iterator<Item = Slot> {
        self.all_of(name).filter(move |slot| {
            let conn = &self.conns[*slot as usize];
            match &conn.session {
                _ if namespace == ANYWHERE => true,
                Some(session) => {
                    session.joined(namespace).is_some()
                        || session.recovering.as_ref().is_some_and(|recovering| recovering.is_of(namespace))
                }
                None => conn.is_direct() && namespace == "/",
            }
        })
    }

    /// Makes a session a member of the rooms that its token names, of those whose namespace it is in.
    pub(super) fn join_rooms_of_token(&mut self, slot: Slot) {
        let Some(rooms) = self.users.rooms.remove(&slot) else { return };
        let Some(session) = &self.conns[slot as usize].session else { return };
        let (here, others): (Vec<_>, Vec<_>) =
            rooms.into_iter().partition(|room| session.joined(namespace_of(room)).is_some());
        if !others.is_empty() {
            self.users.rooms.insert(slot, others);
        }
        self.join_granted(slot, &here);
    }

    fn join_granted(&mut self, slot: Slot, rooms: &[CompactString]) {
        let rooms: Vec<Cow<'_, str>> = rooms.iter().map(|room| room.as_str().into()).collect();
        // Nobody asked for them, so nobody is told when the connection or the server is in as many rooms as it may be: none is joined.
        if let Err(refusal) = self.join(slot, &rooms) {
            self.count_refusal(&refusal);
        }
    }

    /// True when a connection may do nothing because nobody knows who it is.
    pub(super) fn lacks_user(&self, slot: Slot) -> bool {
        self.settings.access.required && self.users.of(slot).is_none()
    }

    /// Why a connection may not `act` on one of these rooms, if so. Rooms go by their names in the directory.
    pub(super) fn forbid(&self, slot: Slot, rooms: &[Cow<'_, str>], act: Act) -> Option<Refusal<'static>> {
        let permissions = &self.settings.access.permissions;
        let user = self.users.of(slot);
        if permissions.is_empty() && user.is_none_or(|user| user.granted.is_none()) {
            return None;
        }
        let actor = user.map_or_else(Actor::default, |user| user.actor());
        let is_allowed = |key: &Cow<'_, str>| permissions.allow(&actor, namespace_of(key), room_of(key), act);
        let message = match act {
            Act::Join => "this client may not join this room",
            Act::Publish => "this client may not publish to this room",
            Act::Presence => "this client may not see who is in this room",
            Act::Connect => "this client may not be in this namespace",
        };
        (!rooms.iter().all(is_allowed)).then(|| Refusal::new(Code::Forbidden, message))
    }

    /// True when a connection may be in a namespace.
    pub(super) fn may_connect(&self, slot: Slot, namespace: &str) -> bool {
        let user = self.users.of(slot).map(Arc::as_ref);
        let actor = user.map_or_else(Actor::default, User::actor);
        self.settings.access.permissions.admit(&actor, namespace)
    }

    /// Messages a second of a connection and how many at once, as its token or else the configuration says; 0 for no limit.
    pub(super) fn rate(&self, slot: Slot) -> (u32, u32) {
        let granted = self.users.of(slot).and_then(|user| user.granted.as_ref()?.messages_per_second_max);
        granted.map_or((self.settings.messages_per_second_max, self.settings.messages_burst_max), |rate| {
            (rate, rate)
        })
    }

    /// Bytes of messages a second of a connection and how many at once, likewise.
    pub(super) fn byte_rate(&self, slot: Slot) -> (u32, u32) {
        let user = self.users.of(slot);
        let granted = user.and_then(|user| user.granted.as_ref()?.bytes_per_second_max);
        let configured = (self.settings.bytes_per_second_max, self.settings.bytes_burst_max);
        granted.map_or(configured, |rate| (rate, rate))
    }

    /// Sets the timer of an open connection that is not a session, which has no ping under way: no later than its token is over, or has to be there.
    pub(super) fn arm_open(&mut self, slot: Slot, now: Time, ahead_ms: u32) {
        let is_awaited = self.lacks_user(slot) && self.conns[slot as usize].is_direct();
        let ahead_ms = if is_awaited {
            self.settings.access.timeout_ms
        } else {
            self.token_left_ms(slot, now).map_or(ahead_ms, |left_ms| ahead_ms.min(left_ms))
        };
        self.wheel.arm(slot, now, ahead_ms);
    }

    /// For how long the token of a connection is good, in milliseconds; `None` for ever, and where there is none.
    pub(super) fn token_left_ms(&self, slot: Slot, now: Time) -> Option<u32> {
        let user = self.users.of(slot).filter(|user| user.expires_at_s < u64::MAX)?;
        let tokens = self.settings.access.tokens.as_ref()?;
        let left_ms = tokens.good_until_ms(user.expires_at_s).saturating_sub(tokens.unix_ms(now));
        Some(u32::try_from(left_ms).unwrap_or(u32::MAX))
    }

    /// Closes a connection whose token is over, or did not come in time. Looked at when its timer fires. True when it was closed.
    pub(super) fn end_without_token(&mut self, slot: Slot, now: Time) -> bool {
        let conn = &self.conns[slot as usize];
        // Who waits for the backend has a time of its own.
        if conn.is_direct() && self.lacks_user(slot) && !self.awaits(slot) {
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

/// The token in an object with a field `token`, or in a text alone, in JSON; `None` where there is neither.
///
/// # Errors
/// When an object has several such fields.
pub fn token_in(json: &str) -> Result<Option<Cow<'_, str>>, TokenFault> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        token: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    let json = json.trim_ascii_start();
    let token = match json.as_bytes().first() {
        Some(b'{') => {
            let said: Object<'_> = serde_json::from_str(json).map_err(|_| TokenFault::Malformed)?;
            said.token.map_or("", RawValue::get)
        }
        _ => json,
    };
    // What is no text is no token, but the application's.
    Ok(serde_json::from_str(token).ok().map(|Text(token)| token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn it_agrees_with_plain_sets() {
        const SLOTS: usize = 30;
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
            match users.of(slot).map(|user| user.name.clone()) {
                Some(name) => {
                    let user = users.remove(tag(&name), slot).expect("it has one");
                    assert!(users.of(slot).is_none() && user.name == name);
                    assert!(model.get_mut(&*name).expect("a user").remove(&slot));
                }
                None => {
                    users.insert(tag(&name), slot, Arc::new(User::named(&name)));
                    model.entry(name.clone()).or_default().insert(slot);
                }
            }
            let found: Vec<Slot> = users.from(users.head(tag(&name), &name)).collect();
            let expected = model.get(&name).cloned().unwrap_or_default();
            assert_eq!((found.len(), BTreeSet::from_iter(found)), (expected.len(), expected));
            assert_eq!(users.connections(), model.values().map(BTreeSet::len).sum::<usize>());
        }
    }
}
