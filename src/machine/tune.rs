//! `throng tune`: shows what a profile would change, changes it, and puts it back.
//!
//! What was there before is on the disk before anything is changed, so that it can be put back whatever happens in between.

use super::profile::{Line, Name};
use super::root::Root;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;

/// What the machine starts with. systemd reads it after what distributions bring, and before what is numbered higher.
const FILE: &str = "etc/sysctl.d/90-throng.conf";
/// Where it is kept what was there before. One process at a time goes about it.
const KEPT: &str = "var/lib/throng";
const BEFORE: &str = "var/lib/throng/sysctl-before.json";

/// What the command line says of tuning.
#[derive(Clone, Debug, clap::Args)]
#[command(
    about = "Show what a profile of kernel settings would change here, change it, or put it back",
    after_help = "Without --apply and --revert nothing is changed. A value that is higher than a profile's, where higher is as good, is kept.\n\n\
        Exit status:\n  \
        0  it is done; or, without --apply and --revert, it was shown\n  \
        1  the kernel refused a value, or a file could not be written; what could be done is done\n  \
        2  the command line is wrong, or --apply or --revert was not run as root"
)]
pub struct Args {
    /// What the machine is tuned for
    #[arg(long, value_enum, value_name = "NAME", required_unless_present = "revert")]
    profile: Option<Name>,
    /// Show what would change; this is what happens without --apply and --revert
    #[arg(long, conflicts_with_all = ["apply", "revert"])]
    diff: bool,
    /// Change it now, and for each start of the machine (/etc/sysctl.d/90-throng.conf)
    #[arg(long, conflicts_with = "revert")]
    apply: bool,
    /// Put back what was there before the first --apply
    #[arg(long)]
    revert: bool,
    /// A folder with a made-up machine, for tests
    #[arg(long, value_name = "FOLDER", hide = true)]
    root: Option<PathBuf>,
}

/// What was there before the first change.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    /// The profile that was applied last.
    profile: String,
    /// The version of throng that did it.
    version: String,
    values: BTreeMap<String, String>,
}

/// What a line of a profile means on this machine.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// There is no such setting.
    Missing,
    /// It is so already.
    So,
    /// It is more already, and stays.
    Kept { now: String },
    /// It is to become `then`.
    Change { now: String, then: String },
}

/// Why nothing was done, or not all.
#[derive(Debug)]
pub enum Failure {
    /// This takes root.
    NotRoot,
    /// A file could not be read or written.
    File {
        /// Which.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// So many values were refused. What was said of each is in the text.
    Refused {
        /// What would have been printed.
        text: String,
        /// How many.
        count: usize,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotRoot => write!(f, "only root can change settings of the kernel: run it with sudo"),
            Failure::File { name, error } => write!(f, "/{name}: {error}"),
            Failure::Refused { count, .. } => write!(f, "{count} settings are not what they should be"),
        }
    }
}

impl std::error::Error for Failure {}

/// Does what the command line says. Answers what is to be printed.
///
/// # Errors
/// See [`Failure`].
pub fn run(args: &Args) -> Result<String, Failure> {
    let root = Root::new(args.root.as_deref());
    let changes = args.apply || args.revert;
    if changes && root.is_real() && !rustix::process::geteuid().is_root() {
        return Err(Failure::NotRoot);
    }
    let _alone = if changes {
        Some(root.lock(KEPT).map_err(|error| Failure::File { name: KEPT.to_owned(), error })?)
    } else {
        None
    };
    match args.profile {
        _ if args.revert => revert(&root),
        Some(profile) if args.apply => apply(&root, profile),
        Some(profile) => Ok(diff(&root, profile)),
        None => unreachable!("clap asks for a profile"),
    }
}

fn diff(root: &Root, profile: Name) -> String {
    let mut text = String::new();
    let (mut changes, mut quiet) = (0, String::new());
    for line in profile.lines() {
        match meaning(root, &line) {
            Meaning::Change { now, then } => {
                changes += 1;
                say(
                    &mut text,
                    &format!("{}: {now} -> {then}\n    {}\n    {}\n", line.key, line.reason, line.measured),
                );
            }
            Meaning::So => say(&mut quiet, &format!("{} = {}: so already\n", line.key, line.value)),
            Meaning::Kept { now } => {
                say(&mut quiet, &format!("{} = {now}: kept, {} would be less\n", line.key, line.value));
            }
            Meaning::Missing => say(&mut quiet, &format!("{}: {}\n", line.key, missing(&line))),
        }
    }
    let word = profile.word();
    match changes {
        0 => format!("Nothing would change for {word}.\n\n{quiet}"),
        _ => format!(
            "{changes} settings would change: throng tune --profile {word} --apply\n\n{text}\n{quiet}"
        ),
    }
}

