//! The HTTP API for backends from outside: what they publish arrives, what they look at is there, what they order is done.

use crate::access::{SECRET, token};
use crate::foreign;
use crate::harness::clock::rest;
use crate::harness::raw::{CLOSE, FIN, TEXT};
use crate::harness::redis::Redis;
use crate::harness::{Client, Heard, Raw, Response, Server, eventually, frame};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

const KEY: &str = "change-me-0123456789";
const WITH_KEY: &str = "api.key=change-me-0123456789";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// A backend with one connection, which stays open.
struct Backend {
    raw: Raw,
    key: String,
}

impl Backend {
    fn of(server: &Server) -> Backend {
        Backend::with(server, KEY)
    }

    fn with(server: &Server, key: &str) -> Backend {
        Backend { raw: Raw::connect(server.control_address()), key: key.to_owned() }
    }

    fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: throng\r\nAuthorization: Bearer {}\r\n{headers}Content-Length: {}\r\n\r\n",
            self.key,
            body.len()
        );
        self.raw.send([head.as_bytes(), body].concat());
        self.raw.response()
    }

    fn post(&mut self, path: &str, kind: &str, body: impl AsRef<[u8]>) -> Response {
        self.send("POST", path, &format!("Content-Type: {kind}\r\n"), body.as_ref())
    }

    fn say(&mut self, path: &str, body: &Value) -> Response {
        self.post(path, JSON, body.to_string())
    }

    fn publish(&mut self, publication: &Value) {
        let answer = self.say("/v1/publish", publication);
        assert_eq!((answer.status, answer.json()), (200, json!({"published": 1})), "{publication}");
    }

    fn get(&mut self, path: &str) -> Value {
        let answer = self.send("GET", path, "", b"");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// What is refused, with which status and code.
    fn refused(&mut self, path: &str, kind: &str, body: impl AsRef<[u8]>) -> (u16, String, String) {
        refusal(&self.post(path, kind, body))
    }

    /// All of a list, page by page.
    fn list(&mut self, path: &str, what: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        for _ in 0..1000 {
            let page = self.get(&format!("{path}{cursor}"));
            all.extend(page[what].as_array().expect("a list").iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("{}cursor={next}", if path.contains('?') { "&" } else { "?" }),
                None => return all,
            }
        }
        panic!("{path} has no end");
    }

    /// The id of the only member of a room.
    fn member(&mut self, room: &str) -> String {
        let members = self.list(&format!("/v1/rooms/{room}/members"), "members");
        assert_eq!(members.len(), 1, "{members:?}");
        members[0]["id"].as_str().expect("an id").to_owned()
    }
}

fn refusal(answer: &Response) -> (u16, String, String) {
    let body = answer.json();
    let text = |field: &str| body[field].as_str().unwrap_or_else(|| panic!("no {field}: {body}")).to_owned();
    (answer.status, text("error"), text("message"))
}

