//! What the packets of Socket.IO make a shard do: joining namespaces, events and their answers, attachments.
//!
//! A namespace is a room that all who are in it are members of, and its rooms are rooms whose names begin with its own. The rooms of
//! the main namespace are those of the native dialect.

use super::Shard;
use super::callouts::{Checked, Denial, Piece, What, auth_of_application};
use super::calls::{CLIENT_LEFT, SERVER_LEFT};
use super::commands::Published;
use super::routes::Sent;
use super::session::{Incoming, Joined, Parser};
use super::users::{refuse_denial, token_in};
use crate::bus::directory::{DirectoryFull, namespace_of, room_key};
use crate::bus::presence::Question;
use crate::dialect::builtin::{self, TOKEN_EVENT};
use crate::dialect::coding::{self, Arguments, Bounds, Excess};
use crate::dialect::native::{Code, Command, Names, Publish, Refusal};
use crate::dialect::socketio::{self, Body, Limits, Packet};
use crate::dialect::{attachments, msgpack, plain};
use crate::json;
use crate::message::{Slot, SocketId, TokenFault, write_socket_id};
use crate::permissions::Act;
use crate::routes::{Does, Found, Route};
use crate::rules::{EventLimit, Over};
use crate::stats::{Ending, NamespaceStats};
use crate::time::Time;
use crate::wire::close::CloseCode;
use crate::wire::frame::Opcode;
use std::borrow::Cow;
use std::io::Write;

/// The longest name of a namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 200;

/// Why a client may not be in a namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barred {
    /// In words for people.
    reason: &'static str,
    /// For programs, where it does not change by itself.
    code: Option<Code>,
}

impl Barred {
    /// Permissions do not allow it.
    pub(super) const FORBIDDEN: Barred =
        Barred { reason: "This client may not be in this namespace", code: Some(Code::Forbidden) };

    pub(super) fn of(reason: &'static str) -> Barred {
        Barred { reason, code: None }
    }
}

pub(super) type Attachments<'a> = &'a [Vec<u8>];

/// Whose event it is, and how its client is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// The client.
    pub(super) slot: Slot,
    /// Where a client of Socket.IO has sent it; `None` for a plain client, whose events do what they do in the main namespace.
    pub(super) namespace: Option<&'a str>,
    /// By which it wants an answer.
    pub(super) id: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// The namespace whose rules hold, and whose rooms are meant.
    fn place(self) -> &'a str {
        self.namespace.unwrap_or("/")
    }
}

/// What a program goes by that was refused.
fn code_data(code: &str) -> String {
    format!("{{\"code\":\"{code}\"}}")
}

/// What has been encoded or decoded, or else what was there.
fn given_or<'a>(
    coded: Option<&'a Arguments>,
    args: &'a str,
    attachments: Attachments<'a>,
) -> (&'a str, Attachments<'a>) {
    coded.map_or((args, attachments), |(args, attachments)| (args, attachments))
}

/// Bytes of what an event or an answer says, with its attachments.
fn bytes_of(args: &str, attachments: Attachments<'_>) -> usize {
    args.len() + attachments.iter().map(Vec::len).sum::<usize>()
}

impl Shard {
    /// A Socket.IO packet has come, or its part that is text.
    pub(super) fn socketio_text(&mut self, slot: Slot, text: &str, now: Time) {
        let Some(session) = &mut self.conns[slot as usize].session else { return };
        if *session.parser.get_or_insert(Parser::Json) != Parser::Json {
            return self.break_off(slot, "a text packet of a client with the msgpack parser", now);
        }
        if session.incoming.is_some() {
            return self.break_off(slot, "attachments are missing", now);
        }
        let packet = match socketio::decode(text, &self.limits()) {
            Ok(packet) => packet,
            Err(malformed) => return self.break_off(slot, malformed.0, now),
        };
        if packet.attachments == 0 {
            return self.packet(slot, &packet, &[], now);
        }
        let bytes_max = self.settings.message_bytes_max;
        let Shard { conns, pool, .. } = self;
        if let Some(session) = &mut conns[slot as usize].session {
            session.incoming = Some(Incoming::new(pool.lease(), (packet.attachments, bytes_max), now));
        }
        self.keep_part(slot, text.as_bytes(), now);
    }

