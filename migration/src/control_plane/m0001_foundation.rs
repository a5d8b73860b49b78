//! Everything that one whole road needs, from sign-up to a metered message.

use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::sql;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for script in [IDENTITY, FLEET, MESSAGES, EVENTS, JOBS] {
            sql::run(manager, script).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        sql::run(manager, DOWN).await
    }
}

/// Tenants, people, logins, keys. `sealed_*` columns hold values sealed with the master key.
const IDENTITY: &str = "
CREATE TABLE installation (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    sealed_check BYTES NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE signing_keys (
    kid TEXT PRIMARY KEY,
    purpose TEXT NOT NULL,
    sealed_pkcs8 BYTES NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX signing_keys_active ON signing_keys (purpose) WHERE state = 'active';
CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    sealed_data_key BYTES NOT NULL,
    last_position BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL
);
CREATE TABLE users (
    id TEXT PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE members (
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    user_id TEXT NOT NULL REFERENCES users (id),
    role TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id);
CREATE TABLE logins (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX logins_by_user ON logins (user_id);
CREATE TABLE refresh_tokens (
    token_hash BYTES PRIMARY KEY,
    login_id TEXT NOT NULL REFERENCES logins (id),
    created_at BIGINT NOT NULL,
    used_at BIGINT,
    sealed_successor BYTES
);
CREATE INDEX refresh_tokens_by_login ON refresh_tokens (login_id);
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    name TEXT NOT NULL,
    network TEXT NOT NULL,
    secret_hash BYTES NOT NULL UNIQUE,
    last_four TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, id);
CREATE TABLE idempotency_keys (
    tenant_id TEXT NOT NULL,
    principal TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    operation TEXT NOT NULL,
    request_hash BYTES NOT NULL,
    status INTEGER NOT NULL,
    sealed_body BYTES NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, principal, idempotency_key)
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at)
";

/// Workers, and what each session should be and is.
const FLEET: &str = "
CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    store_id TEXT NOT NULL,
    public_key TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    network TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    zone TEXT,
    pool TEXT,
    capacity BIGINT NOT NULL,
    assigned BIGINT NOT NULL DEFAULT 0,
    protocol_version BIGINT NOT NULL,
    schedulability TEXT NOT NULL,
    joined_at BIGINT NOT NULL,
    last_beat_at BIGINT NOT NULL,
    good_beats BIGINT NOT NULL DEFAULT 0,
    lease_renewed_at BIGINT,
    sessions BIGINT NOT NULL DEFAULT 0,
    connected BIGINT NOT NULL DEFAULT 0,
    outbox_rows BIGINT NOT NULL DEFAULT 0,
    CHECK (assigned >= 0)
);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    name TEXT NOT NULL,
    network TEXT NOT NULL,
    sealed_data_key BYTES NOT NULL,
    epoch BIGINT NOT NULL DEFAULT 1,
    settings TEXT NOT NULL,
    desired TEXT NOT NULL,
    restart_seq BIGINT NOT NULL DEFAULT 0,
    intent_seq BIGINT NOT NULL DEFAULT 1,
    acted_intent_seq BIGINT NOT NULL DEFAULT 0,
    store_id TEXT,
    worker_id TEXT REFERENCES workers (id),
    generation BIGINT NOT NULL DEFAULT 0,
    placed_at BIGINT,
    placement_note TEXT,
    observed TEXT,
    observed_generation BIGINT NOT NULL DEFAULT 0,
    observed_incarnation TEXT,
    observed_report_seq BIGINT NOT NULL DEFAULT 0,
    observed_restart_seq BIGINT NOT NULL DEFAULT 0,
    observed_at BIGINT,
    observed_since BIGINT,
    last_frame_at BIGINT,
    qr_seq BIGINT,
    sealed_account BYTES,
    published_status TEXT NOT NULL,
    reconcile_at BIGINT NOT NULL,
    reconcile_failures BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deleted_at BIGINT
);
CREATE INDEX sessions_by_tenant ON sessions (tenant_id, id);
CREATE INDEX sessions_by_worker ON sessions (worker_id);
CREATE INDEX sessions_by_reconcile_at ON sessions (reconcile_at)
";

