//! Rooms with policies in a world of their own: several shards on one thread, with a clock that is made up, whose turns come late and in any order.
//! Clients of the native protocol come, join, publish, leave and vanish, and take all that is written. What each of them has heard is held against what
//! was published: nothing is lost, doubled or out of order, nobody hears itself, and everybody knows the last state.

use super::plan::{Plan, Random, mix};
use crate::auth::{Gate, Rules};
use crate::bus::Bus;
use crate::bus::mailbox::Mail;
use crate::permissions::RoomPattern;
use crate::policy::field::FieldPath;
use crate::policy::{Batch, Changes, Conflate, Dedupe, Merge, Policies, Policy, Settings};
use crate::shard::turn::Gathered;
use crate::shard::{self, Farewell, OutboxPolicy, Shard};
use crate::stats::Stats;
use crate::time::Time;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What may happen to events of each of these rooms, by the first letter of its name.
const ROOMS: [&str; 6] = ["batch", "conflate", "dedupe", "merge", "state", "plain"];
const CLIENTS_MAX: usize = 24;

struct World {
    random: Random,
    now: Time,
    bus: Arc<Bus>,
    shards: Vec<Shard>,
    stopped: Vec<bool>,
    clients: Vec<Client>,
    /// Everything that was published to a room, in the order in which its publisher's shard read it.
    published: Vec<Published>,
    window_ms: u64,
    /// True when one event is a batch, too.
    lone: bool,
}

struct Published {
    room: &'static str,
    event: String,
    data: Value,
    by: usize,
    at: Time,
    /// True when somebody was in the room.
    was_heard: bool,
}

struct Client {
    shard: usize,
    slot: u32,
    /// Bytes that have come and are no whole frame.
    bytes: Vec<u8>,
    /// Bytes that the shard has not read.
    unread: Vec<u8>,
    /// True until it or the server has ended it.
    open: bool,
    closed: bool,
    /// For each room that it is in, how much had been published when it asked.
    rooms: HashMap<&'static str, usize>,
    /// What it has heard: room, event, data, when.
    heard: Vec<(String, String, Value, Time)>,
    /// What it makes of the state.
    state: Map<String, Value>,
}

