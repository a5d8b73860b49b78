//! Worker leases.

use std::time::Duration;

use shared::ids::{Incarnation, SessionId, WorkerId};

use super::{LeaseError, Store};

/// A session of ours that another worker waits for: let go of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub session_id: SessionId,
    /// The generation that waits.
    pub generation: i64,
}

/// A worker's lease. Cheap to clone; all clones share the deadline.
#[derive(Clone)]
pub struct Lease {}

impl Lease {
    /// Takes the lease of `worker_id` for this run.
    pub async fn acquire(_store: &Store, _worker_id: WorkerId, _incarnation: Incarnation) -> Result<Self, LeaseError> {
        todo!()
    }
    /// Renews; call every 5 s. Answers which of this run's sessions other workers want.
    pub async fn renew(&self) -> Result<Vec<Wanted>, LeaseError> {
        todo!()
    }
    /// Lets go of it: every session still held by this run can be claimed at once.
    pub async fn release(&self) -> Result<(), LeaseError> {
        todo!()
    }
    /// How long it lasts from now on the boot-time clock; zero once ended.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        todo!()
    }
    /// Resolves when the deadline has passed (and was not moved by a renewal), or the lease was lost or released.
    pub async fn ended(&self) {
        todo!()
    }
    /// Whether it still lasts. Cheap: two atomic reads and a clock reading.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        todo!()
    }
    /// Whose.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        todo!()
    }
    /// Which run's.
    #[must_use]
    pub fn incarnation(&self) -> &Incarnation {
        todo!()
    }
}
