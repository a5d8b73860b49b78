//! Durable jobs: nothing is lost, nothing runs twice at once, on both engines, with replicas that come and go.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use control_plane::{
    jobs::{self, Claimed, Handler, JobKind, NewJob, Outcome, Runner, RunnerOptions},
    state::App,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;
use sea_orm::DbErr;
use shared::{ids::TenantId, time::Timestamp};

use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

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

async fn enqueue(app: &App, job: NewJob) {
    let tx = app.db.write().await.unwrap();
    jobs::enqueue(&tx, job).await.unwrap();
    tx.commit().await.unwrap();
    app.bell.ring(KIND);
}

async fn in_state(app: &App, state: &str) -> i64 {
    number(app, &format!("SELECT COUNT(*) FROM jobs WHERE state = '{state}'")).await
}

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

/// What all replicas of a test saw.
#[derive(Default)]
struct Watch {
    running: Mutex<HashMap<String, usize>>,
    finished: Mutex<HashMap<String, usize>>,
    overlaps: AtomicUsize,
}

/// A lane that is worked on, for as long as this lives: also when the work is dropped half-way.
struct Busy<'a>(&'a Watch, String);

impl<'a> Busy<'a> {
    fn new(watch: &'a Watch, lane: &str) -> Self {
        let mut running = watch.running.lock().unwrap();
        let count = running.entry(lane.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            watch.overlaps.fetch_add(1, Ordering::Relaxed);
        }
        drop(running);
        Self(watch, lane.to_owned())
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

/// A handler that takes a while, and succeeds, fails, panics or says nothing by chance.
struct Chancy {
    watch: Arc<Watch>,
    rng: Mutex<StdRng>,
}

#[async_trait]
impl Handler for Chancy {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        3
    }
    fn concurrency(&self) -> usize {
        6
    }
    async fn run(&self, _: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let _busy = Busy::new(&self.watch, &jobs[0].lane);
        assert!(jobs.iter().all(|job| job.lane == jobs[0].lane), "a batch is of one lane");
        assert!(jobs.windows(2).all(|pair| pair[0].id < pair[1].id), "the oldest first");
        let (work, chance) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.random_range(0..15), rng.random_range(0..100))
        };
        tokio::time::sleep(Duration::from_millis(work)).await;
        match chance {
            0..3 => panic!("by chance"),
            3..6 => Vec::new(),
            6..20 => jobs.iter().map(|_| Outcome::RetryAt(Timestamp::now(), "by chance")).collect(),
            _ => {
                let mut finished = self.watch.finished.lock().unwrap();
                for job in &jobs {
                    *finished.entry(job.subject.clone()).or_default() += 1;
                }
                jobs.iter().map(|_| Outcome::Done).collect()
            }
        }
    }
}

/// Two replicas work, and one after the other is killed: its runtime is dropped, leases and all.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_is_lost_or_run_twice_at_once_while_replicas_die(#[case] engine: Engine, #[values(1, 2)] seed: u64) {
    const JOBS: usize = 120;
    let Some(parts) = Parts::new(engine).await else { return };
    let parts = Arc::new(parts);
    let app = parts.replica().await;
    let watch = Arc::new(Watch::default());
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..JOBS {
        let new = NewJob { max_attempts: 1000, ..job(format!("lane:{}", rng.random_range(0..9)), number.to_string()) };
        enqueue(&app, new).await;
    }
    let start = |number: u64| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (parts, watch) = (Arc::clone(&parts), Arc::clone(&watch));
        runtime.spawn(async move {
            let app = parts.replica().await;
            let rng = Mutex::new(StdRng::seed_from_u64(seed * 100 + number));
            let runner = Runner::start_with(&app, vec![Arc::new(Chancy { watch, rng })], FAST);
            runner.stopped().await;
        });
        runtime
    };
    let mut replicas = vec![start(0), start(1)];
    for number in 2..5 {
        // Killed somewhere in the middle of its work.
        let progress = watch.finished.lock().unwrap().len();
        let more = rng.random_range(1..12);
        eventually("some progress", async || {
            let finished = watch.finished.lock().unwrap().len();
            finished >= progress + more || finished == JOBS
        })
        .await;
        replicas.remove(0).shutdown_background();
        replicas.push(start(number));
    }
    eventually("every job is done", async || in_state(&app, "done").await == JOBS as i64).await;
    assert_eq!(watch.overlaps.load(Ordering::Relaxed), 0, "a lane was worked on twice at once");
    assert_eq!(watch.finished.lock().unwrap().len(), JOBS);
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs").await, JOBS as i64);
    for replica in replicas {
        replica.shutdown_background();
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
}

