//! The audit log.

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

/// No reference to `tenants`: the installation has rows too, and a request may end when its tenant is gone.
const UP: &str = "
CREATE TABLE audit_log (
    id TEXT NOT NULL,
    phase TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    actor_type TEXT,
    actor_id TEXT,
    operation TEXT NOT NULL,
    resource_type TEXT,
    resource_id TEXT,
    request_id TEXT,
    address TEXT,
    result TEXT,
    status INTEGER,
    problem TEXT,
    replayed BOOLEAN NOT NULL DEFAULT FALSE,
    at BIGINT NOT NULL,
    mac BYTES NOT NULL,
    position BIGINT,
    link BYTES,
    PRIMARY KEY (id, phase)
);
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, id);
CREATE INDEX audit_log_to_seal ON audit_log (tenant_id, id) WHERE position IS NULL;
CREATE UNIQUE INDEX audit_log_positions ON audit_log (tenant_id, position) WHERE position IS NOT NULL;
CREATE TABLE audit_heads (
    tenant_id TEXT PRIMARY KEY,
    position BIGINT NOT NULL,
    link BYTES NOT NULL,
    sealed_at BIGINT NOT NULL
)
";

const DOWN: &str = "
DROP TABLE audit_heads;
DROP TABLE audit_log
";
