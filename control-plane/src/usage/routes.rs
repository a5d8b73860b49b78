//! `/api/v1/usage`.

use std::{collections::BTreeMap, time::Duration};

use axum::{Json, extract::State};
use sea_orm::ConnectionTrait;
use serde::{Deserialize, Serialize};
use shared::{problem::FieldError, time::Timestamp};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use validator::Validate;

use super::{
    Meter,
    report::{self, Granularity, Period},
};
use crate::{
    auth::{Auth, TenantScope, scopes},
    error::{ApiResult, Kind, Refusal},
    extract::ValidQuery,
    openapi::ReadProblems,
    state::App,
};

/// What is summed if the caller doesn't say since when.
const DEFAULT_PERIOD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The routes of usage.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get_usage))
}

/// What to sum.
#[derive(Debug, Clone, Copy, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Only this meter.
    #[param(example = "messages_sent", inline)]
    meter: Option<Meter>,
    /// Since when, inclusive. Default: 30 days before `to`.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-01-01T00:00:00Z")]
    from: Option<Timestamp>,
    /// Until when, exclusive. Default: now.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-02-01T00:00:00Z")]
    to: Option<Timestamp>,
    /// By which periods: at most 31 days by hour, 366 days by day, five years by month. Default: by day.
    #[param(example = "day", inline)]
    granularity: Option<Granularity>,
}

/// Usage over time. Periods without any are left out.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    /// Since when, inclusive.
    pub from: Timestamp,
    /// Until when, exclusive.
    pub to: Timestamp,
    /// By which periods.
    pub granularity: Granularity,
    /// The sum of each period, by meter and time.
    pub data: Vec<UsagePeriod>,
    /// The sum of each meter over all periods.
    pub totals: Vec<UsageTotal>,
}

/// The sum of one period.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsagePeriod {
    /// What was counted.
    pub meter: Meter,
    /// When the period begins, in UTC.
    pub start: Timestamp,
    /// How many units.
    #[schema(example = 128)]
    pub quantity: i64,
}

/// The sum over all periods.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageTotal {
    /// What was counted.
    pub meter: Meter,
    /// How many units.
    #[schema(example = 4096)]
    pub quantity: i64,
}

impl UsageQuery {
    fn period(self, now: Timestamp) -> Result<Period, Refusal> {
        let granularity = self.granularity.unwrap_or_default();
        let to = self.to.unwrap_or(now);
        let from = self.from.unwrap_or_else(|| to.minus(DEFAULT_PERIOD));
        if from >= to {
            return Err(refuse("from", "order", "must lie before to"));
        }
        if to.since(from) > granularity.longest() {
            return Err(refuse("from", "too-long", "the period is too long for this granularity"));
        }
        Ok(Period { meter: self.meter, from, to, granularity })
    }
}

fn refuse(parameter: &str, code: &str, detail: &str) -> Refusal {
    Kind::BadRequest.because("a query parameter can't be used").with_errors(vec![FieldError {
        pointer: parameter.into(),
        code: code.into(),
        detail: detail.into(),
    }])
}

/// Get usage
///
/// What was metered, summed by hour, day or month in UTC. A message counts in the period in which WhatsApp accepted it.
#[utoipa::path(
    get, path = "/api/v1/usage", operation_id = "get_usage", tag = "usage",
    security(("person" = []), ("api_key" = ["usage:read"]), ("api_key_header" = ["usage:read"])),
    params(UsageQuery),
    responses((status = 200, description = "The sums.", body = Usage), ReadProblems),
)]
async fn get_usage(
    State(app): State<App>,
    auth: Auth<scopes::UsageRead>,
    ValidQuery(query): ValidQuery<UsageQuery>,
) -> ApiResult<Json<Usage>> {
    Ok(Json(used(app.db.read(), auth.tenant(), query).await?))
}

/// What of a tenant was metered.
///
/// # Errors
/// `bad-request` for a period that can't be; as the driver.
pub(crate) async fn used<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    query: UsageQuery,
) -> ApiResult<Usage> {
    let period = query.period(Timestamp::now())?;
    let sums = report::sums(connection, scope, period).await?;
    let mut totals: BTreeMap<Meter, i64> = BTreeMap::new();
    for ((meter, _), quantity) in &sums {
        *totals.entry(*meter).or_default() += quantity;
    }
    Ok(Usage {
        from: period.from,
        to: period.to,
        granularity: period.granularity,
        data: sums.into_iter().map(|((meter, start), quantity)| UsagePeriod { meter, start, quantity }).collect(),
        totals: totals.into_iter().map(|(meter, quantity)| UsageTotal { meter, quantity }).collect(),
    })
}
