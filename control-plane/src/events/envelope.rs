//! An event as receivers see it.

use serde::{Deserialize, Serialize};
use shared::{
    ids::{EventId, SessionId, TenantId},
    time::Timestamp,
};
use utoipa::ToSchema;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum EventType {
    /// A session's status changed.
    #[serde(rename = "session.status")]
    SessionStatus,
    /// A message came in.
    #[serde(rename = "message.received")]
    MessageReceived,
    /// A message went out: through the API, or typed on the phone.
    #[serde(rename = "message.sent")]
    MessageSent,
    /// A message's status moved.
    #[serde(rename = "message.status")]
    MessageStatus,
    /// A message came in that can't be decrypted (yet).
    #[serde(rename = "message.undecryptable")]
    MessageUndecryptable,
    /// Four fifths of a quota are used.
    #[serde(rename = "quota.warning")]
    QuotaWarning,
    /// The whole quota is used, or a message was refused for it.
    #[serde(rename = "quota.exceeded")]
    QuotaExceeded,
    /// A webhook endpoint was disabled because it failed for too long, or said that it is gone.
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled,
    /// A test that the tenant asked for.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl EventType {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SessionStatus,
        Self::MessageReceived,
        Self::MessageSent,
        Self::MessageStatus,
        Self::MessageUndecryptable,
        Self::QuotaWarning,
        Self::QuotaExceeded,
        Self::WebhookDisabled,
        Self::WebhookTest,
    ];

    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionStatus => "session.status",
            Self::MessageReceived => "message.received",
            Self::MessageSent => "message.sent",
            Self::MessageStatus => "message.status",
            Self::MessageUndecryptable => "message.undecryptable",
            Self::QuotaWarning => "quota.warning",
            Self::QuotaExceeded => "quota.exceeded",
            Self::WebhookDisabled => "webhook.disabled",
            Self::WebhookTest => "webhook.test",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// An event: the body of a webhook delivery, and of everything else that tells events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Envelope {
    /// The same in every delivery of this event.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Whose event it is.
    pub tenant_id: TenantId,
    /// The session it is about, if it is about one.
    pub session_id: Option<SessionId>,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// Its place among the tenant's events, in commit order, without gaps, from 1.
    #[schema(minimum = 1, example = 4711)]
    pub position: i64,
    /// What there is to say; its shape depends on the type.
    pub data: serde_json::Value,
}
