//! Tenants and their people as the API shows them.

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};
use shared::{
    ids::{InvitationId, TenantId, UserId},
    time::Timestamp,
};
use utoipa::ToSchema;
use validator::Validate;

use super::{Tenant, TenantStatus};
use crate::{
    auth::{EmailAddress, MIN_PASSWORD, Role, Shown},
    extract::says_something,
};

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
    /// After how many days the content of messages is erased; null: never.
    #[schema(example = 90)]
    pub retention_days: Option<i64>,
    /// If it is being deleted: when everything goes.
    pub delete_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl From<Tenant> for TenantDto {
    fn from(tenant: Tenant) -> Self {
        Self {
            id: tenant.id,
            name: tenant.name,
            status: tenant.status,
            retention_days: tenant.retention_days,
            delete_at: tenant
                .delete_at
                .filter(|_| tenant.status == TenantStatus::Deleting)
                .map(|stored| super::deletion::due(stored).0),
            created_at: tenant.created_at,
        }
    }
}

/// What of a tenant can be changed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateTenant {
    /// Another name. Absent or null: as it is.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "Acme", min_length = 1, max_length = 100)]
    pub name: Option<String>,
    /// After how many days the content of messages is erased, with the events that tell of them: 0 (as soon as they are sent) to
    /// 3650, null for never. Absent: as it is.
    #[serde(default, deserialize_with = "present")]
    #[validate(range(max = 3650))]
    #[schema(value_type = Option<u32>, maximum = 3650, example = 90)]
    pub retention_days: Option<Option<u32>>,
}

/// Tells a null from an absence.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// A person of the tenant.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Member {
    /// Who.
    pub user_id: UserId,
    /// The address that they log in with.
    #[schema(example = "grace@example.com")]
    pub email: String,
    /// What to call them.
    #[schema(example = "Grace Hopper")]
    pub name: String,
    /// What they are here.
    pub role: Role,
    /// Whether logging in asks them for a code of their device.
    pub second_factor: bool,
    /// Since when they belong to the account.
    pub joined_at: Timestamp,
}

/// Another role.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMember {
    /// Not `owner`, and not above one's own.
    #[schema(example = "developer")]
    pub role: Role,
}

/// Somebody to be invited.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInvitation {
    /// Where the mail goes.
    #[schema(value_type = String, format = Email, example = "grace@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
    /// What they are to be. Not `owner`, and not above one's own role.
    #[schema(example = "developer")]
    pub role: Role,
}

/// An invitation that wasn't accepted yet.
#[derive(Debug, Serialize, ToSchema)]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// Whom.
    #[schema(example = "grace@example.com")]
    pub email: String,
    /// As what.
    pub role: Role,
    /// By whom.
    pub invited_by: UserId,
    /// When.
    pub created_at: Timestamp,
    /// Until when it can be accepted.
    pub expires_at: Timestamp,
}

/// Accepting an invitation.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptInvitation {
    /// As the mail says it, or from the fragment of its link.
    #[validate(nested)]
    #[schema(value_type = String, example = "sbi_q2Zx…", max_length = 200)]
    pub token: Shown<0>,
    /// What to call the person: needed if the address has no account yet, else not looked at.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "Grace Hopper", min_length = 1, max_length = 100)]
    pub name: Option<String>,
    /// A password, of at least 10 characters: needed if the address has no account yet, else not looked at.
    #[validate(nested)]
    #[schema(value_type = Option<String>, format = Password, example = "correct horse battery", min_length = 10, max_length = 200)]
    pub password: Option<Shown<MIN_PASSWORD>>,
}

/// Where an invitation led. Log in next, with this `tenant_id`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Joined {
    /// The account that the person belongs to now.
    pub tenant_id: TenantId,
    /// Its name.
    #[schema(example = "Acme")]
    pub tenant_name: String,
    /// What they are in it.
    pub role: Role,
    /// The person.
    pub user_id: UserId,
}

/// One of the accounts that a person belongs to.
#[derive(Debug, Serialize, ToSchema)]
pub struct Membership {
    /// The account.
    pub tenant: TenantDto,
    /// What the person is in it.
    pub role: Role,
    /// Whether it is the one that they are logged in to.
    pub current: bool,
    /// Since when they belong to it.
    pub joined_at: Timestamp,
}

/// To whom the account is to be handed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OfferOwnership {
    /// A person of the account.
    pub user_id: UserId,
    /// One's own password.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", max_length = 200)]
    pub password: Shown<0>,
}

/// An account that is to change hands.
#[derive(Debug, Serialize, ToSchema)]
pub struct OwnershipOffer {
    /// To whom.
    pub to_user_id: UserId,
    /// When it was offered.
    pub created_at: Timestamp,
    /// Until when it can be accepted.
    pub expires_at: Timestamp,
}

/// What accepting an invitation needs to make an account, checked to be there.
pub(super) struct NewPerson {
    pub(super) name: String,
    pub(super) password: SecretString,
}
