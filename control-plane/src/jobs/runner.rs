//! Claims jobs and runs them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::time::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    Claimed, Handler, Outcome,
    claim::{self, Claim},
    direct::Desk,
    doorbell, metrics, queue,
};
use crate::{error::database_error_kind, state::App};

/// How a runner times its work. The defaults are for production; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct RunnerOptions {
    /// The term of a lease.
    pub lease: Duration,
    /// How often to look for jobs that nobody rang for, right after finding some.
    pub poll_min: Duration,
    /// And after finding none for a while.
    pub poll_max: Duration,
    /// How often to send jobs whose lease ended back to `ready`.
    pub reclaim_every: Duration,
    /// How long running jobs may take to finish once the process stops.
    pub grace: Duration,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            poll_min: Duration::from_millis(200),
            poll_max: Duration::from_secs(1),
            reclaim_every: Duration::from_secs(5),
            grace: Duration::from_secs(5),
        }
    }
}

/// How many lanes one claim takes at most: it bounds how long a claim holds SQLite's only writer.
const LANES_PER_CLAIM: usize = 32;
/// How long rows of jobs that are done are kept.
const KEEP_DONE: Duration = Duration::from_secs(60 * 60);
/// How long rows of jobs that are dead are kept.
const KEEP_DEAD: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How often finished rows are pruned.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How often the figures are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(15);
/// How often the settling of a batch is tried before it is left to the end of its lease.
const SETTLE_TRIES: u32 = 5;

/// The background work that claims and runs jobs. Stops when the app stops; [`Runner::stopped`] waits for it.
#[derive(Debug)]
pub struct Runner {
    tasks: TaskTracker,
}

/// What every task of one runner shares.
pub(super) struct Context {
    app: App,
    /// The name of this runner in leases: no two runs share it.
    owner: String,
    options: RunnerOptions,
    /// Cancelled when running jobs have had their grace.
    abort: CancellationToken,
}

impl Context {
    pub(super) const fn app(&self) -> &App {
        &self.app
    }

    pub(super) fn stops(&self) -> bool {
        self.app.stop.is_cancelled()
    }

    /// This runner's name in leases, and their term.
    pub(super) fn lease(&self) -> (&str, Duration) {
        (&self.owner, self.options.lease)
    }
}

impl Runner {
    /// Starts with the defaults.
    #[must_use]
    pub fn start(app: &App, handlers: Vec<Arc<dyn Handler>>) -> Self {
        Self::start_with(app, handlers, RunnerOptions::default())
    }

    /// Starts with other times.
    #[must_use]
    pub fn start_with(app: &App, handlers: Vec<Arc<dyn Handler>>, options: RunnerOptions) -> Self {
        let tasks = TaskTracker::new();
        let context = Arc::new(Context {
            app: app.clone(),
            owner: format!("run_{}", uuid::Uuid::now_v7().simple()),
            options,
            abort: CancellationToken::new(),
        });
        let lanes = TaskTracker::new();
        let claimers = TaskTracker::new();
        for handler in handlers {
            claimers.spawn(claim_for_ever(Arc::clone(&context), handler, lanes.clone()));
        }
        claimers.close();
        tasks.spawn(maintain(Arc::clone(&context)));
        tasks.spawn(prune(Arc::clone(&context)));
        tasks.spawn(doorbell::tell(app.clone()));
        tasks.spawn(doorbell::listen(app.clone()));
        tasks.spawn(wind_up(context, claimers, lanes));
        tasks.close();
        Self { tasks }
    }

