//! Table `refresh_tokens`.

use sea_orm::entity::prelude::*;
use shared::{ids::LoginId, time::Timestamp};

/// One refresh token, used or not.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "refresh_tokens")]
pub struct Model {
    /// The keyed hash of the token.
    #[sea_orm(primary_key, auto_increment = false)]
    pub token_hash: Vec<u8>,
    /// Its family.
    pub login_id: LoginId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was used; a second use after ten seconds ends the family.
    pub used_at: Option<Timestamp>,
    /// The token that replaced it, sealed with the master key.
    pub sealed_successor: Option<Vec<u8>>,
    /// Whether the token says whose login it is, so that its family is known without this row.
    pub names_login: bool,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RefreshToken").field("login_id", &self.login_id).finish_non_exhaustive()
    }
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
