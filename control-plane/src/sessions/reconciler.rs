//! Makes sessions what they should be.

use tokio::task::JoinHandle;

use crate::state::App;

/// Starts the reconciler of this replica. Its task ends when the app stops.
pub fn start(app: App) -> JoinHandle<()> {
    tokio::spawn(async move { app.stop.cancelled().await })
}
