//! What becomes of a configuration that runs when it is read anew: what of it can change, and what has to wait for a restart.

use super::value::Value;
use super::{
    AGREEMENTS, Config, Fault, Problem, SETTINGS, Setting, api_keys, auth_keys, event_limits, namespaces,
    permissions, redis_channels, rooms, routes, webhook_events,
};
use crate::routes::Routes;
use std::fmt::{self, Display};

/// Whether a change takes effect on SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// It does.
    Yes,
    /// It does when the setting is neither 0 nor empty, before and after: what is off at the start is switched on by a restart.
    WhileOn,
    /// It needs a restart.
    No,
}

impl Reloaded {
    /// The words for it in the documentation.
    pub fn words(self) -> &'static str {
        match self {
            Reloaded::Yes => "yes",
            Reloaded::WhileOn => "unless it is switched on or off",
            Reloaded::No => "no",
        }
    }
}

/// What a configuration has become.
#[derive(Debug)]
pub struct Merged {
    /// What is to run from now on: what can be reloaded as it was read, the rest as it was.
    pub config: Config,
    /// What has changed and takes effect.
    pub applied: Vec<Change>,
    /// What has changed and needs a restart.
    pub pending: Vec<Change>,
}

/// A setting, or a list of tables, that is not what it was. Secrets are not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting, or the heading of the tables.
    pub key: &'static str,
    /// What it was, as one would write it; of tables, how many there were.
    pub old: String,
    /// What it is now.
    pub new: String,
}

/// The lists of tables, with what makes two of them the same, and how one is taken over.
struct List {
    heading: &'static str,
    reloaded: Reloaded,
    count: fn(&Config) -> usize,
    is_same: fn(&Config, &Config) -> bool,
    take: fn(&mut Config, &Config),
}

const LISTS: [List; 9] = [
    List {
        heading: event_limits::TABLES.heading,
        reloaded: event_limits::TABLES.reloaded,
        count: |config| config.event_limits.iter().len(),
        is_same: |old, new| old.event_limits.iter().eq(new.event_limits.iter()),
        take: |running, new| running.event_limits = new.event_limits.clone(),
    },
    List {
        heading: webhook_events::TABLES.heading,
        reloaded: webhook_events::TABLES.reloaded,
        count: |config| config.webhook_events.len(),
        is_same: |old, new| old.webhook_events == new.webhook_events,
        take: |running, new| running.webhook_events = new.webhook_events.clone(),
    },
    List {
        heading: namespaces::TABLES.heading,
        reloaded: namespaces::TABLES.reloaded,
        count: |config| config.socketio.namespaces.iter().len(),
        // Behind those of the tables stand those of `socketio.namespaces`, which are compared as well: each is told by itself.
        is_same: |old, new| {
            old.socketio.namespaces == new.socketio.namespaces
                && old.routes.arrivals().eq(new.routes.arrivals())
        },
        take: |running, new| running.socketio.namespaces = new.socketio.namespaces.clone(),
    },
    List {
        heading: routes::TABLES.heading,
        reloaded: routes::TABLES.reloaded,
        count: |config| config.routes.configured().len(),
        is_same: |old, new| old.routes.configured() == new.routes.configured(),
        take: |running, new| {
            // What happens on entering a namespace is of `[[namespaces]]`.
            let arrivals = running.routes.arrivals().cloned().collect();
            running.routes = Routes::new(new.routes.configured().to_vec()).with_arrivals(arrivals);
        },
    },
    List {
        heading: api_keys::TABLES.heading,
        reloaded: api_keys::TABLES.reloaded,
        count: |config| config.api_keys.len(),
        is_same: |old, new| old.api_keys == new.api_keys,
        take: |running, new| running.api_keys = new.api_keys.clone(),
    },
    List {
        heading: auth_keys::TABLES.heading,
        reloaded: auth_keys::TABLES.reloaded,
        count: |config| config.keys.len(),
        is_same: |old, new| old.keys == new.keys,
        take: |running, new| running.keys = new.keys.clone(),
    },
    List {
        heading: permissions::TABLES.heading,
        reloaded: permissions::TABLES.reloaded,
        count: |config| config.permissions.iter().count(),
        is_same: |old, new| old.permissions.iter().eq(new.permissions.iter()),
        take: |running, new| running.permissions = new.permissions.clone(),
    },
    List {
        heading: rooms::TABLES.heading,
        reloaded: rooms::TABLES.reloaded,
        count: |config| config.rooms.len(),
        is_same: |old, new| old.rooms == new.rooms,
        take: |running, new| running.rooms = new.rooms.clone(),
    },
    List {
        heading: redis_channels::TABLES.heading,
        reloaded: redis_channels::TABLES.reloaded,
        count: |config| config.redis_channels.len(),
        is_same: |old, new| old.redis_channels == new.redis_channels,
        take: |running, new| running.redis_channels = new.redis_channels.clone(),
    },
];

