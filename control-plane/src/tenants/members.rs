//! Who belongs to a tenant, and as what.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Set, Statement,
    sea_query::{Expr, OnConflict},
};
use shared::{
    ids::{TenantId, UserId},
    time::Timestamp,
};

use super::{
    Tenant,
    dto::{Member, Membership},
    entity::{member, tenant},
    invitations, ownership,
    policy::{self, RoleRefused},
};
use crate::{
    auth::{Person, Role, TenantScope, people},
    error::{ApiError, ApiResult, Kind},
    extract::page::{Page, PageQuery},
};

impl From<RoleRefused> for ApiError {
    fn from(refused: RoleRefused) -> Self {
        match refused {
            RoleRefused::Owner => {
                Kind::Conflict.because("there is one owner, who hands the account over by an offer that is accepted")
            }
            RoleRefused::AboveOneself => Kind::MissingScope.because("this role stands above one's own"),
        }
        .into()
    }
}

/// The stored role of a member.
fn role_of(row: &member::Model) -> ApiResult<Role> {
    Role::from_stored(&row.role).ok_or(ApiError::Defect("a stored role is not known"))
}

/// What a person is in a tenant, if they belong to it.
pub(super) async fn role<C: ConnectionTrait>(
    connection: &C,
    tenant: &TenantId,
    user: &UserId,
) -> ApiResult<Option<Role>> {
    member::Entity::find_by_id((tenant.clone(), user.clone())).one(connection).await?.as_ref().map(role_of).transpose()
}

/// As [`role`], held until the transaction ends: who is removed or given another role waits for it, or it for them.
pub(super) async fn role_held(tx: &DatabaseTransaction, tenant: &TenantId, user: &UserId) -> ApiResult<Option<Role>> {
    let mut query = member::Entity::find_by_id((tenant.clone(), user.clone()));
    if tx.get_database_backend() == DbBackend::Postgres {
        query = query.lock_shared();
    }
    query.one(tx).await?.as_ref().map(role_of).transpose()
}

/// The people of a tenant, those who signed up last first.
pub(super) async fn list<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<Member>> {
    let mut query = member::Entity::find().filter(member::Column::TenantId.eq(scope.id().clone()));
    if let Some(before) = page.before::<UserId>()? {
        query = query.filter(member::Column::UserId.lt(before));
    }
    let rows = query.order_by_desc(member::Column::UserId).limit(page.rows()).all(connection).await?;
    let Page { data, next_cursor } = page.page(rows, |row| &row.user_id, |row| row);
    Ok(Page { data: dtos(connection, data).await?, next_cursor })
}

async fn dtos<C: ConnectionTrait>(connection: &C, rows: Vec<member::Model>) -> ApiResult<Vec<Member>> {
    let ids: Vec<_> = rows.iter().map(|row| row.user_id.clone()).collect();
    let mut profiles = people::profiles(connection, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let role = role_of(&row)?;
            let profile = profiles.remove(&row.user_id).ok_or(ApiError::Defect("a member is nobody"))?;
            Ok(Member {
                user_id: row.user_id,
                email: profile.email,
                name: profile.name,
                role,
                second_factor: profile.second_factor,
                joined_at: row.created_at,
            })
        })
        .collect()
}

/// One person of a tenant.
pub(super) async fn get<C: ConnectionTrait>(connection: &C, scope: &TenantScope, user: &UserId) -> ApiResult<Member> {
    let row = member::Entity::find_by_id((scope.id().clone(), user.clone())).one(connection).await?;
    let mut found = dtos(connection, vec![row.ok_or(Kind::NotFound)?]).await?;
    found.pop().ok_or(ApiError::Defect("a member was lost"))
}

