//! Routes from outside: what stock clients of Socket.IO see of them, what hostile payloads come to, and what `throng check` says of one
//! event.

use crate::foreign;
use crate::harness::server::run;
use crate::harness::{Client, Heard, Server};
use serde_json::{Value, json};
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
    let done = Command::new(env!("CARGO_BIN_EXE_throng"))
        .args(["check", SETTINGS])
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
        "It is refused unless its client is in channel:c1.",
        "Published to members of channel:c1 (not its client): \"new_message\" {\"channelId\":\"c1\",\"text\":\"hi\",",
        "\"from\":\"ann\"",
        "Its client gets \"message_sent\" {\"messageId\":\"AN-ID-OF-THE-SERVER\"}",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    for (arguments, line) in [
        (&["--event", "send_message"][..], "It is refused (forbidden): its routes are for others."),
        (&["--event", "send_message", "--user", "a"], "It is refused: `channelId` is missing."),
        (
            &["--event", "join_own", "--data", r#"{"owner":"b"}"#],
            "It is refused: this client may not join own:b.",
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
        (&["--event", "closed"], "It is refused: this shop is closed."),
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
