//! The connections of one worker: opened at a pace, read into one buffer, parsed in place, pings answered. The
//! scenario is told what happened and calls back to send.
//!
//! One epoll, edge-triggered: a socket is registered once for both directions. A read ends at the first short one, for
//! on TCP that is proof that the socket is drained, and what comes later makes a new edge. What a socket refuses to
//! take waits in `unsent` until epoll says it is writable.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::time::Timespec;
use serde_json::json;
use sha1::{Digest, Sha1};

use crate::args::{Ending, ScenarioArgs};
use crate::clock::{self, SECOND_NS, now_ns};
use crate::control::{Place, Plan, Window};
use crate::frame::{self, Masker, Opcode, Parsed};
use crate::protocol::Protocol;
use crate::report::{Latency, Tally};
use crate::source::Sources;
use crate::token::Tokens;

/// The read buffer to begin with. It grows for larger frames.
const SCRATCH_BYTES: usize = 256 * 1024;
/// A frame or message longer than this breaks the connection: it was not asked for.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest head of a handshake's answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Events taken from the kernel at once. Few enough that a publisher's clock is looked at often.
const EVENTS_PER_TURN: usize = 256;
/// Connections opened in one turn, so that answers are read in between.
const CONNECTS_PER_TURN: u32 = 256;
/// When opening is this much slower, something is wrong; what was not tried by then is given up.
const HANDSHAKES_PER_SECOND_MIN: f64 = 250.0;

/// The longest a closing handshake may take.
pub(crate) const CLOSING_NS: u64 = 2 * SECOND_NS;

/// Names of descriptors that are not connections.
pub(crate) const CONTROL: u64 = u64::MAX;
pub(crate) const COMPLETIONS: u64 = u64::MAX - 1;

/// Is told what happens on the connections. `id` is below the count given to `Clients::new`.
pub(crate) trait Listener {
    /// The handshake of `id` is complete.
    fn opened(&mut self, _clients: &mut Clients, _id: usize, _now_ns: u64) {}

    /// A whole message arrived, text or binary, without the head its protocol gives it.
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64);

    /// All messages of one read were handed over; a good time to answer them at once.
    fn read_done(&mut self, _clients: &mut Clients, _id: usize, _now_ns: u64) {}

    /// `id` could not be opened, or `was_open` and was ended, in this way; counted as an error, if not said otherwise. `closed` comes next.
    fn failed(&mut self, clients: &mut Clients, _id: usize, kind: &str, _was_open: bool) {
        clients.note_error(kind);
    }

    /// `id` could not be opened, or was open and is gone.
    fn closed(&mut self, _clients: &mut Clients, _id: usize) {}
}

pub(crate) struct Clients {
    epoll: OwnedFd,
    conns: Vec<Conn>,
    scratch: Vec<u8>,
    events: Vec<epoll::Event>,
    /// For frames to send.
    pub(crate) masker: Masker,
    pub(crate) protocol: Protocol,
    /// True exactly when a connection of Engine.IO has to enter a namespace of Socket.IO before it is open.
    enters_namespace: bool,
    /// Of so many guilds each connection enters the namespace of one; `None` for `/`.
    guilds: Option<usize>,
    tokens: Option<Tokens>,
    random: fastrand::Rng,
    /// Where connections go, with the request there but for its key, which comes last.
    targets: Vec<(SocketAddr, Vec<u8>)>,
    /// Connections that are spread over the targets; those after them go to the first.
    spread: usize,
    sources: Option<Sources>,
    /// Number of connection 0 among those of all workers.
    first: u32,
    opening: Opening,
    /// Count of connections in stage `Open`.
    open: u64,
    /// Bytes and reads are counted in here only.
    pub(crate) window: Window,
    handshakes: u64,
    pub(crate) handshake_latency: Latency,
    pings: u64,
    closes: u64,
    bytes_received: u64,
    reads: u64,
    bytes_in_all: u64,
    errors: BTreeMap<String, u64>,
}

