//! The process: what a [`Config`] becomes. Listeners, a thread for each shard, the control port, signals, and the orderly end.

mod drain;
mod reload;

pub use reload::Again;

use crate::auth::tally::Quota;
use crate::auth::{Believed, Gate, Rules};
use crate::backend::said::Bounds;
use crate::backend::{self, Webhooks, webhooks};
use crate::bridge::fault::Fault;
use crate::bridge::{self, channels, link};
use crate::bus::Bus;
use crate::bus::callouts::Callouts;
use crate::bus::calls::{self, Calls};
use crate::bus::notices::{self, Notices};
use crate::bus::outside::Outside;
use crate::bus::presence;
use crate::cluster::Limits;
use crate::config::{
    BackendFailure, Cluster, Config, ForwardedHeader, Io, KeySecret, OutboxPolicy, RedisKind, RefuseWith,
    TlsVersion, WebhooksTo,
};
use crate::control::api::{self, Api, Key, Scope};
use crate::control::{self, Control, Dump, History};
use crate::dialect::{Paths, targets};
use crate::listeners::{self, Listeners};
use crate::log::Log;
use crate::machine::{self, Descriptors};
use crate::message::ShardId;
use crate::reactor::neighbours::{Door, Neighbours};
use crate::reactor::tls::{BadFile, Files, Tls};
use crate::reactor::{self, Layers, sys};
use crate::shard::callouts::Callout;
use crate::shard::engineio::Cors;
use crate::shard::users::Access;
use crate::shard::{self, Settings, Shard};
use crate::stats::Stats;
use crate::systemd;
use crate::time::Clock;
use crate::token::keys::{Algorithm, KeyFault, KeySource, Place};
use crate::token::{self, Tokens, refresh};
use arc_swap::ArcSwap;
use drain::Drain;
use reload::Reload;
use sd_notify::NotifyState;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io, thread};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Sockets that one address may have besides its open connections, when it may have fewer of those: for handshakes and refusals.
const SOCKETS_PER_IP_TO_REFUSE: u32 = 16;
/// Connections that a shard reserves space for at the most: half a gigabyte of addresses. Beyond, the space grows by moving.
const RESERVED_MAX: usize = 4 << 20;
/// The first pause before Redis is connected to again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// How often each connection to Redis is tried, and how long nothing may be heard from it. So it is known within two seconds.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
const WATCH_PATIENCE: Duration = Duration::from_millis(1_500);
/// Why the server did not start, or did not end well.
#[derive(Debug)]
pub enum Failure {
    /// Where to listen.
    Listen(listeners::Fault),
    /// The limit on open files leaves no room for clients.
    Descriptors {
        /// The limit.
        limit: usize,
        /// What is needed before the first client.
        needed: usize,
    },
    /// The certificate or its key cannot be used.
    Tls(BadFile),
    /// A key that tokens are checked with cannot be had.
    Keys(KeyFault),
    /// The settings of Redis cannot work. That it is away is no failure.
    Redis(Fault),
    /// Threads, signals or the control port's runtime could not be had.
    System(io::Error),
    /// A shard stopped that should not have.
    Shard {
        /// Which.
        id: ShardId,
        /// Why.
        reason: String,
    },
    /// Connections were left when the time to drain was over.
    Undrained,
    /// A second signal came: the end without the order.
    Interrupted,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Listen(fault) => fault.fmt(f),
            Failure::Descriptors { limit, needed } => write!(
                f,
                "the limit on open files is {limit}, and {needed} are needed before the first client: raise it (ulimit -n, or LimitNOFILE= in a systemd unit)"
            ),
            Failure::Tls(bad) => bad.fmt(f),
            Failure::Keys(fault) => write!(f, "cannot read a key of tokens ([auth]): {fault}"),
            Failure::Redis(fault) => {
                write!(f, "cannot use Redis as redis.urls and the other settings of [redis] say: {fault}")
            }
            Failure::System(error) => write!(f, "cannot start: {error}"),
            Failure::Shard { id, reason } => write!(f, "shard {id} has stopped: {reason}"),
            Failure::Undrained => write!(f, "shards were still running when the time to drain was over"),
            Failure::Interrupted => write!(f, "interrupted while draining"),
        }
    }
}

