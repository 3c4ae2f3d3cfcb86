//! Every limit: what is on its side works, what is past it is told so, and what it held is given back.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, upgrade_head};
use crate::harness::redis::folder;
use crate::harness::server::has_mount_namespaces;
use crate::harness::{Client, Raw, Response, Server, eventually, frame, frame_with};
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Asks for an upgrade at /ws from `source`, with more header lines. Answers the connection when it was granted, else the answer.
fn ask(server: &Server, source: &str, lines: &str) -> Result<Raw, Response> {
    let source: IpAddr = source.parse().expect("an address");
    let address =
        SocketAddr::new(if source.is_ipv4() { [127, 0, 0, 1].into() } else { source }, server.port());
    let mut raw = Raw::connect_from(source, address);
    raw.send(upgrade_head("/ws", lines));
    let response = raw.response();
    if response.status == 101 {
        raw.is_at("/ws");
        return Ok(raw);
    }
    raw.ended();
    Err(response)
}

fn granted(server: &Server, source: &str, lines: &str) -> Raw {
    ask(server, source, lines).unwrap_or_else(|response| panic!("{source} with {lines:?}: {response:?}"))
}

fn refused(server: &Server, source: &str, lines: &str, status: u16) {
    let response = ask(server, source, lines).expect_err("one too many");
    assert_eq!(response.status, status, "{source} with {lines:?}");
    assert_eq!(response.header("retry-after"), Some("5"));
    assert_eq!(response.header("connection"), Some("close"));
    assert!(response.json()["message"].is_string());
}

#[test]
fn connections_have_a_limit_in_all_and_a_place_that_is_freed_is_a_place() {
    let server = Server::with(&["limits.connections_max=3"]);
    let mut open: Vec<Raw> = (0..3).map(|_| granted(&server, "127.0.0.1", "")).collect();
    for _ in 0..5 {
        refused(&server, "127.0.0.1", "", 503);
    }
    let mut probe = server.raw();
    probe.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
    assert_eq!(probe.response().json()["connections"], 3, "a probe is answered all the same");
    for round in 1..4 {
        drop(open.remove(0));
        server.wait_for_number("connections", 2);
        open.push(granted(&server, "127.0.0.1", ""));
        refused(&server, "127.0.0.1", "", 503);
        assert_eq!(server.number("rejects/full"), 5 + round);
    }
    assert_eq!(server.number("connections_max"), 3);
    assert_eq!(server.number("connections_peak"), 3);
}

#[test]
fn there_are_no_more_connections_than_there_were_while_memory_is_short() {
    if !has_mount_namespaces() {
        eprintln!("no mount namespaces here: not tested");
        return;
    }
    let folder = folder();
    let meminfo = folder.join("meminfo");
    // In place: what is mounted is this file, and not its name.
    let take = |percent: u32| {
        let text =
            format!("MemTotal: 100000 kB\nMemFree: 0 kB\nMemAvailable: {} kB\n", (100 - percent) * 1000);
        fs::write(&meminfo, text).expect("a file of ours");
    };
    let is_short = |server: &Server| server.metrics().sum("throng_memory_short", &[]) > 0.0;
    take(50);
    let server = Server::with_memory_of(&meminfo, &["--set", "limits.memory_percent_max=90"]);
    let (mut first, second) = (granted(&server, "127.0.0.1", ""), granted(&server, "127.0.0.1", ""));
    take(91);
    eventually("it is noticed", || is_short(&server).then_some(()));
    refused(&server, "127.0.0.1", "", 503);
    assert_eq!(server.number("rejects/full"), 1);
    assert!(server.metrics().sum("throng_memory_taken_ratio", &[]) >= 0.91);
    assert!(server.log().contains("memory is short: there may be no more connections than there are"));
    // Who is inside is not touched, who asks how it is is answered, and who leaves makes room.
    first.send(frame(FIN | PING, "still here?"));
    assert_eq!(first.frame().payload, b"still here?");
    let mut probe = server.raw();
    probe.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
    assert_eq!(probe.response().json()["connections"], 2);
    drop(second);
    server.wait_for_number("connections", 1);
    let _third = granted(&server, "127.0.0.1", "");
    refused(&server, "127.0.0.1", "", 503);
    take(80);
    eventually("it is noticed", || (!is_short(&server)).then_some(()));
    granted(&server, "127.0.0.1", "");
    fs::remove_dir_all(folder).expect("it is ours");
}

#[test]
fn exactly_as_many_get_in_as_there_are_places_however_many_ask_at_once() {
    let server = Server::with(&["server.shards=4", "limits.connections_max=30"]);
    let mut asking: Vec<Raw> = (0..80).map(|_| server.raw()).collect();
    for raw in &mut asking {
        raw.send(upgrade_head("/ws", ""));
    }
    let statuses: Vec<u16> = asking.iter_mut().map(|raw| raw.response().status).collect();
    let count = |status: u16| statuses.iter().filter(|other| **other == status).count();
    assert_eq!((count(101), count(503)), (30, 50));
}

