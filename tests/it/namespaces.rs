//! Namespaces of Socket.IO from outside: limits by pattern, whatever shard a client is on, and numbers that come back to zero. With them
//! the numbers of Engine.IO sessions.

use crate::harness::raw::{BINARY, CLOSE, FIN, TEXT, upgrade_head};
use crate::harness::{Raw, Response, Server, eventually, frame};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/namespaces/settings.toml");
const AT: &str = "/socket.io/?EIO=4&transport=";

/// The places of the patterns in `/stats`: those of the tables, then those of the list that no table has.
const GUILD: usize = 0;
const QUIZ: usize = 1;
const FREE: usize = 3;

/// A server with four shards and the settings of these tests, and these besides.
fn server(settings: &[&str]) -> Server {
    let mut flags = vec!["--config", SETTINGS, "--set", "server.shards=4"];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    Server::with_flags(&flags)
}

/// A client of Socket.IO on a WebSocket.
struct Socket(Raw);

impl Socket {
    fn open(server: &Server) -> Socket {
        let mut socket = Socket(server.socket(&format!("{AT}websocket")));
        assert!(socket.hear().starts_with("0{"), "it is an Engine.IO session");
        socket
    }

    fn say(&mut self, packet: &str) {
        self.0.send(frame(FIN | TEXT, packet));
    }

    /// The next packet but pings, which are answered.
    fn hear(&mut self) -> String {
        loop {
            let packet = String::from_utf8(self.0.frame().payload).expect("text");
            if packet != "2" {
                return packet;
            }
            self.say("3");
        }
    }

    /// Joins a namespace, and answers what comes with that; or why it may not.
    fn join(&mut self, namespace: &str, auth: &str) -> Result<Value, String> {
        self.say(&format!("40{namespace},{auth}"));
        joined(&self.hear(), namespace)
    }

    /// Sends an event that wants to be acknowledged, and waits for that.
    fn ask(&mut self, namespace: &str, event: &Value) -> Value {
        self.say(&format!("42{namespace},7{event}"));
        let ack = self.hear();
        let ack = ack.strip_prefix(&format!("43{namespace},7")).unwrap_or_else(|| panic!("no answer: {ack}"));
        serde_json::from_str(ack).expect("JSON")
    }
}

/// What an answer to a CONNECT says.
fn joined(packet: &str, namespace: &str) -> Result<Value, String> {
    let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    if let Some(refused) = packet.strip_prefix(&format!("44{namespace},")) {
        return Err(read(refused)["message"].as_str().expect("a text").to_owned());
    }
    let joined = packet.strip_prefix(&format!("40{namespace},"));
    Ok(read(joined.unwrap_or_else(|| panic!("neither joined nor refused: {packet}"))))
}

/// A client of Socket.IO that polls. Each request is on a connection of its own, on whatever shard.
struct Poller {
    address: SocketAddr,
    sid: String,
}

impl Poller {
    fn open(server: &Server) -> Poller {
        let mut poller = Poller { address: server.address(), sid: String::new() };
        let open = poller.get().response().body;
        let open: Value = serde_json::from_str(&open[1..]).expect("JSON behind the type");
        poller.sid = open["sid"].as_str().expect("an id").to_owned();
        poller
    }

    fn path(&self, transport: &str) -> String {
        let sid = if self.sid.is_empty() { String::new() } else { format!("&sid={}", self.sid) };
        format!("{AT}{transport}{sid}")
    }

    /// Asks for packets; the answer comes when there are some.
    fn get(&self) -> Raw {
        let mut raw = Raw::connect(self.address);
        raw.send(format!("GET {} HTTP/1.1\r\nHost: throng\r\n\r\n", self.path("polling")));
        raw
    }

    fn say(&self, packets: &str) -> Response {
        let mut raw = Raw::connect(self.address);
        let (path, length) = (self.path("polling"), packets.len());
        raw.send(format!(
            "POST {path} HTTP/1.1\r\nHost: throng\r\nContent-Length: {length}\r\n\r\n{packets}"
        ));
        raw.response()
    }

