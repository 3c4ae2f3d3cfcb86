//! Configuration in two stages: what was said ([`Said`]) and what it means ([`Config`]).
//!
//! Every setting is declared once, in the table below: its name, type, default, range and meaning. From the table follow the
//! fields of [`Config`], the keys of the file, the names of environment variables, the checks, the words of their errors and the
//! list in `docs/configuration.md`. Whatever is wrong is reported at once, each [`Problem`] with its place.

use ipnet::IpNet;
use std::ffi::OsString;
use std::fmt::{self, Display, Write as _};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The prefix of environment variables that are settings.
const ENV_PREFIX: &str = "THRONG_";
/// Names the configuration file where `--config` does not.
const ENV_FILE: &str = "THRONG_CONFIG";
/// Says `limits.connections_max`, for deployments that have the variable already. Weaker than the setting's own variable.
const ENV_CONNECTIONS_MAX: &str = "MAX_CONNECTIONS";
/// A configuration file may be this long. Ours is 6 KiB; the bound is for a path that leads somewhere else, like `/dev/zero`.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// An outbox has to have this much more room than the largest message: its frame's header and what is told beside it.
const OUTBOX_MARGIN_BYTES: u32 = 1024;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $($(#[doc = $help:literal])+ $field:ident: $type:ty = $default:literal, $kind:expr;)+
        }
    )+) => {
        /// Every setting, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            key: concat!(stringify!($section), ".", stringify!($field)),
            default: $default,
            kind: $kind,
            help: concat!($($help),+),
        },)+)+];

        /// What the configuration means: every setting with its final value, checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[doc = $about])+ pub $section: $Section,)+
            /// What was set away from its default, for [`Config::explain`].
            changed: Vec<Changed>,
        }

        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section { $($(#[doc = $help])+ pub $field: $type,)+ }
        )+

        /// Puts values into the fields they are for. `values` holds one for each of [`SETTINGS`], in its order.
        fn typed(values: Vec<Value>) -> Config {
            let mut values = values.into_iter();
            let mut next = || values.next().expect("there is a value for each setting");
            Config {
                $($section: $Section { $($field: FromValue::from_value(next()),)+ },)+
                changed: Vec::new(),
            }
        }
    };
}

settings! {
    /// Where the server listens and what runs it.
    server: Server {
        /// Address and port that clients connect to. Port 0 takes any free one.
        listen: SocketAddr = "0.0.0.0:7070", Kind::Address;
        /// Address and port of the control port with metrics, or `off`.
        control: Option<SocketAddr> = "127.0.0.1:7071", Kind::AddressOrOff;
        /// Threads that hold connections; 0 is one for each CPU this process may use.
        shards: u32 = "0", Kind::Number { min: 0, max: 128 };
        /// Keep each shard on a CPU of its own, where there are enough.
        pin: bool = "true", Kind::Flag;
        /// What moves the bytes; `auto` takes the best that this kernel has.
        io: Io = "auto", Kind::Word(Io::WORDS);
        /// Open `/echo`, which sends every message back: for conformance tests and benchmarks.
        echo: bool = "false", Kind::Flag;
        /// Events that follow another to the same connection within this time wait for its end and leave together;
        /// 0 sends at once.
        linger_ms: u32 = "0", Kind::Ms { min: 0, max: 1000 };
    }

    /// What one client, and all of them, may take.
    limits: Limits {
        /// Open connections in all, as far as the descriptor limit allows; 0 is as many as it allows.
        connections_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 };
        /// Open connections of one address, for IPv6 of one /64; 0 is no limit. Of sockets that are not upgraded an address may have as
        /// many on top, at least 16.
        connections_per_ip_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 };
        /// How a connection over a limit is refused: `status` answers the upgrade with 429 or 503; `close` accepts it and
        /// closes with 1008, which a browser's script can see.
        refuse_with: RefuseWith = "status", Kind::Word(RefuseWith::WORDS);
        /// Proxies whose `Forwarded` and `X-Forwarded-For` are believed.
        trusted_proxies: Vec<IpNet> = "[]", Kind::Networks;
        /// New connections a second, for each shard; 0 is no limit.
        accepts_per_second_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Time for a request's head to be complete.
        handshake_timeout_ms: u32 = "10000", Kind::Ms { min: 100, max: 600_000 };
        /// Length of a request's head.
        head_bytes_max: u32 = "8KiB", Kind::Bytes { min: 512, max: 65_536 };
        /// Length of a message from a client; a longer one closes with 1009.
        message_bytes_max: u32 = "1MiB", Kind::Bytes { min: 125, max: 256 * MIB };
        /// Frames that one message may come in; more close with 1009.
        frames_per_message_max: u32 = "4096", Kind::Number { min: 1, max: 268_435_456 };
        /// Time for a message to be complete once it has begun, looked at when the heartbeat of its connection is due; a later one
        /// closes with 1008.
        message_timeout_ms: u32 = "120000", Kind::Ms { min: 100, max: 86_400_000 };
        /// Messages that one frame may hold as an array.
        messages_per_frame_max: u32 = "1024", Kind::Number { min: 1, max: 65_536 };
        /// Rooms that one connection may be in.
        rooms_per_connection_max: u32 = "1024", Kind::Number { min: 1, max: 1_000_000 };
        /// Rooms in all.
        rooms_max: u32 = "10000000", Kind::Number { min: 1, max: 100_000_000 };
        /// Length of a room's name.
        room_name_bytes_max: u32 = "200", Kind::Bytes { min: 1, max: 1024 };
        /// Messages a second from one connection, on average; 0 is no limit.
        messages_per_second_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Messages that one connection may send at once after a rest; 0 is as many as `messages_per_second_max`.
        messages_burst_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Memory for unfinished messages in all, in equal shares for the shards, none of them less than twice
        /// `limits.message_bytes_max`. A message that finds none closes with 1013.
        receive_bytes_max: u64 = "256MiB", Kind::Bytes { min: 125, max: 1024 * GIB };
        /// Origins whose pages may connect; empty is any. `https://*.example.com` is every subdomain.
        origins: Vec<String> = "[]", Kind::Origins;
    }

    /// How a connection shows that it is alive.
    heartbeat: Heartbeat {
        /// Silence of a client after which it is sent a ping.
        ping_interval_ms: u32 = "25000", Kind::Ms { min: 50, max: 3_600_000 };
        /// Further silence after which the connection is closed.
        ping_timeout_ms: u32 = "20000", Kind::Ms { min: 50, max: 3_600_000 };
    }

    /// What waits for a connection that reads slowly.
    outbox: Outbox {
        /// Bytes that may wait for one connection; at least `limits.message_bytes_max` + 1024.
        bytes_max: u32 = "4MiB", Kind::Bytes { min: 1149, max: GIB };
        /// Bytes that may wait for all connections together, each shard having an equal share; at least `outbox.bytes_max`. When it is
        /// used up, every outbox counts as full.
        total_bytes_max: u64 = "1GiB", Kind::Bytes { min: 1149, max: 1024 * GIB };
        /// What happens to a connection whose outbox is full: `disconnect` closes it with 4001; `drop` leaves messages
        /// out and tells it how many.
        policy: OutboxPolicy = "disconnect", Kind::Word(OutboxPolicy::WORDS);
    }

    /// How the server shuts down on SIGTERM.
    drain: Drain {
        /// Time after which the server ends, whether all connections are closed or not.
        timeout_ms: u32 = "10000", Kind::Ms { min: 0, max: 600_000 };
        /// Time over which the closes are spread, so that not everybody comes back at once; at most `drain.timeout_ms`.
        spread_ms: u32 = "1000", Kind::Ms { min: 0, max: 600_000 };
    }

    /// What is logged, on standard error.
    log: Log {
        /// The least severe level that is logged.
        level: LogLevel = "info", Kind::Word(LogLevel::WORDS);
        /// Lines for people or for machines.
        format: LogFormat = "text", Kind::Word(LogFormat::WORDS);
    }
}

macro_rules! words {
    ($(
        $(#[$about:meta])+
        $name:ident { $($(#[$help:meta])+ $variant:ident = $word:literal,)+ }
    )+) => { $(
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$help])+ $variant,)+ }

        impl $name {
            const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word that stands for this in a configuration.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }
        }

        impl FromValue for $name {
            fn from_value(value: Value) -> $name {
                match value {
                    $(Value::Word($word) => $name::$variant,)+
                    other => mismatch(&other),
                }
            }
        }
    )+ };
}

