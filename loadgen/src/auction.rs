//! The auction scenario: watchers in auctions, each of which changes with every bid, and the application publishes all of it each time.
//!
//! Open loop: bids are due at fixed times, and what a watcher hears counts from then, whoever was late. A watcher knows of a bid when it has
//! heard of that one or of a later one, for a server may leave out what is out of date. What it has heard last must be the last
//! bid there was.

use memchr::memmem::Finder;
use serde_json::{Map, Value};

use crate::args::{Auction, Common, Rooms};
use crate::client::{Clients, Listener};
use crate::clock::MILLISECOND_NS;
use crate::control::{Command, Done, Plan};
use crate::frame::Opcode;
use crate::native::number;
use crate::order::Faults;
use crate::parent::Phases;
use crate::phases::{Measured, Run, SENDS_PER_TICK, Traffic};
use crate::report::{Figures, Latency, Tally, ratio};
use crate::worker::Load;

/// What a watcher looks for in a message: how many bids there were, and the highest.
const COUNT: &[u8] = br#""bidCount":"#;
const PRICE: &[u8] = br#""currentBid":"#;
/// The price of an auction without bids.
const STARTING_PRICE: u64 = 1_000;
/// So many bids move the end of their auction once.
const BIDS_PER_EXTENSION: u64 = 50;
/// All of an auction but its description, about.
const CHANGING_BYTES: usize = 200;
/// Watchers of each worker that keep the whole auction, and compare it in the end.
const KEEPERS: usize = 8;

/// The parent's half.
pub(crate) fn run(common: &Common, args: &Auction) -> impl Phases + use<> {
    let args = args.clone();
    Run::new(common, args.warmup, args.wait, move |measured, tally| figures(&args, measured, tally))
}

fn figures(args: &Auction, measured: &Measured, tally: &Tally) -> Figures {
    let (whole, torn, last) = all_know(measured.connections, args.auctions, &tally.bids);
    let mut figures = measured.begin("auction", tally);
    figures.put("joined", tally.joined);
    figures.put("auctions", args.auctions);
    figures.number("bids_per_second_each", Some(args.bids));
    figures.put("size_bytes", args.size);
    measured.put_time(&mut figures, tally);
    figures.put("bids", tally.publications);
    figures.put("messages", tally.messages);
    figures.put("updates", tally.received);
    figures.put("segments", measured.used.and_then(|used| used.segments));
    let per_bid = ratio(Some(tally.messages as f64), tally.publications as f64);
    figures.number("messages_per_bid", per_bid);
    let until_known = measured.used_in_all;
    figures.number("seconds_until_known", until_known.map(|used| used.seconds));
    figures.put("messages_until_known", tally.messages_in_all);
    figures.put("bytes_until_known", tally.bytes_in_all);
    figures.put("segments_until_known", until_known.and_then(|used| used.segments));
    figures.number("server_cpu_seconds_until_known", until_known.and_then(|used| used.cpu_seconds));
    figures.latency("latency", &tally.latency);
    figures.latency("last_watcher", &last);
    figures.latency("send_delay", &tally.send_delay);
    figures.put("bids_all_know", whole);
    figures.put("bids_not_all_know", torn);
    figures.put("bids_total", measured.published);
    figures.put("left_out", tally.left_out);
    figures.put("dropped", tally.dropped);
    measured.end(figures, tally)
}

/// Of how many bids all watchers know, of how many not all, and when the last watcher did.
fn all_know(watchers: u32, auctions: u32, bids: &[(u32, u64)]) -> (u64, u64, Latency) {
    let (mut whole, mut torn, mut last) = (0, 0, Latency::new());
    for (auction, (knowing, delay_ns)) in (0..auctions).cycle().zip(bids) {
        match *knowing {
            // Outside of the measured phase.
            0 => {}
            count if count == (watchers + auctions - 1 - auction) / auctions => {
                whole += 1;
                last.record(*delay_ns);
            }
            _ => torn += 1,
        }
    }
    (whole, torn, last)
}

/// A worker's half. Its watchers are the members; worker 0 has a connection for each auction behind them, by which the
/// application publishes.
pub(crate) struct AuctionLoad {
    args: Auction,
    /// What clients call the auctions.
    numbers: Vec<String>,
    traffic: Traffic,
    publishers: usize,
    /// For each watcher, of how many bids it knows.
    known: Vec<u64>,
    /// What the first watchers have made of all they have heard.
    kept: Vec<Map<String, Value>>,
    count_at: Finder<'static>,
    price_at: Finder<'static>,
    /// The first bid of all that was not sent.
    next: u64,
    /// By auction.
    published: Vec<u64>,
    /// By bid of all, in the order in which they are due: how many watchers know of it, and how long the last of them did not.
    bids: Vec<(u32, u64)>,
    messages: u64,
    messages_in_all: u64,
    left_out: u64,
    faults: Faults,
    payload: Vec<u8>,
    out: Vec<u8>,
}

