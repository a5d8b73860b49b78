//! What WhatsApp told a session, on its way up.
//!
//! A worker commits each row, sealed with the session's key, before WhatsApp is acknowledged, and deletes it once the
//! control plane has stored it. A row was committed by the rightful owner of its generation, so it is accepted whatever
//! generation wrote it, from any worker of its store; `(session_id, epoch, seq)` is unique, and that alone
//! de-duplicates. The seal stays closed on the way: only the control plane, which gave the key out, opens it.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    ids::{Incarnation, MessageId, SessionId},
    seal::Place,
    wire::send::Content,
};

/// The most rows in a batch.
pub const MAX_ROWS: usize = 256;

/// The most bytes of sealed rows in a batch of more than one, in base64 on the way: well below what the control plane
/// takes in one request.
pub const MAX_BYTES: usize = 2 << 20;

/// The table name that a row's seal is bound to.
pub const OUTBOX_TABLE: &str = "outbox";

/// `POST /internal/v1/events`: consecutive rows of one session, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutboxBatch {
    /// The run of the worker that ships.
    pub incarnation: Incarnation,
    /// Whose rows.
    pub session_id: SessionId,
    /// Which outbox sequence.
    pub epoch: i64,
    /// 1 to [`MAX_ROWS`], rising by `seq`.
    pub rows: Vec<OutboxRow>,
}

/// One sealed row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutboxRow {
    /// Its place in the session's outbox.
    pub seq: i64,
    /// An [`OutboxEvent`] as JSON, sealed with the session's key at [`row_place`].
    #[serde(with = "super::base64_bytes")]
    pub sealed: Vec<u8>,
}

/// The row part of the place that binds an outbox row's seal. Use with [`row_place`].
#[must_use]
pub fn row_name(epoch: i64, seq: i64) -> String {
    format!("{epoch}/{seq}")
}

/// The place that binds an outbox row's seal: owner is the session.
#[must_use]
pub fn row_place<'a>(session: &'a SessionId, row: &'a str) -> Place<'a> {
    Place { owner: session.as_str(), table: OUTBOX_TABLE, row }
}

/// The answer to [`OutboxBatch`]: everything up to and including `seq` of this batch is stored. Delete it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutboxAccepted {
    /// The last row's.
    pub seq: i64,
}

/// One thing that WhatsApp said.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum OutboxEvent {
    /// A message came in, or the account's owner wrote one on another device.
    Message(InboundMessage),
    /// WhatsApp took, or refused, a message of ours.
    ServerAck {
        /// Our id.
        message_id: MessageId,
        /// The id on WhatsApp.
        wa_id: String,
        /// WhatsApp's code if it refused.
        error: Option<u16>,
        /// When the acknowledgement came.
        at: DateTime<Utc>,
        /// Which try of the message was acknowledged, from 1.
        tries: u32,
    },
    /// A recipient's device said what became of messages of ours.
    Receipt {
        /// The chat, canonical.
        chat: Party,
        /// Ids on WhatsApp.
        wa_ids: Vec<String>,
        /// What.
        receipt: ReceiptKind,
        /// When.
        at: DateTime<Utc>,
    },
}

impl fmt::Debug for OutboxEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Message(_) => "Message(…)",
            Self::ServerAck { .. } => "ServerAck(…)",
            Self::Receipt { .. } => "Receipt(…)",
        })
    }
}

/// What a receipt says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptKind {
    /// On the recipient's device.
    Delivered,
    /// Seen.
    Read,
    /// Voice note or video played.
    Played,
}

/// A person, group or channel under every name that is known.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The canonical identity: the LID where known, else the phone-number JID; groups and channels as they are. Without
    /// a device part.
    pub id: String,
    /// The phone-number JID, where known.
    #[serde(default)]
    pub pn: Option<String>,
    /// The LID, where known.
    #[serde(default)]
    pub lid: Option<String>,
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Party(…)")
    }
}

/// A message that came in. Its identity is `(session, chat.id, sender.id, wa_id)`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundMessage {
    /// The id on WhatsApp.
    pub wa_id: String,
    /// Where it was said.
    pub chat: Party,
    /// Who said it.
    pub sender: Party,
    /// Written by the session's own account, on another of its devices.
    pub from_me: bool,
    /// The sender's name as it shows itself.
    #[serde(default)]
    pub push_name: Option<String>,
    /// When WhatsApp took it.
    pub sent_at: DateTime<Utc>,
    /// What it holds.
    pub body: InboundBody,
}

/// What an incoming message holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "body")]
pub enum InboundBody {
    /// A kind that we model.
    Content {
        /// It.
        content: Content,
    },
    /// A kind that we don't model yet. The message is in history, with the name of its kind.
    Unsupported {
        /// The protobuf field's name, such as `sticker_message`.
        kind: String,
    },
    /// It could not be decrypted (yet). A later row with the same identity replaces this one.
    Undecryptable,
}