words! {
    /// What moves the bytes.
    Io {
        /// The best that this kernel has.
        Auto = "auto",
        /// Edge-triggered epoll.
        Epoll = "epoll",
    }

    /// How a connection over a limit is refused.
    RefuseWith {
        /// The upgrade is answered with 429 or 503.
        Status = "status",
        /// The upgrade is accepted, then closed with 1008.
        Close = "close",
    }

    /// What happens to a connection whose outbox is full.
    OutboxPolicy {
        /// It ends.
        Disconnect = "disconnect",
        /// Messages are left out, and it is told how many.
        Drop = "drop",
    }

    /// The least severe level that is logged.
    LogLevel {
        /// What stops the server or loses data.
        Error = "error",
        /// What somebody should look at.
        Warn = "warn",
        /// Start, stop and what changed in between.
        Info = "info",
        /// What explains a connection's fate.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }

    /// How a log line is written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Two settings that have to agree.
struct Rule {
    key: &'static str,
    other: &'static str,
    holds: fn(&Config) -> bool,
    /// What `key` has to be, to stand behind "must".
    must: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        key: "server.control",
        other: "server.listen",
        holds: |config| config.server.control.is_none_or(|control| !overlap(control, config.server.listen)),
        must: "not take the port of server.listen",
    },
    Rule {
        key: "limits.messages_burst_max",
        other: "limits.messages_per_second_max",
        holds: |config| config.limits.messages_burst_max == 0 || config.limits.messages_per_second_max > 0,
        must: "be 0 unless limits.messages_per_second_max is set",
    },
    Rule {
        key: "limits.receive_bytes_max",
        other: "limits.message_bytes_max",
        holds: |config| config.limits.receive_bytes_max >= u64::from(config.limits.message_bytes_max),
        must: "be at least limits.message_bytes_max",
    },
    Rule {
        key: "outbox.bytes_max",
        other: "limits.message_bytes_max",
        // Neither sum overflows: a message has at most 256 MiB.
        holds: |config| config.outbox.bytes_max >= config.limits.message_bytes_max + OUTBOX_MARGIN_BYTES,
        must: "be at least limits.message_bytes_max + 1024",
    },
    Rule {
        key: "outbox.total_bytes_max",
        other: "outbox.bytes_max",
        holds: |config| config.outbox.total_bytes_max >= u64::from(config.outbox.bytes_max),
        must: "be at least outbox.bytes_max",
    },
    Rule {
        key: "drain.spread_ms",
        other: "drain.timeout_ms",
        holds: |config| config.drain.spread_ms <= config.drain.timeout_ms,
        must: "be at most drain.timeout_ms",
    },
];

/// The part of the command line of `throng serve` that is configuration. Values stay text here: the table checks them, so that a
/// wrong flag is reported together with everything else that is wrong.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Configuration file; without it, the one that THRONG_CONFIG names, or none
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients connect
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Where the control port with metrics are, or off
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub control: Option<String>,
    /// Threads that hold connections; 0 is one for each CPU
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// Open /echo, which sends every message back
    #[arg(long)]
    pub echo: bool,
    /// What moves the bytes
    #[arg(long, value_name = "auto|epoll")]
    pub io: Option<String>,
    /// Milliseconds that further events to a connection may wait to leave together
    #[arg(long, value_name = "N")]
    pub linger_ms: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Any setting, as in --set limits.message_bytes_max=64KiB; weaker than a flag of its own
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Args {
    /// What the flags say: the flag's name, the key it sets and the value.
    fn flags(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let echo = self.echo.then_some("true");
        [
            ("--listen", "server.listen", self.listen.as_deref()),
            ("--control", "server.control", self.control.as_deref()),
            ("--shards", "server.shards", self.shards.as_deref()),
            ("--echo", "server.echo", echo),
            ("--io", "server.io", self.io.as_deref()),
            ("--linger-ms", "server.linger_ms", self.linger_ms.as_deref()),
            ("--log-level", "log.level", self.log_level.as_deref()),
            ("--log-format", "log.format", self.log_format.as_deref()),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some((flag, key, value?)))
    }
}

impl Config {
    /// Reads the file that `args` or `env` name, if any, and says what all of it means. `env` is usually
    /// `std::env::vars_os()`.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the sources.
    pub fn load(
        args: &Args,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Vec<Problem>> {
        let mut path = args.config.clone().map(|path| (path, Source::flag("--config")));
        let mut variables = Vec::new();
        for (name, value) in env {
            // A name that is not UTF-8 is not one of ours.
            let Ok(name) = name.into_string() else { continue };
            if name == ENV_FILE && path.is_none() && !value.is_empty() {
                path = Some((PathBuf::from(&value), Source::environment(ENV_FILE)));
            }
            // No setting takes what stands for bytes that are not UTF-8, so the check finds them.
            variables.push((name, value.to_string_lossy().into_owned()));
        }
        let Some((path, named_by)) = path else { return Said::gather(args, None, &variables).meaning() };
        let shown = path.display().to_string();
        match read_file(&path) {
            Ok(text) => Said::gather(args, Some((&shown, &text)), &variables).meaning(),
            Err(error) => {
                let mut said = Said::gather(args, None, &variables);
                let fault = Fault::Unreadable { error: error.to_string() };
                said.problems.push(Problem { key: shown, source: named_by, fault });
                said.file_lost = true;
                said.meaning()
            }
        }
    }

    /// What this configuration means, for people: what was set and where, then in words what follows from it.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        if self.changed.is_empty() {
            text.push_str("Every setting is at its default.\n");
        } else {
            text.push_str("Set away from the default:\n");
            let width = self.changed.iter().map(|changed| changed.shown.len()).max().unwrap_or(0).min(72);
            for Changed { shown, source } in &self.changed {
                push(&mut text, format_args!("  {shown:width$}  {source}"));
            }
        }
        text.push_str("\nWhat it means:\n");
        for line in self.in_words() {
            push(&mut text, format_args!("  {line}"));
        }
        text
    }

    fn in_words(&self) -> Vec<String> {
        let Config { server, limits, heartbeat, outbox, drain, log, .. } = self;
        let mut lines = Vec::new();
        let everywhere =
            |ip: IpAddr| if ip.is_unspecified() { " (every address of this machine)" } else { "" };
        let port = if server.listen.port() == 0 { " on any free port" } else { "" };
        let echo = if server.echo { "and /echo" } else { "(/echo is off)" };
        let listen = server.listen;
        lines.push(format!("Clients connect to {listen}{}{port}, at /ws {echo}.", everywhere(listen.ip())));
        lines.push(match server.control {
            None => "There is no control port and there are no metrics.".to_owned(),
            Some(control) if control.ip().is_loopback() => {
                format!("The control API is on {control}, for this machine only.")
            }
            Some(control) => format!(
                "The control API is on {control}{}: CAUTION, whoever reaches that port controls the server.",
                everywhere(control.ip())
            ),
        });
        let shards = match server.shards {
            0 => "One shard for each CPU this process may use".to_owned(),
            1 => "1 shard".to_owned(),
            n => format!("{n} shards"),
        };
        let pinned = if server.pin {
            "kept on a CPU of its own where there are enough"
        } else {
            "on whatever CPU the kernel picks"
        };
        lines.push(format!("{shards}, each {pinned}; I/O: {}.", server.io.word()));
        if server.linger_ms > 0 {
            lines.push(format!("Events may wait up to {} to leave together.", time(server.linger_ms)));
        }
        let refused = match limits.refuse_with {
            RefuseWith::Status => "refused with 429 or 503",
            RefuseWith::Close => "accepted and closed with 1008",
        };
        lines.push(match limits.connections_max {
            0 => format!(
                "As many connections as the descriptor limit allows; what is over a limit is {refused}."
            ),
            max => format!("At most {max} connections; what is over a limit is {refused}."),
        });
        if limits.connections_per_ip_max > 0 {
            lines.push(format!("At most {} connections of one address.", limits.connections_per_ip_max));
        }
        if limits.accepts_per_second_max > 0 {
            lines.push(format!("Each shard accepts {} connections a second.", limits.accepts_per_second_max));
        }
        if !limits.trusted_proxies.is_empty() {
            lines.push(format!(
                "Proxies that are believed about their clients: {}.",
                list(&limits.trusted_proxies)
            ));
        }
        if limits.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
            lines.push("CAUTION: every client is a trusted proxy and can claim any address.".to_owned());
        }
        if !limits.origins.is_empty() {
            lines.push(format!(
                "Only pages of {} may connect, and clients that are no browser.",
                list(&limits.origins)
            ));
        }
        lines.push(format!(
            "A message has at most {}; unfinished ones share {}.",
            size(limits.message_bytes_max.into()),
            size(limits.receive_bytes_max)
        ));
        if limits.messages_per_second_max > 0 {
            lines.push(format!(
                "A connection may send {} messages a second, and {} at once.",
                limits.messages_per_second_max, limits.messages_burst_max
            ));
        }
        let off: Vec<&str> = [
            ("connections_per_ip_max", limits.connections_per_ip_max == 0),
            ("accepts_per_second_max", limits.accepts_per_second_max == 0),
            ("messages_per_second_max", limits.messages_per_second_max == 0),
            ("origins", limits.origins.is_empty()),
        ]
        .into_iter()
        .filter_map(|(key, off)| off.then_some(key))
        .collect();
        if !off.is_empty() {
            lines.push(format!("Limits that are off: {}.", off.join(", ")));
        }
        lines.push(format!(
            "A client that is silent for {} is pinged; after {} more it is closed.",
            time(heartbeat.ping_interval_ms),
            time(heartbeat.ping_timeout_ms)
        ));
        let then = match outbox.policy {
            OutboxPolicy::Disconnect => "then it is disconnected",
            OutboxPolicy::Drop => "then messages for it are dropped",
        };
        lines.push(format!(
            "For a slow connection {} may wait, for all of them {}; {then}.",
            size(outbox.bytes_max.into()),
            size(outbox.total_bytes_max)
        ));
        lines.push(format!(
            "SIGTERM closes connections over {} and ends the server after {} at most.",
            time(drain.spread_ms),
            time(drain.timeout_ms)
        ));
        lines.push(format!("Logs are {}, from level {}.", log.format.word(), log.level.word()));
        lines
    }
}

