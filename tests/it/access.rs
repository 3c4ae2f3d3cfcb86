//! Who a client is: tokens made by PyPI's `pyjwt` and npm's `jose`, good ones and bad; every way to bring one; keys that change; users and what
//! they may do; and the end of a token.

use crate::foreign::{NAMESPACES, NODE, PATIENT, PYTHON, SOCKETIO, check, node, python, run};
use crate::harness::raw::{FIN, TEXT, upgrade_head};
use crate::harness::{Client, Deadline, Heard, Raw, Response, Server, eventually, frame, server};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub(crate) const SECRET: &str = "a secret of thirty-two bytes, ok";
const MAKER_MAX: Duration = Duration::from_secs(60);

/// A folder of ours, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("cargo's folder for tests can be written");
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path of ours").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A token of our own making, by HS256 and [`SECRET`].
pub(crate) fn token(args: &[&str]) -> String {
    let outcome = server::run(&[], &[&["token", "--secret", SECRET][..], args].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.stdout.trim().to_owned()
}

fn with_secret(settings: &[&str]) -> Server {
    let secret = format!("auth.secret={SECRET}");
    Server::with(&[&[secret.as_str()][..], settings].concat())
}

/// What an upgrade with this token is answered with.
fn knock(server: &Server, token: &str) -> Response {
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws", &format!("Authorization: Bearer {token}\r\n")));
    raw.response_to_head()
}

fn refusals(server: &Server, reason: &str) -> f64 {
    server.metrics().sum("throng_token_refusals_total", &[&format!("reason=\"{reason}\"")])
}

#[test]
fn tokens_of_pyjwt_are_judged_rightly() {
    judge(python("tokens.py"), PYTHON, "pyjwt");
}

#[test]
fn tokens_of_jose_are_judged_rightly() {
    judge(node("node/tokens.mjs"), NODE, "jose");
}

fn judge(mut maker: Command, install: &str, name: &str) {
    #[derive(serde::Deserialize)]
    struct Made {
        good: BTreeMap<String, String>,
        bad: BTreeMap<String, (String, String)>,
    }
    let folder = Folder::new(name);
    maker.arg(&folder.0);
    let printed = run(maker, install, MAKER_MAX);
    let made: Made = serde_json::from_str(printed.trim()).expect("tokens as JSON");
    let keys: String = ["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"]
        .map(|name| {
            let file = folder.path(&format!("{name}.key"));
            format!("[[auth.keys]]\nkid = \"{name}\"\nalgorithm = \"{name}\"\nfile = \"{file}\"\n")
        })
        .concat();
    // By files, then the public keys by a set.
    let secrets = keys.split("[[auth.keys]]\nkid = \"RS256\"").next().expect("the first half");
    let set = format!("[auth]\njwks = \"{}\"\n{secrets}", folder.path("jwks.json"));
    for (config, unknown) in [(format!("[auth]\n{keys}"), "unknown_key"), (set, "unknown_key")] {
        let file = folder.path("throng.toml");
        fs::write(&file, config).expect("our folder");
        let settings = [
            "auth.issuers=maker",
            "auth.audiences=throng",
            "auth.token_bytes_max=4KiB",
            "limits.head_bytes_max=16KiB",
        ];
        let mut flags = vec!["--config", &file];
        flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        let server = Server::with_flags(&flags);
        for (name, token) in &made.good {
            assert_eq!(knock(&server, token).status, 101, "{name}");
        }
        for (name, (token, reason)) in &made.bad {
            let reason = if reason == "unknown_key" { unknown } else { reason };
            let before = refusals(&server, reason);
            let response = knock(&server, token);
            assert_eq!(response.status, 401, "{name}");
            let challenge = response.header("www-authenticate").expect("a challenge");
            assert!(challenge.starts_with("Bearer error=\"invalid_token\""), "{challenge}");
            assert_eq!(refusals(&server, reason), before + 1.0, "{name} is {reason}");
        }
        assert_eq!(server.metrics().sum("throng_tokens_total", &[]), made.good.len() as f64);
    }
}

#[test]
fn socketio_clients_of_node_bring_tokens() {
    let folder = Folder::new("access-node");
    fs::write(folder.path("secret"), SECRET).expect("our folder");
    for shards in ["server.shards=1", "server.shards=4"] {
        let server = for_stock_clients(shards);
        let mut script = node("node/access.mjs");
        script.arg(format!("http://{}", server.address())).arg(&folder.0);
        check(script, NODE, 9);
        server.wait_for_number("connections", 0);
    }
}

#[test]
fn socketio_clients_of_python_bring_tokens() {
    let folder = Folder::new("access-python");
    fs::write(folder.path("secret"), SECRET).expect("our folder");
    let server = for_stock_clients("server.shards=2");
    let mut script = python("access.py");
    script.arg(format!("http://{}", server.address())).arg(&folder.0);
    check(script, PYTHON, 6);
}

fn for_stock_clients(shards: &str) -> Server {
    let secret = format!("auth.secret={SECRET}");
    let settings = [
        shards,
        NAMESPACES,
        PATIENT,
        &secret,
        "auth.required=true",
        "auth.leeway_ms=0",
        "auth.grace_ms=0",
        "socketio.recovery_ms=5000",
        r#"socketio.connect_event="""#,
    ];
    let mut flags = vec!["--config", SOCKETIO];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    Server::with_flags(&flags)
}

#[test]
fn a_native_client_brings_its_token_in_any_way() {
    let server = with_secret(&["auth.required=true"]);
    let token = token(&["--user", "7", "--room", "given"]);
    let bearer = format!("Bearer {token}");
    let query = format!("/ws?a=b&token={token}");
    let lower = bearer.replace("Bearer", "bearer");
    let headers = |value| [("Authorization", value)];
    for (path, headers) in
        [("/ws", &headers(&*bearer)[..]), ("/ws", &headers(&*lower)), (&*query, &[]), ("/ws", &[])]
    {
        let mut client = Client::over(server.raw(), path, headers);
        let answer = client.ask(json!({"type": "auth", "token": token}));
        assert_eq!(answer["type"], "ack", "{answer}");
        assert_eq!(client.join(&["given"]), [0], "it is in its room, and nobody else");
        client.close(1000);
        server.wait_for_number("rooms", 0);
    }
    let off = with_secret(&["auth.query_parameter="]);
    let mut raw = off.raw();
    raw.send(upgrade_head("/ws?token=x", ""));
    assert_eq!(raw.response_to_head().status, 101, "the query is not looked at");
}

#[test]
fn who_must_bring_a_token_can_do_nothing_before() {
    let server = with_secret(&["auth.required=true", "auth.timeout_ms=300", "server.echo=true"]);
    let mut client = server.client();
    for message in [
        json!({"type": "join", "rooms": ["a"]}),
        json!({"type": "publish", "room": "a", "event": "e"}),
        json!({"type": "ping"}),
    ] {
        assert_eq!(client.refused(message), "token_missing");
    }
    assert_eq!(client.closed(), (4010, "no token came in time".to_owned()));
    let mut client = server.client();
    assert_eq!(client.refused(json!({"type": "auth", "token": "x"})), "token_refused");
    assert_eq!(client.closed(), (4010, "this is no token".to_owned()));
    // What is spoken there has no way to bring one later.
    let mut raw = server.raw();
    raw.send(upgrade_head("/echo", ""));
    let response = raw.response();
    assert_eq!((response.status, response.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(response.json()["error"], "unauthorized");
    server.wait_for_number("rooms", 0);
    assert_eq!(server.metrics().sum("throng_disconnects_total", &["reason=\"token\""]), 2.0);
}

#[test]
fn a_page_is_told_by_a_close_code_where_limits_are() {
    let server = with_secret(&["limits.refuse_with=close"]);
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws?token=x.y.z", ""));
    assert_eq!(raw.response_to_head().status, 101);
    assert_eq!(raw.closed().0, 4010);
    let mut raw = server.raw();
    raw.send(upgrade_head(&format!("/ws?token={}", token(&["--user", "7", "--expires", "0s"])), ""));
    assert_eq!(raw.response_to_head().status, 101, "by the leeway it is still good");
}

#[test]
fn a_token_runs_out_unless_a_newer_one_comes() {
    let server = with_secret(&["auth.leeway_ms=0", "auth.grace_ms=500"]);
    let brief = token(&["--user", "7", "--expires", "1s"]);
    let long = token(&["--user", "7"]);
    let open = |token: &str| Client::over(server.raw(), &format!("/ws?token={token}"), &[]);
    let (ended, mut renewed) = (open(&brief), open(&brief));
    assert_eq!(renewed.refused(json!({"type": "auth", "token": token(&["--user", "8"])})), "token_refused");
    assert_eq!(
        renewed.refused(json!({"type": "auth", "token": "x"})),
        "token_refused",
        "it keeps what it has"
    );
    assert_eq!(renewed.ask(json!({"type": "auth", "token": long}))["type"], "ack");
    assert_eq!(ended.closed(), (4011, "the token has expired".to_owned()));
    assert_eq!(renewed.ask(json!({"type": "ping"}))["type"], "pong");
    assert_eq!(knock(&server, &brief).status, 401, "it is not good for a new connection");
}

#[test]
fn permissions_are_those_of_the_rules_and_of_the_token() {
    let folder = Folder::new("permissions");
    let file = folder.path("throng.toml");
    let rules = format!(
        "[auth]\nsecret = \"{SECRET}\"\n\
         [[permissions]]\nrooms = \"lobby\"\nallow = [\"join\"]\n\
         [[permissions]]\nrooms = \"user:{{user}}\"\nwho = \"user\"\nallow = [\"join\", \"publish\"]\n\
         [[permissions]]\nrooms = \"*\"\nwho = \"role:admin\"\nallow = [\"publish\"]\n"
    );
    fs::write(&file, rules).expect("our folder");
    let server = Server::with_flags(&["--config", &file]);
    let open = |args: &[&str]| Client::over(server.raw(), &format!("/ws?token={}", token(args)), &[]);
    let may = |client: &mut Client, message: Value| match client.ask(message) {
        answer if answer["type"] == "ack" => true,
        answer => {
            assert_eq!(answer["code"], "forbidden", "{answer}");
            false
        }
    };
    let join = |rooms: &[&str]| json!({"type": "join", "rooms": rooms});
    let publish = |room: &str| json!({"type": "publish", "room": room, "event": "e"});
    let mut nobody = server.client();
    assert!(may(&mut nobody, join(&["lobby"])) && !may(&mut nobody, publish("lobby")));
    assert!(!may(&mut nobody, join(&["lobby", "user:7"])), "all or none");
    assert!(may(&mut nobody, json!({"type": "leave", "rooms": ["lobby", "user:7"]})), "leaving is free");
    let mut user = open(&["--user", "7", "--permission", "join:extra:*", "--room", "secret"]);
    assert!(may(&mut user, join(&["user:7", "lobby", "extra:1"])) && may(&mut user, publish("user:7")));
    assert!(!may(&mut user, join(&["user:8"])) && !may(&mut user, publish("extra:1")));
    let mut admin = open(&["--user", "8", "--role", "admin"]);
    assert!(may(&mut admin, publish("secret")) && !may(&mut admin, join(&["secret"])));
    user.hears("secret", "e", Value::Null);
    assert!(!may(&mut nobody, json!({"type": "publish", "rooms": ["user:7"], "event": "e", "ask_ms": 5})));
}

/// A server of keys: answers every request with what is there by then.
pub(crate) struct KeyServer {
    pub(crate) url: String,
    answer: Arc<Mutex<(u16, String)>>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl KeyServer {
    pub(crate) fn start() -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/keys?of=throng", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new((404, String::new())));
        let requests = Arc::new(AtomicUsize::new(0));
        let (shown, counted) = (answer.clone(), requests.clone());
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                let mut head = [0; 1024];
                let length = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..length]);
                assert!(head.starts_with("GET /keys?of=throng HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("\r\nhost: 127.0.0.1:"), "{head}");
                counted.fetch_add(1, Relaxed);
                let (status, body) = shown.lock().expect("nobody panicked").clone();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nLocation: /else\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).ok();
            }
        });
        KeyServer { url, answer, requests }
    }

    fn show(&self, status: u16, body: impl Into<String>) {
        *self.hold() = (status, body.into());
    }

    /// Nobody is answered as long as this is held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, (u16, String)> {
        self.answer.lock().expect("nobody panicked")
    }
}

