//! Deleting a tenant: all of it, a week after its owner asked for it, and not before there is an archive.
//!
//! From the moment it is asked for the tenant only reads: its sessions are stopped, an [export](super::export) is made, and the
//! owner can fetch that or change their mind. When the week is over the linked devices are removed from their accounts, then
//! every row goes, in batches, and the people who belong to no other tenant go with it.
//!
//! One job goes through the steps. Each looks at how things stand and says when to look again, so a crash, a replica that takes
//! over or an archive that fails changes nothing but the time it takes.
//!
//! **Rest.** That nobody wishes a session to run says little: its worker may be away, or still have rows to ship. A session rests when no
//! worker has it any more. Its placement is given up only at a worker's word that it has let go with an empty outbox
//! ([`crate::sessions`]), or that its state is erased, before which the outbox is emptied too; a session whose worker is lost is first
//! placed on another of the same store, which ships what is left. So all that WhatsApp was told we have is stored by then. The
//! archive waits for that, for [`LETTING_GO`] at most. After that it is made as things are, which the log, the audit logs of the tenant
//! and of the installation and a counter tell. Until the week is over it is looked again and again: an archive that is older
//! than the last word of any session that rests now doesn't count, so a worker that comes back late leads to another one.
//!
//! **Invariants.** Nothing is deleted without a ready archive that was begun after the last word of each session that rests; and all
//! of them do, unless that was waited for in vain. A deletion that was taken back leaves everything but the sessions, which stay
//! stopped, as it was. Whether it still can be is one row's question: the point of no return is written before anything of the
//! tenant goes.

use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, Statement, sea_query::Expr,
};
use shared::{
    ids::{TenantId, UserId},
    time::Timestamp,
};

use super::{
    Tenant, TenantStatus,
    entity::{
        export::{self, ExportStatus},
        member, tenant,
    },
    export as exports,
    letters::{self, AboutDeletion},
    service,
};
use crate::{
    audit,
    auth::{Person, Role, TenantScope, people},
    error::{ApiError, ApiResult, Kind, database_error_kind},
    jobs::{self, Claimed, Handler, JobKind, NewJob, Outcome, schedule::installation},
    keys, mail,
    sessions::{self, entity::DesiredColumn, service::Wish},
    state::App,
};

/// How long a deletion can be taken back.
const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long after it was asked for the archive waits for sessions that no worker has let go of yet.
const LETTING_GO: Duration = Duration::from_secs(6 * 3600);
/// How soon to look again, once there is an archive, whether it still holds everything.
const LOOK_AGAIN_LATER: Duration = Duration::from_secs(6 * 3600);
/// How long it is tried to remove the linked devices from their accounts.
const UNLINKING: Duration = Duration::from_secs(24 * 3600);
/// How soon to look again whether a step is done.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How many sessions are told at once.
const SESSIONS: u64 = 50;
/// How many rows one statement deletes.
const BATCH: i64 = 1000;

/// What the audit logs say of an archive for which not all sessions rested.
const ARCHIVED_EARLY: &str = "tenant_archived_early";

/// Everything that belongs to a tenant, what refers to something before that. `$1` is the tenant, `$2` the batch.
const ROWS: &[&str] = &[
    "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM webhooks WHERE id IN (SELECT id FROM webhooks WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM usage_facts WHERE id IN (SELECT id FROM usage_facts WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM messages WHERE id IN (SELECT id FROM messages WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM outbox_rows_seen WHERE (session_id, epoch, outbox_seq) IN (SELECT session_id, epoch, outbox_seq \
     FROM outbox_rows_seen WHERE session_id IN (SELECT id FROM sessions WHERE tenant_id = $1) LIMIT $2)",
    "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM idempotency_keys WHERE (tenant_id, principal, idempotency_key) IN (SELECT tenant_id, principal, \
     idempotency_key FROM idempotency_keys WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM api_keys WHERE id IN (SELECT id FROM api_keys WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM quota_counters WHERE (tenant_id, quota, period, stripe) IN (SELECT tenant_id, quota, period, stripe \
     FROM quota_counters WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM audit_log WHERE (id, phase) IN (SELECT id, phase FROM audit_log WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM audit_heads WHERE tenant_id IN (SELECT tenant_id FROM audit_heads WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM subscriptions WHERE tenant_id IN (SELECT tenant_id FROM subscriptions WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM invitations WHERE id IN (SELECT id FROM invitations WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM ownership_offers WHERE tenant_id IN (SELECT tenant_id FROM ownership_offers WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM refresh_tokens WHERE token_hash IN (SELECT token_hash FROM refresh_tokens WHERE login_id IN \
     (SELECT id FROM logins WHERE tenant_id = $1) LIMIT $2)",
    "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM job_turns WHERE (kind, tenant_id) IN (SELECT kind, tenant_id FROM job_turns WHERE tenant_id = $1 LIMIT $2)",
    "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE tenant_id = $1 AND state <> 'running' LIMIT $2)",
];

