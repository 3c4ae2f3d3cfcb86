//! The port on a real socket, with made-up numbers, spoken to as plainly as can be.

use super::*;
use crate::auth::tally::Windows;
use crate::auth::{Ip, Rules};
use crate::backend::Backend;
use crate::bridge::fault::FaultKind;
use crate::bridge::stats::{Breaker, Loss};
use crate::bus::callouts::Callouts;
use crate::bus::calls;
use crate::bus::notices::{self, Notices};
use crate::message::Reject;
use crate::rules::{EventLimit, EventLimits, Namespaces, Over, Pattern, Per, Unit};
use crate::stats::Ending;
use crate::time::Time;
use crate::token::{self, Tokens};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as Client};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// How much later than it should something may happen on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// A control port on its own thread, as the server will run it. Ends with the value.
struct Port {
    control: Arc<Control>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    fn open(limits: Limits) -> Port {
        let control = Arc::new(control());
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let served = control.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
                bound.send(listener.local_addr().expect("it has an address")).expect("the test waits");
                let until = async { stopped.await.expect("the test says when") };
                serve_within(limits, listener, served, until).await.expect("the port works");
            });
        });
        Port {
            control,
            address: address.recv().expect("it is bound"),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn connect(&self) -> Client {
        let client = Client::connect(self.address).expect("the port listens");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket takes a time-out");
        client
    }

    /// Sends one request and reads its answer to the end of the connection.
    fn ask(&self, method: &str, path: &str) -> Answer {
        self.ask_raw(&format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"))
    }

    fn ask_raw(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("it is answered");
        Answer::parse(&answer)
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.ask("GET", path);
        assert_eq!(answer.headers["content-type"], "application/json");
        serde_json::from_str(&answer.body).expect("it is JSON")
    }

    /// Says stop, waits for the end, and answers how long that took.
    fn close(&mut self) -> Duration {
        let clock = Clock::start();
        if let Some(stop) = self.stop.take() {
            stop.send(()).expect("it still runs");
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends without a panic");
        }
        clock.now().since(Time::default())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.close();
        }
    }
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head ends with an empty line");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let headers = lines.map(|line| line.split_once(": ").expect("a header line"));
        Answer {
            status: status.parse().expect("a status is a number"),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }
}

/// A gate that has refused events: one bid too many, by two of the three limits on them.
fn gate() -> Gate {
    let limit = |per, count| EventLimit {
        event: Some("bid".to_owned()),
        namespace: None,
        per,
        most: count,
        unit: Unit::Events,
        window_ms: 1000,
        over: Over::Error,
    };
    let events = EventLimits::new(vec![
        limit(Per::User, 1),
        limit(Per::Ip, 9),
        limit(Per::User, 1),
        limit(Per::Ip, 9),
    ]);
    // Windows enough, wherever their hashes put them.
    let rules = Rules {
        connections_max: 1_000,
        sockets_max: 1_100,
        events,
        event_windows_max: 1_000,
        ..Rules::default()
    };
    let gate = Gate::new(rules);
    let (tally, mut own) = (gate.tally(), Windows::new(1));
    for _ in 0..2 {
        let all = tally.limits();
        let limits = || all.find(None, "bid");
        tally.take(limits, &mut own, (1, Ip::default(), None), 0, Time::default()).ok();
    }
    gate.weigh(0.9);
    gate
}

