//! Tenants and their sessions, seen from outside.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, FromQueryResult, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect, Statement,
};
use shared::ids::{SessionId, TenantId};

use super::dto::{AdminSession, AdminTenant, AdminTenantDetail, SessionFilter, TenantFilter};
use crate::{
    error::{ApiResult, Kind},
    extract::page::{Page, PageQuery},
    keys,
    sessions::{entity as session, status::Status},
    state::App,
    tenants::{Tenant, TenantColumn, TenantStatus, TenantTable, service},
};

/// Tenants, the newest first.
pub(super) async fn list<C: ConnectionTrait>(
    connection: &C,
    filter: &TenantFilter,
    page: &PageQuery,
) -> ApiResult<Page<AdminTenant>> {
    let mut query = TenantTable::find();
    if let Some(status) = filter.status {
        query = query.filter(TenantColumn::Status.eq(status));
    }
    if let Some(before) = page.before::<TenantId>()? {
        query = query.filter(TenantColumn::Id.lt(before));
    }
    let rows = query.order_by_desc(TenantColumn::Id).limit(page.rows()).all(connection).await?;
    Ok(page.page(rows, |row| &row.id, AdminTenant::from))
}

#[derive(FromQueryResult)]
struct Counts {
    members: i64,
    api_keys: i64,
    sessions: i64,
    placed_sessions: i64,
}

/// A tenant, and how much it has.
pub(super) async fn get<C: ConnectionTrait>(connection: &C, id: &TenantId) -> ApiResult<AdminTenantDetail> {
    let tenant: Tenant = TenantTable::find_by_id(id.clone()).one(connection).await?.ok_or(Kind::NotFound)?;
    let counts = Counts::find_by_statement(Statement::from_sql_and_values(
        connection.get_database_backend(),
        "SELECT (SELECT COUNT(*) FROM members WHERE tenant_id = $1) AS members, \
         (SELECT COUNT(*) FROM api_keys WHERE tenant_id = $1 AND revoked_at IS NULL) AS api_keys, \
         (SELECT COUNT(*) FROM sessions WHERE tenant_id = $1 AND deleted_at IS NULL) AS sessions, \
         (SELECT COUNT(*) FROM sessions WHERE tenant_id = $1 AND worker_id IS NOT NULL) AS placed_sessions",
        [id.clone().into()],
    ))
    .one(connection)
    .await?
    .unwrap_or(Counts { members: 0, api_keys: 0, sessions: 0, placed_sessions: 0 });
    let counted = |count: i64| u64::try_from(count).unwrap_or_default();
    Ok(AdminTenantDetail {
        members: counted(counts.members),
        api_keys: counted(counts.api_keys),
        sessions: counted(counts.sessions),
        placed_sessions: counted(counts.placed_sessions),
        last_event_position: tenant.last_position,
        tenant: tenant.into(),
    })
}

/// Makes sure that there is such a tenant.
pub(super) async fn known<C: ConnectionTrait>(connection: &C, id: &TenantId) -> ApiResult<()> {
    let found = TenantTable::find_by_id(id.clone()).count(connection).await?;
    if found == 0 { Err(Kind::NotFound.into()) } else { Ok(()) }
}

/// Suspends a tenant, or lets it go on.
pub(super) async fn set_status(app: &App, id: &TenantId, status: TenantStatus) -> ApiResult<AdminTenant> {
    let tx = app.db.write().await?;
    let tenant = service::set_status(&tx, id, status).await?.ok_or(Kind::NotFound)?;
    tx.commit().await?;
    keys::forget(app, id).await;
    Ok(tenant.into())
}

/// Where sessions run, the newest first.
pub(super) async fn sessions<C: ConnectionTrait>(
    connection: &C,
    filter: SessionFilter,
    page: &PageQuery,
) -> ApiResult<Page<AdminSession>> {
    let mut query = session::Entity::find().filter(session::Column::DeletedAt.is_null());
    if let Some(tenant) = filter.tenant_id {
        query = query.filter(session::Column::TenantId.eq(tenant));
    }
    if let Some(worker) = filter.worker_id {
        query = query.filter(session::Column::WorkerId.eq(worker));
    }
    if let Some(before) = page.before::<SessionId>()? {
        query = query.filter(session::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(session::Column::Id).limit(page.rows()).all(connection).await?;
    Ok(page.page(rows, |row| &row.id, AdminSession::from))
}

#[derive(FromQueryResult)]
struct ByStatus {
    status: String,
    count: i64,
}

async fn grouped<C: ConnectionTrait>(connection: &C, query: &str) -> Result<Vec<ByStatus>, DbErr> {
    ByStatus::find_by_statement(Statement::from_string(connection.get_database_backend(), query)).all(connection).await
}

/// How many tenants there are, by status.
pub(super) async fn counts<C: ConnectionTrait>(connection: &C) -> Result<BTreeMap<String, i64>, DbErr> {
    let rows = grouped(connection, "SELECT status, COUNT(*) AS count FROM tenants GROUP BY status").await?;
    Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
}

/// How many sessions there are, by the state that their owners were last told.
pub(super) async fn session_counts<C: ConnectionTrait>(connection: &C) -> Result<BTreeMap<&'static str, i64>, DbErr> {
    let query = "SELECT published_status AS status, COUNT(*) AS count FROM sessions WHERE deleted_at IS NULL \
                 GROUP BY published_status";
    let mut counts = BTreeMap::new();
    for row in grouped(connection, query).await? {
        // One state has as many texts as it has reasons; another version's have none that we know.
        let state = crate::db::from_json::<Status>(&row.status).map_or("unknown", |status| status.status.as_str());
        *counts.entry(state).or_default() += row.count;
    }
    Ok(counts)
}
