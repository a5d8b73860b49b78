//! A companion's offline queue: everything for it, in order, until it acknowledges.
//!
//! Entries leave only by the companion's own receipt or ack; the copy of what the account itself wrote is not released by a bare ack. A connection reads through a cursor; a new connection starts
//! at the front again, so what was delivered and not acknowledged is delivered anew, marked `offline`.

use std::collections::VecDeque;
use std::sync::Arc;

use wacore_binary::Node;

use crate::accepted::AcceptedMessage;

/// The most a mailbox holds; senders are refused (503) while it is full.
pub(crate) const MAILBOX_LIMIT: usize = 200_000;

/// What kind of stanza an entry is; acknowledgements name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Message,
    Receipt,
    Notification,
}

impl Class {
    /// The `class` of an ack.
    pub(crate) fn parse(class: &str) -> Option<Self> {
        match class {
            "message" => Some(Self::Message),
            "receipt" => Some(Self::Receipt),
            "notification" => Some(Self::Notification),
            _ => None,
        }
    }
}

struct Entry {
    sequence: u64,
    class: Class,
    id: String,
    /// The sending account's alias, so that equal ids of two senders aren't mixed up.
    sender: String,
    /// A copy of what the account wrote on another device: it alone names a `recipient`.
    own_copy: bool,
    stanza: Node,
    attempts: u32,
    accepted: Option<Arc<AcceptedMessage>>,
}

/// What an acknowledgement names.
pub(crate) struct Release<'a> {
    pub(crate) class: Class,
    pub(crate) id: &'a str,
    /// The alias of the account that the acknowledged stanza came from; `None` matches any.
    pub(crate) sender: Option<&'a str>,
    /// It is an `<ack>` that refuses nothing, not a receipt.
    pub(crate) bare_ack: bool,
}

/// The queue of one companion.
#[derive(Default)]
pub(crate) struct Mailbox {
    entries: VecDeque<Entry>,
    next_sequence: u64,
    /// Deliver nothing for now (fault `hold`).
    pub(crate) held: bool,
}