/// Asks for the deletion of a tenant. Ring [`JobKind::DeleteTenant`] and [`JobKind::SendMail`] after the commit.
pub(super) async fn begin(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    owner: Person<'_>,
) -> ApiResult<Tenant> {
    let now = Timestamp::now();
    let done = tenant::Entity::update_many()
        .col_expr(tenant::Column::Status, Expr::value(TenantStatus::Deleting.into_value()))
        .col_expr(tenant::Column::DeleteAt, Expr::value(now.plus(GRACE)))
        .filter(tenant::Column::Id.eq(scope.id().clone()))
        .filter(tenant::Column::Status.eq(TenantStatus::Active))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 {
        return Err(Kind::Conflict.because("the account is not active").into());
    }
    let job = NewJob {
        tenant_id: scope.id().clone(),
        kind: JobKind::DeleteTenant,
        lane: format!("delete:{}", scope.id()),
        subject: scope.id().to_string(),
        run_at: now,
        // What can't be done yet is waited for.
        max_attempts: u32::MAX,
    };
    jobs::enqueue(tx, job).await?;
    let about = AboutDeletion { tenant_id: scope.id().clone(), owner: owner.id.clone() };
    mail::ask(app, tx, letters::DELETION, &about).await?;
    tracing::info!(tenant = %scope.id(), user = %owner.id, "a tenant is to be deleted");
    service::find(tx, scope).await
}

/// Takes the deletion back. If the operator suspended the tenant meanwhile, that holds from now on.
pub(super) async fn cancel(tx: &DatabaseTransaction, scope: &TenantScope) -> ApiResult<Tenant> {
    let done = tenant::Entity::update_many()
        .col_expr(
            tenant::Column::Status,
            Expr::case(tenant::Column::SuspendedMeanwhile.eq(true), TenantStatus::Suspended.into_value())
                .finally(TenantStatus::Active.into_value())
                .into(),
        )
        .col_expr(tenant::Column::SuspendedMeanwhile, Expr::value(false))
        .col_expr(tenant::Column::DeleteAt, Expr::value(None::<i64>))
        .filter(tenant::Column::Id.eq(scope.id().clone()))
        .filter(tenant::Column::Status.eq(TenantStatus::Deleting))
        .filter(tenant::Column::DeleteAt.gt(Timestamp::now()))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 {
        return Err(Kind::Conflict.because("the account isn't being deleted, or is past its time").into());
    }
    tracing::info!(tenant = %scope.id(), "the deletion of a tenant was taken back");
    service::find(tx, scope).await
}

/// Runs the jobs of deletions.
#[derive(Debug, Clone, Copy)]
pub struct Deleter;

#[async_trait]
impl Handler for Deleter {
    fn kind(&self) -> JobKind {
        JobKind::DeleteTenant
    }

    fn batch(&self) -> usize {
        1
    }

    fn concurrency(&self) -> usize {
        2
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            outcomes.push(match step(app, &job.tenant_id).await {
                Ok(None) => Outcome::Done,
                Ok(Some(at)) => Outcome::WaitUntil(at),
                Err(error) => {
                    let kind = match &error {
                        ApiError::Database(error) => database_error_kind(error),
                        ApiError::Defect(doing) => doing,
                        ApiError::Refused(_) => "refused",
                    };
                    tracing::warn!(kind, tenant = %job.tenant_id, "the deletion of a tenant waits");
                    Outcome::WaitUntil(Timestamp::now().plus(LOOK_AGAIN))
                }
            });
        }
        outcomes
    }
}

