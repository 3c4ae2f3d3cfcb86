//! Socket.IO, protocol revision 5: what Engine.IO messages say. What an application sends is never looked into beyond checking that
//! it is JSON, not too deep, and names its attachments rightly; it goes on byte for byte.

use super::attachments::{self, split_digits, string_bytes, unescape};
use super::engineio::{self, Malformed};
use super::native::{encode_str, is_too_deep};
use crate::rules::RESERVED_EVENTS;
use crate::wire::frame::{self, Opcode};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::io::Write;

/// The longest name of an event, in bytes. Node has no such limit; here a name is kept apart from the data, and most are words.
pub const EVENT_BYTES_MAX: usize = 1_000;
/// The longest ack id, in digits: any number of so many is exact in JavaScript.
const ID_BYTES_MAX: usize = 15;

/// A packet of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Begins with `/`, which alone is the main one.
    pub namespace: &'a str,
    /// The ack id: 1 to 15 digits. With an event the client asks for an ack by it; an ack without one answers nothing.
    pub id: Option<&'a str>,
    /// How many binary frames follow that belong to it.
    pub attachments: usize,
    /// What it says.
    pub body: Body<'a>,
}

/// What a packet of a client says. (The server's refusal of a CONNECT is [`encode_connect_error`]; nobody sends it one.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// The client wants to be in the namespace. What it says for itself is a JSON object.
    Connect(Option<&'a str>),
    /// The client leaves the namespace.
    Disconnect,
    /// An event.
    Event {
        /// Not one of the reserved names; at most [`EVENT_BYTES_MAX`] bytes. Where the client named it by a number, that number's text.
        name: Cow<'a, str>,
        /// JSON values with commas between them, as they were written; may be empty.
        args: &'a str,
    },
    /// The answer to an event of the server.
    Ack {
        /// As those of an event.
        args: &'a str,
    },
}

/// What is taken from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Binary frames to one packet. Node takes 10.
    pub attachments_max: usize,
    /// Bytes of a namespace's name.
    pub namespace_bytes_max: usize,
}

/// Reads a packet: `text` is what follows Engine.IO's `4`. Judges as Node's decoder does, but for what only a hostile client
/// would write: numbers have digits alone, and an event without a payload is malformed too.
///
/// # Errors
/// What is wrong with it. Node ends the session without a word then.
pub fn decode<'a>(text: &'a str, limits: &Limits) -> Result<Packet<'a>, Malformed> {
    let (kind, rest) = match text.bytes().next() {
        Some(kind @ b'0'..=b'6') => (kind, &text[1..]),
        _ => return Err(Malformed("no Socket.IO packet has this type")),
    };
    let (attachments, rest) = match kind {
        b'5' | b'6' => read_attachments(rest, limits.attachments_max)?,
        _ => (0, rest),
    };
    let (namespace, rest) = read_namespace(rest, limits.namespace_bytes_max)?;
    let (id, rest) = read_id(rest)?;
    let body = match (kind, read_json(rest)?) {
        (b'0', None) => Body::Connect(None),
        (b'0', Some(auth)) if auth.starts_with('{') => Body::Connect(Some(auth)),
        (b'1', None) => Body::Disconnect,
        (b'2' | b'5', Some(payload)) => read_event(elements(payload)?)?,
        (b'3' | b'6', Some(payload)) => Body::Ack { args: elements(payload)? },
        (b'4', _) => return Err(Malformed("a client sends no CONNECT_ERROR")),
        _ => return Err(Malformed("the payload does not go with the packet's type")),
    };
    if let (1.., Body::Event { args, .. } | Body::Ack { args }) = (attachments, &body) {
        attachments::check(args, attachments)?;
    }
    Ok(Packet { namespace, id, attachments, body })
}

