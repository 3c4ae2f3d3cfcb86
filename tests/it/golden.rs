//! What Node's Socket.IO server says, byte for byte, said to throng: `golden/node.txt` is replayed and every answer compared field by
//! field. Where throng answers otherwise on purpose, a table here says so and why.

use crate::harness::raw::{BINARY, CLOSE, FIN, TEXT};
use crate::harness::{Raw, Response, Server, frame};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::SocketAddr;

const CAPTURE: &str = include_str!("golden/node.txt");
const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/golden/settings.toml");

/// What stands between packets of Engine.IO, and what stands for it in the capture.
const SEPARATOR: &str = "\x1e";
const SEPARATOR_SHOWN: &str = "␞";

/// The value of a field that is not there.
const NONE: &str = "(none)";

/// In a field of Node's answers, wherever it is found: what is there, what is there in ours, and why. The field is a header in lower
/// case, `status`, `body` or `frame`.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    ("date", "{date}", NONE, "no client of Socket.IO reads it"),
    ("connection", "keep-alive", NONE, "the default of HTTP/1.1"),
    ("keep-alive", "timeout=5", NONE, "a hint that HTTP/1.1 does not need"),
    ("transfer-encoding", "chunked", NONE, "the length of every answer is known when it begins"),
    ("frame", "close", "close {why}", "a close has a code and says why"),
];

/// Exchanges that come out otherwise: what follows the first request, or `None` where nothing can be replayed, and why.
const OTHERWISE: &[(&str, Option<&str>, &str)] = &[
    (
        "websocket: version 3",
        Some(
            "< 400 Bad Request\n< Connection: close\n< Content-type: text/html\n<< Unsupported protocol version\n<end",
        ),
        "Node opens a WebSocket and writes an HTTP answer into it, which no client understands",
    ),
    ("websocket: the server asks", None, "only an application on the server asks"),
    ("websocket: the server disconnects", None, "only an application on the server does that"),
    ("websocket: the server refuses", None, "only an application on the server refuses who may join"),
    ("recovery", None, "only an application on the server emits by itself; socketio_client.mjs has recovery"),
];

#[test]
fn answers_are_those_of_nodes_server() {
    let server = Server::with_flags(&["--config", SETTINGS]);
    let mut replay = Replay::of(CAPTURE, server.address());
    for (name, lines) in replay.blocks("= ") {
        let lines = match OTHERWISE.iter().find(|(other, ..)| *other == name) {
            Some((_, None, _)) => continue,
            Some((_, Some(ours), _)) => {
                let asked = lines.into_iter().take_while(|line| line.starts_with('>'));
                asked.chain(ours.lines()).collect()
            }
            None => lines,
        };
        replay.exchange(name, lines);
    }
    assert!(replay.faults.is_empty(), "not as Node's server:{}", replay.faults);
    for (row, (field, theirs, ..)) in DIFFERENCES.iter().enumerate() {
        assert!(replay.explained.contains(&row), "{theirs} in {field} explains nothing and is to go");
    }
}

/// A server, and what it was found to answer.
struct Replay {
    address: SocketAddr,
    capture: &'static str,
    /// What the names with a number stand for, from where they were first heard.
    ids: BTreeMap<String, String>,
    /// Rows of [`DIFFERENCES`] that were needed.
    explained: BTreeSet<usize>,
    /// What was not as captured, a paragraph for each exchange.
    faults: String,
}

/// The parts of an answer: its status, its headers in lower case and its body, or one frame.
type Fields = BTreeMap<String, String>;

impl Replay {
    fn of(capture: &'static str, address: SocketAddr) -> Replay {
        Replay { address, capture, ids: BTreeMap::new(), explained: BTreeSet::new(), faults: String::new() }
    }

    /// Names and lines of the blocks whose first line has this mark.
    fn blocks(&self, mark: &str) -> Vec<(&'static str, Vec<&'static str>)> {
        let blocks = self.capture.split("\n\n").filter_map(|block| block.strip_prefix(mark));
        blocks
            .map(|block| {
                let mut lines = block.lines();
                (lines.next().expect("a name"), lines.collect())
            })
            .collect()
    }

