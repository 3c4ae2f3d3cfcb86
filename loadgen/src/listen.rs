//! Applications whose backend publishes and whose clients listen: AdStack's contracts, Pona's guilds, the dashboards of Inked Draw, as
//! their configurations in `examples/` have them. The backend is one stream of lines to the HTTP API, by the clock; each client is in one
//! room, and has to get what is published there, all of it, once and in order.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memmem::{self, Finder};

use crate::args::{Application, Common, Listen, Rooms};
use crate::client::{Clients, Listener};
use crate::clock::{MILLISECOND_NS, SECOND_NS};
use crate::control::{Command, Done, Plan};
use crate::fanout::{DATA_HEAD, STRAGGLERS_MAX_SECONDS, append_data, parse_data};
use crate::order::Order;
use crate::parent::Phases;
use crate::phases::{Measured, Run, SENDS_PER_TICK, Traffic};
use crate::report::{Figures, Tally, ratio};
use crate::worker::Load;

/// How long the API may take to say what came of them, after the last.
const ANSWER_NS: u64 = 10 * SECOND_NS;

/// The parent's half.
pub(crate) fn run(common: &Common, args: &Listen) -> impl Phases + use<> {
    let (args, most) = (args.clone(), STRAGGLERS_MAX_SECONDS);
    Run::new(common, args.warmup, most, move |measured, tally| figures(&args, measured, tally))
}

fn figures(args: &Listen, measured: &Measured, tally: &Tally) -> Figures {
    let deliveries = tally.received as f64;
    let mut figures = measured.begin(args.application.name(), tally);
    figures.put("rooms", args.rooms());
    figures.put("size_bytes", args.size);
    figures.number("rate_per_second", Some(args.rate()));
    figures.latency("handshake_latency", &tally.handshake_latency);
    measured.put_time(&mut figures, tally);
    figures.put("publications", tally.publications);
    measured.put_deliveries(&mut figures, tally);
    figures.put("messages", tally.messages);
    figures.number("deliveries_per_message", ratio(Some(deliveries), tally.messages as f64));
    figures.latency("latency", &tally.latency);
    figures.latency("send_delay", &tally.send_delay);
    figures.put("publications_total", tally.sent_total);
    figures.put("deliveries_total", tally.received_total);
    figures.number("reads_per_delivery", ratio(Some(tally.reads as f64), deliveries));
    measured.end(figures, tally)
}

