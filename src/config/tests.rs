//! Short files, variables and command lines, and what comes of them; and that the documentation says what is true.

use super::explain::list;
use super::*;
use crate::permissions::Who;
use crate::routes::template::{Data, Name};
use crate::routes::{BuiltIn, Does, FieldKind, Found, Routes, Steps};
use crate::rules::{Coding, Pattern, Per, Unit};
use crate::token::keys::{Algorithm, Place};
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

fn namespaces(patterns: &[&str]) -> Namespaces {
    Namespaces::new(patterns.iter().map(|text| Pattern::parse(text).expect("a pattern")).collect())
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
    assert_eq!((limits.connections_per_user_max, limits.event_windows_max), (0, 1_000_000));
    assert!(config.event_limits.is_empty());
    assert_eq!((limits.messages_per_second_max, limits.messages_burst_max), (0, 0));
    assert_eq!((limits.bytes_per_second_max, limits.bytes_burst_max, limits.over), (0, 0, Over::Error));
    assert_eq!((limits.handshakes_per_ip_max, limits.handshakes_window_ms), (0, 60_000));
    assert_eq!((limits.refuse_with, limits.handshake_timeout_ms), (RefuseWith::Status, 10_000));
    assert_eq!((limits.head_bytes_max, limits.message_bytes_max), (8192, 1_048_576));
    assert_eq!((limits.frames_per_message_max, limits.messages_per_frame_max), (4096, 1024));
    assert_eq!((limits.rooms_per_connection_max, limits.rooms_max), (1024, 10_000_000));
    assert_eq!((limits.room_name_bytes_max, limits.receive_bytes_max), (200, 268_435_456));
    assert!(limits.origins.is_empty() && limits.trusted_proxies.is_empty());
    assert_eq!(config.heartbeat, Heartbeat { ping_interval_ms: 25_000, ping_timeout_ms: 20_000 });
    let outbox = Outbox { bytes_max: 4_194_304, total_bytes_max: 1 << 30, policy: OutboxPolicy::Disconnect };
    assert_eq!(config.outbox, outbox);
    let socketio = SocketIo {
        enabled: true,
        path: "/socket.io/".to_owned(),
        cors_origins: Vec::new(),
        cors_credentials: false,
        connect_timeout_ms: 45_000,
        upgrade_timeout_ms: 10_000,
        namespaces: namespaces(&["/"]),
        namespaces_per_connection_max: 16,
        namespaces_max: 100_000,
        connections_per_namespace_max: 0,
        attachments_max: 10,
        connect_event: String::new(),
        compression_bytes_min: 1024,
        recovery_ms: 0,
        recovery_bytes_max: 64 << 20,
        recovery_session_bytes_max: 1 << 20,
        recovery_sessions_max: 100_000,
    };
    assert_eq!(config.socketio, socketio);
    assert_eq!((config.native.path.as_str(), config.plain.path.as_str()), ("/ws", ""));
    assert_eq!(config.engineio, EngineIo { echo_path: String::new() });
    assert!(config.routes.iter().map(|route| &route.on).eq(["join", "leave", "publish", "presence"]));
    assert_eq!(config.presence, Presence { age_max_ms: 1000, timeout_ms: 1000, listed_max: 1000 });
    let drain = Drain { notice_ms: 0, timeout_ms: 10_000, spread_ms: 1000, closes_per_second_max: 10_000 };
    assert_eq!(config.drain, drain);
    assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Auto, summary_ms: 60_000 });
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
        node: String::new(),
        share_port: false,
        shards: 3,
        pin: true,
        steer: false,
        io: Io::Epoll,
        echo: true,
        linger_ms: 5,
    };
    assert_eq!(config.server, server);
    assert_eq!(config.log, Log { level: LogLevel::Debug, format: LogFormat::Json, summary_ms: 60_000 });
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
        if let Kind::Number { min, max } | Kind::Bytes { min, max } | Kind::Ms { min, max } = setting.kind {
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
fn passwords_are_not_shown() {
    let text = r#"
        [redis]
        urls = ["redis://me:secret?@10.0.0.1:6379/2", "unix:///run/redis?pass=secret&db=1"]
        kind = "sentinel"
        master = "main"
        sentinel_password = "secret"
        cluster = "socketio"
    "#;
    let shown = right(text, &[], "").explain();
    assert!(!shown.contains("secret"), "{shown}");
    assert!(
        shown.contains("which are redis://***@10.0.0.1:6379/2, unix:///run/redis?pass=***&db=1;"),
        "{shown}"
    );
    assert!(
        shown.contains("rooms are shared with throngs and Node's servers that have the Redis adapter."),
        "{shown}"
    );
    let wrong = wrong("[redis]\nurls = [\"http://me:secret@10.0.0.1\"]", &[], "");
    assert!(!self::shown(&wrong).contains("secret"), "{}", self::shown(&wrong));
}

#[test]
fn no_two_settings_share_a_variable() {
    let mut names: Vec<String> = SETTINGS.iter().map(Setting::env_name).collect();
    names.push(ENV_FILE.to_owned());
    names.extend(ENV_COMMON.map(|(name, _)| name.to_owned()));
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
    let socketio = |file, pairs: &[_], line| right(file, pairs, line).socketio;
    let any = [("THRONG_SOCKETIO_CORS_ORIGINS", "*")];
    assert_eq!(socketio("", &any, "").cors_origins, ["*"]);
    let file = "[socketio]\ncors_origins = [\"https://A.example:443\", \"null\"]\ncors_credentials = true\n";
    assert_eq!(socketio(file, &[], "").cors_origins, ["https://a.example", "null"]);
    let line = "--set socketio.namespaces=/,/guild/*";
    assert_eq!(socketio("", &[], line).namespaces, namespaces(&["/", "/guild/*"]));
    let line = "--set socketio.namespaces=[\"/custom\"]";
    assert_eq!(socketio("", &[], line).namespaces, namespaces(&["/custom"]));
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
        ("limits", "message_bytes_max = \"99999999999999GiB\"", "\"99999999999999GiB\"", "a size from 125"),
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
        ("socketio", "enabled = \"yes\"", "\"yes\"", "true or false"),
        ("socketio", "path = \"socket.io/\"", "\"socket.io/\"", "a path with a slash at both ends"),
        ("socketio", "path = \"/socket.io\"", "\"/socket.io\"", "a path with a slash at both ends"),
        ("socketio", "path = \"/\"", "\"/\"", "a path with a slash at both ends"),
        ("socketio", "path = \"/a//b/\"", "\"/a//b/\"", "a path with a slash at both ends"),
        ("socketio", "path = \"/a?b/\"", "\"/a?b/\"", "a path with a slash at both ends"),
        ("socketio", "path = \"\"", "\"\"", "a path with a slash at both ends"),
        ("socketio", "cors_origins = \"*\"", "\"*\"", "or \"*\" for any"),
        ("socketio", "cors_origins = [\"a.example\"]", "\"a.example\"", "or \"*\" for any"),
        ("socketio", "connect_timeout_ms = 99", "99", "a time from 100 to 600000 ms"),
        ("socketio", "namespaces = []", "[]", "a list of 1 to 200 namespaces"),
        ("socketio", "namespaces = [\"chat\"]", "\"chat\"", "a list of 1 to 200 namespaces"),
        ("socketio", "namespaces = [\"/guild*\"]", "\"/guild*\"", "a list of 1 to 200 namespaces"),
        ("socketio", "attachments_max = 1025", "1025", "a whole number from 0 to 1024"),
        ("socketio", "connect_event = \"connect\"", "\"connect\"", "not one that Socket.IO reserves"),
        ("socketio", "compression_bytes_min = -1", "-1", "a size from 0 bytes to 256 MiB"),
        ("plain", "path = \"app\"", "\"app\"", "a path like \"/ws\" or \"/\""),
        ("plain", "path = \"/health\"", "\"/health\"", "not /health"),
        ("native", "path = \"/a?b\"", "\"/a?b\"", "a path like"),
        ("native", "path = \"//\"", "\"//\"", "a path like"),
        ("engineio", "echo_path = \"echo\"", "\"echo\"", "like \"/socket.io/\", or \"\""),
        ("limits", "proxy_protocol = 2", "2", "true or false"),
        ("tls", "certificate_file = true", "true", "the path of a file, or \"\""),
        ("tls", "key_file = 1", "1", "the path of a file, or \"\""),
        ("tls", "version_min = \"1.1\"", "\"1.1\"", "\"1.2\" or \"1.3\""),
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
        format!("throng.toml:4: limits.origins: \"one\" {takes}\nthrong.toml:5: limits.origins: 2 {takes}\n")
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
            "[limits]\nproxy_protocol = true\n",
            "throng.toml:2: limits.proxy_protocol = true (throng.toml:2) must be false unless limits.trusted_proxies names the \
             proxies, and limits.trusted_proxies = [] (default)",
        ),
        (
            "[tls]\ncertificate_file = \"chain.pem\"\n",
            "throng.toml:2: tls.key_file = \"\" (default) must be there exactly where tls.certificate_file is, \
             and tls.certificate_file = \"chain.pem\" (throng.toml:2)",
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
        (
            "[socketio]\ncors_credentials = true\n",
            "throng.toml:2: socketio.cors_credentials = true (throng.toml:2) must be false unless socketio.cors_origins \
             names the origins, without \"*\", and socketio.cors_origins = [] (default)",
        ),
        (
            "[socketio]\ncors_origins = [\"null\", \"*\"]\ncors_credentials = true\n",
            "throng.toml:3: socketio.cors_credentials = true (throng.toml:3) must be false unless socketio.cors_origins \
             names the origins, without \"*\", and socketio.cors_origins = [\"null\", \"*\"] (throng.toml:2)",
        ),
        (
            "[engineio]\necho_path = \"/socket.io/echo/\"\n",
            "throng.toml:2: engineio.echo_path = \"/socket.io/echo/\" (throng.toml:2) must not lie within socketio.path, \
             nor that within it, and socketio.path = \"/socket.io/\" (default)",
        ),
        (
            "[socketio]\npath = \"/a/b/\"\n[engineio]\necho_path = \"/a/\"\n",
            "throng.toml:4: engineio.echo_path = \"/a/\" (throng.toml:4) must not lie within socketio.path, \
             nor that within it, and socketio.path = \"/a/b/\" (throng.toml:2)",
        ),
        (
            "[plain]\npath = \"/ws\"\n",
            "throng.toml:2: plain.path = \"/ws\" (throng.toml:2) must not be native.path, and native.path = \"/ws\" (default)",
        ),
        (
            "[native]\npath = \"/socket.io/\"\n",
            "throng.toml:2: native.path = \"/socket.io/\" (throng.toml:2) must not be socketio.path, \
             and socketio.path = \"/socket.io/\" (default)",
        ),
        (
            "[plain]\npath = \"/a/\"\n[engineio]\necho_path = \"/a/\"\n",
            "throng.toml:2: plain.path = \"/a/\" (throng.toml:2) must not be engineio.echo_path, \
             and engineio.echo_path = \"/a/\" (throng.toml:4)",
        ),
        (
            "[server]\necho = true\n[native]\npath = \"/echo\"\n",
            "throng.toml:4: native.path = \"/echo\" (throng.toml:4) must not be /echo where that is open, \
             and server.echo = true (throng.toml:2)",
        ),
    ] {
        check_problem(&wrong(file, &[], ""), line);
    }
    right("[engineio]\necho_path = \"/socket.io/\"\n[socketio]\nenabled = false\n", &[], "");
    right("[native]\npath = \"\"\n[plain]\npath = \"/ws\"\n", &[], "");
    right("[plain]\npath = \"/\"\n[server]\necho = true\n", &[], "");
    right("[plain]\npath = \"/socket.io/\"\n[socketio]\nenabled = false\n", &[], "");
    right("[outbox]\nbytes_max = 1049600\n", &[], "");
    right("[server]\nlisten = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n", &[], "");
    let problems = wrong("[drain]\nspread_ms = \"long\"\ntimeout_ms = 0\n", &[], "");
    assert_eq!(problems.len(), 1, "a wrong value breaks no agreement besides: {}", shown(&problems));
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
        ("[[route]]\non = 1\n", "throng.toml:1: route", Some("[[routes]]")),
        ("[proxy]\ncertificate = \"x\"\n", "throng.toml:1: proxy", None),
    ] {
        let hint = meant.map_or(String::new(), |meant| format!("; did you mean {meant}?"));
        check_problem(&wrong(file, &[], ""), &format!("{key}: there is no such setting{hint}"));
    }
    check_problem(
        &wrong("", &[("THRONG_MAX_CONNECTIONS", "1")], ""),
        "THRONG_MAX_CONNECTIONS: there is no such setting; did you mean THRONG_LIMITS_CONNECTIONS_MAX?",
    );
    check_problem(
        &wrong("", &[("THRONG_ROUTES", "[]")], ""),
        "THRONG_ROUTES: there is no such setting; did you mean [[routes]]?",
    );
    check_problem(
        &wrong("", &[], "--set routes=[]"),
        "--set: routes: there is no such setting; did you mean [[routes]]?",
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

/// What `routes` have for an event of anybody.
fn does<'r>(routes: &'r Routes, namespace: &str, event: &str) -> Option<&'r Does> {
    match routes.find(namespace, event, |who| *who == Who::Anyone) {
        Found::Route(route) => Some(&route.does),
        Found::Forbidden { .. } | Found::Nothing => None,
    }
}

