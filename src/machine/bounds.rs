//! What bounds the number of connections, each bound with its number and with the lines that raise it.

use super::descriptors::Descriptors;
use super::facts::Facts;
use super::memory::stays_free;
use super::sockets::Measured;
use crate::config::Config;
use serde::Serialize;

/// Memory of the process for an idle connection that is in a room or two: 153 bytes measured for the connection (`docs/tls.md`), and
/// what the memberships take.
const CONNECTION_BYTES: u64 = 256;
/// What TLS 1.3 adds to that, as measured there.
const TLS_BYTES: u64 = 1_028;
/// Kernel memory for a connection where it cannot be measured: Linux 6.18 on x86-64, sockets in an epoll and their files.
pub(super) const KERNEL_BYTES: u64 = 4_200;
/// What the kernel's table of connections has for an entry (`nf_conntrack` in `/proc/slabinfo`).
const TRACKED_BYTES: u64 = 256;

/// One thing that bounds the number of connections.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bound {
    /// A word for programs, which stays what it is.
    pub(super) name: &'static str,
    /// What it is called by persons.
    pub(super) called: &'static str,
    /// How many connections it allows; `None` when it does not bound their number.
    pub(super) connections: Option<u64>,
    /// How that comes.
    pub(super) what: String,
}

/// The way from what binds now to what binds next.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    /// The bound that is raised.
    pub(super) name: &'static str,
    /// How many connections there can be then.
    pub(super) connections: u64,
    /// What is to be written where, or run.
    pub(super) lines: Vec<String>,
}

/// Memory for a connection, in bytes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PerConnection {
    pub(super) throng_bytes: u64,
    pub(super) kernel_bytes: u64,
    /// True when the kernel's part was measured now; else it is what was measured elsewhere.
    pub(super) is_measured: bool,
    /// How, or why not.
    pub(super) how: String,
}

impl PerConnection {
    pub(super) fn new(config: &Config, measured: &Result<Measured, String>) -> PerConnection {
        let has_tls = !config.tls.certificate_file.is_empty();
        let tracked = |it: &Measured| if it.is_tracked { TRACKED_BYTES } else { 0 };
        let (kernel_bytes, how) = match measured {
            Ok(it) => {
                (it.bytes + tracked(it), format!("{} connections were opened here", grouped(it.pairs as u64)))
            }
            Err(why) => (KERNEL_BYTES, format!("not measured here: {why}")),
        };
        PerConnection {
            throng_bytes: CONNECTION_BYTES + if has_tls { TLS_BYTES } else { 0 },
            kernel_bytes,
            is_measured: measured.is_ok(),
            how,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.throng_bytes + self.kernel_bytes
    }
}

/// All bounds, the tightest first, and after them what bounds something else.
pub(super) fn bounds(
    config: &Config,
    facts: &Facts,
    shards: usize,
    each: &PerConnection,
    is_tracked: bool,
) -> Vec<Bound> {
    let ceiling = |limit: u64| {
        Descriptors::new(config, shards, usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 30)).ceiling
            as u64
    };
    let mut bounds = Vec::new();
    let mut add = |name, called, connections, what| bounds.push(Bound { name, called, connections, what });

    let files = Descriptors::new(config, shards, facts.open_files_max());
    let kept = files.limit.min(files.limit.saturating_sub(files.ceiling));
    add(
        "open_files",
        "open files",
        Some(if files.suffice() { files.ceiling as u64 } else { 0 }),
        format!(
            "limit {}, of which {} are for no connection",
            grouped(files.limit as u64),
            grouped(kept as u64)
        ),
    );
    let wanted = u64::from(config.limits.connections_max);
    if wanted > 0 {
        add("configuration", "limits.connections_max", Some(wanted), "the configuration says so".to_owned());
    }
    if let Some(most) = facts.sysctl("fs.nr_open") {
        let what = format!("fs.nr_open = {}, the most that a limit on open files can be", grouped(most));
        add("nr_open", "the most open files", Some(ceiling(most)), what);
    }
    if let (Some(most), Some(open)) = (facts.sysctl("fs.file-max"), facts.open_files_of_all) {
        let what = format!("fs.file-max = {}, {} open; root may exceed it", grouped(most), grouped(open));
        add("file_max", "files of all programs", Some(ceiling(most.saturating_sub(open))), what);
    }
    // The server lets nobody in any more before all is taken.
    let free = |of: u64| stays_free(of, config.limits.memory_percent_max);
    let mut memory = |name, title, left: u64, of: u64, place: &str| {
        let what = format!(
            "{} left of {}{place}, {} stay free (limits.memory_percent_max); {} for each, idle",
            size(left),
            size(of),
            size(free(of)),
            grouped(each.bytes())
        );
        add(name, title, Some(left.saturating_sub(free(of)) / each.bytes()), what);
    };
    if let Some(left) = facts.memory_available_bytes {
        memory("memory", "memory", left, facts.memory_total_bytes.unwrap_or(left), "");
    }
    if let Some(left) = facts.cgroup.memory_left_bytes {
        let of = facts.cgroup.memory_left_of_bytes.unwrap_or(left);
        memory("cgroup_memory", "memory of the group", left, of, " in the control group");
    }
    if let Some(most) = facts.sysctl("net.netfilter.nf_conntrack_max") {
        let count = facts.sysctl("net.netfilter.nf_conntrack_count").unwrap_or(0);
        if is_tracked || count > 0 {
            let what = format!("nf_conntrack_max = {}, {} in use", grouped(most), grouped(count));
            add("conntrack", "tracked connections", Some(most.saturating_sub(count)), what);
        } else {
            let what = format!("nf_conntrack_max = {}, and nothing is tracked", grouped(most));
            add("conntrack", "tracked connections", None, what);
        }
    }
    if let Some(pages) = facts.sysctl_part("net.ipv4.tcp_mem", 2) {
        let bytes = pages.saturating_mul(rustix::param::page_size() as u64);
        let what = format!("{} for bytes under way in all sockets; an idle one has none", size(bytes));
        add("tcp_mem", "buffers of TCP", None, what);
    }
    if let (Some(first), Some(last)) = (
        facts.sysctl_part("net.ipv4.ip_local_port_range", 0),
        facts.sysctl_part("net.ipv4.ip_local_port_range", 1),
    ) {
        let what = format!(
            "none for clients; a proxy on this machine has {} from each of its addresses",
            grouped((last + 1).saturating_sub(first))
        );
        add("ports", "ports", None, what);
    }
    bounds.sort_by_key(|bound| bound.connections.unwrap_or(u64::MAX));
    bounds
}

