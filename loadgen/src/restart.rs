//! The storm by restart: the server ends the connections and each comes back as a client of its protocol does. It counts how the server let
//! them go, whether it refused any, and how long it was until all were back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::iter;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::{Common, Storm};
use crate::client::{Clients, Listener};
use crate::clock::{self, MILLISECOND_NS, SECOND_NS, now_ns};
use crate::control::{Command, Done, Plan, Window};
use crate::membership::Membership;
use crate::native;
use crate::parent::{BarShows, Halt, Parent, Phases};
use crate::proc::Server;
use crate::protocol::Protocol;
use crate::report::{Figures, Latency, Tally};
use crate::worker::Load;

/// What the stock client of Socket.IO waits before its first try; each next one waits twice as long, half more or less by chance.
const PAUSE_NS: u64 = SECOND_NS;
const PAUSE_MAX_NS: u64 = 5 * SECOND_NS;
/// A hint beyond this is taken for it.
const HINT_MS_MAX: u64 = 3_600_000;

static RETRY_MS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""retry_ms":"#));

/// The parent's half.
pub(crate) struct RestartRun {
    connections: u32,
    seconds: f64,
    no_join: bool,
    /// From the moment that all are open until all are back, or the time is over.
    lasted_seconds: Option<f64>,
}

impl RestartRun {
    pub(crate) fn new(common: &Common, args: &Storm) -> Self {
        Self {
            connections: common.connections,
            seconds: common.seconds,
            no_join: args.rooms.no_join,
            lasted_seconds: None,
        }
    }
}

impl Phases for RestartRun {
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt> {
        if !parent.connect(&mut None, server)? {
            return Ok(());
        }
        if !self.no_join {
            parent.join(&mut None, server)?;
        }
        let from_ns = now_ns();
        let to_ns = from_ns + clock::seconds_ns(self.seconds);
        parent.order(&Command::Run(Window { start_ns: from_ns, from_ns, to_ns }))?;
        parent.say("all are open: restart the server");
        parent.show("coming back", if self.no_join { BarShows::Open } else { BarShows::Count });
        let done = parent.all_done_within(to_ns - from_ns)?;
        let at_ns = done.iter().map(|done| done.at_ns).max().unwrap_or(from_ns);
        self.lasted_seconds = Some(seconds_between(from_ns, at_ns));
        Ok(())
    }

    fn figures(&self, tally: &Tally, _: Option<&Server>) -> Figures {
        let restart = &tally.restart;
        let errors = |kind: &str| tally.errors.get(kind).copied().unwrap_or(0);
        let http = tally.errors.iter().filter_map(|(kind, count)| Some((kind.strip_prefix("http_")?, count)));
        let first_ns = restart.closes.first_ns;
        let until = |last_ns: Option<u64>| Some(seconds_between(first_ns?, last_ns?));
        let is_over = restart.never_back == 0 && restart.never_closed == 0;

        let mut figures = Figures::default();
        figures.put("scenario", "storm");
        figures.put("restart", true);
        figures.put("connections", self.connections);
        figures.put("opened", tally.handshakes - tally.returns);
        figures.put("joined", tally.joined);
        figures.number("seconds", self.lasted_seconds);
        figures.put("closes_by_code", json!(restart.closes_by_code));
        figures.number("closing_seconds", until(restart.closes.last_ns));
        figures.put("closes_per_second_max", restart.closes.per_second_max());
        figures.put("hints", restart.hints);
        figures.put("hint_ms_max", restart.hint_ms_max);
        figures.put("tries", restart.tries);
        figures.put("refused", errors("refused"));
        figures.put("resets", errors("reset"));
        figures.put("http_refusals", json!(http.collect::<BTreeMap<_, _>>()));
        figures.put("returns", tally.returns);
        figures.put("returns_per_second_max", restart.backs.per_second_max());
        figures.latency("handshake_latency", &tally.handshake_latency);
        figures.latency("back", &restart.back);
        figures.number("seconds_until_back", until(restart.backs.last_ns).filter(|_| is_over));
        figures.put("never_back", restart.never_back);
        figures.put("never_closed", restart.never_closed);
        figures.end(tally);
        figures
    }
}

fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / SECOND_NS as f64
}

/// What workers counted of a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Restart {
    /// Ends of open connections; 0 is one without a close frame.
    closes_by_code: BTreeMap<u16, u64>,
    closes: Pace,
    backs: Pace,
    /// From a connection's end until it is open again and in its rooms.
    back: Latency,
    /// Ends before which the server had said when to come back.
    hints: u64,
    hint_ms_max: u64,
    /// Handshakes begun by connections that had been open.
    tries: u64,
    never_back: u64,
    never_closed: u64,
}

