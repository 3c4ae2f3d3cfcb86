//! `throng doctor`: how many connections this machine holds, what binds first, and the lines that raise it. It changes nothing.

use super::bounds::{Bound, PerConnection, Step, bounds, grouped, steps};
use super::descriptors::shards;
use super::facts::Facts;
use super::findings::{Finding, Severity, findings};
use super::root::Root;
use super::sockets::measure;
use crate::config::{self, Config, Problem};
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// The most columns of a line for a terminal, before the names of findings.
const NAME_COLUMNS: usize = 24;

/// What the command line says to the doctor.
#[derive(Clone, Debug, clap::Args)]
#[command(
    about = "Say how many connections this machine holds, what binds first, and what raises it",
    long_about = "Say how many connections this machine holds, what binds first, and what raises it.\n\n\
        It changes nothing, but opens some 2,000 connections over 127.0.0.1 for a moment, to see what they cost the kernel.",
    after_help = "Exit status:\n  \
        0  nothing is worth mending\n  \
        1  there is a warning: something costs, and can be mended (advice is none)\n  \
        2  the command line or the configuration is wrong\n  \
        3  the machine cannot hold what --connections or limits.connections_max asks for"
)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    config: config::Args,
    /// How many connections there are to be; else limits.connections_max of the configuration
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16_000_000))]
    connections: Option<u64>,
    /// Look at the limits of this process, for example of the server that runs, and not at our own
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// A folder with a made-up machine, for tests
    #[arg(long, value_name = "FOLDER", hide = true)]
    root: Option<PathBuf>,
}

/// What the doctor has to say. The names of its fields are those of the JSON object, and stay.
#[derive(Debug, Serialize)]
struct Report {
    /// How many connections there can be.
    connections: u64,
    /// The name of the bound that is reached first.
    binds: &'static str,
    asked: Option<u64>,
    holds_asked: Option<bool>,
    exit_status: u8,
    shards: usize,
    per_connection: PerConnection,
    bounds: Vec<Bound>,
    steps: Vec<Step>,
    findings: Vec<Finding>,
    machine: Facts,
}

/// Why nothing can be said.
#[derive(Debug)]
pub enum Failure {
    /// What is wrong with the configuration.
    Config(Vec<Problem>),
    /// There is no process with this number.
    Process(u32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Config(problems) => {
                let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
                write!(f, "{}", lines.join("\nthrong: "))
            }
            Failure::Process(pid) => write!(f, "there is no process {pid}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Looks at the machine. Answers what is to be printed, and the exit status.
///
/// # Errors
/// See [`Failure`].
pub fn run(args: &Args) -> Result<(String, u8), Failure> {
    let config = Config::load(&args.config, std::env::vars_os()).map_err(Failure::Config)?;
    let root = Root::new(args.root.as_deref());
    if let Some(pid) = args.pid
        && !root.has(&format!("proc/{pid}/limits"))
    {
        return Err(Failure::Process(pid));
    }
    let report = look(&config, args, &root);
    let text = if args.json {
        serde_json::to_string_pretty(&report).expect("numbers and texts become JSON") + "\n"
    } else {
        report.text()
    };
    Ok((text, report.exit_status))
}

fn look(config: &Config, args: &Args, root: &Root) -> Report {
    let facts = Facts::read(root, args.pid);
    let shards = shards(config, facts.cpus);
    let measured =
        if root.is_real() { measure(root) } else { Err("the machine is a made-up one".to_owned()) };
    let per_connection = PerConnection::new(config, &measured);
    let is_tracked = measured.is_ok_and(|it| it.is_tracked);
    let bounds = bounds(config, &facts, shards, &per_connection, is_tracked);
    let first = &bounds[0];
    let (connections, binds) = (first.connections.unwrap_or(0), first.name);
    let wanted = u64::from(config.limits.connections_max);
    let asked = args.connections.or((wanted > 0).then_some(wanted));
    let holds_asked = asked.map(|asked| connections >= asked);
    let steps = steps(config, &facts, shards, &bounds, asked);
    let findings = findings(config, &facts, shards, &bounds, holds_asked == Some(false));
    let has_warning = findings.iter().any(|finding| finding.severity == Severity::Warning);
    let exit_status = match holds_asked {
        Some(false) => 3,
        _ => u8::from(has_warning),
    };
    Report {
        connections,
        binds,
        asked,
        holds_asked,
        exit_status,
        shards,
        per_connection,
        bounds,
        steps,
        findings,
        machine: facts,
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a string takes all that memory holds");
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let first = &self.bounds[0];
        write!(out, "This machine holds {} connections; {}", grouped(self.connections), first.called)?;
        writeln!(out, " {} first.", if first.called.ends_with('s') { "bind" } else { "binds" })?;
        match (self.asked, self.holds_asked) {
            (Some(asked), Some(false)) => {
                writeln!(out, "That is less than the {} asked for.", grouped(asked))?
            }
            (Some(asked), _) => writeln!(out, "That is enough for the {} asked for.", grouped(asked))?,
            _ => {}
        }
        let each = &self.per_connection;
        let measured = if each.is_measured { "measured: " } else { "" };
        writeln!(
            out,
            "An idle connection takes {} bytes: {} of the kernel ({measured}{}) and {} of throng.",
            grouped(each.bytes()),
            grouped(each.kernel_bytes),
            each.how,
            each.throng_bytes
        )?;
        writeln!(out, "\nBounds")?;
        for bound in &self.bounds {
            let connections = bound.connections.map_or("-".to_owned(), grouped);
            writeln!(out, "  {connections:>13}  {:<22} {}", bound.called, bound.what)?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            let called = self.bounds.iter().find(|bound| bound.name == step.name).map_or("", |it| it.called);
            let then = if index == 0 { "To hold" } else { "Then, to hold" };
            writeln!(out, "\n{then} {}, raise {called}:", grouped(step.connections))?;
            for line in &step.lines {
                writeln!(out, "  {line}")?;
            }
        }
        writeln!(out, "\nFindings")?;
        for finding in &self.findings {
            let word = match finding.severity {
                Severity::Binding => "binding",
                Severity::Warning => "warning",
                Severity::Advice => "advice",
                Severity::Ok => "ok",
            };
            writeln!(out, "  {word:<8} {:<width$} {}", finding.name, finding.what, width = NAME_COLUMNS)?;
            if !finding.mend.is_empty() {
                writeln!(out, "  {:<8} {:<width$} {}", "", "", finding.mend, width = NAME_COLUMNS)?;
            }
        }
        Ok(())
    }
}
