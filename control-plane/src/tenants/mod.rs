//! Tenants: the unit of isolation and of billing; and who belongs to one.
//!
//! **Owns** the tables `tenants` and `members`. A tenant has a data key of its own, sealed with the master key, which seals
//! the tenant's secrets: webhook secrets, event bodies, stored answers. `last_position` is the counter of its events; the
//! events domain raises it, last in its transactions.
//!
//! **Invariants.** A tenant is made together with its owner and its data key. A suspended tenant reads and doesn't write:
//! authentication sees to it, for every operation.

mod dto;
mod entity;
mod routes;
pub(crate) mod service;

pub use dto::TenantDto;
pub use entity::tenant::{
    ActiveModel as TenantRow, Column as TenantColumn, Entity as TenantTable, Model as Tenant, TenantStatus,
};
pub use routes::router;
pub use service::data_key;
