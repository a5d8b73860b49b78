//! Ships the outbox to the control plane.
//!
//! Owns no table; it reads and deletes rows of the store's `outbox`. Rules:
//! - One batch of a session is in flight, never two, and rows go in order of `seq`.
//! - A row is deleted only after the control plane said that it has stored it.
//! - A session's rows are shipped by the worker that holds it; rows of a session that nobody holds are adopted under the
//!   store's shipping lease.
//!
//! Whoever commits rows rings ([`Shipper::ring`]); a bell that is lost (a crash) is made good by the ring when the session
//! is claimed, or by adoption.

mod queue;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    ids::SessionId,
    wire::outbox::{MAX_ROWS, OutboxBatch},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::queue::Queue;
use crate::{
    backoff,
    store::{Lease, Store, StoreError},
    upstream::{Upstream, UpstreamError},
};

/// How many sessions' batches are in flight at once.
const LANES: usize = 16;
/// The first and the longest pause of a session whose batch was not accepted.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long rows that can wait a moment wait for others of their session.
const SOON: Duration = Duration::from_millis(25);
/// How many sessions are adopted in one go.
const ADOPT: usize = 64;

/// Why a batch was not shipped.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The control plane accepted rows that weren't sent.
    #[error("the control plane accepted rows that were not in the batch")]
    Accepted,
}

/// The shipper of one worker.
pub struct Shipper {
    store: Store,
    upstream: Arc<Upstream>,
    queue: Mutex<Queue>,
    bell: Notify,
}

impl Shipper {
    /// Ships from `store` to `upstream` once [`run`](Self::run) runs.
    #[must_use]
    pub fn new(store: Store, upstream: Arc<Upstream>) -> Self {
        Self { store, upstream, queue: Mutex::default(), bell: Notify::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a session may have rows.
    pub fn ring(&self, session: &SessionId) {
        if self.queue().ring(session) {
            self.bell.notify_one();
        }
    }

    /// Says that a session has rows whose news the control plane gets by another way first, or that can wait a moment.
    pub fn ring_soon(&self, session: &SessionId) {
        if self.queue().ring_soon(session, Instant::now() + SOON) {
            self.bell.notify_one();
        }
    }

    /// Ships until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let lanes = (0..LANES).map(|_| self.lane(&stop));
        futures_util::future::join_all(lanes).await;
    }

    async fn lane(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let (taken, more, due) = {
                let mut queue = self.queue();
                (queue.take(Instant::now()), queue.has_ready(), queue.next_due())
            };
            if more {
                self.bell.notify_one();
            }
            let Some(session) = taken else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.bell.notified() => {}
                    () = due_or_never(due) => {}
                }
                continue;
            };
            // Not cut short by `stop`: a batch that was accepted should be deleted. Its parts have deadlines.
            match self.ship_one(&session).await {
                Ok(more) => self.queue().shipped(session, more),
                Err(error) => {
                    let failures = self.queue().failed(&session);
                    metrics::counter!("data_plane_ship_failures_total").increment(1);
                    tracing::warn!(%session, %error, failures, "a batch was not shipped, trying again");
                    let pause = backoff::spread(backoff::doubling(PAUSES.0, PAUSES.1, failures));
                    self.queue().wait(session, Instant::now() + pause);
                }
            }
            self.bell.notify_one();
        }
    }

    /// Ships one batch. Answers whether there may be more.
    async fn ship_one(&self, session: &SessionId) -> Result<bool, ShipError> {
        let Some(slice) = self.store.next_batch(session, MAX_ROWS).await? else { return Ok(false) };
        let rows = slice.rows.len();
        let last = slice.rows.last().map(|row| row.seq);
        let batch = OutboxBatch {
            incarnation: self.upstream.incarnation().clone(),
            session_id: session.clone(),
            epoch: slice.epoch,
            rows: slice.rows,
        };
        let accepted = self.upstream.ship(&batch).await?;
        if Some(accepted.seq) > last {
            return Err(ShipError::Accepted);
        }
        self.store.delete_through(session, batch.epoch, accepted.seq).await?;
        metrics::counter!("data_plane_outbox_shipped_total").increment(rows as u64);
        Ok(true)
    }

    /// Looks, until `stop`, for rows that nobody ships, and ships them.
    pub async fn adopt(&self, lease: impl Fn() -> Option<Lease>, every: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff::spread(every)) => {}
            }
            let Some(lease) = lease() else { continue };
            match self.store.adopt_orphans(&lease, ADOPT).await {
                Ok(sessions) => sessions.iter().for_each(|session| self.ring(session)),
                Err(error) => tracing::warn!(%error, "rows without a holder could not be looked for"),
            }
        }
    }
}

async fn due_or_never(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
