//! Tenants, their sessions, and the installation at a glance.

use axum::{Json, extract::State};
use shared::ids::{SessionId, TenantId};

use super::{OPERATOR, OperatorByIdProblems, OperatorProblems};
use crate::{
    auth::TenantScope,
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    jobs,
    openapi::{BODY, BY_ID, problem_responses},
    operators::{
        Operator,
        dto::{AdminSession, AdminTenant, AdminTenantDetail, MoveSession, Overview, SessionFilter, TenantFilter},
        tenants as service,
    },
    sessions::moving,
    state::App,
    tenants::TenantStatus,
    usage::{self, Usage, UsageQuery},
    workers,
};

/// Get the overview
///
/// How much there is of everything, and how it does.
#[utoipa::path(
    get, path = "/api/v1/admin/overview", operation_id = "get_overview", tag = "admin",
    security(("operator" = [])),
    responses((status = 200, description = "The installation at a glance.", body = Overview), OperatorProblems),
)]
pub(super) async fn get_overview(State(app): State<App>, _: Operator) -> ApiResult<Json<Overview>> {
    Ok(Json(Overview {
        version: env!("CARGO_PKG_VERSION"),
        tenants: service::counts(app.db.read()).await?,
        sessions: service::session_counts(app.db.read()).await?,
        workers: workers::figures(&app.db).await?.into(),
        queues: jobs::figures(&app.db).await?.into_iter().map(Into::into).collect(),
    }))
}

/// List tenants
///
/// All of the installation, the newest first.
#[utoipa::path(
    get, path = "/api/v1/admin/tenants", operation_id = "list_tenants", tag = "admin",
    security(("operator" = [])),
    params(PageQuery, TenantFilter),
    responses((status = 200, description = "One page of tenants.", body = Page<AdminTenant>), OperatorProblems),
)]
pub(super) async fn list_tenants(
    State(app): State<App>,
    _: Operator,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(filter): ValidQuery<TenantFilter>,
) -> ApiResult<Json<Page<AdminTenant>>> {
    Ok(Json(service::list(app.db.read(), &filter, &page).await?))
}

/// Get a tenant
///
/// And how much it has.
#[utoipa::path(
    get, path = "/api/v1/admin/tenants/{id}", operation_id = "get_tenant_as_operator", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    responses((status = 200, description = "The tenant.", body = AdminTenantDetail), OperatorByIdProblems),
)]
pub(super) async fn get_tenant_as_operator(
    State(app): State<App>,
    _: Operator,
    PathId(id): PathId<TenantId>,
) -> ApiResult<Json<AdminTenantDetail>> {
    Ok(Json(service::get(app.db.read(), &id).await?))
}

/// Get a tenant's usage
///
/// As the tenant sees it: what was metered, summed by hour, day or month in UTC.
#[utoipa::path(
    get, path = "/api/v1/admin/tenants/{id}/usage", operation_id = "get_usage_of_tenant", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id."), UsageQuery),
    responses((status = 200, description = "The sums.", body = Usage), OperatorByIdProblems),
)]
pub(super) async fn get_usage_of_tenant(
    State(app): State<App>,
    _: Operator,
    PathId(id): PathId<TenantId>,
    ValidQuery(query): ValidQuery<UsageQuery>,
) -> ApiResult<Json<Usage>> {
    service::known(app.db.read(), &id).await?;
    Ok(Json(usage::used(app.db.read(), &TenantScope::of_row(id), query).await?))
}

/// Suspend a tenant
///
/// It can read, and can't change or send anything. Its sessions stay connected. Nothing happens if it is suspended. One that is being
/// deleted stays `deleting`, and is suspended should its owner take that back (`suspended_meanwhile`).
#[utoipa::path(
    post, path = "/api/v1/admin/tenants/{id}/suspend", operation_id = "suspend_tenant", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    responses((status = 200, description = "The tenant, suspended.", body = AdminTenant), OperatorByIdProblems),
)]
pub(super) async fn suspend_tenant(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
) -> ApiResult<Json<AdminTenant>> {
    let tenant = service::set_status(&app, &id, TenantStatus::Suspended).await?;
    tracing::info!(operator = %operator.id, tenant = %id, "a tenant was suspended");
    Ok(Json(tenant))
}

/// Resume a tenant
///
/// It can do everything again. Nothing happens if it isn't suspended; one that is being deleted stays `deleting`, and is active should its
/// owner take that back.
#[utoipa::path(
    post, path = "/api/v1/admin/tenants/{id}/resume", operation_id = "resume_tenant", tag = "admin",
    security(("operator" = [])),
    params(("id" = TenantId, Path, description = "The tenant's id.")),
    responses((status = 200, description = "The tenant, active.", body = AdminTenant), OperatorByIdProblems),
)]
pub(super) async fn resume_tenant(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<TenantId>,
) -> ApiResult<Json<AdminTenant>> {
    let tenant = service::set_status(&app, &id, TenantStatus::Active).await?;
    tracing::info!(operator = %operator.id, tenant = %id, "a tenant was resumed");
    Ok(Json(tenant))
}

/// List sessions of all tenants
///
/// Where each runs, the newest first; nothing of what is in them.
#[utoipa::path(
    get, path = "/api/v1/admin/sessions", operation_id = "list_all_sessions", tag = "admin",
    security(("operator" = [])),
    params(PageQuery, SessionFilter),
    responses((status = 200, description = "One page of sessions.", body = Page<AdminSession>), OperatorProblems),
)]
pub(super) async fn list_all_sessions(
    State(app): State<App>,
    _: Operator,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(filter): ValidQuery<SessionFilter>,
) -> ApiResult<Json<Page<AdminSession>>> {
    Ok(Json(service::sessions(app.db.read(), filter, &page).await?))
}

problem_responses!(MoveProblems = OPERATOR, BY_ID, BODY, &[Kind::Conflict]);

/// Move a session
///
/// To the worker that is named, or to the best of the others. The worker that holds it lets go of it, and then the other takes it:
/// until then `move_to` says where it goes. If that worker can't take it any more by then, it stays. Naming the worker that it is on has it
/// stay, too. One that is already on its way goes on if no worker is named.
#[utoipa::path(
    post, path = "/api/v1/admin/sessions/{id}/move", operation_id = "move_session", tag = "admin",
    security(("operator" = [])),
    params(("id" = SessionId, Path, description = "The session's id.")),
    request_body(content = MoveSession, example = json!({"worker_id": "worker-2"})),
    responses((status = 200, description = "The session, and where it goes.", body = AdminSession), MoveProblems),
)]
pub(super) async fn move_session(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<SessionId>,
    ValidJson(wanted): ValidJson<MoveSession>,
) -> ApiResult<Json<AdminSession>> {
    let session = moving::move_session(&app, &id, wanted.worker_id).await?;
    tracing::info!(operator = %operator.id, session = %id, "a session was told to move");
    Ok(Json(session.into()))
}