    /// An attachment has come, or a packet of the msgpack parser: the first thing that a session says tells, since the text stands
    /// before its attachments.
    pub(super) fn socketio_binary(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        let conn = &mut self.conns[slot as usize];
        let Some(session) = &mut conn.session else { return };
        if *session.parser.get_or_insert(Parser::Msgpack) == Parser::Msgpack {
            conn.speaks_msgpack = true;
            return self.socketio_msgpack(slot, bytes, now);
        }
        let Some(incoming) = &session.incoming else {
            return self.break_off(slot, "an attachment of no packet", now);
        };
        if incoming.lease.bytes().len() + bytes.len() > incoming.bytes_max {
            return self.fail_large(slot, now);
        }
        // The last attachment is not kept: with it the packet is whole.
        let Some(incoming) = session.incoming.take_if(|incoming| incoming.lacks_one()) else {
            return self.keep_part(slot, bytes, now);
        };
        let (text, mut attachments) = incoming.parts();
        attachments.push(bytes.to_vec());
        let limits = self.limits();
        // As many as were allowed when it began.
        let limits = Limits { attachments_max: limits.attachments_max.max(incoming.expected), ..limits };
        if let Ok(packet) = socketio::decode(text, &limits) {
            self.packet(slot, &packet, &attachments, now);
        }
        self.pool.give_back(incoming.lease);
    }

    /// Keeps the text of a packet, or an attachment, until the rest has come.
    fn keep_part(&mut self, slot: Slot, part: &[u8], now: Time) {
        let Shard { conns, pool, .. } = self;
        let session = conns[slot as usize].session.as_mut();
        let Some(incoming) = session.and_then(|session| session.incoming.as_mut()) else { return };
        if pool.extend(&mut incoming.lease, part).is_err() {
            let reason = "too many unfinished messages";
            return self.fail(slot, CloseCode::TryAgainLater, reason, Ending::Limit, now);
        }
        incoming.ends.push(incoming.lease.bytes().len());
    }

    fn socketio_msgpack(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        let limits = self.limits();
        let (text, attachments) = match msgpack::decode(bytes, limits.attachments_max) {
            Ok(parts) => parts,
            Err(malformed) => return self.break_off(slot, malformed.0, now),
        };
        // What is short here may be long as the text that others get.
        if text.len() + attachments.iter().map(Vec::len).sum::<usize>() > self.settings.message_bytes_max {
            return self.fail_large(slot, now);
        }
        match socketio::decode(&text, &limits) {
            Ok(packet) => self.packet(slot, &packet, &attachments, now),
            Err(malformed) => self.break_off(slot, malformed.0, now),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            attachments_max: self.settings.socketio.attachments_max,
            namespace_bytes_max: NAMESPACE_BYTES_MAX,
        }
    }

    /// Ends a session whose client has said too much at once.
    fn fail_large(&mut self, slot: Slot, now: Time) {
        let reason = "the packet is too large with its attachments";
        self.fail(slot, CloseCode::TooBig, reason, Ending::Protocol, now);
    }

