//! Sweeps: a statement that takes what is past its time, in batches, until nothing is left.
//!
//! A batch is short, so that nobody waits long for its locks. How many batches there are depends on how much came: were it a
//! fixed number, a table would grow for ever under a load that is more than that number in the time between two sweeps.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DbErr, Statement};

use crate::state::App;

/// How long one sweep takes at most; what is left then waits for the next. Less than the minute between two.
const BUDGET: Duration = Duration::from_secs(45);

/// Repeats `statement`, which takes up to `batch` rows, until it takes fewer, the app stops, or 45 s are over. Says how many rows
/// it took. The statement must not find a row again that it took.
///
/// # Errors
/// As the driver.
pub(crate) async fn all(app: &App, batch: i64, statement: Statement) -> Result<u64, DbErr> {
    let (full, until) = (u64::try_from(batch).unwrap_or(u64::MAX), Instant::now() + BUDGET);
    let mut taken = 0;
    loop {
        let rows = app.db.autocommit().execute_raw(statement.clone()).await?.rows_affected();
        taken += rows;
        if rows < full || app.stop.is_cancelled() || Instant::now() >= until {
            return Ok(taken);
        }
    }
}

/// As [`all`], of a statement whose `$1` is a time and whose `$2` is the batch.
///
/// # Errors
/// As the driver.
pub(crate) async fn before(
    app: &App,
    batch: i64,
    statement: &str,
    time: shared::time::Timestamp,
) -> Result<u64, DbErr> {
    all(app, batch, Statement::from_sql_and_values(app.db.engine(), statement, [time.into(), batch.into()])).await
}
