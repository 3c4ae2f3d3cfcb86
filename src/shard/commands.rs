//! What a whole message makes a shard do.

use super::Shard;
use super::callouts::{Piece, What};
use super::conn::Stage;
use super::routes::{Sent, Told};
use super::users::refuse_token;
use crate::auth::tally::Excess;
use crate::bus::presence::Question;
use crate::dialect::native::{self, Code, Command, Id, Publish, Refusal};
use crate::dialect::{Dialect, attachments};
use crate::json;
use crate::message::{ConnId, Draft, RoomId, Slot, TokenFault};
use crate::permissions::Act;
use crate::routes::{Does, Found, Route};
use crate::rules::{EventLimit, Over};
use crate::stats::Ending;
use crate::time::{Meter, Time};
use crate::wire::close::CloseCode;
use crate::wire::frame::Opcode;
use smallvec::SmallVec;
use std::borrow::Cow;

/// What came of an event that a client wanted published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// It is on its way.
    Done,
    /// It is on its way, and its publisher is told when the answers are there.
    AndAsked,
}

/// More than a connection may send.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooMuch {
    /// Milliseconds after which it may send again.
    retry_ms: u32,
}

/// What its client is told.
const TOO_MUCH: &str = "Rate limit exceeded";

impl Shard {
    /// A text message has come.
    pub(super) fn text(&mut self, slot: Slot, text: &str, now: Time) {
        let conn = &self.conns[slot as usize];
        match conn.stage {
            Stage::Probing(session) => return self.probe_text(slot, session, text, now),
            Stage::Open(dialect) if dialect.is_engine() => {
                // An error is answered to a POST only; the session has ended either way.
                return self.engine_text(slot, text, now).unwrap_or_default();
            }
            _ => self.stats().messages_in.add(1),
        }
        let conn = &self.conns[slot as usize];
        match conn.dialect() {
            _ if !conn.is_open() => {}
            Some(Dialect::Echo) => self.echo(slot, Opcode::Text, text.as_bytes(), now),
            _ if self.awaits(slot) => self.hold(slot, Piece::Text, text.as_bytes(), now),
            _ => self.direct_text(slot, text, now),
        }
    }

    /// A text message of the native dialect, or of the plain one: they differ in what is in it.
    pub(super) fn direct_text(&mut self, slot: Slot, text: &str, now: Time) {
        match native::split(text, self.settings.messages_per_frame_max) {
            Ok(messages) if !messages.is_empty() => {
                for message in &messages {
                    if self.awaits(slot) {
                        self.hold(slot, Piece::Text, message.as_bytes(), now);
                    } else {
                        self.message(slot, message, now);
                    }
                    if !self.conns[slot as usize].is_open() {
                        break;
                    }
                }
            }
            // A frame that asks nothing, or nothing that can be read, counts as a message like any other.
            empty_or_refused => match (self.take_token(slot, text.len(), now), empty_or_refused) {
                (Err(excess), _) => self.refuse_excess(slot, excess, None, now),
                (Ok(()), Err(refusal)) => self.refuse(slot, &refusal),
                (Ok(()), Ok(_)) => {}
            },
        }
    }

    /// A binary message has come.
    pub(super) fn binary(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        let conn = &self.conns[slot as usize];
        match conn.stage {
            Stage::Probing(_) => {
                return self.fail(slot, CloseCode::Protocol, "not a probe", Ending::Protocol, now);
            }
            Stage::Open(dialect) if dialect.is_engine() => return self.engine_binary(slot, bytes, now),
            _ => self.stats().messages_in.add(1),
        }
        let conn = &self.conns[slot as usize];
        match conn.dialect() {
            _ if !conn.is_open() => {}
            Some(Dialect::Echo) => self.echo(slot, Opcode::Binary, bytes, now),
            _ if self.awaits(slot) => self.hold(slot, Piece::Binary, bytes, now),
            _ => self.direct_binary(slot, bytes, now),
        }
    }