    fn packet(&mut self, slot: Slot, packet: &Packet<'_>, attachments: Attachments<'_>, now: Time) {
        let namespace = packet.namespace;
        if let Body::Connect(auth) = packet.body {
            return self.join_namespace(slot, namespace, auth, now);
        }
        let coding = self.settings.socketio.namespaces.coding(namespace);
        let bounds = Bounds {
            attachments_max: self.settings.socketio.attachments_max,
            bytes_max: self.settings.message_bytes_max,
        };
        let Some(stats) = self.namespace_stats(slot, namespace) else {
            return self.break_off(slot, "a packet for a namespace that was not joined", now);
        };
        let (Body::Event { args, .. } | Body::Ack { args }) = &packet.body else {
            if self.has_token(slot, 0, now) {
                self.leave_namespace(slot, namespace, Ending::Client);
            }
            return;
        };
        let decoded = match coding::decode(coding, args, attachments, bounds) {
            Ok(decoded) => decoded,
            Err(Excess) => return self.fail_large(slot, now),
        };
        let (args, attachments) = given_or(decoded.as_ref(), args, attachments);
        match &packet.body {
            Body::Event { name, .. } => {
                stats.events.add(1);
                let origin = Origin { slot, namespace: Some(namespace), id: packet.id };
                match self.take_token(slot, bytes_of(args, attachments), now) {
                    Ok(()) => self.event(origin, (name, args), attachments, now),
                    Err(excess) => {
                        let refusal = self.turn_down(slot, (excess, self.settings.over), packet.id, now);
                        self.answer_excess(origin, refusal);
                    }
                }
            }
            _ => match self.take_token(slot, bytes_of(args, attachments), now) {
                Ok(()) => self.answered(slot, packet.id.unwrap_or_default(), args, attachments),
                // One too many is not listened to, and missing for who asked; nobody waits to be told.
                Err(excess) if self.settings.over == Over::Close => {
                    self.turn_down(slot, (excess, Over::Close), None, now);
                }
                Err(_) => self.stats().rate_limited.add(1),
            },
        }
    }

    /// Takes a token for what cannot be refused with an error, and has so many bytes: a client that has none is closed.
    pub(super) fn has_token(&mut self, slot: Slot, bytes: usize, now: Time) -> bool {
        let taken = self.take_token(slot, bytes, now);
        if let Err(excess) = taken {
            self.turn_down(slot, (excess, Over::Close), None, now);
        }
        taken.is_ok()
    }

    /// The numbers of a namespace that the connection is in.
    pub(super) fn namespace_stats(&self, slot: Slot, namespace: &str) -> Option<&NamespaceStats> {
        let joined = self.conns[slot as usize].session.as_ref()?.joined(namespace)?;
        Some(self.stats().namespace(Some(joined.pattern)))
    }

    pub(super) fn join_namespace(&mut self, slot: Slot, namespace: &str, auth: Option<&str>, now: Time) {
        let namespaces_max = self.settings.socketio.namespaces_per_connection_max;
        let Some(session) = &mut self.conns[slot as usize].session else { return };
        if session.joined(namespace).is_some() {
            return self.break_off(slot, "the namespace has been joined", now);
        }
        if self.calls.is_joining(self.conns[slot as usize].stamp, namespace) {
            return self.break_off(slot, "the namespace has been asked for", now);
        }
        let Some(session) = &mut self.conns[slot as usize].session else { return };
        if let Some(recovering) = &mut session.recovering {
            // Clients ask for all their namespaces at once, and one is looked into after another.
            if !recovering.wait(namespace, auth, namespaces_max) {
                self.break_off(slot, "the namespace has been asked for, or too many have", now);
            }
            return;
        }
        if self.awaits(slot) {
            // One of several that had to wait for something else.
            let piece = format!("{namespace}\0{}", auth.unwrap_or_default());
            return self.hold(slot, Piece::Connect, piece.as_bytes(), now);
        }
        match self.check_connect(slot, namespace, auth, now) {
            Ok(Checked::Known(())) => {}
            Ok(Checked::Waits) => return,
            Err(denial) => {
                if self.has_token(slot, auth.map_or(0, str::len), now) {
                    self.refuse_connect(
                        slot,
                        namespace,
                        denial.reason(),
                        Some(&code_data(denial.fault.code())),
                    );
                }
                return;
            }
        }
        let Some(session) = &self.conns[slot as usize].session else { return };
        let is_allowed = self.settings.socketio.namespaces.find(namespace).is_some();
        let has_place = session.namespaces.len() < namespaces_max;
        if is_allowed && has_place && self.recover(slot, namespace, auth, now) {
            return;
        }
        self.join_anew(slot, namespace, auth, now);
    }

