//! What a shard costs by itself: a real `Shard`, driven by a reactor without sockets. Nanoseconds for one delivery, publish, echo,
//! upgrade and ping.
//!
//! ```text
//! cargo bench --bench shard                          all, one minute
//! cargo bench --bench shard -- delivery/1000         those with that in their name
//! ```
//!
//! Each figure is the time of **one** of what the group is called, whatever the number in one turn: `delivery/1000 members/16
//! publications` takes the time of a turn in which 16 publications come to a room of 1,000, and divides it by 16,000. Criterion prints
//! a low, a likely and a high figure; on a busy machine the low one is nearest to the truth. A `send` of one delivery costs
//! the kernel some 3,300 ns; what is measured here comes on top of that, so 33 ns are one percent.
//!
//! What is in a figure: everything between reading bytes and writing bytes, a turn's fixed part included. What is not: the
//! kernel, and the cache misses that its work causes in ours.

#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod dry;
#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod measure;

use criterion::{Bencher, BenchmarkId, Criterion};
use dry::{BATCH, DryReactor, PING_INTERVAL_MS, client_frame, token, upgrade_request};
use measure::{at_full_size, shuffled, time_of, time_within};
use std::cell::LazyCell;
use std::collections::VecDeque;
use std::hint::black_box;
use throng::message::Slot;
use throng::permissions::RoomPattern;
use throng::policy::field::FieldPath;
use throng::policy::{self, Batch, Changes, Conflate, Dedupe, Policies, Policy};
use throng::rules::{EventLimit, EventLimits, Over, Per, Unit};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

fn main() {
    let mut criterion = measure::criterion();
    deliveries(&mut criterion);
    policies(&mut criterion);
    publishes(&mut criterion);
    echoes(&mut criterion);
    upgrades(&mut criterion);
    heartbeats(&mut criterion);
    criterion.final_summary();
}

/// Publish, deliver, flush: a publisher that is not a member, and a room of `members`.
fn deliveries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("delivery");
    let most = if at_full_size() { 10_000 } else { 1_000 };
    for members in [1, 100, 1_000, 10_000].into_iter().filter(|members| *members <= most) {
        for publications in [1, 16] {
            let room = LazyCell::new(|| Room::new(members, &(0..members).collect::<Vec<_>>()));
            bench_room(&mut group, format!("{members} members"), publications, room);
        }
    }
    // Members that came and went over hours stand in the room in another order than in memory.
    let room = LazyCell::new(|| Room::new(most, &shuffled(most)));
    bench_room(&mut group, format!("{most} members, shuffled"), 1, room);
    group.finish();
}

type Group<'c> = criterion::BenchmarkGroup<'c, criterion::measurement::WallTime>;

fn bench_room(
    group: &mut Group<'_>,
    name: String,
    publications: usize,
    mut room: LazyCell<Room, impl FnOnce() -> Room>,
) {
    group.bench_function(BenchmarkId::new(name, format!("{publications} publications")), |bencher| {
        let room = LazyCell::force_mut(&mut room);
        room.bench(bencher, publications);
    });
}

/// A room with its members on one shard.
struct Room {
    reactor: DryReactor,
    publisher: Slot,
    members: usize,
}

impl Room {
    /// Connections join in this `order`.
    fn new(members: usize, order: &[usize]) -> Room {
        Room::with_limits(members, order, EventLimits::default())
    }

    fn with_limits(members: usize, order: &[usize], limits: EventLimits) -> Room {
        Room::on(DryReactor::with_limits(members + 1, limits), members, order)
    }

