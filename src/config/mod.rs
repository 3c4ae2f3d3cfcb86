//! Configuration in two stages: what was said ([`Said`]) and what it means ([`Config`]).
//!
//! Every setting is declared once, in the table below: its name, type, default, range and meaning. From the table follow the
//! fields of [`Config`], the keys of the file, the names of environment variables, the checks, the words of their errors and the
//! list in `docs/configuration.md`. Only lists of tables, like `[[namespaces]]` and `[[routes]]`, stand apart. Whatever is wrong is
//! reported at once, each [`Problem`] with its place.

mod value;
mod tables;
mod trial;
mod api_keys;
mod auth_keys;
mod namespaces;
mod permissions;
mod routes;
mod redis_channels;
mod rooms;
mod event_limits;
mod webhook_events;
mod explain;
mod ambiguous;
mod cautions;
mod merge;

pub use api_keys::{ApiKey, KeySecret};
pub use merge::{Change, Merged, Reloaded};
pub use trial::Trial;
pub use value::Kind;

use crate::permissions::{Permission, Permissions};
use crate::policy::{self, Policies, Policy};
use crate::routes::arrival::Arrival;
use crate::routes::channel::{Channel, own_prefixes};
use crate::routes::{Route, Routes};
use crate::rules::{Allowance, Concerns, EventChoice, EventLimit, EventLimits, Namespaces, Over};
use crate::token::keys::KeySource;
use ipnet::IpNet;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tables::{Reading, Tables};
use toml::de::{DeTable, DeValue};
use value::{FromValue, Given, Value, Wrong, mismatch};

/// The prefix of environment variables that are settings.
const ENV_PREFIX: &str = "THRONG_";
/// Names the configuration file where `--config` does not.
const ENV_FILE: &str = "THRONG_CONFIG";
/// Variables that deployments have already, with the settings that they say. Weaker than the settings' own variables.
const ENV_COMMON: [(&str, &str); 2] =
    [("MAX_CONNECTIONS", "limits.connections_max"), ("REDIS_URL", "redis.urls")];
/// A configuration file may be this long. Ours is 6 KiB; the bound is for a path that leads somewhere else, like `/dev/zero`.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// An outbox has to have this much more room than the largest message: its frame's header and what is told beside it.
const OUTBOX_MARGIN_BYTES: u32 = 1024;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident, $reloaded:ident {
            $($(#[doc = $help:literal])+ $field:ident: $type:ty = $default:literal, $kind:expr $(, $itself:ident)?;)+
        }
    )+) => {
        /// Every setting, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            key: concat!(stringify!($section), ".", stringify!($field)),
            default: $default,
            kind: $kind,
            reloaded: reloaded!($reloaded $($itself)?),
            help: concat!($($help),+),
        },)+)+];

        /// The sections of a file, in the same order, each with what it is about.
        pub const SECTIONS: &[(&str, &str)] = &[$((stringify!($section), concat!($($about),+)),)+];

        /// What the configuration means: every setting with its final value, checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[doc = $about])+ pub $section: $Section,)+
            /// What events of Socket.IO clients do: the `[[routes]]` of the file, and what is built in.
            pub routes: Routes,
            /// The `[[api.keys]]` of the file.
            pub api_keys: Vec<ApiKey>,
            /// The keys that vouch for tokens: the `[[auth.keys]]` of the file.
            pub keys: Vec<KeySource>,
            /// What clients may do with rooms: the `[[permissions]]` of the file.
            pub permissions: Permissions,
            /// What happens to events on their way to a room's members: the `[[rooms]]` of the file.
            pub rooms: Vec<Policy>,
            /// How often clients may send events: the `[[limits.events]]` of the file.
            pub event_limits: EventLimits,
            /// Which events of clients the backend is told of: the `[[webhooks.events]]` of the file.
            pub webhook_events: Vec<EventChoice>,
            /// What is made of messages that others publish on Redis: the `[[redis.channels]]` of the file.
            pub redis_channels: Vec<Channel>,
            /// What was set away from its default, for [`Config::explain`].
            changed: Vec<Changed>,
            /// For each of [`SETTINGS`], in its order, what was said and where.
            finals: Vec<Final>,
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
                routes: Routes::default(),
                api_keys: Vec::new(),
                keys: Vec::new(),
                permissions: Permissions::default(),
                rooms: Vec::new(),
                event_limits: EventLimits::default(),
                webhook_events: Vec::new(),
                redis_channels: Vec::new(),
                changed: Vec::new(),
                finals: Vec::new(),
            }
        }

        impl Config {
            /// Takes from `new` those settings whose places in [`SETTINGS`] are marked in `taken`.
            fn take_settings(&mut self, new: &Config, taken: &[bool]) {
                let mut taken = taken.iter();
                $($(if taken.next().is_some_and(|taken| *taken) {
                    self.$section.$field = new.$section.$field.clone();
                })+)+
            }
        }
    };
}

/// Whether a setting is reloaded: what its row says, or else its section.
macro_rules! reloaded {
    ($section:ident) => {
        Reloaded::$section
    };
    ($section:ident $row:ident) => {
        Reloaded::$row
    };
}

