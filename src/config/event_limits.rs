//! The `[[limits.events]]` of a configuration file: tables that say how often clients may send events.

use super::Kind;
use super::Reloaded;
use super::tables::{Reading, Table, Tables};
use crate::rules::{EventLimit, EventLimits, Over, Per, Unit, is_event_name};
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "limits.events",
    heading: "[[limits.events]]",
    keys: &["event", "namespace", "per", "count", "bytes", "window_ms", "over"],
    most: EventLimits::CONFIGURED_MAX,
    reloaded: Reloaded::Yes,
};

/// What the key takes, to stand behind "it takes".
const EVENT: &str =
    "the name of an event, but not one that Socket.IO reserves, like \"connect\", or \"*\" for all events";
/// What stands for all events together.
const ALL: &str = "*";

/// Reads the list, which begins at `start`, into limits, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<EventLimit> {
    TABLES.read(list, start, file, limit)
}

/// The limit that a table means. Its problems have been told when it means none.
fn limit(table: &mut Table<'_>) -> Option<EventLimit> {
    let name = |text: &str| (text == ALL || is_event_name(text)).then(|| text.to_owned());
    let event = table.require("event", EVENT, name);
    let namespace = table.pattern("namespace");
    let per = table.require("per", &Kind::Word(&Per::WORDS).allowed(), |word| {
        [Per::Connection, Per::Ip, Per::User].into_iter().find(|per| per.word() == word)
    });
    let (unit, most) = if table.has("bytes") {
        if table.has("count") {
            table.tell_conflict("count", "nothing where there is `bytes`: for both there are two tables");
        }
        (Unit::Bytes, table.require_number("bytes", Kind::Bytes { min: 1, max: 1 << 30 }))
    } else {
        (Unit::Events, table.require_number("count", Kind::Number { min: 1, max: 1_000_000_000 }))
    };
    let window_ms = table.require_number("window_ms", Kind::Ms { min: 100, max: 86_400_000 });
    let over = table.read("over", &Kind::Word(&Over::WORDS).allowed(), |word| {
        [Over::Error, Over::Drop, Over::Close].into_iter().find(|over| over.word() == word)
    });
    Some(EventLimit {
        event: event.map(|name| (name != ALL).then_some(name))?,
        namespace,
        per: per?,
        most: most?,
        unit,
        window_ms: window_ms?,
        over: over.unwrap_or(Over::Error),
    })
}
