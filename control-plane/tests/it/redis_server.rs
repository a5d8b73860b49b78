//! A Redis of a test's own, which it can kill.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fleet::until;

/// Gone with the test.
pub struct RedisServer {
    program: String,
    folder: TempDir,
    port: u16,
    child: Child,
}

impl RedisServer {
    /// Starts one; nothing if there is no Redis here.
    pub async fn start() -> Option<Self> {
        let Some(program) = std::env::var("TEST_REDIS_SERVER").ok().filter(|path| !path.is_empty()) else {
            assert!(
                std::env::var("CI_REQUIRE_REDIS").as_deref() != Ok("1"),
                "CI_REQUIRE_REDIS=1, but TEST_REDIS_SERVER is not set"
            );
            eprintln!("\n*** SKIPPED: no TEST_REDIS_SERVER, so nothing is tested with Redis here ***\n");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let child = spawn(&program, &folder, port);
        let server = Self { program, folder, port, child };
        server.answers().await;
        Some(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
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
        self.child = spawn(&self.program, &self.folder, self.port);
        self.answers().await;
    }

    async fn answers(&self) {
        until("Redis answers", async || {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
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

fn spawn(program: &str, folder: &TempDir, port: u16) -> Child {
    Command::new(program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
