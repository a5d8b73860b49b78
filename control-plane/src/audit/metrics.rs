//! Figures about the audit log. None carries a tenant.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

const WAITING: &str = "audit_rows_to_seal";
const OLDEST: &str = "audit_oldest_to_seal_seconds";
const FAILED: &str = "audit_failures_total";
const LOST: &str = "audit_outcomes_lost_total";
const FORGED: &str = "audit_forged_rows_total";
const SEALED: &str = "audit_rows_sealed_total";

/// Tells the metrics recorder what the figures mean.
pub(crate) fn describe_metrics() {
    describe_gauge!(WAITING, Unit::Count, "Rows of the audit log that have no position yet");
    describe_gauge!(OLDEST, Unit::Seconds, "How long the oldest row has waited for its position");
    describe_counter!(FAILED, "What failed of the audit log, by step (write, seal, heads)");
    describe_counter!(LOST, "Outcomes that could not be written and show as unknown");
    describe_counter!(FORGED, "Rows that were found without a valid HMAC when they were sealed");
    describe_counter!(SEALED, "Rows that were given their position");
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and fewer than 2^52 rows wait")]
pub(super) fn measured(waiting: i64, oldest: Duration) {
    gauge!(WAITING).set(waiting as f64);
    gauge!(OLDEST).set(oldest.as_secs_f64());
}

pub(super) fn failed(step: &'static str) {
    counter!(FAILED, "step" => step).increment(1);
}

pub(super) fn lost(outcomes: usize) {
    counter!(LOST).increment(outcomes as u64);
}

pub(super) fn forged() {
    counter!(FORGED).increment(1);
}

pub(super) fn sealed(rows: usize) {
    counter!(SEALED).increment(rows as u64);
}
