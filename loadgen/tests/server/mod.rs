//! A small server for the generator to measure, in throng's protocol, in Socket.IO and as the auction and the chat of the examples: a thread
//! for each connection, one room for all, and one fault on demand. It is built on a WebSocket library that the generator does not use.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;
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
    /// Delivers two publications in one message: an array. Not in Socket.IO.
    pub(crate) batches: bool,
    /// Refuses joins with this error.
    pub(crate) join_error: Option<&'static str>,
    /// Refuses the namespace of Socket.IO.
    pub(crate) connect_error: bool,
    /// Publishes nothing for so long after it was first asked to, and then all of it.
    pub(crate) stall: Option<Duration>,
    /// Does not tell who says something in a chat that it is said.
    pub(crate) confirms_nothing: bool,
    /// Greets with this instead of Engine.IO's open packet.
    pub(crate) greeting: Option<&'static str>,
}

/// How a server restarts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Restart {
    /// Closes its connections with this code; without one, it just ends them.
    pub(crate) close_code: Option<u16>,
    /// Resets them instead.
    pub(crate) resets: bool,
    /// Tells native clients before when to come back.
    pub(crate) retry_ms: Option<u64>,
    /// Nobody listens for so long.
    pub(crate) away: Duration,
    /// Then it answers so many upgrades with 503.
    pub(crate) refusals: u64,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the connections' threads share.
