//! The simulator as a process: prints one JSON line with its addresses when it is ready, stops on SIGTERM or ctrl-c.

#![recursion_limit = "512"]

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};
use simulator::{Config, Simulator};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A WhatsApp network on loopback, for tests and demonstrations.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where clients connect (WebSocket); port 0 picks a free one.
    #[arg(long, env = "SIMULATOR_LISTEN", default_value = "127.0.0.1:8765")]
    listen: SocketAddr,
    /// Where the control API listens (HTTP, no authentication: keep it on loopback); port 0 picks a free one.
    #[arg(long, env = "SIMULATOR_CONTROL", default_value = "127.0.0.1:8766")]
    control: SocketAddr,
    /// What to log, for this program only: the protocol crates name addresses in theirs.
    #[arg(long, env = "SIMULATOR_LOG", default_value = "info")]
    log: tracing_subscriber::filter::LevelFilter,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::new(format!("off,simulator={}", arguments.log));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    allow_many_sockets();
    let mut terminate = signal(SignalKind::terminate()).context("the SIGTERM handler")?;
    let simulator =
        Simulator::start(Config { listen: arguments.listen, control: arguments.control, ..Config::default() }).await?;
    println!("{}", serde_json::json!({ "ws_url": simulator.ws_url(), "control_url": simulator.control_url() }));
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("the ctrl-c handler")?,
        _ = terminate.recv() => {}
    }
    simulator.shutdown().await;
    Ok(())
}

/// Each client takes a file descriptor: as many as the system lets this process have.
fn allow_many_sockets() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
