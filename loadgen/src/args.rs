//! The command line: what was said, and checked so far as it can be without a connection.

use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};

use crate::frame::Mask;
use crate::generate;
use crate::protocol::Protocol;
use crate::socketio;
use crate::source::Sources;
use crate::token;

/// Measures a WebSocket server: connections, echo, fan-out, reconnect storms.
#[derive(Debug, Parser)]
#[command(name = "throng-load", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) scenario: Scenario,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// Open connections, join rooms, hold: handshakes, memory
    Idle {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Idle,
    },
    /// Send messages that come back: round trips
    Echo {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Echo,
    },
    /// Publish to a room of many: deliveries
    Fanout {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Fanout,
    },
    /// Drop all connections at once and come back at once
    Storm {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Storm,
    },
    /// AdStack's events, for examples/adstack: clients subscribe to contracts, the backend publishes through the API
    Adstack {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Listen,
    },
    /// Pona's music, for examples/pona: clients listen in namespaces of guilds, in base64; the backend publishes two events for each track
    Pona {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Listen,
    },
    /// Dashboards of Inked Draw, for examples/inked: all are in one room, the service publishes now and then
    Inked {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Listen,
    },
    /// Watch auctions in which bids come: who knows of them when, and at what cost
    Auction {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Auction,
    },
    /// Say something now and then in a channel of some, over Socket.IO: who hears it when
    Chat {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Chat,
    },
    /// Write manual pages or completions of shells, for packages
    #[command(hide = true)]
    Generate(generate::Args),
    /// What the program starts itself as; its orders come on standard input
    #[command(hide = true)]
    Worker,
}

/// Options of every scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// The server
    #[arg(value_name = "URL", default_value = "ws://127.0.0.1:7070")]
    pub(crate) target: Target,
    /// What the connections speak; socketio is Socket.IO over WebSocket, for echo Engine.IO
    #[arg(long, value_enum, default_value_t)]
    pub(crate) proto: Protocol,
    /// Path of the WebSocket, unless the URL has one [default: /ws, for echo /echo; socketio: /socket.io/, for echo /engine.io/]
    #[arg(long, value_parser = path)]
    pub(crate) path: Option<String>,
    /// Show this token with every connection
    #[arg(long, value_name = "TOKEN", value_parser = token_text)]
    pub(crate) token: Option<String>,
    /// Show a token of its own with each connection, by HS256 with this secret. Others can see it in the list of processes: outside of
    /// trials use --token-key
    #[arg(long, value_name = "TEXT", conflicts_with = "token")]
    pub(crate) token_secret: Option<String>,
    /// The same with the secret in a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "token_secret"])]
    pub(crate) token_key: Option<PathBuf>,
    /// Connections; publishers come on top
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) connections: u32,
    /// What a connection shows as its token, before its user's name
    #[arg(skip)]
    pub(crate) token_prefix: Option<String>,
    /// Length of the measured phase
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Print one JSON object on standard output and nothing else
    #[arg(long)]
    pub(crate) json: bool,
    /// Process of the server, to measure its CPU time and memory; several with commas
    #[arg(long, value_delimiter = ',')]
    pub(crate) pid: Vec<u32>,
    /// Cores for the generator, for example 1 or 0,2-3; each worker process is bound to one of them in turn
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<Cpus>,
    /// Worker processes [default: as many as the descriptor limit asks for]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) processes: Option<u32>,
    /// IPv4 source addresses, 2,000 connections from each [default: 127.0.0.0/8 against loopback, else the kernel chooses]
    #[arg(long, value_name = "NETWORK")]
    pub(crate) source: Option<Sources>,
    /// Connections opened per second; 0 is as fast as --connecting lets them
    #[arg(long, value_name = "PER_SECOND", default_value = "0", value_parser = rate)]
    pub(crate) connect_rate: f64,
    /// Handshakes, and later joins, under way at once
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connecting: u32,
    /// Seconds until a handshake or a join counts as failed
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = positive_seconds)]
    pub(crate) timeout: f64,
    /// Mask keys of the frames sent
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mask: Mask,
}

/// What a worker is told of its scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScenarioArgs {
    Idle(Idle),
    Echo(Echo),
    Fanout(Fanout),
    Storm(Storm),
    Listen(Listen),
    Auction(Auction),
    Chat(Chat),
}

