//! Templates: names and JSON with places that are filled from an event, its client and the server, as in `auction:{auctionId}`.
//!
//! They are read once, with the configuration. Of an event's arguments only the members are looked at that a template names, in one pass,
//! and only what fills a place is copied.

use crate::json::{each_member, split};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::io::Write as _;

/// The most bytes that one value of an event puts into a name.
pub const VALUE_BYTES_MAX: usize = 128;
/// The most members of events that the templates of one route may look at.
pub const PATHS_MAX: usize = 32;
/// The deepest member that a template can name, and the deepest that a template for JSON may be.
pub const DEPTH_MAX: usize = 8;

/// What is in place of `{…}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A member of the event's arguments, by its place in [`Paths`].
    Path(u8),
    /// The name of the user whose connection it is.
    User,
    /// Milliseconds since 1970.
    NowMs,
    /// An id that no other event has.
    Id,
    /// The id by which others know the client.
    Socket,
    /// The event's name.
    Event,
    /// The namespace's name.
    Namespace,
    /// The names of the rooms that the client is in, as a list.
    Rooms,
}

/// The words for those that are no member. A member that is called so is `{payload.user}`.
const WORDS: [(&str, Source); 7] = [
    ("user", Source::User),
    ("now_ms", Source::NowMs),
    ("id", Source::Id),
    ("socket", Source::Socket),
    ("event", Source::Event),
    ("namespace", Source::Namespace),
    ("rooms", Source::Rooms),
];

/// A member of an event's arguments: which argument, and the keys that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    arg: usize,
    keys: Vec<Box<str>>,
}

impl Path {
    /// Reads `a.b`, which is a member of the first argument, `payload.a`, which is the same, `payload`, which is the first argument itself, or
    /// `args.1.a`, which is a member of the second.
    pub fn parse(text: &str) -> Option<Path> {
        let mut keys: Vec<&str> = text.split('.').collect();
        let arg = match keys.as_slice() {
            ["payload", ..] => {
                keys.remove(0);
                0
            }
            ["args", arg, ..] => {
                let arg = arg.parse().ok().filter(|arg| *arg < PATHS_MAX)?;
                keys.drain(..2);
                arg
            }
            _ => 0,
        };
        let is_key = |key: &&str| !key.is_empty() && !key.contains(['{', '}']);
        (keys.len() <= DEPTH_MAX && keys.iter().all(is_key))
            .then(|| Path { arg, keys: keys.into_iter().map(Box::from).collect() })
    }

    /// What is wrong with `text`, which could not be read, in words.
    pub fn fault(text: &str) -> String {
        match text.split('.').count() > DEPTH_MAX {
            true => format!("{text} names a member with too many keys: at most {DEPTH_MAX}"),
            false => format!("{text} names no member of an event"),
        }
    }

    /// What the member is called: its last key; empty for a whole argument.
    pub fn name(&self) -> &str {
        self.keys.last().map_or("", |key| key)
    }

    /// The keys that lead to it; none for one of an argument behind the first.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter(|_| self.arg == 0).map(|key| &**key)
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.arg, self.keys.as_slice()) {
            (0, []) => f.write_str("payload"),
            (0, keys) => f.write_str(&keys.join(".")),
            (arg, keys) => {
                write!(f, "args.{arg}")?;
                keys.iter().try_for_each(|key| write!(f, ".{key}"))
            }
        }
    }
}

/// The members that the templates of one route look at, each once; at most [`PATHS_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths(Vec<Path>);

/// The members that were found, by their place in [`Paths`], each still JSON.
type Found<'a> = SmallVec<[Option<&'a str>; 8]>;

impl Paths {
    /// The place of `path`, which it gets if it has none; `None` when there are too many.
    pub fn place(&mut self, path: Path) -> Option<u8> {
        let place = self.0.iter().position(|other| *other == path).unwrap_or(self.0.len());
        if place == self.0.len() {
            if place == PATHS_MAX {
                return None;
            }
            self.0.push(path);
        }
        u8::try_from(place).ok()
    }

