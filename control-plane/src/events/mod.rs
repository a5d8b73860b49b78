//! Events: what happened to a tenant, in the order in which it was committed.
//!
//! Owns the table `events` and the counter `tenants.last_position`. A domain records events with [`record`] as the last step
//! of its own transaction: the tenant's counter row is locked by it until the commit, so positions rise in commit order and
//! without gaps, and a stream that resumes at a position misses nothing. With each event go its deliveries: one for each
//! enabled webhook endpoint that wants its type, each with a job.
//!
//! What an event says (`data`) can hold message text and phone numbers: it is sealed with the tenant's key.
//!
//! # Invariants
//! 1. Within a tenant, position order is commit order, and there are no gaps.
//! 2. An event and its deliveries are one commit with the change that they tell.

mod entity;
mod envelope;
mod find;
mod record;
mod routes;

pub use envelope::{Envelope, EventType};
pub(crate) use find::page;
pub use find::{FindError, find};
pub use record::{Audience, NewEvent, RecordError, Recorded, record, record_for};
pub use routes::router;
