//! What tells people how a server is: the dump on SIGUSR1, `throng top`, the lists behind it, the dashboard and the alerts of `tuning/`.

use crate::harness::raw::{FIN, TEXT};
use crate::harness::redis::{Redis, free_port};
use crate::harness::server::{PROGRAM, run};
use crate::harness::{Client, Raw, Response, Server, eventually, frame};
use data_encoding::BASE64;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const KEY: &str = "change-me-0123456789";
const WITH_KEY: &str = "api.key=change-me-0123456789";
/// What a terminal might obey, as far as the name of a room may have it.
const HOSTILE: &str = "\u{202e}evil\u{200b}";

fn ask(server: &Server, path: &str) -> Response {
    let mut raw = Raw::connect(server.control_address());
    raw.send(format!("GET {path} HTTP/1.1\r\nHost: throng\r\nAuthorization: Bearer {KEY}\r\n\r\n"));
    raw.response()
}

/// A server with a crowd in the room `lobby`, and one who has stopped reading what is published to `news`.
fn busy_server(settings: &[&str]) -> (Server, Vec<Client>, Raw) {
    let settings =
        [&[WITH_KEY, "outbox.bytes_max=1MiB", "limits.message_bytes_max=128KiB"], settings].concat();
    let server = Server::with(&settings);
    let mut clients: Vec<Client> = (0..6).map(|_| server.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.join(&["lobby"]);
        if number < 3 {
            client.join(&[HOSTILE]);
        }
    }
    let mut slow = Raw::connect_narrow(server.address());
    slow.upgrade("/ws");
    slow.send(frame(FIN | TEXT, r#"{"type":"join","rooms":["news"],"id":1}"#));
    slow.frame();
    let text = "x".repeat(64 << 10);
    eventually("what is published waits for the one who does not read", || {
        clients[0].publish("news", "n", json!(text));
        (server.number("outbox_bytes") > 0).then_some(())
    });
    (server, clients, slow)
}

#[test]
fn a_signal_has_the_state_written_to_the_log() {
    let redis = Redis::start();
    let url = format!("redis.urls=[\"{}\"]", redis.url());
    let (mut server, mut clients, _slow) = busy_server(&[&url, "log.level=info"]);
    server.signal(Signal::USR1);
    let memory = server.wait_for_log("memory by kind");
    let log = server.log();
    let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let fields = |message: &str| -> Vec<Value> {
        let found = events.iter().filter(|event| event["fields"]["message"] == message);
        found.map(|event| event["fields"].clone()).collect()
    };
    let process = &fields("state of the process")[0];
    assert_eq!((&process["connections"], &process["rooms"]), (&json!(7), &json!(3)), "{process}");
    assert_eq!(process["draining"], false);
    let shards = fields("state of a shard");
    assert_eq!(shards.len(), 2);
    let waiting: u64 = shards.iter().filter_map(|shard| shard["outbox_bytes"].as_u64()).sum();
    assert!(waiting > 0 && shards.iter().all(|shard| shard["mail_max"] == 65_536), "{shards:?}");
    let threads: BTreeSet<String> = fields("state of a thread")
        .iter()
        .filter_map(|it| it["thread"].as_str().map(str::to_owned))
        .collect();
    for name in ["shard-0", "shard-1", "throng", "bridge"] {
        assert!(threads.contains(name), "{name} is not among {threads:?}");
    }
    assert_eq!(fields("state of the way to Redis")[0]["status"], "up");
    let memory = &memory["fields"];
    let number = |name: &str| memory[name].as_u64().unwrap_or_else(|| panic!("no {name}: {memory}"));
    assert!(number("outbox_bytes") > 0 && number("slots_bytes") >= 7 * 104, "{memory}");
    assert_eq!(number("memberships_bytes"), 10 * 16);
    assert!(number("accounted_bytes") + number("not_accounted_bytes") <= number("resident_anonymous_bytes"));

    // The clients have noticed nothing, and the next dump counts from here.
    clients[0].publish("lobby", "n", json!(1));
    clients[1].hears("lobby", "n", json!(1));
    server.signal(Signal::USR1);
    eventually("it is written once more", || {
        let log = server.log();
        let rates: Vec<&str> = log.lines().filter(|line| line.contains("rates per second")).collect();
        (rates.len() == 2).then_some(())
    });
}

#[test]
fn a_log_that_hides_the_state_says_so() {
    // The harness waits for a line of the level info, so this one is started at warn by itself.
    let control = format!("server.control=127.0.0.1:{}", free_port());
    let listen = format!("server.listen=127.0.0.1:{}", free_port());
    let mut child = Command::new(PROGRAM)
        .args([
            "serve",
            "--set",
            "log.level=warn",
            "--set",
            &control,
            "--set",
            &listen,
            "--set",
            "server.shards=1",
        ])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program is there");
    let address = control.split_once('=').expect("a setting").1.parse().expect("an address");
    let mut raw = eventually("it listens", || Raw::try_connect(address).ok());
    // Once it answers, a signal no longer ends it.
    raw.send("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n");
    assert_eq!(raw.response().status, 200);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::USR1).expect("it runs");
    let mut said = String::new();
    let mut lines = std::io::BufReader::new(child.stderr.take().expect("it is piped"));
    std::io::BufRead::read_line(&mut lines, &mut said).expect("text");
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
    assert!(said.contains("log.level hides it"), "{said}");
}

#[test]
fn the_biggest_and_the_slowest_are_listed() {
    let (server, _clients, _slow) = busy_server(&[]);
    let rooms = ask(&server, "/v1/top/rooms?limit=2").json();
    let names: Vec<(&str, u64)> = (rooms["rooms"].as_array().expect("a list").iter())
        .map(|room| (room["room"].as_str().expect("a name"), room["members"].as_u64().expect("a number")))
        .collect();
    assert_eq!(names, [("lobby", 6), (HOSTILE, 3)], "{rooms}");
    let slowest = ask(&server, "/v1/top/connections").json();
    let slow = slowest["connections"].as_array().expect("a list");
    assert_eq!(slow.len(), 1, "nothing waits for the others: {slowest}");
    assert!(slow[0]["waiting_bytes"].as_u64() > Some(1_000) && slow[0]["dialect"] == "native", "{slowest}");
    let whole = ask(&server, &format!("/v1/connections/{}", slow[0]["id"].as_str().expect("an id"))).json();
    assert_eq!(whole["waiting_bytes"], slow[0]["waiting_bytes"], "it is the same connection");
    // What was found is told again for a while.
    let again = ask(&server, "/v1/top/rooms").json();
    assert!(again["rooms"].as_array().is_some_and(|rooms| rooms.len() == 3), "{again}");
    for (path, status) in [
        ("/v1/top/rooms?limit=101", 422),
        ("/v1/top/rooms?limit=0", 422),
        ("/v1/top/rooms?cursor=x", 422),
        ("/v1/top/connections?all", 422),
    ] {
        assert_eq!(ask(&server, path).status, status, "{path}");
    }
}

#[test]
fn top_prints_what_it_sees() {
    let (server, _clients, _slow) = busy_server(&[]);
    let url = format!("http://{}", server.control_address());
    let seen = run(&[("THRONG_API_KEY", KEY)], &["top", &url, "--once", "--interval", "0.3"]);
    assert_eq!(seen.code, Some(0), "{}", seen.stderr);
    for part in ["ready", "7 of", "lobby", "biggest rooms", "native", "\\u{202e}evil", "none configured"] {
        assert!(seen.stdout.contains(part), "{part} is not there:\n{}", seen.stdout);
    }
    assert!(!seen.stdout.contains(['\u{1b}', '\u{202e}']), "{}", seen.stdout);
    // Without a key there is less to see, and it says so.
    let seen = run(&[], &["top", &url, "--once", "--interval", "0.1"]);
    assert!(seen.stdout.contains("7 of") && seen.stdout.contains("THRONG_API_KEY"), "{}", seen.stdout);
    assert!(!seen.stdout.contains("lobby"), "{}", seen.stdout);
    let seen = run(&[], &["top", &url, "--once", "--interval", "0.1", "--key", "wrong-0123456789"]);
    assert!(seen.stdout.contains("the key is not known"), "{}", seen.stdout);
    // Nobody there, and somebody else.
    let nobody = format!("127.0.0.1:{}", free_port());
    let seen = run(&[], &["top", &nobody, "--once"]);
    assert!(seen.code == Some(1) && seen.stderr.contains("is away"), "{seen:?}");
    let seen = run(&[], &["top", &server.address().to_string(), "--once"]);
    assert!(seen.code == Some(1) && seen.stderr.contains("is away"), "{seen:?}");
    let seen = run(&[], &["top", &url]);
    assert!(seen.code == Some(1) && seen.stderr.contains("--once"), "it is no terminal: {seen:?}");
}

/// Runs `throng top` in a terminal until it shows these words, ends it, and answers what it wrote.
fn in_terminal(how: &str, words: &str, url: &str) -> String {
    let script = Path::new(ROOT).join("tests/it/watching/terminal.py");
    let output = Command::new("python3")
        .arg(script)
        .args([how, words, PROGRAM, "top", url, "--interval", "0.2", "--key", KEY])
        .output()
        .expect("python3 is installed (.ci/setup)");
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let screen = BASE64.decode(said["said"].as_str().expect("text").as_bytes()).expect("base64");
    let screen = String::from_utf8_lossy(&screen).into_owned();
    assert_eq!(said["missing"], json!([]), "{screen}");
    assert_eq!(said["status"], 0, "{screen}");
    assert!(said["was_raw"] == true && said["is_as_before"] == true, "the terminal is restored");
    assert!(screen.contains("\u{1b}[?1049l") && screen.trim_end().ends_with("\u{1b}[?25h"), "{screen:?}");
    screen
}

#[test]
fn top_works_in_a_terminal_and_leaves_it_as_it_was() {
    let (server, _clients, _slow) = busy_server(&[]);
    let url = format!("http://{}", server.control_address());
    for how in ["q", "term"] {
        let screen = in_terminal(how, "lobby|7 of|native|slowest clients|ready|q end", &url);
        assert!(!screen.contains(['\u{202e}', '\u{200b}']), "{screen:?}");
    }
    // It begins before the server does, says that nobody is there, and can be ended as well.
    in_terminal("q", "AWAY", &format!("127.0.0.1:{}", free_port()));
}

/// All expressions of the dashboard, with what stands for its variables.
fn dashboard_expressions() -> Vec<String> {
    let text =
        fs::read_to_string(Path::new(ROOT).join("tuning/grafana-dashboard.json")).expect("it is there");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut expressions = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64()), "{title} has the number of another");
        let place = &panel["gridPos"];
        let [x, w] = ["x", "w"].map(|name| place[name].as_u64().expect("a number"));
        assert!(x + w <= 24 && place["h"].as_u64() > Some(0), "{title} is beside the grid");
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            panel["description"].as_str().is_some_and(|text| text.len() > 10),
            "{title} has no description"
        );
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            expressions.push(target["expr"].as_str().expect("an expression").to_owned());
        }
    }
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    assert!(expressions.len() > 50);
    let filled = |text: String| {
        text.replace("$__rate_interval", "1m").replace("$job", "throng").replace("$instance", ".*")
    };
    expressions.into_iter().map(filled).collect()
}

