//! Table `exports`.

use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};
use shared::{
    ids::{ExportId, TenantId, UserId},
    time::Timestamp,
};
use utoipa::ToSchema;

/// An archive of all that a tenant has.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "exports")]
pub struct Model {
    /// Which.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: ExportId,
    /// Of which tenant.
    pub tenant_id: TenantId,
    /// Who asked for it.
    pub requested_by: UserId,
    /// How far it is.
    pub status: ExportStatus,
    /// How long the archive is.
    pub bytes: Option<i64>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was ready or given up.
    pub finished_at: Option<Timestamp>,
    /// When it is deleted.
    pub expires_at: Timestamp,
}

/// How far an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum ExportStatus {
    /// It is being made, or waits to be.
    #[sea_orm(string_value = "running")]
    Running,
    /// It can be fetched.
    #[sea_orm(string_value = "ready")]
    Ready,
    /// It could not be made.
    #[sea_orm(string_value = "failed")]
    Failed,
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
