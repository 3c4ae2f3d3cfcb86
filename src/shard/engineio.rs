//! Engine.IO on a shard: sessions that are polled by HTTP, WebSockets that are sessions, and the move from one to the other.
//!
//! A polling session is an ordinary connection without a socket. What is said to it is encoded as for a WebSocket and waits in
//! its outbox; a GET takes it from there. When its client has opened a WebSocket, the session moves to that connection and its own is
//! released. A request for a session of another shard, or of another process on the port, is handed over to that, with its socket.

use super::callouts::{Checked, Piece as Part};
use super::conn::{Conn, Stage};
use super::session::{Get, Polling, Session, Transport};
use super::users::Identity;
use super::{CLOSE_TIMEOUT_MS, Farewell, Owner, Shard};
use crate::auth::Ip;
use crate::dialect::Dialect;
use crate::dialect::engineio::{self, Fault, Packet, Piece, Query, Sid};
use crate::message::{ConnId, Reject, Slot};
use crate::stats::{Ending, Gauge};
use crate::time::{Bucket, Meter, Time};
use crate::wire::close::CloseCode;
use crate::wire::frame::Opcode;
use crate::wire::http::{self, Request};
use std::borrow::Cow;
use std::hash::BuildHasher;

/// The most bytes of one answer to a GET, unless a single packet is longer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A ping that is this late, in milliseconds, has its own time to be answered; one that is less late does not delay the end.
const LATE_MS: u64 = 20;

impl Shard {
    /// Who has the session that a request is for, if that is not this shard.
    pub(super) fn elsewhere(&self, request: &Request<'_>) -> Option<Owner> {
        let sid = Sid::parse(Query::parse(request.query).sid?)?;
        let (tag, shard) = (sid.process(), sid.shard());
        if self.settings.process != 0 && tag != self.settings.process {
            // Where somebody has a port for itself, or speaks of another server, there is nobody to ask.
            let is_served = self.settings.dialect(request.path).is_some_and(Dialect::is_engine);
            return (tag != 0 && is_served).then_some(Owner::Process { tag, shard });
        }
        let is_other = shard != self.id && usize::from(shard) < self.bus.shards();
        is_other.then_some(Owner::Shard(shard))
    }

    /// Gives this socket to somebody else, with what was read and not used.
    pub(super) fn hand_over(&mut self, slot: Slot, owner: Owner, bytes: &[u8]) {
        self.wheel.disarm(slot);
        self.conns[slot as usize].stage = Stage::Leaving;
        self.farewells.push(Farewell::HandOver { slot, owner, bytes: bytes.into() });
    }

    /// A request at a path of Engine.IO has come, with its whole body.
    pub(super) fn engine_request(
        &mut self,
        slot: Slot,
        dialect: Dialect,
        request: &Request<'_>,
        body: &[u8],
        now: Time,
    ) {
        let answer = Answer {
            // Of other requests than POST no body is read: what follows the head would be taken for the next one.
            keep_alive: request.keep_alive
                && (request.body == http::Body::None || request.method == "POST")
                && self.drain.is_none(),
            head_only: request.method == "HEAD",
            accepts_gzip: request.accepts_gzip,
            lines: self.settings.socketio.cors.lines(request),
        };
        if request.method == "OPTIONS" && !answer.lines.is_empty() {
            return self.preflight(slot, request, &answer, now);
        }
        let query = Query::parse(request.query);
        let result = match (query.transport, request.upgrade) {
            _ if query.jsonp => Err(Fault::BadRequest),
            (Some("polling"), None) => match query.sid {
                Some(sid) => self.polled(slot, sid, request, body, &answer, now),
                None if request.method != "GET" => Err(Fault::HandshakeMethod),
                None if query.eio != Some("4") => Err(Fault::UnsupportedVersion),
                None => return self.shake_hands(slot, dialect, request, &answer, now),
            },
            (Some("websocket"), Some(_)) if request.method != "GET" => Err(Fault::HandshakeMethod),
            (Some("websocket"), Some(Err(reject))) => return self.reject(slot, reject, false, false, now),
            (Some("websocket"), Some(Ok(upgrade))) => match query.sid {
                Some(sid) => self.probe(slot, sid, &upgrade, &answer, now),
                None if query.eio != Some("4") => Err(Fault::UnsupportedVersion),
                None => return self.upgrade(slot, request, &upgrade, dialect, &answer.lines, now),
            },
            (Some("polling" | "websocket"), _) => match query.sid {
                Some(sid) if self.find_session(sid, now).is_none() => Err(Fault::UnknownSession),
                None if request.method != "GET" => Err(Fault::HandshakeMethod),
                _ => Err(Fault::BadRequest),
            },
            _ => Err(Fault::UnknownTransport),
        };
        if let Err(fault) = result {
            self.engine_fault(slot, fault, request.upgrade.is_some(), &answer, now);
        }
    }