    /// The path in this place.
    pub fn at(&self, place: u8) -> &Path {
        &self.0[usize::from(place)]
    }

    /// All of them, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        self.0.iter()
    }

    /// Looks for all of them in an event's arguments: JSON values with commas between them, known to be well-formed. Of a key that comes
    /// twice the last value counts, as in JavaScript.
    pub fn find<'a>(&self, args: &'a str) -> Found<'a> {
        let mut found: Found<'a> = smallvec::smallvec![None; self.0.len()];
        if self.0.iter().all(|path| path.arg == 0 && !path.keys.is_empty()) {
            if !self.0.is_empty() {
                self.look(args, u32::MAX, 0, &mut found);
            }
            return found;
        }
        for (number, arg) in split(args).into_iter().enumerate() {
            let mut within = 0;
            for (place, path) in self.0.iter().enumerate().filter(|(_, path)| path.arg == number) {
                match path.keys.len() {
                    0 => found[place] = Some(arg),
                    _ => within |= 1 << place,
                }
            }
            if within != 0 {
                self.look(arg, within, 0, &mut found);
            }
        }
        found
    }

    /// Looks for those `within`, a set of places, in `json`, whose keys are `depth` deep.
    fn look<'a>(&self, json: &'a str, within: u32, depth: usize, found: &mut Found<'a>) {
        each_member(json, |key, value| {
            let mut deeper = 0;
            for (place, path) in self.0.iter().enumerate() {
                if within >> place & 1 == 0 || path.keys.get(depth).is_none_or(|meant| **meant != *key) {
                    continue;
                }
                if path.keys.len() == depth + 1 {
                    found[place] = Some(value);
                } else {
                    found[place] = None;
                    deeper |= 1 << place;
                }
            }
            if deeper != 0 {
                self.look(value, deeper, depth + 1, found);
            }
        });
    }
}

/// What the places of templates are filled with, for one event.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The members that [`Paths::find`] has found, in its order.
    pub found: &'a [Option<&'a str>],
    /// The event's arguments: JSON values with commas between them.
    pub args: &'a str,
    /// The event's name.
    pub event: &'a str,
    /// The namespace's name.
    pub namespace: &'a str,
    /// The user's name; `None` for nobody.
    pub user: Option<&'a str>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// See [`Source::Id`]. Empty where no template asks for it.
    pub id: &'a str,
    /// See [`Source::Socket`], likewise.
    pub socket: &'a str,
    /// See [`Source::Rooms`], a JSON list, likewise: as it is when those of the steps are taken that come before.
    pub rooms: &'a str,
}

impl<'a> Values<'a> {
    /// The JSON that fills a place; `None` when there is nothing.
    fn json(&self, source: Source) -> Option<Cow<'a, str>> {
        let text = |text: &str| Some(Cow::Owned(quoted(text)));
        match source {
            Source::Path(place) => self.found.get(usize::from(place)).copied().flatten().map(Cow::Borrowed),
            Source::User => self.user.and_then(text),
            Source::NowMs => Some(self.now_ms.to_string().into()),
            Source::Id => text(self.id),
            Source::Socket => text(self.socket),
            Source::Event => text(self.event),
            Source::Namespace => text(self.namespace),
            Source::Rooms => Some(self.rooms.into()),
        }
    }
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text can be written as JSON")
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// What stands there as it is.
    Text(Box<str>),
    /// What is filled in.
    Place(Source),
}

/// Reads a template's text into its pieces. `{{` and `}}` stand for braces.
fn parts(template: &str, paths: &mut Paths) -> Result<Vec<Part>, String> {
    let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), template);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            text.push_str(&rest[..1]);
            rest = after;
            continue;
        }
        let (place, after) = rest
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
            .ok_or_else(|| format!("{template:?} has a brace without its other one; {{{{ is a brace"))?;
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text).into()));
        }
        parts.push(Part::Place(source(place, paths)?));
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
    Ok(parts)
}

