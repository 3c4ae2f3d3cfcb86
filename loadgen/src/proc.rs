//! What the server's processes use, read from /proc: CPU time and memory. And what this process may use: its
//! descriptor limit and its cores.

use std::collections::HashMap;
use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;

use crate::clock::{SECOND_NS, now_ns};

/// The processes of the server under test; several when it forks.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pids: Vec<u32>,
}

impl Server {
    /// Checks that each process is there and may be read.
    pub(crate) fn new(pids: &[u32]) -> Result<Self, String> {
        let server = Self { pids: pids.to_vec() };
        server.cpu().map_err(|error| format!("cannot read the CPU time of --pid: {error}"))?;
        server.memory().map_err(|error| format!("cannot read the memory of --pid: {error}"))?;
        Ok(server)
    }

    pub(crate) fn cpu(&self) -> io::Result<CpuTime> {
        let mut cpu = CpuTime { threads: HashMap::new(), whole_ns: 0 };
        for pid in &self.pids {
            cpu.whole_ns += whole_cpu_ns(&fs::read_to_string(format!("/proc/{pid}/stat"))?)?;
            for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = entry?.path();
                // A thread may end between the listing and the reading, and a kernel may be built without schedstat;
                // in both cases `whole_ns` has the thread's time.
                let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue };
                let thread = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
                let ns = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
                if let (Some(thread), Some(ns)) = (thread, ns) {
                    cpu.threads.insert(thread, ns);
                }
            }
        }
        Ok(cpu)
    }

    pub(crate) fn memory(&self) -> io::Result<Memory> {
        let mut memory = Memory::default();
        for pid in &self.pids {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            memory.rss_bytes += rollup_bytes(&text, "Rss:")?;
            memory.pss_bytes += rollup_bytes(&text, "Pss:")?;
            memory.anonymous_bytes += rollup_bytes(&text, "Anonymous:")?;
            memory.private_dirty_bytes += rollup_bytes(&text, "Private_Dirty:")?;
        }
        Ok(memory)
    }

    /// The resident set alone. Unlike `memory` it does not walk the server's page tables under its memory lock, so it may
    /// be read many times a second.
    pub(crate) fn rss_bytes(&self) -> io::Result<u64> {
        let mut rss_bytes = 0;
        for pid in &self.pids {
            let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
            let pages = text.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
            rss_bytes += pages.ok_or_else(|| malformed("statm"))? * rustix::param::page_size() as u64;
        }
        Ok(rss_bytes)
    }
}

/// Time on CPU since the processes began, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct CpuTime {
    /// Nanoseconds on CPU of each thread now alive.
    threads: HashMap<u32, u64>,
    /// User and system time of the processes with their ended threads, in whole clock ticks (10 ms).
    whole_ns: u64,
}

impl CpuTime {
    /// Nanoseconds on CPU between `earlier` and this moment. The threads' own figures are exact to a scheduler tick but
    /// forget a thread that ended; where the coarse figure of the whole process is larger by more than its rounding,
    /// that has happened and the coarse one is taken.
    pub(crate) fn since_ns(&self, earlier: &Self) -> u64 {
        let tick_ns = SECOND_NS / rustix::param::clock_ticks_per_second();
        let before = |thread| earlier.threads.get(thread).copied().unwrap_or(0);
        let exact_ns = self.threads.iter().map(|(thread, ns)| ns.saturating_sub(before(thread))).sum::<u64>();
        let whole_ns = self.whole_ns.saturating_sub(earlier.whole_ns);
        if whole_ns > exact_ns + 2 * tick_ns { whole_ns } else { exact_ns }
    }
}

/// Memory of the processes, summed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) rss_bytes: u64,
    /// As `rss_bytes`, with shared pages divided among those who share them.
    pub(crate) pss_bytes: u64,
    pub(crate) anonymous_bytes: u64,
    pub(crate) private_dirty_bytes: u64,
}

/// A measured stretch of time, and what the server used of the CPU in it.
#[derive(Debug)]
pub(crate) struct Span {
    begun_ns: u64,
    begun_cpu: Option<CpuTime>,
    begun_segments: Option<u64>,
    ended: Option<Used>,
}

/// What a span came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    /// `None` without `--pid`, or when the process is gone.
    pub(crate) cpu_seconds: Option<f64>,
    /// Segments of TCP that all in this network namespace have sent, acknowledgements too.
    pub(crate) segments: Option<u64>,
}

