//! Requests that wait for a message to move (`Prefer: wait`). Whoever commits a move in this process wakes them; what another
//! replica commits they find by looking now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared::ids::MessageId;
use tokio::sync::{Notify, futures::Notified};

use crate::events::NewEvent;

/// Who waits in this process, by message.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<HashMap<String, Arc<Notify>>>);

/// A place in the waiting room, given up when dropped.
#[derive(Debug)]
pub(super) struct Waiter<'a> {
    room: &'a Waiting,
    message: String,
    moved: Arc<Notify>,
}

impl Waiting {
    fn room(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a message from now on.
    pub(super) fn wait_for(&self, message: &MessageId) -> Waiter<'_> {
        let moved = Arc::clone(self.room().entry(message.to_string()).or_default());
        Waiter { room: self, message: message.to_string(), moved }
    }

    /// Wakes those whose messages these committed events are about.
    pub(super) fn wake(&self, events: &[String]) {
        let room = self.room();
        for message in events {
            if let Some(moved) = room.get(message) {
                moved.notify_waiters();
            }
        }
    }
}

/// The messages that events are about.
pub(super) fn messages_of(events: &[NewEvent]) -> Vec<String> {
    events.iter().filter_map(|event| event.data["message_id"].as_str().map(str::to_owned)).collect()
}

impl Waiter<'_> {
    /// Completes at the next move. Made before looking, it misses none.
    pub(super) fn moved(&self) -> Notified<'_> {
        self.moved.notified()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut room = self.room.room();
        // Two: the map's and this one. Another request may wait for the same message.
        if room.get(&self.message).is_some_and(|moved| Arc::strong_count(moved) <= 2) {
            room.remove(&self.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_and_leave_nothing_behind() {
        let waiting = Waiting::default();
        let (one, other) = (MessageId::new(), MessageId::new());
        {
            let (first, second, third) = (waiting.wait_for(&one), waiting.wait_for(&one), waiting.wait_for(&other));
            let (a, b, mut c) = (first.moved(), second.moved(), Box::pin(third.moved()));
            waiting.wake(&[one.to_string()]);
            tokio::join!(a, b);
            assert!(futures_util::poll!(&mut c).is_pending());
            drop(c);
        }
        assert!(waiting.room().is_empty());
    }
}
