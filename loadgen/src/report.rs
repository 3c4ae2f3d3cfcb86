//! What was measured: the tally each worker keeps and the parent adds up, and the figures that are printed of it.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::clock::SECOND_NS;
use crate::order::Faults;
use crate::restart::Restart;

/// Durations in nanoseconds, kept to three significant digits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(crate) struct Latency {
    histogram: Histogram<u64>,
}

impl Latency {
    /// Longer ones are taken for this: far beyond any timeout here.
    const MAX_NS: u64 = 3_600 * SECOND_NS;

    pub(crate) fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, Self::MAX_NS, 3).expect("the bounds are in the allowed range");
        Self { histogram }
    }

    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
    }

    /// How many were recorded.
    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// In microseconds; 0.5 is the median, 1.0 the longest. `None` when nothing was recorded.
    pub(crate) fn us(&self, quantile: f64) -> Option<f64> {
        (!self.histogram.is_empty()).then(|| self.histogram.value_at_quantile(quantile) as f64 / 1_000.0)
    }
}

impl From<Vec<(u64, u64)>> for Latency {
    fn from(recorded: Vec<(u64, u64)>) -> Self {
        let mut latency = Self::new();
        for (ns, count) in recorded {
            latency.histogram.saturating_record_n(ns, count);
        }
        latency
    }
}

impl From<Latency> for Vec<(u64, u64)> {
    fn from(latency: Latency) -> Self {
        latency
            .histogram
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect()
    }
}

/// What one worker counted, or all of them together. Counts of a scenario that was not run stay zero.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Handshakes that succeeded, of all rounds.
    pub(crate) handshakes: u64,
    /// Those of them by which a connection came back in a storm.
    pub(crate) returns: u64,
    pub(crate) handshake_latency: Latency,
    /// Connections in their rooms at the end.
    pub(crate) joined: u64,
    pub(crate) join_latency: Latency,
    /// Connections that left and joined again.
    pub(crate) churns: u64,
    pub(crate) churn_latency: Latency,
    pub(crate) pings: u64,
    /// Connections the server ended.
    pub(crate) closes: u64,
    /// Messages that the server said it left out.
    pub(crate) dropped: u64,
    /// Failures by kind.
    pub(crate) errors: BTreeMap<String, u64>,

    /// Messages sent over the whole run; of a fan-out, the publications.
    pub(crate) sent_total: u64,
    /// Publications whose time fell into the measured window.
    pub(crate) publications: u64,
    /// Messages received over the whole run.
    pub(crate) received_total: u64,
    /// Messages received in the measured window.
    pub(crate) received: u64,
    pub(crate) latency: Latency,
    /// Of those deliveries that came from another server than the one that was published at.
    pub(crate) latency_elsewhere: Latency,
    /// How far the generator was behind its own schedule.
    pub(crate) send_delay: Latency,
    /// Rounds of publications given up because not all came.
    pub(crate) stalls: u64,
    pub(crate) faults: Faults,
    /// Read in the measured window.
    pub(crate) bytes_received: u64,
    /// Reads in the measured window that returned data.
    pub(crate) reads: u64,
    /// Read since the beginning of the measured window.
    pub(crate) bytes_in_all: u64,
    /// Messages with events or updates, in the measured window; of a chat, those that came merged.
    pub(crate) messages: u64,
    /// Messages with updates of auctions, since the beginning of the measured window.
    pub(crate) messages_in_all: u64,
    /// Bids that watchers did not hear of, but of later ones.
    pub(crate) left_out: u64,
    /// By bid of all, in the order in which they are due: how many watchers know of it, and after how many nanoseconds the last of
    /// them did.
    pub(crate) bids: Vec<(u32, u64)>,
    /// Of a storm by restart.
    pub(crate) restart: Restart,
    /// CPU time of the workers in the measured window.
    pub(crate) own_cpu_ns: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            handshakes: 0,
            returns: 0,
            handshake_latency: Latency::new(),
            joined: 0,
            join_latency: Latency::new(),
            churns: 0,
            churn_latency: Latency::new(),
            pings: 0,
            closes: 0,
            dropped: 0,
            errors: BTreeMap::new(),
            sent_total: 0,
            publications: 0,
            messages: 0,
            messages_in_all: 0,
            received_total: 0,
            received: 0,
            latency: Latency::new(),
            latency_elsewhere: Latency::new(),
            send_delay: Latency::new(),
            stalls: 0,
            faults: Faults::default(),
            bytes_received: 0,
            reads: 0,
            bytes_in_all: 0,
            left_out: 0,
            bids: Vec::new(),
            restart: Restart::new(),
            own_cpu_ns: 0,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.handshakes += other.handshakes;
        self.returns += other.returns;
        self.handshake_latency.add(&other.handshake_latency);
        self.joined += other.joined;
        self.join_latency.add(&other.join_latency);
        self.churns += other.churns;
        self.churn_latency.add(&other.churn_latency);
        self.pings += other.pings;
        self.closes += other.closes;
        self.dropped += other.dropped;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.sent_total += other.sent_total;
        self.publications += other.publications;
        self.messages += other.messages;
        self.messages_in_all += other.messages_in_all;
        self.received_total += other.received_total;
        self.received += other.received;
        self.latency.add(&other.latency);
        self.latency_elsewhere.add(&other.latency_elsewhere);
        self.send_delay.add(&other.send_delay);
        self.stalls += other.stalls;
        self.faults.lost += other.faults.lost;
        self.faults.doubled += other.faults.doubled;
        self.faults.reordered += other.faults.reordered;
        self.bytes_received += other.bytes_received;
        self.reads += other.reads;
        self.bytes_in_all += other.bytes_in_all;
        self.left_out += other.left_out;
        self.bids.resize(self.bids.len().max(other.bids.len()), (0, 0));
        for ((watchers, last_ns), (others, others_last_ns)) in self.bids.iter_mut().zip(&other.bids) {
            *watchers += others;
            *last_ns = (*last_ns).max(*others_last_ns);
        }
        self.restart.add(&other.restart);
        self.own_cpu_ns += other.own_cpu_ns;
    }

    /// True when nothing was lost, doubled or reordered and nothing failed.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.faults == Faults::default()
    }
}

