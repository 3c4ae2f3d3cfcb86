//! What may lie between a socket and its shard: the header of the PROXY protocol, then TLS. The shard sees neither.
//!
//! A socket whose bytes go through as they are has no [`Layer`]. Nor has an idle one a buffer: what was read is opened in the thread's
//! buffers, what is written is sealed there. Kept with a socket is only a record that has not come whole, and what of a sealed one the
//! kernel has refused, since a record cannot be made twice.

use super::tls::{CUT_BYTES_MAX, Opened, Session, Tls};
use crate::message::{ShardId, Slot};
use crate::shard::Shard;
use crate::shard::turn::Gathered;
use crate::stats::{ShardStats, Stats, TransportFault as Fault};
use crate::time::Time;
use crate::wire::http;
use crate::wire::proxy::{self, Preface};
use mio::net::TcpStream;
use rustls::HandshakeKind;
use std::io::{self, ErrorKind, Write as _};
use std::mem;
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;

/// What lies between one socket and its shard.
pub(super) enum Layer {
    /// A header of the PROXY protocol is awaited. What has come of it, less than [`proxy::PREFACE_BYTES_MAX`].
    Preface(Vec<u8>),
    /// TLS.
    Tls(Secured),
}

/// A socket with TLS.
pub(super) struct Secured {
    session: Session,
    /// A record that has not come whole, at most [`CUT_BYTES_MAX`] bytes; in the handshake perhaps some of them.
    cut: Vec<u8>,
    /// Records that have not been written: those of the handshake until the end of the turn, others while the kernel refuses them. At
    /// most [`UNSENT_BYTES_MAX`].
    unsent: Vec<u8>,
    /// True exactly when the kernel has refused them and not said since that it takes more.
    refused: bool,
    /// True when the stream is to be ended behind them.
    ending: bool,
}

/// Which layers there are.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// TLS, where it is spoken.
    pub tls: Option<Arc<Tls>>,
    /// True when each connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Bytes of records and headers that have not come whole, of one shard. Small ones are always kept.
    pub cut_bytes_max: usize,
}

/// A thread's part of all layers.
pub(super) struct Layers {
    rules: Rules,
    id: ShardId,
    stats: Arc<Stats>,
    /// What was opened, and what is sealed.
    plain: Vec<u8>,
    sealed: Vec<u8>,
    /// Bytes in the `cut` of all sockets.
    cut_bytes: usize,
    /// Handshakes that may still be answered in this turn.
    handshakes_left: u32,
    /// Sockets with something unsent that the kernel was not asked to take.
    unsent: Vec<Slot>,
    /// True when somebody has come who is no trusted proxy: it was said once.
    has_warned: bool,
}

/// Plain bytes that are sealed before the kernel is asked to take them. It may refuse as much, which then has to be kept.
const SEALED_BYTES_MAX: usize = 32 << 10;
/// Bytes of records that may wait to be written: what is sealed at once, and what the handshake adds.
const UNSENT_BYTES_MAX: usize = 2 * SEALED_BYTES_MAX;
/// Handshakes answered in one turn, two milliseconds of work: those who are connected do not wait longer for those who want to be.
const HANDSHAKES_MAX: u32 = 8;
/// What has not come whole is kept up to this many bytes, whatever the others have.
const SMALL_BYTES: usize = 4 << 10;

impl Layers {
    pub(super) fn new(rules: Rules, id: ShardId, stats: Arc<Stats>) -> Layers {
        Layers {
            rules,
            id,
            stats,
            plain: Vec::new(),
            sealed: Vec::new(),
            cut_bytes: 0,
            handshakes_left: HANDSHAKES_MAX,
            unsent: Vec::new(),
            has_warned: false,
        }
    }

    pub(super) fn begin_turn(&mut self) {
        self.handshakes_left = HANDSHAKES_MAX;
    }

    /// The layer of a socket that was just accepted under this slot; `None` when there is none. Whoever may not come in is hung up.
    pub(super) fn welcome(&mut self, slot: Slot, peer: IpAddr, shard: &mut Shard) -> Option<Box<Layer>> {
        if !self.rules.proxy_protocol {
            return self.secured(slot, shard);
        }
        if !shard.is_from_proxy(slot) {
            if !mem::replace(&mut self.has_warned, true) {
                tracing::warn!(
                    %peer,
                    shard = self.id,
                    "closed a connection that is from no trusted proxy, since limits.proxy_protocol is on; saying so once"
                );
            }
            self.fault(Fault::Untrusted);
            shard.hang_up(slot);
        }
        Some(Box::new(Layer::Preface(Vec::new())))
    }

