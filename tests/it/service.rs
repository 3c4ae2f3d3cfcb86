//! Under systemd's service manager, whose part a stand-in plays: what it is told, its watchdog, the listeners that it keeps and those that it
//! opens.

use crate::harness::clock::{now, rest};
use crate::harness::manager::Manager;
use crate::harness::raw::{FIN, TEXT};
use crate::harness::redis::free_port;
use crate::harness::server::PROGRAM;
use crate::harness::{Client, Raw, Server, WAIT, frame};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("throng-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("it can be made");
        Folder(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// An address that is free now: what is kept over a restart has to be known beforehand.
fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// A whole life at an address: in, a room, an event, out.
fn is_served(address: SocketAddr) {
    let mut client = Client::connect(address);
    client.join(&["lobby"]);
    client.say(&json!({"type": "publish", "room": "lobby", "event": "here", "data": 1, "echo": true}));
    client.hears("lobby", "here", json!(1));
    client.close(1000);
}

/// The names of the descriptors that the manager keeps.
fn stored(manager: &mut Manager) -> Vec<String> {
    manager.order("status");
    manager.wait_for("status").names("stored").into_iter().map(str::to_owned).collect()
}

/// Somebody who comes at any time is let in. Answers whether it was served then, or told to come back.
fn is_served_or_told(address: SocketAddr) -> bool {
    let mut socket = Raw::connect(address);
    socket.upgrade("/ws");
    socket.send(frame(FIN | TEXT, r#"{"type":"ping"}"#));
    let answer = socket.frame();
    if answer.payload == br#"{"type":"pong"}"# {
        return true;
    }
    assert!(answer.payload.starts_with(br#"{"type":"disconnect""#), "{answer:?}");
    assert_eq!(socket.frame().code().0, 1001);
    false
}

/// Clients that come one after the other, from several threads, until `act` is done: each has to be let in, and none refused.
fn while_clients_come<T>(address: SocketAddr, act: impl FnOnce() -> T) -> (T, u32) {
    let (is_over, served) = (AtomicBool::new(false), AtomicU32::new(0));
    let come = || {
        while !is_over.load(Ordering::Relaxed) {
            served.fetch_add(u32::from(is_served_or_told(address)), Ordering::Relaxed);
        }
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(come)).collect();
        let done = act();
        is_over.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().expect("all were let in"));
        done
    });
    (done, served.into_inner())
}

#[test]
fn the_manager_is_told_of_the_start_and_the_end() {
    let mut manager = Manager::of_throng(&[], &["drain.notice_ms=300", "drain.timeout_ms=7000"]);
    let pid = manager.start();
    let (address, _) = manager.wait_for_addresses();
    is_served(address);
    let status = manager.wait_for_said("STATUS");
    assert!(status.contains("connections") && status.contains("MiB"), "{status}");
    manager.order("stop");
    let stopping = manager.wait_until("STOPPING=1", |event| event.said("STOPPING") == Some("1"));
    // The notice, the time to drain, and two seconds.
    assert_eq!(stopping.said("EXTEND_TIMEOUT_USEC"), Some("9300000"));
    let exited = manager.wait_for("exited");
    assert_eq!((exited.number("pid"), exited.number("code")), (pid, 0));
}

#[test]
fn the_status_says_how_many_there_are() {
    let mut manager = Manager::of_throng(&[], &[]);
    manager.start();
    let (address, _) = manager.wait_for_addresses();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    clients.iter_mut().for_each(|client| drop(client.join(&["lobby"])));
    let start = now();
    while !manager.wait_for_said("STATUS").starts_with("3 connections, 1 rooms, ") {
        assert!(start.elapsed() < 2 * WAIT, "the status stays behind");
    }
    drop(clients);
}

#[test]
fn a_drain_may_take_longer_than_the_manager_would_wait() {
    let mut manager = Manager::of_throng(
        &["--timeout-stop", "0.5"],
        &["drain.spread_ms=2000", "drain.timeout_ms=5000", "server.shards=1"],
    );
    manager.start();
    let (address, _) = manager.wait_for_addresses();
    let clients: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
    let start = now();
    manager.order("stop");
    clients.into_iter().for_each(|client| assert_eq!(client.closed().0, 1001));
    assert_eq!(manager.wait_for("stopped").text("result"), "stop");
    assert!(start.elapsed() > ms(1_000), "{:?}", start.elapsed());
}

#[test]
fn a_failed_start_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one");
    let mut manager = Manager::of_throng(&[], &[&format!("server.listen={address}")]);
    manager.order("start");
    let status = manager.wait_for_said("STATUS");
    assert!(status.starts_with(&format!("cannot listen on {address} (server.listen)")), "{status}");
    assert_eq!(manager.wait_for("exited").number("code"), 1);
}

#[test]
fn a_manager_in_a_container_has_an_abstract_name() {
    let mut manager = Manager::of_throng(&["--abstract", "--watchdog", "1", "--fdstore-max", "8"], &[]);
    manager.start();
    assert_eq!(manager.wait_for_said("WATCHDOG"), "1");
    assert_eq!(stored(&mut manager).len(), 2);
}

#[test]
fn a_manager_that_does_not_read_holds_nobody_up_and_learns_later_that_it_is_ready() {
    let folder = Folder::new("stuck-manager");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(WAIT)).expect("it has one");
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("it can");
    while filler.send_to(b"X=1", &path).is_ok() {}
    let place = path.to_str().expect("a path of ours");
    let mut server = Server::with_environment(&[("NOTIFY_SOCKET", place), ("WATCHDOG_USEC", "400000")]);
    server.wait_for_log("the service manager cannot be told anything (NOTIFY_SOCKET)");
    is_served(server.address());
    let heard = |what: &str| {
        let mut buffer = [0; 4_096];
        let text =
            manager.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
        text.expect("it comes").contains(what)
    };
    // That it is ready is said again, and all else goes on.
    while !heard("READY=1") {}
    while !heard("WATCHDOG=1") {}
    while filler.send_to(b"X=1", &path).is_ok() {}
    drop(server);
}

