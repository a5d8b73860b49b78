//! What authentication needs at hand in every request: keys, hashes and the pool of threads for passwords.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use shared::identity::{KeySet, PublicKey, SigningKey};
use tokio::{
    sync::{Mutex, Notify},
    time::MissedTickBehavior,
};

use super::{KeyedHash, passwords, signing_keys};
use crate::{
    config::TokensConfig,
    db::Db,
    error::{ApiResult, database_error_kind},
    keys::KeyUses,
    master_key::MasterKey,
    state::App,
};

use super::{Purpose, SigningKeyError};

/// How often a replica looks for a new signing key.
const RELOAD_EVERY: Duration = Duration::from_secs(30);
/// How often at most it looks because somebody showed a key id that it doesn't know.
const RELOAD_AT_MOST_EVERY: Duration = Duration::from_millis(250);

/// The key pair that signs access tokens, and all that they are verified with.
#[derive(Debug)]
pub(super) struct AccessKeys {
    pub(super) signing: SigningKey,
    pub(super) set: KeySet,
}

/// See the module.
#[derive(Debug)]
pub struct Keyring {
    access: RwLock<Arc<AccessKeys>>,
    /// For how long a key that was retired goes on verifying.
    access_ttl: Duration,
    reloaded: Mutex<Instant>,
    rotated: Notify,
    pub(super) passwords: passwords::PasswordPool,
    pub(super) refresh_hash: KeyedHash,
    pub(super) refresh_seal: KeyedHash,
    pub(super) throttle_hash: KeyedHash,
    pub(super) mail_token_hash: KeyedHash,
    mail_token_values: KeyedHash,
    pub(super) second_factor_hash: KeyedHash,
    api_key_hash: KeyedHash,
    key_uses: KeyUses,
    operator_hash: KeyedHash,
}

impl Keyring {
    /// Loads the signing key, or makes it at the first start.
    ///
    /// # Errors
    /// [`SigningKeyError`] if the database doesn't answer or holds a key that doesn't open.
    pub async fn load(db: &Db, master_key: &MasterKey, tokens: &TokensConfig) -> Result<Self, SigningKeyError> {
        signing_keys::load(db, master_key, Purpose::AccessTokens).await?;
        let access = access_keys(db, master_key, tokens.access_ttl).await?;
        let hash = |purpose: &str| KeyedHash::new(&master_key.derive(purpose));
        Ok(Self {
            access: RwLock::new(Arc::new(access)),
            access_ttl: tokens.access_ttl,
            reloaded: Mutex::new(Instant::now()),
            rotated: Notify::new(),
            passwords: passwords::PasswordPool::new().map_err(|_| SigningKeyError::Password)?,
            refresh_hash: hash("refresh-tokens"),
            refresh_seal: hash("refresh-token-logins"),
            throttle_hash: hash("throttles"),
            mail_token_hash: hash("mail-tokens"),
            mail_token_values: hash("mail-token-values"),
            second_factor_hash: hash("second-factors"),
            api_key_hash: hash("api-keys"),
            key_uses: KeyUses::default(),
            operator_hash: hash("operator-tokens"),
        })
    }

    /// An address, as something that can be counted by and doesn't tell which it is.
    #[must_use]
    pub(crate) fn address_hash(&self, host: &str) -> String {
        let hash = self.throttle_hash.of(&format!("rate {host}"));
        hash.iter().take(16).fold(String::with_capacity(32), |text, byte| format!("{text}{byte:02x}"))
    }

    /// Hashes the tokens of operators.
    #[must_use]
    pub const fn operator_hash(&self) -> &KeyedHash {
        &self.operator_hash
    }

    /// The hash of a password, to be stored.
    ///
    /// # Errors
    /// 503 if too many others wait.
    pub(crate) async fn hash_password(&self, password: SecretString) -> ApiResult<String> {
        Ok(self.passwords.hash(password).await?)
    }