/// Two shards that have seen something.
fn control() -> Control {
    let stats = Arc::new(Stats::by_pattern(2, 2));
    let patterns = ["/", "/\"q\"\\/*"].into_iter().filter_map(Pattern::parse).collect();
    let waiting = calls::Settings {
        waiting_max: 1,
        waiting_bytes_max: 1,
        waiting_per_connection_max: 1,
        handshake_bytes_max: 1,
        failure: calls::Failure::Error,
    };
    let notices = Arc::new(Notices::new(2, notices::Settings::default()));
    let bus = Bus::new(2, 100)
        .with_namespaces(Namespaces::new(patterns))
        .with_callouts(Arc::new(Callouts::new(10)))
        .with_notices(notices)
        .with_calls(Arc::new(calls::Calls::new(waiting)));
    let bus = Arc::new(bus);
    for (shard, room) in [(0, "a"), (1, "a"), (1, "/\"q\"\\/1\0")] {
        bus.enter(shard, room).expect("there is room");
    }
    stats.memory_bytes.set(123 << 20);
    stats.memory_taken_permille.set(955);
    for (number, shard) in (0u64..).zip(&stats.shards) {
        shard.connections.set(7 + number);
        shard.sockets.set(9 + number);
        shard.rooms.set(1 + number);
        shard.memberships.set(20 + number);
        shard.outbox_bytes.set(4096 * number);
        shard.messages_in.add(1_000 + number);
        shard.bytes_in.add(100_000 + number);
        shard.rejects[Reject::Origin.index()].add(3 + number);
        shard.polling_sessions.set(2 + number);
        for (place, count) in [(Some(0), 10), (Some(1), 20), (None, 30)] {
            let namespaces = shard.namespace(place);
            namespaces.connections.set(count + number);
            namespaces.refusals.add(count + number);
        }
        shard.endings[Ending::Slow.index()].add(5 + number);
        for ns in [1, 255, 256, 70_000, 1_000_000, 40_000_000_000] {
            shard.turn_duration.record(Time::default(), Time::from_ns(ns));
        }
    }
    stats.shards[1].publish_latency.record(Time::default(), Time::from_ns(70_000));
    let bridge = Bridge::default();
    bridge.link_stats.servers.set(3);
    bridge.link_stats.servers_up.set(2);
    bridge.link_stats.waiting_bytes.set(4_096);
    bridge.link_stats.lost[Loss::Down.index()].add(9);
    bridge.outside.lost.add(4);
    bridge.link_stats.faults[FaultKind::Deaf.index()].add(1);
    bridge.stats.events.add(70);
    Control {
        bridge: Some(bridge),
        backend: Some(Backend::default()),
        tokens: Some(Arc::new(Tokens::new(token::Settings::default()))),
        stats,
        bus,
        gate: Arc::new(gate()),
        clock: Clock::start(),
        started_unix_ms: 1_700_000_000_250,
        api: Api::new(api::Settings::default()),
        history: History::default(),
    }
}

/// One family of an exposition, with its samples by name and labels as they are written.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    samples: BTreeMap<String, f64>,
}

/// A strict reader of what both of Prometheus' text parsers accept: each family is HELP, TYPE, perhaps UNIT, then its samples,
/// all in one place; no sample comes twice; histograms add up.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let body = text.strip_suffix("# EOF\n").expect("it ends with EOF and a newline");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut name = String::new();
    for line in body.strip_suffix('\n').expect("every line ends").split('\n') {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let help;
            (name, help) = rest.split_once(' ').map(|(name, help)| (name.to_owned(), help)).expect("a help");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\\', '"']), "{line}");
            assert!(families.insert(name.clone(), Family::default()).is_none(), "{name} comes twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = families.get_mut(&name).expect("HELP comes first");
            assert!(family.kind.is_empty() && family.samples.is_empty(), "{line}");
            family.kind = rest
                .strip_prefix(&name)
                .and_then(|kind| kind.strip_prefix(' '))
                .expect("same name")
                .to_owned();
            assert!(["counter", "gauge", "histogram"].contains(&family.kind.as_str()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let unit = rest.strip_prefix(&name).and_then(|unit| unit.strip_prefix(' ')).expect("same name");
            assert!(["bytes", "seconds"].contains(&unit) && name.ends_with(&format!("_{unit}")), "{line}");
            assert!(families[&name].samples.is_empty(), "{line}");
        } else {
            let family = families.get_mut(&name).expect("HELP comes first");
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let value: f64 = value.parse().expect("a value is a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let suffix =
                series.split('{').next().and_then(|full| full.strip_prefix(&name)).expect("same name");
            let allowed: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                kind => panic!("{name} is a {kind}"),
            };
            assert!(allowed.contains(&suffix), "{line}");
            labels(series);
            assert!(family.samples.insert(series.to_owned(), value).is_none(), "{line} comes twice");
        }
    }
    for (name, family) in &families {
        assert!(!family.samples.is_empty(), "{name} has no samples");
        if family.kind == "histogram" {
            check_histogram(name, family);
        }
    }
    families
}

/// The labels of a series.
fn labels(series: &str) -> BTreeMap<&str, &str> {
    let Some((_, rest)) = series.split_once('{') else { return BTreeMap::new() };
    let mut labels = BTreeMap::new();
    for pair in rest.strip_suffix('}').expect("labels end").split(',') {
        let (key, value) = pair.split_once('=').expect("a label has a value");
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).expect("in quotes");
        assert!(
            [
                "shard",
                "reason",
                "le",
                "version",
                "transport",
                "namespace",
                "thread",
                "event",
                "per",
                "route",
                "status",
                "kind",
                "by",
                "answer",
                "call",
                "outcome"
            ]
            .contains(&key),
            "{series}"
        );
        let bare = value.replace("\\\\", "").replace("\\\"", "");
        assert!(!value.is_empty() && !bare.contains(['"', '\\']), "{series}");
        assert!(labels.insert(key, value).is_none(), "{series} has a label twice");
    }
    labels
}

