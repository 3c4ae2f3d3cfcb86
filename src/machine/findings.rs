//! What is to be said of a machine beside its bounds: each finding with what mends it.

use super::bounds::{Bound, grouped, size};
use super::facts::{Facts, Interface};
use crate::config::Config;
use serde::Serialize;

/// Places for connections that wait to be accepted, which the server asks for at each listener.
const BACKLOG: u64 = 65_535;
/// What the clock of a machine may be read from without a call of the kernel.
const FAST_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];
/// The oldest kernel that throng is tried with.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Threads of a process that are no shards: the control port, Redis, the backend, the neighbours, and some to spare.
const THREADS: u64 = 16;

/// How much a finding matters, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// It is what bounds the number of connections.
    Binding,
    /// It costs something that can be had back.
    Warning,
    /// It may help, by what this machine is for.
    Advice,
    /// It is as it should be.
    Ok,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// A word for programs, which stays what it is.
    pub(super) name: &'static str,
    pub(super) severity: Severity,
    pub(super) what: String,
    /// The command or the line that mends it; empty where there is nothing to mend.
    pub(super) mend: String,
}

/// What was looked at, the most severe first.
pub(super) fn findings(
    config: &Config,
    facts: &Facts,
    shards: usize,
    bounds: &[Bound],
    is_short: bool,
) -> Vec<Finding> {
    let mut all = Findings(Vec::new());
    if let Some(first) = bounds.first() {
        let severity = if first.connections.is_some() { Severity::Binding } else { Severity::Ok };
        let what = format!("{} bind first: {}", first.called, first.what);
        let mend = if is_short { "see the steps: it is less than was asked for" } else { "see the steps" };
        all.add("bound", severity, what, mend);
    }
    waiting(&mut all, facts);
    tracking(&mut all, bounds);
    processors(&mut all, facts, shards);
    memory(&mut all, config, facts, shards);
    interfaces(&mut all, facts);
    kernel(&mut all, facts);
    unit(&mut all, facts);
    all.0.sort_by_key(|finding| finding.severity);
    all.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        name: &'static str,
        severity: Severity,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.0.push(Finding { name, severity, what: what.into(), mend: mend.into() });
    }

    fn ok(&mut self, name: &'static str, what: impl Into<String>) {
        self.add(name, Severity::Ok, what, "");
    }
}

/// Connections and packets that wait for us.
fn waiting(all: &mut Findings, facts: &Facts) {
    match facts.sysctl("net.core.somaxconn") {
        Some(places) if places < BACKLOG => all.add(
            "somaxconn",
            if places < 4_096 { Severity::Warning } else { Severity::Advice },
            format!(
                "net.core.somaxconn = {}: of a crowd that comes while a shard is busy, more than that many wait a second or longer",
                grouped(places)
            ),
            "throng tune --profile density --apply, or net.core.somaxconn = 65535",
        ),
        Some(places) => all.ok("somaxconn", format!("net.core.somaxconn = {}", grouped(places))),
        None => {}
    }
    if facts.sysctl("net.ipv4.tcp_syncookies") == Some(0) {
        all.add(
            "syncookies",
            Severity::Warning,
            "net.ipv4.tcp_syncookies = 0: a flood of SYN shuts out everybody",
            "net.ipv4.tcp_syncookies = 1",
        );
    }
    match facts.listen_overflows {
        Some(0) => all.ok("listen_overflows", "no connection found its listener full since the start of the machine"),
        Some(count) => all.add(
            "listen_overflows",
            Severity::Advice,
            format!(
                "{} connections found their listener full since the start of the machine; some program's, perhaps not ours",
                grouped(count)
            ),
            "nstat -az TcpExtListenOverflows, now and later; if it grows: net.core.somaxconn = 65535",
        ),
        None => {}
    }
    if let Some(bytes) = facts.sysctl("net.ipv4.tcp_notsent_lowat") {
        let of_kernel = facts.sysctl_part("net.ipv4.tcp_wmem", 2).unwrap_or(4 << 20);
        if bytes >= of_kernel {
            all.add(
                "tcp_notsent_lowat",
                Severity::Advice,
                format!("the kernel keeps up to {} for each client that does not read", size(of_kernel)),
                "throng tune --profile density --apply, or net.ipv4.tcp_notsent_lowat = 131072",
            );
        } else {
            all.ok(
                "tcp_notsent_lowat",
                format!("a client that does not read has {} in the kernel", size(bytes)),
            );
        }
    }
    if let Some(count @ 1..) = facts.backlog_drops {
        all.add(
            "netdev_max_backlog",
            Severity::Advice,
            format!(
                "{} packets found no place to wait for a processor since the start of the machine",
                grouped(count)
            ),
            "cat /proc/net/softnet_stat, its second column, now and later; if it grows: net.core.netdev_max_backlog = 16384",
        );
    }
}

