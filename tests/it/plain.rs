//! Plain JSON from outside: clients of an application that had a WebSocket server of its own, as they are.

use crate::access::token;
use crate::backend_apps::{Backend, Kept};
use crate::foreign::{NODE, check, node};
use crate::harness::raw::{BINARY, FIN, TEXT, upgrade_head};
use crate::harness::{Client, Raw, Server, eventually, frame};
use serde_json::{Value, json};
use std::fs;

const PATH: &str = "plain.path=/app";

/// The rules of an auction.
const RULES: &str = r#"
[[routes]]
on = "joinAuction"
do = "join"
room = "auctionId"

[[routes]]
on = "leaveAuction"
do = "leave"
room = "auctionId"

[[routes]]
on = "ping"
reply = "pong"

[[routes]]
on = "received"
ack = true
"#;

/// A server with these rules, and these settings besides.
fn server(settings: &[&str]) -> (Server, Kept) {
    with_file(RULES, settings)
}

fn with_file(file: &str, settings: &[&str]) -> (Server, Kept) {
    // Tests run side by side.
    let kept = Kept::new(&format!("plain-{:?}", std::thread::current().id()));
    fs::write(&kept.0, file).expect("the folder is ours");
    let path = kept.0.display().to_string();
    let mut flags = vec!["--config", &path];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    (Server::with_flags(&flags), kept)
}

/// A plain client.
struct Plain(Raw);

impl Plain {
    fn open(server: &Server) -> Plain {
        Plain(server.socket("/app"))
    }

    fn say(&mut self, message: &Value) {
        self.say_text(message.to_string());
    }

    fn say_text(&mut self, text: impl AsRef<[u8]>) {
        self.0.send(frame(FIN | TEXT, text));
    }

    /// The next message, as text.
    fn text(&mut self) -> String {
        let frame = self.0.frame();
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        String::from_utf8(frame.payload).expect("text")
    }

    fn hear(&mut self) -> Value {
        serde_json::from_str(&self.text()).expect("JSON")
    }

    /// The next message is this one, byte for byte.
    fn hears(&mut self, message: &str) {
        assert_eq!(self.text(), message);
    }

    /// The error that this text is refused with: its code.
    fn refused(&mut self, text: impl AsRef<[u8]>) -> String {
        self.say_text(text);
        let error = self.hear();
        assert_eq!(error["type"], "error", "{error}");
        error["code"].as_str().expect("a code").to_owned()
    }

    fn join(&mut self, auction: u32) {
        self.say(&json!({"type": "joinAuction", "auctionId": auction, "id": "join"}));
        let ack = self.hear();
        assert_eq!((&ack["type"], &ack["id"]), (&json!("ack"), &json!("join")), "{ack}");
    }

    /// All that this client said has been carried out, and nothing came that was not taken.
    fn has_heard_all(&mut self) {
        self.say(&json!({"type": "received", "id": "all"}));
        self.hears(r#"{"type":"ack","id":"all"}"#);
    }
}

/// A client of Socket.IO on a WebSocket, in `/`.
fn socketio(server: &Server) -> Raw {
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    assert!(raw.frame().payload.starts_with(b"0{"));
    raw.send(frame(FIN | TEXT, "40"));
    assert!(raw.frame().payload.starts_with(b"40{"));
    raw
}

/// The example below a heading of the documentation: the configuration, and what is said and heard, each with its direction.
pub(crate) fn example(heading: &str) -> (&'static str, Vec<(char, &'static str)>) {
    let page = include_str!("../../docs/routes.md");
    let section = page.split(&format!("\n## {heading}\n")).nth(1).expect("the section is there");
    let mut blocks = section.split("```").skip(1).step_by(2);
    let file = blocks.next().and_then(|block| block.strip_prefix("toml\n")).expect("a configuration");
    let lines = blocks.next().expect("a conversation").trim().lines();
    (file, lines.map(|line| (line.chars().next().expect("an arrow"), &line["→ ".len()..])).collect())
}

