//! Wakes the runner of this process as soon as a job is committed.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, futures::Notified};

use super::JobKind;

/// One doorbell for each kind of job. Ringing is a hint: a job that nobody rang for is found by polling.
#[derive(Debug, Default)]
pub struct Bell {
    send_messages: Notify,
    deliver_webhook: Notify,
    send_mail: Notify,
    upkeep: Notify,
    export_tenant: Notify,
    delete_tenant: Notify,
    /// Rung with every ring of this process, for other replicas.
    outside: Notify,
    rung: [AtomicBool; JobKind::ALL.len()],
}

impl Bell {
    /// Says that jobs of this kind are due. Call it after the commit: before it there is nothing to find.
    pub fn ring(&self, kind: JobKind) {
        self.ring_inside(kind);
        self.rung[kind as usize].store(true, Ordering::Release);
        self.outside.notify_one();
    }

    /// Another replica has committed jobs of this kind.
    pub(crate) fn ring_inside(&self, kind: JobKind) {
        self.of(kind).notify_one();
    }

    /// Completes when other replicas are to be told of some kinds, and says which.
    pub(super) async fn rung_here(&self) -> Vec<JobKind> {
        self.outside.notified().await;
        JobKind::ALL.into_iter().filter(|kind| self.rung[*kind as usize].swap(false, Ordering::AcqRel)).collect()
    }

    /// Completes at the next ring, or at once if there was one since the last wait.
    pub(super) fn rung(&self, kind: JobKind) -> Notified<'_> {
        self.of(kind).notified()
    }

    const fn of(&self, kind: JobKind) -> &Notify {
        match kind {
            JobKind::SendMessages => &self.send_messages,
            JobKind::DeliverWebhook => &self.deliver_webhook,
            JobKind::SendMail => &self.send_mail,
            JobKind::Upkeep => &self.upkeep,
            JobKind::ExportTenant => &self.export_tenant,
            JobKind::DeleteTenant => &self.delete_tenant,
        }
    }
}
