//! What becomes of throngs under load when Redis is stopped, killed, hangs or is replaced: their own clients notice nothing, what goes between
//! processes is back soon after Redis, nothing comes twice, and whoever asks is told how things are.

use crate::harness::clock::{now, rest};
use crate::harness::redis::{Redis, Trio};
use crate::harness::{Client, Deadline, Heard, Server, eventually};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How soon events go between processes again once Redis serves, at the default settings.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// The longest time in which a member may hear nothing of its own process. Redis is away for longer, and all tests share a few processors.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// What a process may take more than before: twice what may wait for Redis, and some for the rest.
const MEMORY_BYTES_MORE: u64 = 96 << 20;
/// What may wait for Redis at the default settings.
const WAITING_MAX: u64 = 100_000;
const WAITING_BYTES_MAX: u64 = 32 << 20;
/// Between two looks at what a process says of itself.
const LOOK: Duration = Duration::from_millis(250);
/// Between two publications of one client.
const PACE: Duration = Duration::from_millis(2);

#[test]
fn redis_is_stopped_for_ten_seconds() {
    let mut redis = Redis::start();
    let load = Load::on(&[redis.url()], &[]);
    redis.stop();
    load.is_down_for(Duration::from_secs(10));
    for throng in &load.throngs {
        assert!(throng.metrics().sum("throng_redis_breaker", &[]) > 0.0, "nothing is taken for it any more");
    }
    redis.start_again();
    load.ends_well();
}

#[test]
fn redis_is_killed_for_ten_seconds() {
    let mut redis = Redis::start();
    let load = Load::on(&[redis.url()], &[]);
    redis.kill();
    load.is_down_for(Duration::from_secs(10));
    redis.start_again();
    load.ends_well();
}

#[test]
fn redis_hangs_with_its_connections_open() {
    let redis = Redis::start();
    let load = Load::on(&[redis.url()], &[]);
    redis.pause();
    load.is_down_for(Duration::from_secs(5));
    redis.go_on();
    load.ends_well();
}

#[test]
fn sentinels_choose_another_redis() {
    let mut trio = Trio::start();
    let load = Load::on(&trio.urls(), &["redis.kind=sentinel", "redis.master=main"]);
    trio.master.kill();
    load.is_down_for(Duration::ZERO);
    eventually("the replica is the master", || {
        trio.replica.cli(&["ROLE"]).starts_with("master").then_some(())
    });
    load.ends_well();
}

/// Two throngs with a publisher and a member each. They publish all the time, and hear what both publish.
struct Load {
    throngs: Vec<Server>,
    /// What the member at each has heard.
    heard: Vec<Arc<Mutex<Tally>>>,
    members: Vec<JoinHandle<()>>,
    publishers: Vec<JoinHandle<u64>>,
    publishing: Arc<AtomicBool>,
    listening: Arc<AtomicBool>,
    memory_bytes: u64,
}

#[derive(Debug, Default)]
struct Tally {
    /// Events of the publisher in the same process, none of which may be missing.
    here: u64,
    /// Events of the other.
    elsewhere: u64,
    /// The longest time between two of `here`.
    pause_max: Duration,
}

impl Load {
    fn on(urls: &[String], settings: &[&str]) -> Load {
        let urls = format!("redis.urls={urls:?}");
        let settings = [&[urls.as_str()], settings].concat();
        let throngs: Vec<Server> = (0..2).map(|_| Server::with(&settings)).collect();
        for throng in &throngs {
            is_said(throng, "up");
        }
        let [publishing, listening] = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
        let (mut heard, mut members, mut publishers) = (Vec::new(), Vec::new(), Vec::new());
        for (own, throng) in throngs.iter().enumerate() {
            let (mut member, mut publisher) = (throng.client(), throng.client());
            member.join(&["a"]);
            let tally = Arc::new(Mutex::new(Tally::default()));
            heard.push(tally.clone());
            let listening = listening.clone();
            members.push(std::thread::spawn(move || listen(&mut member, own as u64, &tally, &listening)));
            let publishing = publishing.clone();
            publishers.push(std::thread::spawn(move || {
                let mut number = 0;
                while publishing.load(Relaxed) {
                    let data = json!([own, number]);
                    publisher.say(&json!({"type": "publish", "room": "a", "event": "n", "data": data}));
                    number += 1;
                    rest(PACE);
                }
                number
            }));
        }
        let memory_bytes = throngs.iter().map(Server::resident_bytes).max().unwrap_or_default();
        let load = Load { throngs, heard, members, publishers, publishing, listening, memory_bytes };
        load.hear_each_other();
        load
    }

