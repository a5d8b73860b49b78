//! Jobs that were given up, and such as wait.

use axum::{Json, extract::State, http::StatusCode};
use shared::ids::JobId;

use super::{OPERATOR, OperatorProblems};
use crate::{
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidQuery,
        page::{Page, PageQuery},
    },
    jobs::{
        JobKind,
        dead::{self, CancelError},
        redrive::{self, RedriveError},
    },
    openapi::{BY_ID, problem_responses},
    operators::{
        Operator,
        dto::{AdminDeadJob, DeadJobFilter},
    },
    state::App,
};

problem_responses!(ConflictProblems = OPERATOR, BY_ID, &[Kind::Conflict]);

/// Lets what waits be looked at now.
fn ring(app: &App) {
    for kind in JobKind::ALL {
        app.bell.ring(kind);
    }
}

/// List jobs that were given up
///
/// Of two weeks, those that were given up last first.
#[utoipa::path(
    get, path = "/api/v1/admin/jobs/dead", operation_id = "list_dead_jobs", tag = "admin",
    security(("operator" = [])),
    params(PageQuery, DeadJobFilter),
    responses((status = 200, description = "A page of jobs.", body = Page<AdminDeadJob>), OperatorProblems),
)]
pub(super) async fn list_dead_jobs(
    State(app): State<App>,
    _: Operator,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(filter): ValidQuery<DeadJobFilter>,
) -> ApiResult<Json<Page<AdminDeadJob>>> {
    let kind = filter.kind.map(|kind| kind.0);
    let rows = dead::list(&app.db, kind, page.before()?, page.rows()).await?;
    let rows = rows.into_iter().map(|job| (job.place(), job)).collect();
    Ok(Json(page.page(rows, |(place, _)| place, |(_, job)| job.into())))
}

/// Try a job again that was given up
///
/// With all its attempts, as soon as its turn comes, and what it is about with it: a delivery is pending again, a message queued. 409 if
/// that can't be done any more, or mustn't: WhatsApp may have the message, the endpoint is gone.
#[utoipa::path(
    post, path = "/api/v1/admin/jobs/{id}/redrive", operation_id = "redrive_job", tag = "admin",
    security(("operator" = [])),
    params(("id" = JobId, Path, description = "The job's id.")),
    responses((status = 204, description = "It waits for its turn."), ConflictProblems),
)]
pub(super) async fn redrive_job(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<JobId>,
) -> ApiResult<StatusCode> {
    match redrive::redrive(&app, &app.handlers, &id).await {
        Ok(()) => {}
        Err(why @ RedriveError::NotDead) => return Err(Kind::NotFound.because(why.to_string()).into()),
        Err(why @ RedriveError::Refused(_)) => return Err(Kind::Conflict.because(why.to_string()).into()),
        Err(RedriveError::Database(error)) => return Err(error.into()),
    }
    ring(&app);
    tracing::info!(operator = %operator.id, job = %id, "a job was made ready again");
    Ok(StatusCode::NO_CONTENT)
}

/// Call a job off that waits
///
/// What it is about fails at once: a message with the reason `cancelled`. Deletions and upkeep can't be called off.
#[utoipa::path(
    post, path = "/api/v1/admin/jobs/{id}/cancel", operation_id = "cancel_job", tag = "admin",
    security(("operator" = [])),
    params(("id" = JobId, Path, description = "The job's id.")),
    responses((status = 204, description = "It isn't tried any more."), ConflictProblems),
)]
pub(super) async fn cancel_job(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<JobId>,
) -> ApiResult<StatusCode> {
    match dead::cancel(app.db.autocommit(), &id).await {
        Ok(true) => {}
        Ok(false) => {
            return Err(Kind::NotFound.because("no job with this id waits; one that runs can't be called off").into());
        }
        Err(CancelError::Database(error)) => return Err(error.into()),
        Err(needed @ CancelError::Needed(_)) => return Err(Kind::Conflict.because(needed.to_string()).into()),
    }
    ring(&app);
    tracing::info!(operator = %operator.id, job = %id, "a job was called off");
    Ok(StatusCode::NO_CONTENT)
}