/// What `{place}` stands for.
fn source(place: &str, paths: &mut Paths) -> Result<Source, String> {
    if let Some((_, source)) = WORDS.iter().find(|(word, _)| *word == place) {
        return Ok(*source);
    }
    let path = Path::parse(place).ok_or_else(|| Path::fault(&format!("{{{place}}}")))?;
    let many = || format!("more than {PATHS_MAX} members of events in one route");
    paths.place(path).map(Source::Path).ok_or_else(many)
}

/// Why a name could not be made from an event: the place that could not be filled, and what is wrong with it, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

/// A template for the name of a room or a user. Displayed, it is as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it was written.
    template: Box<str>,
    parts: Vec<Part>,
    /// True when it stands for one name, and a list is refused.
    is_one: bool,
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.template)
    }
}

impl Name {
    /// Reads one. The members that it names go into `paths`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(template: &str, paths: &mut Paths) -> Result<Name, String> {
        let parts = parts(template, paths)?;
        if parts.is_empty() {
            return Err("a name must not be empty".to_owned());
        }
        if template.contains(char::is_control) {
            return Err(format!("{template:?} has a control character"));
        }
        match parts.contains(&Part::Place(Source::Rooms)) {
            true => Err("{rooms} is a list of names, and no part of one".to_owned()),
            false => Ok(Name { template: template.into(), parts, is_one: false }),
        }
    }

    /// The same for one name alone.
    #[must_use]
    pub fn of_one(self) -> Name {
        Name { is_one: true, ..self }
    }

    /// True when the name is the same for every event.
    pub fn is_static(&self) -> bool {
        matches!(self.parts.as_slice(), [Part::Text(_)])
    }

    /// True when `source` is in it.
    pub fn has(&self, source: Source) -> bool {
        self.parts.contains(&Part::Place(source))
    }

    /// Adds the names that it stands for to `names`: one, or where a member is a list as many as that has, but no more than `most` in all.
    ///
    /// What a member puts into a name is a text of at most [`VALUE_BYTES_MAX`] bytes, or a number. It has letters, digits and `-_.@+=~`, and is
    /// more than dots: so it can't reach into another room than the template means.
    ///
    /// # Errors
    /// When a place can't be filled so.
    pub fn fill<'n>(
        &'n self,
        values: &Values<'_>,
        paths: &Paths,
        most: usize,
        names: &mut SmallVec<[Cow<'n, str>; 4]>,
    ) -> Result<(), Fault> {
        if let [Part::Text(text)] = self.parts.as_slice() {
            names.push(Cow::Borrowed(text));
            return Ok(());
        }
        let list = self.parts.iter().find_map(|part| match part {
            Part::Place(Source::Path(place)) => values.found[usize::from(*place)]
                .filter(|json| json.starts_with('['))
                .map(|list| (*place, list)),
            _ => None,
        });
        let Some((place, list)) = list else {
            names.push(self.fill_one(values, paths, None)?.into());
            return Ok(());
        };
        if self.is_one {
            return Err(Fault(format!("`{}` is a list, where one room is meant", paths.at(place))));
        }
        for item in split(&list[1..list.len() - 1]) {
            if names.len() == most {
                return Err(Fault(format!("`{}` names more than {most} rooms", paths.at(place))));
            }
            names.push(self.fill_one(values, paths, Some((place, item)))?.into());
        }
        Ok(())
    }

    /// The name, where the member in the place of `item` is that.
    fn fill_one(
        &self,
        values: &Values<'_>,
        paths: &Paths,
        item: Option<(u8, &str)>,
    ) -> Result<String, Fault> {
        let mut name = String::with_capacity(48);
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Place(Source::Path(place)) => {
                    let found = match item {
                        Some((of, item)) if of == *place => Some(item),
                        _ => values.found[usize::from(*place)],
                    };
                    push_value(&mut name, found, paths.at(*place))?;
                }
                Part::Place(Source::User) => {
                    name.push_str(values.user.ok_or_else(|| Fault("only users may do this".to_owned()))?);
                }
                Part::Place(Source::NowMs) => {
                    write!(name, "{}", values.now_ms).expect("writing to memory does not fail");
                }
                Part::Place(Source::Id) => name.push_str(values.id),
                Part::Place(Source::Socket) => name.push_str(values.socket),
                // Whoever sends it names it.
                Part::Place(Source::Event) => push_text(&mut name, values.event, &"{event}")?,
                Part::Place(Source::Namespace) => name.push_str(values.namespace),
                Part::Place(Source::Rooms) => {}
            }
        }
        Ok(name)
    }
}

