//! Applications whose whole server side is a backend of a few lines, `examples/backend`, each in Python and in Node: stock clients find in
//! them what they would find in a server of Socket.IO. The backend is stopped, killed, replaced by nonsense: clients are told, and stay.
//! And what the hooks do beyond that: native clients, bounds, what is kept and told.

use crate::foreign::{NODE, PATIENT, PYTHON, check, node, python};
use crate::harness::clock::{now, rest};
use crate::harness::redis::{Redis, free_port};
use crate::harness::{Heard, Raw, Server, WAIT, eventually, frame};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/backend");

/// A backend of an example, to be started.
#[derive(Clone, Copy, Debug)]
enum Language {
    Python,
    Node,
}

impl Language {
    fn command(self, app: &str) -> [String; 2] {
        match self {
            Language::Python => ["python3".to_owned(), format!("{EXAMPLES}/{app}/server.py")],
            Language::Node => ["node".to_owned(), format!("{EXAMPLES}/{app}/server.mjs")],
        }
    }
}

/// A server with the settings of an example and a backend at `port`. What the chat is told must not be late, however busy the machine is:
/// who waits for it would not hear it.
fn example(app: &str, port: u16) -> Server {
    let config = format!("{EXAMPLES}/{app}/throng.toml");
    let url = format!("backend.url=http://127.0.0.1:{port}");
    let timeout = if app == "chat" { "backend.timeout_ms=10000" } else { "backend.timeout_ms=1000" };
    let mut flags = vec!["--config", &config];
    for setting in [url.as_str(), timeout, "backend.failures_max=3", "backend.rest_ms=100", PATIENT] {
        flags.extend(["--set", setting]);
    }
    Server::with_flags(&flags)
}

/// A file of ours, like what a backend keeps, removed in the end.
pub(crate) struct Kept(pub(crate) PathBuf);

impl Kept {
    pub(crate) fn new(name: &str) -> Kept {
        let file = format!("backend-{name}-{}", std::process::id());
        Kept(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It is there unless the backend was not.
        fs::remove_file(&self.0).ok();
    }
}

/// A backend of an example, as a process. It is killed when this is dropped.
struct Process(Child);

impl Process {
    fn start(language: Language, app: &str, port: u16, kept: &Kept) -> Process {
        let [program, script] = language.command(app);
        let mut command = Command::new(&program);
        command.args([&script, &port.to_string()]).arg(&kept.0).stdin(Stdio::null());
        let process = Process(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")));
        eventually("the backend listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Has the stock clients of npm, which start the backend, look at an application.
fn check_with_node(app: &str, language: Language, checks_min: u32) {
    let port = free_port();
    let server = example(app, port);
    let kept = Kept::new(&format!("{app}-{language:?}"));
    let mut script = node("node/backend_apps.mjs");
    script.args([&format!("http://{}", server.address()), app, &port.to_string()]);
    script.args(language.command(app)).arg(port.to_string()).arg(&kept.0);
    check(script, NODE, checks_min);
    server.wait_for_number("connections", 0);
    server.wait_for_number("sockets", 0);
    server.wait_for_number("rooms", 0);
    let is_settled = || server.metrics().sum("throng_backend_calls_waiting", &[]) == 0.0;
    eventually("all calls are settled", || is_settled().then_some(()));
}

/// Has the stock clients of PyPI look at an application.
fn check_with_python(app: &str, language: Language) {
    let port = free_port();
    let server = example(app, port);
    let kept = Kept::new(&format!("python-{app}-{language:?}"));
    let _backend = Process::start(language, app, port, &kept);
    let mut script = python("backend_apps.py");
    script.args([&format!("http://{}", server.address()), app]);
    check(script, PYTHON, 3);
    server.wait_for_number("connections", 0);
    server.wait_for_number("rooms", 0);
}

#[test]
fn clients_of_npm_find_an_echo_application_in_a_backend_in_python() {
    check_with_node("echo", Language::Python, 36);
}

#[test]
fn clients_of_npm_find_an_echo_application_in_a_backend_in_node() {
    check_with_node("echo", Language::Node, 36);
}

#[test]
fn clients_of_npm_find_the_chat_of_the_tutorial_in_a_backend_in_python() {
    check_with_node("chat", Language::Python, 13);
}

#[test]
fn clients_of_npm_find_the_chat_of_the_tutorial_in_a_backend_in_node() {
    check_with_node("chat", Language::Node, 13);
}

#[test]
fn clients_of_pypi_find_both_applications_in_backends_in_either_language() {
    for language in [Language::Python, Language::Node] {
        check_with_python("echo", language);
        check_with_python("chat", language);
    }
}

/// A backend within the test: it answers what it is told to answer, and what it was asked can be looked at.
pub(crate) struct Backend {
    port: u16,
    calls: Receiver<Call>,
}

/// What it was asked, and where its answer goes: none is an error.
pub(crate) struct Call {
    path: String,
    body: Value,
    signature: Option<String>,
    answer: Sender<Option<Value>>,
}

impl Backend {
    /// A backend that answers each call as the test says, one after the other.
    pub(crate) fn start() -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let (sender, calls) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || serve(stream, &sender));
            }
        });
        Backend { port, calls }
    }

