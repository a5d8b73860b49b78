//! Messages that are on their way: being written, or waiting for WhatsApp's word.
//!
//! One entry for each WhatsApp id, so that the same message handed in twice at once is sent once, and both callers hear
//! the same. An entry also holds its chat: nothing else of the chat goes out until WhatsApp has taken it. When the socket goes,
//! what waits for a word will not get it there; the entry goes too, and the journal keeps the try as one whose outcome isn't known.
//! A client that is closed of our own accord therefore waits a while for [`Acks::none_left`] first.
//!
//! That WhatsApp has taken a message is told before it is recorded: whoever hears it doesn't hand the message in again, and
//! whoever doesn't hears it from the outbox. Till it is recorded the entry stays, so that nobody opens another try.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use shared::wire::send::SendOutcome;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// How long WhatsApp's word is waited for on one socket. After that a try counts as one whose outcome isn't known.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How far a message has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is known yet.
    OnItsWay,
    /// WhatsApp took it then, which isn't recorded yet: the next message of the chat may go.
    Taken(DateTime<Utc>),
    /// It is over, and recorded.
    Over(SendOutcome),
}

/// How far a message has come, as it changes.
pub type Outcome = watch::Receiver<Progress>;

struct Entry {
    chat: String,
    since: Instant,
    /// The socket that it was written to, once it was.
    sent_on: Option<u64>,
    outcome: watch::Sender<Progress>,
}

impl Entry {
    fn is_taken(&self) -> bool {
        matches!(*self.outcome.borrow(), Progress::Taken(_))
    }

    /// Whether it stays without a word that may still come: the word, or its record.
    fn stays_if(&self, word_may_come: bool) -> bool {
        let stays = word_may_come || self.is_taken();
        if !stays {
            self.outcome.send_replace(Progress::Over(SendOutcome::Pending));
        }
        stays
    }
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    socket: u64,
    closed: bool,
}

