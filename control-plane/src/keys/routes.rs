//! `/api/v1/api-keys`.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use shared::ids::KeyId;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    cache,
    dto::{ApiKey, CreateApiKey, CreatedApiKey, RotateApiKey},
    service,
};
use crate::{
    auth::{Auth, scopes},
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, LIMITED, ReadByIdProblems, ReadProblems, WRITE, problem_responses},
    state::App,
};

/// The routes of API keys.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_api_key, list_api_keys))
        .routes(routes!(get_api_key, delete_api_key))
        .routes(routes!(rotate_api_key))
}

problem_responses!(CreateProblems = CALLER, WRITE, BODY, IDEMPOTENT, LIMITED);

/// Make an API key
///
/// The key is in this answer and can't be shown again. Only people make keys, a key can't. It may be limited to some sessions, to
/// some networks, and in time.
#[utoipa::path(
    post, path = "/api/v1/api-keys", operation_id = "create_api_key", tag = "api-keys",
    security(("person" = ["api-keys"])),
    params(IdempotencyKey),
    request_body(
        content = CreateApiKey,
        example = json!({"name": "order system", "network": "sandbox", "scopes": ["sessions:read", "messages:send"]}),
    ),
    responses((status = 201, description = "The key.", body = CreatedApiKey), CreateProblems),
)]
async fn create_api_key(
    State(app): State<App>,
    auth: Auth<scopes::ApiKeys>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<CreateApiKey>,
) -> ApiResult<Response> {
    let maker = auth.person()?.id;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let created = service::create(&app, tx, auth.tenant(), maker, body).await?;
            Reply::json(StatusCode::CREATED, &created)
        })
        .await
}

/// List API keys
///
/// Those that aren't deleted, the newest first, without the keys themselves.
#[utoipa::path(
    get, path = "/api/v1/api-keys", operation_id = "list_api_keys", tag = "api-keys",
    security(("person" = ["api-keys"])),
    params(PageQuery),
    responses((status = 200, description = "One page of keys.", body = Page<ApiKey>), ReadProblems),
)]
async fn list_api_keys(
    State(app): State<App>,
    auth: Auth<scopes::ApiKeys>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<ApiKey>>> {
    Ok(Json(service::list(app.db.read(), auth.tenant(), &page).await?))
}

/// Get an API key
///
/// Without the key itself.
#[utoipa::path(
    get, path = "/api/v1/api-keys/{id}", operation_id = "get_api_key", tag = "api-keys",
    security(("person" = ["api-keys"])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    responses((status = 200, description = "The key.", body = ApiKey), ReadByIdProblems),
)]
async fn get_api_key(
    State(app): State<App>,
    auth: Auth<scopes::ApiKeys>,
    PathId(id): PathId<KeyId>,
) -> ApiResult<Json<ApiKey>> {
    Ok(Json(service::get(app.db.read(), auth.tenant(), &id).await?))
}

problem_responses!(RotateProblems = CALLER, WRITE, BODY, BY_ID, IDEMPOTENT, &[Kind::Conflict]);

/// Rotate an API key
///
/// Makes a new key with the same name, network, scopes and limits, and lets the present one work on for a while, so that
/// programs can change over without an interruption. A key is rotated once: after that, rotate the new one.
#[utoipa::path(
    post, path = "/api/v1/api-keys/{id}/rotate", operation_id = "rotate_api_key", tag = "api-keys",
    security(("person" = ["api-keys"])),
    params(("id" = KeyId, Path, description = "The key's id."), IdempotencyKey),
    request_body(content = RotateApiKey, example = json!({"overlap_seconds": 3600})),
    responses((status = 201, description = "The new key.", body = CreatedApiKey), RotateProblems),
)]
async fn rotate_api_key(
    State(app): State<App>,
    auth: Auth<scopes::ApiKeys>,
    PathId(id): PathId<KeyId>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<RotateApiKey>,
) -> ApiResult<Response> {
    let maker = auth.person()?.id;
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let created = service::rotate(&app, tx, auth.tenant(), maker, &id, &body).await?;
            Reply::json(StatusCode::CREATED, &created)
        })
        .await?;
    // The present key ends sooner than was known.
    cache::forget(&app, auth.tenant().id()).await;
    Ok(response)
}

problem_responses!(DeleteProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);

/// Delete an API key
///
/// From now on it isn't accepted.
#[utoipa::path(
    delete, path = "/api/v1/api-keys/{id}", operation_id = "delete_api_key", tag = "api-keys",
    security(("person" = ["api-keys"])),
    params(("id" = KeyId, Path, description = "The key's id."), IdempotencyKey),
    responses((status = 204, description = "The key is deleted."), DeleteProblems),
)]
async fn delete_api_key(
    State(app): State<App>,
    auth: Auth<scopes::ApiKeys>,
    PathId(id): PathId<KeyId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::delete(tx, auth.tenant(), &id).await?;
            Ok(Reply::no_content())
        })
        .await?;
    cache::forget(&app, auth.tenant().id()).await;
    Ok(response)
}
