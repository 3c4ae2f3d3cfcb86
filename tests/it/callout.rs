//! Who clients are, as a backend says it: a real one in Python, which checks signatures with code of its own. It is slow, stopped, killed and made to
//! answer garbage, and clients are told what happened; the same question is asked once, and what was said is forgotten by order.

use crate::access::{SECRET as KEY_OF_TOKENS, token};
use crate::cluster::Fleet;
use crate::foreign::{PATIENT, PYTHON, SOCKETIO, check, python};
use crate::harness::clock::now;
use crate::harness::raw::{FIN, TEXT, upgrade_head};
use crate::harness::redis::Redis;
use crate::harness::{Client, Heard, Raw, Response, Server, eventually, frame};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

const SECRET: &str = "a secret of the backend";
const API_KEY: &str = "change-me-0123456789";

/// `callout_backend.py`, which ends with this.
struct Backend {
    child: Child,
    port: u16,
}

impl Backend {
    fn start() -> Backend {
        let mut script = python("callout_backend.py");
        let mut child = script.arg(SECRET).stdout(Stdio::piped()).spawn().expect("Python is there");
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("it prints its port");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("no port: {line}"));
        Backend { child, port }
    }

    /// What a server has to be told to ask it.
    fn settings(&self) -> Vec<String> {
        vec![
            format!("backend.url=http://127.0.0.1:{}/throng", self.port),
            format!("backend.secret={SECRET}"),
            "auth.callout=true".to_owned(),
            format!("api.key={API_KEY}"),
        ]
    }

    fn server(&self, more: &[&str]) -> Server {
        let settings = self.settings();
        Server::with(&settings.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> Response {
        let mut raw = Raw::connect(([127, 0, 0, 1], self.port).into());
        raw.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        raw.response()
    }

    fn mode(&self, mode: &str) {
        assert_eq!(self.exchange("POST", "/mode", mode).status, 200);
    }

    /// What it was asked so far.
    fn asked(&self) -> Vec<Value> {
        let body = self.exchange("GET", "/asked", "").body;
        serde_json::from_str(&body).expect("a list")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
        if signal == Signal::STOP {
            // Until one of its threads has taken the signal, the others go on.
            eventually("it has stopped", || {
                let stat =
                    fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it is there");
                stat.contains(") T ").then_some(())
            });
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // An error means that it has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What an upgrade with this token is answered with.
fn knock(server: &Server, token: &str) -> Response {
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws", &format!("Authorization: Bearer {token}\r\n")));
    raw.response()
}

fn open(server: &Server, token: &str) -> Client {
    Client::over(server.raw(), "/ws", &[("Authorization", &format!("Bearer {token}"))])
}

fn count(server: &Server, by: &str) -> f64 {
    server.metrics().sum("throng_callouts_total", &[&format!("by=\"{by}\"")])
}

/// Has the server forget what the backend has said.
fn forget(server: &Server, order: &Value) -> u16 {
    let mut raw = Raw::connect(server.control_address());
    let body = order.to_string();
    raw.send(format!(
        "POST /v1/auth/forget HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    raw.response().status
}

#[test]
fn a_native_client_is_who_the_backend_says() {
    let backend = Backend::start();
    let server = backend.server(&[
        "auth.required=true",
        r#"auth.callout_cookies=["session"]"#,
        "auth.token_bytes_max=4KiB",
    ]);
    let mut anna = Client::over(
        server.raw(),
        "/ws?token=user:anna&device=phone",
        &[("Origin", "http://a.example"), ("Cookie", "lang=en; session=4711")],
    );
    let question = json!({
        "token": "user:anna", "cookie": "session=4711", "address": "127.0.0.1", "origin": "http://a.example",
        "path": "/ws", "query": "device=phone",
    });
    assert_eq!(backend.asked(), [question]);
    assert_eq!(anna.join(&["inbox-anna", "auction-7"]), [0, 0], "it is in the first already");
    assert_eq!(anna.refused(json!({"type": "join", "rooms": ["other"]})), "forbidden");
    let mut by_cookie = Client::over(server.raw(), "/ws", &[("Cookie", "session=bert")]);
    assert_eq!(by_cookie.join(&["inbox-bert"]), [0]);
    open(&server, "number:17").join(&["any"]);

    let refused = |token: &str, status: u16, message: &str| {
        let response = knock(&server, token);
        assert_eq!((response.status, &response.json()["message"]), (status, &json!(message)), "{token}");
        assert!(response.header("www-authenticate").is_some_and(|text| text.starts_with("Bearer")));
    };
    refused("nonsense", 401, "the backend refuses this client");
    refused("forbidden:x", 401, "the backend refuses this client");
    refused("banned:bert", 401, "bert is banned: “hate”");
    refused("nobody:x", 401, "a token is needed");
    refused(&"long:".repeat(900), 401, "the token is too long");
    assert_eq!(knock(&server, "wrong:x").status, 503, "what it says cannot be read");

    // Those who bring nothing are not asked about.
    let asked = backend.asked().len();
    let mut late = server.client();
    assert_eq!(late.refused(json!({"type": "ping"})), "token_missing");
    assert_eq!(backend.asked().len(), asked);
    let error = late.ask(json!({"type": "auth", "token": "banned:bert"}));
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("token_refused"), &json!("bert is banned: “hate”"))
    );
    assert_eq!(late.closed(), (4010, "bert is banned: “hate”".to_owned()));
}

#[test]
fn tokens_that_throng_can_check_are_not_the_backends() {
    let backend = Backend::start();
    let server = backend.server(&[&format!("auth.secret={KEY_OF_TOKENS}")]);
    assert_eq!(knock(&server, &token(&["--user", "7"])).status, 101);
    assert_eq!(knock(&server, &token(&["--user", "7", "--expires", "0s"])).status, 101, "by the leeway");
    let forged = token(&["--user", "7"]).replace('.', ".x");
    assert_eq!(knock(&server, &forged).status, 401);
    assert_eq!(backend.asked(), [] as [Value; 0]);
    assert_eq!(knock(&server, "user:anna").status, 101);
    let mut nobody = server.client();
    assert_eq!(nobody.join(&["any"]), [0], "none is required");
    assert_eq!(nobody.ask(json!({"type": "auth", "token": "nobody:x"}))["type"], "ack");
    assert_eq!(nobody.ask(json!({"type": "auth", "token": token(&["--user", "7"])}))["type"], "ack");
    assert_eq!(nobody.refused(json!({"type": "auth", "token": "user:anna"})), "token_refused");
    assert_eq!(nobody.refused(json!({"type": "auth", "token": "nobody:x"})), "token_refused");
}

#[test]
fn what_comes_behind_a_token_is_carried_out_after_it() {
    let backend = Backend::start();
    let server = backend.server(&["auth.required=true"]);
    backend.mode("slow");
    let mut client = server.client();
    client.say_text(
        r#"[{"type":"auth","token":"user:anna","id":1},{"type":"join","rooms":["auction-7"],"id":2},{"type":"ping","id":3}]"#,
    );
    client.say(
        &json!({"type": "publish", "room": "auction-7", "event": "e", "data": 1, "echo": true, "id": 4}),
    );
    client.say_binary(
        &json!({"type": "publish", "room": "auction-7", "event": "e", "echo": true, "id": 5}),
        b"abc",
    );
    client.say(&json!({"type": "auth", "token": "user:bert", "id": 6}));
    client.say(&json!({"type": "ping", "id": 7}));
    client.ping(b"at once");
    assert!(matches!(client.hear(), Heard::Pong(payload) if payload == b"at once"));
    let mut answers = Vec::new();
    while answers.len() < 7 {
        match client.hear() {
            Heard::Text(answer, _) if answer.get("id").is_some() => answers.push(answer),
            Heard::Text(..) | Heard::Binary(..) => {}
            other => panic!("{other:?}"),
        }
    }
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7]);
    let kinds: Vec<&str> = answers.iter().filter_map(|answer| answer["type"].as_str()).collect();
    // Publishing is not among what it may; another user it cannot become.
    assert_eq!(kinds, ["ack", "ack", "pong", "error", "error", "error", "pong"]);

    // As much as a message may have, and not more.
    let mut client = server.client();
    client.say(&json!({"type": "auth", "token": "user:carl", "id": 1}));
    let long = json!({"type": "publish", "room": "auction-7", "event": "e", "data": "x".repeat(600_000)});
    client.say(&long);
    client.say(&long);
    assert_eq!(client.closed().0, 1013);

    // A request that waits, with frames behind it; and one that is given up.
    let mut raw = server.raw();
    let head = upgrade_head("/ws", "Authorization: Bearer user:dora\r\n");
    raw.send([head.as_bytes(), &frame(FIN | TEXT, r#"{"type":"ping","id":1}"#)].concat());
    raw.send(frame(FIN | TEXT, r#"{"type":"ping","id":2}"#));
    assert_eq!(raw.response().status, 101);
    for id in [1, 2] {
        assert_eq!(raw.frame().payload, format!(r#"{{"type":"pong","id":{id}}}"#).as_bytes());
    }
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws", "Authorization: Bearer user:emil\r\n"));
    server.wait_for_number("callouts/waiting", 1);
    raw.send(vec![b'x'; 20_000]);
    raw.ended();
    server.wait_for_number("callouts/waiting", 0);
    server.wait_for_number("receive_buffer_bytes", 0);
}

#[test]
fn stock_clients_of_socketio_are_who_the_backend_says() {
    let backend = Backend::start();
    for shards in ["server.shards=1", "server.shards=3"] {
        let settings = backend.settings();
        let more = [shards, PATIENT, "socketio.recovery_ms=5000", r#"auth.callout_cookies=["session"]"#];
        let mut flags = vec!["--config", SOCKETIO];
        let all = settings.iter().map(String::as_str).chain(more).chain([r#"socketio.connect_event="""#]);
        flags.extend(all.flat_map(|setting| ["--set", setting]));
        let server = Server::with_flags(&flags);
        let mut script = python("callout.py");
        script.arg(format!("http://{}", server.address()));
        check(script, PYTHON, 15);
        server.wait_for_number("connections", 0);
    }
    let asked = backend.asked();
    let is_there = |question: Value| assert!(asked.contains(&question), "{question} in {asked:?}");
    is_there(json!({"auth": {"password": "user:anna", "device": "phone"}, "address": "127.0.0.1"}));
    is_there(json!({"cookie": "session=anna", "address": "127.0.0.1", "path": "/socket.io/"}));
    is_there(json!({"token": "user:anna", "auth": {"token": "user:anna"}, "address": "127.0.0.1"}));
    let of_app = json!({"app": 1});
    assert!(asked.iter().all(|question| question["auth"] != of_app), "it was known who that is");
}

#[test]
fn the_same_is_asked_once() {
    const CLIENTS: usize = 100;
    let backend = Backend::start();
    let server = backend.server(&["auth.callout_refused_ms=1500"]);
    backend.mode("slow");
    let ask_all = |token: &str| {
        let mut raws: Vec<Raw> = (0..CLIENTS).map(|_| server.raw()).collect();
        let head = upgrade_head("/ws", &format!("Authorization: Bearer {token}\r\n"));
        raws.iter_mut().for_each(|raw| raw.send(&head));
        raws.iter_mut().map(|raw| raw.response().status).collect::<Vec<u16>>()
    };
    assert_eq!(ask_all("user:anna"), [101; CLIENTS]);
    assert_eq!(backend.asked().len(), 1);
    assert_eq!((count(&server, "asked"), count(&server, "shared")), (1.0, CLIENTS as f64 - 1.0));
    assert_eq!(knock(&server, "user:anna").status, 101);
    assert_eq!((count(&server, "known"), count(&server, "asked")), (1.0, 1.0));
    // Refusals are known for a shorter time.
    assert_eq!(ask_all("nonsense"), [401; CLIENTS]);
    assert_eq!(knock(&server, "nonsense").status, 401);
    assert_eq!(backend.asked().len(), 2);
    backend.mode("good");
    eventually("it is asked again", || {
        assert_eq!(knock(&server, "nonsense").status, 401);
        (backend.asked().len() == 3).then_some(())
    });
    let answers = server.stats()["callouts"]["answers"].clone();
    assert_eq!(answers, json!({"user": 1, "nobody": 0, "refused": 2, "failed": 0}));
    server.wait_for_number("callouts/waiting", 0);
    server.wait_for_number("callouts/known", 2);
}

#[test]
fn clients_are_told_when_the_backend_fails() {
    let mut backend = Backend::start();
    let mut server = backend.server(&[
        "backend.timeout_ms=500",
        "backend.failures_max=1000",
        "backend.answer_bytes_max=64KiB",
        "auth.callout_cache_ms=0",
    ]);
    let mut settled = open(&server, "user:anna");
    settled.join(&["auction-7"]);
    let port = backend.port;
    let check = |server: &Server, what: &str| {
        let response = knock(server, "user:anna");
        assert_eq!((response.status, response.header("retry-after")), (503, Some("5")), "{what}");
        assert_eq!(response.json()["error"], "auth_unavailable", "{what}");
        let mut client = server.client();
        let error = client.ask(json!({"type": "auth", "token": "user:anna"}));
        assert_eq!(
            (&error["code"], error["retry_ms"].is_u64()),
            (&json!("auth_unavailable"), true),
            "{what}"
        );
        assert_eq!(client.closed().0, 1013, "{what}");
        let mut socket = server.socket("/socket.io/?EIO=4&transport=websocket");
        assert_eq!(socket.frame().payload[0], b'0');
        socket.send(frame(FIN | TEXT, r#"40{"token":"user:anna"}"#));
        let told = String::from_utf8(socket.frame().payload).expect("text");
        assert!(told.starts_with("44{") && told.contains(r#""code":"auth_unavailable""#), "{what}: {told}");
    };
    for mode in ["500", "404", "204", "redirect", "html", "long", "garbage"] {
        backend.mode(mode);
        check(&server, mode);
    }
    backend.mode("good");
    assert_eq!(knock(&server, "user:anna").status, 101, "it is well again");
    backend.mode("once");
    assert_eq!(knock(&server, "user:anna").status, 101, "it is asked once more");
    backend.signal(Signal::STOP);
    check(&server, "it hangs");
    backend.signal(Signal::CONT);
    eventually("it goes on", || (knock(&server, "user:anna").status == 101).then_some(()));
    let line = server.wait_for_log("the backend has not said who clients are: they are told to come back");
    assert_eq!(line["level"], "WARN");
    assert!(!server.log().contains("user:anna"), "what was asked is secret");
    backend.child.kill().expect("it is our child");
    backend.child.wait().expect("it ends");
    check(&server, "nobody is there");
    // Who was let in stays.
    settled.join(&["auction-8"]);
    assert_eq!(settled.refused(json!({"type": "auth", "token": "user:anna"})), "auth_unavailable");
    settled.join(&["auction-9"]);
    assert!(port > 0 && server.metrics().sum("throng_callout_answers_total", &["answer=\"failed\""]) >= 24.0);
    server.wait_for_number("callouts/waiting", 0);
}

#[test]
fn a_backend_that_fails_is_left_in_peace_and_who_waits_is_bounded() {
    let backend = Backend::start();
    let server = backend.server(&[
        "backend.failures_max=2",
        "backend.rest_ms=1m",
        "backend.timeout_ms=20s",
        "auth.callout_waiting_max=5",
        "limits.handshake_timeout_ms=1500",
    ]);
    backend.signal(Signal::STOP);
    let mut raws: Vec<Raw> = (0..10).map(|_| server.raw()).collect();
    for (number, raw) in raws.iter_mut().enumerate() {
        raw.send(upgrade_head("/ws", &format!("Authorization: Bearer user:{number}\r\n")));
    }
    let began = now();
    let statuses: Vec<u16> = raws.iter_mut().map(|raw| raw.response().status).collect();
    assert_eq!(statuses, [503; 10]);
    assert!(began.elapsed() > Duration::from_secs(1), "five of them have waited for as long as they may");
    assert_eq!((count(&server, "full"), count(&server, "asked")), (5.0, 5.0));
    backend.signal(Signal::CONT);
    server.wait_for_number("callouts/waiting", 0);
    // What it said after that is known now.
    assert_eq!(knock(&server, "user:0").status + knock(&server, "user:9").status, 202);

    backend.mode("503");
    assert_eq!(knock(&server, "user:a").status, 503);
    let asked = backend.asked().len();
    let began = now();
    for _ in 0..20 {
        assert_eq!(knock(&server, "user:b").status, 503);
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(backend.asked().len(), asked, "it is left in peace");
    assert_eq!(knock(&server, "user:0").status, 101, "this is known");
    assert_eq!(server.metrics().sum("throng_backend_breaker", &[]), 2.0);
}

#[test]
fn who_waits_is_told_when_the_server_ends() {
    let backend = Backend::start();
    let mut server = backend.server(&[]);
    backend.signal(Signal::STOP);
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws", "Authorization: Bearer user:anna\r\n"));
    let mut client = server.client();
    client.say(&json!({"type": "auth", "token": "user:bert"}));
    server.wait_for_number("callouts/waiting", 2);
    server.signal(Signal::TERM);
    let response = raw.response();
    assert_eq!((response.status, response.header("retry-after")), (503, Some("5")));
    assert_eq!(client.closed().0, 1001);
    assert!(server.wait_for_exit().success());
}

#[test]
fn a_users_time_runs_out_unless_the_backend_says_more() {
    let backend = Backend::start();
    let server = backend.server(&["auth.leeway_ms=0", "auth.grace_ms=1000"]);
    let (ended, mut renewed) = (open(&server, "brief:anna"), open(&server, "brief:anna"));
    let began = now();
    assert_eq!(ended.closed(), (4011, "the token has expired".to_owned()));
    assert!(began.elapsed() > Duration::from_millis(900));
    drop(renewed);
    renewed = open(&server, "brief:anna");
    for _ in 0..3 {
        crate::harness::clock::rest(Duration::from_millis(1_200));
        assert_eq!(renewed.ask(json!({"type": "auth", "token": "brief:anna"}))["type"], "ack");
    }
    assert_eq!(renewed.ask(json!({"type": "auth", "token": "user:anna"}))["type"], "ack");
    crate::harness::clock::rest(Duration::from_millis(2_500));
    assert_eq!(renewed.ask(json!({"type": "ping"}))["type"], "pong");
    // For ever it is known already.
    let asked = backend.asked().len();
    assert_eq!(renewed.ask(json!({"type": "auth", "token": "user:anna"}))["type"], "ack");
    assert_eq!(backend.asked().len(), asked);
}

#[test]
fn what_the_backend_has_said_is_forgotten_in_all_processes() {
    let backend = Backend::start();
    let settings = backend.settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let fleet = Fleet::with(2, &settings);
    let [one, other] = fleet.throngs.as_slice() else { panic!("there are two") };
    let names = ["user:anna", "user:bert", "nobody:x", "nonsense"];
    let knock_all = || {
        for server in [one, other] {
            names.iter().for_each(|name| assert!([101, 401].contains(&knock(server, name).status)));
        }
        backend.asked().len()
    };
    let first = knock_all();
    assert_eq!(first, 8);
    assert_eq!(knock_all(), first, "all is known");
    let check = |order: Value, forgotten: usize| {
        let before = [one, other].map(|server| server.number("callouts/forgotten"));
        assert_eq!(forget(one, &order), 202);
        for (server, before) in [one, other].into_iter().zip(before) {
            server.wait_for_number("callouts/forgotten", before + forgotten as u64);
        }
        let asked = backend.asked().len();
        assert_eq!(knock_all(), asked + 2 * forgotten, "{order}");
    };
    check(json!({"user": "anna"}), 1);
    check(json!({"credential": "nonsense"}), 1);
    check(json!({"all": true}), 4);

    // Signed out everywhere, in whatever namespace.
    let (mut here, there, mut bert) =
        (open(one, "user:anna"), open(other, "user:anna"), open(other, "user:bert"));
    let mut socket = other.socket("/socket.io/?EIO=4&transport=websocket");
    assert_eq!(socket.frame().payload[0], b'0');
    socket.send(frame(FIN | TEXT, r#"40{"token":"user:anna"}"#));
    assert!(socket.frame().payload.starts_with(b"40{"));
    here.join(&["auction-7"]);
    assert_eq!(forget(one, &json!({"user": "anna", "disconnect": true})), 202);
    for gone in [here, there] {
        assert_eq!(gone.closed(), (4010, "signed out".to_owned()));
    }
    assert_eq!(socket.frame().payload, b"41");
    assert_eq!(socket.closed().0, 4010);
    bert.join(&["auction-7"]);

    let server = backend.server(&[]);
    for wrong in [
        json!({}),
        json!({"user": "7", "all": true}),
        json!({"all": false}),
        json!({"all": true, "disconnect": true}),
        json!({"user": ""}),
        json!({"user": 7}),
        json!({"users": ["7"]}),
    ] {
        assert_eq!(forget(&server, &wrong), 422, "{wrong}");
    }
    let without = Server::with(&[&format!("api.key={API_KEY}")]);
    assert_eq!(without.stats()["callouts"], Value::Null);
    assert_eq!(
        forget(&without, &json!({"user": "7", "disconnect": true})),
        202,
        "there is nothing to forget"
    );
}

#[test]
fn a_question_is_asked_anew_when_its_answer_is_to_be_forgotten_and_only_then() {
    let backend = Backend::start();
    let server = backend.server(&[]);
    backend.mode("slow");
    let check = |user: &str, expected: usize| {
        let before = backend.asked().len();
        let mut raw = server.raw();
        raw.send(upgrade_head("/ws", &format!("Authorization: Bearer user:anna{before}\r\n")));
        eventually("it is asked", || (backend.asked().len() > before).then_some(()));
        assert_eq!(
            forget(&server, &json!({"user": user.replace('*', &before.to_string()), "disconnect": true})),
            202
        );
        assert_eq!(raw.response().status, 101);
        assert_eq!(backend.asked().len() - before, expected, "{user}");
    };
    check("bert", 1);
    check("anna*", 2);
    assert_eq!(server.metrics().sum("throng_callout_repeats_total", &[]), 1.0);
}

#[test]
fn who_is_gone_is_not_asked_about() {
    let backend = Backend::start();
    // One of them is for such questions.
    let server = backend.server(&["backend.requests_max=2", "backend.timeout_ms=20s"]);
    backend.signal(Signal::STOP);
    let mut raws: Vec<Raw> = Vec::new();
    for number in 0..4 {
        let mut raw = server.raw();
        raw.send(upgrade_head("/ws", &format!("Authorization: Bearer user:{number}\r\n")));
        server.wait_for_number("callouts/waiting", number + 1);
        raws.push(raw);
    }
    let (mut last, mut first) = (raws.pop().expect("the last"), raws.swap_remove(0));
    drop(raws);
    server.wait_for_number("sockets", 2);
    backend.signal(Signal::CONT);
    assert_eq!((first.response().status, last.response().status), (101, 101));
    let asked: Vec<Value> = backend.asked().iter().map(|question| question["token"].clone()).collect();
    assert_eq!(asked, ["user:0", "user:3"]);
    assert_eq!(server.metrics().sum("throng_backend_problems_total", &["reason=\"unwanted\""]), 2.0);
    server.wait_for_number("callouts/waiting", 0);
}

#[test]
fn throngs_among_servers_of_node_forget_as_well() {
    let backend = Backend::start();
    let redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    for cluster in ["redis.cluster=socketio", "redis.cluster=socketio-sharded"] {
        let mut fleet = [0, 1].map(|_| backend.server(&[&urls, cluster]));
        fleet.iter_mut().for_each(|server| drop(server.wait_for_log("connected to Redis")));
        let [one, other] = fleet;
        let anna = open(&other, "user:anna");
        // Until both listen.
        eventually("the other one forgets", || {
            assert_eq!(forget(&one, &json!({"user": "anna", "disconnect": true})), 202);
            (other.number("callouts/forgotten") > 0).then_some(())
        });
        assert_eq!(anna.closed(), (4010, "signed out".to_owned()));
    }
}
