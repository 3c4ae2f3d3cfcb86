//! Clients that wait until the backend has said who they are.
//!
//! Who waits is in a table beside the connections. A request stays where it is, in the buffer of a head that is cut short, and is read again
//! when the answer is there; what comes of an open connection behind the message that asks is kept, and carried out after it.

use super::conn::Stage;
use super::socketio::Origin;
use super::users::refuse_denial;
use super::{Shard, WORK_MAX};
use crate::auth::Ip;
use crate::buf::Lease;
use crate::bus::callouts::{About, Address, Answer, Question, Verdict};
use crate::bus::outside::{ANYWHERE, Deed, Order};
use crate::dialect::Dialect;
use crate::dialect::native::Id;
use crate::message::{ConnId, Reject, Slot, TokenFault};
use crate::stats::Ending;
use crate::time::Time;
use crate::wire::close::CloseCode;
use crate::wire::http::Request;
use compact_str::CompactString;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What the end of a wait counts among what is done for others in one turn: a handshake takes some tens of microseconds.
const WORK: usize = 64;
/// Pieces of what comes behind a message that waits.
const PIECES_MAX: usize = 1_024;
/// When a client may try again whose wait was for nothing, in milliseconds.
pub(super) const RETRY_MS: u32 = 1_000;

/// How the backend is asked who clients are.
#[derive(Clone, Debug, Default)]
pub struct Callout {
    /// The cookies that are a credential, by their names; `*` for all.
    pub cookies: Vec<String>,
}

impl Callout {
    /// Of the cookies of a request, those that the backend gets.
    fn cookies_of<'r>(&self, request: &Request<'r>) -> Option<Cow<'r, str>> {
        let all = request.cookie.filter(|_| !self.cookies.is_empty())?;
        let all = std::str::from_utf8(all).ok()?;
        if self.cookies.iter().any(|name| name == "*") {
            return Some(all.trim_ascii().into()).filter(|all: &Cow<'_, str>| !all.is_empty());
        }
        let is_listed = |pair: &&str| {
            let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
            self.cookies.iter().any(|listed| listed == name.trim_ascii())
        };
        let listed: Vec<&str> = all.split(';').map(str::trim_ascii).filter(is_listed).collect();
        (!listed.is_empty()).then(|| listed.join("; ").into())
    }
}

/// What is known of a client by now.
#[derive(Debug)]
pub(super) enum Checked<T = ()> {
    /// This.
    Known(T),
    /// The backend is asked: this goes on when it has answered.
    Waits,
}

/// Why a client may not come in.
#[derive(Debug)]
pub(super) struct Denial {
    pub(super) fault: TokenFault,
    /// In the backend's words, where it has some.
    message: Option<CompactString>,
}

impl From<TokenFault> for Denial {
    fn from(fault: TokenFault) -> Denial {
        Denial { fault, message: None }
    }
}

impl Denial {
    pub(super) fn reason(&self) -> &str {
        self.message.as_deref().unwrap_or(self.fault.reason())
    }

    /// What a request is refused with.
    pub(super) fn reject(&self) -> Reject {
        match self.fault {
            TokenFault::Unavailable => Reject::AuthUnavailable,
            fault => Reject::Unauthorized(fault),
        }
    }
}

/// Who waits on one shard. Bounded by the questions that may wait, each for the time of a handshake.
#[derive(Debug, Default)]
pub struct Waits {
    /// By the stamp of the connection.
    waits: HashMap<u32, Wait>,
    /// When each is over, the first one first. Of those that were answered before, too.
    ends: VecDeque<(Time, Key)>,
    /// Answers that have come. At most one for each question.
    answered: VecDeque<Answered>,
    /// The answer for which a request, or a packet, is gone through again just now.
    verdict: Option<Verdict>,
    /// When that which is carried out just now had come.
    came: Option<Time>,
    /// Who is let in just now.
    entrant: Option<Entrant>,
    /// How many there were.
    count: u64,
}

