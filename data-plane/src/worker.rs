//! A whole worker: start, and stop in the right order.
//!
//! Start: store, API (the control plane calls it before it believes a join), lease, join, sessions. Stop: no orders any
//! more, sessions closed with a flush, what is left shipped and reported as far as that goes, lease released.

use std::{
    net::SocketAddr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicI64},
    },
    time::Duration,
};

use anyhow::Context;
use axum::serve::ListenerExt;
use secrecy::ExposeSecret;
use shared::{
    ids::{Incarnation, WorkerId},
    wire::session::Network,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{self, Api},
    config::Config,
    node::{Node, VersionSource},
    shipper::Shipper,
    store::{OUTBOX_MAX_ROWS, Store, StoreOptions},
    supervisor::Supervisor,
    transport::{Dialer, MediaHttp, pacing::LoginPace},
    upstream::{Upstream, membership, reports::Reporter},
};

/// How long sessions may take to close.
const CLOSE: Duration = Duration::from_secs(30);
/// How long what is left may take to be shipped and reported, and the worker's tasks to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Between two rounds of forgetting what the journal needs no more.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// How long the journal remembers an acknowledged message.
const REMEMBER: chrono::TimeDelta = chrono::TimeDelta::days(7);
/// Database connections of one worker.
const CONNECTIONS: u32 = 16;
/// How long opening a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The version that a sandbox worker announces if none is set: the simulator takes any.
const SANDBOX_VERSION: (u32, u32, u32) = (2, 3000, 1_030_000_000);

/// A worker that runs.
pub struct Worker {
    node: Arc<Node>,
    supervisor: Arc<Supervisor>,
    addr: SocketAddr,
    /// Ends the API and the search for more work.
    intake: CancellationToken,
    /// Ends everything else.
    stop: CancellationToken,
}

