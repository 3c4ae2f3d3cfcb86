//! How full the memory is that this process may have: that of the machine, and of the control groups around it.

use super::facts::{memory_groups, taken_bytes};
use super::root::Root;
use rustix::system::sysinfo;

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

    /// The bound of which the most is taken; `None` where the kernel tells of none.
    pub fn fullest(&self) -> Option<Taken> {
        let fuller = |one: &Taken, other: &Taken| one.ratio().total_cmp(&other.ratio());
        self.bounds().into_iter().max_by(fuller)
    }

    /// The least of the bounds, in bytes.
    pub fn max_bytes(&self) -> u64 {
        // Not from /proc/meminfo, which not everybody is shown (ProcSubset=pid).
        let machine = sysinfo();
        let total = machine.totalram as u64 * u64::from(machine.mem_unit);
        self.bounds().into_iter().map(|taken| taken.of_bytes).fold(total, u64::min)
    }

    fn bounds(&self) -> Vec<Taken> {
        let kib = |key: &str| self.root.field("proc/meminfo", key).map(|kib| kib << 10);
        let machine = kib("MemTotal").zip(kib("MemAvailable"));
        let machine =
            machine.map(|(total, left)| Taken { bytes: total.saturating_sub(left), of_bytes: total });
        let groups = self.groups.iter().flat_map(|(version, group)| {
            // `max` is no number, and no bound. From `memory.high` on the kernel has the process wait.
            let names: &[&str] =
                if *version == 2 { &["memory.high", "memory.max"] } else { &["memory.limit_in_bytes"] };
            let number = |name: &&str| self.root.number(&format!("{group}/{name}"));
            let least = names.iter().filter_map(number).min()?;
            Some(Taken { bytes: taken_bytes(&self.root, *version, group), of_bytes: least })
        });
        machine.into_iter().chain(groups).collect()
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
        let taken = machine.memory().fullest().expect("it is told");
        assert_eq!(taken, Taken { bytes: 600 << 10, of_bytes: 1000 << 10 });
        assert!((taken.ratio() - 0.6).abs() < 1e-9);
        assert_eq!(machine.memory().max_bytes(), 1000 << 10);
    }

    #[test]
    fn the_fullest_group_counts_and_what_can_be_given_back_does_not() {
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
                    "anon 1\ninactive_file 60\nactive_file 40\n",
                ),
            ],
        );
        let memory = machine.memory();
        assert_eq!(memory.fullest(), Some(Taken { bytes: 1800, of_bytes: 2000 }));
        assert_eq!(memory.max_bytes(), 2000);
        // Others in the slice take the rest of it.
        machine.write("sys/fs/cgroup/system.slice/memory.current", "9900\n");
        assert_eq!(memory.fullest(), Some(Taken { bytes: 9900, of_bytes: 10000 }));
    }

    #[test]
    fn groups_of_the_first_version_are_bounds() {
        let machine = Machine::new(
            "first",
            &[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "5:cpu:/\n4:memory:/box\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "3900\n"),
                ("sys/fs/cgroup/memory/box/memory.stat", "total_inactive_file 1000\n"),
            ],
        );
        let memory = machine.memory();
        assert_eq!(
            memory.fullest(),
            Some(Taken { bytes: 600 << 10, of_bytes: 1000 << 10 }),
            "as full, and more"
        );
        assert_eq!(memory.max_bytes(), 5000);
        machine.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "5900\n");
        assert_eq!(memory.fullest(), Some(Taken { bytes: 4900, of_bytes: 5000 }));
    }

    #[test]
    fn where_nothing_is_told_nothing_is_known() {
        let memory = Machine::new("nothing", &[("proc/meminfo", "MemTotal: 1000 kB\n")]).memory();
        assert_eq!(memory.fullest(), None);
        assert!(Memory::here().max_bytes() > 1 << 20);
    }
}