/// The stamp of a connection, and which of its waits.
type Key = (u32, u64);

#[derive(Debug)]
struct Wait {
    slot: Slot,
    number: u64,
    /// When that came which waits.
    came: Time,
    what: What,
    /// The question has the other end: when this is gone, nobody wants to know.
    _asker: Arc<()>,
    /// What came behind it.
    held: Option<Held>,
}

#[derive(Debug)]
struct Answered {
    key: Key,
    verdict: Verdict,
    closed: Closed,
}

/// With what all connections of a user were closed before one that waits was among them.
type Closed = Option<(u16, CompactString)>;

/// A user whom the backend vouches for.
#[derive(Debug)]
struct Entrant {
    user: CompactString,
    closed: Closed,
}

/// What goes on when the answer is there.
#[derive(Debug)]
pub(super) enum What {
    /// The request in the connection's buffer.
    Request,
    /// A client of Socket.IO joins this namespace, with what it says for itself.
    Connect { namespace: String, auth: Option<String> },
    /// A native message with this id.
    Message { id: Option<String> },
    /// An event in this namespace, with this id.
    Event { namespace: String, id: Option<String> },
}

/// Pieces of what came behind it, each with its head before it.
#[derive(Debug)]
struct Held {
    lease: Lease,
    pieces: usize,
}

/// What comes whole of an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A text, or a packet of Socket.IO that is one.
    Text,
    /// Bytes, likewise.
    Binary,
    /// A namespace that is to be joined, a zero byte, and what the client says for itself, if anything.
    Connect,
}

impl Piece {
    /// Bytes of a head.
    const HEAD_BYTES: usize = 13;

    /// What stands before a piece that is kept: which it is, when it came and how long it is.
    fn head(self, came: Time, bytes: usize) -> [u8; Piece::HEAD_BYTES] {
        let mut head = [self as u8; Piece::HEAD_BYTES];
        head[1..9].copy_from_slice(&came.ns().to_le_bytes());
        // No message is as long as 4 GiB.
        head[9..].copy_from_slice(&(bytes as u32).to_le_bytes());
        head
    }

    /// The first piece that is kept in `held`, when it came, what it is, and what stands behind it.
    fn first(held: &[u8]) -> Option<(Piece, Time, &[u8], &[u8])> {
        let (head, rest) = held.split_first_chunk::<{ Piece::HEAD_BYTES }>()?;
        let [kind, came @ .., a, b, c, d] = *head;
        let piece = [Piece::Text, Piece::Binary, Piece::Connect].into_iter().find(|it| *it as u8 == kind)?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)?;
        Some((piece, Time::from_ns(u64::from_le_bytes(came)), bytes, rest))
    }
}

impl Waits {
    /// When that came which is carried out at `now`: limits count it then, however long it was kept.
    #[inline]
    pub(super) fn came(&self, now: Time) -> Time {
        self.came.unwrap_or(now)
    }

    /// Something else is carried out in between, until it is put back.
    pub(super) fn put_came_aside(&mut self) -> Option<Time> {
        self.came.take()
    }

    pub(super) fn put_came_back(&mut self, came: Option<Time>) {
        self.came = came;
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waits.len()
    }

    /// When the next one is over.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.ends.front().map(|(end, _)| *end)
    }

    /// True when nobody waits whose time could end, and no answer has come.
    pub(super) fn is_idle(&self) -> bool {
        self.ends.is_empty() && self.answered.is_empty()
    }

    /// True when answers have come that are still to be looked at.
    pub(super) fn has_answers(&self) -> bool {
        !self.answered.is_empty()
    }

    /// The connection with this stamp has moved.
    pub(super) fn moved(&mut self, stamp: u32, to: Slot) {
        if let Some(wait) = self.waits.get_mut(&stamp) {
            wait.slot = to;
        }
    }

    fn take(&mut self, (stamp, number): Key) -> Option<Wait> {
        let is_this = self.waits.get(&stamp).is_some_and(|wait| wait.number == number);
        is_this.then(|| self.waits.remove(&stamp))?
    }
}