/// Adds a member of an event to a name.
fn push_value(name: &mut String, json: Option<&str>, path: &Path) -> Result<(), Fault> {
    let fault = |what: &str| Err(Fault(format!("`{path}` {what}")));
    let text: Cow<'_, str> = match json {
        None | Some("null") => return fault("is missing"),
        // Escaped, it is at most six times as long.
        Some(text) if text.len() > 6 * VALUE_BYTES_MAX + 2 => return fault("is too long for a name"),
        Some(text) if text.starts_with('"') => match text[1..text.len() - 1].contains('\\') {
            false => text[1..text.len() - 1].into(),
            true => match serde_json::from_str::<String>(text) {
                Ok(text) => text.into(),
                Err(_) => return fault("is no text"),
            },
        },
        Some(number) if number.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => {
            number.into()
        }
        Some(_) => return fault("is neither a text nor a number"),
    };
    push_text(name, &text, path)
}

/// Adds a text that a client has chosen to a name. `what` it is stands in the words of a fault.
fn push_text(name: &mut String, text: &str, what: &impl Display) -> Result<(), Fault> {
    let fault = |why: &str| Err(Fault(format!("`{what}` {why}")));
    if text.len() > VALUE_BYTES_MAX {
        return fault("is too long for a name");
    }
    let is_allowed =
        |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.' | '@' | '+' | '=' | '~');
    if !text.chars().all(is_allowed) || text.chars().all(|letter| letter == '.') {
        return fault("has letters that are not allowed in a name");
    }
    name.push_str(text);
    Ok(())
}

/// A template for JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// The event's own arguments, as they are.
    Args,
    /// JSON that is the same for every event.
    Fixed(Box<str>),
    /// A text that is one place alone: the value that fills it, of whatever kind.
    Value(Source),
    /// A text with places in it: a text.
    Text(Pieces),
    /// An object; keys are JSON already. A member whose value is missing is left out.
    Object(Vec<(Box<str>, Data)>),
    /// A list; `null` stands for what is missing.
    List(Vec<Data>),
    /// The members of the event's first argument, but for those added.
    With(Vec<(Box<str>, Data)>),
}

/// The pieces of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces(Vec<Part>);

