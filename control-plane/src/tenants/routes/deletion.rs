//! Deleting the account.

use axum::{extract::State, http::StatusCode, response::Response};

use super::confirmed;
use crate::{
    auth::{self, Auth, Caller, scopes},
    error::{ApiResult, Kind},
    extract::ValidJson,
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    jobs::JobKind,
    keys,
    openapi::{BODY, CALLER, IDEMPOTENT, THROTTLED, WRITE, problem_responses},
    state::App,
    tenants::{deletion as service, dto::TenantDto},
};

problem_responses!(DeleteProblems = CALLER, WRITE, BODY, IDEMPOTENT, THROTTLED, &[Kind::WrongPassword, Kind::Conflict]);

/// Delete the account
///
/// In a week. Until then it only reads: its sessions are stopped, an export is made when all of them have been let go of (or after six
/// hours), which can be downloaded, and the deletion can be taken back. Then the linked devices are removed and everything goes, with the people who belong to no other account. Confirmed
/// by one's password.
#[utoipa::path(
    post, path = "/api/v1/tenant/deletion", operation_id = "delete_tenant", tag = "tenant",
    security(("person" = ["tenant:own"])),
    params(IdempotencyKey),
    request_body(content = auth::ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 202, description = "The account, which is going to be deleted.", body = TenantDto), DeleteProblems),
)]
pub(super) async fn delete_tenant(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<auth::ConfirmPassword>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    let response = confirmed(
        &app,
        (person, body.password),
        caller,
        idempotent,
        &[JobKind::DeleteTenant, JobKind::SendMail],
        async |tx| {
            let tenant = service::begin(&app, tx, auth.tenant(), person).await?;
            Reply::json(StatusCode::ACCEPTED, &TenantDto::from(tenant))
        },
    )
    .await?;
    keys::forget(&app, auth.tenant().id()).await;
    Ok(response)
}

problem_responses!(KeepProblems = CALLER, IDEMPOTENT, &[Kind::Conflict]);

/// Keep the account
///
/// Takes its deletion back, as long as the week isn't over. Its sessions stay stopped until they are started.
#[utoipa::path(
    delete, path = "/api/v1/tenant/deletion", operation_id = "keep_tenant", tag = "tenant",
    security(("person" = ["tenant:own"])),
    params(IdempotencyKey),
    responses((status = 200, description = "The account, active again.", body = TenantDto), KeepProblems),
)]
pub(super) async fn keep_tenant(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwnFrozen>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            Reply::json(StatusCode::OK, &TenantDto::from(service::cancel(tx, auth.tenant()).await?))
        })
        .await?;
    keys::forget(&app, auth.tenant().id()).await;
    Ok(response)
}
