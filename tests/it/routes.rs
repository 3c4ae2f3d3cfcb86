//! Routes from outside: what stock clients of Socket.IO see of them, what hostile payloads come to, and what `throng check` says of one
//! event.

use crate::backend_apps::Kept;
use crate::foreign;
use crate::harness::raw::{FIN, TEXT};
use crate::harness::server::run;
use crate::harness::{Client, Heard, Server, frame};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::process::Command;

const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/routes/settings.toml");
const SECRET: &str = "a secret of the tests of routes, long enough";

#[test]
fn stock_clients_see_what_routes_make_of_events() {
    for shards in ["server.shards=1", "server.shards=4"] {
        let server = Server::with_flags(&["--config", SETTINGS, "--set", shards]);
        let mut checks = foreign::node("node/routes.mjs");
        checks.args([&format!("http://{}", server.address()), SECRET]);
        foreign::check(checks, foreign::NODE, 8);
    }
}

#[test]
fn a_route_in_the_place_of_a_command_holds_for_native_clients_too() {
    let server = Server::with_flags(&["--config", SETTINGS]);
    let mut client = server.client();
    client.say(&json!({"type": "publish", "room": "channel:a", "event": "e", "id": 1}));
    let refused = client.message();
    assert_eq!((&refused["code"], &refused["message"]), (&json!("forbidden"), &json!("publish by routes")));
    assert_eq!(client.join(&["channel:a"]), [0], "other commands are as ever");
}

/// What `throng check` prints and how it ends.
fn check(arguments: &[&str]) -> (String, bool) {
    check_file(SETTINGS, arguments)
}

fn check_file(file: &str, arguments: &[&str]) -> (String, bool) {
    let done = Command::new(env!("CARGO_BIN_EXE_throng"))
        .args(["check", file])
        .args(arguments)
        .output()
        .expect("throng runs");
    (String::from_utf8([done.stdout, done.stderr].concat()).expect("text"), done.status.success())
}

