//! All that a tenant has, as one archive: a ZIP of files of JSON lines, in the shapes of the API.
//!
//! Asking for one commits a row and a job. The job reads page by page, writes a file that has no name, and stores it whole
//! ([`crate::objects`]); so memory stays small however much there is, and nothing is left if the process dies. Secrets (keys,
//! webhook secrets, tokens and passwords, the state of sessions) are not in it, nor what we keep for our own work: jobs, answers to repeat, seals.
//! `docs/accounts.md` lists its files. It is deleted after a week.
//!
//! **Invariants.** One archive of a tenant is made at a time, which a unique index sees to. A row is deleted after its file.

mod archive;
mod build;

use std::time::Duration;

pub use build::Exporter;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect, Set, SqlErr, sea_query::OnConflict,
};
use serde::Serialize;
use shared::{
    ids::{ExportId, TenantId, UserId},
    time::Timestamp,
};
use utoipa::ToSchema;

use super::{
    TenantStatus, TenantTable,
    entity::export::{self as entity, ExportStatus},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, Kind},
    extract::page::{Page, PageQuery},
    jobs::{self, JobKind, NewJob},
    objects::{ObjectError, Reading},
    state::App,
};

/// How long an archive can be fetched.
const LIVES: Duration = Duration::from_secs(7 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How many an owner has made within a day.
const MOST_IN_A_DAY: u64 = 5;
/// How often the making of one is tried.
const ATTEMPTS: u32 = 5;
/// How many ended archives one sweep deletes.
const PRUNE_BATCH: u64 = 50;
/// How many batches one sweep takes: deleting a file is a call of its own.
const PRUNE_BATCHES: u32 = 20;

/// An archive of all that the account has.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Export {
    /// Its id.
    pub id: ExportId,
    /// How far it is.
    pub status: ExportStatus,
    /// How long the archive is, in bytes, once it is ready.
    #[schema(example = 1_048_576)]
    pub bytes: Option<i64>,
    /// Who asked for it.
    pub requested_by: UserId,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was ready, or given up.
    pub finished_at: Option<Timestamp>,
    /// When it is deleted.
    pub expires_at: Timestamp,
}

impl From<entity::Model> for Export {
    fn from(row: entity::Model) -> Self {
        Self {
            id: row.id,
            status: row.status,
            bytes: row.bytes,
            requested_by: row.requested_by,
            created_at: row.created_at,
            finished_at: row.finished_at,
            expires_at: row.expires_at,
        }
    }
}

/// What an archive is stored as.
fn name_of(tenant: &TenantId, id: &ExportId) -> String {
    format!("exports/{tenant}/{id}.zip")
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Unavailable | ObjectError::Refused | ObjectError::NoBucket => {
                tracing::warn!(%error, "a file was not to be had");
                Kind::Unavailable.because("the object store doesn't answer").into()
            }
            ObjectError::Missing => Self::Defect("a file of a row is missing"),
            ObjectError::File(_) => Self::Defect("a file can't be read"),
            ObjectError::Settings => Self::Defect("the object store's settings can't be used"),
        }
    }
}

/// Asks for an archive, as the owner may a few times a day: each is all that the account has, and is kept for a week. Ring
/// [`JobKind::ExportTenant`] after the commit.
pub(super) async fn request_by_owner(tx: &DatabaseTransaction, scope: &TenantScope, by: &UserId) -> ApiResult<Export> {
    let begun = entity::Entity::find()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Status.ne(ExportStatus::Failed))
        .filter(entity::Column::CreatedAt.gt(Timestamp::now().minus(DAY)))
        .count(tx)
        .await?;
    // Two that ask at once can't both get one more: only one archive is made at a time.
    if begun >= MOST_IN_A_DAY {
        return Err(Kind::Conflict
            .because(format!("{MOST_IN_A_DAY} archives were asked for within a day: use one of those"))
            .into());
    }
    request(tx, scope, by).await
}

/// Asks for an archive. Ring [`JobKind::ExportTenant`] after the commit.
pub(super) async fn request(tx: &DatabaseTransaction, scope: &TenantScope, by: &UserId) -> ApiResult<Export> {
    let now = Timestamp::now();
    let row = entity::Model {
        id: ExportId::new(),
        tenant_id: scope.id().clone(),
        requested_by: by.clone(),
        status: ExportStatus::Running,
        bytes: None,
        created_at: now,
        finished_at: None,
        expires_at: now.plus(LIVES),
    };
    let inserted = entity::Entity::insert(entity::ActiveModel {
        id: Set(row.id.clone()),
        tenant_id: Set(row.tenant_id.clone()),
        requested_by: Set(row.requested_by.clone()),
        status: Set(row.status),
        bytes: Set(None),
        created_at: Set(row.created_at),
        finished_at: Set(None),
        expires_at: Set(row.expires_at),
    })
    .on_conflict(OnConflict::new().do_nothing().to_owned())
    .exec_without_returning(tx)
    .await?;
    if inserted == 0 {
        return Err(Kind::Conflict.because("an archive is being made already").into());
    }
    let job = NewJob {
        tenant_id: scope.id().clone(),
        kind: JobKind::ExportTenant,
        lane: format!("export:{}", scope.id()),
        subject: row.id.to_string(),
        run_at: now,
        max_attempts: ATTEMPTS,
    };
    jobs::enqueue(tx, job).await?;
    Ok(row.into())
}

