//! A field of a payload: found without reading the rest of it into anything.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt::{self, Display};

/// Where a value is in objects within each other: names with dots between them. Displayed, it is as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath(Box<[Box<str>]>);

impl FieldPath {
    /// The most names in one.
    pub const NAMES_MAX: usize = 8;
    /// The longest, in bytes.
    pub const BYTES_MAX: usize = 200;

    /// Reads `id` or `bid.item.id`. `None` when a name is empty, or there are too many.
    pub fn parse(text: &str) -> Option<FieldPath> {
        let names: Box<[Box<str>]> = text.split('.').map(Box::from).collect();
        let is_right = text.len() <= FieldPath::BYTES_MAX
            && names.len() <= FieldPath::NAMES_MAX
            && names.iter().all(|name| !name.is_empty() && !name.contains(char::is_control));
        is_right.then_some(FieldPath(names))
    }

    /// The value as it is written in `json`; `None` when there is none, or it is `null`. Of a name that comes twice the last counts.
    pub fn find<'j>(&self, json: &'j [u8]) -> Option<&'j str> {
        let found = Seek(&self.0).deserialize(&mut serde_json::Deserializer::from_slice(json)).ok()??;
        Some(found.get()).filter(|value| *value != "null")
    }
}

impl Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// What is left of a path.
#[derive(Clone, Copy)]
struct Seek<'p>(&'p [Box<str>]);

impl<'j> DeserializeSeed<'j> for Seek<'_> {
    type Value = Option<&'j RawValue>;

    fn deserialize<D: Deserializer<'j>>(self, value: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return serde::Deserialize::deserialize(value).map(Some);
        }
        value.deserialize_any(self)
    }
}

/// Whatever is no object has no fields.
impl<'j> Visitor<'j> for Seek<'_> {
    type Value = Option<&'j RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'j>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is(&self.0[0]))? {
            if is_it {
                found = map.next_value_seed(Seek(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'j>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A name, and whether it is this one.
struct Is<'p>(&'p str);

impl<'j> DeserializeSeed<'j> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'j>>(self, name: D) -> Result<bool, D::Error> {
        let name: &RawValue = serde::Deserialize::deserialize(name)?;
        let (quoted, bare) = (name.get(), &name.get()[1..name.get().len() - 1]);
        // Half a surrogate pair is no text, and not this name.
        Ok(match quoted.contains('\\') {
            false => bare == self.0,
            true => serde_json::from_str::<String>(quoted).is_ok_and(|name| name == self.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_wherever_it_stands() {
        for (path, json, found) in [
            ("id", r#"{"id":7}"#, Some("7")),
            ("id", r#" { "a" : [1,{"id":2}], "id" : "x\ny" } "#, Some(r#""x\ny""#)),
            ("id", r#"{"id":1,"id":[2, 3]}"#, Some("[2, 3]")),
            ("id", r#"{"\u0069d":1}"#, Some("1")),
            ("id", r#"{"\ud800":1,"id":2,"i\"d":3}"#, Some("2")),
            ("id", r#"{"id":null}"#, None),
            ("id", "[1]", None),
            ("id", "\"id\"", None),
            ("id", "7", None),
            ("id", "{", None),
            ("id", "", None),
            ("a.b", r#"{"a":{"b":{"c":1}}}"#, Some(r#"{"c":1}"#)),
            ("a.b", r#"{"a":7,"b":1}"#, None),
            ("a.b", r#"{"a.b":1}"#, None),
        ] {
            let path = FieldPath::parse(path).expect("a path");
            assert_eq!(path.find(json.as_bytes()), found, "{path} in {json}");
        }
        for wrong in ["", ".", "a.", ".a", "a..b", "a.b.c.d.e.f.g.h.i", &"a".repeat(201)] {
            assert_eq!(FieldPath::parse(wrong), None, "{wrong}");
        }
    }
}
