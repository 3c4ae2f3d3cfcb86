//! The reactor on epoll, edge-triggered, through mio.
//!
//! A socket is registered once, to be told when it can be read; that it can be written is asked for only when a write was refused,
//! since otherwise each new connection would wake us just to say that it can be. A read that does not fill the buffer has
//! drained the socket, as `epoll(7)` says of stream sockets; what comes later is a new edge. When the end of the stream is
//! announced together with data, the socket is read once more in the next turn, since no further edge will come for it.

use super::Parts;
use super::layer::{Layer, Layers};
use super::neighbours::Neighbours;
use super::sys;
use crate::bus::Bus;
use crate::bus::mailbox::{Handed, Mailbox};
use crate::message::{ProcessTag, ShardId, Slot};
use crate::shard::turn::Gathered;
use crate::shard::{Farewell, Owner, Shard};
use crate::stats::Stats;
use crate::time::{Clock, Time};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Bytes read at once. One buffer for the thread: this is what a thousand idle connections do not have.
const SCRATCH_BYTES: usize = 64 << 10;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// Bytes written in one turn, and one connection's more: some tens of milliseconds, for which others have to wait.
const WRITTEN_BYTES_MAX: usize = 32 << 20;
/// Sockets accepted in one turn.
const ACCEPTS_MAX: usize = 64;
/// Sockets accepted in one turn of a drain.
const ACCEPTS_LAST_MAX: usize = 1024;
/// How long a process that drains accepts for others on its port, in milliseconds. A client that connected and has said nothing yet is
/// shown by the kernel after a second, when it has asked once more whether it is there.
const LAST_CALL_MS: u64 = 1_500;
/// The end of that time, in which nobody new may begin to connect, so that the listener closes on nobody. Who tries sends its SYN again
/// after a second, and comes to another process.
const LAST_CALL_QUIET_MS: u64 = 250;
/// How long accepting rests when there is no place, or the kernel has no descriptor or memory for it, in milliseconds.
const ACCEPT_REST_MS: u32 = 50;

const BELL: Token = Token(usize::MAX);
/// The token of the first listener; those of the others follow. Tokens of connections are slots, and these are 32 bits.
const LISTENERS: usize = 1 << 40;

pub(super) struct Epoll {
    poll: Poll,
    events: Events,
    /// Empty from the end of the last call on.
    listeners: Vec<TcpListener>,
    /// Which of them was asked last for a connection.
    last_listener: usize,
    /// Somebody else keeps them open, for the next process: what waits in their queues is left there.
    are_kept: bool,
    /// By slot.
    sockets: Vec<Option<Socket>>,
    between: Between,
    scratch: Box<[u8]>,
    shard: Shard,
    id: ShardId,
    bus: Arc<Bus>,
    stats: Arc<Stats>,
    clock: Clock,
    neighbours: Option<Neighbours>,
    layers: Layers,
    /// Sockets that may have something to read, in the order in which they became so; each at most once. Who was served and may have
    /// more goes to the end, and who could not be served keeps its place: one that sends without end delays the others by a
    /// read each.
    unread: VecDeque<Slot>,
    /// Sockets that other shards have given away.
    handed: Vec<Handed>,
    /// True when the kernel may have had more events than it could tell of at once.
    is_crowded: bool,
    accepting: Accepting,
    /// Set while the shard drains and still accepts.
    last_call: Option<LastCall>,
    /// True when the last accept failed for want of something: it was said once.
    accept_refused: bool,
    /// After how many milliseconds the shard wants a turn.
    ahead_ms: Option<u32>,
}

struct Socket {
    stream: TcpStream,
    /// True exactly when it is in `unread`.
    unread: bool,
    /// True when the kernel has announced the end of the stream, or a failure, for which no further edge will come.
    ending: bool,
    /// True exactly when the kernel tells us that it can be written.
    writer_armed: bool,
}

// A debug build of mio keeps more.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Option<Socket>>() == 8);

