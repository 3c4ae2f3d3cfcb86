//! Clients that mean no good. Each gets what the protocol says, and a well-behaved pair of clients beside them notices nothing:
//! all its events come back, in order and in time. In the end the server holds what it held before.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, mask, upgrade_head};
use crate::harness::{Deadline, Raw, Server, WAIT, eventually, frame, frame_with};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long an event of the well-behaved may take while the others do their worst. The machine runs other tests meanwhile.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// What the allocator and the kernel's page cache may keep of an attack.
const RESIDENT_GROWTH_MAX: u64 = 8 << 20;
/// The memory for unfinished messages, in bytes. A small one, of up to 4 KiB, is taken beyond it.
const RECEIVE_BYTES_MAX: u64 = 4 << 20;
/// Limits that the attacks run into soon.
const SETTINGS: [&str; 8] = [
    "server.echo=true",
    "limits.handshake_timeout_ms=400",
    "limits.message_bytes_max=64KiB",
    "limits.receive_bytes_max=4MiB",
    "outbox.bytes_max=128KiB",
    "heartbeat.ping_interval_ms=400",
    "heartbeat.ping_timeout_ms=1600",
    "limits.connections_max=2000",
];

/// Lets `attack` happen beside a well-behaved pair of clients.
fn check(attack: impl FnOnce(&Server)) {
    let server = Server::with(&SETTINGS);
    let (mut publisher, mut member) = (server.client(), server.client());
    member.join(&["well-behaved"]);
    // What is needed once is there before anything is measured.
    for path in ["/ws", "/echo"] {
        server.socket(path).send(frame(FIN | TEXT, "x"));
    }
    server.wait_for_number("sockets", 2);
    let held = |server: &Server| {
        let stats = server.stats();
        ["connections", "sockets", "rooms", "memberships", "outbox_bytes", "receive_buffer_bytes"]
            .map(|name| (name, stats[name].as_u64().expect("a number")))
    };
    // A shard counts what it holds at the end of a turn, and answers before that.
    server.wait_for_number("receive_buffer_bytes", 0);
    let (before, resident) = (held(&server), server.resident_bytes());

    let done = AtomicBool::new(false);
    let delays = std::thread::scope(|scope| {
        let (done, server) = (&done, &server);
        let pair = scope.spawn(move || {
            let mut delays = Vec::new();
            while !done.load(Ordering::Relaxed) || delays.len() < 20 {
                let (number, start) = (delays.len(), now());
                publisher.publish("well-behaved", "n", json!(number));
                member.hears("well-behaved", "n", json!(number));
                delays.push(start.elapsed());
                rest(Duration::from_millis(2));
            }
            // Nobody else has said anything to them.
            member.has_heard_all();
            publisher.has_heard_all();
            (delays, publisher, member)
        });
        let attacked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            attack(server);
            let deadline = now() + WAIT;
            while held(server) != before {
                assert!(now() < deadline, "the server held {before:?}, and now {:?}", held(server));
                rest(Duration::from_millis(20));
            }
        }));
        // The pair must be told in any case, or it would go on for ever.
        done.store(true, Ordering::Relaxed);
        let (delays, ..) = pair.join().expect("the well-behaved notice nothing");
        if let Err(failure) = attacked {
            std::panic::resume_unwind(failure);
        }
        delays
    });
    let longest = delays.iter().max().expect("some");
    assert!(*longest < DELAY_MAX, "an event took {longest:?}");
    eventually("the memory is given back", || {
        (server.resident_bytes() <= resident + RESIDENT_GROWTH_MAX).then_some(())
    });
}

/// The connection has been ended by the server, with or without a last word.
fn is_cut_off(mut raw: Raw) {
    loop {
        match raw.try_frame() {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return;
            }
            Err(error) => panic!("it is not ended: {error}"),
        }
    }
}

fn malformed_handshakes(server: &Server) {
    for round in 0..20 {
        for head in [
            "\r\n\r\n\r\n \r\n\r\n",
            "GET /ws HTTP/9.9\r\n\r\n",
            "GET /ws HTTP/1.1\r\nHost\r\n\r\n",
            "GET /ws HTTP/1.1\r\n: no name\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\x7f",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let mut raw = server.raw();
            if round % 2 == 0 {
                raw.send(head);
            } else {
                // The first wrong byte may be answered before the last is sent.
                head.bytes().find(|byte| raw.try_send([*byte]).is_err());
            }
            let status = raw.response().status;
            assert_eq!(status, 400, "{head:?}");
        }
        let mut raw = server.raw();
        raw.send(upgrade_head("/ws", "").replace("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: x"));
        assert_eq!(raw.response().status, 400);
    }
}

