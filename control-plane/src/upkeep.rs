//! What the installation does for itself by the clock: deleting what is past its time, in batches, so that no
//! transaction is long. Each sweep stands by itself: one that fails doesn't keep the others from their work.

use std::time::Duration;

use async_trait::async_trait;
use sea_orm::DbErr;
use shared::time::Timestamp;

use crate::{
    audit::{self, heads::HeadsError},
    auth,
    error::database_error_kind,
    idempotency,
    jobs::{Claimed, Handler, JobKind, Outcome, schedule::Entry},
    mail,
    messages::{self, ingest},
    operators,
    state::App,
    sweep, tenants,
};

/// When what is done.
pub const SCHEDULE: &[Entry] = &[
    Entry { name: "expired", expression: "* * * * *" },
    Entry { name: "retention", expression: "*/5 * * * *" },
    Entry { name: "audit-heads", expression: "7 * * * *" },
];

/// How long events and finished deliveries are kept.
const KEEP_EVENTS: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long the counters of a month's quota are kept: a message that holds a unit waits for two days at most.
const KEEP_COUNTERS: Duration = Duration::from_secs(100 * 24 * 60 * 60);
/// How many rows one statement takes.
const BATCH: i64 = 10_000;

/// Runs the jobs of [`SCHEDULE`].
pub struct Upkeep;

#[async_trait]
impl Handler for Upkeep {
    fn kind(&self) -> JobKind {
        JobKind::Upkeep
    }

    fn batch(&self) -> usize {
        1
    }

    fn concurrency(&self) -> usize {
        2
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            let done = match job.subject.as_str() {
                "expired" => expired(app).await,
                "retention" => retention(app).await,
                "audit-heads" => match audit::heads::export(app).await {
                    Ok(()) => Ok(()),
                    Err(HeadsError::Database(error)) => Err(error),
                    Err(error) => {
                        tracing::warn!(%error, "the ends of the audit logs were not copied");
                        outcomes.push(Outcome::RetryAt(
                            Timestamp::now().plus(Duration::from_secs(60)),
                            "the object store said no",
                        ));
                        continue;
                    }
                },
                // Another version's.
                _ => {
                    outcomes.push(Outcome::Dead("upkeep that this version doesn't know"));
                    continue;
                }
            };
            outcomes.push(match done {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    tracing::warn!(kind = database_error_kind(&error), upkeep = job.subject, "upkeep failed");
                    Outcome::RetryAt(Timestamp::now().plus(Duration::from_secs(5)), "the database said no")
                }
            });
        }
        outcomes
    }
}

async fn expired(app: &App) -> Result<(), DbErr> {
    first_failure([
        ("idempotency keys", idempotency::prune(app).await.map(drop)),
        ("what workers shipped", ingest::prune(app).await.map(drop)),
        ("operators", operators::prune(app).await),
        ("logins", auth::prune(app).await),
        ("mails", mail::prune(app).await),
        ("tenants", tenants::prune(app).await),
    ])
}

/// The first failure of several sweeps, after each was said with its name.
fn first_failure(done: impl IntoIterator<Item = (&'static str, Result<(), DbErr>)>) -> Result<(), DbErr> {
    let mut first = Ok(());
    for (sweep, done) in done {
        if let Err(error) = done {
            tracing::warn!(kind = database_error_kind(&error), sweep, "a sweep failed");
            first = first.and(Err(error));
        }
    }
    first
}

/// Events that somebody still has to be told of stay; so do deliveries that are not finished.
async fn retention(app: &App) -> Result<(), DbErr> {
    let now = Timestamp::now();
    let mut done = vec![("messages", messages::retention::erase(app).await)];
    for (what, kept, statement) in [
        (
            "deliveries",
            KEEP_EVENTS,
            "DELETE FROM deliveries WHERE id IN \
             (SELECT id FROM deliveries WHERE completed_at IS NOT NULL AND completed_at <= $1 LIMIT $2)",
        ),
        (
            "events",
            KEEP_EVENTS,
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE occurred_at <= $1 \
             AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event_id = events.id) LIMIT $2)",
        ),
        (
            "quotas",
            KEEP_COUNTERS,
            "DELETE FROM quota_counters WHERE (tenant_id, quota, period, stripe) IN (SELECT tenant_id, quota, period, stripe \
             FROM quota_counters WHERE period <= $1 LIMIT $2)",
        ),
    ] {
        done.push((what, sweep::before(app, BATCH, statement, now.minus(kept)).await.map(drop)));
    }
    first_failure(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_failures_is_what_a_job_ends_with() {
        let failed = |what: &str| Err(DbErr::Custom(what.into()));
        let done = first_failure([("a", Ok(())), ("b", failed("b")), ("c", Ok(())), ("d", failed("d"))]);
        assert_eq!(done, failed("b"));
        assert_eq!(first_failure([("a", Ok(()))]), Ok(()));
    }
}