    /// Goes through an exchange, up to the first answer that is not as captured.
    fn exchange(&mut self, name: &str, lines: Vec<&'static str>) {
        println!("{name}"); // for a test that fails in the midst of it
        let mut lines = VecDeque::from(lines);
        let mut connections: BTreeMap<&str, Raw> = BTreeMap::new();
        let mut current = "first";
        while let Some(line) = lines.pop_front() {
            let (mark, said) = line.split_once(' ').unwrap_or((line, ""));
            if mark == "@" {
                current = said;
                continue;
            }
            let raw = connections.entry(current).or_insert_with(|| Raw::connect(self.address));
            let mut following = |mark: &str| -> Vec<&'static str> {
                let count = lines.iter().take_while(|line| line.starts_with(mark)).count();
                lines.drain(..count).map(|line| &line[mark.len()..]).collect()
            };
            let (expected, actual) = match mark {
                ">" => {
                    let (headers, body) = (following("> "), following(">> "));
                    raw.send(self.filled(&request(said, &headers, body.first().copied())));
                    continue;
                }
                ">t" => {
                    raw.send(frame(FIN | TEXT, self.filled(said)));
                    continue;
                }
                ">b" => {
                    raw.send(frame(FIN | BINARY, bytes(said)));
                    continue;
                }
                "<end" => {
                    raw.ended();
                    continue;
                }
                "<" => {
                    let (headers, body) = (following("< "), following("<< "));
                    (
                        self.answer(said, &headers, body.first().copied().unwrap_or_default()),
                        heard_answer(raw),
                    )
                }
                "<t" => (frame_fields(format!("text {said}")), heard_frame(raw)),
                "<b" => (frame_fields(format!("binary {said}")), heard_frame(raw)),
                "<c" => {
                    let heard = heard_frame(raw);
                    // The answer that ends it. The server need not wait for one.
                    raw.try_send(frame(FIN | CLOSE, "")).ok();
                    (frame_fields("close".to_owned()), heard)
                }
                _ => panic!("not a line of a capture: {line}"),
            };
            let faults = self.faults_of(expected, &actual);
            if !faults.is_empty() {
                write!(self.faults, "\n\n{name}, at {line}{faults}").expect("a string takes all");
                return;
            }
        }
    }

    /// The fields of a captured answer.
    fn answer(&self, status: &str, headers: &[&str], body: &str) -> Fields {
        let shorthands: BTreeMap<_, _> = self.blocks(": ").into_iter().collect();
        let headers = headers.iter().flat_map(|line| match line.strip_prefix(": ") {
            Some(name) => shorthands[name].iter().map(|line| &line["< ".len()..]).collect(),
            None => vec![*line],
        });
        let mut fields: Fields = headers
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        fields.insert("status".to_owned(), status.to_owned());
        fields.insert("body".to_owned(), body.to_owned());
        fields
    }

    /// What is not as it was captured and in no row of the table, a line for each field.
    fn faults_of(&mut self, mut expected: Fields, actual: &Fields) -> String {
        for (row, (field, theirs, ours, _)) in DIFFERENCES.iter().enumerate() {
            if let Some(value) = expected.get_mut(*field).filter(|value| value.contains(theirs)) {
                *value = value.replace(theirs, ours);
                self.explained.insert(row);
            }
        }
        let mut faults = String::new();
        for field in expected.keys().chain(actual.keys()).collect::<BTreeSet<_>>() {
            let value = |fields: &Fields| fields.get(field).cloned().unwrap_or_else(|| NONE.to_owned());
            let (expected, actual) = (value(&expected), value(actual));
            if !self.agree(&expected, &actual) {
                write!(faults, "\n  {field}: {expected}\n    here: {actual}").expect("a string takes all");
            }
        }
        faults
    }

    /// True when `actual` is what `expected` says, names in braces being what they stand for.
    fn agree(&mut self, expected: &str, actual: &str) -> bool {
        let (mut expected, mut actual) = (expected, actual);
        while let Some((before, name, after)) = next_name(expected) {
            let Some(rest) = actual.strip_prefix(before) else { return false };
            let length = match name {
                "date" => "Sat, 21 Nov 2026 00:49:35 GMT".len(),
                // Ours is longer than Node's, and no client looks into it.
                _ if name.starts_with("offset") => rest.find('"').unwrap_or(rest.len()),
                "why" => rest.len(),
                _ => "98PtAQsDJeJ0nYJWAAAA".len(),
            };
            let Some((value, rest)) = rest.split_at_checked(length) else { return false };
            let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name != "date" && name != "why" && !value.bytes().all(is_id) {
                return false;
            }
            if name.ends_with(|last: char| last.is_ascii_digit()) {
                let known = self.ids.entry(name.to_owned()).or_insert_with(|| value.to_owned());
                if known != value {
                    return false;
                }
            }
            (expected, actual) = (after, rest);
        }
        expected == actual
    }

    /// What is to be sent, ids in the place of names.
    fn filled(&self, text: &str) -> String {
        let mut text = text.replace(SEPARATOR_SHOWN, SEPARATOR);
        for (name, id) in &self.ids {
            text = text.replace(&format!("{{{name}}}"), id);
        }
        text
    }
}

/// A request whose head has these lines, beside those that every request has.
fn request(line: &str, headers: &[&str], body: Option<&str>) -> String {
    let mut request = format!("{line} HTTP/1.1\r\nHost: x\r\n");
    for header in headers {
        write!(request, "{header}\r\n").expect("a string takes all");
    }
    if let Some(body) = body {
        let length = body.replace(SEPARATOR_SHOWN, SEPARATOR).len();
        write!(request, "Content-Length: {length}\r\n").expect("a string takes all");
    }
    request + "\r\n" + body.unwrap_or_default()
}

/// The fields of the next answer. What its Content-Length said, its body has.
fn heard_answer(raw: &mut Raw) -> Fields {
    let response = match raw.try_response() {
        Ok(response) => response,
        Err(error) => return Fields::from([("status".to_owned(), error.to_string())]),
    };
    let Response { status, phrase, body, .. } = &response;
    let mut fields: Fields = response.headers().iter().cloned().collect();
    fields.remove("content-length");
    fields.insert("status".to_owned(), format!("{status} {phrase}"));
    fields.insert("body".to_owned(), body.replace(SEPARATOR, SEPARATOR_SHOWN));
    fields
}

/// The fields of the next frame.
fn heard_frame(raw: &mut Raw) -> Fields {
    frame_fields(match raw.try_frame() {
        Ok(frame) => match frame.opcode {
            TEXT => format!("text {}", String::from_utf8_lossy(&frame.payload)),
            BINARY => format!("binary {}", hex(&frame.payload)),
            CLOSE if frame.payload.is_empty() => "close".to_owned(),
            CLOSE => format!("close {:?}", frame.code()),
            other => format!("opcode {other}"),
        },
        Err(error) => error.to_string(),
    })
}

fn frame_fields(frame: String) -> Fields {
    Fields::from([("frame".to_owned(), frame)])
}

/// The first name in braces, and what stands before and after it. The braces of JSON are no such.
fn next_name(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices('{').find_map(|(at, _)| {
        let (name, after) = text[at + 1..].split_once('}')?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_name.then_some((&text[..at], name, after))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for.
fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| &hex[at..at + 2];
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(digits(at), 16).expect("two digits")).collect()
}
