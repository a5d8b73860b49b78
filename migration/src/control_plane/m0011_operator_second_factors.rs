//! Second factors of operators: the tables that people have.

use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::sql;

#[derive(DeriveMigrationName)]
pub struct Migration;

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
CREATE TABLE operator_second_factors (
    operator_id TEXT PRIMARY KEY REFERENCES operators (id),
    sealed_secret BYTES NOT NULL,
    confirmed_at BIGINT,
    last_step BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL
);
CREATE TABLE operator_recovery_codes (
    code_hash BYTES PRIMARY KEY,
    operator_id TEXT NOT NULL REFERENCES operators (id),
    used_at BIGINT
);
CREATE INDEX operator_recovery_codes_by_operator ON operator_recovery_codes (operator_id);
CREATE TABLE operator_login_challenges (
    token_hash BYTES PRIMARY KEY,
    operator_id TEXT NOT NULL REFERENCES operators (id),
    tries BIGINT NOT NULL DEFAULT 0,
    expires_at BIGINT NOT NULL
);
CREATE INDEX operator_login_challenges_by_end ON operator_login_challenges (expires_at)
";

const DOWN: &str = "
DROP TABLE operator_login_challenges;
DROP TABLE operator_recovery_codes;
DROP TABLE operator_second_factors
";
