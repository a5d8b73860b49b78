//! People of a tenant: invitations, one owner, and handing the account over. Limits and rotation of API keys. Retention,
//! exports, deletion.

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

/// `invitations.token_hash` is empty until the mail is written: the token stands in the mail only. The
/// lists of a key are JSON; none is no limit.
const UP: &str = "
CREATE UNIQUE INDEX members_owner ON members (tenant_id) WHERE role = 'owner';
CREATE TABLE invitations (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    email TEXT NOT NULL,
    role TEXT NOT NULL,
    token_hash BYTES UNIQUE,
    invited_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX invitations_by_email ON invitations (tenant_id, email);
CREATE INDEX invitations_by_end ON invitations (expires_at);
CREATE TABLE ownership_offers (
    tenant_id TEXT PRIMARY KEY REFERENCES tenants (id),
    to_user_id TEXT NOT NULL REFERENCES users (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX ownership_offers_by_end ON ownership_offers (expires_at);
ALTER TABLE api_keys ADD COLUMN session_ids TEXT;
ALTER TABLE api_keys ADD COLUMN allowed_ips TEXT;
ALTER TABLE api_keys ADD COLUMN replaced_by TEXT;
ALTER TABLE tenants ADD COLUMN retention_days BIGINT;
ALTER TABLE tenants ADD COLUMN delete_at BIGINT;
CREATE INDEX messages_with_content ON messages (tenant_id, created_at) WHERE content IS NOT NULL;
CREATE TABLE exports (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    requested_by TEXT NOT NULL,
    status TEXT NOT NULL,
    bytes BIGINT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    expires_at BIGINT NOT NULL
);
CREATE INDEX exports_by_tenant ON exports (tenant_id, id);
CREATE UNIQUE INDEX exports_running ON exports (tenant_id) WHERE status = 'running';
CREATE INDEX exports_by_end ON exports (expires_at)
";

const DOWN: &str = "
DROP TABLE exports;
DROP INDEX messages_with_content;
ALTER TABLE tenants DROP COLUMN delete_at;
ALTER TABLE tenants DROP COLUMN retention_days;
ALTER TABLE api_keys DROP COLUMN replaced_by;
ALTER TABLE api_keys DROP COLUMN allowed_ips;
ALTER TABLE api_keys DROP COLUMN session_ids;
DROP TABLE ownership_offers;
DROP TABLE invitations;
DROP INDEX members_owner
";