    fn on(mut reactor: DryReactor, members: usize, order: &[usize]) -> Room {
        let mut slots = Vec::new();
        reactor.connect("/ws", members + 1, &mut slots);
        let joining: Vec<Slot> = order.iter().map(|at| slots[*at]).collect();
        reactor.hear(&joining, &mut text(r#"{"type":"join","rooms":["auction:7"]}"#));
        assert_eq!(reactor.shard.holdings().memberships, members);
        Room { reactor, publisher: slots[members], members }
    }

    fn bench(&mut self, bencher: &mut Bencher<'_>, publications: usize) {
        let Room { reactor, publisher, members } = self;
        let mut frames = publish().repeat(publications);
        let per_round = (*members * publications) as u64;
        bencher.iter_custom(|count| {
            let before = reactor.counts().deliveries.value();
            let sends = reactor.counts().sends.value();
            let time = time_of(count, per_round, || {
                reactor.turn(|shard, now| shard.receive(*publisher, &mut frames, now));
            });
            let rounds = count.div_ceil(per_round);
            assert_eq!(
                reactor.counts().deliveries.value() - before,
                rounds * per_round,
                "all were delivered"
            );
            let sends = reactor.counts().sends.value() - sends;
            assert_eq!(sends, rounds * *members as u64, "one send a member and turn");
            time
        });
    }
}

/// Ten events to a room of `members`, for **one of them**, all its deliveries included: as they are, and with policies. They come in one turn,
/// in which what is for a member leaves in one write as it is, or in a turn each. Policies cost once for a room, so what they add does not
/// grow with the members, and what a batch saves does.
fn policies(criterion: &mut Criterion) {
    const EVENTS: usize = 10;
    let mut group = criterion.benchmark_group("event to a room");
    let rooms = || Policy::new(RoomPattern::parse("auction:*").expect("a pattern"));
    let batch = Batch { most: EVENTS, event: "batch".into(), data_only: false, lone: false };
    let field = |name| FieldPath::parse(name).expect("a path");
    let most = if at_full_size() { 10_000 } else { 1_000 };
    for members in [1, 100, 10_000].into_iter().filter(|members| *members <= most) {
        let dedupe = Dedupe { field: field("id"), window_ms: 60_000 };
        let conflate = Conflate { field: field("amount"), events: None };
        let changes = Changes { event: "bid".into(), always: Box::default() };
        // Of those with `conflate` and `changes` the last alone waits, and says what was said before.
        let changing = Policy {
            conflate: Some(conflate),
            changes: Some(changes),
            batch: Some(batch.clone()),
            ..rooms()
        };
        let others = Policy::new(RoomPattern::parse("other:*").expect("a pattern"));
        let batching = Policy { batch: Some(batch.clone()), ..rooms() };
        for (name, policy, messages, turns) in [
            ("a policy for others", others.clone(), EVENTS, 1),
            ("batch", batching.clone(), 1, 1),
            ("a policy for others, in ten turns", others, EVENTS, EVENTS),
            ("batch, in ten turns", batching, 1, EVENTS),
            ("dedupe that finds nothing", Policy { dedupe: Some(dedupe), ..rooms() }, EVENTS, 1),
            ("conflate and changes", changing, 0, 1),
        ] {
            let mut room = LazyCell::new(|| {
                let policies = Policies::new(vec![policy], policy::Settings::default());
                let order: Vec<usize> = (0..members).collect();
                Room::on(DryReactor::with_policies(members + 1, policies), members, &order)
            });
            group.bench_function(BenchmarkId::new(name, format!("{members} members")), |bencher| {
                let Room { reactor, publisher, members } = LazyCell::force_mut(&mut room);
                let mut frames = vec![publish().repeat(EVENTS / turns); turns];
                // Its state is known.
                round(reactor, *publisher, &mut frames);
                bencher.iter_custom(|count| {
                    let before = reactor.counts().deliveries.value();
                    let time = time_of(count, EVENTS as u64, || round(reactor, *publisher, &mut frames));
                    let rounds = count.div_ceil(EVENTS as u64);
                    let deliveries = rounds * (*members * messages) as u64;
                    assert_eq!(
                        reactor.counts().deliveries.value() - before,
                        deliveries,
                        "all were delivered"
                    );
                    time
                });
            });
        }
    }
    group.finish();
}

/// What somebody publishes, `frames` of one turn after those of the other, and what leaves the home of the room in the next; then the room's
/// window is over, and what leaves then comes in the turn after. The same turns for those without a policy.
fn round(reactor: &mut DryReactor, publisher: Slot, frames: &mut [Vec<u8>]) {
    for frames in frames {
        reactor.turn(|shard, now| shard.receive(publisher, frames, now));
    }
    reactor.turn(|_, _| {});
    reactor.now = reactor.now.plus_ms(200);
    reactor.turn(|_, _| {});
    reactor.turn(|_, _| {});
}

/// From the bytes of a publish to a publication in the mailbox: unmask, decode, directory, copy. The delivery is not in it. What limits
/// on events add to that is the difference between the figures.
fn publishes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publish");
    let limit = |event: &str, per| EventLimit {
        event: Some(event.to_owned()),
        namespace: None,
        per,
        most: u32::MAX,
        unit: Unit::Events,
        window_ms: 60_000,
        over: Over::Error,
    };
    for (name, limits) in [
        ("100 bytes", vec![]),
        ("100 bytes, limits on others", vec![limit("other", Per::Ip)]),
        ("100 bytes, a limit per connection", vec![limit("bid", Per::Connection)]),
        ("100 bytes, a limit per address", vec![limit("bid", Per::Ip)]),
    ] {
        let mut room = LazyCell::new(|| Room::with_limits(1, &[0], EventLimits::new(limits.clone())));
        group.bench_function(name, |bencher| {
            let Room { reactor, publisher, .. } = LazyCell::force_mut(&mut room);
            let mut frames = publish().repeat(BATCH);
            let mut mail = VecDeque::new();
            bencher.iter_custom(|count| {
                time_within(count, BATCH as u64, |watch| {
                    reactor.shard.begin_turn(reactor.now);
                    watch.time(|| reactor.shard.receive(*publisher, &mut frames, reactor.now));
                    reactor.bus.mailbox(0).collect(&mut mail);
                    assert_eq!(mail.len(), BATCH, "each was taken");
                    mail.clear();
                    black_box(reactor.shard.end_turn(reactor.now));
                })
            });
        });
    }
    group.finish();
}

/// 1,000 connections that are each sent back what they said, in one turn.
fn echoes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("echo message");
    let connections = if at_full_size() { 1_000 } else { 100 };
    let mut open = LazyCell::new(|| {
        let (mut reactor, mut slots) = (DryReactor::new(connections), Vec::new());
        reactor.connect("/echo", connections, &mut slots);
        (reactor, slots)
    });
    for messages in [1, 16] {
        let name =
            BenchmarkId::new(format!("{connections} connections"), format!("{messages} in one receive"));
        group.bench_function(name, |bencher| {
            let (reactor, slots) = LazyCell::force_mut(&mut open);
            let mut frames = client_frame(OpCode::Data(Data::Binary), &[b'e'; 64]).repeat(messages);
            let per_round = (connections * messages) as u64;
            bencher.iter_custom(|count| {
                let before = reactor.counts().frames_out.value();
                let time = time_of(count, per_round, || {
                    reactor.turn(|shard, now| {
                        slots.iter().for_each(|slot| shard.receive(*slot, &mut frames, now));
                    });
                });
                let echoed = reactor.counts().frames_out.value() - before;
                assert_eq!(echoed, count.div_ceil(per_round) * per_round, "each came back");
                time
            });
        });
    }
    group.finish();
}

