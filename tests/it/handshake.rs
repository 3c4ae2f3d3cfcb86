//! Before the connection is open: every row of that table in docs/protocol.md, and HTTP as others speak it.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{ACCEPT, FIN, KEY, TEXT, upgrade_head};
use crate::harness::{Client, Raw, Response, Server, WAIT, eventually, frame};
use serde_json::json;
use std::time::Duration;

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

/// Sends one request and answers the answer, which must have this status, be JSON, and say whether the connection goes on.
fn check(server: &Server, request: &str, status: u16) -> Response {
    let mut raw = server.raw();
    raw.send(request);
    let response = raw.response();
    assert_eq!(response.status, status, "{request:?}: {response:?}");
    let body = response.json();
    assert!(
        body["error"].as_str().is_some_and(|label| server.number(&format!("rejects/{label}")) > 0)
            || status == 200,
        "{response:?}"
    );
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let connection = response.header("connection").unwrap_or("");
    if connection.contains("close") {
        raw.ended();
    } else {
        raw.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
        assert_eq!(raw.response().status, 200, "the connection goes on after {request:?}");
    }
    response
}

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: throng\r\n{lines}\r\n")
}

#[test]
fn an_upgrade_is_granted_with_exactly_what_the_rfc_asks_for() {
    let server = Server::with(&["server.echo=true"]);
    for path in ["/ws", "/echo", "/ws?token=a&b=/c"] {
        let mut raw = server.raw();
        raw.send(upgrade_head(path, ""));
        let response = raw.response();
        assert_eq!((response.status, response.phrase.as_str()), (101, "Switching Protocols"));
        assert_eq!(response.header("upgrade"), Some("websocket"));
        assert_eq!(response.header("connection"), Some("Upgrade"));
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        assert_eq!(response.header("sec-websocket-protocol"), None, "none was offered");
        assert_eq!(response.header("sec-websocket-extensions"), None);
    }
}

#[test]
fn headers_are_read_in_any_case_and_order_and_lists_in_any_place() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.send(format!(
        "GET /ws HTTP/1.1\r\nsec-websocket-key:{KEY}\r\nSEC-WEBSOCKET-VERSION:  13 \r\nX-Other: \u{e9}\r\n\
         connection: keep-alive, uPGRADE\r\nupgrade: h2c, WebSocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\nhost: a\r\n\r\n"
    ));
    let response = raw.response();
    assert_eq!(response.status, 101, "{response:?}");
    assert_eq!(response.header("sec-websocket-extensions"), None, "no extension is spoken");
}

#[test]
fn echo_is_not_there_unless_configured() {
    let server = Server::start();
    check(&server, &upgrade_head("/echo", ""), 404);
    check(&server, &get("/echo", ""), 404);
}

#[test]
fn other_paths_are_not_found() {
    let server = Server::start();
    for path in ["/", "/ws/", "/WS", "/ws%2f", "/socket.io", "/metrics", "/health/x"] {
        check(&server, &get(path, ""), 404);
        check(&server, &upgrade_head(path, ""), 404);
    }
    check(&server, "POST /nowhere HTTP/1.1\r\nHost: throng\r\n\r\n", 404);
}

#[test]
fn a_websocket_path_without_an_upgrade_asks_for_one() {
    let server = Server::start();
    for lines in ["", "Connection: Upgrade\r\n", "Upgrade: h2c\r\nConnection: Upgrade\r\n"] {
        let response = check(&server, &get("/ws", lines), 426);
        assert_eq!(response.phrase, "Upgrade Required");
        assert_eq!(response.header("upgrade"), Some("websocket"));
        assert_eq!(response.header("connection"), Some("upgrade"), "Upgrade is for this hop only");
    }
}

#[test]
fn another_version_of_websocket_is_told_which_one_is_spoken() {
    let server = Server::start();
    for version in ["8", "7", "14", "0", "13, 8", "thirteen"] {
        let lines = format!("{UPGRADE}Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: {version}\r\n");
        let response = check(&server, &get("/ws", &lines), 426);
        assert_eq!(response.header("sec-websocket-version"), Some("13"), "{version}");
    }
}

