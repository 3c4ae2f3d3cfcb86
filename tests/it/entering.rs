//! Rooms that clients join by entering a namespace, as `[[namespaces]]` say: native, plain and Socket.IO clients, users and nobody.

use crate::access::{SECRET, token};
use crate::backend_apps::Kept;
use crate::harness::raw::{FIN, TEXT};
use crate::harness::{Client, Raw, Server, frame};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

const PLAIN: &str = "plain.path=/app";
const API: &str = "api.key=a-key-of-the-tests";

fn secret() -> String {
    format!("auth.secret={SECRET}")
}

/// A server with this file, and these settings besides.
fn server(file: &str, settings: &[&str]) -> (Server, Kept) {
    let kept = Kept::new(&format!("entering-{:?}", std::thread::current().id()));
    fs::write(&kept.0, file).expect("the folder is ours");
    let path = kept.0.display().to_string();
    let mut flags = vec!["--config", &path];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    (Server::with_flags(&flags), kept)
}

/// Members of a room, as the API counts them.
fn members(server: &Server, namespace: &str, room: &str) -> u64 {
    let path = format!("/v1/rooms/{room}?namespace={namespace}");
    let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a-key-of-the-tests\r\n\r\n");
    let mut control = Raw::connect(server.control_address());
    control.send(head);
    let response = control.response();
    serde_json::from_str::<Value>(&response.body).ok().and_then(|body| body["members"].as_u64()).unwrap_or(0)
}

/// A client of Socket.IO in this namespace, with what it says for itself.
fn socketio(server: &Server, namespace: &str, auth: &str) -> Raw {
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    assert!(raw.frame().payload.starts_with(b"0{"));
    raw.send(frame(FIN | TEXT, format!("40{namespace},{auth}")));
    let answer = raw.frame().payload;
    assert!(answer.starts_with(format!("40{namespace},{{").replace("40/,", "40").as_bytes()), "{answer:?}");
    raw
}

