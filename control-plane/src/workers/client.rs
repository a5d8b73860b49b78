//! Calls to workers: signed, with a deadline, and with a bound on what is read back. One that is made for a request carries the request's id.

use std::time::Duration;

use chrono::Utc;
use reqwest::{Method, RequestBuilder, StatusCode, redirect::Policy};
use serde::{Serialize, de::DeserializeOwned};
use shared::{
    identity::SigningKey,
    ids::{SessionId, WorkerId},
    problem::Problem,
    wire::{
        linking::{PairingCode, PairingCodeOrder, PasskeyOrder},
        send::{SendBatch, SendResults},
        session::{PutSession, SessionView},
        worker::WorkerIdentity,
    },
};

use super::FleetError;
use crate::request_context::RequestId;

/// For changing a session.
const PUT_DEADLINE: Duration = Duration::from_secs(5);
/// For looking at a session, and for proving an endpoint.
const VIEW_DEADLINE: Duration = Duration::from_secs(3);
/// For linking: the session may have just been started, and WhatsApp has to answer. Less than a request may take.
const LINK_DEADLINE: Duration = Duration::from_secs(26);
/// Added to the time that a send waits for acknowledgements.
const SEND_GRACE: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const MAX_REPLY: usize = 1024 * 1024;

/// Why a call to a worker did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkerCallError {
    /// Nothing was sent: nobody listens there.
    #[error("the worker can't be reached")]
    Unreachable,
    /// It may have been received and acted on; no answer came in time, or one that can't be read.
    #[error("the worker did not answer as agreed")]
    NoAnswer,
    /// The worker holds another generation of the session, or none (409).
    #[error("the worker holds another generation")]
    GenerationMismatch,
    /// The worker doesn't know the session (404).
    #[error("the worker doesn't hold the session")]
    NotHeld,
    /// It can't be linked so.
    #[error(transparent)]
    Linking(#[from] LinkingProblem),
    /// Any other refusal.
    #[error("the worker refused with status {0}")]
    Refused(u16),
}

/// Why a session was not linked, or not brought further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkingProblem {
    /// The session isn't being linked (409).
    #[error("the session isn't being linked")]
    NotPairing,
    /// WhatsApp asks for nothing of this kind (409).
    #[error("nothing of this kind is asked for")]
    NotAsked,
    /// WhatsApp refused to link (409).
    #[error("WhatsApp refused")]
    Refused,
    /// WhatsApp throttles (429).
    #[error("WhatsApp throttles")]
    Throttled,
}

/// See the module.
#[derive(Clone)]
pub struct WorkerClient {
    http: reqwest::Client,
    key: SigningKey,
}

/// A worker as the client needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, which the token is made out to.
    pub id: WorkerId,
    /// Its base URL.
    pub endpoint: String,
}

