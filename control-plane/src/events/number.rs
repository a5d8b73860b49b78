//! Positions, given when somebody first looks.
//!
//! Were they given in the transaction that records an event, every such transaction of a tenant would wait for the one
//! before it until that was on disk. So an event is committed without one, and whoever wants to show events numbers those
//! that are there, in the order of `seq`, in one transaction that holds the tenant's counter.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement};

use crate::{auth::TenantScope, db::Db};

/// How many are numbered in one transaction.
const BATCH: u32 = 1_000;

/// Numbers the tenant's events that have no position yet.
///
/// # Errors
/// If the database says no.
pub(super) async fn number(db: &Db, scope: &TenantScope) -> Result<(), DbErr> {
    while any(db.read(), scope).await? {
        let tx = db.write().await?;
        number_some(&tx, scope).await?;
        tx.commit().await?;
    }
    Ok(())
}

async fn any<C: ConnectionTrait>(conn: &C, scope: &TenantScope) -> Result<bool, DbErr> {
    let one = Statement::from_sql_and_values(
        conn.get_database_backend(),
        "SELECT 1 FROM events WHERE tenant_id = $1 AND position IS NULL LIMIT 1",
        [scope.id().clone().into()],
    );
    Ok(conn.query_one_raw(one).await?.is_some())
}

async fn number_some(tx: &DatabaseTransaction, scope: &TenantScope) -> Result<(), DbErr> {
    let engine = tx.get_database_backend();
    // Not FOR UPDATE: that would keep out everybody who refers to the tenant. SQLite has one writer anyway.
    let lock = if engine == DbBackend::Postgres { " FOR NO KEY UPDATE" } else { "" };
    let counter = Statement::from_sql_and_values(
        engine,
        format!("SELECT last_position FROM tenants WHERE id = $1{lock}"),
        [scope.id().clone().into()],
    );
    let row = tx.query_one_raw(counter).await?.ok_or_else(|| DbErr::RecordNotFound("tenant".into()))?;
    let last: i64 = row.try_get("", "last_position")?;
    // A statement of its own, so that on PostgreSQL its snapshot is younger than the lock.
    let numbered = tx
        .execute_raw(Statement::from_sql_and_values(
            engine,
            format!(
                "UPDATE events SET position = $1 + numbered.place FROM (SELECT seq, ROW_NUMBER() OVER (ORDER BY seq) AS place \
                 FROM (SELECT seq FROM events WHERE tenant_id = $2 AND position IS NULL ORDER BY seq LIMIT {BATCH}) AS next) \
                 AS numbered WHERE events.seq = numbered.seq"
            ),
            [last.into(), scope.id().clone().into()],
        ))
        .await?
        .rows_affected();
    let next = last + i64::try_from(numbered).unwrap_or(i64::MAX);
    tx.execute_raw(Statement::from_sql_and_values(
        engine,
        "UPDATE tenants SET last_position = $1 WHERE id = $2",
        [next.into(), scope.id().clone().into()],
    ))
    .await?;
    Ok(())
}
