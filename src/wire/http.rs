//! The HTTP that comes before a WebSocket: request heads in, answers out (RFC 9112, RFC 6455 section 4.2).

use crate::message::{Reject, TokenFault};
use flate2::Compression;
use flate2::write::GzEncoder;
use smallvec::SmallVec;

/// How hard gzip tries: what Node does when not told otherwise.
const GZIP_LEVEL: u32 = 6;

/// The most header lines of a request; one more is a [`Reject::LargeHead`].
pub const HEADERS_MAX: usize = 64;

/// The subprotocol of the native dialect.
pub const SUBPROTOCOL: &str = "throng.v1";

/// What [`parse`] made of the bytes so far.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives on the stack for as long as a request is answered")]
pub enum Head<'a> {
    /// The head is not complete.
    Partial,
    /// A whole head, and how many bytes it took.
    Complete(Request<'a>, usize),
}

/// What throng needs to know of a request.
#[derive(Debug)]
pub struct Request<'a> {
    /// As the client wrote it; methods are case-sensitive.
    pub method: &'a str,
    /// The target up to its query.
    pub path: &'a str,
    /// What stands behind the `?`; empty when there is none.
    pub query: &'a str,
    /// True when the client wants to send another request after this one on the connection.
    pub keep_alive: bool,
    /// What follows the head.
    pub body: Body,
    /// The media type of the body, as it was written; empty when there is none.
    pub content_type: &'a str,
    /// True when the answer's body may be compressed with gzip.
    pub accepts_gzip: bool,
    /// The header lines that a browser asks leave for in a CORS preflight.
    pub asks_headers: Option<&'a str>,
    /// The request to become a WebSocket, if it is one; `Err` when it is one that cannot be granted.
    pub upgrade: Option<Result<Upgrade<'a>, Reject>>,
    /// The token in `Authorization: Bearer` (RFC 6750 section 2.1); of other schemes nothing is asked.
    pub bearer: Option<&'a str>,
    /// The page that a browser says the request comes from.
    pub origin: Option<&'a str>,
    /// The first line of cookies. What applications put there is theirs: it need not be text.
    pub cookie: Option<&'a [u8]>,
    /// What proxies say of the client, in the order of the lines.
    pub forwarded: Forwarded<'a>,
}

/// How long the body of a request is (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    #[default]
    None,
    /// This many bytes, at least 1.
    Length(usize),
    /// Chunks, which throng does not read.
    Chunked,
}

/// A sound request for an upgrade.
#[derive(Clone, Copy, Debug)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Key`: 16 bytes in base64.
    pub key: &'a str,
    /// True when the client offers [`SUBPROTOCOL`].
    pub subprotocol: bool,
}

/// The values of `Forwarded` (RFC 7239), or of `X-Forwarded-For` where there is no `Forwarded`.
#[derive(Debug, Default)]
pub struct Forwarded<'a> {
    /// `Forwarded`, as the elements stand.
    pub standard: SmallVec<[&'a str; 2]>,
    /// `X-Forwarded-For`.
    pub customary: SmallVec<[&'a str; 2]>,
}

/// Reads the request head at the start of `bytes`.
///
/// # Errors
/// [`Reject::Malformed`] or [`Reject::LargeHead`]; the connection cannot be used further.
pub fn parse(bytes: &[u8]) -> Result<Head<'_>, Reject> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let head_bytes = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(Head::Partial),
        Err(httparse::Error::TooManyHeaders) => return Err(Reject::LargeHead),
        Err(_) => return Err(Reject::Malformed("this is not an HTTP/1.1 request")),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Reject::Malformed("this is not an HTTP/1.1 request"));
    };
    let lines = Lines::read(parsed.headers)?;
    if version == 1 && lines.hosts != 1 {
        // RFC 9112 section 3.2.
        return Err(Reject::Malformed("an HTTP/1.1 request has exactly one Host"));
    }
    // HTTP/1.0 knows no connection that stays.
    let keep_alive = version == 1 && !lines.close;
    let upgrade = lines.upgrade_websocket.then(|| lines.upgrade(version));
    let (path, query) = split(target);
    let request = Request {
        method,
        path,
        query,
        keep_alive,
        body: lines.body,
        content_type: lines.content_type,
        accepts_gzip: lines.accepts_gzip,
        asks_headers: lines.asks_headers,
        upgrade,
        bearer: lines.bearer,
        origin: lines.origin,
        cookie: lines.cookie,
        forwarded: lines.forwarded,
    };
    Ok(Head::Complete(request, head_bytes))
}

