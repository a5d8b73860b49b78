//! `POST /internal/v1/workers`: who gets in.

use std::{net::IpAddr, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
};
use ipnet::IpNet;
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, sea_query::OnConflict};
use secrecy::ExposeSecret;
use shared::{
    identity::{CONTROL_PLANE, PeerClaims},
    time::Timestamp,
    wire::worker::{Join, Joined},
};
use subtle::ConstantTimeEq;
use url::{Host, Url};

use super::{
    entity::{self as worker, Schedulability},
    keys::key_set,
    policy::{HEARTBEAT, SUSPECT_AFTER},
    routes::lock_row,
};
use crate::{
    error::{ApiError, ApiResult, Kind, Refusal},
    internal::WireJson,
    state::App,
};

/// The most sessions that a worker may offer to take.
const MAX_CAPACITY: u32 = 20_000;
/// How long a worker's host name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

/// Lets a run of a worker in, or says why not.
pub(crate) async fn join_worker(
    State(app): State<App>,
    headers: HeaderMap,
    WireJson(join): WireJson<Join>,
) -> ApiResult<Json<Joined>> {
    let result = admit(&app, &headers, &join).await;
    let outcome = match &result {
        Ok(()) => "joined",
        Err(ApiError::Refused(refusal)) => refusal.kind().slug(),
        Err(_) => "failed",
    };
    metrics::counter!("control_plane_worker_joins_total", "outcome" => outcome).increment(1);
    tracing::info!(worker = %join.worker_id, incarnation = %join.incarnation, outcome, "a worker asked to join");
    result?;
    app.fleet.bell.notify_one();
    Ok(Json(Joined {
        worker_id: join.worker_id,
        control_plane_keys: key_set(&app.fleet.key),
        heartbeat_seconds: HEARTBEAT.as_secs(),
    }))
}

async fn admit(app: &App, headers: &HeaderMap, join: &Join) -> ApiResult<()> {
    prove_key(headers, join)?;
    let known = worker::Entity::find_by_id(join.worker_id.clone()).one(app.db.read()).await?;
    if known.is_none() {
        prove_token(app, join)?;
    }
    check(join)?;
    within(&app.config.internal.worker_endpoint_cidrs, &join.endpoint).await?;
    prove_endpoint(app, join).await?;
    bind(app, join).await
}

/// The request is signed with the key that it brings: whoever joins holds its private half.
fn prove_key(headers: &HeaderMap, join: &Join) -> ApiResult<()> {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or(Kind::JoinRefused)?;
    let claims: PeerClaims = join
        .public_key
        .verify(token, join.worker_id.as_str(), CONTROL_PLANE)
        .map_err(|_| Kind::JoinRefused.because("the request isn't signed with the key that it brings"))?;
    if claims.inc.as_ref() == Some(&join.incarnation) {
        Ok(())
    } else {
        Err(Kind::JoinRefused.because("the signature is another run's").into())
    }
}

/// A name that isn't bound yet needs the join token. Compared in constant time.
fn prove_token(app: &App, join: &Join) -> ApiResult<()> {
    let expected = app.config.internal.join_token.expose_secret().as_bytes();
    let shown = join.join_token.as_deref().unwrap_or_default().as_bytes();
    if !expected.is_empty() && bool::from(expected.ct_eq(shown)) {
        Ok(())
    } else {
        Err(Kind::JoinRefused.because("a name that isn't known yet needs the join token").into())
    }
}

fn check(join: &Join) -> ApiResult<()> {
    if join.capacity == 0 || join.capacity > MAX_CAPACITY {
        return Err(Refusal::field("/capacity", "range", "it must be from 1 to 20000").into());
    }
    Ok(())
}

fn outside() -> ApiError {
    Refusal::field("/endpoint", "endpoint-not-allowed", "must lie in WORKER_ENDPOINT_CIDRS").into()
}

