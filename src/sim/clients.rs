//! The clients: who they are, what they say, and how they react to what they are told.

use super::plan::Random;
use super::pollers::Purpose;
use super::sessions::{Poll, Target};
use super::special::Special;
use super::talk::{Talk, Word};
use super::{Reaction, World, take_front};
use crate::dialect::Dialect;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use tungstenite::protocol::frame::{FrameHeader, coding};

/// What a client will do sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Temper {
    /// Reads and answers, and takes as much as comes.
    Well,
    /// Stops reading for a while, and goes on.
    Slow,
    /// Stops reading for good.
    Stalled,
    /// Stops answering.
    Silent,
    /// Breaks the rules.
    Hostile,
    /// Leaves, with or without a word.
    Fickle,
}

/// One client, for one connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) temper: Temper,
    pub(super) reads: bool,
    pub(super) answers: bool,
    /// True when it has said its last word.
    pub(super) sealed: bool,
    /// True when its stream ends after what it has queued.
    pub(super) ends: bool,
    /// True when it waits for the upgrade to be granted before it goes on.
    pub(super) waits: bool,
    /// What it believes to speak.
    pub(super) speaks: Option<Dialect>,
    /// What it has composed and not sent.
    pub(super) outgoing: VecDeque<u8>,
    /// Bytes composed so far.
    pub(super) composed: u64,
    pub(super) items: VecDeque<Item>,
    /// The trigger of the last item that was handed to the shard.
    pub(super) carried_out: u64,
    last_id: u64,
    /// What it knows of its session, when it speaks Socket.IO on a WebSocket.
    pub(super) talk: Talk,
    /// True when it means to speak Socket.IO.
    pub(super) is_socketio: bool,
    /// The client that polls, whose connection it is.
    pub(super) poller: Option<usize>,
    /// True when it has come here by polling.
    pub(super) has_moved: bool,
    /// True when the kernel always takes what its space allows.
    pub(super) is_steady: bool,
    /// What the requests are for that it has not had answers to.
    pub(super) asked: VecDeque<Purpose>,
    /// The session that a request is for whose head the shard has, and not its body.
    pub(super) in_body: Option<Option<Target>>,
}

/// Something that a client says, and where in its stream the server must have understood it.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) trigger: u64,
    pub(super) effect: Effect,
}

/// What it means.
#[derive(Debug)]
pub(super) enum Effect {
    Request(Request),
    /// A text frame of native messages.
    Text(Vec<Command>),
    /// A text frame that cannot be split into messages.
    Unsplit(&'static str),
    Binary(Command),
    /// A message on `/echo`.
    Echo {
        binary: bool,
        payload: Vec<u8>,
    },
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    /// What the protocol forbids, with the code it is answered with.
    Violation(u16),
    /// The head of a request for Engine.IO, with the session it names and the length of its body, if there is one.
    Head {
        target: Option<Target>,
        length: Option<usize>,
    },
    /// A packet of a session.
    Word(Word),
    /// The question whether a session may move here.
    Probe,
    /// That it does.
    Move,
}

/// A request head.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) asks: Asks,
    pub(super) keep_alive: bool,
    pub(super) head_only: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Asks {
    Health,
    Ready,
    /// For something that is refused so, for this reason.
    Refused(u16, &'static str),
    Upgrade {
        dialect: Dialect,
        subprotocol: bool,
        origin: Option<&'static str>,
    },
    Poll(Poll),
}

/// A native message.
#[derive(Debug)]
pub(super) enum Command {
    Join {
        rooms: Vec<String>,
        id: Option<String>,
    },
    Leave {
        rooms: Vec<String>,
        id: Option<String>,
    },
    Publish {
        event: Rc<Event>,
        echo: bool,
        special: Option<Rc<Special>>,
        id: Option<String>,
    },
    /// How many members a room has.
    Presence {
        room: String,
        id: Option<String>,
    },
    Ping {
        id: Option<String>,
    },
    /// One that does nothing, and is not answered.
    Nothing {
        id: Option<String>,
    },
    /// One that is answered with this error.
    Wrong {
        code: &'static str,
        id: Option<String>,
    },
}

/// An event. Its name is used once.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) room: String,
    pub(super) name: String,
    pub(super) payload: Vec<u8>,
    pub(super) binary: bool,
}

impl Event {
    /// What the room is called by those who are in its namespace.
    pub(super) fn room_in_namespace(&self) -> &str {
        self.room.split_once('\0').map_or(&self.room, |(_, room)| room)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {:?} with {} bytes", self.name, self.room, self.payload.len())
    }
}

/// The example of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

impl Client {
    pub(super) fn draw(random: &mut Random) -> Client {
        let temper = match random.below(100) {
            0..45 => Temper::Well,
            45..60 => Temper::Slow,
            60..67 => Temper::Stalled,
            67..75 => Temper::Silent,
            75..88 => Temper::Hostile,
            _ => Temper::Fickle,
        };
        Client { waits: random.chance(50), ..Client::new(temper) }
    }