#[test]
fn connections_of_one_address_have_a_limit() {
    let server = Server::with(&["limits.connections_per_ip_max=2"]);
    let first = granted(&server, "127.0.0.1", "");
    let _second = granted(&server, "127.0.0.1", "");
    refused(&server, "127.0.0.1", "", 429);
    let _others = [
        granted(&server, "127.0.0.2", ""),
        granted(&server, "127.0.0.2", ""),
        granted(&server, "127.8.9.10", ""),
    ];
    refused(&server, "127.0.0.2", "", 429);
    drop(first);
    server.wait_for_number("connections", 4);
    let _third = granted(&server, "127.0.0.1", "");
    refused(&server, "127.0.0.1", "", 429);
    assert_eq!(server.number("rejects/per_ip"), 3);
}

#[test]
fn addresses_of_both_kinds_are_told_apart() {
    let server = Server::with(&[
        "server.listen=[::]:0",
        "limits.connections_per_ip_max=1",
        r#"limits.trusted_proxies=["127.0.0.9"]"#,
    ]);
    let _four = granted(&server, "127.0.0.1", "");
    let _six = granted(&server, "::1", "");
    refused(&server, "127.0.0.1", "", 429);
    refused(&server, "::1", "", 429);
    let _other = granted(&server, "127.0.0.2", "");
    // An IPv4 proxy is known on a socket of both kinds, too.
    let _behind = [
        granted(&server, "127.0.0.9", "X-Forwarded-For: 192.0.2.1\r\n"),
        granted(&server, "127.0.0.9", "X-Forwarded-For: 192.0.2.2\r\n"),
    ];
    refused(&server, "127.0.0.9", "X-Forwarded-For: ::ffff:192.0.2.1\r\n", 429);
}

#[test]
fn a_proxy_that_is_trusted_says_who_its_client_is() {
    let server = Server::with(&[
        "limits.connections_per_ip_max=1",
        r#"limits.trusted_proxies=["127.0.0.1/32","10.0.0.0/8"]"#,
    ]);
    let mut open = Vec::new();
    let mut first = |lines: &str| open.push(granted(&server, "127.0.0.1", lines));
    let second = |lines: &str| refused(&server, "127.0.0.1", lines, 429);

    first("X-Forwarded-For: 192.0.2.1\r\n");
    second("X-Forwarded-For: 192.0.2.1\r\n");
    first("x-forwarded-for:192.0.2.2:4711\r\n");
    second("X-Forwarded-For: 192.0.2.2\r\n");
    // What a client made up itself stands to the left, and is not believed.
    first("X-Forwarded-For: 198.51.100.1, 192.0.2.3\r\n");
    second("X-Forwarded-For: 198.51.100.2, 192.0.2.3\r\n");
    first("X-Forwarded-For: 198.51.100.1\r\n");
    // Further proxies that are trusted are passed over, on whatever line they stand.
    second("X-Forwarded-For: 192.0.2.3, 10.1.2.3\r\nX-Forwarded-For: 10.4.5.6\r\n");
    // An IPv6 client is its /64.
    first("X-Forwarded-For: 2001:db8:1:2::1\r\n");
    second("X-Forwarded-For: [2001:db8:1:2:ffff::9]:443\r\n");
    first("X-Forwarded-For: 2001:db8:1:3::1\r\n");
    // What proxies do not write they may pass on as a client wrote it.
    second("Forwarded: for=192.0.2.10\r\nX-Forwarded-For: 192.0.2.1\r\n");
    // Who says nothing that is an address counts as what it is: the proxy.
    first("X-Forwarded-For: unknown\r\n");
    second("");
    second("X-Forwarded-For: \r\n");
    second("Forwarded: for=_hidden\r\n");
}

#[test]
fn proxies_may_say_it_in_the_standard_header() {
    let server = Server::with(&[
        "limits.connections_per_ip_max=1",
        r#"limits.trusted_proxies=["127.0.0.1/32","10.0.0.0/8"]"#,
        "limits.forwarded_header=forwarded",
    ]);
    let mut open = Vec::new();
    let mut first = |lines: &str| open.push(granted(&server, "127.0.0.1", lines));
    let second = |lines: &str| refused(&server, "127.0.0.1", lines, 429);
    first("Forwarded: for=192.0.2.10;proto=https;by=10.0.0.1\r\nX-Forwarded-For: 192.0.2.1\r\n");
    second("Forwarded: For=\"192.0.2.10:55\"\r\nX-Forwarded-For: 192.0.2.2\r\n");
    first("Forwarded: for=198.51.100.77, for=\"[2001:db8:9::1]:80\"\r\n");
    second("Forwarded: for=\"[2001:db8:9::2]\"\r\n");
    first("Forwarded: for=_hidden\r\n");
    second("X-Forwarded-For: 192.0.2.3\r\n");
}

