//! Tenants: the unit of isolation and of billing; and who belongs to one.
//!
//! **Owns** the tables `tenants`, `members`, `invitations`, `ownership_offers` and `exports`. A tenant has a data key of its own, sealed with
//! the master key, which seals the tenant's secrets: webhook secrets, event bodies, stored answers. `last_position` is the counter
//! of its events; the events domain raises it, last in its transactions.
//!
//! **People.** Somebody belongs to a tenant with one role ([`crate::auth::permissions`] says what that may do), and can belong to
//! several tenants: a login is for one of them, and `POST /auth/switch` goes to another. A role is looked up in every
//! request, so another one, or being removed, takes effect at once. Who is not a member yet gets an [invitation](invitations) by
//! mail, whether they have an account or not. With a person's membership end the invitations that they sent, and with a lower role
//! those to roles above it.
//!
//! **The owner** is exactly one person, which a unique index sees to. They can't leave, be removed or be given another role; they
//! hand the tenant over by an [offer](ownership) that the other accepts, both with their passwords.
//!
//! **An [export](export)** is all that a tenant has, as one archive that a job makes. Its [deletion](deletion) comes a
//! week after its owner asked for it, and never without such an archive.
//!
//! **Invariants.** A tenant is made together with its owner and its data key, and has exactly one owner from then on. Nobody gives
//! or takes a role above their own ([`policy`]). A suspended tenant reads and doesn't write: authorisation sees to it, for every
//! operation.

mod deletion;
mod dto;
mod entity;
mod export;
mod invitations;
mod letters;
mod members;
mod ownership;
mod policy;
mod routes;
pub(crate) mod service;

use sea_orm::DbErr;

pub use deletion::Deleter;
pub use dto::TenantDto;
pub use entity::tenant::{
    ActiveModel as TenantRow, Column as TenantColumn, Entity as TenantTable, Model as Tenant, TenantStatus,
};
pub use export::Exporter;
pub use letters::Letters;
pub(crate) use members::{belongs_to_any, choose, keep_to_owner};
pub use routes::router;
pub use service::data_key;

use crate::state::App;

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!("tenants_deleted_total", "Tenants that were deleted, with all that they had.");
    metrics::describe_counter!(
        "tenants_archived_early_total",
        "Archives before a deletion that were begun although workers had not let go of all sessions."
    );
    metrics::describe_counter!("tenant_exports_total", "Archives of tenants, by outcome (ready, failed).");
}

/// Forgets invitations, offers and archives that have expired.
///
/// # Errors
/// As the driver; the others are swept all the same.
pub async fn prune(app: &App) -> Result<(), DbErr> {
    let done =
        [invitations::prune(app).await.map(drop), ownership::prune(app).await.map(drop), export::prune(app).await];
    done.into_iter().collect()
}
