//! Linking a session by a code, and past a passkey.

use rstest::rstest;
use serde_json::{Value, json};
use shared::wire::{
    linking::{Passkey, PasskeyAnswer},
    session::Observed,
};

use crate::{
    fleet::{FakeWorker, Program},
    harness::{Answer, Engine, TestApp},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn the_id_of_a_request_goes_along_to_the_worker_and_background_calls_have_none(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let worker = FakeWorker::active(&app, "w1").await;
    let id = program.session().await;
    worker.told(&id, |_| true).await;
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    let orders = worker.request_ids();
    assert!(!orders.is_empty() && orders.iter().all(Option::is_none), "the reconciler's: {orders:?}");

    worker.show_qr("2@of-the-worker");
    let qr = app.get(&format!("/api/v1/sessions/{id}/qr")).bearer_auth(&program.key).header("x-request-id", "qr-1");
    let qr = Answer::of(qr).await;
    assert_eq!((qr.status.as_u16(), qr.header("x-request-id")), (200, Some("qr-1")), "{qr:?}");
    let code = app.post(&format!("/api/v1/sessions/{id}/pairing-code"), &json!({"phone": "+15550001234"}));
    let code = Answer::of(code.bearer_auth(&program.key).header("x-request-id", "code-1")).await;
    assert_eq!(code.status, 200, "{code:?}");
    let made = program.post(&format!("sessions/{id}/pairing-code"), &json!({"phone": "+15550001234"})).await;
    let seen: Vec<_> = worker.request_ids().into_iter().flatten().collect();
    assert_eq!(seen, ["qr-1", "code-1", made.header("x-request-id").unwrap()]);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn a_code_is_asked_of_the_worker_and_shown_as_the_phone_wants_it(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let id = program.session().await;
    let path = format!("sessions/{id}/pairing-code");
    let phone = json!({"phone": "+15550001234"});
    program.post(&path, &phone).await.assert_problem(409, "not-pairing");

    let worker = FakeWorker::active(&app, "w1").await;
    worker.told(&id, |_| true).await;
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    let code = program.post(&path, &phone).await;
    assert_eq!((code.status.as_u16(), &code.json()["code"]), (200, &json!("ABCD-1234")), "{code:?}");
    assert_eq!(code.header("cache-control"), Some("no-store"));
    assert!(code.json()["expires_at"].is_string());
    assert_eq!(worker.linked_with().phones, ["15550001234"]);

    for wrong in ["", "0155500", "+1 555 000 1234", "15550001234@s.whatsapp.net", "call me"] {
        let answer = program.post(&path, &json!({ "phone": wrong })).await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.pointers(), ["/phone"], "{wrong}");
    }
    for (refuse, status, slug) in [
        ((409, "not-pairing"), 409, "not-pairing"),
        ((409, "link-refused"), 409, "link-refused"),
        ((429, "link-throttled"), 429, "rate-limited"),
        ((503, "no-answer"), 503, "unavailable"),
    ] {
        worker.link_with(|linking| linking.refuse = Some(refuse));
        let answer = program.post(&path, &phone).await;
        answer.assert_problem(status, slug);
        assert_eq!(answer.header("retry-after").is_some(), status != 409, "{answer:?}");
    }
    let other = Program::new(&app).await;
    other.post(&path, &phone).await.assert_problem(404, "not-found");
    assert_eq!(worker.linked_with().phones.len(), 1, "nobody else's order reached the worker");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test]
async fn what_whatsapp_asks_of_a_passkey_is_shown_and_the_answer_is_passed_on(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let id = program.session().await;
    let path = format!("sessions/{id}/passkey");
    let worker = FakeWorker::active(&app, "w1").await;
    worker.told(&id, |_| true).await;
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    program.get(&path).await.assert_problem(409, "no-passkey-request");

    worker.report(&id, Observed::PasskeyRequired).await;
    program.status(&id, "passkey_required").await;
    let options = json!({"challenge": "Y2hhbGxlbmdl", "rpId": "web.whatsapp.com"});
    worker.link_with(|linking| linking.asked = Some(Passkey::Assertion { request_options: options.to_string() }));
    assert_eq!(program.get(&path).await.json(), json!({"stage": "assertion", "request_options": options}));

    let credential = |raw_id: &str| {
        let response =
            json!({"clientDataJSON": "YQ", "authenticatorData": "Yg", "signature": "Yw", "userHandle": null});
        json!({"stage": "assertion", "credential": {
            "id": raw_id, "rawId": raw_id, "type": "public-key", "response": response,
            "authenticatorAttachment": "platform", "clientExtensionResults": {},
        }})
    };
    for wrong in ["", "not base64url!", "YQ=="] {
        let answer = program.post(&path, &credential(wrong)).await;
        answer.assert_problem(422, "validation");
    }
    let right = credential("aWQ")["credential"].clone();
    let as_a_row = json!(["aWQ", ["YQ", "Yg", "Yw", null]]);
    for (wrong, pointer) in [
        (json!({"credential": right}), "/stage"),
        (json!({"stage": 0, "credential": right}), "/stage"),
        (json!({"stage": {"assertion": null}, "credential": right}), "/stage"),
        (json!({"stage": "consent"}), "/stage"),
        (json!({"stage": "assertion"}), "/credential"),
        (json!({"stage": "assertion", "credential": null}), "/credential"),
        (json!({"stage": "assertion", "credential": as_a_row}), "/credential"),
        (json!({"stage": "confirmation", "credential": right}), "/credential"),
        (json!({"stage": "confirmation", "sure": true}), "/sure"),
        (json!({"stage": 1}), "/stage"),
    ] {
        let answer = program.post(&path, &wrong).await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{wrong}");
    }
    assert!(worker.linked_with().answers.is_empty(), "nothing of it reached the worker");
    assert_eq!(program.post(&path, &credential("aWQ")).await.status, 204);
    worker.link_with(|linking| linking.asked = Some(Passkey::Confirmation { code: "ABCD-1234".into() }));
    assert_eq!(program.get(&path).await.json(), json!({"stage": "confirmation", "code": "ABCD-1234"}));
    assert_eq!(program.post(&path, &json!({"stage": "confirmation"})).await.status, 204);
    let answers = worker.linked_with().answers;
    let [PasskeyAnswer::Assertion { assertion, credential_id }, PasskeyAnswer::Confirmation] = &answers[..] else {
        panic!("{} answers", answers.len());
    };
    assert_eq!(credential_id.expose(), "aWQ");
    let told: Value = serde_json::from_str(assertion.expose()).unwrap();
    let response = json!({"clientDataJSON": "YQ", "authenticatorData": "Yg", "signature": "Yw", "userHandle": null});
    assert_eq!(told, json!({"id": "aWQ", "rawId": "aWQ", "type": "public-key", "response": response}));

    worker.link_with(|linking| linking.refuse = Some((409, "not-asked")));
    program.post(&path, &json!({"stage": "confirmation"})).await.assert_problem(409, "no-passkey-request");
    app.stop().await;
}
