//! What may be done, and by whom: one table of roles and permissions.
//!
//! Every operation needs one permission or none. A person has those of their role ([`TABLE`]); an API key has those that it was
//! given of the ones that keys can have ([`Scope`]). A role that stands higher may do all that a lower one may, so nobody loses
//! anything by being promoted. `docs/roles.md` is rendered from here.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

macro_rules! permissions {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal: $($role:ident)+;)*) => {
        /// Something that may be done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Permission {$(
            $(#[doc = $doc])+
            #[serde(rename = $text)]
            $name,
        )*}

        /// Who may do what.
        pub const TABLE: &[(Permission, &[Role])] = &[$((Permission::$name, &[$(Role::$role),+]),)*];

        impl Permission {
            /// The name in JSON, in refusals and in the OpenAPI document.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it is, for `docs/roles.md`.
            const fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)* }
            }
        }
    };
}

impl PartialSchema for Permission {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("Something that may be done."))
            .enum_values(Some(TABLE.iter().map(|(permission, _)| permission.as_str())))
            .into()
    }
}

impl ToSchema for Permission {}

permissions! {
    /// See sessions, their status and QR codes.
    SessionsRead = "sessions:read": Owner Admin Developer Agent Viewer;
    /// Make, start, stop, log out and delete sessions.
    SessionsWrite = "sessions:write": Owner Admin Developer;
    /// Read message history.
    MessagesRead = "messages:read": Owner Admin Developer Agent Viewer;
    /// Send messages.
    MessagesSend = "messages:send": Owner Admin Developer Agent;
    /// See and change webhook endpoints and their deliveries.
    Webhooks = "webhooks": Owner Admin Developer;
    /// Read metered usage.
    UsageRead = "usage:read": Owner Admin Developer Agent Viewer;
    /// See who belongs to the account.
    MembersRead = "members:read": Owner Admin Developer Agent Viewer;
    /// Invite people, give them other roles, and remove them.
    MembersWrite = "members:write": Owner Admin;
    /// Make, see, rotate and delete API keys.
    ApiKeys = "api-keys": Owner Admin Developer;
    /// Read the audit log: who changed what.
    AuditRead = "audit:read": Owner Admin;
    /// Rename the account and set what it keeps for how long.
    TenantWrite = "tenant:write": Owner Admin;
    /// Give the account to somebody else, export it, or delete it.
    TenantOwn = "tenant:own": Owner;
}

impl Permission {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|(permission, _)| *permission)
    }

    /// The permission of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|permission| permission.as_str() == name)
    }

    /// The roles that have it, the highest first.
    #[must_use]
    pub fn roles(self) -> &'static [Role] {
        TABLE.iter().find(|(permission, _)| *permission == self).map_or(&[], |(_, roles)| roles)
    }

    /// The scope that gives it to an API key, if keys can have it.
    #[must_use]
    pub fn scope(self) -> Option<Scope> {
        Scope::ALL.into_iter().find(|scope| scope.permission() == self)
    }
}

/// What an API key may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// See sessions, their status and QR codes.
    #[serde(rename = "sessions:read")]
    SessionsRead,
    /// Make, start, stop, log out and delete sessions.
    #[serde(rename = "sessions:write")]
    SessionsWrite,
    /// Read message history.
    #[serde(rename = "messages:read")]
    MessagesRead,
    /// Send messages.
    #[serde(rename = "messages:send")]
    MessagesSend,
    /// See and change webhook endpoints and their deliveries.
    #[serde(rename = "webhooks")]
    Webhooks,
    /// Read metered usage.
    #[serde(rename = "usage:read")]
    UsageRead,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SessionsRead,
        Self::SessionsWrite,
        Self::MessagesRead,
        Self::MessagesSend,
        Self::Webhooks,
        Self::UsageRead,
    ];

    /// The permission that it gives, which has the same name.
    #[must_use]
    pub const fn permission(self) -> Permission {
        match self {
            Self::SessionsRead => Permission::SessionsRead,
            Self::SessionsWrite => Permission::SessionsWrite,
            Self::MessagesRead => Permission::MessagesRead,
            Self::MessagesSend => Permission::MessagesSend,
            Self::Webhooks => Permission::Webhooks,
            Self::UsageRead => Permission::UsageRead,
        }
    }

    /// Whether all that it leads to belongs to one session or another, so that a key which is limited to some can have it.
    #[must_use]
    pub const fn is_of_sessions(self) -> bool {
        match self {
            Self::SessionsRead | Self::SessionsWrite | Self::MessagesRead | Self::MessagesSend => true,
            Self::Webhooks | Self::UsageRead => false,
        }
    }

    /// The name in JSON and in the OpenAPI document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.permission().as_str()
    }
}

