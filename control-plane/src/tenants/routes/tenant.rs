//! `/api/v1/tenant`.

use axum::{Json, extract::State, http::StatusCode, response::Response};

use crate::{
    auth::{Auth, scopes},
    error::ApiResult,
    extract::ValidJson,
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, CALLER, IDEMPOTENT, ReadProblems, WRITE, problem_responses},
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
    responses((status = 200, description = "The tenant.", body = TenantDto), ReadProblems),
)]
pub(super) async fn get_tenant(State(app): State<App>, auth: Auth<scopes::Anyone>) -> ApiResult<Json<TenantDto>> {
    Ok(Json(service::find(app.db.read(), auth.tenant()).await?.into()))
}

problem_responses!(UpdateTenantProblems = CALLER, WRITE, BODY, IDEMPOTENT);

/// Change the tenant
///
/// Its name, and for how long it keeps what messages say. What is absent stays as it is.
#[utoipa::path(
    patch, path = "/api/v1/tenant", operation_id = "update_tenant", tag = "tenant",
    security(("person" = ["tenant:write"])),
    params(IdempotencyKey),
    request_body(content = UpdateTenant, example = json!({"name": "Acme Messaging", "retention_days": 90})),
    responses((status = 200, description = "The tenant, changed.", body = TenantDto), UpdateTenantProblems),
)]
pub(super) async fn update_tenant(
    State(app): State<App>,
    auth: Auth<scopes::TenantWrite>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<UpdateTenant>,
) -> ApiResult<Response> {
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let tenant = service::update(tx, auth.tenant(), body).await?;
            Reply::json(StatusCode::OK, &TenantDto::from(tenant))
        })
        .await
}
