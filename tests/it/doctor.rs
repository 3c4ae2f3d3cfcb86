//! `throng doctor` on this machine and on made-up ones, and `throng tune` on made-up ones, and on this one in a network namespace of its own.

use crate::harness::server::{Outcome, PROGRAM, run, run_command};
use crate::harness::{Client, Server, eventually};
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A machine of files, below a folder of its own that goes when this is dropped.
struct Machine {
    folder: PathBuf,
}

impl Machine {
    /// An ordinary one, with 8 processors, 16 GiB and a limit of 524,288 open files.
    fn new(name: &str) -> Machine {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("machine-{name}"));
        // What a test that failed has left.
        fs::remove_dir_all(&folder).ok();
        let machine = Machine { folder };
        machine
            .with(
                "proc/self/limits",
                "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024   524288   files\n",
            )
            .with("proc/self/status", "Name:\tthrong\nCpus_allowed_list:\t0-7\n")
            .with("proc/self/cgroup", "0::/\n")
            .with(
                "proc/meminfo",
                "MemTotal:       16777216 kB\nMemAvailable:   15728640 kB\nSwapTotal:             0 kB\n",
            )
            .with("proc/sys/kernel/osrelease", "6.12.1\n")
            .with("proc/sys/fs/nr_open", "1048576\n")
            .with("proc/sys/fs/file-max", "9223372036854775807\n")
            .with("proc/sys/fs/file-nr", "1024\t0\t9223372036854775807\n")
            .with("proc/sys/net/core/somaxconn", "65535\n")
            .with("proc/sys/net/ipv4/tcp_mem", "188000\t251000\t376000\n")
            .with("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
            .with("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n")
            .with("proc/sys/net/ipv4/tcp_notsent_lowat", "4294967295\n")
            .with("proc/sys/net/ipv4/tcp_max_orphans", "65536\n")
            .with("sys/devices/system/cpu/online", "0-7\n")
            .with("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
    }

    /// The same with this text in a file.
    fn with(self, name: &str, text: &str) -> Machine {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().expect("it is below the folder")).expect("a folder can be made");
        fs::write(path, text).expect("a file can be written");
        self
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let root = self.folder.to_str().expect("a path of ours");
        run(&[], &[args, &["--root", root]].concat())
    }

    /// What the doctor says of it, as JSON.
    fn doctor(&self, args: &[&str]) -> Value {
        judged(&self.run(&[&["doctor", "--json"], args].concat()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What is left is overwritten the next time.
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// The JSON object of an outcome, in which the exit status must be as it was.
fn judged(outcome: &Outcome) -> Value {
    let report: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", outcome.stdout, outcome.stderr));
    assert_eq!(report["exit_status"].as_i64(), outcome.code.map(i64::from));
    report
}

fn bound(report: &Value, name: &str) -> Option<u64> {
    let bounds = report["bounds"].as_array().expect("bounds");
    let bound =
        bounds.iter().find(|bound| bound["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"));
    bound["connections"].as_u64()
}

fn severity<'a>(report: &'a Value, name: &str) -> &'a str {
    let findings = report["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|finding| finding["name"] == name);
    finding.unwrap_or_else(|| panic!("no {name}: {report}"))["severity"].as_str().expect("a word")
}

/// The program with a limit on open files, soft and hard.
fn with_descriptors(descriptors: u64, args: &[&str]) -> Outcome {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), PROGRAM]).args(args);
    run_command(shell, &[])
}

#[test]
fn it_says_the_number_of_connections_that_the_server_logs() {
    let hard = getrlimit(Resource::Nofile).maximum.map_or(4_000, |hard| hard.min(1 << 20));
    for descriptors in [300, 1_024, 4_000.min(hard), hard] {
        let mut server = Server::with_descriptors(descriptors as u32);
        let logged = server.wait_for_log("found the ceiling")["fields"]["connections_max"].as_u64();
        let report = judged(&with_descriptors(descriptors, &["doctor", "--json", "--shards", "2"]));
        assert_eq!(bound(&report, "open_files"), logged, "with {descriptors}");
        assert_eq!((report["connections"].as_u64(), report["binds"].as_str()), (logged, Some("open_files")));
    }
}

