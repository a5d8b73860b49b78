//! The table `jobs`: how jobs get in and out of it.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Statement, Value};
use shared::{
    ids::{JobId, TenantId},
    time::Timestamp,
};

use super::{Claimed, Outcome, handler::back_off};
use crate::{
    db::{Db, millis, now_of},
    state::App,
    sweep,
};

/// What sort of work a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Hand a session's queued messages to its worker.
    SendMessages,
    /// Try to deliver one event to one webhook endpoint.
    DeliverWebhook,
    /// Send one mail to a person.
    SendMail,
    /// Something of the installation's that is due by the clock.
    Upkeep,
    /// Make the archive of a tenant.
    ExportTenant,
    /// Go through the steps of a tenant's deletion.
    DeleteTenant,
}

impl JobKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SendMessages,
        Self::DeliverWebhook,
        Self::SendMail,
        Self::Upkeep,
        Self::ExportTenant,
        Self::DeleteTenant,
    ];

    /// The name in the table and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SendMessages => "messages.send",
            Self::DeliverWebhook => "webhooks.deliver",
            Self::SendMail => "mail.send",
            Self::Upkeep => "upkeep",
            Self::ExportTenant => "tenants.export",
            Self::DeleteTenant => "tenants.delete",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A job to be committed.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Whose work it is.
    pub tenant_id: TenantId,
    /// What sort of work.
    pub kind: JobKind,
    /// The lane that it must not run beside: unique over all kinds, so it begins with a word of its domain.
    pub lane: String,
    /// The id of the row that it is about.
    pub subject: String,
    /// Not before this time.
    pub run_at: Timestamp,
    /// How often it may be tried, at least once.
    pub max_attempts: u32,
}

/// Commits a job with the caller's transaction. Ring the [`Bell`](super::Bell) after the commit.
///
/// # Errors
/// As the database.
pub async fn enqueue<C: ConnectionTrait>(conn: &C, job: NewJob) -> Result<JobId, DbErr> {
    let id = JobId::new();
    insert(conn, &id, job, None).await?;
    Ok(id)
}

/// As [`enqueue`], unless a job of the same tenant, kind and key waits or runs. Says whether there is a new one.
///
/// # Errors
/// As the database.
pub async fn enqueue_once<C: ConnectionTrait>(conn: &C, job: NewJob, key: &str) -> Result<bool, DbErr> {
    Ok(insert(conn, &JobId::new(), job, Some(key)).await? == 1)
}

/// As [`enqueue`], but under a lease if nothing of the lane waits or runs; the lane's lock is held. Gives the job if so.
pub(super) async fn enqueue_leased(
    tx: &DatabaseTransaction,
    job: NewJob,
    (owner, lease): (&str, Duration),
) -> Result<Option<Claimed>, DbErr> {
    let engine = tx.get_database_backend();
    let (id, now) = (JobId::new(), Timestamp::now());
    let max_attempts = job.max_attempts.max(1);
    let sql = format!(
        "INSERT INTO jobs (id, tenant_id, kind, lane, state, run_at, max_attempts, subject, created_at, attempts, lease_epoch, \
         lease_owner, lease_until) SELECT $1, $2, $3, $4, CASE WHEN idle THEN 'running' ELSE 'ready' END, $5, $6, $7, $8, \
         CASE WHEN idle THEN 1 ELSE 0 END, CASE WHEN idle THEN 1 ELSE 0 END, CASE WHEN idle THEN $9 END, \
         CASE WHEN idle THEN {} + $10 END FROM (SELECT NOT EXISTS (SELECT 1 FROM jobs WHERE lane = $4 AND state = 'ready') \
         AND NOT EXISTS (SELECT 1 FROM jobs WHERE lane = $4 AND state = 'running') AS idle) AS its_lane RETURNING state",
        now_of(engine)
    );
    let values: [Value; 10] = [
        id.clone().into(),
        job.tenant_id.clone().into(),
        job.kind.as_str().into(),
        job.lane.clone().into(),
        job.run_at.into(),
        i64::from(max_attempts).into(),
        job.subject.clone().into(),
        now.into(),
        owner.into(),
        millis(lease).into(),
    ];
    let row = tx.query_one_raw(Statement::from_sql_and_values(engine, sql, values)).await?;
    let state: Option<String> = row.map(|row| row.try_get("", "state")).transpose()?;
    Ok((state.as_deref() == Some("running")).then(|| Claimed {
        id,
        tenant_id: job.tenant_id,
        kind: job.kind,
        lane: job.lane,
        subject: job.subject,
        attempts: 1,
        max_attempts,
        created_at: now,
        lease_owner: owner.to_owned(),
        lease_epoch: 1,
    }))
}

