//! JSON that is known to be well-formed, looked at where it stands: nothing is built, and values stay the text that they are.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize as _, Deserializer as _};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt;

/// Calls `each` with the key and the value, still JSON, of every member of the object that `json` begins with. What is no object has none.
///
/// A key with half a surrogate pair in it, which is no text, is told as it is written.
pub fn each_member<'a>(json: &'a str, each: impl FnMut(&str, &'a str)) {
    struct Members<F> {
        each: F,
        /// True when a key may be written with escapes.
        is_escaped: bool,
    }
    impl<'de, F: FnMut(&str, &'de str)> Visitor<'de> for Members<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<(), M::Error> {
            while !self.is_escaped
                && let Some(Key(key)) = map.next_key()?
            {
                (self.each)(&key, map.next_value::<&RawValue>()?.get());
            }
            while self.is_escaped
                && let Some(key) = map.next_key::<&RawValue>()?
            {
                let (key, value) = (key.get(), map.next_value::<&RawValue>()?.get());
                match serde_json::from_str::<Cow<'_, str>>(key) {
                    Ok(key) => (self.each)(&key, value),
                    Err(_) => (self.each)(&key[1..key.len() - 1], value),
                }
            }
            Ok(())
        }
    }
    #[derive(serde::Deserialize)]
    #[serde(transparent)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
    let mut reader = serde_json::Deserializer::from_str(json);
    // The arguments were checked when they came; what is no object is refused here, and has no members.
    let _refused = reader.deserialize_map(Members { each, is_escaped: json.contains('\\') });
}

/// The values of a list without its brackets, each still JSON, which is known to be well-formed.
pub fn split(args: &str) -> SmallVec<[&str; 4]> {
    let (mut values, mut rest) = (SmallVec::new(), args.trim_ascii());
    while !rest.is_empty() {
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        let Some(Ok(value)) = stream.next() else { break };
        values.push(value.get());
        rest = rest[stream.byte_offset()..].trim_ascii_start();
        rest = rest.strip_prefix(',').unwrap_or("").trim_ascii_start();
    }
    values
}

/// True when these values are one.
pub fn is_one(args: &str) -> bool {
    let mut reader = serde_json::Deserializer::from_str(args);
    <&RawValue>::deserialize(&mut reader).is_ok() && reader.end().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_apart() {
        assert_eq!(split(r#" {"a":[1,2]} , "b,\"c" ,3"#).as_slice(), [r#"{"a":[1,2]}"#, r#""b,\"c""#, "3"]);
        assert!(split(" ").is_empty());
        for (args, is) in [("", false), ("1", true), (" [1,2] ", true), ("1,2", false)] {
            assert_eq!(is_one(args), is, "{args:?}");
        }
    }

    #[test]
    fn the_members_of_the_first_object_are_told_in_order() {
        let mut told = Vec::new();
        each_member(r#"{"a": 1, "b\n":{"c":[]}, "\ud800":3, "a":null},{"d":2}"#, |key, value| {
            told.push((key.to_owned(), value))
        });
        let expected = [("a", "1"), ("b\n", r#"{"c":[]}"#), ("\\ud800", "3"), ("a", "null")];
        assert_eq!(told, expected.map(|(key, value)| (key.to_owned(), value)));
        for no_object in ["", "1", "[{}]", "null"] {
            each_member(no_object, |key, _| panic!("{no_object} has no {key}"));
        }
    }
}