    fn secured(&mut self, slot: Slot, shard: &mut Shard) -> Option<Box<Layer>> {
        match self.rules.tls.as_ref()?.session() {
            Ok(session) => Some(Box::new(Layer::Tls(Secured {
                session,
                cut: Vec::new(),
                unsent: Vec::new(),
                refused: false,
                ending: false,
            }))),
            Err(error) => {
                tracing::error!(%error, shard = self.id, "cannot speak TLS");
                shard.hang_up(slot);
                // Nothing comes through that.
                Some(Box::new(Layer::Preface(Vec::new())))
            }
        }
    }

    /// True when the layer may be read from in this turn: what it costs is bounded.
    pub(super) fn may_read(&self, layer: Option<&Layer>) -> bool {
        match layer {
            Some(Layer::Tls(secured)) => self.may_accept() || !secured.session.is_handshaking(),
            // A ClientHello may come with the header.
            Some(Layer::Preface(_)) => self.may_accept(),
            None => true,
        }
    }

    /// True when handshakes may still be answered in this turn. Those who have not been accepted wait in the kernel, where no time runs
    /// against them.
    pub(super) fn may_accept(&self) -> bool {
        self.handshakes_left > 0
    }

    /// Bytes have been read, behind what [`Layer::cut`] is. They are opened, and what was in them given to the shard.
    pub(super) fn receive(
        &mut self,
        layer: &mut Option<Box<Layer>>,
        stream: &TcpStream,
        slot: Slot,
        mut bytes: &mut [u8],
        shard: &mut Shard,
        now: Time,
    ) {
        if let Some(Layer::Preface(kept)) = layer.as_deref_mut() {
            if !shard.is_from_proxy(slot) {
                // It was hung up, and nothing that it says is listened to.
                return;
            }
            match proxy::parse(bytes) {
                Ok(Preface::Partial) => return self.keep_preface(kept, bytes),
                Ok(Preface::Whole { client, length }) => {
                    self.cut_bytes -= kept.len();
                    if let Some(client) = client {
                        shard.introduce(slot, client, now);
                    }
                    bytes = &mut bytes[length..];
                    *layer = self.secured(slot, shard);
                }
                Err(proxy::NoPreface) => {
                    self.fault(Fault::ProxyHeader);
                    return shard.hang_up(slot);
                }
            }
        }
        match layer.as_deref_mut() {
            None if bytes.is_empty() => {}
            None => shard.receive(slot, bytes, now),
            Some(Layer::Tls(secured)) => self.open(secured, stream, slot, bytes, shard, now),
            Some(Layer::Preface(_)) => {}
        }
    }

    fn keep_preface(&mut self, kept: &mut Vec<u8>, bytes: &[u8]) {
        self.cut_bytes += bytes.len() - kept.len();
        *kept = bytes.to_vec();
    }

    fn open(
        &mut self,
        secured: &mut Secured,
        stream: &TcpStream,
        slot: Slot,
        bytes: &mut [u8],
        shard: &mut Shard,
        now: Time,
    ) {
        // No record of TLS begins with a letter, and each request of HTTP does.
        if secured.session.is_handshaking() && bytes.first().is_some_and(u8::is_ascii_uppercase) {
            let mut answer = Vec::new();
            let body = "{\"error\":\"not_tls\",\"message\":\"this port speaks TLS: https:// or wss://\"}\n";
            http::write_json(&mut answer, (400, "Bad Request"), "", body, false, false);
            return self.give_up(secured, stream, slot, Fault::NotTls, &answer, shard);
        }
        self.plain.clear();
        self.sealed.clear();
        let opened = secured.session.open(bytes, &mut self.plain, &mut self.sealed);
        if !self.plain.is_empty() {
            // All at once, since the shard may give the socket away with what it has not used.
            shard.receive(slot, &mut self.plain, now);
        }
        let Opened { used, shook, answered, ended } = match opened {
            Ok(opened) => opened,
            Err(fault) => {
                let alert = mem::take(&mut self.sealed);
                self.give_up(secured, stream, slot, fault, &alert, shard);
                self.sealed = alert;
                return;
            }
        };
        if !self.sealed.is_empty() {
            // At the end of the turn, together with what the shard has to say.
            secured.unsent.extend_from_slice(&self.sealed);
            if secured.refused {
                self.stats().outbox_bytes.add(self.sealed.len() as u64);
            } else {
                self.unsent.push(slot);
            }
        }
        let cut = bytes.len() - used;
        self.cut_bytes = self.cut_bytes - secured.cut.len() + cut;
        secured.cut = bytes[used..].to_vec();
        let is_too_much =
            cut > CUT_BYTES_MAX || (cut > SMALL_BYTES && self.cut_bytes > self.rules.cut_bytes_max);
        // Or it asks for answers, of new keys, and reads none.
        if is_too_much || secured.unsent.len() > UNSENT_BYTES_MAX {
            self.fault(Fault::Malformed);
            shard.hang_up(slot);
        }
        self.handshakes_left = self.handshakes_left.saturating_sub(u32::from(answered));
        if let Some(kind) = shook {
            let stats = self.stats();
            stats.tls_handshakes.add(1);
            stats.tls_resumptions.add(u64::from(kind == HandshakeKind::Resumed));
        }
        if ended {
            shard.hang_up(slot);
        }
    }