    /// A binary message of one of these dialects.
    pub(super) fn direct_binary(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        if let Err(excess) = self.take_token(slot, bytes.len(), now) {
            return self.refuse_excess(slot, excess, native::id_of_binary(bytes), now);
        }
        if self.conns[slot as usize].dialect() == Some(Dialect::Plain) {
            return self.refuse(slot, &Refusal::new(Code::BadMessage, "a message is text"));
        }
        match native::decode_binary(bytes, self.settings.room_name_bytes_max) {
            Ok(command) if self.lacks_user(slot) => self.refuse_nobody(slot, command.id()),
            Ok(command) if self.is_replaced(slot, &command) => {}
            Ok(Command::Publish(publish)) => self.publish_natively(slot, &publish, true, now),
            Ok(Command::Call { event, payload, id }) => {
                let args = attachments::PLACEHOLDER;
                self.call_natively(slot, (&event, args), id, &[payload.to_vec()], now);
            }
            Ok(_) => {}
            Err(refusal) => self.refuse(slot, &refusal),
        }
    }

    fn echo(&mut self, slot: Slot, opcode: Opcode, payload: &[u8], now: Time) {
        if self.take_token(slot, payload.len(), now).is_err() {
            self.stats().rate_limited.add(1);
            return self.fail(slot, CloseCode::Policy, TOO_MUCH, Ending::Limit, now);
        }
        let range = self.turn.copy(opcode, payload);
        self.turn.give(&mut self.conns[slot as usize], slot, &range, false);
        self.stats().frames_out.add(1);
    }

    /// One message of these dialects.
    fn message(&mut self, slot: Slot, message: &str, now: Time) {
        if let Err(excess) = self.take_token(slot, message.len(), now) {
            return self.refuse_excess(slot, excess, native::id_of(message), now);
        }
        if self.conns[slot as usize].dialect() == Some(Dialect::Plain) {
            return self.plain_message(slot, message, now);
        }
        match native::decode(message, self.settings.room_name_bytes_max) {
            Ok(Command::Auth { token, id }) => self.token_message(slot, &token, id, now),
            Ok(command) if self.lacks_user(slot) => self.refuse_nobody(slot, command.id()),
            Ok(command) if self.is_replaced(slot, &command) => {}
            // Events that are on their way were published before: they find the members of then, as far as this core can tell.
            Ok(Command::Join { rooms, id } | Command::Leave { rooms, id })
                if self.names_too_many(slot, &rooms, id) => {}
            Ok(Command::Join { rooms, id }) => {
                if !self.catch_up(slot, now) {
                    return;
                }
                let forbidden = self.forbid(slot, &rooms, Act::Join);
                match (forbidden.map_or_else(|| self.join(slot, &rooms), Err), id) {
                    (Ok(members), Some(id)) => {
                        let rooms = rooms.iter().map(|name| &**name).zip(members);
                        self.reply(slot, Opcode::Text, |out| native::encode_joined(out, id, rooms));
                    }
                    (Ok(_), None) => {}
                    (Err(refusal), id) => self.refuse(slot, &refusal.with_id(id)),
                }
            }
            Ok(Command::Leave { rooms, id }) => {
                if !self.catch_up(slot, now) {
                    return;
                }
                for name in &rooms {
                    if let Some(room) = self.bus.find(name) {
                        self.leave(slot, room);
                    }
                }
                self.acknowledge(slot, id, Ok(()));
            }
            Ok(Command::Publish(publish)) => self.publish_natively(slot, &publish, false, now),
            Ok(Command::Call { event, payload, id }) => {
                let args = str::from_utf8(payload).unwrap_or("null");
                self.call_natively(slot, (&event, args), id, &[], now);
            }
            Ok(Command::Presence { room, who, id }) => {
                let question = Question { room: room.as_ref().into(), who };
                let asked = self.ask_presence(slot, None, &question, id.unwrap_or("null"), now);
                asked.unwrap_or_else(|refusal| self.refuse(slot, &refusal.with_id(id)));
            }
            Ok(Command::Ping { id }) => self.reply(slot, Opcode::Text, |out| native::encode_pong(out, id)),
            Err(refusal) => self.refuse(slot, &refusal),
        }
    }

