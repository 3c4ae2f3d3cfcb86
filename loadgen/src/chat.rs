//! The chat scenario: everybody is in a channel, says something now and then, and hears what the others of the channel say.
//!
//! Open loop: messages are due at fixed times, whose it is goes round. A message must come once to each other member of its channel, in
//! its sender's order, as `new_message` or within `batch_update`; to its sender comes `message_sent`.

use std::collections::VecDeque;

use memchr::memmem::Finder;

use crate::args::{Chat, Common, Rooms};
use crate::client::{Clients, Listener};
use crate::clock::SECOND_NS;
use crate::control::{Command, Done, Plan};
use crate::frame::Opcode;
use crate::native::number;
use crate::order::Order;
use crate::parent::Phases;
use crate::phases::{Measured, Run, SENDS_PER_TICK, Traffic};
use crate::report::{Figures, Latency, Tally};
use crate::worker::Load;

/// How packets begin that say these things, and what a message's text begins with.
const SENT: &[u8] = br#"2["message_sent""#;
const BATCH: &[u8] = br#"2["batch_update""#;
const ERROR: &[u8] = br#"2["error""#;
const TEXT: &[u8] = br#""content":"s"#;
/// At the end: the longest wait for what is under way.
const STRAGGLERS_MAX_SECONDS: f64 = 20.0;

/// The parent's half.
pub(crate) fn run(common: &Common, args: &Chat) -> impl Phases + use<> {
    let (args, most) = (args.clone(), STRAGGLERS_MAX_SECONDS);
    Run::new(common, args.warmup, most, move |measured, tally| figures(&args, measured, tally))
}

fn figures(args: &Chat, measured: &Measured, tally: &Tally) -> Figures {
    let mut figures = measured.begin("chat", tally);
    figures.put("joined", tally.joined);
    figures.put("channels", channels(args));
    figures.number("messages_per_minute_each", Some(args.rate));
    figures.put("size_bytes", args.size);
    figures.latency("handshake_latency", &tally.handshake_latency);
    measured.put_time(&mut figures, tally);
    figures.put("segments", measured.used.and_then(|used| used.segments));
    figures.put("messages", tally.publications);
    figures.put("confirmed", tally.returns);
    measured.put_deliveries(&mut figures, tally);
    figures.put("deliveries_merged", tally.messages);
    figures.latency("latency", &tally.latency);
    figures.latency("confirmation", &tally.join_latency);
    figures.latency("send_delay", &tally.send_delay);
    figures.put("messages_total", tally.sent_total);
    figures.put("deliveries_total", tally.received_total);
    measured.end(figures, tally)
}

/// A worker's half.
pub(crate) struct ChatLoad {
    args: Chat,
    traffic: Traffic,
    channels: u64,
    /// Of each channel at the most.
    members: u64,
    /// One stream for each connection and member of its channel: `connection * members + member`.
    order: Order,
    /// When what was sent and not confirmed was due, for each connection, oldest first.
    unconfirmed: Vec<VecDeque<u64>>,
    text_at: Finder<'static>,
    /// The first message of all that was not looked at, and how many there are.
    next: u64,
    end: u64,
    confirmation: Latency,
    sent_total: u64,
    merged: u64,
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
            traffic: Traffic::new(plan, &rooms, STRAGGLERS_MAX_SECONDS),
            channels,
            members,
            order: Order::new(connections * members as usize),
            unconfirmed: vec![VecDeque::new(); connections],
            text_at: Finder::new(TEXT),
            next: 0,
            end: 0,
            confirmation: Latency::new(),
            sent_total: 0,
            merged: 0,
            payload: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Messages per second of all connections.
    fn per_second(&self) -> f64 {
        self.args.rate * f64::from(self.args.all) / 60.0
    }

    /// How many messages a connection, of all, has sent in the end.
    fn sent_by(&self, sender: u64) -> u64 {
        let all = u64::from(self.args.all);
        (self.end + all - 1 - sender) / all
    }

    /// A connection of this worker among those of all.
    fn number_of(&self, id: usize) -> u64 {
        (self.traffic.first + id) as u64
    }

