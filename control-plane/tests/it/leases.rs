//! Leases of jobs when whoever began them goes away, and when a batch takes long.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use control_plane::{
    jobs::{self, Claimed, Handler, JobKind, NewJob, Outcome, Runner, RunnerOptions, Seat},
    state::App,
};
use rstest::rstest;
use sea_orm::DbErr;
use shared::{ids::TenantId, time::Timestamp};
use tokio::sync::watch;

use crate::{
    fleet::until,
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

const KIND: JobKind = JobKind::DeliverWebhook;

/// No lease ends while a test runs.
const LONG: RunnerOptions = RunnerOptions {
    lease: Duration::from_secs(600),
    poll_min: Duration::from_millis(20),
    poll_max: Duration::from_millis(100),
    reclaim_every: Duration::from_millis(100),
    grace: Duration::from_millis(100),
};

fn job(lane: &str) -> NewJob {
    NewJob {
        tenant_id: TenantId::new(),
        kind: KIND,
        lane: lane.into(),
        subject: "of no matter".into(),
        run_at: Timestamp::now(),
        max_attempts: 5,
    }
}

/// Does what it gets. What is given up waits until something was done.
#[derive(Default)]
struct Patient(watch::Sender<bool>);

#[async_trait]
impl Handler for Patient {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        8
    }
    async fn run(&self, _: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        self.0.send_replace(true);
        jobs.iter().map(|_| Outcome::Done).collect()
    }
    async fn give_up(&self, _: &App, _: &Claimed) -> Result<(), DbErr> {
        self.0.subscribe().wait_for(|done| *done).await.unwrap();
        Ok(())
    }
}

/// Whoever committed it went away before it could be run.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_job_under_a_lease_whose_seat_is_dropped_is_run_long_before_the_lease_ends(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let runner = Runner::start_with(&app, vec![Arc::new(Patient::default())], LONG);
    let mut lanes = 0;
    let dropped = until("a job is committed under a lease", async || {
        lanes += 1;
        let tx = app.db.write().await.unwrap();
        let seat = app.direct.enqueue(&tx, job(&format!("lane:{lanes}"))).await.unwrap();
        let seat = seat.map(Seat::to_be_committed);
        tx.commit().await.unwrap();
        seat
    })
    .await;
    drop(dropped);
    eventually("all jobs are done", async || {
        number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'done'").await == lanes
    })
    .await;
    assert_eq!(number(&app, "SELECT MAX(attempts) FROM jobs").await, 1, "it was not tried before");
    app.stop.cancel();
    runner.stopped().await;
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_job_that_is_given_up_holds_up_none_of_its_batch(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    for _ in 0..2 {
        jobs::enqueue(app.db.autocommit(), job("lane")).await.unwrap();
    }
    execute(&app, "UPDATE jobs SET attempts = max_attempts WHERE id = (SELECT MIN(id) FROM jobs)", []).await;
    let runner = Runner::start_with(&app, vec![Arc::new(Patient::default())], LONG);
    eventually("one is done, and one is given up", async || {
        number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'done'").await == 1
            && number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'dead'").await == 1
    })
    .await;
    app.stop.cancel();
    runner.stopped().await;
    app.db.clone().close().await;
    parts.remove().await;
}