/// The alerts' file, and the names of the alerts.
fn alerts() -> (String, Vec<String>) {
    let text = fs::read_to_string(Path::new(ROOT).join("tuning/prometheus-alerts.yml")).expect("it is there");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned));
    let names = names.collect();
    (text, names)
}

/// Runs promtool, which has to be content.
fn promtool(arguments: &[&str], file: &Path) {
    let output = Command::new("promtool")
        .args(arguments)
        .arg(file)
        .output()
        .expect("promtool is installed: .ci/setup does it, or apt-get install prometheus");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The metrics that an expression names.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("throng_") || word.starts_with("process_"))
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let redis = Redis::start();
    let file =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("watching-{}.toml", std::process::id()));
    let tables = format!(
        "redis.urls = [\"{}\"]\nbackend.url = \"http://127.0.0.1:{}\"\nbackend.secret = \"a secret of the backend\"\n\
         auth.secret = \"a secret that is long enough for anybody\"\nauth.callout = true\n\
         webhooks.kinds = [\"connected\"]\n\
         [[limits.events]]\nevent = \"bid\"\nper = \"user\"\ncount = 5\nwindow_ms = 60000\n\
         [[namespaces]]\nname = \"/chat\"\n[[routes]]\non = \"bid\"\nbackend = true\n",
        redis.url(),
        free_port()
    );
    fs::write(&file, tables).expect("cargo's folder for tests can be written");
    let server = Server::with_flags(&["--config", file.to_str().expect("a path of ours")]);
    fs::remove_file(&file).expect("it is there");
    // A thread has its name once it has run.
    let metrics = eventually("the shards run", || {
        let metrics = server.metrics();
        let has_run = metrics.find("throng_turns_total", &[]).iter().all(|turns| *turns > 0.0);
        has_run.then_some(metrics)
    });
    let there: BTreeSet<&str> = metrics.names().collect();
    let (alerts, _) = alerts();
    let expressions = dashboard_expressions();
    let named = expressions.iter().flat_map(|text| metrics_in(text)).chain(
        // Of the alerts also what their texts name.
        metrics_in(&alerts),
    );
    let missing: BTreeSet<&str> = named.filter(|name| !there.contains(name)).collect();
    assert!(missing.is_empty(), "no server has {missing:?}");
    // What a label must be is there as well.
    for (name, label) in [
        ("throng_disconnects_total", "reason=\"slow\""),
        ("throng_rejects_total", "reason=\"full\""),
        ("throng_callouts_total", "by=\"known\""),
        ("throng_thread_cpu_seconds_total", "thread=\"shard-0\""),
    ] {
        assert!(!metrics.find(name, &[label]).is_empty());
    }
}