    /// The session has failed. The peer is told why, if the kernel takes that at once.
    fn give_up(
        &mut self,
        secured: &mut Secured,
        mut stream: &TcpStream,
        slot: Slot,
        fault: Fault,
        last: &[u8],
        shard: &mut Shard,
    ) {
        self.fault(fault);
        secured.session = Session::Over;
        if secured.unsent.is_empty() && !last.is_empty() {
            // Who does not take it does not get it.
            stream.write_all(last).ok();
        }
        shard.hang_up(slot);
    }

    /// Writes what the shard has for this socket, until the kernel refuses some of it. Answers how many bytes that were, and whether the
    /// kernel has to be asked to tell when it takes more.
    pub(super) fn flush(
        &mut self,
        layer: &mut Layer,
        stream: &TcpStream,
        slot: Slot,
        shard: &mut Shard,
    ) -> (usize, bool) {
        let secured = match layer {
            Layer::Tls(secured) if secured.session.is_open() => secured,
            // It is turned away before anything was agreed on in which it could be told, or has failed.
            _ => {
                shard.hang_up(slot);
                return (0, false);
            }
        };
        let mut written = 0;
        loop {
            let (offered, result) = match shard.gather(slot) {
                Gathered::Nothing => break,
                Gathered::One(bytes) => (bytes.len(), self.send(secured, stream, &[bytes])),
                Gathered::Many(slices) => {
                    let slices: Vec<&[u8]> = slices.iter().map(|slice| &**slice).collect();
                    (slices.iter().map(|slice| slice.len()).sum(), self.send(secured, stream, &slices))
                }
            };
            let Ok(count) = result else {
                shard.hang_up(slot);
                break;
            };
            written += count;
            if !shard.sent(slot, offered, count) {
                break;
            }
        }
        (written, secured.refused)
    }

    /// Seals and writes, piece by piece. Answers of how many bytes the records have been written or are kept to be written first.
    fn send(&mut self, secured: &mut Secured, stream: &TcpStream, slices: &[&[u8]]) -> io::Result<usize> {
        if secured.refused {
            return Ok(0);
        }
        if let [bytes] = slices {
            let mut count = 0;
            for piece in bytes.chunks(SEALED_BYTES_MAX) {
                count += piece.len();
                if !self.send_piece(secured, stream, piece)? {
                    break;
                }
            }
            return Ok(count);
        }
        let mut piece = mem::take(&mut self.plain);
        let result = self.send_gathered(secured, stream, slices, &mut piece);
        self.plain = piece;
        result
    }

    /// The same for several pieces of memory, which `piece` brings together so that short frames share a record.
    fn send_gathered(
        &mut self,
        secured: &mut Secured,
        stream: &TcpStream,
        slices: &[&[u8]],
        piece: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let mut count = 0;
        piece.clear();
        for slice in slices {
            let mut rest = *slice;
            while !rest.is_empty() {
                let taken = rest.len().min(SEALED_BYTES_MAX - piece.len());
                piece.extend_from_slice(&rest[..taken]);
                rest = &rest[taken..];
                if piece.len() == SEALED_BYTES_MAX {
                    count += piece.len();
                    if !self.send_piece(secured, stream, piece)? {
                        return Ok(count);
                    }
                    piece.clear();
                }
            }
        }
        if !piece.is_empty() {
            count += piece.len();
            self.send_piece(secured, stream, piece)?;
        }
        Ok(count)
    }

    /// Seals these bytes and writes them behind what is unsent. False when the kernel has refused some.
    fn send_piece(&mut self, secured: &mut Secured, stream: &TcpStream, piece: &[u8]) -> io::Result<bool> {
        self.sealed.clear();
        self.sealed.append(&mut secured.unsent);
        let sealed = secured.session.seal(piece, &mut secured.cut, &mut self.sealed);
        sealed.map_err(|fault| {
            self.fault(fault);
            secured.session = Session::Over;
            io::Error::from(ErrorKind::InvalidData)
        })?;
        self.write(secured, stream)
    }