async fn insert<C: ConnectionTrait>(conn: &C, id: &JobId, job: NewJob, key: Option<&str>) -> Result<u64, DbErr> {
    let done = conn
        .execute_raw(Statement::from_sql_and_values(
            conn.get_database_backend(),
            "INSERT INTO jobs (id, tenant_id, kind, lane, state, run_at, max_attempts, subject, created_at, dedupe_key) \
             VALUES ($1, $2, $3, $4, 'ready', $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            [
                id.clone().into(),
                job.tenant_id.into(),
                job.kind.as_str().into(),
                job.lane.into(),
                job.run_at.into(),
                i64::from(job.max_attempts.max(1)).into(),
                job.subject.into(),
                Timestamp::now().into(),
                key.map(str::to_owned).into(),
            ],
        ))
        .await?;
    Ok(done.rows_affected())
}

/// Makes the waiting jobs of a lane due at once: what they waited for has come. Ring the [`Bell`](super::Bell) after the
/// commit.
///
/// # Errors
/// As the database.
pub async fn hasten<C: ConnectionTrait>(conn: &C, lane: &str) -> Result<(), DbErr> {
    conn.execute_raw(Statement::from_sql_and_values(
        conn.get_database_backend(),
        "UPDATE jobs SET run_at = $1 WHERE lane = $2 AND state = 'ready' AND run_at > $1",
        [Timestamp::now().into(), lane.into()],
    ))
    .await
    .map(drop)
}

/// Settles a claimed job inside the caller's transaction, so that its result and the domain's change are one commit. Says
/// whether the lease still held; if not, roll back: another runner has the job. A retry without attempts left is death.
///
/// # Errors
/// As the database.
pub async fn settle<C: ConnectionTrait>(conn: &C, job: &Claimed, outcome: Outcome) -> Result<bool, DbErr> {
    let now = Timestamp::now();
    let (state, run_at, why, finished, uncounted) = match outcome {
        Outcome::Done => ("done", None, None, Some(now), 0_i64),
        Outcome::RetryAt(_, why) if job.is_last_attempt() => ("dead", None, Some(why), Some(now), 0),
        Outcome::RetryAt(at, why) => ("ready", Some(at), Some(why), None, 0),
        Outcome::WaitUntil(at) => ("ready", Some(at), None, None, 1),
        Outcome::Dead(why) => ("dead", None, Some(why), Some(now), 0),
        Outcome::Settled(_) => return Ok(true),
    };
    let done = conn
        .execute_raw(Statement::from_sql_and_values(
            conn.get_database_backend(),
            "UPDATE jobs SET state = $1, run_at = COALESCE($2, run_at), last_error = $3, finished_at = $4, \
             attempts = attempts - $5, lease_owner = NULL, lease_until = NULL \
             WHERE id = $6 AND lease_owner = $7 AND lease_epoch = $8 AND state = 'running'",
            [
                state.into(),
                run_at.map(Timestamp::as_millis).into(),
                why.map(str::to_owned).into(),
                finished.map(Timestamp::as_millis).into(),
                uncounted.into(),
                job.id.clone().into(),
                job.lease_owner.clone().into(),
                job.lease_epoch.into(),
            ],
        ))
        .await?;
    Ok(done.rows_affected() == 1)
}

/// As [`settle`], of a batch. Says whether all leases still held; if not, roll back.
///
/// # Errors
/// As the database.
pub async fn settle_all<C: ConnectionTrait>(conn: &C, settled: &[(Claimed, Outcome)]) -> Result<bool, DbErr> {
    let (done, others): (Vec<_>, Vec<_>) = settled.iter().partition(|(_, outcome)| *outcome == Outcome::Done);
    let mut held = settle_done(conn, &done).await?;
    for (job, outcome) in others {
        held &= settle(conn, job, *outcome).await?;
    }
    Ok(held)
}