impl std::error::Error for Failure {}

/// Runs the server until it is told to end. What becomes of it is told the service manager, if there is one. `again` reads the
/// configuration as it was read for `config`.
///
/// # Errors
/// See [`Failure`]. Nothing is served then.
pub fn run(config: &Config, log: &Log, again: Again<'_>) -> Result<(), Failure> {
    let result = serve(config, log, again);
    if let Err(failure) = &result {
        systemd::notify(&[NotifyState::Status(&failure.to_string())]);
    }
    result
}

fn serve(config: &Config, log: &Log, again: Again<'_>) -> Result<(), Failure> {
    sys::return_freed_memory();
    let clock = Clock::start();
    let cpus = sys::cpus();
    let shards = machine::shards(config, cpus.len());
    let tokens = tokens(config, clock)?;
    let rules = rules(config, shards)?;
    let layers = layers(config, shards)?;
    let Listeners { of_shards, address: listening, are_kept, control: control_listener } =
        Listeners::open(&config.server, shards).map_err(Failure::Listen)?;
    let shared = config
        .server
        .share_port
        .then(|| Neighbours::join(listening.port()))
        .transpose()
        .map_err(Failure::System)?;
    let (neighbours, door) = shared.unzip();
    if config.server.share_port && config.redis.urls.is_empty() {
        tracing::warn!(
            "server.share_port is set and redis.urls is not: each process on the port has rooms of its own"
        );
    }
    let controlling =
        control_listener.as_ref().map(TcpListener::local_addr).transpose().map_err(Failure::System)?;

    let (sockets_max, connections_max) = (rules.sockets_max, rules.connections_max);
    let gate = Arc::new(Gate::new(rules));
    let namespaces = config.socketio.namespaces.clone();
    let stats = Arc::new(Stats::by_pattern(shards, namespaces.iter().len()));
    let mut bus = Bus::new(shards, config.limits.rooms_max as usize)
        .with_namespaces(namespaces)
        .with_presence(presence_settings(config, listening))
        .with_policies(Arc::new(config.policies()));
    let outside = (!config.redis.urls.is_empty()).then(|| Arc::new(Outside::default()));
    if let Some(outside) = &outside {
        bus = bus.with_outside(outside.clone());
    }
    let callouts = config.auth.callout.then(|| {
        let callouts = Arc::new(Callouts::new(config.auth.callout_waiting_max as usize));
        (callouts, callout_settings(config))
    });
    if let Some((callouts, _)) = &callouts {
        bus = bus.with_callouts(callouts.clone());
    }
    // Routes that ask the backend may come with SIGHUP.
    if !config.backend.url.is_empty() {
        bus = bus.with_calls(Arc::new(Calls::new(calls_settings(config))));
    }
    let started_unix_ms = refresh::unix_ms();
    let notices = config.has_webhooks().then(|| {
        let origin_unix_ms = started_unix_ms.saturating_sub(clock.now().ms());
        Arc::new(Notices::new(shards, notices_settings(config, origin_unix_ms)))
    });
    if let Some(notices) = &notices {
        bus = bus.with_notices(notices.clone());
    }
    let bus = Arc::new(bus);
    let origin_us = started_unix_ms * 1_000;
    if outside.is_none() && !config.redis_channels.is_empty() {
        tracing::warn!("without a Redis, [[redis.channels]] hear nothing");
    }
    let bridge = outside
        .map(|outside| {
            bridge::spawn(bridge_settings(config), bus.clone(), outside, gate.clone(), clock, origin_us)
        })
        .transpose()
        .map_err(Failure::Redis)?;
    let process = neighbours.as_ref().map_or(0, Neighbours::tag);
    let access = Arc::new(access(config, Some(&tokens)));
    let origin_unix_ms = started_unix_ms.saturating_sub(clock.now().ms());
    let settings = Settings { process, origin_unix_ms, access, ..settings(config, shards, sockets_max) };
    // Threads are pinned only when each has a processor of its own.
    let pinned = config.server.pin && shards <= cpus.len();
    let (stopped, mut stops) = mpsc::unbounded_channel();
    let mut threads = Vec::with_capacity(shards);
    for (id, listeners) in of_shards.into_iter().enumerate() {
        if config.server.steer && pinned {
            listeners.iter().for_each(|listener| sys::prefer_cpu(listener, cpus[id]));
        }
        let shard = Shard::new(
            id as ShardId,
            settings.clone(),
            bus.clone(),
            gate.clone(),
            stats.clone(),
            clock.now(),
        );
        let parts = reactor::Parts {
            shard,
            id: id as ShardId,
            listeners,
            are_kept,
            bus: bus.clone(),
            stats: stats.clone(),
            clock,
            neighbours,
            layers: layers.clone(),
        };
        let (kind, cpu) = (kind(config.server.io), pinned.then(|| cpus[id]));
        let stopped = stopped.clone();
        let thread = thread::Builder::new()
            .name(format!("shard-{id}"))
            .spawn(move || {
                let result = run_shard(kind, parts, cpu);
                // The receiver is gone only when the process is ending anyway.
                stopped.send(Outcome { id: id as ShardId, result }).ok();
            })
            .map_err(Failure::System)?;
        threads.push(thread);
    }
    drop(stopped);
    if let Some(door) = door {
        serve_door(door, bus.clone(), gate.clone())?;
    }
    let webhooks = notices.clone().map(|notices| Webhooks {
        notices,
        bus: bus.clone(),
        clock,
        settings: webhooks_settings(config, presence_settings(config, listening).node),
    });
    let posted = match (config.webhooks.to, &bridge) {
        (WebhooksTo::Stream, Some(bridge)) => {
            let (key, entries_max) = (config.webhooks.stream.clone(), config.webhooks.stream_entries_max);
            webhooks.into_iter().for_each(|it| backend::add_to_stream(bridge, it, key.clone(), entries_max));
            None
        }
        _ => webhooks,
    };
    let callouts = callouts.map(|(callouts, settings)| {
        let (bus, tokens) = (bus.clone(), tokens.clone());
        backend::callout::Parts { settings, callouts, tokens, bus }
    });
    let backend = (!config.backend.url.is_empty())
        .then(|| backend::spawn(backend_settings(config), bus.clone(), callouts, posted))
        .transpose()
        .map_err(Failure::System)?;
    // What is asked of the control port must not cost the shards their processors.
    sys::give_way();

    let control = Arc::new(Control {
        stats: stats.clone(),
        bus: bus.clone(),
        gate: gate.clone(),
        clock,
        started_unix_ms,
        bridge,
        backend,
        api: Api::new(api_settings(config)),
        tokens: Some(tokens.clone()),
        history: History::default(),
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::System)?;
    let result = runtime.block_on(async {
        // Before anybody is told that we are here: until then a signal ends the process without the order.
        let mut signals = Signals::new().map_err(Failure::System)?;
        let mut dump = Dump::new(control.clone());
        let (summary_ms, every_ms) = watch::channel(config.log.summary_ms);
        tokio::spawn(control::summarize(control.clone(), every_ms));
        let mut reload = Reload {
            again,
            log,
            config: config.clone(),
            control: control.clone(),
            tokens: tokens.clone(),
            tls: layers.tls.clone(),
            shards,
            summary_ms,
        };
        tracing::info!(
            listen = %listening,
            control = %controlling.map_or("off".to_owned(), |address| address.to_string()),
            shards,
            pinned,
            connections_max,
            tls = layers.tls.is_some(),
            are_kept,
            "listening"
        );
        tokio::spawn(control::sample_memory(stats.clone(), gate.clone()));
        tokio::spawn(refresh::keep_fresh(tokens, clock));
        if let Some(listener) = control_listener {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(Failure::System)?;
            tokio::spawn(control::serve(listener, control, std::future::pending()));
        }
        systemd::notify(&[NotifyState::Ready]);
        tokio::spawn(systemd::report(stats, bus.clone(), threads, gate.clone()));
        loop {
            tokio::select! {
                order = signals.next() => match order {
                    Order::End => break,
                    Order::Dump => dump.write(sys::heap()),
                    Order::Verbose => log.toggle_verbose(),
                    Order::Reload => {
                        systemd::notify_of_reload();
                        // A set of keys that is slow to come does not hold up the end.
                        let ends = tokio::select! {
                            () = reload.reload() => false,
                            () = signals.end() => true,
                        };
                        systemd::notify(&[NotifyState::Ready]);
                        if ends {
                            break;
                        }
                    }
                },
                Some(outcome) = stops.recv() => return Err(outcome.too_early()),
            }
        }
        let drain = Drain {
            settings: &reload.config().drain,
            gate: &gate,
            bus: &bus,
            notices: notices.as_deref(),
            stops: &mut stops,
            are_kept,
        };
        let mut drained = pin!(drain.run());
        loop {
            tokio::select! {
                result = &mut drained => return result,
                order = signals.next() => match order {
                    Order::End => return Err(Failure::Interrupted),
                    Order::Dump => dump.write(sys::heap()),
                    Order::Verbose => log.toggle_verbose(),
                    // What ends is not changed any more.
                    Order::Reload => {}
                },
            }
        }
    });
    runtime.shutdown_background();
    if result.is_ok() {
        tracing::info!("stopped");
    }
    result
}

/// The signals that mean something to this process. Those that come in while they are not waited for are heard once.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
    dump: Signal,
    verbose: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
            dump: signal(SignalKind::user_defined1())?,
            verbose: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one that says to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// What the next one says.
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::End,
            _ = self.interrupt.recv() => Order::End,
            _ = self.reload.recv() => Order::Reload,
            _ = self.dump.recv() => Order::Dump,
            _ = self.verbose.recv() => Order::Verbose,
        }
    }
}