#[test]
fn an_upgrade_that_lacks_something_is_a_bad_request() {
    let server = Server::start();
    let key = |value: &str| format!("{UPGRADE}{VERSION}Sec-WebSocket-Key: {value}\r\n");
    for lines in [
        format!("{UPGRADE}{VERSION}"),
        key(""),
        key("c2hvcnQ="),
        key("dGhlIHNhbXBsZSBub25jZSE="),
        key("dGhlIHNhbXBsZSBub25j*Q=="),
        key("dGhlIHNhbXBsZSBub25jZQ"),
        key(KEY) + &format!("Sec-WebSocket-Key: {KEY}\r\n"),
        format!("{UPGRADE}Sec-WebSocket-Key: {KEY}\r\n"),
        format!("Upgrade: websocket\r\n{VERSION}Sec-WebSocket-Key: {KEY}\r\n"),
        format!("Upgrade: websocket\r\nConnection: close\r\n{VERSION}Sec-WebSocket-Key: {KEY}\r\n"),
        key(KEY) + "Content-Length: 5\r\n",
        key(KEY) + "Transfer-Encoding: chunked\r\n",
    ] {
        check(&server, &get("/ws", &lines), 400);
    }
    let old = format!("GET /ws HTTP/1.0\r\nHost: throng\r\n{}\r\n", key(KEY));
    check(&server, &old, 400);
    assert_eq!(server.number("rejects/malformed"), 13);
}

#[test]
fn a_malformed_head_is_a_bad_request_and_the_end() {
    let server = Server::start();
    for head in [
        "GET /ws HTTP/1.1\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET /ws HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET /ws HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET  /ws HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /ws\r\n\r\n",
        "G(T /ws HTTP/1.1\r\nHost: a\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let response = check(&server, head, 400);
        assert_eq!(response.header("connection"), Some("close"), "{head:?}");
    }
}

#[test]
fn what_is_no_http_at_all_is_answered_with_400() {
    let server = Server::start();
    let tls_hello = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[0x5a; 64]].concat();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as u8 | 0x80
    })
    .take(200)
    .collect();
    for bytes in [tls_hello, noise, vec![0; 10], vec![0xff; 10]] {
        let mut raw = server.raw();
        raw.send(&bytes);
        assert_eq!(raw.response().status, 400, "{bytes:x?}");
        raw.ended();
    }
}

#[test]
fn other_methods_are_told_which_ones_there_are() {
    let server = Server::start();
    for path in ["/ws", "/health", "/ready"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "BREW"] {
            let response = check(&server, &format!("{method} {path} HTTP/1.1\r\nHost: throng\r\n\r\n"), 405);
            assert_eq!(response.header("allow"), Some("GET, HEAD"), "{method} {path}");
        }
    }
    let post = "POST /ws HTTP/1.1\r\nHost: throng\r\nContent-Length: 5\r\n\r\nhello";
    let response = check(&server, post, 405);
    assert_eq!(response.header("connection"), Some("close"), "a body is not read past");
    let chunked = "POST /health HTTP/1.1\r\nHost: throng\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(check(&server, chunked, 405).header("connection"), Some("close"));
}

#[test]
fn health_and_ready_are_json() {
    let server = Server::start();
    let _client = server.client();
    for (path, status) in [("/health", "ok"), ("/ready", "ready")] {
        let body = check(&server, &get(path, ""), 200).json();
        assert_eq!(body["status"], status);
        assert_eq!(body["connections"], 1);
        assert!(body["uptime_seconds"].is_u64() && body["memory_bytes"].is_u64(), "{body}");
        check(&server, &get(&format!("{path}?from=probe"), ""), 200);
    }
}

#[test]
fn head_gets_the_same_answer_without_its_body() {
    let server = Server::start();
    let mut raw = server.raw();
    for (path, status) in [("/health", 200), ("/ready", 200), ("/ws", 426), ("/nowhere", 404)] {
        // The numbers in an answer may have become longer in between.
        eventually("both have the same length", || {
            raw.send(get(path, ""));
            let whole = raw.response();
            raw.send(format!("HEAD {path} HTTP/1.1\r\nHost: throng\r\n\r\n"));
            let head = raw.response_to_head();
            assert_eq!((head.status, whole.status), (status, status));
            assert_eq!(head.header("content-type"), whole.header("content-type"));
            let length = head.header("content-length").and_then(|text| text.parse::<usize>().ok());
            (length.expect("a length") == whole.body.len()).then_some(())
        });
    }
    raw.send(upgrade_head("/ws", "").replace("GET", "HEAD"));
    assert_eq!(raw.response_to_head().status, 426, "HEAD does not upgrade");
}

#[test]
fn a_connection_serves_several_requests_and_says_when_it_ends() {
    let server = Server::start();
    let mut raw = server.raw();
    for path in ["/health", "/nowhere", "/ready", "/ws", "/health"] {
        raw.send(get(path, ""));
        assert!([200, 404, 426].contains(&raw.response().status));
    }
    raw.send(get("/health", "Connection: close\r\n"));
    assert_eq!(raw.response().header("connection"), Some("close"));
    raw.ended();

    for more in ["", "Connection: keep-alive\r\n"] {
        // HTTP/1.0 needs no Host, and knows no connection that stays.
        let mut old = server.raw();
        old.send(format!("GET /health HTTP/1.0\r\n{more}\r\n"));
        let response = old.response();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        old.ended();
    }
    assert_eq!(server.number("totals/accepts"), 3);
    assert_eq!(server.number("totals/http_requests"), 6);
}

