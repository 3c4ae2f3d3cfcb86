//! What `throng top` asks of a server's control port.

use super::scrape::Scrape;
use crate::http_client::{Answer, HttpClient};
use crate::time::Clock;
use http_body_util::Full;
use hyper::header::AUTHORIZATION;
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long one answer may take, and how long it may be in bytes: some ten times what 128 shards have to say.
const TIME_MAX: Duration = Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 16 << 20;

/// A server, as seen through its control port.
#[derive(Clone, Debug)]
pub(super) struct Source {
    client: HttpClient,
    /// Where it is, without a slash at the end.
    pub(super) url: String,
    key: Option<String>,
    clock: Clock,
}

/// What it says at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) scrape: Scrape,
    pub(super) ready: Ready,
    pub(super) rooms: Listing<Room>,
    pub(super) slowest: Listing<Slow>,
}

/// What `/ready` says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ready {
    pub(super) status: String,
    pub(super) uptime_seconds: u64,
    pub(super) redis: Option<String>,
}

/// A list for which a key is needed.
#[derive(Clone, Debug)]
pub(super) enum Listing<T> {
    /// It was to be had.
    Rows(Vec<T>),
    /// It was not: why.
    Closed(&'static str),
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Room {
    pub(super) room: String,
    pub(super) namespace: String,
    pub(super) members: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Slow {
    pub(super) id: String,
    pub(super) dialect: String,
    pub(super) address: String,
    pub(super) user: Option<String>,
    pub(super) waiting_bytes: u64,
    pub(super) silent_ms: u64,
}

#[derive(Deserialize)]
struct Rooms {
    rooms: Vec<Room>,
}

#[derive(Deserialize)]
struct Connections {
    connections: Vec<Slow>,
}

impl Source {
    /// The server at `url`, for whose lists `key` is shown.
    ///
    /// # Errors
    /// When that is no address of an HTTP server.
    pub(super) fn new(url: &str, key: Option<String>) -> Result<Source, String> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let url = url.trim_end_matches('/').to_owned();
        let parsed: Result<Uri, _> = url.parse();
        match parsed.ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.query().is_none()
        }) {
            Some(_) => Ok(Source { client: HttpClient::new(4), url, key, clock: Clock::start() }),
            None => Err(format!("{url:?} is no address of a control port, like http://127.0.0.1:7071")),
        }
    }

    /// Asks for everything.
    ///
    /// # Errors
    /// Why the server does not say how it is, for people.
    pub(super) async fn read(&self) -> Result<Reading, String> {
        let (metrics, ready, rooms, slowest) = tokio::join!(
            self.ask("/metrics"),
            self.ask("/ready"),
            self.list("/v1/top/rooms?limit=50", |list: Rooms| list.rooms),
            self.list("/v1/top/connections?limit=50", |list: Connections| list.connections),
        );
        let (metrics, ready) = (metrics?, ready?);
        let text = std::str::from_utf8(&metrics.body).map_err(|_| "its metrics are no text".to_owned())?;
        let scrape = Scrape::parse(text, self.clock.now());
        if metrics.status != StatusCode::OK || !scrape.has("throng_connections") {
            return Err("that is no control port of throng".to_owned());
        }
        let ready = serde_json::from_slice(&ready.body).map_err(|_| "its /ready says nothing".to_owned())?;
        Ok(Reading { scrape, ready, rooms, slowest })
    }

    async fn list<L: DeserializeOwned, T>(&self, path: &str, rows: fn(L) -> Vec<T>) -> Listing<T> {
        match self.ask(path).await {
            Err(_) => Listing::Closed("no answer"),
            Ok(answer) => match answer.status {
                StatusCode::OK => match serde_json::from_slice(&answer.body) {
                    Ok(list) => Listing::Rows(rows(list)),
                    Err(_) => Listing::Closed("an answer that is none"),
                },
                StatusCode::UNAUTHORIZED if self.key.is_none() => {
                    Listing::Closed("needs a key: --key or THRONG_API_KEY")
                }
                StatusCode::UNAUTHORIZED => Listing::Closed("the key is not known to the server"),
                StatusCode::FORBIDDEN if self.key.is_none() => {
                    Listing::Closed("the server has no keys: set api.key")
                }
                StatusCode::FORBIDDEN => Listing::Closed("the key has not the scope read"),
                StatusCode::TOO_MANY_REQUESTS => Listing::Closed("too many requests with this key"),
                StatusCode::NOT_FOUND => Listing::Closed("an older server, that has no such list"),
                _ => Listing::Closed("the server is too busy to say"),
            },
        }
    }

    async fn ask(&self, path: &str) -> Result<Answer, String> {
        let mut request = Request::get(format!("{}{path}", self.url));
        if let Some(key) = self.key.as_ref().filter(|_| path.starts_with("/v1/")) {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::default()).map_err(|error| error.to_string())?;
        self.client.send(request, TIME_MAX, BODY_BYTES_MAX).await.map_err(|unanswered| unanswered.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_http_server() {
        for (said, url) in [
            ("127.0.0.1:7071", "http://127.0.0.1:7071"),
            ("http://[::1]:7071/", "http://[::1]:7071"),
            ("https://example.com/throng", "https://example.com/throng"),
        ] {
            assert_eq!(Source::new(said, None).map(|source| source.url), Ok(url.to_owned()));
        }
        for bad in ["", "ftp://a", "http://", "http://a b", "http://a/?q"] {
            assert!(Source::new(bad, None).is_err(), "{bad}");
        }
    }
}
