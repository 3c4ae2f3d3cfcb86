//! Processes that share a port: a socket whose request is for a session of another process is given to that one.
//!
//! Each process has an abstract Unix socket (`unix(7)`) named `throng/PORT/TAG`, where the tag is what the ids of its sessions say. A socket
//! is given in one message on a connection of its own: a byte for the version, the shard's number, what was read, and the descriptor
//! beside these. Anybody on the machine can connect to such a name, or take one: so both sides look whose the other is, which the kernel
//! says. Nobody waits for anybody: who gives either leaves the message with the kernel at once or keeps the socket.

use super::sys;
use crate::bus::Bus;
use crate::bus::mailbox::Handed;
use crate::message::{ProcessTag, ShardId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::Poll;

/// The first byte of a message. A process that does not know it closes the connection, and the socket is lost: so it changes
/// only with what follows.
const VERSION: u8 = 1;
/// Stands for a shard when any of them may have the socket: of a client that has not asked for anything yet.
const ANY: ShardId = ShardId::MAX;
/// The longest message, in bytes: two bytes, the longest head, and a read. `net.core.wmem_default` is more.
const MESSAGE_BYTES_MAX: usize = 192 << 10;
/// Messages that may wait in the kernel, as far as `net.core.somaxconn` allows. Who finds no place keeps its socket.
const BACKLOG: i32 = 4096;
/// Connections that have said nothing yet. When there are more, the oldest is closed.
const CALLERS_MAX: usize = 64;
/// Sockets that may wait for their shards. When there are more, the others wait in the kernel.
const HANDED_MAX: usize = 1024;
/// How long taking rests when there is no place for more, or no descriptor.
const REST: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Attempts to find one of 65,535 tags that nobody has.
const ATTEMPTS_MAX: usize = 16;

/// The other processes on the port, as those see them who have something to give.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    port: u16,
    tag: ProcessTag,
}

/// Where sockets come in that other processes give to this one. Closed when it is dropped: nobody finds this process then.
#[derive(Debug)]
pub struct Door {
    listener: OwnedFd,
}

impl Neighbours {
    /// Takes a name among the processes that share `port`.
    ///
    /// # Errors
    /// What the system says, when there can be no socket of such a name.
    pub fn join(port: u16) -> io::Result<(Neighbours, Door)> {
        let mut result = Err(io::ErrorKind::AddrInUse.into());
        for _ in 0..ATTEMPTS_MAX {
            let tag = (RandomState::new().hash_one(port) as ProcessTag).max(1);
            result = sys::listen_for_sockets(&name(port, tag), BACKLOG)
                .map(|listener| (Neighbours { port, tag }, Door { listener }));
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
                break;
            }
        }
        result
    }

    /// What tells this process apart.
    pub fn tag(&self) -> ProcessTag {
        self.tag
    }

    /// The other processes of this user that share the port now.
    pub fn others(&self) -> Vec<ProcessTag> {
        tags(self.port).filter(|tag| *tag != self.tag).collect()
    }

    /// Gives a socket, from which nothing was read, to any shard of another process.
    ///
    /// # Errors
    /// As [`Neighbours::give`].
    pub fn give_new(&self, tag: ProcessTag, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.give(tag, ANY, socket, &[])
    }

    /// Gives a socket, from which `bytes` were read and not used, to a shard of another process. That has it then, too, and may lose
    /// it if it has no such shard.
    ///
    /// # Errors
    /// When there is no such process of this user, or too much waits for it already; then it does not have the socket.
    pub fn give(
        &self,
        tag: ProcessTag,
        shard: ShardId,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let head = [VERSION, shard];
        if head.len() + bytes.len() > MESSAGE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let caller = sys::call(&name(self.port, tag))?;
        sys::send_socket(&caller, &head, bytes, socket)
    }
}