    /// Makes a connection a member of a namespace in which it has not been, or asks the backend whether it may be.
    pub(super) fn join_anew(&mut self, slot: Slot, namespace: &str, auth: Option<&str>, now: Time) {
        if self.concerns(namespace).connect {
            return self.ask_to_join(slot, namespace, auth, now);
        }
        let sid = self.new_id();
        self.join_as(slot, namespace, auth, sid, now);
    }

    /// Makes a connection a member of a namespace under this id. False when it is refused.
    pub(super) fn join_as(
        &mut self,
        slot: Slot,
        namespace: &str,
        auth: Option<&str>,
        sid: SocketId,
        now: Time,
    ) -> bool {
        let settings = self.settings.socketio.clone();
        let pattern = match self.enter_namespace(slot, namespace) {
            Ok(pattern) => pattern,
            Err(_) if !self.has_token(slot, auth.map_or(0, str::len), now) => return false,
            Err(barred) => {
                self.refuse_namespace(slot, namespace, barred);
                return false;
            }
        };
        let pid = self.new_id();
        let began = self.history.end();
        let Some(session) = &mut self.conns[slot as usize].session else { return false };
        session.connect_by = None;
        session.namespaces.push(Joined { name: namespace.into(), sid, pid, began, pattern });
        self.sockets.insert(&sid, slot);
        self.count_joined(pattern);
        self.note_joined(slot, false);
        let (sid, pid) = (write_socket_id(&sid), self.recovers().then(|| write_socket_id(&pid)));
        self.say_packet(slot, &[], |out, _| socketio::encode_connect(out, namespace, &sid, pid.as_deref()));
        if !settings.connect_event.is_empty() {
            self.say_event(slot, namespace, (&settings.connect_event, auth.unwrap_or("{}")), &[]);
        }
        self.join_rooms_of_token(slot);
        self.arrive(slot, namespace, false);
        self.tell_of_join(slot, namespace, auth, false);
        self.arm_session(slot, now);
        true
    }

    /// Counts the connection among those that are in the namespace. Answers the place of the pattern that allows it.
    ///
    /// # Errors
    /// Why it may not be in it.
    pub(super) fn enter_namespace(&mut self, slot: Slot, namespace: &str) -> Result<u16, Barred> {
        debug_assert!(self.conns[slot as usize].is_open(), "who is over joins nothing");
        let settings = &self.settings.socketio;
        let Some((pattern, allowance)) = settings.namespaces.find(namespace) else {
            return Err(Barred::of("Invalid namespace"));
        };
        if !self.may_connect(slot, namespace) {
            return Err(Barred::FORBIDDEN);
        }
        let joined = self.conns[slot as usize].session.as_ref().map_or(0, |session| session.namespaces.len());
        if joined >= settings.namespaces_per_connection_max {
            return Err(Barred::of("Too many namespaces"));
        }
        let most =
            allowance.connections_max.map_or(settings.connections_per_namespace_max, |most| most as usize);
        let key = room_key(namespace, "");
        let (room, before) =
            self.bus.enter_namespace(self.id, &key, settings.namespaces_max).map_err(|full| match full {
                DirectoryFull::Rooms => Barred::of("The server holds as many rooms as it may"),
                DirectoryFull::Namespaces => Barred::of("The server holds as many namespaces as it may"),
            })?;
        if most > 0 && before as usize >= most {
            let last_here = self.rooms.members(room).is_empty();
            self.bus.exit(self.id, room, last_here);
            return Err(Barred::of("The namespace is full"));
        }
        self.rooms.join(&mut self.conns, slot, room);
        Ok(pattern)
    }

    /// Tells a client that it may not be in a namespace.
    pub(super) fn refuse_namespace(&mut self, slot: Slot, namespace: &str, barred: Barred) {
        let Barred { reason, code } = barred;
        let data = code.map(|code| code_data(code.as_str()));
        self.refuse_connect(slot, namespace, reason, data.as_deref());
    }

