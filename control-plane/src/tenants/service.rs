//! What can be done with tenants.

use sea_orm::{
    ActiveEnum, ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QuerySelect, Set, sea_query::Expr,
};
use shared::{
    ids::{TenantId, UserId},
    seal::DataKey,
    time::Timestamp,
};

use super::{Tenant, TenantStatus, dto::UpdateTenant, entity::tenant, members};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult},
    plans,
    state::App,
};

/// The key that seals this tenant's secrets.
///
/// # Errors
/// As the driver; a defect if the tenant is gone or its key doesn't open.
pub async fn data_key<C: ConnectionTrait>(app: &App, connection: &C, scope: &TenantScope) -> ApiResult<DataKey> {
    let tenant = find(connection, scope).await?;
    Ok(app.master_key.open_data_key("tenants", scope.id().as_str(), &tenant.sealed_data_key)?)
}

/// The tenant of a scope.
pub(crate) async fn find<C: ConnectionTrait>(connection: &C, scope: &TenantScope) -> ApiResult<Tenant> {
    tenant::Entity::find_by_id(scope.id().clone())
        .one(connection)
        .await?
        .ok_or(ApiError::Defect("a tenant with a scope is missing"))
}

/// As [`find`], with the row locked.
pub(crate) async fn find_locked(tx: &DatabaseTransaction, scope: &TenantScope) -> ApiResult<Tenant> {
    let mut query = tenant::Entity::find_by_id(scope.id().clone());
    if tx.get_database_backend() == DbBackend::Postgres {
        query = query.lock_exclusive();
    }
    query.one(tx).await?.ok_or(ApiError::Defect("a tenant with a scope is missing"))
}

/// Makes a tenant without people: only its API keys can use it.
pub(crate) async fn create_unowned(
    app: &App,
    tx: &DatabaseTransaction,
    name: &str,
    now: Timestamp,
) -> ApiResult<Tenant> {
    let id = TenantId::new();
    let (_, sealed_data_key) = app.master_key.new_data_key("tenants", id.as_str())?;
    let tenant = tenant::ActiveModel {
        id: Set(id),
        name: Set(name.to_owned()),
        status: Set(TenantStatus::Active),
        sealed_data_key: Set(sealed_data_key),
        last_position: Set(0),
        created_at: Set(now),
        retention_days: Set(None),
        delete_at: Set(None),
        suspended_meanwhile: Set(false),
    };
    Ok(tenant.insert(tx).await?)
}

/// Suspends a tenant or lets it go on; nothing if there is no such tenant. One that is being deleted goes on being deleted, and is
/// what was decided here if that is taken back: else whoever asks for a deletion in time could not be suspended.
pub(crate) async fn set_status(
    tx: &DatabaseTransaction,
    id: &TenantId,
    status: TenantStatus,
) -> ApiResult<Option<Tenant>> {
    tenant::Entity::update_many()
        .col_expr(tenant::Column::Status, Expr::value(status.into_value()))
        .filter(tenant::Column::Id.eq(id.clone()))
        .filter(tenant::Column::Status.ne(TenantStatus::Deleting))
        .exec(tx)
        .await?;
    tenant::Entity::update_many()
        .col_expr(tenant::Column::SuspendedMeanwhile, Expr::value(status == TenantStatus::Suspended))
        .filter(tenant::Column::Id.eq(id.clone()))
        .filter(tenant::Column::Status.eq(TenantStatus::Deleting))
        .exec(tx)
        .await?;
    Ok(tenant::Entity::find_by_id(id.clone()).one(tx).await?)
}

/// Makes a tenant and its first member, its owner.
pub(crate) async fn create(
    app: &App,
    tx: &DatabaseTransaction,
    name: &str,
    owner: &UserId,
    now: Timestamp,
) -> ApiResult<Tenant> {
    let tenant = create_unowned(app, tx, name, now).await?;
    members::add_owner(tx, tenant.id.clone(), owner, now).await?;
    plans::begin_trial(tx, &tenant.id, now).await?;
    Ok(tenant)
}

/// Changes what of a tenant can be changed by its people.
pub(crate) async fn update(tx: &DatabaseTransaction, scope: &TenantScope, wanted: UpdateTenant) -> ApiResult<Tenant> {
    let mut change = tenant::ActiveModel { id: Set(scope.id().clone()), ..Default::default() };
    if let Some(name) = wanted.name {
        change.name = Set(name);
    }
    if let Some(days) = wanted.retention_days {
        change.retention_days = Set(days.map(i64::from));
    }
    if change.is_changed() { Ok(change.update(tx).await?) } else { find(tx, scope).await }
}