    /// Whether a password belongs to a stored hash; does the same work without one, and says no.
    ///
    /// # Errors
    /// As [`hash_password`](Self::hash_password).
    pub(crate) async fn verify_password(&self, password: SecretString, stored: Option<String>) -> ApiResult<bool> {
        Ok(self.passwords.verify(password, stored).await?)
    }

    pub(super) fn access(&self) -> Arc<AccessKeys> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The public keys that access tokens are verified with, the newest first.
    #[must_use]
    pub fn key_set(&self) -> KeySet {
        self.access().set.clone()
    }

    /// The token that a mail carries. Of one mail it is always the same: should the mail server take a mail twice, because its word on
    /// the first was lost, the reader's program shows one of the two (they have one `Message-ID`), and the link works in either.
    pub(crate) fn mail_token(&self, prefix: &str, mail: &str) -> SecretString {
        let value = self.mail_token_values.of(&format!("{prefix}{mail}"));
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(value)).into()
    }

    /// The hash that tokens of mails are stored by.
    pub(crate) const fn mail_token_hash(&self) -> &KeyedHash {
        &self.mail_token_hash
    }

    /// Which API keys were used.
    pub(crate) const fn key_uses(&self) -> &KeyUses {
        &self.key_uses
    }

    /// The hash that API keys are stored by.
    #[must_use]
    pub const fn api_key_hash(&self) -> &KeyedHash {
        &self.api_key_hash
    }

    /// Somebody says that the signing key was rotated.
    pub(crate) fn rotated(&self) {
        self.rotated.notify_one();
    }

    /// The key that a token says it was signed with. If it isn't known, another replica may just have begun to use it: the
    /// database is asked, for all such tokens together at most four times a second.
    pub(super) async fn key_of(&self, app: &App, token: &str) -> Result<Option<PublicKey>, SigningKeyError> {
        if let Some(key) = self.access().set.key_of(token) {
            return Ok(Some(key.clone()));
        }
        self.reload(&app.db, &app.master_key, RELOAD_AT_MOST_EVERY).await?;
        Ok(self.access().set.key_of(token).cloned())
    }

    /// Reads the keys, unless that was done a moment ago. One at a time, so that nobody puts older ones over newer ones.
    async fn reload(&self, db: &Db, master_key: &MasterKey, unless_within: Duration) -> Result<(), SigningKeyError> {
        let mut reloaded = self.reloaded.lock().await;
        if reloaded.elapsed() < unless_within {
            return Ok(());
        }
        *reloaded = Instant::now();
        let keys = access_keys(db, master_key, self.access_ttl).await?;
        if keys.signing.public() != self.access().signing.public() {
            tracing::info!(kid = keys.signing.public().kid, "access tokens are signed with a new key from now on");
        }
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }
}

/// In one snapshot, so that a rotation shows whole or not at all.
async fn access_keys(db: &Db, master_key: &MasterKey, ttl: Duration) -> Result<AccessKeys, SigningKeyError> {
    let keys = signing_keys::accepted(db.read(), master_key, Purpose::AccessTokens, ttl).await?;
    let set = KeySet { keys: keys.iter().map(SigningKey::public).collect() };
    let signing = keys.into_iter().next().ok_or(SigningKeyError::Missing)?;
    Ok(AccessKeys { signing, set })
}

/// Follows rotations of the signing key until the process stops.
pub async fn follow_keys(app: App) {
    let mut every = tokio::time::interval(RELOAD_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = every.tick() => {}
            () = app.keyring.rotated.notified() => {}
        }
        match app.keyring.reload(&app.db, &app.master_key, Duration::ZERO).await {
            Ok(()) => {}
            Err(SigningKeyError::Database(error)) => {
                tracing::warn!(kind = database_error_kind(&error), "the signing keys were not read; trying again");
            }
            Err(error) => tracing::error!(%error, "the signing keys can't be used"),
        }
    }
}
