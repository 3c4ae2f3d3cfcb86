//! TLS on the port for clients: what is agreed on, certificates exchanged under way, what hostile and slow clients can do, sockets given
//! from shard to shard, and stock clients of other makers.

use crate::foreign::{self, NAMESPACES, NODE, PATIENT, PYTHON, SOCKETIO};
use crate::harness::clock::rest;
use crate::harness::secure::{Certificate, Secure};
use crate::harness::server::run;
use crate::harness::{Deadline, Raw, Server, WAIT, eventually};
use rustix::process::Signal;
use rustls::{HandshakeKind, version};
use serde_json::json;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use tungstenite::Message;

#[test]
fn versions_and_protocols_are_agreed_on_as_the_settings_say() {
    let certificate = Certificate::new();
    let (both, new) =
        (certificate.server(&[]), certificate.server(&["tls.version_min=1.3", "server.shards=1"]));
    for (server, version, spoken) in [
        (&both, "-tls1_3", true),
        (&both, "-tls1_2", true),
        (&both, "-tls1_1", false),
        (&new, "-tls1_3", true),
        (&new, "-tls1_2", false),
    ] {
        let said = openssl(server, &[version, "-cipher", "ALL:@SECLEVEL=0"]);
        assert_eq!(said.contains("BEGIN CERTIFICATE"), spoken, "{said}");
        assert_eq!(said.contains("alert"), !spoken, "{said}");
    }
    let said = openssl(&both, &["-alpn", "h2,http/1.1"]);
    assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    let said = openssl(&both, &["-alpn", "h2"]);
    assert!(said.contains("alert no application protocol"), "{said}");
    let faults = |server: &Server, reason: &str| {
        server.metrics().sum("throng_transport_faults_total", &[&format!("reason=\"{reason}\"")])
    };
    assert_eq!((faults(&both, "version"), faults(&both, "nothing_in_common")), (1.0, 1.0));
    assert_eq!(faults(&new, "version"), 1.0);
}

/// What `openssl s_client` says about a server.
fn openssl(server: &Server, args: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &server.address().to_string()])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is there (Debian and Ubuntu: apt-get install openssl)");
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

#[test]
fn a_certificate_is_exchanged_while_clients_are_connected() {
    let certificate = Certificate::new();
    let mut server = certificate.server(&[]);
    let mut early = certificate.connect(&server);
    assert_eq!(early.get("/health").status, 200);
    let old = certificate.trust(&[&version::TLS13]);

    // Files that are wrong change nothing, and it is said which.
    certificate.write("key.pem", "nothing");
    server.signal(Signal::HUP);
    eventually("the bad file is named", || server.log().contains("tls.key_file").then_some(()));
    server.wait_for_log("nothing was loaded anew: all is what it was");
    assert_eq!(Secure::over(server.raw(), &old).get("/health").status, 200);

    certificate.renew();
    server.signal(Signal::HUP);
    server.wait_for_log("the configuration was loaded anew, with certificates and keys");
    assert_eq!(certificate.connect(&server).get("/health").status, 200);
    assert_eq!(early.get("/health").status, 200, "who is connected stays");
    let mut stranger = Secure::over(server.raw(), &{
        let other = Certificate::new();
        other.trust(&[&version::TLS13])
    });
    let refused = stranger.stream.write_all(b"GET /health HTTP/1.1\r\n\r\n");
    assert!(refused.is_err(), "the new certificate is not known there");
    eventually("the server hears why", || {
        (server.metrics().sum("throng_transport_faults_total", &["reason=\"alert\""]) == 1.0).then_some(())
    });
}

