//! A control plane of one's own for each test: free ports, a fresh database, and a client.
//!
//! A test runs on both engines: `#[case::sqlite(Engine::Sqlite)]`, `#[case::postgres(Engine::Postgres)]`; the second goes with Redis. What
//! Redis takes part in runs without it too: `#[case::postgres_alone(Engine::PostgresAlone)]`. The servers are those that
//! `TEST_POSTGRES_URL` and `TEST_REDIS_URL` name (`scripts/postgres with scripts/redis with …`); without them those cases say loudly
//! that they are skipped, or run without Redis, and with `CI_REQUIRE_POSTGRES=1` and `CI_REQUIRE_REDIS=1` they fail. An unexpected line
//! at level ERROR fails the test.

use std::{
    sync::{Mutex, Once},
    time::Duration,
};

use control_plane::{
    ControlPlane,
    config::{Config, Values},
    objects,
    state::App,
};
use reqwest::{Method, RequestBuilder, StatusCode, header::HeaderMap};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};
use serde_json::{Value, json};
use shared::{problem::MEDIA_TYPE, seal::DataKey};
use tempfile::TempDir;
use tracing_subscriber::{Layer, layer::SubscriberExt};

/// How long a condition is waited for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What workers show when they join.
pub const JOIN_TOKEN: &str = "a join token for tests";

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// In a file, without Redis: a small installation.
    Sqlite,
    /// PostgreSQL with Redis.
    Postgres,
    /// PostgreSQL without Redis.
    PostgresAlone,
}

/// A fresh database, gone with the test.
pub enum Storage {
    File(TempDir),
    Server { name: String, admin: DatabaseConnection, url: String, redis: Option<String>, folder: TempDir },
}

/// The server that a test goes with, if it was started.
fn server(url: &str, required: &str, otherwise: &str) -> Option<String> {
    let found = std::env::var(url).ok().filter(|url| !url.is_empty());
    if found.is_none() {
        assert!(std::env::var(required).as_deref() != Ok("1"), "{required}=1, but {url} is not set");
        eprintln!("\n*** {otherwise}: no {url} ***\n");
    }
    found
}

impl Storage {
    /// Makes one; nothing if this engine isn't there.
    pub async fn new(engine: Engine) -> Option<Self> {
        if engine == Engine::Sqlite {
            return Some(Self::File(tempfile::tempdir().unwrap()));
        }
        let url = server("TEST_POSTGRES_URL", "CI_REQUIRE_POSTGRES", "SKIPPED, nothing is tested on PostgreSQL here")?;
        let redis = match engine {
            // An installation of its own in it, since its names come from the master key.
            Engine::Postgres => server("TEST_REDIS_URL", "CI_REQUIRE_REDIS", "PostgreSQL goes WITHOUT REDIS here"),
            Engine::Sqlite | Engine::PostgresAlone => None,
        };
        let admin = Database::connect(shared::pool::options(&url)).await.unwrap();
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        let mut own = url::Url::parse(&url).unwrap();
        own.set_path(&name);
        Some(Self::Server { name, admin, url: own.into(), redis, folder: tempfile::tempdir().unwrap() })
    }

    fn url(&self) -> String {
        match self {
            Self::File(folder) => format!("sqlite://{}", folder.path().join("control-plane.db").display()),
            Self::Server { url, .. } => url.clone(),
        }
    }

    fn redis(&self) -> Option<secrecy::SecretString> {
        match self {
            Self::File(_) => None,
            Self::Server { redis, .. } => redis.clone().map(Into::into),
        }
    }

    /// Where files lie.
    pub fn folder(&self) -> &std::path::Path {
        let (Self::File(folder) | Self::Server { folder, .. }) = self;
        folder.path()
    }

    /// Settings of a control plane over it: the defaults, and what a test can't do without.
    pub fn config(&self) -> Config {
        let objects = objects::folder_url(&self.folder().join("objects")).unwrap();
        let set = [
            ("LISTEN", "127.0.0.1:0"),
            ("INTERNAL_LISTEN", "127.0.0.1:0"),
            ("WORKER_JOIN_TOKEN", JOIN_TOKEN),
            ("DATABASE_URL", &self.url()),
            ("DATABASE_POOL_SIZE", "8"),
            ("MASTER_KEY", &DataKey::generate().to_base64()),
            ("OBJECT_STORE_URL", objects.as_str()),
            ("RATE_LIMIT_AUTH", "off"),
            ("RATE_LIMIT_KEY", "off"),
            ("RATE_LIMIT_TENANT", "off"),
            ("RATE_LIMIT_ADDRESS", "off"),
            ("PUBLIC_URL", "https://console.example.com"),
            // What Redis does can then be told exactly, on a busy machine too.
            ("REDIS_TIMEOUT", "5s"),
        ];
        let mut config =
            Config::read(&Values::new(set.map(|(name, text)| (name.to_owned(), text.to_owned())))).unwrap();
        config.redis.url = self.redis();
        config
    }