/// Connections that are to be opened, and those on their way.
struct Opening {
    queue: VecDeque<usize>,
    /// When each handshake began and whose it is, oldest first; some are over already.
    begun: VecDeque<(u64, usize)>,
    /// Count of connections in stage `Connecting`, `Upgrading` or `Greeting`.
    under_way: u32,
    under_way_max: u32,
    /// Per second; 0 is without limit.
    rate: f64,
    timeout_ns: u64,
    /// When the queue was filled, and how many of it were begun since.
    since_ns: u64,
    since: u64,
    give_up_ns: u64,
}

struct Conn {
    socket: Option<OwnedFd>,
    stage: Stage,
    begun_ns: u64,
    /// The start of a head or frame that was cut short.
    partial: Vec<u8>,
    /// The parts so far of a message in several frames.
    fragments: Option<Vec<u8>>,
    /// Bytes the kernel would not take yet.
    unsent: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No socket.
    Vacant,
    /// TCP is connecting.
    Connecting,
    /// The request with this key was sent.
    Upgrading([u8; 24]),
    /// It is a WebSocket, but Engine.IO's open packet, or the namespace's answer, has not come yet.
    Greeting,
    Open,
    /// A close frame was sent by choice; the server's is awaited.
    Closing,
}

/// Which of the descriptors that are not connections became readable.
#[derive(Default)]
pub(crate) struct Woken {
    pub(crate) control: bool,
    pub(crate) completions: bool,
}

