//! The whole control plane, over real HTTP, on SQLite and on PostgreSQL.

mod auth;
mod bad_input;
mod contract;
mod events;
mod fair_jobs;
mod fleet;
mod harness;
mod health;
mod idempotency;
mod ingest;
mod jobs;
mod keys;
mod linking;
mod messages;
mod outbound;
mod parts;
mod sessions;
mod tenants;
mod tokens;
mod usage;
mod webhooks;
mod workers;