fn tracking(all: &mut Findings, bounds: &[Bound]) {
    let Some(bound) = bounds.iter().find(|bound| bound.name == "conntrack") else {
        all.ok("conntrack", "connections are not tracked (nf_conntrack is not there)");
        return;
    };
    match bound.connections {
        Some(_) => all.add(
            "conntrack",
            Severity::Warning,
            format!("each connection has an entry in the firewall's table: {}", bound.what),
            "leave the port out (notrack in a raw chain), or raise net.netfilter.nf_conntrack_max: docs/tuning.md",
        ),
        None => all.ok("conntrack", bound.what.clone()),
    }
    if let Some(bound) = bounds.iter().find(|bound| bound.name == "ports") {
        all.ok("ports", bound.what.clone());
    }
}

fn processors(all: &mut Findings, facts: &Facts, shards: usize) {
    let cpus = facts.cpus;
    if shards > cpus {
        all.add(
            "cpus",
            Severity::Warning,
            format!("{shards} shards share {cpus} processors"),
            "server.shards = 0 in the configuration, or more processors",
        );
    } else {
        let of = if cpus < facts.cpus_online { format!(" of {}", facts.cpus_online) } else { String::new() };
        all.ok("cpus", format!("{cpus}{of} processors for {shards} shards"));
    }
    if let Some(milli) = facts.cgroup.cpu_max_milli
        && milli < shards as u64 * 1_000
    {
        all.add(
            "cpu_max",
            Severity::Warning,
            format!(
                "the control group may use {}.{} processors, and there are {shards} shards: all stand still when it is used up",
                milli / 1_000,
                milli % 1_000 / 100
            ),
            format!("server.shards = {} in the configuration, or CPUQuota= of the unit", (milli / 1_000).max(1)),
        );
    }
    let threads = shards as u64 + THREADS;
    if let Some(most) = facts.cgroup.pids_max.filter(|&most| most < threads) {
        all.add(
            "pids_max",
            Severity::Warning,
            format!("the control group may have {most} threads, and {threads} are to be had"),
            format!("TasksMax={threads} of the unit, or docker run --pids-limit"),
        );
    }
    if let Some(clock) = &facts.clock_source {
        if FAST_CLOCKS.contains(&clock.as_str()) {
            all.ok("clock", format!("the clock is {clock}"));
        } else {
            all.add(
                "clock",
                Severity::Warning,
                format!("the clock is {clock}: each look at it is a call of the kernel"),
                "tsc=reliable on the kernel's command line, where the processor's counter is",
            );
        }
    }
}

fn memory(all: &mut Findings, config: &Config, facts: &Facts, shards: usize) {
    if let Some(high) = facts.cgroup.memory_high_bytes {
        all.add(
            "memory_high",
            Severity::Advice,
            format!("above {} the kernel slows the server down (memory.high)", size(high)),
            "MemoryHigh= of the unit, well above what its connections take",
        );
    }
    let left = [facts.memory_available_bytes, facts.cgroup.memory_left_bytes].into_iter().flatten().min();
    let buffers = config.outbox.total_bytes_max + config.limits.receive_bytes_max;
    if let Some(left) = left.filter(|&left| buffers > left / 2) {
        all.add(
            "buffers",
            Severity::Warning,
            format!(
                "outbox.total_bytes_max and limits.receive_bytes_max allow {}, and {} are there",
                size(buffers),
                size(left)
            ),
            "lower outbox.total_bytes_max: what is kept for slow clients and what connections take, together",
        );
    }
    // Whatever it is makes no difference with 15,000 idle connections: docs/tuning.md.
    if let Some(word) = &facts.transparent_huge_pages {
        all.ok("transparent_huge_pages", format!("transparent huge pages: {word}"));
    }
    if let Some(swap @ 1..) = facts.swap_total_bytes {
        all.add(
            "swap",
            Severity::Advice,
            format!("{} of swap: a client whose state was moved there waits for the disk", size(swap)),
            "MemorySwapMax=0 in the unit, or swapoff -a",
        );
    }
    if facts.sysctl("vm.overcommit_memory") == Some(2) {
        all.add(
            "overcommit",
            Severity::Warning,
            "vm.overcommit_memory = 2: memory that is reserved counts as used, and shards reserve what they may need",
            "vm.overcommit_memory = 0",
        );
    }
    // A block from 64 KiB on is a mapping of its own; shards and rooms have few, slow clients one each.
    let blocks = config.outbox.total_bytes_max / (64 << 10) + 64 * shards as u64;
    if let Some(most) = facts.sysctl("vm.max_map_count").filter(|&most| most < blocks.min(65_530)) {
        all.add(
            "max_map_count",
            Severity::Warning,
            format!(
                "vm.max_map_count = {}: so many slow clients can be served, and outbox.total_bytes_max allows more",
                grouped(most)
            ),
            "vm.max_map_count = 65530",
        );
    }
    // The smallest socket that holds a message under way has a page of it.
    let (pages, most) = (facts.sysctl_part("net.ipv4.tcp_mem", 1), facts.memory_total_bytes);
    if let (Some(pages), Some(most)) = (pages, most) {
        let bytes = pages.saturating_mul(rustix::param::page_size() as u64);
        if bytes < most / 32 {
            all.add(
                "tcp_mem",
                Severity::Warning,
                format!(
                    "from {} of bytes under way on, TCP takes less of each client (net.ipv4.tcp_mem)",
                    size(bytes)
                ),
                "leave net.ipv4.tcp_mem to the kernel, which takes an eighth of the memory",
            );
        } else {
            all.ok("tcp_mem", format!("TCP may have {} under way before it takes less", size(bytes)));
        }
    }
}

