//! Jobs that run as soon as they are committed: a job for a lane in which nothing waits is committed under this runner's lease,
//! and needs no claim.
//!
//! Such a job is a row as every other: if the process dies, its lease ends and somebody claims it. It is not counted in the
//! turns of tenants, so this is done only while most of the runner's places are free.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::{
    Claimed, Handler, JobKind, NewJob, claim, queue,
    runner::{Context, run_lane},
};

/// Where jobs are handed in that run at once.
#[derive(Default)]
pub struct Direct(Mutex<HashMap<JobKind, Desk>>);

/// The places of one kind of job in the runner of this process.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) context: Arc<Context>,
    pub(super) free: Arc<Semaphore>,
    pub(super) places: usize,
    pub(super) lanes: TaskTracker,
}

/// A job under a lease of this process, and its place. [`Seat::run`] it after the commit.
pub struct Seat {
    desk: Desk,
    permit: OwnedSemaphorePermit,
    job: Claimed,
}

impl Direct {
    fn desks(&self) -> MutexGuard<'_, HashMap<JobKind, Desk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, kind: JobKind, desk: Desk) {
        self.desks().insert(kind, desk);
    }

    pub(super) fn close(&self) {
        self.desks().clear();
    }

    /// Commits a job with the caller's transaction, under a lease if it can run at once. Without one, ring the
    /// [`Bell`](super::Bell) after the commit.
    ///
    /// # Errors
    /// As the database.
    pub async fn enqueue(&self, tx: &DatabaseTransaction, job: NewJob) -> Result<Option<Seat>, DbErr> {
        let desk = self.desks().get(&job.kind).filter(|desk| !desk.context.stops()).cloned();
        let seat = desk.and_then(|desk| {
            let many = desk.free.available_permits() * 2 > desk.places;
            many.then(|| Arc::clone(&desk.free).try_acquire_owned().ok()).flatten().map(|permit| (desk, permit))
        });
        let Some((desk, permit)) = seat else {
            queue::enqueue(tx, job).await?;
            return Ok(None);
        };
        // Whoever claims from the lane holds this lock while it looks what runs there.
        if !claim::lock_idle_lane(tx, &job.lane).await? {
            queue::enqueue(tx, job).await?;
            return Ok(None);
        }
        let claimed = queue::enqueue_leased(tx, job, desk.context.lease()).await?;
        Ok(claimed.map(|job| Seat { desk, permit, job }))
    }
}

impl Seat {
    /// Runs the job. One that is committed just as the process stops is left to the end of its lease.
    pub fn run(self, handler: Arc<dyn Handler>) {
        let Self { desk, permit, job } = self;
        if !desk.context.stops() {
            desk.lanes.spawn(run_lane(desk.context, handler, vec![job], permit));
        }
    }
}
