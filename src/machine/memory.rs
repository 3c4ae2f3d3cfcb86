//! How full the memory is that this process may have: that of the machine, and of the control groups around it.

use super::facts::{memory_groups, taken_bytes};
use super::root::{Root, field};
use rustix::system::sysinfo;

/// The most that stays free of a bound, in bytes.
const FREE_BYTES_MAX: u64 = 1 << 30;
/// Of each open socket, the kernel counts so much as memory that can be had: its inode and its name are in caches that shrink, but not these two
/// (959 bytes on Linux 6.18).
const SOCKET_CACHE_BYTES: u64 = 1 << 10;

/// A bound on memory, and how much is taken of it, by whomever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What is taken and cannot be given back, in bytes. Above `of_bytes` for a moment, where that slows down and does not refuse.
    pub bytes: u64,
    /// The bound, in bytes.
    pub of_bytes: u64,
}

impl Taken {
    /// What is taken as a part of the bound, mostly at most 1.
    pub fn ratio(self) -> f64 {
        self.bytes as f64 / self.of_bytes.max(1) as f64
    }

    /// What is left, as a part of what stays free when so many hundredths may be taken: below 1 it is less. Infinite for 100.
    pub fn spare(self, percent_max: u32) -> f64 {
        match stays_free(self.of_bytes, percent_max) {
            0 => f64::INFINITY,
            free => self.of_bytes.saturating_sub(self.bytes) as f64 / free as f64,
        }
    }
}

/// What stays free of a bound, in bytes, when so many hundredths may be taken: of a large machine no more than what a storm of clients takes
/// while we look away.
pub(super) fn stays_free(of_bytes: u64, percent_max: u32) -> u64 {
    (of_bytes / 100 * u64::from(100 - percent_max.min(100))).min(FREE_BYTES_MAX)
}

/// Where the kernel tells of the memory of this process.
#[derive(Clone, Debug)]
pub struct Memory {
    root: Root,
    /// The folders of the groups that it is in, each with the version of its kind.
    groups: Vec<(u8, String)>,
}

impl Memory {
    /// The memory of this process. It stays in its groups.
    pub fn here() -> Memory {
        Memory::below(Root::new(None))
    }

    fn below(root: Root) -> Memory {
        let groups = memory_groups(&root, &root.text("proc/self/cgroup").unwrap_or_default());
        Memory { root, groups }
    }

    /// The least of the bounds, in bytes.
    pub fn max_bytes(&self) -> u64 {
        // Not from /proc/meminfo, which not everybody is shown (ProcSubset=pid).
        let machine = sysinfo();
        let total = machine.totalram as u64 * u64::from(machine.mem_unit);
        self.bounds().into_iter().map(|taken| taken.of_bytes).fold(total, u64::min)
    }

    /// All that bounds it: the machine, and each group that has a bound. Without the machine where `/proc/meminfo` is not shown.
    pub fn bounds(&self) -> Vec<Taken> {
        let groups = self.groups.iter().filter_map(|(version, group)| {
            // `max` is no number, and no bound. From `memory.high` on the kernel has the process wait.
            let names: &[&str] =
                if *version == 2 { &["memory.high", "memory.max"] } else { &["memory.limit_in_bytes"] };
            let number = |name: &&str| self.root.number(&format!("{group}/{name}"));
            let least = names.iter().filter_map(number).min()?;
            Some(Taken { bytes: taken_bytes(&self.root, *version, group), of_bytes: least })
        });
        self.machine().into_iter().chain(groups).collect()
    }

    /// What of the machine's memory is taken; `None` where `/proc/meminfo` is not shown.
    pub fn machine(&self) -> Option<Taken> {
        let text = self.root.text("proc/meminfo")?;
        let bytes = |key: &str| field(&text, key).map(|kib| kib << 10);
        // Pages of a size of their own are for those who ask for such.
        let of_bytes = bytes("MemTotal")?.saturating_sub(bytes("Hugetlb").unwrap_or(0));
        let caches = bytes("SReclaimable").unwrap_or(0).min(self.sockets() * SOCKET_CACHE_BYTES);
        let left = bytes("MemAvailable")?.saturating_sub(caches);
        Some(Taken { bytes: of_bytes.saturating_sub(left), of_bytes })
    }

