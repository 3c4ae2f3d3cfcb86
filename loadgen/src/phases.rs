//! The phases of a load by the clock: connect, join, run through a window that is measured, wait for what is still under way. The parent
//! goes through them, with what it measures meanwhile; a worker knows in which it is, and counts what goes and comes.

use crate::args::{Common, Rooms};
use crate::client::Clients;
use crate::clock::{self, MILLISECOND_NS, SECOND_NS};
use crate::control::{Command, Done, Plan, Window};
use crate::membership::Membership;
use crate::parent::{Halt, Parent, Phases};
use crate::proc::{Memory, Server, Span, Used};
use crate::protocol::Said;
use crate::report::{Figures, Latency, Tally, ratio};

/// What is due is caught up on by so much before the sockets are looked at again.
pub(crate) const SENDS_PER_TICK: u64 = 256;
/// At the end: so long without a message means that nothing more will come.
const STRAGGLERS_NS: u64 = 2 * SECOND_NS;

/// The parent's half of a scenario, of whose figures `F` says which they are.
pub(crate) struct Run<F> {
    connections: u32,
    warmup_seconds: f64,
    seconds: f64,
    /// After the joins, until the run.
    pub(crate) settling_seconds: f64,
    stragglers_max_seconds: f64,
    figures: F,
    before: Option<Memory>,
    end: Option<Memory>,
    window: Option<Span>,
    in_all: Option<Span>,
    published: Option<u64>,
}

/// What the parent measured, as far as a run came.
pub(crate) struct Measured {
    pub(crate) connections: u32,
    /// In the window. It has no `cpu_seconds` where no process is named.
    pub(crate) used: Option<Used>,
    /// From the beginning of the window until nothing was under way any more, or the wait for it was over.
    pub(crate) used_in_all: Option<Used>,
    /// Sent by all publishers in the whole run, once that is known.
    pub(crate) published: Option<u64>,
    before: Option<Memory>,
    end: Option<Memory>,
}

impl<F: Fn(&Measured, &Tally) -> Figures> Run<F> {
    /// At the end it waits for `stragglers_max_seconds` at the most.
    pub(crate) fn new(common: &Common, warmup_seconds: f64, stragglers_max_seconds: f64, figures: F) -> Self {
        Self {
            connections: common.connections,
            warmup_seconds,
            seconds: common.seconds,
            settling_seconds: 0.0,
            stragglers_max_seconds,
            figures,
            before: None,
            end: None,
            window: None,
            in_all: None,
            published: None,
        }
    }
}

impl<F: Fn(&Measured, &Tally) -> Figures> Phases for Run<F> {
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt> {
        self.before = server.and_then(|server| server.memory().ok());
        if !parent.connect(&mut None, server)? {
            return Ok(());
        }
        parent.join(&mut None, server)?;
        if self.settling_seconds > 0.0 {
            parent.stage("settling", self.settling_seconds);
            parent.until(clock::now_ns() + clock::seconds_ns(self.settling_seconds))?;
        }
        parent.measured_run(self.warmup_seconds, self.seconds, &mut self.window, server)?;
        let in_all = self.window.as_ref().map(Span::still_going);
        self.end = server.and_then(|server| server.memory().ok());
        let published: Vec<u64> = parent.all_done()?.into_iter().flat_map(|done| done.published).collect();
        self.published = Some(published.iter().sum());
        parent.order(&Command::Drain { published })?;
        parent.stage("waiting", self.stragglers_max_seconds);
        self.in_all = in_all;
        parent.all_done_within(clock::seconds_ns(self.stragglers_max_seconds))?;
        if let Some(in_all) = &mut self.in_all {
            in_all.end(server);
        }
        Ok(())
    }

    fn figures(&self, tally: &Tally, server: Option<&Server>) -> Figures {
        let used = |span: &Option<Span>| span.as_ref().map(|span| span.used(server));
        let measured = Measured {
            connections: self.connections,
            used: used(&self.window),
            used_in_all: used(&self.in_all),
            published: self.published,
            before: self.before,
            end: self.end,
        };
        (self.figures)(&measured, tally)
    }
}