#[test]
fn what_a_backend_publishes_arrives() {
    let server = Server::with(&[WITH_KEY]);
    let mut members = server.crowd(4);
    for (number, member) in members.iter_mut().enumerate() {
        member.join(&["all", &format!("own {number}"), if number < 2 { "low" } else { "high" }]);
    }
    let mut backend = Backend::of(&server);
    // Byte for byte, whatever it is.
    let data = r#"{ "a":1.50e1,"b":[ "\u00e4" ] }"#;
    let text = format!(r#"{{"event":"e","room":"all","data":{data}}}"#);
    assert_eq!(backend.post("/v1/publish", "application/json; charset=utf-8", text).status, 200);
    for member in &mut members {
        let heard = member.text();
        assert!(heard.ends_with(&format!(r#""data":{data}}}"#)), "{heard}");
    }
    backend.publish(&json!({"rooms": ["low", "own 0", "own 3"], "event": "some"}));
    for (number, room) in [(0, "low"), (1, "low"), (3, "own 3")] {
        members[number].hears(room, "some", Value::Null);
    }
    backend.publish(&json!({"all": true, "event": "everybody", "data": 1}));
    for member in &mut members {
        assert_eq!(member.message(), json!({"type": "event", "event": "everybody", "data": 1}));
    }
    let ids: Vec<String> = (0..4).map(|number| backend.member(&format!("own%20{number}"))).collect();
    backend.publish(&json!({"room": "all", "event": "but", "except": [ids[0], "low"]}));
    backend.publish(&json!({"room": ids[1], "event": "you", "volatile": true}));
    members[2].hears("all", "but", Value::Null);
    members[3].hears("all", "but", Value::Null);
    assert_eq!(members[1].message(), json!({"type": "event", "event": "you", "data": null}));
    let answer = backend.post(
        "/v1/publish/bytes?room=low&room=high&event=raw",
        "application/octet-stream",
        [0, 255, 10],
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    for member in &mut members {
        match member.hear() {
            Heard::Binary(head, payload) => {
                assert_eq!((&head["event"], payload), (&json!("raw"), vec![0, 255, 10]));
            }
            other => panic!("{other:?}"),
        }
    }
    let list = json!({"publications": [
        {"room": "all", "event": "one"}, {"room": "all", "event": ""}, 7, {"room": "all", "event": "two", "data": [2]},
        {"publications": []},
    ]});
    let answer = backend.say("/v1/publish", &list);
    assert_eq!((answer.status, &answer.json()["published"]), (200, &json!(2)), "{answer:?}");
    let results = answer.json()["results"].clone();
    let codes: Vec<&str> = (results.as_array().expect("a list").iter())
        .map(|result| result["error"].as_str().unwrap_or("published"))
        .collect();
    assert_eq!(codes, ["published", "bad_event", "bad_value", "published", "bad_value"]);
    for member in &mut members {
        member.hears("all", "one", Value::Null);
        member.hears("all", "two", json!([2]));
        member.has_heard_all();
    }
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_api_publications_total", &[]), 8.0);
    assert_eq!(metrics.sum("throng_api_publications_refused_total", &[]), 3.0);
    assert_eq!(metrics.sum("throng_api_requests_total", &["route=\"/v1/publish\"", "status=\"200\""]), 6.0);
    assert_eq!(metrics.sum("throng_api_connections", &[]), 1.0);
}

#[test]
fn a_stream_is_carried_out_line_by_line() {
    let server = Server::with(&[WITH_KEY, "api.body_bytes_max=10000"]);
    let mut member = server.client();
    member.join(&["ticks"]);
    let line = |number: u32| json!({"room": "ticks", "event": "tick", "data": number}).to_string() + "\n";
    let mut body = String::new();
    for number in 0..5000 {
        body += &line(number);
    }
    body += "\n  \r\nnonsense\n{\"room\":\"ticks\",\"event\":1}\n";
    body += &format!("{{\"room\":\"ticks\",\"event\":\"long\",\"data\":\"{}\"}}\n", "x".repeat(100_000));
    body += line(5000).trim_end();
    // Cut anywhere, and in pieces with lengths of their own.
    let mut backend = Backend::of(&server);
    let head = format!(
        "POST /v1/publish/stream HTTP/1.1\r\nHost: throng\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {LINES}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    backend.raw.send(head);
    let mut rest = body.as_bytes();
    let mut length = 1;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        backend.raw.send(chunk);
        rest = after;
        length = length * 7 % 30_011;
    }
    backend.raw.send("0\r\n\r\n");
    let answer = backend.raw.response();
    let summary = answer.json();
    assert_eq!(
        (answer.status, &summary["published"], &summary["failed"]),
        (200, &json!(5001), &json!(3)),
        "{summary}"
    );
    let errors: Vec<(u64, &str)> = (summary["errors"].as_array().expect("a list").iter())
        .map(|error| (error["line"].as_u64().expect("a line"), error["error"].as_str().expect("a code")))
        .collect();
    assert_eq!(errors, [(5003, "bad_json"), (5004, "bad_value"), (5005, "too_large")]);
    for number in 0..=5000 {
        member.hears("ticks", "tick", json!(number));
    }
    member.has_heard_all();
    // The connection goes on.
    backend.publish(&json!({"room": "ticks", "event": "after"}));
    member.hears("ticks", "after", Value::Null);
    assert_eq!(backend.post("/v1/publish/stream", LINES, "").json()["published"], 0);
}

#[test]
fn a_request_that_comes_twice_is_carried_out_once() {
    let server = Server::with(&[WITH_KEY, "api.idempotency_keys_max=2"]);
    let mut member = server.client();
    member.join(&["a"]);
    let mut backend = Backend::of(&server);
    let mut send = |name: &str, body: &str| {
        let headers = format!("Content-Type: {JSON}\r\nIdempotency-Key: {name}\r\n");
        let answer = backend.send("POST", "/v1/publish", &headers, body.as_bytes());
        (answer.status, answer.header("idempotency-replayed").is_some(), answer.body)
    };
    let (one, other) = (r#"{"room":"a","event":"one"}"#, r#"{"room":"a","event":"other"}"#);
    let done = r#"{"published":1}"#.to_owned();
    assert_eq!(send("1", one), (200, false, done.clone()));
    assert_eq!(send("1", one), (200, true, done.clone()));
    let (status, _, body) = send("1", other);
    assert!(status == 409 && body.contains("idempotency_mismatch"), "{body}");
    assert_eq!(send("2", one), (200, false, done.clone()));
    assert_eq!(send("3", one), (200, false, done.clone()));
    assert_eq!(send("1", one), (200, false, done.clone()), "only so many are kept");
    assert_eq!(send("4", r#"{"room":"a"}"#).0, 422);
    assert_eq!(send("4", one), (200, false, done), "what was refused is not kept");
    for _ in 0..5 {
        member.hears("a", "one", Value::Null);
    }
    member.has_heard_all();
    assert_eq!(send(&"x".repeat(129), one).0, 400);
    assert_eq!(server.metrics().sum("throng_api_replays_total", &[]), 1.0);
}

#[test]
fn rooms_and_connections_are_listed_whole() {
    let server = Server::with(&[WITH_KEY, "server.shards=3"]);
    let mut members = server.crowd(30);
    for (number, member) in members.iter_mut().enumerate() {
        let room = format!("room {number}");
        member.join(&["crowd", &room, if number % 2 == 0 { "even/ä" } else { "odd" }]);
    }
    let mut backend = Backend::of(&server);
    assert_eq!(backend.get("/v1/connections/count"), json!({"connections": 30}));
    for limit in [1, 7, 30, 1000] {
        let rooms = backend.list(&format!("/v1/rooms?limit={limit}&prefix=room%20"), "rooms");
        let names: BTreeSet<&str> = rooms.iter().map(|room| room["room"].as_str().expect("a name")).collect();
        assert_eq!((rooms.len(), names.len()), (30, 30), "each once");
        for path in ["/v1/connections", "/v1/rooms/crowd/members"] {
            let what = path.rsplit('/').next().expect("a word");
            let all = backend.list(&format!("{path}?limit={limit}"), what);
            let ids: BTreeSet<&str> = all.iter().map(|one| one["id"].as_str().expect("an id")).collect();
            assert_eq!((all.len(), ids.len()), (30, 30), "{path}, {limit} at a time");
        }
    }
    assert_eq!(backend.list("/v1/rooms", "rooms").len(), 33);
    let even = backend.get("/v1/rooms/even%2F%C3%A4");
    assert_eq!(even, json!({"room": "even/ä", "namespace": "/", "members": 15}));
    assert_eq!(backend.get("/v1/rooms/nobody")["members"], 0);
    assert_eq!(backend.get("/v1/rooms/nobody/members"), json!({"members": []}));
    assert_eq!(backend.get("/v1/rooms/crowd?namespace=/chat")["members"], 0);
    let id = backend.member("room%207");
    let mut connection = backend.get(&format!("/v1/connections/{id}"));
    connection["namespaces"][0]["rooms"].as_array_mut().expect("a list").sort_by_key(Value::to_string);
    let namespaces = json!([{"namespace": "/", "id": id, "rooms": ["crowd", "odd", "room 7"]}]);
    let expected = json!({
        "id": id, "dialect": "native", "address": "127.0.0.1", "transport": "websocket", "namespaces": namespaces,
        "memberships": 3, "waiting_bytes": 0,
    });
    assert_eq!(connection, expected);
    assert_eq!(members.remove(7).close(1000), 1000);
    eventually("it is gone", || {
        (backend.send("GET", &format!("/v1/connections/{id}"), "", b"").status == 404).then_some(())
    });
    for wrong in ["x", "AAAAAAAAAAAAAAAAAAAA", "%F0%9F%A4%B7"] {
        let answer = backend.send("GET", &format!("/v1/connections/{wrong}"), "", b"");
        assert_eq!(refusal(&answer).1, "no_such_connection");
    }
    // A place that was made up leads nowhere.
    for cursor in ["__________8", "AAAAAAAAAAA", "AH8AAAAAAAA"] {
        for path in ["/v1/rooms", "/v1/rooms/crowd/members", "/v1/connections"] {
            backend.get(&format!("{path}?cursor={cursor}"));
        }
    }
}

#[test]
fn who_stays_is_listed_while_others_come_and_go() {
    let server = Server::with(&[WITH_KEY]);
    let mut stay = server.crowd(20);
    let mut go: Vec<Client> = (0..20).map(|_| server.client()).collect();
    // In turn, so that those who go stand among those who stay.
    for (one, other) in stay.iter_mut().zip(&mut go) {
        one.join(&["crowd", "stay"]);
        other.join(&["crowd"]);
    }
    let mut backend = Backend::of(&server);
    let ids = |list: Vec<Value>| -> BTreeSet<String> {
        list.iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
    };
    let expected = ids(backend.list("/v1/rooms/stay/members", "members"));
    let (mut seen, mut cursor) = (BTreeSet::new(), String::new());
    for _ in 0..1000 {
        let page = backend.get(&format!("/v1/rooms/crowd/members?limit=3{cursor}"));
        seen.extend(ids(page["members"].as_array().expect("a list").clone()));
        for mut client in go.pop().into_iter().chain(go.pop()) {
            client.leave(&["crowd"]);
        }
        server.client().join(&["crowd"]);
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(seen.is_superset(&expected), "{:?} are missing", expected.difference(&seen));
}

#[test]
fn what_is_ordered_is_done() {
    let server = Server::with(&[WITH_KEY, "limits.rooms_per_connection_max=4"]);
    let mut members = server.crowd(3);
    for (number, member) in members.iter_mut().enumerate() {
        member.join(&["all", &format!("own{number}")]);
    }
    let mut backend = Backend::of(&server);
    let ids: Vec<String> = (0..3).map(|number| backend.member(&format!("own{number}"))).collect();
    let of = |number: usize, what: &str| format!("/v1/connections/{}/{what}", ids[number]);
    assert_eq!(backend.say(&of(0, "join"), &json!({"rooms": ["new", "newer"]})).status, 204);
    assert_eq!(backend.get("/v1/rooms/new")["members"], 1);
    backend.publish(&json!({"room": "newer", "event": "welcome"}));
    members[0].hears("newer", "welcome", Value::Null);
    let (status, code, _) = backend.refused(&of(0, "join"), JSON, r#"{"rooms":["one more"]}"#);
    assert_eq!((status, &*code), (409, "refused"));
    let (status, code, _) = backend.refused(&of(1, "join"), JSON, format!(r#"{{"rooms":["{}"]}}"#, ids[0]));
    assert_eq!((status, &*code), (409, "refused"), "a room that is somebody");
    assert_eq!(backend.say(&of(0, "leave"), &json!({"rooms": ["new", "newer", "never"]})).status, 204);
    assert_eq!(backend.get("/v1/rooms/new")["members"], 0);
    // All members of a room.
    let answer = backend.say("/v1/rooms/all/join", &json!({"rooms": ["later"]}));
    assert_eq!((answer.status, answer.json()), (202, json!({"members": 3})));
    eventually("all have joined", || (backend.get("/v1/rooms/later")["members"] == 3).then_some(()));
    assert_eq!(backend.say("/v1/rooms/later/leave", &json!({"rooms": ["all", "later"]})).status, 202);
    eventually("all have left", || (backend.get("/v1/rooms/all")["members"] == 0).then_some(()));
    // One by its id, one as a room, one in a room.
    let reason = "ä".repeat(100);
    assert_eq!(backend.say(&of(0, "disconnect"), &json!({"code": 4999, "reason": reason})).status, 204);
    assert_eq!(members.remove(0).closed(), (4999, "ä".repeat(61)), "cut where a letter ends");
    assert_eq!(backend.say(&of(0, "disconnect"), &json!({})).status, 404, "it is gone");
    let as_room = format!("/v1/rooms/{}/disconnect", ids[1]);
    assert_eq!(backend.say(&as_room, &json!({"code": 1008, "reason": "no"})).status, 202);
    assert_eq!(members.remove(0).closed(), (1008, "no".to_owned()));
    assert_eq!(backend.send("POST", "/v1/rooms/own2/disconnect", "", b"").status, 202);
    assert_eq!(members.remove(0).closed(), (1000, String::new()));
    for code in ["1001", "999", "3000", "5000", "4000.5", "-1", "\"1000\"", "null"] {
        let (status, ..) = backend.refused("/v1/rooms/a/disconnect", JSON, format!(r#"{{"code":{code}}}"#));
        assert_eq!(status, 422, "{code}");
    }
    server.wait_for_number("sockets", 0);
    assert_eq!(server.stats()["disconnects"]["server"], 3);
}

#[test]
fn clients_of_socketio_are_meant_as_well() {
    let server = Server::with(&[WITH_KEY, r#"socketio.namespaces=["/","/chat"]"#]);
    let mut backend = Backend::of(&server);
    let mut script = foreign::node("node/backend.mjs");
    script
        .arg(format!("http://{}", server.address()))
        .arg(format!("http://{}", server.control_address()))
        .arg(KEY);
    foreign::check(script, foreign::NODE, 12);
    server.wait_for_number("sockets", 0);
    assert_eq!(backend.get("/v1/connections"), json!({"connections": []}));
}

#[test]
fn other_processes_hear_of_it() {
    let redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let mut throngs: Vec<Server> = (0..2).map(|_| Server::with(&[WITH_KEY, &urls])).collect();
    throngs.iter_mut().for_each(|throng| drop(throng.wait_for_log("connected to Redis")));
    let mut members: Vec<Client> = throngs.iter().map(Server::client).collect();
    members.iter_mut().for_each(|member| drop(member.join(&["a"])));
    let mut backend = Backend::of(&throngs[0]);
    let mut ids = throngs.iter().map(|throng| Backend::of(throng).member("a")).collect::<Vec<_>>();
    let elsewhere = ids.remove(1);
    // Listening takes a moment.
    eventually("the other process hears", || {
        backend.publish(&json!({"room": "a", "event": "there?"}));
        members[1].hear_within(Duration::from_millis(50))
    });
    backend.publish(&json!({"room": elsewhere, "event": "you"}));
    eventually("it comes, behind what was said before", || {
        (members[1].message()["event"] == "you").then_some(())
    });
    assert_eq!(backend.say(&format!("/v1/connections/{elsewhere}/disconnect"), &json!({})).status, 404);
    assert_eq!(backend.say("/v1/rooms/a/join", &json!({"rooms": ["b"]})).status, 202);
    let mut other = Backend::of(&throngs[1]);
    eventually("its member joins", || (other.get("/v1/rooms/b")["members"] == 1).then_some(()));
    let command = format!("/v1/rooms/{elsewhere}/disconnect");
    assert_eq!(backend.say(&command, &json!({"code": 4321})).json(), json!({"members": 0}));
    assert_eq!(members.remove(1).closed(), (4321, String::new()));
    assert_eq!(backend.get("/v1/rooms/a")["members"], 1);
}

#[test]
fn keys_open_what_they_are_for() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("api-keys-{}.toml", std::process::id()));
    // Of "reader-0123456789ab".
    let digest = "efb4f0166b8eda4d970dd4da8f023d7c217aa4032674fb6eada3da53c69e67fd";
    let keys = format!(
        "[[api.keys]]\nname = \"shop\"\nkey = \"publisher-0123456789\"\nscopes = [\"publish\"]\n\
         [[api.keys]]\nname = \"eyes\"\nsha256 = \"{digest}\"\nscopes = [\"read\"]\n\
         [[api.keys]]\nname = \"boss\"\nkey = \"administrator-0123\"\nscopes = [\"admin\", \"read\"]\n"
    );
    std::fs::write(&file, keys).expect("cargo's folder for tests can be written");
    let server = Server::with_flags(&["--config", file.to_str().expect("a path of ours")]);
    std::fs::remove_file(&file).expect("it is there");
    let publish = |key: &str| {
        let mut backend = Backend::with(&server, key);
        let answer = backend.say("/v1/publish", &json!({"room": "a", "event": "e"}));
        (answer.status, answer.header("www-authenticate").map(str::to_owned))
    };
    assert_eq!(publish("publisher-0123456789"), (200, None));
    assert_eq!(publish("administrator-0123"), (403, None));
    let challenge = Some("Bearer".to_owned());
    for stranger in ["publisher-0123456788", "publisher-012345678", "", " ", &"x".repeat(10_000), digest] {
        assert_eq!(publish(stranger), (401, challenge.clone()), "{stranger}");
    }
    Backend::with(&server, "reader-0123456789ab").get("/v1/rooms");
    let mut boss = Backend::with(&server, "administrator-0123");
    boss.get("/v1/rooms");
    assert_eq!(boss.send("POST", "/v1/rooms/a/disconnect", "", b"").status, 202);
    for header in [
        "",
        "Authorization: Basic YTpi\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: publisher-0123456789\r\n",
    ] {
        let mut raw = Raw::connect(server.control_address());
        raw.send(format!("GET /v1/rooms HTTP/1.1\r\nHost: throng\r\n{header}\r\n"));
        assert_eq!(raw.response().status, 401, "{header}");
    }
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_api_strangers_total", &["reason=\"scope\""]), 1.0);
    assert_eq!(metrics.sum("throng_api_strangers_total", &["reason=\"unknown\""]), 4.0);
    assert_eq!(metrics.sum("throng_api_strangers_total", &["reason=\"missing\""]), 6.0);
    // Everybody sees what everybody saw before.
    for path in ["/health", "/ready", "/stats", "/metrics", "/openapi.json"] {
        assert_eq!(server.control(path).status, 200, "{path}");
    }
    let closed = Server::start();
    let mut backend = Backend::of(&closed);
    let (status, code, message) = backend.refused("/v1/publish", JSON, "{}");
    assert!((status, &*code) == (403, "no_keys") && message.contains("api.key"), "{message}");
}

#[test]
fn every_route_asks_for_a_key() {
    let server = Server::with(&[WITH_KEY]);
    let document = server.control("/openapi.json").json();
    let mut closed = 0;
    for (path, methods) in document["paths"].as_object().expect("an object") {
        let path = path.replace(['{', '}'], "");
        for method in methods.as_object().expect("an object").keys() {
            let method = method.to_uppercase();
            let answer = Backend::with(&server, "wrong-0123456789").send(&method, &path, "", b"");
            assert_eq!(answer.status, if path.starts_with("/v1") { 401 } else { 200 }, "{method} {path}");
            closed += usize::from(answer.status == 401);
            let wrong = Backend::of(&server).send("DELETE", &path, "", b"");
            let allowed = wrong.header("allow").unwrap_or_default().split(',').any(|other| other == method);
            assert!(wrong.status == 405 && allowed, "{method} {path}: {wrong:?}");
        }
    }
    assert_eq!(closed, 24);
}

#[test]
fn each_key_opens_what_the_document_says_and_nothing_else() {
    const SCOPES: [&str; 3] = ["publish", "read", "admin"];
    let key = |scope: &str| format!("only-for-{scope}-0123456789");
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("api-scopes-{}.toml", std::process::id()));
    let table = |scope: &str| {
        format!("[[api.keys]]\nname = \"{scope}\"\nkey = \"{}\"\nscopes = [\"{scope}\"]\n", key(scope))
    };
    std::fs::write(&file, SCOPES.map(table).concat()).expect("cargo's folder for tests can be written");
    let server = Server::with_flags(&["--config", file.to_str().expect("a path of ours")]);
    std::fs::remove_file(&file).expect("it is there");
    let document = server.control("/openapi.json").json();
    // What a tag says of a scope holds for all routes that have it.
    let scope_of = |tag: &Value| {
        let mut tags = document["tags"].as_array().expect("a list").iter();
        let tag = tags.find(|other| other["name"] == *tag).expect("a tag that is explained");
        let said = tag["description"].as_str().expect("text");
        SCOPES.into_iter().find(|scope| said.contains(&format!("Scope `{scope}`")))
    };
    let keys: Vec<(Option<&str>, String)> =
        [(None, String::new()), (None, "Bearer wrong-0123456789".to_owned())]
            .into_iter()
            .chain(SCOPES.map(|scope| (Some(scope), format!("Bearer {}", key(scope)))))
            .collect();
    let (mut opened, mut closed) = (0, 0);
    for (path, methods) in document["paths"].as_object().expect("an object") {
        for (method, route) in methods.as_object().expect("an object") {
            let needed = scope_of(&route["tags"][0]);
            let is_free = route["security"].as_array().is_some_and(Vec::is_empty);
            assert_eq!(needed.is_none(), is_free, "{method} {path}");
            for (scope, shown) in &keys {
                // HEAD is GET without the body, for who may GET.
                let methods = [method.to_uppercase(), "HEAD".to_owned()];
                for method in &methods[..if method == "get" { 2 } else { 1 }] {
                    let mut raw = Raw::connect(server.control_address());
                    let target = path.replace(['{', '}'], "");
                    let shown =
                        if shown.is_empty() { String::new() } else { format!("Authorization: {shown}\r\n") };
                    raw.send(format!(
                        "{method} {target} HTTP/1.1\r\nHost: throng\r\n{shown}Content-Length: 0\r\n\r\n"
                    ));
                    let answer = if method == "HEAD" { raw.response_to_head() } else { raw.response() };
                    let what = format!("{method} {path}, with {shown:?}: {answer:?}");
                    match (needed, scope) {
                        (Some(_), None) => assert_eq!(answer.status, 401, "{what}"),
                        (Some(needed), Some(scope)) if needed != *scope => {
                            assert_eq!(answer.status, 403, "{what}")
                        }
                        _ => assert!(![401, 403, 500].contains(&answer.status), "{what}"),
                    }
                    assert!(route["responses"].get(answer.status.to_string()).is_some(), "{what}");
                    *(if [401, 403].contains(&answer.status) { &mut closed } else { &mut opened }) += 1;
                }
            }
        }
    }
    // Seven routes are for everybody, by two methods; eleven by two and thirteen by one open to one key of the five.
    assert_eq!((opened, closed), (7 * 2 * 5 + 11 * 2 + 13, (11 * 2 + 13) * 4));
}

#[test]
fn a_connection_with_a_key_stays() {
    let server = Server::with(&[WITH_KEY, "api.kept_connections_max=2"]);
    let mut kept: Vec<Backend> = (0..2).map(|_| Backend::of(&server)).collect();
    kept.iter_mut().for_each(|backend| drop(backend.get("/v1/rooms")));
    let mut further = Backend::of(&server);
    further.get("/v1/rooms");
    // Those without a place are cut when they have said nothing for five seconds.
    further.raw.set_patience(Duration::from_secs(15));
    further.raw.ended();
    // What takes all places of those without a key does not bother those with one.
    let strangers: Vec<Raw> = (0..64).map(|_| Raw::connect(server.control_address())).collect();
    for backend in &mut kept {
        backend.publish(&json!({"room": "a", "event": "e"}));
    }
    assert_eq!(kept[0].get("/v1/connections/count")["connections"], 0);
    drop(strangers);
    drop(kept);
    eventually("the places are free", || {
        (server.metrics().sum("throng_api_connections", &[]) == 0.0).then_some(())
    });
}

#[test]
fn what_backends_publish_has_a_bound_of_its_own() {
    let server = Server::with(&[
        WITH_KEY,
        "limits.message_bytes_max=1000",
        "api.body_bytes_max=50000",
        "outbox.bytes_max=21024",
    ]);
    let mut member = server.client();
    member.join(&["a"]);
    let mut backend = Backend::of(&server);
    let of = |bytes: usize| json!({"room": "a", "event": "e", "data": "x".repeat(bytes)});
    backend.publish(&of(15_000));
    member.hears("a", "e", json!("x".repeat(15_000)));
    // A list may be longer than an outbox, and what is in it not.
    let answer = backend.say("/v1/publish", &json!({"publications": [of(19_000), of(19_000)]}));
    assert_eq!(answer.json()["published"], 2);
    member.hears("a", "e", json!("x".repeat(19_000)));
    member.hears("a", "e", json!("x".repeat(19_000)));
    for bytes in [20_000, 49_000, 50_000] {
        let (status, code, _) = backend.refused("/v1/publish", JSON, of(bytes).to_string());
        assert_eq!((status, &*code), (413, "too_large"), "{bytes}");
        backend = Backend::of(&server);
    }
    member.has_heard_all();
    // That of clients is theirs alone.
    member.say_text("x".repeat(1001));
    assert_eq!(member.closed().0, 1009);
}

#[test]
fn hostile_requests_get_an_answer_and_nothing_else() {
    let server = Server::with(&[WITH_KEY, "api.body_bytes_max=4096", "limits.rooms_per_connection_max=3"]);
    let mut member = server.client();
    member.join(&["a"]);
    let mut backend = Backend::of(&server);
    let deep = |depth: usize| {
        format!(r#"{{"room":"a","event":"deep","data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    assert_eq!(backend.post("/v1/publish", JSON, deep(120)).status, 200);
    let named = |name: &str| format!(r#"{{"room":"{name}","event":"e"}}"#);
    let rows: &[(&str, u16, &str)] = &[
        ("", 400, "bad_json"),
        ("{", 400, "bad_json"),
        ("\u{feff}{}", 400, "bad_json"),
        ("{\"room\":\"a\",\"event\":\"e\"}x", 400, "bad_json"),
        ("{\"room\":\"a\",\"event\":\"\u{1}\"}", 400, "bad_json"),
        ("{\"room\":\"a\",\"event\":\"e\",\"data\":{1:2}}", 400, "bad_json"),
        ("{\"room\":\"a\",\"event\":\"e\",\"data\":NaN}", 400, "bad_json"),
        (&deep(121), 422, "bad_value"),
        (&deep(2000), 422, "bad_value"),
        ("[]", 422, "bad_value"),
        ("[\"a\",null,null,null,null,\"e\"]", 422, "bad_value"),
        ("null", 422, "bad_value"),
        ("{}", 422, "bad_value"),
        ("{\"event\":\"e\"}", 422, "bad_value"),
        ("{\"room\":\"a\"}", 422, "bad_value"),
        ("{\"room\":null,\"event\":\"e\"}", 422, "bad_value"),
        ("{\"room\":\"a\",\"event\":\"e\",\"except\":null}", 422, "bad_value"),
        ("{\"room\":\"a\",\"event\":\"e\",\"except\":\"b\"}", 422, "bad_value"),
        ("{\"room\":\"a\",\"event\":\"e\",\"volatile\":1}", 422, "bad_value"),
        ("{\"room\":\"a\",\"room\":\"a\",\"event\":\"e\"}", 422, "bad_value"),
        ("{\"room\":\"a\",\"rooms\":[\"b\"],\"event\":\"e\"}", 422, "bad_value"),
        ("{\"rooms\":[],\"event\":\"e\"}", 422, "bad_value"),
        ("{\"rooms\":[\"a\",\"b\",\"c\",\"d\"],\"event\":\"e\"}", 422, "too_many_rooms"),
        ("{\"all\":false,\"event\":\"e\"}", 422, "bad_value"),
        ("{\"user\":7,\"event\":\"e\"}", 422, "bad_value"),
        ("{\"user\":\"\",\"event\":\"e\"}", 422, "bad_user"),
        ("{\"room\":\"a\",\"event\":\"e\",\"namespace\":\"chat\"}", 422, "bad_value"),
        ("{\"room\":\"a\",\"event\":\"e\",\"namespace\":\"/\\u0000\"}", 422, "bad_value"),
        (&named(""), 422, "bad_room"),
        (&named("\\u0000"), 422, "bad_room"),
        (&named(&"x".repeat(201)), 422, "bad_room"),
        (&named(&"x".repeat(5000)), 413, "too_large"),
        ("{\"publications\":[]}", 422, "bad_value"),
        ("{\"publications\":{}}", 422, "bad_value"),
        ("{\"publications\":[{}],\"event\":\"e\"}", 422, "bad_value"),
    ];
    for (body, status, code) in rows {
        let (found, error, _) = backend.refused("/v1/publish", JSON, body);
        assert_eq!((found, &*error), (*status, *code), "{body}");
        // A body that was not read ends its connection.
        if found == 413 {
            backend = Backend::of(&server);
        }
    }
    let (_, _, message) = backend.refused("/v1/publish", JSON, r#"{"room":"a","event":"e","rom":1}"#);
    assert!(message.contains("unknown field `rom`"), "{message}");
    let (_, _, message) = backend.refused("/v1/publish", JSON, r#"{"room":"a","event":"e","event":"f"}"#);
    assert!(message.contains("duplicate field `event`"), "{message}");
    let long = format!(r#"{{"room":"a","event":"e","{}":1}}"#, "x".repeat(3000));
    let (_, _, message) = backend.refused("/v1/publish", JSON, long);
    assert!(message.len() < 400, "{message}");
    for (path, kind, body, status) in [
        ("/v1/publish", "text/plain", "{}", 415),
        ("/v1/publish", LINES, "{}", 415),
        ("/v1/publish/stream", JSON, "{}", 415),
        ("/v1/publish/bytes?room=a&event=e", JSON, "{}", 415),
        ("/v1/publish/bytes?room=a", "application/octet-stream", "", 422),
        ("/v1/publish/bytes?event=a", "application/octet-stream", "", 422),
        ("/v1/publish/bytes?room=a&event=e&x=y", "application/octet-stream", "", 422),
        ("/v1/publish/bytes?room=a&event=e&event=f", "application/octet-stream", "", 422),
        ("/v1/publish/bytes?room=%ff&event=e", "application/octet-stream", "", 400),
        ("/v1/publish?room=a", JSON, "{}", 422),
        ("/v1/rooms/%ff/join", JSON, "{}", 400),
        ("/v1/rooms/%00/join", JSON, "{}", 422),
        ("/v1/rooms/a/join", JSON, "{\"rooms\":[]}", 422),
        ("/v1/rooms/a/join", JSON, "{\"rooms\":[\"\"]}", 422),
        ("/v1/rooms/a/join", JSON, "{\"rooms\":\"b\"}", 422),
        ("/v1/rooms/a/fly", JSON, "{}", 404),
        ("/v2/publish", JSON, "{}", 404),
    ] {
        assert_eq!(backend.refused(path, kind, body).0, status, "{path} {body}");
    }
    let compressed = format!("Content-Type: {JSON}\r\nContent-Encoding: gzip\r\n");
    assert_eq!(backend.send("POST", "/v1/publish", &compressed, b"{}").status, 415);
    // Heads that are too much, a body that claims much, one whose end does not come, and one that is not HTTP.
    let many = "X: y\r\n".repeat(500);
    let ask = |request: String| {
        let mut raw = Raw::connect(server.control_address());
        raw.send(request);
        raw
    };
    let head = format!("POST /v1/publish HTTP/1.1\r\nHost: throng\r\nAuthorization: Bearer {KEY}\r\n");
    assert_eq!(ask(format!("{head}{many}\r\n")).response().status, 431);
    assert_eq!(ask(format!("{head}X: {}\r\n\r\n", "y".repeat(20_000))).response().status, 431);
    let claimed = format!("{head}Content-Type: {JSON}\r\nContent-Length: 99999999999\r\n\r\n");
    assert_eq!(ask(claimed).response().status, 413);
    let mut slow = ask(format!("{head}Content-Type: {JSON}\r\nContent-Length: 100\r\n\r\n{{"));
    let both =
        format!("{head}Content-Type: {JSON}\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}");
    assert_eq!(ask(both).response().status, 400);
    let mut chunked = ask(format!("{head}Content-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"));
    chunked.send(format!("2000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x2000)));
    assert_eq!(chunked.response().status, 413);
    slow.set_patience(Duration::from_secs(25));
    assert_eq!(slow.response().status, 408);
    // A good client has noticed nothing, and the good request is still what it was.
    assert_eq!(member.message()["event"], "deep");
    backend.publish(&json!({"room": "a", "event": "fine"}));
    member.hears("a", "fine", Value::Null);
    member.has_heard_all();
}

#[test]
fn the_document_is_true() {
    let server = Server::with(&[WITH_KEY]);
    let _members = server.crowd(2);
    let mut script = foreign::python("openapi.py");
    script.arg(server.control_address().to_string()).arg(KEY);
    foreign::check(script, foreign::PYTHON, 500);
    assert!(!server.control("/metrics").body.contains("status=\"500\""));
}

#[test]
fn the_examples_do_what_they_say() {
    let server = Server::with(&[WITH_KEY]);
    let mut member = server.client();
    member.join(&["auction:7"]);
    let text = include_str!("../../docs/backend.md");
    let mut ran = 0;
    for piece in text.split("\n```").collect::<Vec<_>>().windows(3) {
        let [example, between, printed] = piece else { continue };
        let (Some((language, code)), Some(expected)) =
            (example.split_once('\n'), printed.strip_prefix("text\n"))
        else {
            continue;
        };
        assert_eq!(*between, "", "what is printed stands right behind the example");
        let mut command = match language {
            "sh" => Command::new("bash"),
            "js" => Command::new("node"),
            "python" => Command::new("python3"),
            other => panic!("an example in {other}"),
        };
        match language {
            "sh" => command.args(["-euc", code]),
            "js" => command.args(["--input-type=module", "-e", code]),
            _ => command.args(["-c", code]),
        };
        command.env("THRONG", format!("http://{}", server.control_address())).env("KEY", KEY);
        let said = foreign::run(command, "install curl, Node and Python", Duration::from_secs(30));
        assert!(
            is_like(said.trim_end(), expected.trim_end()),
            "the example says\n{expected}\nand prints\n{said}"
        );
        ran += 1;
    }
    assert!(ran >= 10, "{ran} examples");
    // What they have published has come, and the last one has closed it.
    member.hears("auction:7", "bid", json!({"amount": 120}));
    assert_eq!(member.closed(), (4100, "sold".to_owned()));
}

/// True when `text` is `pattern`, where `…` stands for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut rest = text;
    for (place, piece) in pattern.split('…').enumerate() {
        match rest.find(piece) {
            Some(at) if place > 0 || at == 0 => rest = &rest[at + piece.len()..],
            _ => return false,
        }
    }
    rest.is_empty()
}

#[test]
fn users_are_listed_each_once() {
    let secret = format!("auth.secret={SECRET}");
    let server =
        Server::with(&[WITH_KEY, &secret, "server.shards=4", r#"socketio.namespaces=["/","/chat"]"#]);
    let mut backend = Backend::of(&server);
    assert_eq!(backend.get("/v1/users"), json!({"users": []}));
    let tokens: Vec<String> =
        (0..5).map(|user| token(&["--user", &format!("u {user}"), "--room", "r"])).collect();
    let mut nobodies = server.crowd(3);
    let mut clients: Vec<Client> = Vec::new();
    for (user, token) in tokens.iter().enumerate() {
        let open = |_| Client::over(server.raw(), &format!("/ws?token={token}"), &[]);
        // So many that some are on several shards.
        clients.extend((0..=4 * user).map(open));
    }
    clients
        .iter_mut()
        .chain(&mut nobodies)
        .for_each(|client| assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong"));
    assert!(server.shards_in_use() > 1);
    let expected: BTreeSet<(String, u64)> = (0..5).map(|user| (format!("u {user}"), 4 * user + 1)).collect();
    for limit in [1, 2, 100] {
        let listed = backend.list(&format!("/v1/users?limit={limit}"), "users");
        let read = |user: &Value| {
            (
                user["user"].as_str().expect("a name").to_owned(),
                user["connections"].as_u64().expect("a number"),
            )
        };
        assert_eq!(listed.len(), 5, "{listed:?}");
        assert_eq!(listed.iter().map(read).collect::<BTreeSet<_>>(), expected);
    }
    assert_eq!(backend.get("/v1/count"), json!({"connections": 48, "rooms": 1, "users": 5}));
    let user = backend.get("/v1/users/u%202");
    assert_eq!((&user["user"], &user["connections"]), (&json!("u 2"), &json!(9)));
    let listed = user["listed"].as_array().expect("a list");
    assert_eq!(listed.len(), 9);
    for connection in listed {
        assert_eq!(
            (&connection["user"], &connection["namespaces"][0]["rooms"]),
            (&json!("u 2"), &json!(["r"]))
        );
        let id = connection["id"].as_str().expect("an id");
        assert_eq!(backend.get(&format!("/v1/connections/{id}"))["user"], "u 2");
    }
    assert_eq!(backend.list("/v1/connections?address=127.0.0.1&limit=7", "connections").len(), 48);
    assert_eq!(backend.list("/v1/connections?address=127.0.0.2", "connections").len(), 0);
    assert_eq!(backend.send("GET", "/v1/connections?address=localhost", "", b"").status, 422);
    let nobody = json!({"user": "nobody", "connections": 0, "listed": []});
    assert_eq!(backend.get("/v1/users/nobody"), nobody);
    let (status, code, _) = refusal(&backend.send("GET", "/v1/users/a%0Ab", "", b""));
    assert_eq!((status, &*code), (422, "bad_user"));
    clients.drain(..9 + 5 + 1).for_each(|client| _ = client.close(1000));
    eventually("they are gone", || (backend.get("/v1/count")["users"] == 2).then_some(()));
}

#[test]
fn who_has_dropped_out_is_no_user_until_it_comes_back() {
    let secret = format!("auth.secret={SECRET}");
    let server = Server::with(&[WITH_KEY, &secret, "socketio.recovery_ms=60000"]);
    let mut backend = Backend::of(&server);
    let seven = token(&["--user", "7"]);
    let mut socket = server.socket(&format!("/socket.io/?EIO=4&transport=websocket&token={seven}"));
    socket.frame();
    socket.send(frame(FIN | TEXT, "40"));
    socket.frame();
    assert_eq!(backend.get("/v1/users"), json!({"users": [{"user": "7", "connections": 1}]}));
    socket.reset();
    server.wait_for_number("connections", 0);
    assert_eq!(server.number("memberships"), 1, "what it left behind");
    assert_eq!(backend.get("/v1/users"), json!({"users": []}));
    assert_eq!(backend.get("/v1/count")["users"], 0);
    assert_eq!(backend.get("/v1/users/7")["connections"], 0);
}

#[test]
fn a_user_goes_completely_wherever_it_is() {
    let redis = Redis::start();
    let (urls, secret) = (format!("redis.urls={:?}", [redis.url()]), format!("auth.secret={SECRET}"));
    let namespaces = r#"socketio.namespaces=["/","/chat"]"#;
    let settings = [WITH_KEY, &urls, &secret, "server.shards=2", "server.echo=true", namespaces];
    let mut throngs: Vec<Server> = (0..2).map(|_| Server::with(&settings)).collect();
    throngs.iter_mut().for_each(|throng| drop(throng.wait_for_log("connected to Redis")));
    let (seven, eight) = (token(&["--user", "7"]), token(&["--user", "8"]));
    let native =
        |throng: &Server, token: &str| Client::over(throng.raw(), &format!("/ws?token={token}"), &[]);
    // In the main namespace, in another, in none, and where there are none.
    let socketio = |throng: &Server, packets: &[&str]| {
        let mut raw = throng.socket(&format!("/socket.io/?EIO=4&transport=websocket&token={seven}"));
        raw.frame();
        for packet in packets {
            raw.send(frame(FIN | TEXT, packet));
            raw.frame();
        }
        raw
    };
    let mut sevens: Vec<Client> = throngs.iter().map(|throng| native(throng, &seven)).collect();
    let mut others: Vec<Client> = throngs.iter().map(|throng| native(throng, &eight)).collect();
    let mut sockets: Vec<Raw> = Vec::new();
    for throng in &throngs {
        sockets.push(socketio(throng, &["40"]));
        sockets.push(socketio(throng, &["40/chat,"]));
        sockets.push(socketio(throng, &[]));
        sockets.push(throng.socket(&format!("/echo?token={seven}")));
    }
    for client in sevens.iter_mut().chain(&mut others) {
        assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong");
    }
    let mut backend = Backend::of(&throngs[0]);
    let answer = backend.say("/v1/users/7/join", &json!({"rooms": ["all"]}));
    assert_eq!((answer.status, answer.json()), (202, json!({"connections": 5})));
    let mut second = Backend::of(&throngs[1]);
    // Listening takes a moment.
    eventually("they join everywhere", || {
        backend.say("/v1/users/7/join", &json!({"rooms": ["all"]}));
        (second.get("/v1/rooms/all")["members"] == 2).then_some(())
    });
    assert_eq!(backend.say("/v1/users/7/leave?namespace=/", &json!({"rooms": ["all"]})).status, 202);
    eventually("they leave everywhere", || (second.get("/v1/rooms/all")["members"] == 0).then_some(()));

    let answer = backend.say("/v1/users/7/disconnect", &json!({"code": 4111, "reason": "bänned"}));
    assert_eq!((answer.status, answer.json()), (202, json!({"connections": 5})));
    for client in sevens {
        assert_eq!(client.closed(), (4111, "bänned".to_owned()));
    }
    for socket in &mut sockets {
        let close = eventually("its close", || Some(socket.frame()).filter(|frame| frame.opcode == CLOSE));
        assert_eq!(
            (&close.payload[..2], &close.payload[2..]),
            (&4111_u16.to_be_bytes()[..], "bänned".as_bytes())
        );
    }
    for (throng, other) in throngs.iter().zip(&mut others) {
        assert_eq!(other.ask(json!({"type": "ping"}))["type"], "pong");
        assert_eq!(Backend::of(throng).get("/v1/users/7")["connections"], 0);
    }
    let (status, ..) = backend.refused("/v1/users/7/disconnect", JSON, r#"{"code":1001}"#);
    assert_eq!(status, 422);
}

#[test]
fn a_key_may_ask_so_often() {
    let server = Server::with(&[WITH_KEY, "api.requests_per_second_max=5"]);
    let mut backend = Backend::of(&server);
    let answers: Vec<Response> = (0..50).map(|_| backend.send("GET", "/v1/rooms", "", b"")).collect();
    let refused: Vec<&Response> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(answers[..5].iter().all(|answer| answer.status == 200));
    assert!((20..=45).contains(&refused.len()), "{}", refused.len());
    for answer in &refused {
        assert_eq!(
            (answer.header("retry-after"), answer.json()["error"].as_str()),
            (Some("1"), Some("rate_limited"))
        );
    }
    let metrics = server.metrics();
    let labels = ["route=\"/v1/rooms\"", "status=\"429\""];
    assert_eq!(metrics.sum("throng_api_requests_total", &labels), refused.len() as f64);
    assert_eq!(Backend::with(&server, "wrong-0123456789").send("GET", "/v1/rooms", "", b"").status, 401);
    eventually("it may again", || (backend.send("GET", "/v1/rooms", "", b"").status == 200).then_some(()));
}

#[test]
fn an_event_for_a_user_reaches_all_of_the_users_connections_in_all_processes() {
    let redis = Redis::start();
    let (urls, secret) = (format!("redis.urls={:?}", [redis.url()]), format!("auth.secret={SECRET}"));
    let settings = [WITH_KEY, &urls, &secret, "server.shards=2"];
    let mut throngs: Vec<Server> = (0..2).map(|_| Server::with(&settings)).collect();
    throngs.iter_mut().for_each(|throng| drop(throng.wait_for_log("connected to Redis")));
    let of = |throng: &Server, user: &str| {
        Client::over(throng.raw(), &format!("/ws?token={}", token(&["--user", user])), &[])
    };
    let mut sevens = [&throngs[0], &throngs[0], &throngs[1]].map(|throng| of(throng, "7"));
    let mut other = of(&throngs[1], "8");
    Backend::of(&throngs[0]).publish(&json!({"user": "7", "event": "letter", "data": 1}));
    for client in &mut sevens {
        let event = client.message();
        assert_eq!((&event["event"], &event["data"]), (&json!("letter"), &json!(1)), "{event}");
        client.has_heard_all();
    }
    other.has_heard_all();
    let long = "x".repeat(201);
    for user in [json!(""), json!(long), json!("a\nb")] {
        let body = json!({"user": user, "event": "letter"}).to_string();
        assert_eq!(Backend::of(&throngs[0]).refused("/v1/publish", JSON, body).0, 422, "{user}");
    }
}

#[test]
fn who_is_ended_in_the_middle_of_what_it_says_is_in_no_room() {
    let server = Server::with(&[WITH_KEY, "server.shards=1", "limits.receive_bytes_max=64MiB"]);
    let joins: Vec<String> =
        (0..8_000).map(|n| format!("42[\"join\",{{\"room\":\"r{}\"}}]", n % 3)).collect();
    let joins = joins.join("\x1e");
    for round in 0..20_u64 {
        let mut polled = server.raw();
        let mut ask = |method: &str, query: &str, body: &str| {
            polled.send(format!(
                "{method} /socket.io/?EIO=4&transport=polling{query} HTTP/1.1\r\nHost: throng\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            polled.response()
        };
        let open: Value = serde_json::from_str(&ask("GET", "", "").body[1..]).expect("JSON");
        let sid = format!("&sid={}", open["sid"].as_str().expect("an id"));
        ask("POST", &sid, "40");
        let joined: Value = serde_json::from_str(&ask("GET", &sid, "").body[2..]).expect("JSON");
        let path = format!("/v1/connections/{}/disconnect", joined["sid"].as_str().expect("an id"));
        let mut api = Backend::of(&server);
        let ender = std::thread::spawn(move || {
            rest(Duration::from_millis(1 + round));
            api.say(&path, &json!({})).status
        });
        ask("POST", &sid, &joins);
        assert!(matches!(ender.join().expect("it was answered"), 200 | 202 | 204));
    }
    server.wait_for_number("rooms", 0);
    let mut api = Backend::of(&server);
    (0..3).for_each(|room| api.publish(&json!({"room": format!("r{room}"), "event": "e", "data": 1})));
    assert_eq!(server.control("/health").status, 200);
}
