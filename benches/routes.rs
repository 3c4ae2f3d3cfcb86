//! What a route costs: from the bytes of an event of a plain client to a publication in the mailbox, beside the event `publish`, which is
//! built in and needs no template. In instructions, which do not depend on what else the machine does.
//!
//! ```text
//! cargo bench --bench routes                         all, some ten seconds; needs valgrind
//! ```
//!
//! A shard is driven by a reactor without sockets. Each way is run twice under `valgrind --tool=callgrind`, once with [`EVENTS`] more events
//! than the other time, and the difference is divided by these; so what the start costs is not in it. The time is that of the same events
//! without valgrind, the least of several rounds. Delivery is in neither.

#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod dry;
#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod measure;

use dry::{BATCH, DryReactor, client_frame};
use measure::at_full_size;
use std::collections::VecDeque;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;
use throng::message::Slot;
use throng::time::Clock;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// How many events the second run under valgrind has more.
const EVENTS: usize = 10_000;

/// The data of a bid, 100 bytes: what its members are sent.
const BID: &str =
    r#""auctionId":"7","amount":1234,"note":"a hundred bytes are what a bid has on average, so it is said""#;

/// What is compared: what the way is called, the client's path, its route if it has one, and the event that it sends.
fn ways() -> Vec<(&'static str, &'static str, String, String)> {
    let event = |data: &str| format!(r#"{{"type":"bid",{data}}}"#);
    let route = |what: &str| format!("[[routes]]\non = \"bid\"\n{what}\n");
    let mut many: String = (0..999).map(|n| format!("[[routes]]\non = \"other{n}\"\nack = true\n")).collect();
    many.push_str(&route(r#"publish = { room = "auction:7" }"#));
    let publish = format!(r#"{{"type":"publish","room":"auction:7","event":"bid","data":{{{BID}}}}}"#);
    vec![
        ("`publish` of a native client", "/ws", String::new(), publish.clone()),
        ("`publish` of a plain client", "/plain", String::new(), publish),
        ("nothing templated", "/plain", route(r#"publish = { room = "auction:7" }"#), event(BID)),
        ("nothing templated, the last of 1,000 routes", "/plain", many, event(BID)),
        ("room", "/plain", route(r#"publish = { room = "auction:{auctionId}" }"#), event(BID)),
        (
            "room, two fields checked",
            "/plain",
            route(
                "fields = { auctionId = \"string\", amount = \"number\" }\npublish = { room = \"auction:{auctionId}\" }",
            ),
            event(BID),
        ),
        (
            "room, and data of four places",
            "/plain",
            route(
                r#"publish = { room = "auction:{auctionId}", event = "bid", data = { auctionId = "{auctionId}", amount = "{amount}", note = "{note}", at = "{now_ms}" } }"#,
            ),
            event(BID),
        ),
    ]
}

fn main() {
    let ways = ways();
    let mut arguments = std::env::args().skip_while(|argument| argument != "--way").skip(1);
    if let (Some(way), Some(events)) = (arguments.next(), arguments.next()) {
        let (_, path, routes, event) = &ways[way.parse::<usize>().expect("a number of a way")];
        Client::new(path, routes, event).say(events.parse().expect("a number of events"));
        return;
    }
    let full = at_full_size();
    let mut bare = None;
    for (number, (name, path, routes, event)) in ways.iter().enumerate() {
        let mut client = Client::new(path, routes, event);
        client.say(BATCH);
        if !full {
            continue;
        }
        let time = (0..50).map(|_| client.say(EVENTS)).min().expect("there are rounds");
        let ns = time.as_nanos() as f64 / EVENTS as f64;
        let instructions = (instructions(number, 2 * EVENTS) - instructions(number, EVENTS)) / EVENTS as f64;
        let (bare_instructions, bare_ns) = *bare.get_or_insert((instructions, ns));
        println!(
            "{name:44} {instructions:7.0} instructions ({:+6.0})  {ns:6.0} ns ({:+5.0})",
            instructions - bare_instructions,
            ns - bare_ns
        );
    }
}

/// A plain client of a shard, and what it says.
struct Client {
    reactor: DryReactor,
    slot: Slot,
    frames: Vec<u8>,
}

impl Client {
    /// One that says `event`, at that path of a shard with `routes`.
    fn new(path: &str, routes: &str, event: &str) -> Client {
        let file = format!("[plain]\npath = \"/plain\"\n{routes}");
        let mut reactor = DryReactor::configured(2, &file);
        let mut slots = Vec::new();
        reactor.connect(path, 2, &mut slots);
        let frame = |text: &str| client_frame(OpCode::Data(Data::Text), text.as_bytes());
        reactor.hear(&slots[..1], &mut frame(r#"{"type":"join","rooms":["auction:7"]}"#));
        assert_eq!(reactor.shard.holdings().memberships, 1);
        Client { reactor, slot: slots[1], frames: frame(event).repeat(BATCH) }
    }

    /// It says it so many times, at least; some in each turn. The time that took, for `events` of them.
    fn say(&mut self, events: usize) -> Duration {
        let Client { reactor, slot, frames } = self;
        let mut mail = VecDeque::new();
        let clock = Clock::start();
        let start = clock.now();
        let turns = events.div_ceil(BATCH);
        for _ in 0..turns {
            reactor.shard.begin_turn(reactor.now);
            reactor.shard.receive(*slot, frames, reactor.now);
            reactor.bus.mailbox(0).collect(&mut mail);
            assert_eq!(mail.len(), BATCH, "each was taken");
            mail.clear();
            black_box(reactor.shard.end_turn(reactor.now));
        }
        clock.now().since(start).mul_f64(events as f64 / (turns * BATCH) as f64)
    }
}

/// What this program executes to say that many events in that way.
fn instructions(way: usize, events: usize) -> f64 {
    let program = std::env::current_exe().expect("a program knows where it is");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--way", &way.to_string(), &events.to_string()])
        .output()
        .expect("valgrind runs (Debian: apt-get install valgrind)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let counted = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, counted) = counted.unwrap_or_else(|| panic!("callgrind counted nothing: {said}"));
    counted.trim().parse().expect("callgrind prints a number")
}
