//! Dead jobs, redriven, and waiting ones that are called off.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use control_plane::{
    error::{ApiResult, Kind},
    jobs::{
        self, Claimed, DeadJob, Handler, JobKind, Outcome, Runner, dead,
        redrive::{self, RedriveError, Redriven},
    },
    state::App,
};
use rstest::rstest;
use sea_orm::{ConnectionTrait, DatabaseTransaction, Statement};
use shared::ids::{JobId, TenantId};

use super::{KIND, Notes, enqueue_all, in_state, job, of};
use crate::{
    harness::Engine,
    parts::{Parts, eventually, execute, number},
};

const DIE: &str = "UPDATE jobs SET state = 'dead', finished_at = 1 WHERE state = 'ready'";

/// Revives all but those whose subject is `no`, of which it says why, after it has changed something.
struct Choosy;

#[async_trait]
impl Handler for Choosy {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        1
    }
    async fn run(&self, _: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        vec![Outcome::Done; jobs.len()]
    }
    async fn revive(&self, _: &App, tx: &DatabaseTransaction, job: &DeadJob) -> ApiResult<()> {
        let change = "UPDATE jobs SET lane = 'revived' WHERE id = $1";
        let values = [job.id.clone().into()];
        tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), change, values)).await?;
        if job.subject == "no" { Err(Kind::Conflict.because("it is too late").into()) } else { Ok(()) }
    }
}

fn choosy() -> Vec<Arc<dyn Handler>> {
    vec![Arc::new(Choosy)]
}

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

    let found = dead::list(&app.db, None, None, 50).await.unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|job| job.why.as_deref() == Some("of boredom") && job.tenant_id == tenant));
    assert!(dead::list(&app.db, Some(JobKind::SendMessages), None, 50).await.unwrap().is_empty());
    redrive::redrive(&app, &choosy(), &found[0].id).await.unwrap();
    let again = redrive::redrive(&app, &choosy(), &found[0].id).await;
    assert!(matches!(again, Err(RedriveError::NotDead)), "it isn't dead any more: {again:?}");
    let nobody = redrive::redrive(&app, &[], &found[1].id).await;
    assert!(matches!(nobody, Err(RedriveError::Refused(_))), "nobody would run it: {nobody:?}");
    let all = redrive::redrive_all(&app, &choosy(), KIND).await.unwrap();
    assert_eq!(all, Redriven { revived: 2, refused: BTreeMap::new() });
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
    for _ in 0..2 {
        assert!(jobs::enqueue_once(db, of(&tenant, "lane"), "key").await.unwrap());
        execute(&app, DIE, []).await;
    }
    assert_eq!(redrive::redrive_all(&app, &choosy(), KIND).await.unwrap().revived, 2);
    assert_eq!(in_state(&app, "ready").await, 2);
    execute(&app, DIE, []).await;
    assert!(jobs::enqueue_once(db, of(&tenant, "lane"), "key").await.unwrap(), "they left the key to others");
    let found = dead::list(&app.db, None, None, 50).await.unwrap();
    redrive::redrive(&app, &choosy(), &found[0].id).await.unwrap();
    app.db.clone().close().await;
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn what_a_domain_refuses_stays_dead_and_changes_nothing_and_keeps_no_other_from_its_thousand(
    #[case] engine: Engine,
) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    // More than are looked up at once, and older than the rest.
    enqueue_all(&app, (0..700).map(|n| job(format!("lane:{n}"), "no"))).await;
    execute(&app, DIE, []).await;
    enqueue_all(&app, (0..1_100).map(|n| job(format!("lane:{n}"), "yes"))).await;
    execute(&app, &DIE.replace("finished_at = 1", "finished_at = 2"), []).await;
    let all = redrive::redrive_all(&app, &choosy(), KIND).await.unwrap();
    assert_eq!(all, Redriven { revived: 1_000, refused: BTreeMap::from([("it is too late".to_owned(), 700)]) });
    assert_eq!((in_state(&app, "ready").await, in_state(&app, "dead").await), (1_000, 800));
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE lane = 'revived' AND state = 'ready'").await, 1_000);
    let untouched = "SELECT COUNT(*) FROM jobs WHERE lane <> 'revived' AND state = 'dead' AND finished_at IN (1, 2)";
    assert_eq!(number(&app, untouched).await, 800);
    let all = redrive::redrive_all(&app, &choosy(), KIND).await.unwrap();
    assert_eq!((all.revived, all.refused.into_values().sum::<u64>()), (100, 700));
    let found = dead::list(&app.db, None, None, 1).await.unwrap();
    let refused = redrive::redrive(&app, &choosy(), &found[0].id).await.unwrap_err();
    assert_eq!(refused.to_string(), "the job stays given up: it is too late");
    app.db.clone().close().await;
    parts.remove().await;
}