/// What raises the first bound, then the next, until `asked` is reached or memory binds.
pub(super) fn steps(
    config: &Config,
    facts: &Facts,
    shards: usize,
    bounds: &[Bound],
    asked: Option<u64>,
) -> Vec<Step> {
    let rows: Vec<(&'static str, u64)> =
        bounds.iter().filter_map(|bound| Some((bound.name, bound.connections?))).collect();
    let memory = rows.iter().find(|(name, _)| *name == "memory").map(|(_, connections)| *connections);
    let stop = asked.unwrap_or(u64::MAX).min(memory.unwrap_or(u64::MAX));
    let mut steps: Vec<Step> = Vec::new();
    for (name, connections) in rows.iter().take_while(|(_, connections)| *connections < stop) {
        let above = rows.iter().map(|(_, other)| *other).filter(|other| other > connections);
        let goal = above.min().unwrap_or(stop).min(stop);
        if goal == u64::MAX {
            break;
        }
        let descriptors = Descriptors::new(config, shards, 0).needed_for(goal as usize) as u64;
        let lines = match *name {
            // Where both are equal, the next step raises both.
            "open_files" if rows.contains(&("nr_open", *connections)) => Vec::new(),
            "open_files" => {
                raise_limit(facts, descriptors.min(facts.sysctl("fs.nr_open").unwrap_or(u64::MAX)))
            }
            "nr_open" => {
                let mut lines = sysctl_lines("fs.nr_open", descriptors, "density");
                lines.extend(raise_limit(facts, descriptors));
                lines
            }
            "file_max" => {
                let open = facts.open_files_of_all.unwrap_or(0);
                sysctl_lines("fs.file-max", descriptors + open, "density")
            }
            "configuration" => {
                vec![format!("in the configuration, under [limits]: connections_max = {goal}")]
            }
            "conntrack" => {
                let count = facts.sysctl("net.netfilter.nf_conntrack_count").unwrap_or(0);
                vec![
                    "better not track them at all, in /etc/nftables.conf, in chains that hook prerouting and output at priority raw:".to_owned(),
                    format!("    tcp dport {} notrack   and   tcp sport {0} notrack", config.server.listen.port()),
                    format!("or, in /etc/sysctl.d/90-throng.conf: net.netfilter.nf_conntrack_max = {}", goal + count),
                ]
            }
            "cgroup_memory" => vec![
                "systemctl edit throng, under [Service]: MemoryHigh=infinity and MemoryMax=infinity, or more than they are".to_owned(),
                "in a container, more than it has: docker run --memory=…".to_owned(),
            ],
            _ => Vec::new(),
        };
        if !lines.is_empty() {
            steps.push(Step { name, connections: goal, lines });
        }
    }
    steps
}

fn raise_limit(facts: &Facts, descriptors: u64) -> Vec<String> {
    let unit = if facts.unit.is_some() { "" } else { "under systemd: " };
    vec![
        format!("{unit}systemctl edit throng, under [Service]: LimitNOFILE={descriptors}"),
        format!("for logins, in /etc/security/limits.d/throng.conf: * hard nofile {descriptors}"),
        format!("in a container: docker run --ulimit nofile={descriptors}:{descriptors}"),
    ]
}

fn sysctl_lines(key: &str, value: u64, profile: &str) -> Vec<String> {
    vec![
        format!("throng tune --profile {profile} --apply"),
        format!("or, in /etc/sysctl.d/90-throng.conf, and then sysctl --system: {key} = {value}"),
    ]
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves a number of one digit or more.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}
