//! Why the store could not do what it was asked.

use chrono::{DateTime, Utc};
use shared::seal::SealError;

use super::session::Poison;

/// Why a store operation failed. No variant carries data of a session, so any of them may be logged.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be reached, or refused. The driver's words are left out: they may quote a value.
    #[error("data-plane store: {operation} failed ({class} {code})")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// What kind of failure it was.
        class: FailureClass,
        /// SQLite's result code or PostgreSQL's SQLSTATE, empty if there is none.
        code: Box<str>,
    },
    /// No answer within the deadline. What was being written may or may not be there.
    #[error("data-plane store: {operation} took too long")]
    Timeout {
        /// What was being done.
        operation: &'static str,
    },
    /// A stored value is not what was put there: another key, another row, or damaged.
    #[error("data-plane store: a stored value does not open")]
    Sealed(#[from] SealError),
    /// A value could not be turned into bytes, or back.
    #[error("data-plane store: a stored {0} has an unknown form")]
    Encoding(&'static str),
    /// The session's handle is poisoned: build a new one from the store.
    #[error("session store is poisoned: {0}")]
    Poisoned(Poison),
    /// The worker's lease has ended.
    #[error("the worker's lease has ended")]
    LeaseEnded,
    /// The session's outbox holds as many rows as it may. Nothing was written, and the handle stays usable.
    #[error("the session's outbox is full ({rows} rows)")]
    OutboxFull {
        /// How many rows it holds.
        rows: i64,
    },
    /// More items than one call takes. Nothing was written.
    #[error("at most {most} items at once")]
    BatchTooLarge {
        /// How many it takes.
        most: usize,
    },
    /// The URL names neither SQLite nor PostgreSQL.
    #[error("the data-plane store's URL must begin with sqlite: or postgres:")]
    UnknownEngine,
}

/// What kind of failure the database reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// No connection, or it broke.
    Connection,
    /// Another writer held the database for longer than we wait.
    Busy,
    /// A unique key was already there.
    Conflict,
    /// A statement was refused.
    Statement,
}

impl std::fmt::Display for FailureClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connection => "no connection",
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::Statement => "statement refused",
        })
    }
}

/// Why a lease could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another run of a worker of this name holds it.
    #[error("the worker id is taken until {until}")]
    Taken {
        /// When that run's lease ends, by the store's clock, unless it renews.
        until: DateTime<Utc>,
    },
    /// It ended before it was renewed. Whatever ran under it must be aborted.
    #[error("the lease ended before it was renewed")]
    Lost,
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A result of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The library sees the same words, and none of the driver's.
impl From<StoreError> for wacore::store::error::StoreError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database { class: FailureClass::Connection, .. } => Self::Connection(Box::new(error)),
            StoreError::Sealed(_) | StoreError::Encoding(_) => Self::Serialization(Box::new(error)),
            _ => Self::Database(Box::new(error)),
        }
    }
}
