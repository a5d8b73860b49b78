//! The quota of messages: exact at its end, given back for what failed, when a limit is changed within its month, and at the
//! turn of one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use rstest::rstest;
use serde_json::json;
use shared::{
    ids::SessionId,
    time::Timestamp,
    wire::{outbox::OutboxEvent, send::SendOutcome},
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
    parts::eventually,
    plans::{limit, plan_of_key, plans},
};

/// How many units of this month's quota are taken.
async fn used(app: &TestApp) -> i64 {
    app.count("SELECT CAST(COALESCE(SUM(used), -1) AS BIGINT) FROM quota_counters").await
}

async fn quota(app: &TestApp, tenant: &str, messages: u32) {
    plans(app, &["override", tenant, "--limit", &format!("messages_per_month={messages}")]).await;
}

/// A phone number of one's own for each, so that no chat holds up another. Every tenth ends in 7.
fn number(n: u32) -> String {
    format!("+1555000{n:04}")
}

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
async fn of_200_sends_at_once_with_50_left_50_are_taken_and_failed_ones_give_their_unit_back(#[case] engine: Engine) {
    let Some(mut app) = TestApp::start(engine).await else { return };
    // SQLite has one process.
    let other = if engine == Engine::Postgres { app.replica().await } else { app.base_url() };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    // Ten of the sixty are used already, before any limit applied.
    for n in 0..10 {
        let id = program.send(&put.session_id, &number(n), "before").await.json()["id"].as_str().unwrap().to_owned();
        program.message(&id, "sent").await;
    }
    quota(&app, &program.tenant, 60).await;
    // Nothing fails before all have their answer: its unit would be taken by another.
    let answered = Arc::new(AtomicBool::new(false));
    let go = answered.clone();
    worker.send_with(move |item| match item.to.as_bytes()[10] {
        _ if !go.load(Ordering::SeqCst) => SendOutcome::NotConnected,
        b'7' => SendOutcome::Invalid { reason: "not_on_whatsapp".into() },
        _ => SendOutcome::Acked { at: chrono::Utc::now() },
    });
    let answers = join_all((0..200).map(|n| {
        let base = if n % 2 == 0 { app.base_url() } else { other.clone() };
        let body = json!({"session_id": put.session_id, "to": number(n), "type": "text", "text": {"body": "x"}});
        Answer::of(
            app.http
                .post(format!("{base}/api/v1/messages/send"))
                .header("idempotency-key", format!("send-{n}"))
                .bearer_auth(&program.key)
                .json(&body),
        )
    }))
    .await;
    let taken: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(taken.len(), 50);
    for answer in answers.iter().filter(|answer| answer.status != 202) {
        answer.assert_problem(402, "quota-exceeded");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 60);
    answered.store(true, Ordering::SeqCst);
    let settled = until("all are through", async || {
        app.sql("UPDATE jobs SET run_at = 0 WHERE state = 'ready'", []).await;
        (app.count("SELECT COUNT(*) FROM messages WHERE status = 'queued'").await == 0).then_some(())
    });
    settled.await;
    let failed = app.count("SELECT COUNT(*) FROM messages WHERE status = 'failed'").await;
    assert!(failed > 0);
    assert_eq!(used(&app).await, 60 - failed);
    assert_eq!(program.events("quota.exceeded").await, 1);
    assert_eq!(program.events("quota.warning").await, 1);
    let state = program.get("plan").await.json();
    assert_eq!(limit(&state, "messages_per_month"), (json!(60), 60 - failed));

    // What came back can be used again, and no more.
    let mut again = 0;
    for n in 300..360 {
        match program.send(&put.session_id, &number(n), "again").await {
            answer if answer.status == 202 => again += 1,
            answer => answer.assert_problem(402, "quota-exceeded"),
        }
    }
    assert!(again >= failed, "{again} of {failed}");
    let stored = app.count("SELECT COUNT(*) FROM messages WHERE status <> 'failed'").await;
    assert!(stored <= 60, "{stored}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_large_quota_is_counted_in_stripes_and_as_exact_near_its_end(#[case] engine: Engine) {
    let Some(mut app) = TestApp::start(engine).await else { return };
    let other = if engine == Engine::Postgres { app.replica().await } else { app.base_url() };
    let program = Program::new(&app).await;
    let session = program.session().await;
    quota(&app, &program.tenant, 2_100).await;
    let taken = async |numbers: std::ops::Range<u32>| {
        let answers = join_all(numbers.map(|n| {
            let base = if n % 2 == 0 { app.base_url() } else { other.clone() };
            let body = json!({"session_id": session, "to": number(n), "type": "text", "text": {"body": "x"}});
            Answer::of(app.http.post(format!("{base}/api/v1/messages/send")).bearer_auth(&program.key).json(&body))
        }))
        .await;
        for answer in answers.iter().filter(|answer| answer.status != 202) {
            answer.assert_problem(402, "quota-exceeded");
        }
        answers.iter().filter(|answer| answer.status == 202).count()
    };
    assert_eq!(taken(0..1).await, 1);
    assert_eq!(taken(1..61).await, 60);
    assert_eq!(used(&app).await, 61);
    let used_stripes = app.count("SELECT COUNT(*) FROM quota_counters WHERE used > 0").await;
    assert!(used_stripes > 4 || engine == Engine::Sqlite, "{used_stripes}");
    app.sql("UPDATE quota_counters SET used = used + 2000 WHERE stripe = 3", []).await;
    assert_eq!(taken(100..180).await, 39);
    assert_eq!(used(&app).await, 2_100);
    assert_eq!((program.events("quota.warning").await, program.events("quota.exceeded").await), (1, 1));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_unit_goes_back_once_and_a_message_that_was_sent_after_all_takes_one_again(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    quota(&app, &program.tenant, 1).await;
    worker.send_with(|_| SendOutcome::Nacked { code: 463 });
    let id = program.send(&put.session_id, &number(1), "x").await.json()["id"].as_str().unwrap().to_owned();
    program.message(&id, "failed").await;
    assert_eq!(used(&app).await, 0);
    let item = worker.sent().first().cloned().unwrap();
    let word = |error| OutboxEvent::ServerAck {
        message_id: item.message_id.clone(),
        wa_id: item.wa_id.clone(),
        error,
        at: chrono::Utc::now(),
        tries: 1,
    };
    assert_eq!(worker.ship(&put, 1, &[word(Some(463)), word(Some(463))]).await.status, 200);
    assert_eq!(used(&app).await, 0, "failed again, and nothing to give back");
    assert_eq!(worker.ship(&put, 3, &[word(None), word(None)]).await.status, 200);
    program.message(&id, "sent").await;
    assert_eq!(used(&app).await, 1);
    program.send(&put.session_id, &number(2), "x").await.assert_problem(402, "quota-exceeded");
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 1);
    let refused = program.send(&SessionId::new(), &number(2), "x").await;
    refused.assert_problem(404, "not-found");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_takes_one_unit_and_a_refused_send_takes_none(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let session = program.session().await;
    quota(&app, &program.tenant, 2).await;
    let body = json!({"session_id": session, "to": number(1), "type": "text", "text": {"body": "x"}});
    let send = || {
        let request = app.post("/api/v1/messages/send", &body).bearer_auth(&program.key);
        Answer::of(request.header("idempotency-key", "order-1"))
    };
    let first = send().await;
    assert_eq!(first.status, 202, "{first:?}");
    for _ in 0..5 {
        let again = send().await;
        assert_eq!((again.header("idempotent-replayed"), &again.text), (Some("true"), &first.text));
    }
    assert_eq!(used(&app).await, 1);
    program.send(&session, "nobody", "x").await.assert_problem(422, "validation");
    program.post(&format!("sessions/{session}/stop"), &json!({})).await;
    program.send(&session, &number(2), "x").await.assert_problem(409, "session-not-running");
    assert_eq!(used(&app).await, 1);
    app.stop().await;
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
    quota(&app, &program.tenant, 0).await;
    let refused = program.send(&put.session_id, &number(16), "x").await;
    assert!(refused.json()["detail"].as_str().unwrap().ends_with(": there are none"), "{refused:?}");
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