/// What a signal says.
enum Order {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    Dump,
    /// SIGUSR2.
    Verbose,
}

/// What has become of a shard that has stopped.
struct Outcome {
    id: ShardId,
    /// Or why it has failed.
    result: Result<(), String>,
}

impl Outcome {
    /// Nobody has told it to stop.
    fn too_early(self) -> Failure {
        let reason = self.result.err().unwrap_or_else(|| "it was not told to".to_owned());
        Failure::Shard { id: self.id, reason }
    }
}

/// Where the certificate is.
fn certificate_files(config: &Config) -> Files {
    let tls = &config.tls;
    Files { certificates: (&tls.certificate_file).into(), key: (&tls.key_file).into() }
}

/// What lies between sockets and shards.
fn layers(config: &Config, shards: usize) -> Result<Layers, Failure> {
    let Config { tls, limits, .. } = config;
    let only_13 = tls.version_min == TlsVersion::V13;
    let tls = (!tls.certificate_file.is_empty())
        .then(|| Tls::load(&certificate_files(config), only_13))
        .transpose();
    Ok(Layers {
        tls: tls.map_err(Failure::Tls)?.map(Arc::new),
        proxy_protocol: limits.proxy_protocol,
        cut_bytes_max: limits.receive_bytes_max as usize / shards,
    })
}

