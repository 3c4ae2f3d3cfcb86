//! The floor: the smallest server that can stand in for throng in two workloads, so that what the
//! kernel alone charges is measured beside throng instead of being remembered.
//!
//! `/echo` is epoll_wait, recv, unmask, send. `/ws` knows one room and just enough of the native
//! protocol for `throng-load`: a join subscribes, a publish becomes one encoded frame and a plain
//! loop sends it to every subscriber. There are no limits, no heartbeats, no timers, no queue for a
//! slow reader and no error replies: all of those are what throng may cost on top.
//!
//! ```text
//! cargo bench --bench floor -- serve --listen 127.0.0.1:7072 [--coalesce] [--seconds 60]
//! ```
//!
//! It prints `listening on ADDR` and runs until SIGTERM or `--seconds`. Without `serve` it checks
//! itself against a foreign WebSocket client and ends, which is what `cargo test` and a bare
//! `cargo bench` do. CPU time is measured from outside, by `throng-load --pid`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use tokio::signal::unix::{SignalKind, signal};
use tungstenite::handshake::derive_accept_key;

/// Bytes of the one buffer all sockets are read into; a frame must fit.
const INPUT_BYTES: usize = 256 * 1024;

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// What `serve` takes.
#[derive(Parser)]
#[command(bin_name = "floor -- serve")]
struct Args {
    /// Address and port to listen on; port 0 lets the kernel choose.
    #[arg(long, default_value = "127.0.0.1:7072")]
    listen: SocketAddr,
    /// One send per subscriber for all publications of one read, instead of one for each.
    #[arg(long)]
    coalesce: bool,
    /// Ends by itself after so many seconds.
    #[arg(long, default_value_t = 86_400)]
    seconds: u64,
    /// What `cargo bench` appends.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == "serve").is_none() {
        return check_itself();
    }
    let args = Args::parse_from(std::iter::once("floor".into()).chain(words));
    let mut floor = Floor::bind(args.listen, args.coalesce)?;
    println!("listening on {}", floor.listener.local_addr()?);
    let waker = floor.waker.clone();
    thread::spawn(move || wait_for_the_end(Duration::from_secs(args.seconds), &waker));
    floor.run()?;
    eprintln!("{} sends refused", floor.refused);
    Ok(())
}

/// Sleeps until SIGTERM or the end of the time, so that the epoll thread needs neither a clock nor
/// a signal handler.
fn wait_for_the_end(limit: Duration, waker: &Waker) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // A time-out is an end like any other.
        tokio::time::timeout(limit, terminate.recv()).await.ok();
        waker.wake()
    })
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    /// Not upgraded yet.
    Head,
    Echo,
    Room,
}

/// What is known of a connection besides its socket.
struct Conn {
    purpose: Purpose,
    /// Index into `Floor::subscribers`; `Some` exactly when the connection is in the room.
    seat: Option<usize>,
    /// The beginning of a frame or head whose rest has not come.
    tail: Vec<u8>,
}

/// One epoll loop and its connections.
struct Floor {
    poll: Poll,
    waker: Arc<Waker>,
    listener: TcpListener,
    /// Sockets apart from the rest, so that a fan-out walks descriptors and nothing else. Both slabs
    /// change together, so a slot is the same connection in both.
    sockets: Slab<TcpStream>,
    conns: Slab<Conn>,
    /// Slots of the room's members.
    subscribers: Vec<usize>,
    coalesce: bool,
    input: Box<[u8]>,
    /// Frames due to the connection being read.
    reply: Vec<u8>,
    /// Frames due to the room.
    frames: Vec<u8>,
    /// Sends of which the kernel took less than all (EAGAIN, mostly).
    refused: u64,
}

impl Floor {
    fn bind(address: SocketAddr, coalesce: bool) -> io::Result<Floor> {
        // throng's own listener: socket options make a difference, and are not what is measured.
        let mut listener = TcpListener::from_std(throng::reactor::sys::listen(address)?);
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Floor {
            waker: Arc::new(Waker::new(poll.registry(), STOP)?),
            poll,
            listener,
            sockets: Slab::new(),
            conns: Slab::new(),
            subscribers: Vec::new(),
            coalesce,
            input: vec![0; INPUT_BYTES].into(),
            reply: Vec::new(),
            frames: Vec::new(),
            refused: 0,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(()),
                    LISTENER => self.accept()?,
                    // An event may be about a connection that an earlier one of this batch ended.
                    Token(slot) if self.sockets.contains(slot) => {
                        self.read(slot);
                        // A FIN that came with the data makes no edge of its own.
                        if event.is_read_closed() && self.sockets.contains(slot) {
                            self.close(slot);
                        }
                    }
                    Token(_) => {}
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let slot = self.conns.insert(Conn { purpose: Purpose::Head, seat: None, tail: Vec::new() });
            self.poll.registry().register(&mut socket, Token(slot), Interest::READABLE)?;
            assert_eq!(self.sockets.insert(socket), slot);
        }
    }

