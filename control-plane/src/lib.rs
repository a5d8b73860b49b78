//! The control plane: what tenants and operators decide and pay for.
//!
//! Each folder is a word of the domain and holds all that the word needs: routes, rules, tables, background work.
//! What cuts across stands here at the top, small.

pub mod app;
pub mod audit;
pub mod auth;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod crash;
pub mod db;
pub mod error;
pub mod events;
pub mod extract;
pub mod health;
pub mod idempotency;
pub mod internal;
pub mod jobs;
pub mod keys;
pub mod limits;
pub mod listener;
pub mod mail;
pub mod master_key;
pub mod messages;
pub mod objects;
pub mod openapi;
pub mod operators;
pub mod outbound;
pub mod placement;
pub mod plans;
pub mod redis;
pub mod request_context;
pub mod seed;
pub mod server;
pub mod sessions;
pub mod state;
mod sweep;
pub mod tenants;
pub mod upkeep;
pub mod usage;
pub mod webhooks;
pub mod workers;

pub use server::ControlPlane;
