//! Policies for rooms: what `docs/routes.md` shows happens, and what clients, several processes, drains, slow readers and hostile publishers make
//! of it.

use crate::cluster::Fleet;
use crate::foreign::{self, NODE};
use crate::harness::clock::{now, rest};
use crate::harness::raw::{FIN, TEXT};
use crate::harness::{Client, Heard, Raw, Server, WAIT, eventually, frame};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A configuration file, removed in the end.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let name = format!("rooms-{name}-{}.toml", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, text).expect("cargo's folder for tests can be written");
        File(path)
    }

    fn server(&self, settings: &[&str]) -> Server {
        let mut flags = vec!["--config", self.0.to_str().expect("a path of ours")];
        flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        Server::with_flags(&flags)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It is there.
        fs::remove_file(&self.0).ok();
    }
}

fn server(name: &str, policy: &str, settings: &[&str]) -> Server {
    File::new(name, &format!("[[rooms]]\n{policy}\n")).server(settings)
}

/// A client of Socket.IO whose packets are ours.
struct Web(Raw);

impl Web {
    fn connect(server: &Server) -> Web {
        let mut web = Web(server.socket("/socket.io/?EIO=4&transport=websocket"));
        assert!(web.hear().starts_with('0'));
        web.say("40");
        assert!(web.hear().starts_with("40"));
        web
    }

    fn say(&mut self, packet: &str) {
        self.0.send(frame(FIN | TEXT, packet));
    }

    /// The next packet that is no ping.
    fn hear(&mut self) -> String {
        loop {
            let packet = String::from_utf8(self.0.frame().payload).expect("text");
            if packet == "2" {
                self.say("3");
                continue;
            }
            return packet;
        }
    }
}

enum Actor {
    Native(Box<Client>),
    Web(Web),
}

/// The blocks of code behind headings below `## Rooms` with this language.
fn blocks(language: &str) -> Vec<(String, String)> {
    let page = include_str!("../../docs/routes.md");
    let (_, rooms) = page.split_once("\n## Rooms\n").expect("the section is there");
    let rooms = rooms.split("\n## ").next().expect("a section");
    let mut found = Vec::new();
    for section in rooms.split("\n### ").skip(1) {
        let heading = section.lines().next().expect("a heading");
        let mut rest = section;
        while let Some((_, after)) = rest.split_once(&format!("```{language}\n")) {
            let (block, behind) = after.split_once("```").expect("a block ends");
            found.push((heading.to_owned(), block.to_owned()));
            rest = behind;
        }
    }
    found
}

#[test]
fn what_the_documentation_shows_happens() {
    let (configs, transcripts) = (blocks("toml"), blocks("text"));
    assert_eq!((configs.len(), transcripts.len()), (8, 7), "the last one, of bursts, has no transcript");
    for (at, ((heading, config), (_, transcript))) in configs.iter().zip(&transcripts).enumerate() {
        // A busy machine may take longer to publish than a window lasts.
        let config = config.replace("window_ms = 100\n", "window_ms = 700\n");
        let server = File::new(&format!("doc-{at}"), &config).server(&[]);
        let mut actors: BTreeMap<&str, Actor> = BTreeMap::new();
        for line in transcript.lines() {
            let (name, rest) = line.split_once(' ').expect("a name");
            let actor = actors.entry(name).or_insert_with(|| match name {
                "web" => Actor::Web(Web::connect(&server)),
                _ => Actor::Native(Box::new(server.client())),
            });
            match (actor, rest.split_once(' ').expect("an arrow")) {
                (Actor::Native(client), ("→", message)) => {
                    client.say(&serde_json::from_str(message).expect("JSON"));
                    // Its turn is over before the next one's.
                    let pong = client.ask(json!({"type": "ping"}));
                    assert_eq!(pong["type"], "pong");
                }
                (Actor::Native(client), ("←", message)) => {
                    assert_eq!(client.text(), message, "{heading}: {name} hears");
                }
                (Actor::Web(web), ("→", packet)) => {
                    web.say(packet);
                    assert!(web.hear().starts_with("43"), "{heading}: it is acknowledged");
                }
                (Actor::Web(web), ("←", packet)) => {
                    assert_eq!(web.hear(), packet, "{heading}: {name} hears")
                }
                (_, (arrow, _)) => panic!("{arrow} is no arrow"),
            }
        }
        for actor in actors.values_mut() {
            if let Actor::Native(client) = actor {
                client.has_heard_all();
            }
        }
    }
}