    /// Reads until the first short read, which on TCP proves that the socket is drained.
    fn read(&mut self, slot: usize) {
        loop {
            let tail = &mut self.conns[slot].tail;
            let kept = tail.len();
            self.input[..kept].copy_from_slice(tail);
            tail.clear();
            let filled = match self.sockets[slot].read(&mut self.input[kept..]) {
                Ok(0) => return self.close(slot),
                Ok(count) => kept + count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => kept,
                Err(_) => return self.close(slot),
            };
            let Some(used) = self.act(slot, filled) else { return self.close(slot) };
            if used < filled {
                self.conns[slot].tail.extend_from_slice(&self.input[used..filled]);
            }
            if filled < self.input.len() {
                return;
            }
            if used == 0 {
                return self.close(slot); // the frame does not fit
            }
        }
    }

    /// Acts on every complete frame in `input[..filled]`, then sends what is due. Returns the number
    /// of bytes used up; `None` ends the connection.
    fn act(&mut self, slot: usize, filled: usize) -> Option<usize> {
        let mut used = 0;
        if self.conns[slot].purpose == Purpose::Head {
            used = upgrade(&self.input[..filled], &mut self.conns[slot].purpose, &mut self.reply)?;
            if used == 0 {
                return Some(0);
            }
        }
        let echo = self.conns[slot].purpose == Purpose::Echo;
        while let Some(frame) = next_frame(&self.input[used..filled]) {
            let payload = used + frame.payload.start..used + frame.payload.end;
            used = payload.end;
            unmask(&mut self.input[payload.clone()], frame.mask);
            match frame.opcode {
                TEXT if !echo => self.obey(slot, payload),
                TEXT | BINARY => push_frame(&mut self.reply, frame.opcode, &[&self.input[payload]]),
                PING => push_frame(&mut self.reply, PING + 1, &[&self.input[payload]]),
                CLOSE => push_frame(&mut self.reply, CLOSE, &[&self.input[payload]]),
                _ => {}
            }
        }
        if !self.frames.is_empty() {
            self.send_to_room();
        }
        if !self.reply.is_empty() {
            let sent = self.sockets[slot].write(&self.reply);
            let whole = matches!(sent, Ok(count) if count == self.reply.len());
            self.reply.clear();
            return whole.then_some(used);
        }
        Some(used)
    }

    /// Carries out the message `input[message]`: with data it is a publish, with rooms a join. The fields
    /// are found by scanning, in the order `throng-load` writes them; no JSON is parsed.
    fn obey(&mut self, slot: usize, message: Range<usize>) {
        let message = &self.input[message];
        if let Some(data) = after(message, b"\"data\":") {
            // The closing brace of the message serves the event, too.
            push_frame(
                &mut self.frames,
                TEXT,
                &[br#"{"type":"event","room":"load","event":"e","data":"#, data],
            );
            if !self.coalesce {
                self.send_to_room();
            }
        } else if let Some(name) = after(message, b"\"rooms\":[\"") {
            let members = self.subscribers.len().to_string();
            if self.conns[slot].seat.is_none() {
                self.conns[slot].seat = Some(self.subscribers.len());
                self.subscribers.push(slot);
            }
            let Some(id) = after(message, b"\"id\":").map(|rest| until(rest, b",}")) else { return };
            let (head, middle, end) = (br#"{"type":"ack","id":"#, br#","rooms":{""#, br#"":{"members":"#);
            let parts: [&[u8]; _] = [head, id, middle, until(name, b"\""), end, members.as_bytes(), b"}}}"];
            push_frame(&mut self.reply, TEXT, &parts);
        }
    }

    /// The plain `send()` loop.
    fn send_to_room(&mut self) {
        for &slot in &self.subscribers {
            match self.sockets[slot].write(&self.frames) {
                Ok(count) if count == self.frames.len() => {}
                // What was not taken is lost: there is no queue. The subscriber's next read ends it
                // if it is dead, and `throng-load` counts the loss if it is alive.
                _ => self.refused += 1,
            }
        }
        self.frames.clear();
    }

    fn leave(&mut self, slot: usize) {
        if let Some(seat) = self.conns[slot].seat.take() {
            self.subscribers.swap_remove(seat);
            if let Some(&moved) = self.subscribers.get(seat) {
                self.conns[moved].seat = Some(seat);
            }
        }
    }

    fn close(&mut self, slot: usize) {
        self.leave(slot);
        self.conns.remove(slot);
        // Closing the last descriptor of a socket also takes it out of epoll.
        self.sockets.remove(slot);
    }
}

/// Answers the request head at the start of `bytes` with 101 and says what the path is for. Returns the
/// head's length, 0 when it is not complete; `None` when it is no upgrade this server knows.
fn upgrade(bytes: &[u8], purpose: &mut Purpose, reply: &mut Vec<u8>) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).ok()? else { return Some(0) };
    *purpose = match request.path? {
        "/ws" => Purpose::Room,
        "/echo" => Purpose::Echo,
        _ => return None,
    };
    let key = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))?;
    reply.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ",
    );
    reply.extend_from_slice(derive_accept_key(key.value).as_bytes());
    reply.extend_from_slice(b"\r\n\r\n");
    Some(length)
}

