//! The fan-out scenario: some connections publish to a room, all others are in it and receive.
//!
//! Closed loop: a publisher sends a batch and the next one when every subscriber of every worker has all of it. Open
//! loop: publications are due at fixed times, and their latency counts from then, whoever was late.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use memchr::memmem::Finder;

use crate::args::{Common, Fanout, Rooms};
use crate::client::{COMPLETIONS, Clients, Listener};
use crate::clock::{self, MILLISECOND_NS, SECOND_NS};
use crate::control::{Command, Done, Plan};
use crate::frame::Opcode;
use crate::native::number;
use crate::order::Order;
use crate::parent::Phases;
use crate::phases::{Measured, Run, SENDS_PER_TICK, Traffic};
use crate::report::{Figures, Latency, Tally, ratio};
use crate::worker::{Load, completions_socket};

/// How the data of every publication begins.
pub(crate) const DATA_HEAD: &[u8] = br#"{"p":"#;
/// In closed loop: a batch that has not arrived whole by then is given up and the next one sent.
const STALL_NS: u64 = SECOND_NS;
/// At the end: the longest wait for what is under way.
pub(crate) const STRAGGLERS_MAX_SECONDS: f64 = 10.0;

/// With several servers: after the joins, how long they get to listen to each other.
const SETTLING_SECONDS: f64 = 1.0;

/// Workers tell each other a publisher and a batch in one 64-bit word; the batch is in the lower bits.
const BATCH_BITS: u32 = 48;

/// The parent's half.
pub(crate) fn run(common: &Common, args: &Fanout) -> impl Phases + use<> {
    let (args, most) = (args.clone(), STRAGGLERS_MAX_SECONDS);
    let settling_seconds = if args.servers.len() > 1 { SETTLING_SECONDS } else { 0.0 };
    let mut run = Run::new(common, args.warmup, most, move |measured, tally| figures(&args, measured, tally));
    run.settling_seconds = settling_seconds;
    run
}

fn figures(args: &Fanout, measured: &Measured, tally: &Tally) -> Figures {
    let deliveries = tally.received as f64;
    let mut figures = measured.begin("fanout", tally);
    figures.put("joined", tally.joined);
    figures.put("servers", args.servers.len().max(1));
    figures.put("publishers", args.publishers);
    figures.put("size_bytes", args.size);
    figures.put("in_flight", args.rate.is_none().then_some(args.in_flight));
    figures.number("rate_per_second", args.rate);
    measured.put_time(&mut figures, tally);
    figures.put("publications", tally.publications);
    measured.put_deliveries(&mut figures, tally);
    let per_cpu_second = measured.cpu_seconds().and_then(|seconds| ratio(Some(deliveries), seconds));
    figures.number("deliveries_per_cpu_second", per_cpu_second);
    figures.latency("latency", &tally.latency);
    figures.latency("latency_elsewhere", &tally.latency_elsewhere);
    figures.latency("send_delay", &tally.send_delay);
    figures.put("publications_total", tally.sent_total);
    figures.put("deliveries_total", tally.received_total);
    let expected = measured.published.map(|count| count * u64::from(measured.connections));
    figures.put("deliveries_expected", expected);
    figures.put("dropped", tally.dropped);
    figures.put("stalls", tally.stalls);
    figures.number("reads_per_delivery", ratio(Some(tally.reads as f64), deliveries));
    measured.end(figures, tally)
}

/// A worker's half. Its subscribers are the members, its publishers come after them; only worker 0
/// has publishers.
pub(crate) struct FanoutLoad {
    traffic: Traffic,
    /// Subscribers a batch is waited for: open when the run began, and not closed since; none before the run.
    subscribers_open: usize,
    /// Publishers of all workers, which are those of worker 0.
    publishers_all: usize,
    /// One stream for each subscriber and publisher: `subscriber * publishers_all + publisher`.
    order: Order,
    size: usize,
    /// Where the data was in the last event; in the next it is likely at the same place.
    data_at: usize,
    data_head: Finder<'static>,
    /// Of what came from other servers than the first, at which all is published.
    latency_elsewhere: Latency,
    servers: usize,
    pace: Pace,
    /// In closed loop, for each publisher: how far this worker's subscribers are.
    progress: Vec<BatchProgress>,
    /// To and from the other workers, where there are any.
    completions: Option<UnixDatagram>,
    workers: u32,
    worker: u32,
    publishers: Vec<Publisher>,
    /// What stands before and after the data of a publication.
    publish_ends: (Vec<u8>, &'static [u8]),
    stalls: u64,
    payload: Vec<u8>,
    out: Vec<u8>,
}

/// When to publish.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// So many at once, and again when all have arrived.
    Batches { in_flight: u64 },
    /// Publication `n` of all is due `n * interval` after the start and sent by publisher `n % publishers`; `next` is the first not sent.
    Clock { per_second: f64, next: u64 },
}

