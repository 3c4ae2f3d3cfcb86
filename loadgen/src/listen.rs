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
use crate::control::{Command, Done, Plan, Window};
use crate::fanout::{DATA_HEAD, STRAGGLERS_MAX_NS, STRAGGLERS_NS, append_data, parse_data};
use crate::membership::Membership;
use crate::order::Order;
use crate::parent::{Halt, Parent, Phases};
use crate::proc::{Memory, Server, Span};
use crate::report::{Figures, Latency, Tally, ratio};
use crate::worker::Load;

/// Publications that are due are caught up on by so many before the sockets are looked at again.
const PUBLICATIONS_PER_TICK: u64 = 256;
/// How long the API may take to say what came of them, after the last.
const ANSWER_NS: u64 = 10 * SECOND_NS;

/// The parent's half.
pub(crate) struct ListenRun {
    connections: u32,
    seconds: f64,
    args: Listen,
    connect: Option<Span>,
    join: Option<Span>,
    run: Option<Span>,
    before: Option<Memory>,
    end: Option<Memory>,
}

impl ListenRun {
    pub(crate) fn new(common: &Common, args: &Listen) -> Self {
        Self {
            connections: common.connections,
            seconds: common.seconds,
            args: args.clone(),
            connect: None,
            join: None,
            run: None,
            before: None,
            end: None,
        }
    }
}

impl Phases for ListenRun {
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt> {
        self.before = server.and_then(|server| server.memory().ok());
        if !parent.connect(&mut self.connect, server)? {
            return Ok(());
        }
        parent.join(&mut self.join, server)?;
        parent.measured_run(self.args.warmup, self.seconds, &mut self.run, server)?;
        self.end = server.and_then(|server| server.memory().ok());
        let published = parent.all_done()?.into_iter().flat_map(|done| done.published).collect();
        parent.order(&Command::Drain { published })?;
        parent.all_done()?;
        Ok(())
    }

    fn figures(&self, tally: &Tally, server: Option<&Server>) -> Figures {
        let used = self.run.as_ref().map(|run| run.used(server));
        let cpu_seconds = used.and_then(|used| used.cpu_seconds);
        let deliveries = tally.received as f64;
        let mut figures = Figures::default();
        figures.put("scenario", self.args.application.name());
        figures.put("connections", self.connections);
        figures.put("opened", tally.handshakes);
        figures.put("rooms", self.args.rooms());
        figures.put("size_bytes", self.args.size);
        figures.number("rate_per_second", Some(self.args.rate()));
        figures.latency("handshake_latency", &tally.handshake_latency);
        figures.number("seconds", used.map(|used| used.seconds));
        figures.number("server_cpu_seconds", cpu_seconds);
        figures.number("generator_cpu_seconds", Some(tally.own_cpu_ns as f64 / SECOND_NS as f64));
        figures.put("publications", tally.publications);
        figures.put("deliveries", tally.received);
        figures.number("deliveries_per_second", used.and_then(|used| ratio(Some(deliveries), used.seconds)));
        figures.number("cpu_us_per_delivery", ratio(cpu_seconds.map(|seconds| seconds * 1e6), deliveries));
        figures.put("messages", tally.messages);
        figures.number("deliveries_per_message", ratio(Some(deliveries), tally.messages as f64));
        figures.latency("latency", &tally.latency);
        figures.latency("send_delay", &tally.send_delay);
        figures.put("publications_total", tally.sent_total);
        figures.put("deliveries_total", tally.received_total);
        figures.put("lost", tally.faults.lost);
        figures.put("doubled", tally.faults.doubled);
        figures.put("reordered", tally.faults.reordered);
        figures.put("bytes_received", tally.bytes_received);
        figures.put("reads", tally.reads);
        figures.number("reads_per_delivery", ratio(Some(tally.reads as f64), deliveries));
        figures.put("rss_before_bytes", self.before.map(|memory| memory.rss_bytes));
        figures.put("rss_end_bytes", self.end.map(|memory| memory.rss_bytes));
        figures.put("pings", tally.pings);
        figures.put("closes", tally.closes);
        figures.errors(tally);
        figures
    }
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
    connections: usize,
    /// Number of connection 0 among those of all workers.
    first: usize,
    rooms: usize,
    membership: Membership,
    /// One stream for each connection: what its room publishes.
    order: Order,
    size: usize,
    data_head: Finder<'static>,
    run: Window,
    running: bool,
    draining: Option<Draining>,
    received_total: u64,
    received: u64,
    received_ns: u64,
    messages: u64,
    latency: Latency,
    backend: Option<Backend>,
    args: Listen,
    decoded: Vec<u8>,
}

/// After the run.
struct Draining {
    /// Events of each room in all.
    published: Vec<u64>,
    /// What all connections of this worker should have got.
    expected: u64,
    begun_ns: u64,
}