/// Reads `N-`. None at all is malformed: whoever has none says so by the type, and Node refuses it since version 4.2.7 of its parser
/// (before, it waited for them and ended the session at the next packet).
fn read_attachments(text: &str, attachments_max: usize) -> Result<(usize, &str), Malformed> {
    let (digits, rest) = split_digits(text);
    match (digits.parse(), rest.strip_prefix('-')) {
        (Ok(count), Some(rest)) if (1..=attachments_max).contains(&count) => Ok((count, rest)),
        (Ok(1..), Some(_)) => Err(Malformed("a packet has more attachments than are taken")),
        _ => Err(Malformed("a binary packet does not say how many attachments it has")),
    }
}

/// Reads the namespace, which ends at the first comma. Clients of old put a query behind it; it is cut off.
fn read_namespace(text: &str, bytes_max: usize) -> Result<(&str, &str), Malformed> {
    if !text.starts_with('/') {
        return Ok(("/", text));
    }
    let (namespace, rest) = text.split_once(',').unwrap_or((text, ""));
    let namespace = namespace.split('?').next().unwrap_or_default();
    if namespace.len() > bytes_max {
        return Err(Malformed("the name of a namespace is too long"));
    }
    if namespace.chars().any(char::is_control) {
        return Err(Malformed("the name of a namespace has control characters"));
    }
    Ok((namespace, rest))
}

fn read_id(text: &str) -> Result<(Option<&str>, &str), Malformed> {
    let (digits, rest) = split_digits(text);
    if digits.len() > ID_BYTES_MAX {
        return Err(Malformed("an ack id has more than 15 digits"));
    }
    Ok(((!digits.is_empty()).then_some(digits), rest))
}

/// The payload without whitespace around it, if there is one. serde skips over it without recursion.
fn read_json(text: &str) -> Result<Option<&str>, Malformed> {
    if text.is_empty() {
        return Ok(None);
    }
    let json: &RawValue = serde_json::from_str(text).map_err(|_| Malformed("the payload is not JSON"))?;
    if is_too_deep(json.get()) {
        return Err(Malformed("the payload nests too deep"));
    }
    Ok(Some(json.get()))
}

/// What stands between the brackets of an array.
pub(crate) fn elements(json: &str) -> Result<&str, Malformed> {
    let inner = json.strip_prefix('[').and_then(|json| json.strip_suffix(']'));
    inner.map(str::trim_ascii).ok_or(Malformed("the payload is not an array"))
}

/// Takes the name off the `elements` of an event's payload.
pub(crate) fn read_event(elements: &str) -> Result<Body<'_>, Malformed> {
    let (name, rest) = match elements.bytes().next() {
        Some(b'"') => {
            let (name, rest) = elements.split_at(string_bytes(elements));
            (unescape(name).ok_or(Malformed("the name of an event is not Unicode"))?, rest)
        }
        Some(b'-' | b'0'..=b'9') => {
            let end = elements.find(|letter: char| letter == ',' || letter.is_ascii_whitespace());
            let (name, rest) = elements.split_at(end.unwrap_or(elements.len()));
            (Cow::Borrowed(name), rest)
        }
        _ => return Err(Malformed("an event has no name")),
    };
    if name.len() > EVENT_BYTES_MAX {
        return Err(Malformed("the name of an event is too long"));
    }
    if RESERVED_EVENTS.contains(&&*name) {
        return Err(Malformed("the name of an event is reserved"));
    }
    let args = rest.trim_ascii_start().strip_prefix(',').unwrap_or_default().trim_ascii_start();
    Ok(Body::Event { name, args })
}