#[test]
fn with_too_few_open_files_it_holds_nothing_as_the_server_does_not_start() {
    let outcome = with_descriptors(120, &["serve", "--shards", "2", "--listen", "127.0.0.1:0"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let report = judged(&with_descriptors(120, &["doctor", "--json", "--shards", "2"]));
    assert_eq!(report["connections"], 0);
    // Nor are there enough to see what a socket costs, and it says so.
    assert_eq!(report["per_connection"]["is_measured"], false);
    assert!(report["per_connection"]["how"].as_str().expect("words").contains("too few"), "{report}");
}

#[test]
fn the_first_line_is_the_answer_and_the_steps_lead_on() {
    let outcome = with_descriptors(1_000, &["doctor", "--shards", "2"]);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "This machine holds 770 connections; open files bind first.");
    assert!(
        outcome.stdout.contains("raise open files:\n") && outcome.stdout.contains("LimitNOFILE="),
        "{lines:#?}"
    );
    assert!(outcome.stdout.contains("bytes: ") && !outcome.stdout.contains('\u{1b}'), "{lines:#?}");
}

#[test]
fn the_status_says_whether_it_holds_what_is_asked_for() {
    let machine = Machine::new("asked");
    assert_eq!(machine.doctor(&[])["exit_status"], 0);
    assert_eq!(machine.doctor(&["--connections", "500000"])["exit_status"], 0);
    let report = machine.doctor(&["--connections", "600000"]);
    assert_eq!((&report["exit_status"], &report["holds_asked"]), (&3.into(), &false.into()));
    // One step is enough, and it gives just what is asked for.
    let steps = report["steps"].as_array().expect("steps");
    assert_eq!((steps.len(), &steps[0]["connections"]), (1, &600_000.into()));
    let line = steps[0]["lines"][0].as_str().expect("a line");
    let limit = line.rsplit_once("LimitNOFILE=").expect("the limit").1;
    let raised = machine.with("proc/self/limits", &format!("Max open files 1024 {limit} files\n"));
    assert_eq!(raised.doctor(&["--connections", "600000"])["connections"], 600_000);
    // What the configuration asks for is asked for as well, and bounds.
    let report = raised.doctor(&["--set", "limits.connections_max=700000"]);
    assert_eq!((&report["exit_status"], &report["connections"]), (&3.into(), &600_000.into()));
    let report = raised.doctor(&["--set", "limits.connections_max=5000"]);
    assert_eq!((&report["exit_status"], &report["binds"]), (&0.into(), &"configuration".into()));
}

#[test]
fn a_wrong_command_line_or_configuration_is_a_status_of_its_own() {
    let machine = Machine::new("wrong");
    for args in [
        &["doctor", "--connections", "many"][..],
        &["doctor", "--set", "limits.no=1"],
        // There is no such process.
        &["doctor", "--pid", "77"],
        &["tune"],
        &["tune", "--profile", "speed"],
        &["tune", "--profile", "density", "--apply", "--revert"],
    ] {
        let outcome = machine.run(args);
        assert!(outcome.code == Some(2) && !outcome.stderr.is_empty(), "{args:?}: {outcome:?}");
    }
}

/// What stays free by `limits.memory_percent_max`, in bytes.
fn five_percent(of: u64) -> u64 {
    of / 100 * 5
}

#[test]
fn in_a_container_the_group_binds() {
    let group = "sys/fs/cgroup";
    let machine = Machine::new("container")
        .with("proc/self/cgroup", "0::/../../kubepods/pod1\n")
        .with(&format!("{group}/cgroup.controllers"), "cpu memory pids\n")
        .with(&format!("{group}/memory.max"), "536870912\n")
        .with(&format!("{group}/memory.current"), "134217728\n")
        .with(&format!("{group}/memory.stat"), "anon 1\ninactive_file 67108864\n")
        .with(&format!("{group}/memory.high"), "max\n")
        .with(&format!("{group}/pids.max"), "8\n")
        .with(&format!("{group}/cpu.max"), "150000 100000\n");
    let report = machine.doctor(&[]);
    // 448 MiB are left, and 4,200 and 256 bytes are for each: nothing was opened on a machine that is made up.
    assert_eq!(report["per_connection"]["is_measured"], false);
    assert_eq!(
        (report["binds"].as_str(), report["connections"].as_u64()),
        (Some("cgroup_memory"), Some(((448 << 20) - five_percent(512 << 20)) / 4_456))
    );
    for name in ["cpu_max", "pids_max", "buffers"] {
        assert_eq!(severity(&report, name), "warning", "{name}");
    }
    assert_eq!(report["exit_status"], 1);
    assert_eq!(report["machine"]["cgroup"]["cpu_max_milli"], 1_500);
}

#[test]
fn groups_of_the_first_version_bind_as_well() {
    let machine = Machine::new("groups-1")
        .with("proc/self/cgroup", "4:memory:/a/b\n3:cpu,cpuacct:/a\n")
        .with("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        .with("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "104857600\n")
        .with("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "4857600\n")
        .with("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "209715200\n")
        .with("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n")
        .with("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
    let report = machine.doctor(&[]);
    assert_eq!(
        (report["binds"].as_str(), report["connections"].as_u64()),
        (Some("cgroup_memory"), Some((100_000_000 - five_percent(100 << 20)) / 4_456))
    );
    assert!(report["machine"]["cgroup"]["cpu_max_milli"].is_null());
}

#[test]
fn a_tiny_machine_has_too_little_memory() {
    let machine = Machine::new("tiny")
        .with("proc/meminfo", "MemTotal:       262144 kB\nMemAvailable:   131072 kB\nSwapTotal:  524288 kB\n")
        .with("proc/sys/net/ipv4/tcp_mem", "1500\t2000\t3000\n")
        .with("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    let report = machine.doctor(&["--shards", "16"]);
    assert_eq!(
        (report["binds"].as_str(), report["connections"].as_u64()),
        (Some("memory"), Some(((128 << 20) - five_percent(256 << 20)) / 4_456))
    );
    // Nothing that is written anywhere gives more memory.
    assert_eq!(report["steps"].as_array().map(Vec::len), Some(0));
    for name in ["clock", "cpus", "buffers"] {
        assert_eq!(severity(&report, name), "warning", "{name}");
    }
    assert_eq!(severity(&report, "swap"), "advice");
}

#[test]
fn a_firewall_that_tracks_connections_binds_and_one_that_does_not_is_nothing() {
    let idle = Machine::new("tracked")
        .with("proc/sys/net/netfilter/nf_conntrack_max", "65536\n")
        .with("proc/sys/net/netfilter/nf_conntrack_count", "0\n");
    let report = idle.doctor(&[]);
    assert_eq!((bound(&report, "conntrack"), severity(&report, "conntrack")), (None, "ok"));
    let busy = idle.with("proc/sys/net/netfilter/nf_conntrack_count", "536\n");
    let report = busy.doctor(&[]);
    assert_eq!((report["binds"].as_str(), report["connections"].as_u64()), (Some("conntrack"), Some(65_000)));
    assert_eq!((severity(&report, "conntrack"), &report["exit_status"]), ("warning", &1.into()));
    assert!(report["steps"][0]["lines"][1].as_str().expect("a line").contains("notrack"), "{report}");
    // What buffers of TCP may have and how many ports there are bounds no connections.
    assert_eq!((bound(&report, "tcp_mem"), bound(&report, "ports")), (None, None));
}

#[test]
fn the_limit_of_the_unit_is_told_of_and_a_process_can_be_looked_at() {
    let machine = Machine::new("unit")
        .with("lib/systemd/system/throng.service", "[Service]\nLimitNOFILE=1000000\n")
        .with("etc/systemd/system/throng.service.d/more.conf", "[Service]\nLimitNOFILE=1024:2000000\n")
        .with("proc/77/limits", "Max open files 2000 2000 files\n")
        .with("proc/77/status", "Cpus_allowed_list:\t0,2\n")
        .with("proc/77/cgroup", "0::/system.slice/throng.service\n");
    let report = machine.doctor(&[]);
    assert_eq!(severity(&report, "unit"), "advice");
    assert_eq!(report["machine"]["unit"]["limit_nofile"], "2000000");
    let report = machine.doctor(&["--pid", "77"]);
    assert_eq!((severity(&report, "unit"), &report["shards"]), ("ok", &2.into()));
    // 112 and 4 for each shard are for no client, and an eighth of the others, 256 at the most, to say no with.
    assert_eq!(bound(&report, "open_files"), Some(2_000 - 120 - 235));
}

#[test]
fn a_hard_limit_above_the_kernels_own_cannot_be_had() {
    let machine = Machine::new("lowered").with("proc/sys/fs/nr_open", "1000\n");
    let report = machine.doctor(&["--shards", "2"]);
    assert_eq!((bound(&report, "open_files"), bound(&report, "nr_open")), (Some(791), Some(770)));
}

#[test]
fn a_profile_is_shown_applied_and_put_back() {
    let machine = Machine::new("tuned")
        .with("proc/sys/net/core/somaxconn", "4096\n")
        .with("proc/sys/fs/file-max", "9223372036854775807\n");
    let shown = machine.run(&["tune", "--profile", "density"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains("net.core.somaxconn: 4096 -> 65535"), "{}", shown.stdout);
    assert!(shown.stdout.contains("fs.file-max = 9223372036854775807: kept"), "{}", shown.stdout);
    assert!(shown.stdout.contains("measured: ") && !machine.has("etc") && !machine.has("var"));

    let applied = machine.run(&["tune", "--profile", "density", "--apply"]);
    assert_eq!(applied.code, Some(0), "{}{}", applied.stdout, applied.stderr);
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "65535\n");
    assert_eq!(machine.text("proc/sys/fs/nr_open"), "16777216\n");
    let file = machine.text("etc/sysctl.d/90-throng.conf");
    assert!(file.starts_with("# The profile density of throng "), "{file}");
    assert!(file.contains("\nnet.core.somaxconn = 65535\n"), "{file}");
    // What was more is not less after the next start, either.
    assert!(file.contains("\nfs.file-max = 9223372036854775807\n"), "{file}");

    // Once more changes nothing, and does not take what is now for what was before.
    assert_eq!(machine.run(&["tune", "--profile", "density", "--apply"]).code, Some(0));
    let shown = machine.run(&["tune", "--profile", "density"]);
    assert!(shown.stdout.starts_with("Nothing would change for density."), "{}", shown.stdout);

    let reverted = machine.run(&["tune", "--revert"]);
    assert_eq!(reverted.code, Some(0), "{}{}", reverted.stdout, reverted.stderr);
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "4096\n");
    assert_eq!(machine.text("proc/sys/fs/nr_open"), "1048576\n");
    assert!(!machine.has("etc/sysctl.d/90-throng.conf") && !machine.has("var/lib/throng/sysctl-before.json"));
    // There is nothing left to put back, which is no fault.
    assert_eq!(machine.run(&["tune", "--revert"]).code, Some(0));
}

#[test]
fn another_profile_puts_back_what_it_does_not_have() {
    let machine = Machine::new("other").with("proc/sys/net/core/somaxconn", "128\n");
    assert_eq!(machine.run(&["tune", "--profile", "density", "--apply"]).code, Some(0));
    // Some settings of this profile are not on this machine, and need not be.
    assert_eq!(machine.run(&["tune", "--profile", "latency", "--apply"]).code, Some(0));
    assert_eq!(machine.text("proc/sys/net/ipv4/tcp_notsent_lowat"), "16384\n");
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "128\n");
    assert_eq!(machine.text("proc/sys/net/ipv4/tcp_slow_start_after_idle"), "0\n");
    assert!(!machine.text("etc/sysctl.d/90-throng.conf").contains("somaxconn"));
    assert_eq!(machine.run(&["tune", "--revert"]).code, Some(0));
    assert_eq!(machine.text("proc/sys/net/ipv4/tcp_slow_start_after_idle"), "1\n");
    assert_eq!(machine.text("proc/sys/net/ipv4/tcp_notsent_lowat"), "4294967295\n");
}

#[test]
fn a_setting_that_is_not_there_is_reported_and_the_others_are_made() {
    let machine = Machine::new("missing").with("proc/sys/net/core/somaxconn", "128\n");
    fs::remove_file(machine.folder.join("proc/sys/fs/nr_open")).expect("it was there");
    let applied = machine.run(&["tune", "--profile", "density", "--apply"]);
    assert_eq!(applied.code, Some(1), "{}", applied.stdout);
    assert!(applied.stdout.contains("fs.nr_open: missing"), "{}", applied.stdout);
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "65535\n");
}

#[test]
fn what_was_before_survives_an_end_in_the_middle() {
    // Ended after the file with the values before was there, and one of the values was written: by hand here what apply does.
    let machine = Machine::new("crashed")
        .with("proc/sys/net/core/somaxconn", "65535\n")
        .with(
            "var/lib/throng/sysctl-before.json",
            r#"{"profile":"density","version":"0.1.0","values":{"fs.nr_open":"1048576","net.core.somaxconn":"128"}}"#,
        )
        // And a file that was not yet renamed.
        .with("etc/sysctl.d/90-throng.new", "# The profile");
    assert_eq!(machine.run(&["tune", "--profile", "density", "--apply"]).code, Some(0));
    assert_eq!(machine.run(&["tune", "--revert"]).code, Some(0));
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "128\n");
    assert!(!machine.has("etc/sysctl.d/90-throng.new"));

    // One that somebody else could have written is not believed: root would write what it says to the kernel's settings.
    let before = "var/lib/throng/sysctl-before.json";
    let machine = machine.with("proc/sys/kernel/core_pattern", "core\n").with(
        before,
        r#"{"profile":"density","version":"0.1.0","values":{"kernel.core_pattern":"|/tmp/theirs"}}"#,
    );
    let anybodys = fs::Permissions::from_mode(0o666);
    fs::set_permissions(machine.folder.join(before), anybodys).expect("it is ours");
    let reverted = machine.run(&["tune", "--revert"]);
    assert_eq!(reverted.code, Some(1));
    assert!(reverted.stderr.contains("it is not trusted"), "{}", reverted.stderr);
    assert_eq!(machine.text("proc/sys/kernel/core_pattern"), "core\n");
    fs::remove_file(machine.folder.join(before)).expect("it is there");

    // A file that says nothing sensible is not overwritten: nothing is changed that could not be put back.
    let machine = machine.with("var/lib/throng/sysctl-before.json", "{");
    let applied = machine.run(&["tune", "--profile", "density", "--apply"]);
    assert_eq!(applied.code, Some(1));
    assert!(applied.stderr.contains("sysctl-before.json"), "{}", applied.stderr);
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "128\n");
}

