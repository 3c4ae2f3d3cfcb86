//! Reactors: whatever moves bytes between sockets and a [`Shard`].
//!
//! # The contract
//!
//! A reactor owns one shard, its sockets, and its listeners. It goes in turns, and in each turn it calls the
//! shard in this order:
//!
//! 1. It waits: not at all if something was left over from the last turn or mail has come ([`Mailbox::fall_asleep`] answers
//!    false), else until a socket, the bell, or the time that [`Shard::end_turn`] asked for.
//! 2. It reads the clock, once, and says [`Shard::begin_turn`].
//! 3. For sockets that take bytes again, [`Shard::writable`]; for those that have some, one read each into the thread's one
//!    scratch buffer and [`Shard::receive`], until [`Shard::is_full`]. Who had to wait is served first in the next turn, and who
//!    filled the scratch goes to the end of the queue. The peer's end or a failure is [`Shard::hang_up`].
//! 4. [`Shard::deliver`], for the mail; [`Shard::has_mail`] tells whether some is left over.
//! 5. [`Shard::advance`], for timers.
//! 6. Accepts, while [`Shard::may_accept`] and not [`Shard::is_full`], within a budget, so that a storm does not starve the connected.
//! 7. It rings for the shards of [`Shard::take_bells`], before writing, so that other cores start meanwhile.
//! 8. For each [`Shard::next_dirty`], until enough has been written for one turn ([`Shard::has_unflushed`] then asks for another at once):
//!    gather, one write, [`Shard::sent`]; again at once only if that says so. A short write is
//!    followed by a `writable` when the kernel takes more.
//! 9. For each [`Shard::next_farewell`]: the stream is ended, or the socket closed or given away and then [`Shard::release`] called; a socket
//!    that another process does not take is [`Shard::stay`]. Slots are reused only after that, so an event of this turn cannot meet a
//!    later connection.
//! 10. [`Shard::end_turn`], with the clock read again.
//!
//! What the shard receives and gathers is bytes of HTTP. Where clients speak TLS or come through a proxy that says whose connection it is
//! (PROXY protocol), the reactor opens and seals records in between; the shard notices neither. Then "the kernel took" means in
//! [`Shard::sent`] that a record was made, of which at most some tens of kilobytes wait in the reactor, and [`Shard::introduce`] may follow
//! [`Shard::accept`], before the first [`Shard::receive`].
//!
//! The simulator (`sim.rs`) is one more caller of the same methods.
//!
//! [`Mailbox::fall_asleep`]: crate::bus::mailbox::Mailbox::fall_asleep

mod epoll;
mod layer;
pub mod neighbours;
pub mod sys;
pub mod tls;

pub use layer::Rules as Layers;

use crate::bus::Bus;
use crate::shard::Shard;
use crate::stats::Stats;
use crate::time::Clock;
use neighbours::Neighbours;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

/// Which kernel interface moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Edge-triggered epoll, through mio.
    Epoll,
}

/// What a reactor is made of.
#[derive(Debug)]
pub struct Parts {
    /// The shard it owns.
    pub shard: Shard,
    /// The shard's number.
    pub id: crate::message::ShardId,
    /// At least one; not blocking.
    pub listeners: Vec<TcpListener>,
    /// True when whoever started this process keeps them open: in a drain they are closed at once, and who waits is left to the next process.
    pub are_kept: bool,
    /// Where its mail comes from.
    pub bus: Arc<Bus>,
    /// Where turns are counted.
    pub stats: Arc<Stats>,
    /// The clock that all shards share.
    pub clock: Clock,
    /// The other processes on the port, when it is shared.
    pub neighbours: Option<Neighbours>,
    /// What lies between sockets and the shard.
    pub layers: Layers,
}

/// Runs a shard on this thread until it has been drained.
///
/// # Errors
/// When the kernel refuses what a reactor cannot be without: the interface itself, or waiting on it.
pub fn run(kind: Kind, parts: Parts) -> io::Result<()> {
    match kind {
        Kind::Epoll => epoll::Epoll::new(parts)?.run(),
    }
}
