//! How often somebody may try: GCRA, as a pure function.
//!
//! One number for each caller, the *theoretical arrival time* (TAT), holds everything: an attempt is admitted if it comes no
//! earlier than `burst - 1` intervals before the TAT, and moves the TAT on by one interval. So at most
//! `burst + window / interval` attempts are admitted in any window, and a refused one costs nothing.

use std::time::Duration;

use shared::time::Timestamp;

/// How many at once, and how often after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// How many in a row somebody has who hasn't tried for a while. At least 1.
    pub(super) burst: u32,
    /// How long until there is one more.
    pub(super) interval: Duration,
}

/// What becomes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may go on, and this is the TAT from now on.
    Admitted(Timestamp),
    /// Not before this has passed.
    Refused(Duration),
}

impl Rate {
    pub(super) const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval }
    }

    /// How far ahead of now the TAT may lie for an attempt to be admitted.
    pub(super) fn tolerance(self) -> Duration {
        self.interval * self.burst.saturating_sub(1)
    }

    /// Decides on an attempt at `now`; `tat` is what was stored, if anything was.
    pub(super) fn admit(self, tat: Option<Timestamp>, now: Timestamp) -> Verdict {
        let tat = tat.map_or(now, |tat| tat.max(now));
        let ahead = tat.since(now);
        if ahead > self.tolerance() {
            return Verdict::Refused(ahead - self.tolerance());
        }
        Verdict::Admitted(tat.plus(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates() -> impl Strategy<Value = Rate> {
        (1u32..30, 1u64..600_000).prop_map(|(burst, millis)| Rate::new(burst, Duration::from_millis(millis)))
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_the_burst_and_what_has_grown_since(
            rate in rates(),
            gaps in prop::collection::vec(0u64..900_000, 1..200),
        ) {
            let mut now = Timestamp::from_millis(1_700_000_000_000);
            let mut tat = None;
            let mut admitted: Vec<Timestamp> = Vec::new();
            for gap in gaps {
                now = now.plus(Duration::from_millis(gap));
                if let Verdict::Admitted(next) = rate.admit(tat, now) {
                    tat = Some(next);
                    admitted.push(now);
                }
            }
            for (first, from) in admitted.iter().enumerate() {
                for (last, until) in admitted.iter().enumerate().skip(first) {
                    let grown = until.since(*from).as_millis() / rate.interval.as_millis();
                    let most = u128::from(rate.burst) + grown;
                    prop_assert!(u128::try_from(last - first + 1).unwrap() <= most);
                }
            }
        }

        #[test]
        fn whoever_waits_as_long_as_told_is_admitted_and_not_a_millisecond_before(
            rate in rates(),
            tries in 1u32..100,
        ) {
            let now = Timestamp::from_millis(1_700_000_000_000);
            let mut tat = None;
            for _ in 0..tries {
                if let Verdict::Admitted(next) = rate.admit(tat, now) {
                    tat = Some(next);
                }
            }
            if let Verdict::Refused(wait) = rate.admit(tat, now) {
                prop_assert!(tries >= rate.burst);
                prop_assert!(matches!(rate.admit(tat, now.plus(wait)), Verdict::Admitted(_)));
                let early = wait - Duration::from_millis(1);
                prop_assert!(matches!(rate.admit(tat, now.plus(early)), Verdict::Refused(_)));
            } else {
                prop_assert!(tries < rate.burst);
            }
        }
    }
}
