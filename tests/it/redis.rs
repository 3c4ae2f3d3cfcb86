//! The link to Redis, held against real servers that are stopped, killed, paused and moved, and against false ones.

use crate::harness::clock::{LOOK_AGAIN, now, rest};
use crate::harness::redis::{Cluster, Fake, Redis, Trio, free_port};
use crate::harness::{Deadline, WAIT, eventually};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use throng::bridge::fault::{Fault, FaultKind};
use throng::bridge::link::{Event, Link, Servers, Settings, Value, Way};
use throng::bridge::stats::{Breaker, LinkStats, Loss};
use throng::time::Clock;
use tokio::sync::oneshot;

/// A link on a thread of its own, and what it has told.
struct Held {
    link: Link,
    stats: Arc<LinkStats>,
    told: Arc<Mutex<Told>>,
    runtime: tokio::runtime::Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Told {
    /// Way, channel and payload.
    messages: Vec<(Way, String, String)>,
    ups: usize,
    downs: Vec<FaultKind>,
    aways: Vec<FaultKind>,
    given_up: usize,
    refused: Vec<FaultKind>,
    /// How long each gap was.
    gaps: Vec<Duration>,
}

/// The settings that the program begins with, and a watchdog in a hurry.
fn settings(servers: Servers) -> Settings {
    Settings {
        name: "throng-test".into(),
        watch_interval: Duration::from_millis(500),
        watch_patience: Duration::from_millis(1500),
        ..Settings::new(servers)
    }
}

impl Held {
    fn to(redis: &Redis) -> Held {
        Held::with(settings(Servers::One(redis.url())))
    }

    /// One that is up.
    fn with(settings: Settings) -> Held {
        let held = Held::start(settings);
        held.wait_for("the link is up", || held.stats.servers_up.value() > 0);
        held
    }

