//! `/api/v1/events`.

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Envelope, find};
use crate::{
    auth::{Auth, scopes},
    error::ApiResult,
    extract::{
        ValidQuery,
        page::{Page, PageQuery},
    },
    openapi::ReadProblems,
    state::App,
    tenants,
};

/// The routes of events.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_events))
}

/// List events
///
/// What happened, by position, the newest first: the same envelopes that webhooks deliver.
#[utoipa::path(
    get, path = "/api/v1/events", operation_id = "list_events", tag = "events",
    security(("person" = []), ("api_key" = ["messages:read"]), ("api_key_header" = ["messages:read"])),
    params(PageQuery),
    responses((status = 200, description = "One page of events.", body = Page<Envelope>), ReadProblems),
)]
async fn list_events(
    State(app): State<App>,
    auth: Auth<scopes::MessagesRead>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Envelope>>> {
    let before = page.before::<i64>()?;
    let key = tenants::data_key(&app, app.db.read(), auth.tenant()).await?;
    let events = find::page(&app.db, auth.tenant(), &key, before, page.rows()).await?;
    Ok(Json(page.page(events, |event| &event.position, |event| event)))
}
