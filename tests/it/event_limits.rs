//! Limits on events by name, for connections, addresses and users: in both dialects, on all shards, and over several processes whatever
//! becomes of their Redis. And the limit on connections of a user over several processes.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{CLOSE, FIN, TEXT, upgrade_head};
use crate::harness::redis::{Cluster, Redis};
use crate::harness::{Client, Raw, Server, eventually, frame};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use throng::auth::tally::Windows;
use throng::auth::{Gate, Ip, Rules, User};
use throng::bridge::link::{self, Servers};
use throng::bridge::{self, Bridge};
use throng::bus::Bus;
use throng::bus::outside::Outside;
use throng::cluster::Limits;
use throng::message::Reject;
use throng::rules::{EventLimit, EventLimits, Over, Per, Unit};
use throng::time::Clock;

const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/event_limits/settings.toml");

/// How long a process has at the most, with room for a busy machine, before others know what it has let through.
const TOLD_WITHIN: Duration = Duration::from_millis(300);

fn server(settings: &[&str]) -> Server {
    let mut flags = vec!["--config", SETTINGS];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    Server::with_flags(&flags)
}

/// A client from this address.
fn client(server: &Server, source: &str) -> Client {
    let source: IpAddr = source.parse().expect("an address");
    Client::over(Raw::connect_from(source, server.address()), "/ws", &[])
}

/// Publishes an event. Answers after how many milliseconds that may be done again, if it was one too many.
fn publish(client: &mut Client, event: &str) -> Option<u64> {
    let answer = client.ask(json!({"type": "publish", "room": "a", "event": event}));
    (answer["type"] == "error").then(|| {
        assert_eq!(answer["code"], "rate_limited", "{answer}");
        answer["retry_ms"].as_u64().expect("a time")
    })
}

/// A client of Socket.IO on a WebSocket, in one namespace.
struct Socket {
    raw: Raw,
    namespace: &'static str,
}

impl Socket {
    fn open(server: &Server, namespace: &'static str) -> Socket {
        let raw = server.socket("/socket.io/?EIO=4&transport=websocket");
        let mut socket = Socket { raw, namespace };
        assert!(socket.hear().starts_with("0{"));
        socket.say("40", "");
        assert!(socket.hear().starts_with(&format!("40{namespace},").replace("/,", "")));
        socket
    }

    fn say(&mut self, kind: &str, what: &str) {
        let namespace = if self.namespace == "/" { String::new() } else { format!("{},", self.namespace) };
        self.raw.send(frame(FIN | TEXT, format!("{kind}{namespace}{what}")));
    }

    fn hear(&mut self) -> String {
        String::from_utf8(self.raw.frame().payload).expect("text")
    }

    /// Sends an event that wants to be acknowledged, and answers its ack.
    fn ask(&mut self, event: &Value) -> Value {
        self.say("42", &format!("7{event}"));
        let ack = self.hear();
        serde_json::from_str(&ack[ack.find('[').expect("a list")..]).expect("JSON")
    }
}

/// What is wrong, in an ack.
fn code(ack: &Value) -> &str {
    ack[0]["error"]["code"].as_str().unwrap_or("none")
}

#[test]
fn an_event_too_many_is_refused_and_the_client_told_when_to_come_back() {
    let server = server(&[]);
    let (mut one, mut other) = (server.client(), server.client());
    let began = now();
    for _ in 0..3 {
        assert_eq!(publish(&mut one, "bid"), None);
    }
    let retry_ms = publish(&mut one, "bid").expect("one too many");
    let elapsed_ms = began.elapsed().as_millis() as u64;
    assert!(retry_ms <= 2000 && retry_ms + elapsed_ms >= 2000, "{retry_ms} after {elapsed_ms}");
    assert_eq!(publish(&mut other, "bid"), None, "each connection has its own");
    assert_eq!(publish(&mut one, "other"), None, "as has each event");
    one.say_binary(&json!({"type": "publish", "room": "a", "event": "bid", "id": "b"}), b"bytes");
    assert_eq!(one.answer_to(&json!("b"))["code"], "rate_limited", "in whatever form");
    rest(Duration::from_millis(retry_ms));
    for _ in 0..3 {
        assert_eq!(publish(&mut one, "bid"), None, "the next window");
    }
    assert_eq!(server.number("totals/rate_limited"), 2);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_events_refused_total", &[r#"event="bid""#]), 2.0);
}

