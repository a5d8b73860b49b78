//! The job that makes an archive.

use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{ColumnTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect, sea_query::Expr};
use serde::Serialize;
use shared::{
    ids::{ExportId, MessageId, SessionId},
    seal::DataKey,
    time::Timestamp,
};

use super::{
    super::{data_key, entity::export as entity, invitations, members, ownership, service},
    ExportStatus, LIVES,
    archive::{Archive, ArchiveError},
    name_of,
};
use crate::{
    audit,
    auth::{self, TenantScope},
    error::{ApiError, ApiResult, database_error_kind},
    events,
    extract::page::{Page, PageQuery},
    jobs::{Claimed, Handler, JobKind, Outcome},
    keys, messages,
    objects::ObjectError,
    plans, sessions,
    state::App,
    usage, webhooks,
};

/// How many archives this process makes at once.
const CONCURRENCY: usize = 2;
/// How long to wait after a failure.
const WAIT: Duration = Duration::from_secs(30);

/// An archive could not be made now.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("a part could not be read")]
    Read(ApiError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error("a part has no JSON form")]
    Json(#[from] serde_json::Error),
}

impl From<ApiError> for ExportError {
    fn from(error: ApiError) -> Self {
        Self::Read(error)
    }
}

impl From<DbErr> for ExportError {
    fn from(error: DbErr) -> Self {
        Self::Read(error.into())
    }
}

/// Runs the jobs of archives.
#[derive(Debug, Clone, Copy)]
pub struct Exporter;

#[async_trait]
impl Handler for Exporter {
    fn kind(&self) -> JobKind {
        JobKind::ExportTenant
    }

    fn batch(&self) -> usize {
        1
    }

    fn concurrency(&self) -> usize {
        CONCURRENCY
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            outcomes.push(match make(app, &job).await {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    let kind = match &error {
                        ExportError::Read(ApiError::Database(error)) => database_error_kind(error),
                        _ => "",
                    };
                    tracing::warn!(%error, kind, tenant = %job.tenant_id, attempt = job.attempts, "an archive was not made");
                    if job.is_last_attempt() {
                        match self.give_up(app, &job).await {
                            Ok(()) => Outcome::Dead("the archive could not be made"),
                            Err(_) => Outcome::WaitUntil(Timestamp::now().plus(WAIT)),
                        }
                    } else {
                        Outcome::RetryAt(Timestamp::now().plus(WAIT), "the archive could not be made")
                    }
                }
            });
        }
        outcomes
    }

    async fn give_up(&self, app: &App, job: &Claimed) -> Result<(), DbErr> {
        let Ok(id) = job.subject.parse::<ExportId>() else { return Ok(()) };
        finish(app, &id, ExportStatus::Failed, None).await
    }
}

async fn finish(app: &App, id: &ExportId, status: ExportStatus, bytes: Option<i64>) -> Result<(), DbErr> {
    use sea_orm::ActiveEnum;
    let now = Timestamp::now();
    entity::Entity::update_many()
        .col_expr(entity::Column::Status, Expr::value(status.into_value()))
        .col_expr(entity::Column::Bytes, Expr::value(bytes))
        .col_expr(entity::Column::FinishedAt, Expr::value(now))
        .col_expr(entity::Column::ExpiresAt, Expr::value(now.plus(LIVES)))
        .filter(entity::Column::Id.eq(id.clone()))
        .exec(app.db.autocommit())
        .await?;
    metrics::counter!("tenant_exports_total", "outcome" => status.into_value()).increment(1);
    Ok(())
}

async fn make(app: &App, job: &Claimed) -> Result<(), ExportError> {
    let scope = TenantScope::of_row(job.tenant_id.clone());
    let Ok(id) = job.subject.parse::<ExportId>() else { return Ok(()) };
    let row = entity::Entity::find_by_id(id.clone()).one(app.db.read()).await?;
    if row.is_none_or(|row| row.status != ExportStatus::Running) {
        return Ok(());
    }
    let file = write(app, &scope).await?;
    let bytes = app.objects.store(&name_of(scope.id(), &id), file).await?;
    finish(app, &id, ExportStatus::Ready, i64::try_from(bytes).ok()).await?;
    Ok(())
}

