//! Messages as the API tells them.

use serde::{Deserialize, Serialize};
use shared::{
    ids::{MessageId, SessionId},
    time::Timestamp,
    wire::{outbox::InboundBody, send::Content},
};
use utoipa::{IntoParams, ToSchema};
use validator::{Validate, ValidationError};

use super::{
    entity::{Direction, MessageKind, Model},
    policy::MessageStatus,
    recipient::phone_of,
};
use crate::extract::says_something;

/// The longest text, in bytes of UTF-8.
const MAX_TEXT: usize = 65_536;

/// A message to be sent.
#[derive(Clone, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendMessage {
    /// Through which session.
    pub session_id: SessionId,
    /// To whom: a phone number in E.164, with or without `+`, or a JID that ends in `@s.whatsapp.net` or `@lid`.
    #[schema(
        example = "+15550001234",
        pattern = r"^(\+?[1-9][0-9]{6,14}|[1-9][0-9]{6,14}@s\.whatsapp\.net|[1-9][0-9]{0,19}@lid)$"
    )]
    #[validate(length(min = 1, max = 64))]
    pub to: String,
    /// What kind of message.
    #[serde(rename = "type")]
    pub kind: SendKind,
    /// What it says.
    #[validate(nested)]
    pub text: SendText,
}

/// The kinds of message that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SendKind {
    /// Plain text.
    Text,
}

/// Plain text to be sent.
#[derive(Clone, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendText {
    /// 1 to 65,536 bytes of UTF-8, not only white space.
    #[schema(example = "Your table is ready.", min_length = 1, max_length = 65536)]
    #[validate(length(min = 1), custom(function = says_something), custom(function = fits))]
    pub body: String,
}

fn fits(body: &str) -> Result<(), ValidationError> {
    if body.len() > MAX_TEXT {
        return Err(ValidationError::new("length").with_message("must be at most 65536 bytes".into()));
    }
    Ok(())
}

/// Plain text.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Text {
    /// As it was written.
    #[schema(example = "Your table is ready.")]
    pub body: String,
}

/// A message in a tenant's history.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Message)]
pub struct MessageDto {
    /// Its id.
    pub id: MessageId,
    /// Through which session.
    pub session_id: SessionId,
    /// Which way.
    pub direction: Direction,
    /// The chat that it belongs to.
    pub chat: Contact,
    /// Who wrote it; null if the session's own account did.
    pub sender: Option<Contact>,
    /// The kind of content.
    #[serde(rename = "type")]
    pub kind: MessageKind,
    /// The text, if it is one.
    pub text: Option<Text>,
    /// Of an unsupported message: the name of its kind on WhatsApp.
    pub unsupported: Option<String>,
    /// Where it stands.
    pub status: MessageStatus,
    /// Of a failure: a stable word.
    pub reason: Option<String>,
    /// Its id on WhatsApp.
    pub wa_id: String,
    /// When it was made, or came.
    pub created_at: Timestamp,
    /// When WhatsApp's server took it.
    pub sent_at: Option<Timestamp>,
    /// When it was on the recipient's device.
    pub delivered_at: Option<Timestamp>,
    /// When it was seen.
    pub read_at: Option<Timestamp>,
    /// When it was played.
    pub played_at: Option<Timestamp>,
    /// When it failed or expired.
    pub failed_at: Option<Timestamp>,
    /// If it waits: until when.
    pub expires_at: Option<Timestamp>,
}

/// A person or group under every identity that is known.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Contact {
    /// The JID: of the phone-number namespace where known.
    #[schema(example = "15550001234@s.whatsapp.net")]
    pub jid: String,
    /// The LID, where known.
    pub lid: Option<String>,
    /// The phone number in E.164, where known.
    #[schema(example = "+15550001234")]
    pub phone: Option<String>,
    /// The name as it shows itself, where known.
    pub name: Option<String>,
}

impl Contact {
    fn new(id: &str, pn: Option<&String>, lid: Option<&String>, name: Option<String>) -> Self {
        let jid = pn.map_or(id, String::as_str);
        Self { phone: phone_of(jid), jid: jid.to_owned(), lid: lid.cloned(), name }
    }
}

impl From<Model> for MessageDto {
    fn from(row: Model) -> Self {
        let outbound = row.direction == Direction::Outbound;
        let (text, unsupported) = match row.content.map(|body| body.0) {
            Some(InboundBody::Content { content: Content::Text { body } }) => (Some(Text { body }), None),
            Some(InboundBody::Unsupported { kind }) => (None, Some(kind)),
            Some(InboundBody::Undecryptable) | None => (None, None),
        };
        // In a chat with one person, that person is the chat.
        let chat_name = row.push_name.clone().filter(|_| !outbound && row.sender == row.chat);
        Self {
            id: row.id,
            session_id: row.session_id,
            direction: row.direction,
            chat: Contact::new(&row.chat, row.chat_pn.as_ref(), row.chat_lid.as_ref(), chat_name),
            sender: (!outbound)
                .then(|| Contact::new(&row.sender, row.sender_pn.as_ref(), row.sender_lid.as_ref(), row.push_name)),
            kind: row.kind,
            text,
            unsupported,
            status: row.status,
            reason: row.reason,
            wa_id: row.wa_id,
            created_at: row.created_at,
            sent_at: row.sent_at,
            delivered_at: row.delivered_at,
            read_at: row.read_at,
            played_at: row.played_at,
            failed_at: row.failed_at,
            expires_at: row.expires_at.filter(|_| row.status == MessageStatus::Queued),
        }
    }
}

/// Filters of the history.
#[derive(Debug, Clone, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MessageFilter {
    /// Only of this session.
    pub session_id: Option<SessionId>,
    /// Only of this chat: a phone number in E.164, or a JID.
    #[validate(length(min = 1, max = 64), custom(function = says_something))]
    #[param(min_length = 1, max_length = 64, example = "+15550001234")]
    pub chat: Option<String>,
    /// Only this way.
    pub direction: Option<Direction>,
    /// Only those that stand there.
    pub status: Option<MessageStatus>,
}
