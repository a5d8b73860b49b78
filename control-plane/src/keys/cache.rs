//! Keys that were found a moment ago, so that a key that is used all the time doesn't ask the database each time.
//!
//! Only while other replicas can be heard ([`redis::subscriber`](crate::redis::subscriber)): whoever revokes a key, or changes anything
//! that a found key holds, tells everybody to forget the tenant's keys. Nor while another one can't tell, which it says in the
//! database ([`replicas`](crate::limits::replicas)). For what is not heard in the moment in which a
//! connection breaks, an entry is believed for [`BELIEVED`] at most. Without Redis nothing is cached.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use moka::sync::Cache;
use shared::ids::TenantId;

use super::service::WorkingKey;
use crate::state::App;

/// How long an entry is believed.
const BELIEVED: Duration = Duration::from_secs(5);
/// How many keys are remembered.
const KEYS: u64 = 50_000;

/// See the module.
pub struct KeyCache {
    found: Cache<Vec<u8>, WorkingKey>,
    hears: AtomicBool,
    speak: AtomicBool,
    forgotten: AtomicU64,
}

impl std::fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyCache(…)")
    }
}

impl Default for KeyCache {
    fn default() -> Self {
        Self {
            found: Cache::builder().max_capacity(KEYS).time_to_live(BELIEVED).support_invalidation_closures().build(),
            hears: AtomicBool::new(false),
            speak: AtomicBool::new(true),
            forgotten: AtomicU64::new(0),
        }
    }
}

impl KeyCache {
    /// From now on other replicas are heard.
    pub(crate) fn hears(&self) {
        self.forget_all();
        self.hears.store(true, Ordering::SeqCst);
    }

    /// From now on they aren't.
    pub(crate) fn deaf(&self) {
        self.hears.store(false, Ordering::SeqCst);
        self.forget_all();
    }

    /// Whether all other replicas can tell what to forget.
    pub(crate) fn others_speak(&self, speak: bool) {
        if self.speak.swap(speak, Ordering::SeqCst) && !speak {
            self.forget_all();
        }
    }

    /// Whether others are heard.
    pub(crate) fn is_connected(&self) -> bool {
        self.hears.load(Ordering::SeqCst)
    }

    /// Whether keys are cached at present.
    #[must_use]
    pub fn works(&self) -> bool {
        self.is_connected() && self.speak.load(Ordering::SeqCst)
    }

    /// Forgets a tenant's keys, here only.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        let tenant = tenant.clone();
        // Refused only without support for closures.
        if self.found.invalidate_entries_if(move |_, key| key.tenant_id == tenant).is_err() {
            self.found.invalidate_all();
        }
    }

    /// Forgets all, here only.
    pub fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.found.invalidate_all();
    }

    /// What was found under this hash.
    pub(super) fn get(&self, hash: &[u8]) -> Option<WorkingKey> {
        let found = self.works().then(|| self.found.get(hash)).flatten();
        let outcome = if found.is_some() { "hit" } else { "miss" };
        metrics::counter!("key_cache_total", "outcome" => outcome).increment(1);
        found
    }

    /// To be taken before the database is asked: what is revoked since isn't remembered.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.forgotten.load(Ordering::SeqCst))
    }

    /// Remembers what the database said after `mark`.
    pub(super) fn put(&self, hash: Vec<u8>, key: WorkingKey, mark: Mark) {
        if !self.works() {
            return;
        }
        self.found.insert(hash.clone(), key);
        if self.forgotten.load(Ordering::SeqCst) != mark.0 {
            self.found.invalidate(&hash);
        }
    }
}

/// See [`KeyCache::mark`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(u64);

/// Has every replica forget a tenant's keys. Call it after the commit of whatever changes what they may do: a key that is revoked,
/// rotated or changed, or the tenant's status.
pub async fn forget(app: &App, tenant: &TenantId) {
    app.key_cache.forget(tenant);
    if let Some(redis) = &app.redis
        && redis.publish(crate::redis::subscriber::KEYS, tenant.as_str()).await.is_err()
    {
        tracing::warn!("other replicas were not told to forget keys; they do so within seconds");
    }
}

#[cfg(test)]
mod tests {
    use shared::{ids::KeyId, wire::session::Network};

    use super::*;

    fn key(tenant: &TenantId) -> WorkingKey {
        WorkingKey {
            id: KeyId::new(),
            tenant_id: tenant.clone(),
            scopes: Vec::new(),
            network: Network::Sandbox,
            session_ids: None,
            allowed_ips: None,
            tenant_status: "active".into(),
            expires_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn nothing_is_believed_that_was_found_before_it_was_to_be_forgotten_or_while_nobody_is_heard() {
        let cache = KeyCache::default();
        let (one, other) = (TenantId::new(), TenantId::new());
        cache.put(vec![1], key(&one), cache.mark());
        assert!(cache.get(&[1]).is_none(), "nobody is heard yet");
        cache.hears();
        let early = cache.mark();
        cache.put(vec![1], key(&one), early);
        cache.put(vec![2], key(&other), early);
        assert!(cache.get(&[1]).is_some());
        cache.forget(&one);
        assert!(cache.get(&[1]).is_none() && cache.get(&[2]).is_some());
        cache.put(vec![1], key(&one), early);
        assert!(cache.get(&[1]).is_none(), "asked before, answered after");
        cache.put(vec![1], key(&one), cache.mark());
        assert!(cache.get(&[1]).is_some());
        cache.deaf();
        assert!(cache.get(&[1]).is_none() && cache.get(&[2]).is_none());
        cache.hears();
        assert!(cache.get(&[1]).is_none(), "from before it was deaf");
        cache.put(vec![1], key(&one), cache.mark());
        cache.others_speak(false);
        assert!(cache.get(&[1]).is_none() && !cache.works(), "one of them can't tell");
        cache.others_speak(true);
        assert!(cache.get(&[1]).is_none() && cache.works(), "it may have revoked it meanwhile");
    }
}
