//! A whole worker against the real simulator, with a small control plane of the tests' own as its peer.
#![cfg(feature = "sandbox")]
#![recursion_limit = "512"]

mod api;
mod closing;
mod control_plane;
mod ends;
mod linking;
mod messages;
mod outages;
mod world;
