//! What the messages on a connection mean. A dialect turns bytes into commands and publications into bytes; it knows no
//! connection, so that one encoded frame can serve a million of them.

pub mod native;
pub mod engineio;
pub mod socketio;

/// The dialects, by the path that a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/ws`: JSON messages, see `docs/protocol.md`.
    Native,
    /// `/echo`: every message comes back as it is. For conformance suites and measurements.
    Echo,
}

impl Dialect {
    /// The dialect spoken at `path`, if any. `/echo` is there only when `echo` says so.
    pub fn choose(path: &str, echo: bool) -> Option<Dialect> {
        match path {
            "/ws" => Some(Dialect::Native),
            "/echo" if echo => Some(Dialect::Echo),
            _ => None,
        }
    }
}
