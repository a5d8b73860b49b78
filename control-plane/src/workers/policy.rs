//! What a worker's silence means. Pure.

use std::time::Duration;

use serde::Serialize;
use shared::time::Timestamp;
use utoipa::ToSchema;

/// How often a worker is to beat.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Silence after which a worker gets no new sessions.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(15);
/// Silence after which its sessions are moved away.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(30);
/// Beats in a row, without a silence, that make a worker good again.
pub const GOOD_BEATS: i64 = 2;

/// Whether a worker can be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// Has joined, and hasn't been heard since.
    Joining,
    /// Beats.
    Active,
    /// Silent for a while, or back after a silence and not yet trusted: keeps its sessions, gets no new ones.
    Suspect,
    /// Silent for so long that its lease in the store has ended.
    Offline,
}

impl Availability {
    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Suspect => "suspect",
            Self::Offline => "offline",
        }
    }
}

/// A worker's availability.
#[must_use]
pub fn availability(last_beat_at: Timestamp, good_beats: i64, now: Timestamp) -> Availability {
    let silence = now.since(last_beat_at);
    if silence >= OFFLINE_AFTER {
        Availability::Offline
    } else if silence >= SUSPECT_AFTER {
        Availability::Suspect
    } else if good_beats >= GOOD_BEATS {
        Availability::Active
    } else if good_beats == 0 {
        Availability::Joining
    } else {
        Availability::Suspect
    }
}

/// A worker's availability as somebody may act on it who has been listening only since a time. Silence before that says
/// nothing: nobody was there to hear. So a control plane that comes back from a pause finds nobody lost.
#[must_use]
pub fn proven(availability: Availability, listening_since: Timestamp, now: Timestamp) -> Availability {
    match availability {
        Availability::Offline if now.since(listening_since) < OFFLINE_AFTER => Availability::Suspect,
        other => other,
    }
}

/// The count of good beats after one more. A join has just proved that the worker can be reached, so the first beat
/// after it is enough; after a silence it takes [`GOOD_BEATS`].
#[must_use]
pub fn good_beats_after(good_beats: i64, last_beat_at: Timestamp, now: Timestamp) -> i64 {
    if now.since(last_beat_at) >= SUSPECT_AFTER {
        1
    } else if good_beats == 0 {
        GOOD_BEATS
    } else {
        good_beats.saturating_add(1).min(GOOD_BEATS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, 0, Availability::Joining)]
    #[case(14_999, 0, Availability::Joining)]
    #[case(0, 1, Availability::Suspect)]
    #[case(0, 2, Availability::Active)]
    #[case(14_999, 2, Availability::Active)]
    #[case(15_000, 2, Availability::Suspect)]
    #[case(29_999, 2, Availability::Suspect)]
    #[case(30_000, 2, Availability::Offline)]
    #[case(30_000, 0, Availability::Offline)]
    fn silence_decides(#[case] silence_ms: i64, #[case] good_beats: i64, #[case] expected: Availability) {
        let now = Timestamp::from_millis(1_000_000);
        let last = Timestamp::from_millis(1_000_000 - silence_ms);
        assert_eq!(availability(last, good_beats, now), expected);
    }

    #[rstest]
    #[case(29_999, Availability::Suspect)]
    #[case(30_000, Availability::Offline)]
    fn nobody_is_lost_while_nobody_listened(#[case] listened_ms: i64, #[case] expected: Availability) {
        let (since, now) = (Timestamp::from_millis(0), Timestamp::from_millis(listened_ms));
        assert_eq!(proven(Availability::Offline, since, now), expected);
        assert_eq!(proven(Availability::Active, since, now), Availability::Active);
    }

    proptest! {
        #[test]
        fn two_beats_after_any_silence_make_a_worker_active_and_one_does_not(
            silence in 15_000i64..10_000_000, good in 0i64..5, gap in 0i64..15_000,
        ) {
            let last = Timestamp::from_millis(0);
            let first = Timestamp::from_millis(silence);
            let second = Timestamp::from_millis(silence + gap);
            let one = good_beats_after(good, last, first);
            prop_assert_eq!(availability(first, one, first), Availability::Suspect);
            let two = good_beats_after(one, first, second);
            prop_assert_eq!(availability(second, two, second), Availability::Active);
        }
    }
}