/// What a member hears until as many events have come, those of a batch one by one.
fn events(member: &mut Client, count: usize) -> Vec<Value> {
    let mut events = Vec::new();
    while events.len() < count {
        let mut message = member.message();
        match message["type"].as_str() {
            Some("batch") => events.extend(message["messages"].as_array().expect("a list").clone()),
            _ => events.push(message.take()),
        }
    }
    assert_eq!(events.len(), count, "no more have come");
    events.into_iter().map(|mut event| event["data"].take()).collect()
}

#[test]
fn batches_arrive_whole_and_in_order_on_all_shards_at_once() {
    let server = server("whole", "name = \"a:*\"\nwindow_ms = 20\nbatch_max = 10", &["server.shards=4"]);
    let mut crowd = server.crowd(8);
    crowd.iter_mut().for_each(|client| drop(client.join(&["a:1", "a:2", "b"])));
    let (publisher, members) = crowd.split_first_mut().expect("eight");
    for number in 0..1000 {
        let room = ["a:1", "a:2", "b"][number % 3];
        publisher.say(&json!({"type": "publish", "room": room, "event": "n", "data": number}));
        if number % 250 == 0 {
            rest(Duration::from_millis(30));
        }
    }
    for member in members.iter_mut() {
        let numbers: Vec<u64> =
            events(member, 1000).iter().map(|number| number.as_u64().expect("a number")).collect();
        for room in 0..3 {
            let of_room: Vec<u64> = numbers.iter().copied().filter(|number| number % 3 == room).collect();
            assert!(of_room.is_sorted() && of_room.len() >= 333);
        }
        member.has_heard_all();
    }
    publisher.has_heard_all();
    let metrics = server.metrics();
    assert_eq!(metrics.sum("throng_policy_events_total", &[]), 667.0);
    assert!(metrics.sum("throng_policy_sent_total", &[]) < 200.0);
    assert!(metrics.sum("throng_policy_bundles_total", &[]) >= 60.0);
    assert_eq!(metrics.sum("throng_policy_waiting_bytes", &[]), 0.0);
}

#[test]
fn what_waits_arrives_though_its_publisher_has_gone() {
    let server = server("gone", "name = \"*\"\nwindow_ms = 500\nbatch_max = 100", &[]);
    let mut member = server.client();
    member.join(&["a"]);
    let mut publisher = server.client();
    publisher.publish("a", "n", json!(1));
    publisher.publish("a", "n", json!(2));
    publisher.close(1000);
    assert_eq!(events(&mut member, 2), [1, 2]);
}

#[test]
fn what_waits_leaves_before_a_drain_closes() {
    for spread in ["drain.spread_ms=0", "drain.spread_ms=300"] {
        let policy = "name = \"*\"\nwindow_ms = 60000\nbatch_max = 1000\nconflate = \"key\"";
        let mut server = server("drain", policy, &["server.shards=4", spread, "drain.timeout_ms=5000"]);
        let mut crowd = server.crowd(8);
        let rooms: Vec<String> = (0..20).map(|room| format!("room {room}")).collect();
        let names: Vec<&str> = rooms.iter().map(String::as_str).collect();
        crowd.iter_mut().for_each(|client| drop(client.join(&names)));
        let (publisher, members) = crowd.split_first_mut().expect("eight");
        for number in 0..200_usize {
            publisher.publish(names[number % 20], "n", json!({"key": number % 40, "n": number}));
        }
        server.signal(Signal::TERM);
        for member in members {
            // 20 rooms, each with the latest of two keys.
            let mut last: Vec<u64> =
                events(member, 40).iter().map(|data| data["n"].as_u64().expect("a number")).collect();
            last.sort_unstable();
            assert_eq!(last, (160..200).collect::<Vec<_>>());
            assert_eq!(member.message()["type"], "disconnect");
            assert!(matches!(member.hear(), Heard::Close(1001, _)));
        }
        drop(crowd);
        assert!(server.wait_for_exit().success());
    }
}