impl Default for Config {
    fn default() -> Config {
        Said::default().meaning().expect("the defaults are a right configuration")
    }
}

/// What was said: the statements of all sources from the weakest to the strongest, not yet checked but for their keys.
#[derive(Debug, Default)]
pub struct Said {
    statements: Vec<Statement>,
    /// What names no setting, or is no statement at all.
    problems: Vec<Problem>,
    /// True exactly when there is a file that could not be read or parsed. Then rules between settings would mislead.
    file_lost: bool,
}

/// One setting as one source said it.
#[derive(Debug)]
struct Statement {
    /// Index in [`SETTINGS`].
    setting: usize,
    given: Given,
    source: Source,
}

/// A setting that is not at its default.
#[derive(Clone, Debug)]
struct Changed {
    /// The setting as a line of TOML, its key in full.
    shown: String,
    source: Source,
}

impl Said {
    /// Collects what the file (its path and text), the environment and the command line say. Pure: reads nothing itself.
    pub fn gather(args: &Args, file: Option<(&str, &str)>, env: &[(String, String)]) -> Said {
        let mut said = Said::default();
        if let Some((path, text)) = file {
            said.hear_file(path, text);
        }
        said.hear_environment(env);
        for set in &args.set {
            said.hear_set(set);
        }
        for (flag, key, value) in args.flags() {
            let setting = position(key).expect("a flag's key is in the table");
            said.statements.push(Statement {
                setting,
                given: Given::bare(value),
                source: Source::flag(flag),
            });
        }
        said
    }

    /// What it means: of each setting what the strongest source said, checked. A wrong statement is a problem even where a
    /// stronger source overrides it: it would come to light on the worst of days.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the sources.
    pub fn meaning(self) -> Result<Config, Vec<Problem>> {
        let mut problems = self.problems;
        let mut finals: Vec<Final> = SETTINGS.iter().map(Final::default_of).collect();
        for Statement { setting, given, source } in self.statements {
            let Setting { key, kind, .. } = &SETTINGS[setting];
            match kind.read(&given) {
                Ok(value) => (finals[setting].value, finals[setting].source) = (value, source),
                Err(wrong) => {
                    finals[setting].is_wrong = true;
                    problems.extend(wrong.into_iter().map(|Wrong { given, line }| Problem {
                        key: (*key).to_owned(),
                        source: source.at(line),
                        fault: Fault::Value { given, allowed: kind.allowed() + kind.also() },
                    }));
                }
            }
        }
        let mut config = typed(finals.iter().map(|last| last.value.clone()).collect());
        if !self.file_lost {
            problems.extend(RULES.iter().filter_map(|rule| rule.check(&config, &finals)));
        }
        if !problems.is_empty() {
            problems.sort_by(|a, b| a.source.cmp(&b.source));
            return Err(problems);
        }
        for (setting, last) in SETTINGS.iter().zip(finals) {
            if last.value != setting.default_value() {
                let shown = format!("{} = {}", setting.key, last.value);
                config.changed.push(Changed { shown, source: last.source });
            }
        }
        if config.limits.messages_burst_max == 0 {
            config.limits.messages_burst_max = config.limits.messages_per_second_max;
        }
        Ok(config)
    }

    fn hear_file(&mut self, path: &str, text: &str) {
        let source = |at: usize| Source::File { path: path.to_owned(), line: line_column(text, at).0 };
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let (line, column) = line_column(text, error.span().map_or(0, |span| span.start));
            let fault = Fault::Syntax { column, message: error.message().replace('\n', ", ") };
            let source = Source::File { path: path.to_owned(), line };
            self.problems.push(Problem { key: String::new(), source, fault });
        }
        // What is left of a broken file is a guess at what was meant, and its problems would be guesses too.
        self.file_lost = !errors.is_empty();
        if self.file_lost {
            return;
        }
        for (section, content) in root.get_ref() {
            let name: &str = section.get_ref();
            let known = SETTINGS.iter().any(|setting| setting.section() == name);
            match content.get_ref() {
                DeValue::Table(table) if known => {
                    for (field, value) in table {
                        let key = format!("{name}.{}", field.get_ref());
                        let source = source(field.span().start);
                        match position(&key) {
                            Some(setting) => {
                                let given = Given::from_toml(value.get_ref(), text);
                                self.statements.push(Statement { setting, given, source });
                            }
                            None => self.problems.push(Problem::unknown(key, source)),
                        }
                    }
                }
                value if known => {
                    let given = Given::from_toml(value, text).to_string();
                    let allowed = format!("a section, [{name}]");
                    let fault = Fault::Value { given, allowed };
                    self.problems.push(Problem {
                        key: name.to_owned(),
                        source: source(section.span().start),
                        fault,
                    });
                }
                _ => self.problems.push(Problem::unknown(name.to_owned(), source(section.span().start))),
            }
        }
    }

    fn hear_environment(&mut self, env: &[(String, String)]) {
        let mut weaker = Vec::new();
        let mut own = Vec::new();
        for (name, value) in env.iter().filter(|(_, value)| !value.is_empty()) {
            let setting = if name == ENV_CONNECTIONS_MAX {
                position("limits.connections_max")
            } else if name.starts_with(ENV_PREFIX) && name != ENV_FILE && !is_service_link(name, value) {
                SETTINGS.iter().position(|setting| setting.env_name() == *name)
            } else {
                continue;
            };
            let source = Source::environment(name);
            match setting {
                Some(setting) => {
                    let statements = if name == ENV_CONNECTIONS_MAX { &mut weaker } else { &mut own };
                    statements.push(Statement { setting, given: Given::bare(value), source });
                }
                None => self.problems.push(Problem::unknown(name.clone(), source)),
            }
        }
        self.statements.append(&mut weaker);
        self.statements.append(&mut own);
    }

    fn hear_set(&mut self, set: &str) {
        let source = Source::flag("--set");
        let Some((key, value)) = set.split_once('=') else {
            let fault = Fault::Value { given: format!("{set:?}"), allowed: "KEY=VALUE".to_owned() };
            return self.problems.push(Problem { key: String::new(), source, fault });
        };
        match position(key.trim()) {
            Some(setting) => self.statements.push(Statement { setting, given: Given::bare(value), source }),
            None => self.problems.push(Problem::unknown(key.trim().to_owned(), source)),
        }
    }
}

/// What a setting has come to.
struct Final {
    value: Value,
    source: Source,
    /// True when a statement about it was wrong, so that its value proves nothing.
    is_wrong: bool,
}

impl Final {
    fn default_of(setting: &Setting) -> Final {
        Final { value: setting.default_value(), source: Source::Default, is_wrong: false }
    }
}

impl Rule {
    fn check(&self, config: &Config, finals: &[Final]) -> Option<Problem> {
        let of = |key| &finals[position(key).expect("a rule's keys are in the table")];
        let (this, other) = (of(self.key), of(self.other));
        if this.is_wrong || other.is_wrong || (self.holds)(config) {
            return None;
        }
        let source = if this.source == Source::Default { &other.source } else { &this.source };
        let fault = Fault::Conflict {
            given: this.value.to_string(),
            given_by: this.source.clone(),
            must: self.must,
            other: self.other,
            other_given: other.value.to_string(),
            other_by: other.source.clone(),
        };
        Some(Problem { key: self.key.to_owned(), source: source.clone(), fault })
    }
}

/// Where something was said. The order is that of strength.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Built in.
    Default,
    /// The configuration file.
    File {
        /// As it was named.
        path: String,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        name: String,
    },
    /// The command line.
    Flag {
        /// With its dashes.
        name: &'static str,
    },
}

impl Source {
    fn flag(name: &'static str) -> Source {
        Source::Flag { name }
    }

    fn environment(name: &str) -> Source {
        Source::Environment { name: name.to_owned() }
    }

    /// This source at another line, if it has lines.
    fn at(&self, other_line: Option<usize>) -> Source {
        match (self, other_line) {
            (Source::File { path, .. }, Some(line)) => Source::File { path: path.clone(), line },
            _ => self.clone(),
        }
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => write!(f, "default"),
            Source::File { path, line } => write!(f, "{path}:{line}"),
            Source::Environment { name } => write!(f, "{name}"),
            Source::Flag { name } => write!(f, "{name}"),
        }
    }
}

