//! Who is calling, for which tenant, and what they may do.
//!
//! **Owns** the tables `users`, `logins`, `refresh_tokens` and `signing_keys`.
//!
//! Authorisation is an extractor in the handler's signature: a handler that takes [`Auth<MessagesSend>`] can't be reached
//! without that scope. What a handler gets is a [`TenantScope`], which every query of tenant data asks for: forgetting the
//! tenant doesn't compile.
//!
//! **People** log in with e-mail address and password and get two tokens: an EdDSA JWT of 15 minutes, and an opaque refresh
//! token. A login is a family of refresh tokens, each used once: the same successor is answered again for ten seconds (two
//! tabs, a lost answer), and any later use means that the token was copied, so the whole login is revoked. Each request
//! looks the login up, so logging out ends its access tokens too.
//!
//! **Programs** send an API key ([`crate::keys`]).
//!
//! **Invariants.** A password exists only in memory and as an argon2id hash; a refresh token or an API key only as a keyed
//! hash (the successor of a used refresh token also sealed, for its ten seconds). Hashing passwords is bounded in number and
//! in queue. The answer to a wrong password and to an unknown address is the same, after the same work.

mod authenticate;
mod dto;
mod entity;
mod keyed_hash;
mod passwords;
pub mod principal;
mod routes;
mod service;
mod signing_keys;
mod tokens;

use sea_orm::ConnectionTrait;
use shared::identity::{KeySet, SigningKey};

pub(crate) use authenticate::authenticate;
pub use keyed_hash::KeyedHash;
pub use principal::{Actor, Auth, Principal, Role, Scope, ScopeMarker, TenantScope, scopes};
pub use routes::router;
pub use service::prune;
pub use signing_keys::{Purpose, SigningKeyError};

use crate::{db::Db, master_key::MasterKey};

/// What authentication needs at hand in every request.
#[derive(Debug)]
pub struct Keyring {
    access: SigningKey,
    access_set: KeySet,
    passwords: passwords::PasswordPool,
    refresh_hash: KeyedHash,
    api_key_hash: KeyedHash,
}

impl Keyring {
    /// Loads the signing key, or makes it at the first start.
    ///
    /// # Errors
    /// [`SigningKeyError`] if the database doesn't answer or holds a key that doesn't open.
    pub async fn load(db: &Db, master_key: &MasterKey) -> Result<Self, SigningKeyError> {
        let access = signing_keys::load(db, master_key, Purpose::AccessTokens).await?;
        let access_set = signing_keys::key_set(db.read(), master_key, Purpose::AccessTokens).await?;
        Ok(Self {
            access,
            access_set,
            passwords: passwords::PasswordPool::new().map_err(|_| SigningKeyError::Password)?,
            refresh_hash: KeyedHash::new(&master_key.derive("refresh-tokens")),
            api_key_hash: KeyedHash::new(&master_key.derive("api-keys")),
        })
    }

    /// The public keys that access tokens are verified with.
    #[must_use]
    pub const fn key_set(&self) -> &KeySet {
        &self.access_set
    }

    /// The hash that API keys are stored by.
    #[must_use]
    pub const fn api_key_hash(&self) -> &KeyedHash {
        &self.api_key_hash
    }
}

/// The control plane's key pair for one purpose, made if there is none. Replicas that start at once agree on one.
///
/// # Errors
/// [`SigningKeyError`] if the database doesn't answer or holds a key that doesn't open.
pub async fn signing_key(db: &Db, master_key: &MasterKey, purpose: Purpose) -> Result<SigningKey, SigningKeyError> {
    signing_keys::load(db, master_key, purpose).await
}

/// The public keys of the control plane for one purpose, the newest first.
///
/// # Errors
/// As [`signing_key`].
pub async fn public_keys<C: ConnectionTrait>(
    connection: &C,
    master_key: &MasterKey,
    purpose: Purpose,
) -> Result<KeySet, SigningKeyError> {
    signing_keys::key_set(connection, master_key, purpose).await
}
