//! Keys that vouch for tokens: secrets, public keys in PEM files, sets of keys in JSON (RFC 7517). Each is good for one algorithm.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use ring::hmac;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The most keys that a configuration names, and the most that are taken of a set.
pub const KEYS_MAX: usize = 32;
/// The longest file of a key, and the longest set of keys, in bytes.
pub const KEY_BYTES_MAX: usize = 1 << 20;
/// The shortest modulus of an RSA key, in bytes: 2,048 bits.
const MODULUS_BYTES_MIN: usize = 256;

/// How a token is signed (RFC 7518 section 3, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSA, PKCS #1 version 1.5, with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// What tokens and configurations call them.
    pub const WORDS: &[&str] = &["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"];
    const ALL: [Algorithm; 6] = [
        Algorithm::Hs256,
        Algorithm::Hs384,
        Algorithm::Hs512,
        Algorithm::Rs256,
        Algorithm::Es256,
        Algorithm::EdDsa,
    ];

    /// Reads its name; `None` for all others, `none` among them.
    pub fn parse(text: &str) -> Option<Algorithm> {
        let place = Algorithm::WORDS.iter().position(|word| *word == text)?;
        Some(Algorithm::ALL[place])
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        Algorithm::WORDS[self as usize]
    }

    /// The shortest secret, in bytes: as long as the hash (RFC 7518 section 3.2). `None` when it has no secret.
    pub fn secret_bytes_min(self) -> Option<usize> {
        match self {
            Algorithm::Hs256 => Some(32),
            Algorithm::Hs384 => Some(48),
            Algorithm::Hs512 => Some(64),
            Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa => None,
        }
    }

    pub(super) fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Algorithm::Hs256 => Some(hmac::HMAC_SHA256),
            Algorithm::Hs384 => Some(hmac::HMAC_SHA384),
            Algorithm::Hs512 => Some(hmac::HMAC_SHA512),
            Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa => None,
        }
    }
}

/// A key that a configuration names.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySource {
    /// What tokens call it; `None` when it is for tokens of any name.
    pub kid: Option<String>,
    /// What it is good for.
    pub algorithm: Algorithm,
    /// Until when it is good, in seconds from 1970; `None` for ever.
    pub until_s: Option<u64>,
    /// Where it is.
    pub place: Place,
}

/// Where a key is.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// Here: a secret.
    Secret(Vec<u8>),
    /// In a file: a public key in PEM, or a secret, whose last line break does not count.
    File(PathBuf),
}

/// Why a key could not be had, in words for who runs the server. It does not show the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFault(pub String);

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// When its file cannot be read, or holds no key for its algorithm.
    pub fn read(&self) -> Result<Key, KeyFault> {
        let verifier = match (&self.place, self.algorithm.hmac()) {
            (Place::Secret(secret), Some(_)) => secret_verifier(secret, self.algorithm),
            (Place::Secret(_), None) => Err("has no secret".to_owned()),
            (Place::File(path), is_secret) => read_file(path).and_then(|bytes| match is_secret {
                Some(_) => secret_verifier(without_line_break(&bytes), self.algorithm),
                None => public_verifier(&bytes, self.algorithm),
            }),
        };
        let verifier = verifier.map_err(|what| match &self.place {
            Place::Secret(_) => KeyFault(format!("a key for {} {what}", self.algorithm.word())),
            Place::File(path) => KeyFault(format!("{}: {what}", path.display())),
        })?;
        let KeySource { kid, algorithm, until_s, .. } = self.clone();
        Ok(Key { kid: kid.map(String::into_boxed_str), algorithm, until_s, verifier })
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeySource { kid, algorithm, until_s, .. } = self;
        write!(f, "KeySource({kid:?}, {algorithm:?}, {until_s:?})")
    }
}

/// A key, ready to be used.
pub struct Key {
    kid: Option<Box<str>>,
    algorithm: Algorithm,
    until_s: Option<u64>,
    verifier: Verifier,
}

enum Verifier {
    Secret(hmac::Key),
    Public(UnparsedPublicKey<Box<[u8]>>),
    Rsa(RsaPublicKeyComponents<Box<[u8]>>),
}

impl Key {
    /// What tokens call it.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What it is good for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// True until its time is over; `unix_ms` is in milliseconds from 1970.
    pub fn is_good_at(&self, unix_ms: u64) -> bool {
        self.until_s.is_none_or(|until_s| unix_ms < until_s.saturating_mul(1_000))
    }

    /// True when `signature` is that of `message` by this key. Takes as long for a wrong one as for a right one.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.verifier {
            Verifier::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Verifier::Public(key) => key.verify(message, signature).is_ok(),
            Verifier::Rsa(key) => {
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {:?})", self.kid, self.algorithm)
    }
}