    /// True when the body of this request is wanted.
    pub(super) fn is_post(&self, request: &Request<'_>) -> bool {
        let dialect = self.settings.dialect(request.path);
        request.method == "POST" && dialect.is_some_and(Dialect::is_engine)
    }

    /// The body of a POST is on its way. One of a session can be at a time.
    pub(super) fn await_body(&mut self, slot: Slot, request: &Request<'_>, now: Time) {
        self.wheel.arm(slot, now, self.settings.message_timeout_ms);
        let session = Query::parse(request.query).sid.and_then(|sid| self.find_session(sid, now));
        if let Some(session) = session
            && let Some(polling) = self.polling(session)
            && *polling.post.get_or_insert(slot) != slot
        {
            self.end(session, Ending::Protocol);
        }
    }

    /// A GET or POST of a polling session.
    fn polled(
        &mut self,
        slot: Slot,
        sid: &str,
        request: &Request<'_>,
        body: &[u8],
        answer: &Answer,
        now: Time,
    ) -> Result<(), Fault> {
        let session = self.find_session(sid, now).ok_or(Fault::UnknownSession)?;
        let polling = self.polling(session).ok_or(Fault::BadRequest)?;
        match request.method {
            "GET" if polling.get.is_some() => {
                self.end(session, Ending::Protocol);
                Err(Fault::BadRequest)
            }
            "GET" => {
                polling.get = Some(Box::new(Get { slot, answer: answer.clone() }));
                self.conns[slot as usize].stage = Stage::Waiting(session);
                self.wheel.disarm(slot);
                self.answer_get(session);
                Ok(())
            }
            "POST" if polling.post.is_some_and(|other| other != slot) => {
                self.end(session, Ending::Protocol);
                Err(Fault::BadRequest)
            }
            "POST" => {
                polling.post = None;
                if request.content_type.eq_ignore_ascii_case("application/octet-stream") {
                    return Err(Fault::BadRequest);
                }
                self.post(session, body, now)?;
                self.stats().requests.add(1);
                self.answer_text(slot, "text/html", b"ok", answer, now);
                Ok(())
            }
            _ => Err(Fault::BadRequest),
        }
    }

    /// The packets of a POST.
    fn post(&mut self, session: Slot, body: &[u8], now: Time) -> Result<(), Fault> {
        let stamp = self.conns[session as usize].stamp;
        let is_there = |shard: &Shard| {
            shard.conns.get(session as usize).is_some_and(|conn| conn.stamp == stamp && conn.is_open())
        };
        self.heard(session, now);
        let Ok(text) = std::str::from_utf8(body) else {
            self.end(session, Ending::Protocol);
            return Err(Fault::BadRequest);
        };
        for piece in engineio::pieces(text) {
            match piece {
                Ok(Piece::Text(text)) => self.engine_text(session, text, now)?,
                Ok(Piece::Binary(bytes)) => self.engine_binary(session, &bytes, now),
                Err(engineio::Malformed(_)) => {
                    self.end(session, Ending::Protocol);
                    return Err(Fault::BadRequest);
                }
            }
            if !is_there(self) {
                break;
            }
        }
        Ok(())
    }

