//! Table `idempotency_keys`.

use sea_orm::entity::prelude::*;
use shared::{ids::TenantId, time::Timestamp};

/// One key, and the answer that was committed under it.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_keys")]
pub struct Model {
    /// Whose.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: TenantId,
    /// The person or the API key that sent it.
    #[sea_orm(primary_key, auto_increment = false)]
    pub principal: String,
    /// As the caller sent it.
    #[sea_orm(primary_key, auto_increment = false)]
    pub idempotency_key: String,
    /// Method and path.
    pub operation: String,
    /// SHA-256 of operation and canonical body.
    pub request_hash: Vec<u8>,
    /// HTTP status; 0 until the transaction that works on it is about to commit.
    pub status: i32,
    /// The body, sealed with the tenant's key; empty if there is none.
    pub sealed_body: Vec<u8>,
    /// When it was first seen.
    pub created_at: Timestamp,
    /// When it may be used for another request.
    pub expires_at: Timestamp,
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
