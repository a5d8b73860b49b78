//! Makes sessions what they should be. See the folder's essay.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, sea_query::Expr,
};
use shared::{
    ids::{SessionId, WorkerId},
    time::Timestamp,
    wire::session::Desired,
};
use tokio::task::JoinHandle;

use super::{
    entity::{self, DesiredColumn, Model},
    policy::{End, NEVER, NO_CAPACITY_PAUSE, REPORT_WITHIN, Step, View, back_off, leaves, next_step},
    service::{self, SessionError},
};
use crate::{
    auth::TenantScope,
    error::database_error_kind,
    events::RecordError,
    placement::{self, Need},
    plans,
    redis::sealed,
    state::App,
    workers::{
        client::{Peer, WorkerCallError},
        entity as worker,
        policy::{Availability, proven},
    },
};

/// How often to look for work that no bell rang for.
const SWEEP: Duration = Duration::from_secs(1);
/// How many due sessions one pass takes.
const PASS: u64 = 256;
/// How many of them are worked on at once.
const CONCURRENCY: usize = 64;
/// Within this time after a decision no other replica looks at the session: longer than a call to a worker takes.
const CALL_TERM: Duration = Duration::from_secs(10);

/// A pass that takes longer than this was a pause of the machine: all its calls together take less.
const PAUSED: Duration = Duration::from_secs(30);

/// Starts the reconciler of this replica. Its task ends when the app stops.
pub fn start(app: App) -> JoinHandle<()> {
    tokio::spawn(async move {
        let stop = app.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = run(&app) => {}
        }
    })
}