#[test]
fn everybody_knows_the_last_state_whenever_they_joined() {
    let policy = "name = \"auction:*\"\nwindow_ms = 20\nbatch_max = 5\nconflate = \"auctionId\"\n\
                  changes = \"update\"\nchanges_always = [\"auctionId\"]";
    let server = server("state", policy, &["server.shards=4"]);
    let mut publisher = server.client();
    let mut members: Vec<(Client, serde_json::Map<String, Value>)> = Vec::new();
    let state = |number: u64| {
        let mut state =
            json!({"auctionId": 3, "price": number, "name": "x".repeat(500), "bids": {"count": number}});
        if !number.is_multiple_of(3) {
            state["leader"] = json!(number % 7);
        }
        state
    };
    for number in 0..300 {
        publisher.publish("auction:3", "update", state(number));
        if number % 30 == 0 {
            let mut member = server.client();
            member.join(&["auction:3"]);
            members.push((member, serde_json::Map::new()));
        }
    }
    fn apply(object: &mut serde_json::Map<String, Value>, patch: &Value) {
        for (name, value) in patch.as_object().expect("an object") {
            match value {
                Value::Null => _ = object.remove(name),
                Value::Object(_) => {
                    let own = object.entry(name.clone()).or_insert_with(|| json!({}));
                    apply(own.as_object_mut().expect("an object"), value);
                }
                value => _ = object.insert(name.clone(), value.clone()),
            }
        }
    }
    let expected = state(299);
    let expected = expected.as_object().expect("an object");
    let mut bytes = 0;
    for (member, known) in &mut members {
        while &*known != expected {
            let Heard::Text(message, text) = member.hear() else { panic!("not a message") };
            bytes += text.len();
            for event in message["messages"].as_array().unwrap_or(&vec![message.clone()]) {
                assert_eq!(event["data"]["auctionId"], 3);
                apply(known, &event["data"]);
            }
        }
        member.has_heard_all();
    }
    assert!(
        bytes < 10 * 300 * 150,
        "{bytes} bytes: the whole is sent to each who joins, and once in between"
    );
    assert_eq!(server.metrics().sum("throng_room_states", &[]), 1.0);
}

#[test]
fn stock_clients_of_socketio_agree() {
    let config = "[socketio]\nnamespaces = [\"/\", \"/guild/*\"]\n\
        [[rooms]]\nname = \"batch:*\"\nwindow_ms = 300\nbatch_max = 3\n\
        [[rooms]]\nname = \"data:*\"\nnamespace = \"/guild/*\"\nwindow_ms = 300\nbatch_max = 3\nbatch_event = \"events\"\nbatch_items = \"data\"\n\
        [[rooms]]\nname = \"conflate:*\"\nwindow_ms = 300\nconflate = \"a.id\"\nconflate_events = [\"tick\"]\nurgent = [\"end\"]\n\
        [[rooms]]\nname = \"later:*\"\nwindow_ms = 60000\nconflate = \"a.id\"\nurgent = [\"end\"]\n\
        [[rooms]]\nname = \"changes:*\"\nchanges = \"state\"\n\
        [[rooms]]\nname = \"dedupe:*\"\ndedupe = \"id\"\n\
        [[rooms]]\nname = \"merge:*\"\nwindow_ms = 300\nmerge_event = \"batch_update\"\nmerge = { one = \"first\", two = \"second\" }\n";
    let file = File::new("stock", config);
    for shards in ["server.shards=1", "server.shards=4"] {
        let server = file.server(&[shards, foreign::PATIENT]);
        let mut script = foreign::node("node/rooms.mjs");
        script.arg(format!("http://{}", server.address()));
        foreign::check(script, NODE, 21);
    }
}