impl Restart {
    pub(crate) fn new() -> Self {
        Self {
            closes_by_code: BTreeMap::new(),
            closes: Pace::default(),
            backs: Pace::default(),
            back: Latency::new(),
            hints: 0,
            hint_ms_max: 0,
            tries: 0,
            never_back: 0,
            never_closed: 0,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (code, count) in &other.closes_by_code {
            *self.closes_by_code.entry(*code).or_default() += count;
        }
        self.closes.add(&other.closes);
        self.backs.add(&other.backs);
        self.back.add(&other.back);
        self.hints += other.hints;
        self.hint_ms_max = self.hint_ms_max.max(other.hint_ms_max);
        self.tries += other.tries;
        self.never_back += other.never_back;
        self.never_closed += other.never_closed;
    }
}

/// When something happened. All workers have the same clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Pace {
    /// How often in each tenth of a second. Bounded by the length of the run.
    tenths: BTreeMap<u64, u64>,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
}

impl Pace {
    fn record(&mut self, now_ns: u64) {
        *self.tenths.entry(now_ns / (SECOND_NS / 10)).or_default() += 1;
        self.first_ns.get_or_insert(now_ns);
        self.last_ns = Some(now_ns);
    }

    fn add(&mut self, other: &Self) {
        for (tenth, count) in &other.tenths {
            *self.tenths.entry(*tenth).or_default() += count;
        }
        self.first_ns = self.first_ns.into_iter().chain(other.first_ns).min();
        self.last_ns = self.last_ns.max(other.last_ns);
    }

    /// The most in any second that begins with a tenth.
    fn per_second_max(&self) -> u64 {
        let seconds = self.tenths.keys().map(|&tenth| self.tenths.range(tenth..tenth + 10));
        seconds.map(|second| second.map(|(_, count)| count).sum()).max().unwrap_or(0)
    }
}

/// A worker's half.
pub(crate) struct RestartLoad {
    membership: Membership,
    no_join: bool,
    members: Vec<Member>,
    /// When who tries to come back, soonest first.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    random: fastrand::Rng,
    /// The end of the time for it; `None` before all were told to open.
    to_ns: Option<u64>,
    /// Members that were open at some time, those of them that were closed, and those that are not back.
    opened: usize,
    closed: usize,
    away: usize,
    returns: u64,
    seen: Restart,
}

#[derive(Clone, Default)]
struct Member {
    was_open: bool,
    was_closed: bool,
    /// Since when it is not open or not in its rooms, having been so.
    away_since_ns: Option<u64>,
    /// Tries since it was open.
    tries: u32,
    /// The last one the server gave on this connection.
    hint_ms: Option<u64>,
}

impl RestartLoad {
    pub(crate) fn new(plan: &Plan, args: &Storm) -> Self {
        Self {
            membership: Membership::new(plan, &args.rooms),
            no_join: args.rooms.no_join,
            members: vec![Member::default(); plan.connections as usize],
            due: BinaryHeap::new(),
            random: fastrand::Rng::with_seed(now_ns() ^ u64::from(plan.first) << 32),
            to_ns: None,
            opened: 0,
            closed: 0,
            away: 0,
            returns: 0,
            seen: Restart::new(),
        }
    }

    fn back(&mut self, id: usize, now_ns: u64) {
        if let Some(since_ns) = self.members[id].away_since_ns.take() {
            self.away -= 1;
            self.seen.backs.record(now_ns);
            self.seen.back.record(now_ns - since_ns);
        }
    }
}

/// What a client of Socket.IO waits before its next try after so many.
fn pause_ns(tries: u32, random: &mut fastrand::Rng) -> u64 {
    let pause_ns = (PAUSE_NS << tries.min(8)) as f64 * (0.5 + random.f64());
    (pause_ns as u64).min(PAUSE_MAX_NS)
}

/// The last hint in a message, in milliseconds.
fn hint_ms(message: &[u8]) -> Option<u64> {
    let at = RETRY_MS.find_iter(message).last()?;
    native::number(&message[at + RETRY_MS.needle().len()..]).map(|(hint_ms, _)| hint_ms.min(HINT_MS_MAX))
}

