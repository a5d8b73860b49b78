//! `/api/v1/plan` and `/api/v1/plans`.

use axum::{extract::State, response::Response};
use sea_orm::ConnectionTrait;
use shared::time::Timestamp;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    admit::count,
    dto::{CurrentPlan, LimitState, Plan, Plans},
    quota, store,
    terms::{Entitlements, Limit},
};
use crate::{
    auth::{Auth, TenantScope, scopes},
    error::ApiResult,
    extract::entity_tag::{IfNoneMatch, Known},
    openapi::ReadProblems,
    state::App,
};

/// The routes of plans.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get_plan)).routes(routes!(list_plans))
}

/// Get the tenant's plan
///
/// What the tenant may do, how much, and how much of it is used.
#[utoipa::path(
    get, path = "/api/v1/plan", operation_id = "get_plan", tag = "plans",
    security(("person" = []), ("api_key" = ["usage:read"]), ("api_key_header" = ["usage:read"])),
    params(IfNoneMatch),
    responses(
        (status = 200, description = "The plan, with what is used.", body = CurrentPlan, headers(("ETag" = String, description = "Stands for this answer: see `If-None-Match` and `If-Match`."))),
        (status = 304, description = "It is what the caller has, by `If-None-Match`."),
        ReadProblems,
    ),
)]
async fn get_plan(State(app): State<App>, auth: Auth<scopes::UsageRead>, known: Known) -> ApiResult<Response> {
    let (scope, now) = (auth.tenant(), Timestamp::now());
    let entitlements = store::entitlements(app.db.read(), scope, now).await?;
    known.or(&current(app.db.read(), scope, entitlements, now).await?)
}

/// What holds, with what is used of it.
pub(super) async fn current<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    entitlements: Entitlements,
    now: Timestamp,
) -> ApiResult<CurrentPlan> {
    let mut limits = Vec::with_capacity(Limit::ALL.len());
    for limit in Limit::ALL {
        let (used, resets_at) = if limit == Limit::MessagesPerMonth {
            let month = quota::month_of(now);
            let used = match quota::used(connection, scope, month).await? {
                Some(used) => used,
                None => quota::sent(connection, scope, month, entitlements.limit(limit).is_some()).await?,
            };
            (used, Some(quota::resets_at(month)))
        } else {
            (count(connection, scope, limit, now).await?, None)
        };
        limits.push(LimitState { limit, allowed: entitlements.limit(limit), used, resets_at });
    }
    Ok(CurrentPlan {
        plan: entitlements.plan.plan,
        version: entitlements.plan.version,
        title: entitlements.plan.title,
        source: entitlements.source,
        trial_ends_at: entitlements.trial_ends_at,
        overridden: entitlements.overridden,
        features: entitlements.terms.features.into_iter().collect(),
        limits,
    })
}

/// List plans
///
/// The newest version of each plan of this installation, by name: those that anybody may have, and the tenant's own.
#[utoipa::path(
    get, path = "/api/v1/plans", operation_id = "list_plans", tag = "plans",
    security(("person" = []), ("api_key" = ["usage:read"]), ("api_key_header" = ["usage:read"])),
    params(IfNoneMatch),
    responses(
        (status = 200, description = "The plans.", body = Plans, headers(("ETag" = String, description = "Stands for this answer: see `If-None-Match` and `If-Match`."))),
        (status = 304, description = "It is what the caller has, by `If-None-Match`."),
        ReadProblems,
    ),
)]
async fn list_plans(State(app): State<App>, auth: Auth<scopes::UsageRead>, known: Known) -> ApiResult<Response> {
    let own = store::entitlements(app.db.read(), auth.tenant(), Timestamp::now()).await?.plan.plan;
    let plans = store::all(app.db.read()).await?.into_iter().filter(|plan| plan.terms.listed || plan.plan == own);
    known.or(&Plans { data: plans.map(Plan::from).collect() })
}