#[test]
fn a_watchdog_of_no_time_is_none_and_one_of_next_to_none_is_no_flood() {
    let folder = Folder::new("hasty-manager");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(ms(300))).expect("it has one");
    let place = path.to_str().expect("a path of ours");
    for (microseconds, is_fed) in [("0", false), ("1", true), ("18446744073709551615", true), ("x", false)] {
        let server = Server::with_environment(&[("NOTIFY_SOCKET", place), ("WATCHDOG_USEC", microseconds)]);
        is_served(server.address());
        let start = now();
        let mut buffer = [0; 4_096];
        let mut fed = 0;
        while start.elapsed() < ms(500)
            && let Ok(length) = manager.recv(&mut buffer)
        {
            fed += u32::from(buffer[..length].starts_with(b"WATCHDOG=1"));
        }
        assert!((fed > 0) == is_fed && fed < 100, "{microseconds}: fed {fed} times");
        drop(server);
        // What was still said at the end.
        while manager.recv(&mut buffer).is_ok() {}
    }
}

#[test]
fn a_reload_begins_and_ends() {
    for kind in ["notify", "notify-reload"] {
        let mut manager = Manager::of_throng(&["--type", kind], &[]);
        manager.start();
        manager.order("reload");
        manager.wait_for("reloaded");
        assert!(manager.events().iter().any(|event| event.said("RELOADING") == Some("1")));
    }
}

/// Holds a thread of a process until it ends.
fn hold_thread(pid: u64, name: &str) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/python/hold_thread.py");
    let mut holder = Command::new("python3")
        .args([script, &pid.to_string(), name])
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python is installed (.ci/setup)");
    let mut said = String::new();
    let mut lines = BufReader::new(holder.stdout.take().expect("it is piped"));
    lines.read_line(&mut said).expect("it is text");
    assert_eq!(said, "held\n", "a tracer may stop threads of its own user");
    holder
}

#[test]
fn the_watchdog_is_fed_while_nothing_happens_and_bites_when_a_shard_hangs() {
    let address = free_address();
    let mut manager = Manager::of_throng(
        &["--watchdog", "2", "--restart", "always", "--fdstore-max", "16"],
        &[&format!("server.listen={address}")],
    );
    let pid = manager.start();
    rest(ms(5_000));
    let is_bitten = manager.events().iter().any(|event| event.kind() == "watchdog");
    assert!(!is_bitten, "shards that have nothing to do are alive");
    is_served(address);
    let mut holder = hold_thread(pid, "shard-1");
    let held = now();
    manager.wait_for("watchdog");
    assert!(held.elapsed() < ms(6_000), "{:?}", held.elapsed());
    assert_eq!(manager.wait_for("exited").text("signal"), "SIGABRT");
    assert!(holder.wait().expect("it ends").success());
    manager.wait_for("started");
    is_served(address);
}