/// What a person is in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// May look.
    Viewer,
    /// Talks to people.
    Agent,
    /// Builds programs on the API.
    Developer,
    /// Runs the account.
    Admin,
    /// Answers for the account. There is exactly one.
    Owner,
}

impl Role {
    /// All of them, the highest first.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Admin, Self::Developer, Self::Agent, Self::Viewer];

    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Agent => "agent",
            Self::Viewer => "viewer",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Whether people of this role may do it.
    #[must_use]
    pub fn may(self, permission: Permission) -> bool {
        permission.roles().contains(&self)
    }

    /// All that people of this role may do.
    #[must_use]
    pub fn permissions(self) -> Vec<Permission> {
        Permission::all().filter(|permission| self.may(*permission)).collect()
    }
}

/// `docs/roles.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(
        "<!-- Made by `control-plane roles-doc` from the table in control-plane/src/auth/permissions.rs. Don't edit. -->\n\n\
         # Roles and scopes\n\n\
         Every operation needs one permission, or none but being logged in; the OpenAPI document names it, and the \
         roles that have it, as each operation's `x-access`. A person has the permissions of their role in the account. An API key has the \
         ones that it was given as scopes: only those marked can be given to keys.\n\n| permission |",
    );
    for role in Role::ALL {
        let _infallible = write!(text, " {} |", role.as_str());
    }
    text.push_str(" keys | what |\n|---|");
    text.push_str(&"---|".repeat(Role::ALL.len() + 2));
    text.push('\n');
    for permission in Permission::all() {
        let mark = |has: bool| if has { " ✓ |" } else { " |" };
        let _infallible = write!(text, "| `{}` |", permission.as_str());
        for role in Role::ALL {
            text.push_str(mark(role.may(permission)));
        }
        text.push_str(mark(permission.scope().is_some()));
        let _infallible = writeln!(text, "{} |", permission.explanation());
    }
    text.push_str(
        "\nAn account has exactly one owner, who hands it over with the other's consent. Others are given a role by the owner or \
         an admin, and nobody can give a role above their own. A key that is limited to some sessions can have the scopes of \
         sessions and messages only.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roles() -> impl Strategy<Value = Role> {
        prop::sample::select(Role::ALL.to_vec())
    }

    fn permissions() -> impl Strategy<Value = Permission> {
        prop::sample::select(Permission::all().collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn a_higher_role_may_do_all_that_a_lower_one_may(
            lower in roles(), higher in roles(), permission in permissions(),
        ) {
            prop_assume!(lower <= higher);
            prop_assert!(!lower.may(permission) || higher.may(permission));
        }

        #[test]
        fn names_are_read_back(role in roles(), permission in permissions()) {
            prop_assert_eq!(Role::from_stored(role.as_str()), Some(role));
            prop_assert_eq!(Permission::named(permission.as_str()), Some(permission));
            prop_assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
            prop_assert_eq!(serde_json::to_value(permission).unwrap(), permission.as_str());
        }

        #[test]
        fn what_changes_people_keys_or_the_account_is_never_a_key_s(permission in permissions()) {
            use Permission::{ApiKeys, AuditRead, MembersRead, MembersWrite, TenantOwn, TenantWrite};
            let for_people = [MembersRead, MembersWrite, ApiKeys, AuditRead, TenantWrite, TenantOwn].contains(&permission);
            prop_assert_eq!(permission.scope().is_none(), for_people);
        }
    }

    #[test]
    fn every_scope_is_a_permission_of_the_same_name() {
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.permission().as_str());
            assert_eq!(scope.permission().scope(), Some(scope));
        }
    }

    #[test]
    fn the_owner_may_everything_and_a_viewer_changes_nothing() {
        assert_eq!(Role::Owner.permissions().len(), TABLE.len());
        assert!(Role::Viewer.permissions().iter().all(|permission| permission.as_str().ends_with(":read")));
        assert!(Role::ALL.is_sorted_by(|a, b| a > b));
    }
}
