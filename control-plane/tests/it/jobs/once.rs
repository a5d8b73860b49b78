//! What is one job, however often it is asked for: under a key, and by the clock.

use std::{sync::Arc, time::Duration};

use control_plane::jobs::{
    self, Runner,
    schedule::{self, Entry},
};
use rstest::rstest;
use shared::{ids::TenantId, time::Timestamp};

use super::{Notes, in_state, of, tear_down};
use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn under_one_key_there_is_one_job_until_it_has_ended(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let (one, other) = (TenantId::new(), TenantId::new());
    let db = app.db.autocommit();
    assert!(jobs::enqueue_once(db, of(&one, "a"), "key").await.unwrap());
    assert!(!jobs::enqueue_once(db, of(&one, "b"), "key").await.unwrap());
    assert!(jobs::enqueue_once(db, of(&one, "b"), "another key").await.unwrap());
    assert!(jobs::enqueue_once(db, of(&other, "c"), "key").await.unwrap(), "another tenant's key is another key");
    let runner = Runner::start(&app, vec![Arc::new(Notes::default())]);
    eventually("all have ended", async || in_state(&app, "done").await == 3).await;
    assert!(jobs::enqueue_once(db, of(&one, "a"), "key").await.unwrap());
    tear_down(parts, &app, &runner).await;
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
    let now = Timestamp::now();
    schedule::enter(&app, ENTRIES).await.unwrap();
    assert_eq!(schedule::tick(&app, ENTRIES, now).await.unwrap(), 0, "nothing is due yet");
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