    /// The first request of a client that polls.
    fn shake_hands(
        &mut self,
        slot: Slot,
        dialect: Dialect,
        request: &Request<'_>,
        answer: &Answer,
        now: Time,
    ) {
        if self.gate.check_origin(request.origin).is_err() {
            return self.engine_fault(slot, Fault::Forbidden, false, answer, now);
        }
        let ip = self.client(slot, request);
        if let Err(reject) = self.knock(ip, now) {
            return self.reject(slot, reject, false, false, now);
        }
        let vouched = match self.check_request(slot, request, dialect, now) {
            Ok(Checked::Known(vouched)) => vouched,
            Ok(Checked::Waits) => return,
            Err(denial) => return self.deny(slot, &denial, now),
        };
        let identity = match self.admit(ip, vouched) {
            Ok(identity) => identity,
            Err(reject) => return self.reject(slot, reject, false, false, now),
        };
        self.stamp = self.stamp.wrapping_add(1);
        let mut conn = Conn::new(self.stamp, ip, now);
        conn.has_socket = false;
        conn.framing = Some(dialect);
        // There is no socket that would take anything: all that is said to it goes to its outbox.
        conn.blocked = true;
        let session = self.conns.insert(conn);
        self.slots = self.slots.max(session + 1);
        let session = session as Slot;
        self.open(session, dialect, Transport::Polling(Polling::default()), identity, now);
        self.keep_query(session, request.query);
        let mut body = Vec::new();
        self.encode_open(session, &mut body, true);
        self.stats().requests.add(1);
        self.answer_text(slot, "text/plain; charset=UTF-8", &body, answer, now);
    }

    /// A connection has become a session.
    pub(super) fn open_session(&mut self, slot: Slot, dialect: Dialect, transport: Transport, now: Time) {
        let connect_timeout_ms = self.settings.socketio.connect_timeout_ms;
        let connect_by = (dialect == Dialect::SocketIo).then(|| now.plus_ms(connect_timeout_ms.into()));
        let interval_ms = self.settings.ping_interval_ms;
        let beat = (now.plus_ms(interval_ms.into()), interval_ms);
        let is_socket = matches!(transport, Transport::WebSocket);
        self.sessions(&transport).add(1);
        self.conns[slot as usize].session = Some(Session::new(transport, beat, connect_by));
        self.arm_session(slot, now);
        if is_socket {
            let mut open = Vec::new();
            self.encode_open(slot, &mut open, false);
            self.say(slot, |out| out.extend_from_slice(&open));
        }
    }

    /// An open connection has ended: if it was a session, it is counted no more.
    pub(super) fn discount_session(&self, slot: Slot) {
        let Some(session) = &self.conns[slot as usize].session else { return };
        self.sessions(&session.transport).sub(1);
        for joined in &session.namespaces {
            self.stats().namespace(Some(joined.pattern)).connections.sub(1);
        }
    }

    /// How many sessions are reached in this way.
    fn sessions(&self, transport: &Transport) -> &Gauge {
        match transport {
            Transport::Polling(_) => &self.stats().polling_sessions,
            Transport::WebSocket => &self.stats().websocket_sessions,
        }
    }

    fn encode_open(&self, slot: Slot, out: &mut Vec<u8>, can_upgrade: bool) {
        let settings = &self.settings;
        let conn = &self.conns[slot as usize];
        let (interval_ms, timeout_ms) = (settings.ping_interval_ms, settings.ping_timeout_ms);
        let sid = self.sid(slot, conn.stamp);
        engineio::encode_open(out, sid, can_upgrade, interval_ms, timeout_ms, settings.message_bytes_max);
    }

