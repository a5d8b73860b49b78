//! Acknowledgements, receipts and placeholders on their way into the store: one task for each client, in order.
//!
//! An acknowledgement must not be lost: if its commit fails, or the queue is full, the session's store handle is poisoned
//! and the try becomes one whose outcome isn't known. A receipt is a hint: a queue that is half full, or a full outbox, drops it,
//! and counts that.
//!
//! What comes together is one commit. A refusal, which somebody waits for, takes along what lies in line; that WhatsApp has taken a
//! message its sender knows by then ([`super::acks`]).

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use shared::wire::{
    outbox::{InboundBody, OutboxEvent, ReceiptKind},
    send::SendOutcome,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use wacore::types::{
    events::{InboundMessage, Receipt},
    message::MessageInfo,
    presence::ReceiptType,
};
use whatsapp_rust::Client;

use super::{
    client::Link,
    inbound::{body, message},
    party::{UnreadableMap, party},
};
use crate::store::{JournalAck, JournalWord, Poison, StoreError};

/// How many entries wait at most.
pub const CAPACITY: usize = 1_024;
/// How many entries are committed together at most.
const TOGETHER: usize = 64;
/// How long what nobody waits for waits for more of its like: a recipient's devices answer within a moment of each other.
const LINGER: Duration = Duration::from_millis(20);
/// The most messages that one receipt is taken for, and the longest id, in bytes: a row must fit into one request to the
/// control plane. Ids of ours, and of WhatsApp's own clients, are far shorter.
const RECEIPT_IDS: (usize, usize) = (1_000, 128);

/// Something to be stored.
pub enum Write {
    /// WhatsApp took, or refused, a message of ours.
    Ack {
        /// Its id on WhatsApp.
        wa_id: String,
        /// WhatsApp's code, if it refused.
        error: Option<u16>,
        /// When.
        at: DateTime<Utc>,
    },
    /// A recipient's device said something about messages of ours.
    Receipt(Box<Receipt>),
    /// A message could not be decrypted.
    Undecryptable(Arc<MessageInfo>),
    /// A message that could not be decrypted, as the own phone has it.
    Resent(InboundMessage),
    /// Tell when everything before this is stored.
    Flush(oneshot::Sender<()>),
}

impl Write {
    const fn is_waited_for(&self) -> bool {
        matches!(self, Self::Ack { error: Some(_), .. } | Self::Flush(_))
    }
}

/// Why something was not stored.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Names(#[from] UnreadableMap),
}

/// Stores what comes until the queue is closed, or a write fails.
pub async fn run(link: Arc<Link>, client: Arc<Client>, mut queue: mpsc::Receiver<Write>) {
    let mut next = Vec::with_capacity(TOGETHER);
    while queue.recv_many(&mut next, TOGETHER).await > 0 {
        gather(&mut queue, &mut next).await;
        // Boxed: it is 12 KiB, and most of the time nothing is to be stored.
        if let Err(error) = Box::pin(store(&link, &client, next.drain(..))).await {
            tracing::warn!(session = %link.backend.session_id(), %error, "an acknowledgement or receipt was not stored");
            link.backend.poison(Poison::HookFailed);
            return;
        }
    }
}

/// Waits a moment for more, while nobody waits for what there is.
async fn gather(queue: &mut mpsc::Receiver<Write>, next: &mut Vec<Write>) {
    let until = Instant::now() + LINGER;
    while next.len() < TOGETHER && !next.iter().any(Write::is_waited_for) {
        match timeout_at(until, queue.recv()).await {
            Ok(Some(write)) => next.push(write),
            Ok(None) | Err(_) => return,
        }
    }
}

/// What is stored in one commit.
#[derive(Default)]
struct Gathered {
    words: Vec<JournalWord>,
    others: Vec<OutboxEvent>,
}

async fn store(link: &Link, client: &Client, writes: impl Iterator<Item = Write>) -> Result<(), WriteError> {
    let mut gathered = Gathered::default();
    for write in writes {
        match write {
            Write::Receipt(receipt) => gathered.others.extend(hint(client, &receipt).await?),
            Write::Undecryptable(info) => {
                gathered.others.push(OutboxEvent::Message(message(client, &info, InboundBody::Undecryptable).await?));
            }
            Write::Resent(resent) => {
                if let Some(body) = body(&resent.message, &resent.info) {
                    gathered.others.push(OutboxEvent::Message(message(client, &resent.info, body).await?));
                    metrics::counter!("data_plane_messages_recovered_total").increment(1);
                }
            }
            Write::Ack { wa_id, error, at } => gathered.words.push(JournalWord { wa_id, error, at }),
            Write::Flush(done) => {
                commit(link, std::mem::take(&mut gathered)).await?;
                // Who asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }
    Ok(commit(link, gathered).await?)
}

async fn commit(link: &Link, Gathered { words, others }: Gathered) -> Result<(), StoreError> {
    if words.is_empty() && others.is_empty() {
        return Ok(());
    }
    let hints = words.is_empty() && others.iter().all(|event| matches!(event, OutboxEvent::Receipt { .. }));
    let acks = match link.backend.journal_ack(&words, &others).await {
        Err(StoreError::OutboxFull { .. }) if hints => {
            metrics::counter!("data_plane_receipts_dropped_total").increment(others.len() as u64);
            return Ok(());
        }
        acks => acks?,
    };
    link.shipper.ring_soon(link.backend.session_id());
    for (word, ack) in words.into_iter().zip(acks) {
        if let JournalAck::Recorded { .. } = &ack {
            let result = if word.error.is_some() { "refused" } else { "taken" };
            metrics::counter!("data_plane_messages_acked_total", "result" => result).increment(1);
        }
        // What was recorded first stands.
        let (error, at) = match ack {
            JournalAck::Already { error, at } => (error, at),
            JournalAck::Recorded { .. } | JournalAck::Unknown => (word.error, word.at),
        };
        let outcome = match error {
            None => SendOutcome::Acked { at },
            Some(code) => SendOutcome::Nacked { code },
        };
        link.acks.finish(&word.wa_id, outcome);
    }
    Ok(())
}

/// What a receipt says of our messages; `None` if it says nothing of interest, or comes from our own account.
async fn hint(client: &Client, receipt: &Receipt) -> Result<Option<OutboxEvent>, UnreadableMap> {
    let kind = match receipt.r#type {
        // A device that isn't in the foreground says "inactive" for "delivered".
        ReceiptType::Delivered | ReceiptType::Inactive => ReceiptKind::Delivered,
        ReceiptType::Read => ReceiptKind::Read,
        ReceiptType::Played => ReceiptKind::Played,
        _ => return Ok(None),
    };
    let source = &receipt.source;
    let own = [client.pn(), client.lid()].into_iter().flatten().any(|own| own.user == source.sender.user);
    if own {
        return Ok(None);
    }
    let alt = if source.is_group { None } else { source.sender_alt.as_ref() };
    Ok(Some(OutboxEvent::Receipt {
        chat: party(client, &source.chat, alt).await?,
        wa_ids: receipt
            .message_ids
            .iter()
            .filter(|id| id.len() <= RECEIPT_IDS.1)
            .take(RECEIPT_IDS.0)
            .cloned()
            .collect(),
        receipt: kind,
        at: receipt.timestamp,
    }))
}
