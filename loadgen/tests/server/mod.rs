//! A small server for the generator to measure: a thread for each connection, one room for all, and one fault on
//! demand. It is built on a WebSocket library that the generator does not use.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Bytes, Message};

/// The message something happens to, counted from zero over all that are echoed on a connection or published by anyone.
const FAULTY: u64 = 10;

/// What the server does wrong, once and to one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Lose,
    Double,
    /// The message comes after the next one.
    Reorder,
}

/// How the server behaves; well, by default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    pub(crate) fault: Option<Fault>,
    /// Answers the upgrade with this status instead.
    pub(crate) http_status: Option<u16>,
    /// Closes with this code as soon as it is asked for anything.
    pub(crate) close_code: Option<u16>,
    /// Sends a ping with each ack.
    pub(crate) pings: bool,
    /// Delivers two publications in one message: an array.
    pub(crate) batches: bool,
    /// Refuses joins with this error.
    pub(crate) join_error: Option<&'static str>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the connections' threads share.
struct Shared {
    behaviour: Behaviour,
    room: Mutex<Room>,
    counts: Mutex<Counts>,
    counted: Condvar,
}

/// How often something happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) joined: u64,
    pub(crate) left: u64,
    pub(crate) pongs: u64,
    pub(crate) published: u64,
    /// Closing handshakes that the client began.
    pub(crate) closed: u64,
}

#[derive(Default)]
struct Room {
    members: Vec<Writer>,
    /// Publications so far.
    count: u64,
    /// Waits to be delivered after the next one.
    held: Option<String>,
    /// Waits to be delivered together with the next one.
    batched: Option<String>,
}

/// The writing side of a connection, which several threads may use.
type Writer = Arc<Mutex<WebSocket<TcpStream>>>;

impl Server {
    /// Starts it on a free port. Its threads end with the test's process.
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour,
            room: Mutex::default(),
            counts: Mutex::default(),
            counted: Condvar::new(),
        });
        let server = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&shared, stream.unwrap()));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap()
    }

    /// Waits until something has been counted, at most ten seconds.
    pub(crate) fn wait_until(&self, is_so: impl Fn(&Counts) -> bool) {
        let counts = self.shared.counts.lock().unwrap();
        let waited =
            self.shared.counted.wait_timeout_while(counts, Duration::from_secs(10), |counts| !is_so(counts));
        let (counts, result) = waited.unwrap();
        assert!(!result.timed_out(), "the server saw only {:?}", *counts);
    }
}

impl Shared {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
        self.counted.notify_all();
    }
}

/// One connection, until it ends in whatever way.
#[expect(clippy::result_large_err, reason = "the library prescribes what its callback returns")]
fn serve(shared: &Shared, stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut path = String::new();
    let accepted = tungstenite::accept_hdr(stream, |request: &Request, response: Response| {
        path = request.uri().path().to_owned();
        match shared.behaviour.http_status {
            None => Ok(response),
            Some(status) => Err(refusal(status)),
        }
    });
    let Ok(mut reader) = accepted else { return };
    shared.count(|counts| counts.opened += 1);
    let writer = WebSocket::from_raw_socket(reader.get_ref().try_clone().unwrap(), Role::Server, None);
    let writer = Arc::new(Mutex::new(writer));
    let mut echo = Echo::default();
    loop {
        let Ok(message) = reader.read() else { return };
        match message {
            Message::Close(_) => {
                shared.count(|counts| counts.closed += 1);
                // The library answers with the next read and then tells that it is over.
                continue;
            }
            Message::Pong(_) => {
                shared.count(|counts| counts.pongs += 1);
                continue;
            }
            _ => {}
        }
        if let Some(code) = shared.behaviour.close_code {
            let frame = CloseFrame { code: code.into(), reason: "by order".into() };
            writer.lock().unwrap().close(Some(frame)).unwrap();
            return;
        }
        let sent = match path.as_str() {
            "/echo" => echo.answer(shared, &writer, message),
            _ => answer(shared, &writer, &message),
        };
        if sent.is_err() {
            reader.get_ref().shutdown(Shutdown::Both).unwrap_or_default();
            return;
        }
    }
}

