//! `/api/v1/audit-log` and `/api/v1/admin/audit-log`.

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{AuditEntry, AuditFilter, AuditLogOf},
    find,
};
use crate::{
    auth::{Auth, scopes},
    error::{ApiResult, Kind},
    extract::{
        ValidQuery,
        page::{Page, PageQuery},
    },
    jobs::schedule::installation,
    openapi::{ReadProblems, problem_responses},
    operators::Operator,
    state::App,
};

/// The routes of the audit log.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_audit_log)).routes(routes!(list_audit_log_as_operator))
}

problem_responses!(OperatorProblems = &[Kind::Unauthenticated]);

/// List the audit log
///
/// Who changed what in this account, the newest first: every request that could change something, also those that were refused.
#[utoipa::path(
    get, path = "/api/v1/audit-log", operation_id = "list_audit_log", tag = "audit",
    security(("person" = ["audit:read"])),
    params(PageQuery, AuditFilter),
    responses((status = 200, description = "One page of entries.", body = Page<AuditEntry>), ReadProblems),
)]
async fn list_audit_log(
    State(app): State<App>,
    auth: Auth<scopes::AuditRead>,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(filter): ValidQuery<AuditFilter>,
) -> ApiResult<Json<Page<AuditEntry>>> {
    Ok(Json(find::page(app.db.read(), auth.tenant().id(), &filter, &page).await?))
}

/// List the audit log of the installation
///
/// What operators, commands and the installation itself did, and requests whose account never became known; or, with `tenant_id`,
/// the log of that tenant. The newest first.
#[utoipa::path(
    get, path = "/api/v1/admin/audit-log", operation_id = "list_audit_log_as_operator", tag = "admin",
    security(("operator" = [])),
    params(PageQuery, AuditLogOf, AuditFilter),
    responses((status = 200, description = "One page of entries.", body = Page<AuditEntry>), OperatorProblems),
)]
async fn list_audit_log_as_operator(
    State(app): State<App>,
    _: Operator,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(of): ValidQuery<AuditLogOf>,
    ValidQuery(filter): ValidQuery<AuditFilter>,
) -> ApiResult<Json<Page<AuditEntry>>> {
    let log = of.tenant_id.unwrap_or_else(installation);
    Ok(Json(find::page(app.db.read(), &log, &filter, &page).await?))
}