#[test]
fn routes_are_read() {
    let file = "\
        [[routes]]\non = \"in\"\ndo = \"join\"\nroom = \"guild\"\n\
        [[routes]]\non = \"out\"\ndo = \"leave\"\nnamespace = \"/guild/*\"\n\
        [[routes]]\non = \"say\"\ndo = \"publish\"\n\
        [[routes]]\non = \"tell\"\ndo = \"publish\"\nroom = \"to\"\nevent = \"kind\"\ndata = \"text\"\n\
        [[routes]]\non = \"who\"\ndo = \"presence\"\nroom = \"guild\"\n\
        [[routes]]\non = \"hello\"\nreply = \"welcome\"\n\
        [[routes]]\non = \"ping\"\nack = true\n\
        [[routes]]\non = \"no\"\nrefuse = \"not now\"\n\
        [[routes]]\non = \"kick\"\nwho = \"role:admin\"\nack = true\n";
    let fields = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let publish = |rooms: &[&str], event: &str, data: &str| {
        Does::BuiltIn(BuiltIn::Publish {
            room_fields: fields(rooms),
            event_field: event.to_owned(),
            data_field: data.to_owned(),
        })
    };
    let routes = right(file, &[], "").routes;
    let refused = Steps { refuse: Some("not now".to_owned()), ..Steps::default() };
    let of_rooms = || fields(&["room", "rooms"]);
    for (on, meant) in [
        ("in", Does::BuiltIn(BuiltIn::Join { room_fields: fields(&["guild"]) })),
        ("out", Does::BuiltIn(BuiltIn::Leave { room_fields: of_rooms() })),
        ("say", publish(&["room", "rooms"], "event", "data")),
        ("tell", publish(&["to"], "kind", "text")),
        ("who", Does::BuiltIn(BuiltIn::Presence { room_fields: fields(&["guild"]) })),
        ("presence", Does::BuiltIn(BuiltIn::Presence { room_fields: of_rooms() })),
        ("hello", Does::reply("welcome")),
        ("ping", Does::ack()),
        ("no", Does::Steps(Box::new(refused))),
        ("join", Does::BuiltIn(BuiltIn::Join { room_fields: of_rooms() })),
    ] {
        assert_eq!(does(&routes, "/guild/7", on), Some(&meant), "{on}");
        assert_eq!(does(&routes, "/", on).is_some(), on != "out", "{on}");
    }
    assert!(matches!(routes.find("/", "kick", |who| *who == Who::Anyone), Found::Forbidden { .. }));
    assert!(matches!(routes.find("/", "kick", |who| *who == Who::Role("admin".into())), Found::Route(_)));
    let inline = right("routes = [{ on = \"ping\", ack = true }]\n", &[], "").routes;
    assert_eq!(does(&inline, "/", "ping"), Some(&Does::ack()), "written in another way");
    assert!(right("routes = []\n", &[], "").changed.is_empty());
}

