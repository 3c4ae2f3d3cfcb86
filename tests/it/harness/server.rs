//! The built program as a child process, from its first log line to its end.

use super::WAIT;
use super::client::Client;
use super::clock::{Deadline, LOOK_AGAIN, eventually, rest};
use super::http::Response;
use super::numbers::Metrics;
use super::raw::Raw;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The program that cargo has built for this test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_throng");
/// How a server is set up where a test does not say otherwise. Tests run side by side on few processors: a shard that insisted on one would
/// wait for other tests' servers.
pub(crate) const DEFAULTS: [&str; 6] = [
    "server.listen=127.0.0.1:0",
    "server.control=127.0.0.1:0",
    "server.shards=2",
    "server.pin=false",
    "log.format=json",
    // Others may take the memory of the machine meanwhile.
    "limits.memory_percent_max=100",
];

/// True where a process may have a world of its own, as root anywhere and others where the machine allows it.
pub(crate) fn has_mount_namespaces() -> bool {
    let allowed = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    allowed.is_ok_and(|status| status.success())
}

/// A server on ports of its own. It is killed when this is dropped, and its log shown when the test has failed.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: Arc<Log>,
    address: SocketAddr,
    control: SocketAddr,
    /// True when the log may have lines of the level ERROR.
    may_fail: bool,
}

/// What the program has written to standard error.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    /// True exactly when no more will come.
    ended: bool,
}

impl Server {
    /// A server with two shards and otherwise at its defaults.
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// A server with these settings, written `key=value`.
    pub(crate) fn with(settings: &[&str]) -> Server {
        Server::with_flags(&settings.iter().flat_map(|setting| ["--set", *setting]).collect::<Vec<_>>())
    }

    /// A server with these flags of the command line.
    pub(crate) fn with_flags(flags: &[&str]) -> Server {
        Server::spawn(Command::new(PROGRAM), flags)
    }

    /// A server with two shards and otherwise at its defaults, in this environment.
    pub(crate) fn with_environment(environment: &[(&str, &str)]) -> Server {
        Server::spawn_in(environment, Command::new(PROGRAM), &[])
    }

