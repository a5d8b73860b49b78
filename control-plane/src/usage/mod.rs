//! Usage: what a tenant is metered by.
//!
//! Owns the table `usage_facts`. A fact is recorded in the transaction of the change that it counts, and its id is the
//! identity of the thing (`messages_sent:<msg_id>`), so that a thing which is seen twice counts once. Sums are computed from
//! the facts when they are asked for.
//!
//! # Invariants
//! 1. Every fact counts once, however often it is recorded.
//! 2. A fact is dated by when the thing happened (for a sent message, the server's acknowledgement), not by when we learnt it.

mod facts;
mod record;
mod report;
mod routes;

pub(crate) use facts::page;
pub use record::{Fact, Meter, record};
pub use report::Granularity;
pub use routes::router;
pub(crate) use routes::{Usage, UsageQuery, used};

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "usage_facts_total",
        "Facts that were handed in to be counted, by meter: counted, or known already. One whose transaction fails and is \
         tried again shows twice."
    );
}
