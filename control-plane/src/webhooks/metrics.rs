//! Figures about deliveries. None carries a tenant or an endpoint.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const ATTEMPTS: &str = "webhook_attempts_total";
const ATTEMPT_SECONDS: &str = "webhook_attempt_seconds";
const DELIVERED_AFTER: &str = "webhook_delivered_after_seconds";
const DISABLED: &str = "webhook_endpoints_disabled_total";

/// Tells the metrics recorder what the figures of deliveries mean.
pub fn describe_metrics() {
    describe_counter!(ATTEMPTS, Unit::Count, "Tries to deliver an event, by outcome");
    describe_histogram!(ATTEMPT_SECONDS, Unit::Seconds, "How long a try to deliver took");
    describe_histogram!(DELIVERED_AFTER, Unit::Seconds, "How old a delivery was when its endpoint accepted it");
    describe_counter!(DISABLED, Unit::Count, "Endpoints that were disabled because they failed, by reason");
}

pub(super) fn tried(outcome: &'static str, took: Duration) {
    counter!(ATTEMPTS, "outcome" => outcome).increment(1);
    histogram!(ATTEMPT_SECONDS).record(took.as_secs_f64());
}

pub(super) fn delivered(age: Duration) {
    histogram!(DELIVERED_AFTER).record(age.as_secs_f64());
}

pub(super) fn disabled(reason: &'static str) {
    counter!(DISABLED, "reason" => reason).increment(1);
}
