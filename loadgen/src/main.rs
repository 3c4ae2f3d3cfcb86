//! `throng-load`, the load generator of throng: it opens WebSocket connections by the thousands, makes them do
//! something, and says what that cost the server.
//!
//! The process that is started is the parent: it starts itself again as worker processes, which hold the connections,
//! and tells them when to do what. Read `client` for the connections, `protocol` for what they speak, `worker` for their
//! event loop, `phases` for what most scenarios go through, then a scenario, each of which has its two halves in one file: `idle`, `echo`,
//! `fanout`, `storm` (with `restart`), `auction`, `chat`, `listen`.

mod args;
mod auction;
mod chat;
mod client;
mod clock;
mod control;
mod echo;
mod fanout;
mod frame;
mod generate;
mod idle;
mod listen;
mod membership;
mod native;
mod order;
mod parent;
mod phases;
mod proc;
mod protocol;
mod report;
mod restart;
mod socketio;
mod source;
mod storm;
mod token;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Application, Cli, Common, Listen, Scenario, ScenarioArgs};
use crate::parent::{Halt, Parent, Phases};
use crate::proc::Server;
use crate::protocol::Protocol;

/// Something was lost, doubled or reordered, or failed.
const EXIT_FAULTS: u8 = 1;
/// Shells say so of a program that a signal ended: this and the signal's number.
const EXIT_SIGNAL: u8 = 128;

fn main() -> ExitCode {
    match Cli::parse().scenario {
        Scenario::Idle { common, args } => {
            let phases = idle::IdleRun::new(&common, &args);
            measure(&common, 0, &ScenarioArgs::Idle(args), phases)
        }
        Scenario::Echo { common, args } => {
            let phases = echo::run(&common, &args);
            measure(&common, 0, &ScenarioArgs::Echo(args), phases)
        }
        Scenario::Fanout { mut common, args } => {
            if let Some(first) = args.servers.first() {
                common.target = first.clone();
            }
            let phases = fanout::run(&common, &args);
            measure(&common, args.publishers, &ScenarioArgs::Fanout(args), phases)
        }
        Scenario::Storm { common, args } if args.restart => {
            let phases = restart::RestartRun::new(&common, &args);
            measure(&common, 0, &ScenarioArgs::Storm(args), phases)
        }
        Scenario::Storm { common, args } => {
            let phases = storm::StormRun::new(&common, &args);
            measure(&common, 0, &ScenarioArgs::Storm(args), phases)
        }
        Scenario::Auction { mut common, args } => {
            common.proto = Protocol::Plain;
            let phases = auction::run(&common, &args);
            measure(&common, args.auctions, &ScenarioArgs::Auction(args), phases)
        }
        Scenario::Chat { mut common, mut args } => {
            common.proto = Protocol::Socketio;
            args.all = common.connections;
            let phases = chat::run(&common, &args);
            measure(&common, 0, &ScenarioArgs::Chat(args), phases)
        }
        Scenario::Adstack { common, args } => listen_to(Application::Adstack, common, args),
        Scenario::Pona { common, args } => listen_to(Application::Pona, common, args),
        Scenario::Inked { common, args } => listen_to(Application::Inked, common, args),
        Scenario::Generate(args) => match generate::generate(&args, Cli::command()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("throng-load: cannot write what is generated: {error}");
                ExitCode::FAILURE
            }
        },
        // The parent prints what went wrong here.
        Scenario::Worker => worker::run().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
    }
}

/// Runs one of the applications, with what its example's configuration asks for.
fn listen_to(application: Application, mut common: Common, mut args: Listen) -> ExitCode {
    args.application = application;
    application.prepare(&mut common);
    let phases = listen::run(&common, &args);
    measure(&common, 0, &ScenarioArgs::Listen(args), phases)
}

/// Runs a scenario and prints what came of it.
fn measure(common: &Common, publishers: u32, scenario: &ScenarioArgs, mut phases: impl Phases) -> ExitCode {
    let prepared = prepare(common).and_then(|server| {
        let plans = parent::plan(common, publishers, scenario)?;
        Ok((server, plans))
    });
    let (server, plans) = match prepared {
        Ok(prepared) => prepared,
        Err(message) => Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit(),
    };
    let mut parent = match Parent::start(common, &plans) {
        Ok(parent) => parent,
        Err(halt) => return failed(&halt),
    };
    let halt = phases.run(&mut parent, server.as_ref()).err();
    let tally = match halt {
        Some(Halt::Failed(_)) => None,
        Some(Halt::Signal(_)) | None => Some(parent.reports()),
    };
    let tally = match (tally, &halt) {
        (Some(Ok(tally)), _) => tally,
        (Some(Err(halt)), _) => return failed(&halt),
        (None, halt) => return halt.as_ref().map_or(ExitCode::FAILURE, failed),
    };
    let figures = phases.figures(&tally, server.as_ref());
    let text = if common.json { figures.json() + "\n" } else { figures.table() };
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        eprintln!("throng-load: cannot write the report: {error}");
        return ExitCode::from(EXIT_FAULTS);
    }
    match halt {
        Some(Halt::Signal(signal)) => ExitCode::from(EXIT_SIGNAL + signal as u8),
        _ if tally.is_clean() => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_FAULTS),
    }
}

/// What is checked before anything is started.
fn prepare(common: &Common) -> Result<Option<Server>, String> {
    if let Some(cpus) = &common.cpus {
        proc::pin(&cpus.0)?;
    }
    match common.pid.as_slice() {
        [] => Ok(None),
        pids => Server::new(pids).map(Some),
    }
}

fn failed(halt: &Halt) -> ExitCode {
    match halt {
        Halt::Failed(reason) => eprintln!("throng-load: {reason}"),
        Halt::Signal(signal) => eprintln!("throng-load: ended by signal {signal}"),
    }
    ExitCode::from(EXIT_FAULTS)
}