    pub(super) fn new(temper: Temper) -> Client {
        Client {
            temper,
            reads: true,
            answers: true,
            sealed: false,
            ends: false,
            waits: false,
            speaks: None,
            outgoing: VecDeque::new(),
            composed: 0,
            items: VecDeque::new(),
            carried_out: 0,
            last_id: 0,
            talk: Talk::default(),
            is_socketio: false,
            poller: None,
            has_moved: false,
            is_steady: false,
            asked: VecDeque::new(),
            in_body: None,
        }
    }

    /// Queues bytes that mean nothing yet.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        self.composed += bytes.len() as u64;
    }

    /// Queues the bytes that complete something.
    pub(super) fn say(&mut self, bytes: &[u8], effect: Effect) {
        self.queue(bytes);
        self.items.push_back(Item { trigger: self.composed, effect });
    }
}

impl World {
    /// Moves at most `count` bytes of what a client has composed into the socket. True when something moved.
    pub(super) fn transmit_up_to(&mut self, number: usize, count: usize) -> bool {
        let (client, link) = (&mut self.clients[number], &mut self.links[number]);
        if link.closed || link.reset || link.client_ended {
            return false;
        }
        let count = client.outgoing.len().min(count);
        link.to_server.extend(&take_front(&mut client.outgoing, count));
        link.client_ended = client.ends && client.outgoing.is_empty();
        link.readable |= count > 0 || link.client_ended;
        count > 0 || link.client_ended
    }

    pub(super) fn transmit_some(&mut self, number: usize) {
        let queued = self.clients[number].outgoing.len();
        let count = match self.random.below(4) {
            _ if self.plan.heavy => queued,
            0 | 1 => queued,
            2 => self.random.up_to(queued),
            _ => self.random.up_to(queued.min(12)),
        };
        self.transmit_up_to(number, count);
    }

    /// A client reads, and reacts to what it has read. True when it did either.
    pub(super) fn read_up_to(&mut self, number: usize, count: usize) -> bool {
        let link = &mut self.links[number];
        if link.reset {
            return false;
        }
        let count = link.to_client.len().min(count);
        link.to_client.drain(..count);
        link.read += count as u64;
        if link.wants_space && count > 0 && link.capacity - link.to_client.len() > link.capacity / 3 {
            link.wants_space = false;
            link.writable = true;
        }
        let mut is_busy = count > 0;
        let read = link.read;
        while let Some((_, reaction)) = self.links[number].reactions.pop_front_if(|(end, _)| *end <= read) {
            is_busy = true;
            self.react(number, reaction);
        }
        let (client, link) = (&mut self.clients[number], &self.links[number]);
        if link.server_ended && link.to_client.is_empty() && client.answers && !client.ends {
            client.ends = true;
            client.sealed = true;
            is_busy = true;
        }
        is_busy
    }

    pub(super) fn read_some(&mut self, number: usize) {
        if !self.clients[number].reads {
            return;
        }
        let there = self.links[number].to_client.len();
        let count = match self.clients[number].temper {
            Temper::Well => there,
            _ if self.random.chance(40) => there,
            _ => self.random.up_to(there),
        };
        self.read_up_to(number, count);
    }

    fn react(&mut self, number: usize, reaction: Reaction) {
        if self.clients[number].poller.is_some() {
            return self.react_to(number, reaction);
        }
        match reaction {
            Reaction::Packet(_) => self.react_to(number, reaction),
            Reaction::Speak => self.clients[number].waits = false,
            Reaction::Pong(payload) if self.clients[number].answers && !self.clients[number].ends => {
                let frame = self.frame(true, 10, &payload);
                if !self.clients[number].sealed {
                    self.clients[number].say(&frame, Effect::Pong);
                }
            }
            Reaction::Close(code) if self.clients[number].answers && !self.clients[number].sealed => {
                self.say_close_with(number, code);
            }
            _ => {}
        }
    }

