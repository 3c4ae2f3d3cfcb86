//! Stock clients of other makers: `ws` from npm and `websockets` from PyPI, each with the checks of tests/foreign, against a server
//! with four shards. What is missing is installed into folders of ours; a program that is missing is a failure, not a skip.

use crate::harness::Server;
use crate::harness::clock::{Deadline, rest};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const FOREIGN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign");
/// The scripts stop themselves after 60 s.
const CHECKS_MAX: Duration = Duration::from_secs(75);
/// Packages come over the network.
const INSTALL_MAX: Duration = Duration::from_secs(180);

#[test]
fn node_clients_agree_with_us() {
    let folder = Path::new(FOREIGN).join("node");
    let install = "install Node 18 or later with npm (Debian and Ubuntu: apt-get install nodejs npm)";
    // npm writes the hidden copy of the lock file last, so it is there exactly when all packages are.
    if !is_newer(&folder.join("node_modules/.package-lock.json"), &folder.join("package-lock.json")) {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder);
        run(npm, install, INSTALL_MAX);
    }
    let mut node = Command::new("node");
    node.arg(folder.join("native.mjs"));
    check(node, install);
}

#[test]
fn python_clients_agree_with_us() {
    let folder = Path::new(FOREIGN).join("python");
    let install =
        "install Python 3.11 or later with venv (Debian and Ubuntu: apt-get install python3 python3-venv)";
    let requirements = folder.join("requirements.txt");
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign-python");
    let python = environment.join("bin/python");
    // A copy of what was asked for, written when it is all there.
    let installed = environment.join("installed.txt");
    let wanted = fs::read(&requirements).expect("the list of packages");
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&environment);
        run(venv, install, INSTALL_MAX);
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(&requirements);
        run(pip, install, INSTALL_MAX);
        fs::write(&installed, &wanted).expect("the environment is ours");
    }
    let mut python = Command::new(python);
    python.arg(folder.join("native.py"));
    check(python, install);
}

/// Runs a script of checks against a server of its own.
fn check(mut script: Command, install: &str) {
    let server = Server::with(&["server.shards=4"]);
    script.arg(format!("ws://{}/ws", server.address()));
    let output = run(script, install, CHECKS_MAX);
    let last = output.lines().last().unwrap_or_default();
    let passed = last.strip_suffix(" passed, 0 failed").and_then(|count| count.parse::<u32>().ok());
    assert!(passed.is_some_and(|count| count >= 20), "the script makes fewer checks than it did: {last}");
    server.wait_for_number("sockets", 0);
}

/// Runs a program to its end and answers what it printed.
///
/// # Panics
/// With what it printed, when it is missing, fails or takes too long.
fn run(mut command: Command, install: &str, time: Duration) -> String {
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
