//! Prefixed, sortable ids.
//!
//! An id says what it is (`ses_…`, `msg_…`) and sorts by the time it was made: a UUIDv7 in lower-case
//! Crockford base32 behind a prefix (the [TypeID](https://github.com/jetify-com/typeid) format). Parsing checks
//! both parts, so an id of one kind can't be used as another, and a made-up one is refused before any query.
//!
//! A [`WorkerId`] is different: operators choose it, so it is normalised instead of generated.

use std::{borrow::Cow, fmt, str::FromStr};

use sea_orm::{DbErr, DeriveValueType, TryFromU64};
use serde::{Deserialize, Serialize};
use type_safe_id::{DynamicType, TypeSafeId};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};

/// Why a text is not an id of the kind asked for. Carries nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind} id")]
pub struct InvalidId {
    /// The prefix that was expected, without its underscore.
    pub kind: &'static str,
}

/// What follows an id's prefix: an underscore and 26 characters.
const SUFFIX: usize = 27;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, DeriveValueType)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The prefix of this kind of id, without its underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, later in sort order than every id made in an earlier millisecond.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "each call gives another value")]
            pub fn new() -> Self {
                let kind = DynamicType::new($prefix).unwrap_or_else(|_| unreachable!("prefixes are lower-case letters"));
                Self(TypeSafeId::from_type_and_uuid(kind, uuid::Uuid::now_v7()).to_string())
            }

            /// The id whose number is zero: of nothing in particular, before every other.
            #[must_use]
            pub fn nil() -> Self {
                let kind = DynamicType::new($prefix).unwrap_or_else(|_| unreachable!("prefixes are lower-case letters"));
                Self(TypeSafeId::from_type_and_uuid(kind, uuid::Uuid::nil()).to_string())
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // The library cuts a prefix that is too long at a byte, which may lie within a character: it panics then.
                if text.len() != $prefix.len() + SUFFIX || !text.is_ascii() {
                    return Err(InvalidId { kind: $prefix });
                }
                match text.parse::<TypeSafeId<DynamicType>>() {
                    Ok(id) if id.type_prefix() == $prefix => Ok(Self(text.to_owned())),
                    _ => Err(InvalidId { kind: $prefix }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFromU64 for $name {
            /// Never: these ids are not numbers. The object-relational mapper asks it of every primary key.
            fn try_from_u64(_: u64) -> Result<Self, DbErr> {
                Err(DbErr::ConvertFromU64("an id that is text"))
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .pattern(Some(concat!("^", $prefix, "_[0-7][0-9a-hjkmnp-tv-z]{25}$")))
                    .examples([concat!($prefix, "_01h455vb4pex5vsknk084sn02q")])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )*};
}

ids! {
    /// A tenant: the unit of isolation and of billing.
    TenantId = "ten";
    /// A person who logs in.
    UserId = "usr";
    /// An invitation to a tenant.
    InvitationId = "ivt";
    /// An operator of the installation.
    OperatorId = "opr";
    /// An archive of all that a tenant has.
    ExportId = "exp";
    /// An API key.
    KeyId = "key";
    /// A login: one family of refresh tokens.
    LoginId = "lgn";
    /// A WhatsApp session: one linked device.
    SessionId = "ses";
    /// A message in a tenant's history, in either direction.
    MessageId = "msg";
    /// A webhook endpoint.
    WebhookId = "whk";
    /// One entry of an audit log: what somebody asked for, and what came of it.
    AuditId = "aud";
    /// One event on its way to one webhook endpoint.
    DeliveryId = "dlv";
    /// A stored event.
    EventId = "evt";
    /// A durable job.
    JobId = "job";
    /// A mail on its way to a person.
    MailId = "mai";
    /// A data-plane store: fixed when the store is made, shared by its workers.
    StoreId = "str";
    /// One run of a worker process.
    Incarnation = "inc";
}

/// A worker's name: 1 to 50 characters of `[a-z0-9-]`, chosen by the operator.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, DeriveValueType)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

impl WorkerId {
    /// The longest name after normalisation, in characters.
    pub const MAX_CHARS: usize = 50;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerId {
    type Err = InvalidId;

    /// Normalises: trims, lower-cases, and turns each run of anything but `[a-z0-9]` into one `-`.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let lower = text.trim().to_lowercase();
        let name = lower
            .split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit())
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("-");
        if name.is_empty() || name.len() > Self::MAX_CHARS {
            return Err(InvalidId { kind: "worker" });
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for WorkerId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> String {
        id.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFromU64 for WorkerId {
    /// Never: these ids are not numbers. The object-relational mapper asks it of every primary key.
    fn try_from_u64(_: u64) -> Result<Self, DbErr> {
        Err(DbErr::ConvertFromU64("an id that is text"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_of_one_kind_is_refused_as_another() {
        let session = SessionId::new();
        assert_eq!(session.as_str().parse::<SessionId>(), Ok(session.clone()));
        assert!(session.as_str().parse::<MessageId>().is_err());
        assert!("ses_".parse::<SessionId>().is_err());
        assert!("ses_8zzzzzzzzzzzzzzzzzzzzzzzzz".parse::<SessionId>().is_err(), "more than 128 bits");
    }

    #[test]
    fn a_worker_id_is_normalised() {
        let id = |text: &str| text.parse::<WorkerId>().map(String::from);
        assert_eq!(id("  Worker_1 (EU)  "), Ok("worker-1-eu".to_owned()));
        assert!(id(" -- ").is_err());
        assert!(id(&"a".repeat(51)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd_to_be_refused(text in "(ses_)?\\PC{0,80}_?\\PC{0,30}") {
            prop_assert!(text.parse::<SessionId>().is_err() || text.is_ascii());
        }

        #[test]
        fn normalising_a_worker_id_twice_changes_nothing(text in ".{0,80}") {
            if let Ok(id) = text.parse::<WorkerId>() {
                prop_assert_eq!(id.as_str().parse::<WorkerId>(), Ok(id.clone()));
            }
        }
    }
}
