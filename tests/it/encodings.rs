//! Encodings of namespaces from outside: what travels to and from clients of Socket.IO in place of JSON, and that it is JSON everywhere
//! else.

use crate::backend_apps::{Backend, Kept};
use crate::foreign::{NODE, PATIENT, check, node};
use crate::harness::raw::{BINARY, FIN, TEXT};
use crate::harness::redis::Redis;
use crate::harness::{Raw, Server, eventually, frame};
use crate::plain::example;
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::fs;

const FILE: &str = r#"
[[namespaces]]
name = "/"
encoding = "base64"

[[namespaces]]
name = "/guild/*"
encoding = "base64"

[[namespaces]]
name = "/packed"
encoding = "msgpack"

[[namespaces]]
name = "/plain"

[[routes]]
on = "echo"
reply = "echoed"

[[routes]]
on = "same"
ack = true
"#;

fn with_file(file: &str, settings: &[&str]) -> (Server, Kept) {
    let kept = Kept::new(&format!("encodings-{:?}", std::thread::current().id()));
    fs::write(&kept.0, file).expect("the folder is ours");
    let path = kept.0.display().to_string();
    let mut flags = vec!["--config", &path];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    (Server::with_flags(&flags), kept)
}

/// A client of Socket.IO on a WebSocket, in this namespace.
fn open(server: &Server, namespace: &str) -> Raw {
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    assert!(raw.frame().payload.starts_with(b"0{"));
    raw.send(frame(FIN | TEXT, format!("40{namespace},")));
    assert!(raw.frame().payload.starts_with(b"40"));
    raw
}

fn say(raw: &mut Raw, packet: impl AsRef<[u8]>) {
    raw.send(frame(FIN | TEXT, packet));
}

fn hear(raw: &mut Raw) -> String {
    String::from_utf8(raw.frame().payload).expect("text")
}

fn base64(json: &str) -> String {
    format!("\"{}\"", BASE64.encode(json.as_bytes()))
}

#[test]
fn the_example_of_the_documentation_is_what_happens() {
    let (file, said) = example("Encodings");
    let (server, _file) = with_file(file, &[]);
    let mut client = open(&server, "/guild/7");
    assert_eq!(said.len(), 4);
    for (direction, packet) in said {
        match direction {
            '→' => say(&mut client, packet),
            _ => assert_eq!(hear(&mut client), packet),
        }
    }
}

