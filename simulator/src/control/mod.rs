//! The control API over HTTP: JSON below `/control/v1`, on loopback, without authentication.
//!
//! Each route calls the method of the same purpose on [`Network`]. Errors are `{"error": "..."}` with a matching status.

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    AcceptedQuery, Fault, FaultPlan, Garble, LoginFailures, Nacks, Network, NetworkError, NewPhone, PasskeyScan,
    PhoneSettings, ReactionOrder, TextOrder,
};

/// The largest request body.
const MAX_BODY: usize = 1 << 20;

/// What a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Shows something.
    Shows,
    /// Lets somebody do what people and phones do.
    Acts,
    /// Makes something go wrong, or can.
    Hurts,
}

/// The routes below `/control/v1`. Each says what it is for, so that none that hurts stays out of [`fault_routes`].
fn routes() -> Vec<(&'static str, Purpose, MethodRouter<Network>)> {
    use Purpose::{Acts, Hurts, Shows};
    vec![
        ("/phones", Acts, post(create_phone).get(phones)),
        ("/phones/{phone}", Hurts, patch(configure)),
        ("/phones/{phone}/scan", Acts, post(scan)),
        ("/phones/{phone}/enter-code", Acts, post(enter_code)),
        ("/phones/{phone}/scan-with-passkey", Acts, post(scan_with_passkey)),
        ("/phones/{phone}/messages", Acts, post(write).get(messages)),
        ("/phones/{phone}/reactions", Acts, post(react)),
        ("/phones/{phone}/receipts", Shows, get(receipts)),
        ("/phones/{phone}/read", Acts, post(read)),
        ("/phones/{phone}/companions/{device}", Hurts, delete(unlink)),
        ("/accepted", Shows, get(accepted)),
        ("/accepted/summary", Shows, get(accepted_summary)),
        ("/deliveries/unacknowledged", Shows, get(unacknowledged)),
        ("/devices/{jid}/fault", Hurts, post(fault)),
        ("/devices/{jid}/login-failures", Hurts, post(refuse_logins).delete(allow_logins)),
        ("/devices/{jid}/nacks", Hurts, post(refuse_messages).delete(allow_messages)),
        ("/devices/{jid}/garble", Hurts, post(garble)),
        ("/fault-plan", Hurts, put(plan_faults).get(planned_faults).delete(end_plan)),
        ("/rotate-static-key", Hurts, post(rotate_static_key)),
        ("/connections", Shows, get(connections)),
        ("/connections/ended", Shows, get(ended)),
        ("/root", Shows, get(root)),
        ("/health", Shows, get(health)),
    ]
}

/// The routes of the control API that make something go wrong, below `/control/v1`: for a list of all faults that is complete.
#[must_use]
pub fn fault_routes() -> Vec<&'static str> {
    routes().into_iter().filter(|(_, purpose, _)| *purpose == Purpose::Hurts).map(|(path, ..)| path).collect()
}

/// All of it.
pub(crate) fn router(network: Network) -> Router {
    let routes = routes().into_iter().fold(Router::new(), |router, (path, _, methods)| router.route(path, methods));
    let routes = routes.layer(DefaultBodyLimit::max(MAX_BODY)).with_state(network);
    Router::new().nest("/control/v1", routes)
}

impl IntoResponse for NetworkError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::UnknownPhone | Self::UnknownDevice | Self::UnknownQr | Self::UnknownCode => StatusCode::NOT_FOUND,
            Self::InvalidPhone | Self::MalformedQr | Self::MalformedCode | Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::ExpiredQr | Self::ExpiredCode => StatusCode::GONE,
            Self::PairingFailed | Self::WrongCode | Self::NotConnected => StatusCode::CONFLICT,
            Self::PairingTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::MailboxFull => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// A JSON body whose refusal is JSON as well. An empty body counts as `{}`.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let refuse = |status: StatusCode, text: String| (status, Json(json!({ "error": text }))).into_response();
        if request.headers().get("content-length").is_some_and(|length| length == "0")
            || request.headers().get("content-type").is_none()
        {
            return serde_json::from_value(json!({}))
                .map(Self)
                .map_err(|_| refuse(StatusCode::BAD_REQUEST, "a JSON body is due".to_owned()));
        }
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(refuse(JsonRejection::status(&rejection), rejection.body_text())),
        }
    }
}

#[derive(Deserialize)]
struct ScanBody {
    qr: String,
}

#[derive(Deserialize)]
struct CodeBody {
    code: String,
}

#[derive(Deserialize)]
struct ReadBody {
    from: String,
    ids: Vec<String>,
}

#[derive(Deserialize)]
struct FaultBody {
    kind: Fault,
}