    /// Something drastic, as the temper of the client has it.
    pub(super) fn upset(&mut self, number: usize) {
        if let Some(at) = self.clients[number].poller {
            return self.upset_poller(at);
        }
        if self.clients[number].sealed {
            return;
        }
        self.note(|| format!("{number} does what its temper has it do"));
        match self.clients[number].temper {
            Temper::Well => {
                if self.random.chance(20) {
                    self.say_close(number);
                }
            }
            Temper::Slow => self.clients[number].reads ^= true,
            Temper::Stalled => self.clients[number].reads = false,
            Temper::Silent => {
                self.clients[number].answers = false;
                self.clients[number].sealed = true;
            }
            Temper::Hostile => self.break_a_rule(number),
            Temper::Fickle => match self.random.below(4) {
                0 => self.say_close(number),
                1 => self.end_stream(number),
                2 => {
                    // In the middle of something.
                    self.compose(number);
                    let count = self.random.up_to(self.clients[number].outgoing.len());
                    self.clients[number].outgoing.truncate(count);
                    self.end_stream(number);
                }
                _ => self.vanish(number),
            },
        }
    }

    pub(super) fn say_close(&mut self, number: usize) {
        let code = *self.random.pick(&[None, Some(1000), Some(1001), Some(3000), Some(4999)]);
        self.say_close_with(number, code);
    }

    fn say_close_with(&mut self, number: usize, code: Option<u16>) {
        if self.clients[number].speaks.is_none() || self.clients[number].sealed {
            return self.end_stream(number);
        }
        let mut payload = code.map_or(Vec::new(), |code| code.to_be_bytes().to_vec());
        if code.is_some() && self.random.chance(50) {
            payload.extend_from_slice("tschüß".as_bytes());
        }
        let frame = self.frame(true, 8, &payload);
        self.clients[number].say(&frame, Effect::Close(code));
        self.clients[number].sealed = true;
    }

    pub(super) fn end_stream(&mut self, number: usize) {
        self.clients[number].ends = true;
        self.clients[number].sealed = true;
    }

    pub(super) fn vanish(&mut self, number: usize) {
        let link = &mut self.links[number];
        link.reset = true;
        (link.readable, link.writable) = (true, true);
        self.clients[number].sealed = true;
        self.note(|| format!("{number} vanishes"));
    }

