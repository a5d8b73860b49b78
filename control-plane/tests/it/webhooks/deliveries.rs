//! One call of an endpoint: what is sent, where to, and what it may cost.

use std::net::SocketAddr;

use control_plane::events::EventType;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    Setup, call, create,
    receiver::{Receiver, Said},
    start, text,
};
use crate::{harness::Engine, parts::eventually};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn an_event_is_delivered_signed_as_standard_webhooks_says(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    assert!(setup.secret.starts_with("whsec_"));
    let id = setup.record(EventType::MessageReceived, json!({"text": "hallo"})).await;
    let got = setup.receiver.until_got(1).await;
    assert!(got[0].is_signed_with(&setup.secret));
    assert!(!got[0].is_signed_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "not with any secret");
    assert_eq!(got[0].id(), id);
    let event = got[0].event();
    assert_eq!(event["id"], id.as_str());
    assert_eq!(event["type"], "message.received");
    assert_eq!(event["tenant_id"], setup.owner.tenant_id.as_str());
    assert_eq!(event["position"], 1);
    assert_eq!(event["data"], json!({"text": "hallo"}));
    let delivery = setup.delivery("it is noted", |delivery| delivery["status"] == "succeeded").await;
    assert_eq!((&delivery["attempts"], &delivery["last_status"]), (&json!(1), &json!(204)));
    assert_eq!(delivery["event_id"], id.as_str());
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_dead_endpoint_slows_no_other(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    let other = setup.app.sign_up().await;
    let path = "/elsewhere";
    let alive = Receiver::start().await;
    // The port isn't allowed, so it has to be the first receiver's: what it says there never comes.
    create(&setup.app, &other, &alive.url(), json!([])).await.assert_problem(422, "url-not-allowed");
    let url = format!("http://127.0.0.1:{}{path}", setup.receiver.port);
    let created = create(&setup.app, &other, &url, json!([])).await.json();
    setup.receiver.say(&[Said::Never; 200]);
    for _ in 0..60 {
        setup.record(EventType::MessageReceived, json!({})).await;
    }
    setup.receiver.until_got(8).await;
    setup.receiver.say(&[]);
    let test = format!("/api/v1/webhooks/{}/test", text(&created["id"]));
    call(&setup.app, &other, Method::POST, &test, None).await;
    let is_test = |received: &super::receiver::Received| received.event()["type"] == "webhook.test";
    eventually("the other endpoint is served", async || setup.receiver.got().iter().any(is_test)).await;
    // Each that came to its end would have made room for another one.
    let held = setup.receiver.got().iter().position(is_test);
    assert_eq!(held, Some(8), "at most eight at once, and the other endpoint is served before any of them ends");
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn no_redirect_is_followed_wherever_it_leads(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    let redirects = [
        (301, "http://HERE/elsewhere"),
        (302, "http://localhost/"),
        (303, "http://169.254.169.254/latest/meta-data/"),
        (307, "//HERE/elsewhere"),
        (308, "http://[::ffff:127.0.0.1]:1/"),
    ];
    setup.receiver.say(&redirects.map(|(status, to)| Said::Redirect(status, to)));
    setup.record(EventType::MessageReceived, json!({})).await;
    for (attempt, (status, to)) in (1..).zip(redirects) {
        let delivery = setup.delivery("it failed", |delivery| delivery["attempts"] == attempt).await;
        assert_eq!((&delivery["status"], &delivery["last_status"]), (&json!("pending"), &json!(status)), "{to}");
        setup.skip_waits().await;
    }
    setup.delivery("it succeeded", |delivery| delivery["status"] == "succeeded").await;
    assert_eq!(setup.receiver.got().len(), redirects.len() + 1, "and each try came to the endpoint alone");
    setup.app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_url_that_was_allowed_is_judged_again_at_each_call(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    // As if the operator had allowed it once: the stored URL isn't trusted.
    setup.app.sql("UPDATE webhooks SET url = 'http://10.1.2.3/hook'", []).await;
    setup.record(EventType::MessageReceived, json!({})).await;
    let delivery = setup.delivery("it failed", |delivery| delivery["attempts"] == 1).await;
    assert_eq!((&delivery["last_error"], &delivery["last_status"]), (&json!("url_not_allowed"), &Value::Null));
    assert!(setup.receiver.got().is_empty());
    setup.app.stop().await;
}

/// Answers with a body that never ends.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[tokio::test]
async fn an_endless_reply_costs_its_connection_and_nothing_else(#[case] engine: Engine) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 16 * 1024];
                let _read = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                while stream.write_all(b"400\r\n").await.is_ok()
                    && stream.write_all(&[b'x'; 0x400]).await.is_ok()
                    && stream.write_all(b"\r\n").await.is_ok()
                {}
            });
        }
    });
    let Some(app) = start(engine, &[port]).await else { return };
    let owner = app.sign_up().await;
    let created = create(&app, &owner, &format!("http://127.0.0.1:{port}/"), json!([])).await.json();
    let path = format!("/api/v1/webhooks/{}", text(&created["id"]));
    call(&app, &owner, Method::POST, &format!("{path}/test"), None).await;
    eventually("it is delivered", async || {
        let list = call(&app, &owner, Method::GET, &format!("{path}/deliveries"), None).await.json();
        list["data"][0]["status"] == "succeeded"
    })
    .await;
    app.stop().await;
}
