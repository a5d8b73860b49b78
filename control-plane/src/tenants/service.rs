//! What can be done with tenants.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, Set,
};
use shared::{
    ids::{TenantId, UserId},
    seal::DataKey,
    time::Timestamp,
};

use super::{
    Tenant, TenantStatus,
    entity::{member, tenant},
};
use crate::{
    auth::{Role, TenantScope},
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

/// Makes a tenant and its first member, its owner.
pub(crate) async fn create(
    app: &App,
    tx: &DatabaseTransaction,
    name: &str,
    owner: &UserId,
    now: Timestamp,
) -> ApiResult<Tenant> {
    let id = TenantId::new();
    let (_, sealed_data_key) = app.master_key.new_data_key("tenants", id.as_str())?;
    let tenant = tenant::ActiveModel {
        id: Set(id.clone()),
        name: Set(name.to_owned()),
        status: Set(TenantStatus::Active),
        sealed_data_key: Set(sealed_data_key),
        last_position: Set(0),
        created_at: Set(now),
    }
    .insert(tx)
    .await?;
    member::ActiveModel {
        tenant_id: Set(id),
        user_id: Set(owner.clone()),
        role: Set(Role::Owner.as_str().into()),
        created_at: Set(now),
    }
    .insert(tx)
    .await?;
    plans::begin_trial(tx, &tenant.id, now).await?;
    Ok(tenant)
}

/// The tenant that a person logs in to: the one they have belonged to longest.
pub(crate) async fn home_of<C: ConnectionTrait>(connection: &C, user: &UserId) -> ApiResult<Option<(Tenant, Role)>> {
    let member = member::Entity::find()
        .filter(member::Column::UserId.eq(user.clone()))
        .order_by_asc(member::Column::CreatedAt)
        .order_by_asc(member::Column::TenantId)
        .one(connection)
        .await?;
    let Some(member) = member else { return Ok(None) };
    let role = Role::from_stored(&member.role).ok_or(ApiError::Defect("a stored role is not known"))?;
    Ok(Some((find(connection, &TenantScope::of_row(member.tenant_id)).await?, role)))
}

/// Gives the tenant another name.
pub(crate) async fn rename(tx: &DatabaseTransaction, scope: &TenantScope, name: &str) -> ApiResult<Tenant> {
    let change = tenant::ActiveModel { id: Set(scope.id().clone()), name: Set(name.to_owned()), ..Default::default() };
    Ok(change.update(tx).await?)
}