fn check_histogram(name: &str, family: &Family) {
    let mut buckets: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, &value) in family.samples.iter().filter(|(series, _)| series.contains("_bucket{")) {
        let labels = labels(series);
        let bound =
            if labels["le"] == "+Inf" { f64::INFINITY } else { labels["le"].parse().expect("a bound") };
        buckets.entry(labels["shard"]).or_default().push((bound, value));
    }
    assert_eq!(buckets.len(), 2, "{name} of both shards");
    for (shard, mut buckets) in buckets {
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        assert!(buckets.len() > 20 && buckets.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1));
        let all = family.samples[&format!("{name}_count{{shard=\"{shard}\"}}")];
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, all)), "{name} of shard {shard}");
        assert!(family.samples.contains_key(&format!("{name}_sum{{shard=\"{shard}\"}}")));
    }
}

#[test]
fn metrics_are_valid_and_keep_the_shards_apart() {
    let port = Port::open(Limits::DEFAULT);
    let answer = port.ask("GET", "/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let families = parse(&answer.body);
    let check = |family: &str, series: &str, value: f64| {
        assert_eq!(families[family].samples.get(series), Some(&value), "{series}");
    };
    check("throng_connections", "throng_connections{shard=\"0\"}", 7.0);
    check("throng_connections", "throng_connections{shard=\"1\"}", 8.0);
    check("throng_messages_received", "throng_messages_received_total{shard=\"1\"}", 1001.0);
    check("throng_received_bytes", "throng_received_bytes_total{shard=\"0\"}", 100_000.0);
    check("throng_outbox_bytes", "throng_outbox_bytes{shard=\"1\"}", 4096.0);
    check("throng_rejects", "throng_rejects_total{shard=\"1\",reason=\"origin\"}", 4.0);
    check("throng_disconnects", "throng_disconnects_total{shard=\"0\",reason=\"slow\"}", 5.0);
    check("throng_shard_rooms", "throng_shard_rooms{shard=\"1\"}", 2.0);
    check("throng_rooms", "throng_rooms", 2.0);
    check("throng_connections_max", "throng_connections_max", 1000.0);
    check("throng_sockets_max", "throng_sockets_max", 1100.0);
    check("process_resident_memory_bytes", "process_resident_memory_bytes", f64::from(123 << 20));
    check("throng_memory_taken_ratio", "throng_memory_taken_ratio", 0.955);
    check("throng_memory_short", "throng_memory_short", 1.0);
    check("process_start_time_seconds", "process_start_time_seconds", 1_700_000_000.25);
    let turns = "throng_turn_duration_seconds";
    check(turns, "throng_turn_duration_seconds_bucket{le=\"2.56e-7\",shard=\"0\"}", 2.0);
    check(turns, "throng_turn_duration_seconds_bucket{le=\"5.12e-7\",shard=\"0\"}", 3.0);
    check(turns, "throng_turn_duration_seconds_count{shard=\"0\"}", 6.0);
    check("throng_sessions", "throng_sessions{shard=\"1\",transport=\"polling\"}", 3.0);
    check("throng_namespaces", "throng_namespaces{namespace=\"/\"}", 0.0);
    let quoted = r#"/\"q\"\\/*"#;
    check("throng_namespaces", &format!("throng_namespaces{{namespace=\"{quoted}\"}}"), 1.0);
    let connections = "throng_namespace_connections";
    check(connections, &format!("{connections}{{namespace=\"{quoted}\"}}"), 41.0);
    let refusals = "throng_namespace_refusals";
    check(refusals, &format!("{refusals}_total{{namespace=\"/\"}}"), 21.0);
    check(refusals, &format!("{refusals}_total{{namespace=\"none\"}}"), 61.0);
    let refused = "throng_events_refused";
    check(refused, "throng_events_refused_total{event=\"bid\",per=\"user\"}", 2.0);
    check(refused, "throng_events_refused_total{event=\"bid\",per=\"ip\"}", 0.0);
    check("throng_event_windows", "throng_event_windows", 4.0);
    check("throng_redis_servers_up", "throng_redis_servers_up", 2.0);
    check("throng_redis_waiting_bytes", "throng_redis_waiting_bytes", 4096.0);
    check("throng_redis_events", "throng_redis_events_total", 70.0);
    check("throng_redis_lost", "throng_redis_lost_total{reason=\"down\"}", 9.0);
    check("throng_redis_lost", "throng_redis_lost_total{reason=\"behind\"}", 4.0);
    check("throng_redis_faults", "throng_redis_faults_total{reason=\"deaf\"}", 1.0);
    let version = format!("throng_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    check("throng_build_info", &version, 1.0);
}

#[test]
fn every_reason_is_there_from_the_start() {
    let port = Port::open(Limits::DEFAULT);
    let families = parse(&port.ask("GET", "/metrics").body);
    for (family, reasons) in
        [("throng_rejects", &Reject::LABELS[..]), ("throng_disconnects", &Ending::LABELS[..])]
    {
        assert_eq!(families[family].samples.len(), 2 * reasons.len());
        for reason in reasons {
            for shard in 0..2 {
                let series = format!("{family}_total{{shard=\"{shard}\",reason=\"{reason}\"}}");
                assert!(families[family].samples.contains_key(&series), "{series}");
            }
        }
    }
}

#[test]
fn a_scrape_adds_up_while_shards_count() {
    let control = Arc::new(control());
    std::thread::scope(|scope| {
        let shard = scope.spawn(|| {
            let mut ns = 1u64;
            for _ in 0..1_000_000 {
                ns = ns.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                control.stats.shards[0].turn_duration.record(Time::default(), Time::from_ns(ns >> 34));
            }
        });
        while !shard.is_finished() {
            parse(&metrics::text(control.clone()).expect("it is text"));
        }
    });
}

#[test]
fn stats_are_the_sum_of_the_shards() {
    let port = Port::open(Limits::DEFAULT);
    let stats = port.json("/stats");
    assert_eq!(stats["status"], "ok");
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stats["memory_bytes"], 123 << 20);
    assert_eq!(stats["connections"], 15);
    assert_eq!(stats["connections_max"], 1000);
    assert_eq!(stats["sockets_max"], 1100);
    assert_eq!(stats["rooms"], 2, "a room on two shards is one room");
    assert_eq!(stats["shards"][0]["rooms"], 1);
    assert_eq!(stats["shards"][1]["rooms"], 2);
    assert_eq!(stats["totals"]["messages_received"], 2001);
    assert_eq!(stats["totals"]["rejects"], 7);
    assert_eq!(stats["rejects"]["origin"], 7);
    assert_eq!(stats["rejects"]["draining"], 0);
    assert_eq!(stats["disconnects"]["slow"], 11);
    assert_eq!(stats["shards"][1]["disconnects"]["slow"], 6);
    assert_eq!(stats["turn_duration"]["count"], 12);
    assert_eq!(stats["sessions"]["polling"], 5);
    let namespaces = &stats["namespaces"][1];
    assert_eq!(namespaces["namespace"], "/\"q\"\\/*");
    assert_eq!((&namespaces["namespaces"], &namespaces["connections"]), (&Value::from(1), &Value::from(41)));
    assert_eq!(stats["shards"][0]["publish_latency"]["count"], 0);
    let redis = &stats["redis"];
    assert_eq!((&redis["status"], &redis["breaker"]), (&Value::from("partly"), &Value::from("closed")));
    assert_eq!((&redis["lost"]["down"], &redis["faults"]["deaf"]), (&Value::from(9), &Value::from(1)));
    let p50_us = stats["publish_latency"]["p50_us"].as_f64().expect("a number");
    assert!((70.0..=87.5).contains(&p50_us), "{p50_us}");
    for field in ["connections", "sockets", "memberships", "outbox_bytes"] {
        let shards = stats["shards"].as_array().expect("an array");
        let sum: u64 = shards.iter().map(|shard| shard[field].as_u64().expect("a number")).sum();
        assert_eq!(stats[field], sum, "{field}");
    }
}

#[test]
fn rates_come_by_themselves() {
    let port = Port::open(Limits::DEFAULT);
    let clock = Clock::start();
    // The first sample is taken when the port opens, the second after a second. Nothing is counted in between.
    while clock.now().since(Time::default()) < Duration::from_secs(1) + SLACK {
        let per_second = &port.json("/stats")["per_second"];
        if per_second["window_seconds"] != 0.0 {
            assert_eq!(per_second["messages_received"], 0.0);
            return;
        }
    }
    panic!("there is still no rate after {:?}", clock.now());
}

#[test]
fn probes_say_whether_clients_may_come() {
    let port = Port::open(Limits::DEFAULT);
    let ready = port.json("/ready");
    assert_eq!((&ready["status"], &ready["connections"]), (&Value::from("ready"), &Value::from(15)));
    assert_eq!(ready["redis"], "partly");
    let link = &port.control.bridge.as_ref().expect("there is one").link_stats;
    link.servers_up.set(0);
    let away = port.ask("GET", "/ready");
    assert_eq!(away.status, 200, "its own clients are served as before");
    assert!(away.body.contains(r#""redis":"down""#), "{}", away.body);
    link.servers_up.set(3);
    assert_eq!(port.json("/ready")["redis"], "up");
    port.control.gate.drain();
    let answer = port.ask("GET", "/ready");
    assert_eq!(answer.status, 503);
    let draining: Value = serde_json::from_str(&answer.body).expect("it is JSON");
    assert_eq!(draining["status"], "draining");
    assert_eq!(port.json("/stats")["status"], "draining");
    let health = port.json("/health");
    assert_eq!(health["status"], "ok", "it is still alive");
    assert_eq!(health["connections"], 15);
    assert_eq!(health["memory_bytes"], 123 << 20);
    assert!(health["uptime_seconds"].as_u64().expect("a number") < 60);
}

#[test]
fn the_front_page_lists_what_is_here() {
    let port = Port::open(Limits::DEFAULT);
    let answer = port.ask("GET", "/");
    assert_eq!((answer.status, &*answer.headers["content-type"]), (200, "text/plain; charset=utf-8"));
    let paths: Vec<&str> = answer.body.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let of_api = api::routes().into_iter().map(|route| route.path);
    assert_eq!(
        paths,
        ["/health", "/ready", "/stats", "/metrics", "/rooms/a"].into_iter().chain(of_api).collect::<Vec<_>>()
    );
    let paths = paths.into_iter().filter(|path| !path.starts_with("/v1"));
    for path in paths {
        assert_eq!(port.ask("GET", path).status, 200, "{path}");
        let head = port.ask("HEAD", path);
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
    }
}

#[test]
fn rooms_are_counted() {
    let port = Port::open(Limits::DEFAULT);
    port.control.bus.enter(0, "\u{e9} /").expect("there is room");
    let check = |path: &str, room: &str, members: u64| {
        let told = port.json(path);
        assert_eq!((&told["room"], &told["members"]), (&Value::from(room), &Value::from(members)), "{path}");
        assert_eq!((&told["complete"], told.get("who")), (&Value::from(true), None), "{path}");
        assert!(told["age_ms"].is_u64(), "{path}");
    };
    check("/rooms/a", "a", 2);
    check("/rooms/nobody", "nobody", 0);
    check("/rooms/%C3%A9%20%2F", "\u{e9} /", 1);
    check("/rooms/a?namespace=%2Fb", "a", 0);
    for wrong in ["/rooms/a%00b", "/rooms/a?namespace=b", "/rooms/a?namespace=%2Fb%0A"] {
        assert_eq!(port.ask("GET", wrong).status, 422, "{wrong}");
    }
    assert_eq!(port.ask("GET", "/rooms/").status, 404);
}

#[test]
fn wrong_requests_are_answered_and_forgotten() {
    let port = Port::open(Limits::DEFAULT);
    let missing = port.ask("GET", "/nowhere");
    assert_eq!(missing.status, 404);
    let missing: Value = serde_json::from_str(&missing.body).expect("it is JSON");
    assert_eq!(missing["error"], "not_found");
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let wrong = port.ask(method, "/metrics");
        assert_eq!((wrong.status, &*wrong.headers["allow"]), (405, "GET,HEAD"), "{method}");
        let wrong: Value = serde_json::from_str(&wrong.body).expect("it is JSON");
        assert_eq!(wrong["error"], "method_not_allowed");
    }
    assert_eq!(port.ask_raw("hello\r\n\r\n").status, 400);
    let large = format!("GET / HTTP/1.1\r\nhost: test\r\nlarge: {}", "a".repeat(Limits::BUFFER_BYTES_MAX));
    assert_eq!(port.ask_raw(&large).status, 431);
    assert_eq!(port.ask("GET", "/health").status, 200);
}

#[test]
fn one_connection_takes_many_requests() {
    let port = Port::open(Limits::DEFAULT);
    let mut client = port.connect();
    for _ in 0..10 {
        let answer = ask_again(&mut client, "/health");
        assert_eq!(answer.status, 200);
    }
}

/// Sends one request and reads its answer by its length; the connection stays open.
fn ask_again(client: &mut Client, path: &str) -> Answer {
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).expect("it is sent");
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        client.read_exact(&mut byte).expect("it is answered");
        text.push(char::from(byte[0]));
    }
    let mut answer = Answer::parse(&text);
    let mut body = vec![0; answer.headers["content-length"].parse().expect("a length is a number")];
    client.read_exact(&mut body).expect("the body comes");
    answer.body = String::from_utf8(body).expect("it is text");
    answer
}

