//! How often somebody may ask: GCRA over several buckets at once, as a pure function.
//!
//! One number for each bucket, the *theoretical arrival time* (TAT), holds everything: a request is admitted if it comes no earlier
//! than the tolerance before the TAT of each of its buckets, and moves each of them on by its interval. A refused one moves none.
//! [`admit`] is what a replica does by itself; `gcra.lua` does the same in Redis, and a test holds one against the other.

use std::str::FromStr;

/// Microseconds since 1970.
pub type Micros = u64;

const MINUTE: Micros = 60_000_000;
/// The most that a limit can be: one in 60 µs.
const MOST: u32 = 1_000_000;

/// So many in a minute, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many in a minute, evenly: 1 to 1,000,000.
    pub per_minute: u32,
    /// How many at once by somebody who hasn't asked for a while: 1 to 1,000,000.
    pub burst: u32,
}

/// A [`Rate`] as times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gcra {
    /// How long until there is one more.
    pub interval: Micros,
    /// How far ahead of now the TAT may lie for a request to be admitted.
    pub tolerance: Micros,
}

impl FromStr for Rate {
    type Err = ();

    /// `600:60`: 600 in a minute, 60 at once; `600` alone: a tenth of it at once.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (per_minute, burst) = match text.split_once(':') {
            Some((per_minute, burst)) => (per_minute.trim(), Some(burst.trim().parse().map_err(drop)?)),
            None => (text.trim(), None),
        };
        let per_minute: u32 = per_minute.parse().map_err(drop)?;
        let burst = burst.unwrap_or((per_minute / 10).max(1));
        let sensible = 1..=MOST;
        if sensible.contains(&per_minute) && sensible.contains(&burst) {
            Ok(Self { per_minute, burst })
        } else {
            Err(())
        }
    }
}

impl Rate {
    /// For the whole installation.
    #[must_use]
    pub fn gcra(self) -> Gcra {
        self.share_of(1)
    }

    /// For one of several replicas that don't know of each other: so rarely that all of them together keep to the rate.
    #[must_use]
    pub fn share_of(self, replicas: u32) -> Gcra {
        self.part(1, replicas)
    }

    /// For some of several replicas, which count together while each of the others counts alone.
    #[must_use]
    pub fn part(self, together: u32, replicas: u32) -> Gcra {
        let interval = MINUTE / u64::from(self.per_minute.max(1));
        let together = together.clamp(1, replicas.max(1));
        Gcra {
            interval: (interval * u64::from(replicas.max(1))).div_ceil(u64::from(together)),
            tolerance: interval * u64::from(self.burst.saturating_sub(1)),
        }
    }
}

impl Gcra {
    /// How far ahead of now the TAT of a request that was admitted may lie; a minute more, since no two clocks agree.
    #[must_use]
    pub const fn furthest(self) -> Micros {
        self.tolerance + self.interval + MINUTE
    }

    /// A TAT as far as it can be believed: one beyond [`furthest`](Self::furthest) was made by a clock that was wrong, and then
    /// the burst is taken to be used up.
    #[must_use]
    pub const fn believed(self, tat: Micros, now: Micros) -> Micros {
        if tat > now.saturating_add(self.furthest()) { now.saturating_add(self.tolerance) } else { tat }
    }

    /// How many more are admitted right now if the TAT is this.
    #[must_use]
    pub fn remaining(self, tat: Micros, now: Micros) -> u64 {
        let ahead = tat.saturating_sub(now);
        if ahead > self.tolerance { 0 } else { (self.tolerance - ahead) / self.interval + 1 }
    }

