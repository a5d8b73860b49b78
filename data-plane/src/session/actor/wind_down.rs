//! Stopping, logging out and erasing.

use std::time::Duration;

use shared::wire::session::{Desired, Observed};
use tokio::time::{Instant, timeout, timeout_at};
use wacore::iq::devices::RemoveCompanionDeviceSpec;

use super::{Actor, Turn, serve::account};
use crate::{
    backoff,
    session::{client::Running, state::Signal},
    store::Fence,
    supervisor::Term,
};

/// How long removing the companion device may take, connecting included.
const UNLINK: Duration = Duration::from_secs(30);
/// How long the end of the stream is waited for that follows an unlinking.
const STREAM_END: Duration = Duration::from_secs(2);
/// The first and the longest pause while something has not been done yet.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

impl Actor {
    /// Ships what is left and lets go. The client is closed already.
    pub(super) async fn stop(&mut self, fence: &Fence, term: &Term, reason: Option<&'static str>) -> Option<Turn> {
        self.publish();
        if let Some(turn) = self.ship_all(term).await {
            return Some(turn);
        }
        self.release(fence).await;
        self.publish_as(Observed::Stopped { reason: reason.map(Into::into) });
        None
    }

    /// Removes the companion device from the account, ships what is left, erases and lets go.
    pub(super) async fn log_out(&mut self, fence: &Fence, term: &Term) -> Option<Turn> {
        let unlink_confirmed = match self.unlink(fence, term).await {
            Ok(confirmed) => confirmed,
            Err(turn) => return Some(turn),
        };
        tracing::info!(session = %self.id, unlink_confirmed, "logged out on the tenant's wish");
        self.machine.on(Signal::Dropped);
        self.publish();
        if let Some(turn) = self.ship_all(term).await {
            return Some(turn);
        }
        if let Some(turn) = self.erase(fence, term).await {
            return Some(turn);
        }
        self.account = None;
        self.release(fence).await;
        self.publish_as(Observed::Erased { unlink_confirmed });
        None
    }

    /// Waits until the session's outbox is empty.
    async fn ship_all(&mut self, term: &Term) -> Option<Turn> {
        let mut tries = 0;
        loop {
            if !term.lease.is_valid() {
                return Some(Turn::LeaseEnded);
            }
            match self.node.store.outbox_len(&self.id).await {
                Ok(0) => return None,
                Ok(_) => self.node.shipper.ring(&self.id),
                Err(error) => tracing::warn!(session = %self.id, %error, "the outbox could not be counted"),
            }
            tries += 1;
            if let Some(turn) = self.pause(Some(term), backoff::doubling(PAUSES.0, PAUSES.1, tries)).await {
                return Some(turn);
            }
        }
    }

    /// Erases the session's WhatsApp state, and all of it if it is deleted.
    pub(super) async fn erase(&mut self, fence: &Fence, term: &Term) -> Option<Turn> {
        let mut tries = 0;
        loop {
            if !term.lease.is_valid() {
                return Some(Turn::LeaseEnded);
            }
            // A handle that failed refuses from then on: each try has its own.
            let backend = self.backend(fence, term);
            let erased = match self.order.desired {
                Desired::Deleted => backend.erase_session().await,
                Desired::Running | Desired::Stopped | Desired::LoggedOut => backend.erase_state().await,
            };
            match erased {
                Ok(()) => return None,
                Err(error) => tracing::warn!(session = %self.id, %error, "the session was not erased, trying again"),
            }
            tries += 1;
            if let Some(turn) = self.pause(Some(term), backoff::doubling(PAUSES.0, PAUSES.1, tries)).await {
                return Some(turn);
            }
        }
    }

    /// Removes the companion device. Answers whether WhatsApp confirmed that it is gone; what ends the attempt before its
    /// time leaves the state as it is, so that the device can still be removed by whoever runs the session next.
    async fn unlink(&mut self, fence: &Fence, term: &Term) -> Result<bool, Turn> {
        let deadline = Instant::now() + UNLINK;
        let mut tries = 0;
        let mut running = match self.kept.take() {
            Some(running) => running,
            None => loop {
                if let Some(running) = self.start(fence, term).await? {
                    break running;
                }
                if !term.lease.is_valid() {
                    return Err(Turn::LeaseEnded);
                }
                if Instant::now() >= deadline {
                    return Ok(false);
                }
                tries += 1;
                if let Some(turn) = self.pause(Some(term), backoff::doubling(PAUSES.0, PAUSES.1, tries)).await {
                    return Err(turn);
                }
            },
        };
        if account(&running.client()).is_none() {
            // Never linked: there is no device to remove.
            running.close().await;
            return Ok(true);
        }
        let done = tokio::select! {
            () = self.shutdown.cancelled() => Err(Turn::Shutdown),
            () = term.over.cancelled() => Err(Turn::LeaseEnded),
            done = timeout_at(deadline, async {
                // Without its device no word would come on what is on its way.
                running.last_words().await;
                remove_device(&mut running).await
            }) => Ok(done.unwrap_or(false)),
        };
        if matches!(done, Err(Turn::LeaseEnded)) || running.link.backend.is_poisoned() {
            running.abort().await;
        } else {
            running.close().await;
        }
        done
    }
}

/// Waits until the client is connected, and removes its device.
async fn remove_device(running: &mut Running) -> bool {
    while running.link.live_client().is_none() {
        match running.signals.recv().await {
            // Gone already.
            Some(Signal::LoggedOut(_)) => return true,
            Some(Signal::Connected | Signal::Dropped | Signal::Renamed | Signal::Linked) => {}
            _ => return false,
        }
    }
    let client = running.client();
    let Some(own) = client.pn() else { return true };
    if client.execute(RemoveCompanionDeviceSpec::new(&own)).await.is_ok() {
        return true;
    }
    // The stream may end with "device removed" before the reply comes.
    let said_so = async {
        while let Some(signal) = running.signals.recv().await {
            if matches!(signal, Signal::LoggedOut(_)) {
                return true;
            }
        }
        false
    };
    timeout(STREAM_END, said_so).await.unwrap_or(false)
}
