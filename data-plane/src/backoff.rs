//! How long to wait before trying again.

use std::time::Duration;

use rand::RngExt;

/// `first`, doubled for each failure after the first, at most `most`. `failures` counts from 1.
#[must_use]
pub fn doubling(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(most)
}

/// `pause`, give or take a fifth, so that many that failed together don't come back together.
#[must_use]
pub fn spread(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_never_shrinks_and_never_exceeds_its_bound(first in 1u64..5_000, most in 5_000u64..900_000, failures in 1u32..200) {
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(most));
            let pause = doubling(first, most, failures);
            prop_assert!(pause >= first && pause <= most);
            prop_assert!(doubling(first, most, failures + 1) >= pause);
        }

        #[test]
        fn spreading_stays_within_a_fifth(pause in 1u64..100_000) {
            let pause = Duration::from_millis(pause);
            let spread = spread(pause);
            prop_assert!(spread >= pause.mul_f64(0.79) && spread <= pause.mul_f64(1.21));
        }
    }
}