    /// A native client brings a token.
    fn token_message(&mut self, slot: Slot, token: &str, id: Option<Id<'_>>, now: Time) {
        if !self.catch_up(slot, now) {
            return;
        }
        let accepted = if self.is_for_backend(Some(token)) {
            let what = What::Message { id: id.map(str::to_owned) };
            match self.call_out_for_message(slot, what, (Some(token), None), now) {
                Ok(()) => return,
                Err(denial) => Err(denial),
            }
        } else {
            self.bring_token(slot, token, now)
        };
        self.answer_token(slot, accepted, id, now);
    }

    /// True when a route has been put in the place of what a native client says, which is then told so: as for other clients, what is built
    /// in is not to be had besides.
    fn is_replaced(&mut self, slot: Slot, command: &Command<'_>) -> bool {
        if !self.settings.socketio.routes.replaces_built_in() {
            return false;
        }
        let settings = self.settings.socketio.clone();
        let (name, id) = match command {
            Command::Join { id, .. } => ("join", id),
            Command::Leave { id, .. } => ("leave", id),
            Command::Publish(publish) => ("publish", &publish.id),
            Command::Presence { id, .. } => ("presence", id),
            Command::Call { .. } | Command::Ping { .. } | Command::Auth { .. } => return false,
        };
        let reason = match settings.routes.find("/", name, |who| self.is_one_of(slot, who)) {
            Found::Forbidden { by_name: true } => "this client may not send this event",
            Found::Route(Route { on, does: Does::Steps(steps), .. }) if on == name => {
                steps.refuse.as_deref().unwrap_or("a route is in its place: `call` sends it as an event")
            }
            _ => return false,
        };
        self.refuse(slot, &Refusal::new(Code::Forbidden, reason.to_owned()).with_id(*id));
        true
    }

    pub(super) fn refuse_nobody(&mut self, slot: Slot, id: Option<Id<'_>>) {
        self.refuse(slot, &refuse_token(TokenFault::Missing).with_id(id));
    }

    /// True when a message names more rooms than a connection can be in, which is then told so.
    fn names_too_many(&mut self, slot: Slot, rooms: &[Cow<'_, str>], id: Option<Id<'_>>) -> bool {
        let Some(refusal) = self.too_many(rooms.len()) else { return false };
        self.refuse(slot, &refusal.with_id(id));
        true
    }

    fn too_many(&self, rooms: usize) -> Option<Refusal<'static>> {
        native::check_count(rooms, self.settings.rooms_per_connection_max).err()
    }

    /// Makes a connection a member of all of the rooms or of none. Answers how many members each had before.
    pub(super) fn join(
        &mut self,
        slot: Slot,
        rooms: &[Cow<'_, str>],
    ) -> Result<SmallVec<[u32; 8]>, Refusal<'static>> {
        debug_assert!(self.conns[slot as usize].is_open(), "who is over joins nothing");
        // The rooms that stand for its namespaces are not counted.
        let namespaces =
            self.conns[slot as usize].session.as_ref().map_or(0, |session| session.namespaces.len());
        let rooms_max = self.settings.rooms_per_connection_max;
        let mut joined: SmallVec<[RoomId; 8]> = SmallVec::new();
        let mut members: SmallVec<[u32; 8]> = SmallVec::new();
        let mut refusal = None;
        let mut entered: SmallVec<[(&str, bool); 4]> = SmallVec::new();
        if rooms.iter().any(|name| self.bus.socket_of(name).is_some()) {
            return Err(Refusal::new(Code::BadRoom, "this room is one socket's own"));
        }
        for name in rooms {
            let Ok((room, before)) = self.bus.enter(self.id, name) else {
                refusal = Some("the server holds as many rooms as it may".to_owned());
                break;
            };
            if self.rooms.join(&mut self.conns, slot, room) {
                joined.push(room);
                members.push(before);
                if self.bus.policies().is_some() {
                    entered.push((name, before == 0));
                }
            } else {
                // It was in the room already, and is counted once.
                self.bus.exit(self.id, room, false);
                members.push(before - 1);
            }
            if self.conns[slot as usize].memberships.len() > rooms_max + namespaces {
                refusal = Some(format!("a connection is in at most {rooms_max} rooms"));
                break;
            }
        }
        match refusal {
            None => {
                entered.into_iter().for_each(|(room, is_first)| self.ask_for_state(slot, room, is_first));
                Ok(members)
            }
            Some(message) => {
                for room in joined {
                    self.leave(slot, room);
                }
                Err(Refusal::new(Code::TooManyRooms, message))
            }
        }
    }