impl Measured {
    /// The figures that come first.
    pub(crate) fn begin(&self, scenario: &str, tally: &Tally) -> Figures {
        let mut figures = Figures::default();
        figures.put("scenario", scenario);
        figures.put("connections", self.connections);
        figures.put("opened", tally.handshakes);
        figures
    }

    /// How long the window was and what it took.
    pub(crate) fn put_time(&self, figures: &mut Figures, tally: &Tally) {
        figures.number("seconds", self.used.map(|used| used.seconds));
        figures.number("server_cpu_seconds", self.cpu_seconds());
        figures.number("generator_cpu_seconds", Some(tally.own_cpu_ns as f64 / SECOND_NS as f64));
    }

    /// What was delivered in the window, and at what cost.
    pub(crate) fn put_deliveries(&self, figures: &mut Figures, tally: &Tally) {
        let deliveries = tally.received as f64;
        let per_second = self.used.and_then(|used| ratio(Some(deliveries), used.seconds));
        figures.put("deliveries", tally.received);
        figures.number("deliveries_per_second", per_second);
        figures.number("cpu_us_per_delivery", ratio(self.cpu_us(), deliveries));
    }

    /// The server's CPU time in the window.
    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        self.used.and_then(|used| used.cpu_seconds)
    }

    /// The same in microseconds.
    pub(crate) fn cpu_us(&self) -> Option<f64> {
        self.cpu_seconds().map(|seconds| seconds * 1e6)
    }

    /// With the figures that come last.
    pub(crate) fn end(&self, mut figures: Figures, tally: &Tally) -> Figures {
        figures.put("bytes_received", tally.bytes_received);
        figures.put("reads", tally.reads);
        figures.put("lost", tally.faults.lost);
        figures.put("doubled", tally.faults.doubled);
        figures.put("reordered", tally.faults.reordered);
        figures.put("rss_before_bytes", self.before.map(|memory| memory.rss_bytes));
        figures.put("rss_end_bytes", self.end.map(|memory| memory.rss_bytes));
        figures.end(tally);
        figures
    }
}

/// A worker's half: in which phase it is, and what has gone and come.
pub(crate) struct Traffic {
    /// Connections that join, `0..members`; those that only publish come behind them.
    pub(crate) members: usize,
    /// Number of connection 0 among those of all workers.
    pub(crate) first: usize,
    pub(crate) membership: Membership,
    /// All zero before the run.
    pub(crate) run: Window,
    stage: Stage,
    stragglers_max_ns: u64,
    /// Publications that were due in the window.
    pub(crate) publications: u64,
    pub(crate) send_delay: Latency,
    pub(crate) received_total: u64,
    received: u64,
    received_ns: u64,
    /// Of what was due in the window.
    pub(crate) latency: Latency,
}

enum Stage {
    /// Before the run.
    Joining,
    Running,
    /// Waiting for what is under way, since `begun_ns`; so much was published by each publisher of all workers.
    Draining {
        published: Vec<u64>,
        begun_ns: u64,
    },
}

impl Traffic {
    /// All connections of the plan join their `rooms`; at the end it waits for `stragglers_max_seconds` at the most.
    pub(crate) fn new(plan: &Plan, rooms: &Rooms, stragglers_max_seconds: f64) -> Self {
        Self {
            members: plan.connections as usize,
            first: plan.first as usize,
            membership: Membership::new(plan, rooms),
            run: Window::default(),
            stage: Stage::Joining,
            stragglers_max_ns: clock::seconds_ns(stragglers_max_seconds),
            publications: 0,
            send_delay: Latency::new(),
            received_total: 0,
            received: 0,
            received_ns: 0,
            latency: Latency::new(),
        }
    }

