//! The part of a connection's life before it is a WebSocket: request heads and the answers to them.

use super::callouts::{Checked, Denial};
use super::conn::{Partial, Stage};
use super::session::Transport;
use super::users::close_code;
use super::{CLOSE_TIMEOUT_MS, Shard};
use crate::dialect::Dialect;
use crate::message::{Reject, Slot};
use crate::time::Time;
use crate::wire::close::CloseCode;
use crate::wire::http::{self, Body, Head, Request, Upgrade};

/// A request that has not come whole.
struct Cut {
    /// Where it begins in what has come.
    start: usize,
    /// How many bytes of its body have not; 0 when its head has not come whole.
    lacking: u64,
}

impl Shard {
    /// Bytes of request heads have come.
    pub(super) fn receive_heads(&mut self, slot: Slot, bytes: &mut [u8], now: Time) {
        if self.awaits(slot) {
            return self.hold_head(slot, bytes);
        }
        let Some(mut partial) = self.conns[slot as usize].partial.take() else {
            let cut = self.read_heads(slot, bytes, now);
            return self.keep(slot, bytes, cut, now);
        };
        if self.pool.extend(&mut partial.lease, bytes).is_err() {
            self.pool.give_back(partial.lease);
            return self.doom(slot);
        }
        partial.remaining = partial.remaining.saturating_sub(bytes.len() as u64);
        if partial.remaining > 0 {
            // However small the pieces are that a body comes in, each costs no more than itself.
            self.conns[slot as usize].partial = Some(partial);
            return;
        }
        let mut kept = self.pool.end(partial.lease);
        match self.read_heads(slot, &mut kept, now) {
            Some(Cut { start: 0, lacking }) => {
                let lease = self.pool.renew(kept);
                let partial = Partial { remaining: lacking, ..*Partial::new(lease, now) };
                self.conns[slot as usize].partial = Some(Box::new(partial));
            }
            cut => {
                self.keep(slot, &kept, cut, now);
                self.pool.keep(kept);
            }
        }
    }

    /// Reads heads, and after an upgrade frames, until the bytes are used up. Answers what is left of a request that is cut short.
    fn read_heads(&mut self, slot: Slot, bytes: &mut [u8], now: Time) -> Option<Cut> {
        let mut start = 0;
        while start < bytes.len() {
            let rest = &bytes[start..];
            let bytes_max = self.settings.head_bytes_max;
            let reject = match http::parse(rest) {
                Ok(Head::Complete(request, head_bytes)) if head_bytes <= bytes_max => {
                    if let Some(owner) = self.elsewhere(&request) {
                        self.hand_over(slot, owner, rest);
                        return None;
                    }
                    let body = match request.body {
                        Body::Length(length) if self.is_post(&request) => {
                            if length > self.settings.message_bytes_max {
                                self.reject(slot, Reject::LargeBody, false, false, now);
                                return None;
                            }
                            let Some(body) = rest.get(head_bytes..head_bytes + length) else {
                                self.await_body(slot, &request, now);
                                return Some(Cut {
                                    start,
                                    lacking: (head_bytes + length - rest.len()) as u64,
                                });
                            };
                            body
                        }
                        Body::Chunked if self.is_post(&request) => {
                            self.reject(slot, Reject::LengthRequired, false, false, now);
                            return None;
                        }
                        _ => &[],
                    };
                    self.answer(slot, &request, body, now);
                    if self.awaits(slot) {
                        return self.keep_whole(slot, rest, start);
                    }
                    start += head_bytes + body.len();
                    None
                }
                Ok(Head::Partial) if rest.len() < bytes_max => return Some(Cut { start, lacking: 0 }),
                Ok(_) => Some(Reject::LargeHead),
                Err(reject) => Some(reject),
            };
            if let Some(reject) = reject {
                self.reject(slot, reject, false, false, now);
                return None;
            }
            let rest = &mut bytes[start..];
            match self.conns[slot as usize].stage {
                Stage::Http => {}
                Stage::Open(_) | Stage::Probing(_) => {
                    self.receive_frames(slot, rest, now);
                    return None;
                }
                Stage::Waiting(_) if !rest.is_empty() => {
                    self.hang_up(slot);
                    return None;
                }
                _ => return None,
            }
        }
        None
    }

