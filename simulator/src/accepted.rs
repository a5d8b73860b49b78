//! The log of accepted message stanzas, so that tests can count repeats instead of believing.
//!
//! One log per account, about the messages of its companions. Each entry: who sent which id when, whether the ack was
//! written to a live socket, and which addressees have since opened their part. The simulator never de-duplicates:
//! an id sent twice is accepted, delivered and logged twice.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::lock;

/// How many entries an account's log keeps; the counts go on beyond that.
const LOG_LIMIT: usize = 200_000;

/// One part of an accepted message.
#[derive(Debug, Clone, Serialize)]
pub struct AcceptedPart {
    /// The addressed device.
    pub device: String,
    /// `pkmsg` or `msg`.
    pub kind: String,
    /// The ciphertext as it was sent.
    #[serde(skip)]
    pub ciphertext: Vec<u8>,
}

/// An accepted message stanza, as the control API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct AcceptedEntry {
    /// The sending device's address.
    pub device: String,
    /// The stanza's id, chosen by the sender.
    pub id: String,
    /// The chat it was sent to.
    pub to: String,
    /// `peer` for messages between an account's own devices, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// When it was accepted, unix milliseconds.
    pub at: i64,
    /// The ack was written to a socket that took it.
    pub ack_written: bool,
    /// The devices that have opened their part: phones by decrypting it, companions by acknowledging it.
    pub decrypted_by: Vec<String>,
    /// The phones that could not open their part.
    pub failed_at: Vec<String>,
    /// The parts, one for each addressed device.
    pub parts: Vec<AcceptedPart>,
}

/// How many messages were accepted, and how many of them again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AcceptedSummary {
    /// All accepted messages, peer messages excepted.
    pub total: u64,
    /// Different (device, id) pairs.
    pub distinct: u64,
    /// `total` less `distinct`.
    pub repeats: u64,
    /// `total` by sending device.
    pub by_device: HashMap<String, u64>,
}

/// An accepted message while it is on its way.
pub(crate) struct AcceptedMessage {
    entry: AcceptedEntry,
    ack_written: AtomicBool,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    decrypted_by: Vec<String>,
    failed_at: Vec<String>,
}

impl AcceptedMessage {
    pub(crate) fn new(entry: AcceptedEntry) -> Self {
        Self { entry, ack_written: AtomicBool::new(false), opened: Mutex::default() }
    }

    pub(crate) fn ack_was_written(&self) {
        self.ack_written.store(true, Ordering::Release);
    }

    pub(crate) fn decrypted_by(&self, device: String) {
        lock(&self.opened).decrypted_by.push(device);
    }

    pub(crate) fn failed_at(&self, device: String) {
        lock(&self.opened).failed_at.push(device);
    }

    pub(crate) fn view(&self) -> AcceptedEntry {
        let opened = lock(&self.opened);
        AcceptedEntry {
            ack_written: self.ack_written.load(Ordering::Acquire),
            decrypted_by: opened.decrypted_by.clone(),
            failed_at: opened.failed_at.clone(),
            ..self.entry.clone()
        }
    }
}

/// The log of one account.
#[derive(Default)]
pub(crate) struct AcceptedLog {
    entries: VecDeque<Arc<AcceptedMessage>>,
    counts: HashMap<(String, String), u64>,
}

impl AcceptedLog {
    pub(crate) fn record(&mut self, message: &Arc<AcceptedMessage>) {
        if message.entry.category.is_none() {
            *self.counts.entry((message.entry.device.clone(), message.entry.id.clone())).or_default() += 1;
        }
        self.entries.push_back(Arc::clone(message));
        if self.entries.len() > LOG_LIMIT {
            self.entries.pop_front();
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<AcceptedMessage>> {
        self.entries.iter()
    }

    pub(crate) fn add_to(&self, summary: &mut AcceptedSummary) {
        for ((device, _), count) in &self.counts {
            summary.total += count;
            summary.distinct += 1;
            summary.repeats += count - 1;
            *summary.by_device.entry(device.clone()).or_default() += count;
        }
    }
}
