//! What both planes must agree on.
//!
//! The control plane and the data plane meet here and over HTTP, and nowhere else: ids, the messages they
//! exchange ([`wire`]), how each proves who it is ([`identity`]), how a secret is sealed at rest ([`seal`]),
//! how an error looks to a caller ([`problem`]), how settings are declared and read ([`config`]), how networks are read ([`networks`]), how databases are connected to
//! ([`pool`]), and how a process logs ([`telemetry`]).

pub mod config;
pub mod identity;
pub mod ids;
pub mod networks;
pub mod pool;
pub mod problem;
pub mod seal;
pub mod signals;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod wire;