    /// Writes what is sealed, and keeps what the kernel refuses. True when that is nothing.
    fn write(&mut self, secured: &mut Secured, mut stream: &TcpStream) -> io::Result<bool> {
        let mut written = 0;
        while written < self.sealed.len() {
            match stream.write(&self.sealed[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    secured.unsent = self.sealed[written..].to_vec();
                    secured.refused = true;
                    // It waits like what is in an outbox, and counts like it.
                    self.stats().outbox_bytes.add(secured.unsent.len() as u64);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        secured.unsent = Vec::new();
        if secured.ending {
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(true)
    }

    /// The kernel takes bytes again. True when the shard may go on.
    pub(super) fn writable(&mut self, layer: &mut Layer, stream: &TcpStream) -> io::Result<bool> {
        let Layer::Tls(secured) = layer else { return Ok(true) };
        self.send_unsent(secured, stream)
    }

    fn send_unsent(&mut self, secured: &mut Secured, stream: &TcpStream) -> io::Result<bool> {
        self.forget_refused(secured);
        if secured.unsent.is_empty() {
            return Ok(true);
        }
        self.sealed.clear();
        self.sealed.append(&mut secured.unsent);
        self.write(secured, stream)
    }

    fn forget_refused(&mut self, secured: &mut Secured) {
        if mem::take(&mut secured.refused) {
            self.stats().outbox_bytes.sub(secured.unsent.len() as u64);
        }
    }

    /// The next socket that may have something to send which no shard has asked for: answers of handshakes.
    pub(super) fn next_unsent(&mut self) -> Option<Slot> {
        self.unsent.pop()
    }

    /// Sends that. True when the kernel has to be asked to tell when it takes more.
    pub(super) fn flush_unsent(&mut self, layer: &mut Layer, stream: &TcpStream) -> io::Result<bool> {
        match layer {
            Layer::Tls(secured) if !secured.refused => Ok(!self.send_unsent(secured, stream)?),
            _ => Ok(false),
        }
    }

    /// Ends the stream, behind what is unsent. True when the kernel has to be asked to tell when it takes more.
    pub(super) fn end_stream(&mut self, layer: &mut Layer, stream: &TcpStream) -> io::Result<bool> {
        let Layer::Tls(secured) = layer else {
            stream.shutdown(Shutdown::Write)?;
            return Ok(false);
        };
        secured.ending = true;
        let Secured { session, cut, unsent, refused, .. } = secured;
        let waiting = unsent.len();
        // A session that has failed, or not begun, ends without.
        if session.is_open() {
            session.seal_end(cut, unsent).ok();
        }
        if *refused {
            self.stats().outbox_bytes.add((unsent.len() - waiting) as u64);
            return Ok(true);
        }
        self.sealed.clear();
        self.sealed.append(unsent);
        Ok(!self.write(secured, stream)?)
    }

    /// The socket is about to be closed. The peer is told in the words of TLS, unless it has ended the stream itself.
    pub(super) fn close(&mut self, layer: &mut Layer, mut stream: &TcpStream, has_ended: bool) {
        self.give_away(layer);
        let Layer::Tls(secured) = layer else { return };
        let Secured { session, cut, unsent, ending, .. } = secured;
        if session.is_handshaking() {
            self.fault(Fault::Unfinished);
        } else if session.is_open() && !has_ended {
            if !*ending {
                session.seal_end(cut, unsent).ok();
            }
            if !unsent.is_empty() {
                // Who does not take it does not get it.
                stream.write_all(unsent).ok();
            }
        }
    }

    /// The socket leaves this thread.
    pub(super) fn give_away(&mut self, layer: &mut Layer) {
        self.cut_bytes -= layer.cut().len();
        if let Layer::Tls(secured) = layer {
            self.forget_refused(secured);
        }
    }

    /// Whose connection it is, where the socket's own address does not tell.
    pub(super) fn client(&self, slot: Slot, shard: &Shard) -> Option<IpAddr> {
        self.rules.proxy_protocol.then(|| shard.client_address(slot))?
    }

    /// A layer has come with a socket from another thread.
    pub(super) fn adopt(&mut self, slot: Slot, layer: &Layer) {
        self.cut_bytes += layer.cut().len();
        if let Layer::Tls(secured) = layer
            && !secured.unsent.is_empty()
        {
            self.unsent.push(slot);
        }
    }

    fn fault(&self, fault: Fault) {
        tracing::debug!(
            shard = self.id,
            reason = Fault::LABELS[fault as usize],
            "a connection has no transport"
        );
        self.stats().transport_faults[fault as usize].add(1);
    }

    fn stats(&self) -> &ShardStats {
        &self.stats.shards[usize::from(self.id)]
    }
}

impl Layer {
    /// What has come and not been used. It belongs in front of what is read next.
    pub(super) fn cut(&self) -> &[u8] {
        match self {
            Layer::Preface(kept) => kept,
            Layer::Tls(secured) => &secured.cut,
        }
    }
}
