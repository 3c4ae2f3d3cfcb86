//! What the packets of Socket.IO make a shard do: joining namespaces, events and their answers, attachments.
//!
//! A namespace is a room that all who are in it are members of, and its rooms are rooms whose names begin with its own. The rooms of
//! the main namespace are those of the native dialect.

use super::Shard;
use super::callouts::{Checked, Denial, Piece, What, auth_of_application};
use super::calls::{CLIENT_LEFT, SERVER_LEFT};
use super::commands::Published;
use super::session::{Incoming, Joined, Parser};
use super::users::{refuse_denial, token_in};
use crate::bus::directory::{DirectoryFull, namespace_of, room_key};
use crate::bus::presence::Question;
use crate::dialect::native::{Code, Command, Names, Publish, Refusal};
use crate::dialect::socketio::{self, Body, Limits, Packet};
use crate::dialect::{attachments, builtin, msgpack};
use crate::message::{Slot, SocketId, TokenFault, write_socket_id};
use crate::permissions::Act;
use crate::rules::{Action, EventLimit, Over};
use crate::stats::{Ending, NamespaceStats};
use crate::time::Time;
use crate::wire::close::CloseCode;
use crate::wire::frame::Opcode;
use std::borrow::Cow;
use std::io::Write;

/// The longest name of a namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 200;

/// The event with which a client brings a token.
const TOKEN_EVENT: &str = "auth";

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

type Attachments<'a> = &'a [Vec<u8>];