    fn join(&self, namespace: &str) -> Result<Value, String> {
        assert_eq!(self.say(&format!("40{namespace},")).body, "ok");
        joined(&self.get().response().body, namespace)
    }

    /// Opens a WebSocket to which the session may move, and hears that it works.
    fn probe(&self) -> Socket {
        let mut raw = Raw::connect(self.address);
        raw.send(upgrade_head(&self.path("websocket"), ""));
        assert_eq!(raw.response().status, 101);
        let mut socket = Socket(raw);
        socket.say("2probe");
        assert_eq!(socket.hear(), "3probe");
        socket
    }

    /// Moves the session to a WebSocket.
    fn upgrade(self) -> Socket {
        let mut socket = self.probe();
        socket.say("5");
        socket
    }
}

/// Waits until nothing is left of any client.
fn wait_for_nobody(server: &Server) {
    let mut paths: Vec<String> =
        ["connections", "sockets", "rooms", "memberships", "sessions/polling", "sessions/websocket"]
            .map(str::to_owned)
            .to_vec();
    let patterns = server.stats()["namespaces"].as_array().expect("an array").len();
    for place in 0..patterns {
        paths.extend(["namespaces", "connections"].map(|name| format!("namespaces/{place}/{name}")));
    }
    for path in &paths {
        server.wait_for_number(path, 0);
    }
}

#[test]
fn limits_are_those_of_the_first_pattern_that_matches() {
    let server = server(&[]);
    let join = |namespace: &str| {
        let mut socket = Socket::open(&server);
        socket.join(namespace, "").map(|_| socket)
    };
    let full = Err("The namespace is full".to_owned());
    let too_many = Err("The server holds as many namespaces as it may".to_owned());
    // Two in each of two guilds, as their table says, whatever the list says.
    let mut one: Vec<Socket> = (0..2).map(|_| join("/guild/1").expect("a place")).collect();
    assert_eq!(join("/guild/1").map(|_| ()), full);
    let two = join("/guild/2").expect("a place");
    for _ in 0..4 {
        assert_eq!(join("/guild/3").map(|_| ()), too_many);
    }
    // Any number where the table says so, three where nothing is said.
    let _quiz: Vec<Socket> = (0..6).map(|_| join("/quiz").expect("there is no limit")).collect();
    for namespace in ["/free/1", "/free/2"] {
        let _free: Vec<Socket> = (0..3).map(|_| join(namespace).expect("a place")).collect();
        assert_eq!(join(namespace).map(|_| ()), full, "{namespace}");
    }
    assert_eq!(join("/nowhere").map(|_| ()), Err("Invalid namespace".to_owned()));

    let number = |place: usize, name: &str| server.number(&format!("namespaces/{place}/{name}"));
    assert_eq!(server.stats()["namespaces"][GUILD]["namespace"], "/guild/*");
    assert_eq!((number(GUILD, "namespaces"), number(GUILD, "connections")), (2, 3));
    assert_eq!((number(GUILD, "joins"), number(GUILD, "refusals")), (3, 5));
    assert_eq!((number(QUIZ, "namespaces"), number(QUIZ, "connections")), (1, 6));
    let refusals = |namespace: &str| {
        server.metrics().sum("throng_namespace_refusals_total", &[&format!("namespace=\"{namespace}\"")])
    };
    assert_eq!((refusals("/guild/*"), refusals("/free/*"), refusals("none")), (5.0, 2.0, 1.0));
    assert_eq!(server.number("totals/namespace_refusals"), 8);

    // A place is free again when somebody leaves, or is gone.
    one[0].say("41/guild/1,");
    let _third = eventually("a place is free", || join("/guild/1").ok());
    drop(two);
    let _other = eventually("a namespace is forgotten", || join("/guild/3").ok());
    assert_eq!(number(GUILD, "namespaces"), 2);
}

