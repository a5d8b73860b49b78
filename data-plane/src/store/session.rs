//! One session's handle on the store.
//!
//! It is the WhatsApp library's `Backend` (in [`signal`](super::signal), [`app_sync`](super::app_sync),
//! [`protocol`](super::protocol), [`device`](super::device)), the writer of its outbox and its send journal. It keeps no
//! state in memory but keys: thousands of them share the store's connections.
//!
//! **Poison.** The library keeps Signal state in memory and writes it behind; some write failures it only logs. A handle
//! whose write failed could therefore let memory and store drift apart, and a message be acknowledged without a row. So
//! the first failed write poisons the handle: it refuses every later read and write, its owner aborts the client without
//! a flush, and builds a new one from the store. What a caller gives up on before the commit is rolled back and poisons
//! nothing; a commit that was begun and not seen to its end does.

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};

use sea_orm::{QueryResult, Value};
use shared::{ids::SessionId, seal::DataKey};
use tokio::sync::watch;

use super::{
    Fence, Lease, Result, StoreError,
    database::{Database, column, placeholders, within},
    state::{KeyHash, Kind, StateKeys},
    transaction::{Begun, CHUNK, FenceLock, Locked, bytes},
};

/// Why a handle refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Poison {
    /// A newer generation holds the session.
    #[error("fenced off by a newer generation")]
    Fenced,
    /// The worker's lease ended.
    #[error("the worker's lease ended")]
    LeaseEnded,
    /// A write failed, so what memory believes and what is stored may differ.
    #[error("a write failed")]
    WriteFailed,
    /// The session's owner let go of it.
    #[error("released")]
    Released,
    /// The session's owner said so, because its durability hook failed.
    #[error("the durability hook failed")]
    HookFailed,
}

/// The session's handle: wacore's `Backend`, the outbox writer and the send journal.
pub struct FencedBackend {
    fence: Fence,
    lease: Lease,
    keys: StateKeys,
    poison: watch::Sender<Option<Poison>>,
    /// The most rows that the outbox can have: what it had when it was last measured, and all that was added since. Only this
    /// handle adds. `i64::MAX` until it was measured.
    outbox_rows: AtomicI64,
}

impl FencedBackend {
    pub(super) fn new(fence: Fence, data_key: DataKey, lease: Lease) -> Self {
        let keys = StateKeys::new(fence.session_id().clone(), data_key);
        Self { fence, lease, keys, poison: watch::Sender::new(None), outbox_rows: AtomicI64::new(i64::MAX) }
    }

    /// The fence it writes under.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The lease it writes under.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whose.
    #[must_use]
    pub fn session_id(&self) -> &SessionId {
        self.fence.session_id()
    }

