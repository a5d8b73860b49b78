//! API keys: credentials for programs.
//!
//! **Owns** the table `api_keys`. A key is shown once, when it is made; stored are a keyed hash and its last four
//! characters. It says by its prefix which network the sessions that it makes speak to (`sb_live_`: WhatsApp, `sb_test_`: the
//! sandbox), and by its checksum whether it was copied whole, so a mistyped one never reaches the database and secret
//! scanners can tell a real one.
//!
//! **Invariants.** Only people make and delete keys. A deleted key stays as a row, so that what it did can be told. A key's
//! last use is written at most once a minute.

mod dto;
mod entity;
mod routes;
pub(crate) mod service;
pub(crate) mod token;

pub use routes::router;
use secrecy::SecretString;
use shared::wire::session::Network;

/// A new key that nobody knows yet, for `API_KEY`.
#[must_use]
pub fn new_key(network: Network) -> SecretString {
    token::generate(network)
}
