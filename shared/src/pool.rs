//! Pools of database connections.

use std::time::Duration;

use sea_orm::ConnectOptions;

/// Options of a pool that keeps its connections.
///
/// sqlx 0.9.0 looks for connections to retire in a task of its own, which now and then reads its count of idle ones as 2⁶⁴ - 1
/// and then holds a thread at full load for ever (sqlx#3645, mended after that release). Without a lifetime and an idle time-out
/// there is no such task. Connections that their server has ended are found by the test before use.
#[must_use]
pub fn options(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options.idle_timeout(None::<Duration>).max_lifetime(None::<Duration>);
    options
}
