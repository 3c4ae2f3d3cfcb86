//! From the first line of the log to the exit status: starting, refusing to start, and ending in an orderly way.

use crate::harness::clock::{now, rest};
use crate::harness::raw::{FIN, TEXT, close_frame};
use crate::harness::server::{PROGRAM, run};
use crate::harness::{Client, Heard, Raw, Server, WAIT, eventually, frame};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Duration;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Nobody can connect to the port for clients any more.
fn refuses_connections(server: &Server) {
    eventually("new connections are refused", || match Raw::try_connect(server.address()) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
        _ => None,
    });
}

/// What a native client is told at the end: in how many milliseconds to come back, then the close.
fn told_to_go(socket: &mut Raw) -> u64 {
    let last = socket.frame();
    assert_eq!(last.opcode, TEXT, "{last:?}");
    let message: Value = serde_json::from_slice(&last.payload).expect("it is JSON");
    assert_eq!(message["type"], "disconnect", "{message}");
    assert_eq!(socket.frame().code(), (1001, "the server is shutting down".to_owned()));
    message["retry_ms"].as_u64().expect("a number")
}

#[test]
fn on_sigterm_clients_are_closed_one_after_the_other_and_the_status_is_0() {
    check_drain(Signal::TERM);
}

#[test]
fn sigint_is_the_same() {
    check_drain(Signal::INT);
}

fn check_drain(signal: Signal) {
    const SPREAD_MS: u64 = 1_200;
    let mut server = Server::with(&["drain.spread_ms=1200", "drain.timeout_ms=10000"]);
    let mut crowd: Vec<Client> = (0..40).map(|_| server.client()).collect();
    for client in &mut crowd {
        client.join(&["lobby"]);
    }
    crowd[0].publish("lobby", "before the end", json!(1));
    let start = now();
    server.signal(signal);
    let mut closed: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (crowd.into_iter().enumerate())
            .map(|(index, mut client)| {
                scope.spawn(move || {
                    if index > 0 {
                        client.hears("lobby", "before the end", json!(1));
                    }
                    let (code, reason) = client.closed();
                    assert_eq!((code, reason.as_str()), (1001, "the server is shutting down"));
                    start.elapsed()
                })
            })
            .collect();
        refuses_connections(&server);
        threads.into_iter().map(|thread| thread.join().expect("a client that is closed")).collect()
    });
    assert_eq!(server.wait_for_exit().code(), Some(0));
    let ended = start.elapsed();
    closed.sort_unstable();
    let (first, last) = (closed[0], closed[closed.len() - 1]);
    assert!(last - first >= ms(SPREAD_MS / 2), "they are not told all at once: {first:?} to {last:?}");
    // About evenly: in the first half of the time, neither nobody nor nearly all.
    let early = closed.iter().filter(|time| **time < ms(SPREAD_MS / 2)).count();
    assert!((4..=36).contains(&early), "{early} of 40 in the first half: {closed:?}");
    assert!(ended < ms(SPREAD_MS) + ms(5_000), "nobody waits longer than needed: {ended:?}");
    server.wait_for_log("draining");
    server.wait_for_log("stopped");
}

#[test]
fn without_clients_the_end_comes_at_once() {
    let mut server = Server::with(&["drain.spread_ms=60000", "drain.timeout_ms=60000"]);
    let start = now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_for_exit().code(), Some(0));
    assert!(start.elapsed() < WAIT / 2, "{:?}", start.elapsed());
}

