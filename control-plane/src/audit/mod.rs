//! The audit log: who changed what, through which operation, and what came of it.
//!
//! **Owns** the tables `audit_log` and `audit_heads`, and the heads in the object store.
//!
//! **What is recorded.** Every request that may change something: each operation of the OpenAPI document whose method isn't `GET`,
//! so that a new operation is recorded without anybody thinking of it ([`operations`]). What it says: who ([`ActorType`] and id), which
//! operation, of what (an id), from roughly where (/24 or /48), under which request id, and how it was answered. Nothing of a body, and
//! no text, phone number or secret: only ids that have the form of ours are taken over. Commands of the program and what the
//! installation does by itself to a tenant are recorded too.
//!
//! **Intent, then outcome.** One row is committed *before* the operation begins ([`layer`]); if that fails, the request is refused and nothing
//! happens. Another row says how it was answered. Both carry the entry's own id: request ids are chosen by callers, who may
//! choose one twice. An intent without an outcome is an operation of which nobody knows whether it happened: the process died, or
//! the caller went away in the middle. A message is sent with *one* row, in the transaction that takes it ([`accepted`]), so
//! that it costs no commit; one that is refused has one row too.
//!
//! **Whose.** An entry belongs to its caller's tenant; to the installation (the tenant `nil`) those of operators, commands and of
//! requests whose tenant isn't known. Where that becomes known on the way (somebody logs in), the intent is the installation's and the
//! outcome the tenant's. Credentials that don't hold leave no entry: else anybody could fill the log.
//!
//! **Cheap.** Rows of one process are written by one task, as many in one commit as wait ([`writer`]). An intent is waited for, an
//! outcome isn't. Reads pay nothing.
//!
//! **Sealed.** Each row is made with an HMAC over what it says, under a key derived from the master key. Once a second every replica
//! looks for rows without a place and gives each tenant's their positions 1, 2, 3 … and a link, an HMAC over position, link of the
//! row before and the row's own HMAC ([`seal`]). Hourly the heads are copied to the object store ([`heads`]). [`verify`] tells which row was
//! changed, inserted or removed; that the end of the log was cut off it tells by the heads.
//!
//! **Invariants.** What a row says never changes; its position and link are written once. Positions have no gaps. Rows go only with
//! their tenant, and the installation's log says that it went.

pub mod command;
mod dto;
mod entity;
mod entry;
mod find;
pub mod heads;
mod layer;
mod log;
mod metrics;
mod operations;
mod routes;
mod seal;
pub mod verify;
mod writer;

pub use entity::{ActorType, AuditResult};
pub(crate) use entry::{about, accepted, by, of};
pub(crate) use find::everything;
pub(crate) use layer::around;
pub use log::{Log, system};
pub(crate) use metrics::describe_metrics;
pub use routes::router;
pub use seal::{keep_sealing, seal};
pub(crate) use verify::TENANT_DELETED;
pub(crate) use writer::write;
