//! Stock clients of other makers, each with the checks of tests/foreign: for the native protocol `ws` from npm and `websockets` from
//! PyPI; for Socket.IO `socket.io-client` from npm, in Node with both parsers and on a page in Chromium, and `python-socketio` from PyPI.
//! Clients of npm drop out and come back as if nothing had been, too; those of PyPI do not know of that.
//! What is missing is installed into folders of ours; a program that is missing is a failure, not a skip.

use crate::harness::Server;
use crate::harness::clock::{Deadline, rest};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FOREIGN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign");
/// The scripts stop themselves, the longest after 120 s.
const CHECKS_MAX: Duration = Duration::from_secs(135);
/// Packages come over the network.
const INSTALL_MAX: Duration = Duration::from_secs(180);
/// Tests run side by side, and packages are to be installed once.
static INSTALLING: Mutex<()> = Mutex::new(());

pub(crate) const SOCKETIO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/socketio-compliance.toml");
pub(crate) const NAMESPACES: &str = r#"socketio.namespaces=["/","/custom","/guild/*"]"#;
/// For stock clients, which may be busy for longer than the 200 ms that the protocols' suites give a pong.
pub(crate) const PATIENT: &str = "heartbeat.ping_timeout_ms=5000";
/// Who drops out can come back, for so long that busy clients do, and not for longer than a test may wait.
const RECOVERY: &str = "socketio.recovery_ms=5000";
pub(crate) const NODE: &str =
    "install Node 18 or later with npm (Debian and Ubuntu: apt-get install nodejs npm)";
pub(crate) const PYTHON: &str =
    "install Python 3.11 or later with venv (Debian and Ubuntu: apt-get install python3 python3-venv)";

#[test]
fn node_clients_agree_with_us() {
    check_native(node("node/native.mjs"), NODE);
}

#[test]
fn python_clients_agree_with_us() {
    check_native(python("native.py"), PYTHON);
}

#[test]
fn engineio_is_spoken_as_its_protocol_says() {
    check_socketio(|server| with_address(node("node/engineio.mjs"), server), NODE, &[], 40);
}

#[test]
fn socketio_is_spoken_as_its_protocol_says() {
    check_socketio(|server| with_address(node("node/socketio.mjs"), server), NODE, &[], 25);
}

#[test]
fn socketio_clients_of_node_agree_with_us() {
    check_socketio(|server| with_address(node("node/socketio_client.mjs"), server), NODE, &[PATIENT], 40);
}

#[test]
fn socketio_clients_with_the_msgpack_parser_agree_with_us() {
    check_socketio(|server| with_address(node("node/msgpack.mjs"), server), NODE, &[PATIENT], 35);
}

#[test]
fn socketio_clients_of_node_are_recovered() {
    let script = |server: &Server| {
        let mut script = with_address(node("node/recovery.mjs"), server);
        script.arg(format!("--control=http://{}", server.control_address()));
        script
    };
    let settings = [
        PATIENT,
        RECOVERY,
        r#"socketio.connect_event="""#,
        r#"socketio.recovery_bytes_max="2MiB""#,
        r#"socketio.recovery_session_bytes_max="256KiB""#,
    ];
    check_socketio(script, NODE, &settings, 40);
}

#[test]
fn socketio_clients_of_python_agree_with_us() {
    check_socketio(|server| with_address(python("socketio_client.py"), server), PYTHON, &[PATIENT], 50);
}

#[test]
fn socketio_clients_of_python_agree_with_us_where_others_are_recovered() {
    let script = |server: &Server| {
        let mut script = with_address(python("socketio_client.py"), server);
        script.arg("--recovery");
        script
    };
    check_socketio(script, PYTHON, &[PATIENT, RECOVERY], 50);
}

#[test]
fn socketio_clients_in_a_browser_agree_with_us() {
    let install = "install Node 18 or later with npm, and Chromium (Debian: apt-get install nodejs npm chromium), or \
                   set CHROMIUM to the path of a Chromium or Chrome";
    check_socketio(|server| with_address(node("browser/run.mjs"), server), install, &[PATIENT], 25);
}

/// A script for Node, its packages being there.
pub(crate) fn node(script: &str) -> Command {
    let installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(FOREIGN).join("node");
    // npm writes the hidden copy of the lock file last, so it is there exactly when all packages are.
    if !is_newer(&folder.join("node_modules/.package-lock.json"), &folder.join("package-lock.json")) {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder);
        run(npm, NODE, INSTALL_MAX);
    }
    drop(installing);
    let mut node = Command::new("node");
    node.arg(Path::new(FOREIGN).join(script));
    node
}

