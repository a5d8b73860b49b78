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
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, timeout},
};
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
/// How long the question for it may take: a session's start waits for that.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// After a failure it isn't asked for again before this.
const VERSION_PAUSE: Duration = Duration::from_secs(60);

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
    /// A permit for each session that may come up at the moment.
    pub starts: Arc<Semaphore>,
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
    Asked(Mutex<Asked>),
}

/// What is known of the version.
#[derive(Debug, Default)]
pub struct Asked {
    version: Option<ClientVersion>,
    /// When it is to be asked for.
    due: Option<Instant>,
}

impl VersionSource {
    /// The version to announce, or `None` if WhatsApp can't be asked just now; the client then asks by itself.
    pub async fn current(&self, http: &(impl HttpClient + Clone + 'static)) -> Option<ClientVersion> {
        let cache = match self {
            Self::Fixed(version) => return Some(*version),
            Self::Asked(cache) => cache,
        };
        let mut held = cache.lock().await;
        if held.due.is_some_and(|due| Instant::now() < due) {
            return held.version;
        }
        let http: Arc<dyn HttpClient> = Arc::new(http.clone());
        match timeout(VERSION_DEADLINE, whatsapp_rust::version::fetch_latest_app_version(&http)).await {
            Ok(Ok(version)) => *held = Asked { version: Some(version), due: Some(Instant::now() + VERSION_LIFE) },
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("WhatsApp's current version could not be asked");
                held.due = Some(Instant::now() + VERSION_PAUSE);
            }
        }
        held.version
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use async_trait::async_trait;
    use wacore::net::{HttpRequest, HttpResponse};

    use super::*;

    /// A server that can't be reached.
    #[derive(Clone, Default)]
    struct Away(Arc<AtomicUsize>);

    #[async_trait]
    impl HttpClient for Away {
        async fn execute(&self, _: HttpRequest) -> anyhow::Result<HttpResponse> {
            self.0.fetch_add(1, Ordering::AcqRel);
            anyhow::bail!("away")
        }
    }

    #[tokio::test]
    async fn a_version_that_nobody_tells_is_asked_for_once_and_not_by_each_session() {
        let old = Asked { version: Some((2, 3000, 1)), due: Some(Instant::now()) };
        for (known, then) in [(Asked::default(), None), (old, Some((2, 3000, 1)))] {
            let (away, source) = (Away::default(), VersionSource::Asked(Mutex::new(known)));
            for _ in 0..100 {
                assert_eq!(source.current(&away).await, then);
            }
            assert_eq!(away.0.load(Ordering::Acquire), 1);
        }
    }
}
