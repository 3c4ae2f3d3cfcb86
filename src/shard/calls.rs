//! What a shard asks the backend for its clients, and what it does when that has answered: events, joins of namespaces, and that somebody
//! has left one.
//!
//! The shard does not wait: a call goes into a queue of the bus, and its answer comes as mail. What an answer publishes goes by the
//! mailbox, like all publications, and the ack follows it there, so that a client gets events and acks in the order in which the backend
//! gave them.

use super::conn::{Conn, Stage};
use super::socketio::{Barred, Origin};
use super::{Ending, OVERLOAD_RETRY_MS, Shard, SocketIo};
use crate::bus::calls::{
    Answer, Answered, Asked, Busy, Call, Client, Emit, End, Failure, Refusal as NotIn, What,
};
use crate::bus::directory::room_key;
use crate::bus::mailbox::Mail;
use crate::dialect::native::{self, Code, Refusal};
use crate::dialect::{Dialect, attachments, socketio};
use crate::json;
use crate::message::{ConnId, Draft, Slot, SocketId, write_socket_id};
use crate::rules::{Allowance, Concerns};
use crate::time::Time;
use crate::wire::close::CloseCode;
use crate::wire::frame::Opcode;
use compact_str::CompactString;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What a client is told when the backend has not answered, or not in words that mean something.
const FAILED: &str = "the backend did not answer";
/// What it is told when as many calls wait as may.
const BUSY: &str = "too much waits for the backend";
/// What it is told when not all could be sent that the backend has sent for its event.
const LOST: &str = "too many events are on their way: not all that the backend answered was sent";
/// Of the bytes that may wait in all, the part that one connection may have.
const SHARE_OF_ONE: usize = 16;

/// Of one shard: who waits for the backend, and what is kept for what it is told. Both are empty where it is not asked.
#[derive(Debug, Default)]
pub struct Calls {
    /// By stamp, connections that wait for answers; some may have gone. Bounded by what may wait in all.
    waiting: HashMap<u32, Waiting>,
    /// By stamp, what clients said when they connected. One for each connection at the most.
    handshakes: HashMap<u32, Handshake>,
}

/// What a connection waits for.
#[derive(Debug)]
struct Waiting {
    /// Where it is now.
    slot: Slot,
    calls: usize,
    bytes: usize,
    /// Answers of which the last part is on its way through the mailbox.
    rests: usize,
    /// Answers that came meanwhile, in their order. At most `calls`.
    held: VecDeque<Answered>,
    /// Namespaces that it has asked for.
    joining: SmallVec<[CompactString; 1]>,
}

/// What a client said when it connected. At most `handshake_bytes_max` in all.
#[derive(Debug)]
struct Handshake {
    /// Where its connection is now.
    slot: Slot,
    query: Arc<str>,
    /// For each namespace what it said for itself, an object of JSON.
    auths: Vec<(CompactString, Arc<str>)>,
}

impl Calls {
    /// True when the connection with this stamp has asked for a namespace and has no answer yet.
    pub(super) fn is_joining(&self, stamp: u32, namespace: &str) -> bool {
        self.waiting.get(&stamp).is_some_and(|waiting| waiting.joining.iter().any(|name| name == namespace))
    }

    /// True when the backend is asked just now whether somebody may be in a namespace, who may have gone meanwhile.
    pub(super) fn may_let_in(&self) -> bool {
        self.waiting.values().any(|waiting| !waiting.joining.is_empty())
    }

    /// Nothing is waited for any more.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }

    /// The connection with this stamp has moved.
    pub(super) fn moved(&mut self, stamp: u32, to: Slot) {
        if let Some(waiting) = self.waiting.get_mut(&stamp) {
            waiting.slot = to;
        }
        if let Some(handshake) = self.handshakes.get_mut(&stamp) {
            handshake.slot = to;
        }
    }

    /// The connection with this stamp is gone from `slot`, if it has not moved elsewhere.
    pub(super) fn forget(&mut self, stamp: u32, slot: Slot) {
        if !self.handshakes.is_empty()
            && self.handshakes.get(&stamp).is_some_and(|handshake| handshake.slot == slot)
        {
            self.handshakes.remove(&stamp);
        }
    }
}

