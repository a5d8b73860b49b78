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
//! the first, and what the tenant was told has a row of its own, the stripe -1, locked after them. Tenants without this limit have
//! no row and no lock.

use std::time::Duration;

use rand::RngExt;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};
use serde_json::json;
use shared::time::Timestamp;

use super::{
    admit::refused,
    store,
    terms::{Entitlements, Limit},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, database_error_kind},
    events::{self, EventType, NewEvent},
    jobs::JobKind,
    state::App,
    usage::{Granularity, Meter},
};

const QUOTA: Limit = Limit::MessagesPerMonth;
/// How many rows count a month. The first is for those near the limit and for what comes back.
const STRIPES: i32 = 16;
/// The row beside them that says what the tenant was told.
const TOLD: i32 = -1;
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
/// 402 `quota-exceeded` if none is left: roll back, and then [`tell_of_refusal`]; as the driver.
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
                let why = match allowed {
                    0 => "there are none".to_owned(),
                    _ => format!("all {allowed} are used; there are more from {} on", resets_at(month)),
                };
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
        open(tx, scope, month, allowed).await?;
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

/// What was sent in a month (`$2`) by a tenant (`$1`), but for what holds a unit of an earlier month. `$3` is the meter.
fn sent_without_earlier_units() -> String {
    let prefix = Meter::MessagesSent.as_str().len() + 2;
    format!(
        "FROM usage_facts WHERE tenant_id = $1 AND meter = $3 AND occurred_at >= $2 \
         AND NOT EXISTS (SELECT 1 FROM messages WHERE messages.id = SUBSTR(usage_facts.id, {prefix}) \
         AND messages.tenant_id = $1 AND messages.reserved_in < $2)"
    )
}

/// Makes the month's rows, if there are none, from what was sent in the month. No further is counted than to `allowed`: if that much
/// was sent, the send is refused, and these rows with it.
async fn open(tx: &DatabaseTransaction, scope: &TenantScope, month: Timestamp, allowed: i64) -> Result<(), DbErr> {
    let first = format!(
        "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) \
         SELECT $1, $4, $2, 0, COUNT(*) FROM (SELECT 1 AS one {} LIMIT $5) AS sent WHERE TRUE ON CONFLICT DO NOTHING",
        sent_without_earlier_units()
    );
    let engine = tx.get_database_backend();
    let values: [Value; 5] = [
        scope.id().clone().into(),
        month.into(),
        Meter::MessagesSent.as_str().into(),
        QUOTA.as_str().into(),
        allowed.into(),
    ];
    tx.execute_raw(Statement::from_sql_and_values(engine, first, values)).await?;
    let others: Vec<_> =
        std::iter::once(TOLD).chain(1..STRIPES).map(|stripe| format!("($1, $2, $3, {stripe}, 0)")).collect();
    let others = format!(
        "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) VALUES {} ON CONFLICT DO NOTHING",
        others.join(", ")
    );
    tx.execute_raw(Statement::from_sql_and_values(engine, others, with(scope, month, []))).await.map(drop)
}

/// The event for a tenant whose units are nearly used up, or used up: each once in a month, and once more under a higher limit than
/// the one that it was told of.
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
    let sql = format!(
        "UPDATE quota_counters SET told = $4, told_of = $5 WHERE {ROWS} AND stripe = {TOLD} \
         AND (told < $4 OR told_of < $5)"
    );
    let values = with(scope, month, [told.into(), allowed.into()]);
    let first = tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, values)).await?;
    if first.rows_affected() == 0 {
        return Ok(Vec::new());
    }
    let data = json!({"limit": QUOTA, "used": used, "allowed": allowed, "resets_at": resets_at(month)});
    Ok(vec![NewEvent { kind, session_id: None, occurred_at: now, data }])
}

/// Tells a tenant that a send was refused, if it doesn't know that its units are used up: the limit was lowered, or is new. What was
/// refused is rolled back, so this is a transaction of its own; one that fails is made up for by the next refusal.
pub async fn tell_of_refusal(app: &App, scope: &TenantScope, now: Timestamp) {
    match record_refusal(app, scope, now).await {
        Ok(true) => app.bell.ring(JobKind::DeliverWebhook),
        Ok(false) => {}
        Err(ApiError::Database(error)) => {
            tracing::warn!(kind = database_error_kind(&error), "a tenant was not told that its quota is used up");
        }
        Err(_) => tracing::warn!("a tenant was not told that its quota is used up"),
    }
}

/// Says whether there is something to be delivered.
async fn record_refusal(app: &App, scope: &TenantScope, now: Timestamp) -> ApiResult<bool> {
    let month = month_of(now);
    let entitlements = store::entitlements(app.db.read(), scope, now).await?;
    let Some(allowed) = entitlements.limit(QUOTA).map(i64::from) else { return Ok(false) };
    // Looked for first: all refusals but one find that it was told.
    let sql = format!(
        "SELECT 1 AS told FROM quota_counters WHERE {ROWS} AND stripe = {TOLD} AND told >= 2 \
         AND (told_of IS NULL OR told_of >= $4)"
    );
    let known = Statement::from_sql_and_values(app.db.engine(), sql, with(scope, month, [allowed.into()]));
    if app.db.read().query_one_raw(known).await?.is_some() {
        return Ok(false);
    }
    let tx = app.db.write().await?;
    let row = "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) VALUES ($1, $2, $3, $4, 0) \
               ON CONFLICT DO NOTHING";
    tx.execute_raw(Statement::from_sql_and_values(app.db.engine(), row, with(scope, month, [TOLD.into()]))).await?;
    // Where a month has no rows yet, nobody has counted further than to the limit.
    let used = used(&tx, scope, month).await?.unwrap_or(allowed).max(allowed);
    let told = tell(&tx, scope, month, used, allowed, now).await?;
    let recorded = events::record(&tx, app, scope, told).await?;
    tx.commit().await?;
    Ok(recorded.deliveries)
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
    let sql = format!("SELECT CAST(SUM(used) AS BIGINT) AS used FROM quota_counters WHERE {ROWS} AND stripe >= 0");
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, with(scope, month, []));
    match connection.query_one_raw(statement).await? {
        Some(row) => row.try_get("", "used"),
        None => Ok(None),
    }
}

/// How many messages were sent in a month so far; for a tenant with a limit, those that its first send of the month will count.
pub(super) async fn sent<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    month: Timestamp,
    limited: bool,
) -> Result<i64, DbErr> {
    let what = if limited {
        sent_without_earlier_units()
    } else {
        "FROM usage_facts WHERE tenant_id = $1 AND meter = $3 AND occurred_at >= $2".to_owned()
    };
    let row = connection
        .query_one_raw(Statement::from_sql_and_values(
            connection.get_database_backend(),
            format!("SELECT COUNT(*) AS count {what}"),
            [scope.id().clone().into(), month.into(), Meter::MessagesSent.as_str().into()],
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
