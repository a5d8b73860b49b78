//! `/internal/v1/workers/{id}/…` and `/internal/v1/jwks`: a worker's life after its join.

use axum::{Json, extract::State};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, Statement};
use shared::{
    identity::KeySet,
    ids::Incarnation,
    time::Timestamp,
    wire::worker::{Heartbeat, HeartbeatReply, ReAttach, ReAttached, SessionGeneration, Validate, Validated},
};

use super::{entity as worker, keys::key_set, policy::good_beats_after};
use crate::{
    error::{ApiResult, Kind},
    internal::{WireJson, WorkerAuth},
    redis::sealed,
    sessions::{self, entity as session, service},
    state::App,
};

/// The most sessions in a question, by the protocol.
const MAX_VALIDATE: usize = 1_000;

/// Takes a beat.
pub(crate) async fn heartbeat(
    State(app): State<App>,
    WorkerAuth(worker): WorkerAuth,
    WireJson(body): WireJson<Heartbeat>,
) -> ApiResult<Json<HeartbeatReply>> {
    let now = Timestamp::now();
    let good = good_beats_after(worker.good_beats, worker.last_beat_at, now);
    let beat = Statement::from_sql_and_values(
        app.db.engine(),
        "UPDATE workers SET last_beat_at = $1, good_beats = $2, lease_renewed_at = $3, sessions = $4, connected = $5, \
         outbox_rows = $6 WHERE id = $7 AND incarnation = $8",
        [
            now.into(),
            good.into(),
            Timestamp::from(body.lease_renewed_at).into(),
            i64::from(body.sessions).into(),
            i64::from(body.connected).into(),
            i64::try_from(body.outbox_rows).unwrap_or(i64::MAX).into(),
            worker.id.clone().into(),
            body.incarnation.into(),
        ],
    );
    let done = app.db.autocommit().execute_raw(beat).await?;
    if done.rows_affected() == 0 {
        return Err(Kind::WorkerSuperseded.into());
    }
    if worker.good_beats != good {
        // It may have become active: the reconciler looks, and wakes the sessions that wait for room.
        app.fleet.bell.notify_one();
    }
    Ok(Json(HeartbeatReply { control_plane_keys: key_set(&app.fleet.key) }))
}

/// Gives a worker that has started what is placed on it, each session under a new generation.
pub(crate) async fn re_attach(
    State(app): State<App>,
    WorkerAuth(worker): WorkerAuth,
    WireJson(body): WireJson<ReAttach>,
) -> ApiResult<Json<ReAttached>> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    lock_sessions(&tx, &worker).await?;
    let current = lock(&tx, &worker, &body.incarnation).await?;
    let raised = session::Entity::find()
        .from_raw_sql(Statement::from_sql_and_values(
            app.db.engine(),
            "UPDATE sessions SET generation = generation + 1, acted_intent_seq = intent_seq, placed_at = $1, \
             reconcile_at = $1, reconcile_failures = 0 WHERE worker_id = $2 AND deleted_at IS NULL RETURNING *",
            [now.into(), worker.id.clone().into()],
        ))
        .all(&tx)
        .await?;
    // It could be reached when it joined, and it is awake: a good beat.
    let good = good_beats_after(current.good_beats, current.last_beat_at, now);
    tx.execute_raw(Statement::from_sql_and_values(
        app.db.engine(),
        "UPDATE workers SET last_beat_at = $1, good_beats = $2 WHERE id = $3",
        [now.into(), good.into(), worker.id.clone().into()],
    ))
    .await?;
    let sessions = raised.iter().map(|row| service::put_of(&app, row)).collect::<Result<Vec<_>, _>>()?;
    tx.commit().await?;
    sealed::drop_all(&app, sessions.iter().map(|session| &session.session_id)).await;
    tracing::info!(worker = %worker.id, sessions = sessions.len(), "a worker took its sessions back");
    sessions::reconciler::wake_waiting(&app).await?;
    service::rung(&app);
    Ok(Json(ReAttached { sessions }))
}

/// Says which of a worker's sessions are still at the generation that it holds.
pub(crate) async fn validate(
    State(app): State<App>,
    WorkerAuth(worker): WorkerAuth,
    WireJson(body): WireJson<Validate>,
) -> ApiResult<Json<Validated>> {
    if body.sessions.len() > MAX_VALIDATE {
        return Err(Kind::Validation.because(format!("at most {MAX_VALIDATE} sessions in a question")).into());
    }
    if body.incarnation != worker.incarnation {
        return Err(Kind::WorkerSuperseded.into());
    }
    let mut current = Vec::new();
    for asked in body.sessions {
        let row = session::Entity::find_by_id(asked.session_id.clone()).one(app.db.read()).await?;
        let held = row.is_some_and(|row| {
            row.deleted_at.is_none() && row.worker_id.as_ref() == Some(&worker.id) && row.generation == asked.generation
        });
        if held {
            current.push(SessionGeneration { session_id: asked.session_id, generation: asked.generation });
        }
    }
    Ok(Json(Validated { current }))
}

/// The keys that sign calls to workers. Open: public keys are public.
pub(crate) async fn jwks(State(app): State<App>) -> Json<KeySet> {
    Json(key_set(&app.fleet.key))
}

/// Locks the sessions that are placed on a worker, in the order of their ids: sessions come before workers everywhere, so
/// that no two transactions wait for each other.
async fn lock_sessions(tx: &DatabaseTransaction, worker: &worker::Model) -> Result<(), DbErr> {
    if tx.get_database_backend() == DbBackend::Postgres {
        tx.query_all_raw(Statement::from_sql_and_values(
            DbBackend::Postgres,
            "SELECT id FROM sessions WHERE worker_id = $1 AND deleted_at IS NULL ORDER BY id FOR UPDATE",
            [worker.id.clone().into()],
        ))
        .await?;
    }
    Ok(())
}

/// Locks a worker's row, which must still be of this run.
async fn lock(tx: &DatabaseTransaction, worker: &worker::Model, incarnation: &Incarnation) -> ApiResult<worker::Model> {
    let row = lock_row(tx, &worker.id).await?.ok_or(Kind::WorkerUnknown)?;
    if row.incarnation != *incarnation { Err(Kind::WorkerSuperseded.into()) } else { Ok(row) }
}

/// Locks a worker's row until the transaction ends, and reads it.
pub(super) async fn lock_row(
    tx: &DatabaseTransaction,
    id: &shared::ids::WorkerId,
) -> Result<Option<worker::Model>, DbErr> {
    use sea_orm::QuerySelect;
    let select = worker::Entity::find_by_id(id.clone());
    match tx.get_database_backend() {
        DbBackend::Postgres => select.lock_exclusive().one(tx).await,
        _ => select.one(tx).await,
    }
}
