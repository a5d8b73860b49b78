//! Routing: what one device sends is split by addressee and put into each device's mailbox.
//!
//! A message names its addressees one by one (`<participants><to jid>`), each with a ciphertext of its own; the server opens
//! none of them. A companion's part goes into its [`Mailbox`], where it stays until the companion acknowledges it; a phone's
//! part goes into the account's inbox, which [`crate::phone`] works off. Receipts travel the same way.
//!
//! Invariants: nothing is ever de-duplicated; a message is accepted whole or not at all; it is in every mailbox before its
//! sender's ack is written; whether that ack reached a live socket is recorded with it.

mod mailbox;
mod message;
mod receipt;

pub(crate) use mailbox::{Class, MAILBOX_LIMIT, Mailbox, Release};
pub(crate) use message::{Delivery, MessageAnswer, accept_message, deliver};
pub(crate) use receipt::{PhoneReceipt, accept_receipt, release_acknowledged, send_phone_receipt};
