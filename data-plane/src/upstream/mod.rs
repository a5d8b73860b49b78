//! The worker's side of the control plane.
//!
//! Owns no table. [`Upstream`] is the client: every request is signed with the worker's key, has a deadline, and reads a
//! bounded reply. [`membership`] joins, beats and takes sessions back after a start; [`reports`] tells what becomes of
//! each session. Nothing here is needed for sessions to go on: a control plane that is away for an hour disconnects
//! nobody, and what happened meanwhile waits in the outbox and in the reports.

pub mod membership;
pub mod reports;

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use chrono::Utc;
use futures_util::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use shared::{
    identity::{KeySet, SigningKey},
    ids::{Incarnation, WorkerId},
    problem::Problem,
    wire::{
        outbox::{OutboxAccepted, OutboxBatch},
        session::{Reports, ReportsAccepted},
        worker::{
            Heartbeat, HeartbeatReply, Join, Joined, ReAttach, ReAttached, SessionGeneration, Validate, Validated,
        },
    },
};
use tokio::{sync::Mutex, time::Instant};
use url::Url;

/// How long a request may take, reply included.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a join may take: the control plane calls the worker back before it answers.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);
/// How long a batch of events may take: it is stored before it is answered.
const EVENTS_DEADLINE: Duration = Duration::from_secs(30);
/// The largest reply: every session of a full worker, taken back.
const MAX_REPLY: usize = 32 << 20;
/// The most often that the control plane's keys are asked for because a token names an unknown one.
const KEYS_PAUSE: Duration = Duration::from_secs(10);

/// Why the control plane did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No answer.
    #[error("the control plane can't be reached")]
    Unreachable,
    /// A refusal.
    #[error("the control plane answered {status} {slug}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem's type, such as `worker-unknown`; empty if the answer isn't a problem document.
        slug: String,
    },
    /// An answer that isn't what the protocol says.
    #[error("the control plane's answer can't be read")]
    Malformed,
    /// The request could not be signed.
    #[error("the request could not be signed")]
    Unsigned,
}

impl UpstreamError {
    /// Whether it is a refusal with this problem type.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { slug, .. } if slug == wanted)
    }
}

/// The client of the control plane's internal listener.
pub struct Upstream {
    http: reqwest::Client,
    base: Url,
    worker_id: WorkerId,
    incarnation: Incarnation,
    key: SigningKey,
    keys: RwLock<KeySet>,
    keys_asked: Mutex<Option<Instant>>,
}

impl Upstream {
    /// A client that speaks for this run of this worker.
    #[must_use]
    pub fn new(
        http: reqwest::Client,
        base: Url,
        worker_id: WorkerId,
        incarnation: Incarnation,
        key: SigningKey,
    ) -> Self {
        Self { http, base, worker_id, incarnation, key, keys: RwLock::default(), keys_asked: Mutex::default() }
    }

    /// This run of the worker.
    #[must_use]
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// The keys that sign the control plane's requests.
    #[must_use]
    pub fn keys(&self) -> KeySet {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, keys: KeySet) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Asks for the control plane's keys, unless that was done a moment ago.
    ///
    /// # Errors
    /// [`UpstreamError`] if they can't be had.
    pub async fn refresh_keys(&self) -> Result<(), UpstreamError> {
        let mut asked = self.keys_asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < KEYS_PAUSE) {
            return Ok(());
        }
        *asked = Some(Instant::now());
        let keys = self.call(self.http.get(self.address("internal/v1/jwks")), DEADLINE).await?;
        self.learn(keys);
        Ok(())
    }

    /// Asks to be known.
    ///
    /// # Errors
    /// [`UpstreamError`]; see [`Joined`] for the refusals.
    pub async fn join(&self, join: &Join) -> Result<Joined, UpstreamError> {
        let joined: Joined = self.post("internal/v1/workers", join, JOIN_DEADLINE).await?;
        self.learn(joined.control_plane_keys.clone());
        Ok(joined)
    }

    /// Says that this run lives.
    ///
    /// # Errors
    /// [`UpstreamError`]; see [`HeartbeatReply`] for the refusals.
    pub async fn heartbeat(&self, beat: &Heartbeat) -> Result<(), UpstreamError> {
        let reply: HeartbeatReply = self.post(&self.own("heartbeat"), beat, DEADLINE).await?;
        self.learn(reply.control_plane_keys);
        Ok(())
    }

    /// Asks for every session placed here, each with a new generation.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn re_attach(&self) -> Result<ReAttached, UpstreamError> {
        let ask = ReAttach { incarnation: self.incarnation.clone() };
        self.post(&self.own("re-attach"), &ask, EVENTS_DEADLINE).await
    }

    /// Whether a session is still this worker's at this generation.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn validate(&self, session: SessionGeneration) -> Result<bool, UpstreamError> {
        let ask = Validate { incarnation: self.incarnation.clone(), sessions: vec![session.clone()] };
        let reply: Validated = self.post(&self.own("validate"), &ask, DEADLINE).await?;
        Ok(reply.current.contains(&session))
    }

    /// Tells what became of sessions.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn report(&self, reports: &Reports) -> Result<ReportsAccepted, UpstreamError> {
        self.post(&self.own("reports"), reports, DEADLINE).await
    }

    /// Ships outbox rows.
    ///
    /// # Errors
    /// [`UpstreamError`]; nothing may be deleted then.
    pub async fn ship(&self, batch: &OutboxBatch) -> Result<OutboxAccepted, UpstreamError> {
        self.post("internal/v1/events", batch, EVENTS_DEADLINE).await
    }

    fn own(&self, what: &str) -> String {
        format!("internal/v1/workers/{}/{what}", self.worker_id)
    }

    fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.base.as_str().trim_end_matches('/'))
    }

    async fn post<B: Serialize + Sync, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        deadline: Duration,
    ) -> Result<R, UpstreamError> {
        let token = self
            .key
            .token_for_control_plane(&self.worker_id, &self.incarnation, Utc::now())
            .map_err(|_| UpstreamError::Unsigned)?;
        self.call(self.http.post(self.address(path)).bearer_auth(token).json(body), deadline).await
    }

    async fn call<R: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        deadline: Duration,
    ) -> Result<R, UpstreamError> {
        let reply = request.timeout(deadline).send().await.map_err(|_| UpstreamError::Unreachable)?;
        let status = reply.status();
        let mut body = Vec::new();
        let mut parts = reply.bytes_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| UpstreamError::Unreachable)?;
            if body.len() + part.len() > MAX_REPLY {
                return Err(UpstreamError::Malformed);
            }
            body.extend_from_slice(&part);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| UpstreamError::Malformed);
        }
        // Only the problem's type is kept: the rest is for people, and may name what doesn't belong in our logs.
        let slug = serde_json::from_slice::<Problem>(&body)
            .map(|problem| problem.kind.rsplit('/').next().unwrap_or_default().to_owned())
            .unwrap_or_default();
        let plain = slug.len() <= 64 && slug.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        Err(UpstreamError::Refused { status: status.as_u16(), slug: if plain { slug } else { String::new() } })
    }
}