impl Data {
    /// Reads a template: JSON whose texts may have places.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(template: &serde_json::Value, paths: &mut Paths) -> Result<Data, String> {
        Data::parse_at(template, paths, 0)
    }

    fn parse_at(template: &serde_json::Value, paths: &mut Paths, depth: usize) -> Result<Data, String> {
        use serde_json::Value;
        if depth > DEPTH_MAX {
            return Err(format!("it is more than {DEPTH_MAX} deep"));
        }
        let data = match template {
            Value::String(text) => {
                let mut parts = parts(text, paths)?;
                match parts.as_slice() {
                    [Part::Place(source)] => Data::Value(*source),
                    [] => Data::Fixed("\"\"".into()),
                    [Part::Text(text)] => Data::Fixed(quoted(text).into()),
                    _ => {
                        // What stands between the quotes of JSON.
                        for part in &mut parts {
                            if let Part::Text(text) = part {
                                let json = quoted(text);
                                *text = json[1..json.len() - 1].into();
                            }
                        }
                        Data::Text(Pieces(parts))
                    }
                }
            }
            Value::Array(items) => Data::List(
                items.iter().map(|item| Data::parse_at(item, paths, depth + 1)).collect::<Result<_, _>>()?,
            ),
            Value::Object(members) => {
                let member = |(key, value): (&String, &Value)| -> Result<(Box<str>, Data), String> {
                    Ok((quoted(key).into(), Data::parse_at(value, paths, depth + 1)?))
                };
                Data::Object(members.iter().map(member).collect::<Result<_, _>>()?)
            }
            fixed => Data::Fixed(fixed.to_string().into()),
        };
        Ok(data)
    }

    /// An object of the members `picked` from an event, each under its own name, and of those `added`, which is an object.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn pick(picked: &[String], added: Data, paths: &mut Paths) -> Result<Data, String> {
        let Data::Object(added) = added else { return Err("what is added is an object".to_owned()) };
        let mut members = Vec::new();
        for text in picked {
            let path = Path::parse(text).filter(|path| !path.name().is_empty());
            let path = path.ok_or_else(|| Path::fault(&format!("{text:?}")))?;
            let key: Box<str> = quoted(path.name()).into();
            let many = || format!("more than {PATHS_MAX} members of events in one route");
            let place = paths.place(path).ok_or_else(many)?;
            if !added.iter().any(|(other, _)| *other == key) {
                members.push((key, Data::Value(Source::Path(place))));
            }
        }
        members.extend(added);
        Ok(Data::Object(members))
    }

    /// True when `source` is in it.
    pub fn has(&self, source: Source) -> bool {
        match self {
            Data::Args | Data::Fixed(_) => false,
            Data::Value(other) => *other == source,
            Data::Text(Pieces(parts)) => parts.contains(&Part::Place(source)),
            Data::Object(members) | Data::With(members) => members.iter().any(|(_, data)| data.has(source)),
            Data::List(items) => items.iter().any(|item| item.has(source)),
        }
    }

    /// Writes what it stands for, `null` when that is missing from the event.
    pub fn fill_or_null(&self, values: &Values<'_>, out: &mut Vec<u8>) {
        if !self.fill(values, out) {
            out.extend_from_slice(b"null");
        }
    }

    /// Writes what it stands for. False, and nothing written, when it is missing from the event.
    pub fn fill(&self, values: &Values<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Data::Args => out.extend_from_slice(values.args.as_bytes()),
            Data::Fixed(json) => out.extend_from_slice(json.as_bytes()),
            Data::Value(source) => match values.json(*source) {
                Some(json) => out.extend_from_slice(json.as_bytes()),
                None => return false,
            },
            Data::Text(Pieces(parts)) => {
                out.push(b'"');
                for part in parts {
                    match part {
                        Part::Text(json) => out.extend_from_slice(json.as_bytes()),
                        Part::Place(source) => push_inside(out, values.json(*source).as_deref()),
                    }
                }
                out.push(b'"');
            }
            Data::Object(members) => {
                out.push(b'{');
                fill_members(members, values, out, true);
                out.push(b'}');
            }
            Data::List(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    if !item.fill(values, out) {
                        out.extend_from_slice(b"null");
                    }
                }
                out.push(b']');
            }
            Data::With(added) => {
                out.push(b'{');
                let mut is_first = true;
                each_member(values.args, |key, value| {
                    let key = quoted(key);
                    if !added.iter().any(|(other, _)| **other == *key) {
                        let comma = if std::mem::take(&mut is_first) { "" } else { "," };
                        write!(out, "{comma}{key}:{value}").expect("writing to memory does not fail");
                    }
                });
                fill_members(added, values, out, is_first);
                out.push(b'}');
            }
        }
        true
    }
}

