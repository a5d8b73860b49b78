//! Facts of usage in the order in which they are exported; quotas: what a tenant was told of, and what is long past; jobs that were
//! given up, which are counted every few seconds.

use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::sql;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// `told_of` is the limit that held when the tenant was last told; nothing in rows that are older than the column.
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
CREATE INDEX usage_facts_by_tenant ON usage_facts (tenant_id, id);
CREATE INDEX quota_counters_by_period ON quota_counters (period);
CREATE INDEX jobs_dead ON jobs (kind, finished_at) WHERE state = 'dead';
ALTER TABLE quota_counters ADD COLUMN told_of BIGINT
";

const DOWN: &str = "
ALTER TABLE quota_counters DROP COLUMN told_of;
DROP INDEX jobs_dead;
DROP INDEX quota_counters_by_period;
DROP INDEX usage_facts_by_tenant
";
