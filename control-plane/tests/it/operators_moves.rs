//! Operators move sessions from worker to worker.

use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::{
    identity::SigningKey,
    ids::{SessionId, StoreId},
    wire::session::{Desired, Observed, PutSession},
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
    operators_plans::Desk,
};

async fn worker(app: &TestApp, id: &str, store: &StoreId) -> FakeWorker {
    let worker = FakeWorker::listening(app, id, SigningKey::generate().unwrap(), store.clone()).await;
    worker.come().await;
    worker.beat().await;
    worker
}

async fn told_to_move(desk: &Desk<'_>, id: &SessionId, body: Value) -> Answer {
    desk.ask(Method::POST, &format!("sessions/{id}/move"), &body).await
}

/// As the operator sees it.
async fn seen(desk: &Desk<'_>, id: &SessionId) -> Value {
    let listed = desk.get("sessions").await;
    listed["data"].as_array().unwrap().iter().find(|session| session["id"] == id.as_str()).unwrap().clone()
}

/// The one lets go, the other takes it.
async fn moves(program: &Program<'_>, id: &SessionId, from: &FakeWorker, to: &FakeWorker) -> PutSession {
    from.told(id, |put| put.desired == Desired::Stopped).await;
    from.report(id, Observed::Stopped { reason: None }).await;
    let put = to.told(id, |put| put.desired == Desired::Running).await;
    to.report(id, Observed::Connected).await;
    program.status(id, "connected").await;
    put
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_where_it_is_told_once_its_worker_has_let_go(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let desk = Desk::new(&app).await;
    let one = FakeWorker::active(&app, "w1").await;
    one.beat().await;
    let program = Program::new(&app).await;
    let first = program.connected(&one).await;
    let id = &first.session_id;
    let two = worker(&app, "w2", &one.store).await;

    let answer = told_to_move(&desk, id, json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["move_to"]), (200, &json!("w2")), "{answer:?}");
    assert_eq!(answer.json()["worker_id"], "w1", "until it has let go");
    let again = told_to_move(&desk, id, json!({"worker_id": null})).await;
    assert_eq!((again.status.as_u16(), &again.json()["move_to"]), (200, &json!("w2")), "it is on its way: {again:?}");
    let second = moves(&program, id, &one, &two).await;
    assert!(second.generation > first.generation);
    let now = seen(&desk, id).await;
    assert_eq!((&now["worker_id"], &now["move_to"]), (&json!("w2"), &Value::Null), "{now}");
    assert_eq!(app.count("SELECT assigned FROM workers WHERE id = 'w1'").await, 0);
    assert_eq!(app.count("SELECT assigned FROM workers WHERE id = 'w2'").await, 1);

    // To one that is named, although another would be preferred.
    let three = worker(&app, "w3", &one.store).await;
    three.beat().await;
    app.sql("UPDATE workers SET assigned = 5 WHERE id = 'w1'", []).await;
    let answer = told_to_move(&desk, id, json!({"worker_id": "w1"})).await;
    assert_eq!(answer.json()["move_to"], "w1", "{answer:?}");
    let third = moves(&program, id, &two, &one).await;
    assert!(third.generation > second.generation && !three.holds(id));

    let stays = told_to_move(&desk, id, json!({"worker_id": "w1"})).await;
    assert_eq!((stays.status.as_u16(), &stays.json()["move_to"]), (200, &Value::Null), "it is there: {stays:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_new_worker_falls_away_before_it_goes_stays_where_it_runs(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let desk = Desk::new(&app).await;
    let one = FakeWorker::active(&app, "w1").await;
    one.beat().await;
    let program = Program::new(&app).await;
    let id = &program.session().await;
    // Until its worker has said something of it, it isn't told to let go.
    one.told(id, |_| true).await;
    let _two = worker(&app, "w2", &one.store).await;
    assert_eq!(told_to_move(&desk, id, json!({"worker_id": "w2"})).await.json()["move_to"], "w2");
    desk.done(Method::POST, "workers/w2/cordon", Value::Null).await;
    one.report(id, Observed::Connected).await;
    until("it isn't to move any more", async || seen(&desk, id).await["move_to"].is_null().then_some(())).await;
    assert_eq!(one.told(id, |_| true).await.desired, Desired::Running, "it was never told to let go");
    program.status(id, "connected").await;
    assert_eq!(seen(&desk, id).await["worker_id"], "w1");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_else_can_take_is_not_moved(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let desk = Desk::new(&app).await;
    let one = FakeWorker::active(&app, "w1").await;
    one.beat().await;
    let program = Program::new(&app).await;
    let id = &program.connected(&one).await.session_id;
    let refused = async |id: &SessionId, body: Value, why: &str| {
        let answer = told_to_move(&desk, id, body).await;
        answer.assert_problem(409, "conflict");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(why), "{detail}");
    };
    refused(id, json!({}), "there is no other worker").await;
    refused(id, json!({"worker_id": "w9"}), "there is no such worker").await;

    let _two = worker(&app, "w2", &StoreId::new()).await;
    for body in [json!({}), json!({"worker_id": "w2"})] {
        refused(id, body, "another store").await;
    }
    app.sql("UPDATE workers SET store_id = $1 WHERE id = 'w2'", [one.store.clone().into()]).await;
    for (change, back, why) in [
        ("assigned = capacity", "assigned = 0", "no room"),
        ("schedulability = 'cordoned'", "schedulability = 'schedulable'", "cordoned"),
        ("schedulability = 'draining'", "schedulability = 'schedulable'", "drained"),
        ("pool = 'acme'", "pool = NULL", "pool"),
        ("network = 'whatsapp'", "network = 'sandbox'", "another network"),
        ("protocol_version = 99", "protocol_version = 1", "another version"),
    ] {
        app.sql(&format!("UPDATE workers SET {change} WHERE id = 'w2'"), []).await;
        for body in [json!({}), json!({"worker_id": "w2"})] {
            refused(id, body, why).await;
        }
        app.sql(&format!("UPDATE workers SET {back} WHERE id = 'w2'"), []).await;
    }
    let now = seen(&desk, id).await;
    assert_eq!((&now["worker_id"], &now["move_to"], &now["status"]), (&json!("w1"), &Value::Null, &json!("connected")));
    assert_eq!(one.told(id, |_| true).await.desired, Desired::Running);

    // What isn't to run is on no worker.
    let rests = program.post("sessions", &json!({"name": "s", "start": false})).await.json()["id"].clone();
    refused(&rests.as_str().unwrap().parse().unwrap(), json!({}), "isn't to run").await;
    desk.done(Method::POST, "workers/w1/cordon", Value::Null).await;
    desk.done(Method::POST, "workers/w2/cordon", Value::Null).await;
    let waits = program.session().await;
    refused(&waits, json!({}), "on no worker").await;

    for (body, pointer) in [
        (json!({"worker_id": "No name"}), "/worker_id"),
        (json!({"worker_id": ""}), "/worker_id"),
        (json!({"worker_id": 1}), "/worker_id"),
        (json!({"worker_id": "w\u{0}"}), "/worker_id"),
        (json!({"to": "w2"}), "/to"),
        (json!([]), ""),
    ] {
        let answer = told_to_move(&desk, id, body.clone()).await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.pointers(), [pointer], "{body}: {answer:?}");
    }
    for unknown in [SessionId::new().as_str(), "x", "%00", program.tenant.as_str()] {
        let answer = desk.ask(Method::POST, &format!("sessions/{unknown}/move"), &json!({})).await;
        answer.assert_problem(404, "not-found");
    }
    let by_key = app.post(&format!("/api/v1/admin/sessions/{id}/move"), &json!({})).bearer_auth(&program.key);
    Answer::of(by_key).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}