    /// The same, with JSON for its application.
    pub(super) fn refuse_connect(&mut self, slot: Slot, namespace: &str, reason: &str, data: Option<&str>) {
        let pattern = self.settings.socketio.namespaces.find(namespace).map(|(pattern, _)| pattern);
        self.stats().namespace_refusals.add(1);
        self.stats().namespace(pattern).refusals.add(1);
        self.say_packet(slot, &[], |out, _| {
            socketio::encode_connect_error(out, namespace, reason, data);
        });
    }

    /// A connection has come into a namespace.
    pub(super) fn count_joined(&self, pattern: u16) {
        let stats = self.stats();
        stats.namespace_joins.add(1);
        let namespace = stats.namespace(Some(pattern));
        namespace.joins.add(1);
        namespace.connections.add(1);
    }

    /// A connection leaves a namespace.
    pub(super) fn leave_namespace(&mut self, slot: Slot, namespace: &str, ending: Ending) {
        self.note_left(slot, namespace, ending);
        let reason = if ending == Ending::Client { CLIENT_LEFT } else { SERVER_LEFT };
        self.tell_of_leaving(slot, namespace, reason);
        if let Some(stats) = self.namespace_stats(slot, namespace) {
            stats.connections.sub(1);
        }
        let Some(session) = &mut self.conns[slot as usize].session else { return };
        if let Some(joined) = session.joined(namespace) {
            self.sockets.remove(&joined.sid, slot);
        }
        session.namespaces.retain(|joined| joined.name != namespace);
        if session.namespaces.is_empty() && session.recovering.is_none() {
            return self.leave_all(slot);
        }
        // One of several: its rooms are told by their names.
        let rooms = self.rooms.of(&self.conns, slot);
        for room in rooms {
            if self.bus.name(room).is_some_and(|name| namespace_of(&name) == namespace) {
                self.leave(slot, room);
            }
        }
    }

    /// Carries out an event of a client, whatever its dialect: all that it does, and what is told of it.
    pub(super) fn event(
        &mut self,
        origin: Origin<'_>,
        (name, args): (&str, &str),
        attachments: Attachments<'_>,
        now: Time,
    ) {
        let Origin { slot, namespace, id } = origin;
        let bytes = bytes_of(args, attachments);
        if let Err(refusal) = self.count_event(slot, (namespace, name, bytes), |_| true, id, now) {
            return self.answer_excess(origin, refusal);
        }
        let settings = self.settings.socketio.clone();
        let brings_token = name == TOKEN_EVENT && self.settings.access.tokens.is_some();
        let route = match settings.routes.find(origin.place(), name, |who| self.is_one_of(slot, who)) {
            // Tokens are brought to us, unless a route says otherwise by name.
            Found::Nothing if brings_token => return self.token_event(origin, args, now),
            Found::Route(route) if brings_token && route.on == Route::OTHERS => {
                return self.token_event(origin, args, now);
            }
            Found::Nothing => return self.note_event(slot, namespace, (name, args), attachments),
            Found::Forbidden { by_name: false } if brings_token => {
                return self.token_event(origin, args, now);
            }
            Found::Forbidden { .. } => {
                let refusal = Refusal::new(Code::Forbidden, "this client may not send this event");
                return self.answer_refusal(origin, &refusal);
            }
            Found::Route(route) => route,
        };
        let steps = match &route.does {
            Does::BuiltIn(built_in) => {
                return match builtin::decode(built_in, args, self.settings.room_name_bytes_max) {
                    Ok(command) => {
                        // What is published may have a name of its own. Limits on all events have counted it.
                        if let Command::Publish(publish) = &command
                            && publish.event != name
                            && let event = (namespace, &*publish.event, bytes)
                            && let is_named = (|limit: &EventLimit| limit.event.is_some())
                            && let Err(refusal) = self.count_event(slot, event, is_named, id, now)
                        {
                            return self.answer_excess(origin, refusal);
                        }
                        if self.built_in(origin, &command, attachments, now) {
                            self.note_event(slot, namespace, (name, args), attachments);
                        }
                    }
                    Err(refusal) => self.answer_refusal(origin, &refusal),
                };
            }
            Does::Steps(steps) => steps,
        };
        let sent = Sent { namespace: origin.place(), event: name, args, attachments };
        match self.take_steps(slot, &sent, steps, id, now) {
            Ok(told) => {
                if !steps.backend {
                    self.note_event(slot, namespace, (name, args), attachments);
                }
                if let Some((event, args)) = told.reply {
                    let (args, attachments) = attachments::named(&args, attachments);
                    self.reply_to_event(origin, (&event, &args), &attachments);
                }
                if let Some(args) = told.ack {
                    let (args, attachments) = attachments::named(&args, attachments);
                    self.answer_event(origin, &args, &attachments);
                }
                if let Some(refusal) = told.unasked {
                    self.answer_call(slot, origin.place(), id, &refusal);
                }
            }
            Err(refusal) => self.answer_refusal(origin, &refusal),
        }
    }

