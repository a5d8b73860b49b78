//! A control plane, a worker and a simulated WhatsApp as separate processes, with logs in files and ports that survive a
//! restart.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sea_orm::{ConnectionTrait, Database, Statement};
use serde_json::{Value, json};
use standalone::tour::{
    api::{Api, text},
    network::Network,
    receiver::Receiver,
};
use tempfile::TempDir;
use tokio::{
    net::TcpSocket,
    time::{Instant, sleep},
};

use crate::postgres::{Engine, database_on, drop_database, fresh_database, redis};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// The whole system. Everything ends with it.
pub struct Stack {
    pub network: Network,
    pub receiver: Receiver,
    /// Of a second tenant: each has a secret of its own.
    pub other_receiver: Receiver,
    pub dir: TempDir,
    settings: BTreeMap<&'static str, String>,
    log_level: String,
    control_plane: Option<Child>,
    other_control_plane: Option<Child>,
    worker: Option<Child>,
    other_worker: Option<Child>,
    starts: usize,
    public: String,
    reserved: Vec<TcpSocket>,
}

impl Stack {
    /// With PostgreSQL goes Redis. `None` if the engine isn't here (which was said aloud).
    pub async fn start(engine: Engine) -> Option<Self> {
        let (dir, control_plane_db, worker_db) = match engine {
            Engine::Sqlite => {
                let dir = TempDir::with_prefix("switchboard-").unwrap();
                let file = |name: &str| format!("sqlite://{}?mode=rwc", dir.path().join(name).display());
                let urls = (file("control-plane.db"), file("store.db"));
                (dir, urls.0, urls.1)
            }
            Engine::Postgres => {
                (TempDir::with_prefix("switchboard-").unwrap(), fresh_database().await?, fresh_database().await?)
            }
        };
        Some(Self::on(dir, control_plane_db, worker_db, "info").await)
    }

    /// On fresh databases of one server.
    pub async fn on_server(server: &str) -> Self {
        let dir = TempDir::with_prefix("switchboard-").unwrap();
        Self::on(dir, database_on(server).await, database_on(server).await, "info").await
    }

