//! What a domain does with its jobs.

use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{DatabaseTransaction, DbErr};
use shared::{
    ids::{JobId, TenantId},
    time::Timestamp,
};

use super::{DeadJob, JobKind};
use crate::{error::ApiResult, state::App};

/// A job under a lease of this runner.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job.
    pub id: JobId,
    /// Whose work it is.
    pub tenant_id: TenantId,
    /// What sort of work.
    pub kind: JobKind,
    /// Its lane.
    pub lane: String,
    /// The row it is about, in the words of its domain.
    pub subject: String,
    /// Which attempt this is, from 1.
    pub attempts: u32,
    /// How many there may be.
    pub max_attempts: u32,
    /// When it was committed.
    pub created_at: Timestamp,
    pub(super) lease_owner: String,
    pub(super) lease_epoch: i64,
}

impl Claimed {
    /// Whether there is no attempt after this one.
    #[must_use]
    pub const fn is_last_attempt(&self) -> bool {
        self.attempts >= self.max_attempts
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done.
    Done,
    /// It failed, and is to be tried again, not before a time; the word says why, for the operator. Without attempts left it
    /// is given up.
    RetryAt(Timestamp, &'static str),
    /// Nothing was tried, because it can't be just now; not before a time. The attempt doesn't count.
    WaitUntil(Timestamp),
    /// Never to be tried again.
    Dead(&'static str),
    /// The handler has settled it itself with [`settle`](super::settle), in the transaction of its own change: as what.
    Settled(&'static str),
}

impl Outcome {
    /// This outcome, once the handler has settled it.
    #[must_use]
    pub const fn settled(self) -> Self {
        Self::Settled(self.word())
    }

    /// The handler could not settle it: its lease was lost, so its end is another's to tell.
    pub const LEASE_LOST: Self = Self::Settled("lease_lost");

    /// The word for it in metrics.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::RetryAt(..) => "retry",
            Self::WaitUntil(_) => "wait",
            Self::Dead(_) => "dead",
            Self::Settled(as_what) => as_what,
        }
    }
}

/// Runs the jobs of one kind.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind.
    fn kind(&self) -> JobKind;

    /// How many jobs of one lane it takes at once.
    fn batch(&self) -> usize;

    /// How many lanes this process works on at once.
    fn concurrency(&self) -> usize {
        64
    }

    /// Runs a batch of one lane, oldest first, and says for each how it ended, in the same order. Must bear being run again
    /// after a crash. Dropped when the lease is lost or the process stops.
    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome>;

    /// Tells the domain that a job has had all its attempts and will not be run again (its process died each time, or it
    /// panicked). An error leaves the job to be given up later.
    async fn give_up(&self, app: &App, job: &Claimed) -> Result<(), DbErr> {
        let _ = (app, job);
        Ok(())
    }

    /// Takes back what was committed with a job that was to run at once and was never begun, in the transaction that makes the job
    /// ready. For a kind that commits nothing beside such a job, nothing is to be done.
    ///
    /// # Errors
    /// As the database. Then it is tried again, or the job left to the end of its lease.
    async fn hand_back(&self, tx: &DatabaseTransaction, job: &Claimed) -> Result<(), DbErr> {
        let _ = (tx, job);
        Ok(())
    }

    /// Puts back what a dead job is about, in the transaction that makes the job ready again, so that it finds its work undone. For a
    /// kind whose jobs are all that there is, nothing is to be done.
    ///
    /// # Errors
    /// A refusal, with a sentence for the operator, if the work can't or mustn't be done any more: then all is rolled back, and
    /// the job stays dead.
    async fn revive(&self, app: &App, tx: &DatabaseTransaction, job: &DeadJob) -> ApiResult<()> {
        let _ = (app, tx, job);
        Ok(())
    }
}

/// How long a job waits after a failure that says nothing about when to come back: doubling from 1 s to 5 min.
#[must_use]
pub(super) fn back_off(attempts: u32) -> Duration {
    Duration::from_secs(1_u64 << attempts.saturating_sub(1).min(9)).min(Duration::from_secs(300))
}