impl ListenLoad {
    pub(crate) fn new(plan: &Plan, args: &Listen) -> Self {
        let application = args.application;
        Self {
            application,
            connections: plan.connections as usize,
            first: plan.first as usize,
            rooms: args.rooms() as usize,
            membership: Membership::new(plan, &application.rooms(args.rooms())),
            order: Order::new(plan.connections as usize),
            size: args.size as usize,
            data_head: Finder::new(DATA_HEAD),
            run: Window::default(),
            running: false,
            draining: None,
            received_total: 0,
            received: 0,
            received_ns: 0,
            messages: 0,
            latency: Latency::new(),
            backend: (plan.worker == 0).then(|| Backend::new(args)),
            args: args.clone(),
            decoded: Vec::new(),
        }
    }

    fn room_of(&self, id: usize) -> usize {
        (self.first + id) % self.rooms
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
            self.received_total += 1;
            self.received_ns = now_ns;
            self.received += u64::from(self.run.measures(now_ns));
            if self.run.measures(event.due_ns) {
                self.latency.record(now_ns.saturating_sub(event.due_ns));
            }
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
            self.messages += u64::from(self.run.measures(now_ns));
        } else {
            self.membership.hear(clients, id, message, now_ns);
        }
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.membership.gone(id);
    }
}

impl Load for ListenLoad {
    fn begin(&mut self, clients: &mut Clients, command: &Command, now_ns: u64) {
        match command {
            Command::Run(window) => {
                self.run = *window;
                self.running = true;
                if let Some(backend) = &mut self.backend
                    && let Err(error) = backend.begin(&self.args)
                {
                    clients.note_error(&format!("api_{:?}", error.kind()));
                }
            }
            Command::Drain { published } => {
                let expected = (0..self.connections).map(|id| published[self.room_of(id)]).sum();
                self.draining = Some(Draining { published: published.clone(), expected, begun_ns: now_ns });
            }
            _ => self.membership.join_all(0..self.connections, false),
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if self.draining.is_some() {
            return now_ns + MILLISECOND_NS;
        }
        if !self.running {
            return self.membership.tend(clients, now_ns);
        }
        if now_ns < self.run.start_ns {
            return self.run.start_ns;
        }
        let Some(backend) = &mut self.backend else { return self.run.to_ns.max(now_ns) };
        match backend.tend(self.application, &self.run, now_ns) {
            Ok(due_ns) => due_ns,
            Err(error) => {
                clients.note_error(&format!("api_{error}"));
                u64::MAX
            }
        }
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let over = match &self.draining {
            Some(draining) => {
                self.received_total - self.order.doubled() >= draining.expected
                    || now_ns >= draining.begun_ns.max(self.received_ns) + STRAGGLERS_NS
                    || now_ns >= draining.begun_ns + STRAGGLERS_MAX_NS
            }
            None if self.running => {
                now_ns >= self.run.to_ns && self.backend.as_ref().is_none_or(Backend::is_done)
            }
            None => self.membership.is_settled(),
        };
        let published = self.backend.as_ref().map(|backend| backend.published.clone()).unwrap_or_default();
        over.then_some(Done { at_ns: now_ns, open: 0, published })
    }

    fn count(&self) -> u64 {
        self.membership.joined() + self.received_total
    }

    fn report(&mut self, tally: &mut Tally) {
        self.membership.report(tally);
        if let Some(draining) = &self.draining {
            for id in 0..self.connections {
                self.order.end(id, draining.published[(self.first + id) % self.rooms]);
            }
        }
        if let Some(backend) = &self.backend {
            tally.sent_total = backend.published.iter().sum();
            tally.publications = backend.publications;
            tally.send_delay = backend.send_delay.clone();
        }
        tally.received_total = self.received_total;
        tally.received = self.received;
        tally.messages = self.messages;
        tally.latency = self.latency.clone();
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
    /// Of them, those due in the measured window.
    publications: u64,
    size: usize,
    send_delay: Latency,
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
            publications: 0,
            size: args.size as usize,
            send_delay: Latency::new(),
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
    fn tend(&mut self, application: Application, run: &Window, now_ns: u64) -> Result<u64, String> {
        if self.stream.is_none() {
            return Ok(u64::MAX);
        }
        let outcome = self.tend_open(application, run, now_ns);
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    fn tend_open(&mut self, application: Application, run: &Window, now_ns: u64) -> Result<u64, String> {
        self.flush();
        if !self.unsent.is_empty() {
            return Ok(now_ns + MILLISECOND_NS);
        }
        if self.answer.is_some() {
            return self.read_answer(now_ns);
        }
        let due_ns = |number: u64, per_second: f64| {
            run.start_ns + (number as f64 * SECOND_NS as f64 / per_second) as u64
        };
        self.lines.clear();
        for _ in 0..PUBLICATIONS_PER_TICK {
            let due_ns = due_ns(self.next, self.per_second);
            if due_ns > now_ns || due_ns >= run.to_ns {
                break;
            }
            if run.measures(due_ns) {
                self.send_delay.record(now_ns - due_ns);
                self.publications += application.events();
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
        let next_ns = due_ns(self.next, self.per_second);
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