/// One shard on this thread, to its end.
fn run_shard(kind: reactor::Kind, parts: reactor::Parts, cpu: Option<usize>) -> Result<(), String> {
    if let Some(cpu) = cpu
        && let Err(error) = sys::pin(cpu)
    {
        tracing::warn!(%error, cpu, shard = parts.id, "cannot pin a shard to its processor");
    }
    // A panic is a fault of ours. The other shards share rooms with this one, so the process ends and is started again.
    match catch_unwind(AssertUnwindSafe(|| reactor::run(kind, parts))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it panicked".to_owned()),
    }
}

/// Takes the sockets that other processes on the port give to this one, on a thread of its own, to the end of the process.
fn serve_door(door: Door, bus: Arc<Bus>, gate: Arc<Gate>) -> Result<(), Failure> {
    let serve = move || {
        let error = door.serve(&bus, || gate.has_place());
        tracing::error!(%error, "cannot take sockets of other processes any more");
    };
    thread::Builder::new().name("neighbours".to_owned()).spawn(serve).map(drop).map_err(Failure::System)
}

/// What the door goes by, within what the limit on open files allows.
fn rules(config: &Config, shards: usize) -> Result<Rules, Failure> {
    let descriptors = Descriptors::new(config, shards, sys::descriptors_max());
    let Descriptors { limit, ceiling, .. } = descriptors;
    if !descriptors.suffice() {
        return Err(Failure::Descriptors { limit, needed: descriptors.needed_min() });
    }
    let limits = &config.limits;
    let wanted = limits.connections_max as usize;
    if wanted > ceiling {
        tracing::warn!(
            connections_max = wanted,
            ceiling,
            descriptors = limit,
            descriptors_needed = descriptors.needed_for(wanted),
            "limits.connections_max is more than the limit on open files allows; raise it (LimitNOFILE=)"
        );
    }
    let connections_max = descriptors.connections_max(wanted);
    tracing::info!(descriptors = limit, connections_max, "found the ceiling");
    let per_ip_max = (limits.connections_per_ip_max > 0).then_some(limits.connections_per_ip_max);
    Ok(Rules {
        connections_max,
        sockets_max: descriptors.sockets_for(connections_max),
        memory_percent_max: limits.memory_percent_max,
        per_ip_max,
        sockets_per_ip_max: per_ip_max.map(|max| max + max.max(SOCKETS_PER_IP_TO_REFUSE)),
        per_user_max: (limits.connections_per_user_max > 0).then_some(limits.connections_per_user_max),
        handshakes_per_ip: (limits.handshakes_per_ip_max > 0)
            .then_some(Quota { most: limits.handshakes_per_ip_max, window_ms: limits.handshakes_window_ms }),
        events: config.event_limits.clone(),
        event_windows_max: limits.event_windows_max as usize,
        trusted_proxies: limits.trusted_proxies.clone(),
        believed: match limits.forwarded_header {
            ForwardedHeader::XForwardedFor => Believed::XForwardedFor,
            ForwardedHeader::Forwarded => Believed::Forwarded,
        },
        origins: limits.origins.clone(),
    })
}