/// Has an archive made after all whose job was given up and is being redriven.
async fn revive(tx: &DatabaseTransaction, scope: &TenantScope, id: &ExportId) -> ApiResult<()> {
    let refused = |why: &str| -> ApiError { Kind::Conflict.because(why).into() };
    let tenant = TenantTable::find_by_id(scope.id().clone()).one(tx).await?;
    match tenant.map(|tenant| tenant.status) {
        None => return Err(refused("the account is gone")),
        Some(TenantStatus::Deleting) => {
            return Err(refused("the account is being deleted, which makes an archive of its own"));
        }
        Some(TenantStatus::Active | TenantStatus::Suspended) => {}
    }
    let found = entity::Entity::find_by_id(id.clone())
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .one(tx)
        .await?
        .ok_or_else(|| refused("the archive is not kept any more"))?;
    match found.status {
        ExportStatus::Failed => {}
        ExportStatus::Ready => return Err(refused("the archive is there")),
        // Its job is all that it lacks.
        ExportStatus::Running => return Ok(()),
    }
    // Of two that are made at once the unique index refuses one.
    let begun = entity::Entity::update_many()
        .set(entity::ActiveModel {
            status: Set(ExportStatus::Running),
            bytes: Set(None),
            finished_at: Set(None),
            expires_at: Set(Timestamp::now().plus(LIVES)),
            ..Default::default()
        })
        .filter(entity::Column::Id.eq(id.clone()))
        .filter(entity::Column::Status.eq(ExportStatus::Failed))
        .exec(tx)
        .await
        .map_err(|error| match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => refused("another archive of the account is being made"),
            _ => error.into(),
        })?;
    if begun.rows_affected == 0 {
        return Err(refused("the archive is not kept any more"));
    }
    Ok(())
}

/// The tenant's archives, the newest first.
pub(super) async fn list<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<Export>> {
    let mut query = entity::Entity::find().filter(entity::Column::TenantId.eq(scope.id().clone()));
    if let Some(before) = page.before::<ExportId>()? {
        query = query.filter(entity::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(entity::Column::Id).limit(page.rows()).all(connection).await?;
    Ok(page.page(rows, |row| &row.id, Export::from))
}

/// One of them.
pub(super) async fn get<C: ConnectionTrait>(connection: &C, scope: &TenantScope, id: &ExportId) -> ApiResult<Export> {
    let row = entity::Entity::find_by_id(id.clone())
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .one(connection)
        .await?;
    Ok(row.ok_or(Kind::NotFound)?.into())
}

/// The archive itself.
pub(super) async fn read(app: &App, scope: &TenantScope, id: &ExportId) -> ApiResult<Reading> {
    let export = get(app.db.read(), scope, id).await?;
    match export.status {
        // The sweep deletes the file, and then the row.
        ExportStatus::Ready if export.expires_at <= Timestamp::now() => Err(Kind::NotFound.into()),
        ExportStatus::Ready => match app.objects.read(&name_of(scope.id(), id)).await {
            Err(ObjectError::Missing) => {
                tracing::warn!(export = %id, "the file of an archive is missing: do all replicas have the same object store?");
                Err(Kind::Conflict.because("the archive is gone: ask for another").into())
            }
            read => Ok(read?),
        },
        ExportStatus::Running => Err(Kind::Conflict.because("the archive is still being made").into()),
        ExportStatus::Failed => Err(Kind::Conflict.because("the archive could not be made: ask for another").into()),
    }
}

/// Deletes all archives of a tenant.
pub(super) async fn delete_all(app: &App, scope: &TenantScope) -> ApiResult<()> {
    loop {
        let some = entity::Entity::find()
            .filter(entity::Column::TenantId.eq(scope.id().clone()))
            .limit(PRUNE_BATCH)
            .all(app.db.read())
            .await?;
        if some.is_empty() {
            return Ok(());
        }
        for row in some {
            app.objects.delete(&name_of(&row.tenant_id, &row.id)).await?;
            entity::Entity::delete_by_id(row.id).exec(app.db.autocommit()).await?;
        }
    }
}

/// Deletes archives that are past their time, a bounded number of them: the file, then its row. One that the store doesn't let go
/// holds up none of the others.
pub(super) async fn prune(app: &App) -> Result<(), DbErr> {
    let mut after = None;
    for _ in 0..PRUNE_BATCHES {
        let mut ended = entity::Entity::find()
            .filter(entity::Column::ExpiresAt.lte(Timestamp::now()))
            .filter(entity::Column::Status.ne(ExportStatus::Running));
        if let Some(after) = after {
            ended = ended.filter(entity::Column::Id.gt(after));
        }
        let ended = ended.order_by_asc(entity::Column::Id).limit(PRUNE_BATCH).all(app.db.read()).await?;
        for row in &ended {
            if let Err(error) = app.objects.delete(&name_of(&row.tenant_id, &row.id)).await {
                tracing::warn!(%error, export = %row.id, "an archive was not deleted; trying again");
                continue;
            }
            entity::Entity::delete_by_id(row.id.clone()).exec(app.db.autocommit()).await?;
        }
        match ended.last() {
            Some(last) if ended.len() as u64 == PRUNE_BATCH && !app.stop.is_cancelled() => {
                after = Some(last.id.clone())
            }
            _ => break,
        }
    }
    Ok(())
}
