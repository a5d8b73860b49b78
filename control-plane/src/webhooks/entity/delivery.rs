//! The table `deliveries`.

use sea_orm::{ConnectionTrait, DbErr, entity::prelude::*};
use serde::{Deserialize, Serialize};
use shared::{
    ids::{DeliveryId, EventId, TenantId, WebhookId},
    time::Timestamp,
};
use utoipa::ToSchema;

use crate::auth::TenantScope;

/// One event on its way to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: DeliveryId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The endpoint.
    pub webhook_id: WebhookId,
    /// The event.
    pub event_id: EventId,
    /// The event's type, by its name.
    pub event_type: String,
    /// How far it is.
    pub status: DeliveryStatus,
    /// How often it was tried since it was made or replayed.
    pub attempts: i64,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// The HTTP status of the last try.
    pub last_status: Option<i64>,
    /// Why the last try failed, if not by its status.
    pub last_error: Option<String>,
    /// How long the last try took, in milliseconds.
    pub last_duration_ms: Option<i64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it succeeded, or was given up.
    pub completed_at: Option<Timestamp>,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// To be tried, now or again.
    #[sea_orm(string_value = "pending")]
    Pending,
    /// The endpoint accepted it.
    #[sea_orm(string_value = "succeeded")]
    Succeeded,
    /// Given up; it can be replayed.
    #[sea_orm(string_value = "failed")]
    Failed,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// One delivery of the tenant.
pub(crate) async fn find<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    id: &DeliveryId,
) -> Result<Option<Model>, DbErr> {
    Entity::find_by_id(id.clone()).filter(Column::TenantId.eq(scope.id().clone())).one(conn).await
}
