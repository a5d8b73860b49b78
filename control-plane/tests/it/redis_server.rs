//! A Redis of a test's own, which it can kill.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::{address::reserved, certificates::Authority, fleet::until};

/// Gone with the test.
pub struct RedisServer {
    program: String,
    folder: TempDir,
    port: u16,
    _reserved: TcpSocket,
    tls: Option<Vec<String>>,
    child: Child,
}

impl RedisServer {
    /// Starts one; nothing if there is no Redis here.
    pub async fn start() -> Option<Self> {
        Self::start_as(None).await
    }

    /// Starts one that speaks TLS only, with the authority's certificate `server`, and to its clients only; nothing if there is no
    /// Redis here.
    pub async fn start_with_tls(authority: &Authority) -> Option<Self> {
        let file = |name: &str| authority.file(name).to_str().unwrap().to_owned();
        let files =
            [("--tls-cert-file", "server.crt"), ("--tls-key-file", "server.key"), ("--tls-ca-cert-file", "ca.pem")];
        Self::start_as(Some(files.into_iter().flat_map(|(name, of)| [name.to_owned(), file(of)]).collect())).await
    }

    async fn start_as(tls: Option<Vec<String>>) -> Option<Self> {
        let Some(program) = std::env::var("TEST_REDIS_SERVER").ok().filter(|path| !path.is_empty()) else {
            assert!(
                std::env::var("CI_REQUIRE_REDIS").as_deref() != Ok("1"),
                "CI_REQUIRE_REDIS=1, but TEST_REDIS_SERVER is not set"
            );
            eprintln!("\n*** SKIPPED: no TEST_REDIS_SERVER, so nothing is tested with Redis here ***\n");
            return None;
        };
        let (port, reserved) = reserved();
        let folder = tempfile::tempdir().unwrap();
        let child = spawn(&program, &folder, port, tls.as_deref());
        let server = Self { program, folder, port, _reserved: reserved, tls, child };
        server.answers().await;
        Some(server)
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/0", self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has it hang, or go on.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Starts it again on the same port, empty.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.program, &self.folder, self.port, self.tls.as_deref());
        self.answers().await;
    }

    async fn answers(&self) {
        until("Redis answers", async || {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
            if self.tls.is_some() {
                return Some(());
            }
            stream.write_all(b"PING\r\n").await.ok()?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.ok()?;
            (&answer == b"+PONG").then_some(())
        })
        .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may be dead already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(program: &str, folder: &TempDir, port: u16, tls: Option<&[String]>) -> Child {
    let port = port.to_string();
    let listens =
        if tls.is_some() { ["--port", "0", "--tls-port", &port] } else { ["--port", &port, "--tls-port", "0"] };
    Command::new(program)
        .args(listens)
        .args(tls.into_iter().flatten())
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
