//! The stand-in for systemd's manager keeps systemd's protocols, as systemd's own program and library for services find them.

use crate::harness::{Client, Event, Manager};
use rustix::process::geteuid;

/// A service that takes steps, through libsystemd.
const SERVICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/python/service.py");

fn service(options: &[&str], steps: &[&str]) -> Manager {
    Manager::of(options, &[&["python3", SERVICE], steps].concat())
}

#[test]
fn what_systemds_own_program_says_is_heard() {
    for options in [&[][..], &["--abstract"][..]] {
        // Run by root, the program speaks in the name of the process that has started it, and else in its own.
        let access: &[&str] = if geteuid().is_root() { &[] } else { &["--notify-access", "all"] };
        let script = "systemd-notify --ready --status='all is well' && exec sleep 600";
        let mut manager = Manager::of(&[options, access].concat(), &["sh", "-c", script]);
        manager.order("start");
        assert_eq!(manager.wait_for_said("STATUS"), "all is well");
        manager.wait_for("started");
        // It waits until all of it was heard.
        assert_eq!(manager.wait_for_said("BARRIER"), "1");
        manager.order("stop");
        assert_eq!(manager.wait_for("exited").text("signal"), "SIGTERM");
        assert_eq!(manager.wait_for("stopped").text("result"), "stop");
    }
}

#[test]
fn listeners_are_passed_with_their_names() {
    let options =
        ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--reuseport"];
    let names = ["--fdname", "web", "--fdname", "web", "--fdname", "control", "--watchdog", "30"];
    let mut manager = service(&[&options[..], &names].concat(), &["passed", "READY=1", "wait"]);
    let addresses = manager.listening(3);
    assert!(addresses.iter().all(|address| address == &addresses[0]), "{addresses:?}");
    manager.order("start");
    assert_eq!(manager.wait_for("spawned").names("names"), ["web", "web", "control"]);
    let each = "listening/blocking";
    let passed = format!("web/{each} web/{each} control/{each} watchdog 30000000 store none");
    assert_eq!(manager.wait_for_said("STATUS"), passed);

    let mut manager = service(&["--listen", "127.0.0.1:0", "--nonblocking"], &["passed", "READY=1", "wait"]);
    manager.order("start");
    let passed = "throng.socket/listening/nonblocking watchdog none store none";
    assert_eq!(manager.wait_for_said("STATUS"), passed);
}

#[test]
fn what_is_stored_outlives_a_restart_and_a_failure_but_no_stop() {
    let options =
        ["--fdstore-max", "4", "--restart", "on-failure", "--listen", "127.0.0.1:0", "--fdname", "web"];
    let mut manager = service(&options, &["passed", "store a", "READY=1", "wait"]);
    let passed = |manager: &mut Manager, names: &[&str]| {
        assert_eq!(manager.wait_for("spawned").names("names"), names);
        let each = names.iter().map(|name| match *name {
            "web" => "web/listening/blocking ",
            _ => "a/listening/nonblocking ",
        });
        let status = each.collect::<String>() + "watchdog none store 4";
        assert_eq!(manager.wait_for_said("STATUS"), status);
        manager.wait_for("started");
    };
    manager.order("start");
    passed(&mut manager, &["web"]);
    manager.order("restart");
    passed(&mut manager, &["web", "a"]);
    manager.order("kill SIGKILL");
    assert_eq!(manager.wait_for("exited").text("signal"), "SIGKILL");
    assert_eq!(manager.wait_for("restarting").number("restarts"), 1);
    passed(&mut manager, &["web", "a", "a"]);
    manager.order("stop");
    assert_eq!(manager.wait_for("stopped").text("result"), "stop");
    manager.order("start");
    passed(&mut manager, &["web"]);
}

#[test]
fn the_store_has_a_bound_and_drops_what_it_is_told_to_or_has_hung_up() {
    let steps = [
        "store a",
        "store-pair kept FDPOLL=0",
        "hang-up",
        "store b",
        "store b",
        "store too-many",
        "READY=1",
        "FDSTOREREMOVE=1,FDNAME=b",
        "store-pair pair",
        "hang-up",
        "wait",
    ];
    let mut manager = service(&["--fdstore-max", "4", "--before-254"], &steps);
    manager.order("start");
    assert_eq!(manager.wait_for("store_full").text("name"), "too-many");
    for (name, reason) in [("b", "asked"), ("b", "asked"), ("pair", "hangup")] {
        let removed = manager.wait_for("removed");
        assert_eq!((removed.text("name"), removed.text("reason")), (name, reason));
    }
    manager.order("status");
    assert_eq!(manager.wait_for("status").names("stored"), ["kept", "a"]);

    let mut manager = service(&[], &["store a", "READY=1", "wait"]);
    manager.order("start");
    assert_eq!(manager.wait_for("store_full").text("name"), "a");
}