async fn run(app: &App) {
    let mut fleet = HashMap::new();
    let mut last = Timestamp::now();
    loop {
        let full = match pass(app, &mut fleet).await {
            Ok(taken) => taken == PASS,
            Err(error) => {
                tracing::warn!(kind = database_error_kind(&error), "the reconciler could not read its work");
                // Beats can't be written either: what silence there is now is ours.
                app.fleet.listening.set(Timestamp::now());
                false
            }
        };
        let now = Timestamp::now();
        if now.since(last) >= PAUSED {
            app.fleet.listening.set(now);
        }
        last = now;
        // Even with more to do, others get their turn: what fails at once must not be tried at once.
        let pause = if full { SWEEP / 20 } else { SWEEP };
        tokio::select! {
            () = app.fleet.bell.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn pass(app: &App, fleet: &mut HashMap<WorkerId, Availability>) -> Result<u64, DbErr> {
    watch_fleet(app, fleet).await?;
    let due: Vec<SessionId> = entity::Entity::find()
        .select_only()
        .column(entity::Column::Id)
        .filter(entity::Column::ReconcileAt.lte(Timestamp::now()))
        .order_by_asc(entity::Column::ReconcileAt)
        .limit(PASS)
        .into_tuple()
        .all(app.db.read())
        .await?;
    let taken = due.len() as u64;
    stream::iter(due)
        .for_each_concurrent(CONCURRENCY, async |id| {
            if let Err(error) = reconcile(app, &id).await {
                metrics::counter!("control_plane_reconcile_errors_total").increment(1);
                tracing::warn!(session = %id, kind = kind_of(&error), "a session could not be reconciled");
            }
        })
        .await;
    Ok(taken)
}

fn kind_of(error: &SessionError) -> &'static str {
    match error {
        SessionError::Database(error) | SessionError::Event(RecordError::Database(error)) => database_error_kind(error),
        SessionError::Seal(_) | SessionError::Event(RecordError::Seal(_)) => "seal",
        SessionError::Event(RecordError::Json(_)) => "json",
    }
}

/// Wakes the sessions of workers whose availability has changed since this replica last looked.
async fn watch_fleet(app: &App, seen: &mut HashMap<WorkerId, Availability>) -> Result<(), DbErr> {
    let now = Timestamp::now();
    let mut counts: HashMap<&'static str, u32> =
        [Availability::Joining, Availability::Active, Availability::Suspect, Availability::Offline]
            .map(|state| (state.as_str(), 0))
            .into();
    for worker in worker::Entity::find().all(app.db.read()).await? {
        let availability = proven(worker.availability(now), app.fleet.listening.since(), now);
        *counts.entry(availability.as_str()).or_default() += 1;
        let before = seen.get(&worker.id).copied().unwrap_or(Availability::Active);
        if before != availability {
            tracing::info!(worker = %worker.id, availability = availability.as_str(), "a worker's availability changed");
            wake(app, entity::Column::WorkerId.eq(worker.id.clone()), now).await?;
            if availability == Availability::Active {
                wake_waiting(app).await?;
            }
        }
        seen.insert(worker.id, availability);
    }
    for (availability, count) in counts {
        metrics::gauge!("control_plane_workers", "availability" => availability).set(count);
    }
    Ok(())
}

/// Wakes the sessions that wait for room.
///
/// # Errors
/// As the driver.
pub(crate) async fn wake_waiting(app: &App) -> Result<(), DbErr> {
    let waiting = entity::Column::WorkerId.is_null().and(entity::Column::PlacementNote.eq("no_capacity"));
    wake(app, waiting, Timestamp::now()).await
}

/// Wakes the sessions of a worker.
///
/// # Errors
/// As the driver.
pub(crate) async fn wake_sessions_of(app: &App, worker: &WorkerId) -> Result<(), DbErr> {
    wake(app, entity::Column::WorkerId.eq(worker.clone()), Timestamp::now()).await
}

async fn wake(app: &App, which: sea_orm::sea_query::SimpleExpr, now: Timestamp) -> Result<(), DbErr> {
    entity::Entity::update_many()
        .col_expr(entity::Column::ReconcileAt, Expr::value(now))
        .filter(which)
        .filter(entity::Column::DeletedAt.is_null())
        .filter(entity::Column::ReconcileAt.gt(now.plus(CALL_TERM)))
        .exec(app.db.autocommit())
        .await
        .map(drop)
}

/// A worker to be told of a session, as decided.
struct Told {
    row: Model,
    peer: Peer,
    /// Whether it is to let go, although the session is to run: elsewhere.
    let_go: bool,
}

async fn reconcile(app: &App, id: &SessionId) -> Result<(), SessionError> {
    if let Some(told) = decide(app, id).await? {
        let mut put = service::put_of(app, &told.row)?;
        if told.let_go {
            put.desired = Desired::Stopped;
        }
        let answer = app.fleet.client.put_session(&told.peer, &put).await;
        if let Err(error) = &answer {
            metrics::counter!("control_plane_worker_call_errors_total", "call" => "put").increment(1);
            tracing::warn!(session = %id, worker = %told.peer.id, %error, "a worker did not take a session");
        }
        conclude(app, told.row, answer).await?;
    }
    Ok(())
}

/// Decides and writes the decision, the row being locked; gives whom to call.
async fn decide(app: &App, id: &SessionId) -> Result<Option<Told>, SessionError> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    let Some(mut row) = entity::lock(&tx, id).await? else { return Ok(None) };
    if row.reconcile_at > now || row.deleted_at.is_some() {
        return Ok(None);
    }
    let scope = TenantScope::of_row(row.tenant_id.clone());
    let mut holder = service::holder(&tx, &row).await?;
    let before = (row.worker_id.clone(), row.generation);
    let (mut call, mut let_go) = (false, false);
    match next_step(View::of(&row, holder.as_ref(), app.fleet.listening.since(), now), now) {
        Step::Settle(at) => row.reconcile_at = at,
        Step::Put => {
            row.reconcile_at = now.plus(CALL_TERM);
            call = true;
        }
        Step::Place => match place(&tx, &scope, &mut row, now).await? {
            Some(chosen) => {
                row.reconcile_at = now.plus(CALL_TERM);
                holder = Some(chosen);
                call = true;
            }
            None => row.reconcile_at = now.plus(NO_CAPACITY_PAUSE),
        },
        Step::LetGo => {
            // Only if there is somewhere to go; else it stays where it runs.
            let need = need(&tx, &scope, &row, now).await?;
            let fleet = placement::snapshot(&tx, &scope, now).await?;
            let able = placement::rank(&need, &fleet);
            // Where it was to be moved to has no room for it any more: then it isn't moved.
            row.move_to.take_if(|to| able.iter().all(|candidate| candidate.id != *to));
            let_go = leaves(&row, holder.as_ref()) && !able.is_empty();
            call = let_go;
            row.reconcile_at = now.plus(if let_go { CALL_TERM } else { NO_CAPACITY_PAUSE });
        }
        Step::Release(end) => {
            release(&tx, &mut row, end, now).await?;
            holder = None;
        }
        Step::Forget => forget(&mut row, now),
    }
    let saved = service::save(&tx, row, holder.as_ref(), now).await?;
    let changed = saved.event.is_some();
    service::announce(&tx, app, &scope, saved.event.into_iter().collect()).await?;
    tx.commit().await?;
    if before != (saved.row.worker_id.clone(), saved.row.generation) {
        sealed::drop_all(app, [id]).await;
    }
    if changed {
        service::rung(app);
    }
    Ok(holder.filter(|_| call).map(|holder| Told { peer: holder.peer(), row: saved.row, let_go }))
}

/// What a session asks of a worker.
///
/// # Errors
/// As the driver.
pub(super) async fn need(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    row: &Model,
    now: Timestamp,
) -> Result<Need, DbErr> {
    let pool = plans::pool(tx, scope, now).await?;
    Ok(Need { network: row.network.into(), store: row.store_id.clone(), pool })
}

/// Takes room on the best worker that has any, under the next generation. A session that is placed keeps its place if
/// there is no other.
async fn place(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    row: &mut Model,
    now: Timestamp,
) -> Result<Option<worker::Model>, DbErr> {
    let need = need(tx, scope, row, now).await?;
    let fleet = placement::snapshot(tx, scope, now).await?;
    let mut able = placement::rank(&need, &fleet);
    if let Some(to) = row.move_to.take() {
        // Where it is to be moved to comes first, where it was let go comes last.
        able.sort_by_key(|candidate| (candidate.id != to, row.worker_id.as_ref() == Some(&candidate.id)));
    }
    for candidate in able {
        if !placement::reserve(tx, &candidate.id).await? {
            continue;
        }
        if let Some(left) = row.worker_id.take() {
            placement::give_back(tx, &left).await?;
        }
        row.worker_id = Some(candidate.id.clone());
        row.store_id = Some(candidate.store.clone());
        row.generation += 1;
        row.placed_at = Some(now);
        row.placement_note = None;
        row.acted_intent_seq = Ord::min(row.acted_intent_seq, row.intent_seq - 1);
        metrics::counter!("control_plane_placements_total", "outcome" => "placed").increment(1);
        return worker::Entity::find_by_id(candidate.id.clone()).one(tx).await;
    }
    metrics::counter!("control_plane_placements_total", "outcome" => "no_capacity").increment(1);
    if row.worker_id.is_none() {
        row.placement_note = Some("no_capacity".into());
    }
    Ok(None)
}

async fn release(tx: &DatabaseTransaction, row: &mut Model, end: End, now: Timestamp) -> Result<(), DbErr> {
    if let Some(left) = row.worker_id.take() {
        placement::give_back(tx, &left).await?;
    }
    row.move_to = None;
    row.placement_note = None;
    row.reconcile_failures = 0;
    row.reconcile_at = NEVER;
    match end {
        End::Stopped => {}
        End::StoppedItself => row.desired = DesiredColumn::Stopped,
        End::Erased { unlink_confirmed } => {
            row.store_id = None;
            row.sealed_account = None;
            row.epoch += 1;
            row.placement_note = (!unlink_confirmed).then(|| "unlink_unconfirmed".into());
            if row.desired == DesiredColumn::Deleted {
                forget(row, now);
            }
        }
    }
    Ok(())
}

/// Leaves of a session what late outbox rows are known by. Without its key, nothing of it opens any more.
fn forget(row: &mut Model, now: Timestamp) {
    row.deleted_at = Some(now);
    row.sealed_data_key = Vec::new();
    row.sealed_account = None;
    row.reconcile_at = NEVER;
}

/// Gives a session up for good that a worker may still hold, which hasn't answered for so long that nobody waits for it: its place is
/// given back. Should the worker come back, it is told that the session isn't its.
///
/// # Errors
/// As the driver.
pub(crate) async fn abandon(app: &App, id: &SessionId) -> Result<(), DbErr> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    if let Some(mut row) = entity::lock(&tx, id).await? {
        if let Some(left) = row.worker_id.take() {
            placement::give_back(&tx, &left).await?;
        }
        forget(&mut row, now);
        row.into_active_model().reset_all().update(&tx).await?;
    }
    tx.commit().await
}

