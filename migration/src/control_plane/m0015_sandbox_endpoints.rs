//! Webhook endpoints of the sandbox, beside those that are told of everything.

use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::sql;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// `network` is the one whose sessions an endpoint is told of; null: of all, as it was. Nobody knows which endpoints were made by keys of
/// the sandbox, so those that there are stay as they are.
///
/// `suspended_meanwhile` remembers what an operator decided on an account while it was being deleted, for when that is taken back.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, DOWN).await
    }
}

// SQLite can't drop a UNIQUE: the table is made anew.
const UP: &str = "
CREATE TABLE webhooks_by_network (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    network TEXT,
    url TEXT NOT NULL,
    sealed_secret BYTES NOT NULL,
    sealed_previous_secret BYTES,
    previous_secret_until BIGINT,
    event_types TEXT NOT NULL,
    status TEXT NOT NULL,
    disabled_reason TEXT,
    failing_since BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
INSERT INTO webhooks_by_network (id, tenant_id, url, sealed_secret, sealed_previous_secret, previous_secret_until, event_types,
                                 status, disabled_reason, failing_since, created_at, updated_at)
    SELECT id, tenant_id, url, sealed_secret, sealed_previous_secret, previous_secret_until, event_types,
           status, disabled_reason, failing_since, created_at, updated_at FROM webhooks;
DROP TABLE webhooks;
ALTER TABLE webhooks_by_network RENAME TO webhooks;
CREATE UNIQUE INDEX webhooks_of_tenant ON webhooks (tenant_id, COALESCE(network, ''));
ALTER TABLE tenants ADD COLUMN suspended_meanwhile BOOLEAN NOT NULL DEFAULT FALSE
";

const DOWN: &str = "
ALTER TABLE tenants DROP COLUMN suspended_meanwhile;
DELETE FROM webhooks WHERE network IS NOT NULL;
CREATE TABLE webhooks_of_all (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL UNIQUE REFERENCES tenants (id),
    url TEXT NOT NULL,
    sealed_secret BYTES NOT NULL,
    sealed_previous_secret BYTES,
    previous_secret_until BIGINT,
    event_types TEXT NOT NULL,
    status TEXT NOT NULL,
    disabled_reason TEXT,
    failing_since BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
INSERT INTO webhooks_of_all (id, tenant_id, url, sealed_secret, sealed_previous_secret, previous_secret_until, event_types,
                             status, disabled_reason, failing_since, created_at, updated_at)
    SELECT id, tenant_id, url, sealed_secret, sealed_previous_secret, previous_secret_until, event_types,
           status, disabled_reason, failing_since, created_at, updated_at FROM webhooks;
DROP TABLE webhooks;
ALTER TABLE webhooks_of_all RENAME TO webhooks
";
