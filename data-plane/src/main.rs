//! The data plane's worker for the real WhatsApp.
#![recursion_limit = "512"]

use clap::Parser;
use data_plane::{config::Settings, program};
use shared::wire::session::Network;

/// Runs WhatsApp sessions.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    program::run(Cli::parse().settings, Network::Whatsapp, None).await
}
