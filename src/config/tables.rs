//! Lists of tables in a configuration file, like `[[routes]]` and `[[namespaces]]`: how each table is read, and what is wrong with it told.

use super::value::{HIDDEN, Value};
use super::{Fault, Given, Kind, Problem, Reloaded, Source, nearest};
use crate::rules::Pattern;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What a key takes that names namespaces, to stand behind "it takes".
const NAMESPACE: &str = "a namespace, like \"/\" or \"/chat\", where \"*\" stands for any one segment";

/// What may be in a list.
pub(super) struct Tables {
    /// Its name, and what its keys begin with in problems.
    pub(super) name: &'static str,
    /// How a table of it is headed.
    pub(super) heading: &'static str,
    /// What a table may say.
    pub(super) keys: &'static [&'static str],
    /// How many tables there may be.
    pub(super) most: usize,
    /// Whether a change of it takes effect on SIGHUP.
    pub(super) reloaded: Reloaded,
}

/// The file that is read. What is wrong goes to `problems`; `source` says where a byte of `text` is.
pub(super) struct Reading<'a> {
    pub(super) text: &'a str,
    pub(super) source: &'a dyn Fn(usize) -> Source,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Tables {
    /// Reads the list that begins at `start`: of each table what `meaning` says that it means.
    pub(super) fn read<T>(
        &self,
        list: &DeValue<'_>,
        start: usize,
        mut file: Reading<'_>,
        mut meaning: impl FnMut(&mut Table<'_>) -> Option<T>,
    ) -> Vec<T> {
        let tables = format!("a list of tables, {}", self.heading);
        let DeValue::Array(items) = list else {
            file.tell_value(self.name, Given::from_toml(list, file.text).to_string(), tables, start);
            return Vec::new();
        };
        if let Some(item) = items.get(self.most) {
            let given = format!("a list of {} tables", items.len());
            file.tell_value(self.name, given, format!("at most {}", self.most), item.span().start);
        }
        let mut meanings = Vec::new();
        for item in items.iter().take(self.most) {
            let start = item.span().start;
            match item.get_ref() {
                DeValue::Table(content) => {
                    let Reading { text, source, problems } = &mut file;
                    let file = Reading { text, source, problems };
                    let mut table = Table { of: self, content, start, file };
                    table.tell_unknown();
                    meanings.extend(meaning(&mut table));
                }
                other => {
                    let given = Given::from_toml(other, file.text).to_string();
                    file.tell_value(self.name, given, tables.clone(), start);
                }
            }
        }
        meanings
    }
}

impl Reading<'_> {
    fn tell_value(&mut self, key: &str, given: String, allowed: String, at: usize) {
        self.tell(key.to_owned(), at, Fault::Value { given, allowed });
    }

    fn tell(&mut self, key: String, at: usize, fault: Fault) {
        self.problems.push(Problem { key, source: (self.source)(at), fault });
    }
}

/// One table while it is read.
pub(super) struct Table<'a> {
    of: &'a Tables,
    content: &'a DeTable<'a>,
    /// Where it begins.
    start: usize,
    file: Reading<'a>,
}