    pub(super) fn leave(&mut self, slot: Slot, room: RoomId) {
        if let Some(left) = self.rooms.leave(&mut self.conns, slot, room) {
            self.bus.exit(self.id, left.room, left.last_here);
        }
    }

    fn publish_natively(&mut self, slot: Slot, publish: &Publish<'_>, binary: bool, now: Time) {
        let event = (None, &*publish.event, publish.payload.len());
        if let Err(refusal) = self.count_event(slot, event, |_| true, publish.id, now) {
            if let Some(refusal) = refusal {
                self.refuse(slot, &refusal);
            }
            return;
        }
        match self.publish(slot, publish, (binary, &[]), None, now) {
            Ok(published) => {
                self.note_published(slot, &publish.event, &publish.rooms, (binary, publish.payload));
                if published == Published::Done {
                    self.acknowledge(slot, publish.id, Ok(()));
                }
            }
            Err(refusal) => self.acknowledge(slot, publish.id, Err(refusal)),
        }
    }

    /// A native client sends an event for which there is a route, as clients of Socket.IO do.
    fn call_natively(
        &mut self,
        slot: Slot,
        (event, args): (&str, &str),
        id: Option<Id<'_>>,
        attachments: &[Vec<u8>],
        now: Time,
    ) {
        let bytes = args.len() + attachments.iter().map(Vec::len).sum::<usize>();
        if let Err(refusal) = self.count_event(slot, (None, event, bytes), |_| true, id, now) {
            if let Some(refusal) = refusal {
                self.refuse(slot, &refusal);
            }
            return;
        }
        let settings = self.settings.socketio.clone();
        let told = match settings.routes.find("/", event, |who| self.is_one_of(slot, who)) {
            Found::Route(Route { does: Does::Steps(steps), .. }) => {
                let sent = Sent { namespace: "/", event, args, attachments };
                let told = self.take_steps(slot, &sent, steps, id, now);
                if told.is_ok() && !steps.backend {
                    self.note_event(slot, None, (event, args), attachments);
                }
                told
            }
            Found::Forbidden { .. } => {
                Err(Refusal::new(Code::Forbidden, "this client may not send this event"))
            }
            Found::Route(_) | Found::Nothing => {
                Err(Refusal::new(Code::BadEvent, "there is no route for this event"))
            }
        };
        let Told { reply, ack, unasked } = match told {
            Ok(told) => told,
            Err(refusal) => return self.refuse(slot, &refusal.with_id(id)),
        };
        if let Some((event, args)) = reply {
            let args = attachments::inline(&args, attachments);
            self.reply(slot, Opcode::Text, |out| {
                native::encode_reply(out, &event, json::split(&args).len(), &args);
            });
        }
        if let Some(refusal) = unasked {
            self.refuse(slot, &refusal.with_id(id));
        }
        if let (Some(args), Some(id)) = (ack, id) {
            let args = attachments::inline(&args, attachments);
            self.reply(slot, Opcode::Text, |out| {
                native::encode_result(out, id, json::split(&args).len(), &args);
            });
        }
    }

