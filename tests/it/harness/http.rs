//! HTTP answers as the tests read them, byte by byte and by the letter of RFC 9112.

use std::io::{self, Read};

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) phrase: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    /// Reads one answer and not a byte more. `bodiless` for an answer to HEAD, whose Content-Length counts what is not sent.
    ///
    /// # Errors
    /// What the stream says; `UnexpectedEof` also when it ends before the first byte.
    pub(crate) fn read(stream: &mut impl Read, bodiless: bool) -> io::Result<Response> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
            assert!(head.len() < 16_384, "an answer's head without end");
        }
        let head = String::from_utf8(head).expect("an answer's head is text");
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().expect("split yields at least one");
        let mut words = status_line.splitn(3, ' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{status_line}");
        let status: u16 = words.next().and_then(|word| word.parse().ok()).expect("a status");
        let phrase = words.next().expect("a phrase").to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("not a header line: {line}"));
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let mut response =
            Response { status, phrase, headers: lines.map(header).collect(), body: String::new() };
        if ![101, 204].contains(&status) && !bodiless {
            let length = response.header("content-length").expect("an answer says how long it is");
            let mut body = vec![0; length.parse().expect("a length")];
            stream.read_exact(&mut body)?;
            response.body = String::from_utf8(body).expect("a body is text");
        }
        Ok(response)
    }

    /// All headers, their names in lower case.
    pub(crate) fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The value of the header `name`, in lower case; `None` when there is none.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found =
            self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        let first = found.next();
        assert_eq!(found.next(), None, "more than one {name}");
        first
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}
