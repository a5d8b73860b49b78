//! The data plane's store: what the workers of one region share, and what a session survives a crash by.
//!
//! It lives in PostgreSQL, or in one SQLite file for the workers of one machine; nothing in it is ever the control
//! plane's. Everything about a person is sealed with the session's own data key, which the control plane hands to the
//! session's worker and which is never stored here.
//!
//! | table | holds | written by |
//! |---|---|---|
//! | `store_meta` | the store's id | the first to open it |
//! | `worker_lease` | which run of a worker is alive, until when ([`lease`]) | that run |
//! | `fence` | which generation of a session may write, and its outbox counter ([`fence`]) | a claim; the holder |
//! | `wa_state` | the WhatsApp library's state ([`session`]) | the holder, fenced |
//! | `journal` | tries to send, and what became of them ([`journal`]) | the holder, fenced |
//! | `outbox` | what WhatsApp said, until the control plane has it ([`outbox`]) | the holder, fenced; shippers delete |
//! | `ship_lease` | who ships the rows of a session that nobody holds ([`outbox`]) | any live worker |
//!
//! Invariants
//! - **One writer.** Of all generations of a session one at most can commit, and a write that was begun under an older
//!   one is committed before the newer is granted or never ([`transaction`]).
//! - **Durable when it returns.** SQLite runs with WAL and `synchronous=FULL`, PostgreSQL with `synchronous_commit=on`.
//! - **Failed is over.** After a failed write a session's handle refuses everything ([`session`]).
//! - **Sealed.** No JID, phone number, key or text stands in the clear, not as a key either ([`state`]).
//! - **Bounded.** Every call has a deadline, every batch and outbox a limit. A session's handle holds keys, no state.
//!
//! A handle ([`Store`]) is cheap to clone. Several, in one process or many, share a store.

mod app_sync;
mod clock;
mod database;
mod device;
pub mod error;
pub mod fence;
pub mod journal;
pub mod lease;
pub mod outbox;
mod protocol;
pub mod session;
mod signal;
mod state;
#[cfg(test)]
#[path = "../../tests/store/test_database.rs"]
mod test_database;
mod transaction;
mod value;

use std::{sync::Arc, time::Duration};

use shared::ids::StoreId;

use self::database::{Database, id_column};
pub use self::{
    error::{LeaseError, Result, StoreError},
    fence::{Claim, Fence, Holder},
    journal::{JournalAck, JournalEntry, JournalItem, JournalOpened, JournalState, JournalWord},
    lease::{Lease, Wanted},
    outbox::{OUTBOX_MAX_ROWS, OutboxSlice},
    session::{FencedBackend, Poison},
};

/// Settings of a store handle.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// How long a lease lasts after a renewal. Renew at a quarter of it.
    pub lease_ttl: Duration,
    /// The most rows in one session's outbox.
    pub outbox_max_rows: i64,
    /// The most connections of this handle: PostgreSQL's, or SQLite's for reading beside its one writer.
    pub max_connections: u32,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { lease_ttl: Duration::from_secs(20), outbox_max_rows: OUTBOX_MAX_ROWS, max_connections: 16 }
    }
}

/// A handle on the store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    id: StoreId,
    database: Database,
    options: StoreOptions,
}

impl Store {
    /// Connects (`postgres://…`, or `sqlite://path?mode=rwc` for a file), brings the schema up to date, and reads the
    /// store's id, or makes it.
    ///
    /// # Errors
    /// [`StoreError`]; none of them names the URL, which may hold a password.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(url, StoreOptions::default()).await
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(url: &str, options: StoreOptions) -> Result<Self> {
        let database = Database::open(url, &options).await?;
        database
            .execute(
                "make the store's id",
                "INSERT INTO store_meta (name, value) VALUES ('store_id', $1) ON CONFLICT (name) DO NOTHING",
                [StoreId::new().as_str().into()],
            )
            .await?;
        let row =
            database.one("read the store's id", "SELECT value FROM store_meta WHERE name = 'store_id'", []).await?;
        let id = id_column(&row.ok_or(StoreError::Encoding("store id"))?, "value")?;
        Ok(Self { inner: Arc::new(Inner { id, database, options }) })
    }

    /// The store's id: fixed when it was made, the same for all its workers.
    #[must_use]
    pub fn id(&self) -> &StoreId {
        &self.inner.id
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError`] if it doesn't within 10 s.
    pub async fn ping(&self) -> Result<()> {
        self.database().one("ping", "SELECT 1 AS one", []).await.map(drop)
    }

    /// Closes the connections of this handle and of its clones.
    ///
    /// # Errors
    /// As the database; there is nothing left to do about it.
    pub async fn close(&self) -> Result<()> {
        self.database().close().await
    }

    pub(in crate::store) fn database(&self) -> &Database {
        &self.inner.database
    }

    pub(in crate::store) fn options(&self) -> &StoreOptions {
        &self.inner.options
    }
}