/// A connection from accept to release, with nothing but its upgrade in between: 64 of them in each turn. One brings a token by HS256, which
/// names a room.
fn upgrades(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("upgrade");
    let library = upgrade_request("/ws");
    // What a browser adds.
    let browser = String::from_utf8(library.clone()).expect("a head is ASCII").replace(
        "Sec-WebSocket-Version",
        "Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) \
         AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\nOrigin: https://example.com\r\n\
         Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n\
         Cookie: session=0123456789abcdef0123456789abcdef\r\nSec-WebSocket-Extensions: permessage-deflate; \
         client_max_window_bits\r\nSec-WebSocket-Version",
    );
    let authorized = String::from_utf8(library.clone()).expect("a head is ASCII").replace(
        "Sec-WebSocket-Version",
        &format!("Authorization: Bearer {}\r\nSec-WebSocket-Version", token("user-4711")),
    );
    let heads = [("library", library), ("browser", browser.into_bytes()), ("token", authorized.into_bytes())];
    for (client, mut head) in heads {
        let mut reactor = LazyCell::new(|| match client {
            "token" => DryReactor::with_tokens(BATCH),
            _ => DryReactor::new(BATCH),
        });
        group.bench_function(BenchmarkId::new(client, format!("{} bytes", head.len())), |bencher| {
            let reactor = LazyCell::force_mut(&mut reactor);
            let mut slots = Vec::new();
            bencher.iter_custom(|count| {
                let before = reactor.counts().upgrades.value();
                let time = time_of(count, BATCH as u64, || {
                    slots.clear();
                    reactor.accept(BATCH, &mut slots);
                    reactor.hear(&slots, &mut head);
                    reactor.disconnect(&slots);
                });
                let granted = reactor.counts().upgrades.value() - before;
                assert_eq!(granted, count.div_ceil(BATCH as u64) * BATCH as u64, "each was granted");
                assert_eq!(reactor.shard.holdings().conns, 0, "and each was released");
                time
            });
        });
    }
    group.finish();
}