impl AuctionLoad {
    pub(crate) fn new(plan: &Plan, args: &Auction) -> Self {
        let watchers = plan.connections as usize;
        Self {
            args: args.clone(),
            numbers: (0..args.auctions).flat_map(|auction| rooms(args).of(auction)).collect(),
            traffic: Traffic::new(plan, &rooms(args), args.wait),
            publishers: if plan.worker == 0 { args.auctions as usize } else { 0 },
            known: vec![0; watchers],
            kept: vec![Map::new(); watchers.min(KEEPERS)],
            count_at: Finder::new(COUNT),
            price_at: Finder::new(PRICE),
            next: 0,
            published: vec![0; args.auctions as usize],
            bids: Vec::new(),
            messages: 0,
            messages_in_all: 0,
            left_out: 0,
            faults: Faults::default(),
            payload: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Connections of this worker by which the application publishes.
    pub(crate) fn publishers(&self) -> usize {
        self.publishers
    }

    fn auction_of(&self, watcher: usize) -> usize {
        (self.traffic.first + watcher) % self.args.auctions as usize
    }

    /// When a bid of all is due.
    fn due_ns(&self, bid: u64) -> u64 {
        self.traffic.run.due_ns(bid, self.args.bids * f64::from(self.args.auctions))
    }

    /// A watcher hears that there were so many bids.
    #[inline]
    fn hears(&mut self, watcher: usize, count: u64, now_ns: u64) {
        self.traffic.arrives(now_ns);
        let before = self.known[watcher];
        if count <= before {
            self.faults.doubled += u64::from(count == before);
            self.faults.reordered += u64::from(count < before);
            return;
        }
        self.known[watcher] = count;
        self.left_out += count - before - 1;
        let auctions = u64::from(self.args.auctions);
        for number in before..count {
            let bid = number * auctions + self.auction_of(watcher) as u64;
            let due_ns = self.due_ns(bid);
            if !self.traffic.run.measures(due_ns) {
                continue;
            }
            let delay_ns = now_ns.saturating_sub(due_ns);
            self.traffic.latency.record(delay_ns);
            // Bids come in order, so that this grows by what is new.
            if self.bids.len() <= bid as usize {
                self.bids.resize(bid as usize + 1, (0, 0));
            }
            let (watchers, last_ns) = &mut self.bids[bid as usize];
            *watchers += 1;
            *last_ns = delay_ns.max(*last_ns);
        }
    }

    /// Publishes what is due by the clock. Returns when the next is due.
    fn publish_due(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if now_ns < self.due_ns(self.next) {
            return self.due_ns(self.next);
        }
        // What is due stays due while a socket is full, and the wait counts.
        let watchers = self.traffic.members;
        if (watchers..watchers + self.publishers).any(|id| clients.has_unsent(id)) {
            return now_ns + MILLISECOND_NS;
        }
        let auctions = u64::from(self.args.auctions);
        for _ in 0..SENDS_PER_TICK {
            let (bid, due_ns) = (self.next, self.due_ns(self.next));
            if due_ns > now_ns {
                return due_ns;
            }
            self.next += 1;
            let auction = (bid % auctions) as usize;
            if !clients.is_open(watchers + auction) {
                continue;
            }
            self.published[auction] += 1;
            self.traffic.sends(due_ns, now_ns);
            self.payload.clear();
            let (number, bids) = (&self.numbers[auction], self.published[auction]);
            append_auction(&mut self.payload, number, bids, self.args.size);
            self.out.clear();
            clients.masker.append_copy(&mut self.out, Opcode::Text, &self.payload);
            clients.send(watchers + auction, &self.out);
        }
        now_ns
    }

    /// Looks at what the watchers know when all is over.
    fn check(&mut self, tally: &mut Tally) {
        let Some(published) = self.traffic.published() else { return };
        let mut note = |kind: &str| *tally.errors.entry(kind.to_owned()).or_default() += 1;
        for watcher in 0..self.traffic.members {
            let auction = self.auction_of(watcher);
            let (known, last) = (self.known[watcher], published[auction]);
            self.faults.lost += last.saturating_sub(known);
            if known != last {
                note("wrong_final_price");
                continue;
            }
            if let Some(kept) = self.kept.get_mut(watcher).filter(|_| last > 0) {
                let mut whole = Vec::new();
                append_auction(&mut whole, &self.numbers[auction], last, self.args.size);
                if serde_json::from_slice::<Map<String, Value>>(&whole).ok().as_ref() != Some(kept) {
                    note("wrong_auction");
                }
            }
        }
    }
}

impl Listener for AuctionLoad {
    #[inline]
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        if id >= self.traffic.members {
            return self.traffic.hear(clients, id, message, now_ns);
        }
        let mut rest = message;
        let mut is_update = false;
        while let Some(at) = self.count_at.find(rest) {
            is_update = true;
            rest = &rest[at + COUNT.len()..];
            let Some((count, _)) = number(rest) else { return clients.note_error("bad_event") };
            self.hears(id, count, now_ns);
        }
        if !is_update {
            return self.traffic.hear(clients, id, message, now_ns);
        }
        self.messages += u64::from(self.traffic.run.measures(now_ns));
        self.messages_in_all += u64::from(self.traffic.run.has_begun(now_ns));
        let mut rest = message;
        let mut price = None;
        while let Some(at) = self.price_at.find(rest) {
            rest = &rest[at + PRICE.len()..];
            price = number(rest).map(|(price, _)| price);
        }
        if price != Some(STARTING_PRICE + self.known[id]) {
            clients.note_error("wrong_price");
        }
        if let Some(kept) = self.kept.get_mut(id)
            && let Ok(Value::Object(message)) = serde_json::from_slice(message)
        {
            keep(kept, message);
        }
    }

    fn closed(&mut self, _clients: &mut Clients, id: usize) {
        self.traffic.closed(id);
    }
}

impl Load for AuctionLoad {
    fn begin(&mut self, _clients: &mut Clients, command: &Command, now_ns: u64) {
        self.traffic.begin(command, now_ns);
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if let Some(due_ns) = self.traffic.tick(clients, now_ns) {
            return due_ns;
        }
        let is_over = self.publishers == 0 || now_ns >= self.traffic.run.to_ns;
        let due_ns = if is_over { u64::MAX } else { self.publish_due(clients, now_ns) };
        self.traffic.wake_ns(due_ns, now_ns)
    }

