//! A worker's life as the control plane sees it: join, beat, take back its sessions, check what is still its own.
//!
//! Listener: the control plane's internal one, `/internal/v1`. All but the join itself are authenticated by a
//! worker token ([`crate::identity`]); the first join of an id adds the join token.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    identity::{KeySet, PublicKey},
    ids::{Incarnation, SessionId, StoreId, WorkerId},
    wire::session::{Network, PutSession},
};

/// `POST /internal/v1/workers`: a run of a worker asks to be known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    /// The worker's name.
    pub worker_id: WorkerId,
    /// This run.
    pub incarnation: Incarnation,
    /// The store that this worker works on.
    pub store_id: StoreId,
    /// Which network this build can speak to.
    pub network: Network,
    /// Where the control plane reaches this worker's API, such as `http://10.0.0.7:7300`.
    pub endpoint: String,
    /// How many sessions it takes (1 to 20,000).
    pub capacity: u32,
    /// Availability zone, for spreading.
    #[serde(default)]
    pub zone: Option<String>,
    /// Pool, for plans that own workers.
    #[serde(default)]
    pub pool: Option<String>,
    /// [`crate::wire::PROTOCOL_VERSION`] of this build.
    pub protocol_version: u32,
    /// The worker's key; bound to (`worker_id`, `store_id`) at the first join. The request is signed with it.
    pub public_key: PublicKey,
    /// Needed only until the key is bound.
    #[serde(default)]
    pub join_token: Option<String>,
}

/// The answer to [`Join`]. 401 `join-refused`, 409 `worker-id-taken`, 503 `worker-unreachable` say why not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    /// The name under which the control plane knows it.
    pub worker_id: WorkerId,
    /// The keys that sign the control plane's requests.
    pub control_plane_keys: KeySet,
    /// How often to beat, in seconds.
    pub heartbeat_seconds: u64,
}

/// `GET /v1/identity` on the worker, unauthenticated: how the control plane proves that `endpoint` leads to the
/// worker that joins, before it believes the join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerIdentity {
    /// The worker's name.
    pub worker_id: WorkerId,
    /// This run.
    pub incarnation: Incarnation,
    /// [`crate::wire::PROTOCOL_VERSION`] of this build.
    pub protocol_version: u32,
}

/// `POST /internal/v1/workers/{id}/heartbeat`.
///
/// A beat also vouches for the sessions whose newest report says `connected`: a worker reports a session as
/// `reconnecting` as soon as no frame has come for 50 s, so until it does, each of them had one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// This run.
    pub incarnation: Incarnation,
    /// Sessions it holds.
    pub sessions: u32,
    /// Of them, connected to WhatsApp.
    pub connected: u32,
    /// Rows in its store's outbox that wait to be shipped.
    pub outbox_rows: u64,
    /// When it last renewed its lease in the store. A dead worker's billing interval ends at its last renewal.
    pub lease_renewed_at: DateTime<Utc>,
}

/// The answer to [`Heartbeat`]. 410 `worker-unknown` or 409 `worker-superseded` mean: join again, or stop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// The keys that sign the control plane's requests now.
    pub control_plane_keys: KeySet,
}

/// `POST /internal/v1/workers/{id}/re-attach`, after a start: what is still mine?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReAttach {
    /// This run.
    pub incarnation: Incarnation,
}

/// Every session placed on this worker, each with a new generation. Asking again gives higher ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReAttached {
    /// What to run.
    pub sessions: Vec<PutSession>,
}

/// `POST /internal/v1/workers/{id}/validate`: is this generation still current?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Validate {
    /// This run.
    pub incarnation: Incarnation,
    /// At most 1,000.
    pub sessions: Vec<SessionGeneration>,
}

/// One session at one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGeneration {
    /// The session.
    pub session_id: SessionId,
    /// Rises by one with each placement.
    pub generation: i64,
}

/// The answer to [`Validate`]: those that are current.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Validated {
    /// A subset of what was asked.
    pub current: Vec<SessionGeneration>,
}
