//! When to stop asking Redis.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many failures in a row there are before nobody asks any more.
const FAILURES: u32 = 3;

/// Counts failures in a row. Requests don't try whether Redis is back, since each would wait for it: a task does.
#[derive(Debug, Default)]
pub(super) struct Breaker(AtomicU32);

impl Breaker {
    /// Whether to ask.
    pub(super) fn lets_through(&self) -> bool {
        self.0.load(Ordering::Acquire) < FAILURES
    }

    /// Redis answered; says whether nobody asked until now.
    pub(super) fn succeeded(&self) -> bool {
        // Without a write while all is well, which is what every request meets.
        self.0.load(Ordering::Acquire) != 0 && self.0.swap(0, Ordering::AcqRel) >= FAILURES
    }

    /// Redis didn't answer; says whether this was one time too many.
    pub(super) fn failed(&self) -> bool {
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_add(1)));
        before == Ok(FAILURES - 1)
    }

    /// Nobody is to ask from now on.
    pub(super) fn trip(&self) {
        self.0.store(FAILURES, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_opens_after_failures_in_a_row_and_says_so_once(outcomes in prop::collection::vec(any::<bool>(), 0..60)) {
            let breaker = Breaker::default();
            let mut row = 0;
            for answered in outcomes {
                if answered {
                    prop_assert_eq!(breaker.succeeded(), row >= FAILURES);
                    row = 0;
                } else {
                    row += 1;
                    prop_assert_eq!(breaker.failed(), row == FAILURES);
                }
                prop_assert_eq!(breaker.lets_through(), row < FAILURES);
            }
            breaker.trip();
            prop_assert!(!breaker.lets_through());
            prop_assert!(breaker.succeeded() && !breaker.succeeded());
        }
    }
}