#[test]
fn limits_hold_while_all_shards_are_asked_at_once() {
    let server = server(&["heartbeat.ping_interval_ms=25000"]);
    for _ in 0..5 {
        let mut sockets: Vec<Socket> = (0..48).map(|_| Socket::open(&server)).collect();
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.say(&format!("40/guild/{},", number % 4));
        }
        let mut guilds: BTreeMap<usize, usize> = BTreeMap::new();
        for (number, socket) in sockets.iter_mut().enumerate() {
            let guild = number % 4;
            if joined(&socket.hear(), &format!("/guild/{guild}")).is_ok() {
                *guilds.entry(guild).or_default() += 1;
            }
        }
        assert_eq!(guilds.len(), 2, "{guilds:?}");
        assert!(guilds.values().all(|members| *members == 2), "{guilds:?}");
        drop(sockets);
        wait_for_nobody(&server);
    }
}

#[test]
fn events_count_for_the_pattern_of_their_namespace() {
    let server = server(&[]);
    let mut socket = Socket::open(&server);
    socket.join("/guild/1", "").expect("a place");
    socket.join("/free/1", "").expect("a place");
    for _ in 0..3 {
        assert_eq!(socket.ask("/guild/1", &json!(["hello", 1])), json!([1]));
    }
    socket.ask("/guild/1", &json!(["publish", {"room": "hall", "event": "e", "data": 1}]));
    socket.ask("/free/1", &json!(["publish", {"room": "hall", "event": "e", "data": 1}]));
    socket.ask("/free/1", &json!(["publish", {"room": "", "event": "e", "data": 1}]));
    let metrics = server.metrics();
    let check = |name: &str, namespace: &str, expected: f64| {
        let label = format!("namespace=\"{namespace}\"");
        assert_eq!(metrics.find(&format!("throng_namespace_{name}"), &[&label]), [expected], "{name}");
    };
    check("events_total", "/guild/*", 4.0);
    check("publications_total", "/guild/*", 1.0);
    check("events_total", "/free/*", 2.0);
    check("publications_total", "/free/*", 1.0);
    check("events_total", "/quiz", 0.0);
    check("joins_total", "/guild/*", 1.0);
    check("connections", "/free/*", 1.0);
    assert_eq!(server.number(&format!("namespaces/{FREE}/events")), 2);
}

#[test]
fn sessions_are_counted_by_their_transport() {
    let server = server(&["heartbeat.ping_interval_ms=25000"]);
    let sessions = || (server.number("sessions/polling"), server.number("sessions/websocket"));
    let poller = Poller::open(&server);
    poller.join("/free/1").expect("a place");
    let other = Poller::open(&server);
    let _socket = Socket::open(&server);
    assert_eq!(sessions(), (2, 1));
    assert_eq!(server.number("totals/polls"), 1, "the handshake is none");
    // One WebSocket that breaks the rules, one that is lost, then one that is taken.
    let mut wrong = poller.probe();
    wrong.say("4nonsense");
    wrong.0.ended();
    server.wait_for_number("totals/session_upgrades_failed", 1);
    drop(poller.probe());
    server.wait_for_number("totals/session_upgrades_failed", 2);
    let mut socket = poller.upgrade();
    assert_eq!(socket.ask("/free/1", &json!(["hello"])), json!([]));
    assert_eq!(sessions(), (1, 2));
    assert_eq!(server.number("totals/session_upgrades"), 1);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_sessions", &["transport=\"websocket\""]), 2.0);
    assert_eq!(metrics.sum("throng_session_upgrades_failed_total", &[]), 2.0);
    // The kernel spreads connections over the shards, and all but those on the session's own are handed over.
    let before = server.number("totals/handovers");
    eventually("a request comes to another shard", || {
        assert_eq!(other.say("3").body, "ok");
        (server.number("totals/handovers") > before).then_some(())
    });
    assert_eq!(other.say("1").body, "ok");
    server.wait_for_number("sessions/polling", 0);
    drop((socket, _socket));
    wait_for_nobody(&server);
}

