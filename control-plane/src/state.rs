//! What every handler and every background task of one control-plane process shares.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    auth::Keyring,
    config::Config,
    db::Db,
    jobs::{Bell, Direct, Handler},
    keys::KeyCache,
    limits::Limits,
    master_key::MasterKey,
    messages::Waiting,
    objects::Objects,
    outbound,
    redis::Redis,
    workers::Fleet,
};

/// Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// See [`App`].
pub struct Shared {
    /// Settings, as read at start.
    pub config: Config,
    /// The database.
    pub db: Db,
    /// Wraps data keys.
    pub master_key: MasterKey,
    /// What authentication needs at hand.
    pub keyring: Keyring,
    /// What replicas share for speed, if they do.
    pub redis: Option<Arc<Redis>>,
    /// How often callers may ask.
    pub limits: Limits,
    /// API keys that were found a moment ago.
    pub key_cache: KeyCache,
    /// What works on jobs, by kind.
    pub handlers: Vec<Arc<dyn Handler>>,
    /// Wakes the runner of jobs.
    pub bell: Bell,
    /// Where jobs are handed in that run at once.
    pub direct: Direct,
    /// Requests that wait for a message to move.
    pub waiting: Waiting,
    /// Calls tenants' URLs, guarded.
    pub outbound: outbound::Client,
    /// The audit log.
    pub audit: audit::Log,
    /// Files that are too large for the database.
    pub objects: Objects,
    /// Workers: how they are called, and the reconciler's bell. [`Fleet::load`] makes it.
    pub fleet: Fleet,
    /// Cancelled when load balancers are to send nothing more, before `stop`.
    pub leaving: CancellationToken,
    /// Cancelled when the process is to stop.
    pub stop: CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Shared) -> Self {
        Self(Arc::new(parts))
    }
}
