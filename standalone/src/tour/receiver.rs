//! A tenant's webhook endpoint, as an integrator would write it: it verifies each delivery with the official library
//! before it believes a word.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

/// A running receiver. It ends with this value.
pub struct Receiver {
    address: SocketAddr,
    inbox: Arc<Inbox>,
    server: JoinHandle<()>,
}

struct Inbox {
    secret: watch::Sender<Option<String>>,
    events: watch::Sender<Vec<Value>>,
}

impl Receiver {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// If there is none.
    pub async fn start() -> Result<Self> {
        let inbox = Arc::new(Inbox { secret: watch::Sender::new(None), events: watch::Sender::new(Vec::new()) });
        // An address of its own on the loopback, so that allowing webhooks to it allows no other local service. Systems other
        // than Linux have only the first.
        let listener = match TcpListener::bind("127.0.0.2:0").await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("127.0.0.1:0").await?,
        };
        let address = listener.local_addr()?;
        let router = Router::new().route("/webhook", post(receive)).with_state(inbox.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the webhook receiver ended");
            }
        });
        Ok(Self { address, inbox, server })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to register as webhook endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/webhook", self.address)
    }

    /// The secret that registering it gave.
    pub fn expect_secret(&self, secret: String) {
        self.inbox.secret.send_replace(Some(secret));
    }

    /// Waits for a verified event that `wanted` accepts.
    pub async fn event(&self, within: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut events = self.inbox.events.subscribe();
        let events = timeout(within, events.wait_for(|events| events.iter().any(&wanted)))
            .await
            .with_context(|| format!("no such webhook within {} s", within.as_secs()))??;
        events.iter().find(|event| wanted(event)).cloned().context("the event is gone")
    }
}

impl Receiver {
    /// Every verified event so far, repeats included.
    pub fn events(&self) -> Vec<Value> {
        self.inbox.events.borrow().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(State(inbox): State<Arc<Inbox>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Some(secret) = inbox.secret.borrow().clone() else { return StatusCode::SERVICE_UNAVAILABLE };
    let verified = Webhook::new(&secret).is_ok_and(|webhook| webhook.verify(&body, &headers).is_ok());
    match serde_json::from_slice::<Value>(&body) {
        Ok(event) if verified => {
            inbox.events.send_modify(|events| events.push(event));
            StatusCode::NO_CONTENT
        }
        _ => StatusCode::BAD_REQUEST,
    }
}
