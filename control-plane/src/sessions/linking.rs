//! Linking a session: the QR code to scan, a code to type, a passkey to show. All of it is asked of the worker that holds the
//! session; the QR code alone is kept until it expires ([`qr_store`]).

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::Utc;
use shared::{
    ids::SessionId,
    wire::{
        linking::{PairingCodeOrder, Passkey, PasskeyAnswer, PasskeyOrder, QrCode},
        session::{Observed, SecretText, SessionView},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{AnswerPasskey, CreatePairingCode, PairingCodeDto, PasskeyDto, QrDto, SessionStatus},
    entity::{self, Model},
    qr::{self, Form},
    qr_store,
    routes::find,
    service,
    worker_route::{self, WorkerRoute},
};
use crate::{
    auth::{Auth, TenantScope, scopes},
    error::{ApiError, ApiResult, Kind, Refusal},
    extract::{PathId, ValidJson},
    messages::recipient,
    openapi::{BODY, BY_ID, CALLER, WRITE, problem_responses},
    redis::sealed,
    state::App,
    workers::{
        client::{LinkingProblem, WorkerCallError},
        entity as worker,
    },
};

/// How long to leave WhatsApp alone after it throttled codes.
const THROTTLED: HeaderValue = HeaderValue::from_static("60");
/// When to ask again if the worker doesn't answer.
const SOON: HeaderValue = HeaderValue::from_static("5");

/// The routes of linking.
pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get_session_qr))
        .routes(routes!(create_pairing_code))
        .routes(routes!(get_session_passkey, answer_session_passkey))
}

problem_responses!(QrProblems = CALLER, BY_ID, &[Kind::NotAcceptable, Kind::NoQrCode]);
problem_responses!(
    CodeProblems = CALLER,
    WRITE,
    BODY,
    BY_ID,
    &[Kind::NotPairing, Kind::LinkRefused, Kind::RateLimited]
);
problem_responses!(GetPasskeyProblems = CALLER, BY_ID, &[Kind::NoPasskeyRequest]);
problem_responses!(
    AnswerPasskeyProblems = CALLER,
    WRITE,
    BODY,
    BY_ID,
    &[Kind::NotPairing, Kind::NoPasskeyRequest, Kind::LinkRefused]
);

/// Get a session's QR code
///
/// What the phone has to scan, as a picture or as JSON, by the `Accept` header. A code is good for some twenty seconds;
/// ask again for the next one.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/qr", operation_id = "get_session_qr", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:read"]), ("api_key_header" = ["sessions:read"])),
    params(("id" = SessionId, Path, description = "The session.")),
    responses(
        (status = 200, description = "The code.", content(
            (QrDto = "application/json"), (String = "image/svg+xml"), (String = "image/png"),
        )),
        QrProblems,
    ),
)]
async fn get_session_qr(
    State(app): State<App>,
    auth: Auth<scopes::SessionsRead>,
    PathId(id): PathId<SessionId>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let form = Form::wanted(&headers).ok_or(Kind::NotAcceptable)?;
    let code = qr_code(&app, auth.tenant(), &id).await?;
    let drawn = |picture: Option<Vec<u8>>| picture.ok_or(ApiError::Defect("a QR code could not be drawn"));
    let mut response = match form {
        Form::Json => Json(QrDto { qr: code.text, expires_at: code.expires_at.into() }).into_response(),
        Form::Png => drawn(qr::png(&code.text))?.into_response(),
        Form::Svg => drawn(qr::svg(&code.text))?.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media_type()));
    // It links a device to an account: nothing between here and the phone may keep it.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Link a session by a code
