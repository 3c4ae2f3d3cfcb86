//! The real program against a real server, good and bad: what it counts, what it catches, how it ends.

mod server;

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use server::{Behaviour, Fault, Restart, Server};

const BINARY: &str = env!("CARGO_BIN_EXE_throng-load");
/// Where they do the same, a test goes through both.
const PROTOCOLS: [&str; 2] = ["native", "socketio"];

/// Runs the program to its end; `arguments` are separated by blanks. Returns its exit code and its JSON report.
fn load(arguments: &str, url: &str) -> (i32, Value) {
    let output = start(arguments, url).wait_with_output().unwrap();
    report(&output)
}

fn start(arguments: &str, url: &str) -> Child {
    let mut command = Command::new(BINARY);
    command.args(arguments.split_whitespace()).args(["--json", url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn report(output: &Output) -> (i32, Value) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("no report: {stdout:?}, {stderr:?}"));
    (output.status.code().unwrap_or(-1), value)
}

fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} is no count in {report}"))
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {report}"))
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[test]
fn echo_counts_what_came_back() {
    // Every frame has 4 bytes of header and 200 of payload, and Engine.IO adds one.
    check_echo("native", 204);
    check_echo("socketio", 205);
}

#[track_caller]
fn check_echo(proto: &str, frame_bytes: u64) {
    let server = Server::start(Behaviour::default());
    let pid = std::process::id();
    let arguments = format!(
        "echo --proto {proto} --connections 3 --in-flight 4 --size 200 --seconds 0.4 --warmup 0.1 --pid {pid}"
    );
    let (code, report) = load(&arguments, &server.url());
    assert_eq!(code, 0, "{report}");
    assert_eq!(count(&report, "opened"), 3);
    assert_eq!(count(&report, "messages_total"), count(&report, "messages_sent_total"));
    assert_eq!(count(&report, "lost") + count(&report, "doubled") + count(&report, "reordered"), 0);
    let messages = count(&report, "messages");
    assert!(messages > 0 && messages < count(&report, "messages_total"));
    // A read at an edge of the window may hold some of both sides.
    let frames = count(&report, "bytes_received") / frame_bytes;
    assert!(frames.abs_diff(messages) <= 12, "{frames} frames for {messages} messages");
    let per_second = messages as f64 / number(&report, "seconds");
    assert!((number(&report, "messages_per_second") / per_second - 1.0).abs() < 0.01);
    assert!(number(&report, "server_cpu_seconds") > 0.0);
    assert!(number(&report, "latency_us_p50") <= number(&report, "latency_us_max"));
}

#[test]
fn echo_of_text_and_of_large_messages() {
    let server = Server::start(Behaviour::default());
    for arguments in [
        "--text --in-flight 7",
        "--size 8",
        "--text --size 70000",
        "--size 300000 --in-flight 3 --mask zero",
        "--proto socketio --size 8 --in-flight 7",
        "--proto socketio --size 70000",
    ] {
        let all = format!("echo --connections 2 --seconds 0.1 --warmup 0 {arguments}");
        let (code, report) = load(&all, &server.url());
        assert_eq!(code, 0, "{arguments}: {report}");
        assert!(count(&report, "messages_total") > 0, "{arguments}: {report}");
        assert_eq!(count(&report, "messages_total"), count(&report, "messages_sent_total"), "{arguments}");
    }
}

#[test]
fn fanout_in_closed_loop_counts_every_delivery() {
    for proto in PROTOCOLS {
        let server = Server::start(Behaviour::default());
        let arguments = format!(
            "fanout --proto {proto} --connections 5 --publishers 2 --in-flight 3 --seconds 0.4 --warmup 0.1"
        );
        let (code, report) = load(&arguments, &server.url());
        assert_eq!(code, 0, "{proto}: {report}");
        assert_eq!((count(&report, "opened"), count(&report, "joined")), (7, 5));
        let published = count(&report, "publications_total");
        assert!(published > 6 && published.is_multiple_of(3));
        assert_eq!(server.counts().published, published);
        assert_eq!(count(&report, "deliveries_total"), published * 5);
        assert_eq!(count(&report, "deliveries_expected"), published * 5);
        assert!(count(&report, "publications") > 0 && count(&report, "publications") < published);
        let missed = count(&report, "deliveries").abs_diff(count(&report, "publications") * 5);
        assert!(missed <= 2 * 2 * 3 * 5, "the window cuts off more than it can: {report}");
        assert_eq!(count(&report, "stalls"), 0);
        assert!(number(&report, "reads_per_delivery") <= 1.01);
    }
}

