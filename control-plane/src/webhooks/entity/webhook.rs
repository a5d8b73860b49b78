//! The table `webhooks`.

use std::{fmt, str::FromStr};

use sea_orm::{ConnectionTrait, DbErr, DeriveValueType, QueryTrait, entity::prelude::*};
use serde::{Deserialize, Serialize};
use shared::{
    ids::{TenantId, WebhookId},
    time::Timestamp,
};
use utoipa::ToSchema;

use crate::{auth::TenantScope, events::EventType, sessions::entity::NetworkColumn};

/// One endpoint.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhooks")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: WebhookId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The only network whose sessions it is told of; of all, if there is none.
    pub network: Option<NetworkColumn>,
    /// Where it is. Can hold credentials of the tenant's, so it is never logged.
    pub url: String,
    /// The secret that deliveries are signed with, sealed.
    pub sealed_secret: Vec<u8>,
    /// The one before, while it is still used besides.
    pub sealed_previous_secret: Option<Vec<u8>>,
    /// Until when that is.
    pub previous_secret_until: Option<Timestamp>,
    /// What it wants to be told.
    pub event_types: EventTypes,
    /// Whether it is delivered to.
    pub status: WebhookStatus,
    /// Why it isn't, if it wasn't its owner.
    pub disabled_reason: Option<DisabledReason>,
    /// Since when no delivery has succeeded although one was tried.
    pub failing_since: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its owner last changed it.
    pub updated_at: Timestamp,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).field("status", &self.status).finish_non_exhaustive()
    }
}

/// Types of events, stored by their names with a comma between. Empty means all.
///
/// Not as JSON: the mapper binds that as PostgreSQL's own type, which a TEXT column refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq, DeriveValueType)]
#[sea_orm(value_type = "String")]
pub struct EventTypes(pub Vec<EventType>);

impl fmt::Display for EventTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, kind) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            f.write_str(kind.as_str())?;
        }
        Ok(())
    }
}

/// A stored type of event that this version doesn't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a type of event")]
pub struct UnknownEventType;

impl FromStr for EventTypes {
    type Err = UnknownEventType;

    fn from_str(stored: &str) -> Result<Self, UnknownEventType> {
        let names = stored.split(',').filter(|name| !name.is_empty());
        names.map(|name| EventType::named(name).ok_or(UnknownEventType)).collect::<Result<_, _>>().map(Self)
    }
}

impl EventTypes {
    /// Whether an endpoint with this filter is told events of a type.
    #[must_use]
    pub fn want(&self, kind: EventType) -> bool {
        self.0.is_empty() || self.0.contains(&kind)
    }
}

/// Whether an endpoint is delivered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum WebhookStatus {
    /// It is.
    #[sea_orm(string_value = "enabled")]
    Enabled,
    /// It isn't, until its owner enables it.
    #[sea_orm(string_value = "disabled")]
    Disabled,
}

/// Why we disabled an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum DisabledReason {
    /// It answered 410 Gone.
    #[sea_orm(string_value = "gone")]
    Gone,
    /// It failed for five days.
    #[sea_orm(string_value = "failing")]
    Failing,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// The endpoints of a scope: of one that is limited to a network those of that network, since others are told of more.
pub(crate) fn of_scope(scope: &TenantScope) -> Select<Entity> {
    Entity::find()
        .filter(Column::TenantId.eq(scope.id().clone()))
        .apply_if(scope.network(), |query, only| query.filter(Column::Network.eq(NetworkColumn::from(only))))
}

/// The one endpoint that a scope makes: the one for its network, or the one that is told of everything.
pub(crate) fn own_of_scope(scope: &TenantScope) -> Select<Entity> {
    let query = of_scope(scope);
    if scope.network().is_some() { query } else { query.filter(Column::Network.is_null()) }
}

/// One endpoint of the tenant.
pub(crate) async fn find<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    id: &WebhookId,
) -> Result<Option<Model>, DbErr> {
    of_scope(scope).filter(Column::Id.eq(id.clone())).one(conn).await
}
