//! The outbox: what WhatsApp told a session, until the control plane has it.
//!
//! Rows are committed inside the library's durability hook, before WhatsApp is acknowledged: all of a batch or none,
//! numbered by a counter in the fence row, sealed with the session's key for their place. The session's holder ships
//! them in order and deletes what was accepted; [`Store::adopt_orphans`] gives rows of a session without a living holder
//! to some live worker. Two workers that ship the same row do no harm: the control plane knows it by
//! `(session_id, epoch, seq)`.
//!
//! A session's outbox is bounded. When it is full the hook fails and WhatsApp keeps the messages. A fiftieth of it is left to
//! WhatsApp's words on what we sent, and nothing is sent any more when another fiftieth before it is all that is free: a message
//! whose word can't be recorded would be sent again.

use std::ops::RangeInclusive;

use sea_orm::Value;
use shared::{
    ids::SessionId,
    wire::outbox::{MAX_BYTES, MAX_ROWS, OutboxEvent, OutboxRow, row_name, row_place},
};

use super::{
    FencedBackend, Lease, Result, Store, StoreError,
    database::{column, id_column, placeholders},
    transaction::{CHUNK, FenceLock, Locked},
    value::to_json,
};

/// The most rows in one session's outbox, by default.
pub const OUTBOX_MAX_ROWS: i64 = 50_000;

/// How much of an outbox may be filled, by what is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// WhatsApp's words on sends: all of it.
    Words,
    /// What WhatsApp has for us: the rest.
    Shared,
    /// Sends, of which words will come: less, so that what comes meanwhile doesn't end the client before they do.
    Sends,
}

/// The oldest rows of a session, all of one epoch, in order.
#[derive(Debug, Clone)]
pub struct OutboxSlice {
    /// Which sequence.
    pub epoch: i64,
    /// 1 to [`MAX_ROWS`], rising by `seq`, and no more than [`MAX_BYTES`] unless it is one.
    pub rows: Vec<OutboxRow>,
}

impl FencedBackend {
    /// Commits events, all or none, in one fenced transaction. Answers their `seq`s: an empty range for no events.
    ///
    /// # Errors
    /// [`StoreError::OutboxFull`] if they don't fit, which doesn't poison. Any other error does.
    pub async fn commit_events(&self, events: &[OutboxEvent]) -> Result<RangeInclusive<i64>> {
        if events.is_empty() {
            return Ok(RangeInclusive::new(1, 0));
        }
        self.write("commit events", async {
            let tx = self.begin(FenceLock::Alone).await?;
            let seqs = self.append(&tx, events, Room::Shared).await?;
            self.commit(tx).await?;
            Ok(seqs)
        })
        .await
    }

    /// How many rows there may be.
    fn outbox_room(&self, room: Room) -> i64 {
        let most = self.fence_store().options().outbox_max_rows;
        match room {
            Room::Words => most,
            Room::Shared => most - most / 50,
            Room::Sends => most - most / 25,
        }
    }

    /// Checks that so many more rows find room, within a transaction that holds the fence alone.
    ///
    /// # Errors
    /// [`StoreError::OutboxFull`]; as the database.
    pub(super) async fn check_room(&self, tx: &Locked, count: i64, room: Room) -> Result<()> {
        let most = self.outbox_room(room);
        // Since it was noted it can only have shrunk, so the database is asked only if that much wouldn't do.
        if self.outbox_rows().saturating_add(count) > most {
            let rows = measure(tx).await?;
            self.note_outbox_rows(rows);
            if rows + count > most {
                return Err(StoreError::OutboxFull { rows });
            }
        }
        Ok(())
    }

