//! What a worker's answer means for a message that was handed over.

use std::time::Duration;

use shared::{time::Timestamp, wire::send::SendOutcome};

use super::policy::{Word, refusal};
use crate::workers::client::WorkerCallError;

/// A pause, at first and at last.
pub(super) type Pauses = (Duration, Duration);

/// Pauses while the session isn't connected, at first and at last.
pub(super) const NOT_CONNECTED: Pauses = (Duration::from_millis(500), Duration::from_secs(15));
/// Pauses while an older message of the chat isn't through.
pub(super) const BLOCKED: Pauses = (Duration::from_millis(250), Duration::from_secs(5));
/// Pauses while the outcome of a try isn't known: the outbox will tell, this only asks again.
pub(super) const PENDING: Pauses = (Duration::from_secs(2), Duration::from_secs(60));
/// Pauses after a failure of ours.
pub(super) const OURS: Pauses = (Duration::from_secs(1), Duration::from_secs(30));

/// What a worker's answer means for one message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What became known.
    pub(super) word: Option<Word>,
    /// Whether this try's outcome is not known.
    pub(super) open: bool,
    /// When to come back, and why, if it isn't over.
    pub(super) again: Option<(Pauses, &'static str)>,
}

/// By what it says of the message.
pub(super) fn verdict(outcome: Option<&SendOutcome>, was_open: bool, now: Timestamp) -> Verdict {
    let over = |word| Verdict { word: Some(word), open: false, again: None };
    let again = |open, pauses, why| Verdict { word: None, open, again: Some((pauses, why)) };
    match outcome {
        Some(SendOutcome::Acked { at }) => over(Word::Acked((*at).into())),
        Some(SendOutcome::Nacked { code }) => over(Word::Failed(refusal(*code), now)),
        Some(SendOutcome::Invalid { reason }) => over(Word::Failed(reason.clone(), now)),
        Some(SendOutcome::UnknownHeld) => over(Word::Failed("outcome_unknown".into(), now)),
        Some(SendOutcome::Expired) if !was_open => over(Word::Expired(now)),
        Some(SendOutcome::Expired | SendOutcome::Pending) => again(true, PENDING, "no acknowledgement yet"),
        Some(SendOutcome::NotConnected) => again(was_open, NOT_CONNECTED, "the session is not connected"),
        Some(SendOutcome::ChatBlocked) => again(was_open, BLOCKED, "an older message of the chat waits"),
        Some(SendOutcome::Failed { .. }) => again(was_open, OURS, "the worker failed"),
        None => again(true, PENDING, "the worker did not say"),
    }
}

/// If it says nothing of any.
pub(super) fn verdict_of_failure(error: WorkerCallError, was_open: bool) -> Verdict {
    let (open, pauses, why) = match error {
        WorkerCallError::Unreachable => (was_open, OURS, "the worker can't be reached"),
        WorkerCallError::GenerationMismatch => (was_open, NOT_CONNECTED, "the worker holds another generation"),
        WorkerCallError::NotHeld => (was_open, NOT_CONNECTED, "the worker doesn't hold the session"),
        WorkerCallError::Linking(_) => (was_open, OURS, "the worker refused"),
        WorkerCallError::Refused(status) if status < 500 => (was_open, OURS, "the worker refused"),
        WorkerCallError::Refused(_) | WorkerCallError::NoAnswer => (true, PENDING, "the worker did not answer"),
    };
    Verdict { word: None, open, again: Some((pauses, why)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    #[test]
    fn nothing_written_leaves_an_earlier_try_as_open_as_it_was() {
        for outcome in [SendOutcome::NotConnected, SendOutcome::ChatBlocked, SendOutcome::Failed { reason: "x".into() }]
        {
            for was_open in [true, false] {
                let verdict = verdict(Some(&outcome), was_open, NOW);
                assert_eq!((verdict.open, verdict.word.is_none()), (was_open, true));
                assert!(verdict.again.is_some());
            }
        }
    }

    #[test]
    fn what_may_have_been_written_stays_open() {
        assert!(verdict(Some(&SendOutcome::Pending), false, NOW).open);
        assert!(verdict(None, false, NOW).open);
        assert!(verdict_of_failure(WorkerCallError::NoAnswer, false).open);
        assert!(verdict_of_failure(WorkerCallError::Refused(500), false).open);
        assert!(!verdict_of_failure(WorkerCallError::Unreachable, false).open);
        assert!(!verdict_of_failure(WorkerCallError::GenerationMismatch, false).open);
    }

    #[test]
    fn a_message_with_an_open_try_does_not_expire() {
        assert_eq!(verdict(Some(&SendOutcome::Expired), false, NOW).word, Some(Word::Expired(NOW)));
        assert_eq!(verdict(Some(&SendOutcome::Expired), true, NOW).word, None);
    }
}