/// The header lines that matter.
#[derive(Default)]
struct Lines<'a> {
    hosts: u32,
    close: bool,
    connection_upgrade: bool,
    upgrade_websocket: bool,
    length: Option<usize>,
    body: Body,
    content_type: &'a str,
    accepts_gzip: bool,
    asks_headers: Option<&'a str>,
    keys: u32,
    key: Option<&'a str>,
    version: Option<&'a str>,
    subprotocol: bool,
    origin: Option<&'a str>,
    cookie: Option<&'a [u8]>,
    bearer: Option<&'a str>,
    forwarded: Forwarded<'a>,
}

impl<'a> Lines<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Result<Lines<'a>, Reject> {
        let mut lines = Lines::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // A value that matters must be text; of the others nothing is asked.
            let text = || {
                std::str::from_utf8(header.value)
                    .map(str::trim_ascii)
                    .map_err(|_| Reject::Malformed("a header is not text"))
            };
            // By length first: most lines of a browser's request are none of these.
            match header.name.len() {
                4 if is("Host") => lines.hosts += 1,
                6 if is("Origin") => lines.origin = Some(text()?),
                6 if is("Cookie") => lines.cookie = lines.cookie.or(Some(header.value)),
                7 if is("Upgrade") => lines.upgrade_websocket |= has_token(text()?, "websocket"),
                9 if is("Forwarded") => lines.forwarded.standard.push(text()?),
                10 if is("Connection") => {
                    let value = text()?;
                    lines.close |= has_token(value, "close");
                    lines.connection_upgrade |= has_token(value, "upgrade");
                }
                13 if is("Authorization") => lines.bearer = bearer(text()?),
                12 if is("Content-Type") => lines.content_type = text()?,
                14 if is("Content-Length") => lines.read_length(text()?)?,
                15 if is("Accept-Encoding") => lines.accepts_gzip |= has_coding(text()?, "gzip"),
                15 if is("X-Forwarded-For") => lines.forwarded.customary.push(text()?),
                17 if is("Sec-WebSocket-Key") => {
                    lines.keys += 1;
                    lines.key = Some(text()?);
                }
                17 if is("Transfer-Encoding") => lines.body = Body::Chunked,
                21 if is("Sec-WebSocket-Version") => lines.version = Some(text()?),
                22 if is("Sec-WebSocket-Protocol") => lines.subprotocol |= has_token(text()?, SUBPROTOCOL),
                30 if is("Access-Control-Request-Headers") => lines.asks_headers = Some(text()?),
                _ => {}
            }
        }
        Ok(lines)
    }

    fn read_length(&mut self, text: &str) -> Result<(), Reject> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let length = text.parse().ok().filter(|_| is_number);
        let length = length.ok_or(Reject::Malformed("Content-Length is not a number of bytes"))?;
        // Two lengths, or a length and chunks, are how requests are smuggled past a proxy (RFC 9112 section 6.3).
        if self.length.replace(length).is_some_and(|other| other != length) {
            return Err(Reject::Malformed("there are two Content-Length"));
        }
        if length > 0 && self.body == Body::None {
            self.body = Body::Length(length);
        }
        Ok(())
    }

    /// RFC 6455 section 4.2.1, point by point.
    fn upgrade(&self, http_minor: u8) -> Result<Upgrade<'a>, Reject> {
        if http_minor == 0 {
            return Err(Reject::Malformed("an upgrade needs HTTP/1.1"));
        }
        if self.body != Body::None {
            // What follows would be read as frames here and as a body by a proxy on the way.
            return Err(Reject::Malformed("an upgrade has no body"));
        }
        if !self.connection_upgrade {
            return Err(Reject::Malformed("an upgrade needs Connection: Upgrade"));
        }
        if self.version != Some("13") {
            return Err(if self.version.is_some() {
                Reject::Version
            } else {
                Reject::Malformed("Sec-WebSocket-Version is missing")
            });
        }
        match self.key {
            Some(key) if self.keys == 1 && is_key(key) => Ok(Upgrade { key, subprotocol: self.subprotocol }),
            _ => Err(Reject::Malformed("Sec-WebSocket-Key must be there once: 16 bytes in base64")),
        }
    }
}