settings! {
    /// Where the server listens and what runs it.
    server: Server, No {
        /// Address and port that clients connect to. Port 0 takes any free one.
        listen: SocketAddr = "0.0.0.0:7070", Kind::Address;
        /// Address and port of the control port with metrics, or `off`.
        control: Option<SocketAddr> = "127.0.0.1:7071", Kind::AddressOrOff;
        /// What this process is called where others are told of it; empty is the name of the machine and the port, like `box1:7070`, and
        /// where the port is shared the number of the process behind it.
        node: String = "", Kind::NameOrNone;
        /// Share the port of `server.listen` with other processes of the same user that have this setting. Without it, a port that
        /// is taken is an error.
        share_port: bool = "false", Kind::Flag;
        /// Threads that hold connections; 0 is one for each CPU this process may use.
        shards: u32 = "0", Kind::Number { min: 0, max: 128 };
        /// Keep each shard on a CPU of its own, where there are enough.
        pin: bool = "true", Kind::Flag;
        /// Let the shard on the CPU that takes a client's packets have the client (needs `server.pin`, and a network card whose
        /// interrupts are spread over all CPUs: see `docs/tuning.md`).
        steer: bool = "false", Kind::Flag;
        /// What moves the bytes; `auto` takes the best that this kernel has.
        io: Io = "auto", Kind::Word(Io::WORDS);
        /// Open `/echo`, which sends every message back: for conformance tests and benchmarks.
        echo: bool = "false", Kind::Flag;
        /// Events that follow another to the same connection within this time wait for its end and leave together;
        /// 0 sends at once.
        linger_ms: u32 = "0", Kind::Ms { min: 0, max: 1000 };
    }

    /// What one client, and all of them, may take.
    limits: Limits, Yes {
        /// Open connections in all, as far as the descriptor limit allows; 0 is as many as it allows.
        connections_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 };
        /// While more than so many hundredths of the memory are taken that the process may have, by whomever, there may be no more
        /// connections than there are: of the machine's, or of that of a control group around it, `MemoryHigh` and `MemoryMax` of its
        /// unit. Not while more than 1 GiB is left. 100 is no limit.
        memory_percent_max: u32 = "95", Kind::Number { min: 10, max: 100 };
        /// Open connections of one address, for IPv6 of one /64; 0 is no limit. Of sockets that are not upgraded an address may have as
        /// many on top, at least 16.
        connections_per_ip_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 }, WhileOn;
        /// Open connections of one user; 0 is no limit.
        connections_per_user_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 }, WhileOn;
        /// How a connection over a limit is refused: `status` answers the upgrade with 429 or 503; `close` accepts it and
        /// closes with 1008, which a browser's script can see. Sockets beyond those of one address get a status either way.
        refuse_with: RefuseWith = "status", Kind::Word(RefuseWith::WORDS);
        /// Proxies that are believed when they say whose request they pass on.
        trusted_proxies: Vec<IpNet> = "[]", Kind::Networks;
        /// The header in which they say it. The other one is not looked at: they may pass it on as clients wrote it.
        forwarded_header: ForwardedHeader = "x-forwarded-for", Kind::Word(ForwardedHeader::WORDS);
        /// Connections begin with a header of the PROXY protocol, version 1 or 2, that says whose they are. Those that are not from
        /// `limits.trusted_proxies` are closed.
        proxy_protocol: bool = "false", Kind::Flag, No;
        /// New connections that one address, for IPv6 one /64, may ask for within `limits.handshakes_window_ms`, whether it gets them or not;
        /// 0 is no limit.
        handshakes_per_ip_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// That time, from the first of them.
        handshakes_window_ms: u32 = "60000", Kind::Ms { min: 100, max: 86_400_000 };
        /// New connections a second, for each shard; 0 is no limit.
        accepts_per_second_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Time for a request's head to be complete, with the TLS handshake or the PROXY header before it.
        handshake_timeout_ms: u32 = "10000", Kind::Ms { min: 100, max: 600_000 };
        /// Length of a request's head.
        head_bytes_max: u32 = "8KiB", Kind::Bytes { min: 512, max: 65_536 };
        /// Length of a message from a client; a longer one closes with 1009.
        message_bytes_max: u32 = "1MiB", Kind::Bytes { min: 125, max: 256 * MIB };
        /// Frames that one message may come in; more close with 1009.
        frames_per_message_max: u32 = "4096", Kind::Number { min: 1, max: 268_435_456 };
        /// Time for a message to be complete once it has begun, looked at when the heartbeat of its connection is due; a later one
        /// closes with 1008. The same for the body of a request, from its head on; a later one is answered 408.
        message_timeout_ms: u32 = "120000", Kind::Ms { min: 100, max: 86_400_000 };
        /// Messages that one frame may hold as an array.
        messages_per_frame_max: u32 = "1024", Kind::Number { min: 1, max: 65_536 };
        /// Rooms that one connection may be in.
        rooms_per_connection_max: u32 = "1024", Kind::Number { min: 1, max: 1_000_000 };
        /// Rooms in all.
        rooms_max: u32 = "10000000", Kind::Number { min: 1, max: 100_000_000 }, No;
        /// Length of a room's name.
        room_name_bytes_max: u32 = "200", Kind::Bytes { min: 1, max: 1024 };
        /// Rooms whose state is known because their `[[rooms]]` table has `changes`, in equal shares for the shards. When there are more, the
        /// states that changed longest ago are forgotten: the next one is sent whole.
        room_states_max: u32 = "100000", Kind::Number { min: 1, max: 100_000_000 }, No;
        /// Length of one such state. A longer one is sent whole, each time.
        room_state_bytes_max: u32 = "64KiB", Kind::Bytes { min: 2, max: 256 * MIB }, No;
        /// Memory for all of them, likewise in shares, none of them less than one state takes.
        room_states_bytes_max: u64 = "256MiB", Kind::Bytes { min: 2, max: 1024 * GIB }, No;
        /// How long the state of a room is kept that nobody is in, from when it changed last.
        room_state_idle_ms: u32 = "300000", Kind::Ms { min: 1000, max: 86_400_000 }, No;
        /// Values of `dedupe` fields of `[[rooms]]` that are known at a time, some 60 bytes each, in equal shares for the shards. When there are
        /// more, those known longest are forgotten.
        dedupe_ids_max: u32 = "1000000", Kind::Number { min: 1, max: 1_000_000_000 }, No;
        /// Memory for events that wait because of `[[rooms]]`, in equal shares for the shards. Beyond, those leave early that would be next.
        rooms_waiting_bytes_max: u64 = "64MiB", Kind::Bytes { min: 1, max: 1024 * GIB }, No;
        /// Messages a second from one connection, on average; 0 is no limit.
        messages_per_second_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Messages that one connection may send at once after a rest; 0 is as many as `messages_per_second_max`.
        messages_burst_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Bytes of messages a second from one connection, on average; 0 is no limit.
        bytes_per_second_max: u32 = "0", Kind::Bytes { min: 0, max: GIB };
        /// Bytes that one connection may send at once after a rest; 0 is as many as `bytes_per_second_max`. The message with which it has sent
        /// more is still taken.
        bytes_burst_max: u32 = "0", Kind::Bytes { min: 0, max: GIB };
        /// What happens to a message of one connection over `messages_per_second_max` or `bytes_per_second_max`: `error` tells the client when it
        /// may send the next; `drop` does so only if it asked for an answer; `close` closes the connection with 1008.
        over: Over = "error", Kind::Word(&Over::WORDS);
        /// Windows of `[[limits.events]]` that are counted at a time for addresses and users, some 100 bytes each, and as many again for
        /// connections, in equal shares for the shards; and as many of `limits.handshakes_per_ip_max` for addresses. When there are more, those
        /// that end first are forgotten before their end.
        event_windows_max: u32 = "1000000", Kind::Number { min: 1000, max: 100_000_000 }, No;
        /// Memory for unfinished messages in all, in equal shares for the shards, none of them less than twice
        /// `limits.message_bytes_max`. A message that finds none closes with 1013.
        receive_bytes_max: u64 = "256MiB", Kind::Bytes { min: 125, max: 1024 * GIB }, No;
        /// Origins whose pages may connect; empty is any. `https://*.example.com` is every subdomain.
        origins: Vec<String> = "[]", Kind::Origins;
    }

    /// TLS for clients. Without a certificate they speak plain HTTP, and with one nothing else than TLS.
    tls: Tls, No {
        /// File with the certificate chain in PEM, the server's own certificate first; empty is no TLS. SIGHUP reads it again in any case.
        certificate_file: String = "", Kind::FileOrNone, WhileOn;
        /// File with its private key in PEM.
        key_file: String = "", Kind::FileOrNone, WhileOn;
        /// The oldest version of TLS that is spoken.
        version_min: TlsVersion = "1.2", Kind::Word(TlsVersion::WORDS);
    }

    /// Tokens, which say who a client is.
    auth: Auth, Yes {
        /// Refuse clients that bring no token. Without it, who brings none is nobody.
        required: bool = "false", Kind::Flag;
        /// The secret that tokens are signed with, by HS256; empty is none. For other kinds of keys there is `[[auth.keys]]`.
        secret: String = "", Kind::LongSecret { bytes_min: 32 };
        /// A set of public keys (JWKS), in a file or at a URL; empty is none.
        jwks: String = "", Kind::PlaceOrNone;
        /// How often files with keys and the set are read again.
        refresh_ms: u32 = "300000", Kind::Ms { min: 1000, max: 86_400_000 };
        /// How long after one reading the next may follow when it failed, or when a token names a key that is not there.
        retry_ms: u32 = "10000", Kind::Ms { min: 100, max: 3_600_000 };
        /// Issuers of tokens (`iss`) that are taken; empty is any.
        issuers: Vec<String> = "[]", Kind::Texts;
        /// Audiences that tokens (`aud`) may be for; when empty, they must not name any.
        audiences: Vec<String> = "[]", Kind::Texts;
        /// By how much the clock of who issues tokens may differ.
        leeway_ms: u32 = "5000", Kind::Ms { min: 0, max: 600_000 };
        /// Refuse tokens that never expire (`exp`).
        expiry_required: bool = "true", Kind::Flag;
        /// Time after the expiry of its token, and the leeway, in which a client can bring another before it is closed with 4011.
        grace_ms: u32 = "10000", Kind::Ms { min: 0, max: 86_400_000 };
        /// Time for a native client to bring its token as a message, where one is required.
        timeout_ms: u32 = "10000", Kind::Ms { min: 100, max: 600_000 };
        /// The parameter of a request's query that may hold a token; empty is none. Queries are in the logs of proxies.
        query_parameter: String = "token", Kind::NameOrNone;
        /// The claim that holds the user's name.
        user_claim: String = "sub", Kind::Name;
        /// Length of a token. One in a header is bounded by `limits.head_bytes_max` as well.
        token_bytes_max: u32 = "8KiB", Kind::Bytes { min: 128, max: 65_536 };
        /// Ask the backend about clients whose token is none that throng can check: `POST` to `/authenticate` below `backend.url`.
        callout: bool = "false", Kind::Flag, No;
        /// Cookies of requests that the backend is asked about, by their names; `*` is all of them.
        callout_cookies: Vec<String> = "[]", Kind::Texts;
        /// How long what the backend says of a client is known, so that it is not asked again; 0 is not at all.
        callout_cache_ms: u32 = "300000", Kind::Ms { min: 0, max: 86_400_000 }, No;
        /// The same for its refusals.
        callout_refused_ms: u32 = "10000", Kind::Ms { min: 0, max: 86_400_000 }, No;
        /// How much of what the backend says is known at a time; beyond, what was asked for least is forgotten.
        callout_cache_entries_max: u32 = "100000", Kind::Number { min: 1, max: 10_000_000 }, No;
        /// Clients that may wait for the backend at a time. Further ones are told to come back later.
        callout_waiting_max: u32 = "20000", Kind::Number { min: 1, max: 1_000_000 }, No;
    }

    /// How a connection shows that it is alive.
    heartbeat: Heartbeat, Yes {
        /// Silence of a client after which it is sent a ping.
        ping_interval_ms: u32 = "25000", Kind::Ms { min: 50, max: 3_600_000 };
        /// Further silence after which the connection is closed.
        ping_timeout_ms: u32 = "20000", Kind::Ms { min: 50, max: 3_600_000 };
    }

    /// What waits for a connection that reads slowly.
    outbox: Outbox, Yes {
        /// Bytes that may wait for one connection; at least `limits.message_bytes_max` + 1024.
        bytes_max: u32 = "4MiB", Kind::Bytes { min: 1149, max: GIB };
        /// Bytes that may wait for all connections together, each shard having an equal share; at least `outbox.bytes_max`. When it is
        /// used up, every outbox counts as full.
        total_bytes_max: u64 = "1GiB", Kind::Bytes { min: 1149, max: 1024 * GIB };
        /// What happens to a connection whose outbox is full: `disconnect` closes it with 4001; `drop` leaves messages
        /// out and tells it how many.
        policy: OutboxPolicy = "disconnect", Kind::Word(OutboxPolicy::WORDS);
    }

    /// Clients of throng's own protocol.
    native: Native, No {
        /// Where they connect; empty is nowhere.
        path: String = "/ws", Kind::SocketPathOrNone;
    }

    /// Clients of an application that had a WebSocket server of its own: messages are JSON objects, and their `type` is the name of an event.
    plain: Plain, No {
        /// Where they connect; empty is nowhere.
        path: String = "", Kind::SocketPathOrNone;
    }

    /// Clients of Socket.IO.
    socketio: SocketIo, Yes {
        /// Let them in.
        enabled: bool = "true", Kind::Flag, No;
        /// Where they connect.
        path: String = "/socket.io/", Kind::Path, No;
        /// Origins whose pages may read what long-polling answers: those get CORS headers. `*` is any, empty is none.
        cors_origins: Vec<String> = "[]", Kind::CorsOrigins;
        /// Let such pages send cookies and other credentials.
        cors_credentials: bool = "false", Kind::Flag;
        /// Time for a connection to join its first namespace; one that has joined none is closed then.
        connect_timeout_ms: u32 = "45000", Kind::Ms { min: 100, max: 600_000 };
        /// Time for a change from long-polling to WebSocket, from the probe on.
        upgrade_timeout_ms: u32 = "10000", Kind::Ms { min: 100, max: 600_000 };
        /// Namespaces that clients may join, besides those of `[[namespaces]]`. In `/guild/*` the `*` stands for any one segment that is
        /// not empty.
        namespaces: Namespaces = "/", Kind::Namespaces, No;
        /// Namespaces that one connection may be in.
        namespaces_per_connection_max: u32 = "16", Kind::Number { min: 1, max: 1024 };
        /// Namespaces with somebody in them, in all.
        namespaces_max: u32 = "100000", Kind::Number { min: 1, max: 10_000_000 };
        /// Connections that may be in one namespace; 0 is no limit.
        connections_per_namespace_max: u32 = "0", Kind::Number { min: 0, max: 16_000_000 };
        /// Binary attachments of one packet; more end the connection.
        attachments_max: u32 = "10", Kind::Number { min: 0, max: 1024 };
        /// Event that a client is sent once it has joined a namespace, with the payload it came with; empty is none.
        connect_event: String = "", Kind::EventOrNone;
        /// Answers to long-polling that have this length at least are gzipped for clients that accept it; 0 is never.
        compression_bytes_min: u32 = "1KiB", Kind::Bytes { min: 0, max: 256 * MIB };
        /// How long a client that drops out can come back as the same one and get what it has missed; 0 is not at all. Each event
        /// then has one argument more, its offset, as with Node.
        recovery_ms: u32 = "0", Kind::Ms { min: 0, max: 3_600_000 }, No;
        /// Memory for events that somebody may have missed, in equal shares for the shards.
        recovery_bytes_max: u64 = "64MiB", Kind::Bytes { min: 0, max: 1024 * GIB }, No;
        /// Events that one client is sent when it comes back; one that has missed more begins anew.
        recovery_session_bytes_max: u32 = "1MiB", Kind::Bytes { min: 0, max: GIB }, No;
        /// Clients that may be out at a time, counted in each namespace, in equal shares for the shards.
        recovery_sessions_max: u32 = "100000", Kind::Number { min: 0, max: 16_000_000 }, No;
    }

    /// Engine.IO, which carries Socket.IO, by itself.
    engineio: EngineIo, No {
        /// Where every Engine.IO message comes back as it is: for conformance tests and benchmarks; empty is nowhere.
        echo_path: String = "", Kind::PathOrNone;
    }

    /// Redis, which carries events between processes.
    redis: Redis, No {
        /// Where it is: one server, or some Sentinels, or some servers of a cluster. Empty is nowhere: this process is alone.
        urls: Vec<String> = "[]", Kind::RedisUrls;
        /// What is there.
        kind: RedisKind = "server", Kind::Word(RedisKind::WORDS);
        /// The name of the master that Sentinels know.
        master: String = "", Kind::NameOrNone;
        /// The password of the Sentinels themselves; empty is none.
        sentinel_password: String = "", Kind::Secret;
        /// With whom rooms are shared.
        cluster: Cluster = "throng", Kind::Word(Cluster::WORDS);
        /// Length of a message on a channel of `[[redis.channels]]`, as far as an outbox has room for it (`outbox.bytes_max` - 1024). A longer
        /// one is dropped.
        channel_bytes_max: u32 = "1MiB", Kind::Bytes { min: 1, max: 256 * MIB };
        /// What the names of channels begin with; empty is `throng`, or `socket.io` where rooms are shared with Node.
        prefix: String = "", Kind::NameOrNone;
        /// What the connections are called in Redis's `CLIENT LIST`.
        name: String = "throng", Kind::NameOrNone;
        /// Silence after which TCP asks whether Redis is still there.
        keepalive_ms: u32 = "30000", Kind::Ms { min: 1000, max: 3_600_000 };
        /// Time to connect and log in.
        connect_timeout_ms: u32 = "2000", Kind::Ms { min: 50, max: 60_000 };
        /// Time for an answer.
        command_timeout_ms: u32 = "5000", Kind::Ms { min: 50, max: 60_000 };
        /// Longest pause between two attempts to connect; half of it is random.
        backoff_max_ms: u32 = "1000", Kind::Ms { min: 50, max: 60_000 };
        /// Publications that may wait for Redis; those beyond are delivered in this process and lost for others.
        waiting_max: u32 = "100000", Kind::Number { min: 1, max: 10_000_000 };
        /// Bytes of them.
        waiting_bytes_max: u64 = "32MiB", Kind::Bytes { min: 65_536, max: 16 * GIB };
    }

    /// The HTTP API for backends, on the control port.
    api: Api, Yes {
        /// A key that may do everything. Others, for less, are in `[[api.keys]]`. Empty is none; without any key there is no API.
        key: String = "", Kind::KeyOrNone;
        /// Connections of the control port that have shown a key and may stay open between requests.
        kept_connections_max: u32 = "64", Kind::Number { min: 1, max: 4096 }, No;
        /// Requests a second with one key, as many of them at once; 0 is no limit. A list or a stream of publications is one request.
        requests_per_second_max: u32 = "0", Kind::Number { min: 0, max: 1_000_000 };
        /// Length of a request's body, and of a line of a stream. One publication has to fit into an outbox besides: at most `outbox.bytes_max` -
        /// 1024.
        body_bytes_max: u32 = "1MiB", Kind::Bytes { min: 1024, max: 256 * MIB }, No;
        /// Publications that one request may hold in a list.
        batch_max: u32 = "1000", Kind::Number { min: 1, max: 65_536 };
        /// How long the answer to a request with an `Idempotency-Key` is kept.
        idempotency_window_ms: u32 = "300000", Kind::Ms { min: 1000, max: 86_400_000 }, No;
        /// How many such answers are kept; beyond, the oldest are forgotten early.
        idempotency_keys_max: u32 = "10000", Kind::Number { min: 1, max: 1_000_000 }, No;
    }

    /// The backend, which is told and asked over HTTP.
    backend: Backend, No {
        /// Where it is: what is said to it is posted to paths below this. Empty is nowhere.
        url: String = "", Kind::UrlOrNone;
        /// What requests to it are signed with, so that it knows them; empty is no signature.
        secret: String = "", Kind::LongSecret { bytes_min: 16 };
        /// Time for a request and its answer.
        timeout_ms: u32 = "5000", Kind::Ms { min: 50, max: 600_000 };
        /// Requests under way at a time. Further ones wait, within their own time.
        requests_max: u32 = "64", Kind::Number { min: 1, max: 4096 };
        /// The longest answer that is read.
        answer_bytes_max: u32 = "1MiB", Kind::Bytes { min: 1024, max: 256 * MIB };
        /// Failures one after the other from which the backend is left in peace for a while.
        failures_max: u32 = "10", Kind::Number { min: 1, max: 100_000 };
        /// How long that is. Then one request shows whether it is well again.
        rest_ms: u32 = "1000", Kind::Ms { min: 10, max: 600_000 };
        /// Events and joins that may wait for the backend's answer; further ones are refused as `overloaded`.
        waiting_max: u32 = "10000", Kind::Number { min: 1, max: 10_000_000 };
        /// Those of one connection.
        waiting_per_connection_max: u32 = "64", Kind::Number { min: 1, max: 65_536 };
        /// Bytes of all of them. One connection may have a sixteenth of that, and always one message.
        waiting_bytes_max: u64 = "64MiB", Kind::Bytes { min: 65_536, max: 16 * GIB };
        /// What a client of Socket.IO is told when the backend did not answer about its event: `error` acknowledges it with
        /// `{"error":…}`, or sends an event `error` where no ack was wanted; `silence` does neither, so that a client with
        /// `retries` or a timeout of its own tries again.
        failure: BackendFailure = "error", Kind::Word(BackendFailure::WORDS);
        /// How much is kept of what each client says for itself when it connects (its query, and its `auth` of each namespace), for as
        /// long as it is connected, to be told with its events; what is longer is told only as it joins. 0 keeps nothing. Nothing
        /// is kept either where no rule asks the backend.
        handshake_bytes_max: u32 = "4KiB", Kind::Bytes { min: 0, max: MIB };
    }

    /// Notices of connections, rooms and events, for the backend.
    webhooks: Webhooks, No {
        /// What is told: clients that come (`connected`) and go (`disconnected`), rooms that have a first member in this process
        /// (`occupied`) and none any more (`vacated`). Events of clients have `[[webhooks.events]]`.
        kinds: Vec<String> = "[]", Kind::Words(NOTICE_KINDS);
        /// To whom: `backend` posts to `/webhooks` below `backend.url`; `stream` adds to a stream in Redis.
        to: WebhooksTo = "backend", Kind::Word(WebhooksTo::WORDS);
        /// The key of that stream.
        stream: String = "throng:webhooks", Kind::Name;
        /// Entries that the stream keeps, about; 0 is all.
        stream_entries_max: u32 = "1000000", Kind::Number { min: 0, max: 1_000_000_000 };
        /// Notices in one batch.
        batch_max: u32 = "500", Kind::Number { min: 1, max: 10_000 };
        /// Bytes of notices in one batch; a longer one goes by itself.
        batch_bytes_max: u32 = "256KiB", Kind::Bytes { min: 1024, max: 64 * MIB };
        /// How long a notice may wait for others.
        linger_ms: u32 = "50", Kind::Ms { min: 0, max: 10_000 };
        /// Batches under way at a time, each with other connections and rooms.
        batches_under_way_max: u32 = "4", Kind::Number { min: 1, max: 64 };
        /// Longest pause before a batch is sent again; half of it is random.
        backoff_max_ms: u32 = "5000", Kind::Ms { min: 100, max: 600_000 };
        /// How old the first notice of a batch may be when that is sent again. Beyond, the batch is given up.
        age_max_ms: u32 = "600000", Kind::Ms { min: 100, max: 86_400_000 };
        /// Notices that may wait, those under way included. Those beyond are lost.
        waiting_max: u32 = "100000", Kind::Number { min: 1, max: 10_000_000 };
        /// Bytes of them.
        waiting_bytes_max: u64 = "64MiB", Kind::Bytes { min: 65_536, max: 16 * GIB };
    }

    /// Who is in a room, for those who ask.
    presence: Presence, No {
        /// How old an answer may be that is given again; 0 is not at all.
        age_max_ms: u32 = "1000", Kind::Ms { min: 0, max: 600_000 };
        /// Time for other processes to tell. Without those that are not heard in it the answer is not `complete`.
        timeout_ms: u32 = "1000", Kind::Ms { min: 10, max: 60_000 };
        /// Members that an answer lists, where that is asked.
        listed_max: u32 = "1000", Kind::Number { min: 0, max: 10_000 };
    }

    /// How the server shuts down on SIGTERM.
    drain: Drain, Yes {
        /// Time for balancers to notice: `/ready` says 503, and all else goes on, new connections included. Twice the interval of their
        /// checks; 0 where there is none.
        notice_ms: u32 = "0", Kind::Ms { min: 0, max: 600_000 };
        /// Time after that in which the server ends, whether all connections are closed or not.
        timeout_ms: u32 = "10000", Kind::Ms { min: 0, max: 600_000 };
        /// Time over which the closes are spread at least, so that not everybody comes back at once; at most `drain.timeout_ms`.
        spread_ms: u32 = "1000", Kind::Ms { min: 0, max: 600_000 };
        /// Closes a second; they are spread over more time than `drain.spread_ms` where there are more connections, but over no more
        /// than `drain.timeout_ms`. 0 is no such bound.
        closes_per_second_max: u32 = "10000", Kind::Number { min: 0, max: 10_000_000 };
    }

    /// What is logged, on standard error.
    log: Log, Yes {
        /// The least severe level that is logged.
        level: LogLevel = "info", Kind::Word(LogLevel::WORDS);
        /// Lines for people (`text`), for machines (`json`), or entries of the system's journal with fields of their own (`journald`); `auto` is
        /// the journal where standard error leads there, and otherwise text.
        format: LogFormat = "auto", Kind::Word(LogFormat::WORDS), No;
        /// How often a line says how the server is: connections, rooms, messages, memory; 0 is never.
        summary_ms: u32 = "60000", Kind::Ms { min: 0, max: 86_400_000 };
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

impl FromValue for Over {
    fn from_value(value: Value) -> Over {
        let known = [Over::Error, Over::Drop, Over::Close];
        let Value::Word(word) = &value else { mismatch(&value) };
        known.into_iter().find(|over| over.word() == *word).unwrap_or_else(|| mismatch(&value))
    }
}

words! {
    /// What trusted proxies say it in.
    ForwardedHeader {
        /// Most do.
        XForwardedFor = "x-forwarded-for",
        /// RFC 7239.
        Forwarded = "forwarded",
    }

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

    /// A version of TLS.
    TlsVersion {
        /// What clients without 1.3 need.
        V12 = "1.2",
        /// What all others speak.
        V13 = "1.3",
    }

    /// What the URLs of Redis are of.
    RedisKind {
        /// One server.
        Server = "server",
        /// Sentinels, which know the server.
        Sentinel = "sentinel",
        /// Servers of a cluster.
        Cluster = "cluster",
    }

    /// With whom rooms are shared.
    Cluster {
        /// With other throngs.
        Throng = "throng",
        /// With Node's Socket.IO servers too, by their Redis adapter, and with its emitter.
        SocketIo = "socketio",
        /// The same by its sharded adapter.
        SocketIoSharded = "socketio-sharded",
    }

    /// What a client is told when the backend did not answer about its event.
    BackendFailure {
        /// That it did not.
        Error = "error",
        /// Nothing.
        Silence = "silence",
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

    /// Who gets notices.
    WebhooksTo {
        /// The backend.
        Backend = "backend",
        /// A stream in Redis.
        Stream = "stream",
    }

    /// How a log line is written.
    LogFormat {
        /// As the journal wants it, where standard error leads there; otherwise for people.
        Auto = "auto",
        /// An entry of the journal.
        Journald = "journald",
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// The kinds of notices that can be switched on by themselves.
const NOTICE_KINDS: &[&str] = &["connected", "disconnected", "occupied", "vacated"];

/// What a file may have besides settings.
const LISTS: [Tables; 8] = [
    event_limits::TABLES,
    webhook_events::TABLES,
    namespaces::TABLES,
    routes::TABLES,
    api_keys::TABLES,
    auth_keys::TABLES,
    permissions::TABLES,
    rooms::TABLES,
];

/// Two settings that have to agree.
struct Agreement {
    key: &'static str,
    other: &'static str,
    holds: fn(&Config) -> bool,
    /// What `key` has to be, to stand behind "must".
    must: &'static str,
}

const AGREEMENTS: &[Agreement] = &[
    Agreement {
        key: "server.control",
        other: "server.listen",
        holds: |config| config.server.control.is_none_or(|control| !overlap(control, config.server.listen)),
        must: "not take the port of server.listen",
    },
    Agreement {
        key: "limits.proxy_protocol",
        other: "limits.trusted_proxies",
        holds: |config| !config.limits.proxy_protocol || !config.limits.trusted_proxies.is_empty(),
        must: "be false unless limits.trusted_proxies names the proxies",
    },
    Agreement {
        key: "tls.key_file",
        other: "tls.certificate_file",
        holds: |config| config.tls.key_file.is_empty() == config.tls.certificate_file.is_empty(),
        must: "be there exactly where tls.certificate_file is",
    },
    Agreement {
        key: "limits.bytes_burst_max",
        other: "limits.bytes_per_second_max",
        holds: |config| config.limits.bytes_burst_max == 0 || config.limits.bytes_per_second_max > 0,
        must: "be 0 unless limits.bytes_per_second_max is set",
    },
    Agreement {
        key: "limits.messages_burst_max",
        other: "limits.messages_per_second_max",
        holds: |config| config.limits.messages_burst_max == 0 || config.limits.messages_per_second_max > 0,
        must: "be 0 unless limits.messages_per_second_max is set",
    },
    Agreement {
        key: "limits.receive_bytes_max",
        other: "limits.message_bytes_max",
        holds: |config| config.limits.receive_bytes_max >= u64::from(config.limits.message_bytes_max),
        must: "be at least limits.message_bytes_max",
    },
    Agreement {
        key: "auth.required",
        other: "auth.secret",
        holds: |config| {
            let Auth { required, secret, jwks, callout, .. } = &config.auth;
            !required || *callout || !secret.is_empty() || !jwks.is_empty() || !config.keys.is_empty()
        },
        must: "be false unless there is a key (auth.secret, auth.jwks or [[auth.keys]]) or auth.callout",
    },
    Agreement {
        key: "auth.callout",
        other: "backend.url",
        holds: |config| !config.auth.callout || !config.backend.url.is_empty(),
        must: "be false unless backend.url says where the backend is",
    },
    Agreement {
        key: "outbox.bytes_max",
        other: "limits.message_bytes_max",
        // Neither sum overflows: a message has at most 256 MiB.
        holds: |config| config.outbox.bytes_max >= config.limits.message_bytes_max + OUTBOX_MARGIN_BYTES,
        must: "be at least limits.message_bytes_max + 1024",
    },
    Agreement {
        key: "outbox.total_bytes_max",
        other: "outbox.bytes_max",
        holds: |config| config.outbox.total_bytes_max >= u64::from(config.outbox.bytes_max),
        must: "be at least outbox.bytes_max",
    },
    Agreement {
        key: "socketio.cors_credentials",
        other: "socketio.cors_origins",
        // Browsers refuse credentials with any origin, and echoing the origin instead would open every visitor's session to any page.
        holds: |config| {
            let origins = &config.socketio.cors_origins;
            !config.socketio.cors_credentials
                || (!origins.is_empty() && origins.iter().all(|origin| origin != "*"))
        },
        must: "be false unless socketio.cors_origins names the origins, without \"*\"",
    },
    Agreement {
        key: "redis.master",
        other: "redis.kind",
        holds: |config| config.redis.kind != RedisKind::Sentinel || !config.redis.master.is_empty(),
        must: "name the master where redis.kind is \"sentinel\"",
    },
    Agreement {
        key: "redis.urls",
        other: "redis.kind",
        holds: |config| config.redis.kind != RedisKind::Server || config.redis.urls.len() <= 1,
        must: "be one server where redis.kind is \"server\"",
    },
    Agreement {
        key: "engineio.echo_path",
        other: "socketio.path",
        holds: |config| {
            let (echo, path) = (&config.engineio.echo_path, &config.socketio.path);
            let apart = !echo.starts_with(path.as_str()) && !path.starts_with(echo.as_str());
            !config.socketio.enabled || echo.is_empty() || apart
        },
        must: "not lie within socketio.path, nor that within it",
    },
    Agreement {
        key: "plain.path",
        other: "native.path",
        holds: |config| is_apart(&config.plain.path, &config.native.path),
        must: "not be native.path",
    },
    Agreement {
        key: "plain.path",
        other: "socketio.path",
        holds: |config| !config.socketio.enabled || is_apart(&config.plain.path, &config.socketio.path),
        must: "not be socketio.path",
    },
    Agreement {
        key: "native.path",
        other: "socketio.path",
        holds: |config| !config.socketio.enabled || is_apart(&config.native.path, &config.socketio.path),
        must: "not be socketio.path",
    },
    Agreement {
        key: "plain.path",
        other: "engineio.echo_path",
        holds: |config| is_apart(&config.plain.path, &config.engineio.echo_path),
        must: "not be engineio.echo_path",
    },
    Agreement {
        key: "native.path",
        other: "engineio.echo_path",
        holds: |config| is_apart(&config.native.path, &config.engineio.echo_path),
        must: "not be engineio.echo_path",
    },
    Agreement {
        key: "plain.path",
        other: "server.echo",
        holds: |config| !config.server.echo || config.plain.path != ECHO_PATH,
        must: "not be /echo where that is open",
    },
    Agreement {
        key: "native.path",
        other: "server.echo",
        holds: |config| !config.server.echo || config.native.path != ECHO_PATH,
        must: "not be /echo where that is open",
    },
    Agreement {
        key: "webhooks.kinds",
        other: "backend.url",
        holds: |config| {
            let is_posted = config.has_webhooks() && config.webhooks.to == WebhooksTo::Backend;
            !is_posted || !config.backend.url.is_empty()
        },
        must: "be empty unless backend.url says where notices go, and so must [[webhooks.events]]",
    },
    Agreement {
        key: "webhooks.to",
        other: "redis.urls",
        holds: |config| config.webhooks.to != WebhooksTo::Stream || !config.redis.urls.is_empty(),
        must: "be \"backend\" unless there is a Redis",
    },
    Agreement {
        key: "drain.spread_ms",
        other: "drain.timeout_ms",
        holds: |config| config.drain.spread_ms <= config.drain.timeout_ms,
        must: "be at most drain.timeout_ms",
    },
];

/// Where `server.echo` opens its path.
const ECHO_PATH: &str = "/echo";

/// True when two dialects are not spoken at one path.
fn is_apart(path: &str, other: &str) -> bool {
    path.is_empty() || path != other
}

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
    /// Where the control port with metrics is, or off
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
    /// auto, text, json or journald
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
    /// True when a rule asks the backend about events, or who comes into a namespace or goes concerns it.
    pub fn asks_backend(&self) -> bool {
        self.routes.asks_backend()
            || self.socketio.namespaces.iter().any(|allowance| allowance.backend != Concerns::default())
    }

    /// The longest publication that outboxes have room for, of those that may have `bytes_max` bytes.
    pub fn publication_bytes_max(&self, bytes_max: u32) -> usize {
        bytes_max.min(self.outbox.bytes_max - OUTBOX_MARGIN_BYTES) as usize
    }

    /// What the names of channels begin with through which rooms are shared.
    pub fn redis_prefix(&self) -> &str {
        match (self.redis.prefix.as_str(), self.redis.cluster) {
            ("", Cluster::Throng) => "throng",
            ("", _) => "socket.io",
            (prefix, _) => prefix,
        }
    }

    /// The policies for rooms, and how much their homes may keep.
    pub fn policies(&self) -> Policies {
        let limits = &self.limits;
        let settings = policy::Settings {
            states_max: limits.room_states_max as usize,
            state_bytes_max: limits.room_state_bytes_max as usize,
            states_bytes_max: limits.room_states_bytes_max as usize,
            state_idle_ms: limits.room_state_idle_ms,
            dedupe_ids_max: limits.dedupe_ids_max as usize,
            waiting_bytes_max: limits.rooms_waiting_bytes_max as usize,
        };
        Policies::new(self.rooms.clone(), settings)
    }

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
}

impl Config {
    /// True when somebody wants to be told of connections, rooms or events.
    pub fn has_webhooks(&self) -> bool {
        !self.webhooks.kinds.is_empty() || !self.webhook_events.is_empty()
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
    /// The `[[routes]]` that are right, and where the first of all stands. Only the file has them, so they are checked when they are heard.
    routes: Vec<(Route, Source)>,
    routes_source: Option<Source>,
    /// The `[[namespaces]]`, likewise.
    namespaces: Vec<(Allowance, Arrival)>,
    namespaces_source: Option<Source>,
    /// The `[[api.keys]]`, likewise.
    api_keys: Vec<ApiKey>,
    api_keys_source: Option<Source>,
    /// The `[[auth.keys]]`, likewise.
    keys: Vec<KeySource>,
    auth_keys_source: Option<Source>,
    /// The `[[permissions]]`, likewise.
    permissions: Vec<Permission>,
    permissions_source: Option<Source>,
    /// The `[[rooms]]`, likewise.
    rooms: Vec<Policy>,
    rooms_source: Option<Source>,
    /// The `[[limits.events]]`, likewise.
    event_limits: Vec<EventLimit>,
    event_limits_source: Option<Source>,
    /// The `[[webhooks.events]]`, likewise.
    webhook_events: Vec<EventChoice>,
    webhook_events_source: Option<Source>,
    /// The `[[redis.channels]]`, likewise.
    redis_channels: Vec<(Channel, Source)>,
    redis_channels_source: Option<Source>,
    /// What names no setting, or is no statement at all.
    problems: Vec<Problem>,
    /// True exactly when there is a file that could not be read or parsed. Then how settings agree would mislead.
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
    /// The setting as a line of TOML, its key in full; for a list of tables how many there are.
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
        config.keys = self.keys;
        config.webhook_events = self.webhook_events;
        if !self.file_lost {
            problems.extend(AGREEMENTS.iter().filter_map(|both| both.check(&config, &finals)));
        }
        let tables = [
            (event_limits::TABLES, self.event_limits_source, self.event_limits.len()),
            (webhook_events::TABLES, self.webhook_events_source, config.webhook_events.len()),
            (redis_channels::TABLES, self.redis_channels_source, self.redis_channels.len()),
            (namespaces::TABLES, self.namespaces_source.clone(), self.namespaces.len()),
            (routes::TABLES, self.routes_source.clone(), self.routes.len()),
            (api_keys::TABLES, self.api_keys_source, self.api_keys.len()),
            (auth_keys::TABLES, self.auth_keys_source, config.keys.len()),
            (permissions::TABLES, self.permissions_source, self.permissions.len()),
            (rooms::TABLES, self.rooms_source, self.rooms.len()),
        ];
        config.api_keys = self.api_keys;
        config.permissions = Permissions::new(self.permissions);
        config.rooms = self.rooms;
        problems.extend(ambiguous::for_plain_clients(&config, &self.routes, &self.redis_channels));
        problems.extend(self.redis_channels.iter().filter_map(|heard| foreign(&config, heard)));
        let (allowances, arrivals) = self.namespaces.into_iter().unzip();
        config.routes =
            Routes::new(self.routes.into_iter().map(|(route, _)| route).collect()).with_arrivals(arrivals);
        config.redis_channels = self.redis_channels.into_iter().map(|(channel, _)| channel).collect();
        config.event_limits = EventLimits::new(self.event_limits);
        config.socketio.namespaces = config.socketio.namespaces.behind(allowances);
        let asking = self.routes_source.or(self.namespaces_source.clone());
        if let Some(source) = asking.filter(|_| config.backend.url.is_empty() && config.asks_backend()) {
            let allowed = "the URL of the backend that [[routes]] or [[namespaces]] ask".to_owned();
            let fault = Fault::Value { given: "\"\"".to_owned(), allowed };
            problems.push(Problem { key: "backend.url".to_owned(), source, fault });
        }
        let patterns = config.socketio.namespaces.iter().len();
        if let Some(source) = self.namespaces_source.filter(|_| patterns > Namespaces::PATTERNS_MAX) {
            let given = format!("{patterns} in all with those of socketio.namespaces");
            let allowed = format!("at most {}", Namespaces::PATTERNS_MAX);
            let key = namespaces::TABLES.name.to_owned();
            problems.push(Problem { key, source, fault: Fault::Value { given, allowed } });
        }
        if !problems.is_empty() {
            problems.sort_by(|a, b| a.source.cmp(&b.source));
            return Err(problems);
        }
        for (setting, last) in SETTINGS.iter().zip(&finals) {
            if last.value != setting.default_value() {
                let shown = format!("{} = {}", setting.key, last.value);
                config.changed.push(Changed { shown, source: last.source.clone() });
            }
        }
        config.finals = finals;
        for (list, source, count) in tables {
            if let Some(source) = source.filter(|_| count > 0) {
                let shown = format!("{}, {count} in all", list.heading);
                config.changed.push(Changed { shown, source });
            }
        }
        if config.limits.bytes_burst_max == 0 {
            config.limits.bytes_burst_max = config.limits.bytes_per_second_max;
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
            let at = section.span().start;
            let file = Reading { text, source: &source, problems: &mut self.problems };
            if name == routes::TABLES.name {
                self.routes = routes::read(content.get_ref(), at, file);
                self.routes_source = Some(source(at));
                continue;
            }
            if name == namespaces::TABLES.name {
                self.namespaces = namespaces::read(content.get_ref(), at, file);
                self.namespaces_source = Some(source(at));
                continue;
            }
            if name == permissions::TABLES.name {
                self.permissions = permissions::read(content.get_ref(), at, file);
                self.permissions_source = Some(source(at));
                continue;
            }
            if name == rooms::TABLES.name {
                self.rooms = rooms::read(content.get_ref(), at, file);
                self.rooms_source = Some(source(at));
                continue;
            }
            let known = SETTINGS.iter().any(|setting| setting.section() == name);
            match content.get_ref() {
                DeValue::Table(table) if known => {
                    for (field, value) in table {
                        let key = format!("{name}.{}", field.get_ref());
                        let at = field.span().start;
                        if key == api_keys::TABLES.name {
                            let file = Reading { text, source: &source, problems: &mut self.problems };
                            self.api_keys = api_keys::read(value.get_ref(), at, file);
                            self.api_keys_source = Some(source(at));
                            continue;
                        }
                        if key == auth_keys::TABLES.name {
                            let file = Reading { text, source: &source, problems: &mut self.problems };
                            self.keys = auth_keys::read(value.get_ref(), at, file);
                            self.auth_keys_source = Some(source(at));
                            continue;
                        }
                        if key == event_limits::TABLES.name {
                            let file = Reading { text, source: &source, problems: &mut self.problems };
                            self.event_limits = event_limits::read(value.get_ref(), at, file);
                            self.event_limits_source = Some(source(at));
                            continue;
                        }
                        if key == redis_channels::TABLES.name {
                            let file = Reading { text, source: &source, problems: &mut self.problems };
                            self.redis_channels = redis_channels::read(value.get_ref(), at, file);
                            self.redis_channels_source = Some(source(at));
                            continue;
                        }
                        if key == webhook_events::TABLES.name {
                            let file = Reading { text, source: &source, problems: &mut self.problems };
                            self.webhook_events = webhook_events::read(value.get_ref(), at, file);
                            self.webhook_events_source = Some(source(at));
                            continue;
                        }
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
            let common = ENV_COMMON.iter().find(|(common, _)| name == common);
            let setting = if let Some((_, key)) = common {
                position(key)
            } else if name.starts_with(ENV_PREFIX) && name != ENV_FILE && !is_service_link(name, value) {
                SETTINGS.iter().position(|setting| setting.env_name() == *name)
            } else {
                continue;
            };
            let source = Source::environment(name);
            match setting {
                Some(setting) => {
                    let statements = if common.is_some() { &mut weaker } else { &mut own };
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

/// What is wrong with a channel that servers use among themselves.
fn foreign(config: &Config, (channel, source): &(Channel, Source)) -> Option<Problem> {
    let own = own_prefixes(config.redis_prefix()).into_iter().find(|own| channel.name.starts_with(own))?;
    let why = format!("what begins with {own:?} is said among servers (redis.prefix), and no application's");
    let key =
        format!("{}.{}", redis_channels::TABLES.name, if channel.is_pattern { "pattern" } else { "name" });
    Some(Problem { key, source: source.clone(), fault: Fault::Wrong { why } })
}

/// What a setting has come to.
#[derive(Clone, Debug)]
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

impl Agreement {
    fn check(&self, config: &Config, finals: &[Final]) -> Option<Problem> {
        let of = |key| &finals[position(key).expect("its keys are in the table")];
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
    /// What must be there is not.
    Missing {
        /// What would be right, to stand behind "it takes".
        allowed: String,
    },
    /// The value means nothing, or something that can't be.
    Wrong {
        /// What is wrong with it, in words.
        why: String,
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
                let names = names.map(|name| (name[ENV_PREFIX.len()..].to_owned(), name));
                let tables = LISTS.map(|list| (list.name.to_ascii_uppercase(), list.heading.to_owned()));
                nearest(name, names.chain(tables))
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
            Fault::Wrong { why } => write!(f, "{source}: {key}: {why}"),
            Fault::Missing { allowed } => write!(f, "{source}: {key} is missing, it takes {allowed}"),
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
    /// Whether a change of it takes effect on SIGHUP.
    pub reloaded: Reloaded,
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

    /// The default, as one would write it in a file.
    pub fn default_text(&self) -> String {
        self.default_value().to_string()
    }

    fn default_value(&self) -> Value {
        self.kind.read(&Given::bare(self.default)).expect("a default is allowed")
    }
}

/// The lists of tables that a file may have besides settings: how a table is headed, and the keys that it may have.
pub fn lists() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    LISTS.into_iter().chain([redis_channels::TABLES]).map(|tables| (tables.heading, tables.keys))
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

/// The key or section that `key` was probably meant to be: one of the same section, else one that has a name like it.
fn nearest_key(key: &str) -> Option<String> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    // What was said in full stands elsewhere, unless it is a part of what stands here.
    let has_words = |setting: &Setting| format!("_{}_", setting.name()).contains(&format!("_{name}_"));
    let is_part = |setting: &&Setting| setting.section() == section && has_words(setting);
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
    let tables = LISTS.map(|list| (list.name.to_owned(), list.heading.to_owned()));
    let sections = sections.chain(tables).filter(|_| section.is_empty());
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
mod tests;
