//! What the directory costs, the only state that the shards share: entering, leaving, finding and publishing to rooms, at 1, 1,000
//! and 1,000,000 rooms, and two threads that want the same room or different ones.
//!
//! ```text
//! cargo bench --bench directory                   all, a minute and a half
//! cargo bench --bench directory -- contention
//! ```
//!
//! Each figure is the time of one call. Rooms are visited in an order without a pattern, each long after it was visited last, so
//! at 1,000,000 rooms most of a figure is cache misses. `enter` and `exit` are those of a room that has other members;
//! `forget and make` is the exit of a room's last member and the entry of its first, in one. `publish` copies 100 bytes and puts
//! them into one mailbox; taking them out is not in it.
//!
//! In `contention` a figure is the time of one call as each of two threads sees it. `alone` is one thread; `other rooms` two
//! threads on two rooms of different stripes; `one room` both on one. If cores did not disturb each other all three would be equal.
//! The publishes of this group go to two shards each, and taking them out again is in the figure, as every shard does both. It
//! needs two cores with nothing else to do: when there are other programs to run, threads wait for cores and not for each other.

#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod measure;

use compact_str::{CompactString, format_compact};
use criterion::{BenchmarkId, Criterion};
use measure::{at_full_size, shuffled, time_of, time_within};
use std::cell::LazyCell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;
use throng::bus::{Bus, Overloaded};
use throng::message::{Draft, RoomId, ShardId};
use throng::time::Time;

/// Calls between two looks at the clock.
const BATCH: usize = 1_024;
/// Publications that a thread makes before it takes its mail, as in a turn.
const TURN: usize = 64;
const ROOMS_MAX: usize = 10_000_000;

fn main() {
    let mut criterion = measure::criterion();
    alone(&mut criterion);
    contention(&mut criterion);
    criterion.final_summary();
}

/// A bus with many rooms, and an order to visit them in.
struct Rooms {
    bus: Bus,
    /// Kept in the order of the visits, so that reading names and ids is not what is measured.
    visits: Vec<(CompactString, RoomId)>,
    /// Where the next round begins.
    next: usize,
}

impl Rooms {
    /// So many rooms with so many members each, all on one shard.
    fn new(count: usize, members: usize) -> Rooms {
        let bus = Bus::new(1, ROOMS_MAX);
        let mut ids = Vec::new();
        for _ in 0..members {
            let enter = |number| bus.enter(0, &name(number)).expect("there is a place").0;
            ids = (0..count).map(enter).collect();
        }
        assert_eq!(bus.rooms(), count);
        let visits = shuffled(count).into_iter().map(|number| (name(number), ids[number])).collect();
        Rooms { bus, visits, next: 0 }
    }

    /// Does `act` with each room of this round.
    fn visit(&mut self, mut act: impl FnMut(&Bus, &str, &mut RoomId)) {
        let mut at = self.next;
        for _ in 0..BATCH {
            let (name, id) = &mut self.visits[at];
            act(&self.bus, name, id);
            at += 1;
            if at == self.visits.len() {
                at = 0;
            }
        }
    }

    /// Goes on to the rooms of the next round.
    fn advance(&mut self) {
        self.next = (self.next + BATCH) % self.visits.len();
    }

    fn enter(&mut self) {
        self.visit(|bus, name, _| {
            black_box(bus.enter(0, name)).expect("there is a place");
        });
    }

    fn exit(&mut self) {
        self.visit(|bus, _, id| bus.exit(0, *id, false));
    }
}

fn alone(criterion: &mut Criterion) {
    let sizes: &[usize] = if at_full_size() { &[1, 1_000, 1_000_000] } else { &[1, 1_000] };
    let per_round = BATCH as u64;
    for size in sizes {
        let mut group = criterion.benchmark_group(format!("{size} rooms"));
        // So many that none becomes empty in a round of exits.
        let members = 1 + BATCH.div_ceil(*size);
        let mut rooms = LazyCell::new(|| Rooms::new(*size, members));
        group.bench_function("find", |bencher| {
            let rooms = LazyCell::force_mut(&mut rooms);
            bencher.iter_custom(|count| {
                time_of(count, per_round, || {
                    rooms.visit(|bus, name, id| assert_eq!(bus.find(name), Some(*id)));
                    rooms.advance();
                })
            });
        });
        group.bench_function("enter", |bencher| {
            let rooms = LazyCell::force_mut(&mut rooms);
            bencher.iter_custom(|count| {
                time_within(count, per_round, |watch| {
                    watch.time(|| rooms.enter());
                    rooms.exit();
                    rooms.advance();
                })
            });
        });
        group.bench_function("exit", |bencher| {
            let rooms = LazyCell::force_mut(&mut rooms);
            bencher.iter_custom(|count| {
                time_within(count, per_round, |watch| {
                    watch.time(|| rooms.exit());
                    rooms.enter();
                    rooms.advance();
                })
            });
        });
        group.bench_function("publish", |bencher| {
            let rooms = LazyCell::force_mut(&mut rooms);
            let mut mail = VecDeque::new();
            bencher.iter_custom(|count| {
                time_within(count, per_round, |watch| {
                    watch.time(|| {
                        rooms.visit(|bus, name, _| {
                            black_box(bus.publish(&draft(name))).expect("the mailbox is not full");
                        });
                    });
                    rooms.bus.mailbox(0).collect(&mut mail);
                    assert_eq!(mail.len(), BATCH, "each was taken");
                    mail.clear();
                    rooms.advance();
                })
            });
        });
        drop(rooms);
        let mut rooms = LazyCell::new(|| Rooms::new(*size, 1));
        group.bench_function("forget and make", |bencher| {
            let rooms = LazyCell::force_mut(&mut rooms);
            bencher.iter_custom(|count| {
                time_of(count, per_round, || {
                    rooms.visit(|bus, name, id| {
                        bus.exit(0, *id, true);
                        *id = bus.enter(0, name).expect("there is a place").0;
                    });
                    rooms.advance();
                })
            });
            assert_eq!(rooms.bus.rooms(), *size);
        });
        group.finish();
    }
}

