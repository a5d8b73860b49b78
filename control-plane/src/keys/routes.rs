//! `/api/v1/api-keys`.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use shared::ids::KeyId;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    cache,
    dto::{ApiKey, CreateApiKey, CreatedApiKey},
    service,
};
use crate::{
    auth::{Actor, Auth, scopes},
    error::{ApiError, ApiResult},
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, LIMITED, ReadProblems, WRITE, problem_responses},
    state::App,
};

/// The routes of API keys.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_api_key, list_api_keys)).routes(routes!(delete_api_key))
}

problem_responses!(CreateProblems = CALLER, WRITE, BODY, IDEMPOTENT, LIMITED);

/// Make an API key
///
/// The key is in this answer and can't be shown again. Only people make keys, a key can't.
#[utoipa::path(
    post, path = "/api/v1/api-keys", operation_id = "create_api_key", tag = "api-keys",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(
        content = CreateApiKey,
        example = json!({"name": "order system", "network": "sandbox", "scopes": ["sessions:read", "messages:send"]}),
    ),
    responses((status = 201, description = "The key.", body = CreatedApiKey), CreateProblems),
)]
async fn create_api_key(
    State(app): State<App>,
    auth: Auth<scopes::People>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<CreateApiKey>,
) -> ApiResult<Response> {
    let Actor::User { user_id, .. } = &auth.principal.actor else {
        return Err(ApiError::Defect("a key passed for a person"));
    };
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let created = service::create(&app, tx, auth.tenant(), user_id, body).await?;
            Reply::json(StatusCode::CREATED, &created)
        })
        .await
}

/// List API keys
///
/// Those that aren't deleted, the newest first, without the keys themselves.
#[utoipa::path(
    get, path = "/api/v1/api-keys", operation_id = "list_api_keys", tag = "api-keys",
    security(("person" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page of keys.", body = Page<ApiKey>), ReadProblems),
)]
async fn list_api_keys(
    State(app): State<App>,
    auth: Auth<scopes::People>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<ApiKey>>> {
    Ok(Json(service::list(app.db.read(), auth.tenant(), &page).await?))
}

problem_responses!(DeleteProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);

/// Delete an API key
///
/// From now on it isn't accepted.
#[utoipa::path(
    delete, path = "/api/v1/api-keys/{id}", operation_id = "delete_api_key", tag = "api-keys",
    security(("person" = [])),
    params(("id" = KeyId, Path, description = "The key's id."), IdempotencyKey),
    responses((status = 204, description = "The key is deleted."), DeleteProblems),
)]
async fn delete_api_key(
    State(app): State<App>,
    auth: Auth<scopes::People>,
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
