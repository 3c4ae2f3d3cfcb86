//! The command line of throng.

use clap::{CommandFactory as _, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use throng::config::{Args, Config, Problem, Trial};
use throng::generate;
use throng::log::Log;
use throng::machine::{doctor, tune};
use throng::server;
use throng::token::mint;
use throng::top;

/// A realtime server: rooms and events over WebSocket, for very many connections
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve(Args),
    /// Print a token that says who a client is, for trying things out
    Token(mint::Args),
    /// Show what a server does now, in the terminal
    Top(top::Args),
    /// Say what a configuration file means, or which setting is wrong and why
    Check {
        /// The configuration file
        file: PathBuf,
        /// Heed settings in environment variables, as `serve` does
        #[arg(long)]
        environment: bool,
        /// Print nothing when nothing is wrong
        #[arg(long)]
        quiet: bool,
        #[command(flatten)]
        trial: Trial,
    },
    Doctor(doctor::Args),
    Tune(tune::Args),
    /// Write manual pages or completions of shells, for packages
    #[command(hide = true)]
    Generate(generate::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Check { file, environment, quiet, trial } => {
            let args = Args { config: Some(file), ..Args::default() };
            let config =
                if environment { Config::load(&args, std::env::vars_os()) } else { Config::load(&args, []) };
            check(config, quiet, &trial)
        }
        Command::Token(args) => token(&args),
        Command::Doctor(args) => examine(&args),
        Command::Tune(args) => tune(&args),
        Command::Top(args) => top(&args),
        Command::Generate(args) => match generate::generate(&args, Cli::command()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("throng: cannot write what is generated: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn serve(args: &Args) -> ExitCode {
    let config = match Config::load(args, std::env::vars_os()) {
        Ok(config) => config,
        Err(problems) => return report(&problems),
    };
    let log = Log::start(&config.log);
    let again = || Config::load(args, std::env::vars_os());
    match server::run(&config, &log, &again) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn check(config: Result<Config, Vec<Problem>>, quiet: bool, trial: &Trial) -> ExitCode {
    match config {
        Ok(config) => match config.try_out(trial) {
            Ok(tried) => {
                if !quiet {
                    print!("{}", tried.unwrap_or_else(|| config.explain()));
                }
                ExitCode::SUCCESS
            }
            Err(what) => {
                eprintln!("throng: {what}");
                ExitCode::from(2)
            }
        },
        Err(problems) => report(&problems),
    }
}

fn token(args: &mint::Args) -> ExitCode {
    match mint::mint(args) {
        Ok(token) => {
            println!("{token}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("throng: {what}");
            ExitCode::from(2)
        }
    }
}

fn examine(args: &doctor::Args) -> ExitCode {
    match doctor::run(args) {
        Ok((text, status)) => {
            print!("{text}");
            ExitCode::from(status)
        }
        Err(failure) => {
            eprintln!("throng: {failure}");
            ExitCode::from(2)
        }
    }
}

fn tune(args: &tune::Args) -> ExitCode {
    let failure = match tune::run(args) {
        Ok(text) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(failure) => failure,
    };
    if let tune::Failure::Refused { text, .. } = &failure {
        print!("{text}");
    }
    eprintln!("throng: {failure}");
    match failure {
        tune::Failure::NotRoot => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn top(args: &top::Args) -> ExitCode {
    match top::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("throng: {what}");
            ExitCode::FAILURE
        }
    }
}

fn report(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        eprintln!("throng: {problem}");
    }
    // The status of a usage error, as clap gives it.
    ExitCode::from(2)
}
