//! `/api/v1/sessions`.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use shared::{
    ids::SessionId,
    wire::session::{Network, SessionSettings},
};
use std::collections::HashMap;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{CreateSession, SessionDto, SessionStatus, UpdateSession},
    entity::{self, Model},
    linking,
    service::{self, NewSession, Wish},
};
use crate::{
    auth::{Actor, Auth, TenantScope, scopes},
    error::{ApiResult, Kind, Refusal},
    extract::{
        PathId, ValidJson, ValidQuery,
        entity_tag::{Expected, IfMatch, IfNoneMatch, Known},
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, BY_ID, CALLER, CONDITIONAL, IDEMPOTENT, LIMITED, ReadProblems, WRITE, problem_responses},
    plans::{self, Feature, Limit},
    redis::sealed,
    state::App,
    workers::entity as worker,
};

/// The routes of sessions.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_session, list_sessions))
        .routes(routes!(get_session, update_session, delete_session))
        .routes(routes!(get_session_status))
        .routes(routes!(start_session))
        .routes(routes!(stop_session))
        .routes(routes!(restart_session))
        .routes(routes!(logout_session))
        .merge(linking::router())
}

problem_responses!(ReadByIdProblems = CALLER, BY_ID);
problem_responses!(CreateProblems = CALLER, WRITE, BODY, IDEMPOTENT, LIMITED, &[Kind::FeatureNotInPlan]);
problem_responses!(UpdateProblems = CALLER, WRITE, BODY, BY_ID, IDEMPOTENT, CONDITIONAL);
problem_responses!(DeleteProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);
problem_responses!(ActionProblems = CALLER, WRITE, BY_ID, IDEMPOTENT, &[Kind::Conflict]);

/// Make a session
///
/// A session is one linked device. It is started at once unless `start` is false, and shows a QR code as soon as its
/// status is `pairing`.
#[utoipa::path(
    post, path = "/api/v1/sessions", operation_id = "create_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(IdempotencyKey),
    request_body(content = CreateSession, example = json!({"name": "Reception"})),
    responses((status = 201, description = "The session.", body = SessionDto), CreateProblems),
)]
async fn create_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<CreateSession>,
) -> ApiResult<Response> {
    if auth.tenant().sessions().is_some() {
        return Err(Kind::MissingScope.because("an API key that is limited to some sessions makes no others").into());
    }
    let network = network_of(&auth.principal.actor, body.network)?;
    let new = NewSession {
        name: body.name,
        network,
        settings: body.settings.unwrap_or_default().over(SessionSettings::default()),
        start: body.start.unwrap_or(true),
    };
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            if new.network == Network::Whatsapp {
                plans::require(tx, auth.tenant(), Feature::Whatsapp).await?;
            }
            plans::admit(tx, auth.tenant(), Limit::Sessions).await?;
            let row = service::create(tx, &app, auth.tenant(), new).await?;
            Reply::json(StatusCode::CREATED, &SessionDto::of(&app, row, None)?)
        })
        .await?;
    service::rung(&app);
    Ok(response)
}

/// A key's sessions speak to the key's network; people choose.
fn network_of(actor: &Actor, wanted: Option<Network>) -> Result<Network, Refusal> {
    match (actor, wanted) {
        (Actor::User { .. }, wanted) => Ok(wanted.unwrap_or(Network::Whatsapp)),
        (Actor::Key { network, .. }, Some(wanted)) if wanted != *network => Err(Refusal::field(
            "/network",
            "network-of-key",
            "an API key makes sessions of its own network only: leave this out, or use another key",
        )),
        (Actor::Key { network, .. }, _) => Ok(*network),
    }
}

/// List sessions
///
/// Newest first.
#[utoipa::path(
    get, path = "/api/v1/sessions", operation_id = "list_sessions", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:read"]), ("api_key_header" = ["sessions:read"])),
    params(PageQuery),
    responses((status = 200, description = "A page of sessions.", body = Page<SessionDto>), ReadProblems),
)]
async fn list_sessions(
    State(app): State<App>,
    auth: Auth<scopes::SessionsRead>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<SessionDto>>> {
    let mut select = entity::Entity::all_of_tenant(auth.tenant());
    if let Some(before) = page.before::<SessionId>()? {
        select = select.filter(entity::Column::Id.lt(before));
    }
    let rows = select.order_by_desc(entity::Column::Id).limit(page.rows()).all(app.db.read()).await?;
    let holders = worker::Entity::find()
        .filter(worker::Column::Id.is_in(rows.iter().filter_map(|row| row.worker_id.clone())))
        .all(app.db.read())
        .await?;
    let holders: HashMap<_, _> = holders.into_iter().map(|worker| (worker.id.clone(), worker)).collect();
    let Page { data, next_cursor } = page.page(rows, |row| &row.id, |row| row);
    let data = data
        .into_iter()
        .map(|row| {
            let holder = row.worker_id.as_ref().and_then(|id| holders.get(id));
            SessionDto::of(&app, row, holder)
        })
        .collect::<Result<_, _>>()?;
    Ok(Json(Page { data, next_cursor }))
}

/// Reads a tenant's session and its worker.
pub(super) async fn find(app: &App, scope: &TenantScope, id: &SessionId) -> ApiResult<(Model, Option<worker::Model>)> {
    let row = entity::Entity::of_tenant(scope, id).one(app.db.read()).await?.ok_or(Kind::NotFound)?;
    let holder = service::holder(app.db.read(), &row).await?;
    Ok((row, holder))
}

/// Get a session
///
/// With its status as it is now.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}", operation_id = "get_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:read"]), ("api_key_header" = ["sessions:read"])),
    params(("id" = SessionId, Path, description = "The session."), IfNoneMatch),
    responses(
        (status = 200, description = "The session.", body = SessionDto, headers(("ETag" = String, description = "Stands for this answer: see `If-None-Match` and `If-Match`."))),
        (status = 304, description = "It is what the caller has, by `If-None-Match`."),
        ReadByIdProblems,
    ),
)]
async fn get_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsRead>,
    PathId(id): PathId<SessionId>,
    known: Known,
) -> ApiResult<Response> {
    let (row, holder) = find(&app, auth.tenant(), &id).await?;
    known.or(&SessionDto::of(&app, row, holder.as_ref())?)
}

