//! What the control port answers instead of what was asked for.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::borrow::Cow;

/// The longest message, in bytes. What is wrong may be quoted in it, and be as long as the request.
const MESSAGE_BYTES_MAX: usize = 300;

/// A status, a stable code and a sentence for people: `{"error":"not_found","message":"…"}`.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) message: Cow<'static, str>,
    /// Seconds after which trying again makes sense.
    retry_seconds: Option<u32>,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        error: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Refusal {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
            message = format!("{}…", &message[..end]).into();
        }
        Refusal { status, error, message, retry_seconds: None }
    }

    /// A value that is not allowed, in the path, the query or the body.
    pub(super) fn wrong(message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_value", message)
    }

    /// Too much was asked; it can be asked again after so many seconds.
    pub(super) fn too_many(message: impl Into<Cow<'static, str>>, retry_seconds: u32) -> Refusal {
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message);
        Refusal { retry_seconds: Some(retry_seconds), ..refusal }
    }

    /// The server cannot do it now.
    pub(super) fn busy(message: impl Into<Cow<'static, str>>) -> Refusal {
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        Refusal { retry_seconds: Some(1), ..refusal }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'static str,
            message: &'a str,
        }
        let mut response =
            (self.status, Json(Body { error: self.error, message: &self.message })).into_response();
        if let Some(seconds) = self.retry_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
