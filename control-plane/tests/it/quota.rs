//! The quota of messages when a limit is changed within its month, and at the turn of one.

use rstest::rstest;
use shared::{time::Timestamp, wire::send::SendOutcome};

use crate::{
    fleet::{FakeWorker, Program},
    harness::{Engine, TestApp},
    parts::eventually,
    plans::{limit, number, plan_of_key, quota, used},
};

/// Sends so many, and waits until they are through.
async fn sent(program: &Program<'_>, session: &shared::ids::SessionId, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let answer = program.send(session, &number(n), "x").await;
        assert_eq!(answer.status, 202, "{answer:?}");
        program.message(answer.json()["id"].as_str().unwrap(), "sent").await;
    }
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_lowered_below_what_is_used_is_told_once_and_a_raised_one_anew(
    #[case] engine: Engine,
    #[values(None, Some(100))] before: Option<u32>,
) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.send_with(|_| SendOutcome::Acked { at: chrono::Utc::now() });
    if let Some(allowed) = before {
        quota(&app, &program.tenant, allowed).await;
    }
    sent(&program, &put.session_id, 0..5).await;
    let told = async || (program.events("quota.warning").await, program.events("quota.exceeded").await);
    assert_eq!(told().await, (0, 0));

    quota(&app, &program.tenant, 3).await;
    for n in 5..8 {
        program.send(&put.session_id, &number(n), "x").await.assert_problem(402, "quota-exceeded");
        assert_eq!(told().await, (0, 1));
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 5);

    // What was refused took nothing, and nothing of what was sent is forgotten.
    quota(&app, &program.tenant, 10).await;
    sent(&program, &put.session_id, 10..12).await;
    assert_eq!((used(&app).await, told().await), (7, (0, 1)));
    sent(&program, &put.session_id, 12..13).await;
    assert_eq!(told().await, (1, 1));
    sent(&program, &put.session_id, 13..15).await;
    assert_eq!(told().await, (1, 2));
    program.send(&put.session_id, &number(15), "x").await.assert_problem(402, "quota-exceeded");
    assert_eq!(told().await, (1, 2));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_plan_shows_as_used_what_the_first_send_of_a_month_finds(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    sent(&program, &put.session_id, 0..3).await;
    // Two of them were taken last month, under a limit, and sent in this one.
    app.sql("UPDATE messages SET reserved_in = 1 WHERE id <> (SELECT MAX(id) FROM messages)", []).await;
    let shown = async || limit(&plan_of_key(&program).await, "messages_per_month").1;
    assert_eq!(shown().await, 3, "without a limit, what was sent");
    quota(&app, &program.tenant, 10).await;
    assert_eq!(shown().await, 1);
    sent(&program, &put.session_id, 3..4).await;
    assert_eq!(shown().await, 2);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn counters_of_months_long_past_are_swept_and_this_months_stay(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    quota(&app, &program.tenant, 10).await;
    sent(&program, &put.session_id, 0..1).await;
    let rows = async || app.count("SELECT COUNT(*) FROM quota_counters").await;
    let of_this_month = rows().await;
    app.sql(
        "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) \
         SELECT tenant_id, quota, 1, stripe, used FROM quota_counters",
        [],
    )
    .await;
    assert_eq!(rows().await, 2 * of_this_month);
    let job = control_plane::jobs::NewJob {
        tenant_id: program.tenant.parse().unwrap(),
        kind: control_plane::jobs::JobKind::Upkeep,
        lane: "upkeep:retention".into(),
        subject: "retention".into(),
        run_at: Timestamp::now(),
        max_attempts: 3,
    };
    control_plane::jobs::enqueue(app.app().db.autocommit(), job).await.unwrap();
    app.app().bell.ring(control_plane::jobs::JobKind::Upkeep);
    eventually("those long past are gone", async || rows().await == of_this_month).await;
    assert_eq!(used(&app).await, 1);
    app.stop().await;
}
