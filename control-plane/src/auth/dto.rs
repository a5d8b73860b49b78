//! Signing up and logging in, as the API shows them.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use shared::{
    ids::{TenantId, UserId},
    time::Timestamp,
};
use utoipa::ToSchema;
use validator::{Validate, ValidateEmail, ValidationError};

use super::Role;
use crate::tenants::TenantDto;

/// The shortest password, in characters. NIST SP 800-63B asks for length and for no composition rules.
const MIN_PASSWORD: usize = 10;
/// The longest secret, in bytes: hashing is paid by us.
const MAX_SECRET: usize = 200;

/// Somebody who wants an account.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignUp {
    /// E-mail address to log in with.
    #[schema(value_type = String, format = Email, example = "ada@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
    /// At least 10 characters.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", min_length = 10, max_length = 200)]
    pub password: Shown<MIN_PASSWORD>,
    /// What to call the person.
    #[validate(length(min = 1, max = 100))]
    #[schema(example = "Ada Lovelace", min_length = 1, max_length = 100)]
    pub name: String,
    /// What to call the account.
    #[validate(length(min = 1, max = 100))]
    #[schema(example = "Acme", min_length = 1, max_length = 100)]
    pub tenant_name: String,
}

/// Somebody who has an account.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// E-mail address.
    #[schema(value_type = String, format = Email, example = "ada@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
    /// Password.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", max_length = 200)]
    pub password: Shown<0>,
}

/// A refresh token, to be used or ended.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshToken {
    /// From the last answer that had one.
    #[validate(nested)]
    #[schema(value_type = String, example = "sbr_q2Zx…", max_length = 200)]
    pub refresh_token: Shown<0>,
}

/// An e-mail address, in lower case and without white space around it.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct EmailAddress(String);

impl EmailAddress {
    /// For the database; never for a log.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmailAddress(…)")
    }
}

impl From<String> for EmailAddress {
    fn from(text: String) -> Self {
        Self(text.trim().to_lowercase())
    }
}

impl Validate for EmailAddress {
    fn validate(&self) -> Result<(), validator::ValidationErrors> {
        if self.0.len() <= 254 && self.0.validate_email() {
            return Ok(());
        }
        let mut errors = validator::ValidationErrors::new();
        errors.add("__all__", ValidationError::new("email"));
        Err(errors)
    }
}

/// A secret that a caller shows, of at least `MIN` characters.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Shown<const MIN: usize>(SecretString);

impl<const MIN: usize> Shown<MIN> {
    /// The secret.
    pub(super) fn into_secret(self) -> SecretString {
        self.0
    }
}

impl<const MIN: usize> std::fmt::Debug for Shown<MIN> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown(…)")
    }
}

impl<const MIN: usize> Validate for Shown<MIN> {
    fn validate(&self) -> Result<(), validator::ValidationErrors> {
        let text = self.0.expose_secret();
        if text.chars().count() >= MIN && text.len() <= MAX_SECRET {
            return Ok(());
        }
        let mut errors = validator::ValidationErrors::new();
        let bounds = format!("must have {MIN} to {MAX_SECRET} characters");
        errors.add("__all__", ValidationError::new("length").with_message(bounds.into()));
        Err(errors)
    }
}

/// A login's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tokens {
    /// To be sent as `Authorization: Bearer …`.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSJ9…")]
    pub access_token: SecretString,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    pub token_type: &'static str,
    /// How long the access token lives, in seconds.
    #[schema(example = 900)]
    pub expires_in: u64,
    /// To be exchanged, once, for the next pair of tokens.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "sbr_q2Zx…")]
    pub refresh_token: SecretString,
    /// Until when the login can be continued.
    pub refresh_expires_at: Timestamp,
    /// Who is logged in.
    pub user_id: UserId,
    /// To which tenant.
    pub tenant_id: TenantId,
}

fn expose<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

/// The person who is logged in.
#[derive(Debug, Serialize, ToSchema)]
pub struct Me {
    /// Their id.
    pub id: UserId,
    /// The address that they log in with.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// What to call them.
    #[schema(example = "Ada Lovelace")]
    pub name: String,
    /// What they are in the tenant.
    pub role: Role,
    /// The tenant that they are logged in to.
    pub tenant: TenantDto,
    /// When they signed up.
    pub created_at: Timestamp,
}

/// What of oneself can be changed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMe {
    /// Another name.
    #[validate(length(min = 1, max = 100))]
    #[schema(example = "Ada King", min_length = 1, max_length = 100)]
    pub name: String,
}
