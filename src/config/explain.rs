//! What a configuration means, in words for people.

use super::value::{hidden, size};
use super::{Changed, Cluster, Config, LogFormat, OutboxPolicy, RedisKind, RefuseWith, WebhooksTo};
use crate::permissions::{Grant, Permission, Who};
use crate::policy::{Conflate, Policy};
use crate::routes::arrival::Arrival;
use crate::routes::channel::Channel;
use crate::routes::template::Data;
use crate::routes::{BuiltIn, Does, Field, Publish, Route, Saying, Steps, Target};
use crate::rules::{Allowance, Coding, EventLimit, Over, Pattern, Per, Unit};
use crate::token::keys::{KeySource, Place};
use compact_str::CompactString;
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;

impl Config {
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
        let Config { server, limits, tls, heartbeat, outbox, socketio, engineio, drain, log, .. } = self;
        let mut lines = Vec::new();
        let everywhere =
            |ip: IpAddr| if ip.is_unspecified() { " (every address of this machine)" } else { "" };
        let port = if server.listen.port() == 0 { " on any free port" } else { "" };
        let echo = if server.echo { "and /echo" } else { "(/echo is off)" };
        let listen = server.listen;
        let native = match self.native.path.as_str() {
            "" => ", but not by the native protocol".to_owned(),
            path => format!(", at {path}"),
        };
        lines.push(format!("Clients connect to {listen}{}{port}{native} {echo}.", everywhere(listen.ip())));
        if !self.plain.path.is_empty() {
            lines.push(format!(
                "At {} they send plain JSON: the type of a message is the name of an event of namespace /.",
                self.plain.path
            ));
        }
        if !tls.certificate_file.is_empty() {
            lines.push(format!(
                "They speak TLS {} or later, with the certificate in {}.",
                tls.version_min.word(),
                tls.certificate_file
            ));
        }
        lines.push(match server.control {
            None => "There is no control port and there are no metrics.".to_owned(),
            Some(control) if control.ip().is_loopback() => {
                format!("The control port is {control}, for this machine only.")
            }
            Some(control) => format!(
                "The control port is {control}{}: CAUTION, whoever reaches that port sees what the server does.",
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
        if limits.connections_per_user_max > 0 {
            lines.push(format!("At most {} connections of one user.", limits.connections_per_user_max));
        }
        if limits.handshakes_per_ip_max > 0 {
            lines.push(format!(
                "At most {} new connections of one address in {}.",
                limits.handshakes_per_ip_max,
                time(limits.handshakes_window_ms)
            ));
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
        if limits.proxy_protocol {
            lines.push(
                "All connections come from those, and begin with a PROXY header that says whose they are."
                    .to_owned(),
            );
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
        if limits.bytes_per_second_max > 0 {
            lines.push(format!(
                "A connection may send {} a second, and {} at once.",
                size(limits.bytes_per_second_max.into()),
                size(limits.bytes_burst_max.into())
            ));
        }
        if limits.messages_per_second_max > 0 || limits.bytes_per_second_max > 0 {
            lines.push(format!("Who sends more {}.", over_in_words(limits.over)));
        }
        lines.extend(self.event_limits.iter().map(event_limit_in_words));
        let off: Vec<&str> = [
            ("memory_percent_max", limits.memory_percent_max == 100),
            ("connections_per_ip_max", limits.connections_per_ip_max == 0),
            ("connections_per_user_max", limits.connections_per_user_max == 0),
            ("accepts_per_second_max", limits.accepts_per_second_max == 0),
            ("handshakes_per_ip_max", limits.handshakes_per_ip_max == 0),
            ("messages_per_second_max", limits.messages_per_second_max == 0),
            ("bytes_per_second_max", limits.bytes_per_second_max == 0),
            ("origins", limits.origins.is_empty()),
        ]
        .into_iter()
        .filter_map(|(key, off)| off.then_some(key))
        .collect();
        if !off.is_empty() {
            lines.push(format!("Limits that are off: {}.", off.join(", ")));
        }
        lines.extend(self.access_in_words());
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
        if socketio.enabled {
            lines.extend(self.socketio_in_words());
        } else {
            lines.push("Socket.IO is off.".to_owned());
        }
        if socketio.enabled || !self.plain.path.is_empty() || !self.native.path.is_empty() {
            lines.extend(self.routes.iter().map(route_in_words));
        }
        lines.extend(
            self.routes.arrivals().map(|Arrival { namespace, join, .. }| {
                format!("Who enters {namespace} joins {}.", list(join))
            }),
        );
        if !engineio.echo_path.is_empty() {
            lines.push(format!("Engine.IO messages come back as they are, at {}.", engineio.echo_path));
        }
        lines.extend(self.rooms.iter().map(room_in_words));
        lines.extend(self.cautions());
        lines.extend(self.redis_in_words());
        let keys = self.api_keys.len() + usize::from(!self.api.key.is_empty());
        if keys > 0 {
            lines.push(format!("Keys that open the HTTP API on the control port: {keys}."));
        }
        lines.extend(self.backend_in_words());
        lines.extend(self.webhooks_in_words());
        let notice = match drain.notice_ms {
            0 => String::new(),
            notice_ms => format!("says for {} that it is not ready, then ", time(notice_ms)),
        };
        let pace = match drain.closes_per_second_max {
            0 => String::new(),
            most => format!(", and over more where they are more than {most} a second,"),
        };
        lines.push(format!(
            "SIGTERM {notice}closes connections over {}{pace} and ends the server after {} at most.",
            time(drain.spread_ms),
            time(drain.timeout_ms)
        ));
        let format = match log.format {
            LogFormat::Auto => "entries of the journal where standard error leads there, otherwise text",
            LogFormat::Journald => "entries of the journal",
            LogFormat::Text | LogFormat::Json => log.format.word(),
        };
        let summary = match log.summary_ms {
            0 => String::new(),
            ms => format!("; every {} a line says how the server is", time(ms)),
        };
        lines.push(format!("Logs are {format}, from level {}{summary}.", log.level.word()));
        lines
    }

    fn access_in_words(&self) -> Vec<String> {
        let auth = &self.auth;
        let mut lines = Vec::new();
        let mut keys = Vec::new();
        if !auth.secret.is_empty() {
            keys.push("the secret (HS256)".to_owned());
        }
        keys.extend(self.keys.iter().map(key_in_words));
        if !auth.jwks.is_empty() {
            keys.push(format!("the set {}, read again every {}", auth.jwks, time(auth.refresh_ms)));
        }
        if auth.callout {
            lines.push(format!(
                "The backend is asked at {}/authenticate about clients whose token throng cannot check; what it says is known for {}, of at most {} clients.",
                self.backend.url.trim_end_matches('/'),
                time(auth.callout_cache_ms),
                auth.callout_cache_entries_max
            ));
        }
        if keys.is_empty() && auth.callout {
            let who = if auth.required { "must" } else { "may" };
            lines.push(format!("Clients {who} bring something that the backend knows them by."));
        }
        if keys.is_empty() && !auth.callout {
            lines.push("There are no tokens: nobody knows who a client is.".to_owned());
        } else if !keys.is_empty() {
            let who = if auth.required { "Clients must bring" } else { "Clients may bring" };
            lines.push(format!("{who} a token, by one of these keys: {}.", list(&keys)));
            let expiry = if auth.expiry_required { "it has to expire" } else { "it may be good for ever" };
            let of = |claim: &str, texts: &[String]| match texts {
                [] => format!("{claim} is not looked at"),
                texts => format!("{claim} is one of {}", list(texts)),
            };
            let audience = match auth.audiences.as_slice() {
                [] => "it names no audience".to_owned(),
                audiences => of("its audience", audiences),
            };
            lines.push(format!(
                "Of a token, {}, {audience}, and {expiry}; claim {:?} is the user's name.",
                of("the issuer", &auth.issuers),
                auth.user_claim
            ));
            lines.push(format!(
                "Clocks may differ by {}; {} after that a token is no longer good for an open connection.",
                time(auth.leeway_ms),
                time(auth.grace_ms)
            ));
            if !auth.query_parameter.is_empty() {
                lines.push(format!(
                    "A token may be in parameter {:?} of the query, which proxies log.",
                    auth.query_parameter
                ));
            }
        }
        if auth.jwks.starts_with("http://") {
            lines.push(
                "CAUTION: the set of keys comes by plain http: who is in between can let anybody in."
                    .to_owned(),
            );
        }
        if self.permissions.is_empty() {
            lines.push(
                "Clients may do anything with rooms, but for those whose token says what they may."
                    .to_owned(),
            );
        }
        lines.extend(self.permissions.iter().map(permission_in_words));
        lines
    }

    fn redis_in_words(&self) -> Vec<String> {
        let redis = &self.redis;
        if redis.urls.is_empty() {
            let alone = "There is no Redis: rooms are shared with no other process.".to_owned();
            let unheard = "CAUTION: without a Redis, [[redis.channels]] hear nothing.".to_owned();
            return std::iter::once(alone)
                .chain((!self.redis_channels.is_empty()).then_some(unheard))
                .collect();
        }
        let urls: Vec<String> = redis.urls.iter().map(|url| hidden(url)).collect();
        let place = match redis.kind {
            RedisKind::Server => "Redis is",
            RedisKind::Sentinel => "Redis is where Sentinels say, which are",
            RedisKind::Cluster => "Redis is the cluster that has",
        };
        let sharing = match redis.cluster {
            Cluster::Throng => "other throngs",
            Cluster::SocketIo => "throngs and Node's servers that have the Redis adapter",
            Cluster::SocketIoSharded => "throngs and Node's servers that have the sharded Redis adapter",
        };
        let mut lines = vec![
            format!("{place} {}; through it rooms are shared with {sharing}.", list(&urls)),
            format!(
                "While it is away, events reach the clients of this process alone; {} or {} of them may wait for it.",
                redis.waiting_max,
                size(redis.waiting_bytes_max)
            ),
        ];
        if redis.kind == RedisKind::Cluster && redis.cluster != Cluster::SocketIoSharded {
            lines.push(
                "CAUTION: every server of the cluster gets every event. Only \"socketio-sharded\" spreads them.".to_owned(),
            );
        }
        lines.extend(self.redis_channels.iter().map(|Channel { name, is_pattern, namespace, steps }| {
            let kind = if *is_pattern { "channels that match" } else { "channel" };
            let place = if namespace == "/" { String::new() } else { format!(", in {namespace}") };
            format!("A message that others publish on {kind} {name:?}{place} {}.", steps_in_words(steps))
        }));
        lines
    }

    fn webhooks_in_words(&self) -> Vec<String> {
        let (webhooks, events) = (&self.webhooks, &self.webhook_events);
        if !self.has_webhooks() {
            return Vec::new();
        }
        let mut told = webhooks.kinds.clone();
        told.extend(events.iter().map(|choice| {
            let event =
                choice.event.as_ref().map_or("every event".to_owned(), |name| format!("event {name:?}"));
            let namespace =
                choice.namespace.as_ref().map_or(String::new(), |pattern| format!(" in {pattern}"));
            format!("{event}{namespace}")
        }));
        let place = match webhooks.to {
            WebhooksTo::Backend => {
                format!("The backend is told at {}/webhooks", self.backend.url.trim_end_matches('/'))
            }
            WebhooksTo::Stream => format!("The stream {:?} in Redis is told", webhooks.stream),
        };
        vec![format!(
            "{place}: {}; up to {} notices or {} may wait, each for {}.",
            list(&told),
            webhooks.waiting_max,
            size(webhooks.waiting_bytes_max),
            time(webhooks.age_max_ms)
        )]
    }

    fn backend_in_words(&self) -> Vec<String> {
        let backend = &self.backend;
        if backend.url.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![format!(
            "The backend is at {}: a request has {}, {} may be under way; after {} failures in a row it is left in peace for {}.",
            backend.url,
            time(backend.timeout_ms),
            backend.requests_max,
            backend.failures_max,
            time(backend.rest_ms)
        )];
        if backend.secret.is_empty() {
            lines.push(
                "CAUTION: without backend.secret the backend cannot tell our requests from others."
                    .to_owned(),
            );
        }
        lines
    }

    fn socketio_in_words(&self) -> Vec<String> {
        let socketio = &self.socketio;
        let patterns: Vec<&Pattern> =
            socketio.namespaces.iter().map(|allowance| &allowance.pattern).collect();
        let mut lines =
            vec![format!("Socket.IO is at {}; its namespaces: {}.", socketio.path, list(&patterns))];
        lines.push(format!(
            "A Socket.IO client has {} to join a namespace, may be in {}, and has {} to change to WebSocket.",
            time(socketio.connect_timeout_ms),
            socketio.namespaces_per_connection_max,
            time(socketio.upgrade_timeout_ms)
        ));
        if socketio.connections_per_namespace_max > 0 {
            lines.push(format!(
                "At most {} connections in one namespace.",
                socketio.connections_per_namespace_max
            ));
        }
        lines.extend(socketio.namespaces.iter().filter_map(allowance_in_words));
        let origins = &socketio.cors_origins;
        let credentials = if socketio.cors_credentials { ", with credentials" } else { "" };
        lines.push(if origins.is_empty() {
            "Pages of other origins cannot use long-polling: there are no CORS headers.".to_owned()
        } else if origins.iter().any(|origin| origin == "*") {
            "Pages of any origin may use long-polling.".to_owned()
        } else {
            format!("Pages of {} may use long-polling{credentials}.", list(origins))
        });
        if !socketio.connect_event.is_empty() {
            let event = &socketio.connect_event;
            lines.push(format!(
                "A client that has joined a namespace is sent {event:?} with what it came with."
            ));
        }
        lines
    }
}

fn key_in_words(key: &KeySource) -> String {
    let KeySource { kid, algorithm, until_s, place } = key;
    let name = kid.as_ref().map_or(String::new(), |kid| format!(" {kid:?}"));
    let place = match place {
        Place::Secret(_) => String::new(),
        Place::File(path) => format!(" of {}", path.display()),
    };
    let until = until_s.map_or(String::new(), |until_s| format!(" until {until_s} s after 1970"));
    format!("{}{name}{place}{until}", algorithm.word())
}

fn permission_in_words(permission: &Permission) -> String {
    let Permission { who, grant: Grant { namespace, rooms, acts } } = permission;
    let who = match who {
        Who::Anyone => "Anyone".to_owned(),
        Who::User => "Every user".to_owned(),
        Who::Role(role) => format!("Who has the role {role:?}"),
    };
    let namespace = namespace.as_ref().map_or(String::new(), |pattern| format!(" in {pattern}"));
    if !acts.has_rooms() {
        let which = if namespace.is_empty() { " in any namespace" } else { &namespace };
        return format!("{who} may be{which}; others only where another rule or their token says so.");
    }
    format!("{who} may do this with rooms {rooms}{namespace}: {acts}.")
}

fn room_in_words(policy: &Policy) -> String {
    let Policy { name, namespace, window_ms, batch, urgent, conflate, changes, dedupe, merge, burst } =
        policy;
    let namespace = namespace.as_ref().map_or(String::new(), |pattern| format!(" in {pattern}"));
    let mut words = Vec::new();
    let named = |events: &[CompactString]| list(events);
    if let Some(dedupe) = dedupe {
        let window = time(dedupe.window_ms);
        words.push(format!(
            "an event with a {:?} that was there within {window} is left out",
            dedupe.field.to_string()
        ));
    }
    if policy.waits() {
        let most =
            batch.as_ref().map_or(String::new(), |batch| format!(", or until there are {}", batch.most));
        let but = if urgent.is_empty() { String::new() } else { format!(", but not {}", named(urgent)) };
        words.push(format!("events wait up to {}{most}{but}", time(*window_ms)));
    }
    if let Some(conflate) = conflate {
        let of = conflate.events.as_deref().map_or(String::new(), |events| format!(" of {}", named(events)));
        let field = conflate.field.to_string();
        words.push(format!("of those that wait only the latest{of} with each {field:?} leaves"));
    }
    if let Some(changes) = changes {
        let always = if changes.always.is_empty() {
            String::new()
        } else {
            format!(", and always {}", list(&changes.always))
        };
        words.push(format!(
            "of {:?} only what has changed is sent{always}; who joins gets the whole",
            changes.event
        ));
    }
    if let Some(batch) = batch {
        let what = if batch.lone { "what leaves" } else { "what leaves together" };
        words.push(format!("{what} is one message, {:?} for Socket.IO clients", batch.event));
    }
    if let Some(merge) = merge {
        let fields: Vec<String> =
            merge.fields.iter().map(|(event, field)| format!("{event} as {field}")).collect();
        words.push(format!("what leaves together is one event {:?}: {}", merge.event, list(&fields)));
    }
    if let Some(burst) = burst {
        let then = if burst.disconnects { "it is disconnected" } else { "they are dropped" };
        words.push(format!("when {} or more wait for a slow client, {then}", size(burst.bytes as u64)));
    }
    let words = if words.is_empty() { "nothing happens to events".to_owned() } else { words.join("; ") };
    format!("In rooms {name}{namespace}: {words}.")
}

/// What a policy does with `event`, in few words; empty for nothing.
pub(super) fn policy_in_brief(policy: &Policy, event: &str) -> String {
    let Policy { batch, urgent, conflate, changes, dedupe, merge, burst, .. } = policy;
    let has = |events: &[CompactString]| events.iter().any(|name| name == event);
    let stays = !has(urgent);
    let is_conflated = |conflate: &Conflate| conflate.events.as_deref().is_none_or(has);
    let words = [
        ("dedupe", dedupe.is_some()),
        ("conflate", stays && conflate.as_ref().is_some_and(is_conflated)),
        ("changes", changes.as_ref().is_some_and(|changes| changes.event == event)),
        ("urgent", policy.waits() && !stays),
        ("batch", batch.as_ref().is_some_and(|batch| stays || batch.lone)),
        ("merge", stays && merge.as_ref().is_some_and(|merge| merge.field(event).is_some())),
        ("burst", burst.is_some()),
    ];
    words.into_iter().filter_map(|(word, does)| does.then_some(word)).collect::<Vec<_>>().join(", ")
}

fn over_in_words(over: Over) -> &'static str {
    match over {
        Over::Error => "is told so",
        Over::Drop => "is told so only if it asked for an answer",
        Over::Close => "is closed with 1008",
    }
}

pub(super) fn event_limit_in_words(limit: &EventLimit) -> String {
    let EventLimit { event, namespace, per, most, unit, window_ms, over } = limit;
    let events = match event {
        Some(event) => format!("events {event:?}"),
        None => "events of all kinds together".to_owned(),
    };
    let namespace = namespace.as_ref().map_or(String::new(), |pattern| format!(" in {pattern}"));
    let each = match per {
        Per::Connection => "Each connection",
        Per::Ip => "Each address",
        Per::User => "Each user",
    };
    let more = over_in_words(*over);
    let window = time(*window_ms);
    let most = match unit {
        Unit::Events => most.to_string(),
        Unit::Bytes => format!("{} of", size(u64::from(*most))),
    };
    format!("{each} may send {most} {events}{namespace} in {window}; who sends more {more}.")
}

/// What is said about some namespaces in particular.
fn allowance_in_words(allowance: &Allowance) -> Option<String> {
    let Allowance { pattern, connections_max, namespaces_max, backend, coding } = allowance;
    let connections = connections_max.map(|most| match most {
        0 => "any number of connections in one".to_owned(),
        most => format!("at most {most} connections in one"),
    });
    let namespaces = namespaces_max.map(|most| format!("at most {most} of them"));
    let concerns: Vec<&str> = backend.words().collect();
    let backend =
        (!concerns.is_empty()).then(|| format!("of the backend's concern ({})", concerns.join(", ")));
    let coding = match coding {
        Coding::Json => None,
        Coding::Msgpack => Some("what events carry travels as MessagePack".to_owned()),
        Coding::Base64 => Some("what events carry travels as JSON in base64".to_owned()),
    };
    let limits: Vec<String> = [connections, namespaces, backend, coding].into_iter().flatten().collect();
    (!limits.is_empty()).then(|| format!("Namespaces {pattern}: {}.", limits.join(", ")))
}

pub(super) fn route_in_words(route: &Route) -> String {
    let Route { namespace, on, who, does } = route;
    let namespace = namespace.as_ref().map_or(String::new(), |pattern| format!(" in {pattern}"));
    let event = if on == Route::OTHERS { "any other event".to_owned() } else { format!("{on:?}") };
    let client = match who {
        Who::Anyone => "a client".to_owned(),
        Who::User => "a user".to_owned(),
        Who::Role(role) => format!("a user with role {role:?}"),
    };
    let does = match does {
        Does::BuiltIn(built_in) => built_in_in_words(built_in),
        Does::Steps(steps) => steps_in_words(steps),
    };
    format!("On {event}{namespace} {client} {does}.")
}

fn built_in_in_words(built_in: &BuiltIn) -> String {
    let room = |fields: &[String]| {
        let fields: Vec<String> = fields.iter().map(|field| format!("{field:?}")).collect();
        format!("the room in field {}", fields.join(" or "))
    };
    match built_in {
        BuiltIn::Join { room_fields } => format!("joins {}", room(room_fields)),
        BuiltIn::Leave { room_fields } => format!("leaves {}", room(room_fields)),
        BuiltIn::Publish { room_fields, event_field, data_field } => {
            let room = room(room_fields);
            format!("publishes field {data_field:?} to {room}, as the event in field {event_field:?}")
        }
        BuiltIn::Presence { room_fields } => format!("is told who is in {}", room(room_fields)),
    }
}

fn steps_in_words(steps: &Steps) -> String {
    let Steps { fields, refuse, member, join, leave, publish, reply, ack, backend, paths, needs: _ } = steps;
    if let Some(reason) = refuse {
        return format!("is refused: {reason}");
    }
    let mut steps = Vec::new();
    if !fields.is_empty() {
        let field = |Field { place, kind, is_optional }: &Field| {
            let or_not = if *is_optional { ", if it is there" } else { "" };
            format!("{} ({}{or_not})", paths.at(*place), kind.word())
        };
        steps.push(format!("says {}", list(&fields.iter().map(field).collect::<Vec<_>>())));
    }
    if !member.is_empty() {
        steps.push(format!("must be in {}", list(member)));
    }
    if !join.is_empty() {
        steps.push(format!("joins {}", list(join)));
    }
    if !leave.is_empty() {
        steps.push(format!("leaves {}", list(leave)));
    }
    for Publish { to, except, saying, echo, volatile } in publish {
        let target = |target: &Target| match target {
            Target::Room(name) => name.to_string(),
            Target::User(name) => format!("user {name}"),
            Target::Everyone => "everyone".to_owned(),
        };
        let but =
            if except.is_empty() { String::new() } else { format!(" but for members of {}", list(except)) };
        let own = if *echo { ", itself too" } else { "" };
        let volatile = if *volatile { ", better lost than late" } else { "" };
        let to = list(&to.iter().map(target).collect::<Vec<_>>());
        steps.push(format!("publishes {}to {to}{but}{own}{volatile}", saying_in_words(saying)));
    }
    if let Some(reply) = reply {
        steps.push(format!("gets {}", saying_in_words(reply).trim_end()));
    }
    match ack {
        None => {}
        Some(Data::Args) => steps.push("gets an acknowledgement with the same arguments".to_owned()),
        Some(_) => steps.push("gets an acknowledgement with data".to_owned()),
    }
    if *backend {
        steps.push("is answered by the backend, which is asked about it".to_owned());
    }
    steps.join(", then ")
}

/// An event that is made of another, and a space behind it.
fn saying_in_words(Saying { event, data }: &Saying) -> String {
    let event = event.as_ref().map_or("it ".to_owned(), |event| format!("{event:?} "));
    let data = match data {
        Data::Args => "with the same arguments ",
        Data::With(_) => "with more in its data ",
        _ => "with data of its own ",
    };
    event + data
}

/// `ms` for people.
fn time(ms: u32) -> String {
    if ms > 0 && ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}

/// The first few of `items`, and how many more there are.
pub(super) fn list(items: &[impl Display]) -> String {
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
