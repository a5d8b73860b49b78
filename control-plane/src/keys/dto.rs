//! API keys as the API shows them.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use shared::{
    ids::{KeyId, UserId},
    time::Timestamp,
    wire::session::Network,
};
use utoipa::ToSchema;
use validator::{Validate, ValidationError};

use crate::auth::Scope;

/// A key to be made.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// To tell it from others.
    #[validate(length(min = 1, max = 100))]
    #[schema(example = "order system", min_length = 1, max_length = 100)]
    pub name: String,
    /// Which network the sessions that it makes speak to.
    pub network: Network,
    /// What it may do.
    #[validate(length(min = 1, max = 32))]
    #[schema(min_items = 1, max_items = 32)]
    pub scopes: Vec<Scope>,
    /// When it stops to work by itself; absent: never.
    #[validate(custom(function = "in_the_future"))]
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

fn in_the_future(at: &Timestamp) -> Result<(), ValidationError> {
    if *at > Timestamp::now() {
        Ok(())
    } else {
        Err(ValidationError::new("past").with_message("must lie in the future".into()))
    }
}

/// A key, without the key itself.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// What its maker calls it.
    #[schema(example = "order system")]
    pub name: String,
    /// Which network the sessions that it makes speak to.
    pub network: Network,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The last four characters of the key.
    #[schema(example = "x7Qz")]
    pub last_four: String,
    /// Who made it.
    pub created_by: UserId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to work by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

/// A new key. The only time that the key itself is shown.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreatedApiKey {
    /// What is stored of it.
    #[serde(flatten)]
    pub api_key: ApiKey,
    /// The key. It can't be shown again.
    #[serde(serialize_with = "shown_once")]
    #[schema(value_type = String, example = "sb_test_4mS0lq9…")]
    pub key: SecretString,
}

fn shown_once<S: Serializer>(key: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(key.expose_secret())
}