    pub async fn remove(self) {
        if let Self::Server { name, admin, .. } = self {
            admin.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        }
    }
}

/// A running control plane.
pub struct TestApp {
    server: ControlPlane,
    replicas: Vec<ControlPlane>,
    storage: Storage,
    config: Config,
    pub http: reqwest::Client,
}

impl TestApp {
    /// Starts one; nothing if this engine isn't there.
    pub async fn start(engine: Engine) -> Option<Self> {
        Self::start_with(engine, |_| {}).await
    }

    /// Starts one with other settings.
    pub async fn start_with(engine: Engine, change: impl FnOnce(&mut Config)) -> Option<Self> {
        shared::tls::install_provider();
        collect_errors();
        let storage = Storage::new(engine).await?;
        let mut config = storage.config();
        change(&mut config);
        let server = ControlPlane::start(config.clone()).await.unwrap();
        if storage.redis().is_some() && config.redis.url.is_some() {
            // A test that believes to run with Redis does.
            crate::fleet::until("Redis is spoken with", async || server.app().redis.as_ref()?.is_up().then_some(()))
                .await;
        }
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().unwrap();
        Some(Self { server, replicas: Vec::new(), storage, config, http })
    }

    /// What a start says that fails, with other settings.
    pub async fn fails_to_start(change: impl FnOnce(&mut Config)) -> String {
        shared::tls::install_provider();
        let storage = Storage::new(Engine::Sqlite).await.unwrap();
        let mut config = storage.config();
        change(&mut config);
        let told = ControlPlane::start(config).await.err().map(|error| format!("{error:#}"));
        storage.remove().await;
        told.expect("it started")
    }

    /// Starts another replica on the same database, and gives its base URL.
    pub async fn replica(&mut self) -> String {
        self.replica_with(|_| {}).await
    }

    /// As [`replica`](Self::replica), with other settings.
    pub async fn replica_with(&mut self, change: impl FnOnce(&mut Config)) -> String {
        let mut config = self.config.clone();
        change(&mut config);
        let replica = ControlPlane::start(config).await.unwrap();
        let url = format!("http://{}", replica.public_address());
        self.replicas.push(replica);
        url
    }

    /// The settings that it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the server's handlers share.
    pub fn app(&self) -> &App {
        self.server.app()
    }

    /// Where workers connect.
    pub fn internal_url(&self) -> String {
        format!("http://{}", self.server.internal_address())
    }