///
/// Gives eight characters to be typed into the phone: *Linked devices › Link with phone number instead*. The session must be
/// waiting to be linked: `pairing`, or just started. The code is good for three minutes; asking again makes another and
/// withdraws the one before. The QR code goes on working beside it.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/pairing-code", operation_id = "create_pairing_code", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session.")),
    request_body(content = CreatePairingCode, example = json!({"phone": "+15550001234"})),
    responses((status = 200, description = "The code.", body = PairingCodeDto), CodeProblems),
)]
async fn create_pairing_code(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    ValidJson(body): ValidJson<CreatePairingCode>,
) -> ApiResult<Response> {
    let digits = recipient::phone_digits(&body.phone).ok_or_else(|| {
        Refusal::field("/phone", "phone-number", "must be a phone number in E.164, such as +15550001234")
    })?;
    let (client, session) = (&app.fleet.client, &id);
    let code = ask(&app, auth.tenant(), &id, Kind::NotPairing, |route| async move {
        let order = PairingCodeOrder { generation: route.generation, phone: SecretText::new(digits.to_owned()) };
        client.pairing_code(&route.peer(), session, &order).await
    })
    .await?;
    let text = code.code.expose();
    // As the phone shows the boxes to type it into.
    let shown = text.split_at_checked(4).map_or_else(|| text.to_owned(), |(head, tail)| format!("{head}-{tail}"));
    metrics::counter!("control_plane_pairing_codes_total").increment(1);
    Ok(Json(PairingCodeDto { code: shown, expires_at: code.expires_at.into() }).into_response())
}

/// Get what WhatsApp asks of the passkey
///
/// Some accounts are protected by a passkey. While the status is `passkey_required`, this is what WhatsApp asks for: first an
/// assertion (`stage: assertion`), then, unless it trusts the device already, that the owner compares a code
/// (`stage: confirmation`).
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/passkey", operation_id = "get_session_passkey", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session.")),
    responses((status = 200, description = "What is asked for.", body = PasskeyDto), GetPasskeyProblems),
)]
async fn get_session_passkey(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
) -> ApiResult<Json<PasskeyDto>> {
    let view = ask(&app, auth.tenant(), &id, Kind::NoPasskeyRequest, |route| look(&app, &id, route)).await?;
    let asked = view.passkey.ok_or_else(|| Kind::NoPasskeyRequest.because(is(name_of(&view.report.observed))))?;
    Ok(Json(match asked {
        Passkey::Assertion { request_options } => PasskeyDto::Assertion {
            request_options: serde_json::from_str(&request_options)
                .map_err(|_| ApiError::from(Kind::NoPasskeyRequest.because("WhatsApp's request can't be read")))?,
        },
        Passkey::Confirmation { code } => PasskeyDto::Confirmation { code },
    }))
}

