//! P6: from a phone's message to the webhook endpoint.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use standalone::tour::network::Network;

use crate::{
    Common,
    gateway::Gateway,
    report::Report,
    send,
    system::{Ours, Peer},
};

#[derive(Debug, Args)]
pub struct Options {
    /// Sessions that the messages are spread over.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    sizes: Vec<usize>,
    /// Messages a second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// When each text arrived first.
type Arrivals = Arc<Mutex<HashMap<String, Instant>>>;

pub async fn run(common: &Common, options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::new(
        format!("Inbound messages until the webhook endpoint has them, {}", common.database.name()),
        json!({ "LOGIN_RATE": common.login_rate, "rate": options.rate, "seconds": options.seconds }),
        &["gateway", "sessions", "p50 ms", "p99 ms", "most ms", "written", "lost"],
    );
    let arrivals = Arrivals::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/webhook", listener.local_addr()?);
    let router = Router::new().route("/webhook", post(arrived)).with_state(Arc::clone(&arrivals));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let network = Network::start().await?;
    for (at, size) in options.sizes.iter().enumerate() {
        let ours = Ours::start(common, &network, Some(&url)).await?;
        measure(&mut report, &ours.gateway, &network, &arrivals, &format!("1556{at}"), *size, options).await?;
        drop(ours);
        if let Some(peer) = Peer::start(common, &network, Some(&url)).await? {
            measure(&mut report, &peer.gateway, &network, &arrivals, &format!("1557{at}"), *size, options).await?;
        }
    }
    server.abort();
    network.stop().await?;
    Ok(report)
}

async fn arrived(State(arrivals): State<Arrivals>, Json(event): Json<Value>) -> StatusCode {
    if let (Some(text), Ok(mut arrivals)) = (event["data"]["text"]["body"].as_str(), arrivals.lock()) {
        arrivals.entry(text.to_owned()).or_insert_with(Instant::now);
    }
    StatusCode::NO_CONTENT
}

async fn measure(
    report: &mut Report,
    gateway: &Gateway,
    network: &Network,
    arrivals: &Arrivals,
    prefix: &str,
    size: usize,
    options: &Options,
) -> anyhow::Result<()> {
    const WRITER: &str = "15590000000";
    let sessions = gateway.link(network, prefix, 0, size).await?;
    network.new_phone(WRITER, "Writer", None).await?;
    let began = tokio::time::Instant::now();
    let mut written = HashMap::new();
    // Ten writings a second, spread over the sessions: one call to the simulator each.
    let each = (options.rate / 10).max(1);
    for tick in 0..options.seconds * 10 {
        tokio::time::sleep_until(began + Duration::from_millis(100) * u32::try_from(tick)?).await;
        let at = usize::try_from(tick)? % sessions.len();
        let words = format!("{prefix} {tick}");
        let now = Instant::now();
        network.write(WRITER, &sessions[at].phone, &words, each as usize, None).await?;
        written.extend((1..=each).map(|n| (format!("{words} #{n}"), now)));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let missing = |written: &HashMap<String, Instant>| {
        let arrivals = arrivals.lock().map_or(0, |held| written.keys().filter(|text| held.contains_key(*text)).count());
        written.len() - arrivals
    };
    while missing(&written) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let lost = missing(&written);
    let mut times = Histogram::<u64>::new_with_bounds(1, send::LONGEST, 3)?;
    if let Ok(mut held) = arrivals.lock() {
        for (text, at) in &written {
            if let Some(arrived) = held.remove(text) {
                times.saturating_record(u64::try_from((arrived - *at).as_micros())?);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
    let ms = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1_000.0;
    report.row(vec![
        gateway.name.into(),
        size.into(),
        ms(0.5).into(),
        ms(0.99).into(),
        ms(1.0).into(),
        written.len().into(),
        lost.into(),
    ]);
    Ok(())
}