/// Something that is wrong with what was said. Displayed, it is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting at fault, or what was taken for one; empty where none was named. For a file that cannot be read, its path.
    pub key: String,
    /// Where it was said.
    pub source: Source,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The value is not allowed.
    Value {
        /// As it was written.
        given: String,
        /// What would be right, to stand behind "it takes".
        allowed: String,
    },
    /// There is no such setting.
    Unknown {
        /// A setting's name that is like it.
        nearest: Option<String>,
    },
    /// Two settings do not agree.
    Conflict {
        /// The value of the problem's key.
        given: String,
        /// Who said it.
        given_by: Source,
        /// What it has to be.
        must: &'static str,
        /// The other setting's key.
        other: &'static str,
        /// Its value.
        other_given: String,
        /// Who said that.
        other_by: Source,
    },
    /// The file is not TOML.
    Syntax {
        /// In characters, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// The file cannot be read.
    Unreadable {
        /// What the system says.
        error: String,
    },
}

impl Problem {
    /// `key` names no setting; `source` is where it was said.
    fn unknown(key: String, source: Source) -> Problem {
        let nearest = match (&source, key.strip_prefix(ENV_PREFIX)) {
            (Source::Environment { .. }, Some(name)) => {
                let names = SETTINGS.iter().map(Setting::env_name);
                nearest(name, names.map(|name| (name[ENV_PREFIX.len()..].to_owned(), name)))
            }
            _ => nearest_key(&key),
        };
        Problem { key, source, fault: Fault::Unknown { nearest } }
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { key, source, fault } = self;
        match fault {
            Fault::Value { given, allowed } => {
                write!(f, "{source}: ")?;
                if !key.is_empty() {
                    write!(f, "{key}: ")?;
                }
                write!(f, "{given} is wrong, it takes {allowed}")
            }
            Fault::Unknown { nearest } => {
                // A variable is its own place.
                if !matches!(source, Source::Environment { .. }) {
                    write!(f, "{source}: ")?;
                }
                // A key can be anything, a line break too.
                write!(f, "{}: there is no such setting", key.escape_debug())?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean {nearest}?"),
                    None => Ok(()),
                }
            }
            Fault::Conflict { given, given_by, must, other, other_given, other_by } => write!(
                f,
                "{source}: {key} = {given} ({given_by}) must {must}, and {other} = {other_given} ({other_by})"
            ),
            Fault::Syntax { column, message } => write!(f, "{source}:{column}: not TOML: {message}"),
            Fault::Unreadable { error } => write!(f, "{source}: {key}: {error}"),
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Section and name, as in `limits.message_bytes_max`.
    pub key: &'static str,
    /// The default, as one would write it in an environment variable.
    pub default: &'static str,
    /// What values it takes.
    pub kind: Kind,
    help: &'static str,
}

impl Setting {
    /// The section of the file it stands in.
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(section, _)| section)
    }

    /// What it is called within its section.
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// What it is for, in a sentence or two.
    pub fn help(&self) -> &'static str {
        self.help.trim_start()
    }

    /// The environment variable that sets it. Settings of `[server]` go without their section.
    pub fn env_name(&self) -> String {
        let key = self.key.strip_prefix("server.").unwrap_or(self.key);
        format!("{ENV_PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
    }

    fn default_value(&self) -> Value {
        self.kind.read(&Given::bare(self.default)).expect("a default is allowed")
    }
}

/// What values a setting takes. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Yes or no.
    Flag,
    /// A whole number.
    Number {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// A number of bytes, or a text with a unit.
    Bytes {
        /// The least, in bytes.
        min: u64,
        /// The greatest, in bytes.
        max: u64,
    },
    /// A number of milliseconds, or a text with a unit.
    Ms {
        /// The least, in milliseconds.
        min: u64,
        /// The greatest, in milliseconds.
        max: u64,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// An address and a port.
    Address,
    /// An address and a port, or `off`.
    AddressOrOff,
    /// A list of networks and addresses.
    Networks,
    /// A list of origins of web pages.
    Origins,
}

impl Kind {
    /// What it takes, in words.
    pub fn allowed(&self) -> String {
        match *self {
            Kind::Flag => "true or false".to_owned(),
            Kind::Number { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Bytes { min, max } => format!("a size from {} to {}", size(min), size(max)),
            Kind::Ms { min, max } => format!("a time from {min} to {max} ms"),
            Kind::Word(words) => match words.split_last() {
                Some((last, rest)) => format!("\"{}\" or \"{last}\"", rest.join("\", \"")),
                None => String::new(),
            },
            Kind::Address => "an address and a port, like \"0.0.0.0:7070\" or \"[::]:7070\"".to_owned(),
            Kind::AddressOrOff => "an address and a port, like \"127.0.0.1:7071\", or \"off\"".to_owned(),
            Kind::Networks => {
                "a list of networks and addresses, like [\"10.0.0.0/8\", \"192.0.2.1\"]".to_owned()
            }
            Kind::Origins => {
                "a list of \"scheme://host[:port]\", \"scheme://*.host[:port]\" or \"null\"".to_owned()
            }
        }
    }

    /// How else it may be written, for those that have two ways: the end of a sentence.
    fn also(&self) -> &'static str {
        match self {
            Kind::Bytes { .. } => ", in bytes or like \"64KiB\"",
            Kind::Ms { .. } => ", as a number or like \"25s\"",
            _ => "",
        }
    }

    /// Reads what was given.
    ///
    /// # Errors
    /// What of it is not allowed: for a list the elements, else the whole.
    fn read(&self, given: &Given) -> Result<Value, Vec<Wrong>> {
        let whole = || vec![Wrong { given: given.to_string(), line: None }];
        match *self {
            Kind::Flag => given.flag().map(Value::Flag).ok_or_else(whole),
            Kind::Number { min, max } => {
                let number = given.number().filter(|number| (min..=max).contains(number));
                number.map(Value::Number).ok_or_else(whole)
            }
            Kind::Bytes { min, max } => {
                let bytes = given.number().or_else(|| with_unit(given.text()?, BYTE_UNITS));
                bytes.filter(|bytes| (min..=max).contains(bytes)).map(Value::Bytes).ok_or_else(whole)
            }
            Kind::Ms { min, max } => {
                let ms = given.number().or_else(|| with_unit(given.text()?, TIME_UNITS));
                ms.filter(|ms| (min..=max).contains(ms)).map(Value::Number).ok_or_else(whole)
            }
            Kind::Word(words) => {
                let word = given.text().and_then(|text| words.iter().find(|word| **word == text));
                word.map(|word| Value::Word(word)).ok_or_else(whole)
            }
            Kind::Address => {
                let address = given.text().and_then(|text| text.parse().ok());
                address.map(|address| Value::Address(Some(address))).ok_or_else(whole)
            }
            Kind::AddressOrOff => match given.text() {
                Some("off") => Ok(Value::Address(None)),
                _ => Kind::Address.read(given),
            },
            Kind::Networks => given.list(network).map(Value::Networks),
            Kind::Origins => given.list(origin).map(Value::Origins),
        }
    }
}

/// A value, or an element of one, that is not allowed.
#[derive(Debug)]
struct Wrong {
    given: String,
    /// Where it differs from the statement's.
    line: Option<usize>,
}

/// A value as it was written, before anybody knows what it is for. Displayed, it is TOML, or what stood in its place.
#[derive(Clone, Debug)]
enum Given {
    Flag(bool),
    Number(i128),
    Text(String),
    /// Text without quotes, from the environment or the command line. For a list it is the elements, with commas between.
    Bare(String),
    /// Elements with their lines.
    List(Vec<(Given, usize)>),
    /// What no setting takes: a date, a fraction, a table.
    Other(String),
}

impl Given {
    /// A value from the environment or the command line: TOML if it can be read as such, else bare text.
    fn bare(text: &str) -> Given {
        let text = text.trim();
        match DeValue::parse(text) {
            Ok(value) => match Given::from_toml(value.get_ref(), text) {
                Given::Other(_) => Given::Bare(text.to_owned()),
                given => given,
            },
            Err(_) => Given::Bare(text.to_owned()),
        }
    }

    /// A value of a TOML document, whose text is for the lines of list elements.
    fn from_toml(value: &DeValue<'_>, text: &str) -> Given {
        match value {
            DeValue::Boolean(flag) => Given::Flag(*flag),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Given::Number(number),
                Err(_) => Given::Other(number.to_string()),
            },
            DeValue::String(string) => Given::Text(string.clone().into_owned()),
            DeValue::Array(items) => {
                let item = |item: &toml::Spanned<DeValue<'_>>| {
                    (Given::from_toml(item.get_ref(), text), line_column(text, item.span().start).0)
                };
                Given::List(items.iter().map(item).collect())
            }
            DeValue::Float(number) => Given::Other(number.to_string()),
            DeValue::Datetime(date) => Given::Other(date.to_string()),
            DeValue::Table(_) => Given::Other("a table".to_owned()),
        }
    }

    fn flag(&self) -> Option<bool> {
        if let Given::Flag(flag) = self { Some(*flag) } else { None }
    }

    fn number(&self) -> Option<u64> {
        if let Given::Number(number) = self { u64::try_from(*number).ok() } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Given::Text(text) | Given::Bare(text) = self { Some(text) } else { None }
    }

    /// The elements, each read by `read`.
    fn list<T>(&self, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Vec<Wrong>> {
        let items: Vec<(Given, Option<usize>)> = match self {
            Given::List(items) => items.iter().map(|(item, line)| (item.clone(), Some(*line))).collect(),
            Given::Bare(text) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                words.map(|word| (Given::Bare(word.to_owned()), None)).collect()
            }
            _ => return Err(vec![Wrong { given: self.to_string(), line: None }]),
        };
        let mut values = Vec::with_capacity(items.len());
        let mut wrong = Vec::new();
        for (item, line) in items {
            match item.text().and_then(&read) {
                Some(value) => values.push(value),
                None => wrong.push(Wrong { given: item.to_string(), line }),
            }
        }
        if wrong.is_empty() { Ok(values) } else { Err(wrong) }
    }
}

