//! P4: from `POST /messages/send` to WhatsApp's acknowledgement.

use std::{sync::Arc, time::Duration};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;
use standalone::tour::network::Network;
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use crate::{
    Common,
    gateway::{Gateway, Session},
    report::Report,
    system::{Ours, Peer},
};

#[derive(Debug, Args)]
pub struct Options {
    /// Sessions that the messages are spread over.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    sizes: Vec<usize>,
    /// Messages a second for the latency, come what may: a late answer delays no other.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Callers at once for the most that goes through.
    #[arg(long, default_value_t = 64)]
    callers: usize,
}

pub async fn run(common: &Common, options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::new(
        format!("Sends until WhatsApp's acknowledgement, {}", common.database.name()),
        json!({ "LOGIN_RATE": common.login_rate, "rate": options.rate, "seconds": options.seconds, "callers": options.callers }),
        &["gateway", "sessions", "p50 ms", "p99 ms", "most ms", "failed", "at most a second"],
    );
    let network = Network::start().await?;
    for (at, size) in options.sizes.iter().enumerate() {
        let ours = Ours::start(common, &network, None).await?;
        measure(&mut report, &ours.gateway, &network, &format!("1556{at}"), *size, options).await?;
        drop(ours);
        if let Some(peer) = Peer::start(common, &network, None).await? {
            measure(&mut report, &peer.gateway, &network, &format!("1557{at}"), *size, options).await?;
        }
    }
    network.stop().await?;
    Ok(report)
}

/// The longest time that is told apart, in microseconds.
pub const LONGEST: u64 = 60_000_000;

/// Each session writes to a friend of its own.
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
    let sessions: Arc<[Session]> = gateway.link(network, prefix, 0, size).await?.into();
    for (number, session) in sessions.iter().enumerate() {
        network.new_phone(&friend(number), "Friend", None).await?;
        // The first message of a chat also fetches keys.
        gateway.send(session, &friend(number), "warm").await?;
    }
    let (times, failed) = at_a_rate(gateway, &sessions, options).await?;
    let most = at_most(gateway, &sessions, options).await;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
    let ms = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1_000.0;
    report.row(vec![
        gateway.name.into(),
        size.into(),
        ms(0.5).into(),
        ms(0.99).into(),
        ms(1.0).into(),
        failed.into(),
        most.into(),
    ]);
    Ok(())
}

/// Times in microseconds from when a message was due, not from when it got its turn.
async fn at_a_rate(
    gateway: &Gateway,
    sessions: &Arc<[Session]>,
    options: &Options,
) -> anyhow::Result<(Histogram<u64>, u64)> {
    let times = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, LONGEST, 3)?));
    let mut calls = JoinSet::new();
    let began = Instant::now();
    let total = u64::from(options.rate) * options.seconds;
    for number in 0..total {
        let due = began + Duration::from_secs(1) * u32::try_from(number)? / options.rate;
        tokio::time::sleep_until(due).await;
        let (gateway, sessions, times) = (gateway.clone(), Arc::clone(sessions), Arc::clone(&times));
        calls.spawn(async move {
            let at = usize::try_from(number).unwrap_or(0) % sessions.len();
            let sent = gateway.send(&sessions[at], &friend(at), "measured").await.is_ok();
            if sent {
                let took = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                times.lock().await.saturating_record(took);
            }
            sent
        });
    }
    let failed = calls.join_all().await.into_iter().filter(|sent| !sent).count();
    let times = times.lock().await.clone();
    Ok((times, failed as u64))
}

/// Acknowledged messages a second, with callers that call again as soon as they have an answer.
async fn at_most(gateway: &Gateway, sessions: &Arc<[Session]>, options: &Options) -> f64 {
    let mut callers = JoinSet::new();
    let began = Instant::now();
    let end = began + Duration::from_secs(options.seconds);
    for caller in 0..options.callers {
        let (gateway, sessions) = (gateway.clone(), Arc::clone(sessions));
        callers.spawn(async move {
            let at = caller % sessions.len();
            let mut sent = 0_u32;
            while Instant::now() < end {
                sent += u32::from(gateway.send(&sessions[at], &friend(at), "as fast as it goes").await.is_ok());
            }
            sent
        });
    }
    let sent: u32 = callers.join_all().await.into_iter().sum();
    f64::from(sent) / began.elapsed().as_secs_f64()
}