/// History, in both directions, and what it costs.
const MESSAGES: &str = "
CREATE TABLE messages (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    session_id TEXT NOT NULL,
    direction TEXT NOT NULL,
    wa_id TEXT NOT NULL,
    chat TEXT NOT NULL,
    sender TEXT NOT NULL,
    chat_pn TEXT,
    chat_lid TEXT,
    sender_pn TEXT,
    sender_lid TEXT,
    push_name TEXT,
    kind TEXT NOT NULL,
    content TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    tries BIGINT NOT NULL DEFAULT 0,
    try_open BOOLEAN NOT NULL DEFAULT FALSE,
    expires_at BIGINT,
    created_at BIGINT NOT NULL,
    sent_at BIGINT,
    delivered_at BIGINT,
    read_at BIGINT,
    played_at BIGINT,
    failed_at BIGINT
);
CREATE UNIQUE INDEX messages_identity ON messages (session_id, chat, sender, wa_id);
CREATE INDEX messages_by_wa_id ON messages (session_id, wa_id);
CREATE INDEX messages_by_tenant ON messages (tenant_id, id);
CREATE INDEX messages_by_session ON messages (tenant_id, session_id, id);
CREATE INDEX messages_waiting ON messages (session_id, chat, id) WHERE status = 'queued';
CREATE TABLE usage_facts (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    session_id TEXT,
    meter TEXT NOT NULL,
    quantity BIGINT NOT NULL,
    occurred_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL
);
CREATE INDEX usage_facts_by_meter ON usage_facts (tenant_id, meter, occurred_at)
";

/// Events in commit order, and their way to webhook endpoints.
const EVENTS: &str = "
CREATE TABLE outbox_rows_seen (
    session_id TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    outbox_seq BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (session_id, epoch, outbox_seq)
);
CREATE INDEX outbox_rows_seen_by_time ON outbox_rows_seen (seen_at);
CREATE TABLE events (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    session_id TEXT,
    type TEXT NOT NULL,
    position BIGINT NOT NULL,
    occurred_at BIGINT NOT NULL,
    sealed_data BYTES NOT NULL
);
CREATE UNIQUE INDEX events_by_position ON events (tenant_id, position);
CREATE TABLE webhooks (
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
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    webhook_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    next_attempt_at BIGINT,
    last_status BIGINT,
    last_error TEXT,
    last_duration_ms BIGINT,
    created_at BIGINT NOT NULL,
    completed_at BIGINT
);
CREATE UNIQUE INDEX deliveries_of_event ON deliveries (event_id, webhook_id);
CREATE INDEX deliveries_by_webhook ON deliveries (tenant_id, webhook_id, id)
";

/// Durable jobs.
const JOBS: &str = "
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    lane TEXT NOT NULL,
    state TEXT NOT NULL,
    run_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    max_attempts BIGINT NOT NULL,
    lease_owner TEXT,
    lease_until BIGINT,
    lease_epoch BIGINT NOT NULL DEFAULT 0,
    subject TEXT NOT NULL,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT
);
CREATE INDEX jobs_ready ON jobs (kind, run_at, id, lane) WHERE state = 'ready';
CREATE INDEX jobs_ready_by_lane ON jobs (lane, id) WHERE state = 'ready';
CREATE INDEX jobs_running ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_running_by_lane ON jobs (lane) WHERE state = 'running';
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL
";

const DOWN: &str = "
DROP TABLE jobs;
DROP TABLE deliveries;
DROP TABLE webhooks;
DROP TABLE events;
DROP TABLE outbox_rows_seen;
DROP TABLE usage_facts;
DROP TABLE messages;
DROP TABLE sessions;
DROP TABLE workers;
DROP TABLE idempotency_keys;
DROP TABLE api_keys;
DROP TABLE refresh_tokens;
DROP TABLE logins;
DROP TABLE members;
DROP TABLE users;
DROP TABLE tenants;
DROP TABLE signing_keys;
DROP TABLE installation
";
