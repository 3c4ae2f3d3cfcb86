//! A TCP connection whose every byte is ours: HTTP and WebSocket written and read by hand, for what no library would send.

use super::WAIT;
use super::http::Response;
use super::schema::{self, Part};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// The key of RFC 6455 section 1.3, and what a server must make of it.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Opcodes of RFC 6455 section 5.2.
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;
/// The bit of a message's last frame.
pub(crate) const FIN: u8 = 0x80;

/// One connection.
#[derive(Debug)]
pub(crate) struct Raw {
    stream: TcpStream,
    /// True when text from the server is messages of the native protocol.
    native: bool,
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    /// A connection to a server.
    pub(crate) fn connect(address: SocketAddr) -> Raw {
        Raw::try_connect(address).expect("the server takes connections")
    }

    /// The same, where it may be refused.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Raw> {
        Raw::new(TcpStream::connect_timeout(&address, WAIT)?)
    }

    /// A connection from one of this machine's own addresses.
    pub(crate) fn connect_from(source: IpAddr, address: SocketAddr) -> Raw {
        let socket = new_socket(address);
        socket.bind(&SocketAddr::new(source, 0).into()).expect("an address of this machine");
        socket.connect(&address.into()).expect("the server takes connections");
        Raw::new(socket.into()).expect("a connected socket")
    }

    /// A connection whose kernel takes little for a reader that does not read: some ten kilobytes instead of megabytes.
    pub(crate) fn connect_narrow(address: SocketAddr) -> Raw {
        let socket = new_socket(address);
        // Before it is connected, since the window's scale is agreed on then.
        socket.set_recv_buffer_size(4096).expect("a size");
        socket.connect(&address.into()).expect("the server takes connections");
        Raw::new(socket.into()).expect("a connected socket")
    }

    fn new(stream: TcpStream) -> io::Result<Raw> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        Ok(Raw { stream, native: false })
    }

    /// The socket, for a client that takes over from here.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the server takes bytes");
    }

    /// The same, where the server may have gone.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends each byte in a segment of its own.
    pub(crate) fn send_bytewise(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
        }
    }

    /// Ends our side; the server's goes on.
    pub(crate) fn end_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("a connected socket");
    }

    /// Ends the connection as if the machine had been switched off and somebody had asked later: with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a connected socket");
    }

    /// How long to wait for bytes from now on.
    pub(crate) fn set_patience(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).expect("a time above zero");
    }

    /// The next HTTP answer.
    pub(crate) fn response(&mut self) -> Response {
        Response::read(&mut self.stream, false).expect("an answer")
    }

    /// The next HTTP answer, to a HEAD.
    pub(crate) fn response_to_head(&mut self) -> Response {
        Response::read(&mut self.stream, true).expect("an answer")
    }

    /// The next HTTP answer, if one comes.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_response(&mut self) -> io::Result<Response> {
        Response::read(&mut self.stream, false)
    }

    /// Becomes a WebSocket at `path`.
    pub(crate) fn upgrade(&mut self, path: &str) {
        self.send(upgrade_head(path, ""));
        let response = self.response();
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        self.is_at(path);
    }

    /// It is a WebSocket at `path` now.
    pub(crate) fn is_at(&mut self, path: &str) {
        self.native = path.starts_with("/ws");
    }

    /// The next frame. Checks what holds for every frame of this server: whole, without a mask, without reserved bits, its
    /// length in the shortest form.
    pub(crate) fn frame(&mut self) -> Frame {
        self.try_frame().expect("a frame")
    }

    /// The same, where the connection may have ended or nothing come.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` at the end of the stream.
    pub(crate) fn try_frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[0] & 0xf0, FIN, "a frame of the server is whole and has no reserved bit: {head:x?}");
        assert!(head[1] < 0x80, "a frame of the server has no mask: {head:x?}");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length)?;
                let length = u64::from(u16::from_be_bytes(length));
                assert!(length > 125, "the shortest form is used");
                length
            }
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length)?;
                let length = u64::from_be_bytes(length);
                assert!(length > 65_535, "the shortest form is used");
                length
            }
            length => u64::from(length),
        };
        let mut payload = vec![0; usize::try_from(length).expect("a length that fits memory")];
        self.stream.read_exact(&mut payload)?;
        let frame = Frame { opcode: head[0] & 0x0f, payload };
        match frame.opcode {
            TEXT => {
                let text = std::str::from_utf8(&frame.payload).expect("text is UTF-8");
                if self.native {
                    schema::read(Part::ServerFrame, text);
                }
            }
            BINARY => {}
            CLOSE | PING | PONG => assert!(length < 126, "a control frame has at most 125 bytes"),
            other => panic!("the server sent opcode {other}"),
        }
        Ok(frame)
    }

    /// Reads the server's close frame and what comes before it, then the end of the stream. Answers the code and the reason;
    /// code 1005 stands for none, as in RFC 6455 section 7.1.5.
    pub(crate) fn closed(&mut self) -> (u16, String) {
        let close = loop {
            let frame = self.try_frame().expect("a close frame");
            if frame.opcode == CLOSE {
                break frame;
            }
        };
        self.ended();
        close.code()
    }

    /// The server has ended the connection: nothing more comes.
    pub(crate) fn ended(&mut self) {
        let mut rest = [0; 64];
        match self.read(&mut rest) {
            Ok(0) => {}
            // What we sent was not all read.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Ok(count) => panic!("more came: {:?}", String::from_utf8_lossy(&rest[..count])),
            Err(error) => panic!("the connection does not end: {error}"),
        }
    }

    /// Nothing comes for this long.
    pub(crate) fn silent_for(&mut self, time: Duration) {
        self.set_patience(time);
        let mut rest = [0; 64];
        match self.read(&mut rest) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => panic!("something came: {other:?} {:?}", String::from_utf8_lossy(&rest)),
        }
        self.set_patience(WAIT);
    }

    /// One read. A read with a time-out is interrupted when the process is stopped and continued, which means nothing here.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Frame {
    /// Of a close frame, the code and the reason; 1005 without.
    pub(crate) fn code(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        match self.payload.split_first_chunk::<2>() {
            Some((code, reason)) => {
                let reason = std::str::from_utf8(reason).expect("a reason is UTF-8");
                (u16::from_be_bytes(*code), reason.to_owned())
            }
            None => {
                assert!(self.payload.is_empty(), "half a code");
                (1005, String::new())
            }
        }
    }
}

/// The head of an upgrade; `more` is whole header lines.
pub(crate) fn upgrade_head(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: throng\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// A masked frame whose first byte is `first`: FIN and reserved bits with the opcode.
pub(crate) fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame_with(first, payload.as_ref().len() as u64, payload)
}

/// The same with a length that need not be the payload's. It is written in its shortest form.
pub(crate) fn frame_with(first: u8, length: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(0x80 | length as u8),
        126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    mask(&mut bytes, payload.as_ref());
    bytes
}

/// Appends a mask and the payload under it.
pub(crate) fn mask(bytes: &mut Vec<u8>, payload: &[u8]) {
    let key = [0xa5, 0x5a, 0x0f, 0x81];
    bytes.extend(key);
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// A close frame with a code and a reason.
pub(crate) fn close_frame(code: u16, reason: impl AsRef<[u8]>) -> Vec<u8> {
    frame(FIN | CLOSE, [&code.to_be_bytes(), reason.as_ref()].concat())
}

fn new_socket(address: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket")
}