/// The messages on their way, of one client.
#[derive(Default)]
pub struct Acks {
    table: Mutex<Table>,
    none_left: Notify,
}

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
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait for it if nothing is on its way any more.
    fn tell(&self, table: &Table) {
        if table.entries.is_empty() {
            self.none_left.notify_waiters();
        }
    }

    /// Waits until nothing is on its way.
    pub async fn none_left(&self) {
        loop {
            let told = self.none_left.notified();
            if self.table().entries.is_empty() {
                return;
            }
            told.await;
        }
    }

    /// Takes a batch up, all at once: of each message its id on WhatsApp and its chat. What is taken up in one batch the
    /// caller sends in its order; after a message that somebody else sends, the rest of its chat waits.
    pub fn begin(&self, batch: &[(&str, &str)], now: Instant) -> Vec<Begun> {
        let mut table = self.table();
        if table.closed {
            let over = || watch::channel(Progress::Over(SendOutcome::NotConnected)).1;
            return batch.iter().map(|_| Begun::Theirs(over())).collect();
        }
        table
            .entries
            .retain(|_, entry| entry.stays_if(entry.sent_on.is_none() || now.duration_since(entry.since) <= PATIENCE));
        let mut ours: HashSet<&str> = HashSet::new();
        let mut blocked: HashSet<&str> = HashSet::new();
        let mut begun = Vec::with_capacity(batch.len());
        for &(wa_id, chat) in batch {
            let theirs =
                |(id, entry): (&String, &Entry)| entry.chat == chat && !entry.is_taken() && !ours.contains(id.as_str());
            begun.push(if blocked.contains(chat) {
                Begun::Blocked
            } else if let Some(entry) = table.entries.get(wa_id) {
                Begun::Theirs(entry.outcome.subscribe())
            } else if table.entries.iter().any(theirs) {
                blocked.insert(chat);
                Begun::Blocked
            } else {
                let (outcome, receiver) = watch::channel(Progress::OnItsWay);
                let entry = Entry { chat: chat.to_owned(), since: now, sent_on: None, outcome };
                table.entries.insert(wa_id.to_owned(), entry);
                ours.insert(wa_id);
                Begun::Ours(receiver)
            });
        }
        begun
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
            self.give_up(wa_id);
        } else if let Some(entry) = table.entries.get_mut(wa_id) {
            entry.sent_on = Some(socket);
            entry.since = Instant::now();
        }
    }

    /// WhatsApp has taken a message. Whoever waits hears it; it is over once it is recorded.
    pub fn taken(&self, wa_id: &str, at: DateTime<Utc>) {
        if let Some(entry) = self.table().entries.get(wa_id) {
            entry.outcome.send_replace(Progress::Taken(at));
        }
    }

    /// What became of a message is known, and recorded.
    pub fn finish(&self, wa_id: &str, outcome: SendOutcome) {
        let mut table = self.table();
        if let Some(entry) = table.entries.remove(wa_id) {
            entry.outcome.send_replace(Progress::Over(outcome));
            self.tell(&table);
        }
    }

    /// No word on a message will come, unless it has come.
    pub fn give_up(&self, wa_id: &str) {
        let mut table = self.table();
        if table.entries.get(wa_id).is_some_and(|entry| !entry.stays_if(false)) {
            table.entries.remove(wa_id);
            self.tell(&table);
        }
    }

    /// The socket came or went: what was written before gets no word any more.
    pub fn socket_changed(&self) {
        let mut table = self.table();
        table.socket += 1;
        table.entries.retain(|_, entry| entry.stays_if(entry.sent_on.is_none()));
        self.tell(&table);
    }

    /// The client is gone: nothing gets a word any more.
    pub fn close(&self) {
        let mut table = self.table();
        table.socket += 1;
        table.closed = true;
        for (_, entry) in table.entries.drain() {
            entry.stays_if(false);
        }
        self.tell(&table);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    fn ours(acks: &Acks, wa_id: &str, chat: &str, now: Instant) -> Outcome {
        match acks.begin(&[(wa_id, chat)], now).pop() {
            Some(Begun::Ours(outcome)) => outcome,
            _ => panic!("not ours"),
        }
    }

    #[test]
    fn the_same_message_at_the_same_time_is_sent_once_and_both_hear() {
        let acks = Acks::default();
        let now = Instant::now();
        let first = ours(&acks, "A", "chat", now);
        let Some(Begun::Theirs(second)) = acks.begin(&[("A", "chat")], now).pop() else { panic!("sent twice") };
        acks.finish("A", SendOutcome::Nacked { code: 429 });
        assert_eq!(*first.borrow(), Progress::Over(SendOutcome::Nacked { code: 429 }));
        assert_eq!(*second.borrow(), Progress::Over(SendOutcome::Nacked { code: 429 }));
        ours(&acks, "A", "chat", now);
    }

    #[test]
    fn a_chat_waits_for_its_older_message_and_others_do_not() {
        let acks = Acks::default();
        let now = Instant::now();
        let batch = acks.begin(&[("A", "chat"), ("B", "chat")], now);
        assert!(matches!(batch[..], [Begun::Ours(_), Begun::Ours(_)]));
        let batch = acks.begin(&[("C", "chat"), ("D", "another")], now);
        assert!(matches!(batch[..], [Begun::Blocked, Begun::Ours(_)]));
    }

    #[test]
    fn no_message_overtakes_one_of_its_own_batch_that_an_earlier_call_still_sends() {
        let acks = Acks::default();
        let now = Instant::now();
        ours(&acks, "A", "chat", now);
        let batch = acks.begin(&[("A", "chat"), ("B", "chat"), ("C", "another")], now);
        assert!(matches!(batch[..], [Begun::Theirs(_), Begun::Blocked, Begun::Ours(_)]));
    }

    #[test]
    fn what_is_taken_lets_its_chat_go_on_and_stays_until_that_is_recorded() {
        let acks = Acks::default();
        let now = Instant::now();
        let at = DateTime::UNIX_EPOCH;
        let first = ours(&acks, "A", "chat", now);
        let socket = acks.socket();
        acks.taken("A", at);
        assert_eq!(*first.borrow(), Progress::Taken(at));
        ours(&acks, "B", "chat", now);
        // Nothing makes another try of it: not its writer's end, not its socket's, not time.
        acks.sent("A", socket);
        acks.socket_changed();
        acks.give_up("A");
        acks.sent("A", socket);
        let later = now + PATIENCE + Duration::from_secs(1);
        assert!(matches!(acks.begin(&[("A", "chat")], later)[..], [Begun::Theirs(_)]));
        assert_eq!(*first.borrow(), Progress::Taken(at));
        acks.finish("A", SendOutcome::Acked { at });
        assert_eq!(*first.borrow(), Progress::Over(SendOutcome::Acked { at }));
        assert!(acks.begin(&[("A", "another")], later).pop().is_some_and(|begun| matches!(begun, Begun::Ours(_))));
    }

    #[test]
    fn what_is_given_up_is_free_to_be_tried_again() {
        let acks = Acks::default();
        let now = Instant::now();
        let first = ours(&acks, "A", "chat", now);
        acks.give_up("A");
        assert_eq!(*first.borrow(), Progress::Over(SendOutcome::Pending));
        ours(&acks, "A", "chat", now);
    }

    #[test]
    fn a_lost_socket_leaves_what_was_written_open_and_what_wasn_t_alone() {
        let acks = Acks::default();
        let now = Instant::now();
        let written = ours(&acks, "A", "one", now);
        let unwritten = ours(&acks, "B", "two", now);
        let socket = acks.socket();
        acks.sent("A", socket);
        acks.socket_changed();
        assert_eq!(*written.borrow(), Progress::Over(SendOutcome::Pending));
        assert_eq!(*unwritten.borrow(), Progress::OnItsWay);
        acks.sent("B", socket);
        assert_eq!(*unwritten.borrow(), Progress::Over(SendOutcome::Pending), "written to a socket that was gone");
    }

    #[tokio::test]
    async fn who_waits_hears_when_nothing_is_on_its_way_and_a_closed_client_takes_nothing_up() {
        let acks = Acks::default();
        let now = Instant::now();
        acks.none_left().await;
        ours(&acks, "A", "one", now);
        ours(&acks, "B", "two", now);
        let mut waiting = pin!(acks.none_left());
        assert!(waiting.as_mut().now_or_never().is_none());
        acks.finish("A", SendOutcome::Pending);
        assert!(waiting.as_mut().now_or_never().is_none());
        acks.finish("B", SendOutcome::Pending);
        assert!(waiting.now_or_never().is_some());
        acks.close();
        let Some(Begun::Theirs(outcome)) = acks.begin(&[("C", "three")], now).pop() else { panic!("taken up") };
        assert_eq!(*outcome.borrow(), Progress::Over(SendOutcome::NotConnected));
    }

    #[test]
    fn patience_ends_but_only_for_what_was_written() {
        let acks = Acks::default();
        let now = Instant::now();
        let written = ours(&acks, "A", "one", now);
        acks.sent("A", acks.socket());
        ours(&acks, "B", "two", now);
        let later = now + PATIENCE + Duration::from_secs(1);
        ours(&acks, "A", "one", later);
        assert_eq!(*written.borrow(), Progress::Over(SendOutcome::Pending));
        assert!(matches!(acks.begin(&[("B", "two")], later)[..], [Begun::Theirs(_)]));
    }
}