/// The newest batch of which some subscriber here has the last publication, and how many have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BatchProgress {
    batch: u64,
    subscribers: usize,
}

struct Publisher {
    id: usize,
    /// Publications sent.
    sent: u64,
    /// When the last batch was sent.
    sent_ns: u64,
    /// Workers whose subscribers all have the last batch.
    workers_done: u32,
}

impl FanoutLoad {
    pub(crate) fn new(plan: &Plan, args: &Fanout) -> io::Result<Self> {
        let subscribers = plan.connections as usize;
        let publishers_all = args.publishers as usize;
        let rooms = Rooms {
            rooms: 1,
            rooms_each: None,
            room_prefix: args.room.clone(),
            no_join: args.no_join,
            by: None,
        };
        let ids = subscribers..subscribers + if plan.worker == 0 { publishers_all } else { 0 };
        let completions = match plan.workers {
            1 => None,
            _ => Some(UnixDatagram::from(completions_socket()?)),
        };
        Ok(Self {
            traffic: Traffic::new(plan, &rooms, STRAGGLERS_MAX_SECONDS),
            subscribers_open: 0,
            publishers_all,
            order: Order::new(subscribers * publishers_all),
            size: args.size as usize,
            data_at: 0,
            data_head: Finder::new(DATA_HEAD),
            latency_elsewhere: Latency::new(),
            servers: plan.targets.len(),
            pace: match args.rate {
                Some(per_second) => Pace::Clock { per_second, next: 0 },
                None => Pace::Batches { in_flight: args.in_flight.into() },
            },
            progress: vec![BatchProgress::default(); publishers_all],
            completions,
            workers: plan.workers,
            worker: plan.worker,
            publishers: ids.map(|id| Publisher { id, sent: 0, sent_ns: 0, workers_done: 0 }).collect(),
            publish_ends: plan.protocol.publish_ends(&args.room),
            stalls: 0,
            payload: Vec::new(),
            out: Vec::new(),
        })
    }

    /// Publishers of this worker.
    pub(crate) fn publishers(&self) -> usize {
        self.publishers.len()
    }

    /// Worker 0 listens to what the others say.
    pub(crate) fn watch(&self, clients: &Clients) -> io::Result<()> {
        match &self.completions {
            Some(socket) if self.worker == 0 => {
                socket.set_nonblocking(true)?;
                clients.watch(socket.as_fd(), COMPLETIONS)
            }
            _ => Ok(()),
        }
    }

    /// Takes note of one delivery.
    #[inline]
    fn deliver(&mut self, clients: &mut Clients, id: usize, event: &Event, now_ns: u64) {
        let publisher = event.publisher as usize;
        if publisher >= self.publishers_all {
            return clients.note_error("bad_event");
        }
        self.traffic.arrives_since(event.due_ns, now_ns);
        let elsewhere = self.servers > 1 && !(self.traffic.first + id + 1).is_multiple_of(self.servers);
        if elsewhere && self.traffic.run.measures(event.due_ns) {
            self.latency_elsewhere.record(now_ns.saturating_sub(event.due_ns));
        }
        let is_new = self.order.note(id * self.publishers_all + publisher, event.sequence);
        if let Pace::Batches { in_flight } = self.pace
            && is_new
            && (event.sequence + 1).is_multiple_of(in_flight)
        {
            self.has_batch(clients, publisher, event.sequence / in_flight);
        }
    }

    /// One more subscriber has the last publication of this batch.
    fn has_batch(&mut self, clients: &mut Clients, publisher: usize, batch: u64) {
        let progress = &mut self.progress[publisher];
        if batch > progress.batch {
            *progress = BatchProgress { batch, subscribers: 0 };
        } else if batch < progress.batch {
            return;
        }
        progress.subscribers += 1;
        if progress.subscribers != self.subscribers_open {
            return;
        }
        if self.worker == 0 {
            self.worker_done(publisher, batch);
        } else if let Some(socket) = &self.completions {
            let word = ((publisher as u64) << BATCH_BITS | batch).to_ne_bytes();
            // Worker 0 reads whenever it turns its loop. If it is gone, the parent ends this worker too.
            if socket.send(&word).is_err() {
                clients.note_error("completion_not_sent");
            }
        }
    }