#[derive(Deserialize)]
struct MessagesQuery {
    from: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct ReceiptsQuery {
    id: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct DeviceQuery {
    jid: String,
}

#[derive(Deserialize)]
struct LimitQuery {
    limit: Option<usize>,
}

type Answer = Result<Response, NetworkError>;

fn answer(body: impl serde::Serialize) -> Response {
    Json(body).into_response()
}

async fn create_phone(State(network): State<Network>, Body(new): Body<NewPhone>) -> Answer {
    network.create_phone(new).await.map(|phone| (StatusCode::CREATED, Json(phone)).into_response())
}

async fn phones(State(network): State<Network>) -> Response {
    answer(network.phones().await)
}

async fn configure(
    State(network): State<Network>,
    Path(phone): Path<String>,
    Body(settings): Body<PhoneSettings>,
) -> Answer {
    network.configure(&phone, settings).await.map(answer)
}

async fn scan(State(network): State<Network>, Path(phone): Path<String>, Body(body): Body<ScanBody>) -> Answer {
    network.scan(&phone, &body.qr).await.map(answer)
}

async fn enter_code(State(network): State<Network>, Path(phone): Path<String>, Body(body): Body<CodeBody>) -> Answer {
    network.enter_code(&phone, &body.code).await.map(answer)
}

async fn scan_with_passkey(
    State(network): State<Network>,
    Path(phone): Path<String>,
    Body(order): Body<PasskeyScan>,
) -> Answer {
    network.scan_with_passkey(&phone, &order).await.map(answer)
}

async fn write(State(network): State<Network>, Path(phone): Path<String>, Body(order): Body<TextOrder>) -> Answer {
    network.write(&phone, order).await.map(|ids| answer(json!({ "ids": ids })))
}

async fn react(State(network): State<Network>, Path(phone): Path<String>, Body(order): Body<ReactionOrder>) -> Answer {
    network.react(&phone, order).await.map(|id| answer(json!({ "id": id })))
}

async fn messages(
    State(network): State<Network>,
    Path(phone): Path<String>,
    Query(query): Query<MessagesQuery>,
) -> Answer {
    network.messages(&phone, query.from.as_deref(), query.limit).await.map(answer)
}

async fn receipts(
    State(network): State<Network>,
    Path(phone): Path<String>,
    Query(query): Query<ReceiptsQuery>,
) -> Answer {
    network.receipts(&phone, query.id.as_deref(), query.limit).await.map(answer)
}

async fn read(State(network): State<Network>, Path(phone): Path<String>, Body(body): Body<ReadBody>) -> Answer {
    network.read(&phone, &body.from, &body.ids).await.map(|()| StatusCode::NO_CONTENT.into_response())
}

async fn unlink(State(network): State<Network>, Path((phone, device)): Path<(String, u16)>) -> Answer {
    network.unlink(&phone, device).await.map(|()| StatusCode::NO_CONTENT.into_response())
}

async fn accepted(State(network): State<Network>, Query(query): Query<AcceptedQuery>) -> Response {
    answer(network.accepted(&query).await)
}

async fn accepted_summary(State(network): State<Network>) -> Response {
    answer(network.accepted_summary().await)
}

async fn unacknowledged(State(network): State<Network>, Query(query): Query<DeviceQuery>) -> Answer {
    network.unacknowledged(&query.jid).await.map(|count| answer(json!({ "count": count })))
}

async fn fault(State(network): State<Network>, Path(jid): Path<String>, Body(body): Body<FaultBody>) -> Answer {
    network.fault(&jid, body.kind).await.map(|()| StatusCode::NO_CONTENT.into_response())
}

fn done(outcome: Result<(), NetworkError>) -> Answer {
    outcome.map(|()| StatusCode::NO_CONTENT.into_response())
}

async fn refuse_logins(
    State(network): State<Network>,
    Path(jid): Path<String>,
    Body(order): Body<LoginFailures>,
) -> Answer {
    done(network.refuse_logins(&jid, Some(order)).await)
}

async fn allow_logins(State(network): State<Network>, Path(jid): Path<String>) -> Answer {
    done(network.refuse_logins(&jid, None).await)
}

async fn refuse_messages(State(network): State<Network>, Path(jid): Path<String>, Body(order): Body<Nacks>) -> Answer {
    done(network.refuse_messages(&jid, Some(order)).await)
}

async fn allow_messages(State(network): State<Network>, Path(jid): Path<String>) -> Answer {
    done(network.refuse_messages(&jid, None).await)
}

async fn garble(State(network): State<Network>, Path(jid): Path<String>, Body(order): Body<Garble>) -> Answer {
    done(network.garble(&jid, order).await)
}

async fn plan_faults(State(network): State<Network>, Body(order): Body<FaultPlan>) -> Answer {
    network.plan_faults(Some(order)).await.map(answer)
}

async fn end_plan(State(network): State<Network>) -> Answer {
    network.plan_faults(None).await.map(answer)
}

async fn planned_faults(State(network): State<Network>) -> Response {
    let planned = network.planned_faults().await;
    answer(planned.map(|(plan, counts)| json!({ "plan": plan, "counts": counts })))
}

async fn rotate_static_key(State(network): State<Network>) -> Answer {
    done(network.rotate_static_key().await)
}

async fn connections(State(network): State<Network>) -> Response {
    answer(network.connections().await)
}

async fn ended(State(network): State<Network>, Query(query): Query<LimitQuery>) -> Response {
    answer(network.ended(query.limit).await)
}

async fn root(State(network): State<Network>) -> Json<Value> {
    Json(json!({ "public_key": BASE64_STANDARD.encode(network.root_public_key()) }))
}

async fn health(State(network): State<Network>) -> Response {
    answer(network.health().await)
}
