//! What there is to know of the machine, as its files say it. Nothing is judged here, and what cannot be read is `None`.

use super::root::{Root, field};
use serde::Serialize;
use std::collections::BTreeMap;

/// Settings of the kernel that matter to a server of many connections.
const SYSCTLS: &[&str] = &[
    "fs.nr_open",
    "fs.file-max",
    "net.core.somaxconn",
    "net.core.netdev_max_backlog",
    "net.core.default_qdisc",
    "net.core.busy_poll",
    "net.core.busy_read",
    "net.core.rps_sock_flow_entries",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_migrate_req",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.ip_local_port_range",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_count",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.swappiness",
];
/// Groups that a group may be in, one in the other.
const GROUPS_MAX: usize = 64;
/// Where units and what changes them are looked for, the strongest first.
const UNIT_FOLDERS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// A machine as one process sees it. Sizes are bytes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Facts {
    pub(super) kernel: Option<String>,
    /// Processors that the process may use.
    pub(super) cpus: usize,
    pub(super) cpus_online: usize,
    pub(super) memory_total_bytes: Option<u64>,
    /// What can be had without swapping.
    pub(super) memory_available_bytes: Option<u64>,
    pub(super) swap_total_bytes: Option<u64>,
    pub(super) commit_limit_bytes: Option<u64>,
    pub(super) open_files_soft: Option<u64>,
    /// `None` also when there is no limit.
    pub(super) open_files_hard: Option<u64>,
    /// Files that all processes have open.
    pub(super) open_files_of_all: Option<u64>,
    pub(super) sysctls: BTreeMap<&'static str, String>,
    pub(super) transparent_huge_pages: Option<String>,
    pub(super) clock_source: Option<String>,
    pub(super) cgroup: Cgroup,
    pub(super) interfaces: Vec<Interface>,
    /// Connections that found no place to wait for being accepted, since the start of the machine.
    pub(super) listen_overflows: Option<u64>,
    /// Packets that found no place to wait for a processor, since then.
    pub(super) backlog_drops: Option<u64>,
    pub(super) unit: Option<Unit>,
}

/// What the groups that the process is in allow it, the tightest of each.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Cgroup {
    /// 1 or 2; `None` when there are no groups.
    pub(super) version: Option<u8>,
    pub(super) memory_max_bytes: Option<u64>,
    /// What is left in the group that has the least left, with what can be given back, and the bound of that one.
    pub(super) memory_left_bytes: Option<u64>,
    pub(super) memory_left_of_bytes: Option<u64>,
    /// From here on the kernel slows the process down.
    pub(super) memory_high_bytes: Option<u64>,
    pub(super) pids_max: Option<u64>,
    /// Processor time that may be used, in thousandths of a processor.
    pub(super) cpu_max_milli: Option<u64>,
}

impl Cgroup {
    /// A group has this bound and has taken so much.
    fn note_left(&mut self, of: u64, taken: u64) {
        let left = of.saturating_sub(taken);
        if self.memory_left_bytes.is_none_or(|least| left < least) {
            (self.memory_left_bytes, self.memory_left_of_bytes) = (Some(left), Some(of));
        }
    }
}

/// A network interface with a device behind it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) receive_queues: usize,
    pub(super) send_queues: usize,
    /// True when packets of some queue are spread over processors by software (RPS).
    pub(super) spreads: bool,
    /// Processors that have taken interrupts of it.
    pub(super) irq_cpus: usize,
}

/// A unit of systemd that starts throng.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Unit {
    pub(super) file: String,
    /// `LimitNOFILE`, the hard one; `infinity` is what the kernel allows at the most.
    pub(super) limit_nofile: Option<String>,
    /// True when the process that is looked at was started by it.
    pub(super) runs_this: bool,
}