/// Does what can be done now; says when to look again, or nothing when all is done.
async fn step(app: &App, id: &TenantId) -> ApiResult<Option<Timestamp>> {
    let now = Timestamp::now();
    let Some(tenant) = tenant::Entity::find_by_id(id.clone()).one(app.db.read()).await? else { return Ok(None) };
    // Taken back, or suspended by the operator meanwhile: nothing more happens.
    let (TenantStatus::Deleting, Some(stored)) = (tenant.status, tenant.delete_at) else { return Ok(None) };
    let (delete_at, decided) = due(stored);
    let scope = TenantScope::of_row(id.clone());
    if tell_sessions(app, &scope, DesiredColumn::Running, &Wish::Stop).await? > 0 {
        return Ok(Some(now.plus(LOOK_AGAIN)));
    }
    if !decided {
        let asked_at = delete_at.minus(GRACE);
        let rest = rest(app, &scope).await?;
        let waits = rest.restless > 0 && now < asked_at.plus(LETTING_GO);
        if waits || !has_archive(app, &scope, &tenant, asked_at, rest).await? {
            return Ok(Some(now.plus(LOOK_AGAIN)));
        }
        if now < delete_at {
            return Ok(Some(delete_at.min(now.plus(LOOK_AGAIN_LATER))));
        }
        // From here on there is no way back, by whichever replica's clock.
        let done = tenant::Entity::update_many()
            .col_expr(tenant::Column::DeleteAt, Expr::value(-delete_at.as_millis()))
            .filter(tenant::Column::Id.eq(id.clone()))
            .filter(tenant::Column::Status.eq(TenantStatus::Deleting))
            .filter(tenant::Column::DeleteAt.eq(delete_at))
            .exec(app.db.autocommit())
            .await?;
        if done.rows_affected == 0 {
            return Ok(Some(now));
        }
    }
    for desired in [DesiredColumn::Stopped, DesiredColumn::LoggedOut] {
        if tell_sessions(app, &scope, desired, &Wish::Delete).await? > 0 {
            return Ok(Some(now.plus(LOOK_AGAIN)));
        }
    }
    let left = sessions::entity::Entity::all_of_tenant(&scope).limit(1).one(app.db.read()).await?;
    if left.is_some() && now < delete_at.plus(UNLINKING) {
        return Ok(Some(now.plus(LOOK_AGAIN)));
    }
    if !purge(app, &scope).await? {
        return Ok(Some(now.plus(LOOK_AGAIN)));
    }
    metrics::counter!("tenants_deleted_total").increment(1);
    tracing::info!(tenant = %id, "a tenant was deleted");
    Ok(None)
}

/// When a tenant is deleted, and whether that can't be taken back any more: the stored time is negative then. A replica whose clock
/// is ahead may come to that before the others think that the week is over.
pub(super) fn due(stored: Timestamp) -> (Timestamp, bool) {
    (Timestamp::from_millis(stored.as_millis().abs()), stored.as_millis() < 0)
}

/// Tells some of the sessions that are to be one thing to be another; says how many.
async fn tell_sessions(app: &App, scope: &TenantScope, from: DesiredColumn, wish: &Wish) -> ApiResult<usize> {
    let rows = sessions::entity::Entity::all_of_tenant(scope)
        .filter(sessions::entity::Column::Desired.eq(from))
        .order_by_asc(sessions::entity::Column::Id)
        .limit(SESSIONS)
        .all(app.db.read())
        .await?;
    for row in &rows {
        let tx = app.db.write().await?;
        sessions::service::wish(&tx, app, scope, &row.id, wish.clone()).await?;
        tx.commit().await?;
    }
    sessions::service::rung(app);
    Ok(rows.len())
}

/// Whether the sessions of a tenant rest.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// How many a worker may still have, or is yet to have.
    restless: u64,
    /// When a worker last said something of one of the others. It doesn't change any more: only who has a session is heard.
    last_word: Option<Timestamp>,
}

async fn rest(app: &App, scope: &TenantScope) -> Result<Rest, DbErr> {
    use sessions::entity::{Column, Entity};
    // What is to be logged out and has state is going to be placed for it.
    let restless =
        Condition::any().add(Column::WorkerId.is_not_null()).add(Column::Desired.eq(DesiredColumn::Running)).add(
            Condition::all()
                .add(Column::Desired.is_in([DesiredColumn::LoggedOut, DesiredColumn::Deleted]))
                .add(Column::StoreId.is_not_null()),
        );
    // In this order: one that comes to rest between the two is counted as restless, and not missed.
    let count = Entity::all_of_tenant(scope).filter(restless.clone()).count(app.db.read()).await?;
    // Of what was deleted meanwhile, too.
    let last_word: Option<Option<Timestamp>> = Entity::find()
        .select_only()
        .column_as(Column::ObservedAt.max(), "last_word")
        .filter(Column::TenantId.eq(scope.id().clone()))
        .filter(restless.not())
        .into_tuple()
        .one(app.db.read())
        .await?;
    Ok(Rest { restless: count, last_word: last_word.flatten() })
}