/// Starts to work and never ends.
struct Endless {
    started: tokio::sync::Notify,
    dropped: Arc<AtomicUsize>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Handler for Endless {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        2
    }
    async fn run(&self, _: &App, _: Vec<Claimed>) -> Vec<Outcome> {
        let _dropped = CountDrop(Arc::clone(&self.dropped));
        self.started.notify_one();
        std::future::pending().await
    }
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_runner_that_stops_hands_its_jobs_back_uncounted(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let dropped = Arc::new(AtomicUsize::new(0));
    let endless = Arc::new(Endless { started: tokio::sync::Notify::new(), dropped: Arc::clone(&dropped) });
    enqueue(&app, job("a", "1")).await;
    enqueue(&app, job("a", "2")).await;
    let runner = Runner::start_with(&app, vec![Arc::clone(&endless) as Arc<dyn Handler>], FAST);
    endless.started.notified().await;
    app.stop.cancel();
    runner.stopped().await;
    assert_eq!(dropped.load(Ordering::SeqCst), 1, "the work was dropped before its jobs were handed back");
    assert_eq!(in_state(&app, "ready").await, 2);
    assert_eq!(number(&app, "SELECT CAST(SUM(attempts) AS BIGINT) FROM jobs").await, 0);
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_lease_is_extended_while_the_work_goes_on_and_the_work_dropped_when_it_is_lost(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let dropped = Arc::new(AtomicUsize::new(0));
    let endless = Arc::new(Endless { started: tokio::sync::Notify::new(), dropped: Arc::clone(&dropped) });
    enqueue(&app, job("a", "1")).await;
    let runner = Runner::start_with(&app, vec![Arc::clone(&endless) as Arc<dyn Handler>], FAST);
    endless.started.notified().await;
    let first = number(&app, "SELECT lease_until FROM jobs").await;
    eventually("the lease is extended", async || number(&app, "SELECT lease_until FROM jobs").await > first + 400)
        .await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    // Somebody else has the job now, as after a long pause of this process.
    let stolen = "UPDATE jobs SET lease_owner = 'another', lease_epoch = lease_epoch + 1";
    assert_eq!(execute(&app, stolen, []).await, 1);
    eventually("the work is dropped", async || dropped.load(Ordering::SeqCst) == 1).await;
    app.stop.cancel();
    runner.stopped().await;
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE lease_owner = 'another'").await, 1, "left alone");
    parts.remove().await;
}

/// Settles by itself, but only after the test has said so.
struct Waits {
    started: tokio::sync::Notify,
    go_on: tokio::sync::Notify,
    settled: Mutex<Option<bool>>,
}

#[async_trait]
impl Handler for Waits {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        1
    }
    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        self.started.notify_one();
        self.go_on.notified().await;
        let tx = app.db.write().await.unwrap();
        let settled = jobs::settle(&tx, &jobs[0], Outcome::Done).await.unwrap();
        tx.commit().await.unwrap();
        *self.settled.lock().unwrap() = Some(settled);
        vec![Outcome::Done.settled()]
    }
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn nothing_is_settled_under_a_lease_that_was_lost(#[case] engine: Engine, #[values(false, true)] lost: bool) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let waits = Arc::new(Waits {
        started: tokio::sync::Notify::new(),
        go_on: tokio::sync::Notify::new(),
        settled: Mutex::new(None),
    });
    enqueue(&app, job("a", "1")).await;
    let runner = Runner::start(&app, vec![Arc::clone(&waits) as Arc<dyn Handler>]);
    waits.started.notified().await;
    if lost {
        execute(&app, "UPDATE jobs SET lease_epoch = lease_epoch + 1", []).await;
    }
    waits.go_on.notify_one();
    eventually("the handler has tried", async || waits.settled.lock().unwrap().is_some()).await;
    assert_eq!(*waits.settled.lock().unwrap(), Some(!lost));
    assert_eq!(in_state(&app, "done").await, i64::from(!lost));
    app.stop.cancel();
    runner.stopped().await;
    parts.remove().await;
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
