//! Whether a tenant may have one more of something.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement};
use shared::time::Timestamp;

use super::{
    store,
    terms::{Entitlements, Feature, Limit},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, Kind, Refusal},
};

/// How many there are of what is counted; nothing for what isn't counted in rows.
const fn counted_by(limit: Limit) -> Option<&'static str> {
    match limit {
        // One that is to be deleted doesn't come back.
        Limit::Sessions => Some(
            "SELECT COUNT(*) AS count FROM sessions WHERE tenant_id = $1 AND deleted_at IS NULL AND desired <> 'deleted'",
        ),
        Limit::ApiKeys => Some(
            "SELECT COUNT(*) AS count FROM api_keys WHERE tenant_id = $1 AND revoked_at IS NULL \
             AND (expires_at IS NULL OR expires_at > $2)",
        ),
        Limit::Webhooks => Some("SELECT COUNT(*) AS count FROM webhooks WHERE tenant_id = $1"),
        Limit::Members => Some("SELECT COUNT(*) AS count FROM members WHERE tenant_id = $1"),
        Limit::MessagesPerMonth => None,
    }
}

/// Refuses if the tenant has as many as it may. Call it in the transaction that makes the thing, before making it: until the commit
/// nobody else can make one for this tenant.
///
/// # Errors
/// 402 `quota-exceeded`; as the driver.
pub async fn admit(tx: &DatabaseTransaction, scope: &TenantScope, limit: Limit) -> ApiResult<()> {
    let now = Timestamp::now();
    let entitlements = store::entitlements(tx, scope, now).await?;
    let Some(allowed) = entitlements.limit(limit) else { return Ok(()) };
    // What is counted next was committed before the lock was got: READ COMMITTED reads anew for each statement. An insert that
    // refers to the tenant doesn't wait for this lock. SQLite's BEGIN IMMEDIATE has locked everything.
    if tx.get_database_backend() == DbBackend::Postgres {
        let lock = "SELECT 1 FROM tenants WHERE id = $1 FOR NO KEY UPDATE";
        tx.query_one_raw(Statement::from_sql_and_values(DbBackend::Postgres, lock, [scope.id().clone().into()]))
            .await?;
    }
    let used = count(tx, scope, limit, now).await?;
    if used < i64::from(allowed) {
        return Ok(());
    }
    Err(refused(limit, &entitlements, &format!("{used} of {allowed} are there")).into())
}

/// How many the tenant has of something that is counted in rows; 0 for what isn't.
pub(super) async fn count<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    limit: Limit,
    now: Timestamp,
) -> Result<i64, DbErr> {
    let Some(sql) = counted_by(limit) else { return Ok(0) };
    let mut values = vec![scope.id().clone().into()];
    if limit == Limit::ApiKeys {
        values.push(now.into());
    }
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
    match connection.query_one_raw(statement).await? {
        Some(row) => row.try_get("", "count"),
        None => Ok(0),
    }
}

/// The refusal, with what the plan allows.
pub(super) fn refused(limit: Limit, entitlements: &Entitlements, why: &str) -> Refusal {
    metrics::counter!("plan_refusals_total", "of" => limit.as_str()).increment(1);
    Kind::QuotaExceeded.because(format!("{} of the plan {}: {why}", limit.as_str(), entitlements.plan.plan))
}

/// Refuses if the tenant's plan lacks a feature.
///
/// # Errors
/// 402 `feature-not-in-plan`; as the driver.
pub async fn require<C: ConnectionTrait>(connection: &C, scope: &TenantScope, feature: Feature) -> ApiResult<()> {
    let entitlements = store::entitlements(connection, scope, Timestamp::now()).await?;
    if entitlements.has(feature) {
        return Ok(());
    }
    metrics::counter!("plan_refusals_total", "of" => feature.as_str()).increment(1);
    let detail = format!("the plan {} is without {}", entitlements.plan.plan, feature.as_str());
    Err(ApiError::from(Kind::FeatureNotInPlan.because(detail)))
}
