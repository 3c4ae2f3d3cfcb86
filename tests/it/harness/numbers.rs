//! `/metrics` as a scraper reads it.

use std::collections::BTreeMap;

/// One scrape: each sample with its labels, as `name{label="value",…}`.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    samples: BTreeMap<String, f64>,
    /// The type of each family.
    pub(crate) types: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads a scrape, strictly: every line is a comment that OpenMetrics knows or a sample, and the last is `# EOF`.
    pub(crate) fn parse(text: &str) -> Metrics {
        assert!(text.ends_with("# EOF\n"), "a scrape ends with # EOF");
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                match (words.next(), words.next(), words.next()) {
                    (Some("TYPE"), Some(name), Some(kind)) => {
                        assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
                    }
                    (Some("HELP" | "UNIT"), Some(_), Some(_)) | (Some("EOF"), None, None) => {}
                    _ => panic!("not a comment of a scrape: {line}"),
                }
                continue;
            }
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
            assert!(samples.insert(name.to_owned(), value).is_none(), "{name} twice");
        }
        Metrics { samples, types }
    }

    /// The sum of all samples of `name` whose labels include each of `labels`, written `label="value"`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.find(name, labels).iter().sum()
    }

    /// The samples of `name` whose labels include each of `labels`, in the order of their labels.
    pub(crate) fn find(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let found: Vec<f64> = self
            .samples
            .iter()
            .filter(|(key, _)| {
                let (base, rest) = key.split_once('{').unwrap_or((key, ""));
                base == name && labels.iter().all(|label| rest.contains(label))
            })
            .map(|(_, value)| *value)
            .collect();
        assert!(!found.is_empty(), "there is no {name} with {labels:?}");
        found
    }

    /// The names of all samples, without labels.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(|key| key.split_once('{').map_or(key.as_str(), |(name, _)| name))
    }
}