impl Shard {
    /// True while a connection waits for the backend.
    #[inline]
    pub(super) fn awaits(&self, slot: Slot) -> bool {
        !self.waits.waits.is_empty() && self.waits.waits.contains_key(&self.conns[slot as usize].stamp)
    }

    /// Finds out by the backend who sends a request, if there is something that it could go by.
    ///
    /// # Errors
    /// Why nobody is let in by this request.
    pub(super) fn call_out_for_request(
        &mut self,
        slot: Slot,
        request: &Request<'_>,
        dialect: Dialect,
        token: Option<&str>,
        now: Time,
    ) -> Result<Option<Checked<Verdict>>, Denial> {
        let access = self.settings.access.clone();
        let (Some(callout), Some(tokens)) = (&access.callout, &access.tokens) else { return Ok(None) };
        let cookie = callout.cookies_of(request);
        if token.is_some_and(|token| tokens.judges(token)) || (token.is_none() && cookie.is_none()) {
            return Ok(None);
        }
        if let Some(verdict) = self.waits.verdict.take() {
            return Ok(Some(Checked::Known(verdict)));
        }
        let lengths = [token.map_or(0, str::len), cookie.as_deref().map_or(0, str::len)];
        if lengths.into_iter().any(|length| length > tokens.token_bytes_max()) {
            return Err(self.denied(TokenFault::TooLong));
        }
        let query = query_of_application(request.query, dialect, &access.query_parameter);
        let about = About {
            token: token.map(Box::from),
            cookie: cookie.map(Box::from),
            address: Address(self.client(slot, request)),
            origin: request.origin.map(Box::from),
            path: Some(request.path.into()),
            query: (!query.is_empty()).then(|| query.into()),
            ..About::default()
        };
        self.call_out(slot, What::Request, about, now)?;
        Ok(Some(Checked::Waits))
    }

    /// Finds out by the backend who an open connection is. `auth` is what a client of Socket.IO says for itself, in JSON, `token` what
    /// it calls a token.
    ///
    /// # Errors
    /// Why it is not asked.
    pub(super) fn call_out_for_message(
        &mut self,
        slot: Slot,
        what: What,
        (token, auth): (Option<&str>, Option<Box<RawValue>>),
        now: Time,
    ) -> Result<(), Denial> {
        let bytes_max = self.settings.access.tokens.as_ref().map_or(0, |tokens| tokens.token_bytes_max());
        let auth_bytes = auth.as_ref().map_or(0, |auth| auth.get().len());
        if token.map_or(0, str::len) > bytes_max || auth_bytes > bytes_max {
            return Err(self.denied(TokenFault::TooLong));
        }
        let address = Address(self.conns[slot as usize].ip);
        let about = About { token: token.map(Box::from), auth, address, ..About::default() };
        self.call_out(slot, what, about, now)
    }

    fn call_out(&mut self, slot: Slot, what: What, about: About, now: Time) -> Result<(), Denial> {
        let conn = &self.conns[slot as usize];
        let stamp = conn.stamp;
        let known_until_s = self.users.of(slot).map_or(0, |user| user.expires_at_s);
        self.waits.count += 1;
        let number = self.waits.count;
        let from = ConnId { shard: self.id, slot, stamp };
        let asker = Arc::new(());
        let question =
            Box::new(Question { from, number, known_until_s, asker: Arc::downgrade(&asker), about });
        if self.bus.callouts().is_none_or(|callouts| callouts.ask(question).is_err()) {
            return Err(self.denied(TokenFault::Unavailable));
        }
        let came = self.waits.came(now);
        self.waits.waits.insert(stamp, Wait { slot, number, came, what, _asker: asker, held: None });
        self.waits.ends.push_back((now.plus_ms(self.settings.handshake_timeout_ms.into()), (stamp, number)));
        Ok(())
    }

