//! Being one of the control plane's workers: join, beat, take sessions back.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use secrecy::ExposeSecret;
use shared::wire::{
    PROTOCOL_VERSION,
    worker::{Heartbeat, Join},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::UpstreamError;
use crate::{backoff, node::Node, supervisor::Supervisor};

/// How long the outbox may take to be counted: a slow store is no reason to fall silent.
const COUNT: Duration = Duration::from_secs(1);
/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Joins, takes back the sessions placed here, and beats, until `stop`.
pub async fn run(node: &Node, supervisor: &Arc<Supervisor>, stop: CancellationToken) {
    let mut attached = false;
    while !stop.is_cancelled() {
        if until_done(&stop, "join", || join(node)).await.is_none() {
            return;
        }
        // Only once in a run: sessions that were running go on under the generation that they have.
        if !attached {
            let Some(sessions) = until_done(&stop, "re-attach", || node.upstream.re_attach()).await else { return };
            tracing::info!(sessions = sessions.sessions.len(), "taking sessions back");
            for session in sessions.sessions {
                if let Err(error) = supervisor.put(session) {
                    tracing::error!(%error, "a session that is placed here can't be run");
                }
            }
            attached = true;
        }
        node.joined.store(true, Ordering::Relaxed);
        if !beat(node, supervisor, &stop).await {
            return;
        }
        node.joined.store(false, Ordering::Relaxed);
    }
}

async fn join(node: &Node) -> Result<(), UpstreamError> {
    let join = Join {
        worker_id: node.worker_id.clone(),
        incarnation: node.upstream.incarnation().clone(),
        store_id: node.store.id().clone(),
        network: node.network,
        endpoint: node.endpoint.clone(),
        capacity: node.capacity,
        zone: node.zone.clone(),
        pool: node.pool.clone(),
        protocol_version: PROTOCOL_VERSION,
        public_key: node.public_key.clone(),
        join_token: node.join_token.as_ref().map(|token| token.expose_secret().to_owned()),
    };
    let joined = node.upstream.join(&join).await?;
    tracing::info!(worker = %joined.worker_id, "joined the control plane");
    Ok(())
}

/// Beats until the control plane doesn't know this run any more (`true`) or until `stop` (`false`).
async fn beat(node: &Node, supervisor: &Supervisor, stop: &CancellationToken) -> bool {
    let mut outbox_rows = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return false,
            () = sleep(backoff::spread(node.timing.heartbeat)) => {}
        }
        // The worker lives all the same if it can't be counted: then the last count stands.
        match timeout(COUNT, node.store.outbox_total()).await {
            Ok(Ok(rows)) => outbox_rows = rows,
            Ok(Err(error)) => tracing::warn!(%error, "the outbox could not be counted"),
            Err(_) => tracing::warn!("the outbox could not be counted in time"),
        }
        let census = supervisor.census();
        let beat = Heartbeat {
            incarnation: node.upstream.incarnation().clone(),
            sessions: census.sessions,
            connected: census.connected,
            outbox_rows,
            lease_renewed_at: node.lease_renewed_at(),
        };
        match node.upstream.heartbeat(&beat).await {
            Ok(()) => {}
            Err(error) if error.is("worker-unknown") || error.is("worker-superseded") => {
                tracing::warn!(%error, "joining again");
                return true;
            }
            Err(error) => tracing::warn!(%error, "the heartbeat was not taken"),
        }
    }
}

/// Tries until it works; `None` if `stop` comes first.
async fn until_done<T, F>(stop: &CancellationToken, what: &'static str, act: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, UpstreamError>>,
{
    let mut failures = 0;
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => return None,
            done = act() => done,
        };
        match done {
            Ok(value) => return Some(value),
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, what, failures, "the control plane did not take it, trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(backoff::spread(backoff::doubling(PAUSES.0, PAUSES.1, failures))) => {}
        }
    }
}