#[test]
fn nobody_else_is_believed_about_addresses() {
    let server =
        Server::with(&["limits.connections_per_ip_max=1", r#"limits.trusted_proxies=["127.0.0.1/32"]"#]);
    let _one = granted(&server, "127.0.0.2", "X-Forwarded-For: 192.0.2.1\r\n");
    refused(&server, "127.0.0.2", "X-Forwarded-For: 192.0.2.2\r\n", 429);
    refused(&server, "127.0.0.2", "Forwarded: for=192.0.2.3\r\n", 429);
    let _true_one = granted(&server, "127.0.0.1", "X-Forwarded-For: 192.0.2.1\r\n");
}

#[test]
fn a_refusal_can_be_a_close_that_a_script_can_see() {
    let server = Server::with(&[
        "limits.refuse_with=close",
        "limits.connections_per_ip_max=2",
        "limits.connections_max=3",
    ]);
    let open = [
        granted(&server, "127.0.0.1", ""),
        granted(&server, "127.0.0.1", ""),
        granted(&server, "127.0.0.2", ""),
    ];
    for source in ["127.0.0.1", "127.0.0.3"] {
        let mut raw = granted(&server, source, "");
        raw.send(frame(FIN | TEXT, r#"{"type":"ping"}"#));
        let (code, reason) = raw.closed();
        assert_eq!(
            (code, reason.as_str()),
            (1008, "the server takes no more connections at present"),
            "{source}"
        );
    }
    drop(open);
    server.wait_for_number("connections", 0);
    let _again = [granted(&server, "127.0.0.1", ""), granted(&server, "127.0.0.1", "")];
    let (code, reason) = Client::connect(server.address()).closed();
    assert_eq!((code, reason.as_str()), (1008, "Connection limit exceeded"));
    assert_eq!((server.number("rejects/per_ip"), server.number("rejects/full")), (1, 2));
    assert_eq!(server.number("totals/upgrades"), 5, "those that were refused do not count");
    server.wait_for_number("sockets", 2);
    // What is wrong with a request is still said with a status.
    let malformed = ask(&server, "127.0.0.3", "Host: two\r\n").expect_err("two Hosts");
    assert_eq!(malformed.status, 400);
}

#[test]
fn an_address_may_open_so_many_connections_in_some_time() {
    let server = Server::with(&[
        "limits.handshakes_per_ip_max=3",
        "limits.handshakes_window_ms=3000",
        r#"limits.trusted_proxies=["127.0.0.9"]"#,
        "server.shards=2",
    ]);
    // Those that are gone count, and those that poll.
    (0..2).for_each(|_| drop(granted(&server, "127.0.0.1", "")));
    // Not before: the time is from when the server heard the first.
    let began = now();
    let handshake = |source: &str| {
        let mut raw = Raw::connect_from(source.parse().expect("an address"), server.address());
        raw.send("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: throng\r\n\r\n");
        raw.response()
    };
    assert_eq!(handshake("127.0.0.1").status, 200);
    let wait_s = |response: &Response| -> u64 {
        assert_eq!((response.status, response.json()["error"].as_str()), (429, Some("ip_rate")));
        response.header("retry-after").and_then(|seconds| seconds.parse().ok()).expect("seconds")
    };
    let refused = ask(&server, "127.0.0.1", "").expect_err("one too many");
    assert!((1..=3).contains(&wait_s(&refused)) && (1..=3).contains(&wait_s(&handshake("127.0.0.1"))));
    let mut probe = server.raw();
    probe.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
    assert_eq!(probe.response().status, 200, "a probe is no connection");
    // Others are not meant, behind a proxy either.
    (0..3).for_each(|_| drop(granted(&server, "127.0.0.2", "")));
    for client in ["192.0.2.1", "192.0.2.2"] {
        let lines = format!("X-Forwarded-For: {client}\r\n");
        (0..3).for_each(|_| drop(granted(&server, "127.0.0.9", &lines)));
        assert_eq!(ask(&server, "127.0.0.9", &lines).expect_err("one too many").status, 429);
    }
    assert_eq!(server.number("rejects/ip_rate"), 4);
    rest(Duration::from_millis(3000).saturating_sub(began.elapsed()));
    drop(granted(&server, "127.0.0.1", ""));

    let server = Server::with(&["limits.handshakes_per_ip_max=1", "limits.refuse_with=close"]);
    let _first = granted(&server, "127.0.0.1", "");
    let mut second = granted(&server, "127.0.0.1", "");
    assert_eq!(second.closed(), (1008, "too many new connections from this address".to_owned()));
}

#[test]
fn a_connection_sends_so_many_bytes_a_second() {
    let server = Server::with(&["limits.bytes_per_second_max=10KiB", "limits.bytes_burst_max=40KiB"]);
    let (mut client, mut other) = (server.client(), server.client());
    let publish =
        |length: usize| json!({"type": "publish", "room": "a", "event": "e", "data": "x".repeat(length)});
    for _ in 0..3 {
        assert_eq!(client.ask(publish(10_000))["type"], "ack");
    }
    assert_eq!(client.ask(publish(30_000))["type"], "ack", "what goes beyond the burst is taken");
    let refused = client.ask(publish(1));
    assert_eq!(
        (&refused["code"], &refused["message"]),
        (&json!("rate_limited"), &json!("Rate limit exceeded"))
    );
    let retry_ms = refused["retry_ms"].as_u64().expect("a time");
    assert!((100..=2100).contains(&retry_ms), "{retry_ms}");
    let refused = client.ask(json!({"type": "ping"}));
    assert_eq!(refused["code"], "rate_limited", "whatever it is");
    client.say_binary(&json!({"type": "publish", "room": "a", "event": "e", "id": "b"}), b"bytes");
    assert_eq!(client.answer_to(&json!("b"))["code"], "rate_limited");
    assert_eq!(other.ask(publish(20_000))["type"], "ack", "each connection has its own");
    rest(Duration::from_millis(retry_ms));
    assert_eq!(client.ask(publish(1))["type"], "ack");
    assert_eq!(server.number("totals/rate_limited"), 3);
    // Who has the place of another begins anew.
    client.close(1000);
    server.wait_for_number("connections", 1);
    assert_eq!(server.client().ask(publish(40_000))["type"], "ack");
}

#[test]
fn bytes_of_sessions_count_and_go_with_them() {
    let server = Server::with(&[
        "limits.bytes_per_second_max=1KiB",
        "limits.bytes_burst_max=20KiB",
        "server.echo=true",
    ]);
    let mut polled = server.raw();
    polled.send("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: throng\r\n\r\n");
    let open = String::from_utf8(polled.response().body.into_bytes()).expect("text");
    let open: Value = serde_json::from_str(&open[1..]).expect("JSON");
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", open["sid"].as_str().expect("an id"));
    let mut post = |body: String| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: throng\r\nContent-Length: {}\r\n\r\n", body.len());
        polled.send(head + &body);
        assert_eq!(polled.response().status, 200);
    };
    post("40".to_owned());
    post(format!("42[\"publish\",{{\"room\":\"a\",\"event\":\"e\",\"data\":\"{}\"}}]", "x".repeat(30_000)));
    // It moves to a WebSocket, and what it owes with it.
    let mut socket = server.socket(&path.replace("polling", "websocket"));
    socket.send(frame(FIN | TEXT, "2probe"));
    assert_eq!(socket.frame().payload, b"3probe");
    socket.send(frame(FIN | TEXT, "5"));
    socket.send(frame(FIN | TEXT, r#"427["join","a"]"#));
    let refused = eventually("the answer", || {
        let packet = String::from_utf8(socket.frame().payload).expect("text");
        packet.starts_with("437").then_some(packet)
    });
    assert!(refused.contains("rate_limited") && refused.contains("Rate limit exceeded"), "{refused}");
    let mut echo = server.socket("/echo");
    echo.send(frame(FIN | BINARY, "x".repeat(21_000)));
    assert_eq!(echo.frame().payload.len(), 21_000);
    echo.send(frame(FIN | BINARY, "x"));
    assert_eq!(echo.closed(), (1008, "Rate limit exceeded".to_owned()));
}

#[test]
fn what_is_too_much_may_be_passed_over_or_end_the_connection() {
    let drop = Server::with(&["limits.messages_per_second_max=2", "limits.over=drop"]);
    let mut client = drop.client();
    let ping = json!({"type": "ping"});
    client.say(&json!([ping, ping, ping, ping, {"type": "ping", "id": 5}]));
    for _ in 0..2 {
        assert_eq!(client.message()["type"], "pong");
    }
    assert_eq!(client.answer_to(&json!(5))["code"], "rate_limited", "who asks is told");
    assert_eq!(drop.number("totals/rate_limited"), 3, "what is passed over is counted");
    let close = Server::with(&["limits.messages_per_second_max=2", "limits.over=close"]);
    let mut client = close.client();
    client.say(&json!([ping, ping, ping, ping]));
    for _ in 0..2 {
        assert_eq!(client.message()["type"], "pong");
    }
    assert_eq!(client.closed(), (1008, "Rate limit exceeded".to_owned()));
    assert_eq!((close.number("totals/rate_limited"), close.number("disconnects/limit")), (1, 1));
    let mut socket = close.socket("/socket.io/?EIO=4&transport=websocket");
    let packets = ["40", "42[\"a\"]", "42[\"b\"]", "42[\"c\"]"];
    socket.send(packets.map(|packet| frame(FIN | TEXT, packet)).concat());
    let end = eventually("the close", || Some(socket.frame()).filter(|frame| frame.opcode == CLOSE));
    assert_eq!(end.payload[2..], *b"Rate limit exceeded");
}

#[test]
fn so_many_connections_are_accepted_a_second() {
    let server = Server::with(&["server.shards=1", "limits.accepts_per_second_max=20"]);
    let start = now();
    let mut waiting: Vec<Raw> = (0..30)
        .map(|_| {
            let mut raw = server.raw();
            raw.send(upgrade_head("/ws", ""));
            raw
        })
        .collect();
    for raw in &mut waiting {
        assert_eq!(raw.response().status, 101, "all get in, in time");
    }
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(480),
        "20 at once and 10 more at 20 a second take half a second: {took:?}"
    );
}

#[test]
fn a_message_has_a_largest_size() {
    let server = Server::with(&["limits.message_bytes_max=1000", "server.echo=true"]);
    let mut socket = server.socket("/echo");
    for opcode in [TEXT, BINARY] {
        socket.send(frame(FIN | opcode, [b'x'; 1000]));
        assert_eq!(socket.frame().payload, [b'x'; 1000]);
        socket.send([frame(opcode, [b'x'; 600]), frame(FIN | CONTINUATION, [b'x'; 400])].concat());
        assert_eq!(socket.frame().payload, [b'x'; 1000]);
    }
    let too_large = |bytes: Vec<u8>| {
        let mut socket = server.socket("/echo");
        socket.send(bytes);
        assert_eq!(socket.closed().0, 1009);
    };
    too_large(frame(FIN | TEXT, [b'x'; 1001]));
    too_large(frame(FIN | BINARY, vec![b'x'; 100_000]));
    too_large([frame(TEXT, [b'x'; 600]), frame(FIN | CONTINUATION, [b'x'; 401])].concat());
    too_large([frame(TEXT, [b'x'; 1000]), frame(CONTINUATION, "x")].concat());
    // The length is enough; nobody waits for the payload.
    for length in [1001, 65_536, 1 << 40, (1 << 63) - 1] {
        too_large(frame_with(FIN | BINARY, length, ""));
        too_large([frame(TEXT, "x"), frame_with(CONTINUATION, length, "")].concat());
    }
    let mut client = server.client();
    client.say_text(format!("{:1000}", r#"{"type":"ping"}"#));
    assert_eq!(client.text(), r#"{"type":"pong"}"#);
    client.say_text(format!("{:1001}", r#"{"type":"ping"}"#));
    assert_eq!(client.closed().0, 1009);
    assert_eq!(server.number("disconnects/protocol"), 13);
}

#[test]
fn a_message_comes_in_so_many_frames() {
    let server = Server::with(&["limits.frames_per_message_max=10", "server.echo=true"]);
    let message = |frames: usize, payload: &str| {
        let middle = frame(CONTINUATION, payload).repeat(frames - 2);
        [frame(TEXT, payload), middle, frame(FIN | CONTINUATION, payload)].concat()
    };
    for payload in ["x", ""] {
        let mut socket = server.socket("/echo");
        // Pings between them do not count.
        socket.send([frame(TEXT, payload), frame(FIN | PING, "").repeat(20)].concat());
        for _ in 0..20 {
            assert_eq!(socket.frame().opcode, PONG);
        }
        socket.send([frame(CONTINUATION, payload).repeat(8), frame(FIN | CONTINUATION, payload)].concat());
        assert_eq!(socket.frame().payload, payload.repeat(10).as_bytes());
        socket.send(message(10, payload));
        assert_eq!(socket.frame().payload, payload.repeat(10).as_bytes());
        socket.send(message(11, payload));
        assert_eq!(socket.closed().0, 1009);
    }
}

#[test]
fn a_frame_holds_so_many_messages() {
    let server = Server::with(&["limits.messages_per_frame_max=3"]);
    let mut client = server.client();
    let ping = json!({"type": "ping"});
    client.say(&json!([ping, ping, ping]));
    for _ in 0..3 {
        assert_eq!(client.text(), r#"{"type":"pong"}"#);
    }
    assert_eq!(client.refused_text(json!([ping, ping, ping, ping]).to_string())["code"], "too_many_messages");
    client.has_heard_all();
}

#[test]
fn a_connection_is_in_so_many_rooms() {
    let server = Server::with(&["limits.rooms_per_connection_max=3"]);
    let mut client = server.client();
    client.join(&["a", "b"]);
    assert_eq!(client.refused(json!({"type": "join", "rooms": ["c", "d"]})), "too_many_rooms");
    client.join(&["c"]);
    assert_eq!(client.join(&["a", "c"]), [0, 0], "those it is in already are no more");
    assert_eq!(client.refused(json!({"type": "join", "rooms": ["a", "d"]})), "too_many_rooms");
    let too_many = ["a", "b", "e", "f"];
    assert_eq!(
        client.refused(json!({"type": "leave", "rooms": too_many})),
        "too_many_rooms",
        "nor can more be named"
    );
    client.leave(&["b", "b", "b", "b"]);
    client.join(&["d", "a"]);
    assert_eq!(server.number("rooms"), 3);
    assert_eq!(server.client().join(&["a", "b", "c"]), [1, 0, 1]);
}

#[test]
fn the_server_holds_so_many_rooms() {
    let server = Server::with(&["limits.rooms_max=3"]);
    let (mut one, mut other) = (server.client(), server.client());
    one.join(&["a", "b"]);
    assert_eq!(other.refused(json!({"type": "join", "rooms": ["a", "c", "d"]})), "too_many_rooms");
    assert_eq!(one.join(&["a"]), [0], "nothing is left of what was refused");
    assert_eq!(other.join(&["c", "a", "b"]), [0, 1, 1], "a room that is there takes anybody");
    assert_eq!(one.refused(json!({"type": "join", "rooms": ["d"]})), "too_many_rooms");
    other.leave(&["c"]);
    one.join(&["d"]);
    drop(one);
    server.wait_for_number("rooms", 2);
    other.join(&["e"]);
}

#[test]
fn a_rooms_name_has_a_longest_length() {
    let server = Server::with(&["limits.room_name_bytes_max=10"]);
    let mut client = server.client();
    client.join(&["x".repeat(10).as_str(), "é".repeat(5).as_str()]);
    for name in ["x".repeat(11), "é".repeat(6)] {
        for message in [
            json!({"type": "join", "rooms": [name]}),
            json!({"type": "leave", "rooms": [name]}),
            json!({"type": "publish", "room": name, "event": "e"}),
        ] {
            assert_eq!(client.refused(message), "bad_room");
        }
    }
    client.publish("x", &"e".repeat(200), Value::Null);
}

#[test]
fn unfinished_messages_share_a_memory() {
    let server = Server::with(&[
        "server.shards=1",
        "server.echo=true",
        "limits.message_bytes_max=64KiB",
        "limits.receive_bytes_max=128KiB",
    ]);
    let half = [b'x'; 40 << 10];
    let beginning = || {
        let mut socket = server.socket("/echo");
        socket.send(frame(TEXT, half));
        socket
    };
    let (mut one, other) = (beginning(), beginning());
    // Buffers double, so each has 64 KiB.
    server.wait_for_number("receive_buffer_bytes", 128 << 10);
    assert_eq!(beginning().closed().0, 1013);
    let mut small = server.socket("/echo");
    small.send(frame(FIN | TEXT, "a message that comes whole needs none of it"));
    assert_eq!(small.frame().opcode, TEXT);
    // Nor is anybody shut out whose small message happens to be cut in two.
    small.send(frame(TEXT, "one that "));
    small.send([frame(FIN | PING, ""), frame(FIN | CONTINUATION, "does not")].concat());
    assert_eq!(small.frame().opcode, PONG);
    assert_eq!(small.frame().payload, b"one that does not");
    assert_eq!(beginning().closed().0, 1013);
    // What is finished or gone gives its memory back.
    one.send(frame(FIN | CONTINUATION, "."));
    assert_eq!(one.frame().payload.len(), half.len() + 1);
    other.reset();
    server.wait_for_number("receive_buffer_bytes", 0);
    let (mut one, _other) = (beginning(), beginning());
    server.wait_for_number("receive_buffer_bytes", 128 << 10);
    one.send(frame(FIN | CONTINUATION, ""));
    assert_eq!(one.frame().payload, half);
    assert_eq!(server.number("disconnects/limit"), 2);
}

/// A room with somebody who reads, somebody who has stopped reading, and a publisher of events of 4 KiB.
struct SlowRoom {
    server: Server,
    good: Client,
    slow: Raw,
    publisher: Client,
    published: u64,
    text: String,
}

impl SlowRoom {
    fn with(settings: &[&str]) -> SlowRoom {
        let settings = [&["limits.message_bytes_max=16KiB", "outbox.bytes_max=64KiB"], settings].concat();
        let server = Server::with(&settings);
        let (mut good, publisher) = (server.client(), server.client());
        good.join(&["news"]);
        let mut slow = Raw::connect_narrow(server.address());
        slow.upgrade("/ws");
        slow.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["news"],"id":1}"#));
        slow.frame();
        SlowRoom { server, good, slow, publisher, published: 0, text: "x".repeat(4096) }
    }

    /// Publishes the next event, numbered from 1, and sees it arrive at the one who reads.
    fn publish(&mut self) {
        self.published += 1;
        let data = json!([self.published, self.text]);
        self.publisher.say(&json!({"type": "publish", "room": "news", "event": "n", "data": data}));
        self.good.hears("news", "n", data);
    }

    /// Publishes until a number of `/stats` is above 0.
    fn publish_until(&mut self, path: &str) {
        // Before it refuses, the kernel takes some megabytes.
        for _ in 0..100 {
            for _ in 0..50 {
                self.publish();
            }
            if self.server.number(path) > 0 {
                return;
            }
        }
        panic!("after {} events of 4 KiB {path} is still 0", self.published);
    }

    /// Reads the next message of the one who did not: the event's number, or how many were dropped.
    fn late(&mut self) -> (&'static str, u64) {
        let message: Value = serde_json::from_slice(&self.slow.frame().payload).expect("JSON");
        if message["type"] == "dropped" {
            ("dropped", message["count"].as_u64().expect("a count"))
        } else {
            ("event", message["data"][0].as_u64().expect("a number"))
        }
    }
}

#[test]
fn who_reads_too_slowly_is_disconnected_and_nobody_else() {
    let mut room = SlowRoom::with(&[]);
    room.publish_until("disconnects/slow");
    for _ in 0..20 {
        room.publish();
    }
    room.server.wait_for_number("connections", 2);
    room.server.wait_for_number("memberships", 1);
    // It finds what was sent up to the first event that did not fit, and then why nothing follows.
    let mut last = 0;
    loop {
        let frame = room.slow.frame();
        if frame.opcode == CLOSE {
            assert_eq!(frame.payload[..2], 4001_u16.to_be_bytes());
            break;
        }
        let message: Value = serde_json::from_slice(&frame.payload).expect("JSON");
        last += 1;
        assert_eq!(message["data"][0], last, "nothing is missing before the end");
    }
    assert!(last > 0 && last < room.published);
    room.slow.ended();
    room.server.wait_for_number("sockets", 2);
    room.server.wait_for_number("outbox_bytes", 0);
    let metrics = room.server.metrics();
    assert_eq!(metrics.sum("throng_disconnects_total", &[r#"reason="slow""#]), 1.0);
}

#[test]
fn who_does_not_read_at_all_is_gone_after_a_while() {
    let mut room = SlowRoom::with(&[]);
    room.publish_until("disconnects/slow");
    room.server.wait_for_number("sockets", 2);
    room.server.wait_for_number("outbox_bytes", 0);
    // It finds the beginning of what was sent, then the end, perhaps within a frame.
    let error = std::iter::repeat_with(|| room.slow.try_frame()).find_map(Result::err).expect("an end");
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
}

#[test]
fn a_message_that_is_never_complete_does_not_keep_its_memory() {
    let settings = [
        "limits.message_timeout_ms=400",
        "heartbeat.ping_interval_ms=100",
        "server.echo=true",
        "server.shards=1",
    ];
    let server = Server::with(&settings);
    let before = server.number("receive_buffer_bytes");
    let mut raw = server.socket("/echo");
    raw.send(frame_with(FIN | BINARY, 1000, ""));
    let began = now();
    // However steadily it comes.
    while server.number("connections") == 1 && began.elapsed() < Duration::from_secs(10) {
        raw.send("x");
        rest(Duration::from_millis(20));
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "after {:?}", began.elapsed());
    assert_eq!(raw.closed().0, 1008);
    assert_eq!(server.number("disconnects/limit"), 1);
    server.wait_for_number("receive_buffer_bytes", before);
    // One that is complete in time, and another, are not held against anybody.
    let mut raw = server.socket("/echo");
    for _ in 0..20 {
        let whole = frame(FIN | BINARY, "in two parts");
        raw.send(&whole[..10]);
        rest(Duration::from_millis(50));
        raw.send(&whole[10..]);
        assert_eq!(raw.frame().payload, b"in two parts");
    }
}

#[test]
fn sockets_of_one_address_that_are_not_upgraded_have_a_limit_too() {
    let server = Server::with(&["limits.connections_per_ip_max=1"]);
    let _open = granted(&server, "127.0.0.1", "");
    let address = SocketAddr::new([127, 0, 0, 1].into(), server.port());
    let connect = |source: &str| {
        let mut raw = Raw::connect_from(source.parse().expect("an address"), address);
        raw.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
        let status = raw.response().status;
        (raw, status)
    };
    let mut quiet: Vec<Raw> = Vec::new();
    for _ in 0..16 {
        let (raw, status) = connect("127.0.0.1");
        assert_eq!(status, 200);
        quiet.push(raw);
    }
    let (mut one_too_many, status) = connect("127.0.0.1");
    assert_eq!(status, 429);
    one_too_many.ended();
    assert_eq!(connect("127.0.0.2").1, 200, "another address is none of that");
    assert_eq!(server.number("rejects/per_ip"), 1);
    quiet.pop();
    eventually("there is a place again", || (connect("127.0.0.1").1 == 200).then_some(()));
}

#[test]
fn who_reads_too_slowly_can_lose_messages_instead_and_is_told_how_many() {
    let mut room = SlowRoom::with(&["outbox.policy=drop"]);
    room.publish_until("totals/dropped");
    for _ in 0..30 {
        room.publish();
    }
    let waiting = room.server.number("outbox_bytes");
    // What was left out is one event of some 4 KiB.
    assert!((59 << 10..=64 << 10).contains(&waiting), "the outbox is full: {waiting}");
    let dropped = room.server.number("totals/dropped");
    // It reads again: the events from the beginning, then how many are missing.
    let mut next = 1;
    let told = loop {
        match room.late() {
            ("event", number) => {
                assert_eq!(number, next, "none is missing that was not dropped");
                next += 1;
            }
            (_, count) => break count,
        }
    };
    assert_eq!(told, dropped);
    assert_eq!(next - 1 + told, room.published, "every event has come or was counted");
    room.server.wait_for_number("outbox_bytes", 0);
    // From there on it is like the others, and the next loss is counted afresh.
    for _ in 0..10 {
        room.publish();
        assert_eq!(room.late(), ("event", room.published));
    }
    let (before, seen) = (dropped, room.published);
    loop {
        room.publish();
        if room.published.is_multiple_of(50) && room.server.number("totals/dropped") > before {
            break;
        }
        assert!(room.published < seen + 5_000, "nothing is dropped any more");
    }
    let again = room.server.number("totals/dropped") - before;
    let mut next = seen + 1;
    let told = loop {
        match room.late() {
            ("event", number) => {
                assert_eq!(number, next);
                next += 1;
            }
            (_, count) => break count,
        }
    };
    assert_eq!((told, next - 1 + told), (again, room.published));
    assert_eq!(room.server.number("connections"), 3, "nobody was disconnected");
    let metrics = room.server.metrics();
    assert_eq!(metrics.sum("throng_dropped_total", &[]), (before + again) as f64);
}

#[test]
fn all_outboxes_together_have_a_limit() {
    // Eight may have 64 KiB each, but only 128 KiB in all.
    let settings = ["server.shards=1", "outbox.policy=drop", "outbox.total_bytes_max=128KiB"];
    let mut room = SlowRoom::with(&settings);
    let crowd: Vec<Raw> = (0..7)
        .map(|_| {
            let mut slow = Raw::connect_narrow(room.server.address());
            slow.upgrade("/ws");
            slow.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["news"],"id":1}"#));
            slow.frame();
            slow
        })
        .collect();
    room.publish_until("totals/dropped");
    for _ in 0..300 {
        room.publish();
    }
    let waiting = room.server.number("outbox_bytes");
    // A frame that the kernel has taken the beginning of must follow, whatever the bound.
    assert!(waiting > 100 << 10 && waiting < (128 + 8 * 5) << 10, "{waiting}");
    drop(crowd);
    room.server.wait_for_number("connections", 3);
    for _ in 0..20 {
        room.publish();
    }
}

#[test]
fn requests_whose_answers_nobody_reads_do_not_pile_up() {
    let server = Server::with(&["limits.message_bytes_max=16KiB", "outbox.bytes_max=64KiB"]);
    let mut deaf = Raw::connect_narrow(server.address());
    deaf.set_patience(Duration::from_secs(1));
    let requests = "GET /health HTTP/1.1\r\nHost: throng\r\n\r\n".repeat(500);
    let cut_off = (0..2_000).any(|_| deaf.try_send(&requests).is_err());
    assert!(cut_off, "the server answers without bound");
    server.wait_for_number("sockets", 0);
    server.wait_for_number("outbox_bytes", 0);
    server.client().has_heard_all();
}

#[test]
fn the_descriptor_limit_is_met_without_failing() {
    let server = Server::with_descriptors(300);
    let (connections_max, sockets_max) = (server.number("connections_max"), server.number("sockets_max"));
    assert!((100..300).contains(&connections_max) && sockets_max > connections_max && sockets_max < 300);
    let mut open: Vec<Raw> = (0..connections_max).map(|_| granted(&server, "127.0.0.1", "")).collect();
    for _ in 0..5 {
        refused(&server, "127.0.0.1", "", 503);
    }
    // Sockets that ask nothing take all that are left. Further ones wait in the kernel.
    let mut silent: Vec<Raw> = (connections_max..sockets_max + 50).map(|_| server.raw()).collect();
    // Each shard may have one more that it had accepted before it saw that there was no place.
    server.wait_for("sockets", "to be at its limit", |sockets| {
        (sockets_max..=sockets_max + 2).contains(&sockets)
    });
    let mut waiting = server.raw();
    waiting.send(upgrade_head("/ws", ""));
    waiting.silent_for(Duration::from_millis(300));
    let before = server.cpu_time();
    rest(Duration::from_secs(1));
    let busy = server.cpu_time() - before;
    assert!(
        busy < Duration::from_millis(100),
        "waiting for a place costs next to nothing: {busy:?} in a second"
    );

    // Those inside are served, and who waits gets in when others leave.
    open[0].send(frame(FIN | TEXT, r#"{"type":"ping"}"#));
    assert_eq!(open[0].frame().payload, br#"{"type":"pong"}"#);
    open.truncate(20);
    silent.clear();
    assert_eq!(waiting.response().status, 101);
    let mut newcomers: Vec<Client> = (0..50).map(|_| server.client()).collect();
    newcomers.iter_mut().for_each(Client::has_heard_all);
    server.wait_for_number("connections", 71);
    drop((open, waiting, newcomers));
    eventually("everything is given back", || (server.number("sockets") == 0).then_some(()));
}