fn fill_members(members: &[(Box<str>, Data)], values: &Values<'_>, out: &mut Vec<u8>, mut is_first: bool) {
    for (key, data) in members {
        let before = out.len();
        if !is_first {
            out.push(b',');
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b':');
        if data.fill(values, out) {
            is_first = false;
        } else {
            out.truncate(before);
        }
    }
}

/// Writes JSON into a text of JSON: texts and numbers as they are, anything else as its JSON.
fn push_inside(out: &mut Vec<u8>, json: Option<&str>) {
    match json {
        None => {}
        Some(text) if text.starts_with('"') => out.extend_from_slice(&text.as_bytes()[1..text.len() - 1]),
        Some(json) if json.starts_with(['{', '[']) => {
            let text = quoted(json);
            out.extend_from_slice(&text.as_bytes()[1..text.len() - 1]);
        }
        Some(json) => out.extend_from_slice(json.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ARGS: &str = r#"{"auctionId":3,"who":{"name":"Ann","tags":["a","b"]},"text":"say \"hi\"\n","user":"mallory","no":null},"second""#;

    fn values<'a>(found: &'a [Option<&'a str>], args: &'a str) -> Values<'a> {
        Values {
            found,
            args,
            event: "bid",
            namespace: "/lots",
            user: Some("ann \"x\""),
            now_ms: 1_700_000_000_123,
            id: "ID",
            socket: "SOCKET",
            rooms: r#"["a","b"]"#,
        }
    }

    fn names(template: &str, args: &str) -> Result<Vec<String>, String> {
        let mut paths = Paths::default();
        let name = Name::parse(template, &mut paths).expect("a template");
        let found = paths.find(args);
        let mut names = SmallVec::new();
        let filled = name.fill(&values(&found, args), &paths, 3, &mut names);
        filled.map(|()| names.iter().map(|name| name.to_string()).collect()).map_err(|Fault(words)| words)
    }

    fn json_of(template: &serde_json::Value, args: &str) -> Option<String> {
        let mut paths = Paths::default();
        let data = Data::parse(template, &mut paths).expect("a template");
        let found = paths.find(args);
        let mut out = Vec::new();
        data.fill(&values(&found, args), &mut out).then(|| String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn names_are_filled_from_the_event_the_user_and_the_server() {
        for (template, name) in [
            ("auction:{auctionId}", "auction:3"),
            ("{who.name}-{payload.user}", "Ann-mallory"),
            ("{args.1}/{event}", "second/bid"),
            ("{{{namespace}}}:{id}", "{/lots}:ID"),
            ("user:{user}", "user:ann \"x\""),
            ("at {now_ms}", "at 1700000000123"),
            ("{payload.auctionId}", "3"),
        ] {
            assert_eq!(names(template, ARGS), Ok(vec![name.to_owned()]), "{template}");
        }
        assert_eq!(names("tag:{who.tags}", ARGS), Ok(vec!["tag:a".to_owned(), "tag:b".to_owned()]));
        assert_eq!(names("tag:{t}", r#"{"t":[]}"#), Ok(vec![]));
    }

    #[test]
    fn what_an_event_puts_into_a_name_is_bounded() {
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
        let escaped = format!(r#"{{"a":"{}"}}"#, "\\u0041".repeat(VALUE_BYTES_MAX));
        for (args, fault) in [
            ("{}", "`a` is missing"),
            ("", "`a` is missing"),
            ("[1]", "`a` is missing"),
            (r#"{"a":null}"#, "`a` is missing"),
            (r#"{"a":true}"#, "`a` is neither a text nor a number"),
            (r#"{"a":{"b":1}}"#, "`a` is neither a text nor a number"),
            (r#"{"a":["b",["c"]]}"#, "`a` is neither a text nor a number"),
            (r#"{"a":"b\nc"}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":"../b"}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":".."}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":""}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":"b:c"}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":"b*"}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":"\u0000"}"#, "`a` has letters that are not allowed in a name"),
            (r#"{"a":"\ud800"}"#, "`a` is no text"),
            (r#"{"a":[1,2,3,4]}"#, "`a` names more than 3 rooms"),
            (&long, "`a` is too long for a name"),
        ] {
            assert_eq!(names("room:{a}", args), Err(fault.to_owned()), "{}", &args[..args.len().min(40)]);
        }
        assert_eq!(names("{a}", &escaped), Ok(vec!["A".repeat(VALUE_BYTES_MAX)]));
        assert_eq!(names("{a}", r#"{"a":"größe_1.5@x"}"#), Ok(vec!["größe_1.5@x".to_owned()]));
        assert_eq!(names("{a}", r#"{"a":1,"a":2}"#), Ok(vec!["2".to_owned()]), "the last counts");
    }

    #[test]
    fn json_is_filled_likewise() {
        for (template, json) in [
            (json!({"lot": "{auctionId}", "by": "{user}", "n": 1}), r#"{"by":"ann \"x\"","lot":3,"n":1}"#),
            (json!("{text}"), r#""say \"hi\"\n""#),
            (json!("<{text}>"), r#""<say \"hi\"\n>""#),
            (json!("{who}!"), r#""{\"name\":\"Ann\",\"tags\":[\"a\",\"b\"]}!""#),
            (json!(["{who.tags}", "{missing}", {"a": "{missing}"}]), r#"[["a","b"],null,{}]"#),
            (json!("{missing}{now_ms}"), r#""1700000000123""#),
            (json!({"rooms": "{rooms}", "q": "a\"b{id}"}), r#"{"q":"a\"bID","rooms":["a","b"]}"#),
            (json!({"no": "{no}"}), r#"{"no":null}"#),
            (json!(true), "true"),
        ] {
            let filled = json_of(&template, ARGS).expect("it is there");
            assert_eq!(filled, json, "{template}");
            serde_json::from_str::<serde_json::Value>(&filled).expect("JSON");
        }
        assert_eq!(json_of(&json!("{missing}"), ARGS), None);
    }

    #[test]
    fn members_are_picked_and_added() {
        let mut paths = Paths::default();
        let added =
            Data::parse(&json!({"user": "{user}", "x": "{missing}"}), &mut paths).expect("a template");
        let Data::Object(members) = added.clone() else { panic!("an object") };
        let picked = ["who.name", "user", "missing"].map(str::to_owned);
        let picked = Data::pick(&picked, added, &mut paths).expect("a template");
        let with = Data::With(members);
        let filled = |data: &Data, args: &str| {
            let found = paths.find(args);
            let mut out = Vec::new();
            assert!(data.fill(&values(&found, args), &mut out));
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(filled(&picked, ARGS), r#"{"name":"Ann","user":"ann \"x\""}"#);
        assert_eq!(filled(&with, r#"{"a\"b":1, "user":2}"#), r#"{"a\"b":1,"user":"ann \"x\""}"#);
        for no_object in ["", "7", "[1]", "{}"] {
            assert_eq!(filled(&with, no_object), r#"{"user":"ann \"x\""}"#, "{no_object}");
        }
    }

    #[test]
    fn templates_that_mean_nothing_are_refused() {
        for template in [
            "",
            "{",
            "}",
            "a{b",
            "{}",
            "{a..b}",
            "{a{b}}",
            "{args.99}",
            "{args.x}",
            "{rooms}",
            "{a.b.c.d.e.f.g.h.i}",
        ] {
            assert!(Name::parse(template, &mut Paths::default()).is_err(), "{template:?}");
        }
        let many: String = (0..=PATHS_MAX).map(|n| format!("{{m{n}}}")).collect();
        assert!(Name::parse(&many, &mut Paths::default()).is_err());
        let mut deep = json!(1);
        for _ in 0..=DEPTH_MAX {
            deep = json!([deep]);
        }
        assert!(Data::parse(&deep, &mut Paths::default()).is_err());
    }
}
