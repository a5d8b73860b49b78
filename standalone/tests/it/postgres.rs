//! Databases for tests: a fresh one on the server that `make test` started, or a whole server of a test's own.

use std::{ffi::OsStr, path::PathBuf, process::Command};

use sea_orm::{ConnectionTrait, Database};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::stack::reserved;

/// Which engine a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// Makes a fresh database on `TEST_POSTGRES_URL`. `None` if there is no server, after saying so; never silently.
pub async fn fresh_database() -> Option<String> {
    let Ok(server) = std::env::var("TEST_POSTGRES_URL") else {
        assert!(std::env::var("CI_REQUIRE_POSTGRES").is_err(), "PostgreSQL is required and TEST_POSTGRES_URL is unset");
        eprintln!("SKIPPED: no PostgreSQL (TEST_POSTGRES_URL is unset; `make test` starts one)");
        return None;
    };
    Some(database_on(&server).await)
}

/// The Redis that goes with PostgreSQL: an installation of its own in the server that `make test` started, since its names come from
/// the master key. `None` if there is no server, after saying so; never silently.
pub fn redis() -> Option<String> {
    let url = std::env::var("TEST_REDIS_URL").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        assert!(std::env::var("CI_REQUIRE_REDIS").is_err(), "Redis is required and TEST_REDIS_URL is unset");
        eprintln!("PostgreSQL goes WITHOUT REDIS here (TEST_REDIS_URL is unset; `make test` starts one)");
    }
    url
}

/// Makes a fresh database on a server.
pub async fn database_on(server: &str) -> String {
    let name = format!("t{}", uuid::Uuid::new_v4().simple());
    let connection = Database::connect(shared::pool::options(server)).await.unwrap();
    connection.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    connection.close().await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

/// Drops a database that [`fresh_database`] made; others go with their files or their server.
pub fn drop_database(url: &str) {
    let Ok(server) = std::env::var("TEST_POSTGRES_URL") else { return };
    let Some((base, name)) = url.rsplit_once('/') else { return };
    if server.rsplit_once('/').map(|(base, _)| base) != Some(base) {
        return;
    }
    let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
    // A runtime of its own, since the test's may be the one that is being left.
    let dropped = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connection = Database::connect(shared::pool::options(&server)).await?;
            connection.execute_unprepared(&statement).await?;
            connection.close().await?;
            anyhow::Ok(())
        })
    })
    .join();
    if !matches!(dropped, Ok(Ok(()))) {
        eprintln!("a test database was left behind");
    }
}

/// A server of a test's own, to be stopped and started under its users' feet.
pub struct Server {
    dir: TempDir,
    url: String,
    _port: TcpSocket,
}

impl Server {
    /// `None` where PostgreSQL is not to be had.
    pub fn start() -> Option<Self> {
        if std::env::var("TEST_POSTGRES_URL").is_err() {
            assert!(std::env::var("CI_REQUIRE_POSTGRES").is_err(), "PostgreSQL is required and not here");
            eprintln!("SKIPPED: no PostgreSQL (TEST_POSTGRES_URL is unset; `make test` starts one)");
            return None;
        }
        let dir = TempDir::with_prefix("switchboard-pg-").unwrap();
        // The server runs as another user, who has to be let in.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (address, port) = reserved();
        let url = run(&["start".as_ref(), dir.path().as_os_str(), address.port().to_string().as_ref()]);
        Some(Self { dir, url, _port: port })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// As a machine that loses power would: without saying goodbye to anybody.
    pub fn stop(&self) {
        script().args(["stop"]).arg(self.dir.path()).arg("immediate").status().unwrap();
    }

    pub fn start_again(&self) {
        assert_eq!(run(&["start".as_ref(), self.dir.path().as_os_str()]), self.url);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(arguments: &[&OsStr]) -> String {
    let output = script().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn script() -> Command {
    Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres"))
}