    /// A server that starts with a limit on open files of `descriptors`, hard and soft.
    pub(crate) fn with_descriptors(descriptors: u32) -> Server {
        let mut shell = Command::new("/bin/sh");
        // The shell becomes the program, so that the process we end is the server.
        shell.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), PROGRAM]);
        Server::spawn(shell, &[])
    }

    /// A server that sees nothing in `/proc` but processes, as units with `ProcSubset=pid` have it. Only root can start one.
    pub(crate) fn with_processes_only(flags: &[&str]) -> Server {
        let mut shell = Command::new("/usr/bin/unshare");
        let script = "mount -t proc -o subset=pid proc /proc && exec \"$0\" \"$@\"";
        shell.args(["-m", "/bin/sh", "-c", script, PROGRAM]);
        Server::spawn(shell, flags)
    }

    /// A server that is told by this file how much memory the machine has, in place of `/proc/meminfo`.
    pub(crate) fn with_memory_of(meminfo: &Path, flags: &[&str]) -> Server {
        let mut shell = Command::new("/usr/bin/unshare");
        let script = "mount --bind \"$0\" /proc/meminfo && exec \"$@\"";
        shell.args(["--map-root-user", "--mount", "/bin/sh", "-c", script]).arg(meminfo).arg(PROGRAM);
        Server::spawn(shell, flags)
    }

    fn spawn(command: Command, flags: &[&str]) -> Server {
        Server::spawn_in(&[], command, flags)
    }

    fn spawn_in(environment: &[(&str, &str)], mut command: Command, flags: &[&str]) -> Server {
        command.arg("serve").args(DEFAULTS.iter().flat_map(|setting| ["--set", *setting])).args(flags);
        let (child, log) = launch(command, environment);
        let mut server =
            Server { child, log, address: ([0; 4], 0).into(), control: ([0; 4], 0).into(), may_fail: false };
        let listening = server.wait_for_log("listening");
        let address = |field: &str| listening["fields"][field].as_str().and_then(|text| text.parse().ok());
        server.address = address("listen").unwrap_or_else(|| panic!("no address: {listening}"));
        // With the control port off, there is nobody to ask, and the tests that do so do not.
        server.control = address("control").unwrap_or(server.control);
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port that clients connect to.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn control_address(&self) -> SocketAddr {
        self.control
    }

    /// A client of the native protocol.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// `count` clients of the native protocol, the first ones of this server, on at least two shards.
    pub(crate) fn crowd(&self, count: usize) -> Vec<Client> {
        let mut clients: Vec<Client> = (0..count).map(|_| self.client()).collect();
        // The kernel chooses. With two shards, half of these attempts to better its choice fail.
        for _ in 0..64 {
            self.wait_for_number("connections", count as u64);
            if self.shards_in_use() >= 2 {
                return clients;
            }
            drop(clients.remove(0));
            clients.push(self.client());
        }
        panic!("the kernel puts all connections on one shard");
    }

    /// A TCP connection to the port for clients.
    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(self.address)
    }

    /// A WebSocket at `path` whose bytes are ours.
    pub(crate) fn socket(&self, path: &str) -> Raw {
        let mut raw = self.raw();
        raw.upgrade(path);
        raw
    }

    /// How many shards have a connection.
    pub(crate) fn shards_in_use(&self) -> usize {
        let stats = self.stats();
        let shards = stats["shards"].as_array().expect("an array of shards");
        shards.iter().filter(|shard| shard["connections"].as_u64() > Some(0)).count()
    }

    /// `/stats` of the control port.
    pub(crate) fn stats(&self) -> Value {
        let response = self.control("/stats");
        assert_eq!(response.status, 200);
        response.json()
    }

    /// One number of `/stats`, its path written as in `totals/sends`.
    pub(crate) fn number(&self, path: &str) -> u64 {
        let stats = self.stats();
        stats
            .pointer(&format!("/{path}"))
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("/stats has no number {path}: {stats}"))
    }

    /// Waits until a number of `/stats` is what it should be.
    pub(crate) fn wait_for_number(&self, path: &str, expected: u64) {
        self.wait_for(path, &format!("to be {expected}"), |number| number == expected);
    }

    /// Waits until a number of `/stats` is as `holds` wants it, and answers it.
    pub(crate) fn wait_for(&self, path: &str, what: &str, holds: impl Fn(u64) -> bool) -> u64 {
        let deadline = Deadline::after(WAIT);
        loop {
            let number = self.number(path);
            if holds(number) {
                return number;
            }
            assert!(!deadline.is_over(), "{path} is {number}; it was {what}");
            rest(LOOK_AGAIN);
        }
    }

    /// `/metrics` of the control port.
    pub(crate) fn metrics(&self) -> Metrics {
        let response = self.control("/metrics");
        assert_eq!(response.status, 200);
        Metrics::parse(&response.body)
    }

    /// A GET on the control port, on a connection of its own.
    pub(crate) fn control(&self, path: &str) -> Response {
        let mut raw = Raw::connect(self.control);
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: throng\r\nConnection: close\r\n\r\n"));
        raw.response()
    }

    /// Resident memory in bytes, as the kernel has it now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the server runs").count()
    }

    /// User and system time of the server so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the server runs");
        // The name, in brackets, is the only field that may have spaces. `utime` and `stime` are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks: u64 = fields
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("a number of ticks"))
            .sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the server runs and is ours");
    }

    /// Waits for the process to end by itself. The log may have errors after that.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        self.may_fail = true;
        eventually("the server ends", || self.child.try_wait().expect("it is our child"))
    }

    /// True when the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for a log line with this message, and answers it whole.
    pub(crate) fn wait_for_log(&mut self, message: &str) -> Value {
        let deadline = Deadline::after(WAIT);
        let mut lines = self.log.lock();
        let mut seen = 0;
        loop {
            for line in &lines.lines[seen..] {
                let line: Value = serde_json::from_str(line).unwrap_or_default();
                if line["fields"]["message"] == message {
                    return line;
                }
            }
            seen = lines.lines.len();
            let log = || lines.lines.join("\n");
            assert!(!lines.ended, "the server has ended without saying {message:?}:\n{}", log());
            assert!(!deadline.is_over(), "the server does not say {message:?}:\n{}", log());
            lines = self.log.grown.wait_timeout(lines, deadline.left()).expect("no reader panicked").0;
        }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().lines.join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        // An error means that it has ended meanwhile, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
        let mut log = String::new();
        for line in &self.log.lock().lines {
            writeln!(log, "  {line}").expect("a string takes all that memory holds");
        }
        if std::thread::panicking() {
            eprintln!("the server ({ended:?}) on {} said:\n{log}", self.address);
            return;
        }
        assert!(!log.contains("panicked"), "the server panicked:\n{log}");
        if !self.may_fail {
            assert!(matches!(ended, Ok(None)), "the server has ended by itself: {ended:?}\n{log}");
            assert!(!log.contains("\"ERROR\""), "the server had errors:\n{log}");
        }
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        // A test that fails while it looks at the log is to end with that failure, and the log still to be shown.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a run of the program to its end.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program with these arguments, and this environment and no other, to its end.
///
/// # Panics
/// When it takes longer than [`WAIT`].
pub(crate) fn run(env: &[(&str, &str)], args: &[&str]) -> Outcome {
    let mut command = Command::new(PROGRAM);
    command.args(args);
    run_command(command, env)
}

/// The same for any command, such as a shell that becomes the program.
pub(crate) fn run_command(mut command: Command, env: &[(&str, &str)]) -> Outcome {
    command.stdout(Stdio::piped());
    let (mut child, log) = launch(command, env);
    let deadline = Deadline::after(WAIT);
    let mut lines = log.lock();
    while !lines.ended {
        if deadline.is_over() {
            child.kill().ok();
            panic!("it does not end:\n{}", lines.lines.join("\n"));
        }
        lines = log.grown.wait_timeout(lines, deadline.left()).expect("no reader panicked").0;
    }
    let stderr = lines.lines.join("\n");
    // It has closed standard error, so it is about to end, and its answer is far shorter than a pipe holds.
    let output = child.wait_with_output().expect("it is our child");
    Outcome { code: output.status.code(), stdout: String::from_utf8(output.stdout).expect("text"), stderr }
}

/// Starts `command` with this environment instead of ours, and collects what it writes to standard error.
fn launch(mut command: Command, env: &[(&str, &str)]) -> (Child, Arc<Log>) {
    command.env_clear().envs(env.iter().copied()).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program is there");
    let stderr = child.stderr.take().expect("it is piped");
    let log = Arc::new(Log::default());
    let writer = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines() {
            // A line that is no text ends the log; what is missing then shows in the test.
            let Ok(line) = line else { break };
            writer.lock().lines.push(line);
            writer.grown.notify_all();
        }
        writer.lock().ended = true;
        writer.grown.notify_all();
    });
    (child, log)
}
