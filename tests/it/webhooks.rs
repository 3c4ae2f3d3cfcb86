//! Webhooks: what the backend is told of connections, rooms and events. A backend in Python checks the signatures with its own code; it is
//! stopped, slowed and made to answer nonsense, and each connection's story is told whole and in order all the same. What does not fit is
//! counted and told. A stream of Redis takes the place of the backend, and a consumer takes over what another has left undone.

use crate::access::{SECRET as TOKEN_SECRET, token};
use crate::cluster::Socket;
use crate::foreign;
use crate::harness::clock::{now, rest};
use crate::harness::raw::frame;
use crate::harness::redis::{Redis, folder, free_port};
use crate::harness::{Client, Raw, Response, Server, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECRET: &str = "a secret of the webhooks";
const BACKEND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/python/webhooks.py");
const ALL: &str = r#"webhooks.kinds=["connected","disconnected","occupied","vacated"]"#;
/// Sent again soon, and long enough.
const EAGER: [&str; 4] =
    ["webhooks.backoff_max_ms=200", "webhooks.linger_ms=5", "backend.rest_ms=50", "backend.timeout_ms=1000"];
const FIN_TEXT: u8 = 0x81;
const FIN_BINARY: u8 = 0x82;

/// The backend in Python.
struct Backend {
    child: Child,
    port: u16,
    journal: PathBuf,
}

impl Backend {
    fn start() -> Backend {
        let (port, journal) = (free_port(), folder().join("journal"));
        let child = Backend::spawn(port, &journal);
        Backend { child, port, journal }
    }

    fn spawn(port: u16, journal: &PathBuf) -> Child {
        let mut python = Command::new("python3");
        python.arg(BACKEND).arg(port.to_string()).arg(journal).arg(SECRET).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap_or_else(|error| panic!("{error}; {}", foreign::PYTHON));
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it says so");
        assert_eq!(line.trim(), "listening");
        child
    }

    fn url(&self) -> String {
        format!("backend.url=http://127.0.0.1:{}/throng", self.port)
    }

    /// A server that tells this backend what it is asked to, with these events besides.
    fn server(&self, events: &str, settings: &[&str]) -> Server {
        let (url, secret) = (self.url(), format!("backend.secret={SECRET}"));
        server(events, &[&[&*url, &*secret], &EAGER[..], settings].concat())
    }

    fn request(&self, method: &str, path: &str, more: &str, body: &str) -> Response {
        let mut raw = Raw::connect(SocketAddr::from(([127, 0, 0, 1], self.port)));
        let length = body.len();
        raw.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: backend\r\nConnection: close\r\n{more}Content-Length: {length}\r\n\r\n{body}"
        ));
        raw.response()
    }

    /// From now on it answers like this.
    fn behaves(&self, how: &str) {
        assert_eq!(self.request("PUT", &format!("/as/{how}"), "", "").status, 204);
    }

    /// What it has taken so far, and how it is.
    fn seen(&self) -> Value {
        serde_json::from_str(&self.request("GET", "/seen", "", "").body).expect("JSON")
    }

    /// The notices that it has got, batch by batch.
    fn notices(&self) -> Vec<Value> {
        let seen = self.seen();
        let batches = seen["batches"].as_array().expect("batches");
        batches.iter().flat_map(|batch| batch["notices"].as_array().expect("notices").clone()).collect()
    }

    /// How many notices it was told are lost.
    fn told_lost(&self) -> u64 {
        let seen = self.seen();
        let batches = seen["batches"].as_array().expect("batches");
        batches.iter().map(|batch| batch["lost"].as_u64().expect("a number")).sum()
    }

    /// Waits for notices of this kind, so many.
    fn wait_for(&self, kind: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} notices {kind}"), || {
            let found: Vec<Value> =
                self.notices().into_iter().filter(|notice| notice["kind"] == kind).collect();
            (found.len() >= count).then_some(found)
        })
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs and is ours");
    }

    fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    fn start_again(&mut self) {
        self.child = Backend::spawn(self.port, &self.journal);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // An error means that it has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(self.journal.parent().expect("a folder")).ok();
    }
}

/// A server with these tables in its file, and these settings.
fn server(tables: &str, settings: &[&str]) -> Server {
    let folder = folder();
    let file = folder.join("throng.toml");
    fs::write(&file, tables).expect("the folder is ours");
    let mut flags = vec!["--config", file.to_str().expect("text")];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    let server = Server::with_flags(&flags);
    fs::remove_dir_all(folder).ok();
    server
}

