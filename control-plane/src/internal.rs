//! The internal listener, `/internal/v1`: what workers may ask, and how they prove who they are.
//!
//! A call carries a token that the worker signed ([`shared::identity`]). It is checked with the key that is bound to
//! the worker's name, must name that worker as its issuer, and the run (`inc`) that joined last: 410 `worker-unknown`
//! for a name that isn't known, 409 `worker-superseded` for a run that has been replaced, 401 for anything else. Bodies
//! are bounded at 4 MiB, which the largest batch of outbox rows fits into. Besides, `/metrics` for whoever watches the installation.

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request},
    http::{header, request::Parts},
    routing::{get, post},
};
use sea_orm::EntityTrait;
use serde::{Deserialize, de::DeserializeOwned};
use shared::{
    identity::{CONTROL_PLANE, PeerClaims, PublicKey, claimed_issuer},
    ids::WorkerId,
};

use crate::{
    error::{ApiError, ApiResult, Kind, Refusal},
    health,
    messages::ingest,
    sessions::reports,
    state::App,
    workers::{entity as worker, join, routes},
};

/// The largest body that a worker may send, in bytes.
pub(crate) const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Everything under `/internal/v1`.
pub fn router(app: App) -> Router {
    let v1 = Router::new()
        .route("/workers", post(join::join_worker))
        .route("/workers/{id}/heartbeat", post(routes::heartbeat))
        .route("/workers/{id}/re-attach", post(routes::re_attach))
        .route("/workers/{id}/validate", post(routes::validate))
        .route("/workers/{id}/reports", post(reports::take_reports))
        .route("/events", post(ingest::take_events))
        .route("/jwks", get(routes::jwks));
    Router::new()
        .nest("/internal/v1", v1)
        .route("/metrics", get(health::figures))
        .fallback(|| async { Refusal::from(Kind::NotFound) })
        .method_not_allowed_fallback(|| async { Refusal::from(Kind::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(app)
}

/// A worker that has proved who it is. Where the path names a worker, it is this one.
#[derive(Debug, Clone)]
pub struct WorkerAuth(pub worker::Model);

#[derive(Deserialize)]
struct WorkerPath {
    id: Option<String>,
}

impl FromRequestParts<App> for WorkerAuth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let token = bearer(parts)?.to_owned();
        let id: WorkerId = claimed_issuer(&token).and_then(|iss| iss.parse().ok()).ok_or(Kind::Unauthenticated)?;
        if let Ok(Path(WorkerPath { id: Some(named) })) = Path::<WorkerPath>::from_request_parts(parts, app).await
            && named != id.as_str()
        {
            return Err(Kind::Unauthenticated.because("the token is another worker's").into());
        }
        let worker = worker::Entity::find_by_id(id.clone()).one(app.db.read()).await?.ok_or(Kind::WorkerUnknown)?;
        let key: PublicKey = serde_json::from_str(&worker.public_key)
            .map_err(|_| ApiError::Defect("a worker's stored public key can't be read"))?;
        let claims: PeerClaims = key.verify(&token, id.as_str(), CONTROL_PLANE).map_err(|_| Kind::Unauthenticated)?;
        if claims.inc.as_ref() != Some(&worker.incarnation) {
            return Err(Kind::WorkerSuperseded.into());
        }
        Ok(Self(worker))
    }
}

/// The bearer token of a request.
///
/// # Errors
/// `unauthenticated` without one.
pub(crate) fn bearer(parts: &Parts) -> ApiResult<&str> {
    parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| Kind::Unauthenticated.into())
}

/// A worker's JSON body. What can't be read is refused without repeating any of it.
#[derive(Debug)]
pub struct WireJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for WireJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, app)
            .await
            .map_err(|_| Kind::BodyTooLarge.because(format!("the limit is {BODY_LIMIT} bytes")))?;
        if serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_err() {
            return Err(Kind::MalformedJson.into());
        }
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|_| Kind::Validation.because("the body isn't of this call's type").into())
    }
}