#[test]
fn who_does_not_answer_the_close_is_cut_off_in_the_end() {
    let mut server = Server::with(&["drain.spread_ms=0", "drain.timeout_ms=1000"]);
    let mut stubborn = server.socket("/ws");
    let mut asking = server.raw();
    asking.send("GET /health HTTP/1.1\r\n");
    server.wait_for_number("sockets", 2);
    let start = now();
    server.signal(Signal::TERM);
    told_to_go(&mut stubborn);
    // Whatever it says now is not heard.
    stubborn.send(frame(FIN | TEXT, r#"{"type":"ping"}"#));
    stubborn.ended();
    asking.ended();
    let took = start.elapsed();
    assert_eq!(server.wait_for_exit().code(), Some(0), "that is an orderly end");
    assert!(took >= ms(990) && took < ms(6_000), "{took:?}");
}

#[test]
fn who_does_answer_is_not_waited_for_further() {
    let mut server = Server::with(&["drain.spread_ms=0", "drain.timeout_ms=60000"]);
    let mut socket = server.socket("/ws");
    let start = now();
    server.signal(Signal::TERM);
    told_to_go(&mut socket);
    socket.send(close_frame(1001, ""));
    socket.ended();
    assert_eq!(server.wait_for_exit().code(), Some(0));
    assert!(start.elapsed() < WAIT / 2);
}

#[test]
fn readiness_ends_with_the_signal_and_the_control_port_stays_to_the_end() {
    let mut server = Server::with(&["drain.spread_ms=0", "drain.timeout_ms=10000"]);
    let mut stubborn = server.socket("/ws");
    let mut probe = Raw::connect(server.control_address());
    let mut ask = |path: &str| {
        probe.send(format!("GET {path} HTTP/1.1\r\nHost: throng\r\n\r\n"));
        probe.response()
    };
    let ready = ask("/ready");
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")));
    server.signal(Signal::TERM);
    told_to_go(&mut stubborn);
    let draining = ask("/ready");
    assert_eq!((draining.status, &draining.json()["status"]), (503, &json!("draining")));
    assert_eq!(ask("/health").status, 200, "it is alive all the same");
    assert_eq!(server.control("/ready").status, 503, "on a new connection, too");
    assert_eq!(server.stats()["status"], "draining");
    assert_eq!(server.number("connections"), 1);
    drop(stubborn);
    assert_eq!(server.wait_for_exit().code(), Some(0));
    assert!(Raw::try_connect(server.control_address()).is_err());
}

#[test]
fn balancers_notice_before_anybody_is_closed() {
    let mut server = Server::with(&["drain.notice_ms=3000", "drain.spread_ms=0", "drain.timeout_ms=10000"]);
    let mut early = server.socket("/ws");
    let start = now();
    server.signal(Signal::TERM);
    eventually("it is not ready", || (server.control("/ready").status == 503).then_some(()));
    assert_eq!(server.control("/health").status, 200);
    // Who is sent here all the same is served, the check on the port for clients too.
    let mut late = server.raw();
    late.send("GET /ready HTTP/1.1\r\nHost: throng\r\n\r\n");
    assert_eq!(late.response().status, 503);
    let mut late = server.socket("/ws");
    late.send(frame(FIN | TEXT, r#"{"type":"ping"}"#));
    assert_eq!(late.frame().opcode, TEXT);
    // Who waits for balancers can be asked how it is.
    server.signal(Signal::USR1);
    assert_eq!(server.wait_for_log("state of the process")["fields"]["draining"], true);
    assert!(start.elapsed() < ms(3_000), "a machine too slow for this test: {:?}", start.elapsed());
    for socket in [&mut early, &mut late] {
        told_to_go(socket);
        assert!(start.elapsed() >= ms(3_000), "{:?}", start.elapsed());
        socket.send(close_frame(1001, ""));
    }
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn closes_are_no_more_a_second_than_they_may_be() {
    let pace = ["drain.spread_ms=0", "drain.timeout_ms=10000", "drain.closes_per_second_max=20"];
    let mut server = Server::with(&pace);
    let mut crowd: Vec<Raw> = (0..40).map(|_| server.socket("/ws")).collect();
    let start = now();
    server.signal(Signal::TERM);
    let mut told: Vec<(Duration, u64)> = std::thread::scope(|scope| {
        let wait = |socket: &mut Raw| {
            let retry_ms = told_to_go(socket);
            (start.elapsed(), retry_ms)
        };
        let threads: Vec<_> = crowd.iter_mut().map(|socket| scope.spawn(move || wait(socket))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it is told")).collect()
    });
    drop(crowd);
    told.sort_unstable();
    let last = told[told.len() - 1].0;
    assert!(last >= ms(1_800) && last < ms(8_000), "40 take two seconds: {last:?}");
    // They come back over as long a time, evenly.
    let mut retries: Vec<u64> = told.iter().map(|(_, retry_ms)| *retry_ms).collect();
    retries.sort_unstable();
    assert!(retries[0] < 500 && (1_500..=2_000).contains(&retries[39]), "{retries:?}");
    retries.dedup();
    // Two shards may have given the same to a client each.
    assert!(retries.len() >= 20, "{retries:?}");
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn who_stays_of_a_crowd_is_closed_no_faster_for_that() {
    let pace = ["drain.spread_ms=0", "drain.timeout_ms=10000", "drain.closes_per_second_max=20"];
    let mut server = Server::with(&[&pace[..], &["server.shards=1"]].concat());
    let mut first: Vec<Raw> = (0..20).map(|_| server.socket("/ws")).collect();
    let crowd: Vec<Raw> = (0..180).map(|_| server.socket("/ws")).collect();
    drop(crowd);
    server.wait_for_number("connections", 20);
    server.wait_for_number("sockets", 20);
    let start = now();
    server.signal(Signal::TERM);
    for socket in &mut first {
        told_to_go(socket);
    }
    assert!(start.elapsed() >= ms(900), "20 take a second: {:?}", start.elapsed());
    drop(first);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn however_many_there_are_the_end_comes_in_time() {
    let pace = ["drain.spread_ms=0", "drain.timeout_ms=1500", "drain.closes_per_second_max=1"];
    let mut server = Server::with(&pace);
    let mut crowd: Vec<Raw> = (0..20).map(|_| server.socket("/ws")).collect();
    let start = now();
    server.signal(Signal::TERM);
    for socket in &mut crowd {
        told_to_go(socket);
    }
    assert!(start.elapsed() < ms(6_000), "{:?}", start.elapsed());
    drop(crowd);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_while_balancers_are_waited_for() {
    let mut server = Server::with(&["drain.notice_ms=60000", "drain.timeout_ms=60000"]);
    server.signal(Signal::TERM);
    server.wait_for_log("not ready any more");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_for_exit().code(), Some(1));
    server.wait_for_log("interrupted while draining");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in
        [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)]
    {
        let mut server = Server::with(&["drain.spread_ms=0", "drain.timeout_ms=60000"]);
        let mut stubborn = server.socket("/ws");
        server.signal(first);
        told_to_go(&mut stubborn);
        rest(ms(50));
        assert!(!server.has_ended(), "the first signal is patient");
        let start = now();
        server.signal(second);
        stubborn.ended();
        assert_eq!(server.wait_for_exit().code(), Some(1));
        assert!(start.elapsed() < WAIT / 2);
        server.wait_for_log("interrupted while draining");
    }
}

#[test]
fn what_was_published_before_the_signal_is_delivered_before_the_close() {
    let mut server = Server::with(&["drain.spread_ms=0", "server.shards=1", "server.linger_ms=500"]);
    let (mut publisher, mut member) = (server.client(), server.client());
    member.join(&["lobby"]);
    for number in 0..100 {
        publisher.publish("lobby", "n", json!(number));
    }
    server.signal(Signal::TERM);
    for number in 0..100 {
        member.hears("lobby", "n", json!(number));
    }
    assert_eq!(member.message(), json!({"type": "disconnect", "retry_ms": 1}));
    assert!(matches!(member.hear(), Heard::Close(1001, _)));
    assert_eq!(publisher.closed().0, 1001);
    drop(member);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn the_log_says_where_it_listens_for_machines_and_for_people() {
    let mut server = Server::start();
    let line = server.wait_for_log("listening");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["fields"]["listen"], server.address().to_string());
    assert_eq!(line["fields"]["control"], server.control_address().to_string());
    assert_eq!(line["fields"]["shards"], 2);
    for line in server.log().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn flags_mean_what_their_settings_mean() {
    let server = Server::with_flags(&[
        "--listen",
        "127.0.0.2:0",
        "--shards",
        "3",
        "--echo",
        "--linger-ms",
        "20",
        "--io",
        "epoll",
        "--log-level",
        "debug",
        "--set",
        "server.shards=1",
    ]);
    assert_eq!(server.address().ip().to_string(), "127.0.0.2");
    assert_eq!(
        server.stats()["shards"].as_array().map(Vec::len),
        Some(3),
        "a flag of its own is stronger than --set"
    );
    let mut socket = server.socket("/echo");
    socket.send(frame(FIN | TEXT, "hello"));
    assert_eq!(socket.frame().payload, b"hello");
}

#[test]
fn without_a_control_port_there_is_none() {
    let mut server = Server::with(&["server.control=off"]);
    assert_eq!(server.wait_for_log("listening")["fields"]["control"], "off");
    server.client().has_heard_all();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one").to_string();
    for (flag, other, setting) in
        [("--listen", "--control", "server.listen"), ("--control", "--listen", "server.control")]
    {
        let outcome = run(&[], &["serve", flag, &address, other, "127.0.0.1:0"]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        for word in [setting, &address, "in use"] {
            assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
        }
    }
}

#[test]
fn a_port_has_one_server_at_a_time_and_another_right_after() {
    // An address that no client of the other tests comes from.
    let mut first = Server::with(&["server.listen=127.0.0.77:0"]);
    let address = first.address().to_string();
    let mut client = first.client();
    client.has_heard_all();
    let outcome = run(&[], &["serve", "--listen", &address, "--control", "off"]);
    assert_eq!(outcome.code, Some(1), "two servers would each hold half of every room: {outcome:?}");
    assert!(outcome.stderr.contains("server.listen") && outcome.stderr.contains("in use"), "{outcome:?}");
    client.has_heard_all();
    first.signal(Signal::TERM);
    assert_eq!(client.closed().0, 1001);
    assert_eq!(first.wait_for_exit().code(), Some(0));
    // What is left of its connections in the kernel does not stop a restart.
    let second = Server::with(&[&format!("server.listen={address}")]);
    second.client().has_heard_all();
}

#[test]
fn an_address_that_is_not_ours_is_named_with_its_setting() {
    let outcome = run(&[], &["serve", "--listen", "192.0.2.77:7070", "--control", "off"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(
        outcome.stderr.contains("server.listen") && outcome.stderr.contains("192.0.2.77:7070"),
        "{outcome:?}"
    );
}

#[test]
fn too_few_descriptors_are_named_with_how_many_are_needed() {
    // The shell's own limit, below what the first client needs.
    let output = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "ulimit -n 100 && exec \"$0\" serve --listen 127.0.0.1:0 --control off --shards 1",
            PROGRAM,
        ])
        .env_clear()
        .output()
        .expect("a shell");
    let log = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("the limit on open files is 100") && log.contains("ulimit -n"), "{log}");
}

#[test]
fn a_wrong_configuration_is_told_whole_with_key_and_line() {
    let folder = own_folder("wrong");
    let file = folder.join("throng.toml");
    std::fs::write(
        &file,
        "[server]\nshards = 500\n\n[limits]\nmessage_bytes_max = \"1 furlong\"\nconections_max = 7\n",
    )
    .expect("a file of ours");
    let path = file.to_str().expect("a path that is text");
    for args in [&["serve", "--config", path][..], &["check", path]] {
        let outcome = run(&[], args);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert_eq!(lines.len(), 3, "{outcome:?}");
        for (line, words) in lines.iter().zip([
            ["throng.toml:2: server.shards", "500", "from 0 to 128"],
            ["throng.toml:5: limits.message_bytes_max", "furlong", "size"],
            [
                "throng.toml:6: limits.conections_max",
                "no such setting",
                "did you mean limits.connections_max?",
            ],
        ]) {
            assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        }
        assert!(outcome.stdout.is_empty());
    }
    std::fs::write(&file, "[server\n").expect("a file of ours");
    let outcome = run(&[], &["check", path]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("throng.toml:1:"), "{outcome:?}");
    std::fs::remove_dir_all(folder).expect("a folder of ours");
}

#[test]
fn wrong_flags_and_variables_are_told_too() {
    let check = |env: &[(&str, &str)], args: &[&str], words: &[&str]| {
        let outcome = run(env, args);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(words.iter().all(|word| outcome.stderr.contains(word)), "{words:?}: {outcome:?}");
    };
    check(&[], &["serve", "--listen", "here"], &["--listen", "server.listen", "\"here\""]);
    check(&[], &["serve", "--set", "limits.origins=example.org"], &["--set", "limits.origins"]);
    check(&[], &["serve", "--set", "limits.nothing=1"], &["limits.nothing", "no such setting"]);
    check(&[], &["serve", "--set", "nonsense"], &["KEY=VALUE"]);
    check(&[("THRONG_SHARD", "3")], &["serve"], &["THRONG_SHARD", "THRONG_SHARDS"]);
    check(&[("THRONG_LOG_LEVEL", "loud")], &["serve"], &["THRONG_LOG_LEVEL", "log.level", "loud"]);
    check(&[], &["serve", "--config", "/nowhere/throng.toml"], &["/nowhere/throng.toml"]);
    check(&[], &["check", "/nowhere/throng.toml"], &["/nowhere/throng.toml"]);
    check(&[], &["serve", "--wings"], &["--wings"]);
    check(&[], &["fly"], &["fly"]);
    check(&[], &[], &["Usage"]);
    check(&[], &["check"], &["FILE"]);
}

#[test]
fn check_says_what_a_file_means() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/throng.toml");
    let outcome = run(&[], &["check", example]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    for words in ["Every setting is at its default.", "Clients connect to 0.0.0.0:7070", "1 MiB", "25 s"] {
        assert!(outcome.stdout.contains(words), "{words}: {}", outcome.stdout);
    }
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/socketio-compliance.toml");
    let outcome = run(&[], &["check", example]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    for words in [
        "Socket.IO is at /socket.io/; its namespaces: /, /custom.",
        "Pages of any origin may use long-polling.",
        "On \"message\" a client gets \"message-back\" with the same arguments.",
        "On \"message-with-ack\" a client gets an acknowledgement with the same arguments.",
    ] {
        assert!(outcome.stdout.contains(words), "{words}: {}", outcome.stdout);
    }
    let folder = own_folder("right");
    let file = folder.join("throng.toml");
    std::fs::write(&file, "[limits]\nconnections_max = 5\n").expect("a file of ours");
    let outcome = run(&[], &["check", file.to_str().expect("text")]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.stdout.contains("limits.connections_max = 5") && outcome.stdout.contains("throng.toml:2")
    );
    std::fs::remove_dir_all(folder).expect("a folder of ours");
}

#[test]
fn help_and_version_are_there() {
    let version = run(&[], &["--version"]);
    assert_eq!(
        (version.code, version.stdout.trim_end()),
        (Some(0), concat!("throng ", env!("CARGO_PKG_VERSION")))
    );
    let help = run(&[], &["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    for command in ["serve", "check"] {
        assert!(help.stdout.contains(command), "{}", help.stdout);
    }
    let serve = run(&[], &["serve", "--help"]);
    for flag in [
        "--config",
        "--listen",
        "--control",
        "--shards",
        "--echo",
        "--linger-ms",
        "--log-level",
        "--log-format",
        "--set",
    ] {
        assert!(serve.stdout.contains(flag), "{flag}: {}", serve.stdout);
    }
}

/// A folder of this test's own, below cargo's for tests.
fn own_folder(name: &str) -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("lifecycle-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("cargo's folder for tests can be written");
    folder
}
