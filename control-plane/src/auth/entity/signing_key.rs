//! Table `signing_keys`.

use sea_orm::entity::prelude::*;
use shared::time::Timestamp;

/// A key pair of the control plane's.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "signing_keys")]
pub struct Model {
    /// As tokens name it.
    #[sea_orm(primary_key, auto_increment = false)]
    pub kid: String,
    /// What it signs.
    pub purpose: String,
    /// PKCS#8, sealed with the master key.
    pub sealed_pkcs8: Vec<u8>,
    /// `active` (signs; one for each purpose) or `retired` (only verifies).
    pub state: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it only verifies.
    pub retired_at: Option<Timestamp>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
