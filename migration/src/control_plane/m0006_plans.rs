//! Plans, what tenants have of them, and what is used of a quota; and which replicas run.

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

/// A version of a plan never changes. `quota_counters.period` is the start of the month; what is used in it is the sum of its
/// stripes, of which one can be negative; `told`, of stripe -1, is what the tenant was told of it: 1 that it is nearly used up, 2
/// that it is. `messages.reserved_in` is the period that the message holds a unit of.
const UP: &str = r#"
CREATE TABLE plan_versions (
    plan TEXT NOT NULL,
    version BIGINT NOT NULL,
    title TEXT NOT NULL,
    terms TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (plan, version)
);
INSERT INTO plan_versions (plan, version, title, terms, created_at)
VALUES ('free', 1, 'Free', '{"features": ["whatsapp", "webhooks"]}', 0);
CREATE TABLE plan_settings (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    default_plan TEXT NOT NULL,
    trial_plan TEXT,
    trial_days BIGINT
);
INSERT INTO plan_settings (id, default_plan) VALUES (1, 'free');
CREATE TABLE subscriptions (
    tenant_id TEXT PRIMARY KEY REFERENCES tenants (id),
    plan TEXT,
    version BIGINT,
    trial_plan TEXT,
    trial_version BIGINT,
    trial_ends_at BIGINT,
    overrides TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    FOREIGN KEY (plan, version) REFERENCES plan_versions (plan, version),
    FOREIGN KEY (trial_plan, trial_version) REFERENCES plan_versions (plan, version)
);
CREATE TABLE quota_counters (
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    quota TEXT NOT NULL,
    period BIGINT NOT NULL,
    stripe INTEGER NOT NULL,
    used BIGINT NOT NULL,
    told BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, quota, period, stripe)
);
ALTER TABLE messages ADD COLUMN reserved_in BIGINT;
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    beat_at BIGINT NOT NULL
)
"#;

const DOWN: &str = "
DROP TABLE replicas;
ALTER TABLE messages DROP COLUMN reserved_in;
DROP TABLE quota_counters;
DROP TABLE subscriptions;
DROP TABLE plan_settings;
DROP TABLE plan_versions
";
