//! The quota of messages in a month.
//!
//! Rows of `quota_counters` count the units that are taken in a month: by messages that wait, and by those that were sent. They
//! are made when a limit first applies in that month, from what was sent in it before. Accepting a message takes a unit
//! ([`reserve`]) in the message's own transaction, so that whatever ends that transaction undoes both. The message remembers the
//! month; when it fails or expires, the unit goes back to that month ([`release`]), and the message forgets it, so that no unit
//! goes back twice. A message that is sent without holding a unit, because it was accepted without a limit or because
//! WhatsApp's word came after its unit had gone back, is counted then ([`count_sent`]).
//!
//! **Stripes.** A row is locked from its update to the commit, so one row would have all sends of a tenant wait for each other. A
//! month is therefore counted in [`STRIPES`] rows, and what is used is their sum. Far from the limit a send takes whichever of
//! them is free. Within [`NEAR`] of it, it locks all of them first, which waits for whoever has one: then the sum is
//! exact, and sends are taken one by one. `NEAR` is more than there are transactions at once, so those that saw the limit far
//! away don't reach it together. Blocks of units leased to replicas would do the same, but a replica that dies would take its
//! block with it.
//!
//! Locks are taken last in a transaction, the stripes in their order; what gives units back or counts sent ones touches only
//! the first, and what the tenant was told has a row of its own, locked after them. Tenants without this limit have no row and no lock.

use std::time::Duration;

use rand::RngExt;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};
use serde_json::json;
use shared::time::Timestamp;

use super::{
    admit::refused,
    terms::{Entitlements, Limit},
};
use crate::{
    auth::TenantScope,
    error::ApiResult,
    events::{EventType, NewEvent},
    usage::{Granularity, Meter},
};

const QUOTA: Limit = Limit::MessagesPerMonth;
/// How many rows count a month. The first is for those near the limit and for what comes back.
const STRIPES: i32 = 16;
/// How many units before the limit sends are taken one by one: more than PostgreSQL has connections.
const NEAR: i64 = 2_000;
/// Longer than any month and shorter than two.
const INTO_THE_NEXT_MONTH: Duration = Duration::from_secs(32 * 24 * 60 * 60);

/// The month of a moment, in UTC: when it began.
#[must_use]
pub fn month_of(at: Timestamp) -> Timestamp {
    Granularity::Month.start_of(at)
}

/// When a month's units are there anew.
#[must_use]
pub fn resets_at(month: Timestamp) -> Timestamp {
    month_of(month.plus(INTO_THE_NEXT_MONTH))
}

/// Takes a unit of this month for a message that is being accepted, if the tenant has a limit; gives what is to be told. Call it as
/// late in the transaction as possible.
///
/// # Errors
/// 402 `quota-exceeded` if none is left: roll back; as the driver.
pub async fn reserve(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    entitlements: &Entitlements,
    now: Timestamp,
) -> ApiResult<Vec<NewEvent>> {
    let Some(allowed) = entitlements.limit(QUOTA) else { return Ok(Vec::new()) };
    let (month, allowed) = (month_of(now), i64::from(allowed));
    let used = match far(tx, scope, month, allowed).await? {
        Some(used) => used,
        None => match near(tx, scope, month, allowed).await? {
            Some(used) => used,
            None => {
                let why = format!("all {allowed} are used; there are more from {} on", resets_at(month));
                return Err(refused(QUOTA, entitlements, &why).into());
            }
        },
    };
    metrics::counter!("quota_units_total", "quota" => QUOTA.as_str(), "what" => "reserved").increment(1);
    tell(tx, scope, month, used, allowed, now).await
}

/// What names a month's rows, and more.
fn with<const N: usize>(scope: &TenantScope, month: Timestamp, more: [Value; N]) -> Vec<Value> {
    let mut values = vec![scope.id().clone().into(), QUOTA.as_str().into(), month.into()];
    values.extend(more);
    values
}

const ROWS: &str = "tenant_id = $1 AND quota = $2 AND period = $3";

/// Takes a unit if the limit is far away; gives how many are taken then, about.
async fn far(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    month: Timestamp,
    allowed: i64,
) -> Result<Option<i64>, DbErr> {
    // SQLite has one writer: there is nobody to wait for.
    if allowed <= NEAR || tx.get_database_backend() != DbBackend::Postgres {
        return Ok(None);
    }
    let Some(used) = used(tx, scope, month).await?.filter(|used| used + NEAR < allowed) else { return Ok(None) };
    let free = format!(
        "UPDATE quota_counters SET used = used + 1 WHERE {ROWS} AND stripe = (SELECT stripe FROM quota_counters \
         WHERE {ROWS} AND stripe > 0 ORDER BY (stripe + $4) % {STRIPES} LIMIT 1 FOR UPDATE SKIP LOCKED)"
    );
    let first = rand::rng().random_range(1..STRIPES);
    let statement =
        |sql: &str| Statement::from_sql_and_values(DbBackend::Postgres, sql, with(scope, month, [first.into()]));
    if tx.execute_raw(statement(&free)).await?.rows_affected() == 0 {
        let any = format!("UPDATE quota_counters SET used = used + 1 WHERE {ROWS} AND stripe = $4");
        tx.execute_raw(statement(&any)).await?;
    }
    Ok(Some(used + 1))
}

/// Takes a unit if one is left, with all of the month locked; gives how many are taken then.
async fn near(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    month: Timestamp,
    allowed: i64,
) -> Result<Option<i64>, DbErr> {
    let mut used = locked(tx, scope, month).await?;
    if used.is_none() {
        open(tx, scope, month).await?;
        used = locked(tx, scope, month).await?;
    }
    let Some(used) = used.filter(|used| *used < allowed) else { return Ok(None) };
    change(tx, scope, month, "used = used + 1").await?;
    Ok(Some(used + 1))
}

