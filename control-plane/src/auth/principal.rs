//! Callers and what they may do.

use std::{marker::PhantomData, sync::Arc};

use shared::{
    ids::{KeyId, LoginId, SessionId, TenantId, UserId},
    wire::session::Network,
};

use crate::error::{ApiError, ApiResult, Kind, Refusal};

use super::permissions::{Permission, Role, Scope};

/// One tenant's data, or what of it concerns some sessions. Only authentication and background work that follows a tenant's own
/// row can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantScope {
    tenant: TenantId,
    sessions: Option<Arc<[SessionId]>>,
    network: Option<Network>,
}

impl TenantScope {
    /// The scope of work that was found in a row of this tenant (a job, a session, an event).
    #[must_use]
    pub const fn of_row(tenant: TenantId) -> Self {
        Self { tenant, sessions: None, network: None }
    }

    /// Only what concerns these sessions: everything else is as if it didn't exist. Whoever reads sessions, messages or events asks
    /// [`sessions`](Self::sessions).
    #[must_use]
    pub(crate) fn only(self, sessions: Vec<SessionId>) -> Self {
        Self { sessions: Some(sessions.into()), ..self }
    }

    /// Only what concerns sessions of this network: others are as if they didn't exist. Whoever reads sessions, messages or events asks
    /// [`network`](Self::network).
    #[must_use]
    pub(crate) fn of_network(self, network: Network) -> Self {
        Self { network: Some(network), ..self }
    }

    /// The network that it is limited to, if it is.
    #[must_use]
    pub const fn network(&self) -> Option<Network> {
        self.network
    }

    /// The sessions that it is limited to, if it is.
    #[must_use]
    pub fn sessions(&self) -> Option<&[SessionId]> {
        self.sessions.as_deref()
    }

    /// Whether a session of the tenant lies in it.
    #[must_use]
    pub fn reaches(&self, session: &SessionId, network: Network) -> bool {
        self.sessions.as_ref().is_none_or(|only| only.contains(session))
            && self.network.is_none_or(|only| only == network)
    }

    /// The tenant.
    #[must_use]
    pub const fn id(&self) -> &TenantId {
        &self.tenant
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
    /// Whether the tenant may only read now.
    pub frozen: bool,
}

impl Principal {
    /// Whether this caller may do it.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        match &self.actor {
            Actor::User { role, .. } => role.may(permission),
            Actor::Key { scopes, .. } => scopes.iter().any(|scope| scope.permission() == permission),
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
    /// The permission, or nothing if anybody who is logged in may.
    const PERMISSION: Option<Permission>;
    /// Whether programs may call it; keys can't make keys or change people.
    const KEYS: bool;
    /// Whether it is also possible, if it writes, while the tenant may only read: it is about the person, not the tenant.
    const FROZEN: bool;
}

/// Markers for [`Auth`].
pub mod scopes {
    use super::{Permission, ScopeMarker};

    macro_rules! markers {
        ($($(#[$doc:meta])* $name:ident = $permission:expr, keys: $keys:literal, frozen: $frozen:literal;)*) => {$(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            impl ScopeMarker for $name {
                const PERMISSION: Option<Permission> = $permission;
                const KEYS: bool = $keys;
                const FROZEN: bool = $frozen;
            }
        )*};
    }

