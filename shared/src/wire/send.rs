//! `POST /v1/sessions/{id}/send` on a worker: one batch of a session's outgoing messages.
//!
//! The worker sends serially within a chat and in parallel across chats, waits for WhatsApp's acknowledgement up to a
//! deadline, and answers for each item. The answer only steers the sender's job; a message's status moves when the
//! acknowledgement arrives through the outbox, whichever comes first.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::MessageId;

/// The most items in a batch.
pub const MAX_BATCH: usize = 64;

/// A batch, in the order in which the messages of each chat must go out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendBatch {
    /// Must be the worker's own generation of the session.
    pub generation: i64,
    /// 1 to [`MAX_BATCH`].
    pub items: Vec<SendItem>,
    /// How long to wait for acknowledgements, in milliseconds (at most 20,000).
    pub wait_ms: u64,
}

/// One message.
#[derive(Clone, Serialize, Deserialize)]
pub struct SendItem {
    /// Our id.
    pub message_id: MessageId,
    /// The id it has on WhatsApp, chosen by the control plane: the same for every try.
    pub wa_id: String,
    /// A JID: `…@s.whatsapp.net`, `…@lid`.
    pub to: String,
    /// What to send.
    pub content: Content,
    /// Not after this.
    pub expires_at: DateTime<Utc>,
}

impl fmt::Debug for SendItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendItem").field("message_id", &self.message_id).finish_non_exhaustive()
    }
}

/// What a message holds. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Content {
    /// Plain text.
    Text {
        /// 1 to 65,536 bytes of UTF-8.
        body: String,
    },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text { .. } => "Text(…)",
        })
    }
}

/// The answer to a batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendResults {
    /// The generation it acted under.
    pub generation: i64,
    /// One for each item, in order.
    pub results: Vec<SendResult>,
}

/// What became of one item.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendResult {
    /// Our id.
    pub message_id: MessageId,
    /// What happened.
    pub outcome: SendOutcome,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum SendOutcome {
    /// WhatsApp acknowledged it, now or at an earlier try.
    Acked {
        /// When.
        at: DateTime<Utc>,
    },
    /// WhatsApp refused it.
    Nacked {
        /// WhatsApp's code, such as 429, 463 or 475.
        code: u16,
    },
    /// Written to the wire; no word yet. The journal keeps it open, and the outbox will tell.
    Pending,
    /// An earlier try's outcome isn't known, and the session says to hold.
    UnknownHeld,
    /// Nothing was written: the session isn't connected.
    NotConnected,
    /// Nothing was written: an older message of the same chat isn't through.
    ChatBlocked,
    /// Nothing was written: too late.
    Expired,
    /// It can't be sent, whatever one tries.
    Invalid {
        /// A stable word, such as `not_on_whatsapp`.
        reason: String,
    },
    /// Our fault, for now: try again.
    Failed {
        /// A stable word.
        reason: String,
    },
}
