//! Whether the installation works: for load balancers, for orchestrators, for people.
//!
//! `/livez` says that the process answers; `/readyz` that it can do its work, so that it may get requests, which ends
//! `SHUTDOWN_DELAY` before the listener closes; `/health` is the same for people, in words. `/health/detailed` adds figures for
//! whoever operates the installation: nothing of any tenant, no secret, no address. `/metrics` is what Prometheus reads: on the
//! workers' listener, and on the public one with `METRICS_TOKEN`, because what all tenants together do is nothing that one of
//! them is to learn.

mod dto;
mod metrics;
mod routes;

pub(crate) use dto::{QueueHealth, WorkersHealth};
pub(crate) use metrics::install as install_metrics;
pub(crate) use routes::figures;
pub use routes::router;