impl Application {
    fn name(self) -> &'static str {
        match self {
            Self::Adstack => "adstack",
            Self::Pona => "pona",
            Self::Inked => "inked",
        }
    }

    /// How a client joins the room with its number, where it is not the backend that has it join.
    fn rooms(self, rooms: u32) -> Rooms {
        let by = match self {
            Self::Adstack => Some(r#"420["subscribe",{"contractId":"{}"}]"#.to_owned()),
            Self::Pona | Self::Inked => None,
        };
        // The name of the room where there is one, and else what stands before its number.
        let room_prefix = match (self, rooms) {
            (Self::Inked, _) => "performance",
            (_, 1) => "0",
            _ => "",
        };
        let room_prefix = room_prefix.to_owned();
        Rooms { rooms, rooms_each: None, room_prefix, no_join: self == Self::Pona, by }
    }

    /// Events that one occasion publishes.
    fn events(self) -> u64 {
        if self == Self::Pona { 2 } else { 1 }
    }

    /// The name of the event with this number in its room.
    fn event(self, number: u64) -> &'static str {
        match self {
            Self::Adstack => "event",
            Self::Pona if number.is_multiple_of(2) => "track_started",
            Self::Pona => "queue_updated",
            Self::Inked => "alert",
        }
    }

    /// Appends the line that publishes an event to a room.
    fn append_line(self, out: &mut Vec<u8>, room: usize, number: u64, data: &[u8]) {
        let event = self.event(number);
        let head = match self {
            Self::Adstack => format!(r#"{{"room":"contract:{room}","event":"{event}","data":"#),
            Self::Pona => {
                format!(r#"{{"namespace":"/guild/{room}","room":"pona! music","event":"{event}","data":"#)
            }
            Self::Inked => format!(r#"{{"room":"performance","event":"{event}","data":"#),
        };
        out.extend_from_slice(head.as_bytes());
        // A queue is a list of tracks.
        let (open, close): (&[u8], &[u8]) = if event == "queue_updated" { (b"[", b"]") } else { (b"", b"") };
        for part in [open, data, close, b"}\n"] {
            out.extend_from_slice(part);
        }
    }
}

/// A worker's half. Worker 0 has the backend.
pub(crate) struct ListenLoad {
    application: Application,
    traffic: Traffic,
    rooms: usize,
    /// One stream for each connection: what its room publishes.
    order: Order,
    size: usize,
    data_head: Finder<'static>,
    /// What all connections of this worker should get, once that is known.
    expected: u64,
    messages: u64,
    backend: Option<Backend>,
    args: Listen,
    decoded: Vec<u8>,
}

impl ListenLoad {
    pub(crate) fn new(plan: &Plan, args: &Listen) -> Self {
        let application = args.application;
        Self {
            application,
            traffic: Traffic::new(plan, &application.rooms(args.rooms()), STRAGGLERS_MAX_SECONDS),
            rooms: args.rooms() as usize,
            order: Order::new(plan.connections as usize),
            size: args.size as usize,
            data_head: Finder::new(DATA_HEAD),
            expected: 0,
            messages: 0,
            backend: (plan.worker == 0).then(|| Backend::new(args)),
            args: args.clone(),
            decoded: Vec::new(),
        }
    }

    fn room_of(&self, id: usize) -> usize {
        (self.traffic.first + id) % self.rooms
    }

    /// Takes note of the events in what a message carries. False when there is none.
    fn hear(&mut self, clients: &mut Clients, id: usize, message: &[u8], said: &[u8], now_ns: u64) -> bool {
        let mut at = 0;
        let mut is_one = false;
        while let Some(next) = self.data_head.find(&said[at..]) {
            at += next;
            is_one = true;
            let Some(event) = parse_data(&said[at..], self.size) else {
                clients.note_error("bad_event");
                return true;
            };
            at += self.size;
            if event.publisher != self.room_of(id) as u64 {
                clients.note_error("wrong_room");
                continue;
            }
            // Of AdStack's, those that come together have a name of their own.
            if self.application != Application::Adstack
                && memmem::find(message, self.application.event(event.sequence).as_bytes()).is_none()
            {
                clients.note_error("wrong_event");
            }
            self.traffic.arrives_since(event.due_ns, now_ns);
            self.order.note(id, event.sequence);
        }
        is_one
    }

    /// What a client of Pona does: its second argument is base64.
    fn decode(&mut self, message: &[u8]) -> bool {
        self.decoded.clear();
        let mut words = message.split(|byte| *byte == b'"');
        let text = words.nth(3).unwrap_or_default();
        BASE64.decode_vec(text, &mut self.decoded).is_ok()
    }
}

impl Listener for ListenLoad {
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        let is_one = match self.application {
            Application::Pona if message.starts_with(b"2/") => {
                if !self.decode(message) {
                    return clients.note_error("bad_base64");
                }
                let decoded = std::mem::take(&mut self.decoded);
                let is_one = self.hear(clients, id, message, &decoded, now_ns);
                self.decoded = decoded;
                is_one
            }
            _ => self.hear(clients, id, message, message, now_ns),
        };
        if is_one {
            self.messages += u64::from(self.traffic.run.measures(now_ns));
        } else {
            self.traffic.hear(clients, id, message, now_ns);
        }
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.traffic.closed(id);
    }
}

impl Load for ListenLoad {
    fn begin(&mut self, clients: &mut Clients, command: &Command, now_ns: u64) {
        self.traffic.begin(command, now_ns);
        match command {
            Command::Run(_) => {
                if let Some(backend) = &mut self.backend
                    && let Err(error) = backend.begin(&self.args)
                {
                    clients.note_error(&format!("api_{:?}", error.kind()));
                }
            }
            Command::Drain { published } => {
                self.expected = (0..self.traffic.members).map(|id| published[self.room_of(id)]).sum();
            }
            _ => {}
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if let Some(due_ns) = self.traffic.tick(clients, now_ns) {
            return due_ns;
        }
        let due_ns = match &mut self.backend {
            None => u64::MAX,
            Some(backend) => {
                backend.tend(self.application, &mut self.traffic, now_ns).unwrap_or_else(|error| {
                    clients.note_error(&format!("api_{error}"));
                    u64::MAX
                })
            }
        };
        self.traffic.wake_ns(due_ns, now_ns)
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let is_sent = self.backend.as_ref().is_none_or(Backend::is_done);
        let has_all = |_: &[u64]| self.traffic.received_total - self.order.doubled() >= self.expected;
        let published = || self.backend.as_ref().map(|backend| backend.published.clone()).unwrap_or_default();
        self.traffic.over(now_ns, is_sent, has_all, published)
    }

    fn count(&self) -> u64 {
        self.traffic.count()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.traffic.report(tally);
        if let Some(published) = self.traffic.published() {
            for id in 0..self.traffic.members {
                self.order.end(id, published[self.room_of(id)]);
            }
        }
        if let Some(backend) = &self.backend {
            tally.sent_total = backend.published.iter().sum();
        }
        tally.messages = self.messages;
        tally.faults = self.order.faults();
    }
}

/// What publishes: one request to the API, in which a line is written when it is due.
struct Backend {
    stream: Option<TcpStream>,
    /// Occasions to publish in a second.
    per_second: f64,
    /// The first occasion that has not come. Occasion `n` is for room `n` modulo the rooms, `n / per_second` after the start.
    next: u64,
    /// Events of each room so far.
    published: Vec<u64>,
    size: usize,
    /// What the socket has not taken yet.
    unsent: Vec<u8>,
    /// What the API has answered, once all is sent; it has to come by then.
    answer: Option<(Vec<u8>, u64)>,
    lines: Vec<u8>,
    data: Vec<u8>,
}

impl Backend {
    fn new(args: &Listen) -> Self {
        Self {
            stream: None,
            per_second: args.rate(),
            next: 0,
            published: vec![0; args.rooms() as usize],
            size: args.size as usize,
            unsent: Vec::new(),
            answer: None,
            lines: Vec::new(),
            data: Vec::new(),
        }
    }

    fn begin(&mut self, args: &Listen) -> io::Result<()> {
        let stream = TcpStream::connect(args.api)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        self.stream = Some(stream);
        self.unsent = format!(
            "POST /v1/publish/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
             Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
            args.api, args.key
        )
        .into_bytes();
        Ok(())
    }

    /// True when nothing more is to be sent or answered.
    fn is_done(&self) -> bool {
        self.stream.is_none()
    }

    /// Publishes what is due, and ends the request after the run. Answers when to be called again at the latest.
    fn tend(&mut self, application: Application, traffic: &mut Traffic, now_ns: u64) -> Result<u64, String> {
        if self.stream.is_none() {
            return Ok(u64::MAX);
        }
        let outcome = self.tend_open(application, traffic, now_ns);
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    fn tend_open(
        &mut self,
        application: Application,
        traffic: &mut Traffic,
        now_ns: u64,
    ) -> Result<u64, String> {
        self.flush();
        if !self.unsent.is_empty() {
            return Ok(now_ns + MILLISECOND_NS);
        }
        if self.answer.is_some() {
            return self.read_answer(now_ns);
        }
        let run = traffic.run;
        self.lines.clear();
        for _ in 0..SENDS_PER_TICK {
            let due_ns = run.due_ns(self.next, self.per_second);
            if due_ns > now_ns || due_ns >= run.to_ns {
                break;
            }
            if run.measures(due_ns) {
                traffic.send_delay.record(now_ns - due_ns);
                traffic.publications += application.events();
            }
            let room = self.next as usize % self.published.len();
            for _ in 0..application.events() {
                let number = self.published[room];
                self.data.clear();
                append_data(&mut self.data, room, number, due_ns, self.size);
                application.append_line(&mut self.lines, room, number, &self.data);
                self.published[room] += 1;
            }
            self.next += 1;
        }
        if !self.lines.is_empty() {
            self.unsent = format!("{:x}\r\n", self.lines.len()).into_bytes();
            self.unsent.extend_from_slice(&self.lines);
            self.unsent.extend_from_slice(b"\r\n");
        }
        let next_ns = run.due_ns(self.next, self.per_second);
        if next_ns >= run.to_ns && now_ns >= run.to_ns {
            self.unsent.extend_from_slice(b"0\r\n\r\n");
            self.answer = Some((Vec::new(), now_ns + ANSWER_NS));
        }
        self.flush();
        Ok(if self.unsent.is_empty() { next_ns.min(run.to_ns).max(now_ns) } else { now_ns + MILLISECOND_NS })
    }

    fn flush(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        while !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(taken) => drop(self.unsent.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It may have said why before it closed the connection.
                Err(_) => {
                    self.unsent.clear();
                    self.answer.get_or_insert_default();
                    return;
                }
            }
        }
    }

    fn read_answer(&mut self, now_ns: u64) -> Result<u64, String> {
        let (Some(stream), Some((answer, until_ns))) = (&mut self.stream, &mut self.answer) else {
            return Ok(u64::MAX);
        };
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => {}
            Ok(length) => {
                answer.extend_from_slice(&bytes[..length]);
                return Ok(now_ns);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && now_ns < *until_ns => {
                return Ok(now_ns + MILLISECOND_NS);
            }
            Err(error) if answer.is_empty() => return Err(format!("{:?}", error.kind())),
            Err(_) => {}
        }
        let total: u64 = self.published.iter().sum();
        let wanted = format!(r#"{{"published":{total},"failed":0"#);
        let text = String::from_utf8_lossy(answer).into_owned();
        self.stream = None;
        if text.contains(&wanted) { Ok(u64::MAX) } else { Err(status_of(&text)) }
    }
}

/// What an answer says, in a word.
fn status_of(answer: &str) -> String {
    match answer.split(' ').nth(1) {
        Some("200") => "refused_some".to_owned(),
        Some(status) => status.to_owned(),
        None => "no_answer".to_owned(),
    }
}
