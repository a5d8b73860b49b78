//! When a delivery is tried again, and when an endpoint is given up. Pure functions.

use std::time::Duration;

use http::StatusCode;

use crate::outbound::CallError;

/// How long to wait after the first, second, … try that failed, before jitter.
pub const SCHEDULE: [Duration; 8] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(4 * 60 * 60),
    Duration::from_secs(12 * 60 * 60),
    Duration::from_secs(24 * 60 * 60),
];

/// How far the jitter goes, either way, in parts of the whole.
const JITTER: f64 = 0.2;
/// The least wait after 429 or a timeout: the endpoint is overloaded.
pub const OVERLOADED_WAIT: Duration = Duration::from_secs(60);
/// How long an endpoint may fail before it is disabled.
pub const FAILING_LIMIT: Duration = Duration::from_secs(5 * 24 * 60 * 60);

/// How one try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With a status, and perhaps a wish when to come again.
    Status {
        /// The status.
        status: StatusCode,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Without one.
    NoReply(CallError),
}

/// What becomes of a delivery after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is delivered.
    Delivered,
    /// It is tried again after this long.
    Retry(Duration),
    /// It is given up: that was the last try.
    Exhausted,
    /// The endpoint is gone: it is disabled, and the delivery given up.
    Gone,
}

/// What becomes of a delivery whose try number `attempt` (from 1) ended with `answer`. `chance` in 0..1 decides the jitter.
#[must_use]
pub fn verdict(answer: Answer, attempt: u32, chance: f64) -> Verdict {
    let (overloaded, retry_after) = match answer {
        Answer::Status { status, .. } if status.is_success() => return Verdict::Delivered,
        Answer::Status { status: StatusCode::GONE, .. } => return Verdict::Gone,
        Answer::Status { status, retry_after } => (status == StatusCode::TOO_MANY_REQUESTS, retry_after),
        Answer::NoReply(error) => (error == CallError::Timeout, None),
    };
    let step = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let Some(scheduled) = SCHEDULE.get(step) else { return Verdict::Exhausted };
    let jittered = scheduled.mul_f64(1.0 + JITTER * (2.0 * chance.clamp(0.0, 1.0) - 1.0));
    let wait = if overloaded { jittered.max(OVERLOADED_WAIT) } else { jittered };
    // An endpoint may ask for more time, not for less, and not for more than double: the schedule is ours.
    Verdict::Retry(retry_after.map_or(wait, |wish| wish.clamp(wait, wait * 2)))
}

/// `Retry-After` as delay seconds or as an HTTP date (RFC 9110 §10.2.3), seen at `now` in milliseconds since 1970.
#[must_use]
pub fn retry_after(value: &str, now_millis: i64) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = chrono::DateTime::parse_from_rfc2822(value).ok()?.timestamp_millis();
    u64::try_from(at.saturating_sub(now_millis)).ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_answer() -> impl Strategy<Value = Answer> {
        let retry_after = prop::option::of((0_u64..10_000_000).prop_map(Duration::from_secs));
        prop_oneof![
            (100_u16..600, retry_after).prop_map(|(status, retry_after)| Answer::Status {
                status: StatusCode::from_u16(status).unwrap(),
                retry_after
            }),
            prop_oneof![Just(CallError::Timeout), Just(CallError::Connect), Just(CallError::Broken)]
                .prop_map(Answer::NoReply),
        ]
    }

    proptest! {
        #[test]
        fn only_a_success_is_delivered_and_only_410_is_gone(answer in any_answer(), attempt in 1_u32..20, chance in 0.0..1.0) {
            let verdict = verdict(answer, attempt, chance);
            let status = match answer { Answer::Status { status, .. } => Some(status), Answer::NoReply(_) => None };
            prop_assert_eq!(verdict == Verdict::Delivered, status.is_some_and(|s| s.is_success()));
            prop_assert_eq!(verdict == Verdict::Gone, status == Some(StatusCode::GONE));
        }

        #[test]
        fn a_retry_keeps_to_the_schedule(answer in any_answer(), attempt in 1_u32..20, chance in 0.0..1.0) {
            let Verdict::Retry(wait) = verdict(answer, attempt, chance) else { return Ok(()) };
            prop_assert!(attempt <= 8);
            let scheduled = SCHEDULE[attempt as usize - 1];
            let overloaded = matches!(answer, Answer::NoReply(CallError::Timeout)
                | Answer::Status { status: StatusCode::TOO_MANY_REQUESTS, .. });
            let floor = if overloaded { OVERLOADED_WAIT } else { Duration::ZERO };
            prop_assert!(wait >= scheduled.mul_f64(0.799).max(floor));
            prop_assert!(wait <= scheduled.mul_f64(1.201).max(floor) * 2);
            if !matches!(answer, Answer::Status { retry_after: Some(_), .. }) {
                prop_assert!(wait <= scheduled.mul_f64(1.201).max(floor));
            }
        }

        #[test]
        fn every_delivery_that_keeps_failing_ends_after_nine_tries(answer in any_answer(), chance in 0.0..1.0) {
            prop_assert!(!matches!(verdict(answer, 9, chance), Verdict::Retry(_)));
            let failing = Answer::Status { status: StatusCode::INTERNAL_SERVER_ERROR, retry_after: None };
            for attempt in 1..=8 {
                prop_assert!(matches!(verdict(failing, attempt, chance), Verdict::Retry(_)));
            }
        }

        #[test]
        fn a_redirect_is_a_failure(status in 300_u16..400, attempt in 1_u32..9, chance in 0.0..1.0) {
            let answer = Answer::Status { status: StatusCode::from_u16(status).unwrap(), retry_after: None };
            prop_assert!(matches!(verdict(answer, attempt, chance), Verdict::Retry(_)));
        }

        #[test]
        fn any_retry_after_is_read_or_ignored(value in ".{0,40}", now in 0_i64..4_000_000_000_000) {
            let _never_panics = retry_after(&value, now);
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after("120", 0), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:02:00 GMT", 60_000), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:00 GMT", 60_000), None);
        assert_eq!(retry_after("soon", 0), None);
    }

    #[test]
    fn a_wish_for_more_time_is_granted_up_to_double() {
        let busy = |seconds| Answer::Status {
            status: StatusCode::TOO_MANY_REQUESTS,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(verdict(busy(10), 1, 0.5), Verdict::Retry(Duration::from_secs(60)), "not less than the floor");
        assert_eq!(verdict(busy(90), 1, 0.5), Verdict::Retry(Duration::from_secs(90)));
        assert_eq!(verdict(busy(900), 1, 0.5), Verdict::Retry(Duration::from_secs(120)), "not more than double");
    }
}
