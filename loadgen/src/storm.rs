//! The storm scenario: all connections drop at the same moment and come back at once, as after a network failure or
//! a restart.

use std::iter;

use crate::args::{Common, Ending, Storm};
use crate::client::{CLOSING_NS, Clients, Listener};
use crate::clock::{self, SECOND_NS};
use crate::control::{Command, Done, Plan};
use crate::membership::Membership;
use crate::parent::{BarShows, Halt, Parent, Phases, START_NS};
use crate::proc::{Memory, Server, Span};
use crate::report::{Figures, Latency, Tally, ratio};
use crate::worker::Load;

/// The parent's half.
pub(crate) struct StormRun {
    connections: u32,
    args: Storm,
    connect: Option<Span>,
    join: Option<Span>,
    rounds: Vec<Span>,
    /// How long each round took by the workers' clocks, which is from the drop until the last is back and joined.
    round_seconds: Vec<f64>,
    before: Option<Memory>,
    after: Option<Memory>,
    end: Option<Memory>,
    rss_max_bytes: Option<u64>,
}

impl StormRun {
    pub(crate) fn new(common: &Common, args: &Storm) -> Self {
        Self {
            connections: common.connections,
            args: args.clone(),
            connect: None,
            join: None,
            rounds: Vec::new(),
            round_seconds: Vec::new(),
            before: None,
            after: None,
            end: None,
            rss_max_bytes: None,
        }
    }
}

impl Phases for StormRun {
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt> {
        self.before = parent.settled_memory(server)?;
        if !parent.connect(&mut self.connect, server)? {
            return Ok(());
        }
        if !self.args.rooms.no_join {
            parent.join(&mut self.join, server)?;
        }
        self.after = parent.settled_memory(server)?;
        let back = if self.args.rooms.no_join { BarShows::Open } else { BarShows::Count };
        for _ in 0..self.args.rounds {
            parent.show("coming back", back);
            self.rounds.push(Span::begin(server));
            let at_ns = clock::now_ns() + START_NS;
            parent.order(&Command::Drop { at_ns })?;
            let rss_max_bytes = &mut self.rss_max_bytes;
            let done = parent.all_done_and(|| {
                let rss_bytes = server.and_then(|server| server.rss_bytes().ok());
                *rss_max_bytes = rss_bytes.max(*rss_max_bytes);
            })?;
            if let Some(round) = self.rounds.last_mut() {
                round.end(server);
            }
            let back_ns = done.iter().map(|done| done.at_ns).max().unwrap_or(at_ns);
            self.round_seconds.push(back_ns.saturating_sub(at_ns) as f64 / SECOND_NS as f64);
        }
        self.end = server.and_then(|server| server.memory().ok());
        Ok(())
    }

    fn figures(&self, tally: &Tally, server: Option<&Server>) -> Figures {
        let rounds: Vec<_> = self.rounds.iter().map(|round| round.used(server)).collect();
        let cpu_seconds: Option<f64> = rounds.iter().map(|used| used.cpu_seconds).sum();
        let cpu_seconds = cpu_seconds.filter(|_| !rounds.is_empty());
        let seconds: f64 = self.round_seconds.iter().sum();
        let returns = tally.returns as f64;

        let mut figures = Figures::default();
        figures.put("scenario", "storm");
        figures.put("connections", self.connections);
        figures.put("opened", tally.handshakes - tally.returns);
        figures.put("joined", tally.joined);
        let connect = self.connect.as_ref().map(|connect| connect.used(server));
        figures.number("connect_seconds", connect.map(|connect| connect.seconds));
        figures.put("rounds", self.round_seconds.len());
        figures.number("seconds", Some(seconds));
        figures.put("round_seconds", self.round_seconds.clone());
        figures.number("round_seconds_max", self.round_seconds.iter().copied().reduce(f64::max));
        figures.put("returns", tally.returns);
        figures.number("server_cpu_seconds", cpu_seconds);
        figures.number("handshakes_per_second", ratio(Some(returns), seconds));
        figures.number("cpu_us_per_handshake", ratio(cpu_seconds.map(|seconds| seconds * 1e6), returns));
        figures.latency("handshake_latency", &tally.handshake_latency);
        figures.latency("join_latency", &tally.join_latency);
        let rss_bytes = |memory: Option<Memory>| memory.map(|memory| memory.rss_bytes);
        figures.put("rss_before_bytes", rss_bytes(self.before));
        figures.put("rss_after_bytes", rss_bytes(self.after));
        figures.put("rss_max_bytes", self.rss_max_bytes.max(rss_bytes(self.after)).max(rss_bytes(self.end)));
        figures.put("rss_end_bytes", rss_bytes(self.end));
        figures.end(tally);
        figures
    }
}

