//! What both programs of this crate do: set up the process, run a worker until told to stop.

use anyhow::Context;
use rustix::process::{Resource, getrlimit, setrlimit};
use shared::{
    config::{Group, LogConfig, Values},
    telemetry::{self, WorkerGuard},
    wire::session::Network,
};
use url::Url;

use crate::{config::Settings, telemetry::install_metrics, worker::Worker};

/// What is set in this process's environment and file, for a program that knows these settings. Sets up logging. Keep the
/// guard until the process ends: dropping it writes the log lines that wait.
///
/// # Errors
/// With a sentence for the operator, which holds no value.
pub fn set_up(groups: &[Group]) -> anyhow::Result<(Values, Option<WorkerGuard>)> {
    let values = Values::of_process(groups)?;
    let guard = telemetry::init(&LogConfig::read(&values)?)?;
    Ok((values, guard))
}

/// Runs a worker that speaks to `network` until SIGTERM or SIGINT. `ws_url` replaces WhatsApp's address.
///
/// # Errors
/// If the worker can't start.
pub async fn run(settings: Settings, network: Network, ws_url: Option<Url>) -> anyhow::Result<()> {
    shared::tls::install_provider();
    allow_many_sockets(settings.capacity());
    let mut config = settings.into_config(network, ws_url)?;
    config.metrics = Some(install_metrics().context("no metrics")?);
    let asked_to_stop = shared::signals::asked_to_stop()?;
    let worker = Worker::start(config).await?;
    asked_to_stop.await;
    worker.shutdown().await;
    Ok(())
}

/// Each session takes a file descriptor: as many as the system lets this process have.
fn allow_many_sockets(capacity: u32) {
    /// What a worker needs besides: its database, the control plane, its own listener.
    const BESIDES: u64 = 256;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let files = getrlimit(Resource::Nofile).current;
    if files.is_some_and(|files| files < u64::from(capacity) + BESIDES) {
        tracing::warn!(
            files,
            capacity,
            "WORKER_CAPACITY is more than the limit of open files allows: raise it (ulimit -Hn)"
        );
    }
}
