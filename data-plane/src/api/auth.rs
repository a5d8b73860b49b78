//! Only the control plane may give orders.

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse, Response},
};
use shared::identity::{CONTROL_PLANE, PeerClaims};

use super::{Api, problem::Refusal};

/// Lets requests through that carry a token of the control plane for this worker.
pub async fn control_plane_only(State(api): State<Api>, request: Request, next: Next) -> Response {
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    match token {
        Some(token) if is_good(&api, token).await => next.run(request).await,
        _ => Refusal::unauthorized().into_response(),
    }
}

async fn is_good(api: &Api, token: &str) -> bool {
    if api.node.upstream.keys().key_of(token).is_none()
        && let Err(error) = api.node.upstream.refresh_keys().await
    {
        tracing::warn!(%error, "the control plane's keys could not be asked");
    }
    let keys = api.node.upstream.keys();
    keys.key_of(token)
        .is_some_and(|key| key.verify::<PeerClaims>(token, CONTROL_PLANE, api.node.worker_id.as_str()).is_ok())
}
