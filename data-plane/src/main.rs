//! The data plane's worker for the real WhatsApp.
#![recursion_limit = "512"]

use clap::Parser;
use data_plane::{
    config::{GROUPS, Settings},
    program,
};
use shared::wire::session::Network;

// A session takes less of it, and a burst of logins leaves less behind, than with the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs WhatsApp sessions. Settings: docs/configuration.md.
#[derive(Parser)]
#[command(version, about)]
struct Cli {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Cli::parse();
    anyhow::ensure!(
        !cfg!(feature = "sandbox"),
        "this build checks nobody's certificate and must not speak to WhatsApp: build data-plane without the feature sandbox"
    );
    let (values, _written_at_the_end) = program::set_up(GROUPS)?;
    program::run(Settings::read(&values)?, Network::Whatsapp, None).await
}