/// Get a session's status
///
/// What the session is, why, and since when.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/status", operation_id = "get_session_status", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:read"]), ("api_key_header" = ["sessions:read"])),
    params(("id" = SessionId, Path, description = "The session.")),
    responses((status = 200, description = "Its status.", body = SessionStatus), ReadByIdProblems),
)]
async fn get_session_status(
    State(app): State<App>,
    auth: Auth<scopes::SessionsRead>,
    PathId(id): PathId<SessionId>,
) -> ApiResult<Json<SessionStatus>> {
    let (row, holder) = find(&app, auth.tenant(), &id).await?;
    Ok(Json(SessionStatus::of(row, holder.as_ref())))
}

/// Change a session
///
/// Its name, or its settings. Settings that are absent stay as they are. With `If-Match` only if the session is as it was seen, its status
/// included.
#[utoipa::path(
    patch, path = "/api/v1/sessions/{id}", operation_id = "update_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session."), IdempotencyKey, IfMatch),
    request_body(content = UpdateSession, example = json!({"name": "Front desk", "settings": {"on_unknown": "hold"}})),
    responses((status = 200, description = "The session, changed.", body = SessionDto), UpdateProblems),
)]
async fn update_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    idempotent: Idempotent,
    expected: Expected,
    ValidJson(body): ValidJson<UpdateSession>,
) -> ApiResult<Response> {
    let wish = Wish::Change { name: body.name, settings: body.settings };
    answer(&app, auth.tenant(), idempotent, id, wish, expected, StatusCode::OK).await
}

/// Delete a session
///
/// Removes the linked device from the account, erases the session's WhatsApp state, then the session: it is gone when
/// `GET` says 404. Its message history stays.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}", operation_id = "delete_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session."), IdempotencyKey),
    responses((status = 202, description = "The session, which is being deleted.", body = SessionDto), DeleteProblems),
)]
async fn delete_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    answer(&app, auth.tenant(), idempotent, id, Wish::Delete, Expected::NOTHING, StatusCode::ACCEPTED).await
}

/// Start a session
///
/// Connects it; if it isn't linked (any more), it shows a QR code. A session that runs already goes on.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/start", operation_id = "start_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session."), IdempotencyKey),
    responses((status = 202, description = "The session, which is being started.", body = SessionDto), ActionProblems),
)]
async fn start_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    answer(&app, auth.tenant(), idempotent, id, Wish::Start, Expected::NOTHING, StatusCode::ACCEPTED).await
}

/// Stop a session
///
/// Ends its connection and keeps the link: it can be started again without a QR code.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/stop", operation_id = "stop_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session."), IdempotencyKey),
    responses((status = 202, description = "The session, which is being stopped.", body = SessionDto), ActionProblems),
)]
async fn stop_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    answer(&app, auth.tenant(), idempotent, id, Wish::Stop, Expected::NOTHING, StatusCode::ACCEPTED).await
}

/// Restart a session
///
/// Ends its connection and connects anew.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/restart", operation_id = "restart_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session."), IdempotencyKey),
    responses((status = 202, description = "The session, which is being restarted.", body = SessionDto), ActionProblems),
)]
async fn restart_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    answer(&app, auth.tenant(), idempotent, id, Wish::Restart, Expected::NOTHING, StatusCode::ACCEPTED).await
}

/// Log a session out
///
/// Removes the linked device from the account and erases the session's WhatsApp state. Start it to link it again.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/logout", operation_id = "logout_session", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session."), IdempotencyKey),
    responses((status = 202, description = "The session, which is being logged out.", body = SessionDto), ActionProblems),
)]
async fn logout_session(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    answer(&app, auth.tenant(), idempotent, id, Wish::LogOut, Expected::NOTHING, StatusCode::ACCEPTED).await
}

/// Writes a wish and answers with the session.
async fn answer(
    app: &App,
    scope: &TenantScope,
    idempotent: Idempotent,
    id: SessionId,
    wish: Wish,
    expected: Expected,
    status: StatusCode,
) -> ApiResult<Response> {
    let response = idempotent
        .run(app, idempotency::DAY, async |tx| {
            if expected.is_there() {
                let row = service::locked(tx, scope, &id).await?;
                let holder = service::holder(tx, &row).await?;
                expected.holds(&SessionDto::of(app, row, holder.as_ref())?)?;
            }
            let (row, holder) = service::wish(tx, app, scope, &id, wish).await?;
            Reply::json(status, &SessionDto::of(app, row, holder.as_ref())?)
        })
        .await?;
    sealed::drop_all(app, [&id]).await;
    service::rung(app);
    Ok(response)
}
