//! What the parent and its workers say to each other: one JSON object a line over a Unix socket, which is the
//! worker's standard input. Nothing here is on the path of a message under measurement.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::ScenarioArgs;
use crate::clock::SECOND_NS;
use crate::frame::Mask;
use crate::protocol::Protocol;
use crate::report::Tally;
use crate::source::Sources;
use crate::token;

/// All a worker must know. The first line it is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// `0 <= worker < workers`. Worker 0 has the publishers.
    pub(crate) worker: u32,
    pub(crate) workers: u32,
    /// This worker has connections `first .. first + connections` of all.
    pub(crate) first: u32,
    pub(crate) connections: u32,
    /// At least one. Connection `i` of all goes to target `i + 1` modulo their count; publishers go to the first.
    pub(crate) targets: Vec<Place>,
    pub(crate) protocol: Protocol,
    /// With its query.
    pub(crate) path: String,
    /// Where the connections have tokens from, if they show any.
    pub(crate) tokens: Option<token::Source>,
    pub(crate) sources: Option<Sources>,
    /// Connections per second of this worker; 0 is without limit.
    pub(crate) connect_rate: f64,
    /// Handshakes of this worker under way at once; at least 1.
    pub(crate) connecting_max: u32,
    pub(crate) timeout_ns: u64,
    pub(crate) mask: Mask,
    pub(crate) cpu: Option<usize>,
    pub(crate) scenario: ScenarioArgs,
}

/// A server to connect to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    /// For the `Host` header.
    pub(crate) host: String,
}

/// From the parent: begin a phase. A worker answers `Done` when it is over, but to `Report` with `Report`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Open all connections.
    Connect,
    /// Join the rooms with all open connections.
    Join,
    /// Do what the scenario is about.
    Run(Window),
    /// Wait for what is still under way; so much was published by each publisher.
    Drain { published: Vec<u64> },
    /// Drop all connections at this moment and bring them back.
    Drop { at_ns: u64 },
    /// Say what was counted, and end.
    Report,
}

/// A run by the clock: it starts, is measured `from_ns <= t < to_ns`, and ends.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) start_ns: u64,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

impl Window {
    #[inline]
    pub(crate) fn measures(&self, now_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&now_ns)
    }

    /// True from the beginning of what is measured on, in its aftermath, too.
    #[inline]
    pub(crate) fn has_begun(&self, now_ns: u64) -> bool {
        self.to_ns > 0 && now_ns >= self.from_ns
    }

    /// When something is due, counted from the start, of which there are so many in a second.
    #[inline]
    pub(crate) fn due_ns(&self, number: u64, per_second: f64) -> u64 {
        self.start_ns + (number as f64 * SECOND_NS as f64 / per_second) as u64
    }
}

/// From a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Progress(Progress),
    Done(Done),
    Report(Box<Tally>),
    /// The worker cannot go on.
    Failed(String),
}

/// Where a worker is now, for the progress bar.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) open: u64,
    /// Connections that joined, or messages received: what the scenario counts.
    pub(crate) count: u64,
}

/// A phase is over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    /// When it was.
    pub(crate) at_ns: u64,
    /// Connections open then.
    pub(crate) open: u64,
    /// After a run by the clock: how much each publisher of this worker sent.
    pub(crate) published: Vec<u64>,
}

/// One end of the conversation.
pub(crate) struct Channel {
    socket: UnixStream,
    /// Received, but not yet a whole line.
    partial: Vec<u8>,
}

impl Channel {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket, partial: Vec::new() }
    }

    /// Sends one line; waits if the other side is slow to read.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.socket.write_all(&line)
    }

    /// All that has come by now, without waiting. `UnexpectedEof` once the other side is gone and all it said was taken.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Vec<T>> {
        let mut buffer = [0; 65_536];
        let gone = loop {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => break true,
                Ok((length, _)) => self.partial.extend_from_slice(&buffer[..length]),
                Err(rustix::io::Errno::AGAIN) => break false,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let whole = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines = self.partial[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let messages = lines.map(|line| Ok(serde_json::from_slice(line)?)).collect::<io::Result<Vec<T>>>()?;
        self.partial.drain(..whole);
        if gone && messages.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(messages)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_whole_and_the_end_is_told_after_the_last() {
        let (one, mut other) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(one);
        assert_eq!(channel.receive::<u32>().unwrap(), [] as [u32; 0]);
        other.write_all(b"12\n3").unwrap();
        assert_eq!(channel.receive::<u32>().unwrap(), [12]);
        other.write_all(b"4\n5\n").unwrap();
        drop(other);
        assert_eq!(channel.receive::<u32>().unwrap(), [34, 5]);
        assert_eq!(channel.receive::<u32>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
