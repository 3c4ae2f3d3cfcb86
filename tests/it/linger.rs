//! `server.linger_ms`: events that come in quick succession leave together, none is lost or out of order, and none waits longer.

use crate::harness::clock::{now, rest};
use crate::harness::{Client, Server};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// What a run of paced events cost and how long they took.
struct Run {
    sends: u64,
    /// From publish to arrival, shortest first.
    delays: Vec<Duration>,
}

/// 100 events, one each 5 ms, to one member on another connection.
fn paced(linger: &str) -> Run {
    const EVENTS: usize = 100;
    let server = Server::with(&[linger]);
    let (mut publisher, mut member) = (server.client(), server.client());
    member.join(&["ticker"]);
    let before = server.number("totals/sends");
    let (published, heard): (Vec<Instant>, Vec<Instant>) = std::thread::scope(|scope| {
        let publishing = scope.spawn(move || {
            let publish = |number: usize| {
                let at = now();
                publisher.say(&json!({"type": "publish", "room": "ticker", "event": "tick", "data": number}));
                rest(ms(5));
                at
            };
            (0..EVENTS).map(publish).collect()
        });
        let hear = |number: usize| {
            member.hears("ticker", "tick", json!(number));
            now()
        };
        let heard = (0..EVENTS).map(hear).collect();
        (publishing.join().expect("a publisher that does not fail"), heard)
    });
    let sends = server.number("totals/sends") - before;
    assert_eq!(server.number("totals/deliveries"), EVENTS as u64);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_sends_total", &[]), (before + sends) as f64, "the numbers agree");
    let mut delays: Vec<Duration> = published.iter().zip(&heard).map(|(from, to)| *to - *from).collect();
    delays.sort_unstable();
    Run { sends, delays }
}

#[test]
fn events_in_quick_succession_leave_together_and_none_waits_longer_than_the_linger() {
    let plain = paced("server.linger_ms=0");
    let lingering = paced("server.linger_ms=50");
    assert!(lingering.sends * 2 < plain.sends, "{} sends instead of {}", lingering.sends, plain.sends);
    for percent in [50, 90] {
        let delay = |run: &Run| run.delays[run.delays.len() * percent / 100];
        let (with, without) = (delay(&lingering), delay(&plain));
        // On top of the linger, what a busy machine adds to one run and not to the other.
        assert!(with <= without + ms(50 + 100), "{percent} %: {with:?}, {without:?}");
    }
}

#[test]
fn a_burst_arrives_whole_and_in_order_at_everybody() {
    let server = Server::with(&["server.linger_ms=50", "server.shards=4"]);
    let mut crowd = server.crowd(8);
    for client in &mut crowd {
        client.join(&["a", "b"]);
    }
    let (publisher, members) = crowd.split_first_mut().expect("eight");
    for number in 0..1000 {
        let room = if number % 3 == 0 { "a" } else { "b" };
        publisher.say(&json!({"type": "publish", "room": room, "event": "n", "data": number}));
        if number % 250 == 0 {
            rest(ms(60));
        }
    }
    for member in members {
        let mut numbers: [Vec<u64>; 2] = Default::default();
        for _ in 0..1000 {
            let message = member.message();
            numbers[usize::from(message["room"] == "b")].push(message["data"].as_u64().expect("a number"));
        }
        let [of_a, of_b] = numbers;
        assert_eq!(of_a, (0..1000).filter(|number| number % 3 == 0).collect::<Vec<_>>());
        assert_eq!(of_b, (0..1000).filter(|number| number % 3 != 0).collect::<Vec<_>>());
        member.has_heard_all();
    }
}

/// A member of `lobby` that has been quiet for longer than the linger of a second, and somebody else.
fn quiet(server: &Server) -> (Client, Client) {
    let (mut member, other) = (server.client(), server.client());
    member.join(&["lobby"]);
    rest(ms(1_050));
    (member, other)
}

#[test]
fn who_was_quiet_is_served_at_once_and_answers_never_wait() {
    // On one shard, where an answer cannot overtake what is still on its way from another.
    let server = Server::with(&["server.linger_ms=1000", "server.shards=1"]);
    let (mut member, mut publisher) = quiet(&server);
    let start = now();
    publisher.publish("lobby", "first", json!(1));
    member.hears("lobby", "first", json!(1));
    let first = start.elapsed();
    publisher.publish("lobby", "second", json!(2));
    publisher.publish("lobby", "third", json!(3));
    let waiting = now();
    member.hears("lobby", "second", json!(2));
    member.hears("lobby", "third", json!(3));
    let together = waiting.elapsed();
    assert!(first < ms(800), "the first does not wait: {first:?}");
    assert!(together > ms(200), "the second does: {together:?}");

    // An answer takes with it what waits, in order.
    let (mut member, mut publisher) = quiet(&server);
    for number in 0..3 {
        publisher.publish("lobby", "n", json!(number));
    }
    member.hears("lobby", "n", json!(0));
    let asked = now();
    member.say(&json!({"type": "ping"}));
    for number in 1..3 {
        member.hears("lobby", "n", json!(number));
    }
    assert_eq!(member.text(), r#"{"type":"pong"}"#);
    assert!(asked.elapsed() < ms(800), "{:?}", asked.elapsed());
}

#[test]
fn what_lingers_goes_before_what_does_not() {
    let server = Server::with(&["server.linger_ms=1000", "server.shards=1"]);
    let (mut member, mut publisher) = (server.client(), server.client());
    member.join(&["lobby"]);
    // It was written to just now, so this waits.
    publisher.publish("lobby", "last", Value::Null);
    let start = now();
    member.say_bytes(b"no newline".to_vec());
    member.hears("lobby", "last", Value::Null);
    assert_eq!(member.message()["code"], "bad_message");
    publisher.publish("lobby", "very last", Value::Null);
    member.leave(&["lobby"]);
    member.hears("lobby", "very last", Value::Null);
    assert!(start.elapsed() < ms(900), "{:?}", start.elapsed());
    assert_eq!(member.close(1000), 1000);
}
