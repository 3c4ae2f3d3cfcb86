//! The idle scenario: open, join, hold. It measures handshakes and what a connection costs in memory.

use serde_json::json;

use crate::args::{Common, Idle};
use crate::client::{Clients, Listener};
use crate::clock::{self, MILLISECOND_NS, SECOND_NS, now_ns};
use crate::control::{Command, Done, Plan, Window};
use crate::membership::Membership;
use crate::parent::{Halt, Parent, Phases};
use crate::proc::{Memory, Server, Span};
use crate::report::{Figures, Tally, ratio};
use crate::worker::Load;

/// How often connections are chosen for churn.
const CHURN_NS: u64 = 10 * MILLISECOND_NS;

/// The parent's half: the phases, and what was measured in each.
pub(crate) struct IdleRun {
    connections: u32,
    seconds: f64,
    args: Idle,
    connect: Option<Span>,
    join: Option<Span>,
    hold: Option<Span>,
    before: Option<Memory>,
    after: Option<Memory>,
    end: Option<Memory>,
    /// Seconds into the hold, and the resident set then.
    samples: Vec<(f64, u64)>,
}

impl IdleRun {
    pub(crate) fn new(common: &Common, args: &Idle) -> Self {
        Self {
            connections: common.connections,
            seconds: common.seconds,
            args: args.clone(),
            connect: None,
            join: None,
            hold: None,
            before: None,
            after: None,
            end: None,
            samples: Vec::new(),
        }
    }
}

impl Phases for IdleRun {
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt> {
        self.before = parent.settled_memory(server)?;
        if !parent.connect(&mut self.connect, server)? {
            return Ok(());
        }
        if !self.args.rooms.no_join {
            parent.join(&mut self.join, server)?;
        }
        self.after = parent.settled_memory(server)?;

        let from_ns = now_ns();
        let to_ns = from_ns + clock::seconds_ns(self.seconds);
        let hold = self.hold.insert(Span::begin(server));
        parent.order(&Command::Run(Window { start_ns: from_ns, from_ns, to_ns }))?;
        parent.stage("holding", self.seconds);
        let sample_ns = clock::seconds_ns(self.args.sample_seconds);
        let mut due_ns = if sample_ns > 0 { from_ns + sample_ns } else { u64::MAX };
        while due_ns < to_ns {
            parent.until(due_ns)?;
            if let Some(memory) = server.and_then(|server| server.memory().ok()) {
                let seconds = (due_ns - from_ns) as f64 / SECOND_NS as f64;
                self.samples.push((seconds, memory.rss_bytes));
            }
            due_ns += sample_ns;
        }
        parent.until(to_ns)?;
        hold.end(server);
        self.end = server.and_then(|server| server.memory().ok());
        parent.all_done()?;
        Ok(())
    }