#[test]
fn the_watchdog_is_fed_to_the_end_of_a_long_drain() {
    let mut manager =
        Manager::of_throng(&["--watchdog", "1"], &["drain.spread_ms=4000", "drain.timeout_ms=8000"]);
    manager.start();
    let (address, _) = manager.wait_for_addresses();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(address)).collect();
    clients.iter_mut().for_each(|client| drop(client.join(&["lobby"])));
    manager.order("stop");
    for client in clients {
        assert_eq!(client.closed().0, 1001);
    }
    assert_eq!(manager.wait_for("stopped").text("result"), "stop");
    assert!(manager.events().iter().all(|event| event.kind() != "watchdog"));
}

#[test]
fn nobody_is_refused_over_a_restart() {
    for before_254 in [false, true] {
        let address = free_address();
        let options: &[&str] = if before_254 {
            &["--fdstore-max", "16", "--before-254", "--env", "FDSTORE=16"]
        } else {
            &["--fdstore-max", "16"]
        };
        let mut manager =
            Manager::of_throng(options, &[&format!("server.listen={address}"), "drain.spread_ms=300"]);
        let first = manager.start();
        let stored = stored(&mut manager);
        assert_eq!(stored.len(), 2, "one for each shard: {stored:?}");
        let (second, served) = while_clients_come(address, || {
            rest(ms(500));
            manager.order("restart");
            let pid = manager.wait_until("the second", |event| event.kind() == "spawned").number("pid");
            manager.wait_for("started");
            rest(ms(500));
            pid
        });
        assert_ne!(first, second);
        assert!(served > 10, "{served}");
        // Kept as they are, and not once more.
        assert_eq!(self::stored(&mut manager), stored);
    }
}

#[test]
fn clients_are_told_to_come_back_when_somebody_is_there() {
    let address = free_address();
    let settings = [&format!("server.listen={address}"), "drain.spread_ms=1500", "server.shards=1"];
    let mut manager = Manager::of_throng(&["--fdstore-max", "16"], &settings);
    manager.start();
    let mut crowd: Vec<Raw> = (0..8).map(|_| Raw::connect(address)).collect();
    crowd.iter_mut().for_each(|socket| socket.upgrade("/ws"));
    // The clock here begins a little before the drain.
    let start = now();
    manager.order("restart");
    let stopping = manager.wait_until("its end", |event| event.said("STOPPING").is_some());
    for socket in &mut crowd {
        let message: Value = serde_json::from_slice(&socket.frame().payload).expect("it is JSON");
        let retry_ms = message["retry_ms"].as_u64().expect("a number");
        assert!(start.elapsed() + ms(retry_ms) > ms(1_500), "{message} after {:?}", start.elapsed());
        assert!(retry_ms <= 3_001, "{message}");
    }
    drop(crowd);
    let started = manager.wait_for("started");
    assert!(started.at_us > stopping.at_us + 1_400_000, "the next one waits for the drain");
}

#[test]
fn who_waits_while_it_is_away_is_served_by_the_next() {
    let address = free_address();
    let mut manager = Manager::of_throng(
        &["--fdstore-max", "16", "--restart", "on-failure", "--restart-pause", "1"],
        &[&format!("server.listen={address}")],
    );
    manager.start();
    is_served(address);
    manager.order("kill SIGKILL");
    assert_eq!(manager.wait_for("exited").text("signal"), "SIGKILL");
    // More than there are shards, so that some wait at each listener.
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| is_served(address)))));
    manager.wait_for("started");
}

