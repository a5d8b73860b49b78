//! The one task of a process that writes rows, as many in one commit as wait.

use std::{collections::VecDeque, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{entity, log, metrics};
use crate::{error::database_error_kind, state::App};

/// How many rows are written at once.
const BATCH: usize = 256;
/// How many outcomes are kept for a database that is away.
const MOST_KEPT: usize = 10_000;
/// How soon they are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often what is left is tried when the process stops.
const LAST_TRIES: u32 = 3;

/// Writes until `served` (no request is left), and then what still waits.
pub(crate) async fn write(app: App, served: CancellationToken) {
    let Some(mut receiver) = app.audit.receiver() else { return };
    let mut kept: VecDeque<entity::Model> = VecDeque::new();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let received = tokio::select! {
            biased;
            received = receiver.recv_many(&mut batch, BATCH) => received,
            () = tokio::time::sleep(AGAIN), if !kept.is_empty() => 0,
            () = served.cancelled() => {
                // Whoever comes now is told that it isn't written; what waits already is.
                receiver.close();
                receiver.recv_many(&mut batch, BATCH).await
            }
        };
        if received == 0 && served.is_cancelled() {
            break;
        }
        let room = BATCH.saturating_sub(batch.len());
        let again: Vec<_> = kept.drain(..room.min(kept.len())).collect();
        let mut rows = again.clone();
        rows.extend(batch.iter().map(|waiting| waiting.row.clone()));
        let done = log::insert(app.db.autocommit(), rows).await;
        if let Err(error) = &done {
            tracing::warn!(kind = database_error_kind(error), "rows of the audit log were not written");
            metrics::failed("write");
        }
        kept.extend(if done.is_err() { again } else { Vec::new() });
        for waiting in batch.drain(..) {
            match waiting.written {
                // Whoever asked may be gone.
                Some(written) => drop(written.send(done.is_ok())),
                None if done.is_err() => kept.push_back(waiting.row),
                None => {}
            }
        }
        let too_many = kept.len().saturating_sub(MOST_KEPT);
        kept.drain(..too_many);
        metrics::lost(too_many);
    }
    for _ in 0..LAST_TRIES {
        if kept.is_empty() || log::insert(app.db.autocommit(), kept.iter().cloned().collect()).await.is_ok() {
            return;
        }
    }
    metrics::lost(kept.len());
    tracing::warn!(rows = kept.len(), "outcomes were not written to the audit log: they will show as unknown");
}
