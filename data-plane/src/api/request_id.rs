//! The id of the tenant's request that an order is part of: the control plane sends it along, so that one id finds what both wrote of it.

use axum::{
    extract::{MatchedPath, Request},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;
use tracing::Instrument;

const X_REQUEST_ID: &str = "x-request-id";
/// The longest id that is taken over, in bytes: as the control plane.
const MAX_LEN: usize = 128;

/// The id, if it is 1 to 128 visible ASCII characters.
fn id_of(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let is_good = (1..=MAX_LEN).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then(|| id.to_owned())
}

/// Puts the id into every line that is logged while the order is carried out, and into one of the access log. Orders of the control plane's own
/// have none and no line there: they come at all times.
pub async fn identified(request: Request, next: Next) -> Response {
    let Some(id) = id_of(request.headers()) else { return next.run(request).await };
    let started = Instant::now();
    let method = request.method().clone();
    // Not the path itself: ids stay out of the access log.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).instrument(tracing::info_span!("order", request_id = id)).await;
    tracing::info!(
        target: "access",
        method = method.as_str(),
        route = route.as_ref().map_or("(none)", MatchedPath::as_str),
        status = response.status().as_u16(),
        ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        request_id = id,
        "answered"
    );
    response
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use axum::{Router, body::Body, middleware, routing::get};
    use shared::telemetry::{LogFormat, subscriber};
    use tower::ServiceExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_logged_of_an_order_has_the_id_of_its_request() {
        let lines = Lines::default();
        let sink = lines.clone();
        let _guard =
            tracing::subscriber::set_default(subscriber("info", LogFormat::Json, move || sink.clone()).unwrap());
        let router = Router::new()
            .route("/v1/things/{id}", get(async || tracing::info!("carried out")))
            .route_layer(middleware::from_fn(identified));
        let too_long = "x".repeat(MAX_LEN + 1);
        for id in [Some("the-callers-own"), None, Some("two words"), Some(&too_long)] {
            let mut request = Request::builder().uri("/v1/things/sentinel");
            if let Some(id) = id {
                request = request.header(X_REQUEST_ID, id);
            }
            router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        }
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let with_id: Vec<_> = text.lines().filter(|line| line.contains("the-callers-own")).collect();
        assert_eq!(with_id.len(), 2, "{text}");
        assert!(with_id[0].contains("carried out"), "{text}");
        assert!(with_id[1].contains(r#""target":"access""#) && with_id[1].contains("/v1/things/{id}"), "{text}");
        assert_eq!(text.lines().count(), 5, "one line each, and one of the access log: {text}");
        assert!(!text.contains("sentinel") && !text.contains("two words") && !text.contains(&too_long), "{text}");
    }
}
