//! The chat scenario: everybody is in a channel, says something now and then, and hears what the others of the channel say.
//!
//! Open loop: messages are due at fixed times, whose it is goes round. A message must come once to each other member of its channel, in
//! its sender's order, as `new_message` or within `batch_update`; to its sender comes `message_sent`.

use memchr::memmem::Finder;

use std::collections::VecDeque;

use crate::args::{Chat, Common, Rooms};
use crate::client::{Clients, Listener};
use crate::clock::{MILLISECOND_NS, SECOND_NS};
use crate::control::{Command, Done, Plan, Window};
use crate::frame::Opcode;
use crate::membership::Membership;
use crate::native::number;
use crate::order::Order;
use crate::parent::{Halt, Parent, Phases};
use crate::proc::{Memory, Server, Span};
use crate::report::{Figures, Latency, Tally, ratio};
use crate::worker::Load;

/// How packets begin that say these things, and what a message's text begins with.
const SENT: &[u8] = br#"2["message_sent""#;
const BATCH: &[u8] = br#"2["batch_update""#;
const ERROR: &[u8] = br#"2["error""#;
const TEXT: &[u8] = br#""content":"s"#;
/// Messages caught up on before the sockets are looked at again.
const MESSAGES_PER_TICK: u64 = 256;
/// At the end: so long without a message means that nothing more will come.
const STRAGGLERS_NS: u64 = 2 * SECOND_NS;
/// And so long in all.
const STRAGGLERS_MAX_NS: u64 = 20 * SECOND_NS;

/// The parent's half.
pub(crate) struct ChatRun {
    connections: u32,
    seconds: f64,
    args: Chat,
    connect: Option<Span>,
    join: Option<Span>,
    run: Option<Span>,
    end: Option<Memory>,
}

impl ChatRun {
    pub(crate) fn new(common: &Common, args: &Chat) -> Self {
        Self {
            connections: common.connections,
            seconds: common.seconds,
            args: args.clone(),
            connect: None,
            join: None,
            run: None,
            end: None,
        }
    }
}

impl Phases for ChatRun {
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt> {
        if !parent.connect(&mut self.connect, server)? {
            return Ok(());
        }
        parent.join(&mut self.join, server)?;
        parent.measured_run(self.args.warmup, self.seconds, &mut self.run, server)?;
        self.end = server.and_then(|server| server.memory().ok());
        parent.all_done()?;
        parent.order(&Command::Drain { published: Vec::new() })?;
        parent.all_done()?;
        Ok(())
    }

    fn figures(&self, tally: &Tally, server: Option<&Server>) -> Figures {
        let used = self.run.as_ref().map(|run| run.used(server));
        let cpu_seconds = used.and_then(|used| used.cpu_seconds);
        let mut figures = Figures::default();
        figures.put("scenario", "chat");
        figures.put("connections", self.connections);
        figures.put("opened", tally.handshakes);
        figures.put("joined", tally.joined);
        figures.put("channels", channels(&self.args));
        figures.number("messages_per_minute_each", Some(self.args.rate));
        figures.put("size_bytes", self.args.size);
        figures.number("seconds", used.map(|used| used.seconds));
        figures.latency("handshake_latency", &tally.handshake_latency);
        figures.put("messages", tally.publications);
        figures.put("confirmed", tally.returns);
        figures.put("deliveries", tally.received);
        figures.put("deliveries_merged", tally.messages);
        figures.put("bytes_received", tally.bytes_received);
        figures.put("segments", used.and_then(|used| used.segments));
        figures.number("server_cpu_seconds", cpu_seconds);
        figures.number("generator_cpu_seconds", Some(tally.own_cpu_ns as f64 / SECOND_NS as f64));
        let deliveries = tally.received as f64;
        figures.number("cpu_us_per_delivery", ratio(cpu_seconds.map(|seconds| seconds * 1e6), deliveries));
        figures.latency("latency", &tally.latency);
        figures.latency("confirmation", &tally.join_latency);
        figures.latency("send_delay", &tally.send_delay);
        figures.put("messages_total", tally.sent_total);
        figures.put("deliveries_total", tally.received_total);
        figures.put("lost", tally.faults.lost);
        figures.put("doubled", tally.faults.doubled);
        figures.put("reordered", tally.faults.reordered);
        figures.put("rss_end_bytes", self.end.map(|memory| memory.rss_bytes));
        figures.put("pings", tally.pings);
        figures.put("closes", tally.closes);
        figures.errors(tally);
        figures
    }
}

