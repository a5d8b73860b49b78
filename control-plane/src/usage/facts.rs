//! The facts themselves, for whoever wants to count again.

use sea_orm::{ConnectionTrait, FromQueryResult, Statement};
use serde::Serialize;
use shared::{ids::SessionId, time::Timestamp};

use crate::{
    auth::TenantScope,
    error::ApiResult,
    extract::page::{Page, PageQuery},
};

/// One thing that was counted.
#[derive(Debug, Serialize, FromQueryResult)]
pub(crate) struct UsageFact {
    /// What it is the identity of.
    id: String,
    meter: String,
    session_id: Option<SessionId>,
    quantity: i64,
    occurred_at: Timestamp,
}

/// A tenant's facts, in the order of their ids.
pub(crate) async fn page<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<UsageFact>> {
    let before: Option<String> = page.before()?;
    let rows = UsageFact::find_by_statement(Statement::from_sql_and_values(
        conn.get_database_backend(),
        "SELECT id, meter, session_id, quantity, occurred_at FROM usage_facts \
         WHERE tenant_id = $1 AND ($2 = '' OR id < $2) ORDER BY id DESC LIMIT $3",
        [
            scope.id().clone().into(),
            before.unwrap_or_default().into(),
            i64::try_from(page.rows()).unwrap_or(i64::MAX).into(),
        ],
    ))
    .all(conn)
    .await?;
    Ok(page.page(rows, |row| &row.id, |row| row))
}