    /// A frame of a client, by another implementation than ours.
    pub(super) fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        // What is large is not masked, to save time.
        let mask = if payload.len() > 100_000 { [0; 4] } else { (self.random.next() as u32).to_le_bytes() };
        let mut bytes = header(fin, opcode, Some(mask), payload.len() as u64);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        if mask != [0; 4] {
            bytes[start..].iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
        }
        bytes
    }

    /// The client composes what comes next.
    pub(super) fn compose(&mut self, number: usize) {
        let client = &self.clients[number];
        if let Some(at) = client.poller {
            return self.compose_poller(at);
        }
        // One who is not heard does not talk for ever.
        if client.sealed || client.outgoing.len() > if self.plan.heavy { 4_000_000 } else { 100_000 } {
            return;
        }
        match client.speaks {
            None if client.is_socketio => self.compose_socketio_request(number),
            None => self.compose_request(number),
            Some(_) if client.waits => {}
            Some(Dialect::Native) => self.compose_native(number),
            Some(Dialect::Echo) => self.compose_echo(number),
            Some(Dialect::SocketIo) => self.compose_socketio(number),
            Some(Dialect::Plain) => self.compose_plain(number),
            Some(Dialect::EngineIo) => unreachable!("no client speaks it"),
        }
    }

    fn compose_request(&mut self, number: usize) {
        let echo = self.plan.settings.paths.echo;
        let sep = *self.random.pick(&["", "X-Filler: \t some text \r\n", "User-Agent: \u{e9}\r\n"]);
        let upgrade =
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        if self.random.chance(80) {
            let kinds = if self.plan.settings.paths.plain.is_some() { 7 } else { 5 };
            let (path, dialect) = match self.random.below(kinds) {
                0 if echo => ("/echo", Dialect::Echo),
                1 => ("/ws?token=x&y=/echo", Dialect::Native),
                5.. => ("/app", Dialect::Plain),
                _ => ("/ws", Dialect::Native),
            };
            let subprotocol = self.random.chance(30);
            let origin = *self.random.pick(&[
                None,
                None,
                Some("https://a.good.example"),
                Some("https://evil.example"),
            ]);
            let page = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
            let offer = if subprotocol { "Sec-WebSocket-Protocol: other, throng.v1\r\n" } else { "" };
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: sim\r\n{sep}{upgrade}{page}{offer}Sec-WebSocket-Key: {KEY}\r\n\r\n"
            );
            let asks = Asks::Upgrade { dialect, subprotocol, origin };
            let request = Request { asks, keep_alive: true, head_only: false };
            self.clients[number].say(head.as_bytes(), Effect::Request(request));
            self.clients[number].speaks = Some(dialect);
            return;
        }
        let wrong_version = upgrade.replace("13", "8");
        let (start, lines, asks, keep_alive) = match self.random.below(14) {
            0 | 1 => ("GET /health HTTP/1.1", "", Asks::Health, true),
            2 => ("HEAD /health HTTP/1.1", "", Asks::Health, true),
            3 => ("GET /ready HTTP/1.1", "", Asks::Ready, true),
            4 => ("GET /nothing HTTP/1.1", "", Asks::Refused(404, "not_found"), true),
            5 => ("GET /ws HTTP/1.1", "", Asks::Refused(426, "upgrade_required"), true),
            6 => ("HEAD /ws HTTP/1.1", upgrade, Asks::Refused(400, "malformed"), true),
            7 => ("GET /ws HTTP/1.1", wrong_version.as_str(), Asks::Refused(426, "version"), true),
            8 => ("DELETE /health HTTP/1.1", "", Asks::Refused(405, "method"), true),
            9 if !echo => ("GET /echo HTTP/1.1", upgrade, Asks::Refused(404, "not_found"), true),
            10 => ("GET /health HTTP/1.1", "Connection: close\r\n", Asks::Health, false),
            11 => ("POST /ws HTTP/1.1", "Content-Length: 3\r\n", Asks::Refused(405, "method"), false),
            12 => ("GET /health HTTP/1.1", "Host: two\r\n", Asks::Refused(400, "malformed"), false),
            _ => ("GET /health HTTP/1.0", "", Asks::Health, false),
        };
        let head_only = start.starts_with("HEAD");
        let head = format!("{start}\r\nHost: sim\r\n{sep}{lines}\r\n");
        let client = &mut self.clients[number];
        client.say(head.as_bytes(), Effect::Request(Request { asks, keep_alive, head_only }));
        if !keep_alive {
            client.queue(b"abc");
            client.sealed = true;
        }
    }

    fn compose_echo(&mut self, number: usize) {
        if self.random.chance(20) {
            return self.compose_control(number);
        }
        let binary = self.random.chance(50);
        let length = self.payload_length();
        let payload = if binary { self.bytes(length) } else { self.text(length.min(3_000)).into_bytes() };
        let effect = Effect::Echo { binary, payload: payload.clone() };
        self.say_message(number, if binary { 2 } else { 1 }, &payload, effect);
    }

    pub(super) fn compose_control(&mut self, number: usize) {
        let length = *self.random.pick(&[0, 1, 125]);
        let payload = self.bytes(length);
        if self.random.chance(60) {
            let frame = self.frame(true, 9, &payload);
            self.clients[number].say(&frame, Effect::Ping(payload));
        } else {
            let frame = self.frame(true, 10, &payload);
            self.clients[number].say(&frame, Effect::Pong);
        }
    }

    fn compose_native(&mut self, number: usize) {
        // Most begin with a room or two.
        let kind = match self.clients[number].last_id {
            0 => 99,
            _ if self.plan.heavy => self.random.below(40),
            _ => self.random.below(100),
        };
        match kind {
            0..8 => self.compose_control(number),
            8..24 => self.compose_binary(number),
            24..34 => {
                let count = self.random.up_to(4);
                let commands = (0..count).map(|_| self.command(number)).collect();
                self.say_list(number, commands);
            }
            34 if self.plan.settings.message_bytes_max > 50_000 => self.compose_burst(number),
            34..36 => {
                let text = *self.random.pick(&[r#"[{"type":"ping","id":1},"#, "[}", "[1 2]"]);
                self.say_message(number, 1, text.as_bytes(), Effect::Unsplit("bad_json"));
            }
            36..38 => {
                let text = *self.random.pick(&["", "{", "{\"type\":\"ping\"} x", "ping", "{'a':1}"]);
                let command = Command::Wrong { code: "bad_json", id: None };
                self.say_message(number, 1, text.as_bytes(), Effect::Text(vec![command]));
            }
            _ => {
                let (text, command) = self.command(number);
                self.say_message(number, 1, text.as_bytes(), Effect::Text(vec![command]));
            }
        }
    }

    /// Many small events at once, to one room and another in turn.
    fn compose_burst(&mut self, number: usize) {
        let count = self.random.up_to(300);
        let (messages, commands): (Vec<String>, Vec<Command>) = (0..count)
            .map(|_| {
                let event = self.event(b"null".to_vec(), false);
                let fields = self.publish_fields(&event, false, None);
                let publish = Command::Publish { event, echo: false, special: None, id: None };
                (self.object(fields.into_iter()), publish)
            })
            .unzip();
        let effect = if count > self.plan.settings.messages_per_frame_max {
            Effect::Unsplit("too_many_messages")
        } else {
            Effect::Text(commands)
        };
        self.say_message(number, 1, format!("[{}]", messages.join(",")).as_bytes(), effect);
    }

    /// A native message, as text and as what it means.
    pub(super) fn command(&mut self, number: usize) -> (String, Command) {
        let id = self.id(number);
        let id_field = || id.iter().map(|id| format!(r#""id":{id}"#));
        let kind = if self.clients[number].last_id == 1 { 0 } else { self.random.below(100) };
        match kind {
            0..14 => {
                let rooms = self.rooms();
                let fields = [r#""type":"join""#.to_owned(), format!(r#""rooms":{}"#, quoted(&rooms))];
                (self.object(fields.into_iter().chain(id_field())), Command::Join { rooms, id })
            }
            14..20 => {
                let rooms = self.rooms();
                let fields = [r#""type":"leave""#.to_owned(), format!(r#""rooms":{}"#, quoted(&rooms))];
                (self.object(fields.into_iter().chain(id_field())), Command::Leave { rooms, id })
            }
            20..23 => {
                let room = (*self.random.pick(self.plan.rooms)).to_owned();
                let fields = [r#""type":"presence""#.to_owned(), format!(r#""room":{}"#, quoted(&room))];
                (self.object(fields.into_iter().chain(id_field())), Command::Presence { room, id })
            }
            23..25 => {
                let fields = [r#""type":"ping""#.to_owned()];
                (self.object(fields.into_iter().chain(id_field())), Command::Ping { id })
            }
            25..31 => self.wrong_command(id),
            _ => {
                let (data, echo) = (self.data(), self.random.chance(30));
                let event = self.event(data.clone().unwrap_or("null".to_owned()).into_bytes(), false);
                let data = data.map(|data| format!(r#""data":{data}"#));
                let special = self.special(&event);
                let fields = self.publish_fields(&event, echo, special.as_deref());
                let fields = fields.into_iter().chain(data).chain(id_field());
                (self.object(fields), Command::Publish { event, echo, special, id })
            }
        }
    }

    /// A plain client says something: what is built in, in the fields that the native dialect has, or something that means nothing.
    fn compose_plain(&mut self, number: usize) {
        let begins = self.clients[number].last_id == 0;
        let kind = match begins {
            true => 99,
            false => self.random.below(100),
        };
        match kind {
            0..8 => self.compose_control(number),
            8..12 => {
                let length = self.payload_length();
                let payload = self.bytes(length);
                let wrong = Command::Wrong { code: "bad_message", id: None };
                self.say_message(number, 2, &payload, Effect::Binary(wrong));
            }
            12..24 => {
                let count = 1 + self.random.up_to(3);
                let commands = (0..count).map(|_| self.plain_command(number)).collect();
                self.say_list(number, commands);
            }
            _ => {
                let (text, command) = self.plain_command(number);
                self.say_message(number, 1, text.as_bytes(), Effect::Text(vec![command]));
            }
        }
    }

    fn plain_command(&mut self, number: usize) -> (String, Command) {
        let begins = self.clients[number].last_id == 0;
        match self.random.below(100) {
            0..10 if !begins => {
                let id = self.id(number);
                let id_field = id.iter().map(|id| format!(r#""id":{id}"#));
                let deep = format!(r#""type":"join","x":{}{}"#, "[".repeat(120), "]".repeat(120));
                let wrong = [
                    ("bad_message", r#""type":7"#),
                    ("bad_message", r#""kind":"join""#),
                    ("bad_message", r#""type":"join""#),
                    ("bad_message", r#""type":"leave","rooms":{}"#),
                    ("bad_event", r#""type":"""#),
                    ("bad_event", r#""type":"connect""#),
                    ("bad_event", r#""type":"\u0000""#),
                    ("bad_json", &deep),
                ];
                let (code, field) = *self.random.pick(&wrong);
                let fields: Vec<String> = std::iter::once(field.to_owned()).chain(id_field).collect();
                (self.object(fields.into_iter()), Command::Wrong { code, id })
            }
            10..15 if !begins => {
                let id = self.id(number);
                let fields = [r#""type":"nobody knows it""#.to_owned()].into_iter();
                let id_field = id.iter().map(|id| format!(r#""id":{id}"#));
                let fields: Vec<String> = fields.chain(id_field).collect();
                (self.object(fields.into_iter()), Command::Nothing { id })
            }
            _ => loop {
                let (text, command) = self.command(number);
                let nests_deeper = text.contains(&"[".repeat(120));
                // What has another meaning, or none, in this dialect.
                match &command {
                    Command::Publish { .. } if nests_deeper => {}
                    Command::Join { .. }
                    | Command::Leave { .. }
                    | Command::Publish { .. }
                    | Command::Presence { .. } => return (text, command),
                    Command::Ping { .. } | Command::Nothing { .. } | Command::Wrong { .. } => {}
                }
            },
        }
    }

    fn wrong_command(&mut self, id: Option<String>) -> (String, Command) {
        let long_room = format!(r#""room":"{}""#, "x".repeat(self.plan.settings.room_name_bytes_max + 1));
        let deep_data = format!(r#""data":{}{}"#, "[".repeat(121), "]".repeat(121));
        let wrong: [(&'static str, &[&str]); 12] = [
            ("bad_message", &[r#""type":"join""#, r#""rooms":"a""#]),
            ("bad_message", &[r#""type":"leave""#]),
            ("bad_message", &[r#""type":"publish""#, r#""room":"a""#]),
            ("bad_message", &[r#""type":["join"]"#]),
            ("bad_message", &[r#""rooms":["a"]"#]),
            ("unknown_type", &[r#""type":"dance""#]),
            ("bad_room", &[r#""type":"join""#, r#""rooms":["a",""]"#]),
            ("bad_room", &[r#""type":"leave""#, r#""rooms":["\u0007"]"#]),
            ("bad_room", &[r#""type":"publish""#, &long_room, r#""event":"e""#]),
            ("bad_event", &[r#""type":"publish""#, r#""room":"a""#, r#""event":"""#]),
            ("bad_message", &[r#""type":"publish""#, r#""room":"a""#, r#""event":"e""#, r#""echo":1"#]),
            ("bad_json", &[r#""type":"publish""#, r#""room":"a""#, r#""event":"e""#, &deep_data]),
        ];
        let (code, fields) = *self.random.pick(&wrong);
        let id_field = id.iter().map(|id| format!(r#""id":{id}"#));
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).chain(id_field).collect();
        (self.object(fields.into_iter()), Command::Wrong { code, id })
    }

    fn compose_binary(&mut self, number: usize) {
        let id = self.id(number);
        let id_field = || id.iter().map(|id| format!(r#""id":{id}"#));
        let length = self.payload_length();
        let payload = self.bytes(length);
        let (mut frame, command) = if self.random.chance(80) {
            let echo = self.random.chance(30);
            let event = self.event(payload.clone(), true);
            let special = self.special(&event);
            let fields = self.publish_fields(&event, echo, special.as_deref()).into_iter().chain(id_field());
            (self.object(fields).into_bytes(), Command::Publish { event, echo, special, id })
        } else {
            let wrong: [&[&str]; 4] = [
                &[r#""type":"ping""#],
                &[r#""type":"publish""#, r#""room":"a""#, r#""event":"e""#, r#""data":1"#],
                &[r#""type":"publish""#, r#""room":7"#, r#""event":"e""#],
                &[r#""type":"publish""#, r#""event":"e""#],
            ];
            let fields = self.random.pick(&wrong).iter().map(|field| (*field).to_owned());
            let fields: Vec<String> = fields.chain(id_field()).collect();
            (self.object(fields.into_iter()).into_bytes(), Command::Wrong { code: "bad_message", id })
        };
        frame.push(b'\n');
        frame.extend_from_slice(&payload);
        self.say_message(number, 2, &frame, Effect::Binary(command));
    }

    /// Says several messages in one.
    fn say_list(&mut self, number: usize, list: Vec<(String, Command)>) {
        let (messages, commands): (Vec<String>, Vec<Command>) = list.into_iter().unzip();
        let text = format!("[{}]", messages.join(" ,\n"));
        let effect = if commands.len() > self.plan.settings.messages_per_frame_max {
            Effect::Unsplit("too_many_messages")
        } else {
            Effect::Text(commands)
        };
        self.say_message(number, 1, text.as_bytes(), effect);
    }

    /// Says a message in as many frames as it likes, with control frames between them. What is too large is not said.
    pub(super) fn say_message(&mut self, number: usize, opcode: u8, payload: &[u8], effect: Effect) {
        if payload.len() > self.plan.settings.message_bytes_max {
            return;
        }
        let frames = if self.random.chance(70) {
            1
        } else {
            1 + self.random.up_to(3.min(self.plan.settings.frames_per_message_max as usize - 1))
        };
        let mut cuts: Vec<usize> = (1..frames).map(|_| self.random.up_to(payload.len())).collect();
        cuts.sort_unstable();
        let mut start = 0;
        for (at, cut) in cuts.into_iter().enumerate() {
            let frame = self.frame(false, if at == 0 { opcode } else { 0 }, &payload[start..cut]);
            self.clients[number].queue(&frame);
            start = cut;
            if self.random.chance(30) {
                self.compose_control(number);
            }
        }
        let frame = self.frame(true, if frames == 1 { opcode } else { 0 }, &payload[start..]);
        self.clients[number].say(&frame, effect);
    }

    fn break_a_rule(&mut self, number: usize) {
        if self.clients[number].speaks.is_none() {
            return self.break_a_rule_of_http(number);
        }
        if self.clients[number].speaks == Some(Dialect::SocketIo) && self.random.chance(60) {
            let mut talk = self.clients[number].talk.clone();
            let spoken = self.break_a_rule_of_socketio(&mut talk);
            spoken.into_iter().for_each(|spoken| self.say_packet(number, spoken));
            self.clients[number].sealed = true;
            return;
        }
        let bytes_max = self.plan.settings.message_bytes_max as u64;
        let mask = Some([1, 2, 3, 4]);
        let close = |code: u16, reason: &[u8]| [&code.to_be_bytes(), reason].concat();
        let forbidden = *self.random.pick(&[999, 1005, 1006, 2999]);
        // First what the rule must be seen in, then what comes after.
        let (told, rest, code): (Vec<u8>, Vec<u8>, u16) = match self.random.below(17) {
            0 => (vec![0x80 | 0x40 | 1, 0x80], vec![0; 4], 1002),
            1 => (vec![0x83, 0x85], vec![0; 9], 1002),
            2 => (vec![0x81, 5], b"hello".to_vec(), 1002),
            3 => (vec![0x89, 0x80 | 126], vec![0; 6], 1002),
            4 => (vec![0x09, 0x80], vec![0; 4], 1002),
            5 => (header(true, 0, mask, 3), vec![0; 3], 1002),
            6 => {
                let begun = self.frame(false, 1, b"be");
                self.clients[number].queue(&begun);
                (header(true, 2, mask, 3), vec![0; 3], 1002)
            }
            7 => (vec![0x82, 0x80 | 126, 0, 125], vec![0; 4], 1002),
            8 => (vec![0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0], vec![0; 4], 1002),
            9 => (self.frame(true, 8, &[3]), Vec::new(), 1002),
            10 => (self.frame(true, 8, &close(forbidden, b"")), Vec::new(), 1002),
            11 => (self.frame(true, 8, &close(1000, &[0xff])), Vec::new(), 1007),
            12 => {
                // Seen at the byte, however much of the message is still to come.
                let mut frame = self.frame(true, 1, &[b"abc\xff", &[b'x'; 100][..]].concat());
                let rest = frame.split_off(frame.len() - 100);
                (frame, rest, 1007)
            }
            13 => (self.frame(true, 1, &"é".as_bytes()[..1]), Vec::new(), 1007),
            14 => (header(true, 2, mask, bytes_max + 1), vec![0; 40], 1009),
            15 => {
                let begun = self.frame(false, 2, &[7; 100]);
                self.clients[number].queue(&begun);
                (header(false, 0, mask, bytes_max - 99), vec![0; 40], 1009)
            }
            _ => {
                let frames_max = self.plan.settings.frames_per_message_max;
                if frames_max > 100 {
                    return;
                }
                for at in 0..frames_max {
                    let frame = self.frame(false, if at == 0 { 1 } else { 0 }, b"");
                    self.clients[number].queue(&frame);
                }
                (header(true, 0, mask, 0), Vec::new(), 1009)
            }
        };
        let client = &mut self.clients[number];
        client.say(&told, Effect::Violation(code));
        client.queue(&rest);
        client.sealed = true;
        let length = self.random.up_to(300);
        let garbage = self.bytes(length);
        self.clients[number].queue(&garbage);
    }

    fn break_a_rule_of_http(&mut self, number: usize) {
        let refused = |status, label| {
            Effect::Request(Request {
                asks: Asks::Refused(status, label),
                keep_alive: false,
                head_only: false,
            })
        };
        let client = &mut self.clients[number];
        match self.random.below(3) {
            0 => {
                client.say(b"\x16", refused(400, "malformed"));
                client.queue(b"\x03\x01\x02\x00\x01\x00\x01\xfc");
            }
            1 => client.say(b"GET /ws HTTP/1.1\r\nX: y\r\n\r\n", refused(400, "malformed")),
            _ => {
                let start = b"GET /ws HTTP/1.1\r\nHost: sim\r\nX: ";
                let filler = vec![b'x'; self.plan.settings.head_bytes_max - start.len()];
                client.say(&[&start[..], &filler].concat(), refused(431, "large_head"));
                client.queue(b"and so on");
            }
        }
        client.sealed = true;
    }

    // ------------------------------------------------------------------------------------------------- what they talk of

    pub(super) fn id(&mut self, number: usize) -> Option<String> {
        let last = &mut self.clients[number].last_id;
        *last += 1;
        let id = *last;
        match self.random.below(10) {
            0..4 => None,
            4..8 => Some(id.to_string()),
            8 => Some(format!("{id}.50e1")),
            _ => Some(format!(r#""é\n {id}""#)),
        }
    }

    pub(super) fn rooms(&mut self) -> Vec<String> {
        let count = *self.random.pick(&[1, 1, 1, 2, 3, 0]);
        (0..count).map(|_| (*self.random.pick(self.plan.rooms)).to_owned()).collect()
    }

    pub(super) fn event(&mut self, payload: Vec<u8>, binary: bool) -> Rc<Event> {
        self.events += 1;
        let room = (*self.random.pick(self.plan.rooms)).to_owned();
        Rc::new(Event { room, name: format!("e{}", self.events), payload, binary })
    }

    fn publish_fields(&mut self, event: &Event, echo: bool, special: Option<&Special>) -> Vec<String> {
        let mut fields = special.map_or_else(
            || vec![format!(r#""room":{}"#, quoted(&event.room))],
            |special| self.special_fields(special, true),
        );
        fields.insert(0, r#""type":"publish""#.to_owned());
        fields.insert(2, format!(r#""event":{}"#, quoted(&event.name)));
        if echo || event.payload.len().is_multiple_of(7) {
            fields.push(format!(r#""echo":{echo}"#));
        }
        fields
    }

    /// An object with these fields in any order, perhaps with one more that means nothing.
    pub(super) fn object(&mut self, fields: impl Iterator<Item = String>) -> String {
        let mut fields: Vec<String> = fields.collect();
        if self.random.chance(20) {
            fields.push(r#""later":[{"type":"join"},null]"#.to_owned());
        }
        self.random.shuffle(&mut fields);
        let space = *self.random.pick(&["", "", " ", "\t "]);
        format!("{space}{{{space}{}{space}}}{space}", fields.join(&format!("{space},{space}")))
    }

    /// JSON that must come out as it went in.
    pub(super) fn data(&mut self) -> Option<String> {
        match self.random.below(7) {
            0 => None,
            1 => Some("-12.50E+3".to_owned()),
            2 => Some(r#"{"a" : [1, 2.50 ,null],"é":"\u00e9\/"}"#.to_owned()),
            3 => Some(format!("{}{}", "[".repeat(120), "]".repeat(120))),
            _ => {
                let length = self.payload_length().min(3_000);
                Some(quoted(&self.text(length)))
            }
        }
    }

    pub(super) fn payload_length(&mut self) -> usize {
        let bytes_max = self.plan.settings.message_bytes_max;
        if self.plan.heavy && self.random.chance(60) {
            return 500_000 + self.random.up_to(400_000);
        }
        match self.random.below(20) {
            0..12 => self.random.up_to(30),
            12..17 => self.random.up_to(300),
            _ => self.random.up_to((bytes_max / 2).min(3_000)),
        }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        if length > 100_000 {
            return vec![self.random.next() as u8; length];
        }
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.random.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Text of about `length` bytes.
    pub(super) fn text(&mut self, length: usize) -> String {
        let mut text = String::new();
        while text.len() < length {
            text.push_str(self.random.pick::<&str>(&[
                "plain ",
                "é",
                "漢",
                "😀",
                "\"",
                "\\",
                "\n",
                "\u{7f}",
                "word word word ",
            ]));
        }
        text
    }
}

pub(super) fn header(fin: bool, opcode: u8, mask: Option<[u8; 4]>, length: u64) -> Vec<u8> {
    let opcode = coding::OpCode::from(opcode);
    let header = FrameHeader { is_final: fin, rsv1: false, rsv2: false, rsv3: false, opcode, mask };
    let mut bytes = Vec::new();
    header.format(length, &mut bytes).expect("writing to memory does not fail");
    bytes
}

pub(super) fn quoted(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("text can be written")
}
