//! Figures about jobs. None carries a tenant.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::{JobKind, QueueFigures};

const JOBS: &str = "jobs";
const OLDEST_DUE: &str = "jobs_oldest_due_seconds";
const FINISHED: &str = "jobs_finished_total";
const RUN_SECONDS: &str = "jobs_run_seconds";

/// Tells the metrics recorder what the figures of jobs mean.
pub fn describe_metrics() {
    describe_gauge!(JOBS, Unit::Count, "Jobs by kind and state (ready, running, dead)");
    describe_gauge!(OLDEST_DUE, Unit::Seconds, "How long the oldest job that is due has been due, by kind");
    describe_counter!(FINISHED, Unit::Count, "Runs of jobs that ended, by kind and outcome");
    describe_histogram!(RUN_SECONDS, Unit::Seconds, "How long a batch of jobs ran, by kind");
}

pub(super) fn measured(figures: &[QueueFigures]) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and a queue is shorter than 2^52")]
    for of_kind in figures {
        for (state, jobs) in [("ready", of_kind.ready), ("running", of_kind.running), ("dead", of_kind.dead)] {
            gauge!(JOBS, "kind" => of_kind.kind, "state" => state).set(jobs as f64);
        }
        gauge!(OLDEST_DUE, "kind" => of_kind.kind).set(of_kind.oldest_due.as_secs_f64());
    }
}

pub(super) fn finished(kind: JobKind, outcome: &'static str, jobs: usize) {
    counter!(FINISHED, "kind" => kind.as_str(), "outcome" => outcome).increment(jobs as u64);
}

pub(super) fn ran(kind: JobKind, took: Duration) {
    histogram!(RUN_SECONDS, "kind" => kind.as_str()).record(took.as_secs_f64());
}
