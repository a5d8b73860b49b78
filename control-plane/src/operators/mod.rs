//! Operators: the people who run the installation, and what they may do to it.
//!
//! **Owns** the tables `operators` and `operator_logins`, and the API below `/api/v1/admin`, apart from that of tenants: another kind
//! of credential, other extractors, no tenant. What it changes of tenants and workers it changes through their own domains.
//!
//! **Identity.** An operator is made by whoever can run `control-plane create-operator` on the installation's database, and by
//! nobody else: no call makes one. They log in with e-mail address and password and get an opaque token (`sbo_…`) of
//! twelve hours, stored as a keyed hash and looked up in every request, so that logging out, another password and
//! removing the operator end it at once. If they switch two-step login on, a code of their device or a recovery code is asked for as well
//! ([`second_factor`](crate::auth::second_factor), with tables of their own). Attempts are limited as those of people are.
//!
//! **Apart.** A handler of this API takes an [`Operator`], which only such a token makes; a handler of the tenants' API
//! takes an [`Auth`](crate::auth::Auth), which it never makes. A person's token or an API key is answered here as no token at all, and
//! the other way round. An operator sees that a tenant exists, how much it has and where its sessions run; never a
//! message, a contact, a phone number or a secret.
//!
//! **Suspending** a tenant leaves its sessions connected and its data readable; it can't change or send anything until it is resumed.
//! **Cordoning** a worker keeps new sessions from it; **draining** also moves those that it has, as long as others have room.
//! **Moving** a session is the same for one.
//!
//! Every change here may be asked for twice with the effect of once, so it takes no idempotency key; of secrets and codes that are made,
//! the last ones that were given hold, and a trial lasts from when it was asked for last. Only a session that is to move without saying
//! where to moves once more if it has arrived meanwhile.

mod dto;
mod entity;
mod fleet;
mod identity;
mod routes;
mod tenants;

pub use entity::operator::Model as Operator;
pub use identity::{NewOperator, OperatorError, create, prune, remove, reset_second_factor};
pub use routes::router;
