//! Benches: our programs as an operator runs them, and a gateway on Baileys beside them, against the same simulator in the
//! same run. Each prints a table, and writes JSON with `--json`. `docs/performance.md` says what was measured with them.
#![recursion_limit = "512"]

mod chats;
mod enqueue;
mod gateway;
mod idle;
mod memory;
mod read;
mod receive;
mod report;
mod send;
mod system;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures Switchboard.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every bench takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Which database the planes use. PostgreSQL is the server at `TEST_POSTGRES_URL` (`scripts/postgres with …`).
    #[arg(long, global = true, value_enum, default_value_t = Engine::Sqlite)]
    database: Engine,
    /// Where to write the result as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Leave the Baileys gateway out.
    #[arg(long, global = true)]
    no_peer: bool,
    /// Logins a second of a worker (`LOGIN_RATE`): a valve that production keeps at 25.
    #[arg(long, global = true, default_value_t = 1_000)]
    login_rate: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite (WAL, synchronous=FULL)",
            Self::Postgres => "PostgreSQL (synchronous_commit=on)",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Memory and CPU of idle, connected sessions.
    Idle(idle::Options),
    /// Memory after each session has spoken with many chats, and after a rest.
    Chats(chats::Options),
    /// Sends until WhatsApp's acknowledgement: latency at a rate, and how many a second at most.
    Send(send::Options),
    /// Inbound messages until the webhook endpoint has them: latency at a rate.
    Receive(receive::Options),
    /// Transactional enqueues of jobs a second, at several sizes of the backlog.
    Enqueue(enqueue::Options),
    /// Authenticated reads a second, beside a bare route with the same query. With Redis: `scripts/redis with …`.
    Read(read::Options),
    #[command(hide = true)]
    BareRead(read::BareOptions),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    shared::tls::install_provider();
    let Cli { command, common } = Cli::parse();
    let report = match &command {
        Command::Idle(options) => idle::run(&common, options).await?,
        Command::Chats(options) => chats::run(&common, options).await?,
        Command::Send(options) => send::run(&common, options).await?,
        Command::Receive(options) => receive::run(&common, options).await?,
        Command::Enqueue(options) => enqueue::run(&common, options).await?,
        Command::Read(options) => read::run(&common, options).await?,
        Command::BareRead(options) => return read::bare(options).await,
    };
    report.print();
    if let Some(path) = &common.json {
        report.write(path)?;
    }
    Ok(())
}
