//! What a connection costs the kernel, found out by opening some: a connected socket with its file, and its place in epoll.

use super::root::Root;
use rustix::event::epoll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use socket2::SockRef;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

/// Pairs of sockets that are opened, if there are descriptors for so many.
const PAIRS: usize = 2_000;
/// With fewer, what other processes do weighs too much.
const PAIRS_MIN: usize = 250;
/// Descriptors that are left to the rest of the process.
const KEPT: usize = 64;
/// They are opened in so many parts, and each is measured. The middle ones count: the first finds memory that was already there for
/// sockets, and others may be disturbed by other processes.
const PARTS: usize = 4;
/// A socket of TCP has some 2,400 bytes, its inode 800, its file 200: what is far from that is not what was to be measured.
const BELIEVED_BYTES: std::ops::Range<u64> = 1_500..12_000;

/// What the sockets said.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Measured {
    /// How many connections were opened at a time.
    pub(super) pairs: usize,
    /// Kernel memory of one end of a connection that is idle and in an epoll.
    pub(super) bytes: u64,
    /// True when the kernel's table of connections had an entry for each.
    pub(super) is_tracked: bool,
}

/// Opens connections to ourselves, looks at the kernel's memory, and closes them.
///
/// # Errors
/// In words, why it could not be measured.
pub(super) fn measure(root: &Root) -> Result<Measured, String> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    let descriptors = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let pairs = (descriptors.saturating_sub(KEPT) / 2).min(PAIRS);
    if pairs < PAIRS_MIN {
        return Err(format!("{descriptors} open files are too few to open connections for it"));
    }
    slab_bytes(root).ok_or("/proc/meminfo does not tell the kernel's memory")?;
    let (bytes, is_tracked) =
        open(root, pairs / PARTS).map_err(|error| format!("connections over 127.0.0.1 failed: {error}"))?;
    if !BELIEVED_BYTES.contains(&bytes) {
        return Err(format!(
            "{bytes} bytes a socket were seen, so others were busy or it is not to be seen here"
        ));
    }
    Ok(Measured { pairs: pairs / PARTS * PARTS, bytes, is_tracked })
}

/// Opens [`PARTS`] times so many pairs. Bytes for one end, and whether connections were tracked.
fn open(root: &Root, pairs: usize) -> io::Result<(u64, bool)> {
    let tracked = || root.sysctl_number("net.netfilter.nf_conntrack_count").unwrap_or(0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let tracked_before = tracked();
    // All stay open to the end: what was closed is memory that the next would find.
    let mut ends = Vec::with_capacity(pairs * PARTS);
    let mut seen = Vec::with_capacity(PARTS);
    for _ in 0..PARTS {
        let before = slab_bytes(root).unwrap_or(0);
        for _ in 0..pairs {
            let client = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            // It ends with a reset: thousands of ports that wait for their last packets are not left behind.
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            ends.push((listener.accept()?.0, client));
        }
        let open = slab_bytes(root).unwrap_or(0);
        for (server, _) in &ends[ends.len() - pairs..] {
            epoll::add(&poll, server, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        let watched = slab_bytes(root).unwrap_or(0);
        // Both ends are sockets of ours; only one is in the epoll.
        let of_ends = open.saturating_sub(before) / (2 * pairs as u64);
        seen.push(of_ends + watched.saturating_sub(open) / pairs as u64);
    }
    let is_tracked = tracked().saturating_sub(tracked_before) as usize > ends.len() / 2;
    // Where the server's end is closed first, it is the one that would wait.
    for (server, client) in ends {
        drop(client);
        drop(server);
    }
    seen.sort_unstable();
    Ok(((seen[PARTS / 2 - 1] + seen[PARTS / 2]) / 2, is_tracked))
}

/// The memory that the kernel has in small pieces, where all that belongs to a socket is.
fn slab_bytes(root: &Root) -> Option<u64> {
    Some(root.field("proc/meminfo", "Slab")? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_costs_what_sockets_cost_or_it_is_said_why_that_is_not_known() {
        match measure(&Root::new(None)) {
            Ok(it) => assert!(BELIEVED_BYTES.contains(&it.bytes) && it.pairs >= PAIRS_MIN, "{it:?}"),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}
