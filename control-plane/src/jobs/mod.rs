//! Durable jobs: work that must happen although the process may die, committed with the change that asks for it.
//!
//! Owns the tables `jobs`, `job_turns` and `cron`. A domain calls [`enqueue`] inside its own transaction, commits, and rings the [`Bell`]; a
//! [`Runner`] in any replica claims the job, runs the [`Handler`] of its kind, and settles it. What a job is about stands
//! in the domain's own row: a job carries only that row's id (`subject`).
//!
//! # Lanes
//! Every job lies in a lane (`session:<id>`, `webhook:<id>:<slot>`, `mail:<id>`). At any time at most one runner works on a lane: it
//! claims up to [`Handler::batch`] due jobs of it, oldest first. So a lane is serial, and the number of lanes that a tenant
//! can fill bounds what it takes of the runner. A job that waits for its next try doesn't block its lane.
//!
//! # Turns
//! Claims go round by tenant, in virtual time ([`fairness`], table `job_turns`): a tenant's first jobs wait for one short turn
//! of others, however many jobs those have.
//!
//! # Doorbells
//! [`Bell`] wakes the runner of this process; on PostgreSQL a `NOTIFY` wakes those of other replicas ([`doorbell`]). A job that
//! nobody rang for is found by polling.
//!
//! # At once
//! A job for a lane in which nothing waits or runs can be committed under a lease of this process and run without a claim ([`direct`]).
//!
//! # By the clock
//! [`schedule`] commits jobs of the installation's at times given by cron expressions (table `cron`), once over all replicas.
//!
//! # Leases
//! A claim is a lease: owner, end, and an epoch that rises with every claim. Every statement about a running job is filtered
//! by all of id, owner and epoch, so a runner that lost its lease (it slept, its database was away) can't settle anything.
//! It extends the lease at a third of its term, and gives the work up when it can't. A lease that ended goes back to
//! `ready` with its attempt counted, so that a job that kills its process is not tried for ever. A runner that is told to
//! stop hands its leases back, uncounted. Lease ends are in the database's time; due times (`run_at`) in the enqueuer's.
//!
//! # States
//! `ready → running → done`, or back to `ready` at a stored time, or `dead`. One that is [called off](dead::cancel) is as one without attempts left.
//! The dead are kept two weeks, and [`redrive`] makes them ready again, with what they are about ([`Handler::revive`]). Attempts count
//! when a job is claimed; a job that has had all of them is given to [`Handler::give_up`] instead of being run. Finished rows are pruned.
//!
//! # Invariants
//! 1. A committed job is run at least once, or given up after `max_attempts`.
//! 2. No two runners hold one lane at once. On PostgreSQL the claim takes the lane's advisory lock for its transaction and
//!    then looks, in a new snapshot, whether anything of the lane runs; SQLite has one writer.
//! 3. A handler that panics costs an attempt, never the job.

mod bell;
mod claim;
pub mod dead;
mod direct;
mod doorbell;
mod fairness;
mod handler;
mod metrics;
mod queue;
pub mod redrive;
mod runner;
pub mod schedule;

pub use bell::Bell;
pub use dead::DeadJob;
pub use direct::{Direct, Seat};
pub use doorbell::ring;
pub use handler::{Claimed, Handler, Outcome};
pub use metrics::describe_metrics;
pub use queue::{
    JobKind, NewJob, QueueFigures, drop_waiting, enqueue, enqueue_once, figures, hasten, settle, settle_all,
};
pub use runner::{Runner, RunnerOptions};
