//! The send journal.

use chrono::{DateTime, Utc};
use shared::{ids::MessageId, wire::session::OnUnknown};

use super::{FencedBackend, Result, Store};

/// A message about to be sent.
pub struct JournalItem<'a> {
    /// Our id.
    pub message_id: &'a MessageId,
    /// The id on WhatsApp.
    pub wa_id: &'a str,
    /// The chat's JID: only a keyed hash of it is stored.
    pub chat: &'a str,
}

/// What the journal says of a message that is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalOpened {
    /// Never tried: send it.
    Opened {
        /// 1.
        tries: u32,
    },
    /// An earlier try's outcome isn't known, and the policy is to resend: send it.
    WasOpen {
        /// This try's number, from 2.
        tries: u32,
    },
    /// An earlier try's outcome isn't known, and the policy is to hold: don't send it. Nothing was written.
    Held {
        /// How many tries there were.
        tries: u32,
    },
    /// WhatsApp took it: don't send it.
    AlreadyAcked {
        /// When.
        at: DateTime<Utc>,
    },
    /// WhatsApp refused it: don't send it.
    AlreadyNacked {
        /// WhatsApp's code.
        code: u16,
        /// When.
        at: DateTime<Utc>,
    },
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalAck {
    /// Recorded, with an outbox row.
    Recorded {
        /// Our id.
        message_id: MessageId,
        /// The outbox row.
        seq: i64,
        /// Which try it answers.
        tries: u32,
    },
    /// It was recorded before; nothing was written.
    Already,
    /// The journal has no such id: it isn't a message of ours.
    Unknown,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalState {
    /// Perhaps written to the wire; no word yet.
    Open,
    /// WhatsApp took it.
    Acked {
        /// When.
        at: DateTime<Utc>,
    },
    /// WhatsApp refused it.
    Nacked {
        /// Its code.
        code: u16,
        /// When.
        at: DateTime<Utc>,
    },
}

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Our id.
    pub message_id: MessageId,
    /// Where it stands.
    pub state: JournalState,
    /// How many tries.
    pub tries: u32,
}

impl FencedBackend {
    /// Opens a try of each, in one fenced commit, before any frame is written. Answers in order. At most 64 items.
    pub async fn journal_open(&self, _items: &[JournalItem<'_>], _on_unknown: OnUnknown) -> Result<Vec<JournalOpened>> {
        todo!()
    }
    /// Takes back the last try of messages whose frame was never handed to the transport.
    pub async fn journal_withdraw(&self, _wa_ids: &[&str]) -> Result<()> {
        todo!()
    }
    /// Records WhatsApp's word, and its outbox row, in one fenced commit. Idempotent.
    pub async fn journal_ack(&self, _wa_id: &str, _error: Option<u16>, _at: DateTime<Utc>) -> Result<JournalAck> {
        todo!()
    }
    /// Looks a message up by its id on WhatsApp.
    pub async fn journal_find(&self, _wa_id: &str) -> Result<Option<JournalEntry>> {
        todo!()
    }
}

impl Store {
    /// Deletes rows acknowledged before `before` (7 days ago), 1,000 at most. Answers how many went.
    pub async fn journal_prune(&self, _before: DateTime<Utc>) -> Result<u64> {
        todo!()
    }
}
