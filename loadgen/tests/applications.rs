//! The real program against throng itself with the configurations of `examples/`: a backend publishes through the API and clients listen, bids
//! come in auctions, people chat.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use throng::config::{Args, Config};
use throng::log::Log;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap()
}

/// That of all servers in this process.
static LOG: OnceLock<Log> = OnceLock::new();

/// Runs throng with a configuration of an example, in a thread, which ends with this process. Answers where clients connect, and its
/// control port.
#[expect(clippy::disallowed_methods, reason = "a bounded poll for the server to listen")]
fn serve(example: &str, settings: &[&str]) -> [SocketAddr; 2] {
    let addresses = [free_address(), free_address()];
    let args = Args {
        config: Some(format!("{EXAMPLES}/{example}.toml").into()),
        listen: Some(addresses[0].to_string()),
        control: Some(addresses[1].to_string()),
        shards: Some("2".to_owned()),
        set: settings
            .iter()
            .chain(&["redis.urls=[]", "server.pin=false"])
            .map(|set| (*set).to_owned())
            .collect(),
        ..Args::default()
    };
    let config = Config::load(&args, []).unwrap();
    thread::spawn(move || {
        let log = LOG.get_or_init(|| Log::start(&config.log));
        throng::server::run(&config, log, &|| Ok(config.clone()))
    });
    for _ in 0..1_000 {
        if addresses.iter().all(|address| TcpStream::connect(address).is_ok()) {
            return addresses;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("throng does not listen on {addresses:?}");
}

/// Runs the load of an application whose backend publishes; `arguments` are separated by blanks.
fn listen(application: &str, server: [SocketAddr; 2], arguments: &str) -> (Option<i32>, Value) {
    load(application, server, &format!("{arguments} --api {}", server[1]))
}

/// Runs the load of an application. Returns its exit code and its report.
fn load(application: &str, [address, _]: [SocketAddr; 2], arguments: &str) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throng-load"));
    command.arg(application).args(arguments.split_whitespace()).args(["--json", &format!("ws://{address}")]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("no report: {output:?}")))
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {report}"))
}

fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} is no count in {report}"))
}

/// Nothing went wrong.
fn check_clean((code, report): &(Option<i32>, Value)) {
    assert_eq!(*code, Some(0), "{report}");
    for key in ["lost", "doubled", "reordered", "errors"] {
        assert_eq!(count(report, key), 0, "{report}");
    }
}

/// What each publication came to: everybody in its room has it, and it alone.
fn check(outcome: &(Option<i32>, Value), members: u64) {
    check_clean(outcome);
    let (_, report) = outcome;
    assert!(count(report, "publications_total") > 0, "{report}");
    assert_eq!(count(report, "deliveries_total"), count(report, "publications_total") * members, "{report}");
}

#[test]
fn events_of_contracts_come_together() {
    let server = serve("adstack/throng", &["server.share_port=false"]);
    let report = listen(
        "adstack",
        server,
        "--connections 40 --processes 2 --rooms 4 --rate 400 --seconds 1 --warmup 0.2",
    );
    check(&report, 10);
    // A hundred a second in each room: ten within 100 ms.
    assert!(report.1["deliveries_per_message"].as_f64().is_some_and(|events| events > 2.0), "{report:?}");
    let (code, report) =
        listen("adstack", server, "--connections 2 --rooms 1 --seconds 0.2 --key another-key-0123456789");
    assert_eq!((code, &report["errors_by_kind"]), (Some(1), &json!({"api_401": 1})));
}

#[test]
fn dashboards_are_in_one_room() {
    let server = serve("inked/throng", &[]);
    check(&listen("inked", server, "--connections 20 --rate 20 --seconds 1 --warmup 0"), 20);
}

#[test]
fn guilds_are_namespaces_and_tracks_two_events() {
    let backend = answer();
    let server = serve("pona/throng", &[&format!("backend.url=http://{backend}")]);
    check(&listen("pona", server, "--connections 20 --rooms 4 --rate 40 --seconds 1 --warmup 0"), 5);
}

#[test]
fn watchers_know_of_all_bids_whatever_the_policies() {
    let server = serve("auction/load", &[]);
    let auction = |prefix: u32| {
        let arguments = "--connections 20 --processes 2 --auctions 4 --bids 40 --seconds 1 --warmup 0.2";
        let pid = std::process::id();
        let outcome = load("auction", server, &format!("{arguments} --prefix {prefix} --pid {pid}"));
        check_clean(&outcome);
        let (_, report) = outcome;
        // The last ones may be due too late to be sent.
        let bids = count(&report, "bids");
        assert!((140..=160).contains(&bids), "{report}");
        assert_eq!(count(&report, "joined"), 20, "{report}");
        assert_eq!(
            (count(&report, "bids_all_know"), count(&report, "bids_not_all_know")),
            (bids, 0),
            "{report}"
        );
        for (window, until_known) in [
            ("seconds", "seconds_until_known"),
            ("messages", "messages_until_known"),
            ("bytes_received", "bytes_until_known"),
            ("segments", "segments_until_known"),
            ("server_cpu_seconds", "server_cpu_seconds_until_known"),
        ] {
            assert!(number(&report, until_known) >= number(&report, window), "{until_known} in {report}");
        }
        assert!(number(&report, "seconds_until_known") < 4.0, "nothing is waited for: {report}");
        report
    };
    let [conflated, batched, plain] = [1, 2, 3].map(auction);
    assert!(count(&conflated, "left_out") > 0, "{conflated}");
    assert_eq!((count(&batched, "left_out"), count(&plain, "left_out")), (0, 0));
    assert!(count(&batched, "messages") < count(&batched, "updates"), "{batched}");
    assert!(count(&plain, "messages_until_known") >= count(&plain, "bids") * 5, "{plain}");
    let messages = [&conflated, &batched, &plain].map(|report| count(report, "messages_until_known"));
    assert!(messages[0] < messages[2] && messages[1] < messages[2], "{messages:?}");
    assert!(count(&conflated, "bytes_until_known") * 2 < count(&batched, "bytes_until_known"));
}

#[test]
fn what_somebody_says_comes_to_all_others_of_the_channel() {
    let server = serve("chat/load", &[]);
    let arguments = "--connections 20 --processes 2 --members 5 --rate 300 --seconds 1 --warmup 0.2";
    let outcome = load("chat", server, arguments);
    check_clean(&outcome);
    let (_, report) = outcome;
    let messages = count(&report, "messages");
    assert!((90..=100).contains(&messages), "{report}");
    assert_eq!((count(&report, "channels"), count(&report, "joined")), (4, 20), "{report}");
    assert_eq!(count(&report, "confirmed"), messages, "{report}");
    assert_eq!(count(&report, "deliveries"), messages * 4, "{report}");
    assert_eq!(count(&report, "deliveries_total"), count(&report, "messages_total") * 4, "{report}");
    assert!(number(&report, "confirmation_us_p50") > 0.0 && number(&report, "latency_us_p50") > 0.0);
}

/// What Pona's backend answers: everybody is somebody, and joins the room of the guild.
fn answer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer_all(stream));
        }
    });
    address
}

/// Answers the requests of a connection until it ends.
fn answer_all(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut path, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("post ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some(bytes) = line.strip_prefix("content-length:") {
                length = bytes.trim().parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let body: Value = serde_json::from_slice(&body).unwrap();
        let answer = match path.as_str() {
            "/authenticate" => json!({"user": body["token"]}),
            _ => json!({"join": ["pona! music"]}),
        };
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        if stream.write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}
