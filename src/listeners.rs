//! The listeners of the shards: those that the service manager has opened or kept for this process, and its own.

use crate::config;
use crate::reactor::{neighbours, sys};
use crate::systemd;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use std::{fmt, io, thread};

/// The name of a passed listener that is for the control port (`FileDescriptorName=` of a socket unit). Those of other names are for clients.
const CONTROL: &str = "control";
/// How often a port is tried that may be free in a moment, and the pause between: another process may have it for a moment, or start as well; the
/// service manager may not have closed yet what it was told to keep no longer.
const CLAIMS_MAX: usize = 10;
const CLAIM_AGAIN: Duration = Duration::from_millis(50);

/// Why there is nothing to listen with.
#[derive(Debug)]
pub enum Fault {
    /// An address could not be had.
    Address {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// What the service manager has passed is no listener.
    Passed {
        /// What it calls it.
        name: String,
        /// What is wrong.
        error: io::Error,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Address { setting, address, error } => {
                write!(f, "cannot listen on {address} ({setting}): {error}")
            }
            Fault::Passed { name, error } => {
                write!(f, "cannot use what the service manager has passed ({name}): {error}")
            }
        }
    }
}

/// What this process listens with.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// For each shard, at least one.
    pub(crate) of_shards: Vec<Vec<TcpListener>>,
    /// The address of the first.
    pub(crate) address: SocketAddr,
    /// The service manager keeps them open when this process ends, for the next one.
    pub(crate) are_kept: bool,
    /// That of the control port, unless it is off.
    pub(crate) control: Option<TcpListener>,
}

impl Listeners {
    /// As many as `shards` need. Those that the manager has opened for clients come instead of `server.listen`; those that it has kept of an
    /// earlier process are taken where they listen on that address, and given up where not.
    ///
    /// # Errors
    /// See [`Fault`].
    pub(crate) fn open(server: &config::Server, shards: usize) -> Result<Listeners, Fault> {
        let Passed { opened, kept, control } = Passed::take()?;
        let control =
            control.map_or_else(|| server.control.map(listen_for_control).transpose(), |it| Ok(Some(it)))?;
        let failure = |error| Fault::Address { setting: "server.listen", address: server.listen, error };
        let is_opened = !opened.is_empty();
        // With others on the port, it is they who take what comes while this process is away.
        let may_keep = !is_opened && !server.share_port;
        let (kept, stale): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(_, listener)| {
            may_keep && listener.local_addr().is_ok_and(|address| address == server.listen)
        });
        // First all that is not wanted: what is kept then may get the same name.
        let mut gives_up_port = false;
        for (name, listener) in stale {
            gives_up_port |= listener.local_addr().is_ok_and(|its| its.port() == server.listen.port());
            systemd::forget(&name);
        }
        let were_kept = !kept.is_empty();
        let mut listeners: Vec<TcpListener> =
            opened.into_iter().chain(kept.into_iter().map(|(_, it)| it)).collect();
        let old = listeners.len();
        if !is_opened {
            if !were_kept && server.listen.port() != 0 {
                claim(server.listen, server.share_port, gives_up_port).map_err(failure)?;
            }
            for _ in old..shards {
                // With port 0 the first one chooses.
                let address =
                    listeners.first().map_or(Ok(server.listen), TcpListener::local_addr).map_err(failure)?;
                match sys::listen(address) {
                    Ok(listener) => listeners.push(listener),
                    // The kept ones were opened by another user, and do not share their port with us: shards share them instead.
                    Err(_) if were_kept => break,
                    Err(error) => return Err(failure(error)),
                }
            }
        }
        let is_kept =
            may_keep && systemd::keeps(listeners.len()) && systemd::keep(listeners[old..].iter(), old);
        let address = listeners[0].local_addr().map_err(failure)?;
        let of_shards = deal(listeners, shards).map_err(failure)?;
        Ok(Listeners { of_shards, address, are_kept: is_opened || is_kept, control })
    }
}

/// What whoever started this process has opened for it.
#[derive(Debug, Default)]
struct Passed {
    /// For clients, by the manager itself.
    opened: Vec<TcpListener>,
    /// For clients, by an earlier process, with the names that it gave.
    kept: Vec<(String, TcpListener)>,
    control: Option<TcpListener>,
}

