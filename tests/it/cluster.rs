//! Several processes on one Redis are one server to their clients: throngs among themselves, and throngs with Node's servers of
//! Socket.IO. While Redis is away, each goes on by itself.

use crate::foreign;
use crate::harness::clock::{now, rest};
use crate::harness::raw::{FIN, TEXT, upgrade_head};
use crate::harness::redis::{Cluster, Redis};
use crate::harness::{Client, Deadline, Heard, Raw, Server, WAIT, eventually, frame};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How soon events go between processes again once Redis is back, at the default settings. The issue is how long it may take, and the
/// machine may be busy besides.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// Throngs of two shards each on one Redis.
pub(crate) struct Fleet {
    pub(crate) throngs: Vec<Server>,
    pub(crate) redis: Redis,
}

impl Fleet {
    pub(crate) fn of(count: usize) -> Fleet {
        Fleet::with(count, &[])
    }

    pub(crate) fn with(count: usize, settings: &[&str]) -> Fleet {
        let redis = Redis::start();
        let urls = format!("redis.urls={:?}", [redis.url()]);
        let settings = [&[urls.as_str()], settings].concat();
        let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
        Fleet::start(count, redis, &flags)
    }

    /// The same with flags of the command line.
    pub(crate) fn with_flags(count: usize, flags: &[&str]) -> Fleet {
        let redis = Redis::start();
        let urls = format!("redis.urls={:?}", [redis.url()]);
        Fleet::start(count, redis, &[flags, &["--set", &urls]].concat())
    }

    fn start(count: usize, redis: Redis, flags: &[&str]) -> Fleet {
        let mut throngs: Vec<Server> = (0..count).map(|_| Server::with_flags(flags)).collect();
        for throng in &mut throngs {
            throng.wait_for_log("connected to Redis");
        }
        let fleet = Fleet { throngs, redis };
        // What is for several rooms, for sockets or for all.
        fleet.is_heard_by("throng#/#", count);
        fleet
    }

    /// A client of each throng, all in these rooms.
    pub(crate) fn members(&self, rooms: &[&str]) -> Vec<Client> {
        let members = self.clients(rooms);
        for room in rooms {
            self.room_is_heard_by(room, members.len());
        }
        members
    }

    fn clients(&self, rooms: &[&str]) -> Vec<Client> {
        let mut clients: Vec<Client> = self.throngs.iter().map(Server::client).collect();
        clients.iter_mut().for_each(|client| drop(client.join(rooms)));
        clients
    }

    /// Waits until so many processes listen for a room.
    fn room_is_heard_by(&self, room: &str, processes: usize) {
        self.is_heard_by(&format!("throng:room:{room}"), processes);
    }

    pub(crate) fn is_heard_by(&self, channel: &str, processes: usize) {
        eventually(&format!("{processes} processes listen to {channel}"), || {
            // In a script, since no argument of a program can have a zero byte.
            let channel = channel.replace('\0', "\\0");
            let script = format!("return redis.call('PUBSUB', 'NUMSUB', '{channel}')[2]");
            (self.redis.cli(&["EVAL", &script, "0"]).trim() == processes.to_string()).then_some(())
        });
    }
}

/// Waits until what the first publishes to a room arrives at the others.
fn wait_until_all_hear(room: &str, clients: &mut [Client]) {
    let (first, others) = clients.split_first_mut().expect("there are some");
    let mut heard = vec![false; others.len()];
    eventually("events go between processes", || {
        first.publish(room, "marker", Value::Null);
        for (client, heard) in others.iter_mut().zip(&mut heard) {
            *heard |= client.hear_within(Duration::from_millis(20)).is_some();
        }
        heard.iter().all(|heard| *heard).then_some(())
    });
    // What else of these is under way.
    for client in others {
        while client.hear_within(Duration::from_millis(200)).is_some() {}
    }
}

/// A client of Socket.IO in one namespace.
pub(crate) struct Socket {
    raw: Raw,
    /// What stands before the data of its packets: nothing in the main namespace.
    namespace: String,
    pub(crate) id: String,
}

