//! The `[[redis.channels]]` of a configuration file: tables that say what is made of messages that others publish on Redis.

use super::Reloaded;
use super::Source;
use super::tables::{Reading, Table, Tables};
use crate::routes::Steps;
use crate::routes::channel::Channel;
use crate::routes::template::Paths;
use crate::rules::Pattern;
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "redis.channels",
    heading: "[[redis.channels]]",
    keys: &["name", "pattern", "namespace", "fields", "publish"],
    most: Channel::CONFIGURED_MAX,
    reloaded: Reloaded::No,
};

/// What the keys take, to stand behind "it takes".
const NAME: &str = "the name of a channel, of 1 to 512 bytes";
const PATTERN: &str = "a pattern of names of channels as PSUBSCRIBE takes it, of 1 to 512 bytes";
const NAMESPACE: &str = "the name of one namespace, like \"/\" or \"/chat\"";
const PUBLISH: &str = "what is published: a table like { all = true, event = \"news\" }, or a list of some";

/// Reads the list, which begins at `start`, into channels, those of tables that are right, and where each is said.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<(Channel, Source)> {
    TABLES.read(list, start, file, channel)
}

/// The channel that a table means. Its problems have been told when it means none.
fn channel(table: &mut Table<'_>) -> Option<(Channel, Source)> {
    let source = table.source();
    let name = |text: &str| (1..=512).contains(&text.len()).then(|| text.to_owned());
    let is_pattern = table.has("pattern");
    let name = if is_pattern {
        table.refuse("name", "it does not go with `pattern`");
        table.read("pattern", PATTERN, name)
    } else {
        table.require("name", NAME, name)
    };
    let namespace = if table.has("namespace") {
        let one = |text: &str| Pattern::parse(text).filter(|_| !text.contains('*')).map(|it| it.to_string());
        table.read("namespace", NAMESPACE, one)
    } else {
        Some("/".to_owned())
    };
    let mut paths = Paths::default();
    let fields = table.json("fields", |value| super::routes::fields(value, &mut paths)).unwrap_or_default();
    if !table.has("publish") {
        table.tell_missing("publish", PUBLISH);
    }
    let publish = table.json("publish", |value| super::routes::all_published(value, &mut paths))?;
    let steps = Steps { fields, publish, paths, ..Steps::default() };
    let channel = Channel { name: name?, is_pattern, namespace: namespace?, steps };
    if let Some(fault) = channel.fault() {
        table.refuse("publish", &fault);
        return None;
    }
    Some((channel, source))
}