    /// A client at `ip` wants to come in: once for each request, though it is read again.
    ///
    /// # Errors
    /// As [`Gate::knock`](crate::auth::Gate::knock).
    pub(super) fn knock(&self, ip: Ip, now: Time) -> Result<(), Reject> {
        if self.waits.verdict.is_some() { Ok(()) } else { self.gate.knock(ip, now) }
    }

    /// A fault that is counted.
    pub(super) fn denied(&self, fault: TokenFault) -> Denial {
        self.stats().token_faults[fault.index()].add(1);
        fault.into()
    }

    /// What a verdict says of somebody who is to come in.
    pub(super) fn denial(&self, verdict: &Verdict) -> Option<Denial> {
        match verdict {
            Verdict::User(_) => None,
            Verdict::Nobody => self.settings.access.required.then(|| self.denied(TokenFault::Missing)),
            Verdict::Refused(message) => {
                Some(Denial { message: message.clone(), ..self.denied(TokenFault::Refused) })
            }
            Verdict::Unavailable => Some(self.denied(TokenFault::Unavailable)),
        }
    }

    /// The verdict for which a packet is gone through again.
    pub(super) fn take_verdict(&mut self) -> Option<Verdict> {
        self.waits.verdict.take()
    }

    /// Makes of an open connection what a verdict says.
    ///
    /// # Errors
    /// Why it stays what it is.
    pub(super) fn accept_verdict(&mut self, slot: Slot, verdict: &Verdict, now: Time) -> Result<(), Denial> {
        if let Some(denial) = self.denial(verdict) {
            return Err(denial);
        }
        match verdict {
            Verdict::User(vouched) => {
                self.identify(slot, vouched.as_ref().clone(), now).map_err(Denial::from)
            }
            _ if self.users.of(slot).is_some() => Err(self.denied(TokenFault::OtherUser)),
            _ => Ok(()),
        }
    }

    /// Keeps what comes behind a request that waits, within the bound of a head.
    pub(super) fn hold_head(&mut self, slot: Slot, bytes: &[u8]) {
        let Shard { conns, pool, settings, .. } = self;
        let Some(partial) = &mut conns[slot as usize].partial else { return };
        let has_place = partial.lease.bytes().len() + bytes.len() <= settings.head_bytes_max;
        if !has_place || pool.extend(&mut partial.lease, bytes).is_err() {
            self.hang_up(slot);
        }
    }

    /// Keeps what comes behind a message that waits, within the bound of a message.
    pub(super) fn hold(&mut self, slot: Slot, piece: Piece, bytes: &[u8], now: Time) {
        let Shard { conns, pool, settings, waits, .. } = self;
        let head = piece.head(waits.came(now), bytes.len());
        let Some(wait) = waits.waits.get_mut(&conns[slot as usize].stamp) else { return };
        let held = wait.held.get_or_insert_with(|| Held { lease: pool.lease(), pieces: 0 });
        held.pieces += 1;
        let bytes_max = settings.message_bytes_max + held.pieces * Piece::HEAD_BYTES;
        let has_place = held.pieces <= PIECES_MAX
            && held.lease.bytes().len() + Piece::HEAD_BYTES + bytes.len() <= bytes_max
            && pool.extend(&mut held.lease, &head).is_ok()
            && pool.extend(&mut held.lease, bytes).is_ok();
        if !has_place {
            let reason = "too much came before it was known who this is";
            self.fail(slot, CloseCode::TryAgainLater, reason, Ending::Limit, now);
        }
    }

    /// The backend has answered.
    pub(super) fn note_verdict(&mut self, answer: Answer) {
        let key = (answer.to.stamp, answer.number);
        self.waits.answered.push_back(Answered { key, verdict: answer.verdict, closed: None });
    }

