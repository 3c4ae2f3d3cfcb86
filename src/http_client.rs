//! Requests of ours to other servers, over HTTP and HTTPS: key sets, and what the backend is told and asked. Off the data path.

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// How long a connection stays open without a request.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Sends requests, and keeps connections for the next ones. Redirections are not followed: where things are is what the configuration
/// says. Clones share their connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the server says of it.
    pub status: StatusCode,
    /// After how long the server wants to be asked again, if it says so in seconds.
    pub retry_after: Option<Duration>,
    /// The whole body.
    pub body: Bytes,
}

/// Why no answer came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Not in time.
    Late,
    /// Its body is longer than was to be taken.
    TooLong,
    /// There is nobody, or the connection broke.
    Unreachable(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswered::Late => f.write_str("no answer came in time"),
            Unanswered::TooLong => f.write_str("the answer is too long"),
            Unanswered::Unreachable(why) => f.write_str(why),
        }
    }
}

impl HttpClient {
    /// A client that keeps up to `kept_max` connections to each server open while nothing is asked, and trusts whom this machine trusts.
    pub fn new(kept_max: usize) -> HttpClient {
        let mut roots = RootCertStore::empty();
        // Of what a machine trusts, some may be unreadable for us: the others count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(kept_max)
            .build(connector);
        HttpClient { client }
    }

    /// Sends a request, once, and takes the answer, if it is whole within `time_max` and its body is no longer than `body_bytes_max`.
    ///
    /// # Errors
    /// Why there is no answer. The other side may have got the request nevertheless.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        time_max: Duration,
        body_bytes_max: usize,
    ) -> Result<Answer, Unanswered> {
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
            let (status, retry_after) = (response.status(), retry_after(response.headers()));
            let body =
                Limited::new(response.into_body(), body_bytes_max).collect().await.map_err(|error| {
                    if error.is::<LengthLimitError>() { Unanswered::TooLong } else { unreachable(&*error) }
                })?;
            Ok(Answer { status, retry_after, body: body.to_bytes() })
        };
        tokio::time::timeout(time_max, exchange).await.unwrap_or(Err(Unanswered::Late))
    }
}

/// A date, the other form of the header, is passed over: it would be one by a clock that is not ours.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// The innermost cause says what happened, the outer ones where.
fn unreachable(error: &(dyn Error + 'static)) -> Unanswered {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    Unanswered::Unreachable(innermost.to_string())
}