impl Socket {
    /// Asks to be told when it can be written. False when that cannot be had.
    fn arm_writer(&mut self, registry: &Registry, slot: Slot) -> bool {
        let both = Interest::READABLE | Interest::WRITABLE;
        if !self.writer_armed
            && let Err(error) = registry.reregister(&mut self.stream, Token(slot as usize), both)
        {
            tracing::warn!(%error, "cannot watch a slow connection");
            return false;
        }
        self.writer_armed = true;
        true
    }
}

/// What lies between sockets and the shard, where bytes do not go through as they are. By slot, and as long as the highest one that ever
/// had such a layer: connections without pay nothing for it.
#[derive(Default)]
struct Between {
    layers: Vec<Option<Box<Layer>>>,
    /// How many there are.
    count: usize,
}

impl Between {
    /// The layer of the socket under `slot`, if it has one.
    fn of(&mut self, slot: Slot) -> Option<&mut Layer> {
        self.layers.get_mut(slot as usize)?.as_deref_mut()
    }

    fn put(&mut self, slot: Slot, layer: Box<Layer>) {
        let at = slot as usize;
        if self.layers.len() <= at {
            self.layers.resize_with(at + 1, || None);
        }
        self.count += usize::from(self.layers[at].replace(layer).is_none());
    }

    fn take(&mut self, slot: Slot) -> Option<Box<Layer>> {
        let layer = self.layers.get_mut(slot as usize)?.take();
        self.count -= usize::from(layer.is_some());
        layer
    }
}

/// Whether there may be connections to accept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepting {
    /// None; an edge will tell.
    Idle,
    /// Perhaps, and there is a place for them.
    Ready,
    /// Perhaps, but they have to wait until this time.
    Resting(Time),
}

/// The time between the order to drain and the end of the listener. Closing that is how the kernel is told to send new clients elsewhere.
struct LastCall {
    until: Time,
    /// The processes that get new clients until then.
    others: Vec<ProcessTag>,
    /// How many have got one.
    given: usize,
    /// Nobody new can begin to connect any more.
    is_quiet: bool,
}