    fn over(&self, clients: &Clients, now_ns: u64) -> Option<Done> {
        let all_know = |published: &[u64]| {
            let knows = |watcher: usize| self.known[watcher] >= published[self.auction_of(watcher)];
            (0..self.traffic.members).all(|watcher| knows(watcher) || !clients.is_open(watcher))
        };
        let published = || if self.publishers > 0 { self.published.clone() } else { Vec::new() };
        self.traffic.over(now_ns, true, all_know, published)
    }

    fn count(&self) -> u64 {
        self.traffic.count()
    }

    fn report(&mut self, tally: &mut Tally) {
        self.traffic.report(tally);
        self.check(tally);
        tally.sent_total = self.published.iter().sum();
        tally.messages = self.messages;
        tally.messages_in_all = self.messages_in_all;
        tally.left_out = self.left_out;
        tally.bids = std::mem::take(&mut self.bids);
        tally.faults = self.faults;
    }
}

/// Watchers join by the numbers of auctions: the prefix and, of several, another digit or more.
fn rooms(args: &Auction) -> Rooms {
    Rooms {
        rooms: args.auctions,
        rooms_each: None,
        room_prefix: args.prefix.to_string(),
        no_join: false,
        by: None,
    }
}

/// Appends all there is to say of an auction after so many bids, as the application says it: about `size` bytes. What does not change is as long
/// whatever the price.
fn append_auction(out: &mut Vec<u8>, auction: &str, bids: u64, size: u32) {
    let (price, bidder) = (STARTING_PRICE + bids, bids * 7_919 % 10_007);
    let extended = bids.is_multiple_of(BIDS_PER_EXTENSION);
    let head = format!(
        r#"{{"type":"auctionUpdate","auctionId":{auction},"bidCount":{bids},"currentBid":{price},"currentBidderId":{bidder},"timeExtended":{extended},"seller":{{"id":7,"name":"The house"}},"title":"Lot {auction}","description":""#
    );
    out.extend_from_slice(head.as_bytes());
    out.resize(out.len() + (size as usize).saturating_sub(CHANGING_BYTES), b'x');
    out.extend_from_slice(b"\"}");
}

/// Merges what a message says into what a watcher keeps (RFC 7396, as far as it is used here).
fn keep(kept: &mut Map<String, Value>, mut message: Map<String, Value>) {
    if let Some(Value::Array(messages)) = message.get_mut("messages") {
        for message in std::mem::take(messages) {
            if let Value::Object(message) = message {
                keep(kept, message);
            }
        }
        return;
    }
    for (name, value) in message {
        match value {
            Value::Null => drop(kept.remove(&name)),
            value => drop(kept.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auction_has_its_size_and_says_what_is_so() {
        for (bids, size) in [(1, 700), (50, 700), (3, 0), (u64::from(u32::MAX), 1_000)] {
            let mut out = Vec::new();
            append_auction(&mut out, "103", bids, size);
            assert!(out.len().abs_diff((size as usize).max(CHANGING_BYTES)) < 30, "{}", out.len());
            let auction: Value = serde_json::from_slice(&out).expect("JSON");
            assert_eq!(auction["currentBid"], STARTING_PRICE + bids);
            assert_eq!(auction["timeExtended"], bids % 50 == 0);
        }
    }

    #[test]
    fn what_is_kept_is_what_was_said() {
        let mut kept = Map::new();
        for message in [
            r#"{"type":"auctionUpdate","a":1,"b":{"c":1}}"#,
            r#"{"type":"batch","messages":[{"type":"auctionUpdate","a":2},{"type":"auctionUpdate","a":3,"b":null}]}"#,
        ] {
            let Ok(Value::Object(message)) = serde_json::from_str(message) else { panic!("an object") };
            keep(&mut kept, message);
        }
        assert_eq!(Value::Object(kept), serde_json::json!({"type": "auctionUpdate", "a": 3}));
    }
}
