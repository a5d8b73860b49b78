//! The parts of a control plane over a fresh database, without listeners or background tasks: for domains that are tested
//! from within the process.

use std::{sync::Arc, time::Duration};

use control_plane::{
    audit,
    auth::{Keyring, TenantScope},
    db::Db,
    jobs::{Bell, Direct},
    keys::KeyCache,
    limits::Limits,
    master_key::MasterKey,
    messages::Waiting,
    objects::Objects,
    outbound,
    redis::Redis,
    state::{App, Shared},
    workers::Fleet,
};
use sea_orm::{ConnectionTrait, Statement};
use secrecy::ExposeSecret;
use shared::{ids::TenantId, seal::DataKey, time::Timestamp};
use tokio_util::sync::CancellationToken;

use crate::harness::{Engine, PATIENCE, Storage};

/// A fresh database, of which any number of replicas can be made.
pub struct Parts {
    storage: Storage,
    config: control_plane::config::Config,
}

impl Parts {
    /// Nothing if this engine isn't there.
    pub async fn new(engine: Engine) -> Option<Self> {
        shared::tls::install_provider();
        let storage = Storage::new(engine).await?;
        Some(Self { config: storage.config(), storage })
    }

    /// Of any server over it.
    pub fn config(&self) -> control_plane::config::Config {
        self.config.clone()
    }

    /// Where its files lie.
    pub fn folder(&self) -> &std::path::Path {
        self.storage.folder()
    }

    /// The parts of one replica.
    pub async fn replica(&self) -> App {
        let config = self.config.clone();
        let db = Db::connect(config.database.url.expose_secret(), config.database.pool_size).await.unwrap();
        db.migrate().await.unwrap();
        let master_key = MasterKey::new(DataKey::from_base64(config.secrets.master_key.expose_secret()).unwrap());
        let keyring = Keyring::load(&db, &master_key, &config.tokens).await.unwrap();
        let fleet = Fleet::load(&db, &master_key).await.unwrap();
        let outbound = outbound::Client::new(&config.outbound).unwrap();
        let redis = Redis::connect(&config.redis, &master_key).await.unwrap().map(Arc::new);
        let objects = Objects::new(&config.objects).unwrap();
        App::new(Shared {
            handlers: Vec::new(),
            limits: Limits::new(config.rate_limits.clone(), redis.clone()),
            redis,
            key_cache: KeyCache::default(),
            audit: audit::Log::new(&master_key),
            config,
            db,
            master_key,
            keyring,
            bell: Bell::default(),
            direct: Direct::default(),
            waiting: Waiting::default(),
            outbound,
            objects,
            fleet,
            leaving: CancellationToken::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Removes the database.
    pub async fn remove(self) {
        self.storage.remove().await;
    }
}

/// A tenant without people.
pub async fn tenant(app: &App) -> TenantScope {
    let id = TenantId::new();
    let (_, sealed) = app.master_key.new_data_key("tenants", id.as_str()).unwrap();
    execute(
        app,
        "INSERT INTO tenants (id, name, status, sealed_data_key, created_at) VALUES ($1, 'Test', 'active', $2, $3)",
        [id.clone().into(), sealed.into(), Timestamp::now().into()],
    )
    .await;
    TenantScope::of_row(id)
}

/// Waits until `condition` holds.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Changes rows behind the control plane's back.
pub async fn execute<const N: usize>(app: &App, sql: &str, values: [sea_orm::Value; N]) -> u64 {
    let statement = Statement::from_sql_and_values(app.db.engine(), sql, values);
    app.db.autocommit().execute_raw(statement).await.unwrap().rows_affected()
}

/// One number from the database.
pub async fn number(app: &App, sql: &str) -> i64 {
    let statement = Statement::from_string(app.db.engine(), sql);
    app.db.read().query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
}
