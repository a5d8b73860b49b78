//! Plans, and which of them holds for whom.

use axum::{Json, extract::State, response::Response};
use sea_orm::DatabaseTransaction;
use shared::ids::TenantId;

use super::{OPERATOR, OperatorByIdBodyProblems, OperatorByIdProblems, OperatorProblems};
use crate::{
    error::ApiResult,
    extract::{
        PathId, ValidJson, ValidQuery,
        entity_tag::{IfNoneMatch, Known},
        page::{Page, PageQuery},
    },
    openapi::{BODY, problem_responses},
    operators::Operator,
    plans::{
        file::{PlanFile, PlanName},
        operator::{
            self as service, AdminPlan, AppliedPlans, AssignPlan, BeginTrial, PlanOverrides, PublishedPlan, TenantPlan,
        },
    },
    state::App,
};

problem_responses!(ApplyProblems = OPERATOR, BODY);

/// Get a tenant's plan
///
/// What holds for the tenant, how much of it is used, and why: its overrides, else its trial while that lasts, else the version that it
/// was given, else the newest version of the default plan.
#[utoipa::path(
    get, path = "/api/v1/admin/tenants/{id}/plan", operation_id = "get_plan_of_tenant", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id."), IfNoneMatch),
    responses(
        (status = 200, description = "What holds, and what decides it.", body = TenantPlan, headers(("ETag" = String, description = "Stands for this answer: see `If-None-Match` and `If-Match`."))),
        (status = 304, description = "It is what the caller has, by `If-None-Match`."),
        OperatorByIdProblems,
    ),
)]
pub(super) async fn get_plan_of_tenant(
    State(app): State<App>,
    _: Operator,
    PathId(id): PathId<TenantId>,
    known: Known,
) -> ApiResult<Response> {
    known.or(&service::plan_of(app.db.read(), &id).await?)
}

/// Commits what was decided for a tenant.
async fn decided(
    tx: DatabaseTransaction,
    operator: &Operator,
    tenant: &TenantId,
    plan: TenantPlan,
) -> ApiResult<Json<TenantPlan>> {
    tx.commit().await?;
    tracing::info!(operator = %operator.id, %tenant, plan = plan.now.plan, "a tenant's plan was decided");
    Ok(Json(plan))
}

/// Give a tenant a plan
///
/// Its newest version, or another, which stays as it is whatever becomes of the plan. Ends the tenant's trial; its overrides stay.
#[utoipa::path(
    put, path = "/api/v1/admin/tenants/{id}/plan", operation_id = "assign_plan", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    request_body(content = AssignPlan, example = json!({"plan": "free"})),
    responses((status = 200, description = "What holds now.", body = TenantPlan), OperatorByIdBodyProblems),
)]
pub(super) async fn assign_plan(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    ValidJson(wanted): ValidJson<AssignPlan>,
) -> ApiResult<Json<TenantPlan>> {
    let tx = app.db.write().await?;
    let plan = service::assign(&tx, &id, Some(wanted)).await?;
    decided(tx, &operator, &id, plan).await
}

/// Take a tenant's plan away
///
/// So that it has the default plan again. Ends the tenant's trial; its overrides stay.
#[utoipa::path(
    delete, path = "/api/v1/admin/tenants/{id}/plan", operation_id = "unassign_plan", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    responses((status = 200, description = "What holds now.", body = TenantPlan), OperatorByIdProblems),
)]
pub(super) async fn unassign_plan(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
) -> ApiResult<Json<TenantPlan>> {
    let tx = app.db.write().await?;
    let plan = service::assign(&tx, &id, None).await?;
    decided(tx, &operator, &id, plan).await
}

/// Let a tenant try a plan
///
/// For some days from now, in place of a trial that it has. It comes before the plan that the tenant was given.
#[utoipa::path(
    put, path = "/api/v1/admin/tenants/{id}/trial", operation_id = "begin_trial", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    request_body(content = BeginTrial, example = json!({"plan": "free", "days": 14})),
    responses((status = 200, description = "What holds now.", body = TenantPlan), OperatorByIdBodyProblems),
)]
pub(super) async fn begin_trial(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    ValidJson(wanted): ValidJson<BeginTrial>,
) -> ApiResult<Json<TenantPlan>> {
    let tx = app.db.write().await?;
    let plan = service::try_out(&tx, &id, Some(wanted)).await?;
    decided(tx, &operator, &id, plan).await
}

