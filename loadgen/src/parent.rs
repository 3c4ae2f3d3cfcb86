//! The parent process: plans the workers, starts them, gives them their orders and waits for them. Connections are
//! theirs; the parent measures the server and keeps the clock.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::args::{Common, ScenarioArgs};
use crate::clock::{self, MILLISECOND_NS, SECOND_NS, now_ns};
use crate::control::{Channel, Command, Done, Place, Plan, Progress, Reply, Window};
use crate::proc::{self, Memory, Server, Span};
use crate::report::{Figures, Tally};

/// Descriptors of a worker that are not connections: standard ones, epoll, channels, and some to spare.
const DESCRIPTORS_RESERVED: u32 = 64;
/// How long a worker may take for what has no bound of its own.
const PATIENCE_NS: u64 = 30 * SECOND_NS;
/// A server's memory is settled when it has not changed for this long.
const SETTLE_NS: u64 = 200 * MILLISECOND_NS;
const SETTLE_MAX_NS: u64 = 2 * SECOND_NS;
/// From the order to run until the run, so that all workers have heard of it.
pub(crate) const START_NS: u64 = 20 * MILLISECOND_NS;
/// Between two looks at the server's memory in `all_done_sampling`.
const SAMPLE_NS: u64 = 20 * MILLISECOND_NS;

/// A scenario, as the parent carries it out.
pub(crate) trait Phases {
    /// Goes through all phases; what was measured by then stays measured when it is halted.
    fn run(&mut self, parent: &mut Parent, server: Option<&Server>) -> Result<(), Halt>;

    /// What was measured, together with what the workers counted.
    fn figures(&self, tally: &Tally, server: Option<&Server>) -> Figures;
}

/// Why a run ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The user wants to stop.
    Signal(i32),
    /// A worker is gone or does not answer.
    Failed(String),
}

pub(crate) struct Parent {
    remotes: Vec<Remote>,
    /// Each is readable once its signal came.
    signals: [(i32, UnixStream); 2],
    connections: u32,
    /// The longest that connecting or joining can take by the workers' own bounds.
    opening_ns: u64,
    bar: ProgressBar,
    bar_shows: BarShows,
}

/// What the progress bar is the progress of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BarShows {
    /// Connections that are open.
    Open,
    /// What the scenario counts: connections that joined.
    Count,
    /// The clock, between these two moments.
    Time { from_ns: u64, to_ns: u64 },
}

/// One worker process.
struct Remote {
    child: Child,
    channel: Channel,
    /// `true` exactly when an order was given that it has not answered.
    busy: bool,
    progress: Progress,
    done: Done,
    report: Option<Tally>,
}

/// Divides the work among as many processes as the descriptor limit asks for, or as the user does.
pub(crate) fn plan(common: &Common, publishers: u32, scenario: &ScenarioArgs) -> Result<Vec<Plan>, String> {
    let capacity = proc::raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_RESERVED);
    let fits = |workers: u32| {
        u64::from(common.connections.div_ceil(workers)) + u64::from(publishers) <= capacity.into()
    };
    let workers = match common.processes {
        Some(workers) => workers.min(common.connections),
        None => (1..=1_000.min(common.connections)).find(|workers| fits(*workers)).unwrap_or(1),
    };
    if !fits(workers) {
        return Err(format!(
            "{} connections do not fit into {workers} processes of {capacity} descriptors each (see ulimit -n)",
            common.connections
        ));
    }
    let sources = common.sources()?;
    let tokens = common.tokens()?;
    let servers = match scenario {
        ScenarioArgs::Fanout(args) if !args.servers.is_empty() => args.servers.as_slice(),
        _ => std::slice::from_ref(&common.target),
    };
    let targets: Vec<Place> =
        servers.iter().map(|target| Place { address: target.address, host: target.host.clone() }).collect();
    let mut first = 0;
    let plans = (0..workers).map(|worker| {
        let connections = common.connections / workers + u32::from(worker < common.connections % workers);
        first += connections;
        Plan {
            worker,
            workers,
            first: first - connections,
            connections,
            targets: targets.clone(),
            protocol: common.proto,
            path: common.path(scenario),
            tokens: tokens.clone(),
            sources,
            connect_rate: common.connect_rate / f64::from(workers),
            connecting_max: (common.connecting / workers).max(1),
            timeout_ns: clock::seconds_ns(common.timeout),
            mask: common.mask,
            cpu: common.cpus.as_ref().map(|cpus| cpus.0[worker as usize % cpus.0.len()]),
            scenario: scenario.clone(),
        }
    });
    Ok(plans.collect())
}