    markers! {
        /// Any authenticated caller.
        Anyone = None, keys: true, frozen: false;
        /// A person, not a program.
        People = None, keys: false, frozen: false;
        /// A person, about themselves: also while their tenant may only read.
        Oneself = None, keys: false, frozen: true;
        /// See [`Permission::SessionsRead`].
        SessionsRead = Some(Permission::SessionsRead), keys: true, frozen: false;
        /// See [`Permission::SessionsWrite`].
        SessionsWrite = Some(Permission::SessionsWrite), keys: true, frozen: false;
        /// See [`Permission::MessagesRead`].
        MessagesRead = Some(Permission::MessagesRead), keys: true, frozen: false;
        /// See [`Permission::MessagesSend`].
        MessagesSend = Some(Permission::MessagesSend), keys: true, frozen: false;
        /// See [`Permission::Webhooks`].
        Webhooks = Some(Permission::Webhooks), keys: true, frozen: false;
        /// See [`Permission::UsageRead`].
        UsageRead = Some(Permission::UsageRead), keys: true, frozen: false;
        /// See [`Permission::MembersRead`].
        MembersRead = Some(Permission::MembersRead), keys: false, frozen: false;
        /// See [`Permission::MembersWrite`].
        MembersWrite = Some(Permission::MembersWrite), keys: false, frozen: false;
        /// See [`Permission::ApiKeys`].
        ApiKeys = Some(Permission::ApiKeys), keys: false, frozen: false;
        /// See [`Permission::AuditRead`].
        AuditRead = Some(Permission::AuditRead), keys: false, frozen: false;
        /// See [`Permission::TenantWrite`].
        TenantWrite = Some(Permission::TenantWrite), keys: false, frozen: false;
        /// See [`Permission::TenantOwn`].
        TenantOwn = Some(Permission::TenantOwn), keys: false, frozen: false;
        /// See [`Permission::TenantOwn`]: also while the tenant may only read.
        TenantOwnFrozen = Some(Permission::TenantOwn), keys: false, frozen: true;
    }
}

/// A caller who may do what `S` says. Extracting it is the authorisation.
#[derive(Debug, Clone)]
pub struct Auth<S> {
    /// The caller.
    pub principal: Principal,
    marker: PhantomData<S>,
}

/// The person of a caller who is one.
#[derive(Debug, Clone, Copy)]
pub struct Person<'a> {
    /// Who.
    pub id: &'a UserId,
    /// What they are in the tenant.
    pub role: Role,
    /// Through which login.
    pub login: &'a LoginId,
}

impl<S: ScopeMarker> Auth<S> {
    /// Checks a caller against the marker. `writes`: whether the request may change anything.
    pub(crate) fn check(principal: Principal, writes: bool) -> Result<Self, Refusal> {
        if !S::KEYS && matches!(principal.actor, Actor::Key { .. }) {
            return Err(Kind::MissingScope.because("an API key can't do this: log in as a person"));
        }
        if let Some(permission) = S::PERMISSION.filter(|permission| !principal.may(*permission)) {
            let permission = permission.as_str();
            return Err(Kind::MissingScope.because(match &principal.actor {
                Actor::User { role, .. } => format!("{permission} is needed, which the role {} hasn't", role.as_str()),
                Actor::Key { .. } => format!("the scope {permission} is needed"),
            }));
        }
        // Such a key has no other scopes; should it have got one, what that leads to is not limited to sessions.
        let about_sessions =
            S::PERMISSION.is_none_or(|permission| permission.scope().is_some_and(Scope::is_of_sessions));
        if principal.tenant.sessions().is_some() && !about_sessions {
            return Err(Kind::MissingScope.because("this API key is limited to some sessions"));
        }
        if principal.frozen && writes && !S::FROZEN {
            return Err(Kind::TenantSuspended
                .because("the operator suspended this account, or its owner is deleting it: it can only be read"));
        }
        Ok(Self { principal, marker: PhantomData })
    }

    /// Whose data.
    #[must_use]
    pub const fn tenant(&self) -> &TenantScope {
        &self.principal.tenant
    }

    /// The person.
    ///
    /// # Errors
    /// A defect, if the marker lets keys pass and this is one.
    pub fn person(&self) -> ApiResult<Person<'_>> {
        match &self.principal.actor {
            Actor::User { user_id, role, login_id } => Ok(Person { id: user_id, role: *role, login: login_id }),
            Actor::Key { .. } => Err(ApiError::Defect("a key passed for a person")),
        }
    }
}