#[test]
fn fanout_in_open_loop_keeps_its_rate() {
    let server = Server::start(Behaviour::default());
    let (code, report) =
        load("fanout --connections 4 --publishers 3 --rate 200 --seconds 0.5 --warmup 0.1", &server.url());
    assert_eq!(code, 0, "{report}");
    assert_eq!(count(&report, "publications"), 100);
    assert_eq!(count(&report, "deliveries_total"), count(&report, "publications_total") * 4);
    assert!(number(&report, "latency_us_p50") > 0.0 && number(&report, "send_delay_us_p50") >= 0.0);
}

#[test]
fn fanout_measures_at_all_servers_what_is_published_at_the_first() {
    // One that stands for two: they have the same rooms.
    let server = Server::start(Behaviour::default());
    let (url, arguments) = (server.url(), "--connections 5 --rate 200 --seconds 0.5 --warmup 0.1");
    let run = |servers: &str| {
        let mut command = Command::new(BINARY);
        command.args(["fanout", "--json", "--servers", servers]).args(arguments.split(' '));
        report(&command.output().unwrap())
    };
    let (code, both) = run(&format!("{url},{url}"));
    assert_eq!(code, 0, "{both}");
    assert_eq!((count(&both, "servers"), count(&both, "opened")), (2, 6));
    assert_eq!(count(&both, "deliveries_total"), count(&both, "publications_total") * 5);
    assert!(number(&both, "latency_elsewhere_us_p50") > 0.0, "{both}");
    let (code, one) = run(&url);
    assert_eq!((code, count(&one, "servers")), (0, 1), "{one}");
    assert_eq!(one["latency_elsewhere_us_p50"], Value::Null);
}

#[test]
fn events_that_come_in_an_array_are_each_counted() {
    let server = Server::start(Behaviour { batches: true, ..Behaviour::default() });
    let (code, report) = load("fanout --connections 3 --in-flight 2 --seconds 0.2 --warmup 0", &server.url());
    assert_eq!(code, 0, "{report}");
    assert_eq!(count(&report, "deliveries_total"), count(&report, "publications_total") * 3);
    assert!(number(&report, "reads_per_delivery") <= 0.5);
}

#[test]
fn a_lost_message_is_caught() {
    check_fault(Fault::Lose, "lost");
}

#[test]
fn a_doubled_message_is_caught() {
    check_fault(Fault::Double, "doubled");
}

#[test]
fn a_reordered_message_is_caught() {
    check_fault(Fault::Reorder, "reordered");
}

/// The server makes its one mistake; the report has it under `key` and nothing else.
#[track_caller]
fn check_fault(fault: Fault, key: &str) {
    let fanout = "fanout --connections 3 --in-flight 16 --seconds 0.2 --warmup 0";
    let echo = "echo --connections 1 --in-flight 4 --seconds 0.2 --warmup 0";
    for arguments in
        PROTOCOLS.iter().flat_map(|proto| [fanout, echo].map(|load| format!("{load} --proto {proto}")))
    {
        let server = Server::start(Behaviour { fault: Some(fault), ..Behaviour::default() });
        let (code, report) = load(&arguments, &server.url());
        assert_eq!(code, 1, "{arguments}: {report}");
        for name in ["lost", "doubled", "reordered"] {
            assert_eq!(count(&report, name), u64::from(name == key), "{arguments}: {name} in {report}");
        }
        assert_eq!(count(&report, "errors"), 0, "{arguments}: {report}");
    }
}

