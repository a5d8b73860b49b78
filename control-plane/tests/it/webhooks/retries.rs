//! What an endpoint answers, and when it is tried again, or no more.

use std::{collections::HashMap, time::Duration};

use control_plane::events::EventType;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::time::Timestamp;

use super::{
    Setup,
    receiver::{Received, Said},
    text,
};
use crate::{harness::Engine, parts::eventually};

fn millis(value: &Value) -> i64 {
    serde_json::from_value::<Timestamp>(value.clone()).unwrap().as_millis()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_failed_delivery_is_tried_again_under_the_same_id_with_a_fresh_signature(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.receiver.say(&[Said::Status(500), Said::Redirect(307, "/elsewhere"), Said::Status(204)]);
    let id = setup.record(EventType::MessageReceived, json!({"n": 1})).await;
    let first = setup.delivery("it failed", |delivery| delivery["attempts"] == 1).await;
    assert_eq!((&first["status"], &first["last_status"]), (&json!("pending"), &json!(500)));
    let wait = millis(&first["next_attempt_at"]) - millis(&first["created_at"]);
    assert!((4_000..15_000).contains(&wait), "5 s ± 20 % after the try: {wait}");
    assert!(setup.webhook().await["failing_since"].is_string());
    setup.skip_waits().await;
    let second = setup.delivery("it failed again", |delivery| delivery["attempts"] == 2).await;
    assert_eq!(second["last_status"], 307, "a redirect is a failure, and isn't followed");
    setup.skip_waits().await;
    let third = setup.delivery("it succeeded", |delivery| delivery["status"] == "succeeded").await;
    assert_eq!(third["attempts"], 3);
    assert_eq!(setup.webhook().await["failing_since"], Value::Null);
    let got = setup.receiver.got();
    assert_eq!(got.len(), 3);
    for received in &got {
        assert_eq!(received.id(), id);
        assert_eq!(received.body, got[0].body, "the same body, to the byte");
        assert!(received.is_signed_with(&setup.secret));
    }

    // Replayed, it is the same event once more.
    let path = format!("/api/v1/deliveries/{}/replay", text(&third["id"]));
    let replayed = setup.call(Method::POST, &path, None).await;
    assert_eq!(replayed.status, 202, "{replayed:?}");
    let got = setup.receiver.until_got(4).await;
    assert_eq!((got[3].id(), &got[3].body), (id, &got[0].body));
    setup.delivery("the replay is noted", |delivery| delivery["status"] == "succeeded").await;
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn an_overloaded_endpoint_gets_a_minute_and_what_it_asks_for_up_to_double(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.receiver.say(&[Said::Status(429), Said::RetryAfter(429, 3600)]);
    setup.record(EventType::MessageReceived, json!({})).await;
    let first = setup.delivery("it failed", |delivery| delivery["attempts"] == 1).await;
    let now = Timestamp::now().as_millis();
    let wait = millis(&first["next_attempt_at"]) - now;
    assert!((50_000..=60_500).contains(&wait), "a minute: {wait}");
    setup.skip_waits().await;
    let second = setup.delivery("it failed again", |delivery| delivery["attempts"] == 2).await;
    let wait = millis(&second["next_attempt_at"]) - Timestamp::now().as_millis();
    assert!((100_000..=120_500).contains(&wait), "twice a minute: {wait}");
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_at_once_and_says_so(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.receiver.say(&[Said::Status(410)]);
    setup.record(EventType::MessageReceived, json!({})).await;
    setup.delivery("it is given up", |delivery| delivery["status"] == "failed").await;
    let webhook = setup.webhook().await;
    assert_eq!((&webhook["status"], &webhook["disabled_reason"]), (&json!("disabled"), &json!("gone")));
    let events = setup.call(Method::GET, "/api/v1/events", None).await.json();
    assert_eq!(events["data"][0]["type"], "webhook.disabled");
    assert_eq!(events["data"][0]["data"], json!({"webhook_id": setup.webhook, "reason": "gone"}));

    // Nothing is delivered, tested or replayed until it is enabled.
    let path = format!("/api/v1/webhooks/{}", setup.webhook);
    setup.call(Method::POST, &format!("{path}/test"), None).await.assert_problem(409, "conflict");
    let id = text(&setup.deliveries().await[0]["id"]);
    let replay = format!("/api/v1/deliveries/{id}/replay");
    setup.call(Method::POST, &replay, None).await.assert_problem(409, "conflict");
    setup.record(EventType::MessageReceived, json!({})).await;
    assert_eq!(setup.deliveries().await.len(), 1, "an event that is recorded meanwhile has no delivery");
    let enabled = setup.call(Method::PATCH, &path, Some(json!({"status": "enabled"}))).await.json();
    assert_eq!((&enabled["status"], &enabled["disabled_reason"]), (&json!("enabled"), &Value::Null));
    assert_eq!(setup.call(Method::POST, &replay, None).await.status, 202);
    setup.delivery("the replay succeeded", |delivery| delivery["status"] == "succeeded").await;
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn five_days_of_failure_disable_an_endpoint_and_less_do_not(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.receiver.say(&[Said::Status(500), Said::Status(500), Said::Status(500)]);
    setup.record(EventType::MessageReceived, json!({})).await;
    setup.delivery("it failed", |delivery| delivery["attempts"] == 1).await;
    let ago = |hours: u64| Timestamp::now().minus(Duration::from_secs(hours * 3600));
    setup.app.sql("UPDATE webhooks SET failing_since = $1", [ago(119).into()]).await;
    setup.skip_waits().await;
    setup.delivery("it failed again", |delivery| delivery["attempts"] == 2).await;
    assert_eq!(setup.webhook().await["status"], "enabled");
    setup.app.sql("UPDATE webhooks SET failing_since = $1", [ago(121).into()]).await;
    setup.skip_waits().await;
    setup.delivery("and again", |delivery| delivery["attempts"] == 3).await;
    let webhook = setup.webhook().await;
    assert_eq!((&webhook["status"], &webhook["disabled_reason"]), (&json!("disabled"), &json!("failing")));
    // What still waits fails when its turn comes, without a call.
    setup.skip_waits().await;
    let delivery = setup.delivery("it is given up", |delivery| delivery["status"] == "failed").await;
    assert_eq!(delivery["last_error"], "endpoint_disabled");
    assert_eq!(setup.receiver.got().len(), 3);
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn every_event_arrives_although_every_third_answer_is_an_error(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    let answers: Vec<_> = (0..60).map(|n| Said::Status(if n % 3 == 0 { 503 } else { 200 })).collect();
    setup.receiver.say(&answers);
    let mut sent = Vec::new();
    for n in 0..40 {
        sent.push(setup.record(EventType::MessageReceived, json!({"n": n})).await);
    }
    eventually("every delivery succeeded", async || {
        setup.skip_waits().await;
        setup.app.count("SELECT COUNT(*) FROM deliveries WHERE status = 'succeeded'").await == 40
    })
    .await;
    let mut by_id: HashMap<String, Vec<Received>> = HashMap::new();
    for received in setup.receiver.got() {
        by_id.entry(received.id()).or_default().push(received);
    }
    for id in sent {
        assert!(by_id[&id].iter().all(|received| received.is_signed_with(&setup.secret)));
    }
    assert_eq!(by_id.len(), 40);
    setup.app.stop().await;
}