    pub async fn on(dir: TempDir, control_plane_db: String, worker_db: String, log_level: &str) -> Self {
        shared::tls::install_provider();
        let network = Network::start().await.unwrap();
        let (receiver, other_receiver) = (Receiver::start().await.unwrap(), Receiver::start().await.unwrap());
        let mut reserved = Vec::new();
        let [public, internal, worker] = std::array::from_fn(|_| reserve(&mut reserved));
        let master_key = shared::seal::DataKey::generate().to_base64();
        let redis = if control_plane_db.starts_with("postgres") { redis() } else { None };
        let mut settings = BTreeMap::from([
            ("DATABASE_URL", control_plane_db),
            ("DATA_PLANE_DATABASE_URL", worker_db),
            ("MASTER_KEY", master_key),
            ("OBJECT_STORE_URL", format!("file://{}", dir.path().join("objects").display())),
            ("LISTEN", public.clone()),
            ("INTERNAL_LISTEN", internal.clone()),
            ("WORKER_JOIN_TOKEN", "a-join-token-for-tests-only".to_owned()),
            ("OUTBOUND_ALLOW_CIDRS", format!("{}/32", receiver.address().ip())),
            ("OUTBOUND_ALLOW_PORTS", format!("{},{}", receiver.address().port(), other_receiver.address().port())),
            ("WORKER_ID", "worker-1".to_owned()),
            ("WORKER_LISTEN", worker),
            ("WORKER_KEY_FILE", dir.path().join("worker-1.key").display().to_string()),
            ("CONTROL_PLANE_URL", format!("http://{internal}")),
            ("WHATSAPP_WS_URL", network.ws_url().to_owned()),
        ]);
        settings.extend(redis.map(|url| ("REDIS_URL", url)));
        let mut stack = Self {
            network,
            receiver,
            other_receiver,
            dir,
            settings,
            log_level: log_level.to_owned(),
            control_plane: None,
            other_control_plane: None,
            worker: None,
            other_worker: None,
            starts: 0,
            public,
            reserved,
        };
        stack.start_control_plane(&[]).await;
        stack.start_worker();
        stack
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.public)
    }

    pub fn api(&self) -> Api {
        Api::new(&self.base()).unwrap()
    }

    /// Changes a setting of the processes that are started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.settings.insert(name, value.into());
    }

    /// A setting of the processes.
    pub fn setting(&self, name: &str) -> String {
        self.settings[name].clone()
    }

    /// Runs a command of the control plane, which must succeed, and gives what it printed.
    pub fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new(binary_path("control-plane"))
            .args(arguments)
            .env_clear()
            .envs(self.settings.iter())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the control plane and waits until it is ready.
    pub async fn start_control_plane(&mut self, extra: &[(&str, &str)]) {
        assert!(self.control_plane.is_none());
        self.control_plane = Some(self.spawn("control-plane", extra));
        ready(&self.base()).await;
    }

    /// A second replica of the control plane on the same database; gives where it is reached.
    pub async fn start_other_control_plane(&mut self) -> String {
        assert!(self.other_control_plane.is_none());
        let (public, internal) = (reserve(&mut self.reserved), reserve(&mut self.reserved));
        let own = [("LISTEN", public.as_str()), ("INTERNAL_LISTEN", internal.as_str())];
        self.other_control_plane = Some(self.spawn("control-plane", &own));
        let base = format!("http://{public}");
        ready(&base).await;
        base
    }

    pub fn start_worker(&mut self) {
        assert!(self.worker.is_none());
        self.worker = Some(self.spawn("data-plane-sandbox", &[]));
    }

    /// A second worker on the same store.
    pub fn start_other_worker(&mut self) {
        assert!(self.other_worker.is_none());
        let (listen, key) = (reserve(&mut self.reserved), self.dir.path().join("worker-2.key").display().to_string());
        let own = [("WORKER_ID", "worker-2"), ("WORKER_LISTEN", &listen), ("WORKER_KEY_FILE", &key)];
        self.other_worker = Some(self.spawn("data-plane-sandbox", &own));
    }

    /// Rows of the control plane's database that a query gives, as text.
    pub async fn query(&self, sql: &str) -> Vec<String> {
        query(&self.settings["DATABASE_URL"], sql).await
    }

    /// Rows of the workers' store that a query gives, as text.
    pub async fn query_store(&self, sql: &str) -> Vec<String> {
        query(&self.settings["DATA_PLANE_DATABASE_URL"], sql).await
    }

    /// What the first worker has counted, all labels together.
    pub async fn worker_figure(&self, name: &str) -> usize {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let answer = http.get(format!("http://{}/metrics", self.settings["WORKER_LISTEN"])).send().await.unwrap();
        let figures = answer.error_for_status().unwrap().text().await.unwrap();
        let values = figures.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
        values.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }

    /// `kill -9`.
    pub fn kill_worker(&mut self) {
        kill(self.worker.take());
    }

    /// `kill -9`.
    pub fn kill_control_plane(&mut self) {
        kill(self.control_plane.take());
    }

    /// Whether the control plane ended by itself (at a planted crash point); takes note of it if so.
    pub fn control_plane_died(&mut self) -> bool {
        let died = self.control_plane.as_mut().is_some_and(|process| process.try_wait().unwrap().is_some());
        if died {
            self.control_plane = None;
        }
        died
    }

    pub fn worker_is_running(&mut self) -> bool {
        self.worker.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    /// Everything that the processes have logged.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "log") {
                logs.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap()));
            }
        }
        logs
    }

    /// Secrets that the processes were started with.
    pub fn secrets(&self) -> Vec<String> {
        ["MASTER_KEY", "WORKER_JOIN_TOKEN"].iter().map(|name| self.settings[name].clone()).collect()
    }

    fn spawn(&mut self, binary: &str, extra: &[(&str, &str)]) -> Child {
        self.starts += 1;
        let log = File::create(self.dir.path().join(format!("{binary}-{}.log", self.starts))).unwrap();
        Command::new(binary_path(binary))
            .env_clear()
            .envs(self.settings.iter())
            .envs(extra.iter().copied())
            .env("LOG_LEVEL", &self.log_level)
            // Tests ask more often than programs do.
            .env("RATE_LIMIT_KEY", "off")
            .env("RATE_LIMIT_TENANT", "off")
            .env("RATE_LIMIT_ADDRESS", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap_or_else(|error| panic!("{binary}: {error} (make build-sandbox builds it)"))
    }

    /// A tenant with a key, a webhook endpoint if `webhook`, and a session connected as `phone`.
    pub async fn tenant(&self, phone: &str, webhook: bool) -> Tenant {
        self.tenant_at(phone, webhook.then_some(&self.receiver)).await
    }

    /// A new tenant's API key, with every scope; its webhook endpoint is this receiver.
    pub async fn owner(&self, name: &str, receiver: Option<&Receiver>) -> Api {
        let nobody = self.api();
        let email = format!("owner-{name}@example.com");
        let answer = nobody
            .post(
                "auth/signup",
                json!({ "email": email, "password": "a long enough password", "name": "O", "tenant_name": "T" }),
            )
            .await
            .unwrap();
        let owner = nobody.with(text(&answer, "/access_token").unwrap());
        let scopes = ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"];
        let answer =
            owner.post("api-keys", json!({ "name": "t", "network": "sandbox", "scopes": scopes })).await.unwrap();
        let api = nobody.with(text(&answer, "/key").unwrap());
        if let Some(receiver) = receiver {
            let answer = api.post("webhooks", json!({ "url": receiver.url(), "event_types": ["*"] })).await.unwrap();
            receiver.expect_secret(text(&answer, "/secret").unwrap());
        }
        api
    }

    /// A tenant whose webhook endpoint is this receiver.
    pub async fn tenant_at(&self, phone: &str, receiver: Option<&Receiver>) -> Tenant {
        let api = self.owner(phone, receiver).await;
        self.session(&api, phone.to_owned()).await
    }

    /// One more session of a tenant's, connected as `phone`.
    pub async fn session(&self, api: &Api, phone: String) -> Tenant {
        self.session_with(api, phone, json!({})).await
    }

    /// One with other settings.
    pub async fn session_with(&self, api: &Api, phone: String, settings: Value) -> Tenant {
        self.network.new_phone(&phone, "Tenant", None).await.unwrap();
        let answer = api.post("sessions", json!({ "name": phone, "settings": settings })).await.unwrap();
        let session = text(&answer, "/id").unwrap();
        api.post(&format!("sessions/{session}/start"), json!({})).await.unwrap();
        let qr = api
            .until(&format!("sessions/{session}/qr"), PATIENCE, |answer| text(answer, "/qr").ok())
            .await
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
        self.network.scan(&phone, &qr).await.unwrap();
        let tenant = Tenant { api: api.clone(), session, phone };
        tenant.connected(PATIENCE).await;
        tenant
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        kill(self.worker.take());
        kill(self.other_worker.take());
        kill(self.control_plane.take());
        kill(self.other_control_plane.take());
        for database in ["DATABASE_URL", "DATA_PLANE_DATABASE_URL"] {
            drop_database(&self.settings[database]);
        }
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("switchboard-failed-{}", std::process::id()));
            if std::fs::create_dir_all(&kept).is_ok() {
                for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                    drop(std::fs::copy(entry.path(), kept.join(entry.file_name())));
                }
                eprintln!("logs of the processes: {}", kept.display());
            }
        }
    }
}

