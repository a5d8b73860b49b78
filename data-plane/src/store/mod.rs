//! The data plane's store.

pub mod error;
pub mod fence;
pub mod journal;
pub mod lease;
pub mod outbox;
pub mod session;

use std::time::Duration;

use shared::ids::StoreId;

pub use self::{
    error::{LeaseError, Result, StoreError},
    fence::{Claim, Fence, Holder},
    journal::{JournalAck, JournalEntry, JournalItem, JournalOpened, JournalState},
    lease::{Lease, Wanted},
    outbox::{OUTBOX_MAX_ROWS, OutboxSlice},
    session::{FencedBackend, Poison},
};

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// How long a lease lasts after a renewal.
    pub lease_ttl: Duration,
    /// The most rows in one session's outbox.
    pub outbox_max_rows: i64,
    /// The most database connections of this handle.
    pub max_connections: u32,
}

/// A handle on the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {}

impl Store {
    /// Connects, migrates, reads or makes the store's id.
    pub async fn open(_url: &str) -> Result<Self> {
        todo!()
    }
    /// As open, with settings.
    pub async fn open_with(_url: &str, _options: StoreOptions) -> Result<Self> {
        todo!()
    }
    /// The store's id.
    #[must_use]
    pub fn id(&self) -> &StoreId {
        todo!()
    }
    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        todo!()
    }
    /// Closes the connections.
    pub async fn close(&self) {
        todo!()
    }
}
