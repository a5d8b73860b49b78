//! A whole worker against the real simulator, with a small control plane of the tests' own as its peer.
#![cfg(feature = "sandbox")]
#![recursion_limit = "512"]

#[path = "worker/api.rs"]
mod api;
#[path = "worker/closing.rs"]
mod closing;
#[path = "worker/control_plane.rs"]
mod control_plane;
#[path = "worker/ends.rs"]
mod ends;
#[path = "worker/linking.rs"]
mod linking;
#[path = "worker/messages.rs"]
mod messages;
#[path = "worker/outages.rs"]
mod outages;
#[path = "worker/world.rs"]
mod world;