impl Clients {
    /// `connections` of them, none open.
    pub(crate) fn new(plan: &Plan, connections: usize) -> io::Result<Self> {
        let target = |place: &Place| {
            let request_head = format!(
                "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
                plan.path, place.host
            );
            (place.address, request_head.into_bytes())
        };
        let seed = now_ns() ^ u64::from(plan.first) << 32;
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            conns: (0..connections).map(|_| Conn::vacant()).collect(),
            scratch: vec![0; SCRATCH_BYTES],
            events: Vec::with_capacity(EVENTS_PER_TURN),
            masker: Masker::new(plan.mask, seed),
            protocol: plan.protocol,
            enters_namespace: !matches!(plan.scenario, ScenarioArgs::Echo(_)),
            guilds: match &plan.scenario {
                ScenarioArgs::Listen(args) => args.guilds(),
                _ => None,
            },
            tokens: plan.tokens.clone().map(Tokens::from),
            random: fastrand::Rng::with_seed(seed),
            targets: plan.targets.iter().map(target).collect(),
            spread: plan.connections as usize,
            sources: plan.sources,
            first: plan.first,
            opening: Opening {
                queue: VecDeque::new(),
                begun: VecDeque::new(),
                under_way: 0,
                under_way_max: plan.connecting_max,
                rate: plan.connect_rate,
                timeout_ns: plan.timeout_ns,
                since_ns: 0,
                since: 0,
                give_up_ns: u64::MAX,
            },
            open: 0,
            window: Window::default(),
            handshakes: 0,
            handshake_latency: Latency::new(),
            pings: 0,
            closes: 0,
            bytes_received: 0,
            reads: 0,
            bytes_in_all: 0,
            errors: BTreeMap::new(),
        })
    }

    /// Wakes a turn when `source` is readable, as long as it is (level-triggered).
    pub(crate) fn watch(&self, source: BorrowedFd<'_>, name: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(name), epoll::EventFlags::IN)?)
    }

    /// Will open these, as fast as the rate and the count of handshakes under way allow; `at_once` lifts both for good.
    pub(crate) fn open_all(&mut self, ids: impl Iterator<Item = usize>, at_once: bool, now_ns: u64) {
        let opening = &mut self.opening;
        opening.queue.extend(ids);
        if at_once {
            opening.under_way_max = u32::MAX;
            opening.rate = 0.0;
        }
        let count = opening.queue.len() as f64;
        let paced_seconds = if opening.rate > 0.0 { count / opening.rate } else { 0.0 };
        let seconds = paced_seconds + count / HANDSHAKES_PER_SECOND_MIN;
        opening.since_ns = now_ns;
        opening.since = 0;
        opening.give_up_ns = now_ns + opening.timeout_ns + clock::seconds_ns(seconds);
    }

    /// How many are still to be opened or on their way.
    pub(crate) fn opening(&self) -> usize {
        self.opening.queue.len() + self.opening.under_way as usize
    }

    pub(crate) fn open(&self) -> u64 {
        self.open
    }

    pub(crate) fn is_open(&self, id: usize) -> bool {
        self.conns[id].stage == Stage::Open
    }

    /// True while the kernel has not taken all that was sent.
    pub(crate) fn has_unsent(&self, id: usize) -> bool {
        !self.conns[id].unsent.is_empty()
    }

    /// Opens what is due and gives up what took too long. Returns when to be called again.
    pub(crate) fn tend(&mut self, now_ns: u64, listener: &mut impl Listener) -> u64 {
        while let Some(&(begun_ns, id)) = self.opening.begun.front() {
            let conn = &self.conns[id];
            let over = !conn.is_opening() || conn.begun_ns != begun_ns;
            if !over && now_ns < begun_ns + self.opening.timeout_ns {
                break;
            }
            self.opening.begun.pop_front();
            if !over {
                self.fail(id, "timeout", listener);
            }
        }
        if now_ns >= self.opening.give_up_ns {
            while let Some(id) = self.opening.queue.pop_front() {
                self.note_error("not_tried");
                listener.closed(self, id);
            }
        }
        for _ in 0..CONNECTS_PER_TURN {
            let opening = &mut self.opening;
            if opening.under_way >= opening.under_way_max || now_ns < opening.next_due_ns() {
                break;
            }
            let Some(id) = opening.queue.pop_front() else { break };
            opening.since += 1;
            self.connect(id, listener);
        }
        let opening = &self.opening;
        let timeout_ns =
            opening.begun.front().map_or(u64::MAX, |(begun_ns, _)| begun_ns + opening.timeout_ns);
        match opening.queue.is_empty() {
            true => timeout_ns,
            false if opening.under_way >= opening.under_way_max => timeout_ns.min(opening.give_up_ns),
            false => opening.next_due_ns().min(timeout_ns).min(opening.give_up_ns),
        }
    }

    /// Waits for something to happen, `wait` at most, and handles what did.
    pub(crate) fn turn(&mut self, wait: Option<Timespec>, listener: &mut impl Listener) -> io::Result<Woken> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut woken = Woken::default();
        for event in &events {
            match event.data.u64() {
                CONTROL => woken.control = true,
                COMPLETIONS => woken.completions = true,
                id => self.ready(id as usize, event.flags, listener),
            }
        }
        self.events = events;
        Ok(woken)
    }

    /// Sends these bytes, whole frames. What the kernel does not take now goes out later, in order.
    pub(crate) fn send(&mut self, id: usize, bytes: &[u8]) {
        let conn = &mut self.conns[id];
        let Some(socket) = &conn.socket else { return };
        let taken = match conn.unsent.is_empty() {
            // A broken connection shows on the reading side, where it is counted.
            true => net::send(socket, bytes, SendFlags::NOSIGNAL).unwrap_or(0),
            false => 0,
        };
        conn.unsent.extend_from_slice(&bytes[taken..]);
    }

    /// Ends an open connection by choice. After `Ending::Close` the listener is told when it is closed.
    pub(crate) fn end(&mut self, id: usize, ending: Ending) {
        if self.conns[id].stage != Stage::Open {
            return;
        }
        self.open -= 1;
        if ending == Ending::Close {
            self.send_frame(id, Opcode::Close, &1000u16.to_be_bytes());
            self.conns[id].stage = Stage::Closing;
            return;
        }
        if let (Ending::Reset, Some(socket)) = (ending, &self.conns[id].socket)
            && let Err(error) = sockopt::set_socket_linger(socket, Some(Duration::ZERO))
        {
            // Then it ends with a FIN instead, which the report must not hide.
            self.note_error(&kind_of(error));
        }
        self.conns[id] = Conn::vacant();
    }

    /// Gives up waiting for the server's side of a closing handshake.
    pub(crate) fn end_closing(&mut self, id: usize, listener: &mut impl Listener) {
        if self.conns[id].stage == Stage::Closing {
            self.note_error("close_timeout");
            self.fail(id, "close_timeout", listener);
        }
    }

    /// Counts a failure of this kind.
    pub(crate) fn note_error(&mut self, kind: &str) {
        *self.errors.entry(kind.to_owned()).or_default() += 1;
    }

    pub(crate) fn report(&self, tally: &mut Tally) {
        tally.handshakes = self.handshakes;
        tally.handshake_latency = self.handshake_latency.clone();
        tally.pings = self.pings;
        tally.closes = self.closes;
        tally.bytes_received = self.bytes_received;
        tally.reads = self.reads;
        tally.bytes_in_all = self.bytes_in_all;
        tally.errors = self.errors.clone();
    }

    fn connect(&mut self, id: usize, listener: &mut impl Listener) {
        self.conns[id] = Conn { stage: Stage::Connecting, begun_ns: now_ns(), ..Conn::vacant() };
        self.opening.under_way += 1;
        self.opening.begun.push_back((self.conns[id].begun_ns, id));
        match self.begin_connecting(id) {
            Ok(socket) => self.conns[id].socket = Some(socket),
            Err(error) => self.fail(id, &kind_of(error), listener),
        }
    }

    /// Where a connection goes, and how it asks there.
    fn target(&self, id: usize) -> &(SocketAddr, Vec<u8>) {
        let place = if id < self.spread { (self.first as usize + id + 1) % self.targets.len() } else { 0 };
        &self.targets[place]
    }

    fn begin_connecting(&self, id: usize) -> Result<OwnedFd, Errno> {
        let (target, _) = self.target(id);
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if let Some(sources) = self.sources {
            // Without this, bind picks the port before the target is known and so may not share it with other targets;
            // with it, connect picks a port that is free for this one.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)
                .map_err(|error| Errno::from_raw_os_error(error as i32))?;
            net::bind(&socket, &SocketAddr::from((sources.address(self.first + id as u32), 0)))?;
        }
        match net::connect(&socket, target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let both = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id as u64), both | epoll::EventFlags::ET)?;
        Ok(socket)
    }

    fn ready(&mut self, id: usize, flags: epoll::EventFlags, listener: &mut impl Listener) {
        let ended =
            flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let conn = &mut self.conns[id];
        let Some(socket) = &conn.socket else { return };
        if conn.stage == Stage::Connecting {
            if flags.contains(epoll::EventFlags::ERR) {
                let error =
                    sockopt::socket_error(socket).and_then(|state| state.err().ok_or(Errno::CONNRESET));
                let (Ok(error) | Err(error)) = error;
                return self.fail(id, &kind_of(error), listener);
            }
            if !flags.contains(epoll::EventFlags::OUT) {
                return;
            }
            self.request(id);
        } else if flags.contains(epoll::EventFlags::OUT) && !conn.unsent.is_empty() {
            let taken = net::send(socket, &conn.unsent, SendFlags::NOSIGNAL).unwrap_or(0);
            conn.unsent.drain(..taken);
        }
        if ended || flags.contains(epoll::EventFlags::IN) {
            let mut scratch = std::mem::take(&mut self.scratch);
            self.read(id, ended, &mut scratch, listener);
            self.scratch = scratch;
        }
    }

    /// TCP is connected: asks for the upgrade.
    fn request(&mut self, id: usize) {
        let mut nonce = [0; 16];
        self.random.fill(&mut nonce);
        let mut key = [0; 24];
        let length = BASE64.encode_slice(nonce, &mut key).expect("16 bytes are 24 in base64");
        debug_assert_eq!(length, key.len());
        self.conns[id].stage = Stage::Upgrading(key);
        let mut request = self.target(id).1.clone();
        request.extend_from_slice(&key);
        request.extend_from_slice(b"\r\n");
        if !self.brings_token_later()
            && let Some(token) = self.token(id)
        {
            request.extend_from_slice(format!("Authorization: Bearer {token}\r\n").as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        self.send(id, &request);
    }

    /// True when the token is not in the request: stock clients of Socket.IO send it as they enter a namespace.
    fn brings_token_later(&self) -> bool {
        self.protocol == Protocol::Socketio && self.enters_namespace
    }

    fn token(&self, id: usize) -> Option<Cow<'_, str>> {
        let tokens = self.tokens.as_ref()?;
        Some(match id.checked_sub(self.spread) {
            None => tokens.of(&format!("load-{}", self.first as usize + id)),
            Some(publisher) => tokens.of(&format!("load-publisher-{publisher}")),
        })
    }

    /// Enters its namespace.
    fn enter(&mut self, id: usize) {
        let namespace = self
            .guilds
            .map_or(String::new(), |guilds| format!("/guild/{},", (self.first as usize + id) % guilds));
        let packet = match self.token(id) {
            Some(token) => format!("40{namespace}{}", json!({ "token": token })),
            None => format!("40{namespace}"),
        };
        self.send_frame(id, Opcode::Text, packet.as_bytes());
    }

    /// Reads until the socket is drained; if it has `ended`, until it says so.
    fn read(&mut self, id: usize, ended: bool, scratch: &mut Vec<u8>, listener: &mut impl Listener) {
        // Bytes before `filled` were received and not yet taken.
        let mut filled = self.conns[id].partial.len();
        if filled > 0 {
            if filled >= scratch.len() {
                scratch.resize(filled * 2, 0);
            }
            scratch[..filled].copy_from_slice(&self.conns[id].partial);
            self.conns[id].partial.clear();
        }
        loop {
            if filled == scratch.len() {
                if filled > MESSAGE_BYTES_MAX {
                    return self.fail(id, "too_large", listener);
                }
                scratch.resize(filled * 2, 0);
            }
            let Some(socket) = &self.conns[id].socket else { return };
            let free = &mut scratch[filled..];
            let free_bytes = free.len();
            match net::recv(socket, free, RecvFlags::empty()) {
                Ok((0, _)) => return self.fail(id, "eof", listener),
                Ok((length, _)) => {
                    let now_ns = now_ns();
                    if self.window.measures(now_ns) {
                        self.bytes_received += length as u64;
                        self.reads += 1;
                    }
                    if self.window.has_begun(now_ns) {
                        self.bytes_in_all += length as u64;
                    }
                    filled += length;
                    let taken = self.take(id, &scratch[..filled], now_ns, listener);
                    if self.conns[id].socket.is_none() {
                        return;
                    }
                    if taken > 0 {
                        scratch.copy_within(taken..filled, 0);
                        filled -= taken;
                    }
                    if length < free_bytes && !ended {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(id, &kind_of(error), listener),
            }
        }
        self.conns[id].partial.extend_from_slice(&scratch[..filled]);
    }

    /// Handles what is whole of `bytes` and returns how many of them that is.
    fn take(&mut self, id: usize, bytes: &[u8], now_ns: u64, listener: &mut impl Listener) -> usize {
        let mut taken = 0;
        if let Stage::Upgrading(key) = self.conns[id].stage {
            match answer(bytes, key) {
                Ok(None) if bytes.len() > HEAD_BYTES_MAX => self.fail(id, "bad_handshake", listener),
                Ok(None) => {}
                Ok(Some(head_bytes)) => {
                    taken = head_bytes;
                    match self.protocol {
                        Protocol::Native | Protocol::Plain => self.opened(id, now_ns, listener),
                        Protocol::Socketio => self.conns[id].stage = Stage::Greeting,
                    }
                }
                Err(kind) => self.fail(id, &kind, listener),
            }
        }
        while matches!(self.conns[id].stage, Stage::Greeting | Stage::Open | Stage::Closing) {
            match frame::parse(&bytes[taken..]) {
                Parsed::Whole(frame, length) => {
                    taken += length;
                    self.frame(id, &frame, now_ns, listener);
                }
                Parsed::Partial { frame_bytes } if frame_bytes > MESSAGE_BYTES_MAX => {
                    self.fail(id, "too_large", listener);
                }
                Parsed::Partial { .. } => break,
                Parsed::Broken(_) => self.fail(id, "bad_frame", listener),
            }
        }
        if self.is_open(id) {
            listener.read_done(self, id, now_ns);
        }
        taken
    }

    /// The handshake is complete.
    fn opened(&mut self, id: usize, now_ns: u64, listener: &mut impl Listener) {
        self.opening.under_way -= 1;
        self.open += 1;
        self.handshakes += 1;
        let conn = &mut self.conns[id];
        conn.stage = Stage::Open;
        self.handshake_latency.record(now_ns - conn.begun_ns);
        listener.opened(self, id, now_ns);
    }

    #[inline]
    fn frame(&mut self, id: usize, frame: &frame::Frame<'_>, now_ns: u64, listener: &mut impl Listener) {
        let fragments = &mut self.conns[id].fragments;
        match frame.opcode {
            Opcode::Text | Opcode::Binary if frame.fin && fragments.is_none() => {
                self.message(id, frame.payload, now_ns, listener);
            }
            Opcode::Text | Opcode::Binary if fragments.is_none() => *fragments = Some(frame.payload.to_vec()),
            Opcode::Continuation => match fragments.take() {
                Some(parts) if parts.len() + frame.payload.len() > MESSAGE_BYTES_MAX => {
                    self.fail(id, "too_large", listener);
                }
                Some(mut parts) => {
                    parts.extend_from_slice(frame.payload);
                    if frame.fin {
                        self.message(id, &parts, now_ns, listener);
                    } else {
                        *fragments = Some(parts);
                    }
                }
                None => self.fail(id, "bad_frame", listener),
            },
            Opcode::Text | Opcode::Binary => self.fail(id, "bad_frame", listener),
            Opcode::Ping => {
                self.pings += 1;
                self.send_frame(id, Opcode::Pong, frame.payload);
            }
            Opcode::Pong => {}
            Opcode::Close => {
                let code = frame.payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                if self.conns[id].stage != Stage::Closing {
                    self.send_frame(id, Opcode::Close, &frame.payload[..frame.payload.len().min(2)]);
                }
                // 1005 stands for a close frame without a code (RFC 6455, 7.1.5).
                self.fail(id, &format!("close_{}", code.unwrap_or(1005)), listener);
            }
        }
    }

    /// A whole message of the WebSocket.
    #[inline]
    fn message(&mut self, id: usize, message: &[u8], now_ns: u64, listener: &mut impl Listener) {
        match self.protocol {
            Protocol::Native | Protocol::Plain => listener.message(self, id, message, now_ns),
            Protocol::Socketio => self.packet(id, message, now_ns, listener),
        }
    }

    /// A packet of Engine.IO: its type, then what it carries. Binary ones, which have no type, are not used here.
    #[inline]
    fn packet(&mut self, id: usize, packet: &[u8], now_ns: u64, listener: &mut impl Listener) {
        let (kind, carried) = packet.split_first().map_or((0, packet), |(kind, carried)| (*kind, carried));
        match (kind, self.conns[id].stage) {
            (b'4', Stage::Open) => listener.message(self, id, carried, now_ns),
            // A close frame was sent, after which there is nothing to say.
            (_, Stage::Closing) => {}
            (b'2', _) => {
                self.pings += 1;
                self.send_frame(id, Opcode::Text, b"3");
            }
            (b'0', Stage::Greeting) if self.enters_namespace => self.enter(id),
            (b'0', Stage::Greeting) => self.opened(id, now_ns, listener),
            (b'4', Stage::Greeting) if carried.starts_with(b"0") => self.opened(id, now_ns, listener),
            (b'4', Stage::Greeting) if carried.starts_with(b"4") => self.fail(id, "connect_error", listener),
            (b'1', _) => self.fail(id, "eio_close", listener),
            // Nothing at all, which a server may say.
            (b'6', _) => {}
            _ => self.fail(id, "bad_packet", listener),
        }
    }

    /// Sends one frame, a rare one: those under measurement are built in a buffer that is kept.
    fn send_frame(&mut self, id: usize, opcode: Opcode, payload: &[u8]) {
        let mut out = Vec::new();
        self.masker.append_copy(&mut out, opcode, payload);
        self.send(id, &out);
    }

    /// The connection is over, and not by our choice unless it is `Closing`.
    fn fail(&mut self, id: usize, kind: &str, listener: &mut impl Listener) {
        match std::mem::replace(&mut self.conns[id], Conn::vacant()).stage {
            Stage::Vacant => return,
            Stage::Connecting | Stage::Upgrading(_) | Stage::Greeting => {
                self.opening.under_way -= 1;
                listener.failed(self, id, kind, false);
            }
            Stage::Open => {
                self.open -= 1;
                self.closes += 1;
                listener.failed(self, id, kind, true);
            }
            // The end that was asked for, however it came.
            Stage::Closing => {}
        }
        listener.closed(self, id);
    }
}

impl Opening {
    /// When the next of the queue may be opened, by the rate alone.
    fn next_due_ns(&self) -> u64 {
        if self.rate > 0.0 {
            self.since_ns + (self.since as f64 * SECOND_NS as f64 / self.rate) as u64
        } else {
            0
        }
    }
}

impl Conn {
    fn vacant() -> Self {
        Self {
            socket: None,
            stage: Stage::Vacant,
            begun_ns: 0,
            partial: Vec::new(),
            fragments: None,
            unsent: Vec::new(),
        }
    }

    fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Upgrading(_) | Stage::Greeting)
    }
}

