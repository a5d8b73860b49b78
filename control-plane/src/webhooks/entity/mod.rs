//! The tables of this domain.

pub mod delivery;
pub mod webhook;
