//! Table `users`.

use sea_orm::entity::prelude::*;
use shared::{ids::UserId, time::Timestamp};

/// A person.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// Who.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: UserId,
    /// In lower case, without white space around it.
    #[sea_orm(unique)]
    pub email: String,
    /// As they wrote it.
    pub name: String,
    /// argon2id, as a PHC string.
    pub password_hash: String,
    /// When they signed up.
    pub created_at: Timestamp,
    /// When they showed that the address is their own.
    pub email_verified_at: Option<Timestamp>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// None.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
