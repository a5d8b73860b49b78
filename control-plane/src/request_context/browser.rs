//! What browsers are told: whose pages may call (CORS), and what a page of ours may do.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::Config;

/// How long a browser may remember the answer to a preflight request.
const PREFLIGHT_LIFE: Duration = Duration::from_secs(3600);

/// For answers that are data: nothing in them is a page.
const DATA_POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// For Swagger UI, which is served from here whole, and styles itself inline.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";
/// A year.
const HTTPS_ONLY: &str = "max-age=31536000";

/// The headers of every answer: no sniffing, no framing, no referrer, no shared cache, for an API whose answers hold secrets.
pub(super) fn secure(headers: &mut HeaderMap, path_is_docs: bool, https: bool) {
    let policy = if path_is_docs { DOCS_POLICY } else { DATA_POLICY };
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(HTTPS_ONLY));
    }
}

/// Whether people reach this installation by https: with a certificate of its own, or through a proxy.
pub(super) fn by_https(config: &Config) -> bool {
    config.http.tls_cert.is_some() || config.mail.public_url.scheme() == "https"
}

/// The layer for `CORS_ORIGIN`, if there is one. Cookies never go with such a call.
pub(super) fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        [any] if any == "*" => AllowOrigin::any(),
        list => AllowOrigin::list(list.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let named = |names: &[&'static str]| names.iter().copied().map(HeaderName::from_static).collect::<Vec<_>>();
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers(named(&[
                "authorization",
                "content-type",
                "idempotency-key",
                "if-match",
                "if-none-match",
                "last-event-id",
                "prefer",
                "x-api-key",
                "x-request-id",
            ]))
            .expose_headers(named(&[
                "etag",
                "idempotent-replayed",
                "ratelimit-limit",
                "ratelimit-remaining",
                "ratelimit-reset",
                "retry-after",
                "x-request-id",
            ]))
            .max_age(PREFLIGHT_LIFE),
    )
}
