//! What lies beside the programs in a package: manual pages and completions of shells. They are made of what the program itself goes by, the
//! command line and the table of settings, so that they cannot say anything else.

use crate::config::{SECTIONS, SETTINGS, Setting, lists};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is said behind `throng generate`.
#[derive(clap::Args)]
pub struct Args {
    /// What to write
    what: What,
    /// Into which directory, which is made
    directory: PathBuf,
    /// The date that manual pages bear, like 2027-01-31
    #[arg(long, default_value = "")]
    date: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// The manual pages of the program and its commands, and of its configuration
    Man,
    /// Completions for bash, fish and zsh, as files with the names that these shells expect
    Completions,
}

/// Writes what `args` say about the program whose command line is `command`. Fails where a file cannot be written.
pub fn generate(args: &Args, command: clap::Command) -> io::Result<()> {
    let Args { what, directory, date } = args;
    fs::create_dir_all(directory)?;
    match what {
        What::Man => {
            let mut command = command.disable_help_subcommand(true);
            command.build();
            command_pages(&command, directory, date)?;
            page(directory, "throng.toml.5", date, &settings_page())
        }
        What::Completions => {
            let mut shown = without_hidden(&command);
            [Shell::Bash, Shell::Fish, Shell::Zsh].into_iter().try_for_each(|shell| {
                clap_complete::generate_to(shell, &mut shown, "throng", directory).map(|_| ())
            })
        }
    }
}

/// The same command line with what its help shows of commands: completions would offer the others as well.
fn without_hidden(command: &clap::Command) -> clap::Command {
    clap::Command::new("throng")
        .version(VERSION)
        .args(command.get_arguments())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()))
}

/// A page for a command, and for each below it.
fn command_pages(command: &clap::Command, directory: &Path, date: &str) -> io::Result<()> {
    let below = || command.get_subcommands().filter(|command| !command.is_hide_set());
    below().try_for_each(|command| command_pages(command, directory, date))?;
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    man.render(&mut text)?;
    text.extend(besides(command.get_display_name().unwrap_or(command.get_name())).to_roff().bytes());
    page(directory, &man.get_filename(), date, &String::from_utf8_lossy(&text))
}

/// What the command line does not say of itself.
fn besides(page: &str) -> Roff {
    let mut roff = Roff::new();
    if page == "throng-serve" {
        heading(&mut roff, "SIGNALS");
        item(
            &mut roff,
            "TERM, INT",
            "The server drains and ends, as [drain] in its configuration says. A second one ends it at once.",
        );
        item(
            &mut roff,
            "HUP",
            "The configuration and the certificates are read anew. The log says what of it needs a restart.",
        );
        item(&mut roff, "USR1", "The state of the server and its memory by kind are logged.");
        item(&mut roff, "USR2", "More is logged; again, and it is as before.");
    }
    if page == "throng" {
        heading(&mut roff, "EXIT STATUS");
        item(&mut roff, "0", "It ended as it should.");
        item(&mut roff, "1", "It failed; the log says why.");
        item(&mut roff, "2", "The command line or the configuration is wrong.");
        heading(&mut roff, "FILES");
        item(&mut roff, "/etc/throng/throng.toml", "The configuration of the service.");
        item(
            &mut roff,
            "/etc/throng/environment",
            "Variables for the service, one a line, like THRONG_AUTH_SECRET=…: what should not be in that file.",
        );
        item(&mut roff, "/usr/share/doc/throng/", "The documentation.");
    }
    heading(&mut roff, "SEE ALSO");
    match page {
        "throng" => roff.text([bold("throng.toml"), roman("(5), "), bold("throng-load"), roman("(1)")]),
        _ => roff.text([bold("throng"), roman("(1), "), bold("throng.toml"), roman("(5)")]),
    };
    roff
}

/// throng.toml(5): every setting.
fn settings_page() -> String {
    let mut roff = Roff::new();
    roff.control("TH", []);
    heading(&mut roff, "NAME");
    roff.text([roman("throng.toml - configuration of throng")]);
    heading(&mut roff, "DESCRIPTION");
    for (at, paragraph) in [
        "A file in TOML. None is needed: what it leaves out has its default. `throng check FILE` says what a file means, or which setting is wrong \
         and why.",
        "The service reads /etc/throng/throng.toml; otherwise `--config` or the variable `THRONG_CONFIG` names the file. Variables are stronger than \
         the file, and the command line is stronger than variables. A setting's variable stands with it below. `--set KEY=VALUE` takes any setting.",
        "Sizes are bytes, or texts like \"64KiB\"; times are milliseconds, or texts like \"25s\".",
    ]
    .into_iter()
    .enumerate()
    {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
    for (section, about) in SECTIONS {
        heading(&mut roff, &format!("[{section}]"));
        roff.text([roman(about.trim_start())]);
        for setting in SETTINGS.iter().filter(|setting| setting.section() == *section) {
            setting_item(&mut roff, setting);
        }
    }
    heading(&mut roff, "LISTS OF TABLES");
    roff.text([roman("What they mean is in /usr/share/doc/throng/configuration.md and routes.md.")]);
    for (table, keys) in lists() {
        item(&mut roff, table, &format!("{}.", keys.join(", ")));
    }
    heading(&mut roff, "SEE ALSO");
    roff.text([bold("throng"), roman("(1), "), bold("throng-check"), roman("(1)")]);
    roff.to_roff()
}

fn setting_item(roff: &mut Roff, setting: &Setting) {
    roff.control("TP", []).text([bold(setting.name()), roman(" = "), italic(setting.default_text())]);
    roff.text([roman(setting.help())]);
    roff.control("br", []).text([roman(format!("Takes {}.", setting.kind.allowed()))]);
    roff.control("br", []).text([roman(setting.env_name())]);
}

fn heading(roff: &mut Roff, text: &str) {
    roff.control("SH", [text]);
}

fn item(roff: &mut Roff, term: &str, text: &str) {
    roff.control("TP", []).text([bold(term)]).text([roman(text)]);
}

/// Writes a page under a title of its own, with what stands in backticks in bold.
fn page(directory: &Path, name: &str, date: &str, roff: &str) -> io::Result<()> {
    let (title, section) = name.rsplit_once('.').unwrap_or((name, "1"));
    let mut file = fs::File::create(directory.join(name))?;
    // A line break beside an empty line does nothing, and checkers of pages say so.
    for line in roff.replace(".br\n\n.br\n", ".sp\n").lines() {
        if line.starts_with(".TH") {
            writeln!(file, ".TH {} {section} \"{date}\" \"throng {VERSION}\" throng", title.to_uppercase())?;
            continue;
        }
        let parts = line.trim_end().split('`');
        let is_paired = parts.clone().count() % 2 == 1;
        for (at, part) in parts.enumerate() {
            match at {
                0 => write!(file, "{part}")?,
                _ if !is_paired => write!(file, "`{part}")?,
                _ if at % 2 == 1 => write!(file, "\\fB{part}")?,
                _ => write!(file, "\\fR{part}")?,
            }
        }
        writeln!(file)?;
    }
    Ok(())
}