/// Whether there is an archive that was begun after the deletion was asked for, and after the last word of the sessions that rest;
/// asks for one if not.
async fn has_archive(
    app: &App,
    scope: &TenantScope,
    tenant: &Tenant,
    asked_at: Timestamp,
    rest: Rest,
) -> ApiResult<bool> {
    let mut counts = Condition::all().add(export::Column::CreatedAt.gte(asked_at));
    if let Some(last_word) = rest.last_word {
        counts = counts.add(export::Column::CreatedAt.gt(last_word));
    }
    let newest = export::Entity::find()
        .filter(export::Column::TenantId.eq(scope.id().clone()))
        // One is made at a time: the one that is being made is waited for, whether it counts or not.
        .filter(Condition::any().add(counts).add(export::Column::Status.eq(ExportStatus::Running)))
        .order_by_desc(export::Column::Id)
        .one(app.db.read())
        .await?
        .map(|row| row.status);
    match newest {
        Some(ExportStatus::Ready) => return Ok(true),
        Some(ExportStatus::Running) => return Ok(false),
        Some(ExportStatus::Failed) | None => {}
    }
    let owner = member::Entity::find()
        .filter(member::Column::TenantId.eq(tenant.id.clone()))
        .filter(member::Column::Role.eq(Role::Owner.as_str()))
        .one(app.db.read())
        .await?
        .map_or_else(UserId::nil, |member| member.user_id);
    let tx = app.db.write().await?;
    exports::request(&tx, scope, &owner).await?;
    // Told of the first try; what makes one fail can last.
    let early = rest.restless > 0 && newest.is_none();
    if early {
        for log in [scope.id(), &installation()] {
            audit::system(&app.audit, &tx, log, ARCHIVED_EARLY, ("tenant", scope.id().as_str())).await?;
        }
    }
    tx.commit().await?;
    if early {
        metrics::counter!("tenants_archived_early_total").increment(1);
        tracing::warn!(
            tenant = %scope.id(),
            sessions = rest.restless,
            "workers did not let go of sessions of a tenant that is to be deleted: its archive is made without waiting any longer"
        );
    }
    app.bell.ring(JobKind::ExportTenant);
    Ok(false)
}

/// Deletes every row of the tenant, its archives, and the people who belong to no other; no, if an operator did something else with
/// it meanwhile.
async fn purge(app: &App, scope: &TenantScope) -> ApiResult<bool> {
    exports::delete_all(app, scope).await?;
    loop {
        let left = sessions::entity::Entity::all_of_tenant(scope).limit(SESSIONS).all(app.db.read()).await?;
        for session in &left {
            sessions::reconciler::abandon(app, &session.id).await?;
        }
        if left.is_empty() {
            break;
        }
    }
    for statement in ROWS {
        loop {
            let values = [scope.id().clone().into(), BATCH.into()];
            let statement = Statement::from_sql_and_values(app.db.engine(), *statement, values);
            if app.db.autocommit().execute_raw(statement).await?.rows_affected() == 0 {
                break;
            }
        }
    }
    let tx = app.db.write().await?;
    let people = member::Entity::find().filter(member::Column::TenantId.eq(scope.id().clone())).all(&tx).await?;
    member::Entity::delete_many().filter(member::Column::TenantId.eq(scope.id().clone())).exec(&tx).await?;
    for person in people {
        if member::Entity::find().filter(member::Column::UserId.eq(person.user_id.clone())).one(&tx).await?.is_none() {
            people::forget(&tx, &person.user_id).await?;
        }
    }
    let gone = tenant::Entity::delete_many()
        .filter(tenant::Column::Id.eq(scope.id().clone()))
        .filter(tenant::Column::Status.eq(TenantStatus::Deleting))
        .exec(&tx)
        .await?;
    if gone.rows_affected == 0 {
        tx.rollback().await?;
        return Ok(false);
    }
    audit::system(&app.audit, &tx, &installation(), audit::TENANT_DELETED, ("tenant", scope.id().as_str())).await?;
    tx.commit().await?;
    keys::forget(app, scope.id()).await;
    Ok(true)
}
