//! P1b: what a session takes once it has spoken with many chats, and again after a rest.

use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use standalone::tour::network::Network;

use crate::{
    Common,
    gateway::Gateway,
    memory,
    report::Report,
    system::{Ours, Peer},
};

#[derive(Debug, Args)]
pub struct Options {
    /// Sessions, each on a gateway of its own run.
    #[arg(long, value_delimiter = ',', default_value = "20,50,100")]
    sizes: Vec<usize>,
    /// Chats of each session.
    #[arg(long, default_value_t = 50)]
    chats: usize,
    /// Seconds of rest before the second look.
    #[arg(long, default_value_t = 600)]
    rest: u64,
}

pub async fn run(common: &Common, options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::new(
        format!("Sessions with {} chats each, {}", options.chats, common.database.name()),
        json!({ "LOGIN_RATE": common.login_rate, "rest_s": options.rest, "measure": "PSS of the worker process" }),
        &[
            "gateway",
            "sessions",
            "MiB when linked",
            "MiB after the chats",
            "MiB after the rest",
            "KiB a session, chats",
            "after the rest",
        ],
    );
    let network = Network::start().await?;
    for number in 0..options.chats {
        network.new_phone(&friend(number), "Friend", None).await?;
    }
    for (at, size) in options.sizes.iter().enumerate() {
        let ours = Ours::start(common, &network, None).await?;
        measure(&mut report, &ours.gateway, &network, &format!("1556{at}"), *size, options).await?;
        drop(ours);
        if let Some(peer) = Peer::start(common, &network, None).await? {
            measure(&mut report, &peer.gateway, &network, &format!("1557{at}"), *size, options).await?;
        }
    }
    report.note("KiB a session: growth since they were linked, beside what `idle` counts.".into());
    network.stop().await?;
    Ok(report)
}

fn friend(number: usize) -> String {
    format!("1559{number:07}")
}

async fn measure(
    report: &mut Report,
    gateway: &Gateway,
    network: &Network,
    prefix: &str,
    size: usize,
    options: &Options,
) -> anyhow::Result<()> {
    let sessions = gateway.link(network, prefix, 0, size).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let linked = memory::pss_kib(gateway.worker)?;
    stream::iter(&sessions)
        .map(|session| async move {
            for number in 0..options.chats {
                gateway.send(session, &friend(number), "hello").await?;
            }
            Ok::<_, anyhow::Error>(())
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let spoken = memory::pss_kib(gateway.worker)?;
    tokio::time::sleep(Duration::from_secs(options.rest)).await;
    let rested = memory::pss_kib(gateway.worker)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = |kib: u64| (kib as f64 - linked as f64) / size as f64;
    report.row(vec![
        gateway.name.into(),
        size.into(),
        memory::mib(linked).into(),
        memory::mib(spoken).into(),
        memory::mib(rested).into(),
        each(spoken).into(),
        each(rested).into(),
    ]);
    Ok(())
}
