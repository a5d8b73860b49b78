//! Keeping a session connected.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use shared::wire::{
    session::{Account, Desired, Observed},
    worker::SessionGeneration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use whatsapp_rust::Client;

use super::{Actor, Turn};
use crate::{
    backoff,
    session::{
        client::{Link, Running},
        state::{Effect, Signal},
    },
    store::{Fence, Poison},
    supervisor::Term,
};

/// How long a connection must last until the session's earlier failures are forgotten.
const SETTLED: chrono::TimeDelta = chrono::TimeDelta::seconds(60);
/// The pause before a replaced session comes back, so that two holders of one device don't fight.
const COOL_DOWN: Duration = Duration::from_secs(5);
/// The first and the longest pause while the control plane can't say whether a session is ours.
const ASK_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How often a session is looked at, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a client is not followed any more.
enum Ended {
    Turn(Turn),
    Effect(Effect),
}

impl Actor {
    /// Keeps the session connected until something else is to be done. `None`: it has let go by itself.
    pub(super) async fn serve(&mut self, fence: &Fence, term: &Term) -> Option<Turn> {
        if self.machine.is_over() {
            return Some(self.rest(term).await);
        }
        loop {
            let place = match self.place(term).await {
                Ok(place) => place,
                Err(turn) => return Some(turn),
            };
            let effect = match self.start(fence, term).await {
                Ok(Some(running)) => match self.follow(running, place, term).await {
                    Ended::Turn(turn) => return Some(turn),
                    Ended::Effect(effect) => effect,
                },
                Ok(None) => {
                    // Others may come up during the pause.
                    drop(place);
                    self.machine.on(Signal::Broken)
                }
                Err(turn) => return Some(turn),
            };
            self.publish();
            let turn = match effect {
                Effect::None => None,
                Effect::Rebuild(pause) => self.pause(Some(term), pause).await,
                Effect::Validate => self.come_back_if_ours(term).await,
                Effect::End => Some(self.rest(term).await),
                Effect::EndAndErase => match self.erase(fence, term).await {
                    Some(turn) => Some(turn),
                    None => Some(self.rest(term).await),
                },
                Effect::GiveUp(reason) => return self.stop(fence, term, Some(reason)).await,
            };
            if turn.is_some() {
                return turn;
            }
        }
    }

    /// Waits until another session may come up.
    async fn place(&mut self, term: &Term) -> Result<OwnedSemaphorePermit, Turn> {
        let starts = Arc::clone(&self.node.starts);
        tokio::select! {
            biased;
            turn = self.rest(term) => Err(turn),
            // It is never closed.
            place = starts.acquire_owned() => place.map_err(|_| Turn::Shutdown),
        }
    }

    /// Builds and starts a client, unless something else is to be done meanwhile. `None`: it can't be built now.
    pub(super) async fn start(&mut self, fence: &Fence, term: &Term) -> Result<Option<Running>, Turn> {
        let (node, settings) = (Arc::clone(&self.node), self.order.settings.clone());
        let starting = Running::start(&node, self.backend(fence, term), term.lease.clone(), &settings);
        let started = tokio::select! {
            biased;
            turn = self.rest(term) => return Err(turn),
            started = starting => started,
        };
        match started {
            Ok(running) => {
                running.link.apply(&self.order.settings);
                Ok(Some(running))
            }
            Err(error) => {
                tracing::warn!(session = %self.id, %error, "trying again");
                Ok(None)
            }
        }
    }

    /// Follows a client to its end, and ends it. Leaves its place to another session once the client is up.
    async fn follow(&mut self, mut running: Running, place: OwnedSemaphorePermit, term: &Term) -> Ended {
        self.link.send_replace(Some(running.link.clone()));
        let ended = self.drive(&mut running, place, term).await;
        self.link.send_replace(None);
        match &ended {
            // Whatever memory holds must not reach the store any more.
            Ended::Turn(Turn::LeaseEnded) | Ended::Effect(Effect::Rebuild(_)) => running.abort().await,
            Ended::Turn(_) | Ended::Effect(_) if running.link.backend.is_poisoned() => running.abort().await,
            // Its connection is what the unlinking goes over.
            Ended::Turn(Turn::Reconsider) if matches!(self.order.desired, Desired::LoggedOut | Desired::Deleted) => {
                self.kept = Some(running);
            }
            Ended::Turn(_) | Ended::Effect(_) => running.close().await,
        }
        if matches!(ended, Ended::Turn(_)) {
            self.machine.on(Signal::Dropped);
        }
        ended
    }

