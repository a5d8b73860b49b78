//! Wakes the runner of this process as soon as a job is committed.

use tokio::sync::{Notify, futures::Notified};

use super::JobKind;

/// One doorbell for each kind of job. Ringing is a hint: a job that nobody rang for is found by polling.
#[derive(Debug, Default)]
pub struct Bell {
    send_messages: Notify,
    deliver_webhook: Notify,
    send_mail: Notify,
}

impl Bell {
    /// Says that jobs of this kind are due. Call it after the commit: before it there is nothing to find.
    pub fn ring(&self, kind: JobKind) {
        self.of(kind).notify_one();
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
        }
    }
}