    /// The id of the session in `slot`. Nobody can guess it, so whoever knows it is its client; nothing has to be kept for it.
    fn sid(&self, slot: Slot, stamp: u32) -> Sid {
        let secret = self.key.hash_one((slot, stamp));
        Sid::new(self.settings.process, self.id, slot, secret.to_be_bytes())
    }

    /// The open session with this id, if it is one of this shard and its time has not come.
    fn find_session(&mut self, sid: &str, now: Time) -> Option<Slot> {
        let sid = Sid::parse(sid).filter(|sid| sid.shard() == self.id)?;
        let conn = self.conns.get(sid.slot() as usize).filter(|conn| conn.is_open() && !conn.doomed)?;
        let session = conn.session.as_ref().filter(|_| self.sid(sid.slot(), conn.stamp) == sid)?;
        if conn.pinged && now >= session.beat {
            // Its timer is about to fire.
            self.end(sid.slot(), Ending::Silent);
            return None;
        }
        Some(sid.slot())
    }

    /// The requests of the session in `slot`, if it is one that polls.
    fn polling(&mut self, slot: Slot) -> Option<&mut Polling> {
        self.conns.get_mut(slot as usize)?.session.as_mut()?.polling()
    }

    /// Answers the GET that waits on a session, if there is something to say.
    pub(super) fn answer_get(&mut self, session: Slot) {
        let Some(polling) = self.polling(session) else { return };
        let is_pausing = polling.is_pausing;
        if polling.get.is_none() {
            return;
        }
        let mut body = self.take_outbox(session);
        if body.is_empty() && is_pausing {
            body.push(b'6');
        }
        if !body.is_empty() {
            self.end_get(session, &body);
        }
    }

    /// Takes as much of what waits for a polling session as fits an answer.
    fn take_outbox(&mut self, session: Slot) -> Vec<u8> {
        let mut body = Vec::new();
        let conn = &mut self.conns[session as usize];
        if let Some(outbox) = &mut conn.outbox {
            let used = engineio::join(&mut body, outbox.contiguous(), ANSWER_BYTES_MAX);
            outbox.sent(used);
            if outbox.is_empty() {
                conn.outbox = None;
            }
            self.stats().outbox_bytes.sub(used as u64);
        }
        body
    }

    /// Answers the GET that waits on a session with `body`.
    fn end_get(&mut self, session: Slot, body: &[u8]) {
        let Some(mut get) = self.polling(session).and_then(|polling| polling.get.take()) else { return };
        // It may have asked before the drain.
        get.answer.keep_alive &= self.drain.is_none();
        let now = self.turn.now();
        if let Some(conn) = self.conns.get_mut(get.slot as usize)
            && conn.stage == Stage::Waiting(session)
        {
            conn.stage = Stage::Http;
            self.stats().requests.add(1);
            self.stats().polls.add(1);
            self.answer_text(get.slot, "text/plain; charset=UTF-8", body, &get.answer, now);
        }
    }

    /// The session is over: whoever waits for it is told.
    pub(super) fn end_polling(&mut self, session: Slot, ending: Ending) {
        let mut body = self.take_outbox(session);
        if !body.is_empty() {
            body.push(0x1e);
        }
        match ending {
            Ending::Client => body.push(b'6'),
            _ => body.push(b'1'),
        }
        self.end_get(session, &body);
        let probe = self.polling(session).and_then(|polling| polling.probe.take());
        if let Some(probe) = probe {
            self.doom(probe);
        }
        self.doom(session);
    }

    /// A request that waited for a session was given up by its client.
    pub(super) fn get_lost(&mut self, session: Slot, slot: Slot) {
        if let Some(polling) = self.polling(session)
            && polling.get.take_if(|get| get.slot == slot).is_some()
        {
            self.end(session, Ending::Lost);
        }
    }

