//! Binary values within JSON: what stands for them in the text of a packet, as Socket.IO writes it (`{"_placeholder":true,"num":0}`).

use super::engineio::Malformed;
use data_encoding::BASE64;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// What stands for the first attachment.
pub const PLACEHOLDER: &str = r#"{"_placeholder":true,"num":0}"#;

/// An object that stands for an attachment, or says that it does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placeholder {
    /// Where it is in the text.
    object: Range<usize>,
    /// Which attachment, and where that is written; `None` when it is no whole number.
    num: Option<(usize, Range<usize>)>,
}

/// True when this JSON stands for the first attachment, and is nothing else.
pub fn is_placeholder(json: &str) -> bool {
    number(json) == Some(0)
}

/// Which attachment this JSON stands for, if it is nothing else.
pub fn number(json: &str) -> Option<usize> {
    match placeholders(json).as_slice() {
        [Placeholder { object, num: Some((num, _)) }] if *object == (0..json.len()) => Some(*num),
        _ => None,
    }
}

/// True when something in this JSON stands for an attachment.
pub fn is_any_in(json: &str) -> bool {
    !placeholders(json).is_empty()
}

/// Checks that whatever stands for an attachment names one of those that there are, each another. `json` is well-formed: values with commas
/// between them.
///
/// # Errors
/// When an object with `"_placeholder":true` has no `num`, or one that is not a whole number below `attachments`, or that of another. No
/// client writes that: a value that comes twice is two attachments. Written in many places, a few bytes would stand for as many copies.
pub fn check(json: &str, attachments: usize) -> Result<(), Malformed> {
    let mut is_named = vec![false; attachments];
    for found in placeholders(json) {
        let named = found.num.and_then(|(num, _)| is_named.get_mut(num));
        let named = named.ok_or(Malformed("a placeholder names no attachment"))?;
        if std::mem::replace(named, true) {
            return Err(Malformed("two placeholders name one attachment"));
        }
    }
    Ok(())
}

/// The same JSON with those of the attachments that it names, in the order in which it does: one that it names twice, as templates can, is two.
pub fn named<'a>(json: &'a str, attachments: &'a [Vec<u8>]) -> (Cow<'a, str>, Cow<'a, [Vec<u8>]>) {
    if attachments.is_empty() {
        return (json.into(), attachments.into());
    }
    let mut order = Vec::new();
    let renumbered = renumber(json, |num| {
        attachments.get(num)?;
        order.push(num);
        Some(order.len() - 1)
    });
    match order.iter().copied().eq(0..attachments.len()) {
        true => (json.into(), attachments.into()),
        false => (renumbered.into(), order.iter().map(|num| attachments[*num].clone()).collect()),
    }
}

/// The same JSON for attachments that stand behind `by` others.
pub fn shift(json: &str, by: usize) -> String {
    rewrite(json, |found| found.num.as_ref().map(|(num, digits)| (digits.clone(), (num + by).to_string())))
}

/// The same JSON for attachments that have other places: `place` says which, if it knows.
pub fn renumber(json: &str, mut place: impl FnMut(usize) -> Option<usize>) -> String {
    rewrite(json, |found| {
        let (num, digits) = found.num.as_ref()?;
        Some((digits.clone(), place(*num)?.to_string()))
    })
}

