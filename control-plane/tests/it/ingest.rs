//! What WhatsApp told, on its way into history.

use chrono::Utc;
use rstest::rstest;
use serde_json::json;
use shared::wire::{
    outbox::{InboundBody, InboundMessage, OutboxBatch, OutboxEvent, OutboxRow, Party, ReceiptKind},
    send::Content,
    session::Observed,
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Engine, TestApp},
};

fn message(wa_id: &str, body: InboundBody) -> OutboxEvent {
    let party =
        Party { id: "888@lid".into(), pn: Some("15550001234@s.whatsapp.net".into()), lid: Some("888@lid".into()) };
    OutboxEvent::Message(InboundMessage {
        wa_id: wa_id.into(),
        chat: party.clone(),
        sender: party,
        from_me: false,
        push_name: Some("Grace".into()),
        sent_at: Utc::now(),
        body,
    })
}

/// A text that came in.
pub fn text(wa_id: &str, body: &str) -> OutboxEvent {
    message(wa_id, InboundBody::Content { content: Content::Text { body: body.into() } })
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn rows_shipped_again_in_other_batches_are_stored_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let all: Vec<_> = (1..=20).map(|n| text(&format!("A{n}"), &format!("text {n}"))).collect();
    for (first, count) in [(1, 10), (1, 20), (5, 3), (11, 10)] {
        let rows = &all[first - 1..first - 1 + count];
        let answer = worker.ship(&put, i64::try_from(first).unwrap(), rows).await;
        assert_eq!(answer.json()["seq"], first + count - 1, "{answer:?}");
    }
    let page = program.get(&format!("messages?session_id={}&limit=100", put.session_id)).await.json();
    let texts: Vec<_> = page["data"].as_array().unwrap().iter().map(|m| m["text"]["body"].as_str().unwrap()).collect();
    assert_eq!(texts, (1..=20).rev().map(|n| format!("text {n}")).collect::<Vec<_>>());
    let newest = &page["data"][0];
    assert_eq!((&newest["direction"], &newest["status"]), (&json!("inbound"), &json!("received")));
    assert_eq!(newest["sender"]["phone"], "+15550001234");
    assert_eq!((&newest["sender"]["lid"], &newest["sender"]["name"]), (&json!("888@lid"), &json!("Grace")));
    assert_eq!(program.events("message.received").await, 20);
    assert_eq!(app.count("SELECT COUNT(*) FROM usage_facts WHERE meter = 'messages_received'").await, 20);
    for chat in ["%2B15550001234", "888@lid"] {
        let filtered = program.get(&format!("messages?chat={chat}&direction=inbound&limit=3")).await.json();
        assert_eq!(filtered["data"].as_array().unwrap().len(), 3);
        assert!(filtered["next_cursor"].is_string());
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn one_identity_in_two_sessions_is_two_messages_and_in_one_session_one(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let (one, two) = (Program::new(&app).await, Program::new(&app).await);
    let (first, second) = (one.connected(&worker).await, two.connected(&worker).await);
    for put in [&first, &second] {
        assert_eq!(worker.ship(put, 1, &[text("SAME", "x")]).await.status, 200);
        assert_eq!(worker.ship(put, 2, &[text("SAME", "x")]).await.status, 200);
    }
    for program in [&one, &two] {
        let page = program.get("messages").await.json();
        assert_eq!(page["data"].as_array().unwrap().len(), 1);
        assert_eq!(program.events("message.received").await, 1);
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn an_undecryptable_message_is_updated_by_its_content_and_never_doubled(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.ship(&put, 1, &[message("U1", InboundBody::Undecryptable)]).await;
    let placeholder = program.get("messages").await.json()["data"][0].clone();
    assert_eq!((&placeholder["type"], &placeholder["text"]), (&json!("undecryptable"), &json!(null)));
    assert_eq!(app.count("SELECT COUNT(*) FROM usage_facts").await, 0);
    worker.ship(&put, 2, &[text("U1", "at last"), message("U1", InboundBody::Undecryptable)]).await;
    let page = program.get("messages").await.json();
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    assert_eq!(page["data"][0]["id"], placeholder["id"]);
    assert_eq!(page["data"][0]["text"]["body"], "at last");
    assert_eq!(program.events("message.undecryptable").await, 1);
    assert_eq!(program.events("message.received").await, 1);
    assert_eq!(app.count("SELECT COUNT(*) FROM usage_facts").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_batch_with_one_bad_row_stores_nothing_and_only_the_store_s_workers_may_ship(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let other = FakeWorker::active(&app, "w2").await;
    other.ship(&put, 1, &[text("A", "x")]).await.assert_problem_of(409, "conflict");
    let batch = |rows| OutboxBatch {
        incarnation: worker.incarnation(),
        session_id: put.session_id.clone(),
        epoch: put.epoch,
        rows,
    };
    worker.ship_batch(&batch(Vec::new())).await.assert_problem_of(422, "validation");
    let falling = vec![OutboxRow { seq: 2, sealed: vec![] }, OutboxRow { seq: 1, sealed: vec![] }];
    worker.ship_batch(&batch(falling)).await.assert_problem_of(422, "validation");
    let unknown =
        OutboxBatch { session_id: shared::ids::SessionId::new(), ..batch(vec![OutboxRow { seq: 1, sealed: vec![] }]) };
    worker.ship_batch(&unknown).await.assert_problem_of(404, "not-found");
    assert_eq!(app.count("SELECT COUNT(*) FROM outbox_rows_seen").await, 0);
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn history_outlives_its_session_and_late_rows_of_a_deleted_one_are_let_go(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.ship(&put, 1, &[text("A", "kept")]).await;
    program.delete(&format!("sessions/{}", put.session_id)).await;
    worker.told(&put.session_id, |put| put.desired == shared::wire::session::Desired::Deleted).await;
    worker.report(&put.session_id, Observed::Erased { unlink_confirmed: true }).await;
    until("the session is gone", async || {
        (program.get(&format!("sessions/{}", put.session_id)).await.status == 404).then_some(())
    })
    .await;
    let late = worker.ship(&put, 2, &[text("B", "late")]).await;
    assert_eq!((late.status.as_u16(), &late.json()["seq"]), (200, &json!(2)));
    let page = program.get("messages").await.json();
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    assert_eq!(page["data"][0]["text"]["body"], "kept");
    app.stop().await;
}

/// Whoever writes to a session chooses these. A row that could never be stored would hold up all that come after it.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn no_name_or_id_that_a_stranger_chooses_holds_a_session_s_rows_up(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    let hostile = |text: &str| -> Vec<OutboxEvent> {
        let party = Party { id: format!("{text}@lid"), pn: Some(text.into()), lid: Some(format!("{text}@lid")) };
        vec![
            OutboxEvent::Message(InboundMessage {
                wa_id: text.into(),
                chat: party.clone(),
                sender: party.clone(),
                from_me: false,
                push_name: Some(text.into()),
                sent_at: Utc::now(),
                body: InboundBody::Content { content: Content::Text { body: text.into() } },
            }),
            OutboxEvent::Receipt {
                chat: party,
                wa_ids: vec![text.into(), "3EB0".into()],
                receipt: ReceiptKind::Read,
                at: Utc::now(),
            },
        ]
    };
    // PostgreSQL stores no U+0000, and indexes no more than 2,704 bytes. Digits of a hash, which don't compress.
    let long: String = (0..2_000_u32).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761))).collect();
    let rows: Vec<_> = ["Gr\0ace", "\0", &long, &"\u{1f980}".repeat(1_000)].into_iter().flat_map(hostile).collect();
    assert_eq!(worker.ship(&put, 1, &rows).await.status, 200);
    assert_eq!(worker.ship(&put, 9, &[text("AFTER", "what comes after")]).await.status, 200);
    let page = program.get("messages?limit=100").await.json();
    let texts: Vec<_> = page["data"].as_array().unwrap().iter().map(|m| m["text"]["body"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 5);
    assert_eq!((texts[0], texts[2]), ("what comes after", long.as_str()), "what was said is kept whole");
    assert_eq!(page["data"][4]["sender"]["name"], "Gr\u{fffd}ace");
    app.stop().await;
}