impl Listener for RestartLoad {
    fn opened(&mut self, _clients: &mut Clients, id: usize, now_ns: u64) {
        let member = &mut self.members[id];
        member.tries = 0;
        if !member.was_open {
            member.was_open = true;
            self.opened += 1;
            return;
        }
        self.returns += 1;
        if self.no_join {
            self.back(id, now_ns);
        } else {
            self.membership.join_all(iter::once(id), true);
        }
    }

    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        if clients.protocol == Protocol::Native
            && let Some(hint_ms) = hint_ms(message)
        {
            self.members[id].hint_ms = Some(hint_ms);
        }
        self.membership.hear(clients, id, message, now_ns);
        if self.members[id].away_since_ns.is_some() && self.membership.is_in(id) {
            self.back(id, now_ns);
        }
    }

    fn failed(&mut self, clients: &mut Clients, id: usize, kind: &str, was_open: bool) {
        let code = kind.strip_prefix("close_").and_then(|code| code.parse().ok());
        if code.is_none() || !was_open {
            clients.note_error(kind);
        }
        if !was_open {
            return;
        }
        let now_ns = now_ns();
        *self.seen.closes_by_code.entry(code.unwrap_or(0)).or_default() += 1;
        self.seen.closes.record(now_ns);
        let member = &mut self.members[id];
        if member.away_since_ns.is_none() {
            member.away_since_ns = Some(now_ns);
            self.away += 1;
        }
        self.closed += usize::from(!member.was_closed);
        member.was_closed = true;
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.membership.gone(id);
        let member = &mut self.members[id];
        if !member.was_open {
            return;
        }
        let pause_ns = match member.hint_ms.take() {
            Some(hint_ms) => {
                self.seen.hints += 1;
                self.seen.hint_ms_max = self.seen.hint_ms_max.max(hint_ms);
                hint_ms * MILLISECOND_NS
            }
            None => pause_ns(member.tries, &mut self.random),
        };
        member.tries += 1;
        self.due.push(Reverse((now_ns() + pause_ns, id)));
    }
}

impl Load for RestartLoad {
    fn begin(&mut self, clients: &mut Clients, command: &Command, _now_ns: u64) {
        if let Command::Run(window) = command {
            self.to_ns = Some(window.to_ns);
            clients.handshake_latency = Latency::new();
        } else {
            self.membership.join_all(0..self.members.len(), false);
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        let mut due_ns = self.to_ns.filter(|to_ns| now_ns < *to_ns).unwrap_or(u64::MAX);
        while let Some(&Reverse((at_ns, id))) = self.due.peek() {
            if now_ns < at_ns {
                due_ns = due_ns.min(at_ns);
                break;
            }
            self.due.pop();
            self.seen.tries += 1;
            clients.open_all(iter::once(id), true, now_ns);
            // There are connections to open now.
            due_ns = now_ns;
        }
        due_ns.min(self.membership.tend(clients, now_ns))
    }

    fn over(&self, _clients: &Clients, now_ns: u64) -> Option<Done> {
        let over = match self.to_ns {
            None => self.membership.is_settled(),
            Some(to_ns) => now_ns >= to_ns || self.closed == self.opened && self.away == 0,
        };
        over.then(|| Done { at_ns: now_ns, ..Done::default() })
    }

    fn count(&self) -> u64 {
        self.membership.joined()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.membership.report(tally);
        tally.returns = self.returns;
        tally.restart = self.seen.clone();
        tally.restart.never_back = self.away as u64;
        tally.restart.never_closed = (self.opened - self.closed) as u64;
        for (kind, count) in
            [("never_back", tally.restart.never_back), ("never_closed", tally.restart.never_closed)]
        {
            if count > 0 {
                tally.errors.insert(kind.to_owned(), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_seconds() {
        let mut random = fastrand::Rng::with_seed(1);
        for (tries, shortest, longest) in
            [(0, 0.5, 1.5), (1, 1.0, 3.0), (2, 2.0, 5.0), (3, 4.0, 5.0), (100, 5.0, 5.0)]
        {
            for _ in 0..1_000 {
                let pause_ns = pause_ns(tries, &mut random);
                let pause = pause_ns as f64 / SECOND_NS as f64;
                assert!((shortest..=longest).contains(&pause), "{tries}: {pause}");
            }
        }
    }

    #[test]
    fn the_last_hint_counts() {
        assert_eq!(hint_ms(br#"{"type":"disconnect","retry_ms":1250}"#), Some(1_250));
        assert_eq!(
            hint_ms(br#"[{"retry_ms":1,"type":"error"},{"type":"disconnect","retry_ms":2}]"#),
            Some(2)
        );
        assert_eq!(hint_ms(br#"{"retry_ms":99999999999}"#), Some(HINT_MS_MAX));
        assert_eq!(hint_ms(br#"{"retry_ms":"soon"}"#), None);
        assert_eq!(hint_ms(b"{}"), None);
    }

    #[test]
    fn the_pace_is_the_most_in_any_second_of_all_workers() {
        let (mut one, mut other) = (Pace::default(), Pace::default());
        assert_eq!(one.per_second_max(), 0);
        for tenth in [10, 11, 19, 20, 30] {
            one.record(tenth * SECOND_NS / 10);
        }
        assert_eq!(one.per_second_max(), 3);
        other.record(27 * SECOND_NS / 10);
        other.record(28 * SECOND_NS / 10);
        one.add(&other);
        assert_eq!(one.per_second_max(), 4);
        assert_eq!((one.first_ns, one.last_ns), (Some(SECOND_NS), Some(3 * SECOND_NS)));
    }
}
