//! The worker's HTTP API, for the control plane and for whoever watches the process.
//!
//! `/v1` is signed: every request but `GET /v1/identity` carries a token of the control plane for this very worker.
//! Errors are problem documents. Every reply about a session carries the generation it acted under.

mod auth;
mod health;
mod problem;
mod sessions;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    middleware,
    routing::{get, post, put},
};
use metrics_exporter_prometheus::PrometheusHandle;
use shared::wire::{PROTOCOL_VERSION, worker::WorkerIdentity};
use tower_http::catch_panic::CatchPanicLayer;

use self::problem::Refusal;
use crate::{node::Node, supervisor::Supervisor};

/// The largest request body, in bytes. The control plane ends a batch at 2 MiB of JSON and one message.
const MAX_BODY: usize = 4 << 20;

/// What the API works with.
#[derive(Clone)]
pub struct Api {
    /// This worker.
    pub node: Arc<Node>,
    /// Its sessions.
    pub supervisor: Arc<Supervisor>,
    /// The process's metrics.
    pub metrics: Option<PrometheusHandle>,
}

/// The API's routes.
pub fn router(api: Api) -> Router {
    let signed = Router::new()
        .route("/v1/sessions", get(sessions::list))
        .route("/v1/sessions/{id}", put(sessions::put).get(sessions::show))
        .route("/v1/sessions/{id}/send", post(sessions::send))
        .route("/v1/sessions/{id}/pairing-code", post(sessions::pairing_code))
        .route("/v1/sessions/{id}/passkey", post(sessions::answer_passkey))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::control_plane_only));
    Router::new()
        .merge(signed)
        .route("/v1/identity", get(identity))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .fallback(|| async { Refusal::not_found() })
        .method_not_allowed_fallback(|| async { Refusal::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(|_| Refusal::internal()))
        .with_state(api)
}

/// Who this is: lets the control plane prove, before it believes a join, that the endpoint leads here.
async fn identity(State(api): State<Api>) -> Json<WorkerIdentity> {
    Json(WorkerIdentity {
        worker_id: api.node.worker_id.clone(),
        incarnation: api.node.upstream.incarnation().clone(),
        protocol_version: PROTOCOL_VERSION,
    })
}
