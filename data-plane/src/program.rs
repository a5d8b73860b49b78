//! What both programs of this crate do: set up the process, run a worker until told to stop.

use anyhow::Context;
use shared::{telemetry, wire::session::Network};
use url::Url;

use crate::{config::Settings, telemetry::install_metrics, worker::Worker};

/// Runs a worker that speaks to `network` until SIGTERM or SIGINT. `ws_url` replaces WhatsApp's address.
///
/// # Errors
/// If the worker can't start.
pub async fn run(settings: Settings, network: Network, ws_url: Option<Url>) -> anyhow::Result<()> {
    let (filter, format) = settings.logging();
    telemetry::init(filter, format)?;
    shared::tls::install_provider();
    let mut config = settings.into_config(network, ws_url)?;
    config.metrics = Some(install_metrics().context("no metrics")?);
    let asked_to_stop = shared::signals::asked_to_stop()?;
    let worker = Worker::start(config).await?;
    asked_to_stop.await;
    worker.shutdown().await;
    Ok(())
}