impl Shard {
    /// Keeps the query with which an open connection began.
    pub(super) fn keep_query(&mut self, slot: Slot, query: &str) {
        let Some(calls) = self.bus.calls() else { return };
        let SocketIo { routes, namespaces, .. } = &*self.settings.socketio;
        let is_concerned = |allowance: &Allowance| allowance.backend != Concerns::default();
        if !routes.asks_backend() && !namespaces.iter().any(is_concerned) {
            return;
        }
        let is_asked_for = |conn: &&Conn| conn.is_direct() || conn.stage == Stage::Open(Dialect::SocketIo);
        let Some(conn) = self.conns.get(slot as usize).filter(is_asked_for) else { return };
        let bytes_max = calls.settings().handshake_bytes_max;
        if bytes_max > 0 {
            let query = if query.len() <= bytes_max { query } else { "" }.into();
            self.calls.handshakes.insert(conn.stamp, Handshake { slot, query, auths: Vec::new() });
        }
    }

    fn keep_auth(&mut self, slot: Slot, namespace: &str, auth: Option<&str>) {
        let (Some(calls), Some(auth)) = (self.bus.calls(), auth) else { return };
        let Some(handshake) = self.calls.handshakes.get_mut(&self.conns[slot as usize].stamp) else { return };
        handshake.auths.retain(|(name, _)| name != namespace);
        let kept: usize = handshake.auths.iter().map(|(name, auth)| name.len() + auth.len()).sum();
        let bytes = handshake.query.len() + kept + namespace.len() + auth.len();
        if bytes <= calls.settings().handshake_bytes_max {
            handshake.auths.push((namespace.into(), auth.into()));
        }
    }