/// Which rooms each connection is in.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Rooms {
    /// Rooms in all; connection I joins room I modulo ROOMS
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rooms: u32,
    /// Join this many rooms of its own with each connection instead, named PREFIX<connection>-<number>
    #[arg(long, value_name = "COUNT", conflicts_with = "rooms", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rooms_each: Option<u32>,
    /// Start of the room names; the name of the room if there is one
    #[arg(long, value_name = "PREFIX", default_value = "load", value_parser = room_name)]
    pub(crate) room_prefix: String,
    /// Join nothing
    #[arg(long)]
    pub(crate) no_join: bool,
    /// What joins a room, with `{}` for its name, where it is not what the protocol has for that
    #[arg(skip)]
    pub(crate) by: Option<String>,
}

impl Rooms {
    /// The rooms of connection `index`, counted over all workers.
    pub(crate) fn of(&self, index: u32) -> Vec<String> {
        let prefix = &self.room_prefix;
        match (self.rooms_each, self.rooms) {
            (Some(each), _) => (0..each).map(|number| format!("{prefix}{index}-{number}")).collect(),
            (None, 1) => vec![prefix.clone()],
            (None, rooms) => vec![format!("{prefix}{}", index % rooms)],
        }
    }
}

#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) rooms: Rooms,
    /// Probability per second that a connection leaves its rooms and joins them again
    #[arg(long, value_name = "PROBABILITY", default_value = "0", value_parser = probability)]
    pub(crate) churn: f64,
    /// Read the server's memory so often while holding; 0 is never
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) sample_seconds: f64,
}

#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Echo {
    /// Payload bytes of a message; the first 8 are its number
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=16_777_216))]
    pub(crate) size: u32,
    /// Messages under way on each connection
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: u32,
    /// Send text frames instead of binary ones; with --proto socketio all are text
    #[arg(long)]
    pub(crate) text: bool,
    /// Seconds of load before the measured phase
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) warmup: f64,
}

#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Fanout {
    /// Servers that share their rooms, with commas, instead of the URL: publishers go to the first, the others to each in turn
    #[arg(long, value_name = "URLS", value_delimiter = ',', conflicts_with = "target")]
    #[serde(skip)]
    pub(crate) servers: Vec<Target>,
    /// The room
    #[arg(long, value_name = "NAME", default_value = "load", value_parser = room_name)]
    pub(crate) room: String,
    /// Do not join: the server subscribes its connections by itself
    #[arg(long)]
    pub(crate) no_join: bool,
    /// Connections that publish and are not in the room
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) publishers: u32,
    /// Publications each publisher sends at once; the next when every subscriber has them all
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: u32,
    /// Publications per second of all publishers together, whether or not the last ones have arrived
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "in_flight", value_parser = positive_rate)]
    pub(crate) rate: Option<f64>,
    /// Bytes of a publication's data
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    pub(crate) size: u32,
    /// Seconds of load before the measured phase
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) warmup: f64,
}

#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Storm {
    #[command(flatten)]
    pub(crate) rooms: Rooms,
    /// How often all drop and come back
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) rounds: u32,
    /// How connections end
    #[arg(long, value_enum, default_value_t)]
    pub(crate) drop: Ending,
    /// Wait for the server to end them instead, and come back as clients do; for --seconds at the most
    #[arg(long, conflicts_with_all = ["rounds", "drop"])]
    pub(crate) restart: bool,
}

/// An application that is configured in `examples/`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Application {
    #[default]
    Adstack,
    Pona,
    Inked,
}

impl Application {
    /// Fills in what its example wants of connections.
    pub(crate) fn prepare(self, common: &mut Common) {
        common.proto = if self == Self::Inked { Protocol::Native } else { Protocol::Socketio };
        let shows_none =
            common.token.is_none() && common.token_secret.is_none() && common.token_key.is_none();
        match self {
            Self::Adstack if shows_none => {
                common.token_secret = Some("change me: 32 letters at the least".to_owned());
            }
            Self::Pona if shows_none => common.token_prefix = Some("user:".to_owned()),
            _ => {}
        }
    }
}

/// Clients that listen to what a backend publishes.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Listen {
    #[arg(skip)]
    pub(crate) application: Application,
    /// Control port of the server, at which the backend publishes
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    pub(crate) api: SocketAddr,
    /// Its API key
    #[arg(long, value_name = "KEY", default_value = "change-me-0123456789", value_parser = token_text)]
    pub(crate) key: String,
    /// Contracts, or guilds: connection I listens to number I modulo ROOMS [default: 100, for pona 10; inked has one]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rooms: Option<u32>,
    /// Events, or tracks with two events each, per second, of all rooms together [default: 1000, for pona 20, for inked 1]
    #[arg(long, value_name = "PER_SECOND", value_parser = positive_rate)]
    rate: Option<f64>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(64..=8_192))]
    pub(crate) size: u32,
    /// Seconds of load before the measured phase
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) warmup: f64,
}

