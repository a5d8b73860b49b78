//! How a message's status moves. Pure.

use std::time::Duration;

use sea_orm::{DeriveActiveEnum, EnumIter};
use serde::{Deserialize, Serialize};
use shared::{time::Timestamp, wire::outbox::ReceiptKind};
use utoipa::ToSchema;

/// Where a message stands.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    EnumIter,
    DeriveActiveEnum,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum MessageStatus {
    /// Waits to be sent.
    #[sea_orm(string_value = "queued")]
    Queued,
    /// Was not sent in time.
    #[sea_orm(string_value = "expired")]
    Expired,
    /// Can't be sent, or its outcome will not be known; `reason` says why.
    #[sea_orm(string_value = "failed")]
    Failed,
    /// WhatsApp's server took it.
    #[sea_orm(string_value = "sent")]
    Sent,
    /// On the recipient's device.
    #[sea_orm(string_value = "delivered")]
    Delivered,
    /// Seen.
    #[sea_orm(string_value = "read")]
    Read,
    /// Played.
    #[sea_orm(string_value = "played")]
    Played,
    /// Came in.
    #[sea_orm(string_value = "received")]
    Received,
}

impl Progress {
    /// When it came to a status, as far as known.
    #[must_use]
    pub fn at(&self, status: MessageStatus) -> Option<Timestamp> {
        match status {
            MessageStatus::Queued | MessageStatus::Received => None,
            MessageStatus::Expired | MessageStatus::Failed => self.failed_at,
            MessageStatus::Sent => self.sent_at,
            MessageStatus::Delivered => self.delivered_at,
            MessageStatus::Read => self.read_at,
            MessageStatus::Played => self.played_at,
        }
    }
}

impl MessageStatus {
    /// Whether nothing more is to be done for it to go out: the next of its chat may.
    #[must_use]
    pub fn through(self) -> bool {
        self != Self::Queued
    }

    /// Whether it ended without being sent, as far as is known.
    #[must_use]
    pub fn ended(self) -> bool {
        matches!(self, Self::Failed | Self::Expired)
    }

    /// Whether WhatsApp took it.
    #[must_use]
    pub fn accepted(self) -> bool {
        matches!(self, Self::Sent | Self::Delivered | Self::Read | Self::Played)
    }
}

/// What is known of an outgoing message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub status: MessageStatus,
    /// Of an end: why.
    pub reason: Option<String>,
    /// When WhatsApp's server took it.
    pub sent_at: Option<Timestamp>,
    /// When it was on a device of the recipient.
    pub delivered_at: Option<Timestamp>,
    /// When it was seen.
    pub read_at: Option<Timestamp>,
    /// When it was played.
    pub played_at: Option<Timestamp>,
    /// When it ended without being sent.
    pub failed_at: Option<Timestamp>,
}

/// Something that became known of an outgoing message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// WhatsApp's server took it.
    Acked(Timestamp),
    /// A recipient's device said so.
    Receipt(ReceiptKind, Timestamp),
    /// It can't be sent.
    Failed(String, Timestamp),
    /// It is too late.
    Expired(Timestamp),
}

/// What is known after a word more. Never backward: the order of the words makes no difference to the status.
#[must_use]
pub fn apply(mut known: Progress, word: &Word) -> Progress {
    let earliest = |held: &mut Option<Timestamp>, at: Timestamp| *held = Some(held.map_or(at, |held| held.min(at)));
    let status = match word {
        Word::Acked(at) => {
            earliest(&mut known.sent_at, *at);
            MessageStatus::Sent
        }
        Word::Receipt(kind, at) => {
            earliest(&mut known.sent_at, *at);
            match kind {
                ReceiptKind::Delivered => {
                    earliest(&mut known.delivered_at, *at);
                    MessageStatus::Delivered
                }
                ReceiptKind::Read => {
                    earliest(&mut known.delivered_at, *at);
                    earliest(&mut known.read_at, *at);
                    MessageStatus::Read
                }
                ReceiptKind::Played => {
                    earliest(&mut known.delivered_at, *at);
                    earliest(&mut known.read_at, *at);
                    earliest(&mut known.played_at, *at);
                    MessageStatus::Played
                }
            }
        }
        Word::Failed(reason, at) if known.status < MessageStatus::Failed => {
            known.reason = Some(reason.clone());
            known.failed_at = Some(*at);
            MessageStatus::Failed
        }
        Word::Expired(at) if known.status < MessageStatus::Expired => {
            known.failed_at = Some(*at);
            MessageStatus::Expired
        }
        Word::Failed(..) | Word::Expired(_) => known.status,
    };
    known.status = known.status.max(status);
    if known.status.accepted() {
        known.reason = None;
        known.failed_at = None;
    }
    known
}

/// The statuses that a message passed on its way from one to another, the last included. Receipts overtake each other, and
/// what was read was delivered: whoever follows a message is told of each step, in this order.
#[must_use]
pub fn steps(from: MessageStatus, to: MessageStatus) -> Vec<MessageStatus> {
    const WAY: [MessageStatus; 4] =
        [MessageStatus::Sent, MessageStatus::Delivered, MessageStatus::Read, MessageStatus::Played];
    if to.accepted() {
        WAY.into_iter().filter(|step| from < *step && *step <= to).collect()
    } else {
        Vec::from_iter((from != to).then_some(to))
    }
}

