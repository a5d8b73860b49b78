//! Dead jobs, tried again.
//!
//! What a job is about ended with it: its message failed, its archive was given up. So its domain puts that back
//! ([`Handler::revive`](super::Handler::revive)) in the transaction that makes the job ready, or refuses, and the job stays dead. A job that is ready again has
//! all its attempts, and has lost its key, which another job may have by now; the lane keeps the two from running at once.

use std::{collections::BTreeMap, sync::Arc};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Statement, Value};
use shared::{ids::JobId, time::Timestamp};

use super::{
    Handler, JobKind,
    dead::{COLUMNS, DeadJob},
};
use crate::{
    error::{ApiError, database_error_kind},
    state::App,
};

/// The most jobs that are made ready at once.
pub const MOST: u64 = 1_000;
/// The most that are looked at for them: those before them may all be refused.
const LOOKED_AT: u64 = 100_000;
/// How many are looked up at once.
const PAGE: u64 = 500;

/// A job was not redriven.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// There is no such job, or it isn't dead.
    #[error("no job with this id was given up")]
    NotDead,
    /// Its work can't be done any more, or mustn't: why, in a sentence.
    #[error("the job stays given up: {0}")]
    Refused(String),
    /// The database said no.
    #[error("the database said no ({})", database_error_kind(.0))]
    Database(#[from] DbErr),
}

/// What became of several jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redriven {
    /// How many are ready again.
    pub revived: u64,
    /// Why others are not, and how many.
    pub refused: BTreeMap<String, u64>,
}

/// Makes a dead job ready again, and what it is about undone. Ring its kind afterwards, and
/// [`JobKind::DeliverWebhook`]: there may be something to tell.
///
/// # Errors
/// [`RedriveError`]; nothing has changed then.
pub async fn redrive(app: &App, handlers: &[Arc<dyn Handler>], id: &JobId) -> Result<(), RedriveError> {
    let tx = app.db.write().await?;
    match put_back(app, handlers, &tx, id).await {
        Ok(()) => Ok(tx.commit().await?),
        Err(error) => {
            tx.rollback().await?;
            Err(error)
        }
    }
}

async fn put_back(
    app: &App,
    handlers: &[Arc<dyn Handler>],
    tx: &DatabaseTransaction,
    id: &JobId,
) -> Result<(), RedriveError> {
    let engine = tx.get_database_backend();
    let query = format!("SELECT {COLUMNS} FROM jobs WHERE id = $1 AND state = 'dead'");
    let found = tx.query_one_raw(Statement::from_sql_and_values(engine, query, [id.clone().into()])).await?;
    let job = DeadJob::of(&found.ok_or(RedriveError::NotDead)?)?;
    // Of two at once one finds it dead: the other waits here for the first.
    let made_ready = "UPDATE jobs SET state = 'ready', attempts = 0, run_at = $1, finished_at = NULL, last_error = NULL, \
                      dedupe_key = NULL WHERE id = $2 AND state = 'dead'";
    let values = [Timestamp::now().into(), id.clone().into()];
    if tx.execute_raw(Statement::from_sql_and_values(engine, made_ready, values)).await?.rows_affected() == 0 {
        return Err(RedriveError::NotDead);
    }
    let kind = JobKind::named(&job.kind);
    let Some(handler) = handlers.iter().find(|handler| Some(handler.kind()) == kind) else {
        return Err(RedriveError::Refused("this version knows no jobs of its kind".into()));
    };
    handler.revive(app, tx, &job).await.map_err(|error| match error {
        ApiError::Refused(refusal) => RedriveError::Refused(refusal.sentence().to_owned()),
        ApiError::Database(error) => RedriveError::Database(error),
        ApiError::Defect(what) => RedriveError::Refused(format!("a defect: {what}")),
    })
}

/// As [`redrive`], of up to [`MOST`] jobs of a kind, the oldest first, each in a transaction of its own. One that dies again meanwhile is
/// left.
///
/// # Errors
/// As the database; what was made ready until then is.
pub async fn redrive_all(app: &App, handlers: &[Arc<dyn Handler>], kind: JobKind) -> Result<Redriven, DbErr> {
    let began = Timestamp::now();
    let (mut done, mut looked_at) = (Redriven::default(), 0);
    let mut after = (Timestamp::from_millis(0), String::new());
    while looked_at < LOOKED_AT {
        let page = dead_after(app, kind, began, &after).await?;
        let Some((_, last)) = page.last() else { return Ok(done) };
        after = last.clone();
        for (id, _) in &page {
            if done.revived == MOST {
                return Ok(done);
            }
            match redrive(app, handlers, id).await {
                Ok(()) => done.revived += 1,
                Err(RedriveError::Refused(why)) => *done.refused.entry(why).or_default() += 1,
                // Somebody else was faster.
                Err(RedriveError::NotDead) => {}
                Err(RedriveError::Database(error)) => return Err(error),
            }
            looked_at += 1;
        }
    }
    Ok(done)
}

/// Some dead jobs of a kind, and where each stands among them.
async fn dead_after(
    app: &App,
    kind: JobKind,
    until: Timestamp,
    (finished_at, id): &(Timestamp, String),
) -> Result<Vec<(JobId, (Timestamp, String))>, DbErr> {
    let values: [Value; 5] =
        [kind.as_str().into(), until.into(), (*finished_at).into(), id.as_str().into(), PAGE.into()];
    let statement = Statement::from_sql_and_values(
        app.db.engine(),
        "SELECT id, finished_at FROM jobs WHERE state = 'dead' AND kind = $1 AND finished_at <= $2 \
         AND (finished_at, id) > ($3, $4) ORDER BY finished_at, id LIMIT $5",
        values,
    );
    let rows = app.db.read().query_all_raw(statement).await?;
    rows.iter()
        .map(|row| {
            let (id, finished_at): (JobId, Timestamp) = (row.try_get("", "id")?, row.try_get("", "finished_at")?);
            let place = (finished_at, id.to_string());
            Ok((id, place))
        })
        .collect()
}