impl Passed {
    fn take() -> Result<Passed, Fault> {
        let mut passed = Passed::default();
        let all = sys::passed().map_err(|error| Fault::Passed { name: "LISTEN_FDS".to_owned(), error })?;
        for (name, socket) in all {
            match sys::adopt(socket) {
                Ok(_) if name == CONTROL && passed.control.is_some() => {
                    let error = io::Error::new(io::ErrorKind::InvalidInput, "there can be one of this name");
                    return Err(Fault::Passed { name, error });
                }
                Ok(listener) if name == CONTROL => passed.control = Some(listener),
                Ok(listener) if systemd::is_kept(&name) => passed.kept.push((name, listener)),
                Ok(listener) => passed.opened.push(listener),
                // Nobody asked for it: it is not missed.
                Err(_) if systemd::is_kept(&name) => systemd::forget(&name),
                Err(error) => return Err(Fault::Passed { name, error }),
            }
        }
        Ok(passed)
    }
}

/// Gives each of so many shards a listener of each address: one of its own, where there are enough, else one that it shares with others.
///
/// # Errors
/// When there are no descriptors left.
fn deal(listeners: Vec<TcpListener>, shards: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut of_addresses: Vec<(SocketAddr, Vec<TcpListener>)> = Vec::new();
    for listener in listeners {
        let address = listener.local_addr()?;
        match of_addresses.iter_mut().find(|(of, _)| *of == address) {
            Some((_, its)) => its.push(listener),
            None => of_addresses.push((address, vec![listener])),
        }
    }
    let mut of_shards: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for (_, its) in of_addresses {
        for shard in its.len()..shards {
            of_shards[shard].push(its[shard % its.len()].try_clone()?);
        }
        for (at, listener) in its.into_iter().enumerate() {
            of_shards[at % shards].push(listener);
        }
    }
    Ok(of_shards)
}

/// Makes sure that nobody has the port, or, where it `is_shared`, that those share it who have it. `is_given_up` when the service manager is
/// just closing listeners that may be on it.
fn claim(address: SocketAddr, is_shared: bool, is_given_up: bool) -> io::Result<()> {
    for _ in 1..CLAIMS_MAX {
        match sys::claim(address) {
            Err(error) if (is_shared || is_given_up) && error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
        if is_shared && neighbours::is_shared(address.port()) {
            return Ok(());
        }
        // Perhaps it is another that is about to share it.
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing else runs yet, and nobody tells when another process has come so far"
        )]
        thread::sleep(CLAIM_AGAIN);
    }
    sys::claim(address)
}

fn listen_for_control(address: SocketAddr) -> Result<TcpListener, Fault> {
    let failure = |error| Fault::Address { setting: "server.control", address, error };
    let listener = TcpListener::bind(address).map_err(failure)?;
    listener.set_nonblocking(true).map_err(failure)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(of_shards: &[Vec<TcpListener>]) -> Vec<Vec<u16>> {
        let port = |listener: &TcpListener| listener.local_addr().expect("it has one").port();
        of_shards.iter().map(|its| its.iter().map(port).collect()).collect()
    }

    fn listen(port: u16) -> TcpListener {
        sys::listen(SocketAddr::from(([127, 0, 0, 1], port))).expect("it can be had")
    }

    #[test]
    fn each_shard_has_a_listener_of_each_address() {
        let (one, other) = (listen(0), listen(0));
        let [a, b] = [&one, &other].map(|it| it.local_addr().expect("it has one").port());
        let of_shards = deal(vec![one, other, listen(a)], 3).expect("there are descriptors");
        assert_eq!(ports(&of_shards), [[a, b], [a, b], [a, b]]);
    }

    #[test]
    fn no_listener_is_left_out() {
        let first = listen(0);
        let port = first.local_addr().expect("it has one").port();
        let five = vec![first, listen(port), listen(port), listen(port), listen(port)];
        let of_shards = deal(five, 2).expect("there are descriptors");
        assert_eq!(ports(&of_shards), [vec![port; 3], vec![port; 2]]);
    }
}