#[test]
fn what_lies_where_it_writes_is_replaced_and_not_followed() {
    let machine = Machine::new("planted").with("victim", "as it was");
    for name in ["etc/sysctl.d/90-throng.new", "var/lib/throng/sysctl-before.new"] {
        let path = machine.folder.join(name);
        fs::create_dir_all(path.parent().expect("it is below the folder")).expect("a folder can be made");
        symlink(machine.folder.join("victim"), path).expect("it is not there yet");
    }
    assert_eq!(machine.run(&["tune", "--profile", "density", "--apply"]).code, Some(0));
    assert_eq!(machine.text("victim"), "as it was");
    assert_eq!(machine.run(&["tune", "--revert"]).code, Some(0));
}

#[test]
fn only_one_at_a_time_changes_settings() {
    let machine = Machine::new("parallel").with("proc/sys/net/core/somaxconn", "128\n");
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let profiles = ["density", "latency", "density", "latency", "density", "latency"];
        let machine = &machine;
        let tune = |profile| move || machine.run(&["tune", "--profile", profile, "--apply"]);
        let threads: Vec<_> = profiles.into_iter().map(|profile| scope.spawn(tune(profile))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it ran")).collect()
    });
    for outcome in &outcomes {
        let is_refused = outcome.stderr.contains("another throng tune runs at this moment");
        assert!(outcome.code == Some(0) || (outcome.code == Some(1) && is_refused), "{}", outcome.stderr);
    }
    assert!(outcomes.iter().any(|outcome| outcome.code == Some(0)));
    assert_eq!(machine.run(&["tune", "--revert"]).code, Some(0));
    assert_eq!(machine.text("proc/sys/net/core/somaxconn"), "128\n");
    assert_eq!(machine.text("proc/sys/net/ipv4/tcp_slow_start_after_idle"), "1\n");
    assert_eq!(machine.text("proc/sys/net/ipv4/tcp_notsent_lowat"), "4294967295\n");
}

