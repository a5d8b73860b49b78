//! The public API, as a tenant's program calls it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// A caller with (or, before sign-up, without) credentials.
#[derive(Clone)]
pub struct Api {
    base: String,
    credentials: Option<String>,
    http: reqwest::Client,
}

impl Api {
    /// Nobody yet.
    pub fn new(base: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).no_proxy().build()?;
        Ok(Self { base: base.to_owned(), credentials: None, http })
    }

    /// The same API, called with a token or a key.
    pub fn with(&self, credentials: String) -> Self {
        Self { credentials: Some(credentials), ..self.clone() }
    }

    /// What it is called with.
    pub fn credentials(&self) -> Option<&str> {
        self.credentials.as_deref()
    }

    /// `GET /api/v1/{path}`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// `POST /api/v1/{path}`.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `POST /api/v1/{path}` under an idempotency key.
    pub async fn post_once(&self, path: &str, body: &Value, key: &str) -> Result<Value> {
        self.send(Method::POST, path, Some(body), Some(key)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        self.send(method, path, body.as_ref(), None).await
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>, key: Option<&str>) -> Result<Value> {
        let mut request = self.http.request(method.clone(), format!("{}/api/v1/{path}", self.base));
        if let Some(credentials) = &self.credentials {
            request = request.bearer_auth(credentials);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{method} {path} answered {status}: {text}");
        }
        if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    /// Asks again until `found` gives something.
    pub async fn until<T>(&self, path: &str, within: Duration, found: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            // A refusal may be only a matter of time (no QR code yet): the last one is told if time runs out.
            let answer = self.get(path).await;
            if let Some(value) = answer.as_ref().ok().and_then(&found) {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                bail!("{path} did not get there within {} s; last answer: {answer:?}", within.as_secs());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A text field of an answer.
pub fn text(answer: &Value, pointer: &str) -> Result<String> {
    answer
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("the answer has no text at {pointer}: {answer}"))
}