    /// How many are admitted at once by somebody who hasn't asked for a while.
    #[must_use]
    pub fn burst(self) -> u64 {
        self.tolerance / self.interval + 1
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How long to wait before asking again; zero: it is admitted.
    pub wait: Micros,
    /// The TATs from now on, in the order of the buckets.
    pub tats: Vec<Micros>,
}

impl Verdict {
    /// Whether the request is admitted.
    #[must_use]
    pub const fn admitted(&self) -> bool {
        self.wait == 0
    }
}

/// Decides on a request at `now`, whose buckets have these TATs (0: unknown), as far as they can be
/// [believed](Gcra::believed).
#[must_use]
pub fn admit(buckets: &[(Gcra, Micros)], now: Micros) -> Verdict {
    let believed = || buckets.iter().map(|(gcra, tat)| (gcra, gcra.believed(*tat, now).max(now)));
    let wait = believed().map(|(gcra, tat)| (tat - now).saturating_sub(gcra.tolerance)).max().unwrap_or(0);
    let tats = believed().map(|(gcra, tat)| tat + if wait == 0 { gcra.interval } else { 0 }).collect();
    Verdict { wait, tats }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Micros = 1_700_000_000_000_000;

    fn rates() -> impl Strategy<Value = Rate> {
        (1_u32..6_000, 1_u32..40).prop_map(|(per_minute, burst)| Rate { per_minute, burst })
    }

    proptest! {
        #[test]
        fn no_window_of_any_bucket_admits_more_than_the_burst_and_what_has_grown_since(
            rates in prop::collection::vec(rates(), 1..4),
            gaps in prop::collection::vec(0_u64..3_000_000, 1..200),
        ) {
            let mut now = START;
            let mut tats = vec![0; rates.len()];
            let mut admitted: Vec<Micros> = Vec::new();
            for gap in gaps {
                now += gap;
                let buckets: Vec<_> = rates.iter().zip(&tats).map(|(rate, tat)| (rate.gcra(), *tat)).collect();
                let verdict = admit(&buckets, now);
                if verdict.admitted() {
                    admitted.push(now);
                } else {
                    for ((_, before), after) in buckets.iter().zip(&verdict.tats) {
                        prop_assert_eq!((*before).max(now), *after, "a refused request costs nothing");
                    }
                }
                tats = verdict.tats;
            }
            for (first, from) in admitted.iter().enumerate() {
                for (last, until) in admitted.iter().enumerate().skip(first) {
                    for rate in &rates {
                        let most = u64::from(rate.burst) + (until - from) / rate.gcra().interval;
                        prop_assert!(((last - first + 1) as u64) <= most);
                    }
                }
            }
        }

        #[test]
        fn whoever_waits_as_long_as_told_is_admitted_and_not_a_microsecond_before(
            rates in prop::collection::vec(rates(), 1..4),
            tries in 1_usize..100,
        ) {
            let mut tats = vec![0; rates.len()];
            let buckets = |tats: &[Micros]| -> Vec<_> { rates.iter().map(|rate| rate.gcra()).zip(tats.iter().copied()).collect() };
            for _ in 0..tries {
                tats = admit(&buckets(&tats), START).tats;
            }
            let verdict = admit(&buckets(&tats), START);
            let burst = rates.iter().map(|rate| rate.burst as usize).min().unwrap();
            prop_assert_eq!(verdict.admitted(), tries < burst);
            if !verdict.admitted() {
                prop_assert!(admit(&buckets(&tats), START + verdict.wait).admitted());
                prop_assert!(!admit(&buckets(&tats), START + verdict.wait - 1).admitted());
            }
        }

        /// Replicas that don't know of each other, each as busy as can be.
        #[test]
        fn shares_of_replicas_add_up_to_the_rate(rate in rates(), replicas in 1_u32..6, seconds in 1_u64..120) {
            let gcra = rate.share_of(replicas);
            let mut admitted = 0;
            for _ in 0..replicas {
                let (mut tat, mut now) = (0, START);
                while now <= START + seconds * 1_000_000 {
                    let verdict = admit(&[(gcra, tat)], now);
                    admitted += u64::from(verdict.admitted());
                    tat = verdict.tats[0];
                    now += verdict.wait;
                }
            }
            let whole = rate.gcra().interval;
            let most = u64::from(rate.burst) + seconds * 1_000_000 / whole + u64::from(replicas);
            prop_assert!(admitted <= most, "{admitted} of {most}");
        }

        #[test]
        fn those_that_count_together_leave_the_others_their_shares(
            rate in rates(),
            (replicas, apart) in (1_u32..9).prop_flat_map(|replicas| (Just(replicas), 0..replicas)),
        ) {
            let [whole, together, alone] = [rate.gcra(), rate.part(replicas - apart, replicas), rate.share_of(replicas)];
            let [one, part, share] = [whole, together, alone].map(|gcra| u128::from(gcra.interval));
            prop_assert!(one * share + u128::from(apart) * one * part <= part * share);
            prop_assert_eq!(together.tolerance, whole.tolerance);
            prop_assert_eq!(rate.part(replicas, replicas), whole);
        }

        /// A clock that was an hour ahead made it.
        #[test]
        fn a_tat_that_lies_too_far_ahead_gives_the_rate_and_no_burst(rate in rates(), ahead in 1_u64..3_600_000_000) {
            let gcra = rate.gcra();
            let verdict = admit(&[(gcra, START + gcra.furthest() + ahead)], START);
            prop_assert_eq!(&verdict, &Verdict { wait: 0, tats: vec![START + gcra.tolerance + gcra.interval] });
            let next = admit(&[(gcra, verdict.tats[0])], START);
            prop_assert_eq!(next.wait, gcra.interval);
            prop_assert_eq!(gcra.believed(START + gcra.furthest(), START), START + gcra.furthest());
        }

        #[test]
        fn as_many_remain_as_are_admitted(rate in rates(), tries in 0_u64..50) {
            let gcra = rate.gcra();
            let mut tat = 0;
            for _ in 0..tries {
                tat = admit(&[(gcra, tat)], START).tats[0];
            }
            let mut more = 0;
            let remaining = gcra.remaining(tat, START);
            while admit(&[(gcra, tat)], START).admitted() {
                tat = admit(&[(gcra, tat)], START).tats[0];
                more += 1;
            }
            prop_assert_eq!(remaining, more);
            prop_assert_eq!(gcra.remaining(0, START), gcra.burst());
            prop_assert_eq!(gcra.burst(), u64::from(rate.burst));
        }
    }

    #[test]
    fn a_rate_is_read_and_nonsense_is_not() {
        assert_eq!("600:60".parse(), Ok(Rate { per_minute: 600, burst: 60 }));
        assert_eq!("600".parse(), Ok(Rate { per_minute: 600, burst: 60 }));
        assert_eq!("5".parse(), Ok(Rate { per_minute: 5, burst: 1 }));
        for nonsense in ["", "0", "0:1", "1:0", "-1", "1:2:3", "600/60", "9999999", "many"] {
            assert_eq!(nonsense.parse::<Rate>(), Err(()), "{nonsense}");
        }
    }
}