#[test]
fn pipelined_requests_are_answered_in_order_up_to_an_upgrade() {
    let server = Server::start();
    let mut raw = server.raw();
    let join = frame(FIN | TEXT, r#"{"type":"join","rooms":["lobby"],"id":"now"}"#);
    let requests =
        [get("/health", ""), get("/nowhere", ""), get("/ready", ""), upgrade_head("/ws", "")].concat();
    raw.send([requests.as_bytes(), &join, &join].concat());
    for status in [200, 404, 200, 101] {
        assert_eq!(raw.response().status, status);
    }
    raw.is_at("/ws");
    for _ in 0..2 {
        let ack = raw.frame();
        assert_eq!(ack.payload, br#"{"type":"ack","id":"now","rooms":{"lobby":{"members":0}}}"#);
    }
}

#[test]
fn after_the_last_request_nothing_is_answered() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.send([get("/health", "Connection: close\r\n"), get("/health", "")].concat());
    assert_eq!(raw.response().status, 200);
    raw.ended();
}

#[test]
fn who_ends_its_side_after_asking_is_still_answered() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.send([get("/health", ""), get("/nowhere", "")].concat());
    raw.end_sending();
    assert_eq!(raw.response().status, 200);
    assert_eq!(raw.response().status, 404);
    raw.ended();
    server.wait_for_number("sockets", 0);
}

#[test]
fn a_target_may_be_in_the_form_that_proxies_are_sent() {
    let server = Server::start();
    check(&server, "GET http://throng.example:7070/health?x HTTP/1.1\r\nHost: throng\r\n\r\n", 200);
    check(&server, "GET http://throng.example HTTP/1.1\r\nHost: throng\r\n\r\n", 404);
    let mut raw = server.raw();
    raw.send(upgrade_head("http://throng.example/ws", ""));
    assert_eq!(raw.response().status, 101);
}

