//! The `[[events]]` of a configuration file: tables that say what clients' events do.

use super::{Fault, Given, Kind, Problem, Source, nearest};
use crate::rules::{Action, Pattern, Rule, Rules, is_event_name};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The name of the list, and what its keys begin with in problems.
pub(super) const NAME: &str = "events";
/// How a table of it is headed.
pub(super) const HEADING: &str = "[[events]]";

const KEYS: &[&str] = &["namespace", "on", "do", "room", "event", "data"];
const ACTIONS: &[&str] = &["join", "leave", "publish", "reply", "ack"];

/// What the keys take, to stand behind "it takes".
const NAMESPACE: &str = "a namespace, like \"/\" or \"/chat\", where \"*\" stands for any one segment";
const EVENT: &str = "the name of an event, but not one that Socket.IO reserves, like \"connect\"";
const FIELD: &str = "the name of a field";

/// Reads the list into rules, those of tables that are right. What is wrong goes to `problems`; `source` says where in the file
/// a byte of `text` is, and the list begins at `start`.
pub(super) fn read(
    list: &DeValue<'_>,
    start: usize,
    text: &str,
    source: &dyn Fn(usize) -> Source,
    problems: &mut Vec<Problem>,
) -> Vec<Rule> {
    let wrong = |given: String, allowed: String, at: usize| {
        let fault = Fault::Value { given, allowed };
        Problem { key: NAME.to_owned(), source: source(at), fault }
    };
    let tables = format!("a list of tables, {HEADING}");
    let DeValue::Array(items) = list else {
        problems.push(wrong(Given::from_toml(list, text).to_string(), tables.clone(), start));
        return Vec::new();
    };
    if let Some(item) = items.get(Rules::CONFIGURED_MAX) {
        let given = format!("a list of {} tables", items.len());
        problems.push(wrong(given, format!("at most {}", Rules::CONFIGURED_MAX), item.span().start));
    }
    let mut rules = Vec::new();
    for item in items.iter().take(Rules::CONFIGURED_MAX) {
        let start = item.span().start;
        match item.get_ref() {
            DeValue::Table(table) => {
                rules.extend(Table { table, start, text, source, problems }.rule());
            }
            other => problems.push(wrong(Given::from_toml(other, text).to_string(), tables.clone(), start)),
        }
    }
    rules
}

/// One table while it is read.
struct Table<'a> {
    table: &'a DeTable<'a>,
    /// Where it begins.
    start: usize,
    text: &'a str,
    source: &'a dyn Fn(usize) -> Source,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Table<'a> {
    /// The rule that the table means. Its problems have been told when it means none; when there are problems with a rule all the same,
    /// it stands in for what would have been right.
    fn rule(mut self) -> Option<Rule> {
        self.tell_unknown();
        let namespace = self.read("namespace", NAMESPACE, Pattern::parse);
        let on = self.require("on", EVENT, event);
        let named = |word: &str| ACTIONS.iter().copied().find(|action| *action == word);
        let word = self.require("do", &Kind::Word(ACTIONS).allowed(), named)?;
        let (action, used): (Action, &[&str]) = match word {
            "join" => (Action::Join { room_fields: self.room_fields() }, &["room"]),
            "leave" => (Action::Leave { room_fields: self.room_fields() }, &["room"]),
            "publish" => {
                let room_fields = self.room_fields();
                let event_field = self.field("event").unwrap_or_else(|| Action::EVENT_FIELD.to_owned());
                let data_field = self.field("data").unwrap_or_else(|| Action::DATA_FIELD.to_owned());
                (Action::Publish { room_fields, event_field, data_field }, &["room", "event", "data"])
            }
            "reply" => {
                let event = self.require("event", EVENT, event).unwrap_or_default();
                (Action::Reply { event }, &["event"])
            }
            _ => (Action::Ack, &[]),
        };
        for key in ["room", "event", "data"] {
            if !used.contains(&key) {
                self.read::<()>(key, &format!("nothing where do = \"{word}\""), |_| None);
            }
        }
        Some(Rule { namespace, on: on?, action })
    }

    fn tell_unknown(&mut self) {
        for name in self.table.keys() {
            let key: &str = name.get_ref();
            if !KEYS.contains(&key) {
                let known = |known: &&str| format!("{NAME}.{known}");
                let part = KEYS.iter().find(|known| !key.is_empty() && known.contains(key)).map(known);
                let nearest =
                    part.or_else(|| nearest(key, KEYS.iter().map(|name| ((*name).to_owned(), known(name)))));
                self.tell(key, name.span().start, Fault::Unknown { nearest });
            }
        }
    }

    /// The names of the fields that name rooms.
    fn room_fields(&mut self) -> Vec<String> {
        self.field("room").map_or_else(Action::room_fields, |field| vec![field])
    }

    /// The name of a field, if the table gives one for `key`.
    fn field(&mut self, key: &str) -> Option<String> {
        self.read(key, FIELD, |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    /// What `key`, which must be there, stands for; `None` when that is a problem, which has been told.
    fn require<T>(&mut self, key: &str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        if self.entry(key).is_none() {
            self.tell(key, self.start, Fault::Missing { allowed: allowed.to_owned() });
        }
        self.read(key, allowed, read)
    }

    /// What `key` stands for; `None` when it is not there, or a problem, which has been told.
    fn read<T>(&mut self, key: &str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (name, value) = self.entry(key)?;
        let given = Given::from_toml(value.get_ref(), self.text);
        let meant = given.text().and_then(read);
        if meant.is_none() {
            let fault = Fault::Value { given: given.to_string(), allowed: allowed.to_owned() };
            self.tell(key, name, fault);
        }
        meant
    }

    /// Where `key` stands, and its value.
    fn entry(&self, key: &str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        let (name, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((name.span().start, value))
    }

    fn tell(&mut self, key: &str, at: usize, fault: Fault) {
        let source = (self.source)(at);
        self.problems.push(Problem { key: format!("{NAME}.{key}"), source, fault });
    }
}

fn event(text: &str) -> Option<String> {
    is_event_name(text).then(|| text.to_owned())
}