/// What backends may do.
fn api_settings(config: &Config) -> api::Settings {
    let Config { api, limits, .. } = config;
    let scope = |word: &&str| match *word {
        "publish" => Scope::Publish,
        "read" => Scope::Read,
        _ => Scope::Admin,
    };
    let listed = config.api_keys.iter().map(|key| {
        let scopes: Vec<Scope> = key.scopes.iter().map(scope).collect();
        match &key.secret {
            KeySecret::Key(text) => Key::of(key.name.clone(), text, &scopes),
            KeySecret::Sha256(digest) => Key::new(key.name.clone(), *digest, &scopes),
        }
    });
    let all = [Scope::Publish, Scope::Read, Scope::Admin];
    let single = (!api.key.is_empty()).then(|| Key::of("api.key".to_owned(), &api.key, &all));
    api::Settings {
        keys: single.into_iter().chain(listed).collect(),
        connections_max: api.kept_connections_max as usize,
        batch_max: api.batch_max as usize,
        idempotency_window_ms: api.idempotency_window_ms.into(),
        idempotency_keys_max: api.idempotency_keys_max as usize,
        body_bytes_max: api.body_bytes_max as usize,
        publication_bytes_max: config.publication_bytes_max(api.body_bytes_max),
        rooms_max: limits.rooms_per_connection_max as usize,
        room_name_bytes_max: limits.room_name_bytes_max as usize,
        requests_per_second_max: api.requests_per_second_max,
    }
}

/// How questions about who is in a room are answered.
fn presence_settings(config: &Config, listening: SocketAddr) -> presence::Settings {
    let node = match config.server.node.as_str() {
        "" if config.server.share_port => {
            format!("{}:{}/{}", sys::host_name(), listening.port(), std::process::id())
        }
        "" => format!("{}:{}", sys::host_name(), listening.port()),
        node => node.to_owned(),
    };
    presence::Settings {
        node,
        age_max_ms: config.presence.age_max_ms,
        listed_max: config.presence.listed_max as usize,
    }
}