fn interfaces(all: &mut Findings, facts: &Facts) {
    for Interface { name, receive_queues, send_queues, spreads, irq_cpus } in &facts.interfaces {
        let queues = format!("{name}: {receive_queues} queues to receive, {send_queues} to send");
        if facts.cpus_online > 1 && *receive_queues < facts.cpus_online && !spreads {
            all.add(
                "nic_queues",
                Severity::Advice,
                format!("{queues}; packets come in on {receive_queues} of {} processors", facts.cpus_online),
                format!(
                    "ethtool -L {name} combined {}; if it has not so many: echo {} > /sys/class/net/{name}/queues/rx-0/rps_cpus",
                    facts.cpus_online,
                    mask(facts.cpus_online)
                ),
            );
        } else if *irq_cpus == 1 && *receive_queues > 1 {
            all.add(
                "nic_irqs",
                Severity::Warning,
                format!("{queues}, and one processor takes the interrupts of all"),
                "systemctl start irqbalance, or a processor for each in /proc/irq/*/smp_affinity_list",
            );
        } else {
            all.ok("nic_queues", queues);
        }
    }
}

/// The mask of all processors as the files of the kernel have it: words of 32 bits with commas between.
fn mask(cpus: usize) -> String {
    let top = match cpus % 32 {
        0 => u32::MAX,
        bits => (1 << bits) - 1,
    };
    let words = std::iter::once(format!("{top:x}"));
    words.chain((1..cpus.div_ceil(32)).map(|_| "ffffffff".to_owned())).collect::<Vec<_>>().join(",")
}

fn kernel(all: &mut Findings, facts: &Facts) {
    let Some(release) = &facts.kernel else { return };
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().ok());
    let version: (Option<u32>, Option<u32>) = (parts.next().flatten(), parts.next().flatten());
    match version {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_MIN => all.add(
            "kernel",
            Severity::Warning,
            format!(
                "Linux {release} is older than {}.{}, and nobody has tried throng there",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            "a newer kernel",
        ),
        _ => all.ok("kernel", format!("Linux {release}")),
    }
}

fn unit(all: &mut Findings, facts: &Facts) {
    let Some(unit) = &facts.unit else { return };
    match &unit.limit_nofile {
        None => all.add(
            "unit",
            Severity::Warning,
            format!("{} has no LimitNOFILE=, so systemd's default holds", unit.file),
            "systemctl edit throng, under [Service]: LimitNOFILE=1100000",
        ),
        Some(limit) if unit.runs_this => all.ok("unit", format!("{} has LimitNOFILE={limit}", unit.file)),
        Some(limit) => all.add(
            "unit",
            Severity::Advice,
            format!("{} has LimitNOFILE={limit}; what is said here is of this shell", unit.file),
            "throng doctor --pid $(systemctl show -P MainPID throng)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_of_processors_is_written_as_the_kernel_does() {
        assert_eq!((mask(2).as_str(), mask(32).as_str(), mask(36).as_str()), ("3", "ffffffff", "f,ffffffff"));
    }
}
