//! What Prometheus reads.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Buckets of durations, in seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Collects this process's figures from now on. Once is enough for however many servers it runs; if another recorder
/// was installed before, `/metrics` stays empty.
pub(crate) fn install() {
    let handle = RECORDER.get_or_init(|| match recorder() {
        Ok(handle) => Some(handle),
        Err(_) => {
            tracing::warn!("another metrics recorder is installed in this process: /metrics stays empty");
            None
        }
    });
    if handle.is_some() {
        crate::request_context::describe_metrics();
        crate::listener::describe_metrics();
        crate::jobs::describe_metrics();
        crate::webhooks::describe_metrics();
        crate::workers::describe_metrics();
        crate::sessions::describe_metrics();
        crate::messages::describe_metrics();
        crate::auth::describe_metrics();
        crate::mail::describe_metrics();
        crate::plans::describe_metrics();
        crate::limits::describe_metrics();
        crate::redis::describe_metrics();
        crate::keys::describe_metrics();
        crate::tenants::describe_metrics();
        crate::audit::describe_metrics();
        crate::events::describe_metrics();
        crate::usage::describe_metrics();
    }
}

fn recorder() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?.install_recorder()
}

/// The figures, in Prometheus' text format.
pub(super) fn render() -> String {
    let Some(Some(handle)) = RECORDER.get() else { return String::new() };
    handle.run_upkeep();
    handle.render()
}