#[test]
fn a_client_that_dawdles_over_its_head_is_cut() {
    let head_timeout = Duration::from_millis(300);
    let port = Port::open(Limits { head_timeout, ..Limits::DEFAULT });
    let clock = Clock::start();
    let mut client = port.connect();
    client.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket takes a time-out");
    client.write_all(b"GET / HTTP/1.1\r\nlazy: ").expect("it is sent");
    // One byte more each 20 ms: progress does not buy time.
    let cut = (0..200).any(|_| client.write_all(b"z").is_err() || is_closed(&mut client));
    assert!(cut, "it is still connected after {:?}", clock.now());
    let took = clock.now().since(Time::default());
    assert!(took >= head_timeout - Duration::from_millis(50) && took < head_timeout + SLACK, "{took:?}");
}

#[test]
fn a_client_that_says_nothing_more_is_cut() {
    let head_timeout = Duration::from_millis(300);
    let port = Port::open(Limits { head_timeout, ..Limits::DEFAULT });
    let mut client = port.connect();
    assert_eq!(ask_again(&mut client, "/health").status, 200);
    let clock = Clock::start();
    client.set_read_timeout(Some(head_timeout + SLACK)).expect("a socket takes a time-out");
    assert!(is_closed(&mut client), "it is still connected after {:?}", clock.now());
}

