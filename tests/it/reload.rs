//! SIGHUP and SIGUSR2: what takes effect while clients are connected, what is named instead, and that a wrong file changes nothing; the
//! log in the journal, and its line now and then.

use crate::access::{KeyServer, SECRET, token};
use crate::harness::clock::rest;
use crate::harness::raw::{CONTINUATION, FIN, TEXT, upgrade_head};
use crate::harness::redis::folder;
use crate::harness::server::{PROGRAM, has_mount_namespaces};
use crate::harness::{Client, Heard, Raw, Response, Server, eventually, frame};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const LOADED: &str = "the configuration was loaded anew, with certificates and keys";
const REFUSED: &str = "nothing was loaded anew: all is what it was";

/// A server with a configuration file that can be written anew.
struct Reloading {
    server: Server,
    folder: PathBuf,
}

impl Reloading {
    fn start(file: &str) -> Reloading {
        let folder = folder();
        let path = folder.join("throng.toml");
        fs::write(&path, file).expect("a file of ours");
        let server = Server::with_flags(&["--config", path.to_str().expect("a path of ours")]);
        Reloading { server, folder }
    }

    /// How often the log has said this.
    fn said(&self, message: &str) -> usize {
        self.server.log().matches(message).count()
    }

    /// Has this file read, and waits until the log has said `outcome`.
    fn reload_to(&self, file: &str, outcome: &str) {
        fs::write(self.folder.join("throng.toml"), file).expect("a file of ours");
        let before = self.said(outcome);
        self.server.signal(Signal::HUP);
        eventually(outcome, || (self.said(outcome) > before).then_some(()));
    }

    fn reload(&self, file: &str) {
        self.reload_to(file, LOADED);
    }

    /// What the API answers to a question with this key.
    fn ask_with(&self, key: &str) -> u16 {
        let mut raw = Raw::connect(self.server.control_address());
        raw.send(format!(
            "GET /v1/rooms HTTP/1.1\r\nHost: throng\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
        ));
        raw.response().status
    }

