//! Which refresh tokens say themselves whose login they are, so that they can be forgotten soon after their use.

use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::sql;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// Those that are there don't, nor do those that a replica of the version before goes on making.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, DOWN).await
    }
}

const UP: &str = "ALTER TABLE refresh_tokens ADD COLUMN names_login BOOLEAN NOT NULL DEFAULT FALSE";

const DOWN: &str = "ALTER TABLE refresh_tokens DROP COLUMN names_login";