/// Waits for the end of the connection, as long as the socket's time-out is. Nothing else may come.
fn is_closed(client: &mut Client) -> bool {
    match client.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => panic!("something was said"),
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn idle_connections_do_not_keep_a_good_one_out() {
    let head_timeout = Duration::from_millis(500);
    let port = Port::open(Limits { head_timeout, ..Limits::DEFAULT });
    let clock = Clock::start();
    let idle: Vec<Client> = (0..100).map(|_| port.connect()).collect();
    assert_eq!(port.ask("GET", "/health").status, 200);
    let took = clock.now().since(Time::default());
    assert!(took >= head_timeout - Duration::from_millis(50), "no more than the limit are served: {took:?}");
    assert!(took < head_timeout + SLACK, "{took:?}");
    for mut client in idle {
        assert!(is_closed(&mut client), "an idle connection is cut");
    }
}

#[test]
fn a_client_that_does_not_read_loses_its_place() {
    let limits = Limits {
        connections_max: 1,
        head_timeout: Duration::from_millis(300),
        age_max: Duration::from_millis(300),
        last_answer_timeout: Duration::from_millis(200),
        ..Limits::DEFAULT
    };
    let port = Port::open(limits);
    let mut deaf = port.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(100))).expect("a socket takes a time-out");
    let clock = Clock::start();
    // Asks until the kernel's buffers are full in both directions and the server has stopped reading.
    let requests = "GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n".repeat(100);
    let stuck = (0..10_000).any(|_| deaf.write_all(requests.as_bytes()).is_err());
    assert!(stuck, "the server answers without bound");
    assert_eq!(port.ask("GET", "/health").status, 200);
    let took = clock.now().since(Time::default());
    let bound = limits.age_max + limits.last_answer_timeout + limits.head_timeout;
    assert!(took < bound + SLACK, "{took:?}");
}

