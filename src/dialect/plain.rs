//! The plain dialect: the messages of an application that had a WebSocket server of its own, as they are. A message is a JSON object
//! whose `type` says which event it is; the object itself is what the event carries. `docs/routes.md` is the reference.

use super::native::{
    Code, Id, Name, Refusal, encode_str, id_of, is_too_deep, only_object, read_id, refuse_json,
};
use super::{attachments, native};
use crate::json;
use crate::message::Publication;
use attachments::{string_bytes, unescape};
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A message of a client. The object that it stands in is the first and only argument of its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The event's name, checked.
    pub event: Cow<'a, str>,
    /// With it the client wants an answer.
    pub id: Option<Id<'a>>,
}

/// What any message has.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Name<'a>>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// Reads one message of a text frame, of which [`native::split`] has told them apart.
///
/// # Errors
/// What is wrong with it, in words and codes of the native dialect.
pub fn decode(message: &str) -> Result<Message<'_>, Refusal<'_>> {
    let fields: Fields<'_> = serde_json::from_str(message)
        .and_then(|fields| only_object(message.as_bytes(), fields))
        .map_err(|error| refuse_json(&error).with_id(id_of(message)))?;
    let id = read_id(fields.id)?;
    if is_too_deep(message) {
        let message = format!("the message nests deeper than {}", native::DEPTH_MAX);
        return Err(Refusal::new(Code::BadJson, message).with_id(id));
    }
    let Some(Name(event)) = fields.kind else {
        return Err(Refusal::new(Code::BadMessage, "`type` is missing").with_id(id));
    };
    match native::event_fault(&event) {
        None => Ok(Message { event, id }),
        Some(fault) => Err(Refusal::new(Code::BadEvent, format!("a `type` {fault}")).with_id(id)),
    }
}

