//! The public listener's router: every domain's routes, gathered into one router and one OpenAPI document.

use axum::{Json, Router, response::IntoResponse, routing::get};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::{auth, error::Kind, error::Refusal, health, keys, openapi, request_context, state::App, tenants};

/// Every documented route.
fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(auth::router())
        .merge(tenants::router())
        .merge(keys::router())
        .merge(health::router())
}

/// The OpenAPI document, as the routes themselves make it.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = documented().into_openapi();
    openapi::finish(&mut document);
    document
}

/// The router of the public listener.
pub fn router(app: App) -> Router {
    let document = document();
    let served = document.clone();
    let router = documented()
        .split_for_parts()
        .0
        .route("/openapi.json", get(move || async move { Json(served) }))
        .merge(SwaggerUi::new("/docs").external_url_unchecked("/openapi.json", serde_json::Value::Null))
        .fallback(|| async { Refusal::from(Kind::NotFound).into_response() })
        .method_not_allowed_fallback(|| async { Refusal::from(Kind::MethodNotAllowed).into_response() })
        .with_state(app);
    drop(document);
    request_context::around(router)
}