/// The path of a request's target, and its query. Servers take the absolute form too, which only proxies should be sent (RFC 9112
/// section 3.2.2).
fn split(target: &str) -> (&str, &str) {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => &rest[at..],
            _ => "/",
        },
        _ => target,
    };
    path.split_once('?').unwrap_or((path, ""))
}

/// The token of an `Authorization` by the scheme `Bearer`.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_ascii())
}

/// True when the `list` of content codings has `coding`, and not with a weight of 0.
fn has_coding(list: &str, coding: &str) -> bool {
    list.split(',').any(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let is_refused = matches!(weight.trim_ascii(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
        name.trim_ascii().eq_ignore_ascii_case(coding) && !is_refused
    })
}

/// True when the comma-separated `list` has `token`, in any case.
fn has_token(list: &str, token: &str) -> bool {
    list.split(',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// True when `key` is 16 bytes in base64: 22 digits and two fillers.
fn is_key(key: &str) -> bool {
    let Some(digits) = key.strip_suffix("==") else { return false };
    digits.len() == 22
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

/// Writes the answer that makes the connection a WebSocket.
/// `more` is whole header lines.
pub fn write_switch(out: &mut Vec<u8>, upgrade: &Upgrade<'_>, more: &str) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(tungstenite::handshake::derive_accept_key(upgrade.key.as_bytes()).as_bytes());
    if upgrade.subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: throng.v1");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(more.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a refusal: its status, the headers that belong to it, and its reason as JSON.
pub fn write_reject(out: &mut Vec<u8>, reject: Reject, keep_alive: bool, head_only: bool) {
    write_refusal(out, reject, reject.reason(), keep_alive, head_only);
}

/// Writes one that ends the connection, with a reason of somebody else's.
pub fn write_denial(out: &mut Vec<u8>, reject: Reject, reason: &str) {
    write_refusal(out, reject, reason, false, false);
}

fn write_refusal(out: &mut Vec<u8>, reject: Reject, reason: &str, keep_alive: bool, head_only: bool) {
    let more = match reject {
        Reject::Method => "Allow: GET, HEAD\r\n",
        Reject::UpgradeRequired | Reject::Version => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        Reject::PerIp | Reject::PerUser | Reject::Full | Reject::Draining | Reject::AuthUnavailable => {
            "Retry-After: 5\r\n"
        }
        Reject::IpRate(seconds) => &format!("Retry-After: {seconds}\r\n"),
        // RFC 6750 section 3: no code for who has not tried.
        Reject::Unauthorized(TokenFault::Missing) => "WWW-Authenticate: Bearer\r\n",
        Reject::Unauthorized(fault) => &format!(
            "WWW-Authenticate: Bearer error=\"invalid_token\", error_description=\"{}\"\r\n",
            fault.reason()
        ),
        _ => "",
    };
    let label = Reject::LABELS[reject.index()];
    let reason = serde_json::to_string(reason).unwrap_or_default();
    let body = format!("{{\"error\":\"{label}\",\"message\":{reason}}}\n");
    write_json(out, reject.status(), more, &body, keep_alive, head_only);
}

/// Writes an answer with a JSON `body`; `more` is whole header lines. With `head_only` the body is left out, as HEAD asks.
pub fn write_json(
    out: &mut Vec<u8>,
    status: (u16, &str),
    more: &str,
    body: &str,
    keep_alive: bool,
    head_only: bool,
) {
    let length = body.len();
    let body = if head_only { "" } else { body };
    let lines = format!(
        "Content-Type: application/json\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n{more}"
    );
    write_answer(out, status, &lines, body.as_bytes(), keep_alive);
}

/// Writes an answer with `lines` of headers, of which each ends with CR and LF, and `body` as it is. The lines say how long it is.
pub fn write_answer(
    out: &mut Vec<u8>,
    (code, phrase): (u16, &str),
    lines: &str,
    body: &[u8],
    keep_alive: bool,
) {
    use std::io::Write;
    // RFC 9110 section 15.5.22: a 426 says with Connection that Upgrade is for this hop.
    let connection = match (keep_alive, code) {
        (true, 426) => "Connection: upgrade\r\n",
        (true, _) => "",
        (false, 426) => "Connection: upgrade, close\r\n",
        (false, _) => "Connection: close\r\n",
    };
    write!(out, "HTTP/1.1 {code} {phrase}\r\n{lines}{connection}\r\n")
        .expect("writing to memory does not fail");
    out.extend_from_slice(body);
}

/// Compresses a body with gzip.
pub fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn upgrade_with(lines: &str) -> Result<(), Reject> {
        let head = format!("GET /ws HTTP/1.1\r\nHost: here\r\n{lines}\r\n");
        match parse(head.as_bytes())? {
            Head::Complete(request, used) => {
                assert_eq!(used, head.len());
                request.upgrade.expect("an upgrade").map(|_| ())
            }
            Head::Partial => panic!("the head is whole"),
        }
    }

    #[test]
    fn a_browsers_handshake_is_granted() {
        let head = "GET /ws?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nPragma: no-cache\r\nUpgrade: WebSocket\r\n\
             Origin: https://a.example\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: chat, throng.v1\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n\r\nrest";
        let Ok(Head::Complete(request, used)) = parse(head.as_bytes()) else { panic!("a good head") };
        assert_eq!(&head[used..], "rest");
        assert_eq!((request.method, request.path, request.origin), ("GET", "/ws", Some("https://a.example")));
        assert_eq!(request.forwarded.customary.as_slice(), ["1.2.3.4", "5.6.7.8"]);
        let upgrade = request.upgrade.expect("an upgrade").expect("a good one");
        let mut out = Vec::new();
        write_switch(&mut out, &upgrade, "");
        let out = String::from_utf8(out).expect("text");
        // The example of RFC 6455 section 1.3.
        assert!(out.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{out}");
        assert!(out.ends_with("Sec-WebSocket-Protocol: throng.v1\r\n\r\n"), "{out}");
        for cut in 0..used {
            assert!(matches!(parse(&head.as_bytes()[..cut]), Ok(Head::Partial)), "cut at {cut}");
        }
    }

    #[test]
    fn each_missing_piece_of_a_handshake_has_its_answer() {
        let base = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let version = "Sec-WebSocket-Version: 13\r\n";
        assert_eq!(upgrade_with(&format!("{base}{version}{KEY}")), Ok(()));
        let status = |lines: String| upgrade_with(&lines).expect_err("refused").status().0;
        assert_eq!(status(format!("{base}{version}")), 400, "no key");
        assert_eq!(status(format!("{base}{version}{KEY}{KEY}")), 400, "two keys");
        assert_eq!(status(format!("{base}{version}Sec-WebSocket-Key: short\r\n")), 400, "a key that is none");
        assert_eq!(status(format!("{base}{KEY}")), 400, "no version");
        assert_eq!(status(format!("{base}{KEY}Sec-WebSocket-Version: 8\r\n")), 426, "an old version");
        assert_eq!(status(format!("Upgrade: websocket\r\n{version}{KEY}")), 400, "no Connection: Upgrade");
    }

    #[test]
    fn heads_that_are_not_http_are_refused() {
        let status = |head: &[u8]| parse(head).expect_err("refused").status().0;
        assert_eq!(status(b"GET /ws HTTP/1.1\r\n\r\n"), 400, "no Host");
        assert_eq!(status(b"GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400, "two Hosts");
        assert_eq!(status(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 400);
        assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"), 400, "a TLS hello");
        assert_eq!(status(b"GET /ws HTTP/1.1\r\nHost : a\r\n\r\n"), 400, "space before the colon");
        assert_eq!(status(b"GET /ws HTTP/1.1\r\nHost: a\r\nOrigin: \xff\xfe\r\n\r\n"), 400);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX));
        assert_eq!(status(many.as_bytes()), 431);
    }

    #[test]
    fn the_path_is_found_in_every_form_of_target() {
        assert_eq!(split("/ws").0, "/ws");
        assert_eq!(split("/ws?from=http://a/b?c").0, "/ws");
        assert_eq!(split("/a://b/c").0, "/a://b/c");
        assert_eq!(split("http://here:7070/ws?x").0, "/ws");
        assert_eq!(split("http://here").0, "/");
        assert_eq!(split("http://here?x=/ws").0, "/");
        assert_eq!(split("*").0, "*");
        assert_eq!(split("/ws?from=http://a/b?c").1, "from=http://a/b?c");
        assert_eq!(split("/ws").1, "");
    }

    #[test]
    fn the_length_of_a_body_is_a_number_and_there_is_one() {
        let body = |lines: &str| match parse(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes())
        {
            Ok(Head::Complete(request, _)) => Ok(request.body),
            Err(reject) => Err(reject),
            other => panic!("{other:?}"),
        };
        assert_eq!(body("Content-Length: 17\r\n"), Ok(Body::Length(17)));
        assert_eq!(body("Content-Length: 17\r\nContent-Length: 17\r\n"), Ok(Body::Length(17)));
        assert_eq!(body("Content-Length: 17\r\nTransfer-Encoding: chunked\r\n"), Ok(Body::Chunked));
        for wrong in [
            "",
            "-1",
            "+1",
            "1 1",
            "0x1",
            "99999999999999999999999",
            "1\r\nContent-Length: 2",
            "0\r\nContent-Length: 2",
        ] {
            assert!(
                matches!(body(&format!("Content-Length: {wrong}\r\n")), Err(Reject::Malformed(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn gzip_is_taken_by_who_says_so() {
        let accepts = |value: &str| has_coding(value, "gzip");
        assert!(accepts("gzip") && accepts("deflate, GZIP;q=0.5") && accepts("br, gzip, zstd"));
        assert!(!accepts("") && !accepts("br") && !accepts("gzip;q=0") && !accepts("x-gzip2"));
        let mut text = String::new();
        let body = "long ".repeat(1000);
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*gzip(body.as_bytes())), &mut text)
            .expect("gzip");
        assert_eq!(text, body);
    }

    #[test]
    fn a_body_or_an_old_version_ends_the_connection() {
        let keep_alive = |head: &str| match parse(head.as_bytes()) {
            Ok(Head::Complete(request, _)) => request.keep_alive && request.body == Body::None,
            other => panic!("{other:?}"),
        };
        assert!(keep_alive("GET /health HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(keep_alive("GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        assert!(!keep_alive("GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(!keep_alive("POST /ws HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"));
        assert!(!keep_alive("POST /ws HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(!keep_alive("GET /health HTTP/1.0\r\n\r\n"));
        assert!(!keep_alive("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    }
}
