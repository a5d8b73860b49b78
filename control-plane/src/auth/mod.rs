//! Who is calling, for which tenant, and what they may do.
//!
//! **Owns** the tables `users`, `logins`, `refresh_tokens`, `signing_keys`, `throttles`, `email_tokens`, `second_factors`,
//! `recovery_codes` and `login_challenges`; and of operators their second factors, which are the same code.
//!
//! Authorisation is an extractor in the handler's signature: a handler that takes [`Auth<MessagesSend>`] can't be reached
//! without that permission; which role and which key has which is one table ([`permissions`]). What a handler gets is a [`TenantScope`], which every query of tenant data asks for: forgetting the
//! tenant doesn't compile.
//!
//! **People** log in with e-mail address and password, and with a code of their device if they want ([`second_factor`]), and
//! get two tokens: an EdDSA JWT of 15 minutes, and an opaque refresh token, which a browser may have in a cookie
//! ([`cookies`]). A login is a family of refresh tokens, each used once: the same successor is answered again for ten
//! seconds (two tabs, a lost answer), and any later use means that the token was copied, so the whole login is revoked. Each
//! request looks the login up, so ending it ends its access tokens too. A person sees their logins and ends any of them;
//! another password ends all the others.
//!
//! **Addresses** are verified, and forgotten passwords replaced, by tokens in mails ([`email_tokens`], [`letters`]).
//!
//! **Signing keys** are rotated by the operator (`control-plane rotate-keys`): the new key signs at once, the old one
//! verifies until the last token that it signed has ended, and every replica follows within half a minute, or as soon as it is
//! shown a token of the new key ([`keyring`]).
//!
//! **Programs** send an API key ([`crate::keys`]).
//!
//! **Invariants.** A password exists only in memory and as an argon2id hash; a refresh token, an API key, a recovery code or
//! the token of a mail only as a keyed hash (the successor of a used refresh token also sealed, for its ten seconds). Hashing
//! passwords is bounded in number and in queue, and attempts are limited by address and by account ([`throttle`]). Logging in,
//! resetting a password, and signing up where addresses are verified first, answer and work alike whether an account
//! exists or not.

mod account;
mod authenticate;
mod caller;
mod cookies;
mod dto;
mod email_tokens;
mod entity;
mod keyed_hash;
mod keyring;
mod letters;
mod logins;
mod passwords;
pub(crate) mod people;
pub mod permissions;
pub mod principal;
mod routes;
pub(crate) mod second_factor;
mod sign_up;
mod signing_keys;
mod throttle;
mod tokens;

use sea_orm::ConnectionTrait;
use shared::identity::{KeySet, SigningKey};

pub(crate) use account::confirm_password;
pub(crate) use authenticate::{authenticate, identify, looks_good};
pub(crate) use caller::Caller;
pub(crate) use dto::{
    Code, ConfirmPassword, EmailAddress, MIN_PASSWORD, RecoveryCodes, SecondFactor, SecondFactorRequired,
    SecondFactorSecret, Shown, SignUp,
};
pub use keyed_hash::KeyedHash;
pub use keyring::{Keyring, follow_keys};
pub use letters::Letters;
pub(crate) use logins::of_tenant as logins_of_tenant;
pub use logins::prune;
pub use permissions::{Permission, Role, Scope};
pub use principal::{Actor, Auth, Person, Principal, ScopeMarker, TenantScope, scopes};
pub use routes::router;
pub(crate) use sign_up::establish;
pub use signing_keys::{Purpose, SigningKeyError, rotate};
pub(crate) use throttle::{Attempt, admit, forgive};
pub(crate) use tokens::opaque as opaque_token;

use crate::{db::Db, master_key::MasterKey};

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

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "auth_throttled_total",
        "Attempts that were refused for their number, by what was tried and what was counted (address, account)."
    );
    metrics::describe_counter!(
        "api_key_address_refused_total",
        "Requests with an API key from an address that the key may not be used from."
    );
}