    /// A WebSocket to which a session might have moved is gone.
    pub(super) fn probe_lost(&mut self, session: Slot, slot: Slot) {
        self.stats().session_upgrades_failed.add(1);
        if let Some(polling) = self.polling(session)
            && polling.probe.take_if(|probe| *probe == slot).is_some()
        {
            polling.is_pausing = false;
            if self.drain.as_ref().is_some_and(|drain| (session as usize) < drain.told) {
                // The drain has waited for the move, and does not come again.
                self.end(session, Ending::Shutdown);
            }
        }
    }

    /// True when this session is on its way to a WebSocket: its client waits for its last poll to end, or has ended polling.
    pub(super) fn is_moving(&self, session: Slot) -> bool {
        let session = self.conns.get(session as usize).and_then(|conn| conn.session.as_ref());
        matches!(session.map(|session| &session.transport), Some(Transport::Polling(polling)) if polling.is_pausing)
    }

    /// A request for a WebSocket to which a session may move.
    fn probe(
        &mut self,
        slot: Slot,
        sid: &str,
        upgrade: &http::Upgrade<'_>,
        answer: &Answer,
        now: Time,
    ) -> Result<(), Fault> {
        let session = self.find_session(sid, now).ok_or(Fault::UnknownSession)?;
        let polling = self.polling(session).ok_or(Fault::BadRequest)?;
        if polling.probe.is_some() {
            return Err(Fault::BadRequest);
        }
        polling.probe = Some(slot);
        let range = self.turn.raw(|out| http::write_switch(out, upgrade, &answer.lines));
        let conn = &mut self.conns[slot as usize];
        self.turn.give(conn, slot, &range, false);
        conn.switching = true;
        conn.framing = Some(Dialect::EngineIo);
        conn.stage = Stage::Probing(session);
        self.wheel.arm(slot, now, self.settings.socketio.upgrade_timeout_ms);
        Ok(())
    }

    /// A text has come on a WebSocket to which the session may move.
    pub(super) fn probe_text(&mut self, slot: Slot, session: Slot, text: &str, now: Time) {
        match engineio::decode(text) {
            Ok(Packet::Ping("probe")) => {
                self.say(slot, |out| out.extend_from_slice(b"3probe"));
                if let Some(polling) = self.polling(session) {
                    polling.is_pausing = true;
                    // The client goes on when its GET has ended.
                    self.answer_get(session);
                }
            }
            Ok(Packet::Upgrade) => self.move_session(session, slot, now),
            _ => self.fail(slot, CloseCode::Protocol, "not a probe", Ending::Protocol, now),
        }
    }