#[test]
fn a_head_may_be_cut_anywhere() {
    let server = Server::start();
    let head = upgrade_head("/ws", "Origin: http://example.com\r\n");
    let mut halves: Vec<Raw> = Vec::new();
    for cut in 1..head.len() {
        let mut raw = server.raw();
        raw.send(&head[..cut]);
        halves.push(raw);
    }
    let sent: usize = (1..head.len()).sum();
    // Only when the server has all first halves do the others follow, so that no two are read as one.
    server.wait_for_number("totals/received_bytes", sent as u64);
    for (raw, cut) in halves.iter_mut().zip(1..) {
        raw.send(&head[cut..]);
    }
    for mut raw in halves {
        assert_eq!(raw.response().status, 101);
        raw.send(frame(FIN | TEXT, r#"{"type":"ping"}"#));
        assert_eq!(raw.frame().payload, br#"{"type":"pong"}"#);
    }
    assert_eq!(server.number("totals/upgrades"), head.len() as u64 - 1);
}

#[test]
fn a_head_may_come_byte_by_byte_and_frames_with_its_last() {
    let server = Server::start();
    let mut raw = server.raw();
    let head = upgrade_head("/ws", "");
    let (most, last) = head.as_bytes().split_at(head.len() - 1);
    raw.send_bytewise(most);
    let ping = frame(FIN | TEXT, r#"{"type":"ping","id":1}"#);
    // The second message is cut in its header, and again in its payload.
    raw.send([last, &ping, &ping[..3]].concat());
    assert_eq!(raw.response().status, 101);
    assert_eq!(raw.frame().payload, br#"{"type":"pong","id":1}"#);
    raw.send(&ping[3..9]);
    raw.send(&ping[9..]);
    assert_eq!(raw.frame().payload, br#"{"type":"pong","id":1}"#);
}

#[test]
fn the_subprotocol_comes_back_when_it_is_offered() {
    let server = Server::start();
    let check = |offers: &[&str], expected: Option<&str>| {
        let headers: Vec<(&str, &str)> =
            offers.iter().map(|offer| ("Sec-WebSocket-Protocol", *offer)).collect();
        let mut raw = server.raw();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        raw.send(upgrade_head("/ws", &lines));
        let response = raw.response();
        assert_eq!(response.status, 101, "{offers:?}");
        assert_eq!(response.header("sec-websocket-protocol"), expected, "{offers:?}");
    };
    check(&["throng.v1"], Some("throng.v1"));
    check(&["soap, throng.v1 , chat"], Some("throng.v1"));
    check(&["soap", "throng.v1"], Some("throng.v1"));
    check(&["soap"], None);
    check(&["throng.v2, xthrong.v1"], None);
    let client = Client::over(server.raw(), "/ws", &[("Sec-WebSocket-Protocol", "throng.v1")]);
    assert_eq!(client.subprotocol.as_deref(), Some("throng.v1"), "and a library is content with it");
    client.close(1000);
}

#[test]
fn only_pages_of_allowed_origins_may_connect() {
    let server =
        Server::with(&[r#"limits.origins=["https://app.example.com","http://*.example.org:8080","null"]"#]);
    let with = |origin: &str| upgrade_head("/ws", &format!("Origin: {origin}\r\n"));
    for origin in [
        "https://app.example.com",
        "HTTPS://App.Example.Com",
        "http://a.example.org:8080",
        "http://b.a.example.org:8080",
        "null",
    ] {
        let mut raw = server.raw();
        raw.send(with(origin));
        assert_eq!(raw.response().status, 101, "{origin}");
    }
    for origin in [
        "http://app.example.com",
        "https://app.example.com:444",
        "https://app.example.com.evil.test",
        "https://evilapp.example.com",
        "http://example.org:8080",
        "http://evilexample.org:8080",
        "http://a.example.org",
        "",
    ] {
        let response = check(&server, &with(origin), 403);
        assert_eq!(response.phrase, "Forbidden", "{origin}");
    }
    let mut no_browser = server.raw();
    no_browser.upgrade("/ws");
    assert_eq!(server.number("rejects/origin"), 8);
}

#[test]
fn a_slow_head_is_cut_off_however_steadily_it_comes() {
    let server = Server::with(&["limits.handshake_timeout_ms=300"]);
    let start = now();
    let mut raw = server.raw();
    let head = upgrade_head("/ws", &"X-More: of the same\r\n".repeat(20));
    let answered = head.bytes().find(|byte| {
        // A byte each 10 ms: the whole would take six seconds.
        let gone = raw.try_send([*byte]).is_err();
        rest(Duration::from_millis(10));
        gone || start.elapsed() > Duration::from_millis(400)
    });
    assert!(answered.is_some(), "the head did not come to its end");
    let response = raw.response();
    assert_eq!((response.status, response.phrase.as_str()), (408, "Request Timeout"));
    assert_eq!(response.header("connection"), Some("close"));
    raw.ended();
    assert_eq!(server.number("rejects/slow_head"), 1);
}

#[test]
fn a_connection_that_asks_nothing_is_closed_but_not_too_soon() {
    let server = Server::with(&["limits.handshake_timeout_ms=300"]);
    let start = now();
    let mut silent = server.raw();
    let mut asked_once = server.raw();
    asked_once.send(get("/health", ""));
    assert_eq!(asked_once.response().status, 200);
    silent.ended();
    asked_once.ended();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(295), "{waited:?}");
    assert!(waited < WAIT / 2, "{waited:?}");
    server.wait_for_number("sockets", 0);
}

#[test]
fn a_head_has_a_largest_size() {
    let server = Server::start();
    let head_of = |bytes: usize| {
        let bare = get("/health", "X: \r\n").len();
        get("/health", &format!("X: {}\r\n", "y".repeat(bytes - bare)))
    };
    check(&server, &head_of(8192), 200);
    for bytes in [8193, 20_000] {
        let response = check(&server, &head_of(bytes), 431);
        assert_eq!(response.phrase, "Request Header Fields Too Large");
        assert_eq!(response.header("connection"), Some("close"));
    }
    // One that has no end is refused when it cannot become right any more.
    let mut endless = server.raw();
    endless.send(&head_of(9000)[..8500]);
    assert_eq!(endless.response().status, 431);
    endless.ended();
    let mut target = server.raw();
    target.send(get(&format!("/{}", "a".repeat(9000)), ""));
    assert_eq!(target.response().status, 431);
}

#[test]
fn a_head_has_a_largest_number_of_lines() {
    let server = Server::start();
    check(&server, &get("/health", &"X: y\r\n".repeat(63)), 200);
    check(&server, &get("/health", &"X: y\r\n".repeat(64)), 431);
    check(&server, &get("/health", &"X: y\r\n".repeat(1000)), 431);
    assert_eq!(server.number("rejects/large_head"), 2);
}

#[test]
fn a_message_that_comes_with_the_upgrade_is_not_lost_with_any_library() {
    let server = Server::start();
    let mut client = server.client();
    client.join(&["lobby"]);
    let mut raw = server.raw();
    let hello = frame(FIN | TEXT, r#"{"type":"publish","room":"lobby","event":"hello","data":1}"#);
    raw.send([upgrade_head("/ws", "").as_bytes(), &hello].concat());
    client.hears("lobby", "hello", json!(1));
}
