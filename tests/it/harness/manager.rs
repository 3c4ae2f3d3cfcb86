//! A service under a stand-in for systemd's manager, `tests/foreign/python/manager.py`, which speaks its protocols.

use super::WAIT;
use super::clock::Deadline;
use super::server::{DEFAULTS, PROGRAM};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/python/manager.py");

/// A manager and its one service. Both end when this is dropped, and what both said is shown when the test has failed.
#[derive(Debug)]
pub(crate) struct Manager {
    child: Child,
    /// Taken exactly when this is dropped.
    orders: Option<ChildStdin>,
    events: Heard,
    log: Heard,
}

/// What the manager has noticed or done. Its other fields are in the tables of [`Manager::wait_for`].
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Microseconds of CLOCK_MONOTONIC.
    pub(crate) at_us: u64,
    fields: Value,
}

impl Manager {
    /// A manager with these options (`manager.py --help` lists them) whose service is the built throng with these settings, written
    /// `key=value`. It is not started before the manager is told so.
    pub(crate) fn of_throng(options: &[&str], settings: &[&str]) -> Manager {
        let settings = DEFAULTS.iter().chain(settings).flat_map(|setting| ["--set", setting]);
        let program: Vec<&str> = [PROGRAM, "serve"].into_iter().chain(settings).collect();
        Manager::of(options, &program)
    }

    /// A manager with these options whose service is this program with its arguments.
    pub(crate) fn of(options: &[&str], program: &[&str]) -> Manager {
        let mut python = Command::new("python3");
        python.arg(STAND_IN).args(options).arg("--").args(program);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = python.spawn().expect("Python is installed (.ci/setup)");
        let events = Heard::from(child.stdout.take().expect("it is piped"));
        let log = Heard::from(child.stderr.take().expect("it is piped"));
        Manager { orders: child.stdin.take(), child, events, log }
    }

    /// Gives an order: `start`, `stop`, `restart`, `reload`, `kill SIGNAL`, `status` or `quit`.
    pub(crate) fn order(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("it is not dropped");
        writeln!(orders, "{order}").expect("the manager runs");
    }

    /// Starts the service and waits until it has said that it is ready; answers its process.
    pub(crate) fn start(&mut self) -> u64 {
        self.order("start");
        let pid = self.wait_for("spawned").number("pid");
        self.wait_for("started");
        pid
    }

    /// The next event of this kind after the one that was waited for last.
    ///
    /// | kind | fields |
    /// |---|---|
    /// | `listening` | `address`, `name`: one for each `--listen`, first of all |
    /// | `spawned` | `pid`, `names` of the descriptors passed |
    /// | `notify` | `pid`, `uid`, `said`: variables, `descriptors`: how many, `refused`: null or why |
    /// | `started`, `reloading`, `reloaded` | |
    /// | `stopping` | `reason`: `stop`, `restart`, `notify`, `timeout`, `watchdog` |
    /// | `signalled` | `signal` |
    /// | `timeout` | `state`: `starting`, `reloading`, `stopping` |
    /// | `watchdog` | `requested`: by `WATCHDOG=trigger` |
    /// | `exited` | `pid`, `code` or `signal` |
    /// | `restarting` | `restarts`: which in a row |
    /// | `stopped` | `result`: `stop`, `clean`, `failed`, `start_limit` |
    /// | `stored`, `store_full`, `removed` | `name`; why removed: `reason`: `asked`, `hangup`, `stop` |
    /// | `status` | `state`, `pid`, `stored`: names, `restarts` |
    /// | `bad_command` | `command`, `state` |
    pub(crate) fn wait_for(&mut self, kind: &str) -> Event {
        self.wait_until(kind, |event| event.kind() == kind)
    }

    /// The next message of the service that is taken and has this variable; answers its value.
    pub(crate) fn wait_for_said(&mut self, variable: &str) -> String {
        self.wait_until(variable, |event| event.said(variable).is_some())
            .said(variable)
            .expect("it has it")
            .to_owned()
    }

    /// The next event for which `is_it` holds; `what` says what that is, for when it does not come.
    pub(crate) fn wait_until(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        self.events.wait_for(what, |line| {
            let fields: Value = serde_json::from_str(line).expect("events are JSON");
            let event = Event { at_us: fields["at_us"].as_u64().expect("each has its time"), fields };
            is_it(&event).then_some(event)
        })
    }