#[test]
fn without_a_store_who_comes_late_is_told_so() {
    let address = free_address();
    let mut manager = Manager::of_throng(&[], &[&format!("server.listen={address}")]);
    manager.start();
    let mut client = Client::connect(address);
    client.join(&["lobby"]);
    manager.order("stop");
    assert_eq!(client.closed().0, 1001);
    manager.wait_for("stopped");
    let refused = Raw::try_connect(address).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_restart_may_change_how_many_shards_there_are_and_where_they_listen() {
    let folder = Folder::new("service");
    let file = folder.path().join("throng.toml");
    let (one, other) = (free_address(), free_address());
    let write = |address: SocketAddr, shards: u32| {
        let text = format!(
            "[server]\nlisten = \"{address}\"\ncontrol = \"off\"\nshards = {shards}\npin = false\n[log]\nformat = \"json\"\n"
        );
        std::fs::write(&file, text).expect("it can be written");
    };
    let program = [PROGRAM, "serve", "--config", file.to_str().expect("it is text")];
    let mut manager = Manager::of(&["--fdstore-max", "16"], &program);
    write(one, 2);
    manager.start();
    is_served(one);
    for (shards, kept) in [(4, 4), (1, 4), (3, 4)] {
        write(one, shards);
        while_clients_come(one, || {
            manager.order("restart");
            manager.wait_for("started");
        });
        assert_eq!(stored(&mut manager).len(), kept, "with {shards} shards");
    }
    write(other, 2);
    manager.order("restart");
    manager.wait_for("started");
    is_served(other);
    assert!(Raw::try_connect(one).is_err(), "the old port is given up");
    assert_eq!(stored(&mut manager).len(), 2);
    // The same port, of all addresses: the old listener is in its way until the manager has closed it.
    write(SocketAddr::new([0; 4].into(), other.port()), 2);
    manager.order("restart");
    manager.wait_for("started");
    is_served(other);
    assert!(manager.events().iter().all(|event| event.kind() != "restarting" && event.kind() != "stopped"));
}

#[test]
fn listeners_are_kept_all_or_none() {
    let folder = Folder::new("store");
    let file = folder.path().join("throng.toml");
    let address = free_address();
    let program = [PROGRAM, "serve", "--config", file.to_str().expect("it is text")];
    let mut manager = Manager::of(&["--fdstore-max", "2"], &program);
    for (shards, are_kept) in [(2, true), (3, false), (2, true)] {
        let text = format!(
            "[server]\nlisten = \"{address}\"\ncontrol = \"off\"\nshards = {shards}\npin = false\n[log]\nformat = \"json\"\n"
        );
        std::fs::write(&file, text).expect("it can be written");
        manager.order("restart");
        manager.wait_for("started");
        let listening = manager.wait_for_log("listening");
        assert_eq!(listening["fields"]["are_kept"], are_kept, "with {shards} shards");
        is_served(address);
    }
    // Whoever waits at one that is not kept would be reset when this closes it.
    assert!(manager.events().iter().all(|event| event.kind() != "store_full"));
}

#[test]
fn there_is_one_control_port() {
    let options = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--fdname", "control"];
    let mut manager = Manager::of_throng(&options, &[]);
    manager.order("start");
    let status = manager.wait_for_said("STATUS");
    assert!(status.contains("(control): there can be one of this name"), "{status}");
    assert_eq!(manager.wait_for("exited").number("code"), 1);
}

#[test]
fn listeners_that_the_manager_opens_are_used_by_all_shards() {
    for reuseport in [false, true] {
        let mut options =
            vec!["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"];
        options.extend(["--fdname", "clients", "--fdname", "clients", "--fdname", "control"]);
        if reuseport {
            // The two for clients are then on one port, and the third as well: it has a name of its own all the same.
            options = vec!["--reuseport", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"];
        }
        // This port would be refused.
        let mut manager = Manager::of_throng(&options, &["server.listen=192.0.2.1:7", "server.shards=3"]);
        let addresses = manager.listening(if reuseport { 2 } else { 3 });
        manager.start();
        let (_, control) = manager.wait_for_addresses();
        if !reuseport {
            assert_eq!(control, addresses[2]);
        }
        for address in &addresses[..2] {
            (0..12).for_each(|_| is_served(*address));
        }
        let (_, served) = while_clients_come(addresses[0], || {
            manager.order("restart");
            manager.wait_for("started");
            rest(ms(300));
        });
        assert!(served > 0);
    }
}

/// The program under a shell that prepares descriptor 3 and the variables, and what came of it.
fn with_descriptors(prepare: &str) -> Output {
    let script =
        format!("{prepare} exec \"$0\" serve --set server.listen=127.0.0.1:0 --set server.control=off");
    Command::new("/bin/sh").args(["-c", &script, PROGRAM]).output().expect("there is a shell")
}

#[test]
fn what_is_passed_and_is_no_listener_is_an_error_with_its_name() {
    let check = |prepare: &str, message: &str| {
        let output = with_descriptors(prepare);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(message), "{log}");
    };
    let variables = "export LISTEN_PID=$$ LISTEN_FDS=1";
    check(
        &format!("exec 3</dev/null; {variables} LISTEN_FDNAMES=http;"),
        "cannot use what the service manager has passed (http): it is no TCP socket that listens",
    );
    check(&format!("exec 3<&-; {variables};"), "cannot use what the service manager has passed (LISTEN_FDS)");
    check(&format!("exec 3</dev/null; {variables} LISTEN_FDNAMES=a:b;"), "invalid LISTEN_FDNAMES");
    check("export LISTEN_PID=$$ LISTEN_FDS=x;", "invalid LISTEN_FDS");
}

#[test]
fn what_is_passed_to_another_process_is_left_alone() {
    // As a process has it that was started by one that systemd has started.
    for names in [&[][..], &[("LISTEN_FDNAMES", "a:b:c")]] {
        let variables = [&[("LISTEN_PID", "1"), ("LISTEN_FDS", "3")], names].concat();
        let server = Server::with_environment(&variables);
        is_served(server.address());
    }
}
