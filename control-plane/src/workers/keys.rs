//! What workers check the control plane's calls with. The key itself is one for the installation
//! ([`crate::auth::Purpose::Peers`]).

use shared::identity::{KeySet, SigningKey};

/// The public half, as workers get it.
#[must_use]
pub fn key_set(key: &SigningKey) -> KeySet {
    KeySet { keys: vec![key.public()] }
}
