//! What all parts of one worker share.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use shared::{identity::PublicKey, ids::WorkerId, wire::session::Network};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::task::TaskTracker;
use wacore::net::HttpClient;

use crate::{
    config::{ClientVersion, Timing},
    shipper::Shipper,
    store::{Lease, Store},
    supervisor::Term,
    transport::{Dialer, MediaHttp},
    upstream::{Upstream, reports::Reporter},
};

/// How long an announced version is good for.
const VERSION_LIFE: Duration = Duration::from_secs(24 * 3600);

/// One run of one worker: what it is, and what it works with.
pub struct Node {
    /// Its name.
    pub worker_id: WorkerId,
    /// Which network it speaks to.
    pub network: Network,
    /// Where the control plane reaches it.
    pub endpoint: String,
    /// How many sessions it takes.
    pub capacity: u32,
    /// Availability zone.
    pub zone: Option<String>,
    /// Pool.
    pub pool: Option<String>,
    /// Its public key.
    pub public_key: PublicKey,
    /// Needed for the first join.
    pub join_token: Option<SecretString>,
    /// How often things happen.
    pub timing: Timing,
    /// The data plane's store.
    pub store: Store,
    /// The control plane.
    pub upstream: Arc<Upstream>,
    /// What is to be told to the control plane.
    pub reporter: Arc<Reporter>,
    /// Ships the outbox.
    pub shipper: Arc<Shipper>,
    /// Opens sockets to WhatsApp.
    pub dialer: Arc<Dialer>,
    /// HTTP for the library.
    pub http: MediaHttp,
    /// Which version to announce.
    pub version: VersionSource,
    /// Every task of the worker that isn't a session's own.
    pub tasks: TaskTracker,
    /// Whether the control plane knows this run, and has said what it is to run.
    pub joined: AtomicBool,
    /// When the lease was last renewed, in microseconds since 1970.
    pub lease_renewed: AtomicI64,
    /// The lease, once it is had. Another takes its place if it ends.
    pub term: RwLock<Option<Term>>,
}

impl Node {
    /// When the lease was last renewed.
    #[must_use]
    pub fn lease_renewed_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.lease_renewed.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// The lease, if it is had and lasts.
    #[must_use]
    pub fn valid_lease(&self) -> Option<Lease> {
        self.valid_term().map(|term| term.lease)
    }

    /// As [`valid_lease`](Self::valid_lease), with what tells its end.
    #[must_use]
    pub fn valid_term(&self) -> Option<Term> {
        self.term.read().unwrap_or_else(PoisonError::into_inner).clone().filter(|term| term.lease.is_valid())
    }
}

/// Where the version of WhatsApp Web comes from that clients announce.
pub enum VersionSource {
    /// From the settings.
    Fixed(ClientVersion),
    /// From WhatsApp, once a day for all sessions together.
    Asked(Mutex<Option<(ClientVersion, Instant)>>),
}

impl VersionSource {
    /// The version to announce, or `None` if WhatsApp can't be asked just now; the client then asks by itself.
    pub async fn current(&self, http: &MediaHttp) -> Option<ClientVersion> {
        let cache = match self {
            Self::Fixed(version) => return Some(*version),
            Self::Asked(cache) => cache,
        };
        let mut held = cache.lock().await;
        if let Some((version, at)) = *held
            && at.elapsed() < VERSION_LIFE
        {
            return Some(version);
        }
        let http: Arc<dyn HttpClient> = Arc::new(http.clone());
        match whatsapp_rust::version::fetch_latest_app_version(&http).await {
            Ok(version) => {
                *held = Some((version, Instant::now()));
                Some(version)
            }
            Err(_) => {
                tracing::warn!("WhatsApp's current version could not be asked");
                held.map(|(version, _)| version)
            }
        }
    }
}
