//! How the backend knows that a request is ours: `Throng-Signature: t=<seconds since 1970>,v1=<hex>`, where the number is the
//! HMAC-SHA256 (RFC 2104) of the time, a dot and the body, under the secret. Whoever checks it refuses old times.

use data_encoding::HEXLOWER;
use ring::hmac;

/// The name of the header.
pub(super) const HEADER: &str = "throng-signature";

/// Its value, for a body that is sent now.
pub(super) fn signature(key: &hmac::Key, unix_s: u64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{unix_s}.").as_bytes());
    context.update(body);
    format!("t={unix_s},v1={}", HEXLOWER.encode(context.sign().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_others_compute() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let expected = "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163";
        assert_eq!(signature(&key, 1_700_000_000, b"{}"), expected);
    }
}