/// Whether a message that ended may be queued again under its ids: only if WhatsApp certainly never saw it.
///
/// # Errors
/// Why not, in a sentence.
pub fn may_be_queued_again(known: &Progress, try_open: bool) -> Result<(), &'static str> {
    match known.status {
        MessageStatus::Received => Err("it came in"),
        MessageStatus::Sent | MessageStatus::Delivered | MessageStatus::Read | MessageStatus::Played => {
            Err("WhatsApp has it")
        }
        // It is asked for anyway, under the same id.
        MessageStatus::Queued => Ok(()),
        MessageStatus::Expired | MessageStatus::Failed if try_open => Err("WhatsApp may have it"),
        MessageStatus::Expired => Ok(()),
        MessageStatus::Failed => match known.reason.as_deref() {
            // The worker asked WhatsApp for the recipient, and wrote nothing.
            Some("not_on_whatsapp") => Ok(()),
            Some("outcome_unknown") => Err("WhatsApp may have it"),
            Some("cancelled") => Err("it was called off, and its tenant was told so"),
            Some("session_deleted") => Err("its session was deleted"),
            _ => Err("it was refused for good, and nothing is sent under its id again"),
        },
    }
}

/// Why WhatsApp refused a message, as a stable word. A refusal is an end: the worker's journal has it under the message's
/// only id, so nothing can be sent under that id again.
#[must_use]
pub fn refusal(code: u16) -> String {
    match code {
        429 => "rate_limited".into(),
        463 => "reach_out_time_lock".into(),
        475 => "not_allowed_for_account".into(),
        code => format!("refused_{code}"),
    }
}

/// How long until the next try, after so many: doubling from `first` to `longest`.
#[must_use]
pub fn pause(attempts: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEW: Progress = Progress {
        status: MessageStatus::Queued,
        reason: None,
        sent_at: None,
        delivered_at: None,
        read_at: None,
        played_at: None,
        failed_at: None,
    };

    fn words() -> impl Strategy<Value = Vec<Word>> {
        let at = (0i64..1000).prop_map(Timestamp::from_millis);
        let kind = prop_oneof![Just(ReceiptKind::Delivered), Just(ReceiptKind::Read), Just(ReceiptKind::Played)];
        let word = prop_oneof![
            at.clone().prop_map(Word::Acked),
            (kind, at.clone()).prop_map(|(kind, at)| Word::Receipt(kind, at)),
            at.clone().prop_map(|at| Word::Failed("refused_400".into(), at)),
            at.prop_map(Word::Expired),
        ];
        prop::collection::vec(word, 0..8)
    }

    proptest! {
        #[test]
        fn any_order_of_the_same_words_ends_in_the_same_status(words in words().prop_flat_map(|w| {
            (Just(w.clone()), Just(w).prop_shuffle())
        })) {
            let (one, other) = words;
            let end = |words: &[Word]| words.iter().fold(NEW, apply);
            let (one, other) = (end(&one), end(&other));
            prop_assert_eq!(one.status, other.status);
            prop_assert_eq!(one.sent_at, other.sent_at);
            prop_assert_eq!(one.delivered_at, other.delivered_at);
            prop_assert_eq!(one.read_at, other.read_at);
            prop_assert_eq!(one.played_at, other.played_at);
            prop_assert_eq!(&one.reason, &other.reason);
        }

        #[test]
        fn no_word_moves_a_message_backward(words in words()) {
            let mut known = NEW;
            for word in &words {
                let next = apply(known.clone(), word);
                prop_assert!(next.status >= known.status);
                known = next;
            }
        }

        #[test]
        fn a_word_said_twice_is_a_word_said_once(words in words(), index in any::<prop::sample::Index>()) {
            let known = words.iter().fold(NEW, apply);
            if !words.is_empty() {
                let again = apply(known.clone(), &words[index.index(words.len())]);
                prop_assert_eq!(again, known);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_in_which_order_each_step_is_told_once_and_in_order(words in words()) {
            let mut known = NEW;
            let mut told = Vec::new();
            for word in &words {
                let next = apply(known.clone(), word);
                for step in steps(known.status, next.status) {
                    prop_assert!(next.at(step).is_some());
                    told.push(step);
                }
                known = next;
            }
            prop_assert!(told.is_sorted_by(|a, b| a < b), "{:?}", told);
            prop_assert_eq!(told.last().copied().unwrap_or(MessageStatus::Queued), known.status);
            if known.status.accepted() {
                let accepted: Vec<_> = told.iter().copied().filter(|step| step.accepted()).collect();
                prop_assert_eq!(accepted, steps(MessageStatus::Queued, known.status));
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_that_whatsapp_may_have_is_queued_again(words in words(), try_open in any::<bool>()) {
            let known = words.iter().fold(NEW, apply);
            let seen = words.iter().any(|word| matches!(word, Word::Acked(_) | Word::Receipt(..)));
            let again = may_be_queued_again(&known, try_open);
            prop_assert!(!seen || again.is_err());
            prop_assert!(!(try_open && known.status.ended()) || again.is_err());
            prop_assert!(known.status != MessageStatus::Failed || again.is_err(), "refused_400 is for good");
        }
    }

    #[test]
    fn a_receipt_that_overtook_the_others_tells_of_them_too() {
        use MessageStatus::{Delivered, Expired, Failed, Played, Queued, Read, Sent};
        assert_eq!(steps(Queued, Played), [Sent, Delivered, Read, Played]);
        assert_eq!(steps(Sent, Read), [Delivered, Read]);
        assert_eq!(steps(Failed, Delivered), [Sent, Delivered]);
        assert_eq!(steps(Queued, Failed), [Failed]);
        assert_eq!(steps(Expired, Expired), []);
    }

    #[test]
    fn an_acknowledgement_moves_even_an_end_forward() {
        let failed = apply(NEW, &Word::Failed("outcome_unknown".into(), Timestamp::from_millis(5)));
        assert_eq!(failed.status, MessageStatus::Failed);
        let sent = apply(failed, &Word::Acked(Timestamp::from_millis(3)));
        assert_eq!((sent.status, sent.reason, sent.failed_at), (MessageStatus::Sent, None, None));
    }
}
