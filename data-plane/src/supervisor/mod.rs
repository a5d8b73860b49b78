//! All sessions of one worker.
//!
//! Owns the lease (table `worker_lease` of the store) and the map of actors. Invariants: a session has one actor on this
//! worker, never two; no actor claims without a lasting lease; at the lease's end every actor aborts its client, because
//! from then on another worker may claim the session.

mod lease;

pub use self::lease::Term;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::{
    ids::SessionId,
    seal::DataKey,
    wire::{
        linking::{PairingCode, PairingCodeOrder, PasskeyOrder},
        send::{SendBatch, SendResults},
        session::{Observed, PutSession, Report, SessionView},
    },
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    node::Node,
    session::{
        Command, Handle,
        actor::Actor,
        linking::{self, LinkingError},
        outbound::{self, BadBatch},
    },
};

/// An order that can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PutError {
    /// The session is of the other network.
    #[error("this worker speaks to another network")]
    Network,
    /// The session's key isn't one.
    #[error("the session's key is not 32 bytes of base64")]
    Key,
    /// The order is older than what runs.
    #[error("the session is at a newer generation")]
    Generation(i64),
    /// No room for another session.
    #[error("this worker is full")]
    Full,
    /// Too many orders at once, or the worker stops.
    #[error("this worker can't take the order now")]
    Busy,
}

/// A batch of sends that can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendRefused {
    /// Another generation runs here, or none.
    #[error("the session is at another generation")]
    Generation(Option<i64>),
    /// Not a batch.
    #[error(transparent)]
    Batch(#[from] BadBatch),
}

/// Linking that can't go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinkRefused {
    /// Another generation runs here, or none.
    #[error("the session is at another generation")]
    Generation(Option<i64>),
    /// It can't be linked so.
    #[error(transparent)]
    Linking(#[from] LinkingError),
}

/// How many sessions there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Census {
    /// On this worker.
    pub sessions: u32,
    /// Of them, connected to WhatsApp.
    pub connected: u32,
}

