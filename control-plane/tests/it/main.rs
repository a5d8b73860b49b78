//! The whole control plane, over real HTTP, on SQLite and on PostgreSQL.

mod events;
mod harness;
mod jobs;
mod outbound;
mod parts;
mod usage;
mod webhooks;
