//! Events from backends in bulk: one object of JSON on each line, as many as there are, carried out as they come.
//!
//! What is not carried out yet is not read, so a backend that is faster than the shards waits in its own socket. A line is parsed where it
//! arrived; only one that is cut short is copied.

use super::keys::MayPublish;
use super::publish::{IDEMPOTENCY_KEY, Said, publish_one};
use super::request::{Query, check_type, object};
use super::unit_permits;
use crate::control::Control;
use crate::control::refusal::Refusal;
use crate::message::ShardSet;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::{sleep, timeout};

/// How long nothing may come.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a line is tried again while mailboxes are full, and how often.
const OVERLOAD_TRIES: u32 = 500;
const OVERLOAD_PAUSE: Duration = Duration::from_millis(10);
/// Errors that are told. Others are only counted.
const ERRORS_MAX: usize = 100;
/// A line that is cut short may have so many bytes before memory is asked for, in bytes.
const FREE_BYTES: usize = 64 << 10;

/// What came of a stream.
#[derive(Debug, Default, Serialize)]
struct Summary {
    published: u64,
    failed: u64,
    /// The first [`ERRORS_MAX`] of those that failed.
    errors: Vec<LineError>,
    /// Why the stream was not read to its end, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'static, str>>,
}

#[derive(Debug, Serialize)]
struct LineError {
    /// From 1.
    line: u64,
    error: &'static str,
    message: Cow<'static, str>,
}

/// `POST /v1/publish/stream`.
pub(super) async fn publish_stream(
    State(control): State<Arc<Control>>,
    _: MayPublish,
    uri: Uri,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Response, Refusal> {
    check_type(&headers, &["application/x-ndjson", "application/ndjson", "application/jsonl"])?;
    Query::read(&uri)?.end()?;
    if headers.contains_key(IDEMPOTENCY_KEY) {
        let message = "a stream is carried out as it comes, so it has no Idempotency-Key";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message));
    }
    let mut lines = Lines {
        control: &control,
        summary: Summary::default(),
        line: 0,
        cut: Vec::new(),
        is_skipping: false,
        share: None,
    };
    let ended = loop {
        match timeout(PAUSE_MAX, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                let Ok(bytes) = frame.into_data() else { continue };
                if let Err(refusal) = lines.take(&bytes).await {
                    break Some(refusal);
                }
            }
            Ok(None) => {
                lines.end().await;
                break None;
            }
            Ok(Some(Err(_))) => {
                break Some(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "the body broke off"));
            }
            Err(_) => {
                break Some(Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", "nothing came for 30 s"));
            }
        }
    };
    let mut summary = lines.summary;
    let status = match ended {
        None => StatusCode::OK,
        Some(refusal) => {
            (summary.error, summary.message) = (Some(refusal.error), Some(refusal.message));
            refusal.status
        }
    };
    Ok((status, Json(summary)).into_response())
}

/// A stream while it is read.
struct Lines<'a> {
    control: &'a Control,
    summary: Summary,
    /// Lines that have ended.
    line: u64,
    /// The beginning of one that has not: at most as long as a message may be.
    cut: Vec<u8>,
    /// True while the rest of a line that is too long goes by.
    is_skipping: bool,
    /// The memory of `cut`, once it is much.
    share: Option<SemaphorePermit<'a>>,
}

impl Lines<'_> {
    /// Carries out all lines that end in `bytes`.
    ///
    /// # Errors
    /// When there is no memory for one that does not.
    async fn take(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        let mut bells = ShardSet::default();
        while let Some(end) = memchr(bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.is_skipping {
                self.is_skipping = false;
                self.line += 1;
            } else if self.cut.is_empty() {
                self.publish(line, &mut bells).await;
            } else {
                self.append(line)?;
                if !self.is_skipping {
                    let mut whole = std::mem::take(&mut self.cut);
                    self.publish(&whole, &mut bells).await;
                    whole.clear();
                    self.cut = whole;
                } else {
                    self.is_skipping = false;
                    self.line += 1;
                }
                if self.share.take().is_some() {
                    self.cut = Vec::new();
                }
            }
        }
        if !self.is_skipping {
            self.append(bytes)?;
        }
        self.control.bus.ring(bells);
        Ok(())
    }

    /// The last line needs no newline.
    async fn end(&mut self) {
        let mut bells = ShardSet::default();
        let last = std::mem::take(&mut self.cut);
        if !last.is_empty() {
            self.publish(&last, &mut bells).await;
        }
        self.control.bus.ring(bells);
    }

    /// Adds a piece to the line that is cut short.
    fn append(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        let api = &self.control.api;
        let bytes_max = api.settings().body_bytes_max;
        let length = self.cut.len() + piece.len();
        if length > bytes_max {
            self.cut = Vec::new();
            self.share = None;
            self.is_skipping = true;
            let message = format!("the line has more than {bytes_max} bytes (api.body_bytes_max)");
            // Its number is that of the line after those that have ended.
            self.fail(self.line + 1, Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
            return Ok(());
        }
        if length > FREE_BYTES && self.share.is_none() {
            let share = api.memory.try_acquire_many(unit_permits(bytes_max));
            self.share =
                Some(share.map_err(|_| Refusal::busy("other bodies take all the memory that they may"))?);
        }
        self.cut.extend_from_slice(piece);
        Ok(())
    }

    async fn publish(&mut self, line: &[u8], bells: &mut ShardSet) {
        self.line += 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        let said: Said<'_> = match object(line) {
            Ok(said) => said,
            Err(refusal) => return self.fail(self.line, refusal),
        };
        for tries in 1.. {
            match publish_one(self.control, &said, self.control.clock.now(), bells) {
                Ok(()) => {
                    self.control.api.stats.publications.add(1);
                    self.summary.published += 1;
                    return;
                }
                Err(refusal)
                    if refusal.status == StatusCode::SERVICE_UNAVAILABLE && tries < OVERLOAD_TRIES =>
                {
                    // The shards are to work off what there is, while the backend waits.
                    self.control.bus.ring(std::mem::take(bells));
                    sleep(OVERLOAD_PAUSE).await;
                }
                Err(refusal) => return self.fail(self.line, refusal),
            }
        }
    }

    fn fail(&mut self, line: u64, refusal: Refusal) {
        self.control.api.stats.publications_refused.add(1);
        self.summary.failed += 1;
        if self.summary.errors.len() < ERRORS_MAX {
            self.summary.errors.push(LineError { line, error: refusal.error, message: refusal.message });
        }
    }
}

/// Where the first newline is.
fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}
