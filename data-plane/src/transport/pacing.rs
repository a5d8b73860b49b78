//! At most so many logins a second.

use std::{
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// No turn comes up soon enough.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no turn in time")]
pub struct NoTurn;

/// Hands out turns at an even pace. A turn that was given is used up, even if its taker goes away.
pub struct LoginPace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl LoginPace {
    /// `rate` turns a second.
    #[must_use]
    pub fn new(rate: NonZeroU32) -> Self {
        Self { gap: Duration::from_secs(1) / rate.get(), next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`NoTurn`], at once and without using a turn up, if none comes up within `patience`.
    pub async fn turn_within(&self, patience: Duration) -> Result<(), NoTurn> {
        let turn = self.take(Instant::now(), patience)?;
        sleep_until(turn).await;
        Ok(())
    }

    fn take(&self, now: Instant, patience: Duration) -> Result<Instant, NoTurn> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(now);
        if turn.duration_since(now) > patience {
            return Err(NoTurn);
        }
        *next = turn + self.gap;
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_second_holds_more_turns_than_the_rate(rate in 1u32..100, waits in prop::collection::vec(0u64..500, 1..300)) {
            let start = Instant::now();
            let pace = LoginPace::new(NonZeroU32::new(rate).unwrap());
            let mut now = start;
            let mut turns = Vec::new();
            for wait in waits {
                now += Duration::from_millis(wait);
                turns.extend(pace.take(now, Duration::from_secs(3600)));
            }
            for (at, turn) in turns.iter().enumerate() {
                let within = turns[at..].iter().take_while(|t| t.duration_since(*turn) < Duration::from_millis(999)).count();
                prop_assert!(within <= rate as usize, "{within} turns in a second at {rate}");
            }
        }
    }

    #[test]
    fn who_would_wait_too_long_is_told_at_once_and_uses_nothing_up() {
        let pace = LoginPace::new(NonZeroU32::new(1).unwrap());
        let now = Instant::now();
        assert!(pace.take(now, Duration::ZERO).is_ok());
        assert_eq!(pace.take(now, Duration::from_millis(500)), Err(NoTurn));
        let turn = pace.take(now, Duration::from_secs(1)).unwrap();
        assert!(turn.duration_since(now) <= Duration::from_secs(1));
    }
}