/// A worker's half.
pub(crate) struct StormLoad {
    membership: Membership,
    connections: usize,
    ending: Ending,
    round: Option<Round>,
    /// Connections that came back, in all rounds.
    returns: u64,
}

/// The round under way, or the last one.
struct Round {
    at_ns: u64,
    dropped: bool,
    /// True exactly for connections whose closing handshake is not over.
    is_closing: Vec<bool>,
    /// How many that are.
    closing: usize,
}

impl StormLoad {
    pub(crate) fn new(plan: &Plan, args: &Storm) -> Self {
        Self {
            membership: Membership::new(plan, &args.rooms),
            connections: plan.connections as usize,
            ending: args.drop,
            round: None,
            returns: 0,
        }
    }
}

impl Round {
    fn new(at_ns: u64, connections: usize) -> Self {
        Self { at_ns, dropped: false, is_closing: vec![false; connections], closing: 0 }
    }

    /// All that are open end, and all come back as soon as they have ended; also those that were not open.
    fn drop_all(&mut self, clients: &mut Clients, membership: &mut Membership, ending: Ending, now_ns: u64) {
        self.dropped = true;
        for (id, is_closing) in self.is_closing.iter_mut().enumerate() {
            *is_closing = ending == Ending::Close && clients.is_open(id);
            self.closing += usize::from(*is_closing);
            membership.gone(id);
            clients.end(id, ending);
        }
        let ended = self.is_closing.iter().enumerate().filter(|(_, is_closing)| !**is_closing);
        clients.open_all(ended.map(|(id, _)| id), true, now_ns);
    }
}

impl Listener for StormLoad {
    fn opened(&mut self, _clients: &mut Clients, id: usize, _now_ns: u64) {
        if self.round.is_some() {
            self.returns += 1;
            self.membership.join_all(iter::once(id), true);
        }
    }

    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        self.membership.hear(clients, id, message, now_ns);
    }

    fn closed(&mut self, clients: &mut Clients, id: usize) {
        self.membership.gone(id);
        if let Some(round) = &mut self.round
            && round.is_closing[id]
        {
            round.is_closing[id] = false;
            round.closing -= 1;
            clients.open_all(iter::once(id), true, clock::now_ns());
        }
    }
}

impl Load for StormLoad {
    fn begin(&mut self, clients: &mut Clients, command: &Command, _now_ns: u64) {
        if let Command::Drop { at_ns } = command {
            if self.round.is_none() {
                // The rounds are what is measured; the first opening was at a pace.
                clients.handshake_latency = Latency::new();
                self.membership.forget_latency();
            }
            self.round = Some(Round::new(*at_ns, self.connections));
        } else {
            self.membership.join_all(0..self.connections, false);
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        let mut due_ns = u64::MAX;
        if let Some(round) = &mut self.round {
            if !round.dropped && now_ns >= round.at_ns {
                round.drop_all(clients, &mut self.membership, self.ending, now_ns);
                // There are connections to open now.
                due_ns = now_ns;
            } else if !round.dropped {
                due_ns = round.at_ns;
            } else if round.closing > 0 {
                due_ns = round.at_ns + CLOSING_NS;
            }
            if round.closing > 0 && now_ns >= round.at_ns + CLOSING_NS {
                for id in 0..self.connections {
                    clients.end_closing(id, self);
                }
                due_ns = now_ns;
            }
        }
        due_ns.min(self.membership.tend(clients, now_ns))
    }

    fn over(&self, clients: &Clients, now_ns: u64) -> Option<Done> {
        let is_back = self.round.as_ref().is_none_or(|round| round.dropped && round.closing == 0);
        let over = is_back && clients.opening() == 0 && self.membership.is_settled();
        over.then(|| Done { at_ns: now_ns, ..Done::default() })
    }

    fn count(&self) -> u64 {
        self.membership.joined()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.membership.report(tally);
        tally.returns = self.returns;
    }
}
