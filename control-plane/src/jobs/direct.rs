//! Jobs that run as soon as they are committed: a job for a lane in which nothing waits is committed under this runner's lease,
//! and needs no claim.
//!
//! Such a job is a row as every other: if the process dies, its lease ends and somebody claims it. It is not counted in the
//! turns of tenants, so this is done only while most of the runner's places are free. If whoever commits it goes away during the
//! commit (a request whose caller hangs up or whose time is over), nobody knows whether it was done; then the job is handed back,
//! if it is there, so that its lane doesn't wait for the end of a lease that nobody works under.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::{
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::TaskTracker;

use super::{
    Claimed, Handler, JobKind, NewJob, claim, queue,
    runner::{Context, run_lane},
};
use crate::{error::database_error_kind, state::App};

/// When to look for a job whose caller went away during the commit, each after the one before: the commit may still be on its way.
/// One that takes longer waits for the end of its lease.
const HAND_BACK_AFTER: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(4)];

/// Where jobs are handed in that run at once.
#[derive(Default)]
pub struct Direct(Mutex<HashMap<JobKind, Desk>>);

/// The places of one kind of job in the runner of this process.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) context: Arc<Context>,
    /// Runs those that are claimed, and takes back what was never begun.
    pub(super) handler: Arc<dyn Handler>,
    pub(super) free: Arc<Semaphore>,
    pub(super) places: usize,
    pub(super) lanes: TaskTracker,
}

/// A job under a lease of this process, and its place. [`Seat::run`] it after the commit.
pub struct Seat {
    /// Nothing once it has been run.
    held: Option<Held>,
    to_be_committed: bool,
}

struct Held {
    desk: Desk,
    permit: OwnedSemaphorePermit,
    job: Claimed,
    /// Before the term of its lease began.
    since: Instant,
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
        let since = Instant::now();
        let claimed = queue::enqueue_leased(tx, job, desk.context.lease()).await?;
        Ok(claimed.map(|job| Seat { held: Some(Held { desk, permit, job, since }), to_be_committed: false }))
    }
}

impl Seat {
    /// Says that nothing keeps the transaction from being committed any more: if this is dropped from here on without being run, the
    /// job is handed back. Before, nothing is there to be handed back.
    #[must_use]
    pub fn to_be_committed(self) -> Self {
        let mut seat = self;
        seat.to_be_committed = true;
        seat
    }

    /// Runs the job. One that is committed just as the process stops is handed back with the others, or left to the end of its lease.
    pub fn run(mut self, handler: Arc<dyn Handler>) {
        let Some(Held { desk, permit, job, since }) = self.held.take() else { return };
        if !desk.context.stops() {
            desk.lanes.spawn(run_lane(desk.context, handler, vec![job], since, permit));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(Held { desk, permit, job, .. }) = self.held.take() else { return };
        // Without a runtime the process is at its end.
        if let (true, false, Ok(runtime)) = (self.to_be_committed, desk.context.stops(), runtime::Handle::try_current())
        {
            let lanes = desk.lanes.clone();
            lanes.spawn_on(hand_back(desk, job, permit), &runtime);
        }
    }
}

/// Makes a job ready that was committed after all. It keeps its place meanwhile, so that these are bounded.
async fn hand_back(desk: Desk, job: Claimed, permit: OwnedSemaphorePermit) {
    let app = desk.context.app();
    for wait in HAND_BACK_AFTER {
        tokio::select! {
            // All that this runner holds is handed back then.
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        match take_back(app, desk.handler.as_ref(), &job).await {
            Ok(true) => {
                tracing::info!(jobs = job.kind.as_str(), "handed back a job whose caller went away during the commit");
                drop(permit);
                app.bell.ring_inside(job.kind);
                return;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(kind = database_error_kind(&error), "could not hand a job back; trying again");
            }
        }
    }
}

/// Makes it ready, with what was committed beside it taken back. Says whether it was there, under that lease.
async fn take_back(app: &App, handler: &dyn Handler, job: &Claimed) -> Result<bool, DbErr> {
    let tx = app.db.write().await?;
    handler.hand_back(&tx, job).await?;
    let there = queue::hand_back(&tx, job).await?;
    if there {
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    Ok(there)
}