/// One tenant with one session.
pub struct Tenant {
    pub api: Api,
    pub session: String,
    pub phone: String,
}

impl Tenant {
    /// Waits until the session is connected.
    pub async fn connected(&self, within: Duration) {
        self.api
            .until(&format!("sessions/{}/status", self.session), within, |answer| {
                (answer["status"] == "connected").then_some(())
            })
            .await
            .unwrap();
    }

    /// The texts of all messages of this session in one direction, in the order of history, repeats included. What could not
    /// be decrypted (yet) has none.
    pub async fn texts(&self, direction: &str) -> Vec<String> {
        let mut texts = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("messages?session_id={}&direction={direction}&limit=100{cursor}", self.session);
            let page = self.api.get(&path).await.unwrap();
            texts.extend(page["data"].as_array().unwrap().iter().filter_map(|one| text(one, "/text/body").ok()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return texts,
            }
        }
    }
}

/// Waits for a condition; panics with its name when time runs out.
pub async fn until<T>(what: &str, within: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", within.as_secs());
        sleep(Duration::from_millis(10)).await;
    }
}

async fn ready(base: &str) {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
    until("the control plane is ready", PATIENCE, async || {
        let answer = http.get(format!("{base}/readyz")).send().await;
        answer.is_ok_and(|answer| answer.status().is_success()).then_some(())
    })
    .await;
}

async fn query(url: &str, sql: &str) -> Vec<String> {
    let connection = Database::connect(shared::pool::options(url)).await.unwrap();
    let rows = connection.query_all_raw(Statement::from_string(connection.get_database_backend(), sql)).await.unwrap();
    let texts = rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect();
    connection.close().await.unwrap();
    texts
}

fn kill(process: Option<Child>) {
    if let Some(mut process) = process {
        drop(process.kill());
        drop(process.wait());
    }
}

/// Test binaries lie in `deps/`, the programs one folder up.
fn binary_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join(name)
}

/// An address that is the stack's own for as long as the socket lives: bound and not listening, it lets a program listen there (which
/// says `SO_REUSEADDR`, as servers do), and nobody else is given the port, even while no program runs.
pub fn reserved() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

fn reserve(sockets: &mut Vec<TcpSocket>) -> String {
    let (address, socket) = reserved();
    sockets.push(socket);
    address.to_string()
}

/// The texts that a receiver's verified `message.received` events carry.
pub fn received_texts(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .filter(|event| event["type"] == "message.received")
        .filter_map(|event| text(event, "/data/text/body").ok())
        .collect()
}