    /// One more worker has this batch whole.
    fn worker_done(&mut self, publisher: usize, batch: u64) {
        if let Pace::Batches { in_flight } = self.pace
            && let Some(publisher) = self.publishers.get_mut(publisher)
            && publisher.sent == (batch + 1) * in_flight
        {
            publisher.workers_done += 1;
        }
    }

    /// Sends the next batch of each publisher whose last one has arrived. Returns when to look again at the latest.
    fn publish_batches(&mut self, clients: &mut Clients, in_flight: u64, now_ns: u64) -> u64 {
        let mut due_ns = u64::MAX;
        for index in 0..self.publishers.len() {
            let publisher = &self.publishers[index];
            let all_done = publisher.workers_done == self.workers;
            if publisher.sent > 0 && !all_done {
                if now_ns < publisher.sent_ns + STALL_NS {
                    due_ns = due_ns.min(publisher.sent_ns + STALL_NS);
                    continue;
                }
                self.stalls += 1;
            }
            if !clients.is_open(publisher.id) {
                continue;
            }
            self.out.clear();
            let sent_ns = clock::now_ns();
            for _ in 0..in_flight {
                self.append(clients, index, sent_ns);
            }
            let publisher = &mut self.publishers[index];
            publisher.sent_ns = sent_ns;
            publisher.workers_done = 0;
            clients.send(publisher.id, &self.out);
            due_ns = due_ns.min(sent_ns + STALL_NS);
        }
        due_ns
    }

    /// Sends what is due by the clock, each publisher's share at once. Returns when the next is due.
    fn publish_due(&mut self, clients: &mut Clients, per_second: f64, first: u64, now_ns: u64) -> u64 {
        let run = self.traffic.run;
        let due_ns = |number: u64| run.due_ns(number, per_second);
        if now_ns < due_ns(first) {
            return due_ns(first);
        }
        // A publisher whose socket is full would only pile up bytes here. What is due stays due, and the wait counts.
        if self.publishers.iter().any(|publisher| clients.has_unsent(publisher.id)) {
            return now_ns + MILLISECOND_NS;
        }
        let due = (first..first + SENDS_PER_TICK).take_while(|number| due_ns(*number) <= now_ns);
        let end = first + due.count() as u64;
        let publishers = self.publishers.len() as u64;
        for index in 0..self.publishers.len() {
            let id = self.publishers[index].id;
            if !clients.is_open(id) {
                continue;
            }
            self.out.clear();
            for number in (first..end).filter(|number| number % publishers == index as u64) {
                if run.measures(due_ns(number)) {
                    self.traffic.send_delay.record(now_ns - due_ns(number));
                }
                self.append(clients, index, due_ns(number));
            }
            clients.send(id, &self.out);
        }
        self.pace = Pace::Clock { per_second, next: end };
        // Whether more is due is seen at the next tick, after a look at the sockets.
        now_ns
    }

    /// Appends the next publication of a publisher to what is about to be sent.
    fn append(&mut self, clients: &mut Clients, index: usize, due_ns: u64) {
        let publisher = &mut self.publishers[index];
        self.payload.clear();
        self.payload.extend_from_slice(&self.publish_ends.0);
        append_data(&mut self.payload, index, publisher.sent, due_ns, self.size);
        self.payload.extend_from_slice(self.publish_ends.1);
        publisher.sent += 1;
        self.traffic.publications += u64::from(self.traffic.run.measures(due_ns));
        clients.masker.append_copy(&mut self.out, Opcode::Text, &self.payload);
    }
}

impl Listener for FanoutLoad {
    #[inline]
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        if id >= self.traffic.members {
            // A publisher hears answers only; some servers also send it what others publish, which is no delivery.
            return self.traffic.hear(clients, id, message, now_ns);
        }
        let expected = message.get(self.data_at..).is_some_and(|rest| rest.starts_with(DATA_HEAD));
        if !expected {
            match self.data_head.find(message) {
                Some(at) => self.data_at = at,
                None => return self.traffic.hear(clients, id, message, now_ns),
            }
        }
        let mut at = self.data_at;
        loop {
            let Some(event) = parse_data(&message[at..], self.size) else {
                return clients.note_error("bad_event");
            };
            self.deliver(clients, id, &event, now_ns);
            // More than one event in a message: the server batches.
            at += self.size;
            if message.len() - at < self.size {
                return;
            }
            match self.data_head.find(&message[at..]) {
                Some(next) => at += next,
                None => return,
            }
        }
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.traffic.closed(id);
        if id < self.traffic.members {
            self.subscribers_open = self.subscribers_open.saturating_sub(1);
        }
    }
}

