//! The `[[events]]` of a configuration file: tables that say what clients' events do.

use super::Kind;
use super::tables::{Reading, Table, Tables};
use crate::rules::{Action, Rule, Rules, is_event_name};
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "events",
    heading: "[[events]]",
    keys: &["namespace", "on", "do", "room", "event", "data"],
    most: Rules::CONFIGURED_MAX,
};

const ACTIONS: &[&str] = &["join", "leave", "publish", "presence", "reply", "ack", "backend"];

/// What the keys take, to stand behind "it takes".
const EVENT: &str = "the name of an event, but not one that Socket.IO reserves, like \"connect\"";
const FIELD: &str = "the name of a field";

/// Reads the list, which begins at `start`, into rules, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<Rule> {
    TABLES.read(list, start, file, rule)
}

/// The rule that a table means. Its problems have been told when it means none; when there are problems with a rule all the same,
/// it stands in for what would have been right.
fn rule(table: &mut Table<'_>) -> Option<Rule> {
    let namespace = table.pattern("namespace");
    let on = table.require("on", EVENT, event);
    let named = |word: &str| ACTIONS.iter().copied().find(|action| *action == word);
    let word = table.require("do", &Kind::Word(ACTIONS).allowed(), named)?;
    let (action, used): (Action, &[&str]) = match word {
        "join" => (Action::Join { room_fields: room_fields(table) }, &["room"]),
        "leave" => (Action::Leave { room_fields: room_fields(table) }, &["room"]),
        "publish" => {
            let room_fields = room_fields(table);
            let event_field = field(table, "event").unwrap_or_else(|| Action::EVENT_FIELD.to_owned());
            let data_field = field(table, "data").unwrap_or_else(|| Action::DATA_FIELD.to_owned());
            (Action::Publish { room_fields, event_field, data_field }, &["room", "event", "data"])
        }
        "presence" => (Action::Presence { room_fields: room_fields(table) }, &["room"]),
        "reply" => {
            let event = table.require("event", EVENT, event).unwrap_or_default();
            (Action::Reply { event }, &["event"])
        }
        "ack" => (Action::Ack, &[]),
        _ => (Action::Backend, &[]),
    };
    for key in ["room", "event", "data"] {
        if !used.contains(&key) {
            table.read::<()>(key, &format!("nothing where do = \"{word}\""), |_| None);
        }
    }
    Some(Rule { namespace, on: on?, action })
}

/// The names of the fields that name rooms.
fn room_fields(table: &mut Table<'_>) -> Vec<String> {
    field(table, "room").map_or_else(Action::room_fields, |field| vec![field])
}

/// The name of a field, if the table gives one for `key`.
fn field(table: &mut Table<'_>, key: &str) -> Option<String> {
    table.read(key, FIELD, |text| (!text.is_empty()).then(|| text.to_owned()))
}

fn event(text: &str) -> Option<String> {
    is_event_name(text).then(|| text.to_owned())
}