/// How this process is connected to others.
fn backend_settings(config: &Config) -> backend::Settings {
    let backend = &config.backend;
    let ms = |ms: u32| Duration::from_millis(ms.into());
    backend::Settings {
        url: backend.url.trim_end_matches('/').to_owned(),
        secret: backend.secret.clone(),
        timeout: ms(backend.timeout_ms),
        requests_max: backend.requests_max as usize,
        answer_bytes_max: backend.answer_bytes_max as usize,
        failures_max: backend.failures_max,
        rest: ms(backend.rest_ms),
        answers: Arc::new(ArcSwap::from_pointee(answer_settings(config))),
    }
}

/// How much its answers may say.
pub(crate) fn answer_settings(config: &Config) -> backend::events::Settings {
    backend::events::Settings {
        bounds: Bounds {
            rooms_max: config.limits.rooms_per_connection_max as usize,
            room_name_bytes_max: config.limits.room_name_bytes_max as usize,
        },
        message_bytes_max: config.limits.message_bytes_max as usize,
        attachments_max: config.socketio.attachments_max as usize,
    }
}

/// How much may wait for the backend.
fn calls_settings(config: &Config) -> calls::Settings {
    let backend = &config.backend;
    calls::Settings {
        waiting_max: backend.waiting_max as usize,
        waiting_bytes_max: backend.waiting_bytes_max as usize,
        waiting_per_connection_max: backend.waiting_per_connection_max as usize,
        handshake_bytes_max: backend.handshake_bytes_max as usize,
        failure: match backend.failure {
            BackendFailure::Error => calls::Failure::Error,
            BackendFailure::Silence => calls::Failure::Silence,
        },
    }
}

/// What the backend is told.
fn notices_settings(config: &Config, origin_unix_ms: u64) -> notices::Settings {
    let webhooks = &config.webhooks;
    let mut kinds = notices::Kind::LABELS.map(|label| webhooks.kinds.iter().any(|kind| kind == label));
    kinds[notices::Kind::Event.index()] = !config.webhook_events.is_empty();
    notices::Settings {
        kinds,
        events: config.webhook_events.clone(),
        waiting_max: webhooks.waiting_max as usize,
        waiting_bytes_max: webhooks.waiting_bytes_max as usize,
        lanes: webhooks.batches_under_way_max as usize,
        origin_unix_ms,
    }
}

/// How it is told.
fn webhooks_settings(config: &Config, node: String) -> webhooks::Settings {
    let webhooks = &config.webhooks;
    let ms = |ms: u32| Duration::from_millis(ms.into());
    webhooks::Settings {
        node,
        batch_max: webhooks.batch_max as usize,
        batch_bytes_max: webhooks.batch_bytes_max as usize,
        linger: ms(webhooks.linger_ms),
        backoff_max: ms(webhooks.backoff_max_ms),
        age_max: ms(webhooks.age_max_ms),
    }
}

/// How long what the backend says of clients is known.
fn callout_settings(config: &Config) -> backend::callout::Settings {
    let auth = &config.auth;
    backend::callout::Settings {
        known_for: Duration::from_millis(auth.callout_cache_ms.into()),
        refused_for: Duration::from_millis(auth.callout_refused_ms.into()),
        known_max: auth.callout_cache_entries_max as usize,
    }
}

fn bridge_settings(config: &Config) -> bridge::Settings {
    let redis = &config.redis;
    let cluster = match redis.cluster {
        Cluster::Throng => bridge::Cluster::Throng,
        Cluster::SocketIo => bridge::Cluster::SocketIo,
        Cluster::SocketIoSharded => bridge::Cluster::SocketIoSharded,
    };
    let prefix = config.redis_prefix();
    let first = redis.urls.first().cloned().unwrap_or_default();
    let ms = |ms: u32| Duration::from_millis(ms.into());
    bridge::Settings {
        link: link::Settings {
            servers: match redis.kind {
                RedisKind::Server => link::Servers::One(first),
                RedisKind::Sentinel => link::Servers::Sentinel {
                    sentinels: redis.urls.clone(),
                    master: redis.master.clone(),
                    password: (!redis.sentinel_password.is_empty()).then(|| redis.sentinel_password.clone()),
                },
                RedisKind::Cluster => link::Servers::Cluster(redis.urls.clone()),
            },
            ca_pem: None,
            name: redis.name.clone(),
            prefix: format!("{prefix}:"),
            keepalive: ms(redis.keepalive_ms),
            connect_timeout: ms(redis.connect_timeout_ms),
            command_timeout: ms(redis.command_timeout_ms),
            backoff_min: BACKOFF_MIN.min(ms(redis.backoff_max_ms)),
            backoff_max: ms(redis.backoff_max_ms),
            waiting_max: redis.waiting_max as usize,
            waiting_bytes_max: redis.waiting_bytes_max as usize,
            watch_interval: WATCH_INTERVAL,
            watch_patience: WATCH_PATIENCE,
        },
        cluster,
        prefix: prefix.to_owned(),
        presence_timeout: ms(config.presence.timeout_ms),
        channels: config.redis_channels.clone(),
        bounds: bridge_bounds(config),
    }
}

