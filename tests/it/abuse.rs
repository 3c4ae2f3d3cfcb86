//! The list of abuse: hostile inputs by name, for the port of clients, with and without TLS and the PROXY protocol, and for the control
//! port. Each comes alone and must end as its row says; after each a well client is served as before, and the server holds what it held.
//! What many do at once is in `hostile`, what one wrong byte does in `handshake` and `websocket`.

use crate::access::{KeyServer, SECRET};
use crate::harness::clock::{now, rest};
use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, TEXT, mask, upgrade_head};
use crate::harness::secure::{Certificate, Secure};
use crate::harness::{Client, Raw, Server, WAIT, eventually, frame, frame_with};
use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use rustls::version;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Limits that are met soon. What is cut off in time is cut off in a second.
const SETTINGS: [&str; 15] = [
    "server.echo=true",
    "limits.handshake_timeout_ms=1000",
    "limits.message_timeout_ms=1000",
    "limits.message_bytes_max=256KiB",
    "api.body_bytes_max=256KiB",
    "limits.receive_bytes_max=4MiB",
    "limits.frames_per_message_max=1000",
    "outbox.bytes_max=512KiB",
    "heartbeat.ping_interval_ms=1000",
    "heartbeat.ping_timeout_ms=60000",
    r#"socketio.namespaces=["/","/chat/*"]"#,
    "socketio.connect_timeout_ms=5000",
    "api.key=change-me-0123456789",
    "api.idempotency_keys_max=100",
    "limits.room_name_bytes_max=200",
];
const KEY: &str = "change-me-0123456789";
const POLL: &str = "/socket.io/?EIO=4&transport=polling";
const SOCKETIO: &str = "/socket.io/?EIO=4&transport=websocket";
/// What the allocator may keep of all that is done to one server.
const RESIDENT_GROWTH_MAX: u64 = 24 << 20;

/// How a connection ends on which something hostile was said.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// With an answer of this status. One that comes together with a reset may be lost where much was sent that nobody read.
    Refused(u16),
    /// It does not: it is answered with this status and goes on.
    Answered(u16),
    /// With this code of a WebSocket.
    Closed(u16),
    /// Without an answer; where TLS is spoken an alert is none.
    Gone,
}
use Fate::{Answered, Closed, Gone, Refused};

/// A hostile input: its name, what is sent, and what comes of it.
type Abuse = (&'static str, Vec<u8>, Fate);

/// A server with a well pair of clients.
struct Scene {
    server: Server,
    publisher: Client,
    member: Client,
    said: u64,
    held: Vec<Value>,
    descriptors: usize,
    resident: u64,
}

impl Scene {
    fn new(server: Server, connect: impl Fn(&Server) -> Client) -> Scene {
        let (publisher, mut member) = (connect(&server), connect(&server));
        member.join(&["well"]);
        // What is needed once is there before anything is measured.
        server.wait_for_number("receive_buffer_bytes", 0);
        let (held, resident) = (held(&server), server.resident_bytes());
        let descriptors = server.descriptors();
        Scene { server, publisher, member, said: 0, held, descriptors, resident }
    }

    /// Lets something hostile happen, and sees that the well are well and nothing is left of it.
    fn check(&mut self, name: &str, attack: impl FnOnce(&Server)) {
        let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(&self.server)));
        if let Err(failure) = failure {
            eprintln!("this was: {name}");
            std::panic::resume_unwind(failure);
        }
        self.said += 1;
        self.publisher.publish("well", "n", json!(self.said));
        self.member.hears("well", "n", json!(self.said));
        let deadline = now() + WAIT;
        loop {
            let held = held(&self.server);
            if held == self.held {
                break;
            }
            assert!(
                now() < deadline,
                "after {name} the server holds {held:?}; before it was {:?}",
                self.held
            );
            rest(Duration::from_millis(5));
        }
    }

    /// All rows, each on a connection of its own.
    fn check_all(&mut self, rows: Vec<Abuse>, connect: impl Fn(&Server) -> Raw) {
        for (name, bytes, fate) in rows {
            self.check(name, |server| fall(connect(server), &bytes, fate));
        }
    }

    /// In the end nothing has been lost, and nobody else was told anything.
    fn end(mut self) {
        self.member.has_heard_all();
        self.publisher.has_heard_all();
        eventually("descriptors are closed", || {
            (self.server.descriptors() <= self.descriptors).then_some(())
        });
        eventually("memory is given back", || {
            (self.server.resident_bytes() <= self.resident + RESIDENT_GROWTH_MAX).then_some(())
        });
        let log = self.server.log();
        assert!(!log.contains("panicked") && !log.contains("\"ERROR\""), "{log}");
    }
}

/// What a server holds for its clients.
fn held(server: &Server) -> Vec<Value> {
    let stats = server.stats();
    let numbers = [
        "connections",
        "sockets",
        "rooms",
        "memberships",
        "outbox_bytes",
        "receive_buffer_bytes",
        "sessions",
    ];
    numbers.map(|name| stats[name].clone()).to_vec()
}

fn scene() -> Scene {
    Scene::new(Server::with(&SETTINGS), Server::client)
}

/// Says `bytes` and sees what comes of it.
fn fall(mut raw: Raw, bytes: &[u8], fate: Fate) {
    // Who is refused before the end may not be listened to until then.
    let sent = raw.try_send(bytes);
    let is_reset =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    match fate {
        Refused(status) => match raw.try_response() {
            Ok(response) => {
                assert_eq!(response.status, status, "{response:?}");
                raw.ended();
            }
            Err(error) => assert!(is_reset(&error) && bytes.len() > 1000, "{error}"),
        },
        Answered(status) => {
            sent.expect("it is taken");
            let response = raw.response();
            assert_eq!(response.status, status, "{response:?}");
            raw.send(get("/health"));
            assert_eq!(raw.response().status, 200);
        }
        Closed(code) => {
            // Frames that came before do not count.
            let close = loop {
                match raw.try_frame() {
                    Ok(frame) if frame.opcode == CLOSE => break frame,
                    Ok(_) => {}
                    Err(error) => panic!("no close frame: {error}"),
                }
            };
            assert_eq!(close.code().0, code, "{close:?}");
        }
        Gone => {
            let mut rest = Vec::new();
            match raw.into_stream().read_to_end(&mut rest) {
                Ok(_) => {}
                Err(error) => assert!(is_reset(&error), "it is not ended: {error}"),
            }
            // A record of TLS with an alert, behind whatever belongs to a handshake.
            let is_tls = rest.first().is_none_or(|first| (20..=23).contains(first));
            assert!(is_tls, "something was answered: {}", String::from_utf8_lossy(&rest));
        }
    }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: throng\r\n\r\n")
}

/// A GET with these header lines.
fn with(lines: &str) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nHost: throng\r\n{lines}\r\n").into()
}

fn post(target: &str, lines: &str, body: &str) -> Vec<u8> {
    format!("POST {target} HTTP/1.1\r\nHost: throng\r\n{lines}\r\n{body}").into()
}

