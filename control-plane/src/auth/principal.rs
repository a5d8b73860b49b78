//! Callers and what they may do.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};
use shared::{
    ids::{KeyId, LoginId, TenantId, UserId},
    wire::session::Network,
};
use utoipa::ToSchema;

/// One tenant's data. Only authentication and background work that follows a tenant's own row can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantScope(TenantId);

impl TenantScope {
    /// The scope of work that was found in a row of this tenant (a job, a session, an event).
    #[must_use]
    pub const fn of_row(tenant: TenantId) -> Self {
        Self(tenant)
    }

    /// The tenant.
    #[must_use]
    pub const fn id(&self) -> &TenantId {
        &self.0
    }
}

/// What an API key may be allowed to do; people have those of their role.
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

    /// The name in JSON and in the OpenAPI document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionsRead => "sessions:read",
            Self::SessionsWrite => "sessions:write",
            Self::MessagesRead => "messages:read",
            Self::MessagesSend => "messages:send",
            Self::Webhooks => "webhooks",
            Self::UsageRead => "usage:read",
        }
    }
}

/// What a person is in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// May do everything.
    Owner,
}

impl Role {
    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        [Self::Owner].into_iter().find(|role| role.as_str() == text)
    }
}

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A person, logged in.
    User {
        /// Who.
        user_id: UserId,
        /// What they are in this tenant.
        role: Role,
        /// Through which login.
        login_id: LoginId,
    },
    /// A program.
    Key {
        /// Its key.
        key_id: KeyId,
        /// What the key may do.
        scopes: Vec<Scope>,
        /// Which network the sessions that it makes speak to.
        network: Network,
    },
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Whose data.
    pub tenant: TenantScope,
    /// Who acts.
    pub actor: Actor,
}

impl Principal {
    /// Whether this caller has a scope.
    #[must_use]
    pub fn has(&self, scope: Scope) -> bool {
        match &self.actor {
            Actor::User { role: Role::Owner, .. } => true,
            Actor::Key { scopes, .. } => scopes.contains(&scope),
        }
    }

    /// The actor's id, for idempotency records and audit.
    #[must_use]
    pub fn actor_id(&self) -> &str {
        match &self.actor {
            Actor::User { user_id, .. } => user_id.as_str(),
            Actor::Key { key_id, .. } => key_id.as_str(),
        }
    }
}

/// What a handler asks of its caller.
pub trait ScopeMarker: Send + Sync + 'static {
    /// The scope, or nothing if any caller who is logged in may.
    const SCOPE: Option<Scope>;
    /// Whether programs may call it; keys can't make keys or change people.
    const KEYS: bool;
}

/// Markers for [`Auth`].
pub mod scopes {
    use super::{Scope, ScopeMarker};

    macro_rules! markers {
        ($($(#[$doc:meta])* $name:ident = $scope:expr, $keys:literal;)*) => {$(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            impl ScopeMarker for $name {
                const SCOPE: Option<Scope> = $scope;
                const KEYS: bool = $keys;
            }
        )*};
    }

    markers! {
        /// Any authenticated caller.
        Anyone = None, true;
        /// A person, not a program.
        People = None, false;
        /// See [`Scope::SessionsRead`].
        SessionsRead = Some(Scope::SessionsRead), true;
        /// See [`Scope::SessionsWrite`].
        SessionsWrite = Some(Scope::SessionsWrite), true;
        /// See [`Scope::MessagesRead`].
        MessagesRead = Some(Scope::MessagesRead), true;
        /// See [`Scope::MessagesSend`].
        MessagesSend = Some(Scope::MessagesSend), true;
        /// See [`Scope::Webhooks`].
        Webhooks = Some(Scope::Webhooks), true;
        /// See [`Scope::UsageRead`].
        UsageRead = Some(Scope::UsageRead), true;
    }
}

/// A caller who may do what `S` says. Extracting it is the authorisation.
#[derive(Debug, Clone)]
pub struct Auth<S> {
    /// The caller.
    pub principal: Principal,
    marker: PhantomData<S>,
}

impl<S: ScopeMarker> Auth<S> {
    /// Checks a caller against the marker.
    pub(crate) fn check(principal: Principal) -> Result<Self, crate::error::Refusal> {
        use crate::error::Kind;
        if !S::KEYS && matches!(principal.actor, Actor::Key { .. }) {
            return Err(Kind::MissingScope.because("an API key can't do this: log in as a person"));
        }
        match S::SCOPE {
            Some(scope) if !principal.has(scope) => {
                Err(Kind::MissingScope.because(format!("the scope {} is needed", scope.as_str())))
            }
            _ => Ok(Self { principal, marker: PhantomData }),
        }
    }

    /// Whose data.
    #[must_use]
    pub const fn tenant(&self) -> &TenantScope {
        &self.principal.tenant
    }
}
