//! The programs under measurement, as processes of their own on free ports in a temporary folder. They end with this value.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use sea_orm::{ConnectionTrait, Database};
use serde_json::{Value, json};
use standalone::tour::{
    api::{Api, text},
    network::Network,
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{Common, Engine, gateway::Gateway};

/// How long a program may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        command.spawn().map(Self).context("a program does not start")
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits.
    fn stop(&mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid())?).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Our two planes.
pub struct Ours {
    pub gateway: Gateway,
    _control_plane: Process,
    worker: Process,
    worker_api: String,
    settings: BTreeMap<&'static str, String>,
    folder: TempDir,
}

/// A gateway on Baileys.
pub struct Peer {
    pub gateway: Gateway,
    _process: Process,
}

/// A fresh database of the engine.
pub async fn database(engine: Engine, folder: &Path, name: &str) -> anyhow::Result<String> {
    match engine {
        Engine::Sqlite => Ok(format!("sqlite://{}?mode=rwc", folder.join(name).display())),
        Engine::Postgres => {
            let server =
                std::env::var("TEST_POSTGRES_URL").context("TEST_POSTGRES_URL: use scripts/postgres with …")?;
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("bench_{}_{}_{number}", name.replace('-', "_"), std::process::id());
            let connection = Database::connect(shared::pool::options(&server)).await?;
            connection.execute_unprepared(&format!("DROP DATABASE IF EXISTS {name}")).await?;
            connection.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
            connection.close().await?;
            let (base, _) = server.rsplit_once('/').context("TEST_POSTGRES_URL")?;
            Ok(format!("{base}/{name}"))
        }
    }
}

impl Ours {
    pub async fn start(common: &Common, network: &Network, webhook: Option<&str>) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("bench-")?;
        let (public, internal, worker_api) = (free_address()?, free_address()?, free_address()?);
        let port = webhook.and_then(|url| url.rsplit(':').next()?.split('/').next()).unwrap_or("8080").to_owned();
        let settings = BTreeMap::from([
            ("DATABASE_URL", database(common.database, folder.path(), "control-plane").await?),
            ("DATA_PLANE_DATABASE_URL", database(common.database, folder.path(), "store").await?),
            ("MASTER_KEY", shared::seal::DataKey::generate().to_base64()),
            ("LISTEN", public.clone()),
            ("INTERNAL_LISTEN", internal.clone()),
            ("WORKER_JOIN_TOKEN", "a-join-token-for-benches-only".to_owned()),
            ("OUTBOUND_ALLOW_CIDRS", "127.0.0.0/8".to_owned()),
            ("OUTBOUND_ALLOW_PORTS", port),
            ("OBJECT_STORE_URL", format!("file://{}", folder.path().join("objects").display())),
            ("WORKER_ID", "bench-1".to_owned()),
            ("WORKER_LISTEN", worker_api.clone()),
            ("WORKER_KEY_FILE", folder.path().join("worker.key").display().to_string()),
            ("WORKER_CAPACITY", "20000".to_owned()),
            ("LOGIN_RATE", common.login_rate.to_string()),
            ("CONTROL_PLANE_URL", format!("http://{internal}")),
            ("WHATSAPP_WS_URL", network.ws_url().to_owned()),
            // People sign up once here, and nothing else of theirs is measured.
            ("RATE_LIMIT_AUTH", "off".to_owned()),
            ("RATE_LIMIT_KEY", "off".to_owned()),
            ("RATE_LIMIT_TENANT", "off".to_owned()),
            ("RATE_LIMIT_ADDRESS", "off".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
        ]);
        let control_plane = spawn("control-plane", &settings, &folder)?;
        let base = format!("http://{public}");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let deadline = Instant::now() + PATIENCE;
        while !http.get(format!("{base}/readyz")).send().await.is_ok_and(|answer| answer.status().is_success()) {
            anyhow::ensure!(Instant::now() < deadline, "the control plane isn't ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let worker = spawn("data-plane-sandbox", &settings, &folder)?;
        let nobody = Api::new(&base)?;
        let person = json!({
            "email": "bench@example.com", "password": "a long enough password", "name": "B", "tenant_name": "B",
        });
        let owner = nobody.with(text(&nobody.post("auth/signup", person).await?, "/access_token")?);
        let scopes = ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"];
        let key = owner.post("api-keys", json!({ "name": "b", "network": "sandbox", "scopes": scopes })).await?;
        let key = text(&key, "/key")?;
        if let Some(url) = webhook {
            nobody
                .with(key.clone())
                .post("webhooks", json!({ "url": url, "event_types": ["message.received"] }))
                .await?;
        }
        let gateway = Gateway::new("Switchboard", &base, Some(key), worker.pid())?;
        Ok(Self { gateway, _control_plane: control_plane, worker, worker_api, settings, folder })
    }

    /// Stops the worker as a deployment does, starts it again, and waits until `sessions` are connected. Answers the
    /// seconds from the new process's start.
    pub async fn restart_worker(&mut self, sessions: usize) -> anyhow::Result<f64> {
        self.worker.stop()?;
        let began = Instant::now();
        self.worker = spawn("data-plane-sandbox", &self.settings, &self.folder)?;
        self.gateway.worker = self.worker.pid();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let wanted = format!("data_plane_sessions_connected {sessions}");
        let metrics = format!("http://{}/metrics", self.worker_api);
        loop {
            let answer = match http.get(&metrics).send().await {
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(_) => String::new(),
            };
            if answer.lines().any(|line| line == wanted) {
                return Ok(began.elapsed().as_secs_f64());
            }
            anyhow::ensure!(began.elapsed() < 5 * PATIENCE, "the sessions did not come back:\n{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Peer {
    /// `None` if it is left out, or isn't installed (which is said).
    pub async fn start(common: &Common, network: &Network, webhook: Option<&str>) -> anyhow::Result<Option<Self>> {
        if common.no_peer {
            return Ok(None);
        }
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/baileys");
        if !folder.join("node_modules").is_dir() {
            eprintln!("Baileys is not installed (npm ci --prefix bench/peers/baileys): measuring without it");
            return Ok(None);
        }
        let mut command = Command::new("node");
        command
            .arg("server.js")
            .current_dir(folder)
            .env("WHATSAPP_WS_URL", network.ws_url())
            .env("WHATSAPP_ROOT_KEY", network.root_key().await?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(url) = webhook {
            command.env("WEBHOOK_URL", url);
        }
        let mut child = command.spawn().context("node does not start")?;
        let Some(stdout) = child.stdout.take() else { bail!("node has no output") };
        let process = Process(child);
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        // What libsignal prints has to go somewhere, or the process ends.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let said: Value = serde_json::from_str(&line).context("the Baileys gateway did not say its address")?;
        let gateway = Gateway::new("Baileys + Express", &text(&said, "/url")?, None, process.pid())?;
        Ok(Some(Self { gateway, _process: process }))
    }
}

fn spawn(name: &str, settings: &BTreeMap<&str, String>, folder: &TempDir) -> anyhow::Result<Process> {
    let log = OpenOptions::new().create(true).append(true).open(folder.path().join(format!("{name}.log")))?;
    let child = Command::new(beside(name)?)
        .env_clear()
        .envs(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .spawn()
        .with_context(|| format!("{name} does not start"))?;
    Ok(Process(child))
}

/// A program that was built beside this one.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.is_file(), "there is no {name} beside this program: make bench-build builds it");
    Ok(path)
}

pub fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