#[test]
fn promtool_understands_the_dashboard_and_the_alerts() {
    let rules = Path::new(ROOT).join("tuning/prometheus-alerts.yml");
    promtool(&["check", "rules"], &rules);
    promtool(&["check", "config"], &Path::new(ROOT).join("tuning/prometheus.yml"));
    // Each expression of the dashboard as a rule, so that the same program reads it.
    let mut text = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (number, expression) in dashboard_expressions().iter().enumerate() {
        text += &format!("      - record: panel:{number}\n        expr: {}\n", json!(expression));
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("panels-{}.yml", std::process::id()));
    fs::write(&file, text).expect("cargo's folder for tests can be written");
    promtool(&["check", "rules"], &file);
    fs::remove_file(&file).expect("it is there");
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    let (text, names) = alerts();
    let file = Path::new(ROOT).join("tests/it/watching/alerts.test.yml");
    let tests = fs::read_to_string(&file).expect("it is there");
    assert!(names.len() > 20);
    for name in &names {
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "nothing tries {name}");
        let (_, rule) = text.split_once(&format!("- alert: {name}\n")).expect("it is there");
        let rule = rule.split("- alert: ").next().expect("a rule");
        let severity =
            ["critical", "warning", "info"].iter().any(|word| rule.contains(&format!("severity: {word}")));
        assert!(severity, "{name}");
        for line in ["summary: ", "action: ", "section: \"docs/operations.md, "] {
            assert!(rule.contains(line), "{name} has no {line}");
        }
    }
    promtool(&["test", "rules"], &file);
}
