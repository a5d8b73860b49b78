//! Erasing what messages say once their tenant doesn't want it kept any longer.
//!
//! The row stays, with who, when and how it ended: it is what usage is explained by. What it said goes, and so do the stored events
//! that repeat it, once every endpoint was told of them. A message that still waits keeps its content, for it is to be sent.

use sea_orm::{DbBackend, DbErr};
use shared::time::Timestamp;

use crate::{state::App, sweep};

/// How many rows one statement takes.
const BATCH: i64 = 1000;

/// What is erased, in this order: an event goes once its deliveries have. `$1` is now, `$2` the batch.
const STATEMENTS: [&str; 3] = [
    "UPDATE messages SET content = NULL, push_name = NULL WHERE id IN (SELECT it.id FROM tenants \
     JOIN messages it ON it.tenant_id = tenants.id WHERE tenants.retention_days IS NOT NULL \
     AND it.content IS NOT NULL AND it.status <> 'queued' \
     AND it.created_at <= $1 - tenants.retention_days * 86400000 LIMIT $2 {free})",
    "DELETE FROM deliveries WHERE id IN (SELECT it.id FROM tenants \
     JOIN events ON events.tenant_id = tenants.id JOIN deliveries it ON it.event_id = events.id \
     WHERE tenants.retention_days IS NOT NULL AND events.type LIKE 'message.%' \
     AND events.occurred_at <= $1 - tenants.retention_days * 86400000 AND it.completed_at IS NOT NULL LIMIT $2 {free})",
    "DELETE FROM events WHERE id IN (SELECT it.id FROM tenants JOIN events it ON it.tenant_id = tenants.id \
     WHERE tenants.retention_days IS NOT NULL AND it.type LIKE 'message.%' \
     AND it.occurred_at <= $1 - tenants.retention_days * 86400000 \
     AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event_id = it.id) LIMIT $2 {free})",
];

/// Erases what is past its tenant's retention, in batches. Doing it again changes nothing more.
///
/// # Errors
/// As the driver.
pub async fn erase(app: &App) -> Result<(), DbErr> {
    let now = Timestamp::now();
    // What somebody works on is left for the next sweep: no lock is waited for, in whatever order others take them.
    let free = if app.db.engine() == DbBackend::Postgres { "FOR UPDATE OF it SKIP LOCKED" } else { "" };
    for statement in STATEMENTS {
        let done = sweep::before(app, BATCH, &statement.replace("{free}", free), now).await?;
        metrics::counter!("retention_erased_rows_total").increment(done);
    }
    Ok(())
}