/// What a program goes by that was refused.
fn code_data(code: &str) -> String {
    format!("{{\"code\":\"{code}\"}}")
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
        let Shard { conns, pool, .. } = self;
        if let Some(session) = &mut conns[slot as usize].session {
            session.incoming = Some(Incoming::new(pool.lease(), packet.attachments, now));
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
        if incoming.lease.bytes().len() + bytes.len() > self.settings.message_bytes_max {
            return self.fail_large(slot, now);
        }
        // The last attachment is not kept: with it the packet is whole.
        let Some(incoming) = session.incoming.take_if(|incoming| incoming.lacks_one()) else {
            return self.keep_part(slot, bytes, now);
        };
        let (text, mut attachments) = incoming.parts();
        attachments.push(bytes.to_vec());
        if let Ok(packet) = socketio::decode(text, &self.limits()) {
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
        let Some(stats) = self.namespace_stats(slot, namespace) else {
            return self.break_off(slot, "a packet for a namespace that was not joined", now);
        };
        match &packet.body {
            Body::Connect(_) => {}
            Body::Disconnect => {
                if self.has_token(slot, 0, now) {
                    self.leave_namespace(slot, namespace, Ending::Client);
                }
            }
            Body::Event { name, args } => {
                stats.events.add(1);
                self.event(slot, namespace, (name, args), packet.id, attachments, now)
            }
            Body::Ack { args } => match self.take_token(slot, bytes_of(args, attachments), now) {
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
    fn namespace_stats(&self, slot: Slot, namespace: &str) -> Option<&NamespaceStats> {
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
            let (event, auth) = (&settings.connect_event, auth.unwrap_or("{}"));
            let offset = self.offset(began);
            self.say_packet(slot, &[], |out, count| {
                socketio::encode_event(out, namespace, event, auth, count, None, offset.as_deref());
            });
        }
        self.join_rooms_of_token(slot);
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

    fn event(
        &mut self,
        slot: Slot,
        namespace: &str,
        (name, args): (&str, &str),
        id: Option<&str>,
        attachments: Attachments<'_>,
        now: Time,
    ) {
        let bytes = bytes_of(args, attachments);
        if let Err(excess) = self.take_token(slot, bytes, now) {
            let refusal = self.turn_down(slot, (excess, self.settings.over), id, now);
            return self.answer_excess(slot, namespace, id, refusal);
        }
        if let Err(refusal) = self.count_event(slot, (Some(namespace), name, bytes), |_| true, id, now) {
            return self.answer_excess(slot, namespace, id, refusal);
        }
        let settings = self.settings.socketio.clone();
        let Some(action) = settings.rules.find(namespace, name) else {
            // Nobody else is to have the token.
            if name == TOKEN_EVENT && self.settings.access.tokens.is_some() {
                self.token_event(slot, namespace, args, id, now);
            } else {
                self.note_event(slot, namespace, (name, args), attachments);
            }
            return;
        };
        if matches!(action, Action::Reply { .. } | Action::Ack) {
            self.note_event(slot, namespace, (name, args), attachments);
        }
        match action {
            Action::Reply { event } => {
                let offset = self.offset(self.history.end());
                self.say_packet(slot, attachments, |out, count| {
                    socketio::encode_event(out, namespace, event, args, count, None, offset.as_deref());
                });
            }
            Action::Ack => {
                if let Some(id) = id {
                    self.say_packet(slot, attachments, |out, count| {
                        socketio::encode_ack(out, namespace, id, args, count);
                    });
                }
            }
            // Tokens are brought to us, unless a rule says otherwise by name.
            Action::Backend if name == TOKEN_EVENT && self.settings.access.tokens.is_some() => {
                self.token_event(slot, namespace, args, id, now);
            }
            Action::Backend => {
                if let Err(refusal) = self.ask_about(slot, namespace, (name, args), id, attachments) {
                    self.answer_call(slot, namespace, id, &refusal);
                }
            }
            Action::Join { .. } | Action::Leave { .. } | Action::Publish { .. } | Action::Presence { .. } => {
                match builtin::decode(action, args, self.settings.room_name_bytes_max) {
                    Ok(command) => {
                        // What is published may have a name of its own. Limits on all events have counted it.
                        if let Command::Publish(publish) = &command
                            && publish.event != name
                            && let event = (Some(namespace), &*publish.event, bytes)
                            && let is_named = (|limit: &EventLimit| limit.event.is_some())
                            && let Err(refusal) = self.count_event(slot, event, is_named, id, now)
                        {
                            return self.answer_excess(slot, namespace, id, refusal);
                        }
                        if self.built_in(slot, namespace, &command, id, attachments, now) {
                            self.note_event(slot, namespace, (name, args), attachments);
                        }
                    }
                    Err(refusal) => self.answer_refusal(slot, namespace, id, &refusal),
                }
            }
        }
    }

    /// A client brings a newer token of its user, or its first.
    fn token_event(&mut self, slot: Slot, namespace: &str, args: &str, id: Option<&str>, now: Time) {
        let first = builtin::split(args).first().copied().unwrap_or_default();
        let token = match token_in(first) {
            Ok(token) => token,
            Err(fault) => return self.answer_token_event(slot, namespace, Err(fault.into()), id),
        };
        let accepted = match (&token, self.is_for_backend(token.as_deref())) {
            (Some(token), false) => self.bring_token(slot, token, now),
            (None, false) => Err(TokenFault::Malformed.into()),
            (_, true) => match auth_of_application(first) {
                Ok(said @ Some(_)) => {
                    let what = What::Event { namespace: namespace.to_owned(), id: id.map(str::to_owned) };
                    match self.call_out_for_message(slot, what, (token.as_deref(), said), now) {
                        Ok(()) => return,
                        Err(denial) => Err(denial),
                    }
                }
                Ok(None) | Err(_) => Err(TokenFault::Malformed.into()),
            },
        };
        self.answer_token_event(slot, namespace, accepted, id);
    }

    /// Tells a client what came of that.
    pub(super) fn answer_token_event(
        &mut self,
        slot: Slot,
        namespace: &str,
        accepted: Result<(), Denial>,
        id: Option<&str>,
    ) {
        match (accepted, id) {
            (Ok(()), Some(id)) => self.say_packet(slot, &[], |out, count| {
                socketio::encode_ack(out, namespace, id, "{}", count);
            }),
            (Ok(()), None) => {}
            (Err(denial), id) => self.answer_refusal(slot, namespace, id, &refuse_denial(&denial)),
        }
    }

    /// Carries out an event that does something. False when it must not, which its client has been told.
    fn built_in(
        &mut self,
        slot: Slot,
        namespace: &str,
        command: &Command<'_>,
        id: Option<&str>,
        attachments: Attachments<'_>,
        now: Time,
    ) -> bool {
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
            Command::Publish(publish) => {
                match self.publish_from(slot, namespace, publish, id, attachments, now) {
                    Ok(Published::AndAsked) => return true,
                    Ok(Published::Done) => Ok("{}".to_owned()),
                    Err(refusal) => Err(refusal),
                }
            }
            Command::Presence { room, who, .. } => {
                let question = Question { room: room_key(namespace, room).as_ref().into(), who: *who };
                let asked = match id {
                    Some(id) => self.ask_presence(slot, Some(namespace), &question, id, now),
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
        match (result, id) {
            (Ok(args), Some(id)) => self.say_packet(slot, &[], |out, count| {
                socketio::encode_ack(out, namespace, id, &args, count);
            }),
            (Ok(_), None) => {}
            (Err(refusal), id) => self.answer_refusal(slot, namespace, id, &refusal),
        }
        is_done
    }

    /// As [`Shard::catch_up`]. False as well when the connection was put out of the namespace by that: it would be in a room of a namespace
    /// in which it is not.
    fn catch_up_in(&mut self, slot: Slot, namespace: &str, now: Time) -> bool {
        self.catch_up(slot, now) && self.is_in(slot, namespace)
    }

    fn publish_from(
        &mut self,
        slot: Slot,
        namespace: &str,
        publish: &Publish<'_>,
        id: Option<&str>,
        attachments: Attachments<'_>,
        now: Time,
    ) -> Result<Published, Refusal<'static>> {
        fn keys<'a>(namespace: &str, rooms: &'a [Cow<'_, str>]) -> Names<'a> {
            rooms.iter().map(|room| room_key(namespace, room)).collect()
        }
        // Binary data alone is bytes for everybody, without a text around it.
        let text = str::from_utf8(publish.payload).unwrap_or_default();
        let (binary, payload, attachments) = match attachments {
            [only] if attachments::is_placeholder(text) => (true, only.as_slice(), &[] as Attachments<'_>),
            _ => (false, publish.payload, attachments),
        };
        let publish = Publish {
            rooms: keys(namespace, &publish.rooms),
            except: keys(namespace, &publish.except),
            event: Cow::Borrowed(&publish.event),
            payload,
            id,
            ..*publish
        };
        let published = self.publish(slot, &publish, (binary, attachments), Some(namespace), now)?;
        if let Some(stats) = self.namespace_stats(slot, namespace) {
            stats.publications.add(1);
        }
        Ok(published)
    }

    /// Tells why an event was not carried out: in its answer, or where none is wanted in an event `error`.
    pub(super) fn answer_refusal(
        &mut self,
        slot: Slot,
        namespace: &str,
        id: Option<&str>,
        refusal: &Refusal<'_>,
    ) {
        self.count_refusal(refusal);
        let message = serde_json::to_string(&refusal.message).unwrap_or_default();
        let retry = refusal.retry_ms.map_or(String::new(), |retry_ms| format!(",\"retry_ms\":{retry_ms}"));
        let error = format!("{{\"code\":\"{}\",\"message\":{message}{retry}}}", refusal.code.as_str());
        match id {
            Some(id) => {
                let args = format!("{{\"error\":{error}}}");
                self.say_packet(slot, &[], |out, count| {
                    socketio::encode_ack(out, namespace, id, &args, count);
                });
            }
            None => {
                let offset = self.offset(self.history.end());
                self.say_packet(slot, &[], |out, count| {
                    socketio::encode_event(out, namespace, "error", &error, count, None, offset.as_deref());
                });
            }
        }
    }

    /// Tells that an event was one too many, if that is to be told.
    fn answer_excess(&mut self, slot: Slot, namespace: &str, id: Option<&str>, refusal: Option<Refusal<'_>>) {
        if let Some(refusal) = refusal {
            self.answer_refusal(slot, namespace, id, &refusal);
        }
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
