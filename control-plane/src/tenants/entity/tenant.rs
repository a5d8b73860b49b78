//! Table `tenants`.

use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};
use shared::{ids::TenantId, time::Timestamp};
use utoipa::ToSchema;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "tenants")]
pub struct Model {
    /// Which.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: TenantId,
    /// As its owner wrote it.
    pub name: String,
    /// Whether it may write.
    pub status: TenantStatus,
    /// Its data key, sealed with the master key.
    pub sealed_data_key: Vec<u8>,
    /// The position of its newest event.
    pub last_position: i64,
    /// When its owner signed up.
    pub created_at: Timestamp,
    /// After how many days the content of messages is erased; none: never.
    pub retention_days: Option<i64>,
    /// While it is being deleted: when everything goes.
    pub delete_at: Option<Timestamp>,
    /// While it is being deleted: whether the operator has it suspended once that is taken back.
    pub suspended_meanwhile: bool,
}

/// Whether a tenant may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum TenantStatus {
    /// Everything is possible.
    #[sea_orm(string_value = "active")]
    Active,
    /// By the operator: reading is possible, writing isn't.
    #[sea_orm(string_value = "suspended")]
    Suspended,
    /// By its owner: reading is possible until it is gone, writing isn't.
    #[sea_orm(string_value = "deleting")]
    Deleting,
}

impl TenantStatus {
    /// The status of that name.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::try_from_value(&text.to_owned()).ok()
    }
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