#[test]
fn a_route_says_what_becomes_of_an_event() {
    let file = "[[routes]]\n\
        on = \"send_message\"\n\
        who = \"user\"\n\
        fields = { channelId = \"string\", text = \"string\", replyTo = \"number?\" }\n\
        member = \"channel:{channelId}\"\n\
        join = [\"seen:{user}\", \"all\"]\n\
        leave = \"lobby\"\n\
        publish = [\n\
          { room = \"channel:{channelId}\", event = \"new_message\", add = { id = \"{id}\", from = \"{user}\" } },\n\
          { rooms = [\"a\", \"b\"], user = \"{payload.user}\", all = true, except = \"quiet\", echo = true, pick = [\"text\"], volatile = true },\n\
        ]\n\
        reply = { event = \"message_sent\", data = { messageId = \"{id}\", at = 2026-01-01, n = 1.5, ok = true } }\n\
        ack = [\"{id}\"]\n";
    let config = right(file, &[], "");
    let Found::Route(route) = config.routes.find("/", "send_message", |who| *who == Who::User) else {
        panic!("there is a route");
    };
    let Does::Steps(steps) = &route.does else { panic!("it has steps") };
    let names = |names: &[Name]| names.iter().map(Name::to_string).collect::<Vec<_>>();
    assert_eq!(names(&steps.member), ["channel:{channelId}"]);
    assert_eq!(names(&steps.join), ["seen:{user}", "all"]);
    assert_eq!(names(&steps.leave), ["lobby"]);
    let kinds: Vec<_> = steps.fields.iter().map(|field| (field.kind, field.is_optional)).collect();
    assert_eq!(kinds.iter().filter(|(kind, optional)| *kind == FieldKind::Number && *optional).count(), 1);
    assert_eq!(kinds.iter().filter(|(kind, optional)| *kind == FieldKind::String && !optional).count(), 2);
    let [first, second] = steps.publish.as_slice() else { panic!("two events") };
    assert_eq!(first.saying.event.as_deref(), Some("new_message"));
    assert!(matches!(&first.saying.data, Data::With(added) if added.len() == 2) && !first.echo);
    assert_eq!((second.to.len(), second.saying.event.as_deref()), (4, None));
    assert!(second.echo && second.volatile && names(&second.except) == ["quiet"]);
    assert!(steps.needs.id && !steps.needs.socket && !steps.needs.rooms);
    let text = config.explain();
    let line = "  On \"send_message\" a user says channelId (string), replyTo (number, if it is there), text (string), then \
        must be in channel:{channelId}, then joins seen:{user}, all, then leaves lobby, then publishes \
        \"new_message\" with more in its data to channel:{channelId}, then publishes it with data of its own to a, b, \
        user {payload.user}, everyone but for members of quiet, itself too, better lost than late, then gets \"message_sent\" with data of its own, then gets an acknowledgement with data.\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn the_backend_can_be_asked_where_there_is_one() {
    let url = "[backend]\nurl = \"http://127.0.0.1:4000\"\n";
    let namespaces = "[[namespaces]]\nname = \"/a\"\nbackend = [\"connect\", \"disconnected\"]\n";
    let events = "[[routes]]\non = \"*\"\nbackend = true\nnamespace = \"/a\"\n";
    let config = right(&format!("{url}{namespaces}{events}"), &[], "");
    assert!(config.asks_backend());
    assert_eq!(does(&config.routes, "/a", "anything"), Some(&Does::backend()));
    let (_, allowance) = config.socketio.namespaces.find("/a").expect("it is allowed");
    assert_eq!(allowance.backend.words().collect::<Vec<_>>(), ["connect", "disconnected"]);
    let text = config.explain();
    for line in [
        "On any other event in /a a client is answered by the backend, which is asked about it.",
        "Namespaces /a: of the backend's concern (connect, disconnected).",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!right(url, &[], "").asks_backend());
    for rules in [events, namespaces] {
        let problem = "throng.toml:1: backend.url: \"\" is wrong, it takes the URL of the backend that [[routes]] or \
                       [[namespaces]] ask";
        check_problem(&wrong(rules, &[], ""), problem);
    }
    check_problem(
        &wrong("[[namespaces]]\nname = \"/a\"\nbackend = [\"all\"]\n", &[], ""),
        "throng.toml:3: namespaces.backend: [\"all\"] is wrong, it takes a list of at least one of \"connect\", \
         \"connected\", \"disconnected\"",
    );
}

#[test]
fn a_wrong_route_names_its_key_its_line_and_what_is_allowed() {
    let free = "the name of an event, but not one that Socket.IO reserves, like \"connect\"; \"*\" is all that have no route";
    let built_in = "\"join\", \"leave\", \"publish\" or \"presence\"";
    for (table, problem) in [
        ("ack = true\n", format!("2: routes.on is missing, it takes {free}")),
        (
            "on = \"a\"\n",
            "2: routes.do is missing, it takes one of \"join\", \"leave\", \"publish\", \"presence\"; or there is one of \
             fields, refuse, member, join, leave, publish, reply, ack, backend"
                .to_owned(),
        ),
        ("on = 1\nack = true\n", format!("3: routes.on: 1 is wrong, it takes {free}")),
        ("ack = true\non = \"disconnect\"\n", format!("4: routes.on: \"disconnect\" is wrong, it takes {free}")),
        ("on = \"a\"\ndo = \"Join\"\n", format!("4: routes.do: \"Join\" is wrong, it takes {built_in}")),
        ("on = \"a\"\ndo = \"reply\"\n", format!("4: routes.do: \"reply\" is wrong, it takes {built_in}")),
        ("on = \"a\"\nreply = \"connect\"\n", "4: routes.reply: \"connect\" is no name of an event".to_owned()),
        (
            "on = \"a\"\nreply = { event = \"b\", room = \"c\" }\n",
            "4: routes.reply: it goes to who has sent the event, and takes `event`, `data`, `pick` and `add`".to_owned(),
        ),
        (
            "on = \"a\"\nack = true\nnamespace = \"guild\"\n",
            "5: routes.namespace: \"guild\" is wrong, it takes a namespace, like \"/\" or \"/chat\", \
             where \"*\" stands for any one segment"
                .to_owned(),
        ),
        (
            "on = \"a\"\nack = true\nwho = \"admin\"\n",
            "5: routes.who: \"admin\" is wrong, it takes \"anyone\", \"user\" or \"role:NAME\"".to_owned(),
        ),
        (
            "on = \"a\"\ndo = \"join\"\nroom = \"\"\n",
            "5: routes.room: \"\" is wrong, it takes the name of a field".to_owned(),
        ),
        (
            "on = \"a\"\ndo = \"publish\"\ndata = [\"b\"]\n",
            "5: routes.data: [\"b\"] is wrong, it takes the name of a field".to_owned(),
        ),
        ("on = \"a\"\ndo = \"join\"\nevent = \"b\"\n", "5: routes.event: it does not go with do = \"join\"".to_owned()),
        ("on = \"a\"\ndo = \"join\"\nack = true\n", "5: routes.ack: it does not go with do = \"join\"".to_owned()),
        (
            "room = \"b\"\non = \"a\"\nack = true\n",
            "3: routes.room: it goes with `do` alone; what is published is said in `publish`".to_owned(),
        ),
        ("on = \"a\"\njoin = \"a{b\"\n", "4: routes.join: \"a{b\" has a brace without its other one; {{ is a brace".to_owned()),
        ("on = \"a\"\njoin = \"{a..b}\"\n", "4: routes.join: {a..b} names no member of an event".to_owned()),
        ("on = \"a\"\njoin = \"{a.b.c.d.e.f.g.h.i}\"\n", "4: routes.join: {a.b.c.d.e.f.g.h.i} names a member with too many keys: at most 8".to_owned()),
        ("on = \"a\"\njoin = \"a\\u0000b\"\n", "4: routes.join: \"a\\0b\" has a control character".to_owned()),
        ("on = \"a\"\njoin = []\n", "4: routes.join: it takes at least one name".to_owned()),
        ("on = \"a\"\npublish = []\n", "4: routes.publish: it takes at least one table".to_owned()),
        ("on = \"a\"\npublish = { room = \"b\", rooms = [] }\n", "4: routes.publish: it takes at least one name".to_owned()),
        ("on = \"a\"\npublish = { room = \"throng:{b}\" }\n", "4: routes.publish: only the server publishes to throng:{b}".to_owned()),
        (
            "on = \"a\"\npublish = { room = \"b\", event = \"c:{d}\" }\n",
            "4: routes.publish: \"c:{d}\": an event's name is no template, and would keep its braces".to_owned(),
        ),
        ("on = \"a\"\nreply = \"{b}\"\n", "4: routes.reply: \"{b}\": an event's name is no template, and would keep its braces".to_owned()),
        ("on = \"a\"\nrefuse = \"no {what}\"\n", "4: routes.refuse: a reason is no template: it would be told with its braces".to_owned()),
        ("on = \"a\"\njoins = \"b\"\n", "4: routes.joins: there is no such setting; did you mean routes.join?".to_owned()),
        ("on = \"a\"\njoin = 1\n", "4: routes.join: it takes a name or a list of names".to_owned()),
        ("on = \"a\"\nleave = \"\"\n", "4: routes.leave: a name must not be empty".to_owned()),
        (
            "on = \"a\"\npublish = { event = \"b\" }\n",
            "4: routes.publish: it says to whom: `room`, `rooms`, `user` or `all = true`".to_owned(),
        ),
        (
            "on = \"a\"\npublish = { room = \"b\", data = 1, pick = [] }\n",
            "4: routes.publish: `data` goes without `pick` and `add`".to_owned(),
        ),
        ("on = \"a\"\npublish = { room = \"b\", add = 1 }\n", "4: routes.publish: `add` is a table".to_owned()),
        (
            "on = \"a\"\nfields = {}\n",
            "4: routes.fields: it takes a table of 1 to 32 fields and what they are: \"string\", \"number\", \"boolean\", \"object\", \"array\", \"any\", \
             and behind it \"?\" when it may be missing"
                .to_owned(),
        ),
        (
            "on = \"a\"\nfields = { b = \"text\" }\n",
            "4: routes.fields: b takes \"string\", \"number\", \"boolean\", \"object\", \"array\", \"any\", and behind it \
             \"?\" when it may be missing"
                .to_owned(),
        ),
        ("on = \"a\"\nbackend = 1\n", "4: routes.backend: it is true or false".to_owned()),
        ("on = \"a\"\nack = true\nrefuse = \"b\"\n", "4: routes.ack: it does not go with `refuse`".to_owned()),
        (
            "on = \"a\"\nrefuse = \"\"\n",
            "4: routes.refuse: \"\" is wrong, it takes why such events are refused, in at most 200 letters".to_owned(),
        ),
        (
            "on = \"a\"\nack = true\nrooms = \"b\"\n",
            "5: routes.rooms: there is no such setting; did you mean routes.room?".to_owned(),
        ),
        (
            "on = \"a\"\nack = true\nname = \"b\"\n",
            "5: routes.name: there is no such setting; did you mean routes.namespace?".to_owned(),
        ),
        ("on = \"a\"\nack = true\nx = 1\n", "5: routes.x: there is no such setting".to_owned()),
    ] {
        check_problem(&wrong(&format!("\n[[routes]]\n{table}"), &[], ""), &format!("throng.toml:{problem}"));
    }
    let unknown = wrong("[[routes]]\non = \"a\"\npublish = { room = \"b\", to = 1 }\n", &[], "");
    assert!(
        shown(&unknown).contains("routes.publish: unknown field `to`, expected one of `event`"),
        "{}",
        shown(&unknown)
    );
    let tables = "is wrong, it takes a list of tables, [[routes]]";
    check_problem(
        &wrong("[routes]\non = \"a\"\n", &[], ""),
        &format!("throng.toml:1: routes: a table {tables}"),
    );
    check_problem(&wrong("\nroutes = [\n 1,\n]\n", &[], ""), &format!("throng.toml:3: routes: 1 {tables}"));
    let several = wrong("[[routes]]\n[[routes]]\non = 1\nto = 1\n[log]\nlevel = 1\n", &[], "");
    assert_eq!(several.len(), 5, "everything is told: {}", shown(&several));
}