#[test]
fn a_fault_in_a_chat_is_caught() {
    for (fault, key) in [(Fault::Lose, "lost"), (Fault::Double, "doubled"), (Fault::Reorder, "reordered")] {
        let server = Server::start(Behaviour { fault: Some(fault), ..Behaviour::default() });
        let (code, report) =
            load("chat --connections 2 --members 2 --rate 1200 --seconds 1 --warmup 0", &server.url());
        assert_eq!(code, 1, "{report}");
        for name in ["lost", "doubled", "reordered"] {
            assert_eq!(count(&report, name), u64::from(name == key), "{fault:?}: {name} in {report}");
        }
        assert_eq!((count(&report, "messages_total"), count(&report, "errors")), (40, 0), "{report}");
    }
    let server = Server::start(Behaviour { confirms_nothing: true, ..Behaviour::default() });
    let chat = "chat --connections 2 --members 2 --rate 300 --seconds 1 --warmup 0";
    check_errors(chat, &server.url(), json!({"not_confirmed": 10}));
}

#[test]
fn a_fault_in_an_auction_is_caught() {
    // The fault is to the last of eleven bids, or to one of more.
    let (last, more) = ("--bids 11", "--bids 20");
    for (fault, bids, [lost, doubled, reordered], errors) in [
        (Fault::Lose, last, [1, 0, 0], json!({"wrong_final_price": 1})),
        (Fault::Double, more, [0, 1, 0], json!({})),
        (Fault::Reorder, more, [0, 0, 1], json!({"wrong_price": 1})),
    ] {
        let server = Server::start(Behaviour { fault: Some(fault), ..Behaviour::default() });
        let arguments = format!("auction --connections 3 --auctions 1 {bids} --seconds 1 --warmup 0");
        let (code, report) = load(&arguments, &server.url());
        assert_eq!((code, &report["errors_by_kind"]), (1, &errors), "{fault:?}: {report}");
        assert_eq!(
            ["lost", "doubled", "reordered"].map(|key| count(&report, key)),
            [lost, doubled, reordered],
            "{fault:?}: {report}"
        );
        let not_all = u64::from(fault == Fault::Lose);
        assert_eq!(count(&report, "bids_not_all_know"), not_all, "{fault:?}: {report}");
    }
}

#[test]
fn an_auction_is_measured_until_all_know_of_the_last_bid() {
    let stall = Some(Duration::from_millis(1_500));
    let auction = |wait: &str| {
        let server = Server::start(Behaviour { stall, ..Behaviour::default() });
        let arguments = "auction --connections 3 --auctions 1 --bids 20 --seconds 0.5 --warmup 0";
        load(&format!("{arguments} {wait}"), &server.url())
    };
    let (code, report) = auction("");
    assert_eq!(code, 0, "{report}");
    assert_eq!((count(&report, "bids_all_know"), count(&report, "messages")), (10, 0), "{report}");
    assert_eq!(count(&report, "messages_until_known"), 30, "{report}");
    assert_eq!(count(&report, "bytes_received"), 0, "{report}");
    assert!(count(&report, "bytes_until_known") > 30 * 600, "{report}");
    assert!((1.4..2.4).contains(&number(&report, "seconds_until_known")), "{report}");
    let (code, report) = auction("--wait 0.3");
    assert_eq!((code, &report["errors_by_kind"]), (1, &json!({"wrong_final_price": 3})), "{report}");
    assert!(number(&report, "seconds_until_known") < 1.4, "{report}");
}

#[test]
fn a_lost_last_message_of_a_batch_stalls_but_does_not_stop_the_run() {
    let server = Server::start(Behaviour { fault: Some(Fault::Lose), ..Behaviour::default() });
    let (code, report) =
        load("fanout --connections 3 --in-flight 11 --seconds 1.5 --warmup 0", &server.url());
    assert_eq!(code, 1, "{report}");
    assert_eq!((count(&report, "lost"), count(&report, "stalls")), (1, 1), "{report}");
    assert!(count(&report, "publications_total") > 11);
}

