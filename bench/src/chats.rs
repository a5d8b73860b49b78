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
    /// Seconds of rest before the last look.
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
    // All rest at the same time, each in a process of its own.
    let (mut ours, mut peers, mut looks) = (Vec::new(), Vec::new(), Vec::new());
    for (at, size) in options.sizes.iter().enumerate() {
        let gateway = Ours::start(common, &network, None).await?;
        looks.push(speak(&gateway.gateway, &network, &format!("1556{at}"), *size, options.chats).await?);
        ours.push(gateway);
        if let Some(peer) = Peer::start(common, &network, None).await? {
            looks.push(speak(&peer.gateway, &network, &format!("1557{at}"), *size, options.chats).await?);
            peers.push(peer);
        }
    }
    tokio::time::sleep(Duration::from_secs(options.rest)).await;
    for look in looks {
        let rested = memory::pss_kib(look.worker)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = |kib: u64| (kib as f64 - look.linked as f64) / look.sessions as f64;
        report.row(vec![
            look.gateway.into(),
            look.sessions.into(),
            memory::mib(look.linked).into(),
            memory::mib(look.spoken).into(),
            memory::mib(rested).into(),
            each(look.spoken).into(),
            each(rested).into(),
        ]);
    }
    report.note("KiB a session: growth since they were linked, beside what `idle` counts.".into());
    network.stop().await?;
    Ok(report)
}

fn friend(number: usize) -> String {
    format!("1559{number:07}")
}

/// What a worker took, in KiB.
struct Look {
    gateway: &'static str,
    worker: u32,
    sessions: usize,
    linked: u64,
    spoken: u64,
}

/// Links sessions, and lets each speak with all friends.
async fn speak(gateway: &Gateway, network: &Network, prefix: &str, size: usize, chats: usize) -> anyhow::Result<Look> {
    let sessions = gateway.link(network, prefix, 0, size).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let linked = memory::pss_kib(gateway.worker)?;
    stream::iter(&sessions)
        .map(|session| async move {
            for number in 0..chats {
                gateway.send(session, &friend(number), "hello").await?;
            }
            Ok::<_, anyhow::Error>(())
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let spoken = memory::pss_kib(gateway.worker)?;
    Ok(Look { gateway: gateway.name, worker: gateway.worker, sessions: size, linked, spoken })
}