    /// A polling session moves to the WebSocket in `to`, with all that waits for it.
    fn move_session(&mut self, from: Slot, to: Slot, now: Time) {
        // What it published itself knows it by its old place.
        if !self.catch_up(from, now) {
            return;
        }
        if !self.conns[from as usize].pending.is_none() {
            self.absorb(from, 0);
        }
        self.end_get(from, b"6");
        if !self.conns[from as usize].is_open() {
            return;
        }
        if !self.conns[to as usize].pending.is_none() {
            // What the WebSocket was told itself comes before what the session is told.
            self.absorb(to, 0);
            if self.conns[to as usize].stage != Stage::Probing(from) {
                return;
            }
        }
        self.rooms.rehome(&mut self.conns, from, to);
        let [old, new] = self.conns.get_disjoint_mut([from as usize, to as usize]).expect("both are there");
        new.stage = old.stage;
        new.framing = old.framing;
        new.stamp = old.stamp;
        new.bucket = old.bucket;
        new.pinged = old.pinged;
        new.heard_ms = old.heard_ms;
        new.speaks_msgpack = old.speaks_msgpack;
        new.session = old.session.take();
        self.asks.moved(new.stamp, to);
        self.calls.moved(new.stamp, to);
        self.waiting.moved(new.stamp, to);
        self.waits.moved(new.stamp, to);
        self.under_way.iter_mut().for_each(|under_way| under_way.moved(new.stamp, to));
        for joined in new.session.iter().flat_map(|session| &session.namespaces) {
            self.sockets.remove(&joined.sid, from);
            self.sockets.insert(&joined.sid, to);
        }
        if new.session.as_ref().is_some_and(|session| session.recovering.is_some()) {
            new.muted = old.muted;
            let place = |slot| ConnId { shard: self.id, slot, stamp: new.stamp };
            self.history.note_move(place(from), place(to));
        }
        // An empty one, of which all was left out, would bound what the socket may well take.
        if let Some(waiting) = old.outbox.take().filter(|outbox| !outbox.is_empty()) {
            new.outbox.get_or_insert_default().append(*waiting);
        }
        if let Some(session) = &mut new.session {
            session.transport = Transport::WebSocket;
        }
        let stats = &self.stats.shards[usize::from(self.id)];
        stats.session_upgrades.add(1);
        stats.polling_sessions.sub(1);
        stats.websocket_sessions.add(1);
        old.stage = Stage::Finished;
        if old.ip != new.ip {
            self.gate.transfer(old.ip, new.ip);
        }
        if let Some(meter) = self.meters.get(from as usize).copied() {
            self.meters.resize(self.meters.len().max(to as usize + 1), Meter::default());
            self.meters[to as usize] = meter;
        }
        self.move_user(from, to);
        let new = &mut self.conns[to as usize];
        if new.outbox.is_some() {
            self.turn.hurry(new, to);
        }
        self.wheel.disarm(from);
        self.doom(from);
        self.heard(to, now);
        self.arm_session(to, now);
        if self.drain.as_ref().is_some_and(|drain| (to as usize) < drain.told) {
            // A drain that has passed this place does not come again.
            self.shut_down(to, now);
        }
    }

    /// A text packet of a session has come.
    ///
    /// # Errors
    /// When it is none, and the session has ended for that.
    pub(super) fn engine_text(&mut self, slot: Slot, text: &str, now: Time) -> Result<(), Fault> {
        match engineio::decode(text) {
            Ok(Packet::Message(message)) => {
                self.stats().messages_in.add(1);
                if self.awaits(slot) {
                    self.hold(slot, Part::Text, message.as_bytes(), now);
                } else if self.conns[slot as usize].dialect() == Some(Dialect::SocketIo) {
                    self.socketio_text(slot, message, now);
                } else if self.has_token(slot, message.len(), now) {
                    self.say(slot, |out| {
                        out.push(b'4');
                        out.extend_from_slice(message.as_bytes());
                    });
                }
            }
            Ok(Packet::Close) => {
                self.send_close(slot, CloseCode::Normal, "");
                self.end(slot, Ending::Client);
                self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
            }
            // Any packet is a sign of life, and `heard` has noted it. What is not for a session that is open is passed over, as Node does.
            Ok(Packet::Pong(_)) => {
                if let Some(session) = &mut self.conns[slot as usize].session {
                    session.confirmed = session.confirmed.max(session.asked);
                }
            }
            Ok(Packet::Noop | Packet::Upgrade | Packet::Open(_)) => {}
            Ok(Packet::Ping(_)) => {
                self.fail(slot, CloseCode::Protocol, "pings are the server's", Ending::Protocol, now);
            }
            Err(engineio::Malformed(_)) => {
                self.fail(slot, CloseCode::Protocol, "not an Engine.IO packet", Ending::Protocol, now);
                return Err(Fault::BadRequest);
            }
        }
        Ok(())
    }

    /// A binary packet of a session has come.
    pub(super) fn engine_binary(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        self.stats().messages_in.add(1);
        if self.awaits(slot) {
            self.hold(slot, Part::Binary, bytes, now);
        } else if self.conns[slot as usize].dialect() == Some(Dialect::SocketIo) {
            self.socketio_binary(slot, bytes, now);
        } else if self.has_token(slot, bytes.len(), now) {
            self.reply(slot, Opcode::Binary, |out| out.extend_from_slice(bytes));
        }
    }