/// What would become of an event, by this file.
fn tried(file: &str, words: &[&str]) -> String {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        trial: Trial,
    }
    let line = Line::try_parse_from([&["check", "--event"], words].concat()).expect("right words");
    right(file, &[], "").try_out(&line.trial).expect("right data").expect("an event")
}

#[test]
fn an_event_is_tried_out() {
    let secret = "[auth]\nsecret = \"a secret of thirty-two bytes or so\"\n";
    let required = format!("{secret}required = true\n");
    let staff = "[native]\npath = \"\"\n[socketio]\nnamespaces = [\"/\", \"/staff\"]\n\
                 [[permissions]]\nnamespace = \"/staff\"\nwho = \"user\"\nallow = [\"connect\"]\n";
    let rooms = "[[rooms]]\nname = \"auction:*\"\nbatch_max = 5\nconflate = \"id\"\nurgent = [\"end\"]\nchanges = \"update\"\n\
                 [[routes]]\non = \"bid\"\npublish = [\n\
                   { rooms = [\"auction:{n}\", \"log\"], event = \"update\" },\n\
                   { room = \"auction:{n}\", event = \"end\" },\n\
                   { room = \"auction:1\", except = \"b\" },\n\
                 ]\n";
    let limit = "[[limits.events]]\nevent = \"bid\"\nper = \"connection\"\ncount = 5\nwindow_ms = \"1m\"\n";
    for (file, words, lines) in [
        (&*required, &["a"][..], &["  Nobody gets in without a user: auth.required.\n"][..]),
        (&*required, &["a", "--user", "ann"], &["  No route is for it: nothing happens.\n"]),
        (secret, &["auth"], &["  It brings a token, which says who its client is.\n"]),
        ("", &["auth", "--user", "ann"], &["  CAUTION: no client is a user here: ", "  No route is for it"]),
        (
            staff,
            &["a", "--namespace", "/staff"],
            &["  This client may not be in /staff: no [[permissions]] let it in.\n"],
        ),
        (
            "[socketio]\nenabled = false\n",
            &["a", "--namespace", "/b"],
            &["  No client can be in /b: socketio.enabled is false.\n"],
        ),
        (
            rooms,
            &["bid", "--data", r#"{"n":7}"#],
            &[
                "  Published to members of auction:7, members of log (not its client): \"update\" {\"n\":7}\n  \
                 [[rooms]] \"auction:*\" for auction:7: conflate, changes, batch, but not of this: it has `except`, or is not for one room alone.\n",
                "\"end\" {\"n\":7}\n  [[rooms]] \"auction:*\" for auction:7: urgent.\n",
                "  [[rooms]] \"auction:*\" for auction:1: conflate, batch, but not of this: it has `except`, or is not for one room alone.\n",
            ],
        ),
        (
            limit,
            &["publish", "--data", r#"{"room":"a","event":"bid"}"#],
            &[
                "  Each connection may send 5 events \"bid\" in 60 s; ",
                "  Published to members of a (not its client): \"bid\" null\n",
            ],
        ),
        (
            "",
            &["presence", "--data", r#"{"room":"a","who":true}"#],
            &[
                "  It is refused (not_member) unless its client is in a.\n",
                "  It is acknowledged with who is in a\n",
            ],
        ),
    ] {
        let text = tried(file, words);
        for line in lines {
            assert!(text.contains(line), "{line}is not in\n{text}");
        }
    }
    let text = tried(&required, &["join", "--data", r#"{"room":"a"}"#]);
    assert_eq!(text.lines().count(), 2, "nothing more is said: {text}");
    let many: Vec<String> = (0..1100).map(|n| format!("\"{n}\"")).collect();
    let data = format!("{{\"rooms\":[{}]}}", many.join(","));
    let route = "[[routes]]\non = \"enter\"\njoin = \"{rooms_}\"\n";
    let text = tried(route, &["enter", "--data", &data.replace("rooms", "rooms_")]);
    assert!(text.contains("It is refused (bad_room): `rooms_` names more than 1024 rooms."), "{text}");
    let text = tried("", &["join", "--data", &data]);
    assert!(
        text.contains("It is refused (too_many_rooms): a connection is in at most 1024 rooms."),
        "{text}"
    );
}

#[test]
fn what_does_not_come_into_play_is_cautioned_about() {
    let routes = "[[routes]]\non = \"a\"\nwho = \"user\"\nack = true\n\
                  [[routes]]\non = \"a\"\nack = true\n\
                  [[routes]]\non = \"a\"\nnamespace = \"/b\"\nwho = \"role:c\"\nack = true\n";
    let rooms = "[[rooms]]\nname = \"a*\"\nbatch_max = 2\n[[rooms]]\nname = \"ab*\"\nbatch_max = 2\n\
                 [[rooms]]\nname = \"b\"\n[[rooms]]\nname = \"b*\"\ndedupe = \"id\"\n[[rooms]]\nname = \"c\"\n";
    let state = "[[rooms]]\nname = \"a:*\"\nchanges = \"b\"\n[[permissions]]\nrooms = \"*\"\nallow = [\"join\"]\n[[routes]]\non = \"b\"\n";
    let past = "CAUTION: what the route for \"b\" publishes to a:{id} is not in its state: ";
    let open = "CAUTION: there are no [[permissions]] about rooms: native clients, at /ws, join and publish as they like";
    let tells = "[[routes]]\non = \"a\"\npublish = { room = \"b\" }\n";
    for (file, cautions) in [
        (
            routes.to_owned(),
            &["CAUTION: [[routes]] number 3, for \"a\", never counts: number 1 has all of its events."][..],
        ),
        (
            rooms.to_owned(),
            &[
                "CAUTION: [[rooms]] number 2, for ab*, never counts: number 1 has all of its rooms.",
                "CAUTION: [[rooms]] number 5, for c, does nothing.",
            ],
        ),
        (format!("{state}publish = {{ room = \"a:{{id}}\", except = \"c\" }}\n"), &[past]),
        (format!("{state}publish = {{ room = \"a:{{id}}\", all = true }}\n"), &[past]),
        (format!("{state}publish = {{ rooms = [\"a:{{id}}\", \"c\"] }}\n"), &[]),
        (tells.to_owned(), &[&format!("{open}, whatever the routes say.")]),
        (format!("{tells}[native]\npath = \"\"\n"), &[]),
        (format!("{tells}[[permissions]]\nrooms = \"b\"\nallow = [\"join\"]\n"), &[]),
        (
            format!(
                "{tells}[[routes]]\non = \"join\"\nrefuse = \"no\"\n[[routes]]\non = \"publish\"\nrefuse = \"no\"\n"
            ),
            &[],
        ),
        ("[auth]\nsecret = \"a secret of thirty-two bytes or so\"\n".to_owned(), &[&format!("{open}.")]),
        ("[[routes]]\non = \"a\"\nack = true\n".to_owned(), &[]),
    ] {
        let text = right(&file, &[], "").explain();
        let said: Vec<&str> =
            text.lines().map(str::trim).filter(|line| line.starts_with("CAUTION")).collect();
        assert!(
            said.len() == cautions.len()
                && said.iter().zip(cautions).all(|(said, caution)| said.starts_with(caution)),
            "{cautions:#?} is not\n{said:#?}"
        );
    }
}

#[test]
fn there_may_be_a_thousand_routes() {
    let table = "[[routes]]\non = \"a\"\nack = true\n";
    let routes = right(&table.repeat(1000), &[], "").routes;
    assert_eq!(routes.iter().count(), 1004);
    check_problem(
        &wrong(&table.repeat(1001), &[], ""),
        "throng.toml:3001: routes: a list of 1001 tables is wrong, it takes at most 1000",
    );
}

#[test]
fn limits_on_events_are_read() {
    let file = "\
        [limits]\nconnections_max = 7\n\
        [[limits.events]]\nevent = \"bid\"\nper = \"user\"\ncount = 5\nwindow_ms = 60_000\n\
        [[limits.events]]\nevent = \"*\"\nper = \"ip\"\ncount = 100\nwindow_ms = \"1s\"\nover = \"drop\"\n\
        [[limits.events]]\nevent = \"join\"\nnamespace = \"/guild/*\"\nper = \"connection\"\ncount = 1\n\
        window_ms = 100\nover = \"close\"\n\
        [[limits.events]]\nevent = \"*\"\nper = \"user\"\nbytes = \"64KiB\"\nwindow_ms = 1000\n\
        [log]\nlevel = \"warn\"\n";
    let config = right(file, &[], "");
    let limit = |event: Option<&str>, per, count, window_ms, over| EventLimit {
        event: event.map(str::to_owned),
        namespace: None,
        per,
        most: count,
        unit: Unit::Events,
        window_ms,
        over,
    };
    let namespace = Pattern::parse("/guild/*");
    let expected = [
        limit(Some("bid"), Per::User, 5, 60_000, Over::Error),
        limit(None, Per::Ip, 100, 1000, Over::Drop),
        EventLimit { namespace, ..limit(Some("join"), Per::Connection, 1, 100, Over::Close) },
        EventLimit { unit: Unit::Bytes, ..limit(None, Per::User, 65_536, 1000, Over::Error) },
    ];
    assert!(config.event_limits.iter().eq(&expected), "{:?}", config.event_limits);
    assert_eq!((config.limits.connections_max, config.log.level), (7, LogLevel::Warn));
    let text = config.explain();
    for line in [
        "  [[limits.events]], 4 in all  throng.toml:3\n",
        "  Each user may send 64 KiB of events of all kinds together in 1 s; who sends more is told so.\n",
        "  Each user may send 5 events \"bid\" in 60 s; who sends more is told so.\n",
        "  Each address may send 100 events of all kinds together in 1 s; \
         who sends more is told so only if it asked for an answer.\n",
        "  Each connection may send 1 events \"join\" in /guild/* in 100 ms; who sends more is closed with 1008.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
}

#[test]
fn a_wrong_limit_on_events_names_its_key_its_line_and_what_is_allowed() {
    let event = "the name of an event, but not one that Socket.IO reserves, like \"connect\", or \"*\" for all events";
    let rest = "event = \"a\"\nper = \"ip\"\ncount = 1\nwindow_ms = 1000\n";
    for (table, problem) in [
        (rest.replace("event = \"a\"\n", ""), format!("2: limits.events.event is missing, it takes {event}")),
        (
            rest.replace("\"a\"", "\"connect\""),
            format!("3: limits.events.event: \"connect\" is wrong, it takes {event}"),
        ),
        (
            rest.replace("\"ip\"", "\"room\""),
            "4: limits.events.per: \"room\" is wrong, it takes \"connection\", \"ip\" or \"user\"".to_owned(),
        ),
        (
            rest.replace("count = 1\n", "count = 0\n"),
            "5: limits.events.count: 0 is wrong, it takes a whole number from 1 to 1000000000".to_owned(),
        ),
        (
            rest.replace("count = 1\n", "count = 1\nbytes = 1\n"),
            "5: limits.events.count: what was given is wrong, it takes nothing where there is `bytes`: for both there are two tables".to_owned(),
        ),
        (
            rest.replace("count = 1\n", "bytes = \"2GiB\"\n"),
            "5: limits.events.bytes: \"2GiB\" is wrong, it takes a size from 1 byte to 1 GiB, in bytes or like \"64KiB\"".to_owned(),
        ),
        (
            rest.replace("window_ms = 1000\n", ""),
            "2: limits.events.window_ms is missing, it takes a time from 100 to 86400000 ms, \
             as a number or like \"25s\""
                .to_owned(),
        ),
        (
            rest.to_owned() + "over = \"shout\"\n",
            "7: limits.events.over: \"shout\" is wrong, it takes \"error\", \"drop\" or \"close\"".to_owned(),
        ),
        (
            rest.to_owned() + "window = 1\n",
            "7: limits.events.window: there is no such setting; did you mean limits.events.window_ms?"
                .to_owned(),
        ),
    ] {
        let problems = wrong(&format!("\n[[limits.events]]\n{table}"), &[], "");
        check_problem(&problems, &format!("throng.toml:{problem}"));
    }
    check_problem(
        &wrong("[limits]\nevents = 1\n", &[], ""),
        "throng.toml:2: limits.events: 1 is wrong, it takes a list of tables, [[limits.events]]",
    );
    check_problem(
        &wrong(&format!("[[limits.events]]\n{rest}").repeat(501), &[], ""),
        "throng.toml:2501: limits.events: a list of 501 tables is wrong, it takes at most 500",
    );
}

#[test]
fn namespaces_are_allowed_by_tables_and_by_the_list() {
    let file = "\
        [socketio]\nnamespaces = [\"/\", \"/guild/*\", \"/team/*\"]\n\
        [[namespaces]]\nname = \"/guild/*\"\nconnections_max = 500\nnamespaces_max = 1_000\n\
        [[namespaces]]\nname = \"/guild/7\"\n\
        [[namespaces]]\nname = \"/quiz\"\nconnections_max = 0\n";
    let config = right(file, &[], "");
    let limits = |namespace| {
        let (place, allowance) = config.socketio.namespaces.find(namespace)?;
        Some((place, allowance.connections_max, allowance.namespaces_max))
    };
    for (namespace, expected) in [
        ("/guild/7", Some((0, Some(500), Some(1000)))),
        ("/quiz", Some((2, Some(0), None))),
        ("/", Some((3, None, None))),
        ("/team/7", Some((4, None, None))),
        ("/nope", None),
    ] {
        assert_eq!(limits(namespace), expected, "{namespace}");
    }
    let text = config.explain();
    for line in [
        "  [[namespaces]], 3 in all                            throng.toml:3\n",
        "; its namespaces: /guild/*, /guild/7, /quiz, / and 1 more.\n",
        "  Namespaces /guild/*: at most 500 connections in one, at most 1000 of them.\n",
        "  Namespaces /quiz: any number of connections in one.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
    let inline = right("namespaces = [{ name = \"/a\" }]\n", &[], "--set socketio.namespaces=/b");
    assert_eq!(inline.socketio.namespaces, namespaces(&["/a", "/b"]), "written in another way");
    assert!(right("namespaces = []\n", &[], "").changed.is_empty());
}

#[test]
fn a_namespace_may_have_an_encoding_and_is_explained() {
    let file = "\
        [[namespaces]]\nname = \"/guild/*\"\nencoding = \"base64\"\n\
        [[namespaces]]\nname = \"/packed\"\nconnections_max = 1\nencoding = \"msgpack\"\n\
        [[namespaces]]\nname = \"/json\"\nencoding = \"json\"\n\
        [plain]\npath = \"/app\"\n";
    let config = right(file, &[], "");
    let found = |namespace| config.socketio.namespaces.coding(namespace);
    assert_eq!((found("/guild/7"), found("/packed")), (Coding::Base64, Coding::Msgpack));
    assert_eq!((found("/json"), found("/"), found("/nowhere")), (Coding::Json, Coding::Json, Coding::Json));
    let text = config.explain();
    for line in [
        "  Namespaces /guild/*: what events carry travels as JSON in base64.\n",
        "  Namespaces /packed: at most 1 connections in one, what events carry travels as MessagePack.\n",
        "  At /app they send plain JSON: the type of a message is the name of an event of namespace /.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
    check_problem(
        &wrong("[[namespaces]]\nname = \"/a\"\nencoding = \"xml\"\n", &[], ""),
        "throng.toml:3: namespaces.encoding: \"xml\" is wrong, it takes \"json\", \"msgpack\" or \"base64\"",
    );
}

#[test]
fn a_wrong_namespace_names_its_key_its_line_and_what_is_allowed() {
    let name = "a namespace, like \"/\" or \"/chat\", where \"*\" stands for any one segment";
    let connections = "a whole number from 0 to 16000000";
    let namespaces = "a whole number from 1 to 10000000";
    for (table, problem) in [
        ("connections_max = 1\n", format!("2: namespaces.name is missing, it takes {name}")),
        ("name = \"guild\"\n", format!("3: namespaces.name: \"guild\" is wrong, it takes {name}")),
        ("name = [\"/\"]\n", format!("3: namespaces.name: [\"/\"] is wrong, it takes {name}")),
        (
            "name = \"/a\"\nconnections_max = -1\n",
            format!("4: namespaces.connections_max: -1 is wrong, it takes {connections}"),
        ),
        (
            "name = \"/a\"\nconnections_max = \"9\"\n",
            format!("4: namespaces.connections_max: \"9\" is wrong, it takes {connections}"),
        ),
        (
            "name = \"/a\"\nconnections_max = 16000001\n",
            format!("4: namespaces.connections_max: 16000001 is wrong, it takes {connections}"),
        ),
        (
            "name = \"/a\"\nnamespaces_max = 0\n",
            format!("4: namespaces.namespaces_max: 0 is wrong, it takes {namespaces}"),
        ),
        (
            "name = \"/a\"\nconnections = 1\n",
            "4: namespaces.connections: there is no such setting; did you mean namespaces.connections_max?"
                .to_owned(),
        ),
        (
            "name = \"/a\"\n\n[[namespaces]]\nname = \"/a\"\n",
            "6: namespaces.name: \"/a\" is wrong, it takes a namespace that no [[namespaces]] before this one has"
                .to_owned(),
        ),
    ] {
        let file = format!("\n[[namespaces]]\n{table}");
        check_problem(&wrong(&file, &[], ""), &format!("throng.toml:{problem}"));
    }
    check_problem(
        &wrong("[namespaces]\nname = \"/\"\n", &[], ""),
        "throng.toml:1: namespaces: a table is wrong, it takes a list of tables, [[namespaces]]",
    );
    check_problem(
        &wrong("[[namespace]]\n", &[], ""),
        "throng.toml:1: namespace: there is no such setting; did you mean socketio.namespaces?",
    );
    check_problem(
        &wrong("", &[("THRONG_NAMESPACES", "[]")], ""),
        "THRONG_NAMESPACES: there is no such setting; did you mean [[namespaces]]?",
    );
}

#[test]
fn keys_of_the_api_are_read_and_never_shown() {
    let digest = "0123456789abcdefABCDEF0000000000".repeat(2);
    let file = format!(
        "[api]\nkey = \"the-first-secret\"\nbatch_max = 7\n\
         [[api.keys]]\nname = \"shop\"\nkey = \"another-secret-1\"\nscopes = [\"publish\"]\n\
         [[api.keys]]\nname = \"eyes\"\nsha256 = \"{digest}\"\nscopes = [\"read\", \"admin\"]\n"
    );
    let config = right(&file, &[], "");
    assert_eq!((config.api.key.as_str(), config.api.batch_max), ("the-first-secret", 7));
    let KeySecret::Sha256(bytes) = config.api_keys[1].secret else { panic!("a digest") };
    assert_eq!((bytes[0], bytes[7], bytes[8]), (0x01, 0xef, 0xab));
    let scopes: Vec<_> =
        config.api_keys.iter().map(|key| (key.name.as_str(), key.scopes.as_slice())).collect();
    assert_eq!(scopes, [("shop", &["publish"][..]), ("eyes", &["read", "admin"][..])]);
    let text = config.explain();
    assert!(text.contains("  [[api.keys]], 2 in all "), "{text}");
    assert!(text.contains("  Keys that open the HTTP API on the control port: 3.\n"), "{text}");
    let shown = format!("{text}{:?}", config.api_keys);
    assert!(!shown.contains("secret-") && !shown.contains("first-secret"), "{shown}");
    assert_eq!(right("", &[("THRONG_API_KEY", "0123456789abcdefg")], "").api.key, "0123456789abcdefg");
}

#[test]
fn a_wrong_key_of_the_api_names_its_line_and_is_not_shown() {
    let key = "a text of 16 to 256 letters, digits and -._~+/=";
    let name = "a text of 1 to 64 letters without spaces, which no [[api.keys]] before this one has";
    let scopes = "a list of at least one of \"publish\", \"read\", \"admin\"";
    let good = "name = \"a\"\nkey = \"0123456789abcdef\"\nscopes = [\"read\"]\n";
    for (table, problem) in [
        (good.replace("name = \"a\"", ""), format!("2: api.keys.name is missing, it takes {name}")),
        (good.replace("\"a\"", "\"a b\""), format!("3: api.keys.name: \"a b\" is wrong, it takes {name}")),
        (good.replace("abcdef", ""), format!("4: api.keys.key: what was given is wrong, it takes {key}")),
        (good.replace("key = \"0123456789abcdef\"", ""), format!("2: api.keys.key is missing, it takes {key}; or sha256 in its place")),
        (
            good.replace("key =", "sha256 ="),
            "4: api.keys.sha256: what was given is wrong, it takes the SHA-256 of a key, in 64 hexadecimal digits".to_owned(),
        ),
        (good.replace("scopes = [\"read\"]", ""), format!("2: api.keys.scopes is missing, it takes {scopes}")),
        (good.replace("[\"read\"]", "[]"), format!("5: api.keys.scopes: [] is wrong, it takes {scopes}")),
        (good.replace("[\"read\"]", "[\"write\"]"), format!("5: api.keys.scopes: [\"write\"] is wrong, it takes {scopes}")),
        (format!("{good}scope = 1\n"), "6: api.keys.scope: there is no such setting; did you mean api.keys.scopes?".to_owned()),
        (format!("{good}[[api.keys]]\n{good}"), format!("7: api.keys.name: \"a\" is wrong, it takes {name}")),
    ] {
        check_problem(&wrong(&format!("\n[[api.keys]]\n{table}"), &[], ""), &format!("throng.toml:{problem}"));
    }
    let problems = wrong("", &[("THRONG_API_KEY", "short")], "");
    check_problem(
        &problems,
        &format!("THRONG_API_KEY: api.key: what was given is wrong, it takes {key}, or \"\""),
    );
}

#[test]
fn there_may_be_two_hundred_patterns_in_all() {
    let tables = |count| (0..count).map(|n| format!("[[namespaces]]\nname = \"/{n}\"\n")).collect::<String>();
    // With the one that is there by default.
    assert_eq!(right(&tables(199), &[], "").socketio.namespaces.iter().len(), 200);
    check_problem(
        &wrong(&tables(200), &[], ""),
        "throng.toml:1: namespaces: 201 in all with those of socketio.namespaces is wrong, it takes at most 200",
    );
    right(&tables(200), &[], "--set socketio.namespaces=/0");
    check_problem(
        &wrong(&tables(201), &[], "--set socketio.namespaces=/0"),
        "throng.toml:401: namespaces: a list of 201 tables is wrong, it takes at most 200",
    );
    let list = (0..201).map(|n| format!("/{n}")).collect::<Vec<_>>().join(",");
    let problems = wrong("", &[("THRONG_SOCKETIO_NAMESPACES", &list)], "");
    let start = "THRONG_SOCKETIO_NAMESPACES: socketio.namespaces: a list of 201 is wrong, it takes ";
    assert!(shown(&problems).starts_with(start), "{}", shown(&problems));
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
    let file = "[limits]\nconnections_max = 50_000\nmessages_per_second_max = 20\nrefuse_with = \"status\"\n";
    let config = right(file, &[("THRONG_CONTROL", "0.0.0.0:9000")], "--set limits.trusted_proxies=0.0.0.0/0");
    let text = config.explain();
    for line in [
        "  server.control = \"0.0.0.0:9000\"         THRONG_CONTROL\n",
        "  limits.connections_max = 50000          throng.toml:2\n",
        "  limits.trusted_proxies = [\"0.0.0.0/0\"]  --set\n",
        "  At most 50000 connections; ",
        "  A connection may send 20 messages a second, and 20 at once.\n",
        "  Who sends more is told so.\n",
        "  Limits that are off: connections_per_ip_max, connections_per_user_max, accepts_per_second_max, handshakes_per_ip_max, bytes_per_second_max, origins.\n",
        "  For a slow connection 4 MiB may wait, for all of them 1 GiB; then it is disconnected.\n",
        "CAUTION, whoever reaches that port sees what the server does.\n",
        "  CAUTION: every client is a trusted proxy and can claim any address.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
    assert!(!text.contains("refuse_with"), "what is said as it is by default is not away from it\n{text}");
    assert!(text.lines().count() <= 40);
}

#[test]
fn an_explanation_says_what_lies_below_http() {
    let file = "[tls]\ncertificate_file = \"chain.pem\"\nkey_file = \"key.pem\"\n\
                [limits]\nproxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]\n";
    let text = right(file, &[], "--set tls.version_min=1.3").explain();
    for line in [
        "  They speak TLS 1.3 or later, with the certificate in chain.pem.\n",
        "  Proxies that are believed about their clients: 10.0.0.0/8.\n",
        "  All connections come from those, and begin with a PROXY header that says whose they are.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
}

#[test]
fn an_explanation_says_what_socket_io_clients_may_do() {
    let file = "\
        [socketio]\nnamespaces = [\"/\", \"/guild/*\"]\ncors_origins = [\"https://a.example\"]\n\
        cors_credentials = true\nconnections_per_namespace_max = 7\nconnect_event = \"auth\"\n\
        [[routes]]\nnamespace = \"/guild/*\"\non = \"join\"\ndo = \"join\"\nroom = \"guild\"\n\
        [[routes]]\non = \"hello\"\nreply = \"welcome\"\n\
        [[routes]]\non = \"ping\"\nack = true\n";
    let text = right(file, &[], "--set engineio.echo_path=/engine.io/").explain();
    for line in [
        "  [[routes]], 3 in all                           throng.toml:7\n",
        "  Socket.IO is at /socket.io/; its namespaces: /, /guild/*.\n",
        "  A Socket.IO client has 45 s to join a namespace, may be in 16, and has 10 s to change to WebSocket.\n",
        "  At most 7 connections in one namespace.\n",
        "  Pages of https://a.example may use long-polling, with credentials.\n",
        "  A client that has joined a namespace is sent \"auth\" with what it came with.\n",
        "  On \"join\" in /guild/* a client joins the room in field \"guild\".\n",
        "  On \"hello\" a client gets \"welcome\" with the same arguments.\n",
        "  On \"ping\" a client gets an acknowledgement with the same arguments.\n",
        "  On \"leave\" a client leaves the room in field \"room\" or \"rooms\".\n",
        "  On \"publish\" a client publishes field \"data\" to the room in field \"room\" or \"rooms\", \
         as the event in field \"event\".\n",
        "  Engine.IO messages come back as they are, at /engine.io/.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
    let said = |line: &str| right("", &[], line).explain();
    assert!(
        said("").contains("  Pages of other origins cannot use long-polling: there are no CORS headers.\n")
    );
    assert!(said("--set socketio.cors_origins=*").contains("  Pages of any origin may use long-polling.\n"));
    let off = said("--set socketio.enabled=false");
    assert!(off.contains("  Socket.IO is off.\n") && !off.contains("namespace"), "{off}");
}

#[test]
fn the_example_says_every_default_once() {
    let text = include_str!("../../examples/throng.toml");
    let said = Said::gather(&Args::default(), Some(("throng.toml", text)), &[]);
    let mut keys: Vec<(Source, &str)> =
        said.statements.iter().map(|said| (said.source.clone(), SETTINGS[said.setting].key)).collect();
    keys.sort();
    assert!(keys.iter().map(|(_, key)| *key).eq(SETTINGS.iter().map(|setting| setting.key)), "{keys:?}");
    let config = said.meaning().unwrap_or_else(|problems| panic!("{}", shown(&problems)));
    assert!(config.changed.is_empty(), "{:?}", config.changed);
}

#[test]
fn the_example_for_compliance_is_what_the_suites_ask_for() {
    let config = right(include_str!("../../examples/socketio-compliance.toml"), &[], "");
    assert_eq!((config.server.listen.port(), config.server.control), (3000, None));
    assert_eq!(config.limits.message_bytes_max, 1_000_000);
    assert_eq!(config.heartbeat, Heartbeat { ping_interval_ms: 300, ping_timeout_ms: 200 });
    let SocketIo { path, cors_origins, connect_timeout_ms, namespaces: allowed, connect_event, .. } =
        &config.socketio;
    assert_eq!((path.as_str(), connect_event.as_str(), *connect_timeout_ms), ("/socket.io/", "auth", 1000));
    assert_eq!((cors_origins.as_slice(), allowed), (&["*".to_owned()][..], &namespaces(&["/", "/custom"])));
    assert_eq!(config.engineio.echo_path, "/engine.io/");
    for namespace in ["/", "/custom"] {
        assert_eq!(does(&config.routes, namespace, "message"), Some(&Does::reply("message-back")));
        assert_eq!(does(&config.routes, namespace, "message-with-ack"), Some(&Does::ack()));
    }
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
    let text = include_str!("../../docs/configuration.md");
    let example = block(text, "\n## An example\n");
    assert_eq!(right(example, &[], "").explain(), block(text, "\n## What a file means\n"));
    let problems = wrong(block(text, "\n## When something is wrong\n"), &[("THRONG_SHARD", "4")], "");
    assert_eq!(shown(&problems), block(text, "\nis answered with\n"));
}

#[test]
fn the_documentation_lists_the_table() {
    let text = include_str!("../../docs/configuration.md");
    let row = |setting: &Setting| {
        let Setting { key, kind, reloaded, .. } = setting;
        // Two bare asterisks would be emphasis.
        let allowed = kind.allowed().replace('*', "\\*");
        let (default, reloaded) = (setting.default_value(), reloaded.words());
        format!("| `{key}` | `{default}` | {allowed} | {reloaded} | {} |", setting.help())
    };
    let listed: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| `") && line.contains('.')).collect();
    let rows: Vec<String> = SETTINGS.iter().map(row).collect();
    assert!(listed == rows, "docs/configuration.md should list\n\n{}\n", rows.join("\n"));
}

#[test]
fn keys_and_permissions_are_read_from_their_tables() {
    let file = "[auth]\nrequired = true\n[[auth.keys]]\nkid = \"new\"\nalgorithm = \"ES256\"\nfile = \"new.pem\"\n\
                [[auth.keys]]\nalgorithm = \"HS384\"\nuntil = 2027-01-31T12:00:00Z\n\
                secret = \"forty-eight bytes are what HS384 needs as a secret\"\n\
                [[permissions]]\nrooms = \"auction:*\"\nallow = [\"join\"]\n\
                [[permissions]]\nnamespace = \"/guild/*\"\nrooms = \"user:{user}\"\nwho = \"role:admin\"\n\
                allow = [\"publish\", \"presence\"]\n";
    let config = right(file, &[], "");
    assert!(config.keys[0].place == Place::File("new.pem".into()));
    assert_eq!((config.keys[1].algorithm, config.keys[1].until_s), (Algorithm::Hs384, Some(1_801_396_800)));
    assert_eq!(config.permissions.iter().count(), 2);
    let text = config.explain();
    for line in [
        "  [[auth.keys]], 2 in all    throng.toml:3\n",
        "  Clients must bring a token, by one of these keys: ES256 \"new\" of new.pem, HS384 until 1801396800 s after 1970.\n",
        "  Anyone may do this with rooms auction:*: join.\n",
        "  Who has the role \"admin\" may do this with rooms user:{user} in /guild/*: publish, presence.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
    assert!(!text.contains("forty-eight"), "{text}");
}

#[test]
fn rooms_are_read_from_their_tables_and_explained() {
    let file = "[[rooms]]\nname = \"auction:*\"\nnamespace = \"/guild/*\"\nwindow_ms = \"50ms\"\nbatch_max = 10\nbatch_lone = true\nurgent = [\"end\"]\n\
                conflate = \"a.id\"\nchanges = \"update\"\nchanges_always = [\"id\"]\ndedupe = \"id\"\nburst_bytes = \"64KiB\"\nburst = \"disconnect\"\n\
                [[rooms]]\nname = \"*\"\nmerge_event = \"both\"\nmerge = { a = \"fieldA\", b = \"fieldB\" }\nburst_bytes = 1\n";
    let config = right(file, &[], "");
    let [first, second] = &config.rooms[..] else { panic!("two") };
    let batch = first.batch.as_ref().expect("it batches");
    assert_eq!((first.window_ms, batch.most, &*batch.event, batch.data_only), (50, 10, "batch", false));
    assert_eq!((second.window_ms, second.batch.is_none()), (100, true));
    assert_eq!(second.merge.as_ref().and_then(|merge| merge.field("b")).map(|it| &**it), Some("fieldB"));
    let text = config.explain();
    for line in [
        "  [[rooms]], 2 in all  throng.toml:1\n",
        "  In rooms auction:* in /guild/*: an event with a \"id\" that was there within 60 s is left out; events wait up to 50 ms, or until there are 10, but not end; \
         of those that wait only the latest with each \"a.id\" leaves; of \"update\" only what has changed is sent, and always id; who joins gets the whole; \
         what leaves is one message, \"batch\" for Socket.IO clients; when 64 KiB or more wait for a slow client, it is disconnected.\n",
        "  In rooms *: events wait up to 100 ms; what leaves together is one event \"both\": a as fieldA, b as fieldB; \
         when 1 byte or more wait for a slow client, they are dropped.\n",
    ] {
        assert!(text.contains(line), "{line}is not in\n{text}");
    }
    let one = right("[[rooms]]\nname = \"a\"\nbatch_max = 1\n", &[], "");
    assert!(one.rooms[0].batch.is_none() && !one.rooms[0].has_home());
}

#[test]
fn a_wrong_room_is_told() {
    let names = "names of rooms, like \"auction:*\", with at most 4 stars";
    for (table, problem) in [
        ("batch_max = 2", format!("1: rooms.name is missing, it takes {names}")),
        ("name = \"{user}\"", format!("2: rooms.name: \"{{user}}\" is wrong, it takes {names}")),
        ("name = \"a\"\nbatch_max = 0", "3: rooms.batch_max: 0 is wrong, it takes a whole number from 1 to 10000".to_owned()),
        ("name = \"a\"\nbatch_max = 2\nbatch_lone = 1", "4: rooms.batch_lone: 1 is wrong, it takes true or false".to_owned()),
        ("name = \"a\"\nbatch_event = \"b\"", "3: rooms.batch_event: what was given is wrong, it takes nothing where there is no `batch_max`".to_owned()),
        ("name = \"a\"\nwindow_ms = 7", "3: rooms.window_ms: what was given is wrong, it takes nothing where nothing waits: without `batch_max`, `conflate` and `merge`".to_owned()),
        ("name = \"a\"\nconflate = \"a..b\"", "3: rooms.conflate: \"a..b\" is wrong, it takes a field of the payload, like \"id\" or \"bid.id\", of at most 8 names".to_owned()),
        ("name = \"a\"\nchanges = \"connect\"", "3: rooms.changes: \"connect\" is wrong, it takes the name of an event, but not one that Socket.IO reserves, like \"connect\"".to_owned()),
        ("name = \"a\"\nmerge_event = \"b\"", "3: rooms.merge_event: what was given is wrong, it takes nothing where there is no `merge`".to_owned()),
        ("name = \"a\"\nburst_bytes = 1\nburst = \"wait\"", "4: rooms.burst: \"wait\" is wrong, it takes \"drop\" or \"disconnect\"".to_owned()),
        ("name = \"a\"\nchanges = \"b\"\nburst_bytes = 1", "4: rooms.burst_bytes: what was given is wrong, it takes nothing beside `changes`, but with burst = \"disconnect\": who lacks one change makes nothing right of the next".to_owned()),
        ("name = \"a\"\nbatches = 1", "3: rooms.batches: there is no such setting".to_owned()),
        ("name = \"a\"\nbatch_max = 2\nmerge_event = \"b\"\nmerge = { a = \"b\" }", "5: rooms.merge: what was given is wrong, it takes nothing where there is `batch_max`: what waits becomes one or the other".to_owned()),
    ] {
        let problems = shown(&wrong(&format!("[[rooms]]\n{table}\n"), &[], ""));
        assert!(problems.contains(&format!("throng.toml:{problem}")), "{problem}\nis not in\n{problems}");
    }
    for merge in ["7", "{}", "{ a = 1 }", "{ a = \"x\", b = \"x\" }", "{ connect = \"x\" }"] {
        let file = format!("[[rooms]]\nname = \"a\"\nmerge_event = \"b\"\nmerge = {merge}\n");
        let problems = shown(&wrong(&file, &[], ""));
        assert!(problems.contains("throng.toml:4: rooms.merge: "), "{merge}: {problems}");
    }
}

#[test]
fn a_wrong_key_or_permission_is_told_without_its_secret() {
    let key = |table: &str| format!("[[auth.keys]]\n{table}");
    let permission = |table: &str| format!("[[permissions]]\n{table}");
    let rooms = "names of rooms, like \"auction:*\" or \"user:{user}\", with at most 4 stars";
    for (file, problem) in [
        (
            key("kid = \"a\"\n"),
            "1: auth.keys.algorithm is missing, it takes \"HS256\", \"HS384\", \"HS512\", \"RS256\", \"ES256\" or \"EdDSA\"".to_owned(),
        ),
        (
            key("algorithm = \"HS256\"\nsecret = \"hidden\"\n"),
            "3: auth.keys.secret: what was given is wrong, it takes a text of at least 32 bytes for HS256".to_owned(),
        ),
        (
            key("algorithm = \"ES256\"\nsecret = \"hidden\"\n"),
            "3: auth.keys.secret: what was given is wrong, it takes nothing where algorithm = \"ES256\"".to_owned(),
        ),
        (
            key("algorithm = \"EdDSA\"\n"),
            "1: auth.keys.file is missing, it takes the path of a file with the public key in PEM".to_owned(),
        ),
        (
            key("algorithm = \"EdDSA\"\nfile = \"a\"\nuntil = 12:00:00\n"),
            "4: auth.keys.until: 12:00:00 is wrong, it takes a date, like 2027-01-31 or 2027-01-31T12:00:00Z, which without an offset is of UTC".to_owned(),
        ),
        ("[auth]\nsecret = \"hidden\"\n".to_owned(), "2: auth.secret: what was given is wrong, it takes a text of at least 32 bytes, or \"\"".to_owned()),
        ("[auth]\nsecret = 123456\n".to_owned(), "2: auth.secret: what was given is wrong, it takes a text of at least 32 bytes, or \"\"".to_owned()),
        (permission("allow = [\"join\"]\n"), format!("1: permissions.rooms is missing, it takes {rooms}")),
        (permission("rooms = \"*****\"\nallow = [\"join\"]\n"), format!("2: permissions.rooms: \"*****\" is wrong, it takes {rooms}")),
        (
            permission("rooms = \"a\"\nallow = [\"fly\"]\n"),
            "3: permissions.allow: [\"fly\"] is wrong, it takes a list of \"join\", \"publish\", \"presence\" and \"connect\"".to_owned(),
        ),
        (
            permission("rooms = \"a\"\nallow = [\"connect\"]\n"),
            "2: permissions.rooms: what was given is wrong, it takes nothing where `allow` is \"connect\" alone".to_owned(),
        ),
        (
            permission("rooms = \"a\"\n"),
            "1: permissions.allow is missing, it takes a list of \"join\", \"publish\", \"presence\" and \"connect\"".to_owned(),
        ),
        (
            permission("rooms = \"a\"\nallow = [\"join\"]\nwho = \"me\"\n"),
            "4: permissions.who: \"me\" is wrong, it takes \"anyone\", \"user\" or \"role:NAME\"".to_owned(),
        ),
        (
            "[auth]\nrequired = true\n".to_owned(),
            "2: auth.required = true (throng.toml:2) must be false unless there is a key (auth.secret, auth.jwks or [[auth.keys]]) or auth.callout, and auth.secret = \"\" (default)".to_owned(),
        ),
    ] {
        let problems = shown(&wrong(&file, &[], ""));
        assert!(problems.contains(&format!("throng.toml:{problem}\n")), "{problem}\nis not in\n{problems}");
        assert!(!problems.contains("hidden") && !problems.contains("123456"), "{problems}");
    }
    let short = shown(&wrong("", &[("THRONG_AUTH_SECRET", "hidden")], ""));
    assert!(short.contains("THRONG_AUTH_SECRET") && !short.contains("hidden"), "{short}");
    let said = right("", &[("THRONG_AUTH_SECRET", "a secret of thirty-two bytes, ok")], "").explain();
    assert!(said.contains("auth.secret = \"***\"") && !said.contains("thirty"), "{said}");
}

#[test]
fn webhooks_are_chosen_and_go_somewhere() {
    let url = "[backend]\nurl = \"http://127.0.0.1:3000/hooks/\"\n";
    let file = format!(
        "{url}[webhooks]\nkinds = [\"connected\", \"vacated\"]\nage_max_ms = \"1m\"\n\
         [[webhooks.events]]\nevent = \"say\"\nnamespace = \"/chat/*\"\n[[webhooks.events]]\nevent = \"*\"\n"
    );
    let config = right(&file, &[], "");
    assert!(config.has_webhooks() && !Config::default().has_webhooks());
    assert!(config.webhook_events[0].is_for(Some("/chat/1"), "say"));
    assert!(!config.webhook_events[0].is_for(None, "say") && config.webhook_events[1].is_for(None, "any"));
    let text = config.explain();
    for line in [
        "  [[webhooks.events]], 2 in all",
        "  The backend is told at http://127.0.0.1:3000/hooks/webhooks: connected, vacated, event \"say\" in /chat/*, every event; \
         up to 100000 notices or 64 MiB may wait, each for 60 s.\n",
        "  CAUTION: without backend.secret the backend cannot tell our requests from others.\n",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let redis = right(
        "redis.urls = [\"redis://r\"]\nwebhooks.to = \"stream\"\nwebhooks.kinds = [\"vacated\"]\n",
        &[],
        "",
    );
    assert!(redis.explain().contains("The stream \"throng:webhooks\" in Redis is told: vacated;"));
    for (file, problem) in [
        (
            "[webhooks]\nkinds = [\"connected\"]\n",
            "2: webhooks.kinds = [\"connected\"] (throng.toml:2) must be empty unless backend.url says where notices go, and so must \
             [[webhooks.events]], and backend.url = \"\" (default)",
        ),
        ("[webhooks]\nkinds = [\"gone\"]\n", "2: webhooks.kinds: \"gone\" is wrong, it takes a list of "),
        (
            "[webhooks]\nto = \"stream\"\n",
            "2: webhooks.to = \"stream\" (throng.toml:2) must be \"backend\" unless there is a Redis, and redis.urls = [] (default)",
        ),
        (
            "[[webhooks.events]]\nnamespace = \"/\"\n",
            "1: webhooks.events.event is missing, it takes the name of an event",
        ),
        (
            "[[webhooks.events]]\nevent = \"connect\"\n",
            "2: webhooks.events.event: \"connect\" is wrong, it takes the name of an event",
        ),
    ] {
        let problems = shown(&wrong(file, &[], ""));
        assert!(problems.contains(&format!("throng.toml:{problem}")), "{problem}\nis not in\n{problems}");
    }
}