#[test]
fn the_example_of_the_documentation_is_what_happens() {
    let (file, said) = example("Plain JSON");
    let (server, _file) = with_file(file, &[]);
    let mut client = Plain::open(&server);
    assert_eq!(said.len(), 10);
    for (direction, message) in said {
        match direction {
            '→' => client.say_text(message),
            _ => client.hears(message),
        }
    }
}

#[test]
fn plain_native_and_socketio_clients_share_rooms() {
    let (server, _file) = server(&[PATH, "server.shards=4"]);
    let (mut one, mut other, mut native) = (Plain::open(&server), Plain::open(&server), server.client());
    let mut socket = socketio(&server);
    native.join(&["3"]);
    one.join(3);
    other.join(3);
    socket.send(frame(FIN | TEXT, r#"421["join",{"room":3}]"#));
    assert_eq!(socket.frame().payload, br#"431[{"rooms":{"3":{"members":3}}}]"#);

    let data = json!({"z": 1, "type": "x", "a": []});
    one.say(&json!({"type": "publish", "room": 3, "event": "auctionUpdate", "data": data}));
    other.hears(r#"{"type":"auctionUpdate","a":[],"z":1}"#);
    native.hears("3", "auctionUpdate", json!({"z": 1, "type": "x", "a": []}));
    let packet = String::from_utf8(socket.frame().payload).expect("text");
    assert!(packet.starts_with(r#"42["auctionUpdate",{"#), "{packet}");

    // Members keep the order and the form in which they were written, whoever has written them.
    native.say_text(r#"{"type":"publish","room":"3","event":"bid","data":{ "z":1.50, "a" : [1, 2] }}"#);
    for client in [&mut one, &mut other] {
        client.hears(r#"{"type":"bid", "z":1.50, "a" : [1, 2] }"#);
    }
    assert!(socket.frame().payload.starts_with(br#"42["bid","#));
    native.publish("3", "countdown", json!(3));
    native.publish("3", "ended", Value::Null);
    native.say_binary(&json!({"type": "publish", "room": "3", "event": "image"}), &[0, 255]);
    native.publish("3", "typed", json!({"type": "x"}));
    for client in [&mut one, &mut other] {
        client.hears(r#"{"type":"countdown","data":3}"#);
        client.hears(r#"{"type":"ended"}"#);
        client.hears(r#"{"type":"image","data":{"base64":"AP8="}}"#);
        client.hears(r#"{"type":"typed"}"#);
    }
    for _ in 0..5 {
        socket.frame();
    }
    // With bytes in it, from a client of Socket.IO.
    socket.send(frame(FIN | TEXT, r#"451-["publish","3","tile",{"x":{"_placeholder":true,"num":0}}]"#));
    socket.send(frame(FIN | BINARY, [1]));
    one.hears(r#"{"type":"tile","x":{"base64":"AQ=="}}"#);
    native.hears("3", "tile", json!({"x": {"base64": "AQ=="}}));

    one.say(&json!({"type": "leaveAuction", "auctionId": 3, "id": 1}));
    one.hears(r#"{"type":"ack","id":1}"#);
    native.publish("3", "late", json!({}));
    one.has_heard_all();
    other.hears(r#"{"type":"tile","x":{"base64":"AQ=="}}"#);
    other.hears(r#"{"type":"late"}"#);
    native.has_heard_all();
}

#[test]
fn messages_of_an_array_are_carried_out_in_their_order() {
    let (server, _file) = server(&[PATH, "limits.messages_per_frame_max=4"]);
    let mut client = Plain::open(&server);
    client.say_text(
        r#"[{"type":"join","rooms":[1,2],"id":1},{"type":"ping","n":1,"id":2},{"id":3},
            {"type":"publish","room":1,"event":"u","echo":true,"data":{},"id":4}]"#,
    );
    client.hears(r#"{"type":"ack","id":1,"rooms":{"1":{"members":0},"2":{"members":0}}}"#);
    client.hears(r#"{"type":"pong","n":1,"id":2}"#);
    client.hears(r#"{"type":"ack","id":2}"#);
    assert_eq!(client.hear()["id"], 3);
    // The event goes by way of the room, and its answer does not wait for it.
    client.hears(r#"{"type":"ack","id":4}"#);
    client.hears(r#"{"type":"u"}"#);
    assert_eq!(client.refused("[1,2,3,4,5]"), "too_many_messages");
    client.say_text("[]");
    client.has_heard_all();
    client.say(&json!({"type": "received", "id": 5, "n": [1]}));
    client.hears(r#"{"type":"ack","id":5,"n":[1]}"#);
}

#[test]
fn hostile_messages_are_refused_and_the_connection_stays() {
    let (server, _file) = server(&[PATH, "limits.message_bytes_max=4MiB", "outbox.bytes_max=8MiB"]);
    let mut client = Plain::open(&server);
    let nested =
        |depth: usize| format!(r#"{{"type":"ping","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let long = "x".repeat(1 << 20);
    for (text, code) in [
        ("".to_owned(), "bad_json"),
        ("{".to_owned(), "bad_json"),
        ("null".to_owned(), "bad_message"),
        ("\"ping\"".to_owned(), "bad_message"),
        ("{}".to_owned(), "bad_message"),
        (r#"{"type":7}"#.to_owned(), "bad_message"),
        (r#"{"type":["ping"]}"#.to_owned(), "bad_message"),
        (r#"{"type":"ping","type":"ping"}"#.to_owned(), "bad_message"),
        (r#"{"type":"ping","t\u0079pe":"ping"}"#.to_owned(), "bad_message"),
        (r#"{"type":"ping","id":[1]}"#.to_owned(), "bad_message"),
        (format!(r#"{{"type":"ping","id":"{long}"}}"#), "bad_message"),
        (format!(r#"{{"type":"{long}"}}"#), "bad_event"),
        (r#"{"type":"ping\u0000"}"#.to_owned(), "bad_event"),
        ("{\"type\":\"ping\0\"}".to_owned(), "bad_json"),
        ("{\"type\":\"ping\"}\0".to_owned(), "bad_json"),
        (r#"{"type":""}"#.to_owned(), "bad_event"),
        (r#"{"type":"connect"}"#.to_owned(), "bad_event"),
        (nested(120), "bad_json"),
        (nested(1_000_000), "bad_json"),
        (r#"{"type":"join"}"#.to_owned(), "bad_message"),
        (r#"{"type":"join","room":""}"#.to_owned(), "bad_room"),
        (r#"{"type":"join","room":"a\nb"}"#.to_owned(), "bad_room"),
        (format!(r#"{{"type":"join","room":"{long}"}}"#), "bad_room"),
        (r#"{"type":"publish","room":"a","event":"disconnect"}"#.to_owned(), "bad_event"),
    ] {
        let began = &text[..text.len().min(60)];
        assert_eq!(client.refused(&text), code, "{began}");
    }
    client.0.send(frame(FIN | BINARY, br#"{"type":"ping"}"#));
    client.hears(r#"{"type":"error","code":"bad_message","message":"a message is text"}"#);
    // What is unusual and right.
    client.say_text(nested(119));
    assert!(client.text().starts_with(r#"{"type":"pong","x":[[["#));
    client.say_text(r#" { "n" : 1 , "x":"\ud800", "type" : "p\u0069ng" } "#);
    client.hears(r#"{"type":"pong","n" : 1 ,"x":"\ud800"}"#);
    client.say_text(format!(r#"{{"x":"{long}","type":"ping"}}"#));
    assert_eq!(client.text().len(), long.len() + r#"{"type":"pong","x":""}"#.len());
    client.say_text(r#"{"type":"nobody knows this"}"#);
    client.has_heard_all();
    client.say_text(b"{\"type\":\"\xff\"}");
    assert_eq!(client.0.closed().0, 1007);
    server.wait_for_number("connections", 0);
}

#[test]
fn tokens_come_in_the_request_or_as_a_message() {
    let secret = format!("auth.secret={}", crate::access::SECRET);
    let (server, _file) = server(&[PATH, &secret, "auth.required=true", "auth.timeout_ms=3000"]);
    let (one, other) = (token(&["--user", "7"]), token(&["--user", "8"]));
    let mut by_message = Plain::open(&server);
    assert_eq!(by_message.refused(r#"{"type":"ping","id":1}"#), "token_missing");
    by_message.say(&json!({"type": "auth", "token": one, "id": 2}));
    by_message.hears(r#"{"type":"ack","id":2}"#);
    by_message.say(&json!({"type": "ping"}));
    by_message.hears(r#"{"type":"pong"}"#);
    assert_eq!(by_message.refused(json!({"type": "auth", "token": other}).to_string()), "token_refused");
    by_message.say(&json!({"type": "auth", "token": one, "id": 3}));
    by_message.hears(r#"{"type":"ack","id":3}"#);

    let mut by_query = Plain(server.socket(&format!("/app?token={other}")));
    by_query.join(1);
    let mut by_head = server.raw();
    by_head.send(upgrade_head("/app", &format!("Authorization: Bearer {one}\r\n")));
    assert_eq!(by_head.response().status, 101);
    let mut wrong = server.raw();
    wrong.send(upgrade_head("/app", "Authorization: Bearer x\r\n"));
    assert_eq!(wrong.response().status, 401);

    let mut bad = Plain::open(&server);
    assert_eq!(bad.refused(r#"{"type":"auth","token":"x"}"#), "token_refused");
    assert_eq!(bad.0.closed().0, 4010);
    let mut none = Plain::open(&server);
    assert_eq!(none.refused(r#"{"type":"auth"}"#), "token_refused");
    assert_eq!(none.0.closed().0, 4010);
    let mut silent = Plain::open(&server);
    assert_eq!(silent.0.closed(), (4010, "no token came in time".to_owned()));
}

#[test]
fn limits_are_told_in_the_words_that_applications_use() {
    let limits = format!(
        "{RULES}\n[[limits.events]]\nevent = \"bid\"\nper = \"connection\"\ncount = 2\nwindow_ms = 60000\n"
    );
    let settings = [PATH, "limits.connections_per_ip_max=2", "limits.refuse_with=close"];
    let (server, _file) = with_file(&limits, &settings);
    let (mut one, two) = (Plain::open(&server), Plain::open(&server));
    let mut third = Plain::open(&server);
    assert_eq!(third.0.closed(), (1008, "Connection limit exceeded".to_owned()));
    for _ in 0..2 {
        one.say(&json!({"type": "bid", "amount": 1}));
    }
    one.has_heard_all();
    one.say(&json!({"type": "bid", "amount": 1}));
    let error = one.hear();
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("rate_limited")));
    assert_eq!(error["message"], "Rate limit exceeded");
    assert!(error["retry_ms"].as_u64().is_some_and(|ms| ms <= 60_000), "{error}");
    one.say(&json!({"type": "bid", "id": 7}));
    let error = one.hear();
    assert_eq!((&error["code"], &error["id"]), (&json!("rate_limited"), &json!(7)));

    // Clients of Socket.IO are told in the same words.
    drop(two);
    server.wait_for_number("connections", 1);
    let mut socket = socketio(&server);
    for _ in 0..3 {
        socket.send(frame(FIN | TEXT, r#"42["bid",{}]"#));
    }
    let packet = String::from_utf8(socket.frame().payload).expect("text");
    let told: Value = serde_json::from_str(&packet[2..]).expect("JSON");
    assert_eq!((&told[0], &told[1]["message"]), (&json!("error"), &json!("Rate limit exceeded")), "{packet}");

    let secret = format!("auth.secret={}", crate::access::SECRET);
    let (server, _file) = self::server(&[PATH, &secret, "limits.connections_per_user_max=1"]);
    let token = token(&["--user", "7"]);
    let _first = server.socket(&format!("/app?token={token}"));
    let mut late = Plain::open(&server);
    late.say(&json!({"type": "auth", "token": token}));
    assert_eq!(late.hear()["message"], "Connection limit exceeded");
    assert_eq!(late.0.closed(), (1008, "Connection limit exceeded".to_owned()));
    let mut late = server.socket("/socket.io/?EIO=4&transport=websocket");
    late.frame();
    late.send(frame(FIN | TEXT, format!(r#"40{{"token":"{token}"}}"#)));
    let packet = String::from_utf8(late.frame().payload).expect("text");
    assert!(packet.starts_with(r#"44{"message":"Connection limit exceeded""#), "{packet}");

    let (server, _file) = self::server(&[PATH, "limits.messages_per_second_max=2", "limits.over=close"]);
    let mut one = Plain::open(&server);
    for _ in 0..3 {
        one.say(&json!({"type": "x"}));
    }
    assert_eq!(one.0.closed(), (1008, "Rate limit exceeded".to_owned()));
}

#[test]
fn backends_see_and_reach_plain_clients() {
    let backend = Backend::start();
    let rules = format!(
        "{RULES}\n[[routes]]\non = \"bid\"\nbackend = true\n\n[[webhooks.events]]\nevent = \"seen\"\n"
    );
    let kinds = r#"webhooks.kinds=["connected"]"#;
    let (server, _file) =
        backend.server("plain", &rules, &[PATH, kinds, "webhooks.linger_ms=0", "webhooks.batch_max=1"]);
    let mut client = Plain::open(&server);
    let notice = backend.answers("/webhooks", Value::Null);
    let connected = &notice["notices"][0];
    assert_eq!((&connected["dialect"], &connected["namespace"]), (&json!("plain"), &Value::Null), "{notice}");
    client.say_text(r#"{"type":"seen", "n":1}"#);
    let notice = backend.answers("/webhooks", Value::Null);
    let event = &notice["notices"][0];
    assert_eq!(
        (&event["event"], &event["args"]),
        (&json!("seen"), &json!([{"type": "seen", "n": 1}])),
        "{notice}"
    );
    assert_eq!(event["dialect"], "plain");

    client.say_text(r#"{"type":"bid","amount":5,"id":"q"}"#);
    let call = backend.answers(
        "/event",
        json!({
            "join": ["3"],
            "emit": [
                {"event": "own", "args": [{"a": 1}]},
                {"event": "several", "args": [{"a": 1}, 2]},
                {"event": "none", "args": []},
                {"event": "room", "data": {"b": 1}, "room": "3"},
                {"event": "all", "args": ["c"], "all": true},
            ],
            "ack": [{"id": 4711, "accepted": true}],
        }),
    );
    assert_eq!(
        (&call["event"], &call["args"]),
        (&json!("bid"), &json!([{"type": "bid", "amount": 5, "id": "q"}]))
    );
    assert_eq!(call["wants_ack"], true);
    client.hears(r#"{"type":"own","a":1}"#);
    client.hears(r#"{"type":"several","data":[{"a":1},2]}"#);
    client.hears(r#"{"type":"none"}"#);
    client.hears(r#"{"type":"room","b":1}"#);
    client.hears(r#"{"type":"all","data":"c"}"#);
    client.hears(r#"{"type":"ack","id":"q","accepted":true}"#);
    client.say_text(r#"{"type":"bid","amount":6}"#);
    backend.answers("/event", json!({"ack": [1], "disconnect": {"code": 4100, "reason": "enough"}}));
    assert_eq!(client.0.closed(), (4100, "enough".to_owned()));
}

#[test]
fn the_api_and_presence_know_plain_clients() {
    const KEY: &str = "0123456789abcdef0123456789abcdef";
    let key = format!("api.key={KEY}");
    let (server, _file) = server(&[PATH, &key]);
    let (mut client, mut native) = (Plain::open(&server), server.client());
    client.join(3);
    native.join(&["3"]);
    client.say(&json!({"type": "presence", "room": "3", "who": true, "id": 1}));
    let answer = client.hear();
    assert_eq!((&answer["type"], &answer["members"]), (&json!("presence"), &json!(2)), "{answer}");
    let ask = |method: &str, path: &str, body: &str| {
        let mut raw = Raw::connect(server.control_address());
        let length = body.len();
        raw.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: throng\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        raw.response()
    };
    let listed: Value = serde_json::from_str(&ask("GET", "/v1/connections", "").body).expect("JSON");
    let plain = listed["connections"].as_array().expect("a list").iter().find(|it| it["dialect"] == "plain");
    let id = plain.unwrap_or_else(|| panic!("{listed}"))["id"].as_str().expect("an id").to_owned();
    let published = ask("POST", "/v1/publish", r#"{"room":"3","event":"e","data":{"n":1}}"#);
    assert_eq!(published.status / 100, 2, "{published:?}");
    client.hears(r#"{"type":"e","n":1}"#);
    // By its id it is a room of its own.
    native.publish("3", "f", json!({}));
    client.hears(r#"{"type":"f"}"#);
    let alone = json!({"room": id, "event": "own", "data": {"n": 2}}).to_string();
    assert_eq!(ask("POST", "/v1/publish", &alone).status / 100, 2);
    client.hears(r#"{"type":"own","n":2}"#);
    assert_eq!(server.number("connections"), 2);
}

#[test]
fn a_slow_client_is_told_how_much_it_has_lost() {
    let settings = [PATH, "outbox.policy=drop", "outbox.bytes_max=64KiB", "limits.message_bytes_max=32KiB"];
    let (server, _file) = server(&settings);
    let mut raw = Raw::connect_narrow(server.address());
    raw.upgrade("/app");
    let mut slow = Plain(raw);
    slow.join(1);
    let mut native = server.client();
    let data = json!({"x": "x".repeat(10_000)});
    let mut sent = 0;
    // Until the kernel takes no more, and then the outbox.
    while server.number("totals/dropped") < 20 {
        native.publish("1", "much", data.clone());
        sent += 1;
        assert!(sent < 20_000, "it is never full");
    }
    let (mut heard, mut dropped) = (0, 0);
    while heard + dropped < sent {
        let message = slow.hear();
        match message["type"].as_str() {
            Some("much") => heard += 1,
            Some("dropped") => dropped += message["count"].as_u64().expect("a count"),
            _ => panic!("{message}"),
        }
    }
    assert!(dropped >= 20);
}

#[test]
fn an_application_may_have_the_path_of_the_native_protocol() {
    let (server, _file) = server(&["plain.path=/ws", "native.path=/native"]);
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws", ""));
    assert_eq!(raw.response().status, 101);
    let mut plain = Plain(raw);
    plain.join(3);
    let mut native = Client::over(server.raw(), "/native", &[]);
    native.publish("3", "hello", json!({"n": 1}));
    plain.hears(r#"{"type":"hello","n":1}"#);
    let (server, _file) = self::server(&["native.path="]);
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws", ""));
    assert_eq!(raw.response().status, 404);
}

#[test]
fn an_idle_connection_costs_what_a_native_one_does() {
    const CONNECTIONS: u64 = 2_000;
    let cost = |path: &str| {
        let (server, _file) = server(&[PATH]);
        // What the first ones cost besides themselves.
        let _first: Vec<Raw> = (0..50).map(|_| server.socket(path)).collect();
        let before = server.resident_bytes();
        let crowd: Vec<Raw> = (0..CONNECTIONS).map(|_| server.socket(path)).collect();
        server.wait_for_number("connections", 50 + CONNECTIONS);
        let after = server.resident_bytes();
        drop(crowd);
        after.saturating_sub(before)
    };
    let is_no_more = || {
        let (plain, native) = (cost("/app"), cost("/ws"));
        // Some pages may be there or not.
        (plain <= native + CONNECTIONS * 64).then_some(())
    };
    eventually("as many bytes", is_no_more);
}

#[test]
fn clients_of_npm_bid_in_an_auction() {
    let (server, _file) = server(&[PATH, "heartbeat.ping_timeout_ms=5000"]);
    let mut script = node("node/plain.mjs");
    script.arg(format!("http://{}", server.address()));
    check(script, NODE, 5);
    server.wait_for_number("connections", 0);
    server.wait_for_number("rooms", 0);
}

#[test]
fn limits_and_webhooks_for_the_main_namespace_mean_them() {
    let backend = Backend::start();
    let of = |namespace: &str, event: &str| {
        format!(
            "[[limits.events]]\nevent = \"{event}\"\nnamespace = \"{namespace}\"\nper = \"connection\"\ncount = 1\nwindow_ms = \"1m\"\n"
        )
    };
    let rules = format!(
        "{RULES}\n{}{}\n[[webhooks.events]]\nevent = \"*\"\nnamespace = \"/\"\n",
        of("/", "bid"),
        of("/lots/*", "other")
    );
    let (server, _file) =
        backend.server("main", &rules, &[PATH, "webhooks.linger_ms=0", "webhooks.batch_max=1"]);
    let (mut client, mut native) = (Plain::open(&server), server.client());
    for _ in 0..3 {
        client.say(&json!({"type": "other", "n": 1}));
        let notice = backend.answers("/webhooks", Value::Null);
        let event = &notice["notices"][0];
        assert_eq!((&event["event"], &event["dialect"]), (&json!("other"), &json!("plain")), "{notice}");
        assert_eq!(event["namespace"], Value::Null, "it has joined none");
    }
    client.say(&json!({"type": "bid"}));
    backend.answers("/webhooks", Value::Null);
    assert_eq!(client.refused(r#"{"type":"bid"}"#), "rate_limited");
    native.ask(json!({"type": "publish", "room": "a", "event": "bid"}));
    let notice = backend.answers("/webhooks", Value::Null);
    assert_eq!(notice["notices"][0]["dialect"], "native", "{notice}");
    assert_eq!(native.refused(json!({"type": "publish", "room": "a", "event": "bid"})), "rate_limited");
}

#[test]
fn routes_that_say_what_throng_says_itself_are_refused_with_their_line() {
    let check = |plain: &str, rules: &str| {
        let kept = Kept::new("plain-names");
        fs::write(&kept.0, format!("plain.path = \"{plain}\"\n{rules}")).expect("the folder is ours");
        let done =
            std::process::Command::new(env!("CARGO_BIN_EXE_throng")).arg("check").arg(&kept.0).output();
        let done = done.expect("throng runs");
        (String::from_utf8([done.stdout, done.stderr].concat()).expect("text"), done.status.success())
    };
    for (rules, key) in [
        ("[[routes]]\non = \"x\"\nreply = \"error\"\n", "routes.reply"),
        ("[[routes]]\non = \"ack\"\nreply = { data = 1 }\n", "routes.reply"),
        ("[[routes]]\non = \"x\"\npublish = { room = \"a\", event = \"dropped\" }\n", "routes.publish"),
        ("[[routes]]\nnamespace = \"/\"\non = \"presence\"\npublish = { all = true }\n", "routes.publish"),
        ("[[routes]]\non = \"*\"\nreply = \"batch\"\n", "routes.reply"),
    ] {
        let (text, is_right) = check("/app", rules);
        assert!(
            !is_right && text.contains(&format!(":2: {key}: ")) && text.contains("another name"),
            "{rules}: {text}"
        );
        let (text, is_right) = check("", rules);
        assert!(is_right, "without plain clients it is nothing: {text}");
    }
    let (text, is_right) = check("/app", "[[routes]]\nnamespace = \"/a\"\non = \"x\"\nreply = \"error\"\n");
    assert!(is_right, "plain clients are not there: {text}");
    let redis = "[redis]\nurls = [\"redis://127.0.0.1:1\"]\n[[redis.channels]]\nname = \"a\"\n";
    let (text, is_right) = check("/app", &format!("{redis}publish = {{ all = true, event = \"error\" }}\n"));
    assert!(!is_right && text.contains(":4: redis.channels.publish: "), "{text}");
}
