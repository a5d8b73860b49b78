//! `POST /internal/v1/workers/{id}/reports`: what workers see of their sessions.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use shared::{
    ids::{SessionId, TenantId},
    time::Timestamp,
    wire::session::{Report, Reports, ReportsAccepted},
};

use super::{
    entity::{self, Model, ObservedColumn},
    policy::{Step, View, next_step},
    service::{self, SessionError},
    status::State as Shown,
};
use crate::{
    auth::TenantScope,
    error::{ApiResult, Kind},
    internal::{WireJson, WorkerAuth},
    jobs::{self, JobKind},
    messages::send::lane,
    state::App,
    workers::entity as worker,
};

/// The most reports in a request, by the protocol.
const MAX_REPORTS: usize = 500;

/// Takes reports. One transaction for each tenant among them.
pub(crate) async fn take_reports(
    State(app): State<App>,
    WorkerAuth(worker): WorkerAuth,
    WireJson(body): WireJson<Reports>,
) -> ApiResult<Json<ReportsAccepted>> {
    if body.reports.len() > MAX_REPORTS {
        return Err(Kind::Validation.because(format!("at most {MAX_REPORTS} reports in a request")).into());
    }
    if body.incarnation != worker.incarnation {
        return Err(Kind::WorkerSuperseded.into());
    }
    metrics::counter!("control_plane_session_reports_total").increment(body.reports.len() as u64);
    let ids: Vec<SessionId> = body.reports.iter().map(|report| report.session_id.clone()).collect();
    let owners: BTreeMap<SessionId, TenantId> = entity::Entity::find()
        .filter(entity::Column::Id.is_in(ids))
        .all(app.db.read())
        .await?
        .into_iter()
        .map(|row| (row.id, row.tenant_id))
        .collect();
    let mut stale = Vec::new();
    let mut by_tenant: BTreeMap<TenantId, BTreeMap<SessionId, Report>> = BTreeMap::new();
    for report in body.reports {
        match owners.get(&report.session_id) {
            Some(tenant) => {
                by_tenant.entry(tenant.clone()).or_default().insert(report.session_id.clone(), report);
            }
            None => stale.push(report.session_id),
        }
    }
    for (tenant, reports) in by_tenant {
        stale.extend(take_for_tenant(&app, &worker, TenantScope::of_row(tenant), reports).await?);
    }
    service::rung(&app);
    Ok(Json(ReportsAccepted { stale }))
}

/// Takes one tenant's reports, in the order of their sessions; gives those that are not this worker's any more.
async fn take_for_tenant(
    app: &App,
    worker: &worker::Model,
    scope: TenantScope,
    reports: BTreeMap<SessionId, Report>,
) -> Result<Vec<SessionId>, SessionError> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    let mut stale = Vec::new();
    let mut events = Vec::new();
    let mut connected = false;
    for (id, report) in reports {
        let row = entity::lock(&tx, &id).await?;
        let Some(mut row) = row.filter(|row| holds(worker, row, &report)) else {
            stale.push(id);
            continue;
        };
        if !newer(&row, worker, &report) {
            continue;
        }
        take(app, &mut row, worker, report, now)?;
        row.reconcile_at = match next_step(View::of(&row, Some(worker), app.fleet.listening.since(), now), now) {
            Step::Settle(at) => at,
            Step::Place | Step::Put | Step::LetGo | Step::Release(_) | Step::Forget => now,
        };
        let saved = service::save(&tx, row, Some(worker), now).await?;
        if saved.event.is_some() && saved.row.published_status.status == Shown::Connected {
            jobs::hasten(&tx, &lane(&id)).await?;
            connected = true;
        }
        events.extend(saved.event);
    }
    service::announce(&tx, app, &scope, events).await?;
    tx.commit().await?;
    if connected {
        app.bell.ring(JobKind::SendMessages);
    }
    Ok(stale)
}

fn holds(worker: &worker::Model, row: &Model, report: &Report) -> bool {
    row.deleted_at.is_none() && row.worker_id.as_ref() == Some(&worker.id) && row.generation == report.generation
}

/// Reports of one run are ordered; those of a run under a new generation begin anew.
fn newer(row: &Model, worker: &worker::Model, report: &Report) -> bool {
    row.observed_generation != report.generation
        || row.observed_incarnation.as_ref() != Some(&worker.incarnation)
        || row.observed_report_seq < report.report_seq
}

fn take(
    app: &App,
    row: &mut Model,
    worker: &worker::Model,
    report: Report,
    now: Timestamp,
) -> Result<(), SessionError> {
    if let Some(account) = &report.account
        && service::account(app, row)?.as_ref() != Some(account)
    {
        row.sealed_account = Some(service::seal_account(app, row, account)?);
    }
    row.observed = Some(ObservedColumn(report.observed));
    row.observed_generation = report.generation;
    row.observed_incarnation = Some(worker.incarnation.clone());
    row.observed_report_seq = report.report_seq;
    row.observed_restart_seq = report.restart_seq;
    row.observed_at = Some(now);
    row.observed_since = Some(report.since.into());
    row.last_frame_at = report.last_frame_at.map(Timestamp::from).max(row.last_frame_at);
    row.qr_seq = report.qr_seq;
    Ok(())
}
