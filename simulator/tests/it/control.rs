//! The control API over HTTP.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::client::{World, until};

struct Api {
    base: String,
    http: reqwest::Client,
}

impl Api {
    async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}/control/v1/{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("request");
        let status = response.status();
        let text = response.text().await.expect("body");
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("json") };
        (status, body)
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(reqwest::Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(reqwest::Method::POST, path, Some(body)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_api_does_what_the_rust_api_does() {
    let world = World::new().await;
    let api = Api { base: world.simulator.control_url(), http: reqwest::Client::new() };

    let (status, own) = api.post("phones", json!({ "phone": "15550001234", "push_name": "Own" })).await;
    assert_eq!((status, own["jid"].as_str()), (StatusCode::CREATED, Some("15550001234@s.whatsapp.net")));
    let (status, other) = api.call(reqwest::Method::POST, "phones", None).await;
    assert_eq!(status, StatusCode::CREATED);
    let other = other["phone"].as_str().expect("phone").to_owned();

    let device = world.device();
    let running = device.start().await;
    let (status, scanned) = api.post("phones/15550001234/scan", json!({ "qr": running.qr().await })).await;
    assert_eq!((status, scanned["jid"].as_str()), (StatusCode::OK, Some("15550001234:1@s.whatsapp.net")));
    running.connected().await;

    let (status, written) = api
        .post(&format!("phones/{other}/messages"), json!({ "to": "15550001234", "text": "by HTTP", "id": "HTTP-1" }))
        .await;
    assert_eq!((status, &written["ids"]), (StatusCode::OK, &json!(["HTTP-1"])));
    assert_eq!(running.text("HTTP-1").await, "by HTTP");
    world.drained("15550001234:1@s.whatsapp.net").await;
    running.send(&other, "BACK-1", "by wire").await;
    world.opened(&other, "BACK-1").await;
    let messages = api.get(&format!("phones/{other}/messages?from=15550001234&limit=10")).await;
    assert_eq!(
        (messages[0]["id"].as_str(), messages[0]["text"].as_str(), messages[0]["read"].as_bool()),
        (Some("BACK-1"), Some("by wire"), Some(false))
    );
    let (status, _) =
        api.post(&format!("phones/{other}/read"), json!({ "from": "15550001234", "ids": ["BACK-1"] })).await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    assert_eq!(api.get("accepted/summary").await["total"], 1);
    until("the ack to be on record", async || {
        (api.get("accepted?id=BACK-1").await[0]["ack_written"] == true).then_some(())
    })
    .await;
    assert_eq!(api.get("deliveries/unacknowledged?jid=15550001234:1@s.whatsapp.net").await["count"], 0);
    assert_eq!(api.get("connections").await[0]["state"], "active");
    assert_eq!(api.get("phones").await.as_array().map(Vec::len), Some(2));
    assert_eq!(api.get("health").await["status"], "ok");
    assert_eq!(api.get("root").await["public_key"].as_str().map(str::len), Some(44));

    let (status, _) = api.post("devices/15550001234:1@s.whatsapp.net/fault", json!({ "kind": "close" })).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    world.ended("fault: close").await;
    assert_eq!(api.get("connections/ended?limit=1").await[0]["reason"], "fault: close");
    let (status, _) =
        api.call(reqwest::Method::PATCH, &format!("phones/{other}"), Some(json!({ "auto_read": true }))).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = api.call(reqwest::Method::DELETE, "phones/15550001234/companions/1", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_orders_are_refused_in_json() {
    let world = World::new().await;
    let api = Api { base: world.simulator.control_url(), http: reqwest::Client::new() };
    let phone = world.phone().await;
    for (path, body, expected) in [
        ("phones".to_owned(), json!({ "phone": "+1 555" }), StatusCode::BAD_REQUEST),
        ("phones".to_owned(), json!({ "number": "15550001234" }), StatusCode::UNPROCESSABLE_ENTITY),
        ("phones/19990001111/messages".to_owned(), json!({ "to": phone, "text": "x" }), StatusCode::NOT_FOUND),
        (format!("phones/{phone}/messages"), json!({ "to": phone, "text": "x", "count": 0 }), StatusCode::BAD_REQUEST),
        (format!("phones/{phone}/scan"), json!({ "qr": "nonsense" }), StatusCode::BAD_REQUEST),
        (format!("phones/{phone}/read"), json!({ "from": phone, "ids": [] }), StatusCode::BAD_REQUEST),
        (format!("devices/{phone}:7@s.whatsapp.net/fault"), json!({ "kind": "eof" }), StatusCode::NOT_FOUND),
        (
            format!("devices/{phone}:7@s.whatsapp.net/fault"),
            json!({ "kind": "explode" }),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
    ] {
        let (status, answer) = api.post(&path, body).await;
        assert_eq!(status, expected, "{path}");
        assert!(answer["error"].is_string(), "{path}");
    }
    world.simulator.shutdown().await;
}
