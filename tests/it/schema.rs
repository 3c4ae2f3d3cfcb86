//! The schema itself.

use crate::harness::schema::{Part, faults, whole};
use serde_json::{Value, json};

fn taken(part: Part, value: Value) {
    let faults = faults(part, &value);
    assert!(faults.is_empty(), "{value} is a {part:?}: {faults:?}");
}

fn refused(part: Part, value: Value) {
    assert!(!faults(part, &value).is_empty(), "{value} is no {part:?}");
}

#[test]
fn it_is_a_schema_by_its_own_standard() {
    jsonschema::draft202012::meta::validate(&whole()).expect("a valid schema");
    jsonschema::validator_for(&whole()).expect("whose references lead somewhere");
}

#[test]
fn the_examples_of_the_protocol_are_taken() {
    let page = include_str!("../../docs/protocol.md");
    let mut seen = 0;
    for line in page.lines() {
        let (part, rest) = match line.split_once(' ') {
            Some(("→", rest)) => (Part::ClientFrame, rest),
            Some(("←", rest)) => (Part::ServerFrame, rest),
            _ => continue,
        };
        // Behind the JSON stand remarks, or the newline of a binary frame.
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next().expect("a message").expect("JSON");
        let part = match (part, rest.contains('⏎')) {
            (Part::ClientFrame, true) => Part::BinaryPublish,
            (Part::ServerFrame, true) => Part::BinaryEvent,
            (part, _) => part,
        };
        taken(part, value);
        seen += 1;
    }
    assert_eq!(seen, 14, "the page has fourteen messages");
}

#[test]
fn what_a_client_may_not_say_is_refused() {
    let check = |value| refused(Part::ClientFrame, value);
    check(json!("join"));
    check(json!({}));
    check(json!({"type": "shout"}));
    check(json!({"type": "join"}));
    check(json!({"type": "join", "rooms": "lobby"}));
    check(json!({"type": "join", "rooms": [""]}));
    check(json!({"type": "join", "rooms": [7]}));
    check(json!({"type": "join", "rooms": ["tab\there"]}));
    check(json!({"type": "leave", "rooms": ["del\u{7f}"]}));
    check(json!({"type": "leave", "rooms": ["x".repeat(1025)]}));
    check(json!({"type": "publish", "room": "lobby"}));
    check(json!({"type": "publish", "event": "hello"}));
    check(json!({"type": "publish", "room": "lobby", "event": ""}));
    check(json!({"type": "publish", "room": "lobby", "event": "x".repeat(201)}));
    check(json!({"type": "publish", "room": "lobby", "event": "hello", "echo": "yes"}));
    check(json!({"type": "presence", "room": "lobby"}));
    check(json!({"type": "presence", "id": 1}));
    check(json!({"type": "presence", "room": "lobby", "id": 1, "who": "all"}));
    check(json!({"type": "ping", "id": null}));
    check(json!({"type": "ping", "id": [1]}));
    check(json!({"type": "ping", "id": "x".repeat(63)}));
    check(json!([{"type": "ping"}, {"type": "shout"}]));
    check(json!([[{"type": "ping"}]]));
    check(json!({"type": "pong"}));
    taken(Part::ClientFrame, json!({"type": "ping", "id": "x".repeat(62), "later": [1]}));
    taken(Part::ClientFrame, json!([]));
    refused(Part::BinaryPublish, json!({"type": "publish", "room": "map", "event": "tile", "data": 1}));
    refused(Part::BinaryPublish, json!({"type": "join", "rooms": ["map"]}));
}

#[test]
fn what_the_server_may_not_say_is_refused() {
    let check = |value| refused(Part::ServerFrame, value);
    check(json!([{"type": "pong"}]));
    check(json!({"type": "ping"}));
    check(json!({"type": "event", "room": "lobby", "event": "hello"}));
    check(json!({"type": "event", "room": "lobby", "event": "hello", "data": 1, "from": "anna"}));
    check(json!({"type": "event", "room": "lobby\n", "event": "hello", "data": 1}));
    check(json!({"type": "ack"}));
    check(json!({"type": "ack", "id": 1, "rooms": {"lobby": 3}}));
    check(json!({"type": "ack", "id": 1, "rooms": {"lobby": {"members": -1}}}));
    check(json!({"type": "ack", "id": 1, "rooms": {"lobby": {"members": 1, "more": 2}}}));
    check(json!({"type": "ack", "id": 1, "rooms": {"": {"members": 1}}}));
    let presence = |more: Value| {
        let mut presence = json!({"type": "presence", "id": 1, "room": "lobby", "members": 1,
            "nodes": [{"node": "a", "members": 1}], "complete": true, "age_ms": 0});
        let fields = presence.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        presence
    };
    taken(Part::ServerFrame, presence(json!({})));
    taken(
        Part::ServerFrame,
        presence(json!({"who": [{"id": "x", "node": "a", "user": "anna"}], "cut": true})),
    );
    check(presence(json!({"cut": true})));
    check(presence(json!({"who": [], "cut": false})));
    check(presence(json!({"who": [{"id": "x"}]})));
    check(presence(json!({"nodes": [{"node": "a", "members": 0}]})));
    check(presence(json!({"age_ms": -1})));
    check(json!({"type": "presence", "id": 1, "room": "lobby", "members": 1}));
    check(json!({"type": "pong", "data": 1}));
    check(json!({"type": "error", "code": "bad_json"}));
    check(json!({"type": "error", "code": "bad_weather", "message": "rain"}));
    check(json!({"type": "error", "code": "bad_json", "message": "no", "retry_ms": 5}));
    check(json!({"type": "error", "code": "rate_limited", "message": "no"}));
    check(json!({"type": "error", "code": "rate_limited", "message": "no", "retry_ms": 0}));
    check(json!({"type": "dropped"}));
    check(json!({"type": "dropped", "count": 0}));
    check(json!({"type": "batch", "messages": []}));
    taken(
        Part::ServerFrame,
        json!({"type": "error", "code": "overloaded", "message": "no", "retry_ms": 200}),
    );
    refused(Part::BinaryEvent, json!({"type": "event", "room": "map", "event": "tile", "data": null}));
    refused(Part::BinaryEvent, json!({"type": "event", "room": "map"}));
}
