//! One session's handle on the store.

use shared::ids::SessionId;
use tokio::sync::watch;

use super::{Fence, Result};

/// Why a handle refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Poison {
    /// A newer generation holds the session.
    #[error("fenced off by a newer generation")]
    Fenced,
    /// The worker's lease ended.
    #[error("the worker's lease ended")]
    LeaseEnded,
    /// A write failed, so what memory believes and what is stored may differ.
    #[error("a write failed")]
    WriteFailed,
    /// The session's owner let go of it.
    #[error("released")]
    Released,
    /// The session's owner said so, because its durability hook failed.
    #[error("the durability hook failed")]
    HookFailed,
}

/// The session's handle: wacore's `Backend`, the outbox writer and the send journal.
pub struct FencedBackend {}

impl FencedBackend {
    /// The fence it writes under.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        todo!()
    }
    /// Whose.
    #[must_use]
    pub fn session_id(&self) -> &SessionId {
        todo!()
    }
    /// Whether it refuses.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        todo!()
    }
    /// Tells when, and why, it starts to refuse. `None` while it is well.
    #[must_use]
    pub fn poisoned(&self) -> watch::Receiver<Option<Poison>> {
        todo!()
    }
    /// Makes it refuse from now on. The first reason stays.
    pub fn poison(&self, _why: Poison) {
        todo!()
    }
    /// Poisons it with `Released` and lets go of the fence.
    pub async fn release(&self) -> Result<()> {
        todo!()
    }
    /// Deletes the session's WhatsApp state and journal, in one fenced commit. The outbox stays: ship it first.
    pub async fn erase_session(&self) -> Result<()> {
        todo!()
    }
}