#[test]
fn two_processes_share_the_connections_and_keep_the_loop_closed() {
    let server = Server::start(Behaviour::default());
    let (code, report) = load(
        "fanout --connections 5 --processes 2 --publishers 2 --in-flight 4 --seconds 0.4 --warmup 0.1",
        &server.url(),
    );
    assert_eq!(code, 0, "{report}");
    assert_eq!((count(&report, "opened"), count(&report, "joined")), (7, 5));
    assert_eq!(count(&report, "deliveries_total"), count(&report, "publications_total") * 5);
    assert_eq!(count(&report, "stalls"), 0, "a stall means that the workers do not hear each other");
    assert!(count(&report, "publications_total") > 16);

    let (code, report) = load("echo --connections 4 --processes 2 --seconds 0.2 --warmup 0.1", &server.url());
    assert_eq!(code, 0, "{report}");
    assert_eq!((count(&report, "opened"), count(&report, "lost")), (4, 0));
}

#[test]
fn idle_joins_holds_and_answers_pings() {
    for proto in PROTOCOLS {
        let server = Server::start(Behaviour { pings: true, ..Behaviour::default() });
        let pid = std::process::id();
        let arguments = format!(
            "idle --proto {proto} --connections 10 --rooms-each 3 --seconds 0.5 --sample-seconds 0.1 --pid {pid}"
        );
        let (code, report) = load(&arguments, &server.url());
        assert_eq!(code, 0, "{proto}: {report}");
        assert_eq!(
            (count(&report, "opened"), count(&report, "joined"), count(&report, "pings")),
            (10, 10, 10)
        );
        let counts = server.counts();
        assert_eq!((counts.opened, counts.joined, counts.pongs), (10, 30, 10));
        assert!(count(&report, "rss_before_bytes") > 0 && count(&report, "rss_end_bytes") > 0);
        assert_eq!(report["samples"].as_array().unwrap().len(), 4);
        assert!(number(&report, "handshakes_per_second") > 0.0);
        assert!(
            number(&report, "handshake_latency_us_p50") > 0.0 && number(&report, "join_latency_us_p50") > 0.0
        );
    }
}

#[test]
fn churn_leaves_and_joins_again() {
    for proto in PROTOCOLS {
        let server = Server::start(Behaviour::default());
        let (code, report) =
            load(&format!("idle --proto {proto} --connections 10 --churn 1 --seconds 1"), &server.url());
        assert_eq!(code, 0, "{proto}: {report}");
        let churns = count(&report, "churns");
        assert!((1..=15).contains(&churns), "{churns}");
        let counts = server.counts();
        assert_eq!((counts.left, counts.joined), (churns, churns + 10));
    }
}

#[test]
fn a_storm_brings_all_back_however_they_dropped() {
    let drops = [("fin", 0), ("reset", 0), ("close", 24)];
    for (proto, (drop, closed)) in PROTOCOLS.into_iter().flat_map(|proto| drops.map(|drop| (proto, drop))) {
        let server = Server::start(Behaviour::default());
        let arguments =
            format!("storm --proto {proto} --connections 12 --rounds 2 --processes 2 --drop {drop}");
        let (code, report) = load(&arguments, &server.url());
        assert_eq!(code, 0, "{proto}, {drop}: {report}");
        assert_eq!(
            (count(&report, "opened"), count(&report, "returns"), count(&report, "joined")),
            (12, 24, 12)
        );
        assert_eq!(report["round_seconds"].as_array().unwrap().len(), 2);
        let counts = server.counts();
        assert_eq!((counts.opened, counts.joined, counts.closed), (36, 36, closed), "{proto}, {drop}");
    }
}

/// Restarts a server under six connections once all have joined. Returns the exit code and the report.
#[track_caller]
fn restart(proto: &str, seconds: f64, restart: Restart) -> (i32, Value) {
    let server = Server::start(Behaviour::default());
    let arguments =
        format!("storm --restart --proto {proto} --connections 6 --processes 2 --seconds {seconds}");
    let child = start(&arguments, &server.url());
    server.wait_until(|counts| counts.joined == 6);
    // The last ones to join are about to hear of it.
    server.restart(restart);
    report(&child.wait_with_output().unwrap())
}

