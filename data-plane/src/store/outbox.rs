//! The outbox.

use std::ops::RangeInclusive;

use shared::{
    ids::SessionId,
    wire::outbox::{OutboxEvent, OutboxRow},
};

use super::{FencedBackend, Lease, Result, Store};

/// The most rows in one session's outbox, by default.
pub const OUTBOX_MAX_ROWS: i64 = 50_000;

/// The oldest rows of a session, all of one epoch, in order.
#[derive(Debug, Clone)]
pub struct OutboxSlice {
    /// Which sequence.
    pub epoch: i64,
    /// 1 to 256, rising by `seq`.
    pub rows: Vec<OutboxRow>,
}

impl FencedBackend {
    /// Commits events, all or none, in one fenced transaction. Answers their `seq`s (empty for no events).
    /// `StoreError::OutboxFull` doesn't poison.
    pub async fn commit_events(&self, _events: &[OutboxEvent]) -> Result<RangeInclusive<i64>> {
        todo!()
    }
}

impl Store {
    /// The oldest rows of a session, or `None` if it has none. `limit` is cut to 256.
    pub async fn next_batch(&self, _session_id: &SessionId, _limit: usize) -> Result<Option<OutboxSlice>> {
        todo!()
    }
    /// Deletes what was accepted upstream. Answers how many rows went.
    pub async fn delete_through(&self, _session_id: &SessionId, _epoch: i64, _seq: i64) -> Result<u64> {
        todo!()
    }
    /// Sessions that have rows.
    pub async fn sessions_with_rows(&self, _limit: usize) -> Result<Vec<SessionId>> {
        todo!()
    }
    /// How many rows a session has.
    pub async fn outbox_len(&self, _session_id: &SessionId) -> Result<u64> {
        todo!()
    }
    /// How many rows there are.
    pub async fn outbox_total(&self) -> Result<u64> {
        todo!()
    }
    /// Takes, for 20 s, the shipping of sessions that have rows and no living holder. Call again to keep it.
    pub async fn adopt_orphans(&self, _lease: &Lease, _limit: usize) -> Result<Vec<SessionId>> {
        todo!()
    }
}