    /// Sockets that are open on this machine, or in this container.
    fn sockets(&self) -> u64 {
        self.root.field("proc/net/sockstat", "sockets: used").unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// A made-up machine that goes with the test.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, files: &[(&str, &str)]) -> Machine {
            let folder = std::env::temp_dir().join(format!("throng-memory-{}-{name}", std::process::id()));
            let machine = Machine(folder);
            files.iter().for_each(|(file, text)| machine.write(file, text));
            machine
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a folder of ours");
            fs::write(path, text).expect("a file of ours");
        }

        fn memory(&self) -> Memory {
            Memory::below(Root::new(Some(&self.0)))
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    const MEMINFO: &str = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";

    #[test]
    fn the_machine_is_a_bound() {
        let machine = Machine::new("machine", &[("proc/meminfo", MEMINFO)]);
        let taken = machine.memory().bounds();
        assert_eq!(taken, [Taken { bytes: 600 << 10, of_bytes: 1000 << 10 }]);
        assert!((taken[0].ratio() - 0.6).abs() < 1e-9);
        assert_eq!(machine.memory().max_bytes(), 1000 << 10);
    }

    #[test]
    fn what_open_sockets_have_cannot_be_had() {
        let meminfo = format!("{MEMINFO}SReclaimable:    90 kB\nHugetlb:         100 kB\n");
        let machine = Machine::new("sockets", &[("proc/meminfo", &meminfo)]);
        assert_eq!(machine.memory().machine(), Some(Taken { bytes: 500 << 10, of_bytes: 900 << 10 }));
        machine.write("proc/net/sockstat", "sockets: used 50\nTCP: inuse 9\n");
        assert_eq!(machine.memory().machine().map(|taken| taken.bytes), Some(550 << 10));
        machine.write("proc/net/sockstat", "sockets: used 5000\n");
        assert_eq!(machine.memory().machine().map(|taken| taken.bytes), Some(590 << 10), "at most that");
    }

    #[test]
    fn a_part_stays_free_and_of_much_no_more_than_is_needed() {
        let spare = |bytes: u64, of_bytes: u64, percent: u32| Taken { bytes, of_bytes }.spare(percent);
        assert_eq!([spare(90, 100, 90), spare(95, 100, 90), spare(80, 100, 90)], [1.0, 0.5, 2.0]);
        assert_eq!(spare(110, 100, 90), 0.0, "it is above its bound");
        assert_eq!(spare(100, 100, 100), f64::INFINITY);
        assert_eq!(spare(254 << 30, 256 << 30, 95), 2.0);
    }

    #[test]
    fn groups_are_bounds_and_what_was_read_of_files_is_not_taken_but_what_runs_of_them_is() {
        let machine = Machine::new(
            "groups",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/system.slice/throng.service\n"),
                ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
                ("sys/fs/cgroup/system.slice/memory.high", "max\n"),
                ("sys/fs/cgroup/system.slice/memory.max", "10000\n"),
                ("sys/fs/cgroup/system.slice/memory.current", "5000\n"),
                ("sys/fs/cgroup/system.slice/throng.service/memory.high", "2000\n"),
                ("sys/fs/cgroup/system.slice/throng.service/memory.max", "3000\n"),
                ("sys/fs/cgroup/system.slice/throng.service/memory.current", "1900\n"),
                (
                    "sys/fs/cgroup/system.slice/throng.service/memory.stat",
                    "anon 1\nfile_mapped 30\ninactive_file 60\nactive_file 70\n",
                ),
            ],
        );
        let of_machine = Taken { bytes: 600 << 10, of_bytes: 1000 << 10 };
        let (own, slice) = (Taken { bytes: 1800, of_bytes: 2000 }, Taken { bytes: 5000, of_bytes: 10000 });
        assert_eq!(machine.memory().bounds(), [of_machine, own, slice]);
        assert_eq!(machine.memory().max_bytes(), 2000);
    }

    #[test]
    fn groups_of_the_first_version_are_bounds() {
        let machine = Machine::new(
            "first",
            &[
                ("proc/self/cgroup", "5:cpu:/\n4:memory:/box\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "3900\n"),
                ("sys/fs/cgroup/memory/box/memory.stat", "total_inactive_file 1000\n"),
            ],
        );
        let bounds = machine.memory().bounds();
        assert_eq!(bounds.first(), Some(&Taken { bytes: 2900, of_bytes: 5000 }));
        assert_eq!(machine.memory().max_bytes(), 5000);
    }

    #[test]
    fn where_nothing_is_told_nothing_is_known() {
        let machine = Machine::new("nothing", &[("proc/meminfo", "MemTotal: 1000 kB\n")]);
        assert_eq!(machine.memory().bounds(), []);
        assert!(Memory::here().max_bytes() > 1 << 20);
    }
}
