//! The `[[api.keys]]` of a configuration file: who may use the HTTP API, and for what.

use super::Reloaded;
use super::tables::{Reading, Tables};
use super::value::is_key;
use std::fmt;
use toml::de::DeValue;

pub(super) const TABLES: Tables = Tables {
    name: "api.keys",
    heading: "[[api.keys]]",
    keys: &["name", "key", "sha256", "scopes"],
    most: 64,
    reloaded: Reloaded::Yes,
};

/// What a key is for, in the words of the configuration: `publish` sends events, `read` looks at rooms and connections, `admin` has
/// connections join, leave and go.
const SCOPES: [&str; 3] = ["publish", "read", "admin"];

/// What `name` takes, to stand behind "it takes".
const NAME: &str = "a text of 1 to 64 letters without spaces, which no [[api.keys]] before this one has";
const SHA256: &str = "the SHA-256 of a key, in 64 hexadecimal digits";

/// One table.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What it is called where it is spoken of.
    pub name: String,
    /// The key, or its digest.
    pub secret: KeySecret,
    /// Some of `publish`, `read` and `admin`.
    pub scopes: Vec<&'static str>,
}

/// See [`ApiKey`].
#[derive(Clone, PartialEq, Eq)]
pub enum KeySecret {
    /// The key itself.
    Key(String),
    /// Its SHA-256.
    Sha256([u8; 32]),
}

impl fmt::Debug for ApiKey {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("name", &self.name)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

/// Reads the list, which begins at `start`, into keys, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<ApiKey> {
    let mut taken: Vec<String> = Vec::new();
    TABLES.read(list, start, file, |table| {
        let is_name =
            |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        let is_new = |text: &str| is_name(text) && taken.iter().all(|other| other != text);
        let name = table.require("name", NAME, |text| is_new(text).then(|| text.to_owned()));
        let key = table.secret("key", super::value::KEY, |text| is_key(text).then(|| text.to_owned()));
        let digest = table.secret("sha256", SHA256, hexadecimal);
        let secret = match (key, digest) {
            (Some(key), None) => Some(KeySecret::Key(key)),
            (None, Some(digest)) => Some(KeySecret::Sha256(digest)),
            (Some(_), Some(_)) => {
                table.tell_conflict("sha256", "nothing where there is a `key`");
                None
            }
            (None, None) => {
                if !table.has("key") && !table.has("sha256") {
                    table.tell_missing("key", &format!("{}; or sha256 in its place", super::value::KEY));
                }
                None
            }
        };
        let scopes = table.words("scopes", &SCOPES);
        let name = name?;
        taken.push(name.clone());
        Some(ApiKey { name, secret: secret?, scopes: scopes? })
    })
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}
