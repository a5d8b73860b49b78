//! What can be done with sessions, inside the caller's transaction.

use std::collections::HashSet;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, IntoActiveModel,
    QueryFilter,
};
use serde_json::json;
use shared::{
    ids::SessionId,
    seal::{DataKey, Place, SealError},
    time::Timestamp,
    wire::session::{Account, Network, Observed, PutSession, SecretText, SessionSettings},
};

use super::{
    dto::ChangeSettings,
    entity::{self, DesiredColumn, Model, ObservedColumn, Settings},
    policy::NEVER,
    status::{Facts, State, Status, status},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, Kind},
    events::{self, EventType, NewEvent, RecordError},
    jobs::JobKind,
    state::App,
    workers::entity as worker,
};

/// The table name that seals of the session's own columns are bound to.
const TABLE: &str = "sessions";

/// Why work on a session failed: always a defect or an outage of ours.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// The session's key or account doesn't open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Its event could not be recorded.
    #[error(transparent)]
    Event(#[from] RecordError),
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Database(error) => error.into(),
            SessionError::Seal(error) => error.into(),
            SessionError::Event(error) => of_record(error),
        }
    }
}

/// As the API tells that events could not be recorded.
pub(crate) fn of_record(error: RecordError) -> ApiError {
    match error {
        RecordError::Database(error) => error.into(),
        RecordError::Seal(error) => error.into(),
        RecordError::Json(_) => ApiError::Defect("an event has no JSON form"),
    }
}

/// The worker that a session is placed on.
///
/// # Errors
/// As the driver.
pub async fn holder<C: ConnectionTrait>(connection: &C, row: &Model) -> Result<Option<worker::Model>, DbErr> {
    match &row.worker_id {
        Some(id) => worker::Entity::find_by_id(id.clone()).one(connection).await,
        None => Ok(None),
    }
}

/// Those of these ids that are sessions of the scope.
///
/// # Errors
/// As the driver.
pub async fn known<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    ids: &[SessionId],
) -> Result<HashSet<SessionId>, DbErr> {
    let select = entity::Entity::all_of_tenant(scope).filter(entity::Column::Id.is_in(ids.iter().cloned()));
    Ok(select.all(connection).await?.into_iter().map(|row| row.id).collect())
}

/// Which of some sessions speak to a network; those that were deleted too.
///
/// # Errors
/// As the driver.
pub(crate) async fn of_network<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    ids: HashSet<SessionId>,
    network: Network,
) -> Result<HashSet<SessionId>, DbErr> {
    if ids.is_empty() {
        return Ok(ids);
    }
    let select = entity::Entity::find()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Id.is_in(ids))
        .filter(entity::Column::Network.eq(entity::NetworkColumn::from(network)));
    Ok(select.all(connection).await?.into_iter().map(|row| row.id).collect())
}

/// The key that seals a session's state.
///
/// # Errors
/// [`SealError`] if the row was tampered with, or the session deleted.
pub fn data_key(app: &App, row: &Model) -> Result<DataKey, SealError> {
    app.master_key.open_data_key(TABLE, row.id.as_str(), &row.sealed_data_key)
}

/// Who a session is on WhatsApp, once it was linked.
///
/// # Errors
/// [`SealError`] if the row was tampered with.
pub fn account(app: &App, row: &Model) -> Result<Option<Account>, SealError> {
    let Some(sealed) = &row.sealed_account else { return Ok(None) };
    let plain = data_key(app, row)?.open(&account_place(&row.id), sealed)?;
    serde_json::from_slice(&plain).map(Some).map_err(|_| SealError::Malformed)
}

/// The account as it is stored.
pub(super) fn seal_account(app: &App, row: &Model, account: &Account) -> Result<Vec<u8>, SealError> {
    let plain = serde_json::to_vec(account).map_err(|_| SealError::Malformed)?;
    data_key(app, row)?.seal(&account_place(&row.id), &plain)
}

fn account_place(id: &SessionId) -> Place<'_> {
    Place { owner: id.as_str(), table: TABLE, row: "account" }
}

