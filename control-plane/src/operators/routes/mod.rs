//! `/api/v1/admin`.

mod auth;
mod fleet;
mod jobs;
mod plans;
mod second_factor;
mod tenants;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    error::Kind,
    openapi::{BODY, BY_ID, problem_responses},
    state::App,
};

/// The operators' routes.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(auth::log_in_operator))
        .routes(routes!(auth::log_in_operator_with_code))
        .routes(routes!(auth::log_out_operator))
        .routes(routes!(auth::get_operator))
        .routes(routes!(second_factor::get_operator_second_factor, second_factor::enrol_operator_second_factor))
        .routes(routes!(second_factor::confirm_operator_second_factor))
        .routes(routes!(second_factor::disable_operator_second_factor))
        .routes(routes!(second_factor::renew_operator_recovery_codes))
        .routes(routes!(tenants::get_overview))
        .routes(routes!(tenants::list_tenants))
        .routes(routes!(tenants::get_tenant_as_operator))
        .routes(routes!(tenants::suspend_tenant))
        .routes(routes!(tenants::resume_tenant))
        .routes(routes!(tenants::get_usage_of_tenant))
        .routes(routes!(plans::get_plan_of_tenant, plans::assign_plan, plans::unassign_plan))
        .routes(routes!(plans::begin_trial, plans::end_trial))
        .routes(routes!(plans::override_plan, plans::replace_overrides))
        .routes(routes!(plans::list_all_plans, plans::apply_plans))
        .routes(routes!(plans::list_plan_versions))
        .routes(routes!(tenants::list_all_sessions))
        .routes(routes!(tenants::move_session))
        .routes(routes!(fleet::list_workers))
        .routes(routes!(fleet::cordon_worker))
        .routes(routes!(fleet::uncordon_worker))
        .routes(routes!(fleet::drain_worker))
        .routes(routes!(jobs::list_dead_jobs))
        .routes(routes!(jobs::redrive_job))
        .routes(routes!(jobs::cancel_job))
}

/// What an operation that takes an operator can answer with.
const OPERATOR: &[Kind] = &[Kind::Unauthenticated];

problem_responses!(OperatorProblems = OPERATOR);
problem_responses!(OperatorByIdProblems = OPERATOR, BY_ID);
problem_responses!(OperatorByIdBodyProblems = OPERATOR, BY_ID, BODY);