#[test]
fn an_address_has_one_limit_on_all_shards() {
    let server = server(&["server.shards=4"]);
    let mut crowd: Vec<Client> = (0..10).map(|_| server.client()).collect();
    let refused = crowd.iter_mut().filter_map(|client| publish(client, "chat")).count();
    assert_eq!(refused, 5);
    assert!(server.shards_in_use() > 1);
    let mut neighbour = client(&server, "127.0.0.2");
    assert_eq!(publish(&mut neighbour, "chat"), None);
    // A connection that is made anew changes nothing, and who is no user counts by its address.
    assert!(publish(&mut server.client(), "chat").is_some());
    assert_eq!(publish(&mut server.client(), "vote"), None);
    assert!(publish(&mut server.client(), "vote").is_some());
}

#[test]
fn an_event_too_many_may_be_passed_over_or_end_the_connection() {
    let server = server(&[]);
    let (mut one, mut member) = (server.client(), server.client());
    member.join(&["a"]);
    let say = |event: &str| json!({"type": "publish", "room": "a", "event": event});
    one.say(&json!([say("shy"), say("shy"), say("shy")]));
    member.hears("a", "shy", Value::Null);
    one.has_heard_all();
    assert!(publish(&mut one, "shy").is_some(), "who asks is told");
    // What stands behind the one that ends it is not carried out.
    one.say(&json!([say("last"), say("last"), say("last"), say("after")]));
    assert_eq!(one.closed(), (1008, "Rate limit exceeded".to_owned()));
    member.hears("a", "last", Value::Null);
    member.hears("a", "last", Value::Null);
    member.has_heard_all();
    assert_eq!(server.number("disconnects/limit"), 1);
    server.wait_for_number("connections", 1);
}

