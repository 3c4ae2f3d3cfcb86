//! Channels of Redis on which others publish who know nothing of throng: `[[redis.channels]]`, with stock publishers, several processes,
//! policies for rooms, floods and garbage, and a Redis that goes away.

use crate::backend_apps::Kept;
use crate::foreign::{NODE, PYTHON, node, python};
use crate::harness::raw::{FIN, TEXT};
use crate::harness::redis::{Cluster, Redis, Trio};
use crate::harness::{Client, Raw, Server, eventually, frame};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// The configuration of the documentation, but for where Redis is.
fn documented() -> String {
    let page = include_str!("../../docs/routes.md");
    let section = page.split("\n## Channels on Redis\n").nth(1).expect("the section is there");
    let file =
        section.split("```").nth(1).and_then(|block| block.strip_prefix("toml\n")).expect("an example");
    file.to_owned()
}

/// A process with this file on this Redis.
fn process(file: &Kept, settings: &[&str]) -> Server {
    let path = file.0.display().to_string();
    let mut flags = vec!["--config", &path];
    flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    let mut server = Server::with_flags(&flags);
    server.wait_for_log("connected to Redis");
    server
}

fn kept(file: &str) -> Kept {
    let kept = Kept::new(&format!("channels-{:?}", std::thread::current().id()));
    fs::write(&kept.0, file).expect("the folder is ours");
    kept
}

fn urls(redis: &Redis) -> String {
    format!("redis.urls={:?}", [redis.url()])
}

/// Publishes when so many subscribers are there.
fn publish(redis: &Redis, channel: &str, message: &str, subscribers: usize) {
    eventually("all processes listen", || {
        let listening = redis.cli(&["PUBSUB", "NUMSUB", "global_events"]);
        (listening.lines().nth(1)? == subscribers.to_string()).then_some(())
    });
    redis.cli(&["PUBLISH", channel, message]);
}

fn socketio(server: &Server, first: &str) -> Raw {
    let mut raw = server.socket("/socket.io/?EIO=4&transport=websocket");
    assert!(raw.frame().payload.starts_with(b"0{"));
    raw.send(frame(FIN | TEXT, first));
    assert!(raw.frame().payload.starts_with(b"40"));
    raw
}

fn dropped(server: &Server, reason: &str) -> f64 {
    server.metrics().sum("throng_redis_channel_dropped_total", &[&format!("reason=\"{reason}\"")])
}

fn heard(server: &Server) -> f64 {
    server.metrics().sum("throng_redis_channel_messages_total", &[])
}

/// The next event of a native client that is of no room, or any: its name and data.
fn event(client: &mut Client) -> (Value, Value) {
    let message = client.message();
    assert_eq!(message["type"], "event", "{message}");
    (message["event"].clone(), message["data"].clone())
}

