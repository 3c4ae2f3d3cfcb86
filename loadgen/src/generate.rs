//! What lies beside the program in a package: manual pages and completions of shells, made of the command line.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap_complete::Shell;
use clap_mangen::Man;

/// What is said behind `throng-load generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to write
    what: What,
    /// Into which directory, which is made
    directory: PathBuf,
    /// The date that manual pages bear, like 2027-01-31
    #[arg(long, default_value = "")]
    date: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// The manual pages of the program and its scenarios
    Man,
    /// Completions for bash, fish and zsh, as files with the names that these shells expect
    Completions,
}

/// Writes what `args` say.
pub(crate) fn generate(args: &Args, mut command: clap::Command) -> io::Result<()> {
    fs::create_dir_all(&args.directory)?;
    match args.what {
        What::Man => {
            command = command.disable_help_subcommand(true);
            command.build();
            pages(&command, &args.directory, &args.date)
        }
        What::Completions => {
            let mut shown = without_hidden(&command);
            [Shell::Bash, Shell::Fish, Shell::Zsh].into_iter().try_for_each(|shell| {
                clap_complete::generate_to(shell, &mut shown, "throng-load", &args.directory).map(|_| ())
            })
        }
    }
}

/// The same command line with what its help shows of commands: completions would offer the others as well.
fn without_hidden(command: &clap::Command) -> clap::Command {
    clap::Command::new("throng-load")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()))
}

/// A page for a command, and for each below it.
fn pages(command: &clap::Command, directory: &Path, date: &str) -> io::Result<()> {
    let mut below = command.get_subcommands().filter(|command| !command.is_hide_set());
    below.try_for_each(|command| pages(command, directory, date))?;
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    man.render(&mut text)?;
    let mut file = fs::File::create(directory.join(man.get_filename()))?;
    // A line break beside an empty line does nothing, and checkers of pages say so.
    let text = String::from_utf8_lossy(&text).replace(".br\n\n.br\n", ".sp\n");
    for line in text.lines() {
        if line.starts_with(".TH") {
            let title = command.get_display_name().unwrap_or(command.get_name()).to_uppercase();
            writeln!(file, ".TH {title} 1 \"{date}\" \"throng {}\" throng", env!("CARGO_PKG_VERSION"))?;
        } else {
            writeln!(file, "{}", line.trim_end())?;
        }
    }
    writeln!(file, ".SH \"SEE ALSO\"\n\\fBthrong\\fR(1)")
}
