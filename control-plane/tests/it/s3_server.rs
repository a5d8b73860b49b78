//! Where a test's files lie: in a folder, or in a real S3 server, which a test of its own can kill.

use std::process::{Child, Command, Stdio};

use control_plane::config::{ObjectsConfig, Values};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::{address::reserved, fleet::until};

/// The only access key that the server knows.
pub const ACCESS_KEY: &str = "S3RVER";

/// Which object store a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Folder,
    S3,
}

impl Store {
    /// Settings of a place of its own there; nothing where the folder of the test is to be used. Nothing at all if there is no S3
    /// server here.
    pub fn settings(self) -> Option<Option<ObjectsConfig>> {
        match self {
            Self::Folder => Some(None),
            Self::S3 => variable("TEST_S3_ENDPOINT").map(|endpoint| Some(settings(&endpoint, ACCESS_KEY, "objects"))),
        }
    }
}

/// Settings for a bucket of a server.
pub fn settings(endpoint: &str, access_key: &str, bucket: &str) -> ObjectsConfig {
    let url = format!("s3://{bucket}/{}", uuid::Uuid::now_v7().simple());
    let set = [
        ("OBJECT_STORE_URL", url.as_str()),
        ("AWS_ENDPOINT", endpoint),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", access_key),
        ("AWS_SECRET_ACCESS_KEY", "S3RVER"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    ObjectsConfig::read(&Values::new(set.map(|(name, text)| (name.to_owned(), text.to_owned())))).unwrap()
}

fn variable(name: &str) -> Option<String> {
    let found = std::env::var(name).ok().filter(|text| !text.is_empty());
    if found.is_none() {
        assert!(std::env::var("CI_REQUIRE_S3").as_deref() != Ok("1"), "CI_REQUIRE_S3=1, but {name} is not set");
        eprintln!("\n*** SKIPPED: no {name}, so nothing is tested with S3 here ***\n");
    }
    found
}

/// A server of a test's own, gone with the test.
pub struct S3Server {
    program: String,
    folder: TempDir,
    port: u16,
    _reserved: TcpSocket,
    child: Child,
}

impl S3Server {
    /// Starts one; nothing if there is none here.
    pub async fn start() -> Option<Self> {
        let program = variable("TEST_S3_SERVER")?;
        let (port, reserved) = reserved();
        let folder = tempfile::tempdir().unwrap();
        let child = spawn(&program, &folder, port);
        let server = Self { program, folder, port, _reserved: reserved, child };
        server.answers().await;
        Some(server)
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, with what it held.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.program, &self.folder, self.port);
        self.answers().await;
    }

    /// How many bytes lie in its folder.
    pub fn holds(&self) -> u64 {
        fn below(folder: &std::path::Path) -> u64 {
            let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
            entries
                .filter_map(Result::ok)
                .map(|entry| match entry.metadata() {
                    Ok(meta) if meta.is_dir() => below(&entry.path()),
                    Ok(meta) => meta.len(),
                    Err(_) => 0,
                })
                .sum()
        }
        below(self.folder.path())
    }

    async fn answers(&self) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        until("S3 answers", async || http.get(self.endpoint()).send().await.ok()).await;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // It may be dead already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(program: &str, folder: &TempDir, port: u16) -> Child {
    Command::new(program)
        .args(["--silent", "--no-vhost-buckets", "--address", "127.0.0.1", "--port", &port.to_string(), "--directory"])
        .arg(folder.path())
        .args(["--configure-bucket", "objects"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
