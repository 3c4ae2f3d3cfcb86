//! The few messages of throng's native protocol that a load needs. What is sent is built once; what is received is
//! not parsed as JSON but looked at by bytes (but for errors), for the generator must cost less than the server it
//! measures.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde_json::{Value, json};

use crate::protocol::Said;

static TYPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""type":""#));

/// Goes through the messages of one frame: one object or an array of them.
pub(crate) fn each_said(frame: &[u8], mut hear: impl FnMut(Said<'_>)) {
    let mut rare = false;
    for at in TYPE.find_iter(frame) {
        let kind = &frame[at + TYPE.needle().len()..];
        if kind.starts_with(b"ack\"") {
            hear(Said::Ack);
        } else if kind.starts_with(b"error\"") || kind.starts_with(b"dropped\"") {
            rare = true;
        } else {
            hear(Said::Other);
        }
    }
    if rare {
        each_rare(frame, hear);
    }
}

/// The messages that are so rare, and so interesting, that they are parsed.
#[cold]
fn each_rare(frame: &[u8], mut hear: impl FnMut(Said<'_>)) {
    let messages = match serde_json::from_slice::<Value>(frame) {
        Ok(Value::Array(messages)) => messages,
        Ok(message) => vec![message],
        Err(_) => return hear(Said::Error("not_json")),
    };
    for message in messages {
        match message["type"].as_str() {
            Some("error") => hear(Said::Error(message["code"].as_str().unwrap_or("unknown"))),
            Some("dropped") => hear(Said::Dropped(message["count"].as_u64().unwrap_or(1))),
            _ => {}
        }
    }
}

/// The decimal number at the start of the bytes, and how many bytes it takes.
#[inline]
pub(crate) fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    let mut length = 0;
    while let Some(digit) = bytes.get(length).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10)
    {
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
        length += 1;
    }
    (length > 0).then_some((value, length))
}

/// The message that joins or leaves these rooms, to be acknowledged.
pub(crate) fn with_rooms(verb: &str, rooms: &[String]) -> Vec<u8> {
    format!(r#"{{"type":"{verb}","rooms":{},"id":1}}"#, json!(rooms)).into_bytes()
}

/// The message of an auction's client that joins or leaves one, to be acknowledged.
pub(crate) fn with_auction(verb: &str, number: &str) -> Vec<u8> {
    format!(r#"{{"type":"{verb}Auction","auctionId":{number},"id":1}}"#).into_bytes()
}

/// All of a publish message that comes before its data, and all that comes after it.
pub(crate) fn publish_ends(room: &str) -> (Vec<u8>, &'static [u8]) {
    (format!(r#"{{"type":"publish","room":{},"event":"e","data":"#, json!(room)).into_bytes(), b"}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frame: &str, expected: &[Said<'_>]) {
        let mut index = 0;
        each_said(frame.as_bytes(), |said| {
            assert_eq!(Some(&said), expected.get(index), "{frame}");
            index += 1;
        });
        assert_eq!(index, expected.len(), "{frame}");
    }

    #[test]
    fn answers_are_told_apart() {
        check(r#"{"type":"ack","id":1,"rooms":{"load":{"members":0}}}"#, &[Said::Ack]);
        check(r#"[{"type":"ack","id":1},{"type":"ack","id":2}]"#, &[Said::Ack, Said::Ack]);
        let error = r#"{"type":"error","id":1,"code":"too_many_rooms","message":"no"}"#;
        check(error, &[Said::Error("too_many_rooms")]);
        check(
            r#"[{"code":"bad_room","type":"error"},{"type":"ack"}]"#,
            &[Said::Ack, Said::Error("bad_room")],
        );
        check(r#"{"type":"error",}"#, &[Said::Error("not_json")]);
        check(r#"{"type":"error"}"#, &[Said::Error("unknown")]);
        check(r#"{"type":"dropped","count":17}"#, &[Said::Dropped(17)]);
        check(r#"{"type":"event","room":"load","event":"e","data":null}"#, &[Said::Other]);
        check("hello", &[]);
    }

    #[test]
    fn a_number_ends_where_its_digits_end() {
        assert_eq!(number(b"120,"), Some((120, 3)));
        assert_eq!(number(b"0"), Some((0, 1)));
        assert_eq!(number(b","), None);
        assert_eq!(number(b"99999999999999999999"), None);
    }
}
