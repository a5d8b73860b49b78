//! Jobs by the clock: each entry of the schedule is a row of `cron` with the time that it is due next.
//!
//! Every replica looks. Whoever moves `next_at` on, by comparing it with what it saw, commits the job in the same transaction: so
//! one job for each time, however many replicas look, and none is lost if one dies. Times that passed while nobody was
//! there are one job, not many; a job that still waits or runs isn't joined by a second.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use croner::Cron;
use sea_orm::{ConnectionTrait, DbErr, Statement, Value};
use shared::{ids::TenantId, time::Timestamp};

use super::{JobKind, NewJob, enqueue_once};
use crate::{error::database_error_kind, state::App};

/// How often the schedule is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Upkeep that fails comes again with the next time; within one, it is tried so often.
const ATTEMPTS: u32 = 3;

/// Something that is due by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name, which is the job's subject.
    pub name: &'static str,
    /// When: five fields of cron, in UTC.
    pub expression: &'static str,
}

/// A schedule that can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Not a cron expression, or one without a next time.
    #[error("the cron expression of {0} can't be read")]
    Expression(&'static str),
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbErr),
}

/// Whose work upkeep is: the installation's, which is no tenant.
#[must_use]
pub fn installation() -> TenantId {
    TenantId::nil()
}

/// When an entry is due next after a time.
fn next(entry: &Entry, after: Timestamp) -> Result<Timestamp, ScheduleError> {
    let unreadable = || ScheduleError::Expression(entry.name);
    let after: DateTime<Utc> = DateTime::from_timestamp_millis(after.as_millis()).ok_or_else(unreadable)?;
    let next = Cron::from_str(entry.expression)
        .and_then(|cron| cron.find_next_occurrence(&after, false))
        .map_err(|_| unreadable())?;
    // The seconds' fraction of `after` comes along otherwise.
    DateTime::from_timestamp(next.timestamp(), 0).map(Into::into).ok_or_else(unreadable)
}

/// Writes the schedule's entries into the table: new ones, and those whose expression has changed.
///
/// # Errors
/// [`ScheduleError`].
pub async fn enter(app: &App, entries: &[Entry]) -> Result<(), ScheduleError> {
    let now = Timestamp::now();
    for entry in entries {
        let values: [Value; 3] = [entry.name.into(), entry.expression.into(), next(entry, now)?.into()];
        app.db
            .autocommit()
            .execute_raw(Statement::from_sql_and_values(
                app.db.engine(),
                "INSERT INTO cron (name, expression, next_at) VALUES ($1, $2, $3) ON CONFLICT (name) \
                 DO UPDATE SET expression = excluded.expression, next_at = excluded.next_at \
                 WHERE cron.expression <> excluded.expression",
                values,
            ))
            .await?;
    }
    Ok(())
}

/// Commits the jobs of the entries that are due; says how many.
///
/// # Errors
/// [`ScheduleError`].
pub async fn tick(app: &App, entries: &[Entry], now: Timestamp) -> Result<usize, ScheduleError> {
    let due = Statement::from_sql_and_values(
        app.db.engine(),
        "SELECT name, next_at FROM cron WHERE next_at <= $1 ORDER BY next_at",
        [now.into()],
    );
    let mut committed = 0;
    for row in app.db.read().query_all_raw(due).await? {
        let (name, seen): (String, Timestamp) = (row.try_get("", "name")?, row.try_get("", "next_at")?);
        // One that this version doesn't know is another version's.
        let Some(entry) = entries.iter().find(|entry| entry.name == name) else { continue };
        let tx = app.db.write().await?;
        let moved = tx
            .execute_raw(Statement::from_sql_and_values(
                app.db.engine(),
                "UPDATE cron SET next_at = $1, last_at = $2 WHERE name = $3 AND next_at = $4",
                [next(entry, now)?.into(), now.into(), name.clone().into(), seen.into()],
            ))
            .await?;
        if moved.rows_affected() == 1 {
            let job = NewJob {
                tenant_id: installation(),
                kind: JobKind::Upkeep,
                lane: format!("upkeep:{name}"),
                subject: name.clone(),
                run_at: now,
                max_attempts: ATTEMPTS,
            };
            committed += usize::from(enqueue_once(&tx, job, &name).await?);
        }
        tx.commit().await?;
    }
    if committed > 0 {
        app.bell.ring(JobKind::Upkeep);
    }
    Ok(committed)
}

/// Keeps the schedule until the app stops.
pub(crate) async fn keep(app: App, entries: &'static [Entry]) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        match tick(&app, entries, Timestamp::now()).await {
            Ok(_) => {}
            Err(ScheduleError::Database(error)) => {
                tracing::warn!(kind = database_error_kind(&error), "the schedule could not be kept; trying again");
            }
            Err(error) => tracing::error!(%error, "a defect of the schedule"),
        }
    }
}
