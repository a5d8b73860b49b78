//! Sessions: linked WhatsApp devices. What they should be, where they run, and what they are.
//!
//! # What this folder owns
//! The table `sessions`. A row has three parts:
//! - **desired**: what its owner wants (`stopped · running · logged_out · deleted`, and `restart_seq`). Only the API
//!   writes it, with two exceptions that are the end of a story: a session whose QR codes ran out becomes `stopped`, and
//!   a logged-out one stays `logged_out`. `intent_seq` rises with every change.
//! - **placement**: `worker_id`, `store_id` and `generation`. Only the [`reconciler`] writes it, and re-attachment,
//!   which raises generations; `move_to`, the worker that an operator moves it to, is written by [`moving`] too.
//! - **observed**: the newest report of the worker, with its generation. Only [`reports`] writes it. A report of another
//!   generation or another worker is answered `stale` and changes nothing.
//!
//! # How a change travels
//! An API call changes the desired side and rings the bell; it never calls a worker. The reconciler, which runs in every
//! replica, takes rows that are due (`reconcile_at`), asks [`policy::next_step`] (pure) what to do, writes the
//! decision with the row locked, lets go of the lock, and then calls the worker. When the answer comes, it counts only if
//! the row is still at the generation that was told. A sweep each second finds what no bell rang for.
//!
//! # Status
//! The public status is [`status::status`], pure. It is computed anew for every answer. [`service::save`], through which
//! every change of a row goes, compares it with `published_status` and records one `session.status` event for each
//! change, in the same transaction.
//!
//! # Ends
//! *Stopped*: the worker has flushed the outbox and let go; the placement is given up, the state stays in the store.
//! *Logged out*: the worker has removed the companion device and erased the state; the next start begins a new outbox
//! `epoch`, since the old sequence numbers are gone with the state. *Deleted*: as logged out; then the data key is
//! dropped and the row stays as a mark, so that a late outbox row is known for what it is. History stays.
//!
//! # What is remembered in Redis
//! Which worker holds a session ([`worker_route`]), and its QR code (`qr_store`): each for a while, sealed, and checked against the row or by
//! the worker before it is believed. Without Redis both are asked for each time.
//!
//! # Invariants
//! 1. `generation` only rises, by one with each placement or re-attachment.
//! 2. `worker_id` is set exactly while the session counts in that worker's `assigned`.
//! 3. Nothing is locked while a worker is called.

pub mod dto;
pub mod entity;
mod linking;
pub(crate) mod moving;
pub mod policy;
pub mod qr;
mod qr_store;
pub mod reconciler;
pub mod reports;
mod routes;
pub mod service;
pub mod status;
pub mod worker_route;

pub use routes::router;

/// Tells the metrics recorder what the figures of sessions mean.
pub fn describe_metrics() {
    metrics::describe_counter!("control_plane_session_reports_total", "Reports of sessions that workers made");
    metrics::describe_counter!("control_plane_placements_total", "Sessions that were to be placed, by outcome");
    metrics::describe_counter!(
        "control_plane_reconcile_errors_total",
        "Sessions that could not be reconciled, for now"
    );
}
