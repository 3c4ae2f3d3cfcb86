//! How many bytes throng itself needs for a connection, a membership and a room: a real `Shard` and a real directory, without
//! sockets. What the kernel takes for a socket, about 4 KB, comes on top.
//!
//! ```text
//! cargo bench --bench memory        1,000,000 connections and as many rooms; needs 1 GB and half a minute
//! cargo test --bench memory         1,000 connections; the bounds are asserted in both
//! ```
//!
//! Three figures, each for one of what the line is about:
//!
//! - `heap`: bytes asked of the allocator and not given back. The shard reserves its table of connections when it starts; those
//!   bytes are counted here with the connections that use them, as if they had been asked for one by one.
//! - `blocks`: heap blocks, each of which costs the allocator some 8 to 16 bytes more.
//! - `resident`: memory that the kernel has really given (`/proc/self/statm`). Pages that are reserved and were never touched are
//!   not in it, so it can be less than `heap`; the allocator's own bookkeeping is, so it can be more. Only shown where there are enough
//!   of them to tell, and good to a few percent.
//!
//! Lists double when they are full, so a figure depends on how full they are. Lines come in pairs: one count just below a power
//! of two, where little is wasted, and one just above, where nearly half of some lists is.
//!
//! When all have left, the shard keeps its table of connections and its list of timers for the next ones: the pages of both stay
//! resident. Everything else is given back, and asserted to be.

#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod dry;

use dry::{BATCH, DryReactor, client_frame, token};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::ops::Sub;
use std::process::Command;
use throng::message::Slot;
use throng::shard::Holdings;
use throng::shard::conn::Conn;
use tungstenite::protocol::frame::coding::{Data, OpCode};

// It hands every call on to the system's allocator, `realloc` included, so that large lists grow as they do in the server.
#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What `docs` promise for one connection that has joined one room, with its heartbeat.
const CONNECTION_BYTES_MAX: f64 = 256.0;
/// The same for one more membership, on the side of the connection and on that of the room together.
const MEMBERSHIP_BYTES_MAX: f64 = 24.0;
/// The same for a room with one member, that membership included, in the directory and in the shard together.
const ROOM_BYTES_MAX: f64 = 200.0;

/// Of no more than this the resident memory says nothing.
const TELLING: usize = 100_000;

fn main() {
    assert!(size_of::<Conn>() <= 104);
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(case) = words.iter().find_map(|word| word.strip_prefix("--case=")) {
        // Makes the buffer of stdout before anything is counted.
        print!("");
        return Case::FULL[case.parse::<usize>().expect("a number")].measure();
    }
    println!("{:<66} {:>8} {:>7} {:>9}", "bytes", "heap", "blocks", "resident");
    // As in the other benches: `cargo bench` says so, `cargo test` does not.
    if words.iter().any(|word| word == "--bench") {
        // Each in a process of its own: what one gives back, the next would take without asking the kernel.
        for number in 0..Case::FULL.len() {
            let this = std::env::current_exe().expect("this program has a path");
            let status =
                Command::new(this).arg(format!("--case={number}")).status().expect("it can be started");
            assert!(status.success(), "{:?}: {status}", Case::FULL[number]);
        }
    } else {
        Case::SMALL.iter().for_each(Case::measure);
    }
}

/// What is measured.
#[derive(Debug)]
enum Case {
    /// What there is without connections.
    Empty,
    /// So many connections in one room.
    Connections(usize),
    /// So many connections in one room, each of a user of its own.
    Users(usize),
    /// So many connections after an event to all of them.
    Event(usize),
    /// So many connections, each in the same number of rooms.
    Memberships(usize, usize),
    /// So many connections, each in a number of rooms where nobody else is, with this at the end of the rooms' names.
    Rooms(usize, usize, &'static str),
}

impl Case {
    const SMALL: [Case; 8] = [
        Case::Empty,
        Case::Connections(1_000),
        Case::Connections(1_025),
        Case::Users(1_000),
        Case::Memberships(1_000, 2),
        Case::Memberships(1_000, 10),
        Case::Memberships(1_000, 100),
        Case::Rooms(1_000, 10, ""),
    ];
    const FULL: [Case; 16] = [
        Case::Empty,
        Case::Connections(1_000_000),
        Case::Connections(1_048_577),
        Case::Users(900_000),
        Case::Users(1_048_577),
        Case::Event(1_000_000),
        Case::Memberships(65_000, 2),
        Case::Memberships(65_537, 2),
        Case::Memberships(65_000, 10),
        Case::Memberships(65_537, 10),
        Case::Memberships(65_000, 100),
        Case::Memberships(65_537, 100),
        Case::Rooms(1_000, 1_000, ""),
        Case::Rooms(1_000, 1_090, ""),
        Case::Rooms(1_000, 1_000, "-4f1f0f5e-8a3c-4a45"),
        Case::Rooms(1_000, 1_090, "-4f1f0f5e-8a3c-4a45"),
    ];

