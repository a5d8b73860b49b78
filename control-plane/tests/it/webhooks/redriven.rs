//! Deliveries that were given up, and whose jobs the operator redrives.

use control_plane::{
    events::EventType,
    jobs::{JobKind, dead},
};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Setup, receiver::Said, text};
use crate::{
    harness::Engine,
    parts::eventually,
    redrive::{redrive, redrive_all, refused},
};

/// Records an event whose delivery the endpoint fails for the last time; gives the dead job and the delivery.
async fn exhausted(setup: &Setup, n: u32) -> (dead::DeadJob, Value) {
    setup.receiver.say(&[Said::Status(500), Said::Status(500)]);
    setup.record(EventType::MessageReceived, json!({"n": n})).await;
    setup.delivery("it failed", |delivery| delivery["attempts"] == 1 && delivery["status"] == "pending").await;
    setup.app.sql("UPDATE deliveries SET attempts = 1000 WHERE status = 'pending'", []).await;
    setup.skip_waits().await;
    let delivery = setup.delivery("it is given up", |delivery| delivery["status"] == "failed").await;
    (dead_of(setup, &text(&delivery["id"])).await, delivery)
}

async fn dead_of(setup: &Setup, delivery: &str) -> dead::DeadJob {
    let dead = dead::list(&setup.app.app().db, Some(JobKind::DeliverWebhook), None, 100).await.unwrap();
    dead.into_iter().find(|job| job.subject == delivery).expect("its job is dead")
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_delivery_that_was_given_up_is_delivered_with_all_its_tries_once_it_is_redriven(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    let (job, delivery) = exhausted(&setup, 1).await;
    // The first of its new tries fails, and it isn't the last.
    setup.receiver.say(&[Said::Status(503)]);
    redrive(&setup.app, &job.id).await.unwrap();
    let failed = setup.delivery("it is tried", |delivery| delivery["attempts"] == 1).await;
    assert_eq!((&failed["id"], &failed["status"]), (&delivery["id"], &json!("pending")));
    assert_eq!(failed["completed_at"], Value::Null);
    setup.skip_waits().await;
    let succeeded = setup.delivery("it arrived", |delivery| delivery["status"] == "succeeded").await;
    assert_eq!(succeeded["attempts"], 2);
    let got = setup.receiver.got();
    assert_eq!(got.len(), 4);
    assert!(got.iter().all(|one| one.id() == got[0].id() && one.event()["data"] == json!({"n": 1})));
    assert!(got[3].is_signed_with(&setup.secret));
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_delivery_that_cannot_or_need_not_be_made_is_not_redriven(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    let path = format!("/api/v1/webhooks/{}", setup.webhook);

    let (replayed, delivery) = exhausted(&setup, 1).await;
    let replay = format!("/api/v1/deliveries/{}/replay", text(&delivery["id"]));
    setup.receiver.say(&[Said::Status(500)]);
    assert_eq!(setup.call(Method::POST, &replay, None).await.status, 202);
    setup.delivery("it is tried again", |delivery| delivery["attempts"] == 1).await;
    refused(&setup.app, &replayed, "it is pending: it will be tried anyway").await;
    setup.skip_waits().await;
    setup.delivery("it arrived", |delivery| delivery["status"] == "succeeded").await;
    refused(&setup.app, &replayed, "it was delivered since").await;

    let (forgotten, _) = exhausted(&setup, 2).await;
    setup.app.sql("DELETE FROM events WHERE id IN (SELECT event_id FROM deliveries WHERE status = 'failed')", []).await;
    refused(&setup.app, &forgotten, "its event is not kept any more").await;

    let (job, _) = exhausted(&setup, 3).await;
    let disable = Some(json!({"status": "disabled"}));
    assert_eq!(setup.call(Method::PATCH, &path, disable).await.status, 200);
    refused(&setup.app, &job, "this webhook is disabled: enable it first").await;
    assert_eq!(setup.deliveries().await[0]["status"], "failed", "nothing has changed");
    let before = setup.receiver.got().len();
    let enable = Some(json!({"status": "enabled"}));
    assert_eq!(setup.call(Method::PATCH, &path, enable).await.status, 200);
    let all = redrive_all(&setup.app, JobKind::DeliverWebhook).await;
    assert_eq!(all.revived, 1);
    assert_eq!(all.refused.keys().collect::<Vec<_>>(), ["it was delivered since", "its event is not kept any more"]);
    assert_eq!(setup.receiver.until_got(before + 1).await[before].event()["data"], json!({"n": 3}));
    setup.delivery("it is noted", |delivery| delivery["status"] == "succeeded").await;

    let (orphan, _) = exhausted(&setup, 4).await;
    assert_eq!(setup.call(Method::DELETE, &path, None).await.status, 204);
    eventually("it is gone", async || setup.app.count("SELECT COUNT(*) FROM webhooks").await == 0).await;
    refused(&setup.app, &orphan, "the delivery or its endpoint was deleted").await;
    setup.app.stop().await;
}