    /// A client brings a newer token of its user, or its first.
    pub(super) fn token_event(&mut self, origin: Origin<'_>, args: &str, now: Time) {
        let Origin { slot, namespace, id } = origin;
        let first = json::split(args).first().copied().unwrap_or_default();
        let (token, fault) = match token_in(first) {
            Ok(token) => (token, None),
            Err(fault) => (None, Some(fault)),
        };
        // Events that are on their way were published before it was in any room.
        if namespace.is_none() && !self.catch_up(slot, now) {
            return;
        }
        let accepted = match (&token, self.is_for_backend(token.as_deref())) {
            _ if let Some(fault) = fault => Err(fault.into()),
            (Some(token), false) => self.bring_token(slot, token, now),
            (None, false) => Err(TokenFault::Malformed.into()),
            (_, true) => match auth_of_application(first) {
                Ok(said @ Some(_)) => {
                    let id = id.map(str::to_owned);
                    let what = match namespace.map(str::to_owned) {
                        Some(namespace) => What::Event { namespace, id },
                        None => What::Message { id },
                    };
                    match self.call_out_for_message(slot, what, (token.as_deref(), said), now) {
                        Ok(()) => return,
                        Err(denial) => Err(denial),
                    }
                }
                Ok(None) | Err(_) => Err(TokenFault::Malformed.into()),
            },
        };
        match namespace {
            Some(_) => self.answer_token_event(origin, accepted),
            None => self.answer_token(slot, accepted, id, now),
        }
    }

    /// Tells a client of Socket.IO what came of that.
    pub(super) fn answer_token_event(&mut self, origin: Origin<'_>, accepted: Result<(), Denial>) {
        match accepted {
            Ok(()) => self.answer_event(origin, "{}", &[]),
            Err(denial) => self.answer_refusal(origin, &refuse_denial(&denial)),
        }
    }

