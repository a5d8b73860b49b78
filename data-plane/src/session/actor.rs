//! The actor: one task that runs one session on this worker, from claim to letting go.
//!
//! ```text
//! claim ──► hold ─┬─ running      serve: build a client, follow its signals, build another when it breaks
//!                 ├─ stopped      ship what is left, let go
//!                 └─ logged out   remove the companion device, ship what is left, erase, let go
//! ```
//! Everything that waits also listens: an order, the end of the lease or the worker's shutdown ends any wait.

mod serve;
mod wind_down;

use std::{future::pending, sync::Arc, time::Duration};

use chrono::Utc;
use shared::{
    ids::SessionId,
    seal::DataKey,
    wire::{
        linking::{Passkey, QrCode},
        session::{Account, Desired, Observed, PutSession, Report},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Link, Running},
    state::Machine,
};
use crate::{
    backoff,
    node::Node,
    store::{Claim, Fence, FencedBackend},
    supervisor::Term,
};

/// How many orders wait at most.
const MAILBOX: usize = 64;
/// The first and the longest pause while another worker still holds the session, or the store doesn't answer.
const CLAIM_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// An order to an actor.
pub enum Command {
    /// Run the session like this from now on.
    Put(Box<PutSession>),
    /// The session is not ours any more, or another worker waits for it. Not if it is at a newer generation than this.
    LetGo {
        /// The generation that is not to be held any more.
        generation: i64,
    },
}

/// What others see of a session.
#[derive(Clone)]
pub struct View {
    /// Its state.
    pub report: Report,
    /// The code to scan.
    pub qr: Option<QrCode>,
    /// What WhatsApp asks of the owner's passkey.
    pub passkey: Option<Passkey>,
}

/// The way to an actor.
#[derive(Clone)]
pub struct Handle {
    /// Tells this actor from a later one of the same session.
    pub actor: u64,
    /// Takes orders.
    pub mailbox: mpsc::Sender<Command>,
    /// Shows its state.
    pub view: watch::Receiver<View>,
    /// The client of the moment.
    pub link: watch::Receiver<Option<Arc<Link>>>,
}

/// What ends a wait.
enum Turn {
    /// A newer placement. The actor's order is the new one already.
    NewGeneration,
    /// The order has changed, or asks for a restart.
    Reconsider,
    /// Let go, say nothing.
    LetGo,
    /// The worker's lease has ended.
    LeaseEnded,
    /// The worker stops.
    Shutdown,
}

/// What follows a hold.
enum After {
    /// Claim again: at a newer generation, or after the lease came back.
    Claim,
    /// The session is gone from this worker.
    Gone,
}

/// The actor's state.
pub struct Actor {
    node: Arc<Node>,
    id: SessionId,
    order: PutSession,
    key: DataKey,
    mailbox: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
    link: watch::Sender<Option<Arc<Link>>>,
    shutdown: CancellationToken,
    machine: Machine,
    /// The `restart_seq` that has been acted on.
    restarted: i64,
    account: Option<Account>,
    last_reconnect: Option<Instant>,
    /// A client whose connection the unlinking is to go over.
    kept: Option<Running>,
    reported: bool,
}

impl Actor {
    /// An actor for a session that this worker doesn't run yet, and the way to it.
    #[must_use]
    pub fn new(
        node: Arc<Node>,
        order: PutSession,
        key: DataKey,
        actor: u64,
        shutdown: CancellationToken,
    ) -> (Self, Handle) {
        let (to_mailbox, mailbox) = mpsc::channel(MAILBOX);
        let report = Report {
            session_id: order.session_id.clone(),
            generation: order.generation,
            report_seq: node.reporter.next_seq(),
            restart_seq: order.restart_seq,
            observed: Observed::Starting,
            since: Utc::now(),
            last_frame_at: None,
            account: None,
            qr_seq: None,
        };
        let (view, shown) = watch::channel(View { report, qr: None, passkey: None });
        let (link, shown_link) = watch::channel(None);
        let actor_state = Self {
            machine: Machine::new(node.timing.rebuild),
            id: order.session_id.clone(),
            restarted: order.restart_seq,
            node,
            order,
            key,
            mailbox,
            view,
            link,
            shutdown,
            account: None,
            last_reconnect: None,
            kept: None,
            reported: false,
        };
        (actor_state, Handle { actor, mailbox: to_mailbox, view: shown, link: shown_link })
    }

    /// Runs the session until it is gone from this worker.
    pub async fn run(mut self) {
        while let Some((fence, term)) = self.claim().await {
            self.publish();
            // Rows of an earlier run may still be there.
            self.node.shipper.ring(&self.id);
            match self.hold(&fence, &term).await {
                After::Claim => {}
                After::Gone => return,
            }
        }
    }

    /// Claims the session. `None`: it isn't ours to claim any more.
    async fn claim(&mut self) -> Option<(Fence, Term)> {
        let mut tries = 0;
        loop {
            if let Some(term) = self.node.valid_term() {
                let claim = self.node.store.claim(&term.lease, &self.id, self.order.generation, self.order.epoch);
                match claim.await {
                    Ok(Claim::Held(fence)) => return Some((fence, term)),
                    Ok(Claim::Busy { .. }) => {}
                    Ok(Claim::Stale { .. }) => {
                        tracing::info!(session = %self.id, "a newer generation has the session");
                        return None;
                    }
                    Err(error) => tracing::warn!(session = %self.id, %error, "the session was not claimed"),
                }
            }
            tries += 1;
            match self.pause(None, backoff::doubling(CLAIM_PAUSES.0, CLAIM_PAUSES.1, tries)).await {
                Some(Turn::NewGeneration | Turn::Reconsider) => tries = 0,
                Some(Turn::LetGo | Turn::Shutdown) => return None,
                Some(Turn::LeaseEnded) | None => {}
            }
        }
    }

