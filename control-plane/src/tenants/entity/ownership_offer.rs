//! Table `ownership_offers`.

use sea_orm::entity::prelude::*;
use shared::{
    ids::{TenantId, UserId},
    time::Timestamp,
};

/// A tenant that its owner wants to hand over.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "ownership_offers")]
pub struct Model {
    /// Which tenant: one offer at a time.
    #[sea_orm(primary_key, auto_increment = false)]
    pub tenant_id: TenantId,
    /// To whom.
    pub to_user_id: UserId,
    /// When it was offered.
    pub created_at: Timestamp,
    /// Until when it can be accepted.
    pub expires_at: Timestamp,
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