/// End a tenant's trial
///
/// So that what it was given holds, or the default plan. Nothing happens if it tries nothing.
#[utoipa::path(
    delete, path = "/api/v1/admin/tenants/{id}/trial", operation_id = "end_trial", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    responses((status = 200, description = "What holds now.", body = TenantPlan), OperatorByIdProblems),
)]
pub(super) async fn end_trial(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
) -> ApiResult<Json<TenantPlan>> {
    let tx = app.db.write().await?;
    let plan = service::try_out(&tx, &id, None).await?;
    decided(tx, &operator, &id, plan).await
}

/// Override a tenant's plan
///
/// Decides features, limits and the pool for one tenant, whatever its plan says. What isn't named stays as it was decided before.
#[utoipa::path(
    patch, path = "/api/v1/admin/tenants/{id}/overrides", operation_id = "override_plan", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    request_body(content = PlanOverrides, example = json!({
        "features": {"webhooks": true}, "limits": {"sessions": 20, "messages_per_month": null},
    })),
    responses((status = 200, description = "What holds now.", body = TenantPlan), OperatorByIdBodyProblems),
)]
pub(super) async fn override_plan(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    ValidJson(wanted): ValidJson<PlanOverrides>,
) -> ApiResult<Json<TenantPlan>> {
    let tx = app.db.write().await?;
    let plan = service::decide(&tx, &id, wanted, false).await?;
    decided(tx, &operator, &id, plan).await
}

/// Replace a tenant's overrides
///
/// By these: what isn't named is as the plan says again. `{}` clears them all.
#[utoipa::path(
    put, path = "/api/v1/admin/tenants/{id}/overrides", operation_id = "replace_overrides", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    request_body(content = PlanOverrides, example = json!({"limits": {"sessions": 20}})),
    responses((status = 200, description = "What holds now.", body = TenantPlan), OperatorByIdBodyProblems),
)]
pub(super) async fn replace_overrides(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
    ValidJson(wanted): ValidJson<PlanOverrides>,
) -> ApiResult<Json<TenantPlan>> {
    let tx = app.db.write().await?;
    let plan = service::decide(&tx, &id, wanted, true).await?;
    decided(tx, &operator, &id, plan).await
}

/// List all plans
///
/// The newest version of each, also of those that are made for one customer, by name, from the end of the alphabet.
#[utoipa::path(
    get, path = "/api/v1/admin/plans", operation_id = "list_all_plans", tag = "admin",
    security(("operator" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page of plans.", body = Page<AdminPlan>), OperatorProblems),
)]
pub(super) async fn list_all_plans(
    State(app): State<App>,
    _: Operator,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<AdminPlan>>> {
    Ok(Json(service::list(app.db.read(), &page).await?))
}

/// List the versions of a plan
///
/// The newest first. They never change.
#[utoipa::path(
    get, path = "/api/v1/admin/plans/{id}/versions", operation_id = "list_plan_versions", tag = "admin",
    security(("operator" = [])),
    params(("id" = String, Path, description = "The plan's name.", example = "free"), PageQuery),
    responses((status = 200, description = "One page of versions.", body = Page<PublishedPlan>), OperatorByIdProblems),
)]
pub(super) async fn list_plan_versions(
    State(app): State<App>,
    _: Operator,
    PathId(id): PathId<PlanName>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<PublishedPlan>>> {
    Ok(Json(service::versions(app.db.read(), &id, &page).await?))
}

/// Publish plans
///
/// All of them or none. A plan that differs from its newest version gets a new one; who was given an older one keeps it. Plans that
/// aren't named stay as they are; which plan is the default, and what new tenants try, is as this says.
#[utoipa::path(
    post, path = "/api/v1/admin/plans", operation_id = "apply_plans", tag = "admin",
    security(("operator" = [])),
    request_body(content = PlanFile, example = json!({
        "default": "free",
        "plans": [{
            "name": "business", "title": "Business", "features": ["whatsapp", "webhooks"],
            "limits": {"sessions": 50, "messages_per_month": 100_000},
        }],
    })),
    responses((status = 200, description = "What became of each.", body = AppliedPlans), ApplyProblems),
)]
pub(super) async fn apply_plans(
    State(app): State<App>,
    operator: Operator,
    ValidJson(file): ValidJson<PlanFile>,
) -> ApiResult<Json<AppliedPlans>> {
    let tx = app.db.write().await?;
    let applied = service::apply(&tx, &file).await?;
    tx.commit().await?;
    tracing::info!(operator = %operator.id, plans = applied.data.len(), "plans were published");
    Ok(Json(applied))
}