/// Runs a script as root in a network namespace of its own, with the kernel's settings below the machine's folder.
fn in_a_namespace(machine: &Machine, script: &str) -> Outcome {
    fs::remove_dir_all(machine.folder.join("proc")).expect("it was there");
    std::os::unix::fs::symlink("/proc", machine.folder.join("proc")).expect("a link can be made");
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["-n", "-m", "/bin/sh", "-c", script, PROGRAM]).arg(&machine.folder);
    run_command(command, &[])
}

#[test]
fn the_kernel_takes_the_values_and_gives_them_back() {
    if !geteuid().is_root() {
        // Nobody else may change settings, which is said.
        let outcome = run(&[], &["tune", "--profile", "latency", "--apply"]);
        assert_eq!(outcome.code, Some(2));
        assert!(outcome.stderr.contains("sudo"), "{}", outcome.stderr);
        return;
    }
    let machine = Machine::new("kernel");
    let outcome = in_a_namespace(
        &machine,
        "cat /proc/sys/net/ipv4/tcp_slow_start_after_idle; \
         \"$0\" tune --profile latency --apply --root \"$1\" >&2; echo $?; cat /proc/sys/net/ipv4/tcp_slow_start_after_idle; \
         \"$0\" tune --revert --root \"$1\" >&2; echo $?; cat /proc/sys/net/ipv4/tcp_slow_start_after_idle",
    );
    let seen: Vec<&str> = outcome.stdout.split_ascii_whitespace().collect();
    assert_eq!(seen, ["1", "0", "0", "0", "1"], "{}", outcome.stderr);
}

