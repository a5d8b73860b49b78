//! The entry of the request at hand, which handlers add to while they learn who acts and on what.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use sea_orm::{ConnectionTrait, DbErr};
use shared::{
    ids::{AuditId, TenantId},
    time::Timestamp,
};

use super::{
    entity::{ActorType, AuditResult, Fact, Phase},
    log::Log,
    operations::resource,
};
use crate::jobs::schedule::installation;

tokio::task_local! {
    /// Of the request, or the command, that this task works on.
    pub(super) static ENTRY: Arc<Entry>;
}

/// What is known so far.
#[derive(Debug, Clone, Default)]
struct Known {
    tenant: Option<TenantId>,
    actor: Option<(ActorType, Option<String>)>,
    resource: Option<(String, String)>,
    /// In whose log the intent is.
    begun_in: Option<TenantId>,
}

/// What an answer says.
#[derive(Debug, Clone, Default)]
pub(super) struct Answered {
    pub(super) result: Option<AuditResult>,
    pub(super) status: Option<u16>,
    pub(super) problem: Option<String>,
    pub(super) replayed: bool,
}

/// One entry.
pub(super) struct Entry {
    id: AuditId,
    operation: String,
    request_id: Option<String>,
    address: Option<String>,
    known: Mutex<Known>,
    /// Whether its only row is in the transaction of what it does.
    accepted: AtomicBool,
}

impl Entry {
    pub(super) fn new(operation: &str, request_id: Option<String>, address: Option<String>) -> Self {
        Self {
            id: AuditId::new(),
            operation: operation.into(),
            request_id,
            address,
            known: Mutex::default(),
            accepted: AtomicBool::new(false),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose it is. What is known first stays.
    pub(super) fn of(&self, tenant: &TenantId) {
        self.known().tenant.get_or_insert_with(|| tenant.clone());
    }

    /// Who acts. What is known first stays.
    pub(super) fn by(&self, kind: ActorType, id: Option<&str>) {
        self.known().actor.get_or_insert_with(|| (kind, id.map(str::to_owned)));
    }

    /// What it is about. What is known first stays.
    pub(super) fn about(&self, resource: (String, String)) {
        self.known().resource.get_or_insert(resource);
    }

    pub(super) fn is_by_somebody(&self) -> bool {
        self.known().actor.is_some()
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.load(Ordering::Relaxed)
    }

    /// A row of it.
    pub(super) fn fact(&self, phase: Phase, answered: Answered) -> Fact {
        let mut known = self.known();
        let tenant = known.tenant.clone().unwrap_or_else(installation);
        let phase = match phase {
            Phase::Intent => {
                known.begun_in = Some(tenant.clone());
                phase
            }
            Phase::Outcome if known.begun_in.as_ref().is_some_and(|begun_in| *begun_in != tenant) => {
                Phase::OutcomeElsewhere
            }
            other => other,
        };
        Fact {
            id: self.id.clone(),
            phase,
            tenant,
            actor: known.actor.clone(),
            operation: self.operation.clone(),
            resource: known.resource.clone(),
            request_id: self.request_id.clone(),
            address: self.address.clone(),
            result: answered.result,
            status: answered.status,
            problem: answered.problem,
            replayed: answered.replayed,
            at: Timestamp::now(),
        }
    }
}

/// Who acts has become known. Outside of a request that is recorded, nothing happens.
pub(crate) fn by(kind: ActorType, id: &str) {
    let _elsewhere = ENTRY.try_with(|entry| entry.by(kind, Some(id)));
}

/// Whose it is has become known.
pub(crate) fn of(tenant: &TenantId) {
    let _elsewhere = ENTRY.try_with(|entry| entry.of(tenant));
}

/// What it is about has become known. What isn't an id of ours is left out.
pub(crate) fn about(id: &str) {
    if let Some(resource) = resource(id) {
        let _elsewhere = ENTRY.try_with(|entry| entry.about(resource));
    }
}

/// Records, in the transaction that does it, that the request at hand succeeds: its only row.
///
/// # Errors
/// As the driver.
pub(crate) async fn accepted<C: ConnectionTrait>(
    log: &Log,
    connection: &C,
    status: u16,
    id: &str,
) -> Result<(), DbErr> {
    about(id);
    let Ok(entry) = ENTRY.try_with(Arc::clone) else { return Ok(()) };
    let answered =
        Answered { result: Some(AuditResult::of_status(status)), status: Some(status), ..Answered::default() };
    log.write_in(connection, entry.fact(Phase::Sole, answered)).await?;
    entry.accepted.store(true, Ordering::Relaxed);
    Ok(())
}
