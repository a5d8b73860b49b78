//! Table `invitations`.

use sea_orm::entity::prelude::*;
use shared::{
    ids::{InvitationId, TenantId, UserId},
    time::Timestamp,
};

/// An invitation that was not accepted yet.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "invitations")]
pub struct Model {
    /// Which.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: InvitationId,
    /// To which tenant.
    pub tenant_id: TenantId,
    /// Whom, in lower case.
    pub email: String,
    /// As what.
    pub role: String,
    /// The keyed hash of the token of its mail, once that is written.
    pub token_hash: Option<Vec<u8>>,
    /// By whom.
    pub invited_by: UserId,
    /// When.
    pub created_at: Timestamp,
    /// Until when it can be accepted.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation").field("id", &self.id).finish_non_exhaustive()
    }
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
