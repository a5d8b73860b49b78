//! A job's run, and what becomes of it when that fails.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use control_plane::{
    jobs::{self, Claimed, Handler, JobKind, NewJob, Outcome, Runner},
    state::App,
};
use rstest::rstest;
use sea_orm::DbErr;
use shared::time::Timestamp;

use super::{FAST, KIND, enqueue, in_state, job, tear_down};
use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

/// What a test's handler does with one batch.
type Act = Box<dyn Fn(&[Claimed]) -> Vec<Outcome> + Send + Sync>;

/// A handler that does at once what the test says.
struct Acting {
    act: Act,
    batch: usize,
    given_up: Mutex<Vec<String>>,
}

impl Acting {
    fn new(batch: usize, act: impl Fn(&[Claimed]) -> Vec<Outcome> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { act: Box::new(act), batch, given_up: Mutex::default() })
    }
}

#[async_trait]
impl Handler for Acting {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        self.batch
    }
    async fn run(&self, _: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        (self.act)(&jobs)
    }
    async fn give_up(&self, _: &App, job: &Claimed) -> Result<(), DbErr> {
        self.given_up.lock().unwrap().push(job.subject.clone());
        Ok(())
    }
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn what_is_rolled_back_is_never_run(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let ran = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ran);
    let handler = Acting::new(1, move |jobs| {
        seen.lock().unwrap().push(jobs[0].subject.clone());
        vec![Outcome::Done]
    });
    let runner = Runner::start_with(&app, vec![handler], FAST);
    let tx = app.db.write().await.unwrap();
    jobs::enqueue(&tx, job("a", "rolled back")).await.unwrap();
    tx.rollback().await.unwrap();
    app.bell.ring(KIND);
    enqueue(&app, job("a", "committed")).await;
    eventually("the committed job is done", async || in_state(&app, "done").await == 1).await;
    assert_eq!(*ran.lock().unwrap(), ["committed"]);
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_job_that_nobody_rang_for_is_found(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let (app, other) = (parts.replica().await, parts.replica().await);
    let runner = Runner::start(&app, vec![Acting::new(1, |_| vec![Outcome::Done])]);
    enqueue(&other, job("a", "of the other replica")).await;
    eventually("the job is done", async || in_state(&app, "done").await == 1).await;
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_panic_costs_an_attempt_and_never_the_job(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let first = AtomicBool::new(true);
    let handler = Acting::new(1, move |_| {
        assert!(!first.swap(false, Ordering::Relaxed), "the first run panics");
        vec![Outcome::Done]
    });
    let runner = Runner::start_with(&app, vec![handler], FAST);
    enqueue(&app, job("a", "1")).await;
    eventually("the job is done", async || in_state(&app, "done").await == 1).await;
    assert_eq!(number(&app, "SELECT attempts FROM jobs").await, 2);
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_job_without_attempts_left_is_given_up_and_its_domain_told(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let handler = Acting::new(1, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        vec![Outcome::RetryAt(Timestamp::now(), "always")]
    });
    let runner = Runner::start_with(&app, vec![Arc::clone(&handler) as Arc<dyn Handler>], FAST);
    enqueue(&app, NewJob { max_attempts: 3, ..job("a", "hopeless") }).await;
    eventually("the job is dead", async || in_state(&app, "dead").await == 1).await;
    assert_eq!(runs.load(Ordering::Relaxed), 3);
    assert_eq!(*handler.given_up.lock().unwrap(), ["hopeless"]);
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_job_whose_process_dies_each_time_is_given_up(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let handler = Acting::new(1, |_| vec![Outcome::Done]);
    enqueue(&app, NewJob { max_attempts: 2, ..job("a", "poison") }).await;
    // As two processes left it that died with it.
    let dead =
        "UPDATE jobs SET state = 'running', attempts = 2, lease_owner = 'dead', lease_epoch = 2, lease_until = 1";
    execute(&app, dead, []).await;
    let runner = Runner::start_with(&app, vec![Arc::clone(&handler) as Arc<dyn Handler>], FAST);
    eventually("the job is dead", async || in_state(&app, "dead").await == 1).await;
    assert_eq!(*handler.given_up.lock().unwrap(), ["poison"]);
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_retry_waits_for_its_stored_time_and_blocks_nobody(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let later = Timestamp::now().plus(Duration::from_secs(3600));
    let handler = Acting::new(1, move |jobs| {
        vec![if jobs[0].subject == "head" { Outcome::RetryAt(later, "later") } else { Outcome::Done }]
    });
    enqueue(&app, job("a", "head")).await;
    enqueue(&app, job("a", "next")).await;
    let runner = Runner::start_with(&app, vec![handler.clone()], FAST);
    eventually("the next job is done", async || in_state(&app, "done").await == 1).await;
    assert_eq!(number(&app, "SELECT run_at FROM jobs WHERE subject = 'head'").await, later.as_millis());
    app.stop.cancel();
    runner.stopped().await;

    // Another process keeps to it, and runs the job when its time has come.
    let app = parts.replica().await;
    let runner = Runner::start_with(&app, vec![Acting::new(1, |_| vec![Outcome::Done])], FAST);
    enqueue(&app, job("b", "unrelated")).await;
    eventually("the unrelated job is done", async || in_state(&app, "done").await == 2).await;
    assert_eq!(in_state(&app, "ready").await, 1);
    execute(&app, "UPDATE jobs SET run_at = 1 WHERE subject = 'head'", []).await;
    eventually("the retry is done", async || in_state(&app, "done").await == 3).await;
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn waiting_costs_no_attempt(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let runs = AtomicUsize::new(0);
    let handler = Acting::new(1, move |jobs| {
        assert_eq!(jobs[0].attempts, 1);
        let run = runs.fetch_add(1, Ordering::Relaxed);
        vec![if run < 4 { Outcome::WaitUntil(Timestamp::now()) } else { Outcome::Done }]
    });
    let runner = Runner::start_with(&app, vec![handler], FAST);
    enqueue(&app, NewJob { max_attempts: 1, ..job("a", "1") }).await;
    eventually("the job is done", async || in_state(&app, "done").await == 1).await;
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn one_claim_takes_a_batch_of_a_lane_oldest_first(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let batches = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&batches);
    let handler = Acting::new(4, move |jobs| {
        seen.lock().unwrap().push(jobs.iter().map(|job| job.subject.clone()).collect::<Vec<_>>());
        vec![Outcome::Done; jobs.len()]
    });
    for number in 0..6 {
        enqueue(&app, job("a", number.to_string())).await;
    }
    let runner = Runner::start_with(&app, vec![handler], FAST);
    eventually("all are done", async || in_state(&app, "done").await == 6).await;
    assert_eq!(*batches.lock().unwrap(), [vec!["0", "1", "2", "3"], vec!["4", "5"]]);
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn figures_count_what_waits_runs_and_is_dead(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    for number in 0..4 {
        enqueue(&app, job("a", number.to_string())).await;
    }
    execute(&app, "UPDATE jobs SET run_at = $1 WHERE subject = '0'", [(Timestamp::now().as_millis() - 90_000).into()])
        .await;
    execute(&app, "UPDATE jobs SET state = 'dead' WHERE subject = '3'", []).await;
    execute(&app, "UPDATE jobs SET state = 'running' WHERE subject = '2'", []).await;
    let figures = jobs::figures(&app.db).await.unwrap();
    let of_kind = figures.iter().find(|figures| figures.kind == KIND.as_str()).unwrap();
    assert_eq!((of_kind.ready, of_kind.running, of_kind.dead), (2, 1, 1));
    assert!(of_kind.oldest_due >= Duration::from_secs(89) && of_kind.oldest_due < Duration::from_secs(120));
    parts.remove().await;
}
