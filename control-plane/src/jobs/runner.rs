//! Claims jobs and runs them.

use std::{sync::Arc, time::Duration};

use super::Handler;
use crate::state::App;

/// How a runner times its work. The defaults are for production; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct RunnerOptions {
    /// The term of a lease.
    pub lease: Duration,
    /// How often to look for jobs that nobody rang for, right after finding some.
    pub poll_min: Duration,
    /// And after finding none for a while.
    pub poll_max: Duration,
    /// How often to send jobs whose lease ended back to `ready`.
    pub reclaim_every: Duration,
    /// How long running jobs may take to finish once the process stops.
    pub grace: Duration,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            poll_min: Duration::from_millis(200),
            poll_max: Duration::from_secs(1),
            reclaim_every: Duration::from_secs(5),
            grace: Duration::from_secs(5),
        }
    }
}

/// The background work that claims and runs jobs. Stops when the app stops; [`Runner::stopped`] waits for it.
#[derive(Debug)]
pub struct Runner {
    tasks: tokio_util::task::TaskTracker,
}

impl Runner {
    /// Starts with the defaults.
    #[must_use]
    pub fn start(app: &App, handlers: Vec<Arc<dyn Handler>>) -> Self {
        Self::start_with(app, handlers, RunnerOptions::default())
    }

    /// Starts with other times.
    #[must_use]
    pub fn start_with(_app: &App, _handlers: Vec<Arc<dyn Handler>>, _options: RunnerOptions) -> Self {
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.close();
        Self { tasks }
    }

    /// Completes when everything has stopped and every lease has been handed back.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// Tells the metrics recorder what the figures of jobs mean.
pub fn describe_metrics() {}