fn apply(root: &Root, profile: Name) -> Result<String, Failure> {
    let mut before = before(root)?.unwrap_or_default();
    let lines = profile.lines();
    let mut file = format!(
        "# The profile {} of throng {}, written by throng tune. Changes made here are lost when it is run again.\n",
        profile.word(),
        env!("CARGO_PKG_VERSION")
    );
    let mut planned = Vec::new();
    for line in &lines {
        let meaning = meaning(root, line);
        let (value, now) = match &meaning {
            Meaning::Missing => (line.value, None),
            Meaning::So => (line.value, Some(line.value)),
            Meaning::Kept { now } => (now.as_str(), Some(now.as_str())),
            Meaning::Change { now, then } => (then.as_str(), Some(now.as_str())),
        };
        if let Some(now) = now {
            // What was there at first stays, however often this is run.
            before.values.entry(line.key.to_owned()).or_insert_with(|| now.to_owned());
        }
        let dash = if line.is_optional { "-" } else { "" };
        say(&mut file, &format!("\n# {}\n{dash}{} = {value}\n", line.reason, line.key));
        planned.push((line, meaning));
    }
    // Settings of another profile that was applied before.
    let others = before.values.keys().filter(|key| !lines.iter().any(|line| line.key == *key));
    let others: Vec<String> = others.cloned().collect();
    profile.word().clone_into(&mut before.profile);
    env!("CARGO_PKG_VERSION").clone_into(&mut before.version);
    keep(root, &before)?;
    root.replace(FILE, &file).map_err(|error| Failure::File { name: FILE.to_owned(), error })?;

    let mut text = String::new();
    let mut refused = 0;
    for (line, meaning) in planned {
        match meaning {
            Meaning::Change { now, then } => match root.set_sysctl(line.key, &then) {
                Ok(()) => say(&mut text, &format!("{}: {now} -> {then}\n", line.key)),
                Err(error) => {
                    refused += usize::from(!line.is_optional);
                    say(&mut text, &format!("{} stays {now}: {}\n", line.key, why(&error)));
                }
            },
            Meaning::So => say(&mut text, &format!("{} = {}: so already\n", line.key, line.value)),
            Meaning::Kept { now } => {
                say(&mut text, &format!("{} = {now}: kept, {} would be less\n", line.key, line.value));
            }
            Meaning::Missing => {
                refused += usize::from(!line.is_optional);
                say(&mut text, &format!("{}: {}\n", line.key, missing(line)));
            }
        }
    }
    for key in others {
        refused += usize::from(!put_back(root, &mut before, &key, &mut text));
    }
    // By now the kernel's settings are others, and that is to be told whatever becomes of the file.
    if let Err(failure) = keep(root, &before) {
        refused += 1;
        say(&mut text, &format!("{failure}\n"));
    }
    say(&mut text, &format!("written to /{FILE}; what was there before is in /{BEFORE}\n"));
    done(text, refused)
}

fn revert(root: &Root) -> Result<String, Failure> {
    let mut text = String::new();
    let mut refused = 0;
    let before = before(root)?;
    if let Some(mut before) = before {
        for key in before.values.keys().cloned().collect::<Vec<_>>() {
            refused += usize::from(!put_back(root, &mut before, &key, &mut text));
        }
        // What could not be put back is not forgotten.
        keep(root, &before)?;
    } else {
        say(&mut text, "nothing was changed, or what was there before is not known\n");
    }
    root.remove(FILE).map_err(|error| Failure::File { name: FILE.to_owned(), error })?;
    if refused == 0 {
        root.remove(BEFORE).map_err(|error| Failure::File { name: BEFORE.to_owned(), error })?;
    }
    say(&mut text, &format!("/{FILE} is gone\n"));
    done(text, refused)
}

/// Puts one value back and forgets it. Answers whether it is what it was.
fn put_back(root: &Root, before: &mut Before, key: &str, text: &mut String) -> bool {
    let Some(value) = before.values.get(key) else { return true };
    let now = root.sysctl(key);
    if now.as_ref() != Some(value) {
        if let Err(error) = root.set_sysctl(key, value) {
            let now = now.unwrap_or_else(|| "what it is".to_owned());
            say(text, &format!("{key} stays {now}, and was {value}: {}\n", why(&error)));
            return false;
        }
        say(text, &format!("{key}: {} -> {value}\n", now.unwrap_or_default()));
    }
    before.values.remove(key);
    true
}

/// What `line` means where the setting is what it is.
fn meaning(root: &Root, line: &Line) -> Meaning {
    let Some(now) = root.sysctl(line.key) else { return Meaning::Missing };
    if now == line.value {
        return Meaning::So;
    }
    if !line.is_least {
        return Meaning::Change { now, then: line.value.to_owned() };
    }
    // Of several numbers each is raised for itself.
    let (old, new) = (now.split(' '), line.value.split(' '));
    let higher: Vec<&str> =
        old.zip(new).map(|(old, new)| if is_less(old, new) { new } else { old }).collect();
    let then = higher.join(" ");
    if then == now { Meaning::Kept { now } } else { Meaning::Change { now, then } }
}

/// True unless `old` is a number that is not less than the number `new`.
fn is_less(old: &str, new: &str) -> bool {
    !old.parse::<u64>().is_ok_and(|old| new.parse::<u64>().is_ok_and(|new| old >= new))
}

fn before(root: &Root) -> Result<Option<Before>, Failure> {
    let failure = |error| Failure::File { name: BEFORE.to_owned(), error };
    let text = match root.own_text(BEFORE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(failure)?,
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let why = format!("{error}; without this file, what was there before is not known any more");
        failure(io::Error::other(why))
    })
}

fn keep(root: &Root, before: &Before) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(before).expect("texts become JSON") + "\n";
    root.replace(BEFORE, &text).map_err(|error| Failure::File { name: BEFORE.to_owned(), error })
}

fn done(text: String, refused: usize) -> Result<String, Failure> {
    if refused == 0 { Ok(text) } else { Err(Failure::Refused { text, count: refused }) }
}

fn missing(line: &Line) -> &'static str {
    if line.is_optional {
        "not in this kernel, which is no harm"
    } else {
        "missing: not in this kernel, of a module that is not loaded, or not to be had in this network namespace"
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("{error} (in a container, it is changed on the host)")
        }
        io::ErrorKind::NotFound => "the kernel has no such setting, or no such value".to_owned(),
        _ => error.to_string(),
    }
}

fn say(text: &mut String, words: &str) {
    text.write_str(words).expect("a string takes all that memory holds");
}