#[test]
fn events_of_socket_io_clients_are_counted_by_name() {
    let server = server(&[]);
    let mut socket = Socket::open(&server, "/");
    let bid = json!(["publish", {"room": "a", "event": "bid"}]);
    for _ in 0..3 {
        assert_eq!(socket.ask(&bid), json!([{}]));
    }
    let ack = socket.ask(&bid);
    assert_eq!(code(&ack), "rate_limited", "what is published counts by its own name: {ack}");
    assert!(ack[0]["error"]["retry_ms"].as_u64().is_some_and(|ms| (1..=2000).contains(&ms)), "{ack}");
    assert_eq!(code(&socket.ask(&json!(["bid"]))), "rate_limited", "an event that does nothing counts, too");
    for room in ["a", "b"] {
        assert!(socket.ask(&json!(["join", room]))[0]["rooms"].is_object());
    }
    assert_eq!(code(&socket.ask(&json!(["join", "c"]))), "rate_limited");
    // Without an ack it is told in an event, or not at all.
    socket.say("42", r#"["join","c"]"#);
    assert!(socket.hear().starts_with(r#"42["error",{"code":"rate_limited""#));
    socket.say("42", r#"["shy"]"#);
    socket.say("42", r#"["shy"]"#);
    assert_eq!(code(&socket.ask(&json!(["shy"]))), "rate_limited");
    socket.say("42", r#"["last"]"#);
    socket.say("42", r#"["last"]"#);
    socket.say("42", r#"["last"]"#);
    let end = socket.raw.frame();
    assert_eq!((end.opcode, &end.payload[..2]), (CLOSE, &1008_u16.to_be_bytes()[..]));

    // All events of a namespace together, what is published not twice.
    let mut few = Socket::open(&server, "/few");
    assert!(few.ask(&json!(["join", ["a", "b"]]))[0]["rooms"].is_object());
    assert_eq!(few.ask(&json!(["publish", {"room": "a", "event": "x"}])), json!([{}]));
    assert_eq!(few.ask(&json!(["hello", 1])), json!([1]));
    assert_eq!(few.ask(&json!(["hello", 1])), json!([1]));
    assert_eq!(code(&few.ask(&json!(["hello", 1]))), "rate_limited");
}

#[test]
fn bytes_of_events_of_a_kind_have_a_limit() {
    let server = server(&["server.shards=2"]);
    let (mut one, mut other) = (server.client(), server.client());
    let say = |data: String| json!({"type": "publish", "room": "a", "event": "upload", "data": data});
    assert_eq!(one.ask(say("x".repeat(600)))["type"], "ack");
    assert_eq!(other.ask(say("x".repeat(900)))["type"], "ack", "the one that goes beyond is taken");
    for client in [&mut one, &mut other] {
        let refused = client.ask(say(String::new()));
        assert_eq!(refused["code"], "rate_limited", "they have one address: {refused}");
        assert!(refused["retry_ms"].as_u64().is_some_and(|ms| (1..=60_000).contains(&ms)), "{refused}");
    }
    assert_eq!(publish(&mut one, "other"), None);
    let mut neighbour = client(&server, "127.0.0.2");
    neighbour.say_binary(&json!({"type": "publish", "room": "a", "event": "upload", "id": "b"}), &[0; 1024]);
    assert_eq!(neighbour.answer_to(&json!("b"))["type"], "ack");
    let mut socket =
        Socket { raw: Raw::connect_from([127, 0, 0, 2].into(), server.address()), namespace: "/" };
    socket.raw.upgrade("/socket.io/?EIO=4&transport=websocket");
    socket.hear();
    socket.say("40", "");
    socket.hear();
    assert_eq!(code(&socket.ask(&json!(["upload"]))), "rate_limited");
}

#[test]
fn names_that_nobody_limits_leave_nothing_behind() {
    let server = server(&["server.shards=1"]);
    let mut client = server.client();
    let long = "bid".repeat(300_000);
    for _ in 0..10 {
        let message = json!({"type": "publish", "room": "a", "event": long});
        assert_eq!(client.refused_text(message.to_string())["code"], "bad_event");
    }
    let mut socket = Socket::open(&server, "/");
    for number in 0..20_000 {
        socket.say("42", &format!("[\"chat{number}\"]"));
    }
    socket.say("42", "[\"chat\"]");
    assert_eq!(socket.ask(&json!(["hello", 1])), json!([1]));
    assert_eq!(server.metrics().sum("throng_event_windows", &[]), 1.0);
}

/// Throngs on one Redis.
fn fleet(redis: &Redis, count: usize) -> Vec<Server> {
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let mut throngs: Vec<Server> = (0..count).map(|_| server(&[&urls])).collect();
    throngs.iter_mut().for_each(|throng| drop(throng.wait_for_log("connected to Redis")));
    throngs
}

/// Each client sends an event in turn, `rounds` times, with `pause` in between. Answers how many got through.
fn in_turn(clients: &mut [Client], rounds: usize, pause: Duration) -> usize {
    let mut passed = 0;
    for _ in 0..rounds {
        for client in clients.iter_mut() {
            passed += usize::from(publish(client, "shared").is_none());
            rest(pause);
        }
    }
    passed
}

#[test]
fn a_limit_holds_over_several_processes() {
    let redis = Redis::start();
    let throngs = fleet(&redis, 3);
    let clients = |source| throngs.iter().map(|throng| client(throng, source)).collect::<Vec<Client>>();
    // One after the other: each process but the first may let one through that it should not.
    let mut slow = clients("127.0.0.2");
    let passed = in_turn(&mut slow, 5, TOLD_WITHIN);
    assert!((10..=12).contains(&passed), "{passed}");
    for client in &mut slow {
        let retry_ms = publish(client, "shared").expect("it is known everywhere");
        assert!((1..=60_000).contains(&retry_ms), "{retry_ms}");
    }
    // As fast as can be: no process lets more than its ten through.
    let passed = in_turn(&mut clients("127.0.0.3"), 15, Duration::ZERO);
    assert!((10..=30).contains(&passed), "{passed}");
    let mut alone = client(&throngs[1], "127.0.0.4");
    let passed = (0..20).filter(|_| publish(&mut alone, "shared").is_none()).count();
    assert_eq!(passed, 10, "who is at one process has exactly its ten");
    let keys = redis.cli(&["KEYS", "{throng:*}:events:*"]);
    let keys: Vec<&str> = keys.lines().collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in keys {
        let left_ms: u64 = redis.cli(&["PTTL", key]).trim().parse().expect("it expires");
        assert!(left_ms <= 60_000, "{key} {left_ms}");
    }
    let metrics = throngs[0].metrics();
    assert!(metrics.sum("throng_redis_limit_batches_total", &[]) > 0.0);
    assert_eq!(metrics.sum("throng_redis_limit_batches_failed_total", &[]), 0.0);
    assert_eq!(metrics.sum("throng_redis_faults_total", &[]), 0.0, "that a script was new is no fault");
}

#[test]
fn without_redis_each_process_has_the_limit_for_itself() {
    let mut redis = Redis::start();
    let throngs = fleet(&redis, 2);
    let clients = |source| throngs.iter().map(|throng| client(throng, source)).collect::<Vec<Client>>();
    let mut known = clients("127.0.0.2");
    assert!((10..=11).contains(&in_turn(&mut known, 6, TOLD_WITHIN)));
    redis.kill();
    rest(TOLD_WITHIN);
    assert_eq!(in_turn(&mut known, 2, Duration::ZERO), 0, "what was known is known");
    let mut fresh = clients("127.0.0.3");
    let began = now();
    assert_eq!(in_turn(&mut fresh, 15, Duration::ZERO), 20, "ten at each");
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waits for it: {:?}", began.elapsed());
    let failed = || throngs[0].metrics().sum("throng_redis_limit_batches_failed_total", &[]);
    eventually("that is counted", || (failed() > 0.0).then_some(()));
    redis.start_again();
    // What could not be told is told, and then new ones are counted together again.
    eventually("both have told it", || {
        let keys = redis.cli(&["KEYS", "{throng:*}:events:*127.0.0.3"]);
        let sum = keys.lines().next().map(|key| redis.cli(&["HGET", key, "sum"]));
        (sum?.trim() == "20").then_some(())
    });
    let passed = in_turn(&mut clients("127.0.0.4"), 6, TOLD_WITHIN);
    assert!((10..=11).contains(&passed), "{passed}");
}

/// The line in the documentation that says what Redis must allow.
fn documented_acl() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clustering.md");
    let docs = std::fs::read_to_string(path).expect("it is there");
    let line = docs.lines().find(|line| line.starts_with("user throng on >SECRET "));
    line.expect("it says what Redis must allow").to_owned()
}

#[test]
fn the_acl_in_the_documentation_is_all_that_throng_needs() {
    let acl = documented_acl();
    // With Node's adapters the prefix is another, and the classic one needs a pattern, for each namespace.
    let with_node = acl.replace("{throng", "{socket.io").replace("&throng*", "&socket.io*");
    let patterns = ["&socket.io#/#????????????????????#", "&socket.io#/few#????????????????????#"].join(" ");
    let kinds = [
        ("throng", acl),
        ("socketio-sharded", with_node.clone()),
        ("socketio", with_node.replace("&socket.io*", &format!("&socket.io* {patterns}"))),
    ];
    for (kind, acl) in kinds {
        let redis = Redis::with(&[&format!("--{acl}")]);
        let urls = format!("redis.urls=[\"redis://throng:SECRET@127.0.0.1:{}\"]", redis.port());
        let cluster = format!("redis.cluster={kind}");
        let own = [&urls, &cluster, "limits.connections_per_ip_max=3", "presence.age_max_ms=0"];
        let mut throngs = [(); 2].map(|()| server(&own));
        throngs.iter_mut().for_each(|throng| drop(throng.wait_for_log("connected to Redis")));
        let clients = |source| throngs.iter().map(|throng| client(throng, source)).collect::<Vec<Client>>();

        let mut members = clients("127.0.0.2");
        members.iter_mut().for_each(|member| drop(member.join(&["a"])));
        eventually("events go between processes", || {
            members[0].publish("a", "marker", Value::Null);
            members[1].hear_within(Duration::from_millis(50))
        });
        let asked = json!({"type": "presence", "room": "a", "who": false});
        eventually("presence is known", || {
            let answer = members[0].ask(asked.clone());
            (answer["members"] == 2 && answer["complete"] == true).then_some(())
        });
        let passed = in_turn(&mut clients("127.0.0.3"), 6, TOLD_WITHIN);
        assert!((10..=11).contains(&passed), "{kind}: {passed}");
        let _third = client(&throngs[0], "127.0.0.2");
        let source: IpAddr = [127, 0, 0, 2].into();
        eventually("connections are counted together", || {
            let mut raw = Raw::connect_from(source, throngs[1].address());
            raw.send(upgrade_head("/ws", ""));
            (raw.response_to_head().status == 429).then_some(())
        });

        assert_eq!(redis.cli(&["ACL", "LOG"]).trim(), "", "{kind}");
        let faults = |which: &[&str]| throngs[0].metrics().sum("throng_redis_faults_total", which);
        assert_eq!(faults(&[]), 0.0, "{kind}");
        // What is forbidden inside a script is counted as that.
        redis.cli(&["ACL", "SETUSER", "throng", "-zadd"]);
        eventually("it is denied", || (faults(&[r#"reason="denied""#]) > 0.0).then_some(()));
        assert_eq!(faults(&[r#"reason="answer""#]), 0.0, "{kind}");
        throngs[0].wait_for_log("limits on connections are those of this process alone");
        redis.cli(&["ACL", "SETUSER", "throng", "+zadd"]);
        throngs[0].wait_for_log("limits on connections are counted over all processes again");
    }
}

/// What makes up a process, as far as limits see it. It lasts as long as the tests.
fn process(servers: Servers, rules: &Rules) -> (Arc<Gate>, Bridge, Clock) {
    let (gate, outside, clock) =
        (Arc::new(Gate::new(rules.clone())), Arc::new(Outside::default()), Clock::start());
    let limits = Limits { message_bytes_max: 1 << 20, rooms_max: 100, answers_max: 100, attachments_max: 10 };
    let settings = bridge::Settings {
        channels: Default::default(),
        link: link::Settings::new(servers),
        cluster: bridge::Cluster::Throng,
        prefix: "throng".into(),
        presence_timeout: Duration::from_secs(1),
        bounds: bridge::Bounds { limits, ..bridge::Bounds::default() },
    };
    let bus = Arc::new(Bus::new(1, 100).with_outside(outside.clone()));
    let bridge =
        bridge::spawn(settings, bus, outside, gate.clone(), clock, 0).expect("the settings can work");
    eventually("it is connected", || (bridge.status() == "up").then_some(()));
    (gate, bridge, clock)
}

fn user(name: &str) -> Arc<User> {
    Arc::new(User::named(name))
}

#[test]
fn the_connections_of_a_user_are_counted_over_all_processes() {
    let mut redis = Redis::start();
    let rules = Rules { per_user_max: Some(3), ..Rules::default() };
    let [(one, ..), (two, ..)] = [(); 2].map(|()| process(Servers::One(redis.url()), &rules));
    let anna = user("anna");
    (0..2).for_each(|_| one.admit_user(&anna).expect("there is a place"));
    two.admit_user(&anna).expect("there is a place");
    for gate in [&one, &two] {
        eventually("who has three is refused everywhere", || {
            gate.admit_user(&anna).map(|()| gate.dismiss_user(&anna)).is_err().then_some(())
        });
    }
    one.admit_user(&user("bela")).expect("somebody else");
    one.dismiss_user(&anna);
    eventually("a place that is free is free everywhere", || two.admit_user(&anna).ok());
    redis.kill();
    eventually("each counts its own", || one.admit_user(&anna).ok());
    eventually("so does the other", || two.admit_user(&anna).ok());
    assert_eq!(two.admit_user(&anna), Err(Reject::PerUser));
}

#[test]
fn a_change_is_told_at_once_however_many_connections_there_are() {
    const OTHERS: u32 = 9_000;
    let redis = Redis::start();
    let rules = Rules { per_ip_max: Some(3), connections_max: 100_000, ..Rules::default() };
    let (gate, ..) = process(Servers::One(redis.url()), &rules);
    let address = |number: u32| Ip::from(IpAddr::from(number.to_be_bytes()));
    let sums = "{throng}:connections:sums";
    (1..=OTHERS).for_each(|number| gate.admit(address(number)).expect("there is a place"));
    eventually("all are told", || (redis.cli(&["HLEN", sums]).trim() == OTHERS.to_string()).then_some(()));
    // While the others are asked about anew, in all phases of that.
    let mut times: Vec<Duration> = (1..=7)
        .map(|number| {
            rest(Duration::from_millis(170) * number);
            let changed = address(OTHERS + number);
            let began = now();
            gate.admit(changed).expect("there is a place");
            eventually("it is told", || {
                (redis.cli(&["HGET", sums, &changed.to_string()]).trim() == "1").then_some(())
            });
            began.elapsed()
        })
        .collect();
    times.sort();
    // All but one, since the machine may be busy with something else.
    assert!(times[5] < TOLD_WITHIN, "{times:?}");
}

#[test]
fn what_ends_while_redis_refuses_does_not_count_for_ever() {
    let redis = Redis::start();
    let rules = Rules { per_user_max: Some(3), ..Rules::default() };
    let (gate, bridge, _) = process(Servers::One(redis.url()), &rules);
    let (anna, bela) = (user("anna"), user("bela"));
    let sum = |user: &str| redis.cli(&["HGET", "{throng}:connections:sums", &format!("user:{user}")]);
    gate.admit_user(&anna).expect("there is a place");
    eventually("it is told", || (sum("anna").trim() == "1").then_some(()));
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    gate.dismiss_user(&anna);
    gate.admit_user(&bela).expect("there is a place");
    let refused = || bridge.faults().any(|(reason, count)| reason == "out_of_memory" && count > 0);
    eventually("Redis refuses", || refused().then_some(()));
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("it is told of both", || {
        (sum("anna").trim() == "" && sum("bela").trim() == "1").then_some(())
    });
}

#[test]
fn what_is_spoilt_in_redis_harms_nobody_else() {
    const USERS: usize = 200;
    let redis = Redis::start();
    let limit = |event: &str, count, window_ms| EventLimit {
        event: Some(event.to_owned()),
        namespace: None,
        per: Per::User,
        most: count,
        unit: Unit::Events,
        window_ms,
        over: Over::Error,
    };
    let events = EventLimits::new(vec![limit("bid", 6, 60_000), limit("ring", 3, 1_000)]);
    let rules = Rules { per_user_max: Some(3), events, event_windows_max: 10_000, ..Rules::default() };
    let processes = [(); 2].map(|()| process(Servers::One(redis.url()), &rules));
    let users: Vec<Arc<User>> = (0..USERS).map(|number| user(&format!("user {number}"))).collect();
    let passes = |place: usize, event: &str, user| {
        let (gate, _, clock) = &processes[place];
        let all = gate.tally().limits();
        let limits = || all.find(None, event);
        gate.tally()
            .take(limits, &mut Windows::new(1), (1, Ip::default(), Some(user)), 0, clock.now())
            .is_ok()
    };
    let window_of = |user: &str| {
        eventually("it is told", || {
            let keys = redis.cli(&["KEYS", &format!("{{throng:*}}:events:*:user:{user}")]);
            keys.lines().next().filter(|key| !key.is_empty()).map(str::to_owned)
        })
    };

    // A window that is no hash.
    assert!(users.iter().all(|user| passes(0, "bid", user)));
    let key = window_of("user 7");
    redis.cli(&["DEL", &key]);
    redis.cli(&["SET", &key, "something else"]);
    for user in &users {
        assert!((0..5).all(|_| passes(0, "bid", user)));
    }
    let passed: Vec<usize> = users.iter().map(|user| usize::from(passes(1, "bid", user))).collect();
    assert_eq!(passed, [1; USERS], "it does not know yet");
    eventually("all but one are known to have none left", || {
        let others = users.iter().enumerate().filter(|(place, _)| *place != 7);
        others.map(|(_, user)| passes(1, "bid", user)).all(|passed| !passed).then_some(())
    });
    assert_eq!((0..10).filter(|_| passes(1, "bid", &users[7])).count(), 5, "each counts its own of that");
    for (_, bridge, _) in &processes {
        assert_eq!(bridge.stats.limit_batches_failed.value(), 0);
    }
    let faults = || processes[0].1.faults().any(|(reason, count)| reason == "answer" && count > 0);
    eventually("it is counted", || faults().then_some(()));

    // A window that seems to last for 40 days.
    let carla = user("carla");
    assert!(passes(0, "ring", &carla));
    let key = window_of("carla");
    redis.cli(&["HSET", &key, "sum", "1000"]);
    redis.cli(&["PEXPIRE", &key, "3456000000"]);
    eventually("others seem to have used it up", || (!passes(0, "ring", &carla)).then_some(()));
    let began = now();
    eventually("it is over", || passes(0, "ring", &carla).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    // A count of connections that is no number, and a process that is gone and whose counts are no hash.
    let (anna, bela) = (user("anna"), user("bela"));
    redis.cli(&["HSET", "{throng}:connections:sums", "user:anna", "many"]);
    redis.cli(&["ZADD", "{throng}:connections:processes", "1", "gone"]);
    redis.cli(&["SET", "{throng}:connections:of:gone", "something else"]);
    let [(one, ..), (two, ..)] = &processes;
    for user in [&anna, &bela] {
        two.admit_user(user).expect("there is a place");
        (0..2).for_each(|_| one.admit_user(user).expect("there is a place"));
        eventually("who has three is refused everywhere", || {
            two.admit_user(user).map(|()| two.dismiss_user(user)).is_err().then_some(())
        });
    }
    eventually("who is gone is forgotten", || {
        (redis.cli(&["ZSCORE", "{throng}:connections:processes", "gone"]).trim() == "").then_some(())
    });
}

#[test]
fn events_of_users_are_counted_in_a_cluster() {
    // More than two batches for each slot, and more than are told at a time.
    const USERS: usize = 17_000;
    let cluster = Cluster::start();
    let limit = |event: &str, per, count| EventLimit {
        event: Some(event.to_owned()),
        namespace: None,
        per,
        most: count,
        unit: Unit::Events,
        window_ms: 60_000,
        over: Over::Error,
    };
    let events = EventLimits::new(vec![limit("bid", Per::User, 6), limit("bid", Per::Ip, 1_000_000)]);
    let rules = Rules { events, event_windows_max: 100_000, ..Rules::default() };
    let processes = [(); 2].map(|()| process(Servers::Cluster(cluster.urls()), &rules));
    for (_, bridge, _) in &processes {
        let stats = &bridge.link_stats;
        eventually("all masters are up", || (stats.servers_up.value() == 3).then_some(()));
    }
    let users: Vec<Arc<User>> = (0..USERS).map(|number| user(&format!("user {number}"))).collect();
    let bids = |place: usize, count: usize| {
        let (gate, _, clock) = &processes[place];
        let all = gate.tally().limits();
        let limits = || all.find(None, "bid");
        let bid = |user| {
            gate.tally().take(limits, &mut Windows::new(1), (1, Ip::default(), Some(user)), 0, clock.now())
        };
        let passed = |user| (0..count).filter(|_| bid(user).is_ok()).count();
        users.iter().map(passed).sum::<usize>()
    };
    let windows = || {
        let sizes = cluster.masters.iter().map(|master| master.cli(&["DBSIZE"]));
        sizes.map(|size| size.trim().parse::<usize>().expect("a number")).sum::<usize>()
    };
    assert_eq!(bids(0, 5), 5 * USERS);
    eventually("all has been told", || (windows() == USERS + 1).then_some(()));
    // The sixth of each. What one tells is answered with what the other has used.
    assert_eq!(bids(1, 1), USERS);
    eventually("all has been heard", || (bids(1, 1) == 0).then_some(()));
    assert!(bids(0, 1) <= USERS);
    eventually("all has been heard", || (bids(0, 1) == 0).then_some(()));
    let used_slots = cluster.masters.iter().filter(|master| master.cli(&["DBSIZE"]).trim() != "0").count();
    assert!(used_slots > 1, "they are spread");
    for (_, bridge, _) in &processes {
        let faults: u64 = bridge.faults().map(|(_, count)| count).sum();
        assert_eq!((faults, bridge.stats.limit_batches_failed.value()), (0, 0));
    }
}