    /// Says a packet to one session.
    pub(super) fn say(&mut self, slot: Slot, write: impl FnOnce(&mut Vec<u8>)) {
        self.reply(slot, Opcode::Text, write);
    }

    /// The timer of a session has fired.
    pub(super) fn fire_session(&mut self, slot: Slot, now: Time) {
        let conn = &mut self.conns[slot as usize];
        let Some(session) = &mut conn.session else { return };
        if session.connect_by.is_some_and(|by| now >= by) {
            let reason = "no namespace was joined in time";
            return self.fail(slot, CloseCode::Policy, reason, Ending::Limit, now);
        }
        if now >= session.beat {
            if conn.pinged {
                return self.end_silent(slot);
            }
            let timeout_ms = u64::from(self.settings.ping_timeout_ms);
            let late_ms = now.since_ns(session.beat) / 1_000_000;
            let asked = if late_ms < LATE_MS { session.beat } else { now };
            session.beat = asked.plus_ms(timeout_ms);
            session.asked = self.history.end();
            conn.pinged = true;
            // One ping in the arena serves all that are due in this turn.
            let ping = self.engine_ping.get_or_insert_with(|| self.turn.copy(Opcode::Text, b"2"));
            self.turn.give(conn, slot, ping, false);
            self.stats().pings.add(1);
            self.stats().frames_out.add(1);
        }
        self.arm_session(slot, now);
    }

    /// Sets the timer of a session for what is due next.
    pub(super) fn arm_session(&mut self, slot: Slot, now: Time) {
        if let Some(session) = &self.conns[slot as usize].session {
            let ahead_ms = session.due().since_ns(now).div_ceil(1_000_000);
            let ahead_ms = u32::try_from(ahead_ms).unwrap_or(u32::MAX);
            let left_ms = self.token_left_ms(slot, now).unwrap_or(u32::MAX);
            self.wheel.arm(slot, now, ahead_ms.min(left_ms));
        }
    }

    fn preflight(&mut self, slot: Slot, request: &Request<'_>, answer: &Answer, now: Time) {
        // What is allowed is what was asked for.
        let mut lines =
            answer.lines.replace("Vary: Origin\r\n", "Vary: Origin, Access-Control-Request-Headers\r\n");
        lines.push_str("Access-Control-Allow-Methods: GET,HEAD,PUT,PATCH,POST,DELETE\r\n");
        if let Some(asked) = request.asks_headers {
            lines.push_str(&format!("Access-Control-Allow-Headers: {asked}\r\n"));
        }
        lines.push_str("Content-Length: 0\r\n");
        let range = self.turn.raw(|out| {
            http::write_answer(out, (204, "No Content"), &lines, b"", answer.keep_alive);
        });
        self.stats().requests.add(1);
        self.responded(slot, &range, answer.keep_alive, now);
    }

    fn answer_text(&mut self, slot: Slot, content_type: &str, body: &[u8], answer: &Answer, now: Time) {
        let least = self.settings.socketio.compression_bytes_min;
        let is_long = least > 0 && body.len() >= least;
        let (body, coding) = if answer.accepts_gzip && is_long {
            (Cow::Owned(http::gzip(body)), "Content-Encoding: gzip\r\n")
        } else {
            (Cow::Borrowed(body), "")
        };
        let vary = if is_long { "Vary: Accept-Encoding\r\n" } else { "" };
        let lines = format!(
            "{}Content-Type: {content_type}\r\n{coding}{vary}Content-Length: {}\r\ncache-control: no-store\r\n",
            answer.lines,
            body.len()
        );
        let range =
            self.turn.raw(|out| http::write_answer(out, (200, "OK"), &lines, &body, answer.keep_alive));
        self.responded(slot, &range, answer.keep_alive, now);
    }