    /// Appends events within a transaction that holds the fence alone.
    pub(super) async fn append(&self, tx: &Locked, events: &[OutboxEvent], room: Room) -> Result<RangeInclusive<i64>> {
        const COLUMNS: usize = 4;
        let (epoch, first) = tx.outbox_place();
        let count = i64::try_from(events.len()).map_err(|_| StoreError::Encoding("batch"))?;
        self.check_room(tx, count, room).await?;
        // Noted before the commit: if that fails, it is too many and not too few.
        self.note_outbox_rows(self.outbox_rows() + count);

        let mut seq = first;
        for events in events.chunks(CHUNK) {
            let mut values: Vec<Value> = vec![tx.session(), epoch.into()];
            let mut tuples = Vec::with_capacity(events.len());
            for event in events {
                let name = row_name(epoch, seq);
                let plain = to_json("event", event)?;
                let sealed = self.keys().data_key().seal(&row_place(self.keys().session_id(), &name), &plain)?;
                let own = placeholders(values.len() + 1, COLUMNS - 2);
                tuples.push(format!("($1, $2, {own}, {})", tx.engine().now_ms()));
                values.extend([seq.into(), sealed.into()]);
                seq += 1;
            }
            let sql =
                format!("INSERT INTO outbox (session_id, epoch, seq, sealed, created_at) VALUES {}", tuples.join(", "));
            tx.execute("write events", sql, values).await?;
        }
        tx.execute(
            "advance the outbox",
            "UPDATE fence SET next_seq = $2 WHERE session_id = $1",
            [tx.session(), seq.into()],
        )
        .await?;
        Ok(first..=seq - 1)
    }
}

/// How many rows there are, as far as this transaction sees. They are deleted in order, so the oldest tells without counting.
async fn measure(tx: &Locked) -> Result<i64> {
    let (epoch, next) = tx.outbox_place();
    let oldest = tx
        .rows(
            "measure the outbox",
            "SELECT MIN(seq) AS oldest FROM outbox WHERE session_id = $1 AND epoch = $2",
            [tx.session(), epoch.into()],
        )
        .await?;
    let oldest = oldest.first().map(|row| column::<Option<i64>>(row, "oldest")).transpose()?.flatten();
    Ok(oldest.map_or(0, |oldest| next - oldest))
}

impl Store {
    /// The oldest rows of a session, or `None` if it has none: at most `limit`, which is cut to [`MAX_ROWS`], and
    /// [`MAX_BYTES`] of them, but one row however large it is.
    ///
    /// # Errors
    /// As the database.
    pub async fn next_batch(&self, session_id: &SessionId, limit: usize) -> Result<Option<OutboxSlice>> {
        let limit = i64::try_from(limit.clamp(1, MAX_ROWS)).unwrap_or(1);
        let bytes = i64::try_from(MAX_BYTES).unwrap_or(i64::MAX);
        // Their sizes first, so that rows which don't fit aren't read.
        let rows = self
            .database()
            .all(
                "read the outbox",
                "WITH present AS (SELECT MIN(epoch) AS epoch FROM outbox WHERE session_id = $1), \
                 oldest AS (SELECT seq, LENGTH(sealed) AS size FROM outbox WHERE session_id = $1 \
                 AND epoch = (SELECT epoch FROM present) ORDER BY seq LIMIT $2), \
                 summed AS (SELECT seq, ROW_NUMBER() OVER (ORDER BY seq) AS place, \
                 SUM(size) OVER (ORDER BY seq) AS bytes FROM oldest) \
                 SELECT epoch, seq, sealed FROM outbox WHERE session_id = $1 \
                 AND epoch = (SELECT epoch FROM present) \
                 AND seq <= (SELECT MAX(seq) FROM summed WHERE place = 1 OR bytes <= $3) ORDER BY seq",
                [session_id.as_str().into(), limit.into(), bytes.into()],
            )
            .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let epoch = column(first, "epoch")?;
        let rows = rows
            .iter()
            .map(|row| Ok(OutboxRow { seq: column(row, "seq")?, sealed: column(row, "sealed")? }))
            .collect::<Result<_>>()?;
        Ok(Some(OutboxSlice { epoch, rows }))
    }

    /// Deletes what was accepted upstream: the epoch's rows up to and including `seq`. Answers how many rows went.
    ///
    /// # Errors
    /// As the database: ship and delete again.
    pub async fn delete_through(&self, session_id: &SessionId, epoch: i64, seq: i64) -> Result<u64> {
        self.database()
            .execute(
                "delete shipped rows",
                "DELETE FROM outbox WHERE session_id = $1 AND epoch = $2 AND seq <= $3",
                [session_id.as_str().into(), epoch.into(), seq.into()],
            )
            .await
    }

