//! The quota of messages in a month.
//!
//! A row of `quota_counters` counts the units that are taken in a month: by messages that wait, and by those that were sent. It is
//! made when a limit first applies in that month, from what was sent in it before. Accepting a message takes a unit with a
//! conditional update ([`reserve`]), in the message's own transaction, so that whatever ends that transaction undoes both. The
//! message remembers the month; when it fails or expires, the unit goes back to that month ([`release`]), and the message forgets
//! it, so that no unit goes back twice. A message that is sent without holding a unit, because it was accepted without a limit
//! or because WhatsApp's word came after its unit had gone back, is counted then ([`count_sent`]).
//!
//! The update locks the row until the commit, so it comes last. Tenants without this limit have no row and no lock.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Statement};
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
    let month = month_of(now);
    let mut used = take(tx, scope, month, allowed).await?;
    if used.is_none() {
        // There is nothing left, or no counter yet.
        open(tx, scope, month).await?;
        used = take(tx, scope, month, allowed).await?;
    }
    let Some(used) = used else {
        let why = format!("all {allowed} are used; there are more from {} on", resets_at(month));
        return Err(refused(QUOTA, entitlements, &why).into());
    };
    metrics::counter!("quota_units_total", "quota" => QUOTA.as_str(), "what" => "reserved").increment(1);
    tell(tx, scope, month, used, allowed, now).await
}

/// Takes a unit if one is left; gives how many are taken then.
async fn take(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    month: Timestamp,
    allowed: u32,
) -> Result<Option<i64>, DbErr> {
    let taken = tx
        .query_one_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "UPDATE quota_counters SET used = used + 1 \
             WHERE tenant_id = $1 AND quota = $2 AND period = $3 AND used < $4 RETURNING used",
            [scope.id().clone().into(), QUOTA.as_str().into(), month.into(), i64::from(allowed).into()],
        ))
        .await?;
    taken.map(|row| row.try_get("", "used")).transpose()
}

/// Makes the month's counter, if there is none, from what was sent in the month. What holds a unit of an earlier month isn't
/// counted again.
async fn open(tx: &DatabaseTransaction, scope: &TenantScope, month: Timestamp) -> Result<(), DbErr> {
    let prefix = Meter::MessagesSent.as_str().len() + 2;
    tx.execute_raw(Statement::from_sql_and_values(
        tx.get_database_backend(),
        format!(
            "INSERT INTO quota_counters (tenant_id, quota, period, used) \
             SELECT $1, $2, $3, COUNT(*) FROM usage_facts WHERE tenant_id = $1 AND meter = $4 AND occurred_at >= $3 \
             AND NOT EXISTS (SELECT 1 FROM messages WHERE messages.id = SUBSTR(usage_facts.id, {prefix}) \
             AND messages.reserved_in < $3) \
             ON CONFLICT (tenant_id, quota, period) DO NOTHING"
        ),
        [scope.id().clone().into(), QUOTA.as_str().into(), month.into(), Meter::MessagesSent.as_str().into()],
    ))
    .await
    .map(drop)
}

/// The event for a tenant whose units are nearly used up, or used up: each once in a month.
async fn tell(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    month: Timestamp,
    used: i64,
    allowed: u32,
    now: Timestamp,
) -> ApiResult<Vec<NewEvent>> {
    let allowed = i64::from(allowed);
    let (kind, told) = if used >= allowed {
        (EventType::QuotaExceeded, 2_i64)
    } else if used * 5 >= allowed * 4 {
        (EventType::QuotaWarning, 1)
    } else {
        return Ok(Vec::new());
    };
    let first = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "UPDATE quota_counters SET told = $4 WHERE tenant_id = $1 AND quota = $2 AND period = $3 AND told < $4",
            [scope.id().clone().into(), QUOTA.as_str().into(), month.into(), told.into()],
        ))
        .await?;
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
    let sql = format!("UPDATE quota_counters SET {how} WHERE tenant_id = $1 AND quota = $2 AND period = $3");
    tx.execute_raw(Statement::from_sql_and_values(
        tx.get_database_backend(),
        sql,
        [scope.id().clone().into(), QUOTA.as_str().into(), month.into()],
    ))
    .await
    .map(drop)
}

/// How many units of a month are taken; nothing if no limit has applied in it yet.
pub(super) async fn used<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    month: Timestamp,
) -> Result<Option<i64>, DbErr> {
    let row = connection
        .query_one_raw(Statement::from_sql_and_values(
            connection.get_database_backend(),
            "SELECT used FROM quota_counters WHERE tenant_id = $1 AND quota = $2 AND period = $3",
            [scope.id().clone().into(), QUOTA.as_str().into(), month.into()],
        ))
        .await?;
    row.map(|row| row.try_get("", "used")).transpose()
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
