//! Workers, and whether they may take sessions.

use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use shared::{ids::WorkerId, time::Timestamp};

use super::dto::AdminWorker;
use crate::{
    error::{ApiResult, Kind},
    extract::page::{Page, PageQuery},
    sessions::reconciler,
    state::App,
    workers::{
        self,
        entity::{self as worker, Schedulability},
    },
};

/// The workers, by name, from the end of the alphabet.
pub(super) async fn list<C: ConnectionTrait>(connection: &C, page: &PageQuery) -> ApiResult<Page<AdminWorker>> {
    let mut query = worker::Entity::find();
    if let Some(before) = page.before::<WorkerId>()? {
        query = query.filter(worker::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(worker::Column::Id).limit(page.rows()).all(connection).await?;
    let now = Timestamp::now();
    Ok(page.page(rows, |row| &row.id, |row| seen(row, now)))
}

/// Lets a worker take sessions or not, or has it give away those that it has.
pub(super) async fn set(app: &App, id: &WorkerId, wanted: Schedulability) -> ApiResult<AdminWorker> {
    let tx = app.db.write().await?;
    let row = workers::set_schedulability(&tx, id, wanted).await?.ok_or(Kind::NotFound)?;
    tx.commit().await?;
    match wanted {
        Schedulability::Schedulable => reconciler::wake_waiting(app).await?,
        Schedulability::Draining => reconciler::wake_sessions_of(app, id).await?,
        Schedulability::Cordoned => {}
    }
    app.fleet.bell.notify_one();
    Ok(seen(row, Timestamp::now()))
}

fn seen(row: worker::Model, now: Timestamp) -> AdminWorker {
    AdminWorker {
        network: row.network(),
        availability: row.availability(now),
        drained: row.schedulability == Schedulability::Draining && row.assigned == 0,
        id: row.id,
        endpoint: row.endpoint,
        zone: row.zone,
        pool: row.pool,
        schedulability: row.schedulability,
        capacity: row.capacity,
        assigned: row.assigned,
        sessions: row.sessions,
        connected: row.connected,
        outbox_rows: row.outbox_rows,
        joined_at: row.joined_at,
        last_beat_at: row.last_beat_at,
    }
}
