//! What the kernel knows about this process.

use crate::auth::Gate;
use crate::machine::{Memory, Taken};
use crate::stats::Stats;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How often memory is looked at, and where it gets short: a storm of clients can take a twentieth of a small bound within a second.
const MEMORY_EVERY: Duration = Duration::from_secs(1);
const MEMORY_EVERY_NEAR: Duration = Duration::from_millis(100);
/// Where that begins, as a part of what is to stay free.
const SPARE_NEAR: f64 = 4.0;

/// Writes the resident memory of the process into `stats`, and how full its bounds are, and has the gate know what is left of these: at once,
/// before anybody can ask, and once a second or more often by what is answered. That never ends; where there is no `/proc` it is said once
/// and the numbers stay 0.
pub fn sample_memory(stats: Arc<Stats>, gate: Arc<Gate>) -> impl Future<Output = ()> {
    let resident = Resident::open();
    if let Err(error) = &resident {
        tracing::warn!(%error, "/proc/self/statm cannot be opened; memory is not measured");
    }
    let memory = Memory::here();
    if memory.machine().is_none() {
        tracing::warn!(
            "/proc/meminfo cannot be read (ProcSubset=pid?): it is not known when the machine's memory is short"
        );
    }
    let sample = move || {
        match resident.as_ref().map(Resident::bytes) {
            Ok(Ok(bytes)) => stats.memory_bytes.set(bytes),
            Ok(Err(error)) => tracing::warn!(%error, "/proc/self/statm cannot be read"),
            // That was said.
            Err(_) => {}
        }
        let bounds = memory.bounds();
        let fullest = bounds.iter().map(|taken| taken.ratio()).fold(0.0, f64::max);
        stats.memory_taken_permille.set((fullest * 1e3) as u64);
        weigh(&gate, &bounds)
    };
    let mut next = sample();
    async move {
        loop {
            sleep(next).await;
            next = sample();
        }
    }
}

/// Has the gate know how much memory is left, and says when it is short, and when not any more. Answers when to look again.
fn weigh(gate: &Gate, bounds: &[Taken]) -> Duration {
    let percent_max = gate.memory_percent_max();
    let spare = |taken: &Taken| taken.spare(percent_max);
    let tightest = bounds.iter().min_by(|one, other| spare(one).total_cmp(&spare(other)));
    let spare = tightest.map_or(f64::INFINITY, spare);
    let (taken_bytes, of_bytes) = tightest.map_or((0, 0), |taken| (taken.bytes, taken.of_bytes));
    match gate.weigh(spare) {
        Some(true) => {
            let connections = gate.open();
            tracing::warn!(
                taken_bytes,
                of_bytes,
                percent_max,
                connections,
                "memory is short: there may be no more connections than there are"
            );
        }
        Some(false) => tracing::info!(taken_bytes, of_bytes, "memory is not short any more"),
        None => {}
    }
    // When it is short, that is known; and somebody who can make it so and not so writes a line a second.
    let is_near = spare < SPARE_NEAR && !gate.is_short_of_memory();
    if is_near { MEMORY_EVERY_NEAR } else { MEMORY_EVERY }
}

/// The kernel's account of our memory. The file stays open, so that running out of descriptors does not blind us.
struct Resident {
    statm: File,
}

impl Resident {
    fn open() -> io::Result<Resident> {
        Ok(Resident { statm: File::open("/proc/self/statm")? })
    }

    /// Resident memory in bytes: the second number of proc_pid_statm(5), in pages.
    fn bytes(&self) -> io::Result<u64> {
        let mut line = [0; 128];
        let length = self.statm.read_at(&mut line, 0)?;
        let pages = std::str::from_utf8(&line[..length])
            .ok()
            .and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(pages * page_size() as u64)
    }
}

/// User and system time of all threads so far, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// User and system time of each thread so far, in seconds, by its name; those of one name together. Threads that end meanwhile are left
/// out, and all where there is no `/proc`.
pub(super) fn thread_seconds() -> BTreeMap<String, f64> {
    let mut threads: BTreeMap<String, f64> = BTreeMap::new();
    let tick = 1.0 / clock_ticks_per_second() as f64;
    for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((name, ticks)) = read_stat(&stat) {
            *threads.entry(name.to_owned()).or_default() += ticks as f64 * tick;
        }
    }
    threads
}

/// Name and ticks of user and system time out of proc_pid_stat(5): fields 2, 14 and 15. The name is in parentheses, and may have some.
fn read_stat(stat: &str) -> Option<(&str, u64)> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    let mut times = after.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some((name, user + system))
}

/// Resident memory in bytes by what is behind it: nothing (heap, stacks), and files. `None` where the kernel does not say.
pub(super) fn resident_by_kind() -> Option<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some((bytes("RssAnon:")?, bytes("RssFile:")? + bytes("RssShmem:")?))
}

/// How many descriptors are open, where the kernel says so: as the size of this directory, since Linux 6.2. Listing the
/// directory would work on older kernels too, but it makes an inode for each descriptor, and we may have a million.
pub(super) fn open_fds() -> Option<u64> {
    fs::metadata("/proc/self/fd").ok().map(|directory| directory.len()).filter(|&count| count > 0)
}

/// How many there may be; `None` when there is no limit.
pub(super) fn max_fds() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    // Other tests of this process come and go, so what is held is compared, not what has changed.

    #[test]
    fn resident_memory_is_at_least_what_is_held() {
        let memory = Resident::open().expect("there is a /proc");
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let resident = memory.bytes().expect("it can be read");
        assert!(resident >= held.len() as u64, "{resident}");
        assert!(memory.bytes().is_ok(), "it can be read again");
    }

    #[test]
    fn descriptors_are_at_least_those_that_are_held() {
        let held: Vec<File> = (0..100).map(|_| File::open("/proc/self/statm").expect("opens")).collect();
        let Some(open) = open_fds() else { return };
        assert!(open >= held.len() as u64 && max_fds().is_none_or(|max| open <= max), "{open}");
    }

    #[test]
    fn memory_by_kind_is_what_is_resident() {
        let Some((anonymous, files)) = resident_by_kind() else { return };
        let all = Resident::open().and_then(|memory| memory.bytes()).expect("there is a /proc");
        assert!(anonymous > 0 && files > 0 && anonymous < 2 * all, "{anonymous} and {files} of {all}");
    }

    #[test]
    fn a_thread_may_have_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 70 7 13 14";
        assert_eq!(read_stat(&format!("12 (a) (b c) {fields}")), Some(("a) (b c", 77)));
        for bad in ["", "12 (a", "12 (a) S 1 2", "12 a S 1 2 3 4 5 6 7 8 9 10 70 7"] {
            assert_eq!(read_stat(bad), None, "{bad}");
        }
        assert!(!thread_seconds().is_empty());
    }

    #[test]
    fn processor_time_goes_forward() {
        let before = cpu_seconds();
        std::hint::black_box((0..1_000_000u64).fold(0, |sum: u64, n| sum.wrapping_mul(31) ^ n));
        assert!(before > 0.0 && cpu_seconds() >= before);
    }
}
