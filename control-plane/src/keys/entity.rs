//! Table `api_keys`.

use sea_orm::entity::prelude::*;
use shared::{
    ids::{KeyId, TenantId, UserId},
    time::Timestamp,
};

/// An API key.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    /// Which.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: KeyId,
    /// Whose.
    pub tenant_id: TenantId,
    /// What its maker calls it.
    pub name: String,
    /// Which network its sessions speak to.
    pub network: String,
    /// The keyed hash of the key.
    pub secret_hash: Vec<u8>,
    /// The end of the key.
    pub last_four: String,
    /// What it may do: the names of scopes, as JSON.
    pub scopes: String,
    /// Who made it.
    pub created_by: UserId,
    /// When.
    pub created_at: Timestamp,
    /// When it stops to work by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was deleted.
    pub revoked_at: Option<Timestamp>,
    /// The only sessions that it may reach, as JSON.
    pub session_ids: Option<String>,
    /// The only networks that it may be used from, as JSON.
    pub allowed_ips: Option<String>,
    /// The key that it was rotated to.
    pub replaced_by: Option<KeyId>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