impl Mailbox {
    /// Whether a message would be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= MAILBOX_LIMIT
    }

    /// Appends a stanza. Senders of messages have been refused before it comes to this; what else finds no room is lost.
    pub(crate) fn push(
        &mut self,
        class: Class,
        id: String,
        sender: String,
        stanza: Node,
        accepted: Option<Arc<AcceptedMessage>>,
    ) {
        if self.is_full() && class != Class::Message {
            tracing::warn!("a full mailbox took no receipt or notification");
            return;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let own_copy = class == Class::Message && stanza.attrs.get("recipient").is_some();
        self.entries.push_back(Entry { sequence, class, id, sender, own_copy, stanza, attempts: 0, accepted });
    }

    /// The position behind the newest entry: everything before it was there first.
    pub(crate) fn end(&self) -> u64 {
        self.next_sequence
    }

    /// Entries waiting, by class: messages, receipts, notifications.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in &self.entries {
            counts[entry.class as usize] += 1;
        }
        counts
    }

    /// Whether anything before `end` is at or behind the cursor.
    pub(crate) fn has_undelivered(&self, cursor: u64, end: u64) -> bool {
        self.entries
            .get(self.entries.partition_point(|entry| entry.sequence < cursor))
            .is_some_and(|entry| entry.sequence < end)
    }

    /// Up to `limit` stanzas from `cursor` on and before `end`, and the cursor behind them. With `offline`, each carries the mark.
    pub(crate) fn deliver(&mut self, cursor: u64, end: u64, limit: usize, offline: bool) -> (Vec<Node>, u64) {
        if self.held {
            return (Vec::new(), cursor);
        }
        let start = self.entries.partition_point(|entry| entry.sequence < cursor);
        let mut stanzas = Vec::new();
        let mut cursor = cursor;
        for entry in self.entries.range_mut(start..).take(limit) {
            if entry.sequence >= end {
                break;
            }
            cursor = entry.sequence + 1;
            entry.attempts += 1;
            let mut stanza = entry.stanza.clone();
            if offline {
                stanza.attrs.insert("offline", (entry.attempts - 1).to_string());
            }
            stanzas.push(stanza);
        }
        (stanzas, cursor)
    }

    /// Removes the first delivered entry that the acknowledgement names. Says whether there was one, and what it carried.
    pub(crate) fn release(&mut self, named: &Release<'_>) -> Option<Option<Arc<AcceptedMessage>>> {
        let position = self.entries.iter().position(|entry| {
            entry.attempts > 0
                && !(entry.own_copy && named.bare_ack)
                && entry.class == named.class
                && entry.id == named.id
                && named.sender.is_none_or(|sender| sender == entry.sender)
        })?;
        self.entries.remove(position).map(|entry| entry.accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wacore_binary::builder::NodeBuilder;

    fn push(mailbox: &mut Mailbox, id: &str) {
        let stanza = NodeBuilder::new("message").attr("id", id).build();
        mailbox.push(Class::Message, id.to_owned(), "a1".to_owned(), stanza, None);
    }

    fn ids(stanzas: &[Node]) -> Vec<String> {
        stanzas.iter().map(|stanza| stanza.attrs.get("id").expect("id").to_string()).collect()
    }

    fn release(mailbox: &mut Mailbox, id: &str) -> bool {
        mailbox.release(&Release { class: Class::Message, id, sender: Some("a1"), bare_ack: true }).is_some()
    }

    #[test]
    fn what_is_not_acknowledged_is_delivered_again_with_the_offline_mark() {
        let mut mailbox = Mailbox::default();
        push(&mut mailbox, "one");
        push(&mut mailbox, "two");
        let (first, _) = mailbox.deliver(0, u64::MAX, 10, false);
        assert_eq!(ids(&first), ["one", "two"]);
        assert!(first[0].attrs.get("offline").is_none());
        assert!(release(&mut mailbox, "one"));
        let (again, _) = mailbox.deliver(0, u64::MAX, 10, true);
        assert_eq!(ids(&again), ["two"]);
        assert_eq!(again[0].attrs.get("offline").map(ToString::to_string).as_deref(), Some("1"));
    }

    #[test]
    fn equal_ids_are_released_one_by_one_and_never_before_delivery() {
        let mut mailbox = Mailbox::default();
        push(&mut mailbox, "same");
        push(&mut mailbox, "same");
        assert!(!release(&mut mailbox, "same"));
        mailbox.deliver(0, u64::MAX, 10, false);
        let other = Release { class: Class::Message, id: "same", sender: Some("other"), bare_ack: true };
        assert!(mailbox.release(&other).is_none());
        assert!(release(&mut mailbox, "same"));
        assert!(release(&mut mailbox, "same"));
        assert!(!release(&mut mailbox, "same"));
    }

    #[test]
    fn a_copy_of_what_the_account_wrote_is_released_by_a_receipt_and_not_by_a_bare_ack() {
        let mut mailbox = Mailbox::default();
        let stanza = NodeBuilder::new("message").attr("id", "mine").attr("recipient", "1@lid").build();
        mailbox.push(Class::Message, "mine".to_owned(), "a1".to_owned(), stanza, None);
        mailbox.deliver(0, u64::MAX, 10, false);
        let named = |bare_ack| Release { class: Class::Message, id: "mine", sender: Some("a1"), bare_ack };
        assert!(mailbox.release(&named(true)).is_none());
        assert!(mailbox.release(&named(false)).is_some());
    }

    #[test]
    fn a_held_mailbox_delivers_nothing_until_released() {
        let mut mailbox = Mailbox::default();
        push(&mut mailbox, "one");
        mailbox.held = true;
        assert!(mailbox.deliver(0, u64::MAX, 10, false).0.is_empty());
        mailbox.held = false;
        assert_eq!(mailbox.deliver(0, u64::MAX, 10, false).0.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn a_cursor_sees_every_entry_once_in_order(total in 0usize..60, limits in proptest::collection::vec(1usize..9, 60), drop_each in 2usize..7) {
            let mut mailbox = Mailbox::default();
            for number in 0..total {
                push(&mut mailbox, &number.to_string());
            }
            let (mut cursor, mut seen) = (0, Vec::new());
            for limit in limits {
                let (stanzas, next) = mailbox.deliver(cursor, u64::MAX, limit, false);
                cursor = next;
                for id in ids(&stanzas) {
                    if seen.len() % drop_each == 0 {
                        proptest::prop_assert!(release(&mut mailbox, &id));
                    }
                    seen.push(id);
                }
            }
            proptest::prop_assert_eq!(seen, (0..total).map(|number| number.to_string()).collect::<Vec<_>>());
            proptest::prop_assert!(!mailbox.has_undelivered(cursor, u64::MAX));
        }
    }
}
