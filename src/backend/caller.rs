//! One signed request to the backend and its answer, and the breaker, which leaves a backend in peace that fails again and again.

use super::sign::{HEADER, signature};
use super::stats::BackendStats;
use super::{Settings, callout};
use crate::http_client::{HttpClient, Unanswered};
use crate::token::refresh::unix_ms;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, USER_AGENT};
use hyper::{Request, StatusCode};
use ring::hmac;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Calls the backend. At most `requests_max` requests are under way, and at least one of each kind.
pub struct Caller {
    settings: Settings,
    key: Option<hmac::Key>,
    client: HttpClient,
    places: Semaphore,
    /// Those of questions about who clients are, where there are any: strangers make as many of them as they like, which is not to hold up
    /// what is asked for those who are known.
    callout_places: Option<Semaphore>,
    /// By path: a question that always takes too long keeps nobody from the others. There are as many as there are hooks.
    breakers: Mutex<HashMap<String, Breaker>>,
    stats: Arc<BackendStats>,
}

/// Why the backend gave no answer that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It failed too often just now: it was not asked.
    Open,
    /// No answer came in time, or there was no place for the request in time.
    Late,
    /// There is nobody, or the connection broke.
    Unreachable(String),
    /// The answer is longer than `answer_bytes_max`.
    TooLong,
    /// It answered, and not with success.
    Status(StatusCode),
    /// It answered 429 or 503, and that it wants to be left in peace for so long.
    NotNow(StatusCode, Duration),
    /// Nobody wanted to know any more when there was a place for the request: it was not asked.
    Unwanted,
}