#[test]
fn requests_on_the_port_for_clients() {
    let smuggled = get("/ready");
    let rows: Vec<Abuse> = vec![
        ("a header line of 100 kB", with(&format!("X: {}\r\n", "y".repeat(100_000))), Refused(431)),
        ("a header's name of 100 kB", with(&format!("{}: y\r\n", "x".repeat(100_000))), Refused(431)),
        ("a target of 100 kB", get(&format!("/{}", "a".repeat(100_000))).into(), Refused(431)),
        ("a method of 100 kB", format!("{} / HTTP/1.1\r\n", "A".repeat(100_000)).into(), Refused(431)),
        ("65 header lines", with(&"X: y\r\n".repeat(65)), Refused(431)),
        ("10,000 header lines", with(&"X: y\r\n".repeat(10_000)), Refused(431)),
        // Nothing that stands behind such a head may be taken for a request.
        (
            "a GET with a length and chunks",
            with(&format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
            Refused(200),
        ),
        (
            "a GET with a body that is a request",
            with(&format!("Content-Length: 36\r\n\r\n{smuggled}")),
            Refused(200),
        ),
        (
            "a POST with a length and chunks",
            post(POLL, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            Refused(411),
        ),
        (
            "a POST with chunks and a length",
            post(POLL, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            Refused(411),
        ),
        ("chunks", post(POLL, "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), Refused(411)),
        ("chunks by another name", post(POLL, "Transfer-Encoding: xchunked\r\n", &smuggled), Refused(411)),
        ("chunks with a tab", post(POLL, "Transfer-Encoding:\tchunked\r\n", &smuggled), Refused(411)),
        ("two lengths", post(POLL, "Content-Length: 1\r\nContent-Length: 2\r\n", "66"), Refused(400)),
        (
            "two lengths, the first none",
            post(POLL, "Content-Length: 0\r\nContent-Length: 36\r\n", &smuggled),
            Refused(400),
        ),
        (
            "two lengths, the last none",
            post(POLL, "Content-Length: 36\r\nContent-Length: 0\r\n", &smuggled),
            Refused(400),
        ),
        ("two lengths in a line", post(POLL, "Content-Length: 1, 2\r\n", "66"), Refused(400)),
        ("a length with a sign", post(POLL, "Content-Length: +1\r\n", "6"), Refused(400)),
        ("a length below none", post(POLL, "Content-Length: -1\r\n", ""), Refused(400)),
        ("a length in hexadecimal", post(POLL, "Content-Length: 0x1\r\n", "6"), Refused(400)),
        ("a length past 64 bits", post(POLL, "Content-Length: 18446744073709551617\r\n", "6"), Refused(400)),
        ("a length of 4 EiB", post(POLL, "Content-Length: 4611686018427387904\r\n", ""), Refused(413)),
        ("a space before the colon", with("Content-Length : 5\r\n"), Refused(400)),
        ("a folded line", with("X: y\r\n Content-Length: 5\r\n"), Refused(400)),
        ("a NUL in a value", with("X: a\0b\r\n"), Refused(400)),
        ("a NUL in a name", with("X\0: a\r\n"), Refused(400)),
        ("a NUL in the target", get("/health\0").into(), Refused(400)),
        ("a lone CR in a value", with("X: a\rContent-Length: 5\r\n"), Refused(400)),
        ("a line without a colon", with("Content-Length 5\r\n"), Refused(400)),
        ("no Host", b"GET /health HTTP/1.1\r\n\r\n".to_vec(), Refused(400)),
        ("two Hosts", with("Host: other\r\n"), Refused(400)),
        ("line breaks in escapes", get("/%0d%0aSet-Cookie:%20a=b").into(), Answered(404)),
        ("another server's address", get("http://169.254.169.254/latest/meta-data").into(), Answered(404)),
        ("an address without a path", get("http://[::1").into(), Answered(404)),
        ("only a scheme", get("://").into(), Answered(404)),
        ("a path that climbs", get("/../../../../etc/passwd").into(), Answered(404)),
        ("a path that climbs in escapes", get("/%2e%2e/%2e%2e/etc/passwd").into(), Answered(404)),
        ("a path around another", get("/health/../stats").into(), Answered(404)),
        ("a path with two slashes", get("//health").into(), Answered(404)),
        ("the control port's paths", get("/v1/rooms").into(), Answered(404)),
        ("TRACE", b"TRACE /health HTTP/1.1\r\nHost: throng\r\n\r\n".to_vec(), Answered(405)),
        ("OPTIONS of all", b"OPTIONS * HTTP/1.1\r\nHost: throng\r\n\r\n".to_vec(), Answered(404)),
        ("CONNECT", b"CONNECT internal:22 HTTP/1.1\r\nHost: internal:22\r\n\r\n".to_vec(), Answered(404)),
        (
            "a method in small letters",
            b"get /health HTTP/1.1\r\nHost: throng\r\n\r\n".to_vec(),
            Answered(405),
        ),
        ("a method that stands in for another", with("X-HTTP-Method-Override: DELETE\r\n"), Answered(200)),
        ("HTTP/0.9", b"GET /health\r\n".to_vec(), Refused(400)),
        ("HTTP/2 as if known", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Refused(400)),
        (
            "HTTP/2 by an upgrade",
            with(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
            ),
            Answered(200),
        ),
        ("TLS on the plain port", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), Refused(400)),
        (
            "a PROXY line that nobody asked for",
            format!("PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n{smuggled}").into(),
            Refused(400),
        ),
        (
            "a PROXY header that nobody asked for",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x09\0\x0a".to_vec(),
            Refused(400),
        ),
        ("an upgrade with a body", upgrade_head("/ws", "Content-Length: 2\r\n").into(), Refused(400)),
        (
            "an upgrade with two keys",
            upgrade_head("/ws", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n").into(),
            Refused(400),
        ),
        (
            "an upgrade from HTTP/1.0",
            upgrade_head("/ws", "").replace("HTTP/1.1", "HTTP/1.0").into(),
            Refused(400),
        ),
        ("an upgrade by POST", upgrade_head("/ws", "").replace("GET", "POST").into(), Answered(405)),
        (
            "an address made up, a thousand times",
            with(&format!("X-Forwarded-For: {}\r\n", "10.0.0.1,".repeat(800))),
            Answered(200),
        ),
    ];
    let mut scene = scene();
    scene.check_all(rows, Server::raw);
    // These wait for the same second, and for the time in which what comes after a refusal is thrown away.
    scene.check("lines without an end, heads and bodies that come a byte at a time", |server| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut raw = server.raw();
                raw.send("GET /health HTTP/1.1\r\nHost: throng\r\n");
                sends_until_cut_off(&mut raw, "X: y\r\n".repeat(1000));
            });
            let long = with(&format!("X: {}\r\n", "y".repeat(7_000)));
            scope.spawn(move || trickle(server, &long));
            scope.spawn(|| trickle(server, &post(POLL, "Content-Length: 9000\r\n", &"6".repeat(9000))));
        });
    });
    scene.check("floods from many addresses", |server| {
        std::thread::scope(|scope| {
            for last in 2..10 {
                let address = server.address();
                scope.spawn(move || {
                    for number in 0..100 {
                        let source = IpAddr::V4(Ipv4Addr::new(127, 1, last, number));
                        let mut raw = Raw::connect_from(source, address);
                        raw.try_send(upgrade_head("/ws", "")).ok();
                        if number % 2 == 0 {
                            raw.reset();
                        }
                    }
                });
            }
        });
    });
    scene.end();
}

#[test]
fn a_long_body_whose_end_comes_a_byte_at_a_time() {
    let server =
        Server::with(&["limits.message_bytes_max=16MiB", "outbox.bytes_max=32MiB", "server.shards=1"]);
    let (bytes, last) = (16 << 20, 300);
    let mut raw = server.raw();
    let request = post(POLL, &format!("Content-Length: {bytes}\r\n"), &"6".repeat(bytes - last));
    raw.send(&request);
    server.wait_for_number("totals/received_bytes", request.len() as u64);
    let before = server.cpu_time();
    for _ in 0..last {
        raw.send("6");
        // So that it comes by itself.
        rest(Duration::from_millis(5));
    }
    assert_eq!(raw.response().status, 400);
    // When what had come was copied with each piece, each cost 2 ms or more.
    let spent = server.cpu_time().saturating_sub(before);
    assert!(spent < Duration::from_millis(300), "{last} bytes have cost {spent:?}");
}

/// Sends the same again and again; somebody has to end that.
fn sends_until_cut_off(raw: &mut Raw, bytes: impl AsRef<[u8]>) {
    let deadline = now() + WAIT;
    while raw.try_send(&bytes).is_ok() {
        assert!(now() < deadline, "it goes on and on");
    }
}