#[test]
fn a_set_of_keys_by_url_is_followed_as_it_changes() {
    let folder = Folder::new("rotation");
    let [first, second] = ["first", "second"].map(|name| {
        let (key, jwk) = (folder.path(&format!("{name}.pem")), folder.path(&format!("{name}.json")));
        let mut maker = node("node/key.mjs");
        maker.args([&key, &jwk, name]);
        run(maker, NODE, MAKER_MAX);
        (key, fs::read_to_string(jwk).expect("a key"))
    });
    let set = |keys: &[&str]| format!("{{\"keys\":[{}]}}", keys.join(","));
    let token = |key: &str, kid: &str| {
        let args = ["token", "--key", key, "--algorithm", "EdDSA", "--kid", kid, "--user", "7"];
        let outcome = server::run(&[], &args);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stdout.trim().to_owned()
    };
    let (old, new) = (token(&first.0, "first"), token(&second.0, "second"));
    let keys = KeyServer::start();
    let server =
        Server::with(&[&format!("auth.jwks={}", keys.url), "auth.retry_ms=100", "auth.refresh_ms=1h"]);
    let is_good = |token: &str| knock(&server, token).status == 101;
    assert!(!is_good(&old), "there are no keys yet, and the server has started all the same");
    keys.show(200, set(&[&first.1]));
    eventually("the key is there", || is_good(&old).then_some(()));
    assert!(!is_good(&new));
    // A name that is not there has the set fetched again; what is wrong with it changes nothing.
    for (status, body) in [(200, "<html>"), (200, "{\"keys\":[]}"), (500, ""), (302, "")] {
        let before = server.metrics().sum("throng_key_refresh_failures_total", &[]);
        keys.show(status, body);
        eventually("the set is fetched again", || {
            assert!(!is_good(&new) && is_good(&old), "the last good keys stay");
            (server.metrics().sum("throng_key_refresh_failures_total", &[]) > before).then_some(())
        });
    }
    keys.show(200, set(&[&first.1, &second.1]));
    eventually("the other key is there", || is_good(&new).then_some(()));
    assert!(is_good(&old));
    keys.show(200, set(&[&second.1]));
    eventually("the old key is gone", || {
        assert!(!is_good(&token(&second.0, "third")), "another name");
        (!is_good(&old)).then_some(())
    });
    assert!(is_good(&new));
    // A flood of names that nobody knows is no flood of fetches.
    let before = keys.requests.load(Relaxed);
    let unknown = token(&second.0, "unheard");
    let deadline = Deadline::after(Duration::from_millis(500));
    let mut asked = 0;
    while !deadline.is_over() {
        assert!(!is_good(&unknown));
        asked += 1;
    }
    let fetched = keys.requests.load(Relaxed) - before;
    assert!(fetched <= 7 && asked > fetched, "{fetched} for {asked}");
    let text = server.log();
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn keys_in_files_change_without_a_restart_and_end_on_their_day() {
    let folder = Folder::new("files");
    let (secret, file) = (folder.path("secret"), folder.path("throng.toml"));
    fs::write(&secret, format!("{SECRET}\n")).expect("our folder");
    let old = "another secret of 32 bytes, gone";
    fs::write(
        &file,
        format!(
            "[[auth.keys]]\nalgorithm = \"HS256\"\nfile = \"{secret}\"\n\
             [[auth.keys]]\nalgorithm = \"HS256\"\nkid = \"old\"\nsecret = \"{old}\"\nuntil = 2020-01-01\n"
        ),
    )
    .expect("our folder");
    let server = Server::with_flags(&[
        "--config",
        &file,
        "--set",
        "auth.refresh_ms=1s",
        "--set",
        "auth.retry_ms=100ms",
    ]);
    let with = |secret: &str, more: &[&str]| {
        let args = [&["token", "--secret", secret, "--user", "7"][..], more].concat();
        server::run(&[], &args).stdout.trim().to_owned()
    };
    assert_eq!(knock(&server, &with(SECRET, &[])).status, 101);
    assert_eq!(knock(&server, &with(old, &["--kid", "old"])).status, 401, "its day is over");
    let next = "the next secret, which has 32 by";
    fs::write(&secret, next).expect("our folder");
    eventually("the file is read again", || (knock(&server, &with(next, &[])).status == 101).then_some(()));
    assert_eq!(knock(&server, &with(SECRET, &[])).status, 401);
    fs::remove_file(&secret).expect("our folder");
    eventually("the file is missed", || {
        (server.metrics().sum("throng_key_refresh_failures_total", &[]) > 0.0).then_some(())
    });
    assert_eq!(knock(&server, &with(next, &[])).status, 101, "the last good one stays");
    // Nor is there a server without it.
    let outcome =
        server::run(&[], &["serve", "--config", &file, "--listen", "127.0.0.1:0", "--control", "off"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("cannot read a key of tokens"), "{}", outcome.stderr);
    // What a file means can be read without its secrets.
    let outcome = server::run(&[], &["check", &file]);
    assert_eq!((outcome.code, outcome.stdout.contains(old)), (Some(0), false), "{}", outcome.stdout);
}

#[test]
fn without_keys_tokens_are_nobodys_business() {
    let server = Server::start();
    assert_eq!(knock(&server, "x").status, 101);
    let mut client = server.client();
    assert_eq!(client.refused(json!({"type": "auth", "token": "x"})), "token_refused");
    assert_eq!(client.closed().0, 4010);
    let mut raw = server.raw();
    raw.send(upgrade_head("/ws?token=x", "Authorization: Basic eDp5\r\n"));
    assert_eq!(raw.response_to_head().status, 101);
}

#[test]
fn a_user_has_so_many_connections() {
    let server = with_secret(&["limits.connections_per_user_max=1"]);
    let (one, other) = (token(&["--user", "7"]), token(&["--user", "8"]));
    let open = |token: &str| Client::over(server.raw(), &format!("/ws?token={token}"), &[]);
    let mut first = open(&one);
    assert_eq!(first.ask(json!({"type": "auth", "token": one}))["type"], "ack", "it counts once");
    let too_many = (1008, "Connection limit exceeded".to_owned());
    let polled = |token: &str| {
        let path = format!("/socket.io/?EIO=4&transport=polling&token={token}");
        let mut raw = server.raw();
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: throng\r\n\r\n"));
        raw.response()
    };
    for refused in [knock(&server, &one), polled(&one)] {
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("5")));
    }
    assert_eq!(server.number("rejects/per_user"), 2);
    let mut late = server.client();
    assert_eq!(late.refused(json!({"type": "auth", "token": one})), "token_refused");
    assert_eq!(late.closed(), too_many);
    assert_eq!(open(&other).ask(json!({"type": "ping"}))["type"], "pong");
    first.close(1000);
    eventually("the place is free", || {
        let mut again = open(&one);
        again.say(&json!({"type": "ping"}));
        let heard = again.hear_within(Duration::from_millis(500));
        matches!(heard, Some(Heard::Text(..))).then_some(())
    });
}

