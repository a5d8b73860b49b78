//! Replicas that can't reach Redis while others do.

use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::sql;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// `counts_alone`: it counts requests without Redis. `unheard`: it can't tell others what to forget.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, DOWN).await
    }
}

const UP: &str = "
ALTER TABLE replicas ADD COLUMN counts_alone BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE replicas ADD COLUMN unheard BOOLEAN NOT NULL DEFAULT FALSE
";

const DOWN: &str = "
ALTER TABLE replicas DROP COLUMN unheard;
ALTER TABLE replicas DROP COLUMN counts_alone
";
