//! Fences: who may write a session's state.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use shared::{
    ids::{Incarnation, SessionId, WorkerId},
    seal::DataKey,
};

use super::{FencedBackend, Lease, Result, Store};

/// The answer to a claim.
pub enum Claim {
    /// It's ours.
    Held(Fence),
    /// Another run holds it, and now knows that we want it. Ask again.
    Busy {
        /// When its lease ends by the store's clock, unless it renews.
        until: DateTime<Utc>,
    },
    /// A newer generation (or another run of this one) has been here. Never ask again with this generation.
    Stale {
        /// Its generation.
        current_generation: i64,
    },
}

/// The right to write a session's state, until a newer generation claims it.
#[derive(Clone)]
pub struct Fence {}

impl Fence {
    /// Which session.
    #[must_use]
    pub fn session_id(&self) -> &SessionId {
        todo!()
    }
    /// Which generation.
    #[must_use]
    pub fn generation(&self) -> i64 {
        todo!()
    }
    /// Which outbox sequence.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        todo!()
    }
    /// Lets go; the row keeps its generation. Idempotent. Poison (`Poison::Released`) the backend first or use `FencedBackend::release`.
    pub async fn release(&self) -> Result<()> {
        todo!()
    }
}

/// Who holds a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The generation of the last claim.
    pub generation: i64,
    /// Who made it.
    pub worker_id: WorkerId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Has let go.
    pub released: bool,
    /// When the holder's lease ends; `None` if it has none (any more).
    pub lease_until: Option<DateTime<Utc>>,
    /// A newer generation that waits.
    pub wanted_generation: Option<i64>,
}

impl Store {
    /// Claims a session for a generation, under a lease. Idempotent for the same (generation, run).
    /// `epoch` is the outbox sequence from `PutSession::epoch`.
    pub async fn claim(&self, _lease: &Lease, _session_id: &SessionId, _generation: i64, _epoch: i64) -> Result<Claim> {
        todo!()
    }
    /// Who holds, or held, a session. `None`: nobody ever did.
    pub async fn holder(&self, _session_id: &SessionId) -> Result<Option<Holder>> {
        todo!()
    }
    /// The session's handle: wacore's `Backend`, the outbox writer and the send journal.
    #[must_use]
    pub fn backend(&self, _fence: Fence, _data_key: DataKey, _lease: Lease) -> Arc<FencedBackend> {
        todo!()
    }
}