#[test]
fn what_goes_straight_to_members_is_known_to_the_home() {
    let policy = "name = \"state:*\"\nchanges = \"s\"";
    let file = File::new("straight", &format!("[[rooms]]\n{policy}\n"));
    let fleet = Fleet::with_flags(2, &["--config", file.0.to_str().expect("a path of ours")]);
    let mut members = fleet.members(&["state:1"]);
    let mut publisher = fleet.throngs[0].client();
    let mut known = [json!({}), json!({})];
    let mut hear = |count: usize| {
        for (client, known) in members.iter_mut().zip(&mut known) {
            for _ in 0..count {
                let message = client.message();
                for (name, value) in message["data"].as_object().expect("an object") {
                    match value.is_null() {
                        true => _ = known.as_object_mut().expect("an object").remove(name),
                        false => known[name] = value.clone(),
                    }
                }
            }
        }
        known.clone()
    };
    publisher.publish("state:1", "s", json!({"a": 1, "b": 1}));
    assert_eq!(hear(1)[1], json!({"a": 1, "b": 1}));
    for (more, data) in [
        (json!({"rooms": ["state:1", "state:2"]}), json!({"a": 9, "c": 9})),
        (json!({"room": "state:1", "except": ["nobody"]}), json!({"b": 8, "d": 8})),
        (json!({"room": "state:1", "ask_ms": 1, "id": 7}), json!({"a": 7, "e": 7})),
    ] {
        let mut message = json!({"type": "publish", "event": "s", "data": data});
        message.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        publisher.say(&message);
        hear(1);
        publisher.publish("state:1", "s", json!({"a": 1, "b": 1}));
        assert_eq!(hear(1), [json!({"a": 1, "b": 1}), json!({"a": 1, "b": 1})], "after {more}");
    }
}

