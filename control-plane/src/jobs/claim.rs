//! Claiming: whose jobs are next, and taking them under a lease.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, Value};
use shared::{ids::TenantId, time::Timestamp};

use super::{
    Claimed, JobKind,
    fairness::{CREDIT, QUANTUM, Turns},
    queue::count,
};
use crate::db::{Db, millis, now_of};

/// Who claims, for how long, and how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    /// The runner.
    pub owner: &'a str,
    /// The term of the lease.
    pub lease: Duration,
    /// What sort of job.
    pub kind: JobKind,
    /// How many lanes.
    pub lanes: usize,
    /// How many jobs of each.
    pub batch: usize,
}

/// What a claim found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// One batch for each lane, oldest first.
    pub lanes: Vec<Vec<Claimed>>,
    /// Whether there may be more that is due at once.
    pub more: bool,
}

/// How many due jobs of a tenant a claim looks at to find lanes.
const WINDOW: u32 = 1_000;

/// Claims up to `batch` due jobs of each of up to `lanes` lanes that nobody works on, in fair turns of tenants.
pub(super) async fn claim(db: &Db, claim: Claim<'_>) -> Result<Found, DbErr> {
    let now = Timestamp::now();
    // Looked for first: on SQLite a write, even of nothing, waits for the writer.
    let mut turns = waiting(db, claim, now).await?;
    if turns.next().is_none() {
        return Ok(Found::default());
    }
    let claim = Claim { batch: if turns.contended() { claim.batch.min(QUANTUM) } else { claim.batch }, ..claim };
    let mut found = Found::default();
    let mut lanes_of: HashMap<TenantId, VecDeque<String>> = HashMap::new();
    let tx = db.write().await?;
    while found.lanes.len() < claim.lanes {
        let Some(tenant) = turns.next().cloned() else { break };
        let lanes = match lanes_of.entry(tenant.clone()) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => place.insert(due_lanes(&tx, claim, &tenant, now).await?),
        };
        let Some(lane) = lanes.pop_front() else {
            turns.exhausted(&tenant);
            continue;
        };
        if !lock_lane(&tx, &lane).await? {
            found.more = true;
            continue;
        }
        let jobs = claim_lane(&tx, claim, &lane, now).await?;
        if !jobs.is_empty() {
            turns.served(&tenant, jobs.len());
            found.lanes.push(jobs);
        }
    }
    found.more |= found.lanes.len() == claim.lanes;
    store(&tx, claim.kind, &turns).await?;
    tx.commit().await?;
    Ok(found)
}

/// The tenants that have due jobs in lanes that nobody works on, those served least first.
async fn waiting(db: &Db, claim: Claim<'_>, now: Timestamp) -> Result<Turns, DbErr> {
    // Each step of the recursion jumps to the next tenant in the index, however many jobs the last one has.
    let sql = format!(
        "WITH RECURSIVE waiting (tenant_id) AS (\
         SELECT MIN(tenant_id) FROM jobs WHERE kind = $1 AND state = 'ready' \
         UNION ALL SELECT (SELECT MIN(later.tenant_id) FROM jobs AS later WHERE later.kind = $1 \
         AND later.state = 'ready' AND later.tenant_id > waiting.tenant_id) FROM waiting \
         WHERE waiting.tenant_id IS NOT NULL) \
         SELECT waiting.tenant_id AS tenant_id, COALESCE(job_turns.virtual_time, 0) AS own, \
         (SELECT COALESCE(MAX(virtual_time), 0) FROM job_turns WHERE kind = $1) AS top FROM waiting \
         LEFT JOIN job_turns ON job_turns.kind = $1 AND job_turns.tenant_id = waiting.tenant_id \
         WHERE waiting.tenant_id IS NOT NULL AND EXISTS (SELECT 1 FROM jobs WHERE jobs.kind = $1 \
         AND jobs.state = 'ready' AND jobs.tenant_id = waiting.tenant_id AND jobs.run_at <= $2 \
         AND jobs.lane NOT IN (SELECT lane FROM jobs WHERE state = 'running')) ORDER BY own, waiting.tenant_id LIMIT {}",
        claim.lanes
    );
    let values: [Value; 2] = [claim.kind.as_str().into(), now.into()];
    let rows = db.read().query_all_raw(Statement::from_sql_and_values(db.engine(), sql, values)).await?;
    let top = rows.first().map_or(Ok(0), |row| row.try_get("", "top"))?;
    let waiting: Vec<(TenantId, i64)> = rows
        .iter()
        .map(|row| Ok::<_, DbErr>((row.try_get("", "tenant_id")?, row.try_get("", "own")?)))
        .collect::<Result<_, _>>()?;
    Ok(Turns::new(waiting, top))
}

/// The lanes of a tenant that have due jobs and that nobody works on, the oldest first.
async fn due_lanes(
    tx: &DatabaseTransaction,
    claim: Claim<'_>,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<VecDeque<String>, DbErr> {
    let sql = format!(
        "SELECT lane FROM (SELECT lane, run_at, id FROM jobs WHERE kind = $1 AND state = 'ready' AND tenant_id = $2 \
         AND run_at <= $3 AND lane NOT IN (SELECT lane FROM jobs WHERE state = 'running') \
         ORDER BY run_at, id LIMIT {WINDOW}) AS due GROUP BY lane ORDER BY MIN(run_at), MIN(id) LIMIT {}",
        claim.lanes
    );
    let values: [Value; 3] = [claim.kind.as_str().into(), tenant.clone().into(), now.into()];
    let rows = tx.query_all_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, values)).await?;
    rows.iter().map(|row| row.try_get("", "lane")).collect()
}

