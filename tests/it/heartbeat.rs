//! The heartbeat: who shows a sign of life stays, who shows none is found and closed, neither too soon nor too late.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{CONTINUATION, FIN, PING, PONG, TEXT};
use crate::harness::{Server, frame};
use serde_json::json;
use std::time::Duration;

const QUICK: [&str; 2] = ["heartbeat.ping_interval_ms=200", "heartbeat.ping_timeout_ms=200"];
/// For those who answer: even if the machine lets them wait, they are in time.
const PATIENT: [&str; 3] =
    ["heartbeat.ping_interval_ms=700", "heartbeat.ping_timeout_ms=700", "server.echo=true"];
/// What the kernels of a busy machine may add.
const SLACK: Duration = Duration::from_secs(5);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn who_is_silent_is_pinged_and_then_closed() {
    let server = Server::with(&QUICK);
    let start = now();
    let mut silent = server.socket("/ws");
    silent.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["lobby"]}"#));
    let ping = silent.frame();
    let pinged = start.elapsed();
    assert_eq!((ping.opcode, ping.payload.len()), (PING, 0));
    assert_eq!(silent.closed(), (4000, "no sign of life".to_owned()));
    let closed = start.elapsed();
    assert!(pinged >= ms(200) && pinged < ms(200) + SLACK, "{pinged:?}");
    assert!(closed >= ms(400) && closed < ms(400) + SLACK, "{closed:?}");
    assert_eq!(server.number("disconnects/silent"), 1);
    assert_eq!(server.client().join(&["lobby"]), [0], "it is no member any more");
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_disconnects_total", &[r#"reason="silent""#]), 1.0);
    assert!(metrics.sum("throng_pings_sent_total", &[]) >= 1.0);
}

#[test]
fn who_answers_pings_stays() {
    let server = Server::with(&PATIENT);
    let mut client = server.client();
    client.join(&["lobby"]);
    // All it does is what every library does by itself.
    assert_eq!(client.hear_within(ms(3000)), None);
    client.publish("lobby", "still here", json!(1));
    client.has_heard_all();
    assert!(server.number("totals/pings_sent") >= 3);
    assert_eq!(server.number("totals/disconnects"), 0);
}

#[test]
fn any_sign_of_life_is_one() {
    let server = Server::with(&PATIENT);
    // Whatever it is: a pong nobody asked for, a part of a message, bytes of a frame that is not complete.
    let pong = frame(FIN | PONG, "");
    let fragment = [frame(TEXT, "a"), frame(CONTINUATION, "b").repeat(100)].concat();
    let endless = frame(FIN | TEXT, [b'x'; 2000]);
    let mut sockets = [server.socket("/echo"), server.socket("/echo"), server.socket("/echo")];
    let start = now();
    let mut sent = 0;
    while start.elapsed() < ms(2000) {
        sockets[0].send(&pong);
        sockets[1].send(&fragment[7 * sent..7 * (sent + 1)]);
        sockets[2].send(&endless[10 * sent..10 * (sent + 1)]);
        sent += 1;
        rest(ms(40));
    }
    assert_eq!(server.number("connections"), 3);
    assert_eq!(server.number("totals/disconnects"), 0);
    // Then they fall silent, and go.
    drop(server.client());
    server.wait_for_number("connections", 0);
    assert_eq!(server.number("disconnects/silent"), 3);
    server.wait_for_number("receive_buffer_bytes", 0);
}

#[test]
fn traffic_postpones_the_ping() {
    let server = Server::with(&[
        "heartbeat.ping_interval_ms=1500",
        "heartbeat.ping_timeout_ms=1500",
        "server.echo=true",
    ]);
    let mut socket = server.socket("/echo");
    let start = now();
    let mut last = start;
    while start.elapsed() < ms(2500) {
        last = now();
        socket.send(frame(FIN | TEXT, "busy"));
        assert_eq!(socket.frame().opcode, TEXT, "no ping comes between, as long as there is traffic");
        rest(ms(50));
    }
    assert_eq!(socket.frame().opcode, PING, "when it stops, one comes");
    assert!(last.elapsed() >= ms(1500), "an interval after the last message");
    // A pong is enough for another interval.
    socket.send(frame(FIN | PONG, ""));
    let answered = now();
    assert_eq!(socket.frame().opcode, PING);
    assert!(answered.elapsed() >= ms(1490));
    assert_eq!(server.number("totals/pings_sent"), 2);
}

#[test]
fn many_silent_ones_go_and_who_lives_is_not_touched() {
    let server = Server::with(&PATIENT);
    let silent: Vec<_> = (0..100).map(|_| server.socket("/ws")).collect();
    let mut client = server.client();
    client.join(&["lobby"]);
    let start = now();
    while server.number("disconnects/silent") < 100 {
        assert!(start.elapsed() < ms(1500) + SLACK, "they are all gone by now");
        assert_eq!(client.hear_within(ms(20)), None);
    }
    client.has_heard_all();
    drop(silent);
    server.wait_for_number("sockets", 1);
}
