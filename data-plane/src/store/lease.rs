//! Worker leases: the proof that a run of a worker is alive.
//!
//! `worker_lease(worker_id, incarnation, until)` is renewed every 5 s for 20 s in the **store's** time, so the clocks of
//! workers needn't agree. The worker counts its own deadline on the boot-time clock from *before* it sent the renewal:
//! that is never later than the store's. At the deadline it aborts its sessions without a flush, whatever else it
//! believes, for from then on another worker may claim them.
//!
//! A lease that has ended isn't renewed, only acquired anew. A run never shares its id with another: while a lease of
//! one incarnation lasts, another incarnation of the same worker id is refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::ids::{Incarnation, SessionId, WorkerId};
use tokio::sync::Notify;

use super::{
    LeaseError, Store,
    clock::since_boot,
    database::{column, id_column, moment},
};

/// The most wanted sessions that one renewal answers. What is left comes with the next.
const MAX_WANTED: i64 = 1_000;

/// How often [`Lease::ended`] reads the boot-time clock: the runtime's own timers stand still while the machine sleeps.
const CLOCK_READING: Duration = Duration::from_millis(250);

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
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    worker_id: WorkerId,
    incarnation: Incarnation,
    /// Milliseconds on the boot-time clock.
    deadline: AtomicU64,
    gone: AtomicBool,
    changed: Notify,
}

impl Lease {
    /// Takes the lease of `worker_id` for this run.
    ///
    /// # Errors
    /// [`LeaseError::Taken`] while another run of that worker id holds an unexpired lease; [`LeaseError::Store`].
    pub async fn acquire(store: &Store, worker_id: WorkerId, incarnation: Incarnation) -> Result<Self, LeaseError> {
        let ttl = store.options().lease_ttl;
        let database = store.database();
        let now = database.engine.now_ms();
        let before = since_boot();
        let taken = database
            .execute(
                "acquire a lease",
                format!(
                    "INSERT INTO worker_lease (worker_id, incarnation, until, renewed_at) \
                     VALUES ($1, $2, {now} + $3, {now}) \
                     ON CONFLICT (worker_id) DO UPDATE SET incarnation = excluded.incarnation, \
                     until = excluded.until, renewed_at = excluded.renewed_at \
                     WHERE worker_lease.incarnation = excluded.incarnation OR worker_lease.until <= {now}"
                ),
                [worker_id.as_str().into(), incarnation.as_str().into(), millis(ttl).into()],
            )
            .await?;
        if taken == 0 {
            let row = database
                .one("read a lease", "SELECT until FROM worker_lease WHERE worker_id = $1", [worker_id.as_str().into()])
                .await?;
            // It may have been let go of in between; the caller asks again.
            let until = row.map(|row| column(&row, "until")).transpose()?.unwrap_or_default();
            return Err(LeaseError::Taken { until: moment(until)? });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                store: store.clone(),
                worker_id,
                incarnation,
                deadline: AtomicU64::new(millis_u64(before + ttl)),
                gone: AtomicBool::new(false),
                changed: Notify::new(),
            }),
        })
    }

    /// Renews; call every 5 s. Answers which of this run's sessions other workers want: let go of those.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if it had ended before the store saw the renewal: abort every session. After
    /// [`LeaseError::Store`] the lease lasts until its deadline; try again.
    pub async fn renew(&self) -> Result<Vec<Wanted>, LeaseError> {
        let Inner { store, worker_id, incarnation, .. } = &*self.inner;
        let ttl = store.options().lease_ttl;
        let database = store.database();
        let now = database.engine.now_ms();
        let before = since_boot();
        let renewed = database
            .execute(
                "renew a lease",
                format!(
                    "UPDATE worker_lease SET until = {now} + $3, renewed_at = {now} \
                     WHERE worker_id = $1 AND incarnation = $2 AND until > {now}"
                ),
                [worker_id.as_str().into(), incarnation.as_str().into(), millis(ttl).into()],
            )
            .await?;
        // An answer that comes after the deadline is too late even if the store took the renewal: between the lease's
        // end and its commit, a claim may have seen it as ended.
        if renewed == 0 || !self.is_valid() {
            self.end();
            return Err(LeaseError::Lost);
        }
        self.inner.deadline.fetch_max(millis_u64(before + ttl), Ordering::AcqRel);
        let rows = database
            .all(
                "read what is wanted",
                "SELECT session_id, wanted_generation FROM fence WHERE worker_id = $1 AND incarnation = $2 \
                 AND NOT released AND wanted_generation > generation ORDER BY session_id LIMIT $3",
                [worker_id.as_str().into(), incarnation.as_str().into(), MAX_WANTED.into()],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Wanted { session_id: id_column(row, "session_id")?, generation: column(row, "wanted_generation")? })
            })
            .collect()
    }

    /// Lets go of it: every session still held by this run can be claimed at once.
    ///
    /// # Errors
    /// [`LeaseError::Store`]: then it ends by itself at its deadline. This handle is over either way.
    pub async fn release(&self) -> Result<(), LeaseError> {
        self.end();
        let Inner { store, worker_id, incarnation, .. } = &*self.inner;
        store
            .database()
            .execute(
                "release a lease",
                "DELETE FROM worker_lease WHERE worker_id = $1 AND incarnation = $2",
                [worker_id.as_str().into(), incarnation.as_str().into()],
            )
            .await?;
        Ok(())
    }

    fn end(&self) {
        self.inner.gone.store(true, Ordering::Release);
        self.inner.changed.notify_waiters();
    }

    /// How long it still lasts on the boot-time clock; zero once ended.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        if self.inner.gone.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.inner.deadline.load(Ordering::Acquire)).saturating_sub(since_boot())
    }

    /// Whether it still lasts. Cheap: two atomic reads and a clock reading.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Resolves once the deadline has passed without a renewal, or the lease was lost or released.
    pub async fn ended(&self) {
        loop {
            let changed = self.inner.changed.notified();
            let remaining = self.remaining();
            if remaining.is_zero() {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(remaining.min(CLOCK_READING)) => {}
            }
        }
    }

    /// Whose.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.inner.worker_id
    }

    /// Which run's.
    #[must_use]
    pub fn incarnation(&self) -> &Incarnation {
        &self.inner.incarnation
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn millis_u64(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
