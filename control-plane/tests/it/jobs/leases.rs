//! Leases of jobs: while the work takes long, when it is lost, and when whoever began it goes away.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use control_plane::{
    jobs::{self, Claimed, Handler, JobKind, NewJob, Outcome, Runner, RunnerOptions, Seat},
    messages::send::SendHandler,
    state::App,
};
use rstest::rstest;
use sea_orm::{ConnectionTrait, DbErr, Statement};
use shared::ids::{MessageId, SessionId};
use tokio::sync::{Notify, watch};

use super::{FAST, KIND, enqueue, enqueue_all, in_state, job, tear_down};
use crate::{
    fleet::until,
    harness::Engine,
    parts::{Parts, eventually, execute, number, tenant},
};

/// No lease ends while a test runs.
const LONG: RunnerOptions = RunnerOptions { lease: Duration::from_secs(600), ..FAST };

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

/// Starts to work and never ends.
struct Endless {
    started: Notify,
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

/// Settles by itself, but only after the test has said so.
struct Waits {
    started: Notify,
    go_on: Notify,
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
        let seat = app.direct.enqueue(&tx, job(format!("lane:{lanes}"), "1")).await.unwrap();
        let seat = seat.map(Seat::to_be_committed);
        tx.commit().await.unwrap();
        seat
    })
    .await;
    drop(dropped);
    eventually("all jobs are done", async || in_state(&app, "done").await == lanes).await;
    assert_eq!(number(&app, "SELECT MAX(attempts) FROM jobs").await, 1, "it was not tried before");
    tear_down(parts, &app, &runner).await;
}

/// Its session is gone, so the job that is handed back ends it; what was said of its try stands.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_message_that_is_handed_back_was_never_tried(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let runner = Runner::start_with(&app, vec![Arc::new(SendHandler)], LONG);
    let scope = tenant(&app).await;
    let dropped = until("a message is committed with its try open", async || {
        let (message, session) = (MessageId::new().to_string(), SessionId::new().to_string());
        let tx = app.db.write().await.unwrap();
        let job = NewJob { kind: JobKind::SendMessages, ..job(format!("session:{session}"), &message) };
        let seat = app.direct.enqueue(&tx, NewJob { tenant_id: scope.id().clone(), ..job }).await.unwrap()?;
        let insert = "INSERT INTO messages (id, tenant_id, session_id, direction, wa_id, chat, sender, kind, status, tries, \
                      try_open, created_at) VALUES ($1, $2, $3, 'outbound', $1, 'c', 'me', 'text', 'queued', 1, TRUE, 0)";
        let values = [message.into(), scope.id().as_str().into(), session.into()];
        tx.execute_raw(Statement::from_sql_and_values(app.db.engine(), insert, values)).await.unwrap();
        tx.commit().await.unwrap();
        Some(seat.to_be_committed())
    })
    .await;
    drop(dropped);
    eventually("the job is done", async || in_state(&app, "done").await == 1).await;
    let never = "SELECT COUNT(*) FROM messages WHERE status = 'failed' AND tries = 0 AND NOT try_open";
    assert_eq!(number(&app, never).await, 1);
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_job_that_is_given_up_holds_up_none_of_its_batch(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    enqueue_all(&app, [job("a", "1"), job("a", "2")]).await;
    execute(&app, "UPDATE jobs SET attempts = max_attempts WHERE id = (SELECT MIN(id) FROM jobs)", []).await;
    let runner = Runner::start_with(&app, vec![Arc::new(Patient::default())], LONG);
    eventually("one is done, and one is given up", async || {
        in_state(&app, "done").await == 1 && in_state(&app, "dead").await == 1
    })
    .await;
    tear_down(parts, &app, &runner).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_runner_that_stops_hands_its_jobs_back_uncounted(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let dropped = Arc::new(AtomicUsize::new(0));
    let endless = Arc::new(Endless { started: Notify::new(), dropped: Arc::clone(&dropped) });
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
    let endless = Arc::new(Endless { started: Notify::new(), dropped: Arc::clone(&dropped) });
    enqueue(&app, job("a", "1")).await;
    let lasting = RunnerOptions { lease: Duration::from_secs(5), ..FAST };
    let runner = Runner::start_with(&app, vec![Arc::clone(&endless) as Arc<dyn Handler>], lasting);
    endless.started.notified().await;
    let first = number(&app, "SELECT lease_until FROM jobs").await;
    eventually("the lease is extended", async || number(&app, "SELECT lease_until FROM jobs").await > first + 400)
        .await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    // Somebody else has the job now, as after a long pause of this process.
    let stolen = "UPDATE jobs SET lease_owner = 'another', lease_epoch = lease_epoch + 1, \
                  lease_until = lease_until + 3600000";
    assert_eq!(execute(&app, stolen, []).await, 1);
    eventually("the work is dropped", async || dropped.load(Ordering::SeqCst) == 1).await;
    app.stop.cancel();
    runner.stopped().await;
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs WHERE lease_owner = 'another'").await, 1, "left alone");
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn nothing_is_settled_under_a_lease_that_was_lost(#[case] engine: Engine, #[values(false, true)] lost: bool) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let waits = Arc::new(Waits { started: Notify::new(), go_on: Notify::new(), settled: Mutex::new(None) });
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
    tear_down(parts, &app, &runner).await;
}