struct Shared {
    behaviour: Behaviour,
    /// Set when nobody is to listen for so long, until that begins.
    away: Mutex<Option<Duration>>,
    /// Upgrades that are still to be refused.
    refusals: Mutex<u64>,
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
    /// Waits to be delivered to this member after the next one.
    held: Option<(Writer, String)>,
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
            away: Mutex::default(),
            refusals: Mutex::default(),
            room: Mutex::default(),
            counts: Mutex::default(),
            counted: Condvar::new(),
        });
        let server = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            let mut listener = listener;
            loop {
                let (stream, _) = listener.accept().unwrap();
                let away = shared.away.lock().unwrap().take();
                if let Some(away) = away {
                    drop((stream, listener));
                    rest(away);
                    listener = TcpListener::bind(address).unwrap();
                    continue;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&shared, stream));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Ends all connections that have joined, and does not listen for a while. Threads that serve them stay until the clients are gone.
    pub(crate) fn restart(&self, restart: Restart) {
        *self.shared.refusals.lock().unwrap() = restart.refusals;
        if !restart.away.is_zero() {
            *self.shared.away.lock().unwrap() = Some(restart.away);
            // Wakes the thread that listens. It may see somebody else before.
            drop(TcpStream::connect(self.address).unwrap());
        }
        let members = std::mem::take(&mut self.shared.room.lock().unwrap().members);
        for member in members {
            let mut writer = member.lock().unwrap();
            if let Some(retry_ms) = restart.retry_ms {
                let disconnect = json!({"type": "disconnect", "retry_ms": retry_ms});
                writer.send(Message::text(disconnect.to_string())).unwrap();
            }
            if let Some(code) = restart.close_code {
                writer.close(Some(CloseFrame { code: code.into(), reason: "restart".into() })).unwrap();
                continue;
            }
            if restart.resets {
                sockopt::set_socket_linger(writer.get_ref(), Some(Duration::ZERO)).unwrap();
                // This ends its reader, with which the last descriptor goes, and the connection by a reset.
                writer.get_ref().shutdown(Shutdown::Read).unwrap();
            } else {
                writer.get_ref().shutdown(Shutdown::Both).unwrap();
            }
        }
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
    fn join(&self, writer: &Writer, rooms: u64) {
        self.room.lock().unwrap().members.push(Arc::clone(writer));
        self.count(|counts| counts.joined += rooms);
    }

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
    let status = shared.behaviour.http_status.or_else(|| {
        let mut refusals = shared.refusals.lock().unwrap();
        let refuses = *refusals > 0;
        *refusals -= u64::from(refuses);
        refuses.then_some(503)
    });
    let accepted = tungstenite::accept_hdr(stream, |request: &Request, response: Response| {
        path = request.uri().path().to_owned();
        match status {
            None => Ok(response),
            Some(status) => Err(refusal(status)),
        }
    });
    let Ok(mut reader) = accepted else { return };
    shared.count(|counts| counts.opened += 1);
    let writer = WebSocket::from_raw_socket(reader.get_ref().try_clone().unwrap(), Role::Server, None);
    let writer = Arc::new(Mutex::new(writer));
    let is_engineio = matches!(path.as_str(), "/engine.io/" | "/socket.io/");
    if is_engineio {
        let open =
            r#"0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#;
        let greeting = shared.behaviour.greeting.unwrap_or(open);
        // One who is gone shows when it is read from.
        writer.lock().unwrap().send(Message::text(greeting)).unwrap_or_default();
    }
    let mut echo = Echo::default();
    loop {
        let Ok(message) = reader.read() else { return };
        match &message {
            Message::Close(_) => {
                shared.count(|counts| counts.closed += 1);
                // The library answers with the next read and then tells that it is over.
                continue;
            }
            Message::Pong(_) => {
                shared.count(|counts| counts.pongs += 1);
                continue;
            }
            Message::Text(text) if is_engineio && text.as_str() == "3" => {
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
            "/echo" | "/engine.io/" => echo.answer(shared, &writer, message),
            "/socket.io/" => answer_packet(shared, &writer, message.to_text().unwrap()),
            _ => answer_native(shared, &writer, message.to_text().unwrap()),
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
fn answer_native(shared: &Shared, writer: &Writer, text: &str) -> tungstenite::Result<()> {
    let said: Value = serde_json::from_str(text).unwrap();
    let verb = said["type"].as_str().unwrap();
    if verb == "publish" {
        let event = json!({"type": "event", "room": said["room"], "event": said["event"], "data": null});
        let event = event.to_string().replace("\"data\":null", &format!("\"data\":{}", data(text, "}")));
        publish(shared, event, None);
        return Ok(());
    }
    if verb == "auctionUpdate" {
        publish(shared, text.to_owned(), Some(writer));
        return Ok(());
    }
    let outcome = match verb {
        "joinAuction" => {
            shared.join(writer, 1);
            Ok(None)
        }
        _ => act(shared, writer, verb, &said),
    };
    let ack = match outcome {
        Ok(None) => json!({"type": "ack", "id": said["id"]}),
        Ok(Some(rooms)) => json!({"type": "ack", "id": said["id"], "rooms": rooms}),
        Err(code) => json!({"type": "error", "id": said["id"], "code": code, "message": "no"}),
    };
    let mut writer = writer.lock().unwrap();
    if shared.behaviour.pings {
        writer.send(Message::Ping(Bytes::from_static(b"are you there?")))?;
    }
    writer.send(Message::text(ack.to_string()))
}

/// Carries out a packet of Socket.IO.
fn answer_packet(shared: &Shared, writer: &Writer, text: &str) -> tungstenite::Result<()> {
    if text == "40" {
        let refused = shared.behaviour.connect_error;
        let answer = if refused { r#"44{"message":"no"}"# } else { r#"40{"sid":"b"}"# };
        return writer.lock().unwrap().send(Message::text(answer));
    }
    let event = text.strip_prefix("42").unwrap();
    let (id, event) = event.split_at(event.find('[').unwrap());
    let said: Value = serde_json::from_str(event).unwrap();
    let verb = said[0].as_str().unwrap();
    if verb == "publish" {
        publish(shared, format!("42[{},{}]", said[1]["event"], data(text, "}]")), None);
        return Ok(());
    }
    if verb == "send_message" {
        publish(shared, format!("42{}", json!(["new_message", said[1]])), Some(writer));
        return match shared.behaviour.confirms_nothing {
            true => Ok(()),
            false => writer.lock().unwrap().send(Message::text(r#"42["message_sent",{}]"#)),
        };
    }
    let ack = match act(shared, writer, verb, &said[1]) {
        Ok(None) => json!([{}]),
        Ok(Some(rooms)) => json!([{"rooms": rooms}]),
        Err(code) => json!([{"error": {"code": code, "message": "no"}}]),
    };
    let mut writer = writer.lock().unwrap();
    if shared.behaviour.pings {
        writer.send(Message::text("2"))?;
    }
    writer.send(Message::text(format!("43{id}{ack}")))
}

/// The data of a publication, which ends with `tail`. It goes on byte for byte, as it would in a server that cares
/// for its order of keys.
fn data<'a>(publication: &'a str, tail: &str) -> &'a str {
    let (_, data) = publication.split_once("\"data\":").unwrap();
    data.strip_suffix(tail).unwrap()
}

/// Joins or leaves what `said` says. After a join there is something to say about its rooms.
fn act(shared: &Shared, writer: &Writer, verb: &str, said: &Value) -> Result<Option<Value>, &'static str> {
    let rooms = said["rooms"].as_array().unwrap();
    match (verb, shared.behaviour.join_error) {
        ("join", Some(code)) => Err(code),
        ("join", None) => {
            shared.join(writer, rooms.len() as u64);
            let entries = rooms.iter().map(|room| (room.as_str().unwrap().to_owned(), json!({"members": 0})));
            Ok(Some(Value::Object(entries.collect())))
        }
        ("leave", _) => {
            shared.room.lock().unwrap().members.retain(|member| !Arc::ptr_eq(member, writer));
            shared.count(|counts| counts.left += rooms.len() as u64);
            Ok(None)
        }
        (other, _) => panic!("unexpected {other}"),
    }
}

/// Publishes to all but its sender.
fn publish(shared: &Shared, event: String, sender: Option<&Writer>) {
    let mut room = shared.room.lock().unwrap();
    if let Some(stall) = shared.behaviour.stall.filter(|_| room.count == 0) {
        rest(stall);
    }
    room.publish(shared.behaviour, &event, sender);
    drop(room);
    shared.count(|counts| counts.published += 1);
}

#[expect(clippy::disallowed_methods, reason = "a server that is slow, or away")]
fn rest(time: Duration) {
    thread::sleep(time);
}

impl Room {
    fn publish(&mut self, behaviour: Behaviour, event: &str, sender: Option<&Writer>) {
        let fault = behaviour.fault.filter(|_| self.count == FAULTY);
        self.count += 1;
        let event = match (behaviour.batches, self.batched.take()) {
            (true, None) => {
                self.batched = Some(event.to_owned());
                return;
            }
            (true, Some(first)) => format!("[{first},{event}]"),
            (false, _) => event.to_owned(),
        };
        let members =
            self.members.iter().filter(|member| !sender.is_some_and(|sender| is_same(member, sender)));
        for (index, member) in members.enumerate() {
            let held = self.held.take_if(|(to, _)| is_same(to, member));
            let mut copies = vec![event.as_str()];
            match fault.filter(|_| index == 0) {
                Some(Fault::Lose) => copies.clear(),
                Some(Fault::Double) => copies.push(&event),
                Some(Fault::Reorder) => {
                    copies.clear();
                    self.held = Some((Arc::clone(member), event.clone()));
                }
                None => {}
            }
            copies.extend(held.iter().map(|(_, event)| event.as_str()));
            for copy in copies {
                // A member that is gone is not told; its own thread ends by itself.
                if member.lock().unwrap().send(Message::text(copy)).is_err() {
                    break;
                }
            }
        }
    }
}

fn is_same(one: &Writer, other: &Writer) -> bool {
    Arc::ptr_eq(one, other)
}