/// Answer what WhatsApp asks of the passkey
///
/// Takes the credential that `navigator.credentials.get` (or Android's Credential Manager) gave for the request options, or the
/// owner's word that the codes are the same. The passkey is the account owner's: nobody else can make the assertion.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/passkey", operation_id = "answer_session_passkey", tag = "sessions",
    security(("person" = []), ("api_key" = ["sessions:write"]), ("api_key_header" = ["sessions:write"])),
    params(("id" = SessionId, Path, description = "The session.")),
    request_body(content = AnswerPasskey, example = json!({"stage": "confirmation"})),
    responses((status = 204, description = "WhatsApp has the answer."), AnswerPasskeyProblems),
)]
async fn answer_session_passkey(
    State(app): State<App>,
    auth: Auth<scopes::SessionsWrite>,
    PathId(id): PathId<SessionId>,
    ValidJson(body): ValidJson<AnswerPasskey>,
) -> ApiResult<StatusCode> {
    let answer = match body {
        AnswerPasskey::Confirmation => PasskeyAnswer::Confirmation,
        AnswerPasskey::Assertion { credential } => PasskeyAnswer::Assertion {
            assertion: SecretText::new(credential.as_whatsapp_reads_it()),
            credential_id: SecretText::new(credential.raw_id),
        },
    };
    let (client, session, answer) = (&app.fleet.client, &id, &answer);
    ask(&app, auth.tenant(), &id, Kind::NoPasskeyRequest, |route| async move {
        let order = PasskeyOrder { generation: route.generation, answer: answer.clone() };
        client.answer_passkey(&route.peer(), session, &order).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn is(state: &str) -> String {
    format!("the session is {state}")
}

/// The route of a session that is to run.
fn running(row: &Model, holder: Option<&worker::Model>, otherwise: Kind) -> ApiResult<WorkerRoute> {
    holder.and_then(|holder| WorkerRoute::of(row, holder)).ok_or_else(|| {
        let shown = SessionStatus::of(row.clone(), holder);
        otherwise.because(is(shown.status.as_str())).into()
    })
}

/// The code to scan now.
async fn qr_code(app: &App, scope: &TenantScope, id: &SessionId) -> ApiResult<QrCode> {
    let row = entity::Entity::of_tenant(scope, id).one(app.db.read()).await?.ok_or(Kind::NotFound)?;
    let now = Utc::now();
    if let Some(code) = qr_store::current(app, &row, now).await {
        return Ok(code);
    }
    let holder = service::holder(app.db.read(), &row).await?;
    let route = running(&row, holder.as_ref(), Kind::NoQrCode)?;
    let view = look(app, id, route.clone()).await.map_err(|error| refused(id, &route, error, Kind::NoQrCode))?;
    qr_store::keep(app, &view, now).await;
    view.qr.ok_or_else(|| Kind::NoQrCode.because(is(name_of(&view.report.observed))).into())
}

/// Looks at a session on the worker that holds it.
async fn look(app: &App, id: &SessionId, route: WorkerRoute) -> Result<SessionView, WorkerCallError> {
    let view = app.fleet.client.view_session(&route.peer(), id).await?;
    if view.report.generation == route.generation { Ok(view) } else { Err(WorkerCallError::GenerationMismatch) }
}

/// Asks the worker of a session: by the remembered route if there is one, by the database's if there is none or the worker says that it
/// is old.
async fn ask<T, Call: Future<Output = Result<T, WorkerCallError>>>(
    app: &App,
    scope: &TenantScope,
    id: &SessionId,
    otherwise: Kind,
    call: impl Fn(WorkerRoute) -> Call,
) -> ApiResult<T> {
    if let Some(route) = worker_route::remembered_of(app, scope, id).await {
        match call(route.clone()).await {
            // None of these has done anything.
            Err(WorkerCallError::NotHeld | WorkerCallError::GenerationMismatch | WorkerCallError::Unreachable) => {
                metrics::counter!("redis_values_total", "value" => "route", "outcome" => "stale").increment(1);
                sealed::drop_all(app, [id]).await;
            }
            answer => return answer.map_err(|error| refused(id, &route, error, otherwise)),
        }
    }
    let (row, holder) = find(app, scope, id).await?;
    let route = running(&row, holder.as_ref(), otherwise)?;
    worker_route::remember(app, id, &route).await;
    call(route.clone()).await.map_err(|error| refused(id, &route, error, otherwise))
}

/// What a worker's refusal means to the caller.
fn refused(id: &SessionId, route: &WorkerRoute, error: WorkerCallError, otherwise: Kind) -> ApiError {
    match error {
        WorkerCallError::NotHeld | WorkerCallError::GenerationMismatch => otherwise.because(is("starting")).into(),
        WorkerCallError::Linking(LinkingProblem::NotPairing) => {
            Kind::NotPairing.because("it is linked already, or has no connection").into()
        }
        WorkerCallError::Linking(LinkingProblem::NotAsked) => Kind::NoPasskeyRequest.into(),
        WorkerCallError::Linking(LinkingProblem::Refused) => Kind::LinkRefused.into(),
        WorkerCallError::Linking(LinkingProblem::Throttled) => {
            Kind::RateLimited.because("WhatsApp throttles codes").with_header(header::RETRY_AFTER, THROTTLED).into()
        }
        WorkerCallError::Unreachable | WorkerCallError::NoAnswer | WorkerCallError::Refused(_) => {
            metrics::counter!("control_plane_worker_call_errors_total", "call" => "linking").increment(1);
            tracing::warn!(session = %id, worker = %route.peer().id, %error, "a worker was asked in vain");
            Kind::Unavailable
                .because("the worker of this session does not answer just now")
                .with_header(header::RETRY_AFTER, SOON)
                .into()
        }
    }
}

const fn name_of(observed: &Observed) -> &'static str {
    match observed {
        Observed::Starting => "starting",
        Observed::Pairing => "pairing, and its next code is on its way",
        Observed::PasskeyRequired => "passkey_required",
        Observed::Connected => "connected",
        Observed::Reconnecting => "reconnecting",
        Observed::LoggedOut { .. } | Observed::Erased { .. } => "logged_out",
        Observed::Banned { .. } => "banned",
        Observed::Failed { .. } => "failed",
        Observed::Stopped { .. } => "stopped",
    }
}