impl Parent {
    /// Starts one process for each plan.
    pub(crate) fn start(common: &Common, plans: &[Plan]) -> Result<Self, Halt> {
        let failed = |error: io::Error| Halt::Failed(format!("cannot start the workers: {error}"));
        let connections = f64::from(common.connections);
        let paced_seconds = if common.connect_rate > 0.0 { connections / common.connect_rate } else { 0.0 };
        let style = ProgressStyle::with_template("{prefix:>12} [{wide_bar}] {percent:>3} %  {msg}");
        let mut parent = Self {
            remotes: Vec::with_capacity(plans.len()),
            signals: [watch_signal(SIGINT).map_err(failed)?, watch_signal(SIGTERM).map_err(failed)?],
            connections: common.connections,
            // The workers give up a queue that moves slower than 250 connections a second.
            opening_ns: clock::seconds_ns(paced_seconds + connections / 250.0 + 2.0 * common.timeout)
                + PATIENCE_NS,
            bar: ProgressBar::new(1).with_style(style.expect("the template is sound").progress_chars("=> ")),
            bar_shows: BarShows::Open,
        };
        // The workers' way to tell the first one that all their subscribers have a batch: they write to one end, it
        // reads from the other. Datagrams, so that what several write does not mix.
        let (reader, writer) = UnixDatagram::pair().map_err(failed)?;
        for plan in plans {
            let completions = if plan.worker == 0 { &reader } else { &writer };
            let completions = OwnedFd::from(completions.try_clone().map_err(failed)?);
            parent.remotes.push(Remote::start(plan, completions).map_err(failed)?);
        }
        Ok(parent)
    }

    /// Gives all workers an order.
    pub(crate) fn order(&mut self, command: &Command) -> Result<(), Halt> {
        for remote in &mut self.remotes {
            remote.busy = true;
            if let Err(error) = remote.channel.send(command) {
                return Err(remote.gone(&error));
            }
        }
        Ok(())
    }

    /// Opens all connections and measures it. False when none could be opened, so that there is nothing to go on with.
    pub(crate) fn connect(&mut self, span: &mut Option<Span>, server: Option<&Server>) -> Result<bool, Halt> {
        self.show("connecting", BarShows::Open);
        let done = self.timed(&Command::Connect, span, server)?;
        Ok(done.iter().any(|done| done.open > 0))
    }

    /// Joins with all open connections and measures it.
    pub(crate) fn join(&mut self, span: &mut Option<Span>, server: Option<&Server>) -> Result<(), Halt> {
        self.show("joining", BarShows::Count);
        self.timed(&Command::Join, span, server).map(|_| ())
    }

    /// Gives an order and waits until all workers have carried it out; measures how long that takes.
    fn timed(
        &mut self,
        command: &Command,
        span: &mut Option<Span>,
        server: Option<&Server>,
    ) -> Result<Vec<Done>, Halt> {
        let span = span.insert(Span::begin(server));
        self.order(command)?;
        let done = self.all_done()?;
        span.end(server);
        Ok(done)
    }

    /// Starts the run and measures its window; returns at the end of the window, while what is under way still comes in.
    pub(crate) fn measured_run(
        &mut self,
        warmup_seconds: f64,
        seconds: f64,
        span: &mut Option<Span>,
        server: Option<&Server>,
    ) -> Result<(), Halt> {
        let start_ns = now_ns() + START_NS;
        let from_ns = start_ns + clock::seconds_ns(warmup_seconds);
        let to_ns = from_ns + clock::seconds_ns(seconds);
        self.order(&Command::Run(Window { start_ns, from_ns, to_ns }))?;
        self.stage("warming up", warmup_seconds);
        self.until(from_ns)?;
        let span = span.insert(Span::begin(server));
        self.stage("measuring", seconds);
        self.until(to_ns)?;
        span.end(server);
        Ok(())
    }