    /// Asks the backend about an event of a client. `ack` is the id by which it wants an answer.
    ///
    /// # Errors
    /// When as much waits as may.
    pub(super) fn ask_about(
        &mut self,
        slot: Slot,
        namespace: &str,
        (event, args): (&str, &str),
        ack: Option<&str>,
        attachments: &[Vec<u8>],
    ) -> Result<(), Refusal<'static>> {
        let busy = || Refusal::new(Code::Overloaded, BUSY).with_retry(OVERLOAD_RETRY_MS);
        let Some(calls) = self.bus.calls().cloned() else { return Err(busy()) };
        let settings = calls.settings();
        let what = What::Event {
            event: event.into(),
            args: args.into(),
            attachments: attachments.to_vec(),
            ack: ack.map(CompactString::from),
        };
        let waiting = self.calls.waiting.get(&self.conns[slot as usize].stamp);
        let (count, bytes) = waiting.map_or((0, 0), |waiting| (waiting.calls, waiting.bytes));
        let bytes_max = settings.waiting_bytes_max / SHARE_OF_ONE;
        let bytes = bytes + args.len() + attachments.iter().map(Vec::len).sum::<usize>();
        if count >= settings.waiting_per_connection_max || (count > 0 && bytes > bytes_max) {
            calls.count_refused();
            return Err(busy());
        }
        let id = self.id_in(slot, namespace);
        self.call(slot, namespace, id, None, what).map_err(|Busy| busy())
    }

    /// Asks the backend whether a client may be in a namespace, unless there would be too many.
    pub(super) fn ask_to_join(&mut self, slot: Slot, namespace: &str, auth: Option<&str>, now: Time) {
        let conn = &self.conns[slot as usize];
        let joined = conn.session.as_ref().map_or(0, |session| session.namespaces.len());
        let joining = self.calls.waiting.get(&conn.stamp).map_or(0, |waiting| waiting.joining.len());
        let barred = if !self.may_connect(slot, namespace) {
            Some(Barred::FORBIDDEN)
        } else if joined + joining >= self.settings.socketio.namespaces_per_connection_max {
            Some(Barred::of("Too many namespaces"))
        } else {
            let id = self.new_id();
            self.call(slot, namespace, id, auth, What::Connect).err().map(|Busy| Barred::of(BUSY))
        };
        match barred {
            None => {
                let stamp = self.conns[slot as usize].stamp;
                if let Some(waiting) = self.calls.waiting.get_mut(&stamp) {
                    waiting.joining.push(namespace.into());
                }
            }
            Some(barred) if self.has_token(slot, auth.map_or(0, str::len), now) => {
                self.refuse_namespace(slot, namespace, barred);
            }
            Some(_) => {}
        }
    }

    /// Keeps what a client says for itself in a namespace that it has come into, perhaps after a brief drop, and tells the backend that it is
    /// there, if that concerns it.
    pub(super) fn tell_of_join(&mut self, slot: Slot, namespace: &str, auth: Option<&str>, recovered: bool) {
        if self.bus.calls().is_none() {
            return;
        }
        self.keep_auth(slot, namespace, auth);
        if self.concerns(namespace).connected {
            let id = self.id_in(slot, namespace);
            // What finds no room is lost, and counted.
            self.call(slot, namespace, id, auth, What::Connected { recovered }).ok();
        }
    }

    /// Tells the backend that a client is about to leave a namespace, if that concerns it.
    pub(super) fn tell_of_leaving(&mut self, slot: Slot, namespace: &str, reason: &'static str) {
        if self.bus.calls().is_none() {
            return;
        }
        let stamp = self.conns[slot as usize].stamp;
        let is_in = |conn: &Conn| conn.session.as_ref().is_some_and(|it| it.joined(namespace).is_some());
        if self.concerns(namespace).disconnected && is_in(&self.conns[slot as usize]) {
            let id = self.id_in(slot, namespace);
            // As above.
            self.call(slot, namespace, id, None, What::Disconnected { reason }).ok();
        }
        if let Some(handshake) = self.calls.handshakes.get_mut(&stamp) {
            handshake.auths.retain(|(name, _)| name != namespace);
        }
    }

    /// The same for all of its namespaces, when its connection ends.
    pub(super) fn tell_of_end(&mut self, slot: Slot, ending: Ending) {
        if self.bus.calls().is_none() {
            return;
        }
        let Some(session) = &self.conns[slot as usize].session else { return };
        let names: Vec<CompactString> = session.namespaces.iter().map(|joined| joined.name.clone()).collect();
        for namespace in names {
            self.tell_of_leaving(slot, &namespace, reason_of(ending));
        }
    }

    /// What of a namespace concerns the backend.
    pub(super) fn concerns(&self, namespace: &str) -> Concerns {
        if self.bus.calls().is_none() {
            return Concerns::default();
        }
        let found = self.settings.socketio.namespaces.find(namespace);
        found.map_or_else(Concerns::default, |(_, allowance)| allowance.backend)
    }

    fn call(
        &mut self,
        slot: Slot,
        namespace: &str,
        id: SocketId,
        auth: Option<&str>,
        what: What,
    ) -> Result<(), Busy> {
        let Some(calls) = self.bus.calls() else { return Err(Busy) };
        let conn = &self.conns[slot as usize];
        let stamp = conn.stamp;
        let handshake = self.calls.handshakes.get(&stamp);
        let kept = |handshake: &Handshake| {
            let found = handshake.auths.iter().find(|(name, _)| name == namespace);
            found.map(|(_, auth)| auth.clone())
        };
        let client = Client {
            conn: ConnId { shard: self.id, slot, stamp },
            id,
            namespace: namespace.into(),
            user: self.users.of(slot).map(|user| user.name.clone()),
            address: CompactString::from(conn.ip.to_string()),
            bytes: 0,
        };
        let call = Call {
            client,
            query: handshake.map(|handshake| handshake.query.clone()),
            auth: auth.map(Arc::from).or_else(|| handshake.and_then(kept)),
            what,
        };
        let bytes = call.size();
        calls.push(call)?;
        let new = || Waiting {
            slot,
            calls: 0,
            bytes: 0,
            rests: 0,
            held: VecDeque::new(),
            joining: SmallVec::new(),
        };
        let waiting = self.calls.waiting.entry(stamp).or_insert_with(new);
        (waiting.calls, waiting.bytes) = (waiting.calls + 1, waiting.bytes + bytes);
        Ok(())
    }

    /// The id by which others know a client in a namespace.
    pub(super) fn id_in(&self, slot: Slot, namespace: &str) -> SocketId {
        let conn = &self.conns[slot as usize];
        let joined = conn.session.as_ref().and_then(|session| session.joined(namespace));
        joined.map_or_else(
            || self.bus.id_of(ConnId { shard: self.id, slot, stamp: conn.stamp }),
            |joined| joined.sid,
        )
    }

    /// The backend has answered.
    pub(super) fn note_answered(&mut self, answered: Answered, now: Time) {
        let stamp = answered.client.conn.stamp;
        let Some(waiting) = self.calls.waiting.get_mut(&stamp) else { return };
        if answered.is_rest {
            waiting.rests -= 1;
            self.finish_call(answered, now);
        } else if waiting.rests > 0 || !waiting.held.is_empty() {
            // What the answer before this one has published is to come before what this one does.
            waiting.held.push_back(answered);
        } else {
            self.carry_out_answer(answered, now);
        }
        let next = |waiting: &mut Waiting| if waiting.rests == 0 { waiting.held.pop_front() } else { None };
        while let Some(answered) = self.calls.waiting.get_mut(&stamp).and_then(next) {
            self.carry_out_answer(answered, now);
        }
    }

    /// What an answer publishes comes first, and the rest of it when that has been delivered.
    fn carry_out_answer(&mut self, mut answered: Answered, now: Time) {
        let stamp = answered.client.conn.stamp;
        let Some(waiting) = self.calls.waiting.get_mut(&stamp) else { return };
        let slot = waiting.slot;
        let namespace = answered.client.namespace.clone();
        waiting.joining.retain(|name| *name != namespace || !matches!(answered.what, Asked::Connect { .. }));
        let is_connect = matches!(answered.what, Asked::Connect { .. });
        if is_connect && !self.let_in(slot, &answered, now) {
            return self.settle_call(&answered.client);
        }
        let Some(answer) = &mut answered.answer else { return self.finish_call(answered, now) };
        let is_there = self.is_there(slot, &answered.client);
        let (join, leave) = (std::mem::take(&mut answer.join), std::mem::take(&mut answer.leave));
        if is_there {
            let keys: Vec<Cow<'_, str>> = join.iter().map(|room| room.as_str().into()).collect();
            if let Err(refusal) = self.join(slot, &keys) {
                // Nobody asked for that who could be told.
                self.count_refusal(&refusal);
            }
            for room in leave.iter().filter_map(|room| self.bus.find(room)).collect::<Vec<_>>() {
                self.leave(slot, room);
            }
        }
        let emits = std::mem::take(&mut answer.emit);
        self.work_done += 1 + join.len() + leave.len() + emits.len();
        let mut is_lost = false;
        for emit in &emits {
            if is_there || !emit.rooms.is_empty() {
                is_lost |= !self.emit(&answered.client, emit, now);
            }
        }
        if is_lost
            && is_there
            && let Asked::Event { ack } = std::mem::replace(&mut answered.what, Asked::Nothing)
        {
            // No ack is to say that all has been done. Not when to try again: some of it has been.
            self.answer_call(slot, &namespace, ack.as_deref(), &Refusal::new(Code::Overloaded, LOST));
        }
        if emits.is_empty() {
            return self.finish_call(answered, now);
        }
        answered.is_rest = true;
        if let Some(waiting) = self.calls.waiting.get_mut(&stamp) {
            waiting.rests += 1;
        }
        self.bus.post(self.id, Mail::Answered(Box::new(answered)));
    }

    /// True when a client that asked for a namespace is in it now, and the rest of the answer is to be carried out.
    fn let_in(&mut self, slot: Slot, answered: &Answered, now: Time) -> bool {
        let Answered { client, what: Asked::Connect { auth }, answer, .. } = answered else { return false };
        let namespace = client.namespace.as_str();
        let is_open = self
            .conns
            .get(slot as usize)
            .is_some_and(|conn| conn.stamp == client.conn.stamp && conn.is_open());
        let refusal = match answer {
            Some(Answer { refusal: None, .. }) => {
                let is_in = is_open && self.join_as(slot, namespace, auth.as_deref(), client.id, now);
                if !is_in && self.concerns(namespace).disconnected {
                    // It has gone meanwhile, or there is no place for it, and the backend thinks that it is there.
                    let reason = if is_open { SERVER_LEFT } else { reason_of(Ending::Lost) };
                    let what = What::Disconnected { reason };
                    self.call_again(Call { client: client.clone(), query: None, auth: auth.clone(), what });
                }
                return is_in;
            }
            Some(Answer { refusal: Some(refusal), .. }) => refusal.clone(),
            None => NotIn { message: FAILED.into(), data: Some(FAILED_DATA.into()) },
        };
        if is_open && self.has_token(slot, auth.as_ref().map_or(0, |auth| auth.len()), now) {
            self.refuse_connect(slot, namespace, &refusal.message, refusal.data.as_deref());
        }
        false
    }

    /// Makes a call for a connection that may have gone, behind those that it has made.
    fn call_again(&mut self, call: Call) {
        let (stamp, bytes) = (call.client.conn.stamp, call.size());
        if let (Some(calls), Some(waiting)) = (self.bus.calls(), self.calls.waiting.get_mut(&stamp))
            && calls.push(call).is_ok()
        {
            (waiting.calls, waiting.bytes) = (waiting.calls + 1, waiting.bytes + bytes);
        }
    }

    /// Publishes an event of the backend. False when it is lost, because too many are on their way.
    fn emit(&mut self, client: &Client, emit: &Emit, now: Time) -> bool {
        let own: Cow<'_, str>;
        let id = write_socket_id(&client.id);
        let (room, more): (&str, &[CompactString]) = match emit.rooms.split_first() {
            Some((room, more)) => (room, more),
            None => {
                own = room_key(&client.namespace, &id);
                (&own, &[])
            }
        };
        let cows = |names: &[CompactString]| -> Vec<Cow<'static, str>> {
            names.iter().map(|name| Cow::Owned(name.to_string())).collect()
        };
        let (more_rooms, except_rooms) = (cows(more), cows(&emit.except));
        let draft = Draft {
            more_rooms: &more_rooms,
            except_rooms: &except_rooms,
            binary: emit.binary,
            attachments: &emit.attachments,
            volatile: emit.volatile,
            natives: emit.natives,
            is_list: emit.is_list,
            ..Draft::new(room, &emit.event, &emit.payload, now)
        };
        // What is for the client alone is for one that is here.
        let published =
            if emit.rooms.is_empty() { self.bus.publish_here(&draft) } else { self.bus.publish(&draft) };
        self.see_off(published).is_ok()
    }

    /// The end of an answer: the ack, and perhaps the connection's.
    fn finish_call(&mut self, answered: Answered, now: Time) {
        let Answered { client, what, answer, .. } = answered;
        let stamp = client.conn.stamp;
        let slot = self.calls.waiting.get(&stamp).map_or(client.conn.slot, |waiting| waiting.slot);
        self.settle_call(&client);
        let namespace = client.namespace.as_str();
        if !self.is_there(slot, &client) {
            return;
        }
        let Some(Answer { ack: args, attachments, end, .. }) = answer else {
            if let Asked::Event { ack } = what {
                let refusal = Refusal::new(Code::BackendFailed, FAILED);
                self.answer_call(slot, namespace, ack.as_deref(), &refusal);
            }
            return;
        };
        match what {
            Asked::Event { ack: Some(id) } if self.is_native(slot) => {
                let args = attachments::inline(&args, &attachments);
                self.reply(slot, Opcode::Text, |out| {
                    native::encode_result(out, &id, json::split(&args).len(), &args);
                });
            }
            Asked::Event { ack: id @ Some(_) } => {
                let namespace = (!self.is_direct(slot)).then_some(namespace);
                let origin = Origin { slot, namespace, id: id.as_deref() };
                self.answer_event(origin, &args, &attachments);
            }
            Asked::Event { ack: None } | Asked::Connect { .. } | Asked::Nothing => {}
        }
        match end {
            None => {}
            Some(End::Namespace) if self.is_direct(slot) => {
                self.close(slot, CloseCode::Normal, "", Ending::Server, now);
            }
            Some(End::Namespace) => {
                self.say_packet(slot, &[], |out, _| socketio::encode_disconnect(out, namespace));
                self.leave_namespace(slot, namespace, Ending::Server);
            }
            Some(End::Connection { code, reason }) => self.dismiss(slot, code, &reason, now),
        }
    }

    /// Tells a client why its event has no answer.
    pub(super) fn answer_call(
        &mut self,
        slot: Slot,
        namespace: &str,
        id: Option<&str>,
        refusal: &Refusal<'_>,
    ) {
        if self.is_direct(slot) {
            let refusal = Refusal { id, message: refusal.message.clone(), ..*refusal };
            return self.refuse(slot, &refusal);
        }
        match self.bus.calls().map(|calls| calls.settings().failure) {
            Some(Failure::Silence) => self.count_refusal(refusal),
            _ => self.answer_refusal(Origin { slot, namespace: Some(namespace), id }, refusal),
        }
    }

    fn settle_call(&mut self, client: &Client) {
        if let Some(calls) = self.bus.calls() {
            calls.settle(client.bytes);
        }
        let stamp = client.conn.stamp;
        let Some(waiting) = self.calls.waiting.get_mut(&stamp) else { return };
        (waiting.calls, waiting.bytes) = (waiting.calls - 1, waiting.bytes - client.bytes);
        if waiting.calls == 0 {
            self.calls.waiting.remove(&stamp);
        }
    }

    /// True when whom a call was about is still in the namespace, and the same there.
    fn is_there(&self, slot: Slot, client: &Client) -> bool {
        self.conns.get(slot as usize).is_some_and(|conn| conn.stamp == client.conn.stamp)
            && self.is_in(slot, &client.namespace)
            && self.id_in(slot, &client.namespace) == client.id
    }
}