impl Config {
    /// What becomes of this configuration, which runs, when `new` was read.
    ///
    /// # Errors
    /// Where what can be reloaded does not agree with what has to stay as it is.
    pub fn merge(&self, new: &Config) -> Result<Merged, Vec<Problem>> {
        let mut merged = Merged { config: self.clone(), applied: Vec::new(), pending: Vec::new() };
        let settings = SETTINGS.iter().zip(self.finals.iter().zip(&new.finals));
        let taken: Vec<bool> = settings
            .map(|(setting, (old, new))| {
                let is_taken = setting.is_reloaded(&old.value, &new.value);
                if old.value != new.value {
                    let change =
                        Change { key: setting.key, old: old.value.to_string(), new: new.value.to_string() };
                    merged.note(change, is_taken);
                }
                is_taken
            })
            .collect();
        merged.config.take_settings(new, &taken);
        for (at, _) in taken.iter().enumerate().filter(|(_, taken)| **taken) {
            merged.config.finals[at] = new.finals[at].clone();
        }
        let key = |key: &str| SETTINGS.iter().position(|setting| setting.key == key);
        let namespaces = key("socketio.namespaces").map(|at| self.finals[at].value != new.finals[at].value);
        for list in LISTS.iter().filter(|list| !(list.is_same)(self, new)) {
            // The setting was named, and nothing tells whether the tables have changed besides.
            if list.heading == namespaces::TABLES.heading && namespaces == Some(true) {
                continue;
            }
            let count = |config| format!("{} in all", (list.count)(config));
            let change = Change { key: list.heading, old: count(self), new: count(new) };
            merged.note(change, list.reloaded == Reloaded::Yes);
            if list.reloaded == Reloaded::Yes {
                (list.take)(&mut merged.config, new);
            }
        }
        let config = &merged.config;
        let mut problems: Vec<Problem> =
            AGREEMENTS.iter().filter_map(|both| both.check(config, &config.finals)).collect();
        if config.asks_backend() && config.backend.url.is_empty() {
            let why = "routes that ask the backend need it, and where it is can only be said at the start";
            let at = key("backend.url").unwrap_or_default();
            problems.push(Problem {
                key: "backend.url".to_owned(),
                source: new.finals[at].source.clone(),
                fault: Fault::Wrong { why: why.to_owned() },
            });
        }
        if problems.is_empty() { Ok(merged) } else { Err(problems) }
    }
}

impl Merged {
    fn note(&mut self, change: Change, is_taken: bool) {
        if is_taken { &mut self.applied } else { &mut self.pending }.push(change);
    }
}

impl Setting {
    /// True when a change from `old` to `new` takes effect.
    fn is_reloaded(&self, old: &Value, new: &Value) -> bool {
        let is_on = |value: &Value| match value {
            Value::Number(number) => *number > 0,
            Value::Text(text) => !text.is_empty(),
            _ => true,
        };
        match self.reloaded {
            Reloaded::Yes => true,
            Reloaded::WhileOn => is_on(old) && is_on(new),
            Reloaded::No => false,
        }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { key, old, new } = self;
        write!(f, "{key}: {old} is now {new}")
    }
}