    fn figures(&self, tally: &Tally, server: Option<&Server>) -> Figures {
        let mut figures = Figures::default();
        let used = |span: &Option<Span>| span.as_ref().map(|span| span.used(server));
        let (connect, join, hold) = (used(&self.connect), used(&self.join), used(&self.hold));
        let handshakes = tally.handshakes as f64;
        let joins = (tally.joined > 0).then_some(tally.joined as f64);
        let each =
            |cpu_seconds: Option<f64>, count: f64| ratio(cpu_seconds.map(|seconds| seconds * 1e6), count);

        figures.put("scenario", "idle");
        figures.put("connections", self.connections);
        figures.put("opened", tally.handshakes);
        figures.put("joined", tally.joined);
        figures.number("seconds", hold.map(|hold| hold.seconds));
        figures.number("server_cpu_seconds", hold.and_then(|hold| hold.cpu_seconds));
        figures.number("connect_seconds", connect.map(|connect| connect.seconds));
        figures
            .number("handshakes_per_second", connect.and_then(|used| ratio(Some(handshakes), used.seconds)));
        figures.number("cpu_us_per_handshake", connect.and_then(|used| each(used.cpu_seconds, handshakes)));
        figures.latency("handshake_latency", &tally.handshake_latency);
        figures.number("join_seconds", join.map(|join| join.seconds));
        figures.number("joins_per_second", join.and_then(|used| ratio(joins, used.seconds)));
        figures.number("cpu_us_per_join", join.and_then(|used| each(used.cpu_seconds, joins?)));
        figures.latency("join_latency", &tally.join_latency);
        let memories = [("before", self.before), ("after", self.after), ("end", self.end)];
        for (when, memory) in memories {
            figures.put(&format!("rss_{when}_bytes"), memory.map(|memory| memory.rss_bytes));
            figures.put(&format!("pss_{when}_bytes"), memory.map(|memory| memory.pss_bytes));
            figures.put(&format!("anonymous_{when}_bytes"), memory.map(|memory| memory.anonymous_bytes));
            figures
                .put(&format!("private_dirty_{when}_bytes"), memory.map(|memory| memory.private_dirty_bytes));
        }
        let grown = |bytes: fn(&Memory) -> u64| {
            let (before, after) = (self.before.as_ref()?, self.after.as_ref()?);
            ratio(Some(bytes(after) as f64 - bytes(before) as f64), handshakes)
        };
        figures.number("bytes_per_connection", grown(|memory| memory.rss_bytes));
        figures.number("anonymous_bytes_per_connection", grown(|memory| memory.anonymous_bytes));
        let samples = self.samples.iter().map(|(seconds, rss_bytes)| json!({"t": seconds, "rss": rss_bytes}));
        figures.put("samples", samples.collect::<Vec<_>>());
        figures.put("churns", tally.churns);
        figures.latency("churn_latency", &tally.churn_latency);
        figures.end(tally);
        figures
    }
}

/// A worker's half.
pub(crate) struct IdleLoad {
    membership: Membership,
    connections: usize,
    /// Probability per second of a connection.
    churn: f64,
    random: fastrand::Rng,
    hold: Window,
    churned_ns: u64,
    /// Churns due by now, in parts of one.
    churns_due: f64,
}

impl IdleLoad {
    pub(crate) fn new(plan: &Plan, args: &Idle) -> Self {
        Self {
            membership: Membership::new(plan, &args.rooms),
            connections: plan.connections as usize,
            churn: args.churn,
            random: fastrand::Rng::with_seed(u64::from(plan.first)),
            hold: Window::default(),
            churned_ns: 0,
            churns_due: 0.0,
        }
    }
}

impl Listener for IdleLoad {
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        self.membership.hear(clients, id, message, now_ns);
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.membership.gone(id);
    }
}

impl Load for IdleLoad {
    fn begin(&mut self, _clients: &mut Clients, command: &Command, now_ns: u64) {
        match command {
            Command::Run(window) => {
                self.hold = *window;
                self.churned_ns = now_ns;
            }
            _ => self.membership.join_all(0..self.connections, false),
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        let mut due_ns = self.membership.tend(clients, now_ns);
        if self.churn > 0.0 && self.hold.measures(now_ns) {
            if now_ns >= self.churned_ns + CHURN_NS {
                let seconds = (now_ns - self.churned_ns) as f64 / SECOND_NS as f64;
                self.churns_due += seconds * self.churn * self.connections as f64;
                self.churned_ns = now_ns;
                while self.churns_due >= 1.0 {
                    self.churns_due -= 1.0;
                    let id = self.random.usize(..self.connections);
                    self.membership.churn(clients, id, now_ns);
                }
            }
            due_ns = due_ns.min(self.churned_ns + CHURN_NS);
        }
        due_ns.min(if now_ns < self.hold.to_ns { self.hold.to_ns } else { u64::MAX })
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let over = self.membership.is_settled() && now_ns >= self.hold.to_ns;
        over.then(|| Done { at_ns: now_ns, ..Done::default() })
    }

    fn count(&self) -> u64 {
        self.membership.joined()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.membership.report(tally);
    }
}
