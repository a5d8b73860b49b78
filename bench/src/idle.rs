//! P1: what an idle, connected session takes.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use standalone::tour::network::Network;

use crate::{
    Common,
    gateway::Gateway,
    memory,
    report::{Report, exponent},
    system::{Ours, Peer},
};

#[derive(Debug, Args)]
pub struct Options {
    /// Sessions, rising.
    #[arg(long, value_delimiter = ',', default_value = "100,300,1000")]
    sizes: Vec<usize>,
    /// Seconds to let them rest before each look.
    #[arg(long, default_value_t = 20)]
    settle: u64,
}

pub async fn run(common: &Common, options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::new(
        format!("Idle sessions, {}", common.database.name()),
        json!({ "LOGIN_RATE": common.login_rate, "settle_s": options.settle, "measure": "PSS of the worker process" }),
        &["gateway", "sessions", "worker MiB", "KiB a session since the size before", "CPU s in 20 s", "linked in s"],
    );
    let network = Network::start().await?;
    let mut ours = Ours::start(common, &network, None).await?;
    let per_ours = measure(&mut report, &ours.gateway, &network, "15551", options).await?;
    if let Some(sessions) = options.sizes.last() {
        let back = ours.restart_worker(*sessions).await?;
        tokio::time::sleep(Duration::from_secs(options.settle)).await;
        report.note(format!(
            "Switchboard's worker after a restart with {sessions} sessions: all connected {back:.1} s after its start, {:.1} MiB.",
            memory::mib(memory::pss_kib(ours.gateway.worker)?)
        ));
    }
    drop(ours);
    if let Some(peer) = Peer::start(common, &network, None).await? {
        let per_peer = measure(&mut report, &peer.gateway, &network, "15552", options).await?;
        report.note(format!("Ratio of the slopes: {:.1}.", per_peer / per_ours));
    }
    network.stop().await?;
    Ok(report)
}

/// KiB a session, by the slope from the first to the last size.
async fn measure(
    report: &mut Report,
    gateway: &Gateway,
    network: &Network,
    prefix: &str,
    options: &Options,
) -> anyhow::Result<f64> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut linked = 0;
    for size in &options.sizes {
        let began = std::time::Instant::now();
        gateway.link(network, prefix, linked, size - linked).await?;
        let took = began.elapsed().as_secs_f64();
        linked = *size;
        tokio::time::sleep(Duration::from_secs(options.settle)).await;
        let before = memory::cpu_seconds(gateway.worker)?;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let cpu = memory::cpu_seconds(gateway.worker)? - before;
        let held = memory::pss_kib(gateway.worker)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (size, kib) = (linked as f64, held as f64);
        let since = points.last().map(|(before, held)| (kib - held) / (size - before));
        report.row(vec![
            gateway.name.into(),
            linked.into(),
            memory::mib(held).into(),
            since.map_or_else(|| "".into(), Into::into),
            cpu.into(),
            took.into(),
        ]);
        points.push((size, kib));
    }
    let (first, last) = (points[0], points[points.len() - 1]);
    let slope = (last.1 - first.1) / (last.0 - first.0);
    let growth = exponent(&points).map_or_else(String::new, |exponent| format!(", exponent {exponent:.2}"));
    report.note(format!("{}: {slope:.0} KiB a session from {} to {}{growth}.", gateway.name, first.0, last.0));
    Ok(slope)
}
