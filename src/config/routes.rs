//! The `[[routes]]` of a configuration file: tables that say what clients' events do.

use super::Reloaded;
use super::tables::{Reading, Table, Tables};
use super::{Kind, Source};
use crate::message::is_reserved_room;
use crate::permissions::Who;
use crate::routes::template::{Data, Name, Path, Paths};
use crate::routes::{BuiltIn, Does, Field, FieldKind, Needs, Publish, Route, Routes, Saying, Steps, Target};
use crate::rules::is_event_name;
use serde::Deserialize;
use serde_json::Value;
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "routes",
    heading: "[[routes]]",
    keys: &[
        "namespace",
        "on",
        "who",
        "do",
        "room",
        "event",
        "data",
        "fields",
        "refuse",
        "member",
        "join",
        "leave",
        "publish",
        "reply",
        "ack",
        "backend",
    ],
    most: Routes::CONFIGURED_MAX,
    reloaded: Reloaded::Yes,
};

const BUILT_IN: &[&str] = &["join", "leave", "publish", "presence"];
/// The keys of steps, which do not go with `do`, and those that only go with it.
const STEPS: &[&str] = &["fields", "refuse", "member", "join", "leave", "publish", "reply", "ack", "backend"];
const NAMED: &[&str] = &["room", "event", "data"];

/// What the keys take, to stand behind "it takes".
const EVENT: &str = "the name of an event, but not one that Socket.IO reserves, like \"connect\"; \"*\" is all that have no route";
const FIELD: &str = "the name of a field";
const REASON: &str = "why such events are refused, in at most 200 letters";

/// Reads the list, which begins at `start`, into routes, those of tables that are right, and where each is said.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<(Route, Source)> {
    TABLES.read(list, start, file, route)
}

/// The route that a table means. Its problems have been told when it means none; when there are problems with a route all the same,
/// it stands in for what would have been right.
fn route(table: &mut Table<'_>) -> Option<(Route, Source)> {
    let source = table.source();
    let namespace = table.pattern("namespace");
    let on = table.require("on", EVENT, event);
    let who = if table.has("who") {
        table.read("who", super::permissions::WHO, Who::parse).unwrap_or(Who::Anyone)
    } else {
        Who::Anyone
    };
    let does = if table.has("do") { built_in(table)? } else { Does::Steps(Box::new(steps(table)?)) };
    Some((Route { namespace, on: on?, who, does }, source))
}

fn built_in(table: &mut Table<'_>) -> Option<Does> {
    let named = |word: &str| BUILT_IN.iter().copied().find(|built_in| *built_in == word);
    let word = table.read("do", &Kind::Word(BUILT_IN).allowed(), named)?;
    let (built_in, used): (BuiltIn, &[&str]) = match word {
        "join" => (BuiltIn::Join { room_fields: room_fields(table) }, &["room"]),
        "leave" => (BuiltIn::Leave { room_fields: room_fields(table) }, &["room"]),
        "publish" => {
            let room_fields = room_fields(table);
            let event_field = field(table, "event").unwrap_or_else(|| BuiltIn::EVENT_FIELD.to_owned());
            let data_field = field(table, "data").unwrap_or_else(|| BuiltIn::DATA_FIELD.to_owned());
            (BuiltIn::Publish { room_fields, event_field, data_field }, &["room", "event", "data"])
        }
        _ => (BuiltIn::Presence { room_fields: room_fields(table) }, &["room"]),
    };
    for key in NAMED.iter().filter(|key| !used.contains(key)).chain(STEPS) {
        table.refuse(key, &format!("it does not go with do = \"{word}\""));
    }
    Some(Does::BuiltIn(built_in))
}

/// The names of the fields that name rooms.
fn room_fields(table: &mut Table<'_>) -> Vec<String> {
    field(table, "room").map_or_else(BuiltIn::room_fields, |field| vec![field])
}

/// The name of a field, if the table gives one for `key`.
fn field(table: &mut Table<'_>, key: &str) -> Option<String> {
    table.read(key, FIELD, |text| (!text.is_empty()).then(|| text.to_owned()))
}

fn event(text: &str) -> Option<String> {
    is_event_name(text).then(|| text.to_owned())
}

