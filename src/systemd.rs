//! What this process and systemd's service manager say to each other: sd_notify(3), sd_watchdog_enabled(3) and the descriptor store. Without
//! a manager (`NOTIFY_SOCKET` is not set) nothing is said.

use crate::auth::Gate;
use crate::bus::Bus;
use crate::message::ShardId;
use crate::stats::Stats;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sd_notify::NotifyState;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The name of a listener that the manager keeps: this, and a number.
const KEPT: &str = "throng-listener-";
/// The variable that says how many descriptors the manager keeps for this service (systemd 254 and later; our unit says it to earlier ones).
const STORE: &str = "FDSTORE";
/// How often the manager is told what is going on.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// How long one message waits for a manager that has not read what it was told before: nothing else is done meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the watchdog is fed at the most, however short its time is.
const FEED_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// True exactly when the manager was to be told that this process is ready, and did not take it.
static OWES_READY: AtomicBool = AtomicBool::new(false);

/// Says all of `states` to the manager at once. That it cannot be said is logged the first time: whoever waits for it will say so as well.
/// Of what is not taken, only [`NotifyState::Ready`] is said again, by [`report`].
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    let result = tell(states, None);
    if states.iter().any(|state| matches!(state, NotifyState::Ready)) {
        OWES_READY.store(result.is_err(), Ordering::Relaxed);
    }
    note(&result);
}

/// Sends the manager one message, and a copy of a descriptor with it.
///
/// # Errors
/// When there is nobody at its address, or it takes nothing for [`PATIENCE`].
fn tell(states: &[NotifyState<'_>], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(name) = manager() else { return Ok(()) };
    let address = match name.as_bytes() {
        // What containers have, and managers of users.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    let descriptors = descriptor.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if descriptor.is_some() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for one");
    }
    // A datagram goes out whole or not at all.
    rustix::net::sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Where the manager listens, if there is one.
fn manager() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

fn note(result: &io::Result<()>) {
    static IS_NOTED: AtomicBool = AtomicBool::new(false);
    if let Err(error) = result
        && !IS_NOTED.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, "the service manager cannot be told anything (NOTIFY_SOCKET)");
    }
}

/// True when the manager keeps as many listeners open over a restart.
pub(crate) fn keeps(listeners: usize) -> bool {
    let places = std::env::var(STORE).ok().and_then(|places| places.parse::<usize>().ok());
    manager().is_some() && places.is_some_and(|places| places >= listeners)
}

/// True for the name of a listener that an earlier process has given the manager to keep.
pub(crate) fn is_kept(name: &str) -> bool {
    name.starts_with(KEPT)
}

/// The configuration is about to be read anew; [`NotifyState::Ready`] says the end of it.
pub(crate) fn notify_of_reload() {
    // The moment, so that the manager knows which of several reloads this is (systemd.service(5), notify-reload).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => note(&Err(error)),
    }
}

/// The end has begun, and takes at most so long: the manager waits for it, whatever its own bound (`TimeoutStopSec=`).
pub(crate) fn notify_of_end(time: Duration) {
    let time = NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    notify(&[NotifyState::Stopping, time, NotifyState::Status("draining")]);
}

/// Has the manager keep a listener no longer.
pub(crate) fn forget(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Has the manager keep these, besides so many that it keeps already. False when it did not take all of them.
pub(crate) fn keep<'a>(mut listeners: impl Iterator<Item = &'a TcpListener>, already: usize) -> bool {
    let mut number = already;
    listeners.all(|listener| {
        let name = format!("{KEPT}{number}");
        number += 1;
        // That nobody reads from it is no reason to drop it.
        let states = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
        let result = tell(&states, Some(listener.as_fd()));
        note(&result);
        result.is_ok()
    })
}

/// Tells the manager now and then how it goes, and feeds its watchdog if there is one. Never ends; without a manager it never begins.
///
/// What feeds the watchdog is the turns of the shards: it is told that all is well when each of them has made one since the last time, or has
/// come to its end. One that has nothing to do is woken for that.
pub(crate) async fn report(stats: Arc<Stats>, bus: Arc<Bus>, shards: Vec<JoinHandle<()>>, gate: Arc<Gate>) {
    if manager().is_none() {
        return;
    }
    let patience = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero());
    // A shard has a tick to make its turn, and may miss one.
    let tick = |patience: Duration| (patience / 4).clamp(FEED_INTERVAL_MIN, STATUS_INTERVAL);
    let mut ticks = interval(patience.map_or(STATUS_INTERVAL, tick));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = vec![u64::MAX; shards.len()];
    let mut said = None;
    let mut told = Instant::now();
    loop {
        let now = ticks.tick().await;
        let goes_on = |(id, thread): (usize, &JoinHandle<()>)| {
            thread.is_finished() || stats.shards[id].turns.value() != turns[id]
        };
        // All in one message: a manager that does not read holds this thread up once.
        let mut states = Vec::new();
        if OWES_READY.load(Ordering::Relaxed) && !gate.is_draining() {
            states.push(NotifyState::Ready);
        }
        if patience.is_some() && shards.iter().enumerate().all(goes_on) {
            states.push(NotifyState::Watchdog);
            for (id, turns) in turns.iter_mut().enumerate() {
                *turns = stats.shards[id].turns.value();
            }
        }
        if patience.is_some() {
            (0..shards.len()).for_each(|id| bus.mailbox(id as ShardId).ring());
        }
        let status;
        if said.is_none() || now - told >= STATUS_INTERVAL {
            let seen = Seen::now(&stats, &bus);
            status = seen.told(said.as_ref(), now - told, gate.is_draining());
            states.push(NotifyState::Status(&status));
            (said, told) = (Some(seen), now);
        }
        if !states.is_empty() {
            notify(&states);
        }
    }
}

/// What the manager is told of.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    connections: u64,
    rooms: u64,
    messages: u64,
    deliveries: u64,
    memory_bytes: u64,
}

impl Seen {
    fn now(stats: &Stats, bus: &Bus) -> Seen {
        Seen {
            connections: stats.sum(|shard| shard.connections.value()),
            rooms: bus.rooms() as u64,
            messages: stats.sum(|shard| shard.messages_in.value()),
            deliveries: stats.sum(|shard| shard.deliveries.value()),
            memory_bytes: stats.memory_bytes.value(),
        }
    }

    /// One line, of the numbers now and of what has come since `before`.
    fn told(&self, before: Option<&Seen>, time: Duration, is_draining: bool) -> String {
        let before = before.unwrap_or(self);
        let rate = |now: u64, before: u64| ((now - before) as f64 / time.as_secs_f64().max(1e-3)).round();
        format!(
            "{}{} connections, {} rooms, {} messages/s in, {} deliveries/s, {} MiB",
            if is_draining { "draining: " } else { "" },
            self.connections,
            self.rooms,
            rate(self.messages, before.messages),
            rate(self.deliveries, before.deliveries),
            self.memory_bytes >> 20,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_one_line_with_rates() {
        let before = Seen { messages: 1_000, deliveries: 50_000, ..Seen::default() };
        let now =
            Seen { connections: 12, rooms: 3, messages: 1_500, deliveries: 80_000, memory_bytes: 9 << 20 };
        let line = "12 connections, 3 rooms, 100 messages/s in, 6000 deliveries/s, 9 MiB";
        assert_eq!(now.told(Some(&before), Duration::from_secs(5), false), line);
        let first = "draining: 12 connections, 3 rooms, 0 messages/s in, 0 deliveries/s, 9 MiB";
        assert_eq!(now.told(None, Duration::ZERO, true), first);
    }
}