    /// A request is read again when the backend has answered: it is kept, and what came behind it.
    fn keep_whole(&mut self, slot: Slot, bytes: &[u8], start: usize) -> Option<Cut> {
        if bytes.len() > self.settings.head_bytes_max {
            self.hang_up(slot);
            return None;
        }
        // It has a time of its own from here on.
        self.wheel.disarm(slot);
        Some(Cut { start, lacking: 0 })
    }

    /// Keeps what has come of a request.
    fn keep(&mut self, slot: Slot, bytes: &[u8], cut: Option<Cut>, now: Time) {
        let Some(Cut { start, lacking }) = cut else { return };
        let mut partial = Partial::new(self.pool.lease(), now);
        partial.remaining = lacking;
        if self.pool.extend(&mut partial.lease, &bytes[start..]).is_err() {
            self.doom(slot);
        }
        self.conns[slot as usize].partial = Some(partial);
    }

    /// Answers the request at the start of these bytes, whose session is not here, and ends the connection. Its body is not waited for.
    pub(super) fn answer_unknown(&mut self, slot: Slot, bytes: &[u8], now: Time) {
        match http::parse(bytes) {
            Ok(Head::Complete(mut request, _)) => {
                request.keep_alive = false;
                self.answer(slot, &request, &[], now);
            }
            // It was whole when the shard read it.
            _ => self.doom(slot),
        }
    }

    fn answer(&mut self, slot: Slot, request: &Request<'_>, body: &[u8], now: Time) {
        let dialect = self.settings.dialect(request.path);
        if let Some(dialect) = dialect
            && dialect.is_engine()
        {
            return self.engine_request(slot, dialect, request, body, now);
        }
        let head_only = request.method == "HEAD";
        // A body is not wanted here; rather than reading past it, the connection ends after the answer.
        let keep_alive = request.keep_alive && request.body == Body::None && self.drain.is_none();
        let result = match (request.path, dialect) {
            ("/health" | "/ready", _) | (_, Some(_)) if !head_only && request.method != "GET" => {
                Err(Reject::Method)
            }
            ("/health", _) => Ok(self.health("ok", now)),
            ("/ready", _) if !self.gate.is_draining() => Ok(self.health("ready", now)),
            ("/ready", _) => {
                let body = self.health("draining", now);
                return self.respond(
                    slot,
                    (503, "Service Unavailable"),
                    "Retry-After: 5\r\n",
                    &body,
                    keep_alive,
                    head_only,
                    now,
                );
            }
            (_, None) => Err(Reject::NotFound),
            (_, Some(dialect)) => match request.upgrade {
                Some(Ok(upgrade)) if !head_only => {
                    return self.upgrade(slot, request, &upgrade, dialect, "", now);
                }
                Some(Err(reject)) => Err(reject),
                _ => Err(Reject::UpgradeRequired),
            },
        };
        match result {
            Ok(body) => {
                self.stats().requests.add(1);
                self.respond(slot, (200, "OK"), "", &body, keep_alive, head_only, now);
            }
            Err(reject) => self.reject(slot, reject, keep_alive, head_only, now),
        }
    }