impl Worker {
    /// Starts a worker on the address that the configuration names. [`shared::tls::install_provider`] comes first.
    ///
    /// # Errors
    /// If the address can't be listened on, or the store can't be opened. The control plane need not be there yet.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("WORKER_LISTEN: can't listen on {}", config.listen))?;
        Self::start_on(listener, config).await
    }

    /// Starts a worker whose API answers on `listener`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_on(listener: TcpListener, config: Config) -> anyhow::Result<Self> {
        let addr = listener.local_addr().context("the listener has no address")?;
        let options = StoreOptions {
            lease_ttl: config.timing.lease_ttl,
            outbox_max_rows: OUTBOX_MAX_ROWS,
            max_connections: CONNECTIONS,
        };
        let store = Store::open_with(config.database.expose_secret(), options)
            .await
            .context("DATA_PLANE_DATABASE_URL: the store can't be opened")?;
        let client =
            || reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).connect_timeout(CONNECT_DEADLINE);
        let http = client().build().context("no HTTP client")?;
        // Apart from the one above: what is believed of the control plane isn't believed of WhatsApp.
        let upstream = Arc::new(Upstream::new(
            config.control_plane_tls.apply(client()).build().context("no HTTP client for the control plane")?,
            config.control_plane,
            config.worker_id.clone(),
            Incarnation::new(),
            config.key.clone(),
        ));
        let version = match (config.whatsapp_version, config.network) {
            (Some(version), _) => VersionSource::Fixed(version),
            (None, Network::Sandbox) => VersionSource::Fixed(SANDBOX_VERSION),
            (None, Network::Whatsapp) => VersionSource::Asked(Mutex::default()),
        };
        let endpoint = config.endpoint.map_or_else(|| format!("http://{addr}"), String::from);
        let node = Arc::new(Node {
            worker_id: config.worker_id,
            network: config.network,
            endpoint,
            capacity: config.capacity,
            zone: config.zone,
            pool: config.pool,
            public_key: config.key.public(),
            join_token: config.join_token,
            starts: Arc::new(Semaphore::new(config.timing.starts)),
            timing: config.timing,
            shipper: Arc::new(Shipper::new(store.clone(), Arc::clone(&upstream))),
            store,
            upstream,
            reporter: Arc::new(Reporter::default()),
            dialer: Arc::new(Dialer::new(config.ws_url, LoginPace::new(config.login_rate))),
            http: MediaHttp::new(http),
            version,
            tasks: TaskTracker::new(),
            joined: AtomicBool::new(false),
            lease_renewed: AtomicI64::new(0),
            term: RwLock::new(None),
        });
        let supervisor = Supervisor::new(Arc::clone(&node));
        let worker = Self { node, supervisor, addr, intake: CancellationToken::new(), stop: CancellationToken::new() };
        worker.serve(listener, config.metrics);
        worker.begin();
        tracing::info!(worker = %worker.node.worker_id, %addr, network = worker.node.network.as_str(), "started");
        Ok(worker)
    }

    /// Where its API answers.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &WorkerId {
        &self.node.worker_id
    }

    fn serve(&self, listener: TcpListener, metrics: Option<metrics_exporter_prometheus::PrometheusHandle>) {
        let router =
            api::router(Api { node: Arc::clone(&self.node), supervisor: Arc::clone(&self.supervisor), metrics });
        let listener = listener.tap_io(|socket| {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "a connection keeps Nagle's algorithm");
            }
        });
        let intake = self.intake.clone();
        self.node.tasks.spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(intake.cancelled_owned()).await;
            if let Err(error) = served {
                tracing::error!(%error, "the API ended");
            }
        });
    }

    /// Starts everything that goes on by itself.
    fn begin(&self) {
        let tasks = &self.node.tasks;
        let (node, supervisor, stop) = (Arc::clone(&self.node), Arc::clone(&self.supervisor), self.stop.clone());
        tasks.spawn(async move { node.shipper.run(stop).await });

        let (node, stop) = (Arc::clone(&self.node), self.stop.clone());
        let stale_of = Arc::clone(&supervisor);
        tasks.spawn(async move {
            node.reporter
                .run(&node.upstream, stop, |report| {
                    // Nothing runs here, or it is told: both are what is wanted.
                    let _runs = stale_of.let_go(&report.session_id, report.generation);
                })
                .await;
        });

        let (node, intake) = (Arc::clone(&self.node), self.intake.clone());
        tasks.spawn(async move {
            let lease_of = Arc::clone(&node);
            node.shipper.adopt(|| lease_of.valid_lease(), node.timing.adoption, intake).await;
        });

        let (node, intake) = (Arc::clone(&self.node), self.intake.clone());
        tasks.spawn(async move { prune(&node, intake).await });

        let (node, intake, stop) = (Arc::clone(&self.node), self.intake.clone(), self.stop.clone());
        let keeper = Arc::clone(&supervisor);
        tasks.spawn(async move {
            let Some(lease) = supervisor.acquire_lease(&intake).await else { return };
            // The lease outlives the intake: sessions are still being closed.
            tokio::join!(keeper.keep_lease(lease, stop), membership::run(&node, &supervisor, intake));
        });
    }

    /// Stops: no orders any more, sessions closed with a flush, their fences and the lease released.
    pub async fn shutdown(self) {
        tracing::info!(worker = %self.node.worker_id, "stopping");
        self.intake.cancel();
        if !self.supervisor.shutdown(CLOSE).await {
            tracing::warn!("not all sessions closed in time");
        }
        let node = &self.node;
        let told = timeout(LAST_WORDS, node.reporter.flush(&node.upstream, |_| {})).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::warn!("the last reports were not accepted");
        }
        self.stop.cancel();
        node.tasks.close();
        if timeout(LAST_WORDS + CLOSE, node.tasks.wait()).await.is_err() {
            tracing::warn!("not all tasks ended in time");
        }
        if let Some(lease) = node.valid_lease()
            && let Err(error) = lease.release().await
        {
            tracing::warn!(%error, "the lease was not released, it will end by itself");
        }
        if let Err(error) = node.store.close().await {
            tracing::warn!(%error, "the store did not close");
        }
        tracing::info!(worker = %node.worker_id, "stopped");
    }
}

/// Forgets, every now and then, acknowledged messages of long ago.
async fn prune(node: &Node, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(crate::backoff::spread(PRUNE_EVERY)) => {}
        }
        loop {
            match node.store.journal_prune(chrono::Utc::now() - REMEMBER).await {
                Ok(0) => break,
                Ok(_) if stop.is_cancelled() => return,
                Ok(rows) => tracing::debug!(rows, "forgot journal rows"),
                Err(error) => {
                    tracing::warn!(%error, "the journal was not pruned");
                    break;
                }
            }
        }
    }
}