impl Epoll {
    pub(super) fn new(parts: Parts) -> io::Result<Epoll> {
        let Parts { shard, id, listeners, are_kept, bus, stats, clock, neighbours, layers } = parts;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), BELL)?;
        bus.mailbox(id).hang_bell(Box::new(move || {
            if let Err(error) = waker.wake() {
                tracing::error!(%error, shard = id, "a shard could not be woken");
            }
        }));
        let mut listeners: Vec<TcpListener> = listeners.into_iter().map(TcpListener::from_std).collect();
        for (at, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener, Token(LISTENERS + at), Interest::READABLE)?;
        }
        Ok(Epoll {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            listeners,
            last_listener: 0,
            are_kept,
            // Grown step by step, it would leave small blocks behind.
            sockets: Vec::with_capacity(shard.connections_reserved()),
            between: Between::default(),
            // Not zero, so that its pages are there from the start and the first clients do not seem to cost more than later ones.
            scratch: vec![0xff; SCRATCH_BYTES].into_boxed_slice(),
            shard,
            id,
            bus,
            layers: Layers::new(layers, id, stats.clone()),
            stats,
            clock,
            neighbours,
            unread: VecDeque::new(),
            handed: Vec::new(),
            is_crowded: false,
            accepting: Accepting::Ready,
            last_call: None,
            accept_refused: false,
            ahead_ms: Some(0),
        })
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        while !(self.shard.is_drained() && self.listeners.is_empty()) {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
        let now = self.clock.now();
        self.shard.begin_turn(now);
        self.layers.begin_turn();
        self.read_all(now);
        self.adopt_all(now);
        self.shard.deliver(now);
        self.shard.advance(now);
        self.accept_all(now);
        self.bus.ring(self.shard.take_bells());
        self.flush();
        self.see_off(now);
        let end = self.clock.now();
        self.ahead_ms = self.shard.end_turn(end);
        let stats = &self.stats.shards[usize::from(self.id)];
        stats.turns.add(1);
        stats.layers.set(self.between.count as u64);
        stats.turn_duration.record(now, end);
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        let resting_ms = match self.accepting {
            Accepting::Idle => None,
            Accepting::Ready => Some(0),
            Accepting::Resting(_) => Some(ACCEPT_REST_MS),
        };
        let mut ahead_ms = self.ahead_ms.into_iter().chain(resting_ms).min();
        let mut handed = std::mem::take(&mut self.handed);
        if !self.unread.is_empty()
            || self.shard.has_unflushed()
            || self.shard.has_mail()
            || !self.mailbox().fall_asleep()
        {
            ahead_ms = Some(0);
        }
        // Before the events, so that what came before these sockets was given away is among those.
        self.mailbox().collect_handed(&mut handed);
        if !handed.is_empty() {
            ahead_ms = Some(0);
        }
        self.handed = handed;
        let timeout = ahead_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let result = self.poll.poll(&mut self.events, timeout);
        self.mailbox().wake_up();
        match result {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            result => result,
        }
    }

    fn read_all(&mut self, now: Time) {
        self.is_crowded = self.events.iter().count() == EVENTS_MAX;
        for event in &self.events {
            let slot = match event.token() {
                BELL => continue,
                Token(LISTENERS..) => {
                    if self.accepting == Accepting::Idle {
                        self.accepting = Accepting::Ready;
                    }
                    continue;
                }
                Token(slot) => slot as Slot,
            };
            let Some(Some(socket)) = self.sockets.get_mut(slot as usize) else { continue };
            if event.is_writable() {
                match self.between.of(slot) {
                    None => self.shard.writable(slot),
                    Some(layer) => match self.layers.writable(layer, &socket.stream) {
                        Ok(true) => self.shard.writable(slot),
                        Ok(false) => {}
                        Err(_) => self.shard.hang_up(slot),
                    },
                }
            }
            let ending = event.is_read_closed() || event.is_error();
            socket.ending |= ending;
            if (event.is_readable() || ending) && !socket.unread {
                socket.unread = true;
                self.unread.push_back(slot);
            }
        }
        for _ in 0..self.unread.len() {
            if self.shard.is_full() {
                break;
            }
            let Some(slot) = self.unread.pop_front() else { break };
            if !self.layers.may_read(self.between.of(slot).as_deref()) {
                self.unread.push_back(slot);
                continue;
            }
            self.read(slot, now);
        }
    }

    /// One read. A socket that may have more to read goes to the end of the queue.
    fn read(&mut self, slot: Slot, now: Time) {
        let Some(Some(socket)) = self.sockets.get_mut(slot as usize) else { return };
        socket.unread = false;
        let mut layer = self.between.take(slot);
        let cut = layer.as_ref().map_or(0, |layer| {
            let cut = layer.cut();
            self.scratch[..cut.len()].copy_from_slice(cut);
            cut.len()
        });
        let more = match socket.stream.read(&mut self.scratch[cut..]) {
            Ok(0) => {
                self.shard.hang_up(slot);
                false
            }
            Ok(count) => {
                let bytes = &mut self.scratch[..cut + count];
                match &mut layer {
                    None => self.shard.receive(slot, bytes, now),
                    layer => {
                        self.layers.receive(layer, &socket.stream, slot, bytes, &mut self.shard, now);
                    }
                }
                socket.ending || cut + count == self.scratch.len()
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(_) => {
                self.shard.hang_up(slot);
                false
            }
        };
        if more {
            socket.unread = true;
            self.unread.push_back(slot);
        }
        if let Some(layer) = layer {
            self.between.put(slot, layer);
        }
    }

    fn accept_all(&mut self, now: Time) {
        if self.shard.is_draining() {
            self.accepting = Accepting::Idle;
            self.accept_the_last(now);
        }
        if let Accepting::Resting(until) = self.accepting
            && now >= until
        {
            self.accepting = Accepting::Ready;
        }
        let mut budget = ACCEPTS_MAX;
        while self.accepting == Accepting::Ready
            && budget > 0
            && self.layers.may_accept()
            && !self.shard.is_full()
        {
            if !self.shard.may_accept(now) {
                self.accepting = Accepting::Resting(now.plus_ms(ACCEPT_REST_MS.into()));
                return;
            }
            budget -= 1;
            match self.next_connection() {
                Ok((stream, peer)) => {
                    self.accept_refused = false;
                    self.welcome(stream, peer.ip(), now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.accepting = Accepting::Idle,
                // Of these the kernel says nothing about the listener: the one connection was lost.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_refused, true) {
                        tracing::warn!(%error, shard = self.id, "cannot accept; trying again until it works");
                    }
                    self.accepting = Accepting::Resting(now.plus_ms(ACCEPT_REST_MS.into()));
                }
            }
        }
    }

    /// The next connection that waits, of each listener in turn.
    fn next_connection(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        for _ in 0..self.listeners.len() {
            self.last_listener = (self.last_listener + 1) % self.listeners.len();
            match self.listeners[self.last_listener].accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// The shard drains: closing the listeners would reset those that wait in their queues, or are about to. Where the listeners are kept open
    /// for the next process, they wait for that. Else they go to other processes on the port; where there are none, who is there is
    /// told that the server shuts down.
    fn accept_the_last(&mut self, now: Time) {
        if self.listeners.is_empty() {
            return;
        }
        if self.are_kept {
            return self.close_listeners();
        }
        let mut last_call = self.last_call.take().unwrap_or_else(|| {
            let others = self.neighbours.iter().flat_map(Neighbours::others).collect::<Vec<ProcessTag>>();
            // What has not sent its request yet would not be seen, and reset.
            self.listeners.iter().for_each(|listener| sys::defer_accept(listener, 0));
            let time_ms = if others.is_empty() { 0 } else { LAST_CALL_MS };
            LastCall { until: now.plus_ms(time_ms), others, given: 0, is_quiet: false }
        });
        if !last_call.is_quiet && now.plus_ms(LAST_CALL_QUIET_MS) >= last_call.until {
            last_call.is_quiet = true;
            if !last_call.others.is_empty() {
                // However late this turn comes.
                last_call.until = now.plus_ms(LAST_CALL_QUIET_MS);
            }
            for listener in &self.listeners {
                if let Err(error) = sys::refuse_new(listener) {
                    tracing::debug!(%error, shard = self.id, "clients that connect as the listener closes may be reset");
                }
            }
        }
        for _ in 0..ACCEPTS_LAST_MAX {
            match self.next_connection() {
                Ok((stream, peer)) => {
                    if !self.give_new(&mut last_call, &stream) {
                        self.welcome(stream, peer.ip(), now);
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                // There is nobody left, or no descriptor to answer them with.
                Err(_) => break,
            }
        }
        if now < last_call.until {
            self.last_call = Some(last_call);
        } else {
            self.close_listeners();
        }
    }

    fn close_listeners(&mut self) {
        for mut listener in self.listeners.drain(..) {
            // As long as others have it open, the kernel would go on to tell of it.
            if let Err(error) = self.poll.registry().deregister(&mut listener) {
                tracing::debug!(%error, shard = self.id, "a listener is still watched");
            }
        }
    }

    /// Gives a new client to the process whose turn it is, or to another. False when none takes it.
    fn give_new(&self, last_call: &mut LastCall, stream: &TcpStream) -> bool {
        let Some(neighbours) = &self.neighbours else { return false };
        let LastCall { others, given, .. } = last_call;
        let turn = *given % others.len().max(1);
        let is_given = others[turn..].iter().chain(&others[..turn]).any(|tag| {
            let result = neighbours.give_new(*tag, stream.as_fd());
            result.is_ok()
        });
        *given += usize::from(is_given);
        is_given
    }

    fn welcome(&mut self, stream: TcpStream, peer: IpAddr, now: Time) {
        let slot = self.shard.accept(peer, now);
        let layer = self.layers.welcome(slot, peer, &mut self.shard);
        self.place(slot, stream, layer);
        // In a storm the request is there by now, and the answer leaves with this turn. Watched only after that, so that the kernel
        // does not report what was read already; what has come in between it reports at once.
        self.read(slot, now);
        self.watch(slot);
    }

    /// Keeps a socket under its slot.
    fn place(&mut self, slot: Slot, stream: TcpStream, layer: Option<Box<Layer>>) {
        let at = slot as usize;
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        self.sockets[at] = Some(Socket { stream, unread: false, ending: false, writer_armed: false });
        if let Some(layer) = layer {
            self.between.put(slot, layer);
        }
    }

    /// Asks to be told when a socket can be read.
    fn watch(&mut self, slot: Slot) {
        let at = slot as usize;
        if let Some(Some(socket)) = self.sockets.get_mut(at)
            && let Err(error) =
                self.poll.registry().register(&mut socket.stream, Token(at), Interest::READABLE)
        {
            tracing::warn!(%error, shard = self.id, "cannot watch a new connection");
            self.shard.hang_up(slot);
        }
    }

    fn flush(&mut self) {
        let mut written = 0;
        while written < WRITTEN_BYTES_MAX
            && let Some(slot) = self.shard.next_dirty()
        {
            let Some(Some(socket)) = self.sockets.get_mut(slot as usize) else { continue };
            if let Some(layer) = self.between.of(slot) {
                let (count, refused) = self.layers.flush(layer, &socket.stream, slot, &mut self.shard);
                written += count;
                if refused && !socket.arm_writer(self.poll.registry(), slot) {
                    self.shard.hang_up(slot);
                }
                continue;
            }
            loop {
                let stream = &mut socket.stream;
                let (offered, result) = match self.shard.gather(slot) {
                    Gathered::Nothing => break,
                    Gathered::One(bytes) => (bytes.len(), stream.write(bytes)),
                    Gathered::Many(slices) => {
                        (slices.iter().map(|slice| slice.len()).sum(), stream.write_vectored(&slices))
                    }
                };
                let count = match result {
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(_) => {
                        self.shard.hang_up(slot);
                        break;
                    }
                };
                written += count;
                let more = self.shard.sent(slot, offered, count);
                if count < offered && !socket.arm_writer(self.poll.registry(), slot) {
                    self.shard.hang_up(slot);
                }
                if !more {
                    break;
                }
            }
        }
        while let Some(slot) = self.layers.next_unsent() {
            let Some(Some(socket)) = self.sockets.get_mut(slot as usize) else { continue };
            let Some(layer) = self.between.of(slot) else { continue };
            let is_well = match self.layers.flush_unsent(layer, &socket.stream) {
                Ok(refused) => !refused || socket.arm_writer(self.poll.registry(), slot),
                Err(_) => false,
            };
            if !is_well {
                self.shard.hang_up(slot);
            }
        }
    }

    fn see_off(&mut self, now: Time) {
        while let Some(farewell) = self.shard.next_farewell() {
            match farewell {
                Farewell::EndStream(slot) => {
                    let Some(Some(socket)) = self.sockets.get_mut(slot as usize) else { continue };
                    let is_well = match self.between.of(slot) {
                        None => socket.stream.shutdown(Shutdown::Write).is_ok(),
                        Some(layer) => match self.layers.end_stream(layer, &socket.stream) {
                            Ok(refused) => !refused || socket.arm_writer(self.poll.registry(), slot),
                            Err(_) => false,
                        },
                    };
                    if !is_well {
                        // There is nobody left to end it for.
                        self.shard.hang_up(slot);
                    }
                }
                Farewell::Close(slot) => {
                    // Closing a descriptor takes it out of epoll. A session that is polled has none.
                    if let Some(Some(Socket { stream, ending, .. })) =
                        self.sockets.get_mut(slot as usize).map(Option::take)
                        && let Some(mut layer) = self.between.take(slot)
                    {
                        self.layers.close(&mut layer, &stream, ending);
                    }
                    self.shard.release(slot);
                }
                Farewell::HandOver { slot, owner: Owner::Shard(shard), bytes } => {
                    let client = self.layers.client(slot, &self.shard);
                    if let Some(Socket { stream, .. }) = self.take_out(slot) {
                        let mut layer = self.between.take(slot);
                        if let Some(layer) = &mut layer {
                            self.layers.give_away(layer);
                        }
                        let layer = layer.map(|layer| -> Box<dyn Any + Send> { layer });
                        let (socket, bytes) = (stream.into(), bytes.into());
                        let handed = Handed { socket, client, bytes, layer, is_new: false };
                        self.bus.mailbox(shard).hand(handed);
                    }
                    self.shard.release(slot);
                }
                Farewell::HandOver { slot, owner: Owner::Process { tag, shard }, bytes } => {
                    match self.give(slot, tag, shard, &bytes) {
                        Ok(()) => {
                            // The kernel keeps telling of a socket that another process has, unless told not to.
                            drop(self.take_out(slot));
                            self.shard.release(slot);
                        }
                        Err(error) => {
                            tracing::debug!(%error, shard = self.id, tag, "another process did not take a socket");
                            self.shard.stay(slot, &bytes, now);
                        }
                    }
                }
            }
        }
    }

    /// Gives a socket to another process as well, unless this one knows more of it than can be given.
    fn give(&mut self, slot: Slot, tag: ProcessTag, shard: ShardId, bytes: &[u8]) -> io::Result<()> {
        let (Some(neighbours), Some(Some(socket))) = (&self.neighbours, self.sockets.get(slot as usize))
        else {
            return Err(ErrorKind::NotFound.into());
        };
        if self.between.of(slot).is_some() || self.layers.client(slot, &self.shard).is_some() {
            return Err(ErrorKind::Unsupported.into());
        }
        neighbours.give(tag, shard, socket.stream.as_fd(), bytes)
    }

    /// Takes a socket out of what is watched here.
    fn take_out(&mut self, slot: Slot) -> Option<Socket> {
        let mut socket = self.sockets.get_mut(slot as usize).and_then(Option::take)?;
        if let Err(error) = self.poll.registry().deregister(&mut socket.stream) {
            tracing::debug!(%error, shard = self.id, "a socket that is given away was not watched");
        }
        Some(socket)
    }

    /// Takes the sockets that other shards, and other processes, have given away before this turn's events were asked for: what had come to
    /// our own sockets by then has been read, and goes first.
    fn adopt_all(&mut self, now: Time) {
        if self.shard.is_full() || self.is_crowded {
            return;
        }
        for Handed { socket, client, mut bytes, layer, is_new } in std::mem::take(&mut self.handed) {
            let stream = TcpStream::from_std(socket.into());
            let Some(client) = client.or_else(|| Some(stream.peer_addr().ok()?.ip())) else { continue };
            // All reactors of a process are of one kind.
            let mut layer = layer.and_then(|layer| layer.downcast::<Layer>().ok());
            let slot = self.shard.adopt(client, now);
            if let Some(layer) = &layer {
                self.layers.adopt(slot, layer);
            } else if is_new {
                layer = self.layers.welcome(slot, client, &mut self.shard);
            }
            self.place(slot, stream, layer);
            if !is_new {
                self.shard.receive(slot, &mut bytes, now);
            }
            self.watch(slot);
        }
    }

    fn mailbox(&self) -> &Mailbox {
        self.bus.mailbox(self.id)
    }
}
