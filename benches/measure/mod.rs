//! How the benches measure: at full size or small, and the time that one piece of work takes.

use criterion::Criterion;
use std::time::Duration;
use throng::time::Clock;

/// True under `cargo bench`. False under `cargo test`, where every benchmark runs once, to see that it does what it says.
pub(crate) fn at_full_size() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Criterion as all benches here use it: more and shorter samples than it takes by default. A shared machine interrupts often, and
/// of short samples more are spared.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .without_plots()
        .sample_size(200)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(2_000))
        .configure_from_args()
}

/// The time for `count` pieces of work, of which each `round` does `per_round`.
pub(crate) fn time_of(count: u64, per_round: u64, mut round: impl FnMut()) -> Duration {
    let rounds = count.div_ceil(per_round);
    let clock = Clock::start();
    let start = clock.now();
    for _ in 0..rounds {
        round();
    }
    let elapsed = clock.now().since(start);
    elapsed.mul_f64(count as f64 / (rounds * per_round) as f64)
}

/// The same where only a part of each round counts. `round` passes that part to the [`Watch`]; it should be long beside the
/// 50 ns that looking at the clock twice takes.
pub(crate) fn time_within(count: u64, per_round: u64, mut round: impl FnMut(&mut Watch)) -> Duration {
    let rounds = count.div_ceil(per_round);
    let mut watch = Watch { clock: Clock::start(), total: Duration::ZERO };
    for _ in 0..rounds {
        round(&mut watch);
    }
    watch.total.mul_f64(count as f64 / (rounds * per_round) as f64)
}

/// Adds up how long parts of a round take.
pub(crate) struct Watch {
    clock: Clock,
    total: Duration,
}

impl Watch {
    /// Carries `work` out, and counts the time.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = self.clock.now();
        let result = work();
        self.total += self.clock.now().since(start);
        result
    }
}

/// The numbers below `count` in an order without a pattern, the same in every run.
pub(crate) fn shuffled(count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..count).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        numbers.swap(at, (random % (at as u64 + 1)) as usize);
    }
    numbers
}