/// A script for Python, its packages being there.
pub(crate) fn python(script: &str) -> Command {
    let installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(FOREIGN).join("python");
    let requirements = folder.join("requirements.txt");
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign-python");
    let python = environment.join("bin/python");
    // A copy of what was asked for, written when it is all there.
    let installed = environment.join("installed.txt");
    let wanted = fs::read(&requirements).expect("the list of packages");
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&environment);
        run(venv, PYTHON, INSTALL_MAX);
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(&requirements);
        run(pip, PYTHON, INSTALL_MAX);
        fs::write(&installed, &wanted).expect("the environment is ours");
    }
    drop(installing);
    let mut python = Command::new(python);
    python.arg(folder.join(script));
    python
}

/// Runs a script of checks of the native protocol against a server with four shards.
fn check_native(mut script: Command, install: &str) {
    let server = Server::with(&["server.shards=4"]);
    script.arg(format!("ws://{}/ws", server.address()));
    check(script, install, 20);
    server.wait_for_number("sockets", 0);
}

/// A script that is told where Socket.IO is spoken.
fn with_address(mut script: Command, server: &Server) -> Command {
    script.arg(format!("http://{}", server.address()));
    script
}

/// Runs a script of checks of Socket.IO against a server with one shard, then against one with four, where the requests of one session
/// arrive on any of them, and so does who comes back.
fn check_socketio(script: impl Fn(&Server) -> Command, install: &str, settings: &[&str], checks_min: u32) {
    for shards in ["server.shards=1", "server.shards=4"] {
        let settings = [&[NAMESPACES, shards], settings].concat();
        let mut flags = vec!["--config", SOCKETIO];
        flags.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        let server = Server::with_flags(&flags);
        check(script(&server), install, checks_min);
        // Sessions over polling that were left behind end when no pong comes.
        server.wait_for_number("connections", 0);
        server.wait_for_number("sockets", 0);
        // And what could have come back, too.
        server.wait_for_number("rooms", 0);
    }
}

/// Runs a script of checks, of which there are at least so many.
pub(crate) fn check(script: Command, install: &str, checks_min: u32) {
    let output = run(script, install, CHECKS_MAX);
    let last = output.lines().last().unwrap_or_default();
    let passed = last.strip_suffix(" passed, 0 failed").and_then(|count| count.parse::<u32>().ok());
    let enough = passed.is_some_and(|count| count >= checks_min);
    assert!(enough, "the script makes fewer checks than it did: {last}");
}

/// Runs a program to its end and answers what it printed.
///
/// # Panics
/// With what it printed, when it is missing, fails or takes too long.
pub(crate) fn run(mut command: Command, install: &str, time: Duration) -> String {
    let shown = format!("{command:?}");
    let log = Log::new();
    let open = || {
        fs::File::options()
            .append(true)
            .create(true)
            .open(&log.0)
            .expect("cargo's folder for tests can be written")
    };
    command.stdin(Stdio::null()).stdout(open()).stderr(open());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}; {install}"));
    let deadline = Deadline::after(time);
    let status = loop {
        match child.try_wait().expect("it is our child") {
            Some(status) => break Some(status),
            None if deadline.is_over() => {
                // It may just have ended.
                child.kill().ok();
                child.wait().ok();
                break None;
            }
            None => rest(Duration::from_millis(20)),
        }
    };
    let output = fs::read_to_string(&log.0).unwrap_or_default();
    match status {
        Some(status) if status.success() => output,
        Some(status) => panic!("{shown}: {status}; if something is missing, {install}\n{output}"),
        None => panic!("{shown} is not done after {time:?}\n{output}"),
    }
}

/// A file for what a program prints, removed in the end.
struct Log(PathBuf);

impl Log {
    fn new() -> Log {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().replace("::", "-");
        Log(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.log", std::process::id())))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // It is there unless the program was not.
        fs::remove_file(&self.0).ok();
    }
}

/// True when both files are there and `file` was written after `other`.
fn is_newer(file: &Path, other: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time(file)
        .is_some_and(|time_of_file| time(other).is_some_and(|time_of_other| time_of_file >= time_of_other))
}
