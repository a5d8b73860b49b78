//! What the reconciler does next about a session. Pure.

use std::time::Duration;

use shared::{
    time::Timestamp,
    wire::session::{Desired, Observed},
};

use super::{entity, status::FRAME_LIFE};
use crate::workers::{
    entity::{self as worker, Schedulability},
    policy::{Availability, SUSPECT_AFTER, proven},
};

/// When nothing but an event can change anything: never by itself.
pub const NEVER: Timestamp = Timestamp::from_millis(i64::MAX);
/// How long a worker has to report a session that it was told of, before it is told again.
pub const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// How long a worker may go on as before with a session that is to end, before it is told again. Two calls can overtake
/// each other on the way, and then the older is the last that it heard.
pub const END_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait before looking again for a worker with room.
pub const NO_CAPACITY_PAUSE: Duration = Duration::from_secs(5);
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What is wanted.
    pub desired: Desired,
    /// The availability of the worker that it is placed on.
    pub holder: Option<Availability>,
    /// Whether it is to go to another worker: see [`leaves`].
    pub leaving: bool,
    /// Whether a store holds state of it.
    pub has_state: bool,
    /// What the worker last said under the present generation.
    pub observed: Option<&'a Observed>,
    /// Whether the worker has been told what is wanted now.
    pub told: bool,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When its worker last said something of it.
    pub heard_at: Timestamp,
    /// When what is shown will change by mere silence.
    pub silent_at: Timestamp,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time.
    Settle(Timestamp),
    /// Find a worker, and tell it. From a worker that is lost, if it is placed.
    Place,
    /// Tell its worker what is wanted.
    Put,
    /// Have its worker let go of it, so that another can take it.
    LetGo,
    /// Give its placement up: it has ended.
    Release(End),
    /// It was to be deleted, and there is nothing to erase.
    Forget,
}

/// How a session ended on its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As its owner wanted; its state is kept.
    Stopped,
    /// By itself, such as when the QR codes ran out; its state is kept, and it is to stay stopped.
    StoppedItself,
    /// Its state is gone.
    Erased {
        /// Whether WhatsApp confirmed that the companion device was removed.
        unlink_confirmed: bool,
    },
}

impl<'a> View<'a> {
    /// The view of a row whose worker is `holder`, of somebody who has been listening since a time.
    #[must_use]
    pub fn of(row: &'a entity::Model, holder: Option<&worker::Model>, listening: Timestamp, now: Timestamp) -> Self {
        let current = row.observed_generation == row.generation;
        let observed = row.observed.as_ref().filter(|_| current).map(|observed| &observed.0);
        Self {
            desired: row.desired.into(),
            holder: holder.map(|worker| proven(worker.availability(now), listening, now)),
            leaving: leaves(row, holder),
            has_state: row.store_id.is_some(),
            observed,
            told: row.acted_intent_seq >= row.intent_seq,
            placed_at: row.placed_at.unwrap_or(now),
            heard_at: row.observed_at.unwrap_or(now),
            silent_at: silent_at(row, holder, now),
        }
    }
}

/// Whether a session is to go to another worker: because its own is to give its sessions to others, or because an operator moves it.
#[must_use]
pub fn leaves(row: &entity::Model, holder: Option<&worker::Model>) -> bool {
    holder.is_some_and(|worker| {
        worker.schedulability == Schedulability::Draining || row.move_to.as_ref().is_some_and(|to| *to != worker.id)
    })
}

/// A worker that is heard vouches for its sessions; when it falls silent, its sessions are woken. Else the last frame
/// counts for a while.
fn silent_at(row: &entity::Model, holder: Option<&worker::Model>, now: Timestamp) -> Timestamp {
    let heard = holder.is_some_and(|worker| now.since(worker.last_beat_at) < SUSPECT_AFTER);
    match row.last_frame_at {
        Some(at) if !heard && now.since(at) < FRAME_LIFE => at.plus(FRAME_LIFE),
        _ => NEVER,
    }
}

/// See the module.
#[must_use]
pub fn next_step(view: View<'_>, now: Timestamp) -> Step {
    let Some(holder) = view.holder else {
        return match view.desired {
            Desired::Running => Step::Place,
            Desired::Stopped => Step::Settle(NEVER),
            Desired::LoggedOut | Desired::Deleted if view.has_state => Step::Place,
            Desired::LoggedOut => Step::Settle(NEVER),
            Desired::Deleted => Step::Forget,
        };
    };
    match (view.desired, view.observed) {
        (_, Some(Observed::Erased { .. })) if view.desired == Desired::Running => Step::Place,
        (_, Some(Observed::Erased { unlink_confirmed })) => {
            Step::Release(End::Erased { unlink_confirmed: *unlink_confirmed })
        }
        (Desired::Stopped, Some(Observed::Stopped { .. })) => Step::Release(End::Stopped),
        (Desired::Running, Some(Observed::Stopped { reason: Some(_) })) if view.told => {
            Step::Release(End::StoppedItself)
        }
        // It was let go before our wish arrived, or the worker gave it up: a new placement.
        (Desired::Running | Desired::LoggedOut | Desired::Deleted, Some(Observed::Stopped { .. })) => Step::Place,
        _ if holder == Availability::Offline => Step::Place,
        _ if !view.told => Step::Put,
        (_, None) if now.since(view.placed_at) >= REPORT_WITHIN => Step::Put,
        (_, None) => Step::Settle(view.placed_at.plus(REPORT_WITHIN)),
        (Desired::Running, Some(_)) if view.leaving => Step::LetGo,
        (Desired::Running, Some(_)) => Step::Settle(view.silent_at),
        (_, Some(_)) if now.since(view.heard_at) >= END_WITHIN => Step::Put,
        (_, Some(_)) => Step::Settle(view.silent_at.min(view.heard_at.plus(END_WITHIN))),
    }
}

