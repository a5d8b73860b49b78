//! Fences: who may write a session's state.
//!
//! `fence(session_id, generation, worker_id, incarnation)` has one row for each session, for good. The control plane
//! chooses generations, rising by one with each placement; a worker **claims** before it reads state or dials. A claim
//! takes the row only from an older generation, and only when its holder has let go or its lease has ended; otherwise it
//! marks the row *wanted*, which a living holder sees at its next renewal.
//!
//! Every writing transaction of a session first locks this row at its own generation and incarnation
//! ([`super::transaction`]); a claim locks it exclusively. So a write that was begun before a claim is committed before
//! the claim is granted, and one that comes later finds no row: the stale one never lands.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult};
use shared::{
    ids::{Incarnation, SessionId, WorkerId},
    seal::DataKey,
};

use super::{
    FencedBackend, Lease, Result, Store, StoreError, Wanted,
    database::{Engine, column, failed, id_column, moment, within},
};

/// The answer to a claim.
pub enum Claim {
    /// It's ours.
    Held(Fence),
    /// Another run holds it, and now knows that we want it. Ask again.
    Busy {
        /// When its lease ends by the store's clock, unless it renews.
        until: DateTime<Utc>,
    },
    /// A newer generation, or another run of this one, has been here. Never ask again with this generation.
    Stale {
        /// Its generation.
        current_generation: i64,
    },
}

/// The right to write a session's state, until a newer generation claims it.
#[derive(Clone)]
pub struct Fence {
    store: Store,
    session_id: SessionId,
    generation: i64,
    incarnation: Incarnation,
    epoch: i64,
}

impl Fence {
    /// Which session.
    #[must_use]
    pub fn session_id(&self) -> &SessionId {
        &self.session_id
    }

    /// Which generation.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// Which run of the worker claimed it.
    #[must_use]
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// Which outbox sequence new rows go to.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Lets go; the row keeps its generation. Idempotent, and without effect once a newer generation holds it.
    ///
    /// # Errors
    /// [`StoreError`]: then [`Store::release_left`] frees it as soon as somebody wants it, or the end of the worker's lease.
    pub async fn release(&self) -> Result<()> {
        self.store
            .database()
            .execute(
                "release a session",
                "UPDATE fence SET released = TRUE, wanted_generation = NULL \
                 WHERE session_id = $1 AND generation = $2 AND incarnation = $3",
                [self.session_id.as_str().into(), self.generation.into(), self.incarnation.as_str().into()],
            )
            .await?;
        Ok(())
    }
}

/// Who holds, or held, a session.
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
    /// When the holder's lease ends by the store's clock; `None` if it has ended.
    pub lease_until: Option<DateTime<Utc>>,
    /// A newer generation that waits.
    pub wanted_generation: Option<i64>,
    /// The outbox sequence.
    pub epoch: i64,
}

impl Holder {
    /// Whether nobody may claim the session from it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.released && self.lease_until.is_some()
    }
}

impl Store {
    /// Claims a session for a generation, under a lease. Idempotent for the same generation and run, also after a
    /// release. `epoch` is [`PutSession::epoch`](shared::wire::session::PutSession::epoch); it never falls.
    ///
    /// # Errors
    /// [`StoreError::LeaseEnded`] if the claimant's own lease has ended; else as the database.
    pub async fn claim(&self, lease: &Lease, session_id: &SessionId, generation: i64, epoch: i64) -> Result<Claim> {
        if !lease.is_valid() {
            return Err(StoreError::LeaseEnded);
        }
        within("claim a session", async {
            let tx = self.database().begin().await?;
            let claim = self.claim_in(&tx, lease, session_id, generation, epoch).await?;
            tx.commit().await.map_err(failed("commit a claim"))?;
            Ok(claim)
        })
        .await
    }

