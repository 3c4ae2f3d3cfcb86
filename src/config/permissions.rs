//! The `[[permissions]]` of a configuration file: tables that say what clients may do with rooms.

use super::Reloaded;
use super::tables::{Reading, Table, Tables};
use crate::permissions::{Acts, Grant, Permission, Permissions, RoomPattern, Who};
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "permissions",
    heading: "[[permissions]]",
    keys: &["namespace", "rooms", "who", "allow"],
    most: Permissions::RULES_MAX,
    reloaded: Reloaded::Yes,
};

pub(super) const WHO: &str = "\"anyone\", \"user\" or \"role:NAME\"";
const ROOMS: &str = "names of rooms, like \"auction:*\" or \"user:{user}\", with at most 4 stars";
const ACTS: &str = "a list of \"join\", \"publish\", \"presence\" and \"connect\"";

/// Reads the list, which begins at `start`, into rules, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<Permission> {
    TABLES.read(list, start, file, permission)
}

fn permission(table: &mut Table<'_>) -> Option<Permission> {
    let namespace = table.pattern("namespace");
    let who = if table.has("who") { table.read("who", WHO, Who::parse)? } else { Who::Anyone };
    let acts = table.list("allow", ACTS, |words| Acts::parse(words.iter().map(String::as_str)));
    let rooms = if acts.is_none_or(Acts::has_rooms) {
        table.require("rooms", ROOMS, RoomPattern::parse)
    } else {
        if table.has("rooms") {
            table.tell_conflict("rooms", "nothing where `allow` is \"connect\" alone");
        }
        None
    };
    Some(Permission { who, grant: Grant::new(namespace, rooms, acts?)? })
}
