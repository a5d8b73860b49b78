//! The table `messages`.

use sea_orm::{QueryTrait, entity::prelude::*};
use serde::{Deserialize, Serialize};
use shared::{
    ids::{MessageId, SessionId, TenantId},
    time::Timestamp,
    wire::{outbox::InboundBody, send::Content},
};
use utoipa::ToSchema;

use super::policy::{MessageStatus, Progress};
use crate::{auth::TenantScope, sessions};

/// The sender of what the session's own account wrote.
pub const ME: &str = "me";

/// One message. Printing it would print what it says and to whom, so its `Debug` is reduced.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "messages")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: MessageId,
    /// Whose history.
    pub tenant_id: TenantId,
    /// Through which session.
    pub session_id: SessionId,
    /// Which way.
    pub direction: Direction,
    /// Its id on WhatsApp.
    pub wa_id: String,
    /// The chat, canonical.
    pub chat: String,
    /// Who wrote it, canonical; [`ME`] for the session's own account.
    pub sender: String,
    /// The chat's phone-number JID, where known.
    pub chat_pn: Option<String>,
    /// The chat's LID, where known.
    pub chat_lid: Option<String>,
    /// The sender's phone-number JID, where known.
    pub sender_pn: Option<String>,
    /// The sender's LID, where known.
    pub sender_lid: Option<String>,
    /// The sender's name as it showed itself.
    pub push_name: Option<String>,
    /// The kind of content.
    pub kind: MessageKind,
    /// The content.
    pub content: Option<Body>,
    /// Where it stands.
    pub status: MessageStatus,
    /// Of a failure: why.
    pub reason: Option<String>,
    /// How often it was handed to a worker.
    pub tries: i64,
    /// Whether the outcome of a try isn't known.
    pub try_open: bool,
    /// Not to be sent after this.
    pub expires_at: Option<Timestamp>,
    /// The month whose quota it holds a unit of.
    pub reserved_in: Option<Timestamp>,
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
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the session's account.
    #[sea_orm(string_value = "outbound")]
    Outbound,
    /// To it.
    #[sea_orm(string_value = "inbound")]
    Inbound,
}

/// The kind of a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// Plain text.
    #[sea_orm(string_value = "text")]
    Text,
    /// Something that isn't modelled yet.
    #[sea_orm(string_value = "unsupported")]
    Unsupported,
    /// It could not be decrypted (yet).
    #[sea_orm(string_value = "undecryptable")]
    Undecryptable,
}

impl MessageKind {
    /// The kind of a body.
    #[must_use]
    pub const fn of(body: &InboundBody) -> Self {
        match body {
            InboundBody::Content { content: Content::Text { .. } } => Self::Text,
            InboundBody::Unsupported { .. } => Self::Unsupported,
            InboundBody::Undecryptable => Self::Undecryptable,
        }
    }
}

/// A message's content as a column of JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, DeriveValueType)]
#[sea_orm(value_type = "String", from_str = "crate::db::from_json", to_str = "crate::db::to_json")]
pub struct Body(pub InboundBody);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body(…)")
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("id", &self.id).field("status", &self.status).finish_non_exhaustive()
    }
}

impl Model {
    /// What is known of it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            status: self.status,
            reason: self.reason.clone(),
            sent_at: self.sent_at,
            delivered_at: self.delivered_at,
            read_at: self.read_at,
            played_at: self.played_at,
            failed_at: self.failed_at,
        }
    }

    /// Takes what is known of it now.
    pub fn set_progress(&mut self, known: Progress) {
        self.status = known.status;
        self.reason = known.reason;
        self.sent_at = known.sent_at;
        self.delivered_at = known.delivered_at;
        self.read_at = known.read_at;
        self.played_at = known.played_at;
        self.failed_at = known.failed_at;
    }
}

impl Entity {
    /// A tenant's message, unless it lies outside the scope.
    pub fn of_tenant(scope: &TenantScope, id: &MessageId) -> Select<Self> {
        Self::all_of_tenant(scope).filter(Column::Id.eq(id.clone()))
    }

    /// A tenant's history, as far as the scope reaches.
    pub fn all_of_tenant(scope: &TenantScope) -> Select<Self> {
        Self::find()
            .filter(Column::TenantId.eq(scope.id().clone()))
            .apply_if(scope.sessions(), |query, only| query.filter(Column::SessionId.is_in(only.iter().cloned())))
            .apply_if(scope.network(), |query, only| {
                query.filter(Column::SessionId.in_subquery(sessions::entity::Entity::ids_of_network(scope, only)))
            })
    }
}