impl Facts {
    /// The machine as the process `pid` sees it, or as this one does.
    pub(super) fn read(root: &Root, pid: Option<u32>) -> Facts {
        let process = pid.map_or("proc/self".to_owned(), |pid| format!("proc/{pid}"));
        let kib = |name: &str, key: &str| root.field(name, key).map(|kib| kib << 10);
        let online = root.text("sys/devices/system/cpu/online").map_or(0, |list| count(&list));
        let allowed = root.text(&format!("{process}/status")).and_then(|text| {
            text.lines().find_map(|line| Some(count(line.strip_prefix("Cpus_allowed_list:")?.trim())))
        });
        let (soft, hard) = open_files(root, &process);
        let sysctls = SYSCTLS.iter().filter_map(|&key| Some((key, root.sysctl(key)?)));
        let groups = root.text(&format!("{process}/cgroup")).unwrap_or_default();
        Facts {
            kernel: root.text("proc/sys/kernel/osrelease"),
            cpus: allowed.unwrap_or(online).max(1),
            cpus_online: online,
            memory_total_bytes: kib("proc/meminfo", "MemTotal"),
            memory_available_bytes: kib("proc/meminfo", "MemAvailable"),
            swap_total_bytes: kib("proc/meminfo", "SwapTotal"),
            commit_limit_bytes: kib("proc/meminfo", "CommitLimit"),
            open_files_soft: soft,
            open_files_hard: hard,
            open_files_of_all: root.numbers("proc/sys/fs/file-nr").first().copied(),
            sysctls: sysctls.collect(),
            transparent_huge_pages: root.text("sys/kernel/mm/transparent_hugepage/enabled").and_then(chosen),
            clock_source: root.text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            cgroup: cgroup(root, &groups),
            interfaces: interfaces(root),
            listen_overflows: netstat(root, "ListenOverflows"),
            backlog_drops: backlog_drops(root),
            unit: unit(root, &groups),
        }
    }

    /// A setting of the kernel that is one number.
    pub(super) fn sysctl(&self, key: &str) -> Option<u64> {
        self.sysctls.get(key)?.parse().ok()
    }

    /// One of the numbers of a setting that has several.
    pub(super) fn sysctl_part(&self, key: &str, index: usize) -> Option<u64> {
        self.sysctls.get(key)?.split(' ').nth(index)?.parse().ok()
    }

    /// The limit on open files that the server will have: it raises the soft one itself as far as the kernel lets it.
    pub(super) fn open_files_max(&self) -> usize {
        let most = self.sysctl("fs.nr_open").unwrap_or(1 << 30);
        let limit = match (self.open_files_soft, self.open_files_hard) {
            // The kernel takes no hard limit above its own, not even the one that is there.
            (Some(soft), hard) if hard.is_none_or(|hard| hard > most) => soft,
            (soft, hard) => hard.or(soft).unwrap_or(1 << 30),
        };
        usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 30)
    }
}

/// The soft and the hard limit of a process; `None` when there is none.
fn open_files(root: &Root, process: &str) -> (Option<u64>, Option<u64>) {
    let limits = root.text(&format!("{process}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut words = line.unwrap_or_default().split_ascii_whitespace().map(|word| word.parse().ok());
    (words.next().flatten(), words.next().flatten())
}

/// How many numbers there are in a list such as `0-3,7`.
fn count(list: &str) -> usize {
    let of_range = |range: &str| match range.split_once('-') {
        Some((first, last)) => {
            Some((last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1).min(1 << 16))
        }
        None => range.parse::<usize>().ok().map(|_| 1),
    };
    list.split(',').filter_map(of_range).sum()
}

/// The word in brackets of `always [madvise] never`.
fn chosen(text: String) -> Option<String> {
    let (_, after) = text.split_once('[')?;
    Some(after.split_once(']')?.0.to_owned())
}

/// The path of the group that accounts for `kind`, in the lines of `/proc/PID/cgroup` (`cgroups(7)`): `0::/path` is the one of version 2, for which
/// the kind is empty, `4:memory:/path` those of version 1.
fn path_of<'a>(groups: &'a str, kind: &str) -> Option<&'a str> {
    let lines = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?))
    });
    let mut paths = lines.filter(|(kinds, _)| kinds.split(',').any(|it| it == kind)).map(|(_, path)| path);
    paths.next()
}

/// True where there are groups of version 2.
fn has_groups_2(root: &Root) -> bool {
    root.has("sys/fs/cgroup/cgroup.controllers")
}

/// The folders of the groups that account for the memory of a process, each with its version.
pub(super) fn memory_groups(root: &Root, groups: &str) -> Vec<(u8, String)> {
    let (version, kind, base) =
        if has_groups_2(root) { (2, "", "sys/fs/cgroup") } else { (1, "memory", "sys/fs/cgroup/memory") };
    let folders = path_of(groups, kind).map(|path| upwards(base, path)).unwrap_or_default();
    folders.into_iter().map(|folder| (version, folder)).collect()
}

