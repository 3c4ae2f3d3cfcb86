//! How keys stay fresh: they are read again now and then, and when a token names one that is not there. Off the data path, one reading at
//! a time. When one fails, the last good keys stay.

use super::Tokens;
use super::keys::{KEY_BYTES_MAX, Key, KeyFault, KeySource, read_file, read_set};
use crate::time::Clock;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::http::Uri;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a set of keys may take to come.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// How often the clock of the wall is looked at.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

/// Reads the keys that the configuration names.
///
/// # Errors
/// What is wrong with the first that cannot be had.
pub fn read_named(tokens: &Tokens) -> Result<(), KeyFault> {
    let keys: Result<Vec<Key>, KeyFault> = tokens.settings.keys.iter().map(KeySource::read).collect();
    tokens.set_named_keys(keys?);
    Ok(())
}

/// Reads the set of keys, if there is one.
///
/// # Errors
/// Why it could not be had. The keys of the last one stay.
pub async fn read_key_set(tokens: &Tokens) -> Result<(), KeyFault> {
    let Some(place) = &tokens.settings.key_set else { return Ok(()) };
    let json = if place.starts_with("http://") || place.starts_with("https://") {
        let late = |_| format!("no answer within {} s", FETCH_MAX.as_secs());
        tokio::time::timeout(FETCH_MAX, fetch(place)).await.map_err(late).flatten()
    } else {
        read_file(Path::new(place))
    };
    let json = json.map_err(|what| KeyFault(format!("{place}: {what}")))?;
    tokens.set_keys_of_set(read_set(&json).map_err(|fault| KeyFault(format!("{place}: {fault}")))?);
    Ok(())
}

/// Keeps the keys and the clock of `tokens` fresh, for ever.
pub async fn keep_fresh(tokens: Arc<Tokens>, clock: Clock) {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let (refresh, retry) = (ms(tokens.settings.refresh_ms), ms(tokens.settings.retry_ms));
    let watch = async {
        loop {
            tokens.set_wall_clock(unix_ms(), clock.now());
            tokio::time::sleep(LOOK_AT_CLOCK).await;
        }
    };
    let read = async {
        let mut pause = refresh;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = tokens.wanted.notified() => {}
            }
            tokens.refreshes.add(1);
            let named = read_named(&tokens);
            let result = read_key_set(&tokens).await.and(named);
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

/// What is at a URL of http or https. Redirections are not followed: where keys come from is what the configuration says.
async fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let uri: Uri = url.parse().map_err(|_| "no URL".to_owned())?;
    let host = uri.host().ok_or("no host in the URL")?.trim_matches(['[', ']']);
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    if !is_tls {
        return get(stream, &uri).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "no name of a server".to_owned())?;
    let mut roots = RootCertStore::empty();
    // Of what a machine trusts, some may be unreadable for us: the others count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    get(stream.map_err(|error| error.to_string())?, &uri).await
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    uri: &Uri,
) -> Result<Vec<u8>, String> {
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target)
        .header("host", host.rsplit('@').next().unwrap_or_default())
        .header("accept", "application/jwk-set+json, application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(words)?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer was {}", response.status()));
        }
        let body = Limited::new(response.into_body(), KEY_BYTES_MAX).collect().await;
        body.map(|body| body.to_bytes().to_vec()).map_err(|error| error.to_string())
    };
    // The connection has to be driven while the exchange goes on, and goes with it.
    tokio::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
