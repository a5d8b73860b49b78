//! A gateway as its user sees it. Ours and the peer's have the same routes.

use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use standalone::tour::network::Network;
use tokio::time::Instant;

/// How long a session may take until it is linked and connected.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many sessions are linked at a time.
const AT_ONCE: usize = 16;

/// One gateway.
#[derive(Clone)]
pub struct Gateway {
    pub name: &'static str,
    base: String,
    key: Option<String>,
    http: reqwest::Client,
    /// The process that holds the WhatsApp connections.
    pub worker: u32,
}

/// A linked session.
#[derive(Clone)]
pub struct Session {
    pub id: String,
    pub phone: String,
}

impl Gateway {
    pub fn new(name: &'static str, base: &str, key: Option<String>, worker: u32) -> anyhow::Result<Self> {
        // Nagle would add 40 ms to what is measured.
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).timeout(PATIENCE).build()?;
        Ok(Self { name, base: format!("{base}/api/v1"), key, http, worker })
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.text().await?;
        anyhow::ensure!(status.is_success(), "{}: {status}: {body}", self.name);
        Ok(serde_json::from_str(&body)?)
    }

    async fn until<T>(&self, path: &str, found: impl Fn(&Value) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.call(self.http.get(format!("{}/{path}", self.base))).await;
            if let Some(found) = answer.as_ref().ok().and_then(&found) {
                return Ok(found);
            }
            anyhow::ensure!(Instant::now() < deadline, "{}: {path} did not get there: {answer:?}", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Links sessions to new phones, `count` of them, numbered from `first`.
    pub async fn link(
        &self,
        network: &Network,
        prefix: &str,
        first: usize,
        count: usize,
    ) -> anyhow::Result<Vec<Session>> {
        stream::iter(first..first + count)
            .map(|number| self.link_one(network, format!("{prefix}{number:05}")))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn link_one(&self, network: &Network, phone: String) -> anyhow::Result<Session> {
        network.new_phone(&phone, "Bench", None).await?;
        let made = self.call(self.http.post(format!("{}/sessions", self.base)).json(&json!({ "name": phone }))).await?;
        let id = made["id"].as_str().context("a session without an id")?.to_owned();
        let qr = self.until(&format!("sessions/{id}/qr"), |answer| answer["qr"].as_str().map(str::to_owned)).await?;
        network.scan(&phone, &qr).await?;
        let connected = |answer: &Value| (answer["status"] == "connected").then_some(());
        self.until(&format!("sessions/{id}/status"), connected).await?;
        Ok(Session { id, phone })
    }

    /// Sends a text and waits until WhatsApp has acknowledged it.
    pub async fn send(&self, session: &Session, to: &str, body: &str) -> anyhow::Result<()> {
        let message =
            json!({ "session_id": session.id, "to": format!("+{to}"), "type": "text", "text": { "body": body } });
        let request = self.http.post(format!("{}/messages/send", self.base)).header("prefer", "wait=20").json(&message);
        let answer = self.call(request).await?;
        let status = answer["status"].as_str().unwrap_or_default();
        anyhow::ensure!(matches!(status, "sent" | "delivered" | "read"), "{}: {answer}", self.name);
        Ok(())
    }
}