    /// Carries out an event that does something. False when it must not, which its client has been told.
    fn built_in(
        &mut self,
        origin: Origin<'_>,
        command: &Command<'_>,
        attachments: Attachments<'_>,
        now: Time,
    ) -> bool {
        let Origin { slot, id, .. } = origin;
        let namespace = origin.place();
        let result = match command {
            Command::Join { rooms, .. } => {
                if !self.catch_up_in(slot, namespace, now) {
                    return false;
                }
                let keys: Vec<Cow<'_, str>> = rooms.iter().map(|room| room_key(namespace, room)).collect();
                let forbidden = self.forbid(slot, &keys, Act::Join);
                forbidden.map_or_else(|| self.join(slot, &keys), Err).map(|members| {
                    let mut out = b"{\"rooms\":{".to_vec();
                    for (at, (room, members)) in rooms.iter().zip(members).enumerate() {
                        let comma = if at > 0 { "," } else { "" };
                        let name = serde_json::to_string(room).unwrap_or_default();
                        write!(out, "{comma}{name}:{{\"members\":{members}}}")
                            .expect("writing to memory does not fail");
                    }
                    out.extend_from_slice(b"}}");
                    String::from_utf8(out).unwrap_or_default()
                })
            }
            Command::Leave { rooms, .. } => {
                if !self.catch_up_in(slot, namespace, now) {
                    return false;
                }
                for room in rooms {
                    if let Some(room) = self.bus.find(&room_key(namespace, room)) {
                        self.leave(slot, room);
                    }
                }
                Ok("{}".to_owned())
            }
            Command::Publish(publish) => match self.publish_from(origin, publish, attachments, now) {
                Ok(Published::AndAsked) => return true,
                Ok(Published::Done) => Ok("{}".to_owned()),
                Err(refusal) => Err(refusal),
            },
            Command::Presence { room, who, .. } => {
                let question = Question { room: room_key(namespace, room).as_ref().into(), who: *who };
                let asked = match id {
                    Some(id) => self.ask_presence(slot, origin.namespace, &question, id, now),
                    None => {
                        let message = "`presence` without an ack: nobody could be told the answer";
                        Err(Refusal::new(Code::BadMessage, message))
                    }
                };
                match asked {
                    Ok(()) => return true,
                    Err(refusal) => Err(refusal),
                }
            }
            Command::Call { .. } | Command::Ping { .. } | Command::Auth { .. } => Ok("{}".to_owned()),
        };
        let is_done = result.is_ok();
        match result {
            Ok(args) => self.answer_event(origin, &args, &[]),
            Err(refusal) => self.answer_refusal(origin, &refusal),
        }
        is_done
    }

    /// As [`Shard::catch_up`]. False as well when the connection was put out of the namespace by that: it would be in a room of a namespace
    /// in which it is not.
    pub(super) fn catch_up_in(&mut self, slot: Slot, namespace: &str, now: Time) -> bool {
        self.catch_up(slot, now) && self.is_in(slot, namespace)
    }