fn steps(table: &mut Table<'_>) -> Option<Steps> {
    for key in NAMED {
        table.refuse(key, "it goes with `do` alone; what is published is said in `publish`");
    }
    if !STEPS.iter().any(|key| table.has(key)) {
        // What is misspelled has been told, and is likely to be it.
        if !table.has_unknown() {
            table.tell_missing(
                "do",
                &format!("one of \"{}\"; or there is one of {}", BUILT_IN.join("\", \""), STEPS.join(", ")),
            );
        }
        return None;
    }
    let mut paths = Paths::default();
    let fields = table.json("fields", |value| self::fields(value, &mut paths)).unwrap_or_default();
    let refuse =
        table.read("refuse", REASON, |text| (1..=200).contains(&text.len()).then(|| text.to_owned()));
    if refuse.as_ref().is_some_and(|reason| has_place(reason)) {
        table.refuse("refuse", "a reason is no template: it would be told with its braces");
    }
    let mut names = |key: &str| table.json(key, |value| self::names(value, &mut paths)).unwrap_or_default();
    let (member, join, leave) = (names("member"), names("join"), names("leave"));
    let publish = table.json("publish", |value| all_published(value, &mut paths)).unwrap_or_default();
    let reply = table.json("reply", |value| reply(value, &mut paths));
    let ack = table.json("ack", |value| match value {
        Value::Bool(true) => Ok(Data::Args),
        template => Data::parse(template, &mut paths),
    });
    let backend =
        table.json("backend", |value| value.as_bool().ok_or_else(|| "it is true or false".to_owned()));
    let backend = backend.unwrap_or(false);
    if backend {
        table.refuse("ack", "the backend acknowledges where it is asked");
    }
    if refuse.is_some() {
        for key in STEPS.iter().filter(|key| **key != "refuse") {
            table.refuse(key, "it does not go with `refuse`");
        }
    }
    Some(Steps {
        fields,
        refuse,
        member,
        join,
        leave,
        publish,
        reply,
        ack,
        backend,
        paths,
        needs: Needs::default(),
    })
}

/// One text, or a list of some.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn texts(self) -> Result<Vec<String>, String> {
        let texts = match self {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        match texts.len() {
            0 => Err("it takes at least one name".to_owned()),
            1..=Steps::NAMES_MAX => Ok(texts),
            _ => Err(format!("it takes at most {} names", Steps::NAMES_MAX)),
        }
    }

    fn names(self, paths: &mut Paths) -> Result<Vec<Name>, String> {
        self.texts()?.iter().map(|text| Name::parse(text, paths)).collect()
    }
}

/// One text, or a list of some: templates of names.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, String> {
    let texts = Texts::deserialize(value).map_err(|_| "it takes a name or a list of names".to_owned())?;
    texts.texts()
}

/// A template of a name, or a list of some.
fn names(value: &Value, paths: &mut Paths) -> Result<Vec<Name>, String> {
    let texts = Texts::deserialize(value).map_err(|_| "it takes a name or a list of names".to_owned())?;
    texts.names(paths)
}

/// The fields that an event must have: `{ amount = "number", note = "string?" }`.
pub(super) fn fields(value: &Value, paths: &mut Paths) -> Result<Vec<Field>, String> {
    let kinds =
        || format!("\"{}\", and behind it \"?\" when it may be missing", FieldKind::WORDS.join("\", \""));
    let is_right = |fields: usize| (1..=Steps::NAMES_MAX).contains(&fields);
    let Some(members) = value.as_object().filter(|members| is_right(members.len())) else {
        return Err(format!(
            "it takes a table of 1 to {} fields and what they are: {}",
            Steps::NAMES_MAX,
            kinds()
        ));
    };
    let field = |(name, kind): (&String, &Value)| {
        let word = kind.as_str().unwrap_or_default();
        let (word, is_optional) = word.strip_suffix('?').map_or((word, false), |word| (word, true));
        let kind = FieldKind::parse(word).ok_or_else(|| format!("{name} takes {}", kinds()))?;
        let path = Path::parse(name).ok_or_else(|| Path::fault(&format!("{name:?}")))?;
        let place = paths.place(path).ok_or("it looks at too many members of events")?;
        Ok(Field { place, kind, is_optional })
    };
    members.iter().map(field).collect()
}

