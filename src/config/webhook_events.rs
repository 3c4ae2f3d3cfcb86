//! The `[[webhooks.events]]` of a configuration file: tables that choose the events of clients that the backend is told of.

use super::Reloaded;
use super::tables::{Reading, Tables};
use crate::rules::{EventChoice, is_event_name};
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "webhooks.events",
    heading: "[[webhooks.events]]",
    keys: &["event", "namespace"],
    most: EventChoice::CONFIGURED_MAX,
    reloaded: Reloaded::No,
};

/// What the key takes, to stand behind "it takes".
const EVENT: &str =
    "the name of an event, but not one that Socket.IO reserves, like \"connect\", or \"*\" for all events";
/// What stands for all events.
const ALL: &str = "*";

/// Reads the list, which begins at `start`, into choices, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<EventChoice> {
    TABLES.read(list, start, file, |table| {
        let name = |text: &str| (text == ALL || is_event_name(text)).then(|| text.to_owned());
        let event = table.require("event", EVENT, name);
        let namespace = table.pattern("namespace");
        Some(EventChoice { event: event.map(|name| (name != ALL).then_some(name))?, namespace })
    })
}
