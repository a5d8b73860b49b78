//! The data plane's worker for the simulator. Built with the feature `sandbox`, which checks nobody's certificate: it
//! refuses sessions of the real WhatsApp.
#![recursion_limit = "512"]

use clap::Parser;
use data_plane::{config::Settings, program};
use shared::wire::session::Network;
use url::Url;

// A session takes less of it, and a burst of logins leaves less behind, than with the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs sandbox sessions against the simulator.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// The simulator's WebSocket address.
    #[arg(long, env = "WHATSAPP_WS_URL")]
    ws_url: Url,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    program::run(cli.settings, Network::Sandbox, Some(cli.ws_url)).await
}
