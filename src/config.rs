//! Configuration in two stages: what was said ([`Said`]) and what it means ([`Config`]).
//!
//! Every setting is declared once, in the table below: its name, type, default, range and meaning. From the table follow the
//! fields of [`Config`], the keys of the file, the names of environment variables, the checks, the words of their errors and the
//! list in `docs/configuration.md`. Whatever is wrong is reported at once, each [`Problem`] with its place.

use ipnet::IpNet;
use std::collections::BTreeMap;
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
        /// Address and port of the control API, metrics and dashboard, or `off`.
        control: Option<SocketAddr> = "127.0.0.1:7071", Kind::AddressOrOff;
        /// Threads that hold connections; 0 is one for each CPU this process may use.
        shards: u32 = "0", Kind::Number { min: 0, max: 128 };
        /// Keep each shard on a CPU of its own.
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
        /// Open connections in all; 0 is as many as the descriptor limit allows.
        connections_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 };
        /// Open connections of one address, for IPv6 of one /64; 0 is no limit.
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
        /// Memory for unfinished messages in all; a message that finds none closes with 1013.
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
        /// What happens to a connection whose outbox is full: `disconnect` closes it with 4001; `drop` leaves messages out
        /// and tells it how many.
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
        /// It is closed with 4001.
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
    /// Where the control API, metrics and dashboard are, or off
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
    /// Everything that is wrong, in the order of the sources; for a file that cannot be read, only that.
    pub fn load(
        args: &Args,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Vec<Problem>> {
        let env: BTreeMap<OsString, OsString> = env.into_iter().collect();
        let from_env = || env.get(std::ffi::OsStr::new(ENV_FILE)).filter(|path| !path.is_empty());
        let path = match &args.config {
            Some(path) => Some((path.clone(), Source::flag("--config"))),
            None => from_env().map(|path| (PathBuf::from(path), Source::environment(ENV_FILE))),
        };
        let file = match path {
            Some((path, source)) => {
                let unreadable = |error: std::io::Error| {
                    let path = path.display().to_string();
                    vec![Problem { key: path, source, fault: Fault::Unreadable { error: error.to_string() } }]
                };
                Some((path.display().to_string(), read_file(&path).map_err(unreadable)?))
            }
            None => None,
        };
        // No setting's value can hold what is lost here, so the check finds it. A name that is not UTF-8 is not one of ours.
        let env: Vec<(String, String)> = env
            .into_iter()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        let file = file.as_ref().map(|(path, text)| (path.as_str(), text.as_str()));
        Said::gather(args, file, &env).meaning()
    }

    /// What this configuration means, for people: what was set and where, then in words what follows from it.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        if self.changed.is_empty() {
            text.push_str("Every setting is at its default.\n");
        } else {
            text.push_str("Set away from the default:\n");
            let width = self.changed.iter().map(|changed| changed.shown.len()).max().unwrap_or(0).min(60);
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
            None => "There is no control API, no metrics and no dashboard.".to_owned(),
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
        let pinned = if server.pin { "kept on a CPU of its own" } else { "on whatever CPU the kernel picks" };
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
            lines.push(format!("{} may say whom they forward.", list(&limits.trusted_proxies)));
        }
        if limits.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
            lines.push("CAUTION: every client is a trusted proxy and can claim any address.".to_owned());
        }
        if !limits.origins.is_empty() {
            lines.push(format!(
                "Pages of {} may connect, and clients that are no browser.",
                list(&limits.origins)
            ));
        }
        lines.push(format!(
            "A message has at most {}; unfinished ones take at most {} in all.",
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
            lines.push(format!("These limits are off: {}.", off.join(", ")));
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
        let each = u64::from(outbox.bytes_max);
        lines.push(format!("For a slow connection {} may wait, {then}.", size(each)));
        // 16,000,000 connections of 1 GiB are 2^54 bytes.
        lines.push(match limits.connections_max {
            0 => format!("Outboxes may take {} for every 1000 connections that are slow.", size(1000 * each)),
            max => format!("If all are slow at once, outboxes take {}.", size(u64::from(max) * each)),
        });
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
    /// True exactly when the file's syntax is wrong. Then it said nothing, and rules between settings would mislead.
    file_broken: bool,
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
                        fault: Fault::Value { given, allowed: kind.allowed() },
                    }));
                }
            }
        }
        let mut config = typed(finals.iter().map(|last| last.value.clone()).collect());
        if !self.file_broken {
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
        self.file_broken = !errors.is_empty();
        if self.file_broken {
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
            return self.problems.push(Problem { key: "--set".to_owned(), source, fault });
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
    /// The setting at fault, or what was taken for one; empty for a syntax error, the path for a file that cannot be read.
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
        let nearest = match source {
            Source::Environment { .. } => nearest(&key, SETTINGS.iter().map(Setting::env_name)),
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
                write!(f, "{source}: {key}: {given} is wrong, it takes {allowed}")
            }
            Fault::Unknown { nearest } => {
                // A variable is its own place.
                if !matches!(source, Source::Environment { .. }) {
                    write!(f, "{source}: ")?;
                }
                write!(f, "{key}: there is no such setting")?;
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
            Kind::Bytes { min, max } => {
                format!("a size from {min} to {max} bytes, as a number or like \"64KiB\"")
            }
            Kind::Ms { min, max } => {
                format!("a time from {min} to {max} milliseconds, as a number or like \"25s\"")
            }
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
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes} bytes"),
        1024..MIB => (1024, "KiB"),
        MIB..GIB => (MIB, "MiB"),
        _ => (GIB, "GiB"),
    };
    if bytes.is_multiple_of(unit) {
        return format!("{} {name}", bytes / unit);
    }
    format!("{:.1} {name}", bytes as f64 / unit as f64)
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

/// The key or section that `key` was probably meant to be. A name that only lacks its section, or stands in the wrong one, is found
/// by its last part.
fn nearest_key(key: &str) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let same_name = SETTINGS.iter().find(|setting| last(setting.key) == last(key));
    if let Some(setting) = same_name {
        return Some(setting.key.to_owned());
    }
    let names =
        SETTINGS.iter().flat_map(|setting| [setting.key.to_owned(), format!("[{}]", setting.section())]);
    let full = nearest(key, names);
    full.or_else(|| {
        let name = nearest(&last(key), SETTINGS.iter().map(|setting| last(setting.key)))?;
        SETTINGS.iter().find(|setting| last(setting.key) == name).map(|setting| setting.key.to_owned())
    })
}

/// The one of `names` with the fewest edits to `text`, if it takes no more than a third of its length.
fn nearest(text: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let bare = |name: &str| edits(text, name.trim_matches(['[', ']']));
    let (count, name) = names.map(|name| (bare(&name), name)).min_by_key(|(count, _)| *count)?;
    (count <= (text.len() / 3).max(1)).then_some(name)
}

/// How many insertions, deletions and replacements of a byte make `b` of `a`. Takes at most as many steps as the product of the
/// lengths, of which `a`, that anybody may have written, counts up to 100 bytes.
fn edits(a: &str, b: &str) -> usize {
    let a = &a.as_bytes()[..a.len().min(100)];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte_a) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, byte_b) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(*byte_a != byte_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