/// What its worker is to be told of a session.
///
/// # Errors
/// [`SealError`] if its key doesn't open.
pub fn put_of(app: &App, row: &Model) -> Result<PutSession, SealError> {
    Ok(PutSession {
        session_id: row.id.clone(),
        tenant_id: row.tenant_id.clone(),
        generation: row.generation,
        epoch: row.epoch,
        network: row.network.into(),
        desired: row.desired.into(),
        restart_seq: row.restart_seq,
        session_key: SecretText::from(&data_key(app, row)?),
        settings: row.settings.0.clone(),
    })
}

/// A change of status that is to be told.
#[derive(Debug)]
#[must_use]
pub struct Saved {
    /// The row as it is now.
    pub row: Model,
    /// The change, if there was one.
    pub event: Option<NewEvent>,
}

/// Writes a row that was read with [`entity::lock`], and finds out whether its public status changed.
///
/// # Errors
/// As the driver.
pub async fn save(
    tx: &DatabaseTransaction,
    mut row: Model,
    holder: Option<&worker::Model>,
    now: Timestamp,
) -> Result<Saved, DbErr> {
    let status = status(Facts::of(&row, holder, now));
    let previous = std::mem::replace(&mut row.published_status, status.clone());
    let event = (previous != status).then(|| NewEvent {
        kind: EventType::SessionStatus,
        session_id: Some(row.id.clone()),
        occurred_at: now,
        data: json!({
            "status": status.status,
            "reason": status.reason,
            "until": status.until,
            "previous": previous.status,
        }),
    });
    let row = row.into_active_model().reset_all().update(tx).await?;
    Ok(Saved { row, event })
}

/// Records the changes of one tenant's sessions: the last step of the transaction. Ring [`rung`] after the commit.
///
/// # Errors
/// [`SessionError`]; roll back then.
pub async fn announce(
    tx: &DatabaseTransaction,
    app: &App,
    scope: &TenantScope,
    events: Vec<NewEvent>,
) -> Result<(), SessionError> {
    if !events.is_empty() {
        events::record(tx, app, scope, events).await?;
    }
    Ok(())
}

/// Rings for what a change of sessions can have set off: the reconciler and deliveries of webhooks.
pub fn rung(app: &App) {
    app.fleet.bell.notify_one();
    app.bell.ring(JobKind::DeliverWebhook);
}

/// A session to be made.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// What its owner calls it.
    pub name: String,
    /// Which WhatsApp it speaks to.
    pub network: Network,
    /// How its worker runs it.
    pub settings: SessionSettings,
    /// Whether to start it.
    pub start: bool,
}

/// Makes a session.
///
/// # Errors
/// [`SessionError`].
pub async fn create(
    tx: &DatabaseTransaction,
    app: &App,
    scope: &TenantScope,
    new: NewSession,
) -> Result<Model, SessionError> {
    let id = SessionId::new();
    let now = Timestamp::now();
    let (_, sealed_data_key) = app.master_key.new_data_key(TABLE, id.as_str())?;
    let row = Model {
        id,
        tenant_id: scope.id().clone(),
        name: new.name,
        network: new.network.into(),
        sealed_data_key,
        epoch: 1,
        settings: Settings(new.settings),
        desired: if new.start { DesiredColumn::Running } else { DesiredColumn::Stopped },
        restart_seq: 0,
        intent_seq: 1,
        acted_intent_seq: 0,
        store_id: None,
        worker_id: None,
        move_to: None,
        generation: 0,
        placed_at: None,
        placement_note: None,
        observed: None,
        observed_generation: 0,
        observed_incarnation: None,
        observed_report_seq: 0,
        observed_restart_seq: 0,
        observed_at: None,
        observed_since: None,
        last_frame_at: None,
        qr_seq: None,
        sealed_account: None,
        published_status: Status::of(State::Stopped),
        reconcile_at: if new.start { now } else { NEVER },
        reconcile_failures: 0,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    entity::Entity::insert(row.clone().into_active_model()).exec_without_returning(tx).await?;
    let saved = save(tx, row, None, now).await?;
    announce(tx, app, scope, saved.event.into_iter().collect()).await?;
    Ok(saved.row)
}

/// What an owner can ask of a session.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Be connected; pair if need be.
    Start,
    /// Hold no connection.
    Stop,
    /// Connect anew.
    Restart,
    /// Remove the link.
    LogOut,
    /// Remove the link, then the session.
    Delete,
    /// Another name or other settings.
    Change {
        /// The name.
        name: Option<String>,
        /// The settings.
        settings: Option<ChangeSettings>,
    },
}

