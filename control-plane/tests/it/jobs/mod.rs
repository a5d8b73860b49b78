//! Durable jobs: nothing is lost, nothing runs twice at once, on both engines, with replicas that come and go.

mod dead_letters;
mod fairness;
mod leases;
mod once;
mod replicas;
mod running;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use control_plane::{
    jobs::{self, Claimed, Handler, JobKind, NewJob, Outcome, Runner, RunnerOptions},
    state::App,
};
use shared::{ids::TenantId, time::Timestamp};
use tokio::sync::watch;

use crate::parts::{Parts, number};

const KIND: JobKind = JobKind::DeliverWebhook;

/// Short enough to see leases end.
const FAST: RunnerOptions = RunnerOptions {
    lease: Duration::from_millis(1500),
    poll_min: Duration::from_millis(20),
    poll_max: Duration::from_millis(100),
    reclaim_every: Duration::from_millis(100),
    grace: Duration::from_millis(100),
};

fn job(lane: impl Into<String>, subject: impl Into<String>) -> NewJob {
    NewJob {
        tenant_id: TenantId::new(),
        kind: KIND,
        lane: lane.into(),
        subject: subject.into(),
        run_at: Timestamp::now(),
        max_attempts: 5,
    }
}

fn of(tenant: &TenantId, lane: impl Into<String>) -> NewJob {
    NewJob { tenant_id: tenant.clone(), ..job(lane, "of no matter") }
}

async fn enqueue_all(app: &App, jobs: impl IntoIterator<Item = NewJob>) {
    let tx = app.db.write().await.unwrap();
    for job in jobs {
        jobs::enqueue(&tx, job).await.unwrap();
    }
    tx.commit().await.unwrap();
    app.bell.ring(KIND);
}

async fn enqueue(app: &App, job: NewJob) {
    enqueue_all(app, [job]).await;
}

async fn in_state(app: &App, state: &str) -> i64 {
    number(app, &format!("SELECT COUNT(*) FROM jobs WHERE state = '{state}'")).await
}

/// Ends a replica and its runner, and removes the database.
async fn tear_down(parts: Parts, app: &App, runner: &Runner) {
    app.stop.cancel();
    runner.stopped().await;
    app.db.clone().close().await;
    parts.remove().await;
}

/// Notes whose jobs it got, in order; one lane at a time, while it isn't held.
#[derive(Default)]
struct Notes {
    served: Mutex<Vec<TenantId>>,
    outcome: Option<Outcome>,
    held: watch::Sender<bool>,
    waits: AtomicBool,
}

#[async_trait]
impl Handler for Notes {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        64
    }
    fn concurrency(&self) -> usize {
        1
    }
    async fn run(&self, _: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        self.waits.store(*self.held.borrow(), Ordering::SeqCst);
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        self.served.lock().unwrap().extend(jobs.iter().map(|job| job.tenant_id.clone()));
        jobs.iter().map(|_| self.outcome.unwrap_or(Outcome::Done)).collect()
    }
}
