//! Recording events with the change that they tell.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, Set, Statement};
use shared::{
    ids::{EventId, SessionId, WebhookId},
    seal::{DataKey, Place, SealError},
    time::Timestamp,
};

use super::{EventType, entity};
use crate::{
    auth::TenantScope,
    state::App,
    webhooks::{self, NewlyRecorded},
};

/// How many rows one INSERT carries: both engines limit the parameters of a statement.
const ROWS_PER_INSERT: usize = 500;

/// An event to be recorded.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// What happened.
    pub kind: EventType,
    /// The session it is about.
    pub session_id: Option<SessionId>,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// What there is to say.
    pub data: serde_json::Value,
}

/// Why events could not be recorded. The transaction must be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The database said no, or there is no such tenant.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// The tenant's key doesn't open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The data of an event can't be written as JSON.
    #[error("an event's data is not JSON")]
    Json(#[from] serde_json::Error),
}

impl From<RecordError> for crate::error::ApiError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Database(error) => error.into(),
            RecordError::Seal(error) => error.into(),
            RecordError::Json(_) => Self::Defect("an event has no JSON form"),
        }
    }
}

/// What was recorded.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The events, in the order given.
    pub events: Vec<EventId>,
    /// Whether there are deliveries: if so, ring `DeliverWebhook` after the commit.
    pub deliveries: bool,
}

/// Who is told.
#[derive(Debug, Clone, Copy)]
pub enum Audience<'a> {
    /// Every enabled endpoint that wants the type.
    Subscribers,
    /// One endpoint, whatever it wants.
    Only(&'a WebhookId),
}

/// Records events, in order, with their deliveries.
///
/// # Errors
/// [`RecordError`]; roll back then.
pub async fn record(
    tx: &DatabaseTransaction,
    app: &App,
    scope: &TenantScope,
    events: Vec<NewEvent>,
) -> Result<Recorded, RecordError> {
    record_for(tx, app, scope, events, Audience::Subscribers).await
}

/// As [`record`], for one audience.
///
/// # Errors
/// [`RecordError`]; roll back then.
pub async fn record_for(
    tx: &DatabaseTransaction,
    app: &App,
    scope: &TenantScope,
    events: Vec<NewEvent>,
    audience: Audience<'_>,
) -> Result<Recorded, RecordError> {
    if events.is_empty() {
        return Ok(Recorded::default());
    }
    let key = key(tx, app, scope).await?;
    let mut rows = Vec::with_capacity(events.len());
    let mut recorded = Vec::with_capacity(events.len());
    for event in events {
        let id = EventId::new();
        let data = serde_json::to_vec(&event.data)?;
        let session = event.session_id.clone();
        rows.push(entity::ActiveModel {
            id: Set(id.clone()),
            tenant_id: Set(scope.id().clone()),
            session_id: Set(event.session_id),
            kind: Set(event.kind.as_str().into()),
            position: Set(None),
            occurred_at: Set(event.occurred_at),
            sealed_data: Set(key.seal(&place(scope, &id), &data)?),
        });
        recorded.push(NewlyRecorded { id, kind: event.kind, session });
    }
    for rows in rows.chunks(ROWS_PER_INSERT) {
        entity::Entity::insert_many(rows.to_vec()).exec_without_returning(tx).await?;
    }
    for NewlyRecorded { kind, .. } in &recorded {
        metrics::counter!("events_recorded_total", "type" => kind.as_str()).increment(1);
    }
    let deliveries = webhooks::dispatch(tx, scope, &recorded, audience).await?;
    Ok(Recorded { events: recorded.into_iter().map(|event| event.id).collect(), deliveries: deliveries > 0 })
}

/// The tenant's key.
async fn key(tx: &DatabaseTransaction, app: &App, scope: &TenantScope) -> Result<DataKey, RecordError> {
    let row = tx
        .query_one_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "SELECT sealed_data_key FROM tenants WHERE id = $1",
            [scope.id().clone().into()],
        ))
        .await?
        .ok_or_else(|| DbErr::RecordNotFound("tenant".into()))?;
    let sealed: Vec<u8> = row.try_get("", "sealed_data_key")?;
    Ok(app.master_key.open_data_key("tenants", scope.id().as_str(), &sealed)?)
}

/// Where an event's data is sealed.
pub(super) fn place<'a>(scope: &'a TenantScope, id: &'a EventId) -> Place<'a> {
    Place { owner: scope.id().as_str(), table: "events", row: id.as_str() }
}
