//! Messages: history in both directions, and the way out.
//!
//! # What this folder owns
//! The tables `messages` and `outbox_rows_seen`.
//!
//! # Out
//! [`routes`] commits a message (`queued`, its id on WhatsApp chosen), a job in lane `session:<id>` and the idempotency
//! record in one transaction; it never calls a worker. [`send`] is the job's handler: it takes up to 64 messages of a
//! session, leaves out those whose chat has an older message that is neither through nor at its end, marks a try as
//! open, and hands the batch to the worker that holds the session. The worker's answer steers the job; what the message
//! is, is said by WhatsApp's acknowledgement, from the answer or through the outbox, whichever comes first.
//!
//! A try is *open* from before the call until somebody knows its outcome. A message with an open try doesn't expire: it is
//! asked for again under the same id, and the worker's journal tells. A day after its expiry it ends as
//! `failed {outcome_unknown}`; a late acknowledgement still moves it forward.
//!
//! # In
//! [`ingest`] takes batches of outbox rows from workers. One transaction for each batch: which rows are new, the messages, the
//! statuses, the usage facts, and last the events; then the answer, upon which the worker deletes. A row is known by
//! `(session, epoch, seq)`, and that alone de-duplicates.
//!
//! # Invariants
//! 1. A message's identity is `(session, chat, sender, id on WhatsApp)`; the same triple in two sessions is two messages.
//! 2. Status only moves forward ([`policy`]): any order of the same acknowledgements and receipts ends in the same status. An
//!    acknowledgement or receipt moves even `failed` and `expired` forward. One thing moves back: a message that WhatsApp certainly
//!    never saw is queued again when the operator redrives its job ([`revive`]).
//! 3. An undecryptable message is a row that its content updates later, never two.
//! 4. `messages_sent` is counted when a message first reaches `sent` or later; `messages_received` when its content arrives.
//! 5. Whoever changes a message holds its session's row lock, so there is one order of locks.

pub mod dto;
pub mod entity;
pub mod ingest;
pub mod policy;
pub mod recipient;
pub mod retention;
pub mod routes;
pub mod send;
pub mod service;

mod revive;
mod verdict;
mod waiting;

pub use routes::router;
pub use waiting::Waiting;

/// Tells the metrics recorder what the figures of messages mean.
pub fn describe_metrics() {
    metrics::describe_counter!("control_plane_messages_accepted_total", "Messages that were taken to be sent");
    metrics::describe_counter!("control_plane_message_status_total", "Messages that reached a status");
    metrics::describe_counter!("control_plane_outbox_rows_total", "Rows that workers shipped, by outcome");
    metrics::describe_counter!("retention_erased_rows_total", "Rows that retention erased or took the content of");
    metrics::describe_histogram!("control_plane_send_batch_size", "Messages handed to a worker at once");
}
