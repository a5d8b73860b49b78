//! The facts themselves, for whoever wants to count again.

use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Statement, Value};
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
    let rows = i64::try_from(page.rows()).unwrap_or(i64::MAX);
    let rows = UsageFact::find_by_statement(newest(conn.get_database_backend(), scope, before, rows)).all(conn).await?;
    Ok(page.page(rows, |row| &row.id, |row| row))
}

/// So many facts, those before one if it is named. Two statements, so that each is a range of the index.
fn newest(engine: DbBackend, scope: &TenantScope, before: Option<String>, rows: i64) -> Statement {
    let mut values: Vec<Value> = vec![scope.id().clone().into(), rows.into()];
    let range = if before.is_some() { " AND id < $3" } else { "" };
    values.extend(before.map(Value::from));
    let sql = format!(
        "SELECT id, meter, session_id, quantity, occurred_at FROM usage_facts \
         WHERE tenant_id = $1{range} ORDER BY id DESC LIMIT $2"
    );
    Statement::from_sql_and_values(engine, sql, values)
}

#[cfg(test)]
mod tests {
    use shared::ids::TenantId;

    use super::*;
    use crate::db::Db;

    #[tokio::test]
    async fn a_page_is_read_in_order_and_not_sorted() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("facts.db").display());
        let db = Db::connect(&url, 1).await.unwrap();
        db.migrate().await.unwrap();
        let scope = TenantScope::of_row(TenantId::new());
        for before in [None, Some("messages_sent:msg_x".to_owned())] {
            let mut plan = newest(db.engine(), &scope, before.clone(), 100);
            plan.sql = format!("EXPLAIN QUERY PLAN {}", plan.sql);
            let rows = db.read().query_all_raw(plan).await.unwrap();
            let steps: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
            let range = if before.is_some() { "tenant_id=? AND id<?" } else { "tenant_id=?" };
            assert_eq!(steps, [format!("SEARCH usage_facts USING INDEX usage_facts_by_tenant ({range})")]);
        }
        db.close().await;
    }
}
