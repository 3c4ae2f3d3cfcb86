//! The `[[auth.keys]]` of a configuration file: tables that name keys which vouch for tokens.

use super::Reloaded;
use super::tables::{Reading, Table, Tables};
use super::value::Kind;
use crate::token::keys::{Algorithm, KEYS_MAX, KeySource, Place};
use toml::de::DeValue;
use toml::value::{Datetime, Offset};

pub(super) const TABLES: Tables = Tables {
    name: "auth.keys",
    heading: "[[auth.keys]]",
    keys: &["kid", "algorithm", "secret", "file", "until"],
    most: KEYS_MAX,
    reloaded: Reloaded::Yes,
};

const DATE: &str = "a date, like 2027-01-31 or 2027-01-31T12:00:00Z, which without an offset is of UTC";

/// Reads the list, which begins at `start`, into keys, those of tables that are right.
pub(super) fn read(list: &DeValue<'_>, start: usize, file: Reading<'_>) -> Vec<KeySource> {
    TABLES.read(list, start, file, key)
}

fn key(table: &mut Table<'_>) -> Option<KeySource> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let kid = table.read("kid", "the name of a key", text);
    let until_s = table.date("until", DATE, |text| unix_s(&text.parse().ok()?));
    let algorithm = table.require("algorithm", &Kind::Word(Algorithm::WORDS).allowed(), Algorithm::parse)?;
    let place = match (algorithm.secret_bytes_min(), table.has("secret")) {
        (Some(bytes_min), true) => {
            table.read::<()>("file", "nothing where there is a secret", |_| None);
            let is_long = |text: &str| (text.len() >= bytes_min).then(|| text.as_bytes().to_vec());
            let allowed = format!("a text of at least {bytes_min} bytes for {}", algorithm.word());
            Place::Secret(table.secret("secret", &allowed, is_long)?)
        }
        (_, true) => {
            let allowed = format!("nothing where algorithm = \"{}\"", algorithm.word());
            table.secret::<()>("secret", &allowed, |_| None);
            return None;
        }
        (secret, false) => {
            let allowed = match secret {
                Some(_) => "the path of a file with the secret, or else there is a secret",
                None => "the path of a file with the public key in PEM",
            };
            Place::File(table.require("file", allowed, text)?.into())
        }
    };
    Some(KeySource { kid, algorithm, until_s, place })
}

/// Seconds from 1970 to a date; a date alone is its beginning. `None` when there is no date, or one before that.
fn unix_s(date: &Datetime) -> Option<u64> {
    let day = date.date?;
    // Days from 0000-03-01 in years that begin with March, so that a leap day is the last of its year.
    let (year, month) = match day.month {
        1 | 2 => (i64::from(day.year) - 1, i64::from(day.month) + 9),
        month => (i64::from(day.year), i64::from(month) - 3),
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + i64::from(day.day) - 1;
    let seconds = date.time.map_or(0, |time| {
        i64::from(time.hour) * 3_600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0))
    });
    let offset_s = match date.offset {
        Some(Offset::Custom { minutes }) => i64::from(minutes) * 60,
        Some(Offset::Z) | None => 0,
    };
    u64::try_from((days - 719_468) * 86_400 + seconds - offset_s).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds_from_1970() {
        let at = |text: &str| unix_s(&text.parse().expect("a date"));
        assert_eq!(at("1970-01-01"), Some(0));
        assert_eq!(at("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(at("2026-11-21T16:20:43"), Some(1_795_278_043));
        assert_eq!(at("2026-11-21T17:20:43+01:00"), Some(1_795_278_043));
        assert_eq!(at("1969-12-31"), None);
        assert_eq!(at("12:00:00"), None);
    }
}