/// The same JSON with the attachments in it: `{"base64":"…"}` for each.
pub fn inline(json: &str, attachments: &[Vec<u8>]) -> String {
    rewrite(json, |found| {
        let attachment = found.num.as_ref().and_then(|(num, _)| attachments.get(*num))?;
        Some((found.object.clone(), format!(r#"{{"base64":"{}"}}"#, BASE64.encode(attachment))))
    })
}

/// Puts something else where `change` says so for a placeholder.
fn rewrite(json: &str, change: impl FnMut(&Placeholder) -> Option<(Range<usize>, String)>) -> String {
    let (mut out, mut copied) = (String::with_capacity(json.len()), 0);
    for (range, text) in placeholders(json).iter().filter_map(change) {
        // One within another has been replaced with it.
        if range.start >= copied {
            out.push_str(&json[copied..range.start]);
            out.push_str(&text);
            copied = range.end;
        }
    }
    out.push_str(&json[copied..]);
    out
}

/// All placeholders, in the order in which they begin.
fn placeholders(json: &str) -> Vec<Placeholder> {
    /// An array or object that has begun, as far as it was read. Of a key that comes twice the last value counts, as in JavaScript.
    #[derive(Default)]
    struct Open {
        start: usize,
        /// True exactly when it says that it is a placeholder.
        placeholder: bool,
        num: Option<(usize, Range<usize>)>,
    }
    let mut found = Vec::new();
    let mut open = SmallVec::<[Open; 16]>::new();
    let mut at = 0;
    while let Some(skipped) =
        json[at..].bytes().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'))
    {
        at += skipped;
        match json.as_bytes()[at] {
            b'"' => {
                let (string, after) = json[at..].split_at(string_bytes(&json[at..]));
                at += string.len();
                // A string before a colon is a key.
                let Some(value) = after.trim_ascii_start().strip_prefix(':') else { continue };
                let (value, Some(object)) = (value.trim_ascii_start(), open.last_mut()) else { continue };
                match unescape(string).as_deref() {
                    Some("_placeholder") => object.placeholder = value.starts_with("true"),
                    Some("num") => {
                        let (digits, after) = split_digits(value);
                        let whole = !after.starts_with(['.', 'e', 'E']);
                        let start = json.len() - value.len();
                        let range = start..start + digits.len();
                        object.num = digits.parse().ok().filter(|_| whole).map(|num| (num, range));
                    }
                    _ => {}
                }
            }
            b'{' | b'[' => {
                open.push(Open { start: at, ..Open::default() });
                at += 1;
            }
            _ => {
                at += 1;
                if let Some(Open { start, placeholder: true, num }) = open.pop() {
                    found.push(Placeholder { object: start..at, num });
                }
            }
        }
    }
    found.sort_by_key(|placeholder| placeholder.object.start);
    found
}

/// The ASCII digits that `text` begins with, and the rest.
pub(super) fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len()))
}

/// Bytes of the string that `json` begins with, quotes and all.
pub(super) fn string_bytes(json: &str) -> usize {
    let mut bytes = json.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return at + 1,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    json.len()
}

/// The text of a JSON string, unless it has half a surrogate pair in it, which JavaScript knows and Rust does not.
pub(super) fn unescape(string: &str) -> Option<Cow<'_, str>> {
    if string.contains('\\') {
        serde_json::from_str(string).ok().map(Cow::Owned)
    } else {
        string.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_an_attachment_is_told_from_what_looks_like_it() {
        for (json, is_one) in [
            (PLACEHOLDER, true),
            (r#"{ "num" : 0, "_placeholder" : true }"#, true),
            (r#"{"_placeholder":true,"num":1}"#, false),
            (r#"{"_placeholder":false,"num":0}"#, false),
            (r#"[{"_placeholder":true,"num":0}]"#, false),
            (r#""{\"_placeholder\":true,\"num\":0}""#, false),
            ("null", false),
        ] {
            assert_eq!(is_placeholder(json), is_one, "{json}");
        }
    }

    #[test]
    fn each_attachment_is_named_once() {
        let json = |nums: &[usize]| {
            let all: Vec<String> =
                nums.iter().map(|num| format!(r#"{{"_placeholder":true,"num":{num}}}"#)).collect();
            all.join(",")
        };
        for (nums, are_good) in [(&[0, 1][..], true), (&[1], true), (&[2], false), (&[0, 0], false)] {
            assert_eq!(check(&json(nums), 2).is_ok(), are_good, "{nums:?}");
        }
        let all = [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
        assert_eq!(named(&json(&[0, 1, 2]), &all), (json(&[0, 1, 2]).into(), (&all[..]).into()));
        assert_eq!(
            named(&json(&[2, 0, 2]), &all),
            (json(&[0, 1, 2]).into(), [all[2].clone(), all[0].clone(), all[2].clone()][..].into())
        );
        assert_eq!(named("1", &all), ("1".into(), (&[][..]).into()));
    }

    #[test]
    fn attachments_that_stand_behind_others_get_higher_numbers() {
        let json = r#"{"a":{"_placeholder":true,"num":0},"b":[{"num": 9,"_placeholder":true}],"num":3}"#;
        assert_eq!(
            shift(json, 2),
            r#"{"a":{"_placeholder":true,"num":2},"b":[{"num": 11,"_placeholder":true}],"num":3}"#
        );
        assert_eq!(shift("[1,2]", 5), "[1,2]");
    }

    #[test]
    fn attachments_can_stand_in_the_text() {
        let json = r#"{"é":{"_placeholder":true,"num":1},"b":"{","c":{"_placeholder":true,"num":0}}"#;
        let attachments = [b"one".to_vec(), vec![0xff]];
        assert_eq!(inline(json, &attachments), r#"{"é":{"base64":"/w=="},"b":"{","c":{"base64":"b25l"}}"#);
        assert_eq!(inline(json, &[]), json, "what names none stays");
        let nested = r#"{"_placeholder":true,"num":0,"x":{"_placeholder":true,"num":1}}"#;
        assert_eq!(inline(nested, &attachments), r#"{"base64":"b25l"}"#);
    }
}