#[test]
fn a_bad_certificate_is_an_error_at_the_start() {
    let certificate = Certificate::new();
    certificate.write("cert.pem", "nothing");
    let flags = certificate.flags(&["server.listen=127.0.0.1:0", "server.control=off"]);
    let args: Vec<&str> = ["serve"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let outcome = run(&[], &args);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("(tls.certificate_file): it holds no certificate in PEM"),
        "{}",
        outcome.stderr
    );
    let outcome = run(&[], &["serve", "--set", "tls.key_file=key.pem"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("tls.key_file"), "{}", outcome.stderr);
}

#[test]
fn who_comes_back_shortens_the_handshake_with_a_ticket() {
    let certificate = Certificate::new();
    let server = certificate.server(&["server.shards=4"]);
    for version in [&version::TLS13, &version::TLS12] {
        let config = certificate.trust(&[version]);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut client = Secure::over(server.raw(), &config);
            assert_eq!(client.get("/health").status, 200);
            assert_eq!(client.stream.conn.handshake_kind(), Some(expected), "{version:?}");
        }
    }
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_tls_handshakes_total", &[]), 6.0);
    assert_eq!(metrics.sum("throng_tls_resumptions_total", &[]), 4.0);
}

#[test]
fn plain_http_is_told_that_this_is_not_its_port() {
    let certificate = Certificate::new();
    let server = certificate.server(&[]);
    let mut plain = server.raw();
    plain.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
    let response = plain.response();
    assert_eq!((response.status, &response.json()["error"]), (400, &json!("not_tls")));
    plain.ended();
    let mut garbage = server.raw();
    garbage.send([0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0x10]);
    // An alert or nothing; then the end.
    let mut stream = garbage.into_stream();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the server ends the connection");
    assert!(rest.is_empty() || rest[0] == 21, "{rest:x?}");
    assert_eq!(server.metrics().sum("throng_transport_faults_total", &["reason=\"not_tls\""]), 2.0);
    server.wait_for_number("sockets", 0);
}

#[test]
fn slow_handshakes_and_floods_of_them_cost_others_nothing() {
    let certificate = Certificate::new();
    let server = certificate.server(&["limits.handshake_timeout_ms=1000", "server.shards=1"]);
    let hello = client_hello(&certificate);
    // Some say nothing, some begin, some go on to where the server has done its part.
    let slow: Vec<Raw> = (0..300)
        .map(|number| {
            let mut raw = server.raw();
            match number % 3 {
                0 => {}
                1 => raw.send(&hello[..100]),
                _ => raw.send(&hello),
            }
            raw
        })
        .collect();
    let deadline = Deadline::after(WAIT);
    let mut good = certificate.connect(&server);
    assert_eq!(good.get("/health").status, 200);
    let mut socket = certificate.connect(&server).into_websocket("/ws");
    socket
        .send(Message::text(json!({"type": "join", "rooms": ["a"], "id": 1}).to_string()))
        .expect("it is taken");
    assert!(socket.read().expect("an answer").to_text().expect("text").contains("ack"));
    assert!(!deadline.is_over());
    server.wait_for_number("sockets", 1);
    drop(slow);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_transport_faults_total", &["reason=\"unfinished\""]), 300.0);
    assert_eq!(metrics.sum("throng_tls_handshakes_total", &[]), 2.0);
}