/// The bytes of memory that a group has taken, without what it has read of files and can give back: all but what is mapped, as programs
/// that run.
pub(super) fn taken_bytes(root: &Root, version: u8, group: &str) -> u64 {
    let (taken, read, mapped) = match version {
        2 => ("memory.current", ["inactive_file", "active_file"], "file_mapped"),
        _ => ("memory.usage_in_bytes", ["total_inactive_file", "total_active_file"], "total_mapped_file"),
    };
    let stat = root.text(&format!("{group}/memory.stat")).unwrap_or_default();
    let bytes = |key: &str| field(&stat, key).unwrap_or(0);
    let back = read.map(bytes).iter().sum::<u64>().saturating_sub(bytes(mapped));
    root.number(&format!("{group}/{taken}")).unwrap_or(0).saturating_sub(back)
}

fn cgroup(root: &Root, groups: &str) -> Cgroup {
    let mut cgroup = Cgroup::default();
    if has_groups_2(root) {
        let Some(path) = path_of(groups, "") else { return cgroup };
        cgroup.version = Some(2);
        for group in upwards("sys/fs/cgroup", path) {
            let number = |name: &str| root.number(&format!("{group}/{name}"));
            lower(&mut cgroup.pids_max, number("pids.max"));
            let (high, max) = (number("memory.high"), number("memory.max"));
            lower(&mut cgroup.memory_high_bytes, high);
            lower(&mut cgroup.memory_max_bytes, max);
            if let Some(of) = [high, max].into_iter().flatten().min() {
                cgroup.note_left(of, taken_bytes(root, 2, &group));
            }
            // `200000 100000`, or `max 100000`.
            let quota = root.numbers(&format!("{group}/cpu.max"));
            lower(&mut cgroup.cpu_max_milli, milli(quota.first(), quota.get(1)));
        }
        return cgroup;
    }
    for (kind, folder) in [("memory", "memory"), ("pids", "pids"), ("cpu", "cpu")] {
        let Some(path) = path_of(groups, kind) else { continue };
        let base = format!("sys/fs/cgroup/{folder}");
        if !root.has(&base) {
            continue;
        }
        cgroup.version = Some(1);
        for group in upwards(&base, path) {
            let number = |name: &str| root.number(&format!("{group}/{name}"));
            match kind {
                // No limit is a number of pages that no machine has.
                "memory" => {
                    if let Some(max) = number("memory.limit_in_bytes").filter(|&max| max < 1 << 62) {
                        lower(&mut cgroup.memory_max_bytes, Some(max));
                        cgroup.note_left(max, taken_bytes(root, 1, &group));
                    }
                }
                "pids" => lower(&mut cgroup.pids_max, number("pids.max")),
                // No limit is -1, which is no number here.
                _ => {
                    let (quota, period) = (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us"));
                    lower(&mut cgroup.cpu_max_milli, milli(quota.as_ref(), period.as_ref()));
                }
            }
        }
    }
    cgroup
}

/// The folder of a group and of all that it is in. A container may not see its own name: then its group is the folder at the top.
fn upwards(base: &str, path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    let below = (0..=parts.len().min(GROUPS_MAX)).rev();
    below.map(|depth| [&[base], &parts[..depth]].concat().join("/")).collect()
}

fn lower(least: &mut Option<u64>, value: Option<u64>) {
    *least = match (*least, value) {
        (Some(least), Some(value)) => Some(least.min(value)),
        (least, value) => least.or(value),
    };
}

fn milli(quota_us: Option<&u64>, period_us: Option<&u64>) -> Option<u64> {
    let (&quota, &period) = (quota_us?, period_us?);
    (quota > 0 && period > 0).then(|| quota.saturating_mul(1_000) / period)
}

fn interfaces(root: &Root) -> Vec<Interface> {
    let interrupts = root.text("proc/interrupts").unwrap_or_default();
    let names = root.names("sys/class/net").into_iter();
    let real = names.filter(|name| root.has(&format!("sys/class/net/{name}/device")));
    real.map(|name| {
        let queues = root.names(&format!("sys/class/net/{name}/queues"));
        let count = |start: &str| queues.iter().filter(|queue| queue.starts_with(start)).count();
        let spreads = queues.iter().any(|queue| {
            let cpus = root.text(&format!("sys/class/net/{name}/queues/{queue}/rps_cpus"));
            cpus.is_some_and(|mask| {
                mask.chars().any(|digit| digit.is_ascii_digit() && digit != '0' || digit.is_ascii_lowercase())
            })
        });
        Interface {
            receive_queues: count("rx-"),
            send_queues: count("tx-"),
            spreads,
            irq_cpus: irq_cpus(root, &name, &interrupts),
            name,
        }
    })
    .collect()
}

/// Processors that have counted interrupts of an interface: of the lines that its device has, or that bear its name.
fn irq_cpus(root: &Root, name: &str, interrupts: &str) -> usize {
    let device = format!("sys/class/net/{name}/device");
    let mut numbers = root.names(&format!("{device}/msi_irqs"));
    if numbers.is_empty() {
        // Of a virtio device it is the device above that has the interrupts.
        numbers = root.names(&format!("{device}/../msi_irqs"));
    }
    let cpus = interrupts.lines().next().unwrap_or_default().split_ascii_whitespace().count();
    let mut taken = vec![false; cpus];
    for line in interrupts.lines().skip(1) {
        let Some((number, rest)) = line.split_once(':') else { continue };
        if !numbers.iter().any(|it| it == number.trim()) && !rest.contains(name) {
            continue;
        }
        for (cpu, word) in rest.split_ascii_whitespace().take(cpus).enumerate() {
            taken[cpu] |= word.parse::<u64>().is_ok_and(|count| count > 0);
        }
    }
    taken.into_iter().filter(|&taken| taken).count()
}

/// A counter of `/proc/net/netstat`: a line of names, then one of numbers.
fn netstat(root: &Root, name: &str) -> Option<u64> {
    let text = root.text("proc/net/netstat")?;
    let mut lines = text.lines();
    while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
        if let Some(at) = names.split_ascii_whitespace().position(|it| it == name) {
            return numbers.split_ascii_whitespace().nth(at)?.parse().ok();
        }
    }
    None
}