    /// The next line of the service's log with this message after the one that was waited for last, whole.
    pub(crate) fn wait_for_log(&mut self, message: &str) -> Value {
        self.log.wait_for(message, |line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            (line["fields"]["message"] == message).then_some(line)
        })
    }

    /// Where throng has come to listen, for clients and with its control port.
    pub(crate) fn wait_for_addresses(&mut self) -> (SocketAddr, SocketAddr) {
        let line = self.wait_for_log("listening");
        let address = |field: &str| line["fields"][field].as_str().and_then(|text| text.parse().ok());
        let both = address("listen").zip(address("control"));
        both.unwrap_or_else(|| panic!("no addresses: {line}"))
    }

    /// Where the manager listens for its service, in the order of the options.
    pub(crate) fn listening(&mut self, count: usize) -> Vec<SocketAddr> {
        (0..count).map(|_| self.wait_for("listening").text("address").parse().expect("an address")).collect()
    }

    /// All events so far, for what must not have happened. It leaves those to wait for as they are.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let taken = self.events.taken;
        self.order("status");
        self.wait_for("status");
        let events = self.events.lines[..std::mem::replace(&mut self.events.taken, taken)].iter();
        events
            .map(|line| serde_json::from_str(line).expect("events are JSON"))
            .map(|fields: Value| Event {
                at_us: fields["at_us"].as_u64().expect("each has its time"),
                fields,
            })
            .collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // At the end of its orders it kills the service, and ends.
        self.orders.take();
        let deadline = Deadline::after(WAIT);
        self.events.read_to_end(deadline);
        // If it still runs, it is not what it should be; the service dies with it. If not, there is nothing to kill.
        self.child.kill().ok();
        self.child.wait().ok();
        self.log.read_to_end(deadline);
        let log = self.log.lines.join("\n  ");
        if std::thread::panicking() {
            eprintln!("the manager said:\n  {}\nthe service said:\n  {log}", self.events.lines.join("\n  "));
            return;
        }
        assert!(
            !log.contains("panicked") && !log.contains("Traceback"),
            "the service or its manager failed:\n  {log}"
        );
    }
}

impl Event {
    pub(crate) fn kind(&self) -> &str {
        self.text("event")
    }

    /// A field that is text. Empty when it is not there, or null.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap_or_default()
    }

    /// A field that is a number.
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.fields[field].as_u64().unwrap_or_else(|| panic!("no number {field}: {self:?}"))
    }

    /// A field that is a list of names.
    pub(crate) fn names(&self, field: &str) -> Vec<&str> {
        let names = self.fields[field].as_array().unwrap_or_else(|| panic!("no names {field}: {self:?}"));
        names.iter().filter_map(Value::as_str).collect()
    }

    /// A variable of a message that was taken.
    pub(crate) fn said(&self, variable: &str) -> Option<&str> {
        let is_taken = self.kind() == "notify" && self.fields["refused"].is_null();
        is_taken.then(|| self.fields["said"][variable].as_str()).flatten()
    }
}

/// Lines that somebody writes, and how far they were gone through.
#[derive(Debug)]
struct Heard {
    to_come: Receiver<String>,
    lines: Vec<String>,
    /// Lines before this one were looked at.
    taken: usize,
}

impl Heard {
    fn from(source: impl Read + Send + 'static) -> Heard {
        let (sender, to_come) = channel();
        std::thread::spawn(move || {
            // What is no text ends it, and so does a test that has ended; what is missing then shows in the test.
            BufReader::new(source).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        Heard { to_come, lines: Vec::new(), taken: 0 }
    }

    /// What `look` finds in the next line in which it finds something.
    fn wait_for<T>(&mut self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Deadline::after(WAIT);
        loop {
            while let Some(line) = self.lines.get(self.taken) {
                self.taken += 1;
                if let Some(found) = look(line) {
                    return found;
                }
            }
            match self.to_come.recv_timeout(deadline.left()) {
                Ok(line) => self.lines.push(line),
                Err(error) => panic!("{what} does not come: {error}"),
            }
        }
    }

    fn read_to_end(&mut self, deadline: Deadline) {
        while let Ok(line) = self.to_come.recv_timeout(deadline.left()) {
            self.lines.push(line);
        }
    }
}
