//! Who is calling, for which tenant, and what they may do.
//!
//! Authorisation is an extractor in the handler's signature: a handler that takes [`Auth<MessagesSend>`] can't be reached
//! without that scope, and the OpenAPI document is written from the same marker. What a handler gets is a
//! [`TenantScope`], which every query of tenant data asks for: forgetting the tenant doesn't compile.

pub mod principal;

pub use principal::{Actor, Auth, Principal, Role, Scope, ScopeMarker, TenantScope, scopes};