/// Adds a person; false if they belong to the tenant already.
pub(super) async fn add(tx: &DatabaseTransaction, tenant: &TenantId, user: &UserId, role: Role) -> ApiResult<bool> {
    let inserted = member::Entity::insert(member::ActiveModel {
        tenant_id: Set(tenant.clone()),
        user_id: Set(user.clone()),
        role: Set(role.as_str().into()),
        created_at: Set(Timestamp::now()),
    })
    .on_conflict(OnConflict::columns([member::Column::TenantId, member::Column::UserId]).do_nothing().to_owned())
    .exec_without_returning(tx)
    .await?;
    Ok(inserted > 0)
}

/// Gives a person another role.
pub(super) async fn change_role(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    actor: Person<'_>,
    user: &UserId,
    wanted: Role,
) -> ApiResult<Member> {
    let present = role(tx, scope.id(), user).await?.ok_or(Kind::NotFound)?;
    policy::may_change(actor.role, present, wanted)?;
    set_role(tx, scope.id(), user, present, wanted).await?;
    get(tx, scope, user).await
}

/// Writes a role, if the present one is still what was decided on. With a lower one end the invitations to what stands above it.
pub(super) async fn set_role(
    tx: &DatabaseTransaction,
    tenant: &TenantId,
    user: &UserId,
    present: Role,
    wanted: Role,
) -> ApiResult<()> {
    let done = member::Entity::update_many()
        .col_expr(member::Column::Role, Expr::value(wanted.as_str()))
        .filter(member::Column::TenantId.eq(tenant.clone()))
        .filter(member::Column::UserId.eq(user.clone()))
        .filter(member::Column::Role.eq(present.as_str()))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 {
        return Err(changed_meanwhile());
    }
    if wanted < present {
        invitations::forget_sent_above(tx, tenant, user, Some(wanted)).await?;
    }
    Ok(())
}

fn changed_meanwhile() -> ApiError {
    Kind::Conflict.because("somebody else changed this person's role at the same moment: look again").into()
}

/// Removes a person, and ends their logins here and the invitations that they sent. API keys that they made are the tenant's, and stay.
pub(super) async fn remove(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    actor: Person<'_>,
    user: &UserId,
) -> ApiResult<()> {
    let present = role(tx, scope.id(), user).await?.ok_or(Kind::NotFound)?;
    policy::may_change(actor.role, present, present)?;
    take_out(tx, scope.id(), user, present).await
}

/// Lets a person go by their own will. The owner stays.
pub(super) async fn leave(tx: &DatabaseTransaction, scope: &TenantScope, person: Person<'_>) -> ApiResult<()> {
    // Whatever they are, they don't stand above themselves.
    policy::may_change(person.role, person.role, person.role)?;
    take_out(tx, scope.id(), person.id, person.role).await
}

async fn take_out(tx: &DatabaseTransaction, tenant: &TenantId, user: &UserId, present: Role) -> ApiResult<()> {
    let done = member::Entity::delete_many()
        .filter(member::Column::TenantId.eq(tenant.clone()))
        .filter(member::Column::UserId.eq(user.clone()))
        .filter(member::Column::Role.eq(present.as_str()))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 {
        return Err(changed_meanwhile());
    }
    ownership::forget_offer_to(tx, tenant, user).await?;
    invitations::forget_sent_above(tx, tenant, user, None).await?;
    people::end_logins(tx, user, tenant).await
}

/// The tenants that a person belongs to, those made last first.
pub(super) async fn memberships<C: ConnectionTrait>(
    connection: &C,
    user: &UserId,
    current: &TenantId,
    page: &PageQuery,
) -> ApiResult<Page<Membership>> {
    let mut query = member::Entity::find().filter(member::Column::UserId.eq(user.clone()));
    if let Some(before) = page.before::<TenantId>()? {
        query = query.filter(member::Column::TenantId.lt(before));
    }
    let rows = query.order_by_desc(member::Column::TenantId).limit(page.rows()).all(connection).await?;
    let Page { data, next_cursor } = page.page(rows, |row| &row.tenant_id, |row| row);
    let tenants = tenant::Entity::find()
        .filter(tenant::Column::Id.is_in(data.iter().map(|row| row.tenant_id.clone())))
        .all(connection)
        .await?;
    let data = data
        .iter()
        .map(|row| {
            let tenant = tenants.iter().find(|tenant| tenant.id == row.tenant_id);
            let tenant = tenant.cloned().ok_or(ApiError::Defect("a membership is of no tenant"))?;
            Ok(Membership {
                current: tenant.id == *current,
                tenant: tenant.into(),
                role: role_of(row)?,
                joined_at: row.created_at,
            })
        })
        .collect::<ApiResult<_>>()?;
    Ok(Page { data, next_cursor })
}