    /// Completes when everything has stopped and every lease has been handed back.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// Waits for the stop, lets running jobs finish for a while, and hands back the rest.
async fn wind_up(context: Arc<Context>, claimers: TaskTracker, lanes: TaskTracker) {
    context.app.stop.cancelled().await;
    context.app.direct.close();
    claimers.wait().await;
    lanes.close();
    if tokio::time::timeout(context.options.grace, lanes.wait()).await.is_err() {
        context.abort.cancel();
        lanes.wait().await;
    }
    match queue::release(&context.app.db, &context.owner).await {
        Ok(0) => {}
        Ok(jobs) => tracing::info!(jobs, "handed back the jobs that had not finished"),
        Err(error) => {
            tracing::warn!(kind = database_error_kind(&error), "could not hand jobs back: their leases will end");
        }
    }
}

/// Claims jobs of one kind as long as the app runs.
async fn claim_for_ever(context: Arc<Context>, handler: Arc<dyn Handler>, lanes: TaskTracker) {
    let kind = handler.kind();
    let places = handler.concurrency();
    let free = Arc::new(Semaphore::new(places));
    let desk = Desk {
        context: Arc::clone(&context),
        handler: Arc::clone(&handler),
        free: Arc::clone(&free),
        places,
        lanes: lanes.clone(),
    };
    context.app.direct.open(kind, desk);
    let mut pause = context.options.poll_min;
    loop {
        // A ring from here on is not missed: `Bell` keeps one.
        let slots = free.available_permits().min(LANES_PER_CLAIM);
        let claim = Claim {
            owner: &context.owner,
            lease: context.options.lease,
            kind,
            lanes: slots,
            batch: handler.batch().max(1),
        };
        let more = if slots == 0 {
            false
        } else {
            let since = Instant::now();
            match claim::claim(&context.app.db, claim).await {
                Ok(found) => {
                    pause = if found.lanes.is_empty() {
                        (pause * 2).min(context.options.poll_max)
                    } else {
                        context.options.poll_min
                    };
                    let progress = !found.lanes.is_empty();
                    for jobs in found.lanes {
                        // A place may have been taken by a job that runs directly: then this lane waits for the next one.
                        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { break };
                        lanes.spawn(run_lane(Arc::clone(&context), Arc::clone(&handler), jobs, since, permit));
                    }
                    found.more && progress
                }
                Err(error) => {
                    tracing::warn!(kind = database_error_kind(&error), jobs = kind.as_str(), "could not claim jobs");
                    pause = context.options.poll_max;
                    false
                }
            }
        };
        if context.app.stop.is_cancelled() {
            return;
        }
        if more {
            continue;
        }
        tokio::select! {
            () = context.app.stop.cancelled() => return,
            () = context.app.bell.rung(kind) => {}
            () = tokio::time::sleep(pause), if slots > 0 => {}
            // All lanes are taken: wait for one.
            _ = free.acquire(), if slots == 0 => {}
        }
    }
}

/// Runs one batch of a lane to its end, or until its lease is lost. `since` is a moment before it was claimed.
pub(super) async fn run_lane(
    context: Arc<Context>,
    handler: Arc<dyn Handler>,
    leased: Vec<Claimed>,
    since: Instant,
    permit: OwnedSemaphorePermit,
) {
    let kind = handler.kind();
    let (spent, jobs): (Vec<_>, Vec<_>) = leased.iter().cloned().partition(|job| job.attempts > job.max_attempts);
    if !jobs.is_empty() {
        let started = Instant::now();
        let batch = jobs.clone();
        let (app, runs) = (context.app.clone(), Arc::clone(&handler));
        // A task of its own, so that a panic stays in it.
        let mut running = AbortOnDropHandle::new(tokio::spawn(async move { runs.run(&app, batch).await }));
        let outcomes = tokio::select! {
            ended = &mut running => match ended {
                Ok(outcomes) => outcomes,
                Err(_) => {
                    tracing::error!(jobs = kind.as_str(), "a handler of jobs panicked");
                    Vec::new()
                }
            },
            () = keep_lease(&context, &leased, since) => {
                tracing::warn!(jobs = kind.as_str(), "lost the lease of a batch: its work is dropped");
                metrics::finished(kind, "lease_lost", jobs.len());
                stop(running).await;
                return;
            }
            () = context.abort.cancelled() => {
                // Its jobs are handed back by `wind_up`, which waits for this.
                stop(running).await;
                return;
            }
        };
        metrics::ran(kind, started.elapsed());
        let mut settled = Vec::with_capacity(jobs.len());
        for (at, job) in jobs.into_iter().enumerate() {
            let outcome = outcomes.get(at).copied();
            let outcome = outcome.unwrap_or_else(|| queue::after_failure(&job, "the handler said nothing"));
            if matches!(outcome, Outcome::RetryAt(..)) && job.is_last_attempt() {
                give_up(&context, handler.as_ref(), &job).await;
            } else {
                settled.push((job, outcome));
            }
        }
        settle_batch(&context, &settled).await;
    }
    // After the others, whose lease is extended only while they run.
    for job in spent {
        give_up(&context, handler.as_ref(), &job).await;
    }
    drop(permit);
    // The lane is free again, and may have more that is due.
    context.app.bell.ring_inside(kind);
}

/// Ends a handler's run, and waits until it has ended: nothing of it may happen after its jobs belong to somebody else.
async fn stop(running: AbortOnDropHandle<Vec<Outcome>>) {
    running.abort();
    // Cancelled, finished or panicked: it is over, and its outcome counts for nothing.
    let _over = running.await;
}

/// Settles a batch in one transaction, and tries again for a while if the database is away.
async fn settle_batch(context: &Context, settled: &[(Claimed, Outcome)]) {
    let unsettled = settled.iter().any(|(_, outcome)| !matches!(outcome, Outcome::Settled(_)));
    for (job, outcome) in settled {
        metrics::finished(job.kind, outcome.word(), 1);
    }
    if !unsettled {
        return;
    }
    for attempt in 1..=SETTLE_TRIES {
        match settle_once(context, settled).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(kind = database_error_kind(&error), attempt, "could not settle jobs");
                tokio::select! {
                    () = context.abort.cancelled() => return,
                    () = tokio::time::sleep(super::handler::back_off(attempt)) => {}
                }
            }
        }
    }
}

