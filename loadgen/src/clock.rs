//! Three clocks. All are read with one call and mean the same in every process of the machine, so that a worker can
//! be told when to start and a publication can carry the time it was due.

use rustix::time::{ClockId, Timespec, clock_gettime};

pub(crate) const SECOND_NS: u64 = 1_000_000_000;
pub(crate) const MILLISECOND_NS: u64 = 1_000_000;

/// CLOCK_MONOTONIC, in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// The CPU time this process has used so far, in nanoseconds.
pub(crate) fn own_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime)) / SECOND_NS
}

/// `seconds` as nanoseconds; negative ones are none.
pub(crate) fn seconds_ns(seconds: f64) -> u64 {
    (seconds * SECOND_NS as f64) as u64
}

/// How long to wait from `now_ns` until `due_ns`, as the kernel wants it; `None` when nothing is due.
pub(crate) fn wait(now_ns: u64, due_ns: u64) -> Option<Timespec> {
    if due_ns == u64::MAX {
        return None;
    }
    let wait_ns = due_ns.saturating_sub(now_ns);
    Some(Timespec { tv_sec: (wait_ns / SECOND_NS) as i64, tv_nsec: (wait_ns % SECOND_NS) as _ })
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec as u64 * SECOND_NS + time.tv_nsec as u64
}