/// A worker's half.
pub(crate) struct ChatLoad {
    args: Chat,
    connections: usize,
    /// Number of connection 0 among those of all workers.
    first: u64,
    channels: u64,
    /// Of each channel at the most.
    members: u64,
    membership: Membership,
    /// One stream for each connection and member of its channel: `connection * members + member`.
    order: Order,
    /// When what was sent and not confirmed was due, for each connection, oldest first.
    unconfirmed: Vec<VecDeque<u64>>,
    text_at: Finder<'static>,
    run: Window,
    running: bool,
    drain_ns: Option<u64>,
    /// The first message of all that was not looked at, and how many there are.
    next: u64,
    end: u64,
    latency: Latency,
    confirmation: Latency,
    send_delay: Latency,
    sent: u64,
    sent_total: u64,
    confirmed: u64,
    received: u64,
    received_total: u64,
    merged: u64,
    received_ns: u64,
    payload: Vec<u8>,
    out: Vec<u8>,
}

impl ChatLoad {
    pub(crate) fn new(plan: &Plan, args: &Chat) -> Self {
        let connections = plan.connections as usize;
        let channels = u64::from(channels(args));
        let members = u64::from(args.all).div_ceil(channels);
        let rooms = Rooms {
            rooms: channels as u32,
            rooms_each: None,
            room_prefix: "channel:c".to_owned(),
            no_join: false,
            by: None,
        };
        Self {
            args: args.clone(),
            connections,
            first: plan.first.into(),
            channels,
            members,
            membership: Membership::new(plan, &rooms),
            order: Order::new(connections * members as usize),
            unconfirmed: vec![VecDeque::new(); connections],
            text_at: Finder::new(TEXT),
            run: Window::default(),
            running: false,
            drain_ns: None,
            next: 0,
            end: 0,
            latency: Latency::new(),
            confirmation: Latency::new(),
            send_delay: Latency::new(),
            sent: 0,
            sent_total: 0,
            confirmed: 0,
            received: 0,
            received_total: 0,
            merged: 0,
            received_ns: 0,
            payload: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Messages per second of all connections.
    fn per_second(&self) -> f64 {
        self.args.rate * f64::from(self.args.all) / 60.0
    }

    /// When a message of all is due.
    fn due_ns(&self, message: u64) -> u64 {
        self.run.start_ns + (message as f64 * SECOND_NS as f64 / self.per_second()) as u64
    }

    /// How many messages a connection, of all, has sent in the end.
    fn sent_by(&self, sender: u64) -> u64 {
        let all = u64::from(self.args.all);
        (self.end + all - 1 - sender) / all
    }

    /// The channel of a connection of this worker, and the number of its members.
    fn channel_of(&self, id: usize) -> (u64, u64) {
        let channel = (self.first + id as u64) % self.channels;
        (channel, (u64::from(self.args.all) + self.channels - 1 - channel) / self.channels)
    }

    /// Sends what is due by the clock. Returns when the next is due.
    fn send_due(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        let mut looked = 0;
        while self.next < self.end {
            let (message, due_ns) = (self.next, self.due_ns(self.next));
            if due_ns > now_ns {
                return due_ns;
            }
            self.next += 1;
            let all = u64::from(self.args.all);
            let Some(id) = (message % all).checked_sub(self.first) else { continue };
            if id >= self.connections as u64 || !clients.is_open(id as usize) {
                continue;
            }
            self.send(clients, id as usize, message, due_ns, now_ns);
            looked += 1;
            if looked == MESSAGES_PER_TICK {
                return now_ns;
            }
        }
        u64::MAX
    }

    fn send(&mut self, clients: &mut Clients, id: usize, message: u64, due_ns: u64, now_ns: u64) {
        let all = u64::from(self.args.all);
        let (sender, sequence) = (message % all, message / all);
        let channel = if self.channels == 1 { String::new() } else { (sender % self.channels).to_string() };
        self.payload.clear();
        let head = format!(
            r#"42["send_message",{{"channelId":"c{channel}","content":"s{sender}.{sequence}.{due_ns}."#
        );
        self.payload.extend_from_slice(head.as_bytes());
        self.payload.resize(head.len().max(self.args.size as usize), b'x');
        self.payload.extend_from_slice(br#""}]"#);
        self.out.clear();
        clients.masker.append_copy(&mut self.out, Opcode::Text, &self.payload);
        clients.send(id, &self.out);
        self.unconfirmed[id].push_back(due_ns);
        self.sent_total += 1;
        if self.run.measures(due_ns) {
            self.sent += 1;
            self.send_delay.record(now_ns - due_ns);
        }
    }

    /// A connection hears what another has said.
    fn hears(&mut self, clients: &mut Clients, id: usize, text: &[u8], now_ns: u64) {
        let mut numbers = [0; 3];
        let mut rest = text;
        for value in &mut numbers {
            let Some((read, length)) = number(rest) else { return clients.note_error("bad_event") };
            *value = read;
            rest = rest.get(length + 1..).unwrap_or_default();
        }
        let [sender, sequence, due_ns] = numbers;
        let (channel, _) = self.channel_of(id);
        if sender % self.channels != channel
            || sender == self.first + id as u64
            || sender / self.channels >= self.members
        {
            return clients.note_error("wrong_channel");
        }
        self.order.note(id * self.members as usize + (sender / self.channels) as usize, sequence);
        self.received_total += 1;
        self.received_ns = now_ns;
        if self.run.measures(due_ns) {
            self.received += 1;
            self.latency.record(now_ns.saturating_sub(due_ns));
        }
    }

    /// How much all connections of this worker hear of each other and of others in the end.
    fn expected(&self) -> u64 {
        let of_channel = |(channel, members): (u64, u64)| {
            (0..members).map(|member| self.sent_by(channel + member * self.channels)).sum::<u64>()
        };
        let mut by_channel = std::collections::HashMap::new();
        let heard = |id: usize| {
            let (channel, members) = self.channel_of(id);
            let all = *by_channel.entry(channel).or_insert_with(|| of_channel((channel, members)));
            all - self.sent_by(self.first + id as u64)
        };
        (0..self.connections).map(heard).sum()
    }
}

impl Listener for ChatLoad {
    #[inline]
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        if message.starts_with(SENT) {
            let Some(due_ns) = self.unconfirmed[id].pop_front() else {
                return clients.note_error("confirmed_twice");
            };
            if self.run.measures(due_ns) {
                self.confirmed += 1;
                self.confirmation.record(now_ns.saturating_sub(due_ns));
            }
            return;
        }
        if message.starts_with(ERROR) {
            return clients.note_error("server_error");
        }
        match self.text_at.find(message) {
            Some(at) => {
                self.merged += u64::from(message.starts_with(BATCH) && self.run.measures(now_ns));
                self.hears(clients, id, &message[at + TEXT.len()..], now_ns);
            }
            None => self.membership.hear(clients, id, message, now_ns),
        }
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.membership.gone(id);
    }
}

impl Load for ChatLoad {
    fn begin(&mut self, _clients: &mut Clients, command: &Command, now_ns: u64) {
        match command {
            Command::Run(window) => {
                (self.run, self.running) = (*window, true);
                let seconds = (window.to_ns - window.start_ns) as f64 / SECOND_NS as f64;
                self.end = (seconds * self.per_second()) as u64;
            }
            Command::Drain { .. } => self.drain_ns = Some(now_ns),
            _ => self.membership.join_all(0..self.connections, false),
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if self.drain_ns.is_some() {
            return now_ns + MILLISECOND_NS;
        }
        if !self.running {
            return self.membership.tend(clients, now_ns);
        }
        if now_ns < self.run.start_ns {
            return self.run.start_ns;
        }
        self.send_due(clients, now_ns).min(self.run.to_ns.max(now_ns + MILLISECOND_NS))
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let over = match self.drain_ns {
            Some(begun_ns) => {
                self.received_total - self.order.doubled() >= self.expected()
                    || now_ns >= begun_ns.max(self.received_ns) + STRAGGLERS_NS
                    || now_ns >= begun_ns + STRAGGLERS_MAX_NS
            }
            None => {
                self.membership.is_settled()
                    && (!self.running || (now_ns >= self.run.to_ns && self.next >= self.end))
            }
        };
        over.then(|| Done { at_ns: now_ns, ..Done::default() })
    }

    fn count(&self) -> u64 {
        self.membership.joined() + self.received_total
    }

    fn report(&mut self, tally: &mut Tally) {
        self.membership.report(tally);
        if self.drain_ns.is_some() {
            for id in 0..self.connections {
                let (channel, members) = self.channel_of(id);
                let others = (0..members).map(|member| (member, channel + member * self.channels));
                for (member, sender) in others.filter(|(_, sender)| *sender != self.first + id as u64) {
                    self.order.end(id * self.members as usize + member as usize, self.sent_by(sender));
                }
            }
        }
        let unconfirmed = self.unconfirmed.iter().map(VecDeque::len).sum::<usize>() as u64;
        if unconfirmed > 0 {
            *tally.errors.entry("not_confirmed".to_owned()).or_default() += unconfirmed;
        }
        tally.sent_total = self.sent_total;
        tally.publications = self.sent;
        tally.returns = self.confirmed;
        tally.received_total = self.received_total;
        tally.received = self.received;
        tally.messages = self.merged;
        tally.latency = self.latency.clone();
        tally.join_latency = self.confirmation.clone();
        tally.send_delay = self.send_delay.clone();
        tally.faults = self.order.faults();
    }
}

/// How many channels there are.
fn channels(args: &Chat) -> u32 {
    args.all.div_ceil(args.members)
}