#[test]
fn each_argument_is_base64_and_what_is_not_is_taken_as_it_is() {
    let (server, _file) = with_file(FILE, &[]);
    let mut client = open(&server, "/guild/7");
    let track = r#"{"name":"Blue","at":1.50,"é":[null]}"#;
    say(&mut client, format!("42/guild/7,[\"echo\",{},7,{},\"room\"]", base64(track), base64("null")));
    let args = [track, "7", "null", "\"room\""].map(base64).join(",");
    assert_eq!(hear(&mut client), format!("42/guild/7,[\"echoed\",{args}]"));
    say(&mut client, r#"42/guild/7,3["same"]"#);
    assert_eq!(hear(&mut client), "43/guild/7,3[]");
    // Errors are events and answers like others.
    say(&mut client, r#"42/guild/7,["join",7.5,[]]"#);
    say(&mut client, r#"42/guild/7,4["join"]"#);
    let error = r#"{"code":"bad_message","message":"`room` or `rooms` is missing, or is no name"}"#;
    assert_eq!(hear(&mut client), format!("43/guild/7,4[{}]", base64(&format!("{{\"error\":{error}}}"))));
    say(&mut client, r#"42/guild/7,["publish",{"room":"a"}]"#);
    assert!(hear(&mut client).starts_with(r#"42/guild/7,["error","ey"#));
    // Bytes pass, and so does an argument with bytes in it.
    say(
        &mut client,
        format!(
            r#"452-/guild/7,["echo",{{"_placeholder":true,"num":1}},{},{{"x":{{"_placeholder":true,"num":0}}}}]"#,
            base64("1")
        ),
    );
    client.send(frame(FIN | BINARY, b"one"));
    client.send(frame(FIN | BINARY, b"two"));
    let expected = format!(
        r#"452-/guild/7,["echoed",{{"_placeholder":true,"num":0}},{},{{"x":{{"_placeholder":true,"num":1}}}}]"#,
        base64("1")
    );
    assert_eq!(hear(&mut client), expected);
    assert_eq!((client.frame().payload, client.frame().payload), (b"two".to_vec(), b"one".to_vec()));
    // What only looks like bytes is no bytes.
    let placeholder = base64(r#"{"_placeholder":true,"num":0}"#);
    say(&mut client, format!("42/guild/7,[\"echo\",{placeholder}]"));
    assert_eq!(hear(&mut client), format!("42/guild/7,[\"echoed\",{}]", base64(&placeholder)));
    // A namespace without an encoding has none.
    let mut other = open(&server, "/plain");
    say(&mut other, format!("42/plain,[\"echo\",{}]", base64("1")));
    assert_eq!(hear(&mut other), format!("42/plain,[\"echoed\",{}]", base64("1")));
}

#[test]
fn each_argument_is_message_pack() {
    let (server, _file) = with_file(FILE, &["limits.message_bytes_max=64KiB"]);
    let mut client = open(&server, "/packed");
    // {"a":[1,true]} and 7 as it is.
    say(&mut client, r#"451-/packed,["echo",{"_placeholder":true,"num":0},7]"#);
    client.send(frame(FIN | BINARY, b"\x81\xa1a\x92\x01\xc3"));
    let two = r#"{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}"#;
    assert_eq!(hear(&mut client), format!(r#"452-/packed,["echoed",{two}]"#));
    assert_eq!(
        (client.frame().payload, client.frame().payload),
        (b"\x81\xa1a\x92\x01\xc3".to_vec(), vec![7])
    );
    // No MessagePack: bytes.
    say(&mut client, r#"451-/packed,9["same",{"_placeholder":true,"num":0}]"#);
    client.send(frame(FIN | BINARY, b"\xc1\x00"));
    assert_eq!(hear(&mut client), r#"461-/packed,9[{"_placeholder":true,"num":0}]"#);
    assert_eq!(client.frame().payload, b"\xc1\x00");
    // The same bytes named again and again: no client does that, and it would be more than a message may be.
    let many = vec![r#"{"_placeholder":true,"num":0}"#; 1_000].join(",");
    say(&mut client, format!(r#"451-/packed,["echo",{many}]"#));
    client.send(frame(FIN | BINARY, [b"\xda\x03\xe8".as_slice(), &[b'x'; 1_000]].concat()));
    assert_eq!(client.closed().0, 1002);
    server.wait_for_number("connections", 0);
}

#[test]
fn who_shares_rooms_with_an_encoded_namespace_has_json() {
    let (server, _file) = with_file(FILE, &["plain.path=/app"]);
    let (mut socket, mut native) = (open(&server, "/"), server.client());
    let mut plain = server.socket("/app");
    native.join(&["a"]);
    say(&mut plain, r#"{"type":"join","room":"a","id":1}"#);
    assert!(hear(&mut plain).starts_with(r#"{"type":"ack""#));
    say(&mut socket, format!("421[\"join\",{}]", base64("\"a\"")));
    assert_eq!(hear(&mut socket), format!("431[{}]", base64(r#"{"rooms":{"a":{"members":2}}}"#)));
    native.publish("a", "from native", json!({"n": 1}));
    assert_eq!(hear(&mut socket), format!("42[\"from native\",{}]", base64(r#"{"n":1}"#)));
    assert_eq!(hear(&mut plain), r#"{"type":"from native","n":1}"#);
    say(&mut socket, format!("42[\"publish\",{}]", base64(r#"{"room":"a","event":"e","data":{"x":[2]}}"#)));
    native.hears("a", "e", json!({"x": [2]}));
    assert_eq!(hear(&mut plain), r#"{"type":"e","x":[2]}"#);
    native.say_binary(&json!({"type": "publish", "room": "a", "event": "bytes"}), b"\x01\xff");
    assert_eq!(hear(&mut socket), r#"451-["bytes",{"_placeholder":true,"num":0}]"#);
    assert_eq!(socket.frame().payload, b"\x01\xff");
}

#[test]
fn the_backend_has_json() {
    let backend = Backend::start();
    let rules = format!(
        "{FILE}\n[[routes]]\non = \"play\"\nbackend = true\n\n[[webhooks.events]]\nevent = \"same\"\n"
    );
    let settings = ["webhooks.linger_ms=0"];
    let (server, _file) = backend.server("encodings", &rules, &settings);
    let mut client = open(&server, "/guild/7");
    say(&mut client, format!("42/guild/7,0[\"play\",{}]", base64(r#"{"track":"Blue"}"#)));
    let call = backend.answers(
        "/event",
        json!({"emit": [{"event": "playing", "args": [{"n": 1}, 2]}], "ack": [{"done": true}]}),
    );
    assert_eq!((&call["event"], &call["args"]), (&json!("play"), &json!([{"track": "Blue"}])));
    assert_eq!(
        hear(&mut client),
        format!("42/guild/7,[\"playing\",{},{}]", base64(r#"{"n":1}"#), base64("2"))
    );
    assert_eq!(hear(&mut client), format!("43/guild/7,0[{}]", base64(r#"{"done":true}"#)));
    say(&mut client, format!("42/guild/7,[\"same\",{}]", base64("[1]")));
    let notice = backend.answers("/webhooks", Value::Null);
    assert_eq!(notice["notices"][0]["args"], json!([[1]]), "{notice}");
}

#[test]
fn redis_carries_json() {
    let redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let packed = FILE.replace("/packed", "/x").replace("/guild/*", "/packed");
    let start = |file: &str, name: &str| {
        let kept = Kept::new(name);
        fs::write(&kept.0, file).expect("the folder is ours");
        let mut server = Server::with_flags(&["--config", &kept.0.display().to_string(), "--set", &urls]);
        server.wait_for_log("connected to Redis");
        (server, kept)
    };
    // What is MessagePack in one process is base64 in the other.
    let (one, _one) = start(FILE, "encodings-redis-one");
    let (other, _other) = start(&packed, "encodings-redis-other");
    let (mut sender, mut heard) = (open(&one, "/packed"), open(&other, "/packed"));
    say(&mut heard, r#"42/packed,0["join","a"]"#);
    assert!(hear(&mut heard).starts_with("43/packed,0["));
    let text = eventually("the event of the other process", || {
        say(&mut sender, r#"451-/packed,["publish",{"_placeholder":true,"num":0}]"#);
        // {"room":"a","event":"e","data":[1]}
        sender.send(frame(FIN | BINARY, b"\x83\xa4room\xa1a\xa5event\xa1e\xa4data\x91\x01"));
        heard.set_patience(std::time::Duration::from_millis(300));
        heard.try_frame().ok().map(|frame| String::from_utf8(frame.payload).expect("text"))
    });
    assert_eq!(text, format!("42/packed,[\"e\",{}]", base64("[1]")));
}

#[test]
fn clients_of_npm_agree_with_us() {
    let redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let settings = [PATIENT, "socketio.recovery_ms=5000", &urls, "redis.cluster=socketio"];
    let (mut server, _file) = with_file(FILE, &settings);
    server.wait_for_log("connected to Redis");
    let mut script = node("node/encodings.mjs");
    script.args([format!("http://{}", server.address()), format!("--redis={}", redis.url())]);
    check(script, NODE, 20);
}