impl WorkerClient {
    /// A client that signs with `key`. It follows no redirects and uses no proxy: a session key goes where the worker
    /// said, or nowhere.
    ///
    /// # Errors
    /// [`FleetError::Client`].
    pub fn new(key: SigningKey) -> Result<Self, FleetError> {
        let http = reqwest::Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(2))
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(|_| FleetError::Client)?;
        Ok(Self { http, key })
    }

    /// Who answers at an endpoint. Not signed: nobody is known there yet.
    ///
    /// # Errors
    /// [`WorkerCallError`], after 3 s at the latest.
    pub async fn identity(&self, endpoint: &str) -> Result<WorkerIdentity, WorkerCallError> {
        let request = self.http.get(url(endpoint, "/v1/identity")).timeout(VIEW_DEADLINE);
        answer(request).await
    }

    /// Tells a worker what a session should be.
    ///
    /// # Errors
    /// [`WorkerCallError`], after 5 s at the latest.
    pub async fn put_session(&self, peer: &Peer, put: &PutSession) -> Result<(), WorkerCallError> {
        let path = format!("/v1/sessions/{}", put.session_id);
        body(self.request(Method::PUT, peer, &path, Some(put), PUT_DEADLINE)?).await.map(drop)
    }

    /// Looks at a session on its worker: its state, and the QR code to show now.
    ///
    /// # Errors
    /// [`WorkerCallError`], after 3 s at the latest.
    pub async fn view_session(&self, peer: &Peer, session: &SessionId) -> Result<SessionView, WorkerCallError> {
        self.call::<(), _>(Method::GET, peer, &format!("/v1/sessions/{session}"), None, VIEW_DEADLINE).await
    }

    /// Links a session by a code that is typed into the phone.
    ///
    /// # Errors
    /// [`WorkerCallError`], after 26 s at the latest.
    pub async fn pairing_code(
        &self,
        peer: &Peer,
        session: &SessionId,
        order: &PairingCodeOrder,
    ) -> Result<PairingCode, WorkerCallError> {
        let path = format!("/v1/sessions/{session}/pairing-code");
        self.call(Method::POST, peer, &path, Some(order), LINK_DEADLINE).await
    }

    /// Hands WhatsApp the answer of the account's owner.
    ///
    /// # Errors
    /// [`WorkerCallError`], after 26 s at the latest.
    pub async fn answer_passkey(
        &self,
        peer: &Peer,
        session: &SessionId,
        order: &PasskeyOrder,
    ) -> Result<(), WorkerCallError> {
        let path = format!("/v1/sessions/{session}/passkey");
        body(self.request(Method::POST, peer, &path, Some(order), LINK_DEADLINE)?).await.map(drop)
    }

    /// Hands a worker a batch of messages.
    ///
    /// # Errors
    /// [`WorkerCallError`]; after anything but `Unreachable`, `GenerationMismatch` and `NotHeld`, some may have been sent.
    pub async fn send(
        &self,
        peer: &Peer,
        session: &SessionId,
        batch: &SendBatch,
    ) -> Result<SendResults, WorkerCallError> {
        let deadline = Duration::from_millis(batch.wait_ms) + SEND_GRACE;
        self.call(Method::POST, peer, &format!("/v1/sessions/{session}/send"), Some(batch), deadline).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        peer: &Peer,
        path: &str,
        body: Option<&B>,
        deadline: Duration,
    ) -> Result<T, WorkerCallError> {
        answer(self.request(method, peer, path, body, deadline)?).await
    }

    fn request<B: Serialize>(
        &self,
        method: Method,
        peer: &Peer,
        path: &str,
        body: Option<&B>,
        deadline: Duration,
    ) -> Result<RequestBuilder, WorkerCallError> {
        let token = self.key.token_for_worker(&peer.id, Utc::now()).map_err(|_| WorkerCallError::Unreachable)?;
        let mut request = self.http.request(method, url(&peer.endpoint, path)).bearer_auth(token).timeout(deadline);
        if let Some(id) = RequestId::current() {
            let (name, value) = id.header();
            request = request.header(name, value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request)
    }
}

fn url(endpoint: &str, path: &str) -> String {
    format!("{}{path}", endpoint.trim_end_matches('/'))
}

async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, WorkerCallError> {
    serde_json::from_slice(&body(request).await?).map_err(|_| WorkerCallError::NoAnswer)
}

/// The body of a successful answer.
async fn body(request: RequestBuilder) -> Result<Vec<u8>, WorkerCallError> {
    let mut response = request
        .send()
        .await
        .map_err(|error| if error.is_connect() { WorkerCallError::Unreachable } else { WorkerCallError::NoAnswer })?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| WorkerCallError::NoAnswer)? {
        if body.len() + chunk.len() > MAX_REPLY {
            return Err(WorkerCallError::NoAnswer);
        }
        body.extend_from_slice(&chunk);
    }
    if status.is_success() {
        return Ok(body);
    }
    Err(match (status, slug(&body).as_deref()) {
        (StatusCode::CONFLICT, Some("generation-mismatch")) => WorkerCallError::GenerationMismatch,
        (StatusCode::CONFLICT, Some("not-pairing")) => LinkingProblem::NotPairing.into(),
        (StatusCode::CONFLICT, Some("not-asked")) => LinkingProblem::NotAsked.into(),
        (StatusCode::CONFLICT, Some("link-refused")) => LinkingProblem::Refused.into(),
        (StatusCode::TOO_MANY_REQUESTS, Some("link-throttled")) => LinkingProblem::Throttled.into(),
        (StatusCode::NOT_FOUND, _) => WorkerCallError::NotHeld,
        (other, _) => WorkerCallError::Refused(other.as_u16()),
    })
}

fn slug(body: &[u8]) -> Option<String> {
    let problem: Problem = serde_json::from_slice(body).ok()?;
    problem.kind.rsplit('/').next().map(ToOwned::to_owned)
}
