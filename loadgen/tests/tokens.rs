//! The real program against throng itself, whose clients have to show tokens.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use throng::config::{Args, Config};
use throng::log::Log;

const SECRET: &str = "the secret of the tests of the load";
const OTHER_SECRET: &str = "another secret of the tests, as long";

/// That of all servers in this process.
static LOG: OnceLock<Log> = OnceLock::new();

/// Runs throng in a thread, which ends with this process. Only bearers of tokens by [`SECRET`] may do anything.
#[expect(clippy::disallowed_methods, reason = "a bounded poll for the server to listen")]
fn serve() -> SocketAddr {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
    let settings = [&format!("auth.secret={SECRET}"), "auth.required=true", "engineio.echo_path=/engine.io/"];
    let args = Args {
        listen: Some(address.to_string()),
        control: Some("off".to_owned()),
        shards: Some("1".to_owned()),
        echo: true,
        set: settings.map(str::to_owned).to_vec(),
        ..Args::default()
    };
    let config = Config::load(&args, []).unwrap();
    thread::spawn(move || {
        let log = LOG.get_or_init(|| Log::start(&config.log));
        throng::server::run(&config, log, &|| Ok(config.clone()))
    });
    for _ in 0..1_000 {
        if TcpStream::connect(address).is_ok() {
            return address;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("throng does not listen on {address}");
}

/// Runs a load; `arguments` are separated by blanks, and `last` is one more. Returns its exit code and its report.
fn load(address: SocketAddr, arguments: &str, last: &str) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throng-load"));
    command.args(arguments.split_whitespace()).arg(last).args(["--json", &format!("ws://{address}")]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("no report: {output:?}")))
}

#[test]
fn each_connection_brings_a_token_that_the_server_checks() {
    let address = serve();
    let good = |arguments: &str, last: &str| {
        let (code, report) = load(address, arguments, last);
        assert_eq!((code, &report["errors"]), (Some(0), &json!(0)), "{arguments}: {report}");
        report
    };
    let bad = |arguments: &str, last: &str, errors: Value| {
        let (code, report) = load(address, arguments, last);
        assert_eq!((code, &report["errors_by_kind"]), (Some(1), &errors), "{arguments}: {report}");
    };
    let (secret, wrong) = (format!("--token-secret={SECRET}"), format!("--token-secret={OTHER_SECRET}"));
    for proto in ["native", "socketio"] {
        let report = good(&format!("storm --connections 20 --proto {proto}"), &secret);
        assert_eq!((&report["returns"], &report["joined"]), (&json!(20), &json!(20)), "{proto}");
        good(&format!("idle --connections 4 --seconds 0.1 --proto {proto}"), &secret);
        good(&format!("echo --connections 4 --seconds 0.1 --warmup 0 --proto {proto}"), &secret);
        good(&format!("fanout --connections 4 --seconds 0.2 --warmup 0 --proto {proto}"), &secret);
    }
    for scenario in ["idle", "echo", "fanout", "storm"] {
        let connections = if scenario == "fanout" { 3 } else { 4 };
        let count = format!("{scenario} --connections {connections}");
        bad(&count, &wrong, json!({"http_401": 4}));
        let refused = if scenario == "echo" { "http_401" } else { "connect_error" };
        bad(&format!("{count} --proto socketio"), &wrong, json!({ refused: 4 }));
    }
}

#[test]
fn the_secret_may_be_in_a_file_and_a_token_that_of_all() {
    let address = serve();
    let path = std::env::temp_dir().join(format!("throng-load-{}.secret", std::process::id()));
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let (code, report) =
        load(address, "idle --connections 2 --seconds 0.1", &format!("--token-key={}", path.display()));
    assert_eq!(code, Some(0), "{report}");
    std::fs::remove_file(path).unwrap();
    let (code, report) = load(address, "idle --connections 2 --seconds 0.1", "--token=not.a.token");
    assert_eq!((code, &report["errors_by_kind"]), (Some(1), &json!({"http_401": 2})));
    let (code, report) =
        load(address, "idle --connections 2 --seconds 0.1", &format!("--token={}", forged()));
    assert_eq!((code, &report["errors_by_kind"]), (Some(1), &json!({"http_401": 2})), "{report}");
}

/// A token that says it needs no signature.
fn forged() -> String {
    use base64::Engine as _;
    let encode = |json: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
    format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(r#"{"sub":"load-0"}"#))
}