    /// Shows a phase of a fixed length that begins now.
    pub(crate) fn stage(&mut self, label: &'static str, seconds: f64) {
        let from_ns = now_ns();
        self.show(label, BarShows::Time { from_ns, to_ns: from_ns + clock::seconds_ns(seconds) });
    }

    /// Tells the user to do something, on standard error.
    pub(crate) fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("throng-load: {text}"));
    }

    /// Begins the progress bar anew. It shows only where standard error is a terminal.
    pub(crate) fn show(&mut self, label: &'static str, shows: BarShows) {
        self.bar_shows = shows;
        let length = match shows {
            BarShows::Open | BarShows::Count => u64::from(self.connections),
            BarShows::Time { from_ns, to_ns } => (to_ns - from_ns) / MILLISECOND_NS,
        };
        self.bar.reset();
        self.bar.set_prefix(label);
        self.bar.set_length(length.max(1));
        self.draw();
    }

    /// Waits for a moment.
    pub(crate) fn until(&mut self, at_ns: u64) -> Result<(), Halt> {
        self.wait(at_ns, |_| false).map(|_| ())
    }

    /// Waits until no worker is busy.
    pub(crate) fn all_done(&mut self) -> Result<Vec<Done>, Halt> {
        self.all_done_within(0)
    }

    /// The same, where a worker may wait so long for what is under way.
    pub(crate) fn all_done_within(&mut self, wait_ns: u64) -> Result<Vec<Done>, Halt> {
        self.all_done_sampling(wait_ns, u64::MAX, || {})
    }

    /// The same, and calls `sample` 50 times a second in the meantime.
    pub(crate) fn all_done_and(&mut self, sample: impl FnMut()) -> Result<Vec<Done>, Halt> {
        self.all_done_sampling(0, SAMPLE_NS, sample)
    }

    /// What all workers counted. They end with it.
    pub(crate) fn reports(&mut self) -> Result<Tally, Halt> {
        // One who wants to stop has said so already, and another signal must not cost the report.
        self.bar.finish_and_clear();
        for remote in &mut self.remotes {
            // A phase that was halted may end just now; only the report counts.
            if let Err(error) = remote.channel.send(&Command::Report) {
                return Err(remote.gone(&error));
            }
        }
        let deadline_ns = now_ns() + PATIENCE_NS;
        while self.remotes.iter().any(|remote| remote.report.is_none()) {
            if now_ns() >= deadline_ns {
                return Err(Halt::Failed("a worker does not report".to_owned()));
            }
            match self.turn(now_ns() + SECOND_NS) {
                Ok(()) | Err(Halt::Signal(_)) => {}
                Err(halt) => return Err(halt),
            }
        }
        let mut tally = Tally::new();
        for report in self.remotes.iter().filter_map(|remote| remote.report.as_ref()) {
            tally.add(report);
        }
        Ok(tally)
    }

    /// The server's memory once it does not change any more, or after two seconds.
    pub(crate) fn settled_memory(&mut self, server: Option<&Server>) -> Result<Option<Memory>, Halt> {
        let Some(server) = server else { return Ok(None) };
        let deadline_ns = now_ns() + SETTLE_MAX_NS;
        let mut last = server.memory().ok();
        loop {
            self.until(now_ns() + SETTLE_NS)?;
            let memory = server.memory().ok();
            let rss_bytes = |memory: &Option<Memory>| memory.map(|memory| memory.rss_bytes);
            if rss_bytes(&memory) == rss_bytes(&last) || now_ns() >= deadline_ns {
                return Ok(memory);
            }
            last = memory;
        }
    }

    fn all_done_sampling(
        &mut self,
        wait_ns: u64,
        sample_ns: u64,
        mut sample: impl FnMut(),
    ) -> Result<Vec<Done>, Halt> {
        let deadline_ns = now_ns() + self.opening_ns + wait_ns;
        loop {
            let until_ns = deadline_ns.min(now_ns().saturating_add(sample_ns));
            if self.wait(until_ns, |parent| parent.remotes.iter().all(|remote| !remote.busy))? {
                return Ok(self.remotes.iter().map(|remote| remote.done.clone()).collect());
            }
            if now_ns() >= deadline_ns {
                return Err(Halt::Failed("a worker does not come to an end".to_owned()));
            }
            sample();
        }
    }

    /// Waits until something is so, or for a moment; tells which by true and false.
    fn wait(&mut self, deadline_ns: u64, is_so: impl Fn(&Self) -> bool) -> Result<bool, Halt> {
        loop {
            if is_so(self) {
                return Ok(true);
            }
            if now_ns() >= deadline_ns {
                return Ok(false);
            }
            self.turn(deadline_ns)?;
            self.draw();
        }
    }

    /// Waits for a word from a worker or a signal, and takes it in.
    fn turn(&mut self, deadline_ns: u64) -> Result<(), Halt> {
        let signals = self.signals.iter().map(|(_, stream)| stream.as_fd());
        let channels = self.remotes.iter().map(|remote| remote.channel.as_fd());
        let mut polled: Vec<PollFd<'_>> =
            signals.chain(channels).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut polled, clock::wait(now_ns(), deadline_ns).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Halt::Failed(format!("cannot wait for the workers: {error}"))),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        for (remote, _) in self.remotes.iter_mut().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            remote.take_in()?;
        }
        for ((signal, stream), _) in self.signals.iter().zip(&ready).filter(|(_, ready)| **ready) {
            let mut taken = [0; 16];
            // Taken, so that it is not seen again; how many bytes there were does not matter.
            if rustix::net::recv(stream, &mut taken[..], rustix::net::RecvFlags::DONTWAIT).is_ok() {
                return Err(Halt::Signal(*signal));
            }
        }
        Ok(())
    }

    fn draw(&self) {
        let open = self.remotes.iter().map(|remote| remote.progress.open).sum::<u64>();
        let count = self.remotes.iter().map(|remote| remote.progress.count).sum::<u64>();
        self.bar.set_position(match self.bar_shows {
            BarShows::Open => open,
            BarShows::Count => count,
            BarShows::Time { from_ns, to_ns } => now_ns().min(to_ns).saturating_sub(from_ns) / MILLISECOND_NS,
        });
        self.bar.set_message(format!("{open} open, {count} joined or received"));
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for remote in &mut self.remotes {
            // One that has reported ends by itself, and to kill what has ended is no error worth telling.
            if remote.report.is_none() && remote.child.kill().is_err() {
                continue;
            }
            if let Err(error) = remote.child.wait() {
                eprintln!("throng-load: cannot wait for a worker: {error}");
            }
        }
    }
}

