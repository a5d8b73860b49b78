//! API keys as the API shows them.

use std::net::IpAddr;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use shared::{
    ids::{KeyId, SessionId, UserId},
    networks,
    time::Timestamp,
    wire::session::Network,
};
use utoipa::ToSchema;
use validator::{Validate, ValidationError};

use crate::{auth::Scope, extract::says_something};

/// A key to be made.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// To tell it from others.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "order system", min_length = 1, max_length = 100)]
    pub name: String,
    /// Which network the sessions that it makes speak to.
    pub network: Network,
    /// What it may do.
    #[validate(length(min = 1, max = 32))]
    #[schema(min_items = 1, max_items = 32)]
    pub scopes: Vec<Scope>,
    /// The only sessions that it may reach, up to 100; absent: all of the account. Such a key can have the scopes of sessions and
    /// messages only, and makes no sessions.
    #[validate(length(min = 1, max = 100))]
    #[schema(min_items = 1, max_items = 100)]
    pub session_ids: Option<Vec<SessionId>>,
    /// The only networks that it may be used from, up to 50, as CIDR or as single addresses; absent: anywhere.
    #[validate(length(min = 1, max = 50))]
    #[schema(min_items = 1, max_items = 50, example = json!(["203.0.113.0/24", "2001:db8::/48"]))]
    pub allowed_ips: Option<Vec<AddressRange>>,
    /// When it stops to work by itself; absent: never.
    #[validate(custom(function = "in_the_future"))]
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "203.0.113.0/24", max_length = 49, pattern = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$")]
pub struct AddressRange(pub(super) IpNet);

/// Why a text is no network. Carries nothing of the text.
#[derive(Debug, thiserror::Error)]
#[error("must be an IP address or a network such as 203.0.113.0/24")]
pub struct InvalidRange;

impl TryFrom<String> for AddressRange {
    type Error = InvalidRange;
    fn try_from(text: String) -> Result<Self, InvalidRange> {
        let network = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.to_canonical().into()));
        network.map(|network: IpNet| Self(networks::canonical(network.trunc()))).map_err(|_| InvalidRange)
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.0.to_string()
    }
}

/// How a key is replaced.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateApiKey {
    /// How long the present key works on, in seconds, up to a week; absent: a day.
    #[validate(range(max = 604_800))]
    #[schema(minimum = 0, maximum = 604_800, default = 86_400, example = 3600)]
    pub overlap_seconds: Option<u32>,
    /// When the new key stops to work by itself. Absent: it works for as long as the present one was made for.
    #[validate(custom(function = "in_the_future"))]
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
    /// The only sessions that it may reach; null: all.
    pub session_ids: Option<Vec<SessionId>>,
    /// The only networks that it may be used from; null: any.
    #[schema(example = json!(["203.0.113.0/24"]))]
    pub allowed_ips: Option<Vec<AddressRange>>,
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
    /// The key that it was rotated to.
    pub replaced_by: Option<KeyId>,
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("203.0.113.0/24", Some("203.0.113.0/24"))]
    #[case("203.0.113.77/24", Some("203.0.113.0/24"))]
    #[case("203.0.113.7", Some("203.0.113.7/32"))]
    #[case("2001:db8::1", Some("2001:db8::1/128"))]
    #[case("::ffff:203.0.113.7", Some("203.0.113.7/32"))]
    #[case("::ffff:203.0.113.0/120", Some("203.0.113.0/24"))]
    #[case("2001:DB8::/32", Some("2001:db8::/32"))]
    #[case("203.0.113.0/33", None)]
    #[case("203.0.113", None)]
    #[case("example.com", None)]
    #[case("", None)]
    fn a_network_is_read_from_either_form(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(AddressRange::try_from(text.to_owned()).ok().map(String::from).as_deref(), expected);
    }
}
