//! The public listener's router: every domain's routes, gathered into one router and one OpenAPI document.

use axum::{Router, response::IntoResponse};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    audit, auth,
    error::{Kind, Refusal},
    events, health, keys, limits, messages, openapi, operators, plans,
    request_context::Around,
    sessions,
    state::App,
    tenants, usage, webhooks,
};

/// Every documented route.
fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(auth::router())
        .merge(tenants::router())
        .merge(keys::router())
        .merge(sessions::router())
        .merge(messages::router())
        .merge(webhooks::router())
        .merge(events::router())
        .merge(usage::router())
        .merge(plans::router())
        .merge(audit::router())
        .merge(operators::router())
        .merge(health::router())
}

/// The OpenAPI document, as the routes themselves make it.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = documented().into_openapi();
    openapi::finish(&mut document);
    document
}

/// The router of the public listener. Swagger UI at `/docs`, its document at `/openapi.json`.
pub fn router(app: App) -> Router {
    let (routes, mut document) = documented().split_for_parts();
    openapi::finish(&mut document);
    let around = Around::public(&app.config, app.leaving.clone());
    let router = routes
        .merge(openapi::served(&document))
        .merge(SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json")))
        .fallback(|| async { Refusal::from(Kind::NotFound).into_response() })
        .method_not_allowed_fallback(|| async { Refusal::from(Kind::MethodNotAllowed).into_response() })
        .with_state(app.clone());
    // Inside of the limits: what they refuse isn't recorded, else anybody could fill the log.
    let router = audit::around(router, &app, &document);
    around.wrap(limits::around(router, &app))
}
