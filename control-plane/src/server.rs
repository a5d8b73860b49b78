//! One control-plane process: its listeners and its background tasks, from start to stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use secrecy::ExposeSecret;
use tokio::task::JoinError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app, audit,
    auth::{self, Keyring},
    bootstrap,
    config::{self, Config},
    db::Db,
    error::why_not_connected,
    health, internal,
    jobs::{self, Bell, Handler, Runner},
    keys::{self, KeyCache},
    limits::{Limits, replicas},
    listener::{Listener, Terms, Tls, TlsFiles},
    mail,
    master_key::MasterKey,
    messages,
    objects::Objects,
    outbound,
    redis::{Redis, subscriber},
    request_context::Around,
    sessions,
    state::{App, Shared},
    tenants, upkeep, webhooks,
    workers::Fleet,
};

/// How long requests and tasks get to finish.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(15);

/// A running control plane. [`shutdown`](Self::shutdown) ends it; dropped without, it is told to stop and not waited for.
pub struct ControlPlane {
    app: App,
    tasks: TaskTracker,
    public: SocketAddr,
    internal: SocketAddr,
}

impl ControlPlane {
    /// Connects, migrates, binds and serves. Port 0 binds a free port.
    ///
    /// # Errors
    /// If a setting can't be used, the database doesn't answer or was made with another master key, or an address is taken. No
    /// message holds a secret.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        health::install_metrics();
        let app = open(config).await?;
        let (config, stop) = (&app.config, app.stop.clone());
        bootstrap::establish(&app).await?;

        let public_tls = TlsFiles::public(&config.http).map(Tls::load).transpose()?.map(Arc::new);
        let internal_tls = TlsFiles::internal(&config.internal).map(Tls::load).transpose()?.map(Arc::new);
        let public = Listener::bind(config.http.listen, public_tls.clone(), Terms::public(&config.http))
            .await
            .with_context(|| format!("LISTEN: {} can't be bound", config.http.listen))?;
        let public_address = public.address()?;
        let terms = Terms::internal(&config.http, &config.internal);
        let workers = Listener::bind(config.internal.listen, internal_tls.clone(), terms)
            .await
            .with_context(|| format!("INTERNAL_LISTEN: {} can't be bound", config.internal.listen))?;
        let internal_address = workers.address()?;

        app.limits.prepare().await;
        let heartbeat = replicas::Heartbeat::begin(&app).await?;
        let tasks = TaskTracker::new();
        tasks.spawn(heartbeat.keep(app.clone()));
        if let Some(redis) = app.redis.clone() {
            let stop = stop.clone();
            tasks.spawn(async move { redis.watch(stop).await });
            tasks.spawn(subscriber::listen(app.clone()));
        }
        let served = CancellationToken::new();
        let (serving, last) = (public.serve(app::router(app.clone()), stop.clone()), served.clone());
        tasks.spawn(async move {
            serving.await;
            last.cancel();
        });
        // It ends after the last request, whose outcome it writes.
        tasks.spawn(audit::write(app.clone(), served));
        tasks.spawn(audit::keep_sealing(app.clone()));
        tasks.spawn(workers.serve(Around::internal().wrap(internal::router(app.clone())), stop.clone()));
        for tls in [public_tls, internal_tls].into_iter().flatten() {
            tasks.spawn(tls.follow(stop.clone()));
        }
        tasks.spawn(auth::follow_keys(app.clone()));
        tasks.spawn(keys::write_uses(app.clone()));
        jobs::schedule::enter(&app, upkeep::SCHEDULE).await?;
        tasks.spawn(jobs::schedule::keep(app.clone(), upkeep::SCHEDULE));
        let reconciler = sessions::reconciler::start(app.clone());
        tasks.spawn(async move { report(reconciler.await, "the reconciler") });
        let runner = Runner::start(&app, app.handlers.clone());
        tasks.spawn(async move { runner.stopped().await });
        tasks.close();
        tracing::info!(public = %public_address, internal = %internal_address, "the control plane serves");
        Ok(Self { app, tasks, public: public_address, internal: internal_address })
    }

    /// Where tenants' programs connect.
    #[must_use]
    pub const fn public_address(&self) -> SocketAddr {
        self.public
    }

    /// Where workers connect.
    #[must_use]
    pub const fn internal_address(&self) -> SocketAddr {
        self.internal
    }

    /// What handlers share.
    #[must_use]
    pub const fn app(&self) -> &App {
        &self.app
    }

    /// Says on `/readyz` that this process is stopping, and serves on for `SHUTDOWN_DELAY`, in which load balancers learn of it. At once
    /// if it was done before.
    pub async fn leave(&self) {
        if self.app.leaving.is_cancelled() {
            return;
        }
        self.app.leaving.cancel();
        let delay = self.app.config.http.shutdown_delay;
        if !delay.is_zero() {
            tracing::info!(seconds = delay.as_secs_f64(), "not ready any more, and serving on for a while");
            tokio::time::sleep(delay).await;
        }
    }

    /// [Leaves](Self::leave), then stops taking requests, lets those in flight and the background tasks finish, and gives up on them
    /// after 15 seconds.
    pub async fn shutdown(self) {
        self.leave().await;
        self.app.stop.cancel();
        if tokio::time::timeout(SHUTDOWN_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "stopped without waiting any longer for tasks");
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.app.leaving.cancel();
        self.app.stop.cancel();
    }
}