/// What each thread does over and over.
#[derive(Clone, Copy)]
enum Call {
    Find,
    EnterAndExit,
    Publish,
}

fn contention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("contention");
    let bus = Bus::new(2, ROOMS_MAX);
    let mut rooms: Vec<(CompactString, RoomId)> = Vec::new();
    // Two rooms of different stripes, each with a member on both shards.
    for name in (0..ROOMS_MAX).map(name) {
        let (id, _) = bus.enter(0, &name).expect("there is a place");
        bus.enter(1, &name).expect("there is a place");
        if rooms.first().is_none_or(|(_, first)| first.index % STRIPES != id.index % STRIPES) {
            rooms.push((name, id));
        }
        if rooms.len() == 2 {
            break;
        }
    }
    let (one, other) = (rooms[0].0.as_str(), rooms[1].0.as_str());
    for (name, call) in
        [("find", Call::Find), ("enter and exit", Call::EnterAndExit), ("publish", Call::Publish)]
    {
        for (how, names) in
            [("alone", &[one] as &[&str]), ("other rooms", &[one, other]), ("one room", &[one, one])]
        {
            group.bench_function(BenchmarkId::new(name, how), |bencher| {
                bencher.iter_custom(|count| contend(&bus, names, call, count));
            });
        }
    }
    for (name, _) in &rooms {
        let (_, before) = bus.enter(0, name).expect("there is a place");
        assert_eq!(before, 2, "who entered has left");
    }
    group.finish();
}

/// The directory's stripes: the low bits of a room's index say which one it is in.
const STRIPES: u32 = 64;

/// A thread for each of `names`, which makes `count` calls. The time of the slower one.
fn contend(bus: &Bus, names: &[&str], call: Call, count: u64) -> Duration {
    let start = Barrier::new(names.len());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(names)
            .map(|(shard, name)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    // One thread alone takes the mail of both shards.
                    let owned: &[ShardId] = if names.len() == 1 { &[0, 1] } else { &[shard] };
                    time_of(count, 1, calls(bus, shard, owned, name, call))
                })
            })
            .collect();
        let times = threads.into_iter().map(|thread| thread.join().expect("it does not panic"));
        times.max().unwrap_or_default()
    })
}

/// One call after the other, as the thread of `shard` makes them.
fn calls<'a>(
    bus: &'a Bus,
    shard: ShardId,
    owned: &'a [ShardId],
    name: &'a str,
    call: Call,
) -> impl FnMut() + 'a {
    let mut mail = VecDeque::new();
    let mut calls = 0;
    move || {
        match call {
            Call::Find => assert!(black_box(bus.find(black_box(name))).is_some()),
            Call::EnterAndExit => {
                let (id, _) = bus.enter(shard, name).expect("there is a place");
                bus.exit(shard, black_box(id), false);
            }
            Call::Publish => {
                if bus.publish(&draft(name)) == Err(Overloaded) {
                    // The other thread has been taken off its processor, or has ended: somebody must take its mail.
                    (0..bus.shards()).for_each(|shard| take_mail(bus, shard as ShardId, &mut mail));
                }
                calls += 1;
                if calls % TURN == 0 {
                    owned.iter().for_each(|shard| take_mail(bus, *shard, &mut mail));
                }
            }
        }
    }
}

fn take_mail(bus: &Bus, shard: ShardId, mail: &mut VecDeque<throng::bus::mailbox::Mail>) {
    bus.mailbox(shard).collect(mail);
    mail.clear();
}

fn name(number: usize) -> CompactString {
    format_compact!("auction:{number:08}")
}

fn draft(room: &str) -> Draft<'_> {
    Draft::new(room, "bid", &[b'1'; 100], Time::default())
}
