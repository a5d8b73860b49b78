//! How the process is.

use std::sync::atomic::Ordering;

use axum::{extract::State, http::header, response::IntoResponse};

use super::{Api, problem::Refusal};

/// It answers.
pub async fn livez() -> &'static str {
    "ok"
}

/// It has its lease, and the control plane has told it what to run.
pub async fn readyz(State(api): State<Api>) -> Result<&'static str, Refusal> {
    let ready = api.node.valid_lease().is_some() && api.node.joined.load(Ordering::Relaxed);
    if ready { Ok("ok") } else { Err(Refusal::not_ready()) }
}

/// The process's metrics, as Prometheus reads them.
pub async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    let Some(recorder) = &api.metrics else { return Err(Refusal::no_metrics()) };
    let census = api.supervisor.census();
    metrics::gauge!("data_plane_sessions").set(census.sessions);
    metrics::gauge!("data_plane_sessions_connected").set(census.connected);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], recorder.render()))
}