    /// Sessions that have rows, in order of their ids.
    ///
    /// # Errors
    /// As the database.
    pub async fn sessions_with_rows(&self, limit: usize) -> Result<Vec<SessionId>> {
        let sql = format!("{FOUND} SELECT session_id FROM found WHERE session_id IS NOT NULL LIMIT $1");
        let rows = self.database().all("find sessions with rows", sql, [bounded(limit).into()]).await?;
        rows.iter().map(|row| id_column(row, "session_id")).collect()
    }

    /// How many rows a session has.
    ///
    /// # Errors
    /// As the database.
    pub async fn outbox_len(&self, session_id: &SessionId) -> Result<u64> {
        let row = self
            .database()
            .one(
                "count rows",
                "SELECT COUNT(*) AS rows FROM outbox WHERE session_id = $1",
                [session_id.as_str().into()],
            )
            .await?;
        count(row)
    }

    /// How many rows there are in the store. Reads them all: for a gauge, now and then.
    ///
    /// # Errors
    /// As the database.
    pub async fn outbox_total(&self) -> Result<u64> {
        count(self.database().one("count rows", "SELECT COUNT(*) AS rows FROM outbox", []).await?)
    }

    /// Takes, for the lease's term, the shipping of sessions that have rows and no living holder. Call again to keep it.
    ///
    /// # Errors
    /// [`StoreError::LeaseEnded`]; as the database.
    pub async fn adopt_orphans(&self, lease: &Lease, limit: usize) -> Result<Vec<SessionId>> {
        if !lease.is_valid() {
            return Err(StoreError::LeaseEnded);
        }
        let database = self.database();
        let now = database.engine.now_ms();
        let ttl = i64::try_from(self.options().lease_ttl.as_millis()).unwrap_or(i64::MAX);
        let worker = lease.worker_id().as_str();
        let orphans = database
            .all(
                "find orphans",
                format!(
                    "{FOUND} SELECT found.session_id FROM found JOIN fence f ON f.session_id = found.session_id \
                     WHERE (f.released OR NOT EXISTS (SELECT 1 FROM worker_lease l WHERE l.worker_id = f.worker_id \
                     AND l.incarnation = f.incarnation AND l.until > {now})) \
                     AND NOT EXISTS (SELECT 1 FROM ship_lease s WHERE s.session_id = f.session_id \
                     AND s.worker_id <> $1 AND s.until > {now}) LIMIT $2"
                ),
                [worker.into(), bounded(limit).into()],
            )
            .await?;
        let mut adopted = Vec::with_capacity(orphans.len());
        for row in &orphans {
            let session: SessionId = id_column(row, "session_id")?;
            let taken = database
                .execute(
                    "adopt a session's rows",
                    format!(
                        "INSERT INTO ship_lease (session_id, worker_id, until) VALUES ($1, $2, {now} + $3) \
                         ON CONFLICT (session_id) DO UPDATE SET worker_id = excluded.worker_id, \
                         until = excluded.until \
                         WHERE ship_lease.worker_id = excluded.worker_id OR ship_lease.until <= {now}"
                    ),
                    [session.as_str().into(), worker.into(), ttl.into()],
                )
                .await?;
            if taken > 0 {
                adopted.push(session);
            }
        }
        database.execute("forget old adoptions", format!("DELETE FROM ship_lease WHERE until <= {now}"), []).await?;
        Ok(adopted)
    }
}

/// The most sessions that one call finds.
const MAX_SESSIONS: usize = 1_000;

/// The sessions that have rows: jumps from one to the next in the index, instead of reading every row.
const FOUND: &str = "WITH RECURSIVE found(session_id) AS ( \
     SELECT MIN(session_id) FROM outbox \
     UNION ALL \
     SELECT (SELECT MIN(o.session_id) FROM outbox o WHERE o.session_id > found.session_id) \
     FROM found WHERE found.session_id IS NOT NULL)";

fn bounded(limit: usize) -> i64 {
    i64::try_from(limit.min(MAX_SESSIONS)).unwrap_or(0)
}

fn count(row: Option<sea_orm::QueryResult>) -> Result<u64> {
    let rows = row.map(|row| column::<i64>(&row, "rows")).transpose()?.unwrap_or(0);
    u64::try_from(rows).map_err(|_| StoreError::Encoding("count"))
}
