//! Limits around every operation of the API.

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::{Bucket, By, Standing};
use crate::{
    auth,
    error::{ApiError, ApiResult, Kind},
    extract::ClientAddress,
    state::App,
};

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Whether requests of a path are counted: whatever asks for credentials or gives some. Liveness, metrics and documentation are open.
#[must_use]
pub fn covers(path: &str) -> bool {
    path.starts_with("/api/v1/") || path == "/health/detailed"
}

/// Puts the limits around the routes that they cover.
pub fn around(router: Router, app: &App) -> Router {
    if !app.limits.any() {
        return router;
    }
    router.layer(middleware::from_fn_with_state(app.clone(), limited))
}

async fn limited(State(app): State<App>, request: Request, next: Next) -> Response {
    if !covers(request.uri().path()) {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let buckets = match buckets(&app, &mut parts).await {
        Ok(buckets) => buckets,
        Err(error) => return error.into_response(),
    };
    if buckets.is_empty() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let standing = app.limits.take(&buckets).await;
    let mut response = match standing.refused {
        None => next.run(Request::from_parts(parts, body)).await,
        Some((by, wait)) => {
            metrics::counter!("rate_limited_total", "by" => by.name()).increment(1);
            let mut response =
                Kind::RateLimited.because(format!("too many requests of this {}", by.name())).into_response();
            response.headers_mut().insert(header::RETRY_AFTER, seconds(wait));
            response
        }
    };
    tell(response.headers_mut(), standing);
    response
}

/// What a request counts for: its key or person and its tenant, or, of somebody who isn't known, its address.
async fn buckets(app: &App, parts: &mut Parts) -> ApiResult<Vec<Bucket>> {
    let limits = &app.limits;
    let bucket = |by, id: String| limits.rate(by).map(|rate| Bucket { by, id, rate });
    let by_address = || {
        let address = ClientAddress::of_request(parts, app);
        bucket(By::Address, app.keyring.address_hash(&address.host()))
    };
    if auth::looks_good(parts, app) == Some(false)
        && let Some(address) = by_address()
        && !limits.may_look_up(&address)
    {
        return Ok(vec![address]);
    }
    let known = match auth::identify(parts, app).await {
        Ok(known) => known,
        // What is wrong with the credentials the operation says, if it asks for any.
        Err(ApiError::Refused(_)) => None,
        Err(outage) => return Err(outage),
    };
    if let Some(principal) = known {
        return Ok([
            bucket(By::Key, principal.actor_id().to_owned()),
            bucket(By::Tenant, principal.tenant.id().to_string()),
        ]
        .into_iter()
        .flatten()
        .collect());
    }
    let address = ClientAddress::of_request(parts, app);
    Ok(bucket(By::Address, app.keyring.address_hash(&address.host())).into_iter().collect())
}

fn tell(headers: &mut HeaderMap, standing: Standing) {
    headers.insert(LIMIT, HeaderValue::from(standing.limit));
    headers.insert(REMAINING, HeaderValue::from(standing.remaining));
    headers.insert(RESET, seconds(standing.reset));
}

/// Whole seconds, rounded up: who waits so long has waited long enough.
fn seconds(duration: std::time::Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u64::MAX))
}