/// What handlers and commands work with: connects, migrates, and loads keys. Serves nothing.
///
/// # Errors
/// As [`ControlPlane::start`].
pub async fn open(config: Config) -> anyhow::Result<App> {
    let master_key = master_key(&config)?;
    let db = connect(&config).await?;
    db.migrate().await?;
    master_key.bind(db.autocommit()).await?;
    let keyring = Keyring::load(&db, &master_key, &config.tokens).await?;
    let fleet = Fleet::load(&db, &master_key).await?;
    let outbound = outbound::Client::new(&config.outbound)?;
    let redis = Redis::connect(&config.redis, &master_key).await?.map(Arc::new);
    let objects = Objects::new(&config.objects)?;
    Ok(App::new(Shared {
        handlers: handlers(&config)?,
        limits: Limits::new(config.rate_limits.clone(), redis.clone()),
        redis,
        key_cache: KeyCache::default(),
        audit: audit::Log::new(&master_key),
        config,
        db,
        master_key,
        keyring,
        bell: Bell::default(),
        direct: jobs::Direct::default(),
        waiting: messages::Waiting::default(),
        outbound,
        objects,
        fleet,
        leaving: CancellationToken::new(),
        stop: CancellationToken::new(),
    }))
}

/// Connects to the database of a configuration.
///
/// # Errors
/// If it doesn't answer.
pub async fn connect(config: &Config) -> anyhow::Result<Db> {
    Db::connect(config.database.url.expose_secret(), config.database.pool_size)
        .await
        .map_err(|error| anyhow::anyhow!("DATABASE_URL: can't connect: {}", why_not_connected(&error)))
}

/// What works on jobs, by kind.
///
/// # Errors
/// If the settings of mail can't be used.
fn handlers(config: &Config) -> Result<Vec<Arc<dyn Handler>>, mail::MailConfigError> {
    let mail = mail::Sender::new(&config.mail, vec![Arc::new(auth::Letters), Arc::new(tenants::Letters)])?;
    Ok(vec![
        Arc::new(webhooks::Deliverer),
        Arc::new(messages::send::SendHandler),
        Arc::new(mail),
        Arc::new(upkeep::Upkeep),
        Arc::new(tenants::Exporter),
        Arc::new(tenants::Deleter),
    ])
}

/// The master key of a configuration.
///
/// # Errors
/// If it isn't one.
pub(crate) fn master_key(config: &Config) -> anyhow::Result<MasterKey> {
    Ok(MasterKey::new(config::master_key(&config.secrets)?))
}

/// A task of ours that panicked is a defect: the process goes on without it, and says so.
fn report(ended: Result<(), JoinError>, task: &'static str) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!(task, "a background task panicked");
    }
}