async fn settle_once(context: &Context, settled: &[(Claimed, Outcome)]) -> Result<(), sea_orm::DbErr> {
    let tx = context.app.db.write().await?;
    if !queue::settle_all(&tx, settled).await? {
        tracing::warn!("a job was settled after its lease had been lost: ignored");
    }
    tx.commit().await
}

/// A job that has had all its attempts: tells its domain, then buries it.
async fn give_up(context: &Context, handler: &dyn Handler, job: &Claimed) {
    const WHY: &str = "no attempts left";
    let told = handler.give_up(&context.app, job).await;
    let outcome = match told {
        Ok(()) => Outcome::Dead(WHY),
        Err(error) => {
            tracing::warn!(kind = database_error_kind(&error), "could not give a job up: it will be tried again");
            return;
        }
    };
    settle_batch(context, &[(job.clone(), outcome)]).await;
}

/// Extends the lease of a batch for as long as it can; completes when it is lost.
async fn keep_lease(context: &Context, jobs: &[Claimed], since: Instant) {
    let lease = context.options.lease;
    // The term is counted from before the claim was sent, by a clock that only goes forward. Much of it may be over: a place was waited
    // for, or the commit took its time.
    let mut held_until = since + lease;
    let mut next = since + lease / 3;
    loop {
        tokio::time::sleep_until(next.into()).await;
        let asked = Instant::now();
        match tokio::time::timeout(lease / 3, queue::extend(&context.app.db, &context.owner, jobs, lease)).await {
            Ok(Ok(true)) => held_until = asked + lease,
            Ok(Ok(false)) => return,
            Ok(Err(_)) | Err(_) if Instant::now() + lease / 3 >= held_until => return,
            Ok(Err(_)) | Err(_) => tracing::warn!("could not extend the lease of a batch; trying again"),
        }
        next = Instant::now() + lease / 3;
    }
}

/// Brings back what was lost, and measures.
async fn maintain(context: Arc<Context>) {
    let db = &context.app.db;
    let mut reclaim = tokio::time::interval(context.options.reclaim_every);
    let mut measure = tokio::time::interval(MEASURE_EVERY);
    for interval in [&mut reclaim, &mut measure] {
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        let (doing, done) = tokio::select! {
            () = context.app.stop.cancelled() => return,
            _ = reclaim.tick() => ("reclaim", queue::reclaim(db).await.map(|jobs| {
                if jobs > 0 {
                    tracing::warn!(jobs, "took back jobs whose lease had ended");
                }
            })),
            _ = measure.tick() => ("measure", queue::figures(db).await.map(|figures| metrics::measured(&figures))),
        };
        if let Err(error) = done {
            tracing::warn!(kind = database_error_kind(&error), doing, "the upkeep of jobs failed; trying again");
        }
    }
}

/// Prunes what is finished. Beside [`maintain`]: however much there is, what was lost comes back in time.
async fn prune(context: Arc<Context>) {
    let mut every = tokio::time::interval(PRUNE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = context.app.stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let now = Timestamp::now();
        let pruned = match queue::prune(&context.app, now.minus(KEEP_DONE), now.minus(KEEP_DEAD)).await {
            Ok(()) => claim::forget_turns(&context.app.db).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = pruned {
            tracing::warn!(kind = database_error_kind(&error), "finished jobs were not pruned; trying again");
        }
    }
}