#[test]
fn who_enters_is_in_the_rooms_of_the_documentation() {
    let page = include_str!("../../docs/routes.md");
    let section = page.split("\n## Rooms joined on entering\n").nth(1).expect("the section is there");
    let file =
        section.split("```").nth(1).and_then(|block| block.strip_prefix("toml\n")).expect("an example");
    let (server, _file) = server(file, &[PLAIN, API, &secret(), "server.shards=2"]);
    let ann = token(&["--user", "ann", "--role", "dj", "--role", "admin"]);
    let native = Client::over(server.raw(), "/ws", &[("Authorization", &format!("Bearer {ann}"))]);
    let mut plain = server.socket("/app");
    let mut socket = socketio(&server, "/guild/7", &format!(r#"{{"token":"{ann}"}}"#));
    // The first thing that it says finds it there.
    plain.send(frame(FIN | TEXT, r#"{"type":"presence","room":"lobby","id":1}"#));
    let answer: Value = serde_json::from_slice(&plain.frame().payload).expect("JSON");
    assert_eq!((&answer["type"], &answer["members"]), (&json!("presence"), &json!(2)), "{answer}");
    for (namespace, room, count) in [
        ("/", "lobby", 2),
        ("/", "user:ann", 1),
        ("/guild/7", "guild:7", 1),
        ("/guild/7", "role:dj", 1),
        ("/guild/7", "role:admin", 1),
        ("/guild/7", "lobby", 0),
        ("/", "guild:7", 0),
    ] {
        assert_eq!(members(&server, namespace, room), count, "{room} in {namespace}");
    }
    // It may leave such a room as any other.
    socket.send(frame(FIN | TEXT, r#"42/guild/7,5["leave",{"room":"guild:7"}]"#));
    assert_eq!(socket.frame().payload, b"43/guild/7,5[{}]");
    assert_eq!(members(&server, "/guild/7", "guild:7"), 0);
    // Whoever becomes a user later joins the rooms of users then, and no other again.
    plain.send(frame(FIN | TEXT, r#"{"type":"leave","room":"lobby","id":2}"#));
    assert_eq!(plain.frame().payload, br#"{"type":"ack","id":2}"#);
    plain.send(frame(FIN | TEXT, format!(r#"{{"type":"auth","token":"{ann}","id":3}}"#)));
    assert_eq!(plain.frame().payload, br#"{"type":"ack","id":3}"#);
    assert_eq!((members(&server, "/", "lobby"), members(&server, "/", "user:ann")), (1, 2));
    drop((native, plain, socket));
    server.wait_for_number("connections", 0);
    server.wait_for_number("rooms", 0);
}

#[test]
fn who_needs_a_token_is_nowhere_before_it() {
    let file = "[[namespaces]]\nname = \"/\"\njoin = [\"lobby\", \"user:{user}\"]\n";
    let (server, _file) = server(file, &[PLAIN, API, &secret(), "auth.required=true"]);
    let ann = token(&["--user", "ann"]);
    let (mut native, mut plain) = (server.client(), server.socket("/app"));
    assert_eq!(members(&server, "/", "lobby"), 0);
    native.ask(json!({"type": "auth", "token": ann}));
    assert_eq!((members(&server, "/", "lobby"), members(&server, "/", "user:ann")), (1, 1));
    plain.send(frame(FIN | TEXT, format!(r#"{{"type":"auth","token":"{ann}","id":3}}"#)));
    assert_eq!(plain.frame().payload, br#"{"type":"ack","id":3}"#);
    let _socket = socketio(&server, "/", &format!(r#"{{"token":"{ann}"}}"#));
    assert_eq!((members(&server, "/", "lobby"), members(&server, "/", "user:ann")), (3, 3));
    // Another token of the same user changes nothing.
    native.leave(&["lobby"]);
    native.ask(json!({"type": "auth", "token": ann}));
    assert_eq!(members(&server, "/", "lobby"), 2);
}

#[test]
fn a_name_that_a_client_chooses_is_bounded() {
    let file = "[[namespaces]]\nname = \"/guild/*\"\njoin = [\"all\", \"guild:{path.1}\"]\n";
    let (server, _file) =
        server(file, &[API, "limits.rooms_per_connection_max=1", "limits.room_name_bytes_max=20"]);
    for strange in ["/guild/a b", "/guild/..", &format!("/guild/{}", "x".repeat(20)), "/guild/7"] {
        // It is in the namespace, and in none of the rooms: the last would be in two.
        let mut socket = socketio(&server, strange, "");
        socket.send(frame(FIN | TEXT, format!(r#"42{strange},5["presence",{{"room":"all"}}]"#)));
        let answer = String::from_utf8(socket.frame().payload).expect("text");
        assert!(answer.contains("not_member"), "{strange}: {answer}");
    }
    assert_eq!(server.number("totals/errors"), 8, "each room list, and each question");
}

#[test]
fn a_recovered_session_joins_nothing_anew() {
    let file = "[[namespaces]]\nname = \"/\"\njoin = [\"one\", \"two\"]\n";
    let (server, _file) = server(file, &[API, r#"socketio.recovery_ms="10s""#, "server.shards=1"]);
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    raw.frame();
    raw.send(frame(FIN | TEXT, "40"));
    let connected: Value = serde_json::from_slice(&raw.frame().payload[2..]).expect("JSON");
    let pid = connected["pid"].as_str().expect("it can be recovered");
    raw.send(frame(FIN | TEXT, r#"420["leave",{"room":"two"}]"#));
    let mut client = server.client();
    raw.frame();
    client.say(&json!({"type": "publish", "room": "one", "event": "e", "id": 1}));
    let event = String::from_utf8(raw.frame().payload).expect("text");
    let args: Value = serde_json::from_str(event.strip_prefix("42").expect("an event")).expect("JSON");
    let offset = args[2].as_str().expect("an offset").to_owned();
    drop(raw);
    server.wait_for_number("connections", 1);
    let mut again = server.socket("/socket.io/?EIO=4&transport=websocket");
    again.frame();
    again.send(frame(FIN | TEXT, format!("40{}", json!({"pid": pid, "offset": offset}))));
    let back: Value = serde_json::from_slice(&again.frame().payload[2..]).expect("JSON");
    assert_eq!(back["sid"], connected["sid"], "it is the same");
    assert_eq!(
        (members(&server, "/", "one"), members(&server, "/", "two")),
        (2, 1),
        "the native client is in both"
    );
}

#[test]
fn templates_that_cannot_be_filled_are_refused_with_their_line() {
    for (join, says) in [
        (r#""guild:{path.2}""#, "no such segment"),
        (r#"["a", "x:{channelId}"]"#, "nothing that is known"),
        (r#""x:{now_ms}""#, "of events"),
        ("7", "a name or a list of names"),
    ] {
        let kept = Kept::new("entering-wrong");
        fs::write(&kept.0, format!("[[namespaces]]\nname = \"/guild/*\"\njoin = {join}\n")).expect("ours");
        let done = Command::new(env!("CARGO_BIN_EXE_throng"))
            .arg("check")
            .arg(&kept.0)
            .output()
            .expect("throng runs");
        let text = String::from_utf8([done.stdout, done.stderr].concat()).expect("text");
        assert!(
            !done.status.success() && text.contains(":3: namespaces.join") && text.contains(says),
            "{text}"
        );
    }
    let kept = Kept::new("entering-right");
    fs::write(&kept.0, "[[namespaces]]\nname = \"/guild/*\"\njoin = \"guild:{path.1}\"\n").expect("ours");
    let done =
        Command::new(env!("CARGO_BIN_EXE_throng")).arg("check").arg(&kept.0).output().expect("throng runs");
    let text = String::from_utf8(done.stdout).expect("text");
    assert!(text.contains("Who enters /guild/* joins guild:{path.1}."), "{text}");
}
