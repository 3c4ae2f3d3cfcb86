//! The native protocol: everything that docs/protocol.md says, by example.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{FIN, TEXT};
use crate::harness::schema::cut;
use crate::harness::{Client, Heard, Server, eventually, frame};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// A server with a client on each of at least two shards, all in the room `lobby`.
fn lobby(count: usize) -> (Server, Vec<Client>) {
    let server = Server::with(&["server.shards=4"]);
    let mut crowd = server.crowd(count);
    for (before, client) in crowd.iter_mut().enumerate() {
        assert_eq!(client.join(&["lobby"]), [before as u64], "members before this one, on whatever shard");
    }
    (server, crowd)
}

/// Nobody has heard anything but what was taken. What was published earlier arrives before a later publication of the same
/// client, so that an event too many would come before this one.
fn nothing_more(crowd: &mut [Client]) {
    let Some((first, others)) = crowd.split_first_mut() else { return };
    let marker = json!({"type": "publish", "room": "lobby", "event": "marker", "echo": true});
    first.ask(marker);
    for client in std::iter::once(first).chain(others) {
        client.hears("lobby", "marker", Value::Null);
        client.has_heard_all();
    }
}

#[test]
fn the_first_conversation_goes_as_the_page_says() {
    let server = Server::with(&["server.shards=4"]);
    let mut others = server.crowd(12);
    for client in &mut others {
        client.join(&["auction:7"]);
    }
    let mut client = server.client();
    let mut says = |text: &str, answer: &str| {
        client.say_text(text);
        assert_eq!(client.text(), answer);
    };
    says(
        r#"{"type":"join","rooms":["auction:7","auction:8"],"id":1}"#,
        r#"{"type":"ack","id":1,"rooms":{"auction:7":{"members":12},"auction:8":{"members":0}}}"#,
    );
    says(
        r#"{"type":"publish","room":"auction:7","event":"bid","data":{"amount":120},"id":2}"#,
        r#"{"type":"ack","id":2}"#,
    );
    for other in &mut others {
        assert_eq!(
            other.text(),
            r#"{"type":"event","room":"auction:7","event":"bid","data":{"amount":120}}"#
        );
    }
    says(r#"{"type":"leave","rooms":["auction:8"],"id":3}"#, r#"{"type":"ack","id":3}"#);
    client.has_heard_all();
}

#[test]
fn an_event_reaches_all_members_but_its_sender_on_every_shard() {
    let (server, mut crowd) = lobby(8);
    assert!(server.shards_in_use() >= 2);
    let count = crowd.len();
    for sender in 0..count {
        crowd[sender].publish("lobby", "hello", json!({"from": sender}));
        for (receiver, client) in crowd.iter_mut().enumerate() {
            if receiver != sender {
                client.hears("lobby", "hello", json!({"from": sender}));
            }
        }
    }
    nothing_more(&mut crowd);
    let (deliveries, publications) =
        (server.number("totals/deliveries"), server.number("totals/publications"));
    assert_eq!((publications, deliveries), (count as u64 + 1, (count * (count - 1) + count) as u64));
}

#[test]
fn with_echo_the_sender_gets_its_event_if_it_is_a_member() {
    let (server, mut crowd) = lobby(3);
    let echoed = json!({"type": "publish", "room": "lobby", "event": "mine", "data": 1, "echo": true});
    crowd[0].ask(echoed.clone());
    for client in &mut crowd {
        client.hears("lobby", "mine", json!(1));
    }
    crowd[1].ask(json!({"type": "publish", "room": "lobby", "event": "not to me", "echo": false}));
    for index in [0, 2] {
        crowd[index].hears("lobby", "not to me", Value::Null);
    }
    let mut outsider = server.client();
    outsider.ask(echoed);
    for client in &mut crowd {
        client.hears("lobby", "mine", json!(1));
    }
    outsider.has_heard_all();
    nothing_more(&mut crowd);
}

#[test]
fn anybody_may_publish_to_any_room_even_an_empty_one() {
    let (server, mut crowd) = lobby(4);
    let mut outsider = server.client();
    outsider.publish("nobody is here", "unheard", json!(1));
    outsider.publish("lobby", "heard", json!(2));
    for client in &mut crowd {
        client.hears("lobby", "heard", json!(2));
    }
    crowd[0].join(&["nobody is here"]);
    nothing_more(&mut crowd);
}

#[test]
fn many_rooms_are_joined_at_once_and_left_at_once() {
    let (server, mut crowd) = lobby(4);
    let names: Vec<String> = (0..300).map(|number| format!("room {number}")).collect();
    let rooms: Vec<&str> = names.iter().map(String::as_str).collect();
    for (before, client) in crowd.iter_mut().enumerate() {
        assert_eq!(client.join(&rooms), vec![before as u64; 300]);
    }
    assert_eq!(server.number("rooms"), 301);
    server.wait_for_number("memberships", 4 * 301);
    for (index, room) in rooms.iter().enumerate() {
        crowd[index % 4].publish(room, "hello", json!(index));
    }
    for (receiver, client) in crowd.iter_mut().enumerate() {
        let mut heard: Vec<u64> = (0..225).map(|_| client.event().1.as_u64().expect("a number")).collect();
        heard.sort_unstable();
        let expected: Vec<u64> = (0..300).filter(|index| index % 4 != receiver as u64).collect();
        assert_eq!(heard, expected);
    }
    for client in &mut crowd {
        client.leave(&rooms);
    }
    assert_eq!(server.number("rooms"), 1);
    nothing_more(&mut crowd);
}

#[test]
fn who_has_left_hears_nothing_more() {
    let (server, mut crowd) = lobby(4);
    for client in &mut crowd {
        client.join(&["attic"]);
    }
    crowd[1].leave(&["attic", "never joined", "attic"]);
    crowd[2].leave(&[]);
    crowd[0].publish("attic", "creak", json!(1));
    for index in [2, 3] {
        crowd[index].hears("attic", "creak", json!(1));
    }
    nothing_more(&mut crowd);
    assert_eq!(server.client().join(&["attic"]), [3]);
}

#[test]
fn a_join_repeated_changes_nothing() {
    let (server, mut crowd) = lobby(3);
    for client in &mut crowd {
        assert_eq!(client.join(&["lobby"]), [2], "the others");
        client.say(&json!({"type": "join", "rooms": ["lobby", "attic", "lobby", "attic"], "id": "twice"}));
        let ack = client.text();
        assert_eq!(ack.matches(r#""lobby":{"members":2}"#).count(), 1, "{ack}");
        assert_eq!(ack.matches(r#""attic""#).count(), 1, "{ack}");
    }
    crowd[0].publish("lobby", "once", json!(1));
    for client in &mut crowd[1..] {
        client.hears("lobby", "once", json!(1));
    }
    nothing_more(&mut crowd);
    server.wait_for_number("memberships", 6);
    crowd[0].leave(&["lobby"]);
    assert_eq!(server.client().join(&["lobby"]), [2], "leaving once is enough");
}

#[test]
fn a_join_is_carried_out_whole_or_not_at_all() {
    let (server, mut crowd) = lobby(2);
    let mut check = |rooms: Value, code: &str| {
        assert_eq!(crowd[0].refused(json!({"type": "join", "rooms": rooms})), code);
        crowd[1].publish("attic", "unheard", Value::Null);
        assert_eq!(server.number("rooms"), 1);
    };
    let mut too_many: Vec<String> = (0..1024).map(|number| format!("room {number}")).collect();
    too_many.insert(0, "attic".to_owned());
    check(json!(too_many), "too_many_rooms");
    // What the schema knows to be wrong is said as text.
    for rooms in [r#"["attic",""]"#, r#"["attic","\n"]"#] {
        let error = crowd[0].refused_text(format!(r#"{{"type":"join","rooms":{rooms},"id":"x"}}"#));
        assert_eq!((&error["code"], &error["id"]), (&json!("bad_room"), &json!("x")));
    }
    let error = crowd[0].refused_text(r#"{"type":"join","rooms":["attic",7]}"#);
    assert_eq!(error["code"], "bad_message");
    assert_eq!(crowd[1].join(&["attic"]), [0]);
    assert_eq!(crowd[0].join(&["lobby"]), [1], "what was joined before is kept");
    nothing_more(&mut crowd);
}

#[test]
fn without_an_id_there_is_no_ack_but_there_are_errors() {
    let (_server, mut crowd) = lobby(2);
    for message in [
        json!({"type": "join", "rooms": ["attic"]}),
        json!({"type": "publish", "room": "attic", "event": "hello", "echo": true}),
        json!({"type": "leave", "rooms": ["attic"]}),
    ] {
        crowd[0].say(&message);
    }
    crowd[0].hears("attic", "hello", Value::Null);
    crowd[0].has_heard_all();
    let error = crowd[0].refused_text(r#"{"type":"join"}"#);
    assert_eq!(error.get("id"), None);
    nothing_more(&mut crowd);
}

#[test]
fn an_id_comes_back_as_it_was_written() {
    let server = Server::start();
    let mut client = server.client();
    let longest = format!(r#""{}""#, "x".repeat(62));
    for id in [
        "1",
        "0",
        "-1",
        "1.50",
        "-0.0",
        "1e3",
        "1E+3",
        "12345678901234567890",
        "340282366920938463463374607431768211456",
        r#""""#,
        r#""text""#,
        r#""\u0041\/\n\"""#,
        r#""é 🙂""#,
        r#""\ud83d\ude42""#,
        &longest,
    ] {
        client.say_text(format!(r#"{{"type":"ping","id":{id}}}"#));
        assert_eq!(client.text(), format!(r#"{{"type":"pong","id":{id}}}"#));
        client.say_text(format!("{{ \"id\" : {id} , \"rooms\" : [ ] , \"type\" : \"leave\" }}"));
        assert_eq!(client.text(), format!(r#"{{"type":"ack","id":{id}}}"#));
        client.say_text(format!(r#"{{"type":"shout","id":{id}}}"#));
        let error = client.text();
        assert!(error.contains(&format!(r#""id":{id},"#)), "{error}");
    }
    let too_long = [format!(r#""{}""#, "x".repeat(63)), "1".repeat(65)];
    for id in too_long.iter().map(String::as_str).chain(["true", "[1]", "{}"]) {
        let error = client.refused_text(format!(r#"{{"type":"ping","id":{id}}}"#));
        assert_eq!(error["code"], "bad_message", "{id}");
        assert_eq!(error.get("id"), None, "what is no id does not come back");
    }
    client.say_text(format!(r#"{{"type":"ping","id":{}}}"#, "1".repeat(64)));
    assert!(client.text().contains(&"1".repeat(64)));
}

#[test]
fn a_ping_gets_a_pong() {
    let server = Server::start();
    let mut client = server.client();
    client.say(&json!({"type": "ping"}));
    assert_eq!(client.text(), r#"{"type":"pong"}"#);
    client.say(&json!({"type": "ping", "id": "a"}));
    assert_eq!(client.text(), r#"{"type":"pong","id":"a"}"#);
    client.ping(b"of the other kind");
    assert_eq!(client.hear(), Heard::Pong(b"of the other kind".to_vec()));
}

#[test]
fn data_arrives_byte_for_byte() {
    let (_server, mut crowd) = lobby(2);
    // As deep as it may nest.
    let deepest = "[".repeat(120) + &"]".repeat(120);
    for data in [
        "null",
        "true",
        "0",
        "-0",
        "1.0",
        "123456789012345678901234567890",
        r#""""#,
        r#""\u00e9\/\ud83d\ude42""#,
        "\"\u{1f642} é \u{7f}\"",
        "[]",
        "{}",
        r#"{"a":1,"a":2}"#,
        "{\"b\": [ 1 ,\t2 ],\n \"a\" :{}}",
        r#"{"type":"event","room":"x"}"#,
        &deepest,
    ] {
        crowd[0].say_text(format!(r#"{{"type":"publish","room":"lobby","data":{data},"event":"e"}}"#));
        assert_eq!(
            crowd[1].text(),
            format!(r#"{{"type":"event","room":"lobby","event":"e","data":{data}}}"#)
        );
    }
    crowd[0].say(&json!({"type": "publish", "room": "lobby", "event": "e"}));
    assert_eq!(crowd[1].text(), r#"{"type":"event","room":"lobby","event":"e","data":null}"#);
    let large = "0123456789abcdef".repeat(60_000);
    crowd[0].publish("lobby", "large", json!(large));
    crowd[1].hears("lobby", "large", json!(large));
    nothing_more(&mut crowd);
}

#[test]
fn data_that_only_some_parsers_take_is_the_publishers_affair() {
    let server = Server::start();
    let mut socket = server.socket("/ws");
    // The parser of these tests is not among them, so the answers are looked at as bytes.
    socket.is_at("unchecked");
    socket.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["lobby"],"id":1}"#));
    socket.frame();
    for data in [r#""\ud800""#, "1e999999", &"9".repeat(1000), &("[".repeat(120) + &"]".repeat(120))] {
        let publish = format!(r#"{{"type":"publish","room":"lobby","event":"e","data":{data},"echo":true}}"#);
        socket.send(frame(FIN | TEXT, publish));
        let event = format!(r#"{{"type":"event","room":"lobby","event":"e","data":{data}}}"#);
        assert_eq!(socket.frame().payload, event.as_bytes());
    }
}

#[test]
fn names_may_be_any_text_without_control_characters() {
    let (_server, mut crowd) = lobby(2);
    let longest = "é".repeat(100);
    for name in [
        "a",
        " ",
        "café \"🙂\" \\ 世界",
        "\u{a0}\u{200b}\u{2028}",
        "null",
        "__proto__",
        "a/b:c*?%00",
        &longest,
    ] {
        for client in &mut crowd {
            client.join(&[name]);
        }
        crowd[0].publish(name, name, json!(name));
        crowd[1].hears(name, name, json!(name));
    }
    // However it is spelt, it is the same room.
    crowd[0].say_text(
        r#"{"type":"publish","room":"caf\u00e9 \"\ud83d\ude42\" \\ \u4e16\u754c","event":"\u0061","data":1}"#,
    );
    crowd[1].hears("café \"🙂\" \\ 世界", "a", json!(1));
    for fault in [
        "",
        "\0",
        "tab\t",
        "line\n",
        "\u{1b}[31m",
        "\u{7f}",
        "\u{85}",
        "\u{9f}",
        &"x".repeat(201),
        &(longest + "x"),
    ] {
        let name = json!(fault);
        let mut check = |message: Value, code: &str| {
            let error = crowd[0].refused_text(message.to_string());
            assert_eq!((&error["code"], &error["id"]), (&json!(code), &json!(1)), "{fault:?}");
        };
        check(json!({"type": "join", "rooms": [name], "id": 1}), "bad_room");
        check(json!({"type": "leave", "rooms": ["lobby", name], "id": 1}), "bad_room");
        check(json!({"type": "publish", "room": name, "event": "e", "id": 1}), "bad_room");
        check(json!({"type": "publish", "room": "lobby", "event": name, "id": 1}), "bad_event");
    }
    nothing_more(&mut crowd);
}

#[test]
fn an_array_is_carried_out_in_order_each_answered_for_itself() {
    let (_server, mut crowd) = lobby(2);
    let publish = |event: &str| json!({"type": "publish", "room": "attic", "event": event, "echo": true});
    crowd[0].say_text(
        json!([
            publish("before joining"),
            {"type": "join", "rooms": ["attic"], "id": "a"},
            publish("as a member"),
            {"type": "shout", "id": "b"},
            {"type": "ping", "id": "c"},
            17,
            {"type": "leave", "rooms": ["attic"], "id": "d"},
            publish("after leaving"),
            {"type": "join", "rooms": ["cellar"], "id": "e"},
        ])
        .to_string(),
    );
    let mut answers = Vec::new();
    for _ in 0..7 {
        let message = crowd[0].message();
        let word = |field: &str| message[field].as_str().unwrap_or("-").to_owned();
        if word("type") == "event" {
            assert_eq!(word("event"), "as a member");
        } else {
            answers.push([word("id"), word("type"), word("code")].join(" "));
        }
    }
    assert_eq!(
        answers,
        ["a ack -", "b error unknown_type", "c pong -", "- error bad_message", "d ack -", "e ack -"]
    );
    for empty in ["[]", " [ ] ", "\t[\n]\r\n"] {
        crowd[0].say_text(empty);
    }
    crowd[0].say_text(" \n [ {\"type\" : \"ping\"} ] ");
    assert_eq!(crowd[0].text(), r#"{"type":"pong"}"#);
    nothing_more(&mut crowd);
}

#[test]
fn an_array_holds_so_many_messages_and_none_of_more_is_carried_out() {
    let (_server, mut crowd) = lobby(2);
    let publish = |number: usize| json!({"type": "publish", "room": "lobby", "event": "n", "data": number});
    let array = |count: usize| Value::Array((0..count).map(publish).collect());
    crowd[0].say(&array(1024));
    for number in 0..1024 {
        crowd[1].hears("lobby", "n", json!(number));
    }
    let error = crowd[0].refused_text(array(1025).to_string());
    assert_eq!(error["code"], "too_many_messages");
    assert_eq!(error.get("id"), None);
    nothing_more(&mut crowd);
}

#[test]
fn a_message_is_an_object_and_nothing_else() {
    let server = Server::start();
    let mut client = server.client();
    let mut check = |text: &str| {
        let error = client.refused_text(text);
        assert_eq!(error["code"], "bad_message", "{text}");
        assert_eq!(error.get("id"), None, "{text}");
    };
    for text in ["7", "\"ping\"", "null", "true", "{}", "[7]", "[null]", "[[]]", r#"[[{"type":"ping"}]]"#] {
        check(text);
    }
    // Not even an array of what the fields would be.
    check(r#"[["ping",null,null,null,null,false,7]]"#);
    check("[[7]]");
    client.has_heard_all();
}

#[test]
fn what_is_no_json_is_told_so() {
    let server = Server::start();
    let mut client = server.client();
    for text in [
        "",
        " ",
        "{",
        "}",
        "nonsense",
        r#"{"type":"ping""#,
        r#"{"type":"ping"} x"#,
        r#"{"type":"ping"}{"type":"ping"}"#,
        r#"[{"type":"ping"}"#,
        r#"[{"type":"ping"},]"#,
        r#"[{"type":"ping"}] 1"#,
        r#"{"type":"ping",}"#,
        "{'type':'ping'}",
        "{type:\"ping\"}",
        r#"{"type":"ping","id":01}"#,
        r#"{"type":"ping","id":+1}"#,
        r#"{"type":"ping","id":.5}"#,
        r#"{"type":"ping","id":NaN}"#,
        "{\"type\":\"ping\",\"x\":\"line\nbreak\"}",
        r#"{"type":"ping","x":"\x41"}"#,
        r#"{"type":"\ud800"}"#,
        "\u{feff}{\"type\":\"ping\"}",
    ] {
        let error = client.refused_text(text);
        assert_eq!(error["code"], "bad_json", "{text}");
    }
    client.has_heard_all();
    assert_eq!(server.number("totals/errors"), 22);
}

#[test]
fn nesting_has_a_limit() {
    let (_server, mut crowd) = lobby(2);
    for depth in [121, 1_000, 10_000, 100_000] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let data = open.repeat(depth) + "1" + &close.repeat(depth);
            let publish = format!(r#"{{"type":"publish","room":"lobby","event":"e","data":{data},"id":1}}"#);
            let error = crowd[0].refused_text(publish);
            assert_eq!((&error["code"], &error["id"]), (&json!("bad_json"), &json!(1)), "{}", cut(&data));
        }
    }
    // Brackets in strings are no nesting.
    let text = "[{".repeat(1_000);
    crowd[0].publish("lobby", "flat", json!([text, "\\\"", text]));
    crowd[1].hears("lobby", "flat", json!([text, "\\\"", text]));
    nothing_more(&mut crowd);
}

#[test]
fn every_wrong_field_has_its_code() {
    let server = Server::start();
    let mut client = server.client();
    let mut check = |message: Value, code: &str| {
        let mut with_id = message.clone();
        with_id["id"] = json!("with id");
        let error = client.refused_text(with_id.to_string());
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &json!("with id")), "{message}");
        let error = client.refused_text(message.to_string());
        assert_eq!((&error["code"], error.get("id")), (&json!(code), None), "{message}");
    };
    for kind in ["shout", "Join", "event", "ack", "", "join "] {
        check(json!({"type": kind}), "unknown_type");
    }
    check(json!({"rooms": ["a"]}), "bad_message");
    check(json!({"type": 7}), "bad_message");
    check(json!({"type": ["join"]}), "bad_message");
    for kind in ["join", "leave"] {
        check(json!({"type": kind}), "bad_message");
        check(json!({"type": kind, "room": "a"}), "bad_message");
        check(json!({"type": kind, "rooms": "a"}), "bad_message");
        check(json!({"type": kind, "rooms": {"a": 1}}), "bad_message");
        check(json!({"type": kind, "rooms": ["a", 7]}), "bad_message");
        check(json!({"type": kind, "rooms": ["a", null]}), "bad_message");
        check(json!({"type": kind, "rooms": [["a"]]}), "bad_message");
    }
    check(json!({"type": "publish"}), "bad_message");
    check(json!({"type": "publish", "event": "e"}), "bad_message");
    check(json!({"type": "publish", "room": "a"}), "bad_message");
    check(json!({"type": "publish", "room": 7, "event": "e"}), "bad_message");
    check(json!({"type": "publish", "room": "a", "event": 7}), "bad_message");
    check(json!({"type": "publish", "room": "a", "event": "e", "echo": "yes"}), "bad_message");
    check(json!({"type": "publish", "room": "a", "event": "e", "echo": 1}), "bad_message");
    client.has_heard_all();
}

#[test]
fn the_error_says_which_field() {
    let server = Server::start();
    let mut client = server.client();
    for (text, word) in [
        (r#"{"type":"join"}"#, "rooms"),
        (r#"{"type":"publish","event":"e"}"#, "room"),
        (r#"{"type":"publish","room":"r"}"#, "event"),
        (r#"{"rooms":[]}"#, "type"),
        (r#"{"type":"ping","id":{}}"#, "id"),
        (r#"{"type":"publish","room":"r","event":"e","echo":3}"#, "bool"),
    ] {
        let error = client.refused_text(text);
        assert!(error["message"].as_str().is_some_and(|message| message.contains(word)), "{text}: {error}");
    }
}

#[test]
fn fields_that_are_not_listed_are_ignored() {
    let (_server, mut crowd) = lobby(2);
    crowd[0].ask(json!({
        "type": "publish", "room": "lobby", "event": "e", "data": 1,
        "rooms": ["not for publish"], "later": {"a": [1, 2]}, "ID": 7, "": null,
    }));
    crowd[1].hears("lobby", "e", json!(1));
    crowd[0].ask(json!({"type": "ping", "room": "x", "event": "y", "data": [], "echo": true, "why": "not"}));
    crowd[0].ask(json!({"type": "join", "rooms": ["attic"], "history": 50}));
    nothing_more(&mut crowd);
}

#[test]
fn events_of_a_room_arrive_in_one_order_everywhere() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 300;
    let (_server, mut crowd) = lobby(10);
    for client in &mut crowd {
        client.join(&["attic"]);
    }
    // The first half of the messages one by one, the others in arrays, all publishers side by side.
    std::thread::scope(|scope| {
        for (from, client) in crowd.iter_mut().take(PUBLISHERS).enumerate() {
            scope.spawn(move || {
                let messages: Vec<Value> = (0..EACH)
                    .flat_map(|n| ["lobby", "attic"].map(|room| (n, room)))
                    .map(|(n, room)| json!({"type": "publish", "room": room, "event": "n", "data": [from, n], "echo": true}))
                    .collect();
                let (single, grouped) = messages.split_at(EACH);
                single.iter().for_each(|message| client.say(message));
                grouped.chunks(50).for_each(|group| client.say(&Value::Array(group.to_vec())));
            });
        }
    });
    let mut orders: Vec<BTreeMap<String, Vec<Value>>> = Vec::new();
    for client in &mut crowd {
        let mut order: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for _ in 0..2 * PUBLISHERS * EACH {
            let mut message = client.message();
            let room = message["room"].as_str().expect("a room").to_owned();
            order.entry(room).or_default().push(message["data"].take());
        }
        orders.push(order);
    }
    let reference = &orders[0];
    for order in reference.values() {
        for from in 0..PUBLISHERS {
            let of_one: Vec<u64> = order
                .iter()
                .filter(|data| data[0] == from)
                .map(|data| data[1].as_u64().expect("a number"))
                .collect();
            assert_eq!(of_one, (0..EACH as u64).collect::<Vec<_>>(), "publisher {from}");
        }
    }
    for order in &orders[1..] {
        assert!(order == reference, "two members saw different orders");
    }
    nothing_more(&mut crowd);
}

#[test]
fn those_who_publish_at_the_same_time_hear_each_other() {
    // A publisher was once taken for the one in its place on another shard, and did not get that one's events.
    let server = Server::start();
    let mut crowd = server.crowd(8);
    for client in &mut crowd {
        client.join(&["lobby"]);
    }
    std::thread::scope(|scope| {
        for (from, client) in crowd.iter_mut().enumerate() {
            scope.spawn(move || {
                let publish =
                    |n| json!({"type": "publish", "room": "lobby", "event": "n", "data": [from, n]});
                for start in (0..300).step_by(100) {
                    client.say(&Value::Array((start..start + 100).map(publish).collect()));
                }
            });
        }
    });
    for (receiver, client) in crowd.iter_mut().enumerate() {
        let mut next = [0; 8];
        for _ in 0..7 * 300 {
            let (_, data) = client.event();
            let from = data[0].as_u64().expect("a number") as usize;
            assert_eq!(data[1], next[from], "the next of publisher {from}");
            next[from] += 1;
        }
        assert_eq!(next[receiver], 0, "nobody hears itself");
    }
    nothing_more(&mut crowd);
}

#[test]
fn bytes_are_published_in_binary_frames() {
    let (_server, mut crowd) = lobby(4);
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    for payload in [&every_byte[..], b"", b"\n", b"\n\n\n", b"{\"type\":\"join\"}", &large] {
        crowd[0].say_binary(&json!({"type": "publish", "room": "lobby", "event": "tile", "id": 4}), payload);
        assert_eq!(crowd[0].text(), r#"{"type":"ack","id":4}"#, "answers are text");
        for client in &mut crowd[1..] {
            let head = json!({"type": "event", "room": "lobby", "event": "tile"});
            assert_eq!(client.hear(), Heard::Binary(head, payload.to_vec()));
        }
    }
    // Without an id there is no ack; with echo the sender is among the receivers; text and bytes keep their order.
    crowd[1].publish("lobby", "before", json!(1));
    crowd[1].say_binary(
        &json!({"type": "publish", "room": "lobby", "event": "tile", "echo": true, "more": 1}),
        b"bytes",
    );
    crowd[1].publish("lobby", "after", json!(2));
    for (index, client) in crowd.iter_mut().enumerate() {
        if index != 1 {
            client.hears("lobby", "before", json!(1));
        }
        assert!(matches!(client.hear(), Heard::Binary(_, payload) if payload == b"bytes"));
        if index != 1 {
            client.hears("lobby", "after", json!(2));
        }
    }
    nothing_more(&mut crowd);
}

#[test]
fn a_binary_frame_carries_one_publish_and_nothing_else() {
    let (_server, mut crowd) = lobby(2);
    let mut check = |bytes: &[u8], code: &str| {
        crowd[0].say_bytes(bytes.to_vec());
        let error = crowd[0].message();
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!(code)),
            "{}",
            bytes.escape_ascii()
        );
    };
    check(b"", "bad_message");
    check(br#"{"type":"publish","room":"lobby","event":"e"}"#, "bad_message");
    check(b"{\"type\":\"publish\",\"room\":\"lobby\",\"event\":\"e\",\"data\":1}\nbytes", "bad_message");
    check(b"{\"type\":\"join\",\"rooms\":[\"attic\"]}\n", "bad_message");
    check(b"{\"type\":\"ping\"}\n", "bad_message");
    check(b"[{\"type\":\"publish\",\"room\":\"lobby\",\"event\":\"e\"}]\n", "bad_message");
    check(b"[\"publish\",null,\"lobby\",\"e\",null,false,1]\nbytes", "bad_message");
    check(b"{\"type\":\"publish\",\"event\":\"e\"}\n", "bad_message");
    check(b"{\"type\":\"publish\",\"room\":\"\",\"event\":\"e\"}\n", "bad_room");
    check(b"{\"type\":\"publish\",\"room\":\"lobby\",\"event\":\"\"}\n", "bad_event");
    check(b"\n", "bad_json");
    check(b"{\n}", "bad_json");
    check(b"{\"type\":\"publish\",\"room\":\"\xff\",\"event\":\"e\"}\n", "bad_json");
    check(b"\x00\x01\x02\x0a", "bad_json");
    nothing_more(&mut crowd);
}

#[test]
fn a_connection_that_ends_is_a_member_no_longer() {
    let (server, mut crowd) = lobby(5);
    let members = |expected: u64| {
        eventually("the lobby is as full as it should be", || {
            let mut visitor = server.client();
            (visitor.join(&["lobby"]) == [expected]).then_some(())
        });
    };
    assert_eq!(crowd.pop().expect("there are five").close(1000), 1000);
    members(4);
    drop(crowd.pop());
    members(3);
    // Its last words are heard all the same.
    let mut last = crowd.pop().expect("there are three");
    last.say(&json!({"type": "publish", "room": "lobby", "event": "goodbye"}));
    last.close(1000);
    for client in &mut crowd {
        client.hears("lobby", "goodbye", Value::Null);
    }
    members(2);
    drop(crowd);
    members(0);
    server.wait_for_number("rooms", 0);
    server.wait_for_number("memberships", 0);
}

#[test]
fn a_hundred_thousand_rooms_may_be_joined_in_one_message() {
    let server = Server::with(&[
        "limits.rooms_per_connection_max=100000",
        "limits.message_bytes_max=4MiB",
        "outbox.bytes_max=8MiB",
    ]);
    let names: Vec<String> = (0..100_000).map(|number| format!("room {number}")).collect();
    let mut client = server.client();
    let mut other = server.client();
    let ack = client.ask(json!({"type": "join", "rooms": names}));
    let rooms = ack["rooms"].as_object().expect("an ack with rooms");
    assert_eq!(rooms.len(), 100_000);
    assert!(rooms.values().all(|room| room["members"] == 0));
    server.wait_for_number("memberships", 100_000);
    assert_eq!(other.join(&["room 0", "room 99999"]), [1, 1]);
    other.publish("room 99999", "hello", json!(1));
    client.hears("room 99999", "hello", json!(1));
    assert_eq!(client.refused(json!({"type": "join", "rooms": ["one more"]})), "too_many_rooms");
    client.ask(json!({"type": "leave", "rooms": names}));
    assert_eq!(server.number("rooms"), 2);
    // And once more, left by leaving the server.
    client.ask(json!({"type": "join", "rooms": names}));
    client.close(1000);
    server.wait_for_number("rooms", 2);
    server.wait_for_number("memberships", 2);
    other.has_heard_all();
}

#[test]
fn a_connection_may_send_so_many_messages_a_second() {
    let server = Server::with(&[
        "limits.messages_per_second_max=5",
        "limits.messages_burst_max=3",
        "server.echo=true",
    ]);
    let mut client = server.client();
    let start = now();
    // In one frame, so that no token can come between.
    client.say(&json!([
        {"type": "ping", "id": 1}, {"type": "ping", "id": 2}, {"type": "ping", "id": 3},
        {"type": "ping", "id": "a"}, {"type": "join", "rooms": ["attic"], "id": "b"},
    ]));
    for id in 1..=3 {
        assert_eq!(client.message(), json!({"type": "pong", "id": id}));
    }
    let mut retry_ms = 0;
    for id in ["a", "b"] {
        let error = client.message();
        assert_eq!((&error["code"], &error["id"]), (&json!("rate_limited"), &json!(id)), "{error}");
        retry_ms = error["retry_ms"].as_u64().expect("a time");
        assert!((1..=200).contains(&retry_ms), "five a second are one each 200 ms: {error}");
    }
    assert_eq!(server.number("rooms"), 0, "what is refused is not carried out");
    rest(Duration::from_millis(retry_ms));
    client.say(&json!({"type": "ping", "id": "c"}));
    assert_eq!(client.message(), json!({"type": "pong", "id": "c"}));
    for _ in 0..4 {
        loop {
            client.say_binary(&json!({"type": "publish", "room": "attic", "event": "e", "id": 1}), b"bytes");
            let answer = client.message();
            if answer["type"] == "ack" {
                break;
            }
            assert_eq!((&answer["code"], &answer["id"]), (&json!("rate_limited"), &json!(1)));
            rest(Duration::from_millis(answer["retry_ms"].as_u64().expect("a time")));
        }
    }
    assert!(start.elapsed() >= Duration::from_millis(990), "after the first three, five take a second");
    assert_eq!(server.number("totals/rate_limited"), server.number("totals/errors"));

    // Others have buckets of their own, and /echo has no errors to send.
    server.client().has_heard_all();
    let mut echo = server.socket("/echo");
    echo.send(frame(FIN | TEXT, "x").repeat(4));
    for _ in 0..3 {
        assert_eq!(echo.frame().payload, b"x");
    }
    assert_eq!(echo.closed().0, 1008);
    assert_eq!(server.number("disconnects/limit"), 1);
}

#[test]
fn a_publication_that_finds_no_place_is_refused_as_overloaded() {
    let server = Server::with(&[
        "server.shards=1",
        "limits.messages_per_frame_max=65536",
        "limits.message_bytes_max=4MiB",
        "outbox.bytes_max=16MiB",
    ]);
    let mut member = server.client();
    member.join(&["r"]);
    let mut flood = server.socket("/ws");
    let publish = r#"{"type":"publish","room":"r","event":"e"}"#;
    let array = format!("[{}]", vec![publish; 65_536].join(","));
    // All but its last byte. With that byte, and in the same segment, comes one publish more than a mailbox holds.
    let message = frame(FIN | TEXT, array);
    let (most, last) = message.split_at(message.len() - 1);
    flood.send(most);
    server.wait_for("totals/received_bytes", "to be all that was sent", |bytes| bytes >= most.len() as u64);
    let one_more = frame(FIN | TEXT, r#"{"type":"publish","room":"r","event":"one more","id":1}"#);
    flood.send([last, &one_more].concat());
    let error: Value = serde_json::from_slice(&flood.frame().payload).expect("JSON");
    assert_eq!((&error["code"], &error["id"]), (&json!("overloaded"), &json!(1)), "{error}");
    let retry_ms = error["retry_ms"].as_u64().expect("a time");
    for _ in 0..65_536 {
        member.hears("r", "e", Value::Null);
    }
    rest(Duration::from_millis(retry_ms));
    flood.send(&one_more);
    assert_eq!(flood.frame().payload, br#"{"type":"ack","id":1}"#);
    member.hears("r", "one more", Value::Null);
    assert_eq!(server.number("totals/overloads"), 1);
}

#[test]
fn questions_that_nobody_can_answer_leave_nothing_behind() {
    let server = Server::with(&["server.shards=2"]);
    let mut client = server.client();
    client.join(&["natives only"]);
    for room in ["nobody", "natives only"] {
        for _ in 0..500 {
            let question = json!({"type": "publish", "room": room, "event": "q", "ask_ms": 60_000});
            let mut ack = client.ask(question);
            ack["id"] = Value::Null;
            assert_eq!(ack, json!({"type": "ack", "id": null, "answers": [], "missing": 0}));
        }
    }
    eventually("no question is open", || {
        (server.metrics().sum("throng_open_asks", &[]) == 0.0).then_some(())
    });
}