/// Session keys are sent to the endpoint, so it must lie where workers may live: every address of it.
async fn within(allowed: &[IpNet], endpoint: &str) -> ApiResult<()> {
    let url: Url = endpoint
        .parse()
        .map_err(|_| Refusal::field("/endpoint", "url", "must be a URL such as http://10.0.0.7:7300"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal::field("/endpoint", "url", "must be http or https, without credentials").into());
    }
    let port = url.port_or_known_default().ok_or_else(outside)?;
    let addresses: Vec<IpAddr> = match url.host().ok_or_else(outside)? {
        Host::Ipv4(address) => vec![address.into()],
        Host::Ipv6(address) => vec![address.into()],
        Host::Domain(name) => tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((name, port)))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| ApiError::from(Kind::WorkerUnreachable.because("the endpoint's name does not resolve")))?
            .map(|address| address.ip())
            .collect(),
    };
    let inside = |address: &IpAddr| allowed.iter().any(|net| net.contains(&address.to_canonical()));
    if !addresses.is_empty() && addresses.iter().all(inside) { Ok(()) } else { Err(outside()) }
}

/// The worker that joins is the one that answers at the endpoint.
async fn prove_endpoint(app: &App, join: &Join) -> ApiResult<()> {
    let answer = app
        .fleet
        .client
        .identity(&join.endpoint)
        .await
        .map_err(|_| Kind::WorkerUnreachable.because("nothing answers GET /v1/identity there"))?;
    if answer.worker_id == join.worker_id && answer.incarnation == join.incarnation {
        Ok(())
    } else {
        Err(Kind::WorkerUnreachable.because("another worker answers at this endpoint").into())
    }
}

/// Binds the name, or replaces its run.
async fn bind(app: &App, join: &Join) -> ApiResult<()> {
    let now = Timestamp::now();
    let public_key = serde_json::to_string(&join.public_key)
        .map_err(|_| ApiError::Defect("a worker's public key has no JSON form"))?;
    let row = worker::Model {
        id: join.worker_id.clone(),
        store_id: join.store_id.clone(),
        public_key,
        incarnation: join.incarnation.clone(),
        network: join.network.as_str().into(),
        endpoint: join.endpoint.clone(),
        zone: join.zone.clone(),
        pool: join.pool.clone(),
        capacity: i64::from(join.capacity),
        assigned: 0,
        protocol_version: i64::from(join.protocol_version),
        schedulability: Schedulability::Schedulable,
        joined_at: now,
        last_beat_at: now,
        good_beats: 0,
        lease_renewed_at: None,
        sessions: 0,
        connected: 0,
        outbox_rows: 0,
    };
    let tx = app.db.write().await?;
    let inserted = worker::Entity::insert(row.clone().into_active_model())
        .on_conflict(OnConflict::new().do_nothing().to_owned())
        .exec_without_returning(&tx)
        .await?;
    if inserted == 0 {
        let held = lock_row(&tx, &join.worker_id).await?.ok_or(Kind::WorkerUnknown)?;
        if held.public_key != row.public_key || held.store_id != row.store_id {
            return Err(Kind::WorkerIdTaken.because("the name is bound to another credential or store").into());
        }
        if held.incarnation != row.incarnation && lives(&held, join, now) {
            return Err(Kind::WorkerIdTaken.because("another run of this worker is live").into());
        }
        let row = worker::Model {
            assigned: held.assigned,
            schedulability: held.schedulability,
            // A run that joins again (we restarted, or it was cut off) has proved itself before.
            good_beats: if held.incarnation == row.incarnation { held.good_beats } else { 0 },
            ..row
        };
        row.into_active_model().reset_all().update(&tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Whether the run that holds the name still lives. It has just been shown who answers at `join.endpoint`: if the held
/// run lived there, it is gone, however recently it was heard.
fn lives(held: &worker::Model, join: &Join, now: Timestamp) -> bool {
    now.since(held.last_beat_at) < SUSPECT_AFTER && held.endpoint != join.endpoint
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://127.0.0.1:7300", true)]
    #[case("http://[::ffff:127.0.0.1]:7300", true)]
    #[case("http://localhost:7300", true)]
    #[case("http://10.0.0.1:7300", false)]
    #[case("http://169.254.169.254/", false)]
    #[case("http://[fe80::1]:7300", false)]
    #[case("http://2130706434:7300", true)]
    #[case("http://user@127.0.0.1:7300", false)]
    #[case("ftp://127.0.0.1", false)]
    #[case("not a url", false)]
    #[tokio::test]
    async fn an_endpoint_must_lie_in_the_allowed_networks(#[case] endpoint: &str, #[case] allowed: bool) {
        let nets: Vec<IpNet> = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        assert_eq!(within(&nets, endpoint).await.is_ok(), allowed);
    }
}
