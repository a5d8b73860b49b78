//! Plans: what a tenant may do and how much of it.
//!
//! **Owns** the tables `plan_versions`, `plan_settings`, `subscriptions` and `quota_counters`. The operator defines plans in a file
//! and applies it ([`command`]), or sends it ([`operator`]); a plan that differs from its newest version gets a new one, and versions never change, so
//! that what a tenant was sold stays what it was sold. `plan_settings` says which plan those have who have none, and which a new
//! tenant may try for some days.
//!
//! **One order** decides ([`terms::resolve`]): an override of the operator for this tenant, entitlement by entitlement; else the
//! trial, while it lasts; else the version of the plan that the tenant was given; else the newest version of the default plan.
//!
//! **Limits** are enforced where the thing is made, in the transaction that makes it. Things that are counted
//! ([`admit`]: sessions, API keys, webhooks, members) are counted under a lock on the tenant's row, so that two that are made at
//! once count each other. Messages of a month are a quota ([`quota`]): the transaction that accepts one takes a unit, and the one
//! in which the message fails or expires gives it back.
//!
//! **Invariants.** A tenant always has entitlements: there is a default plan from the first migration on, which limits nothing
//! until the operator says otherwise. No counter exceeds its limit but by what was accepted under another limit, or was sent after
//! its unit had been given back; and, on PostgreSQL, by what was taken without a limit and acknowledged in the very transaction's time in
//! which a month is first counted: neither sees the other. Not to let those few through would have every acknowledgement of every tenant
//! take a lock.

mod admit;
pub(crate) mod archive;
pub mod command;
mod dto;
pub(crate) mod file;
pub(crate) mod operator;
pub mod quota;
mod routes;
mod store;
pub mod terms;

pub use admit::{admit, require};
pub use routes::router;
pub(crate) use store::begin_trial;
pub use store::{entitlements, pool};
pub use terms::{Entitlements, Feature, Limit};

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "plan_refusals_total",
        "Requests refused because of the tenant's plan, by limit or feature."
    );
    metrics::describe_counter!("quota_units_total", "Units of quotas that were reserved or given back, by quota.");
}
