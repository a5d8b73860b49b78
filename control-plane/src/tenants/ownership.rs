//! Handing a tenant over: the owner offers it to somebody of the tenant, who accepts. Both confirm with their password.

use std::time::Duration;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, Set, Statement,
    sea_query::OnConflict,
};
use shared::{
    ids::{TenantId, UserId},
    time::Timestamp,
};

use super::{
    dto::{Member, OwnershipOffer},
    entity::ownership_offer as entity,
    letters::{self, AboutOffer},
    members,
};
use crate::{
    auth::{Person, Role, TenantScope},
    error::{ApiResult, Kind},
    extract::page::Page,
    mail,
    state::App,
    sweep,
};

/// How long an offer stands.
const STANDS: Duration = Duration::from_secs(7 * 24 * 3600);
/// What the former owner is afterwards.
const AFTERWARDS: Role = Role::Admin;
/// How many ended offers one sweep forgets.
const PRUNE_BATCH: i64 = 500;

fn dto(row: entity::Model) -> OwnershipOffer {
    OwnershipOffer { to_user_id: row.to_user_id, created_at: row.created_at, expires_at: row.expires_at }
}

/// The offer that stands, if one does.
pub(super) async fn get<C: ConnectionTrait>(connection: &C, scope: &TenantScope) -> ApiResult<OwnershipOffer> {
    Ok(dto(standing(connection, scope).await?.ok_or(Kind::NotFound)?))
}

/// The offer that stands, as a page of one or none: for archives.
pub(super) async fn page<C: ConnectionTrait>(connection: &C, scope: &TenantScope) -> ApiResult<Page<OwnershipOffer>> {
    Ok(Page { data: standing(connection, scope).await?.map(dto).into_iter().collect(), next_cursor: None })
}

/// The row of the offer that stands.
pub(super) async fn standing<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
) -> Result<Option<entity::Model>, DbErr> {
    entity::Entity::find_by_id(scope.id().clone())
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
        .one(connection)
        .await
}

/// Offers the tenant, in place of an earlier offer.
pub(super) async fn offer(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    owner: Person<'_>,
    to: &UserId,
) -> ApiResult<OwnershipOffer> {
    if members::role(tx, scope.id(), to).await?.is_none() {
        return Err(Kind::NotFound.into());
    }
    if to == owner.id {
        return Err(Kind::Conflict.because("you are the owner").into());
    }
    let now = Timestamp::now();
    let row = entity::Model {
        tenant_id: scope.id().clone(),
        to_user_id: to.clone(),
        created_at: now,
        expires_at: now.plus(STANDS),
    };
    let offered = entity::ActiveModel {
        tenant_id: Set(row.tenant_id.clone()),
        to_user_id: Set(row.to_user_id.clone()),
        created_at: Set(row.created_at),
        expires_at: Set(row.expires_at),
    };
    let mut replace = OnConflict::column(entity::Column::TenantId);
    replace.update_columns([entity::Column::ToUserId, entity::Column::CreatedAt, entity::Column::ExpiresAt]);
    entity::Entity::insert(offered).on_conflict(replace).exec_without_returning(tx).await?;
    let about = AboutOffer { tenant_id: scope.id().clone(), to_user_id: to.clone(), offered_by: owner.id.clone() };
    mail::ask(app, tx, letters::OWNERSHIP_OFFERED, &about).await?;
    Ok(dto(row))
}

/// Takes an offer back.
pub(super) async fn withdraw(tx: &DatabaseTransaction, scope: &TenantScope) -> ApiResult<()> {
    let done = entity::Entity::delete_many()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 { Err(Kind::NotFound.into()) } else { Ok(()) }
}

/// Accepts an offer: the person becomes the owner, and the owner an admin, at one moment.
pub(super) async fn accept(tx: &DatabaseTransaction, scope: &TenantScope, person: Person<'_>) -> ApiResult<Member> {
    let taken = entity::Entity::delete_many()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::ToUserId.eq(person.id.clone()))
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
        .exec(tx)
        .await?;
    if taken.rows_affected == 0 {
        return Err(Kind::NotFound.into());
    }
    // First down, then up: at no moment are there two, which the database would refuse.
    let down = Statement::from_sql_and_values(
        tx.get_database_backend(),
        "UPDATE members SET role = $1 WHERE tenant_id = $2 AND role = $3",
        [AFTERWARDS.as_str().into(), scope.id().clone().into(), Role::Owner.as_str().into()],
    );
    tx.execute_raw(down).await?;
    members::set_role(tx, scope.id(), person.id, person.role, Role::Owner).await?;
    tracing::info!(tenant = %scope.id(), user = %person.id, "a tenant has another owner");
    members::get(tx, scope, person.id).await
}

/// An offer to somebody who is gone is none.
pub(super) async fn forget_offer_to(tx: &DatabaseTransaction, tenant: &TenantId, user: &UserId) -> ApiResult<()> {
    entity::Entity::delete_many()
        .filter(entity::Column::TenantId.eq(tenant.clone()))
        .filter(entity::Column::ToUserId.eq(user.clone()))
        .exec(tx)
        .await?;
    Ok(())
}

/// Forgets offers that have expired.
pub(super) async fn prune(app: &App) -> Result<u64, DbErr> {
    let statement = "DELETE FROM ownership_offers WHERE tenant_id IN \
                     (SELECT tenant_id FROM ownership_offers WHERE expires_at <= $1 LIMIT $2)";
    sweep::before(app, PRUNE_BATCH, statement, Timestamp::now()).await
}