/// The tenant that a person logs in to: the one that they name, or the one that they have belonged to longest.
///
/// # Errors
/// 404 if they don't belong to the one that they name; 403 `no-account` if they belong to none.
pub(crate) async fn choose<C: ConnectionTrait>(
    connection: &C,
    user: &UserId,
    wanted: Option<&TenantId>,
) -> ApiResult<Tenant> {
    let mut query = member::Entity::find().filter(member::Column::UserId.eq(user.clone()));
    if let Some(wanted) = wanted {
        query = query.filter(member::Column::TenantId.eq(wanted.clone()));
    }
    let row = query
        .order_by_asc(member::Column::CreatedAt)
        .order_by_asc(member::Column::TenantId)
        .one(connection)
        .await?
        .ok_or(if wanted.is_some() { Kind::NotFound } else { Kind::NoAccount })?;
    super::service::find(connection, &TenantScope::of_row(row.tenant_id)).await
}

/// Whether a person belongs to any tenant.
pub(crate) async fn belongs_to_any<C: ConnectionTrait>(connection: &C, user: &UserId) -> Result<bool, DbErr> {
    let found = member::Entity::find().filter(member::Column::UserId.eq(user.clone())).one(connection).await?;
    Ok(found.is_some())
}

/// Takes from everybody but their owner what lets them read or act in a person's tenants: other members, invitations, API keys
/// and webhook endpoints. For when it turns out whose the owner's address is: nobody knows who made all that. Gives the tenants, whose
/// keys are to be [forgotten](crate::keys::forget) after the commit.
pub(crate) async fn keep_to_owner(tx: &DatabaseTransaction, owner: &UserId) -> ApiResult<Vec<TenantId>> {
    let owned = member::Entity::find()
        .filter(member::Column::UserId.eq(owner.clone()))
        .filter(member::Column::Role.eq(Role::Owner.as_str()))
        .all(tx)
        .await?;
    let tenants: Vec<TenantId> = owned.into_iter().map(|member| member.tenant_id).collect();
    for tenant in &tenants {
        let others = member::Entity::find()
            .filter(member::Column::TenantId.eq(tenant.clone()))
            .filter(member::Column::UserId.ne(owner.clone()))
            .all(tx)
            .await?;
        for other in others {
            take_out(tx, tenant, &other.user_id, role_of(&other)?).await?;
        }
        for statement in [
            "DELETE FROM invitations WHERE tenant_id = $1 AND created_at <= $2",
            "UPDATE api_keys SET revoked_at = $2 WHERE tenant_id = $1 AND revoked_at IS NULL",
            "UPDATE webhooks SET status = 'disabled', updated_at = $2 WHERE tenant_id = $1 AND status = 'enabled'",
        ] {
            let values = [tenant.clone().into(), Timestamp::now().into()];
            tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), statement, values)).await?;
        }
    }
    Ok(tenants)
}

/// Makes the owner of a new tenant.
pub(super) async fn add_owner(
    tx: &DatabaseTransaction,
    tenant: TenantId,
    owner: &UserId,
    now: Timestamp,
) -> ApiResult<()> {
    member::ActiveModel {
        tenant_id: Set(tenant),
        user_id: Set(owner.clone()),
        role: Set(Role::Owner.as_str().into()),
        created_at: Set(now),
    }
    .insert(tx)
    .await?;
    Ok(())
}
