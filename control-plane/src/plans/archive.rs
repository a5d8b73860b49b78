//! What an archive of a tenant says of its plan: what holds, what the operator gave it, and what it used of its quotas.

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Statement, Value};
use serde::Serialize;
use shared::time::Timestamp;

use super::{
    dto::CurrentPlan,
    routes,
    store::{self, PlanError},
    terms::Overrides,
};
use crate::{
    auth::TenantScope,
    error::ApiResult,
    extract::page::{Page, PageQuery},
    state::App,
};

/// What the tenant was given, whatever holds now.
#[derive(Debug, Serialize)]
pub(crate) struct Subscription {
    /// The plan; null: the default one.
    plan: Option<String>,
    /// Its version.
    version: Option<i64>,
    /// The plan that it tries, or tried.
    trial_plan: Option<String>,
    /// Its version.
    trial_version: Option<i64>,
    /// When the trial ends, or ended.
    trial_ends_at: Option<Timestamp>,
    /// What the operator decided otherwise.
    overrides: Overrides,
    /// When any of it last changed.
    updated_at: Timestamp,
}

#[derive(FromQueryResult)]
struct SubscriptionRow {
    plan: Option<String>,
    version: Option<i64>,
    trial_plan: Option<String>,
    trial_version: Option<i64>,
    trial_ends_at: Option<Timestamp>,
    overrides: String,
    updated_at: Timestamp,
}

/// How many units of a quota were taken in a month.
#[derive(Debug, Serialize, FromQueryResult)]
pub(crate) struct QuotaMonth {
    /// Of what.
    quota: String,
    /// When the month began.
    month: Timestamp,
    /// How many.
    used: i64,
    /// Orders them: the month, then the quota.
    #[serde(skip)]
    place: String,
}

fn statement<C: ConnectionTrait>(connection: &C, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(connection.get_database_backend(), sql, values)
}

/// What holds now, in the shape of the API.
///
/// # Errors
/// As the driver; a defect if what is stored can't be read.
pub(crate) async fn plan(app: &App, scope: &TenantScope) -> ApiResult<Page<CurrentPlan>> {
    let (connection, now) = (app.db.read(), Timestamp::now());
    let entitlements = store::entitlements(connection, scope, now).await?;
    Ok(Page { data: vec![routes::current(connection, scope, entitlements, now).await?], next_cursor: None })
}

/// What the tenant was given: nothing, if it has the default plan and always had.
///
/// # Errors
/// As the driver; a defect if what is stored can't be read.
pub(crate) async fn subscription<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
) -> ApiResult<Page<Subscription>> {
    let sql = "SELECT plan, version, trial_plan, trial_version, trial_ends_at, overrides, updated_at \
               FROM subscriptions WHERE tenant_id = $1";
    let row = SubscriptionRow::find_by_statement(statement(connection, sql, [scope.id().clone().into()]))
        .one(connection)
        .await?;
    let data = match row {
        Some(row) => vec![Subscription {
            plan: row.plan,
            version: row.version,
            trial_plan: row.trial_plan,
            trial_version: row.trial_version,
            trial_ends_at: row.trial_ends_at,
            overrides: serde_json::from_str(&row.overrides).map_err(|_| PlanError::Unreadable)?,
            updated_at: row.updated_at,
        }],
        None => Vec::new(),
    };
    Ok(Page { data, next_cursor: None })
}

/// What was used of the tenant's quotas, the newest month first.
///
/// # Errors
/// As the driver; `bad-request` for a cursor of another list.
pub(crate) async fn quota_months<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<QuotaMonth>> {
    let before: Option<String> = page.before()?;
    let rows = i64::try_from(page.rows()).unwrap_or(i64::MAX);
    let rows = months(connection, scope, before, rows).await?;
    Ok(page.page(rows, |row| &row.place, |row| row))
}

async fn months<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    before: Option<String>,
    rows: i64,
) -> Result<Vec<QuotaMonth>, DbErr> {
    // Milliseconds of this century have 13 digits, so that as text they sort as they do as numbers.
    let sql = "SELECT quota, period AS month, CAST(SUM(used) AS BIGINT) AS used, \
               CAST(period AS TEXT) || ' ' || quota AS place FROM quota_counters \
               WHERE tenant_id = $1 AND stripe >= 0 AND ($2 = '' OR CAST(period AS TEXT) || ' ' || quota < $2) \
               GROUP BY quota, period ORDER BY place DESC LIMIT $3";
    let values = [scope.id().clone().into(), before.unwrap_or_default().into(), rows.into()];
    QuotaMonth::find_by_statement(statement(connection, sql, values)).all(connection).await
}
