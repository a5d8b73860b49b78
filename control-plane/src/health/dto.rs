//! Health as the API shows it.

use serde::Serialize;
use utoipa::ToSchema;

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
