//! Workers.

use axum::{Json, extract::State};
use shared::ids::WorkerId;

use super::{OperatorByIdProblems, OperatorProblems};
use crate::{
    error::ApiResult,
    extract::{
        PathId, ValidQuery,
        page::{Page, PageQuery},
    },
    operators::{Operator, dto::AdminWorker, fleet as service},
    state::App,
    workers::entity::Schedulability,
};

/// List workers
///
/// All that ever joined, by name, from the end of the alphabet.
#[utoipa::path(
    get, path = "/api/v1/admin/workers", operation_id = "list_workers", tag = "admin",
    security(("operator" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page of workers.", body = Page<AdminWorker>), OperatorProblems),
)]
pub(super) async fn list_workers(
    State(app): State<App>,
    _: Operator,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<AdminWorker>>> {
    Ok(Json(service::list(app.db.read(), &page).await?))
}

async fn set(app: &App, operator: &Operator, id: &WorkerId, wanted: Schedulability) -> ApiResult<Json<AdminWorker>> {
    let worker = service::set(app, id, wanted).await?;
    tracing::info!(operator = %operator.id, worker = %id, schedulability = wanted.as_str(), "a worker was told");
    Ok(Json(worker))
}

/// Cordon a worker
///
/// It gets no new sessions and keeps those that it has. Ends a drain.
#[utoipa::path(
    post, path = "/api/v1/admin/workers/{id}/cordon", operation_id = "cordon_worker", tag = "admin",
    security(("operator" = [])),
    params(("id" = String, Path, description = "The worker's name.", example = "worker-1")),
    responses((status = 200, description = "The worker, cordoned.", body = AdminWorker), OperatorByIdProblems),
)]
pub(super) async fn cordon_worker(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<WorkerId>,
) -> ApiResult<Json<AdminWorker>> {
    set(&app, &operator, &id, Schedulability::Cordoned).await
}

/// Uncordon a worker
///
/// It may take sessions again. Ends a drain.
#[utoipa::path(
    post, path = "/api/v1/admin/workers/{id}/uncordon", operation_id = "uncordon_worker", tag = "admin",
    security(("operator" = [])),
    params(("id" = String, Path, description = "The worker's name.", example = "worker-1")),
    responses((status = 200, description = "The worker, schedulable.", body = AdminWorker), OperatorByIdProblems),
)]
pub(super) async fn uncordon_worker(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<WorkerId>,
) -> ApiResult<Json<AdminWorker>> {
    set(&app, &operator, &id, Schedulability::Schedulable).await
}

/// Drain a worker
///
/// It gets no new sessions, and those that it has are moved to others, as long as there is room. `drained` says when it has none
/// left: then it can be stopped.
#[utoipa::path(
    post, path = "/api/v1/admin/workers/{id}/drain", operation_id = "drain_worker", tag = "admin",
    security(("operator" = [])),
    params(("id" = String, Path, description = "The worker's name.", example = "worker-1")),
    responses((status = 200, description = "The worker, draining.", body = AdminWorker), OperatorByIdProblems),
)]
pub(super) async fn drain_worker(
    State(app): State<App>,
    operator: Operator,
    PathId(id): PathId<WorkerId>,
) -> ApiResult<Json<AdminWorker>> {
    set(&app, &operator, &id, Schedulability::Draining).await
}
