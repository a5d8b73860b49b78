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
//! **Limits.** Beside its scopes and an end, a key may be limited to some sessions: then it is as if the tenant had no others
//! ([`TenantScope::sessions`](crate::auth::TenantScope::sessions)), and it can have only scopes that are about sessions. And it may
//! be limited to networks that it is used from, by the caller's address as `TRUSTED_PROXIES` tells it.
//!
//! **Rotation** makes a key like the present one, which then ends after an overlap; a key has one successor.
//!
//! **Invariants.** Only people make, rotate and delete keys. A deleted key stays as a row, so that what it did can be told. A key's
//! last use is written at most once a minute, in batches ([`uses`]): a request with a key writes nothing for it.

mod cache;
mod dto;
mod entity;
mod routes;
pub(crate) mod service;
pub(crate) mod token;
mod uses;

pub use cache::{KeyCache, forget};
pub use routes::router;
use secrecy::SecretString;
use shared::wire::session::Network;
pub(crate) use uses::KeyUses;
pub use uses::write_uses;

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "key_cache_total",
        "API keys that were looked for among those found a moment ago, by outcome."
    );
}

/// A new key that nobody knows yet, for `API_KEY`.
#[must_use]
pub fn new_key(network: Network) -> SecretString {
    token::generate(network)
}