#[test]
fn whoever_goes_is_counted_no_more() {
    let server = server(&["socketio.recovery_ms=700"]);
    let socket = |namespace: &str| {
        let mut socket = Socket::open(&server);
        // Some are refused, since others are still waited for.
        let joined = socket.join(namespace, "");
        (socket, joined.ok())
    };
    let mut kept = Vec::new();
    for round in 0..12 {
        let guild = format!("/guild/{}", round % 3);
        let (mut leaves, _) = socket("/quiz");
        leaves.say("41/quiz,");
        leaves.join("/quiz", "").expect("it may come again");
        leaves.join(&guild, "").ok();
        leaves.say("41/quiz,");
        leaves.say("1");
        let (mut closes, _) = socket(&guild);
        closes.0.send(frame(FIN | CLOSE, [0x03, 0xe8]));
        closes.0.closed();
        let (mut breaks, _) = socket("/quiz");
        breaks.say("9");
        breaks.0.closed();
        let (lost, _) = socket("/quiz");
        lost.0.reset();
        let (gone, _) = socket(&guild);
        drop(gone);
        // Comes back, on the same shard or another, and leaves; or comes back and has gone before it can be there.
        for goes_at_once in [false, true] {
            let (away, joined) = socket("/quiz");
            let pid = joined.expect("there is no limit")["pid"].clone();
            drop(away);
            let mut back = Socket::open(&server);
            let auth = json!({"pid": pid});
            if goes_at_once {
                let packets =
                    [frame(FIN | TEXT, format!("40/quiz,{auth}")), frame(FIN | CLOSE, [0x03, 0xe8])];
                back.0.send(packets.concat());
                back.0.try_frame().ok();
            } else {
                back.join("/quiz", &auth.to_string()).expect("there is no limit");
                back.say("41/quiz,");
            }
            kept.push(back);
        }
        let poller = Poller::open(&server);
        poller.join("/quiz").expect("there is no limit");
        match round % 5 {
            0 => assert_eq!(poller.say("1").body, "ok"),
            1 => poller.get().reset(),
            2 => drop(poller.upgrade()),
            3 => {
                drop(poller.probe());
                assert_eq!(poller.say("41/quiz,").body, "ok");
            }
            // It is never heard of again.
            _ => {}
        }
    }
    drop(kept);
    wait_for_nobody(&server);
    let stats = server.stats();
    let patterns = stats["namespaces"].as_array().expect("an array");
    let joins: u64 = patterns.iter().map(|pattern| pattern["joins"].as_u64().expect("a number")).sum();
    assert_eq!(stats["totals"]["namespace_joins"], joins);
    assert!(server.metrics().sum("throng_recoveries_total", &["reason=\"recovered\""]) > 0.0);
}

#[test]
fn who_comes_back_to_a_full_namespace_waits_for_a_place() {
    let server = server(&["socketio.recovery_ms=60000", "heartbeat.ping_interval_ms=25000"]);
    let mut first = Socket::open(&server);
    let pid = first.join("/guild/1", "").expect("a place")["pid"].clone();
    let mut second = Socket::open(&server);
    second.join("/guild/1", "").expect("a place");
    drop(first);
    server.wait_for_number(&format!("namespaces/{GUILD}/connections"), 1);
    let mut third = Socket::open(&server);
    third.join("/guild/1", "").expect("the place of who is away");
    let auth = json!({"pid": pid}).to_string();
    // On the shard where it was, and on others.
    for _ in 0..8 {
        let mut back = Socket::open(&server);
        assert_eq!(back.join("/guild/1", &auth), Err("The namespace is full".to_owned()));
    }
    assert_eq!(server.metrics().sum("throng_recoveries_total", &["reason=\"full\""]), 8.0);
    third.say("41/guild/1,");
    server.wait_for_number(&format!("namespaces/{GUILD}/connections"), 1);
    let mut back = Socket::open(&server);
    assert_eq!(back.join("/guild/1", &auth).expect("there is a place")["pid"], pid, "it is the same one");
    back.say("41/guild/1,");
    second.say("41/guild/1,");
    server.wait_for_number(&format!("namespaces/{GUILD}/namespaces"), 0);
}

/// A packet that asks to be answered and has two attachments, which come behind it.
const TWO_ATTACHED: &str =
    r#"452-/quiz,7["hello",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;

