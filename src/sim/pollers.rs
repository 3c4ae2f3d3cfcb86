//! Clients that speak Socket.IO over requests: each has several connections, to any shard, and one GET and one POST at a time, until it moves
//! to a WebSocket. And what those that break the rules do instead.

use super::clients::{Asks, Client, Effect, Request, Temper};
use super::said::{Bytes, Packet, Said};
use super::sessions::{Poll, Target};
use super::talk::{Raw, Spoken, Talk, Word};
use super::{Reaction, World};
use crate::dialect::Dialect;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

/// A client of a session.
#[derive(Debug)]
pub(super) struct Poller {
    temper: Temper,
    ip: IpAddr,
    /// What the session is called, once it knows.
    sid: Option<String>,
    /// Its number in the model, once there is one.
    pub(super) session: Option<usize>,
    links: Vec<usize>,
    /// The connection with its first request, with the GET, and with the POST.
    handshake: Option<usize>,
    get: Option<usize>,
    post: Option<usize>,
    /// The WebSocket to which it is about to move.
    probe: Option<usize>,
    /// All WebSockets that it has asked for.
    sockets: Vec<usize>,
    /// True when it has been told that the WebSocket works.
    probed: bool,
    /// True when it has moved there.
    moved: bool,
    /// True when it has given the session up, or knows that it has ended.
    over: bool,
    /// False when it says nothing any more, not even that it is there.
    answers: bool,
    /// False when it does not ask what there is for it any more.
    gets: bool,
    /// True when it leaves as soon as all is said.
    leaves: bool,
    /// True when it has been pinged and its answer has not arrived.
    owes_pong: bool,
    talk: Talk,
    /// What it has to say, and has not said in a POST.
    outgoing: VecDeque<Spoken>,
}

/// What a request of such a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Handshake,
    Get,
    Post,
    Probe,
    /// Nothing that it needs.
    Odd,
}

/// Packets in one POST.
const PACKETS_MAX: usize = 8;
/// Packets that wait to be said.
const OUTGOING_MAX: usize = 20;

impl Poller {
    pub(super) fn is_over(&self) -> bool {
        self.over || self.moved
    }

    pub(super) fn is_well(&self) -> bool {
        self.temper == Temper::Well
    }

    /// The connection on which what it says is on its way.
    pub(super) fn post(&self) -> Option<usize> {
        self.post
    }
}