/// How much of what comes from other processes is taken.
pub(crate) fn bridge_bounds(config: &Config) -> bridge::Bounds {
    let Config { redis, limits, socketio, .. } = config;
    bridge::Bounds {
        channels: channels::Bounds {
            bytes_max: config.publication_bytes_max(redis.channel_bytes_max),
            names: targets::Bounds {
                rooms_max: limits.rooms_per_connection_max as usize,
                room_name_bytes_max: limits.room_name_bytes_max as usize,
            },
        },
        limits: Limits {
            // An envelope may hold several publications, and a message may be longer there than here.
            message_bytes_max: 2 * limits.message_bytes_max.max(config.api.body_bytes_max) as usize
                + (1 << 20),
            // Other servers have other limits. What is read is bounded by the bytes of a message as well.
            rooms_max: (limits.rooms_per_connection_max as usize).max(100_000),
            answers_max: 1_000_000,
            attachments_max: (socketio.attachments_max as usize).max(1_024),
        },
    }
}

/// What each of `shards` shards goes by, when the process may have `sockets_max` sockets.
pub fn settings(config: &Config, shards: usize, sockets_max: usize) -> Settings {
    let Config { server, limits, heartbeat, outbox, socketio, .. } = config;
    let path = |path: &String| (!path.is_empty()).then(|| path.clone());
    Settings {
        process: 0,
        origin_unix_ms: 0,
        // Twice a fair share, since the kernel spreads them by chance. What is not touched costs nothing.
        connections_reserved: (2 * sockets_max / shards + shards).min(RESERVED_MAX),
        paths: Paths {
            echo: server.echo,
            native: path(&config.native.path),
            plain: path(&config.plain.path),
            socketio: socketio.enabled.then(|| socketio.path.clone()),
            engineio: path(&config.engineio.echo_path),
        },
        socketio: Arc::new(shard::SocketIo {
            cors: Cors { origins: socketio.cors_origins.clone(), credentials: socketio.cors_credentials },
            connect_timeout_ms: socketio.connect_timeout_ms,
            upgrade_timeout_ms: socketio.upgrade_timeout_ms,
            compression_bytes_min: socketio.compression_bytes_min as usize,
            namespaces: socketio.namespaces.clone(),
            namespaces_per_connection_max: socketio.namespaces_per_connection_max as usize,
            namespaces_max: socketio.namespaces_max as usize,
            connections_per_namespace_max: socketio.connections_per_namespace_max as usize,
            attachments_max: socketio.attachments_max as usize,
            connect_event: socketio.connect_event.clone(),
            routes: config.routes.clone(),
            recovery_ms: socketio.recovery_ms,
            recovery_bytes_max: socketio.recovery_bytes_max as usize / shards,
            recovery_session_bytes_max: socketio.recovery_session_bytes_max as usize,
            recovery_sessions_max: (socketio.recovery_sessions_max as usize).div_ceil(shards),
        }),
        access: Arc::new(access(config, None)),
        linger_ms: server.linger_ms,
        accepts_per_second_max: limits.accepts_per_second_max,
        handshake_timeout_ms: limits.handshake_timeout_ms,
        head_bytes_max: limits.head_bytes_max as usize,
        refuse_with_close: limits.refuse_with == RefuseWith::Close,
        message_bytes_max: limits.message_bytes_max as usize,
        frames_per_message_max: limits.frames_per_message_max,
        message_timeout_ms: limits.message_timeout_ms,
        messages_per_frame_max: limits.messages_per_frame_max as usize,
        messages_per_second_max: limits.messages_per_second_max,
        messages_burst_max: limits.messages_burst_max,
        bytes_per_second_max: limits.bytes_per_second_max,
        bytes_burst_max: limits.bytes_burst_max,
        over: limits.over,
        rooms_per_connection_max: limits.rooms_per_connection_max as usize,
        room_name_bytes_max: limits.room_name_bytes_max as usize,
        // A share for each, but never less than one message takes while its buffer doubles.
        receive_bytes_max: (limits.receive_bytes_max as usize / shards)
            .max(2 * limits.message_bytes_max as usize),
        ping_interval_ms: heartbeat.ping_interval_ms,
        ping_timeout_ms: heartbeat.ping_timeout_ms,
        outbox_bytes_max: outbox.bytes_max as usize,
        outbox_total_bytes_max: (outbox.total_bytes_max as usize / shards).max(outbox.bytes_max as usize),
        outbox_policy: match outbox.policy {
            OutboxPolicy::Disconnect => shard::OutboxPolicy::Disconnect,
            OutboxPolicy::Drop => shard::OutboxPolicy::Drop,
        },
    }
}

