//! Messages: history in both directions, and the way out.

pub mod send;

use utoipa_axum::router::OpenApiRouter;

use crate::state::App;

/// The routes of messages.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}
