//! Who is in a room: how many, where and who, over both dialects and all processes. Answers are bounded in age and size, a thousand who ask
//! cost one question, and whoever does not tell is missing by name: the answer is not complete.

use crate::cluster::{Fleet, Socket};
use crate::harness::clock::now;
use crate::harness::redis::Cluster;
use crate::harness::{Client, Server, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

/// Every question is put anew.
const FRESH: &str = "presence.age_max_ms=0";

fn presence(client: &mut Client, room: &str, who: bool) -> Value {
    let answer = client.ask(json!({"type": "presence", "room": room, "who": who}));
    assert_eq!((&answer["type"], &answer["room"]), (&json!("presence"), &json!(room)), "{answer}");
    answer
}

/// Members in all, how many there are in each process, and whether that is all.
fn counted(answer: &Value) -> (u64, Vec<(String, u64)>, bool) {
    let nodes = answer["nodes"].as_array().expect("nodes").iter();
    let node = |node: &Value| {
        (node["node"].as_str().expect("a name").to_owned(), node["members"].as_u64().expect("a number"))
    };
    let complete = answer["complete"].as_bool().expect("it is said");
    (answer["members"].as_u64().expect("a number"), nodes.map(node).collect(), complete)
}

fn listed(answer: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a name").to_owned();
    let who = answer["who"].as_array().unwrap_or_else(|| panic!("nobody is listed: {answer}"));
    let members: BTreeSet<_> =
        who.iter().map(|member| (text(&member["node"]), text(&member["id"]))).collect();
    assert_eq!(members.len(), who.len(), "each once: {answer}");
    members
}

/// What a throng is called, that was not told what to be called.
fn name_of(server: &Server) -> String {
    let host = rustix::system::uname().nodename().to_str().expect("text").to_owned();
    format!("{host}:{}", server.port())
}

/// Asks who is in room `a` until the answer is as `holds` wants it.
fn until(client: &mut Client, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || Some(presence(client, "a", false)).filter(&holds))
}