#[test]
fn values_that_the_kernel_refuses_are_reported() {
    if !geteuid().is_root() {
        return;
    }
    // As in a container: what there is of the kernel's settings can be read only.
    let machine = Machine::new("refused");
    let outcome = in_a_namespace(
        &machine,
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
         exec \"$0\" tune --profile latency --apply --root \"$1\"",
    );
    assert_eq!(outcome.code, Some(1), "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("tcp_slow_start_after_idle stays 1: "), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("container"), "{}", outcome.stdout);
}

#[test]
fn a_client_is_steered_to_the_shard_of_its_processor() {
    let server = Server::with(&["server.pin=true", "server.steer=true"]);
    let allowed = sched_getaffinity(None).expect("the kernel tells");
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
    let mut clients: Vec<Client> = Vec::new();
    for (index, &cpu) in cpus.iter().enumerate() {
        let mut only = CpuSet::new();
        only.set(cpu);
        // Over loopback, the processor of a client takes its packets.
        sched_setaffinity(None, &only).expect("it is one of ours");
        clients.extend((0..8).map(|_| server.client()));
        // Listeners heed their processors since Linux 6.2, and with one processor for two shards there is nothing to steer.
        if cpus.len() == 2 && kernel() >= (6, 2) {
            eventually("its clients are on one shard", || {
                (server.stats()["shards"][index]["connections"] == 8).then_some(())
            });
        }
    }
    server.wait_for_number("connections", clients.len() as u64);
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel tells");
    let mut parts =
        release.split(|letter: char| !letter.is_ascii_digit()).map_while(|part| part.parse().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