#[test]
fn who_goes_silent_is_aborted_and_started_again() {
    let steps = ["READY=1", "sleep 0.3", "WATCHDOG=1", "wait"];
    let options =
        ["--watchdog", "2", "--restart", "on-failure", "--restart-pause", "0.2", "--restarts-max", "1"];
    let mut manager = service(&options, &steps);
    manager.start();
    manager.wait_for_said("WATCHDOG");
    let fed_us =
        manager.events().iter().rev().find(|event| event.said("WATCHDOG").is_some()).map(|event| event.at_us);
    let silent_us = manager.wait_for("watchdog").at_us - fed_us.expect("it was fed");
    assert!((2_000_000..8_000_000).contains(&silent_us), "{silent_us}");
    assert_eq!(manager.wait_for("exited").text("signal"), "SIGABRT");
    let waits_us = manager.wait_for("restarting").at_us;
    assert!(manager.wait_for("spawned").at_us - waits_us >= 200_000);
    manager.wait_for("watchdog");
    assert_eq!(manager.wait_for("stopped").text("result"), "start_limit");

    // Who says that all is well while it ends has to go on saying so.
    let mut manager = service(&["--watchdog", "0.5"], &["READY=1", "STOPPING=1", "WATCHDOG=1", "wait"]);
    manager.start();
    assert_eq!(manager.wait_for("stopping").text("reason"), "notify");
    manager.wait_for("watchdog");

    let mut manager = service(&[], &["READY=1", "WATCHDOG=trigger", "wait"]);
    manager.start();
    manager.wait_for("watchdog");
    assert_eq!(manager.wait_for("stopped").text("result"), "failed");
}

#[test]
fn starting_and_stopping_have_their_time_and_more_on_request() {
    let mut manager = service(&["--timeout-start", "0.5"], &["EXTEND_TIMEOUT_USEC=1500000", "wait"]);
    manager.order("start");
    let spawned_us = manager.wait_for("spawned").at_us;
    let timeout = manager.wait_for("timeout");
    assert_eq!(timeout.text("state"), "starting");
    // Python has to start within the half second; where the machine is too busy for that, nothing is extended.
    let extended = manager.events().iter().any(|event| event.said("EXTEND_TIMEOUT_USEC").is_some());
    assert!(timeout.at_us - spawned_us >= if extended { 1_500_000 } else { 500_000 });
    assert_eq!(manager.wait_for("exited").text("signal"), "SIGTERM");
    assert_eq!(manager.wait_for("stopped").text("result"), "failed");

    let mut manager = service(&["--timeout-stop", "0.5"], &["deaf", "READY=1", "wait"]);
    manager.start();
    manager.order("stop");
    let stopping_us = manager.wait_for("stopping").at_us;
    assert!(manager.wait_for("timeout").at_us - stopping_us >= 500_000);
    assert_eq!(manager.wait_for("exited").text("signal"), "SIGKILL");

    // A service that ends itself says so, and has the same time for it.
    let steps = ["READY=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=60000000", "sleep 1", "exit 0"];
    let mut manager = service(&["--timeout-stop", "0.5"], &steps);
    manager.start();
    assert_eq!(manager.wait_for("stopping").text("reason"), "notify");
    assert_eq!(manager.wait_for("exited").number("code"), 0);
    assert_eq!(manager.wait_for("stopped").text("result"), "clean");
}

#[test]
fn only_the_main_process_is_listened_to() {
    let mut manager = service(&[], &["other READY=1", "READY=1", "wait"]);
    manager.order("start");
    assert_eq!(manager.wait_for("notify").text("refused"), "not_main");
    let pid = manager.wait_until("READY", |event| event.said("READY").is_some()).number("pid");
    manager.wait_for("started");
    manager.order("status");
    assert_eq!(manager.wait_for("status").number("pid"), pid);

    let mut manager = service(&["--notify-access", "all"], &["other READY=1", "wait"]);
    manager.start();
}

#[test]
fn a_service_that_keeps_failing_is_given_up() {
    let mut manager =
        service(&["--restart", "on-failure", "--restart-pause", "0", "--restarts-max", "2"], &["exit 3"]);
    manager.order("start");
    assert_eq!(manager.wait_for("exited").number("code"), 3);
    assert_eq!(manager.wait_for("stopped").text("result"), "start_limit");
    let restarts = |events: &[Event]| events.iter().filter(|event| event.kind() == "restarting").count();
    assert_eq!(restarts(&manager.events()), 2);

    // One that ends well is not started again.
    let mut manager = service(&["--restart", "on-failure"], &["READY=1", "exit 0"]);
    manager.start();
    assert_eq!(manager.wait_for("stopped").text("result"), "clean");
}

#[test]
fn throng_runs_under_it() {
    let mut manager = Manager::of_throng(&[], &[]);
    manager.order("start");
    let (address, _) = manager.wait_for_addresses();
    Client::connect(address).join(&["r"]);
    manager.order("stop");
    assert_eq!(manager.wait_for("exited").number("code"), 0);
}

#[test]
fn a_reload_is_over_when_the_service_says_so() {
    let mut manager = service(&["--type", "notify-reload"], &["READY=1", "wait"]);
    manager.start();
    manager.order("reload");
    assert_eq!(manager.wait_for("signalled").text("signal"), "SIGHUP");
    manager.wait_for("reloading");
    manager.wait_for("reloaded");

    // Of a service that begins by itself, or is sent the signal by somebody else, it is the same.
    let mut manager = service(&[], &["READY=1", "wait"]);
    manager.start();
    manager.order("kill SIGHUP");
    manager.wait_for("reloading");
    manager.wait_for("reloaded");

    let steps = ["READY=1", "RELOADING=1,MONOTONIC_USEC=NOW", "wait"];
    let mut manager = service(&["--timeout-start", "0.5", "--type", "notify-reload"], &steps);
    manager.start();
    manager.wait_for("reloading");
    assert_eq!(manager.wait_for("timeout").text("state"), "reloading");
    manager.order("status");
    assert_eq!(manager.wait_for("status").text("state"), "running");
}
