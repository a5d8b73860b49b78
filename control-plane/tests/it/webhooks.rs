//! Webhook endpoints and deliveries, against a real receiver that checks signatures with the official library.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use control_plane::{
    auth::TenantScope,
    events::{self, EventType, NewEvent},
    jobs::JobKind,
};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::time::Timestamp;
use standardwebhooks::Webhook;

use crate::{
    harness::{Answer, Engine, Owner, TestApp},
    parts::eventually,
};

/// One request that reached the receiver.
#[derive(Debug, Clone)]
struct Received {
    headers: HeaderMap,
    body: Bytes,
}

impl Received {
    fn id(&self) -> String {
        self.headers["webhook-id"].to_str().unwrap().to_owned()
    }

    fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn is_signed_with(&self, secret: &str) -> bool {
        Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

/// An endpoint that keeps what it gets and answers as it is told.
#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<Received>>>,
    answers: Arc<Mutex<Vec<Said>>>,
    port: u16,
}

/// One answer of the receiver.
#[derive(Debug, Clone, Copy)]
enum Said {
    Status(u16),
    RetryAfter(u16, u32),
    Redirect(u16, &'static str),
    Never,
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        let router =
            Router::new().route("/hook", post(receive)).route("/elsewhere", post(receive)).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        this
    }

    /// What it says next, in this order; after that, 204.
    fn say(&self, answers: &[Said]) {
        *self.answers.lock().unwrap() = answers.to_vec();
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    fn got(&self) -> Vec<Received> {
        self.got.lock().unwrap().clone()
    }

    async fn until_got(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} requests at the receiver"), async || self.got.lock().unwrap().len() >= count)
            .await;
        self.got()
    }
}

async fn receive(State(this): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    this.got.lock().unwrap().push(Received { headers, body });
    let said = {
        let mut answers = this.answers.lock().unwrap();
        if answers.is_empty() { Said::Status(204) } else { answers.remove(0) }
    };
    match said {
        Said::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Said::RetryAfter(status, seconds) => {
            (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, seconds.to_string())]).into_response()
        }
        Said::Redirect(status, to) => {
            let to = to.replace("HERE", &format!("127.0.0.1:{}", this.port));
            (StatusCode::from_u16(status).unwrap(), [(header::LOCATION, to)]).into_response()
        }
        Said::Never => std::future::pending().await,
    }
}

/// A control plane that may call receivers, a tenant, and its endpoint.
struct Setup {
    app: TestApp,
    owner: Owner,
    receiver: Receiver,
    webhook: String,
    secret: String,
}

impl Setup {
    async fn new(engine: Engine, event_types: Value) -> Option<Self> {
        let receiver = Receiver::start().await;
        let app = start(engine, &[receiver.port]).await?;
        let owner = app.sign_up().await;
        let created = create(&app, &owner, &receiver.url(), event_types).await;
        assert_eq!(created.status, 201, "{created:?}");
        let (webhook, secret) = (text(&created.json()["id"]), text(&created.json()["secret"]));
        Some(Self { app, owner, receiver, webhook, secret })
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        call(&self.app, &self.owner, method, path, body).await
    }

    /// Records an event of the tenant, as a domain would.
    async fn record(&self, kind: EventType, data: Value) -> String {
        let app = self.app.app();
        let scope = TenantScope::of_row(self.owner.tenant_id.parse().unwrap());
        let event = NewEvent { kind, session_id: None, occurred_at: Timestamp::now(), data };
        let tx = app.db.write().await.unwrap();
        let recorded = events::record(&tx, app, &scope, vec![event]).await.unwrap();
        tx.commit().await.unwrap();
        app.bell.ring(JobKind::DeliverWebhook);
        recorded.events[0].to_string()
    }

    async fn deliveries(&self) -> Vec<Value> {
        let answer = self.call(Method::GET, &format!("/api/v1/webhooks/{}/deliveries", self.webhook), None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"].as_array().unwrap().clone()
    }

    /// The newest delivery, once it is as it should be.
    async fn delivery(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut found = Value::Null;
        eventually(what, async || {
            found = self.deliveries().await.first().cloned().unwrap_or_default();
            condition(&found)
        })
        .await;
        found
    }

    async fn webhook(&self) -> Value {
        self.call(Method::GET, &format!("/api/v1/webhooks/{}", self.webhook), None).await.json()
    }

    /// Lets every retry be due now.
    async fn skip_waits(&self) {
        self.app.sql("UPDATE jobs SET run_at = 1 WHERE state = 'ready'", []).await;
        self.app.app().bell.ring(JobKind::DeliverWebhook);
    }
}

async fn start(engine: Engine, ports: &[u16]) -> Option<TestApp> {
    TestApp::start_with(engine, |config| {
        config.outbound.allow_cidrs = vec!["127.0.0.1/32".parse().unwrap()];
        config.outbound.allow_ports = ports.to_vec();
    })
    .await
}

async fn call(app: &TestApp, owner: &Owner, method: Method, path: &str, body: Option<Value>) -> Answer {
    let mut request = app.request(method, path).bearer_auth(&owner.access_token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    Answer::of(request).await
}

async fn create(app: &TestApp, owner: &Owner, url: &str, event_types: Value) -> Answer {
    let body = json!({"url": url, "event_types": event_types});
    call(app, owner, Method::POST, "/api/v1/webhooks", Some(body)).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn millis(value: &Value) -> i64 {
    serde_json::from_value::<Timestamp>(value.clone()).unwrap().as_millis()
}

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
async fn a_dead_endpoint_slows_no_other(#[case] engine: Engine) {
    let Some(setup) = Setup::new(engine, json!([])).await else { return };
    setup.receiver.say(&[Said::Never; 200]);
    for _ in 0..60 {
        setup.record(EventType::MessageReceived, json!({})).await;
    }
    setup.receiver.until_got(8).await;
    let other = setup.app.sign_up().await;
    let path = "/elsewhere";
    let alive = Receiver::start().await;
    // The port isn't allowed, so it has to be the first receiver's: what it says there never comes.
    create(&setup.app, &other, &alive.url(), json!([])).await.assert_problem(422, "url-not-allowed");
    let url = format!("http://127.0.0.1:{}{path}", setup.receiver.port);
    let created = create(&setup.app, &other, &url, json!([])).await.json();
    setup.receiver.say(&[]);
    let before = std::time::Instant::now();
    let test = format!("/api/v1/webhooks/{}/test", text(&created["id"]));
    call(&setup.app, &other, Method::POST, &test, None).await;
    eventually("the other endpoint is served", async || {
        setup.receiver.got().iter().any(|received| received.event()["type"] == "webhook.test")
    })
    .await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    let held = setup.receiver.got().iter().filter(|received| received.event()["type"] != "webhook.test").count();
    assert!(held <= 8, "at most eight at once: {held}");
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
