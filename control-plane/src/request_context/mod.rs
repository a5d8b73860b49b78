//! What happens around every request, whichever route it takes: an id, a line of the access log, figures, a deadline, the
//! headers that browsers heed, compression, and a problem document for whatever goes wrong outside of a handler.
//!
//! The access log has the target `access`. A line names the route and not the path, no query and no address, and of the methods those that HTTP
//! has: ids and whatever callers write into a request stay out of it.

mod browser;
mod deadline;
mod drain;
mod encoding;

use std::{any::Any, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response as HttpResponse, Version, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use shared::problem::{MEDIA_TYPE, Problem};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_http::{
    CompressionLevel,
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer, Predicate,
        predicate::{NotForContentType, SizeAbove},
    },
};

use crate::{config::Config, error::Kind, internal, listener::Misaddressed};

/// How long a worker's request may take.
const INTERNAL_DEADLINE: Duration = Duration::from_secs(30);
/// The smallest body that is compressed, in bytes. Answers with tokens in them are smaller.
const COMPRESSED_FROM: u64 = 2048;
/// The longest request id that is taken over, in bytes.
const MAX_ID_LEN: usize = 128;
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    /// Of the request that the task answers.
    static CURRENT: RequestId;
}

/// The id of a request: the caller's own, or one that was made. In the request's extensions, and passed on to workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// That of the request in whose handler this is called; none in a background task or a job.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// As the header that carries it.
    #[must_use]
    pub fn header(&self) -> (HeaderName, HeaderValue) {
        (X_REQUEST_ID, self.0.clone())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The caller's, if it is 1 to 128 visible ASCII characters; else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(X_REQUEST_ID).filter(|value| {
            (1..=MAX_ID_LEN).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        let id = given.cloned().unwrap_or_else(|| {
            HeaderValue::from_str(&uuid::Uuid::now_v7().to_string())
                .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
        });
        Self(id)
    }
}

/// What is done around the requests of one listener.
#[derive(Debug, Clone)]
pub struct Around {
    deadline: Duration,
    body_limit: usize,
    origins: Vec<String>,
    https: bool,
    leaving: CancellationToken,
}

impl Around {
    /// For tenants' programs. Once the process is `leaving`, each answer ends its connection: whoever keeps one would else send the next
    /// request down it just as it is closed.
    #[must_use]
    pub fn public(config: &Config, leaving: CancellationToken) -> Self {
        Self {
            deadline: config.http.request_timeout,
            body_limit: config.http.body_limit,
            origins: config.http.cors_origins.clone(),
            https: browser::by_https(config),
            leaving,
        }
    }

    /// For workers.
    #[must_use]
    pub fn internal() -> Self {
        Self {
            deadline: INTERNAL_DEADLINE,
            body_limit: internal::BODY_LIMIT,
            origins: Vec::new(),
            https: false,
            // Workers ask again.
            leaving: CancellationToken::new(),
        }
    }

    /// Puts the layers around a router.
    pub fn wrap(self, router: Router) -> Router {
        let Self { deadline: within, body_limit, origins, https, leaving } = self;
        let router = router
            .layer(middleware::from_fn(move |request, next| deadline::deadline(within, request, next)))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn(move |request, next| drain::drain(body_limit, request, next)));
        let router = match browser::cors(&origins) {
            Some(cors) => router.layer(cors),
            None => router,
        };
        // Identifying writes the body of a problem anew, so what is compressed is compressed after it.
        let large = SizeAbove::new(COMPRESSED_FROM)
            .and(NotForContentType::IMAGES)
            .and(NotForContentType::SSE)
            // An archive is compressed already, and its length tells whoever fetches it when they have it whole.
            .and(NotForContentType::const_new("application/zip"));
        router
            .layer(middleware::from_fn(move |request, next| identified(https, request, next)))
            .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(large))
            .layer(middleware::from_fn(encoding::never_refused))
            .layer(middleware::from_fn(move |request, next| last_of_its_connection(leaving.clone(), request, next)))
    }
}

