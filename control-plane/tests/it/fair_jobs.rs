//! Jobs in fair turns, once under a key, by the clock, called off, and tried again after death.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use control_plane::{
    jobs::{
        self, Claimed, Handler, JobKind, NewJob, Outcome, Runner, RunnerOptions, dead,
        schedule::{self, Entry},
    },
    redis::subscriber,
    state::App,
};
use rstest::rstest;
use shared::{
    ids::{JobId, TenantId},
    time::Timestamp,
};

use tokio::sync::watch;

use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

const KIND: JobKind = JobKind::DeliverWebhook;
const BACKLOG: usize = 20_000;

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

fn job(tenant: &TenantId, lane: impl Into<String>) -> NewJob {
    NewJob {
        tenant_id: tenant.clone(),
        kind: KIND,
        lane: lane.into(),
        subject: "of no matter".into(),
        run_at: Timestamp::now(),
        max_attempts: 5,
    }
}

async fn enqueue_all(app: &App, jobs: impl IntoIterator<Item = NewJob>) {
    let tx = app.db.write().await.unwrap();
    for job in jobs {
        jobs::enqueue(&tx, job).await.unwrap();
    }
    tx.commit().await.unwrap();
    app.bell.ring(KIND);
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn behind_20000_jobs_of_another_tenant_the_tenth_job_is_served_within_forty(
    #[case] engine: Engine,
    #[values(1, 400)] lanes_of_big: usize,
    #[values(1, 10)] lanes_of_small: usize,
) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let (big, small) = (TenantId::new(), TenantId::new());
    enqueue_all(&app, (0..BACKLOG).map(|n| job(&big, format!("big:{}", n % lanes_of_big)))).await;
    let notes = Arc::new(Notes::default());
    let runner = Runner::start(&app, vec![notes.clone()]);
    eventually("the backlog is being served", async || notes.served.lock().unwrap().len() >= 300).await;
    // A batch that was claimed before the small tenant came counts as served.
    notes.held.send_replace(true);
    eventually("a batch is in work", async || notes.waits.load(Ordering::SeqCst)).await;
    let before = usize::try_from(number(&app, "SELECT COUNT(*) FROM jobs WHERE attempts > 0").await).unwrap();
    enqueue_all(&app, (0..10).map(|n| job(&small, format!("small:{}", n % lanes_of_small)))).await;
    notes.held.send_replace(false);
    let small_ones = |served: &[TenantId]| served.iter().filter(|tenant| **tenant == small).count();
    eventually("the tenth job is served", async || small_ones(&notes.served.lock().unwrap()) == 10).await;
    let served = notes.served.lock().unwrap().clone();
    let tenth = served.iter().rposition(|tenant| *tenant == small).unwrap() + 1;
    assert!(served.len() < BACKLOG, "the backlog was still there");
    assert!(tenth > before && tenth - before <= 40, "job {} since it came", tenth - before);
    println!(
        "{engine:?}, {lanes_of_big} and {lanes_of_small} lanes: the tenth was job {} since it came",
        tenth - before
    );
    app.stop.cancel();
    runner.stopped().await;
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn under_one_key_there_is_one_job_until_it_has_ended(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let (one, other) = (TenantId::new(), TenantId::new());
    let db = app.db.autocommit();
    assert!(jobs::enqueue_once(db, job(&one, "a"), "key").await.unwrap());
    assert!(!jobs::enqueue_once(db, job(&one, "b"), "key").await.unwrap());
    assert!(jobs::enqueue_once(db, job(&one, "b"), "another key").await.unwrap());
    assert!(jobs::enqueue_once(db, job(&other, "c"), "key").await.unwrap(), "another tenant's key is another key");
    let runner = Runner::start(&app, vec![Arc::new(Notes::default())]);
    eventually("all have ended", async || number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'done'").await == 3)
        .await;
    assert!(jobs::enqueue_once(db, job(&one, "a"), "key").await.unwrap());
    app.stop.cancel();
    runner.stopped().await;
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_by_the_clock_is_one_job_however_many_replicas_look(#[case] engine: Engine) {
    const ENTRIES: &[Entry] =
        &[Entry { name: "minutely", expression: "* * * * *" }, Entry { name: "yearly", expression: "0 0 1 1 *" }];
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    schedule::enter(&app, ENTRIES).await.unwrap();
    assert_eq!(schedule::tick(&app, ENTRIES, Timestamp::now()).await.unwrap(), 0, "nothing is due yet");
    // Five minutes nobody looked.
    let later = Timestamp::now().plus(Duration::from_secs(300));
    let looks = (0..8).map(|_| {
        let app = app.clone();
        tokio::spawn(async move { schedule::tick(&app, ENTRIES, later).await.unwrap() })
    });
    let committed: usize = futures_util::future::join_all(looks).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(committed, 1);
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE kind = 'upkeep' AND subject = 'minutely'").await, 1);
    let next = number(&app, "SELECT next_at FROM cron WHERE name = 'minutely'").await;
    assert!(next > later.as_millis() && next <= later.plus(Duration::from_secs(60)).as_millis() && next % 60_000 == 0);

    let again = later.plus(Duration::from_secs(120));
    assert_eq!(schedule::tick(&app, ENTRIES, again).await.unwrap(), 0, "the one before still waits");
    execute(&app, "UPDATE jobs SET state = 'done', finished_at = 1", []).await;
    assert_eq!(schedule::tick(&app, ENTRIES, again.plus(Duration::from_secs(60))).await.unwrap(), 1);
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_dead_job_can_be_redriven_and_a_waiting_one_called_off(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let tenant = TenantId::new();
    enqueue_all(&app, (0..3).map(|n| job(&tenant, format!("lane:{n}")))).await;
    let runner =
        Runner::start(&app, vec![Arc::new(Notes { outcome: Some(Outcome::Dead("of boredom")), ..Notes::default() })]);
    eventually("all are dead", async || number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'dead'").await == 3)
        .await;
    app.stop.cancel();
    runner.stopped().await;

    let found = dead::list(&app.db, None, 50).await.unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|job| job.why.as_deref() == Some("of boredom") && job.tenant_id == tenant));
    assert!(dead::list(&app.db, Some(JobKind::SendMessages), 50).await.unwrap().is_empty());
    assert!(dead::redrive(&app.db, &found[0].id).await.unwrap());
    assert!(!dead::redrive(&app.db, &found[0].id).await.unwrap(), "it isn't dead any more");
    assert_eq!(dead::redrive_all(&app.db, KIND).await.unwrap(), 2);
    let fresh = "SELECT COUNT(*) FROM jobs WHERE state = 'ready' AND attempts = 0 AND finished_at IS NULL";
    assert_eq!(number(&app, fresh).await, 3);

    assert!(dead::cancel(app.db.autocommit(), &found[0].id).await.unwrap());
    assert!(!dead::cancel(app.db.autocommit(), &found[0].id).await.unwrap());
    assert!(!dead::cancel(app.db.autocommit(), &JobId::new()).await.unwrap());
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'ready' AND attempts = max_attempts").await, 1);
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn dead_jobs_of_one_key_are_redriven_together_and_beside_one_that_waits(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let (tenant, db) = (TenantId::new(), app.db.autocommit());
    let die = "UPDATE jobs SET state = 'dead', finished_at = 1 WHERE state = 'ready'";
    for _ in 0..2 {
        assert!(jobs::enqueue_once(db, job(&tenant, "lane"), "key").await.unwrap());
        execute(&app, die, []).await;
    }
    assert_eq!(dead::redrive_all(&app.db, KIND).await.unwrap(), 2);
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'ready'").await, 2);
    execute(&app, die, []).await;
    assert!(jobs::enqueue_once(db, job(&tenant, "lane"), "key").await.unwrap(), "they left the key to others");
    let found = dead::list(&app.db, None, 50).await.unwrap();
    assert!(dead::redrive(&app.db, &found[0].id).await.unwrap());
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_kind_of_a_newer_version_is_left_alone_and_stops_nobody(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let tenant = TenantId::new();
    enqueue_all(&app, [job(&tenant, "theirs"), job(&tenant, "ours")]).await;
    execute(&app, "UPDATE jobs SET kind = 'of.the.future' WHERE lane = 'theirs'", []).await;
    let runner = Runner::start(&app, vec![Arc::new(Notes::default())]);
    eventually("ours is done", async || number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'done'").await == 1)
        .await;
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'ready' AND attempts = 0").await, 1);
    app.stop.cancel();
    runner.stopped().await;
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::by_redis(Engine::Postgres)]
#[case::by_postgres(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn a_ring_in_one_replica_wakes_the_runner_of_another(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let (here, there) = (parts.replica().await, parts.replica().await);
    let listener = tokio::spawn(subscriber::listen(there.clone()));
    eventually("Redis is heard", async || there.redis.is_none() || there.key_cache.works()).await;
    // Nobody polls while this test runs.
    let never = Duration::from_secs(3_600);
    let options = RunnerOptions { poll_min: never, poll_max: never, ..RunnerOptions::default() };
    let notes = Arc::new(Notes::default());
    let runners =
        [Runner::start_with(&here, Vec::new(), options), Runner::start_with(&there, vec![notes.clone()], options)];
    eventually("the other one listens", async || {
        number(&here, "SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").await >= 2
    })
    .await;
    enqueue_all(&here, [job(&TenantId::new(), "lane")]).await;
    eventually("it was woken", async || notes.served.lock().unwrap().len() == 1).await;
    for app in [&here, &there] {
        app.stop.cancel();
    }
    for runner in &runners {
        runner.stopped().await;
    }
    listener.await.unwrap();
    there.db.clone().close().await;
    here.db.clone().close().await;
    parts.remove().await;
}