    /// A server that asks this backend, with `file` for the rest of its configuration.
    pub(crate) fn server(&self, name: &str, file: &str, settings: &[&str]) -> (Server, Kept) {
        let kept = Kept::new(name);
        fs::write(&kept.0, file).expect("the folder is ours");
        let path = kept.0.display().to_string();
        let url = format!("backend.url=http://127.0.0.1:{}", self.port);
        let mut flags = vec!["--config", &path, "--set", &url];
        flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        (Server::with_flags(&flags), kept)
    }

    /// The next call, which must be to this path.
    fn next(&self, path: &str) -> Call {
        let call = self.calls.recv_timeout(WAIT).unwrap_or_else(|_| panic!("nobody asks {path}"));
        assert_eq!(call.path, path, "{}", call.body);
        call
    }

    /// Answers the next call, which must be to this path.
    pub(crate) fn answers(&self, path: &str, answer: Value) -> Value {
        let Call { body, answer: back, .. } = self.next(path);
        back.send(Some(answer)).expect("it waits for that");
        body
    }
}

impl Call {
    fn answer(self, answer: Value) {
        self.answer.send(Some(answer)).expect("it waits for that");
    }

    fn fail(self) {
        self.answer.send(None).expect("it waits for that");
    }
}

/// Serves one connection, to its end.
fn serve(stream: TcpStream, calls: &Sender<Call>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let length = header("content-length").and_then(|text| text.parse().ok()).expect("a length");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the body follows its head");
        let (answer, back) = channel();
        let call = Call {
            path: head.split(' ').nth(1).expect("a path").to_owned(),
            body: serde_json::from_slice(&body).expect("it is JSON"),
            signature: header("throng-signature"),
            answer,
        };
        if calls.send(call).is_err() {
            return;
        }
        let Ok(answer) = back.recv() else { return };
        let (status, body) = match answer {
            None => ("500 Oh", String::new()),
            Some(Value::Null) => ("200 OK", String::new()),
            Some(answer) => ("200 OK", answer.to_string()),
        };
        let response = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if reader.get_mut().write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

/// All events are the backend's.
const EVENTS: &str = "[[routes]]\non = \"*\"\nbackend = true\n";

#[test]
fn native_clients_ask_the_backend() {
    let backend = Backend::start();
    let (server, _file) =
        backend.server("native", EVENTS, &["backend.secret=0123456789abcdef", "backend.failures_max=100"]);
    let mut anna = server.client();
    let mut ben = server.client();
    ben.join(&["lobby"]);
    anna.say(&json!({"type": "call", "event": "hello", "data": {"a": [1]}, "id": "x"}));
    let call = backend.next("/event");
    let id = call.body["connection"].as_str().expect("an id").to_owned();
    let handshake = json!({"auth": null, "query": {}, "address": "127.0.0.1"});
    let expected = json!({"connection": id, "namespace": "/", "user": null, "event": "hello", "args": [{"a": [1]}],
        "attachments": [], "wants_ack": true, "handshake": handshake});
    assert_eq!(call.body, expected);
    assert!(call.signature.is_some_and(|signature| signature.starts_with("t=")), "it is signed");
    call.answer.send(Some(json!({
        "join": ["lobby", "club"],
        "emit": [
            {"event": "own", "args": []},
            {"event": "own", "args": [1, 2]},
            {"event": "lobby", "data": {"b": 1}, "room": "lobby"},
            {"event": "others", "args": ["c"], "all": true, "except": [id]},
            {"event": "bytes", "args": [{"_placeholder": true, "num": 0}], "attachments": ["AP8="], "room": "club"},
            {"event": "inside", "args": [{"x": {"_placeholder": true, "num": 0}}], "attachments": ["AP8="]},
        ],
        "ack": [{"done": true}],
    }))).expect("it waits for that");
    let event = |event: &str, data: Value| json!({"type": "event", "event": event, "data": data});
    assert_eq!(anna.message(), event("own", Value::Null));
    assert_eq!(anna.message(), event("own", json!([1, 2])));
    anna.hears("lobby", "lobby", json!({"b": 1}));
    match anna.hear() {
        Heard::Binary(head, bytes) => {
            assert_eq!(head, json!({"type": "event", "room": "club", "event": "bytes"}));
            assert_eq!(bytes, [0, 255]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(anna.message(), event("inside", json!({"x": {"base64": "AP8="}})));
    assert_eq!(
        anna.message(),
        json!({"type": "ack", "id": "x", "data": {"done": true}}),
        "the ack comes last"
    );
    ben.hears("lobby", "lobby", json!({"b": 1}));
    assert_eq!(ben.message(), event("others", json!("c")));

    // Bytes go and come.
    anna.say_binary(&json!({"type": "call", "event": "bytes", "id": 1}), &[1, 254]);
    let placeholder = json!({"_placeholder": true, "num": 0});
    let call = backend
        .answers("/event", json!({"ack": [placeholder, 2], "attachments": ["AP8="], "leave": ["lobby"]}));
    assert_eq!((&call["args"], &call["attachments"]), (&json!([placeholder]), &json!(["Af4="])));
    assert_eq!(anna.message(), json!({"type": "ack", "id": 1, "data": [{"base64": "AP8="}, 2]}));
    ben.publish("lobby", "left", json!(1));

    // Nothing to say, no ack wanted, none that could be had.
    anna.say(&json!({"type": "call", "event": "nothing", "id": 2}));
    backend.answers("/event", Value::Null);
    assert_eq!(anna.message(), json!({"type": "ack", "id": 2, "data": null}));
    anna.say(&json!({"type": "call", "event": "quiet"}));
    assert_eq!(backend.answers("/event", json!({"ack": [1]}))["wants_ack"], false);
    anna.say(&json!({"type": "call", "event": "broken", "id": 3}));
    backend.next("/event").fail();
    let answer = anna.answer_to(&json!(3));
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("backend_failed")));
    anna.say(&json!({"type": "call", "event": "go", "id": 4}));
    backend.answers("/event", json!({"ack": [], "disconnect": {"code": 4100, "reason": "enough"}}));
    anna.answer_to(&json!(4));
    assert_eq!(anna.closed(), (4100, "enough".to_owned()));

    // A connection that has gone says nothing, but what it made happen happens.
    let mut chris = server.client();
    chris.say(&json!({"type": "call", "event": "last words"}));
    let call = backend.next("/event");
    chris.close(1000);
    server.wait_for_number("connections", 1);
    call.answer(json!({"join": ["lobby"], "emit": [{"event": "own"}, {"event": "heard", "args": [1], "room": "lobby"}]}));
    ben.hears("lobby", "heard", json!(1));
    ben.has_heard_all();
    let metrics = server.metrics();
    let count = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        metrics.sum("throng_backend_calls_total", &["call=\"event\"", &outcome])
    };
    assert_eq!((count("answered"), count("failed"), count("bad")), (6.0, 1.0, 0.0));
}

#[test]
fn what_an_answer_sends_reaches_other_processes() {
    let backend = Backend::start();
    let redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let mut throngs =
        ["one", "other"].map(|name| backend.server(&format!("process-{name}"), EVENTS, &[&urls]));
    throngs.iter_mut().for_each(|(throng, _)| drop(throng.wait_for_log("connected to Redis")));
    let [mut anna, mut ben] = [0, 1].map(|at| throngs[at].0.client());
    ben.join(&["lobby"]);
    anna.say(&json!({"type": "call", "event": "hello", "id": 1}));
    let emit = json!([
        {"event": "own", "args": [1]},
        {"event": "room", "args": [1], "room": "lobby"},
        {"event": "pair", "args": [1, 2], "room": "lobby"},
        {"event": "all", "args": [{"_placeholder": true, "num": 0}, 2], "attachments": ["AP8="], "all": true},
    ]);
    backend.answers("/event", json!({ "emit": emit }));
    assert_eq!(anna.message()["event"], "own");
    let all = json!({"type": "event", "event": "all", "data": [{"base64": "AP8="}, 2]});
    assert_eq!(anna.message(), all);
    anna.answer_to(&json!(1));
    ben.hears("lobby", "room", json!(1));
    ben.hears("lobby", "pair", json!([1, 2]));
    assert_eq!(ben.message(), all);
    ben.has_heard_all();
}

#[test]
fn only_events_that_a_rule_names_are_the_backends() {
    let backend = Backend::start();
    let rules = "[[routes]]\non = \"ours\"\nbackend = true\n";
    let (server, _file) = backend.server("rules", rules, &[]);
    let mut anna = server.client();
    assert_eq!(anna.refused(json!({"type": "call", "event": "theirs"})), "bad_event");
    assert_eq!(anna.refused(json!({"type": "call", "event": "connect"})), "bad_event");
    assert_eq!(anna.refused_text(r#"{"type":"call"}"#)["code"], "bad_message");
    anna.say(&json!({"type": "call", "event": "ours", "id": 1}));
    backend.answers("/event", json!({}));
    anna.answer_to(&json!(1));
}

#[test]
fn what_waits_is_bounded_and_told() {
    let backend = Backend::start();
    let settings =
        ["backend.waiting_per_connection_max=2", "backend.waiting_max=3", "backend.requests_max=1"];
    let (server, _file) = backend.server("bounds", EVENTS, &settings);
    let (mut anna, mut ben) = (server.client(), server.client());
    let call = |id: u32| json!({"type": "call", "event": "e", "data": id, "id": id});
    (1..=3).for_each(|id| anna.say(&call(id)));
    let refused = anna.answer_to(&json!(3));
    assert_eq!((&refused["code"], refused["retry_ms"].is_u64()), (&json!("overloaded"), true));
    (4..=5).for_each(|id| ben.say(&call(id)));
    assert_eq!(ben.answer_to(&json!(5))["code"], "overloaded", "three wait in all");
    assert_eq!(server.metrics().sum("throng_backend_calls_waiting", &[]), 3.0);
    assert_eq!(server.metrics().sum("throng_backend_calls_refused_total", &[]), 2.0);
    // Each connection's own are asked one after the other.
    let mut asked: Vec<i64> = (0..3)
        .map(|_| backend.answers("/event", json!({"ack": ["ok"]}))["args"][0].as_i64().expect("a number"))
        .collect();
    let first = asked.iter().position(|id| *id == 1);
    assert!(first < asked.iter().position(|id| *id == 2), "{asked:?}");
    asked.sort_unstable();
    assert_eq!(asked, [1, 2, 4]);
    let answers = [anna.answer_to(&json!(1)), anna.answer_to(&json!(2)), ben.answer_to(&json!(4))];
    assert!(answers.iter().all(|answer| answer["data"] == "ok"), "{answers:?}");
    eventually("all calls are settled", || {
        (server.metrics().sum("throng_backend_calls_waiting", &[]) == 0.0).then_some(())
    });
}

/// A Socket.IO client over a WebSocket whose packets are written by hand.
struct Socket(Raw);

impl Socket {
    /// Behind the handshake, which is taken.
    fn open(server: &Server, query: &str) -> Socket {
        let mut socket = Socket(server.socket(&format!("/socket.io/?EIO=4&transport=websocket{query}")));
        assert!(socket.hears().starts_with("0{"), "a handshake");
        socket
    }

    fn say(&mut self, packet: &str) {
        self.0.send(frame(0x81, packet));
    }

    fn hears(&mut self) -> String {
        let heard = String::from_utf8(self.0.frame().payload).expect("text");
        if heard == "2" {
            self.say("3");
            return self.hears();
        }
        heard
    }
}

/// The namespaces that concern the backend in every way, with all events.
fn all_of(name: &str) -> String {
    format!(
        "{EVENTS}[[namespaces]]\nname = \"{name}\"\nbackend = [\"connect\", \"connected\", \"disconnected\"]\n"
    )
}

#[test]
fn silence_is_for_what_the_backend_does_not_answer_and_nothing_is_confirmed_then() {
    let backend = Backend::start();
    let route =
        "[[routes]]\non = \"e\"\nfields = { n = \"number\" }\nbackend = true\nreply = { event = \"sent\" }\n";
    let settings = ["backend.failure=silence", "backend.waiting_per_connection_max=1"];
    let (server, _file) = backend.server("silence", route, &settings);
    let mut socket = Socket::open(&server, "");
    socket.say("40");
    assert!(socket.hears().starts_with("40"));
    socket.say(r#"420["e",{}]"#);
    let told = socket.hears();
    assert!(told.starts_with("430[") && told.contains("`n` is missing"), "the route refuses it: {told}");
    socket.say(r#"421["e",{"n":1}]"#);
    assert_eq!(socket.hears(), r#"42["sent",{"n":1}]"#);
    socket.say(r#"422["e",{"n":2}]"#);
    eventually("one too many waits", || {
        (server.metrics().sum("throng_backend_calls_refused_total", &[]) == 1.0).then_some(())
    });
    backend.answers("/event", json!({"ack": ["ok"]}));
    assert_eq!(socket.hears(), r#"431["ok"]"#, "nothing was said of the second, and nothing confirmed");
    socket.say(r#"423["e",{"n":3}]"#);
    assert_eq!(socket.hears(), r#"42["sent",{"n":3}]"#);
    backend.answers("/event", json!({"ack": ["ok"]}));
    assert_eq!(socket.hears(), r#"433["ok"]"#);
}

#[test]
fn what_a_client_said_when_it_connected_is_told_as_far_as_it_is_kept() {
    let backend = Backend::start();
    let (server, _file) = backend.server("handshake", &all_of("/*"), &["backend.handshake_bytes_max=100"]);
    let mut socket = Socket::open(&server, "&name=anna+b&x=1&x=2");
    let query = json!({"EIO": "4", "transport": "websocket", "name": "anna b", "x": ["1", "2"]});
    let told = |call: &Value| (call["handshake"]["auth"].clone(), call["handshake"]["query"].clone());
    let long = "x".repeat(100);
    for (namespace, auth, kept) in
        [("/a", json!({"a": 1}), json!({"a": 1})), ("/b", json!({"b": long}), Value::Null)]
    {
        socket.say(&format!("40{namespace},{auth}"));
        let asked = backend.answers("/connect", json!({"emit": [{"event": "welcome"}], "join": ["lobby"]}));
        assert_eq!(told(&asked), (auth.clone(), query.clone()), "{namespace}");
        let id = asked["connection"].as_str().expect("an id");
        assert_eq!(socket.hears(), format!("40{namespace},{{\"sid\":\"{id}\"}}"), "the id that was told");
        assert_eq!(socket.hears(), format!("42{namespace},[\"welcome\"]"));
        let connected = backend
            .answers("/connected", json!({"emit": [{"event": "hello", "args": [1], "room": "lobby"}]}));
        assert_eq!((told(&connected), &connected["recovered"]), ((auth, query.clone()), &json!(false)));
        assert_eq!(socket.hears(), format!("42{namespace},[\"hello\",1]"), "it has joined a room");
        socket.say(&format!("42{namespace},7[\"e\"]"));
        assert_eq!(told(&backend.answers("/event", json!({}))), (kept, query.clone()));
        assert_eq!(socket.hears(), format!("43{namespace},7[]"), "an ack without values");
    }
    socket.say("41/a,");
    let left = backend.answers("/disconnected", json!({}));
    assert_eq!((&left["namespace"], &left["reason"]), (&json!("/a"), &json!("client namespace disconnect")));
    assert_eq!(left["handshake"]["auth"], json!({"a": 1}));
    drop(socket);
    assert_eq!(backend.answers("/disconnected", json!({}))["reason"], "transport close");
    server.wait_for_number("connections", 0);
}

#[test]
fn a_client_that_waits_for_a_namespace_waits_as_with_node() {
    let backend = Backend::start();
    let settings = ["socketio.namespaces_per_connection_max=2"];
    let (server, _file) = backend.server("waiting", &all_of("/*"), &settings);
    // Others go on meanwhile, and not too many.
    let mut socket = Socket::open(&server, "");
    ["40/a,", "40/b,", "40/c,"].iter().for_each(|packet| socket.say(packet));
    assert_eq!(socket.hears(), r#"44/c,{"message":"Too many namespaces"}"#);
    let first = backend.next("/connect");
    first.answer(json!({"refuse": {"message": "no", "data": {"code": 7}}}));
    assert_eq!(socket.hears(), r#"44/a,{"message":"no","data":{"code":7}}"#);
    let second = backend.next("/connect");
    second.fail();
    let failed = r#"44/b,{"message":"the backend did not answer","data":{"code":"backend_failed"}}"#;
    assert_eq!(socket.hears(), failed);
    // One that was refused may be asked for again; an event in one that is waited for breaks the protocol.
    socket.say("40/a,");
    let waiting = backend.next("/connect");
    socket.say(r#"42/a,["e"]"#);
    let (code, reason) = socket.0.closed();
    assert_eq!((code, reason.as_str()), (1002, "a packet for a namespace that was not joined"));
    // It is gone when the backend lets it in, which is told so.
    waiting.answer(json!({"emit": [{"event": "welcome"}]}));
    assert_eq!(backend.answers("/disconnected", json!({}))["namespace"], "/a");
    let mut socket = Socket::open(&server, "");
    socket.say("40/a,");
    let waiting = backend.next("/connect");
    socket.say("40/a,");
    assert_eq!(socket.0.closed().1, "the namespace has been asked for");
    waiting.answer(json!({"refuse": {"message": "too late"}}));
    server.wait_for_number("connections", 0);
    eventually("all calls are settled", || {
        (server.metrics().sum("throng_backend_calls_waiting", &[]) == 0.0).then_some(())
    });
}

#[test]
fn who_comes_back_is_told_of_as_such() {
    let backend = Backend::start();
    let settings = ["socketio.recovery_ms=10000", "server.shards=4"];
    let (server, _file) = backend.server("recovered", &all_of("/"), &settings);
    let mut socket = Socket::open(&server, "");
    socket.say("40");
    let id = backend.answers("/connect", json!({"join": ["lobby"]}))["connection"].clone();
    backend.answers("/connected", json!({}));
    let connect: Value = serde_json::from_str(&socket.hears()[2..]).expect("JSON");
    drop(socket);
    let left = backend
        .answers("/disconnected", json!({"emit": [{"event": "missed", "args": [1], "room": "lobby"}]}));
    assert_eq!((&left["connection"], &left["reason"]), (&id, &json!("transport close")));
    let is_published = || server.metrics().sum("throng_publications_total", &[]) == 1.0;
    eventually("the event is published", || is_published().then_some(()));
    let mut socket = Socket::open(&server, "");
    socket.say(&format!("40{{\"pid\":{},\"b\":2}}", connect["pid"]));
    assert!(socket.hears().starts_with(r#"42["missed",1,""#), "it is not asked for again");
    assert!(socket.hears().contains(id.as_str().expect("an id")), "it is the same one");
    let back = backend.answers("/connected", json!({"emit": [{"event": "welcome back"}]}));
    assert_eq!((&back["connection"], &back["recovered"]), (&id, &json!(true)));
    assert_eq!(back["handshake"]["auth"]["b"], 2);
    assert!(socket.hears().starts_with(r#"42["welcome back""#));
    socket.say(r#"420["e"]"#);
    assert_eq!(backend.answers("/event", json!({"ack": [5]}))["handshake"]["auth"]["b"], 2);
    assert_eq!(socket.hears(), "430[5]");
}

#[test]
fn the_last_ones_to_leave_are_told_of_before_the_end() {
    let backend = Backend::start();
    for spread in ["drain.spread_ms=0", "drain.spread_ms=300"] {
        let (mut server, _file) = backend.server("drained", &all_of("/*"), &[spread, "server.shards=2"]);
        let sockets: Vec<Socket> = (0..4)
            .map(|_| {
                let mut socket = Socket::open(&server, "");
                // One connection's are told one after the other.
                for namespace in ["/a", "/b"] {
                    socket.say(&format!("40{namespace},"));
                    backend.answers("/connect", json!({}));
                    assert!(socket.hears().starts_with(&format!("40{namespace},")));
                    backend.answers("/connected", json!({}));
                }
                socket
            })
            .collect();
        server.signal(Signal::TERM);
        let count = sockets.len();
        sockets.into_iter().for_each(|mut socket| drop(socket.0.frame()));
        // Nobody is there any more, and the backend takes its time.
        rest(Duration::from_millis(200));
        for _ in 0..2 * count {
            assert_eq!(backend.answers("/disconnected", json!({}))["reason"], "server shutting down");
        }
        assert!(server.wait_for_exit().success());
        assert!(!server.log().contains("has not heard"));
    }
    // One that does not answer is not waited for.
    let (mut server, _file) =
        backend.server("undrained", &all_of("/*"), &["drain.timeout_ms=500", "drain.spread_ms=0"]);
    let mut socket = Socket::open(&server, "");
    socket.say("40/a,");
    backend.answers("/connect", json!({}));
    backend.answers("/connected", json!({}));
    server.signal(Signal::TERM);
    let _silent = backend.next("/disconnected");
    assert!(server.wait_for_exit().success());
    assert!(server.log().contains("the backend has not heard of all who left"));
}

#[test]
fn who_is_let_in_while_the_server_ends_is_told_of_as_gone() {
    let backend = Backend::start();
    let (mut server, _file) =
        backend.server("late", &all_of("/*"), &["drain.spread_ms=0", "drain.timeout_ms=8000"]);
    let mut socket = Socket::open(&server, "");
    socket.say("40/a,");
    let question = backend.next("/connect");
    server.signal(Signal::TERM);
    drop(socket.0.frame());
    drop(socket);
    rest(Duration::from_millis(300));
    question.answer(json!({}));
    assert_eq!(backend.answers("/disconnected", json!({}))["namespace"], "/a");
    assert!(server.wait_for_exit().success());
    assert!(!server.log().contains("has not heard"));
}

#[test]
fn who_ends_does_not_wait_for_answers_that_nobody_wants() {
    let backend = Backend::start();
    let (mut server, _file) = backend.server("idle", EVENTS, &["drain.spread_ms=0", "drain.timeout_ms=8000"]);
    let mut socket = Socket::open(&server, "");
    socket.say("40");
    assert!(socket.hears().starts_with("40"));
    socket.say(r#"42["e"]"#);
    let _unanswered = backend.next("/event");
    drop(socket);
    server.wait_for_number("connections", 0);
    let began = now();
    server.signal(Signal::TERM);
    assert!(server.wait_for_exit().success());
    assert!(began.elapsed() < Duration::from_secs(4), "the backend has five seconds to answer");
}

#[test]
fn an_event_with_two_tokens_lets_nobody_in() {
    let backend = Backend::start();
    let (server, _file) = backend.server("two", "", &["auth.callout=true"]);
    let mut socket = Socket::open(&server, "");
    socket.say("40");
    assert!(socket.hears().starts_with("40"));
    // Of what would the backend be asked, and what would be remembered?
    socket.say(r#"420["auth",{"token":"one","token":"two"}]"#);
    assert!(socket.hears().starts_with(r#"430[{"error":{"code":"token_"#));
}

#[test]
fn what_waits_for_a_verdict_counts_as_of_when_it_came() {
    let backend = Backend::start();
    let limits = ["auth.callout=true", "limits.messages_per_second_max=10", "limits.messages_burst_max=5"];
    let (server, _file) = backend.server("verdict", "", &limits);
    // Within the limit, though it is carried out at once.
    let mut anna = server.client();
    anna.say(&json!({"type": "auth", "token": "a", "id": "auth"}));
    let question = backend.next("/authenticate");
    for number in 0..8 {
        rest(Duration::from_millis(150));
        anna.say(&json!({"type": "ping", "id": number}));
    }
    question.answer(json!({"user": "anna"}));
    assert_eq!(anna.answer_to(&json!("auth"))["type"], "ack");
    for number in 0..8 {
        assert_eq!(anna.answer_to(&json!(number))["type"], "pong", "{number}");
    }
    // Beyond it, though it waits long.
    let mut ben = server.client();
    ben.say(&json!({"type": "auth", "token": "b", "id": "auth"}));
    let question = backend.next("/authenticate");
    (0..20).for_each(|number| ben.say(&json!({"type": "ping", "id": number})));
    rest(Duration::from_millis(1_500));
    question.answer(json!({"user": "ben"}));
    assert_eq!(ben.answer_to(&json!("auth"))["type"], "ack");
    let answers: Vec<Value> = (0..20).map(|number| ben.answer_to(&json!(number))).collect();
    let refused = answers.iter().filter(|answer| answer["code"] == "rate_limited").count();
    assert!((10..=16).contains(&refused), "{refused}");
    ben.ask(json!({"type": "ping"}));
}

#[test]
fn an_auth_that_cannot_be_read_is_none_that_lets_anybody_in() {
    let backend = Backend::start();
    let (asking, _file) = backend.server("auth", "", &["auth.callout=true"]);
    let secret = format!("auth.secret={}", crate::access::SECRET);
    let (checking, _other) = backend.server("auth-of-tokens", "", &[&secret]);
    let is_refused = |server: &Server, auth: &str| {
        let mut socket = Socket::open(server, "");
        socket.say(&format!("40{auth}"));
        let heard = socket.hears();
        assert!(heard.starts_with("44{") && heard.contains("this is no token"), "{auth}: {heard}");
    };
    is_refused(&asking, r#"{"session":"x","number":1e999}"#);
    is_refused(&asking, r#"{"token":"x","token":"y"}"#);
    is_refused(&checking, r#"{"token":"x","token":"y"}"#);
    let mut socket = Socket::open(&checking, "");
    socket.say(r#"40{"token":7,"number":1e999}"#);
    assert!(socket.hears().starts_with("40{"), "what is no token is the application's");
}

#[test]
fn what_the_backend_says_wrong_is_logged_briefly() {
    let backend = Backend::start();
    let (mut server, _file) = backend.server("brief", EVENTS, &[]);
    let mut anna = server.client();
    anna.say(&json!({"type": "call", "event": "e", "id": 1}));
    let long = "k".repeat(50_000);
    backend.answers("/event", json!({ long: 1 }));
    assert_eq!(anna.answer_to(&json!(1))["code"], "backend_failed");
    let line = server.wait_for_log("a call to the backend failed");
    assert!(line.to_string().len() < 400, "{line}");
}
