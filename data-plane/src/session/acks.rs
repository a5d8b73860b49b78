//! Messages that are on their way: being written, or waiting for WhatsApp's word.
//!
//! One entry for each WhatsApp id, so that the same message handed in twice at once is sent once, and both callers hear
//! the same. An entry also holds its chat: nothing else of the chat goes out meanwhile. When the socket goes, what waits
//! for a word will not get it there; the entry goes too, and the journal keeps the try as one whose outcome isn't known.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::wire::send::SendOutcome;
use tokio::{sync::watch, time::Instant};

/// How long WhatsApp's word is waited for on one socket. After that a try counts as one whose outcome isn't known.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a message; `None` until that is known.
pub type Outcome = watch::Receiver<Option<SendOutcome>>;

struct Entry {
    chat: String,
    since: Instant,
    /// The socket that it was written to, once it was.
    sent_on: Option<u64>,
    outcome: watch::Sender<Option<SendOutcome>>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    socket: u64,
}

/// The messages on their way, of one client.
#[derive(Default)]
pub struct Acks(Mutex<Table>);

/// The answer to [`Acks::begin`].
pub enum Begun {
    /// Nobody else sends this message: send it.
    Ours(Outcome),
    /// Somebody does.
    Theirs(Outcome),
    /// Another message of the chat is on its way.
    Blocked,
}

impl Acks {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message up. `siblings` are the ids of the same batch: the batch orders those itself.
    pub fn begin(&self, wa_id: &str, chat: &str, siblings: &[&str], now: Instant) -> Begun {
        let mut table = self.table();
        table.entries.retain(|_, entry| {
            let given_up = entry.sent_on.is_some() && now.duration_since(entry.since) > PATIENCE;
            if given_up {
                entry.outcome.send_replace(Some(SendOutcome::Pending));
            }
            !given_up
        });
        if let Some(entry) = table.entries.get(wa_id) {
            return Begun::Theirs(entry.outcome.subscribe());
        }
        let blocked = table.entries.iter().any(|(id, entry)| entry.chat == chat && !siblings.contains(&id.as_str()));
        if blocked {
            return Begun::Blocked;
        }
        let (outcome, receiver) = watch::channel(None);
        table.entries.insert(wa_id.to_owned(), Entry { chat: chat.to_owned(), since: now, sent_on: None, outcome });
        Begun::Ours(receiver)
    }

    /// Which socket is up.
    pub fn socket(&self) -> u64 {
        self.table().socket
    }

    /// A message was written to `socket`. If that is gone by now, no word will come.
    pub fn sent(&self, wa_id: &str, socket: u64) {
        let mut table = self.table();
        if table.socket != socket {
            drop(table);
            self.finish(wa_id, SendOutcome::Pending);
        } else if let Some(entry) = table.entries.get_mut(wa_id) {
            entry.sent_on = Some(socket);
            entry.since = Instant::now();
        }
    }

    /// What became of a message is known.
    pub fn finish(&self, wa_id: &str, outcome: SendOutcome) {
        if let Some(entry) = self.table().entries.remove(wa_id) {
            entry.outcome.send_replace(Some(outcome));
        }
    }

    /// The socket came or went: what was written before gets no word any more.
    pub fn socket_changed(&self) {
        let mut table = self.table();
        table.socket += 1;
        table.entries.retain(|_, entry| {
            let lost = entry.sent_on.is_some();
            if lost {
                entry.outcome.send_replace(Some(SendOutcome::Pending));
            }
            !lost
        });
    }

    /// The client is gone: nothing gets a word any more.
    pub fn close(&self) {
        let mut table = self.table();
        table.socket += 1;
        for (_, entry) in table.entries.drain() {
            entry.outcome.send_replace(Some(SendOutcome::Pending));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(begun: Begun) -> Outcome {
        match begun {
            Begun::Ours(outcome) => outcome,
            Begun::Theirs(_) | Begun::Blocked => panic!("not ours"),
        }
    }

    #[test]
    fn the_same_message_at_the_same_time_is_sent_once_and_both_hear() {
        let acks = Acks::default();
        let now = Instant::now();
        let first = ours(acks.begin("A", "chat", &[], now));
        let Begun::Theirs(second) = acks.begin("A", "chat", &[], now) else { panic!("sent twice") };
        acks.finish("A", SendOutcome::Nacked { code: 429 });
        assert_eq!(*first.borrow(), Some(SendOutcome::Nacked { code: 429 }));
        assert_eq!(*second.borrow(), Some(SendOutcome::Nacked { code: 429 }));
        ours(acks.begin("A", "chat", &[], now));
    }

    #[test]
    fn a_chat_waits_for_its_older_message_and_others_do_not() {
        let acks = Acks::default();
        let now = Instant::now();
        ours(acks.begin("A", "chat", &["A", "B"], now));
        ours(acks.begin("B", "chat", &["A", "B"], now));
        assert!(matches!(acks.begin("C", "chat", &["C"], now), Begun::Blocked));
        ours(acks.begin("D", "another", &["D"], now));
    }

    #[test]
    fn a_lost_socket_leaves_what_was_written_open_and_what_wasn_t_alone() {
        let acks = Acks::default();
        let now = Instant::now();
        let written = ours(acks.begin("A", "one", &[], now));
        let unwritten = ours(acks.begin("B", "two", &[], now));
        let socket = acks.socket();
        acks.sent("A", socket);
        acks.socket_changed();
        assert_eq!(*written.borrow(), Some(SendOutcome::Pending));
        assert_eq!(*unwritten.borrow(), None);
        acks.sent("B", socket);
        assert_eq!(*unwritten.borrow(), Some(SendOutcome::Pending), "written to a socket that was gone");
    }

    #[test]
    fn patience_ends_but_only_for_what_was_written() {
        let acks = Acks::default();
        let now = Instant::now();
        let written = ours(acks.begin("A", "one", &[], now));
        acks.sent("A", acks.socket());
        ours(acks.begin("B", "two", &[], now));
        let later = now + PATIENCE + Duration::from_secs(1);
        ours(acks.begin("A", "one", &[], later));
        assert_eq!(*written.borrow(), Some(SendOutcome::Pending));
        assert!(matches!(acks.begin("B", "two", &[], later), Begun::Theirs(_)));
    }
}
