//! The profiles of `tuning/sysctl`, as they are compiled in. The files are those of `sysctl.d(5)`; what stands before each line says
//! why it is there, whether a higher value may stay, and what was measured.

/// What a machine is tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Name {
    /// As many connections as there is memory for
    Density,
    /// Events that arrive soon
    Latency,
    /// Many bytes
    Throughput,
}

/// One line of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The name of the setting, as `sysctl` has it.
    pub(super) key: &'static str,
    /// Its value, with single spaces in it.
    pub(super) value: &'static str,
    /// True when a kernel may be without it.
    pub(super) is_optional: bool,
    /// True when a higher value is as good, so that it is never lowered.
    pub(super) is_least: bool,
    /// Why it is there.
    pub(super) reason: String,
    /// What it did when it was measured, or why it was not.
    pub(super) measured: String,
}

impl Name {
    /// How it is called on the command line and in files.
    pub(super) fn word(self) -> &'static str {
        match self {
            Name::Density => "density",
            Name::Latency => "latency",
            Name::Throughput => "throughput",
        }
    }

    /// The profile's lines in the order of the file.
    ///
    /// # Panics
    /// When the file is not written as it should be; a test reads them all.
    pub(super) fn lines(self) -> Vec<Line> {
        let text = match self {
            Name::Density => include_str!("../../tuning/sysctl/density.conf"),
            Name::Latency => include_str!("../../tuning/sysctl/latency.conf"),
            Name::Throughput => include_str!("../../tuning/sysctl/throughput.conf"),
        };
        parse(text)
    }
}

fn parse(text: &'static str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix('#') {
            comment.push(words.trim());
        } else if line.is_empty() {
            comment.clear();
        } else {
            let said = std::mem::take(&mut comment).join(" ");
            let (reason, measured) =
                split(&said).unwrap_or_else(|| panic!("no reason, or nothing measured: {line}"));
            let (is_least, reason) = match reason.strip_prefix("at least: ") {
                Some(reason) => (true, reason),
                None => (
                    false,
                    reason.strip_prefix("exactly: ").unwrap_or_else(|| panic!("at least or exactly: {line}")),
                ),
            };
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no value: {line}"));
            // A dash is how sysctl.d says that a setting may be missing.
            let bare = key.trim().trim_start_matches('-');
            lines.push(Line {
                key: bare,
                value: value.trim(),
                is_optional: key.starts_with('-'),
                is_least,
                reason: reason.to_owned(),
                measured: measured.to_owned(),
            });
        }
    }
    lines
}

/// What is before `measured: ` or `not measured: `, and from there on.
fn split(said: &str) -> Option<(&str, &str)> {
    let at = said.find("not measured: ").or_else(|| said.find("measured: "))?;
    let (reason, measured) = said.split_at(at);
    (!reason.is_empty()).then_some((reason.trim_end(), measured))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;
    use std::path::Path;

    #[test]
    fn each_line_has_a_reason_and_what_was_measured_and_is_a_setting_of_this_kernel_or_optional() {
        for name in Name::value_variants() {
            let lines = name.lines();
            assert!(!lines.is_empty());
            for line in &lines {
                assert!(line.reason.len() > 20 && line.measured.len() > 20, "{line:?}");
                let file = Path::new("/proc/sys").join(line.key.replace('.', "/"));
                assert!(line.is_optional || file.exists(), "{} is not in this kernel", line.key);
                assert_eq!(lines.iter().filter(|other| other.key == line.key).count(), 1, "{}", line.key);
                let numbers = line.value.split(' ').all(|word| word.parse::<u64>().is_ok());
                assert!(!line.is_least || numbers, "{} is no number", line.key);
            }
        }
    }

    #[test]
    fn a_dash_says_that_a_setting_may_be_missing() {
        let lines = parse("# a header\n\n# at least: reasons.\n# measured: nothing.\n-a.b = 1 2\n");
        let expected = Line {
            key: "a.b",
            value: "1 2",
            is_optional: true,
            is_least: true,
            reason: "reasons.".to_owned(),
            measured: "measured: nothing.".to_owned(),
        };
        assert_eq!(lines, [expected]);
    }
}
