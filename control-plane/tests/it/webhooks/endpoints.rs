//! An endpoint: who makes it, changes it, and sees it, and its secret.

use control_plane::events::EventType;
use reqwest::Method;
use rstest::rstest;
use secrecy::ExposeSecret;
use serde_json::json;

use super::{
    Setup, call, create,
    receiver::{Receiver, Said},
    start, text,
};
use crate::harness::{Answer, Engine, TestApp};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn an_endpoint_gets_the_types_that_it_asks_for(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!(["message.status"])).await else { return };
    setup.record(EventType::MessageReceived, json!({})).await;
    let wanted = setup.record(EventType::MessageStatus, json!({})).await;
    setup.receiver.until_got(1).await;
    let all = setup.call(Method::GET, "/api/v1/events", None).await.json();
    assert_eq!(all["data"].as_array().unwrap().len(), 2, "both are stored");
    assert_eq!(setup.deliveries().await.len(), 1);
    assert_eq!(setup.receiver.got()[0].id(), wanted);

    // All of them, from now on; a test event comes in any case.
    let path = format!("/api/v1/webhooks/{}", setup.webhook);
    let changed = setup.call(Method::PATCH, &path, Some(json!({"event_types": ["*"]}))).await;
    assert_eq!(changed.json()["event_types"], json!([]));
    setup.record(EventType::MessageReceived, json!({})).await;
    setup.receiver.until_got(2).await;
    setup.call(Method::PATCH, &path, Some(json!({"event_types": ["message.sent"]}))).await;
    let test = setup.call(Method::POST, &format!("{path}/test"), None).await;
    assert_eq!(test.status, 202, "{test:?}");
    let got = setup.receiver.until_got(3).await;
    assert_eq!(got[2].event()["type"], "webhook.test");
    assert_eq!(got[2].id(), text(&test.json()["event_id"]));
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn during_a_rotation_both_secrets_verify_and_afterwards_the_new_one_alone(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    let path = format!("/api/v1/webhooks/{}/rotate-secret", setup.webhook);
    let rotated = setup.call(Method::POST, &path, None).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    let new = text(&rotated.json()["secret"]);
    assert_ne!(new, setup.secret);
    setup.record(EventType::MessageReceived, json!({})).await;
    let got = setup.receiver.until_got(1).await;
    assert!(got[0].is_signed_with(&new) && got[0].is_signed_with(&setup.secret));
    setup.app.sql("UPDATE webhooks SET previous_secret_until = 1", []).await;
    setup.record(EventType::MessageReceived, json!({})).await;
    let got = setup.receiver.until_got(2).await;
    assert!(got[1].is_signed_with(&new) && !got[1].is_signed_with(&setup.secret));
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_body_that_describes_no_endpoint_makes_none(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for body in [
        json!({}),
        json!({"url": "not a url"}),
        json!({"url": 7}),
        json!({"url": "https://example.com", "event_types": ["no"]}),
        json!({"url": "https://example.com", "extra": 1}),
    ] {
        let answer = call(&app, &owner, Method::POST, "/api/v1/webhooks", Some(body)).await;
        answer.assert_problem(422, "validation");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM webhooks").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_tenant_has_one_endpoint_and_nobody_else_sees_it(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.record(EventType::MessageReceived, json!({})).await;
    let delivery = setup.delivery("it is delivered", |delivery| delivery["status"] == "succeeded").await;
    create(&setup.app, &setup.owner, &setup.receiver.url(), json!([])).await.assert_problem(409, "webhook-exists");
    let stranger = setup.app.sign_up().await;
    let path = format!("/api/v1/webhooks/{}", setup.webhook);
    let replay = format!("/api/v1/deliveries/{}/replay", text(&delivery["id"]));
    for (method, path, body) in [
        (Method::GET, path.clone(), None),
        (Method::PATCH, path.clone(), Some(json!({"status": "disabled"}))),
        (Method::DELETE, path.clone(), None),
        (Method::POST, format!("{path}/test"), None),
        (Method::POST, format!("{path}/rotate-secret"), None),
        (Method::GET, format!("{path}/deliveries"), None),
        (Method::POST, replay, None),
    ] {
        call(&setup.app, &stranger, method, &path, body).await.assert_problem(404, "not-found");
    }
    let mine = call(&setup.app, &stranger, Method::GET, "/api/v1/webhooks", None).await.json();
    assert_eq!(mine["data"], json!([]));
    let events = call(&setup.app, &stranger, Method::GET, "/api/v1/events", None).await.json();
    assert_eq!(events["data"], json!([]));

    // Neither does a secret show again, nor lie in the database in clear.
    let shown = setup.call(Method::GET, &path, None).await.text;
    assert!(!shown.contains("secret") && setup.webhook().await["status"] == "enabled");
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_deleted_endpoint_takes_its_deliveries_and_jobs_along(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.receiver.say(&[Said::Status(500)]);
    setup.record(EventType::MessageReceived, json!({})).await;
    setup.delivery("it failed", |delivery| delivery["attempts"] == 1).await;
    let path = format!("/api/v1/webhooks/{}", setup.webhook);
    assert_eq!(setup.call(Method::DELETE, &path, None).await.status, 204);
    setup.call(Method::GET, &path, None).await.assert_problem(404, "not-found");
    assert_eq!(setup.app.count("SELECT COUNT(*) FROM deliveries").await, 0);
    assert_eq!(setup.app.count("SELECT COUNT(*) FROM jobs WHERE state = 'ready'").await, 0);
    let again = create(&setup.app, &setup.owner, &setup.receiver.url(), json!([])).await;
    assert_eq!(again.status, 201, "another can be made: {again:?}");
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_repeated_creation_shows_the_same_secret_and_makes_one_endpoint(#[case] engine: Engine) {
    let receiver = Receiver::start().await;
    let Some(app) = start(engine, &[receiver.port]).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"url": receiver.url()});
    let request =
        || app.post("/api/v1/webhooks", &body).bearer_auth(&owner.access_token).header("idempotency-key", "k");
    let (first, second) = (Answer::of(request()).await, Answer::of(request()).await);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (201, 201));
    assert_eq!(first.text, second.text);
    assert_eq!(second.header("idempotent-replayed"), Some("true"));
    assert_eq!(app.count("SELECT COUNT(*) FROM webhooks").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_and_a_url_in_the_settings_are_enough_and_the_key_asks_for_the_secret(#[case] engine: Engine) {
    let receiver = Receiver::start().await;
    let key = control_plane::keys::new_key(shared::wire::session::Network::Sandbox).expose_secret().to_owned();
    let Some(mut app) = TestApp::start_with(engine, |config| {
        config.outbound.allow_cidrs = vec!["127.0.0.1/32".parse().unwrap()];
        config.outbound.allow_ports = vec![receiver.port];
        config.bootstrap.api_key = Some(key.as_str().into());
        config.bootstrap.webhook_url = Some(receiver.url().parse().unwrap());
    })
    .await
    else {
        return;
    };
    let path =
        |app: &TestApp, rest: &str| app.request(Method::POST, &format!("/api/v1/webhooks{rest}")).bearer_auth(&key);
    let hooks = Answer::of(app.get("/api/v1/webhooks").bearer_auth(&key)).await;
    assert!(!hooks.text.contains("whsec_"), "it shows when it is asked for only");
    let (hook, id) = (hooks.json()["data"][0].clone(), text(&hooks.json()["data"][0]["id"]));
    assert_eq!((hook["status"].as_str(), hook["event_types"].clone()), (Some("enabled"), json!([])), "all of them");
    let rotated = Answer::of(path(&app, &format!("/{id}/rotate-secret"))).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    let secret = text(&rotated.json()["secret"]);
    assert!(secret.starts_with("whsec_"));
    let signed = async |app: &TestApp, count: usize, secret: &str| {
        let test = Answer::of(path(app, &format!("/{id}/test"))).await;
        assert_eq!(test.status, 202, "{test:?}");
        receiver.until_got(count).await[count - 1].is_signed_with(secret)
    };
    assert!(signed(&app, 1, &secret).await);

    // Another start, and another URL, leave it as it is.
    let elsewhere = receiver.url().replace("/hook", "/elsewhere");
    app.replica_with(|config| config.bootstrap.webhook_url = Some(elsewhere.parse().unwrap())).await;
    assert!(signed(&app, 2, &secret).await);
    let hooks = Answer::of(app.get("/api/v1/webhooks").bearer_auth(&key)).await.json();
    assert_eq!((hooks["data"].as_array().unwrap().len(), text(&hooks["data"][0]["url"])), (1, elsewhere));

    // One that is set takes its place, and stays when the setting goes.
    let chosen = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    app.replica_with(|config| config.bootstrap.webhook_secret = Some(chosen.into())).await;
    assert!(signed(&app, 3, chosen).await);
    app.replica().await;
    assert!(signed(&app, 4, chosen).await);
    app.stop().await;
}
