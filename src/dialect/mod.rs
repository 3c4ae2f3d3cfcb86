//! What the messages on a connection mean. A dialect turns bytes into commands and publications into bytes; it knows no
//! connection, so that one encoded frame can serve a million of them.

pub mod attachments;
pub mod builtin;
pub mod bundle;
pub mod engineio;
pub mod msgpack;
pub mod native;
pub mod socketio;

use crate::wire::frame;

/// The dialects, by the path that a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/ws`: JSON messages, see `docs/protocol.md`.
    Native,
    /// `/echo`: every message comes back as it is. For conformance suites and measurements.
    Echo,
    /// `/socket.io/`: Socket.IO packets in Engine.IO packets, see `docs/socketio.md`.
    SocketIo,
    /// Engine.IO packets whose messages come back as they are, likewise for conformance suites.
    EngineIo,
}

/// Where each dialect is spoken; `None` for nowhere.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// True when `/echo` is there.
    pub echo: bool,
    /// The path of Socket.IO.
    pub socketio: Option<String>,
    /// The path of Engine.IO's echo.
    pub engineio: Option<String>,
}

impl Paths {
    /// The dialect spoken at `path`, if any.
    pub fn dialect(&self, path: &str) -> Option<Dialect> {
        match path {
            "/ws" => Some(Dialect::Native),
            "/echo" if self.echo => Some(Dialect::Echo),
            _ if self.socketio.as_deref() == Some(path) => Some(Dialect::SocketIo),
            _ if self.engineio.as_deref() == Some(path) => Some(Dialect::EngineIo),
            _ => None,
        }
    }
}

impl Dialect {
    /// Bytes of the message at the start of `frames`, which are whole ones that the server itself encoded: mostly one frame, and in
    /// Socket.IO a packet with its attachments.
    pub fn message_len(self, frames: &[u8]) -> usize {
        match self {
            Dialect::SocketIo => socketio::message_len(frames),
            Dialect::Native | Dialect::Echo | Dialect::EngineIo => frame::encoded_len(frames),
        }
    }

    /// What it is called where connections are told of.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Native => "native",
            Dialect::Echo => "echo",
            Dialect::SocketIo => "socketio",
            Dialect::EngineIo => "engineio",
        }
    }

    /// True when its packets travel in those of Engine.IO.
    pub fn is_engine(self) -> bool {
        matches!(self, Dialect::SocketIo | Dialect::EngineIo)
    }
}
