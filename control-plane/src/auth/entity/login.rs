//! Table `logins`.

use sea_orm::entity::prelude::*;
use shared::{
    ids::{LoginId, TenantId, UserId},
    time::Timestamp,
};

/// A login: one family of refresh tokens.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "logins")]
pub struct Model {
    /// Which.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: LoginId,
    /// Who logged in.
    pub user_id: UserId,
    /// To which tenant.
    pub tenant_id: TenantId,
    /// When.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// When it was ended: by logging out, or because a used refresh token came again.
    pub revoked_at: Option<Timestamp>,
    /// With what program, in words of ours.
    pub device: String,
    /// Roughly from where: a network.
    pub address: String,
    /// When it was last continued.
    pub last_used_at: Timestamp,
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