    /// What an upgrade with this token is answered with.
    fn knock(&self, token: &str) -> Response {
        let mut raw = self.server.raw();
        raw.send(upgrade_head("/ws", &format!("Authorization: Bearer {token}\r\n")));
        raw.response_to_head()
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Comes back when the shard of this client has gone through its mail.
fn settle(client: &mut Client) {
    // The first is answered in the turn in which the mail may still lie there.
    for _ in 0..2 {
        client.ask(json!({"type": "ping"}));
    }
}

#[test]
fn rates_change_under_a_live_connection() {
    let reloading = Reloading::start("");
    let mut client = reloading.server.client();
    for _ in 0..50 {
        client.ask(json!({"type": "ping"}));
    }
    reloading.reload("[limits]\nmessages_per_second_max = 1\nmessages_burst_max = 2\n");
    eventually("the rate holds", || {
        let answer = client.ask(json!({"type": "ping"}));
        (answer["code"] == "rate_limited").then_some(())
    });
    reloading.reload("");
    eventually("it does not", || {
        let answer = client.ask(json!({"type": "ping"}));
        (answer["type"] == "pong").then_some(())
    });
    for _ in 0..50 {
        assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong");
    }
}

#[test]
fn a_message_that_has_begun_may_be_as_long_as_it_might_when_it_began() {
    let reloading = Reloading::start("");
    let mut raw = reloading.server.socket("/ws");
    let message = format!(r#"{{"type":"ping","id":1,"pad":"{}"}}"#, "x".repeat(2000));
    let (first, rest_of_it) = message.split_at(1000);
    raw.send(frame(TEXT, first));
    let mut other = reloading.server.client();
    settle(&mut other);
    reloading.reload("[limits]\nmessage_bytes_max = 500\n");
    rest(Duration::from_millis(100));
    raw.send(frame(FIN | CONTINUATION, rest_of_it));
    let answer = String::from_utf8(raw.frame().payload).expect("text");
    assert!(answer.contains("pong"), "{answer}");
    raw.send(frame(FIN | TEXT, &message));
    assert_eq!(raw.closed().0, 1009);
}

#[test]
fn who_is_inside_stays_when_fewer_may_come_in() {
    let reloading = Reloading::start("");
    let mut clients: Vec<Client> = (0..4).map(|_| reloading.server.client()).collect();
    reloading.reload("[limits]\nconnections_max = 2\n");
    assert_eq!(reloading.server.number("connections_max"), 2);
    let mut raw = reloading.server.raw();
    raw.send(upgrade_head("/ws", ""));
    assert_eq!(raw.response_to_head().status, 503);
    for client in &mut clients {
        settle(client);
    }
    reloading.reload("");
    settle(&mut reloading.server.client());
}

#[test]
fn keys_are_revoked() {
    let keys = |key: &str| {
        format!(
            "[[api.keys]]\nname = \"shop\"\nkey = \"{key}\"\nscopes = [\"read\"]\n[auth]\nrequired = true\n"
        )
    };
    let (old, new) = ("old-0123456789abcdef", "new-0123456789abcdef");
    let reloading = Reloading::start(&(keys(old) + &format!("secret = \"{SECRET}\"\n")));
    assert_eq!((reloading.ask_with(old), reloading.ask_with(new)), (200, 401));
    let token = token(&["--user", "anna"]);
    let header = format!("Bearer {token}");
    let mut anna = Client::over(reloading.server.raw(), "/ws", &[("Authorization", &header)]);
    reloading.reload(&(keys(new) + "secret = \"another secret of more than thirty-two bytes\"\n"));
    assert_eq!((reloading.ask_with(old), reloading.ask_with(new)), (401, 200));
    assert_eq!(reloading.knock(&token).status, 401);
    settle(&mut anna);
    let log = reloading.server.log();
    assert!(log.contains("\"auth.secret\"") && !log.contains("thirty-two"), "{log}");
    assert!(!log.contains(old) && !log.contains(new), "{log}");
    reloading.reload(&(keys(new) + &format!("secret = \"{SECRET}\"\n")));
    assert_eq!(reloading.knock(&token).status, 101);
}

#[test]
fn tokens_are_asked_for_from_then_on() {
    let reloading = Reloading::start("");
    let mut early = reloading.server.client();
    reloading.reload(&format!("[auth]\nrequired = true\nsecret = \"{SECRET}\"\n"));
    settle(&mut early);
    assert_eq!(reloading.knock("nonsense").status, 401);
    assert_eq!(reloading.knock(&token(&["--user", "anna"])).status, 101);
    reloading.reload("");
    settle(&mut reloading.server.client());
}

#[test]
fn routes_and_permissions_change() {
    let reloading = Reloading::start("");
    let mut client = reloading.server.client();
    let call = json!({"type": "call", "event": "say", "data": [1]});
    assert_eq!(client.refused(call.clone()), "bad_event");
    client.join(&["a", "b"]);
    reloading.reload(
        "[[routes]]\non = \"say\"\nack = true\n[[permissions]]\nrooms = \"a\"\nallow = [\"join\", \"publish\"]\n",
    );
    settle(&mut client);
    assert_eq!(client.ask(call)["type"], "ack");
    client.publish("a", "e", json!(1));
    let to_b = json!({"type": "publish", "room": "b", "event": "e", "data": 1});
    assert_eq!(client.refused(to_b.clone()), "forbidden");
    reloading.reload("");
    settle(&mut client);
    client.publish("b", "e", json!(1));
}

#[test]
fn what_is_used_of_a_limit_stays_used_where_the_limit_stays() {
    let bid = "[[limits.events]]\nevent = \"bid\"\nper = \"ip\"\ncount = 3\nwindow_ms = \"1h\"\n";
    let all = "[[limits.events]]\nevent = \"*\"\nper = \"connection\"\ncount = 100\nwindow_ms = \"1h\"\n";
    let reloading = Reloading::start(bid);
    let mut client = reloading.server.client();
    client.publish("a", "bid", json!(1));
    client.publish("a", "bid", json!(2));
    reloading.reload(&format!("{all}{bid}"));
    settle(&mut client);
    client.publish("a", "bid", json!(3));
    let fourth = json!({"type": "publish", "room": "a", "event": "bid", "data": 4});
    assert_eq!(client.refused(fourth.clone()), "rate_limited");
    let more = bid.replace("count = 3", "count = 4");
    reloading.reload(&more);
    settle(&mut client);
    for _ in 0..4 {
        client.publish("a", "bid", json!(4));
    }
    assert_eq!(client.refused(fourth), "rate_limited", "another limit begins anew");
    reloading.reload("");
    settle(&mut client);
    client.publish("a", "bid", json!(5));
}

#[test]
fn a_wrong_file_changes_nothing() {
    let mut reloading = Reloading::start("");
    let mut client = reloading.server.client();
    let wrong = "[limits]\nmessages_per_second_max = 1\nmessage_bytes_max = 1\n[drain]\ntimeout = 5\n";
    reloading.reload_to(wrong, REFUSED);
    let log = reloading.server.log();
    for problem in ["throng.toml:3: limits.message_bytes_max", "throng.toml:5: drain.timeout"] {
        assert!(log.contains(problem), "{problem} is not in\n{log}");
    }
    settle(&mut client);
    for _ in 0..20 {
        assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong");
    }
    // Nor does one whose keys are not there.
    let missing =
        "[limits]\nmessages_per_second_max = 1\n[[auth.keys]]\nalgorithm = \"ES256\"\nfile = \"/missing\"\n";
    reloading.reload_to(missing, REFUSED);
    assert!(reloading.server.log().contains("/missing"));
    fs::remove_file(reloading.folder.join("throng.toml")).expect("it is ours");
    let before = reloading.said(REFUSED);
    reloading.server.signal(Signal::HUP);
    eventually("a missing file is named", || (reloading.said(REFUSED) > before).then_some(()));
    settle(&mut client);
    for _ in 0..20 {
        assert_eq!(client.ask(json!({"type": "ping"}))["type"], "pong");
    }
    reloading.reload("");
    assert_eq!(reloading.server.wait_for_log(LOADED)["fields"]["changed"], 0);
}

#[test]
fn what_needs_a_restart_is_named() {
    let mut reloading = Reloading::start("");
    reloading.reload("[native]\npath = \"/other\"\n[heartbeat]\nping_interval_ms = 9000\n[[rooms]]\nname = \"a\"\nwindow_ms = 5\nbatch_max = 2\n");
    let line = reloading.server.wait_for_log("a setting has changed");
    let fields = &line["fields"];
    assert_eq!(fields["key"], "heartbeat.ping_interval_ms");
    assert_eq!((&fields["old"], &fields["new"]), (&json!("25000"), &json!("9000")));
    let log = reloading.server.log();
    for key in ["\"native.path\"", "\"[[rooms]]\""] {
        let line = log.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key}\n{log}"));
        assert!(line.contains("needs a restart") && line.contains("WARN"), "{line}");
    }
    let last = reloading.server.wait_for_log(LOADED);
    assert_eq!((&last["fields"]["changed"], &last["fields"]["needing_restart"]), (&json!(1), &json!(2)));
    settle(&mut reloading.server.client());
}

#[test]
fn a_heartbeat_is_what_the_client_was_told() {
    let reloading = Reloading::start("[heartbeat]\nping_interval_ms = 200\nping_timeout_ms = 5000\n");
    let mut raw = reloading.server.socket("/socket.io/?EIO=4&transport=websocket");
    assert!(String::from_utf8_lossy(&raw.frame().payload).contains(r#""pingInterval":200"#));
    reloading.reload("[heartbeat]\nping_interval_ms = 600000\nping_timeout_ms = 5000\n");
    // Its client would go without pings, so they come as it was told.
    for _ in 0..3 {
        assert_eq!(raw.frame().payload, b"2");
        raw.send(frame(FIN | TEXT, "3"));
    }
    let mut later = reloading.server.socket("/socket.io/?EIO=4&transport=websocket");
    assert!(String::from_utf8_lossy(&later.frame().payload).contains(r#""pingInterval":600000"#));
}

#[test]
fn a_drain_is_as_was_read_last() {
    let mut reloading = Reloading::start("[drain]\nspread_ms = \"9m\"\ntimeout_ms = \"10m\"\n");
    let client = reloading.server.client();
    reloading.reload("[drain]\nspread_ms = 0\ntimeout_ms = 1000\n");
    reloading.server.signal(Signal::TERM);
    assert_eq!(client.closed().0, 1001);
    assert!(reloading.server.wait_for_exit().success());
}

#[test]
fn who_is_told_to_end_does_not_wait_for_a_set_of_keys() {
    let keys = KeyServer::start();
    let mut reloading = Reloading::start(&format!("[auth]\njwks = \"{}\"\n", keys.url));
    let _held = keys.hold();
    let before = keys.requests.load(Relaxed);
    reloading.server.signal(Signal::HUP);
    eventually("it is asked for", || (keys.requests.load(Relaxed) > before).then_some(()));
    reloading.server.signal(Signal::TERM);
    assert!(reloading.server.wait_for_exit().success());
    assert_eq!(reloading.said(LOADED) + reloading.said(REFUSED), 0, "it was not waited for");
}

#[test]
fn how_much_is_logged_can_change() {
    let key = "[api]\nkey = \"0123456789abcdef\"\n";
    let reloading = Reloading::start(key);
    let order = || {
        let mut raw = Raw::connect(reloading.server.control_address());
        raw.send("POST /v1/rooms/a/disconnect HTTP/1.1\r\nHost: throng\r\nConnection: close\r\nAuthorization: Bearer 0123456789abcdef\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(raw.response().status, 202);
        rest(Duration::from_millis(100));
        reloading.said("ordered of a room")
    };
    assert_eq!(order(), 0);
    reloading.reload(&format!("{key}[log]\nlevel = \"debug\"\n"));
    assert_eq!(order(), 1);
    reloading.reload(&format!("{key}[log]\nlevel = \"warn\"\n"));
    assert_eq!(order(), 1);
    reloading.server.signal(Signal::USR2);
    eventually("it says so", || (reloading.said("verbose logs are on") == 1).then_some(()));
    assert_eq!(order(), 2);
    reloading.server.signal(Signal::USR2);
    eventually("it says so", || (reloading.said("verbose logs are off") == 1).then_some(()));
    assert_eq!(order(), 2);
}

#[test]
fn a_line_now_and_then_says_how_the_server_is() {
    let mut reloading = Reloading::start("[log]\nsummary_ms = 0\n");
    let mut client = reloading.server.client();
    client.join(&["a"]);
    rest(Duration::from_millis(50));
    assert_eq!(reloading.said("\"running, with rates per second\""), 0);
    reloading.reload("[log]\nsummary_ms = 50\n");
    let line = reloading.server.wait_for_log("running, with rates per second");
    let fields = &line["fields"];
    assert_eq!(
        (&fields["connections"], &fields["connections_peak"], &fields["rooms"]),
        (&json!(1), &json!(1), &json!(1))
    );
    for field in ["messages_received", "frames_sent", "publish_p99_us", "memory_bytes", "uptime_seconds"] {
        assert!(fields[field].is_number(), "{field} in {line}");
    }
}

#[test]
fn a_thousand_reloads_under_load_leak_nothing() {
    let one = "[limits]\nmessages_per_second_max = 0\n[[routes]]\non = \"say\"\nack = true\n";
    let other = "[limits]\nmessages_per_second_max = 100000\norigins = [\"https://a.example\"]\n\
                 [[limits.events]]\nevent = \"e\"\nper = \"user\"\ncount = 1000000\nwindow_ms = \"1h\"\n\
                 [[permissions]]\nrooms = \"*\"\nallow = [\"join\", \"publish\"]\n[auth]\nsecret = \"a secret of thirty-two bytes, ok\"\n";
    let reloading = Reloading::start(one);
    let mut clients = reloading.server.crowd(8);
    clients.iter_mut().for_each(|client| drop(client.join(&["a"])));
    let is_over = AtomicBool::new(false);
    let reload_often = |times: usize| {
        for time in 0..times {
            reloading.reload(if time % 2 == 0 { other } else { one });
        }
    };
    std::thread::scope(|scope| {
        for client in &mut clients {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    let answer =
                        client.ask(json!({"type": "publish", "room": "a", "event": "e", "data": [1, 2, 3]}));
                    assert_eq!(answer["type"], "ack", "{answer}");
                    while let Some(heard) = client.hear_within(Duration::from_millis(1)) {
                        assert!(matches!(heard, Heard::Text(..)), "{heard:?}");
                    }
                }
            });
        }
        reload_often(200);
        let before = (reloading.server.descriptors(), reloading.server.resident_bytes());
        reload_often(800);
        let after = (reloading.server.descriptors(), reloading.server.resident_bytes());
        is_over.store(true, Relaxed);
        assert_eq!(before.0, after.0, "descriptors");
        // An earlier configuration that stayed would be some ten kilobytes, for each shard.
        assert!(after.1 < before.1 + (4 << 20), "{before:?} {after:?}");
    });
    clients.iter_mut().for_each(settle);
}

/// The program in a world where this is the socket of the journal, if any is. `None` where the machine allows no such worlds.
fn journaling(journal: Option<&str>, settings: &str) -> Option<Child> {
    if !has_mount_namespaces() {
        eprintln!("no mount namespaces here: not tested");
        return None;
    }
    let link = journal.map_or(String::new(), |path| format!("ln -s {path} /run/systemd/journal/socket &&"));
    // The shell becomes the program. What its standard error is, it tells as systemd does.
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && {link} \
         JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) \
         exec {PROGRAM} serve --listen 127.0.0.1:0 --control off --shards 1 {settings}"
    );
    let mut command = Command::new("unshare");
    command.args(["-rm", "/bin/sh", "-c", &script]).stderr(Stdio::piped());
    Some(command.spawn().expect("it was allowed"))
}

#[test]
fn the_journal_gets_entries_with_fields() {
    let folder = folder();
    let path = folder.join("journal");
    let journal = UnixDatagram::bind(&path).expect("a socket of ours");
    journal.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket takes a timeout");
    let Some(mut child) = journaling(path.to_str(), "") else { return };
    let mut entry = [0; 65_536];
    let listening = loop {
        let length = journal.recv(&mut entry).expect("entries come");
        let text = String::from_utf8_lossy(&entry[..length]).into_owned();
        if text.contains("listening") {
            break text;
        }
    };
    child.kill().and_then(|()| child.wait()).expect("it is our child");
    fs::remove_dir_all(&folder).expect("it is ours");
    // A name, the length of the value in eight bytes, and the value.
    for (name, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "throng"),
        ("THRONG_MESSAGE", "listening"),
        ("THRONG_SHARDS", "1"),
    ] {
        let field = format!("{name}\n{}\0\0\0\0\0\0\0{value}\n", char::from(value.len() as u8));
        assert!(listening.contains(&field), "{field:?} is not in {listening:?}");
    }
    assert!(
        listening.contains("listening listen=127.0.0.1:"),
        "people see the fields as well: {listening:?}"
    );
}

#[test]
fn without_the_journals_socket_lines_have_their_priority_in_front() {
    let Some(mut child) = journaling(None, "") else { return };
    let mut stderr = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains("listening")) {
        lines.push(stderr.next().expect("it begins to listen").expect("text"));
    }
    child.kill().and_then(|()| child.wait()).expect("it is our child");
    assert!(lines[0].starts_with("<4>") && lines[0].contains("cannot reach the journal"), "{lines:?}");
    assert!(
        lines.iter().skip(1).any(|line| line.starts_with("<6>") && line.contains("listening")),
        "{lines:?}"
    );
}