/// The second column of `/proc/net/softnet_stat`, hexadecimal, of all processors.
fn backlog_drops(root: &Root) -> Option<u64> {
    let text = root.text("proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    Some(text.lines().filter_map(dropped).sum())
}

/// The first unit that is there, with what is put over it.
fn unit(root: &Root, groups: &str) -> Option<Unit> {
    for unit in ["throng.service", "throng@.service"] {
        let Some(folder) = UNIT_FOLDERS.iter().find(|folder| root.has(&format!("{folder}/{unit}"))) else {
            continue;
        };
        let file = format!("{folder}/{unit}");
        // In the order in which systemd reads them: the unit, then what changes it by name, the last word counts.
        let mut drop_ins: Vec<(String, String)> = Vec::new();
        for folder in UNIT_FOLDERS {
            let names = root.names(&format!("{folder}/{unit}.d")).into_iter();
            drop_ins.extend(
                names
                    .filter(|name| name.ends_with(".conf"))
                    .map(|name| (name.clone(), format!("{folder}/{unit}.d/{name}"))),
            );
        }
        // Of two of one name, the one in the stronger folder is the only one.
        drop_ins.sort_by(|one, other| one.0.cmp(&other.0));
        drop_ins.dedup_by(|later, earlier| later.0 == earlier.0);
        let files = std::iter::once(&file).chain(drop_ins.iter().map(|(_, file)| file));
        let said = files.filter_map(|file| limit_nofile(&root.text(file)?)).next_back();
        let runs_this = groups.lines().any(|line| {
            line.rsplit('/').any(|part| part.starts_with("throng") && part.ends_with(".service"))
        });
        return Some(Unit { file: format!("/{file}"), limit_nofile: said, runs_this });
    }
    None
}

/// The hard limit of the last `LimitNOFILE=`, which may be written `soft:hard`.
fn limit_nofile(text: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("LimitNOFILE="));
    let value = lines.next_back()?.trim();
    Some(value.rsplit(':').next().unwrap_or(value).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!((count("0-3,7"), count("0"), count(""), count("5-2,x")), (5, 1, 0, 0));
    }

    #[test]
    fn a_group_is_in_those_above_it_and_a_container_in_the_top_one() {
        assert_eq!(upwards("g", "/a/b"), ["g/a/b", "g/a", "g"]);
        assert_eq!(upwards("g", "/../.."), ["g"]);
    }

    #[test]
    fn the_hard_limit_of_a_unit_is_the_one_that_counts() {
        assert_eq!(limit_nofile("[Service]\nLimitNOFILE=1024:524288\n").as_deref(), Some("524288"));
        assert_eq!(limit_nofile("LimitNOFILE=1\n LimitNOFILE=infinity"), Some("infinity".to_owned()));
        assert_eq!(limit_nofile("LimitCORE=0"), None);
    }
}