impl<'a> Table<'a> {
    /// What `key`, which must be there, stands for; `None` when that is a problem, which has been told.
    pub(super) fn require<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.tell_missing(key, allowed);
        }
        self.read(key, allowed, read)
    }

    /// What `key` stands for, a text; `None` when it is not there, or a problem, which has been told.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.read_given(key, allowed, |given| given.text().and_then(&read))
    }

    /// The namespaces that `key` names, if it is there.
    pub(super) fn pattern(&mut self, key: &str) -> Option<Pattern> {
        self.read(key, NAMESPACE, Pattern::parse)
    }

    /// The namespaces that `key` names, which must be there and in none of the tables before, whose patterns `taken` has.
    pub(super) fn new_pattern(&mut self, key: &str, taken: &mut Vec<Pattern>) -> Option<Pattern> {
        let pattern = self.require(key, NAMESPACE, Pattern::parse)?;
        if taken.contains(&pattern) {
            let allowed = format!("a namespace that no {} before this one has", self.of.heading);
            return self.read(key, &allowed, |_| None);
        }
        taken.push(pattern.clone());
        Some(pattern)
    }

    /// The flag that `key` stands for, if it is there.
    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        self.read_given(key, &Kind::Flag.allowed(), Given::flag)
    }

    /// The number that `key` stands for, from `min` to `max`, if it is there.
    pub(super) fn number(&mut self, key: &str, min: u32, max: u32) -> Option<u32> {
        let allowed = Kind::Number { min: min.into(), max: max.into() }.allowed();
        let read = |given: &Given| u32::try_from(given.number()?).ok();
        self.read_given(key, &allowed, |given| read(given).filter(|number| (min..=max).contains(number)))
    }

    /// The date that `key` stands for, if it is there: a date of TOML, or a text.
    pub(super) fn date<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.read_given(key, allowed, |given| match given {
            Given::Other(text) => read(text),
            given => given.text().and_then(&read),
        })
    }

    /// What the list of words that `key` stands for, which must be there, means.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&[String]) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.tell(key, self.start, Fault::Missing { allowed: allowed.to_owned() });
        }
        self.read_given(key, allowed, |given| read(&given.list(|word| Some(word.to_owned())).ok()?))
    }

    /// What `key` stands for, a text that is not shown; `None` as with [`Table::read`].
    pub(super) fn secret<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let (at, value) = self.entry(key)?;
        let meant = Given::from_toml(value.get_ref(), self.file.text).text().and_then(read);
        if meant.is_none() {
            self.tell(key, at, Fault::Value { given: HIDDEN.to_owned(), allowed: allowed.to_owned() });
        }
        meant
    }

    /// The words that `key` lists, which must be there: at least one, and all of them `known`.
    pub(super) fn words(&mut self, key: &str, known: &'static [&'static str]) -> Option<Vec<&'static str>> {
        let allowed = format!("a list of at least one of \"{}\"", known.join("\", \""));
        if !self.has(key) {
            self.tell_missing(key, &allowed);
        }
        let word = |text: &str| known.iter().find(|word| **word == text).copied();
        self.read_given(key, &allowed, |given| given.list(word).ok().filter(|words| !words.is_empty()))
    }

    /// What `read` makes of the value of `key`, if it is there, as JSON: dates are texts. Where it makes nothing, it says what is wrong.
    pub(super) fn json<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&serde_json::Value) -> Result<T, String>,
    ) -> Option<T> {
        let (at, value) = self.entry(key)?;
        read(&json_of(value.get_ref())).map_err(|why| self.tell(key, at, Fault::Wrong { why })).ok()
    }

    /// Tells `why` `key` must not be there, if it is.
    pub(super) fn refuse(&mut self, key: &str, why: &str) {
        if let Some((at, _)) = self.entry(key) {
            self.tell(key, at, Fault::Wrong { why: why.to_owned() });
        }
    }

    /// Where the table begins.
    pub(super) fn source(&self) -> Source {
        (self.file.source)(self.start)
    }

    /// True when `key` is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// True when it says something that such a table may not say, which has been told.
    pub(super) fn has_unknown(&self) -> bool {
        self.content.keys().any(|name| !self.of.keys.contains(&name.get_ref().as_ref()))
    }

    /// Tells that `key` must be there.
    pub(super) fn tell_missing(&mut self, key: &str, allowed: &str) {
        self.tell(key, self.start, Fault::Missing { allowed: allowed.to_owned() });
    }

    /// Tells that `key` must not be as it is, which is not shown.
    pub(super) fn tell_conflict(&mut self, key: &str, allowed: &str) {
        let at = self.entry(key).map_or(self.start, |(at, _)| at);
        self.tell(key, at, Fault::Value { given: HIDDEN.to_owned(), allowed: allowed.to_owned() });
    }

    /// The number that `key` stands for, which must be there and be of this kind.
    pub(super) fn require_number(&mut self, key: &str, kind: Kind) -> Option<u32> {
        let allowed = kind.allowed() + kind.also();
        if self.entry(key).is_none() {
            self.tell(key, self.start, Fault::Missing { allowed: allowed.clone() });
        }
        self.read_given(key, &allowed, |given| match kind.read(given) {
            Ok(Value::Number(number) | Value::Bytes(number)) => u32::try_from(number).ok(),
            _ => None,
        })
    }

    /// What the table of texts that `key` stands for means, if it is there: names and texts, in the order of the file.
    pub(super) fn texts_by_name<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&[(String, String)]) -> Option<T>,
    ) -> Option<T> {
        let (at, value) = self.entry(key)?;
        let pairs = match value.get_ref() {
            DeValue::Table(table) => table
                .iter()
                .map(|(name, value)| Some((name.get_ref().to_string(), value.get_ref().as_str()?.to_owned())))
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let meant = pairs.and_then(|pairs| read(&pairs));
        if meant.is_none() {
            let given = Given::from_toml(value.get_ref(), self.file.text).to_string();
            self.tell(key, at, Fault::Value { given, allowed: allowed.to_owned() });
        }
        meant
    }

    fn read_given<T>(&mut self, key: &str, allowed: &str, read: impl Fn(&Given) -> Option<T>) -> Option<T> {
        let (at, value) = self.entry(key)?;
        let given = Given::from_toml(value.get_ref(), self.file.text);
        let meant = read(&given);
        if meant.is_none() {
            let fault = Fault::Value { given: given.to_string(), allowed: allowed.to_owned() };
            self.tell(key, at, fault);
        }
        meant
    }

    fn tell_unknown(&mut self) {
        let keys = self.of.keys;
        for name in self.content.keys() {
            let key: &str = name.get_ref();
            if !keys.contains(&key) {
                let known = |known: &&str| format!("{}.{known}", self.of.name);
                let part = keys.iter().find(|known| !key.is_empty() && known.contains(key)).map(known);
                let nearest =
                    part.or_else(|| nearest(key, keys.iter().map(|name| ((*name).to_owned(), known(name)))));
                self.tell(key, name.span().start, Fault::Unknown { nearest });
            }
        }
    }

    /// Where `key` stands, and its value.
    fn entry(&self, key: &str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        let (name, value) = self.content.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((name.span().start, value))
    }

    fn tell(&mut self, key: &str, at: usize, fault: Fault) {
        self.file.tell(format!("{}.{key}", self.of.name), at, fault);
    }
}

fn json_of(value: &DeValue<'_>) -> serde_json::Value {
    use serde_json::Value;
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string().into(), Value::from),
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Datetime(date) => date.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| json_of(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let member = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| -> (String, Value) {
                let key: &std::borrow::Cow<'_, str> = key.get_ref();
                (key.clone().into_owned(), json_of(value.get_ref()))
            };
            table.iter().map(member).collect()
        }
    }
}
