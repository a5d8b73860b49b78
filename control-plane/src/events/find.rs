//! Finding stored events again.

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    Select,
};
use shared::{
    ids::EventId,
    seal::{DataKey, SealError},
};

use super::{Envelope, EventType, entity, number::number, record::place};
use crate::{auth::TenantScope, db::Db, sessions};

/// A stored event can't be given.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// The data doesn't open with the tenant's key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A type or data that this version can't read.
    #[error("a stored event can't be read")]
    Unreadable,
}

impl From<FindError> for crate::error::ApiError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Database(error) => error.into(),
            FindError::Seal(error) => error.into(),
            FindError::Unreadable => Self::Defect("a stored event can't be read"),
        }
    }
}

/// A tenant's events; of a scope that is limited to sessions, those that are about one of them; of one that is limited to a network,
/// those that are about no session of another.
fn of_tenant(scope: &TenantScope) -> Select<entity::Entity> {
    entity::Entity::find()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .apply_if(scope.sessions(), |query, only| query.filter(entity::Column::SessionId.is_in(only.iter().cloned())))
        .apply_if(scope.network(), |query, only| {
            let of_network = sessions::entity::Entity::ids_of_network(scope, only);
            query.filter(entity::Column::SessionId.is_null().or(entity::Column::SessionId.in_subquery(of_network)))
        })
}

/// Whether an event of the tenant is still kept.
///
/// # Errors
/// As the driver.
pub(crate) async fn is_kept<C: ConnectionTrait>(conn: &C, scope: &TenantScope, id: &EventId) -> Result<bool, DbErr> {
    Ok(of_tenant(scope).filter(entity::Column::Id.eq(id.clone())).one(conn).await?.is_some())
}

/// One event of the tenant, opened with the tenant's key.
///
/// # Errors
/// [`FindError`].
pub async fn find(db: &Db, scope: &TenantScope, key: &DataKey, id: &EventId) -> Result<Option<Envelope>, FindError> {
    let find = || of_tenant(scope).filter(entity::Column::Id.eq(id.clone())).one(db.read());
    let mut row = find().await?;
    if row.as_ref().is_some_and(|row| row.position.is_none()) {
        number(db, scope).await?;
        row = find().await?;
    }
    row.map(|row| open(row, scope, key)).transpose()
}

/// Up to `limit` events of the tenant before a position, the newest first.
///
/// # Errors
/// [`FindError`].
pub(crate) async fn page(
    db: &Db,
    scope: &TenantScope,
    key: &DataKey,
    before: Option<i64>,
    limit: u64,
) -> Result<Vec<Envelope>, FindError> {
    number(db, scope).await?;
    let mut query = of_tenant(scope).filter(entity::Column::Position.is_not_null());
    if let Some(before) = before {
        query = query.filter(entity::Column::Position.lt(before));
    }
    let rows = query.order_by_desc(entity::Column::Position).limit(limit).all(db.read()).await?;
    rows.into_iter().map(|row| open(row, scope, key)).collect()
}

fn open(row: entity::Model, scope: &TenantScope, key: &DataKey) -> Result<Envelope, FindError> {
    let data = key.open(&place(scope, &row.id), &row.sealed_data)?;
    Ok(Envelope {
        kind: EventType::named(&row.kind).ok_or(FindError::Unreadable)?,
        data: serde_json::from_slice(&data).map_err(|_| FindError::Unreadable)?,
        id: row.id,
        tenant_id: row.tenant_id,
        session_id: row.session_id,
        occurred_at: row.occurred_at,
        position: row.position.ok_or(FindError::Unreadable)?,
    })
}