    /// An order is about to be carried out. If it closes all connections of users, it is for those as well of whom it was just said that they
    /// are one of these: what was said came before the order. Who is signed out is refused; any other code is told where it can be, which is
    /// once the client is in.
    pub(super) fn revoke_verdicts(&mut self, order: &Order) {
        let Deed::Close { code, reason } = &order.deed else { return };
        if order.namespace != ANYWHERE {
            return;
        }
        let is_meant = |name: &CompactString| order.audience.users.contains(name);
        // To compare names takes little for each.
        self.work_done += self.waits.answered.len() / 16;
        for Answered { verdict, closed, .. } in &mut self.waits.answered {
            if !matches!(verdict, Verdict::User(vouched) if is_meant(&vouched.user.name)) {
                continue;
            }
            if *code == u16::from(CloseCode::Unauthorized) {
                *verdict = Verdict::Refused((!reason.is_empty()).then(|| reason.clone()));
            } else {
                *closed = Some((*code, reason.clone()));
            }
        }
        if let Some(entrant) = self.waits.entrant.as_mut().filter(|entrant| is_meant(&entrant.user)) {
            entrant.closed = Some((*code, reason.clone()));
        }
    }

    /// Goes on with those who have waited long enough, or as many as one turn has time for.
    pub(super) fn end_waits(&mut self, now: Time) {
        while let Some((_, key)) = self.waits.ends.pop_front_if(|(end, _)| *end <= now) {
            self.waits.answered.push_back(Answered { key, verdict: Verdict::Unavailable, closed: None });
        }
        while self.work_done < WORK_MAX
            && !self.is_spent()
            && let Some(answered) = self.waits.answered.pop_front()
        {
            if let Some(wait) = self.waits.take(answered.key) {
                self.work_done += WORK;
                self.go_on(wait, answered, now);
            }
        }
        if self.waits.waits.is_empty() {
            // What is left is of connections that are gone.
            (self.waits.ends, self.waits.answered) = Default::default();
        }
    }

    fn go_on(&mut self, wait: Wait, answered: Answered, now: Time) {
        let Answered { key: (stamp, _), verdict, closed } = answered;
        let Wait { slot, came, what, held, .. } = wait;
        self.waits.came = Some(came);
        self.waits.entrant = match &verdict {
            Verdict::User(vouched) => Some(Entrant { user: vouched.user.name.clone(), closed }),
            _ => None,
        };
        // Events that are on their way were published before it was in any room, and mail may end it.
        self.deliver(now);
        let conn = self.conns.get(slot as usize).filter(|conn| conn.stamp == stamp && !conn.doomed);
        match (conn.map(|conn| conn.stage), what) {
            (Some(Stage::Http), What::Request) => {
                self.waits.verdict = Some(verdict);
                self.receive_heads(slot, &mut [], now);
                self.waits.verdict = None;
            }
            (Some(Stage::Open(_)), What::Connect { namespace, auth }) => {
                self.waits.verdict = Some(verdict);
                self.join_namespace(slot, &namespace, auth.as_deref(), now);
                self.waits.verdict = None;
            }
            (Some(Stage::Open(_)), What::Message { id }) => {
                let accepted = self.accept_verdict(slot, &verdict, now);
                self.answer_token(slot, accepted, id.as_deref(), now);
            }
            (Some(Stage::Open(_)), What::Event { namespace, id }) => {
                let accepted = self.accept_verdict(slot, &verdict, now);
                let origin = Origin { slot, namespace: Some(&namespace), id: id.as_deref() };
                self.answer_token_event(origin, accepted);
            }
            _ => {}
        }
        if let Some(Entrant { user, closed: Some((code, reason)) }) = self.waits.entrant.take() {
            // On the way in, mail was carried out, and an order in it came too early for this one: the others of the user are closed already.
            for slot in self.connections_of(&user, ANYWHERE).collect::<Vec<_>>() {
                self.dismiss(slot, code, &reason, now);
            }
        }
        if let Some(Held { lease, .. }) = held {
            self.carry_out_held(slot, stamp, lease.bytes(), now);
            self.pool.give_back(lease);
        }
        self.waits.came = None;
    }

