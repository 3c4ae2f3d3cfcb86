//! What has changed in an object, as a merge patch (RFC 7396): the members that are new or another, and `null` for those that are gone.

use serde_json::{Map, Value};

/// An object of JSON.
pub type Object = Map<String, Value>;

/// Reads an object, without those of its members that are `null`, and of objects in it likewise: a merge patch has no word for them.
/// `None` for whatever else.
pub fn read(json: &[u8]) -> Option<Object> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(json) else { return None };
    strip(&mut object);
    Some(object)
}

fn strip(object: &mut Object) {
    object.retain(|_, value| !value.is_null());
    for value in object.values_mut() {
        if let Value::Object(inner) = value {
            strip(inner);
        }
    }
}

/// The patch that makes `new` of `old`. It is empty exactly when they are the same.
pub fn diff(old: &Object, new: &Object) -> Object {
    let mut patch = Object::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        match (old.get(name), value) {
            (Some(old), value) if old == value => {}
            (Some(Value::Object(old)), Value::Object(value)) => {
                patch.insert(name.clone(), Value::Object(diff(old, value)));
            }
            _ => _ = patch.insert(name.clone(), value.clone()),
        }
    }
    patch
}

/// The patch that makes `new` of `old`, whatever has been merged into its members since: all that is in `new`, and `null` for what is gone.
pub fn anew(old: &Object, new: &Object) -> Object {
    let mut patch = new.clone();
    for (name, old) in old {
        match (old, patch.get_mut(name)) {
            (_, None) => _ = patch.insert(name.clone(), Value::Null),
            (Value::Object(old), Some(Value::Object(new))) => *new = anew(old, new),
            _ => {}
        }
    }
    patch
}

/// Merges a patch into an object, as those who get it do.
pub fn apply(object: &mut Object, patch: &Object) {
    for (name, value) in patch {
        match value {
            Value::Null => _ = object.remove(name),
            Value::Object(inner) => {
                let own = object.entry(name.clone()).or_insert_with(|| Value::Object(Object::new()));
                if !own.is_object() {
                    *own = Value::Object(Object::new());
                }
                if let Value::Object(own) = own {
                    apply(own, inner);
                }
            }
            value => _ = object.insert(name.clone(), value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        read(json.as_bytes()).expect("an object")
    }

    #[test]
    fn a_patch_says_what_has_changed_and_no_more() {
        for (old, new, patch) in [
            (r#"{}"#, r#"{"a":1}"#, r#"{"a":1}"#),
            (r#"{"a":1,"b":[1]}"#, r#"{"b":[1],"a":1}"#, r#"{}"#),
            (r#"{"a":1,"b":2}"#, r#"{"b":3}"#, r#"{"a":null,"b":3}"#),
            (r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"x":1,"y":3}}"#, r#"{"a":{"y":3}}"#),
            (r#"{"a":{"x":1}}"#, r#"{"a":{}}"#, r#"{"a":{"x":null}}"#),
            (r#"{"a":{"x":1}}"#, r#"{"a":null}"#, r#"{"a":null}"#),
            (r#"{"a":1}"#, r#"{"a":{"x":{"y":null}}}"#, r#"{"a":{"x":{}}}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"a":[null]}"#, r#"{"a":[{"b":null}]}"#, r#"{"a":[{"b":null}]}"#),
        ] {
            let (mut old, new) = (object(old), object(new));
            let found = diff(&old, &new);
            assert_eq!(Value::Object(found.clone()).to_string(), patch);
            apply(&mut old, &found);
            assert_eq!(old, new);
            apply(&mut old, &anew(&new, &new));
            assert_eq!(old, new);
        }
        let (old, new) =
            (object(r#"{"a":1,"b":{"x":1,"y":{}},"c":[]}"#), object(r#"{"b":{"y":2},"c":{"z":1}}"#));
        let found = Value::Object(anew(&old, &new)).to_string();
        assert_eq!(found, r#"{"a":null,"b":{"x":null,"y":2},"c":{"z":1}}"#);
        for other in ["[]", "1", "", "{", "\"{}\"", "null"] {
            assert_eq!(read(other.as_bytes()), None, "{other}");
        }
    }
}