/// Checks the answer to the upgrade: the length of its head in bytes, `None` while it is not whole, or the kind of failure.
fn answer(bytes: &[u8], key: [u8; 24]) -> Result<Option<usize>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("bad_handshake".to_owned()),
    };
    if response.code != Some(101) {
        return Err(format!("http_{}", response.code.unwrap_or(0)));
    }
    let has = |name: &str, value: &[u8]| {
        let mut named = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.any(|header| header.value.eq_ignore_ascii_case(value))
    };
    // The accept key is compared exactly; the two words are not case-sensitive.
    let accept = accept_key(key);
    let named =
        response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-accept"));
    let proven = named.is_some_and(|header| header.value == accept.as_bytes());
    if proven && has("upgrade", b"websocket") && has("connection", b"upgrade") {
        Ok(Some(head_bytes))
    } else {
        Err("bad_handshake".to_owned())
    }
}

/// What a server must answer to this key (RFC 6455, 4.2.2).
fn accept_key(key: [u8; 24]) -> String {
    let digest =
        Sha1::new().chain_update(key).chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    BASE64.encode(digest)
}

/// The name under which a failure of the kernel is counted.
fn kind_of(error: Errno) -> String {
    match error {
        Errno::CONNREFUSED => "refused".to_owned(),
        Errno::TIMEDOUT => "timeout".to_owned(),
        Errno::CONNRESET | Errno::PIPE => "reset".to_owned(),
        Errno::HOSTUNREACH | Errno::NETUNREACH => "unreachable".to_owned(),
        Errno::ADDRNOTAVAIL => "no_source_port".to_owned(),
        Errno::MFILE | Errno::NFILE => "no_descriptor".to_owned(),
        other => format!("os_{}", other.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, 1.3.
    const KEY: [u8; 24] = *b"dGhlIHNhbXBsZSBub25jZQ==";
    const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn an_answer_split_at_every_byte_is_awaited_until_it_is_whole() {
        for cut in 0..ANSWER.len() {
            assert_eq!(answer(&ANSWER.as_bytes()[..cut], KEY), Ok(None), "cut at {cut}");
        }
        let with_frame = [ANSWER.as_bytes(), &[0x81, 0]].concat();
        assert_eq!(answer(&with_frame, KEY), Ok(Some(ANSWER.len())));
    }

    #[test]
    fn an_answer_without_the_right_proof_is_refused() {
        fn check(answer_text: &str, kind: &str) {
            assert_eq!(answer(answer_text.as_bytes(), KEY), Err(kind.to_owned()), "{answer_text}");
        }
        check(&ANSWER.replace("s3pPLM", "S3pPLM"), "bad_handshake");
        check(&ANSWER.replace("Upgrade: WebSocket\r\n", ""), "bad_handshake");
        check(&ANSWER.replace("Connection: upgrade", "Connection: close"), "bad_handshake");
        check("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", "http_503");
        check("SSH-2.0-OpenSSH\r\n\r\n", "bad_handshake");
    }
}
