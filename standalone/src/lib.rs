//! Switchboard in one process, and the guided tour of it.

#![recursion_limit = "512"]

pub mod configuration;
pub mod embedded;
#[cfg(feature = "sandbox")]
pub mod tour;
