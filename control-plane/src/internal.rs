//! The internal listener, `/internal/v1`: what workers may ask, and how they prove who they are.

use axum::Router;

use crate::state::App;

/// Everything under `/internal/v1`.
pub fn router(app: App) -> Router {
    Router::new().with_state(app)
}