#[test]
fn every_process_tells_its_own_clients_once() {
    let redis = Redis::start();
    let file = kept(&documented());
    for cluster in ["throng", "socketio", "socketio-sharded"] {
        let cluster = format!("redis.cluster={cluster}");
        let servers = [(); 2].map(|()| process(&file, &[&urls(&redis), &cluster, "plain.path=/app"]));
        let mut natives = servers.each_ref().map(Server::client);
        let mut plains = servers.each_ref().map(|server| server.socket("/app"));
        let mut sockets = servers.each_ref().map(|server| socketio(server, "40"));
        natives.iter_mut().for_each(|client| _ = client.join(&["contract:c7"]));
        publish(&redis, "global_events", r#"{"type":"maintenance","data":{"at":"22:00"}}"#, 2);
        publish(&redis, "contracts:eu", r#"{"contractId":"c7","data":{"clicks":3}}"#, 2);
        publish(&redis, "global_events", r#"{"data":"last"}"#, 2);
        for client in &mut natives {
            let first = json!({"type": "maintenance", "data": {"at": "22:00"}});
            assert_eq!(event(client), (json!("event"), first));
            client.hears("contract:c7", "contract", json!({"clicks": 3}));
            assert_eq!(event(client), (json!("event"), json!({"data": "last"})));
            client.has_heard_all();
        }
        for plain in &mut plains {
            assert_eq!(plain.frame().payload, br#"{"type":"event","data":{"at":"22:00"}}"#);
            assert_eq!(plain.frame().payload, br#"{"type":"event","data":"last"}"#);
        }
        for socket in &mut sockets {
            assert_eq!(
                socket.frame().payload,
                br#"42["event",{"type":"maintenance","data":{"at":"22:00"}}]"#
            );
            assert_eq!(socket.frame().payload, br#"42["event",{"data":"last"}]"#);
        }
        for server in &servers {
            assert_eq!(heard(server), 3.0);
        }
        drop((natives, plains, sockets));
    }
}

#[test]
fn the_home_of_a_room_gets_each_message_once() {
    let redis = Redis::start();
    let file = kept(
        "[[redis.channels]]\nname = \"global_events\"\npublish = { room = \"contract:{payload.id}\", event = \"event\" }\n\
         [[rooms]]\nname = \"contract:*\"\nbatch_max = 100\nbatch_items = \"data\"\nwindow_ms = 50\n",
    );
    let servers = [(); 2].map(|()| process(&file, &[&urls(&redis), "server.shards=3"]));
    // Several for each shard.
    let mut clients: Vec<Client> = servers.iter().flat_map(|server| server.crowd(8)).collect();
    clients.iter_mut().for_each(|client| _ = client.join(&["contract:7"]));
    for number in 0..10 {
        publish(&redis, "global_events", &format!(r#"{{"id":7,"n":{number}}}"#), 2);
    }
    for client in &mut clients {
        let mut numbers = Vec::new();
        while numbers.len() < 10 {
            let message = client.message();
            let items = message["messages"].as_array().cloned().unwrap_or_else(|| vec![message.clone()]);
            numbers.extend(items.iter().map(|item| item["data"]["n"].as_u64().expect("a number")));
        }
        assert_eq!(numbers, (0..10).collect::<Vec<u64>>());
        client.has_heard_all();
    }
    for server in &servers {
        assert_eq!(server.metrics().sum("throng_policy_events_total", &[]), 10.0, "one home, once each");
    }
}

#[test]
fn stock_publishers_are_heard_and_redis_may_be_restarted() {
    let mut redis = Redis::start();
    let file =
        kept("[[redis.channels]]\nname = \"global_events\"\npublish = { all = true, event = \"event\" }\n");
    let servers = [(); 2].map(|()| process(&file, &[&urls(&redis)]));
    let mut clients = servers.each_ref().map(Server::client);
    let publish_by_both = |redis: &Redis, clients: &mut [Client], said: &str| {
        publish(redis, "global_events", "0", 2);
        let mut by_node = node("node/publish.mjs");
        by_node.args([&redis.url(), "global_events", said]);
        let mut by_python = python("publish.py");
        by_python.args([&redis.url(), "global_events", said]);
        for (mut publisher, install) in [(by_node, NODE), (by_python, PYTHON)] {
            let done = publisher.output().expect(install);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            // How many have got it.
            assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "2");
        }
        for client in clients {
            for data in [json!(0), json!({"said": said}), json!({"said": said})] {
                assert_eq!(event(client), (json!("event"), data));
            }
        }
    };
    publish_by_both(&redis, &mut clients, "größe");
    redis.stop();
    for server in &servers {
        server.metrics();
    }
    redis.start_again();
    publish_by_both(&redis, &mut clients, "again");
    redis.kill();
    redis.start_again();
    publish_by_both(&redis, &mut clients, "and again");
    clients.iter_mut().for_each(Client::has_heard_all);
}

#[test]
fn a_cluster_and_a_master_behind_sentinels_are_heard() {
    let file =
        kept("[[redis.channels]]\nname = \"global_events\"\npublish = { all = true, event = \"event\" }\n");
    let check = |settings: &[&str], publish: &dyn Fn(&str)| {
        let server = process(&file, settings);
        let mut client = server.client();
        // The subscription is made soon after.
        eventually("the channel is heard", || {
            publish("\"try\"");
            (heard(&server) > 0.0).then_some(())
        });
        publish("\"last\"");
        while event(&mut client).1 != json!("last") {}
        client.has_heard_all();
    };
    let cluster = Cluster::start();
    let urls = format!("redis.urls={:?}", cluster.urls());
    // Whichever of its servers is published to.
    let nodes = &cluster.masters;
    let turn = std::cell::Cell::new(0);
    check(&[&urls, "redis.kind=cluster"], &|message| {
        turn.set(turn.get() + 1);
        nodes[turn.get() % nodes.len()].cli(&["PUBLISH", "global_events", message]);
    });
    drop(cluster);
    let trio = Trio::start();
    let urls = format!("redis.urls={:?}", trio.urls());
    check(&[&urls, "redis.kind=sentinel", "redis.master=main"], &|message| {
        trio.master.cli(&["PUBLISH", "global_events", message]);
    });
}

#[test]
fn garbage_is_counted_and_logged_once() {
    let redis = Redis::start();
    let file = kept(
        "[[redis.channels]]\nname = \"global_events\"\nfields = { id = \"string\" }\n\
         publish = [{ room = \"lot:{payload.id}\", event = \"event\" }, { user = \"{payload.id}\", event = \"own\" }]\n\
         [[redis.channels]]\npattern = \"*\"\nnamespace = \"/logs\"\npublish = { all = true, event = \"line\", data = \"{event}\" }\n",
    );
    let server = process(
        &file,
        &[&urls(&redis), "redis.channel_bytes_max=1000", r#"socketio.namespaces=["/","/logs"]"#],
    );
    let mut client = server.client();
    client.join(&["lot:7"]);
    let mut logs = socketio(&server, "40/logs,");
    let deep = format!(r#"{{"id":"7","x":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let large = format!(r#"{{"id":"7","x":"{}"}}"#, "x".repeat(1000));
    for (message, reason) in [
        ("", "malformed"),
        ("hello", "malformed"),
        ("{\"id\":\"7\"", "malformed"),
        (&deep, "malformed"),
        (&large, "too_large"),
        ("{}", "refused"),
        ("7", "refused"),
        (r#"{"id":7}"#, "refused"),
        (r#"{"id":"a b"}"#, "refused"),
        (r#"{"id":"../x"}"#, "refused"),
    ] {
        let before = dropped(&server, reason);
        publish(&redis, "global_events", message, 1);
        eventually("it is counted", || (dropped(&server, reason) > before).then_some(()));
    }
    // Nobody is in such rooms; that is nothing wrong.
    publish(&redis, "global_events", r#"{"id":"elsewhere"}"#, 1);
    publish(&redis, "global_events", r#"{"id":"7"}"#, 1);
    client.hears("lot:7", "event", json!({"id": "7"}));
    // By the pattern all that is JSON is heard besides, but for what servers say among themselves.
    let mut other = server.client();
    other.publish("lot:7", "event", json!(1));
    client.hears("lot:7", "event", json!(1));
    redis.cli(&["PUBLISH", "last", "1"]);
    loop {
        let line = logs.frame().payload;
        if line == br#"42/logs,["line","last"]"# {
            break;
        }
        assert_eq!(line, br#"42/logs,["line","global_events"]"#);
    }
    let lines = server.log().matches("a message on a channel of [[redis.channels]] was dropped").count();
    assert_eq!(lines, 1, "once in a while");
}

#[test]
fn a_flood_is_delivered_or_counted() {
    const MESSAGES: usize = 50_000;
    let redis = Redis::start();
    let file = kept(
        "[[redis.channels]]\nname = \"global_events\"\npublish = { room = \"all\", event = \"event\" }\n",
    );
    let server = process(&file, &[&urls(&redis), "server.shards=1"]);
    let mut client = server.client();
    client.join(&["all"]);
    publish(&redis, "global_events", "0", 1);
    client.hears("all", "event", json!(0));
    let mut flood = node("node/publish.mjs");
    flood.args([&redis.url(), "global_events", "flood", &MESSAGES.to_string()]);
    assert!(flood.output().expect(NODE).status.success());
    publish(&redis, "global_events", "1", 1);
    let mut got = 0;
    loop {
        let message = client.message();
        if message["data"] == json!(1) {
            break;
        }
        got += 1;
    }
    let lost = dropped(&server, "overloaded") as usize;
    assert_eq!(heard(&server) as usize, MESSAGES + 2, "Redis kept up");
    assert_eq!(got + lost, MESSAGES);
    server.client().has_heard_all();
}

#[test]
fn tables_that_cannot_work_are_refused_with_their_line() {
    let check = |file: &str| {
        let kept = kept(file);
        let done = Command::new(env!("CARGO_BIN_EXE_throng")).arg("check").arg(&kept.0).output();
        let done = done.expect("throng runs");
        (String::from_utf8([done.stdout, done.stderr].concat()).expect("text"), done.status.success())
    };
    let redis = "[redis]\nurls = [\"redis://127.0.0.1:1\"]\n[[redis.channels]]\n";
    for (table, says) in [
        ("publish = { all = true, event = \"e\" }", ":3: redis.channels.name"),
        ("name = \"a\"", ":3: redis.channels.publish"),
        ("name = \"a\"\npublish = { all = true }", "`event` is missing"),
        ("name = \"a\"\npublish = { all = true, event = \"connect\" }", "no name of an event"),
        ("name = \"a\"\npublish = { room = \"r:{user}\", event = \"e\" }", "{user} is nothing here"),
        ("name = \"a\"\npublish = { all = true, event = \"e\", add = { id = \"{id}\" } }", "each process"),
        ("name = \"a\"\npublish = { all = true, event = \"e\", echo = true }", "`echo` is nothing"),
        ("name = \"a\"\npattern = \"b\"\npublish = { all = true, event = \"e\" }", "does not go with"),
        ("name = \"throng:room:x\"\npublish = { all = true, event = \"e\" }", "among servers"),
        ("name = \"a\"\nnamespace = \"/x/*\"\npublish = { all = true, event = \"e\" }", "one namespace"),
    ] {
        let (text, is_right) = check(&format!("{redis}{table}\n"));
        assert!(!is_right && text.contains(says), "{table}: {text}");
    }
    let table = "name = \"a\"\npublish = { all = true, event = \"e\" }\n";
    let (text, is_right) = check(&format!("[[redis.channels]]\n{table}"));
    assert!(
        is_right && text.contains("CAUTION: without a Redis, [[redis.channels]] hear nothing."),
        "{text}"
    );
    let (text, is_right) = check(&format!("{redis}{table}"));
    let line =
        "A message that others publish on channel \"a\" publishes \"e\" with the same arguments to everyone.";
    assert!(is_right && text.contains(line), "{text}");
}
