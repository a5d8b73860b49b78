//! P8: an authenticated read, beside a bare axum route that runs the same query, each in a process of its own.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{Json, Router, extract::State, routing::get};
use clap::Args;
use control_plane::{auth::TenantScope, db::Db, sessions::entity};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use shared::ids::{SessionId, TenantId};
use standalone::tour::api::{Api, text};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    Common, memory,
    report::Report,
    system::{self, Process, beside, free_address},
};

#[derive(Debug, Args)]
pub struct Options {
    /// Callers at once.
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// The bare route, as a process: started by [`run`].
#[derive(Debug, Args)]
pub struct BareOptions {
    database_url: String,
    listen: SocketAddr,
    tenant: TenantId,
}

const POOL: u32 = 20;

pub async fn run(common: &Common, options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::new(
        format!("Authenticated reads of a session, {}", common.database.name()),
        json!({ "callers": options.callers, "seconds": options.seconds, "pool": POOL, "rate limits": "as said" }),
        &["route", "requests a second", "of the bare one, %", "p50 ms", "p99 ms", "server's CPU, µs each"],
    );
    let folder = tempfile::tempdir()?;
    let url = system::database(common.database, folder.path(), "read").await?;
    let redis = std::env::var("TEST_REDIS_URL").ok().filter(|url| !url.is_empty());
    let master_key = shared::seal::DataKey::generate().to_base64();
    let start = async |settings: &[(&str, &str)]| -> anyhow::Result<(Process, String)> {
        let (listen, internal) = (free_address()?, free_address()?);
        let mut command = Command::new(beside("control-plane")?);
        command
            .env_clear()
            .env("DATABASE_URL", &url)
            .env("DATABASE_POOL_SIZE", POOL.to_string())
            .env("MASTER_KEY", &master_key)
            .env("LISTEN", &listen)
            .env("INTERNAL_LISTEN", internal)
            .env("WORKER_JOIN_TOKEN", "a-join-token-for-benches-only")
            .env("RATE_LIMIT_AUTH", "off")
            .env("LOG_LEVEL", "warn")
            .envs(settings.iter().copied())
            .stdin(Stdio::null());
        let process = Process::spawn(&mut command)?;
        ready(&format!("http://{listen}/readyz")).await?;
        Ok((process, format!("http://{listen}")))
    };
    let off = [("RATE_LIMIT_KEY", "off"), ("RATE_LIMIT_TENANT", "off"), ("RATE_LIMIT_ADDRESS", "off")];
    let wide = [("RATE_LIMIT_KEY", "1000000:1000000"), ("RATE_LIMIT_TENANT", "1000000:1000000")];

    let (process, base) = start(&off).await?;
    let nobody = Api::new(&base)?;
    let person = json!({
        "email": "bench@example.com", "password": "a long enough password", "name": "B", "tenant_name": "B",
    });
    let signed_up = nobody.post("auth/signup", person).await?;
    let tenant = text(&signed_up, "/tenant_id")?;
    let owner = nobody.with(text(&signed_up, "/access_token")?);
    let key = owner.post("api-keys", json!({"name": "b", "network": "sandbox", "scopes": ["sessions:read"]})).await?;
    let key = text(&key, "/key")?;
    let session = owner.post("sessions", json!({"name": "b", "network": "sandbox", "start": false})).await?;
    let session = text(&session, "/id")?;

    let bare = {
        let listen = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bare-read", &url, &listen, &tenant]).stdin(Stdio::null());
        let process = Process::spawn(&mut command)?;
        let url = format!("http://{listen}/sessions/{session}");
        ready(&url).await?;
        measure(&mut report, "bare axum, the same query", process.pid(), &url, None, options, None).await?
    };
    let path = format!("/api/v1/sessions/{session}");
    let mut of = async |what: &'static str, process: Process, base: String| {
        let url = format!("{base}{path}");
        measure(&mut report, what, process.pid(), &url, Some(&key), options, Some(bare)).await
    };
    of("key from the database, no limits", process, base).await?;
    let (process, base) = start(&wide).await?;
    of("key from the database, limits in process", process, base).await?;
    if let Some(redis) = &redis {
        let mut settings = off.to_vec();
        settings.push(("REDIS_URL", redis));
        let (process, base) = start(&settings).await?;
        of("warm key cache, no limits", process, base).await?;
        let mut settings = wide.to_vec();
        settings.push(("REDIS_URL", redis));
        let (process, base) = start(&settings).await?;
        of("warm key cache, limits in Redis", process, base).await?;
    } else {
        report.note("No TEST_REDIS_URL (scripts/redis with …): the key cache is not measured.".into());
    }
    Ok(report)
}