/// The notices of each connection, in the order in which they came.
fn stories(notices: &[Value]) -> BTreeMap<String, Vec<Value>> {
    let mut stories: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for notice in notices {
        if let Some(id) = notice["connection"].as_str() {
            stories.entry(id.to_owned()).or_default().push(notice.clone());
        }
    }
    stories
}

#[test]
fn the_backend_is_told_who_comes_and_goes_and_what_is_said() {
    let backend = Backend::start();
    let tables = "[[webhooks.events]]\nevent = \"bid\"\n\
                  [[webhooks.events]]\nevent = \"*\"\nnamespace = \"/chat\"\n";
    let secret = format!("auth.secret={TOKEN_SECRET}");
    let mut server = backend.server(
        tables,
        &[ALL, &secret, r#"socketio.namespaces=["/","/chat"]"#, "server.node=box1", "auth.timeout_ms=60000"],
    );
    let mut ada = Client::over(server.raw(), &format!("/ws?token={}", token(&["--user", "ada"])), &[]);
    ada.join(&["auction:7"]);
    assert_eq!(
        ada.ask(json!({"type": "publish", "room": "auction:7", "event": "bid", "data": {"amount": 1}}))["type"],
        "ack"
    );
    assert_eq!(ada.ask(json!({"type": "publish", "room": "auction:7", "event": "other"}))["type"], "ack");
    ada.say_binary(
        &json!({"type": "publish", "room": "auction:7", "event": "bid", "id": 77}),
        b"\x00\x01\xff",
    );
    assert_eq!(ada.answer_to(&json!(77))["type"], "ack");
    assert_eq!(ada.close(4321), 4321);

    let mut socket = Socket::open_in(&server, "/chat", &["hall"]);
    socket.say("2", r#"["say",{"text":"hi \"you\""},[1,2.5,null]]"#);
    socket.ask(&json!(["auth", {"token": "secret.to.all"}]));
    socket.ask(&json!(["publish", {"rooms": [], "event": "e"}]));
    // Two attachments, in a namespace; then the client leaves it.
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    raw.frame();
    raw.send(frame(FIN_TEXT, "40/chat,"));
    raw.frame();
    let two = r#"452-/chat,["file",{"_placeholder":true,"num":0},{"a":{"_placeholder":true,"num":1}}]"#;
    raw.send(frame(FIN_TEXT, two));
    raw.send(frame(FIN_BINARY, b"one"));
    raw.send(frame(FIN_BINARY, [0xff, 0xfe]));
    raw.send(frame(FIN_TEXT, "41/chat,"));
    backend.wait_for("disconnected", 2);
    let socket_id = socket.id.clone();
    drop(socket);
    backend.wait_for("disconnected", 3);
    backend.wait_for("vacated", 2);

    let notices = backend.notices();
    let ids: BTreeSet<&str> = notices.iter().map(|notice| notice["id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), notices.len(), "each has an id of its own");
    let mut stories = stories(&notices)
        .into_values()
        .map(|story| {
            let mut story = story;
            for notice in &mut story {
                let notice = notice.as_object_mut().expect("an object");
                assert!(notice.remove("at_ms").and_then(|at| at.as_u64()) > Some(1_600_000_000_000));
                notice.remove("id");
                notice.remove("connection");
                notice.remove("duration_ms");
            }
            story
        })
        .collect::<Vec<_>>();
    stories.sort_by_key(|story| story.len());
    let native = |kind: &str, more: Value| {
        let mut notice = json!({"kind": kind, "dialect": "native", "user": "ada"});
        notice.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        notice
    };
    let chat = |kind: &str, more: Value| {
        let mut notice = json!({"kind": kind, "dialect": "socketio", "namespace": "/chat"});
        notice.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        notice
    };
    let expected = [
        vec![
            chat("connected", json!({"address": "127.0.0.1"})),
            chat(
                "event",
                json!({
                    "event": "file",
                    "args": [{"_placeholder": true, "num": 0}, {"a": {"_placeholder": true, "num": 1}}],
                    "attachments": ["b25l", "//4="],
                }),
            ),
            chat("disconnected", json!({"reason": "client"})),
        ],
        vec![
            native("connected", json!({"address": "127.0.0.1"})),
            native("event", json!({"event": "bid", "rooms": ["auction:7"], "args": [{"amount": 1}]})),
            native(
                "event",
                json!({"event": "bid", "rooms": ["auction:7"],
                "args": [{"_placeholder": true, "num": 0}], "attachments": ["AAH/"]}),
            ),
            native("disconnected", json!({"reason": "client", "code": 4321})),
        ],
        vec![
            chat("connected", json!({"address": "127.0.0.1"})),
            chat("event", json!({"event": "join", "args": ["hall"]})),
            chat("event", json!({"event": "say", "args": [{"text": "hi \"you\""}, [1, 2.5, null]]})),
            chat("disconnected", json!({"reason": "lost"})),
        ],
    ];
    // The two of the same length in whatever order; the token is told to nobody, nor what was refused.
    let texts = |stories: &[Vec<Value>]| {
        stories.iter().map(|story| json!(story).to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(texts(&stories), texts(&expected));
    assert!(notices.iter().any(|notice| notice["connection"] == *socket_id), "by the id that clients know");
    let rooms: Vec<(&str, &str, &str)> = notices
        .iter()
        .filter_map(|notice| {
            let text = |key: &str| notice[key].as_str();
            Some((text("kind")?, text("namespace")?, text("room")?))
        })
        .collect();
    for (namespace, room) in [("/", "auction:7"), ("/chat", "hall")] {
        let of: Vec<&str> =
            rooms.iter().filter(|it| (it.1, it.2) == (namespace, room)).map(|it| it.0).collect();
        assert_eq!(of, ["occupied", "vacated"], "{room}");
    }
    assert_eq!(rooms.len(), 4, "{rooms:?}");
    let seen = backend.seen();
    assert_eq!((&seen["refused"], &seen["batches"][0]["node"]), (&json!(0), &json!("box1")));

    // The backend's own check is one: the same again is genuine, and changed it is not.
    let last = |at: usize| seen["last"][at].as_str().expect("text");
    let post = |header: &str, body: &str| {
        let more = format!("Content-Type: application/json\r\nThrong-Signature: {header}\r\n");
        backend.request("POST", "/throng/webhooks", &more, body).status
    };
    assert_eq!(post(last(0), last(1)), 204);
    assert_eq!(post(last(0), &last(1).replacen("\"lost\":0", "\"lost\":1", 1)), 401);
    assert_eq!(post("t=1,v1=00", last(1)), 401);

    // The last ones go out before the end.
    let mut late = server.client();
    late.join(&["end"]);
    backend.wait_for("occupied", 3);
    server.signal(Signal::TERM);
    assert_eq!(late.closed().0, 1001);
    assert!(server.wait_for_exit().success());
    let gone = backend.notices();
    let last = gone.iter().rfind(|notice| notice["kind"] == "disconnected").expect("it is told");
    assert_eq!((&last["reason"], &last["code"]), (&json!("shutdown"), &json!(1001)));
    assert_eq!(gone.iter().filter(|notice| notice["kind"] == "vacated").count(), 3);
}

#[test]
fn sessions_that_come_back_are_told_as_such_and_rooms_by_members() {
    let backend = Backend::start();
    let server = backend.server("", &[ALL, "socketio.recovery_ms=60000", "server.shards=2"]);
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    raw.frame();
    raw.send(frame(FIN_TEXT, "40"));
    let joined = String::from_utf8(raw.frame().payload).expect("text");
    let joined: Value = serde_json::from_str(&joined[2..]).expect("JSON");
    raw.send(frame(FIN_TEXT, r#"421["join","hall"]"#));
    raw.frame();
    backend.wait_for("occupied", 1);
    raw.reset();
    backend.wait_for("vacated", 1);
    // On whatever shard.
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    raw.frame();
    raw.send(frame(FIN_TEXT, format!("40{}", json!({"pid": joined["pid"]}))));
    raw.frame();
    backend.wait_for("occupied", 2);
    backend.wait_for("connected", 2);
    let notices = backend.notices();
    let of_client: Vec<_> = notices
        .iter()
        .filter(|notice| notice["connection"] == joined["sid"])
        .map(|notice| (notice["kind"].as_str().expect("a kind"), notice["recovered"] == true))
        .collect();
    assert_eq!(of_client, [("connected", false), ("disconnected", false), ("connected", true)]);
    let rooms: Vec<_> = notices.iter().filter(|it| it["room"].is_string()).collect();
    assert!(rooms.iter().all(|it| it["room"] == "hall"), "{rooms:?}");
    assert_eq!(rooms.len(), 3);
}

#[test]
fn a_backend_that_fails_is_told_everything_in_order_when_it_is_well() {
    const EVENTS: usize = 4;
    let mut backend = Backend::start();
    let tables = "[[webhooks.events]]\nevent = \"step\"\n";
    let mut server =
        backend.server(tables, &[r#"webhooks.kinds=["connected","disconnected"]"#, "webhooks.batch_max=7"]);
    let mut clients = 0;
    let mut storm = |server: &Server| {
        for _ in 0..12 {
            let mut client = server.client();
            for number in 0..EVENTS {
                client.say(&json!({"type": "publish", "room": "nobody", "event": "step", "data": number}));
            }
            client.close(1000);
            clients += 1;
        }
    };
    let all = |kind: &str, server: &Server| {
        let kind = format!("kind=\"{kind}\"");
        server.metrics().sum("throng_webhooks_notices_total", &[&kind]) as usize
    };
    for how in ["500", "302", "long", "garbage", "silent", "429", "slow", "html", "forgetful", "well"] {
        backend.behaves(how);
        storm(&server);
    }
    backend.kill();
    storm(&server);
    backend.start_again();
    backend.signal(Signal::STOP);
    storm(&server);
    rest(Duration::from_millis(1500));
    backend.signal(Signal::CONT);
    storm(&server);
    let ended = clients;
    backend.wait_for("disconnected", ended);
    let notices = backend.notices();
    assert_eq!((all("connected", &server), all("event", &server)), (ended, ended * EVENTS));
    assert_eq!(notices.len(), ended * (EVENTS + 2), "all of them, each once");
    let stories = stories(&notices);
    assert_eq!(stories.len(), ended);
    for (id, story) in stories {
        let steps: Vec<String> =
            story.iter().map(|it| format!("{} {}", it["kind"].as_str().unwrap_or(""), it["args"])).collect();
        let expected =
            ["connected null", "event [0]", "event [1]", "event [2]", "event [3]", "disconnected null"];
        assert_eq!(steps, expected, "{id}");
    }
    let seen = backend.seen();
    assert_eq!((&seen["refused"], backend.told_lost()), (&json!(0), 0));
    assert!(seen["under_way_max"].as_u64() <= Some(4), "{}", seen["under_way_max"]);
    // The same batch has the same id each time.
    let metrics = server.metrics();
    assert!(metrics.sum("throng_webhooks_retries_total", &[]) > 0.0);
    eventually("nothing waits", || {
        let metrics = server.metrics();
        let waiting =
            ["throng_webhooks_waiting", "throng_webhooks_waiting_bytes", "throng_webhooks_oldest_seconds"];
        waiting.iter().all(|name| metrics.sum(name, &[]) == 0.0).then_some(())
    });
    server.wait_for_log("notices do not go out: they wait and are sent again");
    server.wait_for_log("notices go out again");
}

#[test]
fn what_does_not_fit_is_counted_and_told() {
    let backend = Backend::start();
    let tables = "[[webhooks.events]]\nevent = \"*\"\n";
    for (bound, most) in
        [("webhooks.waiting_max=30", 30), ("webhooks.waiting_bytes_max=65536", 65_536 / 2_000)]
    {
        let before = (backend.notices().len(), backend.told_lost());
        let server = backend.server(tables, &[bound]);
        backend.behaves("500");
        let mut client = server.client();
        let data = "x".repeat(2_000);
        for number in 0..100 {
            let answer =
                client.ask(json!({"type": "publish", "room": "a", "event": "e", "data": [number, data]}));
            assert_eq!(answer["type"], "ack", "nobody waits for the backend");
        }
        let count = |metric: &str, label: &str| server.metrics().sum(metric, &[label]) as usize;
        assert_eq!(count("throng_webhooks_notices_total", r#"kind="event""#), 100);
        let lost = count("throng_webhooks_lost_total", r#"reason="full""#);
        assert!(lost >= 100 - most && lost < 100, "{lost} of at least {}", 100 - most);
        eventually("they grow old", || {
            (server.metrics().sum("throng_webhooks_oldest_seconds", &[]) > 0.1).then_some(())
        });
        backend.behaves("well");
        // What waited comes, the oldest of all, and that others are lost is told with it or with the next.
        eventually("what waited comes", || (backend.notices().len() - before.0 == 100 - lost).then_some(()));
        client.ask(json!({"type": "publish", "room": "a", "event": "e"}));
        eventually("the loss is told", || (backend.told_lost() - before.1 == lost as u64).then_some(()));
        let notices = backend.notices();
        assert_eq!(notices[before.0]["args"][0][0], 0);
    }
}

/// Has a client publish so many events, some of which are poison for the backend.
fn publish_poison(server: &Server, count: usize, poison: &[usize]) {
    let mut client = server.client();
    for number in 0..count {
        let data = if poison.contains(&number) { json!("poison") } else { json!(number) };
        client.say(&json!({"type": "publish", "room": "nobody", "event": "step", "data": data}));
    }
    client.ask(json!({"type": "ping"}));
}

#[test]
fn a_notice_that_the_backend_cannot_stand_is_lost_alone() {
    let events = "[[webhooks.events]]\nevent = \"step\"\n";
    let check = |behaviour: &str, reason: &str, age_max_ms: u32, poison: &[usize]| {
        let backend = Backend::start();
        let age = format!("webhooks.age_max_ms={age_max_ms}");
        let server = backend.server(events, &["webhooks.batches_under_way_max=1", &age]);
        // They gather behind the first one.
        backend.behaves("500");
        publish_poison(&server, 100, poison);
        let before = backend.seen()["posts"].as_u64().expect("a number");
        backend.behaves(behaviour);
        let told = eventually("the others come", || {
            let notices = backend.notices();
            (notices.len() == 100 - poison.len()).then_some(notices)
        });
        let numbers: Vec<u64> = told.iter().filter_map(|notice| notice["args"][0].as_u64()).collect();
        assert!(numbers.is_sorted() && numbers.len() == told.len(), "{numbers:?}");
        let reason = format!("reason=\"{reason}\"");
        let lost = || server.metrics().sum("throng_webhooks_lost_total", &[&reason]) as usize;
        eventually("they are lost", || (lost() == poison.len()).then_some(()));
        let posts = backend.seen()["posts"].as_u64().expect("a number") - before;
        // A hundred can be halved seven times, and perhaps it was more than one batch.
        assert!(posts <= 14 * poison.len() as u64 + 40, "{posts}");
        backend.behaves("well");
        publish_poison(&server, 1, &[]);
        eventually("the loss is told", || (backend.told_lost() == poison.len() as u64).then_some(()));
        assert_eq!(server.metrics().sum("throng_webhooks_lost_total", &[]) as usize, poison.len());
    };
    check("poison-400", "refused", 600_000, &[37]);
    check("poison-400", "refused", 600_000, &[0, 50, 51, 52, 99]);
    check("poison-500", "expired", 5_000, &[63]);
}

#[test]
fn a_backend_that_fails_at_all_is_not_asked_for_each_notice() {
    let backend = Backend::start();
    let events = "[[webhooks.events]]\nevent = \"step\"\n";
    let server = backend.server(events, &["webhooks.batches_under_way_max=1", "webhooks.age_max_ms=500"]);
    backend.behaves("500");
    publish_poison(&server, 400, &[]);
    let lost = || server.metrics().sum("throng_webhooks_lost_total", &[r#"reason="expired""#]) as u64;
    eventually("all are too old", || (lost() == 400).then_some(()));
    let posts = backend.seen()["posts"].as_u64().expect("a number");
    assert!(posts < 100, "{posts}");
    assert!(backend.notices().is_empty());
}

#[test]
fn a_backend_that_says_when_is_asked_then() {
    let backend = Backend::start();
    let (url, secret) = (backend.url(), format!("backend.secret={SECRET}"));
    let with = |backoff_max: &str| {
        let kinds = r#"webhooks.kinds=["connected"]"#;
        server("", &[&url, &secret, kinds, "webhooks.linger_ms=5", backoff_max])
    };
    let posts = || backend.seen()["posts"].as_u64().expect("a number");
    let patient = with("webhooks.backoff_max_ms=10000");
    backend.behaves("429-2");
    let _one = patient.client();
    eventually("it is asked", || (posts() > 0).then_some(()));
    backend.behaves("well");
    let asked = now();
    backend.wait_for("connected", 1);
    // It may have been asked some time before it was seen to be.
    assert!(
        asked.elapsed() >= Duration::from_millis(1_000),
        "otherwise it would be asked again after 100 ms"
    );
    drop(patient);
    // But not never.
    let eager = with("webhooks.backoff_max_ms=300");
    backend.behaves("503-3600");
    let _two = eager.client();
    eventually("it is asked", || (posts() > 2).then_some(()));
    backend.behaves("well");
    backend.wait_for("connected", 2);
}

#[test]
fn what_is_refused_or_too_old_is_given_up_and_told() {
    let backend = Backend::start();
    let server = backend.server("", &[r#"webhooks.kinds=["connected"]"#, "webhooks.age_max_ms=300"]);
    let lost = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        server.metrics().sum("throng_webhooks_lost_total", &[&reason]) as u64
    };
    let until = |reason: &str, count: u64| {
        eventually(reason, || (lost(reason) == count).then_some(()));
    };
    backend.behaves("404");
    let _one = server.client();
    until("refused", 1);
    // The clocks are apart: the backend does not believe us.
    backend.behaves("ahead");
    let _two = server.client();
    until("refused", 2);
    backend.behaves("503");
    let _three = server.client();
    until("expired", 1);
    backend.behaves("well");
    let _four = server.client();
    eventually("it is told", || (backend.told_lost() == 3).then_some(()));
    assert_eq!(backend.notices().len(), 1);
}

#[test]
fn a_drain_does_not_wait_for_a_backend_that_is_away() {
    let mut backend = Backend::start();
    let mut server = backend.server("", &[r#"webhooks.kinds=["disconnected"]"#, "drain.timeout_ms=1500"]);
    let client = server.client();
    backend.kill();
    server.signal(Signal::TERM);
    client.closed();
    assert!(server.wait_for_exit().success());
    assert!(server.log().contains("notices are lost: they did not go out in the time to drain"));
}

#[test]
fn consumers_of_a_stream_share_the_work_and_take_over_from_each_other() {
    let mut redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let tables = "[[webhooks.events]]\nevent = \"step\"\n";
    let kinds = r#"webhooks.kinds=["connected","disconnected"]"#;
    let settings =
        ["webhooks.to=stream", &urls, kinds, "webhooks.backoff_max_ms=200", "webhooks.linger_ms=5"];
    let mut server = server(tables, &settings);
    server.wait_for_log("connected to Redis");
    let script = folder().join("consumer.py");
    fs::write(&script, example("# consumer.py")).expect("the folder is ours");
    let consumer = |name: &str| {
        let mut python = foreign::python("webhooks.py");
        let program = python.get_program().to_owned();
        python = Command::new(program);
        python.arg(&script).arg(name).env("REDIS_URL", redis.url()).env("IDLE_MS", "200");
        Consumer::start(python)
    };
    let publish = |server: &Server, numbers: std::ops::Range<u64>| {
        let mut client = server.client();
        for number in numbers {
            client.ask(json!({"type": "publish", "room": "a", "event": "step", "data": number}));
        }
        client.close(1000);
    };
    let mut one = consumer("one");
    publish(&server, 0..50);
    one.wait_for(52);
    let group = |words: &[&str]| redis.cli(words);
    let all_is_done = || {
        eventually("all is done", || {
            group(&["XPENDING", "throng:webhooks", "backend"]).starts_with('0').then_some(())
        });
    };
    all_is_done();
    one.child.kill().expect("it is our child");
    one.child.wait().expect("it is our child");
    eventually("Redis has noticed", || {
        (!group(&["CLIENT", "LIST"]).contains("cmd=xreadgroup")).then_some(())
    });
    // It had read some more, and died before it was done with them.
    publish(&server, 50..60);
    eventually("they are there", || (group(&["XLEN", "throng:webhooks"]).trim() == "64").then_some(()));
    let read =
        group(&["XREADGROUP", "GROUP", "backend", "one", "COUNT", "5", "STREAMS", "throng:webhooks", ">"]);
    assert_eq!(read.matches("\"kind\":").count(), 5, "{read}");
    assert!(group(&["XPENDING", "throng:webhooks", "backend"]).starts_with('5'));
    let mut two = consumer("two");
    let taken = two.wait_for(12);
    assert_eq!(stories(&taken).len(), 1, "what was left and what was new");
    all_is_done();
    let all: Vec<Value> = one.lines().into_iter().chain(taken).collect();
    let ids: BTreeSet<&str> = all.iter().filter_map(|notice| notice["id"].as_str()).collect();
    assert_eq!((all.len(), ids.len()), (64, 64), "each once");
    for number in 0..60 {
        assert!(all.iter().any(|notice| notice["args"] == json!([number])), "{number}");
    }

    // A Redis that is away for a while: what happens meanwhile comes later, in order. It begins anew, and the group with it.
    drop(two);
    redis.pause();
    publish(&server, 60..70);
    rest(Duration::from_millis(300));
    redis.go_on();
    let read = |redis: &Redis| redis.cli(&["XRANGE", "throng:webhooks", "-", "+"]);
    eventually("they are there", || read(&redis).contains("\"args\":[69]").then_some(()));
    redis.kill();
    publish(&server, 70..80);
    redis.start_again();
    eventually("they are there", || read(&redis).contains("\"reason\"").then_some(()));
    let entries = read(&redis);
    let at: Vec<usize> =
        (70..80).map(|n| entries.find(&format!("\"args\":[{n}]")).expect("it is there")).collect();
    assert!(at.is_sorted());
    assert_eq!(server.metrics().sum("throng_webhooks_lost_total", &[]), 0.0);
    server.wait_for_log("notices do not go out: they wait and are sent again");
    fs::remove_dir_all(script.parent().expect("a folder")).ok();
}

#[test]
fn a_stream_keeps_about_as_many_as_it_may_and_is_told_what_was_lost() {
    let redis = Redis::start();
    // As docs/clustering.md has it without limits of addresses and users, and what docs/backend.md adds.
    let rules = "on >secret resetkeys resetchannels &throng* -@all +@connection -@dangerous +@pubsub +eval +evalsha +xadd ~notices";
    let user: Vec<&str> = ["ACL", "SETUSER", "throng"].into_iter().chain(rules.split(' ')).collect();
    assert_eq!(redis.cli(&user).trim(), "OK");
    let urls = format!("redis.urls={:?}", [redis.url().replace("//", "//throng:secret@")]);
    let settings = [
        "webhooks.to=stream",
        &urls,
        "webhooks.stream_entries_max=1000",
        "webhooks.stream=notices",
        "webhooks.waiting_max=500",
        "webhooks.backoff_max_ms=200",
    ];
    let mut server = server("[[webhooks.events]]\nevent = \"*\"\n", &settings);
    server.wait_for_log("connected to Redis");
    let mut client = server.client();
    let mut publish = |count: u64| {
        for number in 0..count {
            client.say(&json!({"type": "publish", "room": "a", "event": "e", "data": number}));
        }
        client.ask(json!({"type": "ping"}));
    };
    let nothing_waits = || {
        eventually("nothing waits", || {
            (server.metrics().sum("throng_webhooks_waiting", &[]) == 0.0).then_some(())
        });
    };
    redis.pause();
    publish(800);
    let lost = server.metrics().sum("throng_webhooks_lost_total", &[r#"reason="full""#]) as u64;
    assert!((300..800).contains(&lost), "{lost}");
    redis.go_on();
    nothing_waits();
    publish(1);
    nothing_waits();
    let entries = redis.cli(&["XRANGE", "notices", "-", "+"]);
    let told = entries.split("\"lost\":").skip(1).map(|rest| {
        let digits = rest.split('}').next().expect("an end");
        digits.parse::<u64>().expect("a number")
    });
    assert_eq!(told.sum::<u64>(), lost);
    for _ in 0..6 {
        publish(400);
        nothing_waits();
    }
    let length: u64 = redis.cli(&["XLEN", "notices"]).trim().parse().expect("a number");
    assert!((1000..1400).contains(&length), "{length}");
}

/// The example in docs/backend.md whose first line begins like this.
fn example(start: &str) -> String {
    let page = include_str!("../../docs/backend.md");
    let block = page
        .split("```")
        .find(|block| block.split_once('\n').is_some_and(|(_, code)| code.starts_with(start)));
    block
        .and_then(|block| block.split_once('\n'))
        .map(|(_, code)| code.to_owned())
        .expect("it is in the page")
}

/// A program that prints a notice on each line.
struct Consumer {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Consumer {
    fn start(mut command: Command) -> Consumer {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("Python is there");
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (writer, stdout) = (lines.clone(), child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let notice = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                writer.lock().expect("nobody panicked").push(notice);
            }
        });
        Consumer { child, lines }
    }

    fn lines(&self) -> Vec<Value> {
        self.lines.lock().expect("nobody panicked").clone()
    }

    fn wait_for(&mut self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} notices"), || {
            let lines = self.lines();
            (lines.len() >= count).then_some(lines)
        })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // An error means that it has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