/// What makes an event of another one, in `publish` and `reply`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    event: Option<String>,
    data: Option<Value>,
    pick: Option<Vec<String>>,
    add: Option<Value>,
    // Only in `publish`.
    room: Option<String>,
    rooms: Option<Texts>,
    user: Option<String>,
    all: Option<bool>,
    except: Option<Texts>,
    echo: Option<bool>,
    volatile: Option<bool>,
}

impl Said {
    fn read(value: &Value) -> Result<Said, String> {
        Said::deserialize(value).map_err(|error| error.to_string())
    }

    fn saying(&mut self, paths: &mut Paths) -> Result<Saying, String> {
        let event = self.event.take();
        if let Some(name) = event.as_ref().filter(|name| !is_event_name(name)) {
            return Err(format!("{name:?} is no name of an event"));
        }
        if let Some(name) = event.as_ref().filter(|name| has_place(name)) {
            return Err(format!("{name:?}: an event's name is no template, and would keep its braces"));
        }
        let add = self.add.as_ref().map(|add| Data::parse(add, paths)).transpose()?;
        let data = match (&self.data, &self.pick, add) {
            (Some(data), None, None) => Data::parse(data, paths)?,
            (None, Some(pick), add) if pick.len() <= Steps::NAMES_MAX => {
                Data::pick(pick, add.unwrap_or(Data::Object(Vec::new())), paths)?
            }
            (None, None, Some(Data::Object(added))) => Data::With(added),
            (None, None, None) => Data::Args,
            (None, None, Some(_)) => return Err("`add` is a table".to_owned()),
            (None, Some(_), _) => return Err(format!("`pick` has at most {} fields", Steps::NAMES_MAX)),
            (Some(_), ..) => return Err("`data` goes without `pick` and `add`".to_owned()),
        };
        Ok(Saying { event, data })
    }
}

pub(super) fn all_published(value: &Value, paths: &mut Paths) -> Result<Vec<Publish>, String> {
    match value {
        Value::Array(items) if items.is_empty() => Err("it takes at least one table".to_owned()),
        Value::Array(items) if items.len() <= Steps::PUBLISH_MAX => {
            items.iter().map(|item| published(item, paths)).collect()
        }
        Value::Array(_) => Err(format!("it takes at most {} tables", Steps::PUBLISH_MAX)),
        one => Ok(vec![published(one, paths)?]),
    }
}

fn published(value: &Value, paths: &mut Paths) -> Result<Publish, String> {
    let mut said = Said::read(value)?;
    let mut to = Vec::new();
    if let Some(room) = &said.room {
        to.push(Target::Room(Name::parse(room, paths)?.of_one()));
    }
    if let Some(rooms) = said.rooms.take() {
        to.extend(rooms.names(paths)?.into_iter().map(Target::Room));
    }
    if let Some(user) = &said.user {
        to.push(Target::User(Name::parse(user, paths)?));
    }
    if said.all == Some(true) {
        to.push(Target::Everyone);
    }
    if to.is_empty() {
        return Err("it says to whom: `room`, `rooms`, `user` or `all = true`".to_owned());
    }
    if let Some(name) = to.iter().find_map(reserved) {
        return Err(format!("only the server publishes to {name}"));
    }
    let except = said.except.take().map(|texts| texts.names(paths)).transpose()?.unwrap_or_default();
    let saying = said.saying(paths)?;
    let (echo, volatile) = (said.echo.unwrap_or(false), said.volatile.unwrap_or(false));
    Ok(Publish { to, except, saying, echo, volatile })
}

/// The name of a room that only the server publishes to, whatever may be in its places.
fn reserved(target: &Target) -> Option<&Name> {
    match target {
        Target::Room(name) => Some(name).filter(|name| is_reserved_room(&name.to_string())),
        Target::User(_) | Target::Everyone => None,
    }
}

/// True when a text looks like a template with places in it.
fn has_place(text: &str) -> bool {
    text.split_once('{').is_some_and(|(_, behind)| behind.contains('}'))
}

fn reply(value: &Value, paths: &mut Paths) -> Result<Saying, String> {
    let mut said = match value {
        Value::String(event) => Said::read(&serde_json::json!({ "event": event }))?,
        table => Said::read(table)?,
    };
    let Said {
        room: None, rooms: None, user: None, all: None, except: None, echo: None, volatile: None, ..
    } = said
    else {
        return Err(
            "it goes to who has sent the event, and takes `event`, `data`, `pick` and `add`".to_owned()
        );
    };
    said.saying(paths)
}
