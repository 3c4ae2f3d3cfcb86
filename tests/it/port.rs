//! Several processes on one port of one machine: the kernel gives a connection to any of them, and each request finds its session.

use crate::foreign;
use crate::harness::clock::rest;
use crate::harness::redis::Redis;
use crate::harness::{Raw, Response, Server, eventually};
use data_encoding::BASE64URL_NOPAD;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect,
    sendmsg, socket,
};
use rustix::process::{Signal, geteuid};
use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// Where Engine.IO messages come back as they are.
const ECHO: &str = "engineio.echo_path=/engine.io/";
/// For how long clients publish while the processes are restarted.
const RESTARTS_TIME: Duration = Duration::from_secs(8);

/// Processes on one port, of one shard each: what is handed over goes from one to another.
struct Port {
    throngs: Vec<Server>,
    settings: Vec<String>,
}

impl Port {
    fn shared_by(count: usize, settings: &[&str]) -> Port {
        let settings = [&["server.share_port=true", "server.shards=1", ECHO], settings].concat();
        let mut port =
            Port { throngs: Vec::new(), settings: settings.into_iter().map(str::to_owned).collect() };
        (0..count).for_each(|_| port.start_one());
        port
    }

    /// One more process.
    fn start_one(&mut self) {
        let listen = self.throngs.first().map(|first| format!("server.listen={}", first.address()));
        let settings: Vec<&str> = self.settings.iter().chain(&listen).map(String::as_str).collect();
        self.throngs.push(Server::with(&settings));
    }

    fn address(&self) -> SocketAddr {
        self.throngs[0].address()
    }

    /// The sum of a number of `/stats` over all processes.
    fn number(&self, path: &str) -> u64 {
        self.throngs.iter().map(|throng| throng.number(path)).sum()
    }

    fn request(&self, method: &str, query: &str, body: &str) -> Response {
        request(self.address(), method, query, body)
    }

    /// The sockets at which the processes take what others give them.
    fn doors(&self) -> Vec<String> {
        let start = format!("throng/{}/", self.address().port());
        let sockets = fs::read_to_string("/proc/net/unix").expect("Linux");
        let names = sockets.lines().filter_map(|line| line.split_once('@')).map(|(_, name)| name.to_owned());
        names.filter(|name| name.starts_with(&start)).collect()
    }
}