    /// Carries out what came behind a message that waited.
    fn carry_out_held(&mut self, slot: Slot, stamp: u32, mut held: &[u8], now: Time) {
        while let Some((piece, came, bytes, behind)) = Piece::first(held) {
            held = behind;
            self.waits.came = Some(came);
            let conn = self.conns.get(slot as usize).filter(|conn| conn.stamp == stamp && conn.is_open());
            let Some(conn) = conn else { return };
            let is_direct = conn.is_direct();
            // It was text when it came.
            let text = || std::str::from_utf8(bytes).unwrap_or_default();
            match piece {
                // It has asked again.
                _ if self.awaits(slot) => self.hold(slot, piece, bytes, now),
                Piece::Text if is_direct => self.direct_text(slot, text(), now),
                Piece::Binary if is_direct => self.direct_binary(slot, bytes, now),
                Piece::Connect => {
                    let (namespace, auth) = text().split_once('\0').unwrap_or_default();
                    self.join_namespace(slot, namespace, Some(auth).filter(|auth| !auth.is_empty()), now);
                }
                Piece::Text => self.socketio_text(slot, text(), now),
                Piece::Binary => self.socketio_binary(slot, bytes, now),
            }
        }
    }

    /// A connection is gone, and nobody waits on it any more.
    pub(super) fn forget_wait(&mut self, slot: Slot, stamp: u32) {
        if self.waits.waits.get(&stamp).is_some_and(|wait| wait.slot == slot)
            && let Some(Wait { held: Some(held), .. }) = self.waits.waits.remove(&stamp)
        {
            self.pool.give_back(held.lease);
        }
    }

    /// Tells a client of a direct dialect what came of its token. One who has none that is good is closed.
    pub(super) fn answer_token(
        &mut self,
        slot: Slot,
        accepted: Result<(), Denial>,
        id: Option<Id<'_>>,
        now: Time,
    ) {
        let Err(denial) = accepted else { return self.acknowledge(slot, id, Ok(())) };
        self.refuse(slot, &refuse_denial(&denial).with_id(id));
        if self.users.of(slot).is_none() {
            let code = super::users::close_code(denial.fault);
            self.close(slot, code, denial.reason(), Ending::Token, now);
        }
    }
}

/// What a client of Socket.IO says for itself, without what is there for the recovery of its session; `None` when that is nothing.
///
/// # Errors
/// When it is JSON and cannot be told apart from nothing: a number that is out of range, or it nests too deep.
pub(super) fn auth_of_application(auth: &str) -> Result<Option<Box<RawValue>>, TokenFault> {
    let mut auth: serde_json::Value = serde_json::from_str(auth).map_err(|_| TokenFault::Malformed)?;
    match &mut auth {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::Object(fields) => {
            // They are new each time, and the backend would be asked each time.
            fields.remove("pid");
            fields.remove("offset");
            if fields.is_empty() {
                return Ok(None);
            }
        }
        _ => {}
    }
    Ok(RawValue::from_string(auth.to_string()).ok())
}