impl Listen {
    /// Rooms in all.
    pub(crate) fn rooms(&self) -> u32 {
        match self.application {
            Application::Adstack => self.rooms.unwrap_or(100),
            Application::Pona => self.rooms.unwrap_or(10),
            Application::Inked => 1,
        }
    }

    /// Occasions to publish in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.rate.unwrap_or(match self.application {
            Application::Adstack => 1_000.0,
            Application::Pona => 20.0,
            Application::Inked => 1.0,
        })
    }

    /// Namespaces, where each room has one.
    pub(crate) fn guilds(&self) -> Option<usize> {
        (self.application == Application::Pona).then_some(self.rooms() as usize)
    }
}

#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Auction {
    /// Auctions; watcher I watches auction I modulo AUCTIONS. Connections by which the application publishes, one for each, come on top
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) auctions: u32,
    /// How the numbers of the auctions begin: 1 is for 10 to 19
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) prefix: u32,
    /// Bids per second in each auction
    #[arg(long, value_name = "PER_SECOND", default_value = "100", value_parser = positive_rate)]
    pub(crate) bids: f64,
    /// Bytes of all there is to say of an auction
    #[arg(long, value_name = "BYTES", default_value_t = 700, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub(crate) size: u32,
    /// Seconds of load before the measured phase
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) warmup: f64,
    /// Longest wait at the end for watchers to know of the last bid, as long as they hear of any
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub(crate) wait: f64,
}

#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Chat {
    /// Connections in all, as the workers are told.
    #[arg(skip)]
    pub(crate) all: u32,
    /// Members of a channel; there are as many channels as it takes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub(crate) members: u32,
    /// Messages per minute of each connection
    #[arg(long, value_name = "PER_MINUTE", default_value = "6", value_parser = positive_rate)]
    pub(crate) rate: f64,
    /// Bytes of a message as it is sent
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) size: u32,
    /// Seconds of load before the measured phase
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) warmup: f64,
}

/// How a client ends its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The socket is closed, as when a program ends.
    #[default]
    Fin,
    /// The socket is reset.
    Reset,
    /// The WebSocket closing handshake, then the socket.
    Close,
}

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Host and port as they were written.
    pub(crate) host: String,
    /// The path with its query, where the URL has more than `/`.
    pub(crate) path: Option<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or("the URL must begin with ws:// (there is no TLS here)")?;
        let (host, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let resolved = if has_port { host.to_socket_addrs() } else { format!("{host}:80").to_socket_addrs() };
        let mut addresses = resolved.map_err(|error| format!("{host}: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{host} has no address"))?;
        let path = if rest.len() > 1 { Some(path(rest)?) } else { None };
        Ok(Self { address, host: host.to_owned(), path })
    }
}

/// Core numbers, for example `0,2-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) Vec<usize>);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < 4_096 => cpus.extend(first..=last),
                _ => return Err(format!("{part:?} is neither a core's number nor a range of them")),
            }
        }
        Ok(Self(cpus))
    }
}

impl Common {
    /// The path to connect to, with its query.
    pub(crate) fn path(&self, scenario: &ScenarioArgs) -> String {
        let default = match (self.proto, scenario) {
            (Protocol::Native, ScenarioArgs::Echo(_)) => "/echo",
            (Protocol::Native | Protocol::Plain, _) => "/ws",
            (Protocol::Socketio, ScenarioArgs::Echo(_)) => "/engine.io/",
            (Protocol::Socketio, _) => "/socket.io/",
        };
        let path = self.path.as_deref().or(self.target.path.as_deref()).unwrap_or(default);
        if self.proto != Protocol::Socketio || path.contains("EIO=") {
            return path.to_owned();
        }
        let joint = if path.contains('?') { '&' } else { '?' };
        format!("{path}{joint}{}", socketio::QUERY)
    }

    /// Where the connections have tokens from, if they show any.
    pub(crate) fn tokens(&self) -> Result<Option<token::Source>, String> {
        if let Some(path) = &self.token_key {
            let secret = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            // Editors put a line break at the end; the server leaves it out as well.
            let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
            let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
            return Ok(Some(token::Source::Secret(secret.to_vec())));
        }
        if let Some(prefix) = &self.token_prefix {
            return Ok(Some(token::Source::Prefix(prefix.clone())));
        }
        let secret = self.token_secret.as_ref().map(|secret| token::Source::Secret(secret.clone().into()));
        Ok(secret.or_else(|| self.token.clone().map(token::Source::Token)))
    }

