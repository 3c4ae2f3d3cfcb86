//! Tokens that connections show the server to say who they are: one for all, or for each one of its own, as a crowd of users has
//! them. These are JSON Web Tokens (RFC 7519) signed with a secret that the server has as well.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::clock::unix_s;

/// How long a token is good, in seconds: longer than a load.
const GOOD_FOR_S: u64 = 86_400;

/// Where tokens come from, as a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// This one is that of all.
    Token(String),
    /// Each connection gets one by HS256.
    Secret(Vec<u8>),
    /// Each connection shows this and its user's name: for a backend that takes them at their word.
    Prefix(String),
}

/// What gives a connection its token.
pub(crate) enum Tokens {
    One(String),
    Each(hmac::Key),
    Named(String),
}

impl From<Source> for Tokens {
    fn from(source: Source) -> Self {
        match source {
            Source::Token(token) => Self::One(token),
            Source::Secret(secret) => Self::Each(hmac::Key::new(hmac::HMAC_SHA256, &secret)),
            Source::Prefix(prefix) => Self::Named(prefix),
        }
    }
}

impl Tokens {
    /// The token of the connection whose user has this name, where each has its own.
    pub(crate) fn of(&self, user: &str) -> Cow<'_, str> {
        match self {
            Self::One(token) => token.into(),
            Self::Each(key) => mint(key, user).into(),
            Self::Named(prefix) => format!("{prefix}{user}").into(),
        }
    }
}

fn mint(key: &hmac::Key, user: &str) -> String {
    let now_s = unix_s();
    let claims = json!({"sub": user, "iat": now_s, "exp": now_s + GOOD_FOR_S}).to_string();
    let mut token = BASE64URL.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    token.push('.');
    BASE64URL.encode_string(claims, &mut token);
    let signature = hmac::sign(key, token.as_bytes());
    token.push('.');
    BASE64URL.encode_string(signature, &mut token);
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_ones_own_names_its_user_and_is_signed() {
        let secret = b"0123456789abcdef0123456789abcdef";
        let tokens = Tokens::from(Source::Secret(secret.to_vec()));
        let token = tokens.of("load-7");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        hmac::verify(&key, signed.as_bytes(), &BASE64URL.decode(signature).unwrap()).unwrap();
        let (_, claims) = signed.split_once('.').unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&BASE64URL.decode(claims).unwrap()).unwrap();
        assert_eq!(claims["sub"], "load-7");
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), GOOD_FOR_S);
        assert_eq!(Tokens::from(Source::Token("a.b.c".to_owned())).of("load-7"), "a.b.c");
    }
}