/// Notes what the served tenants have had. Another replica may have served one of them at the same time: then both count.
async fn store(tx: &DatabaseTransaction, kind: JobKind, turns: &Turns) -> Result<(), DbErr> {
    let mut served: Vec<_> = turns.to_store().to_vec();
    // In one order everywhere, so that two replicas never wait for each other.
    served.sort_unstable();
    for (tenant, time) in served {
        tx.execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "INSERT INTO job_turns (kind, tenant_id, virtual_time) VALUES ($1, $2, $3) ON CONFLICT (kind, tenant_id) \
             DO UPDATE SET virtual_time = CASE WHEN job_turns.virtual_time < excluded.virtual_time \
             THEN excluded.virtual_time ELSE job_turns.virtual_time + 1 END",
            [kind.as_str().into(), tenant.into(), time.into()],
        ))
        .await?;
    }
    Ok(())
}

/// Deletes the turns of tenants that lie so far behind that they start anew anyway.
pub(super) async fn forget_turns(db: &Db) -> Result<u64, DbErr> {
    let done = db
        .autocommit()
        .execute_raw(Statement::from_sql_and_values(
            db.engine(),
            "DELETE FROM job_turns WHERE virtual_time < (SELECT MAX(latest.virtual_time) FROM job_turns AS latest \
             WHERE latest.kind = job_turns.kind) - $1",
            [CREDIT.into()],
        ))
        .await?;
    Ok(done.rows_affected())
}

/// Keeps other claims out of a lane until the transaction ends. SQLite's single writer does so by itself.
async fn lock_lane(tx: &DatabaseTransaction, lane: &str) -> Result<bool, DbErr> {
    if tx.get_database_backend() != DbBackend::Postgres {
        return Ok(true);
    }
    locked(tx, "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS locked", lane).await
}

/// As [`lock_lane`], unless something of the lane waits or runs: then claims aren't kept from it for nothing.
pub(super) async fn lock_idle_lane(tx: &DatabaseTransaction, lane: &str) -> Result<bool, DbErr> {
    if tx.get_database_backend() != DbBackend::Postgres {
        return Ok(true);
    }
    let sql = "SELECT CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE lane = $1 AND state = 'ready') \
               OR EXISTS (SELECT 1 FROM jobs WHERE lane = $1 AND state = 'running') THEN FALSE \
               ELSE pg_try_advisory_xact_lock(hashtextextended($1, 0)) END AS locked";
    locked(tx, sql, lane).await
}

async fn locked(tx: &DatabaseTransaction, sql: &str, lane: &str) -> Result<bool, DbErr> {
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, [lane.into()]);
    let row = tx.query_one_raw(statement).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("advisory lock".into()))?.try_get("", "locked")
}

/// Claims the oldest due jobs of a lane whose lock is held, unless something of it runs. A statement of its own, so that
/// on PostgreSQL its snapshot is younger than the lock.
async fn claim_lane(
    tx: &DatabaseTransaction,
    claim: Claim<'_>,
    lane: &str,
    now: Timestamp,
) -> Result<Vec<Claimed>, DbErr> {
    let engine = tx.get_database_backend();
    let batch = u32::try_from(claim.batch).unwrap_or(u32::MAX);
    // ARRAY(…) makes PostgreSQL evaluate the locking subquery exactly once; as IN (…) it may be run again per row.
    let (open, skip, close) = match engine {
        DbBackend::Postgres => ("= ANY (ARRAY (", " FOR UPDATE SKIP LOCKED", "))"),
        _ => ("IN (", "", ")"),
    };
    let rows = tx
        .query_all_raw(Statement::from_sql_and_values(
            engine,
            format!(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, lease_epoch = lease_epoch + 1, \
                 lease_owner = $1, lease_until = {now_of_db} + $2 WHERE id {open}SELECT id FROM jobs WHERE lane = $3 \
                 AND kind = $4 AND state = 'ready' AND run_at <= $5 ORDER BY id LIMIT {batch}{skip}{close} \
                 AND NOT EXISTS (SELECT 1 FROM jobs AS other WHERE other.lane = $3 AND other.state = 'running') \
                 RETURNING id, tenant_id, kind, lane, subject, attempts, max_attempts, created_at, lease_owner, lease_epoch",
                now_of_db = now_of(engine),
            ),
            [
                claim.owner.into(),
                millis(claim.lease).into(),
                lane.into(),
                claim.kind.as_str().into(),
                now.into(),
            ],
        ))
        .await?;
    let mut jobs = rows.iter().map(claimed).collect::<Result<Vec<_>, _>>()?;
    jobs.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    Ok(jobs)
}

fn claimed(row: &QueryResult) -> Result<Claimed, DbErr> {
    let kind: String = row.try_get("", "kind")?;
    Ok(Claimed {
        id: row.try_get("", "id")?,
        tenant_id: row.try_get("", "tenant_id")?,
        kind: JobKind::named(&kind)
            .ok_or_else(|| DbErr::Type("a kind of job that this version doesn't know".into()))?,
        lane: row.try_get("", "lane")?,
        subject: row.try_get("", "subject")?,
        attempts: count(row.try_get("", "attempts")?),
        max_attempts: count(row.try_get("", "max_attempts")?),
        created_at: row.try_get("", "created_at")?,
        lease_owner: row.try_get("", "lease_owner")?,
        lease_epoch: row.try_get("", "lease_epoch")?,
    })
}