impl Socket {
    pub(crate) fn open(server: &Server, rooms: &[&str]) -> Socket {
        Socket::open_in(server, "", rooms)
    }

    pub(crate) fn open_in(server: &Server, namespace: &str, rooms: &[&str]) -> Socket {
        let raw = server.socket("/socket.io/?EIO=4&transport=websocket");
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace},") };
        let mut socket = Socket { raw, namespace, id: String::new() };
        assert!(socket.hear().starts_with("0{"), "it is an Engine.IO session");
        socket.say("0", "");
        let joined = socket.data_of("0");
        let joined: Value = serde_json::from_str(&joined).expect("JSON");
        socket.id = joined["sid"].as_str().expect("an id").to_owned();
        for room in rooms {
            socket.ask(&json!(["join", room]));
        }
        socket
    }

    /// Sends a packet of Socket.IO.
    pub(crate) fn say(&mut self, kind: &str, data: &str) {
        let packet = format!("4{kind}{}{data}", self.namespace);
        self.raw.send(frame(FIN | TEXT, packet));
    }

    /// The next packet but pings, which are answered.
    fn hear(&mut self) -> String {
        loop {
            let packet = String::from_utf8(self.raw.frame().payload).expect("text");
            if packet != "2" {
                return packet;
            }
            self.raw.send(frame(FIN | TEXT, "3"));
        }
    }

    /// The next packet is of this kind. Answers what it says.
    pub(crate) fn data_of(&mut self, kind: &str) -> String {
        let packet = self.hear();
        let data = packet.strip_prefix(&format!("4{kind}{}", self.namespace));
        data.unwrap_or_else(|| panic!("not of kind {kind}: {packet}")).to_owned()
    }

    /// Sends an event that wants to be acknowledged, and waits for that.
    pub(crate) fn ask(&mut self, event: &Value) -> Value {
        self.say("2", &format!("7{event}"));
        self.answer()
    }

    fn answer(&mut self) -> Value {
        let answer = self.data_of("3");
        serde_json::from_str(answer.strip_prefix('7').expect("the answer to 7")).expect("JSON")
    }

    /// The next packet is this event.
    fn hears(&mut self, event: Value) {
        assert_eq!(self.data_of("2"), event.to_string());
    }

    /// The next packet is this event and asks, and gets this answer.
    fn is_asked(&mut self, event: &Value, answer: &Value) {
        let packet = self.data_of("2");
        let (id, asked) = packet.split_at(packet.find('[').expect("an array"));
        assert_eq!(asked, event.to_string());
        self.say("3", &format!("{id}{answer}"));
    }
}

#[test]
fn events_reach_all_members_once_and_in_order() {
    const EACH: u64 = 300;
    let fleet = Fleet::of(3);
    let mut members = fleet.members(&["a"]);
    let mut sockets: Vec<Socket> = fleet.throngs.iter().map(|throng| Socket::open(throng, &["a"])).collect();
    let mut publishers: Vec<Client> = fleet.throngs.iter().map(Server::client).collect();
    for number in 0..EACH {
        for (by, publisher) in publishers.iter_mut().enumerate() {
            publisher.say(&json!({"type": "publish", "room": "a", "event": "n", "data": [by, number]}));
        }
    }
    let check = |next: &mut dyn FnMut() -> Value| {
        let mut expected = [0; 3];
        for _ in 0..3 * EACH {
            let data = next();
            let (by, number) = (data[0].as_u64().expect("who"), data[1].as_u64().expect("which"));
            assert_eq!(number, expected[by as usize], "the next of publisher {by}");
            expected[by as usize] += 1;
        }
    };
    for member in &mut members {
        check(&mut || member.event().1);
        member.has_heard_all();
    }
    for socket in &mut sockets {
        check(&mut || {
            let event: Value = serde_json::from_str(&socket.data_of("2")).expect("JSON");
            event[1].clone()
        });
    }
    // One message for each, not one for each member; some are more than one event.
    fleet.throngs.iter().for_each(|throng| throng.wait_for_number("redis/events", 2 * EACH));
}