#[test]
fn after_a_restart_all_come_back_when_clients_do() {
    let away = Duration::from_millis(50);
    let hinted = Restart { close_code: Some(1012), retry_ms: Some(700), away, ..Restart::default() };
    let (code, report) = restart("native", 20.0, hinted);
    assert_eq!(code, 0, "{report}");
    assert_eq!((&report["scenario"], &report["restart"]), (&json!("storm"), &json!(true)));
    assert_eq!((count(&report, "opened"), count(&report, "joined"), count(&report, "closes")), (6, 6, 6));
    assert_eq!(report["closes_by_code"], json!({"1012": 6}), "{report}");
    assert_eq!((count(&report, "hints"), count(&report, "hint_ms_max")), (6, 700), "{report}");
    assert_eq!((count(&report, "tries"), count(&report, "returns")), (6, 6), "{report}");
    assert_eq!(count(&report, "closes_per_second_max"), 6, "{report}");
    assert!(number(&report, "back_us_p50") >= 699_000.0, "{report}");
    assert!(number(&report, "seconds_until_back") >= 0.699, "{report}");
    assert_eq!((count(&report, "never_back"), count(&report, "never_closed")), (0, 0));

    // Without a hint they wait for half a second to one and a half.
    for proto in PROTOCOLS {
        let unhinted = Restart { close_code: Some(1001), retry_ms: None, ..hinted };
        let (code, report) = restart(proto, 20.0, unhinted);
        assert_eq!((code, &report["closes_by_code"]), (0, &json!({"1001": 6})), "{proto}: {report}");
        assert_eq!((count(&report, "hints"), count(&report, "returns")), (0, 6), "{proto}: {report}");
        let seconds = number(&report, "seconds_until_back");
        assert!((0.5..4.0).contains(&seconds), "{proto}: {report}");
    }
}

#[test]
fn what_goes_wrong_at_a_restart_is_counted() {
    let well = Restart { close_code: Some(1001), retry_ms: Some(100), ..Restart::default() };
    let (code, report) =
        restart("native", 20.0, Restart { away: Duration::from_secs(1), refusals: 2, ..well });
    let refused = count(&report, "refused");
    assert!(refused >= 6, "{report}");
    let errors = json!({"refused": refused, "http_503": 2});
    assert_eq!((code, &report["errors_by_kind"]), (1, &errors), "{report}");
    assert_eq!((count(&report, "tries"), count(&report, "returns")), (refused + 8, 6), "{report}");
    assert_eq!(report["http_refusals"], json!({"503": 2}), "{report}");

    for (resets, kind) in [(false, "eof"), (true, "reset")] {
        let (code, report) = restart("native", 20.0, Restart { resets, close_code: None, ..well });
        assert_eq!((code, &report["errors_by_kind"]), (1, &json!({kind: 6})), "{report}");
        assert_eq!(report["closes_by_code"], json!({"0": 6}), "{report}");
        assert_eq!((count(&report, "resets"), count(&report, "returns")), (if resets { 6 } else { 0 }, 6));
    }
}

#[test]
fn who_does_not_come_back_or_is_not_closed_is_counted() {
    let (code, report) = restart(
        "native",
        1.5,
        Restart { close_code: Some(1012), away: Duration::from_secs(600), ..Restart::default() },
    );
    assert_eq!((code, count(&report, "never_back"), count(&report, "never_closed")), (1, 6, 0), "{report}");
    assert_eq!(report["seconds_until_back"], Value::Null, "{report}");
    assert!((1.4..4.0).contains(&number(&report, "seconds")), "{report}");

    let server = Server::start(Behaviour::default());
    check_errors("storm --restart --connections 3 --seconds 0.2", &server.url(), json!({"never_closed": 3}));
}

