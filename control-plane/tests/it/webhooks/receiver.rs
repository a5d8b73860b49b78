//! An endpoint that keeps what it gets and answers as it is told.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::Value;
use standardwebhooks::Webhook;

use crate::parts::eventually;

/// One request that reached the receiver.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Received {
    pub(super) fn id(&self) -> String {
        self.headers["webhook-id"].to_str().unwrap().to_owned()
    }

    pub(super) fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn is_signed_with(&self, secret: &str) -> bool {
        Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

/// An endpoint that keeps what it gets and answers as it is told.
#[derive(Clone, Default)]
pub(super) struct Receiver {
    pub(super) got: Arc<Mutex<Vec<Received>>>,
    pub(super) answers: Arc<Mutex<Vec<Said>>>,
    pub(super) port: u16,
}

/// One answer of the receiver.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said {
    Status(u16),
    RetryAfter(u16, u32),
    Redirect(u16, &'static str),
    Never,
}

impl Receiver {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        let router =
            Router::new().route("/hook", post(receive)).route("/elsewhere", post(receive)).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        this
    }

    /// What it says next, in this order; after that, 204.
    pub(super) fn say(&self, answers: &[Said]) {
        *self.answers.lock().unwrap() = answers.to_vec();
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    pub(super) fn got(&self) -> Vec<Received> {
        self.got.lock().unwrap().clone()
    }

    pub(super) async fn until_got(&self, count: usize) -> Vec<Received> {
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