#[test]
fn all_that_can_be_published_reaches_other_processes() {
    let fleet = Fleet::of(3);
    let mut members = fleet.members(&["a", "b"]);
    let mut publisher = fleet.throngs[0].client();

    publisher.say_binary(&json!({"type": "publish", "room": "a", "event": "bytes"}), &[0, 255, 10, 10]);
    for member in &mut members {
        let head = json!({"type": "event", "room": "a", "event": "bytes"});
        assert_eq!(member.hear(), Heard::Binary(head, vec![0, 255, 10, 10]));
    }
    let data = json!({"deep": [1, "\u{1f642}", null, 0.1]});
    let ack = publisher.ask(json!({"type": "publish", "rooms": ["a", "b"], "event": "both", "data": data}));
    assert_eq!(ack["type"], "ack");
    for member in &mut members {
        assert_eq!(member.event(), ("both".to_owned(), data.clone()));
    }
    let volatile = json!({"type": "publish", "room": "b", "event": "now", "volatile": true});
    assert_eq!(publisher.ask(volatile)["type"], "ack");
    members.iter_mut().for_each(|member| member.hears("b", "now", Value::Null));

    members[1].leave(&["b"]);
    fleet.room_is_heard_by("b", 2);
    let except = json!({"type": "publish", "room": "a", "event": "but", "data": 1, "except": ["b"]});
    assert_eq!(publisher.ask(except)["type"], "ack");
    members[1].hears("a", "but", json!(1));
    publisher.publish("a", "last", json!(2));
    for member in &mut members {
        member.hears("a", "last", json!(2));
        member.has_heard_all();
    }
    // Names that have as many bytes, or as many letters, as the id of a socket are names like others.
    for room in ["Zürich-Hauptbahnhof", "ZürichHauptbahnhofs!", "abcdefghijklmnopqrst"] {
        members.iter_mut().for_each(|member| drop(member.join(&[room])));
        wait_until_all_hear(room, &mut members);
        publisher.publish(room, "here", json!(room));
        members.iter_mut().for_each(|member| member.hears(room, "here", json!(room)));
    }
    // Who publishes to its own room does not get it, here or from elsewhere.
    members[0].publish("a", "own", json!(3));
    members[1].hears("a", "own", json!(3));
    members[2].hears("a", "own", json!(3));
    members.iter_mut().for_each(Client::has_heard_all);
}

#[test]
fn clients_are_asked_and_reached_by_their_ids_wherever_they_are() {
    let fleet = Fleet::of(3);
    let mut sockets: Vec<Socket> = fleet.throngs.iter().map(|throng| Socket::open(throng, &["a"])).collect();
    fleet.room_is_heard_by("a", 3);
    let ids: Vec<String> = sockets.iter().map(|socket| socket.id.clone()).collect();
    let mut publisher = fleet.throngs[1].client();
    for (socket, id) in sockets.iter_mut().zip(&ids) {
        publisher.publish(id, "private", json!(id));
        socket.hears(json!(["private", id]));
    }

    let question = json!({"room": "a", "event": "question", "data": 1, "ask_ms": 10_000});
    let began = now();
    sockets[0].say("2", &format!("7{}", json!(["publish", question])));
    for (number, socket) in sockets.iter_mut().enumerate().skip(1) {
        socket.is_asked(&json!(["question", 1]), &json!([number]));
    }
    let answer = sockets[0].answer();
    let mut answers: Vec<u64> =
        answer[0]["answers"].as_array().expect("answers").iter().filter_map(Value::as_u64).collect();
    answers.sort_unstable();
    assert_eq!((answers, &answer[0]["missing"]), (vec![1, 2], &json!(0)), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(5), "who has all answers waits no longer");

    // One does not answer.
    let question = json!({"room": "a", "event": "question", "data": 2, "ask_ms": 700});
    sockets[2].say("2", &format!("7{}", json!(["publish", question])));
    sockets[0].is_asked(&json!(["question", 2]), &json!(["here"]));
    assert_eq!(sockets[2].answer(), json!([{"answers": ["here"], "missing": 1}]));
}