/// The keys of a set, those that are for signatures that are known here. Secrets are passed over: a set is for everybody to read.
///
/// # Errors
/// When it is no set, or has none of these.
pub fn read_set(json: &[u8]) -> Result<Vec<Key>, KeyFault> {
    #[derive(Deserialize)]
    struct Set<'a> {
        #[serde(borrow)]
        keys: Vec<&'a RawValue>,
    }
    let set: Set<'_> =
        serde_json::from_slice(json).map_err(|error| KeyFault(format!("no set of keys: {error}")))?;
    // Sets may hold kinds of keys that nobody here knows: the others are taken all the same.
    let keys: Vec<Key> = set.keys.iter().take(KEYS_MAX).filter_map(|key| read_jwk(key.get())).collect();
    if keys.is_empty() { Err(KeyFault("no key of the set can be used".to_owned())) } else { Ok(keys) }
}

fn read_jwk(json: &str) -> Option<Key> {
    let jwk: Jwk = serde_json::from_str(json).ok()?;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::Rs256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::Es256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDsa,
        _ => return None,
    };
    let is_for_it = match jwk.common.key_algorithm {
        None => true,
        Some(KeyAlgorithm::RS256) => algorithm == Algorithm::Rs256,
        Some(KeyAlgorithm::ES256) => algorithm == Algorithm::Es256,
        Some(KeyAlgorithm::EdDSA) => algorithm == Algorithm::EdDsa,
        // RFC 9864 calls it by its curve.
        Some(KeyAlgorithm::UNKNOWN_ALGORITHM) => {
            algorithm == Algorithm::EdDsa && json.contains("\"Ed25519\"")
        }
        Some(_) => false,
    };
    let is_for_signatures =
        jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    if !is_for_it || !is_for_signatures {
        return None;
    }
    let verifier = match &jwk.algorithm {
        AlgorithmParameters::RSA(key) => {
            let number = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).ok();
            let n = number(&key.n).filter(|n| n.len() >= MODULUS_BYTES_MIN)?;
            Verifier::Rsa(RsaPublicKeyComponents { n: n.into(), e: number(&key.e)?.into() })
        }
        _ => verifier(&DecodingKey::from_jwk(&jwk).ok()?, algorithm).ok()?,
    };
    Some(Key { kid: jwk.common.key_id.map(String::into_boxed_str), algorithm, until_s: None, verifier })
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let length = std::fs::File::open(path)
        .and_then(|file| file.take(KEY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if length > KEY_BYTES_MAX { Err(format!("longer than {KEY_BYTES_MAX} bytes")) } else { Ok(bytes) }
}

pub(super) fn without_line_break(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

fn secret_verifier(secret: &[u8], algorithm: Algorithm) -> Result<Verifier, String> {
    match (algorithm.hmac(), algorithm.secret_bytes_min()) {
        (Some(hmac), Some(bytes_min)) if secret.len() >= bytes_min => {
            Ok(Verifier::Secret(hmac::Key::new(hmac, secret)))
        }
        (_, bytes_min) => Err(format!("has at least {} bytes", bytes_min.unwrap_or_default())),
    }
}

fn public_verifier(pem: &[u8], algorithm: Algorithm) -> Result<Verifier, String> {
    let key = match algorithm {
        Algorithm::Rs256 => DecodingKey::from_rsa_pem(pem),
        Algorithm::Es256 => DecodingKey::from_ec_pem(pem),
        _ => DecodingKey::from_ed_pem(pem),
    };
    let key = key.map_err(|error| format!("no public key for {} in PEM: {error}", algorithm.word()))?;
    verifier(&key, algorithm)
}

fn verifier(key: &DecodingKey, algorithm: Algorithm) -> Result<Verifier, String> {
    let bytes = key.try_get_as_bytes().unwrap_or_default();
    let (verification, is_right): (&'static dyn VerificationAlgorithm, bool) = match algorithm {
        Algorithm::Rs256 if bytes.len() <= MODULUS_BYTES_MIN => {
            return Err("an RSA key has at least 2048 bits".to_owned());
        }
        Algorithm::Rs256 => (&signature::RSA_PKCS1_2048_8192_SHA256, true),
        // Uncompressed: a 4, then both coordinates.
        Algorithm::Es256 => (&signature::ECDSA_P256_SHA256_FIXED, bytes.len() == 65 && bytes[0] == 4),
        _ => (&signature::ED25519, bytes.len() == 32),
    };
    if !is_right {
        return Err(format!("no public key for {}", algorithm.word()));
    }
    Ok(Verifier::Public(UnparsedPublicKey::new(verification, bytes.into())))
}