/// Sends some requests so slowly that each would take for ever, never being silent for long. They are cut off after a second.
fn trickle(server: &Server, request: &[u8]) {
    let mut slow: Vec<Raw> = (0..20).map(|_| server.raw()).collect();
    let head = request.len().min(60);
    slow.iter_mut().for_each(|raw| raw.send(&request[..head]));
    let mut left = request[head..].iter();
    let deadline = now() + WAIT;
    loop {
        assert!(now() < deadline, "who is slow is not cut off");
        let Some(byte) = left.next() else { panic!("a slow request came to its end") };
        if slow.iter_mut().all(|raw| raw.try_send([*byte]).is_err()) {
            break;
        }
        rest(Duration::from_millis(20));
    }
}

#[test]
fn frames_of_websockets() {
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = |text: &str| frame(FIN | TEXT, text);
    let mut length_of_63_bits = vec![FIN | BINARY, 0x80 | 127];
    length_of_63_bits.extend((1_u64 << 63).to_be_bytes());
    mask(&mut length_of_63_bits, b"");
    let mut long_form = vec![FIN | TEXT, 0x80 | 126, 0, 1];
    mask(&mut long_form, b"x");
    let echo: Vec<Abuse> = vec![
        ("no mask", b"\x81\x01x".to_vec(), Closed(1002)),
        ("the flag of compression", frame(FIN | 0x40 | TEXT, "\x02\0\0\0"), Closed(1002)),
        ("a reserved flag", frame(FIN | 0x10 | TEXT, "x"), Closed(1002)),
        (
            "a reserved flag in a later fragment",
            [frame(TEXT, "x"), frame(FIN | 0x20 | CONTINUATION, "x")].concat(),
            Closed(1002),
        ),
        ("a reserved opcode", frame(FIN | 0x7, "x"), Closed(1002)),
        ("a reserved opcode of control", frame(FIN | 0xf, ""), Closed(1002)),
        ("a length of 63 bits", length_of_63_bits, Closed(1002)),
        ("a length of 4 EiB", frame_with(FIN | BINARY, 1 << 62, "x"), Closed(1009)),
        ("a length that is written too long", long_form, Closed(1002)),
        ("a second message in the first", [frame(TEXT, "x"), frame(FIN | TEXT, "x")].concat(), Closed(1002)),
        ("the end of no message", frame(FIN | CONTINUATION, ""), Closed(1002)),
        ("a ping in fragments", frame(PING, ""), Closed(1002)),
        ("a ping of 126 bytes", frame(FIN | PING, [0; 126]), Closed(1002)),
        ("a close of one byte", frame(FIN | CLOSE, "x"), Closed(1002)),
        ("a close with a code for nobody", frame(FIN | CLOSE, 1005_u16.to_be_bytes()), Closed(1002)),
        ("a close whose reason is no text", frame(FIN | CLOSE, b"\x03\xe8\xff"), Closed(1007)),
        ("text that is none", frame(FIN | TEXT, b"\xed\xa0\x80"), Closed(1007)),
        (
            "empty fragments without an end",
            [frame(TEXT, ""), frame(CONTINUATION, "").repeat(100_000)].concat(),
            Closed(1009),
        ),
        (
            "fragments of a byte without an end",
            [frame(TEXT, "x"), frame(CONTINUATION, "x").repeat(10_000)].concat(),
            Closed(1009),
        ),
        (
            "fragments longer together than a message",
            [frame(BINARY, [0; 200 << 10]), frame(FIN | CONTINUATION, [0; 57 << 10])].concat(),
            Closed(1009),
        ),
        ("10,000 closes", frame(FIN | CLOSE, 1000_u16.to_be_bytes()).repeat(10_000), Closed(1000)),
        (
            "a close, then 100,000 frames",
            [frame(FIN | CLOSE, 1000_u16.to_be_bytes()), frame(FIN | TEXT, "x").repeat(100_000)].concat(),
            Closed(1000),
        ),
        (
            "a close, then what is no frame",
            [frame(FIN | CLOSE, 1000_u16.to_be_bytes()), vec![0xff; 100_000]].concat(),
            Closed(1000),
        ),
    ];
    let native: Vec<Abuse> = vec![
        (
            "brackets 100,000 deep, then no frame",
            [text(&nested), b"\xff\xff".to_vec()].concat(),
            Closed(1002),
        ),
        (
            "100,000 empty messages, then no frame",
            [text("").repeat(1000), b"\xff\xff".to_vec()].concat(),
            Closed(1002),
        ),
        ("a message of 256 KiB and a byte", frame(FIN | TEXT, vec![b' '; (256 << 10) + 1]), Closed(1009)),
    ];
    let mut scene = scene();
    scene.check_all(echo, |server| server.socket("/echo"));
    scene.check_all(native, |server| server.socket("/ws"));
    scene.check("pings, publications and nonsense of clients that do not read", |server| {
        let publish = json!({"type": "publish", "room": "deaf", "event": "e", "data": "x".repeat(10_000), "echo": true});
        let asked = [text(&publish.to_string()), text(r#"{"type":"nonsense"}"#).repeat(1000)].concat();
        let attacks = [
            ("/echo", frame(FIN | PING, [7; 125]).repeat(500)),
            ("/ws", [text(r#"{"type":"join","rooms":["deaf"]}"#), asked].concat()),
        ];
        std::thread::scope(|scope| {
            for (path, bytes) in attacks {
                scope.spawn(move || {
                    let mut deaf = Raw::connect_narrow(server.address());
                    deaf.upgrade(path);
                    sends_until_cut_off(&mut deaf, bytes);
                });
            }
        });
    });
    scene.end();
}

#[test]
fn packets_of_socketio() {
    let engine = |text: &str| frame(FIN | TEXT, text);
    let joined = |packets: Vec<u8>| [engine("40"), packets].concat();
    let placeholder = |num: &str| format!(r#"{{"_placeholder":true,"num":{num}}}"#);
    let many = vec![placeholder("0"); 4_000].join(",");
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let rows: Vec<Abuse> = vec![
        ("an empty packet", engine(""), Closed(1002)),
        ("a type that there is not", engine("9"), Closed(1002)),
        ("an event before a namespace", engine(r#"42["x"]"#), Closed(1002)),
        ("4,000 attachments", joined(engine(&format!(r#"454000-["x",{many}]"#))), Closed(1002)),
        ("attachments past 64 bits", joined(engine(r#"4599999999999999999999-["x"]"#)), Closed(1002)),
        ("no attachments", joined(engine(r#"450-["x"]"#)), Closed(1002)),
        ("attachments of no number", joined(engine(r#"45-["x"]"#)), Closed(1002)),
        (
            "a placeholder out of range",
            joined(engine(&format!(r#"451-["x",{}]"#, placeholder("1")))),
            Closed(1002),
        ),
        (
            "a placeholder below none",
            joined(engine(&format!(r#"451-["x",{}]"#, placeholder("-1")))),
            Closed(1002),
        ),
        ("half a placeholder", joined(engine(&format!(r#"451-["x",{}]"#, placeholder("0.5")))), Closed(1002)),
        (
            "a placeholder past 64 bits",
            joined(engine(&format!(r#"451-["x",{}]"#, placeholder("99999999999999999999")))),
            Closed(1002),
        ),
        (
            "a placeholder that is text",
            joined(engine(&format!(r#"451-["x",{}]"#, placeholder("\"0\"")))),
            Closed(1002),
        ),
        (
            "text instead of an attachment",
            joined([engine(&format!(r#"451-["x",{}]"#, placeholder("0"))), engine(r#"42["y"]"#)].concat()),
            Closed(1002),
        ),
        ("an attachment of no packet", joined(frame(FIN | BINARY, [0; 100])), Closed(1002)),
        (
            "an attachment that never comes",
            joined(engine(&format!(r#"451-["x",{}]"#, placeholder("0")))),
            Closed(1008),
        ),
        (
            "an ack id of 100,000 digits",
            joined(engine(&format!(r#"42{}["x"]"#, "9".repeat(100_000)))),
            Closed(1002),
        ),
        (
            "an ack of nothing, 10,000 times",
            joined([engine("437[]").repeat(10_000), engine("9")].concat()),
            Closed(1002),
        ),
        ("a namespace of 100 kB", engine(&format!("40/{},", "a".repeat(100_000))), Closed(1002)),
        ("a namespace with control characters", engine("40/\u{1b}[2J,"), Closed(1002)),
        ("an auth payload 100,000 deep", engine(&format!(r#"40{{"a":{nested}}}"#)), Closed(1002)),
        ("an auth payload that is none", engine("40[1]"), Closed(1002)),
        ("an event 100,000 deep", joined(engine(&format!(r#"42["x",{nested}]"#))), Closed(1002)),
        ("an event without a name", joined(engine("42[]")), Closed(1002)),
        (
            "an event's name of 100 kB",
            joined(engine(&format!(r#"42["{}"]"#, "x".repeat(100_000)))),
            Closed(1002),
        ),
        ("an event of the server's", joined(engine(r#"42["disconnect"]"#)), Closed(1002)),
        ("an event that is not JSON", joined(engine(r#"42["x",]"#)), Closed(1002)),
        ("a refusal from a client", joined(engine(r#"44{"message":"no"}"#)), Closed(1002)),
        ("msgpack of a giant array", frame(FIN | BINARY, b"\xdd\xff\xff\xff\xff"), Closed(1002)),
        ("msgpack of a giant text", frame(FIN | BINARY, b"\x81\xa4type\xdb\xff\xff\xff\xff"), Closed(1002)),
        ("msgpack 100,000 deep", frame(FIN | BINARY, vec![0x91; 100_000]), Closed(1002)),
        (
            "msgpack, then text",
            [frame(FIN | BINARY, b"\x83\xa4type\0\xa3nsp\xa1/\xa4data\xc0"), engine("40")].concat(),
            Closed(1002),
        ),
        (
            "an event of 256 KiB and a byte",
            joined(frame(FIN | TEXT, vec![b'4'; (256 << 10) + 1])),
            Closed(1009),
        ),
    ];
    let mut scene = scene();
    scene.check_all(rows, |server| server.socket(SOCKETIO));
    scene.check("namespaces by the thousand", |server| {
        let mut raw = server.socket(SOCKETIO);
        (0..5000).for_each(|number| raw.send(engine(&format!("40/chat/{number},"))));
        let refused = (0..5001).filter(|_| raw.frame().payload.starts_with(b"44")).count();
        assert_eq!(refused, 5000 - 16);
    });
    scene.check("the same namespace 10,000 times", |server| {
        let mut raw = server.socket(SOCKETIO);
        raw.send(engine("40").repeat(10_000));
        // Whatever is made of it, it costs nobody anything.
        raw.try_send(engine("9")).ok();
        while raw.try_frame().is_ok_and(|frame| frame.opcode != CLOSE) {}
    });
    scene.check("an auth payload of 250 kB", |server| {
        let mut raw = server.socket(SOCKETIO);
        raw.send(engine(&format!(r#"40{{"a":"{}"}}"#, "x".repeat(250_000))));
        raw.frame();
        assert!(raw.frame().payload.starts_with(b"40{\"sid\":"));
    });
    scene.check("joining and leaving without reading", |server| {
        let mut deaf = Raw::connect_narrow(server.address());
        deaf.upgrade(SOCKETIO);
        let turns = [engine("40/chat/1,"), engine("41/chat/1,")].concat().repeat(500);
        sends_until_cut_off(&mut deaf, turns);
    });
    scene.end();
}

/// A session that polls.
struct Poller<'s> {
    server: &'s Server,
    path: String,
}

impl Poller<'_> {
    fn open(server: &Server) -> Poller<'_> {
        let mut raw = server.raw();
        raw.send(get(POLL));
        let body = raw.response().body;
        let open: Value = serde_json::from_str(&body[1..]).expect("JSON behind the type");
        Poller { server, path: format!("{POLL}&sid={}", open["sid"].as_str().expect("an id")) }
    }

    /// Asks for packets; the answer comes when there are some.
    fn ask(&self) -> Raw {
        let mut raw = self.server.raw();
        raw.send(get(&self.path));
        raw
    }

    /// Begins to say something, and answers on which connection.
    fn begin(&self, length: usize, body: &str) -> Raw {
        let mut raw = self.server.raw();
        raw.send(post(&self.path, &format!("Content-Length: {length}\r\n"), body));
        raw
    }

    fn say(&self, body: &str) -> u16 {
        self.begin(body.len(), body).response().status
    }

    /// Becomes a WebSocket that says this instead of what it should.
    fn upgrade(&self, said: &[u8]) -> Raw {
        let mut raw = self.server.raw();
        raw.send(upgrade_head(&self.path.replace("transport=polling", "transport=websocket"), ""));
        if raw.response().status == 101 {
            raw.try_send(said).ok();
        }
        raw
    }

    /// The session has ended, or does so now.
    fn is_over(&self) {
        eventually("the session is over", || (self.say("1") == 400).then_some(()));
    }
}

#[test]
fn requests_of_engineio() {
    let sid = "AAAAAAAAAAAAAAAAAAAA";
    let rows: Vec<Abuse> = vec![
        ("a session that nobody has", get(&format!("{POLL}&sid={sid}")).into(), Answered(400)),
        ("a session of no shard", get(&format!("{POLL}&sid=_wAAAAAAAAAAAAAAAAAA")).into(), Answered(400)),
        ("a session that is no name", get(&format!("{POLL}&sid=../../etc/passwd")).into(), Answered(400)),
        ("a session of 5 kB", get(&format!("{POLL}&sid={}", "A".repeat(5_000))).into(), Answered(400)),
        ("jsonp", get(&format!("{POLL}&j=0")).into(), Answered(400)),
        ("another revision", get("/socket.io/?EIO=3&transport=polling").into(), Answered(400)),
        ("no revision", get("/socket.io/?transport=polling").into(), Answered(400)),
        ("no transport", get("/socket.io/?EIO=4").into(), Answered(400)),
        (
            "a transport that there is not",
            get("/socket.io/?EIO=4&transport=flashsocket").into(),
            Answered(400),
        ),
        ("a POST of no session", post(POLL, "Content-Length: 2\r\n", "40"), Answered(400)),
        (
            "a DELETE",
            post(POLL, "", "").strip_prefix(b"POST").map(|rest| [b"DELETE", rest].concat()).expect("a POST"),
            Answered(400),
        ),
        (
            "a body of 256 KiB and a byte",
            post(&format!("{POLL}&sid={sid}"), "Content-Length: 262145\r\n", ""),
            Refused(413),
        ),
        ("an upgrade of no session", upgrade_head(&format!("{SOCKETIO}&sid={sid}"), "").into(), Refused(400)),
        ("a parameter 500 times", get(&format!("{POLL}{}", "&sid=x".repeat(500))).into(), Answered(400)),
    ];
    let mut scene = scene();
    scene.check_all(rows, Server::raw);
    for (name, body) in [
        ("separators alone", "\x1e".repeat(100_000)),
        ("a separator at the end", "40\x1e".to_owned()),
        ("binary that is not base64", "b!!!!".to_owned()),
        ("binary that is half a letter", "bA".to_owned()),
        ("binary of no packet", "40\x1ebAAAA".to_owned()),
        ("packets of no type", "x\x1ey".to_owned()),
        ("a packet of a type alone", "4".to_owned()),
        ("an ack id without an end", format!("40\x1e42{}", "1".repeat(200_000))),
    ] {
        scene.check(name, |server| {
            let poller = Poller::open(server);
            let status = poller.say(&body);
            assert!([200, 400].contains(&status), "{status}");
            assert_eq!(poller.say("6"), 400, "the session is over");
        });
    }
    scene.check("100,000 packets of nothing", |server| {
        let poller = Poller::open(server);
        assert_eq!(poller.say("6\x1e".repeat(100_000).trim_end_matches('\x1e')), 200);
        poller.is_over();
    });
    scene.check("20,000 requests to join, whose answers nobody asks for", |server| {
        let poller = Poller::open(server);
        poller.say("40/nowhere,\x1e".repeat(20_000).trim_end_matches('\x1e'));
        let waiting = server.number("outbox_bytes");
        assert!(waiting <= 520 << 10, "{waiting} bytes wait");
        poller.is_over();
    });
    scene.check("two polls at once", |server| {
        let poller = Poller::open(server);
        let polls = [poller.ask(), poller.ask()];
        polls.into_iter().for_each(|mut raw| drop(raw.response()));
        assert_eq!(poller.say("6"), 400, "the session is over");
    });
    scene.check("a hundred polls at once", |server| {
        let poller = Poller::open(server);
        let polls: Vec<Raw> = (0..100).map(|_| poller.ask()).collect();
        polls.into_iter().for_each(|mut raw| drop(raw.response()));
        assert_eq!(poller.say("6"), 400, "the session is over");
    });
    scene.check("two bodies at once", |server| {
        let poller = Poller::open(server);
        let _bodies = [poller.begin(10, "6"), poller.begin(10, "6")];
        server.wait_for_number("connections", 2);
    });
    scene.check("a poll behind a poll", |server| {
        let poller = Poller::open(server);
        let mut raw = poller.ask();
        raw.try_send(get(&poller.path)).ok();
        assert!(raw.try_response().is_err(), "their order could not be kept");
        poller.is_over();
    });
    scene.check("probes repeated", |server| {
        let poller = Poller::open(server);
        let probes: Vec<Raw> = (0..50).map(|_| poller.upgrade(&engine_frame("2probe"))).collect();
        poller.is_over();
        drop(probes);
    });
    for (name, said) in [
        ("a move before the probe", engine_frame("5")),
        ("a packet before the probe", engine_frame("40")),
        ("a probe and no move", [engine_frame("2probe"), engine_frame("40")].concat()),
        ("a probe in binary", frame(FIN | BINARY, "2probe")),
        ("a probe of 200 kB", engine_frame(&format!("2{}", "probe".repeat(40_000)))),
    ] {
        scene.check(name, |server| {
            let poller = Poller::open(server);
            let mut raw = poller.upgrade(&said);
            while raw.try_frame().is_ok_and(|frame| frame.opcode != CLOSE) {}
            poller.is_over();
        });
    }
    scene.end();
}

fn engine_frame(text: &str) -> Vec<u8> {
    frame(FIN | TEXT, text)
}

/// A token with this head and payload, signed by [`SECRET`] whatever they say.
fn token(head: &str, payload: &str) -> String {
    let signed = [head, payload].map(|text| BASE64URL_NOPAD.encode(text.as_bytes())).join(".");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(hmac::sign(&key, signed.as_bytes()).as_ref()))
}

#[test]
fn tokens() {
    const HEAD: &str = r#"{"alg":"HS256"}"#;
    let by = |head: &str| token(head, r#"{"sub":"7","exp":9999999999}"#);
    let claims = |claims: &str| token(HEAD, &format!(r#"{{"sub":"7","exp":9999999999,{claims}}}"#));
    let of = |payload: &str| token(HEAD, payload);
    let good = by(HEAD);
    let unsigned = |head: &str| format!("{}.", by(head).rsplit_once('.').expect("dots").0);
    let resigned = |algorithm: hmac::Algorithm, head: &str| {
        let signed = by(head).rsplit_once('.').expect("dots").0.to_owned();
        let key = hmac::Key::new(algorithm, SECRET.as_bytes());
        format!("{signed}.{}", BASE64URL_NOPAD.encode(hmac::sign(&key, signed.as_bytes()).as_ref()))
    };
    let list = |count: usize, item: &str| format!("[{}]", vec![item; count].join(","));
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let rows: Vec<(&'static str, String, u16)> = vec![
        ("a good one", good.clone(), 101),
        ("alg none", unsigned(r#"{"alg":"none"}"#), 401),
        ("alg none, with a signature", by(r#"{"alg":"none"}"#), 401),
        ("alg nOnE", unsigned(r#"{"alg":"nOnE"}"#), 401),
        ("alg empty", unsigned(r#"{"alg":""}"#), 401),
        ("no alg", by("{}"), 401),
        ("two algs", unsigned(r#"{"alg":"none","alg":"HS256"}"#), 401),
        ("alg in a list", by(r#"{"alg":["HS256"]}"#), 401),
        ("alg in small letters", by(r#"{"alg":"hs256"}"#), 401),
        ("no signature", unsigned(HEAD), 401),
        ("a public algorithm, signed by the secret", by(r#"{"alg":"RS256"}"#), 401),
        ("another algorithm by the same secret", resigned(hmac::HMAC_SHA512, r#"{"alg":"HS512"}"#), 401),
        ("one hash that says it is another", resigned(hmac::HMAC_SHA512, HEAD), 401),
        ("what must be understood and is not", by(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#), 401),
        ("a key in the head", unsigned(r#"{"alg":"HS256","jwk":{"kty":"oct","k":""}}"#), 401),
        ("a key at a URL", unsigned(r#"{"alg":"RS256","jku":"http://127.0.0.1:1/"}"#), 401),
        ("a kid that is a path", unsigned(r#"{"alg":"HS256","kid":"../../../../dev/null"}"#), 401),
        ("a kid that is a query", unsigned(r#"{"alg":"HS256","kid":"' OR 1=1 --"}"#), 401),
        ("a kid that is a number", by(r#"{"alg":"HS256","kid":7}"#), 401),
        ("a head that is a list", by("[]"), 401),
        ("a head with something behind it", by(r#"{"alg":"HS256"}{}"#), 401),
        ("five parts", format!("{good}.AAAA.AAAA"), 401),
        ("one part", "AAAA".to_owned(), 401),
        ("dots", "..".to_owned(), 401),
        ("padding", format!("{good}="), 401),
        ("letters that are not of the alphabet", good.replace('.', ".+/"), 401),
        ("a payload that is a list", of("[]"), 401),
        ("a payload that is text", of("\"7\""), 401),
        ("an empty payload", of(""), 401),
        ("a payload with something behind it", of(r#"{"sub":"7","exp":9999999999}x"#), 401),
        ("two users", of(r#"{"sub":"7","exp":9999999999,"sub":"admin"}"#), 401),
        ("two expiries", of(r#"{"sub":"7","exp":1,"exp":9999999999}"#), 401),
        ("two users, one in escapes", of(r#"{"sub":"7","exp":9999999999,"\u0073ub":"admin"}"#), 401),
        ("no expiry", of(r#"{"sub":"7"}"#), 401),
        ("an expiry of null", of(r#"{"sub":"7","exp":null}"#), 401),
        ("an expiry below none", of(r#"{"sub":"7","exp":-1}"#), 401),
        ("an expiry that is text", of(r#"{"sub":"7","exp":"9999999999"}"#), 401),
        ("an expiry past all numbers", of(r#"{"sub":"7","exp":1e999}"#), 401),
        ("an expiry that is nearly none", of(r#"{"sub":"7","exp":1e-320}"#), 401),
        ("an expiry past all dates", of(r#"{"sub":"7","exp":1e308}"#), 101),
        ("an expiry past 64 bits", of(r#"{"sub":"7","exp":36893488147419103232}"#), 101),
        ("half an expiry", of(r#"{"sub":"7","exp":9999999999.5}"#), 101),
        ("a beginning past all dates", claims(r#""nbf":1e308"#), 401),
        ("a beginning before all dates", claims(r#""nbf":-1e308"#), 101),
        ("nobody", of(r#"{"sub":"","exp":9999999999}"#), 401),
        ("a user of null", of(r#"{"sub":null,"exp":9999999999}"#), 401),
        ("a user that is an object", of(r#"{"sub":{"a":1},"exp":9999999999}"#), 401),
        ("half a user", of(r#"{"sub":1.5,"exp":9999999999}"#), 401),
        ("a user past 64 bits", of(r#"{"sub":36893488147419103232,"exp":9999999999}"#), 401),
        ("a user with control characters", of(r#"{"sub":"a\r\nb","exp":9999999999}"#), 401),
        ("a user that is half a letter", of(r#"{"sub":"\ud800","exp":9999999999}"#), 401),
        ("a user of 201 bytes", of(&format!(r#"{{"sub":"{}","exp":9999999999}}"#, "x".repeat(201))), 401),
        ("2,000 rooms", claims(&format!(r#""rooms":{}"#, list(2_000, "\"r\""))), 401),
        ("a room with control characters", claims(r#""rooms":["\u0000"]"#), 401),
        ("a room without a name", claims(r#""rooms":[""]"#), 401),
        ("rooms that are numbers", claims(r#""rooms":[7]"#), 401),
        ("65 roles", claims(&format!(r#""roles":{}"#, list(65, "\"r\""))), 401),
        ("65 permissions", claims(&format!(r#""permissions":{}"#, list(65, "\"join:*\""))), 401),
        ("a permission that there is not", claims(r#""permissions":["fly:*"]"#), 401),
        ("limits below none", claims(r#""limits":{"connections_max":-1}"#), 401),
        ("an audience where none is expected", claims(r#""aud":"other""#), 401),
        ("a claim 15,000 deep that nobody reads", claims(&format!(r#""x":{}"#, deep(15_000))), 101),
        ("rooms 15,000 deep", claims(&format!(r#""rooms":{}"#, deep(15_000))), 401),
        ("permissions 15,000 deep", claims(&format!(r#""permissions":[{}]"#, deep(15_000))), 401),
        ("longer than a token may be", claims(&format!(r#""x":"{}""#, "x".repeat(46_000))), 401),
        ("100,000 rooms", claims(&format!(r#""rooms":{}"#, list(100_000, "\"r\""))), 431),
        ("a claim 100,000 deep", claims(&format!(r#""x":{}"#, deep(100_000))), 431),
        ("1 MiB", claims(&format!(r#""x":"{}""#, "x".repeat(1 << 20))), 431),
    ];
    let keys = KeyServer::start();
    let (secret, set) = (format!("auth.secret={SECRET}"), format!("auth.jwks={}", keys.url));
    let own =
        [&*secret, &*set, "auth.retry_ms=500", "auth.token_bytes_max=60KiB", "limits.head_bytes_max=64KiB"];
    let mut scene = Scene::new(Server::with(&[&SETTINGS[..], &own].concat()), Server::client);
    for (name, token, status) in &rows {
        scene.check(name, |server| {
            let mut raw = server.raw();
            let sent = raw.try_send(upgrade_head("/ws", &format!("Authorization: Bearer {token}\r\n")));
            match raw.try_response() {
                Ok(response) => assert_eq!(response.status, *status, "{response:?}"),
                Err(error) => assert!(*status == 431, "{error}, {sent:?}"),
            }
        });
    }
    for (name, token, status) in &rows {
        scene.check(name, |server| {
            let mut client = server.client();
            // The same as a message: there is no head that could be too long.
            let message = json!({"type": "auth", "token": token}).to_string();
            if message.len() > 256 << 10 {
                client.say_text(message);
                assert_eq!(client.closed().0, 1009);
                return;
            }
            let answer = client.ask(json!({"type": "auth", "token": token}));
            let is_good = answer["type"] == "ack";
            assert_eq!(is_good, *status == 101, "{answer}");
        });
    }
    scene.check("thousands of keys that nobody has", |server| {
        let (before, start) = (keys.requests.load(Relaxed), now());
        for number in 0..3_000 {
            let token = unsigned(&format!(r#"{{"alg":"EdDSA","kid":"{number}"}}"#));
            let mut raw = server.raw();
            raw.send(upgrade_head("/ws", &format!("Authorization: Bearer {token}\r\n")));
            assert_eq!(raw.response().status, 401);
        }
        let (asked, most) =
            (keys.requests.load(Relaxed) - before, start.elapsed().as_millis() as usize / 500 + 2);
        assert!(asked <= most, "the keys were asked for {asked} times, not {most}");
    });
    scene.end();
}

#[test]
fn requests_of_the_control_port() {
    let key = format!("Authorization: Bearer {KEY}\r\n");
    let json = format!("{key}Content-Type: application/json\r\n");
    let lines = format!("{key}Content-Type: application/x-ndjson\r\n");
    let say = |path: &str, body: &str| post(path, &format!("{json}Content-Length: {}\r\n", body.len()), body);
    let publish = |body: &str| say("/v1/publish", body);
    let look = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: throng\r\n{key}\r\n").into_bytes();
    let by = |method: &str, target: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: throng\r\n{key}\r\n").into_bytes()
    };
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let event = r#"{"room":"nobody","event":"e"}"#;
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".repeat(100);
    let rows: Vec<Abuse> = vec![
        ("no key", get("/v1/rooms").into(), Answered(401)),
        ("a key in the query", get(&format!("/v1/rooms?key={KEY}")).into(), Answered(401)),
        (
            "a key in a cookie",
            post("/v1/publish", &format!("Cookie: key={KEY}\r\nContent-Length: 0\r\n"), ""),
            Answered(401),
        ),
        (
            "a key by another scheme",
            post("/v1/publish", &format!("Authorization: Basic {KEY}\r\nContent-Length: 0\r\n"), ""),
            Answered(401),
        ),
        ("two keys", post("/v1/publish", &format!("{key}{key}Content-Length: 0\r\n"), ""), Answered(401)),
        (
            "a key with something behind it",
            post("/v1/publish", &format!("Authorization: Bearer {KEY}x\r\nContent-Length: 0\r\n"), ""),
            Answered(401),
        ),
        (
            "a key and a NUL",
            post("/v1/publish", &format!("Authorization: Bearer {KEY}\0\r\nContent-Length: 0\r\n"), ""),
            Refused(400),
        ),
        ("a header line of 100 kB", with(&format!("X: {}\r\n", "y".repeat(100_000))), Refused(431)),
        ("10,000 header lines", with(&"X: y\r\n".repeat(10_000)), Refused(431)),
        ("a target of 100 kB", look(&format!("/v1/rooms/{}", "a".repeat(100_000))), Refused(431)),
        (
            "a length and chunks",
            post(
                "/v1/publish",
                &format!("{json}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
                "0\r\n\r\n",
            ),
            Refused(400),
        ),
        (
            "two lengths",
            post("/v1/publish", &format!("{json}Content-Length: 0\r\nContent-Length: 29\r\n"), event),
            Refused(400),
        ),
        (
            "chunks whose size is no number",
            post("/v1/publish", &format!("{json}Transfer-Encoding: chunked\r\n"), "zz\r\n"),
            Refused(400),
        ),
        (
            "chunks of 16 EiB",
            post("/v1/publish", &format!("{json}Transfer-Encoding: chunked\r\n"), "fffffffffffffffff\r\n"),
            Refused(400),
        ),
        (
            "a length of 4 EiB",
            post("/v1/publish", &format!("{json}Content-Length: 4611686018427387904\r\n"), ""),
            Refused(413),
        ),
        ("a space before the colon", with("Content-Length : 5\r\n"), Refused(400)),
        ("TLS on the plain port", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n".to_vec(), Refused(400)),
        ("HTTP/2 as if known", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Gone),
        ("a path that climbs", look("/v1/../stats"), Answered(404)),
        ("a path that climbs in escapes", look("/v1/%2e%2e/stats"), Answered(404)),
        ("a room that climbs", look("/v1/rooms/%2e%2e%2f%2e%2e%2fstats"), Answered(200)),
        ("a path with two slashes", look("//v1/rooms"), Answered(404)),
        ("a path with a slash behind it", look("/v1/rooms/"), Answered(404)),
        ("a path in capitals", look("/V1/ROOMS"), Answered(404)),
        ("TRACE", by("TRACE", "/v1/rooms"), Answered(405)),
        ("OPTIONS", by("OPTIONS", "/v1/rooms"), Answered(405)),
        ("CONNECT", by("CONNECT", "internal:22"), Answered(404)),
        ("DELETE", by("DELETE", "/v1/rooms/a"), Answered(405)),
        ("a GET that would publish", by("GET", "/v1/publish"), Answered(405)),
        (
            "a method that stands in for another",
            format!("GET /v1/rooms HTTP/1.1\r\nHost: throng\r\nX-HTTP-Method-Override: POST\r\n{key}\r\n")
                .into(),
            Answered(200),
        ),
        (
            "a body compressed",
            [
                post(
                    "/v1/publish",
                    &format!("{json}Content-Encoding: gzip\r\nContent-Length: {}\r\n", gzip.len()),
                    "",
                ),
                gzip,
            ]
            .concat(),
            Answered(415),
        ),
        (
            "a body of another type",
            post("/v1/publish", &format!("{key}Content-Type: text/xml\r\nContent-Length: 4\r\n"), "<a/>"),
            Answered(415),
        ),
        (
            "a body of no type",
            post("/v1/publish", &format!("{key}Content-Length: 2\r\n"), "{}"),
            Answered(415),
        ),
        (
            "a body of two types",
            post("/v1/publish", &format!("{json}Content-Type: text/xml\r\nContent-Length: 2\r\n"), "{}"),
            Answered(422),
        ),
        (
            "data 50,000 deep",
            publish(&format!(r#"{{"room":"nobody","event":"e","data":{deep}}}"#)),
            Answered(422),
        ),
        ("rooms 50,000 deep", publish(&format!(r#"{{"rooms":{deep},"event":"e"}}"#)), Answered(422)),
        (
            "a list of lists of publications",
            publish(&format!(r#"{{"publications":[{{"publications":[{event}]}}]}}"#)),
            Answered(200),
        ),
        (
            "10,000 publications",
            publish(&format!(r#"{{"publications":[{}]}}"#, vec!["{}"; 10_000].join(","))),
            Answered(422),
        ),
        (
            "10,000 rooms",
            publish(&format!(r#"{{"rooms":[{}],"event":"e"}}"#, vec!["\"r\""; 10_000].join(","))),
            Answered(422),
        ),
        (
            "a room of 200 kB",
            publish(&format!(r#"{{"room":"{}","event":"e"}}"#, "x".repeat(200_000))),
            Answered(422),
        ),
        ("a room with control characters", publish(r#"{"room":"a\u001b[2J","event":"e"}"#), Answered(422)),
        ("a room that is half a letter", publish(r#"{"room":"\ud800","event":"e"}"#), Answered(400)),
        ("a room in the path with a NUL", look("/v1/rooms/a%00b"), Answered(422)),
        ("a room in the path that is no text", look("/v1/rooms/%ff"), Answered(400)),
        (
            "an event of 200 kB",
            publish(&format!(r#"{{"room":"nobody","event":"{}"}}"#, "x".repeat(200_000))),
            Answered(422),
        ),
        ("a body of 257 KiB", publish(&" ".repeat(257 << 10)), Refused(413)),
        ("text that is none", say("/v1/publish", "{\"room\":\"\u{0}\"}"), Answered(400)),
        (
            "a code past 2^53",
            say("/v1/rooms/nobody/disconnect", r#"{"code":9007199254740993}"#),
            Answered(422),
        ),
        (
            "a code past 64 bits",
            say("/v1/rooms/nobody/disconnect", r#"{"code":36893488147419103232}"#),
            Answered(422),
        ),
        (
            "a reason of 200 kB",
            say(
                "/v1/rooms/nobody/disconnect",
                &format!(r#"{{"code":4000,"reason":"{}"}}"#, "x".repeat(200_000)),
            ),
            Answered(422),
        ),
        ("a page past 2^53", look("/v1/rooms?limit=9007199254740993"), Answered(422)),
        ("a page past 64 bits", look("/v1/rooms?limit=36893488147419103232"), Answered(422)),
        ("a page below none", look("/v1/rooms?limit=-1"), Answered(422)),
        ("a page of nothing", look("/v1/rooms?limit=0"), Answered(422)),
        ("a place that was made up", look("/v1/rooms?cursor=AAAA"), Answered(422)),
        ("a place past all shards", look("/v1/rooms?cursor=__________8"), Answered(200)),
        ("a place of 5 kB", look(&format!("/v1/rooms?cursor={}", "A".repeat(5_000))), Answered(422)),
        ("a place of another list", look("/v1/rooms/a/members?cursor=AH8AAAAAAAA"), Answered(200)),
        ("a parameter twice", look("/v1/rooms?limit=1&limit=2"), Answered(422)),
        ("500 parameters", look(&format!("/v1/rooms?{}", "a=b&".repeat(500))), Answered(422)),
        ("a connection that is a path", look("/v1/connections/..%2f..%2fetc"), Answered(404)),
        (
            "lines of another type",
            post("/v1/publish/stream", &format!("{json}Content-Length: 2\r\n"), "{}"),
            Answered(415),
        ),
        (
            "an idempotency key of 10 kB",
            post(
                "/v1/publish",
                &format!(
                    "{json}Idempotency-Key: {}\r\nContent-Length: {}\r\n",
                    "x".repeat(10_000),
                    event.len()
                ),
                event,
            ),
            Answered(400),
        ),
        (
            "two idempotency keys",
            post(
                "/v1/publish",
                &format!(
                    "{json}Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: {}\r\n",
                    event.len()
                ),
                event,
            ),
            Answered(400),
        ),
    ];
    let mut scene = scene();
    let control = |server: &Server| Raw::connect(server.control_address());
    scene.check_all(rows, control);
    scene.check("a line without an end", |server| {
        let mut raw = control(server);
        raw.send(post("/v1/publish/stream", &format!("{lines}Transfer-Encoding: chunked\r\n"), ""));
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        (0..300).for_each(|_| raw.send(&chunk));
        let resident = server.resident_bytes();
        raw.send("0\r\n\r\n");
        let summary = raw.response().json();
        assert_eq!((&summary["published"], &summary["failed"]), (&json!(0), &json!(1)), "{summary}");
        assert!(server.resident_bytes() < resident + (8 << 20));
    });
    scene.check("a million lines that are wrong", |server| {
        let mut raw = control(server);
        raw.send(post("/v1/publish/stream", &format!("{lines}Transfer-Encoding: chunked\r\n"), ""));
        let chunk = format!("10000\r\n{}\r\n", "x\n".repeat(0x8000));
        (0..30).for_each(|_| raw.send(&chunk));
        raw.send("0\r\n\r\n");
        let answer = raw.response();
        assert_eq!(answer.json()["failed"], 30 * 0x8000);
        assert!(answer.body.len() < 100_000, "{} bytes of errors", answer.body.len());
    });
    scene.check("idempotency keys by the thousand", |server| {
        let mut raw = control(server);
        let resident = server.resident_bytes();
        for number in 0..10_000 {
            let lines =
                format!("{json}Idempotency-Key: {number:0120}\r\nContent-Length: {}\r\n", event.len());
            raw.send(post("/v1/publish", &lines, event));
            assert_eq!(raw.response().status, 200);
        }
        assert!(server.resident_bytes() < resident + (4 << 20));
    });
    scene.check("requests that come a byte at a time, in all places", |server| {
        let mut backend = control(server);
        backend.send(look("/v1/connections/count"));
        assert_eq!(backend.response().status, 200);
        let mut slow: Vec<Raw> = (0..80).map(|_| control(server)).collect();
        for byte in b"POST /v1/publish HTTP/1.1\r\nX: ".iter().cycle().take(100) {
            slow.iter_mut().for_each(|raw| drop(raw.try_send([*byte])));
            // Who has shown a key has a place of its own.
            backend.send(publish(event));
            assert_eq!(backend.response().status, 200);
            rest(Duration::from_millis(50));
        }
        drop(slow);
    });
    scene.end();
}

#[test]
fn headers_of_proxies() {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let header = |command: u8, kind: u8, length: u16, body: &[u8]| {
        [SIGNATURE, &[command, kind], &length.to_be_bytes(), body].concat()
    };
    let rows: Vec<Abuse> = vec![
        ("no header", get("/health").into(), Gone),
        ("nothing", Vec::new(), Gone),
        ("half a signature", SIGNATURE[..7].to_vec(), Gone),
        ("a signature alone", SIGNATURE.to_vec(), Gone),
        ("a signature with a wrong byte", b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\x0c".to_vec(), Gone),
        ("addresses cut short", header(0x21, 0x11, 12, &[127, 0, 0]), Gone),
        ("addresses shorter than they are", header(0x21, 0x11, 4, &[127, 0, 0, 1]), Gone),
        ("IPv6 with the length of IPv4", header(0x21, 0x21, 12, &[0; 12]), Gone),
        ("another version", header(0x31, 0x11, 12, &[0; 12]), Gone),
        ("a command that there is not", header(0x2f, 0x11, 12, &[0; 12]), Gone),
        ("a family that there is not", header(0x21, 0xf1, 12, &[0; 12]), Gone),
        ("a length of 64 KiB", header(0x21, 0x11, 65_535, &[0; 1000]), Gone),
        ("a line without an end", b"PROXY TCP4 ".iter().copied().chain([b'1'; 10_000]).collect(), Gone),
        ("a line cut short", b"PROXY TCP4 1.2.3.4 ".to_vec(), Gone),
        ("a line with a name", b"PROXY TCP4 localhost localhost 1 2\r\n".to_vec(), Gone),
        ("a line with a port too much", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n".to_vec(), Gone),
        ("a line with a port too large", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n".to_vec(), Gone),
        ("a line for another protocol", b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), Gone),
        (
            "a second header behind the first",
            [header(0x20, 0, 0, b""), header(0x20, 0, 0, b"")].concat(),
            Refused(400),
        ),
        (
            "a header, then nonsense",
            [header(0x20, 0, 0, b""), b"\xff\xff\r\n\r\n".to_vec()].concat(),
            Refused(400),
        ),
    ];
    let own = ["limits.proxy_protocol=true", r#"limits.trusted_proxies=["127.0.0.1"]"#];
    let server = Server::with(&[&SETTINGS[..], &own].concat());
    let mut scene = Scene::new(server, |server| {
        let mut raw = server.raw();
        raw.send("PROXY TCP4 10.1.1.1 127.0.0.1 1 2\r\n");
        Client::over(raw, "/ws", &[])
    });
    scene.check_all(rows, Server::raw);
    scene.check("who is no proxy", |server| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        fall(Raw::connect_from(source, server.address()), b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Gone);
    });
    scene.end();
}

#[test]
fn records_of_tls() {
    let certificate = Certificate::new();
    let hello = {
        let config = certificate.trust(&[&version::TLS13]);
        let mut client =
            rustls::ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("a buffer takes it");
        hello
    };
    let record =
        |kind: u8, body: &[u8]| [&[kind, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat();
    let message = &hello[5..];
    let bytewise: Vec<u8> = message.iter().flat_map(|byte| record(22, &[*byte])).collect();
    let long = [&[1, 0, 0xff, 0xff][..], &[0; 16_000]].concat();
    let rows: Vec<Abuse> = vec![
        ("plain HTTP", get("/health").into(), Refused(400)),
        ("nothing", Vec::new(), Gone),
        ("half a hello", hello[..100].to_vec(), Gone),
        ("a hello and silence", hello.clone(), Gone),
        ("a hello in records of one byte, and silence", bytewise, Gone),
        ("a hello twice", [&hello[..], &hello].concat(), Gone),
        ("a hello of SSL 2", b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10".to_vec(), Gone),
        ("a hello that claims 16 MiB", record(22, &[1, 0xff, 0xff, 0xff, 3, 3]), Gone),
        ("a hello without an end", record(22, &long).repeat(5), Gone),
        ("an empty record", record(22, b""), Gone),
        ("a record of 64 KiB", [&[22, 3, 1, 0xff, 0xff][..], &[0; 65_535]].concat(), Gone),
        ("a record of no type", record(99, b"x"), Gone),
        ("a heartbeat", record(24, &[1, 0xff, 0xff, 0]), Gone),
        ("data before a hello", record(23, &[0; 100]), Gone),
        ("data behind a hello", [&hello[..], &record(23, &[0; 100])].concat(), Gone),
        ("a change of ciphers before a hello", record(20, &[1]), Gone),
        (
            "10,000 changes of ciphers behind a hello",
            [&hello[..], &record(20, &[1]).repeat(10_000)].concat(),
            Gone,
        ),
        ("10,000 warnings", record(21, &[1, 0]).repeat(10_000), Gone),
        ("an alert and its end", record(21, &[2, 80]), Gone),
    ];
    let flags = certificate.flags(&SETTINGS);
    let server = Server::with_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let config = certificate.trust(&[&version::TLS13]);
    // The well use it as well; their sockets are looked after by hand.
    let mut well = Secure::over(server.raw(), &config);
    assert_eq!(well.get("/health").status, 200);
    let check = |name: &str, attack: &dyn Fn(&Server)| {
        attack(&server);
        let mut other = Secure::over(server.raw(), &config);
        assert_eq!(other.get("/health").status, 200, "{name}");
        drop(other);
        server.wait_for_number("sockets", 0);
    };
    drop(well);
    for (name, bytes, fate) in &rows {
        check(name, &|server| fall(server.raw(), bytes, *fate));
    }
    check("a flood of hellos", &|server| {
        let flood: Vec<Raw> = (0..300)
            .map(|_| {
                let mut raw = server.raw();
                raw.try_send(&hello).ok();
                raw
            })
            .collect();
        let start = now();
        assert_eq!(Secure::over(server.raw(), &config).get("/health").status, 200);
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(flood);
    });
    for (name, count, is_much) in [("keys that change", 8, false), ("keys that change without end", 9, true)]
    {
        check(name, &|server| {
            let mut client = Secure::over(server.raw(), &config);
            assert_eq!(client.get("/health").status, 200);
            let mut bytes = Vec::new();
            for _ in 0..count {
                client.stream.conn.refresh_traffic_keys().expect("the handshake is done");
                client.stream.conn.write_tls(&mut bytes).expect("a buffer takes it");
            }
            client.stream.sock.write_all(&bytes).expect("it is taken");
            if is_much {
                assert_eq!(
                    client.stream.read(&mut [0; 9]).expect_err("an alert").kind(),
                    ErrorKind::InvalidData
                );
            } else {
                assert_eq!(client.get("/health").status, 200);
            }
        });
    }
    check("keys that change without end, one at a time", &|server| {
        let mut client = Secure::over(server.raw(), &config);
        assert_eq!(client.get("/health").status, 200);
        let deadline = now() + WAIT;
        loop {
            assert!(now() < deadline, "it is not cut off");
            let mut bytes = Vec::new();
            client.stream.conn.refresh_traffic_keys().expect("the handshake is done");
            client.stream.conn.write_tls(&mut bytes).expect("a buffer takes it");
            if client.stream.sock.write_all(&bytes).is_err() {
                break;
            }
            rest(Duration::from_millis(5));
        }
    });
    let faults = server.metrics().sum("throng_transport_faults_total", &[]);
    assert!(faults >= rows.len() as f64, "{faults}");
    assert_eq!(Arc::strong_count(&config), 1);
}
