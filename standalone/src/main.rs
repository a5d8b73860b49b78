//! Switchboard in one process: the control plane and two workers on one store, with embedded defaults.
//!
//! `standalone run` needs nothing but a folder to keep its data in. Built with the feature `sandbox` it speaks to a
//! simulated WhatsApp instead of the real one, and gains `demo` and `smoke`.

#![recursion_limit = "512"]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shared::telemetry::LogFormat;
use standalone::embedded;
#[cfg(feature = "sandbox")]
use standalone::tour;

#[derive(Parser)]
#[command(name = "standalone", version, about = "Switchboard in one process")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until interrupted (the default).
    Run,
    /// Start a simulated WhatsApp beside it, perform the tour, stay up.
    #[cfg(feature = "sandbox")]
    Demo,
    /// Perform the tour and exit: 0 if every step passed, else 1.
    #[cfg(feature = "sandbox")]
    Smoke,
}

// A session takes less of it, and a burst of logins leaves less behind, than with the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    shared::tls::install_provider();
    match obey(Cli::parse().command.unwrap_or(Command::Run)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn obey(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run => {
            log("info")?;
            embedded::run().await
        }
        #[cfg(feature = "sandbox")]
        Command::Demo => {
            log("warn")?;
            tour::demo().await
        }
        #[cfg(feature = "sandbox")]
        Command::Smoke => {
            log("warn")?;
            tour::smoke().await
        }
    }
}

/// Sets up logging at `LOG_LEVEL`, or at `default`.
fn log(default: &str) -> anyhow::Result<()> {
    let level = std::env::var("LOG_LEVEL").ok().filter(|level| !level.is_empty());
    shared::telemetry::init(level.as_deref().unwrap_or(default), LogFormat::Text)?;
    Ok(())
}
