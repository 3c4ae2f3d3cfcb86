//! The few messages of throng's native protocol that a load needs. What is sent is built once; what is received is
//! not parsed as JSON but looked at by bytes, for the generator must cost less than the server it measures.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// Room names in one join, so that the message stays small and below any server's limit on rooms in one message.
const ROOMS_PER_JOIN: usize = 500;

static TYPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""type":""#));
static CODE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""code":""#));
static COUNT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""count":"#));

/// What the server says, as far as a load cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Ack,
    /// A refusal with its code.
    Error(&'a str),
    /// So many messages were left out for this connection.
    Dropped(u64),
    Other,
}

/// Goes through the messages of one frame: one object or an array of them.
pub(crate) fn each_said(frame: &[u8], mut hear: impl FnMut(Said<'_>)) {
    for at in TYPE.find_iter(frame) {
        let rest = &frame[at + TYPE.needle().len()..];
        if rest.starts_with(b"ack\"") {
            hear(Said::Ack);
        } else if rest.starts_with(b"error\"") {
            let code = CODE.find(rest).map(|at| &rest[at + CODE.needle().len()..]);
            let code = code.and_then(|code| code.split(|&byte| byte == b'"').next());
            hear(Said::Error(code.and_then(|code| str::from_utf8(code).ok()).unwrap_or("unknown")));
        } else if rest.starts_with(b"dropped\"") {
            let count = COUNT.find(rest).and_then(|at| number(&rest[at + COUNT.needle().len()..]));
            hear(Said::Dropped(count.map_or(1, |(count, _)| count)));
        } else {
            hear(Said::Other);
        }
    }
}

/// The decimal number at the start of the bytes, and how many bytes it takes.
#[inline]
pub(crate) fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    let mut length = 0;
    while let Some(digit) = bytes.get(length).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
        length += 1;
    }
    (length > 0).then_some((value, length))
}

/// The messages that join these rooms, each of which is acknowledged.
pub(crate) fn joins(rooms: &[String]) -> Vec<Vec<u8>> {
    with_rooms("join", rooms)
}

/// The messages that leave these rooms, each of which is acknowledged.
pub(crate) fn leaves(rooms: &[String]) -> Vec<Vec<u8>> {
    with_rooms("leave", rooms)
}

/// All of a publish message that comes before its data; after the data a `}` ends it.
pub(crate) fn publish_head(room: &str) -> Vec<u8> {
    format!(r#"{{"type":"publish","room":{},"event":"e","data":"#, serde_json::json!(room)).into_bytes()
}

fn with_rooms(kind: &str, rooms: &[String]) -> Vec<Vec<u8>> {
    let message = |rooms: &[String]| format!(r#"{{"type":"{kind}","rooms":{},"id":1}}"#, serde_json::json!(rooms));
    rooms.chunks(ROOMS_PER_JOIN).map(|rooms| message(rooms).into_bytes()).collect()
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
        check(r#"{"type":"error"}"#, &[Said::Error("unknown")]);
        check(r#"{"type":"dropped","count":17}"#, &[Said::Dropped(17)]);
        check(r#"{"type":"event","room":"load","event":"e","data":null}"#, &[Said::Other]);
        check("hello", &[]);
    }

    #[test]
    fn many_rooms_are_joined_in_several_messages() {
        let rooms: Vec<String> = (0..1_001).map(|index| format!("r{index}")).collect();
        assert_eq!(joins(&rooms).len(), 3);
        assert_eq!(joins(&rooms[..1]).concat(), br#"{"type":"join","rooms":["r0"],"id":1}"#);
        assert_eq!(leaves(&[]).len(), 0);
    }

    #[test]
    fn a_number_ends_where_its_digits_end() {
        assert_eq!(number(b"120,"), Some((120, 3)));
        assert_eq!(number(b"0"), Some((0, 1)));
        assert_eq!(number(b","), None);
        assert_eq!(number(b"99999999999999999999"), None);
    }
}