#[test]
fn a_connection_that_keeps_asking_is_told_to_come_again() {
    let age_max = Duration::from_millis(300);
    let port = Port::open(Limits { age_max, ..Limits::DEFAULT });
    let mut client = port.connect();
    let clock = Clock::start();
    loop {
        // An idle one was closed at that age, and what it asked just then was lost.
        let answer = ask_again(&mut client, "/health");
        let took = clock.now().since(Time::default());
        if answer.headers.get("connection").is_some_and(|value| value == "close") {
            assert!(took >= age_max - Duration::from_millis(50), "it may stay for a while: {took:?}");
            break;
        }
        assert_eq!(answer.headers["keep-alive"], "timeout=4", "less than head_timeout");
        assert!(took < age_max + SLACK, "it goes on");
    }
    assert!(is_closed(&mut client), "it keeps to that");
}

#[test]
fn an_old_connection_that_says_nothing_is_asked_to_come_again_when_it_speaks() {
    let age_max = Duration::from_millis(200);
    let port = Port::open(Limits { age_max, ..Limits::DEFAULT });
    let mut client = port.connect();
    client.set_read_timeout(Some(2 * age_max)).expect("a socket takes a time-out");
    assert!(!is_closed(&mut client), "it may be about to ask");
    assert_eq!(ask_again(&mut client, "/health").headers["connection"], "close");
    assert!(is_closed(&mut client));
}