    /// Makes the connection a WebSocket that speaks `dialect`, if it may come in; `lines` are more header lines of the answer.
    pub(super) fn upgrade(
        &mut self,
        slot: Slot,
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
        dialect: Dialect,
        lines: &str,
        now: Time,
    ) {
        let ip = self.client(slot, request);
        if let Err(reject) = self.gate.check_origin(request.origin) {
            return self.reject(slot, reject, false, false, now);
        }
        let vouched = match self.knock(ip, now) {
            Ok(()) => match self.check_request(slot, request, dialect, now) {
                Ok(Checked::Known(vouched)) => Ok(vouched),
                Ok(Checked::Waits) => return,
                Err(denial) => Err((denial.reject(), Some(denial))),
            },
            Err(reject) => Err((reject, None)),
        };
        let admitted = vouched.and_then(|vouched| self.admit(ip, vouched).map_err(|reject| (reject, None)));
        if let Err((reject, denial)) = &admitted
            && let reject = *reject
            && !(self.settings.refuse_with_close && reject != Reject::Draining)
        {
            return match denial {
                Some(denial) => self.deny(slot, denial, now),
                None => self.reject(slot, reject, false, false, now),
            };
        }
        let range = self.turn.raw(|out| http::write_switch(out, upgrade, lines));
        let conn = &mut self.conns[slot as usize];
        self.turn.give(conn, slot, &range, false);
        conn.switching = true;
        conn.framing = Some(dialect);
        let identity = match admitted {
            Ok(identity) => identity,
            // Upgraded only to be told: a browser shows its page a close reason, but no HTTP status.
            Err((reject, denial)) => {
                self.stats().rejects[reject.index()].add(1);
                let code = denial.as_ref().map_or(CloseCode::Policy, |denial| close_code(denial.fault));
                let reason = denial.as_ref().map_or(reject.reason(), Denial::reason);
                self.send_close(slot, code, reason);
                self.conns[slot as usize].stage = Stage::Finishing { at_once: false };
                self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
                return;
            }
        };
        conn.ip = ip;
        self.stats().upgrades.add(1);
        self.open(slot, dialect, Transport::WebSocket, identity, now);
        self.keep_query(slot, request.query);
    }

    /// Refuses a request for who sends it.
    pub(super) fn deny(&mut self, slot: Slot, denial: &Denial, now: Time) {
        let reject = denial.reject();
        self.stats().rejects[reject.index()].add(1);
        let range = self.turn.raw(|out| http::write_denial(out, reject, denial.reason()));
        self.responded(slot, &range, false, now);
    }

    /// The head did not come in time, or a kept-alive connection asked nothing more.
    pub(super) fn head_timed_out(&mut self, slot: Slot, now: Time) {
        if self.conns[slot as usize].partial.is_some() {
            self.reject(slot, Reject::SlowHead, false, false, now);
        } else {
            self.doom(slot);
        }
    }

    /// Answers a socket that may not stay, before anything was read from it.
    pub(super) fn turn_away(&mut self, slot: Slot, reject: Reject, now: Time) {
        self.reject(slot, reject, false, false, now);
        self.conns[slot as usize].stage = Stage::Finishing { at_once: true };
    }

    pub(super) fn reject(
        &mut self,
        slot: Slot,
        reject: Reject,
        keep_alive: bool,
        head_only: bool,
        now: Time,
    ) {
        self.stats().rejects[reject.index()].add(1);
        let range = self.turn.raw(|out| http::write_reject(out, reject, keep_alive, head_only));
        self.responded(slot, &range, keep_alive, now);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one HTTP answer")]
    fn respond(
        &mut self,
        slot: Slot,
        status: (u16, &str),
        more: &str,
        body: &str,
        keep_alive: bool,
        head_only: bool,
        now: Time,
    ) {
        let range = self.turn.raw(|out| http::write_json(out, status, more, body, keep_alive, head_only));
        self.responded(slot, &range, keep_alive, now);
    }

    pub(super) fn responded(
        &mut self,
        slot: Slot,
        range: &std::ops::Range<u32>,
        keep_alive: bool,
        now: Time,
    ) {
        let conn = &mut self.conns[slot as usize];
        self.turn.give(conn, slot, range, false);
        if keep_alive {
            self.wheel.arm(slot, now, self.settings.handshake_timeout_ms);
            return;
        }
        conn.stage = Stage::Finishing { at_once: false };
        if let Some(partial) = conn.partial.take() {
            self.pool.give_back(partial.lease);
        }
        self.wheel.arm(slot, now, CLOSE_TIMEOUT_MS);
    }

    fn health(&self, status: &str, now: Time) -> String {
        format!(
            "{{\"status\":\"{status}\",\"connections\":{},\"uptime_seconds\":{},\"memory_bytes\":{}}}\n",
            self.gate.open(),
            now.ms() / 1000,
            self.stats.memory_bytes.value(),
        )
    }
}
