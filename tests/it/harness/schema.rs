//! Every message that goes by is held against docs/protocol.schema.json.

use jsonschema::Validator;
use serde_json::{Value, json};
use std::sync::LazyLock;

const SCHEMA: &str = include_str!("../../../docs/protocol.schema.json");

static CLIENT_FRAME: LazyLock<Validator> = LazyLock::new(|| validator("clientFrame"));
static SERVER_FRAME: LazyLock<Validator> = LazyLock::new(|| validator("serverFrame"));
static BINARY_PUBLISH: LazyLock<Validator> = LazyLock::new(|| validator("binaryPublish"));
static BINARY_EVENT: LazyLock<Validator> = LazyLock::new(|| validator("binaryEvent"));

/// What is said where.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// A text frame from a client.
    ClientFrame,
    /// A text frame from the server.
    ServerFrame,
    /// The JSON in a binary frame from a client.
    BinaryPublish,
    /// The JSON in a binary frame from the server.
    BinaryEvent,
}

/// Why `value` is not what `part` may be; nothing when it is.
pub(crate) fn faults(part: Part, value: &Value) -> Vec<String> {
    let validator: &Validator = match part {
        Part::ClientFrame => &CLIENT_FRAME,
        Part::ServerFrame => &SERVER_FRAME,
        Part::BinaryPublish => &BINARY_PUBLISH,
        Part::BinaryEvent => &BINARY_EVENT,
    };
    // Most are right, and collecting the errors of a `oneOf` is the slow part.
    if validator.is_valid(value) {
        return Vec::new();
    }
    validator.iter_errors(value).map(|error| error.to_string()).collect()
}

/// Reads `text` as JSON that `part` may be.
pub(crate) fn read(part: Part, text: &str) -> Value {
    let value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {}", cut(text)));
    let faults = faults(part, &value);
    assert!(faults.is_empty(), "not a {part:?}: {}\n{}", cut(text), cut(&faults.join("\n")));
    value
}

/// The whole schema, as JSON.
pub(crate) fn whole() -> Value {
    serde_json::from_str(SCHEMA).expect("the schema is JSON")
}

fn validator(definition: &str) -> Validator {
    let schema = whole();
    assert!(schema["$defs"][definition].is_object(), "the schema has no {definition}");
    let part = json!({"$schema": schema["$schema"], "$ref": format!("#/$defs/{definition}"), "$defs": schema["$defs"]});
    jsonschema::validator_for(&part).expect("the schema is a schema")
}

/// The beginning of a text that may be long.
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(600)]
}
