//! Passwords: argon2id, on a bounded number of threads.
//!
//! One hash takes 19 MiB and some ten milliseconds of a core. Requests that log in mustn't take all memory or all cores, so
//! only as many run at once as the pool has permits, and only so many wait.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

/// OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
/// <https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html>
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// How many may wait for a thread.
const QUEUE: usize = 256;
/// How long one waits at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// A password could not be hashed or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PasswordError {
    /// Too many others wait.
    #[error("too many logins at once")]
    Busy,
    /// A defect: the parameters or the stored hash.
    #[error("a password can't be hashed")]
    Defect,
}

/// See the module.
pub(super) struct PasswordPool {
    threads: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// What a password for an unknown address is compared with.
    nobody: String,
}

impl std::fmt::Debug for PasswordPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasswordPool").field("threads", &self.threads.available_permits()).finish_non_exhaustive()
    }
}

impl PasswordPool {
    /// With half of the machine's cores, at least one and at most eight.
    pub(super) fn new() -> Result<Self, PasswordError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            threads: Arc::new(Semaphore::new((cores / 2).clamp(1, 8))),
            waiting: Arc::new(Semaphore::new(QUEUE)),
            nobody: hash(&uuid::Uuid::new_v4().to_string())?,
        })
    }

    /// The hash of a password that nobody knows.
    pub(super) fn of_nobody(&self) -> &str {
        &self.nobody
    }

    /// The hash to store, as a PHC string.
    pub(super) async fn hash(&self, password: SecretString) -> Result<String, PasswordError> {
        self.on_a_thread(move || hash(password.expose_secret())).await
    }

    /// Whether the password belongs to the stored hash. Without one (nobody has this address) the same work is done, and the
    /// answer is no.
    pub(super) async fn verify(&self, password: SecretString, stored: Option<String>) -> Result<bool, PasswordError> {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let fits = self.on_a_thread(move || verify(password.expose_secret(), &stored)).await?;
        Ok(fits && known)
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| PasswordError::Busy)?;
        let thread = tokio::time::timeout(PATIENCE, Arc::clone(&self.threads).acquire_owned())
            .await
            .map_err(|_| PasswordError::Busy)?
            .map_err(|_| PasswordError::Defect)?;
        // The permit goes along: a caller who hangs up doesn't make room before the work has ended.
        tokio::task::spawn_blocking(move || {
            let _thread = thread;
            work()
        })
        .await
        .map_err(|_| PasswordError::Defect)?
    }
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| PasswordError::Defect)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &str) -> Result<String, PasswordError> {
    let hash = argon2()?.hash_password(password.as_bytes()).map_err(|_| PasswordError::Defect)?;
    Ok(hash.to_string())
}

fn verify(password: &str, stored: &str) -> Result<bool, PasswordError> {
    let stored = PasswordHash::new(stored).map_err(|_| PasswordError::Defect)?;
    Ok(argon2()?.verify_password(password.as_bytes(), &stored).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_hash_only_and_nobody_has_one() {
        let pool = PasswordPool::new().unwrap();
        let stored = pool.hash("correct horse battery".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(pool.verify("correct horse battery".into(), Some(stored.clone())).await.unwrap());
        assert!(!pool.verify("correct horse batter".into(), Some(stored)).await.unwrap());
        assert!(!pool.verify("correct horse battery".into(), None).await.unwrap());
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_are_turned_away() {
        let pool = PasswordPool::new().unwrap();
        let _all = pool.waiting.try_acquire_many(u32::try_from(QUEUE).unwrap()).unwrap();
        assert_eq!(pool.hash("x".into()).await, Err(PasswordError::Busy));
    }
}