    /// The source addresses, if the kernel is not to choose.
    pub(crate) fn sources(&self) -> Result<Option<Sources>, String> {
        match (self.source, self.target.address.ip()) {
            (Some(_), IpAddr::V6(_)) => Err("--source is for IPv4, but the target is IPv6".to_owned()),
            (Some(sources), IpAddr::V4(_)) => Ok(Some(sources)),
            (None, target) => Ok(Sources::for_target(target)),
        }
    }
}

fn path(text: &str) -> Result<String, String> {
    let plain = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { Ok(text.to_owned()) } else { Err("a path begins with / and has no blanks in it".to_owned()) }
}

fn token_text(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { Ok(text.to_owned()) } else { Err("a token has no blanks in it".to_owned()) }
}

fn room_name(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.len() <= 200 && !text.chars().any(char::is_control);
    if plain {
        Ok(text.to_owned())
    } else {
        Err("a room's name has 1 to 200 bytes and no control character".to_owned())
    }
}

/// A number in this range, or what it should be.
fn ranged(text: &str, range: std::ops::RangeInclusive<f64>, what: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("not {what} from {} to {}", range.start(), range.end())),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    ranged(text, 0.0..=86_400.0, "a number of seconds")
}

fn positive_seconds(text: &str) -> Result<f64, String> {
    ranged(text, 0.001..=86_400.0, "a number of seconds")
}

fn rate(text: &str) -> Result<f64, String> {
    ranged(text, 0.0..=1e9, "a rate per second")
}

fn positive_rate(text: &str) -> Result<f64, String> {
    ranged(text, 0.001..=1e9, "a rate per second")
}

fn probability(text: &str) -> Result<f64, String> {
    ranged(text, 0.0..=1.0, "a probability")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        fn check(url: &str, address: &str, host: &str, path: Option<&str>) {
            let target: Target = url.parse().unwrap();
            assert_eq!(target.address, address.parse().unwrap(), "{url}");
            assert_eq!((target.host.as_str(), target.path.as_deref()), (host, path), "{url}");
        }
        check("ws://127.0.0.1:7070", "127.0.0.1:7070", "127.0.0.1:7070", None);
        check("ws://127.0.0.1/", "127.0.0.1:80", "127.0.0.1", None);
        check("ws://127.0.0.1:1/a?b=c", "127.0.0.1:1", "127.0.0.1:1", Some("/a?b=c"));
        check("ws://[::1]:9/ws", "[::1]:9", "[::1]:9", Some("/ws"));
        check("ws://[::1]", "[::1]:80", "[::1]", None);
        for url in ["wss://127.0.0.1", "http://127.0.0.1", "ws://", "ws://127.0.0.1:x", "ws://127.0.0.1/a b"]
        {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }

    #[test]
    fn a_path_is_asked_for_as_the_protocol_wants_it() {
        fn check(arguments: &str, path: &str) {
            let cli = Cli::try_parse_from(["throng-load"].into_iter().chain(arguments.split(' '))).unwrap();
            let (common, scenario) = match cli.scenario {
                Scenario::Idle { common, args } => (common, ScenarioArgs::Idle(args)),
                Scenario::Echo { common, args } => (common, ScenarioArgs::Echo(args)),
                other => panic!("{other:?}"),
            };
            assert_eq!(common.path(&scenario), path, "{arguments}");
        }
        check("idle", "/ws");
        check("echo", "/echo");
        check("echo ws://127.0.0.1:1/a --path /b", "/b");
        check("idle --proto socketio", "/socket.io/?EIO=4&transport=websocket");
        check("echo --proto socketio", "/engine.io/?EIO=4&transport=websocket");
        check("idle --proto socketio ws://127.0.0.1:1/x?token=y", "/x?token=y&EIO=4&transport=websocket");
        check("idle --proto socketio --path /x?EIO=3", "/x?EIO=3");
    }

    #[test]
    fn cores_are_numbers_and_ranges() {
        assert_eq!("0,2-4".parse(), Ok(Cpus(vec![0, 2, 3, 4])));
        for text in ["", "1,", "3-1", "x", "0-99999"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn rooms_are_shared_or_each_its_own() {
        let mut rooms =
            Rooms { rooms: 1, rooms_each: None, room_prefix: "r".to_owned(), no_join: false, by: None };
        assert_eq!(rooms.of(7), ["r"]);
        rooms.rooms = 5;
        assert_eq!(rooms.of(7), ["r2"]);
        rooms.rooms_each = Some(2);
        assert_eq!(rooms.of(7), ["r7-0", "r7-1"]);
    }

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
