//! People: limits on attempts, mail, tokens in mails, second factors, and what a login is known by.

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

/// `tat` is GCRA's theoretical arrival time. A mail is deleted once it is sent; `sealed_data` is sealed with the master key.
/// `email_tokens.subject` is a person's id, or, for a sign-up that waits, nothing: then `sealed_data` says who wants it.
const UP: &str = "
CREATE TABLE throttles (
    bucket BYTES PRIMARY KEY,
    tat BIGINT NOT NULL
);
CREATE INDEX throttles_by_end ON throttles (tat);
CREATE TABLE mails (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    sealed_data BYTES NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE email_tokens (
    token_hash BYTES PRIMARY KEY,
    purpose TEXT NOT NULL,
    mail_id TEXT NOT NULL,
    user_id TEXT REFERENCES users (id),
    sealed_data BYTES,
    expires_at BIGINT NOT NULL
);
CREATE INDEX email_tokens_by_user ON email_tokens (user_id);
CREATE INDEX email_tokens_by_mail ON email_tokens (mail_id);
CREATE INDEX email_tokens_by_end ON email_tokens (expires_at);
CREATE TABLE second_factors (
    user_id TEXT PRIMARY KEY REFERENCES users (id),
    sealed_secret BYTES NOT NULL,
    confirmed_at BIGINT,
    last_step BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL
);
CREATE TABLE recovery_codes (
    code_hash BYTES PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    used_at BIGINT
);
CREATE INDEX recovery_codes_by_user ON recovery_codes (user_id);
CREATE TABLE login_challenges (
    token_hash BYTES PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    tries BIGINT NOT NULL DEFAULT 0,
    expires_at BIGINT NOT NULL
);
CREATE INDEX login_challenges_by_end ON login_challenges (expires_at);
ALTER TABLE users ADD COLUMN email_verified_at BIGINT;
ALTER TABLE logins ADD COLUMN device TEXT NOT NULL DEFAULT 'unknown';
ALTER TABLE logins ADD COLUMN address TEXT NOT NULL DEFAULT 'unknown';
ALTER TABLE logins ADD COLUMN last_used_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE signing_keys ADD COLUMN retired_at BIGINT
";

const DOWN: &str = "
ALTER TABLE signing_keys DROP COLUMN retired_at;
ALTER TABLE logins DROP COLUMN last_used_at;
ALTER TABLE logins DROP COLUMN address;
ALTER TABLE logins DROP COLUMN device;
ALTER TABLE users DROP COLUMN email_verified_at;
DROP TABLE login_challenges;
DROP TABLE recovery_codes;
DROP TABLE second_factors;
DROP TABLE email_tokens;
DROP TABLE mails;
DROP TABLE throttles
";