#[test]
fn openssl_changes_keys_as_it_likes() {
    let certificate = Certificate::new();
    let server = certificate.server(&["server.shards=1"]);
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let mut client = Command::new("openssl")
            .args(["s_client", "-tls1_3", "-ciphersuites", suite, "-connect", &server.address().to_string()])
            .args(["-CAfile", &certificate.path("cert.pem"), "-verify_return_error", "-crlf"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is there (Debian and Ubuntu: apt-get install openssl)");
        let (mut input, mut output) =
            (client.stdin.take().expect("a pipe"), client.stdout.take().expect("a pipe"));
        let mut said = String::new();
        let mut wait_for = |count: usize| {
            let mut bytes = [0; 4096];
            // Its own end would end this too.
            while said.matches("\"status\":\"ok\"").count() < count {
                let length = output.read(&mut bytes).expect("it says something");
                assert!(length > 0, "{suite}: it has ended:\n{said}");
                said += &String::from_utf8_lossy(&bytes[..length]);
            }
        };
        let mut answers = 0;
        // `K` wants our key changed as well, `k` does not. Each is read by itself if there is an answer in between.
        for command in ["", "K\n", "k\n", "K\n", "K\n"] {
            input.write_all(command.as_bytes()).expect("it reads");
            if !command.is_empty() {
                // A command is one if it stands at the beginning of what openssl reads at once.
                rest(Duration::from_millis(200));
            }
            input.write_all(b"GET /health HTTP/1.1\nHost: throng\n\n").expect("it reads");
            answers += 1;
            wait_for(answers);
        }
        drop(input);
        let status = client.wait().expect("it is our child");
        assert!(status.success(), "{suite}: {said}");
    }
    server.wait_for_number("sockets", 0);
    assert_eq!(server.metrics().sum("throng_transport_faults_total", &[]), 0.0);
}

/// The server once changed its key without a word then.
#[test]
fn openssl_may_change_keys_in_the_packet_that_ends_its_handshake() {
    let certificate = Certificate::new();
    let server = certificate.server(&["server.shards=1"]);
    let relay = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_3", "-connect", &relay.local_addr().expect("it is bound").to_string()])
        .args(["-CAfile", &certificate.path("cert.pem"), "-verify_return_error", "-crlf"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is there (Debian and Ubuntu: apt-get install openssl)");
    let mut input = client.stdin.take().expect("a pipe");
    input.write_all(b"K\n").expect("it reads");
    let (mut near, _) = relay.accept().expect("openssl connects");
    let mut far = TcpStream::connect(server.address()).expect("the server is there");
    let (mut from_far, mut to_near) =
        (far.try_clone().expect("a handle"), near.try_clone().expect("a handle"));
    let down = thread::spawn(move || io::copy(&mut from_far, &mut to_near));
    // The hello goes on at once, what comes then together: the end of the handshake, the wish for new keys, and a request.
    let mut bytes = [0; 8192];
    let mut length = near.read(&mut bytes).expect("a hello");
    far.write_all(&bytes[..length]).expect("it is taken");
    length = near.read(&mut bytes).expect("the end of the handshake");
    // A command is one if it stands at the beginning of what openssl reads at once.
    rest(Duration::from_millis(500));
    input.write_all(b"GET /health HTTP/1.1\nHost: throng\nConnection: close\n\n").expect("it reads");
    rest(Duration::from_millis(500));
    length += near.read(&mut bytes[length..]).expect("a request");
    far.write_all(&bytes[..length]).expect("it is taken");
    let mut said = String::new();
    client.stdout.take().expect("a pipe").read_to_string(&mut said).expect("it says something, and ends");
    assert!(said.contains("\"status\":\"ok\""), "{said}");
    drop((near, far, input));
    client.wait().expect("it is our child");
    down.join().expect("it does not panic").ok();
    server.wait_for_number("sockets", 0);
    assert_eq!(server.metrics().sum("throng_transport_faults_total", &[]), 0.0);
}

/// The first bytes of a client.
fn client_hello(certificate: &Certificate) -> Vec<u8> {
    let name = "localhost".try_into().expect("a name");
    let config = certificate.trust(&[&version::TLS13]);
    let mut client = rustls::ClientConnection::new(config, name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a buffer takes it");
    hello
}

#[test]
fn handshakes_may_come_byte_by_byte() {
    let certificate = Certificate::new();
    let server = certificate.server(&[]);
    for version in [&version::TLS13, &version::TLS12] {
        let mut client = Secure::over(server.raw(), &certificate.trust(&[version]));
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while client.stream.conn.wants_write() {
                client.stream.conn.write_tls(&mut bytes).expect("a buffer takes it");
            }
            for byte in bytes {
                client.stream.sock.write_all(&[byte]).expect("the server takes it");
            }
            if !client.stream.conn.is_handshaking() {
                break;
            }
            client.stream.conn.read_tls(&mut client.stream.sock).expect("the server answers");
            client.stream.conn.process_new_packets().expect("the server speaks TLS");
        }
        assert_eq!(client.get("/health").status, 200);
    }
}

#[test]
fn long_messages_go_both_ways_and_the_end_is_said() {
    let certificate = Certificate::new();
    let server = certificate.server(&["server.echo=true"]);
    for version in [&version::TLS13, &version::TLS12] {
        let config = certificate.trust(&[version]);
        let mut socket = Secure::over(server.raw(), &config).into_websocket("/echo");
        for bytes in [1, 1000, 16_384, 100_000, 1 << 20] {
            let message: Vec<u8> = (0..bytes).map(|number: u32| (number % 251) as u8).collect();
            socket.send(Message::binary(message.clone())).expect("it is taken");
            assert!(
                socket.read().expect("it comes back").into_data() == message,
                "{bytes} bytes, {version:?}"
            );
        }
        // The WebSocket's close is answered, then comes TLS's own, then the end of the stream.
        socket.close(None).expect("it is taken");
        eventually("the WebSocket is closed", || {
            matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)).then_some(())
        });
        let mut stream =
            Secure { stream: std::mem::replace(socket.get_mut(), plain_secure(&certificate, &server)) };
        stream.ended();
    }
    let mut client = certificate.connect(&server);
    client.send("GET /nothing HTTP/1.1\r\nHost: throng\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().status, 404);
    client.ended();
}

/// Some other stream, to take the place of one.
fn plain_secure(
    certificate: &Certificate,
    server: &Server,
) -> rustls::StreamOwned<rustls::ClientConnection, std::net::TcpStream> {
    certificate.connect(server).stream
}

#[test]
fn who_reads_slowly_gets_all_of_it_in_order_or_is_closed() {
    let certificate = Certificate::new();
    let server = certificate.server(&["outbox.bytes_max=8MiB", "server.shards=1"]);
    for version in [&version::TLS13, &version::TLS12] {
        let config = certificate.trust(&[version]);
        let narrow = Secure::over(Raw::connect_narrow(server.address()), &config);
        let mut reader = narrow.into_websocket("/ws");
        let mut writer = Secure::over(server.raw(), &config).into_websocket("/ws");
        let say = |socket: &mut crate::harness::secure::WebSocket, message: serde_json::Value| {
            socket.send(Message::text(message.to_string())).expect("it is taken");
        };
        say(&mut reader, json!({"type": "join", "rooms": ["slow"], "id": 1}));
        assert!(reader.read().expect("an answer").to_text().expect("text").contains("ack"));
        let text = "x".repeat(50_000);
        for number in 0..100 {
            let data = json!({"number": number, "text": text});
            say(&mut writer, json!({"type": "publish", "room": "slow", "event": "long", "data": data}));
        }
        server.wait_for("outbox_bytes", "to be more", |bytes| bytes > 100_000);
        for number in 0..100 {
            let message = reader.read().expect("an event");
            let message: serde_json::Value =
                serde_json::from_str(message.to_text().expect("text")).expect("JSON");
            assert_eq!(message["data"]["number"], number);
            assert_eq!(message["data"]["text"].as_str().map(str::len), Some(50_000));
        }
        server.wait_for_number("outbox_bytes", 0);
        // Now more than may wait.
        for number in 0..300 {
            let data = json!({"number": number, "text": text});
            say(&mut writer, json!({"type": "publish", "room": "slow", "event": "long", "data": data}));
        }
        server.wait_for("disconnects/slow", "to be more", |count| count >= 1);
        let mut expected = 0;
        let ended = loop {
            match reader.read() {
                Ok(Message::Text(text)) => {
                    let message: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                    assert_eq!(message["data"]["number"], expected);
                    expected += 1;
                }
                other => break other,
            }
        };
        assert!(
            matches!(&ended, Ok(Message::Close(Some(frame))) if u16::from(frame.code) == 4001),
            "{ended:?}"
        );
        drop((reader, writer));
        server.wait_for_number("sockets", 0);
        server.wait_for_number("outbox_bytes", 0);
    }
}

#[test]
fn sockets_are_given_from_shard_to_shard_with_their_sessions() {
    let certificate = Certificate::new();
    let server = certificate.server(&["server.shards=4"]);
    for version in [&version::TLS13, &version::TLS12] {
        let config = certificate.trust(&[version]);
        let open = |client: &mut Secure| {
            let body = client.get("/socket.io/?EIO=4&transport=polling").body;
            let open: serde_json::Value = serde_json::from_str(&body[1..]).expect("an open packet");
            open["sid"].as_str().expect("an id").to_owned()
        };
        let mut clients: Vec<Secure> = (0..8).map(|_| Secure::over(server.raw(), &config)).collect();
        let sids: Vec<String> = clients.iter_mut().map(open).collect();
        let before = server.number("totals/handovers");
        // Every socket goes to every session, and so from shard to shard.
        for client in &mut clients {
            for sid in &sids {
                let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
                client.send(format!("POST {path} HTTP/1.1\r\nHost: throng\r\nContent-Length: 1\r\n\r\n6"));
                assert_eq!(client.response().body, "ok");
            }
        }
        assert!(server.number("totals/handovers") > before, "eight sessions on one shard of four");
    }
}

#[test]
fn stock_clients_agree_with_us_over_tls() {
    let certificate = Certificate::new();
    let server = certificate.server(&["server.shards=4"]);
    let url = format!("wss://{}/ws", server.address());
    for (mut script, install) in
        [(foreign::node("node/native.mjs"), NODE), (foreign::python("native.py"), PYTHON)]
    {
        script.arg(&url).env("NODE_EXTRA_CA_CERTS", certificate.path("cert.pem"));
        script.env("SSL_CERT_FILE", certificate.path("cert.pem"));
        foreign::check(script, install, 20);
    }
    server.wait_for_number("sockets", 0);
}

#[test]
fn stock_clients_of_socketio_agree_with_us_over_tls() {
    let certificate = Certificate::new();
    let mut flags = vec!["--config".to_owned(), SOCKETIO.to_owned()];
    flags.extend(certificate.flags(&[NAMESPACES, PATIENT, "server.shards=4"]));
    let server = Server::with_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let mut script = foreign::node("node/socketio_client.mjs");
    script.arg(format!("https://{}", server.address()));
    script.env("NODE_EXTRA_CA_CERTS", certificate.path("cert.pem"));
    foreign::check(script, NODE, 40);
    server.wait_for_number("connections", 0);
    server.wait_for_number("sockets", 0);
    assert!(server.number("totals/handovers") > 0);
}

#[test]
fn records_that_were_touched_end_the_connection_with_an_alert() {
    let certificate = Certificate::new();
    let mut server = certificate.server(&["server.shards=1"]);
    let mut client = certificate.connect(&server);
    assert_eq!(client.get("/health").status, 200);
    client.stream.sock.write_all(&[23, 3, 3, 0, 20]).expect("it is taken");
    client.stream.sock.write_all(&[7; 20]).expect("it is taken");
    let error = client.stream.read(&mut [0; 64]).expect_err("an alert");
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    server.wait_for_number("sockets", 0);
    assert_eq!(server.metrics().sum("throng_transport_faults_total", &["reason=\"malformed\""]), 1.0);
    // A drain tells who is connected in the words of both.
    let mut socket = certificate.connect(&server).into_websocket("/ws");
    server.signal(Signal::TERM);
    let hint = socket.read().expect("when to come back");
    assert!(hint.to_text().is_ok_and(|text| text.starts_with(r#"{"type":"disconnect""#)), "{hint:?}");
    let last = socket.read().expect("a close frame");
    assert!(matches!(&last, Message::Close(Some(frame)) if u16::from(frame.code) == 1001), "{last:?}");
    drop(socket);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}