/// Holds the sessions of a worker.
pub struct Supervisor {
    node: Arc<Node>,
    actors: Mutex<HashMap<SessionId, Handle>>,
    next_actor: AtomicU64,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// No sessions yet.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Arc<Self> {
        Arc::new(Self {
            node,
            actors: Mutex::default(),
            next_actor: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        })
    }

    fn actors(&self) -> MutexGuard<'_, HashMap<SessionId, Handle>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a session as the control plane wants it. Idempotent.
    ///
    /// # Errors
    /// [`PutError`]; nothing has changed then.
    pub fn put(self: &Arc<Self>, order: PutSession) -> Result<SessionView, PutError> {
        if order.network != self.node.network {
            return Err(PutError::Network);
        }
        let key = DataKey::from_base64(order.session_key.expose()).map_err(|_| PutError::Key)?;
        if self.shutdown.is_cancelled() {
            return Err(PutError::Busy);
        }
        let mut actors = self.actors();
        if let Some(handle) = actors.get(&order.session_id)
            && !handle.mailbox.is_closed()
        {
            let held = handle.view.borrow().report.generation;
            if order.generation < held {
                return Err(PutError::Generation(held));
            }
            handle.mailbox.try_send(Command::Put(Box::new(order))).map_err(|_| PutError::Busy)?;
            return Ok(view(handle));
        }
        if actors.len() >= self.node.capacity as usize && !actors.contains_key(&order.session_id) {
            return Err(PutError::Full);
        }
        let id = order.session_id.clone();
        let number = self.next_actor.fetch_add(1, Ordering::Relaxed);
        let (actor, handle) = Actor::new(Arc::clone(&self.node), order, key, number, self.shutdown.child_token());
        let shown = view(&handle);
        actors.insert(id.clone(), handle);
        drop(actors);
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            // Also if it panics.
            let _gone = scopeguard::guard((), |()| this.gone(&id, number));
            actor.run().await;
        });
        Ok(shown)
    }

    fn gone(&self, session: &SessionId, number: u64) {
        let mut actors = self.actors();
        if actors.get(session).is_some_and(|handle| handle.actor == number) {
            actors.remove(session);
        }
    }

    /// What a session is; `None` if it isn't here.
    #[must_use]
    pub fn view(&self, session: &SessionId) -> Option<SessionView> {
        self.actors().get(session).map(view)
    }

    /// What every session here is.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        self.actors().values().map(|handle| handle.view.borrow().report.clone()).collect()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn census(&self) -> Census {
        let actors = self.actors();
        let connected =
            actors.values().filter(|handle| handle.view.borrow().report.observed == Observed::Connected).count();
        Census {
            sessions: u32::try_from(actors.len()).unwrap_or(u32::MAX),
            connected: u32::try_from(connected).unwrap_or(u32::MAX),
        }
    }

    /// Sends a batch of a session's messages.
    ///
    /// # Errors
    /// [`SendRefused`]; nothing was sent then.
    pub async fn send(&self, session: &SessionId, batch: SendBatch) -> Result<SendResults, SendRefused> {
        let (generation, link) = {
            let actors = self.actors();
            let handle = actors.get(session).ok_or(SendRefused::Generation(None))?;
            let link = handle.link.borrow().clone();
            let shown = handle.view.borrow().report.generation;
            (link.as_ref().map_or(shown, |link| link.backend.fence().generation()), link)
        };
        if batch.generation != generation {
            return Err(SendRefused::Generation(Some(generation)));
        }
        Ok(outbound::send(link, generation, batch).await?)
    }

    /// Links a session by a code that is typed into the phone.
    ///
    /// # Errors
    /// [`LinkRefused`].
    pub async fn pairing_code(
        &self,
        session: &SessionId,
        order: &PairingCodeOrder,
    ) -> Result<PairingCode, LinkRefused> {
        let handle = self.at(session, order.generation)?;
        Ok(linking::pairing_code(handle.view, handle.link, &order.phone).await?)
    }

    /// Hands WhatsApp the answer of the account's owner.
    ///
    /// # Errors
    /// [`LinkRefused`].
    pub async fn answer_passkey(&self, session: &SessionId, order: PasskeyOrder) -> Result<(), LinkRefused> {
        let handle = self.at(session, order.generation)?;
        let link = handle.link.borrow().clone();
        Ok(linking::answer_passkey(&handle.view, link, order.answer).await?)
    }

    /// The way to a session that is at this generation.
    fn at(&self, session: &SessionId, generation: i64) -> Result<Handle, LinkRefused> {
        let handle = self.actors().get(session).cloned().ok_or(LinkRefused::Generation(None))?;
        let shown = handle.view.borrow().report.generation;
        if shown == generation { Ok(handle) } else { Err(LinkRefused::Generation(Some(shown))) }
    }

    /// Lets go of a session, unless it is at a newer generation. Answers whether anybody runs it here.
    pub fn let_go(&self, session: &SessionId, generation: i64) -> bool {
        let actors = self.actors();
        let Some(handle) = actors.get(session).filter(|handle| !handle.mailbox.is_closed()) else { return false };
        if handle.mailbox.try_send(Command::LetGo { generation }).is_err() {
            // Asked again at the next renewal or report.
            tracing::debug!(%session, "the session doesn't listen now");
        }
        true
    }

    /// Closes all sessions and lets go of them; answers whether all ended within `patience`.
    pub async fn shutdown(&self, patience: Duration) -> bool {
        self.shutdown.cancel();
        self.tasks.close();
        timeout(patience, self.tasks.wait()).await.is_ok()
    }
}

fn view(handle: &Handle) -> SessionView {
    let shown = handle.view.borrow();
    SessionView { report: shown.report.clone(), qr: shown.qr.clone(), passkey: shown.passkey.clone() }
}