/// What an application is told of a failure as the data of a refused connect.
const FAILED_DATA: &str = r#"{"code":"backend_failed"}"#;
/// Why a client is in a namespace no longer, in the words of Socket.IO: it has left it, or was put out.
pub(super) const CLIENT_LEFT: &str = "client namespace disconnect";
pub(super) const SERVER_LEFT: &str = "server namespace disconnect";

/// Why a client has gone, in the words of Socket.IO.
fn reason_of(ending: Ending) -> &'static str {
    match ending {
        Ending::Client | Ending::Lost => "transport close",
        Ending::Silent => "ping timeout",
        Ending::Protocol => "parse error",
        Ending::Server => SERVER_LEFT,
        Ending::Shutdown => "server shutting down",
        Ending::Slow | Ending::Limit | Ending::Token => "forced close",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Gate, Rules};
    use crate::bus::Bus;
    use crate::bus::calls::{self, Kind};
    use crate::config::Config;
    use crate::server;
    use crate::shard::turn::Gathered;
    use crate::stats::Stats;

    /// A shard with one native client, which is in the room `hall`.
    fn shard() -> (Shard, Slot) {
        let calls = calls::Calls::new(calls::Settings {
            waiting_max: 10,
            waiting_bytes_max: 1 << 20,
            waiting_per_connection_max: 10,
            handshake_bytes_max: 0,
            failure: Failure::Error,
        });
        let bus = Arc::new(Bus::new(1, 100).with_calls(Arc::new(calls)));
        let settings = server::settings(&Config::default(), 1, 100);
        let gate = Arc::new(Gate::new(Rules::default()));
        let mut shard = Shard::new(0, settings, bus, gate, Arc::new(Stats::new(1)), Time::default());
        let mut conn = Conn::new(7, Default::default(), Time::default());
        conn.stage = Stage::Open(Dialect::Native);
        let slot = shard.conns.insert(conn) as Slot;
        shard.join(slot, &["hall".into()]).expect("there is room");
        (shard, slot)
    }

    fn said(shard: &mut Shard) -> String {
        let Some(slot) = shard.next_dirty() else { return String::new() };
        let Gathered::One(bytes) = shard.gather(slot) else { return String::new() };
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn an_ack_does_not_say_that_all_is_done_when_events_were_lost() {
        let check = |is_full: bool, expected: &str| {
            let (mut shard, slot) = shard();
            shard.begin_turn(Time::default());
            shard.ask_about(slot, "/", ("e", "1"), Some("5"), &[]).expect("there is room");
            let taken = shard.bus.calls().map(|calls| calls.take()).unwrap_or_default();
            let [Call { client, what, .. }] = taken.as_slice() else { panic!("one call") };
            assert_eq!(what.kind(), Kind::Event);
            while is_full && shard.bus.publish(&Draft::new("hall", "e", b"1", Time::default())).is_ok() {}
            let emit = Emit { rooms: vec!["hall".into()], event: "e".into(), ..Emit::default() };
            let answer = Some(Answer { emit: vec![emit], ack: "1".into(), ..Answer::default() });
            let what = Asked::Event { ack: Some("5".into()) };
            let client = client.clone();
            shard.note_answered(Answered { client, what, answer, is_rest: false }, Time::default());
            for _ in 0..100 {
                shard.deliver(Time::default());
            }
            let said = said(&mut shard);
            assert!(said.contains(expected), "{said}");
            assert_ne!(said.contains(r#""type":"ack""#), is_full, "{said}");
            assert_eq!(shard.bus.calls().map(|calls| calls.waiting()), Some(0), "it is settled");
        };
        check(false, r#""type":"ack","id":5"#);
        check(true, r#""type":"error","code":"overloaded","id":5"#);
    }
}
