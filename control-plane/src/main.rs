//! The binary `control-plane`.

use clap::Parser;
use control_plane::cli::Cli;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    shared::tls::install_provider();
    Cli::parse().run().await
}