impl Load for FanoutLoad {
    fn begin(&mut self, clients: &mut Clients, command: &Command, now_ns: u64) {
        self.traffic.begin(command, now_ns);
        if let Command::Run(_) = command {
            self.subscribers_open = (0..self.traffic.members).filter(|id| clients.is_open(*id)).count();
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if let Some(due_ns) = self.traffic.tick(clients, now_ns) {
            return due_ns;
        }
        let due_ns = match self.pace {
            _ if self.publishers.is_empty() || now_ns >= self.traffic.run.to_ns => u64::MAX,
            Pace::Batches { in_flight } => self.publish_batches(clients, in_flight, now_ns),
            Pace::Clock { per_second, next } => self.publish_due(clients, per_second, next, now_ns),
        };
        self.traffic.wake_ns(due_ns, now_ns)
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let has_all = |published: &[u64]| {
            let expected = published.iter().sum::<u64>() * self.traffic.members as u64;
            self.traffic.received_total - self.order.doubled() >= expected
        };
        let published = || self.publishers.iter().map(|publisher| publisher.sent).collect();
        self.traffic.over(now_ns, true, has_all, published)
    }

    fn completions(&mut self) -> io::Result<()> {
        loop {
            let mut word = [0; 8];
            match self.completions.as_ref().map(|socket| socket.recv(&mut word)) {
                Some(Ok(_)) => {}
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => return Ok(()),
            }
            let word = u64::from_ne_bytes(word);
            self.worker_done((word >> BATCH_BITS) as usize, word & ((1 << BATCH_BITS) - 1));
        }
    }

    fn count(&self) -> u64 {
        self.traffic.count()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.traffic.report(tally);
        if let Some(published) = self.traffic.published() {
            for subscriber in 0..self.traffic.members {
                for (publisher, &published) in published.iter().enumerate() {
                    self.order.end(subscriber * self.publishers_all + publisher, published);
                }
            }
        }
        tally.sent_total = self.publishers.iter().map(|publisher| publisher.sent).sum();
        tally.latency_elsewhere = self.latency_elsewhere.clone();
        tally.stalls = self.stalls;
        tally.faults = self.order.faults();
    }
}

/// What a publication's data says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) publisher: u64,
    pub(crate) sequence: u64,
    pub(crate) due_ns: u64,
}

/// Appends the data of a publication, padded to `size` bytes.
pub(crate) fn append_data(out: &mut Vec<u8>, publisher: usize, sequence: u64, due_ns: u64, size: usize) {
    let start = out.len();
    let head = format!(r#"{{"p":{publisher},"s":{sequence},"t":{due_ns},"x":""#);
    out.extend_from_slice(head.as_bytes());
    out.resize((start + size - 2).max(out.len()), b'x');
    out.extend_from_slice(b"\"}");
}

/// Reads the data at the start of the bytes; `None` when it is not what was published, or is cut short.
#[inline]
pub(crate) fn parse_data(bytes: &[u8], size: usize) -> Option<Event> {
    let rest = bytes.get(..size)?.strip_suffix(b"\"}")?.strip_prefix(DATA_HEAD)?;
    let (publisher, length) = number(rest)?;
    let rest = rest[length..].strip_prefix(br#","s":"#)?;
    let (sequence, length) = number(rest)?;
    let rest = rest[length..].strip_prefix(br#","t":"#)?;
    let (due_ns, _) = number(rest)?;
    Some(Event { publisher, sequence, due_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_its_size_and_says_what_was_put_in() {
        for (publisher, sequence, due_ns, size) in
            [(0, 0, 1, 64), (999, u64::from(u32::MAX), 1 << 60, 64), (1, 2, 3, 100), (1, 2, 3, 5_000)]
        {
            let mut data = Vec::new();
            append_data(&mut data, publisher, sequence, due_ns, size);
            assert_eq!(data.len(), size);
            assert!(serde_json::from_slice::<serde_json::Value>(&data).is_ok());
            let event = Event { publisher: publisher as u64, sequence, due_ns };
            assert_eq!(parse_data(&data, size), Some(event));
            assert_eq!(parse_data(&data[..size - 1], size), None);
            data[size - 1] = b'x';
            assert_eq!(parse_data(&data, size), None);
        }
    }
}
