//! The whole control plane, over real HTTP, on SQLite and on PostgreSQL.

mod auth;
mod bad_input;
mod contract;
mod harness;
mod health;
mod idempotency;
mod keys;
mod tenants;
mod tokens;