impl Remote {
    fn start(plan: &Plan, completions: OwnedFd) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // A process group of its own, so that Ctrl-C reaches the parent only, which then asks the workers to report.
        let child = Process::new("/proc/self/exe")
            .arg0("throng-load")
            .arg("worker")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(completions))
            .process_group(0)
            .spawn()?;
        ours.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut channel = Channel::new(ours);
        channel.send(plan)?;
        Ok(Self {
            child,
            channel,
            busy: false,
            progress: Progress::default(),
            done: Done::default(),
            report: None,
        })
    }

    fn take_in(&mut self) -> Result<(), Halt> {
        let replies = match self.channel.receive::<Reply>() {
            Ok(replies) => replies,
            // It has said all it had to.
            Err(_) if self.report.is_some() => return Ok(()),
            Err(error) => return Err(self.gone(&error)),
        };
        for reply in replies {
            match reply {
                Reply::Progress(progress) => self.progress = progress,
                Reply::Done(done) => {
                    self.busy = false;
                    self.progress.open = done.open;
                    self.done = done;
                }
                Reply::Report(report) => self.report = Some(*report),
                Reply::Failed(reason) => {
                    return Err(Halt::Failed(format!("worker process {} failed: {reason}", self.child.id())));
                }
            }
        }
        Ok(())
    }

    /// Why there is nothing more to hear from it.
    fn gone(&mut self, error: &io::Error) -> Halt {
        let pid = self.child.id();
        // It closed its channel, so it has ended or is about to; killing makes sure of it.
        let status = self.child.kill().and_then(|()| self.child.wait());
        Halt::Failed(match status {
            Ok(status) => format!("worker process {pid} died: {status}"),
            Err(_) => format!("worker process {pid} died: {error}"),
        })
    }
}

/// A stream that becomes readable when the signal comes.
fn watch_signal(signal: i32) -> io::Result<(i32, UnixStream)> {
    let (reader, writer) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal, writer)?;
    Ok((signal, reader))
}