#[test]
fn packets_that_lack_attachments_share_the_memory_of_unfinished_messages() {
    let server = server(&[
        "server.shards=1",
        "heartbeat.ping_interval_ms=25000",
        "limits.message_bytes_max=64KiB",
        // Two of 64 KiB, and the texts before them.
        "limits.receive_bytes_max=129KiB",
    ]);
    let large = frame(FIN | BINARY, [b'x'; 40 << 10]);
    let beginning = || {
        let mut socket = Socket::open(&server);
        socket.join("/quiz", "").expect("there is no limit");
        socket.say(TWO_ATTACHED);
        socket
    };
    let filling = || {
        let mut socket = beginning();
        socket.0.send(&large);
        socket
    };
    // Buffers double, so each has 64 KiB.
    let mut one = filling();
    server.wait_for_number("receive_buffer_bytes", 64 << 10);
    // A frame that comes in pieces counts once: as an attachment, or before that as a frame.
    let mut other = beginning();
    other.0.send(&large[..20 << 10]);
    server.wait_for("receive_buffer_bytes", "to be more", |bytes| bytes > 96 << 10);
    other.0.send(&large[20 << 10..]);
    server.wait_for_number("receive_buffer_bytes", 128 << 10);
    assert_eq!(filling().0.closed(), (1013, "too many unfinished messages".to_owned()));
    // Small ones are taken nevertheless.
    let mut small = beginning();
    (0..2).for_each(|_| small.0.send(frame(FIN | BINARY, "a few bytes")));
    assert!(small.hear().starts_with("462-/quiz,7["), "it is whole");
    // What is finished, too large or gone gives its memory back.
    one.0.send(frame(FIN | BINARY, "the last one"));
    assert!(one.hear().starts_with("462-/quiz,7["), "it is whole");
    assert_eq!(one.0.frame().payload.len(), 40 << 10);
    assert_eq!(one.0.frame().payload, b"the last one");
    server.wait_for_number("receive_buffer_bytes", 64 << 10);
    other.0.reset();
    server.wait_for_number("receive_buffer_bytes", 0);
    let mut too_large = filling();
    too_large.0.send(&large);
    assert_eq!(too_large.0.closed().0, 1009);
    server.wait_for_number("receive_buffer_bytes", 0);
}

#[test]
fn attachments_that_never_come_do_not_keep_a_session() {
    let server = server(&[
        "limits.message_timeout_ms=400",
        "heartbeat.ping_interval_ms=100",
        "heartbeat.ping_timeout_ms=1000",
    ]);
    let mut socket = Socket::open(&server);
    socket.join("/quiz", "").expect("there is no limit");
    socket.say(TWO_ATTACHED);
    let poller = Poller::open(&server);
    assert_eq!(poller.say(&format!("{TWO_ATTACHED}\x1ebAAAA")).body, "ok");
    // However well its heart beats.
    let close = loop {
        match socket.0.frame() {
            close if close.opcode == CLOSE => break close,
            _ => socket.say("3"),
        }
    };
    assert_eq!(close.code(), (1008, "the message did not come in time".to_owned()));
    server.wait_for_number("disconnects/limit", 2);
    server.wait_for_number("receive_buffer_bytes", 0);
}

#[test]
fn attachments_may_come_after_the_move_to_a_websocket() {
    let server = server(&["heartbeat.ping_interval_ms=25000", "socketio.recovery_ms=60000"]);
    let poller = Poller::open(&server);
    poller.join("/quiz").expect("there is no limit");
    assert_eq!(poller.say(TWO_ATTACHED).body, "ok");
    assert_eq!(poller.say("bAAAA").body, "ok");
    let mut moved = poller.upgrade();
    moved.0.send(frame(FIN | BINARY, "the last one"));
    assert!(moved.hear().starts_with("462-/quiz,7["), "it is whole");
    assert_eq!(moved.0.frame().payload, [0; 3]);
    assert_eq!(moved.0.frame().payload, b"the last one");
    server.wait_for_number("receive_buffer_bytes", 0);
    // Who drops out in the middle does not leave its half behind.
    moved.say(TWO_ATTACHED);
    server.wait_for("receive_buffer_bytes", "to grow", |bytes| bytes > 0);
    drop(moved);
    server.wait_for_number("connections", 0);
    server.wait_for_number("receive_buffer_bytes", 0);
    assert_eq!(server.number("memberships"), 1, "it may come back");
}
