//! `/api/v1/webhooks` and `/api/v1/deliveries`.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use shared::ids::{DeliveryId, WebhookId};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{CreateWebhook, CreatedWebhook, Delivery, DeliveryFilter, RotatedSecret, TestSent, UpdateWebhook, Webhook},
    service,
};
use crate::{
    auth::{Auth, scopes},
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidJson, ValidQuery,
        entity_tag::{Expected, IfMatch, IfNoneMatch, Known},
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    jobs::JobKind,
    openapi::{
        BODY, BY_ID, CALLER, CONDITIONAL, IDEMPOTENT, LIMITED, ReadByIdProblems, ReadProblems, WRITE, problem_responses,
    },
    state::App,
};

/// The routes of webhooks.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_webhook, list_webhooks))
        .routes(routes!(get_webhook, update_webhook, delete_webhook))
        .routes(routes!(test_webhook))
        .routes(routes!(rotate_webhook_secret))
        .routes(routes!(list_deliveries))
        .routes(routes!(replay_delivery))
}

problem_responses!(
    CreateProblems = CALLER,
    WRITE,
    BODY,
    IDEMPOTENT,
    LIMITED,
    &[Kind::FeatureNotInPlan, Kind::WebhookExists, Kind::UrlNotAllowed]
);

/// Make a webhook endpoint
///
/// Events of the types that it asks for are posted to its URL, signed as Standard Webhooks says. The secret is in this answer and
/// can't be shown again. There is one endpoint for each account; beside it, one that a key of the
/// sandbox makes, which is told of sessions of the sandbox only.
#[utoipa::path(
    post, path = "/api/v1/webhooks", operation_id = "create_webhook", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(IdempotencyKey),
    request_body(
        content = CreateWebhook,
        example = json!({"url": "https://example.com/hooks/switchboard", "event_types": ["message.received"]}),
    ),
    responses((status = 201, description = "The endpoint, with its secret.", body = CreatedWebhook), CreateProblems),
)]
async fn create_webhook(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<CreateWebhook>,
) -> ApiResult<Response> {
    service::check_url(&app, &body.url).await?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let created = service::create(&app, tx, auth.tenant(), &body).await?;
            Reply::json(StatusCode::CREATED, &created)
        })
        .await
}

/// List webhook endpoints
///
/// The newest first, without their secrets.
#[utoipa::path(
    get, path = "/api/v1/webhooks", operation_id = "list_webhooks", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(PageQuery),
    responses((status = 200, description = "One page of endpoints.", body = Page<Webhook>), ReadProblems),
)]
async fn list_webhooks(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Webhook>>> {
    Ok(Json(service::list(app.db.read(), auth.tenant(), &page).await?))
}

/// Get a webhook endpoint
///
/// Without its secret.
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}", operation_id = "get_webhook", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = WebhookId, Path, description = "The endpoint's id."), IfNoneMatch),
    responses(
        (status = 200, description = "The endpoint.", body = Webhook, headers(("ETag" = String, description = "Stands for this answer: see `If-None-Match` and `If-Match`."))),
        (status = 304, description = "It is what the caller has, by `If-None-Match`."),
        ReadByIdProblems,
    ),
)]
async fn get_webhook(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<WebhookId>,
    known: Known,
) -> ApiResult<Response> {
    known.or(&service::get(app.db.read(), auth.tenant(), &id).await?)
}

problem_responses!(UpdateProblems = CALLER, WRITE, BODY, BY_ID, IDEMPOTENT, CONDITIONAL, &[Kind::UrlNotAllowed]);

/// Change a webhook endpoint
///
/// Its URL, the types of events that it asks for, or whether it is delivered to. What is absent stays as it is. With `If-Match` only if
/// the endpoint is as it was seen.
#[utoipa::path(
    patch, path = "/api/v1/webhooks/{id}", operation_id = "update_webhook", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = WebhookId, Path, description = "The endpoint's id."), IdempotencyKey, IfMatch),
    request_body(content = UpdateWebhook, example = json!({"event_types": ["*"], "status": "enabled"})),
    responses((status = 200, description = "The endpoint, changed.", body = Webhook), UpdateProblems),
)]
async fn update_webhook(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<WebhookId>,
    idempotent: Idempotent,
    expected: Expected,
    ValidJson(body): ValidJson<UpdateWebhook>,
) -> ApiResult<Response> {
    // Whose it is comes first: what is somebody else's isn't there, whatever the body says.
    service::get(app.db.read(), auth.tenant(), &id).await?;
    if let Some(url) = &body.url {
        service::check_url(&app, url).await?;
    }
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            if expected.is_there() {
                expected.holds(&service::get_locked(tx, auth.tenant(), &id).await?)?;
            }
            let changed = service::update(tx, auth.tenant(), &id, &body).await?;
            Reply::json(StatusCode::OK, &changed)
        })
        .await
}