    /// Whether it refuses.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poison.borrow().is_some()
    }

    /// Tells when, and why, it starts to refuse. `None` while it is well.
    #[must_use]
    pub fn poisoned(&self) -> watch::Receiver<Option<Poison>> {
        self.poison.subscribe()
    }

    /// Makes it refuse from now on. The first reason stays.
    pub fn poison(&self, why: Poison) {
        self.poison.send_if_modified(|poison| {
            let first = poison.is_none();
            if first {
                *poison = Some(why);
            }
            first
        });
    }

    /// Poisons it with [`Poison::Released`], then lets go of the fence. A write that is under way ends first.
    ///
    /// # Errors
    /// As [`Fence::release`].
    pub async fn release(&self) -> Result<()> {
        self.poison(Poison::Released);
        self.fence.release().await
    }

    /// Deletes the session's WhatsApp state, in one fenced commit. The outbox stays: ship it first. So does the journal: the
    /// session may be linked anew, and what it sent before mustn't be sent again.
    ///
    /// # Errors
    /// Any error poisons.
    pub async fn erase_state(&self) -> Result<()> {
        self.erase(&["wa_state"]).await
    }

    /// As [`erase_state`](Self::erase_state), of a session that won't come back: its journal too.
    ///
    /// # Errors
    /// Any error poisons.
    pub async fn erase_session(&self) -> Result<()> {
        self.erase(&["wa_state", "journal"]).await
    }

    async fn erase(&self, tables: &[&str]) -> Result<()> {
        self.write("erase a session", async {
            let tx = self.begin(FenceLock::Alone).await?;
            for table in tables {
                tx.execute("erase a session", format!("DELETE FROM {table} WHERE session_id = $1"), [tx.session()])
                    .await?;
            }
            self.commit(tx).await
        })
        .await
    }

    pub(super) fn note_outbox_rows(&self, rows: i64) {
        self.outbox_rows.store(rows, Ordering::Relaxed);
    }

    pub(super) fn outbox_rows(&self) -> i64 {
        self.outbox_rows.load(Ordering::Relaxed)
    }

    pub(super) fn keys(&self) -> &StateKeys {
        &self.keys
    }

    pub(super) fn database(&self) -> &Database {
        self.fence.store().database()
    }

    pub(super) fn fence_store(&self) -> &super::Store {
        self.fence.store()
    }

    /// Refuses at once if poisoned, or if the lease has ended.
    pub(super) fn admit(&self) -> Result<()> {
        if let Some(why) = *self.poison.borrow() {
            return Err(StoreError::Poisoned(why));
        }
        if !self.lease.is_valid() {
            self.poison(Poison::LeaseEnded);
            return Err(StoreError::Poisoned(Poison::LeaseEnded));
        }
        Ok(())
    }

    /// Begins a fenced transaction.
    pub(super) async fn begin(&self, lock: FenceLock) -> Result<Locked> {
        Begun::new(&self.fence).await?.lock(lock).await
    }

    /// Commits; if the caller goes away in the middle, nobody knows what is stored.
    pub(super) async fn commit(&self, tx: Locked) -> Result<()> {
        struct Unseen<'a>(Option<&'a FencedBackend>);
        impl Drop for Unseen<'_> {
            fn drop(&mut self) {
                if let Some(backend) = self.0 {
                    backend.poison(Poison::WriteFailed);
                }
            }
        }
        let mut unseen = Unseen(Some(self));
        let committed = tx.commit().await;
        unseen.0 = None;
        committed
    }

    /// Runs a write: with a deadline, and poisoning on failure. A full outbox is not a failure of the store.
    pub(super) async fn write<T>(&self, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.admit()?;
        let done = within(operation, work).await;
        match &done {
            Ok(_) | Err(StoreError::OutboxFull { .. }) => {}
            Err(StoreError::Poisoned(why)) => self.poison(*why),
            Err(_) => self.poison(Poison::WriteFailed),
        }
        done
    }

    /// Reads rows of this session's state. The first two values are the session and `kind`.
    pub(super) async fn rows(
        &self,
        kind: Kind,
        columns: &str,
        condition: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<QueryResult>> {
        self.admit()?;
        let values = [self.session_id().as_str().into(), kind.code().into()].into_iter().chain(values);
        self.database()
            .all(
                "read state",
                format!("SELECT {columns} FROM wa_state WHERE session_id = $1 AND kind = $2 {condition}"),
                values,
            )
            .await
    }

    /// Reads and opens the value of one row.
    pub(super) async fn value(&self, kind: Kind, parts: &[&[u8]]) -> Result<Option<Vec<u8>>> {
        let key = self.keys.hash(kind, parts);
        let rows = self.rows(kind, "sealed", "AND key = $3", [bytes(&key)]).await?;
        rows.first().map(|row| self.keys.open(kind, &key, &column::<Vec<u8>>(row, "sealed")?)).transpose()
    }

    /// Reads and opens those of these rows that there are.
    pub(super) async fn values(&self, kind: Kind, keys: &[KeyHash]) -> Result<Vec<(KeyHash, Vec<u8>)>> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(CHUNK) {
            let condition = format!("AND key IN ({})", placeholders(3, keys.len()));
            let wanted: Vec<Value> = keys.iter().map(|key| bytes(key)).collect();
            let rows = self.rows(kind, "key, sealed", &condition, wanted).await?;
            for row in &rows {
                found.push(self.opened(kind, row)?);
            }
        }
        Ok(found)
    }

    /// Opens a row that was read with its key.
    pub(super) fn opened(&self, kind: Kind, row: &QueryResult) -> Result<(KeyHash, Vec<u8>)> {
        let key: KeyHash = column::<Vec<u8>>(row, "key")?.try_into().map_err(|_| StoreError::Encoding("state key"))?;
        let value = self.keys.open(kind, &key, &column::<Vec<u8>>(row, "sealed")?)?;
        Ok((key, value))
    }

    /// Writes one row.
    pub(super) async fn put_one(&self, row: Result<super::state::Row>) -> Result<()> {
        self.write("write state", async {
            let row = row?;
            let tx = self.begin(FenceLock::Shared).await?;
            tx.put(vec![row]).await?;
            self.commit(tx).await
        })
        .await
    }

    /// Writes several rows, all or none.
    pub(super) async fn put_many(&self, rows: Result<Vec<super::state::Row>>) -> Result<()> {
        self.write("write state", async {
            let rows = rows?;
            if rows.is_empty() {
                return Ok(());
            }
            let tx = self.begin(FenceLock::Alone).await?;
            tx.put(rows).await?;
            self.commit(tx).await
        })
        .await
    }

    /// Deletes one row.
    pub(super) async fn delete_one(&self, kind: Kind, parts: &[&[u8]]) -> Result<()> {
        let key = self.keys.hash(kind, parts);
        self.write("delete state", async {
            let tx = self.begin(FenceLock::Shared).await?;
            tx.delete(kind, &[key]).await?;
            self.commit(tx).await
        })
        .await
    }

    /// Deletes several rows by their keys, all or none.
    pub(super) async fn delete_many(&self, kind: Kind, keys: &[KeyHash]) -> Result<()> {
        if keys.is_empty() {
            return self.admit();
        }
        self.write("delete state", async {
            let tx = self.begin(FenceLock::Alone).await?;
            tx.delete(kind, keys).await?;
            self.commit(tx).await
        })
        .await
    }

    /// Deletes the rows of a kind that a condition holds for; its values begin at `$3`. Answers how many.
    pub(super) async fn delete_where(
        &self,
        kind: Kind,
        condition: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        self.write("delete state", async {
            let tx = self.begin(FenceLock::Alone).await?;
            let gone = tx.delete_where(kind, condition, values).await?;
            self.commit(tx).await?;
            Ok(gone)
        })
        .await
    }
}
