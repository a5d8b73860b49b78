//! The data plane's worker for the simulator. Built with the feature `sandbox`, which checks nobody's certificate: it
//! refuses sessions of the real WhatsApp.
#![recursion_limit = "512"]

use clap::Parser;
use data_plane::{
    config::{SANDBOX_GROUPS, SandboxSettings, Settings},
    program,
};
use shared::wire::session::Network;

// A session takes less of it, and a burst of logins leaves less behind, than with the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs sandbox sessions against the simulator. Settings: docs/configuration.md.
#[derive(Parser)]
#[command(version, about)]
struct Cli {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    Cli::parse();
    let (values, _written_at_the_end) = program::set_up(SANDBOX_GROUPS)?;
    let simulator = SandboxSettings::read(&values)?.ws_url;
    program::run(Settings::read(&values)?, Network::Sandbox, Some(simulator)).await
}