/// How long to leave a session alone after so many failures in a row: doubling from half a second to half a minute.
#[must_use]
pub fn back_off(failures: i64) -> Duration {
    let doublings = u32::try_from(failures.clamp(1, 10) - 1).unwrap_or(0);
    FIRST_BACK_OFF.saturating_mul(1 << doublings).min(LONGEST_BACK_OFF)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const SOON: Timestamp = Timestamp::from_millis(1_050_000);
    const LET_GO: Observed = Observed::Stopped { reason: None };
    const V: View<'static> = View {
        desired: Desired::Running,
        holder: Some(Availability::Active),
        leaving: false,
        has_state: true,
        observed: Some(&Observed::Connected),
        told: true,
        placed_at: NOW,
        heard_at: NOW,
        silent_at: SOON,
    };

    #[rstest]
    #[case::runs(V, Step::Settle(SOON))]
    #[case::new(View { holder: None, has_state: false, observed: None, told: false, ..V }, Step::Place)]
    #[case::told_nothing(View { told: false, ..V }, Step::Put)]
    #[case::not_heard_yet(View { observed: None, ..V }, Step::Settle(NOW.plus(REPORT_WITHIN)))]
    #[case::not_heard_for_long(View { observed: None, placed_at: NOW.minus(REPORT_WITHIN), ..V }, Step::Put)]
    #[case::worker_lost(View { holder: Some(Availability::Offline), ..V }, Step::Place)]
    #[case::worker_silent(View { holder: Some(Availability::Suspect), ..V }, Step::Settle(SOON))]
    #[case::drained(View { leaving: true, ..V }, Step::LetGo)]
    #[case::drained_before_it_was_told(View { leaving: true, told: false, ..V }, Step::Put)]
    #[case::let_go_by_a_draining_worker(View { leaving: true, observed: Some(&LET_GO), ..V }, Step::Place)]
    #[case::given_up(View { observed: Some(&LET_GO), ..V }, Step::Place)]
    #[case::stops(View { desired: Desired::Stopped, told: false, ..V }, Step::Put)]
    #[case::stopping(View { desired: Desired::Stopped, ..V }, Step::Settle(NOW.plus(END_WITHIN)))]
    #[case::goes_on_although_it_is_to_stop(
        View { desired: Desired::Stopped, heard_at: NOW.minus(END_WITHIN), ..V }, Step::Put)]
    #[case::goes_on_although_it_is_to_be_deleted(
        View { desired: Desired::Deleted, heard_at: NOW.minus(END_WITHIN), ..V }, Step::Put)]
    #[case::runs_and_has_nothing_to_say(View { heard_at: NOW.minus(END_WITHIN), ..V }, Step::Settle(SOON))]
    #[case::stopped(View { desired: Desired::Stopped, observed: Some(&LET_GO), ..V }, Step::Release(End::Stopped))]
    #[case::stopping_on_a_lost_worker(
        View { desired: Desired::Stopped, holder: Some(Availability::Offline), ..V }, Step::Place)]
    #[case::rests(View { desired: Desired::Stopped, holder: None, ..V }, Step::Settle(NEVER))]
    #[case::logs_out(View { desired: Desired::LoggedOut, told: false, ..V }, Step::Put)]
    #[case::logs_out_from_rest(View { desired: Desired::LoggedOut, holder: None, ..V }, Step::Place)]
    #[case::nothing_to_log_out(
        View { desired: Desired::LoggedOut, holder: None, has_state: false, ..V }, Step::Settle(NEVER))]
    #[case::nothing_to_erase(View { desired: Desired::Deleted, holder: None, has_state: false, ..V }, Step::Forget)]
    #[case::erased(
        View { desired: Desired::Deleted, observed: Some(&Observed::Erased { unlink_confirmed: true }), ..V },
        Step::Release(End::Erased { unlink_confirmed: true }))]
    fn the_next_step_follows_from_the_view(#[case] view: View<'static>, #[case] expected: Step) {
        assert_eq!(next_step(view, NOW), expected);
    }

    #[test]
    fn a_session_whose_codes_ran_out_stays_stopped_unless_its_owner_has_asked_since() {
        let timeout = Observed::Stopped { reason: Some("pairing_timeout".into()) };
        let view = View { observed: Some(&timeout), ..V };
        assert_eq!(next_step(view, NOW), Step::Release(End::StoppedItself));
        assert_eq!(next_step(View { told: false, ..view }, NOW), Step::Place);
    }

    proptest! {
        #[test]
        fn back_off_rises_and_is_bounded(failures in 0i64..1_000_000) {
            prop_assert!(back_off(failures) <= back_off(failures + 1));
            prop_assert!(back_off(failures) <= LONGEST_BACK_OFF);
            prop_assert!(back_off(failures) >= FIRST_BACK_OFF);
        }
    }
}
