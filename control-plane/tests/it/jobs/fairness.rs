//! Whose jobs come when: tenants in fair turns, and a ring that wakes another replica.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use control_plane::{
    jobs::{Runner, RunnerOptions},
    redis::subscriber,
};
use rstest::rstest;
use shared::ids::TenantId;

use super::{Notes, enqueue_all, in_state, of, tear_down};
use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

const BACKLOG: usize = 20_000;

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
    enqueue_all(&app, (0..BACKLOG).map(|n| of(&big, format!("big:{}", n % lanes_of_big)))).await;
    let notes = Arc::new(Notes::default());
    let runner = Runner::start(&app, vec![notes.clone()]);
    eventually("the backlog is being served", async || notes.served.lock().unwrap().len() >= 300).await;
    // A batch that was claimed before the small tenant came counts as served.
    notes.held.send_replace(true);
    eventually("a batch is in work", async || notes.waits.load(Ordering::SeqCst)).await;
    let before = usize::try_from(number(&app, "SELECT COUNT(*) FROM jobs WHERE attempts > 0").await).unwrap();
    enqueue_all(&app, (0..10).map(|n| of(&small, format!("small:{}", n % lanes_of_small)))).await;
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
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_kind_of_a_newer_version_is_left_alone_and_stops_nobody(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let tenant = TenantId::new();
    enqueue_all(&app, [of(&tenant, "theirs"), of(&tenant, "ours")]).await;
    execute(&app, "UPDATE jobs SET kind = 'of.the.future' WHERE lane = 'theirs'", []).await;
    let runner = Runner::start(&app, vec![Arc::new(Notes::default())]);
    eventually("ours is done", async || in_state(&app, "done").await == 1).await;
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE state = 'ready' AND attempts = 0").await, 1);
    tear_down(parts, &app, &runner).await;
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
        let listening =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()";
        number(&here, listening).await >= 2
    })
    .await;
    enqueue_all(&here, [of(&TenantId::new(), "lane")]).await;
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