#[test]
fn check_says_what_would_become_of_an_event() {
    let (text, is_right) =
        check(&["--event", "send_message", "--user", "ann", "--data", r#"{"channelId":"c1","text":"hi"}"#]);
    assert!(is_right, "{text}");
    for line in [
        "\"send_message\" of user \"ann\" in /:",
        "It is refused (forbidden) unless its client is in channel:c1.",
        "Published to members of channel:c1 (not its client): \"new_message\" {\"channelId\":\"c1\",\"text\":\"hi\",",
        "\"from\":\"ann\"",
        "Its client gets \"message_sent\" {\"messageId\":\"AN-ID-OF-THE-SERVER\"}",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    for (arguments, line) in [
        (&["--event", "send_message"][..], "It is refused (forbidden): its routes are for others."),
        (&["--event", "send_message", "--user", "a"], "It is refused (bad_message): `channelId` is missing."),
        (
            &["--event", "join_own", "--data", r#"{"owner":"b"}"#],
            "It is refused (forbidden): this client may not join own:b.",
        ),
        (
            &["--event", "shout", "--user", "a", "--role", "admin", "--data", "1"],
            "Published to everyone (its client too)",
        ),
        (&["--event", "nothing"], "No route is for it: nothing happens."),
        (
            &["--event", "bid", "--namespace", "/lots/7", "--data", r#"{"amount":1}"#],
            r#""bidden" {"amount":1,"in":"/lots/7"}"#,
        ),
        (&["--event", "closed"], "It is refused (forbidden): this shop is closed."),
    ] {
        let (text, is_right) = check(arguments);
        assert!(is_right && text.contains(line), "{line} is not in\n{text}");
    }
    let (text, is_right) = check(&["--event", "a", "--data", "{"]);
    assert!(!is_right && text.contains("--data {: not JSON"), "{text}");
}

#[test]
fn native_clients_call_events_that_have_routes() {
    let server = Server::with_flags(&["--config", SETTINGS]);
    let token = run(&[], &["token", "--secret", SECRET, "--user", "ann"]).stdout;
    let headers = [("Authorization", &*format!("Bearer {}", token.trim()))];
    let (mut ann, mut nobody) = (Client::over(server.raw(), "/ws", &headers), server.client());
    let call = |event: &str, data: Value| json!({"type": "call", "event": event, "data": data});
    for client in [&mut ann, &mut nobody] {
        let ack = client.ask(call("join_channel", json!({"channelId": "c1"})));
        assert_eq!((&ack["type"], &ack["data"]), (&json!("ack"), &json!({"joined": "c1"})), "{ack}");
    }
    // The steps are taken, the reply is of no room and comes first, then the acknowledgement.
    let mut message = call("send_message", json!({"channelId": "c1", "text": "hi"}));
    message["id"] = json!("m");
    ann.say(&message);
    let reply = ann.message();
    let id = reply["data"]["messageId"].clone();
    assert_eq!(reply, json!({"type": "event", "event": "message_sent", "data": {"messageId": id}}));
    let ack = ann.message();
    assert_eq!((&ack["type"], &ack["id"], &ack["data"]["id"]), (&json!("ack"), &json!("m"), &id), "{ack}");
    let (event, data) = nobody.event();
    assert_eq!((&*event, &data["id"], &data["from"]), ("new_message", &id, &json!("ann")), "{data}");
    // Without a template it is acknowledged with `{}`, and not at all without an id.
    assert_eq!(nobody.ask(call("leave_channel", json!({"channelId": "c1"})))["data"], json!({}));
    nobody.say(&call("leave_channel", json!({"channelId": "c1"})));
    // Bytes pass as they are.
    ann.join(&["channel:all"]);
    nobody.join(&["channel:all"]);
    nobody.say_binary(&json!({"type": "call", "event": "blob", "id": 1}), &[1, 254]);
    assert_eq!(nobody.answer_to(&json!(1))["data"], json!({}));
    let Heard::Binary(head, bytes) = ann.hear() else { panic!("bytes") };
    assert_eq!((&head["event"], &*bytes), (&json!("blob"), &[1, 254][..]));
    // What is refused is told as everywhere.
    for (event, data, code) in [
        ("join_channel", json!({"channelId": 7}), "bad_message"),
        ("join_channel", json!({"channelId": "../x"}), "bad_room"),
        ("send_message", json!({"channelId": "c1", "text": "hi"}), "forbidden"),
        ("shout", json!(1), "forbidden"),
        ("closed", json!(null), "forbidden"),
        ("join", json!({"room": "channel:c1"}), "bad_event"),
        ("nothing", json!(null), "bad_event"),
        ("bid", json!({"amount": 1}), "bad_event"),
    ] {
        assert_eq!(nobody.refused(call(event, data)), code, "{event}");
    }
    ann.has_heard_all();
    nobody.has_heard_all();
}

/// Where plain clients and those of `throng check` are told the same.
const STRICT: &str = r#"
[plain]
path = "/app"

[socketio]
namespaces = ["/", "/lots/*"]

[limits]
rooms_per_connection_max = 10
room_name_bytes_max = 20

[[permissions]]
rooms = "open:*"
allow = ["join", "publish"]

[[routes]]
on = "enter"
fields = { n = "number?" }
join = ["{at}", "open:hall"]

[[routes]]
on = "tell"
publish = { room = "{to}:{of}", event = "told" }

[[routes]]
on = "ask"
member = "open:{in}"
ack = true

[[routes]]
on = "own"
join = "open:{user}"

[[routes]]
on = "close"
refuse = "nobody does"
"#;

#[test]
fn check_says_what_the_server_does() {
    let kept = Kept::new("check");
    fs::write(&kept.0, STRICT).expect("the folder is ours");
    let file = kept.0.display().to_string();
    let server = Server::with_flags(&["--config", &file]);
    let (long, many) = ("x".repeat(30), (0..11).collect::<Vec<u32>>());
    let told = r#"{"type":"tell","to":"open","of":"a","n":1e400,"id":1}"#.to_owned();
    for (message, code) in [
        (json!({"type": "join", "room": "open:a"}).to_string(), ""),
        (json!({"type": "join", "room": "secret"}).to_string(), "forbidden"),
        (json!({"type": "join", "room": long}).to_string(), "bad_room"),
        (
            json!({"type": "join", "rooms": many.iter().map(|n| format!("open:{n}")).collect::<Vec<_>>()})
                .to_string(),
            "too_many_rooms",
        ),
        (json!({"type": "join"}).to_string(), "bad_message"),
        (json!({"type": "leave", "room": "secret"}).to_string(), ""),
        (json!({"type": "publish", "room": "open:a", "event": "e"}).to_string(), ""),
        (json!({"type": "publish", "room": "secret", "event": "e"}).to_string(), "forbidden"),
        (json!({"type": "publish", "room": "throng:x", "event": "e"}).to_string(), "bad_room"),
        (json!({"type": "publish", "room": "open:a", "event": "connect"}).to_string(), "bad_event"),
        (
            json!({"type": "publish", "room": "open:a", "event": "e", "except": many}).to_string(),
            "too_many_rooms",
        ),
        (json!({"type": "presence", "room": "open:a"}).to_string(), "forbidden"),
        (json!({"type": "enter", "at": "secret"}).to_string(), "forbidden"),
        (json!({"type": "enter", "at": long}).to_string(), "bad_room"),
        (json!({"type": "enter", "at": many}).to_string(), "bad_room"),
        (json!({"type": "enter", "at": "../a"}).to_string(), "bad_room"),
        (json!({"type": "enter", "at": "a", "n": "1"}).to_string(), "bad_message"),
        (json!({"type": "tell", "to": "throng", "of": "x"}).to_string(), "bad_room"),
        (json!({"type": "tell", "to": [], "of": "x"}).to_string(), "bad_room"),
        (json!({"type": "tell", "to": many, "of": "x"}).to_string(), "bad_room"),
        (told, ""),
        (json!({"type": "ask", "in": []}).to_string(), "forbidden"),
        (json!({"type": "own"}).to_string(), "forbidden"),
        (json!({"type": "close"}).to_string(), "forbidden"),
    ] {
        // What it is published with, if anything, and the id of an answer.
        let message =
            if message.contains("\"id\"") { message } else { message.replacen('{', "{\"id\":1,", 1) };
        let event =
            serde_json::from_str::<HashMap<String, Box<RawValue>>>(&message).expect("an object")["type"]
                .get()
                .replace('"', "");
        let mut client = server.socket("/app");
        client.send(frame(FIN | TEXT, &message));
        let answer: Value = serde_json::from_slice(&client.frame().payload).expect("JSON");
        assert_eq!(answer["code"].as_str().unwrap_or_default(), code, "{message}: {answer}");
        let (text, is_right) = check_file(&file, &["--event", &event, "--data", &message]);
        let refused =
            text.lines().find_map(|line| line.trim().strip_prefix("It is refused (")?.split_once("): "));
        assert!(
            is_right && refused.map_or("", |(said, _)| said) == code,
            "{message} is {code:?}, and not\n{text}"
        );
    }
}

#[test]
fn only_the_server_publishes_to_its_rooms_in_any_namespace() {
    let kept = Kept::new("check-reserved");
    fs::write(&kept.0, STRICT).expect("the folder is ours");
    let file = kept.0.display().to_string();
    let server = Server::with_flags(&["--config", &file]);
    let mut client = server.socket("/socket.io/?EIO=4&transport=websocket");
    client.frame();
    client.send(frame(FIN | TEXT, "40/lots/7,"));
    client.frame();
    let data = r#"{"to":"throng","of":"x"}"#;
    client.send(frame(FIN | TEXT, format!(r#"42/lots/7,1["tell",{data}]"#)));
    let answer = String::from_utf8(client.frame().payload).expect("text");
    assert!(answer.starts_with("43/lots/7,1") && answer.contains("bad_room"), "{answer}");
    let (text, _) = check_file(&file, &["--event", "tell", "--namespace", "/lots/7", "--data", data]);
    assert!(text.contains("It is refused (bad_room): only the server publishes to throng:x."), "{text}");
}

#[test]
fn check_says_who_cannot_send_an_event() {
    for (arguments, line) in [
        (
            &["--namespace", "/nope"][..],
            "No client can be in /nope: neither socketio.namespaces nor [[namespaces]] have it.",
        ),
        (&["--namespace", "nope"], "No client can be in nope: "),
        (&["--namespace", "/lots/7/8"], "No client can be in /lots/7/8: "),
    ] {
        let (text, is_right) = check(&[&["--event", "bid"], arguments].concat());
        assert!(is_right && text.contains(line) && !text.contains("Published"), "{line} is not in\n{text}");
    }
}