impl World {
    pub(super) fn begin_polling(&mut self) {
        let Client { temper, .. } = Client::draw(&mut self.random);
        // Each at home elsewhere, since each needs several connections.
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 1, self.pollers.len() as u8));
        self.note(|| format!("poller {} begins: {temper:?}", self.pollers.len()));
        self.pollers.push(Poller {
            temper,
            ip,
            sid: None,
            session: None,
            links: Vec::new(),
            handshake: None,
            get: None,
            post: None,
            probe: None,
            sockets: Vec::new(),
            probed: false,
            moved: false,
            over: false,
            answers: true,
            gets: true,
            leaves: false,
            owes_pong: false,
            talk: Talk::default(),
            outgoing: VecDeque::new(),
        });
        self.poll(self.pollers.len() - 1);
    }

    /// True while a client that does nothing wrong is in the middle of something that a jump of the clock would spoil.
    pub(super) fn is_at_risk(&self, at: usize) -> bool {
        let poller = &self.pollers[at];
        let is_on_its_way = |link: &usize| {
            self.is_there(*link)
                && (self.links[*link].slot.is_none()
                    || !self.clients[*link].outgoing.is_empty()
                    || !self.links[*link].to_server.is_empty())
        };
        (poller.is_well() || poller.sid.is_none())
            && !poller.is_over()
            && (poller.owes_pong
                || poller.get.is_none()
                || poller.post.is_some()
                || poller.links.iter().any(is_on_its_way))
    }

    /// A client that polls does what comes next. True when it did something.
    pub(super) fn poll(&mut self, at: usize) -> bool {
        self.notice_losses(at);
        let poller = &self.pollers[at];
        let is_idle = poller.get.is_none() && poller.post.is_none();
        if poller.moved {
            return false;
        }
        if poller.over {
            return poller.answers && self.leave_links(at);
        }
        if poller.sid.is_none() {
            return poller.handshake.is_none() && self.shake_hands(at);
        }
        if poller.probed {
            return is_idle && poller.answers && self.move_over(at);
        }
        if poller.get.is_none() && poller.gets {
            return self.ask_get(at);
        }
        if poller.post.is_none() && poller.answers {
            if !poller.outgoing.is_empty() {
                return self.ask_post(at);
            }
            return poller.leaves && self.give_up(at);
        }
        false
    }

    /// A request whose connection has gone without an answer is not asked again: the client gives up.
    fn notice_losses(&mut self, at: usize) {
        let is_lost = |link: &Option<usize>| {
            link.is_some_and(|link| {
                let is_read = self.links[link].to_client.is_empty();
                !self.is_there(link) || self.clients[link].ends || (self.links[link].server_ended && is_read)
            })
        };
        let poller = &self.pollers[at];
        let is_over = !poller.moved && [poller.handshake, poller.get, poller.post].iter().any(is_lost);
        let has_no_probe = is_lost(&poller.probe);
        let poller = &mut self.pollers[at];
        if has_no_probe && !poller.moved {
            (poller.probe, poller.probed) = (None, false);
        }
        if is_over && !poller.over {
            poller.over = true;
            self.note(|| format!("poller {at} has lost a request"));
        }
    }

    fn shake_hands(&mut self, at: usize) -> bool {
        let (origin, page) = self.draw_origin();
        let Some(link) = self.idle_link(at) else { return self.give_up(at) };
        self.pollers[at].handshake = Some(link);
        self.request(link, Purpose::Handshake, "GET", "", &page, None, Poll::Handshake { origin });
        true
    }

    fn ask_get(&mut self, at: usize) -> bool {
        let Some(link) = self.idle_link(at) else { return self.give_up(at) };
        self.pollers[at].get = Some(link);
        self.say_get(at, link);
        true
    }

    fn say_get(&mut self, at: usize, link: usize) {
        let (query, target) = self.session_of(at);
        let is_well = self.pollers[at].temper == Temper::Well && self.links[link].capacity == usize::MAX;
        let zip = if is_well && self.random.chance(40) { "Accept-Encoding: gzip, deflate\r\n" } else { "" };
        self.request(link, Purpose::Get, "GET", &query, zip, None, Poll::Get(target));
    }

    fn ask_post(&mut self, at: usize) -> bool {
        let Some(link) = self.idle_link(at) else { return self.give_up(at) };
        let bytes_max = self.plan.settings.message_bytes_max;
        let (mut body, mut words) = (Vec::new(), Vec::new());
        while let Some(spoken) = self.pollers[at].outgoing.front()
            && words.len() < PACKETS_MAX
            && (words.is_empty() || body.len() + 2 + spoken.raw.len() * 4 / 3 + 4 <= bytes_max)
        {
            if !words.is_empty() {
                body.push(0x1e);
            }
            body.extend(written(&spoken.raw));
            words.extend(self.pollers[at].outgoing.pop_front().map(|spoken| spoken.word));
        }
        self.pollers[at].post = Some(link);
        self.say_post(at, link, body, words);
        true
    }

    fn say_post(&mut self, at: usize, link: usize, body: Vec<u8>, words: Vec<Word>) {
        let (query, target) = self.session_of(at);
        let lines = "Content-type: text/plain;charset=UTF-8\r\n";
        let poll = Poll::Post { target, words, octets: false };
        self.request(link, Purpose::Post, "POST", &query, lines, Some(body), poll);
    }

    /// It stops polling, and says the rest on the WebSocket.
    fn move_over(&mut self, at: usize) -> bool {
        let Some(link) = self.pollers[at].probe else { return false };
        let frame = self.frame(true, 1, b"5");
        let poller = &mut self.pollers[at];
        poller.moved = true;
        poller.links.retain(|other| *other != link);
        let talk = std::mem::take(&mut poller.talk);
        let outgoing = std::mem::take(&mut poller.outgoing);
        let client = &mut self.clients[link];
        client.say(&frame, Effect::Move);
        client.poller = None;
        client.has_moved = true;
        client.waits = false;
        client.speaks = Some(Dialect::SocketIo);
        client.talk = talk;
        for spoken in outgoing {
            self.say_packet(link, spoken);
        }
        if self.random.chance(30)
            && let Some(link) = self.idle_link(at)
        {
            // It finds that the session is not polled any more.
            self.say_get(at, link);
        }
        for link in self.pollers[at].links.clone() {
            if self.clients[link].asked.is_empty() {
                self.end_stream(link);
            }
        }
        true
    }

    fn give_up(&mut self, at: usize) -> bool {
        self.pollers[at].over = true;
        true
    }

    /// It ends its connections. True when there were some.
    fn leave_links(&mut self, at: usize) -> bool {
        let mut is_busy = false;
        for link in self.pollers[at].links.clone() {
            if self.is_there(link) && !self.clients[link].ends {
                self.end_stream(link);
                is_busy = true;
            }
        }
        is_busy
    }

    /// A connection of this client that is free for a request: mostly one that there is.
    fn idle_link(&mut self, at: usize) -> Option<usize> {
        let is_idle = |link: &usize| {
            let client = &self.clients[*link];
            let is_open = self.is_there(*link) && !self.links[*link].server_ended && !client.sealed;
            is_open && client.asked.is_empty() && !self.pollers[at].sockets.contains(link)
        };
        let idle: Vec<usize> = self.pollers[at].links.iter().copied().filter(is_idle).collect();
        if !idle.is_empty() && self.random.chance(75) {
            return Some(*self.random.pick(&idle));
        }
        self.new_link(at)
    }

    fn new_link(&mut self, at: usize) -> Option<usize> {
        if self.is_closed() {
            return None;
        }
        let mut client = Client::draw(&mut self.random);
        client.temper = self.pollers[at].temper;
        client.poller = Some(at);
        let capacity = match client.temper {
            Temper::Slow if self.random.chance(60) => *self.random.pick(&[150, 1_000, 10_000]),
            _ => usize::MAX,
        };
        client.is_steady = capacity == usize::MAX;
        let ip = if self.random.chance(90) { self.pollers[at].ip } else { self.draw_ip() };
        let shard = self.random.up_to(self.plan.shards - 1);
        let link = self.open_link(shard, client, ip, capacity);
        self.pollers[at].links.push(link);
        Some(link)
    }

    /// The query of a request of this session, and whom it names.
    fn session_of(&self, at: usize) -> (String, Target) {
        let poller = &self.pollers[at];
        let sid = poller.sid.as_deref().expect("it knows its session");
        (format!("&sid={sid}"), Target::Session(poller.session.expect("there was one")))
    }

    /// A request for Engine.IO; `query` is what it says beyond the transport.
    #[expect(clippy::too_many_arguments, reason = "the parts of one HTTP request")]
    fn request(
        &mut self,
        link: usize,
        purpose: Purpose,
        method: &str,
        query: &str,
        lines: &str,
        body: Option<Vec<u8>>,
        poll: Poll,
    ) {
        let keep_alive = self.random.chance(90);
        let number = self.random.below(1 << 20);
        let more = if keep_alive { "" } else { "Connection: close\r\n" };
        let length =
            body.as_ref().map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let target = format!("/socket.io/?EIO=4&transport=polling&t={number}{query}");
        let head = format!("{method} {target} HTTP/1.1\r\nHost: sim\r\n{lines}{more}{length}\r\n");
        self.say_request(link, purpose, &head, body.unwrap_or_default(), keep_alive, Asks::Poll(poll));
    }

    fn say_request(
        &mut self,
        link: usize,
        purpose: Purpose,
        head: &str,
        body: Vec<u8>,
        keep_alive: bool,
        asks: Asks,
    ) {
        let head_only = head.starts_with("HEAD");
        let target = asks.target();
        let is_read = head.starts_with("POST") && !body.is_empty();
        let client = &mut self.clients[link];
        client.say(head.as_bytes(), Effect::Head { target, length: is_read.then_some(body.len()) });
        let request = Effect::Request(Request { asks, keep_alive, head_only });
        if is_read {
            client.say(&body, request);
        } else {
            client.say(b"", request);
            client.queue(&body);
        }
        client.asked.push_back(purpose);
    }

    /// A WebSocket for the session.
    fn ask_probe(&mut self, at: usize, link: usize) {
        self.pollers[at].sockets.push(link);
        let (query, target) = self.session_of(at);
        let subprotocol = self.random.chance(10);
        let offer = if subprotocol { "Sec-WebSocket-Protocol: throng.v1\r\n" } else { "" };
        let head = format!(
            "GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1\r\nHost: sim\r\n{UPGRADE}{offer}\r\n"
        );
        let asks = Asks::Poll(Poll::Probe { target, subprotocol });
        self.say_request(link, Purpose::Probe, &head, Vec::new(), true, asks);
    }

    // ------------------------------------------------------------------------------------------------ what it says

    /// A client that polls thinks of something to say, or opens the WebSocket that it will move to.
    pub(super) fn compose_poller(&mut self, at: usize) {
        let poller = &self.pollers[at];
        if poller.is_over() || !poller.answers || poller.sid.is_none() {
            return;
        }
        if poller.probe.is_none() && self.random.chance(8) {
            if let Some(link) = self.new_link(at) {
                self.pollers[at].probe = Some(link);
                self.ask_probe(at, link);
            }
            return;
        }
        if poller.outgoing.len() < OUTGOING_MAX {
            let mut talk = std::mem::take(&mut self.pollers[at].talk);
            let spoken = self.talk(&mut talk);
            self.pollers[at].talk = talk;
            // What is too large for a POST is not said.
            let bytes: usize = spoken.iter().map(|spoken| spoken.raw.len() * 4 / 3 + 5).sum();
            if bytes <= self.plan.settings.message_bytes_max {
                self.pollers[at].outgoing.extend(spoken);
            }
        }
        if self.random.chance(50) {
            self.poll(at);
        }
    }

    /// A client has read something that was said to its session.
    pub(super) fn react_to(&mut self, number: usize, reaction: Reaction) {
        match (self.clients[number].poller, reaction) {
            (Some(at), Reaction::Answer(said)) => {
                if let Some(purpose) = self.clients[number].asked.pop_front() {
                    self.hear_answer(at, number, purpose, &said);
                }
            }
            (Some(at), Reaction::Speak) => {
                self.clients[number].asked.pop_front();
                // What comes now is frames.
                let frame = self.frame(true, 1, b"2probe");
                self.clients[number].say(&frame, Effect::Probe);
                if self.pollers[at].temper == Temper::Hostile && self.random.chance(30) {
                    self.break_a_rule_of_upgrades(number);
                }
            }
            (Some(at), Reaction::Packet(Packet::Probed)) => self.pollers[at].probed = true,
            (None, Reaction::Packet(packet)) => self.hear(number, &packet),
            _ => {}
        }
    }

    /// A packet on a WebSocket.
    fn hear(&mut self, number: usize, packet: &Packet) {
        let client = &self.clients[number];
        match packet {
            Packet::Ping if client.answers && !client.ends && !client.sealed => {
                let pong = Spoken { raw: Raw::Text("3".to_owned()), word: Word::Passed };
                self.say_packet(number, pong);
            }
            Packet::Joined { namespace, .. } => self.clients[number].talk.hear(namespace, true),
            Packet::Refused { namespace } | Packet::PutOut { namespace } => {
                self.clients[number].talk.hear(namespace, false);
            }
            Packet::Event { namespace, id: Some(id), .. } => {
                let questions = self.ponder(namespace, id);
                self.clients[number].talk.questions.extend(questions);
            }
            _ => {}
        }
    }

    fn hear_answer(&mut self, at: usize, link: usize, purpose: Purpose, said: &Said) {
        let poller = &mut self.pollers[at];
        match (purpose, said) {
            (Purpose::Handshake, Said::Poll { packets, .. }) => {
                if let Some(Packet::Open { sid, .. }) = packets.first() {
                    poller.sid = Some(sid.0.clone());
                    poller.handshake = None;
                }
            }
            (Purpose::Get, Said::Poll { packets, .. }) if poller.get == Some(link) => {
                poller.get = None;
                for packet in packets {
                    let poller = &mut self.pollers[at];
                    match packet {
                        Packet::Ping => {
                            poller.owes_pong = true;
                            if poller.answers {
                                // Before what it has thought of since, so that it is in time.
                                let pong = Spoken { raw: Raw::Text("3".to_owned()), word: Word::Passed };
                                let place = poller
                                    .outgoing
                                    .iter()
                                    .position(|spoken| !matches!(spoken.word, Word::Attachment(_)));
                                poller.outgoing.insert(place.unwrap_or(poller.outgoing.len()), pong);
                            }
                        }
                        Packet::Joined { namespace, .. } => poller.talk.hear(namespace, true),
                        Packet::Refused { namespace } | Packet::PutOut { namespace } => {
                            poller.talk.hear(namespace, false);
                        }
                        Packet::Event { namespace, id: Some(id), .. } => {
                            let questions = self.ponder(namespace, id);
                            self.pollers[at].talk.questions.extend(questions);
                        }
                        Packet::Close => poller.over = true,
                        _ => {}
                    }
                }
            }
            (Purpose::Post, Said::Posted { .. }) if poller.post == Some(link) => {
                poller.post = None;
                poller.owes_pong = false;
            }
            (Purpose::Probe, _) => (poller.probe, poller.probed) = (None, false),
            (Purpose::Handshake, _) => poller.over = true,
            (Purpose::Get, _) if poller.get == Some(link) => poller.over = true,
            (Purpose::Post, _) if poller.post == Some(link) => poller.over = true,
            _ => {}
        }
    }

    // ------------------------------------------------------------------------------------------------ what it should not

    /// Something drastic, as the temper of the client has it.
    pub(super) fn upset_poller(&mut self, at: usize) {
        if self.pollers[at].is_over() || self.pollers[at].sid.is_none() {
            return;
        }
        self.note(|| format!("poller {at} does what its temper has it do"));
        match self.pollers[at].temper {
            Temper::Well => {
                if self.random.chance(20) {
                    self.say_goodbye(at);
                }
            }
            Temper::Slow => {
                let link = *self.random.pick(&self.pollers[at].links);
                self.clients[link].reads ^= true;
            }
            Temper::Stalled => self.pollers[at].gets = false,
            Temper::Silent => {
                self.pollers[at].answers = false;
                self.pollers[at].gets = self.random.chance(50);
            }
            Temper::Hostile => self.break_a_rule_of_polls(at),
            Temper::Fickle => match self.random.below(5) {
                0 => self.say_goodbye(at),
                1 => {
                    let get = self.pollers[at].get;
                    get.into_iter().for_each(|link| self.end_stream(link));
                }
                2 => {
                    // In the middle of something.
                    if let Some(link) = self.pollers[at].post {
                        let count = self.random.up_to(self.clients[link].outgoing.len());
                        self.clients[link].outgoing.truncate(count);
                        self.end_stream(link);
                    }
                }
                3 => {
                    let probe = self.pollers[at].probe;
                    probe.into_iter().for_each(|link| self.vanish(link));
                }
                _ => self.vanish_poller(at),
            },
        }
    }

    fn say_goodbye(&mut self, at: usize) {
        let goodbye = Spoken { raw: Raw::Text("1".to_owned()), word: Word::Close };
        self.pollers[at].outgoing.push_back(goodbye);
    }

    fn vanish_poller(&mut self, at: usize) {
        for link in self.pollers[at].links.clone() {
            if self.is_there(link) {
                self.vanish(link);
            }
        }
        self.pollers[at].over = true;
    }

    /// Each client leaves in one way or another.
    pub(super) fn leave_polling(&mut self, at: usize) {
        match self.random.below(5) {
            _ if self.pollers[at].moved || self.pollers[at].sid.is_none() => {
                self.pollers[at].over = true;
                self.leave_links(at);
            }
            0 | 1 => self.say_goodbye(at),
            2 => self.pollers[at].over = true,
            3 => self.vanish_poller(at),
            _ => self.pollers[at].answers = false,
        }
        // Who went on asking would never leave.
        self.pollers[at].gets = false;
        self.pollers[at].leaves = true;
    }

    fn break_a_rule_of_polls(&mut self, at: usize) {
        let (query, target) = self.session_of(at);
        let get = self.pollers[at].get;
        match self.random.below(12) {
            0 => {
                // A second GET.
                if let Some(link) = self.idle_link(at) {
                    self.say_get(at, link);
                }
            }
            1 => {
                // A second POST while the first is on its way.
                if let (Some(first), Some(second)) = (self.new_link(at), self.new_link(at)) {
                    self.say_post(at, first, b"3\x1e3\x1e3".to_vec(), vec![Word::Passed; 3]);
                    let count = self.clients[first].outgoing.len() - 1 - self.random.up_to(3);
                    self.transmit_up_to(first, count);
                    self.say_post(at, second, b"3".to_vec(), vec![Word::Passed]);
                }
            }
            2 => {
                // The id of nobody.
                if let Some(link) = self.idle_link(at) {
                    let (query, target) = self.wrong_sid();
                    let poll = Poll::Get(target);
                    self.request(link, Purpose::Odd, "GET", &query, "", None, poll);
                }
            }
            3 => {
                // A request behind one that waits.
                if let Some(link) = get
                    && self.clients[link].asked.len() == 1
                {
                    self.say_post(at, link, b"3".to_vec(), vec![Word::Passed]);
                }
            }
            4 | 5 => {
                let mut talk = self.pollers[at].talk.clone();
                let spoken = self.break_a_rule_of_socketio(&mut talk);
                let bytes: usize = spoken.iter().map(|spoken| spoken.raw.len() * 4 / 3 + 5).sum();
                if bytes <= self.plan.settings.message_bytes_max {
                    self.pollers[at].outgoing.extend(spoken);
                }
            }
            6 => {
                if let Some(link) = self.idle_link(at) {
                    let poll = Poll::Post { target, words: vec![Word::Passed], octets: true };
                    let lines = "Content-Type: application/octet-stream\r\n";
                    self.request(link, Purpose::Odd, "POST", &query, lines, Some(b"3".to_vec()), poll);
                }
            }
            7 => {
                if let Some(link) = self.idle_link(at) {
                    let wrong = *self.random.pick(&[&b""[..], b"\xff", b"4\x1e\x1e3", b"b=", b"b!!!!"]);
                    let words = match wrong {
                        b"b=" => vec![Word::Attachment(Bytes(Vec::new()))],
                        [b'4', ..] => vec![Word::Broken, Word::Malformed],
                        _ => vec![Word::Malformed],
                    };
                    self.say_post(at, link, wrong.to_vec(), words);
                }
            }
            8 => {
                if let Some(link) = self.idle_link(at) {
                    let body = vec![b'3'; self.plan.settings.message_bytes_max + 1];
                    self.say_post(at, link, body, Vec::new());
                }
            }
            9 => {
                if let Some(link) = self.idle_link(at) {
                    self.ask_something_odd(link, Some((query, target)));
                }
            }
            10 => {
                // A second WebSocket.
                if let Some(link) = self.new_link(at) {
                    self.ask_probe(at, link);
                }
            }
            _ => {
                // One who asks for too much at once, and does not wait.
                if let Some(link) = self.new_link(at) {
                    self.ask_probe(at, link);
                    self.break_a_rule_of_upgrades(link);
                }
            }
        }
    }

    /// On a WebSocket to which a session may move: what is no probe, or the end of one without a beginning.
    fn break_a_rule_of_upgrades(&mut self, link: usize) {
        for _ in 0..1 + self.random.up_to(2) {
            let (opcode, payload, effect) = match self.random.below(5) {
                0 => (1, &b"2probe"[..], Effect::Probe),
                1 | 2 => (1, &b"5"[..], Effect::Move),
                3 => (1, &b"3"[..], Effect::Word(Word::Passed)),
                _ => (2, &b"7"[..], Effect::Word(Word::Attachment(Bytes(b"7".to_vec())))),
            };
            let frame = self.frame(true, opcode, payload);
            self.clients[link].say(&frame, effect);
        }
    }

    fn wrong_sid(&mut self) -> (String, Target) {
        let shard = self.random.below(6) as u8;
        let mut bytes = [0; 15];
        bytes[0] = shard;
        bytes[4] = self.random.below(4) as u8;
        bytes[14] = self.random.next() as u8;
        let sid = BASE64URL_NOPAD.encode(&bytes);
        match self.random.below(4) {
            0 => (format!("&sid={}", &sid[1..]), Target::Nobody(None)),
            1 => ("&sid=".to_owned(), Target::Nobody(None)),
            _ => (format!("&sid={sid}"), Target::Nobody(Some(shard.into()))),
        }
    }

    /// A request that Engine.IO refuses, of a client that has a session or of one that has none.
    pub(super) fn ask_something_odd(&mut self, link: usize, session: Option<(String, Target)>) {
        let upgrade = format!("{UPGRADE}Origin: https://a.good.example\r\n");
        let wrong = |code| Poll::Wrong { code, is_upgrade: false };
        let keep_alive = self.random.chance(90);
        let more = if keep_alive { "" } else { "Connection: close\r\n" };
        if self.random.chance(10) {
            // Its body is not read, so nothing that follows is.
            let head =
                "PUT /socket.io/?transport=polling HTTP/1.1\r\nHost: sim\r\nContent-Length: 70\r\n\r\n";
            let body = format!("{:<70}", "GET /health HTTP/1.1\r\nHost: sim\r\n\r\n").into_bytes();
            return self.say_request(link, Purpose::Odd, head, body, false, Asks::Poll(wrong(2)));
        }
        let (start, lines, poll) = match (self.random.below(14), session) {
            (0 | 1, Some((query, target))) => {
                let method = *self.random.pick(&["DELETE", "PUT", "HEAD", "OPTIONS"]);
                let poll = match method {
                    "OPTIONS" => Poll::Preflight { target: Some(target) },
                    _ => Poll::Odd { target, is_upgrade: false },
                };
                (format!("{method} /socket.io/?EIO=4&transport=polling{query}"), "", poll)
            }
            (2 | 3, Some((query, target))) => {
                let poll = Poll::Odd { target, is_upgrade: true };
                (format!("GET /socket.io/?EIO=4&transport=polling{query}"), &*upgrade, poll)
            }
            (4, Some((query, target))) => {
                let poll = Poll::Odd { target, is_upgrade: false };
                (format!("GET /socket.io/?transport=websocket{query}"), "", poll)
            }
            (5, _) => {
                let (query, target) = self.wrong_sid();
                (format!("GET /socket.io/?EIO=4&transport=polling{query}"), "", Poll::Get(target))
            }
            (6, _) => {
                let (query, target) = self.wrong_sid();
                let poll = Poll::Probe { target, subprotocol: false };
                (format!("GET /socket.io/?EIO=4&transport=websocket{query}"), &*upgrade, poll)
            }
            (7, _) => ("GET /socket.io/?EIO=4&transport=polling&j=0".to_owned(), "", wrong(3)),
            (8, _) => ("GET /socket.io/?EIO=3&transport=polling".to_owned(), "", wrong(5)),
            (9, _) => ("HEAD /socket.io/?EIO=4&transport=polling".to_owned(), "", wrong(2)),
            (10, _) => ("GET /socket.io/?EIO=4&transport=carrier-pigeon".to_owned(), "", wrong(0)),
            (11, _) => {
                let poll = Poll::Wrong { code: 5, is_upgrade: true };
                ("GET /socket.io/?transport=websocket".to_owned(), &*upgrade, poll)
            }
            (12, _) => {
                let poll = Poll::Preflight { target: None };
                let lines = "Access-Control-Request-Headers: x-app\r\n";
                ("OPTIONS /socket.io/?EIO=4&transport=polling".to_owned(), lines, poll)
            }
            _ => ("GET /socket.io/".to_owned(), "", wrong(0)),
        };
        let head = format!("{start} HTTP/1.1\r\nHost: sim\r\n{lines}{more}\r\n");
        self.say_request(link, Purpose::Odd, &head, Vec::new(), keep_alive, Asks::Poll(poll));
    }

    // ------------------------------------------------------------------------------------------------ on a WebSocket

    /// A client that begins on a WebSocket asks for it, or for something else.
    pub(super) fn compose_socketio_request(&mut self, number: usize) {
        if self.random.chance(20) {
            return self.ask_something_odd(number, None);
        }
        let (origin, page) = self.draw_origin();
        let head =
            format!("GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: sim\r\n{page}{UPGRADE}\r\n");
        let asks = Asks::Upgrade { dialect: Dialect::SocketIo, subprotocol: false, origin };
        let request = Request { asks, keep_alive: true, head_only: false };
        self.clients[number].say(head.as_bytes(), Effect::Request(request));
        self.clients[number].speaks = Some(Dialect::SocketIo);
    }

    /// The page that a request comes from, and the header line that says so.
    fn draw_origin(&mut self) -> (Option<&'static str>, String) {
        let origin = match self.random.below(20) {
            0 => Some("https://evil.example"),
            1..8 => Some("https://a.good.example"),
            _ => None,
        };
        (origin, origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n")))
    }

    pub(super) fn compose_socketio(&mut self, number: usize) {
        if self.random.chance(10) {
            return self.compose_control(number);
        }
        let mut talk = std::mem::take(&mut self.clients[number].talk);
        let spoken = self.talk(&mut talk);
        self.clients[number].talk = talk;
        if spoken.iter().all(|spoken| spoken.raw.len() <= self.plan.settings.message_bytes_max) {
            spoken.into_iter().for_each(|spoken| self.say_packet(number, spoken));
        }
    }

    pub(super) fn say_packet(&mut self, number: usize, Spoken { raw, word }: Spoken) {
        match raw {
            Raw::Text(text) => self.say_message(number, 1, text.as_bytes(), Effect::Word(word)),
            Raw::Binary(bytes) => self.say_message(number, 2, &bytes, Effect::Word(word)),
        }
    }
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A packet in the body of a POST.
fn written(raw: &Raw) -> Vec<u8> {
    match raw {
        Raw::Text(text) => text.clone().into_bytes(),
        Raw::Binary(bytes) => format!("b{}", BASE64.encode(bytes)).into_bytes(),
    }
}
