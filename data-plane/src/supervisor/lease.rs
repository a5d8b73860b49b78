//! The worker's lease: had before anything else, renewed while the worker lives, had anew if it ended.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use chrono::Utc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Supervisor;
use crate::{
    backoff,
    node::Node,
    store::{Lease, LeaseError},
};

/// How long a renewal may take.
const RENEWAL: Duration = Duration::from_secs(4);
/// The pause after a renewal that failed, and between two tries to have a lease.
const AGAIN: Duration = Duration::from_millis(500);

/// A lease, and what tells all its sessions at once that it has ended.
#[derive(Clone)]
pub struct Term {
    /// The lease.
    pub lease: Lease,
    /// Cancelled when it has ended.
    pub over: CancellationToken,
}

impl Supervisor {
    /// Has a lease, as soon as the store lets us. `None`: the worker stops.
    pub async fn acquire_lease(&self, stop: &CancellationToken) -> Option<Term> {
        let node = &self.node;
        loop {
            let acquired = tokio::select! {
                () = stop.cancelled() => return None,
                acquired = timeout(
                    RENEWAL,
                    Lease::acquire(&node.store, node.worker_id.clone(), node.upstream.incarnation().clone()),
                ) => acquired,
            };
            match acquired {
                Ok(Ok(lease)) => {
                    renewed(node);
                    let term = Term { lease, over: CancellationToken::new() };
                    *node.term.write().unwrap_or_else(PoisonError::into_inner) = Some(term.clone());
                    tracing::info!("has the lease");
                    return Some(term);
                }
                Ok(Err(LeaseError::Taken { until })) => {
                    tracing::warn!(%until, "another run of this worker has the lease, waiting for its end");
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease was not had"),
                Err(_) => tracing::warn!("the store didn't answer in time about the lease"),
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(backoff::spread(AGAIN)) => {}
            }
        }
    }

    /// Renews the lease until `stop`, and has another if it ends.
    pub async fn keep_lease(&self, mut term: Term, stop: CancellationToken) {
        let mut pause = self.node.timing.lease_renewal;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = term.lease.ended() => {
                    term.over.cancel();
                    tracing::error!("the lease ended, all sessions are aborted until there is another");
                    metrics::counter!("data_plane_leases_lost_total").increment(1);
                    match self.acquire_lease(&stop).await {
                        Some(another) => term = another,
                        None => return,
                    }
                }
                () = sleep(pause) => {}
            }
            match timeout(RENEWAL, term.lease.renew()).await {
                Ok(Ok(wanted)) => {
                    renewed(&self.node);
                    pause = self.node.timing.lease_renewal;
                    for wanted in wanted {
                        tracing::info!(session = %wanted.session_id, "another worker waits for this session");
                        if !self.let_go(&wanted.session_id, wanted.generation - 1)
                            && let Err(error) = self.node.store.release_left(&term.lease, &wanted).await
                        {
                            // Told again at the next renewal.
                            tracing::warn!(session = %wanted.session_id, %error, "what was left of a session was not released");
                        }
                    }
                }
                Ok(Err(LeaseError::Lost | LeaseError::Taken { .. })) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease was not renewed");
                    pause = AGAIN;
                }
                Err(_) => {
                    tracing::warn!("the lease was not renewed in time");
                    pause = AGAIN;
                }
            }
        }
    }
}

fn renewed(node: &Node) {
    node.lease_renewed.store(Utc::now().timestamp_micros(), Ordering::Relaxed);
}