#[test]
fn failed_connections_are_counted_by_kind() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check_errors("idle --connections 7", &format!("ws://{nobody}"), json!({"refused": 7}));

    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute_url = format!("ws://{}", mute.local_addr().unwrap());
    check_errors("echo --connections 3 --timeout 0.2", &mute_url, json!({"timeout": 3}));

    let full = Server::start(Behaviour { http_status: Some(503), ..Behaviour::default() });
    check_errors("fanout --connections 4", &full.url(), json!({"http_503": 5}));

    for proto in PROTOCOLS {
        let idle = format!("idle --proto {proto} --connections 2 --seconds 0.1");
        let strict = Server::start(Behaviour { close_code: Some(1008), ..Behaviour::default() });
        check_errors(&idle, &strict.url(), json!({"close_1008": 2}));
        let picky = Server::start(Behaviour { join_error: Some("bad_room"), ..Behaviour::default() });
        check_errors(&idle, &picky.url(), json!({"server_bad_room": 2}));
    }
}

#[test]
fn a_greeting_of_socketio_that_fails_is_counted_by_kind() {
    fn check(arguments: &str, behaviour: Behaviour, expected: Value) {
        let arguments = format!("{arguments} --proto socketio --connections 2 --seconds 0.1 --timeout 0.5");
        check_errors(&arguments, &Server::start(behaviour).url(), expected);
    }
    let greeted = |greeting| Behaviour { greeting: Some(greeting), ..Behaviour::default() };
    let refused = Behaviour { connect_error: true, ..Behaviour::default() };
    check("idle", refused, json!({"connect_error": 2}));
    check("echo", greeted("hello"), json!({"bad_packet": 2}));
    check("idle", greeted(""), json!({"bad_packet": 2}));
    check("storm", greeted("1"), json!({"eio_close": 2}));
    // Nothing to say, and nothing more comes.
    check("echo", greeted("6"), json!({"timeout": 2}));
}

#[track_caller]
fn check_errors(arguments: &str, url: &str, expected: Value) {
    let (code, report) = load(arguments, url);
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["errors_by_kind"], expected, "{report}");
    let sum: u64 = expected.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(count(&report, "errors"), sum);
}

#[test]
fn an_interrupted_run_prints_what_was_measured() {
    let server = Server::start(Behaviour::default());
    let child = start("fanout --connections 3 --processes 2 --seconds 60 --warmup 0", &server.url());
    server.wait_until(|counts| counts.published > 20);
    signal(child.id(), Signal::INT);
    let (code, report) = report(&child.wait_with_output().unwrap());
    assert_eq!(code, 130);
    assert!(count(&report, "deliveries_total") > 0 && count(&report, "deliveries") > 0, "{report}");
    assert!(number(&report, "seconds") < 30.0);
    assert_eq!(count(&report, "lost"), 0, "what is under way is not lost: {report}");
}

#[test]
fn a_worker_that_dies_is_told_and_takes_the_run_with_it() {
    let server = Server::start(Behaviour::default());
    let child = start("idle --connections 4 --processes 2 --seconds 60", &server.url());
    server.wait_until(|counts| counts.joined == 4);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let children = std::fs::read_to_string(children).unwrap();
    let workers: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(workers.len(), 2);
    signal(workers[1], Signal::KILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(&format!("worker process {} died: signal: 9", workers[1])), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(!std::path::Path::new(&format!("/proc/{}", workers[0])).exists(), "the other worker goes on");
}

#[test]
fn misuse_is_told_with_exit_code_2() {
    let misuses = [
        "",
        "nonsense",
        "idle wss://127.0.0.1",
        "idle --connections 0",
        "idle --proto mqtt",
        "fanout --size 10",
        "fanout --rate 5 --in-flight 2",
        "echo --pid 4294967295",
        "idle --source 10.0.0.0/8 ws://[::1]:1",
        "idle --connections 10000000 --processes 1",
    ];
    for arguments in misuses {
        let output = Command::new(BINARY).args(arguments.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn without_json_the_figures_are_a_table() {
    let server = Server::start(Behaviour::default());
    let mut command = Command::new(BINARY);
    let output =
        command.args(["echo", "--connections", "1", "--seconds", "0.1", "--warmup", "0", &server.url()]);
    let stdout = String::from_utf8(output.output().unwrap().stdout).unwrap();
    assert!(stdout.lines().next().unwrap().split_whitespace().eq(["scenario", "echo"]), "{stdout}");
    assert!(stdout.lines().any(|line| line.starts_with("latency us p99 ")), "{stdout}");
}