impl Span {
    pub(crate) fn begin(server: Option<&Server>) -> Self {
        Self {
            begun_cpu: server.and_then(|server| server.cpu().ok()),
            begun_segments: segments_sent(),
            begun_ns: now_ns(),
            ended: None,
        }
    }

    /// One that began at the same moment and goes on.
    pub(crate) fn still_going(&self) -> Self {
        Self { begun_cpu: self.begun_cpu.clone(), ended: None, ..*self }
    }

    pub(crate) fn end(&mut self, server: Option<&Server>) {
        self.ended = Some(self.used(server));
    }

    /// The whole of an ended span, or what there is so far of one that was interrupted.
    pub(crate) fn used(&self, server: Option<&Server>) -> Used {
        self.ended.unwrap_or_else(|| {
            let cpu = server.and_then(|server| server.cpu().ok());
            let cpu_ns = cpu.zip(self.begun_cpu.as_ref()).map(|(now, begun)| now.since_ns(begun));
            Used {
                seconds: (now_ns() - self.begun_ns) as f64 / SECOND_NS as f64,
                cpu_seconds: cpu_ns.map(|ns| ns as f64 / SECOND_NS as f64),
                segments: segments_sent()
                    .zip(self.begun_segments)
                    .map(|(now, begun)| now.saturating_sub(begun)),
            }
        })
    }
}

/// Raises the soft limit on descriptors to the hard one; workers inherit it. Returns the limit.
pub(crate) fn raise_descriptor_limit() -> Result<u32, String> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised)
        .map_err(|error| format!("cannot raise the descriptor limit: {error}"))?;
    Ok(limit.maximum.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(u32::MAX))
}

/// Binds the calling thread, and the threads and processes it starts, to these cores.
pub(crate) fn pin(cpus: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(format!("--cpus: there is no CPU {cpu}"));
        }
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| format!("--cpus {cpus:?}: {error}"))
}

/// Segments of TCP that were sent in this network namespace since it began.
fn segments_sent() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|name| name == "OutSegs")?;
    numbers.split_whitespace().nth(at)?.parse().ok()
}

/// User and system time from the text of /proc/PID/stat, in nanoseconds.
fn whole_cpu_ns(stat: &str) -> io::Result<u64> {
    // The second field is the program's name in parentheses and may hold anything, so the count starts behind it.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
    let ticks = fields.and_then(|fields| {
        let user: u64 = fields.get(11)?.parse().ok()?;
        let system: u64 = fields.get(12)?.parse().ok()?;
        Some(user + system)
    });
    Ok(ticks.ok_or_else(|| malformed("stat"))? * (SECOND_NS / rustix::param::clock_ticks_per_second()))
}

/// One line of smaps_rollup, such as `Rss:    1234 kB`, in bytes.
fn rollup_bytes(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim_end().parse::<u64>().ok());
    Ok(kilobytes.ok_or_else(|| malformed("smaps_rollup"))? * 1024)
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc/PID/{file} is not as expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_name_does_not_shift_the_fields() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 100 1 1";
        assert_eq!(whole_cpu_ns(stat).unwrap(), 3 * SECOND_NS);
        assert!(whole_cpu_ns("42 (x) S 1").is_err());
    }

    #[test]
    fn memory_is_read_in_kilobytes() {
        let text =
            "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:              12 kB\nPss:               7 kB\n";
        assert_eq!(rollup_bytes(text, "Rss:").unwrap(), 12 * 1024);
        assert_eq!(rollup_bytes(text, "Pss:").unwrap(), 7 * 1024);
        assert!(rollup_bytes(text, "Anonymous:").is_err());
    }

    #[test]
    fn an_ended_thread_is_made_up_for_by_the_whole() {
        let earlier = CpuTime { threads: [(1, 5), (2, 700_000_000)].into(), whole_ns: 700_000_000 };
        let with_both = CpuTime { threads: [(1, 9), (2, 700_000_003)].into(), whole_ns: 710_000_000 };
        assert_eq!(with_both.since_ns(&earlier), 7);
        let one_ended = CpuTime { threads: [(1, 9)].into(), whole_ns: 1_500_000_000 };
        assert_eq!(one_ended.since_ns(&earlier), 800_000_000);
    }

    #[test]
    fn this_process_can_be_measured() {
        let server = Server::new(&[std::process::id()]).unwrap();
        let memory = server.memory().unwrap();
        assert!(memory.rss_bytes > 0 && memory.anonymous_bytes <= memory.rss_bytes);
        assert!(server.rss_bytes().unwrap() > 0);
        assert!(Server::new(&[u32::MAX]).is_err());
    }
}