/// A query without the token, and without what Engine.IO says there, of which some is new each time.
fn query_of_application(query: &str, dialect: Dialect, token_parameter: &str) -> String {
    let is_own = |pair: &&str| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        let of_engine =
            dialect.is_engine() && matches!(name, "EIO" | "transport" | "t" | "b64" | "j" | "sid");
        of_engine || name == token_parameter || name.is_empty()
    };
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_own(pair)).collect();
    kept.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Gate, Rules, User, Vouched};
    use crate::bus::Bus;
    use crate::bus::callouts::{Callouts, Forget, Whose};
    use crate::bus::mailbox::Mail;
    use crate::config::Config;
    use crate::message::user_key;
    use crate::server;
    use crate::shard::users::Access;
    use crate::stats::Stats;
    use crate::token::{self, Tokens};
    use std::net::Ipv4Addr;

    const NOW: Time = Time::from_ms(1_000);

    /// A shard that has the backend asked.
    fn asking_shard() -> (Shard, Arc<Bus>) {
        let bus = Arc::new(Bus::new(1, 100).with_callouts(Arc::new(Callouts::new(10))));
        let config = Config::default();
        let mut settings = server::settings(&config, 1, 10);
        let tokens = Tokens::new(token::Settings::without_keys());
        settings.access = Arc::new(Access {
            tokens: Some(Arc::new(tokens)),
            required: true,
            timeout_ms: 5_000,
            query_parameter: "token".to_owned(),
            permissions: config.permissions.clone(),
            callout: Some(Callout::default()),
        });
        let gate = Gate::new(Rules { connections_max: 10, sockets_max: 10, ..Rules::default() });
        let shard = Shard::new(0, settings, bus.clone(), Arc::new(gate), Arc::new(Stats::new(1)), NOW);
        (shard, bus)
    }

    /// A client that sends this request.
    fn request(shard: &mut Shard, target: &str) -> Slot {
        let slot = shard.accept(Ipv4Addr::LOCALHOST.into(), NOW);
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let upgrade = if target.starts_with("/ws") { upgrade } else { "" };
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n").into_bytes();
        shard.receive(slot, &mut head, NOW);
        slot
    }

    /// The backend says that all who wait are `anna`.
    fn answer(bus: &Bus) {
        let callouts = bus.callouts().expect("there are some");
        for question in callouts.take().questions {
            let vouched = Vouched { user: User::named("anna"), rooms: Vec::new() };
            let verdict = Verdict::User(Arc::new(vouched));
            bus.post(
                0,
                Mail::Callout(Box::new(Answer { to: question.from, number: question.number, verdict })),
            );
        }
    }

    #[test]
    fn who_is_signed_out_while_the_word_of_the_backend_waits_is_not_let_in() {
        type Begin = fn(&mut Shard);
        let by_request: Begin = |shard| {
            request(shard, "/ws?token=x");
        };
        let by_polling: Begin = |shard| {
            request(shard, "/socket.io/?EIO=4&transport=polling&token=x");
        };
        let by_message: Begin = |shard| {
            let slot = request(shard, "/ws");
            let what = What::Message { id: None };
            shard.call_out_for_message(slot, what, (Some("x"), None), NOW).expect("it may ask");
        };
        // `at_once`: the order is in the mail with the answer; otherwise it comes while the client is let in.
        let check = |begin: Begin, at_once: bool, whose: &str, code: Option<u16>, expected: usize| {
            let (mut shard, bus) = asking_shard();
            begin(&mut shard);
            let sign_out = || match code {
                None => {
                    let forget = Forget { whose: Whose::User(whose.into()), disconnect: true };
                    bus.dismiss_forgotten(&forget).expect("there is room");
                }
                Some(code) => {
                    let deed = Deed::Close { code, reason: "banned".into() };
                    bus.order(ANYWHERE, &[&user_key(whose)], &[], deed).expect("there is room");
                }
            };
            answer(&bus);
            shard.begin_turn(NOW);
            if at_once {
                sign_out();
            }
            shard.deliver(NOW);
            if !at_once {
                sign_out();
            }
            shard.advance(NOW);
            let open = shard.conns.iter().filter(|(_, conn)| conn.is_open()).count();
            assert_eq!((shard.users.connections(), open), (expected, expected), "{at_once} {whose}");
            assert!(shard.waits.waits.is_empty() && shard.waits.entrant.is_none());
            let told = shard.close_code.map(|(_, code)| code);
            assert!(code.is_none() || expected > 0 || told == code, "{at_once} {told:?}");
        };
        for begin in [by_request, by_polling, by_message] {
            for at_once in [true, false] {
                for code in [None, Some(4100)] {
                    check(begin, at_once, "anna", code, 0);
                    check(begin, at_once, "bert", code, 1);
                }
            }
        }
    }

    #[test]
    fn a_question_is_wanted_as_long_as_its_client_is_there() {
        let (mut shard, bus) = asking_shard();
        let slots = [0, 1].map(|_| request(&mut shard, "/ws?token=x"));
        let questions = bus.callouts().expect("there are some").take().questions;
        let wanted = || questions.iter().map(|question| question.is_wanted()).collect::<Vec<bool>>();
        assert_eq!(wanted(), [true, true]);
        shard.release(slots[0]);
        assert_eq!(wanted(), [false, true]);
        shard.begin_turn(NOW);
        shard.advance(NOW.plus_ms(60_000));
        assert_eq!(wanted(), [false, false], "it has waited long enough");
    }

    #[test]
    fn the_backend_gets_the_cookies_that_are_listed() {
        let check = |listed: &[&str], header: Option<&str>, expected: Option<&str>| {
            let head = "GET /ws HTTP/1.1\r\nHost: a\r\n";
            let line = header.map_or(String::new(), |header| format!("Cookie: {header}\r\n"));
            let head = format!("{head}{line}\r\n");
            let Ok(crate::wire::http::Head::Complete(request, _)) = crate::wire::http::parse(head.as_bytes())
            else {
                panic!("a whole head")
            };
            let callout = Callout { cookies: listed.iter().map(|name| (*name).to_owned()).collect() };
            assert_eq!(callout.cookies_of(&request).as_deref(), expected, "{listed:?} of {header:?}");
        };
        check(&[], Some("a=1"), None);
        check(&["*"], Some(" a=1; b=2 "), Some("a=1; b=2"));
        check(&["*"], Some(" "), None);
        check(&["b", "c"], Some("a=1; b=2;c=3=4; bb=5"), Some("b=2; c=3=4"));
        check(&["x"], Some("a=1"), None);
        check(&["*"], None, None);
    }

    #[test]
    fn pieces_are_kept_with_when_they_came() {
        let kept =
            [(Piece::Text, 1, "a".as_bytes()), (Piece::Connect, 1 << 60, b""), (Piece::Binary, 7, &[0; 300])];
        let mut held = Vec::new();
        for (piece, came, bytes) in kept {
            held.extend(piece.head(Time::from_ns(came), bytes.len()));
            held.extend(bytes);
        }
        let mut rest = held.as_slice();
        for (piece, came, bytes) in kept {
            let (first, at, it, behind) = Piece::first(rest).expect("there is another");
            assert_eq!((first, at.ns(), it), (piece, came, bytes));
            rest = behind;
        }
        assert!(Piece::first(rest).is_none());
    }

    #[test]
    fn what_is_new_each_time_is_left_out() {
        let query = |query, dialect| query_of_application(query, dialect, "token");
        assert_eq!(query("EIO=4&transport=polling&t=abc&a=b&token=x&c", Dialect::SocketIo), "a=b&c");
        assert_eq!(query("t=abc&token=x", Dialect::Native), "t=abc");
        let auth =
            |text| auth_of_application(text).map_or(None, |auth| auth.map(|auth| auth.get().to_owned()));
        assert_eq!(auth(r#"{"b":1,"pid":"x","offset":"y","a":{}}"#).as_deref(), Some(r#"{"a":{},"b":1}"#));
        assert_eq!(auth(r#"{"pid":"x"}"#), None);
        assert_eq!((auth("{}"), auth("null")), (None, None));
        for unreadable in ["x", r#"{"key":1e999}"#, &"[".repeat(200)] {
            assert_eq!(auth_of_application(unreadable).map(drop), Err(TokenFault::Malformed), "{unreadable}");
        }
        assert_eq!(auth(r#""abc""#).as_deref(), Some(r#""abc""#));
    }
}
