//! Time as the rest of throng sees it: a number that is handed in.
//!
//! Only a reactor reads the clock, once when a turn begins and once when it ends. Everything below takes
//! `now`, so the simulator can make time stand still, run or jump.

use std::time::{Duration, Instant};

/// A point in time: nanoseconds since the process took its [`Clock`]. All shards share one origin, so times
/// can be subtracted across cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The time `ns` nanoseconds after the origin.
    pub const fn from_ns(ns: u64) -> Time {
        Time(ns)
    }

    /// The time `ms` milliseconds after the origin.
    pub const fn from_ms(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    /// Nanoseconds since the origin.
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// Milliseconds since the origin, rounded down.
    pub const fn ms(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Milliseconds since the origin, modulo 2^32: 49 days. Connections keep this form to stay small; two of
    /// them are compared by `wrapping_sub`, never by `<`.
    pub const fn ms32(self) -> u32 {
        self.ms() as u32
    }

    /// This time plus `ns` nanoseconds.
    #[must_use]
    pub const fn plus_ns(self, ns: u64) -> Time {
        Time(self.0 + ns)
    }

    /// This time plus `ms` milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Time {
        Time(self.0 + ms * 1_000_000)
    }

    /// Nanoseconds from `earlier` to this time, 0 when `earlier` is later.
    pub const fn since_ns(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// How long from `earlier` to this time, zero when `earlier` is later.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.since_ns(earlier))
    }
}

/// The one place that reads the system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the others are handed")]
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// The time now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the others are handed")]
    pub fn now(&self) -> Time {
        Time(Instant::now().duration_since(self.origin).as_nanos() as u64)
    }
}

/// A token bucket: `per_second` events a second on average, `burst` at once. Holds nothing but its level, so that
/// a connection pays eight bytes for one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Thousandths of a token. `0 <= level_milli <= burst * 1000`.
    level_milli: u32,
    /// When `level_milli` was true, as [`Time::ms32`].
    filled_ms: u32,
}

impl Bucket {
    /// The largest burst a bucket can hold, so that thousandths fit 32 bits.
    pub const BURST_MAX: u32 = u32::MAX / 1000;

    /// A full bucket.
    pub fn full(burst: u32, now: Time) -> Bucket {
        Bucket { level_milli: burst.min(Self::BURST_MAX) * 1000, filled_ms: now.ms32() }
    }

    /// Takes one token. What is counted as of a time before the last one brings nothing, and does not turn back the clock.
    ///
    /// # Errors
    /// When there is none: the milliseconds after which there will be one, at least 1.
    pub fn take(&mut self, per_second: u32, burst: u32, now: Time) -> Result<(), u32> {
        let elapsed_ms = now.ms32().wrapping_sub(self.filled_ms);
        let is_earlier = elapsed_ms > u32::MAX / 2;
        let elapsed_ms = if is_earlier { 0 } else { elapsed_ms };
        let ceiling = u64::from(burst.min(Self::BURST_MAX)) * 1000;
        // A token a second is a thousandth a millisecond, so the product needs no division.
        let level =
            (u64::from(self.level_milli) + u64::from(elapsed_ms) * u64::from(per_second)).min(ceiling);
        if !is_earlier {
            self.filled_ms = now.ms32();
        }
        if level >= 1000 {
            self.level_milli = (level - 1000) as u32;
            return Ok(());
        }
        self.level_milli = level as u32;
        Err(((1000 - level).div_ceil(u64::from(per_second.max(1))) as u32).max(1))
    }
}

/// Bounds amounts that differ in size, like bytes: `per_second` on average, `burst` at once. What goes beyond the burst is taken all the
/// same, and paid off before anything else is taken, so nothing is too large for ever. Holds nothing but when all is paid off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    paid_at: Time,
}

impl Meter {
    /// True when something may be taken now.
    ///
    /// # Errors
    /// When it may not: the milliseconds after which it may, at least 1.
    pub fn check(&self, per_second: u32, burst: u32, now: Time) -> Result<(), u32> {
        let behind_ns = self.paid_at.since_ns(now);
        let burst_ns = Meter::cost_ns(u64::from(burst), per_second);
        if behind_ns == 0 || behind_ns < burst_ns {
            return Ok(());
        }
        // One nanosecond more, since the end of the burst is not within it.
        Err(u32::try_from((behind_ns - burst_ns + 1).div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1))
    }

    /// Takes `amount`.
    pub fn take(&mut self, amount: usize, per_second: u32, now: Time) {
        let cost_ns = Meter::cost_ns(amount as u64, per_second);
        self.paid_at = Time(self.paid_at.max(now).0.saturating_add(cost_ns));
    }

    fn cost_ns(amount: u64, per_second: u32) -> u64 {
        amount.saturating_mul(1_000_000_000) / u64::from(per_second.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let start = Time::from_ms(5);
        let mut bucket = Bucket::full(3, start);
        for _ in 0..3 {
            bucket.take(10, 3, start).expect("the burst is there");
        }
        assert_eq!(bucket.take(10, 3, start), Err(100), "one token at 10 a second takes 100 ms");
        assert_eq!(bucket.take(10, 3, start.plus_ms(60)), Err(40), "what has trickled in counts");
        bucket.take(10, 3, start.plus_ms(100)).expect("a token has come");
        assert!(bucket.take(10, 3, start.plus_ms(100)).is_err());
        let later = start.plus_ms(1_000_000);
        for _ in 0..3 {
            bucket.take(10, 3, later).expect("a long rest fills it to the burst");
        }
        assert!(bucket.take(10, 3, later).is_err(), "and no further");
    }

    #[test]
    fn a_time_before_the_last_one_fills_no_bucket() {
        let mut bucket = Bucket::full(2, Time::from_ms(5_000));
        assert_eq!(
            (bucket.take(1, 2, Time::from_ms(5_000)), bucket.take(1, 2, Time::from_ms(5_000))),
            (Ok(()), Ok(()))
        );
        assert_eq!(bucket.take(1, 2, Time::from_ms(4_000)), Err(1_000), "earlier");
        assert_eq!(bucket.take(1, 2, Time::from_ms(5_900)), Err(100), "and the clock is where it was");
        assert_eq!(bucket.take(1, 2, Time::from_ms(6_000)), Ok(()));
    }

    #[test]
    fn a_meter_lets_one_go_beyond_and_waits_until_that_is_paid_off() {
        let (start, mut meter) = (Time::from_ms(5), Meter::default());
        let send = |meter: &mut Meter, amount: usize, now: Time| {
            meter.check(1000, 500, now).map(|()| meter.take(amount, 1000, now))
        };
        assert_eq!(send(&mut meter, 400, start), Ok(()));
        assert_eq!(send(&mut meter, 2000, start), Ok(()), "there were 100 left");
        assert_eq!(send(&mut meter, 1, start), Err(1901));
        assert_eq!(send(&mut meter, 1, start.plus_ms(1900)), Err(1));
        assert_eq!(send(&mut meter, 499, start.plus_ms(1999)), Ok(()));
        let later = start.plus_ms(1_000_000);
        assert_eq!(send(&mut meter, 500, later), Ok(()), "a long rest pays off no more than the burst");
        assert_eq!(send(&mut meter, 1, later), Err(1));
        let mut meter = Meter::default();
        assert_eq!(meter.check(1, 1, start), Ok(()));
        meter.take(usize::MAX >> 8, 1, start);
        assert_eq!(meter.check(1, 1, start), Err(u32::MAX), "and no number is too large");
    }
}
