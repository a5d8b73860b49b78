//! The keys of the log, and the way into it.

use std::sync::{Mutex, PoisonError};

use sea_orm::{ConnectionTrait, DbErr, EntityTrait, IntoActiveModel, sea_query::OnConflict};
use shared::{
    ids::{AuditId, TenantId},
    seal::DataKey,
    time::Timestamp,
};
use tokio::sync::{mpsc, oneshot};

use super::entity::{self, ActorType, AuditResult, Fact, Phase};
use crate::master_key::MasterKey;

/// How many rows wait to be written. Whoever brings one more waits too.
const WAITING: usize = 4096;

/// A row on its way, and who waits for it.
pub(super) struct Waiting {
    pub(super) row: entity::Model,
    pub(super) written: Option<oneshot::Sender<bool>>,
}

/// See the folder's essay.
pub struct Log {
    /// Of the HMAC over a row.
    pub(super) row_key: DataKey,
    /// Of the links between rows.
    pub(super) link_key: DataKey,
    /// Of the lines of exported heads.
    pub(super) head_key: DataKey,
    queue: mpsc::Sender<Waiting>,
    receiver: Mutex<Option<mpsc::Receiver<Waiting>>>,
}

impl Log {
    /// Of one process.
    #[must_use]
    pub fn new(master_key: &MasterKey) -> Self {
        let (queue, receiver) = mpsc::channel(WAITING);
        Self {
            row_key: master_key.derive("audit rows"),
            link_key: master_key.derive("audit links"),
            head_key: master_key.derive("audit heads"),
            queue,
            receiver: Mutex::new(Some(receiver)),
        }
    }

    /// For the one task that writes.
    pub(super) fn receiver(&self) -> Option<mpsc::Receiver<Waiting>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Has a row written, and says whether it is.
    pub(super) async fn write(&self, fact: Fact) -> bool {
        let (written, is_written) = oneshot::channel();
        let waiting = Waiting { row: fact.row(&self.row_key), written: Some(written) };
        self.queue.send(waiting).await.is_ok() && is_written.await.unwrap_or(false)
    }

    /// Has a row written soon.
    pub(super) async fn write_soon(&self, fact: Fact) {
        let waiting = Waiting { row: fact.row(&self.row_key), written: None };
        if self.queue.send(waiting).await.is_err() {
            super::metrics::lost(1);
        }
    }

    /// Writes a row at once.
    pub(super) async fn write_in<C: ConnectionTrait>(&self, connection: &C, fact: Fact) -> Result<(), DbErr> {
        insert(connection, vec![fact.row(&self.row_key)]).await
    }
}

/// Writes rows; those that are there stay as they are.
pub(super) async fn insert<C: ConnectionTrait>(connection: &C, rows: Vec<entity::Model>) -> Result<(), DbErr> {
    entity::Entity::insert_many(rows.into_iter().map(IntoActiveModel::into_active_model))
        .on_conflict(OnConflict::columns([entity::Column::Id, entity::Column::Phase]).do_nothing().to_owned())
        .exec_without_returning(connection)
        .await
        .map(drop)
}

/// Records what the installation did by itself, in the transaction that does it, in a tenant's log or (`nil`) its own.
///
/// # Errors
/// As the driver.
pub async fn system<C: ConnectionTrait>(
    log: &Log,
    connection: &C,
    tenant: &TenantId,
    operation: &str,
    resource: (&str, &str),
) -> Result<(), DbErr> {
    let fact = Fact {
        id: AuditId::new(),
        phase: Phase::Sole,
        tenant: tenant.clone(),
        actor: Some((ActorType::System, None)),
        operation: operation.into(),
        resource: Some((resource.0.into(), resource.1.into())),
        request_id: None,
        address: None,
        result: Some(AuditResult::Succeeded),
        status: None,
        problem: None,
        replayed: false,
        at: Timestamp::now(),
    };
    log.write_in(connection, fact).await
}