    fn start(settings: Settings) -> Held {
        let told = Arc::new(Mutex::new(Told::default()));
        let telling = told.clone();
        let tell = move |event: Event<'_>| {
            let mut told = telling.lock().expect("nobody panicked with it");
            match event {
                Event::Message { way, channel, payload, .. } => {
                    told.messages.push((way, text(channel), text(&payload)));
                }
                Event::Up { .. } => told.ups += 1,
                Event::Down { fault, .. } => told.downs.push(fault.kind),
                Event::Away { fault, .. } => told.aways.push(fault.kind),
                Event::GivenUp { .. } => told.given_up += 1,
                Event::Refused { fault, .. } => told.refused.push(fault.kind),
                Event::Gap { from, to } => told.gaps.push(to.since(from)),
            }
        };
        let link = Link::new(settings, Clock::start(), tell).expect("the settings can work");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (end, ended) = oneshot::channel();
        let (running, handle) = (link.clone(), runtime.handle().clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = running.run() => {}
                    _ = ended => {}
                }
            });
        });
        Held { stats: link.stats(), link, told, runtime: handle, end: Some(end), thread: Some(thread) }
    }

    fn publish(&self, channel: &str, payload: &str) -> Result<(), Loss> {
        self.link.publish(Way::Plain, channel.as_bytes(), payload.as_bytes(), 1)
    }

    /// Subscribes, and waits until Redis has confirmed it.
    fn subscribe(&self, way: Way, names: &[&str]) {
        self.link.subscribe(way, names);
        self.wait_for("the subscriptions are made", || self.is_subscribed());
    }

    fn is_subscribed(&self) -> bool {
        self.stats.subscriptions.value() == self.stats.subscriptions_wanted.value()
    }

    fn ask(&self, near: &str, words: &[&str]) -> Result<Value, Fault> {
        let (link, near) = (self.link.clone(), near.to_owned());
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.run(async move {
            let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
            link.ask(near.as_bytes(), &words).await
        })
    }

    /// Runs `work` beside the link, to its end.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            // An error means that the test has ended.
            sender.send(work.await).ok();
        });
        receiver.recv_timeout(WAIT).expect("an answer in time")
    }

    fn told<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().expect("nobody panicked with it"))
    }

    /// The payloads heard on a channel so far.
    fn heard(&self, channel: &str) -> Vec<String> {
        self.told(|told| {
            let here = told.messages.iter().filter(|(_, name, _)| name == channel);
            here.map(|(.., payload)| payload.clone()).collect()
        })
    }

    fn wait_for_heard(&self, channel: &str, expected: &[&str]) {
        let deadline = Deadline::after(WAIT);
        while self.heard(channel) != expected {
            assert!(
                !deadline.is_over(),
                "{channel}: {:?}, not {expected:?}; {}",
                self.heard(channel),
                self.state()
            );
            rest(LOOK_AGAIN);
        }
    }

    fn wait_for(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Deadline::after(WAIT);
        while !holds() {
            assert!(!deadline.is_over(), "{what}? {}", self.state());
            rest(LOOK_AGAIN);
        }
    }

    fn wait_for_breaker(&self, breaker: Breaker) {
        self.wait_for("the breaker moves", || self.stats.breaker.value() == breaker.index() as u64);
    }

    fn faults(&self, kind: FaultKind) -> u64 {
        self.stats.faults[kind.index()].value()
    }

    fn lost(&self, loss: Loss) -> u64 {
        self.stats.lost[loss.index()].value()
    }

    fn state(&self) -> String {
        self.told(|told| format!("downs {:?}, gaps {:?}, {:?}", told.downs, told.gaps, self.stats))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // An error means that the link has ended by itself, and then the thread says why.
        self.end.take().map(|end| end.send(()).ok());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the link panicked");
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_published_is_heard_in_order() {
    let redis = Redis::start();
    let (one, two) = (Held::to(&redis), Held::to(&redis));
    two.subscribe(Way::Plain, &["room"]);
    two.subscribe(Way::Pattern, &["pattern:*"]);
    two.subscribe(Way::Sharded, &["shard"]);
    let numbers: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
    for number in &numbers {
        one.publish("room", number).expect("there is room for it");
    }
    one.link.publish(Way::Plain, b"pattern:1", b"\x00\xff", 1).expect("there is room for it");
    one.link.publish(Way::Sharded, b"shard", b"here", 1).expect("there is room for it");
    two.wait_for("all is heard", || two.heard("room").len() >= numbers.len());
    assert_eq!(two.heard("room"), numbers);
    two.wait_for_heard("shard", &["here"]);
    two.wait_for_heard("pattern:1", &["\0\u{fffd}"]);
    let ways = two.told(|told| told.messages.iter().rev().take(2).map(|(way, ..)| *way).collect::<Vec<_>>());
    assert!(ways.contains(&Way::Pattern) && ways.contains(&Way::Sharded), "{ways:?}");
    // The watchdogs count neither here nor there.
    one.wait_for("all is confirmed", || one.stats.published.value() == 20_002);
    assert_eq!((one.stats.waiting.value(), one.stats.waiting_bytes.value()), (0, 0));
    assert_eq!(two.stats.received.value(), 20_002);

    two.link.unsubscribe(Way::Plain, ["room"]);
    two.wait_for("the subscription is gone", || redis.cli(&["PUBSUB", "NUMSUB", "room"]).trim() == "room\n0");
    assert_eq!(two.stats.subscriptions.value(), 2);
    assert!(two.told(|told| told.gaps.is_empty() && told.downs.is_empty()), "{}", two.state());
}

#[test]
fn questions_by_the_hundred_put_no_publication_out_of_order() {
    const COUNT: usize = 40_000;
    let redis = Redis::start();
    let (one, two) = (Held::to(&redis), Held::to(&redis));
    two.subscribe(Way::Plain, &["room"]);
    let done = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..600)
        .map(|_| {
            let (link, done) = (one.link.clone(), done.clone());
            one.runtime.spawn(async move {
                let mut answers = 0;
                while !done.load(Relaxed) {
                    link.ask(b"room", &[b"PUBSUB", b"NUMSUB", b"room"]).await.expect("an answer");
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    for number in 0..COUNT {
        one.publish("room", &number.to_string()).expect("there is room for it");
        if number % 200 == 0 {
            rest(Duration::from_millis(5));
        }
    }
    two.wait_for("all is heard", || two.heard("room").len() >= COUNT);
    done.store(true, Relaxed);
    check_order(&two);
    let answers: usize = asking.into_iter().map(|asker| one.run(asker).expect("it has not panicked")).sum();
    assert!(answers > 1000, "{answers} questions are no crowd");
}

#[test]
fn redis_is_asked_anything_and_answers_or_the_time_is_up() {
    let redis = Redis::start();
    let held = Held::with(Settings {
        command_timeout: Duration::from_millis(500),
        ..settings(Servers::One(redis.url()))
    });
    let script = "return {KEYS[1], ARGV[1]}";
    let answer = held.ask("key", &["EVAL", script, "1", "key", "value"]).expect("an answer");
    let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    assert_eq!(answer, Value::Array(vec![bulk("key"), bulk("value")]));
    let fault = held.ask("key", &["EVALSHA", "0000", "0"]).expect_err("there is no such script");
    assert_eq!(fault.kind, FaultKind::Answer);
    assert!(fault.text.contains("NoScript"), "{fault}");
    redis.pause();
    assert_eq!(held.ask("key", &["GET", "key"]).expect_err("nobody answers").kind, FaultKind::Timeout);
    redis.go_on();
}

#[test]
fn it_logs_in_over_tcp_and_unix_sockets() {
    let redis = Redis::with(&[
        "--unixsocket {folder}/socket",
        "--user alice on >secret allcommands allkeys allchannels",
    ]);
    redis.cli(&["CONFIG", "SET", "requirepass", "other"]);
    let socket = redis.folder().join("socket").display().to_string();
    let urls = [
        format!("redis://alice:secret@127.0.0.1:{}/3", redis.port()),
        format!("unix://{socket}?db=3&user=alice&pass=secret"),
    ];
    for url in urls {
        let held = Held::with(settings(Servers::One(url)));
        let info = held.ask("", &["CLIENT", "INFO"]).expect("an answer");
        let Value::VerbatimString { text: info, .. } = info else { panic!("{info:?}") };
        for part in ["name=throng-test", "db=3", "user=alice", "resp=3"] {
            assert!(info.contains(part), "{info}");
        }
    }
    let held = Held::start(settings(Servers::One(redis.url())));
    held.wait_for_breaker(Breaker::Open);
    held.wait_for("it tries on", || held.faults(FaultKind::Denied) >= 8);
    // However often it fails, that is told once.
    assert_eq!(held.told(|told| (told.aways.clone(), told.given_up)), (vec![FaultKind::Denied], 1));
    assert_eq!(held.publish("room", "x"), Err(Loss::Down));
}

#[test]
fn it_speaks_tls_to_whoever_has_the_right_certificate() {
    let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).expect("a certificate");
    let pem = pair.cert.pem();
    let folder = std::env::temp_dir().join(format!("throng-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is room");
    std::fs::write(folder.join("cert"), &pem).expect("there is room");
    std::fs::write(folder.join("key"), pair.signing_key.serialize_pem()).expect("there is room");
    let (cert, key) = (folder.join("cert"), folder.join("key"));
    let (cert, key) = (cert.display(), key.display());
    let redis = Redis::with(&[
        "--port 0",
        "--tls-port {port}",
        &format!("--tls-cert-file {cert}"),
        &format!("--tls-key-file {key}"),
        &format!("--tls-ca-cert-file {cert}"),
        "--tls-auth-clients no",
    ]);
    let url = format!("rediss://127.0.0.1:{}", redis.port());
    let trusting = Settings { ca_pem: Some(pem.into_bytes()), ..settings(Servers::One(url.clone())) };
    let held = Held::with(trusting);
    held.subscribe(Way::Plain, &["room"]);
    held.publish("room", "sealed").expect("there is room for it");
    held.wait_for_heard("room", &["sealed"]);

    let stranger = Held::start(settings(Servers::One(url)));
    stranger.wait_for_breaker(Breaker::Open);
    std::fs::remove_dir_all(folder).expect("it is ours");
}

/// Publishes numbers to `room` every few milliseconds for so long, and answers how many were taken.
fn publish_for(held: &Held, time: Duration, from: usize) -> usize {
    let deadline = Deadline::after(time);
    let mut next = from;
    while !deadline.is_over() {
        held.publish("room", &next.to_string()).ok();
        next += 1;
        rest(Duration::from_millis(1));
    }
    next
}

/// No number was heard twice or out of order.
fn check_order(held: &Held) {
    let heard: Vec<usize> = held.heard("room").iter().map(|text| text.parse().expect("a number")).collect();
    assert!(heard.is_sorted_by(|a, b| a < b), "each once and in order");
}

/// How long it takes, from now, until what `one` publishes is heard by `two`.
fn time_to_resume(one: &Held, two: &Held, from: usize) -> Duration {
    let begin = now();
    let before = two.heard("room").len();
    let mut next = from;
    eventually("delivery resumes", || {
        one.publish("room", &next.to_string()).ok();
        next += 1;
        (two.heard("room").len() > before).then_some(())
    });
    now() - begin
}

#[test]
fn a_redis_that_is_killed_and_comes_back_empty_is_used_again_at_once() {
    let mut redis = Redis::start();
    let (one, two) = (Held::to(&redis), Held::to(&redis));
    two.subscribe(Way::Plain, &["room"]);
    let next = publish_for(&one, Duration::from_millis(500), 0);
    redis.kill();
    let next = publish_for(&one, Duration::from_secs(4), next);
    assert_eq!(one.stats.breaker.value(), Breaker::Open.index() as u64, "{}", one.state());
    assert_eq!(one.stats.waiting.value(), 0, "nothing piles up");
    assert!(one.lost(Loss::Down) > 1000, "{}", one.state());
    redis.start_again();
    let time = time_to_resume(&one, &two, next);
    assert!(time < Duration::from_secs(2), "{time:?}");
    check_order(&two);
    let gaps = two.told(|told| told.gaps.clone());
    assert!(gaps.len() == 1 && gaps[0] > Duration::from_secs(4), "{gaps:?}");
    two.wait_for("it is up again", || two.told(|told| told.ups == 2));
    assert_eq!(two.told(|told| told.downs.clone()), [FaultKind::Closed]);
    assert_eq!(two.told(|told| (told.aways.clone(), told.given_up)), (vec![FaultKind::Unreachable], 1));
}

#[test]
fn a_short_absence_costs_only_what_was_under_way() {
    let redis = Redis::start();
    // A connection that lasts longer than the longest pause was no failure, so that the breaker stays closed.
    let settings = settings(Servers::One(redis.url()));
    let one = Held::with(Settings { backoff_max: Duration::from_millis(100), ..settings });
    let two = Held::to(&redis);
    two.subscribe(Way::Plain, &["room"]);
    for round in 0..5 {
        rest(Duration::from_millis(300));
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        for number in 0..100 {
            one.publish("room", &(round * 100 + number).to_string()).expect("there is room for it");
        }
        one.wait_for("all have an outcome", || one.stats.waiting.value() == 0);
        one.wait_for("it is up", || one.stats.servers_up.value() == 1);
        two.wait_for("it is up", || two.stats.servers_up.value() == 1);
    }
    assert_eq!(one.stats.published.value() + one.lost(Loss::Unknown), 500, "{}", one.state());
    assert!(one.stats.published.value() > 0);
    check_order(&two);
}

#[test]
fn a_paused_redis_is_noticed_and_waited_for() {
    let redis = Redis::start();
    let patient = settings(Servers::One(redis.url()));
    let one = Held::with(Settings { waiting_max: 1000, ..patient });
    let two = Held::to(&redis);
    two.subscribe(Way::Plain, &["room"]);
    let next = publish_for(&one, Duration::from_millis(200), 0);
    redis.pause();
    let next = publish_for(&one, Duration::from_secs(6), next);
    assert!(
        two.told(|told| told.downs.contains(&FaultKind::Deaf) || told.downs.contains(&FaultKind::Timeout))
    );
    assert!(one.lost(Loss::Full) > 0, "{}", one.state());
    assert!(one.stats.waiting.value() <= 1000);
    redis.go_on();
    let time = time_to_resume(&one, &two, next);
    assert!(time < Duration::from_secs(2), "{time:?}");
    check_order(&two);
    // It is told when Redis has confirmed all subscriptions, which may be after the first message.
    eventually("the gap is told", || two.told(|told| !told.gaps.is_empty()).then_some(()));
}

#[test]
fn what_waits_is_bounded_by_number_and_bytes() {
    let redis = Redis::start();
    let base = settings(Servers::One(redis.url()));
    let by_count = Held::with(Settings { waiting_max: 10, ..base.clone() });
    let by_bytes = Held::with(Settings { waiting_bytes_max: 5000, ..base });
    redis.pause();
    for held in [&by_count, &by_bytes] {
        let taken = (0..100).filter(|_| held.publish("room", &"x".repeat(300)).is_ok()).count();
        assert!(taken <= 10, "{taken}");
        assert_eq!(held.lost(Loss::Full), 100 - taken as u64);
        assert!(held.stats.waiting_bytes.value() <= 5040 + 64);
    }
    redis.go_on();
    for held in [&by_count, &by_bytes] {
        held.wait_for("all went out", || held.stats.waiting.value() == 0);
        assert_eq!(held.stats.published.value() + held.lost(Loss::Full), 100);
    }
}

#[test]
fn many_subscriptions_are_made_and_made_again() {
    const COUNT: usize = 100_000;
    let redis = Redis::start();
    let held = Held::to(&redis);
    let names: Vec<String> = (0..COUNT).map(|number| format!("room:{number}")).collect();
    held.link.subscribe(Way::Plain, &names);
    held.wait_for("all are made", || held.stats.subscriptions.value() == COUNT as u64);
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    held.wait_for("it is down", || held.told(|told| !told.downs.is_empty()));
    held.wait_for("all are made again", || held.stats.subscriptions.value() == COUNT as u64);
    held.wait_for("the gap is told", || held.told(|told| told.gaps.len() == 1 && told.ups == 2));
    held.link.unsubscribe(Way::Plain, &names);
    held.link.subscribe(Way::Plain, &names[..10]);
    held.wait_for("few are left", || held.stats.subscriptions.value() == 10);
    // Of those that came back while they went, each is where it should be.
    let counts = redis.cli(&["PUBSUB", "NUMSUB", "room:0", "room:9", "room:10"]);
    assert_eq!(counts.trim(), "room:0\n1\nroom:9\n1\nroom:10\n0");
}

#[test]
fn a_master_that_fails_is_followed_where_the_sentinels_say() {
    let trio = Trio::start();
    let servers = Servers::Sentinel { sentinels: trio.urls(), master: "main".into(), password: None };
    let (one, two) = (Held::with(settings(servers.clone())), Held::with(settings(servers)));
    two.subscribe(Way::Plain, &["room"]);
    let next = publish_for(&one, Duration::from_millis(300), 0);
    trio.master.pause();
    eventually("the replica is promoted", || trio.replica.cli(&["ROLE"]).starts_with("master").then_some(()));
    let time = time_to_resume(&one, &two, next);
    assert!(time < Duration::from_secs(3), "{time:?}");
    let next = publish_for(&one, Duration::from_secs(1), next + 10_000);
    // The old master comes back, and takes itself for one until a Sentinel tells it otherwise.
    trio.master.go_on();
    one.wait_for("the publisher is at the new master", || {
        matches!(one.ask("", &["CONFIG", "GET", "port"]), Ok(Value::Map(port))
            if port.iter().any(|(_, port)| *port == Value::BulkString(trio.replica.port().to_string().into_bytes())))
    });
    time_to_resume(&one, &two, next + 10_000);
    check_order(&two);
    assert!(two.told(|told| !told.gaps.is_empty()), "{}", two.state());
}

/// A false Sentinel that names the server on this port, whatever has become of it.
fn sentinel_of(port: u16) -> Fake {
    let port = port.to_string();
    let named = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len()).into_bytes();
    Fake::start(move |words| greeting(words, |_| Some(named.clone())))
}

#[test]
fn a_sentinel_that_is_wrong_or_hangs_keeps_nobody_from_the_master() {
    let (redis, hung, rival) = (Redis::start(), Redis::start(), Redis::start());
    let replica = Redis::with(&[&format!("--replicaof 127.0.0.1 {}", redis.port())]);
    let patient = |sentinels: &[String]| Settings {
        connect_timeout: Duration::from_secs(20),
        ..settings(Servers::Sentinel { sentinels: sentinels.to_vec(), master: "main".into(), password: None })
    };
    let right = sentinel_of(redis.port());
    hung.pause();
    // The kernel takes connections to it, and nobody answers them.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_url = format!("redis://{}", silent.local_addr().expect("it is bound"));
    let stale = [sentinel_of(free_port()), sentinel_of(replica.port()), sentinel_of(hung.port())];
    let others = stale.iter().map(Fake::url).chain([silent_url, hung.url()]);
    for other in others {
        let begin = now();
        drop(Held::with(patient(&[other.clone(), right.url()])));
        let time = now() - begin;
        assert!(time < Duration::from_secs(10), "{other}: {time:?}");
    }
    // One that is cut off with a master of its own is outvoted.
    let cut_off = sentinel_of(rival.port());
    let held = Held::with(patient(&[cut_off.url(), right.url(), sentinel_of(redis.port()).url()]));
    assert!(redis.cli(&["CLIENT", "LIST"]).contains("throng-test"), "{}", held.state());
    assert!(!rival.cli(&["CLIENT", "LIST"]).contains("throng-test"), "{}", held.state());
    hung.go_on();

    let lost = Held::start(patient(&[stale[1].url()]));
    lost.wait_for_breaker(Breaker::Open);
    assert_eq!(lost.told(|told| told.aways.clone()), [FaultKind::ReadOnly]);
}

#[test]
fn a_cluster_is_published_to_by_slot_and_followed_when_slots_move() {
    let cluster = Cluster::start();
    let servers = Servers::Cluster(cluster.urls()[..1].to_vec());
    let (one, two) = (Held::with(settings(servers.clone())), Held::with(settings(servers)));
    for held in [&one, &two] {
        held.wait_for("all masters are up", || held.stats.servers_up.value() == 3);
    }
    let channels = ["a", "b", "c", "d", "e", "f", "room"];
    two.subscribe(Way::Plain, &channels);
    two.subscribe(Way::Sharded, &["a", "b", "c", "d", "e", "f", "shard"]);
    for channel in channels {
        for way in [Way::Plain, Way::Sharded] {
            one.link.publish(way, channel.as_bytes(), format!("{way:?}").as_bytes(), 1).expect("room");
        }
    }
    for channel in &channels[..6] {
        two.wait_for("both arrive", || two.heard(channel).len() == 2);
    }

    // Keys are asked for where they are.
    for key in channels {
        one.ask(key, &["SET", key, "x"]).expect("the right server was asked");
    }
    let link = one.link.clone();
    let all = one.run(async move { link.ask_each(&[b"DBSIZE"]).await });
    let keys = all.iter().map(|answer| if let Ok(Value::Int(keys)) = answer { *keys } else { 0 });
    assert_eq!((all.len(), keys.sum::<i64>()), (3, channels.len() as i64));

    // The slot of a sharded channel moves while it is published to.
    let target = (cluster.owner("shard") + 1) % 3;
    let mut next = 0;
    let mut send = |count: usize| {
        for _ in 0..count {
            one.link.publish(Way::Sharded, b"shard", next.to_string().as_bytes(), 1).expect("room");
            next += 1;
        }
    };
    send(100);
    cluster.move_slot("shard", target);
    send(100);
    one.wait_for("all have an outcome", || one.stats.waiting.value() == 0);
    assert_eq!(one.lost(Loss::Unknown) + one.lost(Loss::Refused), 0, "{}", one.state());
    two.wait_for("the subscription has moved", || {
        cluster.masters[target].cli(&["PUBSUB", "SHARDNUMSUB", "shard"]).trim() == "shard\n1"
    });
    two.wait_for("the gap is told", || two.told(|told| !told.gaps.is_empty()));
    one.link.publish(Way::Sharded, b"shard", b"1000", 1).expect("room");
    two.wait_for("it is heard at the new server", || {
        two.heard("shard").last().is_some_and(|last| last == "1000")
    });
    let heard: Vec<usize> = two.heard("shard").iter().map(|text| text.parse().expect("a number")).collect();
    assert!(heard.is_sorted_by(|a, b| a < b), "each once and in order: {heard:?}");
}

#[test]
fn a_cluster_that_loses_a_master_serves_what_the_others_have() {
    let mut cluster = Cluster::start();
    for redis in &cluster.masters {
        redis.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let held = Held::with(settings(Servers::Cluster(cluster.urls())));
    held.wait_for("all masters are up", || held.stats.servers_up.value() == 3);
    let channels = ["a", "b", "c", "d", "e", "f"];
    held.subscribe(Way::Sharded, &channels);
    let owners = channels.map(|channel| cluster.owner(channel));
    let lost = owners[0];
    cluster.masters[lost].kill();
    held.wait_for_breaker(Breaker::Open);
    assert_eq!(held.stats.servers_up.value(), 2);
    let mut alive = 0;
    for (place, channel) in channels.into_iter().enumerate() {
        let taken = held.link.publish(Way::Sharded, channel.as_bytes(), b"x", 1);
        if owners[place] != lost {
            alive += 1;
            taken.expect("the others serve");
            held.wait_for_heard(channel, &["x"]);
        } else {
            assert_eq!(taken, Err(Loss::Down));
        }
    }
    assert!(alive > 0);
    cluster.masters[lost].start_again();
    held.wait_for("all masters are up again", || held.stats.servers_up.value() == 3);
    held.link.publish(Way::Sharded, b"a", b"back", 1).expect("it serves again");
    held.wait_for_heard("a", &["back"]);
}

#[test]
fn a_cluster_that_nobody_knows_takes_nothing() {
    let fake = Fake::start(|words| {
        greeting(words, |_| Some(b"-ERR This instance has cluster support disabled\r\n".to_vec()))
    });
    let held = Held::start(settings(Servers::Cluster(vec![fake.url(), "redis://127.0.0.1:1".into()])));
    held.link.subscribe(Way::Plain, ["room"]);
    held.publish("room", "x").expect("it may still turn up");
    held.wait_for_breaker(Breaker::Open);
    assert_eq!(held.publish("room", "x"), Err(Loss::Down));
    assert_eq!((held.stats.waiting.value(), held.lost(Loss::Down)), (0, 2));
}

/// A false Redis that greets as a real one, and answers the rest as `other` says.
fn greeting(words: &[String], other: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    match words[0].as_str() {
        "HELLO" => Some(b"%1\r\n+proto\r\n:3\r\n".to_vec()),
        "CLIENT" => Some(b"+OK\r\n".to_vec()),
        "PING" => Some(b"+PONG\r\n".to_vec()),
        "SUBSCRIBE" => {
            Some(format!(">3\r\n+subscribe\r\n${}\r\n{}\r\n:1\r\n", words[1].len(), words[1]).into_bytes())
        }
        command => other(command),
    }
}

/// Whatever `fake` does, the link counts it as `kind`, keeps calm, and takes nothing.
fn check_refusal(fake: &Fake, kind: FaultKind) {
    let held = Held::start(settings(Servers::One(fake.url())));
    held.wait_for("the fault is counted", || held.faults(kind) >= 2);
    held.wait_for_breaker(Breaker::Open);
    assert_eq!(held.publish("room", "x"), Err(Loss::Down));
    let before = fake.connections.load(Relaxed);
    rest(Duration::from_secs(1));
    let attempts = fake.connections.load(Relaxed) - before;
    assert!(attempts <= 20, "{attempts} connections in a second");
    assert_eq!(held.stats.servers_up.value(), 0);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for servers in [
        Servers::One("http://127.0.0.1".into()),
        Servers::Cluster(Vec::new()),
        Servers::Sentinel { sentinels: vec!["main".into()], master: "main".into(), password: None },
    ] {
        let fault = Link::new(settings(servers), Clock::start(), |_| {}).expect_err("they cannot");
        assert_eq!(fault.kind, FaultKind::Settings, "{fault}");
    }
}

#[test]
fn a_redis_that_refuses_everything_is_left_in_peace() {
    let errors: [(&'static str, FaultKind); 5] = [
        ("-LOADING Redis is loading the dataset in memory\r\n", FaultKind::Loading),
        ("-NOAUTH Authentication required.\r\n", FaultKind::Denied),
        ("-READONLY You can't write against a read only replica.\r\n", FaultKind::ReadOnly),
        ("-OOM command not allowed when used memory > 'maxmemory'.\r\n", FaultKind::OutOfMemory),
        ("-ERR max number of clients reached\r\n", FaultKind::Answer),
    ];
    for (error, kind) in errors {
        check_refusal(&Fake::start(move |_| Some(error.as_bytes().to_vec())), kind);
    }
}

#[test]
fn what_is_not_redis_is_left_in_peace() {
    check_refusal(&Fake::start(|_| Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())), FaultKind::Garbage);
    check_refusal(&Fake::start(|_| Some(vec![0xff; 64 << 10])), FaultKind::Garbage);
    check_refusal(&Fake::start(|_| None), FaultKind::Closed);
    // Announces more than there is memory for, and sends none of it.
    let huge = |_: &[String]| Some(b"*9223372036854775807\r\n$9223372036854775800\r\n".to_vec());
    check_refusal(&Fake::start(huge), FaultKind::Timeout);
}

#[test]
fn a_redis_that_refuses_publications_costs_those_and_no_more() {
    let fake = Fake::start(|words| {
        greeting(words, |_| {
            let is_watch = words[1].contains("WATCH:");
            Some(if is_watch { b":1\r\n".to_vec() } else { b"-NOPERM no permissions\r\n".to_vec() })
        })
    });
    let held = Held::start(settings(Servers::One(fake.url())));
    held.wait_for("it can publish", || held.publish("room", "x").is_ok());
    held.wait_for("all have an outcome", || held.stats.waiting.value() == 0);
    assert!(held.lost(Loss::Refused) > 0 && held.stats.published.value() == 0, "{}", held.state());
    assert_eq!(held.faults(FaultKind::Denied), held.lost(Loss::Refused));
    held.publish("room", "x").expect("there is room for it");
    held.wait_for("that has its outcome", || held.stats.waiting.value() == 0);
    assert_eq!(held.told(|told| told.refused.clone()), [FaultKind::Denied], "told once");

    // An error that is of the server and not of the publication ends the connection.
    let fake = Fake::start(|words| greeting(words, |_| Some(b"-READONLY replica\r\n".to_vec())));
    let held = Held::start(settings(Servers::One(fake.url())));
    held.wait_for("that is noticed", || {
        held.publish("room", "x").ok();
        held.faults(FaultKind::ReadOnly) > 2 && held.lost(Loss::Refused) > 0
    });
}

#[test]
fn a_subscriber_that_is_connected_but_deaf_is_noticed() {
    let fake = Fake::start(|words| greeting(words, |_| Some(b":0\r\n".to_vec())));
    let held = Held::start(settings(Servers::One(fake.url())));
    held.wait_for("it is up, as far as it knows", || held.told(|told| told.ups > 0));
    held.wait_for("it is deaf", || held.told(|told| told.downs.contains(&FaultKind::Deaf)));
    held.wait_for("it tries again", || held.told(|told| told.ups > 1 && !told.gaps.is_empty()));
    // To publish was possible all the time.
    assert_eq!(held.faults(FaultKind::Closed) + held.faults(FaultKind::Timeout), 0, "{}", held.state());
}