/// Locks the rows of a month; gives how many units are taken, or nothing if there are no rows yet.
async fn locked(tx: &DatabaseTransaction, scope: &TenantScope, month: Timestamp) -> Result<Option<i64>, DbErr> {
    let lock = if tx.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql = format!("SELECT used FROM quota_counters WHERE {ROWS} AND stripe >= 0 ORDER BY stripe{lock}");
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, with(scope, month, []));
    let rows = tx.query_all_raw(statement).await?;
    let mut used = None;
    for row in &rows {
        *used.get_or_insert(0) += row.try_get::<i64>("", "used")?;
    }
    Ok(used)
}

/// Makes the month's rows, if there are none, from what was sent in the month. What holds a unit of an earlier month isn't
/// counted again.
async fn open(tx: &DatabaseTransaction, scope: &TenantScope, month: Timestamp) -> Result<(), DbErr> {
    let prefix = Meter::MessagesSent.as_str().len() + 2;
    let first = format!(
        "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) \
         SELECT $1, $2, $3, 0, COUNT(*) FROM usage_facts WHERE tenant_id = $1 AND meter = $4 AND occurred_at >= $3 \
         AND NOT EXISTS (SELECT 1 FROM messages WHERE messages.id = SUBSTR(usage_facts.id, {prefix}) \
         AND messages.reserved_in < $3) \
         ON CONFLICT DO NOTHING"
    );
    let engine = tx.get_database_backend();
    let meter = [Meter::MessagesSent.as_str().into()];
    tx.execute_raw(Statement::from_sql_and_values(engine, first, with(scope, month, meter))).await?;
    let others: Vec<_> =
        std::iter::once(-1).chain(1..STRIPES).map(|stripe| format!("($1, $2, $3, {stripe}, 0)")).collect();
    let others = format!(
        "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) VALUES {} ON CONFLICT DO NOTHING",
        others.join(", ")
    );
    tx.execute_raw(Statement::from_sql_and_values(engine, others, with(scope, month, []))).await.map(drop)
}

/// The event for a tenant whose units are nearly used up, or used up: each once in a month.
async fn tell(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    month: Timestamp,
    used: i64,
    allowed: i64,
    now: Timestamp,
) -> ApiResult<Vec<NewEvent>> {
    let (kind, told) = if used >= allowed {
        (EventType::QuotaExceeded, 2_i64)
    } else if used * 5 >= allowed * 4 {
        (EventType::QuotaWarning, 1)
    } else {
        return Ok(Vec::new());
    };
    let sql = format!("UPDATE quota_counters SET told = $4 WHERE {ROWS} AND stripe = -1 AND told < $4");
    let values = with(scope, month, [told.into()]);
    let first = tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, values)).await?;
    if first.rows_affected() == 0 {
        return Ok(Vec::new());
    }
    let data = json!({"limit": QUOTA, "used": used, "allowed": allowed, "resets_at": resets_at(month)});
    Ok(vec![NewEvent { kind, session_id: None, occurred_at: now, data }])
}

/// Gives a unit back to its month.
///
/// # Errors
/// As the driver.
pub async fn release(tx: &DatabaseTransaction, scope: &TenantScope, month: Timestamp) -> Result<(), DbErr> {
    metrics::counter!("quota_units_total", "quota" => QUOTA.as_str(), "what" => "released").increment(1);
    change(tx, scope, month, "used = used - 1").await
}

/// Counts a message that was sent at `at` without holding a unit.
///
/// # Errors
/// As the driver.
pub async fn count_sent(tx: &DatabaseTransaction, scope: &TenantScope, at: Timestamp) -> Result<(), DbErr> {
    change(tx, scope, month_of(at), "used = used + 1").await
}

async fn change(tx: &DatabaseTransaction, scope: &TenantScope, month: Timestamp, how: &str) -> Result<(), DbErr> {
    let sql = format!("UPDATE quota_counters SET {how} WHERE {ROWS} AND stripe = 0");
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, with(scope, month, []));
    tx.execute_raw(statement).await.map(drop)
}

/// How many units of a month are taken; nothing if no limit has applied in it yet.
pub(super) async fn used<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    month: Timestamp,
) -> Result<Option<i64>, DbErr> {
    // A SUM of BIGINT is NUMERIC on PostgreSQL.
    let sql = format!("SELECT CAST(SUM(used) AS BIGINT) AS used FROM quota_counters WHERE {ROWS}");
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, with(scope, month, []));
    match connection.query_one_raw(statement).await? {
        Some(row) => row.try_get("", "used"),
        None => Ok(None),
    }
}

/// How many messages were sent in a month so far.
pub(super) async fn sent<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    month: Timestamp,
) -> Result<i64, DbErr> {
    let row = connection
        .query_one_raw(Statement::from_sql_and_values(
            connection.get_database_backend(),
            "SELECT COUNT(*) AS count FROM usage_facts WHERE tenant_id = $1 AND meter = $2 AND occurred_at >= $3",
            [scope.id().clone().into(), Meter::MessagesSent.as_str().into(), month.into()],
        ))
        .await?;
    row.map_or(Ok(0), |row| row.try_get("", "count"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_month_resets_when_the_next_one_begins(millis in 0_i64..4_102_444_800_000) {
            let at = Timestamp::from_millis(millis);
            let (month, next) = (month_of(at), resets_at(month_of(at)));
            prop_assert!(month <= at && at < next);
            prop_assert_eq!(month_of(next), next);
            prop_assert_eq!(month_of(next.minus(Duration::from_millis(1))), month);
        }
    }
}
