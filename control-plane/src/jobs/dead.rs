//! Jobs that were given up, for the operator to look at; and calling off jobs that wait.

use std::{fmt, str::FromStr};

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement, Value};
use shared::{
    ids::{JobId, TenantId},
    time::Timestamp,
};

use super::JobKind;
use crate::db::Db;

/// The most jobs that are listed at once.
pub const MOST: u64 = 1_000;
/// The columns of a [`DeadJob`].
pub(super) const COLUMNS: &str = "id, tenant_id, kind, subject, attempts, last_error, finished_at";

/// A job that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadJob {
    /// Its id.
    pub id: JobId,
    /// Whose work it was.
    pub tenant_id: TenantId,
    /// The name of its kind.
    pub kind: String,
    /// The row that it is about.
    pub subject: String,
    /// How often it was tried.
    pub attempts: i64,
    /// Why it was given up.
    pub why: Option<String>,
    /// When.
    pub finished_at: Timestamp,
}

impl DeadJob {
    pub(super) fn of(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            id: row.try_get("", "id")?,
            tenant_id: row.try_get("", "tenant_id")?,
            kind: row.try_get("", "kind")?,
            subject: row.try_get("", "subject")?,
            attempts: row.try_get("", "attempts")?,
            why: row.try_get("", "last_error")?,
            finished_at: row.try_get("", "finished_at")?,
        })
    }
}

/// Where a job stands among those that were given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    finished_at: Timestamp,
    id: JobId,
}

impl DeadJob {
    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { finished_at: self.finished_at, id: self.id.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.finished_at.as_millis(), self.id)
    }
}

/// It is not the place of a job.
#[derive(Debug, thiserror::Error)]
#[error("not the place of a job")]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (finished_at, id) = text.split_once(' ').ok_or(NoPlace)?;
        let finished_at = Timestamp::from_millis(finished_at.parse().map_err(|_| NoPlace)?);
        Ok(Self { finished_at, id: id.parse().map_err(|_| NoPlace)? })
    }
}

/// The jobs that were given up last, the newest first; of one kind, or of all; from the start, or from behind a place on.
///
/// # Errors
/// As the database.
pub async fn list(db: &Db, kind: Option<JobKind>, behind: Option<Place>, limit: u64) -> Result<Vec<DeadJob>, DbErr> {
    let (finished_at, id) = behind.map(|place| (place.finished_at, place.id)).unzip();
    let values: [Value; 4] =
        [kind.map(|kind| kind.as_str().to_owned()).into(), limit.min(MOST).into(), finished_at.into(), id.into()];
    let statement = Statement::from_sql_and_values(
        db.engine(),
        format!(
            "SELECT {COLUMNS} FROM jobs WHERE finished_at IS NOT NULL AND state = 'dead' AND ($1 IS NULL OR kind = $1) \
             AND ($3 IS NULL OR finished_at < $3 OR (finished_at = $3 AND id < $4)) \
             ORDER BY finished_at DESC, id DESC LIMIT $2"
        ),
        values,
    );
    let rows = db.read().query_all_raw(statement).await?;
    rows.iter().map(DeadJob::of).collect()
}

/// A job could not be called off.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// It is a step of something that would be left half done for ever.
    #[error("a job of the kind {} can't be called off: what it is part of would stay half done", .0.as_str())]
    Needed(JobKind),
    /// The database said no.
    #[error("the database said no ({})", crate::error::database_error_kind(.0))]
    Database(#[from] DbErr),
}

/// Calls a job off that waits: it has no attempts left, so the next runner gives it to [`give_up`](super::Handler::give_up) at once, and
/// what the job is about learns of it. Says whether it was there and waited: one that runs is beyond recall.
///
/// # Errors
/// [`CancelError`].
pub async fn cancel<C: ConnectionTrait>(conn: &C, id: &JobId) -> Result<bool, CancelError> {
    let engine = conn.get_database_backend();
    let query = "SELECT kind FROM jobs WHERE id = $1 AND state = 'ready'";
    let Some(row) = conn.query_one_raw(Statement::from_sql_and_values(engine, query, [id.clone().into()])).await?
    else {
        return Ok(false);
    };
    let kind: String = row.try_get("", "kind")?;
    if let Some(kind @ (JobKind::DeleteTenant | JobKind::Upkeep)) = JobKind::named(&kind) {
        return Err(CancelError::Needed(kind));
    }
    let done = conn
        .execute_raw(Statement::from_sql_and_values(
            engine,
            // Some have all the attempts that a number holds: one more must be more.
            "UPDATE jobs SET attempts = CASE WHEN max_attempts > $3 THEN $3 ELSE max_attempts END, \
             max_attempts = CASE WHEN max_attempts > $3 THEN $3 ELSE max_attempts END, run_at = $1, \
             last_error = 'called off' WHERE id = $2 AND state = 'ready' AND attempts < max_attempts",
            [Timestamp::now().into(), id.clone().into(), i64::from(i32::MAX).into()],
        ))
        .await?;
    Ok(done.rows_affected() == 1)
}