    /// The public base URL.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.server.public_address())
    }

    /// What Prometheus reads.
    pub async fn figures(&self) -> Answer {
        Answer::of(self.http.get(format!("{}/metrics", self.internal_url()))).await
    }

    /// A request to a path.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base_url()))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    /// Changes rows behind the server's back, as time or an operator would. Keys that were found are forgotten, as whoever changes
    /// such rows says.
    pub async fn sql(&self, statement: &str, values: impl IntoIterator<Item = sea_orm::Value>) -> u64 {
        let db = &self.app().db;
        let statement = Statement::from_sql_and_values(db.engine(), statement, values);
        let changed = db.autocommit().execute_raw(statement).await.unwrap().rows_affected();
        for server in std::iter::once(&self.server).chain(&self.replicas) {
            server.app().key_cache.forget_all();
        }
        changed
    }

    /// One number from the database.
    pub async fn count(&self, query: &str) -> i64 {
        let db = &self.app().db;
        let row = db.read().query_one_raw(Statement::from_string(db.engine(), query)).await.unwrap().unwrap();
        row.try_get_by_index(0).unwrap()
    }

    /// A new tenant and its owner.
    pub async fn sign_up(&self) -> Owner {
        let email = format!("{}@example.com", uuid::Uuid::now_v7().simple());
        let password = "correct horse battery".to_owned();
        let body = json!({"email": email, "password": password, "name": "Ada", "tenant_name": "Acme"});
        let answer = Answer::of(self.post("/api/v1/auth/signup", &body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let text = |name: &str| answer.json()[name].as_str().unwrap().to_owned();
        Owner {
            email,
            password,
            access_token: text("access_token"),
            refresh_token: text("refresh_token"),
            tenant_id: text("tenant_id"),
            user_id: text("user_id"),
        }
    }

    /// Somebody who has an account of their own, and is logged in to another one, with a role there.
    pub async fn colleague(&self, owner: &Owner, role: &str) -> Owner {
        let mut person = self.sign_up().await;
        let values = [owner.tenant_id.as_str().into(), person.user_id.as_str().into(), role.into(), 0_i64.into()];
        self.sql("INSERT INTO members (tenant_id, user_id, role, created_at) VALUES ($1, $2, $3, $4)", values).await;
        self.log_in(&mut person, Some(&owner.tenant_id)).await;
        person
    }

    /// Logs somebody in, once more.
    pub async fn log_in(&self, person: &mut Owner, tenant: Option<&str>) {
        let body = json!({"email": person.email, "password": person.password, "tenant_id": tenant});
        let answer = Answer::of(self.post("/api/v1/auth/login", &body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let text = |name: &str| answer.json()[name].as_str().unwrap().to_owned();
        person.access_token = text("access_token");
        person.refresh_token = text("refresh_token");
        person.tenant_id = text("tenant_id");
    }

    /// A key of the tenant's.
    pub async fn api_key(&self, owner: &Owner, network: &str, scopes: &[&str]) -> String {
        let body = json!({"name": "test", "network": network, "scopes": scopes});
        let answer = Answer::of(self.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    /// Stops everything, removes the database, and looks whether anything was logged as an error.
    pub async fn stop(self) {
        self.stop_after_errors().await;
        let errors = ERRORS.lock().unwrap();
        assert!(errors.is_empty(), "logged as errors: {errors:#?}");
    }

    /// Stops everything and removes the database, after something was broken that is logged as an error.
    pub async fn stop_after_errors(self) {
        for replica in self.replicas {
            replica.shutdown().await;
        }
        let db = self.server.app().db.clone();
        self.server.shutdown().await;
        db.close().await;
        self.storage.remove().await;
    }
}

/// Somebody who signed up.
pub struct Owner {
    pub email: String,
    pub password: String,
    pub access_token: String,
    pub refresh_token: String,
    pub tenant_id: String,
    pub user_id: String,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        Self { status: response.status(), headers: response.headers().clone(), text: response.text().await.unwrap() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Checks that this is a problem document of one type, whole and consistent with its envelope.
    #[track_caller]
    pub fn assert_problem(&self, status: u16, slug: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), Some(MEDIA_TYPE), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{self:?}");
    }

    /// The pointers of the fields that were refused.
    pub fn pointers(&self) -> Vec<String> {
        let errors = self.json()["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
    }

    /// Status and body without what differs by request.
    pub fn without_request_id(&self) -> (StatusCode, String) {
        let id = self.header("x-request-id").unwrap();
        (self.status, self.text.replace(id, "(request id)"))
    }
}

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static MAIL_LINKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The links that were logged for want of a mail server.
pub fn mail_links() -> Vec<String> {
    MAIL_LINKS.lock().unwrap().clone()
}

/// Notes every line that our crates log at level ERROR, and the links of mails.
fn collect_errors() {
    struct Errors;
    impl<S: tracing::Subscriber> Layer<S> for Errors {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            let meta = event.metadata();
            if meta.target() == "control_plane::mail" {
                struct Link;
                impl tracing::field::Visit for Link {
                    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                        if field.name() == "link" {
                            MAIL_LINKS.lock().unwrap().push(format!("{value:?}"));
                        }
                    }
                }
                event.record(&mut Link);
            }
            let ours = meta.target().starts_with("control_plane") || meta.target().starts_with("shared");
            if *meta.level() == tracing::Level::ERROR && ours {
                struct Words(String);
                impl tracing::field::Visit for Words {
                    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                        self.0 += &format!(" {field}={value:?}");
                    }
                }
                let mut words = Words(format!("{}:{}", meta.target(), meta.line().unwrap_or_default()));
                event.record(&mut words);
                ERRORS.lock().unwrap().push(words.0);
            }
        }
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Errors)).unwrap();
    });
}