#[test]
fn what_a_server_sends_to_all_reaches_native_clients_too() {
    let fleet = Fleet::of(2);
    let mut natives = fleet.clients(&["a"]);
    let mut sockets: Vec<Socket> = fleet.throngs.iter().map(|throng| Socket::open(throng, &["a"])).collect();
    let emit = |args: Value, rooms: Value| {
        let packet = json!({"type": 2, "data": args, "nsp": "/"});
        let data = json!({"packet": packet, "opts": {"rooms": rooms, "except": [], "flags": {}}});
        let message = json!({"type": 3, "uid": "another", "nsp": "/", "data": data});
        fleet.redis.cli(&["PUBLISH", "throng#/#", &message.to_string()]);
    };
    emit(json!(["one", {"n": 1}]), json!([]));
    emit(json!(["several", 1, "two"]), json!(["a", "b"]));
    emit(json!(["none"]), json!([]));
    for native in &mut natives {
        assert_eq!(native.message(), json!({"type": "event", "event": "one", "data": {"n": 1}}));
        native.hears("a", "several", json!([1, "two"]));
        assert_eq!(native.message(), json!({"type": "event", "event": "none", "data": null}));
        native.has_heard_all();
    }
    for socket in &mut sockets {
        socket.hears(json!(["one", {"n": 1}]));
        socket.hears(json!(["several", 1, "two"]));
        socket.hears(json!(["none"]));
    }
}

