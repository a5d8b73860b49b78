//! Keys of the sandbox and endpoints: a key that lies in a repository is told nothing of real conversations.

use super::*;

async fn session(setup: &Setup, network: &str) -> String {
    let body = json!({"name": network, "network": network, "start": false});
    let made = setup.call(Method::POST, "/api/v1/sessions", Some(body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    text(&made.json()["id"])
}

/// A message that came in at a session.
async fn came_in(setup: &Setup, session: &str) -> String {
    let app = setup.app.app();
    let scope = TenantScope::of_row(setup.owner.tenant_id.parse().unwrap());
    let (kind, now) = (EventType::MessageReceived, Timestamp::now());
    let event = NewEvent { kind, session_id: Some(session.parse().unwrap()), occurred_at: now, data: json!({}) };
    let tx = app.db.write().await.unwrap();
    let recorded = events::record(&tx, app, &scope, vec![event]).await.unwrap();
    tx.commit().await.unwrap();
    app.bell.ring(JobKind::DeliverWebhook);
    let fact = "INSERT INTO usage_facts (id, tenant_id, session_id, meter, quantity, occurred_at, recorded_at) \
                VALUES ($1, $2, $3, 'messages_received', 1, $4, $4)";
    let values =
        [recorded.events[0].as_str().into(), scope.id().as_str().into(), session.into(), now.as_millis().into()];
    setup.app.sql(fact, values).await;
    recorded.events[0].to_string()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_key_of_the_sandbox_neither_finds_an_endpoint_of_everything_nor_makes_one(#[case] engine: Engine) {
    let tried = Receiver::start().await;
    let receiver = Receiver::start().await;
    let Some(app) = start(engine, &[receiver.port, tried.port]).await else { return };
    let owner = app.sign_up().await;
    let created = create(&app, &owner, &receiver.url(), json!(["message.received"])).await.json();
    assert_eq!(created["network"], Value::Null);
    let (webhook, secret) = (text(&created["id"]), text(&created["secret"]));
    let setup = Setup { app, owner, receiver, webhook, secret };
    let (real, sandbox) = (session(&setup, "whatsapp").await, session(&setup, "sandbox").await);
    let key = setup.app.api_key(&setup.owner, "sandbox", &["webhooks", "usage:read"]).await;
    let by_key = async |method: Method, path: &str, body: Option<Value>| {
        let request = setup.app.request(method, &format!("/api/v1/{path}")).bearer_auth(&key);
        Answer::of(body.into_iter().fold(request, |request, body| request.json(&body))).await
    };

    // What is told of everything isn't there for it, and stays as it is.
    let first = came_in(&setup, &real).await;
    setup.receiver.until_got(1).await;
    let delivery = setup.delivery("it was delivered", |delivery| delivery["status"] == "succeeded").await;
    let endpoint = format!("webhooks/{}", setup.webhook);
    let elsewhere = json!({"url": tried.url()});
    for (method, path, body) in [
        (Method::GET, endpoint.clone(), None),
        (Method::PATCH, endpoint.clone(), Some(elsewhere.clone())),
        (Method::POST, format!("{endpoint}/rotate-secret"), None),
        (Method::POST, format!("{endpoint}/test"), None),
        (Method::GET, format!("{endpoint}/deliveries"), None),
        (Method::POST, format!("deliveries/{}/replay", text(&delivery["id"])), None),
        (Method::DELETE, endpoint, None),
    ] {
        by_key(method, &path, body).await.assert_problem(404, "not-found");
    }
    assert_eq!(by_key(Method::GET, "webhooks", None).await.json()["data"], json!([]));

    // Its own is told of the sandbox.
    let own = by_key(Method::POST, "webhooks", Some(elsewhere.clone())).await;
    assert_eq!((own.status.as_u16(), &own.json()["network"]), (201, &json!("sandbox")), "{own:?}");
    by_key(Method::POST, "webhooks", Some(elsewhere)).await.assert_problem(409, "webhook-exists");
    let (second, third) = (came_in(&setup, &real).await, came_in(&setup, &sandbox).await);
    let ids = |received: Vec<receiver::Received>| {
        let mut ids: Vec<_> = received.iter().map(receiver::Received::id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(setup.receiver.until_got(3).await), [first, second, third.clone()]);
    assert_eq!(ids(tried.until_got(1).await), [third]);
    assert_eq!(setup.app.count("SELECT COUNT(*) FROM deliveries").await, 4);
    let listed = setup.call(Method::GET, "/api/v1/webhooks", None).await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2, "people see both");
    let usage = by_key(Method::GET, "usage", None).await.json();
    assert_eq!(usage["totals"], json!([{"meter": "messages_received", "quantity": 1}]));
    let usage = setup.call(Method::GET, "/api/v1/usage", None).await.json();
    assert_eq!(usage["totals"], json!([{"meter": "messages_received", "quantity": 3}]));
    setup.app.stop().await;
}
