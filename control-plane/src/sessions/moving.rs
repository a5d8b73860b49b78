//! Moving a session to another worker, as an operator wishes: the wish stands in its row (`move_to`), and the reconciler has the worker
//! let go, as it does when a worker is drained.

use shared::{
    ids::{SessionId, WorkerId},
    time::Timestamp,
};

use super::{
    entity::{self, DesiredColumn, Model},
    reconciler, service,
};
use crate::{
    auth::TenantScope,
    error::{ApiResult, Kind, Refusal},
    placement::{self, Candidate, Need},
    state::App,
};

/// How many workers a refusal tells of.
const TOLD: usize = 5;

/// Has a session move to this worker, or to the best of the others; to the one that it is on: has it stay. Nothing happens if it is
/// on its way already.
///
/// # Errors
/// `not-found`; `conflict` if it is on no worker, isn't to run, or nobody can take it; as the driver.
pub(crate) async fn move_session(app: &App, id: &SessionId, to: Option<WorkerId>) -> ApiResult<Model> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    let row = entity::lock(&tx, id).await?.filter(|row| row.deleted_at.is_none());
    let mut row = row.ok_or(Kind::NotFound)?;
    if row.desired != DesiredColumn::Running {
        return Err(Kind::Conflict.because("the session isn't to run").into());
    }
    let Some(from) = row.worker_id.clone() else {
        return Err(Kind::Conflict
            .because("the session is on no worker: it is placed as soon as one can take it")
            .into());
    };
    let is_moving = row.move_to.is_some();
    match to {
        None if is_moving => return Ok(row),
        Some(to) if to == from => row.move_to = None,
        to => {
            let scope = TenantScope::of_row(row.tenant_id.clone());
            let need = reconciler::need(&tx, &scope, &row, now).await?;
            let fleet = placement::snapshot(&tx, &scope, now).await?;
            row.move_to = Some(match to {
                Some(to) => able(&need, &fleet, to)?,
                None => best(&need, &fleet, &from)?,
            });
        }
    }
    row.reconcile_at = now;
    let holder = service::holder(&tx, &row).await?;
    let scope = TenantScope::of_row(row.tenant_id.clone());
    let saved = service::save(&tx, row, holder.as_ref(), now).await?;
    service::announce(&tx, app, &scope, saved.event.into_iter().collect()).await?;
    tx.commit().await?;
    service::rung(app);
    Ok(saved.row)
}

/// The worker that is named, if it can take the session.
fn able(need: &Need, fleet: &[Candidate], to: WorkerId) -> Result<WorkerId, Refusal> {
    let named = fleet.iter().find(|candidate| candidate.id == to);
    let named = named.ok_or_else(|| Kind::Conflict.because("there is no such worker"))?;
    match placement::obstacle(need, named) {
        None => Ok(to),
        Some(obstacle) => Err(Kind::Conflict.because(format!("that worker can't take it: it {obstacle}"))),
    }
}

/// The best worker but the one that holds the session.
fn best(need: &Need, fleet: &[Candidate], from: &WorkerId) -> Result<WorkerId, Refusal> {
    if let Some(best) = placement::rank(need, fleet).into_iter().find(|candidate| candidate.id != *from) {
        return Ok(best.id.clone());
    }
    let others = fleet.iter().filter(|candidate| candidate.id != *from);
    let why: Vec<_> = others
        .filter_map(|other| placement::obstacle(need, other).map(|obstacle| format!("{} {obstacle}", other.id)))
        .take(TOLD)
        .collect();
    Err(Kind::Conflict.because(if why.is_empty() {
        "there is no other worker".to_owned()
    } else {
        format!("no other worker can take it: {}", why.join(", "))
    }))
}
