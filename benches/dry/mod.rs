//! A reactor without sockets: it keeps the contract of `throng::reactor` with one shard, hands in what a client would have sent,
//! and takes all that the shard wants to write. What is left is what the shard itself costs.
//!
//! It leaves out what a real one does besides system calls: two looks at the clock and falling asleep, together about
//! 100 ns a turn.

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use throng::auth::{Gate, Rules};
use throng::bus::Bus;
use throng::config::{Args, Config, Said};
use throng::dialect::Paths;
use throng::message::Slot;
use throng::policy::Policies;
use throng::rules::EventLimits;
use throng::shard::turn::Gathered;
use throng::shard::users::Access;
use throng::shard::{Farewell, Settings, Shard};
use throng::stats::{ShardStats, Stats};
use throng::time::Time;
use throng::token::Tokens;
use throng::token::keys::{Algorithm, KeySource, Place};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

/// Silence after which the shard sends a ping, in milliseconds.
pub(crate) const PING_INTERVAL_MS: u32 = 25_000;
/// Sockets accepted, and clients heard, in one turn while connections are made and ended; what the real one accepts at most.
pub(crate) const BATCH: usize = 64;

/// One shard and who calls it.
pub(crate) struct DryReactor {
    pub(crate) shard: Shard,
    pub(crate) bus: Arc<Bus>,
    stats: Arc<Stats>,
    /// Stands still unless a bench moves it, so no timer fires while something else is measured.
    pub(crate) now: Time,
}

impl DryReactor {
    /// A shard that space for `connections` is reserved for, with the server's default limits otherwise.
    pub(crate) fn new(connections: usize) -> DryReactor {
        DryReactor::with(connections, Access::default(), EventLimits::default(), Policies::default())
    }

    /// The same as a configuration file says it.
    pub(crate) fn configured(connections: usize, file: &str) -> DryReactor {
        let said = Said::gather(&Args::default(), Some(("bench.toml", file)), &[]);
        let config = said.meaning().expect("a good configuration");
        let policies = config.policies();
        DryReactor::on(connections, &config, Access::default(), EventLimits::default(), policies)
    }

    /// The same where tokens are taken: those of [`token`].
    pub(crate) fn with_tokens(connections: usize) -> DryReactor {
        let tokens = Tokens::new(throng::token::Settings {
            token_bytes_max: 8_192,
            user_claim: "sub".to_owned(),
            rooms_max: 10,
            room_name_bytes_max: 200,
            ..Default::default()
        });
        let place = Place::Secret(SECRET.to_vec());
        let key = KeySource { kid: None, algorithm: Algorithm::Hs256, until_s: None, place };
        tokens.set_named_keys(vec![key.read().expect("a good secret")]);
        let query_parameter = "token".to_owned();
        let access = Access { tokens: Some(Arc::new(tokens)), query_parameter, ..Access::default() };
        DryReactor::with(connections, access, EventLimits::default(), Policies::default())
    }

    /// The same as with nothing, with these limits on events.
    pub(crate) fn with_limits(connections: usize, events: EventLimits) -> DryReactor {
        DryReactor::with(connections, Access::default(), events, Policies::default())
    }

    /// The same with policies for rooms.
    pub(crate) fn with_policies(connections: usize, policies: Policies) -> DryReactor {
        DryReactor::with(connections, Access::default(), EventLimits::default(), policies)
    }

    fn with(connections: usize, access: Access, events: EventLimits, policies: Policies) -> DryReactor {
        DryReactor::on(connections, &Config::default(), access, events, policies)
    }

    fn on(
        connections: usize,
        config: &Config,
        access: Access,
        events: EventLimits,
        policies: Policies,
    ) -> DryReactor {
        let now = Time::from_ms(1_000);
        let said = throng::server::settings(config, 1, connections);
        let settings = Settings {
            process: 0,
            connections_reserved: connections,
            paths: Paths { echo: true, ..said.paths },
            // More than the default, for a bench that puts many rooms on few connections.
            rooms_per_connection_max: 10_000,
            // Where windows pass, nobody is to be pinged for that.
            ping_interval_ms: if policies.is_empty() { PING_INTERVAL_MS } else { 1 << 30 },
            access: Arc::new(access),
            ..said
        };
        let rules = Rules {
            connections_max: connections,
            sockets_max: connections,
            events,
            event_windows_max: 1_000_000,
            ..Rules::default()
        };
        let bus = Arc::new(Bus::new(1, 10_000_000).with_policies(Arc::new(policies)));
        let stats = Arc::new(Stats::new(1));
        let shard = Shard::new(0, settings, bus.clone(), Arc::new(Gate::new(rules)), stats.clone(), now);
        DryReactor { shard, bus, stats, now }
    }