/// Writes a publication as a message: its event's name is the `type`. The members of an object stand beside that, as they were written, but
/// for one that is called `type` itself; anything else is `data`, where `null` and nothing are left out.
pub fn encode_event(out: &mut Vec<u8>, publication: &Publication) {
    if publication.binary {
        encode_head(out, publication.event());
        out.extend_from_slice(br#","data":{"base64":""#);
        out.extend_from_slice(BASE64.encode(publication.payload()).as_bytes());
        return out.extend_from_slice(br#""}}"#);
    }
    let payload = std::str::from_utf8(publication.payload()).unwrap_or("null");
    let special = publication.special.as_deref();
    let is_list = special.is_some_and(|special| special.is_list);
    encode_said(out, publication.event(), payload, is_list, publication.attachments());
}

/// Writes events that leave as one.
pub fn encode_batch<'a>(out: &mut Vec<u8>, items: impl Iterator<Item = &'a Publication>) {
    out.extend_from_slice(br#"{"type":"batch","messages":["#);
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        encode_event(out, item);
    }
    out.extend_from_slice(b"]}");
}

/// Writes an event for one client, likewise. `args` are JSON values with commas between them.
pub fn encode_reply(out: &mut Vec<u8>, event: &str, args: &str, attachments: &[Vec<u8>]) {
    encode_said(out, event, args, true, attachments);
}

/// Writes the answer to the message with this `id`, likewise: neither that nor the `type` is taken from an object.
pub fn encode_ack(out: &mut Vec<u8>, id: Id<'_>, args: &str, attachments: &[Vec<u8>]) {
    encode_head(out, "ack");
    out.extend_from_slice(br#","id":"#);
    out.extend_from_slice(id.as_bytes());
    encode_args(out, args, true, attachments, &["type", "id"]);
    out.push(b'}');
}

fn encode_said(out: &mut Vec<u8>, event: &str, args: &str, is_list: bool, attachments: &[Vec<u8>]) {
    encode_head(out, event);
    encode_args(out, args, is_list, attachments, &["type"]);
    out.push(b'}');
}

fn encode_head(out: &mut Vec<u8>, event: &str) {
    out.extend_from_slice(br#"{"type":"#);
    encode_str(out, event);
}

/// Writes what is said beside the type. `args` are one value, or where it `is_list` any number of them.
fn encode_args(out: &mut Vec<u8>, args: &str, is_list: bool, attachments: &[Vec<u8>], left_out: &[&str]) {
    let args = args.trim_ascii();
    let (is_bare, args) = match attachments {
        [] => (false, Cow::Borrowed(args)),
        // A binary value by itself is no object with members.
        _ => (attachments::is_placeholder(args), Cow::Owned(attachments::inline(args, attachments))),
    };
    let count = if is_list { json::split(&args).len() } else { 1 };
    match count {
        0 => {}
        1 if &*args == "null" => {}
        1 if args.starts_with('{') && !is_bare => encode_members(out, &args, left_out),
        1 => {
            out.extend_from_slice(br#","data":"#);
            out.extend_from_slice(args.as_bytes());
        }
        _ => {
            out.extend_from_slice(br#","data":["#);
            out.extend_from_slice(args.as_bytes());
            out.push(b']');
        }
    }
}

/// Writes the members of an object behind others, without those with one of these names.
fn encode_members(out: &mut Vec<u8>, object: &str, left_out: &[&str]) {
    let may_be = |name: &&str| object.contains(name) || object.contains("\\u");
    if !left_out.iter().any(may_be) {
        // Most often none is to be left out, and it is copied as a whole.
        let inner = object.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
        if !inner.trim_ascii().is_empty() {
            out.push(b',');
            out.extend_from_slice(inner.as_bytes());
        }
        return;
    }
    for (name, member) in Members::of(object) {
        // A name with half a surrogate pair in it is none of them.
        if !unescape(name).is_some_and(|name| left_out.contains(&&*name)) {
            out.push(b',');
            out.extend_from_slice(member.as_bytes());
        }
    }
}

/// The members of an object: each name as it is written, and the whole member. Of what is no object, or not well-formed, it gives what
/// can be made out.
struct Members<'a> {
    rest: &'a str,
}

impl<'a> Members<'a> {
    fn of(object: &'a str) -> Members<'a> {
        Members { rest: object.trim_ascii_start().strip_prefix('{').unwrap_or_default() }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let member = self.rest.trim_ascii_start();
        let name = member.starts_with('"').then(|| &member[..string_bytes(member)])?;
        let value = member[name.len()..].trim_ascii_start().strip_prefix(':')?.trim_ascii_start();
        let rest = &value[value_bytes(value)..];
        let member = &member[..member.len() - rest.len()];
        self.rest = rest.trim_ascii_start().strip_prefix(',').unwrap_or_default();
        Some((name, member))
    }
}

/// Bytes of the value that `json` begins with.
fn value_bytes(json: &str) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'"' => at += string_bytes(&json[at..]),
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' if depth > 0 => (at, depth) = (at + 1, depth - 1),
            b',' | b'}' | b']' if depth == 0 => break,
            _ => at += 1,
        }
        // A number, or a word, may have more bytes; a string, an array or an object ends here.
        if depth == 0 && matches!(json.as_bytes()[at - 1], b'"' | b'}' | b']') {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, RoomId};
    use crate::time::Time;

    fn refused(message: &str) -> (Code, String, Option<&str>) {
        let refusal = decode(message).expect_err("must be refused");
        (refusal.code, refusal.message.into_owned(), refusal.id)
    }

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        let text = String::from_utf8(out).expect("text");
        serde_json::from_str::<&RawValue>(&text).expect("JSON");
        text
    }

    fn event(draft: &Draft<'_>) -> String {
        let publication = Publication::new(RoomId::NOWHERE, draft);
        text(|out| encode_event(out, &publication))
    }

    #[test]
    fn a_message_is_an_event_of_its_type() {
        let read = |message| decode(message).expect("a message");
        assert_eq!(
            read(r#"{"type":"joinAuction","auctionId":3}"#),
            Message { event: "joinAuction".into(), id: None }
        );
        assert_eq!(
            read(r#" {"auctionId":3 , "id":"a\"b","type" : "b\u0069d" } "#),
            Message { event: "bid".into(), id: Some(r#""a\"b""#) }
        );
        assert_eq!(read(r#"{"type":"größe","id":-1.5e3}"#).id, Some("-1.5e3"));
        assert!(matches!(read(r#"{"type":"bid"}"#).event, Cow::Borrowed(_)), "a plain name is not copied");
        assert_eq!(read(r#"{"type":"bid","id":null}"#).id, None);
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_id() {
        let check = |message: &str, code: Code, says: &str, id: Option<&str>| {
            let (got, text, got_id) = refused(message);
            let is_right = got == code && text.contains(says) && got_id == id;
            assert!(is_right, "{}: {got:?} {text} {got_id:?}", &message[..message.len().min(80)]);
            assert!(text.len() < 300, "what a client sent does not come back at length");
        };
        check("", Code::BadJson, "EOF", None);
        check("{\"type\":\"a\"", Code::BadJson, "EOF", None);
        check("7", Code::BadMessage, "object", None);
        check("null", Code::BadMessage, "object", None);
        check("\"bid\"", Code::BadMessage, "object", None);
        check(r#"["bid",1]"#, Code::BadMessage, "object", None);
        check("{}", Code::BadMessage, "`type` is missing", None);
        check(r#"{"id":1}"#, Code::BadMessage, "`type` is missing", Some("1"));
        check(r#"{"type":null,"id":1}"#, Code::BadMessage, "`type` is missing", Some("1"));
        check(r#"{"type":7,"id":1}"#, Code::BadMessage, "invalid type", Some("1"));
        check(r#"{"type":{"type":"bid"},"id":1}"#, Code::BadMessage, "invalid type", Some("1"));
        check(r#"{"type":"a","type":"b","id":1}"#, Code::BadMessage, "duplicate", Some("1"));
        check(r#"{"type":"a","id":{}}"#, Code::BadMessage, "`id` is", None);
        check(r#"{"type":"","id":1}"#, Code::BadEvent, "empty", Some("1"));
        check(r#"{"type":"a\u0000"}"#, Code::BadEvent, "control", None);
        check(r#"{"type":"\ud800"}"#, Code::BadJson, "escape", None);
        check(r#"{"type":"disconnect"}"#, Code::BadEvent, "itself", None);
        check(&format!(r#"{{"type":"{}","id":1}}"#, "x".repeat(1 << 20)), Code::BadEvent, "200", Some("1"));
        let nested =
            |depth: usize| format!(r#"{{"type":"a","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        check(&nested(100_000), Code::BadJson, "deeper", None);
        check(&nested(native::DEPTH_MAX), Code::BadJson, "deeper", None);
        assert!(decode(&nested(native::DEPTH_MAX - 1)).is_ok());
    }

    #[test]
    fn the_members_of_an_object_stand_beside_the_type() {
        let now = Time::default();
        let of = |payload: &str| event(&Draft::new("r", "bid", payload.as_bytes(), now));
        for (payload, message) in [
            (r#"{"z":1,"a":{"type":2}}"#, r#"{"type":"bid","z":1,"a":{"type":2}}"#),
            (r#"{ "z" : 1 , "a" : [ ] }"#, r#"{"type":"bid", "z" : 1 , "a" : [ ] }"#),
            (r#"{"type":"x","z":1.50}"#, r#"{"type":"bid","z":1.50}"#),
            (r#"{"z":"}\"{","type":{"a":[1,{}]}, "y":-1}"#, r#"{"type":"bid","z":"}\"{","y":-1}"#),
            (r#"{"z":1,"t\u0079pe":2}"#, r#"{"type":"bid","z":1}"#),
            (r#"{"type":"only"}"#, r#"{"type":"bid"}"#),
            (r#"{"a":"type","\ud800":true}"#, r#"{"type":"bid","a":"type","\ud800":true}"#),
            (r#"{"é":["type"],"type":null}"#, r#"{"type":"bid","é":["type"]}"#),
            ("{}", r#"{"type":"bid"}"#),
            ("{ }", r#"{"type":"bid"}"#),
            ("null", r#"{"type":"bid"}"#),
            ("[1,{}]", r#"{"type":"bid","data":[1,{}]}"#),
            ("\"x\"", r#"{"type":"bid","data":"x"}"#),
            ("0", r#"{"type":"bid","data":0}"#),
        ] {
            assert_eq!(of(payload), message, "{payload}");
        }
        assert_eq!(event(&Draft::new("r", "q\"é", b"{}", now)), r#"{"type":"q\"é"}"#);
    }

    #[test]
    fn lists_and_bytes_are_data() {
        let draft = |payload| Draft::new("r", "e", payload, Time::default());
        let list = |payload| event(&Draft { is_list: true, ..draft(payload) });
        assert_eq!(list(b""), r#"{"type":"e"}"#);
        assert_eq!(list(br#"{"a":1}"#), r#"{"type":"e","a":1}"#);
        assert_eq!(list(br#"{"a":1}, 2"#), r#"{"type":"e","data":[{"a":1}, 2]}"#);
        let bytes = [b"one".to_vec()];
        assert_eq!(
            event(&Draft { binary: true, ..draft(b"one") }),
            r#"{"type":"e","data":{"base64":"b25l"}}"#
        );
        let attached = |payload| event(&Draft { attachments: &bytes, ..draft(payload) });
        assert_eq!(attached(attachments::PLACEHOLDER.as_bytes()), r#"{"type":"e","data":{"base64":"b25l"}}"#);
        assert_eq!(
            attached(br#"{"type":1,"a":{"_placeholder":true,"num":0}}"#),
            r#"{"type":"e","a":{"base64":"b25l"}}"#
        );
    }

    #[test]
    fn an_answer_is_an_ack_with_the_id_as_it_was_written() {
        let ack = |args| text(|out| encode_ack(out, "\"q\"", args, &[]));
        assert_eq!(ack(""), r#"{"type":"ack","id":"q"}"#);
        assert_eq!(ack("{}"), r#"{"type":"ack","id":"q"}"#);
        assert_eq!(ack(r#"{"id":5,"type":"bid","n":1}"#), r#"{"type":"ack","id":"q","n":1}"#);
        assert_eq!(ack("true"), r#"{"type":"ack","id":"q","data":true}"#);
        assert_eq!(ack("1,2"), r#"{"type":"ack","id":"q","data":[1,2]}"#);
    }

    #[test]
    fn what_is_not_well_formed_breaks_nothing() {
        for json in [
            "",
            "{",
            "{\"",
            "{\"a",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":[",
            "{\"a\":]}",
            "{a}",
            "{\"a\":\"\\",
            "é",
        ] {
            assert!(Members::of(json).count() <= 1, "{json}");
            encode_members(&mut Vec::new(), json, &["a"]);
        }
    }
}
