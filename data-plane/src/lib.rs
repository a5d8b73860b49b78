//! The data plane: workers that hold WhatsApp sessions.
//!
//! ```text
//! supervisor ── lease ── map of session actors
//!    └─ session   one task, one mailbox: client (whatsapp-rust), state machine, inbound hook, sends
//! store      leases, fences, sealed WhatsApp state, send journal, outbox
//! shipper    outbox → control plane
//! upstream   the control plane's internal API, as its client
//! transport  sockets and HTTP
//! api        orders from the control plane, health, metrics
//! ```
//! A worker goes on without its control plane, and stops at once without its lease.
#![recursion_limit = "512"]

mod api;
pub mod backoff;
pub mod config;
pub mod node;
pub mod program;
pub mod session;
pub mod shipper;
pub mod store;
pub mod supervisor;
pub mod telemetry;
pub mod transport;
pub mod upstream;
pub mod worker;

pub use self::{
    config::{Config, Timing},
    worker::Worker,
};