    async fn drive(&mut self, running: &mut Running, place: OwnedSemaphorePermit, term: &Term) -> Ended {
        let mut place = Some(place);
        let late = sleep(self.node.timing.start);
        tokio::pin!(late);
        let Running { link, signals, handle, .. } = running;
        let client = handle.client();
        let mut poison = link.backend.poisoned();
        let mut look = interval((self.node.timing.silence / 10).clamp(LOOK.0, LOOK.1));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alive = true;
        let mut redialled = false;
        self.account = account(&client);
        loop {
            let signal = if alive {
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return Ended::Turn(Turn::Shutdown),
                    () = term.over.cancelled() => return Ended::Turn(Turn::LeaseEnded),
                    command = self.mailbox.recv() => match self.obey(command) {
                        Some(turn) => return Ended::Turn(turn),
                        None => continue,
                    },
                    Some(signal) = signals.recv() => signal,
                    why = poisoned(&mut poison) => match why {
                        Poison::Fenced => return Ended::Turn(Turn::LetGo),
                        Poison::LeaseEnded => return Ended::Turn(Turn::LeaseEnded),
                        Poison::WriteFailed | Poison::HookFailed | Poison::Released => {
                            tracing::warn!(session = %self.id, %why, "building the client anew");
                            metrics::counter!("data_plane_rebuilds_total").increment(1);
                            Signal::Broken
                        }
                    },
                    () = &mut *handle => {
                        alive = false;
                        continue;
                    }
                    () = &mut late, if place.is_some() => {
                        place = None;
                        continue;
                    }
                    _ = look.tick() => {
                        // The library logs in at once if it can, and then nobody needs to hear of it.
                        let lost = std::mem::replace(&mut redialled, link.redialled()) && redialled;
                        match self.look(link, &client, lost) {
                            Some(signal) => signal,
                            None => continue,
                        }
                    }
                }
            } else {
                // The library says why it ends before it ends.
                signals.try_recv().unwrap_or(Signal::Broken)
            };
            if matches!(signal, Signal::Linked | Signal::Connected | Signal::Renamed) {
                self.account = account(&client);
            }
            place = None;
            let effect = self.machine.on(signal);
            self.publish();
            if effect != Effect::None {
                return Ended::Effect(effect);
            }
        }
    }

    /// Looks when the client last heard from WhatsApp. `lost`: it has dialled, and isn't logged in since the last look.
    fn look(&mut self, link: &Link, client: &Client, lost: bool) -> Option<Signal> {
        let millis = i64::try_from(client.stats().last_data_received_ms).unwrap_or_default();
        let heard = DateTime::from_timestamp_millis(millis).filter(|_| millis > 0);
        if let Some(heard) = heard {
            self.view.send_modify(|view| view.report.last_frame_at = Some(heard));
        }
        let now = Utc::now();
        let silence = chrono::TimeDelta::from_std(self.node.timing.silence).unwrap_or(chrono::TimeDelta::MAX);
        let silent = heard.is_some_and(|at| now - at > silence);
        match (self.machine.observed(), silent) {
            (Observed::Connected, true) => Some(Signal::Silent),
            // A dead socket was given up, and the next one isn't through its login: what comes with it is no sign of life.
            (Observed::Connected, false) if lost => Some(Signal::Dropped),
            (Observed::Connected, false) => {
                (now - self.view.borrow().report.since > SETTLED).then_some(Signal::Settled)
            }
            (Observed::Reconnecting, false) if heard.is_some() && !link.redialled() => Some(Signal::Heard),
            _ => None,
        }
    }

    /// After another connection took the session's place: comes back if the control plane says that it is ours.
    async fn come_back_if_ours(&mut self, term: &Term) -> Option<Turn> {
        let mut failures = 0;
        loop {
            let ask = SessionGeneration { session_id: self.id.clone(), generation: self.order.generation };
            match self.node.upstream.validate(ask).await {
                Ok(true) => break,
                Ok(false) => {
                    tracing::info!(session = %self.id, "replaced, and not ours any more");
                    return Some(Turn::LetGo);
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(session = %self.id, %error, "replaced, and nobody can say whether it is ours");
                    let turn = self.pause(Some(term), backoff::doubling(ASK_PAUSES.0, ASK_PAUSES.1, failures)).await;
                    if turn.is_some() {
                        return turn;
                    }
                }
            }
        }
        let gap = self.node.timing.replaced;
        let since = self.last_reconnect.map_or(gap, |at| at.elapsed());
        let turn = self.pause(Some(term), gap.saturating_sub(since).max(COOL_DOWN.min(gap))).await;
        self.last_reconnect = Some(Instant::now());
        turn
    }
}

/// Who a client is, once it is linked.
pub(super) fn account(client: &Client) -> Option<Account> {
    let name = client.push_name();
    Some(Account {
        jid: client.pn()?.to_string(),
        lid: client.lid().map(|lid| lid.to_non_ad().to_string()),
        push_name: Some(name).filter(|name| !name.is_empty()),
    })
}

/// Resolves when the handle refuses from now on.
async fn poisoned(poison: &mut watch::Receiver<Option<Poison>>) -> Poison {
    match poison.wait_for(Option::is_some).await {
        Ok(why) => why.unwrap_or(Poison::WriteFailed),
        Err(_) => Poison::Released,
    }
}
