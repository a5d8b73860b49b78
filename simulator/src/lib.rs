//! A WhatsApp network on loopback: a server that real clients pair and log in with, and the phones behind it.
//!
//! Clients speak the real protocol: Noise XX and IK, binary stanzas, Signal end to end. What WhatsApp's server does between
//! them is done here, in memory: pairing by QR, login, pre-keys, device lists, routing, offline queues, receipts. The phones
//! are simulated and truly encrypt and decrypt, so a message that arrives at one has come through every layer. A control
//! API over HTTP, and the same in Rust ([`Network`]), scans QR codes, writes, reads, breaks connections, and shows what the
//! server accepted.
//!
//! It is strict: a stanza that is malformed, or a frame that doesn't decrypt, ends the connection with a recorded reason.
//! It never de-duplicates: repeats are delivered and counted. It keeps everything in memory and forgets it on exit.
//!
//! Modules: [`wire`] frames and handshakes, [`connection`] one client's connection, [`pairing`] and [`login`] how it gets an
//! identity, [`directory`] accounts and their public keys, [`routing`] mailboxes and receipts, [`phone`] device 0,
//! [`accepted`] the log, [`faults`] what can be made to go wrong, [`network`] the whole and its Rust API, [`control`] its HTTP API.

// Client futures of the protocol crates nest deeper than the default allows.
#![recursion_limit = "512"]

mod accepted;
mod connection;
mod control;
mod directory;
mod faults;
mod login;
mod network;
mod pairing;
mod phone;
mod routing;
mod server;
mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use accepted::{AcceptedEntry, AcceptedPart, AcceptedSummary};
pub use control::fault_routes;
pub use faults::{Fault, FaultPlan, Garble, LoginFailures, Nacks, PlanCounts};
pub use network::{
    AcceptedQuery, CompanionView, ConnectionView, EndedView, Health, Network, NetworkError, NewPhone, PasskeyResult,
    PasskeyScan, PhoneSettings, PhoneView, ReactionOrder, ScanResult, TextOrder,
};
pub use phone::{ReceivedMessage, ReceivedReceipt};
pub use server::{Config, Simulator};

/// Locks, also after a panic elsewhere: the state behind these locks is valid between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn unix_millis() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

pub(crate) fn unix_seconds() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp()).unwrap_or_default()
}
