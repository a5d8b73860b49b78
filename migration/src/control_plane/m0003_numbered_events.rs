//! Events get their positions after their commit, so that no transaction waits for another of the same tenant.

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

// SQLite can't drop a NOT NULL: the table is made anew.
const UP: &str = "
CREATE TABLE numbered_events (
    seq SERIAL_KEY,
    id TEXT NOT NULL UNIQUE,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    session_id TEXT,
    type TEXT NOT NULL,
    position BIGINT,
    occurred_at BIGINT NOT NULL,
    sealed_data BYTES NOT NULL
);
INSERT INTO numbered_events (id, tenant_id, session_id, type, position, occurred_at, sealed_data)
    SELECT id, tenant_id, session_id, type, position, occurred_at, sealed_data FROM events ORDER BY tenant_id, position;
DROP TABLE events;
ALTER TABLE numbered_events RENAME TO events;
CREATE UNIQUE INDEX events_by_position ON events (tenant_id, position);
CREATE INDEX events_to_number ON events (tenant_id, seq) WHERE position IS NULL;
CREATE INDEX events_by_time ON events (occurred_at)
";

const DOWN: &str = "
CREATE TABLE positioned_events (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    session_id TEXT,
    type TEXT NOT NULL,
    position BIGINT NOT NULL,
    occurred_at BIGINT NOT NULL,
    sealed_data BYTES NOT NULL
);
INSERT INTO positioned_events (id, tenant_id, session_id, type, position, occurred_at, sealed_data)
    SELECT id, tenant_id, session_id, type, position, occurred_at, sealed_data FROM events WHERE position IS NOT NULL;
DROP TABLE events;
ALTER TABLE positioned_events RENAME TO events;
CREATE UNIQUE INDEX events_by_position ON events (tenant_id, position);
CREATE INDEX events_by_time ON events (occurred_at)
";
