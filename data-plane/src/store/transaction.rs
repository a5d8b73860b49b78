//! The writing transaction of a session, whose type makes the fence impossible to forget.
//!
//! [`Begun`] can do one thing: lock the fence row. [`Locked`] can write and commit. With no row at the handle's own
//! generation and incarnation, `lock` fails and nothing has been written.
//!
//! A transaction that writes one row shares the lock with its like; one that writes several, or reads before it writes,
//! takes it alone. So two transactions of a session never wait for each other's rows in a circle.

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Value};
use shared::ids::SessionId;

use super::{
    Fence, Poison, Result, StoreError,
    database::{Engine, column, failed, placeholders},
    state::{KeyHash, Kind, Row},
};

/// The most rows of one INSERT, or keys of one IN list: engines limit the values of a statement.
pub(super) const CHUNK: usize = 500;

/// How the fence row is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceLock {
    /// Beside other writers of this session that write one row.
    Shared,
    /// Alone.
    Alone,
}

/// A transaction that has begun, and has no right yet.
pub struct Begun {
    tx: DatabaseTransaction,
    fence: Fence,
}

/// A transaction of the session's rightful writer.
pub struct Locked {
    tx: DatabaseTransaction,
    engine: Engine,
    session_id: SessionId,
    epoch: i64,
    next_seq: i64,
}

impl Begun {
    /// Begins. On SQLite the database's write lock is held from here on.
    ///
    /// # Errors
    /// As the database.
    pub async fn new(fence: &Fence) -> Result<Self> {
        Ok(Self { tx: fence.store().database().begin().await?, fence: fence.clone() })
    }

    /// Locks the fence row.
    ///
    /// # Errors
    /// [`Poison::Fenced`] if the row isn't there at this generation and incarnation any more; as the database.
    pub async fn lock(self, how: FenceLock) -> Result<Locked> {
        let engine = self.fence.store().database().engine;
        let suffix = match how {
            FenceLock::Shared => engine.for_share(),
            FenceLock::Alone => engine.for_update(),
        };
        let statement = engine.statement(
            format!(
                "SELECT epoch, next_seq FROM fence WHERE session_id = $1 AND generation = $2 AND incarnation = $3 \
                 AND NOT released{suffix}"
            ),
            [
                self.fence.session_id().as_str().into(),
                self.fence.generation().into(),
                self.fence.incarnation().as_str().into(),
            ],
        );
        let row = self.tx.query_one_raw(statement).await.map_err(failed("lock the fence"))?;
        let row = row.ok_or(StoreError::Poisoned(Poison::Fenced))?;
        Ok(Locked {
            tx: self.tx,
            engine,
            session_id: self.fence.session_id().clone(),
            epoch: column(&row, "epoch")?,
            next_seq: column(&row, "next_seq")?,
        })
    }
}

impl Locked {
    /// The outbox sequence, and its next number. Meaningful under [`FenceLock::Alone`].
    pub(super) fn outbox_place(&self) -> (i64, i64) {
        (self.epoch, self.next_seq)
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    pub(super) fn session(&self) -> Value {
        self.session_id.as_str().into()
    }

    /// Writes. Answers how many rows were touched.
    pub(super) async fn execute(
        &self,
        operation: &'static str,
        sql: impl Into<String>,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        let statement = self.engine.statement(sql, values);
        Ok(self.tx.execute_raw(statement).await.map_err(failed(operation))?.rows_affected())
    }

    /// Reads, or writes and reads what was touched.
    pub(super) async fn rows(
        &self,
        operation: &'static str,
        sql: impl Into<String>,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<QueryResult>> {
        self.tx.query_all_raw(self.engine.statement(sql, values)).await.map_err(failed(operation))
    }

    /// Inserts rows, or replaces those with the same key. Of rows with the same key the last counts.
    pub(super) async fn put(&self, rows: Vec<Row>) -> Result<()> {
        self.put_with(rows, "stamp = excluded.stamp, stamp2 = excluded.stamp2").await
    }

    /// As [`put`](Self::put), with its own way to join the two stamps.
    pub(super) async fn put_with(&self, rows: Vec<Row>, stamps: &str) -> Result<()> {
        const COLUMNS: usize = 9;
        // One INSERT may not touch a row twice.
        let mut rows: std::collections::BTreeMap<(Kind, KeyHash), Row> =
            rows.into_iter().map(|row| ((row.kind, row.key), row)).collect();
        while !rows.is_empty() {
            let mut values: Vec<Value> = Vec::with_capacity(rows.len().min(CHUNK) * COLUMNS);
            let mut tuples = String::new();
            while let Some((_, row)) = rows.pop_first() {
                if !tuples.is_empty() {
                    tuples.push_str(", ");
                }
                tuples.push('(');
                tuples.push_str(&placeholders(values.len() + 1, COLUMNS));
                tuples.push(')');
                values.extend([
                    self.session(),
                    row.kind.code().into(),
                    bytes(&row.key),
                    row.group.map(|hash| hash.to_vec()).into(),
                    row.member.map(|hash| hash.to_vec()).into(),
                    row.stamp.into(),
                    row.stamp2.into(),
                    row.flag.into(),
                    row.sealed.into(),
                ]);
                if values.len() >= CHUNK * COLUMNS {
                    break;
                }
            }
            self.execute(
                "write state",
                format!(
                    "INSERT INTO wa_state \
                     (session_id, kind, key, group_hash, member_hash, stamp, stamp2, flag, sealed) VALUES {tuples} \
                     ON CONFLICT (session_id, kind, key) DO UPDATE SET group_hash = excluded.group_hash, \
                     member_hash = excluded.member_hash, flag = excluded.flag, sealed = excluded.sealed, {stamps}"
                ),
                values,
            )
            .await?;
        }
        Ok(())
    }

    /// Reads the sealed value of a row.
    pub(super) async fn get(&self, kind: Kind, key: &KeyHash) -> Result<Option<Vec<u8>>> {
        let rows = self
            .rows(
                "read state",
                "SELECT sealed FROM wa_state WHERE session_id = $1 AND kind = $2 AND key = $3",
                [self.session(), kind.code().into(), bytes(key)],
            )
            .await?;
        rows.first().map(|row| column(row, "sealed")).transpose()
    }

    /// Deletes rows by their keys.
    pub(super) async fn delete(&self, kind: Kind, keys: &[KeyHash]) -> Result<u64> {
        let mut gone = 0;
        for keys in keys.chunks(CHUNK) {
            let values = [self.session(), kind.code().into()].into_iter().chain(keys.iter().map(|key| bytes(key)));
            let list = placeholders(3, keys.len());
            gone += self
                .execute(
                    "delete state",
                    format!("DELETE FROM wa_state WHERE session_id = $1 AND kind = $2 AND key IN ({list})"),
                    values,
                )
                .await?;
        }
        Ok(gone)
    }

    /// Deletes the rows of a kind that a condition holds for. Its values begin at `$3`.
    pub(super) async fn delete_where(
        &self,
        kind: Kind,
        condition: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        self.execute(
            "delete state",
            format!("DELETE FROM wa_state WHERE session_id = $1 AND kind = $2 AND {condition}"),
            [self.session(), kind.code().into()].into_iter().chain(values),
        )
        .await
    }

    /// Makes it all durable.
    ///
    /// # Errors
    /// As the database: then it isn't known whether it is.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await.map_err(failed("commit"))
    }
}

/// A hash as a value.
pub(super) fn bytes(hash: &[u8]) -> Value {
    hash.to_vec().into()
}

#[cfg(test)]
mod tests;
