//! The data plane's store, on SQLite and PostgreSQL.
#![recursion_limit = "512"]

#[path = "store/conformance.rs"]
mod conformance;
#[path = "store/harness.rs"]
mod harness;
#[path = "store/isolation.rs"]
mod isolation;
#[path = "store/journal.rs"]
mod journal;
#[path = "store/kill.rs"]
mod kill;
#[path = "store/lease.rs"]
mod lease;
#[path = "store/outbox.rs"]
mod outbox;
#[path = "store/poison.rs"]
mod poison;
#[path = "store/sealing.rs"]
mod sealing;
#[path = "store/test_database.rs"]
mod test_database;