impl Problem {
    /// The labels of all problems, in the order of [`Problem::index`].
    pub const LABELS: [&'static str; 6] = ["open", "late", "unreachable", "too_long", "status", "unwanted"];

    /// The place of this problem in [`Problem::LABELS`].
    pub fn index(&self) -> usize {
        match self {
            Problem::Open => 0,
            Problem::Late => 1,
            Problem::Unreachable(_) => 2,
            Problem::TooLong => 3,
            Problem::Status(_) | Problem::NotNow(..) => 4,
            Problem::Unwanted => 5,
        }
    }

    /// True when it may go well if it is tried again: 4xx is an answer, but for 408, 425 and 429.
    pub fn is_passing(&self) -> bool {
        match self {
            Problem::Status(status) => {
                let asks_again =
                    [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
                status.is_server_error() || asks_again.contains(status)
            }
            Problem::TooLong | Problem::Unwanted => false,
            Problem::Open | Problem::Late | Problem::Unreachable(_) | Problem::NotNow(..) => true,
        }
    }

    /// True when it says of the backend that it is not well. Another status, 500 as well, may be about the one request: whoever makes such
    /// requests is not to keep others from the backend.
    fn is_illness(&self) -> bool {
        match self {
            Problem::Status(status) | Problem::NotNow(status, _) => {
                let away =
                    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
                away.contains(status)
            }
            Problem::Late | Problem::Unreachable(_) => true,
            Problem::Open | Problem::TooLong | Problem::Unwanted => false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Open => {
                f.write_str("the backend fails again and again and is left in peace for a while")
            }
            Problem::Late => Unanswered::Late.fmt(f),
            Problem::Unreachable(why) => f.write_str(why),
            Problem::TooLong => Unanswered::TooLong.fmt(f),
            Problem::Status(status) | Problem::NotNow(status, _) => write!(f, "the answer was {status}"),
            Problem::Unwanted => f.write_str("nobody wants to know any more"),
        }
    }
}

/// Whether the backend is asked.
#[derive(Debug)]
enum Breaker {
    /// It is, and has failed so many times in a row.
    Closed(u32),
    /// It is not, until then.
    Open(Instant),
    /// It is, by one request, whose end decides. If that is forgotten, another may try from then on.
    HalfOpen(Instant),
}

impl Caller {
    /// A caller with no connection yet. With `has_callouts` half of the requests under way are for `/authenticate`, and the others for all
    /// else.
    pub fn new(settings: Settings, has_callouts: bool, stats: Arc<BackendStats>) -> Caller {
        let secret = settings.secret.as_bytes();
        let for_callouts = if has_callouts { (settings.requests_max / 2).max(1) } else { 0 };
        Caller {
            key: (!secret.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, secret)),
            client: HttpClient::new(settings.requests_max),
            places: Semaphore::new(settings.requests_max.saturating_sub(for_callouts).max(1)),
            callout_places: has_callouts.then(|| Semaphore::new(for_callouts)),
            breakers: Mutex::default(),
            settings,
            stats,
        }
    }

    /// Posts JSON to a path, which begins with a slash, and answers the body of the answer. Tries once.
    ///
    /// # Errors
    /// Why there is no answer of success. The backend may have got the request nevertheless, unless it is [`Problem::Open`].
    pub async fn post(&self, path: &str, json: impl Into<Bytes>) -> Result<Bytes, Problem> {
        self.post_if(path, json, || true).await
    }

    /// The same, if it is still wanted when there is a place for it.
    ///
    /// # Errors
    /// As [`Caller::post`], and [`Problem::Unwanted`].
    pub async fn post_if(
        &self,
        path: &str,
        json: impl Into<Bytes>,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Bytes, Problem> {
        let answered = self.try_post(path, json.into(), is_wanted).await;
        match &answered {
            Ok(_) => self.stats.answered.add(1),
            Err(problem) => self.stats.problems[problem.index()].add(1),
        }
        answered
    }

    async fn try_post(
        &self,
        path: &str,
        json: Bytes,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Bytes, Problem> {
        let deadline = Instant::now() + self.settings.timeout;
        let places = self.callout_places.as_ref().filter(|_| path == callout::PATH).unwrap_or(&self.places);
        let place = timeout_at(deadline, places.acquire()).await.map_err(|_| Problem::Late)?;
        let _place = place.map_err(|_| Problem::Open)?;
        if !is_wanted() {
            return Err(Problem::Unwanted);
        }
        self.begin(path)?;
        self.stats.under_way.add(1);
        let answered = self.exchange(path, json, deadline).await;
        self.stats.under_way.sub(1);
        self.end(path, answered.as_ref().err().is_none_or(|problem| !problem.is_illness()));
        answered
    }

    async fn exchange(&self, path: &str, json: Bytes, deadline: Instant) -> Result<Bytes, Problem> {
        let mut request = Request::post(format!("{}{path}", self.settings.url))
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("throng/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &self.key {
            request = request.header(HEADER, signature(key, unix_ms() / 1_000, &json));
        }
        let request =
            request.body(Full::new(json)).map_err(|error| Problem::Unreachable(error.to_string()))?;
        let time_left = deadline.saturating_duration_since(Instant::now());
        let answer = self.client.send(request, time_left, self.settings.answer_bytes_max).await;
        match answer {
            Ok(answer) if answer.status.is_success() => Ok(answer.body),
            Ok(answer) => Err(match (answer.status, answer.retry_after) {
                (status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE), Some(rest)) => {
                    Problem::NotNow(status, rest)
                }
                (status, _) => Problem::Status(status),
            }),
            Err(Unanswered::Late) => Err(Problem::Late),
            Err(Unanswered::TooLong) => Err(Problem::TooLong),
            Err(Unanswered::Unreachable(why)) => Err(Problem::Unreachable(why)),
        }
    }

    /// Whether a request may begin now.
    fn begin(&self, path: &str) -> Result<(), Problem> {
        let now = Instant::now();
        match self.breakers().get(path) {
            None | Some(Breaker::Closed(_)) => return Ok(()),
            Some(Breaker::Open(until) | Breaker::HalfOpen(until)) if now < *until => {
                return Err(Problem::Open);
            }
            Some(_) => {}
        }
        self.set(path, Breaker::HalfOpen(now + self.settings.timeout));
        Ok(())
    }

    /// A request has ended, and the backend was well or not.
    fn end(&self, path: &str, is_well: bool) {
        let next = match self.breakers().get(path) {
            _ if is_well => Breaker::Closed(0),
            None if self.settings.failures_max > 1 => Breaker::Closed(1),
            Some(Breaker::Closed(failures)) if failures + 1 < self.settings.failures_max => {
                Breaker::Closed(failures + 1)
            }
            // Of those that began before it opened.
            Some(Breaker::Open(until)) => Breaker::Open(*until),
            _ => Breaker::Open(Instant::now() + self.settings.rest),
        };
        self.set(path, next);
    }

    fn set(&self, path: &str, next: Breaker) {
        let number = |breaker: &Breaker| match breaker {
            Breaker::Closed(_) => 0,
            Breaker::HalfOpen(_) => 1,
            Breaker::Open(_) => 2,
        };
        let mut breakers = self.breakers();
        let now = number(&next);
        let before = breakers.insert(path.to_owned(), next).as_ref().map_or(0, number);
        if now == 2 && before == 0 {
            tracing::warn!(
                url = self.settings.url,
                path,
                "the backend fails again and again: left in peace for a while"
            );
        } else if now == 0 && before != 0 {
            tracing::info!(url = self.settings.url, path, "the backend answers again");
        }
        self.stats.breaker.set(breakers.values().map(number).max().unwrap_or(0));
    }

    fn breakers(&self) -> MutexGuard<'_, HashMap<String, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