    fn publish_from(
        &mut self,
        origin: Origin<'_>,
        publish: &Publish<'_>,
        attachments: Attachments<'_>,
        now: Time,
    ) -> Result<Published, Refusal<'static>> {
        fn keys<'a>(namespace: &str, rooms: &'a [Cow<'_, str>]) -> Names<'a> {
            rooms.iter().map(|room| room_key(namespace, room)).collect()
        }
        let Origin { slot, id, .. } = origin;
        let namespace = origin.place();
        // What the data does not name stays behind. Binary data alone is bytes for everybody, without a text around it.
        let text = str::from_utf8(publish.payload).unwrap_or_default();
        let (text, attachments) = attachments::named(text, attachments);
        let (binary, payload, attachments) = match &*attachments {
            [only] if attachments::is_placeholder(&text) => (true, only.as_slice(), &[] as Attachments<'_>),
            attachments => (false, text.as_bytes(), attachments),
        };
        let publish = Publish {
            rooms: keys(namespace, &publish.rooms),
            except: keys(namespace, &publish.except),
            event: Cow::Borrowed(&publish.event),
            payload,
            id,
            ..*publish
        };
        let published = self.publish(slot, &publish, (binary, attachments), origin.namespace, now)?;
        if let Some(stats) = self.namespace_stats(slot, namespace) {
            stats.publications.add(1);
        }
        Ok(published)
    }

    /// Answers an event with these arguments, if its client wants an answer.
    pub(super) fn answer_event(&mut self, origin: Origin<'_>, args: &str, attachments: Attachments<'_>) {
        let Origin { slot, namespace, id: Some(id) } = origin else { return };
        match namespace {
            Some(namespace) => self.say_ack(slot, namespace, id, args, attachments),
            None => self.reply(slot, Opcode::Text, |out| plain::encode_ack(out, id, args, attachments)),
        }
    }

    /// Sends an event to the client that has sent one, and to nobody else.
    pub(super) fn reply_to_event(
        &mut self,
        origin: Origin<'_>,
        (event, args): (&str, &str),
        attachments: Attachments<'_>,
    ) {
        let Origin { slot, namespace, .. } = origin;
        match namespace {
            Some(namespace) => self.say_event(slot, namespace, (event, args), attachments),
            None => self.reply(slot, Opcode::Text, |out| plain::encode_reply(out, event, args, attachments)),
        }
    }

    /// Tells why an event was not carried out: in its answer, or where none is wanted in an event `error`.
    pub(super) fn answer_refusal(&mut self, origin: Origin<'_>, refusal: &Refusal<'_>) {
        let Origin { slot, namespace, id } = origin;
        let Some(namespace) = namespace else {
            let refusal = Refusal { id, message: refusal.message.clone(), ..*refusal };
            return self.refuse(slot, &refusal);
        };
        self.count_refusal(refusal);
        let message = serde_json::to_string(&refusal.message).unwrap_or_default();
        let retry = refusal.retry_ms.map_or(String::new(), |retry_ms| format!(",\"retry_ms\":{retry_ms}"));
        let error = format!("{{\"code\":\"{}\",\"message\":{message}{retry}}}", refusal.code.as_str());
        match id {
            Some(id) => self.say_ack(slot, namespace, id, &format!("{{\"error\":{error}}}"), &[]),
            None => self.say_event(slot, namespace, ("error", &error), &[]),
        }
    }

    /// Tells that an event was one too many, if that is to be told.
    fn answer_excess(&mut self, origin: Origin<'_>, refusal: Option<Refusal<'_>>) {
        if let Some(refusal) = refusal {
            self.answer_refusal(origin, &refusal);
        }
    }

    /// Says an event to one client of Socket.IO.
    pub(super) fn say_event(
        &mut self,
        slot: Slot,
        namespace: &str,
        (event, args): (&str, &str),
        attachments: Attachments<'_>,
    ) {
        let offset = self.offset(self.history.end());
        let coded = self.encode(namespace, args, attachments);
        let (args, attachments) = given_or(coded.as_ref(), args, attachments);
        self.say_packet(slot, attachments, |out, count| {
            socketio::encode_event(out, namespace, event, args, count, None, offset.as_deref());
        });
    }

    /// Says the answer to the event with this `id` to its client of Socket.IO.
    pub(super) fn say_ack(
        &mut self,
        slot: Slot,
        namespace: &str,
        id: &str,
        args: &str,
        attachments: Attachments<'_>,
    ) {
        let coded = self.encode(namespace, args, attachments);
        let (args, attachments) = given_or(coded.as_ref(), args, attachments);
        self.say_packet(slot, attachments, |out, count| {
            socketio::encode_ack(out, namespace, id, args, count);
        });
    }

    /// Arguments as the clients of a namespace get them, if that is not as they are.
    fn encode(&self, namespace: &str, args: &str, attachments: Attachments<'_>) -> Option<Arguments> {
        coding::encode(self.settings.socketio.namespaces.coding(namespace), args, attachments)
    }

    /// Says a packet with its attachments, as the client's parser reads it. `write` is told how many those are, and writes the text.
    pub(super) fn say_packet(
        &mut self,
        slot: Slot,
        attachments: Attachments<'_>,
        write: impl FnOnce(&mut Vec<u8>, usize),
    ) {
        if self.conns[slot as usize].speaks_msgpack {
            let mut text = Vec::new();
            write(&mut text, attachments.len());
            return self.reply(slot, Opcode::Binary, |out| msgpack::encode(out, &text, attachments));
        }
        self.say(slot, |out| write(out, attachments.len()));
        for attachment in attachments {
            self.reply(slot, Opcode::Binary, |out| out.extend_from_slice(attachment));
        }
    }

    /// Ends a session whose client has broken a rule.
    fn break_off(&mut self, slot: Slot, reason: &str, now: Time) {
        self.fail(slot, CloseCode::Protocol, reason, Ending::Protocol, now);
    }
}