    fn tallies(&self) -> impl Iterator<Item = MutexGuard<'_, Tally>> {
        self.heard.iter().map(|tally| tally.lock().expect("no member has panicked"))
    }

    /// Waits until both members hear something new from the other process.
    fn hear_each_other(&self) {
        let before: Vec<u64> = self.tallies().map(|tally| tally.elsewhere).collect();
        eventually("both hear each other", || {
            self.tallies().zip(&before).all(|(tally, before)| tally.elsewhere > *before).then_some(())
        });
    }

    /// Redis has gone. Waits until that is said, and then for so long, in which it is said all the time, members hear their own process,
    /// and nothing grows beyond its bounds.
    fn is_down_for(&self, time: Duration) {
        for throng in &self.throngs {
            is_said(throng, "down");
        }
        let deadline = Deadline::after(time);
        let heard: Vec<u64> = self.tallies().map(|tally| tally.here).collect();
        while !deadline.is_over() {
            rest(LOOK.min(deadline.left()));
            for throng in &self.throngs {
                let answer = throng.control("/ready");
                assert_eq!((answer.status, &answer.json()["redis"]), (200, &json!("down")));
                let redis = &throng.stats()["redis"];
                assert_eq!((&redis["status"], &redis["servers_up"]), (&json!("down"), &json!(0)), "{redis}");
                assert!(redis["waiting"].as_u64() <= Some(WAITING_MAX), "{redis}");
                assert!(redis["waiting_bytes"].as_u64() <= Some(WAITING_BYTES_MAX), "{redis}");
                assert_eq!(throng.metrics().sum("throng_redis_servers_up", &[]), 0.0);
                self.memory_is_bounded(throng);
            }
        }
        for (tally, heard) in self.tallies().zip(&heard) {
            assert!(time.is_zero() || tally.here > *heard, "{tally:?}");
        }
    }

    fn memory_is_bounded(&self, throng: &Server) {
        let more = throng.resident_bytes().saturating_sub(self.memory_bytes);
        assert!(more < MEMORY_BYTES_MORE, "{more} bytes more");
    }

    /// Redis is back: so are the events, soon, and all that was to hold has held.
    fn ends_well(self) {
        let began = now();
        self.hear_each_other();
        assert!(began.elapsed() < BACK_WITHIN, "it took {:?}", began.elapsed());
        for throng in &self.throngs {
            is_said(throng, "up");
            self.memory_is_bounded(throng);
            let redis = &throng.stats()["redis"];
            let lost: u64 =
                redis["lost"].as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
            assert!(lost > 0 && redis["gaps"].as_u64() > Some(0), "{redis}");
        }
        self.publishing.store(false, Relaxed);
        let published: Vec<u64> =
            self.publishers.into_iter().map(|thread| thread.join().expect("it can publish")).collect();
        for (tally, published) in self.heard.iter().zip(published) {
            eventually("what was published here was heard here", || {
                (tally.lock().expect("no member has panicked").here == published).then_some(())
            });
        }
        self.listening.store(false, Relaxed);
        self.members.into_iter().for_each(|thread| thread.join().expect("it heard what it should"));
        for tally in &self.heard {
            let tally = tally.lock().expect("no member has panicked");
            assert!(tally.pause_max < PAUSE_MAX, "{tally:?}");
        }
    }
}

/// Hears events until it is told to end: all of its own process, and of the other none twice and none late.
fn listen(member: &mut Client, own: u64, tally: &Mutex<Tally>, listening: &AtomicBool) {
    let (mut last_here, mut next_elsewhere) = (now(), 0);
    while listening.load(Relaxed) {
        let Some(Heard::Text(message, _)) = member.hear_within(Duration::from_millis(50)) else { continue };
        let data = &message["data"];
        let (by, number) = (data[0].as_u64().expect("who"), data[1].as_u64().expect("which"));
        let mut tally = tally.lock().expect("nobody panics with it");
        if by == own {
            assert_eq!(number, tally.here, "the next of this process");
            tally.here += 1;
            tally.pause_max = tally.pause_max.max(last_here.elapsed());
            last_here = now();
        } else {
            assert!(number >= next_elsewhere, "{number} after {next_elsewhere}");
            next_elsewhere = number + 1;
            tally.elsewhere += 1;
        }
    }
}

/// Waits until the probe says this of Redis. It answers 200 all the time.
fn is_said(throng: &Server, status: &str) {
    eventually(&format!("Redis is {status}"), || {
        let answer = throng.control("/ready");
        assert_eq!(answer.status, 200);
        (answer.json()["redis"] == status).then_some(())
    });
}
