//! `/api/v1/tenant`.

use axum::{extract::State, http::StatusCode, response::Response};

use crate::{
    auth::{Auth, scopes},
    error::ApiResult,
    extract::{
        ValidJson,
        entity_tag::{Expected, IfMatch, IfNoneMatch, Known},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, CALLER, CONDITIONAL, IDEMPOTENT, ReadProblems, WRITE, problem_responses},
    state::App,
    tenants::{
        dto::{TenantDto, UpdateTenant},
        service,
    },
};

/// Get the tenant
///
/// The account that the credentials belong to.
#[utoipa::path(
    get, path = "/api/v1/tenant", operation_id = "get_tenant", tag = "tenant",
    security(("person" = []), ("api_key" = []), ("api_key_header" = [])),
    params(IfNoneMatch),
    responses(
        (status = 200, description = "The tenant.", body = TenantDto, headers(("ETag" = String, description = "Stands for this answer: see `If-None-Match` and `If-Match`."))),
        (status = 304, description = "It is what the caller has, by `If-None-Match`."),
        ReadProblems,
    ),
)]
pub(super) async fn get_tenant(
    State(app): State<App>,
    auth: Auth<scopes::Anyone>,
    known: Known,
) -> ApiResult<Response> {
    known.or(&TenantDto::from(service::find(app.db.read(), auth.tenant()).await?))
}

problem_responses!(UpdateTenantProblems = CALLER, WRITE, BODY, IDEMPOTENT, CONDITIONAL);

/// Change the tenant
///
/// Its name, and for how long it keeps what messages say. What is absent stays as it is. With `If-Match` only if the tenant is as it was
/// seen.
#[utoipa::path(
    patch, path = "/api/v1/tenant", operation_id = "update_tenant", tag = "tenant",
    security(("person" = ["tenant:write"])),
    params(IdempotencyKey, IfMatch),
    request_body(content = UpdateTenant, example = json!({"name": "Acme Messaging", "retention_days": 90})),
    responses((status = 200, description = "The tenant, changed.", body = TenantDto), UpdateTenantProblems),
)]
pub(super) async fn update_tenant(
    State(app): State<App>,
    auth: Auth<scopes::TenantWrite>,
    idempotent: Idempotent,
    expected: Expected,
    ValidJson(body): ValidJson<UpdateTenant>,
) -> ApiResult<Response> {
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            if expected.is_there() {
                expected.holds(&TenantDto::from(service::find_locked(tx, auth.tenant()).await?))?;
            }
            let tenant = service::update(tx, auth.tenant(), body).await?;
            Reply::json(StatusCode::OK, &TenantDto::from(tenant))
        })
        .await
}
