//! `/health`, `/livez`, `/readyz`, `/metrics`.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use sea_orm::{ConnectionTrait, DbBackend};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{DatabaseHealth, DetailedHealth, Health, Status},
    metrics,
};
use crate::{
    error::{ApiError, ApiResult, Kind},
    jobs,
    openapi::problem_responses,
    operators::Operator,
    state::App,
    workers,
};

/// How long the database may take to answer.
const DATABASE_DEADLINE: Duration = Duration::from_secs(2);

/// The routes of health.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get_health))
        .routes(routes!(get_detailed_health))
        .routes(routes!(get_liveness))
        .routes(routes!(get_readiness))
        .routes(routes!(get_metrics))
}

async fn database(app: &App) -> DatabaseHealth {
    let asked = Instant::now();
    let answer = timeout(DATABASE_DEADLINE, app.db.read().execute_unprepared("SELECT 1")).await;
    DatabaseHealth {
        status: if matches!(answer, Ok(Ok(_))) { Status::Ok } else { Status::Down },
        engine: if app.db.engine() == DbBackend::Postgres { "postgres" } else { "sqlite" },
        latency_ms: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

async fn ready(app: &App) -> ApiResult<Json<Health>> {
    if app.leaving.is_cancelled() {
        return Err(Kind::Unavailable.because("this process is stopping").into());
    }
    match database(app).await.status {
        Status::Ok => Ok(Json(Health { status: Status::Ok })),
        Status::Down => Err(ApiError::from(Kind::Unavailable.because("the database doesn't answer"))),
    }
}

problem_responses!(HealthProblems = &[]);

/// Get health
///
/// Whether the installation works.
#[utoipa::path(
    get, path = "/health", operation_id = "get_health", tag = "health",
    security(()),
    responses((status = 200, description = "It works.", body = Health), HealthProblems),
)]
async fn get_health(State(app): State<App>) -> ApiResult<Json<Health>> {
    ready(&app).await
}

problem_responses!(KnownProblems = &[Kind::Unauthenticated]);

/// Get health in detail
///
/// Each part and its figures, for operators. Nothing of any tenant's.
#[utoipa::path(
    get, path = "/health/detailed", operation_id = "get_detailed_health", tag = "health",
    security(("operator" = [])),
    responses((status = 200, description = "Each part.", body = DetailedHealth), KnownProblems),
)]
async fn get_detailed_health(State(app): State<App>, _: Operator) -> ApiResult<Json<DetailedHealth>> {
    let database = database(&app).await;
    // Health is asked when things are broken: a part that can't be read is left out, and the rest is still told.
    let (workers, queues) = if database.status == Status::Ok {
        let fleet = timeout(DATABASE_DEADLINE, workers::figures(&app.db)).await;
        let queues = timeout(DATABASE_DEADLINE, jobs::figures(&app.db)).await;
        (fleet.ok().and_then(Result::ok), queues.ok().and_then(Result::ok).unwrap_or_default())
    } else {
        (None, Vec::new())
    };
    Ok(Json(DetailedHealth {
        status: database.status,
        version: env!("CARGO_PKG_VERSION"),
        database,
        redis: app.redis.as_ref().map(|redis| if redis.is_up() { Status::Ok } else { Status::Down }),
        workers: workers.map(Into::into),
        queues: queues.into_iter().map(Into::into).collect(),
    }))
}

/// Get liveness
///
/// Whether the process answers at all.
#[utoipa::path(
    get, path = "/livez", operation_id = "get_liveness", tag = "health",
    security(()),
    responses((status = 200, description = "It does.", body = Health), HealthProblems),
)]
async fn get_liveness() -> Json<Health> {
    Json(Health { status: Status::Ok })
}

/// Get readiness
///
/// Whether this process may get requests.
#[utoipa::path(
    get, path = "/readyz", operation_id = "get_readiness", tag = "health",
    security(()),
    responses((status = 200, description = "It may.", body = Health), HealthProblems),
)]
async fn get_readiness(State(app): State<App>) -> ApiResult<Json<Health>> {
    ready(&app).await
}

/// Get metrics
///
/// In Prometheus' text format. Here for whoever shows `METRICS_TOKEN`, if that is set; the workers' listener gives them without.
#[utoipa::path(
    get, path = "/metrics", operation_id = "get_metrics", tag = "health",
    security(("metrics_token" = [])),
    responses((status = 200, description = "The figures.", body = String, content_type = "text/plain"), KnownProblems),
)]
async fn get_metrics(State(app): State<App>, headers: HeaderMap) -> ApiResult<Figures> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let good = app.config.http.metrics_token.as_ref().zip(shown).is_some_and(|(token, shown)| {
        // Hashed, so that how long comparing takes tells nothing.
        Sha256::digest(token.expose_secret()) == Sha256::digest(shown)
    });
    if good { Ok(figures().await) } else { Err(Kind::Unauthenticated.into()) }
}

type Figures = (StatusCode, [(HeaderName, &'static str); 1], String);

/// The figures, for those who reach the workers' listener.
pub(crate) async fn figures() -> Figures {
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}
