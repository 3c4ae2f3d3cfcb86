//! A worker process: takes orders from the parent and turns its event loop. What the orders mean is the scenario's.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::args::ScenarioArgs;
use crate::auction::AuctionLoad;
use crate::chat::ChatLoad;
use crate::client::{CONTROL, Clients, Listener};
use crate::clock::{self, MILLISECOND_NS, now_ns, own_cpu_ns};
use crate::control::{Channel, Command, Done, Plan, Progress, Reply, Window};
use crate::echo::EchoLoad;
use crate::fanout::FanoutLoad;
use crate::idle::IdleLoad;
use crate::listen::ListenLoad;
use crate::proc;
use crate::report::Tally;
use crate::restart::RestartLoad;
use crate::storm::StormLoad;

/// How often the progress bar gets news.
const PROGRESS_NS: u64 = 250 * MILLISECOND_NS;

/// One scenario, as a worker carries it out.
pub(crate) trait Load: Listener {
    /// A phase begins, other than `Connect`, which is the same for all.
    fn begin(&mut self, clients: &mut Clients, command: &Command, now_ns: u64);

    /// Does what is due. Called after every turn; returns when to be called at the latest.
    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64;

    /// What the phase begun last came to, once it is over.
    fn over(&self, clients: &Clients, now_ns: u64) -> Option<Done>;

    /// The other workers have something to say.
    fn completions(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// For the progress bar.
    fn count(&self) -> u64;

    fn report(&mut self, tally: &mut Tally);
}

/// The whole life of a worker. An error is told to the parent, who prints it.
pub(crate) fn run() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let plan = read_plan(&control)?;
    let mut channel = Channel::new(control);
    let outcome = start(&plan, &mut channel);
    if let Err(error) = &outcome {
        channel.send(&Reply::Failed(error.to_string()))?;
    }
    outcome
}

fn start(plan: &Plan, channel: &mut Channel) -> io::Result<()> {
    if let Some(cpu) = plan.cpu {
        proc::pin(&[cpu]).map_err(io::Error::other)?;
    }
    let connections = plan.connections as usize;
    match &plan.scenario {
        ScenarioArgs::Idle(args) => {
            serve(channel, Clients::new(plan, connections)?, IdleLoad::new(plan, args), connections)
        }
        ScenarioArgs::Echo(args) => {
            serve(channel, Clients::new(plan, connections)?, EchoLoad::new(plan, args), connections)
        }
        ScenarioArgs::Fanout(args) => {
            let load = FanoutLoad::new(plan, args)?;
            let connections = connections + load.publishers();
            let clients = Clients::new(plan, connections)?;
            load.watch(&clients)?;
            serve(channel, clients, load, connections)
        }
        ScenarioArgs::Listen(args) => {
            serve(channel, Clients::new(plan, connections)?, ListenLoad::new(plan, args), connections)
        }
        ScenarioArgs::Storm(args) if args.restart => {
            serve(channel, Clients::new(plan, connections)?, RestartLoad::new(plan, args), connections)
        }
        ScenarioArgs::Storm(args) => {
            serve(channel, Clients::new(plan, connections)?, StormLoad::new(plan, args), connections)
        }
        ScenarioArgs::Auction(args) => {
            let load = AuctionLoad::new(plan, args);
            let connections = connections + load.publishers();
            serve(channel, Clients::new(plan, connections)?, load, connections)
        }
        ScenarioArgs::Chat(args) => {
            serve(channel, Clients::new(plan, connections)?, ChatLoad::new(plan, args), connections)
        }
    }
}

/// Carries out orders until `Report`, or until the parent is gone.
fn serve(
    channel: &mut Channel,
    mut clients: Clients,
    mut load: impl Load,
    connections: usize,
) -> io::Result<()> {
    clients.watch(channel.as_fd(), CONTROL)?;
    let mut phase: Option<Command> = None;
    let mut meter = CpuMeter::default();
    let mut progress_due_ns = 0;
    loop {
        let now = now_ns();
        let mut due_ns = clients.tend(now, &mut load).min(load.tick(&mut clients, now)).min(meter.tick(now));
        if let Some(command) = &phase {
            let over = match command {
                Command::Connect => (clients.opening() == 0).then(|| Done { at_ns: now, ..Done::default() }),
                _ => load.over(&clients, now),
            };
            if let Some(done) = over {
                channel.send(&Reply::Done(Done { open: clients.open(), ..done }))?;
                phase = None;
            } else if now >= progress_due_ns {
                channel.send(&Reply::Progress(Progress { open: clients.open(), count: load.count() }))?;
                progress_due_ns = now + PROGRESS_NS;
            }
            due_ns = due_ns.min(progress_due_ns);
        }
        let woken = clients.turn(clock::wait(now_ns(), due_ns), &mut load)?;
        if woken.completions {
            load.completions()?;
        }
        if !woken.control {
            continue;
        }
        let commands = match channel.receive::<Command>() {
            Ok(commands) => commands,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        for command in commands {
            let now = now_ns();
            match &command {
                Command::Connect => clients.open_all(0..connections, false, now),
                Command::Report => {
                    let mut tally = Tally::new();
                    clients.report(&mut tally);
                    load.report(&mut tally);
                    tally.own_cpu_ns = meter.used_ns();
                    return channel.send(&Reply::Report(Box::new(tally)));
                }
                Command::Run(window) => {
                    clients.window = *window;
                    meter = CpuMeter { window: *window, ..CpuMeter::default() };
                    load.begin(&mut clients, &command, now);
                }
                Command::Join | Command::Drain { .. } | Command::Drop { .. } => {
                    load.begin(&mut clients, &command, now);
                }
            }
            phase = Some(command);
        }
    }
}

/// Reads the first line byte by byte: what follows it is not ours to take.
fn read_plan(mut control: &UnixStream) -> io::Result<Plan> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        control.read_exact(&mut byte)?;
        if byte == [b'\n'] {
            return Ok(serde_json::from_slice(&line)?);
        }
        line.push(byte[0]);
    }
}

/// This process's CPU time in the measured window.
#[derive(Default)]
struct CpuMeter {
    window: Window,
    from_cpu_ns: Option<u64>,
    to_cpu_ns: Option<u64>,
}

impl CpuMeter {
    /// Looks at the clock; returns when to be called again.
    fn tick(&mut self, now_ns: u64) -> u64 {
        if self.window.to_ns == 0 || self.to_cpu_ns.is_some() {
            return u64::MAX;
        }
        if now_ns >= self.window.to_ns {
            self.to_cpu_ns = Some(own_cpu_ns());
            return u64::MAX;
        }
        if now_ns < self.window.from_ns {
            return self.window.from_ns;
        }
        self.from_cpu_ns.get_or_insert_with(own_cpu_ns);
        self.window.to_ns
    }

    fn used_ns(&self) -> u64 {
        let to_ns = self.to_cpu_ns.unwrap_or_else(own_cpu_ns);
        self.from_cpu_ns.map_or(0, |from_ns| to_ns.saturating_sub(from_ns))
    }
}

/// The socket to the other workers, which is this one's standard output.
pub(crate) fn completions_socket() -> io::Result<OwnedFd> {
    io::stdout().as_fd().try_clone_to_owned()
}