#[test]
fn closing_waits_for_nobody_long() {
    let last_answer_timeout = Duration::from_millis(300);
    let mut port = Port::open(Limits { last_answer_timeout, ..Limits::DEFAULT });
    let mut silent = port.connect();
    let mut half = port.connect();
    half.write_all(b"GET / HTTP/1.1\r\n").expect("it is sent");
    let mut kept = port.connect();
    assert_eq!(ask_again(&mut kept, "/health").status, 200);
    let took = port.close();
    assert!(took < last_answer_timeout + SLACK, "{took:?}");
    for client in [&mut silent, &mut half, &mut kept] {
        assert!(is_closed(client));
    }
    assert!(Client::connect(port.address).is_err(), "nobody listens any more");
}

#[test]
fn memory_is_sampled_before_anybody_can_ask() {
    let stats = Arc::new(Stats::new(1));
    let _samples = sample_memory(stats.clone(), Arc::new(Gate::new(Rules::default())));
    assert!(stats.memory_bytes.value() > 1 << 20, "{:?}", stats.memory_bytes);
    assert!(stats.memory_taken_permille.value() > 0, "{:?}", stats.memory_taken_permille);
}

#[test]
fn memory_is_sampled_as_long_as_we_run() {
    let stats = Arc::new(Stats::new(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let samples = sample_memory(stats.clone(), Arc::new(Gate::new(Rules::default())));
        stats.memory_bytes.set(0);
        let sampled = timeout(Duration::from_millis(1_500), samples).await;
        assert!(sampled.is_err(), "it never ends");
    });
    assert!(stats.memory_bytes.value() > 1 << 20, "{:?}", stats.memory_bytes);
}