impl Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Flag(flag) => write!(f, "{flag}"),
            Given::Number(number) => write!(f, "{number}"),
            Given::Text(text) | Given::Bare(text) => write!(f, "{text:?}"),
            Given::List(items) => {
                let items: Vec<String> = items.iter().map(|(item, _)| item.to_string()).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Given::Other(text) => write!(f, "{text}"),
        }
    }
}

/// A value that is allowed, in the shape of its [`Kind`]. Displayed, it is TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Flag(bool),
    /// Of things or of milliseconds.
    Number(u64),
    Bytes(u64),
    Word(&'static str),
    Address(Option<SocketAddr>),
    Networks(Vec<IpNet>),
    Origins(Vec<String>),
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Bytes(bytes) => match exact_unit(*bytes) {
                Some((count, unit)) => write!(f, "\"{count}{unit}\""),
                None => write!(f, "{bytes}"),
            },
            Value::Word(word) => write!(f, "\"{word}\""),
            Value::Address(Some(address)) => write!(f, "\"{address}\""),
            Value::Address(None) => write!(f, "\"off\""),
            Value::Networks(networks) => {
                let networks: Vec<String> = networks.iter().map(|network| format!("\"{network}\"")).collect();
                write!(f, "[{}]", networks.join(", "))
            }
            Value::Origins(origins) => {
                let origins: Vec<String> = origins.iter().map(|origin| format!("{origin:?}")).collect();
                write!(f, "[{}]", origins.join(", "))
            }
        }
    }
}

/// A field's type. The table pairs each with a kind that yields its values; defaults pass through here on every start, so a row
/// that pairs them wrongly does not survive its first test.
trait FromValue {
    fn from_value(value: Value) -> Self;
}

macro_rules! from_value {
    ($($type:ty: $pattern:pat => $field:expr,)+) => { $(
        impl FromValue for $type {
            fn from_value(value: Value) -> $type {
                match value {
                    $pattern => $field,
                    other => mismatch(&other),
                }
            }
        }
    )+ };
}

from_value! {
    bool: Value::Flag(flag) => flag,
    u32: Value::Number(n) | Value::Bytes(n) => u32::try_from(n).expect("a row's range fits its field"),
    u64: Value::Number(n) | Value::Bytes(n) => n,
    SocketAddr: Value::Address(Some(address)) => address,
    Option<SocketAddr>: Value::Address(address) => address,
    Vec<IpNet>: Value::Networks(networks) => networks,
    Vec<String>: Value::Origins(origins) => origins,
}

fn mismatch(value: &Value) -> ! {
    panic!("the table of settings pairs a field with a kind that yields {value}")
}

/// The index in [`SETTINGS`] of the setting with this key.
fn position(key: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.key == key)
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let length = std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Line and column of the byte at `at`, both from 1.
fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// True for a variable that nobody wrote: Kubernetes sets some for every service, so that one named `throng` or `throng-eu` gives
/// `THRONG_SERVICE_HOST`, `THRONG_PORT=tcp://…` and `THRONG_EU_PORT_7070_TCP_ADDR`. They must not stop the server.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_protocol = |text: &str| ["TCP", "UDP", "SCTP"].contains(&text);
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    if name.ends_with("_PORT") {
        return ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    }
    let Some((_, rest)) = name.split_once("_PORT_") else { return false };
    let mut parts = rest.split('_');
    parts.next().is_some_and(is_number) && parts.next().is_some_and(is_protocol)
}

/// True when a socket on one address takes the port of the other.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && same_ip
}

/// A network, or an address as the network of only itself.
fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(network) => Some(network.trunc()),
        Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

/// An origin in the form that browsers send: lower case, and no port where it is the scheme's own.
fn origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if text == "null" {
        return Some(text);
    }
    let (scheme, authority) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    // The colons of an IPv6 address stand in brackets.
    let (host, port) = match authority.rfind(':').filter(|colon| !authority[*colon..].contains(']')) {
        Some(colon) => (&authority[..colon], Some(authority[colon + 1..].parse::<u16>().ok()?)),
        None => (authority, None),
    };
    if !is_scheme || !is_host(host) {
        return None;
    }
    let own = match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    Some(match port.filter(|port| Some(*port) != own) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

/// True for a name, `*.` before a name, or an address, an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    host.strip_prefix("*.").unwrap_or(host).split('.').all(is_label)
}

/// Units and what they are worth, in lower case.
type Units = &'static [(&'static str, u64)];

const BYTE_UNITS: Units = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

const TIME_UNITS: Units =
    &[("", 1), ("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000)];

/// A whole number with one of `units` behind it, in the unit worth 1.
fn with_unit(text: &str, units: Units) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, worth) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*worth)
}

/// `bytes` as a whole number of the largest unit that divides it, if that is more than a byte.
fn exact_unit(bytes: u64) -> Option<(u64, &'static str)> {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map(|(shift, unit)| (bytes >> shift, unit))
}

/// `bytes` for people: exact where that is short, else to a tenth.
fn size(bytes: u64) -> String {
    if let Some((count, unit)) = exact_unit(bytes).filter(|(count, _)| *count < 10_000) {
        return format!("{count} {unit}");
    }
    match bytes {
        1 => "1 byte".to_owned(),
        0..10_240 => format!("{bytes} bytes"),
        10_240..MIB => format!("{:.1} KiB", bytes as f64 / 1024.0),
        MIB..GIB => format!("{:.1} MiB", bytes as f64 / MIB as f64),
        _ => format!("{:.1} GiB", bytes as f64 / GIB as f64),
    }
}

/// `ms` for people.
fn time(ms: u32) -> String {
    if ms > 0 && ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}

/// The first few of `items`, and how many more there are.
fn list(items: &[impl Display]) -> String {
    const SHOWN_MAX: usize = 4;
    let mut text = items.iter().take(SHOWN_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", items.len() - SHOWN_MAX));
    }
    text
}

fn push(text: &mut String, line: fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all that memory holds");
}

/// The key or section that `key` was probably meant to be: one of the same section, else one that has a name like it.
fn nearest_key(key: &str) -> Option<String> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    // What was said in full stands elsewhere, unless it is a part of what stands here.
    let is_part = |setting: &&Setting| setting.section() == section && setting.name().contains(name);
    let is_namesake = |setting: &&Setting| setting.name() == name;
    if let Some(setting) = SETTINGS
        .iter()
        .find(is_part)
        .or_else(|| SETTINGS.iter().find(is_namesake))
        .filter(|_| !name.is_empty())
    {
        return Some(setting.key.to_owned());
    }
    let settings = || SETTINGS.iter().map(|setting| (setting.name().to_owned(), setting.key.to_owned()));
    let siblings = SETTINGS.iter().zip(settings()).filter(|(setting, _)| setting.section() == section);
    let sections =
        SETTINGS.iter().map(|setting| (setting.section().to_owned(), format!("[{}]", setting.section())));
    let sections = sections.filter(|_| section.is_empty());
    nearest(name, siblings.map(|(_, names)| names)).or_else(|| nearest(name, settings().chain(sections)))
}

/// Of `candidates`, each a name and what to answer for it, the answer whose name takes the fewest edits to become of `text`, if
/// they are no more than half of its length. A text that is far longer than any setting's name is like none.
fn nearest(text: &str, candidates: impl Iterator<Item = (String, String)>) -> Option<String> {
    const TEXT_BYTES_MAX: usize = 64;
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    // With its words sorted, `max_connections` is `connections_max`.
    let sorted = |name: &str| {
        let mut words: Vec<&str> = name.split('_').collect();
        words.sort_unstable();
        words.join("_")
    };
    let distance = |name: &str| edits(text, name).min(edits(&sorted(text), &sorted(name)));
    let (count, answer) =
        candidates.map(|(name, answer)| (distance(&name), answer)).min_by_key(|(count, _)| *count)?;
    (count <= (text.len() / 2).max(1)).then_some(answer)
}

