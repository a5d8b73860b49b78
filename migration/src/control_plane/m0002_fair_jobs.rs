//! Fair turns, keys against doubles, and a schedule for jobs; indexes for retention.

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
ALTER TABLE jobs ADD COLUMN dedupe_key TEXT;
DROP INDEX jobs_ready;
CREATE INDEX jobs_ready_by_tenant ON jobs (kind, tenant_id, run_at, id, lane) WHERE state = 'ready';
CREATE UNIQUE INDEX jobs_once ON jobs (tenant_id, kind, dedupe_key) WHERE state IN ('ready', 'running');
CREATE TABLE job_turns (
    kind TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    virtual_time BIGINT NOT NULL,
    PRIMARY KEY (kind, tenant_id)
);
CREATE INDEX job_turns_by_time ON job_turns (kind, virtual_time);
CREATE TABLE cron (
    name TEXT PRIMARY KEY,
    expression TEXT NOT NULL,
    next_at BIGINT NOT NULL,
    last_at BIGINT
);
CREATE INDEX deliveries_completed ON deliveries (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX events_by_time ON events (occurred_at)
";

const DOWN: &str = "
DROP INDEX events_by_time;
DROP INDEX deliveries_completed;
DROP TABLE cron;
DROP TABLE job_turns;
DROP INDEX jobs_once;
DROP INDEX jobs_ready_by_tenant;
CREATE INDEX jobs_ready ON jobs (kind, run_at, id, lane) WHERE state = 'ready';
ALTER TABLE jobs DROP COLUMN dedupe_key
";