fn refusal(status: u16) -> ErrorResponse {
    let mut response = ErrorResponse::new(None);
    *response.status_mut() = status.try_into().unwrap();
    response
}

/// One connection's echo.
#[derive(Default)]
struct Echo {
    count: u64,
    held: Option<Message>,
}

impl Echo {
    fn answer(&mut self, shared: &Shared, writer: &Writer, message: Message) -> tungstenite::Result<()> {
        let mut writer = writer.lock().unwrap();
        let fault = shared.behaviour.fault.filter(|_| self.count == FAULTY);
        self.count += 1;
        match fault {
            Some(Fault::Lose) => return Ok(()),
            Some(Fault::Double) => writer.write(message.clone())?,
            Some(Fault::Reorder) => {
                self.held = Some(message);
                return Ok(());
            }
            None => {}
        }
        writer.write(message)?;
        if let Some(held) = self.held.take() {
            writer.write(held)?;
        }
        writer.flush()
    }
}

/// Carries out a message of the native protocol.
fn answer(shared: &Shared, writer: &Writer, message: &Message) -> tungstenite::Result<()> {
    let said: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
    let mut ack = json!({"type": "ack", "id": said["id"]});
    match said["type"].as_str().unwrap() {
        "join" => {
            if let Some(code) = shared.behaviour.join_error {
                let error = json!({"type": "error", "id": said["id"], "code": code, "message": "no"});
                return writer.lock().unwrap().send(Message::text(error.to_string()));
            }
            let rooms = said["rooms"].as_array().unwrap();
            let entries = rooms.iter().map(|room| (room.as_str().unwrap().to_owned(), json!({"members": 0})));
            ack["rooms"] = Value::Object(entries.collect());
            shared.room.lock().unwrap().members.push(Arc::clone(writer));
            shared.count(|counts| counts.joined += rooms.len() as u64);
        }
        "leave" => {
            shared.room.lock().unwrap().members.retain(|member| !Arc::ptr_eq(member, writer));
            shared.count(|counts| counts.left += said["rooms"].as_array().unwrap().len() as u64);
        }
        "publish" => {
            let event = json!({"type": "event", "room": said["room"], "event": said["event"], "data": null});
            // The data goes on byte for byte, as it would in a server that cares for its order of keys.
            let text = message.to_text().unwrap();
            let data = &text[text.find("\"data\":").unwrap() + 7..text.len() - 1];
            let event = event.to_string().replace("\"data\":null", &format!("\"data\":{data}"));
            shared.room.lock().unwrap().publish(shared.behaviour, event);
            shared.count(|counts| counts.published += 1);
            return Ok(());
        }
        other => panic!("unexpected {other}"),
    }
    let mut writer = writer.lock().unwrap();
    if shared.behaviour.pings {
        writer.send(Message::Ping(Bytes::from_static(b"are you there?")))?;
    }
    writer.send(Message::text(ack.to_string()))
}

impl Room {
    fn publish(&mut self, behaviour: Behaviour, event: String) {
        let fault = behaviour.fault.filter(|_| self.count == FAULTY);
        self.count += 1;
        let event = match (behaviour.batches, self.batched.take()) {
            (true, None) => {
                self.batched = Some(event);
                return;
            }
            (true, Some(first)) => format!("[{first},{event}]"),
            (false, _) => event,
        };
        let (held, members) = (self.held.take(), &self.members);
        if fault == Some(Fault::Reorder) {
            self.held = Some(event.clone());
        }
        for (index, member) in members.iter().enumerate() {
            let mut copies = match fault.filter(|_| index == 0) {
                Some(Fault::Lose | Fault::Reorder) => vec![],
                Some(Fault::Double) => vec![&event, &event],
                None => vec![&event],
            };
            copies.extend(held.as_ref().filter(|_| index == 0));
            for copy in copies {
                // A member that is gone is not told; its own thread ends by itself.
                if member.lock().unwrap().send(Message::text(copy.as_str())).is_err() {
                    break;
                }
            }
        }
    }
}