    /// Refuses a request in the words of Engine.IO. One for an upgrade is refused in plain text, and its connection closed, as Node does.
    fn engine_fault(&mut self, slot: Slot, fault: Fault, is_upgrade: bool, answer: &Answer, now: Time) {
        self.stats().rejects[Reject::EngineIo.index()].add(1);
        let mut body = Vec::new();
        let (lines, keep_alive) = if is_upgrade {
            body.extend_from_slice(fault.message().as_bytes());
            ("Content-Type: text/html\r\n".to_owned(), false)
        } else {
            fault.encode(&mut body);
            (format!("{}Content-Type: application/json\r\n", answer.lines), answer.keep_alive)
        };
        let lines = format!("{lines}Content-Length: {}\r\n", body.len());
        if answer.head_only {
            body.clear();
        }
        let range = self.turn.raw(|out| http::write_answer(out, fault.status(), &lines, &body, keep_alive));
        self.responded(slot, &range, keep_alive, now);
    }

    /// The address that counts for a request: that of the client behind a trusted proxy.
    pub(super) fn client(&self, slot: Slot, request: &Request<'_>) -> Ip {
        let conn = &self.conns[slot as usize];
        match self.gate.client(&request.forwarded) {
            Some(address) if conn.from_proxy => Ip::from(address),
            _ => conn.ip,
        }
    }

    /// Makes an admitted connection an open one, and that of its user, if that is known.
    pub(super) fn open(
        &mut self,
        slot: Slot,
        dialect: Dialect,
        transport: Transport,
        identity: Option<Identity>,
        now: Time,
    ) {
        if let Some(meter) = self.meters.get_mut(slot as usize) {
            *meter = Meter::default();
        }
        let conn = &mut self.conns[slot as usize];
        conn.stage = Stage::Open(dialect);
        conn.bucket = Bucket::full(self.settings.messages_burst_max, now);
        self.stats().connections.add(1);
        if dialect.is_engine() {
            self.open_session(slot, dialect, transport, now);
        } else {
            self.arm_open(slot, now, self.settings.ping_interval_ms);
        }
        let joins = dialect.is_direct() && self.settings.socketio.routes.arrival("/").is_some();
        // Events that are on their way were published before it was in any room.
        if (joins || identity.is_some()) && !self.catch_up(slot, now) {
            return identity.into_iter().for_each(|identity| self.gate.dismiss_user(&identity.user));
        }
        if let Some(identity) = identity {
            self.assume(slot, identity, now);
        }
        if joins {
            self.arrive(slot, "/", false);
        }
        self.note_open(slot);
    }
}

/// How a request is to be answered.
#[derive(Clone, Debug)]
pub struct Answer {
    keep_alive: bool,
    /// True when the body is to be left out, as HEAD asks.
    head_only: bool,
    accepts_gzip: bool,
    /// Header lines of CORS.
    lines: String,
}

/// Who may read the answers in a browser, as in the CORS protocol (Fetch standard, section 3.2).
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// Origins; `*` for any; empty for none.
    pub origins: Vec<String>,
    /// True when cookies and the like may be sent.
    pub credentials: bool,
}

impl Cors {
    /// The header lines for an answer to this request.
    fn lines(&self, request: &Request<'_>) -> String {
        let is_any = self.origins.iter().any(|origin| origin == "*");
        let origin = match (request.origin, self.origins.as_slice()) {
            (_, []) => return String::new(),
            // With credentials a browser does not take `*`.
            (Some(origin), _) if is_any && self.credentials => origin,
            _ if is_any => return "Access-Control-Allow-Origin: *\r\n".to_owned(),
            (_, [only]) if !only.contains('*') => only,
            (Some(origin), list) if list.iter().any(|rule| crate::auth::origin_matches(rule, origin)) => {
                origin
            }
            _ => return "Vary: Origin\r\n".to_owned(),
        };
        let credentials = if self.credentials { "Access-Control-Allow-Credentials: true\r\n" } else { "" };
        format!("Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n{credentials}")
    }
}