/// A frame as its header describes it.
struct Frame {
    opcode: u8,
    mask: [u8; 4],
    payload: Range<usize>,
}

/// The frame at the start of `bytes`, if it is there whole. The client is trusted to mask and not to fragment.
fn next_frame(bytes: &[u8]) -> Option<Frame> {
    let (length, at) = match bytes.get(1)? & 127 {
        126 => (u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (short as usize, 2),
    };
    let mask = bytes.get(at..at + 4)?.try_into().ok()?;
    let payload = at + 4..(at + 4).checked_add(length)?;
    (payload.end <= bytes.len()).then_some(Frame { opcode: bytes[0] & 15, mask, payload })
}

/// Takes the mask off in place, eight bytes at a time (which the compiler widens further).
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let plain = u64::from_ne_bytes((&*word).try_into().expect("eight bytes")) ^ wide;
        word.copy_from_slice(&plain.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends an unmasked frame whose payload is the concatenation of `parts`.
fn push_frame(out: &mut Vec<u8>, opcode: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(length as u8),
        126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// What follows the first `needle` in `bytes`.
fn after<'a>(bytes: &'a [u8], needle: &[u8]) -> Option<&'a [u8]> {
    let at = bytes.windows(needle.len()).position(|window| window == needle)?;
    Some(&bytes[at + needle.len()..])
}

/// What comes before the first byte that is one of `ends`.
fn until<'a>(bytes: &'a [u8], ends: &[u8]) -> &'a [u8] {
    bytes.split(|byte| ends.contains(byte)).next().unwrap_or(bytes)
}

/// Small size: a foreign client is echoed to, joins, and gets what another one publishes.
fn check_itself() -> io::Result<()> {
    for coalesce in [false, true] {
        let mut floor = Floor::bind(([127, 0, 0, 1], 0).into(), coalesce)?;
        let (address, waker) = (floor.listener.local_addr()?, floor.waker.clone());
        let server = thread::spawn(move || floor.run());
        let connect = |path: &str| {
            let stream = BlockingStream::connect(address).expect("the floor listens");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out can be set");
            tungstenite::client(format!("ws://{address}{path}"), stream).expect("an upgrade").0
        };
        let mut echo = connect("/echo");
        for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let message = tungstenite::Message::binary(vec![7; length]);
            echo.send(message.clone()).expect("sent");
            assert_eq!(echo.read().expect("an echo"), message);
        }
        let (mut subscriber, mut publisher) = (connect("/ws"), connect("/ws"));
        let text = |text: &str| tungstenite::Message::text(text.to_owned());
        subscriber.send(text(r#"{"type":"join","rooms":["load"],"id":1}"#)).expect("sent");
        let ack = r#"{"type":"ack","id":1,"rooms":{"load":{"members":0}}}"#;
        assert_eq!(subscriber.read().expect("an ack"), text(ack));
        for number in 0..3 {
            let publish =
                format!(r#"{{"type":"publish","room":"load","event":"e","data":{{"s":{number}}}}}"#);
            publisher.write(text(&publish)).expect("buffered");
        }
        publisher.flush().expect("sent");
        for number in 0..3 {
            let event = format!(r#"{{"type":"event","room":"load","event":"e","data":{{"s":{number}}}}}"#);
            assert_eq!(subscriber.read().expect("an event"), text(&event));
        }
        waker.wake()?;
        server.join().expect("the floor does not panic")?;
    }
    println!("floor: checked; `cargo bench --bench floor -- serve` runs it");
    Ok(())
}
