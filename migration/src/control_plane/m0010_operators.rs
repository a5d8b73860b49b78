//! Operators of the installation, and the tenant that its settings make.

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

/// `installation.default_tenant_id` is the tenant of `API_KEY`.
const UP: &str = "
CREATE TABLE operators (
    id TEXT PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE operator_logins (
    token_hash BYTES PRIMARY KEY,
    operator_id TEXT NOT NULL REFERENCES operators (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX operator_logins_by_operator ON operator_logins (operator_id);
CREATE INDEX operator_logins_by_end ON operator_logins (expires_at);
ALTER TABLE installation ADD COLUMN default_tenant_id TEXT
";

const DOWN: &str = "
ALTER TABLE installation DROP COLUMN default_tenant_id;
DROP TABLE operator_logins;
DROP TABLE operators
";
