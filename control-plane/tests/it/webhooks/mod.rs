//! Webhook endpoints and deliveries, against a real receiver that checks signatures with the official library.

mod deliveries;
mod endpoints;
mod receiver;
mod redriven;
mod retries;
mod sandbox;

use control_plane::{
    auth::TenantScope,
    events::{self, EventType, NewEvent},
    jobs::JobKind,
};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::time::Timestamp;

use self::receiver::Receiver;
use crate::{
    harness::{Answer, Engine, Owner, TestApp},
    parts::eventually,
};

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