#[test]
fn namespaces_are_apart_everywhere() {
    let fleet = Fleet::with(2, &[r#"socketio.namespaces=["/","/guild/*"]"#]);
    let mut natives = fleet.members(&["a"]);
    let mut guild: Vec<Socket> =
        fleet.throngs.iter().map(|throng| Socket::open_in(throng, "/guild/7", &["a"])).collect();
    fleet.is_heard_by("throng#/guild/7#", 2);
    fleet.room_is_heard_by("/guild/7\0a", 2);
    guild[0].ask(&json!(["publish", "a", "one", {"in": "guild"}]));
    guild[1].hears(json!(["one", {"in": "guild"}]));
    let id = guild[0].id.clone();
    guild[1].ask(&json!(["publish", {"room": id, "event": "private", "data": 1}]));
    guild[0].hears(json!(["private", 1]));
    natives[0].publish("a", "main", json!(2));
    natives[1].hears("a", "main", json!(2));
    natives.iter_mut().for_each(Client::has_heard_all);
    drop(guild);
    fleet.is_heard_by("throng#/guild/7#", 0);
}

#[test]
fn throngs_are_one_on_a_cluster_of_redis() {
    let redis = Cluster::start();
    let urls = format!("redis.urls={:?}", redis.urls());
    let throngs: Vec<Server> = (0..3).map(|_| Server::with(&[&urls, "redis.kind=cluster"])).collect();
    let rooms = ["a", "b", "c", "d", "e", "f"];
    let mut members: Vec<Client> = throngs.iter().map(Server::client).collect();
    members.iter_mut().for_each(|member| drop(member.join(&rooms)));
    for room in rooms {
        wait_until_all_hear(room, &mut members);
    }
    for number in 0..100 {
        for room in rooms {
            members[0].publish(room, "n", json!(number));
        }
    }
    for member in &mut members[1..] {
        // In order in each room; rooms are on different servers.
        let mut next = [0; 6];
        for _ in 0..600 {
            let event = member.message();
            let place = rooms.iter().position(|room| event["room"] == *room).expect("one of these");
            assert_eq!(event["data"], next[place], "{event}");
            next[place] += 1;
        }
        member.has_heard_all();
    }
}

#[test]
fn a_process_listens_for_the_rooms_that_it_has_members_of() {
    let fleet = Fleet::of(2);
    let mut members = fleet.members(&["a", "b"]);
    let more = fleet.throngs[0].client();
    members[0].leave(&["a"]);
    fleet.room_is_heard_by("a", 1);
    members[0].join(&["a"]);
    fleet.room_is_heard_by("a", 2);
    let gone = members.remove(0);
    assert_eq!(gone.close(1000), 1000);
    fleet.room_is_heard_by("b", 1);
    drop((members, more));
    for room in ["a", "b"] {
        fleet.room_is_heard_by(room, 0);
    }
}

#[test]
fn a_process_starts_without_redis_and_finds_it_later() {
    let mut redis = Redis::start();
    redis.kill();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let throngs: Vec<Server> = (0..2).map(|_| Server::with(&[&urls])).collect();
    let mut members: Vec<Client> = throngs.iter().map(Server::client).collect();
    members.iter_mut().for_each(|member| drop(member.join(&["a"])));
    throngs[0].client().publish("a", "here", json!(1));
    members[0].hears("a", "here", json!(1));
    assert_eq!(throngs[0].control("/ready").json()["redis"], "down");
    redis.start_again();
    wait_until_all_hear("a", &mut members);
    eventually("it is said", || (throngs[0].control("/ready").json()["redis"] == "up").then_some(()));
}

#[test]
fn while_redis_is_away_each_process_goes_on_and_a_gap_is_told() {
    let mut fleet = Fleet::of(2);
    let mut members = fleet.members(&["a"]);
    let mut listeners: Vec<Client> = fleet.throngs.iter().map(Server::client).collect();
    listeners.iter_mut().for_each(|listener| drop(listener.join(&["throng:gaps"])));
    let mut publisher = fleet.throngs[0].client();
    publisher.publish("a", "before", json!(1));
    members.iter_mut().for_each(|member| member.hears("a", "before", json!(1)));

    fleet.redis.kill();
    for throng in &mut fleet.throngs {
        throng.wait_for_log("lost Redis");
    }
    for number in 0..100 {
        publisher.publish("a", "meanwhile", json!(number));
        members[0].hears("a", "meanwhile", json!(number));
    }
    fleet.redis.start_again();
    let began = now();
    wait_until_all_hear("a", &mut members);
    assert!(began.elapsed() < BACK_WITHIN, "it took {:?}", began.elapsed());
    for listener in &mut listeners {
        let (event, data) = listener.event();
        assert_eq!(event, "gap");
        let [from, to] = ["from_ms", "to_ms"].map(|key| data[key].as_u64().expect("a time"));
        assert!(from < to, "{data}");
        listener.has_heard_all();
    }
    // Nothing of the time in between comes later.
    members.iter_mut().for_each(Client::has_heard_all);
    publisher.publish("a", "after", json!(2));
    members.iter_mut().for_each(|member| member.hears("a", "after", json!(2)));
}

/// How many lines of the log have this message.
fn count_of(throng: &Server, message: &str) -> usize {
    throng.log().lines().filter(|line| line.contains(&format!("{message:?}"))).count()
}

#[test]
fn what_keeps_redis_from_being_used_is_in_the_log_once() {
    const AWAY: &str = "cannot connect to Redis";
    const GIVEN_UP: &str = "nothing is published to Redis until it is back";
    let redis = Redis::with(&["--requirepass right"]);
    let url = format!("redis://:sesame@127.0.0.1:{}", redis.port());
    let mut throng = Server::with(&[&format!("redis.urls={:?}", [url])]);
    let line = throng.wait_for_log(AWAY);
    let fault = line["fields"]["fault"].as_str().expect("why");
    assert!(fault.starts_with("denied: "), "{line}");
    throng.wait_for_log(GIVEN_UP);
    let denied = |throng: &Server| throng.metrics().sum("throng_redis_faults_total", &["reason=\"denied\""]);
    eventually("it has tried often", || (denied(&throng) >= 10.0).then_some(()));
    assert_eq!((count_of(&throng, AWAY), count_of(&throng, GIVEN_UP)), (1, 1));
    assert!(!throng.log().contains("sesame"), "a password is in the log");
    redis.cli(&["-a", "right", "CONFIG", "SET", "requirepass", "sesame"]);
    throng.wait_for_log("connected to Redis");
}

#[test]
fn limits_that_redis_does_not_count_for_are_in_the_log_once() {
    const LOCAL: &str = "limits on connections are those of this process alone";
    const SHARED: &str = "limits on connections are counted over all processes again";
    let mut fleet = Fleet::with(1, &["limits.connections_per_ip_max=50"]);
    let _client = fleet.throngs[0].client();
    fleet.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let throng = &mut fleet.throngs[0];
    let line = throng.wait_for_log(LOCAL);
    assert!(line["fields"]["fault"].as_str().is_some_and(|fault| fault.contains("OOM")), "{line}");
    rest(Duration::from_millis(500));
    fleet.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    throng.wait_for_log(SHARED);
    assert_eq!((count_of(throng, LOCAL), count_of(throng, SHARED)), (1, 1));
}

/// Publishes these messages as a process that has much to say, and waits until Redis has taken them.
fn flood(redis: &Redis, channel: &str, messages: impl Iterator<Item = Value>) {
    let mut commands = Vec::new();
    let mut count = 0;
    for message in messages {
        let words = ["PUBLISH", channel, &message.to_string()];
        let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
        commands.extend_from_slice(b"*3\r\n");
        words.iter().for_each(|each| commands.extend_from_slice(word(each).as_bytes()));
        count += 1;
    }
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).expect("Redis serves");
    stream.set_read_timeout(Some(WAIT)).expect("a good timeout");
    let reading = stream.try_clone().expect("there are descriptors");
    let taken =
        std::thread::spawn(move || BufReader::new(reading).lines().take(count).filter(Result::is_ok).count());
    stream.write_all(&commands).expect("Redis takes them");
    assert_eq!(taken.join().expect("it reads"), count);
}

#[test]
fn a_flood_of_orders_and_questions_stops_nobody() {
    const SOCKETS: usize = 500;
    /// The issue is that there was no answer for half a minute.
    const ANSWER_WITHIN: Duration = Duration::from_secs(1);
    const MEMORY_BYTES_MORE: u64 = 192 << 20;
    let fleet = Fleet::with(1, &["limits.connections_per_ip_max=0"]);
    let throng = &fleet.throngs[0];
    // On both shards.
    let mut clients = throng.crowd(2);
    let _sockets: Vec<Socket> = (0..SOCKETS).map(|_| Socket::open(throng, &[])).collect();
    let memory_bytes = throng.resident_bytes();
    let refused = || throng.metrics().sum("throng_redis_refused_total", &[]);
    let everybody = json!({"rooms": [], "except": [], "flags": {}});
    let rooms: Vec<String> = (0..20).map(|room| format!("{room:0100}")).collect();
    let message = |kind: u8, data: Value| json!({"uid": "flood", "nsp": "/", "type": kind, "data": data});
    let mut answers_for = |time: Duration| {
        let deadline = Deadline::after(time);
        let mut memory_bytes_max = 0;
        while !deadline.is_over() {
            for client in &mut clients {
                let began = now();
                client.ask(json!({"type": "ping"}));
                assert!(began.elapsed() < ANSWER_WITHIN, "it took {:?}", began.elapsed());
            }
            memory_bytes_max = throng.resident_bytes().max(memory_bytes_max);
            rest(Duration::from_millis(20));
        }
        let more = memory_bytes_max.saturating_sub(memory_bytes);
        assert!(more < MEMORY_BYTES_MORE, "{more} bytes more");
    };

    let join = message(4, json!({"opts": everybody, "rooms": rooms}));
    flood(&fleet.redis, "throng#/#", std::iter::once(join.clone()));
    let is_all = |memberships| memberships >= (SOCKETS * rooms.len()) as u64;
    throng.wait_for("memberships", "that of all", is_all);

    // Each answer is a megabyte or two.
    let fetch = |number: usize| message(7, json!({"opts": everybody, "requestId": format!("q{number}")}));
    flood(&fleet.redis, "throng#/#", (0..500).map(fetch));
    answers_for(Duration::from_secs(3));
    let before = refused();
    assert!(before > 0.0, "not so many questions are open");

    flood(&fleet.redis, "throng#/#", (0..8_000).map(|_| join.clone()));
    answers_for(Duration::from_secs(4));
    assert!(refused() > before, "not so many orders wait");
}

#[test]
fn a_node_server_with_the_classic_adapter_and_throngs_are_one() {
    let redis = Redis::start();
    mix_with_node(&[redis.url()], "server", "classic", 12);
}

#[test]
fn a_node_server_with_the_sharded_adapter_and_throngs_are_one() {
    let redis = Redis::start();
    mix_with_node(&[redis.url()], "server", "sharded", 11);
}

#[test]
fn a_node_server_and_throngs_are_one_on_a_cluster_of_redis() {
    let redis = Cluster::start();
    mix_with_node(&redis.urls(), "cluster", "sharded", 11);
}

/// Runs the checks of Node on a server of its own and two throngs of two shards each.
fn mix_with_node(urls: &[String], kind: &str, adapter: &str, checks_min: u32) {
    let cluster = if adapter == "classic" { "socketio" } else { "socketio-sharded" };
    let settings = [
        foreign::PATIENT.to_owned(),
        r#"socketio.namespaces=["/","/guild/*"]"#.to_owned(),
        format!("redis.urls={urls:?}"),
        format!("redis.kind={kind}"),
        format!("redis.cluster={cluster}"),
    ];
    let flags: Vec<&str> = ["--config", foreign::SOCKETIO]
        .into_iter()
        .chain(settings.iter().flat_map(|setting| ["--set", setting.as_str()]))
        .collect();
    let throngs = [Server::with_flags(&flags), Server::with_flags(&flags)];
    let mut script = foreign::node("node/cluster.mjs");
    script.args(throngs.iter().map(|throng| format!("http://{}", throng.address())));
    script.args([format!("--redis={}", urls.join(",")), format!("--adapter={adapter}")]);
    foreign::check(script, foreign::NODE, checks_min);
    for throng in &throngs {
        throng.wait_for_number("sockets", 0);
        throng.wait_for_number("rooms", 0);
    }
}

/// The status that a client of this process is answered.
fn status(server: &Server) -> u16 {
    let mut raw = Raw::connect(server.address());
    raw.send(upgrade_head("/ws", ""));
    raw.response_to_head().status
}

#[test]
fn the_connections_of_an_address_are_counted_over_all_processes() {
    let mut fleet = Fleet::with(2, &["limits.connections_per_ip_max=3"]);
    let refused = |throng: usize| {
        eventually("an address that has its three is refused", || {
            (status(&fleet.throngs[throng]) == 429).then_some(())
        });
    };
    let mut one: Vec<Client> = (0..2).map(|_| fleet.throngs[0].client()).collect();
    let two = fleet.throngs[1].client();
    refused(0);
    refused(1);
    // A place that is free is free everywhere.
    one.pop();
    eventually("there is a place again", || (status(&fleet.throngs[1]) == 101).then_some(()));
    // Who has died counts no more, after a while.
    let three = eventually("a third one", || {
        let sums = fleet.redis.cli(&["HGET", "{throng}:connections:sums", "127.0.0.1"]);
        (sums.trim() == "2").then(|| fleet.throngs[0].client())
    });
    refused(1);
    fleet.throngs[0].signal(Signal::KILL);
    fleet.throngs[0].wait_for_exit();
    drop((one, three));
    eventually("the places of the dead are free", || (status(&fleet.throngs[1]) == 101).then_some(()));
    let four = fleet.throngs[1].client();
    // Without Redis the limit holds in each process.
    fleet.redis.kill();
    let five = fleet.throngs[1].client();
    assert_eq!(status(&fleet.throngs[1]), 429);
    drop((two, four, five));
}

#[test]
fn redis_takes_the_configuration_that_is_shipped() {
    let path = concat!("--include ", env!("CARGO_MANIFEST_DIR"), "/tuning/redis.conf");
    // The last word on the port is the test's.
    let redis = Redis::with(&[path, "--port {port}"]);
    let limit = redis.cli(&["CONFIG", "GET", "client-output-buffer-limit"]);
    assert!(limit.contains("pubsub 268435456 67108864 30"), "{limit}");
    assert!(redis.cli(&["CONFIG", "GET", "maxmemory-policy"]).contains("noeviction"));
}