/// Writes that the client is in the namespace, under the name `sid`. `pid` is what it can come back with.
pub fn encode_connect(out: &mut Vec<u8>, namespace: &str, sid: &str, pid: Option<&str>) {
    encode_head(out, b'0', 0, namespace);
    out.extend_from_slice(br#"{"sid":"#);
    encode_str(out, sid);
    if let Some(pid) = pid {
        out.extend_from_slice(br#","pid":"#);
        encode_str(out, pid);
    }
    out.push(b'}');
}

/// Writes that the client may not be in the namespace. `data` is JSON.
pub fn encode_connect_error(out: &mut Vec<u8>, namespace: &str, message: &str, data: Option<&str>) {
    encode_head(out, b'4', 0, namespace);
    out.extend_from_slice(br#"{"message":"#);
    encode_str(out, message);
    if let Some(data) = data {
        out.extend_from_slice(br#","data":"#);
        out.extend_from_slice(data.as_bytes());
    }
    out.push(b'}');
}

/// Writes that the client is in the namespace no longer.
pub fn encode_disconnect(out: &mut Vec<u8>, namespace: &str) {
    encode_head(out, b'1', 0, namespace);
}

/// Writes an event. `args` is as in [`Body::Event`], and so many `attachments` follow as frames of their own. With an `id` the client
/// is to answer. `offset` is the event's place in what a client can catch up on, as one more argument.
pub fn encode_event(
    out: &mut Vec<u8>,
    namespace: &str,
    name: &str,
    args: &str,
    attachments: usize,
    id: Option<u64>,
    offset: Option<&str>,
) {
    encode_head(out, b'2', attachments, namespace);
    if let Some(id) = id {
        write!(out, "{id}").expect("writing to memory does not fail");
    }
    out.push(b'[');
    encode_str(out, name);
    if !args.is_empty() {
        out.push(b',');
        out.extend_from_slice(args.as_bytes());
    }
    if let Some(offset) = offset {
        out.push(b',');
        encode_str(out, offset);
    }
    out.push(b']');
}

/// Writes the answer to the event that came with `id`.
pub fn encode_ack(out: &mut Vec<u8>, namespace: &str, id: &str, args: &str, attachments: usize) {
    encode_head(out, b'3', attachments, namespace);
    out.extend_from_slice(id.as_bytes());
    out.push(b'[');
    out.extend_from_slice(args.as_bytes());
    out.push(b']');
}

/// Bytes of the packet at the start of `frames`, with its attachments: each is a frame of its own. These are frames that the server
/// itself encoded.
pub fn message_len(frames: &[u8]) -> usize {
    let mut length = frame::encoded_len(frames).min(frames.len());
    let payload = engineio::payload(&frames[..length]);
    let attachments = match (frame::opcode(frames[0]), payload) {
        (Some(Opcode::Text), [b'4', b'5' | b'6', rest @ ..]) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
            digits.fold(0, |count, digit| count * 10 + usize::from(digit - b'0'))
        }
        _ => 0,
    };
    for _ in 0..attachments {
        let rest = &frames[length..];
        if rest.is_empty() {
            break;
        }
        length += frame::encoded_len(rest).min(rest.len());
    }
    length
}

/// Writes Engine.IO's type, then all that stands before the ack id. `kind` is the digit of the type without attachments.
fn encode_head(out: &mut Vec<u8>, kind: u8, attachments: usize, namespace: &str) {
    out.push(b'4');
    if attachments == 0 {
        out.push(kind);
    } else {
        // 5 and 6 are 2 and 3 with attachments.
        out.push(kind + 3);
        write!(out, "{attachments}-").expect("writing to memory does not fail");
    }
    if namespace != "/" {
        out.extend_from_slice(namespace.as_bytes());
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use super::super::native::DEPTH_MAX;
    use super::*;

    const LIMITS: Limits = Limits { attachments_max: 10, namespace_bytes_max: 20 };

    fn packet<'a>(namespace: &'a str, id: Option<&'a str>, attachments: usize, body: Body<'a>) -> Packet<'a> {
        Packet { namespace, id, attachments, body }
    }

    fn event<'a>(name: &'a str, args: &'a str) -> Body<'a> {
        Body::Event { name: name.into(), args }
    }

    fn check(text: &str, expected: &Packet<'_>) {
        assert_eq!(decode(text, &LIMITS).as_ref(), Ok(expected), "{text}");
    }

    fn check_malformed(text: &str, says: &str) {
        match decode(text, &LIMITS) {
            Err(Malformed(what)) => assert!(what.contains(says), "{text}: {what}"),
            Ok(packet) => panic!("{text}: {packet:?}"),
        }
    }

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn what_clients_were_seen_to_send_is_understood() {
        let connect = |namespace, auth| packet(namespace, None, 0, Body::Connect(auth));
        check("0", &connect("/", None));
        check("0/admin,", &connect("/admin", None));
        check(r#"0{"bad":true}"#, &connect("/", Some(r#"{"bad":true}"#)));
        check(r#"0/nope,{"token":"z"}"#, &connect("/nope", Some(r#"{"token":"z"}"#)));
        check(
            r#"0{"pid":"cODf1MlDstE2PDGXAAAX","offset":"Q7xbCv5"}"#,
            &connect("/", Some(r#"{"pid":"cODf1MlDstE2PDGXAAAX","offset":"Q7xbCv5"}"#)),
        );
        check("1", &packet("/", None, 0, Body::Disconnect));
        check("1/admin,", &packet("/admin", None, 0, Body::Disconnect));
        check(r#"2["ask"]"#, &packet("/", None, 0, event("ask", "")));
        check(r#"20["echo","x",{"a":1}]"#, &packet("/", Some("0"), 0, event("echo", r#""x",{"a":1}"#)));
        check(r#"2/admin,5["any"]"#, &packet("/admin", Some("5"), 0, event("any", "")));
        check(r#"2["hello","é漢😀","\ud800"]"#, &packet("/", None, 0, event("hello", r#""é漢😀","\ud800""#)));
        check(r#"30["pong!"]"#, &packet("/", Some("0"), 0, Body::Ack { args: r#""pong!""# }));
        check(
            r#"51-["bin",{"_placeholder":true,"num":0}]"#,
            &packet("/", None, 1, event("bin", r#"{"_placeholder":true,"num":0}"#)),
        );
        check(
            r#"51-1["question",{"_placeholder":true,"num":0}]"#,
            &packet("/", Some("1"), 1, event("question", r#"{"_placeholder":true,"num":0}"#)),
        );
        check(
            r#"61-1[{"_placeholder":true,"num":0}]"#,
            &packet("/", Some("1"), 1, Body::Ack { args: r#"{"_placeholder":true,"num":0}"# }),
        );
    }

    #[test]
    fn forms_that_clients_may_write_are_taken_as_node_does() {
        check("0/admin", &packet("/admin", None, 0, Body::Connect(None)));
        check("0/,{}", &packet("/", None, 0, Body::Connect(Some("{}"))));
        check("1/admin", &packet("/admin", None, 0, Body::Disconnect));
        check(r#"2/,["x"]"#, &packet("/", None, 0, event("x", "")));
        check(r#"2[""]"#, &packet("/", None, 0, event("", "")));
        check(r#"2["error",null]"#, &packet("/", None, 0, event("error", "null")));
        check("2[1.50,2]", &packet("/", None, 0, event("1.50", "2")));
        check("2[-1]", &packet("/", None, 0, event("-1", "")));
        check("2[ 7 ]", &packet("/", None, 0, event("7", "")));
        check(r#"2["a",1e999]"#, &packet("/", None, 0, event("a", "1e999")));
        check("3[]", &packet("/", None, 0, Body::Ack { args: "" }));
        check("31[]", &packet("/", Some("1"), 0, Body::Ack { args: "" }));
        check(r#"501-["x"]"#, &packet("/", None, 1, event("x", "")));
        check(r#"510-/a,3["x"]"#, &packet("/a", Some("3"), 10, event("x", "")));
        check(r#"2999999999999999["x"]"#, &packet("/", Some("999999999999999"), 0, event("x", "")));
        // In a packet without attachments it is data like any other.
        let data = r#"{"_placeholder":true,"num":7}"#;
        check(&format!(r#"2["x",{data}]"#), &packet("/", None, 0, event("x", data)));
    }

    #[test]
    fn arguments_are_forwarded_byte_for_byte() {
        let text = "2 [ \"a\\\"]b\" ,\t{ \"x\" : [1, 2.50, \"]\\\\\"] } , [ ]\n] ";
        let expected = event("a\"]b", "{ \"x\" : [1, 2.50, \"]\\\\\"] } , [ ]");
        check(text, &packet("/", None, 0, expected));
        check("31[ 1 , 2 ]", &packet("/", Some("1"), 0, Body::Ack { args: "1 , 2" }));
        let Ok(Packet { body: Body::Event { name: Cow::Borrowed(_), .. }, .. }) =
            decode(r#"2["é"]"#, &LIMITS)
        else {
            panic!("a plain name is not copied")
        };
        check(r#"2["\u00e9\ud83d\ude00"]"#, &packet("/", None, 0, event("é😀", "")));
    }

    #[test]
    fn namespaces_are_checked_and_lose_their_query() {
        check("0/admin?x=1", &packet("/admin", None, 0, Body::Connect(None)));
        check("0/admin?token=a/b?c,{}", &packet("/admin", None, 0, Body::Connect(Some("{}"))));
        check("0/?x=1,", &packet("/", None, 0, Body::Connect(None)));
        check("0/é漢,", &packet("/é漢", None, 0, Body::Connect(None)));
        let longest = format!("/{}", "a".repeat(19));
        check(&format!("0{longest},"), &packet(&longest, None, 0, Body::Connect(None)));
        check_malformed(&format!("0{longest}a,"), "too long");
        check_malformed("0/a\x1eb,", "control");
        check_malformed("0/a\u{85},", "control");
        // Without a comma everything is the name.
        check_malformed(r#"2/["x"]"#, "payload");
        check_malformed(r#"2/admin["x","y"]"#, "JSON");
        check_malformed(r#"2admin,["x"]"#, "JSON");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for text in ["", "7", "9", "a", "-", " 2[\"x\"]", "é", "\u{0}"] {
            check_malformed(text, "type");
        }
        for text in
            ["5[\"x\"]", "5-[\"x\"]", "50-[\"x\"]", "500-[\"x\"]", "60-1[\"x\"]", "51", "5", "5-1-[\"x\"]"]
        {
            check_malformed(text, "how many");
        }
        for text in ["5 1-[\"x\"]", "5+1-[\"x\"]", "51e0-[\"x\"]", "51.0-[\"x\"]", "5١-[\"x\"]"] {
            check_malformed(text, "how many");
        }
        for text in ["511-[\"x\"]", "518446744073709551615-[\"x\"]"] {
            check_malformed(text, "attachments");
        }
        check_malformed("599999999999999999999999-[\"x\"]", "attachments");
        for text in ["0[]", "0null", "0\"x\"", "0true", "1{}", "1[]", "1null", "2", "3", "51-", "61-", "2/a,"]
        {
            check_malformed(text, "payload");
        }
        for text in ["4", "4{}", "4\"x\"", "4/a,{\"message\":\"\"}"] {
            check_malformed(text, "CONNECT_ERROR");
        }
        for text in ["2{}", "21{}", "2\"x\"", "2null", "3{}", "31{}", "31\"x\"", "51-{}", "61-{}"] {
            check_malformed(text, "array");
        }
        for text in ["2[]", "2[ ]", "2[true]", "2[null]", "2[{}]", "2[[\"x\"]]", "51-[]"] {
            check_malformed(text, "no name");
        }
        for name in RESERVED_EVENTS {
            check_malformed(&format!(r#"2["{name}"]"#), "reserved");
            check_malformed(&format!(r#"51-["{name}",{{"_placeholder":true,"num":0}}]"#), "reserved");
        }
        check_malformed(r#"2["\u0063onnect"]"#, "reserved");
        check_malformed(r#"2["\ud800"]"#, "Unicode");
        for text in [
            "2[\"x\"",
            "2[\"x\"]]",
            "2[\"x\"]x",
            "2[\"x\",]",
            "2[,]",
            "2[\"x]",
            "2 ",
            "2[\"\x01\"]",
            "2[\"a\x1e\"]",
        ] {
            check_malformed(text, "JSON");
        }
        for text in [
            "2-1[\"x\"]",
            "21.5[\"x\"]",
            "2 1[\"x\"]",
            "0{",
            "0{}{}",
            "1 ",
            "2\u{a0}[\"x\"]",
            "2[\"x\"\u{b}]",
        ] {
            check_malformed(text, "JSON");
        }
        check_malformed(r#"21234567890123456["x"]"#, "15 digits");
        check_malformed(&format!("2{}", "1".repeat(100_000)), "15 digits");
    }

    #[test]
    fn names_and_depth_are_bounded() {
        let named = |length: usize| format!(r#"2["{}"]"#, "a".repeat(length));
        assert!(decode(&named(EVENT_BYTES_MAX), &LIMITS).is_ok());
        check_malformed(&named(EVENT_BYTES_MAX + 1), "too long");
        check_malformed(&format!("2[{}]", "1".repeat(EVENT_BYTES_MAX + 1)), "too long");
        let nested = |depth: usize| format!(r#"2["x",{}{}]"#, "[".repeat(depth), "]".repeat(depth));
        assert!(decode(&nested(DEPTH_MAX - 1), &LIMITS).is_ok(), "the payload is an array itself");
        check_malformed(&nested(DEPTH_MAX), "deep");
        check_malformed(&nested(500_000), "deep");
        check_malformed(
            &format!("0{}1{}", "{\"a\":".repeat(DEPTH_MAX + 1), "}".repeat(DEPTH_MAX + 1)),
            "deep",
        );
        check_malformed(&format!("2{}", "[".repeat(500_000)), "JSON");
    }

    #[test]
    fn placeholders_name_an_attachment_that_there_is() {
        let check = |args: &str, good: bool| {
            assert_eq!(attachments::check(args, 2).is_ok(), good, "{args}");
            assert_eq!(decode(&format!(r#"52-["x",{args}]"#), &LIMITS).is_ok(), good, "{args}");
            assert_eq!(decode(&format!("62-[{args}]"), &LIMITS).is_ok(), good, "{args}");
        };
        for good in [
            r#"{"_placeholder":true,"num":0}"#,
            r#"{"_placeholder":true,"num":0},{"also":{"_placeholder":true,"num":1}}"#,
            r#" { "num" : 1 , "_placeholder" : true , "more" : [ { } ] } "#,
            r#"{"_placeholder":1,"num":9}"#,
            r#"{"_placeholder":"true","num":9}"#,
            r#"{"_placeholder":false}"#,
            r#"{"_placeholder":true,"_placeholder":false}"#,
            r#"{"_placeholder":true,"num":7,"num":1}"#,
            r#"["_placeholder",true,"num",7]"#,
            r#""{\"_placeholder\":true}""#,
            r#"{"x":"\"_placeholder\":true"}"#,
            r#"{"num":9},"num""#,
            r#"{"\ud800":7}"#,
            "1",
        ] {
            check(good, true);
        }
        for bad in [
            r#"{"_placeholder":true,"num":1},{"_placeholder":true,"num":1}"#,
            r#"{"_placeholder":true}"#,
            r#"{"_placeholder":true,"num":2}"#,
            r#"{"_placeholder":true,"num":-1}"#,
            r#"{"_placeholder":true,"num":0.5}"#,
            r#"{"_placeholder":true,"num":0.0}"#,
            r#"{"_placeholder":true,"num":1e0}"#,
            r#"{"_placeholder":true,"num":"0"}"#,
            r#"{"_placeholder":true,"num":null}"#,
            r#"{"_placeholder":true,"num":[0]}"#,
            r#"{"_placeholder":true,"num":{"num":0}}"#,
            r#"{"_placeholder":true,"num":18446744073709551616}"#,
            r#"{"_placeholder":true,"num":0,"num":7}"#,
            r#"{"_placeh\u006flder":true,"num":7}"#,
            r#"{"_placeholder":true,"n\u0075m":7}"#,
            r#"[[{"a":[{"b":{"_placeholder":true,"num":2},"num":0}]}]]"#,
            r#"1,{"num":0,"a":{"num":0},"_placeholder":true,"num":"x"}"#,
        ] {
            check(bad, false);
        }
        assert!(attachments::check("", 0).is_ok());
        assert!(attachments::check(r#"{"_placeholder":true,"num":0}"#, 0).is_err());
        // What is not JSON is the caller's fault, and panics not.
        for text in [r#"}]{"#, r#""é\"#, r#"{"_placeholder" : true"#, r#"{"num":"#, "\"\\", ":\"num\":1"] {
            assert!(attachments::check(text, 1).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_the_server_says_is_what_node_says() {
        let check = |expected: &str, write: &dyn Fn(&mut Vec<u8>)| assert_eq!(text(write), expected);
        check(r#"40{"sid":"H7zkf19EcF0ntLryAAAA"}"#, &|out| {
            encode_connect(out, "/", "H7zkf19EcF0ntLryAAAA", None);
        });
        check(r#"40{"sid":"c7En1kEs5dH-lQ5eAAAA","pid":"KxLPhmHt_pmIHMlXAAAB"}"#, &|out| {
            encode_connect(out, "/", "c7En1kEs5dH-lQ5eAAAA", Some("KxLPhmHt_pmIHMlXAAAB"));
        });
        check(r#"40/admin,{"sid":"xc5F07FwA3VHEj-hAAAE","pid":"YqgLNYXlHK0l22N3AAAF"}"#, &|out| {
            encode_connect(out, "/admin", "xc5F07FwA3VHEj-hAAAE", Some("YqgLNYXlHK0l22N3AAAF"));
        });
        check(r#"44/nope,{"message":"Invalid namespace"}"#, &|out| {
            encode_connect_error(out, "/nope", "Invalid namespace", None);
        });
        check(r#"44{"message":"not authorized","data":{"code":7}}"#, &|out| {
            encode_connect_error(out, "/", "not authorized", Some(r#"{"code":7}"#));
        });
        check("41", &|out| encode_disconnect(out, "/"));
        check("41/custom,", &|out| encode_disconnect(out, "/custom"));
        check(r#"42["m",1,"Q7xbCv5"]"#, &|out| {
            encode_event(out, "/", "m", "1", 0, None, Some("Q7xbCv5"));
        });
        check(r#"42["vol"]"#, &|out| encode_event(out, "/", "vol", "", 0, None, None));
        check(r#"42["none","Q7xbCv5"]"#, &|out| {
            encode_event(out, "/", "none", "", 0, None, Some("Q7xbCv5"));
        });
        check(r#"42/custom,["auth",{"k":1}]"#, &|out| {
            encode_event(out, "/custom", "auth", r#"{"k":1}"#, 0, None, None);
        });
        check(r#"420["q",1]"#, &|out| encode_event(out, "/", "q", "1", 0, Some(0), None));
        check(r#"42["\"é\u0001\\"]"#, &|out| encode_event(out, "/", "\"é\x01\\", "", 0, None, None));
        check(r#"451-["bin",{"_placeholder":true,"num":0},"Q7xb8TF"]"#, &|out| {
            encode_event(out, "/", "bin", r#"{"_placeholder":true,"num":0}"#, 1, None, Some("Q7xb8TF"));
        });
        check(r#"452-/a,12["b"]"#, &|out| encode_event(out, "/a", "b", "", 2, Some(12), None));
        check(r#"430["x",{"a":1}]"#, &|out| encode_ack(out, "/", "0", r#""x",{"a":1}"#, 0));
        check(r#"431["€"]"#, &|out| encode_ack(out, "/", "1", r#""€""#, 0));
        check("43/a,7[]", &|out| encode_ack(out, "/a", "7", "", 0));
        check(r#"461-1[{"_placeholder":true,"num":0}]"#, &|out| {
            encode_ack(out, "/", "1", r#"{"_placeholder":true,"num":0}"#, 1);
        });
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for namespace in ["/", "/a", "/é"] {
            for (args, attachments) in [("1", 0), (r#""2",{"3":[true]}"#, 1), ("", 10)] {
                let message =
                    text(|out| encode_event(out, namespace, "e\"\n", args, attachments, Some(42), None));
                let expected = packet(namespace, Some("42"), attachments, event("e\"\n", args));
                check(message.strip_prefix('4').expect("a message"), &expected);
                let message = text(|out| encode_ack(out, namespace, "007", args, attachments));
                let expected = packet(namespace, Some("007"), attachments, Body::Ack { args });
                check(message.strip_prefix('4').expect("a message"), &expected);
            }
        }
    }
}
