//! Tells the control plane what becomes of sessions.
//!
//! Only the newest state of each session is kept, so the queue is as long as there are sessions. A report stays until
//! the control plane has accepted it.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use shared::{
    ids::SessionId,
    wire::session::{Report, Reports},
};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Upstream, UpstreamError};
use crate::backoff;

/// The most reports in a request, by the protocol.
const MAX_REPORTS: usize = 500;
/// Lets changes of the same moment travel together.
const GATHER: Duration = Duration::from_millis(20);
/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The reports that have not been accepted yet.
#[derive(Default)]
pub struct Reporter {
    newest: Mutex<HashMap<SessionId, Report>>,
    bell: Notify,
    seq: AtomicI64,
}

impl Reporter {
    /// The next `report_seq` of this run.
    pub fn next_seq(&self) -> i64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends a report as soon as it can be, in place of an older one of the same session.
    pub fn submit(&self, report: Report) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let older = newest.get(&report.session_id).is_none_or(|held| held.report_seq < report.report_seq);
        if older {
            newest.insert(report.session_id.clone(), report);
        }
        drop(newest);
        self.bell.notify_one();
    }

    /// Whether everything has been accepted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn some(&self) -> Vec<Report> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.values().take(MAX_REPORTS).cloned().collect()
    }

    fn accepted(&self, sent: &[Report]) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        for report in sent {
            if newest.get(&report.session_id).is_some_and(|held| held.report_seq == report.report_seq) {
                newest.remove(&report.session_id);
            }
        }
    }

    /// Sends what is there, once.
    ///
    /// # Errors
    /// [`UpstreamError`] if not all of it was accepted; it is kept then.
    pub async fn flush(&self, upstream: &Upstream, mut stale: impl FnMut(Report)) -> Result<(), UpstreamError> {
        loop {
            let reports = self.some();
            if reports.is_empty() {
                return Ok(());
            }
            let ask = Reports { incarnation: upstream.incarnation().clone(), reports };
            let reply = upstream.report(&ask).await?;
            self.accepted(&ask.reports);
            for report in ask.reports {
                if reply.stale.contains(&report.session_id) {
                    stale(report);
                }
            }
        }
    }

    /// Sends reports until `stop`. `stale` hears of sessions that are not ours any more.
    pub async fn run(&self, upstream: &Upstream, stop: CancellationToken, stale: impl Fn(Report)) {
        let mut failures = 0;
        loop {
            let pause = if failures == 0 {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.bell.notified() => GATHER,
                }
            } else {
                backoff::spread(backoff::doubling(PAUSES.0, PAUSES.1, failures))
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            match self.flush(upstream, &stale).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, failures, "reports were not accepted, they will be sent again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use shared::wire::session::Observed;

    use super::*;

    fn report(session: &SessionId, seq: i64) -> Report {
        Report {
            session_id: session.clone(),
            generation: 1,
            report_seq: seq,
            restart_seq: 0,
            observed: Observed::Starting,
            since: Utc::now(),
            last_frame_at: None,
            account: None,
            qr_seq: None,
        }
    }

    #[test]
    fn the_newest_report_of_a_session_is_kept_until_that_very_one_is_accepted() {
        let reporter = Reporter::default();
        let session = SessionId::new();
        reporter.submit(report(&session, 2));
        reporter.submit(report(&session, 1));
        let sent = reporter.some();
        assert_eq!(sent.iter().map(|r| r.report_seq).collect::<Vec<_>>(), [2]);
        reporter.submit(report(&session, 3));
        reporter.accepted(&sent);
        assert_eq!(reporter.some().iter().map(|r| r.report_seq).collect::<Vec<_>>(), [3], "newer than what was sent");
        reporter.accepted(&reporter.some());
        assert!(reporter.is_empty());
    }
}
