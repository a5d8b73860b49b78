//! The table `events`.

use sea_orm::entity::prelude::*;
use shared::{
    ids::{EventId, SessionId, TenantId},
    time::Timestamp,
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "events")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: EventId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The session it is about.
    pub session_id: Option<SessionId>,
    /// A [`super::EventType`] by its name.
    #[sea_orm(column_name = "type")]
    pub kind: String,
    /// Its place among the tenant's events, once it has one.
    pub position: Option<i64>,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// What there is to say, as JSON, sealed with the tenant's key.
    pub sealed_data: Vec<u8>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