async fn write(app: &App, scope: &TenantScope) -> Result<std::fs::File, ExportError> {
    let db = app.db.read();
    let key = data_key(app, db, scope).await?;
    let archive = Archive::begin();
    archive.file("tenant.json").await?;
    let tenant = super::super::TenantDto::from(service::find(db, scope).await?);
    archive.bytes(serde_json::to_vec_pretty(&tenant)?).await?;
    for part in Part::ALL {
        archive.file(part.file()).await?;
        let mut cursor = None;
        loop {
            let (lines, next) = part.page(app, scope, &key, &PageQuery::largest(cursor)).await?;
            archive.bytes(lines).await?;
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
    }
    Ok(archive.end().await?)
}

/// One file of JSON lines.
#[derive(Debug, Clone, Copy)]
enum Part {
    Members,
    Logins,
    Invitations,
    OwnershipOffer,
    Plan,
    Subscription,
    Quota,
    ApiKeys,
    Sessions,
    Messages,
    Events,
    Webhooks,
    Deliveries,
    Usage,
    AuditLog,
}

impl Part {
    const ALL: [Self; 15] = [
        Self::Members,
        Self::Logins,
        Self::Invitations,
        Self::OwnershipOffer,
        Self::Plan,
        Self::Subscription,
        Self::Quota,
        Self::ApiKeys,
        Self::Sessions,
        Self::Messages,
        Self::Events,
        Self::Webhooks,
        Self::Deliveries,
        Self::Usage,
        Self::AuditLog,
    ];

    const fn file(self) -> &'static str {
        match self {
            Self::Members => "members.jsonl",
            Self::Logins => "logins.jsonl",
            Self::Invitations => "invitations.jsonl",
            Self::OwnershipOffer => "ownership-offer.jsonl",
            Self::Plan => "plan.jsonl",
            Self::Subscription => "subscription.jsonl",
            Self::Quota => "quota.jsonl",
            Self::ApiKeys => "api-keys.jsonl",
            Self::Sessions => "sessions.jsonl",
            Self::Messages => "messages.jsonl",
            Self::Events => "events.jsonl",
            Self::Webhooks => "webhooks.jsonl",
            Self::Deliveries => "deliveries.jsonl",
            Self::Usage => "usage.jsonl",
            Self::AuditLog => "audit-log.jsonl",
        }
    }

    /// Some rows, one line each, and where to go on.
    async fn page(
        self,
        app: &App,
        scope: &TenantScope,
        key: &DataKey,
        page: &PageQuery,
    ) -> Result<(Vec<u8>, Option<String>), ExportError> {
        let db = app.db.read();
        match self {
            Self::Members => lines(&members::list(db, scope, page).await?),
            Self::Logins => lines(&auth::logins_of_tenant(db, scope, page).await?),
            Self::Invitations => lines(&invitations::list(db, scope, page).await?),
            Self::OwnershipOffer => lines(&ownership::page(db, scope).await?),
            Self::Plan => lines(&plans::archive::plan(app, scope).await?),
            Self::Subscription => lines(&plans::archive::subscription(db, scope).await?),
            Self::Quota => lines(&plans::archive::quota_months(db, scope, page).await?),
            Self::ApiKeys => lines(&keys::service::list(db, scope, page).await?),
            Self::Sessions => lines(&sessions_page(app, scope, page).await?),
            Self::Messages => lines(&messages_page(app, scope, page).await?),
            Self::Events => lines(&events_page(app, scope, key, page).await?),
            Self::Webhooks => lines(&webhooks::service::list(db, scope, page).await?),
            Self::Deliveries => lines(&webhooks::service::all_deliveries(db, scope, page).await?),
            Self::Usage => lines(&usage::page(db, scope, page).await?),
            Self::AuditLog => lines(&audit::everything(db, scope, page).await?),
        }
    }
}

fn lines<T: Serialize>(page: &Page<T>) -> Result<(Vec<u8>, Option<String>), ExportError> {
    let mut text = Vec::new();
    for row in &page.data {
        serde_json::to_writer(&mut text, row)?;
        text.push(b'\n');
    }
    Ok((text, page.next_cursor.clone()))
}

async fn sessions_page(app: &App, scope: &TenantScope, page: &PageQuery) -> ApiResult<Page<sessions::dto::SessionDto>> {
    let mut query = sessions::entity::Entity::all_of_tenant(scope);
    if let Some(before) = page.before::<SessionId>()? {
        query = query.filter(sessions::entity::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(sessions::entity::Column::Id).limit(page.rows()).all(app.db.read()).await?;
    let Page { data, next_cursor } = page.page(rows, |row| &row.id, |row| row);
    let data = data.into_iter().map(|row| sessions::dto::SessionDto::of(app, row, None)).collect::<Result<_, _>>()?;
    Ok(Page { data, next_cursor })
}

async fn messages_page(app: &App, scope: &TenantScope, page: &PageQuery) -> ApiResult<Page<messages::dto::MessageDto>> {
    let mut query = messages::entity::Entity::all_of_tenant(scope);
    if let Some(before) = page.before::<MessageId>()? {
        query = query.filter(messages::entity::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(messages::entity::Column::Id).limit(page.rows()).all(app.db.read()).await?;
    Ok(page.page(rows, |row| &row.id, messages::dto::MessageDto::from))
}

async fn events_page(
    app: &App,
    scope: &TenantScope,
    key: &DataKey,
    page: &PageQuery,
) -> ApiResult<Page<events::Envelope>> {
    let events = events::page(&app.db, scope, key, page.before()?, page.rows()).await?;
    Ok(page.page(events, |event| &event.position, |event| event))
}
