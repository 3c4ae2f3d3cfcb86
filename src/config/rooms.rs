//! The `[[rooms]]` of a configuration file: tables that say what happens to events on their way to a room's members.

use super::Kind;
use super::Reloaded;
use super::tables::{Reading, Table, Tables};
use crate::permissions::RoomPattern;
use crate::policy::field::FieldPath;
use crate::policy::{Batch, Burst, Changes, Conflate, Dedupe, Merge, Policies, Policy};
use crate::rules::is_event_name;
use compact_str::CompactString;
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "rooms",
    heading: "[[rooms]]",
    keys: &[
        "name",
        "namespace",
        "window_ms",
        "batch_max",
        "batch_event",
        "batch_items",
        "batch_lone",
        "urgent",
        "conflate",
        "conflate_events",
        "changes",
        "changes_always",
        "dedupe",
        "dedupe_window_ms",
        "merge_event",
        "merge",
        "burst_bytes",
        "burst",
    ],
    most: Policies::CONFIGURED_MAX,
    reloaded: Reloaded::No,
};

// What keys take, to stand behind "it takes".
const NAME: &str = "names of rooms, like \"auction:*\", with at most 4 stars";
const EVENT: &str = "the name of an event, but not one that Socket.IO reserves, like \"connect\"";
const EVENTS: &str = "a list of names of events";
const NAMES: &str = "a list of names";
const FIELD: &str = "a field of the payload, like \"id\" or \"bid.id\", of at most 8 names";
const FIELDS: &str =
    "a table of events and the fields that they become, each once, like { new_message = \"newMessage\" }";
const ITEMS: [&str; 2] = ["event", "data"];
const BURST: [&str; 2] = ["drop", "disconnect"];
/// The most events that one batch may have.
const BATCH_MAX: u32 = 10_000;
/// The longest that events may wait, in milliseconds.
const WINDOW_MS_MAX: u32 = 60_000;
/// How long a value of `dedupe` is known where nothing else is said, in milliseconds.
const DEDUPE_WINDOW_MS: u32 = 60_000;

/// Reads the list, which begins at `start`, into policies, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<Policy> {
    TABLES.read(list, start, file, policy)
}

/// The policy that a table means. Its problems have been told when it means none.
fn policy(table: &mut Table<'_>) -> Option<Policy> {
    let name =
        table.require("name", NAME, |text| RoomPattern::parse(text).filter(|_| !text.contains("{user}")));
    let namespace = table.pattern("namespace");
    let window_ms = optional(table, "window_ms", Kind::Ms { min: 1, max: WINDOW_MS_MAX.into() });
    let batch = batch(table);
    let merge = merge(table);
    let conflate = field(table, "conflate");
    let conflate_events = events(table, "conflate_events");
    let changes = table.read("changes", EVENT, event);
    let always = texts(table, "changes_always", NAMES, |name| (!name.is_empty()).then(|| name.into()));
    let dedupe = field(table, "dedupe");
    let dedupe_window_ms = optional(table, "dedupe_window_ms", Kind::Ms { min: 1, max: 86_400_000 });
    let burst_bytes = optional(table, "burst_bytes", Kind::Bytes { min: 1, max: 1 << 30 });
    let disconnects = table.read("burst", &Kind::Word(&BURST).allowed(), |word| match word {
        "drop" => Some(false),
        "disconnect" => Some(true),
        _ => None,
    });
    let urgent = events(table, "urgent");
    for (key, other) in [
        ("batch_event", "batch_max"),
        ("batch_items", "batch_max"),
        ("batch_lone", "batch_max"),
        ("conflate_events", "conflate"),
        ("changes_always", "changes"),
        ("dedupe_window_ms", "dedupe"),
        ("merge_event", "merge"),
        ("merge", "merge_event"),
        ("burst", "burst_bytes"),
    ] {
        if table.has(key) && !table.has(other) {
            table.tell_conflict(key, &format!("nothing where there is no `{other}`"));
        }
    }
    if table.has("merge") && table.has("batch_max") {
        table.tell_conflict(
            "merge",
            "nothing where there is `batch_max`: what waits becomes one or the other",
        );
    }
    if changes.is_some() && burst_bytes.is_some() && disconnects != Some(true) {
        table.tell_conflict(
            "burst_bytes",
            "nothing beside `changes`, but with burst = \"disconnect\": who lacks one change makes nothing right of the next",
        );
    }
    let waits = ["batch_max", "conflate", "merge"].iter().any(|key| table.has(key));
    for key in ["window_ms", "urgent"] {
        if table.has(key) && !waits {
            table.tell_conflict(
                key,
                "nothing where nothing waits: without `batch_max`, `conflate` and `merge`",
            );
        }
    }
    Some(Policy {
        namespace,
        window_ms: window_ms.unwrap_or(Policy::WINDOW_MS),
        batch,
        urgent: urgent.unwrap_or_default(),
        conflate: conflate.map(|field| Conflate { field, events: conflate_events }),
        changes: changes.map(|event| Changes { event, always: always.unwrap_or_default() }),
        dedupe: dedupe.map(|field| Dedupe { field, window_ms: dedupe_window_ms.unwrap_or(DEDUPE_WINDOW_MS) }),
        merge,
        burst: burst_bytes
            .map(|bytes| Burst { bytes: bytes as usize, disconnects: disconnects.unwrap_or(false) }),
        ..Policy::new(name?)
    })
}

fn batch(table: &mut Table<'_>) -> Option<Batch> {
    let most = optional(table, "batch_max", Kind::Number { min: 1, max: BATCH_MAX.into() });
    let name = table.read("batch_event", EVENT, event);
    let items = table.read("batch_items", &Kind::Word(&ITEMS).allowed(), |word| {
        ITEMS.iter().position(|known| *known == word)
    });
    let lone = table.flag("batch_lone").unwrap_or(false);
    let most = most.filter(|most| *most > 1 || lone)? as usize;
    Some(Batch { most, event: name.unwrap_or("batch".into()), data_only: items == Some(1), lone })
}

fn merge(table: &mut Table<'_>) -> Option<Merge> {
    let name = table.read("merge_event", EVENT, event);
    let fields = table.texts_by_name("merge", FIELDS, |pairs| {
        let fields: Box<[(CompactString, CompactString)]> =
            pairs.iter().map(|(name, field)| (name.into(), field.into())).collect();
        let is_once = |(at, (_, field)): (usize, &(CompactString, CompactString))| {
            !field.is_empty() && fields[..at].iter().all(|(_, other)| other != field)
        };
        let is_right = !fields.is_empty() && fields.iter().enumerate().all(is_once);
        (is_right && fields.iter().all(|(name, _)| is_event_name(name))).then_some(fields)
    });
    Some(Merge { event: name?, fields: fields? })
}

fn event(text: &str) -> Option<CompactString> {
    is_event_name(text).then(|| text.into())
}

fn events(table: &mut Table<'_>, key: &str) -> Option<Box<[CompactString]>> {
    texts(table, key, EVENTS, event)
}

fn texts<T>(
    table: &mut Table<'_>,
    key: &str,
    allowed: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Option<Box<[T]>> {
    if !table.has(key) {
        return None;
    }
    table.list(key, allowed, |words| words.iter().map(|word| read(word)).collect())
}

fn field(table: &mut Table<'_>, key: &str) -> Option<FieldPath> {
    table.read(key, FIELD, FieldPath::parse)
}

fn optional(table: &mut Table<'_>, key: &str, kind: Kind) -> Option<u32> {
    if table.has(key) { table.require_number(key, kind) } else { None }
}