    /// Does what the order says, under a fence.
    async fn hold(&mut self, fence: &Fence, term: &Term) -> After {
        loop {
            let turn = match self.order.desired {
                Desired::Running => self.serve(fence, term).await,
                Desired::Stopped => self.stop(fence, term, None).await,
                Desired::LoggedOut | Desired::Deleted => self.log_out(fence, term).await,
            };
            match turn {
                Some(Turn::Reconsider) => self.machine = Machine::new(self.node.timing.rebuild),
                Some(Turn::LeaseEnded) => {
                    // The worker may still be heard: nobody is to believe that the session is connected.
                    self.publish();
                    return After::Claim;
                }
                Some(Turn::NewGeneration) => {
                    self.machine = Machine::new(self.node.timing.rebuild);
                    self.release(fence).await;
                    return After::Claim;
                }
                Some(Turn::LetGo | Turn::Shutdown) => {
                    self.release(fence).await;
                    return After::Gone;
                }
                None => return After::Gone,
            }
        }
    }

    /// Lets go of the session. If the store doesn't take it, whoever wants the session has the worker's lease keeper do it.
    async fn release(&self, fence: &Fence) {
        if let Err(error) = fence.release().await {
            tracing::warn!(session = %self.id, %error, "the fence was not released");
        }
    }

    /// A fresh handle on the store.
    fn backend(&self, fence: &Fence, term: &Term) -> Arc<FencedBackend> {
        self.node.store.backend(fence.clone(), self.key.clone(), term.lease.clone())
    }

    /// Waits, unless something ends the wait: under a lease, its end does.
    async fn pause(&mut self, term: Option<&Term>, duration: Duration) -> Option<Turn> {
        let until = Instant::now() + backoff::spread(duration);
        let over = async {
            match term {
                Some(term) => term.over.cancelled().await,
                None => pending().await,
            }
        };
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Some(Turn::Shutdown),
                () = &mut over => return Some(Turn::LeaseEnded),
                command = self.mailbox.recv() => if let Some(turn) = self.obey(command) { return Some(turn) },
                () = sleep_until(until) => return None,
            }
        }
    }

    /// Waits for something that ends a wait, under a lease.
    async fn rest(&mut self, term: &Term) -> Turn {
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Turn::Shutdown,
                () = term.over.cancelled() => return Turn::LeaseEnded,
                command = self.mailbox.recv() => if let Some(turn) = self.obey(command) { return turn },
            }
        }
    }

    /// Takes an order. Answers whether it changes what is being done.
    fn obey(&mut self, command: Option<Command>) -> Option<Turn> {
        match command {
            // The supervisor is gone: the worker is stopping.
            None => Some(Turn::Shutdown),
            Some(Command::LetGo { generation }) => (self.order.generation <= generation).then_some(Turn::LetGo),
            Some(Command::Put(put)) if put.generation > self.order.generation => {
                self.order = *put;
                self.restarted = self.order.restart_seq;
                self.take_key();
                Some(Turn::NewGeneration)
            }
            Some(Command::Put(put)) if put.generation == self.order.generation => {
                let restart = put.restart_seq > self.restarted;
                let changed = put.desired != self.order.desired || restart;
                self.order = *put;
                self.restarted = self.restarted.max(self.order.restart_seq);
                if let Some(link) = &*self.link.borrow() {
                    link.apply(&self.order.settings);
                }
                changed.then_some(Turn::Reconsider)
            }
            Some(Command::Put(_)) => None,
        }
    }

    /// The supervisor has checked the key of every order that it passes on.
    fn take_key(&mut self) {
        if let Ok(key) = DataKey::from_base64(self.order.session_key.expose()) {
            self.key = key;
        }
    }

    /// Shows the machine's state.
    fn publish(&mut self) {
        let observed = self.machine.observed().clone();
        self.publish_as(observed);
    }

    /// Shows a state to others, and reports it if anything changed.
    fn publish_as(&mut self, observed: Observed) {
        let View { report: old, qr: old_qr, passkey: old_passkey } = self.view.borrow().clone();
        let (qr, passkey) = (self.machine.qr().cloned(), self.machine.passkey().cloned());
        let mut report = Report {
            generation: self.order.generation,
            restart_seq: self.restarted,
            account: self.account.clone(),
            qr_seq: self.machine.qr_seq(),
            observed,
            ..old.clone()
        };
        let same = report.generation == old.generation
            && report.restart_seq == old.restart_seq
            && report.account == old.account
            && report.qr_seq == old.qr_seq
            && report.observed == old.observed
            && qr == old_qr
            && passkey == old_passkey;
        if same && self.reported {
            return;
        }
        if report.observed != old.observed {
            report.since = Utc::now();
        }
        report.report_seq = self.node.reporter.next_seq();
        self.reported = true;
        self.node.reporter.submit(report.clone());
        self.view.send_replace(View { report, qr, passkey });
    }
}
