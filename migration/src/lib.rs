//! The migrations of both databases: the control plane's and the data-plane store's.
//!
//! They never share a database, so each has a migrator and a version table of its own. SQL is written once for SQLite
//! and PostgreSQL; where their type names differ, [`sql::for_engine`] chooses. Times are integers: milliseconds since
//! 1970.

pub mod control_plane;
pub mod data_plane;
mod sql;
