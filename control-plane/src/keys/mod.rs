//! API keys: credentials for programs.
//!
//! **Owns** the table `api_keys`. A key is shown once, when it is made; stored are a keyed hash and its last four
//! characters. It says by its prefix which network the sessions that it makes speak to (`sb_live_`: WhatsApp, `sb_test_`: the
//! sandbox), and by its checksum whether it was copied whole, so a mistyped one never reaches the database and secret
//! scanners can tell a real one.
//!
//! A key that was found is believed for some seconds without the database, while Redis carries what is to be forgotten
//! ([`cache`]). Whatever changes what a key may do calls [`forget`] after its commit.
//!
//! **Invariants.** Only people make and delete keys. A deleted key stays as a row, so that what it did can be told. A key's
//! last use is written at most once a minute.

mod cache;
mod dto;
mod entity;
mod routes;
pub(crate) mod service;
pub(crate) mod token;

pub use cache::{KeyCache, forget};
pub use routes::router;

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "key_cache_total",
        "API keys that were looked for among those found a moment ago, by outcome."
    );
}
