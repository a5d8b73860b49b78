//! Messages on their way out.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::Utc;
use rstest::rstest;
use sea_orm::ConnectionTrait;
use serde_json::json;
use shared::{
    ids::{MessageId, SessionId},
    wire::{
        outbox::{OutboxEvent, Party, ReceiptKind},
        send::{Content, SendOutcome},
        session::Observed,
    },
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
    parts::execute,
};

const TO: &str = "+15550001234";

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn a_message_is_sent_acknowledged_delivered_and_read_each_told_and_counted_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.send_with(|_| SendOutcome::Pending);
    let answer = program.send(&put.session_id, TO, "hello").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let message = answer.json();
    assert_eq!((&message["status"], &message["type"]), (&json!("queued"), &json!("text")));
    assert_eq!(message["chat"]["phone"], TO);
    let id = message["id"].as_str().unwrap().to_owned();
    let item = until("the worker gets it", async || worker.sent().first().cloned()).await;
    assert_eq!(item.message_id.as_str(), id);
    assert_eq!(item.to, "15550001234@s.whatsapp.net");
    assert!(item.wa_id.starts_with("3EB0") && item.wa_id.len() == 22);

    let ack = OutboxEvent::ServerAck {
        message_id: item.message_id.clone(),
        wa_id: item.wa_id.clone(),
        error: None,
        at: Utc::now(),
        tries: 1,
    };
    let receipt = |receipt| OutboxEvent::Receipt {
        chat: Party { id: "777@lid".into(), pn: Some(item.to.clone()), lid: Some("777@lid".into()) },
        wa_ids: vec![item.wa_id.clone()],
        receipt,
        at: Utc::now(),
    };
    let rows = [ack.clone(), receipt(ReceiptKind::Read), receipt(ReceiptKind::Delivered), ack];
    for _ in 0..2 {
        let shipped = worker.ship(&put, 1, &rows).await;
        assert_eq!((shipped.status.as_u16(), &shipped.json()["seq"]), (200, &json!(4)), "{shipped:?}");
    }
    let message = program.message(&id, "read").await;
    assert!(message["sent_at"].is_string() && message["delivered_at"].is_string() && message["read_at"].is_string());
    assert_eq!(message["chat"]["lid"], "777@lid");
    assert_eq!(
        program.events("message.status").await,
        3,
        "sent, delivered, read: a receipt that was overtaken is told all the same"
    );
    assert_eq!(program.events("message.sent").await, 1);
    assert_eq!(app.count("SELECT COUNT(*) FROM usage_facts WHERE meter = 'messages_sent'").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn preferring_to_wait_answers_with_the_acknowledgement_and_a_repeated_key_sends_nothing(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let body = json!({"session_id": put.session_id, "to": TO, "type": "text", "text": {"body": "hello"}});
    let send = || {
        let request = app.post("/api/v1/messages/send", &body).bearer_auth(&program.key);
        Answer::of(request.header("prefer", "wait=10").header("idempotency-key", "order-1"))
    };
    let first = send().await;
    assert_eq!((first.status.as_u16(), &first.json()["status"]), (202, &json!("sent")), "{first:?}");
    let second = send().await;
    assert_eq!(second.header("idempotent-replayed"), Some("true"));
    assert_eq!(second.json()["id"], first.json()["id"]);
    assert_eq!(worker.sent().len(), 1);
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn nothing_of_a_chat_overtakes_a_message_that_is_not_through(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    // The chat is held up until its first message was offered three times.
    let offers = AtomicUsize::new(0);
    let through = Arc::new(Mutex::new(Vec::new()));
    let taken = through.clone();
    worker.send_with(move |item| {
        let Content::Text { body } = &item.content;
        let others = body == "other";
        let first = body == "1" && offers.fetch_add(1, Ordering::SeqCst) < 2;
        if !others && (first || offers.load(Ordering::SeqCst) < 3) {
            return SendOutcome::ChatBlocked;
        }
        taken.lock().unwrap().push(body.clone());
        SendOutcome::Acked { at: Utc::now() }
    });
    let mut ids = Vec::new();
    for text in ["1", "2", "3"] {
        ids.push(program.send(&put.session_id, TO, text).await.json()["id"].as_str().unwrap().to_owned());
    }
    let other = program.send(&put.session_id, "+15550005678", "other").await;
    ids.push(other.json()["id"].as_str().unwrap().to_owned());
    for id in &ids {
        program.message(id, "sent").await;
    }
    let through = through.lock().unwrap().clone();
    let of_chat: Vec<_> = through.iter().filter(|text| *text != "other").collect();
    assert_eq!(of_chat, ["1", "2", "3"]);
    assert_eq!(through.len(), 4, "each is taken once");
    app.stop().await;
}

#[rstest]
#[case::nacked(SendOutcome::Nacked { code: 463 }, "failed", "reach_out_time_lock")]
#[case::invalid(SendOutcome::Invalid { reason: "not_on_whatsapp".into() }, "failed", "not_on_whatsapp")]
#[tokio::test]
async fn a_message_that_cannot_be_sent_ends_with_a_reason_and_frees_its_chat(
    #[case] outcome: SendOutcome,
    #[case] status: &str,
    #[case] reason: &str,
) {
    let Some(app) = TestApp::start(Engine::Sqlite).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.send_with(move |_| outcome.clone());
    let id = program.send(&put.session_id, TO, "x").await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(program.message(&id, status).await["reason"], reason);
    worker.send_with(|_| SendOutcome::Acked { at: Utc::now() });
    let next = program.send(&put.session_id, TO, "y").await.json()["id"].as_str().unwrap().to_owned();
    program.message(&next, "sent").await;
    assert_eq!(app.count("SELECT COUNT(*) FROM usage_facts").await, 1, "only what was sent is counted");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_queued_message_expires_and_one_with_an_open_try_does_not(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.send_with(
        |item| {
            if item.to.starts_with("15550001234") { SendOutcome::Pending } else { SendOutcome::NotConnected }
        },
    );
    let open = program.send(&put.session_id, TO, "x").await.json()["id"].as_str().unwrap().to_owned();
    let waits = program.send(&put.session_id, "+15550005678", "x").await.json()["id"].as_str().unwrap().to_owned();
    until("both were tried", async || (worker.sent().len() >= 2).then_some(())).await;
    until("the try is known to be open", async || {
        (app.count("SELECT COUNT(*) FROM messages WHERE try_open").await == 1).then_some(())
    })
    .await;
    app.sql("UPDATE messages SET expires_at = created_at - 1000", []).await;
    app.sql("UPDATE jobs SET run_at = 0 WHERE state = 'ready'", []).await;
    program.message(&waits, "expired").await;
    assert_eq!(program.message(&open, "queued").await["status"], "queued");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn what_cannot_be_sent_is_refused_with_a_pointer_and_changes_nothing(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let other = Program::new(&app).await;
    let id = program.session().await;
    for to in ["hello", "123", "+1 555 000", "15550001234@c.us", "+00000000000"] {
        let answer = program.send(&id, to, "x").await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.pointers(), ["/to"]);
    }
    program.send(&id, "120363000000000000@g.us", "x").await.assert_problem(422, "unsupported-message");
    for text in ["", " \n\u{3000}", &"é".repeat(32_769)] {
        let answer = program.send(&id, TO, text).await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.pointers(), ["/text/body"]);
    }
    other.send(&id, TO, "x").await.assert_problem(404, "not-found");
    program.send(&SessionId::new(), TO, "x").await.assert_problem(404, "not-found");
    program.get(&format!("messages/{}", MessageId::new())).await.assert_problem(404, "not-found");
    program.get("messages?status=lost").await.assert_problem(400, "bad-request");
    program.post(&format!("sessions/{id}/stop"), &json!({})).await;
    program.send(&id, TO, "x").await.assert_problem(409, "session-not-running");
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 0);
    assert_eq!(app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'messages.send'").await, 0);
    app.stop().await;
}

/// Messages that are committed side by side can have their jobs in another order than their own.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn the_oldest_message_of_a_chat_goes_out_in_whatever_order_the_jobs_lie(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.report(&put.session_id, Observed::Reconnecting).await;
    let mut ids = Vec::new();
    for text in ["first", "second", "third"] {
        ids.push(program.send(&put.session_id, TO, text).await.json()["id"].as_str().unwrap().to_owned());
    }
    assert!(ids.is_sorted());
    // The second's job is somewhere else; the third's comes before the first's.
    execute(app.app(), "DELETE FROM jobs WHERE subject = $1", [ids[1].clone().into()]).await;
    let swap = "UPDATE jobs SET subject = CASE WHEN subject = $1 THEN $2 ELSE $1 END WHERE subject IN ($1, $2)";
    assert_eq!(execute(app.app(), swap, [ids[0].clone().into(), ids[2].clone().into()]).await, 2);
    worker.report(&put.session_id, Observed::Connected).await;
    program.message(&ids[0], "sent").await;
    for waits in &ids[1..] {
        assert_eq!(program.get(&format!("messages/{waits}")).await.json()["status"], "queued");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn what_a_suspended_tenant_has_queued_waits_until_it_is_taken_back(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.report(&put.session_id, Observed::Reconnecting).await;
    let mut ids = Vec::new();
    for to in [TO, TO, "+15550005678"] {
        ids.push(program.send(&put.session_id, to, "x").await.json()["id"].as_str().unwrap().to_owned());
    }
    let status = "UPDATE tenants SET status = $1 WHERE id = $2";
    app.sql(status, ["suspended".into(), program.tenant.as_str().into()]).await;
    worker.report(&put.session_id, Observed::Connected).await;
    until("the runner has looked at all three, and counted nothing", async || {
        let soon = shared::time::Timestamp::now().as_millis() + 5_000;
        let query = "SELECT COUNT(*) FROM jobs WHERE kind = 'messages.send' AND state = 'ready' AND run_at > ";
        (app.count(&format!("{query}{soon}")).await == 3).then_some(())
    })
    .await;
    assert_eq!(worker.sent().len(), 0);
    app.sql(status, ["active".into(), program.tenant.as_str().into()]).await;
    app.sql("UPDATE jobs SET run_at = 0 WHERE state = 'ready'", []).await;
    for id in &ids {
        program.message(id, "sent").await;
    }
    assert_eq!(worker.sent().len(), 3);
    app.stop().await;
}

/// On PostgreSQL, since there a commit can be held up.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_sender_goes_away_during_the_commit_is_sent_all_the_same_and_soon() {
    let Some(mut app) = TestApp::start(Engine::Postgres).await else { return };
    let impatient = app.replica_with(|config| config.http.request_timeout = Duration::from_secs(3)).await;
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let db = &app.app().db;
    for statement in [
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION wait()",
    ] {
        db.autocommit().execute_unprepared(statement).await.unwrap();
    }
    let held_up = db.write().await.unwrap();
    held_up.execute_unprepared("SELECT pg_advisory_xact_lock(4711)").await.unwrap();
    let body = json!({"session_id": put.session_id, "to": TO, "type": "text", "text": {"body": "x"}});
    let request = app.http.post(format!("{impatient}/api/v1/messages/send")).bearer_auth(&program.key).json(&body);
    Answer::of(request).await.assert_problem(503, "unavailable");
    held_up.rollback().await.unwrap();
    until("the worker gets it", async || worker.sent().first().cloned()).await;
    until("it is sent", async || {
        (app.count("SELECT COUNT(*) FROM messages WHERE status = 'sent'").await == 1).then_some(())
    })
    .await;
    app.stop().await;
}