    async fn claim_in(
        &self,
        tx: &DatabaseTransaction,
        lease: &Lease,
        session_id: &SessionId,
        generation: i64,
        epoch: i64,
    ) -> Result<Claim> {
        let engine = self.database().engine;
        let session = session_id.as_str();
        let (worker, incarnation) = (lease.worker_id().as_str(), lease.incarnation().as_str());
        let run = |sql: &str, values: Vec<sea_orm::Value>| {
            let statement = engine.statement(sql, values);
            async move { tx.execute_raw(statement).await.map_err(failed("claim a session")) }
        };

        // So that there is a row to lock. Generation 0 is nobody's.
        run(
            "INSERT INTO fence (session_id, generation, worker_id, incarnation, released, epoch, next_seq) \
             VALUES ($1, 0, $2, $3, TRUE, $4, 1) ON CONFLICT (session_id) DO NOTHING",
            vec![session.into(), worker.into(), incarnation.into(), epoch.into()],
        )
        .await?;
        let holder = lock_holder(tx, engine, session).await?.ok_or(StoreError::Encoding("fence"))?;

        let same_run = holder.incarnation == *lease.incarnation();
        if holder.generation > generation || (holder.generation == generation && !same_run) {
            return Ok(Claim::Stale { current_generation: holder.generation });
        }
        if let (false, false, Some(until)) = (same_run, holder.released, holder.lease_until) {
            run(
                "UPDATE fence SET wanted_generation = $2 WHERE session_id = $1 \
                 AND (wanted_generation IS NULL OR wanted_generation < $2)",
                vec![session.into(), generation.into()],
            )
            .await?;
            return Ok(Claim::Busy { until });
        }
        run(
            "UPDATE fence SET generation = $2, worker_id = $3, incarnation = $4, released = FALSE, \
             wanted_generation = CASE WHEN wanted_generation > $2 THEN wanted_generation END, \
             next_seq = CASE WHEN epoch < $5 THEN 1 ELSE next_seq END, \
             epoch = CASE WHEN epoch < $5 THEN $5 ELSE epoch END \
             WHERE session_id = $1",
            vec![session.into(), generation.into(), worker.into(), incarnation.into(), epoch.into()],
        )
        .await?;
        Ok(Claim::Held(Fence {
            store: self.clone(),
            session_id: session_id.clone(),
            generation,
            incarnation: lease.incarnation().clone(),
            epoch: holder.epoch.max(epoch),
        }))
    }

    /// Frees a session that another worker wants from a claim of this run that nobody uses any more: its release failed, or the
    /// answer to it was lost. What may still run under it is fenced off.
    ///
    /// # Errors
    /// As the database.
    pub async fn release_left(&self, lease: &Lease, wanted: &Wanted) -> Result<()> {
        self.database()
            .execute(
                "release a session that was left",
                "UPDATE fence SET released = TRUE, wanted_generation = NULL \
                 WHERE session_id = $1 AND generation < $2 AND incarnation = $3",
                [wanted.session_id.as_str().into(), wanted.generation.into(), lease.incarnation().as_str().into()],
            )
            .await?;
        Ok(())
    }

    /// Who holds, or held, a session. `None`: nobody ever did.
    ///
    /// # Errors
    /// As the database.
    pub async fn holder(&self, session_id: &SessionId) -> Result<Option<Holder>> {
        let sql = holder_sql(self.database().engine);
        let row = self.database().one("read a fence", sql, [session_id.as_str().into()]).await?;
        let holder = row.as_ref().map(read_holder).transpose()?;
        Ok(holder.filter(|holder| holder.generation > 0))
    }

    /// The session's handle: wacore's `Backend`, the outbox writer and the send journal, in one. `data_key` is the
    /// session's own.
    #[must_use]
    pub fn backend(&self, fence: Fence, data_key: DataKey, lease: Lease) -> Arc<FencedBackend> {
        Arc::new(FencedBackend::new(fence, data_key, lease))
    }
}

/// A holder's lease counts only while it lasts, by the store's clock.
fn holder_sql(engine: Engine) -> String {
    format!(
        "SELECT generation, worker_id, incarnation, released, wanted_generation, epoch, \
         (SELECT until FROM worker_lease l WHERE l.worker_id = fence.worker_id \
          AND l.incarnation = fence.incarnation AND l.until > {}) AS lease_until \
         FROM fence WHERE session_id = $1",
        engine.now_ms()
    )
}

/// Locks the row before it reads the holder's lease: were both read in one statement, PostgreSQL would show the lease as
/// it was when the statement began to wait.
async fn lock_holder(tx: &DatabaseTransaction, engine: Engine, session: &str) -> Result<Option<Holder>> {
    let lock = format!("SELECT generation FROM fence WHERE session_id = $1{}", engine.for_update());
    tx.query_one_raw(engine.statement(lock, [session.into()])).await.map_err(failed("lock a fence"))?;
    let row = tx
        .query_one_raw(engine.statement(holder_sql(engine), [session.into()]))
        .await
        .map_err(failed("read a fence"))?;
    row.as_ref().map(read_holder).transpose()
}

fn read_holder(row: &QueryResult) -> Result<Holder> {
    Ok(Holder {
        generation: column(row, "generation")?,
        worker_id: id_column(row, "worker_id")?,
        incarnation: id_column(row, "incarnation")?,
        released: column(row, "released")?,
        lease_until: column::<Option<i64>>(row, "lease_until")?.map(moment).transpose()?,
        wanted_generation: column(row, "wanted_generation")?,
        epoch: column(row, "epoch")?,
    })
}