/// How clients show who they are, by `tokens` if there are keys, and what they may do.
fn access(config: &Config, tokens: Option<&Arc<Tokens>>) -> Access {
    let auth = &config.auth;
    Access {
        // Without keys they still know how long what the backend says is good.
        tokens: tokens.filter(|tokens| tokens.has_sources() || auth.callout).cloned(),
        required: auth.required,
        timeout_ms: auth.timeout_ms,
        query_parameter: auth.query_parameter.clone(),
        permissions: config.permissions.clone(),
        callout: auth.callout.then(|| Callout { cookies: auth.callout_cookies.clone() }),
    }
}

/// What tokens have to be like, and where their keys come from.
fn token_settings(config: &Config) -> token::Settings {
    let Config { auth, limits, .. } = config;
    let secret = (!auth.secret.is_empty()).then(|| KeySource {
        kid: None,
        algorithm: Algorithm::Hs256,
        until_s: None,
        place: Place::Secret(auth.secret.clone().into_bytes()),
    });
    token::Settings {
        token_bytes_max: auth.token_bytes_max as usize,
        issuers: auth.issuers.clone(),
        audiences: auth.audiences.clone(),
        leeway_ms: auth.leeway_ms,
        expiry_required: auth.expiry_required,
        grace_ms: auth.grace_ms,
        user_claim: auth.user_claim.clone(),
        rooms_max: limits.rooms_per_connection_max as usize,
        room_name_bytes_max: limits.room_name_bytes_max as usize,
        keys: secret.into_iter().chain(config.keys.iter().cloned()).collect(),
        key_set: (!auth.jwks.is_empty()).then(|| auth.jwks.clone()),
        refresh_ms: auth.refresh_ms,
        retry_ms: auth.retry_ms,
    }
}

/// What checks tokens, with its first keys, if there are any to be had.
fn tokens(config: &Config, clock: Clock) -> Result<Arc<Tokens>, Failure> {
    let tokens = Tokens::new(token_settings(config));
    tokens.set_wall_clock(refresh::unix_ms(), clock.now());
    refresh::read_named(&tokens).map_err(Failure::Keys)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::System)?;
    if let Err(fault) = runtime.block_on(refresh::read_key_set(&tokens)) {
        // Whoever has the set may be away for a while, and other keys are good.
        tracing::warn!(%fault, "the set of keys could not be read: its tokens are refused until it can");
        tokens.refresh_failures.add(1);
    }
    Ok(Arc::new(tokens))
}

/// The kernel interface that `io` stands for on this machine.
fn kind(io: Io) -> reactor::Kind {
    match io {
        Io::Auto | Io::Epoll => reactor::Kind::Epoll,
    }
}
