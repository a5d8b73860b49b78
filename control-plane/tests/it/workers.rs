//! Who gets in, who is heard, and who is not.

use rstest::rstest;
use shared::{
    identity::SigningKey,
    ids::StoreId,
    wire::{
        session::Observed,
        worker::{Join, SessionGeneration, Validate},
    },
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_name_is_bound_to_the_key_and_store_of_its_first_join(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::listening(&app, "w1", SigningKey::generate().unwrap(), StoreId::new()).await;
    let body = worker.join_body();
    worker.join(&Join { join_token: None, ..body.clone() }).await.assert_problem_of(401, "join-refused");
    worker
        .join(&Join { join_token: Some("wrong".into()), ..body.clone() })
        .await
        .assert_problem_of(401, "join-refused");
    let stranger = SigningKey::generate().unwrap();
    let unsigned = Join { public_key: stranger.public(), ..body.clone() };
    worker.join(&unsigned).await.assert_problem_of(401, "join-refused");
    worker.join(&Join { capacity: 0, ..body.clone() }).await.assert_problem_of(422, "validation");
    let outside = Join { endpoint: "http://192.0.2.1:7300".into(), ..body.clone() };
    worker.join(&outside).await.assert_problem_of(422, "validation");
    let nobody = Join { endpoint: "http://127.0.0.1:1".into(), ..body.clone() };
    worker.join(&nobody).await.assert_problem_of(503, "worker-unreachable");
    assert_eq!(app.count("SELECT COUNT(*) FROM workers").await, 0);

    assert_eq!(worker.join(&body).await.status, 200);
    assert_eq!(worker.join(&Join { join_token: None, ..body.clone() }).await.status, 200, "bound: the key is enough");
    let other_store = Join { store_id: StoreId::new(), ..body };
    worker.join(&other_store).await.assert_problem_of(409, "worker-id-taken");
    let thief = FakeWorker::listening(&app, "w1", stranger, worker.store.clone()).await;
    thief.join(&thief.join_body()).await.assert_problem_of(409, "worker-id-taken");
    let elsewhere = Join { endpoint: worker.endpoint.clone(), ..thief.join_body() };
    thief.join(&elsewhere).await.assert_problem_of(503, "worker-unreachable");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_new_run_replaces_one_that_is_not_live_and_the_old_one_is_told(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let old = FakeWorker::active(&app, "w1").await;
    assert_eq!(old.beat().await.status, 200);
    let new = FakeWorker::listening(&app, "w1", old.key.clone(), old.store.clone()).await;
    new.join(&new.join_body()).await.assert_problem_of(409, "worker-id-taken");
    assert_eq!(old.beat().await.status, 200, "the live run goes on");
    old.fall_silent();
    app.sql("UPDATE workers SET last_beat_at = last_beat_at - 16000", []).await;
    assert_eq!(new.join(&new.join_body()).await.status, 200);
    old.beat().await.assert_problem_of(409, "worker-superseded");
    assert_eq!(new.beat().await.status, 200);
    let unknown = FakeWorker::listening(&app, "w9", SigningKey::generate().unwrap(), StoreId::new()).await;
    unknown.beat().await.assert_problem_of(410, "worker-unknown");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_run_that_starts_in_its_predecessor_s_place_gets_its_sessions_back_under_new_generations(
    #[case] engine: Engine,
) {
    let Some(app) = TestApp::start(engine).await else { return };
    let old = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&old).await;
    let address = old.endpoint.strip_prefix("http://").unwrap().to_owned();
    let (key, store) = (old.key.clone(), old.store.clone());
    drop(old);
    let listener = until("the port is free", async || tokio::net::TcpListener::bind(&address).await.ok()).await;
    let new = FakeWorker::on(&app, "w1", key, store, listener);
    let sessions = new.come().await;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].generation, put.generation + 1);
    assert_eq!(sessions[0].session_key.expose(), put.session_key.expose());
    program.status(&put.session_id, "reconnecting").await;
    let stale = new.report_at(&put.session_id, put.generation, Observed::Connected).await;
    assert_eq!(stale.json()["stale"][0], put.session_id.as_str(), "the old generation is nobody's");
    new.report(&put.session_id, Observed::Connected).await;
    program.status(&put.session_id, "connected").await;
    let asked = [put.generation, put.generation + 1]
        .map(|generation| SessionGeneration { session_id: put.session_id.clone(), generation });
    let ask = Validate { incarnation: new.incarnation(), sessions: asked.to_vec() };
    let current = new.post("validate", &ask).await.json();
    assert_eq!(current["current"].as_array().unwrap().len(), 1);
    assert_eq!(current["current"][0]["generation"], put.generation + 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[tokio::test]
async fn a_call_is_refused_unless_its_own_worker_signed_it(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let one = FakeWorker::active(&app, "w1").await;
    let two = FakeWorker::active(&app, "w2").await;
    let url = |id: &str| format!("{}/internal/v1/workers/{id}/heartbeat", app.internal_url());
    let body = serde_json::json!({"incarnation": one.incarnation(), "sessions": 0, "connected": 0, "outbox_rows": 0,
        "lease_renewed_at": chrono::Utc::now()});
    let token = two.key.token_for_control_plane(&two.id(), &two.incarnation(), chrono::Utc::now()).unwrap();
    let forged = two.key.token_for_control_plane(&one.id(), &one.incarnation(), chrono::Utc::now()).unwrap();
    let old = chrono::Utc::now() - chrono::TimeDelta::seconds(120);
    let expired = one.key.token_for_control_plane(&one.id(), &one.incarnation(), old).unwrap();
    for token in [token, forged, expired, "garbage".into()] {
        let answer = Answer::of(app.http.post(url("w1")).bearer_auth(token).json(&body)).await;
        answer.assert_problem_of(401, "unauthenticated");
    }
    Answer::of(app.http.post(url("w1")).json(&body)).await.assert_problem_of(401, "unauthenticated");
    app.stop().await;
}

/// A worker that comes back while one of its sessions is being worked on must not wait for it with its own row locked, which
/// whoever works on the session may want.
#[tokio::test]
async fn a_worker_that_takes_its_sessions_back_locks_sessions_before_its_own_row() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let tx = app.app().db.write().await.unwrap();
    control_plane::sessions::entity::lock(&tx, &put.session_id).await.unwrap().unwrap();
    let again = async { worker.come().await };
    let meanwhile = async {
        until("the worker waits for the session", async || {
            let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                           AND datname = current_database()";
            (app.count(waiting).await > 0).then_some(())
        })
        .await;
        control_plane::placement::give_back(&tx, &worker.id()).await.unwrap();
        tx.rollback().await.unwrap();
    };
    let (sessions, ()) = tokio::join!(again, meanwhile);
    assert_eq!(sessions.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn no_connection_to_postgresql_lets_a_frozen_transaction_hold_up_the_others() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    for setting in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        let sql = format!("SELECT setting::BIGINT FROM pg_settings WHERE name = '{setting}'");
        let ms = app.count(&sql).await;
        assert!((1..=30_000).contains(&ms), "{setting} is {ms} ms");
    }
    let on =
        "SELECT COUNT(*) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'on' AND source = 'client'";
    assert_eq!(app.count(on).await, 1);
    app.stop().await;
}