fn policies(random: &mut Random, window_ms: u64) -> Policies {
    let of = |name: &str| Policy {
        window_ms: window_ms as u32,
        ..Policy::new(RoomPattern::parse(&format!("{name}*")).expect("a pattern"))
    };
    let field = |name| FieldPath::parse(name).expect("a path");
    let most = 2 + random.up_to(8);
    let lone = random.chance(30);
    let batch = || Some(Batch { most, event: "batch".into(), data_only: false, lone });
    let conflate = || Some(Conflate { field: field("key"), events: None });
    let merge = Merge {
        event: "merged".into(),
        fields: Box::new([("a".into(), "fieldA".into()), ("b".into(), "fieldB".into())]),
    };
    let changes = Changes { event: "state".into(), always: Box::new(["key".into()]) };
    let is_conflated = random.chance(50);
    let waiting_bytes_max = if random.chance(20) { 4_000 } else { 64 << 20 };
    Policies::new(
        vec![
            Policy { batch: batch(), urgent: Box::new(["urgent".into()]), ..of("batch") },
            Policy {
                conflate: conflate(),
                batch: if random.chance(50) { batch() } else { None },
                ..of("conflate")
            },
            Policy { dedupe: Some(Dedupe { field: field("id"), window_ms: 1 << 30 }), ..of("dedupe") },
            Policy { merge: Some(merge), ..of("merge") },
            Policy {
                changes: Some(changes),
                conflate: if is_conflated { conflate() } else { None },
                batch: if random.chance(50) { batch() } else { None },
                ..of("state")
            },
        ],
        Settings { waiting_bytes_max, ..Settings::default() },
    )
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(mix(seed ^ 0x706f_6c69_6379));
        let plan = Plan::draw(seed & !15, &mut random);
        let shards = 1 + random.up_to(3);
        let window_ms = 10 + random.below(200);
        let policies = Arc::new(policies(&mut random, window_ms));
        let lone = policies.iter().any(|policy| policy.batch.as_ref().is_some_and(|batch| batch.lone));
        let bus = Arc::new(Bus::new(shards, 1_000).with_policies(policies));
        let (gate, stats) = (
            Arc::new(Gate::new(Rules { connections_max: 1_000, sockets_max: 1_000, ..Rules::default() })),
            Arc::new(Stats::new(shards)),
        );
        let settings = shard::Settings {
            accepts_per_second_max: 0,
            message_bytes_max: 70_000,
            messages_per_frame_max: 1_024,
            messages_per_second_max: 0,
            rooms_per_connection_max: 100,
            ping_interval_ms: 1 << 30,
            outbox_bytes_max: 1 << 30,
            outbox_total_bytes_max: 1 << 30,
            outbox_policy: OutboxPolicy::Disconnect,
            ..plan.settings
        };
        let now = Time::from_ms(1_000);
        let new = |id| Shard::new(id as u8, settings.clone(), bus.clone(), gate.clone(), stats.clone(), now);
        World {
            shards: (0..shards).map(new).collect(),
            stopped: vec![false; shards],
            random,
            now,
            bus,
            clients: Vec::new(),
            published: Vec::new(),
            window_ms,
            lone,
        }
    }

    fn connect(&mut self) {
        let shard = self.random.up_to(self.shards.len() - 1);
        let mut head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
        self.turn(shard, |world, shard| {
            let now = world.now;
            let slot = world.shards[shard].accept(IpAddr::V4(Ipv4Addr::LOCALHOST), now);
            world.shards[shard].receive(slot, &mut head, now);
            world.clients.push(Client {
                shard,
                slot,
                bytes: Vec::new(),
                unread: Vec::new(),
                open: true,
                closed: false,
                rooms: HashMap::new(),
                heard: Vec::new(),
                state: Map::new(),
            });
        });
    }

    fn say(&mut self, client: usize, message: &Value) {
        let text = message.to_string();
        let unread = &mut self.clients[client].unread;
        unread.push(0x81);
        match text.len() {
            length @ ..126 => unread.push(0x80 | length as u8),
            length => {
                unread.push(0x80 | 126);
                unread.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        unread.extend_from_slice(&[0; 4]);
        unread.extend_from_slice(text.as_bytes());
    }

    /// One turn of a shard, in which `act` is done as well.
    fn turn<R>(&mut self, shard: usize, act: impl FnOnce(&mut World, usize) -> R) -> R {
        let now = self.now;
        self.bus.mailbox(shard as u8).wake_up();
        self.shards[shard].begin_turn(now);
        for client in &mut self.clients {
            if client.shard == shard && !client.closed && !client.unread.is_empty() {
                let mut bytes = std::mem::take(&mut client.unread);
                self.shards[shard].receive(client.slot, &mut bytes, now);
            }
        }
        let done = act(self, shard);
        let it = &mut self.shards[shard];
        it.deliver(now);
        it.advance(now);
        it.take_bells();
        while let Some(slot) = it.next_dirty() {
            loop {
                let bytes = match it.gather(slot) {
                    Gathered::Nothing => break,
                    Gathered::One(bytes) => bytes.to_vec(),
                    Gathered::Many(pieces) => pieces.iter().flat_map(|piece| piece.to_vec()).collect(),
                };
                let client =
                    self.clients.iter_mut().find(|it| (it.shard, it.slot, it.closed) == (shard, slot, false));
                client.expect("whose it is").bytes.extend_from_slice(&bytes);
                if !it.sent(slot, bytes.len(), bytes.len()) {
                    break;
                }
            }
        }
        while let Some(farewell) = it.next_farewell() {
            let slot = match farewell {
                Farewell::Close(slot) => slot,
                // The peer ends its side, too.
                Farewell::EndStream(slot) => {
                    it.hang_up(slot);
                    continue;
                }
                Farewell::HandOver { .. } => panic!("nobody asks for a session"),
            };
            it.release(slot);
            for client in self.clients.iter_mut().filter(|it| (it.shard, it.slot) == (shard, slot)) {
                client.closed = true;
            }
        }
        it.end_turn(now);
        self.stopped[shard] = it.is_drained();
        self.hear();
        done
    }

    /// Reads what has come.
    fn hear(&mut self) {
        for number in 0..self.clients.len() {
            let bytes = &mut self.clients[number].bytes;
            if bytes.starts_with(b"HTTP") {
                assert!(bytes.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(bytes));
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole answer");
                bytes.drain(..end + 4);
            }
            while let Some((opcode, text)) = next_frame(&mut self.clients[number].bytes) {
                match opcode {
                    1 => {
                        let message: Value = serde_json::from_str(&text).expect("JSON");
                        let messages = match message["type"].as_str() {
                            Some("batch") => {
                                let messages = message["messages"].as_array().expect("a list").clone();
                                assert!(messages.len() >= 2 || self.lone, "a lone event is no batch");
                                messages
                            }
                            _ => {
                                let is_batching =
                                    message["room"].as_str().is_some_and(|it| it.starts_with("batch"));
                                assert!(
                                    !(self.lone && is_batching && message["type"] == "event"),
                                    "no batch: {message}"
                                );
                                vec![message]
                            }
                        };
                        messages.iter().for_each(|message| self.hear_message(number, message));
                    }
                    8 => {
                        self.clients[number].open = false;
                        // A close is answered.
                        self.clients[number].unread.extend_from_slice(&[0x88, 0x80, 0, 0, 0, 0]);
                    }
                    other => panic!("opcode {other}"),
                }
            }
        }
    }

    fn hear_message(&mut self, number: usize, message: &Value) {
        let now = self.now;
        let client = &mut self.clients[number];
        match message["type"].as_str() {
            Some("event") => {
                let text = |name: &str| message[name].as_str().expect("a text").to_owned();
                let (room, event, data) = (text("room"), text("event"), message["data"].clone());
                if event == "state" {
                    apply(&mut client.state, &data);
                }
                if event == "merged" {
                    let fields = data.as_object().expect("an object");
                    // In the order of what was published: names of fields would be in any.
                    let mut parts: Vec<_> = fields.iter().collect();
                    parts.sort_by_key(|(_, data)| data["n"].as_u64());
                    for (field, data) in parts {
                        let event = if field == "fieldA" { "a" } else { "b" };
                        client.heard.push((room.clone(), event.to_owned(), data.clone(), now));
                    }
                } else {
                    client.heard.push((room, event, data, now));
                }
            }
            Some("ack" | "disconnect") => {}
            _ => panic!("{message}"),
        }
    }

    fn step(&mut self) {
        let open: Vec<usize> = (0..self.clients.len()).filter(|client| self.clients[*client].open).collect();
        match self.random.below(100) {
            0..35 => {
                let shard = self.random.up_to(self.shards.len() - 1);
                self.turn(shard, |_, _| {});
            }
            35..50 => self.now = self.now.plus_ms(self.random.below(30)),
            50..55 if self.clients.len() < CLIENTS_MAX => self.connect(),
            55..65 if !open.is_empty() => {
                let client = *self.random.pick(&open);
                let room = *self.random.pick(&ROOMS);
                if self.clients[client].rooms.contains_key(room) {
                    return;
                }
                let ask = json!({"type": "join", "rooms": [room], "id": 1});
                self.say(client, &ask);
                let shard = self.clients[client].shard;
                self.turn(shard, |_, _| {});
                let published = self.published.len();
                self.clients[client].rooms.insert(room, published);
            }
            65..67 if open.len() > 1 => {
                // It vanishes, and what it has published stays.
                let client = *self.random.pick(&open);
                let shard = self.clients[client].shard;
                self.turn(shard, |world, shard| {
                    let slot = world.clients[client].slot;
                    world.shards[shard].hang_up(slot);
                });
                self.clients[client].open = false;
            }
            _ if !open.is_empty() => {
                let by = *self.random.pick(&open);
                let room = *self.random.pick(&ROOMS);
                let event = match room {
                    "state" if self.random.chance(90) => "state",
                    "batch" => *self.random.pick(&["a", "b", "urgent"]),
                    _ => *self.random.pick(&["a", "b", "c"]),
                };
                let n = self.published.len();
                let mut data = json!({"n": n, "key": self.random.below(3), "id": self.random.below(200)});
                if event == "state" {
                    data = json!({"key": 1});
                    for name in ["a", "b", "c"] {
                        match self.random.below(4) {
                            0 => data[name] = json!(self.random.below(3)),
                            1 => {
                                data[name] =
                                    json!({"x": self.random.below(2), "y": {"z": self.random.below(2)}})
                            }
                            2 => data[name] = Value::Null,
                            _ => {}
                        }
                    }
                }
                let message = json!({"type": "publish", "room": room, "event": event, "data": data});
                self.say(by, &message);
                let shard = self.clients[by].shard;
                // Read at once, so that the order of publications is known.
                self.turn(shard, |_, _| {});
                let (at, was_heard) = (self.now, self.bus.find(room).is_some());
                self.published.push(Published { room, event: event.to_owned(), data, by, at, was_heard });
            }
            _ => {}
        }
    }

    /// Turns until nobody has anything to do at this time.
    fn settle(&mut self) {
        for _ in 0..200 {
            for shard in 0..self.shards.len() {
                self.turn(shard, |_, _| {});
            }
            let has_unread = self.clients.iter().any(|client| !client.closed && !client.unread.is_empty());
            if !has_unread && self.shards.iter().all(|shard| !shard.has_mail()) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check(&self, seed: u64) {
        for (number, client) in self.clients.iter().enumerate() {
            for (room, since) in &client.rooms {
                self.check_member(seed, number, client, room, *since);
            }
        }
    }

    fn check_member(&self, seed: u64, number: usize, client: &Client, room: &str, since: usize) {
        let heard: Vec<_> = client.heard.iter().filter(|(of, ..)| of == room).collect();
        let n_of = |data: &Value| data["n"].as_u64().expect("a number") as usize;
        let of_room = || self.published.iter().enumerate().filter(move |(_, it)| it.room == room);
        if room == "state" {
            if client.open {
                let mut expected = Map::new();
                if let Some((_, last)) = of_room().rfind(|(_, it)| it.event == "state") {
                    apply(&mut expected, &last.data);
                }
                assert_eq!(client.state, expected, "seed {seed}: client {number} knows the state");
            }
            return;
        }
        let mut numbers = HashSet::new();
        let mut last = None;
        for (_, event, data, at) in &heard {
            let n = n_of(data);
            let published = &self.published[n];
            assert_eq!((&published.event, &published.data), (event, data), "seed {seed}");
            assert!(published.by != number, "seed {seed}: client {number} hears itself");
            assert!(numbers.insert(n), "seed {seed}: client {number} hears {n} twice");
            assert!(last.is_none_or(|last| last < n), "seed {seed}: client {number} hears {n} out of order");
            assert!(*at >= published.at);
            last = Some(n);
        }
        if !client.open {
            return;
        }
        let mut ids = HashSet::new();
        for (n, published) in of_room() {
            let id = (published.event.clone(), published.data["id"].to_string());
            let is_new = room != "dedupe" || !published.was_heard || ids.insert(id);
            if n < since || published.by == number || !is_new {
                assert!(is_new || !numbers.contains(&n), "seed {seed}: {n} came again");
                continue;
            }
            // The home may have heard of both late, and so of both at once; of the last none is left out.
            let key = |it: &Published| (it.event.clone(), it.data["key"].to_string());
            let is_replaced =
                room == "conflate" && of_room().any(|(other, it)| other > n && key(it) == key(published));
            assert!(
                numbers.contains(&n) || is_replaced,
                "seed {seed}: client {number} does not hear {n} of {room}"
            );
        }
    }
}

fn next_frame(bytes: &mut Vec<u8>) -> Option<(u8, String)> {
    let (start, length) = match *bytes.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        length => (2, usize::from(length)),
    };
    let payload = bytes.get(start..start + length)?;
    let text = String::from_utf8_lossy(payload).into_owned();
    let opcode = bytes[0] & 0xf;
    bytes.drain(..start + length);
    Some((opcode, text))
}

fn apply(object: &mut Map<String, Value>, patch: &Value) {
    for (name, value) in patch.as_object().expect("an object") {
        match value {
            Value::Null => _ = object.remove(name),
            Value::Object(_) => {
                let own = object.entry(name.clone()).or_insert_with(|| json!({}));
                if !own.is_object() {
                    *own = json!({});
                }
                apply(own.as_object_mut().expect("an object"), value);
            }
            value => _ = object.insert(name.clone(), value.clone()),
        }
    }
}

#[test]
fn rooms_with_policies_lose_nothing_that_counts() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match (number("THRONG_SIM_SEED"), number("THRONG_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(100),
    };
    let mut heard = 0;
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        let drains = world.random.chance(50);
        if drains {
            // In the middle of it: what waits comes before the closes.
            let spread_ms = if world.random.chance(50) { 0 } else { 300 };
            for shard in 0..world.shards.len() {
                world.bus.post(shard as u8, Mail::Drain { spread_ms, away_ms: 0, timeout_ms: 60_000 });
                if world.random.chance(50) {
                    world.turn(shard, |_, _| {});
                }
            }
            let open: Vec<bool> = world.clients.iter().map(|client| client.open).collect();
            for _ in 0..300 {
                world.now = world.now.plus_ms(world.random.below(5));
                let shard = world.random.up_to(world.shards.len() - 1);
                if !world.stopped[shard] {
                    world.turn(shard, |_, _| {});
                }
            }
            world.now = world.now.plus_ms(10_000);
            world.settle();
            assert!(world.clients.iter().all(|client| !client.open), "seed {seed}: all are closed");
            assert!(world.shards.iter().all(Shard::is_drained), "seed {seed}");
            // They were open when all was published.
            world.clients.iter_mut().zip(open).for_each(|(client, open)| client.open = open);
        } else {
            for _ in 0..3 {
                world.settle();
                world.now = world.now.plus_ms(world.window_ms + 50);
            }
            world.settle();
        }
        world.check(seed);
        heard += world.clients.iter().map(|client| client.heard.len()).sum::<usize>();
    }
    assert!(heard > 1_000, "{heard}");
}
