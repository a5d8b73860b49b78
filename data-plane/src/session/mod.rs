//! One WhatsApp session.
//!
//! Owns no table of its own; it writes the session's WhatsApp state, journal and outbox through the store's fenced handle.
//!
//! ```text
//! actor     one task, one mailbox: claims, builds the client, follows orders, lets go
//! state     pure: what a signal from the library means for the session's status, and what to do about it
//! client    the library's client on our store, transport and runtime; aborts and closes it
//! events    the library's event bus → signals for the actor, acknowledgements and receipts for the writer
//! writer    acknowledgements and receipts → journal and outbox, in order
//! linking   by a code, and with a passkey
//! inbound   the durability hook: messages → outbox rows, before WhatsApp is acknowledged
//! party     names of people and groups, in their canonical form
//! outbound  sends: journal, frame, acknowledgement
//! acks      messages on their way
//! ```
//!
//! Invariants:
//! - Nothing is written, and no frame sent, without a claimed fence and a lasting lease.
//! - A message is in the outbox before WhatsApp hears that we have it.
//! - A failed write ends the client without a flush; a new one starts from the store.
//! - All tasks of a client belong to its [`runtime`], and end with it.

mod acks;
pub mod actor;
mod client;
mod events;
mod inbound;
pub mod linking;
pub mod outbound;
mod party;
mod runtime;
pub mod state;
mod writer;

pub use self::actor::{Command, Handle, View};