/// A session of the scope, with its row locked.
///
/// # Errors
/// `not-found`.
pub async fn locked(tx: &DatabaseTransaction, scope: &TenantScope, id: &SessionId) -> ApiResult<Model> {
    let row = entity::lock(tx, id).await?;
    let mine = |row: &Model| {
        row.tenant_id == *scope.id() && scope.reaches(&row.id, row.network.into()) && row.deleted_at.is_none()
    };
    Ok(row.filter(mine).ok_or(Kind::NotFound)?)
}

/// Writes what a session's owner wants; gives the session and the worker that it is placed on.
///
/// # Errors
/// `not-found`; `conflict` if the session is on its way out, or can't be restarted because it doesn't run.
pub async fn wish(
    tx: &DatabaseTransaction,
    app: &App,
    scope: &TenantScope,
    id: &SessionId,
    wish: Wish,
) -> ApiResult<(Model, Option<worker::Model>)> {
    let mut row = locked(tx, scope, id).await?;
    let now = Timestamp::now();
    let holder = holder(tx, &row).await?;
    if !apply(&mut row, &wish)? {
        return Ok((row, holder));
    }
    row.intent_seq += 1;
    row.reconcile_at = now;
    row.reconcile_failures = 0;
    row.updated_at = now;
    let saved = save(tx, row, holder.as_ref(), now).await?;
    announce(tx, app, scope, saved.event.into_iter().collect()).await?;
    Ok((saved.row, holder))
}

/// Changes the desired side; says whether anything changed.
fn apply(row: &mut Model, wish: &Wish) -> ApiResult<bool> {
    let leaving = match row.desired {
        DesiredColumn::Deleted => Some("the session is being deleted"),
        DesiredColumn::LoggedOut if row.store_id.is_some() => Some("the session is being logged out"),
        _ => None,
    };
    if let Some(detail) = leaving
        && matches!(wish, Wish::Start | Wish::Stop | Wish::Restart)
    {
        return Err(Kind::Conflict.because(detail).into());
    }
    let desired = match wish {
        Wish::Start => {
            if row.desired == DesiredColumn::Running {
                if !ended(row) {
                    return Ok(false);
                }
                row.restart_seq += 1;
            }
            DesiredColumn::Running
        }
        Wish::Restart if row.desired != DesiredColumn::Running => {
            return Err(Kind::Conflict.because("the session is not running: start it").into());
        }
        Wish::Restart => {
            row.restart_seq += 1;
            DesiredColumn::Running
        }
        Wish::Stop if row.desired == DesiredColumn::Stopped => return Ok(false),
        Wish::Stop => DesiredColumn::Stopped,
        Wish::LogOut if matches!(row.desired, DesiredColumn::LoggedOut | DesiredColumn::Deleted) => return Ok(false),
        Wish::LogOut => DesiredColumn::LoggedOut,
        Wish::Delete if row.desired == DesiredColumn::Deleted => return Ok(false),
        Wish::Delete => DesiredColumn::Deleted,
        Wish::Change { name, settings } => {
            if let Some(name) = name {
                row.name.clone_from(name);
            }
            if let Some(settings) = settings {
                row.settings = Settings(settings.clone().over(row.settings.0.clone()));
            }
            row.desired
        }
    };
    if desired != row.desired {
        row.placement_note = None;
    }
    row.desired = desired;
    Ok(true)
}

/// Whether its worker holds it in a state that it doesn't leave by itself, or has just stopped it by itself, which the reconciler will
/// write down as its owner's wish.
fn ended(row: &Model) -> bool {
    row.observed_generation == row.generation
        && matches!(
            row.observed,
            Some(ObservedColumn(
                Observed::LoggedOut { .. }
                    | Observed::Banned { .. }
                    | Observed::Failed { .. }
                    | Observed::Stopped { reason: Some(_) }
            ))
        )
}
