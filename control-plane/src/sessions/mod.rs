//! Sessions: linked WhatsApp devices, what they should be and what they are.

pub mod reconciler;

use utoipa_axum::router::OpenApiRouter;

use crate::state::App;

/// The routes of sessions.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}