/// What keeping an idle connection costs every 25 s. All of them are due in the same turn, as after a reconnect storm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beat {
    /// The timer fires and a ping is written.
    Ping,
    /// The answer comes, and the timer is set anew.
    Pong,
}

fn heartbeats(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heartbeat");
    let connections = if at_full_size() { 10_000 } else { 1_000 };
    let mut idle = LazyCell::new(|| {
        let (mut reactor, mut slots) = (DryReactor::new(connections), Vec::new());
        reactor.connect("/ws", connections, &mut slots);
        (reactor, slots)
    });
    for (name, beat) in [("ping", Beat::Ping), ("pong", Beat::Pong)] {
        group.bench_function(BenchmarkId::new(name, format!("{connections} connections")), |bencher| {
            let (reactor, slots) = LazyCell::force_mut(&mut idle);
            bencher.iter_custom(|count| {
                let before = reactor.counts().pings.value();
                let time = time_within(count, connections as u64, |watch| {
                    a_period(
                        reactor,
                        slots,
                        |part, work| {
                            if part == beat { watch.time(work) } else { work() }
                        },
                    );
                });
                let pings = reactor.counts().pings.value() - before;
                let rounds = count.div_ceil(connections as u64);
                assert_eq!(pings, rounds * connections as u64, "each was pinged once a period");
                assert_eq!(reactor.shard.holdings().conns, connections, "and none was lost");
                time
            });
        });
    }
    group.bench_function("a turn in which nothing happens", |bencher| {
        let (reactor, _) = LazyCell::force_mut(&mut idle);
        bencher.iter(|| reactor.turn(|_, _| {}));
    });
    group.finish();
}

/// Lets 25 s pass over idle connections; `carry_out` is given each part as a piece of work.
fn a_period(reactor: &mut DryReactor, slots: &[Slot], mut carry_out: impl FnMut(Beat, &mut dyn FnMut())) {
    let mut pong = client_frame(OpCode::Control(Control::Pong), b"");
    // A timer fires at most a millisecond late.
    reactor.now = reactor.now.plus_ms(u64::from(PING_INTERVAL_MS) + 1);
    carry_out(Beat::Ping, &mut || reactor.turn(|_, _| {}));
    carry_out(Beat::Pong, &mut || {
        reactor.turn(|shard, now| slots.iter().for_each(|slot| shard.receive(*slot, &mut pong, now)));
    });
}

/// A publish with 100 bytes of data.
fn publish() -> Vec<u8> {
    let data = format!(r#"{{"amount":120,"text":"{}"}}"#, "x".repeat(76));
    assert_eq!(data.len(), 100);
    text(&format!(r#"{{"type":"publish","room":"auction:7","event":"bid","data":{data}}}"#))
}

fn text(message: &str) -> Vec<u8> {
    client_frame(OpCode::Data(Data::Text), message.as_bytes())
}
