//! Events: what happened to a tenant, in the order in which it was committed.
//!
//! Owns the table `events` and the counter `tenants.last_position`. A domain records events with [`record`] in its own
//! transaction. With each event go its deliveries: one for each enabled webhook endpoint that wants its type, each with a
//! job. An event gets its position when somebody first looks ([`number`]), before it is shown to anybody: positions rise
//! without gaps, in the order in which events became visible, and what follows from another event has the higher position.
//! A stream that resumes at a position misses nothing.
//!
//! What an event says (`data`) can hold message text and phone numbers: it is sealed with the tenant's key.
//!
//! # Invariants
//! 1. Within a tenant, whoever sees a position sees all before it, for ever the same.
//! 2. What was committed before another event's transaction began has the lower position.
//! 3. An event and its deliveries are one commit with the change that they tell.

mod entity;
mod envelope;
mod find;
mod number;
mod record;
mod routes;

pub use envelope::{Envelope, EventType};
pub use find::{FindError, find};
pub(crate) use find::{is_kept, page};
pub use record::{Audience, NewEvent, RecordError, Recorded, record, record_for};
pub use routes::router;

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "events_recorded_total",
        "Events that were recorded, by type. One whose transaction fails and is tried again shows twice."
    );
}
