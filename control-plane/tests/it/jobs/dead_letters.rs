//! Dead jobs, redriven, and waiting ones that are called off.

use std::sync::Arc;

use control_plane::jobs::{self, JobKind, Outcome, Runner, dead};
use rstest::rstest;
use shared::ids::{JobId, TenantId};

use super::{KIND, Notes, enqueue_all, in_state, of};
use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_dead_job_can_be_redriven_and_a_waiting_one_called_off(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let tenant = TenantId::new();
    enqueue_all(&app, (0..3).map(|n| of(&tenant, format!("lane:{n}")))).await;
    let runner =
        Runner::start(&app, vec![Arc::new(Notes { outcome: Some(Outcome::Dead("of boredom")), ..Notes::default() })]);
    eventually("all are dead", async || in_state(&app, "dead").await == 3).await;
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
        assert!(jobs::enqueue_once(db, of(&tenant, "lane"), "key").await.unwrap());
        execute(&app, die, []).await;
    }
    assert_eq!(dead::redrive_all(&app.db, KIND).await.unwrap(), 2);
    assert_eq!(in_state(&app, "ready").await, 2);
    execute(&app, die, []).await;
    assert!(jobs::enqueue_once(db, of(&tenant, "lane"), "key").await.unwrap(), "they left the key to others");
    let found = dead::list(&app.db, None, 50).await.unwrap();
    assert!(dead::redrive(&app.db, &found[0].id).await.unwrap());
    app.db.clone().close().await;
    parts.remove().await;
}
