//! Health as the API shows it.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::{jobs::QueueFigures, workers::FleetFigures};

/// Whether a part works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It works.
    Ok,
    /// It doesn't.
    Down,
}

/// Whether the installation works.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// In a word.
    pub status: Status,
}

/// Whether each part works, and how much there is of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetailedHealth {
    /// In a word.
    pub status: Status,
    /// The version that runs.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
    /// The database.
    pub database: DatabaseHealth,
    /// Redis, if there is one. The installation works without it, only slower.
    pub redis: Option<Status>,
    /// The workers; absent if the database doesn't tell.
    pub workers: Option<WorkersHealth>,
    /// The queues of jobs; empty if the database doesn't tell.
    pub queues: Vec<QueueHealth>,
}

/// The workers, summed.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkersHealth {
    /// How many there are, by availability.
    #[schema(example = json!({"active": 2}))]
    pub by_availability: BTreeMap<&'static str, i64>,
    /// The most sessions that they take.
    #[schema(example = 1000)]
    pub capacity: i64,
    /// Sessions placed on them.
    #[schema(example = 12)]
    pub assigned: i64,
    /// Sessions that are connected.
    #[schema(example = 11)]
    pub connected: i64,
}

impl From<FleetFigures> for WorkersHealth {
    fn from(fleet: FleetFigures) -> Self {
        let FleetFigures { by_availability, capacity, assigned, connected } = fleet;
        Self { by_availability, capacity, assigned, connected }
    }
}

/// The queue of one kind of job.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueHealth {
    /// The kind.
    #[schema(example = "send_messages")]
    pub kind: &'static str,
    /// Jobs that are due or wait for their time.
    pub ready: i64,
    /// Jobs that are being worked on.
    pub running: i64,
    /// Jobs that were given up.
    pub dead: i64,
    /// How long the oldest due job has been due, in milliseconds.
    pub oldest_due_ms: u64,
}

impl From<QueueFigures> for QueueHealth {
    fn from(queue: QueueFigures) -> Self {
        Self {
            kind: queue.kind,
            ready: queue.ready,
            running: queue.running,
            dead: queue.dead,
            oldest_due_ms: u64::try_from(queue.oldest_due.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The database.
#[derive(Debug, Serialize, ToSchema)]
pub struct DatabaseHealth {
    /// Whether it answers.
    pub status: Status,
    /// Which engine it is.
    #[schema(example = "postgres")]
    pub engine: &'static str,
    /// How long it took to answer, in milliseconds.
    #[schema(example = 1)]
    pub latency_ms: u64,
}
