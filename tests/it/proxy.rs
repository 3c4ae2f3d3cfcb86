//! The PROXY protocol in front of the port for clients: whose connection it is, whose word is believed, and what comes instead.

use crate::harness::secure::{Certificate, Secure};
use crate::harness::{Raw, Server};
use rustls::version;
use std::time::Duration;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const TRUSTING: [&str; 2] = ["limits.proxy_protocol=true", "limits.trusted_proxies=[\"127.0.0.1\"]"];

/// A header of version 2 for a client at `10.9.8.last`, with something behind the addresses.
fn header(last: u8) -> Vec<u8> {
    [SIGNATURE, &[0x21, 0x11, 0, 20, 10, 9, 8, last, 127, 0, 0, 1, 1, 1, 2, 2], &[3, 0, 5, 1, 2, 3, 4, 5]]
        .concat()
}

/// What a proxy sends when it asks for itself.
fn local() -> Vec<u8> {
    [SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

fn upgrade(raw: &mut Raw) -> u16 {
    raw.send(crate::harness::raw::upgrade_head("/ws", ""));
    raw.response().status
}

#[test]
fn the_address_in_the_header_counts() {
    let server = Server::with(&[&TRUSTING[..], &["limits.connections_per_ip_max=1"]].concat());
    let mut sockets = Vec::new();
    for (head, expected) in [
        (header(1), 101),
        (header(2), 101),
        (header(1), 429),
        (b"PROXY TCP4 10.9.8.3 127.0.0.1 5 6\r\n".to_vec(), 101),
        (b"PROXY TCP4 10.9.8.2 127.0.0.1 5 6\r\n".to_vec(), 429),
    ] {
        let mut raw = server.raw();
        raw.send(&head);
        assert_eq!(upgrade(&mut raw), expected, "{:?}", String::from_utf8_lossy(&head));
        sockets.push(raw);
    }
    // Its own word on others is not taken from a client.
    let mut raw = server.raw();
    raw.send(header(1));
    raw.send(crate::harness::raw::upgrade_head("/ws", "X-Forwarded-For: 10.9.8.77\r\n"));
    assert_eq!(raw.response().status, 429);
    // The proxy itself may be well informed of another in front of it.
    let mut raw = server.raw();
    raw.send(local());
    raw.send(crate::harness::raw::upgrade_head("/ws", "X-Forwarded-For: 10.9.8.78\r\n"));
    assert_eq!(raw.response().status, 101);
    drop((sockets, raw));
    server.wait_for_number("sockets", 0);
    let mut again = server.raw();
    again.send_bytewise(header(1));
    assert_eq!(upgrade(&mut again), 101, "the place was freed, and a header may come byte by byte");
}

#[test]
fn what_is_no_header_or_from_nobody_we_know_is_closed() {
    let server = Server::with(&[&TRUSTING[..], &["limits.handshake_timeout_ms=500"]].concat());
    for bytes in ["GET /health HTTP/1.1\r\nHost: throng\r\n\r\n", "PROXY TCP4 nonsense\r\n"] {
        let mut raw = server.raw();
        raw.send(bytes);
        raw.ended();
    }
    // Half a header is waited for, and not for ever.
    let mut half = server.raw();
    half.send(&header(1)[..20]);
    half.silent_for(Duration::from_millis(200));
    half.ended();
    let faults = |reason: &str| {
        server.metrics().sum("throng_transport_faults_total", &[&format!("reason=\"{reason}\"")])
    };
    assert_eq!((faults("proxy_header"), faults("untrusted")), (2.0, 0.0));
    for _ in 0..3 {
        let mut stranger = Raw::connect_from([127, 0, 0, 9].into(), server.address());
        stranger.send([&header(1)[..], b"GET /health HTTP/1.1\r\nHost: throng\r\n\r\n"].concat());
        stranger.ended();
    }
    assert_eq!(faults("untrusted"), 3.0);
    let shards = 2;
    assert!(
        (1..=shards).contains(&server.log().matches("is from no trusted proxy").count()),
        "{}",
        server.log()
    );
    server.wait_for_number("sockets", 0);
}

#[test]
fn the_header_comes_before_tls_and_goes_along_from_shard_to_shard() {
    let certificate = Certificate::new();
    let settings = [&TRUSTING[..], &["server.shards=4", "limits.connections_per_ip_max=3"]].concat();
    let server = certificate.server(&settings);
    let config = certificate.trust(&[&version::TLS13]);
    let connect = |last: u8| {
        let mut raw = server.raw();
        raw.send(header(last));
        Secure::over(raw, &config)
    };
    let mut clients: Vec<Secure> = (1..=8).map(connect).collect();
    let mut sids = Vec::new();
    for client in &mut clients {
        let body = client.get("/socket.io/?EIO=4&transport=polling").body;
        let open: serde_json::Value = serde_json::from_str(&body[1..]).expect("an open packet");
        sids.push(open["sid"].as_str().expect("an id").to_owned());
    }
    for client in &mut clients {
        for sid in &sids {
            let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
            client.send(format!("POST {path} HTTP/1.1\r\nHost: throng\r\nContent-Length: 1\r\n\r\n6"));
            assert_eq!(client.response().body, "ok");
        }
    }
    assert!(server.number("totals/handovers") > 0);
    // Each address has one session. Of two further ones the sockets count for the address in the header, wherever they are by now.
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.get("/socket.io/?EIO=4&transport=polling").status, 200, "{number}");
        assert_eq!(client.get("/socket.io/?EIO=4&transport=polling").status, 200, "{number}");
        assert_eq!(client.get("/socket.io/?EIO=4&transport=polling").status, 429, "{number}");
    }
}