#[test]
fn each_process_batches_for_its_members_and_lets_one_of_two_through() {
    let config = "[[rooms]]\nname = \"batch\"\nwindow_ms = 500\nbatch_max = 10\n\
                  [[rooms]]\nname = \"dedupe\"\ndedupe = \"id\"\n";
    let file = File::new("fleet", config);
    let fleet = Fleet::with_flags(2, &["--config", file.0.to_str().expect("a path of ours")]);
    let mut members = fleet.members(&["batch", "dedupe"]);
    let [one, two] = &mut members[..] else { panic!("two") };
    for number in 0..10 {
        let publisher = if number % 2 == 0 { &mut *one } else { &mut *two };
        publisher
            .say(&json!({"type": "publish", "room": "batch", "event": "n", "data": number, "echo": true}));
    }
    for member in [&mut *one, &mut *two] {
        let first = member.message();
        assert_eq!(first["type"], "batch", "{first}");
        let mut numbers: Vec<u64> = first["messages"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|event| event["data"].as_u64().expect("a number"))
            .collect();
        if numbers.len() < 10 {
            let rest = events(member, 10 - numbers.len());
            numbers.extend(rest.iter().map(|number| number.as_u64().expect("a number")));
        }
        for of in 0..2 {
            let of_one: Vec<u64> = numbers.iter().copied().filter(|number| number % 2 == of).collect();
            assert!(of_one.is_sorted() && of_one.len() == 5, "{numbers:?}");
        }
    }
    for number in 0..50 {
        for publisher in [&mut *one, &mut *two] {
            let data = json!({"id": number});
            publisher.say(
                &json!({"type": "publish", "room": "dedupe", "event": "paid", "data": data, "echo": true}),
            );
        }
    }
    for member in [one, two] {
        let mut numbers: Vec<u64> =
            events(member, 50).iter().map(|data| data["id"].as_u64().expect("a number")).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    }
    eventually("both have left out what came again", || {
        let left_out =
            |throng: &Server| throng.metrics().sum("throng_policy_left_out_total", &[r#"reason="dedupe""#]);
        fleet.throngs.iter().all(|throng| left_out(throng) == 50.0).then_some(())
    });
    members.iter_mut().for_each(Client::has_heard_all);
}

#[test]
fn a_process_that_nobody_was_in_the_room_of_tells_no_old_state() {
    let file = File::new("states", "[[rooms]]\nname = \"state\"\nchanges = \"state\"\n");
    let fleet = Fleet::with_flags(2, &["--config", file.0.to_str().expect("a path of ours")]);
    let mut members = fleet.members(&["state", "marker"]);
    let [one, two] = &mut members[..] else { panic!("two") };
    one.publish("state", "state", json!({"a": 1, "b": 1}));
    two.hears("state", "state", json!({"a": 1, "b": 1}));
    one.hears("state", "state", json!({"a": 1, "b": 1}));
    two.leave(&["state"]);
    fleet.is_heard_by("throng:room:state", 1);
    one.publish("state", "state", json!({"a": 2, "b": 1}));
    one.hears("state", "state", json!({"a": 2}));
    // What comes behind it has come, so it has gone by.
    one.publish("marker", "marker", json!(1));
    two.hears("marker", "marker", json!(1));
    two.join(&["state"]);
    fleet.is_heard_by("throng:room:state", 2);
    one.publish("state", "state", json!({"a": 3, "b": 1}));
    two.hears("state", "state", json!({"a": 3, "b": 1}));
    one.hears("state", "state", json!({"a": 3}));
    let mut late = fleet.throngs[1].client();
    late.join(&["state"]);
    late.hears("state", "state", json!({"a": 3, "b": 1}));
    members.iter_mut().for_each(Client::has_heard_all);
}

#[test]
fn asks_are_answered_and_bytes_go_by_in_order() {
    let server = server("asks", "name = \"*\"\nwindow_ms = 60000\nbatch_max = 100", &["server.shards=4"]);
    let mut crowd = server.crowd(4);
    crowd.iter_mut().for_each(|client| drop(client.join(&["a"])));
    let mut web = Web::connect(&server);
    web.say(r#"420["join",{"room":"a"}]"#);
    assert!(web.hear().starts_with("43"));
    let (publisher, members) = crowd.split_first_mut().expect("four");
    publisher.publish("a", "n", json!(1));
    publisher.publish("a", "n", json!(2));
    publisher
        .say(&json!({"type": "publish", "room": "a", "event": "ask", "data": 3, "ask_ms": 10000, "id": "q"}));
    assert_eq!(web.hear(), r#"42["batch",[{"event":"n","data":1},{"event":"n","data":2}]]"#);
    let asked = web.hear();
    let (id, rest) = asked.strip_prefix("42").and_then(|it| it.split_once('[')).expect("an event");
    assert_eq!(rest, r#""ask",3]"#);
    web.say(&format!("43{id}[7]"));
    let answers = publisher.answer_to(&json!("q"));
    assert_eq!((&answers["answers"], &answers["missing"]), (&json!([7]), &json!(0)));
    publisher.publish("a", "n", json!(4));
    publisher.say_binary(&json!({"type": "publish", "room": "a", "event": "b"}), b"bytes");
    for member in members {
        assert_eq!(events(member, 4), [1, 2, 3, 4]);
        assert!(matches!(member.hear(), Heard::Binary(_, bytes) if bytes == b"bytes"));
    }
    // Nobody is there who could be asked.
    let ack = publisher
        .ask(json!({"type": "publish", "room": "empty", "event": "ask", "data": 1, "ask_ms": 10000}));
    assert_eq!((&ack["answers"], &ack["missing"]), (&json!([]), &json!(0)));
}

/// The private id and the offset that a client comes back with, from its packets.
fn connect_again(server: &Server, pid: &str, offset: &str) -> Web {
    let mut web = Web(server.socket("/socket.io/?EIO=4&transport=websocket"));
    assert!(web.hear().starts_with('0'));
    web.say(&format!("40{}", json!({"pid": pid, "offset": offset})));
    web
}

#[test]
fn who_comes_back_gets_the_batches_and_changes_that_it_missed() {
    let policy = "name = \"batch\"\nwindow_ms = 60000\nbatch_max = 3\n[[rooms]]\nname = \"state\"\nchanges = \"state\"";
    for shards in ["server.shards=1", "server.shards=4"] {
        let server = server("recovery", policy, &[shards, "socketio.recovery_ms=20000"]);
        let mut web = Web(server.socket("/socket.io/?EIO=4&transport=websocket"));
        assert!(web.hear().starts_with('0'));
        web.say("40");
        let connected = web.hear();
        let ids: Value =
            serde_json::from_str(connected.strip_prefix("40").expect("connected")).expect("JSON");
        web.say(r#"420["join",{"room":"batch"}]"#);
        assert!(web.hear().starts_with("430"));
        web.say(r#"421["join",{"room":"state"}]"#);
        assert!(web.hear().starts_with("431"));
        let mut other = server.client();
        other.join(&["batch"]);
        other.publish("state", "state", json!({"a": 1, "b": 1}));
        let first = web.hear();
        let offset = first.rsplit('"').nth(1).expect("an offset").to_owned();
        // One of a batch is its own.
        web.say(r#"422["publish",{"room":"batch","event":"own","data":1}]"#);
        assert!(web.hear().starts_with("432"));
        drop(web);
        eventually("it is gone", || {
            (server.metrics().sum("throng_recoverable_sessions", &[]) == 1.0).then_some(())
        });
        other.publish("batch", "n", json!(2));
        other.publish("batch", "n", json!(3));
        other.publish("state", "state", json!({"a": 2, "b": 1}));
        other.publish("state", "state", json!({"a": 2}));
        assert_eq!(other.message()["data"], 1);
        let mut web = connect_again(&server, ids["pid"].as_str().expect("an id"), &offset);
        let mut heard: Vec<String> = Vec::new();
        let connected = loop {
            let packet = web.hear();
            if packet.starts_with("40") {
                break packet;
            }
            heard.push(packet.rsplit_once(",\"").expect("an offset").0.to_owned());
        };
        assert!(connected.contains(ids["sid"].as_str().expect("an id")), "it is the same: {connected}");
        heard.sort();
        assert_eq!(
            heard,
            [
                r#"42["batch",[{"event":"n","data":2},{"event":"n","data":3}]"#,
                r#"42["state",{"a":2}"#,
                r#"42["state",{"b":null}"#,
            ]
        );
        other.publish("state", "state", json!({"a": 3}));
        assert!(web.hear().starts_with(r#"42["state",{"a":3},"#), "and no whole");
    }
}

#[test]
fn who_reads_slowly_loses_only_bursts_of_the_room_that_bounds_them() {
    for burst in ["drop", "disconnect"] {
        let policy = format!(
            "name = \"ticker\"\nburst_bytes = \"64KiB\"\nburst = \"{burst}\"\n\
             [[rooms]]\nname = \"bundle\"\nwindow_ms = 10\nbatch_max = 4\nburst_bytes = \"64KiB\"\nburst = \"{burst}\""
        );
        let server = server(burst, &policy, &["server.shards=1"]);
        let mut slow = Raw::connect_narrow(server.address());
        slow.upgrade("/ws");
        slow.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["ticker","chat","bundle"],"id":1}"#));
        slow.frame();
        let mut publisher = server.client();
        let mut good = server.client();
        good.join(&["ticker", "bundle"]);
        let text = "x".repeat(4096);
        let number = |name: &str, label: &str| {
            let labels: &[&str] = if label.is_empty() { &[] } else { &[label] };
            server.metrics().sum(name, labels)
        };
        let done = || match burst {
            "drop" => number("throng_dropped_total", "") >= 50.0,
            _ => number("throng_disconnects_total", r#"reason="slow""#) == 1.0,
        };
        let mut published = 0;
        while !done() {
            for _ in 0..50 {
                let room = if published % 2 == 0 { "ticker" } else { "bundle" };
                publisher.publish(room, "tick", json!(text));
                published += 1;
            }
            assert!(published < 20_000, "{burst}: it is never too much");
        }
        let outbox = number("throng_outbox_bytes", "");
        assert!(outbox < 120_000.0, "{outbox}");
        assert_eq!(events(&mut good, published).len(), published, "others miss nothing");
        if burst == "drop" {
            // What is not of this room has place.
            publisher.publish("chat", "say", json!("hi"));
            let mut heard = (0, 0, false);
            while heard.1 == 0 {
                let message: Value = serde_json::from_slice(&slow.frame().payload).expect("JSON");
                match message["type"].as_str() {
                    Some("dropped") => heard.1 = message["count"].as_u64().expect("a number"),
                    Some("batch") => heard.0 += 4,
                    _ if message["event"] == "say" => heard.2 = true,
                    _ => heard.0 += 1,
                }
            }
            assert!(heard.2 && heard.1 >= 50, "{heard:?}");
            publisher.publish("ticker", "tick", json!("again"));
            let message: Value = serde_json::from_slice(&slow.frame().payload).expect("JSON");
            assert_eq!(message["data"], "again");
        }
    }
}

#[test]
fn hostile_publishers_get_no_more_memory_than_there_is() {
    const EVENTS: usize = 100_000;
    let config = "[limits]\nroom_states_max = 1000\ndedupe_ids_max = 1000\nrooms_waiting_bytes_max = \"1MiB\"\nroom_state_bytes_max = \"64KiB\"\n\
        message_bytes_max = \"2MiB\"\n[heartbeat]\nping_interval_ms = \"10m\"\n\
        [[rooms]]\nname = \"conflate*\"\nwindow_ms = \"1m\"\nconflate = \"id\"\n\
        [[rooms]]\nname = \"dedupe\"\ndedupe = \"id\"\n\
        [[rooms]]\nname = \"state*\"\nchanges = \"e\"\n";
    let server = File::new("hostile", config).server(&[]);
    let mut member = server.client();
    member.join(&["dedupe", "state of one"]);
    let mut publisher = server.client();
    let before = server.resident_bytes();
    let flood = |publisher: &mut Client, room: &dyn Fn(usize) -> String| {
        for numbers in (0..EVENTS).collect::<Vec<_>>().chunks(1000) {
            let publish = |number: &usize| {
                let data = json!({"id": format!("{number}-{}", "x".repeat(40))});
                json!({"type": "publish", "room": room(*number), "event": "e", "data": data})
            };
            publisher.say(&Value::Array(numbers.iter().map(publish).collect()));
            publisher.has_heard_all();
        }
    };
    let mut watcher = server.client();
    watcher.join(&["conflate"]);
    std::thread::scope(|scope| {
        // All of them arrive.
        let hearing = scope.spawn(|| (0..EVENTS).for_each(|_| drop(member.message())));
        flood(&mut publisher, &|_| "dedupe".to_owned());
        hearing.join().expect("a member that does not fail");
    });
    flood(&mut publisher, &|number| format!("state {number}"));
    let hearing = std::thread::spawn(move || {
        let mut heard = 0;
        while watcher.hear_within(Duration::from_secs(3)).is_some() {
            heard += 1;
        }
        heard
    });
    flood(&mut publisher, &|_| "conflate".to_owned());
    assert!(hearing.join().expect("a watcher that does not fail") > EVENTS / 2, "what waited left early");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 60 << 20, "{grown} bytes more");
    let metrics = server.metrics();
    let number = |name| metrics.sum(name, &[]);
    assert!(number("throng_dedupe_ids") <= 1001.0 && number("throng_room_states") <= 1001.0);
    assert!(number("throng_policy_waiting_bytes") <= f64::from(1 << 20));
    assert!(number("throng_policy_early_total") > 0.0 && number("throng_policy_forgotten_total") > 190_000.0);

    // What is no object, or too large for a state, is passed on.
    let large = json!({"text": "x".repeat(1 << 20)});
    for data in [json!([1, {}]), json!(null), json!("text"), json!(7), json!(true), large] {
        publisher.publish("state of one", "e", data.clone());
        member.hears("state of one", "e", data);
    }
    // Nor does what is deep or has names twice harm anybody.
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    for data in
        [format!(r#"{{"id":{deep}}}"#), r#"{"id":1,"id":{"id":2}}"#.to_owned(), r#"{"id":1e999}"#.to_owned()]
    {
        for room in ["state of one", "dedupe", "conflate"] {
            publisher.say_text(format!(r#"{{"type":"publish","room":"{room}","event":"e","data":{data}}}"#));
        }
    }
    publisher.has_heard_all();
    let started = now();
    while started.elapsed() < WAIT && server.number("totals/publications") < 3 * EVENTS as u64 + 15 {
        rest(Duration::from_millis(20));
    }
    assert_eq!(server.number("totals/errors"), 0);
}