    fn measure(&self) {
        match *self {
            Case::Empty => empty(),
            Case::Connections(count) => connections(count),
            Case::Users(count) => users(count),
            Case::Event(count) => after_an_event(count),
            Case::Memberships(count, rooms) => memberships(count, rooms),
            Case::Rooms(count, rooms, suffix) => rooms_of_one(count, rooms, suffix),
        }
    }
}

/// What is held now.
#[derive(Clone, Copy, Debug)]
struct Held {
    heap: isize,
    blocks: isize,
    resident: isize,
}

fn held() -> Held {
    let stats = HEAP.stats();
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let resident_pages: usize =
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second field of statm");
    Held {
        heap: stats.bytes_allocated as isize - stats.bytes_deallocated as isize,
        blocks: stats.allocations as isize - stats.deallocations as isize,
        resident: (resident_pages * rustix::param::page_size()) as isize,
    }
}

impl Sub for Held {
    type Output = Held;

    fn sub(self, before: Held) -> Held {
        Held {
            heap: self.heap - before.heap,
            blocks: self.blocks - before.blocks,
            resident: self.resident - before.resident,
        }
    }
}

/// Prints what `count` of something hold, each. Answers its bytes of heap.
fn row(what: &str, grown: Held, count: usize) -> f64 {
    let each = |total: isize| total as f64 / count as f64;
    let resident = if count > TELLING { format!("{:.1}", each(grown.resident)) } else { "-".to_owned() };
    println!("{what:<66} {:>8.1} {:>7.3} {resident:>9}", each(grown.heap), each(grown.blocks));
    each(grown.heap)
}

fn empty() {
    let before = held();
    let _reactor = DryReactor::new(0);
    row("a bus and a shard without connections", held() - before, 1);
}

/// Connections that have joined one room and are quiet: from nobody to everybody and back, twice.
fn connections(count: usize) {
    let mut slots = touched(count);
    let empty = held();
    let fixed = {
        let _without_table = DryReactor::new(0);
        held() - empty
    };
    let mut reactor = DryReactor::new(count);
    let reserved = held() - empty - fixed;
    warm_up(&mut reactor, &mut slots);

    let start = held();
    reactor.connect("/ws", count, &mut slots);
    reactor.hear(&slots, &mut join(std::iter::once("lobby".to_owned())));
    let mut grown = held() - start;
    assert_eq!(reactor.shard.holdings().timers, count, "each has its heartbeat");
    assert_eq!(reactor.shard.holdings().memberships, count);
    grown.heap += reserved.heap;
    let each = row(&format!("a connection in one room, {count} of them"), grown, count);
    assert!(each <= CONNECTION_BYTES_MAX, "{each} bytes a connection");
    row("  of it reserved when the shard starts", Held { blocks: 0, resident: 0, ..reserved }, count);

    reactor.disconnect(&slots);
    slots.clear();
    let after = held();
    assert_eq!(reactor.shard.holdings(), Holdings::default());
    let each = row("  kept when all have left, besides that", after - start, count);
    // The table and the list of timers were there from the start.
    assert!(each < 1.0, "{each} bytes of each connection are kept");

    reactor.connect("/ws", count, &mut slots);
    reactor.hear(&slots, &mut join(std::iter::once("lobby".to_owned())));
    reactor.disconnect(&slots);
    let again = held() - after;
    assert_eq!((again.heap, again.blocks), (0, 0), "the second time leaves nothing behind");
}

/// Connections that have brought tokens of users of their own, which name the room that all are in.
fn users(count: usize) {
    let mut slots = touched(count);
    let empty = held();
    let fixed = {
        let _without_table = DryReactor::with_tokens(0);
        held() - empty
    };
    let mut reactor = DryReactor::with_tokens(count);
    let reserved = held() - empty - fixed;
    warm_up(&mut reactor, &mut slots);
    let start = held();
    for user in 0..count {
        reactor.connect(&format!("/ws?token={}", token(&format!("user-{user}"))), 1, &mut slots);
    }
    let mut grown = held() - start;
    assert_eq!((reactor.shard.holdings().users, reactor.shard.holdings().memberships), (count, count));
    grown.heap += reserved.heap;
    let each = row(&format!("the same of a user, {count} of them"), grown, count);
    assert!(each <= CONNECTION_BYTES_MAX, "{each} bytes a connection");
    reactor.disconnect(&slots);
    assert_eq!(reactor.shard.holdings(), Holdings::default());
}

/// What a shard keeps of the arena in which it wrote an event to all of its connections.
fn after_an_event(count: usize) {
    let mut slots = touched(count);
    let mut reactor = DryReactor::new(count);
    reactor.connect("/ws", count, &mut slots);
    reactor.hear(&slots, &mut join(std::iter::once("lobby".to_owned())));
    let before = held();
    let publish = r#"{"type":"publish","room":"lobby","event":"e","data":1}"#;
    reactor.hear(&slots[..1], &mut text(publish));
    assert_eq!(reactor.counts().deliveries.value(), count as u64 - 1);
    let kept = held() - before;
    row(&format!("a shard, after an event to {count} connections"), kept, 1);
    assert!(kept.heap <= 1 << 20, "{} bytes are kept", kept.heap);
}

/// `count` connections that are each in the same `rooms` rooms.
fn memberships(count: usize, rooms: usize) {
    let mut slots = touched(count);
    let mut reactor = DryReactor::new(count);
    warm_up(&mut reactor, &mut slots);
    reactor.connect("/ws", count, &mut slots);
    let start = held();
    reactor.hear(&slots, &mut join((0..rooms).map(|room| format!("room:{room:04}"))));
    let grown = held() - start;
    let memberships = reactor.shard.holdings().memberships;
    assert_eq!(memberships, count * rooms);
    let each = row(&format!("a membership, {count} connections in {rooms} rooms each"), grown, memberships);
    // Above a power of two it is more, and the bound does not hold.
    assert!(count > 65_000 || each <= MEMBERSHIP_BYTES_MAX, "{each} bytes a membership");

    reactor.hear(&slots, &mut leave((0..rooms).map(|room| format!("room:{room:04}"))));
    let left = held() - start;
    assert_eq!((reactor.shard.holdings().rooms, left.heap, left.blocks), (0, 0, 0), "all is given back");
}

/// `count` connections that are each in `rooms` rooms where nobody else is.
fn rooms_of_one(count: usize, rooms: usize, suffix: &str) {
    let mut slots = touched(count);
    let mut reactor = DryReactor::new(count);
    warm_up(&mut reactor, &mut slots);
    reactor.connect("/ws", count, &mut slots);
    let names = |at: usize| (0..rooms).map(move |room| format!("user:{:08}{suffix}", at * rooms + room));
    let start = held();
    for (at, slot) in slots.iter().enumerate() {
        reactor.hear(&[*slot], &mut join(names(at)));
    }
    let grown = held() - start;
    let total = reactor.bus.rooms();
    assert_eq!((total, reactor.shard.holdings().rooms), (count * rooms, count * rooms));
    let name_bytes = names(0).next().map_or(0, |name| name.len());
    let each =
        row(&format!("a room with one member, {total} of them, names of {name_bytes} bytes"), grown, total);
    // Longer names do not fit the directory's entry.
    assert!(name_bytes > 24 || each <= ROOM_BYTES_MAX, "{each} bytes a room");

    for (at, slot) in slots.iter().enumerate() {
        reactor.hear(&[*slot], &mut leave(names(at)));
    }
    let left = held() - start;
    assert_eq!((reactor.bus.rooms(), left.heap, left.blocks), (0, 0, 0), "all is given back");
}

/// Lets some connections come, join and go, so that the buffers that a shard keeps for its turns are there.
fn warm_up(reactor: &mut DryReactor, slots: &mut Vec<Slot>) {
    reactor.connect("/ws", BATCH, slots);
    reactor.hear(slots, &mut join(std::iter::once("warm".to_owned())));
    reactor.disconnect(slots);
    slots.clear();
}

/// Space for `count` slots whose pages are resident already, so that it is not counted with what is measured.
fn touched(count: usize) -> Vec<Slot> {
    let mut slots: Vec<Slot> = (0..count as Slot).collect();
    slots.clear();
    slots
}

fn join(rooms: impl Iterator<Item = String>) -> Vec<u8> {
    naming("join", rooms)
}

fn leave(rooms: impl Iterator<Item = String>) -> Vec<u8> {
    naming("leave", rooms)
}

fn naming(kind: &str, rooms: impl Iterator<Item = String>) -> Vec<u8> {
    let rooms: Vec<String> = rooms.map(|room| format!("\"{room}\"")).collect();
    text(&format!(r#"{{"type":"{kind}","rooms":[{}]}}"#, rooms.join(",")))
}

fn text(message: &str) -> Vec<u8> {
    client_frame(OpCode::Data(Data::Text), message.as_bytes())
}
