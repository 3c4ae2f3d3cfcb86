//! What `/metrics` says, read as far as `throng top` needs it.

use crate::time::Time;
use std::collections::HashMap;

/// Samples that are taken of one name: twice what the most shards have to say of a duration. Others are more than we want to go through.
const SAMPLES_MAX: usize = 16_384;

/// One scrape.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrape {
    /// When it was made, by our clock.
    pub(super) at: Time,
    /// By name: the labels as they are written, and the number.
    samples: HashMap<String, Vec<(String, f64)>>,
}

impl Scrape {
    /// Reads a scrape. What cannot be read is left out: a newer server may say what we do not know.
    pub(super) fn parse(text: &str, at: Time) -> Scrape {
        let mut samples: HashMap<String, Vec<(String, f64)>> = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, number)) = line.rsplit_once(' ') else { continue };
            let Ok(number) = number.parse() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap_or(labels);
            let its = samples.entry(name.to_owned()).or_default();
            if its.len() < SAMPLES_MAX {
                its.push((labels.to_owned(), number));
            }
        }
        Scrape { at, samples }
    }

    /// All samples of `name` together; 0 when there is none.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.of(name, "")
    }

    /// The samples of `name` together that have this label, written `label="value"`; an empty one is had by all.
    pub(super) fn of(&self, name: &str, label: &str) -> f64 {
        let found = self.all(name).filter(|(labels, _)| has(labels, label));
        // The sum of nothing would be a zero with a sign.
        found.fold(0.0, |sum, (_, number)| sum + number)
    }

    /// True when there is such a sample.
    pub(super) fn has(&self, name: &str) -> bool {
        self.samples.contains_key(name)
    }

    /// The values that a label of `name` has, in the order in which they come.
    pub(super) fn values(&self, name: &str, label: &str) -> Vec<String> {
        let value = |labels: &str| {
            let (_, rest) = labels.split_once(&format!("{label}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        self.all(name).filter_map(|(labels, _)| value(labels)).collect()
    }

    /// The duration in seconds that a share `quantile` (0 to 1) of those that came since `earlier` did not exceed: within its bucket
    /// they are taken to be spread evenly. `None` when none came.
    pub(super) fn quantile(&self, earlier: &Scrape, name: &str, label: &str, quantile: f64) -> Option<f64> {
        let bucket = format!("{name}_bucket");
        let mut counts: Vec<(f64, f64)> = Vec::new();
        for (scrape, sign) in [(self, 1.0), (earlier, -1.0)] {
            for (labels, count) in scrape.all(&bucket).filter(|(labels, _)| has(labels, label)) {
                let Some((_, bound)) = labels.split_once("le=\"") else { continue };
                let bound = bound.split('"').next().unwrap_or_default().replace("+Inf", "inf");
                let Ok(bound) = bound.parse::<f64>() else { continue };
                counts.push((bound, sign * count));
            }
        }
        counts.sort_by(|one, other| one.0.total_cmp(&other.0));
        counts.dedup_by(|next, sum| {
            let is_same = next.0 == sum.0;
            sum.1 += if is_same { next.1 } else { 0.0 };
            is_same
        });
        let all = counts.last().map(|(_, count)| *count).filter(|count| *count >= 1.0)?;
        let rank = all * quantile;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in counts {
            if count >= rank && count > below {
                let within = (rank - below) / (count - below);
                return Some(if bound.is_finite() { lower + (bound - lower) * within } else { lower });
            }
            (lower, below) = (bound, count);
        }
        None
    }

    fn all(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.samples.get(name).into_iter().flatten().map(|(labels, number)| (labels.as_str(), *number))
    }
}

fn has(labels: &str, label: &str) -> bool {
    label.is_empty() || labels.split(',').any(|other| other == label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total What.\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4\nb 2.5\nc{x=\"y z\"} 1\nnonsense\n";

    #[test]
    fn numbers_are_found_by_name_and_label() {
        let scrape = Scrape::parse(TEXT, Time::default());
        assert_eq!((scrape.sum("a_total"), scrape.of("a_total", "shard=\"1\"")), (7.0, 4.0));
        assert_eq!((scrape.sum("b"), scrape.sum("none")), (2.5, 0.0));
        assert_eq!(scrape.values("a_total", "shard"), ["0", "1"]);
        assert_eq!(scrape.values("c", "x"), ["y z"]);
        assert!(scrape.has("b") && !scrape.has("d") && scrape.sum("d").is_sign_positive());
    }

    #[test]
    fn of_what_has_no_end_the_first_is_taken() {
        let text: String = (0..2 * SAMPLES_MAX).map(|le| format!("d_bucket{{le=\"{le}\"}} {le}\n")).collect();
        let scrape = Scrape::parse(&text, Time::default());
        assert_eq!(scrape.values("d_bucket", "le").len(), SAMPLES_MAX);
        assert!(scrape.quantile(&Scrape::default(), "d", "", 0.5).is_some());
    }

    #[test]
    fn quantiles_are_of_what_came_between() {
        let bucket = |counts: [u64; 3]| {
            let line = |(bound, count)| format!("d_bucket{{shard=\"0\",le=\"{bound}\"}} {count}\n");
            let text: String = ["1", "2", "+Inf"].into_iter().zip(counts).map(line).collect();
            Scrape::parse(&text, Time::default())
        };
        let (before, after) = (bucket([100, 100, 100]), bucket([110, 120, 120]));
        assert_eq!(after.quantile(&before, "d", "", 0.5), Some(1.0));
        assert_eq!(after.quantile(&before, "d", "shard=\"0\"", 0.75), Some(1.5));
        assert_eq!(after.quantile(&before, "d", "shard=\"1\"", 0.5), None);
        assert_eq!(before.quantile(&before, "d", "", 0.5), None, "nothing came");
        assert_eq!(
            bucket([0, 0, 5]).quantile(&bucket([0; 3]), "d", "", 0.5),
            Some(2.0),
            "beyond the last bound"
        );
    }
}
