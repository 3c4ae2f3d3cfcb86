//! What the backend has said of clients is forgotten here, when it knows better: the next time it is asked anew.

use super::keys::MayAdmin;
use super::request::{Query, Text, check_type, object, present, whole};
use crate::backend::said::check_user;
use crate::bus::callouts::{Forget, Whose, sha256};
use crate::control::Control;
use crate::control::refusal::Refusal;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

/// `POST /v1/auth/forget`.
pub(super) async fn forget(
    State(control): State<Arc<Control>>,
    MayAdmin { key }: MayAdmin,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default, expecting = "an object")]
    struct Said<'a> {
        #[serde(borrow, deserialize_with = "present")]
        user: Option<Text<'a>>,
        #[serde(borrow, deserialize_with = "present")]
        credential: Option<Text<'a>>,
        #[serde(deserialize_with = "present")]
        all: Option<bool>,
        #[serde(deserialize_with = "present")]
        disconnect: Option<bool>,
    }
    Query::read(&uri)?.end()?;
    check_type(&headers, &["application/json"])?;
    let (body, _share) = whole(&control, body).await?;
    let Said { user, credential, all, disconnect } = object(&body)?;
    let disconnect = disconnect.unwrap_or(false);
    let whose = match (user, credential, all.unwrap_or(false)) {
        (Some(Text(name)), None, false) => {
            check_user(&name)?;
            Whose::User((&*name).into())
        }
        (None, Some(Text(credential)), false) => Whose::Credential(sha256(&[credential.as_bytes()])),
        (None, None, true) => Whose::All,
        _ => return Err(Refusal::wrong("one of `user`, `credential` and `\"all\":true` is to be there")),
    };
    if disconnect && !matches!(whose, Whose::User(_)) {
        return Err(Refusal::wrong("`disconnect` is for a `user`"));
    }
    tracing::debug!(key = control.api.key_name(key), disconnect, "ordered to forget who clients are");
    control
        .bus
        .forget_everywhere(Forget { whose, disconnect })
        .map_err(|_| Refusal::busy("as many orders wait as may"))?;
    Ok(StatusCode::ACCEPTED.into_response())
}