fn oversized_heads(server: &Server) {
    for line in [format!("X: {}\r\n", "y".repeat(100_000)), "X: y\r\n".repeat(20_000), "y".repeat(1_000_000)]
    {
        let mut raw = server.raw();
        // It is refused before its end, so the rest may find nobody.
        raw.try_send(format!("GET /ws HTTP/1.1\r\nHost: throng\r\n{line}")).ok();
        match raw.try_response() {
            Ok(response) => assert_eq!(response.status, 431),
            // What was not read makes the kernel reset the connection, which may take the answer with it.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert!(server.number("rejects/large_head") >= 3);
}

fn slow_heads(server: &Server) {
    let head = upgrade_head("/ws", &"X: y\r\n".repeat(50));
    let mut slow: Vec<Raw> = (0..100).map(|_| server.raw()).collect();
    for byte in head.bytes().take(30) {
        for raw in &mut slow {
            // The first may be cut off already.
            raw.try_send([byte]).ok();
        }
        rest(Duration::from_millis(20));
    }
    for mut raw in slow {
        assert_eq!(raw.response().status, 408);
        raw.ended();
    }
}

fn half_open_sockets(server: &Server) {
    let mut silent: Vec<Raw> = (0..100).map(|_| server.raw()).collect();
    let deaf: Vec<Raw> = (0..100).map(|_| server.socket("/ws")).collect();
    for raw in &mut silent {
        raw.ended();
    }
    for raw in deaf {
        is_cut_off(raw);
    }
    assert_eq!(server.number("disconnects/silent"), 100);
}

fn broken_frames(server: &Server) {
    for _ in 0..10 {
        for bytes in [
            b"\x81\x05hello".to_vec(),
            frame(FIN | 0x40 | TEXT, "x"),
            frame(FIN | 0x30 | BINARY, ""),
            frame(FIN | 3, "x"),
            frame(FIN | 15, ""),
            frame(PING, ""),
            frame(FIN | PING, [0; 126]),
            frame(FIN | CONTINUATION, "x"),
            [frame(TEXT, "x"), frame(TEXT, "x")].concat(),
            frame(FIN | CLOSE, "x"),
            frame(FIN | CLOSE, [0, 0]),
        ] {
            for path in ["/ws", "/echo"] {
                let mut raw = server.socket(path);
                raw.send(&bytes);
                assert_eq!(raw.closed().0, 1002, "{bytes:x?}");
            }
        }
        for bytes in [&b"\xff"[..], b"\xc0\x80", b"{\"type\":\"\xed\xa0\x80\"}", b"\xf0\x9f\x99"] {
            let mut raw = server.socket("/ws");
            raw.send(frame(FIN | TEXT, bytes));
            assert_eq!(raw.closed().0, 1007, "{bytes:x?}");
        }
    }
}

fn broken_json(server: &Server) {
    let mut client = server.client();
    let brackets = "[".repeat(10_000);
    let balanced = brackets.clone() + &"]".repeat(10_000);
    let objects = "{\"a\":".repeat(10_000) + "1" + &"}".repeat(10_000);
    for _ in 0..10 {
        for (text, code) in [
            ("{", "bad_json"),
            ("{\"type\":\"ping\"", "bad_json"),
            (&brackets, "bad_json"),
            (&balanced, "bad_message"),
            (&format!("[{objects}]"), "bad_message"),
            (&objects, "bad_message"),
            (&format!(r#"{{"type":"publish","room":"r","event":"e","data":{balanced}}}"#), "bad_json"),
            (&format!(r#"{{"type":"publish","room":"r","event":"e","data":{objects}}}"#), "bad_json"),
            (&format!(r#"{{"type":"join","rooms":{balanced}}}"#), "bad_message"),
            (&format!(r#"{{"type":"ping","id":{balanced}}}"#), "bad_message"),
            (&format!(r#"{{"type":{objects}}}"#), "bad_message"),
            (r#"{"type":"join","rooms":["a\u0000b"]}"#, "bad_room"),
            (r#"{"type":"join","rooms":["\u001b[2J"]}"#, "bad_room"),
            (r#"{"type":"publish","room":"r","event":"\n"}"#, "bad_event"),
        ] {
            assert_eq!(client.refused_text(text)["code"], code, "{}", &text[..text.len().min(100)]);
        }
    }
    // Neither depth nor size of what is ignored does any harm.
    for ignored in [balanced, "[".to_owned() + &"1,".repeat(20_000) + "1]"] {
        client.say_text(format!(r#"{{"ignored":{ignored},"type":"ping"}}"#));
        assert_eq!(client.text(), r#"{"type":"pong"}"#);
    }
    client.has_heard_all();
}

fn claimed_lengths(server: &Server) {
    for length in [(1 << 63) - 1, 1 << 40, 1 << 32, 65_537] {
        for opcode in [TEXT, BINARY] {
            let mut raw = server.socket("/echo");
            raw.send(frame_with(FIN | opcode, length, "a few bytes"));
            assert_eq!(raw.closed().0, 1009, "{length}");
        }
    }
    let mut raw = server.socket("/echo");
    let mut impossible = vec![FIN | BINARY, 0x80 | 127];
    impossible.extend(u64::MAX.to_be_bytes());
    mask(&mut impossible, b"");
    raw.send(impossible);
    assert_eq!(raw.closed().0, 1002);
    // A length that is allowed is believed only as far as bytes come.
    let before = server.number("receive_buffer_bytes");
    let mut waiting: Vec<Raw> = (0..300).map(|_| server.socket("/echo")).collect();
    for raw in &mut waiting {
        raw.send(frame_with(FIN | BINARY, 64 << 10, "ten bytes."));
    }
    let held = server.wait_for("receive_buffer_bytes", "to grow", |bytes| bytes >= before + 300 * 10);
    assert!(held <= before + 300 * 256, "a length that is only claimed takes memory: {held}");
    for raw in waiting {
        is_cut_off(raw);
    }
}

fn promised_attachments(server: &Server) {
    let text = r#"452-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
    let one_of_two = [frame(FIN | TEXT, text), frame(FIN | BINARY, [0; 60 << 10])].concat();
    let mut waiting: Vec<Raw> =
        (0..300).map(|_| server.socket("/socket.io/?EIO=4&transport=websocket")).collect();
    for raw in &mut waiting {
        // Who finds no memory is closed, perhaps while it is still sending.
        raw.try_send(&one_of_two).ok();
        let held = server.number("receive_buffer_bytes");
        assert!(held <= RECEIVE_BYTES_MAX + 2 * 300 * 4096, "{held} bytes are held");
    }
    assert!(server.number("disconnects/limit") > 0, "18 MB are more than there is memory for");
    for raw in waiting {
        is_cut_off(raw);
    }
}

fn too_many_rooms(server: &Server) {
    let names: Vec<String> = (0..100_000).map(|number| format!("{number}")).collect();
    let mut raw = server.socket("/ws");
    raw.send(frame(FIN | TEXT, json!({"type": "join", "rooms": names}).to_string()));
    assert_eq!(raw.closed().0, 1009, "a hundred thousand names are more than a message holds");
    let mut raw = server.socket("/ws");
    for chunk in names.chunks(5_000) {
        raw.send(frame(FIN | TEXT, json!({"type": "join", "rooms": chunk}).to_string()));
        let error: Value = serde_json::from_slice(&raw.frame().payload).expect("JSON");
        assert_eq!(error["code"], "too_many_rooms");
    }
    assert_eq!(server.number("rooms"), 1);
    // As many as are allowed, by many at once, gone with them.
    let mut crowd: Vec<Raw> = (0..20).map(|_| server.socket("/ws")).collect();
    for (raw, chunk) in crowd.iter_mut().zip(names.chunks(1024)) {
        raw.send(frame(FIN | TEXT, json!({"type": "join", "rooms": chunk, "id": 1}).to_string()));
    }
    server.wait_for_number("memberships", 1 + 20 * 1024);
}

fn readers_that_stop(server: &Server) {
    let mut deaf: Vec<Raw> = (0..5).map(|_| Raw::connect_narrow(server.address())).collect();
    for raw in &mut deaf {
        raw.upgrade("/ws");
        raw.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["noise"],"id":1}"#));
        raw.frame();
    }
    // On a busy machine the heartbeat may be faster, since they do not answer pings either.
    let gone = || server.number("disconnects/slow") + server.number("disconnects/silent");
    let mut noise = server.socket("/ws");
    let publish = json!({"type": "publish", "room": "noise", "event": "n", "data": "x".repeat(8192)});
    let publish = frame(FIN | TEXT, publish.to_string());
    for _ in 0..100 {
        for _ in 0..20 {
            noise.send(&publish);
        }
        noise.send(frame(FIN | PING, ""));
        noise.frame();
        if gone() == 5 {
            break;
        }
    }
    assert_eq!(gone(), 5);
    assert!(server.number("disconnects/slow") > 0);
    deaf.into_iter().for_each(is_cut_off);
}

fn connection_churn(server: &Server) {
    let head = upgrade_head("/ws", "");
    let join = frame(FIN | TEXT, r#"{"type":"join","rooms":["door","well-behaved"]}"#);
    for number in 0..1_000 {
        let mut raw = server.raw();
        match number % 5 {
            0 => {}
            1 => raw.send(&head[..40]),
            2 => raw.send(&head),
            3 => raw.send([head.as_bytes(), &join].concat()),
            _ => raw.send([head.as_bytes(), &join[..join.len() / 2]].concat()),
        }
        raw.reset();
    }
}

fn ping_floods(server: &Server) {
    // One who reads the answers may go on as long as it likes.
    let mut reading = server.socket("/echo");
    for _ in 0..20 {
        reading.send(frame(FIN | PING, [7; 125]).repeat(100));
        for _ in 0..100 {
            assert_eq!(reading.frame().payload, [7; 125]);
        }
    }
    // One who does not is cut off when its outbox is full.
    let mut deaf = Raw::connect_narrow(server.address());
    deaf.upgrade("/echo");
    deaf.set_patience(WAIT);
    let flood = frame(FIN | PING, [7; 125]).repeat(500);
    for _ in 0..1_000 {
        deaf.send(&flood);
        if server.number("disconnects/slow") == 1 {
            break;
        }
    }
    assert_eq!(server.number("disconnects/slow"), 1, "pongs pile up without bound");
    // It is closed, which it does not read either; what it sends meanwhile is not answered, and then it is gone.
    let end = now() + WAIT;
    while deaf.try_send(&flood).is_ok() {
        assert!(now() < end, "it goes on and on");
    }
}

fn pipelined_requests(server: &Server) {
    let mut deaf: Vec<Raw> = (0..3).map(|_| Raw::connect_narrow(server.address())).collect();
    let requests = "GET /health HTTP/1.1\r\nHost: throng\r\n\r\n".repeat(500);
    for raw in &mut deaf {
        let cut_off = (0..1_000).any(|_| raw.try_send(&requests).is_err());
        assert!(cut_off, "answers pile up without bound");
    }
}

fn publish_storms(server: &Server) {
    let mut storm: Vec<Raw> = (0..4).map(|_| server.socket("/ws")).collect();
    let publish = json!({"type": "publish", "room": "well-attended", "event": "e", "data": 1});
    let array = frame(FIN | TEXT, Value::Array(vec![publish; 500]).to_string());
    for raw in &mut storm {
        raw.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["well-attended"],"id":1}"#));
        raw.frame();
    }
    std::thread::scope(|scope| {
        for raw in &mut storm {
            scope.spawn(|| {
                raw.send(array.repeat(3));
                // Each hears what the three others say.
                let mut events = 0;
                let deadline = Deadline::after(WAIT);
                while events < 3 * 3 * 500 {
                    assert!(!deadline.is_over(), "only {events} events have come");
                    match raw.frame() {
                        ping if ping.opcode == PING => raw.send(frame(FIN | PONG, ping.payload)),
                        _ => events += 1,
                    }
                }
            });
        }
    });
}

#[test]
fn malformed_handshakes_do_no_harm() {
    check(malformed_handshakes);
}

#[test]
fn oversized_heads_do_no_harm() {
    check(oversized_heads);
}

#[test]
fn slow_heads_do_no_harm() {
    check(slow_heads);
}

#[test]
fn half_open_sockets_do_no_harm() {
    check(half_open_sockets);
}

#[test]
fn broken_frames_do_no_harm() {
    check(broken_frames);
}

#[test]
fn broken_json_does_no_harm() {
    check(broken_json);
}

#[test]
fn claimed_lengths_do_no_harm() {
    check(claimed_lengths);
}

#[test]
fn promised_attachments_do_no_harm() {
    check(promised_attachments);
}

#[test]
fn too_many_rooms_do_no_harm() {
    check(too_many_rooms);
}

#[test]
fn readers_that_stop_do_no_harm() {
    check(readers_that_stop);
}

#[test]
fn connection_churn_does_no_harm() {
    check(connection_churn);
}

#[test]
fn ping_floods_do_no_harm() {
    check(ping_floods);
}

#[test]
fn pipelined_requests_do_no_harm() {
    check(pipelined_requests);
}

#[test]
fn publish_storms_do_no_harm() {
    check(publish_storms);
}

#[test]
fn all_at_once_they_do_no_harm() {
    // Not among them are those that count what all do together.
    let attacks: [fn(&Server); 8] = [
        malformed_handshakes,
        oversized_heads,
        slow_heads,
        broken_frames,
        broken_json,
        connection_churn,
        pipelined_requests,
        publish_storms,
    ];
    check(|server| {
        std::thread::scope(|scope| {
            for attack in attacks {
                scope.spawn(move || attack(server));
            }
        });
    });
}

#[test]
fn those_who_are_answered_without_end_do_not_hold_back_events() {
    let server = Server::with(&["server.shards=1"]);
    let (mut member, mut publisher) = (server.client(), server.client());
    member.join(&["news"]);
    // Arrays of messages that are each answered by an error, from clients that read all the answers.
    let array = frame(FIN | TEXT, format!("[{}]", ["{}"; 1024].join(",")));
    let address = server.address();
    let end = now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut asking = Raw::connect(address);
                asking.upgrade("/ws");
                while now() < end {
                    asking.send(&array);
                    (0..1024).for_each(|_| drop(asking.frame()));
                }
            });
        }
        let mut heard = 0;
        while now() < end {
            publisher.say(&json!({"type": "publish", "room": "news", "event": "n", "data": heard}));
            member.hears("news", "n", json!(heard));
            heard += 1;
        }
        assert!(heard >= 10, "in three seconds {heard} events arrived");
    });
}

#[test]
fn what_waits_for_all_has_a_bound_whoever_it_is_for() {
    // Each member is cut off in the middle of a large event, or is closing while events are on their way.
    for policy in ["disconnect", "drop"] {
        let policy = format!("outbox.policy={policy}");
        let settings =
            ["server.shards=1", "outbox.total_bytes_max=8MiB", &policy, "limits.message_bytes_max=1MiB"];
        let server = Server::with(&settings);
        let mut deaf: Vec<Raw> = (0..60).map(|_| Raw::connect_narrow(server.address())).collect();
        for raw in &mut deaf {
            raw.upgrade("/ws");
            raw.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["noise"],"id":1}"#));
            raw.frame();
        }
        let mut noise = server.socket("/ws");
        let publish =
            json!({"type": "publish", "room": "noise", "event": "n", "data": "x".repeat(1_000_000)});
        let publish = frame(FIN | TEXT, publish.to_string());
        for _ in 0..8 {
            noise.send(&publish);
            noise.send(frame(FIN | PING, ""));
            noise.frame();
            let waiting = server.number("outbox_bytes");
            assert!(waiting <= (8 << 20) + (2 << 20), "{waiting} bytes wait with {policy}");
        }
        for raw in &mut deaf {
            // Some are gone by now.
            raw.try_send(frame(FIN | CLOSE, 1000_u16.to_be_bytes())).ok();
        }
        noise.send(&publish);
        noise.send(frame(FIN | PING, ""));
        noise.frame();
        let waiting = server.number("outbox_bytes");
        assert!(waiting <= (8 << 20) + (2 << 20), "{waiting} bytes wait for those that close with {policy}");
    }
}
