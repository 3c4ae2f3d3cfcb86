//! What a request says besides its path: its query and its body, each within bounds.

use super::{BODY_TIMEOUT, unit_permits};
use crate::backend::said;
use crate::control::Control;
use crate::control::refusal::Refusal;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use data_encoding::BASE64URL_NOPAD;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::{Error as _, Unexpected};
use serde_json::error::Category;
use std::borrow::Cow;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

pub(super) use crate::backend::said::{Text, present};

/// How many things a page has at most, and if nothing is said.
pub(super) const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;

/// The query of a request: each parameter is asked for once, and what nobody has asked for is refused.
#[derive(Debug)]
pub(in crate::control) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Reads a query. Bounded by the head it stands in.
    pub(in crate::control) fn read(uri: &'a Uri) -> Result<Query<'a>, Refusal> {
        let parts = uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty());
        let text = |text: &'a str| -> Result<Cow<'a, str>, Refusal> {
            let spaced: Cow<'a, str> =
                if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
            let decoded = match spaced {
                Cow::Borrowed(text) => percent_decode_str(text).decode_utf8(),
                Cow::Owned(text) => {
                    return percent_decode_str(&text)
                        .decode_utf8()
                        .map(|text| text.into_owned().into())
                        .map_err(|_| not_text());
                }
            };
            decoded.map_err(|_| not_text())
        };
        let pair = |part: &'a str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((text(name)?, text(value)?))
        };
        Ok(Query(parts.map(pair).collect::<Result<_, Refusal>>()?))
    }

    /// All values of a parameter that may come several times.
    pub(super) fn all(&mut self, name: &str) -> Vec<Cow<'a, str>> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(other, _)| other == name);
        self.0 = left;
        let taken: Vec<(Cow<'a, str>, Cow<'a, str>)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may come once.
    pub(super) fn one(&mut self, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(Refusal::wrong(format!("the parameter `{name}` comes more than once")));
        }
        Ok(values.pop())
    }

    /// The same for a flag.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.one(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Refusal::wrong(format!("the parameter `{name}` is true or false"))),
        }
    }

    /// The namespace, `/` if nothing is said.
    pub(in crate::control) fn namespace(&mut self) -> Result<Cow<'a, str>, Refusal> {
        let namespace = self.one("namespace")?.unwrap_or("/".into());
        check_namespace(&namespace)?;
        Ok(namespace)
    }

    /// How many are wanted, at most `most`, if that is said.
    pub(super) fn limit(&mut self, most: usize) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.one("limit")? else { return Ok(None) };
        let limit = text
            .parse()
            .ok()
            .filter(|limit| (1..=most).contains(limit) && text.bytes().all(|byte| byte.is_ascii_digit()));
        limit.map(Some).ok_or_else(|| Refusal::wrong(format!("`limit` is a whole number from 1 to {most}")))
    }

    /// Which page is wanted.
    pub(super) fn page(&mut self) -> Result<Page, Refusal> {
        let limit = self.limit(PAGE_MAX)?.unwrap_or(PAGE);
        let from =
            match self.one("cursor")? {
                None => None,
                Some(text) => Some(read_cursor(&text).ok_or_else(|| {
                    Refusal::wrong("`cursor` is what an answer before this one had as `next`")
                })?),
            };
        Ok(Page { limit, from })
    }

    /// There are no others.
    pub(in crate::control) fn end(self) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Refusal::wrong(format!("there is no parameter `{name}`"))),
        }
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// `1 <= limit <= PAGE_MAX`.
    pub(super) limit: usize,
    /// Where it begins: what that means is the list's affair.
    pub(super) from: Option<u64>,
}

/// Where a list goes on, for clients: letters that mean nothing to them.
pub(super) fn write_cursor(place: u64) -> String {
    BASE64URL_NOPAD.encode(&place.to_be_bytes())
}

fn read_cursor(text: &str) -> Option<u64> {
    // An encoded number has 11 letters, so nothing longer is decoded.
    let bytes = BASE64URL_NOPAD.decode(text.get(..11).filter(|_| text.len() == 11)?.as_bytes()).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The part of the path that a room's name or an id is.
pub(in crate::control) fn path(path: Result<Path<String>, PathRejection>) -> Result<String, Refusal> {
    path.map(|Path(text)| text).map_err(|_| not_text())
}

/// Checks the name of a namespace.
pub(super) fn check_namespace(namespace: &str) -> Result<(), Refusal> {
    Ok(said::check_namespace(namespace)?)
}

fn not_text() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "what is escaped with % is not UTF-8")
}

