//! Finding entries again.

use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};
use shared::{
    ids::{AuditId, TenantId},
    time::Timestamp,
};

use super::{
    dto::{AuditActor, AuditEntry, AuditFilter, AuditOutcome, AuditResource},
    entity::{ActorType, AuditResult},
};
use crate::{
    auth::TenantScope,
    error::ApiResult,
    extract::page::{Page, PageQuery},
    jobs::schedule::installation,
};

/// An entry's rows, put together: the outcome says all that the intent does, and what became known later. Of a login the intent is the
/// installation's and the outcome the tenant's, who sees that alone.
const ENTRIES: &str = "\
    SELECT head.id, COALESCE(done.tenant_id, head.tenant_id) AS tenant_id, head.phase, head.at, done.at AS done_at, \
    COALESCE(done.actor_type, head.actor_type) AS actor_type, COALESCE(done.actor_id, head.actor_id) AS actor_id, \
    head.operation, COALESCE(done.resource_type, head.resource_type) AS resource_type, \
    COALESCE(done.resource_id, head.resource_id) AS resource_id, COALESCE(done.result, head.result) AS result, \
    COALESCE(done.status, head.status) AS status, COALESCE(done.problem, head.problem) AS problem, \
    COALESCE(done.replayed, head.replayed) AS replayed, head.request_id, head.address, head.position \
    FROM audit_log AS head LEFT JOIN audit_log AS done \
    ON done.id = head.id AND done.phase IN ('outcome', 'outcome_elsewhere') AND head.phase = 'intent' \
    WHERE head.tenant_id = $1 AND head.phase <> 'outcome'";

#[derive(FromQueryResult)]
struct Row {
    id: AuditId,
    tenant_id: TenantId,
    phase: String,
    at: Timestamp,
    done_at: Option<Timestamp>,
    actor_type: Option<String>,
    actor_id: Option<String>,
    operation: String,
    resource_type: Option<String>,
    resource_id: Option<String>,
    result: Option<String>,
    status: Option<i32>,
    problem: Option<String>,
    replayed: bool,
    request_id: Option<String>,
    address: Option<String>,
    position: Option<i64>,
}

impl From<Row> for AuditEntry {
    fn from(row: Row) -> Self {
        let result = row.result.as_deref().and_then(AuditResult::from_stored);
        Self {
            tenant_id: Some(row.tenant_id).filter(|tenant| *tenant != installation()),
            occurred_at: row.at,
            completed_at: if row.phase == "intent" { row.done_at } else { Some(row.at) },
            actor: row
                .actor_type
                .as_deref()
                .and_then(ActorType::from_stored)
                .map(|kind| AuditActor { kind, id: row.actor_id }),
            operation: row.operation,
            resource: row.resource_type.zip(row.resource_id).map(|(kind, id)| AuditResource { kind, id }),
            outcome: AuditOutcome::from(result),
            status: row.status.and_then(|status| u16::try_from(status).ok()),
            problem: row.problem,
            replayed: row.replayed,
            request_id: row.request_id,
            address: row.address,
            position: row.position,
            id: row.id,
        }
    }
}

/// One page of a log, the newest first.
pub(super) async fn page<C: ConnectionTrait>(
    connection: &C,
    log: &TenantId,
    filter: &AuditFilter,
    page: &PageQuery,
) -> ApiResult<Page<AuditEntry>> {
    let mut sql = ENTRIES.to_owned();
    let mut values: Vec<Value> = vec![log.clone().into()];
    let mut and = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {}", condition.replace('?', &format!("${}", values.len()))));
        }
    };
    and("head.id < ?", page.before::<AuditId>()?.map(Into::into));
    and("COALESCE(done.actor_id, head.actor_id) = ?", filter.actor.clone().map(Into::into));
    and("head.operation = ?", filter.operation.clone().map(Into::into));
    and("COALESCE(done.resource_id, head.resource_id) = ?", filter.resource.clone().map(Into::into));
    and("head.at >= ?", filter.from.map(Into::into));
    and("head.at < ?", filter.to.map(Into::into));
    let result = match filter.outcome {
        Some(AuditOutcome::Succeeded) => Some(AuditResult::Succeeded),
        Some(AuditOutcome::Refused) => Some(AuditResult::Refused),
        Some(AuditOutcome::Failed) => Some(AuditResult::Failed),
        Some(AuditOutcome::Unknown) | None => None,
    };
    and("COALESCE(done.result, head.result) = ?", result.map(|result| result.as_str().into()));
    if filter.outcome == Some(AuditOutcome::Unknown) {
        sql.push_str(" AND COALESCE(done.result, head.result) IS NULL");
    }
    values.push(i64::try_from(page.rows()).unwrap_or(i64::MAX).into());
    sql.push_str(&format!(" ORDER BY head.id DESC LIMIT ${}", values.len()));
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
    let rows = Row::find_by_statement(statement).all(connection).await?;
    Ok(page.page(rows, |row| &row.id, AuditEntry::from))
}

/// One page of a tenant's entries, whatever they are.
pub(crate) async fn everything<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    wanted: &PageQuery,
) -> ApiResult<Page<AuditEntry>> {
    page(connection, scope.id(), &AuditFilter::default(), wanted).await
}