/// Writes what came of a call, if the row is still at the generation that was told.
async fn conclude(app: &App, told: Model, answer: Result<(), WorkerCallError>) -> Result<(), SessionError> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    let Some(mut row) = entity::lock(&tx, &told.id).await? else { return Ok(()) };
    if row.generation != told.generation || row.deleted_at.is_some() {
        return Ok(());
    }
    let holder = service::holder(&tx, &row).await?;
    match answer {
        Ok(()) => {
            row.acted_intent_seq = Ord::max(row.acted_intent_seq, told.intent_seq);
            row.reconcile_failures = 0;
            row.reconcile_at = match next_step(View::of(&row, holder.as_ref(), app.fleet.listening.since(), now), now) {
                // Told again because no report came, or because it goes on: give it as long once more.
                Step::Put if row.acted_intent_seq >= row.intent_seq => now.plus(REPORT_WITHIN),
                Step::LetGo => now.plus(REPORT_WITHIN),
                Step::Settle(at) => at,
                Step::Put | Step::Place | Step::Release(_) | Step::Forget => now,
            };
        }
        Err(error) => {
            if error == WorkerCallError::GenerationMismatch {
                // The worker knows a higher one (our database was restored): climb past it.
                row.generation += 1;
            }
            row.reconcile_failures += 1;
            row.reconcile_at = now.plus(back_off(row.reconcile_failures));
        }
    }
    let due = row.reconcile_at <= now;
    let saved = service::save(&tx, row, holder.as_ref(), now).await?;
    let changed = saved.event.is_some();
    let scope = TenantScope::of_row(told.tenant_id);
    service::announce(&tx, app, &scope, saved.event.into_iter().collect()).await?;
    tx.commit().await?;
    if saved.row.generation != told.generation {
        sealed::drop_all(app, [&told.id]).await;
    }
    if changed || due {
        service::rung(app);
    }
    Ok(())
}
