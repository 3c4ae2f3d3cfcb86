//! What the messages on a connection mean. A dialect turns bytes into commands and publications into bytes; it knows no
//! connection, so that one encoded frame can serve a million of them.

pub mod attachments;
pub mod builtin;
pub mod bundle;
pub mod coding;
pub mod engineio;
pub mod msgpack;
pub mod native;
pub mod plain;
pub mod socketio;
pub mod targets;

use crate::wire::frame;

/// The dialects, by the path that a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/ws`: JSON messages, see `docs/protocol.md`.
    Native,
    /// JSON messages that are an application's own, see `docs/routes.md`.
    Plain,
    /// `/echo`: every message comes back as it is. For conformance suites and measurements.
    Echo,
    /// `/socket.io/`: Socket.IO packets in Engine.IO packets, see `docs/socketio.md`.
    SocketIo,
    /// Engine.IO packets whose messages come back as they are, likewise for conformance suites.
    EngineIo,
}

/// Where each dialect is spoken; `None` for nowhere.
#[derive(Clone, Debug)]
pub struct Paths {
    /// True when `/echo` is there.
    pub echo: bool,
    /// The path of the native dialect.
    pub native: Option<String>,
    /// The path of the plain dialect.
    pub plain: Option<String>,
    /// The path of Socket.IO.
    pub socketio: Option<String>,
    /// The path of Engine.IO's echo.
    pub engineio: Option<String>,
}

impl Default for Paths {
    /// The native dialect alone.
    fn default() -> Paths {
        Paths { echo: false, native: Some("/ws".to_owned()), plain: None, socketio: None, engineio: None }
    }
}

impl Paths {
    /// The dialect spoken at `path`, if any.
    pub fn dialect(&self, path: &str) -> Option<Dialect> {
        match path {
            "/echo" if self.echo => Some(Dialect::Echo),
            _ if self.native.as_deref() == Some(path) => Some(Dialect::Native),
            _ if self.plain.as_deref() == Some(path) => Some(Dialect::Plain),
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
            Dialect::Native | Dialect::Plain | Dialect::Echo | Dialect::EngineIo => {
                frame::encoded_len(frames)
            }
        }
    }

    /// What it is called where connections are told of.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Native => "native",
            Dialect::Plain => "plain",
            Dialect::Echo => "echo",
            Dialect::SocketIo => "socketio",
            Dialect::EngineIo => "engineio",
        }
    }

    /// True when its messages are frames of a WebSocket by themselves, so that a connection is one client: in the main namespace, with an
    /// id of its own, and without a session that could outlive it.
    pub fn is_direct(self) -> bool {
        matches!(self, Dialect::Native | Dialect::Plain)
    }

    /// True when its packets travel in those of Engine.IO.
    pub fn is_engine(self) -> bool {
        matches!(self, Dialect::SocketIo | Dialect::EngineIo)
    }
}