fn panicked(_what: Box<dyn Any + Send + 'static>) -> HttpResponse<Body> {
    // The panic hook has logged the place; the message may hold a caller's data.
    crate::error::Refusal::from(Kind::Internal).into_response()
}

async fn last_of_its_connection(leaving: CancellationToken, request: Request, next: Next) -> Response {
    // HTTP/2 knows no such header; its connections are told when the listener stops, and lose no request by it.
    let header = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    if header && leaving.is_cancelled() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn identified(https: bool, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let method = name_of(request.method());
    // Never the path itself: it can hold a phone number.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("(none)", MatchedPath::as_str);
    let is_docs = request.uri().path().starts_with("/docs");

    let mut response = match request.extensions().get::<Misaddressed>() {
        Some(_) => Kind::BadRequest.because("HTTP/1.1 wants one Host header, with a host in it").into_response(),
        None => CURRENT.scope(id.clone(), next.run(request)).await,
    };

    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = with_request_id(response, problem, &id);
    }
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.0.clone());
    browser::secure(headers, is_docs, https);
    let took = started.elapsed();
    let status = response.status().as_u16();
    let labels = [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
    metrics::counter!("http_requests_total", &labels).increment(1);
    metrics::histogram!("http_request_duration_seconds", &labels[..2]).record(took.as_secs_f64());
    tracing::info!(
        target: "access",
        method,
        route,
        status,
        ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        request_id = id.as_str(),
        "answered"
    );
    response
}

/// A method as figures and the log name it. HTTP lets a caller write any word there, of any length: figures are kept for every one
/// that they were ever given, and nothing that a caller wrote is logged.
fn name_of(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}

fn with_request_id(response: Response, mut problem: Problem, id: &RequestId) -> Response {
    problem.request_id = Some(id.as_str().to_owned());
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let Ok(body) = serde_json::to_vec(&problem) else {
        // A problem of strings and numbers always has a JSON form; were it otherwise, the status still says it.
        return Response::from_parts(parts, Body::empty());
    };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    Response::from_parts(parts, Body::from(body))
}

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "http_requests_total",
        "Requests answered, by method (OTHER: none of HTTP's own), route and status."
    );
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        metrics::Unit::Seconds,
        "How long requests took, by method and route."
    );
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: Router) -> (u16, Problem) {
        let request = Request::builder().uri("/").header("x-request-id", "mine").body(Body::empty()).unwrap();
        let response = Around { deadline: Duration::from_secs(1), ..Around::internal() }
            .wrap(router)
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(response.headers()[X_REQUEST_ID], "mine");
        assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&to_bytes(response.into_body(), 1 << 16).await.unwrap()).unwrap())
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_a_problem_without_its_words() {
        let (status, problem) = ask(Router::new().route("/", get(async || -> () { panic!("sentinel") }))).await;
        assert_eq!((status, problem.kind.as_str()), (500, "/problems/internal"));
        assert_eq!(problem.request_id.as_deref(), Some("mine"));
        assert!(!format!("{problem:?}").contains("sentinel"));
    }

    #[tokio::test]
    async fn a_handler_that_never_answers_is_given_up() {
        let (status, problem) = ask(Router::new().route("/", get(std::future::pending::<()>))).await;
        assert_eq!((status, problem.kind.as_str()), (503, "/problems/unavailable"));
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_access_log_names_the_route_and_nothing_that_a_caller_wrote() {
        let lines = Lines::default();
        let sink = lines.clone();
        let subscriber =
            shared::telemetry::subscriber("info", shared::telemetry::LogFormat::Json, move || sink.clone()).unwrap();
        let guard = tracing::subscriber::set_default(subscriber);
        let router = Around::internal().wrap(Router::new().route("/things/{id}", get(async || "hello")));
        for method in ["GET", "sentinel"] {
            let request = Request::builder()
                .method(method)
                .uri("/things/sentinel?q=sentinel")
                .header("authorization", "Bearer sentinel")
                .body(Body::empty())
                .unwrap();
            router.clone().oneshot(request).await.unwrap();
        }
        drop(guard);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains(r#""target":"access""#) && text.contains("/things/{id}"), "{text}");
        assert!(!text.contains("sentinel"), "{text}");
    }
}
