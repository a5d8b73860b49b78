//! Webhook endpoints of tenants, and the deliveries of events to them.
//!
//! Owns the tables `webhooks` (one endpoint for each tenant for now) and `deliveries`. The events domain calls [`dispatch`] in
//! its transaction: one delivery and one job for each event and endpoint that wants it. The [`Deliverer`] runs those jobs:
//! it signs the event's envelope as [Standard Webhooks](https://www.standardwebhooks.com) asks, posts it through the guarded
//! client, and settles delivery, endpoint and job in one transaction.
//!
//! # A delivery
//! `pending → succeeded | failed`; a replay makes it `pending` again, under the same `webhook-id`, which is the event's id.
//! A receiver can be called more than once for one event (its answer was lost, or we died before we noted it), so it
//! de-duplicates by that id. When to try again is a pure function: [`policy`].
//!
//! # An endpoint
//! `enabled | disabled`. It is disabled by its owner, by 410 Gone, or after five days without one success; the latter
//! two are told by the event `webhook.disabled`. Deliveries to a disabled endpoint fail when their turn comes.
//!
//! # Why a dead endpoint slows no other
//! Deliveries of one endpoint lie in at most [`SLOTS`] lanes, and a lane is serial, so an endpoint takes at most that many of
//! the runner's [`CONCURRENCY`](deliver::CONCURRENCY) places, each for 15 s at most. While an endpoint fails, new deliveries all go to
//! its first lane: a dead one takes one place.
//!
//! # Invariants
//! 1. An event is delivered to an endpoint that is up at least once, under one id.
//! 2. Secrets and URLs reach no log and no error; secrets are sealed with the tenant's key and shown when they are made.
//! 3. Redirects are failures, and nothing of a reply but its status is kept.

mod deliver;
mod dispatch;
mod dto;
mod entity;
mod metrics;
pub mod policy;
mod routes;
mod secret;
pub(crate) mod service;

pub use deliver::Deliverer;
pub(crate) use dispatch::{NewlyRecorded, dispatch};
pub use metrics::describe_metrics;
pub use routes::router;

/// How many deliveries of one endpoint run at once: a lane is serial, and an endpoint has this many.
pub const SLOTS: u32 = 8;
