//! Archives of all that the account has.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use shared::ids::ExportId;

use super::confirmed;
use crate::{
    auth::{self, Auth, Caller, scopes},
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{IdempotencyKey, Idempotent, Reply},
    jobs::JobKind,
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, ReadByIdProblems, ReadProblems, THROTTLED, WRITE, problem_responses},
    state::App,
    tenants::export::{self as service, Export},
};

problem_responses!(CreateProblems = CALLER, WRITE, BODY, IDEMPOTENT, THROTTLED, &[Kind::WrongPassword, Kind::Conflict]);

/// Ask for an export
///
/// All that the account has, as one ZIP of files of JSON lines in the shapes of this API: members and their logins, plan and quotas, keys,
/// sessions, messages, events, webhooks, usage, the audit log; without secrets. It is made in the background; confirmed by one's password. One at a time,
/// and five within a day.
#[utoipa::path(
    post, path = "/api/v1/tenant/exports", operation_id = "create_export", tag = "tenant",
    security(("person" = ["tenant:own"])),
    params(IdempotencyKey),
    request_body(content = auth::ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 202, description = "The export, which is being made.", body = Export), CreateProblems),
)]
pub(super) async fn create_export(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<auth::ConfirmPassword>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    confirmed(&app, (person, body.password), caller, idempotent, &[JobKind::ExportTenant], async |tx| {
        Reply::json(StatusCode::ACCEPTED, &service::request_by_owner(tx, auth.tenant(), person.id).await?)
    })
    .await
}

/// List exports
///
/// Those that weren't deleted yet, the newest first.
#[utoipa::path(
    get, path = "/api/v1/tenant/exports", operation_id = "list_exports", tag = "tenant",
    security(("person" = ["tenant:own"])),
    params(PageQuery),
    responses((status = 200, description = "One page of exports.", body = Page<Export>), ReadProblems),
)]
pub(super) async fn list_exports(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Export>>> {
    Ok(Json(service::list(app.db.read(), auth.tenant(), &page).await?))
}

/// Get an export
///
/// How far it is.
#[utoipa::path(
    get, path = "/api/v1/tenant/exports/{id}", operation_id = "get_export", tag = "tenant",
    security(("person" = ["tenant:own"])),
    params(("id" = ExportId, Path, description = "The export.")),
    responses((status = 200, description = "The export.", body = Export), ReadByIdProblems),
)]
pub(super) async fn get_export(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    PathId(id): PathId<ExportId>,
) -> ApiResult<Json<Export>> {
    Ok(Json(service::get(app.db.read(), auth.tenant(), &id).await?))
}

problem_responses!(DownloadProblems = CALLER, BY_ID, &[Kind::Conflict]);

/// Download an export
///
/// The archive, once it is ready; for a week.
#[utoipa::path(
    get, path = "/api/v1/tenant/exports/{id}/archive", operation_id = "download_export", tag = "tenant",
    security(("person" = ["tenant:own"])),
    params(("id" = ExportId, Path, description = "The export.")),
    responses(
        (status = 200, description = "The archive.", body = String, content_type = "application/zip"),
        DownloadProblems,
    ),
)]
pub(super) async fn download_export(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    PathId(id): PathId<ExportId>,
) -> ApiResult<Response> {
    let reading = service::read(&app, auth.tenant(), &id).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_LENGTH, reading.bytes.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{id}.zip\"")),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(reading.content)).into_response())
}