    /// One turn in which `read` hands in what has come.
    pub(crate) fn turn(&mut self, read: impl FnOnce(&mut Shard, Time)) {
        self.begin(read);
        self.end();
    }

    /// One turn in which `count` sockets are accepted. Adds their slots to `slots`.
    pub(crate) fn accept(&mut self, count: usize, slots: &mut Vec<Slot>) {
        self.begin(|_, _| {});
        for _ in 0..count {
            assert!(self.shard.may_accept(self.now), "there is a place for each");
            slots.push(self.shard.accept(IpAddr::V4(Ipv4Addr::LOCALHOST), self.now));
        }
        self.end();
    }

    /// Opens `count` WebSockets at `path`, in as many turns as a reactor would take. Adds their slots to `slots`.
    pub(crate) fn connect(&mut self, path: &str, count: usize, slots: &mut Vec<Slot>) {
        let mut head = upgrade_request(path);
        let before = self.counts().upgrades.value();
        let mut left = count;
        while left > 0 {
            let from = slots.len();
            self.accept(left.min(BATCH), slots);
            self.hear(&slots[from..], &mut head);
            left -= slots.len() - from;
        }
        assert_eq!(self.counts().upgrades.value() - before, count as u64, "each upgrade was granted");
    }

    /// Each of `slots` says `bytes`, some in each turn.
    pub(crate) fn hear(&mut self, slots: &[Slot], bytes: &mut [u8]) {
        for batch in slots.chunks(BATCH) {
            self.turn(|shard, now| batch.iter().for_each(|slot| shard.receive(*slot, bytes, now)));
        }
    }

    /// Each of `slots` is gone, some in each turn.
    pub(crate) fn disconnect(&mut self, slots: &[Slot]) {
        for batch in slots.chunks(BATCH) {
            self.turn(|shard, _| batch.iter().for_each(|slot| shard.hang_up(*slot)));
        }
    }

    /// What the shard has counted.
    pub(crate) fn counts(&self) -> &ShardStats {
        &self.stats.shards[0]
    }

    fn begin(&mut self, read: impl FnOnce(&mut Shard, Time)) {
        self.shard.begin_turn(self.now);
        read(&mut self.shard, self.now);
        self.shard.deliver(self.now);
        self.shard.advance(self.now);
    }

    fn end(&mut self) {
        self.bus.ring(self.shard.take_bells());
        while let Some(slot) = self.shard.next_dirty() {
            loop {
                let offered = match self.shard.gather(slot) {
                    Gathered::Nothing => break,
                    Gathered::One(bytes) => black_box(bytes).len(),
                    Gathered::Many(slices) => black_box(slices).iter().map(|slice| slice.len()).sum(),
                };
                if !self.shard.sent(slot, offered, offered) {
                    break;
                }
            }
        }
        while let Some(farewell) = self.shard.next_farewell() {
            match farewell {
                Farewell::EndStream(slot) => self.shard.hang_up(slot),
                Farewell::Close(slot) => self.shard.release(slot),
                Farewell::HandOver { .. } => unreachable!("there is one shard"),
            }
        }
        black_box(self.shard.end_turn(self.now));
    }
}

const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";

/// A token of a user, with the claims that are usual, by HS256.
pub(crate) fn token(user: &str) -> String {
    let claims = format!(
        r#"{{"iss":"https://id.example.com/","sub":"{user}","iat":1800000000,"exp":4000000000,"rooms":["lobby"],"name":"Somebody"}}"#
    );
    let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let signed = format!("{}.{}", part(r#"{"alg":"HS256","typ":"JWT","kid":"2026-11"}"#), part(&claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
}

/// The request of a client that is a library: what the protocol asks for and no more.
pub(crate) fn upgrade_request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:7070\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

/// A whole message as a client sends it, in one frame. Its mask is zero, so that the same bytes can be handed in again and again:
/// taking that mask off costs what any other does, and leaves them as they are.
pub(crate) fn client_frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { opcode, mask: Some([0; 4]), ..FrameHeader::default() };
    let mut frame = Vec::new();
    header.format(payload.len() as u64, &mut frame).expect("writing to memory does not fail");
    frame.extend_from_slice(payload);
    frame
}