#[test]
fn who_is_in_a_room_is_known_in_one_process() {
    let server = Server::with(&["server.node=alone", FRESH]);
    let mut crowd = server.crowd(9);
    crowd.iter_mut().for_each(|client| drop(client.join(&["a"])));
    let mut outsider = server.client();
    let mut socket = Socket::open(&server, &["a"]);
    let answer = presence(&mut crowd[0], "a", false);
    assert_eq!(counted(&answer), (10, vec![("alone".to_owned(), 10)], true));
    assert_eq!((answer.get("who"), answer.get("cut")), (None, None));
    let answer = presence(&mut crowd[0], "a", true);
    let members = listed(&answer);
    assert_eq!((members.len(), answer.get("cut")), (10, None));
    assert!(members.contains(&("alone".to_owned(), socket.id.clone())), "{members:?}");
    // Ids stay as they are, and nobody can join or take one for a room.
    let again = listed(&presence(&mut crowd[3], "a", true));
    assert_eq!(again, members);
    for (_, id) in members {
        assert_eq!(crowd[0].refused(json!({"type": "join", "rooms": [id]})), "bad_room");
    }

    // All forms of the event of Socket.IO clients.
    for (args, who) in [
        (json!(["presence", "a"]), false),
        (json!(["presence", "a", true]), true),
        (json!(["presence", {"room": "a"}]), false),
        (json!(["presence", {"rooms": ["a"], "who": true}]), true),
    ] {
        let answer = socket.ask(&args).as_array().and_then(|args| args.first().cloned()).expect("an answer");
        assert_eq!(counted(&answer), (10, vec![("alone".to_owned(), 10)], true), "{args}");
        assert_eq!(answer.get("who").is_some(), who, "{args}");
        assert!(answer["age_ms"].is_u64() && answer.get("type").is_none(), "{answer}");
    }

    for (room, client) in [("a", &mut outsider), ("b", &mut crowd[0])] {
        assert_eq!(client.refused(json!({"type": "presence", "room": room})), "not_member");
    }
    for wrong in [json!({"type": "presence", "room": "a"}), json!({"type": "presence", "id": 1})] {
        assert_eq!(crowd[0].refused_text(wrong.to_string())["code"], "bad_message", "{wrong}");
    }
    let error = |answer: Value| answer[0]["error"]["code"].clone();
    assert_eq!(error(socket.ask(&json!(["presence", "b"]))), "not_member");
    assert_eq!(error(socket.ask(&json!(["presence", ["a", "b"]]))), "bad_message");
    let own = socket.id.clone();
    assert_eq!(error(socket.ask(&json!(["presence", own]))), "not_member");
    socket.say("2", r#"["presence","a"]"#);
    let told: Value = serde_json::from_str(&socket.data_of("2")).expect("JSON");
    assert_eq!((&told[0], &told[1]["code"]), (&json!("error"), &json!("bad_message")));

    drop(socket);
    let left = crowd.pop().expect("there are some");
    assert_eq!(left.close(1000), 1000);
    until(&mut crowd[0], "who has left is not counted", |answer| answer["members"] == 8);
    assert_eq!(listed(&presence(&mut crowd[0], "a", true)).len(), 8);
}

#[test]
fn who_is_in_a_room_is_known_over_all_processes() {
    let fleet = Fleet::with(3, &[r#"socketio.namespaces=["/","/guild/*"]"#, "presence.age_max_ms=50"]);
    let mut members = fleet.members(&["a"]);
    let sockets: Vec<Socket> = [0, 0, 2].iter().map(|at| Socket::open(&fleet.throngs[*at], &["a"])).collect();
    let mut guild: Vec<Socket> =
        fleet.throngs.iter().map(|throng| Socket::open_in(throng, "/guild/7", &["a", "a"])).collect();
    let mut expected: Vec<(String, u64)> = fleet.throngs.iter().map(name_of).zip([3, 1, 2]).collect();
    expected.sort();
    for member in &mut members {
        let holds = |answer: &Value| counted(answer) == (6, expected.clone(), true);
        let answer = until(member, "all are counted", holds);
        assert!(answer["age_ms"].as_u64() < Some(1_000), "{answer}");
        let who = eventually("all are listed", || {
            let answer = presence(member, "a", true);
            (answer["members"] == 6).then(|| listed(&answer))
        });
        assert_eq!(who.len(), 6);
        for (socket, at) in sockets.iter().zip([0, 0, 2]) {
            assert!(who.contains(&(name_of(&fleet.throngs[at]), socket.id.clone())), "{who:?}");
        }
    }
    for at in 0..3 {
        eventually("a namespace is apart", || {
            let answer = guild[at].ask(&json!(["presence", {"room": "a", "who": true}]))[0].clone();
            let (count, nodes, complete) = counted(&answer);
            (count == 3 && nodes.len() == 3 && complete).then(|| {
                let ids: BTreeSet<String> = listed(&answer).into_iter().map(|(_, id)| id).collect();
                assert_eq!(ids, guild.iter().map(|socket| socket.id.clone()).collect());
            })
        });
    }
    let told = fleet.throngs[1].control("/rooms/a").json();
    assert_eq!(counted(&told), (6, expected, true));
    let told = fleet.throngs[1].control("/rooms/a?namespace=/guild/7").json();
    assert_eq!((counted(&told).0, told["complete"] == true), (3, true));
    // Who has left is not counted any more, wherever that was.
    drop((sockets, members.remove(2)));
    until(&mut members[1], "two are left", |answer| answer["members"] == 2 && answer["complete"] == true);
    let elsewhere: u64 = fleet.throngs.iter().map(|throng| throng.number("presence/elsewhere")).sum();
    assert!(elsewhere > 0, "others were asked");
}

#[test]
fn it_is_known_on_a_cluster_of_redis() {
    let redis = Cluster::start();
    let urls = format!("redis.urls={:?}", redis.urls());
    let throngs: Vec<Server> = (0..3).map(|_| Server::with(&[&urls, "redis.kind=cluster", FRESH])).collect();
    let mut members: Vec<Client> = throngs.iter().map(Server::client).collect();
    members.iter_mut().for_each(|member| drop(member.join(&["a"])));
    for member in &mut members {
        until(member, "all are counted", |answer| answer["members"] == 3 && answer["complete"] == true);
    }
}

#[test]
fn many_who_ask_cost_one_question() {
    const ASKERS: u64 = 100;
    let fleet = Fleet::with(2, &["presence.age_max_ms=60000"]);
    let mut members = fleet.members(&["a"]);
    let mut askers: Vec<Client> = (0..ASKERS).map(|_| fleet.throngs[0].client()).collect();
    askers.iter_mut().for_each(|asker| drop(asker.join(&["a"])));
    for asker in &mut askers {
        asker.say(&json!({"type": "presence", "room": "a", "id": 7}));
    }
    for asker in &mut askers {
        let answer = asker.answer_to(&json!(7));
        assert_eq!((counted(&answer).0, counted(&answer).2), (ASKERS + 2, true));
    }
    fleet.throngs[0].wait_for_number("presence/questions", 1);
    fleet.throngs[0].wait_for_number("presence/shared", ASKERS - 1);
    fleet.throngs[1].wait_for_number("presence/elsewhere", 1);
    // It is kept, and says how old it is.
    drop(members.remove(1));
    fleet.throngs[1].wait_for_number("rooms", 0);
    let answer = until(&mut members[0], "it grows old", |answer| answer["age_ms"].as_u64() > Some(200));
    assert_eq!(answer["members"], ASKERS + 2);
    // The list is another question.
    let answer = presence(&mut members[0], "a", true);
    assert_eq!((listed(&answer).len() as u64, counted(&answer).0), (ASKERS + 1, ASKERS + 1));
}

#[test]
fn a_process_that_dies_leaves_nobody_behind_and_one_that_hangs_is_missed() {
    const TIMEOUT_MS: u64 = 300;
    let mut fleet = Fleet::with(3, &["presence.age_max_ms=500", "presence.timeout_ms=300"]);
    let mut members = fleet.members(&["a"]);
    until(&mut members[0], "all are counted", |answer| answer["members"] == 3);
    fleet.throngs[2].signal(Signal::KILL);
    fleet.throngs[2].wait_for_exit();
    let began = now();
    let answer = until(&mut members[0], "the dead are forgotten", |answer| answer["members"] == 2);
    // The age, and what Redis needs to see that the connections have ended.
    assert!(began.elapsed() < Duration::from_millis(2_500), "it took {:?}", began.elapsed());
    assert_eq!(answer["complete"], true, "{answer}");

    fleet.throngs[1].signal(Signal::STOP);
    let answer = until(&mut members[0], "one does not tell", |answer| answer["complete"] == false);
    assert_eq!((&answer["members"], answer["nodes"].as_array().map(Vec::len)), (&json!(1), Some(1)));
    // It costs the time that it has, once in its age, and no more.
    for _ in 0..5 {
        let began = now();
        let answer = presence(&mut members[0], "a", true);
        assert!(!counted(&answer).2, "{answer}");
        // The machine may be busy besides.
        let most = Duration::from_millis(TIMEOUT_MS + 1_500);
        assert!(began.elapsed() < most, "it took {:?}", began.elapsed());
    }
    assert!(fleet.throngs[0].number("presence/incomplete") > 0);
    fleet.throngs[1].signal(Signal::CONT);
    until(&mut members[0], "it is back", |answer| counted(answer).0 == 2 && answer["complete"] == true);
}

#[test]
fn without_redis_a_process_answers_for_itself() {
    let mut fleet = Fleet::with(2, &[FRESH, "presence.timeout_ms=300"]);
    let mut members = fleet.members(&["a"]);
    until(&mut members[0], "all are counted", |answer| answer["members"] == 2);
    // It hangs: that is known when nobody tells in time.
    fleet.redis.pause();
    let alone = |answer: &Value| counted(answer).0 == 1 && answer["complete"] == false;
    let began = now();
    until(&mut members[0], "it is alone", alone);
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    fleet.redis.go_on();
    until(&mut members[0], "it is back", |answer| answer["members"] == 2 && answer["complete"] == true);
    // It is gone: that is known at once.
    fleet.redis.kill();
    for throng in &mut fleet.throngs {
        throng.wait_for_log("lost Redis");
    }
    for member in &mut members {
        until(member, "it is alone", alone);
    }
    fleet.redis.start_again();
    until(&mut members[0], "it is back", |answer| answer["members"] == 2 && answer["complete"] == true);
}

#[test]
fn a_list_is_cut_and_a_count_is_not() {
    const EACH: usize = 2_500;
    let fleet = Fleet::with(2, &["presence.listed_max=100", "presence.age_max_ms=0"]);
    let mut crowds: Vec<Vec<Client>> = fleet.throngs.iter().map(|throng| throng.crowd(EACH)).collect();
    for client in crowds.iter_mut().flatten() {
        client.say(&json!({"type": "join", "rooms": ["a"]}));
    }
    let asker = &mut crowds[0][0];
    let answer = until(asker, "all are counted", |answer| answer["members"] == 2 * EACH);
    assert_eq!(answer["complete"], true);
    let answer = presence(asker, "a", true);
    assert_eq!((listed(&answer).len(), &answer["members"]), (100, &json!(2 * EACH)));
    assert_eq!((&answer["cut"], &answer["complete"]), (&json!(true), &json!(true)));
    // A question for each message of an array, as far as there is a place for them.
    let question = json!({"type": "presence", "room": "a", "who": true, "id": 1});
    asker.say(&Value::Array(vec![question; 100]));
    let codes: Vec<Value> = (0..100).map(|_| asker.message()["code"].clone()).collect();
    let refused = codes.iter().filter(|code| **code == "overloaded").count();
    assert_eq!(refused, 36, "64 may wait");
}

#[test]
fn answers_that_cannot_be_read_make_it_incomplete() {
    let fleet = Fleet::with(2, &[FRESH, "presence.timeout_ms=200"]);
    let mut members = fleet.members(&["a"]);
    let all = |answer: &Value| answer["members"] == 2 && answer["complete"] == true;
    let whole = until(&mut members[0], "all are counted", all);
    // Somebody who listens like a throng, and says nothing that makes sense.
    let mut stranger = TcpStream::connect(("127.0.0.1", fleet.redis.port())).expect("Redis listens");
    stranger.write_all(b"SUBSCRIBE throng#/#\r\n").expect("Redis reads");
    fleet.is_heard_by("throng#/#", 3);
    assert_eq!(counted(&presence(&mut members[0], "a", false)), (2, counted(&whole).1, false));
    let garbage =
        r#"{"type":8,"data":{"requestId":"x","sockets":[],"presence":{"node":7}},"uid":"z","nsp":"/"}"#;
    for channel in fleet.redis.cli(&["PUBSUB", "CHANNELS", "throng#/#?*"]).lines() {
        fleet.redis.cli(&["PUBLISH", channel, garbage]);
    }
    fleet.throngs.iter().for_each(|throng| throng.wait_for_number("redis/malformed", 1));
    drop(stranger);
    until(&mut members[0], "it is gone", |answer| answer["complete"] == true);
}
