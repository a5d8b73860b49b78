//! Workers: the processes that hold sessions.
//!
//! # What this folder owns
//! The table `workers`: who may call itself by which name, where it is reached, how much it takes, and when it was last
//! heard. [`routes`] is the whole of `/internal/v1/workers`; [`join`] decides who gets in; [`policy`] says what silence
//! means; [`client`] is the only place that calls a worker, with tokens signed by the installation's key
//! for peers.
//!
//! # Invariants
//! - A name is bound to one Ed25519 key and one store at its first join, which needs the join token. Later joins need
//!   the key alone.
//! - Of two runs (*incarnations*) of one name, the newer replaces the older only when the older is not live: not heard
//!   for 15 s, or gone from the endpoint that it named. Every call of a replaced run is answered 409
//!   `worker-superseded`.
//! - A worker gets in only if the control plane reached it at its endpoint, and that endpoint lies in
//!   `WORKER_ENDPOINT_CIDRS`: session keys are sent there.
//! - `assigned` counts the sessions whose `worker_id` is this worker. Both change in one transaction, and room is taken
//!   with `UPDATE … WHERE assigned < capacity`, so two replicas can't overfill a worker.
//! - Availability is never stored: it is a pure function of the last beat, the good beats since the last silence, and
//!   the time.
//!
//! # Leases are elsewhere
//! Whether a worker may write a session's state is decided in the data-plane store, by leases and fences. What this
//! folder knows about a worker's life only steers placement and what is shown.

pub mod client;
pub mod entity;
mod figures;
pub mod join;
pub mod keys;
pub mod policy;
pub mod routes;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use sea_orm::{ActiveEnum, ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, sea_query::Expr};
use shared::{identity::SigningKey, ids::WorkerId, time::Timestamp};
use tokio::sync::Notify;

pub use figures::{FleetFigures, figures};

use crate::{
    auth::{self, Purpose},
    db::Db,
    master_key::MasterKey,
};

/// What the fleet's domains share in one process.
#[derive(Clone)]
pub struct Fleet {
    /// Signs calls to workers.
    pub key: SigningKey,
    /// Calls workers.
    pub client: client::WorkerClient,
    /// Wakes this replica's reconciler.
    pub bell: Arc<Notify>,
    /// Since when this replica could have heard beats, see [`policy::proven`].
    pub listening: Listening,
}

/// Since when this replica could have heard beats, in milliseconds: its start, or the end of its last pause.
#[derive(Debug, Clone)]
pub struct Listening(Arc<AtomicI64>);

impl Listening {
    /// Since now.
    #[must_use]
    pub fn from_now() -> Self {
        Self(Arc::new(AtomicI64::new(Timestamp::now().as_millis())))
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// It begins anew.
    pub fn set(&self, since: Timestamp) {
        self.0.store(since.as_millis(), Ordering::Relaxed);
    }
}

/// The fleet's parts could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The signing key could not be made, sealed or opened.
    #[error("the key that signs calls to workers is not usable")]
    Key,
    /// No HTTP client.
    #[error("the HTTP client for workers could not be made")]
    Client,
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbErr),
}

impl Fleet {
    /// Loads (or, in a new installation, makes) the signing key, and makes the client. The migrations must have run.
    ///
    /// # Errors
    /// [`FleetError`].
    pub async fn load(db: &Db, master_key: &MasterKey) -> Result<Self, FleetError> {
        let key = auth::signing_key(db, master_key, Purpose::Peers).await.map_err(|_| FleetError::Key)?;
        let client = client::WorkerClient::new(key.clone())?;
        Ok(Self { key, client, bell: Arc::new(Notify::new()), listening: Listening::from_now() })
    }
}

/// Lets a worker take sessions or not; nothing if there is no such worker.
///
/// # Errors
/// As the driver.
pub(crate) async fn set_schedulability(
    tx: &DatabaseTransaction,
    id: &WorkerId,
    wanted: entity::Schedulability,
) -> Result<Option<entity::Model>, DbErr> {
    entity::Entity::update_many()
        .col_expr(entity::Column::Schedulability, Expr::value(wanted.into_value()))
        .filter(entity::Column::Id.eq(id.clone()))
        .exec(tx)
        .await?;
    entity::Entity::find_by_id(id.clone()).one(tx).await
}

/// Tells the metrics recorder what the fleet's figures mean.
pub fn describe_metrics() {
    metrics::describe_gauge!("control_plane_workers", "Workers that are known, by availability");
    metrics::describe_counter!("control_plane_worker_joins_total", "Joins that were asked for, by outcome");
    metrics::describe_counter!("control_plane_worker_call_errors_total", "Calls to workers that failed, by call");
}