problem_responses!(DeleteProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);

/// Delete a webhook endpoint
///
/// With its deliveries, also those that wait.
#[utoipa::path(
    delete, path = "/api/v1/webhooks/{id}", operation_id = "delete_webhook", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = WebhookId, Path, description = "The endpoint's id."), IdempotencyKey),
    responses((status = 204, description = "The endpoint is deleted."), DeleteProblems),
)]
async fn delete_webhook(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<WebhookId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::delete(tx, auth.tenant(), &id).await?;
            Ok(Reply::no_content())
        })
        .await
}

problem_responses!(TryProblems = CALLER, WRITE, BY_ID, IDEMPOTENT, &[Kind::Conflict]);

/// Test a webhook endpoint
///
/// Sends it an event of type `webhook.test`, on the way that every event takes. What came of it is in its deliveries.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/test", operation_id = "test_webhook", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = WebhookId, Path, description = "The endpoint's id."), IdempotencyKey),
    responses((status = 202, description = "The event is on its way.", body = TestSent), TryProblems),
)]
async fn test_webhook(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<WebhookId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let answer = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let event_id = service::test(&app, tx, auth.tenant(), &id).await?;
            Reply::json(StatusCode::ACCEPTED, &TestSent { event_id })
        })
        .await?;
    app.bell.ring(JobKind::DeliverWebhook);
    Ok(answer)
}

problem_responses!(RotateProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);

/// Rotate a webhook's secret
///
/// The new secret is in this answer and can't be shown again. For 24 hours deliveries are signed with both.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/rotate-secret", operation_id = "rotate_webhook_secret", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = WebhookId, Path, description = "The endpoint's id."), IdempotencyKey),
    responses((status = 200, description = "The new secret.", body = RotatedSecret), RotateProblems),
)]
async fn rotate_webhook_secret(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<WebhookId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let rotated = service::rotate_secret(&app, tx, auth.tenant(), &id).await?;
            Reply::json(StatusCode::OK, &rotated)
        })
        .await
}

/// List a webhook's deliveries
///
/// The newest first: how far each is, and how its last try ended.
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}/deliveries", operation_id = "list_deliveries", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = WebhookId, Path, description = "The endpoint's id."), PageQuery, DeliveryFilter),
    responses((status = 200, description = "One page of deliveries.", body = Page<Delivery>), ReadByIdProblems),
)]
async fn list_deliveries(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<WebhookId>,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(only): ValidQuery<DeliveryFilter>,
) -> ApiResult<Json<Page<Delivery>>> {
    Ok(Json(service::deliveries(app.db.read(), auth.tenant(), &id, only, &page).await?))
}

/// Replay a delivery
///
/// Delivers an event once more whose delivery ended, under the same `webhook-id`.
#[utoipa::path(
    post, path = "/api/v1/deliveries/{id}/replay", operation_id = "replay_delivery", tag = "webhooks",
    security(("person" = []), ("api_key" = ["webhooks"]), ("api_key_header" = ["webhooks"])),
    params(("id" = DeliveryId, Path, description = "The delivery's id."), IdempotencyKey),
    responses((status = 202, description = "The delivery, pending again.", body = Delivery), TryProblems),
)]
async fn replay_delivery(
    State(app): State<App>,
    auth: Auth<scopes::Webhooks>,
    PathId(id): PathId<DeliveryId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let answer = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let delivery = service::replay(tx, auth.tenant(), &id).await?;
            Reply::json(StatusCode::ACCEPTED, &delivery)
        })
        .await?;
    app.bell.ring(JobKind::DeliverWebhook);
    Ok(answer)
}
