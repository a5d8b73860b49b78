//! The network seen by the real client: whatsapp-rust, unmodified, over real sockets.

#![recursion_limit = "512"]

mod client;
mod control;
mod faults;
mod messages;
mod offline;
mod pairing;
mod process;
mod raw;
mod strict;
mod wire;
