//! The tables, and what a row says.

use sea_orm::{DerivePartialModel, entity::prelude::*};
use serde::{Deserialize, Serialize};
use shared::{
    ids::{AuditId, TenantId},
    seal::DataKey,
    time::Timestamp,
};
use utoipa::ToSchema;

/// Table `audit_log`. Plain text in place of types: who verifies the log must be able to read what shouldn't be there.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_log")]
pub struct Model {
    /// Of the entry.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Which of the entry's rows: a [`Phase`].
    #[sea_orm(primary_key, auto_increment = false)]
    pub phase: String,
    /// Whose log it is in.
    pub tenant_id: String,
    /// An [`ActorType`].
    pub actor_type: Option<String>,
    /// Whose id it is, if that kind has ids.
    pub actor_id: Option<String>,
    /// The operation's id in the OpenAPI document, or the name of a command.
    pub operation: String,
    /// What kind of thing it is about.
    pub resource_type: Option<String>,
    /// Which.
    pub resource_id: Option<String>,
    /// The request's id, which the caller may have chosen.
    pub request_id: Option<String>,
    /// The network that the request came from.
    pub address: Option<String>,
    /// An [`AuditResult`]; nothing in an intent.
    pub result: Option<String>,
    /// The HTTP status that it was answered with.
    pub status: Option<i32>,
    /// The slug of the problem that it was answered with.
    pub problem: Option<String>,
    /// Whether the answer is that of an earlier request with the same idempotency key.
    pub replayed: bool,
    /// When.
    pub at: Timestamp,
    /// Over all of the above.
    pub mac: Vec<u8>,
    /// Its place in its log, once it has one.
    pub position: Option<i64>,
    /// See [`super::seal`].
    pub link: Option<Vec<u8>>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// Table `audit_heads`: where each log ends.
pub mod head {
    use sea_orm::entity::prelude::*;
    use shared::time::Timestamp;

    /// The end of one log.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "audit_heads")]
    pub struct Model {
        /// Whose.
        #[sea_orm(primary_key, auto_increment = false)]
        pub tenant_id: String,
        /// The last position.
        pub position: i64,
        /// The link there.
        pub link: Vec<u8>,
        /// When it was given.
        pub sealed_at: Timestamp,
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Which row of an entry. In alphabetical order they are in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before.
    Intent,
    /// After.
    Outcome,
    /// After, in another log than the intent: whose it is became known on the way.
    OutcomeElsewhere,
    /// The only one.
    Sole,
}

impl Phase {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Outcome => "outcome",
            Self::OutcomeElsewhere => "outcome_elsewhere",
            Self::Sole => "sole",
        }
    }
}

/// Who acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActorType {
    /// A person.
    User,
    /// An API key.
    Key,
    /// An operator of the installation, over the API.
    Operator,
    /// Whoever ran a command of the program.
    Command,
    /// The installation by itself.
    System,
}

impl ActorType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::User, Self::Key, Self::Operator, Self::Command, Self::System];

    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Key => "key",
            Self::Operator => "operator",
            Self::Command => "command",
            Self::System => "system",
        }
    }

    pub(super) fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// What came of it, as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditResult {
    /// Done.
    Succeeded,
    /// Not done: the caller may not, or asked for something impossible.
    Refused,
    /// Not done, or in part: something of ours failed.
    Failed,
}

impl AuditResult {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Succeeded, Self::Refused, Self::Failed];

    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    pub(super) fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }

    /// What an HTTP status says.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            ..400 => Self::Succeeded,
            400..500 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// What a row says.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    pub(super) id: AuditId,
    pub(super) phase: Phase,
    pub(super) tenant: TenantId,
    pub(super) actor: Option<(ActorType, Option<String>)>,
    pub(super) operation: String,
    pub(super) resource: Option<(String, String)>,
    pub(super) request_id: Option<String>,
    pub(super) address: Option<String>,
    pub(super) result: Option<AuditResult>,
    pub(super) status: Option<u16>,
    pub(super) problem: Option<String>,
    pub(super) replayed: bool,
    pub(super) at: Timestamp,
}

impl Fact {
    /// The row, with its HMAC and without a place.
    pub(super) fn row(self, key: &DataKey) -> Model {
        let (actor_type, actor_id) = self.actor.map_or((None, None), |(kind, id)| (Some(kind.as_str().into()), id));
        let (resource_type, resource_id) = self.resource.unzip();
        let mut row = Model {
            id: self.id.into(),
            phase: self.phase.as_str().into(),
            tenant_id: self.tenant.into(),
            actor_type,
            actor_id,
            operation: self.operation,
            resource_type,
            resource_id,
            request_id: self.request_id,
            address: self.address,
            result: self.result.map(|result| result.as_str().into()),
            status: self.status.map(i32::from),
            problem: self.problem,
            replayed: self.replayed,
            at: self.at,
            mac: Vec::new(),
            position: None,
            link: None,
        };
        row.mac = row.mac_with(key).to_vec();
        row
    }
}

impl Model {
    /// The HMAC over what the row says. Each part is preceded by its length, so that no two rows read alike.
    pub(super) fn mac_with(&self, key: &DataKey) -> [u8; 32] {
        let status = self.status.map(|status| status.to_string());
        let at = self.at.as_millis().to_string();
        let parts = [
            Some("audit row 1"),
            Some(&self.id),
            Some(&self.phase),
            Some(&self.tenant_id),
            self.actor_type.as_deref(),
            self.actor_id.as_deref(),
            Some(&self.operation),
            self.resource_type.as_deref(),
            self.resource_id.as_deref(),
            self.request_id.as_deref(),
            self.address.as_deref(),
            self.result.as_deref(),
            status.as_deref(),
            self.problem.as_deref(),
            Some(if self.replayed { "1" } else { "0" }),
            Some(&at),
        ];
        let mut bytes = Vec::with_capacity(256);
        for part in parts {
            match part {
                None => bytes.push(0),
                Some(text) => {
                    bytes.push(1);
                    bytes.extend((text.len() as u64).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        key.keyed_hash(&bytes)
    }
}

/// What the sealer reads of a row's place.
#[derive(Debug, DerivePartialModel)]
#[sea_orm(entity = "head::Entity")]
pub(super) struct Place {
    pub(super) position: i64,
    pub(super) link: Vec<u8>,
}
