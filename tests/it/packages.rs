//! The packages: what `packaging/build` makes of the built programs is complete, the same each time, and installs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a program to its end, in the project's directory.
fn run(command: &mut Command) -> Output {
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}; .ci/setup installs what the tests need"))
}

/// The same, and it ends well. What it says.
fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = run(command);
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{said}\n{}", String::from_utf8_lossy(&stderr));
    said
}

/// True for a program that this machine has.
fn has(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", "command -v \"$0\" >/dev/null", program])
        .status()
        .is_ok_and(|status| status.success())
}

/// An empty directory of this test.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("what an earlier run has left");
    }
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// The paths of what is in a directory, sorted.
fn listed(directory: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()).collect()
}

fn starting<'a>(paths: &'a BTreeSet<PathBuf>, start: &str) -> &'a Path {
    let is_it = |path: &&PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
    };
    paths.iter().find(is_it).unwrap_or_else(|| panic!("no {start}… in {paths:?}"))
}

/// Where the programs are that this build has made.
fn programs() -> &'static Path {
    let programs = Path::new(env!("CARGO_BIN_EXE_throng")).parent().expect("a directory");
    assert!(programs.join("throng-load").exists(), "cargo test --workspace builds throng-load as well");
    programs
}

#[test]
fn manual_pages_are_complete_and_clean() {
    let pages = directory("packages-man");
    for program in ["throng", "throng-load"] {
        let program = programs().join(program);
        succeed(Command::new(&program).args(["generate", "man", "--date", "2026-01-31"]).arg(&pages));
        // Each command that the help lists has one.
        for command in commands(&succeed(Command::new(&program).arg("--help"))) {
            let page = format!(
                "{}-{command}.1",
                program.file_name().and_then(|name| name.to_str()).unwrap_or_default()
            );
            assert!(pages.join(&page).exists(), "{page}");
        }
    }
    let settings = fs::read_to_string(pages.join("throng.toml.5")).expect("a page");
    for setting in throng::config::SETTINGS {
        assert!(settings.contains(&setting.env_name()), "{}", setting.key);
    }
    for page in listed(&pages) {
        let text = fs::read_to_string(&page).expect("a page");
        assert!(!text.contains('`'), "{}: what is in backticks is to be bold", page.display());
        assert_eq!(succeed(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page)), "");
    }
}

#[test]
fn completions_are_taken_by_shells() {
    let completions = directory("packages-completions");
    for program in ["throng", "throng-load"] {
        succeed(Command::new(programs().join(program)).args(["generate", "completions"]).arg(&completions));
        let script = completions.join(format!("{program}.bash"));
        // What bash offers behind the program's name is its commands, and not the hidden ones.
        let ask = "source \"$0\"; function=$(complete -p \"$1\" | sed 's/.* -F \\([^ ]*\\) .*/\\1/'); \
                   COMP_WORDS=(\"$1\" ''); COMP_CWORD=1; \"$function\" \"$1\" '' \"$1\"; echo \"${COMPREPLY[*]}\"";
        let offered = succeed(Command::new("bash").args(["-c", ask]).arg(&script).arg(program));
        let help = succeed(Command::new(programs().join(program)).arg("--help"));
        for command in commands(&help) {
            assert!(offered.split_whitespace().any(|word| word == command), "{command} is not in {offered}");
        }
        assert!(!offered.contains("generate"), "{offered}");
        for (shell, script) in [("zsh", format!("_{program}")), ("fish", format!("{program}.fish"))] {
            let script = completions.join(script);
            assert!(script.exists(), "{}", script.display());
            if has(shell) {
                succeed(Command::new(shell).arg("-n").arg(script));
            }
        }
    }
}

/// The commands that a program's help lists, but `help`.
fn commands(help: &str) -> Vec<&str> {
    let (_, list) = help.split_once("Commands:\n").expect("commands");
    let names =
        list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").collect()
}

