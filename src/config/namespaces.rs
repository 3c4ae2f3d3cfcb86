//! The `[[namespaces]]` of a configuration file: tables that allow namespaces and bound how much of them there may be.

use super::Kind;
use super::Reloaded;
use super::tables::{Reading, Tables};
use crate::routes::arrival::Arrival;
use crate::rules::{Allowance, Coding, Concerns, Namespaces};
use serde_json::Value;
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "namespaces",
    heading: "[[namespaces]]",
    keys: &["name", "connections_max", "namespaces_max", "backend", "encoding", "join"],
    most: Namespaces::PATTERNS_MAX,
    reloaded: Reloaded::No,
};

/// Reads the list, which begins at `start`, into allowances and what happens to who enters, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<(Allowance, Arrival)> {
    let mut taken = Vec::new();
    TABLES.read(list, start, file, |table| {
        // The bounds are those of socketio.connections_per_namespace_max and socketio.namespaces_max.
        let connections_max = table.number("connections_max", 0, 16_000_000);
        let namespaces_max = table.number("namespaces_max", 1, 10_000_000);
        let words = if table.has("backend") { table.words("backend", &Concerns::WORDS) } else { None };
        let backend = Concerns::of(&words.unwrap_or_default());
        let coding = table.read("encoding", &Kind::Word(&Coding::WORDS).allowed(), Coding::of);
        let pattern = table.new_pattern("name", &mut taken)?;
        let join = |value: &Value| Arrival::new(pattern.clone(), &super::routes::texts(value)?);
        let arrival = table.json("join", join);
        let arrival = arrival.or_else(|| Arrival::new(pattern.clone(), &[]).ok())?;
        let allowance = Allowance {
            pattern,
            connections_max,
            namespaces_max,
            backend,
            coding: coding.unwrap_or_default(),
        };
        Some((allowance, arrival))
    })
}
