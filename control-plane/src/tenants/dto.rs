//! The tenant as the API shows it.

use serde::{Deserialize, Serialize};
use shared::{ids::TenantId, time::Timestamp};
use utoipa::ToSchema;
use validator::Validate;

use super::{Tenant, TenantStatus};

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tenant)]
pub struct TenantDto {
    /// Its id.
    pub id: TenantId,
    /// Its name.
    #[schema(example = "Acme")]
    pub name: String,
    /// Whether it may write.
    pub status: TenantStatus,
    /// When it was made.
    pub created_at: Timestamp,
}

impl From<Tenant> for TenantDto {
    fn from(tenant: Tenant) -> Self {
        Self { id: tenant.id, name: tenant.name, status: tenant.status, created_at: tenant.created_at }
    }
}

/// What of a tenant can be changed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateTenant {
    /// Another name.
    #[validate(length(min = 1, max = 100))]
    #[schema(example = "Acme", min_length = 1, max_length = 100)]
    pub name: String,
}