#[test]
fn a_page_whose_user_has_too_many_connections_is_told_by_a_close_code() {
    let server = with_secret(&["limits.connections_per_user_max=1", "limits.refuse_with=close"]);
    let path = format!("/ws?token={}", token(&["--user", "7"]));
    let mut first = Client::over(server.raw(), &path, &[]);
    let second = Client::over(server.raw(), &path, &[]);
    assert_eq!(second.closed(), (1008, "Connection limit exceeded".to_owned()));
    assert_eq!(first.ask(json!({"type": "ping"}))["type"], "pong");
    server.wait_for_number("connections", 1);
}

/// A token with these claims, besides the user and a date far off.
fn token_of(mut claims: Value) -> String {
    let encode = |text: &[u8]| data_encoding::BASE64URL_NOPAD.encode(text);
    claims["exp"] = json!(9_999_999_999_u64);
    let signed = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(claims.to_string().as_bytes()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", encode(ring::hmac::sign(&key, signed.as_bytes()).as_ref()))
}

#[test]
fn a_token_brings_limits_of_its_own() {
    let server = with_secret(&["server.shards=2"]);
    let open = |claims: Value| Client::over(server.raw(), &format!("/ws?token={}", token_of(claims)), &[]);
    let two = json!({"sub": "7", "limits": {"connections_max": 2}});
    let mut clients: Vec<Client> = (0..2).map(|_| open(two.clone())).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong"));
    assert_eq!(knock(&server, &token_of(two.clone())).status, 429);
    // A newer token changes it, and counts those that are there.
    let three = token_of(json!({"sub": "7", "limits": {"connections_max": 3}}));
    assert_eq!(clients[0].ask(json!({"type": "auth", "token": three}))["type"], "ack");
    clients.push(Client::over(server.raw(), &format!("/ws?token={three}"), &[]));
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong"));
    assert_eq!(knock(&server, &three).status, 429);
    let unlimited = token_of(json!({"sub": "7"}));
    assert_eq!(clients[1].ask(json!({"type": "auth", "token": unlimited}))["type"], "ack");
    clients.drain(..).for_each(|client| _ = client.close(1000));
    server.wait_for_number("connections", 0);
    clients.extend((0..2).map(|_| open(two.clone())));
    assert_eq!(knock(&server, &token_of(two)).status, 429, "each was given back once");

    let mut brief = open(json!({"sub": "8", "limits": {"bytes_per_second_max": 1000}}));
    let publish =
        |length: usize| json!({"type": "publish", "room": "a", "event": "e", "data": "x".repeat(length)});
    assert_eq!(brief.ask(publish(2000))["type"], "ack");
    assert_eq!(brief.ask(publish(1))["message"], "Rate limit exceeded");
}

/// A client of Socket.IO on a WebSocket, that brings a token as it joins namespaces.
struct Socket(Raw);

impl Socket {
    fn open(server: &Server) -> Socket {
        let mut socket = Socket(server.socket("/socket.io/?EIO=4&transport=websocket"));
        assert!(socket.hear().starts_with("0{"));
        socket
    }

    /// What joining a namespace is answered with.
    fn join(&mut self, namespace: &str, auth: &Value) -> String {
        self.0.send(frame(FIN | TEXT, format!("40{namespace},{auth}")));
        self.hear()
    }

    fn ask(&mut self, namespace: &str, event: &Value) -> String {
        self.0.send(frame(FIN | TEXT, format!("42{namespace},7{event}")));
        self.hear()
    }

    fn hear(&mut self) -> String {
        String::from_utf8(self.0.frame().payload).expect("text")
    }
}

#[test]
fn a_namespace_may_be_for_some_alone() {
    let folder = Folder::new("namespaces");
    let file = folder.path("throng.toml");
    let rules = format!(
        "[auth]\nsecret = \"{SECRET}\"\n[socketio]\nnamespaces = [\"/\", \"/club\", \"/staff/*\"]\nconnect_event = \"\"\n\
         [[permissions]]\nnamespace = \"/club\"\nwho = \"user\"\nallow = [\"connect\"]\n\
         [[permissions]]\nnamespace = \"/staff/*\"\nwho = \"role:staff\"\nallow = [\"connect\"]\n"
    );
    fs::write(&file, rules).expect("our folder");
    let server = Server::with_flags(&["--config", &file]);
    let forbidden = |answer: &str, namespace: &str| {
        let refused = r#"{"message":"This client may not be in this namespace","data":{"code":"forbidden"}}"#;
        assert_eq!(answer, format!("44{namespace}{refused}"));
    };
    let mut nobody = Socket::open(&server);
    assert!(nobody.join("/", &json!({})).starts_with("40{"));
    forbidden(&nobody.join("/club", &json!({})), "/club,");
    // Rules about namespaces say nothing of rooms.
    assert!(nobody.ask("/", &json!(["join", "a"])).contains("rooms"));
    let user = json!({"token": token_of(json!({"sub": "7"}))});
    assert!(nobody.join("/club", &user).starts_with("40/club,{"), "now it is somebody");
    forbidden(&nobody.join("/staff/1", &json!({})), "/staff/1,");
    let mut staff = Socket::open(&server);
    let token = json!({"token": token_of(json!({"sub": "8", "roles": ["staff"]}))});
    assert!(staff.join("/staff/1", &token).starts_with("40/staff/1,{"));
    let mut granted = Socket::open(&server);
    let permissions = json!([{"namespace": "/staff/2", "allow": ["connect"]}, "join:*"]);
    let token = json!({"token": token_of(json!({"sub": "9", "permissions": permissions}))});
    assert!(granted.join("/staff/2", &token).starts_with("40/staff/2,{"));
    forbidden(&granted.join("/staff/1", &json!({})), "/staff/1,");
    forbidden(&granted.join("/", &json!({})), "");
    assert_eq!(server.number("totals/namespace_refusals"), 4);
}

#[test]
fn rooms_of_a_token_are_in_the_namespaces_that_it_names() {
    let server = with_secret(&[r#"socketio.namespaces=["/","/chat","/b"]"#, "socketio.connect_event="]);
    let rooms = json!(["main", {"namespace": "/chat", "rooms": ["one", "two"]}, {"namespace": "/b", "rooms": ["one"]}]);
    let token = token_of(json!({"sub": "7", "rooms": rooms}));
    let members = |socket: &mut Socket, namespace: &str, room: &str| {
        let ack = socket.ask(namespace, &json!(["join", room]));
        let list: Value = serde_json::from_str(&ack[ack.find('[').expect("a list")..]).expect("JSON");
        list[0]["rooms"][room]["members"].as_u64().expect("a number")
    };
    let mut socket = Socket::open(&server);
    assert!(socket.join("/chat", &json!({"token": token})).starts_with("40/chat,{"));
    assert!(socket.join("/", &json!({})).starts_with("40{"));
    let mut other = Socket::open(&server);
    for namespace in ["/", "/chat", "/b"] {
        assert!(other.join(namespace, &json!({})).starts_with("40"));
    }
    assert_eq!(
        [("/", "main"), ("/chat", "one"), ("/chat", "two")].map(|(of, room)| members(&mut other, of, room)),
        [1; 3]
    );
    assert_eq!(
        [("/", "one"), ("/chat", "main"), ("/b", "one")].map(|(of, room)| members(&mut other, of, room)),
        [0; 3]
    );
    let mut native = Client::over(server.raw(), &format!("/ws?token={token}"), &[]);
    assert_eq!(native.join(&["main", "one"]), [2, 1], "it is in the first already");
    for wrong in [
        json!([{"namespace": "chat", "rooms": []}]),
        json!([{"namespace": "/*", "rooms": ["a"]}]),
        json!([{"rooms": ["a"]}]),
        json!([7]),
    ] {
        assert_eq!(knock(&server, &token_of(json!({"sub": "7", "rooms": wrong}))).status, 401, "{wrong}");
    }
}
