//! Gives rows their place: position and link.
//!
//! `link = HMAC(key, log, position, link of the row before, the row's HMAC, whether that holds)`; before the first row stands zero.
//! A row whose own HMAC doesn't hold was put there, or changed, by somebody without the key. It gets its place all the same, so that it can
//! hold nobody up and nobody can take it away unseen; its link says that it was found so.
//!
//! Every replica looks. Whoever has the lock on a log's head seals it, and the others pass on to the next; a crash leaves either
//! all of a batch sealed or nothing.

use std::time::Duration;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Set, Statement, Value, sea_query::OnConflict,
};
use shared::{seal::DataKey, time::Timestamp};

use super::{
    entity::{self, Place, head},
    metrics,
};
use crate::{error::database_error_kind, state::App};

/// How often it is looked whether there is anything to seal.
const LOOK: Duration = Duration::from_secs(1);
/// How many rows are sealed in one transaction.
const BATCH: u64 = 500;
/// How many batches of one log are sealed before it is another's turn.
const TURNS: usize = 20;
/// How many logs are looked at before it is counted anew what waits.
const LOGS: i64 = 1000;

/// Before the first row.
pub(super) const BEFORE_FIRST: [u8; 32] = [0; 32];

/// The link of a row in its place.
pub(super) fn link(key: &DataKey, log: &str, position: i64, before: &[u8], mac: &[u8], holds: bool) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(160);
    bytes.extend(b"audit link 1");
    for part in [log.as_bytes(), &position.to_be_bytes(), before, mac, &[u8::from(holds)]] {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part);
    }
    key.keyed_hash(&bytes)
}

/// Seals until the app stops.
pub async fn keep_sealing(app: App) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        if let Err(error) = seal(&app).await {
            metrics::failed("seal");
            tracing::warn!(kind = database_error_kind(&error), "the audit log could not be sealed; trying again");
        }
    }
}

/// Seals what there is to seal; says how many rows.
///
/// # Errors
/// As the driver.
pub async fn seal(app: &App) -> Result<usize, DbErr> {
    let engine = app.db.engine();
    let waiting = "SELECT COUNT(*) AS waiting, MIN(at) AS oldest FROM audit_log WHERE position IS NULL";
    if let Some(row) = app.db.read().query_one_raw(Statement::from_string(engine, waiting)).await? {
        let oldest: Option<Timestamp> = row.try_get("", "oldest")?;
        let now = Timestamp::now();
        metrics::measured(row.try_get("", "waiting")?, oldest.map(|at| now.since(at)).unwrap_or_default());
        if oldest.is_none() {
            return Ok(0);
        }
    }
    let logs = "SELECT DISTINCT tenant_id FROM audit_log WHERE position IS NULL LIMIT $1";
    let logs = app.db.read().query_all_raw(Statement::from_sql_and_values(engine, logs, [LOGS.into()])).await?;
    let mut sealed = 0;
    for row in logs {
        let log: String = row.try_get("", "tenant_id")?;
        for _ in 0..TURNS {
            let tx = app.db.write().await?;
            let some = seal_some(app, &tx, &log).await?;
            tx.commit().await?;
            metrics::sealed(some);
            sealed += some;
            if (some as u64) < BATCH {
                break;
            }
        }
    }
    Ok(sealed)
}

async fn seal_some(app: &App, tx: &DatabaseTransaction, log: &str) -> Result<usize, DbErr> {
    let Some(end) = end(tx, log).await? else { return Ok(0) };
    let rows = entity::Entity::find()
        .filter(entity::Column::TenantId.eq(log))
        .filter(entity::Column::Position.is_null())
        .order_by_asc(entity::Column::Id)
        .order_by_asc(entity::Column::Phase)
        .limit(BATCH)
        .all(tx)
        .await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let Place { mut position, link: mut last } = end;
    let mut values: Vec<Value> = Vec::with_capacity(rows.len() * 4);
    for row in &rows {
        position += 1;
        let holds = row.mac_with(&app.audit.row_key) == row.mac[..];
        if !holds {
            metrics::forged();
            tracing::error!(log, position, "a row of the audit log was not written by this installation");
        }
        last = link(&app.audit.link_key, log, position, &last, &row.mac, holds).to_vec();
        values.extend([row.id.clone().into(), row.phase.clone().into(), position.into(), last.clone().into()]);
    }
    let places: Vec<_> = (0..rows.len())
        .map(|row| format!("(${}, ${}, ${}, ${})", row * 4 + 1, row * 4 + 2, row * 4 + 3, row * 4 + 4))
        .collect();
    let update = format!(
        "UPDATE audit_log SET position = placed.column3, link = placed.column4 FROM (VALUES {}) AS placed \
         WHERE audit_log.id = placed.column1 AND audit_log.phase = placed.column2 AND audit_log.tenant_id = ${} \
         AND audit_log.position IS NULL",
        places.join(", "),
        values.len() + 1
    );
    // Of the log, so that the index of what is to be sealed serves.
    values.push(log.into());
    let done = tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), update, values)).await?;
    if done.rows_affected() != rows.len() as u64 {
        return Err(DbErr::RecordNotUpdated);
    }
    head::Entity::update(head::ActiveModel {
        tenant_id: Set(log.to_owned()),
        position: Set(position),
        link: Set(last),
        sealed_at: Set(Timestamp::now()),
    })
    .exec(tx)
    .await?;
    Ok(rows.len())
}

/// Where a log ends, locked; nothing if another replica is at it.
async fn end(tx: &DatabaseTransaction, log: &str) -> Result<Option<Place>, DbErr> {
    let locked = async || {
        let mut find = head::Entity::find_by_id(log.to_owned());
        if tx.get_database_backend() == DbBackend::Postgres {
            find = find
                .lock_with_behavior(sea_orm::sea_query::LockType::Update, sea_orm::sea_query::LockBehavior::SkipLocked);
        }
        find.into_partial_model::<Place>().one(tx).await
    };
    if let Some(end) = locked().await? {
        return Ok(Some(end));
    }
    head::Entity::insert(head::ActiveModel {
        tenant_id: Set(log.to_owned()),
        position: Set(0),
        link: Set(BEFORE_FIRST.to_vec()),
        sealed_at: Set(Timestamp::now()),
    })
    .on_conflict(OnConflict::column(head::Column::TenantId).do_nothing().to_owned())
    .exec_without_returning(tx)
    .await?;
    locked().await
}