impl Door {
    /// Takes what comes in, and gives it to the shards of `bus`, for as long as the process runs. While `has_place` says that there is none
    /// for another socket, what comes waits in the kernel.
    pub fn serve(&self, bus: &Bus, has_place: impl Fn() -> bool) -> io::Error {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX].into_boxed_slice();
        let mut callers: Vec<OwnedFd> = Vec::new();
        let mut turns = (0..bus.shards() as ShardId).cycle();
        let mut hear = |caller: &OwnedFd| hear(caller, &mut buffer, bus, &mut turns);
        let mut rests = false;
        loop {
            let is_open = !rests && has_place() && bus.handed() < HANDED_MAX;
            rests = false;
            let mut polled: Vec<PollFd<'_>> =
                callers.iter().map(|caller| PollFd::new(caller, PollFlags::IN)).collect();
            if is_open {
                polled.push(PollFd::new(&self.listener, PollFlags::IN));
            }
            match poll(&mut polled, (!is_open).then_some(&REST)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return error.into(),
            }
            let mut ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
            let has_callers = is_open && ready.pop() == Some(true);
            let mut ready = ready.into_iter();
            callers.retain(|caller| ready.next() != Some(true) || hear(caller).is_pending());
            if has_callers {
                rests = self.welcome(&mut callers, &mut hear);
            }
        }
    }

    /// Accepts those that wait, up to a bound. True when that cannot go on just now.
    fn welcome(&self, callers: &mut Vec<OwnedFd>, hear: &mut impl FnMut(&OwnedFd) -> Poll<()>) -> bool {
        for _ in 0..CALLERS_MAX {
            match sys::accept_caller(&self.listener) {
                Ok(None) => {}
                Ok(Some(caller)) => {
                    // Most have said it by now.
                    if hear(&caller).is_pending() {
                        if callers.len() == CALLERS_MAX {
                            callers.remove(0);
                        }
                        callers.push(caller);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    tracing::debug!(%error, "cannot take sockets of other processes; trying again");
                    return true;
                }
            }
        }
        false
    }
}

/// Takes the one message of a caller, if it is there. `Ready` when there is nothing more to wait for. Who has asked for nothing goes to the
/// shard whose turn it is.
fn hear(
    caller: &OwnedFd,
    buffer: &mut [u8],
    bus: &Bus,
    turns: &mut impl Iterator<Item = ShardId>,
) -> Poll<()> {
    let (count, socket) = match sys::receive_socket(caller, buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
        Err(_) => return Poll::Ready(()),
    };
    let ([VERSION, shard, bytes @ ..], Some(socket)) = (&buffer[..count], socket) else {
        tracing::debug!("a process gave something that is no socket of a client");
        return Poll::Ready(());
    };
    let is_new = *shard == ANY;
    let shard = if is_new { turns.next() } else { Some(*shard) };
    if let Some(shard) = shard.filter(|shard| usize::from(*shard) < bus.shards()) {
        bus.mailbox(shard).hand(Handed { socket, client: None, bytes: bytes.into(), layer: None, is_new });
    }
    Poll::Ready(())
}

/// True when processes of this user share this port.
pub fn is_shared(port: u16) -> bool {
    tags(port).next().is_some()
}

/// The tags of the processes on a port that answer, as far as the kernel tells the names of sockets (`proc(5)`).
fn tags(port: u16) -> impl Iterator<Item = ProcessTag> {
    // Not /proc/net, which is not there where a unit hides all but processes (ProcSubset=pid).
    let sockets = std::fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let start = format!("@throng/{port}/");
    let names = sockets.lines().filter_map(|line| line.split_ascii_whitespace().last()?.strip_prefix(&start));
    // Connections have the name of the socket that they were made to, so a name may be there several times.
    let tags: BTreeSet<ProcessTag> =
        names.filter_map(|tag| ProcessTag::from_str_radix(tag, 16).ok()).collect();
    tags.into_iter().filter(move |tag| sys::call(&name(port, *tag)).is_ok())
}

fn name(port: u16, tag: ProcessTag) -> String {
    format!("throng/{port}/{tag:04x}")
}
