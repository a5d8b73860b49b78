//! The whole control plane, over real HTTP, on SQLite and on PostgreSQL.

mod auth;
mod bad_input;
mod contract;
mod events;
mod fleet;
mod harness;
mod health;
mod idempotency;
mod ingest;
mod jobs;
mod keys;
mod linking;
mod logins;
mod mail;
mod messages;
mod outbound;
mod parts;
mod second_factor;
mod sessions;
mod smtp_sink;
mod tenants;
mod throttle;
mod tokens;
mod usage;
mod webhooks;
mod workers;