/// The many that end well, in one statement.
async fn settle_done<C: ConnectionTrait>(conn: &C, done: &[&(Claimed, Outcome)]) -> Result<bool, DbErr> {
    let Some((first, _)) = done.first() else { return Ok(true) };
    let mut values: Vec<Value> = vec![Timestamp::now().into(), first.lease_owner.clone().into()];
    let mut leases = Vec::with_capacity(done.len());
    for (job, _) in done {
        values.extend([job.id.clone().into(), job.lease_epoch.into()]);
        leases.push(format!("(${}, ${})", values.len() - 1, values.len()));
    }
    let sql = format!(
        "UPDATE jobs SET state = 'done', finished_at = $1, lease_owner = NULL, lease_until = NULL \
         WHERE lease_owner = $2 AND state = 'running' AND (id, lease_epoch) IN (VALUES {})",
        leases.join(", ")
    );
    let settled = conn.execute_raw(Statement::from_sql_and_values(conn.get_database_backend(), sql, values)).await?;
    Ok(settled.rows_affected() == done.len() as u64)
}

/// Drops the jobs of a lane that wait: what they are about is gone.
///
/// # Errors
/// As the database.
pub async fn drop_waiting<C: ConnectionTrait>(conn: &C, lane: &str) -> Result<u64, DbErr> {
    let done = conn
        .execute_raw(Statement::from_sql_and_values(
            conn.get_database_backend(),
            "DELETE FROM jobs WHERE lane = $1 AND state = 'ready'",
            [lane.into()],
        ))
        .await?;
    Ok(done.rows_affected())
}

/// Extends the lease of a batch of one claim; says whether nobody else has claimed any of it since.
///
/// A job that the handler has settled by itself keeps its epoch, so it counts as held, and there is nothing to extend.
pub(super) async fn extend(db: &Db, owner: &str, jobs: &[Claimed], lease: Duration) -> Result<bool, DbErr> {
    let engine = db.engine();
    let mut values: Vec<Value> = vec![owner.into(), millis(lease).into()];
    let mut pairs = |comparison: &str| {
        let mut terms = Vec::with_capacity(jobs.len());
        for job in jobs {
            values.push(job.id.clone().into());
            values.push(job.lease_epoch.into());
            terms.push(format!("(id = ${} AND lease_epoch {comparison} ${})", values.len() - 1, values.len()));
        }
        (terms.join(" OR "), std::mem::take(&mut values))
    };
    let (ours, ours_values) = pairs("=");
    let (taken, taken_values) = pairs(">");
    let extension = format!(
        "UPDATE jobs SET lease_until = {} + $2 WHERE lease_owner = $1 AND state = 'running' AND ({ours})",
        now_of(engine)
    );
    db.autocommit().execute_raw(Statement::from_sql_and_values(engine, extension, ours_values)).await?;
    let lost = Statement::from_sql_and_values(
        engine,
        format!("SELECT 1 AS taken FROM jobs WHERE {taken} LIMIT 1"),
        taken_values,
    );
    Ok(db.read().query_one_raw(lost).await?.is_none())
}

/// Sends jobs whose lease has ended back to `ready`, their attempt counted. At most 1,000 at once.
pub(super) async fn reclaim(db: &Db) -> Result<u64, DbErr> {
    let engine = db.engine();
    let sql = format!(
        "UPDATE jobs SET state = 'ready', lease_owner = NULL, lease_until = NULL, last_error = 'lease ended' \
         WHERE state = 'running' AND id IN \
         (SELECT id FROM jobs WHERE state = 'running' AND lease_until < {now} LIMIT 1000) AND lease_until < {now}",
        now = now_of(engine)
    );
    // Looked for first: on SQLite a write, even of nothing, waits for the writer.
    let ended = Statement::from_string(
        engine,
        format!("SELECT 1 AS ended FROM jobs WHERE state = 'running' AND lease_until < {} LIMIT 1", now_of(engine)),
    );
    if db.read().query_one_raw(ended).await?.is_none() {
        return Ok(0);
    }
    Ok(db.autocommit().execute_raw(Statement::from_string(engine, sql)).await?.rows_affected())
}

/// Hands back jobs that were claimed and not finished. Their attempt isn't counted: nothing failed.
pub(super) async fn release(db: &Db, owner: &str) -> Result<u64, DbErr> {
    let done = db
        .autocommit()
        .execute_raw(Statement::from_sql_and_values(
            db.engine(),
            "UPDATE jobs SET state = 'ready', attempts = attempts - 1, lease_owner = NULL, lease_until = NULL \
             WHERE state = 'running' AND lease_owner = $1",
            [owner.into()],
        ))
        .await?;
    Ok(done.rows_affected())
}