/// One request of Engine.IO on a connection of its own.
fn request(address: SocketAddr, method: &str, query: &str, body: &str) -> Response {
    let mut raw = Raw::connect(address);
    raw.send(format!(
        "{method} /engine.io/?EIO=4&transport=polling{query} HTTP/1.1\r\nHost: throng\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    raw.response()
}

/// Opens a session that polls, and answers its id.
fn open(port: &Port) -> String {
    let response = port.request("GET", "", "");
    assert_eq!(response.status, 200, "{response:?}");
    let packet: serde_json::Value = serde_json::from_str(&response.body[1..]).expect("an open packet");
    packet["sid"].as_str().expect("an id").to_owned()
}

/// Says something on a session until that has come from another process, and hears each time what it has said.
fn is_handed_over(port: &Port, sid: &str) {
    let before = port.number("totals/handovers");
    let query = format!("&sid={sid}");
    eventually("a request comes to another process", || {
        let response = port.request("POST", &query, "4hello");
        assert_eq!((response.status, response.body.as_str()), (200, "ok"));
        assert_eq!(port.request("GET", &query, "").body, "4hello");
        (port.number("totals/handovers") > before + 4).then_some(())
    });
}

#[test]
fn a_request_finds_its_session_in_whatever_process_it_is() {
    let port = Port::shared_by(3, &[]);
    let sids: Vec<String> = (0..6).map(|_| open(&port)).collect();
    for sid in &sids {
        is_handed_over(&port, sid);
    }
    // It is counted where its session is.
    assert_eq!(port.number("connections"), 6);
    eventually("no socket is left", || (port.number("sockets") == 0).then_some(()));
    // A body that comes in pieces, and two requests on one connection, which stays with the second one's process.
    let large = "x".repeat(300_000);
    for sid in &sids {
        let mut raw = Raw::connect(port.address());
        let body = format!("4{large}");
        raw.send(format!(
            "POST /engine.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: throng\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ));
        rest(Duration::from_millis(5));
        raw.send(&body);
        assert_eq!(raw.response().body, "ok");
        for other in [&sids[0], sid] {
            raw.send(format!(
                "POST /engine.io/?EIO=4&transport=polling&sid={other} HTTP/1.1\r\nHost: throng\r\nContent-Length: 2\r\n\r\n4a"
            ));
            assert_eq!(raw.response().body, "ok");
        }
        let query = format!("&sid={sid}");
        assert!(port.request("GET", &query, "").body.starts_with(&body));
    }
    // And all can be closed from anywhere.
    for sid in &sids {
        assert_eq!(port.request("POST", &format!("&sid={sid}"), "1").body, "ok");
    }
    eventually("nobody is left", || (port.number("connections") == 0).then_some(()));
}

#[test]
fn a_session_moves_to_a_websocket_that_came_to_another_process() {
    let port = Port::shared_by(2, &[]);
    for _ in 0..12 {
        let sid = open(&port);
        let mut raw = Raw::connect(port.address());
        raw.upgrade(&format!("/engine.io/?EIO=4&transport=websocket&sid={sid}"));
        let mut say = |text: &str| raw.send(crate::harness::frame(0x81, text));
        say("2probe");
        say("5");
        say("4hello");
        assert_eq!(raw.frame().payload, b"3probe");
        assert_eq!(raw.frame().payload, b"4hello");
    }
    assert!(port.number("totals/handovers") > 0, "half of them came to the other one");
    assert_eq!(port.number("totals/session_upgrades"), 12);
}

#[test]
fn a_session_that_moves_is_told_of_a_drain_when_it_has_moved() {
    // Its client has stopped polling, and would otherwise wait for nothing until a ping is late.
    for moves in [true, false] {
        let port = Port::shared_by(1, &["drain.spread_ms=0", "drain.timeout_ms=20000"]);
        let sid = open(&port);
        let mut raw = Raw::connect(port.address());
        raw.upgrade(&format!("/engine.io/?EIO=4&transport=websocket&sid={sid}"));
        raw.send(crate::harness::frame(0x81, "2probe"));
        assert_eq!(raw.frame().payload, b"3probe");
        let [mut throng] = <[Server; 1]>::try_from(port.throngs).expect("one");
        throng.signal(Signal::TERM);
        throng.wait_for_log("draining");
        rest(Duration::from_millis(200));
        if moves {
            raw.send(crate::harness::frame(0x81, "5"));
            assert_eq!(raw.frame().code().0, 1001);
        }
        drop(raw);
        assert_eq!(throng.wait_for_exit().code(), Some(0));
        assert!(!throng.log().contains("still running"));
    }
}

#[test]
fn a_session_that_nobody_has_is_unknown() {
    let mut port = Port::shared_by(2, &[]);
    let unknown = |port: &Port, sid: &str| {
        let query = format!("&sid={sid}");
        for (method, body) in [("GET", ""), ("POST", "4hello")] {
            let response = port.request(method, &query, body);
            assert_eq!(response.status, 400);
            assert_eq!(response.json()["message"], "Session ID unknown");
        }
    };
    let mut sids = vec![open(&port)];
    let mut id = BASE64URL_NOPAD.decode(sids[0].as_bytes()).expect("base64");
    // Another process, which there is not; none; then no such shard in either.
    id[5] ^= 0xff;
    unknown(&port, &BASE64URL_NOPAD.encode(&id));
    id[5..7].copy_from_slice(&[0, 0]);
    unknown(&port, &BASE64URL_NOPAD.encode(&id));
    // A process that has died takes its sessions along.
    let mut second = port.throngs.pop().expect("there are two");
    while second.number("connections") == 0 {
        sids.push(open(&port));
    }
    let lost = second.number("connections");
    second.signal(Signal::KILL);
    second.wait_for_exit();
    drop(second);
    let known = sids.iter().filter(|sid| {
        let response = port.request("POST", &format!("&sid={sid}"), "4hello");
        response.status == 200
    });
    assert_eq!(known.count() as u64 + lost, sids.len() as u64);
    let refused = port.throngs[0].metrics().sum("throng_handovers_refused_total", &[]);
    assert!(refused >= lost as f64, "it was said that nobody was there: {refused} of {lost}");
}

#[test]
fn who_does_not_share_does_not_get_the_port() {
    let port = Port::shared_by(1, &[]);
    let listen = port.address().to_string();
    let outcome = crate::harness::server::run(&[], &["serve", "--listen", &listen, "--control", "off"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("server.listen") && outcome.stderr.contains("in use"), "{outcome:?}");
}

#[test]
fn processes_find_each_other_where_they_see_nothing_else_of_the_machine() {
    if !geteuid().is_root() {
        eprintln!("only root can mount a /proc: not tested");
        return;
    }
    let one = Server::with_processes_only(&["--set", "server.share_port=true", "--set", "server.shards=1"]);
    let listen = format!("server.listen={}", one.address());
    let shares = ["--set", "server.share_port=true", "--set", "server.shards=1", "--set", &listen];
    let other = Server::with_processes_only(&shares);
    assert_eq!(one.address(), other.address());
    // What alerts go by is known there, too.
    let metrics = other.metrics();
    for name in ["throng_memory_max_bytes", "process_resident_memory_bytes", "process_max_fds"] {
        assert!(metrics.sum(name, &[]) > 0.0, "{name}");
    }
}

#[test]
fn a_port_that_somebody_has_for_himself_is_not_shared() {
    let alone = Server::start();
    let listen = alone.address().to_string();
    let sets = ["--set", "server.share_port=true"];
    let args = [&["serve", "--listen", &listen, "--control", "off"][..], &sets].concat();
    let outcome = crate::harness::server::run(&[], &args);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("server.listen") && outcome.stderr.contains("in use"), "{outcome:?}");
}

#[test]
fn stock_clients_need_not_stay_with_one_process() {
    let redis = Redis::start();
    let port = Port::shared_by(2, &[foreign::PATIENT, &format!("redis.urls={:?}", [redis.url()])]);
    let mut script = foreign::node("node/fleet.mjs");
    script.arg(format!("http://{}", port.address()));
    foreign::check(script, foreign::NODE, 3);
    for throng in &port.throngs {
        assert!(throng.number("totals/handovers") > 0, "each had sessions, and was given sockets");
        assert_eq!(throng.metrics().sum("throng_rejects_total", &["reason=\"engine_io\""]), 0.0);
        assert_eq!(throng.metrics().sum("throng_handovers_refused_total", &[]), 0.0);
        throng.wait_for_number("connections", 0);
        throng.wait_for_number("sockets", 0);
    }
}

#[test]
fn an_address_has_its_limit_in_all_processes_together() {
    let redis = Redis::start();
    let mut port =
        Port::shared_by(2, &["limits.connections_per_ip_max=4", &format!("redis.urls={:?}", [redis.url()])]);
    port.throngs.iter_mut().for_each(|throng| drop(throng.wait_for_log("connected to Redis")));
    let (mut opened, mut refused) = (0, 0);
    eventually("the address has as many as it may", || {
        match port.request("GET", "", "").status {
            200 => (opened, refused) = (opened + 1, 0),
            status => {
                assert_eq!(status, 429);
                refused += 1;
            }
        }
        // They tell each other ten times a second.
        rest(Duration::from_millis(250));
        (refused == 8).then_some(())
    });
    // A process that has had none of the address may have let in one more.
    assert!((4..=5).contains(&opened), "{opened}");
    assert_eq!(port.number("connections"), opened);
}

#[test]
fn processes_are_restarted_one_after_the_other() {
    let redis = Redis::start();
    let settings = [foreign::PATIENT, "drain.spread_ms=300", &format!("redis.urls={:?}", [redis.url()])];
    let mut port = Port::shared_by(2, &settings);
    let mut script = foreign::node("node/fleet.mjs");
    script.arg(format!("http://{}", port.address()));
    script.arg(format!("--for-ms={}", RESTARTS_TIME.as_millis()));
    let clients = thread::spawn(move || foreign::check(script, foreign::NODE, 3));
    eventually("all are there", || (port.number("connections") == 50).then_some(()));
    for _ in 0..2 {
        // The new one first, so that there are always two.
        port.start_one();
        let mut old = port.throngs.remove(0);
        old.signal(Signal::TERM);
        assert_eq!(old.wait_for_exit().code(), Some(0));
        // Of who has lost its connection on the way, what it had may be there for a while.
        eventually("all are back", || (port.number("connections") >= 50).then_some(()));
    }
    clients.join().expect("all went well for the clients");
}

#[test]
fn who_comes_to_one_that_drains_gets_to_another() {
    let settings = ["drain.spread_ms=0", "drain.timeout_ms=2000"];
    let mut port = Port::shared_by(2, &settings);
    let address = port.address();
    let [stop, answered] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            thread::spawn(move || {
                while stop.load(Relaxed) == 0 {
                    let mut raw = Raw::connect(address);
                    // Some have connected and not asked yet when it begins.
                    rest(Duration::from_millis(3));
                    raw.send("GET /health HTTP/1.1\r\nHost: throng\r\nConnection: close\r\n\r\n");
                    match raw.try_response() {
                        Ok(response) => assert_eq!(response.status, 200),
                        Err(error) => panic!("a request was lost: {error}"),
                    }
                    answered.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    eventually("some are answered", || (answered.load(Relaxed) > 100).then_some(()));
    let mut old = port.throngs.remove(0);
    old.signal(Signal::TERM);
    assert_eq!(old.wait_for_exit().code(), Some(0));
    let before = answered.load(Relaxed);
    eventually("and more", || (answered.load(Relaxed) > before + 100).then_some(()));
    stop.store(1, Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("nothing was lost"));
    assert!(port.number("totals/handovers") > 0, "some came to it while it drained");
}

/// A message to a process that takes sockets: what is said, and what comes with it.
fn give(door: &str, bytes: &[u8], gifts: &[BorrowedFd<'_>]) -> OwnedFd {
    let caller = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
    connect(&caller, &SocketAddrUnix::new_abstract_name(door.as_bytes()).expect("a name"))
        .expect("it listens");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !gifts.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(gifts)));
    }
    // It may have been closed by now: more than some that say nothing are not kept.
    sendmsg(&caller, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).ok();
    caller
}

#[test]
fn nonsense_from_other_processes_does_no_harm() {
    let port = Port::shared_by(2, &[]);
    let sid = open(&port);
    is_handed_over(&port, &sid);
    let doors = port.doors();
    assert_eq!(doors.len(), 2, "{doors:?}");
    eventually("no socket is left", || (port.number("sockets") == 0).then_some(()));
    let before: Vec<usize> = port.throngs.iter().map(Server::descriptors).collect();

    let file = fs::File::open("/dev/null").expect("it is there");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let mut held = Vec::new();
    for door in &doors {
        for _ in 0..3 {
            let client = Raw::connect(listener.local_addr().expect("it has one")).into_stream();
            let head = b"GET /health HTTP/1.1\r\nHost: throng\r\n\r\n";
            let right = [&[1, 0][..], head].concat();
            held.push(give(door, b"", &[]));
            held.push(give(door, b"", &[client.as_fd()]));
            held.push(give(door, &[1, 0], &[]));
            held.push(give(door, &right, &[]));
            held.push(give(door, &[1, 1], &[client.as_fd()]));
            held.push(give(door, &[1, 255], &[client.as_fd()]));
            held.push(give(door, &[2, 0], &[client.as_fd()]));
            held.push(give(door, &right, &[client.as_fd(), client.as_fd()]));
            held.push(give(door, &[1; 200 << 10], &[client.as_fd()]));
            held.push(give(door, &right, &[file.as_fd()]));
            held.push(give(door, &right, &[reader.as_fd()]));
            held.push(give(door, &right, &[listener.as_fd()]));
            held.push(give(door, &right, &[held[0].as_fd()]));
        }
        // More than are kept say nothing.
        for _ in 0..200 {
            let caller = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
            connect(&caller, &SocketAddrUnix::new_abstract_name(door.as_bytes()).expect("a name"))
                .expect("it listens");
            held.push(caller);
        }
    }
    is_handed_over(&port, &sid);
    drop(held);
    eventually("nothing of it is left", || {
        let now: Vec<usize> = port.throngs.iter().map(Server::descriptors).collect();
        (now.iter().zip(&before).all(|(now, before)| now <= before) && port.number("sockets") == 0)
            .then_some(())
    });
    is_handed_over(&port, &sid);
}

#[test]
fn other_users_are_not_listened_to() {
    if !geteuid().is_root() {
        // Nobody else may say that he is another.
        return;
    }
    let port = Port::shared_by(1, &[]);
    let script = "import array, socket, sys\n\
        client = socket.create_connection(('127.0.0.1', int(sys.argv[2])))\n\
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
        door.connect('\\0' + sys.argv[1])\n\
        head = b'\\x01\\x00GET /health HTTP/1.1\\r\\nHost: throng\\r\\n\\r\\n'\n\
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [client.fileno()]))]\n\
        try:\n    door.sendmsg([head], rights)\n    door.settimeout(10)\n    door.recv(1)\n\
        except (BrokenPipeError, ConnectionResetError):\n    pass\n";
    let taken = |user: Option<u32>| {
        let before = port.number("totals/handovers");
        let mut python = Command::new("python3");
        python.args(["-c", script, &port.doors()[0], &port.address().port().to_string()]).current_dir("/");
        if let Some(user) = user {
            python.uid(user);
        }
        let output = python.output().expect("Python is installed (.ci/setup)");
        assert!(output.status.success(), "{output:?}");
        rest(Duration::from_millis(50));
        port.number("totals/handovers") - before
    };
    assert_eq!(taken(Some(65_534)), 0, "it is not ours");
    assert_eq!(taken(None), 1, "the same of this user is taken");
}