/// The names in the first column of the tables below the heading `section`.
fn documented(section: &str) -> BTreeSet<String> {
    let document = include_str!("../../docs/metrics.md");
    let start = document.find(section).expect("the section is there");
    let section = &document[start + section.len()..];
    let section = section.split("\n## ").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    names.map(str::to_owned).collect()
}

#[test]
fn the_document_lists_every_metric_and_reason() {
    let document = include_str!("../../docs/metrics.md");
    let of_redis = Loss::LABELS.iter().chain(&FaultKind::LABELS).chain(&Breaker::LABELS);
    for reason in Reject::LABELS.iter().chain(&Ending::LABELS).chain(of_redis) {
        assert!(document.contains(&format!("`{reason}`")), "{reason}");
    }
    let families = parse(&metrics::text(Arc::new(control())).expect("it is text"));
    let exported: BTreeSet<String> = (families.iter())
        .map(|(name, family)| if family.kind == "counter" { format!("{name}_total") } else { name.clone() })
        .collect();
    let mut documented = documented("\n## `GET /metrics`");
    // Left out where the kernel does not say.
    documented.retain(|name| {
        !["process_open_fds", "process_max_fds"].contains(&&**name) || exported.contains(name)
    });
    assert_eq!(documented, exported);
}

#[test]
fn the_document_lists_every_field() {
    let report = serde_json::to_value(report::Report::new(&control())).expect("it is JSON");
    let mut fields = BTreeSet::new();
    list_fields("", &report, &mut fields);
    assert_eq!(documented("\n## `GET /stats`"), fields);
    // A shard has the fields that the process has, except for those that only the process can have.
    let mut of_shard = BTreeSet::new();
    list_fields("", &report["shards"][0], &mut of_shard);
    fields.retain(|field| {
        !["namespaces", "presence", "redis", "callouts"].iter().any(|part| field.starts_with(part))
    });
    let only_process = [
        "status",
        "version",
        "uptime_seconds",
        "memory_bytes",
        "connections_max",
        "connections_peak",
        "sockets_max",
        "shards",
    ];
    fields.retain(|field| !only_process.contains(&&**field));
    fields.insert("shard".to_owned());
    fields.retain(|field| field != "shards[].shard");
    assert_eq!(of_shard, fields);
}

/// All fields of an object with the path to them. Reasons are keys, not fields, and a shard is listed by its number alone.
fn list_fields(path: &str, value: &Value, fields: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().expect("an object") {
        let name = format!("{path}{name}");
        match value {
            Value::Object(_)
                if ![
                    "rejects",
                    "disconnects",
                    "redis.lost",
                    "redis.faults",
                    "callouts.by",
                    "callouts.answers",
                ]
                .contains(&&*name) =>
            {
                list_fields(&format!("{name}."), value, fields);
            }
            Value::Array(items) => {
                fields.insert(name.clone());
                match items.first() {
                    Some(item) if item.get("shard").is_none() => {
                        list_fields(&format!("{name}[]."), item, fields)
                    }
                    _ => {
                        fields.insert(format!("{name}[].shard"));
                    }
                }
            }
            _ => {
                fields.insert(name);
            }
        }
    }
}

#[test]
fn the_document_of_the_api_lists_every_route() {
    let document: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).expect("it is JSON");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = document["paths"].as_object().expect("an object");
    let listed: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("an object").keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let served = routes().into_iter().map(|route| (route.method.to_owned(), route.path.to_owned()));
    assert_eq!(listed, served.collect());
    let port = Port::open(Limits::DEFAULT);
    assert_eq!(port.json("/openapi.json"), document);
}
