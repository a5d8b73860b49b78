//! The data plane's store, on SQLite and PostgreSQL.
#![recursion_limit = "512"]

mod conformance;
mod harness;
mod isolation;
mod journal;
mod kill;
mod lease;
mod outbox;
mod poison;
mod sealing;
mod test_database;