/// Named figures in the order they are printed. A figure that was not measured is null in JSON and left out of the table.
#[derive(Default)]
pub(crate) struct Figures {
    figures: Vec<(String, Value)>,
}

impl Figures {
    pub(crate) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.figures.push((key.to_owned(), value.into()));
    }

    /// A measured number, rounded to three decimals: more would be noise.
    pub(crate) fn number(&mut self, key: &str, value: Option<f64>) {
        let value = value.filter(|value| value.is_finite()).map(|value| (value * 1_000.0).round() / 1_000.0);
        self.put(key, value);
    }

    /// The percentiles of a latency as `KEY_us_p50` and so on.
    pub(crate) fn latency(&mut self, key: &str, latency: &Latency) {
        let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];
        for (name, quantile) in quantiles {
            self.number(&format!("{key}_us_{name}"), latency.us(quantile));
        }
    }

    /// The figures every scenario ends with.
    pub(crate) fn end(&mut self, tally: &Tally) {
        self.put("pings", tally.pings);
        self.put("closes", tally.closes);
        self.put("errors", tally.errors.values().sum::<u64>());
        self.put("errors_by_kind", serde_json::json!(tally.errors));
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("figures are plain JSON values")
    }

    /// One line a figure: its name in words and its value.
    pub(crate) fn table(&self) -> String {
        let shown =
            self.figures.iter().filter(|(_, value)| !value.is_null() && *value != serde_json::json!({}));
        let rows: Vec<(String, String)> =
            shown.map(|(key, value)| (key.replace('_', " "), words(value))).collect();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A serde_json::Map would sort the keys; the order here is the order to read them in.
        let mut map = serializer.serialize_map(Some(self.figures.len()))?;
        for (key, value) in &self.figures {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// `part / whole`, where both were measured and there is a whole.
pub(crate) fn ratio(part: Option<f64>, whole: f64) -> Option<f64> {
    part.filter(|_| whole > 0.0).map(|part| part / whole)
}

/// A value as people read it: the whole part of a number in groups of three digits.
fn words(value: &Value) -> String {
    let text = match value {
        Value::String(text) => return text.clone(),
        Value::Number(number) => number.to_string(),
        other => return other.to_string(),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut grouped = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() || fraction == "0" { grouped } else { format!("{grouped}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_survive_the_way_to_the_parent_and_add_up() {
        let mut one = Latency::new();
        for ns in 1..=1_000 {
            one.record(ns * 1_000);
        }
        let text = serde_json::to_string(&one).unwrap();
        let mut both: Latency = serde_json::from_str(&text).unwrap();
        assert_eq!(both.us(0.5), one.us(0.5));
        both.add(&one);
        let median = both.us(0.5).unwrap();
        assert!((499.0..502.0).contains(&median), "{median}");
        assert!(both.us(1.0).unwrap() >= 1_000.0);
        assert_eq!(Latency::new().us(0.5), None);
    }

    #[test]
    fn figures_keep_their_order_and_the_table_leaves_out_what_was_not_measured() {
        let mut figures = Figures::default();
        figures.put("scenario", "echo");
        figures.number("cpu_us_per_message", None);
        figures.number("a_rate_per_second", Some(1_234_567.891_23));
        figures.put("errors", 0);
        let json =
            r#"{"scenario":"echo","cpu_us_per_message":null,"a_rate_per_second":1234567.891,"errors":0}"#;
        assert_eq!(figures.json(), json);
        assert_eq!(
            figures.table(),
            "scenario           echo\na rate per second  1,234,567.891\nerrors             0\n"
        );
    }

    #[test]
    fn nothing_divided_by_nothing_is_not_a_figure() {
        assert_eq!(ratio(Some(1.0), 0.0), None);
        assert_eq!(ratio(None, 1.0), None);
        assert_eq!(ratio(Some(1.0), 4.0), Some(0.25));
    }
}