/// Asks as fast as answers come; gives the requests a second.
async fn measure(
    report: &mut Report,
    what: &'static str,
    pid: u32,
    url: &str,
    key: Option<&str>,
    options: &Options,
    bare: Option<f64>,
) -> anyhow::Result<f64> {
    ask(url, key, options.callers, Duration::from_secs(2)).await?;
    let (cpu, began) = (memory::cpu_seconds(pid)?, Instant::now());
    let times = ask(url, key, options.callers, Duration::from_secs(options.seconds)).await?;
    let (cpu, took) = (memory::cpu_seconds(pid)? - cpu, began.elapsed().as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = times.len() as f64;
    let rate = count / took;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a request")]
    let millis = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    report.row(vec![
        what.into(),
        rate.into(),
        bare.map_or(Value::from(100.0), |bare| (100.0 * rate / bare).into()),
        millis(0.5).into(),
        millis(0.99).into(),
        (1e6 * cpu / count).into(),
    ]);
    Ok(rate)
}

async fn ask(url: &str, key: Option<&str>, callers: usize, lasts: Duration) -> anyhow::Result<Histogram<u64>> {
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(callers).build()?;
    let end = Instant::now() + lasts;
    let (url, key): (Arc<str>, Option<Arc<str>>) = (url.into(), key.map(Into::into));
    let mut running = JoinSet::new();
    for _ in 0..callers {
        let (http, url, key) = (http.clone(), url.clone(), key.clone());
        running.spawn(async move {
            let mut times = Histogram::<u64>::new(3)?;
            while Instant::now() < end {
                let began = Instant::now();
                let mut request = http.get(&*url);
                if let Some(key) = &key {
                    request = request.bearer_auth(key);
                }
                let answer = request.send().await?;
                anyhow::ensure!(answer.status().is_success(), "answered with {}", answer.status());
                answer.bytes().await?;
                times.record(u64::try_from(began.elapsed().as_micros())?)?;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Histogram::new(3)?;
    for caller in running.join_all().await {
        times.add(caller?)?;
    }
    Ok(times)
}

async fn ready(url: &str) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !http.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
        anyhow::ensure!(Instant::now() < deadline, "a program isn't ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[derive(Clone)]
struct Bare {
    db: Db,
    scope: TenantScope,
}

/// Serves the bare route until it is killed.
pub async fn bare(options: &BareOptions) -> anyhow::Result<()> {
    let db = Db::connect(&options.database_url, POOL).await?;
    let router = Router::new()
        .route("/sessions/{id}", get(bare_session))
        .with_state(Bare { db, scope: TenantScope::of_row(options.tenant.clone()) });
    let listener = tokio::net::TcpListener::bind(options.listen).await?;
    axum::serve(listener, router).await.context("serving")
}

async fn bare_session(
    State(bare): State<Bare>,
    axum::extract::Path(id): axum::extract::Path<SessionId>,
) -> Result<Json<Value>, axum::http::StatusCode> {
    let row = entity::Entity::of_tenant(&bare.scope, &id)
        .one(bare.db.read())
        .await
        .map_err(|_| axum::http::StatusCode::INTERNAL_SERVER_ERROR)?
        .ok_or(axum::http::StatusCode::NOT_FOUND)?;
    Ok(Json(json!({
        "id": row.id, "name": row.name, "settings": row.settings.0, "created_at": row.created_at,
        "updated_at": row.updated_at, "status": row.published_status,
    })))
}
