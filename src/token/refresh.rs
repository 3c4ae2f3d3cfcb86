//! How keys stay fresh: they are read again now and then, and when a token names one that is not there. Off the data path, one reading at
//! a time. When one fails, the last good keys stay.

use super::Tokens;
use super::keys::{KEY_BYTES_MAX, Key, KeyFault, KeySource, read_file, read_set};
use crate::http_client::{Answer, HttpClient};
use crate::time::Clock;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a set of keys may take to come.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// How often the clock of the wall is looked at.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

/// Reads the keys that the configuration names.
///
/// # Errors
/// What is wrong with the first that cannot be had.
pub fn read_named(tokens: &Tokens) -> Result<(), KeyFault> {
    let keys = read_keys(&tokens.settings().keys)?;
    tokens.set_named_keys(keys);
    Ok(())
}

/// Reads these keys.
///
/// # Errors
/// What is wrong with the first that cannot be had.
pub fn read_keys(sources: &[KeySource]) -> Result<Vec<Key>, KeyFault> {
    sources.iter().map(KeySource::read).collect()
}

/// Reads the set of keys, if there is one.
///
/// # Errors
/// Why it could not be had. The keys of the last one stay.
pub async fn read_key_set(tokens: &Tokens) -> Result<(), KeyFault> {
    let place = tokens.settings().key_set.clone();
    if let Some(place) = place {
        tokens.set_keys_of_set(read_set_at(&place).await?);
    }
    Ok(())
}

/// Reads a set of keys that is at a path, or at a URL of http or https.
///
/// # Errors
/// Why it could not be had.
pub async fn read_set_at(place: &str) -> Result<Vec<Key>, KeyFault> {
    let json = if place.starts_with("http://") || place.starts_with("https://") {
        fetch(place).await
    } else {
        read_file(Path::new(place))
    };
    let json = json.map_err(|what| KeyFault(format!("{place}: {what}")))?;
    read_set(&json).map_err(|fault| KeyFault(format!("{place}: {fault}")))
}

/// Keeps the keys and the clock of `tokens` fresh, for ever.
pub async fn keep_fresh(tokens: Arc<Tokens>, clock: Clock) {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let pauses = || (ms(tokens.settings().refresh_ms), ms(tokens.settings().retry_ms));
    let watch = async {
        loop {
            tokens.set_wall_clock(unix_ms(), clock.now());
            tokio::time::sleep(LOOK_AT_CLOCK).await;
        }
    };
    let read = async {
        let (mut pause, _) = pauses();
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = tokens.wanted.notified() => {}
            }
            tokens.refreshes.add(1);
            let named = read_named(&tokens);
            let result = read_key_set(&tokens).await.and(named);
            let (refresh, retry) = pauses();
            pause = if result.is_ok() { refresh } else { retry };
            if let Err(fault) = result {
                tokens.refresh_failures.add(1);
                tracing::warn!(%fault, "keys of tokens could not be read again: the last good ones stay");
            }
            // Whatever names tokens have, it is not asked more often than this.
            tokio::time::sleep(retry).await;
        }
    };
    tokio::join!(watch, read);
}

/// Milliseconds from 1970 to now.
#[expect(
    clippy::disallowed_methods,
    reason = "tokens are dated: this and clock.now() tie the two times together"
)]
pub fn unix_ms() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_millis() as u64)
}

/// What is at a URL of http or https.
async fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(url)
        .header("accept", "application/jwk-set+json, application/json")
        .body(Full::default())
        .map_err(|_| "no URL".to_owned())?;
    // Seldom enough that no connection is kept.
    let answer = HttpClient::new(0).send(request, FETCH_MAX, KEY_BYTES_MAX).await;
    match answer.map_err(|unanswered| unanswered.to_string())? {
        Answer { status: StatusCode::OK, body, .. } => Ok(body.to_vec()),
        Answer { status, .. } => Err(format!("the answer was {status}")),
    }
}