/// What a body is, by its `Content-Type` without parameters, in lower case; empty where there is none.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body of another type, or one that is compressed.
pub(super) fn check_type(headers: &HeaderMap, types: &[&str]) -> Result<(), Refusal> {
    let is_plain = headers.get(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    if is_plain && types.contains(&&*content_type(headers)) {
        return Ok(());
    }
    let message = format!("the body is to be {}, not compressed", types.join(" or "));
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// A whole body, and the share of memory that it has until the second part is dropped.
///
/// # Errors
/// When it is longer than a message may be, does not come in time, or when bodies take as much memory as they may.
pub(super) async fn whole(control: &Control, body: Body) -> Result<(Bytes, SemaphorePermit<'_>), Refusal> {
    let api = &control.api;
    let bytes_max = api.settings().body_bytes_max;
    let too_large = || {
        let message = format!("the body has more than {bytes_max} bytes (api.body_bytes_max)");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    };
    let length =
        body.size_hint().exact().map_or(bytes_max, |length| usize::try_from(length).unwrap_or(usize::MAX));
    if length > bytes_max {
        return Err(too_large());
    }
    let Ok(share) = api.memory.try_acquire_many(unit_permits(length)) else {
        return Err(Refusal::busy("other bodies take all the memory that they may"));
    };
    match timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok((body.to_bytes(), share)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "the body broke off")),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time")),
    }
}

/// Reads an object of JSON.
///
/// # Errors
/// What is wrong with it: 400 when it is not JSON, 422 when it is not what it should be.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Refusal> {
    let read = if json.trim_ascii_start().starts_with(b"{") {
        serde_json::from_slice(json)
    } else {
        // serde would take an array of the values as well.
        match serde_json::from_slice::<&serde_json::value::RawValue>(json) {
            Ok(_) => Err(serde_json::Error::invalid_type(Unexpected::Other("something else"), &"an object")),
            Err(error) => Err(error),
        }
    };
    read.map_err(|error| match error.classify() {
        Category::Data => Refusal::wrong(error.to_string()),
        Category::Syntax | Category::Eof | Category::Io => {
            Refusal::new(StatusCode::BAD_REQUEST, "bad_json", error.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str, act: impl FnOnce(&mut Query<'_>) -> Result<(), Refusal>) -> Result<(), String> {
        let uri: Uri = format!("/?{query}").parse().expect("a path and a query");
        let mut query = Query::read(&uri).map_err(|refusal| refusal.message.into_owned())?;
        act(&mut query).and_then(|()| query.end()).map_err(|refusal| refusal.message.into_owned())
    }

    #[test]
    fn a_query_is_read_to_the_letter() {
        let check = |query: &str, rooms: &[&str]| {
            let read = read(query, |query| {
                assert_eq!(query.all("room"), rooms);
                Ok(())
            });
            assert_eq!(read, Ok(()), "{query}");
        };
        check("", &[]);
        check("&&", &[]);
        check("room=a&room=b%20c&room=d+e&room=%c3%a4", &["a", "b c", "d e", "ä"]);
        check("room=a%26b%3Dc&room==&room", &["a&b=c", "=", ""]);
        let nothing = |_: &mut Query<'_>| Ok(());
        assert_eq!(read("rooom=a", nothing), Err("there is no parameter `rooom`".to_owned()));
        assert_eq!(read("room=%ff", nothing), Err("what is escaped with % is not UTF-8".to_owned()));
        let one = |query: &mut Query<'_>| query.one("a").map(drop);
        assert_eq!(read("a=1&a=2", one), Err("the parameter `a` comes more than once".to_owned()));
    }

    #[test]
    fn a_page_has_bounds_and_a_place() {
        let page = |text: &str| {
            let mut page = None;
            read(text, |query| {
                page = Some(query.page()?);
                Ok(())
            })
            .map(|()| page.map(|page| (page.limit, page.from)))
        };
        assert_eq!(page(""), Ok(Some((PAGE, None))));
        for place in [0, 1, u64::from(u32::MAX) << 7, u64::MAX] {
            let query = format!("limit=1000&cursor={}", write_cursor(place));
            assert_eq!(page(&query), Ok(Some((1000, Some(place)))));
        }
        for wrong in [
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=%2B5",
            "limit=",
            "cursor=",
            "cursor=aaaa",
            "cursor=ää",
        ] {
            assert!(page(wrong).is_err(), "{wrong}");
        }
    }
}
