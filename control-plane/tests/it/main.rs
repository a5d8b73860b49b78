//! The whole control plane, over real HTTP, on SQLite and on PostgreSQL.

mod auth;
mod bad_input;
mod contract;
mod events;
mod harness;
mod health;
mod idempotency;
mod jobs;
mod keys;
mod outbound;
mod parts;
mod tenants;
mod tokens;
mod usage;
mod webhooks;