    /// Publishes what a client wants to publish. The names of rooms are what the directory calls them; the `namespace` is that of a client
    /// of Socket.IO.
    pub(super) fn publish(
        &mut self,
        slot: Slot,
        publish: &Publish<'_>,
        (binary, attachments): (bool, &[Vec<u8>]),
        namespace: Option<&str>,
        now: Time,
    ) -> Result<Published, Refusal<'static>> {
        let Publish { rooms, except, .. } = publish;
        let Some((room, more_rooms)) = rooms.split_first() else { return Ok(Published::Done) };
        if let Some(refusal) = self.too_many(rooms.len().max(except.len())) {
            return Err(refusal);
        }
        if let Some(refusal) = self.forbid(slot, rooms, Act::Publish) {
            return Err(refusal);
        }
        let ask = match (publish.ask_ms, publish.id) {
            (Some(ask_ms), Some(id)) => Some((self.new_ask(slot, ask_ms, now)?, id)),
            (Some(_), None) => {
                let message = "`ask_ms` without an ack: nobody could be told the answers";
                return Err(Refusal::new(Code::BadMessage, message));
            }
            (None, _) => None,
        };
        let sender = ConnId { shard: self.id, slot, stamp: self.conns[slot as usize].stamp };
        let draft = Draft {
            room,
            more_rooms,
            except_rooms: except,
            event: &publish.event,
            payload: publish.payload,
            binary,
            attachments,
            volatile: publish.volatile,
            ask: ask.map(|(ask, _)| ask),
            natives: false,
            is_list: false,
            except: (!publish.echo).then_some(sender),
            published_at: now,
        };
        let shards = self.send(&draft)?;
        let Some((ask, id)) = ask else { return Ok(Published::Done) };
        self.open_ask(ask, slot, namespace, id, shards.iter().count());
        Ok(Published::AndAsked)
    }

    /// Counts an event of a client, by its namespace, name and bytes, against those of the limits on it that `counts` wants. `id` asks for
    /// its answer.
    ///
    /// # Errors
    /// When it must not be carried out: the refusal that the client is to be told, if it is. It may have been closed.
    pub(super) fn count_event<'i>(
        &mut self,
        slot: Slot,
        (namespace, event, bytes): (Option<&str>, &str, usize),
        counts: impl Fn(&EventLimit) -> bool + Copy,
        id: Option<Id<'i>>,
        now: Time,
    ) -> Result<(), Option<Refusal<'i>>> {
        let tally = self.gate.tally();
        if tally.is_unlimited() {
            return Ok(());
        }
        let all = tally.limits();
        let conn = &self.conns[slot as usize];
        let who = (conn.stamp, conn.ip, self.users.of(slot));
        let limits = || all.find(namespace, event).filter(|(_, limit)| counts(limit));
        let Err(Excess { retry_ms, over }) =
            tally.take(limits, &mut self.event_windows, who, bytes, self.waits.came(now))
        else {
            return Ok(());
        };
        Err(self.turn_down(slot, (TooMuch { retry_ms }, over), id, now))
    }

    /// What a client is told of something over a limit, if it is told. It may have been closed.
    pub(super) fn turn_down<'i>(
        &mut self,
        slot: Slot,
        (TooMuch { retry_ms }, over): (TooMuch, Over),
        id: Option<Id<'i>>,
        now: Time,
    ) -> Option<Refusal<'i>> {
        let refusal = Refusal::new(Code::RateLimited, TOO_MUCH).with_id(id).with_retry(retry_ms);
        match over {
            Over::Error => return Some(refusal),
            Over::Drop if id.is_some() => return Some(refusal),
            Over::Drop => self.stats().rate_limited.add(1),
            Over::Close => {
                self.stats().rate_limited.add(1);
                self.fail(slot, CloseCode::Policy, TOO_MUCH, Ending::Limit, now);
            }
        }
        None
    }

    /// A client of these dialects has sent more than it may.
    fn refuse_excess(&mut self, slot: Slot, excess: TooMuch, id: Option<Id<'_>>, now: Time) {
        if let Some(refusal) = self.turn_down(slot, (excess, self.settings.over), id, now) {
            self.refuse(slot, &refusal);
        }
    }

    pub(super) fn acknowledge(&mut self, slot: Slot, id: Option<Id<'_>>, result: Result<(), Refusal<'_>>) {
        match (result, id) {
            (Ok(()), Some(id)) => self.reply(slot, Opcode::Text, |out| native::encode_ack(out, id)),
            (Ok(()), None) => {}
            (Err(refusal), id) => self.refuse(slot, &Refusal { id, ..refusal }),
        }
    }

    pub(super) fn count_refusal(&mut self, refusal: &Refusal<'_>) {
        self.stats().errors.add(1);
        if refusal.code == Code::RateLimited {
            self.stats().rate_limited.add(1);
        }
    }

    pub(super) fn refuse(&mut self, slot: Slot, refusal: &Refusal<'_>) {
        self.count_refusal(refusal);
        self.reply(slot, Opcode::Text, |out| native::encode_error(out, refusal));
    }

    /// One message with so many bytes, of what a connection may send.
    ///
    /// # Errors
    /// When it is too much. Then nothing was counted.
    #[inline]
    pub(super) fn take_token(&mut self, slot: Slot, bytes: usize, now: Time) -> Result<(), TooMuch> {
        let user = self.users.of(slot);
        let has_limits = self.settings.messages_per_second_max | self.settings.bytes_per_second_max > 0;
        if !has_limits && user.is_none_or(|user| user.granted.is_none()) {
            return Ok(());
        }
        self.take_measured(slot, bytes, now)
    }

    fn take_measured(&mut self, slot: Slot, bytes: usize, now: Time) -> Result<(), TooMuch> {
        let now = self.waits.came(now);
        let (byte_rate, byte_burst) = self.byte_rate(slot);
        let meter = self.meters.get(slot as usize).copied().unwrap_or_default();
        if byte_rate > 0 {
            let checked = meter.check(byte_rate, byte_burst, now);
            checked.map_err(|retry_ms| TooMuch { retry_ms })?;
        }
        let (rate, burst) = self.rate(slot);
        if rate > 0 {
            let taken = self.conns[slot as usize].bucket.take(rate, burst, now);
            taken.map_err(|retry_ms| TooMuch { retry_ms })?;
        }
        if byte_rate > 0 {
            if self.meters.len() <= slot as usize {
                self.meters.resize(slot as usize + 1, Meter::default());
            }
            self.meters[slot as usize].take(bytes, byte_rate, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Gate, Rules};
    use crate::bus::Bus;
    use crate::bus::outside::Deed;
    use crate::config::Config;
    use crate::server;
    use crate::shard::{Gathered, Settings};
    use crate::stats::Stats;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    #[test]
    fn nothing_more_is_carried_out_of_what_a_client_says_that_is_over_by_then() {
        let now = Time::default();
        let bus = Arc::new(Bus::new(1, 100));
        let settings = Settings { linger_ms: 0, ..server::settings(&Config::default(), 1, 10) };
        let gate = Arc::new(Gate::new(Rules::default()));
        let mut shard = Shard::new(0, settings, bus.clone(), gate, Arc::new(Stats::new(1)), now);
        let slot = shard.accept(Ipv4Addr::LOCALHOST.into(), now);
        shard.conns[slot as usize].stage = Stage::Open(Dialect::Native);
        shard.text(slot, r#"{"type":"join","rooms":["a"]}"#, now);
        bus.order("/", &["a"], &[], Deed::Disconnect { close: true }).expect("there is room");
        shard.text(
            slot,
            r#"[{"type":"ping","id":1},{"type":"join","rooms":["b"],"id":2},{"type":"ping","id":3}]"#,
            now,
        );
        shard.text(slot, r#"{"type":"ping","id":4}"#, now);
        assert_eq!(bus.rooms(), 0, "it is in no room");
        let Gathered::One(said) = shard.gather(slot) else { panic!("it is told one thing after another") };
        let said = String::from_utf8_lossy(said);
        assert_eq!(said.matches("\"pong\"").count(), 1, "{said}");
        assert!(!said.contains("joined") && !said.contains("error"), "{said}");
    }
}