#[test]
fn the_package_is_complete_the_same_each_time_and_installs() {
    let build = |out: &Path| {
        succeed(
            Command::new("packaging/build")
                .arg("--programs")
                .args([programs(), out])
                .env("SOURCE_DATE_EPOCH", "1767225600"),
        );
        listed(out)
    };
    let (once, again) = (directory("packages-once"), directory("packages-again"));
    let (packages, same) = (build(&once), build(&again));
    assert_eq!(packages.len(), 3, "{packages:?}");
    for (one, other) in packages.iter().zip(&same) {
        assert!(
            fs::read(one).expect("a file") == fs::read(other).expect("a file"),
            "{} differs",
            one.display()
        );
    }

    let deb = starting(&packages, "throng_");
    let control = succeed(Command::new("dpkg-deb").arg("--field").arg(deb));
    assert!(control.contains(concat!("Version: ", env!("CARGO_PKG_VERSION"), "-1\n")), "{control}");
    let conffiles = succeed(Command::new("dpkg-deb").args(["--info"]).arg(deb).arg("conffiles"));
    assert_eq!(conffiles, "/etc/throng/throng.toml\n");
    let changelog = fs::read_to_string("packaging/debian/changelog").expect("a file");
    assert!(
        changelog.starts_with(concat!("throng (", env!("CARGO_PKG_VERSION"), "-1)")),
        "packaging/debian/changelog"
    );
    let contents = succeed(Command::new("dpkg-deb").arg("--contents").arg(deb));
    let tarball = succeed(
        Command::new("tar")
            .arg("-tzf")
            .arg(starting(&packages, concat!("throng-", env!("CARGO_PKG_VERSION")))),
    );
    for file in [
        "/usr/bin/throng",
        "/usr/bin/throng-load",
        "/etc/throng/throng.toml",
        "/usr/lib/systemd/system/throng.service",
        "/usr/lib/systemd/system/throng@.service",
        "/usr/lib/systemd/system/throng.socket",
        "/usr/lib/sysusers.d/throng.conf",
        "/usr/share/throng/tuning/systemd/backoff.conf",
        "/usr/share/throng/tuning/haproxy.cfg",
        "/usr/share/man/man1/throng.1.gz",
        "/usr/share/man/man1/throng-serve.1.gz",
        "/usr/share/man/man1/throng-load.1.gz",
        "/usr/share/man/man5/throng.toml.5.gz",
        "/usr/share/bash-completion/completions/throng",
        "/usr/share/zsh/vendor-completions/_throng",
        "/usr/share/fish/vendor_completions.d/throng.fish",
        "/usr/share/doc/throng/copyright",
        "/usr/share/doc/throng/crates",
        "/usr/share/doc/throng/changelog.gz",
        "/usr/share/doc/throng/upgrading.md",
        "/usr/share/doc/throng/examples/throng.toml",
    ] {
        let is_it = |line: &str| line.ends_with(file);
        assert!(
            contents.lines().any(is_it) && tarball.lines().any(is_it),
            "no {file} in\n{contents}\n{tarball}"
        );
    }

    // Symbols are found by what a program says is its build.
    let symbols =
        succeed(Command::new("dpkg-deb").arg("--contents").arg(starting(&packages, "throng-dbgsym_")));
    for program in ["throng", "throng-load"] {
        let notes = succeed(Command::new("readelf").arg("--notes").arg(programs().join(program)));
        let build =
            notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).expect("it has one");
        let file = format!("/usr/lib/debug/.build-id/{}/{}.debug", &build[..2], &build[2..]);
        assert!(symbols.lines().any(|line| line.ends_with(&file)), "no {file} in\n{symbols}");
    }

    let lint = run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(deb));
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));

    if rustix::process::geteuid().is_root() {
        succeed(Command::new("tests/it/packages.sh").arg(deb));
    } else {
        eprintln!("The package was not installed: that takes root.");
    }
}
