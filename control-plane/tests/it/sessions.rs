//! A session's way from the API to a worker and back.

use std::time::Duration;

use reqwest::header::ACCEPT;
use rstest::rstest;
use serde_json::json;
use shared::{
    time::Timestamp,
    wire::session::{Desired, Observed},
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn a_session_is_placed_told_reported_and_shows_its_code_in_every_form(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let id = program.session().await;
    let status = until("nowhere to run is shown", async || {
        let status = program.get(&format!("sessions/{id}/status")).await.json();
        (status["reason"] == "no_capacity").then_some(status)
    })
    .await;
    assert_eq!(status["status"], "starting");
    program.get(&format!("sessions/{id}/qr")).await.assert_problem(409, "no-qr-code");

    let worker = FakeWorker::active(&app, "w1").await;
    let put = worker.told(&id, |_| true).await;
    assert_eq!((put.generation, put.epoch, put.desired), (1, 1, Desired::Running));
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    worker.show_qr("2@code");
    let json = program.get(&format!("sessions/{id}/qr")).await;
    assert_eq!(json.json()["qr"], "2@code");
    assert_eq!(json.header("cache-control"), Some("no-store"));
    for form in ["image/png", "image/svg+xml"] {
        let request = app.get(&format!("/api/v1/sessions/{id}/qr")).bearer_auth(&program.key).header(ACCEPT, form);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], form);
        let bytes = response.bytes().await.unwrap();
        assert!(bytes.starts_with(if form == "image/png" { b"\x89PNG" } else { b"<?xm" }));
    }
    let html = app.get(&format!("/api/v1/sessions/{id}/qr")).bearer_auth(&program.key).header(ACCEPT, "text/html");
    Answer::of(html).await.assert_problem(406, "not-acceptable");

    worker.report(&id, Observed::Connected).await;
    program.status(&id, "connected").await;
    let session = program.get(&format!("sessions/{id}")).await.json();
    assert_eq!(session["account"]["phone"], "+15550009999");
    assert_eq!(session["account"]["jid"], "15550009999@s.whatsapp.net");
    assert_eq!(session["network"], "sandbox");
    let told = "starting, starting {no_capacity}, starting, pairing, connected: each once";
    assert_eq!(program.events("session.status").await, 5, "{told}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn stop_start_logout_and_delete_end_when_the_worker_says_so(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let id = put.session_id.clone();
    assert_eq!(app.count("SELECT assigned FROM workers").await, 1);

    assert_eq!(program.post(&format!("sessions/{id}/stop"), &json!({})).await.status, 202);
    worker.told(&id, |put| put.desired == Desired::Stopped).await;
    assert_eq!(program.send(&id, "+15550001234", "x").await.status, 409);
    worker.report(&id, Observed::Stopped { reason: None }).await;
    program.status(&id, "stopped").await;
    let free = async || (app.count("SELECT assigned FROM workers").await == 0).then_some(());
    until("room is given back", free).await;

    assert_eq!(program.post(&format!("sessions/{id}/start"), &json!({})).await.status, 202);
    let again = worker.told(&id, |put| put.desired == Desired::Running && put.generation == 2).await;
    assert_eq!(again.epoch, 1);
    worker.report(&id, Observed::Connected).await;
    program.status(&id, "connected").await;

    assert_eq!(program.post(&format!("sessions/{id}/restart"), &json!({})).await.status, 202);
    worker.told(&id, |put| put.restart_seq == 1).await;

    assert_eq!(program.post(&format!("sessions/{id}/logout"), &json!({})).await.status, 202);
    worker.told(&id, |put| put.desired == Desired::LoggedOut).await;
    program.post(&format!("sessions/{id}/start"), &json!({})).await.assert_problem(409, "conflict");
    worker.report(&id, Observed::Erased { unlink_confirmed: false }).await;
    let status = program.status(&id, "logged_out").await;
    assert_eq!(status["reason"], "unlink_unconfirmed");

    assert_eq!(program.post(&format!("sessions/{id}/start"), &json!({})).await.status, 202);
    let anew = worker.told(&id, |put| put.desired == Desired::Running && put.generation == 3).await;
    assert_eq!(anew.epoch, 2, "the erased state's outbox numbers are not used again");
    worker.report(&id, Observed::Connected).await;
    program.status(&id, "connected").await;

    assert_eq!(program.delete(&format!("sessions/{id}")).await.status, 202);
    worker.told(&id, |put| put.desired == Desired::Deleted).await;
    worker.report(&id, Observed::Erased { unlink_confirmed: true }).await;
    let gone = async || (program.get(&format!("sessions/{id}")).await.status == 404).then_some(());
    until("the session is gone", gone).await;
    assert_eq!(app.count("SELECT assigned FROM workers").await, 0);
    program.post(&format!("sessions/{id}/start"), &json!({})).await.assert_problem(404, "not-found");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn a_session_moves_off_a_worker_that_fell_silent_and_no_dead_socket_is_shown_as_connected(
    #[case] engine: Engine,
) {
    let Some(app) = TestApp::start(engine).await else { return };
    let one = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&one).await;
    let id = put.session_id.clone();
    let two =
        FakeWorker::listening(&app, "w2", shared::identity::SigningKey::generate().unwrap(), one.store.clone()).await;
    two.come().await;
    one.fall_silent();
    // Silent for 20 s, the last frame 51 s ago: suspect, and nobody vouches.
    app.sql("UPDATE workers SET last_beat_at = last_beat_at - 20000 WHERE id = 'w1'", []).await;
    app.sql("UPDATE sessions SET last_frame_at = last_frame_at - 51000", []).await;
    program.status(&id, "reconnecting").await;
    assert!(!two.holds(&id), "suspect is not offline");
    app.sql("UPDATE workers SET last_beat_at = last_beat_at - 11000 WHERE id = 'w1'", []).await;
    // Until the control plane has itself listened for so long, silence may be its own.
    app.app().fleet.listening.set(Timestamp::now().minus(Duration::from_secs(31)));
    let moved = two.told(&id, |_| true).await;
    assert_eq!(moved.generation, put.generation + 1);
    two.report(&id, Observed::Connected).await;
    program.status(&id, "connected").await;
    assert_eq!(app.count("SELECT assigned FROM workers WHERE id = 'w1'").await, 0);
    assert_eq!(app.count("SELECT assigned FROM workers WHERE id = 'w2'").await, 1);
    let stale = one.report_at(&id, put.generation, Observed::Connected).await;
    assert_eq!(stale.json()["stale"][0], id.as_str());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[tokio::test]
async fn a_control_plane_that_was_away_moves_nobody(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let one = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&one).await;
    let id = put.session_id.clone();
    let key = shared::identity::SigningKey::generate().unwrap();
    let two = FakeWorker::listening(&app, "w2", key, one.store.clone()).await;
    two.come().await;
    one.fall_silent();
    // As after a pause of a minute, the second worker being the first that is heard again.
    app.sql("UPDATE workers SET last_beat_at = last_beat_at - 60000 WHERE id = 'w1'", []).await;
    app.sql("UPDATE sessions SET last_frame_at = last_frame_at - 60000, reconcile_at = 0", []).await;
    program.status(&id, "reconnecting").await;
    for _ in 0..2 {
        assert_eq!(one.beat().await.status, 200);
    }
    program.status(&id, "connected").await;
    assert!(!two.holds(&id));
    assert_eq!(app.count("SELECT generation FROM sessions").await, put.generation);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[tokio::test]
async fn a_session_whose_codes_ran_out_is_stopped_and_says_why(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let id = program.session().await;
    worker.told(&id, |_| true).await;
    worker.report(&id, Observed::Stopped { reason: Some("pairing_timeout".into()) }).await;
    let status = program.status(&id, "stopped").await;
    assert_eq!((&status["reason"], &status["desired"]), (&json!("pairing_timeout"), &json!("stopped")));
    assert_eq!(program.post(&format!("sessions/{id}/start"), &json!({})).await.status, 202);
    worker.told(&id, |put| put.generation == 2).await;

    // Once more, and its owner starts it again before that is noticed.
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    let ran_out = json!(Observed::Stopped { reason: Some("pairing_timeout".into()) }).to_string();
    let later = Timestamp::now().plus(Duration::from_secs(3600));
    app.sql("UPDATE sessions SET observed = $1, reconcile_at = $2", [ran_out.into(), later.into()]).await;
    assert_eq!(program.post(&format!("sessions/{id}/start"), &json!({})).await.status, 202);
    worker.told(&id, |put| put.generation == 3).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn bad_wishes_are_refused_and_change_nothing(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let other = Program::new(&app).await;
    let wrong = program.post("sessions", &json!({"name": "x", "network": "whatsapp"})).await;
    wrong.assert_problem(422, "validation");
    assert_eq!(wrong.pointers(), ["/network"]);
    program.post("sessions", &json!({"name": " "})).await.assert_problem(422, "validation");
    program.post("sessions", &json!({"name": "x", "start": "yes"})).await.assert_problem(422, "validation");
    assert_eq!(app.count("SELECT COUNT(*) FROM sessions").await, 0);
    let id = other.session().await;
    for path in [format!("sessions/{id}"), format!("sessions/{id}/status"), format!("sessions/{id}/qr")] {
        let missing = path.replace(id.as_str(), shared::ids::SessionId::new().as_str());
        let (foreign, missing) = (program.get(&path).await, program.get(&missing).await);
        foreign.assert_problem(404, "not-found");
        assert_eq!(foreign.without_request_id(), missing.without_request_id());
    }
    for wish in ["start", "stop", "restart", "logout"] {
        program.post(&format!("sessions/{id}/{wish}"), &json!({})).await.assert_problem(404, "not-found");
    }
    program.delete(&format!("sessions/{id}")).await.assert_problem(404, "not-found");
    assert_eq!(program.get("sessions").await.json()["data"], json!([]));
    assert_eq!(other.get("sessions").await.json()["data"][0]["id"], id.as_str());
    app.stop().await;
}
