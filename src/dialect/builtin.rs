//! The built-in events of Socket.IO clients: what the arguments of a join, leave or publish mean. The same commands as the native
//! dialect's, in the forms that applications with a server of their own use.

use super::native::{
    Code, Command, Publish, Refusal, check_ask_ms, check_names, check_targets, event_fault, sort_names,
};
use crate::json::split;
use crate::routes::BuiltIn;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The event with which a client brings a token, where there are keys and no route says otherwise by name.
pub const TOKEN_EVENT: &str = "auth";

/// The arguments of an event, each still JSON.
type Args<'a> = SmallVec<[&'a str; 4]>;
type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Reads what `built_in` takes from the arguments of an event: an object with the fields that the rule names, or the values one by one. A
/// room may also be a list of rooms where several make sense.
///
/// # Errors
/// What is missing or wrong, in words and codes of the native dialect.
pub fn decode<'a>(
    built_in: &BuiltIn,
    args: &'a str,
    room_name_bytes_max: usize,
) -> Result<Command<'a>, Refusal<'a>> {
    let args = split(args);
    let fields = args.first().and_then(|first| serde_json::from_str::<Fields<'_>>(first).ok());
    match built_in {
        BuiltIn::Join { room_fields } => {
            let rooms = rooms(named(&args, fields.as_ref(), room_fields), room_fields, room_name_bytes_max)?;
            Ok(Command::Join { rooms, id: None })
        }
        BuiltIn::Leave { room_fields } => {
            let rooms = rooms(named(&args, fields.as_ref(), room_fields), room_fields, room_name_bytes_max)?;
            Ok(Command::Leave { rooms, id: None })
        }
        BuiltIn::Publish { room_fields, event_field, data_field } => {
            let rooms = rooms(named(&args, fields.as_ref(), room_fields), room_fields, room_name_bytes_max)?;
            let field = |name: &str| fields.as_ref().and_then(|fields| fields.get(name)).map(|raw| raw.get());
            let (event, payload) = match &fields {
                Some(_) => (field(event_field), field(data_field)),
                None => (args.get(1).copied(), args.get(2).copied()),
            };
            if rooms.is_empty() {
                return Err(lacks(&room_fields.join("` or `")));
            }
            let event = string(event.filter(|event| event.starts_with('"')), event_field)?;
            check_targets(&rooms)?;
            if let Some(fault) = event_fault(&event) {
                return Err(Refusal::new(Code::BadEvent, format!("an event name {fault}")));
            }
            let except = match field("except") {
                Some(except) => self::rooms(Some(except), &["except".to_owned()], room_name_bytes_max)?,
                None => Vec::new(),
            };
            let ask_ms = field("ask_ms").map(|ask_ms| check_ask_ms(ask_ms.parse().unwrap_or(0)));
            Ok(Command::Publish(Publish {
                rooms: rooms.into(),
                except: except.into(),
                event,
                payload: payload.unwrap_or("null").as_bytes(),
                echo: flag(field("echo"), "echo")?,
                volatile: flag(field("volatile"), "volatile")?,
                ask_ms: ask_ms.transpose()?,
                id: None,
            }))
        }
        BuiltIn::Presence { room_fields } => {
            let rooms = rooms(named(&args, fields.as_ref(), room_fields), room_fields, room_name_bytes_max)?;
            let [room] = <[_; 1]>::try_from(rooms)
                .map_err(|_| Refusal::new(Code::BadMessage, "one room is asked about at a time"))?;
            let who = match &fields {
                Some(fields) => fields.get("who").map(|who| who.get()),
                None => args.get(1).copied(),
            };
            Ok(Command::Presence { room, who: flag(who, "who")?, id: None })
        }
    }
}

/// The argument that names rooms, still JSON.
fn named<'a>(args: &Args<'a>, fields: Option<&Fields<'a>>, names: &[String]) -> Option<&'a str> {
    match fields {
        Some(fields) => names.iter().find_map(|name| fields.get(name.as_str())).map(|raw| raw.get()),
        None => args.first().copied(),
    }
}

fn rooms<'a>(
    named: Option<&'a str>,
    names: &[String],
    room_name_bytes_max: usize,
) -> Result<Vec<Cow<'a, str>>, Refusal<'a>> {
    let field = names.join("` or `");
    let mut rooms = match named {
        Some(list) if list.starts_with('[') => {
            let list: Vec<&RawValue> = serde_json::from_str(list).map_err(|_| lacks(&field))?;
            list.into_iter().map(|name| string(Some(name.get()), &field)).collect::<Result<_, _>>()?
        }
        one => vec![string(one, &field)?],
    };
    sort_names(&mut rooms);
    check_names(&rooms, room_name_bytes_max)?;
    Ok(rooms)
}

/// A name: a string, or a number as its text, since applications name rooms by numbers.
fn string<'a>(json: Option<&'a str>, field: &str) -> Result<Cow<'a, str>, Refusal<'a>> {
    match json {
        Some(text) if text.starts_with('"') => {
            #[derive(serde::Deserialize)]
            #[serde(transparent)]
            struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
            serde_json::from_str(text).map(|Name(name)| name).map_err(|_| lacks(field))
        }
        Some(number) if number.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => {
            Ok(number.into())
        }
        _ => Err(lacks(field)),
    }
}

fn flag<'a>(json: Option<&str>, field: &str) -> Result<bool, Refusal<'a>> {
    match json {
        None | Some("false" | "null") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Refusal::new(Code::BadMessage, format!("`{field}` is true or false"))),
    }
}

fn lacks<'a>(field: &str) -> Refusal<'a> {
    Refusal::new(Code::BadMessage, format!("`{field}` is missing, or is no name"))
}
