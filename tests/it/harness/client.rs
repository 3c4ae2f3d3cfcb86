//! A client of the native protocol that behaves: tungstenite for the WebSocket, and all that is said held against the schema.

use super::WAIT;
use super::clock::Deadline;
use super::raw::Raw;
use super::schema::{self, Part, cut};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    socket: WebSocket<TcpStream>,
    /// What came while something else was waited for, in the order in which it came.
    inbox: VecDeque<Heard>,
    ids_used: u64,
    /// What the handshake agreed on.
    pub(crate) subprotocol: Option<String>,
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// A message, and the text that it came as.
    Text(Value, String),
    /// The JSON part of a binary frame, and the payload.
    Binary(Value, Vec<u8>),
    Pong(Vec<u8>),
    /// The server's close frame; code 1005 stands for none.
    Close(u16, String),
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Client {
        Client::over(Raw::connect(address), "/ws", &[])
    }

    /// Opens a WebSocket at `path` over a connection, with more headers.
    pub(crate) fn over(raw: Raw, path: &str, headers: &[(&str, &str)]) -> Client {
        let mut request = tungstenite::handshake::client::Request::builder()
            .uri(format!("ws://throng{path}"))
            .header("Host", "throng")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let (mut socket, response) =
            tungstenite::client(request, raw.into_stream()).expect("the server opens a WebSocket");
        // The server sends more than the library takes by default in none of the tests but this is not what they are about.
        socket.set_config(|config| {
            *config = WebSocketConfig::default().max_frame_size(None).max_message_size(None)
        });
        let subprotocol = response
            .headers()
            .get("Sec-WebSocket-Protocol")
            .map(|value| value.to_str().expect("text").to_owned());
        Client { socket, inbox: VecDeque::new(), ids_used: 0, subprotocol }
    }

    /// Sends a message, or an array of them, that the protocol knows.
    pub(crate) fn say(&mut self, message: &Value) {
        let faults = schema::faults(Part::ClientFrame, message);
        assert!(faults.is_empty(), "a test says {message}: {faults:?}");
        self.say_text(message.to_string());
    }

    /// Sends text as it is, right or wrong.
    pub(crate) fn say_text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into()));
    }

    /// Sends a publish with bytes.
    pub(crate) fn say_binary(&mut self, head: &Value, payload: &[u8]) {
        let faults = schema::faults(Part::BinaryPublish, head);
        assert!(faults.is_empty(), "a test says {head}: {faults:?}");
        self.say_bytes([head.to_string().as_bytes(), b"\n", payload].concat());
    }

    /// Sends bytes as they are, right or wrong.
    pub(crate) fn say_bytes(&mut self, bytes: Vec<u8>) {
        self.send(Message::binary(bytes));
    }

    /// Sends a WebSocket ping.
    pub(crate) fn ping(&mut self, payload: &[u8]) {
        self.send(Message::Ping(payload.to_vec().into()));
    }

    fn send(&mut self, message: Message) {
        self.socket.send(message).expect("the server takes messages");
    }

    /// Sends a message with an id of its own, and answers what comes back for it. What comes before that is kept for later.
    pub(crate) fn ask(&mut self, mut message: Value) -> Value {
        self.ids_used += 1;
        let id = json!(self.ids_used);
        message["id"] = id.clone();
        self.say(&message);
        self.answer_to(&id)
    }

    /// What comes back for the message with this id. What comes before that is kept for later.
    pub(crate) fn answer_to(&mut self, id: &Value) -> Value {
        let mut passed = VecDeque::new();
        loop {
            match self.hear() {
                Heard::Text(answer, _) if answer.get("id") == Some(id) => {
                    passed.append(&mut self.inbox);
                    self.inbox = passed;
                    return answer;
                }
                Heard::Close(code, reason) => {
                    panic!("closed with {code} ({reason}) before the answer to {id}")
                }
                other => passed.push_back(other),
            }
        }
    }

    /// Joins rooms, and answers how many members each had.
    pub(crate) fn join(&mut self, rooms: &[&str]) -> Vec<u64> {
        let ack = self.ask(json!({"type": "join", "rooms": rooms}));
        assert_eq!(ack["type"], "ack", "{ack}");
        assert_eq!(ack["rooms"].as_object().map(|rooms| rooms.len()), Some(rooms.len()), "{ack}");
        rooms
            .iter()
            .map(|room| ack["rooms"][room]["members"].as_u64().expect("every room is named"))
            .collect()
    }

    pub(crate) fn leave(&mut self, rooms: &[&str]) {
        let ack = self.ask(json!({"type": "leave", "rooms": rooms}));
        assert_eq!(ack["type"], "ack", "{ack}");
        assert_eq!(ack.get("rooms"), None, "{ack}");
    }

    /// Publishes, and waits for the ack.
    pub(crate) fn publish(&mut self, room: &str, event: &str, data: Value) {
        let ack = self.ask(json!({"type": "publish", "room": room, "event": event, "data": data}));
        assert_eq!(ack["type"], "ack", "{ack}");
    }

    /// The error that this message is refused with: its code.
    pub(crate) fn refused(&mut self, message: Value) -> String {
        let error = self.ask(message);
        assert_eq!(error["type"], "error", "{error}");
        error["code"].as_str().expect("a code").to_owned()
    }

    /// The error that this text is refused with.
    pub(crate) fn refused_text(&mut self, text: impl Into<String>) -> Value {
        self.say_text(text);
        let error = self.message();
        assert_eq!(error["type"], "error", "{error}");
        error
    }

    /// The next thing that comes.
    pub(crate) fn hear(&mut self) -> Heard {
        self.hear_within(WAIT).unwrap_or_else(|| panic!("nothing comes within {WAIT:?}"))
    }

    /// The next thing that comes within this time. Pings of the server are answered and passed over.
    pub(crate) fn hear_within(&mut self, time: Duration) -> Option<Heard> {
        if let Some(heard) = self.inbox.pop_front() {
            return Some(heard);
        }
        let deadline = Deadline::after(time);
        loop {
            let left = deadline.left().max(Duration::from_millis(1));
            self.socket.get_ref().set_read_timeout(Some(left)).expect("a time above zero");
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let value = schema::read(Part::ServerFrame, text.as_str());
                    return Some(Heard::Text(value, text.as_str().to_owned()));
                }
                Ok(Message::Binary(bytes)) => {
                    let newline = bytes.iter().position(|byte| *byte == b'\n').expect("a newline");
                    let head = std::str::from_utf8(&bytes[..newline]).expect("text before the newline");
                    let value = schema::read(Part::BinaryEvent, head);
                    return Some(Heard::Binary(value, bytes[newline + 1..].to_vec()));
                }
                Ok(Message::Pong(payload)) => return Some(Heard::Pong(payload.to_vec())),
                Ok(Message::Close(close)) => {
                    let (code, reason) = close.map_or((1005, String::new()), |close| {
                        (close.code.into(), close.reason.as_str().to_owned())
                    });
                    return Some(Heard::Close(code, reason));
                }
                Ok(Message::Ping(_) | Message::Frame(_)) => {}
                Err(Error::Io(error))
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    if deadline.is_over() {
                        return None;
                    }
                }
                Err(error) => panic!("the connection failed: {error}"),
            }
        }
    }

    /// The next thing that comes, which is a message.
    pub(crate) fn message(&mut self) -> Value {
        match self.hear() {
            Heard::Text(message, _) => message,
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The next thing that comes, which is a message, as text.
    pub(crate) fn text(&mut self) -> String {
        match self.hear() {
            Heard::Text(_, text) => text,
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The next thing that comes, which is an event: its name and its data.
    pub(crate) fn event(&mut self) -> (String, Value) {
        let mut message = self.message();
        assert_eq!(message["type"], "event", "{}", cut(&message.to_string()));
        (message["event"].as_str().expect("a name").to_owned(), message["data"].take())
    }

    /// The next thing that comes is this event.
    pub(crate) fn hears(&mut self, room: &str, event: &str, data: Value) {
        let expected = json!({"type": "event", "room": room, "event": event, "data": data});
        assert_eq!(self.message(), expected);
    }

    /// All that this client said has been carried out, and nothing came that was not taken.
    pub(crate) fn has_heard_all(&mut self) {
        let pong = self.ask(json!({"type": "ping"}));
        assert_eq!(pong["type"], "pong", "{pong}");
        assert_eq!(self.inbox, [], "nothing more was expected");
    }

    /// Says goodbye with this code, and answers the code that comes back.
    pub(crate) fn close(mut self, code: u16) -> u16 {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "bye".into() };
        self.socket.close(Some(frame)).expect("the server takes a close");
        loop {
            if let Heard::Close(code, _) = self.hear() {
                self.ends();
                return code;
            }
        }
    }

    /// Reads up to the server's close frame and answers it, then sees the connection end. Answers code and reason.
    pub(crate) fn closed(mut self) -> (u16, String) {
        loop {
            if let Heard::Close(code, reason) = self.hear() {
                self.ends();
                return (code, reason);
            }
        }
    }

    /// The server ends the connection within a bound, after the close frames.
    fn ends(&mut self) {
        self.socket.get_ref().set_read_timeout(Some(WAIT)).expect("a time above zero");
        match self.socket.read() {
            Err(Error::ConnectionClosed) => {}
            other => panic!("after the close: {other:?}"),
        }
    }
}