    /// A phase begins.
    pub(crate) fn begin(&mut self, command: &Command, now_ns: u64) {
        match command {
            Command::Run(window) => (self.run, self.stage) = (*window, Stage::Running),
            Command::Drain { published } => {
                self.stage = Stage::Draining { published: published.clone(), begun_ns: now_ns };
            }
            _ => self.membership.join_all(0..self.members, false),
        }
    }

    /// Does what is due, but for sending: while it is time for that there is no answer, and else that when to be called again.
    pub(crate) fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> Option<u64> {
        match self.stage {
            Stage::Joining => Some(self.membership.tend(clients, now_ns)),
            Stage::Running if now_ns < self.run.start_ns => Some(self.run.start_ns),
            Stage::Running => None,
            Stage::Draining { .. } => Some(now_ns + MILLISECOND_NS),
        }
    }

    /// When to be called again where the next is to be sent at `due_ns`: at the end of the run, too, and behind it often.
    pub(crate) fn wake_ns(&self, due_ns: u64, now_ns: u64) -> u64 {
        due_ns.min(self.run.to_ns.max(now_ns + MILLISECOND_NS))
    }

    /// Takes note that something is sent that was due then.
    pub(crate) fn sends(&mut self, due_ns: u64, now_ns: u64) {
        if self.run.measures(due_ns) {
            self.publications += 1;
            self.send_delay.record(now_ns - due_ns);
        }
    }

    /// Takes note of something that arrives.
    #[inline]
    pub(crate) fn arrives(&mut self, now_ns: u64) {
        self.received_total += 1;
        self.received += u64::from(self.run.measures(now_ns));
        self.received_ns = now_ns;
    }

    /// The same of something that was due then.
    #[inline]
    pub(crate) fn arrives_since(&mut self, due_ns: u64, now_ns: u64) {
        self.arrives(now_ns);
        if self.run.measures(due_ns) {
            self.latency.record(now_ns.saturating_sub(due_ns));
        }
    }

    /// Looks for answers in a message that is none of what is measured. Who only publishes may hear anything, but no errors.
    pub(crate) fn hear(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        if id < self.members {
            return self.membership.hear(clients, id, message, now_ns);
        }
        clients.protocol.each_said(message, |said| {
            if let Said::Error(code) = said {
                clients.note_error(&format!("server_{code}"));
            }
        });
    }

    pub(crate) fn closed(&mut self, id: usize) {
        if id < self.members {
            self.membership.gone(id);
        }
    }

    /// What the phase came to, once it is over: a run when all `is_sent`, and the wait behind it when this worker `has_all` of what was
    /// published, or nothing more will come. `published` is what each publisher of this worker has sent.
    pub(crate) fn over(
        &self,
        now_ns: u64,
        is_sent: bool,
        has_all: impl FnOnce(&[u64]) -> bool,
        published: impl FnOnce() -> Vec<u64>,
    ) -> Option<Done> {
        let over = match &self.stage {
            Stage::Joining => self.membership.is_settled(),
            Stage::Running => is_sent && now_ns >= self.run.to_ns,
            Stage::Draining { published, begun_ns } => {
                now_ns >= self.received_ns.max(*begun_ns) + STRAGGLERS_NS
                    || now_ns >= begun_ns + self.stragglers_max_ns
                    || has_all(published)
            }
        };
        over.then(|| Done { at_ns: now_ns, open: 0, published: published() })
    }

    /// What each publisher of all workers has sent, once that is known.
    pub(crate) fn published(&self) -> Option<&[u64]> {
        match &self.stage {
            Stage::Draining { published, .. } => Some(published),
            Stage::Joining | Stage::Running => None,
        }
    }

    /// For the progress bar.
    pub(crate) fn count(&self) -> u64 {
        self.membership.joined() + self.received_total
    }

    pub(crate) fn report(&self, tally: &mut Tally) {
        self.membership.report(tally);
        tally.publications = self.publications;
        tally.send_delay = self.send_delay.clone();
        tally.received_total = self.received_total;
        tally.received = self.received;
        tally.latency = self.latency.clone();
    }
}