    /// The channel of a connection of this worker, and the number of its members.
    fn channel_of(&self, id: usize) -> (u64, u64) {
        let channel = self.number_of(id) % self.channels;
        (channel, (u64::from(self.args.all) + self.channels - 1 - channel) / self.channels)
    }

    /// Sends what is due by the clock. Returns when the next is due.
    fn send_due(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        let mut looked = 0;
        while self.next < self.end {
            let (message, due_ns) = (self.next, self.traffic.run.due_ns(self.next, self.per_second()));
            if due_ns > now_ns {
                return due_ns;
            }
            self.next += 1;
            let all = u64::from(self.args.all);
            let Some(id) = (message % all).checked_sub(self.traffic.first as u64) else { continue };
            if id >= self.traffic.members as u64 || !clients.is_open(id as usize) {
                continue;
            }
            self.send(clients, id as usize, message, due_ns, now_ns);
            looked += 1;
            if looked == SENDS_PER_TICK {
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
        self.traffic.sends(due_ns, now_ns);
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
            || sender == self.number_of(id)
            || sender / self.channels >= self.members
        {
            return clients.note_error("wrong_channel");
        }
        self.order.note(id * self.members as usize + (sender / self.channels) as usize, sequence);
        self.traffic.arrives_since(due_ns, now_ns);
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
            all - self.sent_by(self.number_of(id))
        };
        (0..self.traffic.members).map(heard).sum()
    }
}

impl Listener for ChatLoad {
    #[inline]
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        if message.starts_with(SENT) {
            let Some(due_ns) = self.unconfirmed[id].pop_front() else {
                return clients.note_error("confirmed_twice");
            };
            if self.traffic.run.measures(due_ns) {
                self.confirmation.record(now_ns.saturating_sub(due_ns));
            }
            return;
        }
        if message.starts_with(ERROR) {
            return clients.note_error("server_error");
        }
        match self.text_at.find(message) {
            Some(at) => {
                self.merged += u64::from(message.starts_with(BATCH) && self.traffic.run.measures(now_ns));
                self.hears(clients, id, &message[at + TEXT.len()..], now_ns);
            }
            None => self.traffic.hear(clients, id, message, now_ns),
        }
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.traffic.closed(id);
    }
}

impl Load for ChatLoad {
    fn begin(&mut self, _clients: &mut Clients, command: &Command, now_ns: u64) {
        self.traffic.begin(command, now_ns);
        if let Command::Run(window) = command {
            let seconds = (window.to_ns - window.start_ns) as f64 / SECOND_NS as f64;
            self.end = (seconds * self.per_second()) as u64;
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if let Some(due_ns) = self.traffic.tick(clients, now_ns) {
            return due_ns;
        }
        let due_ns = self.send_due(clients, now_ns);
        self.traffic.wake_ns(due_ns, now_ns)
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let has_all = |_: &[u64]| self.traffic.received_total - self.order.doubled() >= self.expected();
        self.traffic.over(now_ns, self.next >= self.end, has_all, Vec::new)
    }

    fn count(&self) -> u64 {
        self.traffic.count()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.traffic.report(tally);
        if self.traffic.published().is_some() {
            for id in 0..self.traffic.members {
                let (channel, members) = self.channel_of(id);
                let own = self.number_of(id);
                let others = (0..members).map(|member| (member, channel + member * self.channels));
                for (member, sender) in others.filter(|(_, sender)| *sender != own) {
                    self.order.end(id * self.members as usize + member as usize, self.sent_by(sender));
                }
            }
        }
        let unconfirmed = self.unconfirmed.iter().map(VecDeque::len).sum::<usize>() as u64;
        if unconfirmed > 0 {
            *tally.errors.entry("not_confirmed".to_owned()).or_default() += unconfirmed;
        }
        tally.sent_total = self.sent_total;
        tally.returns = self.confirmation.count();
        // By when they were sent, so that none is missing because it came after the window.
        tally.received = tally.latency.count();
        tally.messages = self.merged;
        tally.join_latency = self.confirmation.clone();
        tally.faults = self.order.faults();
    }
}

/// How many channels there are.
fn channels(args: &Chat) -> u32 {
    args.all.div_ceil(args.members)
}