/// How many insertions, deletions and replacements of a byte make `b` of `a`, in as many steps as the product of their lengths.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte_a) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, byte_b) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(byte_a != byte_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use std::net::Ipv4Addr;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        let words = std::iter::once("serve").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("clap leaves the values to the table").args
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// What a file, variables and a command line mean together.
    fn load(file: &str, pairs: &[(&str, &str)], line: &str) -> Result<Config, Vec<Problem>> {
        Said::gather(&args(line), Some(("throng.toml", file)), &env(pairs)).meaning()
    }

    fn right(file: &str, pairs: &[(&str, &str)], line: &str) -> Config {
        load(file, pairs, line).unwrap_or_else(|problems| panic!("{}", shown(&problems)))
    }

    fn wrong(file: &str, pairs: &[(&str, &str)], line: &str) -> Vec<Problem> {
        load(file, pairs, line).expect_err("this is wrong")
    }

    fn shown(problems: &[Problem]) -> String {
        problems.iter().map(|problem| format!("{problem}\n")).collect()
    }

    /// Holds the only problem against its whole line.
    #[track_caller]
    fn check_problem(problems: &[Problem], line: &str) {
        assert_eq!(shown(problems), format!("{line}\n"));
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        let config = right("", &[], "");
        assert_eq!(config.server.listen, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7070)));
        assert_eq!(config.server.control, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 7071))));
        let server = &config.server;
        assert_eq!(
            (server.shards, server.pin, server.io, server.echo, server.linger_ms),
            (0, true, Io::Auto, false, 0)
        );
        let limits = &config.limits;
        assert_eq!(
            (limits.connections_max, limits.connections_per_ip_max, limits.accepts_per_second_max),
            (0, 0, 0)
        );
        assert_eq!((limits.messages_per_second_max, limits.messages_burst_max), (0, 0));
        assert_eq!((limits.refuse_with, limits.handshake_timeout_ms), (RefuseWith::Status, 10_000));
        assert_eq!((limits.head_bytes_max, limits.message_bytes_max), (8192, 1_048_576));
        assert_eq!((limits.frames_per_message_max, limits.messages_per_frame_max), (4096, 1024));
        assert_eq!((limits.rooms_per_connection_max, limits.rooms_max), (1024, 10_000_000));
        assert_eq!((limits.room_name_bytes_max, limits.receive_bytes_max), (200, 268_435_456));
        assert!(limits.origins.is_empty() && limits.trusted_proxies.is_empty());
        assert_eq!(config.heartbeat, Heartbeat { ping_interval_ms: 25_000, ping_timeout_ms: 20_000 });
        let outbox =
            Outbox { bytes_max: 4_194_304, total_bytes_max: 1 << 30, policy: OutboxPolicy::Disconnect };
        assert_eq!(config.outbox, outbox);
        assert_eq!(config.drain, Drain { timeout_ms: 10_000, spread_ms: 1000 });
        assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Text });
        assert!(Config::default().explain().starts_with("Every setting is at its default.\n"));
    }

    #[test]
    fn each_source_overrides_the_weaker() {
        let file = "[limits]\nconnections_max = 1\n";
        let weak = ("MAX_CONNECTIONS", "2");
        let own = ("THRONG_LIMITS_CONNECTIONS_MAX", "3");
        let connections_max =
            |file: &str, pairs: &[(&str, &str)], line: &str| right(file, pairs, line).limits.connections_max;
        assert_eq!(connections_max("", &[], ""), 0);
        assert_eq!(connections_max(file, &[], ""), 1);
        assert_eq!(connections_max(file, &[weak], ""), 2);
        assert_eq!(connections_max(file, &[weak, own], ""), 3);
        assert_eq!(connections_max(file, &[own, weak], ""), 3, "whatever the order of the variables");
        let set = "--set limits.connections_max=4";
        assert_eq!(connections_max(file, &[weak, own], set), 4);
        assert_eq!(
            connections_max(file, &[], &format!("{set} --set limits.connections_max=5")),
            5,
            "the last one counts"
        );

        let shards = |line| right("[server]\nshards = 1\n", &[("THRONG_SHARDS", "2")], line).server.shards;
        assert_eq!(shards(""), 2);
        assert_eq!(shards("--shards 4 --set server.shards=3"), 4, "a flag of its own is stronger than --set");
    }

    #[test]
    fn every_flag_sets_its_key() {
        let line = "--listen [::1]:80 --control off --shards 3 --echo --io epoll --linger-ms 5 --log-level debug --log-format json";
        let config = right("", &[], line);
        let server = Server {
            listen: "[::1]:80".parse().expect("an address"),
            control: None,
            shards: 3,
            pin: true,
            io: Io::Epoll,
            echo: true,
            linger_ms: 5,
        };
        assert_eq!(config.server, server);
        assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json });
    }

    #[test]
    fn every_setting_takes_its_default_from_every_source() {
        for setting in SETTINGS {
            let (section, name) = setting.key.split_once('.').expect("a key has a section");
            let value = setting.default_value();
            let toml = format!("[{section}]\n{name} = {value}\n");
            for default in [
                right(&toml, &[], ""),
                right("", &[(&setting.env_name(), setting.default)], ""),
                right("", &[(&setting.env_name(), &value.to_string())], ""),
                right("", &[], &format!("--set {}={}", setting.key, setting.default)),
            ] {
                assert!(default.changed.is_empty(), "{}: {:?}", setting.key, default.changed);
            }
        }
    }

    #[test]
    fn every_bound_fits_its_field() {
        for setting in SETTINGS {
            let mut finals: Vec<Value> = SETTINGS.iter().map(Setting::default_value).collect();
            let index = position(setting.key).expect("it is in the table");
            if let Kind::Number { min, max } | Kind::Bytes { min, max } | Kind::Ms { min, max } = setting.kind
            {
                for bound in [min, max] {
                    finals[index] =
                        setting.kind.read(&Given::Number(bound.into())).expect("bounds are inclusive");
                    typed(finals.clone());
                }
                assert!(setting.kind.read(&Given::Number(i128::from(max) + 1)).is_err());
                assert!(setting.kind.read(&Given::Number(i128::from(min) - 1)).is_err());
            }
        }
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let mut names: Vec<String> = SETTINGS.iter().map(Setting::env_name).collect();
        names.extend([ENV_FILE.to_owned(), ENV_CONNECTIONS_MAX.to_owned()]);
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| !is_service_link(name, "0.0.0.0:7070")));
    }

    #[test]
    fn sizes_and_times_take_units() {
        let bytes_max = |value: &str| {
            right(&format!("[limits]\nmessage_bytes_max = {value}\n"), &[], "").limits.message_bytes_max
        };
        for (value, bytes) in [
            ("65_536", 65_536),
            ("0x10000", 65_536),
            ("\"64KiB\"", 65_536),
            ("\"64 kib\"", 65_536),
            ("\"1MB\"", 1_000_000),
            ("\"200kB\"", 200_000),
            ("\"125\"", 125),
            ("\"125B\"", 125),
        ] {
            assert_eq!(bytes_max(value), bytes, "{value}");
        }
        let interval_ms =
            |value| right("", &[("THRONG_HEARTBEAT_PING_INTERVAL_MS", value)], "").heartbeat.ping_interval_ms;
        for (value, ms) in
            [("1500", 1500), ("500ms", 500), ("25s", 25_000), (" 2 m ", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(interval_ms(value), ms, "{value}");
        }
    }

    #[test]
    fn lists_come_as_toml_or_with_commas() {
        let file = "[limits]\ntrusted_proxies = [\"10.1.2.3/8\", \"::1\"]\n\
                    origins = [\"https://A.example:443\", \"https://*.b.example\", \"http://[::1]:3000\", \"null\"]\n";
        let bare = [
            ("THRONG_LIMITS_TRUSTED_PROXIES", "10.0.0.0/8, ::1/128"),
            ("THRONG_LIMITS_ORIGINS", "https://a.example,https://*.b.example,http://[::1]:3000,null"),
        ];
        for config in [right(file, &[], ""), right("", &bare, "")] {
            assert_eq!(list(&config.limits.trusted_proxies), "10.0.0.0/8, ::1/128");
            let origins = ["https://a.example", "https://*.b.example", "http://[::1]:3000", "null"];
            assert_eq!(config.limits.origins, origins, "in the form that browsers send");
        }
        let config = right("", &[("THRONG_LIMITS_ORIGINS", "[\"http://a.example\"]")], "");
        assert_eq!(config.limits.origins, ["http://a.example"]);
        let emptied = right(file, &[], "--set limits.origins= --set limits.trusted_proxies=[]");
        assert!(emptied.limits.origins.is_empty() && emptied.limits.trusted_proxies.is_empty());
    }

    #[test]
    fn every_wrong_value_names_its_key_its_line_and_what_is_allowed() {
        for (section, line, given, allowed) in [
            ("server", "listen = \"7070\"", "\"7070\"", "an address and a port"),
            ("server", "listen = \"localhost:7070\"", "\"localhost:7070\"", "an address and a port"),
            ("server", "listen = \"off\"", "\"off\"", "an address and a port"),
            ("server", "listen = 7070", "7070", "an address and a port"),
            ("server", "control = false", "false", "or \"off\""),
            ("server", "control = \"127.0.0.1:70710\"", "\"127.0.0.1:70710\"", "or \"off\""),
            ("server", "shards = 129", "129", "a whole number from 0 to 128"),
            ("server", "shards = -1", "-1", "a whole number from 0 to 128"),
            ("server", "shards = 2.5", "2.5", "a whole number from 0 to 128"),
            ("server", "shards = \"4\"", "\"4\"", "a whole number from 0 to 128"),
            ("server", "pin = 1", "1", "true or false"),
            ("server", "echo = \"true\"", "\"true\"", "true or false"),
            ("server", "io = \"select\"", "\"select\"", "\"auto\" or \"epoll\""),
            ("server", "linger_ms = 1001", "1001", "a time from 0 to 1000 ms"),
            ("server", "linger_ms = \"2s\"", "\"2s\"", "a time from 0 to 1000 ms"),
            ("limits", "connections_max = 16000001", "16000001", "a whole number from 0 to 16000000"),
            ("limits", "refuse_with = \"Close\"", "\"Close\"", "\"status\" or \"close\""),
            ("limits", "trusted_proxies = \"10.0.0.0/8\"", "\"10.0.0.0/8\"", "a list of networks"),
            ("limits", "trusted_proxies = [\"10.0.0.0/33\"]", "\"10.0.0.0/33\"", "a list of networks"),
            ("limits", "trusted_proxies = [10]", "10", "a list of networks"),
            ("limits", "handshake_timeout_ms = 99", "99", "a time from 100 to 600000 ms"),
            ("limits", "handshake_timeout_ms = \"10 sec\"", "\"10 sec\"", "a time from 100 to 600000 ms"),
            ("limits", "head_bytes_max = \"511B\"", "\"511B\"", "a size from 512 bytes to 64 KiB"),
            ("limits", "message_bytes_max = \"1.5MiB\"", "\"1.5MiB\"", "a size from 125 bytes to 256 MiB"),
            ("limits", "message_bytes_max = \"MiB\"", "\"MiB\"", "a size from 125 bytes to 256 MiB"),
            (
                "limits",
                "message_bytes_max = \"99999999999999GiB\"",
                "\"99999999999999GiB\"",
                "a size from 125",
            ),
            ("limits", "message_bytes_max = 2001-02-03", "2001-02-03", "a size from 125 bytes to 256 MiB"),
            ("limits", "message_bytes_max = {}", "a table", "a size from 125 bytes to 256 MiB"),
            ("limits", "room_name_bytes_max = 0", "0", "a size from 1 byte to 1 KiB"),
            ("limits", "origins = [\"example.com\"]", "\"example.com\"", "\"scheme://host[:port]\""),
            (
                "limits",
                "origins = [\"https://a.example/\"]",
                "\"https://a.example/\"",
                "\"scheme://host[:port]\"",
            ),
            ("limits", "origins = [\"https://*\"]", "\"https://*\"", "\"scheme://host[:port]\""),
            (
                "limits",
                "origins = [\"https://a.*.example\"]",
                "\"https://a.*.example\"",
                "\"scheme://*.host[:port]\"",
            ),
            ("limits", "origins = [\"https://a:99999\"]", "\"https://a:99999\"", "\"scheme://host[:port]\""),
            ("heartbeat", "ping_interval_ms = 49", "49", "a time from 50 to 3600000 ms"),
            ("outbox", "bytes_max = \"2GiB\"", "\"2GiB\"", "a size from 1149 bytes to 1 GiB"),
            ("outbox", "policy = \"block\"", "\"block\"", "\"disconnect\" or \"drop\""),
            ("drain", "timeout_ms = 600001", "600001", "a time from 0 to 600000 ms"),
            (
                "log",
                "level = \"verbose\"",
                "\"verbose\"",
                "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
            ),
            ("log", "format = []", "[]", "\"text\" or \"json\""),
        ] {
            let name = line.split_once(' ').expect("a name comes first").0;
            let problems = wrong(&format!("# A comment.\n[{section}]\n\n{line}\n"), &[], "");
            let text = shown(&problems);
            let start = format!("throng.toml:4: {section}.{name}: {given} is wrong, it takes ");
            assert!(problems.len() == 1 && text.starts_with(&start), "{line}\n{text}");
            assert!(text[start.len()..].contains(allowed), "{line}\n{text}");
        }
    }

    #[test]
    fn a_wrong_element_has_its_own_line() {
        let problems = wrong("[limits]\norigins = [\n  \"null\",\n  \"one\",\n  2,\n]\n", &[], "");
        let takes =
            "is wrong, it takes a list of \"scheme://host[:port]\", \"scheme://*.host[:port]\" or \"null\"";
        assert_eq!(
            shown(&problems),
            format!(
                "throng.toml:4: limits.origins: \"one\" {takes}\nthrong.toml:5: limits.origins: 2 {takes}\n"
            )
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once_in_the_order_of_the_sources() {
        let file = "[outbox]\npolicy = 1\n[log]\nlevl = \"info\"\n[drain]\nspread_ms = 20000\n";
        let pairs = [("THRONG_SHARDS", "many"), ("THRONG_SHARD", "2"), ("THRONG_LISTEN", "")];
        let problems = wrong(file, &pairs, "--linger-ms soon --set limits=1 --set echo");
        assert_eq!(
            shown(&problems),
            "throng.toml:2: outbox.policy: 1 is wrong, it takes \"disconnect\" or \"drop\"\n\
             throng.toml:4: log.levl: there is no such setting; did you mean log.level?\n\
             throng.toml:6: drain.spread_ms = 20000 (throng.toml:6) must be at most drain.timeout_ms, \
             and drain.timeout_ms = 10000 (default)\n\
             THRONG_SHARD: there is no such setting; did you mean THRONG_SHARDS?\n\
             THRONG_SHARDS: server.shards: \"many\" is wrong, it takes a whole number from 0 to 128\n\
             --linger-ms: server.linger_ms: \"soon\" is wrong, it takes a time from 0 to 1000 ms, \
             as a number or like \"25s\"\n\
             --set: limits: there is no such setting; did you mean [limits]?\n\
             --set: \"echo\" is wrong, it takes KEY=VALUE\n"
        );
    }

    #[test]
    fn a_wrong_statement_is_a_problem_even_when_it_is_overridden() {
        let problems = wrong("[server]\nshards = 1000\n", &[], "--shards 2");
        check_problem(
            &problems,
            "throng.toml:2: server.shards: 1000 is wrong, it takes a whole number from 0 to 128",
        );
    }

    #[test]
    fn settings_that_do_not_agree_name_each_other() {
        for (file, line) in [
            (
                "[limits]\nmessage_bytes_max = \"8MiB\"\n",
                "throng.toml:2: outbox.bytes_max = \"4MiB\" (default) must be at least limits.message_bytes_max + 1024, \
                 and limits.message_bytes_max = \"8MiB\" (throng.toml:2)",
            ),
            (
                "[outbox]\nbytes_max = 1049599\n",
                "throng.toml:2: outbox.bytes_max = 1049599 (throng.toml:2) must be at least \
                 limits.message_bytes_max + 1024, and limits.message_bytes_max = \"1MiB\" (default)",
            ),
            (
                "[limits]\nreceive_bytes_max = \"1000KiB\"\n",
                "throng.toml:2: limits.receive_bytes_max = \"1000KiB\" (throng.toml:2) must be at least \
                 limits.message_bytes_max, and limits.message_bytes_max = \"1MiB\" (default)",
            ),
            (
                "[limits]\nmessages_burst_max = 5\n",
                "throng.toml:2: limits.messages_burst_max = 5 (throng.toml:2) must be 0 unless \
                 limits.messages_per_second_max is set, and limits.messages_per_second_max = 0 (default)",
            ),
            (
                "[drain]\ntimeout_ms = 999\n",
                "throng.toml:2: drain.spread_ms = 1000 (default) must be at most drain.timeout_ms, \
                 and drain.timeout_ms = 999 (throng.toml:2)",
            ),
            (
                "[server]\nlisten = \"0.0.0.0:7071\"\n",
                "throng.toml:2: server.control = \"127.0.0.1:7071\" (default) must not take the port of server.listen, \
                 and server.listen = \"0.0.0.0:7071\" (throng.toml:2)",
            ),
        ] {
            check_problem(&wrong(file, &[], ""), line);
        }
        right("[outbox]\nbytes_max = 1049600\n", &[], "");
        right("[server]\nlisten = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n", &[], "");
        let problems = wrong("[drain]\nspread_ms = \"long\"\ntimeout_ms = 0\n", &[], "");
        assert_eq!(problems.len(), 1, "a wrong value breaks no rule besides: {}", shown(&problems));
    }

    #[test]
    fn the_burst_is_the_rate_unless_it_is_said() {
        let limits = |file| right(file, &[], "").limits;
        assert_eq!(limits("[limits]\nmessages_per_second_max = 7\n").messages_burst_max, 7);
        assert_eq!(
            limits("[limits]\nmessages_per_second_max = 7\nmessages_burst_max = 3\n").messages_burst_max,
            3
        );
    }

    #[test]
    fn an_unknown_key_is_met_with_the_nearest_known_one() {
        for (file, key, meant) in [
            (
                "[limits]\nmesage_bytes_max = 1\n",
                "throng.toml:2: limits.mesage_bytes_max",
                Some("limits.message_bytes_max"),
            ),
            ("\n[limit]\nrooms_max = 1\n", "throng.toml:2: limit", Some("[limits]")),
            ("listen = \"0.0.0.0:1\"\n", "throng.toml:1: listen", Some("server.listen")),
            (
                "[limits]\nmax_connections = 1\n",
                "throng.toml:2: limits.max_connections",
                Some("limits.connections_max"),
            ),
            (
                "[limits]\nping_timeout_ms = 1\n",
                "throng.toml:2: limits.ping_timeout_ms",
                Some("heartbeat.ping_timeout_ms"),
            ),
            (
                "heartbeat.timeout_ms = 1\n",
                "throng.toml:1: heartbeat.timeout_ms",
                Some("heartbeat.ping_timeout_ms"),
            ),
            ("log = { levle = \"info\" }\n", "throng.toml:1: log.levle", Some("log.level")),
            ("[server.extra]\n", "throng.toml:1: server.extra", None),
            ("\"a\\nb\" = 1\n", "throng.toml:1: a\\nb", None),
            ("[tls]\ncertificate = \"x\"\n", "throng.toml:1: tls", None),
        ] {
            let hint = meant.map_or(String::new(), |meant| format!("; did you mean {meant}?"));
            check_problem(&wrong(file, &[], ""), &format!("{key}: there is no such setting{hint}"));
        }
        check_problem(
            &wrong("", &[("THRONG_MAX_CONNECTIONS", "1")], ""),
            "THRONG_MAX_CONNECTIONS: there is no such setting; did you mean THRONG_LIMITS_CONNECTIONS_MAX?",
        );
        check_problem(
            &wrong("server = 1\n", &[], ""),
            "throng.toml:1: server: 1 is wrong, it takes a section, [server]",
        );
        check_problem(
            &wrong("[[server]]\n", &[], ""),
            "throng.toml:1: server: [a table] is wrong, it takes a section, [server]",
        );
    }

    #[test]
    fn a_syntax_error_has_line_and_column() {
        let problems = wrong("[server]\nshards = 1\nlisten = \"0.0.0.0:1\n", &[("THRONG_ECHO", "1")], "");
        assert_eq!(problems.len(), 2, "the other sources are checked too: {}", shown(&problems));
        assert!(
            shown(&problems).starts_with("throng.toml:3:20: not TOML: invalid basic string"),
            "{}",
            shown(&problems)
        );
        let problems = wrong("[server]\nshards = 1\nshards = 2\n", &[], "");
        check_problem(&problems, "throng.toml:3:1: not TOML: duplicate key");
    }

    #[test]
    fn a_file_may_have_windows_line_ends_and_a_byte_order_mark() {
        assert_eq!(right("\u{feff}[server]\r\nshards = 3\r\n", &[], "").server.shards, 3);
        let problems = wrong("\u{feff}[server]\r\nshards = 300\r\n", &[], "");
        assert!(shown(&problems).starts_with("throng.toml:2: server.shards: 300 "), "{}", shown(&problems));
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let others = [
            ("THRONG", "1"),
            ("PATH", "/bin"),
            ("THRONG_CONFIG", "read by load, not here"),
            ("THRONG_SERVICE_HOST", "10.0.0.1"),
            ("THRONG_SERVICE_PORT", "7070"),
            ("THRONG_SERVICE_PORT_WS", "7070"),
            ("THRONG_PORT", "tcp://10.0.0.1:7070"),
            ("THRONG_PORT_7070_TCP", "tcp://10.0.0.1:7070"),
            ("THRONG_EU_PORT_7070_TCP_ADDR", "10.0.0.1"),
        ];
        assert!(right("", &others, "").changed.is_empty());
        check_problem(&wrong("", &[("THRONG_PORT", "8080")], ""), "THRONG_PORT: there is no such setting");
    }

    fn os(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    #[test]
    fn the_file_is_named_by_the_flag_or_the_variable() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/throng.toml");
        let load = |line: &str, pairs: &[(&str, &str)]| Config::load(&args(line), os(pairs));
        let missing = "/nonexistent/throng.toml";
        assert!(load("", &[("THRONG_CONFIG", "")]).is_ok());
        assert!(load("", &[("THRONG_CONFIG", example)]).is_ok());
        assert!(
            load(&format!("--config {example}"), &[("THRONG_CONFIG", missing)]).is_ok(),
            "the flag is stronger"
        );
        let problems = load("--shards no", &[("THRONG_CONFIG", missing)]).expect_err("there is no such file");
        assert_eq!(
            shown(&problems),
            "THRONG_CONFIG: /nonexistent/throng.toml: No such file or directory (os error 2)\n\
             --shards: server.shards: \"no\" is wrong, it takes a whole number from 0 to 128\n"
        );
        let problems = load("--config /dev/zero", &[]).expect_err("it never ends");
        check_problem(&problems, "--config: /dev/zero: longer than 1048576 bytes");
    }

    #[test]
    fn an_explanation_names_what_was_set_and_where() {
        let file =
            "[limits]\nconnections_max = 50_000\nmessages_per_second_max = 20\nrefuse_with = \"status\"\n";
        let config =
            right(file, &[("THRONG_CONTROL", "0.0.0.0:9000")], "--set limits.trusted_proxies=0.0.0.0/0");
        let text = config.explain();
        for line in [
            "  server.control = \"0.0.0.0:9000\"         THRONG_CONTROL\n",
            "  limits.connections_max = 50000          throng.toml:2\n",
            "  limits.trusted_proxies = [\"0.0.0.0/0\"]  --set\n",
            "  At most 50000 connections; ",
            "  A connection may send 20 messages a second, and 20 at once.\n",
            "  Limits that are off: connections_per_ip_max, accepts_per_second_max, origins.\n",
            "  For a slow connection 4 MiB may wait, for all of them 1 GiB; then it is disconnected.\n",
            "CAUTION, whoever reaches that port controls the server.\n",
            "  CAUTION: every client is a trusted proxy and can claim any address.\n",
        ] {
            assert!(text.contains(line), "{line}is not in\n{text}");
        }
        assert!(
            !text.contains("refuse_with"),
            "what is said as it is by default is not away from it\n{text}"
        );
        assert!(text.lines().count() <= 40);
    }

    #[test]
    fn the_example_says_every_default_once() {
        let text = include_str!("../examples/throng.toml");
        let said = Said::gather(&Args::default(), Some(("throng.toml", text)), &[]);
        let mut keys: Vec<(Source, &str)> =
            said.statements.iter().map(|said| (said.source.clone(), SETTINGS[said.setting].key)).collect();
        keys.sort();
        assert!(keys.iter().map(|(_, key)| *key).eq(SETTINGS.iter().map(|setting| setting.key)), "{keys:?}");
        let config = said.meaning().unwrap_or_else(|problems| panic!("{}", shown(&problems)));
        assert!(config.changed.is_empty(), "{:?}", config.changed);
    }

    /// The text of the first fenced block behind `heading`.
    fn block<'a>(text: &'a str, heading: &str) -> &'a str {
        let (_, rest) = text.split_once(heading).expect("the heading is there");
        let (_, rest) = rest.split_once("```").expect("a block follows");
        let (_, rest) = rest.split_once('\n').expect("its first line ends");
        rest.split_once("```").expect("the block ends").0
    }

    #[test]
    fn the_documentation_shows_what_is_true() {
        let text = include_str!("../docs/configuration.md");
        let example = block(text, "\n## An example\n");
        assert_eq!(right(example, &[], "").explain(), block(text, "\n## What a file means\n"));
        let problems = wrong(block(text, "\n## When something is wrong\n"), &[("THRONG_SHARD", "4")], "");
        assert_eq!(shown(&problems), block(text, "\nis answered with\n"));
    }

    #[test]
    fn the_documentation_lists_the_table() {
        let text = include_str!("../docs/configuration.md");
        let row = |setting: &Setting| {
            let Setting { key, kind, .. } = setting;
            format!("| `{key}` | `{}` | {} | {} |", setting.default_value(), kind.allowed(), setting.help())
        };
        let listed: Vec<&str> =
            text.lines().filter(|line| line.starts_with("| `") && line.contains('.')).collect();
        let rows: Vec<String> = SETTINGS.iter().map(row).collect();
        assert!(listed == rows, "docs/configuration.md should list\n\n{}\n", rows.join("\n"));
    }
}
