//! The control plane: what tenants and operators decide and pay for.
//!
//! Each folder is a word of the domain and holds all that the word needs: routes, rules, tables, background work.
//! What cuts across stands here at the top, small.

pub mod auth;
pub mod config;
pub mod db;
pub mod error;
pub mod master_key;
pub mod state;
