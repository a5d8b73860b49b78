//! `/api/v1/tenant…`, `/api/v1/members`, `/api/v1/invitations`, `/api/v1/me/tenants`.

mod deletion;
mod exports;
mod invitations;
mod members;
mod ownership;
mod tenant;

use axum::response::Response;
use sea_orm::DatabaseTransaction;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    auth::{self, Caller, Person, Shown},
    error::ApiResult,
    idempotency::{self, Idempotent, Reply},
    jobs::JobKind,
    state::App,
};

/// The routes of tenants and their people.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(tenant::get_tenant, tenant::update_tenant))
        .routes(routes!(exports::create_export, exports::list_exports))
        .routes(routes!(exports::get_export))
        .routes(routes!(exports::download_export))
        .routes(routes!(deletion::delete_tenant, deletion::keep_tenant))
        .routes(routes!(members::leave_tenant))
        .routes(routes!(
            ownership::get_ownership_offer,
            ownership::offer_ownership,
            ownership::withdraw_ownership_offer
        ))
        .routes(routes!(ownership::accept_ownership))
        .routes(routes!(members::list_members))
        .routes(routes!(members::get_member, members::update_member, members::remove_member))
        .routes(routes!(members::list_memberships))
        .routes(routes!(invitations::create_invitation, invitations::list_invitations))
        .routes(routes!(invitations::delete_invitation))
        .routes(routes!(invitations::accept_invitation))
}

/// Does what a person confirms by their password, once for an idempotency key, and rings for the jobs that come of it.
async fn confirmed<F>(
    app: &App,
    (person, password): (Person<'_>, Shown<0>),
    caller: Caller,
    idempotent: Idempotent,
    rings: &[JobKind],
    work: F,
) -> ApiResult<Response>
where
    F: AsyncFnOnce(&DatabaseTransaction) -> ApiResult<Reply>,
{
    auth::confirm_password(app, caller, person.id, password.into_secret()).await?;
    let response = idempotent.run(app, idempotency::DAY, work).await?;
    for kind in rings {
        app.bell.ring(*kind);
    }
    Ok(response)
}