/// Hands one job back that was never begun. Its attempt isn't counted. Says whether it was there, under that lease.
pub(super) async fn hand_back(tx: &DatabaseTransaction, job: &Claimed) -> Result<bool, DbErr> {
    let done = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "UPDATE jobs SET state = 'ready', attempts = attempts - 1, lease_owner = NULL, lease_until = NULL \
             WHERE id = $1 AND lease_owner = $2 AND lease_epoch = $3 AND state = 'running'",
            [job.id.clone().into(), job.lease_owner.clone().into(), job.lease_epoch.into()],
        ))
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes finished rows: those done before `done`, those dead before `dead`.
pub(super) async fn prune(app: &App, done: Timestamp, dead: Timestamp) -> Result<(), DbErr> {
    const BATCH: i64 = 1000;
    for (state, before) in [("done", done), ("dead", dead)] {
        let values: [Value; 3] = [before.into(), state.into(), BATCH.into()];
        let statement = Statement::from_sql_and_values(
            app.db.engine(),
            "DELETE FROM jobs WHERE id IN \
             (SELECT id FROM jobs WHERE finished_at IS NOT NULL AND finished_at < $1 AND state = $2 LIMIT $3)",
            values,
        );
        sweep::all(app, BATCH, statement).await?;
    }
    Ok(())
}

/// How much of one kind waits and runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFigures {
    /// The kind.
    pub kind: &'static str,
    /// Due or waiting for their time.
    pub ready: i64,
    /// Under a lease.
    pub running: i64,
    /// Given up and not pruned yet.
    pub dead: i64,
    /// How long the oldest due job has been due.
    pub oldest_due: Duration,
}

/// State by state, since each has its index, and the many that are done have none to be left out by.
const COUNTED: &str = "SELECT kind, state, COUNT(*) AS jobs, MIN(run_at) AS earliest FROM jobs WHERE state = 'ready' \
    GROUP BY kind, state UNION ALL SELECT kind, state, COUNT(*) AS jobs, MIN(run_at) AS earliest FROM jobs \
    WHERE state = 'running' GROUP BY kind, state UNION ALL SELECT kind, state, COUNT(*) AS jobs, MIN(run_at) AS earliest \
    FROM jobs WHERE state = 'dead' GROUP BY kind, state";

/// The figures of every kind, for metrics and health.
///
/// # Errors
/// As the database.
pub async fn figures(db: &Db) -> Result<Vec<QueueFigures>, DbErr> {
    let now = Timestamp::now();
    let rows = db.read().query_all_raw(Statement::from_string(db.engine(), COUNTED)).await?;
    let mut figures: Vec<QueueFigures> = JobKind::ALL
        .iter()
        .map(|kind| QueueFigures { kind: kind.as_str(), ready: 0, running: 0, dead: 0, oldest_due: Duration::ZERO })
        .collect();
    for row in rows {
        let (kind, state): (String, String) = (row.try_get("", "kind")?, row.try_get("", "state")?);
        let (jobs, earliest): (i64, Timestamp) = (row.try_get("", "jobs")?, row.try_get("", "earliest")?);
        let Some(of_kind) = figures.iter_mut().find(|figures| figures.kind == kind) else { continue };
        match state.as_str() {
            "ready" => {
                of_kind.ready = jobs;
                of_kind.oldest_due = now.since(earliest);
            }
            "running" => of_kind.running = jobs,
            _ => of_kind.dead = jobs,
        }
    }
    Ok(figures)
}

/// What becomes of a job about whose end its handler said nothing.
pub(super) fn after_failure(job: &Claimed, why: &'static str) -> Outcome {
    Outcome::RetryAt(Timestamp::now().plus(back_off(job.attempts)), why)
}

pub(super) fn count(stored: i64) -> u32 {
    u32::try_from(stored).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_counted_every_few_seconds_is_read_from_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("jobs.db").display());
        let db = Db::connect(&url, 1).await.unwrap();
        db.migrate().await.unwrap();
        let plan = Statement::from_string(db.engine(), format!("EXPLAIN QUERY PLAN {COUNTED}"));
        let rows = db.read().query_all_raw(plan).await.unwrap();
        let steps: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
        let reads = |step: &&String| step.starts_with("SCAN") || step.starts_with("SEARCH");
        assert_eq!(steps.iter().filter(reads).count(), 3, "{steps:#?}");
        assert!(steps.iter().filter(reads).all(|step| step.contains("INDEX jobs_")), "{steps:#?}");
        db.close().await;
    }
}
