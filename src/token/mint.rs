//! `throng token`: makes a token, for trying things out and for tests.

use super::keys::{Algorithm, read_file, without_line_break};
use super::refresh::unix_ms;
use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What the command line says of a token.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The secret of HS256, HS384 or HS512. Others can see it in the list of processes: outside of trials use --key
    #[arg(long, value_name = "TEXT", conflicts_with = "key")]
    secret: Option<String>,
    /// A file with the secret, or with a private key in PEM (PKCS #8)
    #[arg(long, value_name = "FILE", required_unless_present = "secret")]
    key: Option<PathBuf>,
    /// HS256, HS384, HS512, RS256, ES256 or EdDSA
    #[arg(long, value_name = "NAME", default_value = "HS256", value_parser = algorithm)]
    algorithm: Algorithm,
    /// The name of the key, for servers that have several
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,
    /// Who the bearer is
    #[arg(long, value_name = "NAME")]
    user: String,
    /// A room that is joined at once; may be given many times
    #[arg(long, value_name = "ROOM")]
    room: Vec<String>,
    /// What is allowed, as in join,publish:auction:*; may be given many times
    #[arg(long, value_name = "ACTS:ROOMS")]
    permission: Vec<String>,
    /// What the user is; may be given many times
    #[arg(long, value_name = "NAME")]
    role: Vec<String>,
    /// Who vouches
    #[arg(long, value_name = "TEXT")]
    issuer: Option<String>,
    /// Whom it is for
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,
    /// How long it is good, as in 90s, 15m, 1h or 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    expires: u64,
}

/// The token.
///
/// # Errors
/// When the key cannot be read or is none for the algorithm, in words.
pub fn mint(args: &Args) -> Result<String, String> {
    let mut head = json!({"alg": args.algorithm.word(), "typ": "JWT"});
    if let Some(kid) = &args.kid {
        head["kid"] = kid.as_str().into();
    }
    let now_s = unix_ms() / 1_000;
    let mut claims = Map::new();
    let mut add = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    add("sub", args.user.as_str().into());
    add("iat", now_s.into());
    add("exp", (now_s + args.expires).into());
    let texts = [("iss", &args.issuer), ("aud", &args.audience)];
    let lists = [("rooms", &args.room), ("permissions", &args.permission), ("roles", &args.role)];
    for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
        add(name, text.as_str().into());
    }
    for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        add(name, list.as_slice().into());
    }
    let encode = |json: String| BASE64URL_NOPAD.encode(json.as_bytes());
    let signed = format!("{}.{}", encode(head.to_string()), encode(Value::from(claims).to_string()));
    let signature = sign(args, signed.as_bytes())?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

fn sign(args: &Args, message: &[u8]) -> Result<Vec<u8>, String> {
    let algorithm = args.algorithm;
    let key = match (&args.secret, &args.key) {
        (Some(secret), _) => secret.clone().into_bytes(),
        (None, Some(path)) => read_file(path).map_err(|error| format!("{}: {error}", path.display()))?,
        (None, None) => Vec::new(),
    };
    if let Some(hmac) = algorithm.hmac() {
        let key = ring::hmac::Key::new(hmac, without_line_break(&key));
        return Ok(ring::hmac::sign(&key, message).as_ref().to_vec());
    }
    let wrong = || format!("--key is no private key for {} in PEM (PKCS #8)", algorithm.word());
    let der = PrivateKeyDer::from_pem_slice(&key).map_err(|_| wrong())?;
    let random = SystemRandom::new();
    match algorithm {
        Algorithm::Rs256 => {
            let pair = RsaKeyPair::from_pkcs8(der.secret_der()).map_err(|_| wrong())?;
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(|_| wrong())?;
            Ok(signature)
        }
        Algorithm::Es256 => {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der(), &random);
            let signature = pair.map_err(|_| wrong())?.sign(&random, message).map_err(|_| wrong())?;
            Ok(signature.as_ref().to_vec())
        }
        _ => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).map_err(|_| wrong())?;
            Ok(pair.sign(message).as_ref().to_vec())
        }
    }
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    Algorithm::parse(text).ok_or_else(|| format!("one of {}", Algorithm::WORDS.join(", ")))
}

/// A whole number with `s`, `m`, `h` or `d` behind it.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "a time like 90s, 15m, 1h or 30d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let worth: u64 = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    // A century, so that nothing overflows.
    let count = text[..digits].parse::<u64>().ok().and_then(|count| count.checked_mul(worth));
    count.filter(|count| *count <= 36_525 * 86_400).ok_or_else(wrong)
}
