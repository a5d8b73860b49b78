//! Switchboard in one process: the control plane and two workers on one store, with embedded defaults.
//!
//! `standalone run` needs nothing but a folder to keep its data in. Built with the feature `sandbox` it speaks to a
//! simulated WhatsApp instead of the real one, and gains `demo` and `smoke`.

#![recursion_limit = "512"]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shared::{config::LogConfig, telemetry::WorkerGuard};
#[cfg(feature = "sandbox")]
use standalone::tour;
use standalone::{configuration, embedded};

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
    /// Print docs/configuration.md.
    ConfigurationDoc,
    /// Print .env.example.
    EnvExample,
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
            let _written_at_the_end = log("info")?;
            embedded::run().await
        }
        Command::ConfigurationDoc => {
            print!("{}", configuration::markdown());
            Ok(())
        }
        Command::EnvExample => {
            print!("{}", configuration::env_example());
            Ok(())
        }
        #[cfg(feature = "sandbox")]
        Command::Demo => {
            let _written_at_the_end = log("warn")?;
            tour::demo().await
        }
        #[cfg(feature = "sandbox")]
        Command::Smoke => {
            let _written_at_the_end = log("warn")?;
            tour::smoke().await
        }
    }
}

/// Sets up logging, at a level of one's own if none is set. Keep what is returned until the end.
fn log(level: &str) -> anyhow::Result<Option<WorkerGuard>> {
    let values = embedded::values()?.with_presets([("LOG_LEVEL", level.to_owned())]);
    Ok(shared::telemetry::init(&LogConfig::read(&values)?)?)
}
